import asyncio
import ssl
import weakref

import pytest
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy.layers.http import ErrorCode, RequestData, RequestEndOfMessage, RequestProtocolError
from mitmproxy.test import tflow

from addons.core import facts
from addons.mitm import seal, wire
from tests import http2, proxy


class Adds:
    """Puts a credential into the facts, and looks at the flow when it has been sent."""

    name = "adds"

    def __init__(self):
        self.seen = []
        self.authority = None

    def request(self, flow):
        facts.of(flow).credential = "Bearer of-the-gateway"
        self.authority = wire.authority(flow.request)

    def response(self, flow):
        self.seen.append(flow.get_state())


def echo(peer, sid, head):
    peer.respond(sid, 200, head.get("authorization", "none").encode())


async def test_the_credential_is_on_the_wire_and_nowhere_else(tls, confdir):
    addon = Adds()
    async with (
        http2.server(tls.combined, echo) as (upstream, _peers),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, addon) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        answer = await client.request("/api")
    assert answer.body == b"Bearer of-the-gateway"
    assert "of-the-gateway" not in repr({k: v for k, v in addon.seen[0].items() if k != "response"})


async def test_the_clients_authority_is_kept(tls, confdir):
    addon = Adds()
    async with (
        http2.server(tls.combined, echo) as (upstream, _peers),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, addon) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        await client.request("/api", authority="what-i-said:1", headers=(("host", "what-i-said:1"),))
    assert addon.authority == wire.Authority("what-i-said:1", ("what-i-said:1",))


async def test_without_a_credential_nothing_is_added(tls, confdir):
    async with (
        http2.server(tls.combined, echo) as (upstream, _peers),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        assert (await client.request("/api")).body == b"none"


class ChangesLate:
    """An operator's edit after the last word."""

    def request(self, flow):
        seal.put(flow)
        flow.request.path = "/api/v1/secrets"


async def test_what_was_changed_after_its_release_never_leaves(tls, confdir):
    async with (
        http2.server(tls.combined, echo) as (upstream, peers),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, ChangesLate()) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        answer = await client.request("/api", method="POST", body=b"x")
    assert answer.status == 0
    assert not any(peer.requests for peer in peers)


async def test_what_was_not_released_never_leaves(tls, confdir, monkeypatch):
    """The guard's two addons both failed: the connection ends, and nothing reached the server."""
    monkeypatch.setattr(proxy.Releases, "request", lambda self, flow: None)
    async with (
        http2.server(tls.combined, echo) as (upstream, peers),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        answer = await client.request("/api", method="POST", body=b"x")
    assert answer.status == 0
    assert not any(peer.requests for peer in peers)


class Holds:
    """Holds every request until it is told to go on."""

    name = "holds"

    def __init__(self):
        self.held, self.over, self.go_on = [], [], asyncio.Event()

    async def request(self, flow):
        self.held.append(flow)
        await self.go_on.wait()

    def error(self, flow):
        self.over.append(flow)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def reset(client, writer):
    client.connection.reset_stream(1)
    client.flush()


async def close(client, writer):
    await client.close()


@pytest.mark.parametrize("leave", [pytest.param(reset, id="a reset stream"), pytest.param(close, id="a connection")])
async def test_who_leaves_while_held_is_seen_to_leave(tls, confdir, leave):
    addon = Holds()
    async with (
        http2.server(tls.combined, echo) as (upstream, peers),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, addon) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        client.start("/one", method="POST", body=b"x")
        await until(lambda: len(addon.held) == 1)
        neighbour = client.start("/two") if leave is reset else None
        await until(lambda: len(addon.held) == 1 + bool(neighbour))
        assert not any(wire.left(flow) for flow in addon.held)
        await leave(client, None)
        await until(lambda: wire.left(addon.held[0]))
        if neighbour is not None:  # another stream of the same connection is not mistaken for it
            assert not wire.left(addon.held[1])
        addon.go_on.set()
        await until(lambda: addon.over == addon.held[:1])
        if neighbour is not None:
            await neighbour.until(lambda a: a.ended.is_set())
            assert neighbour.status == 200
        assert sum(len(peer.requests) for peer in peers) == (neighbour is not None)


async def test_who_leaves_over_http1_is_seen_to_leave(tls, confdir):
    addon = Holds()
    async with (
        http2.server(tls.combined, echo) as (upstream, peers),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, addon) as port,
    ):
        context = ssl.create_default_context(cafile=tls.ca_file)
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"POST /one HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
        await until(lambda: addon.held)
        assert not wire.left(addon.held[0])
        writer.close()
        await until(lambda: wire.left(addon.held[0]))
        addon.go_on.set()
        await until(lambda: addon.over == addon.held)
        assert not any(peer.requests for peer in peers)


@pytest.mark.parametrize(
    ("state", "gone"),
    [
        pytest.param(ConnectionState.OPEN, False, id="open"),
        pytest.param(ConnectionState.CAN_WRITE, True, id="the client said that it is done"),
        pytest.param(ConnectionState.CLOSED, True, id="closed"),
    ],
)
def test_a_flow_that_did_not_come_over_the_wire_is_judged_by_its_connection(state, gone):
    flow = tflow.tflow()
    flow.client_conn.state = state
    assert wire.left(flow) is gone


class Stream:
    """An HTTP stream whose hook runs: what comes meanwhile waits in its queue."""

    def __init__(self, *waiting):
        self._paused_event_queue = list(waiting)


@pytest.mark.parametrize(
    ("waiting", "gone"),
    [
        pytest.param((), False, id="nothing"),
        pytest.param((RequestData(1, b"x"), RequestEndOfMessage(1)), False, id="the rest of the request"),
        pytest.param((RequestData(1, b"x"), RequestProtocolError(1, "reset", ErrorCode.CANCEL)), True, id="a reset"),
    ],
)
def test_only_a_reset_means_that_the_client_left(waiting, gone, monkeypatch):
    flow, stream = tflow.tflow(), Stream(*waiting)
    flow.client_conn.state = ConnectionState.OPEN
    monkeypatch.setitem(wire._streams, flow.request, weakref.ref(stream))
    assert wire.left(flow) is gone
    del stream  # its exchange is over: there is nobody to have left
    assert wire.left(flow) is False
