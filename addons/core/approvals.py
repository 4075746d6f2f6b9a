"""
Approvals: one held command, what its approver saw, who said what, and how often it was used.

Values and the steps from one to the next; nothing here knows a clock, a store or a proxy. A
step that is not allowed raises `NotAllowed` with a sentence. Every record is bound to who asked
(`Requester`), to what exactly (`Item.digest`), and to the state the approver saw (`Item.uid`,
`Item.result`, `Record.content`).

An `AccessRequest` is the same thing asked ahead: no request is held, and a yes becomes a `Grant`.
"""

import base64
import enum
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from addons.core import cel
from addons.core.model import NOTHING, Hold, Identity

AUDIENCE = "tollgate-approver"  # of the token that a decision needs; an ordinary kubeconfig's has another
NAME = 10  # characters of a name after its prefix, of 32 letters each: 50 bits
KEPT = 86_400  # seconds that an ended record is still shown; the recording has it for good
ASKED = 60.0  # seconds that a question counts at least, also one that was taken back
CLOCK_SKEW = 30.0  # seconds that an issuer's clock may be ahead of ours
MAX_REASON = 1000  # characters of an approver's reason; it is shown to the requester, who reads 500 at most


class NotAllowed(Exception):
    """This step is not open; one sentence for whoever tried it."""


class Phase(enum.StrEnum):
    """`status.phase`. Only the first two can still change."""

    PENDING = "Pending"
    APPROVED = "Approved"
    DENIED = "Denied"
    EXPIRED = "Expired"  # nobody decided, or nobody used it in time
    CANCELLED = "Cancelled"
    USED = "Used"
    VOID = "Void"  # what the approver saw is no longer so


OPEN = frozenset({Phase.PENDING, Phase.APPROVED})


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asked. The token may change, the rest may not."""

    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()  # sorted
    issuer: str = ""
    credential_id: str = ""  # for the record; not part of the key

    @property
    def key(self) -> str:
        """The same for every token of this identity with these groups; a change of groups is another requester."""
        return _requester_key(self.issuer, self.username, self.uid, self.groups)


def requester(identity: Identity) -> Requester:
    return Requester(
        identity.username, identity.uid, tuple(sorted(set(identity.groups))), identity.issuer, identity.credential_id
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """One hold rule that must be satisfied, as it was when it asked."""

    hold: Hold
    owner: str = ""  # for whom the requester acts, by the rule's own expression

    @property
    def rule(self) -> str:
        return f"{self.hold.policy}/{self.hold.rule}"


@dataclass(frozen=True, slots=True)
class Item:
    """One request that the approval lets through, once."""

    digest: str  # of all that must be the same, see core/digests.py
    what: str  # "delete pod shop/web-1", for people
    uid: str = ""  # of the live object that was shown; "" when there was none
    resource_version: str = ""  # likewise, for the record
    result: str = ""  # digest of the dry run's result; "" when there was none
    used_at: float = 0.0  # seconds since the epoch; 0: not used
    used_by: str = ""  # Audit-ID of the request that used it

    @property
    def used(self) -> bool:
        return bool(self.used_at or self.used_by)


@dataclass(frozen=True, slots=True)
class Preview:
    """What the approver is shown. Masked; never silently empty: what could not be had is in `notes`."""

    diff: str = ""  # unified, of the live object and the dry run's result, as YAML
    counts: Mapping[str, int] = field(default_factory=lambda: NOTHING)  # objects in reach by full resource
    names: tuple[str, ...] = ()  # the first of them
    exact: bool = True  # False: at least so many
    notes: tuple[str, ...] = ()  # sentences
    argv: tuple[str, ...] = ()  # of an exec


@dataclass(frozen=True, slots=True)
class Decision:
    """One person's yes or no."""

    username: str
    approved: bool
    at: float  # seconds since the epoch
    reason: str = ""
    groups: tuple[str, ...] = ()
    credential_id: str = ""
    via: str = "api"  # or "operator": at the proxy's own console
    rules: tuple[str, ...] = ()  # the holds it counts for
    uid: str = ""
    issuer: str = ""
    owners: tuple[str, ...] = ()  # for each of the rules, for whom he acts by its own expression; "" where it has none


