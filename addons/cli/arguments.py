"""What the commands have in common: where state lives, and what follows `--`."""

import os
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def state_default() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "tollgate"


def recordings_default() -> Path:
    """Where `serve` records, unless it is told otherwise."""
    return Path(os.environ.get("TOLLGATE_RECORDINGS") or ROOT / "recordings").expanduser()


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, and what follows `--`."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]
