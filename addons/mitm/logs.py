"""
What is logged, made readable: a refused configuration is one sentence, connections are not a line
each; each line about a request has its id, which is its Audit-ID; and by option each is a line of JSON.
"""

import json
import logging
import secrets
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from mitmproxy.addons.termlog import TermLogHandler
from mitmproxy.exceptions import OptionsError
from mitmproxy.log import MitmFormatter
from mitmproxy.utils import human, vt_codes

from addons.core import masking
from addons.core.masktags import Place
from addons.mitm import listening

TEXT, JSON = "text", "json"
MAX_CLAIM = 120  # characters of a User-Agent or Kubectl-Session; the client writes what it likes, as long as it likes
LONG_CLAIM = 1024  # bytes of one that is looked at

_WORDS = Place("text")
_key = secrets.token_bytes(32)
_patterns = False  # of secrets, compiled: else the first line waits for them for seconds, and the loop with it


class About:
    """Which request the lines are about: its id, and what its client claims to be. Made for every request."""

    def __init__(self, request_id: str, fields: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.request = request_id
        self._agent = self._session = b""
        self._told = False
        for name, value in fields:
            if len(name) in _LENGTHS:  # looks at few of them more closely
                match name.lower():
                    case b"user-agent":
                        self._agent = value
                    case b"kubectl-session":
                        self._session = value

    # Read when there is a line, and once.

    @cached_property
    def agent(self) -> str:
        return claim(self._agent)

    @cached_property
    def session(self) -> str:
        return claim(self._session)

    def words(self) -> str:
        """For the end of a line of text: all of it at the request's first, later its id."""
        said = [f"request {self.request}"]
        if not self._told:
            # As Python quotes it, so that it cannot forge another line, or an order to a terminal.
            said += [f"{word} {text!a}" for word, text in (("claims", self.agent), ("session", self.session)) if text]
        self._told = True
        return f"({', '.join(said)})"


_LENGTHS = frozenset(map(len, (b"user-agent", b"kubectl-session")))
_about: ContextVar[About | None] = ContextVar("tollgate_about", default=None)


def patterns_are_ready() -> None:
    """From now on what clients write freely can be shown, masked."""
    global _patterns
    _patterns = True


def masked(text: str) -> str:
    """
    A line about a request, without what has the shape of a secret: names in it are the client's, and a token may
    stand where one belongs. As it is until the patterns are there, which the port waits for.
    """
    if not _patterns:
        return text
    try:
        return masking.mask_text(text, _WORDS, _key)
    except Exception:  # noqa: BLE001 -- what cannot be masked is not shown, whatever the reason
        return "not shown: it could not be masked"


def claim(value: bytes) -> str:
    """
    What a client says of itself, for the log: cut, in ASCII, and without what has the shape of a secret; a token
    in the wrong header must not be in the log for that.
    """
    if not value or not _patterns:
        return ""
    if len(value) > LONG_CLAIM:
        return f"not shown: {len(value)} bytes"  # half a token has the shape of none
    text = masked(value.decode("latin-1"))
    return text if len(text) <= MAX_CLAIM else f"{text[: MAX_CLAIM - 1]}…"


class _OneSentence(logging.Filter):
    """mitmproxy logs a script's OptionsError with a traceback through its own code, which helps nobody."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, OptionsError):
            record.msg, record.args, record.exc_info = "%s", (str(error),), None
        return True


class _NoTraceback(logging.Filter):
    """A connection that cannot be accepted is no mistake of anybody's code, and comes every second."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, OSError) and error.errno in listening.EXHAUSTED:
            record.msg, record.args = "out of resources, so connections have to wait: %s", (error.strerror,)
            record.exc_info = None
        return True


def tidy() -> None:
    """Idempotent; called when the guard loads, so before any other script of ours."""
    # One line a connection and one a chunk of every stream: noise beside our own lines.
    logging.getLogger("mitmproxy.proxy.server").setLevel(logging.WARNING)
    scripts = logging.getLogger("mitmproxy.addons.script")
    if not any(isinstance(f, _OneSentence) for f in scripts.filters):
        scripts.addFilter(_OneSentence())
    loop = logging.getLogger("mitmproxy.master")
    if not any(isinstance(f, _NoTraceback) for f in loop.filters):
        loop.addFilter(_NoTraceback())


def about(this: About | None) -> None:
    """What is logged from here on in this task is about this request: mitmproxy runs each hook in a task."""
    _about.set(this)


class TextLines(MitmFormatter):
    """mitmproxy's own lines, at the end of each which request it is about."""

    def format(self, record: logging.LogRecord) -> str:
        text, this = super().format(record), _about.get()
        return f"{masked(text)} {this.words()}" if this is not None else text


class JsonLines(logging.Formatter):
    """
    One line a record. The message is the text's own, so it says what that says and no more, but for what its
    client claims to be: nothing here adds another header, a body or a token.
    """

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (this := _about.get()) is not None:
            found["message"] = masked(found["message"])
            found["request"] = this.request
            found |= {
                key: text for key, text in (("claimedAgent", this.agent), ("claimedSession", this.session)) if text
            }
        if client := getattr(record, "client", None):
            found["client"] = human.format_address(client)
        if record.exc_info:
            text = self.formatException(record.exc_info)
            found["exception"] = masked(text) if this is not None else text
        return json.dumps(found)  # all in ASCII: no letter of a client's is an order to a terminal


def write_as(form: str) -> None:
    """TEXT or JSON, on the terminal from now on. Idempotent."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, TermLogHandler):
            colours = form == TEXT and vt_codes.ensure_supported(handler.file or sys.stdout)
            handler.formatter = JsonLines() if form == JSON else TextLines(colours)
