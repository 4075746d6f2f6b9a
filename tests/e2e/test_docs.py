"""The commands of docs/mcp.md, run as they stand there; the demo in it is tests/e2e/test_mcp.py's."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.e2e import gateway

pytestmark = pytest.mark.e2e

PAGE = (gateway.ROOT / "docs" / "mcp.md").read_text()
AGENT = "tollgate:system:serviceaccount:agents:my-agent"


def commands(section: str) -> list[str]:
    """The lines of the code blocks below this heading."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [
        line for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for line in block.splitlines()
    ]


@pytest.fixture
def run(default_gateway, controlplane, tmp_path):
    """Runs one line in a shell whose ./run.sh speaks of this test's gateway, and whose kubeconfig is the admin's."""
    cli = shlex.join([sys.executable, "-m", "addons.cli"])
    more = shlex.join(["--server", default_gateway.url, "--state", str(default_gateway.folder / "state")])
    program = tmp_path / "run.sh"
    program.write_text(f'#!/bin/sh\nexec {cli} "$@" {more}\n')
    program.chmod(0o700)
    env = controlplane.kubectl_env()
    env |= {"PATH": f"{controlplane.programs.folder}{os.pathsep}{env['PATH']}", "PYTHONPATH": str(gateway.ROOT)}

    def in_shell(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
        )

    yield in_shell
    controlplane.request("DELETE", "/api/v1/namespaces/agents/serviceaccounts/my-agent")
    controlplane.request("DELETE", "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings/my-agent")


def test_on_your_cluster(run, controlplane, tmp_path):
    *prepare, whoami, delete = commands("On your cluster")
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
