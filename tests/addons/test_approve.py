"""The approve addon: alone, and in a mitmproxy of this process with clients that come and go."""

import asyncio
import contextlib
import json
import logging
import ssl
from collections.abc import Sequence

import aiohttp
import pytest
from mitmproxy import command, exceptions, http
from mitmproxy.test import taddons, tflow, tutils

from addons import approve
from addons.core import approvals, classify, facts, policyfile, status, virtualdiscovery
from addons.core.approvals import Decider, Phase
from addons.core.model import ANONYMOUS, Action, Identity, Verdict
from addons.core.tokens import TokenError
from addons.mitm import answers, inside, seal
from addons.net import book as books
from addons.net import desk as desks
from addons.net import store
from addons.net.apiserver import Answer
from addons.net.book import APPROVALS, GRANTS, REQUESTS
from addons.net.rights import Rights
from addons.net.virtualserver import TICKET_HEADER
from tests import http2, proxy
from tests.records import AGENT, ONCALL, OTHER_AGENT, access_request, grant, hold, person, record

STAMP = ("tollgate_approve", "request")
JSON, MERGE = "application/json", "application/merge-patch+json"
RULE = hold(wait=20)
AT_ONCE = hold(wait=0)
PODS = "/api/v1/namespaces/shop/pods"
OURS = "/apis/tollgate.dev/v1alpha1/approvals"
LATER = 10.0  # seconds; whoever waits longer hangs
POLICY = b"""
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: agents}
people: '"people" in identity.groups'
auditors: {groups: [auditors]}
rules:
- {name: look, action: allow, match: {verbs: [get, list, watch], resources: ["*.tollgate.dev"]}}
- {name: freeze, action: deny, match: {verbs: [delete], resources: ["*.tollgate.dev"]}}
"""
POLICIES = policyfile.parse({"agents.yaml": POLICY})


def held(*rules, action=Action.HOLD):
    return Verdict(action, "new-namespace", "agents", "r1", "Namespaces cost money.", holds=rules or (RULE,))


class ApiServer:
    """Answers our own requests: what is there, and what a dry run would leave."""

    def __init__(self):
        self.live = {}  # by path
        self.dry_run = None  # an Answer; else the body comes back
        self.asked = []

    async def request(self, method, path, *, body=None, identity=None, **more):
        self.asked.append((method, path, identity))
        if method == "GET":
            found = self.live.get(path.partition("?")[0])
            return Answer(200, json.dumps(found).encode()) if found else said(404)
        return self.dry_run or Answer(201, body if isinstance(body, bytes) else json.dumps(body).encode())


def said(code):
    return Answer(code, json.dumps({"kind": "Status", "code": code, "message": "no"}).encode())


def a_flow(method="POST", target="/api/v1/namespaces", body=None, *, identity=AGENT, verdict=None, **headers):
    if body is None and (method, target) == ("POST", "/api/v1/namespaces"):
        body = {"kind": "Namespace", "metadata": {"name": "x"}}
    content = json.dumps(body).encode() if body is not None else b""
    sent = {"Content-Type": JSON} if content else {}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    fields = http.Headers([(k.encode(), v.encode()) for k, v in sent.items()])
    req = tutils.treq(
        method=method.encode(), path=target.encode(), headers=fields, content=content, scheme=b"https", port=6443
    )
    flow = tflow.tflow(req=req)
    fill(flow, verdict or held(), identity)
    return flow


def fill(flow, verdict, identity=AGENT):
    """What the addons before this one establish."""
    known, request = facts.of(flow), flow.request
    known.identity, known.verdict, known.policies = identity, verdict, lambda: POLICIES
    known.operation = classify.classify(
        request.method, request.path, dict(request.headers.items()), request.raw_content or b""
    )


def cause(flow):
    return flow.response.status_code, flow.response.headers.get("Tollgate-Reason")


def message(flow):
    return json.loads(flow.response.content)["message"]


@contextlib.asynccontextmanager
async def started(state=""):
    """The addon as mitmproxy runs it, with an API server to ask."""
    one = approve.Approve()
    with taddons.context(one, loadcore=False) as tctx:
        tctx.configure(one, tollgate_state=state)
        one.server = ApiServer()
        one.running()
        await one.starting
        try:
            yield one, tctx
        finally:
            await one.done()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(desks, "LOOK", 0.01)
    monkeypatch.setattr(approve, "GOODBYE", 0.1)
    yield
    assert inside.address() is None  # whatever a test did, nothing is served behind it


@pytest.fixture
async def addon():
    async with started() as (one, _):
        yield one


async def decide(one, name, yes=True, who="alice", reason="because"):
    now = one.clock()
    decider = Decider(person(who, ONCALL, now=now), agent=False)
    await one.book.step(APPROVALS, name, lambda r: approvals.decide(r, decider, yes, reason, now))


async def until(condition):
    async with asyncio.timeout(LATER):
        while not (found := condition()):
            await asyncio.sleep(0.005)
    return found


def begin(one, flow):
    """The request hook, as mitmproxy calls it: what comes back is awaited."""
    waiting = one.request(flow)
    assert waiting is not None
    return asyncio.ensure_future(waiting)


async def pending(one, flow):
    """(the hook, the name of the approval that it waits for)"""
    task = begin(one, flow)
    return task, await until(lambda: facts.of(flow).held_for)


async def finish(task):
    await asyncio.wait({task}, timeout=LATER)
    assert task.done(), "it hangs"
    return task.result()


async def ask(one, flow):
    await finish(begin(one, flow))
    return flow


async def passed(one, **more):
    """A flow that was approved and let go; with the name of its approval."""
    flow = a_flow(**more)
    task, name = await pending(one, flow)
    await decide(one, name)
    await finish(task)
    assert STAMP in facts.of(flow).passed, flow.response and flow.response.text
    return flow, name


def record_of(one, name):
    return one.book.get(APPROVALS, name).entry


def records_of(one):
    return [change.entry for change in one.book.all(APPROVALS)]


# ----- the stamp -----


def test_what_is_not_held_passes_at_once(addon):
    flow = a_flow("GET", PODS, verdict=Verdict(Action.ALLOW))
    before = flow.request.get_state()
    assert addon.request(flow) is None
    known = facts.of(flow)
    assert (known.passed, flow.response, known.approval, flow.request.get_state()) == ({STAMP}, None, "", before)
    assert not addon.server.asked


