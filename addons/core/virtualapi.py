"""
The virtual API group tollgate.dev: what a request asks for, who sees what, and which step it is.

Everybody sees what he asked for himself, approvers what they may decide, auditors all. What one may
not see is answered like what is not there. The steps themselves are core/approvals', with all their
conditions; addons/net/virtualserver.py takes them.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from addons.core import (
    approvals,
    canonical,
    holding,
    impacts,
    requestinfo,
    revocations,
    virtualchanges,
    virtualforms,
    virtualobjects,
)
from addons.core.admission import NeedsObjects
from addons.core.approvals import Access, Decider, Grant, Phase, Record
from addons.core.model import Action, Hold, Identity, Operation, RequestInfo
from addons.core.policy import PolicySet
from addons.core.revocations import Revocation
from addons.core.virtualchanges import NewRequest, NewRevocation, Wanted
from addons.core.virtualforms import Form
from addons.core.virtualobjects import RESOURCES, VERSION, Entry, Resource
from addons.core.virtualselectors import EVERYTHING, Selector
from addons.core.virtualselectors import parse as parse_selector
from addons.core.virtualstatus import GROUP, Problem

GROUP_PATH = f"/apis/{GROUP}"
VERSION_PATH = f"{GROUP_PATH}/{VERSION}"
OPENAPI_PATH = f"/openapi/v3{VERSION_PATH}"
PAGES = frozenset({GROUP_PATH, VERSION_PATH, OPENAPI_PATH})  # answered to everybody, from core/virtualdiscovery

WATCH_TIME = 1800  # seconds of a watch that asks for no time
MOST_WATCH_TIME = 3600  # seconds
_MAX_REVISION = 2**63


# ----- who looks -----


async def _reads_nothing(_record: Record) -> bool:
    return False


def _asks_nobody(_access: Access) -> tuple[tuple[Hold, ...], str]:
    return (), "access cannot be asked for ahead here; send the request itself, and a rule may ask for approval"


@dataclass(frozen=True, slots=True)
class Viewer:
    """Whose request it is, by the policies of this moment. The defaults show and give the least."""

    identity: Identity
    agent: bool = True
    auditor: bool = False  # sees all
    # The hold rules that an AccessRequest would open, or a sentence why there are none.
    ask_ahead: Callable[[Access], tuple[tuple[Hold, ...], str]] = _asks_nobody
    # Whether he may himself read the object that a record shows; else names and counts only. Asked
    # only for records with something to hide; an exception counts as no.
    may_read: Callable[[Record], Awaitable[bool]] = _reads_nothing
    revision: str = ""  # of these policies
    owners: frozenset[str] = frozenset()  # for whom he acts (revocations.owners)

    @property
    def decider(self) -> Decider:
        return Decider(self.identity, self.agent)

    @property
    def key(self) -> str:
        return approvals.requester(self.identity).key


def is_own(viewer: Viewer, entry: Entry) -> bool:
    return entry.requester.key == viewer.key


def is_approver(viewer: Viewer, record: Record | None) -> bool:
    """Whether a rule of it names him. An agent is none, whatever groups its token has."""
    if record is None or viewer.agent:
        return False
    return any(approvals.is_approver(asked, viewer.identity) for asked in record.asked)


def is_visible(viewer: Viewer, entry: Entry, source: Record | None = None) -> bool:
    """source: of a grant, the record that it comes from, while it is still kept."""
    if viewer.auditor or is_own(viewer, entry):
        return True
    if isinstance(entry, Revocation):
        return not viewer.agent  # an agent need not know who else was stopped, and until when
    if isinstance(entry, Grant):
        return is_approver(viewer, source) or (not viewer.agent and viewer.identity.username in entry.approvers)
    return is_approver(viewer, entry)


def hides(entry: Entry) -> bool:
    """
    Whether `may_read` must be asked before the whole object is shown. Of the requester too: whoever
    may ask to change what he may not read would else read it here, or have a guess confirmed.
    """
    return isinstance(entry, Record) and bool(entry.preview.diff)


def policies_let_read(policies: PolicySet, identity: Identity, record: Record, own_namespace: str = "tollgate") -> bool:
    """Whether the policies allow to get every object of the record's kind in its namespace; RBAC is asked elsewhere."""
    path, _, _ = record.resource.partition("/")
    resource, _, group = path.partition(".")
    if not resource:
        return False  # a page outside the API
    prefix = "apis" if group else "api"
    info = RequestInfo(
        "get", "", True, prefix, group, "v1", namespace=record.namespace, resource=resource, parts=(resource,)
    )
    operation = Operation(info, "GET", impacts.of_resource(info, own_namespace))
    try:
        return policies.evaluate(identity, operation).action is Action.ALLOW
    except NeedsObjects:
        return False  # it hangs on what nobody fetches for this


# ----- what is asked -----


def is_ours(path: str) -> bool:
    """Whether a decoded path belongs to the virtual server: the group, all its versions, and their OpenAPI."""
    return any(path == prefix or path.startswith(prefix + "/") for prefix in (GROUP_PATH, f"/openapi/v3{GROUP_PATH}"))


