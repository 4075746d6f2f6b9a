"""
A mitmproxy script for tests: makes one hook of one addon raise, or wait, while the gateway runs.

The file named by TOLLGATE_TEST_FAULT holds "ADDON HOOK", or nothing. It is read before each event
that matters (client_connected is the first of a connection), so a test writes it and connects.
"""

import os
from pathlib import Path

from mitmproxy import ctx


def raises(*args, **kwargs):
    raise RuntimeError("fault injected by a test")


class Faults:
    name = "tollgate_test_faults"

    def __init__(self) -> None:
        self.file = Path(os.environ["TOLLGATE_TEST_FAULT"])
        self.broken: tuple[object, str] | None = None

    def client_connected(self, client) -> None:
        if self.broken is not None:
            addon, hook = self.broken
            delattr(addon, hook)
            self.broken = None
        if text := self.file.read_text().split():
            addon = ctx.master.addons.get(text[0])
            setattr(addon, text[1], raises)
            self.broken = addon, text[1]


addons = [Faults()]
