import asyncio
import hashlib
import json
import logging
import os
from dataclasses import replace

import pytest
from mitmproxy import connection, http
from mitmproxy.exceptions import OptionsError
from mitmproxy.test import taddons, tflow

from addons import block
from addons.core import admission, classify, facts, policy
from addons.core.doctor import Level
from addons.core.model import Action, Approval, Hold, Identity, Impact, Operation, RequestInfo, Verdict
from addons.net import store
from addons.net.apiserver import Answer, ApiServerError

STAMP = ("tollgate_block", "request")
RULES = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: p}
rules:
- {name: reads, action: allow, match: {users: [agent], verbs: [get, list]}}
- {name: no-secrets, action: deny, match: {resources: [secrets]}}
- {name: ask-for-exec, action: hold, match: {users: [agent], resources: [pods/exec]}, approval: {groups: [oncall]}}
"""


def operation(verb="get", resource="pods"):
    resource, _, subresource = resource.partition("/")
    info = RequestInfo(verb, "/x", True, "api", "", "v1", "shop", resource, subresource, "web")
    return Operation(info, "GET", frozenset({Impact.READ}), "web")


def flow_of(op=None, user="agent"):
    flow = tflow.tflow()
    facts.of(flow).operation = op or operation()
    facts.of(flow).identity = Identity(user) if user else None
    return flow


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(RULES)
    return file


@pytest.fixture
def context(file):
    with taddons.context(block.PolicyBlock()) as tctx:
        yield tctx


@pytest.fixture
def configured(context, file):
    addon = context.master.addons.get("tollgate_block")
    context.configure(addon, tollgate_policies=str(file))
    return addon


@pytest.mark.parametrize(
    ("user", "verb", "resource", "rule", "code"),
    [
        pytest.param("agent", "get", "pods", "reads", None, id="allowed"),
        pytest.param("agent", "get", "secrets", "no-secrets", 403, id="deny beats allow"),
        pytest.param("agent", "create", "pods/exec", "ask-for-exec", 403, id="held, and nobody to ask yet"),
        pytest.param("agent", "delete", "pods", "", 403, id="nothing allows it"),
        pytest.param("ghost", "get", "pods", "", 403, id="unknown user"),
        pytest.param(None, "get", "pods", "", 403, id="no authenticate in the stack: anonymous"),
    ],
)
def test_request(configured, user, verb, resource, rule, code):
    flow = flow_of(operation(verb, resource), user)
    configured.request(flow)
    known = facts.of(flow)
    assert known.verdict.rule == rule
    assert known.passed == (set() if code else {STAMP})
    assert known.answered_by == (configured.name if code else "")
    assert (flow.response and flow.response.status_code) == code


def test_unclassified_request_does_not_pass(configured):
    flow = tflow.tflow()
    with pytest.raises(facts.NotClassified):
        configured.request(flow)
    assert not facts.of(flow).passed


def test_first_answer_stands(configured):
    flow = flow_of()
    facts.of(flow).answered_by = "tollgate_authenticate"
    configured.request(flow)
    assert flow.response is None
    assert not facts.of(flow).passed


def test_not_configured_denies():
    addon, flow = block.PolicyBlock(), flow_of()
    addon.request(flow)
    assert flow.response.status_code == 403
    assert not facts.of(flow).passed


def test_defaults_deny_everything():
    addon = block.PolicyBlock()
    with taddons.context(addon) as tctx:
        tctx.configure(addon)
    assert addon.policy is policy.DENY_ALL
    assert not addon.observe


def test_unreadable_policy_denies_everything(tmp_path):
    addon = block.PolicyBlock()
    with taddons.context(addon) as tctx, pytest.raises(OptionsError, match=r"tollgate_policies: .*absent"):
        tctx.configure(addon, tollgate_policies=str(tmp_path / "absent.yaml"))
    assert addon.policy is policy.DENY_ALL


def test_a_bad_set_keeps_the_old_policy(context, configured, tmp_path):
    (tmp_path / "q.yaml").write_text("kind: Policy")
    old = configured.policy
    with pytest.raises(OptionsError, match=r"q\.yaml:1: apiVersion: is missing"):
        context.configure(configured, tollgate_policies=os.pathsep.join(map(str, tmp_path.iterdir())))
    assert configured.policy.revision == old.revision
    assert configured.paths == (tmp_path / "p.yaml",)


def test_observe_lets_pass_and_tells(context, configured, caplog):
    caplog.set_level(logging.INFO)
    flow = flow_of(operation("delete"))
    context.configure(configured, tollgate_observe=True)
    configured.request(flow)
    known = facts.of(flow)
    assert flow.response is None
    assert known.passed == {STAMP}
    assert [v.action for v in known.verdict.observed] == [Action.DENY]
    assert "tollgate_observe is on" in caplog.text
    assert "observed: deny 'delete pods web in namespace shop' for 'agent' by no rule" in caplog.text


def test_observe_needs_policies():
    # A mistyped or empty path must not become "everything is let through".
    addon = block.PolicyBlock()
    with taddons.context(addon) as tctx, pytest.raises(OptionsError, match="tollgate_observe: needs"):
        tctx.configure(addon, tollgate_observe=True)
    assert not addon.observe


def test_observe_with_a_bad_policy_stays_off(tmp_path):
    addon = block.PolicyBlock()
    with taddons.context(addon) as tctx, pytest.raises(OptionsError):
        tctx.configure(addon, tollgate_policies=str(tmp_path / "absent"), tollgate_observe=True)
    assert not addon.observe


def test_the_log_cannot_be_forged(configured, caplog):
    caplog.set_level(logging.INFO)
    configured.request(flow_of(user="agent\nallow 'everything'"))
    assert "\nallow" not in caplog.text


# Reload


def change(file, text):
    old = file.stat().st_mtime_ns
    file.write_text(text)
    os.utime(file, ns=(old + 1, old + 1))  # however coarse the file system's clock is


async def test_reload_takes_over_a_change(configured, file, caplog):
    caplog.set_level(logging.INFO)
    change(file, RULES.replace("verbs: [get, list]", "verbs: [list]"))
    await configured.reload()
    assert configured.evaluate(Identity("agent"), operation()).action is Action.DENY
    assert f"reloaded, revision {configured.policy.revision}: ~ p/reads" in caplog.text


async def test_reload_without_a_change_does_nothing(configured):
    old = configured.policy
    await configured.reload()
    assert configured.policy is old


async def test_reload_of_a_bad_file_keeps_the_old_policy_and_says_so_once(configured, file, caplog):
    old = configured.policy
    change(file, RULES.replace("action: deny", "action: denny"))
    await configured.reload()
    await configured.reload()
    assert configured.policy is old
    assert caplog.text.count("unknown value 'denny'; did you mean deny?") == 1
    assert f"revision {old.revision} stays in force" in caplog.text


async def test_reload_after_the_mistake_is_mended(configured, file):
    change(file, "kind: [")
    await configured.reload()
    change(file, RULES)
    await configured.reload()
    assert configured.evaluate(Identity("agent"), operation()).action is Action.ALLOW


async def test_reload_of_a_vanished_file_keeps_the_old_policy(configured, file, caplog):
    file.unlink()
    await configured.reload()
    assert configured.evaluate(Identity("agent"), operation()).action is Action.ALLOW
    assert "cannot be read" in caplog.text


async def test_the_watcher_sees_a_change(configured, file, monkeypatch):
    monkeypatch.setattr(block, "POLL", 0.001)
    old = configured.policy
    configured.running()
    change(file, RULES + "- {name: more, action: allow, match: {verbs: [watch]}}\n")
    async with asyncio.timeout(10):
        while configured.policy is old:
            await asyncio.sleep(0)
    configured.done()
    await asyncio.wait([configured.watcher])
    assert configured.watcher.cancelled()


async def test_the_watcher_survives_what_nobody_thought_of(configured, file, monkeypatch, caplog):
    monkeypatch.setattr(block, "POLL", 0.001)
    left = iter([RuntimeError("odd")])
    reload, reloaded = configured.reload, asyncio.Event()

    async def odd():
        for error in left:
            raise error
        await reload()
        reloaded.set()

    configured.reload = odd
    configured.running()
    async with asyncio.timeout(10):
        await reloaded.wait()
    configured.done()
    assert "looking for changes failed" in caplog.text


def test_done_before_running():
    block.PolicyBlock().done()


# Budgets

BUDGETS = (
    RULES
    + """