def test_the_first_answer_stands(addon):
    flow = a_flow()
    facts.of(flow).answered_by = "tollgate_block"
    assert addon.request(flow) is None
    assert (facts.of(flow).passed, flow.response) == (set(), None)


def test_what_was_not_classified_does_not_pass(addon):
    flow = a_flow()
    facts.of(flow).operation = None
    with pytest.raises(facts.NotClassified):
        addon.request(flow)
    assert not facts.of(flow).passed


async def test_held_until_somebody_says_yes(addon, caplog):
    caplog.set_level(logging.INFO)
    flow = a_flow()
    task, name = await pending(addon, flow)
    known = facts.of(flow)
    assert (known.passed, known.approval, flow.response, flow.comment) == (set(), "", None, name)
    assert f"approval {name} is pending" in caplog.text
    await decide(addon, name)
    await finish(task)
    assert (known.passed, known.approval, flow.response) == ({STAMP}, name, None)
    # Spent under the id that the API server's audit log will have, which no other request has.
    assert record_of(addon, name).items[0].used_by == known.audit_id
    other = await ask(addon, a_flow(verdict=held(AT_ONCE)))
    assert len({known.audit_id, facts.of(other).audit_id, ""}) == 3


async def test_what_is_edited_while_it_waits_is_not_what_was_approved(addon):
    flow = a_flow()
    seal.put(flow)
    task, name = await pending(addon, flow)
    flow.request.content = b'{"kind":"Namespace","metadata":{"name":"y"}}'
    await decide(addon, name)
    await finish(task)
    known = facts.of(flow)
    assert (known.passed, flow.response.headers["Tollgate-Reason"]) == (set(), "changed-after-verdict")
    assert not record_of(addon, name).items[0].used_by  # the yes is still there for what was asked


def test_what_was_edited_before_it_came_here_does_not_pass(addon):
    flow = a_flow(verdict=Verdict(Action.ALLOW))
    seal.put(flow)
    flow.request.path = "/api/v1/namespaces/y"
    addon.request(flow)
    assert (facts.of(flow).passed, flow.response.headers["Tollgate-Reason"]) == (set(), "changed-after-verdict")


@pytest.mark.parametrize(
    ("rule", "yes", "why", "says"),
    [
        pytest.param(RULE, False, (403, "approval-denied"), "alice denied", id="denied"),
        pytest.param(AT_ONCE, None, (403, "approval-pending"), "is pending", id="undecided"),
    ],
)
async def test_not_approved_is_not_stamped(addon, rule, yes, why, says):
    flow = a_flow(verdict=held(rule))
    if yes is None:
        await ask(addon, flow)
    else:
        task, name = await pending(addon, flow)
        await decide(addon, name, yes)
        await finish(task)
    known = facts.of(flow)
    assert (known.passed, known.approval, known.answered_by) == (set(), "", addon.name)
    assert cause(flow) == why
    assert says in message(flow)


async def test_retry_is_said_as_client_go_reads_it(addon):
    flow = await ask(addon, a_flow(verdict=held(hold(wait=0, retry=True))))
    assert cause(flow) == (429, "approval-pending")
    assert int(flow.response.headers["Retry-After"]) > 0


async def test_what_the_api_server_refuses_is_relayed(addon):
    addon.server.dry_run = said(409)
    flow = await ask(addon, a_flow())
    known = facts.of(flow)
    assert (cause(flow), known.passed, known.approval) == ((409, "api-server"), set(), "")
    assert flow.response.content == said(409).body
    assert not records_of(addon)


@pytest.mark.parametrize(
    ("goes_up_as", "asked_as"),
    [pytest.param("impersonate", AGENT, id="as the caller"), pytest.param("gateway", None, id="as the gateway")],
)
async def test_the_preview_is_asked_for_as_the_request_itself_would_go(goes_up_as, asked_as):
    async with started() as (one, tctx):
        tctx.options.add_option("tollgate_upstream_identity", str, "impersonate", "")
        tctx.options.update(tollgate_upstream_identity=goes_up_as)
        await ask(one, a_flow(verdict=held(AT_ONCE)))
        assert one.server.asked == [("POST", "/api/v1/namespaces?dryRun=All", asked_as)]


async def test_who_it_is_and_what_the_policies_say_is_asked_again(addon):
    async def revoked():
        raise TokenError("review", "revoked")

    flow = a_flow()
    facts.of(flow).identify_again = revoked
    task, name = await pending(addon, flow)
    await decide(addon, name)
    await finish(task)
    assert (cause(flow), facts.of(flow).passed) == ((401, "token-revoked"), set())
    flow = a_flow()
    facts.of(flow).judge_again = lambda: Verdict(Action.DENY, "freeze", "agents")
    await ask(addon, flow)
    assert (cause(flow), facts.of(flow).passed) == ((403, "policy-deny"), set())
    assert record_of(addon, name).phase is Phase.VOID


async def test_the_verdict_of_now_is_the_flows(addon):
    allowed = Verdict(Action.ALLOW, revision="r2")
    flow = a_flow()
    facts.of(flow).judge_again = lambda: allowed
    task, name = await pending(addon, flow)
    await decide(addon, name)
    await finish(task)
    known = facts.of(flow)
    assert (known.verdict, known.passed) == (allowed, {STAMP})
    assert flow not in addon.spent


async def test_a_grant_passes_without_a_wait(addon):
    one = grant(record("apr-1", hold(grant_for=600, grant_scope="rule"), now=addon.clock()), now=addon.clock())
    await addon.book.add(GRANTS, one)
    flow = await ask(addon, a_flow())
    known = facts.of(flow)
    assert (known.passed, known.approval, flow in addon.spent) == ({STAMP}, one.name, False)


async def broken(*_args, **_more):
    raise RuntimeError("odd")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda a: setattr(a.desk, "hold", broken), id="the desk"),
        pytest.param(lambda a: setattr(a.server, "request", None), id="the preview"),
        pytest.param(lambda a: setattr(a.book, "by_digest", None), id="the book"),
    ],
)
async def test_an_exception_leaves_no_stamp(addon, spoil):
    spoil(addon)
    flow = a_flow(verdict=held(AT_ONCE))
    with contextlib.suppress(Exception):
        await addon.request(flow)
    assert not facts.of(flow).passed
    assert not facts.of(flow).approval


