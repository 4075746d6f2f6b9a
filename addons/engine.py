"""
Engine: the same, faster. It judges nothing, so nothing demands it, and it can be left out (`--without engine`).

What it replaces in mitmproxy carries all that the guard rests on, so it does it for the one version whose functions
were read, and only if they are still those, all or nothing; else it says so and changes nothing. The tests hold its
parts against mitmproxy's own (tests/addons/mitm), and the fault tests run with and without.
"""

import asyncio
import logging

from mitmproxy import ctx, exceptions
from mitmproxy.addonmanager import Loader

from addons.mitm import collector, dispatch, inlining, originals, trimming, unused

logger = logging.getLogger(__name__)

PARTS = (dispatch, inlining, trimming)
SETTLED = 5.0  # seconds after the start; patterns, keys and the first policies are there by then


class Engine:
    name = "tollgate_engine"

    def __init__(self) -> None:
        self.settling: asyncio.TimerHandle | None = None

    def load(self, loader: Loader) -> None:
        expected = {function: text for part in PARTS for function, text in part.EXPECTED.items()}
        # All or nothing: inlined hooks rely on the table, and the table on being told of every change.
        reason = "" if dispatch.installed() else originals.differ(expected)
        if reason:
            logger.warning("engine: %s, so mitmproxy is left as it is, which is slower; nothing else changes", reason)
        else:
            for part in PARTS:
                part.install()

    def configure(self, updated: set[str]) -> None:
        if found := unused.missed(ctx.master):
            raise exceptions.OptionsError("; ".join(found))

    def running(self) -> None:
        # Not in `load`: whoever is being added while the manager's chain is replaced is lost from it.
        unused.remove(ctx.master)
        if self.settling is None:
            self.settling = asyncio.get_running_loop().call_later(SETTLED, collector.settle)

    def done(self) -> None:
        if self.settling is not None:
            self.settling.cancel()


addons = [Engine()]