- {name: deletes, action: allow, match: {users: [agent], verbs: [delete]}, record: request}
- {name: secrets, action: allow, match: {users: [agent], verbs: [get], resources: [configmaps]}}
budgets:
- {name: few, match: {impacts: [delete]}, limit: 2, window: 10m, per: identity}
- {name: fewer-db, match: {resourceNames: [db], impacts: [delete]}, limit: 1, window: 1h, per: namespace, over: hold}
"""
)
NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def budgeted(file, tmp_path, clock):
    """An addon with budgets and a state folder of its own."""
    file.write_text(BUDGETS)
    addon = block.PolicyBlock(clock)
    with taddons.context(addon) as tctx:
        tctx.configure(addon, tollgate_policies=str(file), tollgate_state=str(tmp_path / "state"))
        opened = addon.store
        yield addon
        opened.close()  # a test may have put another in its place


def deletion(name="web", **more):
    info = RequestInfo("delete", "/x", True, "api", "", "v1", "shop", "pods", "", name)
    return Operation(info, "DELETE", frozenset({Impact.DELETE}), name, **more)


async def ask(addon, op):
    """The request hook, as mitmproxy calls it: what comes back is awaited."""
    flow = flow_of(op)
    waiting = addon.request(flow)
    if waiting is not None:
        assert STAMP not in facts.of(flow).passed  # not before the answer of the store
        await waiting
    return flow


async def answer(addon, flow, code):
    """What follows a release: the head of the API server's answer."""
    known = facts.of(flow)
    known.refusal, known.released = object(), True
    flow.response = http.Response.make(code)
    if (waiting := addon.responseheaders(flow)) is not None:
        await waiting


def message(flow):
    return json.loads(flow.response.content)["message"]


async def test_up_to_the_budget(budgeted, clock):
    flows = [await ask(budgeted, deletion()) for _ in range(3)]
    assert [f.response and f.response.status_code for f in flows] == [None, None, 403]
    assert [facts.of(f).passed for f in flows] == [{STAMP}, {STAMP}, set()]
    over = facts.of(flows[2])
    assert (over.answered_by, over.verdict.action, over.verdict.rule) == (budgeted.name, Action.DENY, "few")
    assert over.verdict.record == "request"  # of the rule that allowed it before
    assert flows[2].response.headers["Tollgate-Reason"] == "budget"
    assert message(flows[2]) == (
        "rule p/few: 2 operations in 10m per identity, 0 left; the next is free at 08:10:00 UTC; wait until then, or"
        " ask the policy's owners for more"
    )
    clock.now += 600
    assert (await ask(budgeted, deletion())).response is None


