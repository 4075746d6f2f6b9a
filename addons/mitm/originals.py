"""
Whether functions of mitmproxy are still those that ours were written to replace.

Speed is no reason to replace what nobody has read: where the version or the text of one of them differs,
nothing is replaced.
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mitmproxy import version

VERSION = "12.2.3"  # whose functions were read


def fingerprint(function: Callable[..., Any]) -> str:
    """A short hash of a function's text; "" when there is none."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return ""


def differ(expected: Mapping[Callable[..., Any], str], running: str | None = None) -> str:
    """Why these are not the functions of that version, as one sentence; "" when they are."""
    running = version.VERSION if running is None else running
    if running != VERSION:
        return f"mitmproxy is {running}, not {VERSION}"
    changed = [f.__qualname__ for f, known in expected.items() if fingerprint(f) != known]
    return f"{', '.join(changed)} of mitmproxy is not the function of {VERSION}" if changed else ""
