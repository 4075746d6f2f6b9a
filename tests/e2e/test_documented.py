"""
The commands of the README, docs/operations.md, docs/recordings.md and others, run as they stand there: an agent,
an approver and an operator at the demo's gateway. The demo itself: tests/e2e/test_demo.py. That none is left out:
tests/test_documented.py.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from addons.cli import demo
from addons.net import store
from addons.net.store import SqliteStore
from tests.e2e import gateway, policies
from tests.e2e.test_approvals import Stage
from tests.screenshots.terminal import Program

pytestmark = pytest.mark.e2e

LIMIT = 60  # seconds of one command

# Each with what it prints; a path or a name in capitals is filled in.
POLICIES = {
    "./run.sh policy check policies/": "good: ",
    "./run.sh policy test policies/": " 0 failed",
    "./run.sh policy explain --user agent -- delete pod web-1 -n shop": "no rule",
    "./run.sh policy schema": '"$schema"',
    "./run.sh policy reference": "# Policy reference",
    "./run.sh policy explain --user ann --groups dev -- delete pod web-1 -n shop": "no rule",
    """echo '{"method": "DELETE", "url": "/api/v1/namespaces/shop/pods/web-1"}' | ./run.sh classify""": '"delete"',
}
CLIENTS = {
    "./run.sh kubeconfig --token-file TOKEN": '"tokenFile"',
    "./run.sh kubeconfig --passthrough": '"certificate-authority-data"',
    "./run.sh kubeconfig --approver": "",
    "./run.sh kubeconfig --token-file /run/agent/token > /etc/tollgate/agent.kubeconfig": "",
    "./run.sh kubeconfig --exec kubectl -- oidc-login get-token --oidc-issuer-url=URL --oidc-client-id=tollgate "
    "> /etc/tollgate/agent.kubeconfig": "",
    "./run.sh kubeconfig --passthrough > /etc/tollgate/passthrough.kubeconfig": "",
    "./run.sh serve --print": "--mode",
    "./run.sh doctor": "problem",
}
REVOCATIONS = {
    './run.sh revoke --all-agents --reason "what happened last night"': "rev-",
    "./run.sh revoke --user tollgate:system:serviceaccount:agents:ci-agent --for 2h": "rev-",
    "./run.sh revoke --token-id 1f0c… ; ./run.sh revoke --issued-before now --user oidc:alice ; "
    "./run.sh revoke --owner alice": "rev-",
    "./run.sh revoke list ; ./run.sh revoke lift rev-7f3kqw2m9z": "lifted",
}
ASKING = (
    "kubectl create namespace web",
    "kubectl get approvals -w",
    "kubectl describe approval apr-7f3kq2m9xd",
    './run.sh approvals approve apr-7f3kq2m9xd --reason "for the demo"',
)
MASKED = {
    "kubectl get secret db -o jsonpath='{.data.password}' | base64 -d": "**masked:",
    "kubectl get secret db -o yaml | kubectl replace -f -": "holds a masked value",
    "kubectl label secret db team=shop": "labeled",
}
RECORDED = {
    "./run.sh sessions": "ci-agent",
    "./run.sh show SESSION": "checkout-critical",
    "./run.sh report > report.html": "",
    "./run.sh verify [PATH]": "not proven against the holder of the key",
    "./run.sh backtest --policies NEW PATH": "",
    "./run.sh replay SESSION --onto KUBECONFIG": "",
    "mitmweb -nr recordings/…/flows.mitm": "403 Forbidden",
}
STATE = {
    "./run.sh backup /backups/tollgate-2026-07-28": "",
    "./run.sh restore /backups/tollgate-2026-07-28": "void",
}
BY_KUBECTL = (
    "kubectl create -f - <<END\napiVersion: tollgate.dev/v1alpha1\nkind: Revocation\nmetadata: {generateName: stop-}\n"
    "spec: {allAgents: true, duration: 2h, reason: what happened last night}\nEND",
    "kubectl get revocations -w",
    'kubectl delete revocation stop-1a2b3c4d --token "$(cat approver-token)"',
)
ASKS = f"""{policies.EVERYTHING.rstrip()}
- name: leases
  action: hold
  match: {{resources: [leases.coordination.k8s.io], verbs: [delete]}}
  approval: {{groups: ["{demo.APPROVERS}"]}}