async def test_a_held_budget_is_refused_and_takes_nothing_of_the_others(budgeted):
    await ask(budgeted, deletion("db"))
    held = await ask(budgeted, deletion("db"))
    assert facts.of(held).verdict.action is Action.HOLD
    assert [h.rule for h in facts.of(held).verdict.holds] == ["fewer-db"]
    assert "over it a human must approve" in message(held)
    assert (await ask(budgeted, deletion())).response is None  # the second of `few`


async def test_of_parallel_requests_exactly_what_is_left_passes(budgeted):
    flows = await asyncio.gather(*(ask(budgeted, deletion()) for _ in range(20)))
    assert sum(f.response is None for f in flows) == 2


@pytest.mark.parametrize(
    "op",
    [
        pytest.param(operation(), id="a read"),
        pytest.param(operation("delete", "secrets"), id="denied by a rule"),
        pytest.param(operation("create", "pods/exec"), id="held by a rule"),
        pytest.param(replace(operation("delete"), dry_run=True), id="a dry run"),
    ],
)
def test_what_counts_for_no_budget_waits_for_nothing(budgeted, op):
    assert budgeted.request(flow_of(op)) is None
    assert not budgeted.reserved


@pytest.mark.parametrize(
    ("code", "left"),
    [
        pytest.param(200, 1, id="done"),
        pytest.param(404, 2, id="not there"),
        pytest.param(409, 2, id="conflict"),
        pytest.param(500, 1, id="who knows"),
    ],
)
async def test_what_the_api_server_did_not_do_is_given_back(budgeted, code, left):
    await answer(budgeted, await ask(budgeted, deletion()), code)
    flows = [await ask(budgeted, deletion()) for _ in range(2)]
    assert sum(f.response is None for f in flows) == left


async def test_what_a_later_addon_refuses_is_given_back(budgeted):
    flow = await ask(budgeted, deletion())
    facts.of(flow).refusal = object()  # a guard is in the stack, and released nothing
    flow.response = http.Response.make(403)
    await budgeted.responseheaders(flow)
    assert sum([(await ask(budgeted, deletion())).response is None for _ in range(3)]) == 2


async def test_a_stack_without_a_guard_does_not_give_back_what_was_sent(budgeted):
    flow = await ask(budgeted, deletion())
    flow.response = http.Response.make(200)
    assert budgeted.responseheaders(flow) is None


async def test_a_budget_is_given_back_once(budgeted):
    flow = await ask(budgeted, deletion())
    await answer(budgeted, flow, 404)
    assert budgeted.responseheaders(flow) is None
    assert budgeted.error(flow) is None


@pytest.mark.parametrize(
    ("tcp", "tls", "left"),
    [
        pytest.param(None, None, 2, id="not connected"),
        pytest.param(1.0, None, 2, id="no TLS"),
        pytest.param(1.0, 2.0, 1, id="broke after it was sent"),
    ],
)
async def test_a_broken_connection_gives_back_only_if_nothing_was_sent(budgeted, tcp, tls, left):
    flow = await ask(budgeted, deletion())
    facts.of(flow).refusal, facts.of(flow).released = object(), True
    flow.server_conn.tls = True
    flow.server_conn.timestamp_tcp_setup, flow.server_conn.timestamp_tls_setup = tcp, tls
    if (waiting := budgeted.error(flow)) is not None:
        await waiting
    assert sum([(await ask(budgeted, deletion())).response is None for _ in range(2)]) == left


async def test_an_error_without_a_reservation(budgeted):
    assert budgeted.error(flow_of()) is None


async def test_a_restart_keeps_the_counts(budgeted, file, tmp_path, clock):
    for _ in range(2):
        await ask(budgeted, deletion())
    budgeted.done()
    again = block.PolicyBlock(clock)
    with taddons.context(again) as tctx:
        tctx.configure(again, tollgate_policies=str(file), tollgate_state=str(tmp_path / "state"))
        assert (await ask(again, deletion())).response.status_code == 403
        again.done()


class Failing:
    """A store that never says yes."""

    def __init__(self, error=None):
        self.error = error or store.StoreError("state.db is busy: another process holds it")

    async def reserve(self, charges, now):
        raise self.error

    async def give_back(self, reservation):
        raise self.error


@pytest.mark.parametrize("broken", [Failing(), None], ids=["fails", "could not be opened"])
async def test_without_the_store_what_a_budget_counts_is_refused_and_reads_go_on(budgeted, broken):
    budgeted.store = broken
    refused = await ask(budgeted, deletion())
    assert refused.response.status_code == 503
    assert refused.response.headers["Tollgate-Reason"] == "state-store"
    assert "Retry-After" not in refused.response.headers
    assert "tollgate: the gateway cannot count for budget p/few" in message(refused)
    assert not facts.of(refused).passed
    assert facts.of(await ask(budgeted, operation())).passed == {STAMP}


async def test_what_cannot_be_given_back_stays_spent_and_is_logged(budgeted, caplog):
    flow = await ask(budgeted, deletion())
    budgeted.store = Failing()
    await answer(budgeted, flow, 404)
    assert "what was not used stays counted" in caplog.text


async def test_an_exception_in_the_store_leaves_no_stamp(budgeted):
    budgeted.store = Failing(RuntimeError("odd"))
    flow = flow_of(deletion())
    with pytest.raises(RuntimeError):
        await budgeted.request(flow)
    assert not facts.of(flow).passed


