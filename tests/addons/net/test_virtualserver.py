"""The virtual API over real HTTP: tickets, verbs, forms, watches, and what it does when things go wrong."""

import asyncio
import contextlib
import gzip
import json
import logging
from dataclasses import replace

import aiohttp
import pytest
from yarl import URL

from addons.core import approvals
from addons.core.approvals import Phase
from addons.core.model import Identity
from addons.core.virtualapi import Viewer
from addons.net import virtualserver
from addons.net.book import APPROVALS, GRANTS, REQUESTS, REVOCATIONS, Book, Change, Gone
from addons.net.store import SqliteStore
from addons.net.virtualserver import TICKET_HEADER, VirtualServer
from addons.net.virtualsight import TURN, Sight
from tests import records
from tests.records import NOW, agent, approver, hold, record

BASE = "/apis/tollgate.dev/v1alpha1"
MERGE = "application/merge-patch+json"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
STRANGER = Viewer(Identity("eve", groups=("people",)), agent=False)
YES = {"spec": {"decision": "Approved"}}


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


class Desk:
    """A server with a book, and a client that has tickets."""

    def __init__(self, book, server, clock, client):
        self.book, self.server, self.clock, self.client = book, server, clock, client

    def url(self, target):
        return URL(f"http://127.0.0.1:{self.server.port}{target}", encoded=True)

    @contextlib.asynccontextmanager
    async def open(self, viewer, method, target, body=None, kind="", accept="application/json", **headers):
        sent = {"Accept": accept, **headers}
        if viewer is not None:
            sent[TICKET_HEADER] = self.server.ticket(viewer, method, target)
        if body is not None:
            sent["Content-Type"] = kind or (MERGE if method == "PATCH" else "application/json")
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.request(method, self.url(target), data=body, headers=sent) as answer:
            yield answer

    async def ask(self, viewer, method, target, body=None, **more):
        """(code, decoded JSON)"""
        target = target if target.startswith("/") else f"{BASE}/{target}"
        async with self.open(viewer, method, target, body, **more) as answer:
            self.headers = answer.headers
            return answer.status, json.loads(await answer.read() or b"null")

    @contextlib.asynccontextmanager
    async def watch(self, viewer, target, accept="application/json"):
        """A function that returns the next event as (type, object), or None at the end."""
        async with self.open(viewer, "GET", f"{BASE}/{target}", accept=accept) as answer:
            assert answer.status == 200, await answer.read()

            async def event():
                line = await asyncio.wait_for(answer.content.readline(), 5)
                if not line:
                    return None
                content = json.loads(line)
                return content["type"], content["object"]

            yield event


@pytest.fixture
async def desk():
    clock, store = Clock(), SqliteStore(None)
    book = Book(store, clock)
    await book.start()
    server = VirtualServer(book, clock)
    await server.start()
    async with aiohttp.ClientSession() as client:
        yield Desk(book, server, clock, client)
    await server.stop()
    await book.stop()
    store.close()


def names(content):
    return [item["metadata"]["name"] for item in content["items"]]


# ----- tickets -----


async def test_without_a_ticket_nothing_is_served(desk, caplog):
    await desk.book.add(APPROVALS, record())
    for target in (f"{BASE}/approvals", "/apis/tollgate.dev", "/", "/api"):
        code, content = await desk.ask(None, "GET", target)
        assert (code, content["reason"], desk.headers["Tollgate-Reason"]) == (403, "Forbidden", "no-ticket")
        assert desk.headers["Server"] == "tollgate"


async def test_a_ticket_is_good_once(desk):
    target = f"{BASE}/approvals"
    headers = {TICKET_HEADER: desk.server.ticket(agent(), "GET", target)}
    for code in (200, 403):
        async with desk.client.get(desk.url(target), headers=headers) as answer:
            assert answer.status == code


@pytest.mark.parametrize(
    ("method", "target", "spoil"),
    [
        pytest.param("GET", f"{BASE}/approvals/apr-7f3k", lambda t: t, id="another target"),
        pytest.param("DELETE", f"{BASE}/approvals", lambda t: t, id="another method"),
        pytest.param("GET", f"{BASE}/approvals?watch=1", lambda t: t, id="another query"),
        pytest.param("GET", f"{BASE}/approvals", lambda t: t[:-1] + "x", id="another ticket"),
        pytest.param("GET", f"{BASE}/approvals", lambda t: t.upper() + " ", id="another case"),
        pytest.param("GET", f"{BASE}/approvals", lambda t: "", id="an empty one"),
    ],
)
async def test_a_ticket_is_good_for_its_request_only(desk, method, target, spoil):
    ticket = desk.server.ticket(agent(), "GET", f"{BASE}/approvals")
    ticket = spoil(ticket) if any(c.isalpha() for c in ticket) else spoil(ticket + "a")
    async with desk.client.request(method, desk.url(target), headers={TICKET_HEADER: ticket}) as answer:
        assert answer.status == 403


async def test_two_tickets_are_none(desk):
    target = f"{BASE}/approvals"
    headers = [(TICKET_HEADER, desk.server.ticket(agent(), "GET", target)) for _ in range(2)]
    async with desk.client.get(desk.url(target), headers=headers) as answer:
        assert answer.status == 403


