"""
The body limit for requests only, no memory for the bodies of refused ones, and a limit of its own
for answers that are kept whole.

mitmproxy's `body_size_limit` also refuses answers, and looks at them before any hook could
choose to stream: a 4 MB list would be a 502. And it answers only when the whole body is there,
even if the answer was known from the head: nobody without a token may have megabytes kept.
"""

from typing import Any

from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers.http import HttpStream, RequestData, ResponseData

from addons.core import facts, maskanswers
from addons.mitm import withholding
from addons.mitm.patching import patch


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
        if isinstance(event, ResponseData) and len(self.response_body_buf) + len(event.data) > maskanswers.MAX_WHOLE:
            self.response_body_buf.clear()
            yield from withholding.break_off(self, maskanswers.TOO_LARGE)
            yield from withholding.no_more(self)
            return
        yield from consume_answer(self, event)

    HttpStream.check_body_size = check_body_size
    HttpStream.state_consume_request_body = state_consume_request_body
    HttpStream.state_consume_response_body = state_consume_response_body
