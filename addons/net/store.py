"""
What the gateway must remember: behind one small interface, by default in SQLite.

One file, `state.db` in the state folder, shared by all gateway processes of the machine. Every
change is made in the store's one thread, in one transaction with the look that led to it, and
is on disk before the caller hears of it. All who wait share the next transaction, so that they
share its fsync too. A caller hears something within a second: a store that is busy or broken
is a `StoreError`, and whoever needed it must refuse.

Local disks only: SQLite's locks and its shared memory do not work over a network.
"""

import asyncio
import contextlib
import os
import queue
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from addons.core.budgets import Charge, Over, Reservation
from addons.net import files

FILE = "state.db"
APPLICATION_ID = 0x546F6C6C  # "Toll": PRAGMA application_id, so that no other program's file is taken for ours
BUSY = 0.5  # seconds to wait for another process's transaction, which takes milliseconds
ANSWER = 0.9  # seconds until a caller is told that the store did not answer; clients are promised one
OPENING = 5.0  # seconds to wait for other processes that open the same new file
MAX_BATCH = 256  # jobs in one transaction
MAX_WAITING = 10_000  # jobs; a disk that hangs must not fill the memory
PRUNE_EVERY = 60  # seconds between looks for charges that are over
PRUNE_ROWS = 5_000  # at most so many in one transaction, so that nobody waits long for it
TOMBSTONES = 600  # seconds that a removed object can still be heard of; the API server compacts after 300
PAGE = 500  # objects in one answer of `since`, so that a long look keeps no write waiting
MAX_DATA = 1024 * 1024  # bytes of one object; etcd, the other place for them, ends at 1.5 MiB

# One script per schema version; PRAGMA user_version is how many have run. Never edit one, add one.
MIGRATIONS = (
    """
    CREATE TABLE store (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL);
    INSERT INTO store VALUES (1, 0);
    CREATE TABLE spent (
        revision INTEGER NOT NULL,
        budget TEXT NOT NULL,
        key TEXT NOT NULL,
        at INTEGER NOT NULL,
        until INTEGER NOT NULL,
        weight INTEGER NOT NULL CHECK (weight > 0)
    );
    CREATE INDEX spent_window ON spent (budget, key, at, weight);
    CREATE INDEX spent_until ON spent (until);
    CREATE INDEX spent_revision ON spent (revision);
    """,
    """
    ALTER TABLE store ADD COLUMN horizon INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE objects (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        revision INTEGER NOT NULL UNIQUE,
        deleted INTEGER NOT NULL,
        at INTEGER NOT NULL,
        data BLOB NOT NULL CHECK (typeof(data) = 'blob'),
        PRIMARY KEY (kind, name)
    );
    CREATE INDEX objects_deleted ON objects (revision) WHERE deleted;
    """,
)

# File systems of other machines (Linux, /proc/self/mountinfo).
NETWORK = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
        *("ocfs2", "orangefs", "smb3", "smbfs"),
        *("fuse.ceph-fuse", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.juicefs", "fuse.mfs", "fuse.rclone"),
        *("fuse.s3fs", "fuse.sshfs"),
    }
)


class StoreError(Exception):
    """The store cannot be used, or did not answer in time; one sentence that says what to do."""


class Rejected(Exception):
    """The store works, and the change does not fit what it holds. Nothing was changed."""


class Exists(Rejected):
    """An object of that name is there already."""


class Conflict(Rejected):
    """The object is no longer at the revision that the change was made from."""


class Absent(Rejected):
    """There is no object of that name, or no longer."""


@dataclass(frozen=True, slots=True)
class Put:
    """Make the object (`revision=0`: it must not be there), or change it from exactly this revision."""

    kind: str
    name: str
    data: bytes
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the object; with a revision only from exactly that one."""

    kind: str
    name: str
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as its last change left it; of a deleted one, as it was before."""

    kind: str
    name: str
    revision: int  # of the store when it was changed; no two changes have the same
    data: bytes
    deleted: bool = False
    at: float = 0.0  # seconds since the epoch, when it was changed


@dataclass(frozen=True, slots=True)
class Changes:
    """
    What changed after a revision: each object once, as it is now, in the order of the last changes.

    Whoever asks from before the horizon may miss objects that were removed, and lists again from 0.
    """

    objects: tuple[Stored, ...]
    revision: int  # nothing up to here is missing
    horizon: int
    more: bool = False  # ask again from `revision`


