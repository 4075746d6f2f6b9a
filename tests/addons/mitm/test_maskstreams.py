"""The callables; on the wire: tests/addons/test_mask.py."""

import asyncio
from concurrent.futures import Future

import pytest
from mitmproxy.test import tflow

from addons.core import maskanswers, maskpolicy
from addons.core.masklines import EventMasker, NotAnEvent
from addons.core.masktags import Place
from addons.core.masktext import TextMasker
from addons.mitm import maskstreams
from addons.mitm.maskstreams import EventStream, Stream, TextStream
from tests import canaries


class Fake:
    def __init__(self, *outs):
        self.outs = list(outs)

    def feed(self, data):
        out = self.outs.pop(0)
        if isinstance(out, Exception):
            raise out
        return out

    def finish(self):
        return self.feed(b"")


@pytest.fixture
def cuts(monkeypatch):
    found = []
    monkeypatch.setattr(maskstreams.cutting, "cut", lambda flow, refusal: found.append(refusal))
    return found


def stream(masker):
    return Stream(tflow.tflow(), masker, maskanswers.STREAM_BROKEN)


def test_nothing_is_a_list_without_items(cuts):
    """b"" would be the last chunk of an HTTP/1.1 body."""
    one = stream(Fake(b"", b"x", b""))
    assert (one(b"a"), one(b"b"), one(b"")) == ([], [b"x"], [])
    assert one.ended
    assert not cuts


@pytest.mark.parametrize("error", [NotAnEvent("x"), RuntimeError("x"), RecursionError()])
def test_after_a_failure_nothing_leaves(cuts, error):
    one = stream(Fake(b"x", error, b"never"))
    assert [one(b"a"), one(b"b"), one(b"c"), one(b"")] == [[b"x"], [], [], []]
    assert one.failed
    assert not one.ended
    assert cuts == [maskanswers.STREAM_BROKEN]


def test_a_failure_at_the_end(cuts):
    one = stream(Fake(NotAnEvent("x")))
    assert one(b"") == []
    assert one.failed
    assert len(cuts) == 1


class Thread:
    """What is submitted, done when the test says so."""

    def __init__(self):
        self.jobs = []

    def __call__(self, job):
        work = Future()
        self.jobs.append((job, work))
        return work

    def work(self):
        for job, work in self.jobs:
            try:
                work.set_result(job())
            except NotAnEvent as e:
                work.set_exception(e)
        self.jobs.clear()


def an_event(name, size=0):
    note = '"note":"%s"' % ("x " * (size // 2))
    return b'{"type":"ADDED","object":{"metadata":{"name":"%b"},%b}}\n' % (name.encode(), note.encode())


@pytest.fixture
def injected(monkeypatch):
    """What is asked for from outside, as it would go on."""
    queue = asyncio.Queue()
    monkeypatch.setattr(maskstreams.injecting, "inject", lambda flow, take: queue.put_nowait(take()))
    return queue


def events(thread):
    masker = EventMasker(Place("configmaps"), bytes(32), maskpolicy.EVERYTHING)
    return EventStream(tflow.tflow(), masker, maskanswers.STREAM_BROKEN, thread)


SMALL, LARGE = an_event("small"), an_event("large", 2 * maskstreams.LARGE_EVENT)


async def test_a_large_event_is_masked_in_a_thread_and_the_next_wait(cuts, injected):
    thread = Thread()
    one = events(thread)
    assert one(SMALL + LARGE + SMALL) == [SMALL]
    assert (one(SMALL[:10]), one(SMALL[10:]), len(thread.jobs)) == ([], [], 1)
    thread.work()
    async with asyncio.timeout(5):
        assert await injected.get() == LARGE + SMALL + SMALL
    assert one(SMALL) == [SMALL]


async def test_one_large_event_after_the_other(cuts, injected):
    thread = Thread()
    one = events(thread)
    assert one(LARGE + LARGE + SMALL) == []
    async with asyncio.timeout(5):
        thread.work()
        assert await injected.get() == LARGE
        assert len(thread.jobs) == 1
        thread.work()
        assert await injected.get() == LARGE + SMALL
    assert (one(b""), one.ended) == ([], True)


async def test_what_comes_meanwhile_takes_it_along(cuts, injected):
    thread = Thread()
    one = events(thread)
    one(LARGE)
    thread.work()
    assert one(SMALL) == [LARGE + SMALL]
    async with asyncio.timeout(5):
        assert await injected.get() == b""


@pytest.mark.parametrize("done", [False, True])
async def test_the_end_does_not_wait_for_a_thread(cuts, injected, done):
    thread = Thread()
    one = events(thread)
    one(LARGE + SMALL)
    if done:
        thread.work()
    assert one(b"") == [LARGE + SMALL]
    thread.work()
    async with asyncio.timeout(5):
        assert await injected.get() == b""


async def test_too_much_behind_a_large_event(cuts, injected, monkeypatch):
    monkeypatch.setattr(maskstreams, "MOST_WAITING", 2 * len(SMALL))
    thread = Thread()
    one = events(thread)
    assert one(LARGE) == []
    assert one(SMALL + SMALL) == []
    assert one(SMALL) == [LARGE + 3 * SMALL]
    assert one(LARGE + 3 * SMALL) == [LARGE + 3 * SMALL]


def test_without_a_thread(cuts):
    def gone(job):
        raise RuntimeError

    for submit in (None, gone):
        assert events(submit)(LARGE + SMALL) == [LARGE + SMALL]


async def test_a_large_one_that_is_no_event(cuts, injected):
    thread = Thread()
    one = events(thread)
    one(b"[" + b" " * maskstreams.LARGE_EVENT + b"]\n" + SMALL)
    thread.work()
    async with asyncio.timeout(5):
        assert await injected.get() == b""
    assert one.failed
    assert cuts == [maskanswers.STREAM_BROKEN]
    assert one(SMALL) == []


async def test_an_incomplete_line_waits_for_a_moment(cuts, monkeypatch):
    sent = asyncio.Queue()
    monkeypatch.setattr(maskstreams.injecting, "inject", lambda flow, take: sent.put_nowait(take()))
    masker = TextMasker(bytes(32), Place("pods/log"), b"n")
    one = TextStream(tflow.tflow(), masker, maskanswers.STREAM_BROKEN)
    assert one(b"line\npass") == [b"line\n"]
    assert one(b"word: ") == []
    async with asyncio.timeout(5):
        assert await sent.get() == b"password: "
    assert sent.empty()
    one(b"token=%b" % canaries.JWT[:50].encode())
    one(b"")
    await asyncio.sleep(2 * maskstreams.PAUSE)  # the timer of what was fed last
    assert sent.empty()


async def test_a_busy_stream_has_one_timer(cuts, monkeypatch):
    loop, timers = asyncio.get_running_loop(), []
    monkeypatch.setattr(loop, "call_later", lambda *args: timers.append(args))
    one = TextStream(tflow.tflow(), TextMasker(bytes(32), Place("x"), b"n"), maskanswers.STREAM_BROKEN)
    one._timer = None
    one(b"a")
    one._timer = object()
    for _ in range(5):
        one(b"a")
    assert len(timers) == 1


async def test_a_failure_while_it_is_idle(cuts, monkeypatch):
    masker = TextMasker(bytes(32), Place("x"), b"n")
    monkeypatch.setattr(TextMasker, "idle", lambda self: 1 / 0)
    one = TextStream(tflow.tflow(), masker, maskanswers.STREAM_BROKEN)
    assert one._take() == b""
    assert one.failed
    assert len(cuts) == 1
