"""
Approvals with real kubectl, real gateway processes and the real control plane. What arrived at
the API server, by its own audit log, is the oracle.
"""

import concurrent.futures
import datetime
import itertools
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e import client, gateway

pytestmark = pytest.mark.e2e

NAMES = (f"held-{n}" for n in itertools.count())
APPROVALS = "/apis/tollgate.dev/v1alpha1/approvals"
POLICY = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: agents}
people: '"tollgate:system:serviceaccounts:people" in identity.groups'
rules:
- {name: everything, action: allow, match: {verbs: ["*"], resources: ["*", "*/*"]}}
- {name: everything-else, action: allow, match: {verbs: ["*"], nonResourceURLs: ["*"]}}
- name: new-namespace
  action: hold
  match: {subjects: [agents], verbs: [create], resources: [namespaces]}
  message: It makes a namespace.
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 12s, maxPending: 100}
- name: delete-namespace
  action: hold
  match: {subjects: [agents], verbs: [delete], resources: [namespaces]}
  message: Everything in it goes.
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 12s, maxPending: 100}
- name: configmaps
  action: hold
  match: {subjects: [agents], impacts: [write], resources: [configmaps], verbs: [create, update, patch, delete]}
  message: It changes settings.
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 6s, maxPending: 100}
- name: many
  action: hold
  match: {subjects: [agents], verbs: [create], resources: [limitranges]}
  message: Two hundred of them wait at once.
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 90s, maxPending: 100}
- name: short
  action: hold
  match: {subjects: [agents], verbs: [create], resources: [serviceaccounts]}
  message: It is asked about for a moment only.
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 1s, valid: 3s, maxPending: 100}
- name: two
  action: hold
  match: {subjects: [agents], verbs: [create], resources: [priorityclasses.scheduling.k8s.io]}
  message: Two people must agree.
  approval: {groups: ["tollgate:system:serviceaccounts:people"], needed: 2, wait: 12s, maxPending: 100}
- name: opens
  action: hold
  match: {subjects: [agents], verbs: [create], resources: [services]}
  message: One yes opens this for a while.
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 12s, maxPending: 100}
  grant: {for: 30m, scope: namespace}
- name: execute
  action: hold
  match: {subjects: [agents], impacts: [execute]}
  message: It runs commands inside a pod.
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 12s, maxPending: 100}
"""


class Stage:
    """One gateway, an agent, and two people who may decide."""

    def __init__(self, one, controlplane):
        self.gateway, self.controlplane = one, controlplane
        self.agent_token = controlplane.token("agents", "ci-agent")
        self.agent = one.kubeconfig("agent", self.agent_token, "shop")
        self.engineer = one.kubeconfig("engineer", controlplane.token("people", "engineer"), "shop")
        self.approver_token = controlplane.token("people", "engineer", audience="tollgate-approver")
        self.approver = one.kubeconfig("approver", self.approver_token, "shop")

    def kubectl(self, config, *args, **more):
        return self.controlplane.run_kubectl(*args, kubeconfig=config, check=False, **more)

    def begin(self, config, *args, out: Path):
        with out.open("wb") as file:
            return subprocess.Popen(
                [self.controlplane.kubectl, *args],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.controlplane.kubectl_env(config),
            )

    def request(self, method, path, token=None, **more):
        return client.request(
            self.gateway.port, self.gateway.ca_file, method, path, token=token or self.agent_token, **more
        )

    def approvals(self):
        answer = self.request("GET", APPROVALS, self.approver_token)
        assert answer.status == 200, answer
        return json.loads(answer.body)["items"]

    def pending(self, having, seconds=10):
        """The approval whose summary has this text, once it is there."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for item in self.approvals():
                if having in json.dumps(item["spec"]) and item["status"]["phase"] == "Pending":
                    return item
            time.sleep(0.05)
        raise AssertionError(f"nobody asked about {having}: {self.gateway.log[-3000:]}")

    def phase(self, name):
        return next(i["status"]["phase"] for i in self.approvals() if i["metadata"]["name"] == name)

    def decide(self, name, decision, reason="", token=None):
        body = json.dumps({"spec": {"decision": decision, "reason": reason}}).encode()
        return self.request(
            "PATCH",
            f"{APPROVALS}/{name}",
            token or self.approver_token,
            body=body,
            headers={"Content-Type": "application/merge-patch+json"},
        )

    def arrived(self, since, verb, resource, name=""):
        """What came to the API server as the agent, dry runs of ours aside."""
        return [
            event
            for event in self.controlplane.audit_events(since)
            if event["verb"] == verb
            and event.get("objectRef", {}).get("resource") == resource
            and (
                not name or event["objectRef"].get("name") == name or name in json.dumps(event.get("requestObject", ""))
            )
            and not event["auditID"].startswith("tollgate-")
            and event["stage"] == "ResponseComplete"
        ]


