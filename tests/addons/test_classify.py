import asyncio
import json

import pytest
from mitmproxy import http
from mitmproxy.exceptions import OptionsError
from mitmproxy.test import taddons, tflow, tutils

from addons import classify
from addons.core import facts
from addons.core.model import Identity, Impact
from addons.net import counting
from addons.net.apiserver import Answer

STAMP = ("tollgate_classify", "request")


def flow_of(method=b"GET", path=b"/api/v1/namespaces/x/pods", headers=(), content=b""):
    return tflow.tflow(req=tutils.treq(method=method, path=path, headers=headers, content=content))


def configured():
    addon = classify.Classify()
    with taddons.context(addon) as tctx:
        tctx.configure(addon)
    addon.server = None
    return addon


def run(flow):
    configured().request(flow)
    return facts.of(flow)


def test_the_operation_is_known_afterwards():
    known = run(flow_of(b"POST", b"/api/v1/namespaces/x/pods", content=b'{"metadata":{"name":"p"}}'))
    assert known.need_operation().name == "p"
    assert known.passed == {STAMP}
    assert known.answered_by == ""


@pytest.mark.parametrize(
    ("flow", "code", "reason"),
    [
        pytest.param(flow_of(b"delete"), 405, "method-unknown", id="lower-case method"),
        pytest.param(flow_of(path=b"/api//pods"), 400, "path-not-canonical", id="path"),
        pytest.param(flow_of(path=b"/api/\xff"), 400, "path-not-canonical", id="bytes"),
        pytest.param(flow_of(b"POST", content=b"{"), 400, "body-unreadable", id="body"),
        pytest.param(
            flow_of(b"POST", headers=((b"content-encoding", b"gzip"),), content=b"{}"), 400, "body-encoded", id="gzip"
        ),
        pytest.param(
            flow_of(
                b"POST", headers=((b"Content-Type", b"application/json"), (b"content-type", b"a/b")), content=b"{}"
            ),
            415,
            "body-unsupported",
            id="two content types",
        ),
        pytest.param(flow_of(content=None), 500, "body-missing", id="body streamed past"),
    ],
)
def test_refused(flow, code, reason):
    known = run(flow)
    assert (flow.response.status_code, flow.response.headers["Tollgate-Reason"]) == (code, reason)
    assert known.answered_by == "tollgate_classify"
    assert known.operation is None
    assert not known.passed


def test_first_answer_stands():
    flow = flow_of(path=b"//")
    facts.of(flow).answered_by = "tollgate_guard"
    known = run(flow)
    assert flow.response is None
    assert known.operation is None
    assert not known.passed


def test_not_configured_refuses():
    addon, flow = classify.Classify(), flow_of()
    addon.request(flow)
    assert flow.response.headers["Tollgate-Reason"] == "not-configured"
    assert not facts.of(flow).passed


def test_own_namespace():
    addon, flow = classify.Classify(), flow_of(b"DELETE", b"/api/v1/namespaces/gate/pods/p")
    with taddons.context(addon) as tctx:
        tctx.configure(addon, tollgate_own_namespace="gate")
        addon.request(flow)
    assert Impact.ESCALATE in facts.of(flow).need_operation().impacts


@pytest.mark.parametrize("namespace", ["", "A", "a.b", "a/b", "-", "a" * 64])
def test_own_namespace_must_be_one(namespace):
    addon = classify.Classify()
    with taddons.context(addon) as tctx, pytest.raises(OptionsError, match="tollgate_own_namespace: "):
        tctx.configure(addon, tollgate_own_namespace=namespace)
    assert addon.own_namespace == "tollgate"


def test_defaults_are_accepted():
    addon = classify.Classify()
    with taddons.context(addon) as tctx:
        tctx.configure(addon)
    assert addon.own_namespace == "tollgate"


@pytest.mark.parametrize("window", [-1, 3601])
def test_the_window_has_bounds(window):
    addon = classify.Classify()
    with taddons.context(addon) as tctx, pytest.raises(OptionsError, match="tollgate_run_window: "):
        tctx.configure(addon, tollgate_run_window=window)
    assert addon.memory.window == 60.0


def test_the_window_is_taken_over():
    addon = classify.Classify()
    with taddons.context(addon) as tctx:
        tctx.configure(addon, tollgate_run_window=5)
    assert addon.memory.window == 5.0


# What a request reaches


NS = "/api/v1/namespaces/shop"
SESSION = ((b"kubectl-command", b"kubectl delete"), (b"kubectl-session", b"s"))


class Server:
    """Every list has these pods. `gate`: it answers when that is set."""

    def __init__(self, *names, gate=None, error=None):
        self.names, self.gate, self.error, self.asked, self.identities = names, gate, error, [], []

    async def request(self, method, path, *, identity, **_):
        self.asked.append(path)
        self.identities.append(identity)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        items = [{"metadata": {"name": name, "namespace": "shop"}} for name in self.names]
        return Answer(200, json.dumps({"items": items, "metadata": {}}).encode())


def asked(method, path, headers=(), who="agent"):
    flow = flow_of(method, path.encode(), headers=headers, content=b"")
    facts.of(flow).identity = Identity(who)
    return flow


async def send(addon, *flows):
    """Through the hook, all at once; what they are afterwards."""
    waiting = [one for one in (addon.request(flow) for flow in flows) if one is not None]
    await asyncio.gather(*waiting)
    return [facts.of(flow).operation for flow in flows]


def addon_with(server):
    addon = configured()
    addon.server = server
    return addon


def mass(operation):
    return Impact.MASS_DELETE in operation.impacts


