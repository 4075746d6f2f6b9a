import json

import pytest

from addons.core import maskanswers, status
from addons.mitm import answers
from tests import http2, proxy


async def test_a_large_answer_passes_and_a_large_request_does_not(tls, confdir):
    def answer(peer, sid, head):
        peer.connection.max_outbound_frame_size = 16384
        peer.connection.send_headers(sid, [(":status", "200"), ("content-length", "40000")])
        for _ in range(4):
            peer.connection.send_data(sid, b"x" * 10_000)
        peer.connection.end_stream(sid)
        peer.flush()

    async with (
        http2.server(tls.combined, answer) as (upstream, _peers),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, body_size_limit="20k") as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        assert len((await client.request("/big")).body) == 40_000
        refused = await client.request("/big", method="POST", body=b"y" * 30_000)
        assert refused.status == 413
        assert json.loads(refused.body)["reason"] == "RequestEntityTooLarge"


class Refuses:
    """Answers from the head, and looks at how much of the body was kept."""

    name = "refuses"
    kept = None

    def requestheaders(self, flow):
        answers.refuse(flow, self.name, status.Refusal(401, "x", "no"))

    def request(self, flow):
        self.kept = len(flow.request.raw_content)


async def test_the_body_of_a_refused_request_is_not_kept(tls, confdir):
    addon = Refuses()
    async with (
        proxy.running(1, tls.combined, tls.ca_file, confdir, addon) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        answer = await client.request("/big", method="POST", body=b"y" * 50_000)
    assert answer.status == 401
    assert addon.kept == 0


class Keeps:
    """Keeps the whole answer, as approve and mask do."""

    name = "keeps"

    def response(self, flow):
        self.kept = len(flow.response.raw_content)


@pytest.mark.parametrize("length", [(), (("content-length", "300000"),)], ids=["no length", "a length"])
async def test_an_answer_that_is_kept_has_a_limit(tls, confdir, monkeypatch, length):
    monkeypatch.setattr(maskanswers, "MAX_WHOLE", 200_000)
    asked = {}

    def answer(peer, sid, head):
        asked[sid] = peer
        peer.connection.send_headers(sid, [(":status", "200"), *length])
        for _ in range(3):
            peer.connection.send_data(sid, b"x" * 100_000)
        peer.flush()

    addon = Keeps()
    async with (
        http2.server(tls.combined, answer) as (upstream, _),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir, addon) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        found = await client.request("/big")
        assert found.status == 502
        assert json.loads(found.body)["message"] == maskanswers.TOO_LARGE.message
        assert not hasattr(addon, "kept")