async def test_an_exception_after_the_spending_leaves_no_stamp_and_gives_back(addon, monkeypatch):
    def fails(*_args):
        raise RuntimeError("odd")

    addon.server.live[f"{PODS}/web-1"] = {"kind": "Pod", "metadata": {"name": "web-1", "uid": "uid-1"}}
    flow = a_flow("DELETE", f"{PODS}/web-1")
    task, name = await pending(addon, flow)
    monkeypatch.setattr(approve.preconditions, "with_preconditions", fails)
    await decide(addon, name)
    await asyncio.wait({task}, timeout=LATER)
    assert isinstance(task.exception(), RuntimeError)
    known = facts.of(flow)
    assert known.passed == set()
    known.refusal = flow.response = answers.response(status.Refusal(503, "not-judged", "no"))  # the guard's stands
    await addon.responseheaders(flow)
    assert record_of(addon, name).phase is Phase.APPROVED


# ----- not configured, or without a state -----


async def test_not_started_refuses_what_is_held_and_passes_the_rest():
    one = approve.Approve()
    with taddons.context(one, loadcore=False):
        assert not one.ready()
        flow = await ask(one, a_flow())
        assert (cause(flow), facts.of(flow).passed) == ((503, "approval-unavailable"), set())
        assert "Retry-After" not in flow.response.headers
        free = a_flow("GET", PODS, verdict=Verdict(Action.ALLOW))
        one.request(free)
        assert facts.of(free).passed == {STAMP}
        ours = a_flow("GET", OURS, verdict=Verdict(Action.ALLOW))
        one.request(ours)
        assert (cause(ours), facts.of(ours).passed) == ((503, "approval-unavailable"), set())
        await one.done()


async def test_a_state_folder_that_others_can_write(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    one = approve.Approve()
    with taddons.context(one, loadcore=False):
        with pytest.raises(exceptions.OptionsError, match=r"tollgate_state: .*can be written by others"):
            one.open_store(str(tmp_path / "state"))
        one.running()
        await one.starting
        assert (one.ready(), inside.address()) == (False, None)
        one.server = ApiServer()
        assert cause(await ask(one, a_flow())) == (503, "approval-unavailable")
        await one.done()


async def test_a_store_that_cannot_be_read_at_the_start(tmp_path, monkeypatch, caplog):
    async def since(self, revision):
        raise store.StoreError("state.db is busy")

    monkeypatch.setattr(books, "STARTING", 0.0)
    monkeypatch.setattr(store.SqliteStore, "since", since)
    one = approve.Approve()
    with taddons.context(one, loadcore=False) as tctx:
        tctx.configure(one, tollgate_state=str(tmp_path / "state"))
        one.running()
        await one.starting
        assert "approvals cannot be asked for: state.db is busy" in caplog.text
        one.server = ApiServer()
        assert not one.ready()
        assert cause(await ask(one, a_flow())) == (503, "approval-unavailable")
        await one.done()


async def test_without_an_api_server_nobody_can_be_asked(addon, caplog):
    addon.server = None
    assert cause(await ask(addon, a_flow())) == (503, "approval-unavailable")


def test_a_bad_kubeconfig_is_told(caplog):
    one = approve.Approve()
    with taddons.context(one, loadcore=False) as tctx:
        tctx.configure(one, tollgate_kubeconfig="/nonexistent/kubeconfig")
    assert one.server is None
    assert "approvers cannot be shown what a request does" in caplog.text


async def test_the_state_is_not_changed_under_a_running_gateway(tmp_path):
    async with started(str(tmp_path / "one")) as (one, tctx):
        with pytest.raises(exceptions.OptionsError, match="cannot be changed while the gateway runs"):
            tctx.configure(one, tollgate_state=str(tmp_path / "two"))
        assert (await ask(one, a_flow(verdict=held(AT_ONCE)))).response.status_code == 403  # and it goes on


async def test_without_a_state_folder_it_says_so(caplog):
    async with started():
        assert "approvals are kept in memory, and a restart forgets them" in caplog.text


async def test_pending_approvals_survive_a_restart(tmp_path):
    async with started(str(tmp_path)) as (one, _):
        await ask(one, a_flow(verdict=held(AT_ONCE)))
        name = records_of(one)[0].name
    async with started(str(tmp_path)) as (two, _):
        await decide(two, name)
        flow = await ask(two, a_flow(verdict=held(AT_ONCE)))
        assert (facts.of(flow).approval, facts.of(flow).passed) == (name, {STAMP})


async def test_the_end_answers_those_who_wait():
    async with started() as (one, _):
        flow = a_flow()
        task, name = await pending(one, flow)
        assert inside.address() == ("127.0.0.1", one.virtual.port)
        await one.done()
        await finish(task)
        assert (cause(flow), facts.of(flow).passed) == ((503, "stopping"), set())
        assert inside.address() is None
        assert record_of(one, name).phase is Phase.PENDING


# ----- deletes are bound to what was shown -----


async def deleted(addon, target=f"{PODS}/web-1", method="DELETE", body=None, **more):
    addon.server.live[f"{PODS}/web-1"] = {"kind": "Pod", "metadata": {"name": "web-1", "uid": "uid-1"}}
    return await passed(addon, method=method, target=target, body=body, **more)


@pytest.mark.parametrize(
    ("query", "body", "path", "sent"),
    [
        pytest.param("", None, "", {"preconditions": {"uid": "uid-1"}}, id="bare"),
        pytest.param(
            "",
            {"propagationPolicy": "Background"},
            "",
            {"propagationPolicy": "Background", "preconditions": {"uid": "uid-1"}},
            id="with options",
        ),
        pytest.param(
            "?gracePeriodSeconds=0&fieldManager=k",
            None,
            "?fieldManager=k",
            {"gracePeriodSeconds": 0, "preconditions": {"uid": "uid-1"}},
            id="with options in the query, which a body would undo",
        ),
    ],
)
async def test_a_delete_takes_the_object_that_was_shown(addon, query, body, path, sent):
    flow, name = await deleted(addon, f"{PODS}/web-1{query}", body=body)
    assert record_of(addon, name).items[0].uid == "uid-1"
    assert flow.request.path == f"{PODS}/web-1{path}"
    assert json.loads(flow.request.content) == sent
    assert flow.request.headers["content-type"] == JSON


async def test_an_eviction_takes_the_object_that_was_shown(addon):
    body = {"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "web-1", "namespace": "shop"}}
    flow, _ = await deleted(addon, f"{PODS}/web-1/eviction", "POST", body)
    assert json.loads(flow.request.content)["deleteOptions"] == {"preconditions": {"uid": "uid-1"}}


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"target": f"{PODS}/web-1?kind=x"}, id="query"),
        pytest.param({"target": f"{PODS}/web-1", "body": {"preconditions": "x"}}, id="preconditions"),
    ],
)
async def test_what_cannot_be_bound_is_not_asked_for(addon, more):
    flow = await ask(addon, a_flow("DELETE", **more))
    assert (cause(flow), facts.of(flow).passed) == ((400, "delete-not-bound"), set())
    assert not records_of(addon)
    assert not addon.server.asked


