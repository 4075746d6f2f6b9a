"""
The two MCP servers for Kubernetes that are used most, driven by the official SDK, through the gateway
onto the real control plane, with the configuration in deploy/mcp. What a model reads is what is tested.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from addons.cli import demo
from addons.cli import kubeconfig as kubeconfig_command
from tests.cluster.controlplane import base_environment
from tests.e2e import gateway
from tests.e2e.test_approvals import Stage, until
from tests.mcpservers import host, servers

pytestmark = [pytest.mark.e2e, pytest.mark.mcp]

DEPLOY = gateway.ROOT / "deploy" / "mcp"
START_LIMIT = 30  # seconds; Node needs two
HOLD = 12  # seconds that a request of `slow` waits
NAMES = (f"mcp-{n}" for n in itertools.count())
NAMESPACE_SHOP = {"apiVersion": "v1", "kind": "Namespace", "name": "shop"}
PEOPLE = "tollgate:system:serviceaccounts:people"
POLICY = f"""
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {{name: agents}}
people: '"{PEOPLE}" in identity.groups'
rules:
- {{name: everything, action: allow, match: {{verbs: ["*"], resources: ["*", "*/*"]}}}}
- {{name: everything-else, action: allow, match: {{verbs: ["*"], nonResourceURLs: ["*"]}}}}
- name: critical
  action: deny
  match: {{subjects: [agents], resources: [configmaps], resourceNames: ["*-critical"], impacts: [write, delete]}}
  message: Critical ConfigMaps change through Git. Open a merge request there instead.
- name: no-shell-in-billing
  action: deny
  match: {{subjects: [agents], impacts: [execute], namespaces: [billing]}}
  message: Nobody needs a shell beside the invoices. Read the logs instead.
- name: slow
  action: hold
  match: {{subjects: [agents], resources: [configmaps], resourceNames: ["slow-*"], impacts: [write, delete]}}
  message: It changes settings.
  approval: {{groups: ["{PEOPLE}"], wait: {HOLD}s, maxPending: 100}}
- name: late
  action: hold
  match: {{subjects: [agents], resources: [configmaps], resourceNames: ["late-*"], impacts: [write, delete]}}
  message: It changes settings.
  approval: {{groups: ["{PEOPLE}"], wait: 1s, maxPending: 100}}
- name: shell
  action: hold
  match: {{subjects: [agents], impacts: [execute], namespaces: [prod-web]}}
  message: It runs commands inside a pod.
  approval: {{groups: ["{PEOPLE}"], wait: 1s, maxPending: 100}}
"""


@pytest.fixture(scope="module")
def stage(gateway_kubeconfig, controlplane, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mcp")
    (folder / "policy.yaml").write_text(POLICY)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")]
    # The tests are one agent's: without this its third delete within a minute would be a mass delete.
    arguments += ["--", "--set", "tollgate_run_window=0"]
    with gateway.running(folder, *arguments) as one:
        yield Stage(one, controlplane)


@pytest.fixture(params=servers.SERVERS, ids=lambda server: server.package)
def server(request):
    return request.param


def token_kubeconfig(stage, folder: Path, token: str) -> Path:
    """What `./run.sh kubeconfig --token-file` prints, and the file with the token."""
    file = folder / "token"
    file.write_text(token)
    return printed(stage, folder / "agent.kubeconfig", "--token-file", str(file))


def printed(stage, path: Path, *arguments: str) -> Path:
    state = stage.gateway.folder / "state"
    with path.open("w") as output, contextlib.redirect_stdout(output):
        kubeconfig_command.main(["--server", stage.gateway.url, "--state", str(state), *arguments])
    return path


def environment(stage, folder: Path, **more: str) -> dict[str, str]:
    """No kubeconfig of this machine's user, and our kubectl first."""
    base = base_environment(folder)
    return base | {"PATH": f"{stage.controlplane.programs.folder}{os.pathsep}{base['PATH']}"} | more


