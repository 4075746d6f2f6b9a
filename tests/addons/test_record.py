"""The addon with a real recorder and its own hooks. With kubectl and a real API server: tests/e2e/test_recording.py."""

import json
from dataclasses import replace

import pytest
from mitmproxy import connection, http, websocket
from mitmproxy import flow as mitmflow
from mitmproxy.exceptions import OptionsError
from mitmproxy.test import taddons, tflow, tutils
from wsproto.frame_protocol import Opcode

from addons import record
from addons.core import auditevents, classify, facts, policyfile
from addons.core.model import Action, Identity, Verdict
from addons.mitm import answers, flowcopies, meters, recordcopies, seal
from addons.net import recordings
from addons.net.recordfiles import RecorderError
from tests import canaries

AGENT = Identity("agent", credential_id="jti-1")
POLICY = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: p}
people: '"people" in identity.groups'
rules:
- {name: all, action: allow, match: {verbs: ["*"], resources: ["*", "*/*"]}}
"""
NS = "/api/v1/namespaces/shop"
TOKEN = canaries.VALUES["github token"].decode()
SECRET = b"correct-horse-battery-9"
STAMP = ("tollgate_record", "request")


@pytest.fixture
def policies(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(POLICY)
    return policyfile.load([file])


@pytest.fixture
async def addon(tmp_path, monkeypatch):
    monkeypatch.setattr(record.maskpatterns, "warm", lambda state: None)  # compiled once for all tests is enough
    one = record.RecordAddon()
    with taddons.context(one, loadcore=False) as context:
        context.configure(
            one,
            tollgate_recordings=str(tmp_path / "recordings"),
            tollgate_state=str(tmp_path / "state"),
            tollgate_record_reserve="0",
        )
        one.server = None  # there is none here to read before-images from
        one.running()
        await one.warming
        one.context = context
        yield one
        ended = one.done()
        if ended is not None:
            await ended


def a_flow(policies, method="POST", path=f"{NS}/configmaps", body=None, identity=AGENT, verdict=None):
    content = json.dumps(body).encode() if body is not None else b""
    headers = http.Headers(content_type="application/json") if content else http.Headers()
    flow = tflow.tflow(req=tutils.treq(method=method.encode(), path=path.encode(), headers=headers, content=content))
    known = facts.of(flow)
    known.operation = classify.classify_raw(method, path, headers.fields, content)
    known.identity, known.policies = identity, lambda: policies
    known.verdict = verdict or Verdict(Action.ALLOW, "all", "p")
    return flow


async def ask(addon, flow):
    waiting = addon.request(flow)
    if waiting is not None:
        await waiting
    return facts.of(flow)


def released(flow, code=200, body=b"", content_type="application/json"):
    known = facts.of(flow)
    known.released, known.head_released = True, True
    flow.response = http.Response.make(code, body, {"content-type": content_type})
    return known


async def respond(addon, flow, code=200, body=b"", content_type="application/json"):
    """The way back as the guard makes it: the answer is withheld while the hooks run."""
    known = released(flow, code, body, content_type)
    addon.responseheaders(flow)
    if known.whole:
        known.answer, flow.response = flow.response, http.Response.make(502)
    waiting = addon.response(flow)
    if waiting is not None:
        await waiting
    return known


async def events(addon):
    await addon.recorder.checkpoint()
    found = []
    for folder in recordings.collect([addon.recorder.settings.folder]):
        found += recordings.read_events(folder).events
    return found


def files(addon):
    paths = [path for path in addon.recorder.settings.folder.rglob("*") if path.is_file()]
    return b"".join(path.read_bytes() for path in sorted(paths))


CONFIG = {"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "y"}}


async def test_what_changes_is_on_disk_before_it_is_stamped(addon, policies):
    flow = a_flow(policies, body=CONFIG)
    known = await ask(addon, flow)
    assert known.passed == {STAMP}
    (event,) = recordings.read_events(recordings.collect([addon.recorder.settings.folder])[0]).events
    assert (event["stage"], event["auditID"]) == ("RequestReceived", known.audit_id)
    assert event["requestObject"] == CONFIG
    assert auditevents.notes_of(event)[auditevents.CREDENTIAL] == "jti-1"


async def test_the_id_that_approve_chose_stays(addon, policies):
    flow = a_flow(policies, body=CONFIG)
    facts.of(flow).audit_id = "spent-under"
    await ask(addon, flow)
    assert facts.of(flow).audit_id == "spent-under"


@pytest.mark.parametrize(
    "breaks",
    [
        pytest.param(lambda a, m: setattr(a, "recorder", None), id="no recorder"),
        pytest.param(lambda a, m: m.setattr(a.recorder, "write", failing(RecorderError("full"))), id="a full disk"),
        pytest.param(lambda a, m: m.setattr(record.recordable, "request", raising), id="a mask that fails"),
        pytest.param(lambda a, m: m.setattr(flowcopies, "serialise", raising), id="a copy that fails"),
    ],
)
async def test_no_record_no_request(addon, policies, monkeypatch, breaks):
    kept = addon.recorder
    breaks(addon, monkeypatch)
    flow = a_flow(policies, body=CONFIG)
    known = await ask(addon, flow)
    addon.recorder = kept
    assert (known.passed, flow.response.status_code) == (set(), 503)
    assert flow.response.headers["Tollgate-Reason"] == "not-recorded"


def failing(error):
    async def write(*_, **__):
        raise error

    return write


def raising(*_, **__):
    raise ValueError(SECRET.decode())


async def test_what_failed_is_not_quoted(addon, policies, monkeypatch, caplog):
    monkeypatch.setattr(record.recordable, "request", raising)
    await ask(addon, a_flow(policies, body=CONFIG))
    assert SECRET.decode() not in caplog.text


@pytest.mark.parametrize(
    ("strict", "trouble", "passes"),
    [
        pytest.param(False, "full", True, id="reads pass"),
        pytest.param(True, "full", False, id="by option they do not"),
        pytest.param(True, "", True, id="nothing is wrong"),
    ],
)
async def test_reads_do_not_wait(addon, policies, strict, trouble, passes):
    addon.context.configure(addon, tollgate_record_strict=strict)
    addon.recorder.trouble = trouble
    flow = a_flow(policies, "GET", f"{NS}/configmaps")
    assert addon.request(flow) is None
    assert (STAMP in facts.of(flow).passed) is passes


async def test_what_was_edited_since_it_was_judged_is_refused(addon, policies):
    flow = a_flow(policies, body=CONFIG)
    seal.put(flow)
    flow.request.path = f"{NS}/secrets"
    known = await ask(addon, flow)
    assert (known.passed, flow.response.headers["Tollgate-Reason"]) == (set(), "changed-after-verdict")


async def test_the_outcome(addon, policies):
    flow = a_flow(policies, body=CONFIG)
    await ask(addon, flow)
    known = await respond(addon, flow, 201, json.dumps({**CONFIG, "new": 1}).encode())
    assert {(addon.name, "responseheaders"), (addon.name, "response")} <= known.passed
    received, complete = await events(addon)
    assert (received["auditID"], complete["stage"]) == (complete["auditID"], "ResponseComplete")
    assert complete["responseStatus"]["code"] == 201
    assert complete["responseObject"] == {**CONFIG, "new": 1}


@pytest.mark.parametrize(
    ("word", "request_there", "answer_there"),
    [("metadata", False, False), ("request", True, False), ("full", True, True), ("", True, True)],
)
async def test_levels(addon, policies, word, request_there, answer_there):
    verdict = replace(Verdict(Action.ALLOW, "all", "p"), record=word)
    flow = a_flow(policies, body=CONFIG, verdict=verdict)
    await ask(addon, flow)
    await respond(addon, flow, 201, json.dumps(CONFIG).encode())
    _, complete = await events(addon)
    assert ("requestObject" in complete, "responseObject" in complete) == (request_there, answer_there)


async def test_reads_are_metadata(addon, policies):
    flow = a_flow(policies, "GET", f"{NS}/configmaps/a")
    await ask(addon, flow)
    await respond(addon, flow, body=json.dumps(CONFIG).encode())
    (event,) = await events(addon)
    assert (event["level"], event["verb"], "responseObject" in event) == ("Metadata", "get", False)


async def test_nothing_secret(addon, policies):
    path = f"{NS}/secrets"
    secret = {"kind": "Secret", "metadata": {"name": "db"}, "stringData": {"p": SECRET.decode()}}
    flow = a_flow(policies, body=secret, path=path, verdict=replace(Verdict(Action.ALLOW, "a", "p"), record="full"))
    await ask(addon, flow)
    await respond(addon, flow, 201, json.dumps(secret).encode())
    flow = a_flow(policies, "GET", f"{NS}/pods?labelSelector=token%3D{TOKEN}")
    await ask(addon, flow)
    await respond(addon, flow)
    assert len(await events(addon)) == 3
    assert SECRET not in files(addon)
    assert TOKEN.encode() not in files(addon)


async def test_what_the_client_gets_and_what_is_recorded_are_two(addon, policies):
    """A person sees the value; the record does not."""
    flow = a_flow(policies, body=CONFIG)
    await ask(addon, flow)
    body = json.dumps({"kind": "Secret", "data": {"p": "eA=="}}).encode()
    known = await respond(addon, flow, 201, body)
    assert known.answer.raw_content == body


async def test_refused_is_on_record_with_its_reason(addon, policies):
    flow = a_flow(policies, body=CONFIG, verdict=Verdict(Action.DENY, "no", "p", message="not here"))
    answers.refuse(flow, "tollgate_block", record.NOT_RECORDED)
    addon.request(flow)
    addon.response(flow)
    (event,) = await events(addon)
    notes = auditevents.notes_of(event)
    assert (notes[auditevents.REFUSED_BY], notes[auditevents.REASON]) == ("tollgate_block", "not-recorded")
    assert (notes[auditevents.VERDICT], event["responseStatus"]["code"]) == ("deny", 503)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_has_no_answer_when_the_gateway_goes_down_is_on_record(addon, policies, method):
    """It arrived at the API server, and a read is written when it is over; nobody hears of that any more."""
    went, held = (a_flow(policies, method=method, body=CONFIG if method == "POST" else None) for _ in range(2))
    await ask(addon, went)
    await ask(addon, held)
    facts.of(went).released = True  # the other one waits for the guard still, and what waits may be refused
    folder, ids = addon.recorder.settings.folder, [facts.of(flow).audit_id for flow in (went, held)]
    addon.done()
    found = [e for one in recordings.collect([folder]) for e in recordings.read_events(one).events]
    last = [e for e in found if e["stage"] == "ResponseComplete"]
    assert [e["auditID"] for e in last] == ids[:1]
    assert last[0]["responseStatus"]["code"] == 0
    assert "went down" in auditevents.notes_of(last[0])[auditevents.ENDED]
    assert auditevents.REFUSED_BY not in auditevents.notes_of(last[0])
    # An answer that comes after all has nobody who would write it down, so it does not pass.
    known = await respond(addon, went, 200, b"{}")
    assert not known.passed & {(addon.name, "responseheaders"), (addon.name, "response")}


@pytest.mark.parametrize(
    ("live", "state", "released", "count"),
    [
        pytest.param(False, connection.ConnectionState.OPEN, True, 1, id="it is over"),
        pytest.param(True, connection.ConnectionState.CLOSED, True, 1, id="the client is gone"),
        pytest.param(True, connection.ConnectionState.OPEN, True, 0, id="it goes on"),
        pytest.param(False, connection.ConnectionState.OPEN, False, 0, id="it never went up"),
    ],
)
async def test_what_ended_and_no_hook_was_called(addon, policies, live, state, released, count):
    """An exception in a hook of another addon's: mitmproxy skips that hook of every later script."""
    flow = a_flow(policies, method="GET")
    await ask(addon, flow)
    flow.live, flow.client_conn.state = live, state
    facts.of(flow).released = released
    addon.sweep()
    addon.sweep()
    found = await events(addon) if count else []
    assert [event["auditID"] for event in found] == [facts.of(flow).audit_id] * count
    assert (flow in addon.exchanges) is (live and state is connection.ConnectionState.OPEN)