async def test_replaced_while_it_waited(addon):
    flow = a_flow("DELETE", f"{PODS}/web-1")
    addon.server.live[f"{PODS}/web-1"] = {"kind": "Pod", "metadata": {"name": "web-1", "uid": "uid-1"}}
    task, name = await pending(addon, flow)
    addon.server.live[f"{PODS}/web-1"]["metadata"]["uid"] = "uid-2"
    await decide(addon, name)
    await finish(task)
    assert (cause(flow), facts.of(flow).passed) == ((403, "approval-void"), set())
    assert record_of(addon, name).phase is Phase.VOID


# ----- a JSON patch means what is there when it is applied -----

CONFIG = "/api/v1/namespaces/shop/configmaps/web"
COPY = [{"op": "copy", "from": "/data/a", "path": "/data/b"}]
JSON_PATCH = "application/json-patch+json"


def config(version):
    metadata = {"name": "web", "namespace": "shop", "uid": "uid-1", "resourceVersion": version}
    return {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata, "data": {"a": "1", "b": "1"}}


async def patched(addon, body=COPY, kind=JSON_PATCH):
    addon.server.live[CONFIG] = config("7")
    addon.server.dry_run = Answer(200, json.dumps(config("7")).encode())
    flow = a_flow("PATCH", CONFIG, body, Content_Type=kind)
    task, name = await pending(addon, flow)
    addon.server.dry_run = Answer(200, json.dumps(config("8")).encode())  # somebody wrote what changes nothing of it
    await decide(addon, name)
    await finish(task)
    assert STAMP in facts.of(flow).passed
    return flow, name


async def test_a_json_patch_is_applied_to_what_the_last_look_saw(addon):
    flow, _ = await patched(addon)
    test = {"op": "test", "path": "/metadata/resourceVersion", "value": "8"}
    assert json.loads(flow.request.content) == [test, *COPY]


async def test_another_patch_goes_up_as_it_came(addon):
    flow, _ = await patched(addon, {"data": {"b": "1"}}, MERGE)
    assert json.loads(flow.request.content) == {"data": {"b": "1"}}
    release(flow, 422)
    await heads(addon, flow)
    assert facts.of(flow).answer_refusal is None


async def test_a_json_patch_whose_object_changed_in_that_moment(addon):
    flow, name = await patched(addon)
    release(flow, 422)
    await heads(addon, flow)
    refusal = facts.of(flow).answer_refusal
    assert (refusal.code, refusal.cause) == (403, "approval-void")
    assert record_of(addon, name).phase is Phase.USED


# ----- answers -----


def release(flow, code=200, headers=()):
    """The guard's last word, and the head of the API server's answer."""
    known = facts.of(flow)
    known.refusal, known.released = answers.response(status.Refusal(503, "x", "x")), True
    flow.response = http.Response.make(code, b"", dict(headers))


async def heads(one, flow):
    if (waiting := one.responseheaders(flow)) is not None:
        await waiting
    assert (one.name, "responseheaders") in facts.of(flow).passed


async def test_an_answer_to_what_was_not_held(addon):
    flow = a_flow("GET", PODS, verdict=Verdict(Action.ALLOW))
    release(flow)
    assert addon.responseheaders(flow) is None
    addon.response(flow)
    assert facts.of(flow).passed == {(addon.name, "responseheaders"), (addon.name, "response")}
    assert addon.error(flow) is None


@pytest.mark.parametrize("code", [201, 400, 403, 409, 500, 504])
async def test_what_went_up_stays_spent_whatever_is_answered(addon, code):
    flow, name = await passed(addon)
    release(flow, code)
    await heads(addon, flow)
    assert record_of(addon, name).phase is Phase.USED
    assert facts.of(flow).answer_refusal is None


async def test_what_a_later_addon_refused_is_given_back_once(addon):
    flow, name = await passed(addon)
    facts.of(flow).refusal = flow.response = answers.response(status.Refusal(503, "x", "x"))
    await heads(addon, flow)
    assert record_of(addon, name).phase is Phase.APPROVED
    assert addon.responseheaders(flow) is None
    assert addon.error(flow) is None


async def test_a_409_of_a_bound_delete_is_a_void_approval(addon):
    flow, name = await deleted(addon)
    release(flow, 409)
    await heads(addon, flow)
    refusal = facts.of(flow).answer_refusal
    assert (refusal.code, refusal.cause) == (403, "approval-void")
    assert record_of(addon, name).phase is Phase.USED


async def test_a_409_of_a_delete_that_was_not_held_is_the_api_servers(addon):
    flow = a_flow("DELETE", f"{PODS}/web-1", verdict=Verdict(Action.ALLOW))
    addon.request(flow)
    release(flow, 409)
    await heads(addon, flow)
    assert facts.of(flow).answer_refusal is None


@pytest.mark.parametrize(
    ("code", "phase"),
    [pytest.param(101, Phase.USED, id="begun"), pytest.param(403, Phase.APPROVED, id="the handshake failed")],
)
async def test_an_upgrade(addon, code, phase):
    target = f"{PODS}/web-1/exec?command=ls&container=web"
    addon.server.live[f"{PODS}/web-1"] = {"kind": "Pod", "metadata": {"uid": "uid-1"}, "spec": {"containers": []}}
    flow, name = await passed(addon, method="GET", target=target, Upgrade="websocket", Connection="Upgrade")
    release(flow, code)
    await heads(addon, flow)
    assert record_of(addon, name).phase is phase
    if phase is Phase.APPROVED:  # kubectl's second try, as SPDY
        spdy = await ask(addon, a_flow("POST", target, Upgrade="SPDY/3.1", Connection="Upgrade"))
        assert facts.of(spdy).approval == name


