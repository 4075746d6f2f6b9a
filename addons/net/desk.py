"""
The desk where held requests wait: finds or makes the approval, waits for the decision, asks
everything again before a request goes on, and spends the approval.

Knows no proxy: whether the client is still there, who it is now and what the policies say now
come in as functions of the case. Whatever goes wrong on the way is a refusal.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

from addons.core import admission, approvals, digests, holding, policy, status
from addons.core.approvals import Asked, Grant, Item, Phase, Record, Requester
from addons.core.holding import What
from addons.core.model import Action, Identity, Operation, Verdict
from addons.core.tokens import TokenError
from addons.net import objects
from addons.net.book import APPROVALS, GRANTS, Book, Change, Missing
from addons.net.issuers import IssuerError
from addons.net.previews import Previewer, Seen
from addons.net.store import StoreError

logger = logging.getLogger(__name__)

LOOK = 0.25  # seconds between looks whether the client is still there
QUEUE = 10.0  # seconds that a question waits for the previews of the same requester's others
MAX_ITEMS = 1000  # requests of one approval: each use writes the whole record; what is beyond asks once more
REMEMBERED = 10_000  # commands that have waited once
FALLBACK = 60.0  # seconds in which an SPDY exec is the second try of a WebSocket that was held


@dataclass(frozen=True, slots=True)
class Case:
    """One held request, and whom to ask about it again."""

    identity: Identity
    operation: Operation
    request: objects.Request = field(repr=False)
    verdict: Verdict
    audit_id: str
    connection: str  # id of the client's connection: a command without a session is told apart by it
    left: Callable[[], bool]  # whether the client has gone
    identify: Callable[[], Awaitable[Identity]]  # the same token, now
    judge: Callable[[], Verdict]  # the same operation, by the policies of now
    previewer: Previewer
    waits: Callable[[str], None]  # told the name of the approval that it waits for
    # Why it must end although nobody decided: its identity was revoked, say.
    ended: Callable[[], status.Refusal | None] = lambda: None


@dataclass(frozen=True, slots=True)
class Outcome:
    """`refusal` or `relayed` is the client's answer; else the request goes on."""

    refusal: status.Refusal | None = None
    relayed: admission.ServerRefusal | None = None  # what the API server said to the preview
    by: str = ""  # names of the approval or grants that let it pass; "" when no rule holds it any more
    record: Record | None = None  # what was spent, or what it waited for
    digest: str = ""
    grants: tuple[Grant, ...] = ()  # what let it pass, or part of it: a stream ends with the first of them
    verdict: Verdict | None = None  # another than the case's: what the policies say now
    version: str = ""  # resourceVersion of the object at the last look; "" when there is none


def refused(refusal: status.Refusal, record: Record | None = None) -> Outcome:
    return Outcome(refusal, record=record)