@pytest.mark.parametrize("refused", [False, True], ids=["it passed", "refused before the policies"])
async def test_where_no_policy_was_asked_the_record_has_no_verdict(addon, policies, refused):
    """A stack without block: "deny" would say that a rule forbade what went up."""
    flow = a_flow(policies, body=CONFIG, verdict=Verdict())
    known = facts.of(flow)
    known.policies = None
    if refused:
        answers.refuse(flow, "tollgate_classify", record.NOT_RECORDED)
        addon.request(flow)
        addon.response(flow)
    else:
        await ask(addon, flow)
        await respond(addon, flow, 201)
    found = await events(addon)
    assert [event["stage"] for event in found] == [*(() if refused else ("RequestReceived",)), "ResponseComplete"]
    for event in found:
        notes = auditevents.notes_of(event)
        assert not notes.keys() & {auditevents.VERDICT, auditevents.RULE, auditevents.MESSAGE}
        assert (auditevents.REFUSED_BY in notes) is refused
    assert "verdict" not in recordcopies.summary_of(known, known.operation)


async def test_who_has_no_identity_is_counted_only(addon, policies):
    for _ in range(3):
        flow = a_flow(policies, identity=None)
        answers.refuse(flow, "tollgate_authenticate", record.NOT_RECORDED)
        addon.response(flow)
    await addon.recorder.checkpoint()
    assert recordings.find_sessions(addon.recorder.settings.folder) == []
    assert addon.recorder._counts == {"not-recorded": 3}


