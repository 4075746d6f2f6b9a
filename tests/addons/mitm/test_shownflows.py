import base64
import gzip
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http, websocket
from mitmproxy.io import FlowWriter
from mitmproxy.test import tflow
from wsproto.frame_protocol import Opcode

from addons.core import classify, facts, masking
from addons.core.model import Action, Verdict
from addons.core.policy import DENY_ALL
from addons.mitm import flowcopies, recordcopies, seal, shownflows
from tests import canaries

PATH = "/api/v1/namespaces/shop/secrets/db"
PASSWORD = canaries.VALUES["plain word"]
TOKEN = canaries.TEXTS["github token"]
SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "db"},
    "data": {"password": base64.b64encode(PASSWORD).decode()},
}


@pytest.fixture(autouse=True)
def ready():
    shownflows.use_key(bytes(range(32)))


def a_flow(method="PUT", path=PATH, body=SECRET, *, live=True, content_type="application/json") -> http.HTTPFlow:
    flow = tflow.tflow(resp=True)
    flow.live = live
    flow.request.method, flow.request.path = method, path
    flow.request.headers["content-type"] = flow.response.headers["content-type"] = content_type
    flow.request.content = flow.response.content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return flow


def judged(flow):
    known = facts.of(flow)
    known.operation = classify.classify_raw(
        flow.request.method,
        flow.request.path,
        flow.request.headers.fields,
        flow.request.raw_content,
        own_namespace="tollgate",
    )
    known.policies = lambda: DENY_ALL  # somebody was asked
    seal.put(flow)
    return known


def dumped(flow) -> bytes:
    state = json.dumps(flow.get_state(), default=lambda v: v.decode("latin-1") if isinstance(v, bytes) else str(v))
    out = io.BytesIO()
    FlowWriter(out).add(flow)
    return out.getvalue() + state.encode()


def clean(flow, *values):
    assert canaries.seen_in(dumped(flow), values or [PASSWORD, TOKEN.encode()]) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(PATH, SECRET, id="by the URL"),
        pytest.param(f"/k8s/clusters/c-1{PATH}", SECRET, id="below a path of the server's"),
        pytest.param("/elsewhere", SECRET, id="by its own word where the URL says nothing"),
        pytest.param("/elsewhere", {"apiVersion": "v1", "kind": "SecretList", "items": [SECRET]}, id="a list of them"),
        pytest.param(PATH, PASSWORD, id="no form that anybody reads"),
        pytest.param(PATH, gzip.compress(json.dumps(SECRET).encode()), id="packed and not said so"),
        pytest.param(f"/api/v1/pods?token={TOKEN}", {}, id="in the path"),
        pytest.param("/version", f"x token={TOKEN}".encode(), id="text"),
    ],
)
@pytest.mark.parametrize("live", [True, False])
def test_a_flow_without_facts(path, body, live):
    flow = a_flow(path=path, body=body, live=live)
    clean(shownflows.shown(flow))
    assert flow.request.path == path


def test_a_packed_answer():
    flow = a_flow()
    flow.response.headers["content-encoding"] = "gzip"
    flow.response.content = json.dumps(SECRET).encode()
    copy = shownflows.shown(flow)
    clean(copy)
    assert b"**masked:" in base64.b64decode(json.loads(copy.response.content)["data"]["password"])


def test_a_judged_one():
    flow = a_flow()
    known = judged(flow)
    copy = shownflows.shown(flow)
    clean(copy)
    assert (copy.id, copy.comment, copy.marked) == (flow.id, "replace secret shop/db", "")  # not decided yet
    known.verdict = Verdict(Action.HOLD, policy="agents", rule="ask")
    known.passed.add(("tollgate_block", "request"))
    copy = shownflows.shown(flow)
    assert (copy.comment, copy.marked) == ("replace secret shop/db [hold agents/ask]", flowcopies.MARKS["hold"])
    assert json.loads(copy.request.content)["metadata"]["name"] == "db"


def test_what_was_edited_since_is_not_taken_for_what_it_was():
    """A ConfigMap was judged, in which nothing is secret; a person made a Secret of it."""
    flow = a_flow(path="/api/v1/namespaces/shop/configmaps/db", body={"apiVersion": "v1", "kind": "ConfigMap"})
    judged(flow)
    assert b"ConfigMap" in shownflows.shown(flow).request.content
    flow.request.path, flow.request.content = PATH, json.dumps(SECRET).encode()
    copy = shownflows.shown(flow)
    clean(copy)
    assert b"Secret" in copy.request.content


def test_the_withheld_answer_is_shown_masked_and_not_the_placeholder():
    flow = a_flow()
    known = judged(flow)
    known.answer, flow.response = flow.response, http.Response.make(502, b"placeholder")
    copy = shownflows.shown(flow)
    clean(copy)
    assert copy.response.status_code == 200
    assert flow.response.content == b"placeholder"


def test_what_is_made_once_is_kept_until_something_changes():
    flow = a_flow()
    first = shownflows.shown(flow)
    assert shownflows.shown(flow) is first
    assert shownflows.shown(first) is first
    flow.request.headers["x"] = "y"
    assert shownflows.shown(flow) is not first


