"""Metrics as an addon: what one exchange adds to the numbers, and that nothing of it decides."""

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest
from mitmproxy import http
from mitmproxy.exceptions import OptionsError
from mitmproxy.test import taddons, tflow

from addons import metrics as addon_module
from addons.core import facts
from addons.core.doctor import Finding, Level
from addons.core.model import Action, Impact, Operation, RequestInfo, Verdict
from addons.mitm import answers, meters
from addons.net.tracing import TracingError
from tests.addons.net.test_metering import shown


@pytest.fixture
def addon():
    made = addon_module.Metrics()
    with taddons.context(made) as context:
        context.master.should_exit = asyncio.Event()
        yield made
        meters.leave(made.note)
        facts.time_stamps(None)


def exchange(released=True, code=200, by="", **known_facts):
    flow = tflow.tflow()
    facts.forget(flow)
    known = facts.of(flow)
    known.refusal = answers.response(addon_module.answers.status.Refusal(503, "not-judged", "no"))
    info = RequestInfo("delete", "/api/v1/pods", True, resource="pods")
    known.operation = Operation(info, "DELETE", frozenset({Impact.DELETE}))
    known.verdict = Verdict(Action.ALLOW, "reads", "agents")
    known.released, known.answered_by = released, by
    for key, value in known_facts.items():
        setattr(known, key, value)
    flow.response = http.Response.make(code, b"", {"Tollgate-Reason": "some-cause"} if not released else {})
    return flow


def counted(addon, name):
    return {key[1:]: value for key, value in shown(addon.meters).items() if key[0] == name}


@pytest.mark.parametrize(
    ("known", "verdict"),
    [
        pytest.param({}, "allowed", id="allowed"),
        pytest.param({"approval": "apr-1"}, "approved", id="approved"),
        pytest.param({"released": False, "code": 403, "by": "tollgate_block"}, "denied", id="denied"),
    ],
)
def test_an_exchange_counts_once(addon, known, verdict):
    flow = exchange(**known)
    addon.requestheaders(flow)
    addon.responseheaders(flow)
    addon.response(flow)
    addon.error(flow)
    labels = (("impact", "delete"), ("rule", "agents/reads"), ("verdict", verdict))
    assert counted(addon, "tollgate_requests_total") == {labels: 1}
    assert bool(counted(addon, "tollgate_refusals_total")) is (verdict == "denied")
    assert bool(counted(addon, "tollgate_upstream_responses_total")) is (verdict != "denied")


def test_what_nobody_judged(addon):
    flow = exchange(released=False)
    flow.response = facts.of(flow).refusal
    addon.responseheaders(flow)
    ((labels, _),) = counted(addon, "tollgate_requests_total").items()
    assert ("verdict", "not-judged") in labels


def test_times_come_from_the_stamps(addon):
    flow = exchange()
    known = facts.of(flow)
    assert isinstance(known.passed, facts.Stamps)
    for name, hook in (("guard", "request"), ("block", "request"), ("upstream", "request")):
        known.passed.add((f"tollgate_{name}", hook))
    addon.response(flow)
    assert counted(addon, "tollgate_phase_seconds_count") == {(("phase", "block"),): 1, (("phase", "upstream"),): 1}
    assert counted(addon, "tollgate_added_seconds_count") == {(): 1}


def test_what_the_api_server_did_not_finish(addon):
    addon.error(exchange())
    assert list(counted(addon, "tollgate_upstream_errors_total").values()) == [1]


async def test_readiness_asks_every_addon(addon):
    class Other:
        name = "tollgate_other"
        answer = False

        def ready(self):
            return self.answer

        def detail(self):
            return "no keys yet"

    other = Other()
    addon_module.ctx.master.addons.add(other)
    found = addon.readiness()
    assert not found["ready"]
    assert found["parts"]["other"] == {"ready": False, "detail": "no keys yet"}
    other.answer = True
    assert addon.readiness()["parts"]["other"]["ready"]
    addon_module.ctx.master.should_exit.set()
    assert addon.readiness()["parts"]["listener"] == {"ready": False, "detail": "the gateway is going down"}


