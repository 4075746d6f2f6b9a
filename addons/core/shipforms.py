"""
Shipping forms: how a recorded line looks on its way to others, and where it goes.

A line is an event or a checkpoint as it is in the recording. To stdout it goes as it is, to syslog
in a message of RFC 5424, to a webhook as an item of audit.k8s.io's EventList (a checkpoint then in
the form of an event). What is too long for a receiver goes without its objects, and says so; the
digests of the chain stay, so that it can be matched with the recording.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from addons.core import auditevents, chain

SHORTENED = f"{chain.PREFIX}shipped-without"
SYSLOG_PORT = 6514  # RFC 5425
FACILITY = 13  # "log audit", RFC 5424, 6.2.1
INFO = 6
MAX_SYSLOG = 64 * 1024  # bytes of one message; rsyslog's default is 8 KiB, so receivers are to be set to this
_LARGE = ("responseObject", "requestObject")  # left out first to last
_LARGE_NOTES = (auditevents.BEFORE, auditevents.OPERATION)


class TargetError(Exception):
    """A place to ship to that cannot be used; one sentence."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where lines go: `stdout`, `syslog+tls://host:6514?ca=FILE`, `https://host/path?token-file=FILE`."""

    kind: str  # stdout, syslog, webhook
    name: str  # for logs and the file that remembers how far it came; no secret is in it
    host: str = ""
    port: int = 0
    url: str = ""  # of a webhook, without our own parameters
    ca: str = ""
    cert: str = ""
    key: str = ""
    token_file: str = ""


_OURS = {"ca", "cert", "key", "token-file"}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def read_target(text: str) -> Target:
    """Raises TargetError."""
    if text == "stdout":
        return Target("stdout", "stdout")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise TargetError(f"{text[:100]!r} is not an address") from None
    if parts.username or parts.password:
        # It would be in logs and in the process list.
        raise TargetError("an address to ship to holds no password; use token-file=FILE")
    if not host:
        raise TargetError(f"{text[:100]!r} names no host; write stdout, syslog+tls://HOST or https://HOST/PATH")
    own, rest = _options(parts.query)
    files = {"ca": own.get("ca", ""), "cert": own.get("cert", ""), "key": own.get("key", "")}
    if parts.scheme == "syslog+tls":
        if rest or "token-file" in own or parts.path not in ("", "/"):
            raise TargetError(f"syslog+tls://{host} takes ca, cert and key only")
        where = port or SYSLOG_PORT
        return Target("syslog", f"syslog-{_plain(host)}-{where}", host, where, **files)
    if parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK):
        url = parts._replace(query=rest, fragment="").geturl()
        name = f"webhook-{_plain(host)}-{chain.digest(url.encode('utf-8', 'surrogatepass'))[:8]}"
        return Target("webhook", name, host, port or 0, url, token_file=own.get("token-file", ""), **files)
    raise TargetError(f"{parts.scheme or text[:40]!r} is none of stdout, syslog+tls:// and https://")


def _options(query: str) -> tuple[dict[str, str], str]:
    """Our own parameters, and the receiver's as they are."""
    own: dict[str, str] = {}
    others: list[str] = []
    for piece in query.split("&"):
        key, _, value = piece.partition("=")
        if key in _OURS:
            own[key] = unquote(value)
        elif piece:
            others.append(piece)
    return own, "&".join(others)


def _plain(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "_" for c in text)[:60]


def kind_of(line: bytes) -> str:
    """ "checkpoint" or "audit", for MSGID."""
    return "checkpoint" if b'"kind":"Checkpoint"' in line[:4096] and b'"signature":"' in line else "audit"


def syslog(line: bytes, *, host: str, time: str, limit: int = MAX_SYSLOG) -> bytes:
    """
    One message with its length before it (RFC 5425, 4.3): `<length> <110>1 TIME HOST tollgate - audit - {...}`.
    """
    text = shorten(line, limit)
    head = f"<{FACILITY * 8 + INFO}>1 {time} {_printable(host) or '-'} tollgate - {kind_of(line)} - ".encode("ascii")
    message = head + text
    return b"%d " % len(message) + message


def _printable(host: str) -> str:
    return "".join(c for c in host if "!" <= c <= "~")[:255]


def event_list(lines: Sequence[bytes]) -> bytes:
    """The lines as an EventList."""
    items = [_item(line) for line in lines]
    head = b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":['
    return head + b",".join(items) + b"]}"


def _item(line: bytes) -> bytes:
    if kind_of(line) == "audit":
        return line
    try:
        time = chain.read_checkpoint(line).time
    except chain.ChainError:
        time = ""
    return chain.canonical(chain.checkpoint_event(line, time))


def shorten(line: bytes, limit: int) -> bytes:
    """An event of about so many bytes: without the objects in it where it must be, and it says so."""
    if len(line) <= limit or kind_of(line) == "checkpoint":  # that is short by itself, and worth nothing when cut
        return line
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return line[:limit]
    if not isinstance(event, dict):
        return line[:limit]
    notes: dict[str, Any] = dict(event["annotations"]) if isinstance(event.get("annotations"), Mapping) else {}
    left: list[str] = []
    for name in _LARGE:
        if name in event and len(line) > limit:
            del event[name]
            left.append(name)
            line = _written(event, notes, left)
    for name in _LARGE_NOTES:
        if name in notes and len(line) > limit:
            del notes[name]
            left.append(name)
            line = _written(event, notes, left)
    if len(line) > limit:
        user = event.get("user")
        kept = ("kind", "apiVersion", "level", "auditID", "stage", "verb", "objectRef")
        event = {key: event[key] for key in kept if key in event}
        event["user"] = {"username": user.get("username")} if isinstance(user, Mapping) else {}
        notes = {key: notes[key] for key in (*chain.OURS, auditevents.VERDICT, auditevents.RULE) if key in notes}
        left.append("all else")
        line = _written(event, notes, left)
    return line


def _written(event: Mapping[str, Any], notes: Mapping[str, Any], left: Sequence[str]) -> bytes:
    return chain.canonical({**event, "annotations": {**notes, SHORTENED: ", ".join(left)}})


def dropped(lines: int, size: int, time: str) -> bytes:
    """What is shipped in place of lines that no receiver took in time: the recording still has them."""
    what = f"{lines} lines ({size} bytes) were not shipped: the buffer was full; see the recordings"
    event = {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "auditID": chain.digest(f"{lines} {size} {time}".encode())[:32],
        "stage": "ResponseComplete",
        "requestURI": "/apis/tollgate.dev/shipping",
        "verb": "dropped",
        "user": {"username": "tollgate"},
        "requestReceivedTimestamp": time,
        "stageTimestamp": time,
        "annotations": {auditevents.SUMMARY: what},
    }
    return chain.canonical(event)
