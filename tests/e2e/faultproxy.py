"""
A bad network between the gateway and the API server: HTTP/2 both ways, and what the API server says is spoiled
frame by frame while a test wants it.
"""

import asyncio
import contextlib
import ssl
import struct
from collections.abc import Callable
from pathlib import Path

from tests.cluster.controlplane import ControlPlane
from tests.e2e.recorder import Recorder

DATA, HEADERS, RST_STREAM, GOAWAY = 0, 1, 3, 7
END_STREAM = 1
NO_ERROR, INTERNAL_ERROR = 0, 2


def frame(kind: int, flags: int, sid: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + sid.to_bytes(4) + payload


class Broken(Exception):
    """The connection is reset after these bytes."""

    def __init__(self, last: bytes) -> None:
        super().__init__("reset by a test")
        self.last = last


# What becomes of one frame of an answer: the bytes in its place. Raises Broken.
Fault = Callable[[int, int, int, bytes], bytes]


def of_body(spoil: Callable[[int, int, bytes], bytes]) -> Fault:
    """Spoils each frame that carries a part of a body."""

    def fault(kind: int, flags: int, sid: int, payload: bytes) -> bytes:
        return spoil(flags, sid, payload) if kind == DATA and payload else frame(kind, flags, sid, payload)

    return fault


def _truncated(_flags: int, sid: int, payload: bytes) -> bytes:
    raise Broken(frame(DATA, 0, sid, payload[: len(payload) // 2]))


def _reset(_flags: int, sid: int, payload: bytes) -> bytes:
    half = frame(DATA, 0, sid, payload[: len(payload) // 2])
    return half + frame(RST_STREAM, 0, sid, INTERNAL_ERROR.to_bytes(4))


def _short(_flags: int, sid: int, payload: bytes) -> bytes:
    return frame(DATA, END_STREAM, sid, payload[: len(payload) // 2])  # as if that were all


def _garbage(_flags: int, _sid: int, payload: bytes) -> bytes:
    return b"\xff" * (9 + len(payload))


def _goaway(last: int | None, code: int) -> Fault:
    def fault(kind: int, flags: int, sid: int, payload: bytes) -> bytes:
        sent = frame(kind, flags, sid, payload)
        if kind != HEADERS:
            return sent
        away = frame(GOAWAY, 0, 0, struct.pack(">II", sid if last is None else last, code))
        if code != NO_ERROR:
            raise Broken(sent + away)
        return sent + away  # and the body comes after it

    return fault


FAULTS: dict[str, Fault] = {
    "reset in the middle of a body": of_body(_truncated),
    "RST_STREAM in the middle of a body": of_body(_reset),
    "an end before the length is there": of_body(_short),
    "garbage for a frame": of_body(_garbage),
    "GOAWAY, and all that is open goes on": _goaway(2**31 - 1, NO_ERROR),
    "GOAWAY, and this one is the last": _goaway(None, NO_ERROR),
    "GOAWAY with an error": _goaway(None, INTERNAL_ERROR),
}


class FaultProxy(Recorder):
    """`fault`: what the frames of answers meet from now on. `delay`: seconds before each. `met`: how many changed."""

    def __init__(self, controlplane: ControlPlane, folder: Path) -> None:
        super().__init__(controlplane, folder)
        self.near.set_alpn_protocols(["h2", "http/1.1"])  # the gateway's own questions come over HTTP/1.1
        self.far_h2 = ssl.create_default_context(cafile=str(controlplane.ca_file))
        self.far_h2.set_alpn_protocols(["h2"])
        self.fault: Fault | None = None
        self.delay = 0.0
        self.met = 0

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if writer.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            await super()._relay(reader, writer)
            return
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.controlplane.port, ssl=self.far_h2)
            forth = asyncio.create_task(self._forth(reader, far_writer))
            try:
                await self._back(far_reader, writer)
            finally:
                forth.cancel()
                far_writer.close()
        writer.close()

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(9)
                kind, flags, sid = head[3], head[4], int.from_bytes(head[5:])
                payload = await reader.readexactly(int.from_bytes(head[:3]))
                sent = frame(kind, flags, sid, payload)
                if sid and self.delay:
                    await asyncio.sleep(self.delay)
                if sid and self.fault is not None:
                    try:
                        changed = self.fault(kind, flags, sid, payload)
                    except Broken as e:
                        self.met += 1
                        writer.write(e.last)
                        await writer.drain()
                        writer.transport.abort()
                        return
                    self.met += changed != sent
                    sent = changed
                writer.write(sent)
                await writer.drain()
