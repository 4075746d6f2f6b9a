"""
exec and attach over WebSocket: the frames of their channels, masked.

The first byte of a frame names its channel (k8s.io/apimachinery/pkg/util/remotecommand): output,
errors, the Status at the end, and what the client sends. A frame is not a line: a secret may begin
in one and end in the next, so output is held back until its line is complete, and sent with the
next frame, after a moment of silence, or before the Status. Best effort, as all text is.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from addons.core.maskpolicy import MaskLevel
from addons.core.masktext import TextMasker
from addons.core.model import Operation
from addons.core.status import Refusal

# Those with a Status at the end. Before them an error was plain text, and `base64.` ones spell
# the same again in another way, which no client needs.
PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
STDOUT, STDERR, ERROR, CLOSE = 1, 2, 3, 255

_ARCHIVER = re.compile(r"(?:^|[^\w.-])tar(?:$|[^\w.-])")
_YOURS = "and secrets are masked for you"

SPDY = Refusal(
    403,
    "spdy-masked",
    f"mask: SPDY cannot be judged frame by frame nor masked, {_YOURS}, so it is not let through; use kubectl 1.31 or "
    "newer, which speaks WebSocket (and do not set KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false)",
)
PORT_FORWARD = Refusal(
    403,
    "portforward-masked",
    f"mask: what comes through a port-forward cannot be masked, {_YOURS}, so it is not let through; read the port "
    "through the pod's /proxy/ path, or ask the operator for a mask rule (mask: never) for pods/portforward",
)
PROXY = Refusal(
    403,
    "proxy-masked",
    f"mask: an upgraded connection through /proxy/ cannot be masked, {_YOURS}, so it is not let through; use plain "
    "requests, or ask the operator for a mask rule (mask: never) for this resource",
)
SUBPROTOCOL = Refusal(
    403,
    "subprotocol-masked",
    f"mask: of the protocols of exec and attach only {' and '.join(PROTOCOLS)} can be masked, {_YOURS}; name one of "
    "them in Sec-WebSocket-Protocol",
)
BROKEN = Refusal(
    502,
    "frames-not-masked",
    "mask: what came next from the pod could not be masked with certainty, so the stream ends; start it again, and if "
    "it stays so tell the operator",
)


class NotMaskable(Exception):
    """A frame that is not of the protocol, so nobody knows what is in it."""


def masks(level: MaskLevel) -> bool:
    """Whether frames are masked. Rules about fields of objects say nothing of text."""
    return level.builtin


def refusal(operation: Operation, level: MaskLevel, protocols: Sequence[str]) -> Refusal | None:
    """
    Why this upgrade cannot be masked and so is refused; None when it can be, or needs not.

    protocols: what the client offers in Sec-WebSocket-Protocol.
    """
    if not operation.upgrade or not masks(level):
        return None
    kind = operation.info.subresource
    if kind == "portforward":
        return PORT_FORWARD  # SPDY again, within a WebSocket's messages
    if kind not in ("exec", "attach"):
        return PROXY
    if operation.upgrade != "websocket":
        return SPDY
    return None if offered(protocols) else SUBPROTOCOL


def offered(protocols: Iterable[str]) -> list[str]:
    """Those of the offered protocols that can be masked: the server must not choose another."""
    return [protocol for protocol in protocols if protocol in PROTOCOLS]


def keeps_length(argv: Sequence[str]) -> bool:
    """
    Whether a command writes an archive (`kubectl cp` runs tar, or a shell that does): masks are then
    as long as their secrets, and tell that length. Else no file after the first secret could be read.
    """
    return any(_ARCHIVER.search(word) for word in argv)


class Channels:
    """What the server sends in one exec or attach. Its methods return whole frames, in order."""

    def __init__(self, masker: Callable[[], TextMasker], mask_status: Callable[[bytes], bytes]) -> None:
        """
        masker: a new one for each stream. mask_status: masks the JSON of a Status, raises what it
        likes when that cannot be read.
        """
        self._new = masker
        self._mask_status = mask_status
        self._output = {STDOUT: masker(), STDERR: masker()}

    @property
    def pending(self) -> int:
        """Bytes held back."""
        return sum(one.pending for one in self._output.values())

    def from_server(self, frame: bytes) -> list[bytes]:
        """What goes on in place of this frame, and now. Raises NotMaskable."""
        if not frame:
            raise NotMaskable("a frame without a channel")
        channel, payload = frame[0], frame[1:]
        if channel in self._output:
            # An empty one tells that the stream is there.
            return self._framed(channel, self._output[channel].feed(payload)) if payload else [frame]
        if channel == ERROR:
            return [*self.finish(), bytes([ERROR]) + self._status(payload)] if payload else [frame]
        if channel == CLOSE and len(payload) == 1:
            return [*self._finished(payload[0]), frame]
        if not payload:
            return [frame]
        raise NotMaskable(f"a frame of channel {channel} from the server")

    def idle(self) -> list[bytes]:
        """What may go on when nothing more came for a moment, see TextMasker.idle."""
        return self._of_each(TextMasker.idle)

    def release(self) -> list[bytes]:
        """All that is held back, see TextMasker.release."""
        return self._of_each(TextMasker.release)

    def finish(self) -> list[bytes]:
        """All that is held back, at the end; what comes after it all the same begins anew."""
        return [frame for channel in self._output for frame in self._finished(channel)]

    def _finished(self, channel: int) -> list[bytes]:
        if channel not in self._output:
            return []
        last, self._output[channel] = self._output[channel], self._new()
        return self._framed(channel, last.finish())

    def _of_each(self, step: Callable[[TextMasker], bytes]) -> list[bytes]:
        return [frame for channel, one in self._output.items() for frame in self._framed(channel, step(one))]

    def _framed(self, channel: int, out: bytes) -> list[bytes]:
        return [bytes([channel]) + out] if out else []

    def _status(self, payload: bytes) -> bytes:
        try:
            return self._mask_status(payload)
        except Exception as e:
            raise NotMaskable(f"the Status at the end cannot be read: {type(e).__name__}") from e
