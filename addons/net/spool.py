"""
The spool: what is to leave the machine, kept on disk until every receiver has taken it.

Segments of lines, appended by the recorder's thread; each receiver has a file that says how far it
came. A killed process loses nothing; a machine that loses power may lose the last second here, but
not in the recordings. When receivers are away for so long that the spool is full, the oldest
segment goes, and a line says how much that was.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from addons.core import chain, shipforms
from addons.net import files

logger = logging.getLogger(__name__)

SEGMENT = 8 * 1024 * 1024  # bytes; also the piece that goes at once when the spool is full
FULL = 1024 * 1024 * 1024  # bytes of all segments
CURSOR = ".cursor"
LOCK = ".lock"
MAX_SPOOLS = 9  # in one state folder; two, while one gateway takes over from another


class InUse(OSError):
    """Another process has this spool; two that number segments in one folder would lose lines."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A place in the spool: between two lines."""

    segment: int
    offset: int  # bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines, and the place after them."""

    lines: tuple[bytes, ...]
    end: Place


class Spool:
    """Lines in, batches out. Appending and reading may be in different threads. Raises OSError."""

    def __init__(self, folder: Path, *, segment: int = SEGMENT, full: int = FULL, clock: Callable[[], str]) -> None:
        self._folder = files.private_folder(folder)
        self._held = _hold(self._folder)
        self._segment = segment
        self._full = full
        self._clock = clock
        self._lock = threading.Lock()
        self._wake: list[Callable[[], None]] = []
        self._sizes = {number: self._path(number).stat().st_size for number in self._there()}
        self._fd = -1
        self._dirty = False
        self._open(max(self._sizes, default=1))

    # ----- appending -----

    def append(self, lines: Sequence[bytes]) -> None:
        """Lines without their ends. All of them, or OSError."""
        data = b"".join(line + b"\n" for line in lines)
        with self._lock:
            if self._sizes[self._last] + len(data) > self._segment and self._sizes[self._last]:
                self._open(self._last + 1)
            self._drop_oldest()
            self._write(data)
        for wake in self._wake:
            wake()

    def on_append(self, wake: Callable[[], None]) -> None:
        """Called in the appending thread."""
        self._wake.append(wake)

    def sync(self) -> None:
        with self._lock:
            if self._dirty and self._fd >= 0:
                os.fsync(self._fd)
                self._dirty = False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sync()
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            if self._held >= 0:
                os.close(self._held)
                self._held = -1

    def _write(self, data: bytes) -> None:
        before = self._sizes[self._last]
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, before)  # half a line would join with the next
            raise
        self._sizes[self._last] = before + len(data)
        self._dirty = True

    def _open(self, number: int) -> None:
        if self._fd >= 0:
            os.fsync(self._fd)
            os.close(self._fd)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._path(number), flags, 0o600)
        self._last = number
        self._sizes[number] = self._cut_half()

    def _cut_half(self) -> int:
        """What a killed process left of a line is no line. Returns the size."""
        size = os.fstat(self._fd).st_size
        back = min(size, chain.MAX_LINE)
        tail = os.pread(self._fd, back, size - back)
        rest = len(tail) - (tail.rfind(b"\n") + 1)
        if rest:
            os.ftruncate(self._fd, size - rest)
        return size - rest

    def _drop_oldest(self) -> None:
        while len(self._sizes) > 1 and sum(self._sizes.values()) > self._full:
            oldest = min(self._sizes)
            path = self._path(oldest)
            size = self._sizes.pop(oldest)
            # Those who have taken it lose nothing; whether all have, only their files say.
            if any(place.segment <= oldest for place in self.cursors().values()):
                lines = path.read_bytes().count(b"\n")
                logger.error("the buffer of records to be shipped is full: %d lines were dropped from it", lines)
                self._write(shipforms.dropped(lines, size, self._clock()) + b"\n")
            path.unlink(missing_ok=True)

    # ----- reading -----

    def read(self, place: Place, *, lines: int = 500, size: int = 1024 * 1024) -> Batch:
        """At most so many lines and about so many bytes from this place on; none when there are no more."""
        with self._lock:
            numbers = sorted(self._sizes)
            sizes = dict(self._sizes)
        if place.segment not in sizes:
            later = [number for number in numbers if number > place.segment]
            place = Place(later[0] if later else numbers[-1], 0)
        while place.offset >= sizes[place.segment]:
            later = [number for number in numbers if number > place.segment]
            if not later:
                return Batch((), place)
            place = Place(later[0], 0)
        found: list[bytes] = []
        at = place.offset
        try:
            with self._path(place.segment).open("rb") as file:
                file.seek(at)
                while len(found) < lines and (at - place.offset < size or not found) and at < sizes[place.segment]:
                    line = file.readline()
                    if not line.endswith(b"\n"):
                        break
                    found.append(line[:-1])
                    at += len(line)
        except FileNotFoundError:
            return Batch((), Place(place.segment + 1, 0))  # dropped at this moment
        return Batch(tuple(found), Place(place.segment, at))

    def cursor(self, name: str) -> Place:
        """How far a receiver came; one that is new begins with what comes from now on."""
        path = self._folder / f"{name}{CURSOR}"
        try:
            value = json.loads(path.read_bytes())
            return Place(int(value["segment"]), int(value["offset"]))
        except FileNotFoundError:
            with self._lock:
                place = Place(self._last, self._sizes[self._last])
            self.move(name, place)
            return place
        except (ValueError, KeyError, TypeError):
            # direction: twice is better than never.
            logger.warning("%s was unreadable; everything that is still there is shipped again", path)
            return Place(min(self._there(), default=1), 0)

    def move(self, name: str, place: Place) -> None:
        """What is before this place was taken."""
        value = json.dumps({"segment": place.segment, "offset": place.offset}).encode()
        files.write_private(self._folder / f"{name}{CURSOR}", value)

    def cursors(self) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for path in self._folder.glob(f"*{CURSOR}"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                value = json.loads(path.read_bytes())
                found[path.name.removesuffix(CURSOR)] = Place(int(value["segment"]), int(value["offset"]))
        return found

    def forget(self, names: Sequence[str]) -> None:
        """Receivers that are not wanted any more do not keep segments."""
        for path in self._folder.glob(f"*{CURSOR}"):
            if path.name.removesuffix(CURSOR) not in names:
                path.unlink(missing_ok=True)

    def trim(self) -> None:
        """Remove the segments that every receiver has taken."""
        places = self.cursors().values()
        with self._lock:
            least = min((place.segment for place in places), default=self._last)
            for number in [n for n in self._sizes if n < least and n != self._last]:
                del self._sizes[number]
                self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:012d}.jsonl"

    def _there(self) -> list[int]:
        return sorted(int(p.stem) for p in self._folder.glob("*.jsonl") if p.stem.isdigit())


def _hold(folder: Path) -> int:
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise InUse(errno.EAGAIN, "is used by another gateway") from None
    return fd


def first_free(state: Path, *, clock: Callable[[], str]) -> Spool:
    """A spool of the state folder that no other process has: while one takes over from another there are two."""
    for number in range(1, MAX_SPOOLS + 1):
        with contextlib.suppress(InUse):
            return Spool(state / ("ship" if number == 1 else f"ship-{number}"), clock=clock)
    raise InUse(errno.EAGAIN, f"{MAX_SPOOLS} gateways ship from {state} already")
