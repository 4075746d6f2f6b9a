"""
Patches of mitmproxy: a last resort, one module each, installed once.

Each replaces something that has no public way, so each is written for one version of
mitmproxy and refuses any other: a patch that no longer fits could let a request through.
"""

from collections.abc import Callable
from functools import cache

from mitmproxy import version

SUPPORTED = "12.2."  # the internals that addons/mitm replaces were read in 12.2.3


class UnsupportedMitmproxy(Exception):
    """This mitmproxy is not the one the patches were written for."""


def patch(install: Callable[[], None]) -> Callable[[], None]:
    """Make an install function that runs once per process and only on the supported mitmproxy."""

    @cache
    def once() -> None:
        if not version.VERSION.startswith(SUPPORTED):
            raise UnsupportedMitmproxy(
                f"mitmproxy {version.VERSION} is not supported, {SUPPORTED}x is: install what the lock file names"
            )
        install()

    return once