@pytest.mark.parametrize("code", [101, 200, 404, 502])
async def test_an_upgrade_behind_a_proxy_is_spent_whatever_is_answered(addon, code):
    """The program there may have done what the GET says, and just not upgraded."""
    target = f"{PODS}/web-1/proxy/do-it"
    addon.server.live[f"{PODS}/web-1"] = {"kind": "Pod", "metadata": {"uid": "uid-1"}, "spec": {"containers": []}}
    flow, name = await passed(addon, method="GET", target=target, Upgrade="websocket", Connection="Upgrade")
    release(flow, code)
    await heads(addon, flow)
    assert record_of(addon, name).phase is Phase.USED


@pytest.mark.parametrize(("code", "refused"), [(200, None), (409, None), (422, "approval-void")])
async def test_a_json_patch_is_bound_to_the_state_of_the_last_look(addon, code, refused):
    target = "/api/v1/namespaces/shop/configmaps/c"
    there = {"kind": "ConfigMap", "metadata": {"uid": "uid-1", "resourceVersion": "17"}, "data": {"a": "b"}}
    addon.server.live[target] = there
    addon.server.dry_run = Answer(200, json.dumps(there).encode())
    patch = [{"op": "copy", "from": "/data/a", "path": "/data/b"}]
    media = {"Content_Type": "application/json-patch+json"}
    flow, _ = await passed(addon, method="PATCH", target=target, body=patch, **media)
    test = {"op": "test", "path": "/metadata/resourceVersion", "value": "17"}
    assert json.loads(flow.request.content) == [test, *patch]
    release(flow, code)
    await heads(addon, flow)
    refusal = facts.of(flow).answer_refusal
    assert (refusal.cause if refusal else None) == refused


@pytest.mark.parametrize(
    ("released", "tcp", "tls", "phase"),
    [
        pytest.param(True, None, None, Phase.APPROVED, id="not connected"),
        pytest.param(True, 1.0, None, Phase.APPROVED, id="no TLS"),
        pytest.param(True, 1.0, 2.0, Phase.USED, id="broke after it was sent"),
        pytest.param(False, 1.0, 2.0, Phase.APPROVED, id="never released"),
    ],
)
async def test_a_broken_connection_gives_back_only_if_nothing_was_sent(addon, released, tcp, tls, phase):
    flow, name = await passed(addon)
    known = facts.of(flow)
    known.refusal, known.released = object(), released
    flow.server_conn.tls = True
    flow.server_conn.timestamp_tcp_setup, flow.server_conn.timestamp_tls_setup = tcp, tls
    if (waiting := addon.error(flow)) is not None:
        await waiting
    assert record_of(addon, name).phase is phase


async def test_what_cannot_be_given_back_is_logged_and_stays_spent(addon, caplog, monkeypatch):
    async def fails(*_args):
        raise store.StoreError("state.db is busy")

    flow, name = await passed(addon)
    monkeypatch.setattr(addon.store, "apply", fails)
    facts.of(flow).refusal = object()
    flow.response = http.Response.make(503)
    await heads(addon, flow)
    assert f"approval {name} stays spent" in caplog.text
    assert record_of(addon, name).phase is Phase.USED


# ----- streams that a grant opened -----


@pytest.fixture
def cuts(monkeypatch):
    found = []
    monkeypatch.setattr(approve.cutting, "cut", lambda flow, refusal: found.append((flow, refusal.cause)))
    return found


async def granted(one):
    """An exec that a grant let pass, and that grant."""
    rule = hold(grant_for=600, grant_scope="rule")
    yes = grant(record("apr-1", rule, now=one.clock()), now=one.clock())
    await one.book.add(GRANTS, yes)
    target = f"{PODS}/web-1/exec?command=sh&container=web"
    flow = await ask(one, a_flow("GET", target, Upgrade="websocket", Connection="Upgrade"))
    assert facts.of(flow).approval == yes.name
    flow.client_conn.state = approve.connection.ConnectionState.OPEN
    return flow, yes


async def revoked(one, yes):
    await one.book.step(GRANTS, yes.name, lambda kept: approvals.revoke(kept, "alice", one.clock()))


async def over(one, yes):
    now = yes.until
    one.clock = one.desk.clock = lambda: now


async def removed(one, yes):
    await one.book.remove(GRANTS, yes.name)


@pytest.mark.parametrize("end", [revoked, over, removed])
async def test_a_stream_ends_with_its_grant(addon, cuts, end):
    flow, yes = await granted(addon)
    release(flow, 101)
    await heads(addon, flow)
    addon.response(flow)  # which only begins it
    addon.sweep()
    assert cuts == []
    await end(addon, yes)
    addon.sweep()
    addon.sweep()
    assert cuts == [(flow, "grant-over")]


@pytest.mark.parametrize(
    "ends",
    [
        pytest.param(lambda a, f: a.websocket_end(f), id="the stream ended"),
        pytest.param(lambda a, f: (release(f, 403), a.response(f)), id="it never began"),
        pytest.param(
            lambda a, f: setattr(f.client_conn, "state", approve.connection.ConnectionState.CLOSED), id="gone"
        ),
    ],
)
async def test_what_is_over_is_not_cut(addon, cuts, ends):
    flow, yes = await granted(addon)
    release(flow, 101)
    ends(addon, flow)
    await revoked(addon, yes)
    addon.sweep()
    assert cuts == []
    assert flow not in addon.granted


async def test_what_was_not_released_is_not_cut(addon, cuts):
    _, yes = await granted(addon)
    await revoked(addon, yes)
    addon.sweep()
    assert cuts == []


async def test_one_trouble_does_not_end_the_sweeping(monkeypatch, caplog):
    monkeypatch.setattr(approve, "SWEEP", 0.001)
    async with started() as (one, _):
        swept = []

        def sweep():
            swept.append(1)
            raise RuntimeError("odd")

        one.sweep = sweep
        await until(lambda: len(swept) > 2)
    assert "ending what ended grants had opened" in caplog.text


# ----- whoever can answer is told -----


class Notifier:
    def __init__(self):
        self.sent = []

    def send(self, one):
        self.sent.append(one.name)

    async def stop(self):
        pass


async def test_each_new_question_is_told_once(addon):
    addon.notifier = Notifier()
    for _ in range(2):
        await ask(addon, a_flow(verdict=held(AT_ONCE)))
    (one,) = records_of(addon)
    assert addon.notifier.sent == [one.name]
    await decide(addon, one.name)
    assert addon.latest(one).phase is Phase.APPROVED
    assert addon.latest(record("apr-none")) is None  # nobody is told of what is gone