@dataclass(frozen=True, slots=True)
class Access:
    """What an AccessRequest asks for; the words are those of a policy's `match`."""

    verbs: tuple[str, ...]
    resources: tuple[str, ...]
    namespace: str  # "" is everywhere
    seconds: int
    justification: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """An Approval, or with `access` an AccessRequest."""

    name: str
    uid: str
    requester: Requester
    digest: str  # of the request or command that asked: its retry finds this record
    asked: tuple[Asked, ...]
    created: float  # seconds since the epoch, as all times here
    expires: float  # undecided until then, it ends
    revision: str = ""  # of the policies that asked
    command: str = ""  # as it may have been typed; the client's word
    summary: str = ""
    impacts: tuple[str, ...] = ()
    resource: str = ""  # full, with its subresource
    verb: str = ""
    namespace: str = ""
    items: tuple[Item, ...] = ()
    content: Mapping[str, int] | None = None  # of a namespace or CRD that goes: what was in it
    preview: Preview = Preview()
    repeatable: str = ""  # why the same request cannot be sent again; "" when it can
    access: Access | None = None
    phase: Phase = Phase.PENDING
    decisions: tuple[Decision, ...] = ()
    decided: float = 0.0
    valid_until: float = 0.0  # of a yes
    waiting: bool = False  # a client is held for it
    ended: float = 0.0  # when it came to its last phase
    message: str = ""  # why it is in this phase, for people

    @property
    def open(self) -> bool:
        return self.phase in OPEN

    def item(self, digest: str) -> Item | None:
        return next((item for item in self.items if item.digest == digest), None)


@dataclass(frozen=True, slots=True)
class Grant:
    """A yes that stands: for these rules, this requester, this scope, until its end."""

    name: str
    uid: str
    requester: Requester
    rules: tuple[str, ...]  # full names of the hold rules it satisfies
    since: float
    until: float
    namespace: str = ""  # "" is everywhere
    verbs: tuple[str, ...] = ()  # () is every verb that the rules hold
    resources: tuple[str, ...] = ()
    source: str = ""  # name of the Approval or AccessRequest
    approvers: tuple[str, ...] = ()
    revoked: float = 0.0
    revoked_by: str = ""
    digests: tuple[str, ...] = ()  # of the text of each of these rules, when the yes was given

    def active(self, now: float) -> bool:
        return not self.revoked and not self.revoked_by and self.since <= now < self.until


@dataclass(frozen=True, slots=True)
class Decider:
    """Who wants to decide, and how he came here."""

    identity: Identity
    agent: bool  # by the policies of this moment
    via: str = "api"


def _digest(value: object) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=4096)
def _requester_key(issuer: str, username: str, uid: str, groups: tuple[str, ...]) -> str:
    return _digest([issuer, username, uid, list(groups)])


_LETTERS = bytes.maketrans(b"abcdefghijklmnopqrstuvwxyz234567", b"abcdefghjkmnpqrstvwxyz0123456789")


def name(prefix: str, *parts: str) -> str:
    """`apr-7f3k…`: the same for the same parts, so that two processes that ask the same ask once."""
    raw = base64.b32encode(hashlib.sha256("\0".join(parts).encode()).digest()).lower()
    return f"{prefix}-{raw.translate(_LETTERS)[:NAME].decode()}"


# ----- deciding -----


def may_decide(record: Record, decider: Decider, now: float) -> tuple[Asked, ...]:
    """The holds that this person can satisfy. Raises NotAllowed, with the reason, when there is none."""
    who = decider.identity
    if decider.agent:
        # Not even with an approver's token: an assistant often sits on the approver's own machine.
        raise NotAllowed("an agent cannot decide approvals; a person must, whom the policy's people clause names")
    if _same_person(who, record.requester):
        raise NotAllowed("nobody decides what he asked for himself; ask another approver")
    eligible, reasons = [], []
    for asked in record.asked:
        why = _why_not(asked, decider, now)
        if why:
            reasons.append(f"rule {asked.rule}: {why}")
        else:
            eligible.append(asked)
    if not eligible:
        raise NotAllowed(reasons[0] if reasons else "no rule asks for a decision")
    return tuple(eligible)


