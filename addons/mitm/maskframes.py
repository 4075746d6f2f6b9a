"""
Frames from a pod, masked as they come: output that is held back for what might follow goes on with
later frames, after a moment of silence, and before the last one.

mitmproxy knows one frame for one frame: here one becomes several or none. They are put before the
frames that were received after it, and pass every hook like those.

It also makes a connection that broke one that was closed in good order, which clients take for a
command that did well. So whoever got no Status is told.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import wsproto.events
from mitmproxy import ctx, http, websocket
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers.http import HttpLayer, HttpStream
from mitmproxy.proxy.layers.websocket import (
    Fragmentizer,
    WebsocketConnection,
    WebsocketLayer,
    WebSocketMessageInjected,
)
from wsproto.frame_protocol import CloseReason, Opcode

from addons.core import facts, maskchannels, status
from addons.core.maskchannels import Channels, NotMaskable
from addons.mitm import cutting
from addons.mitm.patching import patch

logger = logging.getLogger(__name__)

QUIET = 0.05  # seconds of silence after which an incomplete line goes on; a person notices 100 ms
LATE = 0.1  # seconds that one is held back at most: a progress bar never ends its line
WAITING = 0.1  # seconds more after which a terminal gets the rest: its prompt may be no more than a word
_FRAGMENT = 64 * 1024  # bytes; mitmproxy cuts changed messages into pieces of 4000

BROKE_OFF = status.Refusal(
    502,
    "stream-broke-off",
    "tollgate: the connection to the API server broke before the command told how it ended; look whether it still runs "
    "before you start it again",
)

_streams: WeakKeyDictionary[http.HTTPFlow, "Frames"] = WeakKeyDictionary()
_servers: WeakKeyDictionary[WebsocketConnection, http.HTTPFlow] = WeakKeyDictionary()
_ended: WeakSet[http.HTTPFlow] = WeakSet()  # those whose Status went on
_tasks: set[asyncio.Task[None]] = set()  # the loop keeps only weak references


class Frames:
    """What the server sends in one upgraded exchange; made when it is answered."""

    def __init__(self, flow: http.HTTPFlow, channels: Channels, *, terminal: bool) -> None:
        self._flow = flow
        self._channels = channels
        self._terminal = terminal
        self._ours: deque[bytes] = deque()  # masked, and next to come
        self._timer: asyncio.TimerHandle | None = None
        self._came = 0.0  # when the last frame came, and the first of what is held back; the loop's clock
        self._held_since = 0.0
        self._asked = False  # an event is under way
        self._silences = 0  # since the last frame
        self._over = False
        _streams[flow] = self

    def judge(self, message: websocket.WebSocketMessage) -> None:
        """Turn a message from the server into what may go on. Raises NotMaskable: then it must not."""
        if self._over:
            raise NotMaskable("a frame after the end")
        if self._ours:
            if message.content == self._ours.popleft():
                return
            self.end()
            raise NotMaskable("another frame came in between")
        try:
            frames = self._channels.from_server(message.content)
        except Exception:
            self.end()  # direction: nobody knows what the next one belongs to
            raise
        self._hand_over(message, frames)
        self._came = asyncio.get_running_loop().time()
        self._silences = 0
        self._wait()

    def _hand_over(self, message: websocket.WebSocketMessage, frames: list[bytes]) -> None:
        if len(frames) == 1:
            message.content = frames[0]
        else:
            self._ours.extend(frames)
            facts.of(self._flow).instead = frames

    # Silence

    def _wait(self) -> None:
        """Look again when the silence was long enough."""
        if not self._channels.pending:
            self._held_since = 0.0
            self.stop()
            return
        self._held_since = self._held_since or self._came
        if self._timer is None and not self._asked:
            self._timer = asyncio.get_running_loop().call_at(self._due(), self._look)

    def _due(self) -> float:
        if self._silences:
            return self._came + QUIET + WAITING
        return min(self._came + QUIET, self._held_since + LATE)

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        if self._due() > loop.time() + 0.001:
            self._timer = loop.call_at(self._due(), self._look)
            return
        handler = ctx.master.addons.get("proxyserver").connections.get(self._flow.client_conn.id)
        if handler is not None:
            self._asked = True
            task = loop.create_task(handler.server_event(_Silence(self._flow)))
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)

    def after_silence(self) -> list[bytes]:
        """What goes on now; asked when no frame is under way, not even half of one."""
        self._asked = False
        if self._over:
            return []
        now = asyncio.get_running_loop().time()
        quiet = now - self._came >= QUIET - 0.001
        if self._terminal and quiet and self._silences:
            frames = self._channels.release()
        else:
            frames = self._channels.idle()
            self._silences += quiet
        self._held_since = now
        if not quiet or (self._terminal and self._silences == 1):
            self._wait()
        self._ours.extend(frames)
        return frames

    def postpone(self) -> None:
        """Half a frame is there: the other half comes soon, and what is held back with it."""
        self._asked = False

    def at_end(self) -> list[bytes]:
        """The rest, before the connection is closed."""
        self.stop()
        frames = [] if self._over else self._channels.finish()
        self._ours.extend(frames)
        return frames

    def end(self) -> None:
        """Nothing more goes on, neither what comes nor what was held back."""
        self.stop()
        self._over = True
        self._ours.clear()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Silence(WebSocketMessageInjected):
    """Nothing came for a moment. mitmproxy's own event has a message, which goes nowhere."""

    def __init__(self, flow: http.HTTPFlow) -> None:
        super().__init__(flow, websocket.WebSocketMessage(Opcode.BINARY, False, b""))


