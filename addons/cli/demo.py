"""
`./run.sh demo`: a throwaway real control plane with a small, lively content, the gateway in front
of it, an agent and an engineer; and five commands to paste. Until Ctrl-C.
"""

import argparse
import contextlib
import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from addons.cli import kubeconfig, serve
from addons.cli.arguments import state_default
from addons.core import approvals
from addons.net import files

if TYPE_CHECKING:
    from tests.cluster.controlplane import ControlPlane

ROOT = Path(__file__).resolve().parents[2]
TOKEN_SECONDS = 3600
RENEW_SECONDS = 600  # tokens are written anew; a decision needs one that is younger than 15 minutes
START_SECONDS = 60
# namespace, ServiceAccount, audience of its token
ACCOUNTS = {
    "agent": ("agents", "ci-agent", "tollgate"),
    "engineer": ("people", "engineer", "tollgate"),
    "approver": ("people", "engineer", approvals.AUDIENCE),
}
MCP_SERVER = "kubernetes-mcp-server@0.0.67"  # the version that the tests drive
APPROVERS = "tollgate:system:serviceaccounts:people"  # in place of the group that default.yaml names

# Beside policies/default.yaml. Policy files add up: the strictest matching rule of all decides.
POLICY = """\
# What this demo adds to policies/default.yaml, which it runs with unchanged.
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: demo}
people: '"tollgate:system:serviceaccounts:people" in identity.groups'
rules:
- name: agents-work-in-shop
  action: allow
  match:
    subjects: [agents]
    verbs: [create, update, patch, delete]
    resources: [pods, configmaps, services, deployments.apps, deployments.apps/scale]
    namespaces: [shop]
- name: people-do-everything
  action: allow
  match: {subjects: [people], verbs: ["*"], resources: ["*", "*/*"]}
- name: people-see-everything
  action: allow
  match: {subjects: [people], verbs: ["*"], nonResourceURLs: ["*"]}
"""


class DemoError(Exception):
    """The demo cannot run; one sentence."""


def commands(kubectl: str, agent: Path, engineer: Path, approver: Path) -> str:
    """Five commands to paste, and what to expect of each."""
    program = shlex.quote(str(ROOT / "run.sh"))
    decide = f"{program} approvals watch -i --kubeconfig {shlex.quote(str(approver))}"
    as_agent = f"{kubectl} --kubeconfig {shlex.quote(str(agent))}"
    as_engineer = f"{kubectl} --kubeconfig {shlex.quote(str(engineer))}"
    lines = (
        (f"{as_agent} get pods -A", "passes: agents may read"),
        (f"{as_agent} scale deployment web -n shop --replicas=2", "passes: shop is the agent's to work in"),
        (f"{as_agent} delete configmap checkout-critical -n prod-web", "refused: it is critical, and an agent asks"),
        (
            f"{as_agent} delete namespace shop",
            f"waits 25 s for a human to say yes, then it is refused. In another terminal:\n  #    {decide}",
        ),
        (f"{as_engineer} delete configmap checkout-critical -n prod-web", "passes: an engineer is no agent"),
    )
    return "\n".join(f"  # {i}. {what}\n  {line}\n" for i, (line, what) in enumerate(lines, 1))


def mcp_client(folder: Path, agent: Path) -> Path:
    """Write what an MCP client takes as configuration, for a server that acts as the agent; and the server's own."""
    # Without "config", a toolset that shows the model the kubeconfig. JSON strings are TOML strings.
    toml = f'kubeconfig = {json.dumps(str(agent))}\ncluster_provider_strategy = "kubeconfig"\ntoolsets = ["core"]\n'
    files.write_private(folder / "mcp.toml", toml.encode())
    entry = {"command": "npx", "args": ["-y", MCP_SERVER, "--config", str(folder / "mcp.toml")]}
    path = folder / "mcp.json"
    files.write_private(path, json.dumps({"mcpServers": {"kubernetes": entry}}, indent=2).encode())
    return path