def shipped(name: str, **changes: str) -> str:
    """A file of deploy/mcp with the paths and addresses of this test."""
    text = (DEPLOY / name).read_text()
    for old, new in changes.items():
        assert old in text, f"{name} has no {old}"
        text = text.replace(old, new)
    return text


def entry(server) -> dict:
    """The server's entry in the file for MCP clients."""
    for one in json.loads((DEPLOY / "clients.json").read_text())["mcpServers"].values():
        if one["args"][1].split("@")[0] == server.package:
            return one
    raise AssertionError(f"no {server.package} in clients.json")


def prepared(stage, server, folder: Path, config: Path) -> tuple[list[str], dict[str, str]]:
    """The command and variables of the entry in clients.json, with the packages of the cache and this kubeconfig."""
    one = entry(server)
    assert (one["command"], one["args"][0]) == ("npx", "-y")
    path = {"/etc/tollgate/agent.kubeconfig": str(config)}
    arguments = []
    for argument in one["args"][2:]:
        if argument.startswith("/etc/tollgate/"):
            file = folder / Path(argument).name
            file.write_text(shipped(f"{server.package}/{file.name}", **path))
            argument = str(file)
        arguments.append(argument)
    variables = {name: path.get(value, value) for name, value in one.get("env", {}).items()}
    return [*server.command(), *arguments], environment(stage, folder) | variables


@contextlib.asynccontextmanager
async def started(stage, server, folder: Path, config: Path | None = None, **more: str):
    """The server over stdio, as the entry in clients.json starts it."""
    config = config or token_kubeconfig(stage, folder, stage.agent_token)
    command, env = prepared(stage, server, folder, config)
    async with host.stdio(command, env | more, folder / "server.log") as one:
        yield one


@pytest.fixture
def settings(stage):
    """A ConfigMap manifest, by name; what a test made of it is gone afterwards."""
    made = []

    def manifest(prefix: str, **data: str) -> dict:
        name = f"{prefix}-{next(NAMES)}"
        made.append(name)
        metadata = {"name": name, "namespace": "shop"}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}

    yield manifest
    for name in made:
        stage.controlplane.request("DELETE", f"/api/v1/namespaces/shop/configmaps/{name}")


def stored(stage, manifest: dict) -> dict | None:
    """The data that the API server has of it."""
    name = manifest["metadata"]["name"]
    status, body = stage.controlplane.request("GET", f"/api/v1/namespaces/shop/configmaps/{name}")
    return json.loads(body)["data"] if status == 200 else None


async def approve(stage, having: str) -> str:
    item = await asyncio.to_thread(stage.pending, having)
    name = item["metadata"]["name"]
    assert (await asyncio.to_thread(stage.decide, name, "Approved")).status == 200
    return name


# What the servers do all day --------------------------------------------------------------


async def test_acts(stage, server, settings, tmp_path):
    pod = stage.controlplane.pods("shop")[0]
    manifest = settings("free", currency="EUR")
    name = manifest["metadata"]["name"]
    async with started(stage, server, tmp_path) as agent:
        said = await agent.call(server.list_pods("shop"))
        assert pod in said.text
        assert not said.failed
        assert (await agent.call(server.create(manifest))).failed is False
        assert stored(stage, manifest) == {"currency": "EUR"}
        assert "EUR" in (await agent.call(server.get("ConfigMap", "shop", name))).text
        manifest["data"]["currency"] = "CHF"
        assert (await agent.call(server.apply(manifest))).failed is False
        assert stored(stage, manifest) == {"currency": "CHF"}
        assert "listening on :8080" in (await agent.call(server.logs("shop", pod))).text
        assert (await agent.call(server.execute("shop", pod, ["echo", "from the pod"]))).text.strip() == "from the pod"
        assert (await agent.call(server.delete("ConfigMap", "shop", name))).failed is False
        assert stored(stage, manifest) is None


