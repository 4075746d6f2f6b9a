"""SIGTERM: what is open is told so before the process ends, and the next process goes on with the same state."""

import contextlib
import http.client
import signal
import ssl
import subprocess
import threading
import time

import pytest

from addons.cli import verify
from tests.e2e import client, gateway, policies

pytestmark = pytest.mark.e2e

HELD = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: held}
people: 'identity.username == "tollgate:system:serviceaccount:people:engineer"'
rules:
- name: hold-namespaces
  action: hold
  match: {resources: [namespaces], verbs: [create]}
  approval: {users: ["tollgate:system:serviceaccount:people:engineer"], wait: 60s}
"""


@pytest.fixture
def arguments(gateway_kubeconfig, tmp_path):
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "all.yaml").write_text(policies.EVERYTHING)
    (folder / "held.yaml").write_text(HELD)
    return ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder), "--state", str(tmp_path / "state")]


def test_everybody_is_told(controlplane, arguments, agent_token, tmp_path):
    pod = controlplane.pods("shop", "app=web")[0]
    commands = {
        "watch": ["get", "configmaps", "-w"],
        "exec": ["exec", pod, "--", "sh", "-c", "echo open; sleep 60"],
        "logs": ["logs", "-f", pod],
        "held": ["create", "namespace", "drained"],
    }
    with gateway.running(tmp_path / "old", *arguments) as one:
        ca_file = tmp_path / "state" / "tls" / "ca.crt"
        (tmp_path / "old" / "state" / "tls").mkdir(parents=True)
        one.ca_file.write_bytes(ca_file.read_bytes())
        config = one.kubeconfig("agent", agent_token, "shop")
        with contextlib.ExitStack() as life:
            running = {}
            for name, command in commands.items():
                out = life.enter_context((tmp_path / name).open("wb"))
                running[name] = subprocess.Popen(
                    [controlplane.kubectl, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=controlplane.kubectl_env(config),
                )
                life.callback(running[name].kill)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and not (
                (tmp_path / "watch").read_text() and (tmp_path / "exec").read_text() and "is pending: " in one.log
            ):
                time.sleep(0.05)
            time.sleep(0.5)
            assert all(process.poll() is None for process in running.values())
            one.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            codes = {name: process.wait(15) for name, process in running.items()}
            one.process.wait(15)
            took = time.monotonic() - began
    shown = {name: (tmp_path / name).read_text() for name in commands}
    for name in ("watch", "exec", "held"):
        assert "the gateway is going down" in shown[name], (name, shown[name], one.log)
    assert codes["exec"] != 0
    assert codes["held"] != 0
    assert codes["logs"] != 0  # a broken body, never a clean end
    assert took < 3, one.log
    # The next one has the same question, still pending.
    with gateway.running(tmp_path / "new", *arguments) as two:
        (tmp_path / "new" / "state" / "tls").mkdir(parents=True)
        two.ca_file.write_bytes(ca_file.read_bytes())
        listed = controlplane.run_kubectl("get", "approvals", kubeconfig=two.kubeconfig("agent", agent_token)).stdout
        assert "create namespace drained" in listed
        assert "Pending" in listed


def ready(port):
    with contextlib.suppress(OSError, http.client.HTTPException):
        return client.plain("127.0.0.1", port, "/readyz", {}).status == 200
    return False


def until(true, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_terminal_that_hangs_up_ends_nothing(arguments, agent_token, tmp_path):
    """SIGHUP: what is held goes on, and is told of the end when it comes."""
    with gateway.running(tmp_path / "one", *arguments) as one:
        said = []

        def ask():
            ca_file = tmp_path / "state" / "tls" / "ca.crt"
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hung-up"}}
            answer = client.request(one.port, ca_file, "POST", "/api/v1/namespaces", token=agent_token, body=body)
            said.append(answer)

        held = threading.Thread(target=ask)
        held.start()
        until(lambda: "hold-namespaces" in one.log)
        one.process.send_signal(signal.SIGHUP)
        until(lambda: "SIGHUP" in one.log)
        assert not said
        one.process.send_signal(signal.SIGTERM)
        held.join(30)
        assert (one.process.wait(30), said[0].status) == (0, 503)


def test_a_new_process_takes_over(controlplane, arguments, agent_token, tmp_path):
    """docs/operations.md, Without a gap: one port, one state folder, recordings apart; nobody is turned away."""
    port = gateway.free_port()
    metrics = {name: gateway.free_port() for name in "ab"}
    (tmp_path / "recordings").mkdir()
    with contextlib.ExitStack() as life:

        def start(name, *more):
            folder = tmp_path / name
            mine = ("--metrics", f"127.0.0.1:{metrics[name]}", "--recordings", str(tmp_path / "recordings" / name))
            process = gateway.launch(folder, [*arguments, "--reuse-port", *mine, *more], port=port)
            one = gateway.Gateway(process, folder, port)
            life.callback(one.stop)
            return one

        old = start("a")
        until(lambda: ready(metrics["a"]))
        (tmp_path / "a" / "state" / "tls").mkdir(parents=True, exist_ok=True)
        ca_file = tmp_path / "state" / "tls" / "ca.crt"
        old.ca_file.write_bytes(ca_file.read_bytes())
        config = old.kubeconfig("agent", agent_token, "shop")

        def approvals():
            done = controlplane.run_kubectl("get", "approvals", "-o", "name", kubeconfig=config)
            return done.stdout

        # One open connection that knows of no other process, and kubectl again and again.
        kept = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=60, context=ssl.create_default_context(cafile=ca_file)
        )
        life.callback(kept.close)

        def ask():
            kept.request(
                "GET", "/api/v1/namespaces/shop/configmaps", headers={"Authorization": f"Bearer {agent_token}"}
            )
            answer = kept.getresponse()
            answer.read()
            return answer

        assert ask().status == 200
        over, failed, passed = threading.Event(), [], []

        def keep_asking():
            while not over.is_set():
                done = controlplane.run_kubectl("get", "configmaps", kubeconfig=config, check=False)
                (failed if done.returncode else passed).append(done.stderr)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        life.callback(asking.join)
        life.callback(over.set)
        held = subprocess.Popen(
            [controlplane.kubectl, "create", "namespace", "handed-over"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=controlplane.kubectl_env(config),
        )
        life.callback(held.kill)
        until(lambda: "is pending: " in old.log)
        same = start("b", "--recordings", str(tmp_path / "recordings" / "a"))
        assert same.process.wait(60) != 0
        assert "is used by another gateway; give each its own with --recordings" in same.log
        new = start("b")
        until(lambda: ready(metrics["b"]))
        count = len(passed)
        until(lambda: len(passed) > count + 1)
        assert ask().status == 200  # still the old one's
        old.process.send_signal(signal.SIGTERM)
        until(lambda: not ready(metrics["a"]))
        with contextlib.suppress(http.client.HTTPException, OSError):
            # Soon, and while it lasts, what comes over the old connection is told to come again.
            while (answer := ask()).status == 200:
                pass
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        old.process.wait(30)
        count = len(passed)
        until(lambda: len(passed) > count + 1)
        over.set()
        asking.join(60)
        assert failed == []
        assert "apr-" in approvals()  # asked of the old one
        assert "refused" not in new.log
        new.process.send_signal(signal.SIGTERM)
        new.process.wait(30)
    for name in "ab":
        assert list((tmp_path / "recordings" / name).rglob("events.jsonl"))
        assert verify.main([str(tmp_path / "recordings" / name)]) == 0
