"""
Budgets: how many operations, or objects in reach, are allowed in a window of time.

A budget restricts, so it matches as a deny rule does (matching.py): what a request leaves open
counts against it. Only what is going upstream is charged, so a dry run never is, and reading
only when the budget names it. The counts are kept in addons/net/store.py; this module says
what is charged to whom, what comes back, and what the refusal says.

The window slides and is exact: every charge is kept with its time until it is `window` old, and
a new one is taken only if what is younger and the new one together are within the limit. The
last charge of any stretch of that length saw all the others of it, in whatever order processes
came to the store, so no such stretch ever holds more than the limit.
"""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from addons.core import cel, matching
from addons.core.matching import Match
from addons.core.model import Action, Approval, Hold, Identity, Impact, Operation, Verdict
from addons.core.status import MAX_MESSAGE, Refusal

PER = ("identity", "owner", "issuer", "namespace", "session", "all")
MAX_LIMIT = 10_000  # of a budget; the store sums as many rows for each charge, in about 1 ms
MAX_WINDOW = 7 * 86_400  # seconds

READING = frozenset({Impact.META, Impact.READ})
NO_APPROVAL = Approval()
_DAY = 86_400  # seconds


@dataclass(frozen=True, slots=True, eq=False)
class Budget:
    """One budget of one policy, ready to be asked."""

    policy: str
    name: str
    match: Match
    limit: int
    window: int  # seconds
    objects: bool = False  # the limit counts objects in reach, not operations
    per: str = "identity"  # one of PER
    over: Action = Action.DENY  # or HOLD
    owner: cel.Program | None = None  # over `identity`; only with per: owner
    when: cel.Program | None = None
    unless: cel.Program | None = None
    claims: bool = False  # `when` was compiled with `session`
    message: str = ""
    approval: Approval = NO_APPROVAL
    digest: str = ""  # of the budget's text: a reload logs which ones changed

    @property
    def full_name(self) -> str:
        return f"{self.policy}/{self.name}"

    @property
    def action(self) -> Action:
        """As a rule has it: never allow, so conditions that cannot be evaluated count against the requester."""
        return self.over


@dataclass(frozen=True, slots=True)
class Charge:
    """What one operation takes from one budget."""

    budget: Budget
    key: str  # whose share of the budget it is
    weight: int
    counted: bool = True  # False: nobody knows how many objects it reaches; the weight is over the limit


@dataclass(frozen=True, slots=True)
class Charges:
    """What an operation takes of all budgets that match it."""

    enforced: tuple[Charge, ...] = ()
    observed: tuple[Charge, ...] = ()  # of policies that only observe

    def __bool__(self) -> bool:
        return bool(self.enforced or self.observed)


NO_CHARGES = Charges()


@dataclass(frozen=True, slots=True)
class Over:
    """A budget on which a charge did not fit."""

    charge: Charge
    spent: int  # in the window that ends now
    free_at: float  # seconds since the epoch; when the charge would fit. 0: waiting does not help

    @property
    def left(self) -> int:
        return max(0, self.charge.budget.limit - self.spent)


@dataclass(frozen=True, slots=True)
class Reservation:
    """The answer of the store: taken from all budgets (`id`), or from none (`over` says why)."""

    id: str = ""
    over: tuple[Over, ...] = ()


def stores_nothing(operation: Operation) -> bool:
    """
    A dry run that only reads. Not one that shows more than that: it stays a `reveal` or
    `execute`, or `DELETE secrets?dryRun=All` would read every Secret past its budget.
    """
    return operation.dry_run and operation.impacts <= READING


def counts(budget: Budget, operation: Operation) -> bool:
    """Whether this kind of operation counts at all, once `match` reaches it: reading only when it is named."""
    if not operation.impacts <= READING:
        return True
    match = budget.match
    return match.impacts is not None or (match.verbs is not None and "*" not in match.verbs)


def weight(operation: Operation) -> int:
    """
    How many objects this one request takes; 0 when nobody knows.

    `reach` is that of the whole command. A request that names one of several objects of its
    kind takes that one: the others come as requests of their own. What else is in reach (pods
    of deployments) may all hang on this one, so it is charged whole.
    """
    reach = operation.reach
    if reach is None:
        return 1
    own = operation.info.resource + (f".{operation.info.api_group}" if operation.info.api_group else "")
    siblings = max(0, reach.counts.get(own, 0) - 1) if matching.name_of(operation) else 0
    total = max(1, reach.total - siblings)  # what was counted as nothing may have grown since
    if reach.exact or (siblings and total == 1):
        return total
    # Direction: "at least this many" cannot be shown to be within a limit.
    return 0


def charge(budget: Budget, identity: Identity, values: Mapping[str, Any], operation: Operation) -> Charge:
    """What the operation takes from a budget that matches it. `values` is `identity` for expressions."""
    key = _key(budget, identity, values, operation)
    if not budget.objects:
        return Charge(budget, key, 1)
    objects = weight(operation)
    return Charge(budget, key, objects) if objects else Charge(budget, key, budget.limit + 1, counted=False)


