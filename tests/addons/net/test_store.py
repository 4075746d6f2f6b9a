"""First what every store must do, whatever keeps it; then SQLite's own."""

import asyncio
import multiprocessing
import os
import sqlite3
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addons.core.budgets import Budget, Charge
from addons.core.matching import Match
from addons.net import store
from addons.net.store import Absent, Conflict, Delete, Exists, Put, Rejected, SqliteStore, Stored, StoreError

NOW = 1_800_000_000.0


def charge(name="b", key="ann", weight=1, limit=3, window=60):
    return Charge(Budget("p", name, Match(), limit, window), key, weight)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state" / store.FILE


@pytest.fixture(params=["memory", "file"])
def kept(request, file):
    """Each implementation of the interface. A second one is added here."""
    one = SqliteStore(None if request.param == "memory" else file)
    yield one
    one.close()


@pytest.fixture
def stored(file):
    one = SqliteStore(file)
    yield one
    one.close()


# ----- the contract -----


async def test_up_to_the_limit_and_no_further(kept):
    taken = [await kept.reserve([charge()], NOW) for _ in range(4)]
    assert [bool(t.id) for t in taken] == [True, True, True, False]
    (over,) = taken[3].over
    assert (over.charge.budget.name, over.spent, over.left, over.free_at) == ("b", 3, 0, NOW + 60)


async def test_what_leaves_the_window_is_free_again(kept):
    await kept.reserve([charge(weight=3)], NOW)
    assert not (await kept.reserve([charge()], NOW + 59.999)).id
    assert (await kept.reserve([charge()], NOW + 60)).id


async def test_free_at_is_when_the_charge_fits_and_no_earlier(kept):
    for second in (0, 10, 20):
        await kept.reserve([charge(limit=30, weight=10)], NOW + second)
    (over,) = (await kept.reserve([charge(limit=30, weight=15)], NOW + 30)).over
    assert over.free_at == NOW + 70  # one charge gone is not enough for 15
    assert not (await kept.reserve([charge(limit=30, weight=15)], over.free_at - 0.001)).id
    assert (await kept.reserve([charge(limit=30, weight=15)], over.free_at)).id


async def test_more_than_the_limit_never_fits(kept):
    (over,) = (await kept.reserve([charge(weight=4)], NOW)).over
    assert (over.spent, over.left, over.free_at) == (0, 3, 0)


@pytest.mark.parametrize("other", [{"name": "c"}, {"key": "bob"}, {"key": ""}])
async def test_budgets_and_keys_are_counted_apart(kept, other):
    await kept.reserve([charge(weight=3)], NOW)
    assert (await kept.reserve([charge(weight=3, **other)], NOW)).id


async def test_of_all_or_of_none(kept):
    await kept.reserve([charge("b", weight=3)], NOW)
    refused = await kept.reserve([charge("a"), charge("b"), charge("c", limit=1, weight=2)], NOW)
    assert not refused.id
    assert [o.charge.budget.name for o in refused.over] == ["b", "c"]
    assert (await kept.reserve([charge("a", weight=3)], NOW)).id  # nothing was taken from a


async def test_given_back_once(kept):
    first = await kept.reserve([charge("a"), charge("b")], NOW)
    await kept.reserve([charge("a", weight=2), charge("b", weight=2)], NOW)
    await kept.give_back(first.id)
    await kept.give_back(first.id)
    assert (await kept.reserve([charge("a"), charge("b")], NOW)).id
    assert not (await kept.reserve([charge("a")], NOW)).id


async def test_of_n_at_once_on_k_left_exactly_k(kept):
    taken = await asyncio.gather(*(kept.reserve([charge(limit=7)], NOW) for _ in range(50)))
    assert sum(bool(t.id) for t in taken) == 7


async def test_a_lower_limit_counts_what_was_taken_under_the_higher_one(kept):
    await kept.reserve([charge(limit=10, weight=10)], NOW)
    (over,) = (await kept.reserve([charge(limit=3)], NOW)).over
    assert (over.spent, over.left) == (10, 0)


