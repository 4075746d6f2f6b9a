"""The parts that the commands' own tests (test_approvals.py) do not reach."""

import json

import pytest

from addons.cli import approvalclient as client
from addons.core.virtualobjects import APPROVALS
from tests import records
from tests.virtualgateway import VirtualGateway


@pytest.fixture
def gateway(tls):
    one = VirtualGateway(tls, {"t": lambda: records.approver(now=records.NOW)})
    yield one
    one.stop()


@pytest.fixture
async def ours(gateway, tmp_path, monkeypatch):
    monkeypatch.delenv(client.TOKEN_VARIABLE, raising=False)
    one = client.Gateway(gateway.kubeconfig(tmp_path, "t"))
    yield one
    await one.close()


async def test_a_watch_begins_with_what_there_is(gateway, ours):
    gateway.add(records.record(now=records.NOW + 10**9))
    events = ours.watch(APPROVALS)
    assert await anext(events) == ("", {})
    kind, item = await anext(events)
    assert (kind, item["metadata"]["name"]) == ("ADDED", "apr-7f3k")
    await events.aclose()


async def test_an_error_in_a_watch_ends_it(gateway, ours):
    lines = [{"type": "ERROR", "object": {"code": 410}}, {"type": "ADDED", "object": {}}]
    gateway.answer = (200, "\n".join(map(json.dumps, lines)).encode())
    assert [kind async for kind, _ in ours.watch(APPROVALS)] == [""]


@pytest.mark.parametrize("line", [b"<html>", b"3", b"[" * 100_000])
async def test_a_watch_of_something_else(gateway, ours, line):
    gateway.answer = (200, line + b"\n")
    with pytest.raises(client.Failed, match="is it one"):
        _ = [kind async for kind, _ in ours.watch(APPROVALS)]


async def test_an_event_without_an_object_ends_a_watch(gateway, ours):
    gateway.answer = (200, b'{"type":"ADDED"}\n')
    assert [kind async for kind, _ in ours.watch(APPROVALS)] == [""]


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_what_may_pass_is_worth_another_try(gateway, ours, code):
    gateway.answer = (code, b"")
    with pytest.raises(client.Unreachable, match=f"HTTP {code}"):
        await anext(ours.watch(APPROVALS))


async def test_silence_ends_a_watch(gateway, ours, monkeypatch):
    monkeypatch.setattr(client, "SILENCE", 0.2)
    events = ours.watch(APPROVALS)
    await anext(events)
    with pytest.raises(client.Unreachable, match="does not answer"):
        await anext(events)


async def test_a_refusal_for_want_of_the_audience_says_how_to_get_one(gateway, ours):
    gateway.answer = (
        403,
        json.dumps({"message": "a decision needs a token with the audience tollgate-approver"}).encode(),
    )
    with pytest.raises(client.Failed, match="kubectl create token NAME"):
        await ours.all()


async def test_a_conflict(gateway, ours):
    gateway.answer = (409, b"{}")
    with pytest.raises(client.Conflict):
        await ours.decide({"metadata": {"name": "apr-1"}}, approved=True, reason="")


def test_a_token_is_read_no_further_than_it_can_be_long(tmp_path):
    path = tmp_path / "token"
    path.write_bytes(b"x" * (client.MAX_TOKEN + 10))
    with pytest.raises(client.Usage, match="holds no token"):
        client.given_token(str(path))
    with pytest.raises(client.Usage, match="No such file"):
        client.given_token(str(tmp_path / "absent"))


def test_without_any_token_the_kubeconfigs_is_used(monkeypatch):
    monkeypatch.delenv(client.TOKEN_VARIABLE, raising=False)
    assert client.given_token("") == ""
    monkeypatch.setenv(client.TOKEN_VARIABLE, "  abc\n")
    assert client.given_token("") == "abc"
