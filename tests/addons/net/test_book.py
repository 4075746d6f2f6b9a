"""The book over a real store; several books on one file are several processes, and a few are."""

import asyncio
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import random
import sqlite3
import time
import uuid
from collections.abc import Awaitable
from multiprocessing.connection import Connection

import pytest

from addons.core import approvals
from addons.core.approvals import (
    AUDIENCE,
    KEPT,
    Access,
    Asked,
    Decider,
    Grant,
    Item,
    NotAllowed,
    Phase,
    Record,
    Requester,
)
from addons.core.model import Approval, Hold, Identity
from addons.net import book as book_module
from addons.net import codec, store
from addons.net.book import APPROVALS, GRANTS, REQUESTS, Book, Change, Changed, Gone, Missing
from addons.net.store import Changes, Conflict, Delete, Put, SqliteStore, StoreError

NOW = 1_800_000_000.0
ANN, BEN = Requester("ann"), Requester("ben")
BOB = Decider(Identity("bob", groups=("oncall",), audiences=(AUDIENCE,), auth_time=NOW), False)
EVE = dataclasses.replace(BOB, identity=dataclasses.replace(BOB.identity, username="eve"))


def rule(**approval):
    return Asked(Hold("p", "r", "", Approval(**{"groups": ("oncall",), **approval})))


def record(name="apr-1", who=ANN, digest="d0", items=("d1",), created=NOW, asked=None, **more):
    items = tuple(Item(digest, "w") for digest in items)
    return Record(name, f"uid-{name}", who, digest, (asked or rule(),), created, created + 900, items=items, **more)


def grant(name="grt-1", who=ANN, until=NOW + 600):
    return Grant(name, f"uid-{name}", who, ("p/r",), NOW, until)


def yes(entry):
    return approvals.decide(entry, BOB, True, "", NOW)


def no(entry):
    return approvals.decide(entry, BOB, False, "", NOW)


def use(digest="d1", audit_id="audit"):
    return lambda entry: approvals.use(entry, digest, audit_id, NOW)


def note(text):
    return lambda entry: dataclasses.replace(entry, message=text)


async def soon[T](awaited: Awaitable[T]) -> T:
    """A test that waits in vain fails; it does not hang."""
    async with asyncio.timeout(10):
        return await awaited


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state" / store.FILE


@pytest.fixture
async def kept(file):
    one = SqliteStore(file)
    yield one
    one.close()


@pytest.fixture
async def book(kept, clock):
    one = Book(kept, clock)
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
async def elsewhere(book, file, clock):
    """The same file in another process. Its store looks only when it is told to."""
    other = SqliteStore(file)
    one = Book(other, clock)
    await one.catch_up()
    yield one
    await one.stop()
    other.close()


@pytest.fixture
def broken(kept, monkeypatch):
    """A function that makes the store fail from now on."""

    def fail():
        async def failing(*arguments):
            raise StoreError("state.db is busy: another process holds it")

        monkeypatch.setattr(kept, "apply", failing)
        monkeypatch.setattr(kept, "since", failing)

    return fail


# ----- making -----


async def test_made_and_there(book):
    made = await book.add(APPROVALS, record())
    assert book.get(APPROVALS, "apr-1") == made == Change(APPROVALS, "apr-1", made.revision, record())
    assert book.revision == made.revision
    assert list(book.all(APPROVALS)) == [made]
    assert list(book.all(GRANTS)) == []


async def test_two_that_make_the_same_get_the_same(book, elsewhere):
    made = await book.add(APPROVALS, record(command="first"))
    assert await book.add(APPROVALS, record(command="second")) == made
    assert await elsewhere.add(APPROVALS, record(command="third")) == made


async def test_many_that_make_the_same_at_once(book, elsewhere):
    found = await asyncio.gather(
        *(one.add(APPROVALS, record(command=f"{n}")) for n in range(10) for one in (book, elsewhere))
    )
    assert len({c.entry.command for c in found}) == 1


async def test_what_cannot_be_kept(book):
    with pytest.raises(StoreError, match="apr-1 cannot be kept: it holds text that is no Unicode"):
        await book.add(APPROVALS, record(command="\ud800"))
    with pytest.raises(StoreError, match="apr-1 is too large to be kept"):
        await book.add(APPROVALS, record(command="x" * store.MAX_DATA))
    assert book.get(APPROVALS, "apr-1") is None


# ----- steps -----


async def test_a_step(book):
    made = await book.add(APPROVALS, record())
    done = await book.step(APPROVALS, "apr-1", yes)
    assert done.entry == yes(record())
    assert done.revision > made.revision
    assert book.get(APPROVALS, "apr-1") == done