async def test_a_clock_that_went_back_frees_nothing(kept):
    await kept.reserve([charge(weight=3)], NOW)
    assert not (await kept.reserve([charge()], NOW - 3600)).id


async def test_the_revision_grows_with_each_change_and_only_then(kept):
    seen = [await kept.revision()]
    taken = await kept.reserve([charge(limit=1)], NOW)
    seen.append(await kept.revision())
    await kept.reserve([charge(limit=1)], NOW)  # refused: nothing changed
    seen.append(await kept.revision())
    await kept.give_back(taken.id)
    seen.append(await kept.revision())
    await kept.give_back(taken.id)
    seen.append(await kept.revision())
    assert seen[0] < seen[1] == seen[2] < seen[3] == seen[4]


async def test_odd_names(kept):
    key = "ann'; DROP TABLE spent; --\n\0 é"
    await kept.reserve([charge(key=key, weight=3)], NOW)
    assert not (await kept.reserve([charge(key=key)], NOW)).id


async def test_closed(kept):
    kept.close()
    kept.close()
    with pytest.raises(StoreError, match="is closed"):
        await kept.reserve([charge()], NOW)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=40))
def test_no_window_ever_holds_more_than_the_limit(steps):
    """Whatever comes when, in whatever order the times are (processes look at the clock before they wait)."""
    window, limit = 10, 8

    async def run():
        kept, taken = SqliteStore(None), []
        for second, weight in steps:
            if (await kept.reserve([charge(limit=limit, window=window, weight=weight)], NOW + second)).id:
                taken.append((second, weight))
        kept.close()
        return taken

    taken = asyncio.run(run())
    for start, _ in taken:
        assert sum(weight for second, weight in taken if start <= second < start + window) <= limit


# ----- the contract: objects -----


def objects(changes):
    return [(o.kind, o.name, o.data, o.deleted) for o in changes.objects]


async def test_made_changed_and_removed(kept):
    (made,) = await kept.apply([Put("k", "a", b"1")], NOW)
    assert (await kept.since(0)).objects == (Stored("k", "a", made, b"1", False, NOW),)
    (changed,) = await kept.apply([Put("k", "a", b"2", made)], NOW + 1)
    assert (await kept.since(made)).objects == (Stored("k", "a", changed, b"2", False, NOW + 1),)
    (removed,) = await kept.apply([Delete("k", "a", changed)], NOW + 2)
    assert (await kept.since(changed)).objects == (Stored("k", "a", removed, b"2", True, NOW + 2),)
    assert made < changed < removed == await kept.revision()
    assert (await kept.since(removed)).objects == ()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(Put("k", "there", b"x"), Exists, id="make what is there"),
        pytest.param(Put("k", "there", b"x", 999), Conflict, id="change from another revision"),
        pytest.param(Delete("k", "there", 999), Conflict, id="remove from another revision"),
        pytest.param(Put("k", "none", b"x", 1), Absent, id="change what is not there"),
        pytest.param(Delete("k", "none"), Absent, id="remove what is not there"),
        pytest.param(Put("other", "there", b"x", 1), Absent, id="a name is of its kind"),
        pytest.param(Put("k", "gone", b"x", 2), Absent, id="change what was removed"),
        pytest.param(Delete("k", "gone"), Absent, id="remove twice"),
        pytest.param(Delete("k", "there", 0), Conflict, id="there is no revision 0"),
    ],
)
async def test_what_does_not_fit_changes_nothing(kept, change, error):
    await kept.apply([Put("k", "there", b"1"), Put("k", "gone", b"1")], NOW)
    await kept.apply([Delete("k", "gone")], NOW)
    before = await kept.since(0)
    for changes in ([change], [Put("k", "new", b"x"), Put("k", "also", b"x"), change]):
        with pytest.raises(Rejected) as e:
            await kept.apply(changes, NOW)
        assert type(e.value) is error
    assert await kept.since(0) == before


