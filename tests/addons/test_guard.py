import asyncio

import pytest
from mitmproxy import addons, connection, ctx, http, tcp
from mitmproxy.addons import intercept
from mitmproxy.exceptions import OptionsError
from mitmproxy.test import taddons, tflow, tutils

from addons import guard
from addons.core import facts, stack, status
from addons.core.model import Action, Approval, Hold, Identity, Verdict
from addons.mitm import answers, inside, seal

SAFE = {
    "mode": ["reverse:https://127.0.0.1:6443"],
    "connection_strategy": "lazy",
    "upstream_cert": False,
    "body_size_limit": "3m",
    "rawtcp": False,
    "http3": False,
    "onboarding": False,
}


@pytest.fixture
def stacked(tmp_path):
    """A guard and its last word, configured for the full stack."""
    addon = guard.Guard()
    with taddons.context(loadcore=False) as tctx:
        tctx.master.addons.add(*addons.default_addons())
        tctx.options.update(confdir=str(tmp_path), **SAFE)
        tctx.master.addons.add(addon)
        last = tctx.master.addons.get("tollgate_last_word")
        for one in (addon, last):
            one.configure(set(tctx.options.keys()))
        yield addon, last


def a_flow(**request):
    flow = tflow.tflow(
        req=tutils.treq(
            **{"path": b"/api/v1/namespaces/shop/pods", "headers": http.Headers(), "content": b"", **request}
        )
    )
    flow.client_conn.timestamp_tls_setup = 1.0
    return flow


def pass_all(flow):
    facts.of(flow).passed |= stack.FULL.request


def test_a_judged_request_is_released(stacked):
    first, last = stacked
    flow = a_flow()
    first.requestheaders(flow)
    assert flow.response.status_code == 503  # nobody has looked yet
    first.request(flow)
    pass_all(flow)
    last.request(flow)
    assert flow.response is None
    assert facts.of(flow).released


@pytest.mark.parametrize("missing", sorted(stack.FULL.request))
def test_one_missing_stamp_and_the_refusal_stands(stacked, missing):
    first, last = stacked
    flow = a_flow()
    first.requestheaders(flow)
    facts.of(flow).passed = set(stack.FULL.request - {missing})
    last.request(flow)
    assert flow.response.status_code == 503
    assert not facts.of(flow).released


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda f: setattr(f, "error", object()), id="an error"),
        pytest.param(lambda f: setattr(f, "is_replay", "request"), id="a replay"),
        pytest.param(lambda f: setattr(facts.of(f), "answered_by", "x"), id="an addon's answer"),
        pytest.param(lambda f: setattr(f, "response", answers.response(guard.REDIRECT)), id="another response"),
        pytest.param(lambda f: setattr(facts.of(f), "refusal", None), id="no refusal, and none there"),
    ],
)
def test_not_released(stacked, spoil):
    first, last = stacked
    flow = a_flow()
    first.requestheaders(flow)
    pass_all(flow)
    spoil(flow)
    last.request(flow)
    assert flow.response is not None
    assert not facts.of(flow).released


def test_the_guard_itself_failed(stacked):
    _, last = stacked
    flow = a_flow()  # requestheaders raised before it set anything: `None is None` must not release
    last.request(flow)
    assert flow.response.status_code == 503


HELD = Verdict(Action.HOLD, "r", "p", holds=(Hold("p", "r", "", Approval(groups=("oncall",))),))


@pytest.mark.parametrize(
    ("verdict", "approval", "released"),
    [
        pytest.param(HELD, "", False, id="held, and nobody said yes: whatever the stamps say"),
        pytest.param(HELD, "apr-1", True, id="held and approved"),
        pytest.param(Verdict(Action.ALLOW), "", True, id="allowed"),
    ],
)
def test_what_is_held_has_two_locks(stacked, verdict, approval, released, caplog):
    first, last = stacked
    flow = a_flow()
    first.requestheaders(flow)
    pass_all(flow)
    known = facts.of(flow)
    known.verdict, known.approval = verdict, approval
    last.request(flow)
    assert known.released is released
    assert (flow.response is None) is released
    if not released:
        assert flow.response.status_code == 503
        assert "it is held and nobody approved it" in caplog.text


