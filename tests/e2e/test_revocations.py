"""The kill switch: within a second, in every process on the state folder, with a reason, whatever is under way."""

import contextlib
import datetime
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from addons.cli import kubeconfig as client_kubeconfig
from addons.net import certificates
from tests.e2e import client, gateway, policies
from tests.issuer import issuer

pytestmark = pytest.mark.e2e

AGENT = "tollgate:system:serviceaccount:agents:ci-agent"
LIMIT = 1.0  # seconds that a revocation may take, promised
SLACK = 0.7  # seconds for kubectl, which leaves when it has printed, on a busy machine
PEOPLE = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: people}
people: 'identity.username == "tollgate:system:serviceaccount:people:engineer"'
rules:
- name: hold-namespaces
  action: hold
  match: {resources: [namespaces], verbs: [create]}
  approval: {users: ["tollgate:system:serviceaccount:people:engineer"], wait: 60s}
"""


@pytest.fixture(scope="module")
def two(gateway_kubeconfig, tmp_path_factory):
    """Two gateways on one state folder, as during an upgrade."""
    folder = tmp_path_factory.mktemp("revoke")
    (folder / "policies").mkdir()
    (folder / "policies" / "all.yaml").write_text(policies.EVERYTHING)
    (folder / "policies" / "people.yaml").write_text(PEOPLE)
    shared = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policies")]
    shared += ["--state", str(folder / "state")]
    with contextlib.ExitStack() as life:
        yield [life.enter_context(gateway.running(folder / name, *shared)) for name in ("old", "new")]


@dataclass
class Switch:
    state: Path

    def __call__(self, *arguments):
        command = [sys.executable, "-m", "addons.cli", "revoke", *arguments, "--state", str(self.state)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=gateway.ROOT, timeout=30)
        return done.stdout.split()[0] if done.stdout else ""


@pytest.fixture
def switch(two):
    """Throws it; what it threw is lifted afterwards."""
    thrown, throw = [], Switch(two[0].folder.parent / "state")

    def call(*arguments):
        thrown.append(throw(*arguments))
        return thrown[-1]

    yield call
    for name in thrown:
        throw("lift", name)
    deadline = time.monotonic() + 5
    while thrown and time.monotonic() < deadline and any(thrown[-1] + " was lifted" not in one.log for one in two):
        time.sleep(0.05)


def kubeconfig(one, two, name, token, namespace="shop"):
    path = one.folder / f"{name}.kubeconfig"
    ca = (two[0].folder.parent / "state" / "tls" / "ca.crt").read_bytes()
    path.write_text(json.dumps(client_kubeconfig.build(one.url, ca, {"token": token}, namespace)))
    return path


@contextlib.contextmanager
def started(controlplane, config, out, *command):
    with out.open("wb") as file:
        process = subprocess.Popen(
            [controlplane.kubectl, *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=controlplane.kubectl_env(config),
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)


def wait_for(what, limit=20):
    deadline = time.monotonic() + limit
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


@pytest.mark.parametrize("which", [0, 1], ids=["old process", "new process"])
@pytest.mark.parametrize(
    ("command", "says"),
    [
        pytest.param(["get", "configmaps", "-w"], "your access is stopped", id="watch"),
        pytest.param(["exec", "{pod}", "--", "sh", "-c", "echo open; sleep 60"], "your access is stopped", id="exec"),
        pytest.param(["create", "namespace", "never-{which}"], "your access is stopped", id="held request"),
    ],
)
def test_what_is_open_ends_within_a_second(controlplane, two, switch, agent_token, tmp_path, which, command, says):
    config = kubeconfig(two[which], two, "agent", agent_token)
    pod = controlplane.pods("shop", "app=web")[0]
    out = tmp_path / "out"
    before = two[which].log.count("is pending: ")
    with started(controlplane, config, out, *(word.format(pod=pod, which=which) for word in command)) as process:
        if command[0] == "create":
            wait_for(lambda: two[which].log.count("is pending: ") > before)
        else:
            wait_for(lambda: out.read_text() != "")
        time.sleep(0.3)
        assert process.poll() is None, out.read_text()
        name = switch("--user", AGENT, "--reason", "hunter2")
        thrown = time.monotonic()
        process.wait(20)
        took = time.monotonic() - thrown
    shown = out.read_text()
    assert says in shown
    assert name in shown
    assert "hunter2" not in shown
    assert took < LIMIT + SLACK
    assert "NotFound" in controlplane.run_kubectl("get", "namespace", f"never-{which}", check=False).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(
            ["--user", "system:serviceaccount:agents:ci-agent"], 403, "another token changes nothing", id="user"
        ),
        pytest.param(["--all-agents"], 403, "all agents are stopped", id="agents"),
        pytest.param(["--issued-before", "now", "--user", AGENT], 401, "get a new one", id="older tokens"),
    ],
)
def test_every_process_refuses_within_a_second(
    controlplane, two, switch, agent_token, engineer_token, arguments, code, says
):
    ca_file = two[0].folder.parent / "state" / "tls" / "ca.crt"

    def get(one, token):
        return client.request(
            one.port, ca_file, "GET", "/api/v1/namespaces/shop/configmaps/settings", token=token
        ).status

    configs = [kubeconfig(one, two, "a", agent_token) for one in two]
    for one, config in zip(two, configs, strict=True):
        assert get(one, agent_token) == 200
        # With what it knows of the API: of a refused discovery kubectl shows words of its own.
        controlplane.run_kubectl("get", "configmaps", kubeconfig=config)
    switch(*arguments)
    thrown = time.monotonic()
    for one in two:
        wait_for(lambda one=one: get(one, agent_token) == code, LIMIT)
    assert time.monotonic() - thrown < LIMIT
    for one, config in zip(two, configs, strict=True):
        assert get(one, engineer_token) == 200  # people go on
        began = time.monotonic()
        shown = controlplane.run_kubectl("get", "configmaps", kubeconfig=config, check=False)
        assert says in shown.stderr
        assert time.monotonic() - began < 10  # kubectl does not try again and again
    # A new token helps where it says so: from the next second on, for `iat` has whole ones.
    wait_for(lambda: get(two[0], controlplane.token("agents", "ci-agent")) == (200 if code == 401 else code), 5)


def test_by_kubectl(controlplane, two, agent_token, engineer_token):
    everyday = kubeconfig(two[0], two, "engineer", engineer_token)
    fresh = kubeconfig(two[1], two, "fresh", controlplane.token("people", "engineer", audience="tollgate-approver"))
    agent = kubeconfig(two[1], two, "agent2", agent_token)
    made = json.dumps(
        {
            "apiVersion": "tollgate.dev/v1alpha1",
            "kind": "Revocation",
            "metadata": {"name": "stop-agents"},
            "spec": {"allAgents": True, "duration": "1h", "reason": "a drill"},
        }
    )
    refused = controlplane.run_kubectl("create", "-f", "-", kubeconfig=agent, input=made, check=False)
    assert "an agent cannot revoke" in refused.stderr
    controlplane.run_kubectl("create", "-f", "-", kubeconfig=everyday, input=made)
    try:
        wait_for(
            lambda: (
                "all agents are stopped"
                in controlplane.run_kubectl("get", "pods", kubeconfig=agent, check=False).stderr
            ),
            5,
        )
        listed = controlplane.run_kubectl("get", "revocations", "-o", "wide", kubeconfig=everyday).stdout
        assert "stop-agents" in listed
        assert "all agents" in listed
        assert "a drill" in listed
        assert "allAgents" in controlplane.run_kubectl("explain", "revocations.spec", kubeconfig=everyday).stdout
        no = controlplane.run_kubectl("delete", "revocation", "stop-agents", kubeconfig=everyday, check=False)
        assert "audience tollgate-approver" in no.stderr
    finally:
        # Through the other process, whose API shows what is new within a second.
        lift = ["delete", "revocation", "stop-agents"]
        wait_for(lambda: not controlplane.run_kubectl(*lift, kubeconfig=fresh, check=False).returncode, 5)
    wait_for(lambda: not controlplane.run_kubectl("get", "pods", kubeconfig=agent, check=False).stderr, 5)


def test_whoever_acts_for_an_owner_who_left_is_refused(controlplane, tmp_path):
    tls = certificates.ensure(tmp_path, "127.0.0.1", datetime.datetime.now(datetime.UTC))
    departed = tmp_path / "departed"
    departed.write_text("# nobody yet\n")
    (tmp_path / "policy.yaml").write_text(policies.EVERYTHING)
    with issuer.running(tls.combined, tls.ca_file, tmp_path) as provider:
        (tmp_path / "auth.yaml").write_text(provider.configuration({"claim": "name", "prefix": "corp:"}))
        with gateway.running(
            tmp_path / "gateway",
            *("--kubeconfig", str(controlplane.admin_kubeconfig), "--auth", str(tmp_path / "auth.yaml")),
            *("--policies", str(tmp_path / "policy.yaml")),
            *("--owner-claim", "owner", "--departed-owners", str(departed)),
        ) as one:

            def ask(owner):
                token = provider.token({"name": "bot", "owner": owner})
                return client.request(one.port, one.ca_file, "GET", "/version", token=token)

            assert ask(["Alice@example.com"]).status == 200
            departed.write_text("alice@example.com\n")
            wait_for(lambda: ask(["Alice@example.com"]).reason == "owner-departed", 3)
            assert ask("bob@example.com").status == 200
            assert "Alice" not in ask(["Alice@example.com"]).body.decode()
            Switch(one.folder / "state")("--owner", "Bob@example.com")
            wait_for(lambda: ask("bob@example.com").reason == "revoked", 3)
