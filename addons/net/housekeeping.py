"""
Housekeeping of recordings: what a killed gateway left open is closed, what is closed is compressed,
what is old is removed. In a thread of its own, beside the recorder; only what signs runs in his.

Nothing that a running recorder writes is touched. What is removed leaves a signed checkpoint that
says so: otherwise it would look like a loss.
"""

import contextlib
import gzip
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from addons.core import auditevents, chain, chainverify, sessions
from addons.core.chain import ChainError, Size
from addons.net import files
from addons.net.recorder import Recorder
from addons.net.recordfiles import checkpoint_files
from addons.net.recordings import COMPRESSED, HIDDEN, DiskFolder, RecordingError, find_sessions, load

logger = logging.getLogger(__name__)

EVERY = 600.0  # seconds between rounds
DAY = 24 * 3600.0
BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long recordings are kept. 0 turns a limit off."""

    days: int = 90
    size: int = 0  # bytes of all recordings together; the oldest go first
    compress: bool = False  # closed sessions as gzip; mitmweb -r then needs gunzip before


class Housekeeper:
    """Rounds of housekeeping for one recorder, until it is stopped."""

    def __init__(self, recorder: Recorder, keeping: Keeping, *, clock: Callable[[], float] = time.time) -> None:
        self._recorder = recorder
        self._root = recorder.settings.folder
        self._keeping = keeping
        self._clock = clock
        self._stop = threading.Event()
        # What is closed does not change: of thousands of sessions only the new ones are read in each round.
        self._known: dict[str, tuple[sessions.Index, int]] = {}
        self._first = True
        self._thread = threading.Thread(target=self._run, name="tollgate housekeeping", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.round()
            except Exception:  # the next round may do better; recording does not hang on it
                logger.exception("housekeeping of the recordings failed")
            self._stop.wait(EVERY)

    def round(self) -> None:
        """Close what was left open, remove what is too old or too much, compress."""
        open_now = self._recorder.open_paths()
        used: dict[str, int] = {}
        today = auditevents.timestamp(self._clock())[:10]
        closed: list[tuple[str, sessions.Index, int]] = []
        there = find_sessions(self._root)
        self._known = {path: self._known[path] for path in there if path in self._known}
        for path in there:
            if self._stop.is_set():
                return
            if path in open_now:
                continue
            try:
                index, size = self._known.get(path) or self._look(path)
            except (OSError, RecordingError) as e:
                logger.warning("%s is left alone: %s", path, e)
                continue
            if path.startswith(today):
                used[index.username] = used.get(index.username, 0) + index.size
            closed.append((path, index, size))
        if self._first:
            self._first = False
            self._recorder.submit(lambda: self._recorder.use_sizes(used, today))
        self._retain(closed)
        if self._keeping.compress:
            for path, index, _ in closed:
                folder = self._root / path
                if not self._stop.is_set() and folder.is_dir() and _compress(folder):
                    self._known[path] = (index, DiskFolder(folder).size())

    def _look(self, path: str) -> tuple[sessions.Index, int]:
        """A session that is not open here: closed, if it was not. Raises OSError, RecordingError."""
        found = load(self._root, path)
        if found.index.closed:
            self._known[path] = (found.index, found.folder.size())
            return self._known[path]
        return self.recover(path), found.folder.size()  # known once its index says so

    # ----- closing -----

    def recover(self, path: str) -> sessions.Index:
        """A session that a gateway left open: cut to what is whole, said and signed. Raises OSError."""
        folder = self._root / path
        whole = _whole(folder)
        cut = [_cut(folder / name, length, name) for name, length in whole.lengths.items()]
        notes = [note for note in (*cut, whole.trouble) if note]
        note = "; ".join(notes) if notes else "nothing was lost"
        # Only what must be read is read: the digests of what grew beside the events.
        growing = {name: _size(folder / name) for name in whole.growing}
        uid = whole.uid
        known = _index_or_none(self._root, path)
        size = DiskFolder(folder).size()
        index = sessions.index_of(
            whole.tally,
            uid=uid or (known.uid if known else ""),
            path=path,
            closed=True,
            size=size,
            username=known.username if known else "",
            started=known.started if known else "",
            part=known.part if known else 1,
            continues=known.continues if known else "",
            note=note,
        )
        if not index.uid:
            # Neither events nor an index: nothing is known of it, so nothing can be signed.
            raise RecordingError("it holds neither events nor an index")
        head = whole.head or chain.genesis(index.uid, path)

        def sign() -> None:
            self._recorder.sign_ended(path, index.uid, "recovered", whole.events, head, growing, note)
            files.write_private(folder / chainverify.INDEX, index.to_json())

        self._recorder.submit(sign)
        if notes:
            logger.warning("%s was left open by a gateway that ended: %s", path, note)
        return index

    # ----- retention -----

    def _retain(self, closed: list[tuple[str, sessions.Index, int]]) -> None:
        keeping, now = self._keeping, self._clock()
        total = sum(size for _, _, size in closed)
        for path, index, size in sorted(closed, key=lambda one: one[1].ended or one[0]):
            ended = auditevents.seconds(index.ended) or auditevents.seconds(f"{path[:10]}T00:00:00Z")
            age = (now - ended) / DAY
            if keeping.days and age > keeping.days:
                self._remove(path, index, f"older than {keeping.days} days")
            elif keeping.size and total > keeping.size:
                self._remove(path, index, f"over {keeping.size / 2**20:g} MiB in all")
            else:
                continue
            total -= size
        if keeping.days:
            for file in checkpoint_files(self._root)[:-1]:
                with contextlib.suppress(OSError):
                    if now - file.stat().st_mtime > (keeping.days + 1) * DAY:
                        file.unlink()

    def _remove(self, path: str, index: sessions.Index, why: str) -> None:
        folder = self._root / path
        whole = _Whole(uid=index.uid, events=index.events, head=chain.genesis(index.uid, path))
        with contextlib.suppress(OSError):
            whole = _whole(folder)

        def remove() -> None:
            # Signed first: what vanishes without a word is a loss.
            head = whole.head or chain.genesis(index.uid, path)
            self._recorder.sign_ended(path, index.uid, "removed", whole.events, head, {}, why)
            shutil.rmtree(folder)
            for parent in (folder.parent, folder.parent.parent):
                with contextlib.suppress(OSError):
                    parent.rmdir()  # only when it is empty
            logger.info("removed %s: %s", path, why)

        self._recorder.submit(remove)


@dataclass(slots=True)
class _Whole:
    """What of a session is whole, found by reading it."""

    uid: str = ""
    events: int = 0
    head: str = ""
    trouble: str = ""
    lengths: dict[str, int] = field(default_factory=dict)  # of the files that were written in step with events
    growing: tuple[str, ...] = ()
    tally: sessions.Tally = field(default_factory=sessions.Tally)


def _whole(folder: Path) -> _Whole:
    """Walk the events as far as they follow each other. Raises OSError."""
    found = _Whole()
    disk = DiskFolder(folder)
    names = disk.names()
    ended: set[str] = set()
    good = 0
    if chainverify.EVENTS in names:
        with disk.open(chainverify.EVENTS) as file:
            while (raw := file.readline(chain.MAX_LINE + 1)).endswith(b"\n"):
                try:
                    event, link = chain.read_line(raw[:-1])
                except ChainError as e:
                    found.trouble = f"line {found.events + 1} of {chainverify.EVENTS} was unreadable: {e}"
                    break
                if link.sequence != found.events + 1 or (found.head and link.previous != found.head):
                    # Not ours to mend: verify names what happened to it.
                    found.trouble = f"line {found.events + 1} of {chainverify.EVENTS} did not follow the one before"
                    break
                found.uid, found.events, found.head = link.uid, link.sequence, chain.digest(raw[:-1])
                good += len(raw)
                if link.flow is not None:
                    found.lengths[link.flow.file] = link.flow.end
                ended |= link.files.keys()
                found.tally.add(event)
        if not found.trouble:
            found.lengths[chainverify.EVENTS] = good
    if found.trouble:
        found.lengths = {}  # evidence stays as it is
    else:
        for name in (chainverify.FLOWS, chainverify.REQUESTS):
            if name in names:
                found.lengths.setdefault(name, 0)
    found.growing = tuple(sorted(names - chainverify.FIXED - ended))
    return found


def _cut(path: Path, length: int, name: str) -> str:
    """Cut a file to what is whole; a sentence about it, or "". Raises OSError."""
    if not path.exists():
        return ""
    size = path.stat().st_size
    if size <= length:
        return ""
    os.truncate(path, length)
    return f"{size - length} bytes of half a record were cut off {name}"


def _size(path: Path) -> Size:
    state, length = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
            length += len(block)
    return Size(length, state.hexdigest())


def _index_or_none(root: Path, path: str) -> sessions.Index | None:
    try:
        return sessions.read_index((root / path / chainverify.INDEX).read_bytes())
    except (OSError, sessions.SessionError):
        return None


def _compress(folder: Path) -> bool:
    """
    Every large file of a closed session as gzip; the plain one goes when the other is on disk.

    Returns whether anything was done.
    """
    done = False
    for path in sorted(folder.iterdir()):
        name = path.name
        if name.endswith(COMPRESSED) or name.startswith(HIDDEN) or name in (chainverify.INDEX, chainverify.CHECKPOINTS):
            continue
        packed = path.with_name(f"{name}{COMPRESSED}")
        half = path.with_name(f"{HIDDEN}{name}{COMPRESSED}")
        try:
            with path.open("rb") as plain, half.open("wb") as raw:
                os.fchmod(raw.fileno(), 0o600)
                # Without a time in it, so that the same session packs to the same bytes.
                with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as out:
                    shutil.copyfileobj(plain, out, BLOCK)
                raw.flush()
                os.fsync(raw.fileno())
            half.replace(packed)
            path.unlink()
            done = True
        except OSError as e:
            logger.warning("%s could not be compressed: %s", path, e.strerror or e)
            half.unlink(missing_ok=True)
            break
    return done
