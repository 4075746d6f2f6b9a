"""
Text streams: container logs, exec and attach output, proxied text. Best effort, and said so:
who may run a program in a pod can make it print its secrets in a form that no pattern knows.

A line is passed on as soon as it is complete; one without an end when it is longer than the
window, but for the overlap in which a secret may still grow. Memory is bounded by the window
and the chunk that is fed.
"""

from addons.core import maskdetect, masktags
from addons.core.maskknown import Known
from addons.core.masktags import Place

WINDOW = 16 * 1024  # bytes of one line that are held back at most
OVERLAP = 4 * 1024  # bytes of a longer line that stay back: no token shorter than this is cut in two
CONTEXT = 256  # bytes before them, passed on already, that are still looked at: a value's name
MAX_KEY = 32 * 1024  # bytes; a private key that has not ended by then was none
MIN_HELD = 8  # letters of a last word that is held back when a stream pauses in the middle of a line

_BREAKS = b" \t\r\n\"'`,;&<>|()[]{}"


class TextMasker:
    """Bytes in, masked bytes out. One for each direction of a stream; not thread-safe."""

    def __init__(self, key: bytes, place: Place, nonce: bytes, known: Known | None = None) -> None:
        """nonce: of this stream, random: its tags say nothing beyond it."""
        self._key = key
        self._place = place
        self._path = f"text {nonce.hex()}"
        self._known = known
        self._line = b""  # what is not passed on, and before it what was, as context
        self._sent = 0  # bytes of it that were passed on
        self._in_key = 0  # bytes of a private key seen so far; 0: in none
        self._in_token = False  # a secret longer than the window: its rest is left out
        self._count = 0

    @property
    def count(self) -> int:
        """How many secrets were masked so far."""
        return self._count

    @property
    def pending(self) -> int:
        """Bytes held back."""
        return len(self._line) - self._sent

    def feed(self, data: bytes) -> bytes:
        """What can be passed on now; b"" when nothing can."""
        out = []
        if self._in_token:
            data = self._skip_token(data)
        self._line += data
        end = self._line.rfind(b"\n") + 1
        if end:
            out.append(self._masked(self._line[:end], self._sent, end, complete=True)[0])
            self._line, self._sent = self._line[end:], 0
        if self.pending > WINDOW:
            out.append(self._advance(len(self._line) - OVERLAP))
        return b"".join(out)

    def idle(self) -> bytes:
        """
        What may be passed on of an incomplete line when nothing more came for a moment (a shell's
        prompt, an echoed letter): all but a last word that may be the beginning of a secret.
        """
        if not self.pending:
            return b""
        at = len(self._line)
        while at > self._sent and self._line[at - 1] not in _BREAKS:
            at -= 1
        word = self._line[at:]
        if len(word) < MIN_HELD or not any(48 <= letter <= 57 for letter in word):
            at = len(self._line)
        return self._advance(at) if at > self._sent else b""

    def finish(self) -> bytes:
        """The rest, at the stream's end. Nothing may be fed after."""
        rest, self._line, sent, self._sent = self._line, b"", self._sent, 0
        return self._masked(rest, sent, len(rest), complete=True)[0] if rest else b""

    def _advance(self, upto: int) -> bytes:
        """Pass on an incomplete line to about this place."""
        out, upto = self._masked(self._line, self._sent, upto, complete=False)
        keep = max(0, upto - CONTEXT)
        self._line, self._sent = self._line[keep:], upto - keep
        return out

    def _skip_token(self, data: bytes) -> bytes:
        for at, letter in enumerate(data):
            if letter in _BREAKS:
                self._in_token = False
                return data[at:]
        return b""

    def _masked(self, raw: bytes, start: int, end: int, *, complete: bool) -> tuple[bytes, int]:
        """raw[start:end] masked, seen in all of raw; and the place up to which that is, which may be another."""
        text = raw.decode("latin-1")  # one letter for one byte
        begin = 0
        out = []
        if self._in_key:
            begin = maskdetect.end_of_key(text)
            self._in_key += len(text) - start
            if begin < 0 and self._in_key <= MAX_KEY:
                out.append(self._tag(text[start:]))
                return ("".join([*out, "\n" if complete and text.endswith("\n") else ""]).encode(), len(raw))
            self._in_key = 0
            if begin > start:
                out.append(self._tag(text[start:begin]))
                start = begin
            begin = max(begin, 0)
        found = maskdetect.spans(text[begin:])
        found = [(begin + one, begin + other) for one, other in found]
        if self._known is not None:
            found = maskdetect.merged(found + self._known.spans(raw))
        if maskdetect.opens_key(text[begin:]):
            self._in_key = 1
        last = start
        for one, other in found:
            if other <= start:
                continue
            if one >= end:
                break
            if one < start:
                last = other  # its beginning was passed on or masked; the rest is left out
            else:
                out += (text[last:one], self._tag(text[one:other]))
                last = other
            if other == len(text) and not complete and not self._in_key:
                self._in_token = True
        if last < end:
            out.append(text[last:end])
            last = end
        if (
            complete
            and self._in_key
            and text.endswith("\n")
            and last == len(text)
            and not (out and out[-1].endswith("\n"))
        ):
            out.append("\n")
        return "".join(out).encode("latin-1"), last

    def _tag(self, value: str) -> str:
        self._count += 1
        return masktags.tag(self._key, self._place, self._path, value)
