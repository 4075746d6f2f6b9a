"""
Who else can write a file that decides, or read one that is secret: from its mode, and those of the
folders it is in.

A policy that every user of a machine can edit is no policy, and a key that all can read is no key. The
owner and the group are the administrator's choice; everybody else must be kept out.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path


def trouble(mode: int, folder_mode: int) -> str:
    """Why others could change a file of this mode in a folder of that mode, or ""."""
    if mode & stat.S_IWOTH:
        does = "put files into this folder" if stat.S_ISDIR(mode) else "write it"
        return f"every user can {does} (mode {stat.S_IMODE(mode):04o}); run: chmod o-w on it"
    # In a sticky folder (/tmp) others can add, but not replace what is not theirs.
    if folder_mode & stat.S_IWOTH and not folder_mode & stat.S_ISVTX:
        return (
            f"every user can replace it (its folder has mode {stat.S_IMODE(folder_mode):04o}); run: chmod o-w on that"
        )
    return ""


def trouble_at(path: Path) -> str:
    """
    `trouble` of what is at a path, links followed. Raises OSError.

    On a file system that is mounted read-only nobody writes: Kubernetes mounts a ConfigMap so,
    in a folder of mode 0777.
    """
    real = path.resolve()
    if os.statvfs(real).f_flag & os.ST_RDONLY:
        return ""
    return trouble(real.stat().st_mode, real.parent.stat().st_mode)


def exposed(mode: int, folder_modes: Iterable[int]) -> str:
    """Why others could read a secret file of this mode, below folders of those modes, or ""."""
    # A folder that others may not pass keeps them from all that is in it.
    if mode & stat.S_IROTH and all(folder & stat.S_IXOTH for folder in folder_modes):
        return (
            f"it holds a key or token, and every user can read it (mode {stat.S_IMODE(mode):04o}); run: chmod o-r on it"
        )
    return ""


def exposed_at(path: Path) -> str:
    """
    `exposed` of what is at a path, links followed. Raises OSError.

    Kubernetes mounts a Secret read-only and, by default, with mode 0644: who is in the container is the gateway.
    """
    real = path.resolve()
    if os.statvfs(real).f_flag & os.ST_RDONLY:
        return ""
    return exposed(real.stat().st_mode, (folder.stat().st_mode for folder in real.parents))
