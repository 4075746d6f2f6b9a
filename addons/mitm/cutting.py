"""
Ending an exchange from outside: a watch whose token expired, an answer nobody judged.

mitmproxy has no way to do it, so an event of our own travels to its HTTP layer. The client
gets last words where its protocol has a place for them, and never what looks like a
complete answer: a watch gets an ERROR event and a reset, an exec a Status on channel 3
and a close, an answer that has not begun a Status.
"""

import asyncio
import json
from typing import Any

from mitmproxy import ctx, http
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers.http import (
    ErrorCode,
    HttpLayer,
    HttpStream,
    RequestProtocolError,
    ResponseData,
    ResponseProtocolError,
)

from addons.core import facts, status
from addons.mitm.errors import Sentence
from addons.mitm.patching import patch

_CLOSE_1000 = b"\x88\x02\x03\xe8"  # RFC 6455, 5.5.1: close, status 1000
_CHANNEL_ERROR = b"\x03"  # k8s.io/apimachinery/pkg/util/remotecommand: StreamErr of v4 and v5
_tasks: set[asyncio.Task[None]] = set()  # the loop keeps only weak references


class Cut(events.Event):
    """End the exchange of this flow, on both sides."""

    def __init__(self, flow: http.HTTPFlow, refusal: status.Refusal) -> None:
        self.flow = flow
        self.refusal = refusal


class _CutOff(ResponseProtocolError):
    """Ours, not the API server's: it may arrive when the answer has just been sent."""


def cut(flow: http.HTTPFlow, refusal: status.Refusal) -> None:
    """End this exchange soon, whatever state it is in; returns at once, harmless when it is over."""
    handler = ctx.master.addons.get("proxyserver").connections.get(flow.client_conn.id)
    if handler is None:
        return
    if flow.response and flow.response.status_code == 101 and not flow.websocket:
        # SPDY has no place for last words that we could write; the connection is this one exchange.
        task = handler.transports[handler.client].handler
        if task is not None:
            task.cancel("cut")
        return
    task = asyncio.get_running_loop().create_task(handler.server_event(Cut(flow, refusal)))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def last_words(flow: http.HTTPFlow, refusal: status.Refusal) -> bytes:
    """What ends a streamed answer so that the client shows the refusal; b"" where there is no such thing."""
    operation = facts.of(flow).operation
    if operation is None or operation.info.verb != "watch" or not flow.response:
        return b""
    if not flow.response.headers.get("content-type", "").startswith("application/json"):
        return b""
    event = {"type": "ERROR", "object": json.loads(status.body(refusal))}
    return json.dumps(event).encode() + b"\n"


def last_frame(flow: http.HTTPFlow, refusal: status.Refusal) -> bytes:
    """The same for an upgraded exchange: the guard lets this one frame pass unjudged. The first words stand."""
    if not flow.response or flow.response.headers.get("sec-websocket-protocol") not in (
        "v4.channel.k8s.io",
        "v5.channel.k8s.io",
    ):
        return b""
    known = facts.of(flow)
    known.last_words = known.last_words or _CHANNEL_ERROR + status.body(refusal)
    return known.last_words


def _websocket_frames(flow: http.HTTPFlow, refusal: status.Refusal) -> bytes:
    payload, frames = last_frame(flow, refusal), b""
    if payload:
        size = len(payload)
        frames = (b"\x82" + (bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2))) + payload
    return frames + _CLOSE_1000


def _end(self: HttpLayer, event: Cut) -> layer.CommandGenerator[None]:
    flow = event.flow
    stream = next((s for s in self.streams.values() if getattr(s, "flow", None) is flow), None)
    if stream is None:
        return  # it ended by itself
    sid = stream.stream_id
    if flow.websocket:
        # As if the API server had said it: mitmproxy's WebSocket layer then closes both sides in good order.
        yield from self.event_to_child(stream, ResponseData(sid, _websocket_frames(flow, event.refusal)))
        return
    if flow.response and flow.response.stream and (words := last_words(flow, event.refusal)):
        yield from self.event_to_child(self.connections[self.context.client], ResponseData(sid, words))
    sentence = Sentence(event.refusal)
    yield from self.event_to_child(stream, _CutOff(sid, sentence, ErrorCode.GENERIC_SERVER_ERROR))
    upstream = self.connections.get(flow.server_conn)
    if upstream is not None:
        yield from self.event_to_child(upstream, RequestProtocolError(sid, sentence, ErrorCode.CANCEL))


@patch
def install() -> None:
    original = HttpLayer._handle_event

    def handle_event(self: HttpLayer, event: Any) -> layer.CommandGenerator[None]:
        return _end(self, event) if isinstance(event, Cut) else original(self, event)

    HttpLayer._handle_event = handle_event

    protocol_error: Any = HttpStream.handle_protocol_error

    def handle_protocol_error(self: HttpStream, event: Any) -> layer.CommandGenerator[None]:
        # While a hook of the stream runs, events wait. Over HTTP/1 the connection may be at its next
        # request when this one's turn comes.
        if not isinstance(event, _CutOff) or self.server_state not in (self.state_done, self.state_errored):
            yield from protocol_error(self, event)

    HttpStream.handle_protocol_error = handle_protocol_error