def _same_person(one: Identity, other: Requester | Decision) -> bool:
    """One name is one person, whoever says so; and so is one uid of one issuer, under whatever name."""
    if one.username.casefold() == other.username.casefold():
        return True
    return bool(one.uid) and (one.uid, one.issuer) == (other.uid, other.issuer)


def is_approver(asked: Asked, identity: Identity) -> bool:
    """Whether the rule names him; what else a decision needs is `may_decide`'s."""
    approval = asked.hold.approval
    return identity.username in approval.users or not set(approval.groups).isdisjoint(identity.groups)


def _why_not(asked: Asked, decider: Decider, now: float) -> str:
    who, approval = decider.identity, asked.hold.approval
    if decider.via == "operator":
        return ""  # at the console of the proxy itself: whoever is there can stop it too
    if not is_approver(asked, who):
        names = ", ".join((*approval.groups, *approval.users))
        return f"you are none of its approvers ({names if len(names) <= 160 else names[:159] + '…'})"
    if AUDIENCE not in who.audiences:
        return f"a decision needs a token with the audience {AUDIENCE}; get one and use it for this command only"
    # Written so that a time that is no number is refused as well; without one (0) it is very old.
    if not -CLOCK_SKEW <= now - who.auth_time <= approval.max_token_age:
        return f"your login is older than {approval.max_token_age} s; log in again and decide then"
    values = identity_values(who)
    if approval.claims and not _holds(approval.claims, {"identity": values, "claims": dict(who.claims)}):
        return "your token does not fulfil the rule's condition on claims; log in as the rule demands"
    if approval.owner:
        owner = owner_of(approval.owner, who)
        # Direction: whose owner cannot be told may be anybody's.
        if not owner or not asked.owner or owner == asked.owner:
            return "you act for the same owner as the requester, or for whom cannot be told; ask another approver"
    return ""


OWNER_VARIABLES = {"identity": "map(string,dyn)"}
CONDITION_VARIABLES = {**OWNER_VARIABLES, "claims": "map(string,dyn)"}


@lru_cache(maxsize=256)
def condition(expression: str) -> cel.Program:
    """`approval.claims`, compiled. Raises CelError."""
    return cel.compile_expression(expression, CONDITION_VARIABLES, returns="bool")


@lru_cache(maxsize=256)
def owner_expression(expression: str) -> cel.Program:
    """`approval.owner`, compiled. Raises CelError."""
    return cel.compile_expression(expression, OWNER_VARIABLES, returns="string")


def _holds(expression: str, values: Mapping[str, object]) -> bool:
    try:
        return condition(expression).evaluate(values) is True
    except cel.CelError:
        return False  # a claim that is not there: direction, no decision


def owner_of(expression: str, identity: Identity) -> str:
    """For whom an identity acts, or "" when that cannot be told."""
    try:
        owner = owner_expression(expression).evaluate({"identity": identity_values(identity)})
    except cel.CelError:
        return ""
    return owner if isinstance(owner, str) else ""


def identity_values(identity: Identity) -> dict[str, object]:
    """`identity` in an expression about an approver or an owner."""
    return {
        "username": identity.username,
        "uid": identity.uid,
        "groups": list(identity.groups),
        "extra": {key: list(values) for key, values in identity.extra.items()},
        "issuer": identity.issuer,
    }