async def test_what_a_step_refuses_comes_out_and_changes_nothing(book):
    made = await book.add(APPROVALS, record())
    with pytest.raises(NotAllowed, match="apr-1 is Pending"):
        await book.step(APPROVALS, "apr-1", use())

    def wrong(entry):
        raise ValueError("the caller's own")

    with pytest.raises(ValueError, match="the caller's own"):
        await book.step(APPROVALS, "apr-1", wrong)
    assert book.get(APPROVALS, "apr-1") == made


async def test_a_step_to_the_same_writes_nothing(book):
    made = await book.add(APPROVALS, record())
    assert await book.step(APPROVALS, "apr-1", lambda entry: dataclasses.replace(entry)) == made
    assert book.revision == made.revision


async def test_a_step_begins_at_the_newest_state(book, elsewhere):
    await book.add(APPROVALS, record())
    await elsewhere.step(APPROVALS, "apr-1", yes)
    done = await book.step(APPROVALS, "apr-1", use())  # pending, as far as is known here
    assert done.entry.phase is Phase.USED
    with pytest.raises(NotAllowed, match="is Used"):
        await elsewhere.step(APPROVALS, "apr-1", use(audit_id="other"))


async def test_a_step_that_has_nothing_to_do_by_an_old_state(book, elsewhere):
    await book.add(APPROVALS, record())
    await elsewhere.catch_up()
    await book.step(APPROVALS, "apr-1", yes)
    back = await elsewhere.step(
        APPROVALS, "apr-1", lambda entry: approvals.void(entry, "x", NOW) if entry.decided else entry
    )
    assert back.entry.phase is Phase.VOID


