"""What comes of hooks that raise: here, they release nothing. With the guard itself: tests/e2e/test_faults.py."""

import asyncio
import json

import pytest

from addons.mitm import withholding
from tests import http1, http2, proxy

CONTENT = b"secret"
MESSAGE = withholding.ANSWER_NOT_JUDGED.message
UPGRADE = (
    b"GET /exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SPDY = b"POST /exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n"
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
ACCEPTED_SPDY = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
FRAME = b"\x82\x06" + CONTENT  # not masked, as servers send
CLOSE = b"\x88\x02\x03\xe8"
MASKED = b"\x82\x86" + bytes(4) + CONTENT
MASKED_CLOSE = b"\x88\x82" + bytes(4) + b"\x03\xe8"
GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"


class Streams:
    """Streams every answer, as addons/upstream.py does."""

    name = "streams"

    def __init__(self):
        self.errors = []

    def error(self, flow):
        self.errors.append(flow)

    def responseheaders(self, flow):
        flow.response.stream = flow.response.status_code != 101


class Buffers:
    name = "buffers"


def answering(peer, sid, head):
    peer.respond(sid, 200, CONTENT)


@pytest.mark.parametrize(
    ("withheld", "addon", "status", "reset", "content"),
    [
        pytest.param((), Streams, 200, False, True, id="nothing is withheld"),
        pytest.param((), Buffers, 200, False, True, id="nothing is withheld of a whole answer"),
        pytest.param(("responseheaders",), Streams, 502, False, False, id="a stream does not begin"),
        pytest.param(("response",), Streams, 200, True, True, id="a stream does not end well"),
        pytest.param(("response",), Buffers, 502, False, False, id="a whole answer"),
    ],
)
async def test_an_answer_over_http2(tls, confdir, withheld, addon, status, reset, content):
    async with (
        http2.server(tls.combined, answering) as (upstream, _),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, addon(), withheld=withheld) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        for _ in range(2):  # and the connection serves the next
            answer = await client.request("/x")
            assert (answer.status, answer.reset is not None, CONTENT in answer.body) == (status, reset, content)
            if status == 502:
                assert json.loads(answer.body)["message"] == MESSAGE


async def test_a_stream_that_does_not_begin_ends_upstream_too(tls, confdir):
    def begin(peer, sid, head):
        peer.respond(sid, 200, CONTENT, end=False)

    async with (
        http2.server(tls.combined, begin) as (upstream, peers),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, Streams(), withheld=("responseheaders",)) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        assert (await client.request("/x")).status == 502
        async with asyncio.timeout(10):
            while peers[0].connection.open_inbound_streams:
                await asyncio.sleep(0.01)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n"


async def test_a_stream_over_http1_breaks_off(tls, confdir):
    peer, addon = http1.Peer(CHUNKED), Streams()
    async with http1.connected(tls, confdir, peer, addon, withheld=("response",)) as (reader, writer):
        writer.write(GET)
        received = await reader.read()
        assert received.endswith(b"6\r\nsecret\r\n")  # without the last chunk
        assert not addon.errors  # a flow has a response hook or an error hook, never both


async def test_a_stream_over_http1_does_not_begin(tls, confdir):
    peer = http1.Peer(CHUNKED)
    async with http1.connected(tls, confdir, peer, Streams(), withheld=("responseheaders",)) as (reader, writer):
        writer.write(GET)
        received = await reader.read()
        assert received.startswith(b"HTTP/1.1 502")
        assert CONTENT not in received


@pytest.mark.parametrize(("request_", "accepted"), [(UPGRADE, ACCEPTED), (SPDY, ACCEPTED_SPDY)], ids=["ws", "spdy"])
async def test_an_upgrade_that_is_not_released(tls, confdir, request_, accepted, caplog):
    peer = http1.Peer(accepted + FRAME)  # which comes at once, before the hooks have run
    async with http1.connected(tls, confdir, peer, Streams(), withheld=("response",), rawtcp=True) as (reader, writer):
        for turn in range(2):
            writer.write(request_)
            status, body = await http1.answer(reader)
            assert (status, json.loads(body)["message"]) == (502, MESSAGE)
            await peer.ended[turn].wait()  # the command that was begun ends
        assert len(peer.ended) == 2  # and the next request did not go into its connection
    assert "crashed" not in caplog.text


WEBSOCKET_ROW = pytest.param(UPGRADE, ACCEPTED, "websocket_message", FRAME, CLOSE, MASKED, MASKED_CLOSE, id="WebSocket")
SPDY_ROW = pytest.param(SPDY, ACCEPTED_SPDY, "tcp_message", CONTENT, b"", CONTENT, b"", id="SPDY")
FRAMES = pytest.mark.parametrize(
    ("request_", "accepted", "hook", "down", "close_down", "up", "close_up"), [WEBSOCKET_ROW, SPDY_ROW]
)


@FRAMES
@pytest.mark.parametrize("withheld", [False, True])
async def test_a_frame_to_the_client(tls, confdir, request_, accepted, hook, down, close_down, up, close_up, withheld):
    peer = http1.Peer(accepted + down + close_down, closes=True)
    hooks = (hook,) if withheld else ()
    async with http1.connected(tls, confdir, peer, withheld=hooks, rawtcp=True) as (reader, writer):
        writer.write(request_)
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        assert await reader.read() == (b"" if withheld else down) + close_down


@FRAMES
@pytest.mark.parametrize("withheld", [False, True])
async def test_a_frame_to_the_api_server(
    tls, confdir, request_, accepted, hook, down, close_down, up, close_up, withheld
):
    peer = http1.Peer(accepted)
    hooks = (hook,) if withheld else ()
    async with http1.connected(tls, confdir, peer, withheld=hooks, rawtcp=True) as (reader, writer):
        writer.write(request_)
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(up)
        if not withheld:
            writer.write(close_up)
            writer.close()
        await peer.ended[0].wait()  # a frame that is withheld ends the exchange by itself
        arrived = bytes(peer.received[0]).partition(b"\r\n\r\n")[2]
        # A WebSocket's first byte says what the frame is; its content is masked by chance.
        assert arrived[:1] == (close_down if withheld else down)[:1]
