from tests import http2, proxy


async def through(tls, confdir, on_request, test):
    async with (
        http2.server(tls.combined, on_request) as (upstream, peers),
        proxy.running(upstream, tls.combined, tls.ca_file, confdir) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        await test(client, peers)


async def test_an_answer_after_goaway_arrives(tls, confdir):
    def unauthorized(peer, sid, head):
        peer.goaway(sid)  # as kube-apiserver: GOAWAY first, then the 401
        peer.respond(sid, 401, b'{"kind":"Status"}')

    async def test(client, peers):
        answer = await client.request("/api")
        assert (answer.status, answer.body) == (401, b'{"kind":"Status"}')

    await through(tls, confdir, unauthorized, test)


async def test_new_requests_take_a_new_connection(tls, confdir):
    def drain(peer, sid, head):
        if head[":path"] == "/first":
            peer.goaway(sid)
        peer.respond(sid, 200, head[":path"].encode())

    async def test(client, peers):
        assert (await client.request("/first")).body == b"/first"
        assert (await client.request("/second")).body == b"/second"
        assert len(peers) == 2

    await through(tls, confdir, drain, test)


async def test_streams_that_the_server_did_not_take_fail_with_a_status(tls, confdir):
    waiting = []

    def drain(peer, sid, head):
        waiting.append(sid)
        if len(waiting) == 2:
            peer.goaway(waiting[0])
            peer.respond(waiting[0], 200, b"done")

    async def test(client, peers):
        first, second = client.start("/first"), client.start("/second")
        await first.ended.wait()
        await second.ended.wait()
        answers = {first.status, second.status}
        assert answers == {200, 502}
        late = second if second.status == 502 else first
        assert b"nothing was done; run it again" in late.body

    await through(tls, confdir, drain, test)


async def test_goaway_with_an_error_is_still_an_error(tls, confdir):
    def broken(peer, sid, head):
        peer.goaway(sid, error_code=2)

    async def test(client, peers):
        answer = await client.request("/api")
        assert answer.status == 502
        assert b'"kind": "Status"' in answer.body

    await through(tls, confdir, broken, test)