def test_revoked_after_authenticate_passed_it(stacked):
    first, last = stacked
    flow = a_flow()
    first.requestheaders(flow)
    pass_all(flow)
    facts.of(flow).cut_off = status.Refusal(403, "revoked", "tollgate: stopped")
    last.request(flow)
    assert not facts.of(flow).released
    assert flow.response.status_code == 403


def test_each_request_has_its_id_from_the_beginning(stacked):
    first, _ = stacked
    flows = [a_flow(), a_flow()]
    for flow in flows:
        first.requestheaders(flow)
    assert len({facts.of(flow).audit_id for flow in flows} - {""}) == 2


def test_changed_after_the_verdict(stacked):
    first, last = stacked
    flow = a_flow()
    first.requestheaders(flow)
    pass_all(flow)
    seal.put(flow)
    flow.request.path = "/api/v1/namespaces/kube-system/secrets"
    last.request(flow)
    assert flow.response.headers["Tollgate-Reason"] == "changed-after-verdict"


@pytest.fixture
def by_hand(stacked):
    ctx.master.addons.add(intercept.Intercept())
    ctx.options.update(intercept="~all")
    return stacked


async def stopped(guard_, flow):
    guard_.requestheaders(flow)
    task = asyncio.create_task(guard_.request(flow))
    while not flow.intercepted:
        await asyncio.sleep(0)
    assert ("tollgate_guard", "request") not in facts.of(flow).passed
    return task


async def test_what_is_stopped_by_hand_is_stopped_before_it_is_judged(by_hand):
    first, _ = by_hand
    flow = a_flow()
    task = await stopped(first, flow)
    flow.resume()
    await task
    assert ("tollgate_guard", "request") in facts.of(flow).passed
    assert not facts.of(flow).edited


async def test_what_is_edited_by_hand_is_judged_and_told(by_hand, caplog):
    first, _ = by_hand
    flow = a_flow()
    task = await stopped(first, flow)
    flow.request.path = "/api/v1/namespaces/shop/secrets"
    flow.resume()
    await task
    known = facts.of(flow)
    assert known.edited
    assert ("tollgate_guard", "request") in known.passed
    assert "edited by hand" in caplog.text


async def test_an_edit_may_not_claim_an_identity(by_hand):
    first, last = by_hand
    flow = a_flow()
    task = await stopped(first, flow)
    flow.request.headers["Impersonate-User"] = "root"
    flow.resume()
    await task
    last.request(flow)
    assert flow.response.status_code in (400, 403)
    assert not facts.of(flow).released


async def test_what_is_killed_by_hand_goes_nowhere(by_hand):
    first, last = by_hand
    flow = a_flow()
    task = await stopped(first, flow)
    flow.live = True
    flow.kill()
    flow.resume()
    await task
    pass_all(flow)
    last.request(flow)
    assert not facts.of(flow).released


def test_facts_of_an_earlier_run_are_forgotten(stacked):
    first, last = stacked
    flow = a_flow()
    pass_all(flow)
    facts.of(flow).released = True
    first.requestheaders(flow)
    last.request(flow)
    assert flow.response.status_code == 503


@pytest.mark.parametrize(
    ("request_parts", "cause"),
    [
        pytest.param({"path": b"/api//v1"}, "path-not-canonical", id="path"),
        pytest.param({"method": b"TRACE"}, "method-unknown", id="method"),
        pytest.param({"method": b"delete"}, "method-unknown", id="lower-case method"),
        pytest.param({"headers": http.Headers(((b"Impersonate-User", b"x"),))}, "identity-header", id="impersonation"),
        pytest.param({"http_version": b"HTTP/1.0"}, "http-version", id="HTTP/1.0"),
        pytest.param({"headers": http.Headers(((b"Upgrade", b"websocket"),))}, "upgrade-here", id="upgrade of a list"),
        pytest.param(
            {"headers": http.Headers(((b"Upgrade", b"websocket"),)), "path": b"/apis/x.io/v1/namespaces/a/pods/b/exec"},
            "upgrade-here",
            id="upgrade of another group's pods/exec",
        ),
        pytest.param({"headers": http.Headers(((b"Upgrade", b"h2c"),))}, "upgrade-unknown", id="h2c"),
    ],
)
def test_refused_before_anyone_looks(stacked, request_parts, cause):
    first, last = stacked
    flow = a_flow(**request_parts)
    first.requestheaders(flow)
    pass_all(flow)
    last.request(flow)
    assert flow.response.headers["Tollgate-Reason"] == cause


