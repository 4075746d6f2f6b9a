"""
Changes that a client wants: what a patch or a whole object says, and that it says nothing else.

An approver may set `spec.decision` with `spec.reason`, and `spec.revoked` of a grant. So a patch is
applied to the object as its sender sees it, and whatever else comes out different is refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from addons.core import revocations
from addons.core.approvals import MAX_REASON, Access
from addons.core.bodies import Body
from addons.core.revocations import RevocationError, Target
from addons.core.virtualobjects import (
    API_VERSION,
    APPROVED,
    DENIED,
    EVERYWHERE,
    REQUESTS,
    REVOCATIONS,
    Content,
    Resource,
)
from addons.core.virtualstatus import Problem

MAX_WORDS = 20  # verbs or resources of one AccessRequest
LEAST_ACCESS, MOST_ACCESS = 60, 8 * 3600  # seconds
_MAX_OPERATIONS = 100  # of a JSON patch; the longest honest one has four


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the sender asks for. `Wanted()` changes nothing."""

    decision: str = ""  # "", Approved or Denied
    reason: str = ""
    revoked: bool = False
    resource_version: str = ""  # the only state that is to be changed; "": whatever is there by then

    @property
    def nothing(self) -> bool:
        return not self.decision and not self.revoked


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    dry_run: bool = False
    uid: str = ""  # preconditions
    resource_version: str = ""


@dataclass(frozen=True, slots=True)
class NewRequest:
    """An AccessRequest as it was sent."""

    access: Access
    name: str = ""
    name_prefix: str = ""  # metadata.generateName
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NewRevocation:
    """A Revocation as it was sent."""

    target: Target
    until: float = 0.0  # seconds since the epoch; 0: until it is lifted
    reason: str = ""
    name: str = ""
    name_prefix: str = ""
    warnings: tuple[str, ...] = ()


def invalid(message: str, cause: str = "invalid") -> Problem:
    return Problem(422, cause, message)


# ----- patch and update -----


def of_patch(resource: Resource, current: Content, body: Body) -> Wanted:
    """What a PATCH wants. Raises Problem: 415 for server-side apply, 422 for any other change."""
    if body.patch == "apply":
        # It would need a record of who owns which field, which these objects do not have.
        raise Problem(
            415,
            "patch-unsupported",
            f"{resource.plural}: server-side apply is not served here; use kubectl patch --type=merge",
        )
    if body.patch == "json":
        patched = _json_patched(resource, current, body.content)
        # What was tested must still hold when the change is made.
        of_this_state = any(o["op"] == "test" or o["path"] == "/metadata/resourceVersion" for o in body.content)
        return _compare(resource, current, patched, of_this_state=of_this_state)
    # There are no lists to merge in what may change, so a strategic patch is a merge patch.
    if not isinstance(body.content, dict):
        raise Problem(400, "body-unreadable", "body: a PATCH needs one; send a JSON object")
    of_this_state = bool(_text(body.content, "metadata", "resourceVersion"))
    return _compare(resource, current, _merged(current, body.content), of_this_state=of_this_state)


def of_update(resource: Resource, current: Content, body: Body) -> Wanted:
    """What a PUT of the whole object wants."""
    if not isinstance(body.content, dict):
        raise Problem(400, "body-unreadable", "body: a PUT needs the whole object; send it")
    metadata = body.content.get("metadata")
    if not isinstance(metadata, dict) or not metadata.get("resourceVersion"):
        # As for custom resources: who sends the whole object says which one he saw.
        raise invalid("metadata.resourceVersion: must be there for an update; get the object and send it back changed")
    return _compare(resource, current, body.content, of_this_state=True)


def _merged(target: Any, patch: Any) -> Any:
    """RFC 7396. Values are taken over, not copied: nothing here changes them."""
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = _merged(found.get(key), value)
    return found