@dataclass(frozen=True, slots=True)
class Call:
    """A request to one of the resources."""

    verb: str
    resource: Resource
    name: str = ""
    form: Form = virtualforms.PLAIN
    selector: Selector = EVERYTHING
    revision: int | None = None  # the query's resourceVersion; None: not given
    exact: bool = False  # of a list: this revision and no other
    initial: bool | None = None  # of a watch: sendInitialEvents
    bookmarks: bool = False
    seconds: float = WATCH_TIME
    dry_run: str | None = None  # as it was sent
    field_validation: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A request for one of PAGES."""

    path: str


def read(method: str, target: str, accept: str) -> Call | Page:
    """What a request asks for. Raises Refused for a target that has no one reading, Problem for what is not served."""
    plain = canonical.read(method, target)
    if plain.path in PAGES:
        if method != "GET":
            raise _method(plain.path)
        return Page(plain.path)
    info = requestinfo.parse(method, plain.path, plain.query)
    resource = RESOURCES.get(info.resource)
    parts = info.parts
    if (
        not is_ours(plain.path)
        or resource is None
        or (info.api_group, info.api_version) != (GROUP, VERSION)
        # Only these two shapes: no namespace, no subresource, no `/watch/` in the path.
        or plain.path not in (f"{VERSION_PATH}/{resource.plural}", f"{VERSION_PATH}/{resource.plural}/{parts[-1]}")
    ):
        raise Problem(404, "no-such-path", f"url: {GROUP}/{VERSION} serves {', '.join(RESOURCES)}, and nothing else")
    name = parts[1] if len(parts) > 1 else ""
    # RequestInfo's `list` with one name in the field selector is a list all the same.
    verb = {"get": "get" if name else "list"}.get(info.verb, info.verb)
    if method == "HEAD" or verb not in resource.verbs or bool(name) is not (verb not in ("create", "list", "watch")):
        raise _method(resource.full)
    asked = dict(plain.query)  # each key is there once: canonical.read
    collection = verb in ("list", "watch")
    call = Call(
        verb,
        resource,
        name,
        virtualforms.negotiate(
            accept, collection=collection, watch=verb == "watch", include_object=asked.get("includeObject", "")
        ),
        dry_run=asked.get("dryRun"),
        field_validation=asked.get("fieldValidation", ""),
    )
    return _with_list_options(call, asked) if collection else call


def _with_list_options(call: Call, asked: dict[str, str]) -> Call:
    selector = parse_selector(asked.get("labelSelector", ""), asked.get("fieldSelector", ""), call.resource.fields)
    revision, match = _revision(asked.get("resourceVersion", "")), asked.get("resourceVersionMatch", "")
    initial = _boolean(asked.get("sendInitialEvents"))
    watch = call.verb == "watch"
    # As ValidateListOptions (apimachinery, meta/internalversion/validation).
    if match not in ("", "NotOlderThan", "Exact") or (watch and match == "Exact"):
        raise virtualchanges.invalid("resourceVersionMatch: is NotOlderThan or, for a list, Exact")
    if not watch and initial is not None:
        raise virtualchanges.invalid("sendInitialEvents: is for a watch only")
    if watch and (initial is not None) is not bool(match):
        raise virtualchanges.invalid("sendInitialEvents: goes with resourceVersionMatch=NotOlderThan, and only with it")
    if not watch and match and (revision is None or (match == "Exact" and not revision)):
        raise virtualchanges.invalid("resourceVersionMatch: needs a resourceVersion")
    if asked.get("continue"):
        # Lists are never cut here, so nobody has a token of ours.
        raise Problem(410, "expired", "continue: is not a token of this list; list again from the start")
    return Call(
        call.verb,
        call.resource,
        call.name,
        call.form,
        selector,
        revision,
        match == "Exact",
        initial,
        bool(_boolean(asked.get("allowWatchBookmarks"))),
        _watch_time(asked.get("timeoutSeconds", "")),
    )


def _method(what: str) -> Problem:
    return Problem(405, "method-not-allowed", f"{what}: does not serve this method; see kubectl api-resources -o wide")


def _revision(text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or not text.isascii() or len(text) > 19 or int(text) >= _MAX_REVISION:
        raise Problem(400, "resource-version", "resourceVersion: is not one of ours; list again and take that one")
    return int(text)


def _boolean(text: str | None) -> bool | None:
    """As Go's conversion of query parameters: anything but `false` and `0` is true."""
    return None if text is None else text.casefold() not in ("false", "0")


def _watch_time(text: str) -> float:
    if not text:
        return WATCH_TIME
    if not text.isdecimal() or not text.isascii() or len(text) > 10:
        raise Problem(400, "timeout-seconds", "timeoutSeconds: is not a number of seconds")
    return min(int(text), MOST_WATCH_TIME) or WATCH_TIME


# ----- what is done -----


def not_there(resource: Resource, name: str) -> Problem:
    """The same for what does not exist and for what is not his to see."""
    return Problem(404, "no-such-object", f"{resource.full} {name[:253]}: there is none, or it is not yours to see")


