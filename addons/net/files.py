"""Private files in the state folder: written whole or not at all, readable by the owner only."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path


def private_folder(path: Path) -> Path:
    """Make the folder (0700) if it is not there. Raises OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_private(path: Path, content: bytes) -> None:
    """Replace the file at once: a crash leaves the old one or the new one, never half."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def make_once(path: Path, content: bytes) -> bytes:
    """
    Make the file with this content unless it is there; what it holds then. Of several processes
    that do so at once one makes it, whole, and all get the same. Raises OSError.
    """
    if not path.exists():
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return path.read_bytes()


def combine(state: Path, *parts: str) -> Path:
    """One private file with the content of several (certificate and key), named by its content."""
    content = b"\n".join(Path(p).read_bytes().strip() for p in parts) + b"\n"
    # A new name for new content: TLS contexts are cached by path, and a rotated certificate must be seen.
    path = private_folder(state / "upstream") / f"{hashlib.sha256(content).hexdigest()[:16]}.pem"
    if not path.exists():
        write_private(path, content)
    return path
