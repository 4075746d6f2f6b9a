"""Real kubectl, both versions, through a gateway that lets everything pass: as if it were not there."""

import itertools
import json
import subprocess
import time
import urllib.request

import pytest

from tests.cluster.controlplane import POD_GREETING
from tests.e2e import gateway, policies

pytestmark = pytest.mark.e2e

NAMES = (f"e2e-{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def config(open_gateway, agent_token):
    return open_gateway.kubeconfig("agent", agent_token, namespace="shop")


@pytest.fixture(scope="module")
def unmasked(gateway_kubeconfig, agent_token, tmp_path_factory):
    """Of a gateway that lets SPDY pass and masks nothing."""
    folder = tmp_path_factory.mktemp("unmasked")
    (folder / "policy.yaml").write_text(policies.UNMASKED)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml"), "--allow-spdy"]
    with gateway.running(folder, *arguments) as one:
        yield one.kubeconfig("agent", agent_token, namespace="shop")


@pytest.fixture
def kubectl(controlplane, config, kubectl_program):
    def run(*args, **more):
        return controlplane.run_kubectl(*args, kubeconfig=config, program=kubectl_program, **more)

    return run


@pytest.fixture
def start(controlplane, config, kubectl_program, tmp_path):
    """Start kubectl in the background, its output in a file; ended when the test is."""
    running = []

    def begin(*args, config=config):
        out = tmp_path / f"out-{len(running)}"
        with out.open("wb") as f:
            process = subprocess.Popen(
                [kubectl_program, *args],
                stdin=subprocess.DEVNULL,
                stdout=f,
                stderr=subprocess.STDOUT,
                env=controlplane.kubectl_env(config),
            )
        running.append(process)
        return process, out

    yield begin
    for process in running:
        process.kill()
        process.wait(10)


@pytest.fixture
def pod(controlplane):
    return controlplane.pods("shop", "app=web")[0]


def until(condition, what="", seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.05)


def manifest(name, **data):
    return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})


def test_get(kubectl, controlplane):
    names = kubectl("get", "pods", "-o", "name").stdout.split()
    assert names == controlplane.run_kubectl("get", "pods", "-n", "shop", "-o", "name").stdout.split()


@pytest.mark.parametrize("flags", [[], ["--server-side"]], ids=["client-side", "server-side"])
def test_apply_changes_and_deletes(kubectl, controlplane, flags):
    name = next(NAMES)
    assert "serverside-applied" in kubectl("apply", *flags, "-f", "-", input=manifest(name, a="1")).stdout or not flags
    kubectl("apply", *flags, "-f", "-", input=manifest(name, a="2"))
    assert controlplane.api("GET", f"/api/v1/namespaces/shop/configmaps/{name}")["data"] == {"a": "2"}
    kubectl("delete", "configmap", name)
    assert controlplane.request("GET", f"/api/v1/namespaces/shop/configmaps/{name}")[0] == 404


def test_protobuf_bodies(kubectl):
    name = next(NAMES)
    kubectl("create", "configmap", name, "--from-literal=a=b")  # kubectl sends protobuf here
    assert "a: b" in kubectl("get", "configmap", name, "-o", "yaml").stdout
    assert name in kubectl("describe", "configmap", name).stdout


def test_delete_all_goes_one_by_one_and_waits(kubectl, controlplane):
    label = next(NAMES)
    for n in range(3):
        controlplane.api(
            "POST",
            "/api/v1/namespaces/shop/configmaps",
            {"metadata": {"name": f"{label}-{n}", "labels": {"batch": label}}},
        )
    done = kubectl("delete", "configmaps", "-l", f"batch={label}")
    assert done.stdout.count("deleted") == 3


def test_scale_and_rollout(kubectl):
    assert "scaled" in kubectl("scale", "deployment", "web", "--replicas=3").stdout
    kubectl("rollout", "status", "deployment", "web", "--timeout=20s")


def test_logs_follow(start, controlplane, pod):
    _, out = start("logs", "-f", pod)
    until(lambda: out.read_text(), "nothing came")
    line = next(NAMES)
    with controlplane.pod_log.open("a") as f:
        f.write(line + "\n")
    until(lambda: line in out.read_text(), out.read_text)


