"""
Revocations, the kill switch: whose requests are refused from now on, however good their tokens are.

A revocation names its target by fields, and every field given must match, as in a policy. It takes
power away only, so making one is easy; lifting one gives power back, so that needs what a yes needs.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from addons.core import approvals, authconfig, status
from addons.core.approvals import Decider, Decision, NotAllowed, Requester
from addons.core.model import Identity

MAX_REASON = 1000  # characters
MAX_WORD = 512  # characters of a user, an owner, a token's id
MAX_OWNERS = 20  # values of one owner claim; what is beyond is nobody's to count on
MAX_TIME = 10 * 365 * 86_400  # seconds; longer is until it is lifted
LIFT_LOGIN = 900  # seconds; the login of whoever lifts one is younger


class RevocationError(ValueError):
    """What was given is no revocation; message: the field, then what is wrong."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom it refuses. Fields that are given must all match; at least one is."""

    user: str = ""  # the identity's name, as the gateway's log and approvals have it
    token_id: str = ""  # `jti`, or what stands in its place (Identity.credential_id)
    issued_before: float = 0.0  # seconds since the epoch; tokens issued earlier
    agents: bool = False  # everybody whom no people clause of the policies matches
    owner: str = ""  # a value of the claim that names for whom an identity acts

    def __bool__(self) -> bool:
        return bool(self.user or self.token_id or self.issued_before or self.agents or self.owner)

    @property
    def of_tokens(self) -> bool:
        """Whether a new token would not be refused by it."""
        return bool(self.token_id or self.issued_before)


@dataclass(frozen=True, slots=True)
class Revocation:
    """One order to refuse, and who gave it."""

    name: str
    uid: str
    target: Target
    requester: Requester  # who revoked
    created: float  # seconds since the epoch, as all times here
    until: float = 0.0  # 0: until it is lifted
    reason: str = ""  # for those who look at it later; whoever is refused does not get it
    via: str = "api"  # or "operator": at the gateway's own machine
    lifted: float = 0.0
    lifted_by: str = ""

    def in_force(self, now: float) -> bool:
        # Not before `created`: a clock that was put back must not open a gap.
        return not self.lifted and not self.lifted_by and (not self.until or now < self.until)


# ----- who is refused -----


def same_user(name: str, username: str) -> bool:
    """
    Whether an operator who types this name means this user.

    By case no less than by letter, and a ServiceAccount also by the name it has in the cluster:
    a kill switch that was mistyped in haste must not hit nobody.
    """
    name, username = name.casefold(), username.casefold()
    return name == username or (name.startswith("system:") and authconfig.CLUSTER_PREFIX + name == username)


def owners(identity: Identity, claim: str) -> frozenset[str]:
    """For whom an identity acts: the values of this claim, or of this key of its extra; lower case."""
    if not claim:
        return frozenset()
    found = identity.claims.get(claim, identity.extra.get(claim))
    values = [found] if isinstance(found, str) else found if isinstance(found, list | tuple) else []
    return frozenset(value.casefold() for value in values[:MAX_OWNERS] if isinstance(value, str) and value)


def reaches(target: Target, identity: Identity, *, agent: bool, owned_by: frozenset[str]) -> bool:
    """Whether some token of this identity is refused by it."""
    if target.user and not same_user(target.user, identity.username):
        return False
    if target.agents and not agent:
        return False
    return not target.owner or target.owner.casefold() in owned_by


def matches(target: Target, identity: Identity, *, agent: bool, owned_by: frozenset[str]) -> bool:
    """Whether this identity, with the token it came with, is refused."""
    if target.token_id and target.token_id != identity.credential_id:
        return False
    # A token that does not say when it was issued (0) may be as old as any.
    if target.issued_before and identity.issued_at >= target.issued_before:
        return False
    return reaches(target, identity, agent=agent, owned_by=owned_by)


def withdraws(target: Target, decision: Decision) -> bool:
    """
    Whether a yes, not used yet, counts no more since whoever gave it is revoked.

    A stolen approver's token may have said yes to more than one thing before somebody noticed.
    """
    if target.agents:
        return False  # an agent decides nothing
    if target.user and not same_user(target.user, decision.username):
        return False
    if target.token_id and target.token_id != decision.credential_id:
        return False
    if target.owner and target.owner.casefold() not in {owner.casefold() for owner in decision.owners}:
        return False
    # Its token was issued before it was said.
    return not target.issued_before or decision.at < target.issued_before


