"""The other end of tests/e2e/clockshim.py: a gateway whose clock a test moves while it runs."""

import shutil
import struct
import time
from pathlib import Path

from tests.e2e import gateway

HOUR, DAY = 3600.0, 86400.0


class Clock:
    """Run the gateway from `root` with `environment`."""

    def __init__(self, folder: Path) -> None:
        self.file, self.root = folder / "clock", folder / "root"
        self.environment = {"TOLLGATE_TEST_CLOCK": str(self.file)}
        self.wall = self.steady = 0.0
        self.file.write_bytes(bytes(16))
        shutil.copytree(gateway.ROOT / "addons", self.root / "addons", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(Path(__file__).with_name("clockshim.py"), self.root / "sitecustomize.py")

    def now(self) -> float:
        return time.time() + self.wall

    def jump(self, seconds: float) -> None:
        """Somebody puts the clock forward, or back."""
        self.wall += seconds
        self._write()

    def pass_time(self, seconds: float) -> None:
        """Time goes by: both clocks."""
        self.steady += seconds
        self.jump(seconds)

    def _write(self) -> None:
        with self.file.open("r+b") as opened:  # in place: the other end has it mapped
            opened.write(struct.pack("dd", self.wall, self.steady))