def _json_patched(resource: Resource, current: Content, operations: Any) -> Content:
    """
    RFC 6902, as far as it can be meant: `test` anywhere, and values for the fields that may change.

    Not copy and move: a few hundred of them, each doubling, would fill the memory.
    """
    if not isinstance(operations, list) or len(operations) > _MAX_OPERATIONS:
        raise invalid(f"patch: is not a list of at most {_MAX_OPERATIONS} operations")
    found = {**current, "metadata": dict(current["metadata"]), "spec": dict(current["spec"])}
    settable = {"/metadata/resourceVersion", *(f"/spec/{key}" for key in resource.writable)}
    for operation in operations:
        path, kind = operation["path"], operation["op"]
        if kind == "test":
            if not _same(_at(found, path), operation.get("value")):
                raise invalid(f"patch: the test of {path} fails; look at the object again", "patch-test")
        elif kind not in ("add", "replace", "remove") or path not in settable:
            raise _unchangeable(resource, path.strip("/").replace("/", ".") or "all of it")
        else:
            _, part, key = path.split("/")
            if kind == "remove":
                found[part].pop(key, None)
            else:
                found[part][key] = operation.get("value")
    return found


_NOWHERE = object()


def _at(content: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(content, dict):
            content = content.get(key, _NOWHERE)
        elif isinstance(content, list) and re.fullmatch(r"0|[1-9][0-9]{0,5}", key) and int(key) < len(content):
            content = content[int(key)]
        else:
            return _NOWHERE
    return content


def _compare(resource: Resource, current: Content, sent: Content, *, of_this_state: bool) -> Wanted:
    """What the sent object has other than the current one, when that may be."""
    version = _text(sent, "metadata", "resourceVersion")
    if version and version != current["metadata"]["resourceVersion"]:
        raise conflict(resource, current["metadata"]["name"])
    for path in _differences(current, sent):
        if path == "metadata.resourceVersion" or path in {f"spec.{key}" for key in resource.writable}:
            continue
        raise _unchangeable(resource, path)
    only = current["metadata"]["resourceVersion"] if of_this_state else ""
    if not resource.writable:
        return Wanted(resource_version=only)
    return _revocation(current, sent, only) if "revoked" in resource.writable else _decision(current, sent, only)


def conflict(resource: Resource, name: str) -> Problem:
    return Problem(
        409,
        "changed",
        f"{resource.full} {name}: it was changed since you read it; look at it again and send your change anew",
    )


def _decision(current: Content, sent: Content, version: str) -> Wanted:
    decision, reason = _text(sent, "spec", "decision"), _text(sent, "spec", "reason")
    before, old_reason = current["spec"]["decision"], current["spec"]["reason"]
    if decision not in ("", APPROVED, DENIED):
        raise invalid(f"spec.decision: is {APPROVED} or {DENIED}, in this spelling")
    if len(reason) > MAX_REASON:
        raise invalid(f"spec.reason: has over {MAX_REASON} characters; shorten it")
    if (decision, reason) == (before, old_reason):
        return Wanted(resource_version=version)
    if not decision:
        if before:
            raise invalid("spec.decision: cannot be taken back; delete the object to cancel it")
        raise invalid("spec.reason: goes with a decision; set spec.decision too")
    return Wanted(decision, reason, resource_version=version)


def _revocation(current: Content, sent: Content, version: str) -> Wanted:
    spec = sent.get("spec")
    revoked = spec.get("revoked", False) if isinstance(spec, dict) else False
    if not isinstance(revoked, bool):
        raise invalid("spec.revoked: is true or false")
    if current["spec"]["revoked"] and not revoked:
        raise invalid("spec.revoked: cannot be taken back; ask for access anew")
    return Wanted(revoked=revoked and not current["spec"]["revoked"], resource_version=version)


def _text(content: Content, part: str, key: str) -> str:
    """A text that may be missing or null."""
    inner = content.get(part)
    value = inner.get(key) if isinstance(inner, dict) else None
    if not isinstance(value, str | None):
        raise invalid(f"{part}.{key}: is not a text")
    return value or ""


def _unchangeable(resource: Resource, path: str) -> Problem:
    fields = " and ".join(f"spec.{key}" for key in resource.writable)
    if not fields:
        what = f"{resource.kind}s are never changed; delete it and make another"
        return invalid(f"{path[:100]}: cannot be changed; {what}", "field-unchangeable")
    return invalid(f"{path[:100]}: cannot be changed; in {resource.plural} only {fields} can", "field-unchangeable")


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Paths at which the two differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif not _same(old, new):
        yield path


def _same(old: Any, new: Any) -> bool:
    """Equal as JSON: Python takes 1 for True."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    return type(old) is type(new) and bool(old == new)


# ----- delete -----


def dry_run(value: str | None) -> bool:
    """The query's dryRun of a write."""
    if value in (None, ""):
        return False
    if value != "All":
        raise invalid("dryRun: All is the only value there is")
    return True


def delete_options(body: Body, query_dry_run: str | None) -> DeleteOptions:
    """As the API server has it: with a body, the query does not count (handlers/delete.go)."""
    if body.content is None:
        return DeleteOptions(dry_run(query_dry_run))
    options = body.content if isinstance(body.content, dict) else {}
    asked = options.get("dryRun") or []
    if asked not in ([], ["All"]):
        raise invalid("dryRun: All is the only value there is")
    preconditions = options.get("preconditions")
    if not isinstance(preconditions, dict | None):
        raise invalid("preconditions: is not an object")
    return DeleteOptions(
        asked == ["All"],
        _text({"preconditions": preconditions}, "preconditions", "uid"),
        _text({"preconditions": preconditions}, "preconditions", "resourceVersion"),
    )


# ----- access requests -----

_DURATION = re.compile(r"(?:([0-9]{1,2})h)?(?:([0-9]{1,4})m)?(?:([0-9]{1,5})s)?")
_VERB = re.compile(r"[a-z]{1,40}|\*")
_RESOURCE = re.compile(r"[a-z0-9*][a-z0-9.*-]{0,252}(?:/[a-z*]{1,63})?")
_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?|\*")
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,98}[a-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9][-a-z0-9.]{0,89}")
_UNSEEN = re.compile(r"[^\S \n\t]|[\x00-\x08\x0b-\x1f\x7f]")

