import asyncio

import pytest

from addons.core import facts
from addons.mitm import injecting
from tests import http2, proxy

injecting.install()


class Streams:
    name = "streams"

    def __init__(self):
        self.hold = asyncio.Event()
        self.hold.set()

    def responseheaders(self, flow):
        self.flow = flow
        flow.response.stream = True

    async def response(self, flow):
        await self.hold.wait()


class Buffers(Streams):
    def responseheaders(self, flow):
        self.flow = flow


def begin(peer, sid, head):
    peer.respond(sid, 200, b"one ", end=False)


async def settled():
    while injecting._tasks:
        await asyncio.sleep(0)


async def through(tls, confdir, addon, test, respond=begin):
    async with (
        http2.server(tls.combined, respond) as (upstream, peers),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, addon) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        await test(client, peers)


async def test_it_keeps_its_place(tls, confdir):
    addon = Streams()

    async def test(client, peers):
        answer = client.start("/log")
        await answer.until(lambda a: a.body)
        injecting.inject(addon.flow, lambda: b"two ")
        injecting.inject(addon.flow, lambda: b"")
        await answer.until(lambda a: b"two" in a.body)
        peers[0].connection.send_data(1, b"three", end_stream=True)
        peers[0].flush()
        await answer.until(lambda a: a.ended.is_set())
        assert (answer.body, answer.reset) == (b"one two three", None)
        injecting.inject(addon.flow, lambda: pytest.fail("it is over"))

    await through(tls, confdir, addon, test)


async def test_not_after_the_end_has_come(tls, confdir):
    """The hook at the end of the answer runs: what the masker had left is on its way already."""
    addon = Streams()
    addon.hold.clear()
    asked = []

    async def test(client, peers):
        answer = client.start("/log")
        await answer.until(lambda a: a.body)
        peers[0].connection.send_data(1, b"end", end_stream=True)
        peers[0].flush()
        await answer.until(lambda a: b"end" in a.body)
        injecting.inject(addon.flow, lambda: asked.append(1) or b"late")
        await settled()
        addon.hold.set()
        await answer.until(lambda a: a.ended.is_set())
        assert answer.body == b"one end"
        assert not asked

    await through(tls, confdir, addon, test)


async def test_not_into_an_answer_that_is_kept(tls, confdir):
    addon = Buffers()
    asked = []

    async def test(client, peers):
        answer = client.start("/x")
        while not hasattr(addon, "flow"):
            await asyncio.sleep(0.01)
        injecting.inject(addon.flow, lambda: asked.append(1) or b"early")
        await settled()
        peers[0].connection.send_data(1, b"two", end_stream=True)
        peers[0].flush()
        await answer.until(lambda a: a.ended.is_set())
        assert answer.body == b"one two"
        assert not asked

    await through(tls, confdir, addon, test)


async def test_not_into_one_that_nobody_released(tls, confdir):
    addon = Streams()
    asked = []

    async def test(client, peers):
        answer = client.start("/log")
        await answer.until(lambda a: a.body)
        facts.of(addon.flow).head_released = False
        injecting.inject(addon.flow, lambda: asked.append(1) or b"x")
        await settled()
        assert answer.body == b"one "
        assert not asked

    await through(tls, confdir, addon, test)
