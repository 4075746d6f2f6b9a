"""
Text streams: container logs, exec and attach output, proxied text. Best effort, and said so:
who may run a program in a pod can make it print its secrets in a form that no pattern knows.

A line is passed on as soon as it is complete; one without an end when it is longer than the
window, but for the overlap in which a secret may still grow. Memory is bounded by the window
and the chunk that is fed.

NUL ends a secret and never is part of one: `/proc/1/environ` is separated by it, the files in a
tar archive are padded with it.
"""

from addons.core import maskdetect, masktags
from addons.core.maskknown import Known
from addons.core.masktags import Place

WINDOW = 16 * 1024  # bytes of one line that are held back at most
OVERLAP = 4 * 1024  # bytes of a longer line that stay back: no token shorter than this is cut in two
CONTEXT = 256  # bytes before them, passed on already, that are still looked at: a value's name
MAX_KEY = 32 * 1024  # bytes; a private key that has not ended by then was none
MIN_HELD = 8  # letters of a last word that is held back when a stream pauses in the middle of a line

_NUL = "\x1e"  # how it looks to the detectors, which find nothing across that
_BLANKS = (b"\0", b" ", b"\t", b"\n", b"\v", b"\f", b"\r", b'"', b"'", b"`")
_BREAKS = b"\0 \t\r\n\"'`,;&<>|()[]{}"


class TextMasker:
    """Bytes in, masked bytes out. One for each direction of a stream; not thread-safe."""

    def __init__(
        self,
        key: bytes,
        place: Place,
        nonce: bytes,
        known: Known | None = None,
        *,
        same_length: bool = False,
        cut_short: bool = False,
    ) -> None:
        """
        nonce: of this stream, random: its tags say nothing beyond it. same_length: every mask is as long
        as its secret, and tells that length, so that an archive or a dump stays one. cut_short: the
        client says where the stream ends, so its last word is left out when it may be half of one:
        half of a known value is known by nobody, and one letter more each time tells all of it.
        """
        self._same_length = same_length
        self._cut_short = cut_short
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
            rest = self._skip_token(data)
            out.append(self._left_out(len(data) - len(rest)).encode())
            data = rest
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
        if self._cut_short:
            at = self._last_word()
            return self._advance(at) if at > self._sent else b""
        at = len(self._line)
        while at > self._sent and self._line[at - 1] not in _BREAKS:
            at -= 1
        word = self._line[at:]
        if len(word) < MIN_HELD or not any(48 <= letter <= 57 for letter in word):
            at = len(self._line)
        return self._advance(at) if at > self._sent else b""

    def release(self) -> bytes:
        """All of an incomplete line: for a terminal, where somebody waits for what was written."""
        return self._advance(len(self._line)) if self.pending else b""

    def finish(self) -> bytes:
        """The rest, at the stream's end. Nothing may be fed after."""
        if self._cut_short:
            self._line = self._line[: max(self._last_word(), self._sent)]
        rest, self._line, sent, self._sent = self._line, b"", self._sent, 0
        return self._masked(rest, sent, len(rest), complete=True)[0] if rest else b""

    def _last_word(self) -> int:
        """Where the last word begins, as far as nothing that is looked up can reach (addons.core.maskknown)."""
        return max(self._line.rfind(letter) for letter in _BLANKS) + 1

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
        seen = text.replace("\0", _NUL)
        begin = 0
        out = []
        if self._in_key:
            begin = _end_of_key(seen, start)
            self._in_key += len(text) - start
            if begin < 0 and self._in_key <= MAX_KEY:
                out.append(self._tag(text[start:]))
                newline = complete and not self._same_length and text.endswith("\n")
                return ("".join([*out, "\n" if newline else ""]).encode(), len(raw))
            self._in_key = 0
            if begin > start:
                out.append(self._tag(text[start:begin]))
                start = begin
            begin = max(begin, 0)
        found = maskdetect.spans(seen[begin:])
        found = [(begin + one, begin + other) for one, other in found]
        if self._known is not None:
            found = maskdetect.merged(found + self._known.spans(raw.replace(b"\0", b"\n")))
        if _opens_key(seen[begin:]):
            self._in_key = 1
        last = start
        for one, other in found:
            if other <= start:
                continue
            if one >= end:
                break
            if one < start:
                # Its beginning was passed on or masked; the rest is left out.
                out.append(self._left_out(other - last))
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
            and not self._same_length
            and text.endswith("\n")
            and last == len(text)
            and not (out and out[-1].endswith("\n"))
        ):
            out.append("\n")
        return "".join(out).encode("latin-1"), last

    def _left_out(self, length: int) -> str:
        return "*" * length if self._same_length else ""

    def _tag(self, value: str) -> str:
        self._count += 1
        tag = masktags.tag(self._key, self._place, self._path, value)
        return tag[: len(value)].ljust(len(value), "*") if self._same_length else tag


def _opens_key(text: str) -> bool:
    begin = text.rfind("-----BEGIN ")
    return begin >= 0 and _NUL not in text[begin:] and maskdetect.opens_key(text)


def _end_of_key(text: str, start: int) -> int:
    """Where a private key that was begun ends; a file of an archive ends with it. -1: not in this text."""
    end, limit = maskdetect.end_of_key(text), text.find(_NUL, start)
    return limit if limit >= 0 and (end < 0 or limit < end) else end
