"""Lines, tables, colours and a progress bar: what commands print, safe on any terminal."""

import os
from collections.abc import Sequence
from typing import TextIO

from addons.core.sessions import printable

COLOURS = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}
BAR = 30  # characters


class Screen:
    """
    Output for people. What is printed may be other people's text: control characters are shown,
    never sent. Colours on a terminal only.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colours = out.isatty() and "NO_COLOR" not in os.environ

    def line(self, text: str = "", colour: str = "") -> None:
        self._out.write(self.paint(text, colour).rstrip() + "\n")

    def raw(self, text: str) -> None:
        """A line of what `paint` made."""
        self._out.write(text.rstrip() + "\n")

    def paint(self, text: str, colour: str = "") -> str:
        shown = printable(text)
        return f"\033[{COLOURS[colour]}m{shown}\033[0m" if colour and self._colours and shown else shown

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
        """Columns as wide as they must be; those in `right` are numbers."""
        shown = [[printable(cell) for cell in row] for row in rows]
        widths = [max(len(row[n]) for row in (list(head), *shown)) for n in range(len(head))]
        for row in (list(head), *shown):
            cells = (cell.rjust(widths[n]) if n in right else cell.ljust(widths[n]) for n, cell in enumerate(row))
            self._out.write("  ".join(cells).rstrip() + "\n")


class Progress:
    """A bar on a terminal; nothing elsewhere."""

    def __init__(self, out: TextIO, total: int) -> None:
        self._out = out
        self._total = max(1, total)
        self._on = out.isatty()
        self._shown = -1

    def at(self, done: int, what: str = "") -> None:
        part = min(done, self._total) * 100 // self._total
        if not self._on or part == self._shown:
            return
        self._shown = part
        filled = part * BAR // 100
        self._out.write(f"\r\033[K[{'#' * filled}{'.' * (BAR - filled)}] {part:3d}% {printable(what)[:40]}")
        self._out.flush()

    def done(self) -> None:
        if self._on:
            self._out.write("\r\033[K")
            self._out.flush()