def step(viewer: Viewer, wanted: Wanted, now: float) -> Callable[[Entry], Entry]:
    """The step that a patch asks for. It raises NotAllowed, or Problem, when it is not his to take."""

    def take(entry: Entry) -> Entry:
        if isinstance(entry, Revocation):
            raise approvals.NotAllowed(f"{entry.name}: a revocation is not changed; delete it and make another")
        if isinstance(entry, Grant):
            return approvals.revoke(entry, viewer.identity.username, now)
        approved = wanted.decision == virtualobjects.APPROVED
        return approvals.decide(entry, viewer.decider, approved, wanted.reason, now)

    return take


def may_end(viewer: Viewer, entry: Entry, source: Record | None = None, *, now: float = 0.0) -> None:
    """
    Raise NotAllowed unless he may cancel this record, revoke this grant, or lift this revocation.

    The first two only take power away, so the requester may, agent or not, and any approver without
    the fresh login that a yes needs. Lifting gives it back.
    """
    if isinstance(entry, Revocation):
        revocations.may_lift(entry, viewer.decider, viewer.owners, now)
        return
    record = entry if isinstance(entry, Record) else source
    if is_own(viewer, entry) or is_approver(viewer, record):
        return
    if isinstance(entry, Grant) and not viewer.agent and viewer.identity.username in entry.approvers:
        return
    raise approvals.NotAllowed(f"{entry.name}: only its requester or an approver can end it; ask one of them")


def ending(viewer: Viewer, now: float) -> Callable[[Entry], Entry]:
    """
    The step of a delete. The object stays, in its last phase, until it is pruned: a requester who
    could remove a no could ask the same again at once.
    """

    def take(entry: Entry) -> Entry:
        if isinstance(entry, Revocation):
            return revocations.lift(entry, viewer.identity.username, now)
        if isinstance(entry, Grant):
            return approvals.revoke(entry, viewer.identity.username, now)
        return approvals.cancel(approvals.expire(entry, now), viewer.identity.username, now)

    return take


def ask(viewer: Viewer, new: NewRequest, uid: str, now: float) -> Record:
    """The record of an AccessRequest. uid: a fresh one. Raises Problem 403 when there is nothing to open."""
    access = new.access
    holds, sentence = viewer.ask_ahead(access)
    if not holds:
        raise Problem(403, "nothing-to-open", sentence or "no rule would have to be opened for this; just do it")
    requester = approvals.requester(viewer.identity)
    asked = holding.asked(holds, viewer.identity)
    prefix = new.name_prefix
    name = new.name or (prefix + uid.replace("-", "")[:8] if prefix else approvals.name("acr", uid))
    where = f"in {access.namespace}" if access.namespace else "everywhere"
    return Record(
        name=name,
        uid=uid,
        requester=requester,
        digest=access_digest(access),
        asked=asked,
        created=now,
        expires=now + min(a.hold.approval.valid for a in asked),
        revision=viewer.revision,
        summary=f"access for {virtualobjects.duration(access.seconds)}: {','.join(access.verbs)} "
        f"{','.join(access.resources)} {where}",
        namespace=access.namespace,
        access=access,
    )


def revoke(viewer: Viewer, new: NewRevocation, uid: str, now: float) -> Revocation:
    """The Revocation that he makes. uid: a fresh one. Raises NotAllowed."""
    revocations.may_revoke(viewer.decider)
    prefix = new.name_prefix
    return Revocation(
        name=new.name or (prefix + uid.replace("-", "")[:8] if prefix else revocations.name(uid)),
        uid=uid,
        target=new.target,
        requester=approvals.requester(viewer.identity),
        created=now,
        until=new.until,
        reason=new.reason,
    )


def access_digest(access: Access) -> str:
    """
    Of what would be opened. Not of the words and the time: whoever is refused would only change those.

    The prefix keeps it apart from every digest of a request.
    """
    text = json.dumps(["access", sorted(access.verbs), sorted(access.resources), access.namespace])
    return hashlib.sha256(text.encode()).hexdigest()


def check_new(record: Record, others: Iterable[Record], pending: int, now: float) -> None:
    """
    Raise Problem 403 when this need not, or must not, be asked now. others: this requester's AccessRequests.
    """
    cooldown = approvals.limits(record.asked)[2]
    for kept in others:
        other = approvals.expire(kept, now)
        if other.digest != record.digest:
            continue
        if other.phase is Phase.PENDING:
            raise Problem(403, "access-pending", f"the same was asked already, as {other.name}; wait for that one")
        if other.phase is Phase.DENIED and now < other.decided + cooldown:
            raise Problem(
                403,
                "access-denied",
                f"the same was {other.message} a short while ago ({other.name}); it can be asked again in "
                f"{virtualforms.human_duration(other.decided + cooldown - now)}",
            )
    too_many = holding.too_many(pending, record.asked)
    if too_many is not None:
        raise Problem(too_many.code, too_many.cause, too_many.message)
