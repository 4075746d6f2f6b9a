"""
What goes over the wire but must not be in a flow, and what was on it but is not in a flow.

The gateway's credential: a flow is displayed in mitmweb, saved and exported, so the
`Authorization` for the API server is added to a copy of the request at the moment it is
handed to the server connection, and exists nowhere else.

And the last gate: nothing of an exchange is handed to a server connection unless the guard's last
word released it. The guard's two addons share code, and what makes both raise (no memory) must
not send the client's own request on.

The client's authority: in reverse mode mitmproxy overwrites Host and :authority before the
first hook, so they are noted here for the guard to compare.
"""

import copy
import logging
import weakref
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from mitmproxy import http
from mitmproxy.proxy import commands, layer
from mitmproxy.proxy.layers.http import (
    HttpLayer,
    HttpStream,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
)

from addons.core import facts
from addons.mitm import seal
from addons.mitm.patching import patch

logger = logging.getLogger(__name__)

_REQUEST_PARTS = (RequestHeaders, RequestData, RequestTrailers, RequestEndOfMessage)


class Authority(NamedTuple):
    """What the client itself said about the host it wants."""

    authority: str  # :authority in HTTP/2; only an absolute-form target has one in HTTP/1
    hosts: tuple[str, ...]  # every Host header


_sent: WeakKeyDictionary[http.Request, Authority] = WeakKeyDictionary()


# The stream of each request, for `left`; its queue is the one place that knows of an HTTP/2 reset.
_streams: WeakKeyDictionary[http.Request, "weakref.ref[HttpStream]"] = WeakKeyDictionary()


def left(flow: http.HTTPFlow) -> bool:
    """
    Whether the client has gone while a hook holds its request: it closed the connection, or reset
    the HTTP/2 stream, which mitmproxy puts in the queue behind the hook and tells nobody.
    """
    if not flow.client_conn.connected:
        return True
    reference = _streams.get(flow.request)
    stream = reference() if reference is not None else None
    return stream is not None and any(isinstance(e, RequestProtocolError) for e in stream._paused_event_queue)


def authority(request: http.Request) -> Authority | None:
    """What the client sent, or None when the request did not come over the wire (a replay)."""
    return _sent.get(request)


def _with_credential(flow: http.HTTPFlow, event: RequestHeaders) -> RequestHeaders:
    known = facts.of(flow)
    if not known.credential:
        return event
    request = copy.copy(event.request)
    request.data = copy.copy(request.data)
    request.data.headers = http.Headers((*request.data.headers.fields, (b"authorization", known.credential.encode())))
    known.credential = ""
    return RequestHeaders(event.stream_id, request, event.end_stream)


@patch
def install() -> None:
    original = HttpLayer.event_to_child

    def event_to_child(self: HttpLayer, child: Any, event: Any) -> layer.CommandGenerator[None]:
        if isinstance(event, _REQUEST_PARTS):
            if not isinstance(child, HttpStream):
                flow = self.streams[event.stream_id].flow
                if not facts.of(flow).released:
                    # Direction: rather no answer than an unjudged request. Not a Status: making one may be what failed.
                    logger.critical("a request that was not released came as far as the wire and was stopped there")
                    yield commands.CloseConnection(self.context.client)
                    return
                if isinstance(event, RequestHeaders):
                    if seal.is_broken(flow):
                        logger.critical("a request that was changed after its release was stopped at the wire")
                        yield commands.CloseConnection(self.context.client)
                        return
                    event = _with_credential(flow, event)
            elif isinstance(event, RequestHeaders) and event.replay_flow is None:
                headers = event.request.headers
                _sent[event.request] = Authority(event.request.authority, tuple(headers.get_all("host")))
                _streams[event.request] = weakref.ref(child)
        yield from original(self, child, event)

    HttpLayer.event_to_child = event_to_child
