import asyncio
import logging
import os

import pytest
from mitmproxy.exceptions import OptionsError
from mitmproxy.test import taddons, tflow

from addons import block
from addons.core import facts, policy
from addons.core.model import Action, Identity, Impact, Operation, RequestInfo

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
