"""The ways to the API server that are measured: none in between, a bare mitmdump, the gateway, another proxy."""

import contextlib
import datetime
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from addons.net import certificates, files
from tests.cluster import build
from tests.cluster.controlplane import ControlPlane
from tests.e2e import gateway

ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
START_LIMIT = 60  # seconds
TOKEN_SECONDS = 4 * 3600

# One caller makes all the load, as no single one may.
NO_LIMITS = (
    "tollgate_identity_rate=0",
    "tollgate_source_rate=0",
    "tollgate_identity_open=0",
    "tollgate_source_open=0",
    "tollgate_source_connections=0",
    "tollgate_record_quota=0",
)
POLICIES = (ROOT / "policies" / "default.yaml", ROOT / "policies" / "packs")


@dataclass(frozen=True, slots=True)
class Way:
    """Where requests are sent, and the process that passes them on."""

    name: str
    url: str
    ca_file: Path
    token_file: Path
    pid: int | None = None  # None: nobody between client and API server

    def cpu(self) -> float:
        """Seconds of processor time that the process has used."""
        if self.pid is None:
            return 0.0
        after_name = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / TICKS  # utime, stime: proc(5)

    def memory(self) -> float:
        """MB that are resident."""
        if self.pid is None:
            return 0.0
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def load_program(tell: build.Progress) -> Path:
    """The load generator (load/main.go), built once for each version of its source."""
    cache = build.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("load")
    go, version = build.find_go(cache, tell)
    target = cache / f"load-{build.hashed(version, [source / 'main.go', source / 'go.mod'])}"
    if not target.exists():
        tell("building the load generator")
        build.compile_program(go, source, target)
    return target


@contextlib.contextmanager
def started(folder: Path, cluster: ControlPlane, wanted: Sequence[str], peer: str, stack: str) -> Iterator[list[Way]]:
    """The wanted ways, running, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    certificate = certificates.ensure(
        files.private_folder(folder / "own"), "127.0.0.1", datetime.datetime.now(datetime.UTC)
    )
    if certificate.ca_file is None:
        raise AssertionError("a certificate of our own has a CA")
    own, agent = folder / "admin.token", folder / "agent.token"
    for path, token in (
        (own, cluster.admin_token),
        (agent, cluster.token("agents", "ci-agent", seconds=TOKEN_SECONDS)),
    ):
        path.touch(0o600)
        path.write_text(token)
    with contextlib.ExitStack() as all_of_them:
        ways: list[Way] = []
        for name in wanted:
            port = gateway.free_port()
            url = f"https://127.0.0.1:{port}"
            match name:
                case "direct":
                    ways.append(Way(name, cluster.url, cluster.ca_file, own))
                    continue
                case "mitmdump":
                    process = mitmdump(folder / name, cluster, certificate.combined, port)
                    ways.append(Way(name, url, certificate.ca_file, own, process.pid))
                case "peer":
                    process = kube_oidc_proxy(folder / name, cluster, certificate.combined, port, peer)
                    ways.append(Way(name, url, certificate.ca_file, agent, process.pid))
                case _:
                    process = tollgate(folder / name, cluster, port, stack)
                    ca_file = folder / name / "state" / "tls" / "ca.crt"
                    ways.append(Way(name, url, ca_file, agent, process.pid))
            all_of_them.callback(end, process)
            wait_open(process, port, folder / name)
        yield ways


def run(folder: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )


def mitmdump(folder: Path, cluster: ControlPlane, certificate: Path, port: int) -> subprocess.Popen[bytes]:
    """Without any addon of ours; it prints no flows, as the gateway's does not."""
    settings = {
        "flow_detail": "0",
        "certs": f"*={certificate}",
        "confdir": str(folder),
        "ssl_verify_upstream_trusted_ca": str(cluster.ca_file),
    }
    command = [str(Path(sys.executable).with_name("mitmdump")), "--mode", f"reverse:{cluster.url}"]
    command += ["--listen-host", "127.0.0.1", "--listen-port", str(port)]
    return run(folder, [*command, *(word for k, v in settings.items() for word in ("--set", f"{k}={v}"))])


def tollgate(
    folder: Path, cluster: ControlPlane, port: int, stack: str, policies: Sequence[Path] = POLICIES
) -> subprocess.Popen[bytes]:
    """As it comes, with every policy that is shipped, or with these."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["--kubeconfig", str(cluster.gateway_kubeconfig(folder / "own.kubeconfig"))]
    arguments += ["--policies", os.pathsep.join(map(str, policies))]
    arguments += ["--without", stack] if stack else []
    return gateway.launch(folder, [*arguments, "--", *(word for o in NO_LIMITS for word in ("--set", o))], port=port)


@contextlib.contextmanager
def gateway_with(folder: Path, cluster: ControlPlane, policies: Sequence[Path]) -> Iterator[Way]:
    """One gateway with these policies, as the agent sees it, until the block ends. The folder may have recordings."""
    port = gateway.free_port()
    process = tollgate(folder, cluster, port, "", policies)
    try:
        wait_open(process, port, folder)
        token = token_file(folder / "agent.token", cluster, "agents", "ci-agent")
        yield Way("tollgate", f"https://127.0.0.1:{port}", folder / "state" / "tls" / "ca.crt", token, process.pid)
    finally:
        end(process)


def token_file(path: Path, cluster: ControlPlane, namespace: str, account: str) -> Path:
    path.touch(0o600)
    path.write_text(cluster.token(namespace, account, seconds=TOKEN_SECONDS))
    return path


def kube_oidc_proxy(
    folder: Path, cluster: ControlPlane, certificate: Path, port: int, program: str
) -> subprocess.Popen[bytes]:
    """With the cluster as its issuer, and the same names for callers as the gateway gives them."""
    if not shutil.which(program):
        raise FileNotFoundError(f"--peer: {program} is no program")
    return run(
        folder,
        [
            str(Path(program).absolute()),
            f"--kubeconfig={cluster.admin_kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={certificate}",
            f"--oidc-issuer-url={cluster.issuer}",
            f"--oidc-ca-file={cluster.ca_file}",
            "--oidc-client-id=tollgate",
            "--oidc-username-claim=sub",
            "--oidc-username-prefix=tollgate:",
        ],
    )


def wait_open(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise ChildProcessError(f"{folder.name} did not open its port; see the log in {folder}")


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
