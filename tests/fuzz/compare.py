"""
Whether two readings of a request are the same: ours (addons.core) and the API server's own, which
tests/cluster's Go program `meaning` gives. Where they are not, ours must have refused.
"""

import json
from collections.abc import Mapping
from typing import Any

from addons.core import canonical, classify, maskpolicy, maskwrites, preconditions, uses
from addons.core.impacts import dry_run_possible
from addons.core.model import NO_USES, Impact, Operation
from addons.core.status import Refused
from tests.fuzz.cases import SECRET, Case, onto
from tests.fuzz.trees import encoded

INFO = {
    "isResourceRequest": "is_resource_request",
    "path": "path",
    "verb": "verb",
    "apiPrefix": "api_prefix",
    "apiGroup": "api_group",
    "apiVersion": "api_version",
    "namespace": "namespace",
    "resource": "resource",
    "subresource": "subresource",
    "name": "name",
    "fieldSelector": "field_selector",
    "labelSelector": "label_selector",
}
Answer = Mapping[str, Any]


def ours(case: Case) -> Operation | None:
    """What we take it for; None when it is refused."""
    fields = [] if case.content_type is None else [(b"Content-Type", case.content_type.encode("utf-8", "replace"))]
    try:
        return classify.classify_raw(case.method, case.url, fields, case.body)
    except Refused:
        return None


def difference(case: Case, found: Operation, theirs: Answer) -> str:
    """In what the two readings differ, or ""; both sides have read it."""
    got = {name: getattr(found.info, field) for name, field in INFO.items()} | {"parts": list(found.info.parts)}
    if got != theirs["info"]:
        return f"RequestInfo: {got} is {theirs['info']}"
    if theirs.get("watch") and found.info.verb == "list":
        return "it watches"
    is_dry = bool(theirs.get("dryRun"))
    if found.dry_run and not is_dry:
        return "no dry run"
    # The other way round only costs the client something; it is looked at where the answer is plain.
    if is_dry and not found.dry_run and not found.info.subresource and dry_run_possible(found.info):
        return "a dry run" if theirs["dryRun"] == ["All"] else ""
    match found.info.verb:
        case "delete" | "deletecollection":
            return _deletes(found, theirs)
        case "create" | "update":
            return _object(case, found, theirs)
        case "patch":
            return _patch(case, found, theirs)
    return ""


def _deletes(found: Operation, theirs: Answer) -> str:
    orphans = theirs.get("propagation") == "Orphan" or theirs.get("orphan") is True
    body = found.body if isinstance(found.body, dict) else {}
    if (body.get("propagationPolicy") == "Orphan" or body.get("orphanDependents") is True) and not orphans:
        return "dependents go too"
    if preconditions.own_uid(found) != theirs.get("uid", "") and found.body is not None:
        return "the precondition's uid"
    return ""


def _object(case: Case, found: Operation, theirs: Answer) -> str:
    read = theirs.get("object")
    if read is None:
        return ""
    if why := _missing(read, found.body, found.info.resource == "gizmos"):
        return f"the object: {why}"
    metadata = read.get("metadata") or {}
    if found.info.verb == "create" and found.name != (metadata.get("name") or ""):
        return "the object's name"
    labels = metadata.get("labels") or {}
    if isinstance(labels, dict) and dict(found.labels) != {k: v for k, v in labels.items() if isinstance(v, str)}:
        # A typed object's labels are strings: null is "" over there.
        written = (found.body.get("metadata") or {}).get("labels") or {}
        if None not in written.values():
            return "the object's labels"
    # What the rules look at, once more from what the API server read.
    again = ours(Case(case.method, case.url, "application/json", json.dumps(read).encode()))
    if again is None:
        return ""
    if again.impacts - found.impacts:
        return f"impacts: {again.impacts - found.impacts}"
    return _more_uses(again.uses, found.uses)


def _more_uses(theirs: uses.Uses | None, found: uses.Uses | None) -> str:
    if theirs is None:
        return ""
    if found is None:
        return "uses nothing"
    for field in ("service_accounts", "secrets", "config_maps", "host"):
        if not getattr(theirs, field) <= getattr(found, field) and not found.unknown:
            return f"uses: {field}"
    return "uses: token" if theirs.token and not found.token and not found.unknown else ""


