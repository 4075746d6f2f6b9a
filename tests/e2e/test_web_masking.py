"""Nothing secret comes out of mitmweb: by none of its ways, of an exchange that goes on or is over, whoever asked."""

import asyncio
import base64
import contextlib
import json
import re
import time
import uuid
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from tests import canaries
from tests.e2e import client, gateway

pytestmark = pytest.mark.e2e

POLICY = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: everything}
people: '"tollgate:system:serviceaccounts:people" in identity.groups'
rules:
- {name: everything, action: allow, match: {verbs: ["*"], resources: ["*", "*/*"]}}
- {name: everything-else, action: allow, match: {verbs: ["*"], nonResourceURLs: ["*"]}}
- {name: no-leases, action: deny, match: {verbs: ["*"], resources: [leases.coordination.k8s.io]}, message: No.}
"""
SECRETS = "/api/v1/namespaces/shop/secrets"
# Of each kind that a Secret can hold; what an exec prints is masked by its shape, which is best effort.
VALUES = {name: canaries.VALUES[name] for name in ("plain word", "unicode", "private key", "bytes", "hex", "lines")}
PASSWORD = canaries.TEXTS["password"]
TYPED = canaries.TEXTS["github token"]
ALL = [*VALUES.values(), PASSWORD.encode(), TYPED.encode()]
VIEWS = ("auto", "raw", "json", "yaml", "hex dump", "kubernetes", "query")
LIMIT = 30  # seconds


def secret(name, **more):
    data = {name.replace(" ", "-"): base64.b64encode(value).decode() for name, value in VALUES.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data | more}


@pytest.fixture(scope="module")
def web(gateway_kubeconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("webmask")
    (folder / "policy.yaml").write_text(POLICY)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml"),
                 "--web", f"127.0.0.1:{gateway.free_port()}", "--",
                 "--set", f"save_stream_file={folder}/stream.mitm", "--set", f"hardump={folder}/all.har"]  # fmt: skip
    with gateway.running(folder, *arguments, command="web") as one:
        yield one


class Interface:
    """mitmweb's own HTTP API, and everything it ever said."""

    def __init__(self, session, url, token):
        self.session, self.url, self.token = session, url, token
        self.said = b""
        self.events = []

    async def __aenter__(self):
        self.xsrf = uuid.uuid4().hex  # the cookie and the header have to agree, no more
        self.session.cookie_jar.update_cookies({"_mitmproxy_xsrf": self.xsrf}, URL(self.url))
        self.updates = await self.session.ws_connect(f"{self.url}/updates?token={self.token}")
        self.listening = asyncio.create_task(self.listen())
        return self

    async def __aexit__(self, *_):
        self.listening.cancel()
        await self.updates.close()

    async def listen(self):
        async for message in self.updates:
            raw = message.data if isinstance(message.data, bytes) else message.data.encode()
            self.said += raw
            self.events.append(json.loads(raw))

    async def get(self, path):
        async with self.session.get(self.url + path, params={"token": self.token}) as answer:
            found = await answer.read()
            self.said += found
            return answer.status, found

    async def send(self, method, path, value=None):
        headers = {"X-XSRFToken": self.xsrf, "Authorization": f"Bearer {self.token}"}
        async with self.session.request(method, self.url + path, json=value, headers=headers) as answer:
            found = await answer.read()
            self.said += found
            assert answer.status == 200, (method, path, found)
            return found

    async def run(self, command, *arguments):
        return json.loads(await self.send("POST", f"/commands/{command}", {"arguments": list(arguments)}))

    async def flows(self):
        return json.loads((await self.get("/flows"))[1])

    async def until(self, found):
        """The latest flow of which this is true."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            for flow in reversed(await self.flows()):
                if found(flow):
                    return flow
            await asyncio.sleep(0.05)
        raise AssertionError([(f["request"]["path"], f["intercepted"], f["comment"]) for f in await self.flows()])

    async def search(self, guess):
        """The ids of flows that mitmweb's own filter finds."""
        name = uuid.uuid4().hex
        await self.updates.send_json({"type": "flows/updateFilter", "payload": {"name": name, "expr": guess}})
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            for event in self.events:
                if event["type"] == "flows/filterUpdate" and event["payload"]["name"] == name:
                    return event["payload"]["matching_flow_ids"]
            await asyncio.sleep(0.02)
        raise AssertionError("no answer to a filter")

    async def everything(self, folder):
        """Ask for all there is of each flow, in every way."""
        for flow in await self.flows():
            if flow["type"] != "http":
                continue
            one = f"/flows/{flow['id']}"
            for message in ("request", "response", "messages"):
                await self.get(f"{one}/{message}/content.data")
                for view in VIEWS:
                    await self.get(f"{one}/{message}/content/{view}")
            for form in ("curl", "httpie", "raw", "raw_request", "raw_response"):
                await self.run("export", form, f"@{flow['id']}")
                await self.run("export.file", form, f"@{flow['id']}", str(folder / f"{flow['id']}.{form}"))
            await self.run("tollgate.show", f"@{flow['id']}")
        await self.get("/flows/dump")
        await self.get("/events")
        await self.run("cut", "@all", "request.path,request.text,response.text,request.headers,response.headers,"
                       "comment,error,metadata,websocket,request.data,response.data")  # fmt: skip
        await self.run("cut.save", "@all", "request.content,response.content", str(folder / "cut"))
        await self.run("save.file", "@all", str(folder / "saved"))
        await self.run("save.har", "@all", str(folder / "saved.har"))
        for path in folder.iterdir():
            self.said += path.read_bytes()