async def test_the_api_server_sees_the_agent(stage, server, tmp_path):
    since = stage.controlplane.audit_position()
    async with started(stage, server, tmp_path) as agent:
        await agent.call(server.get("ConfigMap", "shop", "settings"))
    event = stage.controlplane.wait_for_audit(
        lambda e: e["verb"] == "get" and e.get("objectRef", {}).get("name") == "settings", since=since
    )
    assert event["impersonatedUser"]["username"] == "tollgate:system:serviceaccount:agents:ci-agent"


# What a model reads of a no ---------------------------------------------------------------


@pytest.mark.parametrize("act", ["create", "apply", "delete"])
async def test_refusal_arrives_word_for_word(stage, server, act, tmp_path):
    name = "checkout-critical"
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "prod-web"},
        "data": {"payments": "disabled"},
    }
    if act == "create":
        manifest["metadata"] = {"name": "new-critical", "namespace": "prod-web"}
    call = server.delete("ConfigMap", "prod-web", name) if act == "delete" else getattr(server, act)(manifest)
    path = f"/api/v1/namespaces/prod-web/configmaps/{name}"
    message = stage.request("DELETE", path).message
    assert message.startswith("rule agents/critical denies this: Critical ConfigMaps change through Git.")
    async with started(stage, server, tmp_path) as agent:
        said = await agent.call(call)
    assert message in said.text
    assert said.failed
    data = stage.controlplane.api("GET", path)["data"]
    assert data == {"payments": "enabled", "provider": "stripe"}


async def test_refusal_of_exec_arrives_word_for_word(stage, server, tmp_path):
    """Both clients try a second protocol after the first no, and report the second's."""
    pod = stage.controlplane.pods("billing")[0]
    async with started(stage, server, tmp_path) as agent:
        said = await agent.call(server.execute("billing", pod, ["touch", "touched"]))
    assert "rule agents/no-shell-in-billing denies this: Nobody needs a shell beside the invoices." in said.text
    assert "Read the logs instead" in said.text
    assert not (stage.controlplane.pod_files / "touched").exists()


@pytest.fixture(scope="module")
def mute(gateway_kubeconfig, controlplane, tmp_path_factory):
    """A gateway whose policy forgets discovery, as a first policy of one's own does."""
    folder = tmp_path_factory.mktemp("mute")
    lines = POLICY.splitlines(keepends=True)
    (folder / "policy.yaml").write_text("".join(line for line in lines if "nonResourceURLs" not in line))
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")]
    with gateway.running(folder, *arguments) as one:
        yield Stage(one, controlplane)


async def test_refusal_of_discovery_arrives_word_for_word(mute, server, tmp_path):
    """As plain text: of a Status there both would say no more than the word unknown."""
    message = mute.request("GET", "/api").body.decode()
    assert message.startswith("no rule allows get /api for tollgate:system:serviceaccount:agents:ci-agent; ")
    async with started(mute, server, tmp_path) as agent:
        said = await agent.call(server.get("ConfigMap", "shop", "settings"))
    assert message in said.text
    assert said.failed


async def test_a_token_that_is_no_good_is_said(stage, server, tmp_path):
    """
    client-go's own sentence for a 401 of discovery, whatever the answer's body: the reason is in the
    gateway's log. It must stay a 401, which makes clients fetch a new token.
    """
    wrong = stage.controlplane.token("agents", "ci-agent", audience="somebody-else")
    config = token_kubeconfig(stage, tmp_path, wrong)
    async with started(stage, server, tmp_path, config) as agent:
        said = await agent.call(server.get("ConfigMap", "shop", "settings"))
    assert "the server has asked for the client to provide credentials" in said.text
    assert said.failed
    assert "somebody-else" in stage.gateway.log


# Asking a human ---------------------------------------------------------------------------


async def test_a_hold_approved_in_time_succeeds(stage, server, settings, tmp_path):
    manifest = settings("slow", currency="EUR")
    async with started(stage, server, tmp_path) as agent:
        waiting = asyncio.create_task(agent.call(server.apply(manifest), seconds=HOLD + 5))
        await approve(stage, manifest["metadata"]["name"])
        said = await waiting
    assert not said.failed, said.text
    assert stored(stage, manifest) == {"currency": "EUR"}


