"""
Refusals as Kubernetes says them: a `metav1.Status`, whose `message` is the one thing
that kubectl, client-go and MCP servers show to a person or a model.

So a message is one line, says which rule first and what to do next last, and avoids what
real clients mangle (measured with kubectl 1.36 and three MCP servers): quotes and backslashes
arrive escaped, over 500 characters are cut, and one MCP server replaces every error that
contains "not found" by a sentence of its own.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache

MAX_MESSAGE = 500  # characters; kubectl apply prints it after a dump, hosts cut the tail

# metav1.StatusReason by code (k8s.io/apimachinery/pkg/apis/meta/v1/types.go). Not here: 409, which
# makes clients try again (kubectl scale: for ever), so nobody refuses with it. 429 only where a
# rule says `retry: true`, since it makes them try again as well.
REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "Timeout",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    429: "TooManyRequests",
    500: "InternalError",
    502: "BadGateway",
    503: "ServiceUnavailable",
    504: "Timeout",
}

# What client-go's discovery fetches. It reads the error of these without decoding it: of a Status
# people and models see the word "unknown", of plain text all of it (kubectl 1.36, kubernetes-mcp-server).
_READ_RAW = frozenset({"/api", "/apis", "/version"})
_READ_RAW_BELOW = "/openapi/"

_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\U0010ffff]+")
_NOT_FOUND = re.compile(r"not(\s+)found", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer in place of the request: HTTP code, a reason code for machines, a sentence."""

    code: int
    cause: str  # e.g. "path-not-canonical"; sent as the header Tollgate-Reason, stable
    message: str
    retry_after: int = 0  # seconds; sent as Retry-After, which makes clients of client-go try again by themselves


class Refused(Exception):
    """Raised by core functions for a request that must not go on."""

    def __init__(self, code: int, cause: str, message: str) -> None:
        super().__init__(message)
        self.refusal = Refusal(code, cause, message)


def one_line(message: str) -> str:
    """The message as clients show it unharmed: one line, no quotes or backslashes, at most 500 characters."""
    text = _UNPRINTABLE.sub(" ", message).replace('"', "'").replace("\\", "/")
    text = _NOT_FOUND.sub(r"not\1there", text)
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def is_read_as_text(refusal: Refusal, path: str) -> bool:
    """Whether clients show the refusal of this path only as plain text. For other codes they have their own words."""
    path = path.partition("?")[0]
    return refusal.code == 403 and (path.rstrip("/") in _READ_RAW or path.startswith(_READ_RAW_BELOW))


@lru_cache(maxsize=512)  # the same few sentences, over and over
def body(refusal: Refusal) -> bytes:
    """The refusal as `metav1.Status` JSON, UTF-8."""
    return json.dumps(
        {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": one_line(refusal.message),
            "reason": REASONS.get(refusal.code, ""),
            "code": refusal.code,
        },
        ensure_ascii=False,
    ).encode()