async def test_a_ticket_expires(desk, monkeypatch):
    monkeypatch.setattr(virtualserver, "TICKET_TIME", 0.0)
    code, _ = await desk.ask(agent(), "GET", "approvals")
    assert code == 403


async def test_unused_tickets_do_not_pile_up(desk, monkeypatch):
    monkeypatch.setattr(virtualserver, "MAX_TICKETS", 3)
    tickets = [desk.server.ticket(agent(), "GET", "/") for _ in range(10)]
    assert list(desk.server._tickets) == tickets[-3:]
    monkeypatch.setattr(virtualserver, "TICKET_TIME", -1.0)
    desk.server._tickets.clear()
    for _ in range(5):
        last = desk.server.ticket(agent(), "GET", "/")
    assert list(desk.server._tickets) == [last]


async def test_tickets_and_bodies_are_never_logged(desk, caplog):
    caplog.set_level(logging.DEBUG)
    await desk.book.add(APPROVALS, record())
    ticket = desk.server.ticket(approver(), "PATCH", f"{BASE}/approvals/apr-7f3k")
    await desk.ask(approver(), "PATCH", "approvals/apr-7f3k", {"spec": {"decision": "Approved", "reason": "hunter2"}})
    await desk.ask(None, "GET", "approvals", **{TICKET_HEADER: ticket})
    assert "now Approved, by 'alice'" in caplog.text
    assert ticket not in caplog.text
    assert "hunter2" not in caplog.text


# ----- reading -----


async def test_everybody_sees_what_is_his(desk):
    other = replace(record("apr-other"), requester=approvals.requester(records.OTHER_AGENT))
    for one in (record(), other):
        await desk.book.add(APPROVALS, one)
    for viewer, seen in (
        (agent(), ["apr-7f3k"]),
        (approver(), ["apr-7f3k", "apr-other"]),
        (STRANGER, []),
        (replace(STRANGER, auditor=True), ["apr-7f3k", "apr-other"]),
    ):
        _, content = await desk.ask(viewer, "GET", "approvals")
        assert names(content) == seen
        for name in ("apr-7f3k", "apr-other"):
            code, one = await desk.ask(viewer, "GET", f"approvals/{name}")
            assert code == (200 if name in seen else 404)
    # What is not his is told like what is not there.
    _, hidden = await desk.ask(STRANGER, "GET", "approvals/apr-7f3k")
    _, missing = await desk.ask(STRANGER, "GET", "approvals/apr-none")
    assert json.dumps(hidden).replace("apr-7f3k", "apr-none") == json.dumps(missing)
    assert (hidden["reason"], hidden["details"]["kind"]) == ("NotFound", "approvals")
    for method, body in (("PATCH", YES), ("DELETE", None), ("PUT", {"metadata": {"resourceVersion": "1"}})):
        code, _ = await desk.ask(STRANGER, method, "approvals/apr-7f3k", body)
        assert code == 404


async def reads_nothing(_record):
    return False


async def is_late(_record):
    await asyncio.Event().wait()


async def fails(_record):
    raise RuntimeError("hunter2")


async def says_something(_record):
    return "yes"


@pytest.mark.parametrize(
    ("may_read", "shown"),
    [
        pytest.param(records.reads_all, True, id="he may"),
        pytest.param(reads_nothing, False, id="he may not"),
        pytest.param(is_late, False, id="not known in time"),
        pytest.param(fails, False, id="an error"),
        pytest.param(says_something, False, id="neither yes nor no"),
    ],
)
async def test_what_an_approver_may_not_read_himself(desk, monkeypatch, caplog, may_read, shown):
    monkeypatch.setattr("addons.net.virtualsight.READ_TIME", 0.05)
    await desk.book.add(APPROVALS, record())
    viewer = approver(may_read=may_read)
    _, one = await desk.ask(viewer, "GET", "approvals/apr-7f3k")
    _, many = await desk.ask(viewer, "GET", "approvals")
    _, table = await desk.ask(viewer, "GET", "approvals?includeObject=Object", accept=TABLE)
    _, patched = await desk.ask(viewer, "PATCH", "approvals/apr-7f3k?dryRun=All", YES)
    async with desk.watch(viewer, "approvals?watch=true") as event:
        _, watched = await event()
    for content in (one, many["items"][0], table["rows"][0]["object"], patched, watched):
        assert ("diff" in content["spec"]["preview"]) is shown
        assert content["spec"]["preview"]["counts"] == {"pods": 14}
    assert "hunter2" not in caplog.text


async def test_may_read_is_asked_only_where_it_matters(desk):
    asked = []

    async def may_read(one):
        asked.append(one.name)
        return True

    await desk.book.add(APPROVALS, record())
    await desk.ask(approver(may_read=may_read), "GET", "approvals", accept=TABLE)
    await desk.ask(STRANGER, "GET", "approvals")
    await desk.ask(approver(may_read=may_read), "GET", "approvals?fieldSelector=status.phase=Used")
    assert asked == []
    await desk.ask(approver(may_read=may_read), "GET", "approvals")
    assert asked == ["apr-7f3k"]
    await desk.ask(agent(may_read=may_read), "GET", "approvals")  # of the requester as well
    assert asked == ["apr-7f3k"] * 2


