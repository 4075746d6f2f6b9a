"""
Connections of clients: ending one, and the five connections to one server that mitmproxy allows
each of them, where the sixth waits for ever, silently.
"""

import asyncio
from collections import defaultdict

from mitmproxy import connection, ctx

MOST = 1000  # upstream connections of one client connection; only upgrades and HTTP/1.1 need several


def close(client: connection.Client) -> None:
    """End a connection, whatever it is at: it has nothing to be told."""
    handler = ctx.master.addons.get("proxyserver").connections.get(client.id)
    io = handler.transports.get(handler.client) if handler is not None else None
    if io is not None and io.handler is not None:
        io.handler.cancel("closed by the gateway")


def lift_limit(client: connection.Client) -> None:
    """Called when a client has connected: the sixth watch over HTTP/1.1 must not hang."""
    handler = ctx.master.addons.get("proxyserver").connections.get(client.id)
    if handler is not None:
        handler.max_conns = defaultdict(lambda: asyncio.Semaphore(MOST))
