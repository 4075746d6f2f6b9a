"""
A client that reads slowly over HTTP/2 slows the API server down, instead of filling our memory.

mitmproxy buffers what HTTP/2's flow control holds back and goes on reading upstream: a log of
400 MB that nobody reads is 500 MB of memory. Over HTTP/1.1 the socket does it already.

The same for upgraded connections: mitmproxy reads on while the hooks of a frame run, and keeps what
it read, half of what a fast exec puts out.
"""

import asyncio
from typing import Any
from weakref import WeakValueDictionary

from mitmproxy import ctx
from mitmproxy.connection import Client, ConnectionState
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import _http2
from mitmproxy.proxy.layers.tcp import TCPLayer
from mitmproxy.proxy.layers.websocket import WebsocketLayer
from mitmproxy.proxy.server import ConnectionHandler

from addons.mitm.patching import patch

MOST_HELD = 4 * 1024 * 1024  # bytes held back for one client connection; a few of Go's default windows
MOST_UNJUDGED = 1024 * 1024  # bytes read of an upgraded connection whose turn has not come; a few rounds of its hooks
LOOK_AGAIN = 0.01  # seconds; WINDOW_UPDATE frames come through another task and raise no event

# By id: a Http2Server holds its client, so with the client as the key neither would ever be freed.
_servers: WeakValueDictionary[str, _http2.Http2Server] = WeakValueDictionary()
# An upgraded connection is this one exchange.
_upgraded: WeakValueDictionary[str, WebsocketLayer | TCPLayer] = WeakValueDictionary()


def _waits_too_much(client: Client) -> bool:
    upgraded = _upgraded.get(client.id)
    if upgraded is None or not upgraded._paused_event_queue:
        return False
    return sum(len(getattr(event, "data", b"")) for event in upgraded._paused_event_queue) > MOST_UNJUDGED


def unsent(client: Client) -> int:
    """Bytes for this client that it has not taken: what flow control holds back, and what the socket does."""
    held = 0
    if (server := _servers.get(client.id)) is not None:
        held = sum(len(chunk.data) for queue in server.h2_conn.stream_buffers.values() for chunk in queue)
    handler = ctx.master.addons.get("proxyserver").connections.get(client.id)
    io = handler.transports.get(client) if handler is not None else None
    if io is None or io.writer is None:
        return 0  # it is gone, and with it what was meant for it
    return held + int(io.writer.transport.get_write_buffer_size())


def _holds_too_much(client: Client) -> bool:
    server = _servers.get(client.id)
    if server is None or not server.h2_conn.stream_buffers:
        return False
    held = 0
    for queue in server.h2_conn.stream_buffers.values():
        for chunk in queue:
            held += len(chunk.data)
            if held > MOST_HELD:
                return True
    return False


def _note_upgrade(kind: Any) -> None:
    make = kind.__init__

    def init(self: Any, context: Context, *args: Any, **more: Any) -> None:
        make(self, context, *args, **more)
        _upgraded[context.client.id] = self

    kind.__init__ = init


@patch
def install() -> None:
    make: Any = _http2.Http2Server.__init__
    drain = ConnectionHandler.drain_writers

    def init(self: _http2.Http2Server, context: Context) -> None:
        make(self, context)
        _servers[context.client.id] = self

    async def drain_writers(self: ConnectionHandler) -> None:
        await drain(self)
        while _waits_too_much(self.client) and self.client.state is not ConnectionState.CLOSED:
            self.timeout_watchdog.register_activity()
            await asyncio.sleep(LOOK_AGAIN)
        if not _holds_too_much(self.client):
            return
        io = self.transports.get(self.client)
        if io is None or io.handler is asyncio.current_task():
            return  # the client's own reader brings the WINDOW_UPDATE that everyone waits for
        while _holds_too_much(self.client) and self.client.state is not ConnectionState.CLOSED:
            self.timeout_watchdog.register_activity()  # waiting for the client is not idleness of the server
            await asyncio.sleep(LOOK_AGAIN)

    for kind in (WebsocketLayer, TCPLayer):
        _note_upgrade(kind)
    _http2.Http2Server.__init__ = init
    ConnectionHandler.drain_writers = drain_writers
