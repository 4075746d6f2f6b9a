"""
The clock of a process under test. As `sitecustomize.py` on its PYTHONPATH, Python loads this at its start.

TOLLGATE_TEST_CLOCK names a file of two doubles, seconds that the wall clock and the monotonic clock are ahead.
It is mapped, so what the test writes counts at once (tests/e2e/clocks.py). Only what asks Python's `time` is
moved: the gateway asks nothing else for a decision. TLS goes by the kernel's clock, as the API server does.
"""

import mmap
import os
import struct
import time
from pathlib import Path

if file := os.environ.get("TOLLGATE_TEST_CLOCK"):
    with Path(file).open("r+b") as opened:
        ahead = mmap.mmap(opened.fileno(), 16)
    _time, _time_ns, _monotonic, _monotonic_ns = time.time, time.time_ns, time.monotonic, time.monotonic_ns

    def wall() -> float:
        return struct.unpack_from("d", ahead)[0]

    def steady() -> float:
        return struct.unpack_from("d", ahead, 8)[0]

    time.time = lambda: _time() + wall()
    time.time_ns = lambda: _time_ns() + int(wall() * 1e9)
    time.monotonic = lambda: _monotonic() + steady()
    time.monotonic_ns = lambda: _monotonic_ns() + int(steady() * 1e9)
