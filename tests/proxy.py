"""mitmproxy in this process, in reverse mode, with the addons of a test: for what needs real sockets but no cluster."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from mitmproxy import addons as defaults
from mitmproxy import http, master, options, tcp

from addons.core import facts
from addons.mitm import backpressure, bodies, cutting, errors, floods, goaway, listening, websockets, wire, withholding

for _module in (wire, errors, floods, goaway, cutting, bodies, backpressure, websockets, listening, withholding):
    _module.install()


class Releases:
    """Stands in for the guard's last word: these tests are about what comes after it."""

    name = "releases"

    def __init__(self, *withheld: str) -> None:
        self.withheld = withheld  # names of hooks that release nothing

    def request(self, flow: http.HTTPFlow) -> None:
        facts.of(flow).released = True

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        facts.of(flow).head_released = "responseheaders" not in self.withheld

    def response(self, flow: http.HTTPFlow) -> None:
        facts.of(flow).answer_released = "response" not in self.withheld

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        if "websocket_message" not in self.withheld and flow.websocket:
            known, message = facts.of(flow), flow.websocket.messages[-1]
            known.frame, message.dropped = message, known.instead is not None

    def tcp_message(self, flow: tcp.TCPFlow) -> None:
        if "tcp_message" not in self.withheld:
            facts.of(flow).frame = flow.messages[-1]


@contextlib.asynccontextmanager
async def running(
    upstream: int,
    pem: Path,
    ca_file: Path,
    confdir: Path,
    *addons: Any,
    withheld: tuple[str, ...] = (),
    **more: Any,
) -> AsyncIterator[int]:
    """Listen on a free port in front of https://127.0.0.1:upstream; yields the port."""
    opts = options.Options()
    m = master.Master(opts, asyncio.get_running_loop())
    m.addons.add(*defaults.default_addons())
    m.addons.add(*addons, Releases(*withheld))
    opts.update(
        mode=[f"reverse:https://127.0.0.1:{upstream}"],
        listen_host="127.0.0.1",
        listen_port=0,
        confdir=str(confdir),
        certs=[f"*={pem}"],
        connection_strategy="lazy",
        upstream_cert=False,
        ssl_verify_upstream_trusted_ca=str(ca_file),
        **{"rawtcp": False, **more},
    )
    task = asyncio.create_task(m.run())
    server = m.addons.get("proxyserver")
    try:
        async with asyncio.timeout(10):
            while not server.listen_addrs():
                await asyncio.sleep(0.01)
        yield server.listen_addrs()[0][1]
    finally:
        await server.servers.update([])  # closes the port, which mitmproxy leaves to the end of the process
        m.shutdown()
        await task


async def raw(port: int, ca_file: Path, data: bytes, seconds: float = 5) -> bytes:
    """Send bytes over TLS and read until the other side closes or `seconds` are over."""
    context = ssl.create_default_context(cafile=ca_file)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(data)
    received = b""
    with contextlib.suppress(TimeoutError, OSError, ssl.SSLError):
        async with asyncio.timeout(seconds):
            while chunk := await reader.read(65536):
                received += chunk
    writer.close()
    return received
