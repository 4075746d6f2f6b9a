"""What a client sends without end: the connection is closed before it costs memory or everybody's time."""

import asyncio
import contextlib
import socket
import ssl

import hpack
import pytest
from mitmproxy import http

from addons.mitm import floods
from tests import http2, proxy

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME = 128 * 1024  # bytes of the largest that mitmproxy allows a peer
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def frame(kind: int, flags: int, sid: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + sid.to_bytes(4) + payload


def request(sid: int, end: bool = True) -> bytes:
    fields = [(":method", "GET"), (":scheme", "https"), (":path", "/api"), (":authority", "x")]
    return frame(1, 5 if end else 4, sid, hpack.Encoder().encode(fields, huffman=False))


class Answers:
    """Answers at once, so that nothing goes upstream; or never, after a note that the request is there."""

    name = "answers"

    def __init__(self, *, at_once: bool = True, body: bytes = b"{}") -> None:
        self.at_once, self.body = at_once, body
        self.came = asyncio.Event()
        self.count = 0

    async def request(self, flow: http.HTTPFlow) -> None:
        self.came.set()
        self.count += 1
        if not self.at_once:
            await asyncio.Event().wait()
        flow.response = http.Response.make(200, self.body)


@contextlib.asynccontextmanager
async def connected(tls, confdir, addon, alpn):
    context = ssl.create_default_context(cafile=tls.ca_file)
    context.set_alpn_protocols([alpn])
    async with proxy.running(1, tls.combined, tls.ca_file, confdir, addon) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        async with asyncio.timeout(20):
            yield reader, writer
        writer.close()


async def sent_until_closed(reader, writer, piece: bytes, most: int) -> int:
    """How many bytes went out before the other side had enough; `most` when it never had."""
    sent = 0
    with contextlib.suppress(OSError, ssl.SSLError):
        while sent < most and not reader.at_eof():
            writer.write(piece)
            sent += len(piece)
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await reader.read(65536)
    return sent


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        pytest.param(CHUNKED + b"2;a=", b"a" * 8192, id="a chunk extension"),
        pytest.param(CHUNKED, b"1" * 8192, id="a chunk size"),
        pytest.param(CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: " + b"a" * 8000 + b"\r\n", id="trailers"),
        pytest.param(CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: y\r\n" * 1000, id="short trailers"),
    ],
)
async def test_http1_without_an_end(tls, confdir, first, piece):
    async with connected(tls, confdir, Answers(), "http/1.1") as (reader, writer):
        writer.write(first)
        assert await sent_until_closed(reader, writer, piece, 4_000_000) < 2_000_000


async def test_http1_says_why(tls, confdir):
    async with connected(tls, confdir, Answers(), "http/1.1") as (reader, writer):
        writer.write(CHUNKED + b"2;a=" + b"a" * (floods.MAX_KEPT + 1))
        assert (await reader.read(65536)).startswith(b"HTTP/1.1 400 ")


async def test_behind_a_request_that_is_not_answered(tls, confdir):
    addon = Answers(at_once=False)
    async with connected(tls, confdir, addon, "http/1.1") as (reader, writer):
        writer.write(b"GET /watch HTTP/1.1\r\nHost: x\r\n\r\n")
        await addon.came.wait()
        assert await sent_until_closed(reader, writer, b"a" * 8192, 4_000_000) < 2_000_000


async def test_a_large_body_in_large_or_small_chunks_passes(tls, confdir):
    async with connected(tls, confdir, Answers(), "http/1.1") as (reader, writer):
        for size in (200_000, 100):
            chunk = b"%x;note=1\r\n%s\r\n" % (size, b"a" * size)
            writer.write(CHUNKED + chunk * (400_000 // size) + b"0\r\n\r\n")
            assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")


async def test_a_few_requests_behind_one_another_pass(tls, confdir):
    async with connected(tls, confdir, Answers(), "http/1.1") as (reader, writer):
        writer.write(b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        for _ in range(20):
            assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param(frame(6, 0, 0, b"12345678"), id="CVE-2019-9512, PING"),
        pytest.param(frame(2, 0, 1, b"\0\0\0\0\x10"), id="CVE-2019-9513, PRIORITY"),
        pytest.param(frame(4, 0, 0), id="CVE-2019-9515, SETTINGS"),
        pytest.param(frame(8, 0, 0, b"\0\0\0\1"), id="WINDOW_UPDATE"),
        pytest.param(frame(0xEE, 0, 0, b"x"), id="frames nobody knows"),
    ],
)
async def test_frames_that_are_no_request(tls, confdir, piece):
    async with connected(tls, confdir, Answers(), "h2") as (reader, writer):
        writer.write(PREFACE + frame(4, 0, 0))
        most = 100_000 * len(piece)
        assert await sent_until_closed(reader, writer, piece * 1000, most) < most


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"\xff\xff\xff" + frame(0, 0, 1)[3:], id="of a body"),
        pytest.param(b"\xff\xff\xff" + frame(6, 0, 0)[3:], id="of no request"),
        pytest.param((FRAME + 1).to_bytes(3) + frame(0, 0, 1)[3:], id="a byte too long"),
        pytest.param(b"\xff" * 9, id="garbage"),
    ],
)
async def test_a_frame_that_is_too_long_is_not_waited_for(tls, confdir, head):
    async with connected(tls, confdir, Answers(), "h2") as (reader, writer):
        writer.write(PREFACE + frame(4, 0, 0) + request(1, end=False) + head)
        received = await reader.read()  # to the end of the connection, with nothing more sent
    assert b"Received overlong frame" in received


