"""
Asciicast: what went over an exec or attach, in a form that people can watch (`asciinema play`).

Version 2 of the format: a header line, then one line an event, `[seconds, "o", text]`. The frames
are those of Kubernetes' remote command protocol (k8s.io/apimachinery/pkg/util/remotecommand): the
first byte is the channel. A frame is no line and no letter: text is decoded across frames.
"""

import base64
import binascii
import codecs
import json
from typing import Any

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255  # channels of v4 and v5.channel.k8s.io
WIDTH, HEIGHT = 80, 24  # of a terminal that does not say
LARGEST = 10_000  # columns or rows; a size beyond it is a mistake, and players would make room for it
MAX_TITLE = 1024  # characters
MAX_STATUS = 4096  # characters of the Status at the end

_NEWLINE = "\n"


class Cast:
    """
    One stream. Each method returns the bytes to append to the file; times are seconds since the
    epoch and may go back, in the file they never do.
    """

    def __init__(
        self, title: str, started: float, *, tty: bool = False, protocol: str = "v5.channel.k8s.io", stdin: bool = True
    ) -> None:
        self._title = title
        self._started = started
        self._tty = tty
        self._base64 = protocol.startswith("base64.")
        self._stdin = stdin  # whether what was typed is kept; with a terminal the echo shows most of it
        self._latest = 0.0
        self._size = (0, 0)
        self._decoders = {channel: _decoder() for channel in (STDIN, STDOUT, STDERR)}
        self._ended_in_return = False

    def header(self) -> bytes:
        head: dict[str, Any] = {
            "version": 2,
            "width": WIDTH,
            "height": HEIGHT,
            "timestamp": max(0, int(self._started)),
            "title": _clean(self._title[:MAX_TITLE]),
            "env": {"TERM": "xterm-256color"},
        }
        return _line(head)

    def frame(self, content: bytes, *, from_client: bool, at: float) -> bytes:
        """A WebSocket message. What is none of the protocol's is left out."""
        found = self._channel(content)
        if found is None:
            return b""
        channel, data = found
        if from_client:
            if channel == STDIN:
                return self._text(STDIN, "i", data, at) if self._stdin else b""
            return self._resize(data, at) if channel == RESIZE else b""
        if channel in (STDOUT, STDERR):
            return self._text(channel, "o", data, at)
        return self._status(data, at) if channel == ERROR else b""

    def end(self, at: float, reason: str = "") -> bytes:
        """What was left of letters, and why it ended."""
        out = b""
        for channel, kind in ((STDIN, "i"), (STDOUT, "o"), (STDERR, "o")):
            rest = self._decoders[channel].decode(b"", final=True)
            if rest and (channel != STDIN or self._stdin):
                out += self._event(at, kind, rest)
        return out + (self._event(at, "m", _clean(reason[:MAX_TITLE])) if reason else b"")

    def _channel(self, content: bytes) -> tuple[int, bytes] | None:
        if not content:
            return None
        if not self._base64:
            return content[0], content[1:]
        try:  # `base64.channel.k8s.io`: the channel as a digit, the rest in base64
            return int(content[:1].decode("ascii")), base64.b64decode(content[1:], validate=True)
        except (ValueError, binascii.Error):
            return None

    def _text(self, channel: int, kind: str, data: bytes, at: float) -> bytes:
        text = self._decoders[channel].decode(data)
        if not text:
            return b""
        if kind == "o" and not self._tty:
            text = self._returns(text)
        return self._event(at, kind, text)

    def _returns(self, text: str) -> str:
        """Without a terminal nobody has put a return before each newline, and it would be shown as stairs."""
        in_a_pair = self._ended_in_return and text.startswith(_NEWLINE)
        self._ended_in_return = text.endswith("\r")
        shown = text.replace("\r\n", _NEWLINE).replace(_NEWLINE, "\r\n")
        return shown[1:] if in_a_pair else shown

    def _resize(self, data: bytes, at: float) -> bytes:
        size = size_of(data)
        if size is None or size == self._size:
            return b""
        self._size = size
        return self._event(at, "r", f"{size[0]}x{size[1]}")

    def _status(self, data: bytes, at: float) -> bytes:
        """The last word of the API server: a Status with the exit code."""
        try:
            status = json.loads(data)
        except (ValueError, RecursionError):
            return b""
        if not isinstance(status, dict):
            return b""
        message = status.get("message") if isinstance(status.get("message"), str) else ""
        words = "Success" if status.get("status") == "Success" else f"Failure: {message}"
        return self._event(at, "m", _clean(words[:MAX_STATUS]))

    def _event(self, at: float, kind: str, text: str) -> bytes:
        since = at - self._started
        # A clock that jumps back must not make a line that players refuse.
        self._latest = max(self._latest, since if since < 1e9 else 0.0)
        return _line([round(self._latest, 6), kind, text])


def size_of(data: bytes) -> tuple[int, int] | None:
    """Columns and rows of a terminal, as its frame says them; None for what says none."""
    try:
        size = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(size, dict):
        return None
    width, height = size.get("Width"), size.get("Height")
    if type(width) is not int or type(height) is not int:
        return None
    return (width, height) if 0 < width <= LARGEST and 0 < height <= LARGEST else None


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


def _line(value: Any) -> bytes:
    return json.dumps(value).encode("ascii") + b"\n"


def _clean(text: str) -> str:
    """For titles: one line, no half letters."""
    return " ".join(text.split()).encode("utf-8", "replace").decode()


def file_name(audit_id: str) -> str:
    """What the stream of a request is called: plain characters only, whatever the id holds."""
    plain = "".join(c for c in audit_id if c.isascii() and (c.isalnum() or c == "-"))[:64]
    return f"exec-{plain or 'stream'}.cast"
