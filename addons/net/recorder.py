"""
The recorder: what becomes of records on disk.

One thread writes. It takes all that waits (at most 256 records), appends flows and then events,
syncs each file once, and then tells all who waited: `write` returns when the record is on disk,
and raises RecorderError when it is not, whatever the reason; the caller must refuse then.
`enqueue` is for reads: it does not wait, and what could not be written is counted in the next
event of the session.

An identity's contiguous activity is a session with a folder of its own. Its events are chained
(addons/core/chain.py); checkpoints are signed when it begins, every minute in which it grew, and
when it ends. A crash leaves at most a half line, which the next start cuts off and says so.

Nothing unmasked is written: without `mask_event` every record is refused.
"""

import asyncio
import contextlib
import logging
import os
import queue
import secrets
import shutil
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from addons.core import auditevents, chain, chainverify
from addons.core.chain import Part, SigningKey, Size
from addons.core.model import ANONYMOUS, NOTHING
from addons.net import files
from addons.net.recordfiles import (
    CheckpointLog,
    File,
    OpenSession,
    RecorderError,
    Saved,
    Settings,
    growing_name,
    load_key,
    lock,
    sync_folder,
    unwritable,
)

logger = logging.getLogger(__name__)

MAX_BATCH = 256  # records with one fsync
GATHER = 0.02  # seconds that records for which nobody waits are gathered: a thread that wakes for each costs as much
MAX_WAITING = 20_000  # records; a disk that hangs must not fill the memory
MAX_WAITING_BYTES = 256 * 1024 * 1024
ANSWER = 5.0  # seconds until a caller is told that the disk did not answer
SYNC_EVERY = 1.0  # seconds that an answer's record may be in the page cache only; a killed process loses none
SPACE_EVERY = 1.0  # seconds between looks at the free space
MAX_OPEN = 100  # sessions open at once, three files each; the one that is longest idle is closed for another
MAX_TROUBLES = 10_000  # identities whose trouble is remembered
MAX_COUNTS = 100  # reasons told apart in a count of the unauthenticated

MaskEvent = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Record:
    """One event of one identity, masked flow and pieces of growing files with it."""

    username: str
    event: Mapping[str, Any] = field(repr=False)
    flow: bytes = field(default=b"", repr=False)  # in mitmproxy's format, masked
    ahead: bool = False  # the flow has no answer yet
    files: Mapping[str, bytes] = field(default_factory=lambda: NOTHING, repr=False)  # appended, by name
    ends: tuple[str, ...] = ()  # files that are whole with this record
    person: bool = False  # an approved person's: may use the reserve

    @property
    def size(self) -> int:
        return len(self.flow) + sum(map(len, self.files.values())) + 1000


@dataclass(frozen=True, slots=True)
class Grow:
    """A piece of a file of a session, with no event of its own: streams are written as they go."""

    username: str
    files: Mapping[str, bytes] = field(repr=False)
    person: bool = False  # an approved person's: may use the reserve
    goes_on: bool = False  # of files that are there: one that is not has lost what was before
    failed: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)  # in the writer's thread

    @property
    def size(self) -> int:
        return sum(map(len, self.files.values()))


class _Job:
    __slots__ = ("durable", "error", "future", "loop", "work")

    def __init__(self, work: Record | Grow | Callable[[], None], future: "asyncio.Future[None] | None") -> None:
        self.work = work
        self.future = future
        self.loop = future.get_loop() if future is not None else None
        self.durable = future is not None
        self.error: RecorderError | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    """A job of a batch, once it is masked."""

    job: _Job
    event: dict[str, Any] | None = field(repr=False)  # None: only pieces of files
    size: int
    person: bool
    files: Mapping[str, bytes] = field(repr=False)
    goes_on: bool = False


