"""
A bound on what a client can send without end before or beside a request, which nobody else counts.

mitmproxy keeps a ClientHello until it is whole, and reads it from the start with every piece; the
line before a chunk, trailers, and what comes behind a request that is not answered yet are kept
whatever their size; and HTTP/2 frames that are no request cost the loop that everybody shares
(CVE-2019-9512, -9513, -9515, -9518, CVE-2023-44487). None of that needs a token. (The head of a request:
addons/mitm/errors.py; the message of a WebSocket: addons/mitm/websockets.py.)
"""

import asyncio
import contextlib
import functools
import gc
import logging
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import h2.connection
import h2.exceptions
import h2.frame_buffer
from hyperframe import frame as frames
from mitmproxy.connection import Connection, ConnectionState
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import ErrorCode, RequestProtocolError, _http1
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection
from mitmproxy.proxy.layers.tls import ClientTLSLayer
from mitmproxy.proxy.server import ConnectionHandler

from addons.core import limits
from addons.mitm import errors
from addons.mitm.patching import patch

logger = logging.getLogger(__name__)

MAX_HELLO = 16 * 1024  # bytes; with post-quantum keys it has 2 KiB, OpenSSL's own limit for most messages is 16
MAX_HELLO_PIECES = 256  # it comes in one or two
MAX_KEPT = 64 * 1024  # bytes of a chunk's line, of trailers, of what waits behind a request

# Frames of a connection that are no request and carry next to nothing. kubectl sends a few dozen.
FRAMES = 2000  # at once
FRAMES_RATE = 200  # more a second
FRAMES_OF_REQUEST = 4  # more with each request, which is counted itself: a small body, its end, a window, a reset
FRAMES_OF_RESET = 10  # what one costs: its request was begun for nothing; 330 at once, then 33 a second
BYTES_OF_UPDATE = 1024  # sent to the client; Go answers each 4 KiB with two WINDOW_UPDATEs
SOON = 0.1  # seconds until what a connection kept is freed, when that has been closed
SMALL = 64  # bytes of a DATA frame that carries something

_allowances: WeakKeyDictionary[h2.connection.H2Connection, limits.Allowance] = WeakKeyDictionary()


def _receive_handshake_data(original: Any) -> Any:
    def receive_handshake_data(self: Any, data: bytes) -> layer.CommandGenerator[tuple[bool, str | None]]:
        if not self.client_hello_parsed:
            self.tollgate_pieces = getattr(self, "tollgate_pieces", 0) + 1
            if len(self.recv_buffer) + len(data) > MAX_HELLO or self.tollgate_pieces > MAX_HELLO_PIECES:
                self.recv_buffer.clear()
                yield commands.CloseConnection(self.conn)
                return False, "the ClientHello has no end"
        done, error = yield from original(self, data)
        # Theirs quotes all of it, in hexadecimal.
        return done, error and error[:200]

    return receive_handshake_data


def _read_body(original: Any) -> Any:
    def read_body(self: _http1.Http1Connection, event: events.Event) -> layer.CommandGenerator[None]:
        yield from original(self, event)
        # Data is taken out as it comes: what is left is a line that has not ended.
        if isinstance(self, _http1.Http1Server) and self.state == self.read_body and len(self.buf) > MAX_KEPT:
            yield commands.SendData(self.conn, errors.error_response(400, "a chunk's line or trailers without an end"))
            yield from _end(self, "a chunk's line or trailers without an end")

    return read_body


