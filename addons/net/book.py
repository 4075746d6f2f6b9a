"""
The book of approvals, AccessRequests, grants and revocations: what the store holds of them, kept at hand.

Reading is from memory and costs nothing; every change goes to the store first, with the revision
it was made from, so that of two that change the same record one has to look again. Changes by
other processes arrive within some 20 ms while somebody waits, within a second otherwise.

All that is in memory came out of the store in the order of its revisions, own changes too: what
is here is what the store held at `revision`.
"""

import asyncio
import contextlib
import logging
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from addons.core.approvals import (
    KEPT,
    Decision,
    Grant,
    NotAllowed,
    Phase,
    Record,
    expire,
    grant_name,
    grant_of,
    is_asking,
    taken_back,
)
from addons.core.revocations import Revocation, withdraws
from addons.net import codec, mirror
from addons.net.codec import Entry
from addons.net.mirror import (
    APPROVALS,
    GRANTS,
    HISTORY,
    HISTORY_BYTES,
    KINDS,
    REQUESTS,
    REVOCATIONS,
    Change,
    Key,
    Mirror,
)
from addons.net.store import Absent, Conflict, Delete, Exists, Put, Store, StoreError

__all__ = [
    "APPROVALS",
    "GRANTS",
    "KINDS",
    "REQUESTS",
    "REVOCATIONS",
    "Book",
    "Change",
    "Changed",
    "Entry",
    "Following",
    "Gone",
    "Missing",
]

logger = logging.getLogger(__name__)

MAX_ENTRIES = 10_000  # above, the oldest that are over go first
MAX_BYTES = 128 * 1024 * 1024  # of all entries as JSON; in memory they take about three times that
ROOM = 0.95  # of either limit is kept when something must go, so that not every sweep sorts all
LOOKS = (0.02, 0.2, 1.0)  # seconds between looks into the store: somebody waits, somebody follows, nobody does
STALE = 5.0  # seconds without a look after which no grant counts: it may have been revoked elsewhere
STARTING = 5.0  # seconds that `start` tries: another process may hold the file for a moment
SWEEP = 1.0  # seconds between looks for what is over
SWEEP_ENTRIES = 200  # at a time; they share a transaction
TRIES = 20  # of one step against other processes that change the same entry
TURN = 2.0  # seconds to wait for others of this process that change the same entry

type Step = Callable[[Any], Entry]  # of a Record or a Grant, by the kind


class Gone(Exception):
    """Changes since that revision are no longer known: list again (the API's 410)."""


class Changed(Exception):
    """Somebody changed the entry meanwhile (the API's 409)."""


class Missing(Exception):
    """There is no such entry."""


class Following:
    """Changes as they come, from when it was made. It is dropped when nobody holds it any more."""

    def __init__(self, book: "Book", since: int, backlog: Sequence[tuple[Change, int]]) -> None:
        self._book = book
        self._since = since
        self._checked = since <= book.revision
        self._waiting: deque[tuple[Change, int]] = deque(backlog)
        self._bytes = sum(size for _, size in backlog)
        self._news = asyncio.Event()
        self._ended = False
        self._gone = ""

    def __aiter__(self) -> AsyncIterator[Change]:
        return self

    async def __anext__(self) -> Change:
        if not self._checked:
            await self._check()
        while not self._waiting:
            if self._gone:
                raise Gone(self._gone)
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        change, size = self._waiting.popleft()
        self._bytes -= size
        return change

    async def _check(self) -> None:
        """A client of another process may be ahead of this one; ahead of the store is nobody."""
        try:
            await self._book.catch_up()
        except StoreError as e:
            raise Gone("that revision is not known here") from e
        if self._since > self._book.revision:
            raise Gone("that revision has not been yet")
        self._checked = True

    def put(self, change: Change, size: int) -> None:
        if self._gone or change.revision <= self._since:
            return
        if len(self._waiting) >= HISTORY or (self._waiting and self._bytes + size > HISTORY_BYTES):
            self.lose("too many changes have come meanwhile")  # who does not read must not fill the memory
            return
        self._waiting.append((change, size))
        self._bytes += size
        self._news.set()

    def lose(self, why: str) -> None:
        self._gone = why
        self._waiting.clear()
        self._bytes = 0
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()