async def test_several_changes_have_revisions_of_their_own(kept):
    revisions = await kept.apply([Put("k", "a", b"1"), Put("k", "b", b"2"), Put("l", "a", b"3")], NOW)
    assert sorted(set(revisions)) == list(revisions)
    assert [o.revision for o in (await kept.since(0)).objects] == list(revisions)


async def test_a_name_can_be_taken_again(kept):
    await kept.apply([Put("k", "a", b"1")], NOW)
    (removed,) = await kept.apply([Delete("k", "a")], NOW)
    await kept.apply([Put("k", "a", b"2")], NOW)
    assert objects(await kept.since(0)) == [("k", "a", b"2", False)]
    assert objects(await kept.since(removed)) == [("k", "a", b"2", False)]


async def test_removed_without_a_look(kept):
    (made,) = await kept.apply([Put("k", "a", b"1")], NOW)
    await kept.apply([Put("k", "a", b"2", made)], NOW)
    await kept.apply([Delete("k", "a")], NOW)
    assert objects(await kept.since(0)) == [("k", "a", b"2", True)]


async def test_of_n_that_change_the_same_revision_one_does(kept):
    (made,) = await kept.apply([Put("k", "a", b"")], NOW)
    done = await asyncio.gather(
        *(kept.apply([Put("k", "a", str(n).encode(), made)], NOW) for n in range(50)), return_exceptions=True
    )
    assert sum(isinstance(d, tuple) for d in done) == 1
    assert sum(isinstance(d, Conflict) for d in done) == 49


async def test_each_object_once_in_the_order_of_its_last_change(kept):
    a, b, _ = await kept.apply([Put("k", name, b"1") for name in "abc"], NOW)
    (a2,) = await kept.apply([Put("k", "a", b"2", a)], NOW)
    assert [o.name for o in (await kept.since(0)).objects] == ["b", "c", "a"]
    assert [o.name for o in (await kept.since(b)).objects] == ["c", "a"]
    found = await kept.since(a2)
    assert (found.objects, found.revision, found.more) == ((), a2, False)


async def test_a_revision_without_objects_is_passed_too(kept):
    (made,) = await kept.apply([Put("k", "a", b"1")], NOW)
    await kept.reserve([charge()], NOW)
    assert (await kept.since(made)).revision == made + 1


async def test_pages(kept, monkeypatch):
    monkeypatch.setattr(store, "PAGE", 3)
    await kept.apply([Put("k", str(n), b"") for n in range(7)], NOW)
    names, position, more = [], 0, True
    while more:
        found = await kept.since(position)
        assert len(found.objects) <= 3
        names += [o.name for o in found.objects]
        position, more = found.revision, found.more
    assert names == [str(n) for n in range(7)]
    assert position == await kept.revision()


async def test_removed_ones_are_forgotten_after_a_while_and_the_horizon_says_so(kept):
    _, b = await kept.apply([Put("k", "a", b""), Put("k", "b", b"")], NOW)
    (gone,) = await kept.apply([Delete("k", "a")], NOW)
    assert (await kept.since(0)).horizon == 0
    (later,) = await kept.apply([Delete("k", "b")], NOW + store.TOMBSTONES - 1)
    assert [o.name for o in (await kept.since(b)).objects] == ["a", "b"]  # not yet
    await kept.apply([Put("k", "c", b"")], NOW + store.TOMBSTONES + store.PRUNE_EVERY)
    found = await kept.since(b)
    assert [o.name for o in found.objects] == ["b", "c"]
    assert found.horizon == gone > b  # whoever stands at b has missed something, and can tell
    assert later > found.horizon


async def test_not_all_removed_ones_at_once(kept, monkeypatch):
    monkeypatch.setattr(store, "PRUNE_ROWS", 2)
    await kept.apply([Put("k", str(n), b"") for n in range(5)], NOW)
    gone = await kept.apply([Delete("k", str(n)) for n in range(5)], NOW)
    horizons = []
    for n in range(1, 4):
        await kept.apply([Put("k", f"new{n}", b"")], NOW + n * 1000)
        found = await kept.since(0)
        horizons.append((found.horizon, sum(o.deleted for o in found.objects)))
    assert horizons == [(gone[1], 3), (gone[3], 1), (gone[4], 0)]