_TOP = ("apiVersion", "kind", "metadata", "spec", "status")
_SPECS = {
    REQUESTS.plural: ("verbs", "resources", "namespace", "duration", "justification", "decision", "reason"),
    REVOCATIONS.plural: (
        *("user", "tokenID", "issuedBefore", "allAgents", "owner"),
        *("expires", "duration", "reason"),
    ),
}
# What metadata can have; the rest of ObjectMeta that a client may send is not kept here, and said so.
_METADATA = frozenset({"name", "generateName", "namespace", "creationTimestamp"})
_NOT_KEPT = ("labels", "annotations", "finalizers", "ownerReferences")
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def new_request(body: Body, field_validation: str) -> NewRequest:
    """The AccessRequest of a POST. Raises Problem."""
    new = _new(REQUESTS, body, field_validation)
    spec = _part(new.content, "spec")
    if spec.get("decision") or spec.get("reason"):
        raise invalid("spec.decision: is an approver's to set, later; remove it and spec.reason")
    return NewRequest(_access(new.content), new.name, new.prefix, new.warnings)


def new_revocation(body: Body, field_validation: str, now: float) -> NewRevocation:
    """The Revocation of a POST. Raises Problem."""
    new = _new(REVOCATIONS, body, field_validation)
    agents = _part(new.content, "spec").get("allAgents", False)
    if not isinstance(agents, bool):
        raise invalid("spec.allAgents: is true or false")
    user, token, issued, owner, expires, duration, reason = (
        _text(new.content, "spec", key)
        for key in ("user", "tokenID", "issuedBefore", "owner", "expires", "duration", "reason")
    )
    if expires and duration:
        raise invalid("spec.expires: goes not with spec.duration; give one of them")
    field = "issuedBefore"
    try:
        issued_before = revocations.instant(issued, now) if issued else 0.0
        field = "duration" if duration else "expires"
        until = now + revocations.seconds(duration) if duration else 0.0
        until = revocations.instant(expires, now) if expires else until
    except RevocationError as e:
        raise invalid(f"spec.{field}: {e}") from None
    target = Target(user, token, issued_before, agents, owner)
    try:
        revocations.check(target, reason, until, now)
    except RevocationError as e:
        raise invalid(f"spec.{e}") from None
    return NewRevocation(target, until, reason, new.name, new.prefix, new.warnings)


@dataclass(frozen=True, slots=True)
class _New:
    content: Content
    name: str
    prefix: str  # metadata.generateName
    warnings: tuple[str, ...]


