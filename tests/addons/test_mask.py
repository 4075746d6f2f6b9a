"""The addon between a real client and a scripted API server. With the real one: tests/e2e/test_masking.py."""

import asyncio
import base64
import gzip
import json
import logging

import pytest
from mitmproxy import http
from mitmproxy.exceptions import OptionsError
from mitmproxy.test import taddons, tflow, tutils

from addons import mask
from addons.core import classify, facts, maskanswers, maskdetect, policyfile
from addons.core.model import Identity
from addons.mitm import answers, injecting, withholding
from tests import canaries, http1, http2, proxy

AGENT, PERSON = Identity("agent"), Identity("jane", groups=("people",))
POLICY = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: p}
people: '"people" in identity.groups'
rules:
- {name: all, action: allow, match: {verbs: ["*"], resources: ["*", "*/*"]}}
mask:
- name: break-glass
  match: {resources: [secrets], namespaces: [shop], resourceNames: [db], subjects: [agents]}
  mask: approved
"""
MORE = (
    POLICY
    + """
- {name: all-of-it, match: {resources: [secrets, pods/log]}, mask: always}
"""
)
NS = "/api/v1/namespaces/shop"
SECRET = f"{NS}/secrets/db"
LOG = f"{NS}/pods/web-1/log"
PASSWORD = canaries.VALUES["password"]
OBJECT = {
    "kind": "Secret",
    "apiVersion": "v1",
    "metadata": {"name": "db", "namespace": "shop", "annotations": {"x": "y"}},
    "data": {"password": base64.b64encode(PASSWORD).decode()},
}
JSON = (("content-type", "application/json"),)
TEXT = (("content-type", "text/plain"),)
FRAME = 100_000  # bytes
injecting.install()


def policies(tmp_path, text=POLICY):
    file = tmp_path / "p.yaml"
    file.write_text(text)
    return policyfile.load([file])


class Before:
    """Stands in for guard, authenticate, classify, block and approve."""

    name = "before"

    def __init__(self, policies, identity=AGENT, approval=""):
        self.policies, self.identity, self.approval = policies, identity, approval
        self.flows = []

    def request(self, flow):
        self.flows.append(flow)
        known = facts.of(flow)
        request = flow.request
        known.operation = classify.classify_raw(
            request.data.method.decode(), request.data.path.decode(), request.headers.fields, request.raw_content or b""
        )
        known.identity, known.policies, known.approval = self.identity, lambda: self.policies, self.approval
        known.released = True

    def response(self, flow):
        if not flow.response.stream and not flow.websocket:
            known = facts.of(flow)
            known.answer, flow.response = flow.response, answers.response(withholding.ANSWER_NOT_JUDGED)


class After:
    """Stands in for upstream and the guard's last word: releases what mask has stamped."""

    name = "after"

    def responseheaders(self, flow):
        known = facts.of(flow)
        flow.response.stream = not known.whole and (known.chunks or True)
        judged = ("tollgate_mask", "responseheaders") in known.passed
        flow.request.headers["x-released"] = str(judged and known.answer_refusal is None)

    def response(self, flow):
        known = facts.of(flow)
        if known.answer is not None and ("tollgate_mask", "response") in known.passed:
            flow.response = known.answer


class Strict(proxy.Releases):
    def responseheaders(self, flow):
        known = facts.of(flow)
        judged = ("tollgate_mask", "responseheaders") in known.passed and known.answer_refusal is None
        known.head_released = judged

    def response(self, flow):
        facts.of(flow).answer_released = ("tollgate_mask", "response") in facts.of(flow).passed


@pytest.fixture(scope="module", autouse=True)
def patterns():
    """Compiling them takes 3 s, and four times that on a busy machine: longer than a request may take here."""
    maskdetect.warm(None)


@pytest.fixture
def addon(tmp_path):
    one = mask.Mask()
    one.key = bytes(range(32))
    one.memory = mask.maskmemory.Memory(bytes(32))
    return one


