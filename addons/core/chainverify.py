"""
Verify: what is wrong with a recording, where it begins, and what cannot be said of it.

Reads lines and files as they are given, trusts nothing in them but signatures, and names the
first thing that does not fit: an edit, a loss, an insertion, another order. What no checkpoint
covers yet is called unproven, not wrong: a gateway that was killed leaves such an end.

Without an anchor (checkpoints that had left the machine) the whole is only consistent: whoever
holds the key could have written it anew.
"""

import enum
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from addons.core import chain
from addons.core.chain import ChainError, Checkpoint, Link, Part, Size

EVENTS = "events.jsonl"
FLOWS = "flows.mitm"
REQUESTS = "requests.mitm"
INDEX = "session.json"
CHECKPOINTS = "checkpoints.jsonl"
FIXED = frozenset({EVENTS, FLOWS, REQUESTS, INDEX, CHECKPOINTS})
BLOCK = 1024 * 1024  # bytes read at once
MAX_FINDINGS = 20  # of one session; the first is the one that matters, the rest mostly follows


class Kind(enum.StrEnum):
    """What happened to the recording."""

    EDITED = "edited"
    LOST = "lost"
    INSERTED = "inserted"
    DUPLICATED = "duplicated"
    REORDERED = "reordered"
    TRUNCATED = "truncated"
    SPLICED = "spliced"
    REWRITTEN = "rewritten"  # the chain was made anew and does not meet what was signed
    KEY = "key"
    UNREADABLE = "unreadable"
    NEWER = "newer"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not fit, and where: `2026-11-24/a/14-03-22-x/events.jsonl:17`."""

    kind: Kind
    place: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}: {self.sentence}"


class Folder(Protocol):
    """A session's folder, however it is kept."""

    def names(self) -> Collection[str]: ...

    def open(self, name: str) -> BinaryIO: ...


# ----- the checkpoints of all sessions -----


