"""
Streamed answers, masked chunk by chunk as they come: what mitmproxy calls for each of them.

mitmproxy offers a chunk again when the callable raises, and takes `b""` for the end of a chunked body,
so neither ever leaves here. Direction: what cannot be masked ends the exchange, nothing more of
it leaves, and it is not ended as if it were complete.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from mitmproxy import http

from addons.core.masklines import MAX_LINE, EventMasker, NotAnEvent
from addons.core.masktext import TextMasker
from addons.core.status import Refusal
from addons.mitm import cutting, injecting

logger = logging.getLogger(__name__)

PAUSE = 0.05  # seconds of silence after which an incomplete line is passed on; a person notices 100 ms

LARGE_EVENT = 128 * 1024  # bytes; a larger one takes some ms, for which nobody else should wait
MOST_WAITING = MAX_LINE  # bytes of events behind one that is masked in a thread; with more there, all wait for them

type Submit = Callable[[Callable[[], bytes]], Future[bytes]]


class Masker(Protocol):
    """addons.core.masklines.EventMasker, addons.core.masktext.TextMasker."""

    def feed(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class Stream:
    """For `flow.response.stream`. Raises nothing, returns a list."""

    def __init__(self, flow: http.HTTPFlow, masker: Masker, refusal: Refusal) -> None:
        """refusal: what the client is told when it is cut."""
        self._flow = flow
        self._masker = masker
        self._refusal = refusal
        self.failed = False
        self.ended = False

    def __call__(self, data: bytes) -> list[bytes]:
        if self.failed or self.ended:
            return []
        out = self._guarded(self._finish if not data else lambda: self._feed(data))
        if not data:
            self.ended = True
        return [out] if out else []

    def _feed(self, data: bytes) -> bytes:
        return self._masker.feed(data)

    def _finish(self) -> bytes:
        return self._masker.finish()

    def _guarded(self, step: Callable[[], bytes]) -> bytes:
        try:
            return step()
        except NotAnEvent as e:
            logger.error("a stream could not be masked and is cut: %s", e)
        # Whatever it was: mitmproxy would offer the chunk again and again.
        except Exception:
            logger.exception("masking a stream failed, so it is cut")
        self.failed = True
        cutting.cut(self._flow, self._refusal)
        return b""


class EventStream(Stream):
    """Of events; a large one is masked in a thread, and what comes behind it waits, in its order."""

    def __init__(
        self, flow: http.HTTPFlow, masker: EventMasker, refusal: Refusal, submit: Submit | None = None
    ) -> None:
        """submit: to a thread; raises RuntimeError when there is none any more."""
        super().__init__(flow, masker, refusal)
        self._events = masker
        self._submit = submit
        self._lines: deque[bytes] = deque()
        self._waiting = 0  # bytes of them
        self._line = b""  # the one in the thread
        self._work: Future[bytes] | None = None

    def _feed(self, data: bytes) -> bytes:
        for line in self._events.lines(data):
            self._lines.append(line)
            self._waiting += len(line)
        return self._advance()

    def _finish(self) -> bytes:
        self._submit = None
        return self._advance() + self._events.finish()

    def _advance(self) -> bytes:
        """What may go on now, in order."""
        out = []
        if self._work is not None:
            if self._work.done():
                out.append(self._work.result())
            elif self._submit is not None and self._waiting <= MOST_WAITING:
                return b""
            else:  # nobody waits for a thread here: it may have much to do
                out.append(self._events.masked(self._line))
            self._work = None
        while self._lines:
            line = self._lines.popleft()
            self._waiting -= len(line)
            if len(line) > LARGE_EVENT and self._waiting <= MOST_WAITING and self._begin(line):
                break
            out.append(self._events.masked(line))
        return b"".join(out)

    def _begin(self, line: bytes) -> bool:
        """Mask a line in a thread; False when there is none."""
        if self._submit is None:
            return False
        try:
            work = self._submit(partial(self._events.masked, line))
        except RuntimeError:
            return False
        self._line, self._work = line, work
        loop = asyncio.get_running_loop()

        def tell(_: Future[bytes]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(injecting.inject, self._flow, partial(self._take, work))

        work.add_done_callback(tell)
        return True

    def _take(self, work: Future[bytes]) -> bytes:
        """Asked for when its turn in the stream has come; something else may have taken it along."""
        if self.failed or self.ended or work is not self._work:
            return b""
        return self._guarded(self._advance)


class TextStream(Stream):
    """Of lines; the beginning of one is passed on when nothing came after it for a moment."""

    def __init__(self, flow: http.HTTPFlow, masker: TextMasker, refusal: Refusal) -> None:
        super().__init__(flow, masker, refusal)
        self._text = masker
        self._timer: asyncio.TimerHandle | None = None
        self._fed = 0.0

    def __call__(self, data: bytes) -> list[bytes]:
        out = super().__call__(data)
        if self._text.pending and not (self.failed or self.ended):
            loop = asyncio.get_running_loop()
            self._fed = loop.time()
            if self._timer is None:  # one at a time: a busy log would make thousands
                self._timer = loop.call_later(PAUSE, self._look)
        return out

    def _look(self) -> None:
        self._timer = None
        if self.failed or self.ended or not self._text.pending:
            return
        loop = asyncio.get_running_loop()
        left = self._fed + PAUSE - loop.time()
        if left > 0.001:
            self._timer = loop.call_later(left, self._look)
        else:
            injecting.inject(self._flow, self._take)

    def _take(self) -> bytes:
        """Asked for when its turn in the stream has come; what is fed meanwhile stays in order."""
        return b"" if self.failed or self.ended else self._guarded(self._text.idle)