class Book:
    """All methods that change something raise StoreError when the store cannot do it, and nothing is changed then."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._mirror = Mirror()
        self._loaded = False
        self._stopped = False
        self._tasks: list[asyncio.Task[None]] = []
        self._looking = asyncio.Lock()
        self._nudge = asyncio.Event()
        self._heard = float("-inf")  # time of the loop, at the last look that the store answered
        self._troubles: dict[str, str] = {}  # what the log was told last, by what failed
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._waiters: defaultdict[Key, set[asyncio.Future[None]]] = defaultdict(set)
        self._followers: WeakSet[Following] = WeakSet()
        self._own: OrderedDict[tuple[str, str, int], Entry] = OrderedDict()  # written here: need not be read again

    async def start(self) -> None:
        """Read all, and follow changes from now on. Idempotent. Raises StoreError, and then goes on trying."""
        if not self._tasks:
            self._stopped = False
            self._tasks = [asyncio.create_task(self._look_loop()), asyncio.create_task(self._sweep_loop())]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STARTING
        while not self._loaded:
            try:
                await self.catch_up()
            except StoreError:
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(LOOKS[0])

    async def stop(self) -> None:
        """Who waits gets nothing, who follows the end."""
        self._stopped = True
        for waiting in self._waiters.values():
            _wake(waiting)
        for follower in list(self._followers):
            follower.end()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)

    # ----- reading, from memory -----

    @property
    def revision(self) -> int:
        return self._mirror.revision

    def get(self, kind: str, name: str) -> Change | None:
        return self._mirror.get(kind, name)

    def all(self, kind: str) -> Sequence[Change]:
        """By name."""
        return self._mirror.all(kind)

    def by_digest(self, requester_key: str, digest: str) -> Sequence[Record]:
        """
        Every kept approval of this requester for exactly this, and those with an item of this
        digest; newest first, and as they are at this moment: what has expired is not Approved.
        """
        now = self._clock()
        found = (change.entry for change in self._mirror.by_digest(requester_key, digest))
        return [expire(entry, now) for entry in found if isinstance(entry, Record)]

    def pending(self, requester_key: str) -> int:
        """How many approvals and AccessRequests of this requester are undecided, or were taken back just now."""
        now = self._clock()
        return sum(is_asking(record, now) for record in self._mirror.pending(requester_key))

    def grants(self, requester_key: str) -> Sequence[Grant]:
        """Those of the requester that are not over. None while the store does not answer."""
        if asyncio.get_running_loop().time() - self._heard > STALE:
            return ()  # direction: a grant that was revoked elsewhere must not live on here
        now = self._clock()
        return [grant for grant in self._mirror.grants(requester_key) if self.stands(grant, now)]

    def stands(self, grant: Grant, now: float) -> bool:
        """Whether it is active, and none of those who gave it is revoked."""
        if not grant.active(now):
            return False
        return not any(self.withdrawn(Decision(name, True, grant.since)) for name in grant.approvers)

    def withdrawn(self, *decisions: Decision) -> str:
        """Name of a revocation that takes back one of these yeses; "" when all count."""
        now = self._clock()
        for change in self._mirror.all(REVOCATIONS):
            entry = change.entry
            if not isinstance(entry, Revocation) or not entry.in_force(now):
                continue
            if any(decision.approved and withdraws(entry.target, decision) for decision in decisions):
                return entry.name
        return ""

    # ----- changing -----

    async def add(self, kind: str, entry: Entry) -> Change:
        """A new entry; when one of that name is there, that one instead, unchanged."""
        data = _encoded(entry)
        # Not of the kill switch: whoever floods the book with questions must not keep it from being thrown.
        if kind != REVOCATIONS and (
            len(self._mirror) >= MAX_ENTRIES + SWEEP_ENTRIES or self._mirror.bytes >= MAX_BYTES / ROOM
        ):
            raise StoreError("there are too many approvals and grants; wait until some are over")
        for _ in range(TRIES):
            try:
                (revision,) = await self._store.apply([Put(kind, entry.name, data)], self._clock())
            except Exists:
                await self.catch_up()
                self._refuse_broken(kind, entry.name)
                there = self.get(kind, entry.name)
                if there is not None:
                    return there
                continue  # removed in between
            await self._written((kind, entry.name, revision, entry))
            return Change(kind, entry.name, revision, entry)
        raise StoreError(f"{entry.name} is made and removed by others all the time; try again")

    async def step(self, kind: str, name: str, step: Step, revision: int | None = None) -> Change:
        """
        Take one step of core/approvals from the newest state, again when somebody was faster.

        With a revision: Changed when that is not the newest. Missing when it is not there. What
        the step raises comes out, and nothing is changed; nor when it returns what it got. A
        record that becomes Approved and has a grant gets it in the same transaction, and a yes that
        is cancelled loses it so.
        """
        async with self._turn(kind, name):
            for _ in range(TRIES):
                known = await self._known(kind, name, revision)
                entry, refused = known.entry, None
                try:
                    entry = step(known.entry)
                except NotAllowed as e:
                    refused = e
                if refused is None and entry != known.entry:
                    change = await self._change(known, entry)
                    if change is not None:
                        return change
                    await self.catch_up()
                    continue
                # That nothing can or need be done is believed of the newest state only.
                await self.catch_up()
                newest = self.get(kind, name)
                if newest is not None and newest.revision == known.revision:
                    if refused is not None:
                        raise refused
                    return known
        raise StoreError(f"{name} is changed by others all the time; try again")

    async def _change(self, known: Change, entry: Entry) -> Change | None:
        """None when somebody was faster."""
        kind, name, now = known.kind, known.name, self._clock()
        changes, entries = [Put(kind, name, _encoded(entry), known.revision)], [entry]
        before = known.entry
        if isinstance(entry, Record) and isinstance(before, Record) and before.phase is Phase.PENDING:
            grant = grant_of(entry, now, str(uuid.uuid4()))
            if grant is not None:
                changes.append(Put(GRANTS, grant.name, _encoded(grant)))
                entries.append(grant)
        if isinstance(entry, Record) and isinstance(before, Record):
            there = self.get(GRANTS, grant_name(before))
            over = taken_back(before, entry, there.entry if there and isinstance(there.entry, Grant) else None, now)
            if there is not None and over is not None:
                changes.append(Put(GRANTS, over.name, _encoded(over), there.revision))
                entries.append(over)
        try:
            revisions = await self._store.apply(changes, now)
        except (Conflict, Absent):
            return None
        except Exists as e:
            raise StoreError(f"the grant of {name} cannot be made: {e}") from e
        written = zip(changes, revisions, entries, strict=True)
        await self._written(*((put.kind, put.name, made, one) for put, made, one in written))
        return Change(kind, name, revisions[0], entry)

    async def remove(self, kind: str, name: str, revision: int | None = None) -> Change:
        """The entry as it was. Raises Missing and Changed as `step` does."""
        async with self._turn(kind, name):
            for _ in range(TRIES):
                known = await self._known(kind, name, revision)
                try:
                    (done,) = await self._store.apply([Delete(kind, name, known.revision)], self._clock())
                except (Conflict, Absent):
                    await self.catch_up()
                    continue
                await self._written((kind, name, done, known.entry))
                return replace(known, revision=done, deleted=True)
        raise StoreError(f"{name} is changed by others all the time; try again")

    async def _known(self, kind: str, name: str, revision: int | None) -> Change:
        known = self.get(kind, name)
        if known is None or (revision is not None and known.revision != revision):
            await self.catch_up()  # another process may have made or changed it a moment ago
            known = self.get(kind, name)
        if known is None:
            self._refuse_broken(kind, name)
            raise Missing(f"there is no {name}")
        if revision is not None and known.revision != revision:
            raise Changed(f"{name} was changed meanwhile; look at it again")
        return known

    def _refuse_broken(self, kind: str, name: str) -> None:
        broken = self._mirror.broken(kind, name)
        if broken is not None:
            raise StoreError(f"{name} is stored and cannot be read: {broken.why}")

    @contextlib.asynccontextmanager
    async def _turn(self, kind: str, name: str) -> AsyncIterator[None]:
        """One after the other in this process: they would only refuse each other at the store."""
        lock = self._locks.get((kind, name))
        if lock is None:
            lock = self._locks[kind, name] = asyncio.Lock()
        try:
            async with asyncio.timeout(TURN):
                await lock.acquire()
        except TimeoutError:
            raise StoreError(f"too many change {name} at once; try again") from None
        try:
            yield
        finally:
            lock.release()

    async def _written(self, *written: tuple[str, str, int, Entry]) -> None:
        """Read it back, for its place in the order. It is on disk: what fails now fails nobody."""
        for kind, name, revision, entry in written:
            self._own[kind, name, revision] = entry
        while len(self._own) > HISTORY:
            self._own.popitem(last=False)
        try:
            await self.catch_up(max(revision for _, _, revision, _ in written))
        except StoreError as e:
            self._say("read", str(e))
            self._nudge.set()

    # ----- following -----

    async def changed(self, kind: str, name: str, revision: int, seconds: float) -> Change | None:
        """The entry once its revision is past this; None when the time is over. Deleted counts."""
        key, loop = (kind, name), asyncio.get_running_loop()
        deadline = loop.time() + seconds
        if not self._waiters:
            self._nudge.set()  # the next look is near, no longer up to a second away
        while True:
            found, rest = self._mirror.past(kind, name, revision), deadline - loop.time()
            if found is not None or rest <= 0 or self._stopped:
                return found
            future = loop.create_future()
            self._waiters[key].add(future)
            try:
                await asyncio.wait((future,), timeout=rest)
            finally:
                mirror.discard(self._waiters, key, future)

    def follow(self, since: int) -> Following:
        """
        Every change after that revision, in order, as it comes. Raises Gone for one too old, or
        when it lags. Of several changes of one entry by another process it may tell the last only.
        """
        if since < self._mirror.floor:
            raise Gone("that revision is too long ago")
        following = Following(self, since, self._mirror.history(since))
        if self._stopped:
            following.end()
        self._followers.add(following)
        self._nudge.set()
        return following

    # ----- what the store holds -----

    async def _look_loop(self) -> None:
        while not self._stopped:
            self._nudge.clear()
            try:
                await self.catch_up()
                pause = LOOKS[0] if self._waiters else LOOKS[1] if self._followers else LOOKS[2]
            except StoreError as e:
                self._say("read", str(e))
                pause = LOOKS[2]
            except Exception:
                logger.exception("the book of approvals could not be brought up to date")
                pause = LOOKS[2]
            nudged = asyncio.ensure_future(self._nudge.wait())
            try:
                await asyncio.wait((nudged,), timeout=pause)
            finally:
                nudged.cancel()

    def _say(self, what: str, trouble: str) -> None:
        """To the log, once."""
        if trouble and trouble != self._troubles.get(what):
            self._troubles[what] = trouble
            logger.error("approvals: %s; what is known can be read, and nothing is asked or decided", trouble)
        elif not trouble and self._troubles.pop(what, ""):
            logger.warning("approvals: the state can be %s again", "read" if what == "read" else "written")

    async def catch_up(self, revision: int | None = None) -> None:
        """Take in what has changed; with a revision only if that is not here yet. Raises StoreError."""
        async with self._looking:
            if revision is not None and self._loaded and self._mirror.revision >= revision:
                return
            more = True
            while more and self._loaded:
                found = await self._store.since(self._mirror.revision)
                if found.horizon > self._mirror.revision or found.revision < self._mirror.revision:
                    self._loaded = False  # removals may have been missed
                    break
                for row in found.objects:
                    change = self._mirror.take(row, self._own.pop((row.kind, row.name, row.revision), None))
                    if change is not None:
                        self._tell(change, len(row.data))
                self._mirror.revision, more = found.revision, found.more
            if not self._loaded:
                await self._list()
            self._heard = asyncio.get_running_loop().time()
            self._say("read", "")

    def _tell(self, change: Change, size: int) -> None:
        for follower in list(self._followers):
            follower.put(change, size)
        _wake(self._waiters.get((change.kind, change.name), ()))

    async def _list(self) -> None:
        """All anew: at the start, and when removals may have been missed."""
        found = await self._store.since(0)
        horizon = found.horizon
        rows = {(row.kind, row.name): row for row in found.objects}
        while found.more:
            found = await self._store.since(found.revision)
            if found.horizon != horizon:
                raise StoreError("the state store forgets faster than it can be read")
            rows.update({(row.kind, row.name): row for row in found.objects})
        old, new = self._mirror, Mirror(horizon)
        for number, row in enumerate(sorted(rows.values(), key=lambda row: row.revision)):
            new.take(row)
            if number % 100 == 99:
                await asyncio.sleep(0)  # some 5 ms; nobody sees the new one before it is complete
        new.revision = found.revision
        self._mirror, self._loaded = new, True
        for kind in KINDS:
            for change in old.all(kind):
                if new.get(kind, change.name) is None and new.past(kind, change.name, change.revision) is None:
                    new.remember_removed(replace(change, revision=new.revision, deleted=True))
        for follower in list(self._followers):
            follower.lose("changes may have been missed")
        for waiting in self._waiters.values():
            _wake(waiting)

    # ----- what is over -----

    async def _sweep_loop(self) -> None:
        while not self._stopped:
            await asyncio.sleep(SWEEP)
            try:
                await self.sweep()
            except Exception:
                logger.exception("what is over could not be swept from the book of approvals")

    async def sweep(self) -> None:
        """
        End what is past its time and remove what ended long ago; nothing in the store does so by itself.

        Several processes do it; each change is made once, since each is made from a revision.
        """
        now, excess = self._clock(), set[Key]()
        if len(self._mirror) > MAX_ENTRIES or self._mirror.bytes > MAX_BYTES:
            excess = self._mirror.excess(now, int(MAX_ENTRIES * ROOM), int(MAX_BYTES * ROOM), SWEEP_ENTRIES)
        keys = list(dict.fromkeys((*excess, *self._mirror.take_due(now, SWEEP_ENTRIES))))
        # Together, so that they share a transaction.
        ends = (self._end(*key, now, at_once=key in excess) for key in keys)
        done = await asyncio.gather(*ends, return_exceptions=True)
        trouble = ""
        for key, error in zip(keys, done, strict=True):
            there = self.get(*key)
            if there is not None or self._mirror.broken(*key) is not None:
                self._mirror.queue(key, max(mirror.due(there.entry) if there else now, now + SWEEP))
            if isinstance(error, StoreError):
                trouble = str(error)
            elif error is not None and not isinstance(error, Missing | Changed):
                logger.error("%s %r cannot be swept (%s)", *key, type(error).__name__)
        if keys:
            self._say("write", trouble)

    async def _end(self, kind: str, name: str, now: float, *, at_once: bool) -> None:
        broken, there = self._mirror.broken(kind, name), self.get(kind, name)
        if broken is not None:
            if now >= broken.at + KEPT:
                with contextlib.suppress(Conflict, Absent):
                    await self._store.apply([Delete(kind, name, broken.revision)], now)
                await self.catch_up()
        elif there is None:
            return
        elif isinstance(there.entry, Record) and expire(there.entry, now) is not there.entry:
            await self.step(kind, name, lambda entry: expire(entry, now))
        elif mirror.over(there.entry, now) and (at_once or now >= mirror.due(there.entry)):
            await self.remove(kind, name, there.revision)


def _encoded(entry: Entry) -> bytes:
    try:
        return codec.encode(entry)
    except codec.Damaged as e:
        raise StoreError(f"{entry.name} cannot be kept: {e}") from e


def _wake(waiting: Iterable[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
