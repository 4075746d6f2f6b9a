"""How an addon answers in the API server's place: a Status, once, and the first answer stands."""

import logging
import time

from mitmproxy import http

from addons.core import admission, facts, limits, status

logger = logging.getLogger(__name__)

MAX_SHOWN = 200  # characters of a path in the log; the rest is the client's to repeat for ever
CREDENTIALS = ("Authorization", "Proxy-Authorization", "Cookie", "Sec-WebSocket-Protocol")
_unknown = limits.Digest()  # refusals of nobody in particular: one line a second each, with a count


def response(refusal: status.Refusal, path: str = "") -> http.Response:
    """The refusal as an HTTP response, in the form in which clients show it of this path."""
    headers = {"Content-Type": "application/json", "Tollgate-Reason": refusal.cause}
    body = status.body(refusal)
    if status.is_read_as_text(refusal, path):
        headers["Content-Type"], body = "text/plain; charset=utf-8", status.one_line(refusal.message).encode()
    if refusal.code == 401:
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110, 11.6.1: a 401 names the scheme
    if refusal.retry_after:
        headers["Retry-After"] = str(refusal.retry_after)
    return http.Response.make(refusal.code, body, headers)


def code(flow: http.HTTPFlow) -> int:
    """The answer's, also while the guard withholds it: in `response` hooks, a placeholder stands in its place."""
    withheld = facts.of(flow).answer
    return (withheld if isinstance(withheld, http.Response) else flow.response).status_code


def refuse(flow: http.HTTPFlow, by: str, refusal: status.Refusal) -> None:
    """Answer the flow; later addons see `answered_by` and leave it alone."""
    known = facts.of(flow)
    flow.response = response(refusal, flow.request.path)
    known.answered_by = by
    # It goes nowhere now, but it is displayed and saved: whatever it brought as a credential goes.
    for header in CREDENTIALS:
        flow.request.headers.pop(header, None)
    count = 1
    if known.identity is None:
        peer = flow.client_conn.peername
        count = _unknown.note(f"{peer and peer[0]} {refusal.cause}", time.monotonic())
    if count:
        logger.info(
            "refused %s%s: %r %r by %s: %s",
            refusal.code,
            f" ({count} times)" if count > 1 else "",
            flow.request.method[:20],
            flow.request.path.partition("?")[0][:MAX_SHOWN],
            by,
            status.one_line(refusal.message),
        )


def relay(flow: http.HTTPFlow, by: str, refusal: admission.ServerRefusal) -> None:
    """
    What the API server said to the preview: it is what the request would have got. The caller has
    masked it, for this is no answer that comes back through the stack.

    No headers of its answer: a Retry-After makes clients try again.
    """
    flow.response = http.Response.make(
        refusal.code, refusal.body, {"Content-Type": "application/json", "Tollgate-Reason": "api-server"}
    )
    facts.of(flow).answered_by = by
    logger.info("refused %s: %r by the API server, before it was sent", refusal.code, flow.request.method)
