"""How an addon answers in the API server's place: a Status, once, and the first answer stands."""

import logging

from mitmproxy import http

from addons.core import facts, status

logger = logging.getLogger(__name__)


def response(refusal: status.Refusal) -> http.Response:
    """The refusal as an HTTP response."""
    headers = {"Content-Type": "application/json", "Tollgate-Reason": refusal.cause}
    if refusal.code == 401:
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110, 11.6.1: a 401 names the scheme
    return http.Response.make(refusal.code, status.body(refusal), headers)


def refuse(flow: http.HTTPFlow, by: str, refusal: status.Refusal) -> None:
    """Answer the flow; later addons see `answered_by` and leave it alone."""
    known = facts.of(flow)
    flow.response = response(refusal)
    known.answered_by = by
    logger.info(
        "refused %s: %s %r by %s: %s",
        refusal.code,
        flow.request.method,
        flow.request.path.split("?")[0],
        by,
        status.one_line(refusal.message),
    )