async def test_a_policy_that_observes_counts_and_stops_nothing(budgeted, file, caplog):
    caplog.set_level(logging.INFO)
    watching = BUDGETS.replace("name: p}", "name: o}\nmode: observe").replace("limit: 2", "limit: 1")
    change(file, RULES + "- {name: deletes, action: allow, match: {verbs: [delete]}}\n---\n" + watching)
    await budgeted.reload()
    flows = [await ask(budgeted, deletion()) for _ in range(2)]
    assert [facts.of(f).passed for f in flows] == [{STAMP}, {STAMP}]
    assert caplog.text.count("observed: deny 'delete pods web in namespace shop' for 'agent' by o/few") == 1


async def test_observe_counts_and_stops_nothing(budgeted, caplog):
    caplog.set_level(logging.INFO)
    budgeted.observe = True
    flows = [await ask(budgeted, deletion()) for _ in range(3)]
    flows.append(await ask(budgeted, operation("delete", "secrets")))  # a rule would have denied it: not counted
    assert [facts.of(f).passed for f in flows] == [{STAMP}] * 4
    assert caplog.text.count("by p/few") == 1
    budgeted.store = None
    assert facts.of(await ask(budgeted, deletion())).passed == {STAMP}


async def test_without_a_state_folder_budgets_are_in_memory_with_a_warning(context, configured, file, caplog):
    assert configured.store is None  # no budget needs it
    file.write_text(BUDGETS)
    context.configure(configured, tollgate_policies=f"{file}{os.pathsep}")
    assert "tollgate_state is not set: budgets are counted in memory" in caplog.text
    flows = [await ask(configured, deletion()) for _ in range(3)]
    assert [f.response is None for f in flows] == [True, True, False]
    configured.done()


async def test_a_reload_that_brings_budgets_opens_a_store(configured, file):
    change(file, BUDGETS)
    await configured.reload()
    assert configured.store is not None
    configured.done()


