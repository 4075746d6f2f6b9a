"""Open streams end when a reloaded policy refuses them, within a second or so, and say by which rule."""

import contextlib
import os
import subprocess
import time

import pytest

from tests.e2e import gateway, policies

pytestmark = pytest.mark.e2e

DENIALS = """
- name: no-more
  action: deny
  match: {resources: [configmaps, pods/exec], verbs: ["*"]}
  message: The freeze has begun; come back tomorrow.
"""
SAYS = "rule everything/no-more denies this: The freeze has begun; come back tomorrow."
GRACE = 4  # seconds from the change to kubectl's end: one until it is seen, and a busy machine


@pytest.fixture
def policy(tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text(policies.UNMASKED)
    return file


@pytest.fixture
def running(gateway_kubeconfig, policy, tmp_path):
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(policy), "--allow-spdy"]
    with gateway.running(tmp_path / "gateway", *arguments) as one:
        yield one


@pytest.fixture
def start(controlplane, running, agent_token, tmp_path):
    """Start a kubectl: the process and the file it writes to."""
    config = running.kubeconfig("agent", agent_token, namespace="shop")
    with contextlib.ExitStack() as started:

        def start(name, *command, **env):
            out = tmp_path / f"{name}.out"
            process = subprocess.Popen(
                [controlplane.kubectl, *command],
                stdin=subprocess.DEVNULL,
                stdout=started.enter_context(out.open("wb")),
                stderr=subprocess.STDOUT,
                env=controlplane.kubectl_env(config) | env,
            )
            started.callback(process.wait, 10)
            started.callback(process.kill)
            return process, out

        yield start


def until(condition, say, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, say()
        time.sleep(0.05)


def test_open_streams_end_with_the_rule_that_refuses_them(controlplane, running, policy, start):
    pod = controlplane.pods("shop", "app=web")[0]
    script = ["--", "sh", "-c", "echo begun; exec sleep 60"]
    streams = {
        "watch": start("watch", "get", "configmaps", "-w"),
        "exec": start("exec", "exec", pod, *script),
        "spdy": start("spdy", "exec", pod, *script, KUBECTL_REMOTE_COMMAND_WEBSOCKETS="false"),
    }
    stays, out = start("stays", "get", "pods", "-w")
    for begun, file in (("settings", "watch"), ("begun", "exec"), ("begun", "spdy")):
        until(lambda b=begun, f=file: b in streams[f][1].read_text(), streams[file][1].read_text)
    until(lambda: pod in out.read_text(), out.read_text)

    new = policy.with_suffix(".new")
    new.write_text(policies.UNMASKED + DENIALS)
    os.replace(new, policy)  # noqa: PTH105 (one step, as editors and Kubernetes' mounts do)
    changed = time.monotonic()
    for process, _ in streams.values():
        process.wait(20)
    assert time.monotonic() - changed < GRACE, running.log[-3000:]
    said = {name: file.read_text() for name, (_, file) in streams.items()}
    assert SAYS in said["watch"]
    assert SAYS in said["exec"]
    assert streams["exec"][0].returncode == 1
    assert stays.poll() is None
    assert running.log.count("a stream ends: deny") == 3