async def test_lists(desk):
    await desk.book.add(APPROVALS, record("b", now=NOW - 60))
    await desk.book.add(APPROVALS, record("a"))
    await desk.book.add(APPROVALS, replace(record("c", now=NOW - 30), phase=Phase.USED))
    _, content = await desk.ask(agent(), "GET", "approvals")
    assert names(content) == ["b", "c", "a"]  # oldest first
    assert content["metadata"]["resourceVersion"] == str(desk.book.revision)
    for query, found in (
        ("labelSelector=tollgate.dev%2Fphase%3DPending", ["b", "a"]),
        ("labelSelector=tollgate.dev%2Fphase%20notin%20(Pending)", ["c"]),
        ("fieldSelector=metadata.name%3Da", ["a"]),
        ("fieldSelector=status.phase!%3DPending,spec.namespace%3Dshop", ["c"]),
        ("fieldSelector=spec.requester.username%3Dnobody", []),
        ("limit=1", ["b", "c", "a"]),
        ("resourceVersion=0", ["b", "c", "a"]),
        (f"resourceVersion={desk.book.revision}&resourceVersionMatch=Exact", ["b", "c", "a"]),
        ("resourceVersion=1&resourceVersionMatch=NotOlderThan", ["b", "c", "a"]),
    ):
        _, content = await desk.ask(agent(), "GET", f"approvals?{query}")
        assert names(content) == found, query


async def test_a_long_list_comes_in_pieces_and_lets_others_go_on(desk, monkeypatch):
    many = [Change(APPROVALS, f"apr-{n}", n + 1, record(f"apr-{n}")) for n in range(1000)]
    monkeypatch.setattr(desk.book, "all", lambda kind: many)
    turns = 0

    async def others():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    working = asyncio.create_task(others())
    for accept, key in (("application/json", "items"), (TABLE, "rows")):
        turns = 0
        _, content = await desk.ask(agent(), "GET", "approvals", accept=accept)
        assert len(content[key]) == 1000
        assert turns > 2 * 1000 / TURN
    working.cancel()
    await asyncio.wait({working})


async def test_a_list_that_fails_on_its_way_is_no_whole_list(desk, monkeypatch):
    many = [Change(APPROVALS, f"apr-{n}", n + 1, record(f"apr-{n}")) for n in range(2 * TURN)]
    monkeypatch.setattr(desk.book, "all", lambda kind: many)
    content = Sight.content

    def fails(self, resource, change, *, hidden):
        if change.name == many[-1].name:
            raise RuntimeError("odd")
        return content(self, resource, change, hidden=hidden)

    monkeypatch.setattr(Sight, "content", fails)
    with pytest.raises(aiohttp.ClientError):
        await desk.ask(agent(), "GET", "approvals")


@pytest.mark.parametrize("query", ["resourceVersion=1&resourceVersionMatch=Exact", "resourceVersion=99", "continue=x"])
async def test_lists_of_another_time(desk, query):
    for name in ("a", "b"):
        await desk.book.add(APPROVALS, record(name))
    code, content = await desk.ask(agent(), "GET", f"approvals?{query}")
    assert (code, content["reason"]) == (410, "Expired")


async def test_forms(desk):
    await desk.book.add(APPROVALS, record())
    _, table = await desk.ask(agent(), "GET", "approvals", accept=TABLE)
    assert (table["kind"], table["rows"][0]["cells"][0]) == ("Table", "apr-7f3k")
    code, content = await desk.ask(agent(), "GET", "approvals", accept="application/vnd.kubernetes.protobuf")
    assert (code, content["reason"]) == (406, "NotAcceptable")
    async with desk.open(agent(), "GET", f"{BASE}/approvals/apr-7f3k", accept="application/yaml") as answer:
        assert answer.headers["Content-Type"] == "application/yaml"
        assert "command: kubectl scale" in await answer.text()


async def test_pages(desk):
    code, content = await desk.ask(STRANGER, "GET", "/apis/tollgate.dev")
    assert (code, content["kind"]) == (200, "APIGroup")
    code, content = await desk.ask(STRANGER, "GET", "/apis/tollgate.dev/v1alpha1")
    assert (code, content["kind"]) == (200, "APIResourceList")
    code, content = await desk.ask(STRANGER, "GET", f"/openapi/v3{BASE}?hash=x")
    assert (code, content["openapi"]) == (200, "3.0.0")
    etag = desk.headers["ETag"]
    code, content = await desk.ask(STRANGER, "GET", f"/openapi/v3{BASE}", **{"If-None-Match": etag})
    assert (code, content) == (304, None)
    code, content = await desk.ask(STRANGER, "GET", "/apis/tollgate.dev/v2")
    assert (code, content["reason"]) == (404, "NotFound")


# ----- deciding -----


async def test_a_decision(desk):
    await desk.book.add(APPROVALS, record())
    code, content = await desk.ask(
        approver(), "PATCH", "approvals/apr-7f3k", {"spec": {"decision": "Approved", "reason": "fine"}}
    )
    assert (code, content["status"]["phase"], content["spec"]["reason"]) == (200, "Approved", "fine")
    change = desk.book.get(APPROVALS, "apr-7f3k")
    assert (change.entry.phase, str(change.revision)) == (Phase.APPROVED, content["metadata"]["resourceVersion"])
    assert change.entry.decisions[0].username == "alice"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param("application/strategic-merge-patch+json", YES, id="strategic"),
        pytest.param(MERGE, YES, id="merge"),
        pytest.param(
            "application/json-patch+json",
            [{"op": "add", "path": "/spec/decision", "value": "Approved"}],
            id="JSON patch",
        ),
    ],
)
async def test_all_patches_decide(desk, kind, body):
    await desk.book.add(APPROVALS, record())
    code, _ = await desk.ask(approver(), "PATCH", "approvals/apr-7f3k", body, kind=kind)
    assert (code, desk.book.get(APPROVALS, "apr-7f3k").entry.phase) == (200, Phase.APPROVED)


