"""
Programs on a real terminal (a pty), and what they printed as a picture (SVG). The letters are the
programs' own; nothing is made up.
"""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

LIMIT = 60  # seconds for a text to appear and for a program to end
ROWS = 50
# An own frame: the library's would fetch a font from elsewhere whenever the picture is opened.
FORMAT = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px;
}}
.{unique_id}-title {{ font-family: sans-serif; font-size: 16px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
_NORMAL = [(40, 44, 52), (224, 108, 117), (152, 195, 121), (229, 192, 123),
           (97, 175, 239), (198, 120, 221), (86, 182, 194), (220, 223, 228)]  # fmt: skip
THEME = TerminalTheme((30, 33, 39), (220, 223, 228), _NORMAL, _NORMAL)


class NotSeen(Exception):
    """A program did not print what it should, or did not end."""


class Program:
    """A program that runs on a terminal of its own; use it in a `with`."""

    def __init__(self, argv: Sequence[str], folder: Path, environment: Mapping[str, str], columns: int) -> None:
        self._terminal, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        self._process = subprocess.Popen(
            argv,
            cwd=folder,
            env={**environment, "TERM": "xterm-256color"},
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)
        self._printed = b""
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def wait_for(self, text: str, seconds: float = LIMIT) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.printed:
            if not self._read(deadline):
                raise NotSeen(f"{text!r} did not appear in: {self.printed[-500:]!r}")

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def finish(self, seconds: float = LIMIT) -> str:
        """What it printed until its end."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        if self._open:
            raise NotSeen(f"it did not end; it printed {self.printed[-500:]!r}")
        return self.printed

    @property
    def printed(self) -> str:
        return plain_lines(self._printed.decode("utf-8", "replace"))

    def _read(self, deadline: float) -> bool:
        """Whether more may come."""
        if not self._open or not select.select([self._terminal], [], [], max(0, deadline - time.monotonic()))[0]:
            return False
        try:
            found = os.read(self._terminal, 65536)
        except OSError:  # how Linux says that nobody holds the other side any more
            found = b""
        self._printed += found
        self._open = bool(found)
        return self._open


def plain_lines(printed: str) -> str:
    """What is left on the screen, where colours are the only orders: of a line that was overwritten, its last."""
    lines = printed.replace("\a", "").replace("\r\n", "\n").split("\n")
    return "\n".join(re.sub(r"^.*\r(?:\x1b\[K)?", "", line) for line in lines)


def svg(transcript: str, title: str, columns: int) -> str:
    """The transcript, colours included, as a picture of a terminal so many columns wide."""
    console = Console(record=True, width=columns, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    for line in transcript.rstrip("\n").split("\n"):
        console.print(Text.from_ansi(line), overflow="fold", highlight=False)
    made = console.export_svg(
        title=title, theme=THEME, code_format=FORMAT, unique_id="terminal", font_aspect_ratio=0.61
    )
    return "\n".join(line.rstrip() for line in made.splitlines() if line.strip()) + "\n"
