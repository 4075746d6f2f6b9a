"""An API server that takes every upgrade to a WebSocket, and a client of it: what exec and attach are made of."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message
from wsproto.utilities import generate_accept_token

from addons.net import certificates
from tests import proxy

V5 = "v5.channel.k8s.io"
EXEC = "/api/v1/namespaces/shop/pods/web-1/exec?command=x&stdout=true"


class Peer:
    """One side of a WebSocket. `received` holds whole messages, `code` the close that came."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, side: ConnectionType) -> None:
        self.reader, self.writer, self.connection = reader, writer, Connection(side)
        self.head = b""
        self.received: list[bytes] = []
        self.times: list[float] = []  # when each came, the loop's clock
        self.code: int | None = None
        self.keep = True
        self.bytes_received = 0
        self._part = b""

    async def send(self, data: bytes, *, fragments: int = 1) -> None:
        size = len(data) // fragments + 1
        parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
        for number, part in enumerate(parts, 1):
            self.writer.write(self.connection.send(BytesMessage(data=part, message_finished=number == len(parts))))
        await self.writer.drain()

    async def close(self, code: int = 1000) -> None:
        self.writer.write(self.connection.send(CloseConnection(code=code)))
        await self.writer.drain()

    async def more(self) -> bool:
        """Read what is there; False at the end."""
        with contextlib.suppress(OSError, ssl.SSLError):
            if data := await self.reader.read(65536):
                self.connection.receive_data(data)
                for event in self.connection.events():
                    self._note(event)
                return self.code is None
        return False

    def _note(self, event: Any) -> None:
        if isinstance(event, CloseConnection):
            self.code = int(event.code)
        elif isinstance(event, Message):
            self._part += event.data.encode() if isinstance(event.data, str) else event.data
            if event.message_finished:
                self.bytes_received += len(self._part)
                if self.keep:
                    self.received.append(self._part)
                    self.times.append(asyncio.get_running_loop().time())
                self._part = b""

    async def until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not condition() and await self.more():
                pass
        assert condition(), (self.head, self.received[-5:], self.code)

    async def to_the_end(self, seconds: float = 20) -> None:
        async with asyncio.timeout(seconds):
            while await self.more():
                pass

    def output(self, channel: int = 1) -> bytes:
        return b"".join(frame[1:] for frame in self.received if frame[:1] == bytes([channel]))


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: str) -> Peer:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    key = {name.lower(): value for name, value in fields.items()}[b"sec-websocket-key"]
    answer = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Accept: " + generate_accept_token(key),
    ]
    if protocol:
        answer.append(b"Sec-WebSocket-Protocol: " + protocol.encode())
    writer.write(b"\r\n".join(answer) + b"\r\n\r\n")
    peer = Peer(reader, writer, ConnectionType.SERVER)
    peer.head = head
    return peer


async def ask(port: int, ca_file: Path, path: str = EXEC, protocol: str = V5, *more: str) -> Peer:
    """A client; its `head` is the answer."""
    trusting = ssl.create_default_context(cafile=ca_file)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *([f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []),
        *more,
    ]
    writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
    peer = Peer(reader, writer, ConnectionType.CLIENT)
    async with asyncio.timeout(10):
        peer.head = await reader.readuntil(b"\r\n\r\n")
    return peer


@contextlib.asynccontextmanager
async def connected(
    tls: certificates.Certificate,
    confdir: Path,
    serve: Callable[[Peer], Awaitable[None]],
    *addons: Any,
    path: str = EXEC,
    protocol: str = V5,
    answered: str | None = None,
) -> AsyncIterator[Peer]:
    """A client of a gateway with these addons before a server that does what `serve` says, then closes."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError):
            peer = await accept(reader, writer, protocol if answered is None else answered)
            await serve(peer)
        writer.close()

    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(tls.combined)
    listener = await asyncio.start_server(one, "127.0.0.1", 0, ssl=serving)
    upstream = listener.sockets[0].getsockname()[1]
    async with proxy.running(upstream, tls.combined, tls.ca_file, confdir, *addons) as port:
        client = await ask(port, tls.ca_file, path, protocol)
        yield client
        client.writer.close()
    listener.close()
