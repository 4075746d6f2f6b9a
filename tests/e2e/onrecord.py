"""What a gateway has put on record of each request, read when it has ended and before its folder goes."""

import contextlib
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from addons.core import auditevents
from addons.net import codec, recordings
from addons.net.mirror import APPROVALS, GRANTS
from addons.net.store import FILE

PASSED = frozenset({"allow", "approved"})
COUNTED = "counted"  # the verb of an event that is no request: how many without an identity were refused


@dataclass(frozen=True, slots=True)
class Line:
    """One event of a record, as far as it is compared."""

    audit_id: str
    stage: str
    verdict: str  # allow, hold, deny; "": no policy was asked
    approval: str = ""  # the approval or grant that let it pass
    refused: bool = False  # by the gateway: it did not go up


Lines = Mapping[tuple[str, int], Line]  # by session and number of the line: what is read twice is there once


@dataclass(slots=True)
class Record:
    """All of one folder of recordings, of one gateway or of several that came after each other."""

    lines: dict[tuple[str, int], Line] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)  # what of it cannot be read, or was lost while it was written
    # Audit-ID -> the approval that it used, by the state, and the grants which that made
    used: dict[str, frozenset[str]] = field(default_factory=dict)


def line(event: Mapping[str, Any]) -> Line:
    notes = auditevents.notes_of(event)
    return Line(
        str(event.get("auditID", "")),
        str(event.get("stage", "")),
        notes.get(auditevents.VERDICT, ""),
        notes.get(auditevents.APPROVAL, ""),
        auditevents.REFUSED_BY in notes,
    )


def why(lines: Iterable[Line]) -> str:
    """
    Why it went up, by what is on record of one request: "allow", "approved". Or what stands there instead:
    "refused", "hold" (nobody approved it), "deny", "unjudged"; the worst of its stages counts.
    """
    found = {_why(one) for one in lines}
    return next((one for one in ("refused", "deny", "hold", "unjudged", "approved", "allow") if one in found), "")


def _why(one: Line) -> str:
    if one.refused:
        return "refused"
    if one.verdict == "hold":
        return "approved" if one.approval else "hold"
    return one.verdict if one.verdict in ("allow", "deny") else "unjudged"


def read(root: Path, state: Path) -> Record:
    """What is there now; a folder that is not there has nothing."""
    found = Record()
    with contextlib.suppress(FileNotFoundError):
        for path in recordings.find_sessions(root):
            _session(root, path, found)
    # A state that a test has damaged, or that never was, tells of no approval.
    with contextlib.suppress(sqlite3.Error, codec.Damaged):
        found.used |= _used(state / FILE)
    return found


def _session(root: Path, path: str, found: Record) -> None:
    for number, event in enumerate(recordings.stream_events(recordings.DiskFolder(root / path))):
        if isinstance(event, str):
            found.notes.add(f"{path}: {event}")
            continue
        if lost := auditevents.notes_of(event).get(auditevents.LOST):
            found.notes.add(f"{path}: {lost} records before event {number + 1} were lost")
        if event.get("verb") != COUNTED:
            found.lines[path, number] = line(event)


def _used(file: Path) -> dict[str, frozenset[str]]:
    """Read only, so that nothing of it is changed for a gateway that comes after."""
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5)) as db:
        rows = db.execute("SELECT kind, data FROM objects WHERE NOT deleted").fetchall()
    records = [codec.record(data) for kind, data in rows if kind == APPROVALS]
    # A yes may open its rule for a while: what is recorded then is the grant that it made.
    made: dict[str, set[str]] = {}
    for grant in (codec.grant(data) for kind, data in rows if kind == GRANTS):
        made.setdefault(grant.source, set()).add(grant.name)
    return {
        item.used_by: frozenset({record.name, *made.get(record.name, ())})
        for record in records
        for item in record.items
        if item.used_by
    }
