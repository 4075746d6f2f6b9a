"""
Shipping: records and checkpoints to those who keep them elsewhere, each line at least once.

A receiver is asked again and again, ever more seldom, until it has taken a batch; the spool keeps
what waits. What a receiver refuses for good (too large, not its kind) is cut down and, if that does
not help, left out with a word in the log, or nothing after it would ever be shipped. A receiver
that is away stops no request.
"""

import asyncio
import contextlib
import fcntl
import logging
import select
import socket
import ssl
import struct
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import aiohttp

from addons.core import auditevents, shipforms
from addons.core.shipforms import Target, TargetError
from addons.net.spool import Spool

logger = logging.getLogger(__name__)

FIRST_WAIT = 1.0  # seconds after the first failure; twice as long after each further one
LONGEST_WAIT = 60.0
IDLE = 1.0  # seconds between looks and syncs when nothing comes
CONNECT_LIMIT = 10.0  # seconds for a connection, and for each step on it
SEND_LIMIT = 30.0  # seconds for one batch
MAX_WEBHOOK = 256 * 1024  # bytes of one event that a webhook refused as it was


class ShipError(Exception):
    """The receiver did not take it; it is to be tried again."""


class NotTaken(Exception):
    """The receiver will never take it as it is."""


class Sink(Protocol):
    """A receiver."""

    async def send(self, lines: Sequence[bytes]) -> None:
        """Returns when they are taken. Raises ShipError, NotTaken."""

    async def close(self) -> None: ...


class Stdout:
    """One line each to the process's own output: what a container's log collector reads."""

    def __init__(self, out: BinaryIO | None = None) -> None:
        self._out = out or sys.stdout.buffer

    async def send(self, lines: Sequence[bytes]) -> None:
        data = b"".join(line + b"\n" for line in lines)
        try:
            await asyncio.to_thread(self._write, data)  # a pipe that nobody reads blocks
        except (OSError, ValueError) as e:
            raise ShipError(f"stdout: {e}") from e

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._out.flush()

    async def close(self) -> None:
        pass


class Syslog:
    """RFC 5424 messages over TLS (RFC 5425). Taken is what the receiver's machine has acknowledged."""

    def __init__(self, target: Target, clock: Callable[[], float] = time.time) -> None:
        self._target = target
        self._clock = clock
        self._context = client_context(target)
        self._host = socket.gethostname()
        self._socket: ssl.SSLSocket | None = None

    async def send(self, lines: Sequence[bytes]) -> None:
        now = auditevents.timestamp(self._clock())
        data = b"".join(shipforms.syslog(line, host=self._host, time=now) for line in lines)
        try:
            # In a thread, by a plain socket: asyncio's transports keep what they have not given to the kernel.
            await asyncio.to_thread(self._send, data)
        except OSError as e:  # ssl.SSLError is one
            await self.close()
            raise ShipError(f"{self._target.name}: {e}") from e

    def _send(self, data: bytes) -> None:
        connected = self._socket
        if connected is None:
            where = self._target
            raw = socket.create_connection((where.host, where.port), timeout=CONNECT_LIMIT)
            try:
                connected = self._context.wrap_socket(raw, server_hostname=where.host)
            except BaseException:
                raw.close()
                raise
            self._socket = connected
        _still_open(connected)
        connected.sendall(data)
        # Syslog has no answer. Without this, what was written just before the receiver died would be lost.
        deadline = time.monotonic() + CONNECT_LIMIT
        while _unacknowledged(connected):
            if time.monotonic() > deadline:
                raise TimeoutError("the receiver acknowledges nothing")
            time.sleep(0.005)
        _still_open(connected)

    async def close(self) -> None:
        connected, self._socket = self._socket, None
        if connected is not None:
            with contextlib.suppress(OSError):
                connected.close()


def _still_open(connected: ssl.SSLSocket) -> None:
    """A receiver says nothing, so anything to read is the end. Raises ConnectionResetError."""
    while select.select([connected], [], [], 0)[0] or connected.pending():
        connected.settimeout(0)
        try:
            if not connected.recv(4096):
                raise ConnectionResetError("the receiver closed the connection")
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return  # a session ticket
        finally:
            connected.settimeout(CONNECT_LIMIT)


def _unacknowledged(connected: socket.socket) -> int:
    """Bytes that the peer's machine has not acknowledged (Linux, tcp(7): SIOCOUTQ); 0 where that cannot be asked."""
    try:
        answer = fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])