async def test_an_update_decides(desk):
    await desk.book.add(APPROVALS, record())
    _, content = await desk.ask(approver(), "GET", "approvals/apr-7f3k")
    content["spec"]["decision"] = "Denied"
    code, _ = await desk.ask(approver(), "PUT", "approvals/apr-7f3k", content)
    assert (code, desk.book.get(APPROVALS, "apr-7f3k").entry.phase) == (200, Phase.DENIED)
    code, content = await desk.ask(approver(), "PUT", "approvals/apr-7f3k", content)
    assert (code, content["reason"], content["details"]["name"]) == (409, "Conflict", "apr-7f3k")


@pytest.mark.parametrize(
    ("viewer", "said"),
    [
        pytest.param(agent(), "an agent cannot decide", id="the agent"),
        pytest.param(Viewer(records.AGENT, agent=False), "nobody decides what he asked", id="the requester"),
        pytest.param(approver(now=NOW - 5000), "your login is older", id="an old login"),
        pytest.param(
            Viewer(replace(approver().identity, audiences=("tollgate",)), agent=False),
            "needs a token",
            id="no audience",
        ),
        pytest.param(replace(STRANGER, auditor=True), "none of its approvers", id="an auditor"),
    ],
)
async def test_who_may_not(desk, viewer, said):
    await desk.book.add(APPROVALS, record())
    code, content = await desk.ask(viewer, "PATCH", "approvals/apr-7f3k", YES)
    assert (code, content["reason"], desk.headers["Tollgate-Reason"]) == (403, "Forbidden", "not-allowed")
    assert said in content["message"]
    assert desk.book.get(APPROVALS, "apr-7f3k").entry.phase is Phase.PENDING


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        pytest.param({"spec": {"command": "x"}}, MERGE, 422, id="another field"),
        pytest.param(YES, "application/apply-patch+yaml", 415, id="server-side apply"),
        pytest.param(YES, "application/json", 415, id="no patch"),
        pytest.param(b"{", MERGE, 400, id="broken"),
        pytest.param(b'{"spec":{"decision":"Denied","decision":"Approved"}}', MERGE, 400, id="a key twice"),
        pytest.param(b" " * (64 * 1024 + 1), MERGE, 413, id="too large"),
        pytest.param(
            {"metadata": {"resourceVersion": "77"}, **YES}, MERGE, 409, id="of another state"
        ),
    ],
)  # fmt: skip
async def test_what_may_not_be_patched(desk, body, kind, code):
    await desk.book.add(APPROVALS, record())
    found, content = await desk.ask(approver(), "PATCH", "approvals/apr-7f3k", body, kind=kind)
    assert (found, content["kind"]) == (code, "Status")
    assert desk.book.get(APPROVALS, "apr-7f3k").entry == record()


async def test_a_compressed_body_is_not_read(desk):
    await desk.book.add(APPROVALS, record())
    body = gzip.compress(json.dumps(YES).encode())
    code, _ = await desk.ask(approver(), "PATCH", "approvals/apr-7f3k", body, **{"Content-Encoding": "gzip"})
    assert code == 400


async def test_dry_runs_change_nothing(desk):
    await desk.book.add(APPROVALS, record())
    revision = desk.book.revision
    code, content = await desk.ask(approver(), "PATCH", "approvals/apr-7f3k?dryRun=All", YES)
    assert (code, content["status"]["phase"]) == (200, "Approved")
    code, _ = await desk.ask(agent(), "PATCH", "approvals/apr-7f3k?dryRun=All", YES)
    assert code == 403  # what would be refused is refused
    code, _ = await desk.ask(agent(), "DELETE", "approvals/apr-7f3k", {"dryRun": ["All"]})
    assert code == 200
    code, _ = await desk.ask(agent(), "DELETE", "approvals/apr-7f3k?dryRun=All")
    assert code == 200
    code, _ = await desk.ask(agent(ask_ahead=opens), "POST", "accessrequests?dryRun=All", access_request())
    assert code == 201
    code, _ = await desk.ask(approver(), "PATCH", "approvals/apr-7f3k?dryRun=all", YES)
    assert code == 422
    assert desk.book.revision == revision
    assert not desk.book.all(REQUESTS)


async def test_no_change_is_no_step(desk):
    await desk.book.add(APPROVALS, record())
    revision = desk.book.revision
    code, content = await desk.ask(agent(), "PATCH", "approvals/apr-7f3k", {})
    assert (code, content["status"]["phase"], desk.book.revision) == (200, "Pending", revision)