async def test_an_access_request_is_told_of_too(addon):
    one = access_request(now=addon.clock())
    await addon.book.add(REQUESTS, one)
    assert addon.latest(one) == one
    addon.book = None
    assert addon.latest(one) is None


def test_a_bad_notifier_is_an_error():
    one = approve.Approve()
    with taddons.context(one, loadcore=False) as tctx, pytest.raises(exceptions.OptionsError):
        tctx.configure(one, tollgate_notify_webhook=["http://example.com/x"])


async def test_notifications_are_not_changed_under_a_running_gateway():
    async with started() as (one, tctx):
        with pytest.raises(exceptions.OptionsError, match="cannot be changed while the gateway runs"):
            one.set_up_notifier()
        assert tctx.options.tollgate_notify_command == ""


# ----- the virtual API -----


async def test_a_request_for_our_group_is_pointed_here_with_a_ticket_and_nothing_else(addon):
    flow = a_flow(
        "PATCH",
        f"{OURS}/apr-1",
        {"spec": {"decision": "Approved"}},
        verdict=Verdict(Action.ALLOW),
        Content_Type=MERGE,
        Accept=JSON,
        User_Agent="kubectl",
        Tollgate_Ticket="0" * 32,
        Authorization="Bearer x",
        Cookie="a=b",
        X_Forwarded_For="6.6.6.6",
        Impersonate_User="root",
        X_Remote_User="root",
        Transfer_Encoding="chunked",
        Host="evil",
    )
    assert addon.request(flow) is None
    known, request = facts.of(flow), flow.request
    address = ("127.0.0.1", addon.virtual.port)
    assert (known.passed, known.served_here) == ({STAMP}, address)
    assert (request.scheme, request.host, request.port) == ("http", *address)
    sent = {name.lower(): request.headers.get_all(name) for name in request.headers}
    (ticket,) = sent.pop("tollgate-ticket")
    assert ticket != "0" * 32
    assert sent == {
        "content-type": [MERGE],
        "accept": [JSON],
        "user-agent": ["kubectl"],
        "content-length": [str(len(request.raw_content))],
        "host": [f"127.0.0.1:{address[1]}"],
    }
    assert request.path == f"{OURS}/apr-1"


async def test_the_ticket_is_of_who_asks(addon):
    def viewer(identity):
        flow = a_flow("GET", OURS, identity=identity, verdict=Verdict(Action.ALLOW))
        addon.request(flow)
        return addon.virtual._tickets[flow.request.headers[TICKET_HEADER]].viewer

    agent, human = viewer(AGENT), viewer(Identity("jane", groups=("people", "auditors")))
    assert (agent.identity, agent.agent, agent.auditor, agent.revision) == (AGENT, True, False, POLICIES.revision)
    assert (human.agent, human.auditor) == (False, True)
    assert viewer(None).identity == ANONYMOUS


async def test_what_a_viewer_may_read_and_ask_for(addon):
    flow = a_flow("GET", OURS, verdict=Verdict(Action.ALLOW))
    viewer = addon.viewer(facts.of(flow))
    holds, why = viewer.ask_ahead(approvals.Access(("create",), ("namespaces",), "", 60))
    assert (holds, bool(why)) == ((), True)
    facts.of(flow).policies = None
    assert (addon.viewer(facts.of(flow)).agent, addon.viewer(facts.of(flow)).auditor) == (True, False)


@pytest.mark.parametrize(
    ("policy", "rbac", "may"),
    [
        pytest.param(True, True, True, id="both let him"),
        pytest.param(False, True, False, id="the policies do not"),
        pytest.param(True, False, False, id="RBAC does not"),
    ],
)
async def test_what_an_approver_may_read(addon, policy, rbac, may):
    reads = b"- {name: reads, action: allow, match: {verbs: [get], resources: ['*.apps/scale', '*.apps']}}\n"
    policies = policyfile.parse({"agents.yaml": POLICY + (reads if policy else b"")})
    flow = a_flow("GET", OURS, verdict=Verdict(Action.ALLOW))
    facts.of(flow).policies = lambda: policies
    addon.rights = Rights(addon.server)
    addon.server.dry_run = Answer(201, json.dumps({"status": {"allowed": rbac}}).encode())
    assert await addon.viewer(facts.of(flow)).may_read(record()) is may


async def test_a_hold_on_our_group_is_refused(addon):
    flow = a_flow("PATCH", f"{OURS}/apr-1", {"spec": {}}, verdict=held(), Content_Type=MERGE)
    assert addon.request(flow) is None
    assert (cause(flow), facts.of(flow).passed) == ((403, "approval-of-approvals"), set())
    assert facts.of(flow).served_here is None


def test_watches_begin_anew_when_the_policies_change(addon):
    ended = []
    addon.virtual.end_watches = lambda: ended.append(1)
    changed = policyfile.parse({"agents.yaml": POLICY.replace(b"freeze", b"no-deletes")})
    for policies, count in ((POLICIES, 0), (POLICIES, 0), (changed, 1), (changed, 1)):
        flow = a_flow("GET", PODS, verdict=Verdict(Action.ALLOW))
        facts.of(flow).policies = lambda policies=policies: policies
        addon.request(flow)
        assert len(ended) == count


