"""
A graceful HTTP/2 GOAWAY from the API server drains the connection instead of breaking it.

mitmproxy fails every open stream on any GOAWAY. The API server sends one with each 401,
when it shuts down, and at random (--goaway-chance), always with the promise that streams
up to `last_stream_id` are answered (RFC 9113, 6.8). So those go on, later ones fail (the
server says it did not process them), and new requests take a new connection.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import h2.connection
import h2.events
from mitmproxy.connection import Connection
from mitmproxy.proxy import layer
from mitmproxy.proxy.layers.http import ErrorCode, GetHttpConnection, ResponseProtocolError, _http2
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from addons.core import status
from addons.mitm.errors import Sentence
from addons.mitm.patching import patch

_draining: WeakSet[Connection] = WeakSet()

NOT_PROCESSED = status.Refusal(
    502,
    "upstream-draining",
    "tollgate: the API server closed the connection before it took this request, so nothing was done; run it again",
)


@dataclass(kw_only=True)
class Draining(h2.events.Event):
    """Not `ConnectionTerminated`: at that one mitmproxy drops request bodies it has yet to send."""

    last_stream_id: int


def _receive_goaway_frame(original: Any) -> Any:
    def receive_goaway_frame(self: BufferedH2Connection, frame: Any) -> Any:
        # Only a server's NO_ERROR is a promise; anything else stays an error.
        if self.config.client_side and frame.error_code == 0:
            return [], [Draining(last_stream_id=frame.last_stream_id)]
        return original(self, frame)

    return receive_goaway_frame


def _handle_h2_event(original: Any) -> Any:
    def handle_h2_event(self: _http2.Http2Client, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        if not isinstance(event, Draining):
            return (yield from original(self, event))
        _draining.add(self.conn)
        for sid in [s for s in self.streams if s > event.last_stream_id]:
            self.streams.pop(sid)
            yield ReceiveHttp(ResponseProtocolError(sid, Sentence(NOT_PROCESSED), ErrorCode.GENERIC_SERVER_ERROR))
        # Requests that wait for a free stream have no id on this connection yet: lend them one to be answered.
        for theirs in list(self.stream_queue):
            del self.stream_queue[theirs]
            self.their_stream_id[-theirs] = theirs
            yield ReceiveHttp(ResponseProtocolError(-theirs, Sentence(NOT_PROCESSED), ErrorCode.GENERIC_SERVER_ERROR))
        return False

    return handle_h2_event


def _connection_spec_matches(original: Any) -> Any:
    def connection_spec_matches(self: GetHttpConnection, connection: Connection) -> bool:
        return connection not in _draining and bool(original(self, connection))

    return connection_spec_matches


@patch
def install() -> None:
    goaway = h2.connection.H2Connection._receive_goaway_frame
    BufferedH2Connection._receive_goaway_frame = _receive_goaway_frame(goaway)
    client = _http2.Http2Client
    client.handle_h2_event = _handle_h2_event(client.handle_h2_event)
    matches = GetHttpConnection.connection_spec_matches
    GetHttpConnection.connection_spec_matches = _connection_spec_matches(matches)