@pytest.fixture
def through(tls, confdir, tmp_path, addon, monkeypatch):
    """Run a test with a client before a scripted API server."""
    monkeypatch.setattr(proxy, "Releases", Strict)

    async def run(respond, test, identity=AGENT, approval="", text=POLICY):
        before = Before(policies(tmp_path, text), identity, approval)
        async with (
            http2.server(tls.combined, respond) as (upstream, peers),
            proxy.running(upstream, tls.combined, tls.ca_file, confdir, before, addon, After()) as port,
            http2.connect(port, tls.ca_file) as client,
        ):
            before.peers = peers
            return await test(client, before)

    return run


def answering(body, status=200, headers=JSON):
    def respond(peer, sid, head):
        peer.respond(sid, status, end=not body, headers=headers)
        for start in range(0, len(body), FRAME):
            peer.connection.send_data(sid, body[start : start + FRAME], end_stream=start + FRAME >= len(body))
        peer.flush()

    return respond


def asking(path, **more):
    async def test(client, before):
        answer = await client.request(path, **more)
        answer.sent = before.peers[0].requests[-1][1] if before.peers else {}
        return answer

    return test


# ----- whole answers -----


async def test_an_object_is_masked(through):
    raw = json.dumps(OBJECT).encode()
    answer = await through(
        answering(raw, headers=(*JSON, ("etag", '"x"'), ("content-length", str(len(raw))))), asking(SECRET)
    )
    assert answer.status == 200
    assert not canaries.seen_in(bytes(answer.body), [PASSWORD])
    assert base64.b64decode(json.loads(answer.body)["data"]["password"]).startswith(b"**masked:")
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert "etag" not in answer.headers


async def test_who_may_see_it_gets_the_very_bytes_as_they_come(through):
    """Nothing is kept: the first chunk is there while the second has not been sent."""
    sent = {}

    def respond(peer, sid, head):
        sent["peer"] = (peer, sid)
        peer.respond(sid, 200, b'{"a": ', end=False, headers=JSON)

    async def test(client, before):
        answer = client.start(SECRET, headers=(("accept", "application/vnd.kubernetes.protobuf"),))
        await answer.until(lambda a: a.body)
        peer, sid = sent["peer"]
        peer.connection.send_data(sid, b"1}", end_stream=True)
        peer.flush()
        await answer.until(lambda a: a.ended.is_set())
        assert answer.body == b'{"a": 1}'
        assert before.peers[0].requests[0][1]["accept"] == "application/vnd.kubernetes.protobuf"

    await through(respond, test, identity=PERSON)


async def test_what_holds_nothing_passes_as_it_is(through):
    answer = await through(answering(b"ok", headers=TEXT), asking("/healthz", headers=(("accept", "text/html"),)))
    assert (answer.status, answer.body, answer.sent["accept"]) == (200, b"ok", "text/html")


async def test_json_is_asked_for(through):
    sent = "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/yaml"
    answer = await through(answering(b"{}"), asking(SECRET, headers=(("accept", sent),)))
    assert answer.sent["accept"] == "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


async def test_an_answer_without_a_secret_is_the_very_same_bytes(through):
    raw = b'{ "kind": "Service", "apiVersion": "v1", "metadata": {"name":"web"} }'
    answer = await through(answering(raw), asking(f"{NS}/services/web"))
    assert answer.body == raw


async def test_a_large_answer_in_a_thread(through):
    listed = {"kind": "SecretList", "apiVersion": "v1", "items": [OBJECT] * 4000}
    raw = json.dumps(listed).encode()
    assert len(raw) > mask.LARGE
    answer = await through(answering(raw), asking(f"{NS}/secrets"))
    assert answer.status == 200
    assert len(json.loads(answer.body)["items"]) == 4000
    assert not canaries.seen_in(bytes(answer.body), [PASSWORD])