@pytest.mark.parametrize("data", [b"", b"\0\xff'\n", b"x" * store.MAX_DATA], ids=["empty", "odd", "large"])
async def test_any_bytes(kept, data):
    await kept.apply([Put("k", "a'; --\0 é", data)], NOW)
    assert objects(await kept.since(0)) == [("k", "a'; --\0 é", data, False)]


async def test_too_large(kept):
    with pytest.raises(StoreError, match=r"^a is too large to be kept \(1048577 bytes of 1048576\)$"):
        await kept.apply([Put("k", "b", b""), Put("k", "a", b"x" * (store.MAX_DATA + 1))], NOW)
    assert (await kept.since(0)).objects == ()


async def test_budgets_and_objects_share_the_revision_and_nothing_else(kept):
    taken = await kept.reserve([charge(weight=3)], NOW)
    (made,) = await kept.apply([Put("k", "a", b"1")], NOW)
    assert int(taken.id) < made
    await kept.give_back(str(made))  # the number of a change is no reservation
    await kept.apply([Delete("k", "a")], NOW)
    assert not (await kept.reserve([charge()], NOW)).id


which = st.sampled_from(["new", "right", "wrong", "any"])
change = st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from("ab"), which)
steps = st.lists(st.lists(change, min_size=1, max_size=3), max_size=15)


@settings(deadline=None, max_examples=100)
@given(steps)
def test_it_is_what_a_dictionary_would_be(steps):
    """Every order of changes, right and wrong, against the simplest model; and a follower that always has it all."""

    async def run():
        kept, model, seen, position = SqliteStore(None), {}, {}, 0
        for step in steps:
            changes, expected, fits = [], dict(model), True
            for what, name, which in step:
                now = expected.get(name)
                revision = {"new": 0, "right": now[0] if now else 7, "wrong": 10_000, "any": None}[which]
                if what == "put":
                    revision = revision or 0
                    changes.append(Put("k", name, str(len(changes)).encode(), revision))
                    fits = fits and (now is None if revision == 0 else now is not None and now[0] == revision != -1)
                else:
                    changes.append(Delete("k", name, revision))
                    fits = fits and now is not None and (revision is None or now[0] == revision != -1)
                if not fits:
                    break
                # The second change of a name in one go cannot know the revision of the first.
                expected[name] = (-1, changes[-1].data) if what == "put" else None
            try:
                revisions = await kept.apply(changes, NOW)
            except Rejected:
                assert not fits
            else:
                assert fits
                for change, revision in zip(changes, revisions, strict=True):
                    model[change.name] = (revision, change.data) if isinstance(change, Put) else None
            if step[0][0] == "put":  # not after every step: several changes at once to catch up with
                found = await kept.since(position)
                seen |= {o.name: None if o.deleted else (o.revision, o.data) for o in found.objects}
                position = found.revision
                assert {k: v for k, v in seen.items() if v} == {k: v for k, v in model.items() if v}
        kept.close()

    asyncio.run(run())


# ----- SQLite: what survives -----


async def test_objects_survive_a_restart(file):
    one = SqliteStore(file)
    await one.apply([Put("k", "a", b"1"), Put("k", "b", b"2")], NOW)
    await one.apply([Delete("k", "b")], NOW)
    before = await one.since(0)
    one.close()
    again = SqliteStore(file)
    assert await again.since(0) == before
    again.close()


async def test_two_stores_on_one_file(stored, file):
    other = SqliteStore(file)
    (made,) = await stored.apply([Put("k", "a", b"1")], NOW)
    assert objects(await other.since(0)) == [("k", "a", b"1", False)]
    await other.apply([Put("k", "a", b"2", made)], NOW)
    with pytest.raises(Conflict):
        await stored.apply([Put("k", "a", b"3", made)], NOW)
    assert objects(await stored.since(made)) == [("k", "a", b"2", False)]
    other.close()


async def test_a_look_waits_for_no_other_process(stored, file):
    await stored.apply([Put("k", "a", b"1")], NOW)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert len((await stored.since(0)).objects) == 1
    other.execute("ROLLBACK")
    other.close()


