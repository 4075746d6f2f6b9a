import io

from mitmproxy import flow as mitmflow
from mitmproxy import http, websocket
from mitmproxy.test import tflow
from wsproto.frame_protocol import Opcode

from addons.core.masktags import Place
from addons.core.recordable import Content
from addons.mitm import flowcopies, recordcopies
from addons.mitm.recordcopies import Parts
from tests import canaries

TOKEN = canaries.VALUES["github token"].decode()
KEY = bytes(range(32))


def written(flow, **parts):
    copy = flowcopies.serialise(flow, Parts(path="/shown", place=Place("pods"), key=KEY, **parts), summary={})
    (found,) = flowcopies.read(io.BytesIO(copy.data))
    return found, copy.data


def test_nothing_of_the_flow_but_the_parts():
    flow = tflow.tflow(resp=True)
    flow.request.content, flow.response.content = b"secret body", b"secret answer"
    flow.request.path = f"/x?token={TOKEN}"
    found, data = written(
        flow,
        request=Content(b'{"a":1}', {"a": 1}, "application/json"),
        answer=Content(b'{"b":2}', {"b": 2}, "application/json"),
    )
    assert (found.request.path, found.request.content, found.response.content) == ("/shown", b'{"a":1}', b'{"b":2}')
    assert found.request.headers["content-length"] == "7"
    assert b"secret" not in data
    assert TOKEN.encode() not in data
    assert flow.request.content == b"secret body"


def test_without_parts_there_are_no_bodies():
    flow = tflow.tflow(resp=True)
    flow.response.headers["content-encoding"] = "gzip"
    found, _ = written(flow)
    assert (found.request.content, found.response.content) == (b"", b"")
    assert "content-encoding" not in found.response.headers


def test_headers_are_searched():
    flow = tflow.tflow(resp=True)
    flow.response.headers["warning"] = f'299 - "found {TOKEN}"'
    flow.response.trailers = http.Headers(x=TOKEN)
    found, data = written(flow)
    assert TOKEN.encode() not in data
    assert "**masked:" in found.response.headers["warning"]


def test_frames_are_those_of_the_record():
    flow = tflow.tflow(resp=True)
    flow.websocket = websocket.WebSocketData()
    flow.websocket.messages = [websocket.WebSocketMessage(Opcode.BINARY, False, TOKEN.encode())]
    found, data = written(flow, frames=((True, b"\0ls\n", 1.5),))
    assert [(m.from_client, m.content, m.timestamp) for m in found.websocket.messages] == [(True, b"\0ls\n", 1.5)]
    assert TOKEN.encode() not in data


def test_comment_and_error_are_searched():
    flow = tflow.tflow(err=True)
    flow.comment, flow.error.msg = f"token={TOKEN}", f"dial tcp: token={TOKEN}"
    found, data = written(flow)
    assert TOKEN.encode() not in data
    assert found.error.msg.startswith("dial tcp: ")


def test_nothing_is_kept_where_nobody_shows_flows(monkeypatch):
    monkeypatch.setattr(recordcopies, "_handed", None)
    flow = tflow.tflow()
    recordcopies.hand_out(flow, b"x")
    assert recordcopies.take(flow) == b""
    recordcopies.want()
    recordcopies.hand_out(flow, b"x")
    assert (recordcopies.take(flow), recordcopies.take(flow)) == (b"x", b"")


def test_all_beside_headers_and_bodies_is_searched():
    flow = tflow.tflow(resp=True)
    flow.response.headers[f"x-{TOKEN}"] = "1"
    flow.request.authority = flow.request.data.host = f"{TOKEN}.example"
    flow.response.reason = flow.comment = TOKEN
    flow.error = mitmflow.Error(TOKEN)
    flow.websocket = websocket.WebSocketData(close_reason=TOKEN)
    found, data = written(flow)
    assert TOKEN.encode() not in data
    assert found.request.method == "GET"
    assert flow.comment == flow.error.msg == flow.websocket.close_reason == TOKEN  # the exchange itself is left alone


def test_only_headers_that_go_upstream():
    flow = tflow.tflow()
    flow.request.headers = http.Headers(x_api_key="hunter2 is it", accept="application/json", impersonate_user="agent")
    found, data = written(flow)
    assert b"hunter2" not in data
    assert sorted(name.lower() for name in found.request.headers) == ["accept", "impersonate-user"]
