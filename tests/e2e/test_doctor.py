"""The doctor on a real cluster: as an auditor sees it, and what `serve` makes of a credential that may everything."""

import datetime
import json
import os
import subprocess
import sys

import pytest
import yaml

from addons.net import certificates
from tests.cluster.controlplane import ControlPlane
from tests.e2e import client, gateway
from tests.issuer import issuer

pytestmark = pytest.mark.e2e

BASE = gateway.ROOT / "deploy" / "kubernetes"
OWN = "system:serviceaccount:tollgate:gateway"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A control plane of its own with the gateway's namespace and RBAC; the tests add rights and take them away."""
    with ControlPlane.start(tmp_path_factory.mktemp("doctor") / "plane", kwok=False) as cluster:
        for folder in ("base", "agents"):
            cluster.run_kubectl("apply", "-k", str(BASE / folder))
        yield cluster


@pytest.fixture(scope="module")
def own(cluster, tmp_path_factory):
    """The gateway's own kubeconfig, with a token file."""
    folder = tmp_path_factory.mktemp("own")
    token = folder / "token"
    token.write_text(cluster.token("tollgate", "gateway", audience=None))
    token.chmod(0o600)
    return cluster.kubeconfig(folder / "kubeconfig", cluster.url, cluster.ca_file, token_file=token)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "addons.cli", *map(str, arguments)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(gateway.ROOT)},
    )  # fmt: skip


@pytest.fixture
def doctor(tmp_path, own):
    def ask(*arguments, kubeconfig=own):
        (tmp_path / "recordings").mkdir(exist_ok=True)
        return run("doctor", "--kubeconfig", kubeconfig, "--state", tmp_path / "state", "--recordings",
                   tmp_path / "recordings", "--listen", f"127.0.0.1:{gateway.free_port()}", *arguments)  # fmt: skip

    return ask


def findings(done, check=None, level=None):
    found = json.loads(done.stdout)["findings"]
    return [f["text"] for f in found if check in (None, f["check"]) and level in (None, f["level"])]


def test_the_least_has_no_problem(cluster, doctor):
    done = doctor("--json", "--auditor", cluster.admin_kubeconfig)
    assert done.returncode == 0, done.stdout + done.stderr
    assert findings(done, level="problem") == []
    assert "1 user and 2 groups, each by name" in findings(done, "rights")[0]
    assert "short-lived: a token file" in findings(done, "credential")[0]
    assert findings(done, "around") == ["none of 1 ServiceAccount that come through the gateway has rights of its own"]
    assert findings(done, "issuers") == [f"the cluster's own, {cluster.issuer}: 1 key"]
    assert findings(done, "clock", "ok")
    # Nobody says who people are in the shipped policies: a warning, so --strict is not content.
    assert doctor("--json", "--strict").returncode == 1


def test_for_people(doctor):
    done = doctor()
    assert done.returncode == 0
    assert "\033" not in done.stdout
    assert f"the gateway is {OWN}" in done.stdout
    assert "--auditor" in done.stdout  # what the gateway itself cannot look at


def test_the_admins_kubeconfig(cluster, doctor):
    done = doctor("--json", kubeconfig=cluster.admin_kubeconfig)
    assert done.returncode == 1
    (problem,) = findings(done, "rights", "problem")
    assert "is cluster-admin: it is in the group system:masters" in problem
    assert "delete every namespace, read every Secret" in problem
    assert "static" in findings(done, "credential", "warning")[0]


@pytest.fixture
def also(cluster, request):
    """More RBAC for the gateway's ServiceAccount during a test."""
    cluster.run_kubectl("create", "clusterrole", "also", *request.param)
    cluster.run_kubectl(
        "create", "clusterrolebinding", "also", "--clusterrole=also", "--serviceaccount=tollgate:gateway"
    )
    yield
    cluster.run_kubectl("delete", "clusterrole,clusterrolebinding", "also")


