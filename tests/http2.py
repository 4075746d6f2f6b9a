"""A small HTTP/2 client and a scripted HTTP/2 server, on hyper-h2: what no client library lets a test do."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import h2.config
import h2.connection
import h2.events


@dataclass
class Answer:
    """One HTTP/2 answer, filled as frames come."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    reset: int | None = None  # error code of RST_STREAM, or -1 when the connection broke
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[["Answer"], bool], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()


class Client:
    """One HTTP/2 connection over TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False)
        self.connection = h2.connection.H2Connection(config)
        self.connection.initiate_connection()
        self.answers: dict[int, Answer] = {}
        self.flush()
        self.task = asyncio.create_task(self.read())

    def flush(self) -> None:
        self.writer.write(self.connection.data_to_send())

    def start(
        self,
        path: str,
        method: str = "GET",
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes | None = None,
        authority: str = "127.0.0.1",
    ) -> Answer:
        """Send a request and return its answer-to-be. body None: the head ends the request."""
        sid = self.connection.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "https"), (":path", path)]
        if authority:
            head.append((":authority", authority))
        self.answers[sid] = answer = Answer()
        self.connection.send_headers(sid, [*head, *headers], end_stream=body is None)
        if body is not None:
            size = self.connection.max_outbound_frame_size
            for start in range(0, len(body), size):
                self.connection.send_data(sid, body[start : start + size])
            self.connection.end_stream(sid)
        self.flush()
        return answer

    async def request(self, path: str, seconds: float = 10, **more: object) -> Answer:
        answer = self.start(path, **more)  # type: ignore[arg-type]  # what start takes, each of a type of its own
        async with asyncio.timeout(seconds):
            await answer.ended.wait()
        return answer

    async def read(self) -> None:
        try:
            while data := await self.reader.read(65536):
                for event in self.connection.receive_data(data):
                    self.note(event)
                self.flush()
        finally:
            for answer in self.answers.values():
                if not answer.ended.is_set():
                    answer.reset = -1
                    answer.ended.set()
                    answer.changed.set()

    def note(self, event: h2.events.Event) -> None:
        answer = self.answers.get(getattr(event, "stream_id", None) or 0)
        if answer is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            answer.headers = {k: v for k, v in event.headers if not k.startswith(":")}
            answer.status = int(dict(event.headers)[":status"])
        elif isinstance(event, h2.events.TrailersReceived):
            answer.headers |= dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            answer.body += event.data
            self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            answer.ended.set()
        elif isinstance(event, h2.events.StreamReset):
            answer.reset = event.error_code
            answer.ended.set()
        answer.changed.set()

    async def close(self) -> None:
        self.task.cancel()
        self.writer.close()
        with contextlib.suppress(asyncio.CancelledError, OSError, ssl.SSLError):
            await self.task


@contextlib.asynccontextmanager
async def connect(port: int, ca_file: Path) -> AsyncIterator[Client]:
    """An HTTP/2 connection to 127.0.0.1:port."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    client = Client(reader, writer)
    try:
        yield client
    finally:
        await client.close()


class Peer:
    """The server's side of one connection, in the hands of a test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.connection = h2.connection.H2Connection(config)
        self.requests: list[tuple[int, dict[str, str]]] = []

    def flush(self) -> None:
        self.writer.write(self.connection.data_to_send())

    def respond(
        self,
        sid: int,
        status: int = 200,
        body: bytes = b"",
        *,
        end: bool = True,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.connection.send_headers(sid, [(":status", str(status)), *headers])
        if body or end:
            self.connection.send_data(sid, body, end_stream=end)
        self.flush()

    def goaway(self, last_stream_id: int, error_code: int = 0) -> None:
        """A GOAWAY frame as Go sends it: the connection goes on for the streams it names."""
        payload = last_stream_id.to_bytes(4) + error_code.to_bytes(4)
        self.writer.write(len(payload).to_bytes(3) + b"\x07\x00" + bytes(4) + payload)


OnRequest = Callable[[Peer, int, dict[str, str]], Awaitable[None] | None]


@contextlib.asynccontextmanager
async def server(pem: Path, on_request: OnRequest) -> AsyncIterator[tuple[int, list[Peer]]]:
    """A TLS server speaking HTTP/2 that calls on_request(peer, stream id, headers) for each complete request."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    context.set_alpn_protocols(["h2"])
    peers: list[Peer] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        peers.append(peer)
        peer.connection.initiate_connection()
        peer.flush()
        heads: dict[int, dict[str, str]] = {}
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await reader.read(65536):
                for event in peer.connection.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        heads[event.stream_id] = dict(event.headers)
                    elif isinstance(event, h2.events.DataReceived):
                        peer.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded):
                        peer.requests.append((event.stream_id, heads[event.stream_id]))
                        done = on_request(peer, event.stream_id, heads[event.stream_id])
                        if done is not None:
                            await done
                peer.flush()
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1], peers
    finally:
        listener.close()
        for peer in peers:
            peer.writer.close()
