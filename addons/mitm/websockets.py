"""
A bound on a WebSocket message that is not complete.

mitmproxy collects fragments until the last one before any hook sees them, and adds each to the
rest, so that a message without an end costs memory and, by its square, time.
"""

from typing import Any

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.websocket import WebsocketConnection, WebsocketLayer

from addons.mitm.patching import patch

MOST = 1024 * 1024  # bytes; exec, attach, cp and port-forward send 32 KiB at a time


def _unfinished(connection: WebsocketConnection) -> int:
    return sum(map(len, connection.frame_buf))


@patch
def install() -> None:
    original: Any = WebsocketLayer.relay_messages

    def relay_messages(self: WebsocketLayer, event: events.Event) -> layer.CommandGenerator[None]:
        yield from original(self, event)
        if _unfinished(self.client_ws) > MOST or _unfinished(self.server_ws) > MOST:
            yield commands.Log("a WebSocket message is over the limit; both sides are closed")
            self.client_ws.frame_buf, self.server_ws.frame_buf = [b""], [b""]
            self._handle_event = self.done
            yield commands.CloseConnection(self.client_ws.conn)
            yield commands.CloseConnection(self.server_ws.conn)

    WebsocketLayer.relay_messages = relay_messages