async def test_a_hold_that_lasts_too_long_ends_with_what_to_do_and_the_retry_passes(stage, server, settings, tmp_path):
    manifest = settings("late", currency="EUR")
    async with started(stage, server, tmp_path) as agent:
        said = await agent.call(server.apply(manifest))
        name = re.search(r"approval (apr-\w+) is pending", said.text)[1]
        assert (
            "rule agents/late holds this: It changes settings; "
            f"approval {name} is pending for 15 min; {PEOPLE} can approve it "
            f"(./run.sh approvals approve {name}); then send the same request again, unchanged; it passes once"
        ) in said.text
        assert said.failed
        assert stored(stage, manifest) is None
        assert stage.decide(name, "Approved").status == 200
        again = await agent.call(server.apply(manifest))
        assert not again.failed, again.text
        assert stored(stage, manifest) == {"currency": "EUR"}
        assert stage.phase(name) == "Used"


async def test_a_no_and_its_reason_reach_the_model(stage, server, settings, tmp_path):
    manifest = settings("slow", currency="EUR")
    async with started(stage, server, tmp_path) as agent:
        waiting = asyncio.create_task(agent.call(server.apply(manifest)))
        item = await asyncio.to_thread(stage.pending, manifest["metadata"]["name"])
        stage.decide(item["metadata"]["name"], "Denied", "The euro stays.")
        said = await waiting
    assert f"denied approval {item['metadata']['name']}: The euro stays." in said.text
    assert stored(stage, manifest) is None


async def test_an_exec_is_asked_once_and_its_retry_passes(stage, server, tmp_path):
    """The two attempts of one exec are one question."""
    pod = stage.controlplane.pods("prod-web", "app=checkout")[0]
    word = next(NAMES)
    call = server.execute("prod-web", pod, ["echo", word])
    call.arguments["container"] = "checkout"
    async with started(stage, server, tmp_path) as agent:
        said = await agent.call(call)
        name = re.search(r"approval (apr-\w+) is pending", said.text)[1]
        assert "then send the same request again, unchanged; it passes once" in said.text
        asked = [i for i in stage.approvals() if word in json.dumps(i)]
        assert [i["metadata"]["name"] for i in asked] == [name]
        assert stage.decide(name, "Approved").status == 200
        again = await agent.call(call)
    assert again.text.strip() == word


async def test_a_host_that_gives_up_leaves_an_open_question(stage, server, settings, tmp_path):
    """The server may wait on without its host: what it then does is what was approved, and only that."""
    manifest = settings("slow", currency="EUR")
    async with started(stage, server, tmp_path) as agent:
        said = await agent.call(server.apply(manifest), seconds=3)
        assert said.failed
        assert "Timed out" in said.text
        assert stored(stage, manifest) is None
        await approve(stage, manifest["metadata"]["name"])
        # Whichever it is: the waiting request goes on now, or the model's second try takes the yes. The one that
        # comes too late asks anew, or is told that it was used, maybe before the other's answer is there.
        await agent.call(server.apply(manifest))
        await asyncio.to_thread(until, lambda: stored(stage, manifest) == {"currency": "EUR"}, 10)


async def test_only_the_go_server_works_on_while_one_call_is_held(stage, server, settings, tmp_path):
    """The trap that deploy/mcp/README.md tells of: one held call blocks all of mcp-server-kubernetes."""
    manifest = settings("slow", currency="EUR")
    blocks = server.package == "mcp-server-kubernetes"
    async with started(stage, server, tmp_path) as agent:
        held = asyncio.create_task(agent.call(server.apply(manifest)))
        await asyncio.to_thread(stage.pending, manifest["metadata"]["name"])
        said = await agent.call(server.list_pods("shop"), seconds=4)
        assert said.failed is blocks
        await approve(stage, manifest["metadata"]["name"])
        assert not (await held).failed
        assert not (await agent.call(server.list_pods("shop"))).failed


