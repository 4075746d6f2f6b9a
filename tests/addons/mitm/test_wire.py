from addons.core import facts
from addons.mitm import wire
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