def test_frames_of_a_stream_that_goes_on_are_not_shown():
    flow = a_flow()
    flow.websocket = websocket.WebSocketData()
    flow.websocket.messages = [websocket.WebSocketMessage(Opcode.BINARY, False, b"\1" + PASSWORD)]
    copy = shownflows.shown(flow)
    assert copy.websocket.messages == []
    clean(copy)


def test_raw_bytes_are_not_shown():
    flow = tflow.ttcpflow(err=True)
    flow.messages[0].content = PASSWORD
    flow.error.msg = f"token={TOKEN}"
    copy = shownflows.shown(flow)
    assert (copy.id, copy.messages) == (flow.id, [])
    clean(copy)


def test_texts_beside_the_body():
    flow = a_flow()
    flow.comment, flow.metadata["x"] = f"token={TOKEN}", TOKEN
    flow.request.headers["authorization"] = f"Bearer {TOKEN}"
    flow.response.headers["warning"] = f'299 - "token={TOKEN}"'
    flow.request.trailers = http.Headers(x=TOKEN)
    flow.backup()
    clean(shownflows.shown(flow))


def test_a_large_body_is_not_masked_while_everybody_waits(monkeypatch):
    monkeypatch.setattr(masking, "mask", lambda *_, **__: pytest.fail("masked"))
    flow = a_flow(body=b'{"a": "' + b"x" * shownflows.LARGE + b'"}')
    copy = shownflows.shown(flow)
    assert (copy.request.content, copy.response.content) == (b"", b"")


@pytest.mark.parametrize("flow", [pytest.param(a_flow(), id="http"), pytest.param(tflow.ttcpflow(), id="tcp")])
def test_what_cannot_be_masked_is_not_shown(monkeypatch, flow):
    def broken(*_, **__):
        raise RuntimeError(PASSWORD.decode())

    monkeypatch.setattr(shownflows, "_http", broken)
    monkeypatch.setattr(shownflows, "_other", broken)
    copy = shownflows.shown(flow)
    assert copy is not flow
    assert copy.id == flow.id
    clean(copy)


def test_the_end_is_the_recorders_copy_with_the_bodies_that_it_leaves_out():
    flow = a_flow("GET")
    flow.request.content = b""
    judged(flow)
    parts = recordcopies.Parts("/as-recorded", masking.Place("secrets"), bytes(range(32)))
    recordcopies.want()
    recordcopies.hand_out(flow, flowcopies.serialise(flow, parts).data)
    copy = shownflows.end(flow)
    assert (copy.request.path, copy.id) == ("/as-recorded", flow.id)
    assert json.loads(copy.response.content)["kind"] == "Secret"
    clean(copy)
    assert shownflows.shown(flow) is copy


def test_a_copy_that_runs_again_is_none():
    copy = shownflows.end(a_flow())
    assert shownflows.shown(copy) is copy
    shownflows.forget(copy)
    copy.response = a_flow().response
    clean(shownflows.shown(copy))


def test_a_copy_that_is_live_is_none():
    """mitmproxy makes it so when it is replayed, before any hook."""
    copy = shownflows.end(a_flow())
    copy.live = True
    copy.response = a_flow().response
    clean(shownflows.shown(copy))


def test_in_place():
    flow = a_flow(live=False)
    flow.metadata = {flowcopies.METADATA: {"verdict": "hold", "summary": f"x --token={TOKEN}", "rule": "r"}}
    flow.backup()
    shownflows.mask_in_place(flow)
    clean(flow)
    assert flow.marked == flowcopies.MARKS["hold"]
    assert flow.comment.endswith("[hold /r]")
    assert shownflows.shown(flow) is flow


def test_facts():
    flow = a_flow()
    assert shownflows.facts_of(flow) == {}
    known = judged(flow)
    known.audit_id, known.held_for, known.edited = "a-1", "apr-1", True
    told = shownflows.facts_of(flow)
    assert told["audit-id"] == "a-1"
    assert "reveal" in told["impact"] or "update" in told["impact"]
    assert (told["waits for"], "by hand" in told["edited"]) == ("apr-1", True)
    copy = shownflows.end(flow)
    assert shownflows.facts_of(copy) == told
    assert facts.of(copy).operation is None  # what is shown is never what is decided by


def test_a_line():
    assert shownflows.line("GET /x") == "GET /x"
    assert TOKEN not in shownflows.line(f"token={TOKEN}")
    assert len(shownflows.line("x " * 100_000)) < 2 * shownflows.MAX_LINE


def test_a_line_before_the_patterns_are_ready(monkeypatch):
    monkeypatch.setattr(shownflows, "_ready", False)
    assert TOKEN not in shownflows.line(f"token={TOKEN}")


def test_a_line_that_cannot_be_masked(monkeypatch):
    def broken(*_):
        raise RuntimeError

    monkeypatch.setattr(masking, "mask_text", broken)
    assert PASSWORD.decode() not in shownflows.line(PASSWORD.decode())


@given(st.binary(max_size=40), st.text(max_size=20), st.sampled_from([PATH, "/", "/apis/x", "*", "/api/v1/%zz?a=%"]))
def test_whatever_comes_there_is_something_to_show(body, content_type, path):
    flow = a_flow(path=path, body=body)
    flow.request.headers["content-type"] = (
        content_type.encode("utf-8", "surrogatepass").decode("latin-1").strip("\r\n\0")
    )
    assert shownflows.shown(flow) is not flow
