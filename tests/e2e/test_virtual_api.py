"""The group tollgate.dev as people use it: real kubectl, both versions, through a real gateway."""

import json
import subprocess
import time

import pytest

from tests.e2e import client, gateway
from tests.e2e.test_approvals import POLICY, Stage, until

pytestmark = pytest.mark.e2e

GROUP = "/apis/tollgate.dev/v1alpha1"


@pytest.fixture(scope="module")
def stage(controlplane, gateway_kubeconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("virtual")
    (folder / "policy.yaml").write_text(POLICY)
    with gateway.running(
        folder, "--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")
    ) as one:
        yield Stage(one, controlplane)


@pytest.fixture(scope="module")
def approval(stage):
    """One that is pending for the whole module."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shown"}, "data": {"colour": "green"}}
    answer = stage.request("POST", "/api/v1/namespaces/shop/configmaps", body=body)
    assert answer.reason == "approval-pending"
    return stage.pending("shown")["metadata"]["name"]


@pytest.fixture
def kubectl(stage, kubectl_program):
    def run(config, *args, **more):
        return stage.kubectl(config, *args, program=kubectl_program, **more)

    return run


@pytest.mark.parametrize(
    ("args", "shows"),
    [
        pytest.param(("api-resources", "--api-group=tollgate.dev"), "accessrequests", id="api-resources"),
        pytest.param(("api-versions",), "tollgate.dev/v1alpha1", id="api-versions"),
        pytest.param(("explain", "approvals.spec"), "decision", id="explain"),
        pytest.param(("explain", "accessrequests.spec", "--recursive"), "justification", id="explain to the bottom"),
        pytest.param(("get", "approvals"), "Pending", id="get"),
        pytest.param(("get", "approvals", "-o", "wide"), "Pending", id="wide"),
        pytest.param(("get", "approvals", "-o", "yaml"), "kind: Approval", id="yaml"),
        pytest.param(("get", "approvals", "-o", "name"), "approval.tollgate.dev/apr-", id="name"),
        pytest.param(("get", "apr"), "Pending", id="its short name"),
        pytest.param(("get", "approvals", "-A"), "Pending", id="all namespaces"),
        pytest.param(("get", "approvals", "--sort-by=.metadata.creationTimestamp"), "Pending", id="sorted"),
        pytest.param(("get", "approvals", "--field-selector=status.phase=Pending"), "Pending", id="by phase"),
        pytest.param(("get", "approvals", "-l", "tollgate.dev/phase=Pending"), "Pending", id="by label"),
        pytest.param(("get", "approvals", "--field-selector=status.phase=Used"), "", id="by another phase"),
        pytest.param(("describe", "approvals"), "colour: green", id="describe"),
        pytest.param(("auth", "can-i", "patch", "approvals.tollgate.dev"), "yes", id="can-i"),
        pytest.param(("auth", "can-i", "--list"), "approvals.tollgate.dev", id="can-i --list"),
        pytest.param(("get", "grants,accessrequests"), "", id="nothing there yet"),
    ],
)
def test_kubectl(stage, approval, kubectl, args, shows):
    done = kubectl(stage.approver, *args)
    assert done.returncode == 0, done.stderr
    assert shows in done.stdout
    if not shows:
        assert "Pending" not in done.stdout


def test_wait_and_watch(stage, tmp_path, kubectl_program):
    name = f"watched-{'old' if kubectl_program != stage.controlplane.kubectl else 'new'}"
    with (tmp_path / "watch").open("wb") as out:
        watch = subprocess.Popen(
            [kubectl_program, "get", "approvals", "-w"],
            stdout=out,
            stderr=out,
            env=stage.controlplane.kubectl_env(stage.engineer),
        )
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    assert stage.request("POST", "/api/v1/namespaces/shop/configmaps", body=body).reason == "approval-pending"
    approval = stage.pending(name)["metadata"]["name"]
    wait = subprocess.Popen(
        [kubectl_program, "wait", f"approval/{approval}", "--for=jsonpath={.status.phase}=Approved", "--timeout=20s"],
        stdout=subprocess.DEVNULL,
        env=stage.controlplane.kubectl_env(stage.agent),
    )
    assert stage.decide(approval, "Approved").status == 200
    assert wait.wait(20) == 0
    lines = until(
        lambda: [line for line in (tmp_path / "watch").read_text().splitlines() if line.startswith(approval)][1:]
    )
    assert "Approved" in lines[-1]
    watch.kill()
    watch.wait(5)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        pytest.param("/apis/tollgate.dev", 200, id="the group"),
        pytest.param(GROUP, 200, id="its version"),
        pytest.param("/apis/tollgate.dev/v1", 404, id="a version that could shadow ours"),
        pytest.param(f"{GROUP}/secrets", 404, id="a resource that is not there"),
        pytest.param(f"{GROUP}/namespaces/shop/approvals", 404, id="in a namespace"),
        pytest.param(f"{GROUP}/approvals/apr-nobody", 404, id="a name that is not there"),
        pytest.param(f"{GROUP}/watch/approvals", 404, id="the old form of a watch"),
    ],
)
def test_the_whole_group_is_answered_here(stage, path, code):
    since = stage.controlplane.audit_position()
    assert stage.request("GET", path, stage.approver_token).status == code
    assert not [e for e in stage.controlplane.audit_events(since) if "tollgate.dev" in e["requestURI"]]


def test_a_real_group_of_that_name_is_hidden(stage, controlplane, tmp_path):
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "approvals.tollgate.dev"},
        "spec": {
            "group": "tollgate.dev",
            "names": {"plural": "approvals", "kind": "Approval"},
            "scope": "Cluster",
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
            ],
        },
    }
    (tmp_path / "crd.json").write_text(json.dumps(crd))
    # The API server keeps the suffix for itself unless somebody says that it was agreed.
    controlplane.run_kubectl("create", "-f", str(tmp_path / "crd.json"))
    try:
        until(lambda: "tollgate.dev" in controlplane.run_kubectl("get", "--raw", "/apis").stdout)
        for accept in (
            "application/json",
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        ):
            answer = stage.request("GET", "/apis", stage.approver_token, headers={"Accept": accept})
            assert b'"tollgate.dev/v1"' not in answer.body
            assert answer.body.count(b'"name":"tollgate.dev"') == 1
    finally:
        controlplane.run_kubectl("delete", "crd", "approvals.tollgate.dev")


def test_discovery_is_not_sent_again_when_nothing_changed(stage):
    for path in ("/apis", "/openapi/v3"):
        first = stage.request("GET", path, headers={"Accept": "application/json"})
        assert first.status == 200
        assert b"tollgate.dev" in first.body
        tag = first.headers.get("etag")
        if tag is None:
            continue  # the API server has none for this form
        again = stage.request("GET", path, headers={"Accept": "application/json", "If-None-Match": tag})
        assert again.status == 304
        assert again.headers["etag"] == tag


def test_everyone_sees_his_own_and_approvers_what_they_may_decide(stage, approval, controlplane):
    controlplane.run_kubectl("create", "serviceaccount", "somebody", "-n", "agents")
    other = controlplane.token("agents", "somebody")
    path = f"{GROUP}/approvals/{approval}"
    assert stage.request("GET", path).status == 200
    assert stage.request("GET", path, stage.approver_token).status == 200
    assert stage.request("GET", path, other).status == 404
    assert json.loads(stage.request("GET", f"{GROUP}/approvals", other).body)["items"] == []
    assert stage.request("DELETE", path, other).status == 404


def test_the_port_inside_answers_nobody_else(stage):
    """Whoever can connect to loopback is not the gateway."""
    ports = set()
    pid = stage.gateway.process.pid
    listing = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=False).stdout
    for line in listing.splitlines():
        if f"pid={pid}," in line:
            ports.add(int(line.split()[3].rpartition(":")[2]))
    ports.discard(stage.gateway.port)
    if not ports:
        pytest.skip("this machine has no ss to find the port with")
    for port in ports:
        for headers in ({}, {"Tollgate-Ticket": "0" * 32}, {"Authorization": f"Bearer {stage.approver_token}"}):
            answer = client.plain("127.0.0.1", port, f"{GROUP}/approvals", headers)
            assert answer.status == 403


def test_it_answers_while_the_api_server_is_down(stage, approval, controlplane):
    kubectl = stage.kubectl(stage.approver, "get", "approvals")  # fills kubectl's cache of the discovery
    assert kubectl.returncode == 0
    # The keys and the review of a ServiceAccount's token need the API server; those of a few seconds ago still count.
    controlplane.stop_apiserver()
    try:
        began = time.monotonic()
        answer = stage.request("GET", f"{GROUP}/approvals/{approval}", stage.approver_token)
        assert answer.status == 200
        assert time.monotonic() - began < 5
    finally:
        controlplane.start_apiserver()
