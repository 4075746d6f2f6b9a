"""
What one viewer sees of the book: which entries, and how much of each.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable

from addons.core import approvals, virtualapi, virtualobjects
from addons.core.approvals import Grant, Record
from addons.core.virtualapi import Viewer
from addons.core.virtualobjects import Content, Entry, Resource
from addons.core.virtualselectors import EVERYTHING, Selector
from addons.net import book as books
from addons.net.book import Book, Change

logger = logging.getLogger(__name__)

READ_TIME = 2.0  # seconds for all questions whether a viewer may read what an answer shows
READS = 8  # of them at a time
MAX_READS = 200  # for one list; the rest of a longer one is shown as names and counts
TURN = 10  # entries between two turns of everybody else; each takes a quarter to half a millisecond


class Sight:
    """The book through the eyes of one viewer. clock: seconds since the epoch."""

    def __init__(self, book: Book, clock: Callable[[], float], viewer: Viewer) -> None:
        self.book = book
        self.clock = clock
        self.viewer = viewer

    def find(self, resource: Resource, name: str) -> Change:
        """Raises Problem 404 for what is not there and for what is not his to see."""
        change = self.book.get(resource.plural, name)
        if change is None or not self.sees(change.entry):
            raise virtualapi.not_there(resource, name)
        return change

    async def among(self, changes: Iterable[Change], selector: Selector) -> list[Change]:
        """Those of them that he sees and selects, oldest first: so people read a list of what happened."""
        found = []
        async for change in gently(changes):
            if self.sees(change.entry) and self.selects(change.entry, selector):
                found.append(change)
        return sorted(found, key=lambda change: (_created(change.entry), change.name))

    def sees(self, entry: Entry) -> bool:
        return virtualapi.is_visible(self.viewer, entry, self.source(entry))

    def selects(self, entry: Entry, selector: Selector) -> bool:
        return selector is EVERYTHING or selector.matches(virtualobjects.selectable(entry, self.clock()))

    def source(self, entry: Entry) -> Record | None:
        """Of a grant, the record that it comes from, while that is kept."""
        if not isinstance(entry, Grant):
            return None
        for kind in (books.APPROVALS, books.REQUESTS):
            change = self.book.get(kind, entry.source)
            record = change.entry if change is not None else None
            # A name may be chosen, and chosen again; the grant's own name is made from the record's uid.
            if isinstance(record, Record) and approvals.name("grt", record.uid) == entry.name:
                return record
        return None

    def hides(self, entry: Entry) -> bool:
        """Whether something of it is shown only to who may read the object that it is about."""
        return virtualapi.hides(self.viewer, entry)

    def content(self, resource: Resource, change: Change, *, hidden: bool) -> Content:
        return virtualobjects.of_entry(resource, change.entry, change.revision, self.clock(), redacted=hidden)

    async def hidden(self, change: Change) -> bool:
        """Whether that must be left out."""
        return self.hides(change.entry) and change.name not in await self.readable([change])

    async def readable(self, changes: Iterable[Change]) -> frozenset[str]:
        """Names of those whose object he may read himself, as far as that could be found out in time."""
        gate = asyncio.Semaphore(READS)

        async def ask(record: Record) -> bool:
            async with gate:
                return await self.viewer.may_read(record)

        hiding = [c for c in changes if isinstance(c.entry, Record) and self.hides(c.entry)]
        hiding.sort(key=lambda c: isinstance(c.entry, Record) and not c.entry.open)  # what can be decided first
        tasks = {c.name: asyncio.create_task(ask(c.entry)) for c in hiding[:MAX_READS] if isinstance(c.entry, Record)}
        if not tasks:
            return frozenset()
        try:
            await asyncio.wait(tasks.values(), timeout=READ_TIME)
        finally:
            for task in tasks.values():
                task.cancel()
        found = frozenset(name for name, task in tasks.items() if _is_yes(task))
        if len(found) < len(hiding):
            logger.info(
                "virtual API: %d of %d are shown to %r as names and counts only",
                len(hiding) - len(found),
                len(hiding),
                self.viewer.identity.username,
            )
        return found


async def gently[T](things: Iterable[T]) -> AsyncIterator[T]:
    """One after the other, while the requests that go through the gateway go on."""
    for count, thing in enumerate(things):
        if count % TURN == TURN - 1:
            await asyncio.sleep(0)
        yield thing


def _is_yes(task: "asyncio.Task[bool]") -> bool:
    """Direction: an error, or no answer in time, is a no."""
    if not task.done() or task.cancelled():
        return False
    error = task.exception()
    if error is not None:
        logger.error("virtual API: whether an object may be read is unknown: %s", type(error).__name__)
        return False
    return task.result() is True


def _created(entry: Entry) -> float:
    return entry.since if isinstance(entry, Grant) else entry.created
