"""
The key of masks: 32 bytes in the state folder, made once, so that tags stay the same over a
restart and for all processes of this machine. Each purpose has one of its own, derived from it.
"""

import hmac
import logging
import os
import secrets
from functools import cache
from pathlib import Path

from addons.net import files

logger = logging.getLogger(__name__)

FILE = "mask.key"
SIZE = 32  # bytes
TAGS = b"tollgate mask tags"
KNOWN = b"tollgate mask known values"


class KeyFileError(Exception):
    """The key can be neither read nor made; the message says why."""


@cache
def _of_this_process() -> bytes:
    logger.warning("tollgate_state is not set: the key of masked values is new with every start, and so are they")
    return secrets.token_bytes(SIZE)


def shared(state: str) -> bytes:
    """The key in this state folder, made if there is none; without a folder this process's own. Raises KeyFileError."""
    if not state:
        return _of_this_process()
    return _in(Path(state).expanduser())


@cache
def _in(folder: Path) -> bytes:
    path = folder / FILE
    try:
        files.private_folder(folder)
        key = files.make_once(path, secrets.token_bytes(SIZE))
        readable = path.stat().st_mode & 0o077 if os.name == "posix" else 0
    except OSError as e:
        raise KeyFileError(f"{path}: {e.strerror or e}") from e
    if len(key) != SIZE:
        raise KeyFileError(f"{path}: it does not have {SIZE} bytes; remove it, and a new one is made")
    if readable:
        # Who knows it can try out guesses at masked values.
        raise KeyFileError(f"{path}: others may read it; chmod 600 it, or remove it, and a new one is made")
    return key


def tags(state: str) -> bytes:
    """The key of the masked values that people see. Raises KeyFileError."""
    return derived(shared(state), TAGS)


def derived(key: bytes, purpose: bytes) -> bytes:
    """The key for one purpose; it says nothing of those for others (HMAC-SHA256 as a PRF)."""
    return hmac.digest(key, purpose, "sha256")