async def test_another_record_of_that_name_is_not_decided(desk, monkeypatch):
    # Between the look and the step; names come back.
    await desk.book.add(APPROVALS, record())
    step = desk.book.step

    async def replaced(kind, name, take, revision=None):
        await desk.book.remove(kind, name)
        await desk.book.add(kind, replace(record(), uid="another"))
        return await step(kind, name, take, revision)

    monkeypatch.setattr(desk.book, "step", replaced)
    code, content = await desk.ask(approver(), "PATCH", "approvals/apr-7f3k", YES)
    assert (code, content["reason"]) == (409, "Conflict")
    assert desk.book.get(APPROVALS, "apr-7f3k").entry.phase is Phase.PENDING


async def test_a_client_that_leaves_does_not_stop_a_decision(desk, monkeypatch):
    await desk.book.add(APPROVALS, record())
    began, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    step = desk.book.step

    async def slow(*args):
        began.set()
        await go_on.wait()
        try:
            return await step(*args)
        finally:
            done.set()

    monkeypatch.setattr(desk.book, "step", slow)
    asking = asyncio.create_task(desk.ask(approver(), "PATCH", "approvals/apr-7f3k", YES))
    await began.wait()
    asking.cancel()
    await asyncio.wait({asking})
    await asyncio.sleep(0.05)  # the server notices
    go_on.set()
    await asyncio.wait_for(done.wait(), 5)
    assert desk.book.get(APPROVALS, "apr-7f3k").entry.phase is Phase.APPROVED


# ----- ending -----


async def test_cancel(desk):
    await desk.book.add(APPROVALS, record())
    code, content = await desk.ask(agent(), "DELETE", "approvals/apr-7f3k", {"propagationPolicy": "Background"})
    assert (code, content["status"], content["details"]) == (
        200, "Success", {"name": "apr-7f3k", "group": "tollgate.dev", "kind": "approvals"},
    )  # fmt: skip
    assert desk.book.get(APPROVALS, "apr-7f3k").entry.phase is Phase.CANCELLED
    code, content = await desk.ask(agent(), "DELETE", "approvals/apr-7f3k")
    assert (code, content["message"]) == (403, "apr-7f3k is Cancelled already")


async def test_who_may_not_cancel(desk):
    await desk.book.add(APPROVALS, record())
    code, content = await desk.ask(replace(STRANGER, auditor=True), "DELETE", "approvals/apr-7f3k")
    assert code == 403
    assert "only its requester or an approver" in content["message"]


@pytest.mark.parametrize("preconditions", [{"uid": "x"}, {"resourceVersion": "99"}])
async def test_preconditions(desk, preconditions):
    await desk.book.add(APPROVALS, record())
    code, _ = await desk.ask(agent(), "DELETE", "approvals/apr-7f3k", {"preconditions": preconditions})
    assert (code, desk.book.get(APPROVALS, "apr-7f3k").entry.phase) == (409, Phase.PENDING)


@pytest.mark.parametrize(
    ("method", "body"),
    [pytest.param("PATCH", {"spec": {"revoked": True}}, id="patch"), pytest.param("DELETE", None, id="delete")],
)
async def test_revoke(desk, method, body):
    request = records.access_request()
    await desk.book.add(REQUESTS, request)
    await desk.book.add(GRANTS, records.grant(request))
    name = records.grant(request).name
    code, _ = await desk.ask(replace(STRANGER, auditor=True), method, f"grants/{name}", body)
    assert code == 403
    # Not the one who said yes, but another approver of the record that it comes from; no fresh login is needed.
    bob = approver("bob", now=NOW - 9999)
    code, _ = await desk.ask(bob, method, f"grants/{name}", body)
    assert (code, desk.book.get(GRANTS, name).entry.revoked_by) == (200, "bob")


async def test_a_grant_is_seen_by_the_approvers_of_its_own_record_only(desk):
    request = records.access_request()
    grant = records.grant(request)
    # Another record of the source's name, asked for by rules that bob may decide.
    await desk.book.add(REQUESTS, replace(request, uid="another"))
    await desk.book.add(GRANTS, grant)
    code, _ = await desk.ask(approver("bob"), "GET", f"grants/{grant.name}")
    assert code == 404


# ----- asking ahead -----


def opens(access):
    return (hold("agents-delete"),), ""


def access_request(name="mine", **spec):
    fields = {"verbs": ["delete"], "resources": ["pods"], "namespace": "shop", "duration": "30m", "justification": "x"}
    return {"apiVersion": "tollgate.dev/v1alpha1", "kind": "AccessRequest", "metadata": {"name": name} if name else {},
            "spec": {**fields, **spec}}  # fmt: skip


async def test_an_access_request_and_its_grant(desk):
    viewer = agent(ask_ahead=opens)
    code, content = await desk.ask(viewer, "POST", "accessrequests?fieldValidation=Strict", access_request())
    assert (code, content["metadata"]["name"], content["status"]["phase"]) == (201, "mine", "Pending")
    code, content = await desk.ask(approver(), "PATCH", "accessrequests/mine", YES)
    assert (code, content["status"]["phase"]) == (200, "Approved")
    _, grants = await desk.ask(viewer, "GET", "grants")
    assert names(grants) == [content["status"]["grant"]]
    assert grants["items"][0]["spec"]["rules"] == ["agents/agents-delete"]


