import asyncio
import contextlib
import ssl

from addons.mitm import websockets
from tests import proxy

HANDSHAKE = (
    b"GET /exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
# A fragment of 64 KiB, masked with zeros, that says there is more to come.
FRAGMENT = bytes(65536)
FIRST = b"\x02\xff" + len(FRAGMENT).to_bytes(8) + bytes(4) + FRAGMENT
MORE = b"\x00" + FIRST[1:]


async def test_a_message_without_an_end_is_cut_off(tls, confdir):
    async def accepts(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ACCEPTED)
        while await reader.read(65536):
            pass
        writer.close()

    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(tls.combined)
    listener = await asyncio.start_server(accepts, "127.0.0.1", 0, ssl=serving)
    upstream = listener.sockets[0].getsockname()[1]
    async with proxy.running(upstream, tls.combined, tls.ca_file, confdir) as port:
        trusting = ssl.create_default_context(cafile=tls.ca_file)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        writer.write(HANDSHAKE)
        assert b"101" in await reader.readuntil(b"\r\n\r\n")
        writer.write(FIRST + MORE * (websockets.MOST // len(FRAGMENT) + 2))
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):  # what we still had to say was not read
                assert await reader.read() == b""
        writer.close()
    listener.close()