async def test_a_frame_as_long_as_allowed_passes(tls, confdir):
    async with connected(tls, confdir, Answers(), "h2") as (reader, writer):
        writer.write(PREFACE + frame(4, 0, 0) + request(1, end=False))
        writer.write(frame(0, 1, 1, b"x" * FRAME))
        await reader.readuntil(b"{}")


async def test_cve_2019_9518_empty_data(tls, confdir):
    async with connected(tls, confdir, Answers(), "h2") as (reader, writer):
        writer.write(PREFACE + frame(4, 0, 0) + request(1, end=False))
        assert await sent_until_closed(reader, writer, frame(0, 0, 1) * 1000, 900_000) < 900_000


async def test_cve_2023_44487_rapid_reset(tls, confdir):
    addon = Answers()
    async with connected(tls, confdir, addon, "h2") as (reader, writer):
        writer.write(PREFACE + frame(4, 0, 0))
        pairs = b"".join(request(sid) + frame(3, 0, sid, b"\0\0\0\x08") for sid in range(1, 2001, 2))
        writer.write(pairs)
        await reader.readuntil(b"too many frames that are no request")
    assert addon.count < 500


async def test_it_says_enhance_your_calm(tls, confdir):
    async with connected(tls, confdir, Answers(), "h2") as (reader, writer):
        writer.write(PREFACE + frame(4, 0, 0) + frame(6, 0, 0, b"12345678") * 5000)
        said = await reader.readuntil(b"too many frames that are no request")
    goaway = said[said.index(b"\x07\0\0\0\0\0") + 6 :]
    assert goaway[4:8] == (0xB).to_bytes(4)


async def test_many_small_requests_on_one_connection_pass(tls, confdir):
    async with (
        proxy.running(1, tls.combined, tls.ca_file, confdir, Answers()) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        for _ in range(25):
            answers = [client.start("/api", "POST", body=b"{}") for _ in range(50)]
            for one in answers:
                await asyncio.wait_for(one.ended.wait(), 10)
                assert one.status == 200


async def test_a_client_that_opens_its_window_byte_by_byte_of_what_it_got_passes(tls, confdir):
    body = b"a" * 20_000_000  # its client acknowledges each frame: two WINDOW_UPDATEs for 16 KiB at most
    async with (
        proxy.running(1, tls.combined, tls.ca_file, confdir, Answers(body=body)) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        answer = await client.request("/api", seconds=30)
    assert len(answer.body) == len(body)


def record(payload: bytes) -> bytes:
    return b"\x16\x03\x01" + len(payload).to_bytes(2) + payload


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param(record(b"a" * 16_000), id="large records"),
        pytest.param(record(b"a") * 200, id="small records"),
        pytest.param(record(b"a"), id="small records, one by one"),
    ],
)
async def test_a_client_hello_without_an_end(tls, confdir, piece):
    async with proxy.running(1, tls.combined, tls.ca_file, confdir, Answers()) as port, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(record(b"\x01\xff\xff\xff"))
        assert await sent_until_closed(reader, writer, piece, 1_000_000) < 1_000_000
        writer.close()


def send_blindly(port: int, ca_file, alpn: str, first: bytes, piece: bytes) -> str:
    """A client that never reads: what stopped it."""
    sock = socket.create_connection(("127.0.0.1", port), 10)
    if alpn:
        context = ssl.create_default_context(cafile=ca_file)
        context.set_alpn_protocols([alpn])
        sock = context.wrap_socket(sock, server_hostname="127.0.0.1")
    with sock:
        try:
            sock.sendall(first + piece * (60_000_000 // len(piece)))
        except OSError as e:
            return type(e).__name__
    return "nothing"


@pytest.mark.parametrize(
    ("alpn", "first", "piece"),
    [
        pytest.param("http/1.1", CHUNKED + b"2;a=", b"a" * 65536, id="a chunk extension"),
        pytest.param("", record(b"\x01\xff\xff\xff"), record(b"a" * 16_000), id="a ClientHello"),
        pytest.param("h2", PREFACE, frame(4, 0, 0) * 1000, id="SETTINGS"),
    ],
)
async def test_the_socket_is_closed_though_two_things_close_it(tls, confdir, alpn, first, piece):
    async with proxy.running(1, tls.combined, tls.ca_file, confdir, Answers()) as port:
        stopped = await asyncio.to_thread(send_blindly, port, tls.ca_file, alpn, first, piece)
    assert stopped in ("BrokenPipeError", "ConnectionResetError", "SSLEOFError")
