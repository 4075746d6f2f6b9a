"""
Holding: what becomes of a request that a rule holds, and the sentence its caller gets.

Pure: which records of the book fit the request, which grants satisfy which rule, when the same
question is not asked again. addons/approve.py waits, previews and spends.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from addons.core import budgets, matching, status
from addons.core.approvals import Asked, Grant, Phase, Record, Requester, approvers, expire, limits, missing, owner_of
from addons.core.matching import Glob, Kind, Match, ResourcePattern
from addons.core.model import Hold, Identity, Impact, Operation

RETRY_AFTER = 5  # seconds; client-go tries ten times, which with the wait before is longer than a tool may last
_QUIET = frozenset({Impact.META, Impact.READ})
_STREAMS = frozenset({"exec", "attach", "portforward"})


class What(enum.Enum):
    """What to do with a held request."""

    ASK = "ask"
    WAIT = "wait"
    RELEASE = "release"
    REFUSE = "refuse"  # denied a short while ago


@dataclass(frozen=True, slots=True)
class Choice:
    """`record`: the one to wait for, to spend, or whose no still counts."""

    what: What
    record: Record | None = None
    outdated: tuple[Record, ...] = ()  # approved or pending, but for rules that no longer ask so


def wait_of(operation: Operation, holds: Sequence[Hold]) -> int:
    """Seconds that the request may be held open. Reads break tools in odd ways when they hang."""
    if operation.impacts <= _QUIET:
        return 0
    return limits(Asked(hold) for hold in holds)[0]


def asked(holds: Iterable[Hold], identity: Identity) -> tuple[Asked, ...]:
    """The rules that ask, with the owner for whom the requester acts, each by the rule's own expression."""
    return tuple(Asked(hold, owner_of(hold.approval.owner, identity) if hold.approval.owner else "") for hold in holds)


# ----- grants -----


def covers(grant: Grant, hold: Hold, operation: Operation, now: float) -> bool:
    """Whether a standing yes satisfies this rule for this operation. It satisfies no other rule."""
    full_name = f"{hold.policy}/{hold.rule}"
    if not grant.active(now) or full_name not in grant.rules:
        return False
    # A rule that was edited since may hold more, or ask others: nobody said yes to that.
    if dict(zip(grant.rules, grant.digests, strict=False)).get(full_name, "") != hold.digest:
        return False
    # As an allow rule matches: what the request leaves open (all namespaces, no name) is not covered.
    match = Match(
        verbs=frozenset(grant.verbs) or None,
        resources=tuple(ResourcePattern(text) for text in grant.resources) or None,
        namespaces=Glob([grant.namespace]) if grant.namespace else None,
    )
    return match.covers_kind(Kind(operation)) and match.covers(operation)


def unsatisfied(
    holds: Iterable[Hold], grants: Sequence[Grant], operation: Operation, now: float
) -> tuple[tuple[Hold, ...], tuple[Grant, ...]]:
    """(the rules that still need a yes, the grants that satisfied the others)"""
    needed, used = [], []
    for hold in holds:
        grant = next((g for g in grants if covers(g, hold, operation, now)), None)
        if grant is None:
            needed.append(hold)
        elif grant not in used:
            used.append(grant)
    return tuple(needed), tuple(used)


# ----- which record -----


def same_rules(record: Record, wanted: Sequence[Asked]) -> bool:
    """
    Whether the record was asked by exactly these rules, each as it is written now.

    Fewer or more, or other approvers: the yes was to another question.
    """
    return {(a.rule, a.hold.approval, a.owner) for a in record.asked} == {
        (a.rule, a.hold.approval, a.owner) for a in wanted
    }


def choose(records: Iterable[Record], digest: str, wanted: Sequence[Asked], now: float) -> Choice:
    """What to do, by the records of this requester that have an item of this digest, newest first."""
    outdated: list[Record] = []
    waiting: Record | None = None
    refused: Record | None = None
    cooldown = limits(wanted)[2]
    for kept in records:
        record = expire(kept, now)
        if record.access is not None:
            continue
        if record.phase is Phase.DENIED:
            if refused is None and now < record.decided + cooldown:
                refused = record
            continue
        item = record.item(digest)
        if not record.open or item is None or item.used_at:
            continue
        if not same_rules(record, wanted):
            # Another object of a command may be for other rules: no reason to end what its first one asked.
            if record.items[0].digest == digest:
                outdated.append(record)
        elif record.phase is Phase.APPROVED:
            return Choice(What.RELEASE, record, tuple(outdated))
        elif waiting is None:
            waiting = record
    if waiting is not None:
        return Choice(What.WAIT, waiting, tuple(outdated))
    if refused is not None:
        # Whoever is asked the same again and again says yes at last.
        return Choice(What.REFUSE, refused, tuple(outdated))
    return Choice(What.ASK, None, tuple(outdated))


def too_many(pending: int, wanted: Sequence[Asked]) -> status.Refusal | None:
    """Against fatigue: a requester has only so many questions open."""
    most = limits(wanted)[1]
    if pending < most:
        return None
    return status.Refusal(
        403,
        "approval-too-many",
        f"{_rules(wanted)}: you have {pending} approvals pending or taken back within the last minute, and {most} is "
        "the limit, so nobody was asked; wait until one is decided, or cancel one with kubectl delete approval NAME",
    )


# ----- sentences -----