def test_a_state_folder_that_others_can_write(context, configured, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(OptionsError, match=r"tollgate_state: .*can be written by others"):
        context.configure(configured, tollgate_state=str(tmp_path / "state"))
    assert configured.store is None


def test_another_state_folder_is_another_store(context, configured, tmp_path):
    context.configure(configured, tollgate_state=str(tmp_path / "one"))
    first = configured.store
    context.configure(configured, tollgate_state=str(tmp_path / "two"))
    assert (tmp_path / "two" / "state.db").is_file()
    assert configured.store is not first
    configured.done()


# Objects

LOOKING = (
    RULES
    + """
- {name: patches, action: allow, match: {users: [agent], verbs: [patch], resources: [configmaps]}}
- name: keep
  action: deny
  match: {resources: [configmaps], verbs: [patch]}
  when: object.data.keep != oldObject.data.keep
  message: Keep it.
"""
)
BODY = b'{"data": {"keep": "no"}}'


class ApiServer:
    """Answers previews and reads with what it is told."""

    def __init__(self, preview, live):
        self.answers = {"preview": preview, "object": live}
        self.asked = []

    async def request(self, method, path, *, purpose, identity, **more):
        self.asked.append((method, path, identity and identity.username, more["body"]))
        if isinstance(self.answers[purpose], Exception):
            raise self.answers[purpose]
        return self.answers[purpose]


def thing(keep):
    return Answer(200, json.dumps({"kind": "ConfigMap", "data": {"keep": keep}}).encode())


def said(code, message):
    return Answer(code, json.dumps({"kind": "Status", "code": code, "message": message}).encode())


@pytest.fixture
def looking(context, file):
    addon = context.master.addons.get("tollgate_block")
    file.write_text(LOOKING)
    context.configure(addon, tollgate_policies=str(file))
    addon.server = ApiServer(thing("yes"), thing("yes"))
    return addon


def patching():
    target = "/api/v1/namespaces/shop/configmaps/web?fieldManager=x"
    media = "application/merge-patch+json"
    flow = flow_of(classify.classify("PATCH", target, {"content-type": media}, BODY))
    flow.request = http.Request.make("PATCH", f"https://api{target}", BODY, {"content-type": media})
    return flow


async def patch(addon):
    flow = patching()
    waiting = addon.request(flow)
    assert STAMP not in facts.of(flow).passed
    await waiting
    return flow


async def test_rules_are_judged_by_what_the_caller_would_see(looking):
    flow = await patch(looking)
    assert (flow.response, facts.of(flow).passed) == (None, {STAMP})
    path = "/api/v1/namespaces/shop/configmaps/web"
    assert looking.server.asked == [
        ("PATCH", f"{path}?dryRun=All&fieldManager=x", "agent", BODY),
        ("GET", path, "agent", None),
    ]


async def test_a_result_that_a_rule_denies(looking):
    looking.server = ApiServer(thing("no"), thing("yes"))
    flow = await patch(looking)
    assert flow.response.status_code == 403
    assert "rule p/keep denies this: Keep it." in flow.response.text
    assert not facts.of(flow).passed


async def test_what_the_api_server_refuses_is_relayed_word_for_word(looking):
    answer = said(409, 'conflict: "web" is not found')
    looking.server = ApiServer(answer, thing("yes"))
    flow = await patch(looking)
    known = facts.of(flow)
    assert (flow.response.status_code, flow.response.content) == (409, answer.body)
    assert "retry-after" not in flow.response.headers
    assert (known.answered_by, known.passed) == (looking.name, set())


async def test_what_the_api_server_refuses_is_masked(looking):
    """It is no answer that comes back through the stack, so addons/mask.py does not see it."""
    looking.server = ApiServer(said(422, "data: Invalid value: password=Canary-hunter2-Xq9"), thing("yes"))
    flow = await patch(looking)
    assert flow.response.status_code == 422
    assert "password=**masked:" in flow.response.text
    assert "hunter2" not in flow.response.text


@pytest.mark.parametrize(
    ("server", "why"),
    [
        pytest.param(ApiServer(ApiServerError("late"), thing("yes")), "the API server did not answer", id="late"),
        pytest.param(None, "the gateway has no API server to ask", id="no server"),
    ],
)
async def test_what_cannot_be_fetched_is_denied_and_said(looking, server, why):
    looking.server = server
    flow = await patch(looking)
    assert flow.response.status_code == 403
    assert why in flow.response.text
    assert not facts.of(flow).passed


async def test_nothing_is_fetched_for_what_no_rule_looks_at(looking):
    looking.request(flow_of())
    assert looking.server.asked == []


async def test_while_all_is_observed_the_api_servers_refusal_is_nobodys_answer(context, looking):
    context.configure(looking, tollgate_observe=True)
    looking.server = ApiServer(said(422, "no"), thing("yes"))
    flow = await patch(looking)
    assert (flow.response, facts.of(flow).passed) == (None, {STAMP})
    assert [v.action for v in facts.of(flow).verdict.observed] == [Action.DENY]


async def test_as_the_gateway_where_requests_go_up_as_the_gateway(context, looking):
    context.options.add_option("tollgate_upstream_identity", str, "gateway", "")
    await patch(looking)
    assert {asked[2] for asked in looking.server.asked} == {None}


async def test_the_policies_that_asked_decide(looking, file):
    # A reload while the objects are fetched may ask for others.
    flow = patching()
    hook = looking.request(flow)
    change(file, RULES)
    await looking.reload()
    await hook
    assert facts.of(flow).passed == {STAMP}


# Files


async def test_a_removed_file_keeps_the_policies_and_says_so(context, configured, file, tmp_path, caplog):
    more = tmp_path / "more.yaml"
    more.write_text(RULES.replace("{name: p}", "{name: q}"))
    context.configure(configured, tollgate_policies=str(tmp_path))
    old = configured.policy
    more.unlink()
    await configured.reload()
    await configured.reload()
    assert configured.policy is old
    assert caplog.text.count(f"{str(more)!r}; put it back, or restart without") == 1


def test_a_load_names_what_each_file_holds(context, configured, file, caplog):
    caplog.set_level(logging.INFO)
    context.configure(configured, tollgate_policies=f"{file}{os.pathsep}")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"policies: {str(file)!r} is sha256:{digest[:32]}…" in caplog.text


def test_a_policy_that_others_can_write_is_refused(context, configured, file):
    file.chmod(0o666)
    with pytest.raises(OptionsError, match=r"tollgate_policies: .*p\.yaml: every user can write it \(mode 0666\)"):
        context.configure(configured, tollgate_policies=f"{file}{os.pathsep}")


async def test_a_policy_that_others_can_write_is_not_reloaded(configured, file, caplog):
    old = configured.policy
    change(file, RULES.replace("action: deny", "action: allow"))
    file.chmod(0o666)
    await configured.reload()
    assert configured.policy is old
    assert "every user can write it" in caplog.text


# Open streams

STREAMS = RULES + "- {name: streams, action: allow, match: {users: [agent], verbs: [watch, create]}}\n"
NO_WATCH = STREAMS + "- {name: no-watch, action: deny, match: {verbs: [watch]}, message: Ask again later.}\n"


@pytest.fixture
def cuts(monkeypatch):
    """What was cut, with which refusal."""
    found = []
    monkeypatch.setattr(block.cutting, "cut", lambda flow, refusal: found.append((flow, refusal)))
    return found


@pytest.fixture
def streaming(configured, file, context):
    file.write_text(STREAMS)
    context.configure(configured, tollgate_policies=f"{file}{os.pathsep}")
    return configured


def opened(addon, op=None, user="agent", verdict=None):
    """A stream that was let through; `verdict`: what it was let through by, when no rule allowed it at once."""
    flow = flow_of(op or operation("watch"), user)
    known = facts.of(flow)
    addon.request(flow)
    if verdict is None:
        assert flow.response is None
    else:
        known.verdict, known.answered_by = verdict, ""
    known.refusal, known.released = object(), True
    flow.response = http.Response.make(200)
    addon.responseheaders(flow)
    assert (addon.name, "responseheaders") in known.passed
    return flow


async def reload(addon, file, text):
    change(file, text)
    await addon.reload()
    await addon.end_refused()


async def test_a_stream_that_the_new_policies_refuse_ends_with_the_rules_sentence(streaming, file, cuts, caplog):
    flow, other = opened(streaming), opened(streaming, operation("list"))
    await reload(streaming, file, NO_WATCH)
    assert [(f, r.code, r.message) for f, r in cuts] == [(flow, 403, "rule p/no-watch denies this: Ask again later.")]
    assert "a stream ends: deny 'watch pods web in namespace shop' for 'agent' by p/no-watch" in caplog.text
    assert list(streaming.open) == [other]
    await reload(streaming, file, STREAMS)
    await reload(streaming, file, NO_WATCH)
    assert len(cuts) == 1


async def test_a_stream_that_no_rule_allows_any_more_ends(streaming, file, cuts):
    flow = opened(streaming)
    await reload(streaming, file, RULES)
    assert [(f, r.cause) for f, r in cuts] == [(flow, "policy-no-match")]


async def test_without_a_change_nothing_is_judged_again(streaming, cuts):
    opened(streaming)
    streaming.evaluate = None  # it would raise
    await streaming.end_refused()
    assert not cuts


async def test_an_answer_that_begins_after_the_reload_is_judged_too(streaming, file, cuts):
    flow = flow_of(operation("watch"))
    streaming.request(flow)
    change(file, NO_WATCH)
    await streaming.reload()
    facts.of(flow).refusal, facts.of(flow).released = object(), True
    flow.response = http.Response.make(200)
    streaming.responseheaders(flow)
    await streaming.end_refused()
    assert [f for f, _ in cuts] == [flow]


async def test_the_watcher_cuts(streaming, file, cuts, monkeypatch):
    monkeypatch.setattr(block, "POLL", 0.001)
    opened(streaming)
    streaming.running()
    change(file, NO_WATCH)
    async with asyncio.timeout(10):
        while not cuts:
            await asyncio.sleep(0)
    streaming.done()


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda addon, flow: addon.response(flow), id="response"),
        pytest.param(lambda addon, flow: addon.error(flow), id="error"),
        pytest.param(lambda addon, flow: addon.websocket_end(flow), id="end of a WebSocket"),
    ],
)
async def test_what_has_ended_is_not_cut(streaming, file, cuts, end):
    end(streaming, opened(streaming))
    await reload(streaming, file, NO_WATCH)
    assert not cuts