def decide(record: Record, decider: Decider, approved: bool, reason: str, now: float) -> Record:
    """
    The record with this decision. One no ends it; a yes ends it when every rule has enough
    people, each counted once whatever groups he is in. Raises NotAllowed.
    """
    record = expire(record, now)
    if record.phase is not Phase.PENDING:
        raise NotAllowed(f"{record.name} is {record.phase} and cannot be decided any more")
    eligible = may_decide(record, decider, now)
    who = decider.identity
    # A no after one's own yes is heard: it only takes away.
    if approved and any(_same_person(who, d) for d in record.decisions):
        raise NotAllowed("you have already decided this; another person must")
    if approved:
        # One person with two accounts is one person.
        eligible = tuple(a for a in eligible if not _owner_for(a, who) or _owner_for(a, who) not in _owners(record, a))
        if not eligible:
            raise NotAllowed("somebody who acts for the same owner has already decided this; another person must")
    reason = reason.strip()
    if len(reason) > MAX_REASON:
        raise NotAllowed(f"the reason is longer than {MAX_REASON} characters; write less")
    if not reason and any(asked.hold.approval.require_reason for asked in eligible):
        raise NotAllowed("the rule wants a reason; set spec.reason")
    decision = Decision(
        who.username,
        approved,
        now,
        reason,
        tuple(sorted(who.groups)),
        who.credential_id,
        decider.via,
        tuple(asked.rule for asked in eligible),
        who.uid,
        who.issuer,
        tuple(_owner_for(asked, who) for asked in eligible),
    )
    record = replace(record, decisions=(*record.decisions, decision))
    if not approved:
        return _end(
            record, Phase.DENIED, f"denied by {who.username}" + (f": {reason}" if reason else ""), now, decided=now
        )
    if missing(record):
        return record
    valid = min((asked.hold.approval.valid for asked in record.asked), default=0)
    if record.access is not None:
        valid = record.access.seconds  # there is nothing to use: the grant begins now, and the yes ends with it
    return replace(
        record, phase=Phase.APPROVED, decided=now, valid_until=now + valid, message=f"approved by {approvers(record)}"
    )


def missing(record: Record) -> dict[str, int]:
    """How many more people each rule needs; empty when it is enough."""
    found = {}
    for asked in record.asked:
        people = {d.username for d in record.decisions if d.approved and asked.rule in d.rules}
        if len(people) < asked.hold.approval.needed:
            found[asked.rule] = asked.hold.approval.needed - len(people)
    return found


def _owner_for(asked: Asked, identity: Identity) -> str:
    expression = asked.hold.approval.owner
    return owner_of(expression, identity) if expression else ""


def _owners(record: Record, asked: Asked) -> frozenset[str]:
    """For whom those act who have said yes to this rule."""
    return frozenset(
        owner
        for d in record.decisions
        if d.approved
        for rule, owner in zip(d.rules, d.owners, strict=False)
        if rule == asked.rule
    )


def approvers(record: Record) -> str:
    return ", ".join(d.username for d in record.decisions if d.approved)


# ----- the other steps -----


def _end(record: Record, phase: Phase, message: str, now: float, *, decided: float = 0.0) -> Record:
    return replace(record, phase=phase, message=message, ended=now, decided=decided or record.decided, waiting=False)


def expire(record: Record, now: float) -> Record:
    """
    The record as it is at this moment. One that has not begun yet is over: the clock was put back, and nobody
    knows how much of its time is left.
    """
    if record.open and now < max(record.created, record.decided) - CLOCK_SKEW:
        return _end(record, Phase.EXPIRED, "the gateway's clock was put back to before it", now)
    if record.phase is Phase.PENDING and now >= record.expires:
        return _end(record, Phase.EXPIRED, "it was not decided in time", now)
    if record.phase is Phase.APPROVED and now >= record.valid_until:
        why = "its time is over" if record.access is not None else "it was approved and not used in time"
        return _end(record, Phase.EXPIRED, why, now)
    return record


_CANCELLED = "cancelled by "


def is_asking(record: Record, now: float) -> bool:
    """
    Whether it counts among the questions that a requester may have open. One that he took back does
    for a moment more: each was told to the approvers, and who asks and takes back rings all day.
    """
    phase = expire(record, now).phase
    return phase is Phase.PENDING or (phase is Phase.CANCELLED and now < record.created + ASKED)


def cancel(record: Record, by: str, now: float) -> Record:
    record = expire(record, now)
    if not record.open:
        raise NotAllowed(f"{record.name} is {record.phase} already")
    return _end(record, Phase.CANCELLED, f"{_CANCELLED}{by}", now)