def review(**attributes):
    return {"kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}


REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@pytest.mark.parametrize(
    ("verb", "allowed"),
    [pytest.param("list", True, id="allowed"), pytest.param("delete", False, id="denied")],
)
def test_what_only_we_can_answer_is_answered(addon, verb, allowed):
    body = review(group="tollgate.dev", resource="approvals", verb=verb)
    flow = a_flow("POST", REVIEWS, body, verdict=Verdict(Action.ALLOW))
    assert addon.request(flow) is None
    assert facts.of(flow).answered_by == addon.name
    assert not facts.of(flow).passed
    answer = json.loads(flow.response.content)
    assert (flow.response.status_code, answer["status"]["allowed"]) == (201, allowed)


def test_a_review_about_others_goes_up(addon):
    flow = a_flow("POST", REVIEWS, review(group="apps", resource="deployments", verb="get"), verdict=held(RULE))
    facts.of(flow).verdict = Verdict(Action.ALLOW)
    addon.request(flow)
    assert (facts.of(flow).passed, flow.response) == ({STAMP}, None)
    assert flow not in addon.changes


AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


def discovering(addon, target="/apis", **headers):
    flow = a_flow("GET", target, verdict=Verdict(Action.ALLOW), **headers)
    addon.request(flow)
    assert facts.of(flow).passed == {STAMP}
    return flow


async def merged(addon, flow, content, content_type=JSON, code=200):
    release(flow, code, {"content-type": content_type, "etag": '"abc"'})
    await heads(addon, flow)
    known = facts.of(flow)
    known.answer, flow.response = flow.response, http.Response.make(502)  # the guard withholds it
    known.answer.content = content
    addon.response(flow)
    assert (addon.name, "response") in known.passed
    return known.answer


async def test_discovery_has_our_group(addon):
    flow = discovering(addon, Accept=f"{AGGREGATED},application/vnd.kubernetes.protobuf;q=0.5,application/json")
    assert facts.of(flow).whole
    assert flow.request.headers["accept"] == f"{AGGREGATED},application/json"
    theirs = json.dumps({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}).encode()
    answer = await merged(addon, flow, theirs)
    assert [g["name"] for g in json.loads(answer.content)["groups"]] == ["tollgate.dev"]
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["etag"] == virtualdiscovery.etag_out('"abc"') != '"abc"'


@pytest.mark.parametrize(
    ("sent", "up"),
    [
        pytest.param(virtualdiscovery.etag_out('"abc"'), '"abc"', id="from us"),
        pytest.param('"abc"', None, id="from the API server itself"),
        pytest.param("", None, id="none"),
    ],
)
def test_etags_on_the_way_up(addon, sent, up):
    flow = discovering(addon, "/openapi/v3", If_None_Match=sent)
    assert flow.request.headers.get("if-none-match") == up


async def test_a_page_that_did_not_change(addon):
    flow = discovering(addon)
    answer = await merged(addon, flow, b"", code=304)
    assert (answer.content, answer.headers["etag"]) == (b"", virtualdiscovery.etag_out('"abc"'))


@pytest.mark.parametrize(
    ("target", "content", "content_type"),
    [
        pytest.param("/apis", b"\x00k8s", "application/vnd.kubernetes.protobuf", id="protobuf"),
        pytest.param("/apis", b"{", JSON, id="half"),
        pytest.param("/apis", b"[]", JSON, id="a list"),
        pytest.param("/apis", b'{"kind":"APIGroupList","groups":7}', JSON, id="no list of groups"),
        pytest.param("/openapi/v3", b'{"paths":[]}', JSON, id="no paths"),
        pytest.param("/apis", b"", JSON, id="nothing"),
    ],
)
async def test_garbage_passes_unchanged(addon, caplog, target, content, content_type):
    answer = await merged(addon, discovering(addon, target), content, content_type)
    assert answer.content == content
    assert "etag" not in answer.headers  # or it would be kept as if ours were in it
    assert "passed on without tollgate.dev" in caplog.text


async def test_a_rules_review_has_our_rules(addon):
    target = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    flow = a_flow("POST", target, {"spec": {"namespace": "shop"}}, verdict=Verdict(Action.ALLOW))
    addon.request(flow)
    answer = await merged(addon, flow, b'{"status":{"resourceRules":[]}}', code=201)
    rules = json.loads(answer.content)["status"]["resourceRules"]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"get", "list", "watch"}


async def test_a_refusal_in_the_place_of_discovery_is_not_touched(addon):
    answer = await merged(addon, discovering(addon), b'{"kind":"Status"}', code=403)
    assert answer.content == b'{"kind":"Status"}'


def test_a_write_is_never_looked_through_for_discovery(addon):
    flow = a_flow("POST", "/apis", {}, verdict=Verdict(Action.ALLOW))
    addon.request(flow)
    assert flow not in addon.changes


# ----- at the console -----


async def commanded(one, act, flow, *args):
    act(flow, *args)
    await asyncio.wait(list(one.tasks), timeout=LATER)


async def test_the_operator_says_yes(caplog):
    async with started() as (one, tctx):
        tctx.options.update(tollgate_operator="jo")
        flow = a_flow()
        task, name = await pending(one, flow)
        await commanded(one, one.approve, flow, "looks right")
        await finish(task)
        assert STAMP in facts.of(flow).passed
        (decision,) = record_of(one, name).decisions
        assert (decision.username, decision.via, decision.reason) == ("operator:jo", "operator", "looks right")
        assert f"approval {name}: approved by operator:jo" in caplog.text
        assert not one.tasks


async def test_the_operator_says_no(addon):
    flow = a_flow()
    task, _ = await pending(addon, flow)
    await commanded(addon, addon.deny, flow, "not today")
    await finish(task)
    assert (cause(flow), "not today" in message(flow)) == ((403, "approval-denied"), True)


async def test_what_the_operator_may_not(addon, caplog):
    flow = a_flow(verdict=held(hold(wait=20, require_reason=True)))
    task, name = await pending(addon, flow)
    await commanded(addon, addon.approve, flow)
    assert f"approval {name}: the rule wants a reason" in caplog.text
    assert record_of(addon, name).phase is Phase.PENDING
    await commanded(addon, addon.approve, flow, "because")
    await finish(task)
    assert STAMP in facts.of(flow).passed


async def test_one_operator_is_one_person(addon, caplog):
    flow = a_flow(verdict=held(hold(wait=20, needed=2)))
    task, name = await pending(addon, flow)
    for _ in range(2):
        await commanded(addon, addon.approve, flow)
    assert record_of(addon, name).phase is Phase.PENDING
    assert "you have already decided this" in caplog.text
    await decide(addon, name)
    await finish(task)


def no_name():
    raise KeyError("getpwuid(): uid not found: 4711")


async def test_commands_that_cannot_be_done(monkeypatch):
    async with started() as (one, _):
        for flow in (a_flow(), tflow.ttcpflow()):
            with pytest.raises(exceptions.CommandError, match="waits for no approval"):
                one.approve(flow)
        flow = a_flow()
        task, name = await pending(one, flow)
        monkeypatch.setattr("getpass.getuser", no_name)
        with pytest.raises(exceptions.CommandError, match="set tollgate_operator"):
            one.approve(flow)
        assert record_of(one, name).phase is Phase.PENDING
        one.desk.stopping = True
        await finish(task)