@pytest.mark.parametrize("withheld", [False, True], ids=["WebSocket", "SPDY, which the guard withholds"])
async def test_an_upgraded_exchange_has_only_begun(streaming, file, cuts, withheld):
    flow = opened(streaming, operation("create", "pods/portforward"))
    upgrade = http.Response.make(101)
    flow.response, facts.of(flow).answer = (http.Response.make(502), upgrade) if withheld else (upgrade, None)
    streaming.response(flow)
    await reload(streaming, file, RULES)
    assert [f for f, _ in cuts] == [flow]


async def test_a_client_that_is_gone_is_forgotten(streaming, file, cuts):
    flow = opened(streaming)
    flow.client_conn.state = connection.ConnectionState.CLOSED
    await reload(streaming, file, NO_WATCH)
    assert not cuts
    assert not streaming.open


def test_what_was_refused_is_no_stream(streaming):
    flow = flow_of(operation("delete"))
    streaming.request(flow)
    streaming.responseheaders(flow)
    assert not streaming.open


async def test_while_all_is_observed_nothing_is_cut_and_afterwards_it_is(context, streaming, file, cuts):
    context.configure(streaming, tollgate_observe=True)
    flow = opened(streaming)
    await reload(streaming, file, NO_WATCH)
    assert not cuts
    context.configure(streaming, tollgate_observe=False)
    await streaming.end_refused()
    assert [f for f, _ in cuts] == [flow]


ASK_MORE = "- {name: ask-all, action: hold, match: {resources: [pods/exec]}, approval: {groups: [lead]}}\n"
NO_EXEC = "- {name: no-exec, action: deny, match: {resources: [pods/exec]}}\n"


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        pytest.param(STREAMS + "# no more\n", False, id="held by the same rule"),
        pytest.param(STREAMS.replace("- {name: ask-for-exec", "# {"), False, id="allowed now"),
        pytest.param(STREAMS + ASK_MORE, True, id="held by another rule as well"),
        pytest.param(STREAMS + NO_EXEC, True, id="denied now"),
    ],
)
async def test_what_was_held_and_approved(streaming, file, cuts, text, cut):
    identity, op = Identity("agent"), operation("create", "pods/exec")
    verdict = streaming.evaluate(identity, op)
    assert verdict.action is Action.HOLD
    flow = opened(streaming, op, verdict=verdict)
    await reload(streaming, file, text)
    assert [f for f, _ in cuts] == ([flow] if cut else [])


async def test_one_that_cannot_be_judged_ends_and_the_others_are_judged(streaming, file, cuts, caplog):
    first, second = opened(streaming), opened(streaming)
    evaluate, broken = streaming.evaluate, iter([RuntimeError("odd")])

    def odd(*args, **more):
        for error in broken:
            raise error
        return evaluate(*args, **more)

    streaming.evaluate = odd
    await reload(streaming, file, NO_WATCH)
    assert {f: r.cause for f, r in cuts} == {first: "not-judged-again", second: "policy-deny"}
    assert "could not be judged again" in caplog.text


async def test_many_streams_let_others_have_their_turn(streaming, file, cuts, monkeypatch):
    monkeypatch.setattr(block, "AT_ONCE", 2)
    flows = [opened(streaming) for _ in range(5)]
    change(file, NO_WATCH)
    await streaming.reload()
    task = asyncio.create_task(streaming.end_refused())
    await asyncio.sleep(0)
    assert len(cuts) == 2
    streaming.ended(flows[-1])
    await task
    assert [f for f, _ in cuts] == flows[:-1]


NAMESPACES = (
    STREAMS
    + """
- name: not-in-production
  action: deny
  match: {resources: [pods], verbs: [watch]}
  when: namespaceObject.metadata.labels.env == 'production'
"""
)


@pytest.mark.parametrize("env", ["test", "production"])
async def test_rules_that_look_at_objects_see_what_they_saw_when_it_began(streaming, file, cuts, env):
    namespace = Answer(200, json.dumps({"kind": "Namespace", "metadata": {"labels": {"env": "test"}}}).encode())
    streaming.server = ApiServer(None, None)
    streaming.server.answers["namespace"] = namespace
    await reload(streaming, file, NAMESPACES)
    flow = flow_of(operation("watch"))
    await streaming.request(flow)
    assert flow.response is None
    facts.of(flow).refusal, facts.of(flow).released = object(), True
    flow.response = http.Response.make(200)
    streaming.responseheaders(flow)
    asked = len(streaming.server.asked)
    await reload(streaming, file, NAMESPACES.replace("'production'", f"'{'test' if env == 'production' else 'x'}'"))
    assert [f for f, _ in cuts] == ([flow] if env == "production" else [])
    assert len(streaming.server.asked) == asked