async def test_gzip(through):
    answer = await through(
        answering(gzip.compress(json.dumps(OBJECT).encode()), headers=(*JSON, ("content-encoding", "gzip"))),
        asking(SECRET),
    )
    assert "content-encoding" not in answer.headers
    assert json.loads(answer.body)["kind"] == "Secret"
    assert not canaries.seen_in(bytes(answer.body), [PASSWORD])


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param(b"k8s\0" + PASSWORD, (("content-type", "application/vnd.kubernetes.protobuf"),), id="protobuf"),
        pytest.param(b"data: " + PASSWORD, (("content-type", "application/yaml"),), id="YAML"),
        pytest.param(PASSWORD, TEXT, id="text"),
        pytest.param(PASSWORD, (), id="of no type"),
        pytest.param(json.dumps(OBJECT).encode()[:-1], JSON, id="half a JSON"),
        pytest.param(b'{"a":1,"a":"%b"}' % PASSWORD, JSON, id="JSON with two readings"),
        pytest.param(json.dumps(OBJECT).encode(), (*JSON, ("content-encoding", "br")), id="compressed in another way"),
        pytest.param(b"\x1f\x8b" + PASSWORD, (*JSON, ("content-encoding", "gzip")), id="a broken gzip"),
    ],
)
async def test_what_cannot_be_read_is_withheld(through, body, headers):
    answer = await through(answering(body, headers=headers), asking(SECRET))
    assert answer.status == 502
    assert json.loads(answer.body)["message"] == maskanswers.UNREADABLE.message
    assert PASSWORD not in answer.body


async def test_errors_are_masked_too(through):
    said = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422,
            "message": f'Secret "db" is invalid: type: Invalid value: "{PASSWORD.decode()}"'}  # fmt: skip
    answer = await through(answering(json.dumps(said).encode(), 422), asking(SECRET))
    assert answer.status == 422
    assert json.loads(answer.body)["message"].startswith('Secret "db" is invalid: type: Invalid value: **masked')
    watch = await through(answering(json.dumps(said).encode(), 422), asking(f"{NS}/secrets?watch=1"))
    assert watch.status == 422
    assert PASSWORD not in watch.body


async def test_an_error_of_one_line(through):
    answer = await through(answering(b"404 page not found\n", 404, TEXT), asking("/apis/x.io/v1/things"))
    assert (answer.status, answer.body) == (404, b"404 page not found\n")


@pytest.mark.parametrize(
    ("path", "body", "headers", "shown"),
    [
        pytest.param(SECRET, b"{}", JSON, '299 - "**masked:', id="of a Secret, all of it"),
        pytest.param(LOG, b"x\n", TEXT, '299 - "unknown field: password=**masked:', id="of else, what is secret"),
    ],
)
async def test_a_warning_is_masked(through, path, body, headers, shown):
    warning = f'299 - "unknown field: password={PASSWORD.decode()}"'
    answer = await through(answering(body, headers=(*headers, ("warning", warning))), asking(path))
    assert PASSWORD.decode() not in answer.headers["warning"]
    assert answer.headers["warning"].startswith(shown)


@pytest.mark.parametrize(("path", "headers"), [(SECRET, JSON), (LOG, TEXT), (f"{NS}/secrets?watch=1", JSON)])
@pytest.mark.parametrize("identity", [AGENT, PERSON])
async def test_trailers_are_looked_at_by_nobody(through, path, headers, identity):
    def respond(peer, sid, head):
        peer.respond(sid, 200, b"{}\n" if "watch" not in path else event("one"), end=False, headers=headers)
        peer.connection.send_headers(sid, [("x-trailer", PASSWORD.decode())], end_stream=True)
        peer.flush()

    answer = await through(respond, asking(path), identity=identity)
    assert answer.status == 200
    assert ("x-trailer" in answer.headers) is (identity is PERSON)


async def test_an_answer_that_is_too_large(through, monkeypatch):
    monkeypatch.setattr(maskanswers, "MAX_WHOLE", 100_000)
    for size in (("content-length", "200000"),), ():
        answer = await through(answering(b" " * 200_000, headers=(*JSON, *size)), asking(SECRET))
        if not size:
            assert answer.status == 502
            assert json.loads(answer.body)["message"] == maskanswers.TOO_LARGE.message
        assert not answer.body.startswith(b" ")