@pytest.mark.parametrize(
    ("body", "query", "code", "reason"),
    [
        pytest.param(access_request("taken"), "", 409, "AlreadyExists", id="the name is taken"),
        pytest.param(access_request("taken"), "?dryRun=All", 409, "AlreadyExists", id="in a dry run too"),
        pytest.param(access_request(resources=["secrets"]), "", 403, "Forbidden", id="the same is pending"),
        pytest.param(access_request(namespac="x"), "", 400, "BadRequest", id="a misspelled field"),
        pytest.param(access_request(duration="9h"), "", 422, "Invalid", id="too long"),
        pytest.param({**access_request(), "kind": "Approval"}, "", 400, "BadRequest", id="another kind"),
    ],
)
async def test_what_is_not_created(desk, body, query, code, reason):
    viewer = agent(ask_ahead=opens)
    await desk.ask(viewer, "POST", "accessrequests", access_request("taken", resources=["secrets"]))
    found, content = await desk.ask(viewer, "POST", f"accessrequests{query}", body)
    assert (found, content["reason"]) == (code, reason)
    assert len(desk.book.all(REQUESTS)) == 1


async def test_nothing_to_open(desk):
    viewer = agent(ask_ahead=lambda access: ((), "rule agents/no-secrets denies get of secrets"))
    code, content = await desk.ask(viewer, "POST", "accessrequests", access_request())
    assert (code, content["message"]) == (403, "rule agents/no-secrets denies get of secrets")


async def test_only_so_many_are_pending(desk):
    viewer = agent(ask_ahead=lambda access: ((hold(max_pending=3),), ""))
    codes = await asyncio.gather(
        *(desk.ask(viewer, "POST", "accessrequests", access_request("", namespace=f"n{n}")) for n in range(9))
    )
    assert sorted(code for code, _ in codes) == [201] * 3 + [403] * 6
    assert len(desk.book.all(REQUESTS)) == 3


async def test_warnings(desk):
    body = access_request()
    body["metadata"]["labels"] = {"a": "b"}
    code, _ = await desk.ask(agent(ask_ahead=opens), "POST", "accessrequests", body)
    assert (code, desk.headers["Warning"]) == (201, '299 - "metadata.labels is not kept here"')


# ----- watching -----

WATCH_LIST = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"


async def decide(desk, name="apr-7f3k"):
    take = lambda one: approvals.decide(one, approver().decider, True, "", desk.clock())  # noqa: E731
    await desk.book.step(APPROVALS, name, take)


async def test_a_watch_from_nothing(desk):
    await desk.book.add(APPROVALS, record())
    async with desk.watch(agent(), "approvals?watch=true") as event:
        kind, content = await event()
        assert (kind, content["metadata"]["name"]) == ("ADDED", "apr-7f3k")
        await desk.book.add(APPROVALS, record("apr-new"))
        kind, content = await event()
        assert (kind, content["metadata"]["name"]) == ("ADDED", "apr-new")
        await decide(desk)
        kind, content = await event()
        assert (kind, content["metadata"]["name"], content["status"]["phase"]) == ("MODIFIED", "apr-7f3k", "Approved")
        await desk.book.remove(APPROVALS, "apr-7f3k")
        kind, content = await event()
        assert (kind, content["metadata"]["name"]) == ("DELETED", "apr-7f3k")
        assert content["metadata"]["resourceVersion"] == str(desk.book.revision)


async def test_a_watch_list(desk):
    await desk.book.add(APPROVALS, record())
    async with desk.watch(agent(), f"approvals?{WATCH_LIST}") as event:
        assert (await event())[0] == "ADDED"
        kind, content = await event()
        assert (kind, content["kind"], content["metadata"]) == (
            "BOOKMARK", "Approval",
            {"resourceVersion": str(desk.book.revision), "annotations": {"k8s.io/initial-events-end": "true"}},
        )  # fmt: skip
        await decide(desk)
        assert (await event())[0] == "MODIFIED"


async def test_a_watch_goes_on_from_a_list(desk):
    await desk.book.add(APPROVALS, record())
    _, listed = await desk.ask(agent(), "GET", "approvals")
    await desk.book.add(APPROVALS, record("apr-new"))
    since = listed["metadata"]["resourceVersion"]
    async with desk.watch(agent(), f"approvals?watch=true&resourceVersion={since}") as event:
        kind, content = await event()
        assert (kind, content["metadata"]["name"]) == ("ADDED", "apr-new")
        await decide(desk)
        assert (await event())[0] == "MODIFIED"  # which the list showed


async def test_what_leaves_the_selector_is_deleted(desk):
    await desk.book.add(APPROVALS, record())
    _, listed = await desk.ask(agent(), "GET", "approvals")
    since = listed["metadata"]["resourceVersion"]
    pending = "approvals?watch=true&labelSelector=tollgate.dev%2Fphase%3DPending"
    approved = "approvals?watch=true&fieldSelector=status.phase%3DApproved"
    async with (
        desk.watch(agent(), pending) as first,
        desk.watch(agent(), f"{pending}&resourceVersion={since}") as second,
        desk.watch(agent(), approved) as third,
    ):
        assert (await first())[0] == "ADDED"
        await decide(desk)
        for event, kind in ((first, "DELETED"), (second, "DELETED"), (third, "ADDED")):
            found, content = await event()
            assert (found, content["status"]["phase"]) == (kind, "Approved")


async def test_a_watch_shows_only_what_is_his(desk):
    async with desk.watch(STRANGER, "approvals?watch=true&timeoutSeconds=1") as event:
        await desk.book.add(APPROVALS, record())
        await decide(desk)
        assert await event() is None  # its time is over, and nothing came


