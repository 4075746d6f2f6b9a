"""
The body limit for requests only, no memory for the bodies of refused ones, and a limit of its own
for answers that are kept whole.

mitmproxy's `body_size_limit` also refuses answers, and looks at them before any hook could
choose to stream: a 4 MB list would be a 502. And it answers only when the whole body is there,
even if the answer was known from the head: nobody without a token may have megabytes kept.

There is a limit for all kept answers together, too: a client may ask for hundreds at once, and read none.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers.http import HttpStream, RequestData, ResponseData, ResponseEndOfMessage

from addons.core import facts, limits, maskanswers, status
from addons.mitm import backpressure, withholding
from addons.mitm.patching import patch

# Large answers that are being kept, with who asked; and clients who were sent one, while they have not read it.
_kept: WeakKeyDictionary[HttpStream, tuple[str, int]] = WeakKeyDictionary()
_unread: WeakKeyDictionary[Client, str] = WeakKeyDictionary()


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


@patch
def install() -> None:
    original: Any = HttpStream.check_body_size

    def check_body_size(self: HttpStream, request: bool) -> layer.CommandGenerator[bool]:
        return (yield from original(self, True)) if request else False

    consume: Any = HttpStream.state_consume_request_body

    def state_consume_request_body(self: HttpStream, event: events.Event) -> layer.CommandGenerator[None]:
        if not (isinstance(event, RequestData) and facts.of(self.flow).answered_by):
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
        yield from protocol_error(self, event)

    HttpStream.check_body_size = check_body_size
    HttpStream.state_consume_request_body = state_consume_request_body
    HttpStream.state_consume_response_body = state_consume_response_body
    HttpStream.handle_protocol_error = handle_protocol_error