@contextlib.asynccontextmanager
async def interface(web):
    found = re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\w+)", web.log)
    assert found, web.log
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
        Interface(session, found[1], found[2]) as one,
    ):
        yield one


@pytest.fixture
async def ui(web):
    async with interface(web) as one:
        yield one


@pytest.fixture
def ask(web, agent_token, engineer_token):
    tokens = {"agent": agent_token, "engineer": engineer_token}

    async def ask(who, method, path, body=None, **more):
        return await asyncio.to_thread(
            client.request, web.port, web.ca_file, method, path, token=tokens[who], body=body, **more
        )

    return ask


def clean(ui):
    assert canaries.seen_in(ui.said, ALL) == []


def is_of(method, path, *, over=True):
    def found(flow):
        request = flow["request"]
        return request["method"] == method and path in request["path"] and (not over or bool(flow.get("response")))

    return found


async def is_told_over(ui, method, path):
    """Its answer is there and is no placeholder any more."""
    return await ui.until(lambda f: is_of(method, path)(f) and f["response"]["status_code"] < 500)


@pytest.mark.parametrize("who", ["agent", "engineer"])
async def test_exchanges_that_are_over(ui, ask, who, tmp_path, web):
    name = f"over-{who}"
    assert (await ask(who, "POST", SECRETS, secret(name))).status == 201
    got = await ask(who, "GET", f"{SECRETS}/{name}")
    assert got.status == 200
    # That an engineer sees it shows that there was something to see.
    assert bool(canaries.seen_in(got.body, [base64.b64encode(VALUES["hex"])])) is (who == "engineer")
    assert (await ask(who, "GET", SECRETS)).status == 200
    patch = {"headers": {"Content-Type": "application/merge-patch+json"}}
    await ask(who, "PATCH", f"{SECRETS}/{name}", {"stringData": {"more": PASSWORD}}, **patch)
    await is_told_over(ui, "GET", f"{SECRETS}/{name}")
    await ui.everything(tmp_path)
    assert f"/{name}".encode() in ui.said
    assert b"**masked:" in ui.said
    clean(ui)


async def test_while_it_waits_at_the_console_and_edited(ui, ask, tmp_path, web):
    await ui.send("PUT", "/options", {"intercept": "~m POST & ~u secrets"})
    try:
        asking = asyncio.create_task(ask("engineer", "POST", SECRETS, secret("stopped"), seconds=60))
        flow = await ui.until(lambda f: f["intercepted"])
        await ui.everything(tmp_path)
        for value in VALUES.values():
            with contextlib.suppress(UnicodeDecodeError):
                guess = re.escape(base64.b64encode(value).decode())
                assert flow["id"] not in await ui.search(f'~b "{guess}"')
        assert flow["id"] in await ui.search("~b stopped")
        clean(ui)
        body = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "by-hand"}})
        await ui.send(
            "PUT", f"/flows/{flow['id']}", {"request": {"path": "/api/v1/namespaces/shop/configmaps", "content": body}}
        )
        await ui.send("POST", f"/flows/{flow['id']}/resume")
        answer = await asking
    finally:
        await ui.send("PUT", "/options", {"intercept": ""})
    assert (answer.status, json.loads(answer.body)["metadata"]["name"]) == (201, "by-hand")
    deadline = time.monotonic() + LIMIT
    while not (events := [e for e in recorded(web) if e["annotations"].get("tollgate.dev/edited")]):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert {e["objectRef"]["resource"] for e in events} == {"configmaps"}
    told = await is_told_over(ui, "POST", "/configmaps")
    assert "edited: by hand" in (await ui.run("tollgate.show", f"@{told['id']}"))["value"]
    await ui.everything(tmp_path)
    clean(ui)


async def test_what_is_edited_is_judged(ui, ask):
    await ui.send("PUT", "/options", {"intercept": "~m GET & ~u configmaps"})
    try:
        asking = asyncio.create_task(ask("engineer", "GET", "/api/v1/namespaces/shop/configmaps", seconds=60))
        flow = await ui.until(lambda f: f["intercepted"])
        path = "/apis/coordination.k8s.io/v1/namespaces/shop/leases"
        await ui.send("PUT", f"/flows/{flow['id']}", {"request": {"path": path}})
        await ui.send("POST", f"/flows/{flow['id']}/resume")
        answer = await asking
    finally:
        await ui.send("PUT", "/options", {"intercept": ""})
    assert answer.status == 403
    told = await ui.until(lambda f: f["id"] == flow["id"] and bool(f.get("response")))
    assert (told["marked"], "[deny everything/no-leases]" in told["comment"]) == ("⛔", True)