async def test_a_mistake_of_ours_withholds_the_answer(through, addon, monkeypatch):
    def fails(*_):
        raise RuntimeError("injected")

    monkeypatch.setattr(mask, "masked_answer", fails)
    answer = await through(answering(json.dumps(OBJECT).encode()), asking(SECRET))
    assert answer.status == 502
    assert json.loads(answer.body)["message"] == withholding.ANSWER_NOT_JUDGED.message
    monkeypatch.setattr(addon, "prepare", fails)
    answer = await through(answering(json.dumps(OBJECT).encode()), asking(SECRET))
    assert answer.status == 502


async def test_a_head_and_an_answer_without_a_body(through):
    answer = await through(answering(b"", 204), asking(f"{NS}/pods/x/eviction"))
    assert answer.status == 204
    answer = await through(answering(b"", headers=TEXT), asking(LOG))  # an empty log
    assert (answer.status, answer.body, answer.reset) == (200, b"", None)


# ----- watches -----


def event(name, kind="ADDED"):
    return json.dumps({"type": kind, "object": OBJECT | {"metadata": {"name": name}}}).encode() + b"\n"


class Live:
    """An API server that sends what a test tells it to."""

    def __init__(self, headers=JSON, first=b""):
        self.headers, self.first = headers, first
        self.begun = asyncio.Event()

    def __call__(self, peer, sid, head):
        self.peer, self.sid = peer, sid
        peer.respond(sid, 200, self.first, end=False, headers=self.headers)
        self.begun.set()

    def send(self, data, *, end=False):
        self.peer.connection.send_data(self.sid, data, end_stream=end)
        self.peer.flush()


WATCH = f"{NS}/secrets?watch=1"


async def test_a_large_event_in_a_thread(through, addon):
    """In its place among the others, though they wait for it."""
    large = OBJECT | {"metadata": {"name": "large"}, "stringData": {f"k{n}": PASSWORD.decode() for n in range(9000)}}
    sent = event("one") + json.dumps({"type": "ADDED", "object": large}).encode() + b"\n" + event("two")
    live = Live()

    async def test(client, before):
        threads = []
        work = addon.workers.submit
        addon.workers.submit = lambda *args: (threads.append(args), work(*args))[1]
        answer = client.start(WATCH)
        await live.begun.wait()
        for at in range(0, len(sent), 16_000):
            live.send(sent[at : at + 16_000])
            await asyncio.sleep(0)
        await answer.until(lambda a: a.body.count(b"\n") == 3)
        live.send(event("three"), end=True)
        await answer.until(lambda a: a.ended.is_set())
        names = [json.loads(line)["object"]["metadata"]["name"] for line in answer.body.splitlines()]
        assert names == ["one", "large", "two", "three"]
        assert not canaries.seen_in(bytes(answer.body), [PASSWORD])
        assert answer.reset is None
        assert threads

    await through(live, test)


async def test_each_event_as_it_comes(through):
    live = Live()

    async def test(client, before):
        answer = client.start(WATCH)
        await live.begun.wait()
        for name in ("one", "two"):
            live.send(event(name)[:50])
            await asyncio.sleep(0)
            live.send(event(name)[50:])
            await answer.until(lambda a, name=name: name.encode() in a.body)
        live.send(b"", end=True)
        await answer.until(lambda a: a.ended.is_set())
        assert answer.reset is None
        assert [json.loads(line)["object"]["metadata"]["name"] for line in answer.body.splitlines()] == ["one", "two"]
        assert not canaries.seen_in(bytes(answer.body), [PASSWORD])

    await through(live, test)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b'{"type":"ADDED","object":{"a":1,"a":2}}\n', id="two readings"),
        pytest.param(b"k8s\0" + PASSWORD + b"\n", id="no JSON"),
        pytest.param(b'"' + PASSWORD + b'"\n', id="no event"),
        pytest.param(b'{"object":{"data":"' + PASSWORD + b'"}}\n', id="no type"),
    ],
)
async def test_what_is_no_event_ends_the_watch(through, bad):
    live = Live()

    async def test(client, before):
        answer = client.start(WATCH)
        await live.begun.wait()
        live.send(event("one") + bad + event("two"))
        await answer.until(lambda a: a.ended.is_set())
        last = json.loads(answer.body.splitlines()[-1])
        assert (last["type"], last["object"]["message"]) == ("ERROR", maskanswers.STREAM_BROKEN.message)
        assert answer.reset is not None
        assert PASSWORD not in answer.body
        assert b'"two"' not in answer.body

    await through(live, test)


