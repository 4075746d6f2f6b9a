"""`./run.sh approvals` through a real gateway: what an approver types, and what becomes of the agent's command."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e import gateway
from tests.e2e.test_approvals import POLICY, Stage

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stage(controlplane, gateway_kubeconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("approvals-cli")
    (folder / "policy.yaml").write_text(POLICY)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")]
    with gateway.running(folder, *arguments) as one:
        yield Stage(one, controlplane)


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def approvals(config, *words):
    return subprocess.run(
        [sys.executable, "-m", "addons.cli", "approvals", *words, "--kubeconfig", str(config)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_approve(stage, tmp_path):
    command = stage.begin(stage.agent, "create", "namespace", "cli-yes", out=tmp_path / "out")
    name = stage.pending("cli-yes")["metadata"]["name"]
    listed = approvals(stage.engineer, "list")
    assert listed.returncode == 0, listed.stderr
    assert f"{name}  Pending" in listed.stdout
    shown = approvals(stage.engineer, "show", name)
    assert "│ +  name: cli-yes" in shown.stdout
    assert "its client is held until you decide" in shown.stdout
    everyday = approvals(stage.engineer, "approve", name, "--yes")
    assert everyday.returncode == 2
    assert "--audience=tollgate-approver" in everyday.stderr
    (tmp_path / "token").write_text(stage.approver_token)
    token = ("--token-file", str(tmp_path / "token"))
    done = approvals(stage.engineer, "approve", name, "--yes", "--reason", "fine", *token)
    assert (done.returncode, done.stderr) == (0, f"{name} approved; its client goes on now\n")
    assert command.wait(10) == 0, (tmp_path / "out").read_text()
    over = approvals(stage.approver, "deny", name, "--yes")
    assert over.returncode == 1
    assert f"{name} is Used and cannot be decided any more" in over.stderr


def test_deny(stage, tmp_path):
    command = stage.begin(stage.agent, "create", "namespace", "cli-no", out=tmp_path / "out")
    name = stage.pending("cli-no")["metadata"]["name"]
    assert approvals(stage.approver, "deny", name, "--yes", "--reason", "not in the freeze").returncode == 0
    assert command.wait(10) == 1
    assert "not in the freeze" in (tmp_path / "out").read_text()


def test_an_agent_decides_nothing(stage, tmp_path):
    command = stage.begin(stage.agent, "create", "namespace", "cli-agent", out=tmp_path / "out")
    name = stage.pending("cli-agent")["metadata"]["name"]
    (tmp_path / "token").write_text(stage.controlplane.token("agents", "ci-agent", audience="tollgate-approver"))
    ran = approvals(stage.agent, "approve", name, "--yes", "--token-file", str(tmp_path / "token"))
    assert ran.returncode == 1
    assert "agent" in ran.stderr
    assert stage.phase(name) == "Pending"
    command.kill()
    command.wait(5)


def test_the_api_server_itself_is_no_gateway(stage, gateway_kubeconfig):
    ran = approvals(gateway_kubeconfig, "list")
    assert ran.returncode == 1
    assert "is an API server without tollgate.dev, not a Tollgate gateway" in ran.stderr


def test_watch(stage, tmp_path):
    with (tmp_path / "watch").open("wb") as file:
        watch = subprocess.Popen(
            [sys.executable, "-m", "addons.cli", "approvals", "watch", "--kubeconfig", str(stage.engineer)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
        )
    try:
        command = stage.begin(stage.agent, "create", "namespace", "cli-watch", out=tmp_path / "out")
        name = stage.pending("cli-watch")["metadata"]["name"]
        until(lambda: f"{name}  Pending" in (tmp_path / "watch").read_text())
        assert stage.decide(name, "Approved").status == 200
        assert command.wait(10) == 0
        until(
            lambda: (
                f"{name}  Used" in (tmp_path / "watch").read_text()
                or f"{name}  Approved" in (tmp_path / "watch").read_text()
            )
        )
    finally:
        watch.kill()
        watch.wait(5)


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
