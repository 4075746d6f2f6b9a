"""What mitmproxy says, made readable: a refused configuration is one sentence, connections are not a line each."""

import logging

from mitmproxy.exceptions import OptionsError


class _OneSentence(logging.Filter):
    """mitmproxy logs a script's OptionsError with a traceback through its own code, which helps nobody."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, OptionsError):
            record.msg, record.args, record.exc_info = "%s", (str(error),), None
        return True


def tidy() -> None:
    """Idempotent; called when the guard loads, so before any other script of ours."""
    # One line a connection and one a chunk of every stream: noise beside our own lines.
    logging.getLogger("mitmproxy.proxy.server").setLevel(logging.WARNING)
    scripts = logging.getLogger("mitmproxy.addons.script")
    if not any(isinstance(f, _OneSentence) for f in scripts.filters):
        scripts.addFilter(_OneSentence())
