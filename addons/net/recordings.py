"""
Recordings as readers see them: sessions on disk, whole or compressed, being written or long closed.

What is broken is read as far as it goes, and said. Nothing is ever written here.
"""

import contextlib
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from addons.core import chain, chainverify, sessions
from addons.net.recordfiles import checkpoint_files

COMPRESSED = ".gz"
HIDDEN = "."  # names that begin so are not of the recording: half-written ones, the lock


class RecordingError(Exception):
    """There is no recording, or it cannot be read; one sentence that says what to do."""


class DiskFolder:
    """A session's folder. Names are those of the recording: `flows.mitm` also where it is `flows.mitm.gz`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> set[str]:
        found = (entry.name for entry in self.path.iterdir() if not entry.name.startswith(HIDDEN))
        return {name.removesuffix(COMPRESSED) for name in found}

    def open(self, name: str) -> BinaryIO:
        """Raises OSError; what is read from a damaged compressed file may raise OSError and EOFError."""
        try:
            return (self.path / name).open("rb")
        except FileNotFoundError:
            packed = self.path / f"{name}{COMPRESSED}"
            if not packed.exists():
                raise
            return cast(BinaryIO, gzip.open(packed, "rb"))

    def size(self) -> int:
        """Bytes on disk."""
        total = 0
        for entry in self.path.iterdir():
            with contextlib.suppress(OSError):
                total += entry.stat().st_size
        return total


def find_sessions(root: Path) -> list[str]:
    """
    The paths of all sessions below a recordings folder, in the order of their names. Raises OSError.

    By their names, not by what is in them: a session whose files are gone is still there.
    """
    found: list[str] = []
    for day in _folders(root):
        for identity in _folders(day):
            for session in _folders(identity):
                path = f"{day.name}/{identity.name}/{session.name}"
                if sessions.is_session_path(path):
                    found.append(path)
    return found


def _folders(path: Path) -> list[Path]:
    # Never through a link: it would lead out of the recordings.
    return sorted(e for e in path.iterdir() if e.is_dir() and not e.is_symlink() and not e.name.startswith(HIDDEN))


def checkpoint_lines(root: Path) -> Iterator[bytes]:
    """All checkpoint lines of a recordings folder, in their order. Raises OSError."""
    for path in checkpoint_files(root):
        with path.open("rb") as file:
            yield from file


@dataclass(slots=True)
class Read:
    """The events of a session, as far as they can be read, and what is to be said of them."""

    events: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_events(folder: DiskFolder) -> Read:
    """Never raises for what is in the files."""
    read = Read()
    for item in stream_events(folder):
        if isinstance(item, str):
            read.notes.append(item)
        else:
            read.events.append(item)
    return read


def stream_events(folder: DiskFolder) -> Iterator[dict[str, Any] | str]:
    """Events one after the other, and sentences about what could not be read."""
    number = 0
    try:
        with folder.open(chainverify.EVENTS) as file:
            while raw := file.readline(chain.MAX_LINE + 1):
                number += 1
                if not raw.endswith(b"\n"):
                    yield f"{chainverify.EVENTS} ends in half a line, which is left out"
                    return
                event = _event(raw)
                if event is None:
                    yield f"line {number} of {chainverify.EVENTS} is not an event and is left out"
                else:
                    yield event
    except FileNotFoundError:
        yield f"there is no {chainverify.EVENTS}"
    except (OSError, EOFError) as e:
        yield f"{chainverify.EVENTS} cannot be read after line {number} ({_why(e)})"


def _event(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _why(error: BaseException) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


@dataclass(frozen=True, slots=True)
class Found:
    """One session for a table: its index, made from its events where there is none."""

    path: str
    folder: DiskFolder
    index: sessions.Index
    notes: tuple[str, ...] = ()


def load(root: Path, path: str) -> Found:
    """Never raises for what is in the files; raises RecordingError for what is from a newer version."""
    folder = DiskFolder(root / path)
    notes: list[str] = []
    index = _index(folder, notes)
    if index is None:
        tally = sessions.Tally()
        read = read_events(folder)
        for event in read.events:
            tally.add(event)
        notes += read.notes
        index = sessions.index_of(tally, uid="", path=path, closed=False, size=folder.size())
    return Found(path, folder, index, tuple(notes))


def _index(folder: DiskFolder, notes: list[str]) -> sessions.Index | None:
    try:
        with folder.open(chainverify.INDEX) as file:
            raw = file.read(1024 * 1024)
    except OSError:
        notes.append(f"there is no {chainverify.INDEX}; all is read from the events")
        return None
    try:
        return sessions.read_index(raw)
    except sessions.SessionError as e:
        if "newer" in str(e):
            raise RecordingError(f"{folder.path}: {e}; use that version to read it") from None
        notes.append(f"{e}; all is read from the events")
        return None


def resolve(root: Path, name: str) -> str:
    """
    The session that a person means: its path, the end of it, or its id. Raises RecordingError.
    """
    wanted = name.rstrip("/")
    as_path = Path(wanted)
    with contextlib.suppress(ValueError, OSError):
        wanted = str(as_path.resolve().relative_to(root.resolve())) if as_path.is_dir() else wanted
    try:
        there = find_sessions(root)
    except OSError as e:
        raise RecordingError(f"{root} cannot be read: {e.strerror or e}") from None
    exact = [path for path in there if path == wanted]
    found = exact or [path for path in there if path.endswith(f"/{wanted}") or _uid(path) == wanted]
    if not found:
        found = [path for path in there if wanted and wanted in path]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RecordingError(f"there is no session {name!r} in {root}; see ./run.sh sessions")
    shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
    raise RecordingError(f"{name!r} can be {len(found)} sessions ({shown}); say more of it")


def _uid(path: str) -> str:
    return path.rsplit("/", 1)[-1][9:]


def is_root(path: Path) -> bool:
    """Whether it is a folder of recordings, not one session or a day of it."""
    return bool(checkpoint_files(path)) and not (path / chainverify.EVENTS).exists() and not _packed(path)


def is_session(path: Path) -> bool:
    return (path / chainverify.EVENTS).exists() or (path / chainverify.INDEX).exists() or _packed(path)


def _packed(path: Path) -> bool:
    return (path / f"{chainverify.EVENTS}{COMPRESSED}").exists()


def collect(paths: Sequence[Path]) -> list[DiskFolder]:
    """The session folders at or below these paths. Raises RecordingError."""
    found: list[DiskFolder] = []
    for path in paths:
        if not path.is_dir():
            raise RecordingError(f"{path} is not a folder; name a folder of recordings or a session")
        if is_session(path):
            found.append(DiskFolder(path))
            continue
        names = {chainverify.EVENTS, f"{chainverify.EVENTS}{COMPRESSED}"}
        try:
            below = sorted({file.parent for file in path.rglob(f"{chainverify.EVENTS}*") if file.name in names})
        except OSError as e:
            raise RecordingError(f"{path} cannot be read: {e.strerror or e}") from None
        if not below:
            raise RecordingError(f"{path} holds no recorded session")
        found += [DiskFolder(one) for one in below]
    return found
