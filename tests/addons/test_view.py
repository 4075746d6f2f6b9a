"""The addon, in a mitmproxy of this process; its patches: tests/addons/mitm/test_viewing.py."""

import asyncio

import pytest
from mitmproxy import exceptions, http
from mitmproxy.addons import view as mitmview
from mitmproxy.test import taddons, tflow

from addons import view
from addons.core import facts
from addons.core.model import Action, Identity, Verdict
from addons.mitm import recordcopies, viewing
from addons.view import View
from tests import canaries
from tests.addons.mitm.test_shownflows import PASSWORD, a_flow, dumped, judged
from tests.addons.mitm.test_viewing import applied  # noqa: F401 (a fixture)


@pytest.fixture
async def screen(monkeypatch, tmp_path, applied):  # noqa: F811
    monkeypatch.setattr(viewing, "install", lambda: None)
    monkeypatch.setattr(view.maskpatterns, "warm", lambda state: None)  # compiled once for all tests is enough
    monkeypatch.setattr(recordcopies, "_handed", None)
    shown, addon = mitmview.View(), View()
    with taddons.context(shown) as context:
        context.options.add_option("tollgate_recordings", str, "", "")
        context.master.addons.add(addon)
        context.configure(addon, tollgate_state=str(tmp_path / "state"))
        yield shown, addon, context
        addon.done()


def decided(flow, action=Action.DENY):
    known = judged(flow)
    known.identity, known.audit_id = Identity(username="ci-agent"), "a-1"
    known.verdict = Verdict(action, policy="agents", rule="no-secrets")
    known.passed.add(("tollgate_block", "request"))
    return known


@pytest.mark.parametrize(
    ("action", "mark"),
    [(Action.ALLOW, ":white_check_mark:"), (Action.HOLD, ":raised_hand:"), (Action.DENY, ":no_entry:")],
)
async def test_marker_and_comment(screen, action, mark):
    shown, addon, _ = screen
    flow = a_flow()
    shown.add([flow])
    decided(flow, action)
    addon.request(flow)
    assert (flow.marked, flow.comment) == (
        mark, f"replace secret shop/db [{action.name.lower()} agents/no-secrets]")  # fmt: skip
    shown.toggle_marked()
    assert len(shown) == 1


async def test_an_operators_own_mark_stays(screen):
    flow = a_flow()
    flow.marked, flow.comment = ":grapes:", "mine"
    decided(flow)
    screen[1].request(flow)
    assert (flow.marked, flow.comment) == (":grapes:", "mine")


@pytest.mark.parametrize("hook", ["response", "error", "websocket_end"])
async def test_the_end(screen, hook):
    shown, addon, _ = screen
    flow = a_flow()
    shown.add([flow])
    decided(flow)
    getattr(addon, hook)(flow)
    copy = shown.get_by_id(flow.id)
    assert copy is not flow
    assert canaries.seen_in(dumped(copy), [PASSWORD]) == []


async def test_an_upgraded_exchange_goes_on(screen):
    shown, addon, _ = screen
    flow = a_flow()
    shown.add([flow])
    known = decided(flow, Action.ALLOW)
    known.released, known.answer = True, http.Response.make(101)
    addon.response(flow)
    assert shown.get_by_id(flow.id) is flow


async def test_raw_bytes_end(screen):
    shown, addon, _ = screen
    flow = tflow.ttcpflow()
    flow.live, flow.messages[0].content = True, PASSWORD
    shown.add([flow])
    addon.tcp_end(flow)
    assert shown.get_by_id(flow.id).messages == []


async def test_who_waits_for_a_yes_is_shown_so(screen, monkeypatch):
    monkeypatch.setattr("addons.view.LOOK", 0.001)
    shown, addon, _ = screen
    addon.running()
    flow = a_flow()
    shown.add([flow])
    decided(flow, Action.HOLD).held_for = "apr-1"
    async with asyncio.timeout(5):
        while not flow.marked:
            await asyncio.sleep(0)
    assert flow.marked == ":raised_hand:"


async def test_what_runs_again_has_no_copy(screen):
    shown, addon, _ = screen
    flow = a_flow()
    shown.add([flow])
    addon.response(flow)
    copy = shown.get_by_id(flow.id)
    addon.requestheaders(copy)
    copy.response = a_flow().response
    addon.response(copy)
    assert shown.get_by_id(flow.id) is not copy
    assert canaries.seen_in(dumped(shown.get_by_id(flow.id)), [PASSWORD]) == []


async def test_show(screen):
    _, addon, _ = screen
    flow = a_flow()
    decided(flow)
    told = addon.show(flow)
    for line in ("audit-id: a-1", "user: ci-agent", "verdict: deny", "policy: agents", "rule: no-secrets"):
        assert line in told.split("\n")
    with pytest.raises(exceptions.CommandError, match="not judged here"):
        addon.show(a_flow())


async def test_session(screen, tmp_path):
    _, addon, context = screen
    flow = a_flow()
    decided(flow)
    with pytest.raises(exceptions.CommandError, match="not recorded"):
        addon.session(flow)
    context.options.tollgate_recordings = str(tmp_path)
    with pytest.raises(exceptions.CommandError, match="not on record yet"):
        addon.session(flow)
    day = tmp_path / "1999-12-31" / "ci-agent" / "23-00-00-abcd"  # when mitmproxy's test flows were made
    day.mkdir(parents=True)
    (day / "events.jsonl").write_text('{"auditID":"a-1"}\n')
    assert addon.session(flow) == str(day)


async def test_the_recorders_copies_are_wanted(screen):
    flow = a_flow()
    recordcopies.hand_out(flow, b"x")
    assert recordcopies.take(flow) == b"x"


async def test_a_key_that_others_can_read(screen, tmp_path):
    _, addon, context = screen
    folder = tmp_path / "other"
    folder.mkdir(mode=0o700)
    (folder / "mask.key").write_bytes(b"short")
    with pytest.raises(exceptions.OptionsError, match="tollgate_view"):
        context.configure(addon, tollgate_state=str(folder))


async def test_nothing_is_decided_by_it(screen):
    flow = a_flow()
    known = decided(flow)
    before = set(known.passed), known.released
    for hook in ("requestheaders", "request", "response"):
        getattr(screen[1], hook)(flow)
    assert (set(facts.of(flow).passed), facts.of(flow).released) == before