async def test_what_was_not_looked_at_when_it_began_counts_as_what_cannot_be_fetched(streaming, file, cuts):
    flow = opened(streaming)
    await reload(streaming, file, NAMESPACES)
    assert [(f, r.cause) for f, r in cuts] == [(flow, "policy-deny")]
    assert "p/not-in-production" in cuts[0][1].message


# Held, and somebody can be asked


@pytest.fixture
def asking(context, configured):
    context.options.add_option("tollgate_stack", str, "", "")
    context.configure(configured, tollgate_stack="authenticate,classify,block,approve,upstream")
    return configured


def held():
    return flow_of(operation("create", "pods/exec"))


def test_what_a_rule_holds_is_left_to_approve(asking):
    flow = held()
    asking.request(flow)
    known = facts.of(flow)
    assert (flow.response, known.passed, known.verdict.action) == (None, {STAMP}, Action.HOLD)
    assert [h.rule for h in known.verdict.holds] == ["ask-for-exec"]
    assert known.approval == ""


def test_without_approve_in_the_stack_it_is_refused(context, asking):
    context.configure(asking, tollgate_stack="authenticate,classify,block,upstream")
    flow = held()
    asking.request(flow)
    assert (flow.response.status_code, facts.of(flow).passed) == (403, set())


EXEC = "match: {users: [agent], resources: [pods/exec]}"
ASK = f"- {{name: ask-for-exec, action: hold, {EXEC}, approval: {{groups: [oncall]}}}}"


@pytest.mark.parametrize(
    ("now", "action", "holds"),
    [
        pytest.param(f"{ASK} # a comment", Action.HOLD, ["ask-for-exec"], id="asked by the same rule"),
        pytest.param(f"- {{name: refuse, action: deny, {EXEC}}}", Action.DENY, [], id="denied"),
        pytest.param(f"- {{name: permit, action: allow, {EXEC}}}", Action.ALLOW, [], id="allowed"),
        pytest.param(ASK.replace("agent", "other"), Action.DENY, [], id="allowed by nothing"),
        pytest.param(
            f"{ASK}\n{ASK.replace('for', 'more')}", Action.HOLD, ["ask-for-exec", "ask-more-exec"], id="two ask"
        ),
    ],
)
async def test_it_is_judged_again_by_the_policies_of_then(asking, file, now, action, holds):
    flow = held()
    asking.request(flow)
    assert ASK in RULES
    change(file, RULES.replace(ASK, now))
    await asking.reload()
    verdict = facts.of(flow).judge_again()
    assert (verdict.action, sorted(h.rule for h in verdict.holds)) == (action, holds)
    assert verdict.revision == asking.policy.revision != facts.of(flow).verdict.revision


async def test_a_rule_that_looks_at_objects_since_is_no_verdict(asking, file):
    flow = flow_of(operation("update", "configmaps"))
    rules = RULES + "- {name: ask, action: hold, match: {resources: [configmaps]}, approval: {groups: [x]}}\n"
    change(file, rules)
    await asking.reload()
    asking.request(flow)
    assert facts.of(flow).verdict.action is Action.HOLD
    change(file, rules + "- {name: keep, action: deny, match: {resources: [configmaps]}, when: object.data.a == '1'}\n")
    await asking.reload()
    with pytest.raises(admission.NeedsObjects):
        facts.of(flow).judge_again()


def test_observed_holds_are_asked_of_nobody(context, asking, file):
    context.configure(asking, tollgate_observe=True)
    flow = held()
    asking.request(flow)
    known = facts.of(flow)
    assert (known.verdict.action, known.passed) == (Action.ALLOW, {STAMP})
    assert known.judge_again().action is Action.ALLOW


def test_what_is_denied_is_asked_of_nobody(asking):
    flow = flow_of(operation("get", "secrets"))
    asking.request(flow)
    assert (flow.response.status_code, facts.of(flow).judge_again) == (403, None)


@pytest.fixture
def asking_budgets(budgeted):
    budgeted.asks = True
    return budgeted


async def test_over_a_budget_that_asks_a_human_is_asked(asking_budgets, clock):
    await ask(asking_budgets, deletion("db"))
    flow = await ask(asking_budgets, deletion("db"))
    known = facts.of(flow)
    assert (flow.response, known.passed, known.verdict.action) == (None, {STAMP}, Action.HOLD)
    assert [h.rule for h in known.verdict.holds] == ["fewer-db"]
    assert not asking_budgets.reserved.get(flow)  # the yes counts instead
    assert (await ask(asking_budgets, deletion())).response is None  # the second of `few`, still there
    # What became free while it waited is others': the budget asks all the same.
    clock.now += 7200
    again = known.judge_again()
    assert (again.action, [h.rule for h in again.holds]) == (Action.HOLD, ["fewer-db"])


async def test_over_a_budget_that_asks_and_denied_meanwhile(asking_budgets, file):
    await ask(asking_budgets, deletion("db"))
    flow = await ask(asking_budgets, deletion("db"))
    change(file, BUDGETS.replace("rules:\n", "rules:\n- {name: freeze, action: deny, match: {verbs: [delete]}}\n"))
    await asking_budgets.reload()
    assert facts.of(flow).judge_again().rule == "freeze"


