"""
The body limit for requests only, no memory for the bodies of refused ones, and a limit of its own
for answers that are kept whole.

mitmproxy's `body_size_limit` also refuses answers, and looks at them before any hook could
choose to stream: a 4 MB list would be a 502. And it answers only when the whole body is there,
even if the answer was known from the head: nobody without a token may have megabytes kept.

There is a limit for all kept answers together, too: a client may ask for hundreds at once, and read none.

And a time for a request's body as a whole, from the end of its head. mitmproxy has none: a client that sends a
byte a minute keeps what it sent, a connection and one of its address's open requests for ever. As a whole,
not between two reads, since the byte a minute is what it is for; the API server has such a limit, too
(`--request-timeout`, 60 s). An upgraded connection has no body in this sense.
"""

import asyncio
import logging
import time
import weakref
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import ctx, http
from mitmproxy.connection import Client
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers.http import HttpStream, RequestData, RequestHeaders, ResponseData, ResponseEndOfMessage

from addons.core import facts, limits, maskanswers, status
from addons.mitm import backpressure, cutting, withholding
from addons.mitm.patching import patch

logger = logging.getLogger(__name__)

TIME_LIMIT = 60  # seconds for a request's body; the default of tollgate_body_timeout
TOO_SLOW = status.Refusal(
    408,
    "body-too-slow",
    "tollgate: the request body did not come to its end in the time that the gateway waits for one "
    "(tollgate_body_timeout), and nothing was sent to the API server; send it again, all at once",
)

# Large answers that are being kept, with who asked; and clients who were sent one, while they have not read it.
_kept: WeakKeyDictionary[HttpStream, tuple[str, int]] = WeakKeyDictionary()
_unread: WeakKeyDictionary[Client, str] = WeakKeyDictionary()
# Requests whose body has not come to its end.
_waiting: WeakKeyDictionary[HttpStream, asyncio.TimerHandle] = WeakKeyDictionary()
_slow = limits.Digest()


def _held() -> Iterator[tuple[str, int]]:
    yield from list(_kept.values())
    for client, who in list(_unread.items()):
        if unsent := backpressure.unsent(client):
            yield who, unsent
        else:
            _unread.pop(client, None)


def _who(flow: http.HTTPFlow) -> str:
    identity = facts.of(flow).identity
    return identity.username if identity is not None else flow.client_conn.peername[0]


def _too_much(stream: HttpStream, size: int) -> status.Refusal | None:
    """Why an answer must not be kept when it has come to this size."""
    if size > maskanswers.MAX_WHOLE:
        return maskanswers.TOO_LARGE
    if size <= maskanswers.SMALL:
        return None
    _kept.pop(stream, None)
    who = _who(stream.flow)
    if not limits.fits(_held(), who, size, maskanswers.MAX_ALL):
        return maskanswers.CROWDED
    _kept[stream] = who, size
    return None


def _start_waiting(stream: HttpStream) -> None:
    seconds = ctx.options.tollgate_body_timeout if "tollgate_body_timeout" in ctx.options else TIME_LIMIT
    if seconds > 0:
        _waiting[stream] = asyncio.get_running_loop().call_later(seconds, _give_up, weakref.ref(stream))


def _stop_waiting(stream: HttpStream) -> None:
    if (timer := _waiting.pop(stream, None)) is not None:
        timer.cancel()


def _give_up(reference: "weakref.ref[HttpStream]") -> None:
    # Not the stream: a connection that crashes (no memory) does not tell its streams, and their bodies must go.
    stream = reference()
    if stream is None:
        return
    _waiting.pop(stream, None)
    # Should the end come before the cut does: the guard's last word refuses what has this.
    facts.of(stream.flow).cut_off = TOO_SLOW
    cutting.cut(stream.flow, TOO_SLOW)
    source = stream.flow.client_conn.peername[0]
    if count := _slow.note(source, time.monotonic()):
        logger.info("gave up on the bodies of %d requests from %s: too slow", count, source)


@patch
def install() -> None:
    original: Any = HttpStream.check_body_size

    def check_body_size(self: HttpStream, request: bool) -> layer.CommandGenerator[bool]:
        return (yield from original(self, True)) if request else False

    wait: Any = HttpStream.state_wait_for_request_headers

    def state_wait_for_request_headers(self: HttpStream, event: RequestHeaders) -> layer.CommandGenerator[None]:
        yield from wait(self, event)
        # Also for a request that is refused already: it is answered when its body is over.
        if not event.end_stream and self.client_state == self.state_consume_request_body:
            _start_waiting(self)

    consume: Any = HttpStream.state_consume_request_body

    def state_consume_request_body(self: HttpStream, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, RequestData):
            if not facts.of(self.flow).answered_by:
                yield from consume(self, event)
            if self.client_state != self.state_consume_request_body:
                _stop_waiting(self)  # it was too large
        else:
            _stop_waiting(self)
            yield from consume(self, event)

    consume_answer: Any = HttpStream.state_consume_response_body

    def state_consume_response_body(self: HttpStream, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, ResponseData):
            refusal = _too_much(self, len(self.response_body_buf) + len(event.data))
            if refusal is not None:
                self.response_body_buf.clear()
                yield from withholding.break_off(self, refusal)
                yield from withholding.no_more(self)
                return
        yield from consume_answer(self, event)
        if isinstance(event, ResponseEndOfMessage) and (kept := _kept.pop(self, None)) is not None:
            _unread[self.flow.client_conn] = kept[0]  # it was sent, or what came in its place

    protocol_error: Any = HttpStream.handle_protocol_error

    def handle_protocol_error(self: HttpStream, event: Any) -> layer.CommandGenerator[None]:
        _kept.pop(self, None)
        _stop_waiting(self)
        yield from protocol_error(self, event)

    HttpStream.check_body_size = check_body_size
    HttpStream.state_wait_for_request_headers = state_wait_for_request_headers
    HttpStream.state_consume_request_body = state_consume_request_body
    HttpStream.state_consume_response_body = state_consume_response_body
    HttpStream.handle_protocol_error = handle_protocol_error