class Store(Protocol):
    """
    What every store does. All raise StoreError, within a second.

    A second implementation must pass tests/addons/net/test_store.py as well.
    """

    async def reserve(self, charges: Sequence[Charge], now: float) -> Reservation:
        """Take from all budgets, or from none and say which are over. Once it returns, it is kept for good."""

    async def give_back(self, reservation: str) -> None:
        """What was reserved was not used. Once is enough and twice does no harm."""

    async def spent(self, now: float) -> Mapping[str, int]:
        """By budget (its full name), what is spent in its window by whoever has spent most; for metrics."""

    async def revision(self) -> int:
        """Grows with every change of anything in the store, over all processes."""

    async def apply(self, changes: Sequence[Put | Delete], now: float) -> tuple[int, ...]:
        """
        Make all the changes, or none; the revision of each. Raises Exists, Conflict, Absent as well.

        Once it returns, they are kept for good. With a StoreError nothing is changed, or it is
        taken back unless somebody has built on it meanwhile; only a crash leaves it in between.
        """

    async def since(self, revision: int, kind: str = "") -> Changes:
        """
        The objects that changed after this revision, in whatever process; 0 lists all. Cheap when none did.

        With a kind, of this kind only.
        """

    def close(self) -> None:
        """Finish what was asked for, and let go."""


class Transaction:
    """What a job works with: the database, and the next revision of the whole store."""

    __slots__ = ("changed", "db", "revision")

    def __init__(self, db: sqlite3.Connection, revision: int) -> None:
        self.db = db
        self.revision = revision
        self.changed = False

    def next_revision(self) -> int:
        self.revision += 1
        self.changed = True
        return self.revision


type Work[T] = Callable[[Transaction], T]


class _Job:
    """One piece of work, and who waits for it. `abandoned`: nobody does any more. `reads`: it changes nothing."""

    __slots__ = ("abandoned", "error", "future", "loop", "reads", "result", "undo", "work")

    def __init__(self, work: Work[Any], undo: Callable[[Any], Work[Any] | None] | None, *, reads: bool = False) -> None:
        self.work = work
        self.undo = undo
        self.reads = reads
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self.abandoned = False
        self.result: Any = None
        self.error: StoreError | Rejected | None = None

    @property
    def pointless(self) -> bool:
        """Its caller was refused before it began, and it is not one that must be done all the same."""
        return self.abandoned and (self.reads or self.undo is not None)


