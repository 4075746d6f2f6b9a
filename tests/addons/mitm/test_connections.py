import asyncio
import ssl

from addons.mitm.connections import close, lift_limit
from tests import http2, proxy


async def test_the_sixth_connection_upstream_does_not_wait(tls, confdir):
    """HTTP/1.1 takes an upstream connection per exchange; mitmproxy allows five and lets the sixth hang."""

    class Lifts:
        name = "lifts"

        def client_connected(self, client):
            lift_limit(client)

    open_now: set[asyncio.StreamWriter] = set()

    async def never_ends(reader, writer):
        open_now.add(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await asyncio.sleep(30)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.combined)
    listener = await asyncio.start_server(never_ends, "127.0.0.1", 0, ssl=context)
    upstream = listener.sockets[0].getsockname()[1]

    class Streams:
        name = "streams"

        def responseheaders(self, flow):
            flow.response.stream = True

    async with (
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, Lifts(), Streams()) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        watches = [client.start(f"/{n}") for n in range(8)]
        for watch in watches:
            await watch.until(lambda a: a.body)
    for writer in open_now:
        writer.close()
    listener.close()


async def test_close_ends_a_connection(tls, confdir):
    class Closes:
        name = "closes"

        def requestheaders(self, flow):
            close(flow.client_conn)

    async with proxy.running(1, tls.combined, tls.ca_file, confdir, Closes()) as port:
        assert await proxy.raw(port, tls.ca_file, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""
