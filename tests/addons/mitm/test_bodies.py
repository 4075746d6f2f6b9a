import json

from addons.core import status
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