class Desk:
    """One per process. `notify` is told of each new question."""

    def __init__(
        self,
        book: Book,
        notify: Callable[[Record], None],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.book = book
        self.notify = notify
        self.clock = clock
        self.monotonic = monotonic
        self.stopping = False
        self.waiting = 0
        # By requester, while somebody holds it: one preview at a time.
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._waited: OrderedDict[tuple[str, str], float] = OrderedDict()  # (approval, command) that has waited

    async def end(self, seconds: float) -> None:
        """Everybody who waits gets an answer, and a moment for it to be sent."""
        self.stopping = True
        deadline = self.monotonic() + seconds
        while self.waiting and self.monotonic() < deadline:  # noqa: ASYNC110 -- once, at the very end
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.05)

    async def hold(self, case: Case) -> Outcome:
        """What becomes of the request. Never raises but for a bug: the stamp is missing then."""
        try:
            return await self._hold(case)
        except StoreError as e:
            logger.error("state: %s", e)
            return refused(holding.unavailable(str(e)))
        except TokenError as e:
            logger.warning("the token of a held request: %s", e)
            return refused(case.ended() or holding.REVOKED)
        except IssuerError as e:
            logger.error("cannot authenticate again: %s", e)
            return refused(holding.unavailable("who you are cannot be checked"))

    async def _hold(self, case: Case) -> Outcome:
        now = self.clock()
        who = approvals.requester(case.identity)
        if not case.verdict.holds:
            # direction: nobody can say yes to a hold that names no rule, so it is not satisfied by nothing
            return refused(holding.unavailable("which rule holds this is not known"))
        needed, grants = holding.unsatisfied(case.verdict.holds, self.book.grants(who.key), case.operation, now)
        if not needed:
            return Outcome(by=", ".join(grant.name for grant in grants), grants=grants)
        deadline = self.monotonic() + holding.wait_of(case.operation, needed)
        wanted = holding.asked(needed, case.identity)
        digest = digest_of(case)
        choice = holding.choose(self.book.by_digest(who.key, digest), digest, wanted, now)
        for outdated in choice.outdated:
            await self._void(outdated, "the policy that asked for it is another now")
        record = choice.record
        if choice.what is What.REFUSE and record is not None:
            return refused(holding.ended(record, now, approvals.limits(wanted)[2]), record)
        if choice.what is What.RELEASE and record is not None:
            return await self._release(case, record, digest)
        if record is None:
            asked = await self._ask(case, who, wanted, digest)
            if isinstance(asked, Outcome):
                return asked
            record = asked
        return await self._wait(case, record, digest, deadline)

    # ----- asking -----

    async def _ask(
        self, case: Case, who: Requester, wanted: Sequence[Asked], digest: str, *, waits: bool = True
    ) -> Record | Outcome:
        """A new question, or the same one that another request has asked meanwhile."""
        began = self.monotonic()
        lock = self._asking.get(who.key)
        if lock is None:
            lock = self._asking[who.key] = asyncio.Lock()
        async with lock:
            # The one before in the queue may have been the same.
            again = holding.choose(self.book.by_digest(who.key, digest), digest, wanted, self.clock())
            if again.record is not None and again.what in (What.WAIT, What.RELEASE):
                return again.record
            if again.record is not None and again.what is What.REFUSE:
                # Denied while this one stood in the queue: a no to the same question counts for it too.
                return refused(holding.ended(again.record, self.clock(), approvals.limits(wanted)[2]), again.record)
            if self.stopping:
                return refused(holding.STOPPING)
            if case.left():
                return refused(holding.GONE)
            if self.monotonic() - began > QUEUE:
                # One at a time: with many questions of one requester the queue may last longer than the wait.
                return refused(holding.unavailable("others of your questions are still being prepared"))
            too_many = holding.too_many(self.book.pending(who.key), wanted)
            if too_many is not None:
                return refused(too_many)
            seen = await case.previewer.preview(case.request, case.operation)
            if seen.refusal is not None:
                # Nobody is asked for what the API server would refuse anyway.
                return Outcome(relayed=seen.refusal)
            waits = waits and holding.wait_of(case.operation, [a.hold for a in wanted]) > 0
            return await self._add(case, who, wanted, digest, seen, waits=waits)

    async def _add(
        self, case: Case, who: Requester, wanted: Sequence[Asked], digest: str, seen: Seen, *, waits: bool
    ) -> Record:
        now, operation = self.clock(), case.operation
        items = items_of(case, digest, seen)
        command = digests.command(item.digest for item in items)
        info = operation.info
        record = Record(
            name="",
            uid=str(uuid.uuid4()),
            requester=who,
            digest=command,
            asked=tuple(wanted),
            created=now,
            expires=now + min(a.hold.approval.valid for a in wanted),
            revision=case.verdict.revision,
            command=operation.command,
            summary=operation.summary or policy.describe(operation),
            impacts=tuple(impact.word for impact in sorted(operation.impacts)),
            resource=info.full_resource or info.path,
            verb=info.verb,
            namespace="" if info.resource == "namespaces" else info.namespace,
            items=items,
            content=seen.content,
            preview=seen.preview,
            repeatable=digests.repeatable(operation),
            waiting=waits,
        )
        # Named by what is asked and how often before, so that two processes that ask the same ask once.
        number = len(self.book.by_digest(who.key, digest))
        while True:
            named = replace(record, name=approvals.name("apr", who.key, command, str(number)))
            change = await self.book.add(APPROVALS, named)
            kept = _record(change)
            if kept.uid == named.uid:
                logger.info("%s", holding.held(who, operation, kept.name))
                self.notify(kept)
                return kept
            if kept.phase is Phase.PENDING and holding.same_rules(kept, wanted):
                return kept
            number += 1

    # ----- waiting -----

    async def _wait(self, case: Case, record: Record, digest: str, deadline: float) -> Outcome:
        if record.phase is Phase.APPROVED:
            return await self._release(case, record, digest)
        if not self._may_wait(case, record, digest):
            return refused(self._pending(case, record), record)
        self.waiting += 1
        case.waits(record.name)
        try:
            return await self._until(case, record, digest, deadline)
        finally:
            self.waiting -= 1

    def _may_wait(self, case: Case, record: Record, digest: str) -> bool:
        """
        The first request of a command waits, once; the others are told at once, or every object
        of a fan-out would hold its client for the whole time.
        """
        operation, now = case.operation, self.monotonic()
        key = (record.name, operation.claimed_session or f"connection {case.connection}")
        streams = (record.name, "a stream")
        waited = self._waited.get(key)
        if holding.is_connect(operation):
            before = self._waited.get(streams)
            if operation.upgrade == "spdy" and before is not None and now - before < FALLBACK:
                return False
            self._remember(streams, now)
        if operation.claimed_session:
            if waited is not None:
                return False
        elif record.items[0].digest != digest:
            return False
        self._remember(key, now)
        return True

    def _remember(self, key: tuple[str, str], now: float) -> None:
        self._waited[key] = now
        self._waited.move_to_end(key)
        while len(self._waited) > REMEMBERED:
            self._waited.popitem(last=False)

    async def _until(self, case: Case, record: Record, digest: str, deadline: float) -> Outcome:
        while True:
            if self.stopping:
                return refused(holding.STOPPING, record)
            if (why := case.ended()) is not None:
                await self._note(record, "the requester was told that he gets nothing any more")
                return refused(why, record)
            if case.left():
                await self._note(record, "the client left while it waited; the same request can still use this")
                return refused(holding.GONE, record)
            rest = deadline - self.monotonic()
            kept = self.book.get(APPROVALS, record.name)
            if kept is None or kept.deleted:
                gone = approvals.void(record, "it was removed", self.clock())
                return refused(holding.ended(gone, self.clock()), gone)
            record = approvals.expire(_record(kept), self.clock())
            if record.phase is Phase.APPROVED:
                return await self._release(case, record, digest)
            if record.phase is not Phase.PENDING:
                cooldown = approvals.limits(record.asked)[2] if record.phase is Phase.DENIED else 0
                return refused(holding.ended(record, self.clock(), cooldown), record)
            if rest <= 0:
                await self._note(record, "the client was told to send it again once it is approved")
                return refused(self._pending(case, record), record)
            await self.book.changed(APPROVALS, record.name, kept.revision, min(rest, LOOK))

    def _pending(self, case: Case, record: Record) -> status.Refusal:
        retry = all(a.hold.approval.retry for a in record.asked)
        return holding.pending(record, self.clock(), retry=retry)

    async def _note(self, record: Record, message: str) -> None:
        """Nobody waits for it now. That the approver sees so is worth no refusal of its own."""

        def step(entry: Any) -> Any:
            return replace(entry, waiting=False, message=message) if entry.phase is Phase.PENDING else entry

        try:
            await self.book.step(APPROVALS, record.name, step)
        except (StoreError, Missing) as e:
            logger.warning("approval %s: %s", record.name, e)

    # ----- going on -----

    async def _release(self, case: Case, record: Record, digest: str) -> Outcome:
        """
        Ask everything again that was asked before the wait, spend the approval, and only then let go.

        Spent before a byte goes up: a crash in between costs an approval, never gives one twice.
        """
        identity = await case.identify()
        if approvals.requester(identity).key != record.requester.key:
            return refused(holding.CHANGED_IDENTITY, record)
        try:
            verdict = case.judge()
        except admission.NeedsObjects:
            return refused(holding.CHANGED_POLICY, record)
        now = self.clock()
        if verdict.action is Action.DENY:
            await self._void(record, "the policy denies it now")
            return Outcome(policy.refusal(verdict, identity, case.operation), record=record, verdict=verdict)
        if verdict.action is Action.ALLOW:
            # Nobody needs to be asked any more, and the yes to it is not kept for another day.
            await self._void(record, "the policy asks no more")
            return Outcome(by=holding.NOT_ASKED, verdict=verdict)
        if not verdict.holds:
            return refused(holding.unavailable("which rule holds this is not known"), record)  # as above
        needed, grants = holding.unsatisfied(verdict.holds, self.book.grants(record.requester.key), case.operation, now)
        if not needed:
            return await self._covered(case, record, grants, digest, verdict)
        wanted = holding.asked(needed, identity)
        if revoked := self.book.withdrawn(*record.decisions):
            return await self._anew(case, record, wanted, digest, f"who approved it was revoked ({revoked})")
        if not holding.same_rules(record, wanted):
            return await self._anew(case, record, wanted, digest, "the policy asks for something else now")
        item = record.item(digest)
        if item is None:
            return refused(holding.ended(record, now), record)
        changed = await case.previewer.again(case.request, case.operation, item, record.content, drift_of(record))
        if changed.unknown:
            return refused(holding.unavailable(changed.unknown), record)
        if changed.why:
            return await self._anew(case, record, wanted, digest, changed.why)
        return replace(await self._spend(case, record, digest), grants=grants, version=changed.version)

    async def _covered(
        self, case: Case, record: Record, grants: Sequence[Grant], digest: str, verdict: Verdict
    ) -> Outcome:
        """Grants open all the rules now; the one that this very yes made may be among them."""
        names = ", ".join(grant.name for grant in grants)
        if record.name in {grant.source for grant in grants}:
            with contextlib.suppress(Missing, approvals.NotAllowed):
                await self.book.step(
                    APPROVALS, record.name, lambda kept: approvals.use(kept, digest, case.audit_id, self.clock())
                )
        else:
            await self._void(record, f"{names} opens the rule")
        return Outcome(by=names, grants=tuple(grants), verdict=verdict)

    async def _spend(self, case: Case, record: Record, digest: str) -> Outcome:
        # Look, consume, look again, give back: a client that is gone must not write.
        if case.left():
            await self._note(record, "the client left; the same request can still use this")
            return refused(holding.GONE, record)
        try:
            change = await self.book.step(
                APPROVALS, record.name, lambda kept: approvals.use(kept, digest, case.audit_id, self.clock())
            )
        except (approvals.NotAllowed, Missing):
            kept_change = self.book.get(APPROVALS, record.name)
            last = _record(kept_change) if kept_change is not None else record
            if last.phase is Phase.APPROVED:  # other items of it are open, this one is spent
                last = replace(last, phase=Phase.USED)
            return refused(holding.ended(last, self.clock()), last)
        spent = _record(change)
        why = case.ended()
        if why is not None or case.left():
            await self.give_back(spent.name, digest, case.audit_id)
            return refused(why or holding.GONE, spent)
        return Outcome(by=spent.name, record=spent, digest=digest)

    def ended(self, grants: Sequence[Grant]) -> bool:
        """Whether one of these is over, was revoked, or counts no more."""
        now = self.clock()
        kept = (change.entry if (change := self.book.get(GRANTS, grant.name)) else None for grant in grants)
        return not all(isinstance(entry, Grant) and self.book.stands(entry, now) for entry in kept)

    async def give_back(self, name: str, digest: str, audit_id: str) -> None:
        """What was spent never reached the API server. Failing here leaves it spent: the stricter side."""
        try:
            await self.book.step(
                APPROVALS, name, lambda kept: approvals.give_back(kept, digest, audit_id, self.clock())
            )
        except (StoreError, Missing) as e:
            logger.error("approval %s stays spent: %s", name, e)

    async def _anew(self, case: Case, record: Record, wanted: Sequence[Asked], digest: str, why: str) -> Outcome:
        await self._void(record, why)
        asked = await self._ask(case, record.requester, wanted, digest, waits=False)
        if isinstance(asked, Outcome):
            return asked
        return refused(holding.voided(record, why, asked, self.clock()), asked)

    async def _void(self, record: Record, why: str) -> None:
        with contextlib.suppress(Missing):
            await self.book.step(APPROVALS, record.name, lambda kept: approvals.void(kept, why, self.clock()))


def digest_of(case: Case) -> str:
    request = case.request
    return digests.of(case.operation, request.method, request.target, request.content_type, request.body)


def items_of(case: Case, digest: str, seen: Seen) -> tuple[Item, ...]:
    """The one request; or all that a fan-out is going to send, this one first."""
    operation = case.operation
    own = Item(digest, operation.summary or policy.describe(operation), seen.uid, seen.resource_version, seen.result)
    others = [item for item in seen.items if item.digest != digest]
    return (own, *others[: MAX_ITEMS - 1]) if len(others) < len(seen.items) else (own,)


def drift_of(record: Record) -> int:
    return min((a.hold.approval.drift for a in record.asked), default=0)


def _record(change: Change) -> Record:
    entry = change.entry
    if not isinstance(entry, Record):
        raise TypeError(f"{change.name} is no approval")
    return entry
