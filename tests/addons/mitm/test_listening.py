import asyncio
import errno
import os
import socket
import ssl
import time

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


async def test_every_address_of_a_name_is_bound():
    async def handler(_reader, writer):
        writer.write(b"here")
        writer.close()

    servers = await listening._serve(handler, "", 0)
    for server in servers:
        family, address = server.sockets[0].family, server.sockets[0].getsockname()
        host = "::1" if family is socket.AF_INET6 else "127.0.0.1"
        reader, writer = await asyncio.open_connection(host, address[1])
        assert await reader.read() == b"here"
        writer.close()
    assert socket.AF_INET in {server.sockets[0].family for server in servers}
    for server in servers:
        server.close()


async def test_a_port_that_is_taken_is_an_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="address already in use"):
            await listening._serve(None, "127.0.0.1", taken.getsockname()[1])


@pytest.fixture
async def exhausted(monkeypatch):
    """Whether the kernel has no more descriptors; and what asyncio was told."""
    state = {"errno": None, "told": []}
    accept = socket.socket.accept

    def failing(self):
        if state["errno"]:
            raise OSError(state["errno"], os.strerror(state["errno"]))
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", failing)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: state["told"].append(context["message"]))
    return state


@pytest.mark.parametrize("number", sorted(listening.EXHAUSTED), ids=errno.errorcode.get)
async def test_out_of_descriptors_it_waits_and_goes_on(exhausted, number):
    served = asyncio.Event()

    async def handler(_reader, writer):
        served.set()
        writer.close()

    (server,) = await listening._serve(handler, "127.0.0.1", 0)
    exhausted["errno"] = number
    began = time.monotonic()
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    async with asyncio.timeout(30):
        while len(exhausted["told"]) < 3:
            await asyncio.sleep(0.01)
    # asyncio by itself says it a hundred times in the first moment.
    assert time.monotonic() - began > 1.5
    assert not served.is_set()
    exhausted["errno"] = None
    async with asyncio.timeout(30):
        await served.wait()  # who has waited is served
    writer.close()
    server.close()
    assert set(exhausted["told"]) == {"socket.accept() out of system resource"}
