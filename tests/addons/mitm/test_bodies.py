import asyncio
import contextlib
import json
import ssl

import h2.events
import h2.exceptions
import h2.settings
import pytest

from addons.core import facts, maskanswers, status
from addons.core.model import Identity
from addons.mitm import answers, bodies
from tests import http2, proxy


async def test_a_large_answer_passes_and_a_large_request_does_not(tls, confdir):
    def answer(peer, sid, head):
        peer.connection.max_outbound_frame_size = 16384
        peer.connection.send_headers(sid, [(":status", "200"), ("content-length", "40000")])
        for _ in range(4):
            peer.connection.send_data(sid, b"x" * 10_000)
        peer.connection.end_stream(sid)
        peer.flush()

    async with (
        http2.server(tls.combined, answer) as (upstream, _peers),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, body_size_limit="20k") as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        assert len((await client.request("/big")).body) == 40_000
        refused = await client.request("/big", method="POST", body=b"y" * 30_000)
        assert refused.status == 413
        assert json.loads(refused.body)["reason"] == "RequestEntityTooLarge"


class Refuses:
    """Answers from the head, and looks at how much of the body was kept."""

    name = "refuses"
    kept = None

    def requestheaders(self, flow):
        answers.refuse(flow, self.name, status.Refusal(401, "x", "no"))

    def request(self, flow):
        self.kept = len(flow.request.raw_content)


async def test_the_body_of_a_refused_request_is_not_kept(tls, confdir):
    addon = Refuses()
    async with (
        proxy.running(1, tls.combined, tls.ca_file, confdir, addon) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        answer = await client.request("/big", method="POST", body=b"y" * 50_000)
    assert answer.status == 401
    assert addon.kept == 0


class Keeps:
    """Keeps the whole answer, as approve and mask do."""

    name = "keeps"

    def response(self, flow):
        self.kept = len(flow.response.raw_content)


@pytest.mark.parametrize("length", [(), (("content-length", "300000"),)], ids=["no length", "a length"])
async def test_an_answer_that_is_kept_has_a_limit(tls, confdir, monkeypatch, length):
    monkeypatch.setattr(maskanswers, "MAX_WHOLE", 200_000)
    asked = {}

    def answer(peer, sid, head):
        asked[sid] = peer
        peer.connection.send_headers(sid, [(":status", "200"), *length])
        for _ in range(3):
            peer.connection.send_data(sid, b"x" * 100_000)
        peer.flush()

    addon = Keeps()
    async with (
        http2.server(tls.combined, answer) as (upstream, _),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, addon) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        found = await client.request("/big")
        assert found.status == 502
        assert json.loads(found.body)["message"] == maskanswers.TOO_LARGE.message
        assert not hasattr(addon, "kept")


class Lists:
    """An API server of large lists: sends nearly all of one, and the rest when told."""

    def __init__(self):
        self.waiting = []

    def __call__(self, peer, sid, head):
        peer.connection.send_headers(sid, [(":status", "200")])
        peer.connection.send_data(sid, b"x" * 15_000)
        peer.flush()
        self.waiting.append((peer, sid))

    def end(self):
        for peer, sid in self.waiting:
            with contextlib.suppress(h2.exceptions.StreamClosedError):  # of those that were refused
                peer.connection.send_data(sid, b"x" * 100, end_stream=True)
                peer.flush()
        self.waiting.clear()


class Knows:
    """Everybody is who he says he is; looks at when half an answer is there."""

    name = "knows"

    def request(self, flow):
        facts.of(flow).identity = Identity(flow.request.headers.get("x-who", "ann"))


@pytest.fixture
def narrow(monkeypatch):
    """Room for three answers in all, and of one caller for one."""
    monkeypatch.setattr(maskanswers, "MAX_ALL", 50_000)
    monkeypatch.setattr(maskanswers, "SMALL", 10_000)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def half_there(count):
    await until(lambda: len(bodies._kept) >= count)


def asking(who):
    return {"headers": (("x-who", who),)}


async def test_all_answers_that_are_kept_have_a_limit_together(tls, confdir, narrow):
    lists = Lists()
    async with (
        http2.server(tls.combined, lists) as (upstream, _),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, Knows()) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        kept = [client.start("/a", **asking(f"user-{n}")) for n in range(3)]
        await half_there(3)
        refused = await client.request("/a", **asking("one-more"))
        assert refused.status == 503
        assert json.loads(refused.body)["message"] == maskanswers.CROWDED.message
        lists.end()
        for answer in kept:
            await answer.ended.wait()
        assert [answer.status for answer in kept] == [200, 200, 200]
        # Read, they count no more.
        again = client.start("/a", **asking("user-9"))
        await half_there(1)
        lists.end()
        await again.ended.wait()
        assert (again.status, len(again.body)) == (200, 15_100)
    assert not bodies._kept


async def test_one_caller_does_not_take_all_the_room(tls, confdir, narrow):
    lists = Lists()
    async with (
        http2.server(tls.combined, lists) as (upstream, _),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, Knows()) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        one = client.start("/a", **asking("ann"))
        await half_there(1)
        assert (await client.request("/a", **asking("ann"))).status == 503
        other = client.start("/a", **asking("bob"))
        await half_there(2)
        lists.end()
        await one.ended.wait()
        await other.ended.wait()
        assert (one.status, other.status) == (200, 200)


class Unread(http2.Client):
    """Opens no window."""

    def note(self, event):
        if not isinstance(event, h2.events.DataReceived):
            super().note(event)


async def test_an_answer_that_nobody_reads_counts(tls, confdir, narrow):
    lists = Lists()
    async with (
        http2.server(tls.combined, lists) as (upstream, _),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, Knows()) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        context = ssl.create_default_context(cafile=tls.ca_file)
        context.set_alpn_protocols(["h2"])
        lazy = Unread(*await asyncio.open_connection("127.0.0.1", port, ssl=context))
        lazy.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        lazy.flush()
        await asyncio.sleep(0)
        sent = [lazy.start("/a", **asking("ann"))]
        await half_there(1)
        lists.end()
        await sent[0].until(lambda a: a.status)
        assert (await client.request("/a", **asking("ann"))).status == 503
        await lazy.close()
        await until(lambda: not list(bodies._held()))
        again = client.start("/a", **asking("ann"))
        await half_there(1)
        lists.end()
        await again.ended.wait()
        assert again.status == 200


async def test_a_client_that_leaves_gives_its_room_back(tls, confdir, narrow):
    lists = Lists()
    async with (
        http2.server(tls.combined, lists) as (upstream, _),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, Knows()) as port,
    ):
        async with http2.connect(port, tls.ca_file) as client:
            client.start("/a")
            await half_there(1)
        await until(lambda: not bodies._kept)