def void(record: Record, why: str, now: float) -> Record:
    """What was approved is no longer what would happen."""
    if not record.open:
        return record
    return _end(record, Phase.VOID, why, now)


def use(record: Record, digest: str, audit_id: str, now: float) -> Record:
    """Spend one item. Raises NotAllowed when it is spent, or the record is not approved."""
    if not audit_id:
        raise NotAllowed("a request without an audit id uses no approval")  # nobody could tell it from others
    record = expire(record, now)
    if record.phase is not Phase.APPROVED:
        raise NotAllowed(f"approval {record.name} is {record.phase}")
    item = record.item(digest)
    if item is None or item.used:
        raise NotAllowed(f"approval {record.name} has been used for this already")
    items = tuple(replace(i, used_at=now, used_by=audit_id) if i is item else i for i in record.items)
    record = replace(record, items=items)
    if all(i.used for i in items):
        record = _end(record, Phase.USED, "it was used", now)
    return record


def give_back(record: Record, digest: str, audit_id: str, now: float) -> Record:
    """The request that spent the item never reached the API server: it may be sent once more, in the same time."""
    items = tuple(
        replace(i, used_at=0.0, used_by="") if i.used and (i.digest, i.used_by) == (digest, audit_id) else i
        for i in record.items
    )
    if items == record.items or record.phase not in (Phase.USED, Phase.APPROVED):
        return record
    return expire(
        replace(record, items=items, phase=Phase.APPROVED, ended=0.0, message=f"approved by {approvers(record)}"), now
    )


# ----- grants -----


def grant_name(record: Record) -> str:
    return name("grt", record.uid)


def grant_of(record: Record, now: float, uid: str) -> Grant | None:
    """The grant that a yes to this record makes, or None."""
    if record.phase is not Phase.APPROVED:
        return None
    people = tuple(d.username for d in record.decisions if d.approved)
    common = (uid, record.requester)
    if record.access is not None:
        access = record.access
        if not access.verbs or not access.resources:
            return None  # direction: in a grant an empty list would be all of them
        return Grant(
            grant_name(record),
            *common,
            tuple(asked.rule for asked in record.asked),
            now,
            now + access.seconds,
            access.namespace,
            access.verbs,
            access.resources,
            record.name,
            people,
            digests=tuple(asked.hold.digest for asked in record.asked),
        )
    lasting = [asked for asked in record.asked if asked.hold.approval.grant_for]
    if not lasting:
        return None
    everywhere = all(asked.hold.approval.grant_scope == "rule" for asked in lasting)
    if not everywhere and not record.namespace:
        return None  # the scope is a namespace and the request had none: this request only
    return Grant(
        grant_name(record),
        *common,
        tuple(asked.rule for asked in lasting),
        now,
        now + min(asked.hold.approval.grant_for for asked in lasting),
        "" if everywhere else record.namespace,
        source=record.name,
        approvers=people,
        digests=tuple(asked.hold.digest for asked in lasting),
    )


def taken_back(before: Record, after: Record, grant: Grant | None, now: float) -> Grant | None:
    """The grant that goes with its record when that is cancelled: whoever takes back a yes means all of it."""
    if grant is None or grant.revoked or grant.revoked_by or now >= grant.until:
        return None
    if before.phase is not Phase.APPROVED or after.phase is not Phase.CANCELLED:
        return None
    return revoke(grant, after.message.removeprefix(_CANCELLED), now)


def revoke(grant: Grant, by: str, now: float) -> Grant:
    # Also one that has not begun, by a clock that went back.
    if grant.revoked or grant.revoked_by or now >= grant.until:
        raise NotAllowed(f"{grant.name} is over already")
    return replace(grant, revoked=now, revoked_by=by)


def limits(asked: Iterable[Asked]) -> tuple[int, int, int]:
    """(wait, max_pending, cooldown) of several rules together: the strictest of each."""
    approvals = [a.hold.approval for a in asked]
    return (
        min((a.wait for a in approvals), default=0),
        min((a.max_pending for a in approvals), default=0),
        max((a.cooldown for a in approvals), default=0),
    )