# Secrets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", ["true", "false"])
async def test_secrets_are_masked(stage, server, own, tmp_path):
    """With and without what mcp-server-kubernetes masks by itself; it forgets the last-applied annotation."""
    value = f"canary-{next(NAMES)}-8c1f6d2b"
    name = next(NAMES)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "shop"},
        "stringData": {"password": value},
    }
    stage.controlplane.run_kubectl("apply", "-f", "-", input=json.dumps(secret))
    listed = servers.Call("resources_list", {"apiVersion": "v1", "kind": "Secret", "namespace": "shop"})
    if server.package == "mcp-server-kubernetes":
        listed = servers.Call("kubectl_get", {"resourceType": "secrets", "namespace": "shop", "output": "yaml"})
    try:
        async with started(stage, server, tmp_path, MASK_SECRETS=own) as agent:
            got = await agent.call(server.get("Secret", "shop", name))
            everything = await agent.call(listed)
    finally:
        stage.controlplane.request("DELETE", f"/api/v1/namespaces/shop/secrets/{name}")
    for said in (got, everything):
        assert name in said.text
        for text in (value, base64.b64encode(value.encode()).decode(), "canary-shop-db"):
            assert text not in said.text
    if own == "false":
        words = re.findall(r"[A-Za-z0-9+/]{20,}={0,2}", got.text)
        assert any(base64.b64decode(word + "==").startswith(b"**masked:") for word in words)


async def test_a_new_secret_comes_back_masked(stage, server, tmp_path):
    """
    Creating is free for who cannot find anything out by it. Server-side apply may change a Secret that is
    there, so what the Go server sends is a question.
    """
    value = f"canary-{next(NAMES)}-5b0e77aa"
    name = next(NAMES)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "shop"},
        "stringData": {"password": value},
    }
    call = server.create(secret)
    try:
        async with started(stage, server, tmp_path) as agent:
            if server.package == "kubernetes-mcp-server":
                asking = asyncio.create_task(agent.call(call))
                await approve(stage, name)
                said = await asking
            else:
                said = await agent.call(call)
        stored_secret = stage.controlplane.api("GET", f"/api/v1/namespaces/shop/secrets/{name}")
    finally:
        stage.controlplane.request("DELETE", f"/api/v1/namespaces/shop/secrets/{name}")
    assert base64.b64decode(stored_secret["data"]["password"]).decode() == value
    assert not said.failed, said.text
    for text in (value, base64.b64encode(value.encode()).decode()):
        assert text not in said.text


async def test_secrets_in_the_output_of_exec_are_masked(stage, server, tmp_path):
    pod = stage.controlplane.pods("shop")[0]
    key = "AKIA" + "QYLPMN5HHHFPZAM2"
    async with started(stage, server, tmp_path) as agent:
        said = await agent.call(server.execute("shop", pod, ["echo", f"aws_access_key_id={key}"]))
    assert re.fullmatch(r"aws_access_key_id=\*\*masked:[0-9a-f]{8}\*\*", said.text.strip())


# Identities ---------------------------------------------------------------------------------


PLUGIN = """#!{python}
import json, pathlib
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
    calls.write("x")
status = {{"token": (here / "token").read_text(), "expirationTimestamp": "2100-01-01T00:00:00Z"}}
print(json.dumps({{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}}))
"""


async def test_exec_plugin(stage, server, tmp_path):
    """The trap: mcp-server-kubernetes calls it for each tool call, so the plugin must keep its token."""
    (tmp_path / "token").write_text(stage.agent_token)
    plugin = tmp_path / "plugin"
    plugin.write_text(PLUGIN.format(python=sys.executable))
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    config = printed(stage, tmp_path / "exec.kubeconfig", "--exec", str(plugin))
    async with started(stage, server, tmp_path, config) as agent:
        for _ in range(3):
            assert not (await agent.call(server.list_pods("shop"))).failed
    assert len((tmp_path / "calls").read_text()) == (1 if server.package == "kubernetes-mcp-server" else 3)