def _key(budget: Budget, identity: Identity, values: Mapping[str, Any], operation: Operation) -> str:
    per = budget.per
    if per == "identity":
        key = identity.username  # not the uid: whoever is deleted and made anew gets no new share
    elif per == "owner":
        key = _owner(budget, values)
    elif per == "issuer":
        key = identity.issuer
    elif per == "namespace":
        info = operation.info
        # "" for what has none: nodes, volumes and the like share one budget.
        key = matching.name_of(operation) or info.namespace if info.resource == "namespaces" else info.namespace
    elif per == "session":
        # The client chooses its session. Within its identity, so that it can use up nobody else's.
        key = f"{identity.username}\n{operation.claimed_session}"
    else:
        key = ""
    return key.encode("utf-8", "backslashreplace").decode()


def _owner(budget: Budget, values: Mapping[str, Any]) -> str:
    """Those whose owner cannot be told share one budget: nobody escapes by having none."""
    try:
        owner = budget.owner.evaluate({"identity": values}) if budget.owner is not None else ""
    except cel.CelError:
        return ""
    return owner if isinstance(owner, str) else ""


def gives_back(operation: Operation, code: int) -> bool:
    """
    Whether the API server's answer says that nothing was done.

    Not for a deletecollection, which stops in the middle at an object that admission keeps (403,
    409) with the others gone; nor behind a proxy or an unknown subresource, where somebody
    else chooses the status; nor for secret material, of which a 404, 409 or 422 tells too.
    """
    if operation.info.verb == "deletecollection" or not operation.impacts.isdisjoint((Impact.REVEAL, Impact.EXECUTE)):
        return False
    return 400 <= code < 500


# ----- words -----


def verdict(over: Sequence[Over], revision: str, now: float) -> Verdict:
    """Deny if one of the budgets denies, else hold; with the sentence of the one that lasts longest."""
    worst = sorted(over, key=_badness)
    first = worst[0].charge.budget
    holds = tuple(Hold(b.policy, b.name, b.message, b.approval, b.digest) for b in (o.charge.budget for o in worst))
    return Verdict(
        first.over,
        first.name,
        first.policy,
        revision,
        sentence(worst, now),
        holds=holds if first.over is Action.HOLD else (),
    )


def _badness(over: Over) -> tuple[int, float, str]:
    return -over.charge.budget.over, -(over.free_at or math.inf), over.charge.budget.full_name


def refusal(verdict: Verdict) -> Refusal:
    return Refusal(403, "budget", verdict.message)


def unavailable(charges: Sequence[Charge], why: str) -> Refusal:
    """When the store did not say yes. `why` is the store's own sentence, without values of a request."""
    names = charges[0].budget.full_name + (" and others" if len(charges) > 1 else "")
    return Refusal(
        503,
        "state-store",
        f"tollgate: the gateway cannot count for budget {names} right now ({why}), so nothing was sent; what needs no "
        "budget still works; try again in a moment, and if it stays so tell the operator",
    )


def sentence(over: Sequence[Over], now: float) -> str:
    """What a client reads: the budget, what is left, when it refills, what to do."""
    first = over[0]
    charge, budget = first.charge, first.charge.budget
    what = "objects" if budget.objects else "operations"
    parts = [f"{budget.limit} {what} in {span(budget.window)}{_whose(charge)}", f"{first.left} left"]
    if not charge.counted:
        refill = "how many objects this reaches could not be counted"
    elif charge.weight > budget.limit:
        parts.append(f"this needs {charge.weight}")
        refill = "it is too much for the budget at any time"
    else:
        many = charge.weight > 1
        if many:
            parts.append(f"this needs {charge.weight}")
        refill = f"{'so many are' if many else 'the next is'} free at {clock(first.free_at, now)}"
    others = f" (and {len(over) - 1} more)" if len(over) > 1 else ""
    begin, end = f"rule {budget.full_name}: {', '.join(parts)}{others}; {refill}; ", _next(first)
    own = f"{budget.message.rstrip('.; ')}; " if budget.message else ""
    # Names may be long. The numbers and the next step come before the policy's own words.
    return begin + own + end if len(begin + own + end) <= MAX_MESSAGE else begin + end


def _next(over: Over) -> str:
    budget = over.charge.budget
    waits = "" if not over.free_at else "wait until then, or "
    if budget.over is Action.HOLD:
        who = ", ".join((*budget.approval.groups, *budget.approval.users)) or "the policy's owners"
        return f"over it a human must approve, which cannot be asked for yet: {waits}ask {_clip(who, 60)} to do it"
    if budget.objects and not over.free_at:
        return "do it in smaller steps, by name, or ask the policy's owners"
    return f"{waits}ask the policy's owners for more"


def _whose(charge: Charge) -> str:
    per, key = charge.budget.per, _clip(charge.key)
    if per == "namespace":
        return f" in namespace {key}" if key else " outside namespaces"
    if per == "owner":
        return f" for owner {key}" if key else " for all without an owner"
    return {"all": " for all together"}.get(per, f" per {per}")


def clock(moment: float, now: float) -> str:
    """`14:03:22 UTC`, rounded up, so that whoever waits until then has waited long enough."""
    there = datetime.datetime.fromtimestamp(math.ceil(moment), datetime.UTC)
    return there.strftime("%H:%M:%S UTC" if moment - now < _DAY / 2 else "%Y-%m-%d %H:%M:%S UTC")


def span(seconds: int) -> str:
    """`10m`, `1h30m`, as policies write it."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    return "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if n) or "0s"


def _clip(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