def wait_open(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"the gateway did not start; its log:\n{log.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise DemoError(f"the gateway did not open its port in {START_SECONDS} s; see {log}")


def write_policies(folder: Path) -> Path:
    """The default policy and the demo's own."""
    files.private_folder(folder)
    (folder / "demo.yaml").write_text(POLICY)
    # As an owner would edit it: whoever may approve here.
    default = (ROOT / "policies" / "default.yaml").read_text(encoding="utf-8")
    (folder / "default.yaml").write_text(default.replace("platform-oncall", f'"{APPROVERS}"'), encoding="utf-8")
    return folder


@contextlib.contextmanager
def running_gateway(folder: Path, own: Path, listen: str, port: int) -> Iterator[Path]:
    """The gateway as a child process, with the default policy and the demo's own. Yields its log."""
    policies = write_policies(folder / "policies")
    log = folder / "gateway.log"
    arguments = ["serve", "--listen", listen, "--kubeconfig", str(own), "--state", str(folder / "state"),
                 "--recordings", str(folder / "recordings"),
                 "--policies", str(policies)]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 (our own program)
            [sys.executable, "-m", "addons.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to us first, and we end it in order
        )
    try:
        wait_open(process, port, log)
        yield log
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def main(argv: Sequence[str]) -> None:
    p = argparse.ArgumentParser(
        prog="./run.sh demo",
        description="Start a throwaway Kubernetes control plane and the gateway in front of it, and print commands\n"
        "to try. The first start builds the control plane (some minutes, needs Go or fetches it); later ones\n"
        "take seconds.\nCtrl-C ends everything; nothing outside the state folder is touched.",
        epilog="  ./run.sh demo\n  ./run.sh demo --listen 127.0.0.1:9443\n\n"
        "Exit status: 0 after Ctrl-C, 1 when it could not start (the sentence says why).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--listen", default="127.0.0.1:8443", metavar="HOST:PORT",
                   help="where the gateway listens (default: %(default)s)")  # fmt: skip
    p.add_argument("--state", default=str(state_default() / "demo"), metavar="DIR",
                   help="where the demo's files go (default: %(default)s)")  # fmt: skip
    args = p.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        run(args.listen, Path(args.state).expanduser().absolute())
    except KeyboardInterrupt:
        print("\ntollgate: demo ended", file=sys.stderr)
    except (DemoError, serve.UsageError, OSError) as e:
        raise SystemExit(f"tollgate: {e}") from e


def run(listen: str, folder: Path) -> None:
    # The throwaway control plane is the tests' own.
    from tests.cluster import build
    from tests.cluster.controlplane import ControlPlane, ControlPlaneError

    host, port = serve.address(listen, "--listen")
    serve.check_free(host, port, "--listen")

    def say(text: str) -> None:
        print(f"tollgate: {text}", file=sys.stderr, flush=True)

    files.private_folder(folder)
    plane = folder / "cluster"
    shutil.rmtree(plane, ignore_errors=True)  # of an earlier demo that was killed
    try:
        with ControlPlane.start(plane, progress=say, audit=True) as cluster:
            say("filling the cluster")
            cluster.seed()
            own = cluster.gateway_kubeconfig(folder / "gateway.kubeconfig")
            clients = {name: folder / f"{name}.kubeconfig" for name in ACCOUNTS}
            tokens = {name: folder / f"{name}.token" for name in clients}
            say("starting the gateway")
            with running_gateway(folder, own, listen, port) as log:
                ca = (folder / "state" / "tls" / "ca.crt").read_bytes()
                for name, path in clients.items():
                    user = {"tokenFile": str(tokens[name])}
                    config = kubeconfig.build(f"https://{listen}", ca, user)
                    files.write_private(path, json.dumps(config, indent=2).encode())
                renew(cluster, tokens)
                mcp = mcp_client(folder, clients["agent"])
                kubectl = "kubectl" if shutil.which("kubectl") else cluster.kubectl
                print(
                    f"\nAPI server  {cluster.url}  (throwaway; etcd, kube-apiserver, controllers, one played node)\n"
                    f"gateway     https://{listen}  (log: {log})\n"
                    "agent       tollgate:system:serviceaccount:agents:ci-agent, cluster-admin by RBAC, "
                    "token for one hour\n"
                    "engineer    tollgate:system:serviceaccount:people:engineer; approvals need its second "
                    f"kubeconfig, {clients['approver']}\n"
                    f"MCP client  {mcp}: its content goes into the client's configuration (docs/mcp.md); needs npx\n\n"
                    "Paste into another terminal:\n\n"
                    f"{commands(kubectl, clients['agent'], clients['engineer'], clients['approver'])}\n"
                    "Ctrl-C ends the demo.",
                    flush=True,
                )
                while True:
                    time.sleep(RENEW_SECONDS)
                    renew(cluster, tokens)
    except (ControlPlaneError, build.BuildError) as e:
        raise DemoError(str(e)) from e


def renew(cluster: "ControlPlane", tokens: Mapping[str, Path]) -> None:
    """Write fresh one-hour tokens where the kubeconfigs look for them."""
    for who, path in tokens.items():
        namespace, account, audience = ACCOUNTS[who]
        token = cluster.token(namespace, account, audience=audience, seconds=TOKEN_SECONDS)
        files.write_private(path, token.encode())
