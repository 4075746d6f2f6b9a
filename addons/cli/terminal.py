"""
A terminal that shows what others chose: every letter as itself or written out, never obeyed.

A terminal takes some letters for orders (move up, change colour, paste this), and a client chooses
many of the texts that an approver reads. So all text goes out through `Screen`, which writes such
letters as `<U+001B>`; the only escapes are its own colours, on a terminal, unless NO_COLOR is set.
"""

import asyncio
import contextlib
import os
import termios
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from addons.core import virtualobjects

_STYLES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}
_READ = 4096  # bytes of one line that is typed; the terminal itself ends there


@dataclass(frozen=True, slots=True)
class Styled:
    """A text in a colour, where there are colours."""

    text: str
    style: str


type Part = str | Styled
type Line = Sequence[Part]


def visible(text: str) -> str:
    """The text as one line in which every letter shows."""
    return str(virtualobjects.plain(text)).replace("\n", " ").replace("\t", " ")


def width(text: str) -> int:
    """Columns that it takes on a terminal."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


class Screen:
    """Where lines go."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.is_terminal = out.isatty()
        self._colours = self.is_terminal and "NO_COLOR" not in os.environ

    def line(self, *parts: Part) -> None:
        self._out.write("".join(map(self._shown, parts)).rstrip() + "\n")
        self._out.flush()  # whoever reads a watch through a pipe reads it now

    def lines(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self.line(*line)

    def table(self, rows: Sequence[Sequence[Part]]) -> None:
        """Rows of as many cells each, in columns."""
        widths = [max(width(visible(_text(cell))) for cell in column) for column in zip(*rows, strict=True)]
        for row in rows:
            cells: list[Part] = []
            for cell, wide in zip(row, widths, strict=True):
                cells += [cell, " " * (wide - width(visible(_text(cell))) + 2)]
            self.line(*cells)

    def write(self, text: str) -> None:
        """A text of our own making, as it is: JSON."""
        self._out.write(text)
        self._out.flush()

    def prompt(self, text: str) -> None:
        self._out.write(visible(text))
        self._out.flush()

    def bell(self) -> None:
        if self.is_terminal:
            self._out.write("\a")
            self._out.flush()

    def _shown(self, part: Part) -> str:
        text = visible(_text(part))
        if isinstance(part, str) or not self._colours or not text:
            return text
        return f"\033[{_STYLES[part.style]}m{text}\033[0m"


def _text(part: Part) -> str:
    return part if isinstance(part, str) else part.text


class Keyboard:
    """Where answers are typed."""

    def __init__(self, source: TextIO | None, screen: Screen) -> None:
        self._source = source
        self._screen = screen

    @property
    def somebody(self) -> bool:
        """Whether anybody can be asked."""
        return self._source is not None and self._source.isatty() and self._screen.is_terminal

    async def ask(self, question: str) -> str | None:
        """The answer, without spaces at its ends; None when there will be none (Ctrl-D). Can be cancelled."""
        if self._source is None:
            return None
        file, loop = self._source.fileno(), asyncio.get_running_loop()
        # What was typed before is an answer to something else: it must not approve what nobody has read.
        with contextlib.suppress(termios.error):
            termios.tcflush(file, termios.TCIFLUSH)
        self._screen.prompt(question)
        typed: asyncio.Future[bytes] = loop.create_future()

        def read() -> None:
            with contextlib.suppress(OSError):  # the terminal is gone: no answer
                if not typed.done():
                    typed.set_result(os.read(file, _READ))
                return
            if not typed.done():
                typed.set_result(b"")

        loop.add_reader(file, read)
        try:
            answer = await typed
        finally:
            loop.remove_reader(file)
        if not answer:
            self._screen.line()
            return None
        return answer.decode("utf-8", "replace").strip()
