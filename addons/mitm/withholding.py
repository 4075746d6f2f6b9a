"""
The last gate on the way back and for frames: what the guard's last word did not release goes nowhere.

The guard's two addons withhold answers and frames in hooks, and mitmproxy goes on when a hook
raises. So what came of the hooks is looked at here, where mitmproxy acts on it. Direction: an
answer that was not released is a Status, one that has begun breaks off and is never ended as if
it were complete, a frame is dropped and ends the exchange.
"""

from typing import Any

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import (
    ErrorCode,
    HttpResponseHook,
    HttpStream,
    RequestProtocolError,
    ResponseProtocolError,
    SendHttp,
)
from mitmproxy.proxy.layers.tcp import TCPLayer, TcpMessageHook
from mitmproxy.proxy.layers.websocket import WebsocketLayer, WebsocketMessageHook

from addons.core import facts, status
from addons.mitm import answers, cutting
from addons.mitm.errors import Sentence
from addons.mitm.patching import patch

ANSWER_NOT_JUDGED = status.Refusal(
    502,
    "answer-not-judged",
    "tollgate: the API server's answer was not judged by every part of the gateway and is withheld; the request "
    "itself was carried out; ask the operator, the log says which part failed",
)


def break_off(stream: HttpStream, refusal: status.Refusal = ANSWER_NOT_JUDGED) -> layer.CommandGenerator[None]:
    """Over HTTP/2 a reset, over HTTP/1 a closed connection; a Status when nothing was sent yet."""
    error = ResponseProtocolError(stream.stream_id, Sentence(refusal), ErrorCode.GENERIC_SERVER_ERROR)
    yield from stream.handle_protocol_error(error)


def no_more(stream: HttpStream) -> layer.CommandGenerator[None]:
    """Nobody reads what else the API server has to say."""
    yield SendHttp(RequestProtocolError(stream.stream_id, "withheld", ErrorCode.CANCEL), stream.flow.server_conn)


def _start_response_stream(original: Any) -> Any:
    def start_response_stream(self: HttpStream) -> layer.CommandGenerator[None]:
        if facts.of(self.flow).head_released:
            yield from original(self)
            return
        yield from break_off(self)
        yield from no_more(self)

    return start_response_stream


def _send_response(original: Any) -> Any:
    def send_response(self: HttpStream, already_streamed: bool = False) -> layer.CommandGenerator[None]:
        upgraded = self.flow.response.status_code == 101
        for command in original(self, already_streamed):
            yield command
            if not isinstance(command, HttpResponseHook):
                continue
            known = facts.of(self.flow)
            if known.released and not known.answer_released:
                if already_streamed:
                    self.server_state = self.state_done  # the response hook was its last; no error hook after it
                    yield from break_off(self)
                    return
                self.flow.websocket, self.flow.response = None, answers.response(ANSWER_NOT_JUDGED)
            if upgraded and self.flow.response.status_code != 101:
                # The API server speaks another protocol on it now: the command it runs must end, and mitmproxy
                # would use the connection for the client's next request.
                yield commands.CloseConnection(self.flow.server_conn)
        if upgraded and self.flow.response.status_code != 101:
            self.server_state = self.state_errored  # which takes what the API server said meanwhile, and drops it

    return send_response


def _relay_websocket_messages(original: Any) -> Any:
    def relay_messages(self: WebsocketLayer, event: events.Event) -> layer.CommandGenerator[None]:
        for command in original(self, event):
            yield command
            if isinstance(command, WebsocketMessageHook):
                message, known = self.flow.websocket.messages[-1], facts.of(self.flow)
                if known.frame is not message:
                    message.dropped, known.instead = True, None
                    if not known.last_words:
                        cutting.cut(self.flow, ANSWER_NOT_JUDGED)

    return relay_messages


def _relay_raw_messages(original: Any) -> Any:
    def relay_messages(self: TCPLayer, event: events.Event) -> layer.CommandGenerator[None]:
        for command in original(self, event):
            yield command
            if isinstance(command, TcpMessageHook):
                message = command.flow.messages[-1]
                if facts.of(command.flow).frame is not message:
                    message.content = b""
                    yield commands.CloseConnection(self.context.client)  # raw bytes have no place for last words

    return relay_messages


@patch
def install() -> None:
    start: Any = HttpStream.start_response_stream
    HttpStream.start_response_stream = _start_response_stream(start)
    HttpStream.send_response = _send_response(HttpStream.send_response)
    WebsocketLayer.relay_messages = _relay_websocket_messages(WebsocketLayer.relay_messages)
    TCPLayer.relay_messages = _relay_raw_messages(TCPLayer.relay_messages)
