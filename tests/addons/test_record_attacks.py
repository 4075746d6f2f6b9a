"""What an agent tries on the recorder: a secret in it, an act without it, everybody refused by it."""

import asyncio
import json
from dataclasses import replace

import pytest
from mitmproxy import flow as mitmflow
from mitmproxy import websocket

from addons import record
from addons.core import auditevents, classify, facts
from addons.net.recordfiles import RecorderError
from tests import canaries
from tests.addons import test_record
from tests.addons.test_record import CONFIG, NS, STAMP, TOKEN, a_flow, ask, events, files, frame, respond

addon, policies, executing = test_record.addon, test_record.policies, test_record.executing
JWT = canaries.JWT


# A secret in it


def header(name, value):
    return lambda flow: flow.request.headers.add(name, value)


def in_close(flow):
    flow.websocket = websocket.WebSocketData(close_reason=f"bye {TOKEN}", close_code=1000, closed_by_client=True)


@pytest.mark.parametrize(
    "put",
    [
        pytest.param(header("x-anything", f"a {TOKEN}"), id="a header"),
        pytest.param(header(f"x-{TOKEN}", "1"), id="a header's name"),
        pytest.param(header("user-agent", f"kubectl/{TOKEN}"), id="the User-Agent"),
        pytest.param(header("host", f"{TOKEN}.example"), id="the Host"),
        pytest.param(header("accept", f"application/json;as={TOKEN}"), id="Accept"),
        pytest.param(lambda flow: setattr(flow.request, "authority", f"{TOKEN}.example"), id="the :authority"),
        pytest.param(lambda flow: setattr(flow.request.data, "host", f"{TOKEN}.example"), id="the host"),
        pytest.param(lambda flow: setattr(flow.client_conn, "sni", f"{TOKEN}.example"), id="the TLS server name"),
        pytest.param(lambda flow: setattr(flow.client_conn, "alpn_offers", [b"h2", TOKEN.encode()]), id="ALPN"),
        pytest.param(lambda flow: setattr(flow, "error", mitmflow.Error(f"bad header {TOKEN}")), id="an error"),
        pytest.param(lambda flow: setattr(flow.client_conn, "error", f"bad header {TOKEN}"), id="a connection's error"),
        pytest.param(lambda flow: setattr(flow, "comment", TOKEN), id="a comment"),
        pytest.param(in_close, id="a close frame"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_secret_of_the_way_it_came(addon, policies, put, method):
    flow = a_flow(policies, method, f"{NS}/configmaps", CONFIG if method == "POST" else None)
    put(flow)
    assert STAMP in (await ask(addon, flow)).passed
    await respond(addon, flow)
    assert await events(addon)
    assert canaries.seen_in(files(addon), [TOKEN.encode()]) == []


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(f"{NS}/configmaps/{TOKEN}", id="a name"),
        pytest.param(f"/api/v1/namespaces/{TOKEN}/configmaps/a", id="a namespace"),
        pytest.param(f"/apis/{TOKEN}/v1/things/a", id="a group"),
        pytest.param(f"/api/v1/{TOKEN}/a", id="a resource"),
        pytest.param(f"/healthz/{TOKEN}", id="no resource"),
        pytest.param(f"{NS}/configmaps?{TOKEN}=1", id="a parameter's name"),
        pytest.param(f"{NS}/configmaps?labelSelector=a%3D{TOKEN}", id="a selector"),
        pytest.param(f"{NS}/configmaps?fieldSelector=metadata.name%3D{TOKEN}", id="a field selector"),
        pytest.param(f"{NS}/configmaps?x=%67hp_{TOKEN[4:]}", id="escaped letters"),
        pytest.param(f"{NS}/configmaps?fieldManager={TOKEN}", id="a field manager"),
        pytest.param(f"{NS}/configmaps?continue={TOKEN}&x&=&&a=", id="odd pairs"),
        pytest.param(f"{NS}/pods/web/proxy/login/{TOKEN}?a={TOKEN}", id="a path behind a proxy"),
        pytest.param(f"{NS}/pods/web/log?container={TOKEN}", id="a container"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_no_secret_of_a_target(addon, policies, path, method):
    flow = a_flow(policies, method, path)
    await ask(addon, flow)
    await respond(addon, flow, 404)
    assert await events(addon)
    assert canaries.seen_in(files(addon), [TOKEN.encode()]) == []


@pytest.mark.parametrize("name", ["kubectl-command", "kubectl-session"])
async def test_no_secret_of_what_kubectl_says_of_itself(addon, policies, name):
    flow = a_flow(policies, body=CONFIG)
    flow.request.headers[name] = f"create --from-literal=a={TOKEN}"
    flow.request.headers.setdefault("kubectl-command", "kubectl create")
    known = facts.of(flow)
    known.operation = classify.classify_raw(
        "POST", flow.request.path, flow.request.headers.fields, flow.request.content
    )
    await ask(addon, flow)
    await respond(addon, flow)
    assert canaries.seen_in(files(addon), [TOKEN.encode()]) == []


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"kind": "ConfigMap", "metadata": {"name": TOKEN}}, id="name"),
        pytest.param({"kind": "ConfigMap", "metadata": {"generateName": TOKEN}}, id="generateName"),
        pytest.param({"kind": "ConfigMap", "metadata": {"name": "a", "labels": {"a": TOKEN}}}, id="a label"),
        pytest.param({"kind": "ConfigMap", "metadata": {"name": "a", "labels": {TOKEN: "a"}}}, id="a label's key"),
        pytest.param(
            {"kind": "ConfigMap", "metadata": {"name": "a", "annotations": {TOKEN: "a"}}}, id="annotation key"
        ),
        pytest.param({"kind": TOKEN, "metadata": {"name": "a"}}, id="a kind"),
        pytest.param({"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {TOKEN: "a"}}, id="a key of data"),
        pytest.param({"kind": "ConfigMap", "metadata": {"name": "a"}, TOKEN: {"b": [{TOKEN: 1}]}}, id="unknown fields"),
        pytest.param({"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": JWT}}, id="a token in data"),
    ],
)
async def test_no_secret_of_a_body(addon, policies, body):
    flow = a_flow(policies, body=body, verdict=replace(facts.of(a_flow(policies)).verdict, record="full"))
    await ask(addon, flow)
    await respond(addon, flow, 201, json.dumps(body).encode())
    assert canaries.seen_in(files(addon), [TOKEN.encode(), JWT.encode()]) == []


# An act without it


async def test_an_exec_of_who_is_over_the_quota_ends(addon, executing, monkeypatch):
    """It began within its quota; what is executed later would be on no record."""
    cuts = []
    monkeypatch.setattr(record.cutting, "cut", lambda flow, refusal: cuts.append(refusal))
    assert frame(addon, executing, b"\0ls\n", from_client=True)
    await addon.recorder.checkpoint()
    addon.recorder.settings = replace(addon.recorder.settings, quota=1)
    frame(addon, executing, b"\0rm -rf /\n", from_client=True)
    await addon.recorder.checkpoint()
    assert not frame(addon, executing, b"\0rm -rf /home\n", from_client=True)
    assert cuts == [record.STREAM_NOT_RECORDED]


async def test_an_exec_whose_piece_was_lost_ends_though_the_disk_is_well_again(addon, executing, monkeypatch):
    cuts = []
    monkeypatch.setattr(record.cutting, "cut", lambda flow, refusal: cuts.append(refusal))
    monkeypatch.setattr(record.Recorder, "_append_all", full)
    frame(addon, executing, b"\0rm -rf /\n", from_client=True)
    await addon.recorder.checkpoint()
    monkeypatch.undo()
    monkeypatch.setattr(record.cutting, "cut", lambda flow, refusal: cuts.append(refusal))
    addon.recorder.trouble = ""
    assert not frame(addon, executing, b"\0rm -rf /home\n", from_client=True)
    assert cuts == [record.STREAM_NOT_RECORDED]


def full(*_):
    raise OSError(28, "no space left")


@pytest.mark.parametrize("bound", [{"quota": 1}, {"reserve": 2**60}], ids=["quota", "reserve"])
async def test_strict_refuses_reads_of_which_there_is_no_room_for_a_record(addon, policies, bound):
    addon.context.configure(addon, tollgate_record_strict=True)
    before = addon.recorder.settings
    addon.recorder.settings = replace(before, **bound)
    codes = []
    for _ in range(2):
        flow = a_flow(policies, "GET", f"{NS}/configmaps/a")
        await ask(addon, flow)
        codes.append(STAMP in facts.of(flow).passed)
        if codes[-1]:
            await respond(addon, flow)
        else:
            addon.response(flow)
        await addon.recorder.checkpoint()
    assert codes == [True, False]  # the first is what shows it
    addon.recorder.settings = before
    await ask(addon, flow := a_flow(policies, "GET", f"{NS}/configmaps/a"))
    addon.response(flow)  # refused for what was known then; its own record is what shows that there is room
    await addon.recorder.checkpoint()
    flow = a_flow(policies, "GET", f"{NS}/configmaps/a")
    assert STAMP in (await ask(addon, flow)).passed


async def test_a_read_whose_record_fails_is_counted(addon, policies, monkeypatch):
    flow = a_flow(policies, "GET", f"{NS}/configmaps/a")
    await ask(addon, flow)
    with monkeypatch.context() as patched:
        patched.setattr(record.recordable, "uri", test_record.raising)
        await respond(addon, flow)
    flow = a_flow(policies, "GET", f"{NS}/configmaps/a")
    await ask(addon, flow)
    await respond(addon, flow)
    (event,) = await events(addon)
    assert auditevents.notes_of(event)[auditevents.LOST] == "1"


# Everybody refused by it


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"metadata": {"name": "\\u0000\\r\\n\\u2028\\u001b[2J"}}', id="control characters"),
        pytest.param('{"metadata": {"name": "%s"}}' % ("a" * 100_000), id="a long name"),
    ],
)
async def test_one_bad_record_is_nobody_elses_misfortune(addon, policies, body):
    flow = a_flow(policies, body=CONFIG)
    flow.request.content = body.encode()
    fields = flow.request.headers.fields
    facts.of(flow).operation = classify.classify_raw("POST", flow.request.path, fields, body.encode())
    others = [a_flow(policies, body=CONFIG) for _ in range(20)]
    await asyncio.gather(ask(addon, flow), *(ask(addon, other) for other in others))
    assert all(STAMP in facts.of(other).passed for other in others)
    assert addon.recorder.trouble == ""
    for line in next(addon.recorder.settings.folder.rglob("events.jsonl")).read_bytes().splitlines():
        json.loads(line)