@pytest.mark.parametrize("hook", ["responseheaders", "response"])
async def test_nobody_wrote_down_that_it_went_up(addon, policies, hook):
    flow = a_flow(policies, "GET", f"{NS}/configmaps/a")
    released(flow)
    getattr(addon, hook)(flow)
    assert not facts.of(flow).passed


async def test_a_stream_is_on_record_when_it_begins_and_when_it_breaks(addon, policies):
    flow = a_flow(policies, "GET", f"{NS}/pods?watch=true")
    await ask(addon, flow)
    released(flow)
    addon.responseheaders(flow)
    (event,) = await events(addon)
    assert event["stage"] == "ResponseStarted"
    flow.error = mitmflow.Error("the client left")
    addon.error(flow)
    event = (await events(addon))[-1]
    assert (event["stage"], auditevents.notes_of(event)[auditevents.ENDED]) == ("ResponseComplete", "the client left")
    addon.error(flow)
    assert len(await events(addon)) == 2


# exec


async def an_exec(addon, policies, query="command=sh&stdout=true"):
    """One that the API server has answered."""
    flow = a_flow(policies, "GET", f"{NS}/pods/web/exec?{query}")
    known = facts.of(flow)
    known.operation = replace(known.operation, upgrade="websocket")
    flow.request.headers["sec-websocket-protocol"] = "v4.base64.channel.k8s.io, v5.channel.k8s.io"
    await ask(addon, flow)
    released(flow, 101)
    flow.response.headers["sec-websocket-protocol"] = "v5.channel.k8s.io"
    addon.responseheaders(flow)
    addon.response(flow)
    flow.websocket = websocket.WebSocketData()
    return flow