def test_watch_streams(start, kubectl):
    _, out = start("get", "configmaps", "-w")
    until(lambda: "settings" in out.read_text(), out.read_text)
    name = next(NAMES)
    kubectl("create", "configmap", name)
    until(lambda: name in out.read_text(), out.read_text)


def test_exec(kubectl, pod):
    assert kubectl("exec", pod, "--", "echo", "hello").stdout == "hello\n"
    failed = kubectl("exec", pod, "--", "sh", "-c", "echo oops >&2; exit 3", check=False)
    assert failed.returncode == 3
    assert "oops" in failed.stderr


def test_cp(kubectl, controlplane, pod, tmp_path):
    (controlplane.pod_files / "from-the-pod").write_text("content")
    kubectl("cp", f"shop/{pod}:{controlplane.pod_files}/from-the-pod", str(tmp_path / "here"))
    assert (tmp_path / "here").read_text() == "content"


def test_port_forward(start, pod, unmasked):
    port = gateway.free_port()
    _, out = start("port-forward", pod, f"{port}:80", config=unmasked)
    until(lambda: "Forwarding" in out.read_text(), out.read_text)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        assert answer.read() == POD_GREETING


def test_spdy_is_refused_with_a_sentence(kubectl, pod):
    done = kubectl("exec", pod, "--", "echo", "x", check=False, env={"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false"})
    assert done.returncode == 1
    assert "SPDY cannot be judged" in done.stderr
    assert "kubectl 1.31 or newer" in done.stderr


def test_spdy_passes_with_the_option(controlplane, unmasked, kubectl_program, pod):
    done = controlplane.run_kubectl(
        "exec", pod, "--", "echo", "over SPDY", kubeconfig=unmasked, program=kubectl_program,
        env={"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false"},
    )  # fmt: skip
    assert done.stdout == "over SPDY\n"


def test_twenty_watches_at_once(start, kubectl):
    outs = [start("get", "configmaps", "-w", "-o", "name")[1] for _ in range(20)]
    until(lambda: all("settings" in out.read_text() for out in outs), "not all watches began", seconds=40)
    name = next(NAMES)
    kubectl("create", "configmap", name)
    until(lambda: all(name in out.read_text() for out in outs), "not all watches saw it", seconds=40)


def test_twenty_watches_on_one_connection(open_gateway, agent_token, controlplane):
    import asyncio

    from tests import http2

    async def watch():
        async with http2.connect(open_gateway.port, open_gateway.ca_file) as client:
            path = "/api/v1/namespaces/shop/configmaps?watch=true"
            headers = (("authorization", f"Bearer {agent_token}"),)
            watches = [client.start(path, headers=headers) for _ in range(20)]
            for one in watches:
                await one.until(lambda a: b"settings" in a.body)
            name = next(NAMES)
            controlplane.api("POST", "/api/v1/namespaces/shop/configmaps", {"metadata": {"name": name}})
            for one in watches:
                await one.until(lambda a: name.encode() in a.body)

    asyncio.run(watch())


def test_who_the_api_server_sees(kubectl):
    assert "tollgate:system:serviceaccount:agents:ci-agent" in kubectl("auth", "whoami").stdout


def test_a_restart_of_the_api_server(kubectl, controlplane, open_gateway, agent_token, start):
    """Down: a Status at once. Up again: everything works, on the same client connections too."""
    from tests.e2e import client

    kubectl("get", "configmap", "settings")
    controlplane.stop_apiserver()
    try:
        answer = client.request(open_gateway.port, open_gateway.ca_file, "GET", "/api/v1/pods", token=agent_token)
        assert answer.status in (502, 503)
        assert "tollgate: " in answer.message
        down = kubectl("get", "configmap", "settings", check=False)
        assert "tollgate: " in down.stderr
        assert "<html>" not in down.stderr
    finally:
        controlplane.start_apiserver()
    until(lambda: kubectl("get", "configmap", "settings", check=False).returncode == 0, "it did not come back", 30)
    _, out = start("get", "configmaps", "-w")
    until(lambda: "settings" in out.read_text(), out.read_text)