async def test_a_renewed_token_file_is_read_again(stage, server, tmp_path):
    """A projected token is replaced in place; a server that starts or calls later takes the new one."""
    config = token_kubeconfig(stage, tmp_path, "stale")
    async with started(stage, server, tmp_path, config) as agent:
        assert (await agent.call(server.list_pods("shop"))).failed
    (tmp_path / "token").write_text(stage.agent_token)
    async with started(stage, server, tmp_path, config) as agent:
        assert not (await agent.call(server.list_pods("shop"))).failed


async def test_what_shows_the_kubeconfig_shows_no_token(stage, server, tmp_path):
    """The trap: both have a tool that prints it, credentials and all. Ours names a file with the token."""
    config = token_kubeconfig(stage, tmp_path, stage.agent_token)
    call = servers.Call("configuration_view", {"minified": False})
    command = [*server.command(), "--toolsets", "core,config"]
    if server.package == "mcp-server-kubernetes":
        call = servers.Call("kubectl_generic", {"command": "config", "subCommand": "view", "flags": {"raw": True}})
        command = server.command()
    env = environment(stage, tmp_path, KUBECONFIG=str(config))
    async with host.stdio(command, env, tmp_path / "server.log") as agent:
        said = await agent.call(call)
    assert stage.gateway.url in said.text
    assert str(tmp_path / "token") in said.text
    assert stage.agent_token not in said.text


async def test_the_model_is_not_shown_the_kubeconfig(stage, tmp_path):
    """Only the toolset `core`: configuration_view would print the kubeconfig."""
    async with started(stage, servers.KubernetesMCPServer(), tmp_path) as agent:
        assert not [tool for tool in await agent.tools() if tool.startswith("configuration")]


# HTTP ---------------------------------------------------------------------------------------