async def test_one_identity_cannot_stop_the_stream_of_another(addon, executing, policies, monkeypatch):
    """A file of its own that fails (a name, a link) is not the disk of all."""
    other = replace(test_record.AGENT, username="other")
    real = record.Recorder._session

    def refuses(self, username, now):
        if username == "other":
            raise RecorderError("no")
        return real(self, username, now)

    monkeypatch.setattr(record.Recorder, "_session", refuses)
    flow = a_flow(policies, body=CONFIG, identity=other)
    assert STAMP not in (await ask(addon, flow)).passed
    assert frame(addon, executing, b"\0ls\n", from_client=True)


@pytest.mark.parametrize("channel", [1, 2, 3, 4, 255])
async def test_no_secret_of_a_frame_that_types_nothing(addon, executing, channel):
    """The API server ignores what it cannot read of these; so do players, but it would be in the file."""
    frame(addon, executing, bytes([channel]) + TOKEN.encode(), from_client=True)
    assert frame(addon, executing, b'\4{"Width":100,"Height":30}', from_client=True) or channel != 4
    addon.websocket_end(executing)
    await events(addon)
    assert canaries.seen_in(files(addon), [TOKEN.encode()]) == []


async def test_a_stream_whose_file_is_gone_ends(addon, executing, monkeypatch):
    """Another session began meanwhile: an asciicast without its beginning shows nothing."""
    cuts = []
    monkeypatch.setattr(record.cutting, "cut", lambda flow, refusal: cuts.append(refusal))
    await addon.recorder.checkpoint()
    addon.recorder._sessions.clear()
    frame(addon, executing, b"\0ls\n", from_client=True)
    await addon.recorder.checkpoint()
    assert not frame(addon, executing, b"\0ls\n", from_client=True)
    assert cuts == [record.STREAM_NOT_RECORDED]


async def test_a_stream_that_says_nothing_any_more_is_ended_as_well(addon, executing, monkeypatch):
    cut = asyncio.Event()
    monkeypatch.setattr(record.cutting, "cut", lambda flow, refusal: cut.set())
    monkeypatch.setattr(record, "SWEEP", 0.01)
    addon.sweeper.cancel()
    addon.exchanges[executing].lose()
    addon.sweeper = asyncio.get_running_loop().create_task(addon.keep_sweeping())
    await asyncio.wait_for(cut.wait(), 5)
