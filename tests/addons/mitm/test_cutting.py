import asyncio
import json

from addons.core import facts, status
from addons.core.model import Impact, Operation, RequestInfo
from addons.mitm import cutting
from tests import http1, http2, proxy, websocket

EXPIRED = status.Refusal(403, "expired", "tollgate: your token has expired; get a new one")


class Streams:
    """Streams every answer, and cuts a flow when told."""

    name = "streams"

    def __init__(self):
        self.flows = {}

    def requestheaders(self, flow):
        self.flows[flow.request.path] = flow
        info = RequestInfo(verb="watch" if "watch" in flow.request.path else "get", path=flow.request.path)
        facts.of(flow).operation = Operation(info, "GET", frozenset({Impact.READ}))

    def responseheaders(self, flow):
        flow.response.stream = True

    def cut(self, path):
        cutting.cut(self.flows[path], EXPIRED)


def begin(peer, sid, head):
    if head[":path"] != "/silent":
        peer.respond(sid, 200, b'{"type":"ADDED"}\n', end=False, headers=(("content-type", "application/json"),))


async def through(tls, confdir, test):
    addon = Streams()
    async with (
        http2.server(tls.combined, begin) as (upstream, peers),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, addon) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        await test(addon, client, peers)


async def test_a_watch_ends_with_an_error_event_and_a_reset(tls, confdir):
    async def test(addon, client, peers):
        watch, neighbour = client.start("/watch"), client.start("/watch/other")
        await watch.until(lambda a: a.body)
        await neighbour.until(lambda a: a.body)
        addon.cut("/watch")
        await watch.until(lambda a: a.ended.is_set())
        added, error = map(json.loads, watch.body.splitlines())
        assert added == {"type": "ADDED"}
        assert error["type"] == "ERROR"
        assert error["object"]["message"] == EXPIRED.message
        assert watch.reset is not None  # never what looks like a complete answer
        assert not neighbour.ended.is_set()

    await through(tls, confdir, test)


async def test_another_stream_is_only_reset(tls, confdir):
    async def test(addon, client, peers):
        logs = client.start("/log")
        await logs.until(lambda a: a.body)
        addon.cut("/log")
        await logs.until(lambda a: a.ended.is_set())
        assert logs.body == b'{"type":"ADDED"}\n'
        assert logs.reset is not None

    await through(tls, confdir, test)


async def test_an_answer_that_has_not_begun_is_a_status(tls, confdir):
    async def test(addon, client, peers):
        silent = client.start("/silent")
        while not (peers and peers[0].requests):
            await asyncio.sleep(0.01)
        addon.cut("/silent")
        await silent.until(lambda a: a.ended.is_set())
        assert silent.status == 403
        assert json.loads(silent.body)["message"] == EXPIRED.message

    await through(tls, confdir, test)


async def test_what_is_over_can_be_cut_without_harm(tls, confdir):
    async def test(addon, client, peers):
        logs = client.start("/log")
        await logs.until(lambda a: a.body)
        addon.cut("/log")
        addon.cut("/log")
        await logs.until(lambda a: a.ended.is_set())
        addon.cut("/log")
        neighbour = client.start("/watch")
        await neighbour.until(lambda a: a.body)

    await through(tls, confdir, test)


async def test_the_first_words_stand(tls, confdir):
    """Cut twice, and the second time while the first words are on their way."""
    flows = []

    class Notes:
        name = "notes"

        def websocket_start(self, flow):
            flows.append(flow)

    async def serve(peer):
        await peer.send(b"\x01hello\n")
        await peer.to_the_end()

    async with websocket.connected(tls, confdir, serve, Notes()) as peer:
        await peer.until(lambda: bool(peer.received))
        cutting.cut(flows[0], EXPIRED)
        cutting.cut(flows[0], status.Refusal(502, "other", "tollgate: other words"))
        await peer.to_the_end()
    _, words = peer.received
    assert json.loads(words[1:])["message"] == EXPIRED.message
    assert peer.code == 1000


class Cuts:
    """Cuts every answer at its head, as the guard does with what nobody judged, and streams none."""

    name = "cuts"

    def responseheaders(self, flow):
        cutting.cut(flow, EXPIRED)

    async def response(self, flow):
        await asyncio.sleep(0.01)  # the cut arrives while this hook runs


async def test_a_cut_that_arrives_with_the_end_of_the_answer_does_not_hit_the_next(tls, confdir, caplog):
    peer = http1.Peer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    async with http1.connected(tls, confdir, peer, Cuts()) as (reader, writer):
        for _ in range(2):
            writer.write(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await http1.answer(reader) == (200, b"ok")
    assert "crashed" not in caplog.text
