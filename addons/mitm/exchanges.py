"""How far an exchange came: what was taken in advance is given back when the API server never saw the request."""

from mitmproxy import http

from addons.core import facts


def went_upstream(known: facts.Facts) -> bool:
    """Whether the API server may have got it: released by the guard; in a stack without one, not refused by any."""
    return known.released if known.refusal is not None else not known.answered_by


def connected(flow: http.HTTPFlow) -> bool:
    """Whether there was a connection to send it on. Until one is open, a flow has the mere address."""
    server = flow.server_conn
    return server.timestamp_tcp_setup is not None and (not server.tls or server.timestamp_tls_setup is not None)