"""
BLOCKED = "kubectl delete configmap checkout-critical -n prod-web"
LINES = {*POLICIES, *CLIENTS, *REVOCATIONS, *ASKING, *MASKED, *RECORDED, *STATE, *BY_KUBECTL, BLOCKED}


class Desk:
    """A folder in which ./run.sh and kubectl are at hand, for one who has this kubeconfig."""

    def __init__(self, folder, controlplane, state, *, server="", recordings=None, kubeconfig=None):
        self.folder, self.state, self.recordings = folder, state, recordings
        folder.mkdir(exist_ok=True)
        more = {"kubeconfig": ["--state", state], "revoke": ["--state", state], "backup": ["--state", state],
                "restore": ["--state", state], "sessions": ["--recordings", recordings],
                "show": ["--recordings", recordings], "replay": ["--recordings", recordings]}  # fmt: skip
        if server:
            more["kubeconfig"] += ["--server", server]
        cases = "\n".join(
            f'{command}) shift; set -- {command} {shlex.join(map(str, options))} "$@";;'
            for command, options in more.items()
        )
        # `revoke list` and the like come first; only revoke has such words.
        cases = cases.replace(
            "revoke) shift; set -- revoke",
            'revoke) shift; w=; case "${1:-}" in list|lift) w=$1; shift;; esac; set -- revoke $w',
        )
        program = folder / "run.sh"
        python = shlex.join([sys.executable, "-m", "addons.cli"])
        program.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}\nesac\nexec {python} "$@"\n')
        program.chmod(0o700)
        (folder / "policies").symlink_to(gateway.ROOT / "policies")
        self.environment = controlplane.kubectl_env(kubeconfig) | {
            "PYTHONPATH": str(gateway.ROOT), "TOLLGATE_STATE": str(state),
        }  # fmt: skip
        self.environment["PATH"] = os.pathsep.join(
            [str(controlplane.programs.folder), str(Path(sys.executable).parent), self.environment["PATH"]]
        )

    def run(self, line, kubeconfig=None):
        env = self.environment | ({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {})
        return subprocess.run(
            ["sh", "-c", line], cwd=self.folder, env=env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=LIMIT,
        )  # fmt: skip

    def until(self, line, text, kubeconfig):
        """A line that runs until somebody ends it: it is ended once it has said this."""
        with Program(["sh", "-c", line], self.folder, self.environment | {"KUBECONFIG": str(kubeconfig)}, 200) as one:
            one.wait_for(text)


@pytest.fixture(scope="module")
def stage(gateway_kubeconfig, controlplane, tmp_path_factory):
    """The demo's gateway."""
    folder = tmp_path_factory.mktemp("documented")
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(policies.patient(folder / "policies"))]
    with gateway.running(folder, *arguments) as one:
        stage = Stage(one, controlplane)
        blocked = stage.kubectl(stage.agent, *shlex.split(BLOCKED)[1:])
        assert "rule agents/critical-configmaps denies this: " in blocked.stderr
        yield stage


@pytest.fixture(scope="module")
def desk(stage, controlplane, gateway_kubeconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk") / "desk"
    state, recordings = stage.gateway.folder / "state", stage.gateway.folder / "recordings"
    return Desk(folder, controlplane, state, server=stage.gateway.url, recordings=recordings,
                kubeconfig=gateway_kubeconfig)  # fmt: skip


@pytest.fixture
def own(controlplane, gateway_kubeconfig, tmp_path):
    """A desk with a state folder of nobody's."""
    (tmp_path / "state").mkdir(mode=0o700)
    SqliteStore(tmp_path / "state" / store.FILE).close()
    return Desk(tmp_path / "desk", controlplane, tmp_path / "state", kubeconfig=gateway_kubeconfig)


@pytest.mark.parametrize("line", POLICIES)
def test_policies(line, own):
    done = own.run(line)
    assert done.returncode == 0, done.stderr
    assert POLICIES[line] in done.stdout


@pytest.mark.parametrize("line", CLIENTS)
def test_clients(line, desk):
    (desk.folder / "token").write_text("t")
    (desk.folder / "token").chmod(0o600)
    filled = line.replace("TOKEN", "token").replace("/etc/tollgate/", "./").replace("/run/agent/", "./")
    if line.startswith(("./run.sh serve", "./run.sh doctor")):
        filled += f" --listen 127.0.0.1:{gateway.free_port()}"
    done = desk.run(filled)
    assert done.returncode == (1 if "doctor" in line or line.endswith("--approver") else 0), done.stdout + done.stderr
    assert CLIENTS[line] in done.stdout
    assert "Traceback" not in done.stderr


def test_the_kill_switch(own):
    for line, said in REVOCATIONS.items():
        if "lift" in line:
            name = re.search(r"rev-\w+", own.run("./run.sh revoke list").stdout)
            line = line.replace("rev-7f3kqw2m9z", name[0])
        done = own.run(line)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        assert said in done.stdout + done.stderr, line


def test_asking(stage, desk, controlplane, tmp_path):
    create, watch, describe, approve = ASKING
    asks = stage.begin(stage.agent, *shlex.split(create)[1:], out=tmp_path / "out")
    try:
        name = stage.pending("create namespace web")["metadata"]["name"]
        desk.until(watch, name, stage.approver)
        assert (
            "create namespace web"
            in desk.run(describe.replace("apr-7f3kq2m9xd", name), kubeconfig=stage.approver).stdout
        )
        done = desk.run(f"{approve.replace('apr-7f3kq2m9xd', name)} --yes", kubeconfig=stage.approver)
        assert done.returncode == 0, done.stderr
        assert asks.wait(LIMIT) == 0, (tmp_path / "out").read_text()
    finally:
        asks.kill()
        asks.wait()
        controlplane.request("DELETE", "/api/v1/namespaces/web")


@pytest.fixture
def masking(gateway_kubeconfig, tmp_path):
    """A gateway that lets agents read Secrets, masked; with somebody who could be asked about writes."""
    (tmp_path / "policy.yaml").write_text(ASKS)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(tmp_path / "policy.yaml")]
    with gateway.running(tmp_path / "masking", *arguments) as one:
        yield one