@pytest.mark.parametrize(
    ("also", "words"),
    [
        pytest.param(["--verb=impersonate", "--resource=groups"], "is cluster-admin: it may imperson", id="groups"),
        pytest.param(["--verb=impersonate", "--resource=users"], "may impersonate any user", id="users"),
        pytest.param(["--verb=impersonate", "--resource=serviceaccounts"], "any ServiceAccount", id="serviceaccounts"),
        pytest.param(["--verb=*", "--resource=*.*"], "cluster-admin: it may do everything", id="everything"),
        pytest.param(["--verb=delete", "--resource=namespaces"], "can delete every namespace, and", id="namespaces"),
        pytest.param(["--verb=get,list", "--resource=secrets"], "can read every Secret, and", id="secrets"),
    ],
    indirect=["also"],
)  # fmt: skip
@pytest.mark.usefixtures("also")
def test_too_much(doctor, words):
    done = doctor("--json")
    assert done.returncode == 1
    assert any(words in text for text in findings(done, "rights", "problem")), done.stdout


def test_constrained_impersonation_without_names_is_power_too(cluster, doctor):
    """Shown first that it is: a gateway with this reads every Secret as the controller manager."""
    cluster.run_kubectl("apply", "-f", "-", input=CONSTRAINED)
    try:
        # By another account with the same rights: what is done as the gateway itself has to be on record.
        token = cluster.token("default", "default", audience=None)
        headers = {"Impersonate-User": "system:kube-controller-manager"}
        answer = client.request(cluster.port, cluster.ca_file, "GET", "/api/v1/secrets", token=token, headers=headers)
        found = findings(doctor("--json"), "rights", "problem")
        assert any("impersonate all users (impersonate:user-info)" in text for text in found), found
        assert answer.status == 200, answer.body
    finally:
        cluster.run_kubectl("delete", "-f", "-", input=CONSTRAINED)