async def test_a_fan_out_is_counted_before_the_first_delete():
    addon = addon_with(Server("a", "b", "c"))
    flow = asked(b"DELETE", f"{NS}/pods/a", SESSION)
    with taddons.context(addon):
        await send(addon, asked(b"GET", f"{NS}/pods", SESSION))
        (operation,) = await send(addon, flow)
    assert mass(operation)
    assert operation.reach.counts == {"pods": 3}
    assert operation.summary == "delete pod shop/a (1 of 3 in this command)"
    assert operation.command == "kubectl delete pods --all -n shop"
    assert facts.of(flow).passed == {STAMP}
    assert addon.server.identities == [Identity("agent")]  # as who asks, not as the gateway


async def test_no_stamp_and_no_operation_before_it_is_counted():
    gate = asyncio.Event()
    addon = addon_with(Server("a", gate=gate))
    flow = asked(b"DELETE", NS)
    with taddons.context(addon):
        waiting = asyncio.ensure_future(addon.request(flow))
        await asyncio.sleep(0)
        assert facts.of(flow).operation is None
        assert not facts.of(flow).passed
        gate.set()
        await waiting
    assert facts.of(flow).passed == {STAMP}


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(None, id="no API server"),
        pytest.param(Server(error=RuntimeError("a bug")), id="what nobody foresaw"),
        pytest.param(Server(error=asyncio.CancelledError()), id="cancelled"),
    ],
)
async def test_what_cannot_be_counted_is_many(server):
    addon = addon_with(server)
    with taddons.context(addon):
        await send(addon, asked(b"GET", f"{NS}/pods", SESSION))
        (operation,) = await send(addon, asked(b"DELETE", f"{NS}/pods/a", SESSION))
    assert mass(operation)
    assert not operation.reach.exact


async def test_late_is_many(monkeypatch):
    monkeypatch.setattr(counting, "LIMIT", -0.49)
    addon = addon_with(Server("a", gate=asyncio.Event()))
    with taddons.context(addon):
        await send(addon, asked(b"GET", f"{NS}/pods", SESSION))
        (operation,) = await send(addon, asked(b"DELETE", f"{NS}/pods/a", SESSION))
    assert mass(operation)
    for task in addon.asking.values():
        task.cancel()


async def test_the_same_question_is_asked_once():
    """The evictions of a drain come within 2 ms."""
    addon = addon_with(Server("a", "b", "c"))
    with taddons.context(addon):
        await send(addon, asked(b"GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn&limit=500", SESSION))
        flows = [asked(b"POST", f"{NS}/pods/{name}/eviction", SESSION) for name in "abc"]
        operations = await send(addon, *flows)
    assert len(addon.server.asked) == 1
    assert {operation.reach.total for operation in operations} == {3}
    assert not addon.asking


async def test_but_not_for_another_identity():
    addon = addon_with(Server("a", "b"))
    with taddons.context(addon):
        await send(addon, *(asked(b"DELETE", NS, who=who) for who in ("one", "two")))
    assert {who.username for who in addon.server.identities} == {"one", "two"}


async def test_without_a_stack_that_authenticates_nobody_is_asked_as_the_gateway():
    addon, flow = addon_with(Server()), flow_of(b"DELETE", NS.encode(), content=b"")
    with taddons.context(addon):
        await send(addon, flow)
    assert {who.username for who in addon.server.identities} == {"system:anonymous"}


@pytest.mark.parametrize(
    ("refused_by", "expected"), [("tollgate_block", False), ("", True)], ids=["refused", "went upstream"]
)
async def test_only_what_went_upstream_counts_in_a_run(refused_by, expected):
    addon, first = addon_with(None), asked(b"DELETE", f"{NS}/pods/a")
    with taddons.context(addon):
        await send(addon, first)
        facts.of(first).answered_by = refused_by
        addon.response(first)
        (second,) = await send(addon, asked(b"DELETE", f"{NS}/pods/b"))
    assert mass(second) is expected
    assert len(addon.places) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param(b"GET", f"{NS}/pods/a", id="get"),
        pytest.param(b"GET", f"{NS}/pods", id="list"),
        pytest.param(b"POST", f"{NS}/configmaps", id="create"),
        pytest.param(b"DELETE", f"{NS}/pods/a", id="delete of one"),
        pytest.param(b"GET", "/metrics", id="page"),
    ],
)
def test_most_requests_do_not_wait(method, path):
    flow = asked(method, path)
    assert configured().request(flow) is None
    assert facts.of(flow).passed == {STAMP}


def test_an_exec_says_what_it_runs():
    flow = asked(b"GET", f"{NS}/pods/a/exec?command=ls&command=-l", ((b"kubectl-command", b"kubectl exec"),))
    operation = run(flow).need_operation()
    assert operation.command == "kubectl exec pods a -n shop -- ls -l"
    assert operation.summary == flow.comment == "exec in pod shop/a"


async def test_a_large_body_is_read_beside_the_loop():
    addon, flow = configured(), tflow.tflow()
    body = json.dumps({"metadata": {"name": "big"}, "data": {"a": "x" * classify.LARGE}}).encode()
    flow.request = http.Request.make(
        "POST", "https://x/api/v1/namespaces/a/configmaps", body, {"Content-Type": "application/json"}
    )
    waiting = addon.request(flow)
    assert facts.of(flow).operation is None
    await waiting
    assert facts.of(flow).operation.name == "big"
    assert facts.of(flow).passed == {("tollgate_classify", "request")}


async def test_a_large_body_that_cannot_be_read_is_refused():
    addon, flow = configured(), tflow.tflow()
    flow.request = http.Request.make("POST", "https://x/api/v1/namespaces/a/configmaps", b"{" * (classify.LARGE + 1))
    await addon.request(flow)
    assert flow.response.status_code == 400
    assert not facts.of(flow).passed
