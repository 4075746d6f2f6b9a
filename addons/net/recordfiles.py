"""
The files of recordings: sessions that grow, the log of checkpoints, the lock, the key.

Everything is appended, under names that are made here, never through a link. Nothing waits or
runs by itself; addons/net/recorder.py has the one thread that uses this.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from addons.core import auditevents, chain, chainverify, sessions
from addons.core.chain import Checkpoint, SigningKey, Size
from addons.net import files

logger = logging.getLogger(__name__)

LOCK = ".lock"
KEY = "recording.key"
PUBLIC_KEY = "recording.pub"
ROTATE_CHECKPOINTS = 16 * 1024 * 1024  # bytes of checkpoints.jsonl until the next file of them


class RecorderError(Exception):
    """The record is not on disk. One sentence for the log; the request it is of must not go on."""

    everybodys = False  # the disk's trouble, and not that of one identity's files


@dataclass(frozen=True, slots=True)
class Settings:
    """How recordings are kept. Sizes in bytes, times in seconds; 0 turns a limit off."""

    folder: Path
    state: Path  # for the key that is made once
    key_file: Path | None = None  # an Ed25519 key in PEM instead
    idle: float = 1800.0  # without activity for so long, the next record begins a new session
    rotate_size: int = 256 * 1024 * 1024  # of a session's files, until its next part
    rotate_age: float = 24 * 3600.0  # of a session, until its next part
    checkpoint_every: float = 60.0
    quota: int = 1024 * 1024 * 1024  # of one identity a day
    reserve: int = 512 * 1024 * 1024  # free on the disk: kept for records of approved people


class File:
    """A file that only grows, and how much of it is good."""

    def __init__(self, path: Path, *, hashed: bool = False) -> None:
        self.path = path
        # Never through a link, never over something that is there: names are ours and new.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self.fd = os.open(path, flags, 0o600)
        self.size = 0
        self.hash = hashlib.sha256() if hashed else None
        self.dirty = False

    def append(self, data: bytes | bytearray) -> None:
        """All of it, or OSError."""
        view = memoryview(data)
        self.dirty = True
        while view:
            view = view[os.write(self.fd, view) :]
        if self.hash is not None:
            self.hash.update(data)
        self.size += len(data)

    def cut(self, size: int, state: "hashlib._Hash | None") -> None:
        """Back to what it was before a write that failed. Raises OSError."""
        os.ftruncate(self.fd, size)
        self.size, self.hash = size, state

    def sync(self) -> None:
        if self.dirty and self.fd >= 0:
            if os.fstat(self.fd).st_nlink == 0:
                # It would be written to on and on, and nobody could ever read it.
                raise FileNotFoundError(errno.ENOENT, "it was removed while it was written")
            os.fsync(self.fd)
            self.dirty = False

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class OpenSession:
    """An open session: its files, the end of its chain, what it comes to."""

    def __init__(
        self, root: Path, username: str, uid: str, part: int, continues: str, now: float, monotonic: float
    ) -> None:
        self.username = username
        self.uid = uid
        self.part = part
        self.continues = continues
        self.path = sessions.session_path(username, now, uid, part)
        self.folder = root / self.path
        self.began = self.active = monotonic
        self.started = auditevents.timestamp(now)
        self.sequence = 0
        self.head = chain.genesis(self.chain_uid, self.path)
        self.signed = -1  # events of the last checkpoint
        self.signed_files: dict[str, Size] = {}
        self.tally = sessions.Tally()
        self.files: dict[str, File] = {}
        self.ended: set[str] = set()
        self.lost = 0  # records since the last event that could not be written
        self.broken = False  # its files cannot be trusted to take more

    @property
    def chain_uid(self) -> str:
        return f"{self.uid}-{self.part}"

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())

    def file(self, name: str) -> File:
        if name in self.ended:
            raise chain.ChainError(f"the file {name} was ended before")
        found = self.files.get(name)
        if found is None:
            hashed = name not in chainverify.FIXED
            found = self.files[name] = File(self.folder / name, hashed=hashed)
            sync_folder(self.folder)
        return found

    def growing(self) -> dict[str, Size]:
        return {
            name: Size(file.size, file.hash.hexdigest())
            for name, file in self.files.items()
            if file.hash is not None and name not in self.ended
        }

    def index(self, *, closed: bool, note: str = "") -> sessions.Index:
        return sessions.index_of(
            self.tally,
            uid=self.chain_uid,
            path=self.path,
            closed=closed,
            size=self.size,
            username=self.username,
            started=self.started,
            part=self.part,
            continues=self.continues,
            note=note,
        )


class Saved:
    """What a session was before a batch, so that a batch that fails leaves nothing of itself."""

    def __init__(self, session: OpenSession) -> None:
        self.session = session
        self.sequence, self.head, self.lost = session.sequence, session.head, session.lost
        self.ended = set(session.ended)
        self.files = {
            name: (file.size, file.hash.copy() if file.hash is not None else None)
            for name, file in session.files.items()
        }

    def restore(self) -> None:
        session = self.session
        session.sequence, session.head, session.lost, session.ended = self.sequence, self.head, self.lost, self.ended
        for name, file in session.files.items():
            size, state = self.files.get(name, (0, hashlib.sha256() if file.hash is not None else None))
            if file.size != size or file.dirty:
                file.cut(size, state)


class CheckpointLog:
    """
    The checkpoints of a recordings folder, continued from what is there. Raises RecorderError, OSError.

    A line is on disk before anything goes on.
    """

    def __init__(self, folder: Path, key: SigningKey) -> None:
        self._folder = folder
        self._key = key
        self.number, self._previous, signed_by = _last_checkpoint(folder)
        if signed_by and signed_by != key.public:
            logger.warning(
                "recordings so far are signed with key %s, from now on with %s; verify needs both (--key)",
                chain.key_id(signed_by),
                key.id,
            )
        self._file = _append_only(folder / chainverify.CHECKPOINTS)

    def sign(
        self,
        time: str,
        path: str,
        uid: str,
        state: str,
        events: int,
        head: str,
        growing: chain.Files,
        note: str = "",
    ) -> bytes:
        """Sign, write, and put a copy into the session's folder where that is there. Returns the line."""
        number = self.number + 1
        point = Checkpoint(number, self._previous, time, uid, path, state, events, head, growing, note)
        line = point.sign(self._key)
        written = line + b"\n"
        if self._file.size >= ROTATE_CHECKPOINTS:
            self._rotate()
        size = self._file.size
        try:
            self._file.append(written)
            self._file.sync()
        except OSError:
            with contextlib.suppress(OSError):
                self._file.cut(size, None)
            raise
        self.number, self._previous = number, chain.digest(line)
        folder = self._folder / path
        if folder.is_dir():
            _append_once(folder / chainverify.CHECKPOINTS, written)
        return line

    def _rotate(self) -> None:
        name = self._folder / chainverify.CHECKPOINTS
        self._file.close()
        name.rename(name.with_name(f"checkpoints-{self.number:012d}.jsonl"))
        self._file = _append_only(name)
        sync_folder(self._folder)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def growing_name(name: str) -> str:
    """Of a growing file: made here, so nothing of a client's is in it; checked all the same."""
    if name in chainverify.FIXED or not chain.is_file_name(name):
        raise chain.ChainError(f"a file cannot be called {name[:40]!r}")
    return name


