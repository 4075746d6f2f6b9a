"""
The commands of docs/mcp.md and docs/approvals.md, run as they stand there. What the demo shows is
tests/e2e/test_mcp.py's.
"""

import itertools
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.e2e import gateway
from tests.e2e.test_approvals import POLICY, Stage
from tests.screenshots.terminal import Program

pytestmark = pytest.mark.e2e

NAMES = (f"docs-{n}" for n in itertools.count())
AGENT = "tollgate:system:serviceaccount:agents:my-agent"


def commands(page: str, section: str) -> list[str]:
    """The lines of the code blocks below this heading."""
    text = (gateway.ROOT / "docs" / page).read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def environment(controlplane):
    env = controlplane.kubectl_env()
    return env | {"PATH": f"{controlplane.programs.folder}{os.pathsep}{env['PATH']}", "PYTHONPATH": str(gateway.ROOT)}


def shell(folder, controlplane, *more):
    """Runs one line in `folder`, where ./run.sh is this program; kubectl's own kubeconfig is the admin's."""
    program = folder / "run.sh"
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-m", "addons.cli"])} "$@" {shlex.join(more)}\n')
    program.chmod(0o700)
    env = environment(controlplane)

    def run(line: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", line],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    return run


@pytest.fixture
def run(default_gateway, controlplane, tmp_path):
    more = ["--server", default_gateway.url, "--state", str(default_gateway.folder / "state")]
    yield shell(tmp_path, controlplane, *more)
    controlplane.request("DELETE", "/api/v1/namespaces/agents/serviceaccounts/my-agent")
    controlplane.request("DELETE", "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings/my-agent")


def test_on_your_cluster(run, controlplane, tmp_path):
    *prepare, whoami, delete = commands("mcp.md", "On your cluster")
    assert len(prepare) == 4
    for line in prepare:
        done = run(line)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert (tmp_path / "agent.token").read_text().strip() not in (tmp_path / "agent.kubeconfig").read_text()
    assert whoami.endswith(f"# {AGENT}")
    assert AGENT in run(whoami).stdout
    refused = run(delete)
    assert refused.returncode != 0
    assert "no rule allows delete namespaces shop" in refused.stderr
    assert "deletionTimestamp" not in controlplane.api("GET", "/api/v1/namespaces/shop")["metadata"]


@pytest.fixture(scope="module")
def stage(gateway_kubeconfig, controlplane, tmp_path_factory):
    folder = tmp_path_factory.mktemp("approvals-page")
    (folder / "policy.yaml").write_text(POLICY)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")]
    with gateway.running(folder, *arguments) as one:
        yield Stage(one, controlplane)


@pytest.fixture
def asked(stage, controlplane, tmp_path):
    """A held `kubectl create configmap`: the program, and the approval's name; and a shell for the approver."""
    name = next(NAMES)
    command = stage.begin(stage.agent, "create", "configmap", name, out=tmp_path / "out")
    approval = stage.pending(name)["metadata"]["name"]
    run = shell(tmp_path, controlplane)
    (tmp_path / "approver.kubeconfig").write_bytes(stage.approver.read_bytes())
    yield command, approval, lambda line, **more: run(line.replace("apr-7f3kq2m9xd", approval), **more)
    command.kill()
    command.wait(5)
    controlplane.request("DELETE", f"/api/v1/namespaces/shop/configmaps/{name}")


def test_how_to_get_an_approver_kubeconfig(stage, controlplane, tmp_path):
    (line,) = commands("approvals.md", "Once: a kubeconfig for decisions")
    assert "--audience=tollgate-approver" in shell(tmp_path, controlplane)(line).stderr


@pytest.mark.parametrize("line", commands("approvals.md", "Being asked"))
def test_being_asked(line, asked, controlplane, tmp_path):
    _, approval, _ = asked
    # They run until somebody ends them; questions one by one need a terminal, and have one.
    with Program(["sh", "-c", line], tmp_path, environment(controlplane), 200) as watch:
        watch.wait_for(approval)
        if " -i " in line:
            watch.wait_for("Approve? ")


def test_looking(asked):
    _, approval, run = asked
    (line,) = commands("approvals.md", "Looking")
    shown = run(line)
    assert shown.returncode == 0, shown.stderr
    assert approval in shown.stdout


@pytest.mark.parametrize("line", commands("approvals.md", "Deciding"))
def test_deciding(line, asked):
    command, _, run = asked
    done = run(line if line.startswith("kubectl") else f"{line} --yes")  # there is no terminal to ask at
    assert done.returncode == 0, done.stderr
    assert (command.wait(20) == 0) is (" deny " not in line)
