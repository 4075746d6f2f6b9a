"""
What really leaves the gateway: a TLS server between it and the API server that writes down every byte.

It offers HTTP/1.1 only, so that what it wrote down can be read. Its parser is as strict as can be: a
request that two readers could take for two would not be read at all.
"""

import asyncio
import contextlib
import datetime
import re
import ssl
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from addons.net import certificates
from addons.net.files import private_folder
from tests.cluster.controlplane import ControlPlane

_LINE = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t -~\x80-\xff]*)")


@dataclass(frozen=True)
class Sent:
    """One request as it left the gateway."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]  # names in lower case
    body: bytes

    @property
    def is_own(self) -> bool:
        """The gateway's own question, not a client's request."""
        return dict(self.headers).get("user-agent", "").startswith("tollgate")


class Unreadable(AssertionError):
    """What left the gateway is no plain HTTP/1.1."""


def requests(data: bytes) -> Iterator[Sent]:
    """The requests of one connection; what follows an upgrade is no request."""
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        if not end:
            raise Unreadable(f"half a head: {head!r}")
        first, *lines = head.split(b"\r\n")
        line = _LINE.fullmatch(first)
        if line is None:
            raise Unreadable(f"request line {first!r}")
        fields = []
        for text in lines:
            field = _FIELD.fullmatch(text)
            if field is None:
                raise Unreadable(f"header {text!r}")
            fields.append((field[1].decode().lower(), field[2].decode("latin-1")))
        names = [name for name, _ in fields]
        if "transfer-encoding" in names or names.count("content-length") > 1 or names.count("host") != 1:
            raise Unreadable(f"framing {names}")
        length = int(dict(fields).get("content-length", 0))
        if len(data) < length:
            raise Unreadable("half a body")
        yield Sent(line[1].decode(), line[2].decode(), tuple(fields), data[:length])
        data = b"" if "upgrade" in names else data[length:]


class Recorder:
    """A running one, in a loop of its own. `kubeconfig` points the gateway at it."""

    def __init__(self, controlplane: ControlPlane, folder: Path) -> None:
        self.controlplane = controlplane
        self.certificate = certificates.ensure(private_folder(folder), "127.0.0.1", datetime.datetime.now(datetime.UTC))
        self.connections: list[bytearray] = []
        self.names: list[str | None] = []  # SNI of each connection
        self.near = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.near.load_cert_chain(self.certificate.combined)
        self.near.set_alpn_protocols(["http/1.1"])
        self.near.sni_callback = lambda _s, name, _c: self.names.append(name)
        self.far = ssl.create_default_context(cafile=str(controlplane.ca_file))
        self.far.set_alpn_protocols(["http/1.1"])
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server = self._call(asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self.near))
        self.port = self.server.sockets[0].getsockname()[1]

    def kubeconfig(self, path: Path) -> Path:
        token = self.controlplane.token("tollgate", "gateway", audience=None, seconds=86400)
        assert self.certificate.ca_file is not None
        return self.controlplane.kubeconfig(
            path, f"https://127.0.0.1:{self.port}", self.certificate.ca_file, token=token
        )

    def position(self) -> list[int]:
        return [len(one) for one in self.connections]

    def since(self, position: list[int]) -> list[Sent]:
        """The clients' requests that left since then."""
        connections = list(self.connections)
        starts = position + [0] * (len(connections) - len(position))
        sent = [
            request for one, start in zip(connections, starts, strict=True) for request in requests(bytes(one[start:]))
        ]
        return [one for one in sent if not one.is_own]

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.server.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    def _call[T](self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        written = bytearray()
        self.connections.append(written)
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.controlplane.port, ssl=self.far)
            back = asyncio.create_task(_copy(far_reader, writer, None))
            await _copy(reader, far_writer, written)
            await back
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, written: bytearray | None) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        while data := await reader.read(65536):
            if written is not None:
                written += data
            writer.write(data)
            await writer.drain()
    writer.close()