class Console:
    name = "console"

    def __init__(self):
        self.bound = {}

    @command.command("console.key.bind")
    def bind(self, contexts: Sequence[str], key: str, cmd: str, rest: Sequence[str]) -> None:
        self.bound[key] = cmd


def test_keys_of_the_terminal_interface():
    one = Console()
    with taddons.context(one, loadcore=False):
        approve.bind_keys()
    assert one.bound == {"ctrl y": "tollgate.approve @focus", "ctrl n": "tollgate.deny @focus"}


# ----- in a mitmproxy -----


class Judges:
    """Stands in for authenticate, classify and block."""

    name = "judges"

    def __init__(self):
        self.flows = []
        self.ticket = None

    def request(self, flow):
        self.flows.append(flow)
        allowed = "tollgate.dev" in flow.request.path or flow.request.method == "GET"
        identity = OTHER_AGENT if "x-other" in flow.request.headers else AGENT
        fill(flow, Verdict(Action.ALLOW) if allowed else held(), identity)


def answer(peer, sid, head):
    peer.respond(sid, 201, b"{}", headers=(("content-type", JSON),))


@contextlib.asynccontextmanager
async def gateway(tls, confdir, upstream):
    one, judges = approve.Approve(), Judges()
    async with proxy.running(upstream, tls.combined, tls.ca_file, confdir, judges, one, tollgate_state="") as port:
        await until(one.ready)
        one.server = ApiServer()
        yield one, judges, port


BODY = json.dumps({"kind": "Namespace", "metadata": {"name": "x"}}).encode()
CREATE = {"path": "/api/v1/namespaces", "method": "POST", "body": BODY, "headers": (("content-type", JSON),)}


async def test_a_held_request_goes_up_once_after_the_yes(tls, confdir):
    async with (
        http2.server(tls.combined, answer) as (upstream, peers),
        gateway(tls, confdir, upstream) as (one, judges, port),
        http2.connect(port, tls.ca_file) as client,
    ):
        waits = client.start(**CREATE)
        name = await until(lambda: judges.flows and facts.of(judges.flows[0]).held_for)
        # Others on the same connection are not held up.
        assert (await client.request("/api")).status == 201
        assert not any(head[":method"] == "POST" for peer in peers for _, head in peer.requests)
        await decide(one, name)
        await waits.until(lambda a: a.ended.is_set())
        assert waits.status == 201
        assert sum(head[":method"] == "POST" for peer in peers for _, head in peer.requests) == 1
        assert record_of(one, name).phase is Phase.USED


async def reset(client):
    client.connection.reset_stream(1)
    client.flush()


async def hang_up(client):
    await client.close()


@pytest.mark.parametrize("leave", [pytest.param(reset, id="RST_STREAM"), pytest.param(hang_up, id="closed")])
async def test_a_client_that_left_writes_nothing(tls, confdir, leave):
    async with (
        http2.server(tls.combined, answer) as (upstream, peers),
        gateway(tls, confdir, upstream) as (one, judges, port),
        http2.connect(port, tls.ca_file) as client,
    ):
        client.start(**CREATE)
        name = await until(lambda: judges.flows and facts.of(judges.flows[0]).held_for)
        await leave(client)
        await until(lambda: not record_of(one, name).waiting)
        assert "the client left" in record_of(one, name).message
        await decide(one, name)
        async with http2.connect(port, tls.ca_file) as again:  # the retry can still use it
            assert (await again.request(**CREATE)).status == 201
        assert sum(len(peer.requests) for peer in peers) == 1


async def test_http1_clients_leave_too(tls, confdir):
    async with (
        http2.server(tls.combined, answer) as (upstream, peers),
        gateway(tls, confdir, upstream) as (one, judges, port),
    ):
        context = ssl.create_default_context(cafile=tls.ca_file)
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        head = f"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: {len(BODY)}"
        writer.write(head.encode() + b"\r\n\r\n" + BODY)
        name = await until(lambda: judges.flows and facts.of(judges.flows[0]).held_for)
        writer.close()
        await until(lambda: not record_of(one, name).waiting)
        await decide(one, name)
        assert record_of(one, name).phase is Phase.APPROVED
        await until(lambda: judges.flows[0].error)
        assert not any(peer.requests for peer in peers)


async def breaks(peer, sid, head):
    peer.writer.close()


async def test_a_connection_that_breaks_leaves_it_spent(tls, confdir):
    async with (
        http2.server(tls.combined, breaks) as (upstream, peers),
        gateway(tls, confdir, upstream) as (one, judges, port),
        http2.connect(port, tls.ca_file) as client,
    ):
        waits = client.start(**CREATE)
        name = await until(lambda: judges.flows and facts.of(judges.flows[0]).held_for)
        await decide(one, name)
        await waits.until(lambda a: a.ended.is_set())
        assert sum(len(peer.requests) for peer in peers) == 1
        assert record_of(one, name).phase is Phase.USED


async def test_an_api_server_that_is_not_there_gives_back(tls, confdir):
    async with http2.server(tls.combined, answer) as (upstream, _):
        pass  # its port is free again
    async with gateway(tls, confdir, upstream) as (one, judges, port), http2.connect(port, tls.ca_file) as client:
        waits = client.start(**CREATE)
        name = await until(lambda: judges.flows and facts.of(judges.flows[0]).held_for)
        await decide(one, name)
        await waits.until(lambda a: a.ended.is_set())
        assert waits.status == 502
        await until(lambda: record_of(one, name).phase is Phase.APPROVED)


async def test_the_virtual_api_through_the_proxy(tls, confdir):
    async with (
        http2.server(tls.combined, answer) as (upstream, peers),
        gateway(tls, confdir, upstream) as (one, _, port),
        http2.connect(port, tls.ca_file) as client,
    ):
        await one.book.add(APPROVALS, record(now=one.clock()))
        forged = (("tollgate-ticket", "0" * 32), ("authorization", "Bearer x"))
        mine = await client.request(OURS, headers=forged)
        assert [item["metadata"]["name"] for item in json.loads(mine.body)["items"]] == ["apr-7f3k"]
        others = await client.request(OURS, headers=(("x-other", "1"),))
        assert json.loads(others.body)["items"] == []
        assert not any(peer.requests for peer in peers)
        # Whoever finds the port has no ticket.
        async with (
            aiohttp.ClientSession() as direct,
            direct.get(f"http://127.0.0.1:{one.virtual.port}{OURS}") as refused,
        ):
            assert refused.status == 403