class SqliteStore:
    """The store in one SQLite file; with `path=None` in memory, which a restart forgets. Raises StoreError."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._name = str(path) if path else "the store in memory"
        self._db = _open(path)
        self._inode = _inode(path) if path else None
        self._pruned = self._buried = 0  # milliseconds since the epoch
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="tollgate store", daemon=True)
        self._thread.start()

    # ----- the interface -----

    async def reserve(self, charges: Sequence[Charge], now: float) -> Reservation:
        moment = _milliseconds(now)

        def work(transaction: Transaction) -> Reservation:
            self._prune(transaction, moment)
            return _reserve(transaction, charges, moment)

        def undo(reservation: Reservation) -> Work[None] | None:
            return (lambda t: _give_back(t, reservation.id)) if reservation.id else None

        return await self.write(work, undo)

    async def give_back(self, reservation: str) -> None:
        await self.write(lambda transaction: _give_back(transaction, reservation))

    async def spent(self, now: float) -> Mapping[str, int]:
        found: Mapping[str, int] = await self._ask(_Job(lambda t: _spent(t, _milliseconds(now)), None, reads=True))
        return found

    async def revision(self) -> int:
        return await self.write(lambda transaction: transaction.revision)

    async def apply(self, changes: Sequence[Put | Delete], now: float) -> tuple[int, ...]:
        moment = _milliseconds(now)
        for change in changes:
            if isinstance(change, Put) and len(change.data) > MAX_DATA:
                raise StoreError(f"{change.name} is too large to be kept ({len(change.data)} bytes of {MAX_DATA})")

        def work(transaction: Transaction) -> tuple[_Done, ...]:
            self._bury(transaction, moment)
            return tuple(_change(transaction, change, moment) for change in changes)

        def undo(done: tuple[_Done, ...]) -> Work[None]:
            return lambda transaction: _undo(transaction, done, moment)

        return tuple(done.revision for done in await self.write(work, undo))

    async def since(self, revision: int, kind: str = "") -> Changes:
        found: Changes = await self._ask(
            _Job(lambda transaction: _since(transaction, revision, kind), None, reads=True)
        )
        return found

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            self._thread.join(2 * ANSWER)  # direction: a disk that hangs must not keep the gateway from ending

    # ----- between the event loop and the thread -----

    async def write[T](self, work: Work[T], undo: Callable[[T], Work[Any] | None] | None = None) -> T:
        """
        Run the work in the next transaction; it returns when that is on disk.

        `undo` gives the work that takes back what was done when nobody waited for it any more.
        """
        result: T = await self._ask(_Job(work, undo))
        return result

    async def _ask(self, job: _Job) -> Any:
        if self._closed:
            raise StoreError(f"{self._name} is closed")
        if self._jobs.qsize() >= MAX_WAITING:
            raise StoreError(f"{self._name} does not keep up")
        self._jobs.put(job)
        try:
            # Neither the timeout nor a cancellation of the caller reaches the job's future: a hook
            # that ends with CancelledError would hang its flow for ever.
            await asyncio.wait((job.future,), timeout=ANSWER)
        finally:
            job.abandoned = not job.future.done()
        if job.abandoned or job.future.cancelled():
            raise StoreError(f"{self._name} did not answer within a second")
        if job.error is not None:
            raise job.error
        return job.result

    def _finish(self, job: _Job) -> None:
        """On the loop: so that `abandoned` is never set and read at the same time."""
        if not job.abandoned:
            if not job.future.done():
                job.future.set_result(None)
        elif job.undo is not None and job.error is None and (work := job.undo(job.result)) is not None:
            # Refused for lateness, so nothing was sent: nothing is spent either.
            self._jobs.put(_Job(work, None))

    def _run(self) -> None:
        ended = False
        while not ended:
            jobs = [self._jobs.get()]
            with contextlib.suppress(queue.Empty):
                while len(jobs) < MAX_BATCH:
                    jobs.append(self._jobs.get_nowait())
            ended = None in jobs
            # What nobody waits for any more is not begun: its caller was refused.
            work = [job for job in jobs if job is not None and not job.pointless]
            # Looks come after, see the changes made here, and wait for no other process.
            for begin, some in (
                ("BEGIN IMMEDIATE", [job for job in work if not job.reads]),
                ("BEGIN", [job for job in work if job.reads]),
            ):
                if some:
                    self._transact(some, begin)
                for job in some:
                    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to hear it
                        job.loop.call_soon_threadsafe(self._finish, job)
        self._db.close()

    def _transact(self, jobs: Sequence[_Job], begin: str) -> None:
        """All of the jobs in one transaction. An error of the database fails all of them, none is half done."""
        db = self._db
        try:
            self._still_there()
            db.execute(begin)
            (revision,) = db.execute("SELECT revision FROM store").fetchone()
            _check_version(self._name, db)  # a newer gateway may have changed the file meanwhile
            transaction = Transaction(db, revision)
            for job in jobs:
                if job.pointless:  # by now: another process held the file, or the jobs before took long
                    job.error = StoreError(f"{self._name} came to it too late")
                else:
                    self._do(transaction, job)
            if transaction.changed:
                db.execute("UPDATE store SET revision = ?", (transaction.revision,))
            db.execute("COMMIT")
        except (sqlite3.Error, StoreError, OSError, TypeError) as e:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            error = e if isinstance(e, StoreError) else StoreError(sentence(self._name, e))
            for job in jobs:
                job.error = error

    def _do(self, transaction: Transaction, job: _Job) -> None:
        """One job. Its own mistake is its own: the others of the transaction stand."""
        transaction.db.execute("SAVEPOINT job")
        before = transaction.revision
        try:
            job.result = job.work(transaction)
        except sqlite3.DatabaseError:
            raise  # SQLite may have rolled back everything
        except Exception as e:  # noqa: BLE001 -- whatever it is, this caller must be refused and the thread go on
            transaction.db.execute("ROLLBACK TO job")
            transaction.revision = before
            if isinstance(e, Rejected):
                job.error = e  # a sentence of ours, which the caller can act on
            else:
                job.error = StoreError(f"{self._name} could not do that ({type(e).__name__})")
        transaction.db.execute("RELEASE job")

    def _still_there(self) -> None:
        """A file that was removed or replaced is still written to, and seen by nobody else: that spends twice."""
        if self.path is not None and _inode(self.path) != self._inode:
            raise StoreError(f"{self._name} was removed or replaced while in use; restart the gateway")

    def _prune(self, transaction: Transaction, moment: int) -> None:
        if 0 <= moment - self._pruned < PRUNE_EVERY * 1000:
            return
        gone = transaction.db.execute(
            "DELETE FROM spent WHERE rowid IN (SELECT rowid FROM spent WHERE until <= ? LIMIT ?)", (moment, PRUNE_ROWS)
        ).rowcount
        if gone < PRUNE_ROWS:
            self._pruned = moment

    def _bury(self, transaction: Transaction, moment: int) -> None:
        """Forget removed objects after a while, oldest first; who has not heard of them by then lists again."""
        if 0 <= moment - self._buried < PRUNE_EVERY * 1000:
            return
        self._buried = moment
        old = (moment - TOMBSTONES * 1000,)
        last, rows = transaction.db.execute(
            "SELECT max(revision), count(*) FROM"
            " (SELECT revision FROM objects WHERE deleted AND at <= ? ORDER BY revision LIMIT ?)",
            (*old, PRUNE_ROWS),
        ).fetchone()
        if rows:
            transaction.db.execute("DELETE FROM objects WHERE deleted AND at <= ? AND revision <= ?", (*old, last))
            transaction.db.execute("UPDATE store SET horizon = max(horizon, ?)", (last,))


def _milliseconds(seconds: float) -> int:
    # Whole numbers: what is free at T + window must be free when the clock says so, not one rounding later.
    return int(seconds * 1000)


def _reserve(transaction: Transaction, charges: Sequence[Charge], moment: int) -> Reservation:
    db, over = transaction.db, []
    for charge in charges:
        budget = charge.budget
        where = (budget.full_name, charge.key, moment - budget.window * 1000)
        (spent,) = db.execute(
            "SELECT coalesce(sum(weight), 0) FROM spent WHERE budget = ? AND key = ? AND at > ?", where
        ).fetchone()
        if spent + charge.weight > budget.limit:
            over.append(Over(charge, spent, _free_at(db, charge, where, spent) / 1000))
    if over:
        return Reservation(over=tuple(over))
    revision = transaction.next_revision()
    db.executemany(
        "INSERT INTO spent (revision, budget, key, at, until, weight) VALUES (?, ?, ?, ?, ?, ?)",
        [(revision, c.budget.full_name, c.key, moment, moment + c.budget.window * 1000, c.weight) for c in charges],
    )
    return Reservation(str(revision))


def _free_at(db: sqlite3.Connection, charge: Charge, where: tuple[str, str, int], spent: int) -> int:
    """When enough of what is spent is out of the window; 0 when it never fits."""
    if charge.weight > charge.budget.limit:
        return 0
    needed = spent + charge.weight - charge.budget.limit
    rows = db.execute("SELECT at, weight FROM spent WHERE budget = ? AND key = ? AND at > ? ORDER BY at", where)
    for at, weight in rows:
        needed -= weight
        if needed <= 0:
            return int(at) + charge.budget.window * 1000
    return 0


def _spent(transaction: Transaction, moment: int) -> dict[str, int]:
    rows = transaction.db.execute(
        "SELECT budget, max(total) FROM"
        " (SELECT budget, sum(weight) AS total FROM spent WHERE until > ? GROUP BY budget, key) GROUP BY budget",
        (moment,),
    )
    return {str(budget): int(total) for budget, total in rows}


def _give_back(transaction: Transaction, reservation: str) -> None:
    gone = transaction.db.execute("DELETE FROM spent WHERE revision = ?", (int(reservation),)).rowcount
    if gone:
        transaction.next_revision()


# ----- objects -----


@dataclass(frozen=True, slots=True)
class _Done:
    """A change that was made, and the data from before; None when there was no object."""

    kind: str
    name: str
    revision: int
    before: bytes | None


def _find(transaction: Transaction, kind: str, name: str) -> tuple[int, bytes] | None:
    row: tuple[int, bytes] | None = transaction.db.execute(
        "SELECT revision, data FROM objects WHERE kind = ? AND name = ? AND NOT deleted", (kind, name)
    ).fetchone()
    return row


def _change(transaction: Transaction, change: Put | Delete, moment: int) -> _Done:
    kind, name = change.kind, change.name
    found = _find(transaction, kind, name)
    if change.revision == 0 and isinstance(change, Put):
        if found is not None:
            raise Exists(f"{name} is there already")
    elif found is None:
        raise Absent(f"{name} is not there")
    elif change.revision is not None and change.revision != found[0]:
        raise Conflict(f"{name} was changed meanwhile")
    before = found[1] if found else None
    if isinstance(change, Put):
        revision = _put(transaction, kind, name, change.data, moment)
    else:
        revision = _delete(transaction, kind, name, moment)
    return _Done(kind, name, revision, before)


def _put(transaction: Transaction, kind: str, name: str, data: bytes, moment: int) -> int:
    revision = transaction.next_revision()
    # In the place of a removed one of that name: its followers hear of the new one.
    transaction.db.execute(
        "INSERT INTO objects (kind, name, revision, deleted, at, data) VALUES (?, ?, ?, 0, ?, ?)"
        " ON CONFLICT (kind, name) DO UPDATE"
        " SET revision = excluded.revision, deleted = 0, at = excluded.at, data = excluded.data",
        (kind, name, revision, moment, data),
    )
    return revision


def _delete(transaction: Transaction, kind: str, name: str, moment: int) -> int:
    revision = transaction.next_revision()
    transaction.db.execute(
        "UPDATE objects SET deleted = 1, revision = ?, at = ? WHERE kind = ? AND name = ?",
        (revision, moment, kind, name),
    )
    return revision


def _undo(transaction: Transaction, done: Sequence[_Done], moment: int) -> None:
    """
    Put everything back as it was, unless any of it has been changed again.

    Sound, since whoever asked was told that it failed and has sent nothing: a use that is put
    back was none. Where somebody has built on it (used what was approved), it stays: that is
    the direction in which nothing is used twice.
    """
    for one in done:
        # A revision belongs to one change only, so that this finds exactly ours.
        if not transaction.db.execute("SELECT 1 FROM objects WHERE revision = ?", (one.revision,)).fetchone():
            return
    for one in done:
        if one.before is None:
            _delete(transaction, one.kind, one.name, moment)
        else:
            _put(transaction, one.kind, one.name, one.before, moment)


def _since(transaction: Transaction, revision: int, kind: str) -> Changes:
    (horizon,) = transaction.db.execute("SELECT horizon FROM store").fetchone()
    rows = transaction.db.execute(
        "SELECT kind, name, revision, data, deleted, at FROM objects"
        " WHERE revision > ? AND (kind = ? OR ? = '') ORDER BY revision LIMIT ?",
        (revision, kind, kind, PAGE + 1),
    ).fetchall()
    more = len(rows) > PAGE
    found = tuple(
        Stored(kind, name, changed, data, bool(deleted), at / 1000)
        for kind, name, changed, data, deleted, at in rows[:PAGE]
    )
    return Changes(found, found[-1].revision if more else transaction.revision, horizon, more)


# ----- opening -----


def check(folder: Path) -> None:
    """Whether a store in this folder can be trusted, before anything is opened. Raises StoreError."""
    try:
        _check_owner(folder, folder.stat())
        for name in (FILE, f"{FILE}-wal", f"{FILE}-shm", f"{FILE}-journal"):
            file = folder / name
            with contextlib.suppress(FileNotFoundError):
                found = file.lstat()  # a link would lead to where others can write
                if not stat.S_ISREG(found.st_mode):
                    raise StoreError(f"{file} is not a plain file; move it away")
                _check_owner(file, found)
        mounts = Path("/proc/self/mountinfo")
        kind = network_file_system(mounts.read_text(errors="replace"), folder.resolve()) if mounts.exists() else ""
    except OSError as e:
        raise StoreError(f"{folder} cannot be used for state: {e.strerror or e}") from e
    if kind:
        raise StoreError(f"{folder} is on a network file system ({kind}), where SQLite loses changes; use a local disk")


def _check_owner(path: Path, found: os.stat_result) -> None:
    # Whoever can write it can give himself a budget, and later an approval.
    if found.st_uid not in (os.geteuid(), 0):
        raise StoreError(f"{path} belongs to another user; use a state folder of your own")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StoreError(f"{path} can be written by others; run chmod go-w on it after a look at who did")


def network_file_system(mountinfo: str, path: Path) -> str:
    """The type of the network file system that the path is on, or "" (proc(5), /proc/pid/mountinfo)."""
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        columns = before.split(" ")
        if not separator or len(columns) < 5:
            continue
        point = Path(columns[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n"))
        depth = len(point.parts)
        if depth >= best and path.is_relative_to(point):  # of two at one place the later covers the earlier
            best, kind = depth, after.split(" ")[0]
    return kind if kind in NETWORK else ""


def _inode(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 -- for every transaction; pathlib takes five times as long
    except OSError:
        return (0, 0)
    return found.st_dev, found.st_ino


def _open(path: Path | None) -> sqlite3.Connection:
    if path is None:
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        _migrate("memory", db)
        return db
    name = str(path)
    try:
        files.private_folder(path.parent)
    except OSError as e:
        raise StoreError(f"{path.parent} cannot be used for state: {e.strerror or e}") from e
    check(path.parent)
    try:
        # Made here, for its mode: SQLite would follow the umask. Its other files copy this one's. Never
        # opened when it is there: closing it again would drop the locks of this process (fcntl(2)).
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        pass
    except OSError as e:
        raise StoreError(f"{name} cannot be made: {e.strerror or e}") from e
    deadline = time.monotonic() + OPENING
    while True:
        try:
            return connect(name)
        except sqlite3.OperationalError as e:
            # Turning on the write-ahead log needs the file alone and does not wait for it.
            if _code(e) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise StoreError(sentence(name, e)) from e
            time.sleep(0.02)
        except sqlite3.Error as e:
            raise StoreError(sentence(name, e)) from e


def connect(name: str) -> sqlite3.Connection:
    """The database at this path, checked and with the newest schema. Raises StoreError and sqlite3.Error."""
    db = sqlite3.connect(name, timeout=BUSY, isolation_level=None, check_same_thread=False)
    try:
        db.execute("BEGIN")  # one look: another process may be making it at this moment
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and (application or tables):
            raise StoreError(f"{name} belongs to another program; move it away or use another state folder")
        _check_version(name, db)
        db.execute("COMMIT")
        (problem,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if problem != "ok":
            raise StoreError(_damaged(name))
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreError(f"{name} cannot have a write-ahead log; use a state folder on a local disk")
        db.execute("PRAGMA synchronous = FULL")  # what was answered survives a loss of power
        db.execute("PRAGMA trusted_schema = OFF")
        _migrate(name, db)
    except BaseException:
        db.close()
        raise
    return db


def _check_version(name: str, db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{name} was written by a newer version of Tollgate (schema {version}, this one knows {len(MIGRATIONS)}); "
            "run that version, or use another state folder"
        )


def _migrate(name: str, db: sqlite3.Connection) -> None:
    """Bring the schema up to date, in one transaction: of several processes that start, one does it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        _check_version(name, db)
        (version,) = db.execute("PRAGMA user_version").fetchone()
        for script in MIGRATIONS[version:]:
            for statement in filter(str.strip, script.split(";")):
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code


def _damaged(name: str) -> str:
    return (
        f"{name} is damaged; restore it, or move it and its -wal and -shm files away: "
        "then all counts begin anew and no approval is known any more"
    )


def sentence(name: str, error: BaseException) -> str:
    """What went wrong with the database of this name, for people."""
    code = _code(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{name} is busy: another process holds it"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or isinstance(error, TypeError):
        return _damaged(name)
    if code == sqlite3.SQLITE_FULL:
        return f"{name} cannot grow: the disk is full"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"{name} cannot be written; look at its owner, its mode and the disk"
    return f"{name} failed ({error})"
