"""
Sessions: where a recorded session is kept, what it comes to in a line, and its story as commands.

Names of folders come from identities, which are other people's text: what is plain stays
readable, everything else is made plain and told apart by a hash. The story is put together from
events: kubectl's requests of one invocation are one command, each request has what was decided,
what came of it and what it changed.
"""

import datetime
import difflib
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from addons.core import auditevents, chain

MAX_NAME = 64  # characters of a folder's name; file systems take 255 bytes
MAX_COMMANDS = 10_000  # told apart in one session's index
MAX_DIFF = 200  # lines of one object

_PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]*")
_ACCOUNT = re.compile(r"system:serviceaccount:([a-z0-9][a-z0-9-]*):([a-z0-9][a-z0-9.-]*)")
_ODD = re.compile(r"[^A-Za-z0-9._@-]+")
_PATH = re.compile(r"\d{4}-\d{2}-\d{2}/[A-Za-z0-9._@~-]+/\d{2}-\d{2}-\d{2}-[a-z0-9]+(?:-\d+)?")
_CHANGES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


class SessionError(Exception):
    """An index or an event that cannot be used; one sentence."""


# ----- names -----


def identity_folder(username: str) -> str:
    """
    The folder of an identity's sessions within a day: `agent-ci@shop` for a ServiceAccount.

    Different usernames never share one: whatever is not spelled plainly carries a hash.
    """
    account = _ACCOUNT.fullmatch(username)
    if account and len(account[1]) + len(account[2]) < MAX_NAME:
        return f"{account[2]}@{account[1]}"
    if _PLAIN.fullmatch(username) and len(username) <= MAX_NAME:
        return username
    # Also what has capital letters: some file systems do not tell them from small ones.
    mark = hashlib.sha256(username.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    readable = _ODD.sub("_", username).strip("._-~@")[: MAX_NAME - 9].strip("._-~@")
    return f"{readable or 'identity'}~{mark}"


def session_path(username: str, started: float, uid: str, part: int = 1) -> str:
    """`2026-11-24/agent-ci@shop/14-03-22-k3j9x2`, with `-2` when it goes on in a second part. UTC."""
    day, clock = auditevents.timestamp(started)[:10], auditevents.timestamp(started)[11:19].replace(":", "-")
    suffix = f"-{part}" if part > 1 else ""
    return f"{day}/{identity_folder(username)}/{clock}-{uid}{suffix}"


def is_session_path(path: str) -> bool:
    return _PATH.fullmatch(path) is not None


# ----- the index -----


@dataclass(slots=True)
class Tally:
    """What a session comes to, event by event."""

    events: int = 0
    requests: int = 0
    changed: int = 0
    refused: int = 0
    approvals: set[str] = field(default_factory=set)
    commands: set[str] = field(default_factory=set)
    first: str = ""
    last: str = ""
    username: str = ""
    lost: int = 0

    def add(self, event: Mapping[str, Any]) -> None:
        self.events += 1
        notes = auditevents.notes_of(event)
        self.first = self.first or _text(event.get("requestReceivedTimestamp"))
        self.last = _text(event.get("stageTimestamp")) or self.last
        if not self.username and isinstance(event.get("user"), dict):
            self.username = _text(event["user"].get("username"))
        if (lost := notes.get(auditevents.LOST, "")).isdigit():
            self.lost += int(lost[:9])
        if event.get("stage") != auditevents.Stage.COMPLETE.value or auditevents.COUNTS in notes:
            return
        self.requests += 1
        self.changed += did_change(event)
        self.refused += bool(notes.get(auditevents.REFUSED_BY))
        if notes.get(auditevents.APPROVAL):
            self.approvals.add(notes[auditevents.APPROVAL])
        if len(self.commands) < MAX_COMMANDS:
            self.commands.add(command_key(event))


def did_change(event: Mapping[str, Any]) -> bool:
    """Whether the request changed something in the cluster."""
    notes = auditevents.notes_of(event)
    code = code_of(event)
    if _text(event.get("verb")) not in _CHANGES or notes.get(auditevents.REFUSED_BY) or not 200 <= code < 300:
        return False
    return '"dryRun":true' not in notes.get(auditevents.OPERATION, "")


def code_of(event: Mapping[str, Any]) -> int:
    status = event.get("responseStatus")
    code = status.get("code") if isinstance(status, dict) else 0
    return code if isinstance(code, int) else 0


def command_key(event: Mapping[str, Any]) -> str:
    """Equal for the requests of one invocation. A client that says nothing of itself has one a request."""
    claim = _claim(event)
    return f"session {claim}" if claim else f"request {event.get('auditID')}"


_CLAIM = re.compile(r'"claimedSession":"([A-Za-z0-9._-]{1,64})"')


def _claim(event: Mapping[str, Any]) -> str:
    # By pattern: this is asked of every event, and the whole operation need not be read for it.
    found = _CLAIM.search(auditevents.notes_of(event).get(auditevents.OPERATION, ""))
    return found[1] if found else ""


@dataclass(frozen=True, slots=True)
class Index:
    """`session.json`: what a table of sessions needs, without reading all events. Nothing is decided by it."""

    uid: str
    path: str
    username: str
    started: str
    ended: str
    closed: bool
    events: int = 0
    requests: int = 0
    changed: int = 0
    refused: int = 0
    approvals: int = 0
    commands: int = 0
    size: int = 0  # bytes of all its files
    lost: int = 0
    part: int = 1
    continues: str = ""  # path of the part before
    note: str = ""

    def to_json(self) -> bytes:
        value = {name: getattr(self, name) for name in _INDEX}
        head = {"apiVersion": chain.API_VERSION, "kind": "Session", "format": chain.FORMAT}
        return json.dumps({**head, **value}, indent=1).encode() + b"\n"


_INDEX: Mapping[str, type] = {
    "uid": str,
    "path": str,
    "username": str,
    "started": str,
    "ended": str,
    "closed": bool,
    "events": int,
    "requests": int,
    "changed": int,
    "refused": int,
    "approvals": int,
    "commands": int,
    "size": int,
    "lost": int,
    "part": int,
    "continues": str,
    "note": str,
}


def read_index(raw: bytes) -> Index:
    """Raises SessionError."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.get("kind") != "Session":
        raise SessionError("session.json is not the index of a session")
    version = value.get("format")
    if isinstance(version, int) and version > chain.FORMAT:
        raise SessionError(
            f"session.json was written by a newer version (format {version}, this one knows {chain.FORMAT})"
        )
    if any(type(value.get(name)) is not kind for name, kind in _INDEX.items()):
        raise SessionError("session.json lacks fields")
    return Index(**{name: value[name] for name in _INDEX})


def index_of(tally: Tally, *, uid: str, path: str, closed: bool, size: int, **more: Any) -> Index:
    return Index(
        uid=uid,
        path=path,
        username=more.pop("username", "") or tally.username,
        started=more.pop("started", "") or tally.first,
        ended=tally.last or tally.first,
        closed=closed,
        events=tally.events,
        requests=tally.requests,
        changed=tally.changed,
        refused=tally.refused,
        approvals=len(tally.approvals),
        commands=len(tally.commands),
        size=size,
        lost=tally.lost,
        **more,
    )


# ----- the story -----


@dataclass(slots=True)
class Request:
    """One request, from its one or two events."""

    event: dict[str, Any]  # the last of them; the first one's object and images are taken over
    answered: bool  # False: no answer was recorded

    @property
    def notes(self) -> Mapping[str, str]:
        return auditevents.notes_of(self.event)

    @property
    def summary(self) -> str:
        return self.notes.get(auditevents.SUMMARY) or f"{self.event.get('verb', '')} {self.event.get('requestURI', '')}"

    @property
    def outcome(self) -> str:
        """`200`, `refused: <message>`, `no answer was recorded`."""
        if self.notes.get(auditevents.COUNTS):
            return "counted only"
        if not self.answered:
            return "no answer was recorded"
        status = self.event.get("responseStatus")
        status = status if isinstance(status, dict) else {}
        code, message = code_of(self.event), _text(status.get("message"))
        ended = self.notes.get(auditevents.ENDED, "")
        if self.notes.get(auditevents.REFUSED_BY):
            words = "refused"
        elif not code:
            return ended or "no answer"
        else:
            words = str(code)
        return ": ".join(part for part in (words, message, ended) if part)

    @property
    def verdict(self) -> str:
        """`allow agents/reads`, `deny`, or "" where nobody was asked."""
        notes = self.notes
        rule = "/".join(part for part in (notes.get(auditevents.POLICY), notes.get(auditevents.RULE)) if part)
        words = f"{notes.get(auditevents.VERDICT, '')} {rule}".strip()
        if notes.get(auditevents.APPROVAL):
            by = f" by {notes[auditevents.APPROVER]}" if notes.get(auditevents.APPROVER) else ""
            words += f", {notes[auditevents.APPROVAL]}{by}"
        return words


@dataclass(slots=True)
class Command:
    """One invocation: what was typed, as far as that can be told, and its requests."""

    key: str
    text: str
    started: str
    requests: list[Request] = field(default_factory=list)

    @property
    def changed(self) -> int:
        return sum(did_change(request.event) for request in self.requests)

    @property
    def refused(self) -> int:
        return sum(bool(request.notes.get(auditevents.REFUSED_BY)) for request in self.requests)


def requests(events: Iterable[Mapping[str, Any]]) -> list[Request]:
    """Events joined by their Audit-ID, in the order in which the requests came."""
    found: dict[str, Request] = {}
    for number, event in enumerate(events):
        key = _text(event.get("auditID")) or f"#{number}"
        answered = event.get("stage") == auditevents.Stage.COMPLETE.value
        known = found.get(key)
        if known is None:
            found[key] = Request(dict(event), answered)
            continue
        joined = {**known.event, **event}
        joined["annotations"] = {**auditevents.notes_of(known.event), **auditevents.notes_of(event)}
        found[key] = Request(joined, answered or known.answered)
    return list(found.values())


def timeline(events: Iterable[Mapping[str, Any]]) -> list[Command]:
    """The commands of a session, in the order of their first requests."""
    found: dict[str, Command] = {}
    for request in requests(events):
        key = command_key(request.event)
        command = found.get(key)
        if command is None:
            started = _text(request.event.get("requestReceivedTimestamp"))
            command = found[key] = Command(key, "", started)
        command.requests.append(request)
    for command in found.values():
        command.text = _text_of(command.requests)
    return list(found.values())


def _text_of(of_one: Sequence[Request]) -> str:
    """
    The last one that knows the command says most: names and selectors are known by then. A read
    is called by what it is about, and not by the discovery that kubectl begins with.
    """
    known = [text for request in of_one if (text := request.notes.get(auditevents.COMMAND))]
    about = [request.summary for request in of_one if "objectRef" in request.event]
    return known[-1] if known else (about or [of_one[0].summary])[0]


def clock_jumps(events: Iterable[Mapping[str, Any]], limit: float = 60.0) -> list[tuple[int, float]]:
    """Where the gateway's clock went back by more than the limit (seconds): number of the event, seconds."""
    found: list[tuple[int, float]] = []
    latest = 0.0
    for number, event in enumerate(events, 1):
        at = auditevents.seconds(event.get("stageTimestamp"))
        if at and at < latest - limit:
            found.append((number, latest - at))
            latest = at
        latest = max(latest, at)
    return found


# ----- what changed -----


def changes(request: Request) -> list[str]:
    """Lines of a diff: the object before the request and after it. Empty when that was not recorded."""
    if not did_change(request.event):
        return []
    before = auditevents.before_of(request.event)
    verb = request.event.get("verb")
    if verb in ("delete", "deletecollection"):
        lines = [line for image in before for line in diff(image, None)]
        return lines[:MAX_DIFF]
    after = request.event.get("responseObject")
    if verb == "create":
        after = after if _is_object(after) else request.event.get("requestObject")
        return diff(None, after) if _is_object(after) else []
    if before and _is_object(after):
        return diff(before[0], after)
    sent = request.event.get("requestObject")
    if sent is None:
        return []
    return ["(sent)", *_yaml(sent)[:MAX_DIFF]]


def _is_object(value: object) -> bool:
    return isinstance(value, dict) and value.get("kind") != "Status"


def diff(before: Any, after: Any) -> list[str]:
    """A unified diff of two objects as YAML, without what every change changes."""
    old, new = (_yaml(_essence(value)) if value is not None else [] for value in (before, after))
    lines = list(difflib.unified_diff(old, new, lineterm="", n=2))[2:]
    named = _name(after if after is not None else before)
    if not lines:
        return []
    shown = lines[:MAX_DIFF] + ([f"… {len(lines) - MAX_DIFF} more lines"] if len(lines) > MAX_DIFF else [])
    return [f"--- {named}" if before is not None else "--- nothing", *shown]


def _name(value: Any) -> str:
    metadata = value.get("metadata") if isinstance(value, dict) else None
    metadata = metadata if isinstance(metadata, dict) else {}
    kind = _text(value.get("kind")) if isinstance(value, dict) else ""
    return "/".join(part for part in (kind, _text(metadata.get("namespace")), _text(metadata.get("name"))) if part)


_NOISE = frozenset({"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"})


def _essence(value: Any) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get("metadata"), dict):
        return value
    metadata = {key: inner for key, inner in value["metadata"].items() if key not in _NOISE}
    return {**value, "metadata": metadata}


