"""
The port opens when the stack is ready, and only for TCP.

mitmproxy loads scripts after it has opened its port: for a moment it would be a bare proxy.
So the launcher starts it without a server (`--no-server`) and the guard opens the port.
`reverse:https` would also bind UDP for HTTP/3, which no addon here judges.

By option two processes may listen on one port, for an upgrade: the kernel gives each new connection to
one of them. The old one stops to listen when it is told to end, before it lets go of what is open.

And a port that goes on when there are no more file descriptors. asyncio then looks away for a second,
but notes that once for each connection that could wait (a hundred), and again for each of those notes: 4 000
errors a second in the log, on the disk that records need.
"""

import asyncio
import errno
import os
import socket
import time
from typing import Any

from mitmproxy import ctx
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import mode_servers

from addons.mitm.patching import patch

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})  # when asyncio waits a second
NOTED = 0.5  # seconds in which it is told once; less than asyncio's wait, more than one turn of its loop


class _Listener(socket.socket):
    """A listening socket that says once a second that nothing can be accepted."""

    _told = float("-inf")

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as e:
            if e.errno not in EXHAUSTED:
                raise
            now = time.monotonic()
            if now - self._told < NOTED:
                raise BlockingIOError(e.errno, "not now") from e  # for asyncio: nobody waits
            self._told = now
            raise


async def _serve(handler: Any, host: str, port: int, shared: bool | None = None) -> list[asyncio.Server]:
    bound = await asyncio.start_server(handler, host, port, reuse_port=shared, start_serving=False)
    try:
        listeners = [_Listener(fileno=os.dup(one.fileno())) for one in bound.sockets]
    finally:
        bound.close()
    return [await asyncio.start_server(handler, sock=one) for one in listeners]


@patch
def install() -> None:
    async def listen(self: mode_servers.AsyncioServerInstance[Any], host: str, port: int) -> list[asyncio.Server]:
        # None and not False: where the system has no SO_REUSEPORT both would do, and True is an error, as it should be.
        shared = getattr(ctx.options, "tollgate_reuse_port", False) or None
        return await _serve(self.handle_stream, host, port, shared)

    mode_servers.AsyncioServerInstance.listen = listen  # type: ignore[assignment]  # TCP only, so a narrower type


def stop(server: Proxyserver) -> None:
    """Take no more connections; those that are open stay so. The kernel gives new ones to the process beside us."""
    for instance in server.servers:
        if isinstance(instance, mode_servers.AsyncioServerInstance):
            for one in instance._servers:
                if isinstance(one, asyncio.Server):
                    one.close()