@pytest.fixture(scope="module")
def stage(controlplane, gateway_kubeconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("approvals")
    (folder / "policy.yaml").write_text(POLICY)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")]
    arguments += ["--", "--set", "tollgate_identity_rate=0", "--set", "tollgate_source_rate=0"]
    arguments += ["--set", "tollgate_identity_open=0", "--set", "tollgate_source_open=0"]
    arguments += ["--set", "tollgate_source_connections=0"]
    with gateway.running(folder, *arguments) as one:
        yield Stage(one, controlplane)


@pytest.fixture
def name():
    return next(NAMES)


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_a_namespace_is_made_once_the_engineer_says_yes(stage, name, tmp_path):
    since = stage.controlplane.audit_position()
    watch = stage.begin(stage.engineer, "get", "approvals", "-w", out=tmp_path / "watch")
    command = stage.begin(stage.agent, "create", "namespace", name, out=tmp_path / "out")
    approval = stage.pending(name)
    assert command.poll() is None
    assert not stage.arrived(since, "create", "namespaces", name)
    until(lambda: approval["metadata"]["name"] in (tmp_path / "watch").read_text())
    assert f"name: {name}" in stage.kubectl(stage.approver, "describe", "approval", approval["metadata"]["name"]).stdout
    assert stage.decide(approval["metadata"]["name"], "Approved", "fine").status == 200
    decided = datetime.datetime.now(datetime.UTC)
    assert command.wait(10) == 0, (tmp_path / "out").read_text()
    ended = datetime.datetime.now(datetime.UTC)
    watch.kill()
    assert (tmp_path / "out").read_text() == f"namespace/{name} created\n"
    (event,) = stage.arrived(since, "create", "namespaces", name)
    assert stage.phase(approval["metadata"]["name"]) == "Used"
    came = datetime.datetime.fromisoformat(event["requestReceivedTimestamp"])
    print(f"from the yes to the API server {milliseconds(came - decided)}, to the end {milliseconds(ended - decided)}")


def milliseconds(span):
    return f"{span.total_seconds() * 1000:.0f} ms"


@pytest.mark.parametrize("patch", [pytest.param((), id="strategic"), pytest.param(("--type=merge",), id="merge")])
def test_kubectl_patch_decides(stage, name, tmp_path, patch, kubectl_program):
    command = stage.begin(stage.agent, "create", "namespace", name, out=tmp_path / "out")
    approval = stage.pending(name)["metadata"]["name"]
    decision = '{"spec":{"decision":"Approved","reason":"fine"}}'
    patched = stage.kubectl(
        stage.approver, "patch", "approval", approval, *patch, "-p", decision, program=kubectl_program
    )
    assert patched.returncode == 0, patched.stderr
    assert command.wait(10) == 0, (tmp_path / "out").read_text()


def test_one_approval_covers_delete_all_of_fourteen(stage, name, tmp_path):
    plane = stage.controlplane
    plane.run_kubectl("create", "namespace", name)
    for n in range(14):
        plane.run_kubectl("create", "configmap", f"c{n:02}", "-n", name)
    since = plane.audit_position()
    # kube-root-ca.crt may be among them, by the controllers: 14 or 15.
    command = stage.begin(stage.agent, "delete", "configmap", "--all", "-n", name, out=tmp_path / "out")
    approval = stage.pending(name)
    assert approval["spec"]["preview"]["counts"]["configmaps"] >= 14
    assert stage.decide(approval["metadata"]["name"], "Approved").status == 200
    assert command.wait(20) == 0, (tmp_path / "out").read_text()
    assert len(stage.arrived(since, "delete", "configmaps")) >= 14
    assert len([i for i in stage.approvals() if name in json.dumps(i["spec"])]) == 1


def test_the_rest_of_an_undecided_command_is_told_at_once(stage, name, tmp_path):
    plane = stage.controlplane
    plane.run_kubectl("create", "namespace", name)
    for n in range(5):
        plane.run_kubectl("create", "configmap", f"c{n}", "-n", name)
    since, began = plane.audit_position(), time.monotonic()
    refused = stage.kubectl(stage.agent, "delete", "configmap", "--all", "-n", name, timeout=40)
    took = time.monotonic() - began
    approval = stage.pending(name)["metadata"]["name"]
    assert refused.returncode == 1
    assert refused.stderr.count(f"approval {approval} is pending") >= 5
    assert 5 < took < 11
    assert not stage.arrived(since, "delete", "configmaps")
    assert stage.decide(approval, "Approved").status == 200
    again = stage.kubectl(stage.agent, "delete", "configmap", "--all", "-n", name, timeout=40)
    assert again.returncode == 0, again.stderr
    assert len(stage.arrived(since, "delete", "configmaps")) >= 5


def test_denied(stage, name, tmp_path):
    since = stage.controlplane.audit_position()
    command = stage.begin(stage.agent, "create", "namespace", name, out=tmp_path / "out")
    approval = stage.pending(name)["metadata"]["name"]
    assert stage.decide(approval, "Denied", "not in the freeze").status == 200
    assert command.wait(10) == 1
    assert "denied approval" in (tmp_path / "out").read_text()
    assert "not in the freeze" in (tmp_path / "out").read_text()
    began = time.monotonic()
    again = stage.kubectl(stage.agent, "create", "namespace", name)
    assert "the same is not asked again before" in again.stderr
    assert time.monotonic() - began < 5
    assert not stage.arrived(since, "create", "namespaces", name)


def test_expired(stage, name):
    since = stage.controlplane.audit_position()
    held = stage.kubectl(stage.agent, "create", "serviceaccount", name)
    assert "is pending" in held.stderr
    approval = stage.pending(name)["metadata"]["name"]
    assert stage.decide(approval, "Approved").status == 200
    until(lambda: stage.phase(approval) == "Expired")
    again = stage.kubectl(stage.agent, "create", "serviceaccount", name)
    assert approval not in again.stderr
    assert "is pending" in again.stderr
    assert not stage.arrived(since, "create", "serviceaccounts", name)


@pytest.mark.parametrize(
    ("who", "says"),
    [
        pytest.param("agent", "agent", id="the agent itself"),
        pytest.param("agent approver", "agent", id="the agent with a token for approvers"),
        pytest.param("engineer", "tollgate-approver", id="the engineer's everyday kubeconfig"),
    ],
)
def test_who_cannot_approve(stage, name, tmp_path, who, says):
    since = stage.controlplane.audit_position()
    command = stage.begin(stage.agent, "create", "namespace", name, out=tmp_path / "out")
    approval = stage.pending(name)["metadata"]["name"]
    token = {
        "agent": stage.agent_token,
        "agent approver": stage.controlplane.token("agents", "ci-agent", audience="tollgate-approver"),
        "engineer": stage.controlplane.token("people", "engineer"),
    }[who]
    answer = stage.decide(approval, "Approved", token=token)
    assert answer.status == 403
    assert says in answer.message
    assert stage.phase(approval) == "Pending"
    command.kill()
    command.wait(5)
    assert not stage.arrived(since, "create", "namespaces", name)


def test_nobody_approves_his_own(stage, name, tmp_path, controlplane, gateway_kubeconfig):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "policy.yaml").write_text(POLICY.replace("subjects: [agents], ", ""))
    with gateway.running(
        folder, "--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")
    ) as one:
        own = Stage(one, controlplane)
        since = controlplane.audit_position()
        command = own.begin(own.approver, "create", "namespace", name, out=tmp_path / "out")
        approval = own.pending(name)["metadata"]["name"]
        answer = own.decide(approval, "Approved")
        assert answer.status == 403
        assert "asked for himself" in answer.message
        command.kill()
        assert not own.arrived(since, "create", "namespaces", name)