async def test_a_look_sees_what_was_written_before_it(stored):
    go = threading.Event()
    first = asyncio.ensure_future(stored.write(lambda t: go.wait(10)))
    look = asyncio.ensure_future(stored.since(0))
    write = asyncio.ensure_future(stored.apply([Put("k", "a", b"1")], NOW))
    await asyncio.sleep(0)
    go.set()
    await first
    (made,) = await write
    assert [o.revision for o in (await look).objects] == [made]


# ----- SQLite: a change whose caller was refused for lateness -----


async def late(stored, monkeypatch, changes, meanwhile=None):
    """The changes are begun and done, and the caller is told that they failed."""
    begun, go, real = threading.Event(), threading.Event(), store._change

    def slow(*arguments):
        begun.set()
        go.wait(10)
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(store, "_change", slow)
        patched.setattr(store, "ANSWER", 0.05)
        with pytest.raises(StoreError, match="did not answer within a second"):
            await stored.apply(changes, NOW)
        assert begun.is_set()
    if meanwhile is not None:
        # In the same batch as the undoing, before it.
        real_finish = stored._finish

        def finish(job):
            stored._jobs.put(store._Job(meanwhile, None))
            real_finish(job)

        monkeypatch.setattr(stored, "_finish", finish)
    go.set()


async def settled(stored, check):
    async with asyncio.timeout(10):
        while not check(found := objects(await stored.since(0))):
            await asyncio.sleep(0.001)
    return found


async def test_a_late_change_is_taken_back(stored, monkeypatch):
    made = await stored.apply([Put("k", "a", b"old"), Put("k", "c", b"old")], NOW)
    await late(stored, monkeypatch, [Put("k", "a", b"new", made[0]), Put("k", "b", b"new"), Delete("k", "c")])
    found = await settled(stored, lambda found: ("k", "b", b"new", True) in found)
    assert ("k", "a", b"old", False) in found
    assert ("k", "c", b"old", False) in found
    with pytest.raises(Conflict):  # a revision is never had twice
        await stored.apply([Put("k", "a", b"x", made[0])], NOW)


async def test_a_late_change_that_somebody_built_on_stays(stored, monkeypatch):
    await stored.apply([Put("k", "a", b"old")], NOW)
    (made,) = (o.revision for o in (await stored.since(0)).objects)

    def built_on(transaction):
        store._put(transaction, "k", "b", b"built on", 0)

    await late(stored, monkeypatch, [Put("k", "a", b"new", made), Put("k", "b", b"new")], built_on)
    found = await settled(stored, lambda found: ("k", "b", b"built on", False) in found)
    for _ in range(5):  # the undoing has run by then
        found = objects(await stored.since(0))
    assert ("k", "a", b"new", False) in found


async def test_what_was_not_begun_for_a_refused_caller_is_not_done(stored, monkeypatch):
    monkeypatch.setattr(store, "ANSWER", 0.01)
    go = threading.Event()
    stuck = asyncio.ensure_future(stored.write(lambda t: go.wait(10)))
    late = asyncio.ensure_future(stored.apply([Put("k", "a", b"")], NOW))
    look = asyncio.ensure_future(stored.since(0))
    for one in (stuck, late, look):
        with pytest.raises(StoreError):
            await one
    monkeypatch.setattr(store, "ANSWER", 10)
    go.set()
    found = await stored.since(0)
    assert (found.objects, found.revision) == ((), 0)


async def test_a_restart_keeps_the_counts(file):
    one = SqliteStore(file)
    await one.reserve([charge(weight=3)], NOW)
    revision = await one.revision()
    one.close()
    again = SqliteStore(file)
    assert not (await again.reserve([charge()], NOW)).id
    assert await again.revision() == revision
    again.close()