def _new(resource: Resource, body: Body, field_validation: str) -> _New:
    """
    What the objects of all POSTs have in common. Raises Problem.

    Unknown fields are refused unless the client says Warn or Ignore: a misspelled `namespace`
    must not become another question than the one that was meant.
    """
    content = body.content
    what = f"an {resource.kind}" if resource is REQUESTS else f"a {resource.kind}"
    if not isinstance(content, dict):
        raise Problem(400, "body-unreadable", f"body: there is none; send {what}")
    if field_validation not in ("", "Strict", "Warn", "Ignore"):
        raise invalid("fieldValidation: is Strict, Warn or Ignore")
    if content.get("apiVersion") != API_VERSION or content.get("kind") != resource.kind:
        raise Problem(400, "kind-mismatch", f"body: is no {resource.kind} of {API_VERSION}; set apiVersion and kind")
    metadata, spec = _part(content, "metadata"), _part(content, "spec")
    unknown = [key for key in content if key not in _TOP]
    unknown += [f"spec.{key}" for key in spec if key not in _SPECS[resource.plural]]
    unknown += [f"metadata.{key}" for key in metadata if key not in _METADATA and key not in _NOT_KEPT]
    if unknown and field_validation in ("", "Strict"):
        raise Problem(400, "field-unknown", f"strict decoding error: unknown field {unknown[0][:100]}; remove it")
    warnings = [f"unknown field {path[:100]}" for path in unknown] if field_validation == "Warn" else []
    annotations = metadata.get("annotations")
    if isinstance(annotations, dict) and annotations.keys() == {_LAST_APPLIED}:
        metadata = {key: value for key, value in metadata.items() if key != "annotations"}
    warnings += [f"metadata.{key} is not kept here" for key in _NOT_KEPT if metadata.get(key)]
    if metadata.get("namespace"):
        said = "; set spec.namespace" if resource is REQUESTS else ""
        raise Problem(400, "namespace-mismatch", f"metadata.namespace: {what} is in none{said}")
    name, prefix = _text(content, "metadata", "name"), _text(content, "metadata", "generateName")
    if name and not _NAME.fullmatch(name):
        raise invalid("metadata.name: is not a lower-case DNS name of at most 100 characters")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise invalid("metadata.generateName: is not the beginning of a lower-case DNS name of at most 90 characters")
    return _New(content, name, "" if name else prefix, tuple(warnings[:10]))


def _part(content: Content, key: str) -> Content:
    part = content.get(key)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise Problem(400, "body-unreadable", f"{key}: is not an object")
    return part


def _access(content: Content) -> Access:
    namespace = _text(content, "spec", "namespace")
    if not namespace:
        raise invalid(f"spec.namespace: must be there; {EVERYWHERE} is everywhere, if that is meant")
    if not _NAMESPACE.fullmatch(namespace):
        raise invalid(f"spec.namespace: is neither the name of a namespace nor {EVERYWHERE}")
    justification = _text(content, "spec", "justification").strip()
    if not justification:
        raise invalid("spec.justification: must be there; say why, for whoever decides")
    if len(justification) > MAX_REASON or _UNSEEN.search(justification):
        raise invalid(f"spec.justification: has over {MAX_REASON} characters, or some that do not show")
    return Access(
        _words(content, "verbs", _VERB, "a verb such as get or delete"),
        _words(content, "resources", _RESOURCE, "a resource such as pods, deployments.apps or pods/exec"),
        "" if namespace == EVERYWHERE else namespace,
        _seconds(_text(content, "spec", "duration")),
        justification,
    )


def _words(content: Content, key: str, shape: re.Pattern[str], meant: str) -> tuple[str, ...]:
    words = _part(content, "spec").get(key)
    if not isinstance(words, list) or not 0 < len(words) <= MAX_WORDS:
        raise invalid(f"spec.{key}: is not a list of 1 to {MAX_WORDS}")
    for word in words:
        if not isinstance(word, str) or not shape.fullmatch(word):
            raise invalid(f"spec.{key}: one of them is not {meant}")
    return tuple(sorted(set(words)))


def _seconds(text: str) -> int:
    found = _DURATION.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = hours * 3600 + minutes * 60 + seconds
    if not LEAST_ACCESS <= total <= MOST_ACCESS:
        raise invalid("spec.duration: is not between 1m and 8h, written as 30m or 1h30m")
    return total