async def test_a_watch_that_ends_in_the_middle_of_an_event(through):
    live = Live()

    async def test(client, before):
        answer = client.start(WATCH)
        await live.begun.wait()
        live.send(event("one") + event("two")[:-9], end=True)
        await answer.until(lambda a: a.ended.is_set())
        assert answer.reset is not None
        assert b'"two"' not in answer.body

    await through(live, test)


async def test_a_watch_over_http1(through, tls, confdir, tmp_path, addon, monkeypatch):
    """A broken body and never its last chunk."""
    monkeypatch.setattr(proxy, "Releases", Strict)
    body = event("one") + b"{}\n"
    chunked = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (len(body), body)
    peer = http1.Peer(chunked + chunk)
    async with http1.connected(tls, confdir, peer, Before(policies(tmp_path)), addon, After()) as (reader, writer):
        writer.write(f"GET {WATCH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = await reader.read()
    assert maskanswers.STREAM_BROKEN.message.encode() in received
    assert not received.endswith(b"0\r\n\r\n")
    assert PASSWORD not in received


# ----- logs and what is behind a proxy -----


@pytest.mark.parametrize("path", [LOG, f"{NS}/services/web:80/proxy/page", "/metrics"])
async def test_text_line_by_line(through, path):
    live = Live(headers=TEXT)

    async def test(client, before):
        answer = client.start(path)
        await live.begun.wait()
        live.send(b"ready\nDB_PASSWORD=%b\nnext\n" % PASSWORD)
        await answer.until(lambda a: b"next\n" in a.body)
        assert answer.body.startswith(b"ready\nDB_PASSWORD=**masked:")
        live.send(b"$ ")  # a prompt
        await answer.until(lambda a: a.body.endswith(b"$ "), seconds=1)
        live.send(b"token=" + canaries.JWT[:40].encode())
        live.send(canaries.JWT[40:].encode() + b" end", end=True)
        await answer.until(lambda a: a.ended.is_set())
        assert answer.body.endswith(b" end")
        assert not canaries.seen_in(bytes(answer.body), [PASSWORD, canaries.JWT.encode()])

    await through(live, test)


@pytest.mark.parametrize(("query", "shown"), [("", b"one two"), ("?limitBytes=7", b"one ")])
async def test_a_log_that_the_client_cuts(through, query, shown):
    """Its last word may be half of a known value."""
    answer = await through(answering(b"one two", headers=TEXT), asking(f"{LOG}{query}"))
    assert (answer.status, answer.body) == (200, shown)


async def test_the_length_of_a_text_is_another(through):
    text = b"password=%b\n" % PASSWORD
    answer = await through(answering(text, headers=(*TEXT, ("content-length", str(len(text))))), asking(LOG))
    assert "content-length" not in answer.headers
    assert answer.body.startswith(b"password=**masked:")


async def test_headers_of_what_is_behind_a_proxy(through):
    headers = (*TEXT, ("x-debug", f"password={PASSWORD.decode()}"), ("x-plain", "words"))
    answer = await through(answering(b"x", headers=headers), asking(f"{NS}/services/web:80/proxy/"))
    assert PASSWORD.decode() not in str(answer.headers)
    assert answer.headers["x-plain"] == "words"


async def test_a_compressed_stream_is_withheld(through):
    headers = (*TEXT, ("content-encoding", "gzip"))
    answer = await through(answering(gzip.compress(PASSWORD), headers=headers), asking(LOG))
    assert answer.status == 502


async def test_a_failure_in_the_middle_of_a_log(through, addon, monkeypatch, caplog):
    live = Live(headers=TEXT)

    class Breaks:
        pending = 0

        def feed(self, data):
            if b"break" in data:
                raise RuntimeError("injected")
            return data

        finish = idle = lambda self: b""

    monkeypatch.setattr(addon, "text_masker", lambda exchange, **more: Breaks())

    async def test(client, before):
        answer = client.start(LOG)
        await live.begun.wait()
        live.send(b"one\n")
        await answer.until(lambda a: a.body)
        live.send(b"break " + PASSWORD)
        await answer.until(lambda a: a.ended.is_set())
        assert answer.body == b"one\n"
        assert answer.reset is not None

    await through(live, test)
    caplog.clear()  # the traceback is what the operator is told


# ----- known values -----


async def test_a_value_that_was_read_is_found_in_a_log(through, addon):
    secret = b"q8Zr4-TyPw1.nM3kLx"
    stored = OBJECT | {"data": {"x": base64.b64encode(secret).decode()}}
    await through(answering(json.dumps(stored).encode()), asking(SECRET))
    answer = await through(answering(b"the word is %b\n" % secret, headers=TEXT), asking(LOG))
    assert secret not in answer.body


async def test_a_value_that_an_agent_wrote_is_not_learnt(through, addon):
    secret = b"q8Zr4-TyPw1.nM3kLx"
    stored = OBJECT | {"data": {"x": base64.b64encode(secret).decode()}}
    raw = json.dumps(stored).encode()
    made = asking(f"{NS}/secrets", method="POST", body=raw, headers=JSON)
    await through(answering(raw, 201), made)
    await through(answering(raw), asking(SECRET))
    answer = await through(answering(b"the word is %b\n" % secret, headers=TEXT), asking(LOG))
    assert secret in answer.body
    # A person's is, from the request: the answer is not looked at.
    await through(answering(raw, 201), made, identity=PERSON)
    answer = await through(answering(b"the word is %b\n" % secret, headers=TEXT), asking(LOG))
    assert secret not in answer.body


# ----- requests -----


def a_flow(tmp_path, method="GET", path=SECRET, body=b"", media="application/json", identity=AGENT, approval=""):
    headers = http.Headers(((b"Content-Type", media.encode()),) if body else ())
    flow = tflow.tflow(req=tutils.treq(method=method.encode(), path=path.encode(), headers=headers, content=body))
    Before(policies(tmp_path), identity, approval).request(flow)
    return flow


@pytest.mark.parametrize("identity", [AGENT, PERSON])
def test_a_masked_value_does_not_come_back(addon, tmp_path, identity):
    body = json.dumps({"data": {"x": base64.b64encode(b"**masked:1a2b3c4d**").decode()}}).encode()
    flow = a_flow(tmp_path, "PATCH", body=body, media="application/merge-patch+json", identity=identity)
    addon.request(flow)
    assert flow.response.headers["Tollgate-Reason"] == "masked-value"
    assert not facts.of(flow).passed


async def test_a_large_body_is_looked_at_too(addon, tmp_path):
    body = json.dumps({"data": {"x": "y" * mask.LARGE, "z": "**masked:1a2b3c4d**"}}).encode()
    flow = a_flow(tmp_path, "PATCH", f"{NS}/configmaps/x", body, "application/merge-patch+json")
    await addon.request(flow)
    assert flow.response.headers["Tollgate-Reason"] == "masked-value"


@pytest.mark.parametrize(("identity", "refused"), [(AGENT, True), (PERSON, False)])
def test_a_write_that_reads(addon, tmp_path, identity, refused):
    body = b'[{"op":"test","path":"/data/x","value":"eA=="}]'
    flow = a_flow(tmp_path, "PATCH", body=body, media="application/json-patch+json", identity=identity)
    addon.request(flow)
    assert bool(flow.response) is refused
    assert (("tollgate_mask", "request") in facts.of(flow).passed) is not refused


def test_without_a_key_nothing_is_sent(tmp_path):
    flow = a_flow(tmp_path)
    mask.Mask().request(flow)
    assert flow.response.headers["Tollgate-Reason"] == "mask-unavailable"


def test_an_answer_of_an_earlier_addon_stands(addon, tmp_path):
    flow = a_flow(tmp_path)
    facts.of(flow).answered_by = "tollgate_block"
    addon.request(flow)
    assert flow.response is None
    assert not facts.of(flow).passed


def test_an_unclassified_request_does_not_pass(addon):
    flow = tflow.tflow()
    with pytest.raises(facts.NotClassified):
        addon.request(flow)


def test_break_glass_is_on_record(addon, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    flow = a_flow(tmp_path, approval="apr-x")
    addon.request(flow)
    assert not addon.exchanges[flow].level.masks
    assert "reveal: 'get secrets db in namespace shop' for 'agent' by apr-x" in caplog.text
    other = a_flow(tmp_path, path=f"{NS}/secrets/other", approval="apr-x")
    addon.request(other)
    assert addon.exchanges[other].level.masks


def test_nobody_said_how_it_is_masked(addon, tmp_path):
    """A script that was loaded again does not know what its forerunner knew."""
    flow = a_flow(tmp_path)
    flow.response = tutils.tresp()
    addon.responseheaders(flow)
    addon.response(flow)
    addon.websocket_message(flow)
    assert not facts.of(flow).passed
    assert not facts.of(flow).judged


# ----- configuration -----


def test_the_key_is_kept(tmp_path):
    keys = []
    for _ in range(2):
        one = mask.Mask()
        with taddons.context(one) as tctx:
            tctx.configure(one, tollgate_state=str(tmp_path))
        keys.append(one.key)
        mask.maskkeys._in.cache_clear()
    assert keys[0] == keys[1] != b""


def test_a_key_that_others_can_read(tmp_path):
    (tmp_path / "mask.key").write_bytes(bytes(32))
    (tmp_path / "mask.key").chmod(0o644)
    one = mask.Mask()
    with taddons.context(one) as tctx, pytest.raises(OptionsError, match="others may read it"):
        tctx.configure(one, tollgate_state=str(tmp_path))


# ----- policies that change -----


async def test_a_stream_ends_when_the_policies_mask_more(through, addon, tmp_path):
    live = Live(headers=TEXT)

    async def test(client, before):
        answer = client.start(LOG)
        await live.begun.wait()
        live.send(b"one\n")
        await answer.until(lambda a: a.body)
        addon.sweep()
        before.policies = policies(tmp_path, POLICY + "# another revision\n")
        addon.sweep()
        live.send(b"two\n")
        await answer.until(lambda a: b"two" in a.body)  # nothing else is masked, so it goes on
        before.policies = policies(tmp_path, MORE)
        addon.sweep()
        await answer.until(lambda a: a.ended.is_set())
        assert answer.reset is not None

    await through(live, test, identity=PERSON)


# ----- getting ready -----


async def test_a_request_waits_for_the_patterns(addon, tmp_path, monkeypatch):
    ready = asyncio.Event()
    addon.warming = asyncio.create_task(ready.wait())
    flow = a_flow(tmp_path)
    waiting = asyncio.ensure_future(addon.request(flow))
    await asyncio.sleep(0)
    assert not addon.prepared()
    assert not facts.of(flow).passed
    ready.set()
    await waiting
    assert addon.prepared()
    assert ("tollgate_mask", "request") in facts.of(flow).passed


async def test_patterns_that_do_not_come(addon, tmp_path, monkeypatch):
    monkeypatch.setattr(mask, "WARM_LIMIT", 0.01)
    addon.warming = asyncio.create_task(asyncio.Event().wait())
    flow = a_flow(tmp_path)
    await addon.request(flow)
    assert flow.response.headers["Tollgate-Reason"] == "mask-starting"
    assert not facts.of(flow).passed
    addon.warming.cancel()


@pytest.mark.parametrize("hook", ["response", "error"])
async def test_a_stream_that_is_over_is_not_kept(addon, tmp_path, hook):
    """What turns its chunks holds the flow, and what is known of the flow holds that."""
    flow = a_flow(tmp_path)
    flow.response = http.Response.make(200)
    facts.of(flow).chunks = lambda chunk: [chunk, flow]
    getattr(addon, hook)(flow)
    assert facts.of(flow).chunks is None