def _yaml(value: Any) -> list[str]:
    try:
        return yaml.safe_dump(value, sort_keys=True, default_flow_style=False, allow_unicode=True).splitlines()
    except (yaml.YAMLError, RecursionError):
        return [json.dumps(value, sort_keys=True)]


def curl(event: Mapping[str, Any], server: str = "$SERVER") -> str:
    """The request as a command line. No credential is recorded, so none is in it."""
    method = _method(event)
    words = ["curl", "-H", '"Authorization: Bearer $TOKEN"', "-X", method]
    notes = auditevents.notes_of(event)
    body = event.get("requestObject")
    if notes.get(auditevents.MEDIA_TYPE):
        words += ["-H", shlex.quote(f"Content-Type: {notes[auditevents.MEDIA_TYPE]}")]
    if body is not None:
        words += ["--data", shlex.quote(json.dumps(body))]
    words.append(f'"{server}"{shlex.quote(_text(event.get("requestURI")))}')
    return " ".join(words)


_METHODS = {"create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE", "deletecollection": "DELETE"}


def _method(event: Mapping[str, Any]) -> str:
    try:
        return auditevents.operation_of(event).method
    except auditevents.EventError:
        return _METHODS.get(_text(event.get("verb")), "GET")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def printable(text: str) -> str:
    """Text of other people, safe on a terminal: no control characters, no reordering of what is shown."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def duration(started: str, ended: str) -> str:
    """`4m12s` between two timestamps; "" when they say nothing."""
    a, b = auditevents.seconds(started), auditevents.seconds(ended)
    if not a or not b:
        return ""
    whole = max(0, round(b - a))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def day_of(path: str) -> datetime.date | None:
    """The day in a session's path."""
    try:
        return datetime.date.fromisoformat(path[:10])
    except ValueError:
        return None
