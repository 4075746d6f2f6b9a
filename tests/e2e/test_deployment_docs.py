"""Every `sh` block of docs/deployment.md, run as it stands, one after the other."""

import os
import re
import shutil
import subprocess

import pytest

from tests.cluster.controlplane import ControlPlane
from tests.e2e import gateway

pytestmark = pytest.mark.e2e

PAGE = (gateway.ROOT / "docs" / "deployment.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """A folder with what a checkout has, kubectl on the path, and an administrator's kubeconfig."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("deploy", "policies", "addons", "run.sh", "requirements.lock", ".venv"):
        (folder / name).symlink_to(gateway.ROOT / name)
    with ControlPlane.start(folder / "plane", kwok=False) as cluster:
        (folder / "bin").mkdir()
        (folder / "bin" / "kubectl").symlink_to(cluster.kubectl)
        environment = {
            **cluster.kubectl_env(),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "XDG_STATE_HOME": str(folder / "state"),
        }

        def run(script):
            return subprocess.run(
                ["bash", "-euo", "pipefail", "-c", f"umask 077; {script}"], cwd=folder, env=environment,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
            )  # fmt: skip

        yield run


def test_every_other_block_says_that_it_was_not_run():
    before = re.split(r"^```\w*\n.*?^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    for (kind, _), text in zip(BLOCKS, before, strict=False):
        assert kind == "sh" or "*not run here*" in text.rstrip().rpartition("\n\n")[2]


@pytest.mark.skipif(not shutil.which("openssl"), reason="this machine has no openssl")
def test_the_commands(shell):
    scripts = [script for kind, script in BLOCKS if kind == "sh"]
    assert len(scripts) >= 5
    said = ""
    for script in scripts:
        done = shell(script)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        said += done.stdout
    # The doctor's look at what was made: nothing that would be a problem.
    assert "0 problem" in said
    assert "none of 1 ServiceAccount that come through the gateway has rights of its own" in said
    assert "short-lived: a token file" in said
    assert "tollgate-callers" in shell("cat enough.yaml").stdout