class Webhook:
    """An audit webhook: EventList by POST, as kube-apiserver sends it. Taken is what got a 2xx."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._context = client_context(target) if target.url.startswith("https:") else None
        self._session: aiohttp.ClientSession | None = None

    async def send(self, lines: Sequence[bytes]) -> None:
        code = await self._post(shipforms.event_list(lines))
        if 200 <= code < 300:
            return
        if code in (400, 413, 415, 422):
            raise NotTaken(f"{self._target.name} answered {code}")
        raise ShipError(f"{self._target.name} answered {code}")

    async def _post(self, body: bytes) -> int:
        headers = {"Content-Type": "application/json", "User-Agent": "tollgate"}
        try:
            if self._target.token_file:
                token = (await asyncio.to_thread(Path(self._target.token_file).read_text)).strip()
                headers["Authorization"] = f"Bearer {token}"  # read again each time: tokens are rotated
            async with self._client().post(
                self._target.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                return response.status
        except (aiohttp.ClientError, OSError, ValueError) as e:
            # Only its kind and the receiver: an error may quote a header.
            raise ShipError(f"{self._target.name} could not be reached ({type(e).__name__})") from e

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(ssl=self._context) if self._context is not None else None
            # The environment's proxies are not asked: records are nobody else's.
            self._session = aiohttp.ClientSession(trust_env=False, connector=connector)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def client_context(target: Target) -> ssl.SSLContext:
    """Raises TargetError."""
    try:
        context = ssl.create_default_context(cafile=target.ca or None)
        if target.cert:
            context.load_cert_chain(target.cert, target.key or None)
    except (OSError, ssl.SSLError) as e:
        raise TargetError(f"{target.name}: its certificates cannot be read: {e}") from e
    return context


def make_sink(target: Target) -> Sink:
    """Raises TargetError."""
    match target.kind:
        case "stdout":
            return Stdout()
        case "syslog":
            return Syslog(target)
    return Webhook(target)


class Shipper:
    """Takes lines from a spool to receivers, in the running loop, until it is closed."""

    def __init__(self, spool: Spool, sinks: dict[str, Sink], *, first_wait: float = FIRST_WAIT) -> None:
        self._spool = spool
        self._sinks = sinks
        self._first_wait = first_wait
        self._tasks: list[asyncio.Task[None]] = []
        self._more = {name: asyncio.Event() for name in sinks}
        self.behind: dict[str, str] = {}  # receivers that are away, and why

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._spool.forget(list(self._sinks))
        for name in self._sinks:
            self._spool.cursor(name)  # before anything comes: a new receiver begins here

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._wake)

        self._spool.on_append(wake)
        self._tasks = [loop.create_task(self._ship(name), name=f"tollgate ship {name}") for name in self._sinks]
        self._tasks.append(loop.create_task(self._tend(), name="tollgate ship"))

    def _wake(self) -> None:
        for event in self._more.values():
            event.set()

    async def drained(self, timeout: float) -> bool:  # noqa: ASYNC109 -- seconds; a shutdown waits so long and no longer
        """Whether every receiver has all there is, waiting at most so many seconds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            left = [n for n in self._sinks if (await asyncio.to_thread(self._spool.read, self._spool.cursor(n))).lines]
            if not left:
                return True
            await asyncio.sleep(0.02)
        return False

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for sink in self._sinks.values():
            await sink.close()

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(IDLE)
            try:
                await asyncio.to_thread(self._spool.sync)
                await asyncio.to_thread(self._spool.trim)
            except OSError as e:
                logger.error("the buffer of records to be shipped: %s", e.strerror or e)

    async def _ship(self, name: str) -> None:
        place = await asyncio.to_thread(self._spool.cursor, name)
        wait = self._first_wait
        while True:
            self._more[name].clear()
            try:
                batch = await asyncio.to_thread(self._spool.read, place)
                if not batch.lines:
                    place = batch.end
                    await _either(self._more[name], IDLE)
                    continue
                await self._take(name, batch.lines)
                place = batch.end
                await asyncio.to_thread(self._spool.move, name, place)
            except (ShipError, OSError) as e:
                if name not in self.behind:
                    logger.warning("%s; records wait on disk until it takes them", e)
                self.behind[name] = str(e)
                await asyncio.sleep(wait)
                wait = min(LONGEST_WAIT, 2 * wait)
                continue
            wait = self._first_wait
            if self.behind.pop(name, ""):
                logger.warning("%s takes records again", name)

    async def _take(self, name: str, lines: Sequence[bytes]) -> None:
        """One batch, in halves where the receiver does not take it whole. Raises ShipError."""
        sink = self._sinks[name]
        try:
            async with asyncio.timeout(SEND_LIMIT):
                await sink.send(lines)
        except TimeoutError:
            await sink.close()
            raise ShipError(f"{name} did not take records within {SEND_LIMIT:g} s") from None
        except NotTaken as e:
            if len(lines) > 1:
                half = len(lines) // 2
                await self._take(name, lines[:half])
                await self._take(name, lines[half:])
                return
            short = shipforms.shorten(lines[0], min(MAX_WEBHOOK, max(1024, len(lines[0]) // 2)))
            if short != lines[0] and len(short) < len(lines[0]):
                await self._take(name, [short])
                return
            logger.error("%s; one record is not shipped there; it is in the recordings", e)


async def _either(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