def test_plaintext_is_refused(stacked):
    first, _ = stacked
    flow = a_flow()
    flow.client_conn.timestamp_tls_setup = None
    first.requestheaders(flow)
    assert flow.response.headers["Tollgate-Reason"] == "plaintext"


@pytest.mark.parametrize(
    ("method", "content", "trailers", "cause"),
    [
        pytest.param(b"GET", b"x", None, "body-unexpected", id="GET with a body"),
        pytest.param(b"POST", b"x", http.Headers(((b"a", b"b"),)), "trailers", id="trailers"),
    ],
)
def test_bodies(stacked, method, content, trailers, cause):
    first, _ = stacked
    flow = a_flow(method=method, content=content)
    flow.request.trailers = trailers
    first.requestheaders(flow)
    first.request(flow)
    assert flow.response.headers["Tollgate-Reason"] == cause


@pytest.mark.parametrize(
    ("option", "who"),
    [
        pytest.param("tollgate_source_rate", "source address 127.0.0.1", id="rate of a source"),
        pytest.param("tollgate_identity_rate", "identity jane", id="rate of an identity"),
        pytest.param("tollgate_source_open", "source address 127.0.0.1", id="open of a source"),
        pytest.param("tollgate_identity_open", "identity jane", id="open of an identity"),
    ],
)
def test_limits_name_themselves(stacked, option, who):
    first, _ = stacked
    flows = []
    ctx.options.update(**{option: 1})
    for _ in range(3):
        flow = a_flow()
        first.requestheaders(flow)
        facts.of(flow).identity = Identity("jane")
        first.request(flow)
        flows.append(flow)
    refused = [f for f in flows if facts.of(f).answered_by]
    assert refused
    assert who in refused[-1].response.text
    assert option in refused[-1].response.text
    assert refused[-1].response.status_code == 403


def test_shares_come_back(stacked):
    first, last = stacked
    for end in (last.error, last.response, lambda f: first.client_disconnected(f.client_conn)):
        flow = a_flow()
        first.requestheaders(flow)
        assert first.open_by_source.of("127.0.0.1") == 1
        end(flow)
        assert first.open_by_source.of("127.0.0.1") == 0


def released(stacked, **response):
    first, last = stacked
    flow = a_flow()
    first.requestheaders(flow)
    pass_all(flow)
    last.request(flow)
    flow.response = http.Response.make(**{"status_code": 200, "content": b"secret", **response})
    facts.of(flow).head_released = True
    return first, last, flow


def test_an_answer_that_everyone_judged_goes_on(stacked):
    first, last, flow = released(stacked)
    first.response(flow)
    assert flow.response.status_code == 502
    facts.of(flow).passed |= stack.FULL.response
    last.response(flow)
    assert flow.response.content == b"secret"


@pytest.mark.parametrize("missing", sorted(stack.FULL.response))
def test_an_answer_that_one_did_not_judge_is_withheld(stacked, missing):
    first, last, flow = released(stacked)
    first.response(flow)
    facts.of(flow).passed |= stack.FULL.response - {missing}
    last.response(flow)
    assert flow.response.status_code == 502
    assert b"secret" not in flow.response.content


@pytest.mark.parametrize("missing", sorted(stack.FULL.responseheaders))
def test_a_stream_begins_only_when_all_have_judged_its_head(stacked, monkeypatch, missing):
    cuts = []
    monkeypatch.setattr(guard.cutting, "cut", lambda flow, refusal: cuts.append(refusal))
    for stamps, begins in ((stack.FULL.responseheaders, True), (stack.FULL.responseheaders - {missing}, False)):
        _, last, flow = released(stacked)
        facts.of(flow).head_released, facts.of(flow).passed = False, stamps
        flow.response.stream = True
        last.responseheaders(flow)
        assert facts.of(flow).head_released is begins
        assert flow.response.stream is begins
    assert cuts == [guard.ANSWER_NOT_JUDGED]


