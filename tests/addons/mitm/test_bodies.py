import json

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