def test_replayed(stage, name, tmp_path):
    """The same request once more after its approval was used is a new question."""
    plane = stage.controlplane
    plane.run_kubectl("create", "namespace", name)
    path = f"/api/v1/namespaces/{name}/configmaps"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(stage.request, "POST", path, body=body)
        approval = stage.pending(name)["metadata"]["name"]
        stage.decide(approval, "Approved")
        assert first.result().status == 201
    plane.run_kubectl("delete", "configmap", "c", "-n", name)
    since = plane.audit_position()
    again = stage.request("POST", path, body=body)
    assert again.status == 403
    assert again.reason == "approval-pending"
    assert approval not in again.message
    assert not stage.arrived(since, "create", "configmaps")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"data": {"a": "2"}}, id="another value"),
        pytest.param({"metadata": {"name": "c", "labels": {"x": "y"}}}, id="a label more"),
        pytest.param({"metadata": {"name": "d"}}, id="another name"),
    ],
)
def test_changed(stage, name, change):
    plane = stage.controlplane
    plane.run_kubectl("create", "namespace", name)
    path = f"/api/v1/namespaces/{name}/configmaps"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}
    assert stage.request("POST", path, body=body).reason == "approval-pending"
    approval = stage.pending(name)["metadata"]["name"]
    stage.decide(approval, "Approved")
    since = plane.audit_position()
    other = stage.request("POST", path, body=body | change)
    assert other.reason == "approval-pending"
    assert approval not in other.message
    assert not stage.arrived(since, "create", "configmaps")
    assert stage.request("POST", path, body=body).status == 201