@pytest.fixture
async def executing(addon, policies):
    return await an_exec(addon, policies)


def frame(addon, flow, content, *, from_client=False):
    known = facts.of(flow)
    known.judged = set()
    flow.websocket.messages = [websocket.WebSocketMessage(Opcode.BINARY, from_client, content, 1.0)]
    addon.websocket_message(flow)
    return addon.name in known.judged


async def cast(addon):
    await events(addon)
    (path,) = addon.recorder.settings.folder.rglob("*.cast")
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_an_exec_is_written_as_it_goes(addon, executing):
    assert frame(addon, executing, b"\0ls\n", from_client=True)
    assert frame(addon, executing, b"\1hello\n")
    header, typed, shown = await cast(addon)
    assert header["version"] == 2
    assert (typed[1:], shown[1:]) == (["i", "ls\n"], ["o", "hello\r\n"])
    addon.websocket_end(executing)
    event = (await events(addon))[-1]
    assert (event["stage"], event["responseStatus"]["code"]) == ("ResponseComplete", 101)
    assert not frame(addon, executing, b"\1after the end\n")


async def test_secrets_in_an_exec_are_masked_across_frames(addon, executing):
    for part in (b"\1PASSWORD=correct-hor", b"\1se-battery-9\n"):
        assert frame(addon, executing, part)
    assert frame(addon, executing, b"\0export TOKEN=correct-horse-battery-9\n", from_client=True)
    addon.websocket_end(executing)
    await events(addon)
    assert b"battery-9" not in files(addon)