async def test_a_watch_of_one_kind(desk):
    async with desk.watch(agent(), "grants?watch=true") as event:
        await desk.book.add(APPROVALS, record())
        await desk.book.add(GRANTS, records.grant())
        kind, content = await event()
        assert (kind, content["kind"]) == ("ADDED", "Grant")


async def test_a_grant_that_is_over_says_so(desk):
    await desk.book.add(GRANTS, records.grant())
    desk.clock.now = NOW + 1799.9
    async with desk.watch(agent(), "grants?watch=true") as event:
        assert (await event())[1]["status"]["phase"] == "Active"
        desk.clock.now = NOW + 1801
        kind, content = await event()
        assert (kind, content["status"]["phase"]) == ("MODIFIED", "Expired")


async def test_a_watch_in_tables(desk):
    await desk.book.add(APPROVALS, record())
    async with desk.watch(agent(), "approvals?watch=true", accept=TABLE) as event:
        _, first = await event()
        await decide(desk)
        _, second = await event()
    assert (first["kind"], second["kind"]) == ("Table", "Table")
    assert first["columnDefinitions"][0]["name"] == "Name"
    assert second["columnDefinitions"] is None
    assert (first["rows"][0]["cells"][1], second["rows"][0]["cells"][1]) == ("Pending", "Approved")


async def test_bookmarks(desk, monkeypatch):
    monkeypatch.setattr("addons.net.virtualwatching.BOOKMARK_TIME", 0.05)
    async with desk.watch(agent(), "approvals?watch=true&allowWatchBookmarks=true") as event:
        await desk.book.add(REQUESTS, records.access_request())  # another kind: the revision goes on
        for _ in range(50):
            kind, content = await event()
            assert kind == "BOOKMARK"
            if content["metadata"]["resourceVersion"] == str(desk.book.revision):
                break
        else:
            raise AssertionError("no bookmark came as far as the book")


def is_gone(since):
    raise Gone("too long ago")


async def lags(since):
    raise Gone("too many changes have come meanwhile")
    yield


@pytest.mark.parametrize("follow", [is_gone, lags])
async def test_a_watch_that_is_too_old_is_told(desk, monkeypatch, follow):
    monkeypatch.setattr(desk.book, "follow", follow)
    await desk.book.add(APPROVALS, record())
    async with desk.watch(agent(), "approvals?watch=true&resourceVersion=1") as event:
        kind, content = await event()
        assert (kind, content["code"], content["reason"]) == ("ERROR", 410, "Expired")
        assert await event() is None


async def test_a_watch_from_the_future(desk):
    code, content = await desk.ask(agent(), "GET", "approvals?watch=true&resourceVersion=77")
    assert (code, content["reason"]) == (410, "Expired")


async def test_watches_end_when_they_are_told(desk):
    async with desk.watch(agent(), "approvals?watch=true") as event:
        while not desk.server._watches:
            await asyncio.sleep(0)
        desk.server.end_watches()
        assert await event() is None  # a clean end: the client watches again


async def test_a_watcher_who_left_is_forgotten(desk):
    async with desk.watch(agent(), "approvals?watch=true"):
        assert len(desk.server._watches) == 1
    async with asyncio.timeout(5):
        while desk.server._watches:
            await asyncio.sleep(0.01)


async def test_only_so_many_watches(desk, monkeypatch):
    monkeypatch.setattr(virtualserver, "MAX_WATCHES_EACH", 2)
    async with desk.watch(agent(), "approvals?watch=true"), desk.watch(agent(), "grants?watch=true"):
        code, content = await desk.ask(agent(), "GET", "approvals?watch=true")
        assert (code, content["reason"]) == (503, "ServiceUnavailable")
        async with desk.watch(approver(), "approvals?watch=true"):  # the others are not kept out
            pass


async def test_a_broken_watch_is_no_clean_end(desk, monkeypatch, caplog):
    def fails(self, entry):
        raise RuntimeError("odd")

    await desk.book.add(APPROVALS, record())
    async with desk.watch(agent(), "approvals?watch=true") as event:
        assert (await event())[0] == "ADDED"
        monkeypatch.setattr("addons.net.virtualsight.Sight.sees", fails)
        await decide(desk)
        with pytest.raises(aiohttp.ClientError):
            await event()


# ----- trouble -----


async def test_a_store_that_fails(desk, caplog):
    await desk.book.add(APPROVALS, record())
    desk.book._store.close()
    code, content = await desk.ask(approver(), "PATCH", "approvals/apr-7f3k", YES)
    assert (code, content["reason"]) == (503, "ServiceUnavailable")
    code, content = await desk.ask(approver(), "GET", "approvals/apr-7f3k")
    assert (code, content["status"]["phase"]) == (200, "Pending")  # reading goes on


async def test_an_error_of_ours(desk, monkeypatch, caplog):
    def fails(self, changes, selector):
        raise RuntimeError("odd")

    monkeypatch.setattr("addons.net.virtualsight.Sight.among", fails)
    code, content = await desk.ask(agent(), "GET", "approvals")
    assert (code, content["reason"]) == (500, "InternalError")
    assert "odd" not in content["message"]


