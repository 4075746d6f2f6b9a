"""
The body limit for requests only.

mitmproxy's `body_size_limit` also refuses answers, and looks at them before any hook could
choose to stream: a 4 MB list would be a 502.
"""

from typing import Any

from mitmproxy.proxy import layer
from mitmproxy.proxy.layers.http import HttpStream

from addons.mitm.patching import patch


@patch
def install() -> None:
    original: Any = HttpStream.check_body_size

    def check_body_size(self: HttpStream, request: bool) -> layer.CommandGenerator[bool]:
        return (yield from original(self, True)) if request else False

    HttpStream.check_body_size = check_body_size