async def test_an_item_is_used_once_whoever_is_first(book, elsewhere):
    await book.add(APPROVALS, record(items=tuple(f"d{n}" for n in range(5))))
    await book.step(APPROVALS, "apr-1", yes)
    done = await asyncio.gather(
        *(
            one.step(APPROVALS, "apr-1", use(f"d{n}", f"audit-{n}-{who}-{k}"))
            for n in range(5)
            for k in range(3)
            for who, one in enumerate((book, elsewhere))
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(d, Change) for d in done) == 5
    assert sum(isinstance(d, NotAllowed) for d in done) == 25
    await book.catch_up()
    last = book.get(APPROVALS, "apr-1").entry
    assert last.phase is Phase.USED
    assert len({item.used_by for item in last.items}) == 5


async def test_a_step_from_a_revision(book, elsewhere):
    made = await book.add(APPROVALS, record())
    second = await elsewhere.step(APPROVALS, "apr-1", note("other"), made.revision)  # not known there before
    with pytest.raises(Changed, match="apr-1 was changed meanwhile"):
        await book.step(APPROVALS, "apr-1", note("mine"), made.revision)
    assert (await book.step(APPROVALS, "apr-1", note("mine"), second.revision)).entry.message == "mine"


async def test_a_step_of_what_is_not_there(book, elsewhere):
    with pytest.raises(Missing, match="there is no apr-1"):
        await book.step(APPROVALS, "apr-1", yes)
    await elsewhere.add(APPROVALS, record())
    assert (await book.step(APPROVALS, "apr-1", yes)).entry.phase is Phase.APPROVED


async def test_a_step_that_always_comes_second(book, kept, monkeypatch):
    await book.add(APPROVALS, record())

    async def conflict(changes, now):
        raise Conflict("apr-1 was changed meanwhile")

    monkeypatch.setattr(kept, "apply", conflict)
    with pytest.raises(StoreError, match="apr-1 is changed by others all the time; try again"):
        await book.step(APPROVALS, "apr-1", yes)


async def test_too_many_want_the_same(book, monkeypatch):
    monkeypatch.setattr(book_module, "TURN", 0.01)
    await book.add(APPROVALS, record())
    async with book._turn(APPROVALS, "apr-1"):
        with pytest.raises(StoreError, match="too many change apr-1 at once"):
            await book.step(APPROVALS, "apr-1", yes)
    await book.step(APPROVALS, "apr-1", yes)


async def test_a_cancelled_step_lets_the_next_one_through(book):
    await book.add(APPROVALS, record())
    for _ in range(5):
        task = asyncio.ensure_future(book.step(APPROVALS, "apr-1", note("x")))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
    assert (await book.step(APPROVALS, "apr-1", yes)).entry.phase is Phase.APPROVED


# ----- grants -----


async def test_a_yes_and_its_grant_are_one_change(book, kept):
    await book.add(APPROVALS, record(asked=rule(grant_for=600, grant_scope="rule")))
    done = await book.step(APPROVALS, "apr-1", yes)
    (found,) = book.grants(ANN.key)
    assert (found.source, found.since, found.until) == ("apr-1", NOW, NOW + 600)
    assert found.uid
    changes = await kept.since(done.revision - 1)
    assert [(o.kind, o.name) for o in changes.objects] == [(APPROVALS, "apr-1"), (GRANTS, found.name)]
    assert list(book.grants(BEN.key)) == []


async def test_if_the_grant_cannot_be_made_there_is_no_yes(book, kept):
    await book.add(APPROVALS, record(asked=rule(grant_for=600, grant_scope="rule")))
    name = approvals.name("grt", "uid-apr-1")
    await kept.apply([Put(GRANTS, name, b"in the way")], NOW)
    with pytest.raises(StoreError, match=f"the grant of apr-1 cannot be made: {name} is there already"):
        await book.step(APPROVALS, "apr-1", yes)
    assert book.get(APPROVALS, "apr-1").entry.phase is Phase.PENDING


async def test_an_access_request(book):
    await book.add(REQUESTS, record("acc-1", items=(), access=Access(("get",), ("pods",), "shop", 60)))
    assert book.pending(ANN.key) == 1
    await book.step(REQUESTS, "acc-1", yes)
    (found,) = book.grants(ANN.key)
    assert (found.verbs, found.namespace) == (("get",), "shop")
    assert book.pending(ANN.key) == 0


async def test_given_back_makes_no_second_grant(book):
    await book.add(APPROVALS, record(asked=rule(grant_for=600, grant_scope="rule")))
    await book.step(APPROVALS, "apr-1", yes)
    (found,) = book.grants(ANN.key)
    await book.step(GRANTS, found.name, lambda entry: approvals.revoke(entry, "bob", NOW))
    await book.step(APPROVALS, "apr-1", use())
    await book.step(APPROVALS, "apr-1", lambda entry: approvals.give_back(entry, "d1", "audit", NOW))
    assert book.get(APPROVALS, "apr-1").entry.phase is Phase.APPROVED
    assert list(book.grants(ANN.key)) == []


async def test_grants_that_count(book, clock):
    await book.add(GRANTS, grant("a"))
    await book.add(GRANTS, grant("b", until=NOW + 60))
    assert [g.name for g in book.grants(ANN.key)] == ["a", "b"]
    clock.now = NOW + 60
    assert [g.name for g in book.grants(ANN.key)] == ["a"]
    await book.step(GRANTS, "a", lambda entry: approvals.revoke(entry, "bob", clock.now))
    assert list(book.grants(ANN.key)) == []


async def test_grants_count_no_longer_when_the_store_is_silent(book, broken, monkeypatch):
    await book.add(GRANTS, grant())
    broken()
    assert len(book.grants(ANN.key)) == 1
    monkeypatch.setattr(book_module, "STALE", 0.0)
    await asyncio.sleep(0.001)
    assert list(book.grants(ANN.key)) == []


# ----- removing -----


async def test_removed(book, elsewhere):
    made = await book.add(APPROVALS, record())
    gone = await book.remove(APPROVALS, "apr-1")
    assert gone == Change(APPROVALS, "apr-1", gone.revision, record(), deleted=True)
    assert gone.revision > made.revision
    assert book.get(APPROVALS, "apr-1") is None
    for one in (book, elsewhere):
        with pytest.raises(Missing):
            await one.remove(APPROVALS, "apr-1")


async def test_removed_from_a_revision(book, elsewhere):
    made = await book.add(APPROVALS, record())
    second = await elsewhere.step(APPROVALS, "apr-1", yes)
    with pytest.raises(Changed):
        await book.remove(APPROVALS, "apr-1", made.revision)
    assert (await book.remove(APPROVALS, "apr-1", second.revision)).entry.phase is Phase.APPROVED


async def test_removed_as_it_was_last(book, elsewhere):
    await book.add(APPROVALS, record())
    await elsewhere.step(APPROVALS, "apr-1", yes)
    assert (await book.remove(APPROVALS, "apr-1")).entry.phase is Phase.APPROVED


# ----- looking -----


async def test_by_digest_says_what_is_so_now(book, clock):
    await book.add(APPROVALS, record("a", digest="x", items=("d1", "d2")))
    await book.add(APPROVALS, record("b", digest="d1", created=NOW + 1))
    assert [r.name for r in book.by_digest(ANN.key, "d1")] == ["b", "a"]
    await book.step(APPROVALS, "a", yes)
    clock.now = NOW + 900
    assert [(r.name, r.phase) for r in book.by_digest(ANN.key, "d2")] == [("a", Phase.EXPIRED)]
    assert list(book.by_digest(BEN.key, "d1")) == []


async def test_pending_is_what_is_undecided_now(book, clock):
    await book.add(APPROVALS, record("a"))
    await book.add(APPROVALS, record("b", created=NOW + 10))
    await book.add(APPROVALS, record("c", BEN))
    assert book.pending(ANN.key) == 2
    clock.now = NOW + 900
    assert book.pending(ANN.key) == 1
    assert book.pending("nobody") == 0


# ----- waiting -----


async def test_waiting_for_a_change(book):
    made = await book.add(APPROVALS, record())
    waiting = asyncio.ensure_future(book.changed(APPROVALS, "apr-1", made.revision, 10))
    await asyncio.sleep(0)
    done = await book.step(APPROVALS, "apr-1", yes)
    assert await soon(waiting) == done
    assert await book.changed(APPROVALS, "apr-1", made.revision, 10) == done  # at once


async def test_woken_within_a_millisecond(book):
    made = await book.add(APPROVALS, record())
    woken = []

    async def wait():
        await book.changed(APPROVALS, "apr-1", made.revision, 10)
        woken.append(time.perf_counter())

    waiting = [asyncio.ensure_future(wait()) for _ in range(200)]
    await asyncio.sleep(0)
    await book.step(APPROVALS, "apr-1", yes)
    stored = time.perf_counter()
    await asyncio.gather(*waiting)
    assert sorted(woken)[len(woken) // 2] - stored < 0.005  # mostly they are first
    assert not book._waiters


async def test_waiting_for_a_removal(book):
    made = await book.add(APPROVALS, record())
    waiting = asyncio.ensure_future(book.changed(APPROVALS, "apr-1", made.revision, 10))
    await asyncio.sleep(0)
    gone = await book.remove(APPROVALS, "apr-1")
    assert await soon(waiting) == gone
    assert (await book.changed(APPROVALS, "apr-1", made.revision, 10)).deleted


async def test_waiting_in_vain(book):
    made = await book.add(APPROVALS, record())
    waiting = asyncio.ensure_future(book.changed(APPROVALS, "apr-1", made.revision, 0.05))
    await asyncio.sleep(0)
    await book.add(APPROVALS, record("apr-2"))
    before = asyncio.get_running_loop().time()
    assert await soon(waiting) is None
    assert asyncio.get_running_loop().time() - before > 0.02
    assert await book.changed(APPROVALS, "apr-1", made.revision, 0) is None
    assert not book._waiters


async def test_a_change_elsewhere_is_seen_soon_while_somebody_waits(book, elsewhere):
    made = await book.add(APPROVALS, record())
    await elsewhere.catch_up()
    waiting = asyncio.ensure_future(book.changed(APPROVALS, "apr-1", made.revision, 10))
    await asyncio.sleep(0.005)
    done = await elsewhere.step(APPROVALS, "apr-1", yes)
    before = asyncio.get_running_loop().time()
    assert await soon(waiting) == done
    assert asyncio.get_running_loop().time() - before < 0.3  # 20 ms and what a busy machine adds


async def test_a_change_elsewhere_is_seen_when_nobody_waits(book, elsewhere, monkeypatch):
    monkeypatch.setattr(book_module, "LOOKS", (0.01, 0.01, 0.02))
    book._nudge.set()
    await elsewhere.add(APPROVALS, record())
    async with asyncio.timeout(10):
        while book.get(APPROVALS, "apr-1") is None:
            await asyncio.sleep(0.01)


async def test_who_waits_when_it_stops_gets_nothing(book):
    made = await book.add(APPROVALS, record())
    waiting = asyncio.ensure_future(book.changed(APPROVALS, "apr-1", made.revision, 60))
    await asyncio.sleep(0)
    await book.stop()
    assert await soon(waiting) is None
    assert await book.changed(APPROVALS, "apr-1", made.revision, 60) is None


async def test_who_waits_and_is_cancelled_leaves_nothing_behind(book):
    waiting = asyncio.ensure_future(book.changed(APPROVALS, "apr-1", 0, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert not book._waiters


# ----- following -----


async def take(following, many):
    return [await soon(anext(following)) for _ in range(many)]


async def test_followed_from_a_revision_on(book):
    first = await book.add(APPROVALS, record())
    second = await book.step(APPROVALS, "apr-1", yes)
    following = book.follow(first.revision)
    third = await book.remove(APPROVALS, "apr-1")
    found = await take(following, 2)
    assert found == [
        dataclasses.replace(second, previous=first.entry),
        dataclasses.replace(third, previous=second.entry),
    ]
    assert (await take(book.follow(0), 1))[0].previous is None


async def test_every_change_in_order_of_two_processes(book, elsewhere):
    following, seen = book.follow(book.revision), []

    async def follow():
        async for change in following:
            seen.append((change.revision, change.name))

    task = asyncio.ensure_future(follow())
    names = [f"apr-{n}" for n in range(40)]
    made = await asyncio.gather(
        *((book, elsewhere)[n % 2].add(APPROVALS, record(name)) for n, name in enumerate(names))
    )
    async with asyncio.timeout(10):
        while len(seen) < 40:
            await asyncio.sleep(0.01)
    assert seen == sorted((c.revision, c.name) for c in made)
    await book.stop()
    await soon(task)  # the end of the book is the end of following
    with pytest.raises(StopAsyncIteration):
        await soon(anext(book.follow(book.revision)))


async def test_what_was_before_a_restart_can_be_followed(book, file, clock):
    first = await book.add(APPROVALS, record())
    await book.add(APPROVALS, record("apr-2"))
    await book.remove(APPROVALS, "apr-2")
    other = SqliteStore(file)
    again = Book(other, clock)
    await again.catch_up()
    (found,) = await take(again.follow(first.revision), 1)
    assert (found.name, found.deleted, found.entry) == ("apr-2", True, record("apr-2"))
    other.close()


async def test_too_long_ago(book, monkeypatch):
    monkeypatch.setattr("addons.net.mirror.HISTORY", 2)
    made = [await book.add(APPROVALS, record(f"apr-{n}")) for n in range(4)]
    with pytest.raises(Gone, match="too long ago"):
        book.follow(made[0].revision)
    assert len(await take(book.follow(made[1].revision), 2)) == 2


async def test_who_does_not_read_is_dropped(book, monkeypatch):
    monkeypatch.setattr(book_module, "HISTORY", 3)
    following, reading = book.follow(book.revision), book.follow(book.revision)
    for n in range(5):
        await book.add(APPROVALS, record(f"apr-{n}"))
        await take(reading, 1)
    with pytest.raises(Gone, match="too many changes"):
        await soon(anext(following))
    assert not following._waiting


async def test_who_does_not_read_large_ones_is_dropped(book, monkeypatch):
    monkeypatch.setattr(book_module, "HISTORY_BYTES", 10_000)
    following = book.follow(book.revision)
    await book.add(APPROVALS, record("apr-0", command="x" * 20_000))  # one always fits
    assert len(await take(following, 1)) == 1
    for n in range(1, 4):
        await book.add(APPROVALS, record(f"apr-{n}", command="x" * 6_000))
    with pytest.raises(Gone):
        await soon(anext(following))


async def test_a_revision_of_another_process_that_is_not_known_here_yet(book, elsewhere):
    made = await elsewhere.add(APPROVALS, record())
    following = book.follow(made.revision)
    waiting = asyncio.ensure_future(anext(following))
    second = await elsewhere.step(APPROVALS, "apr-1", yes)
    assert (await soon(waiting)).revision == second.revision


async def test_a_revision_that_has_not_been(book):
    with pytest.raises(Gone, match="has not been yet"):
        await soon(anext(book.follow(book.revision + 1000)))


async def test_a_follower_that_nobody_holds_costs_nothing(book):
    book.follow(0)
    await asyncio.sleep(0)
    assert not list(book._followers)


async def test_removals_that_were_missed(book, kept, caplog):
    """The process slept longer than removals are remembered: all is listed again."""
    await book.add(APPROVALS, record())
    stays = await book.add(APPROVALS, record("apr-2"))
    waiting = asyncio.ensure_future(book.changed(APPROVALS, "apr-1", stays.revision, 10))
    following = book.follow(book.revision)
    await asyncio.sleep(0)
    async with book._looking:  # asleep
        await kept.apply([Delete(APPROVALS, "apr-1")], NOW)
        await kept.apply([Put(APPROVALS, "apr-3", codec.encode(record("apr-3")))], NOW + store.TOMBSTONES + 100)
    await book.catch_up()
    assert [c.name for c in book.all(APPROVALS)] == ["apr-2", "apr-3"]
    gone = await soon(waiting)
    assert (gone.deleted, gone.entry) == (True, record())
    with pytest.raises(Gone, match="may have been missed"):
        await soon(anext(following))
    with pytest.raises(Gone):
        book.follow(stays.revision)


async def test_a_long_list(book, file, clock, monkeypatch):
    monkeypatch.setattr(store, "PAGE", 7)
    await asyncio.gather(*(book.add(APPROVALS, record(f"apr-{n}")) for n in range(50)))
    other = SqliteStore(file)
    again = Book(other, clock)
    await again.catch_up()
    assert [c.entry for c in again.all(APPROVALS)] == [c.entry for c in book.all(APPROVALS)]
    assert again.revision == book.revision
    other.close()


# ----- what is over -----


async def test_it_expires_by_itself_and_once(book, elsewhere, clock, kept):
    made = await book.add(APPROVALS, record())
    await elsewhere.catch_up()
    clock.now = NOW + 899.9
    await book.sweep()
    assert book.get(APPROVALS, "apr-1") == made
    clock.now = NOW + 900
    await asyncio.gather(book.sweep(), elsewhere.sweep())
    await book.catch_up()
    last = book.get(APPROVALS, "apr-1")
    assert (last.entry.phase, last.entry.ended) == (Phase.EXPIRED, NOW + 900)
    assert await kept.revision() == made.revision + 1


async def test_the_sweep_wakes_who_waits(book, clock, monkeypatch):
    monkeypatch.setattr(book_module, "SWEEP", 0.01)
    made = await book.add(APPROVALS, record())
    waiting = asyncio.ensure_future(book.changed(APPROVALS, "apr-1", made.revision, 10))
    await asyncio.sleep(0)
    clock.now = NOW + 900
    assert (await soon(waiting)).entry.phase is Phase.EXPIRED


async def test_what_ended_goes_after_a_day(book, clock):
    await book.add(APPROVALS, record())
    await book.step(APPROVALS, "apr-1", no)
    await book.add(GRANTS, grant())
    clock.now = NOW + 900  # when it would have expired, had nobody said no
    await book.sweep()
    clock.now = NOW + KEPT - 1
    await book.sweep()
    assert book.get(APPROVALS, "apr-1")
    clock.now = NOW + KEPT
    await book.sweep()
    assert book.get(APPROVALS, "apr-1") is None
    assert book.get(GRANTS, "grt-1")
    clock.now = NOW + 600 + KEPT
    await book.sweep()
    assert book.get(GRANTS, "grt-1") is None


async def test_an_approved_one_expires_at_the_end_of_its_validity(book, clock):
    await book.add(APPROVALS, record(asked=rule(valid=60)))
    await book.step(APPROVALS, "apr-1", yes)
    clock.now = NOW + 60
    await book.sweep()
    assert book.get(APPROVALS, "apr-1").entry.phase is Phase.EXPIRED


async def test_at_most_so_many(book, clock, monkeypatch):
    monkeypatch.setattr(book_module, "MAX_ENTRIES", 20)
    for n in range(21):
        await book.add(APPROVALS, record(f"apr-{n:02}", created=NOW + n))
        await book.step(APPROVALS, f"apr-{n:02}", lambda entry, n=n: approvals.cancel(entry, "ann", NOW + n))
    await book.sweep()
    assert [c.name for c in book.all(APPROVALS)] == [f"apr-{n:02}" for n in range(2, 21)]
    await book.sweep()
    assert len(book.all(APPROVALS)) == 19


async def test_at_most_so_many_bytes(book, monkeypatch):
    await asyncio.gather(*(book.add(APPROVALS, record(f"apr-{n}", phase=Phase.USED, ended=NOW + n)) for n in range(10)))
    monkeypatch.setattr(book_module, "MAX_BYTES", book._mirror.bytes // 2)
    await book.sweep()
    assert [c.name for c in book.all(APPROVALS)] == [f"apr-{n}" for n in range(6, 10)]
    monkeypatch.setattr(book_module, "MAX_BYTES", 100)
    with pytest.raises(StoreError, match="too many approvals"):
        await book.add(APPROVALS, record())


async def test_what_is_open_never_goes_and_then_there_is_no_room(book, monkeypatch):
    monkeypatch.setattr(book_module, "MAX_ENTRIES", 3)
    monkeypatch.setattr(book_module, "SWEEP_ENTRIES", 2)
    for n in range(5):
        await book.add(APPROVALS, record(f"apr-{n}"))
    await book.sweep()
    assert len(book.all(APPROVALS)) == 5
    with pytest.raises(StoreError, match="too many approvals and grants; wait until some are over"):
        await book.add(APPROVALS, record("apr-9"))


async def test_a_sweep_that_fails_is_tried_again(book, clock, kept, caplog, monkeypatch):
    await book.add(APPROVALS, record())
    clock.now = NOW + 900

    async def failing(*arguments):
        raise StoreError("state.db cannot grow: the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(kept, "apply", failing)
        for _ in range(3):
            await book.sweep()
            clock.now += 1
    assert caplog.text.count("the disk is full") == 1
    clock.now += 1
    await book.sweep()
    assert book.get(APPROVALS, "apr-1").entry.phase is Phase.EXPIRED
    assert "can be written again" in caplog.text


# ----- a store that fails, a row that is damaged -----


async def test_a_store_that_fails_and_recovers(book, elsewhere, kept, caplog, monkeypatch):
    made = await book.add(APPROVALS, record())
    monkeypatch.setattr(book_module, "LOOKS", (0.01, 0.01, 0.01))

    async def failing(*arguments):
        raise StoreError("state.db is busy: another process holds it")

    with monkeypatch.context() as patched:
        patched.setattr(kept, "apply", failing)
        patched.setattr(kept, "since", failing)
        for change in (
            lambda: book.add(APPROVALS, record("apr-2")),
            lambda: book.step(APPROVALS, "apr-1", yes),
            lambda: book.step(APPROVALS, "apr-1", use()),
            lambda: book.step(APPROVALS, "apr-7", yes),
            lambda: book.remove(APPROVALS, "apr-1"),
        ):
            with pytest.raises(StoreError, match="is busy"):
                await change()
        book._nudge.set()
        async with asyncio.timeout(10):
            while "is busy" not in caplog.text:
                await asyncio.sleep(0.01)
        assert book.get(APPROVALS, "apr-1") == made
        assert len(book.by_digest(ANN.key, "d1")) == 1
        done = await elsewhere.step(APPROVALS, "apr-1", yes)
    async with asyncio.timeout(10):
        while book.get(APPROVALS, "apr-1") != done:
            await asyncio.sleep(0.01)
    assert caplog.text.count("is busy") == 1
    assert "can be read again" in caplog.text


async def test_what_is_on_disk_is_done_though_it_cannot_be_read_back(book, kept, monkeypatch):
    await book.add(APPROVALS, record())
    real = kept.apply

    async def failing(*arguments):
        raise StoreError("gone")

    async def last(*arguments):
        done = await real(*arguments)
        monkeypatch.setattr(kept, "since", failing)
        return done

    monkeypatch.setattr(kept, "apply", last)
    done = await book.step(APPROVALS, "apr-1", yes)
    assert done.entry.phase is Phase.APPROVED


async def test_a_store_that_is_busy_at_the_start(kept, clock, monkeypatch):
    real, calls = kept.since, []

    async def at_first(revision):
        calls.append(revision)
        if len(calls) < 4:
            raise StoreError("busy")
        return await real(revision)

    monkeypatch.setattr(kept, "since", at_first)
    book = Book(kept, clock)
    await book.start()
    await book.start()
    assert len(book._tasks) == 2
    await book.stop()


async def test_a_store_that_does_not_answer_at_the_start(kept, clock, broken, monkeypatch):
    broken()
    monkeypatch.setattr(book_module, "STARTING", 0.05)
    book = Book(kept, clock)
    with pytest.raises(StoreError):
        await book.start()
    assert list(book.grants(ANN.key)) == []
    await book.stop()


async def test_a_damaged_row_costs_its_own_name_only(book, kept, clock, caplog):
    await book.add(APPROVALS, record())
    await book.add(APPROVALS, record("apr-2"))
    kept._db.execute("UPDATE objects SET data = x'7b', revision = 100 WHERE name = 'apr-1'")
    kept._db.execute("UPDATE store SET revision = 100")
    await book.catch_up()
    with caplog.at_level(logging.ERROR):
        assert book.get(APPROVALS, "apr-1") is None
        for change in (
            lambda: book.add(APPROVALS, record()),
            lambda: book.step(APPROVALS, "apr-1", yes),
            lambda: book.remove(APPROVALS, "apr-1"),
        ):
            with pytest.raises(StoreError, match="apr-1 is stored and cannot be read: it is not JSON"):
                await change()
    assert (await book.step(APPROVALS, "apr-2", yes)).entry.phase is Phase.APPROVED
    clock.now = NOW + KEPT - 1
    await book.sweep()
    with pytest.raises(StoreError):
        await book.add(APPROVALS, record())
    clock.now = NOW + KEPT
    await book.sweep()
    await book.add(APPROVALS, record())


async def test_the_look_goes_on_whatever_happens(book, kept, caplog, monkeypatch):
    monkeypatch.setattr(book_module, "LOOKS", (0.01, 0.01, 0.01))

    async def wrong(revision):
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(kept, "since", wrong)
        book._nudge.set()
        async with asyncio.timeout(10):
            while "could not be brought up to date" not in caplog.text:
                await asyncio.sleep(0.01)
    await book.add(APPROVALS, record())


async def test_a_store_that_goes_back_is_listed_again(book, kept, monkeypatch):
    await book.add(APPROVALS, record())
    real = kept.since

    async def restored(revision):
        found = await real(0)
        return Changes((), 0, 0) if revision else Changes(found.objects[:0], 0, 0)

    monkeypatch.setattr(kept, "since", restored)
    await book.catch_up()
    assert book.get(APPROVALS, "apr-1") is None
    assert book.revision == 0


# ----- kill -9 -----

ROUNDS = 25
FILES = 3  # items of one record


def worker(path, who: str, out: Connection):
    """Makes, decides and uses as fast as it can, and says each thing once it is done. Killed at some moment."""

    def say(*words):
        out.send(words)

    async def one(book, name):
        made = await book.add(APPROVALS, record(name, items=tuple(f"d{n}" for n in range(FILES))))
        say("made", name, made.revision)
        if name.endswith("7"):
            await book.step(APPROVALS, name, no)
            say("denied", name)
        else:
            await book.step(APPROVALS, name, yes)
            say("approved", name)

    async def greedy(book, number):
        """Tries to use whatever is approved, of the other process too."""
        choose = random.Random(f"{who}{number}")  # noqa: S311 -- any order will do
        while True:
            there = [c.name for c in book.all(APPROVALS) if c.entry.phase is Phase.APPROVED]
            if not there:
                await asyncio.sleep(0.001)
                continue
            name, digest = choose.choice(there), f"d{choose.randrange(FILES)}"
            audit_id = f"{who}-{number}-{uuid.uuid4()}"
            try:
                await book.step(APPROVALS, name, use(digest, audit_id))
            except (NotAllowed, StoreError):
                await asyncio.sleep(0)
            else:
                say("used", name, digest, audit_id)

    async def making(book, number):
        for n in range(1_000_000):
            with contextlib.suppress(StoreError):
                await one(book, f"{who}-{number}-{n}")

    async def run():
        kept = SqliteStore(path)
        book = Book(kept, lambda: NOW)
        await book.start()
        say("ready")
        await asyncio.gather(*(making(book, n) for n in range(2)), *(greedy(book, n) for n in range(4)))

    asyncio.run(run())


def heard(connection):
    """All that it said before it died."""
    found = []
    try:
        while True:
            found.append(connection.recv())
    except (EOFError, OSError):
        return found


def test_killed_at_any_moment_nothing_is_used_twice_and_nothing_is_lost(file):
    """Two processes on one file, both killed in the midst of it, again and again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    said, users = [], {}
    choose = random.Random(7)  # noqa: S311 -- moments to die at
    for number in range(ROUNDS):
        running = []
        for who in "ab":
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=worker, args=(file, f"{who}{number}", theirs))
            process.start()
            theirs.close()
            running.append((process, ours))
        for _, ours in running:
            assert ours.poll(30)
            assert ours.recv() == ("ready",)
        time.sleep(choose.uniform(0, 0.08))
        for process, _ in running:
            os.kill(process.pid, 9)
        for process, ours in running:
            process.join(30)
            said += heard(ours)
            ours.close()
        check(file, said, users)
        said.clear()
    assert len(users) > ROUNDS  # there was something to lose


def check(file, said, users):
    """What was said must be so; and over all rounds every item has one user."""
    with sqlite3.connect(file) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()

    async def read():
        kept = SqliteStore(file)
        book = Book(kept, lambda: NOW)
        await book.catch_up()
        found = {c.name: c for c in book.all(APPROVALS)}
        kept.close()
        return found, book.revision

    found, revision = asyncio.run(read())
    for word, name, *rest in said:
        entry = found[name].entry
        if word == "made":
            assert rest[0] <= revision
        elif word == "approved":
            assert entry.phase in (Phase.APPROVED, Phase.USED)
        elif word == "denied":
            assert entry.phase is Phase.DENIED
            assert not any(item.used for item in entry.items)
        elif word == "used":
            digest, audit_id = rest
            assert entry.item(digest).used_by == audit_id
            assert users.setdefault((name, digest), audit_id) == audit_id
    for (name, digest), audit_id in users.items():
        assert found[name].entry.item(digest).used_by == audit_id