async def test_half_a_line_is_written_after_a_moment(addon, executing, monkeypatch):
    frame(addon, executing, b"\1prompt> ")
    exchange = addon.exchanges[executing]
    addon.grow(exchange, exchange.stream.idle(2.0))
    assert "prompt" in (await cast(addon))[-1][2]


@pytest.mark.parametrize(
    "breaks",
    [
        pytest.param(lambda a: setattr(a.recorder, "trouble", "full"), id="a full disk"),
        pytest.param(lambda a: setattr(a, "recorder", None), id="no recorder"),
    ],
)
async def test_a_stream_that_cannot_be_recorded_ends(addon, executing, breaks, monkeypatch):
    cuts, kept = [], addon.recorder
    monkeypatch.setattr(record.cutting, "cut", lambda flow, refusal: cuts.append(refusal))
    breaks(addon)
    assert not frame(addon, executing, b"\0rm -rf /\n", from_client=True)
    addon.recorder = kept
    assert cuts == [record.STREAM_NOT_RECORDED]


async def test_a_frame_that_nobody_can_read_ends_it(addon, executing, monkeypatch):
    cuts = []
    monkeypatch.setattr(record.cutting, "cut", lambda flow, refusal: cuts.append(refusal))
    assert not frame(addon, executing, b"\x09what is this")
    assert cuts == [record.STREAM_NOT_RECORDED]


async def test_what_mask_splits_is_recorded_once(addon, executing):
    facts.of(executing).instead = [b"\1a\n", b"\1b\n"]
    assert frame(addon, executing, b"\1ab\n")
    assert len(await cast(addon)) == 1


@pytest.mark.parametrize("protocols", ["v4.base64.channel.k8s.io, base64.channel.k8s.io", "channel.k8s.io", ""])
async def test_an_exec_that_nobody_could_record_is_refused(addon, policies, protocols):
    flow = a_flow(policies, "GET", f"{NS}/pods/web/exec?command=sh")
    known = facts.of(flow)
    known.operation = replace(known.operation, upgrade="websocket")
    if protocols:
        flow.request.headers["sec-websocket-protocol"] = protocols
    await ask(addon, flow)
    assert (known.passed, flow.response.headers["Tollgate-Reason"]) == (set(), "subprotocol-not-recorded")


async def test_only_protocols_that_are_recorded_are_offered(addon, executing):
    assert executing.request.headers["sec-websocket-protocol"] == "v5.channel.k8s.io"
    assert not seal.is_broken(executing)


