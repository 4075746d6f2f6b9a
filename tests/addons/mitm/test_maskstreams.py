"""The callables; on the wire: tests/addons/test_mask.py."""

import asyncio

import pytest
from mitmproxy.test import tflow

from addons.core import maskanswers
from addons.core.masklines import NotAnEvent
from addons.core.masktags import Place
from addons.core.masktext import TextMasker
from addons.mitm import maskstreams
from addons.mitm.maskstreams import Stream, TextStream
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