class Revoked:
    """Revocations, found without looking at all of them for each request."""

    def __init__(self, revocations: Iterable[Revocation] = ()) -> None:
        self._by_token: defaultdict[str, list[Revocation]] = defaultdict(list)
        self._by_user: defaultdict[str, list[Revocation]] = defaultdict(list)
        self._rest: list[Revocation] = []
        self.count = 0
        for revocation in sorted(revocations, key=lambda r: (r.created, r.name)):
            target = revocation.target
            self.count += 1
            if target.token_id:
                self._by_token[target.token_id].append(revocation)
            elif target.user:
                self._by_user[_key(target.user)].append(revocation)
            else:
                self._rest.append(revocation)

    def __bool__(self) -> bool:
        return bool(self.count)

    def find(
        self, identity: Identity, now: float, *, agent: Callable[[Identity], bool], owner_claim: str = ""
    ) -> Revocation | None:
        """
        The revocation that refuses this identity; of several, one that a new token would not get past.

        agent: whether an identity is one, by the policies of this moment; asked only where it counts.
        """
        if not self.count:
            return None
        candidates: list[Revocation] = [
            *self._by_user.get(_key(identity.username), ()),
            *self._rest,
            *self._by_token.get(identity.credential_id, ()),
        ]
        found: Revocation | None = None
        for revocation in candidates:
            target = revocation.target
            if not revocation.in_force(now) or not matches(
                target,
                identity,
                agent=target.agents and agent(identity),
                owned_by=owners(identity, owner_claim) if target.owner else frozenset(),
            ):
                continue
            if not target.of_tokens:
                return revocation
            found = found or revocation
        return found


def _key(user: str) -> str:
    return user.casefold().removeprefix(authconfig.CLUSTER_PREFIX)


def refusal(revocation: Revocation) -> status.Refusal:
    """
    What whoever is refused gets to know.

    401 where a new token helps: clients with a credential plugin fetch one then. 403 where none
    does. Neither is repeated by kubectl or client-go. Not the reason: it may speak of others.
    """
    target, name = revocation.target, revocation.name
    until = f"until {_time(revocation.until)}" if revocation.until else "until it is lifted"
    if target.of_tokens:
        which = "tokens issued as early as yours are" if not target.token_id else "your token is"
        return status.Refusal(
            401, "token-revoked", f"tollgate: {which} revoked ({name}), so nothing is done with it; get a new one"
        )
    if target.agents:
        who = "all agents are"
    elif target.user:
        who = "your access is"
    else:
        who = "whoever acts for your owner is"
    return status.Refusal(
        403,
        "revoked",
        f"tollgate: {who} stopped here {until} ({name}), and another token changes nothing; do not try again, ask the "
        "operator of the gateway",
    )


DEPARTED = status.Refusal(
    403,
    "owner-departed",
    "tollgate: the owner for whom you act has left, so nothing is done for you, and another token changes nothing; "
    "have the operator give this agent a new owner",
)


# ----- making and lifting -----


def check(target: Target, reason: str, until: float, now: float) -> None:
    """Raise RevocationError for what would not do what its author means."""
    if not target:
        raise RevocationError("target: names nobody; give user, tokenID, issuedBefore, allAgents or owner")
    for field, word in (("user", target.user), ("tokenID", target.token_id), ("owner", target.owner)):
        if word != word.strip() or len(word) > MAX_WORD or not word.isprintable():
            raise RevocationError(
                f"{field}: has spaces around it, letters that do not show, or over {MAX_WORD} letters"
            )
    if not 0 <= target.issued_before <= now + approvals.CLOCK_SKEW:
        # Tokens of tomorrow would be refused too, which --user or --all-agents says more plainly.
        raise RevocationError("issuedBefore: is in the future; the time of this moment is the latest")
    if until and not now < until <= now + MAX_TIME:
        raise RevocationError("expires: is over already or more than ten years ahead; without it, it ends when lifted")
    if len(reason) > MAX_REASON or any(not c.isprintable() and c not in "\n\t" for c in reason):
        raise RevocationError(f"reason: has over {MAX_REASON} characters, or some that do not show")


def name(uid: str) -> str:
    return approvals.name("rev", uid)


