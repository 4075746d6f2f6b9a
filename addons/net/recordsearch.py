"""Where one request is recorded, by its Audit-ID."""

import mmap
from pathlib import Path

from addons.core import auditevents, chainverify, sessions

_DAY = 24 * 3600.0


def session_of(recordings: Path, username: str, started: float, audit_id: str) -> Path | None:
    """
    The folder of the session that has an event with this id, None where there is none (yet, or any more).

    started: seconds since the epoch. A session is in the folder of the day on which it began, and
    may go on over midnight.
    """
    wanted = f'"auditID":"{audit_id}"'.encode()
    for day in (started, started - _DAY):
        below = recordings / auditevents.timestamp(day)[:10] / sessions.identity_folder(username)
        try:
            # The youngest first: who asks has mostly just seen it.
            found = sorted((one for one in below.iterdir() if one.is_dir()), reverse=True)
        except OSError:
            continue
        for folder in found:
            if _holds(folder / chainverify.EVENTS, wanted):
                return folder
    return None


def _holds(path: Path, wanted: bytes) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(wanted) >= 0
    except (OSError, ValueError):  # not there, compressed, or empty
        return False