def test_the_object_changed_since(stage, name):
    """The bytes are the same, what they do is not: what was approved is void."""
    plane = stage.controlplane
    plane.run_kubectl("create", "namespace", name)
    plane.run_kubectl("create", "configmap", "c", "-n", name)
    plane.run_kubectl("label", "configmap", "c", "-n", name, "image=good-1")
    path = f"/api/v1/namespaces/{name}/configmaps/c"
    patch = json.dumps([{"op": "copy", "from": "/metadata/labels/image", "path": "/metadata/labels/deployed"}]).encode()
    headers = {"Content-Type": "application/json-patch+json"}
    assert stage.request("PATCH", path, body=patch, headers=headers).reason == "approval-pending"
    approval = stage.pending(name)["metadata"]["name"]
    stage.decide(approval, "Approved")
    plane.run_kubectl("label", "configmap", "c", "-n", name, "image=evil-1", "--overwrite")
    since = plane.audit_position()
    void = stage.request("PATCH", path, body=patch, headers=headers)
    assert void.status == 403
    assert void.reason == "approval-void"
    assert stage.phase(approval) == "Void"
    assert not stage.arrived(since, "patch", "configmaps")
    assert "is pending instead" in void.message


def test_another_object_of_the_same_name_is_not_deleted(stage, name):
    plane = stage.controlplane
    plane.run_kubectl("create", "namespace", name)
    plane.run_kubectl("create", "configmap", "c", "-n", name)
    path = f"/api/v1/namespaces/{name}/configmaps/c"
    assert stage.request("DELETE", path).reason == "approval-pending"
    approval = stage.pending(name)["metadata"]["name"]
    stage.decide(approval, "Approved")
    plane.run_kubectl("delete", "configmap", "c", "-n", name)
    plane.run_kubectl("create", "configmap", "c", "-n", name)
    answer = stage.request("DELETE", path)
    assert answer.status == 403
    assert answer.reason == "approval-void"
    assert plane.run_kubectl("get", "configmap", "c", "-n", name).returncode == 0


def test_cancelled(stage, name, tmp_path):
    since = stage.controlplane.audit_position()
    command = stage.begin(stage.agent, "create", "namespace", name, out=tmp_path / "out")
    approval = stage.pending(name)["metadata"]["name"]
    cancelled = stage.kubectl(stage.agent, "delete", "approval", approval, "--wait=false")
    assert cancelled.returncode == 0, cancelled.stderr
    assert command.wait(10) == 1
    assert "was cancelled" in (tmp_path / "out").read_text()
    assert not stage.arrived(since, "create", "namespaces", name)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_client_leaves(stage, name, tmp_path, how):
    since = stage.controlplane.audit_position()
    command = stage.begin(stage.agent, "create", "namespace", name, out=tmp_path / "out")
    approval = stage.pending(name)
    assert approval["status"]["waiting"] is True
    os.kill(command.pid, how)
    command.wait(5)
    found = until(
        lambda: next(
            (
                i
                for i in stage.approvals()
                if i["metadata"]["name"] == approval["metadata"]["name"] and not i["status"].get("waiting")
            ),
            None,
        )
    )
    assert "client left" in json.dumps(found["status"])
    assert stage.decide(approval["metadata"]["name"], "Approved").status == 200
    time.sleep(1)  # no ghost: a yes after the wait releases nothing by itself
    assert not stage.arrived(since, "create", "namespaces", name)
    assert stage.kubectl(stage.agent, "create", "namespace", name).returncode == 0
    assert len(stage.arrived(since, "create", "namespaces", name)) == 1


