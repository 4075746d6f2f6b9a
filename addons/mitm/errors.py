"""
mitmproxy's own error pages as Kubernetes Status, and two of its crashes as error pages.

kubectl prints an HTML page as noise ("an error on the server ("<html>…")"), an LLM reads
it as an outage. Also here, because they end in such a page: a request head without end
(mitmproxy buffers it for ever), chunked trailers (they crash its HTTP/1 reader), and an error after
`100 Continue` (which it takes for the answer).
"""

import re
from typing import Any

from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import ResponseProtocolError, _http1, _http2
from mitmproxy.proxy.layers.http._base import ReceiveHttp

from addons.core import status
from addons.mitm import answers
from addons.mitm.patching import patch

# bytes of a request head. Go's default is 1 MiB, etcd-sized tokens are 2 KiB; unauthenticated peers fill this.
MAX_HEAD = 64 * 1024

_HEAD_END = re.compile(rb"\n\r?\n")  # what mitmproxy's reader (h11's buffer) takes for the end
_HEAD_CONTROL = re.compile(rb"(?<!\r)\n|\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class Sentence(str):
    """A refusal that travels where mitmproxy carries an error text."""

    __slots__ = ("refusal",)
    refusal: status.Refusal

    def __new__(cls, refusal: status.Refusal) -> "Sentence":
        self = super().__new__(cls, refusal.message)
        self.refusal = refusal
        return self


def refusal_for(code: int, message: str) -> status.Refusal:
    """The Status in place of the page that mitmproxy would make for `code` and `message`."""
    if isinstance(message, Sentence):
        return message.refusal
    if code == 413:
        return status.Refusal(
            413, "body-too-large", "tollgate: the request body is over the gateway's limit; send a smaller object"
        )
    if code == 431:
        return status.Refusal(
            431, "head-too-large", f"tollgate: the request head is over {MAX_HEAD} bytes; send fewer or shorter headers"
        )
    if code < 500:
        # Without mitmproxy's advice to switch the check off, which is nothing for a client.
        what = message.partition("Disable the")[0].partition(", refusing")[0][:200].strip()
        return status.Refusal(
            code,
            "malformed",
            f"tollgate: the request is malformed and was not sent on ({what}); send it as RFC 9112 says",
        )
    # The address and errno in `message` are for the log, where mitmproxy writes them.
    return status.Refusal(
        502,
        "upstream-unreachable",
        "tollgate: the API server behind the gateway did not answer (connection refused, broken or not trusted); "
        "try again, and if it stays so ask the operator of the gateway",
    )


def error_response(status_code: int, message: str = "") -> bytes:
    """The bytes of the Status in place of mitmproxy's page; the connection closes after it."""
    response = answers.response(refusal_for(status_code, message))
    response.headers["Connection"] = "close"
    return http1.assemble_response(response)


def _h2_handle_event(original: Any) -> Any:
    def handle_event(self: _http2.Http2Server, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, ResponseProtocolError) and (code := event.code.http_status_code()) is not None:
            sid = event.stream_id
            stream = self.h2_conn.streams.get(sid)
            if stream is not None and self.is_open_for_us(sid) and not stream.state_machine.headers_sent:
                response = answers.response(refusal_for(code, event.message))
                headers = [(name.lower(), value) for name, value in response.headers.fields]
                self.h2_conn.send_headers(sid, [(b":status", b"%d" % response.status_code), *headers])
                self.h2_conn.send_data(sid, response.raw_content or b"", end_stream=True)
                yield commands.SendData(self.conn, self.h2_conn.data_to_send())
                return
        yield from original(self, event)

    return handle_event


def _trouble(received: bytes) -> tuple[int, str] | None:
    """What is wrong with the bytes of a head, complete or not, that mitmproxy would take: a code and a reason."""
    end = _HEAD_END.search(received)
    head = received[: end.end()] if end else received
    if len(head) > MAX_HEAD:
        return 431, ""  # direction: whoever sends this much before the head ends gets no more memory
    if end is None:
        return None
    # Here, since later it is too late: mitmproxy ends lines at a bare LF too and strips every white
    # space, and another hop that does not would see other headers.
    if _HEAD_CONTROL.search(head):
        return 400, "the head holds control characters or bare line ends"
    if b"\t" in head.lstrip(b"\r\n").partition(b"\n")[0]:
        return 400, "the request line holds a tab"
    return None


def _send(original: Any) -> Any:
    def send(self: _http1.Http1Server, event: Any) -> layer.CommandGenerator[None]:
        # A `100 Continue` is no answer yet; mitmproxy takes it for one, and closes without a word.
        if isinstance(event, ResponseProtocolError) and self.response and self.response.status_code == 100:
            self.response = None
        yield from original(self, event)

    return send


def _read_headers(original: Any) -> Any:
    def read_headers(self: _http1.Http1Server, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        trouble = _trouble(bytes(self.buf)) if isinstance(event, events.DataReceived) else None
        if trouble is not None:
            yield commands.SendData(self.conn, error_response(*trouble))
            yield commands.CloseConnection(self.conn)
            self.state = self.done
            return
        yield from original(self, event)

    return read_headers


def _read_body(original: Any) -> Any:
    def read_body(self: _http1.Http1Connection, event: events.Event) -> layer.CommandGenerator[None]:
        try:
            yield from original(self, event)
        except NotImplementedError:  # mitmproxy's words for trailers after a chunked body
            if isinstance(self, _http1.Http1Server):
                yield commands.SendData(self.conn, error_response(400, "trailers are not accepted"))
            yield commands.CloseConnection(self.conn)
            self.state = self.done
            code = self.ReceiveProtocolError.code
            yield ReceiveHttp(self.ReceiveProtocolError(self.stream_id or 0, "trailers are not accepted", code))

    return read_body


@patch
def install() -> None:
    _http1.make_error_response = error_response
    _http2.Http2Server._handle_event = _h2_handle_event(_http2.Http2Server._handle_event)
    _http1.Http1Server.send = _send(_http1.Http1Server.send)
    _http1.Http1Server.read_headers = _read_headers(_http1.Http1Server.read_headers)
    _http1.Http1Connection.read_body = _read_body(_http1.Http1Connection.read_body)