CONSTRAINED = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: constrained}
rules:
- {apiGroups: [authentication.k8s.io], resources: [users], verbs: ["impersonate:user-info"]}
- {apiGroups: [""], resources: [secrets], verbs: ["impersonate-on:user-info:list"]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: constrained}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: constrained}
subjects:
- {kind: ServiceAccount, name: gateway, namespace: tollgate}
- {kind: ServiceAccount, name: default, namespace: default}
"""


@pytest.mark.parametrize("also", [["--verb=list", "--resource=nodes"]], indirect=True)
@pytest.mark.usefixtures("also")
def test_what_nobody_thought_of_is_listed(doctor):
    assert "its RBAC allows what a gateway does not need: list nodes" in findings(doctor("--json"), "rights", "warning")


def test_too_little(cluster, doctor, tmp_path):
    token = cluster.token("default", "default", audience=None)
    bare = cluster.kubeconfig(tmp_path / "bare", cluster.url, cluster.ca_file, token=token)
    done = doctor("--json", kubeconfig=bare)
    assert done.returncode == 1
    said = " ".join(findings(done, "rights", "problem"))
    assert "may not create tokenreviews" in said
    assert "may not impersonate userextras/tollgate.dev/gateway" in said


def test_ways_around(cluster, doctor):
    cluster.run_kubectl("create", "rolebinding", "stray", "-n", "default", "--clusterrole=view",
                        "--serviceaccount=agents:ci-agent")  # fmt: skip
    pod = (BASE / "agents" / "pod.yaml").read_text()
    pod = pod.replace("automountServiceAccountToken: false", "automountServiceAccountToken: true")
    cluster.run_kubectl("apply", "-f", "-", input=pod)
    cluster.run_kubectl("apply", "-f", "-", input=SECRET)
    since = cluster.audit_position()
    try:
        done = doctor("--json", "--auditor", cluster.admin_kubeconfig)
        found = findings(done, "around", "problem")
        assert done.returncode == 1
        assert "ci-agent in agents holds RBAC under its own name (view in default)" in found[0]
        assert "mount a token for the API server itself: agent" in found[1]
        assert "tokens without an end in Secrets: agent-token" in found[2]
    finally:
        cluster.run_kubectl("delete", "rolebinding", "stray", "-n", "default")
        cluster.run_kubectl("delete", "pod/agent", "secret/agent-token", "-n", "agents", "--grace-period=0", "--force")
    # It looked, and changed nothing.
    verbs = {e["verb"] for e in cluster.audit_events(since) if "tollgate/" in e.get("userAgent", "")}
    bodies = [e for e in cluster.audit_events(since) if "tollgate/" in e.get("userAgent", "") and e["verb"] == "create"]
    assert verbs <= {"get", "list", "create"}
    assert all("review" in e["requestURI"] for e in bodies)


SECRET = """
apiVersion: v1
kind: Secret
metadata: {name: agent-token, namespace: agents, annotations: {kubernetes.io/service-account.name: ci-agent}}
type: kubernetes.io/service-account-token
"""


def test_the_rbac_that_is_enough_is_what_is_shipped(cluster, doctor):
    """From what is bound in the cluster; and the API server takes it."""
    done = doctor("--rbac", "--auditor", cluster.admin_kubeconfig)
    assert done.returncode == 0
    shipped = [
        document
        for name in ("rbac.yaml", "callers.yaml")
        for document in yaml.safe_load_all((BASE / "base" / name).read_text())
    ]
    assert list(yaml.safe_load_all(done.stdout)) == shipped
    cluster.run_kubectl("apply", "--dry-run=server", "-f", "-", input=done.stdout)
    # Of an administrator no RBAC takes anything away: it is for the gateway's own ServiceAccount then.
    done = doctor("--rbac", kubeconfig=cluster.admin_kubeconfig)
    assert list(yaml.safe_load_all(done.stdout)) == shipped


def test_issuers_of_a_file(doctor, tmp_path):
    tls = certificates.ensure(tmp_path / "issuer", "127.0.0.1", datetime.datetime.now(datetime.UTC))
    path = tmp_path / "auth.yaml"
    with issuer.running(tls.combined, tls.ca_file, tmp_path / "issuer") as provider:
        path.write_text(provider.configuration({"claim": "name", "prefix": "corp:"}))
        done = doctor("--json", "--auth", path)
        assert " key" in findings(done, "issuers", "ok")[0]
    done = doctor("--json", "--auth", path)
    assert done.returncode == 1
    assert "cannot be fetched" in findings(done, "issuers", "problem")[0]
    path.write_text("kind: Nonsense")
    assert findings(doctor("--json", "--auth", path), "issuers", "problem")[0].startswith("--auth: ")


def test_a_gateway_that_runs(doctor, own, tmp_path):
    with gateway.running(tmp_path / "gateway", "--kubeconfig", str(own)) as one:
        done = doctor("--json", "--listen", f"127.0.0.1:{one.port}")
        assert findings(done, "port") == [f"a gateway answers at 127.0.0.1:{one.port}"]
        assert run("alive", "--listen", f"127.0.0.1:{one.port}").returncode == 0
        assert "WARNING" not in one.log
    assert run("alive", "--listen", f"127.0.0.1:{one.port}").returncode == 1


# serve ---------------------------------------------------------------------------------------


def serve(folder, *arguments):
    return run("serve", "--listen", f"127.0.0.1:{gateway.free_port()}", "--state", folder / "state", "--recordings",
               folder / "recordings", *arguments)  # fmt: skip


def test_serve_warns_of_the_incident_that_it_is_for(cluster, tmp_path):
    with gateway.running(tmp_path, "--kubeconfig", str(cluster.admin_kubeconfig)) as one:
        (line,) = [line for line in one.log.splitlines() if "WARNING" in line and "own credential" in line]
    assert "(a token in the kubeconfig) is cluster-admin and static" in line
    assert len(line) < 500


def test_and_refuses_it_by_option(cluster, tmp_path):
    done = serve(tmp_path, "--kubeconfig", cluster.admin_kubeconfig, "--refuse-cluster-admin")
    assert done.returncode == 1
    assert done.stderr.startswith("tollgate: --refuse-cluster-admin: the gateway's own credential")
    assert "doctor --rbac" in done.stderr


@pytest.mark.parametrize("also", [["--verb=impersonate", "--resource=groups"]], indirect=True)
@pytest.mark.usefixtures("also")
def test_free_groups_are_cluster_admin_for_it_too(own, tmp_path):
    done = serve(tmp_path, "--kubeconfig", own, "--refuse-cluster-admin")
    assert done.returncode == 1
    assert "impersonate any group" in done.stderr


def test_what_cannot_be_asked_is_refused_by_the_option(cluster, tmp_path):
    text = cluster.admin_kubeconfig.read_text().replace(cluster.url, "https://127.0.0.1:1")
    down = tmp_path / "down"
    down.write_text(text)
    down.chmod(0o600)
    done = serve(tmp_path, "--kubeconfig", down, "--refuse-cluster-admin")
    assert done.returncode == 1
    assert "cannot be asked" in done.stderr
    with gateway.running(tmp_path / "gateway", "--kubeconfig", str(down)):
        pass  # without it, an API server that is down is no obstacle to a start
