"""
What is logged, made readable: a refused configuration is one sentence, connections are not a line
each; and by option each record is a line of JSON, with the id of the request it is about.
"""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from mitmproxy.addons.termlog import TermLogHandler
from mitmproxy.exceptions import OptionsError
from mitmproxy.log import MitmFormatter
from mitmproxy.utils import human, vt_codes

from addons.mitm import listening

TEXT, JSON = "text", "json"
_request: ContextVar[str] = ContextVar("tollgate_request", default="")


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


def about(request_id: str) -> None:
    """What is logged from here on in this task is about this request: mitmproxy runs each hook in a task."""
    _request.set(request_id)


class JsonLines(logging.Formatter):
    """
    One line a record. The message is the text's own, so it says what that says and no more: nothing
    here adds a header, a body or a token.
    """

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := _request.get():
            found["request"] = request
        if client := getattr(record, "client", None):
            found["client"] = human.format_address(client)
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found)  # all in ASCII: no letter of a client's is an order to a terminal


def write_as(form: str) -> None:
    """TEXT or JSON, on the terminal from now on. Idempotent."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, TermLogHandler):
            colours = form == TEXT and vt_codes.ensure_supported(handler.file or sys.stdout)
            handler.formatter = JsonLines() if form == JSON else MitmFormatter(colours)