async def test_over_a_budget_that_denies_nobody_is_asked(asking_budgets):
    flows = [await ask(asking_budgets, deletion()) for _ in range(3)]
    assert (flows[2].response.status_code, facts.of(flows[2]).passed) == (403, set())


HOLDING = BUDGETS.replace("budgets:", "- {name: ask, action: hold, match: {verbs: [delete]}, approval: {groups: [x]}}\n"
                          "budgets:")  # fmt: skip


async def test_a_rule_and_a_budget_ask_together(asking_budgets, file):
    await ask(asking_budgets, deletion("db"))
    change(file, HOLDING)
    await asking_budgets.reload()
    known = facts.of(await ask(asking_budgets, deletion("db")))
    assert (known.verdict.rule, [h.rule for h in known.verdict.holds]) == ("ask", ["ask", "fewer-db"])
    assert [h.rule for h in known.judge_again().holds] == ["ask", "fewer-db"]


async def test_what_nobody_approved_is_given_back(asking_budgets, file):
    change(file, HOLDING)
    await asking_budgets.reload()
    for _ in range(4):  # of `few` there are two
        flow = await ask(asking_budgets, deletion())
        known = facts.of(flow)
        assert (known.verdict.action, known.verdict.rule, known.passed) == (Action.HOLD, "ask", {STAMP})
        known.refusal, known.answered_by = object(), "tollgate_approve"
        flow.response = http.Response.make(403)
        await asking_budgets.responseheaders(flow)


@pytest.mark.parametrize(
    ("action", "rules", "wanted"),
    [
        pytest.param(Action.ALLOW, (), (Action.HOLD, "budget", ["budget"]), id="allowed"),
        pytest.param(Action.HOLD, ("ask",), (Action.HOLD, "ask", ["ask", "budget"]), id="held"),
        pytest.param(Action.DENY, (), (Action.DENY, "", []), id="denied stays denied"),
    ],
)
def test_holds_of_a_rule_and_of_a_budget(action, rules, wanted):
    def of(*names):
        return tuple(Hold("p", name, "", Approval(groups=("x",))) for name in names)

    observed = (Verdict(),)
    verdict = Verdict(action, "ask" if rules else "", "p", holds=of(*rules), observed=observed, record="full")
    found = block.with_holds(verdict, Verdict(Action.HOLD, "budget", "p", holds=of("budget")))
    assert (found.action, found.rule, [h.rule for h in found.holds]) == wanted
    assert (found.observed, found.record) == (observed, "full")


HELD = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: p}
rules:
- {name: all, action: allow, match: {verbs: ["*"]}}
- {name: ask, action: hold, match: {verbs: [patch]}, approval: {groups: [oncall]}}
"""
SECRET = "/api/v1/namespaces/shop/secrets/db"


@pytest.mark.parametrize(
    ("body", "media", "reason"),
    [
        pytest.param({"data": {"x": "**masked:1a2b3c4d**"}}, "merge-patch", "masked-value", id="what comes back"),
        pytest.param([{"op": "test", "path": "/data/x", "value": "y"}], "json-patch", "masked-read", id="what reads"),
        pytest.param({"metadata": {"labels": {"a": "b"}}}, "merge-patch", None, id="something else"),
    ],
)
def test_nobody_is_asked_about_what_mask_refuses_anyway(context, configured, file, body, media, reason):
    file.write_text(HELD)
    context.configure(configured, tollgate_policies=str(file))
    configured.asks = True
    raw = json.dumps(body).encode()
    flow = flow_of(classify.classify("PATCH", SECRET, {"content-type": f"application/{media}+json"}, raw))
    configured.request(flow)
    assert (flow.response and flow.response.headers["Tollgate-Reason"]) == reason
    assert (STAMP in facts.of(flow).passed) is (reason is None)


def test_a_write_to_what_is_masked_counts_as_reveal(context, configured, file):
    file.write_text(HELD)
    context.configure(configured, tollgate_policies=str(file))
    configured.asks = True
    body = {"spec": {"template": {"spec": {"containers": [{"env": [{"name": "DB_PASSWORD", "value": "guess-1x"}]}]}}}}
    headers = {"content-type": "application/merge-patch+json"}
    target = "/apis/apps/v1/namespaces/shop/deployments/web"
    flow = flow_of(classify.classify("PATCH", target, headers, json.dumps(body).encode()))
    configured.request(flow)
    known = facts.of(flow)
    assert Impact.REVEAL in known.operation.impacts
    assert [hold.rule for hold in known.verdict.holds] == ["ask", "masked-field"]


async def numbers(addon):
    return {name: value for name, _, value in await addon.readings()}


async def test_files_that_are_not_in_force_are_told(configured, file):
    assert (await numbers(configured))["policy_stale"] == 0
    change(file, "kind: [")
    await configured.reload()
    assert (await numbers(configured))["policy_stale"] == 1
    assert Level.PROBLEM in [one.level for one in configured.findings()]
    change(file, RULES)
    await configured.reload()
    assert (await numbers(configured))["policy_stale"] == 0
    assert [one.level for one in configured.findings()] == [Level.OK]


async def test_warnings_of_the_policies_in_force(configured, file, monkeypatch):
    asked = []
    monkeypatch.setattr(block.policycheck, "warnings", lambda policies: asked.append(policies) or ["never matches"])
    for _ in range(2):
        await configured.check()
    assert asked == [configured.policy]
    assert (await numbers(configured))["policy_warnings"] == 1
    assert [(one.level, one.text) for one in configured.findings()] == [(Level.WARNING, "never matches")]
