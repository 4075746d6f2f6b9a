"""An exec or attach as it is recorded: frame by frame, masked whoever asked, as an asciicast."""

from collections.abc import Callable

from addons.core.asciicast import CLOSE, RESIZE, STDIN, Cast, size_of
from addons.core.maskchannels import Channels
from addons.core.masktext import TextMasker

MAX_FRAMES = 256 * 1024  # bytes of frames kept for the flow; the asciicast has all of them

type Frame = tuple[bool, bytes, float]  # from the client, content, seconds since the epoch


class RecordedStream:
    """
    Each method returns what is to be appended to the file. Raises NotMaskable for what is no frame
    of the protocol.
    """

    def __init__(self, cast: Cast, channels: Channels, masker: Callable[[], TextMasker], *, typed: bool = True) -> None:
        """typed: whether what the client sends to the program is kept."""
        self._keeps_typed = typed
        self._cast = cast
        self._channels = channels
        self._typed = masker()
        self._kept = 0
        self.frames: list[Frame] = []
        self.cut = False  # there were more frames than are kept

    def header(self) -> bytes:
        return self._cast.header()

    def frame(self, content: bytes, *, from_client: bool, at: float) -> bytes:
        """A frame that went on. What may be half of a secret is kept back until more comes, or `idle`."""
        if not from_client:
            return self._put(self._channels.from_server(content), False, at)
        if content[:1] == bytes([STDIN]):
            if not self._keeps_typed:
                return b""
            return self._typed_on(self._typed.feed(content[1:]), at)
        return self._put([_known_part(content)], True, at)

    def idle(self, at: float) -> bytes:
        """What may be written when nothing came for a moment."""
        return self._put(self._channels.idle(), False, at) + self._typed_on(self._typed.idle(), at)

    def end(self, at: float, reason: str) -> bytes:
        rest = self._typed_on(self._typed.finish(), at) + self._put(self._channels.finish(), False, at)
        return rest + self._cast.end(at, reason)

    def _typed_on(self, masked: bytes, at: float) -> bytes:
        return self._put([bytes([STDIN]) + masked] if masked else [], True, at)

    def _put(self, frames: list[bytes], from_client: bool, at: float) -> bytes:
        out = b""
        for frame in frames:
            self._kept += len(frame)
            if self._kept <= MAX_FRAMES:
                self.frames.append((from_client, frame, at))
            else:
                self.cut = True
            out += self._cast.frame(frame, from_client=from_client, at=at)
        return out


def _known_part(content: bytes) -> bytes:
    """
    A client's frame that types nothing, as far as it means something to the protocol. The rest is
    ignored by the API server, and could be anything.
    """
    channel = content[:1]
    if channel == bytes([CLOSE]):
        return content[:2]
    size = size_of(content[1:]) if channel == bytes([RESIZE]) else None
    return channel if size is None else channel + b'{"Width":%d,"Height":%d}' % size