async def test_start_and_stop():
    store = SqliteStore(None)
    book = Book(store, Clock())
    await book.start()
    server = VirtualServer(book, Clock())
    assert server.port == 0
    await server.start()
    port = server.port
    await server.start()
    assert server.port == port != 0
    async with aiohttp.ClientSession() as client:
        desk = Desk(book, server, Clock(), client)
        async with desk.watch(agent(), "approvals?watch=true") as event:
            async with asyncio.timeout(3):
                await server.stop()
            assert await event() is None
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get(f"http://127.0.0.1:{port}/")
    await server.stop()
    assert server.port == 0
    await book.stop()
    store.close()


# ----- revocations -----

SWITCH = {"apiVersion": "tollgate.dev/v1alpha1", "kind": "Revocation", "metadata": {"generateName": "now-"},
          "spec": {"user": "eve", "reason": "because", "duration": "1h"}}  # fmt: skip


def lifter(**more):
    who = Identity("ann", audiences=(approvals.AUDIENCE,), auth_time=NOW - 5)
    return Viewer(who, **{"agent": False, **more})


async def test_a_revocation_is_made_seen_and_lifted(desk):
    code, made = await desk.ask(lifter(), "POST", "revocations", SWITCH)
    assert code == 201
    name = made["metadata"]["name"]
    assert name.startswith("now-")
    assert (made["status"]["phase"], made["status"]["by"], made["status"]["via"]) == ("InForce", "ann", "api")
    assert made["spec"]["expires"]
    # It is in the store, where whoever authenticates looks.
    stored = desk.book.get(REVOCATIONS, name)
    assert stored.entry.target.user == "eve"
    code, table = await desk.ask(STRANGER, "GET", "revocations", accept=TABLE)
    assert table["rows"][0]["cells"][:4] == [name, "InForce", "user eve", "ann"]
    code, content = await desk.ask(lifter(), "DELETE", f"revocations/{name}")
    assert (code, content["status"]) == (200, "Success")
    _, gone = await desk.ask(lifter(), "GET", f"revocations/{name}")
    assert (gone["status"]["phase"], gone["status"]["liftedBy"]) == ("Lifted", "ann")


@pytest.mark.parametrize(
    ("viewer", "spec", "code"),
    [
        pytest.param(agent(), SWITCH["spec"], 403, id="an agent"),
        pytest.param(lifter(), {}, 422, id="nobody"),
        pytest.param(lifter(), {"userr": "eve"}, 400, id="misspelled"),
    ],
)
async def test_no_revocation_is_made(desk, viewer, spec, code):
    got, content = await desk.ask(viewer, "POST", "revocations", {**SWITCH, "spec": spec})
    assert (got, content["kind"]) == (code, "Status")
    assert not desk.book.all(REVOCATIONS)


async def test_a_dry_run_revokes_nobody_and_a_name_is_good_once(desk):
    named = {**SWITCH, "metadata": {"name": "stop"}}
    code, _ = await desk.ask(lifter(), "POST", f"{BASE}/revocations?dryRun=All", named)
    assert (code, len(desk.book.all(REVOCATIONS))) == (201, 0)
    assert (await desk.ask(lifter(), "POST", "revocations", named))[0] == 201
    for target in ("revocations", "revocations?dryRun=All"):
        code, content = await desk.ask(lifter(), "POST", f"{BASE}/{target}", named)
        assert (code, content["reason"]) == (409, "AlreadyExists")


async def test_agents_see_no_revocations_and_nobody_lifts_with_an_everyday_token(desk):
    _, made = await desk.ask(lifter(), "POST", "revocations", SWITCH)
    target = f"revocations/{made['metadata']['name']}"
    assert (await desk.ask(agent(), "GET", target))[0] == 404
    assert (await desk.ask(agent(), "DELETE", target))[0] == 404
    everyday = replace(lifter(), identity=replace(lifter().identity, audiences=("tollgate",)))
    code, content = await desk.ask(everyday, "DELETE", target)
    assert code == 403
    assert approvals.AUDIENCE in content["message"]
    assert desk.book.get(REVOCATIONS, made["metadata"]["name"]).entry.in_force(NOW)


async def test_a_watch_tells_of_its_end(desk):
    async with desk.watch(STRANGER, "revocations?watch=1") as event:
        await desk.ask(lifter(), "POST", "revocations", {**SWITCH, "spec": {"user": "eve", "duration": "1s"}})
        kind, content = await event()
        assert (kind, content["status"]["phase"]) == ("ADDED", "InForce")
        desk.clock.now = NOW + 1
        await desk.ask(lifter(), "POST", "revocations", SWITCH)
        found = {(await event())[1]["status"]["phase"] for _ in range(2)}
        assert found == {"Expired", "InForce"}


async def test_the_switch_can_be_thrown_when_the_book_is_full(desk, monkeypatch):
    monkeypatch.setattr("addons.net.book.MAX_ENTRIES", -1000)
    assert (await desk.ask(lifter(), "POST", "revocations", SWITCH))[0] == 201


async def test_in_memory_nobody_can_be_revoked(desk):
    server = VirtualServer(desk.book, desk.clock, revokes=False)
    await server.start()
    try:
        other = Desk(desk.book, server, desk.clock, desk.client)
        code, content = await other.ask(lifter(), "POST", "revocations", SWITCH)
    finally:
        await server.stop()
    assert code == 503
    assert "tollgate_state" in content["message"]