@pytest.mark.parametrize("missing", sorted(stack.FULL.response))
def test_a_stream_ends_well_only_when_all_have_judged_its_end(stacked, missing):
    for stamps, ends in ((stack.FULL.response, True), (stack.FULL.response - {missing}, False)):
        _, last, flow = released(stacked)
        facts.of(flow).passed |= stamps
        flow.response.stream = True
        last.response(flow)
        assert facts.of(flow).answer_released is ends


def test_a_stream_that_must_not_get_out_does_not_end_well(stacked):
    _, last, flow = released(stacked)
    known = facts.of(flow)
    known.passed |= stack.FULL.response
    flow.response.stream = True
    known.answer_refusal = guard.REDIRECT  # said after it had begun
    last.response(flow)
    assert not known.answer_released


def test_an_upgrade_that_is_refused_is_answered_not_cut(stacked, monkeypatch):
    monkeypatch.setattr(guard.cutting, "cut", None)
    _, last, flow = released(stacked, status_code=101)
    last.responseheaders(flow)
    last.response(flow)
    assert flow.response.headers["Tollgate-Reason"] == "answer-not-judged"
    assert facts.of(flow).answer_released  # it is our own now


@pytest.mark.parametrize("response", [{}, {"status_code": 101}], ids=["whole", "upgrade"])
def test_an_answer_whose_head_the_last_word_did_not_see_is_withheld(stacked, response):
    first, last, flow = released(stacked, **response)
    facts.of(flow).head_released = False
    facts.of(flow).passed |= stack.FULL.response
    first.response(flow)
    last.response(flow)
    assert flow.response.status_code == 502
    assert not facts.of(flow).answer_released


@pytest.mark.attack("known escapes: CVE-2020-8559, CVE-2022-3172")
def test_a_redirect_is_not_passed_on(stacked):
    first, last, flow = released(stacked, status_code=302, headers={"Location": "https://evil"})
    first.responseheaders(flow)
    first.response(flow)
    facts.of(flow).passed |= stack.FULL.response
    last.response(flow)
    assert flow.response.status_code == 502
    assert "evil" not in str(flow.response.headers)


def test_a_head_that_the_guard_looked_at_is_stamped(stacked):
    first, _, flow = released(stacked)
    first.responseheaders(flow)
    assert (first.name, "responseheaders") in facts.of(flow).passed


def test_not_modified_is_no_redirect(stacked):
    first, last, flow = released(stacked, status_code=304, content=b"")
    first.responseheaders(flow)
    first.response(flow)
    facts.of(flow).passed |= stack.FULL.response
    last.response(flow)
    assert flow.response.status_code == 304


def test_a_frame_is_dropped_until_it_is_judged(stacked):
    first, last = stacked
    flow = tflow.twebsocketflow()
    first.websocket_message(flow)
    assert flow.websocket.messages[-1].dropped
    facts.of(flow).judged |= stack.FULL.frame
    last.websocket_message(flow)
    assert not flow.websocket.messages[-1].dropped
    assert facts.of(flow).frame is flow.websocket.messages[-1]
    assert len(flow.websocket.messages) == 1  # memory stays flat


def test_stamps_of_the_last_frame_do_not_pass_the_next(stacked):
    """The guard's hook raised, so nothing was withheld and every later script was skipped."""
    first, last = stacked
    flow = tflow.twebsocketflow()
    first.websocket_message(flow)
    facts.of(flow).judged |= stack.FULL.frame
    last.websocket_message(flow)
    flow.websocket.messages[-1].dropped = False
    facts.of(flow).last_words = b"other"  # no cut from here: this test has no connection
    last.websocket_message(flow)
    assert flow.websocket.messages[-1].dropped


