"""
The image without an engine: the files that the Dockerfile copies, its environment, and a root that is
read-only. What is not shown by this: the base image and the packages in it.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from addons.cli import alive
from tests.deploy.test_files import DEPLOY, ROOT, environment_of_the_image, instructions
from tests.e2e import client, gateway

pytestmark = pytest.mark.e2e

# Mounts of this process only: the two folders that may be written, and everything else read-only.
READ_ONLY = 'mount --bind "$1" "$1" && mount --bind "$2" "$2" && mount -o remount,bind,ro / && shift 2 && exec "$@"'


@pytest.fixture(scope="module")
def can_mount():
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", "mount -o remount,bind,ro /"], capture_output=True, timeout=30
    )
    if done.returncode:
        pytest.skip("a read-only root needs the right to mount (root, with CAP_SYS_ADMIN)")


@pytest.fixture
def image(tmp_path):
    """What the image holds, and the environment it gives."""
    here = {"/opt/tollgate": tmp_path / "opt", "/var/lib/tollgate": tmp_path / "var"}
    for copy in instructions("COPY"):
        source, target = copy.split()[-2:]
        if copy.startswith("--from") or not target.startswith("/opt/tollgate/"):
            continue
        to = here["/opt/tollgate"] / Path(target).name
        to.parent.mkdir(exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, to)
    here["/var/lib/tollgate"].mkdir(mode=0o700)
    environment = {"HOME": "/nonexistent"}
    for name, value in environment_of_the_image().items():
        for path, folder in here.items():
            value = value.replace(path, str(folder))
        environment[name] = value.replace("/opt/venv/bin", str(Path(sys.executable).parent))
    return here["/var/lib/tollgate"], environment


@pytest.mark.usefixtures("can_mount")
def test_it_serves_from_a_root_that_is_read_only(image, controlplane, gateway_kubeconfig, tmp_path):
    state, environment = image
    port = gateway.free_port()
    environment |= {"TOLLGATE_LISTEN": f"127.0.0.1:{port}", "TOLLGATE_KUBECONFIG": str(gateway_kubeconfig)}
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    environment["TMPDIR"] = str(scratch)
    command = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", str(state), str(scratch), "tollgate", "serve"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=state, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    gateway.Gateway(process, state, port)  # so that the audit log is joined with its record, too
    try:
        deadline = time.monotonic() + gateway.START_LIMIT
        while alive.trouble("127.0.0.1", port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        health = subprocess.run(["sh", DEPLOY / "tollgate", "alive"], env=environment, timeout=30)
        assert health.returncode == 0
        token = controlplane.token("agents", "ci-agent")
        ca_file = state / "state" / "tls" / "ca.crt"
        assert client.request(port, ca_file, "GET", "/api/v1/namespaces/shop/pods", token=token).status == 200
    finally:
        process.terminate()
        process.wait(20)
    assert "Read-only file system" not in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not list((tmp_path / "opt").rglob("__pycache__"))