async def test_what_was_answered_is_on_disk(stored, file):
    await stored.reserve([charge(weight=3)], NOW)
    with sqlite3.connect(file) as other:
        assert other.execute("SELECT sum(weight) FROM spent").fetchone() == (3,)
    other.close()
    assert stored._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert stored._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_what_is_over_is_pruned(stored):
    for second in range(5):
        await stored.reserve([charge(key=str(second))], NOW + second)
    await stored.reserve([charge(key="new")], NOW + 3600)
    assert stored._db.execute("SELECT key FROM spent").fetchall() == [("new",)]


async def test_prune_takes_a_bit_at_a_time(stored, monkeypatch):
    monkeypatch.setattr(store, "PRUNE_ROWS", 2)
    for n in range(5):
        await stored.reserve([charge(key=str(n))], NOW)
    left = []
    for _ in range(3):
        await stored.reserve([charge(weight=4)], NOW + 3600)  # never fits, prunes all the same
        left.append(stored._db.execute("SELECT count(*) FROM spent").fetchone()[0])
    assert left == [3, 1, 0]


def spend_in_a_process(path, start, results):
    async def run():
        one = SqliteStore(path)
        start.wait(30)
        taken = 0
        for _ in range(20):
            answers = await asyncio.gather(*(one.reserve([charge(limit=100)], NOW) for _ in range(3)))
            taken += sum(bool(a.id) for a in answers)
        one.close()
        return taken

    results.put(asyncio.run(run()))