def test_two_people(stage, name, tmp_path):
    plane = stage.controlplane
    plane.run_kubectl("create", "serviceaccount", f"second-{name}", "-n", "people")
    second = plane.token("people", f"second-{name}", audience="tollgate-approver")
    command = stage.begin(stage.agent, "create", "priorityclass", name, "--value=5", out=tmp_path / "out")
    approval = stage.pending(name)["metadata"]["name"]
    assert stage.decide(approval, "Approved").status == 200
    assert stage.decide(approval, "Approved").status == 403
    assert stage.phase(approval) == "Pending"
    assert stage.decide(approval, "Approved", token=second).status == 200
    assert command.wait(10) == 0, (tmp_path / "out").read_text()
    plane.run_kubectl("delete", "priorityclass", name)


def test_a_grant_opens_its_rule_for_a_while(stage, name, tmp_path):
    plane = stage.controlplane
    plane.run_kubectl("create", "namespace", name)
    plane.run_kubectl("create", "namespace", f"{name}-other")
    create = ["create", "service", "clusterip", "-n", name, "--tcp=80"]
    command = stage.begin(stage.agent, *create, "a", out=tmp_path / "out")
    stage.decide(stage.pending(name)["metadata"]["name"], "Approved")
    assert command.wait(10) == 0, (tmp_path / "out").read_text()
    assert stage.kubectl(stage.agent, *create, "b").returncode == 0
    elsewhere = stage.begin(
        stage.agent, "create", "service", "clusterip", "a", "-n", f"{name}-other", "--tcp=80", out=tmp_path / "other"
    )
    stage.pending(f"{name}-other")
    elsewhere.kill()
    grants = json.loads(stage.request("GET", "/apis/tollgate.dev/v1alpha1/grants", stage.approver_token).body)["items"]
    grant = next(g for g in grants if name in json.dumps(g["spec"]))
    assert stage.kubectl(stage.approver, "delete", "grant", grant["metadata"]["name"], "--wait=false").returncode == 0
    after = stage.begin(stage.agent, *create, "c", out=tmp_path / "after")
    stage.pending("c" if name not in stage.gateway.log else name)
    after.kill()


def test_ask_ahead(stage, name, tmp_path):
    plane = stage.controlplane
    plane.run_kubectl("create", "namespace", name)
    wish = {
        "apiVersion": "tollgate.dev/v1alpha1",
        "kind": "AccessRequest",
        "metadata": {"name": name},
        "spec": {
            "verbs": ["create"],
            "resources": ["configmaps"],
            "namespace": name,
            "duration": "10m",
            "justification": "the release of today",
        },
    }
    (tmp_path / "wish.json").write_text(json.dumps(wish))
    made = stage.kubectl(stage.agent, "create", "-f", str(tmp_path / "wish.json"))
    assert made.returncode == 0, made.stderr
    waiting = stage.begin(
        stage.agent,
        "wait",
        f"accessrequest/{name}",
        "--for=jsonpath={.status.phase}=Approved",
        "--timeout=20s",
        out=tmp_path / "wait",
    )
    patched = stage.kubectl(
        stage.approver, "patch", "accessrequest", name, "--type=merge", "-p", '{"spec":{"decision":"Approved"}}'
    )
    assert patched.returncode == 0, patched.stderr
    assert waiting.wait(20) == 0, (tmp_path / "wait").read_text()
    done = stage.kubectl(stage.agent, "create", "configmap", "c", "-n", name)
    assert done.returncode == 0, done.stderr


