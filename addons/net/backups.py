"""
The state in one file, and back.

A backup is made while gateways work (SQLite's online backup). A restore wants the folder to itself,
and what it puts there approves nothing: a yes that was used after the backup was made would else be
good once more. What was revoked, and spent of budgets, since then stays so where that can be read.
"""

import contextlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from addons.core import approvals
from addons.core.approvals import NotAllowed, Record
from addons.core.revocations import Revocation
from addons.net import codec, store
from addons.net.mirror import APPROVALS, GRANTS, REQUESTS, REVOCATIONS
from addons.net.store import StoreError

WHY = "the state was restored from a backup"
_BUSY = 2.0  # seconds to wait for a gateway's transaction; a gateway that runs keeps its lock for longer


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of what."""

    voided: int = 0  # approvals and access requests that were open
    ended: int = 0  # grants that were active
    dropped: int = 0  # entries that could not be read
    revocations: int = 0  # those of the state before that are not in the backup, or were lifted in it
    kept: str = ""  # where the state before is now; "" when there was none
    unread: bool = False  # the state before could not be read, so what was revoked since is not known


def backup(folder: Path, target: Path) -> None:
    """The state of this folder as one new file (0600). Raises StoreError."""
    source_file = folder / store.FILE
    if not source_file.is_file():
        raise StoreError(f"{folder} holds no state ({store.FILE}); give the gateway's folder with --state")
    store.check(folder)
    if target.exists():
        raise StoreError(f"{target} is there already; give another name")
    try:
        with (
            contextlib.closing(store.connect(str(source_file))) as source,
            _new_file(target.parent, target.name) as temporary,
        ):
            with contextlib.closing(sqlite3.connect(temporary)) as copy:
                source.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # all of it in the one file
                _check(copy, str(target))
            _synced(temporary)
            os.link(temporary, target)  # not over one that was made meanwhile
            _synced(target.parent)
    except sqlite3.Error as e:
        raise StoreError(store.sentence(str(source_file), e)) from e
    except OSError as e:
        raise StoreError(f"{target} cannot be written: {e.strerror or e}") from e


def restore(folder: Path, source: Path, now: float) -> Restored:
    """
    Put a backup in the place of the state of this folder, which no gateway may use meanwhile. Raises StoreError.

    The state before is moved aside, not removed.
    """
    if not source.is_file():
        raise StoreError(f"{source} is no file")
    target = folder / store.FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        store.check(folder)
        with _alone(target) as before, _new_file(folder, f".{store.FILE}") as temporary:
            _copied(source, temporary)
            with contextlib.closing(store.connect(str(temporary))) as db:
                done = _made_safe(db, before, now)
                db.execute("PRAGMA journal_mode = DELETE")
            _synced(temporary)
            if before is not None:
                before.close()  # all of it is in the one file then
            kept = _moved_aside(target, now)
            temporary.rename(target)
            _synced(folder)
    except sqlite3.Error as e:
        raise StoreError(store.sentence(str(source), e)) from e
    except OSError as e:
        raise StoreError(f"{folder} cannot be restored to: {e.strerror or e}") from e
    return Restored(done.voided, done.ended, done.dropped, done.revocations, kept, bool(kept) and before is None)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[sqlite3.Connection | None]:
    """The state as it is, with nobody else on it; None when there is none that can be read."""
    if not target.exists():
        yield None
        return
    db = sqlite3.connect(target, timeout=_BUSY, isolation_level=None)
    try:
        readable = True
        try:
            # With a write-ahead log every connection holds a shared lock on the file for as long as it is open.
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("BEGIN EXCLUSIVE")
            db.execute("COMMIT")
            _check(db, str(target))
            db.execute("SELECT count(*) FROM objects").fetchone()
            db.execute("SELECT count(*) FROM spent").fetchone()
        except sqlite3.Error as e:
            if e.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StoreError(f"a gateway works on {target.parent}; stop it first") from e
            readable = False
        except StoreError:
            readable = False  # damaged: what a restore is for
        yield db if readable else None
    finally:
        db.close()


def _check(db: sqlite3.Connection, name: str) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (problem,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if application != store.APPLICATION_ID or problem != "ok":
        raise StoreError(f"{name} is not the state of a gateway, or is damaged")


def _copied(source: Path, temporary: Path) -> None:
    # Read only: a backup on a read-only disk is one too, and it stays what it was.
    with (
        contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as old,
        contextlib.closing(sqlite3.connect(temporary)) as copy,
    ):
        _check(old, str(source))
        old.backup(copy)


def _made_safe(db: sqlite3.Connection, before: sqlite3.Connection | None, now: float) -> Restored:
    """Nothing of it approves anything, and it follows on the state before."""
    db.execute("BEGIN IMMEDIATE")
    try:
        (revision,) = db.execute("SELECT revision FROM store").fetchone()
        if before is not None:
            (other,) = before.execute("SELECT revision FROM store").fetchone()
            revision = max(revision, other)  # whoever has seen a later one must not take what comes for what he has
        turn = _Turn(db, revision, int(now * 1000))
        voided, ended, dropped = _voided(turn, now)
        revoked = _carried(turn, before, now) if before is not None else 0
        # Removals since are not known: whoever follows lists again.
        last = turn.revision + 1
        db.execute("UPDATE store SET revision = ?, horizon = ?", (last, last))
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    return Restored(voided, ended, dropped, revoked)


class _Turn:
    """The one transaction of a restore."""

    def __init__(self, db: sqlite3.Connection, revision: int, moment: int) -> None:
        self.db = db
        self.revision = revision
        self.moment = moment

    def rows(self, *kinds: str) -> list[tuple[str, str, bytes]]:
        marks = ",".join("?" * len(kinds))
        query = f"SELECT kind, name, data FROM objects WHERE NOT deleted AND kind IN ({marks})"  # noqa: S608 -- marks
        return self.db.execute(query, kinds).fetchall()

    def put(self, kind: str, name: str, data: bytes) -> None:
        self.revision += 1
        self.db.execute(
            "INSERT OR REPLACE INTO objects (kind, name, revision, deleted, at, data) VALUES (?, ?, ?, 0, ?, ?)",
            (kind, name, self.revision, self.moment, data),
        )

    def drop(self, kind: str, name: str) -> None:
        self.db.execute("DELETE FROM objects WHERE kind = ? AND name = ?", (kind, name))


def _voided(turn: _Turn, now: float) -> tuple[int, int, int]:
    voided = ended = dropped = 0
    for kind, name, data in turn.rows(APPROVALS, REQUESTS, GRANTS):
        try:
            entry = codec.grant(data) if kind == GRANTS else codec.record(data)
        except codec.Damaged:
            turn.drop(kind, name)  # direction: what cannot be read cannot be voided either
            dropped += 1
            continue
        if isinstance(entry, Record):
            if entry.open:
                turn.put(kind, name, codec.encode(approvals.void(entry, WHY, now)))
                voided += 1
            continue
        with contextlib.suppress(NotAllowed):  # it is over already
            turn.put(kind, name, codec.encode(approvals.revoke(entry, WHY, now)))
            ended += 1
    return voided, ended, dropped


def _carried(turn: _Turn, before: sqlite3.Connection, now: float) -> int:
    """Revocations and charges of the state before. Of a revocation that both have, the one in force counts."""
    there = {name: data for _, name, data in turn.rows(REVOCATIONS)}
    carried = 0
    query = "SELECT name, data FROM objects WHERE NOT deleted AND kind = ?"
    for name, data in before.execute(query, (REVOCATIONS,)).fetchall():
        if name in there and (there[name] == data or not _in_force(data, now)):
            continue
        turn.put(REVOCATIONS, name, data)
        carried += 1
    for row in before.execute("SELECT revision, budget, key, at, until, weight FROM spent").fetchall():
        same = "SELECT 1 FROM spent WHERE (revision, budget, key, at, weight) = (?, ?, ?, ?, ?)"
        if turn.db.execute(same, (*row[:4], row[5])).fetchone() is None:
            turn.db.execute("INSERT INTO spent (revision, budget, key, at, until, weight) VALUES (?,?,?,?,?,?)", row)
    return carried


def _in_force(data: bytes, now: float) -> bool:
    try:
        entry: Revocation = codec.revocation(data)
    except codec.Damaged:
        return True  # it stops everybody until somebody looks
    return entry.in_force(now)


# ----- files -----


@contextlib.contextmanager
def _new_file(folder: Path, name: str) -> Iterator[Path]:
    """A new empty file (0600) beside the target; what is left of it at the end goes."""
    handle, path = tempfile.mkstemp(dir=folder, prefix=f"{name}.")
    os.close(handle)
    temporary = Path(path)
    try:
        yield temporary
    finally:
        for ending in ("", "-wal", "-shm", "-journal"):
            Path(f"{temporary}{ending}").unlink(missing_ok=True)


def _moved_aside(target: Path, now: float) -> str:
    if not target.exists():
        return ""
    mark = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    kept = target.with_name(f"{target.name}.before-{mark}")
    number = 1
    while kept.exists():
        number += 1
        kept = target.with_name(f"{target.name}.before-{mark}-{number}")
    for ending in ("-wal", "-shm"):
        part = Path(f"{target}{ending}")
        if part.exists():
            part.rename(f"{kept}{ending}")
    target.rename(kept)
    return str(kept)


def _synced(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