@dataclass(slots=True)
class Checkpoints:
    """The chain of checkpoints, and each session's own."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lines: dict[int, str] = field(default_factory=dict)  # digest of each line by its number
    times: dict[int, str] = field(default_factory=dict)
    by_path: dict[str, list[Checkpoint]] = field(default_factory=dict)
    first: int = 0
    last: int = 0
    keys: list[str] = field(default_factory=list)  # ids, in the order they came

    def add(self, checkpoint: Checkpoint, line: bytes) -> None:
        self.lines[checkpoint.number] = chain.digest(line)
        self.times[checkpoint.number] = checkpoint.time
        self.by_path.setdefault(checkpoint.path, []).append(checkpoint)
        self.first = self.first or checkpoint.number
        self.last = max(self.last, checkpoint.number)
        name = chain.key_id(checkpoint.key)
        if name not in self.keys:
            self.keys.append(name)


def check_checkpoints(
    lines: Iterable[bytes], trusted: Collection[bytes] = (), place: str = CHECKPOINTS, *, whole: bool = True
) -> Checkpoints:
    """
    Read checkpoint lines. `trusted` are public keys; without any, the first one's key counts.

    `whole` is False for one session's copies, between which others are missing.
    """
    found = Checkpoints()
    before: Checkpoint | None = None
    previous = chain.NOTHING_BEFORE
    key = b""
    for number, raw in enumerate(lines, 1):
        here = f"{place}:{number}"
        line = raw.rstrip(b"\n")
        if not raw.endswith(b"\n"):
            found.notes.append(f"{here} is half a line: the gateway was killed while it wrote; it is not counted")
            break
        try:
            checkpoint = chain.read_checkpoint(line)
        except ChainError as e:
            kind = Kind.NEWER if "newer" in str(e) else Kind.EDITED
            found.findings.append(Finding(kind, here, str(e)))
            break
        finding = _follows(checkpoint, before, previous, whole)
        if finding is not None:
            found.findings.append(Finding(finding[0], here, finding[1]))
            break
        if before is None and checkpoint.number > 1 and whole:
            found.notes.append(
                f"{place} begins with checkpoint {checkpoint.number}; what was before it is not here and not proven"
            )
        if checkpoint.key not in (trusted or (key or checkpoint.key,)):
            sentence = f"checkpoint {checkpoint.number} is signed by another key ({chain.key_id(checkpoint.key)})"
            advice = "it is not the one given" if trusted else "if you changed it, name both with --key"
            found.findings.append(Finding(Kind.KEY, here, f"{sentence}; {advice}"))
            break
        key = key or checkpoint.key
        found.add(checkpoint, line)
        before, previous = checkpoint, chain.digest(line)
    return found


def _follows(checkpoint: Checkpoint, before: Checkpoint | None, previous: str, whole: bool) -> tuple[Kind, str] | None:
    """What is wrong with a checkpoint after the one before it."""
    if before is None:
        if checkpoint.number == 1 and checkpoint.previous != previous:
            return Kind.REWRITTEN, "the first checkpoint follows something that is not here"
        return None
    expected = before.number + 1
    if whole and checkpoint.number == expected:
        if checkpoint.previous != previous:
            return Kind.REWRITTEN, f"checkpoint {checkpoint.number} does not follow the one before it"
        return None
    if checkpoint.number <= before.number:
        return Kind.REORDERED, f"checkpoint {checkpoint.number} comes after checkpoint {before.number}"
    if whole:
        gone = f"checkpoint {expected}" if checkpoint.number == expected + 1 else (
            f"checkpoints {expected} to {checkpoint.number - 1}"
        )  # fmt: skip
        return Kind.LOST, f"{gone} should be before it"
    return None


def check_anchor(known: Checkpoints, anchored: Iterable[bytes], place: str = "anchor") -> tuple[list[Finding], int]:
    """
    Compare with checkpoints that had left the machine.

    Returns what does not fit, and up to which checkpoint number all is proven.
    """
    findings: list[Finding] = []
    proven = 0
    mine = True
    for line in anchored:
        try:
            checkpoint = chain.read_checkpoint(line)
        except ChainError as e:
            findings.append(Finding(Kind.UNREADABLE, place, f"a checkpoint in it is unusable: {e}"))
            continue
        number = checkpoint.number
        if number > known.last:
            if mine:  # one finding says it
                gone = f"the recording ends at checkpoint {known.last}"
                sentence = (
                    f"checkpoint {number} ({checkpoint.time}, {checkpoint.path}) had left the machine, but {gone}"
                )
                findings.append(Finding(Kind.TRUNCATED, CHECKPOINTS, sentence))
            mine = False
        elif number in known.lines and known.lines[number] != chain.digest(line):
            sentence = f"checkpoint {number} ({checkpoint.time}) is another one than what had left the machine"
            findings.append(Finding(Kind.REWRITTEN, CHECKPOINTS, sentence))
            break
        elif number in known.lines:
            proven = max(proven, number)
    return findings, proven


# ----- one session -----


@dataclass(slots=True)
class Session:
    """What was found of one session."""

    path: str
    uid: str = ""
    events: int = 0
    proven: int = 0  # events that a checkpoint covers
    proven_at: str = ""  # the time of that checkpoint
    closed: bool = False
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def unproven(self) -> int:
        return self.events - self.proven

    def wrong(self, kind: Kind, name: str, sentence: str) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(kind, f"{self.path}/{name}", sentence))

    def note(self, name: str, sentence: str) -> None:
        self.notes.append(f"{self.path}/{name}: {sentence}")


@dataclass(slots=True)
class _Line:
    digest: str
    link: Link | None  # None: not an event
    trouble: str = ""


def check_session(folder: Folder, path: str, checkpoints: Sequence[Checkpoint], *, known: bool = True) -> Session:
    """
    Everything about one session. `checkpoints` are its own, checked and in order; `known` is
    False where there is no list of checkpoints that would have to name it.
    """
    session = Session(path)
    names = folder.names()
    index = _check_index(session, folder, names)
    if checkpoints:
        session.uid = checkpoints[0].uid
        session.closed = checkpoints[-1].state in ("closed", "recovered")
    elif known:
        session.wrong(Kind.INSERTED, EVENTS, "no checkpoint knows this session")
    if any(one.uid != session.uid for one in checkpoints):
        session.wrong(Kind.SPLICED, CHECKPOINTS, "its checkpoints are of several sessions")
        return session
    if EVENTS not in names:
        if any(one.events for one in checkpoints):
            session.wrong(Kind.LOST, EVENTS, f"the file is gone, with {checkpoints[-1].events} signed events in it")
        else:
            session.note(EVENTS, "there are no events yet")
    there = EVENTS in names
    parts, files, users = _check_events(session, folder, checkpoints) if there else ([], [], set[str]())
    _check_parts(session, folder, names, parts)
    _check_files(session, folder, names, files, checkpoints)
    _compare_index(session, index, users)
    if checkpoints and checkpoints[-1].state == "recovered" and checkpoints[-1].note:
        session.note(EVENTS, f"the gateway ended without closing it: {checkpoints[-1].note}")
    return session


def _check_index(session: Session, folder: Folder, names: Collection[str]) -> Mapping[str, object]:
    if INDEX not in names:
        session.note(INDEX, "there is no index; all is read from the events")
        return {}
    with folder.open(INDEX) as file:
        raw = file.read(BLOCK)
    try:
        index = json.loads(raw)
    except (ValueError, RecursionError):
        index = None
    if not isinstance(index, dict):
        session.wrong(Kind.EDITED, INDEX, "it is not JSON")
        return {}
    version = index.get("format")
    if isinstance(version, int) and version > chain.FORMAT:
        sentence = f"it was written by a newer version (format {version}, this one knows {chain.FORMAT})"
        session.wrong(Kind.NEWER, INDEX, sentence)
        return {}
    session.uid = str(index.get("uid", ""))
    return index


def _compare_index(session: Session, index: Mapping[str, object], users: Collection[str]) -> None:
    """The index is written beside the chain, for people: it must not tell another story."""
    if not index:
        return
    if index.get("uid") != session.uid:
        session.wrong(Kind.SPLICED, INDEX, "it is the index of another session")
    elif index.get("path") != session.path and "/" in session.path:
        session.wrong(Kind.SPLICED, INDEX, "it says that the session is in another place")
    elif users and index.get("username") not in users:
        session.wrong(Kind.EDITED, INDEX, "it names another user than the events do")
    elif session.closed and not session.findings and index.get("events") != session.events:
        session.wrong(Kind.EDITED, INDEX, f"it counts {index.get('events')!r} events, there are {session.events}")


def _check_events(
    session: Session, folder: Folder, checkpoints: Sequence[Checkpoint]
) -> tuple[list[tuple[int, Part]], list[tuple[int, str, Size]], set[str]]:
    """Parts of flow files and other files by the number of the event that names them, and who the events are of."""
    lines: list[_Line] = []
    parts: list[tuple[int, Part]] = []
    files: list[tuple[int, str, Size]] = []
    users: set[str] = set()
    half = False
    with folder.open(EVENTS) as file:
        for raw in _lines(session, file):
            if not raw.endswith(b"\n"):
                half = True
                break
            line = raw[:-1]
            try:
                event, link = chain.read_line(line)
            except ChainError as e:
                lines.append(_Line(chain.digest(line), None, str(e)))
                continue
            lines.append(_Line(chain.digest(line), link))
            if link.flow is not None:
                parts.append((len(lines), link.flow))
            files += [(len(lines), name, size) for name, size in link.files.items()]
            user = event.get("user")
            if isinstance(user, dict) and isinstance(user.get("username"), str):
                users.add(user["username"])
    session.uid = session.uid or next((line.link.uid for line in lines if line.link is not None), "")
    heads = {one.events: one.head for one in checkpoints}
    finding, good = _walk(lines, session.uid, chain.genesis(session.uid, session.path), heads)
    if "/" not in session.path and not checkpoints and finding is not None and finding[0] is Kind.SPLICED:
        finding, good = _walk(lines, session.uid, lines[0].link.previous if lines[0].link else "", heads)
        session.note(EVENTS, "where the session belongs is not known here, so its beginning is not checked")
    session.events = good if finding is not None else len(lines)
    if finding is not None:
        session.wrong(finding[0], f"{EVENTS}:{finding[1]}", finding[2])
    if half:
        _half_line(session, len(lines), checkpoints)
    _compare_signed(session, lines, checkpoints, broken=finding is not None)
    return parts, files, users


def _half_line(session: Session, whole: int, checkpoints: Sequence[Checkpoint]) -> None:
    where = f"{EVENTS}:{whole + 1}"
    if session.closed or any(one.events > whole for one in checkpoints):
        session.wrong(Kind.TRUNCATED, where, "the file ends in half a line that was whole when it was signed")
    else:
        session.note(where, "the file ends in half a line: the gateway was killed while it wrote it")


def _lines(session: Session, file: BinaryIO) -> Iterator[bytes]:
    try:
        while line := file.readline(chain.MAX_LINE + 1):
            yield line
    except (OSError, EOFError, ValueError) as e:  # a damaged gzip file
        session.wrong(Kind.UNREADABLE, EVENTS, f"it cannot be read further ({type(e).__name__})")


def _walk(
    lines: Sequence[_Line], uid: str, beginning: str, heads: Mapping[int, str]
) -> tuple[tuple[Kind, int, str] | None, int]:
    """The first line that does not fit (kind, line number, sentence), and how many were good before it."""
    previous = beginning
    for position, line in enumerate(lines):
        link = line.link
        if link is None:
            return (Kind.EDITED, position + 1, line.trouble), position
        if link.uid == uid and link.sequence == position + 1 and link.previous == previous:
            previous = line.digest
            continue
        kind, at, sentence = _diagnose(lines, position, link, uid, previous, beginning, heads)
        return (kind, at + 1, sentence), min(at, position)
    return None, len(lines)


def _diagnose(
    lines: Sequence[_Line],
    position: int,
    link: Link,
    uid: str,
    previous: str,
    beginning: str,
    heads: Mapping[int, str],
) -> tuple[Kind, int, str]:
    """Why the line at this position does not fit: kind, the position to name, a sentence."""
    line = lines[position]
    expected = position + 1
    following = lines[position + 1] if position + 1 < len(lines) else None
    after = following.link if following is not None else None
    earlier = {other.digest: at for at, other in enumerate(lines[:position])}
    if line.digest in earlier:
        return Kind.DUPLICATED, position, f"the same line is there before, as line {earlier[line.digest] + 1}"
    later = {other.link.sequence for other in lines[position + 1 :] if other.link is not None}
    if link.uid == uid and link.sequence > expected and expected in later and link.sequence not in later:
        return Kind.REORDERED, position, f"event {link.sequence} stands where event {expected} belongs"
    if after is not None and after.uid == uid and after.sequence == expected and after.previous == previous:
        return Kind.INSERTED, position, "the line after it follows the line before it"
    if link.uid != uid:
        if all(other.link is None or other.link.uid == link.uid for other in lines):
            return Kind.SPLICED, position, "the events are of another session than the folder"
        return Kind.INSERTED, position, "the line is of another session"
    if link.sequence == expected:
        # This line does not name the one before it: one of the two was changed.
        vouched = (after is not None and after.previous == line.digest) or heads.get(expected) == line.digest
        if position == 0:
            if vouched:
                return Kind.SPLICED, 0, "the first event begins another session, or one in another place"
            return Kind.EDITED, 0, "the line is not what it was"
        if heads.get(expected - 1) == previous:  # the one before it is what was signed
            return Kind.EDITED, position, "the line is not what it was"
        if vouched:
            return Kind.EDITED, position - 1, "the line is not what it was when the next one was written"
        return Kind.EDITED, position - 1, "this line or the next one is not what it was"
    if link.sequence > expected:
        gone = f"event {expected} is" if link.sequence == expected + 1 else (
            f"events {expected} to {link.sequence - 1} are"
        )  # fmt: skip
        return Kind.LOST, position, f"{gone} gone before it"
    at = 0 if link.previous == beginning else earlier.get(link.previous, position - 1) + 1
    if at < position:
        return Kind.INSERTED, at, f"it stands where event {link.sequence}, now line {expected}, belongs"
    return Kind.INSERTED, position, f"it says that it is event {link.sequence}, which is there before"


def _compare_signed(
    session: Session, lines: Sequence[_Line], checkpoints: Sequence[Checkpoint], *, broken: bool
) -> None:
    """Do the events lead to what was signed?"""
    beginning = chain.genesis(session.uid, session.path)
    for one in checkpoints:
        if one.state == "removed":
            continue
        if one.events > len(lines):
            if not broken:
                gone = f"events {len(lines) + 1} to {one.events}, signed at {one.time}, are gone"
                session.wrong(Kind.TRUNCATED, f"{EVENTS}:{len(lines)}", gone)
            return
        head = lines[one.events - 1].digest if one.events else beginning
        if head != one.head:
            if not broken:
                sentence = f"it is not what checkpoint {one.number} signed at {one.time}"
                session.wrong(Kind.REWRITTEN, f"{EVENTS}:{session.proven + 1}-{one.events}", sentence)
            return
        if not broken or one.events <= session.events:
            session.proven, session.proven_at = one.events, one.time
    last = checkpoints[-1] if checkpoints else None
    if last is not None and session.closed and len(lines) > last.events and not broken:
        sentence = f"{len(lines) - last.events} events follow what checkpoint {last.number} closed"
        session.wrong(Kind.INSERTED, f"{EVENTS}:{last.events + 1}", sentence)
        session.events = last.events


def _check_parts(session: Session, folder: Folder, names: Collection[str], parts: Sequence[tuple[int, Part]]) -> None:
    by_file: dict[str, list[tuple[int, Part]]] = {}
    for number, part in parts:
        by_file.setdefault(part.file, []).append((number, part))
    for name in sorted(({FLOWS, REQUESTS} & set(names)) | by_file.keys()):
        wanted = by_file.get(name, [])
        if name not in (FLOWS, REQUESTS):
            session.wrong(Kind.EDITED, f"{EVENTS}:{wanted[0][0]}", "it names a file that holds no flows")
        elif name not in names:
            session.wrong(Kind.LOST, name, f"the file is gone, with {len(wanted)} flows in it")
        else:
            with folder.open(name) as file:
                _check_flows(session, name, file, wanted)


def _check_flows(session: Session, name: str, file: BinaryIO, wanted: Sequence[tuple[int, Part]]) -> None:
    at = 0
    for number, part in wanted:
        here = f"{name}@{part.offset}"
        if part.offset != at:
            sentence = f"event {number} names bytes {part.offset} on, but the one before it ended at {at}"
            session.wrong(Kind.EDITED if part.offset < at else Kind.INSERTED, here, sentence)
            return
        try:
            got, length = _hash(file, part.length)
        except (OSError, EOFError) as e:
            session.wrong(Kind.UNREADABLE, here, f"it cannot be read further ({type(e).__name__})")
            return
        if length < part.length:
            session.wrong(Kind.TRUNCATED, here, f"the flow of event {number} is cut after {length} bytes")
            return
        if got != part.sha256:
            session.wrong(Kind.EDITED, here, f"the flow of event {number} is not what it was")
            return
        at = part.end
    try:
        more = _hash(file, -1)[1]
    except (OSError, EOFError):
        more = 0
    if more and session.closed:
        session.wrong(Kind.INSERTED, f"{name}@{at}", f"{more} bytes follow that no event speaks of")
    elif more:
        session.note(f"{name}@{at}", f"{more} bytes whose event is not written yet")


def _hash(file: BinaryIO, length: int) -> tuple[str, int]:
    """SHA-256 of so many bytes (-1: of all that follow), and how many there were."""
    state, left, done = hashlib.sha256(), length, 0
    while left and (block := file.read(min(BLOCK, left) if left > 0 else BLOCK)):
        state.update(block)
        done += len(block)
        left -= len(block) if left > 0 else 0
    return state.hexdigest(), done


def _check_files(
    session: Session,
    folder: Folder,
    names: Collection[str],
    ended: Sequence[tuple[int, str, Size]],
    checkpoints: Sequence[Checkpoint],
) -> None:
    """The files that grow: each length that was ever signed or written down must have its digest."""
    wanted: dict[str, dict[int, str]] = {}
    final: set[str] = set()
    for _, name, size in ended:
        wanted.setdefault(name, {})[size.length] = size.sha256
        final.add(name)
    for one in checkpoints:
        for name, size in one.files.items():
            if wanted.setdefault(name, {}).setdefault(size.length, size.sha256) != size.sha256:
                session.wrong(Kind.REWRITTEN, name, f"the events and checkpoint {one.number} differ about it")
    for name, sizes in sorted(wanted.items()):
        if name not in names:
            session.wrong(Kind.LOST, name, f"the file is gone, with {max(sizes)} bytes in it")
            continue
        with folder.open(name) as file:
            _check_growing(session, name, file, sizes, final=name in final or session.closed)
    for name in sorted(set(names) - FIXED - wanted.keys()):
        if session.closed:
            session.wrong(Kind.INSERTED, name, "no event speaks of this file")
        else:
            session.note(name, "it is being written; no checkpoint covers it yet")


def _check_growing(session: Session, name: str, file: BinaryIO, sizes: Mapping[int, str], *, final: bool) -> None:
    state, at = hashlib.sha256(), 0
    try:
        for length, wanted in sorted(sizes.items()):
            while at < length and (block := file.read(min(BLOCK, length - at))):
                state.update(block)
                at += len(block)
            if at < length:
                session.wrong(Kind.TRUNCATED, f"{name}@{at}", f"it had {length} bytes when that was written down")
                return
            if state.hexdigest() != wanted:
                session.wrong(Kind.EDITED, name, f"its first {length} bytes are not what they were")
                return
        more = _hash(file, -1)[1]
    except (OSError, EOFError) as e:
        session.wrong(Kind.UNREADABLE, f"{name}@{at}", f"it cannot be read further ({type(e).__name__})")
        return
    if more and final:
        session.wrong(Kind.INSERTED, f"{name}@{at}", f"{more} bytes follow its end")
    elif more:
        session.note(f"{name}@{at}", f"{more} bytes are not covered by a checkpoint yet")


# ----- all sessions -----


@dataclass(slots=True)
class Report:
    """What `verify` says."""

    sessions: list[Session] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)  # beside those of the sessions
    notes: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    anchored: int = 0  # checkpoint number up to which the anchor proves it; 0: nothing
    anchored_at: str = ""
    last: int = 0  # the last checkpoint's number

    @property
    def wrong(self) -> list[Finding]:
        return [*self.findings, *(finding for session in self.sessions for finding in session.findings)]


def check_all(
    checkpoint_lines: Iterable[bytes],
    sessions: Iterable[str],
    open_session: Callable[[str], Folder],
    *,
    trusted: Collection[bytes] = (),
    anchor: Iterable[bytes] | None = None,
    progress: Callable[[str], None] = lambda path: None,
    only: str = "",
) -> Report:
    """
    A whole recordings folder: its checkpoint lines, and the paths of the sessions that are there.

    With `only` the path of one session, of the others nothing is looked at.
    """
    known = check_checkpoints(checkpoint_lines, trusted)
    report = Report(findings=list(known.findings), notes=list(known.notes), keys=known.keys, last=known.last)
    there = set(sessions)
    for path in [only] if only else sorted(there | known.by_path.keys()):
        mine = known.by_path.get(path, [])
        if path in there:
            progress(path)
            # After a break in the checkpoints, what they say of the later sessions is not known.
            folder = open_session(path)
            checked = check_session(folder, path, mine, known=not known.findings and known.first <= 1)
            if mine and mine[-1].state == "removed" and not checked.findings:
                checked.note(INDEX, "it was removed by retention, yet it is there")
            _compare_copies(checked, folder, known)
            report.sessions.append(checked)
        elif mine[-1].state != "removed":
            sentence = f"the whole session is gone, with {mine[-1].events} signed events"
            report.findings.append(Finding(Kind.LOST, path, sentence))
        else:
            report.notes.append(f"{path}: removed at {mine[-1].time}: {mine[-1].note}")
    if anchor is not None:
        findings, report.anchored = check_anchor(known, anchor)
        report.anchored_at = known.times.get(report.anchored, "")
        report.findings += findings
        if not findings and not report.anchored:
            sentence = "no checkpoint in it is of this recording, so it proves nothing"
            report.findings.append(Finding(Kind.UNREADABLE, "anchor", sentence))
    return report


def sessions_known(lines: Iterable[bytes], path: str) -> bool:
    """Whether a checkpoint speaks of the session; not whether that one is good."""
    wanted = b'"path":' + chain.canonical(path)
    return any(wanted in line for line in lines)


def _compare_copies(session: Session, folder: Folder, known: Checkpoints) -> None:
    """The session's own copies of its checkpoints must be the ones of the chain."""
    if CHECKPOINTS not in folder.names():
        session.note(CHECKPOINTS, "its copies of the checkpoints are gone; those of the whole folder count")
        return
    with folder.open(CHECKPOINTS) as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                return  # killed while it wrote
            try:
                one = chain.read_checkpoint(raw[:-1])
            except ChainError as e:
                session.wrong(Kind.EDITED, f"{CHECKPOINTS}:{number}", str(e))
                return
            if known.first <= one.number <= known.last and known.lines.get(one.number) != chain.digest(raw[:-1]):
                session.wrong(Kind.REWRITTEN, f"{CHECKPOINTS}:{number}", "the chain of checkpoints has another one")
                return


