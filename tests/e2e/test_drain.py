"""SIGTERM: what is open is told so before the process ends, and the next process goes on with the same state."""

import contextlib
import signal
import subprocess
import time

import pytest

from tests.e2e import gateway, policies

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