class Recorder:
    """The recorder of one recordings folder. Raises RecorderError when it cannot begin."""

    def __init__(
        self,
        settings: Settings,
        mask_event: MaskEvent | None = None,
        *,
        ship: Callable[[Sequence[bytes]], None] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._mask = mask_event
        self._ship = ship
        self._clock = clock
        self._monotonic = monotonic
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._hurry = threading.Event()  # somebody waits for what is in the queue, or a batch is there
        self._waiting = 0
        self._waiting_bytes = 0
        self._arrived: deque[float] = deque()  # when those that wait came, in the order in which they are taken
        self._unsynced_since: float | None = None  # when the oldest came that is written and not synced
        self._counting = threading.Lock()
        self._sessions: OrderedDict[str, OpenSession] = OrderedDict()  # the longest idle first
        self._mine: set[str] = set()  # paths of sessions begun here and not closed
        self._dropped: dict[str, int] = {}  # reads that found the queue full, by identity
        self._counts: dict[str, int] = {}  # the unauthenticated, by reason
        self._counted_since = clock()
        self._used: dict[str, int] = {}  # bytes by identity, of this day
        self._used_day = ""
        self._free = 0
        self._looked = -SPACE_EVERY
        self._synced = self._signed = monotonic()
        self._unsynced = False
        self._closed = False
        self.trouble = ""  # why nobody's last batch could be written; "" while the disk is well
        self._troubles: OrderedDict[str, str] = OrderedDict()  # why an identity's last record could not be
        try:
            files.private_folder(settings.folder)
            self._lock = lock(settings.folder)
            self._key = load_key(settings)
            self._log = CheckpointLog(settings.folder, self._key)
        except OSError as e:
            raise RecorderError(f"{settings.folder} cannot be used for recordings: {e.strerror or e}") from e
        except chain.ChainError as e:
            raise RecorderError(f"the key for recordings cannot be used: {e}") from e
        self._thread = threading.Thread(target=self._run, name="tollgate recorder", daemon=True)
        self._thread.start()

    # ----- the interface -----

    @property
    def key(self) -> SigningKey:
        return self._key

    async def write(self, record: Record | Grow, *, durable: bool = True) -> None:
        """
        Returns when the record is on disk. Raises RecorderError when it is not.

        With `durable` false it returns at once, like `enqueue`.
        """
        if not durable:
            self.enqueue(record)
            return
        self._admit(record)
        job = _Job(record, asyncio.get_running_loop().create_future())
        self._put(job, record.size)
        assert job.future is not None  # noqa: S101 -- made above
        # No cancellation and no timeout reaches the future: a hook that ends with CancelledError
        # would hang its flow for ever.
        await asyncio.wait((job.future,), timeout=ANSWER)
        if not job.future.done():
            raise RecorderError("the disk did not answer in time, so nothing is recorded")
        if job.error is not None:
            raise job.error

    def enqueue(self, record: Record | Grow) -> None:
        """
        Written soon. Raises RecorderError when it is known already that it will not be.

        What fails later is counted, and said in the session's next event.
        """
        try:
            self._admit(record)
        except RecorderError:
            with self._counting:
                if len(self._dropped) < MAX_OPEN or record.username in self._dropped:
                    self._dropped[record.username] = self._dropped.get(record.username, 0) + 1
            raise
        self._put(_Job(record, None), record.size)

    def trouble_of(self, username: str) -> str:
        """Why this identity's records cannot be written, as far as is known: the disk, its quota, its files."""
        return self.trouble or self._troubles.get(username, "")

    @property
    def waiting(self) -> int:
        """Records that the writer has not finished with."""
        return self._waiting

    @property
    def lag(self) -> float:
        """Seconds since the oldest record came that is not on disk; 0.0: all are. Up to SYNC_EVERY is usual."""
        with self._counting:
            found = [*([self._unsynced_since] if self._unsynced_since is not None else ()), *islice(self._arrived, 1)]
        return max(self._monotonic() - min(found), 0.0) if found else 0.0

    def lose(self, username: str) -> None:
        """A record that could not be made; the identity's next event says so."""
        self._lose(username, 1)

    def count(self, reason: str) -> None:
        """One more request without an identity. Written once a minute, as a number."""
        with self._counting:
            if reason in self._counts or len(self._counts) < MAX_COUNTS:
                self._counts[reason] = self._counts.get(reason, 0) + 1
            else:
                self._counts["other"] = self._counts.get("other", 0) + 1

    async def checkpoint(self) -> None:
        """Sign what there is now, without waiting for the minute."""
        await self._do(lambda: self._sign_all(self._monotonic()))

    def close(self) -> None:
        """Write what waits, close every session, sign all of it."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            self._hurry.set()
            self._thread.join(2 * ANSWER)  # direction: a disk that hangs must not keep the gateway from ending

    # For those that keep house beside it (addons/net/housekeeping.py).

    def open_paths(self) -> set[str]:
        """The sessions that this process began and has not closed: nobody else may touch them."""
        with self._counting:
            return set(self._mine)

    def submit(self, work: Callable[[], None]) -> None:
        """Run this in the writer's thread: what signs checkpoints must be one thread."""
        if not self._closed:
            self._jobs.put(_Job(work, None))

    def sign_ended(
        self, path: str, uid: str, state: str, events: int, head: str, files: chain.Files, note: str
    ) -> None:
        """A checkpoint for a session of an earlier process. In the writer's thread only. Raises OSError."""
        self._sign(path, uid, state, events, head, files, note)

    def use_sizes(self, used: Mapping[str, int], day: str) -> None:
        """What identities have used of their quota before this process began."""
        if day == self._used_day or not self._used_day:
            self._used_day = day
            for username, size in used.items():
                self._used[username] = self._used.get(username, 0) + size

    # ----- between the event loop and the thread -----

    def _admit(self, record: Record | Grow) -> None:
        if self._mask is None:
            # direction: a secret that was written down is out for good.
            raise RecorderError("nothing is masked here, so nothing is recorded")
        if self._closed:
            raise RecorderError("the recorder is closed")
        if self._waiting >= MAX_WAITING or self._waiting_bytes + record.size > MAX_WAITING_BYTES:
            raise RecorderError("the disk does not keep up with what is to be recorded")

    def _put(self, job: _Job, size: int) -> None:
        with self._counting:
            self._waiting += 1
            self._waiting_bytes += size
            self._arrived.append(self._monotonic())
            self._jobs.put(job)  # never waits; inside, so that both are in the same order
        if job.durable or self._waiting >= MAX_BATCH:
            self._hurry.set()

    async def _do(self, work: Callable[[], None]) -> None:
        if self._closed:
            raise RecorderError("the recorder is closed")
        job = _Job(work, asyncio.get_running_loop().create_future())
        assert job.future is not None  # noqa: S101 -- made above
        self._jobs.put(job)
        self._hurry.set()
        await asyncio.wait((job.future,), timeout=ANSWER)
        if not job.future.done():
            raise RecorderError("the disk did not answer in time")
        if job.error is not None:
            raise job.error

    def _run(self) -> None:
        ended = False
        while not ended:
            jobs, ended = self._take()
            records = [job for job in jobs if not callable(job.work)]
            try:
                if records:
                    self._write_batch(records)
                for job in jobs:
                    if callable(job.work):
                        self._work(job)
                self._keep(last=ended)
            except Exception as e:  # the thread must go on, or every later request would wait for it
                logger.exception("the recorder failed")
                for job in jobs:
                    job.error = job.error or RecorderError(f"the recorder failed ({type(e).__name__})")
            with self._counting:
                self._waiting -= len(records)
                self._waiting_bytes -= sum(job.work.size for job in records if not callable(job.work))
                if not self._unsynced:
                    self._unsynced_since = None
                elif records and self._unsynced_since is None:
                    self._unsynced_since = self._arrived[0]
                for _ in records:
                    self._arrived.popleft()
            for job in jobs:
                if isinstance(job.work, Grow) and job.error is not None:
                    job.work.failed()
                if job.future is not None and job.loop is not None:
                    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to hear it
                        job.loop.call_soon_threadsafe(_resolve, job.future)
        self._end()

    def _take(self) -> tuple[list[_Job], bool]:
        """What waits, at most a batch; none when something else is due first."""
        now = self._monotonic()
        due = min(self._signed + self.settings.checkpoint_every, now + SYNC_EVERY)
        try:
            first = self._jobs.get(timeout=max(0.001, due - now))
        except queue.Empty:
            return [], False
        jobs, ended = [], first is None
        if first is not None:
            jobs.append(first)
            self._hurry.wait(GATHER)
        self._hurry.clear()  # before the queue is emptied: what comes meanwhile is taken, or hurries the next turn
        with contextlib.suppress(queue.Empty):
            while not ended and len(jobs) < MAX_BATCH:
                job = self._jobs.get_nowait()
                if job is None:
                    ended = True
                else:
                    jobs.append(job)
        return jobs, ended

    def _work(self, job: _Job) -> None:
        try:
            if callable(job.work):
                job.work()
        except (OSError, RecorderError) as e:
            job.error = e if isinstance(e, RecorderError) else unwritable(self.settings.folder, e)
        except Exception as e:  # it must not fail the records of the same batch
            logger.exception("work beside the recording failed")
            job.error = RecorderError(f"that failed ({type(e).__name__})")
        if job.error is not None and job.future is None:
            logger.error("%s", job.error)

    # ----- writing -----

    def _write_batch(self, jobs: Sequence[_Job]) -> None:
        by_user: dict[str, list[_Job]] = {}
        for job in jobs:
            if not callable(job.work):
                by_user.setdefault(job.work.username, []).append(job)
        trouble = ""
        for username, mine in by_user.items():
            try:
                self._write_session(username, mine)
            except RecorderError as e:
                trouble = str(e) if e.everybodys else trouble
                self._note_trouble(username, str(e))
                for job in mine:
                    job.error = job.error or e
                self._lose(username, sum(job.future is None for job in mine))
        if trouble and trouble != self.trouble:
            logger.error("%s", trouble)
        elif self.trouble and not trouble:
            logger.warning("recording works again")
        self.trouble = trouble

    def _note_trouble(self, username: str, trouble: str) -> None:
        if not trouble:
            if self._troubles.pop(username, None) and not self.trouble:
                logger.warning("recording works again for %r", username)
            return
        if self._troubles.get(username) != trouble and trouble != self.trouble:
            logger.error("%s", trouble)
        self._troubles[username] = trouble
        if len(self._troubles) > MAX_TROUBLES:
            self._troubles.popitem(last=False)

    def _lose(self, username: str, count: int) -> None:
        if count:
            with self._counting:
                if len(self._dropped) < MAX_OPEN or username in self._dropped:
                    self._dropped[username] = self._dropped.get(username, 0) + count

    def _write_session(self, username: str, jobs: Sequence[_Job]) -> None:
        """All records of one identity in a batch: appended, synced if somebody waits. Raises RecorderError."""
        entries = [entry for job in jobs if (entry := self._entry(job)) is not None]
        entries = self._within_bounds(username, entries)
        if not entries:
            return
        now = self._monotonic()
        session = self._session(username, now)
        session.lost += self._take_dropped(username)
        saved = Saved(session)
        try:
            lines = self._append_all(session, entries)
        except OSError as e:
            self._take_back(session, saved)
            raise unwritable(session.folder, e) from e
        except Exception as e:  # noqa: BLE001 -- half a record would be a hole in the chain
            self._take_back(session, saved)
            if len(entries) > 1:
                for entry in entries:  # one record's own misfortune is not that of the others
                    self._write_session(username, [entry.job])
                return
            why = str(e) if isinstance(e, chain.ChainError) else f"it failed ({type(e).__name__})"
            entries[0].job.error = RecorderError(f"a record cannot be written: {why}")
            self._count_lost(username, entries)
            return
        if any(entry.job.durable for entry in entries):
            self._sync(session)
        else:
            self._unsynced = True
        for entry in entries:
            if entry.event is not None:
                session.tally.add(entry.event)
        session.active = now
        if len(entries) == len(jobs):
            self._note_trouble(username, "")
        self._used[username] = self._used.get(username, 0) + sum(entry.size for entry in entries)
        self._shipped(lines)

    def _append_all(self, session: OpenSession, entries: Sequence["_Entry"]) -> list[bytes]:
        """Flows and pieces, then the lines of the events. Raises OSError, ChainError."""
        lines: list[bytes] = []
        flows: dict[File, bytearray] = {}  # written at once: each write costs a turn of the interpreter's lock
        for entry in entries:
            if entry.event is None:
                for name, data in entry.files.items():
                    if entry.goes_on and name not in session.files:
                        # Its session was given up after an error: a file without its beginning shows nothing.
                        raise chain.ChainError("the file that it goes on is not there any more")
                    session.file(growing_name(name)).append(data)
            elif isinstance(entry.job.work, Record):
                lines.append(self._append(session, entry.job.work, entry.event, flows))
        for file, copies in flows.items():
            file.append(copies)
        if lines:
            session.file(chainverify.EVENTS).append(b"".join(line + b"\n" for line in lines))
        return lines

    def _count_lost(self, username: str, entries: Sequence["_Entry"]) -> None:
        self._lose(username, sum(entry.job.future is None for entry in entries))

    def _entry(self, job: _Job) -> "_Entry | None":
        """A job with its event masked; None when that failed, which is this record's own misfortune."""
        work = job.work
        if callable(work):
            return None
        if isinstance(work, Grow):
            return _Entry(job, None, work.size, person=work.person, files=work.files, goes_on=work.goes_on)
        try:
            if self._mask is None:
                raise RecorderError("nothing is masked here, so nothing is recorded")
            masked = self._mask(dict(work.event))
            if not isinstance(masked, dict):
                raise TypeError("the mask gave no event")
            return _Entry(job, masked, work.size, person=work.person, files=work.files)
        except Exception as e:  # noqa: BLE001 -- whatever it is, what was not masked is not written
            # The text of it may quote what was to be masked, so only its kind is told.
            job.error = RecorderError(f"a record could not be masked ({type(e).__name__}), so it was not written")
            logger.error("%s", job.error)
            if job.future is None:
                self._lose(work.username, 1)
            return None

    def _append(
        self, session: OpenSession, record: Record, event: dict[str, Any], flows: dict[File, bytearray]
    ) -> bytes:
        """One record: its pieces into files, its flow to those of the batch; the line of its event is returned."""
        part: Part | None = None
        if record.flow:
            name = chainverify.REQUESTS if record.ahead else chainverify.FLOWS
            file = session.file(name)
            before = flows.setdefault(file, bytearray())
            part = Part(name, file.size + len(before), len(record.flow), chain.digest(record.flow))
            before += record.flow
        for name, data in record.files.items():
            session.file(growing_name(name)).append(data)
        ended: dict[str, Size] = {}
        for name in record.ends:
            if (grown := session.files.get(name)) is not None and grown.hash is not None:
                ended[name] = Size(grown.size, grown.hash.hexdigest())
                session.ended.add(name)
        if session.lost:
            notes = event.get("annotations") or {}
            event = {**event, "annotations": {**notes, auditevents.LOST: str(session.lost)}}
        line = chain.link(
            event,
            uid=session.chain_uid,
            sequence=session.sequence + 1,
            previous=session.head,
            flow=part,
            files=ended,
        )
        session.sequence += 1
        session.head = chain.digest(line)
        session.lost = 0
        return line

    def _take_dropped(self, username: str) -> int:
        with self._counting:
            return self._dropped.pop(username, 0)

    def _take_back(self, session: OpenSession, saved: Saved) -> None:
        """Nothing of a batch that failed stays. Where that fails as well, the session takes no more."""
        try:
            saved.restore()
        except OSError:
            self._abandon(session)

    def _abandon(self, session: OpenSession) -> None:
        """
        Its files may hold what nobody was told is there. The next record begins another session; the
        next start cuts this one to what is whole and signs that.
        """
        session.broken = True
        if self._sessions.get(session.username) is session:
            del self._sessions[session.username]
        for file in session.files.values():
            with contextlib.suppress(OSError):
                file.close()

    def _sync(self, session: OpenSession) -> None:
        """Flows before events: an event must not name bytes that are not there. Raises RecorderError."""
        try:
            for name, file in session.files.items():
                if name != chainverify.EVENTS:
                    file.sync()
                    if name in session.ended:
                        file.close()
            if (events := session.files.get(chainverify.EVENTS)) is not None:
                events.sync()
        except OSError as e:
            # After a failed fsync the kernel may call lost pages clean: a second one proves nothing.
            self._abandon(session)
            raise unwritable(session.folder, e) from e

    def _within_bounds(self, username: str, entries: Sequence["_Entry"]) -> list["_Entry"]:
        """Those that quota and reserve leave room for. Raises RecorderError when the disk cannot be asked."""
        now = self._monotonic()
        if now - self._looked >= SPACE_EVERY:
            self._looked = now
            try:
                at = os.statvfs(self.settings.folder)
            except OSError as e:
                raise unwritable(self.settings.folder, e) from e
            self._free = at.f_bavail * at.f_frsize
        day = auditevents.timestamp(self._clock())[:10]
        if day != self._used_day:
            self._used, self._used_day = {}, day
        used = self._used.get(username, 0)
        kept: list[_Entry] = []
        for entry in entries:
            trouble = "" if entry.person else self._out_of_bounds(username, used + entry.size, entry.size)
            if trouble:
                # An agent must not fill the disk, and then nobody could do anything any more.
                entry.job.error = RecorderError(trouble)
                self._note_trouble(username, trouble)
                self._count_lost(username, [entry])
                continue
            used += entry.size
            self._free -= entry.size
            kept.append(entry)
        return kept

    def _out_of_bounds(self, username: str, used: int, size: int) -> str:
        settings = self.settings
        if settings.reserve and self._free - size < settings.reserve:
            free = max(0, self._free) // 2**20
            return f"{settings.folder} has {free} MiB free, which are kept for approved people"
        if settings.quota and used > settings.quota:
            return f"identity {username!r} is over its quota of recordings ({settings.quota / 2**20:g} MiB a day)"
        return ""

    # ----- sessions -----

    def _session(self, username: str, now: float) -> OpenSession:
        """The identity's open session, or a new one. Raises RecorderError."""
        found = self._sessions.get(username)
        settings = self.settings
        if found is not None:
            # A stream that is being written belongs to this folder: it stays until that has ended.
            streams = bool(found.growing())
            idle = now - found.active > settings.idle
            full = settings.rotate_size and found.size >= settings.rotate_size
            old = settings.rotate_age and now - found.began >= settings.rotate_age
            if streams or not (idle or full or old):
                self._sessions.move_to_end(username)
                return found
            self._close_session(found)
            return self._open_session(username, now, None if idle else found)
        if len(self._sessions) >= MAX_OPEN:
            idlest = next((one for one in self._sessions.values() if not one.growing()), None)
            self._close_session(idlest or next(iter(self._sessions.values())))
        return self._open_session(username, now, None)

    def _open_session(self, username: str, now: float, before: OpenSession | None) -> OpenSession:
        uid = before.uid if before is not None else secrets.token_hex(4)
        part = before.part + 1 if before is not None else 1
        continues = before.path if before is not None else ""
        session = OpenSession(self.settings.folder, username, uid, part, continues, self._clock(), now)
        with self._counting:
            self._mine.add(session.path)
        signed = self._log.number
        try:
            for folder in (session.folder.parent.parent, session.folder.parent):
                folder.mkdir(mode=0o700, exist_ok=True)  # one by one: the mode is the last one's only
            session.folder.mkdir(mode=0o700)
            for folder in (session.folder.parent, session.folder.parent.parent, self.settings.folder):
                sync_folder(folder)
            files.write_private(session.folder / chainverify.INDEX, session.index(closed=False).to_json())
            # Before its first event: a session that vanishes with all its events is missed as well.
            self._sign_session(session, "open")
        except OSError as e:
            if self._log.number == signed:
                # A full disk must not be filled with folders of sessions that never began. One that is
                # signed stays, or it would be missed for ever.
                shutil.rmtree(session.folder, ignore_errors=True)
                with self._counting:
                    self._mine.discard(session.path)
            raise unwritable(session.folder, e) from e
        self._sessions[username] = session
        return session

    def _close_session(self, session: OpenSession, note: str = "") -> None:
        self._sessions.pop(session.username, None)
        try:
            self._sync(session)
            self._sign_session(session, "closed")
            files.write_private(session.folder / chainverify.INDEX, session.index(closed=True, note=note).to_json())
            with self._counting:
                self._mine.discard(session.path)
        except (OSError, RecorderError) as e:
            # Left open: the next start finds it and closes it.
            logger.error("session %s could not be closed: %s", session.path, e)
        for file in session.files.values():
            with contextlib.suppress(OSError):
                file.close()

    # ----- checkpoints -----

    def _sign_session(self, session: OpenSession, state: str) -> None:
        """Only what is synced is signed. Raises OSError."""
        growing = session.growing()
        self._sign(session.path, session.chain_uid, state, session.sequence, session.head, growing)
        session.signed, session.signed_files = session.sequence, growing

    def _sign(
        self, path: str, uid: str, state: str, events: int, head: str, growing: chain.Files, note: str = ""
    ) -> None:
        now = auditevents.timestamp(self._clock())
        self._shipped([self._log.sign(now, path, uid, state, events, head, growing, note)])

    def _sign_all(self, now: float) -> None:
        """A checkpoint for every session that has grown. Raises RecorderError."""
        self._signed = now
        trouble: RecorderError | None = None
        for session in list(self._sessions.values()):
            if session.sequence == session.signed and session.growing() == session.signed_files:
                continue
            try:
                self._sync(session)
                self._sign_session(session, "going")
                files.write_private(session.folder / chainverify.INDEX, session.index(closed=False).to_json())
            except (OSError, RecorderError) as e:
                trouble = e if isinstance(e, RecorderError) else unwritable(session.folder, e)
        if trouble is not None:
            raise trouble

    def _keep(self, *, last: bool) -> None:
        """What is due: counts, syncs, idle sessions, checkpoints."""
        now = self._monotonic()
        for session in list(self._sessions.values()):
            if now - session.active <= self.settings.idle:
                break  # they are in the order of their last records
            if not session.growing():
                self._close_session(session)
        if now - self._signed >= self.settings.checkpoint_every or last:
            self._write_counts()
            try:
                if not last:  # what ends now is signed as closed
                    self._sign_all(now)
            except RecorderError as e:
                logger.error("%s", e)
        if self._unsynced and (now - self._synced >= SYNC_EVERY or last):
            self._synced, self._unsynced = now, False
            for session in list(self._sessions.values()):
                try:
                    self._sync(session)
                except RecorderError as e:
                    logger.error("%s", e)

    def _write_counts(self) -> None:
        with self._counting:
            counts, self._counts = self._counts, {}
        since, self._counted_since = self._counted_since, self._clock()
        if counts:
            event = auditevents.counted(counts, since, self._counted_since, secrets.token_hex(16))
            self._write_batch([_Job(Record(ANONYMOUS.username, event), None)])

    def _shipped(self, lines: Sequence[bytes]) -> None:
        if self._ship is None or not lines:
            return
        try:
            self._ship(lines)
        except OSError as e:
            # It is in the recordings; what is to leave the machine is behind. Not a reason to stop requests.
            logger.error("records could not be put aside for shipping: %s", e.strerror or e)

    def _end(self) -> None:
        for session in list(self._sessions.values()):
            self._close_session(session)
        self._log.close()
        with contextlib.suppress(OSError):
            os.close(self._lock)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