def _rules(wanted: Sequence[Asked]) -> str:
    word = "rules" if len(wanted) > 1 else "rule"
    return f"{word} {' and '.join(a.rule for a in wanted)}"


def who_can(record: Record) -> str:
    """`platform-oncall`, `2 of platform-oncall, alice`."""
    open_rules = missing(record)
    parts = []
    for a in record.asked:
        approval = a.hold.approval
        names = _clip(", ".join((*approval.groups, *approval.users)))
        needed = open_rules.get(a.rule, 0)
        if needed:
            parts.append(f"{needed} of {names}" if approval.needed > 1 else names)
    return " and ".join(dict.fromkeys(parts))


def pending(record: Record, now: float, *, retry: bool = False) -> status.Refusal:
    """Nobody has decided yet. One line: the rule, the approval, who and how, and what then."""
    why = record.asked[0].hold.message.rstrip(".; ")
    minutes = max(1, round((record.expires - now) / 60))
    then = "then send the same request again, unchanged; it passes once"
    if record.repeatable:
        then = f"but {record.repeatable}, so ask ahead with an AccessRequest (kubectl explain accessrequests.spec)"
    asked_of = _clip(who_can(record), 100)
    message = (
        f"{_rules(record.asked)} holds this: {_clip(why, 120)}{'; ' if why else ''}approval {record.name} is pending"
        f" for {minutes} min; {asked_of} can approve it (./run.sh approvals approve {record.name}); {then}"
    )
    if retry:
        return status.Refusal(429, "approval-pending", message, RETRY_AFTER)
    return status.Refusal(403, "approval-pending", message)


def ended(record: Record, now: float, cooldown: int = 0) -> status.Refusal:
    """The question was answered with a no, or not at all."""
    phase = record.phase
    if phase is Phase.DENIED:
        no = next((d for d in reversed(record.decisions) if not d.approved), None)
        who = no.username if no else "an approver"
        reason = f": {_clip(no.reason, 160)}" if no and no.reason else ""
        again = (
            f"the same is not asked again before {budgets.clock(record.decided + cooldown, now)}"
            if cooldown
            else "do something else"
        )
        return status.Refusal(
            403,
            "approval-denied",
            f"{_rules(record.asked)} holds this, and {_clip(who)} denied approval {record.name}{reason}; {again}",
        )
    if phase is Phase.USED:
        return status.Refusal(
            403,
            "approval-used",
            f"{_rules(record.asked)} holds this, and approval {record.name} has been used already; "
            "send the request again to ask anew",
        )
    how = {
        Phase.CANCELLED: "was cancelled",
        Phase.EXPIRED: "expired",
        Phase.VOID: f"is void: {_clip(record.message, 160)}",
    }.get(phase, f"is {phase}")
    return status.Refusal(
        403,
        f"approval-{phase.lower()}",
        f"{_rules(record.asked)} holds this, and approval {record.name} {how}; send the request again to ask anew",
    )


def voided(old: Record, why: str, new: Record | None, now: float) -> status.Refusal:
    """What was approved is no longer what would happen."""
    next_step = "send the request again to ask anew"
    if new is not None:
        next_step = f"approval {new.name} is pending instead; {_clip(who_can(new), 100)} can approve it"
    return status.Refusal(
        403,
        "approval-void",
        f"{_rules(old.asked)} holds this, and approval {old.name} by {_clip(approvers(old))} is void: "
        f"{_clip(why, 160)}; {next_step}",
    )


GONE = status.Refusal(
    403, "client-left", "tollgate: the client left while the request was held, so nothing was sent; send it again"
)
STOPPING = status.Refusal(
    503,
    "stopping",
    "tollgate: the gateway is going down, so the held request was not sent; its approval stays pending; "
    "send it again when the gateway is back",
)
CHANGED_IDENTITY = status.Refusal(
    403,
    "approval-identity",
    "tollgate: your identity or groups changed while the request was held, so the approval is not for you as you are "
    "now; send the request again to ask anew",
)
REVOKED = status.Refusal(
    401, "token-revoked", "tollgate: your token is no longer accepted, so the held request was not sent; get a new one"
)
CHANGED_POLICY = status.Refusal(
    403, "approval-policy", "tollgate: the policies changed while the request was held; send it again"
)
NOT_ASKED = "no rule holds it any more"


def ending(before: object, after: object) -> tuple[str, float] | None:
    """How a question came to its end (approved, denied, …) and after how many seconds; None when it did not."""
    if not isinstance(before, Record) or not isinstance(after, Record):
        return None
    if before.phase is not Phase.PENDING or after.phase is Phase.PENDING:
        return None
    at = after.decided or after.ended or after.expires
    return after.phase.value.lower(), max(at - after.created, 0.0)


def unavailable(why: str) -> status.Refusal:
    return status.Refusal(
        503,
        "approval-unavailable",
        f"tollgate: approvals cannot be asked for or looked up right now ({_clip(why, 160)}), so nothing was sent; "
        "try again in a moment, and if it stays so tell the operator",
    )


def is_connect(operation: Operation) -> bool:
    """exec and its kin: kubectl tries WebSocket, then SPDY, and both are one act."""
    return operation.info.is_resource_request and operation.info.subresource in _STREAMS


def held(requester: Requester, operation: Operation, name: str) -> str:
    """For the log."""
    return f"held {matching.name_of(operation)!r} {operation.info.verb} for {requester.username!r}: approval {name}"


def _clip(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
