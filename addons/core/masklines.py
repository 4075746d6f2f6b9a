"""
Watches: JSON events, one a line, each masked and passed on as it comes.

What is no event in good order raises: the stream is cut then, and nothing more of it leaves.
"""

from collections.abc import Callable
from typing import Any

from addons.core import masking, strict_json
from addons.core.maskpolicy import MaskLevel
from addons.core.masktags import Place

MAX_LINE = 8 * 1024 * 1024  # bytes; an object has 3 MiB at most, and a Table row repeats one


_COLUMNS = "columnDefinitions"


class NotAnEvent(Exception):
    """A line of a watch that cannot be masked with certainty; the message quotes nothing of it."""


class EventMasker:
    """Bytes of a watch in, whole masked events out. Holds back no more than one line."""

    def __init__(self, place: Place, key: bytes, level: MaskLevel, learn: Callable[[Any], None] | None = None) -> None:
        """learn: told the content of each event before it is masked."""
        self._place = place
        self._key = key
        self._level = level
        self._learn = learn
        self._rest = bytearray()
        self._count = 0
        self._columns: Any = None  # of a watch of Tables: only the first event says them

    @property
    def count(self) -> int:
        """How many values were masked so far."""
        return self._count

    def feed(self, data: bytes) -> bytes:
        """The events that are complete now; b"" when none is. Raises NotAnEvent."""
        return b"".join(map(self.masked, self.lines(data)))

    def lines(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, to be given to `masked` in this order. Raises NotAnEvent."""
        last = data.rfind(b"\n") + 1
        if not last:
            self._rest += data
            self._check(len(self._rest))
            return []
        complete = bytes(self._rest) + data[:last]
        self._rest = bytearray(data[last:])
        found = []
        for line in complete.split(b"\n")[:-1]:
            self._check(len(line))
            if line.strip():
                found.append(line)
        self._check(len(self._rest))
        return found

    def finish(self) -> bytes:
        """At the stream's end: nothing may be left. Raises NotAnEvent."""
        if bytes(self._rest).strip():
            raise NotAnEvent("a watch ended in the middle of an event")
        return b""

    def _check(self, size: int) -> None:
        if size > MAX_LINE:
            raise NotAnEvent(f"an event has over {MAX_LINE} bytes")

    def masked(self, line: bytes) -> bytes:
        """One event, masked; another thread may do it, if only one line is under way. Raises NotAnEvent."""
        try:
            content = strict_json.loads(line.decode(), line, depth=False)
        except (UnicodeDecodeError, strict_json.NotStrictJSON, RecursionError):
            raise NotAnEvent("a line of a watch is no JSON that all read alike") from None
        if not isinstance(content, dict) or not isinstance(content.get("type"), str) or "object" not in content:
            raise NotAnEvent("a line of a watch is no event")
        if self._learn is not None:
            self._learn(content)
        whole = self._with_columns(content)
        try:
            masked = masking.mask(whole, self._place, self._key, self._level)
        except RecursionError:
            raise NotAnEvent("an event is nested too deeply") from None
        if masked.content is whole:
            return line + b"\n"
        self._count += masked.count
        shown = masked.content
        if whole is not content:
            shown = {**shown, "object": {**shown["object"], _COLUMNS: content["object"].get(_COLUMNS)}}
        return masking.dumps(shown) + b"\n"

    def _with_columns(self, content: dict[str, Any]) -> dict[str, Any]:
        """A row alone does not say which of its cells is a name."""
        table = content["object"]
        if not isinstance(table, dict) or table.get("kind") != "Table":
            return content
        if table.get(_COLUMNS):
            self._columns = table[_COLUMNS]
            return content
        return {**content, "object": {**table, _COLUMNS: self._columns}} if self._columns else content
