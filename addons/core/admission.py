"""
Admission: the objects that a rule may look at, as ValidatingAdmissionPolicy names them.

`object` is what the request would leave behind, by the API server's own dry run (so that
apply, patch, edit, `set image` and scale are all judged by their result), null for a delete.
`oldObject` is what is there now, null for a create. `namespaceObject` is the Namespace.

Nothing is fetched here. A policy says what it needs by raising NeedsObjects; this module says
by which requests it can be had safely (`plan`), and holds what came of them (`Objects`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote_plus

from addons.core import impacts, uses
from addons.core.model import NOTHING, Impact, Operation

VARIABLES = ("object", "oldObject", "namespaceObject")
NONE: frozenset[str] = frozenset()
OBJECT = frozenset({"object"})

_CHANGES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_DELETES = frozenset({"delete", "deletecollection"})
# Of the core group, beside an object: a stream into it, or a little object of another kind that is
# posted to it. Neither is the object that a rule on `pods` speaks of. None is ever previewed: a
# dry run of a TokenRequest returns a token that works (tried).
BESIDE = frozenset({"exec", "attach", "portforward", "proxy", "eviction", "binding", "token"})
# Subresources whose dry run answers with an object, and which a GET shows as it is now.
READABLE = frozenset({"", "status", "scale", "ephemeralcontainers"})
# Patches whose success or failure answers a question about what is stored: a JSON patch tests
# and moves values, an apply conflicts on a wrong guess (both tried on a Secret).
_ORACLES = frozenset({"application/json-patch+json", "application/apply-patch+yaml"})


class NeedsObjects(Exception):
    """
    No verdict without these variables (`names`): a rule that otherwise matches looks at them.

    What the API server refuses when they are fetched is the client's answer for the names in
    `binding` only; the others are for policies that merely observe.
    """

    def __init__(self, names: frozenset[str], binding: frozenset[str]) -> None:
        super().__init__(f"needs {', '.join(sorted(names))}")
        self.names = names
        self.binding = binding


@dataclass(frozen=True, slots=True)
class Objects:
    """What was fetched. It may hold secrets: seen by expressions, never in a repr, a message or a log."""

    values: Mapping[str, Any] = field(default_factory=lambda: NOTHING, repr=False)  # None: null
    troubles: Mapping[str, str] = field(default_factory=lambda: NOTHING)  # by variable: why it is not there
    created: bool | None = None  # whether the request makes the object, when that is known

    def trouble(self, names: frozenset[str]) -> str:
        """Why not all of these variables can be looked at, or ""."""
        for name in VARIABLES:
            if name in names and name not in self.values:
                return f"{name} could not be fetched: {self.troubles.get(name, 'nobody asked for it')}"
        return ""


NOT_FETCHED = Objects()


@dataclass(frozen=True, slots=True)
class ServerRefusal:
    """What the API server said instead of an object: it is the client's answer, word for word."""

    code: int
    body: bytes = field(repr=False)  # a metav1.Status; may quote values


@dataclass(frozen=True, slots=True)
class Plan:
    """Which requests bring what is needed, and what is known without any."""

    preview: bool = False  # the very request, as a dry run
    live: bool = False  # GET of the same path
    namespace: str = ""  # GET of this Namespace
    values: Mapping[str, Any] = field(default_factory=lambda: NOTHING, repr=False)
    troubles: Mapping[str, str] = field(default_factory=lambda: NOTHING)


def has_object(operation: Operation) -> bool:
    """
    Whether it creates, updates or deletes an object of its resource.

    A rule that looks at objects is about nothing else: a read has none, nor has an exec or an
    eviction, even where `pods` in the rule covers `pods/exec`.
    """
    info = operation.info
    beside = info.subresource in BESIDE and info.api_group == ""
    return info.is_resource_request and info.verb in _CHANGES and not beside


def no_preview(operation: Operation) -> str:
    """Why the API server's dry run of this request cannot be had, or ""."""
    info = operation.info
    if info.verb not in ("create", "update", "patch"):
        return "it leaves no object behind"
    # direction: a preview that is carried out would be the very thing that is not decided yet.
    if not impacts.dry_run_possible(info) or info.subresource not in READABLE:
        return "a dry run of it is not known to be one"
    if Impact.REVEAL in operation.impacts and operation.media_type in _ORACLES:
        return "a dry run of such a patch tells what the Secret holds"
    return ""


def plan(operation: Operation, names: frozenset[str]) -> Plan:
    """How to get these variables for this operation."""
    info = operation.info
    values: dict[str, Any] = {}
    troubles: dict[str, str] = {}
    preview = live = False
    admitted = has_object(operation)
    if "object" in names:
        if not admitted or info.verb in _DELETES:
            values["object"] = None
        elif why := no_preview(operation):
            troubles["object"] = why
        else:
            preview = True
    if "oldObject" in names:
        if not admitted or info.verb == "create":
            values["oldObject"] = None
        elif info.verb == "deletecollection" or not info.name:
            troubles["oldObject"] = "it is about a whole collection"
        elif info.subresource not in READABLE:
            troubles["oldObject"] = "this subresource cannot be read"
        else:
            live = True
    namespace = ""
    if "namespaceObject" in names:
        # As for ValidatingAdmissionPolicy: null for what is cluster-wide, Namespaces included.
        namespace = "" if info.resource == "namespaces" else info.namespace
        if not namespace:
            values["namespaceObject"] = None
    return Plan(preview, live, namespace, values, troubles)


def revealed(operation: Operation, objects: Objects) -> Operation:
    """The operation with what its pod template really uses, once the dry run shows it."""
    if operation.uses is None or not operation.uses.unknown or operation.info.verb in _DELETES:
        return operation
    content = objects.values.get("object")
    if content is None or operation.info.subresource not in ("", "ephemeralcontainers"):
        return operation
    info = operation.info
    used = uses.of_object(info.api_group, info.resource, content, exists=True)
    if used is not None and uses.NODE_NAME in operation.uses.host:
        # The patch says so itself: of a pod that an apply creates, the result does not tell who chose.
        used = replace(used, host=used.host | {uses.NODE_NAME})
    return replace(operation, uses=used)


def live_target(target: str) -> str:
    """The same path, to be read."""
    return target.partition("?")[0]


def dry_run_target(target: str) -> str:
    """The same request, told to store nothing. Whatever it said of `dryRun` before is taken out: Go takes the first."""
    path, _, query = target.partition("?")
    kept = [part for part in query.split("&") if part and unquote_plus(part.partition("=")[0]) != "dryRun"]
    return f"{path}?{'&'.join(['dryRun=All', *kept])}"
