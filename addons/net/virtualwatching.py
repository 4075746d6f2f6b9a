"""
Watches of the virtual API: the events that one viewer gets, as they come.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from addons.core import virtualforms, virtualstatus, virtualwatch
from addons.core.approvals import Grant
from addons.core.revocations import Revocation
from addons.core.virtualapi import Call
from addons.core.virtualobjects import Content
from addons.core.virtualstatus import Problem
from addons.net import book as books
from addons.net.book import Change
from addons.net.virtualsight import Sight

BOOKMARK_TIME = 60.0  # seconds between bookmarks, as the API server's

type Event = tuple[str, Content]  # its type and its object


def expired() -> Problem:
    return Problem(410, "expired", "resourceVersion: what changed since then is no longer known; list again")


class Watch:
    """One watch. end: set to end it, cleanly: the client watches again from where it was."""

    def __init__(self, sight: Sight, call: Call, end: asyncio.Event) -> None:
        self._sight = sight
        self._call = call
        self._end = end
        self._due: dict[str, float] = {}  # active grants and revocations that he was shown, and when each is over
        self._shown = virtualwatch.Shown()
        self._headers = True
        self._position = 0

    async def events(self) -> AsyncGenerator[Event]:
        """Each event, until the time is over, the watch is ended, or it cannot go on: an ERROR is the last then."""
        call, book = self._call, self._sight.book
        begin = book.revision
        initial = call.initial is True or (call.initial is None and not call.revision)
        self._position = begin if initial or not call.revision else call.revision
        # Nothing is awaited between these two: what comes after `position`, and what was there.
        try:
            following = book.follow(self._position)
        except books.Gone:
            yield virtualwatch.ERROR, virtualstatus.failed(expired().failure)
            return
        there = book.all(call.resource.plural)
        if initial:
            for change in await self._sight.among(there, call.selector):
                async for event in self._event(change):
                    yield event
            if call.initial and call.bookmarks:
                yield self._bookmark(initial_end=True)
        else:
            # What the list showed that he took before.
            before = (change for change in there if change.revision <= self._position)
            known = await self._sight.among(before, call.selector)
            self._shown = virtualwatch.Shown(change.name for change in known)
            for change in known:
                self._note(change)
        async for event in self._follow(following, begin):
            yield event

    async def _follow(self, following: AsyncIterator[Change], begin: int) -> AsyncGenerator[Event]:
        loop = asyncio.get_running_loop()
        deadline, mark = loop.time() + self._call.seconds, loop.time() + BOOKMARK_TIME
        coming = loop.create_task(_next(following))
        ended = loop.create_task(self._end.wait())
        try:
            while True:
                wait = min(deadline, mark) - loop.time()
                if self._due:
                    wait = min(wait, min(self._due.values()) - self._sight.clock())
                await asyncio.wait((coming, ended), timeout=max(wait, 0), return_when=asyncio.FIRST_COMPLETED)
                if ended.done() or loop.time() >= deadline:
                    return
                if coming.done():
                    change = coming.result()
                    if isinstance(change, books.Gone):
                        yield virtualwatch.ERROR, virtualstatus.failed(expired().failure)
                    if not isinstance(change, Change):
                        return
                    coming = loop.create_task(_next(following))
                    self._position = change.revision
                    if change.kind == self._call.resource.plural:
                        async for event in self._event(change, replayed=change.revision <= begin):
                            yield event
                async for event in self._over():
                    yield event
                if loop.time() >= mark:
                    mark = loop.time() + BOOKMARK_TIME
                    if self._call.bookmarks:
                        yield self._bookmark()
        finally:
            coming.cancel()
            ended.cancel()

    async def _event(self, change: Change, *, replayed: bool = False) -> AsyncGenerator[Event]:
        """The event that this change is to him, if it is one."""
        sight, call = self._sight, self._call
        if not sight.sees(change.entry):
            return
        matches = sight.selects(change.entry, call.selector)
        kind = self._shown.event(change.name, matches=matches, deleted=change.deleted, replayed=replayed)
        if not kind:
            return
        self._note(change)
        hidden = sight.hides(change.entry) and (not call.form.shows_spec or await sight.hidden(change))
        content = sight.content(call.resource, change, hidden=hidden)
        headers, self._headers = self._headers, False
        yield kind, virtualforms.of_object(call.resource, content, call.form, sight.clock(), headers=headers)

    def _note(self, change: Change) -> None:
        """Remember when a grant or a revocation will be over: the store does not say it then."""
        self._due.pop(change.name, None)
        entry = change.entry
        if isinstance(entry, Grant) and not change.deleted and entry.active(self._sight.clock()):
            self._due[change.name] = entry.until
        now = self._sight.clock()
        if isinstance(entry, Revocation) and not change.deleted and entry.until and entry.in_force(now):
            self._due[change.name] = entry.until

    async def _over(self) -> AsyncGenerator[Event]:
        now = self._sight.clock()
        for name in [name for name, until in self._due.items() if until <= now]:
            del self._due[name]
            change = self._sight.book.get(self._call.resource.plural, name)
            if change is not None:
                async for event in self._event(change):
                    yield event

    def _bookmark(self, *, initial_end: bool = False) -> Event:
        call = self._call
        found = virtualforms.bookmark(call.resource, call.form, self._position, initial_end=initial_end)
        return virtualwatch.BOOKMARK, found


async def _next(following: AsyncIterator[Change]) -> Change | books.Gone | None:
    """The next change; None at the end."""
    try:
        return await anext(following)
    except StopAsyncIteration:
        return None
    except books.Gone as e:
        return e
