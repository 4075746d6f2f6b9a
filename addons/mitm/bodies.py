"""
The body limit for requests only, and no memory for the bodies of refused ones.

mitmproxy's `body_size_limit` also refuses answers, and looks at them before any hook could
choose to stream: a 4 MB list would be a 502. And it answers only when the whole body is there,
even if the answer was known from the head: nobody without a token may have megabytes kept.
"""

from typing import Any

from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers.http import HttpStream, RequestData

from addons.core import facts
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

    HttpStream.check_body_size = check_body_size
    HttpStream.state_consume_request_body = state_consume_request_body
