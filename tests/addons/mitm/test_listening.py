import asyncio
import socket
import ssl

import pytest
from mitmproxy import ctx

from addons.mitm import listening
from tests import proxy


async def test_only_tcp_is_bound(tls, confdir):
    async with proxy.running(1, tls.combined, tls.ca_file, confdir) as port:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.bind(("127.0.0.1", port))  # fails while somebody listens for HTTP/3 there


async def test_a_port_is_nobody_elses_unless_both_say_so(tls, confdir):
    async with proxy.running(1, tls.combined, tls.ca_file, confdir) as port:
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                s.bind(("127.0.0.1", port))


class Sharing:
    def load(self, loader):
        loader.add_option("tollgate_reuse_port", bool, True, "")


async def test_who_stops_to_listen_keeps_what_is_open(tls, confdir):
    listening.install()
    async with proxy.running(1, tls.combined, tls.ca_file, confdir, Sharing()) as port:
        context = ssl.create_default_context(cafile=tls.ca_file)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.1", port))  # the gateway that takes over
        listening.stop(ctx.master.addons.get("proxyserver"))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(30):
            assert (await reader.readline()).startswith(b"HTTP/1.1 502")  # there is no upstream
        writer.close()
