"""
Reading before-images, as whoever asked: nobody's record shows what he could not have read himself.

Bounded in time, in requests and in bytes; whatever does not come is said in the record, and stops
nothing.
"""

import asyncio
import logging
from collections.abc import Iterable

from addons.core import beforeimages
from addons.core.beforeimages import NOTHING, BeforeImages, Plan, Read
from addons.net import counting
from addons.net.objects import Fetcher, Had

logger = logging.getLogger(__name__)

LIMIT = 2.0  # seconds for all of them together; the request waits
AT_ONCE = 8  # requests for the kinds of a namespace


class _Reader:
    """Keeps what came, so that there is something when the time is over."""

    def __init__(self, fetcher: Fetcher, plan: Plan) -> None:
        self._fetcher = fetcher
        self._plan = plan
        self._gate = asyncio.Semaphore(AT_ONCE)
        self.found: dict[str, Read | None] = {}  # None: asked, no answer yet
        self.troubles: list[str] = []

    async def read(self) -> None:
        plan = self._plan
        if plan.namespace:
            _, targets = await asyncio.gather(self._all(plan.targets), self._inside(plan.namespace))
            await self._all(targets)
            return
        await self._all(plan.targets)
        own = self.found.get(plan.targets[0])
        if plan.definition and own is not None:
            await self._all(beforeimages.defined(own.objects[0]))

    async def _inside(self, namespace: str) -> tuple[str, ...]:
        pages = await asyncio.gather(*(self._fetcher.get(path, counting.DISCOVERY) for path in ("/api", "/apis")))
        values = [page.value for page in pages if isinstance(page.value, dict)]
        if len(values) < len(pages):
            self.troubles.append("before: which kinds there are could not be found out, so only the usual ones")
            return beforeimages.usual(namespace)
        if counting.is_stale(values):
            self.troubles.append("before: an extension of the API server is down, so its kinds are missing")
        targets, left = beforeimages.inside(namespace, counting.kinds(values))
        if left:
            self.troubles.append(f"before: {left} more kinds were not read")
        return targets

    async def _all(self, targets: Iterable[str]) -> None:
        self.found |= dict.fromkeys(targets)
        await asyncio.gather(*(self._one(target) for target in targets))

    async def _one(self, target: str) -> None:
        async with self._gate:
            had = await self._fetcher.get(target)
        why = _why(had)
        if why is None:
            self.found[target] = beforeimages.read(target, had.value, self._plan)
            return
        del self.found[target]
        if why:
            self.troubles.append(beforeimages.trouble(target, why))


async def fetch(fetcher: Fetcher, plan: Plan, seconds: float = LIMIT) -> BeforeImages:
    """All that could be read in time. Never raises; what is not there is no trouble."""
    if not plan.targets:
        return NOTHING
    reader = _Reader(fetcher, plan)
    task = asyncio.create_task(reader.read())
    # Not a timeout around it: a CancelledError would leave the hook, and the flow would hang for ever.
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        task.cancel()  # of one that is done it does nothing
    troubles = reader.troubles
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        # Without the traceback, which may show what was fetched.
        logger.error("reading before-images failed: %s", type(error).__name__)
        troubles.append("before: the gateway failed to read it")
    late = [target for target, read in reader.found.items() if read is None and not task.done()]
    troubles += [beforeimages.trouble(target, f"the API server did not answer within {seconds:g} s") for target in late]
    found = [read for read in reader.found.values() if read is not None]
    if not task.done() and plan.namespace and not late:
        troubles.append(f"before: which kinds there are was not known within {seconds:g} s")
    if len(found) <= 1:
        return beforeimages.share(found, troubles)
    return await asyncio.to_thread(beforeimages.share, found, troubles)  # some megabytes to measure


def _why(had: Had) -> str | None:
    """Why there is nothing; "" when nothing is there; None when there is something."""
    if had.refusal is not None:
        return "" if had.refusal.code == 404 else f"the API server answers {had.refusal.code}"
    if had.trouble:
        return had.trouble
    return None if isinstance(had.value, dict) else ""
