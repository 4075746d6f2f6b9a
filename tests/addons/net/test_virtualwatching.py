"""A watch without HTTP; with it, in test_virtualserver.py."""

import asyncio
import contextlib

import pytest

from addons.core import virtualapi
from addons.net import book as books
from addons.net.book import Book
from addons.net.store import SqliteStore
from addons.net.virtualsight import Sight
from addons.net.virtualwatching import Watch, expired
from tests.records import NOW, agent, record

APPROVALS = "/apis/tollgate.dev/v1alpha1/approvals?watch=true"


@pytest.fixture
async def book():
    store = SqliteStore(None)
    book = Book(store, lambda: NOW)
    await book.start()
    yield book
    await book.stop()
    store.close()


def watch(book, query="", end=None):
    call = virtualapi.read("GET", APPROVALS + query, "")
    assert isinstance(call, virtualapi.Call)
    return Watch(Sight(book, lambda: NOW, agent()), call, end or asyncio.Event()).events()


async def test_a_change_between_list_and_watch_is_not_lost(book):
    await book.add(books.APPROVALS, record("a"))
    since = book.revision
    await book.remove(books.APPROVALS, "a")
    await book.add(books.APPROVALS, record("b"))
    async with contextlib.aclosing(watch(book, f"&resourceVersion={since}")) as events, asyncio.timeout(5):
        found = [await anext(events) for _ in range(2)]
    assert [(kind, content["metadata"]["name"]) for kind, content in found] == [("DELETED", "a"), ("ADDED", "b")]


async def test_a_change_while_the_first_events_go_out_is_not_lost(book):
    await book.add(books.APPROVALS, record("a"))
    async with contextlib.aclosing(watch(book)) as events, asyncio.timeout(5):
        assert (await anext(events))[0] == "ADDED"
        await book.add(books.APPROVALS, record("b"))
        kind, content = await anext(events)
    assert (kind, content["metadata"]["name"]) == ("ADDED", "b")


async def test_no_initial_events_where_none_are_wanted(book):
    await book.add(books.APPROVALS, record("a"))
    query = "&sendInitialEvents=false&resourceVersionMatch=NotOlderThan"
    async with contextlib.aclosing(watch(book, query)) as events, asyncio.timeout(5):
        coming = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.01)
        assert not coming.done()
        await book.add(books.APPROVALS, record("b"))
        assert (await coming)[1]["metadata"]["name"] == "b"


async def test_it_ends_with_its_time_though_changes_come(book):
    async def busy():
        for n in range(10_000):
            await book.add(books.APPROVALS, record(f"apr-{n}"))

    working = asyncio.create_task(busy())
    async with asyncio.timeout(10):
        assert [event async for event in watch(book, "&timeoutSeconds=1")]
    working.cancel()
    await asyncio.wait({working})


async def test_it_ends_with_the_book(book):
    events = watch(book)
    coming = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    await book.stop()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(coming, 5)


def test_expired():
    assert expired().failure.code == 410
