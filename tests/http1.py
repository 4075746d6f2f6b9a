"""A scripted HTTP/1.1 server behind a gateway in this process, and the client's connection to that."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from addons.net import certificates
from tests import proxy


class Peer:
    """An API server that answers every request without a body with the same bytes, and keeps what it was sent."""

    def __init__(self, answer: bytes, *, closes: bool = False) -> None:
        self.answer, self.closes = answer, closes
        self.received: list[bytearray] = []  # by connection
        self.ended: list[asyncio.Event] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received, ended = bytearray(), asyncio.Event()
        self.received.append(received)
        self.ended.append(ended)
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await reader.read(65536):
                received += data
                if received.endswith(b"\r\n\r\n"):
                    writer.write(self.answer)
                    if self.closes:
                        break
        ended.set()
        writer.close()


@contextlib.asynccontextmanager
async def connected(
    tls: certificates.Certificate, confdir: Path, peer: Peer, *addons: Any, **more: Any
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a gateway with these addons before the peer; all within 10 s."""
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(tls.combined)
    listener = await asyncio.start_server(peer, "127.0.0.1", 0, ssl=serving)
    upstream = listener.sockets[0].getsockname()[1]
    trusting = ssl.create_default_context(cafile=tls.ca_file)
    async with proxy.running(upstream, tls.combined, tls.ca_file, confdir, *addons, **more) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        async with asyncio.timeout(10):
            yield reader, writer
        writer.close()
    listener.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer that tells its length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    return int(head.split()[1]), await reader.readexactly(length)