def launched(command: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


@contextlib.asynccontextmanager
async def listening(command: list[str], env: dict[str, str], port: int, folder: Path):
    """A server in HTTP mode, until the block ends."""
    process = launched(command, env, folder / "http.log")
    try:
        deadline = time.monotonic() + START_LIMIT
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (folder / "http.log").read_text()
            assert time.monotonic() < deadline, (folder / "http.log").read_text()
            await asyncio.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def passthrough(stage, folder: Path, port: int, config: Path, **changes: str) -> list[str]:
    text = shipped(
        "kubernetes-mcp-server/http.toml",
        **{'"8080"': f'"{port}"', "/etc/tollgate/passthrough.kubeconfig": str(config)},
        **changes,
    )
    (folder / "http.toml").write_text(text)
    return [*servers.KubernetesMCPServer().command(), "--config", str(folder / "http.toml")]


async def test_each_caller_of_one_http_server_is_himself(stage, tmp_path):
    server, port = servers.KubernetesMCPServer(), gateway.free_port()
    config = printed(stage, tmp_path / "passthrough.kubeconfig", "--passthrough")
    engineer = stage.controlplane.token("people", "engineer")
    since = stage.controlplane.audit_position()
    call = server.get("ConfigMap", "prod-web", "checkout-critical")
    command = passthrough(stage, tmp_path, port, config)
    async with listening(command, environment(stage, tmp_path), port, tmp_path) as url:
        async with (
            host.http(url, {"Authorization": f"Bearer {stage.agent_token}"}) as agent,
            host.http(url, {"Authorization": f"Bearer {engineer}"}) as person,
        ):
            for one in (agent, person):
                assert not (await one.call(call)).failed
            said = await agent.call(server.delete("ConfigMap", "prod-web", "checkout-critical"))
            assert "rule agents/critical denies this: Critical ConfigMaps change through Git." in said.text
        async with httpx.AsyncClient() as nobody:
            assert (await nobody.post(url, json={})).status_code == 401
    users = {
        event["impersonatedUser"]["username"]
        for event in stage.controlplane.audit_events(since)
        if event["verb"] == "get" and event.get("objectRef", {}).get("name") == "checkout-critical"
    }
    assert users == {
        "tollgate:system:serviceaccount:agents:ci-agent",
        "tollgate:system:serviceaccount:people:engineer",
    }


@pytest.mark.parametrize("credential", ["shared", "none"])
async def test_http_without_a_token_falls_back_to_the_kubeconfig(stage, credential, tmp_path):
    """The trap of `require_oauth = false`; the shipped kubeconfig has no credential: nothing to fall back to."""
    server, port = servers.KubernetesMCPServer(), gateway.free_port()
    config = (
        token_kubeconfig(stage, tmp_path, stage.agent_token)
        if credential == "shared"
        else printed(stage, tmp_path / "passthrough.kubeconfig", "--passthrough")
    )
    changes = {"require_oauth = true ": "require_oauth = false ", 'oauth_audience = "tollgate"': ""}
    command = passthrough(stage, tmp_path, port, config, **changes)
    async with (
        listening(command, environment(stage, tmp_path), port, tmp_path) as url,
        host.http(url, {}) as nobody,
    ):
        said = await nobody.call(server.list_pods("shop"))
    assert said.failed is (credential == "none")


async def test_http_of_mcp_server_kubernetes_is_one_identity_for_all(stage, tmp_path):
    """It knows a shared secret of its own and no users: one process per agent, on loopback."""
    server, port = servers.MCPServerKubernetes(), gateway.free_port()
    config = token_kubeconfig(stage, tmp_path, stage.agent_token)
    env = environment(
        stage,
        tmp_path,
        KUBECONFIG=str(config),
        ENABLE_UNSAFE_STREAMABLE_HTTP_TRANSPORT="1",
        HOST="127.0.0.1",
        PORT=str(port),
        MCP_AUTH_TOKEN="a-secret-of-the-hosts",
    )
    since = stage.controlplane.audit_position()
    async with listening(server.command(), env, port, tmp_path) as url:
        engineer = {"Authorization": f"Bearer {stage.controlplane.token('people', 'engineer')}"}
        async with host.http(url, {"X-MCP-AUTH": "a-secret-of-the-hosts", **engineer}) as person:
            said = await person.call(server.delete("ConfigMap", "prod-web", "checkout-critical"))
            assert "rule agents/critical denies this" in said.text
            await person.call(server.get("ConfigMap", "shop", "settings"))
        async with httpx.AsyncClient() as nobody:
            assert (await nobody.post(url, json={})).status_code == 401
    event = stage.controlplane.wait_for_audit(
        lambda e: e["verb"] == "get" and e.get("objectRef", {}).get("name") == "settings", since=since
    )
    assert event["impersonatedUser"]["username"] == "tollgate:system:serviceaccount:agents:ci-agent"


# The first ten minutes --------------------------------------------------------------------------


async def test_what_the_demo_writes_blocks_a_delete(default_gateway, controlplane, agent_token, tmp_path):
    """The README's quickstart, with the shipped policy and the client configuration that the demo writes."""
    server = servers.KubernetesMCPServer()
    stage = Stage(default_gateway, controlplane)
    config = token_kubeconfig(stage, tmp_path, agent_token)
    one = json.loads(demo.mcp_client(tmp_path, config).read_text())["mcpServers"]["kubernetes"]
    assert one["args"][:2] == ["-y", f"{server.package}@{servers.pinned()[server.package]}"]
    command = [*server.command(), *one["args"][2:]]
    async with host.stdio(command, environment(stage, tmp_path), tmp_path / "server.log") as agent:
        assert "web-" in (await agent.call(server.list_pods("shop"))).text
        said = await agent.call(server.delete("ConfigMap", "prod-web", "checkout-critical"))
        asked = await agent.call(servers.Call("resources_delete", NAMESPACE_SHOP))
    assert "rule agents/critical-configmaps denies this: This ConfigMap is critical," in said.text
    assert (
        "rule agents/delete-namespace holds this: Everything in the namespace goes with it; approval apr-" in asked.text
    )
    for path in ("namespaces/prod-web/configmaps/checkout-critical", "namespaces/shop"):
        assert "deletionTimestamp" not in controlplane.api("GET", f"/api/v1/{path}")["metadata"]


@pytest.mark.parametrize("package", [server.package for server in servers.SERVERS])
def test_every_page_names_the_versions_that_are_tested(package):
    pages = [gateway.ROOT / "README.md", *DEPLOY.rglob("*"), *(gateway.ROOT / "docs").glob("*.md")]
    named = {
        version
        for page in pages
        if page.is_file()
        for version in re.findall(rf"\b{package}[@:](\d[\w.]*)", page.read_text())
    }
    assert named == {servers.pinned()[package]}


# In the cluster -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifests(controlplane):
    """What `kubectl apply -k deploy/mcp/sidecar` sends, by kind."""
    text = controlplane.run_kubectl("kustomize", str(DEPLOY / "sidecar")).stdout
    dry = controlplane.run_kubectl("apply", "--server-side", "--dry-run=server", "-o", "json", "-f", "-", input=text)
    items = json.loads(dry.stdout)["items"]
    return {item["kind"]: item for item in items}


def test_sidecar_has_the_only_token(manifests):
    spec = manifests["Pod"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    tokens = {
        volume["name"]: source["serviceAccountToken"]
        for volume in spec["volumes"]
        for source in volume.get("projected", {}).get("sources", ())
        if "serviceAccountToken" in source
    }
    assert {name: token["audience"] for name, token in tokens.items()} == {"token": "tollgate"}
    mounts = {
        container["name"]: {mount["name"] for mount in container.get("volumeMounts", ())}
        for container in (*spec["initContainers"], *spec["containers"])
    }
    assert mounts == {"mcp": {"config", "ca", "token"}, "agent": set()}


def test_sidecar_is_admitted_where_pods_are_restricted(controlplane):
    namespace = next(NAMES)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    controlplane.api("POST", "/api/v1/namespaces", {"metadata": {"name": namespace, "labels": labels}})
    text = controlplane.run_kubectl("kustomize", str(DEPLOY / "sidecar")).stdout
    text = text.replace("namespace: agents", f"namespace: {namespace}")
    account = {"metadata": {"name": "ci-agent"}}
    controlplane.api("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
    try:
        controlplane.run_kubectl("apply", "-f", "-", input=text)
    finally:
        controlplane.request("DELETE", f"/api/v1/namespaces/{namespace}")


async def test_sidecar_configuration_works(stage, manifests, tmp_path):
    """The files of the ConfigMap, with this test's paths and address for the pod's."""
    server, port = servers.KubernetesMCPServer(), gateway.free_port()
    (tmp_path / "token").write_text(stage.agent_token)
    paths = {
        "/etc/mcp/": f"{tmp_path}/",
        "/etc/tollgate-ca/ca.crt": str(stage.gateway.ca_file),
        "/var/run/secrets/tollgate/": f"{tmp_path}/",
        "https://tollgate.tollgate.svc": stage.gateway.url,
        '"8080"': f'"{port}"',
    }
    used = set()
    for name, text in manifests["ConfigMap"]["data"].items():
        for old, new in paths.items():
            if old in text:
                used.add(old)
                text = text.replace(old, new)
        (tmp_path / name).write_text(text)
    assert used == set(paths)
    command = [*server.command(), "--config", str(tmp_path / "config.toml")]
    async with (
        listening(command, environment(stage, tmp_path), port, tmp_path) as url,
        host.http(url, {}) as agent,
    ):
        assert not (await agent.call(server.list_pods("shop"))).failed
        said = await agent.call(server.delete("ConfigMap", "prod-web", "checkout-critical"))
        assert "rule agents/critical denies this: Critical ConfigMaps change through Git." in said.text