def test_processes_share_the_counts(file):
    """Three real processes open the same new file and ask for 180 in all, of which 100 are there."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    processes = [context.Process(target=spend_in_a_process, args=(file, start, results)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    taken = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    assert sum(taken) == 100


# ----- SQLite: busy, broken, late -----


async def test_busy_is_said_within_a_second_and_passes(stored, file):
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    before = time.monotonic()
    with pytest.raises(StoreError, match=r"state\.db is busy: another process holds it"):
        await stored.reserve([charge()], NOW)
    assert time.monotonic() - before < 1
    other.execute("ROLLBACK")
    other.close()
    assert (await stored.reserve([charge()], NOW)).id


async def test_a_late_success_is_given_back(stored, monkeypatch):
    """The caller was refused because the disk was slow: when it is done after all, nothing stays spent."""
    monkeypatch.setattr(store, "ANSWER", 0.01)
    go = threading.Event()
    stuck = asyncio.ensure_future(stored.write(lambda t: go.wait(10)))
    late = [asyncio.ensure_future(stored.reserve([charge(weight=3)], NOW)) for _ in range(2)]
    for one in (stuck, *late):
        with pytest.raises(StoreError, match="did not answer within a second"):
            await one
    monkeypatch.setattr(store, "ANSWER", 10)
    go.set()
    async with asyncio.timeout(10):
        while not (await stored.reserve([charge(weight=3)], NOW)).id:
            await asyncio.sleep(0)


async def test_a_reservation_that_was_begun_and_came_too_late_is_given_back(stored, monkeypatch):
    begun, go, real = threading.Event(), threading.Event(), store._reserve

    def slow(*arguments):
        begun.set()
        go.wait(10)
        return real(*arguments)

    monkeypatch.setattr(store, "_reserve", slow)
    monkeypatch.setattr(store, "ANSWER", 0.05)
    with pytest.raises(StoreError):
        await stored.reserve([charge(weight=3)], NOW)
    assert begun.is_set()
    monkeypatch.setattr(store, "_reserve", real)
    monkeypatch.setattr(store, "ANSWER", 10)
    go.set()
    async with asyncio.timeout(10):
        while not (await stored.reserve([charge(weight=3)], NOW)).id:
            await asyncio.sleep(0)


async def test_a_cancelled_caller_is_no_answer_and_hurts_nobody(stored):
    waiting = asyncio.ensure_future(stored.reserve([charge()], NOW))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await stored.reserve([charge()], NOW)).id


async def test_too_many_wait(stored, monkeypatch):
    monkeypatch.setattr(store, "MAX_WAITING", 0)
    with pytest.raises(StoreError, match="does not keep up"):
        await stored.reserve([charge()], NOW)


async def test_one_job_that_fails_leaves_the_others_of_its_transaction(stored):
    go = threading.Event()
    first = asyncio.ensure_future(stored.write(lambda t: go.wait(10)))  # so that the next ones share a transaction

    def wrong(transaction):
        transaction.next_revision()
        transaction.db.execute("DELETE FROM spent")
        raise ValueError("secret")

    jobs = [
        asyncio.ensure_future(stored.reserve([charge(weight=3)], NOW)),
        asyncio.ensure_future(stored.write(wrong)),
        asyncio.ensure_future(stored.reserve([charge(key="bob")], NOW)),
    ]
    await asyncio.sleep(0)
    go.set()
    await first
    taken, failed, other = await asyncio.gather(*jobs, return_exceptions=True)
    assert (taken.id, other.id) == ("1", "2")
    assert isinstance(failed, StoreError)
    assert "secret" not in str(failed)
    assert not (await stored.reserve([charge()], NOW)).id


async def test_a_broken_database_fails_everything_and_takes_nothing(stored):
    stored._db.execute("DROP TABLE store")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"state\.db failed \(no such table: store\)"):
            await stored.reserve([charge()], NOW)
    assert stored._db.execute("SELECT count(*) FROM spent").fetchone() == (0,)


async def test_a_full_disk(stored):
    (pages,) = stored._db.execute("PRAGMA page_count").fetchone()
    stored._db.execute(f"PRAGMA max_page_count = {pages}")
    many = [charge(str(n), key="k" * 2000) for n in range(100)]
    with pytest.raises(StoreError, match="cannot grow: the disk is full"):
        await stored.reserve(many, NOW)
    assert stored._db.execute("SELECT count(*) FROM spent").fetchone() == (0,)


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_file_that_is_gone_is_noticed(stored, file, how):
    file.unlink()
    if how == "replaced":
        file.write_bytes(b"")
    with pytest.raises(StoreError, match="was removed or replaced while in use; restart the gateway"):
        await stored.reserve([charge()], NOW)


async def test_a_newer_gateway_that_changes_the_file_meanwhile(stored, file):
    other = sqlite3.connect(file)
    other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StoreError, match="newer version of Tollgate"):
        await stored.reserve([charge()], NOW)


# ----- SQLite: what is not opened -----


def refused(file):
    with pytest.raises(StoreError) as e:
        SqliteStore(file)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_a_new_file_is_private(stored, file):
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in file.parent.iterdir()} == {
        "state.db": "0o600",
        "state.db-wal": "0o600",
        "state.db-shm": "0o600",
    }
    assert file.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write(file, mode):
    file.parent.mkdir()
    file.parent.chmod(mode)
    assert "state can be written by others; run chmod go-w" in refused(file)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_file_that_others_can_write(file, suffix):
    SqliteStore(file).close()
    other = file.with_name(file.name + suffix)
    other.touch()
    other.chmod(0o620)
    assert f"{other.name} can be written by others" in refused(file)


def test_a_link(file, tmp_path):
    SqliteStore(file).close()
    file.rename(tmp_path / "elsewhere.db")
    file.symlink_to(tmp_path / "elsewhere.db")
    assert "state.db is not a plain file" in refused(file)


def test_a_file_that_cannot_be_made(file, monkeypatch):
    def denied(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert "state.db cannot be made: Permission denied" in refused(file)


def test_a_folder_of_another_user(file, monkeypatch):
    file.parent.mkdir(mode=0o700)
    os.chown(file.parent, 12345, -1) if os.geteuid() == 0 else monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "state belongs to another user" in refused(file)


def test_no_folder(tmp_path):
    (tmp_path / "state").write_text("")
    assert "state cannot be used for state: " in refused(tmp_path / "state" / store.FILE)


def test_a_file_that_is_no_database(file):
    file.parent.mkdir(mode=0o700)
    file.touch(0o600)
    file.write_bytes(b"nonsense " * 1000)
    assert "state.db is damaged; restore it, or move it" in refused(file)


async def test_a_damaged_file(file):
    one = SqliteStore(file)
    for n in range(200):
        await one.reserve([charge(key=f"{n:0100}")], NOW)
    one.close()
    content = bytearray(file.read_bytes())
    for page in range(4096, len(content), 4096):  # not the first: the schema can still be read
        content[page : page + 4096] = os.urandom(4096)
    file.write_bytes(content)
    assert "state.db is damaged" in refused(file)


def test_another_programs_database(file):
    file.parent.mkdir(mode=0o700)
    file.touch(0o600)
    other = sqlite3.connect(file)
    other.execute("CREATE TABLE t (a)")
    other.close()
    assert "belongs to another program" in refused(file)


def test_an_empty_file_is_taken(file):
    file.parent.mkdir(mode=0o700)
    file.touch(0o600)
    SqliteStore(file).close()


def test_a_newer_schema(file):
    SqliteStore(file).close()
    other = sqlite3.connect(file)
    other.execute(f"PRAGMA user_version = {len(store.MIGRATIONS) + 1}")
    other.close()
    assert f"newer version of Tollgate (schema {len(store.MIGRATIONS) + 1}, this one knows" in refused(file)


async def test_an_older_schema_is_migrated(file, monkeypatch):
    one = SqliteStore(file)
    await one.reserve([charge(weight=3)], NOW)
    one.close()
    monkeypatch.setattr(store, "MIGRATIONS", (*store.MIGRATIONS, "CREATE TABLE more (a); INSERT INTO more VALUES (7);"))
    again = SqliteStore(file)
    assert not (await again.reserve([charge()], NOW)).id
    assert again._db.execute("SELECT a FROM more").fetchall() == [(7,)]
    again.close()


async def test_a_file_of_the_first_version_keeps_what_was_spent(file):
    file.parent.mkdir(mode=0o700)
    file.touch(0o600)
    old = sqlite3.connect(file, isolation_level=None)
    for statement in filter(str.strip, store.MIGRATIONS[0].split(";")):
        old.execute(statement)
    old.execute(f"PRAGMA application_id = {store.APPLICATION_ID}")
    old.execute("PRAGMA user_version = 1")
    moment = int(NOW * 1000)
    old.execute("INSERT INTO spent VALUES (41, 'p/b', 'ann', ?, ?, 3)", (moment, moment + 60_000))
    old.execute("UPDATE store SET revision = 41")
    old.close()
    one = SqliteStore(file)
    (over,) = (await one.reserve([charge()], NOW + 59)).over
    assert over.spent == 3
    assert await one.apply([Put("k", "a", b"")], NOW) == (42,)
    await one.give_back("41")
    assert (await one.reserve([charge(weight=3)], NOW)).id
    one.close()


def test_a_migration_that_fails_changes_nothing(file, monkeypatch):
    SqliteStore(file).close()
    with monkeypatch.context() as patched:
        patched.setattr(store, "MIGRATIONS", (*store.MIGRATIONS, "CREATE TABLE more (a); CREATE TABLE more (a);"))
        assert "state.db failed (table more already exists)" in refused(file)
    SqliteStore(file).close()


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /srv rw - nfs4 server:/srv rw
31 30 254:1 / /srv/local rw shared:3 master:1 - xfs /dev/vdb rw
32 22 0:26 / /with\\040blank rw - fuse.sshfs host: rw
33 22 0:27 / /twice rw - ext4 /dev/vdc rw
34 33 0:28 / /twice rw - cifs //server/share rw
garbage
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/tollgate", ""),
        ("/srv", "nfs4"),
        ("/srv/tollgate", "nfs4"),
        ("/srvother", ""),
        ("/srv/local/tollgate", ""),
        ("/with blank/tollgate", "fuse.sshfs"),
        ("/twice/tollgate", "cifs"),
    ],
)
def test_network_file_system(tmp_path, path, kind):
    assert store.network_file_system(MOUNTS, type(tmp_path)(path)) == kind


def test_a_network_file_system_is_refused(file, monkeypatch):
    monkeypatch.setattr(store, "network_file_system", lambda mountinfo, path: "nfs4")
    assert "is on a network file system (nfs4), where SQLite loses changes; use a local disk" in refused(file)