def recorded(web):
    lines = [
        line for file in (web.folder / "recordings").rglob("events.jsonl") for line in file.read_text().split("\n")
    ]
    return [event for event in map(json.loads, filter(None, lines)) if "auditID" in event and "annotations" in event]


@pytest.mark.parametrize("who", ["agent", "engineer"])
async def test_an_exec(ui, controlplane, web, agent_token, engineer_token, who, tmp_path):
    config = web.kubeconfig(who, agent_token if who == "agent" else engineer_token, namespace="shop")
    pod = controlplane.pods("shop", "app=web")[0]
    script = f"echo DB_PASSWORD={PASSWORD}; echo {TYPED}; read x; echo got $x"
    process = await asyncio.create_subprocess_exec(
        controlplane.kubectl, "--kubeconfig", str(config), "exec", "-i", pod, "--", "sh", "-c", script,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert b"DB_PASSWORD=" in await asyncio.wait_for(process.stdout.readline(), LIMIT)
    await ui.everything(tmp_path)  # live
    clean(ui)
    flow = await ui.until(lambda f: "/exec" in f["request"]["path"] and f["websocket"]["timestamp_end"] is None)
    out, _ = await asyncio.wait_for(process.communicate(f"token: {TYPED}\n".encode()), LIMIT)
    assert b"got token:" in out
    await ui.until(lambda f: f["id"] == flow["id"] and f["websocket"]["messages_meta"]["count"] > 0)
    frames = json.loads((await ui.get(f"/flows/{flow['id']}/messages/content/raw"))[1])
    assert any("DB_PASSWORD=" in frame["text"] for frame in frames)  # those of the record
    await ui.everything(tmp_path)
    clean(ui)


async def test_a_watch(ui, ask, web, engineer_token, tmp_path):
    watching = asyncio.create_task(ask("engineer", "GET", f"{SECRETS}?watch=true&timeoutSeconds=3"))
    await ui.until(is_of("GET", "watch=true", over=False))
    await ask("engineer", "POST", SECRETS, secret("watched"))
    await ui.everything(tmp_path)
    clean(ui)
    assert canaries.seen_in((await watching).body, [base64.b64encode(VALUES["hex"])])
    await ui.everything(tmp_path)
    clean(ui)


async def test_a_copy_by_hand_and_a_replay(ui, ask, tmp_path):
    assert (await ask("engineer", "POST", SECRETS, secret("replayed"))).status == 201
    flow = await is_told_over(ui, "POST", SECRETS)
    await ui.send("POST", f"/flows/{flow['id']}/duplicate")
    await ui.run("view.flows.duplicate", f"@{flow['id']}")
    await ui.send("POST", f"/flows/{flow['id']}/replay")
    replayed = await ui.until(lambda f: f["id"] == flow["id"] and f["is_replay"] and bool(f.get("response")))
    assert replayed["response"]["status_code"] in (400, 401, 403)  # nobody's: it authenticates afresh
    await ui.everything(tmp_path)
    clean(ui)


async def test_a_file_of_somebody_else(ui, tmp_path):
    """What mitmproxy elsewhere has saved has no facts, and is masked by its URL."""
    from mitmproxy.io import FlowWriter
    from mitmproxy.test import tflow

    path = tmp_path / "foreign"
    flow = tflow.tflow(resp=True)
    flow.request.method, flow.request.path = "GET", f"{SECRETS}/foreign"
    flow.response.headers["content-type"] = "application/json"
    flow.response.text = json.dumps(secret("foreign"))
    flow.comment = f"token={TYPED}"
    with path.open("wb") as file:
        FlowWriter(file).add(flow)
    await ui.run("view.flows.load", str(path))
    (tmp_path / "out").mkdir()
    found = await ui.until(is_of("GET", "/foreign"))
    await ui.everything(tmp_path / "out")
    clean(ui)
    shown = json.loads((await ui.get(f"/flows/{found['id']}/response/content/auto"))[1])
    assert shown["view_name"] == "Kubernetes"
    assert "name: foreign" in shown["text"]


async def test_facts_and_session(ui, ask, web):
    assert (await ask("agent", "POST", SECRETS, secret("told"))).status == 201
    flow = await is_told_over(ui, "POST", SECRETS)
    found = await ui.run("tollgate.show", f"@{flow['id']}")
    assert "value" in found, found
    told = found["value"]
    assert "user: tollgate:system:serviceaccount:" in told
    assert "verdict: allow" in told
    assert "rule: everything" in told
    deadline = time.monotonic() + LIMIT
    while "value" not in (found := await ui.run("tollgate.session", f"@{flow['id']}")):
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)
    folder = Path(found["value"])
    assert re.search(r"audit-id: (\S+)", told)[1] in (folder / "events.jsonl").read_text()


def test_what_mitmproxy_saves_by_itself(web):
    """The last one here: it ends the gateway."""
    web.stop()
    for name in ("stream.mitm", "all.har"):
        saved = (web.folder / name).read_bytes()
        assert b"/secrets" in saved
        assert canaries.seen_in(saved, ALL) == []