async def test_the_port_opens_and_closes(addon):
    addon.address = ("127.0.0.1", 0)
    meters.offer("x", lambda: [("holds_waiting", (), 4)])
    try:
        await addon.start()
        port = addon.observatory._runner.addresses[0][1]
        async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert "tollgate_holds_waiting 4.0" in await answer.text()
    finally:
        meters.withdraw("x", dict(meters.sources())["x"])
        await addon.end()
    await addon.end()


@pytest.mark.parametrize("text", ["9464", ":9464", "host:", "host:99999", "host:http"])
def test_no_address(text):
    with pytest.raises(OptionsError, match="HOST:PORT"):
        addon_module.address(text)


def test_addresses():
    assert addon_module.address("") is None
    assert addon_module.address("[::1]:9464") == ("::1", 9464)


def test_traces_to_nowhere(addon, monkeypatch):
    def broken(endpoint):
        raise TracingError("no")

    monkeypatch.setattr(addon_module.tracing, "Tracer", broken)
    with pytest.raises(OptionsError, match="tollgate_traces: no"):
        addon_module.ctx.options.update(tollgate_traces="x")


def test_a_span_has_the_clients_parent(addon):
    sent = []

    class Tracer:
        def span(self, *said):
            sent.append(said)

        def stop(self):
            pass

    addon.tracer = Tracer()
    flow = exchange()
    flow.request.headers["traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    addon.requestheaders(flow)
    del flow.request.headers["traceparent"]  # upstream has built the request anew
    addon.response(flow)
    addon.response(flow)
    ((name, parent, began, ended, said),) = sent
    assert (name, parent.span_id) == ("delete pods", 0xB7AD6B7169203331)
    assert began <= ended
    assert json.dumps(said)


async def test_what_addons_find_counts_for_nothing_but_numbers(addon, caplog):
    class Other:
        name = "tollgate_other"

        def findings(self):
            return [Finding("policies", Level.PROBLEM, "the file of acme has a mistake")]

    class Broken:
        name = "tollgate_broken"

        def findings(self):
            raise RuntimeError("odd")

    for one in (Other(), Broken()):
        addon_module.ctx.master.addons.add(one)
    found = addon.readiness()
    assert found["checks"] == {"doctor": "warning", "policies": "problem"}
    assert [name for name, part in found["parts"].items() if not part["ready"]] == ["listener"]
    await addon.refresh()
    assert counted(addon, "tollgate_doctor_findings") == {
        (("check", "doctor"), ("level", "warning")): 1,
        (("check", "policies"), ("level", "problem")): 1,
    }


async def test_the_doctor_looks_once_the_port_is_open(addon, monkeypatch):
    looked = asyncio.Event()

    async def look(self):
        looked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(addon_module.checkups.Checkups, "keep_looking", look)
    addon.address = ("127.0.0.1", 0)
    await addon.start()
    try:
        async with asyncio.timeout(20):
            await looked.wait()
    finally:
        await addon.done()
    assert addon.looking.cancelled()


def test_what_the_doctor_looks_at(addon, tmp_path):
    options = addon_module.ctx.options
    for name in ("kubeconfig", "state", "recordings", "upstream_identity"):
        options.add_option(f"tollgate_{name}", str, "", "")
    options.update(tollgate_kubeconfig="/absent", tollgate_state="/s", tollgate_upstream_identity="gateway")
    options.update(certs=["*=/c.pem"])
    assert addon_module.subject() == addon_module.checkups.Subject(
        None, (("--state", Path("/s")),), Path("/c.pem"), impersonates=False
    )
    options.update(tollgate_upstream_identity="")  # upstream is not in the stack
    assert addon_module.subject().impersonates
