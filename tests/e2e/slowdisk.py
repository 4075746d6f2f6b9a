"""
A mitmproxy script for tests: while the file named by TOLLGATE_TEST_SLOW_DISK is there, no recording gets to disk.

Blocks the recorder's thread where it syncs, as a disk that hangs does.
"""

import os
import time
from pathlib import Path

from addons.net import recordfiles


class SlowDisk:
    name = "tollgate_test_slow_disk"

    def load(self, loader) -> None:
        file, sync = Path(os.environ["TOLLGATE_TEST_SLOW_DISK"]), recordfiles.File.sync

        def slow(self: recordfiles.File) -> None:
            while file.exists():
                time.sleep(0.02)
            sync(self)

        recordfiles.File.sync = slow


addons = [SlowDisk()]
