"""The virtual API under real kubectl, in two versions, beside a real API server."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from addons.core import virtualdiscovery
from addons.core.approvals import Phase
from addons.net.book import APPROVALS, GRANTS, REQUESTS
from tests import records
from tests.cluster.controlplane import ControlPlane
from tests.e2e.virtualfront import Front

pytestmark = pytest.mark.e2e

REQUEST = {
    "apiVersion": "tollgate.dev/v1alpha1",
    "kind": "AccessRequest",
    "metadata": {"generateName": "need-"},
    "spec": {
        "verbs": ["delete"], "resources": ["pods"], "namespace": "shop", "duration": "30m", "justification": "clean up",
    },
}  # fmt: skip


def opens(access):
    return (records.hold("agents-delete"),), ""


@pytest.fixture(scope="module")
def shared(controlplane: ControlPlane) -> Iterator[Front]:
    front = Front(
        controlplane,
        {
            "agent": lambda: records.agent(ask_ahead=opens),
            "alice": lambda: records.approver(now=time.time()),
        },
    )
    yield front
    front.stop()


@pytest.fixture
def front(shared: Front) -> Front:
    """With one pending approval, and nothing else."""
    for kind in (APPROVALS, REQUESTS, GRANTS):
        for change in shared.book.all(kind):
            shared.run(shared.book.remove(kind, change.name))
    shared.run(shared.book.add(APPROVALS, records.record(now=time.time())))
    shared.asked.clear()
    return shared


class Kubectl:
    def __init__(self, front: Front, program: str, folder: Path) -> None:
        self.front, self.program, self.folder = front, program, folder

    def arguments(self, who: str, *args: str) -> list[str]:
        return [*args, f"--server=http://127.0.0.1:{self.front.ports[who]}", f"--cache-dir={self.folder}/{who}"]

    def run(self, who: str, *args: str, check: bool = True, **more) -> subprocess.CompletedProcess[str]:
        return self.front.controlplane.run_kubectl(
            *self.arguments(who, *args), program=self.program, kubeconfig=Path("/dev/null"), check=check, **more
        )

    def refused(self, who: str, *args: str, **more) -> str:
        result = self.run(who, *args, check=False, **more)
        assert result.returncode == 1
        return result.stderr

    def start(self, who: str, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.program, *self.arguments(who, *args)],
            env=self.front.controlplane.kubectl_env(Path("/dev/null")),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # client-go notes there that its own watch was cancelled
            text=True,
        )


@pytest.fixture
def kubectl(front: Front, kubectl_program: str, tmp_path: Path) -> Kubectl:
    return Kubectl(front, kubectl_program, tmp_path)


def phase(front: Front, name: str = "apr-7f3k", kind: str = APPROVALS) -> Phase:
    change = front.book.get(kind, name)
    assert change is not None
    return change.entry.phase


def test_get(kubectl):
    header, row = kubectl.run("agent", "get", "approvals").stdout.splitlines()
    assert header.split() == ["NAME", "PHASE", "REQUESTER", "ASKS-TO", "RULE", "IMPACT", "AGE"]
    assert row.split()[:3] == ["apr-7f3k", "Pending", "tollgate:ci-agent"]
    header, row = kubectl.run("alice", "get", "apr", "-o", "wide").stdout.splitlines()
    assert header.split()[-4:] == ["EXPIRES", "APPROVERS", "DECIDED-BY", "REASON"]
    assert "platform-oncall" in row
    assert kubectl.run("agent", "get", "tollgate", "-o", "name").stdout.split() == ["approval.tollgate.dev/apr-7f3k"]


def test_output_forms(kubectl):
    text = kubectl.run("alice", "get", "approval", "apr-7f3k", "-o", "yaml").stdout
    # A block that people can read, not one quoted line.
    assert "    diff: |-\n      --- live\n      +++ after\n" in text
    path = "jsonpath={.spec.preview.counts.pods} {.status.phase}"
    assert kubectl.run("alice", "get", "approval", "apr-7f3k", "-o", path).stdout == "14 Pending"
    columns = "custom-columns=WHO:.spec.requester.username"
    assert kubectl.run("alice", "get", "approvals", "-o", columns, "--no-headers").stdout == "tollgate:ci-agent\n"


def test_describe(kubectl):
    text = kubectl.run("alice", "describe", "approval", "apr-7f3k").stdout
    for part in (
        "Command:   kubectl scale deployment web --replicas=0 -n shop",
        "-  replicas: 2\n+  replicas: 0\n",
        "could not be computed: volumes",
        "Approver Groups:\n      platform-oncall",
        "Credential ID:  jti-1",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        pytest.param(("-l", "tollgate.dev/phase=Pending"), True, id="label"),
        pytest.param(("-l", "tollgate.dev/phase notin (Pending, Used)"), False, id="notin"),
        pytest.param(("-l", "!tollgate.dev/phase"), False, id="without the label"),
        pytest.param(("--field-selector", "status.phase=Pending,metadata.name=apr-7f3k"), True, id="fields"),
        pytest.param(("--field-selector", "spec.requester.username!=tollgate:ci-agent"), False, id="another's"),
    ],
)
def test_selectors(kubectl, selector, found):
    assert bool(kubectl.run("agent", "get", "approvals", "-o", "name", *selector).stdout) is found


def test_explain_and_discovery(kubectl):
    text = kubectl.run("agent", "explain", "approvals").stdout
    assert "GROUP:      tollgate.dev" in text
    assert "An Approval is one command that a rule holds" in text
    text = kubectl.run("agent", "explain", "accessrequests.spec").stdout
    assert "duration\t<string> -required-" in text
    assert "revokedBy\t<string>" in kubectl.run("agent", "explain", "grants", "--recursive").stdout
    listed = kubectl.run("agent", "api-resources", "--api-group=tollgate.dev", "--no-headers").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["accessrequests", "approvals", "grants", "revocations"]
    # The API server's own are there as before.
    assert "deployments" in kubectl.run("agent", "api-resources", "--api-group=apps", "-o", "name").stdout
    assert "tollgate.dev/v1alpha1" in kubectl.run("agent", "api-versions").stdout


def test_can_i(kubectl):
    assert kubectl.run("alice", "auth", "can-i", "patch", "approvals").stdout == "yes\n"
    result = kubectl.run("agent", "auth", "can-i", "patch", "approvals", check=False)
    assert (result.returncode, result.stdout) == (1, "no - rule agents/no-decisions: a person decides\n")
    assert kubectl.run("agent", "auth", "can-i", "create", "accessrequests").stdout == "yes\n"
    assert kubectl.run("alice", "auth", "can-i", "create", "approvals", check=False).stdout.startswith("no - ")
    assert kubectl.run("alice", "auth", "can-i", "delete", "pods").stdout == "yes\n"  # by the API server


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(("-p", '{"spec":{"decision":"Approved","reason":"ok"}}'), id="strategic"),
        pytest.param(("--type=merge", "-p", '{"spec":{"decision":"Approved","reason":"ok"}}'), id="merge"),
        pytest.param(
            ("--type=json", "-p", '[{"op":"replace","path":"/spec/decision","value":"Approved"},'
             '{"op":"replace","path":"/spec/reason","value":"ok"}]'),
            id="json",
        ),
    ],
)  # fmt: skip
def test_patch(kubectl, front, how):
    assert "cannot decide approvals" in kubectl.refused("agent", "patch", "approval", "apr-7f3k", *how)
    dry = kubectl.run(
        "alice", "patch", "approval", "apr-7f3k", *how, "--dry-run=server", "-o", "jsonpath={.status.phase}"
    )
    assert (dry.stdout, phase(front)) == ("Approved", Phase.PENDING)
    assert (
        kubectl.run("alice", "patch", "approval", "apr-7f3k", *how).stdout == "approval.tollgate.dev/apr-7f3k patched\n"
    )
    assert phase(front) is Phase.APPROVED


def test_what_else_cannot_be_changed(kubectl, front):
    for args in (
        ("patch", "approval", "apr-7f3k", "-p", '{"spec":{"command":"x"}}'),
        ("label", "approval", "apr-7f3k", "a=b"),
        ("annotate", "approval", "apr-7f3k", "a=b"),
        ("patch", "approval", "apr-7f3k", "--type=json", "-p", '[{"op":"remove","path":"/spec/rules"}]'),
    ):
        assert "cannot be changed; in approvals only spec.decision and spec.reason can" in kubectl.refused(
            "alice", *args
        )
    content = json.dumps({"apiVersion": "tollgate.dev/v1alpha1", "kind": "Approval", "metadata": {"name": "apr-7f3k"},
                          "spec": {"decision": "Approved"}})  # fmt: skip
    assert "server-side apply is not served" in kubectl.refused(
        "alice", "apply", "--server-side", "-f", "-", input=content
    )
    assert "does not serve this method" in kubectl.refused("alice", "create", "-f", "-", input=content)
    assert phase(front) is Phase.PENDING


def test_replace(kubectl, front):
    content = json.loads(kubectl.run("alice", "get", "approval", "apr-7f3k", "-o", "json").stdout)
    content["spec"] |= {"decision": "Denied", "reason": "no"}
    kubectl.run("alice", "replace", "-f", "-", input=json.dumps(content))
    assert phase(front) is Phase.DENIED
    assert "it was changed since you read it" in kubectl.refused(
        "alice", "replace", "-f", "-", input=json.dumps(content)
    )


def test_delete_cancels_and_does_not_wait(kubectl, front):
    kubectl.run("agent", "delete", "approval", "apr-7f3k", "--dry-run=server")
    assert phase(front) is Phase.PENDING
    before = time.monotonic()
    assert "deleted" in kubectl.run("agent", "delete", "approval", "apr-7f3k", timeout=10).stdout
    assert time.monotonic() - before < 5
    assert phase(front) is Phase.CANCELLED
    assert "is Cancelled already" in kubectl.refused("agent", "delete", "approval", "apr-7f3k")


def test_what_is_not_there(kubectl):
    assert "Error from server (NotFound)" in kubectl.refused("agent", "get", "approval", "apr-none")
    assert "the server doesn't have a resource type" in kubectl.refused("agent", "get", "approvings")


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param("jsonpath={.status.phase}=Approved", id="jsonpath"),
        pytest.param("condition=Approved", id="condition"),
    ],
)
def test_wait(kubectl, front, condition):
    waiting = kubectl.start("agent", "wait", f"--for={condition}", "approval/apr-7f3k", "--timeout=20s")
    try:
        deadline = time.monotonic() + 10
        while not any("watch" in target for _, target in front.asked):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        kubectl.run("alice", "patch", "approval", "apr-7f3k", "-p", '{"spec":{"decision":"Approved"}}')
        out, _ = waiting.communicate(timeout=10)
    finally:
        waiting.kill()
    assert (waiting.returncode, out) == (0, "approval.tollgate.dev/apr-7f3k condition met\n")


def test_watch(kubectl, front):
    watching = kubectl.start("alice", "get", "approvals", "-w", "-l", "tollgate.dev/phase=Pending")
    assert watching.stdout
    try:
        assert watching.stdout.readline().startswith("NAME ")
        assert watching.stdout.readline().split()[:2] == ["apr-7f3k", "Pending"]
        front.run(front.book.add(APPROVALS, records.record("apr-new", now=time.time())))
        assert watching.stdout.readline().split()[:2] == ["apr-new", "Pending"]
        kubectl.run("alice", "patch", "approval", "apr-new", "-p", '{"spec":{"decision":"Denied"}}')
        assert watching.stdout.readline().split()[:2] == ["apr-new", "Denied"]  # the last of it: it left the selector
    finally:
        watching.kill()
        watching.communicate()


def test_access_requests_and_grants(kubectl, front):
    text = json.dumps(REQUEST)
    dry = kubectl.run("agent", "create", "-f", "-", "--dry-run=server", "-o", "name", input=text).stdout
    assert dry.startswith("accessrequest.tollgate.dev/need-")
    assert not front.book.all(REQUESTS)
    made = kubectl.run("agent", "create", "-f", "-", "-o", "name", input=text).stdout.strip()
    misspelled = text.replace('"namespace"', '"namespac"')
    assert "unknown field spec.namespac" in kubectl.refused("agent", "create", "-f", "-", input=misspelled)
    kubectl.run("alice", "patch", made, "--type=merge", "-p", '{"spec":{"decision":"Approved"}}')
    kubectl.run("agent", "wait", "--for=condition=Approved", made, "--timeout=5s")
    header, row = kubectl.run("agent", "get", "grants").stdout.splitlines()
    assert header.split() == ["NAME", "PHASE", "REQUESTER", "RULES", "NAMESPACE", "EXPIRES", "AGE"]
    name = row.split()[0]
    assert row.split()[1:5] == ["Active", "tollgate:ci-agent", "agents/agents-delete", "shop"]
    kubectl.run("alice", "patch", "grant", name, "--type=merge", "-p", '{"spec":{"revoked":true}}')
    kubectl.run("agent", "wait", "--for=condition=Active=false", f"grant/{name}", "--timeout=5s")
    assert "Revoked" in kubectl.run("agent", "get", "grant", name).stdout


def test_apply_creates(kubectl, front):
    text = json.dumps({**REQUEST, "metadata": {"name": "mine"}})
    assert kubectl.run("agent", "apply", "-f", "-", input=text).stdout == "accessrequest.tollgate.dev/mine created\n"
    assert front.book.get(REQUESTS, "mine")


def test_etags(front):
    """A client that has the merged page gets a 304, and one that has the API server's own does not."""
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    url = f"http://127.0.0.1:{front.ports['agent']}/apis"

    async def get(etag=""):
        headers = {"Accept": accept, **({"If-None-Match": etag} if etag else {})}
        async with front.client.get(url, headers=headers) as answer:
            return answer.status, answer.headers.get("ETag"), await answer.read()

    status, etag, body = front.run(get())
    assert (status, body.count(b'"tollgate.dev"') > 0) == (200, True)
    assert front.run(get(etag))[:2] == (304, etag)
    assert front.run(get(virtualdiscovery.etag_in(etag)))[0] == 200


def test_a_real_group_of_that_name_is_not_seen(front, controlplane):
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "approvals.tollgate.dev"},
        "spec": {
            "group": "tollgate.dev",
            "scope": "Cluster",
            "names": {"plural": "approvals", "kind": "Approval"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                }
            ],
        },
    }
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    controlplane.api("POST", path, crd)
    try:
        deadline = time.monotonic() + 20
        while controlplane.request("GET", "/apis/tollgate.dev/v1/approvals")[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        _, legacy = controlplane.request("GET", "/apis")
        merged = virtualdiscovery.merge_groups(legacy, "application/json")
        assert merged.dropped
        (ours,) = [g for g in json.loads(merged.body)["groups"] if g["name"] == "tollgate.dev"]
        assert ours["preferredVersion"]["version"] == "v1alpha1"
    finally:
        controlplane.api("DELETE", f"{path}/approvals.tollgate.dev")