def test_exec_waits_and_runs_once(stage, tmp_path):
    pod = stage.controlplane.pods("shop", "app=web")[0]
    command = stage.begin(stage.agent, "exec", pod, "--", "echo", "hello-held", out=tmp_path / "out")
    approval = stage.pending("hello-held")
    assert stage.decide(approval["metadata"]["name"], "Approved").status == 200
    assert command.wait(10) == 0, (tmp_path / "out").read_text()
    assert stage.phase(approval["metadata"]["name"]) == "Used"


def test_the_second_try_of_a_held_exec_does_not_wait_again(stage, tmp_path):
    pod = stage.controlplane.pods("shop", "app=web")[0]
    began = time.monotonic()
    refused = stage.kubectl(stage.agent, "exec", pod, "--", "echo", "hello-twice", timeout=40)
    assert "is pending" in refused.stderr
    assert 11 < time.monotonic() - began < 20
    assert len([i for i in stage.approvals() if "hello-twice" in json.dumps(i["spec"])]) == 1


def test_a_restart_keeps_what_is_pending(controlplane, gateway_kubeconfig, name, tmp_path):
    (tmp_path / "policy.yaml").write_text(POLICY)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(tmp_path / "policy.yaml")]
    arguments += ["--state", str(tmp_path / "shared")]

    def stage_of(one):
        one.ca_file.parent.mkdir(parents=True, exist_ok=True)
        one.ca_file.write_bytes((tmp_path / "shared" / "tls" / "ca.crt").read_bytes())
        return Stage(one, controlplane)

    since = controlplane.audit_position()
    with gateway.running(tmp_path / "one", *arguments) as one:
        before = stage_of(one)
        command = before.begin(before.agent, "create", "namespace", name, out=tmp_path / "out")
        approval = before.pending(name)["metadata"]["name"]
        one.process.send_signal(signal.SIGTERM)
        assert command.wait(10) == 1
        assert "the gateway is going down" in (tmp_path / "out").read_text()
    with gateway.running(tmp_path / "two", *arguments) as two:
        after = stage_of(two)
        assert after.phase(approval) == "Pending"
        assert after.decide(approval, "Approved").status == 200
        assert not after.arrived(since, "create", "namespaces", name)
        assert after.kubectl(after.agent, "create", "namespace", name).returncode == 0


def test_two_hundred_at_once(stage, name):
    """They wait together, nobody else is slower for it, and each goes through exactly once."""
    plane = stage.controlplane
    plane.run_kubectl("create", "namespace", name)
    tokens = []
    for n in range(4):  # a hundred questions are the most of one requester
        plane.run_kubectl("create", "serviceaccount", f"{name}-{n}", "-n", "agents")
        user = f"tollgate:system:serviceaccount:agents:{name}-{n}"
        plane.run_kubectl(
            "create", "clusterrolebinding", f"{name}-{n}", "--clusterrole=cluster-admin", f"--user={user}"
        )
        tokens.append(plane.token("agents", f"{name}-{n}"))
    since = plane.audit_position()
    path = f"/api/v1/namespaces/{name}/limitranges"

    def create(n):
        body = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": f"c{n:03}"}, "spec": {"limits": []}}
        return stage.request("POST", path, tokens[n % 4], body=body, seconds=120)

    def latency():
        took = []
        for _ in range(30):
            began = time.monotonic()
            assert stage.request("GET", "/api/v1/namespaces/shop/configmaps/settings").status == 200
            took.append(time.monotonic() - began)
        return sorted(took)[15] * 1000

    def memory():
        status = Path(f"/proc/{stage.gateway.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) // 1024

    before, size = latency(), memory()
    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        waiting = [pool.submit(create, n) for n in range(200)]
        names = until(
            lambda: (
                [
                    i["metadata"]["name"]
                    for i in stage.approvals()
                    if name in json.dumps(i["spec"]) and i["status"]["phase"] == "Pending"
                ]
                if sum(1 for i in stage.approvals() if name in json.dumps(i["spec"])) >= 200
                else []
            ),
            60,
        )
        during = latency()
        for one in names:
            assert stage.decide(one, "Approved").status == 200
        done = [w.result(120).status for w in waiting]
    print(f"GET p50 {before:.1f} ms before, {during:.1f} ms while 200 wait; {size} -> {memory()} MiB")
    assert done == [201] * 200
    assert len(stage.arrived(since, "create", "limitranges")) == 200
