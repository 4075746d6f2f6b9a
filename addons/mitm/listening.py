"""
The port opens when the stack is ready, and only for TCP.

mitmproxy loads scripts after it has opened its port: for a moment it would be a bare proxy.
So the launcher starts it without a server (`--no-server`) and the guard opens the port.
`reverse:https` would also bind UDP for HTTP/3, which no addon here judges.

By option two processes may listen on one port, for an upgrade: the kernel gives each new connection to
one of them. The old one stops to listen when it is told to end, before it lets go of what is open.
"""

import asyncio
from typing import Any

from mitmproxy import ctx
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import mode_servers

from addons.mitm.patching import patch


@patch
def install() -> None:
    async def listen(self: mode_servers.AsyncioServerInstance[Any], host: str, port: int) -> list[asyncio.Server]:
        # None and not False: where the system has no SO_REUSEPORT both would do, and True is an error, as it should be.
        shared = getattr(ctx.options, "tollgate_reuse_port", False) or None
        return [await asyncio.start_server(self.handle_stream, host, port, reuse_port=shared)]

    mode_servers.AsyncioServerInstance.listen = listen  # type: ignore[assignment]  # TCP only, so a narrower type


def stop(server: Proxyserver) -> None:
    """Take no more connections; those that are open stay so. The kernel gives new ones to the process beside us."""
    for instance in server.servers:
        if isinstance(instance, mode_servers.AsyncioServerInstance):
            for one in instance._servers:
                if isinstance(one, asyncio.Server):
                    one.close()