def unwritable(folder: Path, error: OSError) -> RecorderError:
    words = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        words = "the disk is full"
    elif error.errno == errno.EROFS:
        words = "the disk is mounted read-only"
    found = RecorderError(f"{folder} cannot be written: {words}")
    found.everybodys = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    return found


def sync_folder(folder: Path) -> None:
    """A new name in it survives a loss of power."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _append_once(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        size = os.fstat(fd).st_size
        if os.write(fd, data) != len(data):
            os.ftruncate(fd, size)
            raise OSError(errno.ENOSPC, "no space left on the device")
    finally:
        os.close(fd)


class _Appended(File):
    """The checkpoints of the folder: there may be some already."""

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self.fd = os.open(path, flags, 0o600)
        self.size = os.fstat(self.fd).st_size
        self.hash = None
        self.dirty = False


def _append_only(path: Path) -> _Appended:
    """Cut to its last whole line: what a killed gateway left of one is no checkpoint."""
    file = _Appended(path)
    back = min(file.size, chain.MAX_LINE)
    tail = os.pread(file.fd, back, file.size - back)
    rest = len(tail) - (tail.rfind(b"\n") + 1)
    if rest:
        logger.warning("%s ended in half a line, which is cut off (%d bytes)", path, rest)
        file.cut(file.size - rest, None)
        os.fsync(file.fd)
    return file


def _last_checkpoint(folder: Path) -> tuple[int, str, bytes]:
    """Number and digest of the last checkpoint line of the folder, and the public key that signed it."""
    last: bytes = b""
    for path in checkpoint_files(folder):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - chain.MAX_LINE))
            whole = file.read().split(b"\n")[:-1]  # without what follows the last line's end
        if whole:
            last = whole[-1]
    if not last:
        return 0, chain.NOTHING_BEFORE, b""
    try:
        point = chain.read_checkpoint(last)
    except chain.ChainError as e:
        # direction: to go on from nothing would hide that something is wrong with the old ones.
        raise RecorderError(
            f"{folder / chainverify.CHECKPOINTS} cannot be continued: {e}; run ./run.sh verify, then move it away"
        ) from e
    return point.number, chain.digest(last), point.key


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of checkpoints, in their order."""
    older = sorted(folder.glob("checkpoints-[0-9]*.jsonl"))
    current = folder / chainverify.CHECKPOINTS
    return [*older, *([current] if current.exists() else [])]


def lock(folder: Path) -> int:
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise RecorderError(
            f"{folder} is used by another gateway; give each its own with --recordings, or stop the other one"
        ) from None
    return fd


def load_key(settings: Settings) -> SigningKey:
    """The key of the settings, made once in the state folder. Raises ChainError, OSError."""
    if settings.key_file is not None:
        return chain.read_key(settings.key_file.read_bytes())
    path = settings.state / KEY
    try:
        return chain.read_key(path.read_bytes())
    except FileNotFoundError:
        key = chain.new_key()
    files.private_folder(settings.state)
    files.write_private(path, key.pem())
    files.write_private(settings.state / PUBLIC_KEY, key.public_pem())
    logger.info("made a key for recordings, %s: keep %s", key.id, settings.state / PUBLIC_KEY)
    return key