def _missing(theirs: Any, found: Any, exactly: bool, path: str = "") -> str:
    """Where the API server has read something that we have not. Its types add empty fields, which count for nothing."""
    if isinstance(theirs, dict):
        if not isinstance(found, dict):
            return path if exactly or any(not _empty(value) for value in theirs.values()) else ""
        if exactly and set(found) - set(theirs):
            return f"{path}: only ours has {sorted(set(found) - set(theirs))}"
        for key, value in theirs.items():
            if key in found:
                if why := _missing(value, found[key], exactly, f"{path}/{key}"):
                    return why
            elif exactly or not (_empty(value) or (not path and key in ("kind", "apiVersion"))):
                return f"{path}/{key}"
        return ""
    if isinstance(theirs, list):
        if not isinstance(found, list) or len(found) != len(theirs):
            return path if exactly or theirs else ""
        return next(
            filter(None, map(_missing, theirs, found, [exactly] * len(theirs), [f"{path}/-"] * len(theirs))), ""
        )
    if not exactly and _empty(theirs) and (found is None or _empty(found)):
        return ""
    same = theirs == found and isinstance(theirs, bool) == isinstance(found, bool)
    return "" if same else f"{path}: {theirs!r} is {found!r}"


def _empty(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_empty, value.values()))
    return value in (None, "", [], 0, False, "0")  # "0": a quantity's zero


def _patch(case: Case, found: Operation, theirs: Answer) -> str:
    after = theirs.get("object")
    if after is None:
        return ""
    if found.media_type == "application/apply-patch+yaml":
        why = _missing(after, found.body, True)
        return f"the applied object: {why}" if why else ""
    before = json.loads(case.onto)
    key = (found.info.api_group, found.info.resource)
    spec = uses.POD_SPECS.get(key)
    if spec is not None and _at(before, spec) != _at(after, spec) and found.uses in (None, NO_USES):
        return "it changes the pod spec"
    if found.info.resource == "namespaces" and Impact.ESCALATE not in found.impacts:
        for field in ("labels", "annotations"):
            if _at(before, ("metadata", field)) != _at(after, ("metadata", field)):
                return f"it changes the Namespace's {field}"
    return ""


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


# Two Secrets that differ in their value: whoever is told them apart is told the value.


def tells(case: Case, found: Operation, one: Answer, other: Answer) -> str:
    """Whether the answers to a patch of two Secrets differ where nothing is masked, and nobody here objects."""
    if _shown(one) == _shown(other):
        return ""
    everything = maskpolicy.EVERYTHING
    objected = maskwrites.reads_back(found, everything) or maskwrites.sets_masked_field(found, everything)
    return "" if objected else "the answer tells the Secret's value"


def other_secret(case: Case) -> str | None:
    """The same object with another value, for a patch of a Secret."""
    return onto("secrets", "two") if case.onto and case.onto == onto("secrets", "one") else None


def _shown(answer: Answer) -> Any:
    """What a client that may not see the data is shown: the rest of the object, or the error."""
    read = answer.get("object")
    if not isinstance(read, dict):
        return answer.get("error", read)
    shown = {key: value for key, value in read.items() if key not in ("data", "stringData")}
    text = json.dumps(shown)
    for variant in ("one", "two"):
        if encoded(SECRET.format(variant)) in text:
            return text
    return shown


# A DELETE that the gateway binds to the object that was approved must go on meaning what it meant.

UID = "6f1c3a52-0000-4000-8000-000000000001"


def bound(case: Case, found: Operation) -> Case | None:
    """The DELETE with the uid; None when it is none or cannot be bound."""
    if not preconditions.deletes_one(found) or found.info.subresource:
        return None
    try:
        made = preconditions.with_preconditions(found, case.url, UID)
        canonical.check_target(case.method, made.target)
    except Refused:
        return None
    return Case(case.method, made.target, made.content_type, made.body)


def bound_difference(before: Answer, after: Answer) -> str:
    """In what the bound DELETE differs from the one that was approved, but for the uid."""
    if "error" in before or "error" in after:
        return ""  # refused over there: nothing is deleted
    for key in ("dryRun", "propagation", "orphan", "grace"):
        if before.get(key) != after.get(key):
            return f"bound to the uid: {key} {before.get(key)!r} has become {after.get(key, after)!r}"
    return "" if after.get("uid") == UID else "not bound to the uid"