@pytest.mark.parametrize(
    ("judged", "words", "dropped", "instead"),
    [
        pytest.param(True, b"", True, [b"a", b"b"], id="others go on in its place"),
        pytest.param(False, b"other", True, None, id="not judged: nor do they"),
        pytest.param(False, b"it", False, None, id="last words, before which nothing goes"),
    ],
)
def test_frames_in_place_of_another(stacked, judged, words, dropped, instead):
    first, last = stacked
    flow = tflow.twebsocketflow()
    known, message = facts.of(flow), flow.websocket.messages[-1]
    first.websocket_message(flow)
    message.content, known.last_words, known.instead = b"it", words, [b"a", b"b"]
    known.judged |= stack.FULL.frame if judged else set()
    last.websocket_message(flow)
    assert (message.dropped, known.instead) == (dropped, instead)


def test_raw_bytes_without_a_judged_request_are_cut_off(stacked):
    first, _ = stacked
    flow = tflow.ttcpflow()
    flow.live = True
    first.tcp_start(flow)
    assert flow.error


def test_spdy_bytes_are_withheld_until_judged(stacked):
    first, last = stacked
    origin, flow = a_flow(), tflow.ttcpflow()
    first.upgraded[flow.client_conn.id] = origin
    first.tcp_start(flow)
    content = flow.messages[-1].content
    first.tcp_message(flow)
    assert flow.messages[-1].content == b""
    facts.of(flow).judged |= stack.FULL.frame
    last.tcp_message(flow)
    assert flow.messages[-1].content == content
    assert facts.of(flow).frame is flow.messages[-1]


def test_raw_bytes_do_not_go_on_in_place_of_others(stacked, monkeypatch):
    """LastWord's hook raised at one message, and the guard's at the next: nothing was withheld of that."""
    monkeypatch.setattr(guard.cutting, "cut", lambda flow, refusal: None)
    first, last = stacked
    flow = tflow.ttcpflow()
    first.upgraded[flow.client_conn.id] = a_flow()
    first.tcp_start(flow)
    first.tcp_message(flow)
    facts.of(flow).judged |= stack.FULL.frame
    flow.messages.append(tcp.TCPMessage(True, b"unjudged"))
    last.tcp_message(flow)
    assert flow.messages[-1].content == b""
    assert facts.of(flow).frame is None


def test_raw_bytes_without_a_judged_request_go_nowhere_though_nobody_must_judge_them(stacked):
    first, last = stacked
    first.stack = stack.build(["upstream"])
    flow = tflow.ttcpflow()
    first.tcp_message(flow)
    last.tcp_message(flow)
    assert flow.messages[-1].content == b""
    assert facts.of(flow).frame is None


def test_the_last_word_has_its_defaults_from_the_start(tmp_path):
    # mitmproxy configures a script when it has loaded it, but not what a script adds.
    with taddons.context(loadcore=False) as tctx:
        tctx.master.addons.add(*addons.default_addons())
        tctx.options.update(confdir=str(tmp_path), **SAFE)
        tctx.master.addons.add(guard.Guard())
        assert tctx.master.addons.get("tollgate_last_word").failed.rate == 1.0


def test_only_the_api_server_is_connected_to(stacked):
    _, last = stacked
    client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2))
    client.proxy_mode = type("Mode", (), {"address": ("127.0.0.1", 6443)})()
    for address, error in ((("127.0.0.1", 6443), False), (("169.254.169.254", 80), True)):
        data = type("Data", (), {"client": client, "server": connection.Server(address=address)})()
        last.server_connect(data)
        assert bool(data.server.error) is error


def a_client():
    return connection.Client(peername=("127.0.0.9", 1), sockname=("127.0.0.1", 2))


async def test_connections_of_one_source_are_counted(stacked):
    first, _ = stacked
    ctx.options.update(tollgate_source_connections=2)
    clients = [a_client() for _ in range(3)]
    for client in clients:
        first.client_connected(client)
    assert [bool(c.error) for c in clients] == [False, False, True]
    first.client_disconnected(clients[0])
    first.client_disconnected(clients[2])  # it held no share, so it gives none back
    another, one_more = a_client(), a_client()
    first.client_connected(another)
    first.client_connected(one_more)
    assert (bool(another.error), bool(one_more.error)) == (False, True)
    for client in clients[1], another:
        first.client_disconnected(client)
    assert not first.silent


