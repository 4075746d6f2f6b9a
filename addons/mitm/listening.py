"""
The port opens when the stack is ready, and only for TCP.

mitmproxy loads scripts after it has opened its port: for a moment it would be a bare proxy.
So the launcher starts it without a server (`--no-server`) and the guard opens the port.
`reverse:https` would also bind UDP for HTTP/3, which no addon here judges.
"""

import asyncio
from typing import Any

from mitmproxy.proxy import mode_servers

from addons.mitm.patching import patch


@patch
def install() -> None:
    async def listen(self: mode_servers.AsyncioServerInstance[Any], host: str, port: int) -> list[asyncio.Server]:
        return [await asyncio.start_server(self.handle_stream, host, port)]

    mode_servers.AsyncioServerInstance.listen = listen  # type: ignore[assignment]  # TCP only, so a narrower type