async def test_a_protocol_that_nobody_offered_goes_no_further(addon, policies):
    flow = a_flow(policies, "GET", f"{NS}/pods/web/exec?command=sh")
    known = facts.of(flow)
    known.operation = replace(known.operation, upgrade="websocket")
    flow.request.headers["sec-websocket-protocol"] = "v5.channel.k8s.io"
    await ask(addon, flow)
    released(flow, 101)
    flow.response.headers["sec-websocket-protocol"] = "base64.channel.k8s.io"
    addon.responseheaders(flow)
    assert known.answer_refusal is record.UNREADABLE_PROTOCOL


async def test_what_is_typed_at_a_terminal_is_not_kept(addon, policies):
    flow = await an_exec(addon, policies, "command=sh&tty=true")
    assert frame(addon, flow, b"\0hunter2\n", from_client=True)
    assert frame(addon, flow, b"\1welcome\n")
    addon.websocket_end(flow)
    await events(addon)
    assert b"hunter2" not in files(addon)
    assert b"welcome" in files(addon)


async def test_spdy_is_told_with_what_is_missing(addon, policies):
    flow = a_flow(policies, "POST", f"{NS}/pods/web/exec?command=sh")
    known = facts.of(flow)
    known.operation = replace(known.operation, upgrade="spdy")
    await ask(addon, flow)
    await respond(addon, flow, 101)
    event = (await events(addon))[-1]
    assert event["stage"] == "ResponseComplete"
    assert "not recorded" in auditevents.notes_of(event)[auditevents.TRUNCATED]


async def test_who_leaves_while_he_waits_is_on_record(addon, policies):
    flow = a_flow(policies, body=CONFIG, verdict=Verdict(Action.HOLD, "ask", "p"))
    flow.error = mitmflow.Error("the client left")
    addon.error(flow)
    (event,) = await events(addon)
    notes = auditevents.notes_of(event)
    assert (notes[auditevents.VERDICT], notes[auditevents.ENDED]) == ("hold", "the client left")
    addon.error(flow)
    assert len(await events(addon)) == 1


# The process


async def test_the_recorder_is_not_changed_while_it_runs(addon, tmp_path):
    with pytest.raises(OptionsError, match="restart"):
        addon.context.configure(addon, tollgate_recordings=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("option", "value"),
    [("tollgate_record_rotate", "much"), ("tollgate_ship", ["ftp://x"]), ("tollgate_record_key", "/nowhere/key.pem")],
)
async def test_options_that_cannot_be(tmp_path, option, value):
    one = record.RecordAddon()
    with taddons.context(one, loadcore=False) as context, pytest.raises(OptionsError, match="tollgate_recordings: "):
        context.configure(
            one, tollgate_recordings=str(tmp_path / "r"), tollgate_state=str(tmp_path / "s"), **{option: value}
        )


async def test_two_on_one_folder(addon):
    other = record.RecordAddon()
    with taddons.context(other, loadcore=False) as context, pytest.raises(OptionsError, match="recordings"):
        context.configure(other, tollgate_recordings=str(addon.recorder.settings.folder))


async def test_all_is_closed_at_the_end(addon, policies):
    await ask(addon, a_flow(policies, body=CONFIG))
    folder = addon.recorder.settings.folder
    addon.done()
    (session,) = recordings.find_sessions(folder)
    assert json.loads((folder / session / "session.json").read_text())["closed"] is True


async def test_what_it_tells_those_who_measure(addon, monkeypatch):
    assert dict(meters.sources())[addon.name] == addon.readings
    monkeypatch.setattr(type(addon.recorder), "lag", 3.5)
    monkeypatch.setattr(type(addon.recorder), "waiting", 2)
    addon.recorder.trouble = "the disk is full"
    assert addon.readings() == [
        ("record_lag_seconds", (), 3.5), ("records_waiting", (), 2), ("record_trouble", (), True)
    ]  # fmt: skip
    assert addon.ready()  # reads pass
    addon.close()
    assert addon.readings() == []
    assert not addon.ready()
