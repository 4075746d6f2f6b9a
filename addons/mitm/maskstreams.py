"""
Streamed answers, masked chunk by chunk as they come: what mitmproxy calls for each of them.

mitmproxy offers a chunk again when the callable raises, and takes `b""` for the end of a chunked body,
so neither ever leaves here. Direction: what cannot be masked ends the exchange, nothing more of
it leaves, and it is not ended as if it were complete.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from mitmproxy import http

from addons.core.masklines import NotAnEvent
from addons.core.masktext import TextMasker
from addons.core.status import Refusal
from addons.mitm import cutting, injecting

logger = logging.getLogger(__name__)

PAUSE = 0.05  # seconds of silence after which an incomplete line is passed on; a person notices 100 ms


class Masker(Protocol):
    """addons.core.masklines.EventMasker, addons.core.masktext.TextMasker."""

    @property
    def count(self) -> int: ...

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

    @property
    def masked(self) -> int:
        """How many values so far."""
        return self._masker.count

    def __call__(self, data: bytes) -> list[bytes]:
        if self.failed or self.ended:
            return []
        out = self._guarded(self._masker.finish if not data else lambda: self._masker.feed(data))
        if not data:
            self.ended = True
        return [out] if out else []

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