async def test_a_connection_that_says_nothing_is_closed(stacked, monkeypatch):
    first, _ = stacked
    closed = []
    monkeypatch.setattr(guard, "SILENCE_LIMIT", 0.01)
    monkeypatch.setattr(guard, "close", closed.append)
    silent, spoke = a_client(), a_flow()
    first.client_connected(silent)
    first.client_connected(spoke.client_conn)
    first.requestheaders(spoke)
    await asyncio.sleep(0.05)
    assert closed == [silent]


def test_connect_is_refused_by_both(stacked):
    first, last = stacked
    flow = a_flow(method=b"CONNECT")
    first.http_connect(flow)
    assert flow.response.status_code == 405
    flow.response = None
    last.http_connect(flow)
    assert flow.response.status_code == 503


@pytest.mark.parametrize(
    ("option", "value"),
    [
        pytest.param("ssl_insecure", True, id="no verification"),
        pytest.param("stream_large_bodies", "1m", id="bodies past the hook"),
        pytest.param("ignore_hosts", [".*"], id="no HTTP layer"),
        pytest.param("map_remote", ["|x|y"], id="rewrites"),
        pytest.param("connection_strategy", "eager", id="eager"),
        pytest.param("validate_inbound_headers", False, id="smuggling"),
        pytest.param("rawtcp", True, id="raw TCP"),
        pytest.param("mode", ["regular"], id="a forward proxy"),
        pytest.param("mode", ["reverse:https://a:1", "reverse:https://b:1@8081"], id="two upstreams"),
        pytest.param("tollgate_stack", "classfy", id="a misspelled stack"),
    ],
)
def test_dangerous_options_are_refused_and_nothing_passes(stacked, option, value):
    first, _ = stacked
    with pytest.raises(OptionsError, match=option):
        ctx.options.update(**{option: value})
    flow = a_flow()
    first.requestheaders(flow)
    assert flow.response.status_code == 503


def test_not_configured_denies():
    flow = a_flow()
    with taddons.context():
        guard.Guard().requestheaders(flow)
    assert flow.response.status_code == 503


HERE = ("127.0.0.1", 40001)


@pytest.mark.parametrize(
    ("serving", "address", "error"),
    [
        pytest.param((), HERE, True, id="nothing is served here"),
        pytest.param((HERE,), HERE, False, id="the server in this process"),
        pytest.param((HERE,), ("127.0.0.1", 40002), True, id="another port of this machine"),
        pytest.param((HERE,), ("localhost", 40001), True, id="another name of it"),
        pytest.param((HERE,), ("127.0.0.1", 6443), False, id="the API server all the same"),
    ],
)
def test_only_the_server_in_this_process_beside_the_api_server(stacked, serving, address, error):
    _, last = stacked
    client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2))
    client.proxy_mode = type("Mode", (), {"address": ("127.0.0.1", 6443)})()
    for one in serving:
        inside.serve_at(one)
    try:
        data = type("Data", (), {"client": client, "server": connection.Server(address=address)})()
        last.server_connect(data)
        assert bool(data.server.error) is error
    finally:
        for one in serving:
            inside.stop_serving(one)


@pytest.mark.parametrize(
    ("ends", "shared", "stops"),
    [
        pytest.param(True, True, True, id="another takes over"),
        pytest.param(True, False, False, id="alone: whoever comes is told"),
        pytest.param(False, True, False, id="only loaded again"),
    ],
)
def test_at_the_end_the_port_is_left_to_the_other_process(stacked, monkeypatch, ends, shared, stops):
    first, _ = stacked
    stopped = []
    monkeypatch.setattr(guard.listening, "stop", stopped.append)
    ctx.options.update(tollgate_reuse_port=shared)
    monkeypatch.setattr(ctx.master, "should_exit", asyncio.Event(), raising=False)
    if ends:
        ctx.master.should_exit.set()
    first.done()
    assert stopped == ([ctx.master.addons.get("proxyserver")] if stops else [])