def _hear_silence(self: HttpLayer, event: _Silence) -> layer.CommandGenerator[None]:
    stream = next((s for s in self.streams.values() if getattr(s, "flow", None) is event.flow), None)
    if isinstance(stream, HttpStream) and isinstance(stream.child_layer, WebsocketLayer):
        yield from self.event_to_child(stream, event)


def _put_first(ws: WebsocketConnection, frames: list[bytes]) -> None:
    ws._events.extendleft(_as_events(frames[::-1]))


def _events_with_ours(original: Callable[[Any], Iterator[Any]]) -> Any:
    def received(self: WebsocketConnection) -> Iterator[Any]:
        """What wsproto received, with what masking made of it before what came after it."""
        flow = _servers.get(self)
        for event in original(self):
            if flow is None:
                yield event
                continue
            if isinstance(event, wsproto.events.CloseConnection):
                yield from _rest(flow)
                if event.code == CloseReason.ABNORMAL_CLOSURE and flow not in _ended:
                    yield from _as_events([cutting.last_frame(flow, BROKE_OFF)])
            yield event
            # After that the hooks of the event are over.
            known = facts.of(flow)
            if isinstance(event, wsproto.events.Message) and event.message_finished and _is_status(flow):
                _ended.add(flow)
            frames, known.instead = known.instead, None
            for one in _as_events(frames or []):
                yield one
                if _is_status(flow):
                    _ended.add(flow)

    return received


def _as_events(frames: list[bytes]) -> Iterator[wsproto.events.BytesMessage]:
    return (wsproto.events.BytesMessage(data=frame) for frame in frames if frame)


def _is_status(flow: http.HTTPFlow) -> bool:
    """Whether the message that just passed the hooks tells how the command ended."""
    message = flow.websocket.messages[-1]
    return not message.dropped and message.content[:1] == bytes([maskchannels.ERROR]) and len(message.content) > 1


def _rest(flow: http.HTTPFlow) -> Iterator[Any]:
    stream = _streams.get(flow)
    if stream is None:
        return
    if facts.of(flow).last_words:
        stream.end()  # cut: nothing comes after the last words
        return
    try:
        frames = stream.at_end()
    # direction: an end that is none.
    except Exception:
        logger.exception("masking the last of a stream failed")
        frames = [cutting.last_frame(flow, maskchannels.BROKEN)]
    yield from _as_events(frames)


def _relay_messages(original: Any) -> Any:
    def relay_messages(self: WebsocketLayer, event: events.Event) -> layer.CommandGenerator[None]:
        _servers[self.server_ws] = self.flow
        if isinstance(event, _Silence):
            stream = _streams.get(self.flow)
            if stream is None:
                return
            if any(self.server_ws.frame_buf):
                stream.postpone()  # mitmproxy would put ours in the middle of it
                return
            _put_first(self.server_ws, stream.after_silence())
            event = events.DataReceived(self.context.server, b"")
        yield from original(self, event)

    return relay_messages


@patch
def install() -> None:
    handle: Any = HttpLayer._handle_event

    def handle_event(self: HttpLayer, event: Any) -> layer.CommandGenerator[None]:
        return _hear_silence(self, event) if isinstance(event, _Silence) else handle(self, event)

    HttpLayer._handle_event = handle_event
    WebsocketConnection.events = _events_with_ours(WebsocketConnection.events)
    WebsocketLayer.relay_messages = _relay_messages(WebsocketLayer.relay_messages)
    Fragmentizer.FRAGMENT_SIZE = _FRAGMENT
