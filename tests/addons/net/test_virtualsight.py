"""One viewer's view of the book; over HTTP in test_virtualserver.py."""

import asyncio
from dataclasses import replace

import pytest

from addons.core import approvals
from addons.core.virtualobjects import APPROVALS as RESOURCE
from addons.core.virtualselectors import EVERYTHING, Selector
from addons.core.virtualstatus import Problem
from addons.net import book as books
from addons.net.book import Book
from addons.net.store import SqliteStore
from addons.net.virtualsight import READS, Sight
from tests import records
from tests.records import NOW, agent, approver, record

OLD = Selector(fields=(("metadata.name", "apr-old", True),))


@pytest.fixture
async def book():
    store = SqliteStore(None)
    book = Book(store, lambda: NOW)
    await book.start()
    yield book
    await book.stop()
    store.close()


async def test_find_and_all(book):
    other = replace(record("apr-other", now=NOW - 5), requester=approvals.requester(records.OTHER_AGENT))
    for one in (record(), other, record("apr-old", now=NOW - 60)):
        await book.add(books.APPROVALS, one)
    sight = Sight(book, lambda: NOW, agent())
    for selector, seen in ((EVERYTHING, ["apr-old", "apr-7f3k"]), (OLD, ["apr-old"])):
        assert [c.name for c in await sight.among(book.all(books.APPROVALS), selector)] == seen
    assert sight.find(RESOURCE, "apr-old").entry.name == "apr-old"
    for name in ("apr-other", "apr-none"):
        with pytest.raises(Problem, match=name) as problem:
            sight.find(RESOURCE, name)
        assert problem.value.failure.code == 404


async def test_the_source_of_a_grant(book):
    request = records.access_request()
    grant = records.grant(request)
    sight = Sight(book, lambda: NOW, approver("bob"))
    assert sight.source(grant) is None
    await book.add(books.REQUESTS, request)
    assert sight.source(grant) == request
    assert sight.sees(grant)
    assert sight.source(request) is None


async def test_questions_are_asked_a_few_at_a_time(book):
    at_once = most = 0

    async def may_read(_record):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        return True

    changes = [await book.add(books.APPROVALS, record(f"apr-{n}")) for n in range(3 * READS)]
    sight = Sight(book, lambda: NOW, approver(may_read=may_read))
    assert await sight.readable(changes) == {change.name for change in changes}
    assert most == READS


async def test_of_a_long_list_what_is_open_is_asked_first(book, monkeypatch):
    monkeypatch.setattr("addons.net.virtualsight.MAX_READS", 2)
    over = [record(f"apr-{n}", phase=records.Phase.USED) for n in range(3)]
    changes = [await book.add(books.APPROVALS, one) for one in (*over, record("apr-open"))]
    sight = Sight(book, lambda: NOW, approver())
    assert await sight.readable(changes) == {"apr-0", "apr-open"}


async def test_nothing_to_ask(book):
    assert await Sight(book, lambda: NOW, approver()).readable([]) == frozenset()
