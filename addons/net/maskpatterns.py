"""The detectors' patterns, got ready once for all addons of this process."""

import logging
import threading
from pathlib import Path

from addons.core import maskdetect
from addons.net import files

logger = logging.getLogger(__name__)

_once = threading.Lock()
_ready: set[str] = set()


def warm(state: str) -> None:
    """Blocks for 3 s; with compiled ones from the last time in the state folder 0.3 s; later not at all."""
    with _once:
        if state in _ready:
            return
        try:
            maskdetect.warm(str(files.private_folder(Path(state).expanduser() / "patterns")) if state else None)
        except (OSError, RuntimeError, ValueError) as e:
            logger.warning("the patterns of secrets cannot be kept in the state folder: %s", type(e).__name__)
            maskdetect.warm(None)
        _ready.add(state)
