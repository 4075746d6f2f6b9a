import asyncio
import contextlib
import json
import ssl
import weakref

import h2.events
import h2.exceptions
import h2.settings
import pytest
from mitmproxy import http

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


class Slow:
    """Time for a body, short; answers what is complete, so that nothing goes upstream. `by_head`: from its head."""

    name = "slow"

    def __init__(self, *, by_head: bool = False):
        self.by_head = by_head
        self.bodies, self.errors, self.heads = [], [], asyncio.Event()

    def load(self, loader):
        loader.add_option("tollgate_body_timeout", int, 60, "")

    def requestheaders(self, flow):
        if self.by_head:
            answers.refuse(flow, self.name, status.Refusal(401, "x", "no"))
        self.heads.set()

    def request(self, flow):
        self.bodies.append(flow.request.raw_content)
        if not self.by_head:
            flow.response = http.Response.make(200, b"{}")

    def error(self, flow):
        self.errors.append(flow.error.msg)


POST = b"POST / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("by_head", [False, True], ids=["judged when complete", "refused by its head"])
@pytest.mark.parametrize(
    ("first", "piece"),
    [
        pytest.param(POST + b"Content-Length: 1000000\r\n\r\n", b"x", id="a length"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", id="chunks"),
        pytest.param(POST + b"Content-Length: 1000000\r\n\r\n", b"", id="nothing at all"),
        pytest.param(POST + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n", b"x", id="expected"),
    ],
)
async def test_a_body_that_comes_byte_by_byte_has_an_end(tls, confdir, first, piece, by_head):
    addon = Slow(by_head=by_head)
    async with (
        proxy.running(1, tls.combined, tls.ca_file, confdir, addon, tollgate_body_timeout=1) as port,
        asyncio.timeout(20),
    ):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=ssl.create_default_context(cafile=tls.ca_file)
        )
        writer.write(first)
        received = b""
        with contextlib.suppress(OSError, ssl.SSLError):
            while not reader.at_eof():  # each byte is progress, and buys no time
                writer.write(piece)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        received += await reader.read(65536)
        writer.close()
        head, _, body = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert json.loads(body)["message"] == bodies.TOO_SLOW.message
        assert addon.bodies == []
        assert addon.errors == [bodies.TOO_SLOW.message]


async def test_a_slow_body_over_http2_ends_alone(tls, confdir):
    async with (
        proxy.running(1, tls.combined, tls.ca_file, confdir, Slow(), tollgate_body_timeout=1) as port,
        http2.connect(port, tls.ca_file) as client,
        asyncio.timeout(20),
    ):
        sid = client.connection.get_next_available_stream_id()
        client.answers[sid] = slow = http2.Answer()
        head = [(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", "x")]
        client.connection.send_headers(sid, head)
        client.flush()
        while not slow.ended.is_set():
            client.connection.send_data(sid, b"x")
            client.flush()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await slow.ended.wait()
        assert slow.status == 408
        assert json.loads(slow.body)["message"] == bodies.TOO_SLOW.message
        client.connection.send_data(sid, b"x", end_stream=True)  # what was on its way
        client.flush()
        after = await client.request("/", method="POST", body=b"whole")
        assert after.status == 200


async def test_a_body_that_is_complete_waits_for_its_answer_without_limit(tls, confdir):
    class Holds(Slow):
        async def request(self, flow):
            await asyncio.sleep(1.5)  # what is waited for is that nothing happens
            flow.response = http.Response.make(200, b"{}")

    async with (
        proxy.running(1, tls.combined, tls.ca_file, confdir, Holds(), tollgate_body_timeout=1) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        assert (await client.request("/", method="POST", body=b"whole")).status == 200
        assert (await client.request("/")).status == 200
    assert not list(bodies._waiting.values())


async def test_a_body_that_ends_as_its_time_does_is_refused_by_the_last_word(tls, confdir):
    """The cut travels through the loop: a body that is complete before it arrives must not pass after all."""
    seen = []

    class Late(Slow):
        def request(self, flow):
            seen.append(facts.of(flow).cut_off)
            super().request(flow)

    async with (
        proxy.running(1, tls.combined, tls.ca_file, confdir, addon := Late()) as port,
        http2.connect(port, tls.ca_file) as client,
        asyncio.timeout(20),
    ):
        sid = client.connection.get_next_available_stream_id()
        client.answers[sid] = http2.Answer()
        head = [(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", "x")]
        client.connection.send_headers(sid, head)
        client.flush()
        await addon.heads.wait()
        while not (waiting := list(bodies._waiting)):
            await asyncio.sleep(0)
        facts_of_it = facts.of(waiting[0].flow)
        client.connection.end_stream(sid)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bodies.cutting, "cut", lambda *_: None)  # it has not arrived yet
            bodies._give_up(weakref.ref(waiting[0]))
        client.flush()
        await client.answers[sid].ended.wait()
    assert seen == [bodies.TOO_SLOW]
    assert facts_of_it.cut_off is bodies.TOO_SLOW


async def test_no_limit(tls, confdir):
    async with (
        proxy.running(1, tls.combined, tls.ca_file, confdir, addon := Slow(), tollgate_body_timeout=0) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        sid = client.connection.get_next_available_stream_id()
        head = [(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", "x")]
        client.connection.send_headers(sid, head)
        client.flush()
        async with asyncio.timeout(10):
            await addon.heads.wait()
        assert not list(bodies._waiting)