def check_alone(folder: Folder, path: str, *, trusted: Collection[bytes] = ()) -> Report:
    """One session by itself, with its own copies of the checkpoints."""
    lines: list[bytes] = []
    if CHECKPOINTS in folder.names():
        with folder.open(CHECKPOINTS) as file:
            lines = list(file)
    known = check_checkpoints(lines, trusted, f"{path}/{CHECKPOINTS}", whole=False)
    report = Report(findings=list(known.findings), notes=list(known.notes), keys=known.keys, last=known.last)
    paths = list(known.by_path)
    if len(paths) > 1:
        sentence = "its checkpoints are of sessions in several places"
        report.findings.append(Finding(Kind.SPLICED, f"{path}/{CHECKPOINTS}", sentence))
        return report
    if paths and not paths[0].endswith(path.rsplit("/", 1)[-1]):
        report.findings.append(Finding(Kind.SPLICED, path, f"its checkpoints are of the session {paths[0]}"))
    mine = known.by_path[paths[0]] if paths else []
    # The place that was signed, since a session that was copied out is in another.
    checked = check_session(folder, paths[0] if paths else path, mine, known=False)
    if not mine:
        checked.note(CHECKPOINTS, "there is no checkpoint, so nothing of it is proven")
    report.sessions.append(checked)
    return report


def verdict(report: Report) -> str:
    """The last line that `verify` prints."""
    wrong = report.wrong
    if wrong:
        return f"NOT CLEAN: {len(wrong)} finding{'' if len(wrong) == 1 else 's'}; the first: {wrong[0]}"
    if report.anchored:
        after = report.last - report.anchored
        rest = f"; the {after} checkpoints after it are consistent only" if after else ""
        return f"clean: proven up to checkpoint {report.anchored} ({report.anchored_at}) by the anchor{rest}"
    if not report.last:
        return "nothing is signed here, so nothing is proven"
    return "clean: consistent, not proven against the holder of the key (compare with --anchor)"
