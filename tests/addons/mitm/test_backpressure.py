import asyncio
import ssl

import h2.events

from addons.mitm import backpressure
from tests import http2, proxy, websocket

CHUNK = b"x" * 65536
MANY = 64 * 1024 * 1024 // len(CHUNK)  # 64 MiB


class Streams:
    name = "streams"

    def responseheaders(self, flow):
        flow.response.stream = True


class Slow(http2.Client):
    """Reads what comes, but opens no window until told."""

    reading = False

    def note(self, event):
        if isinstance(event, h2.events.DataReceived) and not self.reading:
            answer = self.answers[event.stream_id]
            answer.body += event.data
            answer.changed.set()
            return
        super().note(event)


async def test_a_slow_client_slows_the_server_down(tls, confdir):
    sent = 0

    async def floods(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MANY * len(CHUNK)))
        for _ in range(MANY):
            writer.write(CHUNK)
            await writer.drain()
            sent += len(CHUNK)

    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(tls.combined)
    listener = await asyncio.start_server(floods, "127.0.0.1", 0, ssl=serving)
    upstream = listener.sockets[0].getsockname()[1]
    async with proxy.running(upstream, tls.combined, tls.ca_file, confdir, Streams()) as port:
        context = ssl.create_default_context(cafile=tls.ca_file)
        context.set_alpn_protocols(["h2"])
        client = Slow(*await asyncio.open_connection("127.0.0.1", port, ssl=context))
        answer = client.start("/log")
        await answer.until(lambda a: len(a.body) >= 65535)  # the whole first window
        before = -1
        while sent != before:  # until nobody reads upstream any more
            before = sent
            await asyncio.sleep(0.3)
        assert sent < backpressure.MOST_HELD + 16 * 1024 * 1024  # and the sockets' own buffers
        client.reading = True
        client.connection.increment_flow_control_window(2**30)
        client.connection.increment_flow_control_window(2**30, stream_id=1)
        client.flush()
        await answer.until(lambda a: a.ended.is_set(), seconds=60)
        assert len(answer.body) == MANY * len(CHUNK)
        await client.close()
    listener.close()


async def test_slow_hooks_slow_the_server_down(tls, confdir):
    """mitmproxy reads on while a hook of a frame runs."""
    sent, go_on = 0, asyncio.Event()

    class Waits:
        name = "waits"

        async def websocket_message(self, flow):
            await go_on.wait()
            del flow.websocket.messages[:-1]

    async def floods(peer):
        nonlocal sent
        for _ in range(MANY):
            await peer.send(CHUNK)
            sent += len(CHUNK)
        await peer.close()
        await peer.to_the_end()

    async with websocket.connected(tls, confdir, floods, Waits()) as client:
        client.keep = False
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.3)
        assert sent < backpressure.MOST_UNJUDGED + 16 * 1024 * 1024  # and the sockets' own buffers
        go_on.set()
        await client.to_the_end(60)
        assert client.bytes_received == MANY * len(CHUNK)