def lift(revocation: Revocation, by: str, now: float) -> Revocation:
    """Raises NotAllowed when there is nothing to lift."""
    if not revocation.in_force(now):
        raise NotAllowed(f"{revocation.name} is not in force any more; there is nothing to lift")
    return replace(revocation, lifted=now, lifted_by=by)


def may_revoke(decider: Decider) -> None:
    """
    Raise NotAllowed unless it is a person; which people, the rules of the policies say.

    Without the fresh login that a yes needs: it takes power away, and is in a hurry.
    """
    if decider.agent:
        # It could stop every other agent, and the people who would stop it.
        raise NotAllowed("an agent cannot revoke anything; a person must, whom the policy's people clause names")


def may_lift(revocation: Revocation, decider: Decider, owned_by: frozenset[str], now: float) -> None:
    """Raise NotAllowed unless he may. An operator at the gateway's own machine may always."""
    if decider.via == "operator":
        return
    who = decider.identity
    if decider.agent:
        raise NotAllowed("an agent cannot lift a revocation; a person must, whom the policy's people clause names")
    # Also by another token of his, or one of all tokens: whoever took them would give them back to himself.
    if reaches(revocation.target, who, agent=False, owned_by=owned_by):
        raise NotAllowed(
            f"{revocation.name} may be of a token of your own, which you cannot give back to yourself; lift it on the "
            f"gateway's machine: ./run.sh revoke lift {revocation.name}"
        )
    if approvals.AUDIENCE not in who.audiences:
        raise NotAllowed(
            f"lifting a revocation needs a token with the audience {approvals.AUDIENCE}; get one and use it for this "
            "command only"
        )
    # As for a decision: a time that is no number, or none (0), is too old.
    if not -approvals.CLOCK_SKEW <= now - who.auth_time <= LIFT_LOGIN:
        raise NotAllowed(f"your login is older than {LIFT_LOGIN} s; log in again and lift it then")


def phase(revocation: Revocation, now: float) -> str:
    """InForce, Lifted or Expired."""
    if revocation.in_force(now):
        return "InForce"
    return "Lifted" if revocation.lifted or revocation.lifted_by else "Expired"


def summary(target: Target) -> str:
    """Whom it refuses, in a line."""
    parts = []
    if target.agents:
        parts.append("all agents")
    if target.user:
        parts.append(f"user {target.user}")
    if target.owner:
        parts.append(f"whoever acts for {target.owner}")
    if target.token_id:
        parts.append(f"token {target.token_id}")
    if target.issued_before:
        parts.append(f"tokens issued before {_time(target.issued_before)}")
    return ", ".join(parts)


# ----- words -----

_DURATION = re.compile(r"(?:([0-9]{1,4})d)?(?:([0-9]{1,5})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,8})s)?")


def seconds(text: str) -> int:
    """`90s`, `2h30m`, `7d`. Raises RevocationError."""
    found = _DURATION.fullmatch(text)
    if not text or found is None:
        raise RevocationError(f"{text!r} is no duration such as 30m, 2h or 7d"[:200])
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if not total:
        raise RevocationError("a duration of nothing revokes nothing")
    return total


_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def instant(text: str, now: float) -> float:
    """An RFC 3339 time, or `now`. Raises RevocationError."""
    if text == "now":
        return now
    try:
        if not _INSTANT.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text.upper()).timestamp()
    except (ValueError, OverflowError):
        raise RevocationError(f"{text!r} is no time such as 2026-07-28T12:00:00Z, nor now"[:200]) from None


def _time(at: float) -> str:
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# ----- owners who have left -----

MAX_DEPARTED = 100_000  # lines


def departed(text: str) -> frozenset[str]:
    """
    The owners of a list, lower case: one a line, `#` begins a comment. Raises RevocationError.

    As a file that a ConfigMap is mounted as, or that an HR system writes.
    """
    found = set()
    lines = text.splitlines()
    if len(lines) > MAX_DEPARTED:
        raise RevocationError(f"has over {MAX_DEPARTED} lines")
    for number, line in enumerate(lines, 1):
        word = line.partition(" #")[0].strip()
        if not word or word.startswith("#"):
            continue
        if len(word) > MAX_WORD or not word.isprintable():
            raise RevocationError(f"line {number}: is not the name of an owner")
        found.add(word.casefold())
    return frozenset(found)
