"""
Sending something more on a streamed answer from outside: text that was held back for what might
follow, once nothing has for a moment.

mitmproxy has no way to do it, so an event of our own travels to its HTTP layer, as in cutting.py.
What is sent is asked for only when the event arrives there, so that it keeps its place in the stream.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from mitmproxy import ctx, http
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers.http import HttpLayer, HttpStream, ResponseData

from addons.core import facts
from addons.mitm.patching import patch

_tasks: set[asyncio.Task[None]] = set()  # the loop keeps only weak references


class Inject(events.Event):
    """Send what `take` returns to the client, if this flow's answer is still being streamed."""

    def __init__(self, flow: http.HTTPFlow, take: Callable[[], bytes]) -> None:
        self.flow = flow
        self.take = take


def inject(flow: http.HTTPFlow, take: Callable[[], bytes]) -> None:
    """Returns at once; harmless when the exchange is over. `take` may return b"" and must not raise."""
    handler = ctx.master.addons.get("proxyserver").connections.get(flow.client_conn.id)
    if handler is None:
        return
    task = asyncio.get_running_loop().create_task(handler.server_event(Inject(flow, take)))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def _send(self: HttpLayer, event: Inject) -> layer.CommandGenerator[None]:
    stream = next((s for s in self.streams.values() if getattr(s, "flow", None) is event.flow), None)
    # Only between the head and the end: before, and after, a client would take it for something else.
    if not isinstance(stream, HttpStream) or stream.server_state != stream.state_stream_response_body:
        return
    if stream._paused is not None or not facts.of(event.flow).head_released:
        return  # a hook of the stream runs: its end, perhaps
    data = event.take()
    if data:
        client = self.connections[self.context.client]
        yield from self.event_to_child(client, ResponseData(stream.stream_id, data))


@patch
def install() -> None:
    original = HttpLayer._handle_event

    def handle_event(self: HttpLayer, event: Any) -> layer.CommandGenerator[None]:
        return _send(self, event) if isinstance(event, Inject) else original(self, event)

    HttpLayer._handle_event = handle_event