def _wait(original: Any) -> Any:
    def wait(self: _http1.Http1Connection, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(self, _http1.Http1Server) and len(self.buf) > MAX_KEPT:
            yield from _end(self, "too much behind a request that is not answered yet")
            return
        yield from original(self, event)

    return wait


def _end(server: _http1.Http1Server, why: str) -> layer.CommandGenerator[None]:
    """Close the connection; the exchange that is open on it ends as when the client leaves."""
    server.buf = _http1.ReceiveBuffer()
    server.state = server.done
    yield commands.CloseConnection(server.conn)
    yield ReceiveHttp(RequestProtocolError(server.stream_id, why, ErrorCode.CLIENT_DISCONNECTED))


def _is_idle(frame: frames.Frame) -> bool:
    """Whether a frame is neither a request nor a part of one that carries something."""
    if isinstance(frame, frames.DataFrame):
        return len(frame.data) < SMALL
    return not isinstance(frame, frames.HeadersFrame)


def _receive_frame(original: Any, clock: Callable[[], float]) -> Any:
    def receive_frame(self: BufferedH2Connection, frame: frames.Frame) -> Any:
        if not self.config.client_side:
            allowance = _allowances.get(self)
            if allowance is None:
                allowance = _allowances[self] = limits.Allowance(FRAMES_RATE, FRAMES, clock())
            if not _is_idle(frame):
                allowance.earn(FRAMES_OF_REQUEST)
            elif not allowance.spend(clock(), FRAMES_OF_RESET if isinstance(frame, frames.RstStreamFrame) else 1):
                # GOAWAY with ENHANCE_YOUR_CALM.
                raise h2.exceptions.DenialOfServiceError("too many frames that are no request")
        return original(self, frame)

    return receive_frame


def _send_data(original: Any) -> Any:
    def send_data(self: BufferedH2Connection, stream_id: int, data: bytes, *args: Any, **more: Any) -> None:
        if (allowance := _allowances.get(self)) is not None:
            allowance.earn(len(data) / BYTES_OF_UPDATE)
        original(self, stream_id, data, *args, **more)

    return send_data


def _next_frame(original: Any) -> Any:
    def next_frame(self: h2.frame_buffer.FrameBuffer) -> frames.Frame:
        # RFC 9113, 4.2. hyper-h2 looks when the frame is complete: it would keep 16 MiB of one that says so, and
        # what a broken hop makes of the API server's answers would be waited for, for ever.
        if len(self._data) >= 3:
            self._validate_frame_length(int.from_bytes(self._data[:3]))
        return original(self)

    return next_frame


def _handle_connection(original: Any) -> Any:
    @functools.wraps(original)  # engine looks whether this is still the function that it was written for
    async def handle_connection(self: ConnectionHandler, connection: Connection) -> None:
        io = self.transports[connection]
        try:
            await original(self, connection)
        except MemoryError:
            # This connection ends. What it has kept is in cycles, which the collector would come to in an hour
            # (addons/mitm/collector.py), and until then no other connection could read a byte.
            logger.error("no memory for what %s sends; the connection is closed", connection.peername)
            connection.state = ConnectionState.CLOSED
            with contextlib.suppress(MemoryError):
                # Its exchanges end, and drop what they kept.
                await self.server_event(events.ConnectionClosed(connection))
            asyncio.get_running_loop().call_later(SOON, gc.collect)
        finally:
            # Two reasons to close at once cancel mitmproxy's task twice, and it forgets the socket: open, with
            # all that was read of it, until the collector comes by.
            if io.writer is not None and not io.writer.is_closing():
                io.writer.close()

    return handle_connection


@patch
def install() -> None:
    errors.install()  # its patches are below these
    ClientTLSLayer.receive_handshake_data = _receive_handshake_data(ClientTLSLayer.receive_handshake_data)
    _http1.Http1Connection.read_body = _read_body(_http1.Http1Connection.read_body)
    _http1.Http1Connection.wait = _wait(_http1.Http1Connection.wait)
    received = h2.connection.H2Connection._receive_frame
    BufferedH2Connection._receive_frame = _receive_frame(received, time.monotonic)
    h2.frame_buffer.FrameBuffer.__next__ = _next_frame(h2.frame_buffer.FrameBuffer.__next__)
    BufferedH2Connection.send_data = _send_data(BufferedH2Connection.send_data)
    ConnectionHandler.handle_connection = _handle_connection(ConnectionHandler.handle_connection)
