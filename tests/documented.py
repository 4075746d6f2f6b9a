"""
The commands in the documentation, as they stand there: those of fenced blocks, and those of `./run.sh` in the text.
"""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")),
         ROOT / "policies" / "README.md", ROOT / "deploy" / "mcp" / "README.md"]  # fmt: skip
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(
    r"(?:\./run\.sh|\.venv/|kubectl|docker|openssl|cp|curl|echo|mitmweb|mitmdump|python|pip|TOLLGATE_\w+=)"
)
_HEREDOC = re.compile(r"(?m)^[^\n]*<<(\w+)\n.*?^\1$", re.DOTALL)


class Command(NamedTuple):
    page: str
    line: str  # without the prompt and the comment; a here-document has more lines
    marked: bool = False  # the paragraph before it says *not run here*, and why


def fenced(page: Path) -> list[Command]:
    """The commands of the blocks that are for a shell."""
    found, text = [], page.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        if block[1] in ("", "sh", "console"):
            marked = "*not run here*" in text[: block.start()].rstrip().rpartition("\n\n")[2]
            found += [Command(str(page.relative_to(ROOT)), line, marked) for line in _lines(block[2])]
    return found


def inline(page: Path) -> list[Command]:
    """`./run.sh …` within the text."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    return [Command(str(page.relative_to(ROOT)), line) for line in re.findall(r"`(\./run\.sh[^`]*)`", text)]


def _lines(block: str) -> list[str]:
    block = textwrap.dedent(block)  # it may belong to an item of a list
    documents = [match[0] for match in _HEREDOC.finditer(block)]
    rest = _HEREDOC.sub("", block).splitlines()
    if any(line.startswith("$ ") for line in rest):  # the others are what was answered
        rest = [line.removeprefix("$ ") for line in rest if line.startswith("$ ")]
    lines = [re.sub(r"\s+#\s.*$", "", line).strip() for line in rest]
    return [*documents, *(line for line in lines if _COMMAND.match(line))]