def test_masking(masking, desk, controlplane, agent_token):
    path = "/api/v1/namespaces/shop/secrets/db"
    controlplane.api("POST", path.rpartition("/")[0], {"metadata": {"name": "db"}, "stringData": {"password": "p4ss"}})
    try:
        for line, said in MASKED.items():
            done = desk.run(line, kubeconfig=masking.kubeconfig("documented", agent_token, "shop"))
            assert said in done.stdout + done.stderr, line
    finally:
        controlplane.request("DELETE", path)


@pytest.fixture(scope="module")
def session(stage, desk):
    """The agent's session, once what was refused is on record (refusals are written within a second)."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        for line in desk.run("./run.sh sessions --json --user ci-agent").stdout.splitlines():
            name = Path(json.loads(line)["path"]).name
            if "checkout-critical" in desk.run(f"./run.sh show {name}").stdout:
                return name
    raise AssertionError("the agent's session is not on record")


@pytest.mark.parametrize("line", RECORDED)
def test_recordings(line, session, stage, desk):
    flows = next(path for path in desk.recordings.rglob("flows.mitm") if b"checkout-critical" in path.read_bytes())
    filled = line.replace("SESSION", session).replace("KUBECONFIG", str(stage.agent)).replace("NEW", "policies/")
    filled = re.sub(r"\[?PATH\]?", str(desk.recordings), filled)
    filled = filled.replace("recordings/…/flows.mitm", str(flows))
    filled = filled.replace("mitmweb", "mitmdump")  # the same reader, which ends by itself
    filled = filled.replace("./run.sh report", f"./run.sh report {desk.recordings}")
    done = desk.run(filled)
    assert done.returncode in ((0, 1) if "replay" in line or "backtest" in line else (0,)), done.stdout + done.stderr
    assert RECORDED[line] in done.stdout
    assert "Traceback" not in done.stderr
    assert ">" not in line or "<html" in (desk.folder / "report.html").read_text()


def test_backup_and_restore(own):
    own.run('./run.sh revoke --all-agents --reason "so that there is a state"')
    for line, said in STATE.items():
        done = own.run(line.replace("/backups/", f"{own.folder}/"))
        assert done.returncode == 0, done.stderr
        assert said in done.stdout + done.stderr
    assert "all agents" in own.run("./run.sh revoke list").stdout


def test_the_kill_switch_by_kubectl(stage, desk):
    create, watch, delete = BY_KUBECTL
    made = desk.run(create, kubeconfig=stage.engineer)
    assert made.returncode == 0, made.stderr
    name = re.search(r"stop-\w+", made.stdout)[0]
    (desk.folder / "approver-token").write_text(stage.approver_token)
    try:
        desk.until(watch, name, stage.engineer)
        assert "stopped here" in stage.kubectl(stage.agent, "get", "pods", "-n", "shop").stderr
    finally:
        lifted = desk.run(delete.replace("stop-1a2b3c4d", name), kubeconfig=stage.engineer)
    assert lifted.returncode == 0, lifted.stderr
