"""
What is in deploy/, on a control plane of its own: the API server takes all of it, the gateway works
with exactly that RBAC, and an agent has no way around it.
"""

import json
import time

import pytest
import yaml

from tests.cluster.controlplane import ControlPlane
from tests.e2e import audit, client, gateway

pytestmark = pytest.mark.e2e

DEPLOY = gateway.ROOT / "deploy"
FOLDERS = ("base", "agents", "admission", "example")
AGENT = "system:serviceaccount:agents:ci-agent"
OWN = "system:serviceaccount:tollgate:gateway"
POLICY_NAME = "tollgate-agents-through-the-gateway"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A control plane with base, agents and admission applied, and a namespace where the agent may edit."""
    with ControlPlane.start(tmp_path_factory.mktemp("deploy") / "plane") as cluster:
        for folder in ("base", "agents", "admission"):
            cluster.run_kubectl("apply", "-k", str(DEPLOY / "kubernetes" / folder))
        cluster.run_kubectl("create", "namespace", "agent-one")
        bind(cluster, "gateway-edit", "agent-one", "edit", f"--user=tollgate:{AGENT}")
        yield cluster


def bind(cluster, name, namespace, role, subject):
    cluster.run_kubectl("create", "rolebinding", name, "-n", namespace, f"--clusterrole={role}", subject)


@pytest.fixture(scope="module")
def one(cluster, tmp_path_factory):
    """The gateway with the ServiceAccount's token, the shipped policies and those of the ConfigMap."""
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "holds.yaml").write_text(HOLDS)
    token = cluster.token("tollgate", "gateway", audience=None)
    own = cluster.kubeconfig(folder / "own.kubeconfig", cluster.url, cluster.ca_file, token=token)
    given = [gateway.ROOT / "policies", DEPLOY / "kubernetes" / "base" / "policies", folder / "holds.yaml"]
    arguments = ["--kubeconfig", str(own), "--policies", ":".join(map(str, given)), "--refuse-cluster-admin"]
    with gateway.running(folder, *arguments) as running:
        yield running


# An approval's text needs a dry run of the write as the agent, and of an exec what the pod's account may do.
HOLDS = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: ask}
rules:
- name: changes
  action: hold
  match: {resources: [configmaps], verbs: [update, patch], namespaces: [agent-one]}
  approval: {groups: [oncall], wait: 1s, cooldown: 1s}
- name: exec
  action: hold
  match: {resources: [pods/exec], namespaces: [agent-one]}
  approval: {groups: [oncall], wait: 1s, cooldown: 1s}
"""


def documents(cluster, folder):
    built = cluster.run_kubectl("kustomize", str(DEPLOY / "kubernetes" / folder)).stdout
    return list(yaml.safe_load_all(built))


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_api_server_takes_all_of_it(cluster, folder):
    built = cluster.run_kubectl("kustomize", str(DEPLOY / "kubernetes" / folder)).stdout
    done = cluster.run_kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=built)
    assert done.stdout.count("(server dry run)") == len(documents(cluster, folder))
    assert done.stderr == ""  # neither a warning of Pod Security nor of an unknown field


def test_the_pods_are_admitted_where_pod_security_is_restricted(cluster):
    """A Deployment is taken whatever its pods are; the ReplicaSet's controller makes them, or says why not."""
    agent = (DEPLOY / "kubernetes" / "agents" / "pod.yaml").read_text()
    cluster.run_kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=agent)
    cluster.run_kubectl("wait", "--for=create", "pod", "-n", "tollgate", "-l", "app.kubernetes.io/name=tollgate")
    bad = agent.replace("runAsNonRoot: true", "runAsNonRoot: false").replace("name: agent,", "name: root,")
    done = cluster.run_kubectl("apply", "--dry-run=server", "-f", "-", input=bad, check=False)
    assert "violates PodSecurity" in done.stderr


def test_only_the_gateway_is_reached(cluster):
    """Ports and labels of the NetworkPolicies, the Service, the budget and the Deployment are those of each other."""
    base = {d["kind"]: d for d in documents(cluster, "base")}
    agents = {d["kind"]: d for d in documents(cluster, "agents")}
    template = base["Deployment"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    assert base["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert base["Service"]["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    budget = base["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    assert budget.items() <= template["metadata"]["labels"].items()
    (rule,) = base["NetworkPolicy"]["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": port["name"]}]
    (source,) = rule["from"]
    assert source["namespaceSelector"]["matchLabels"].items() <= agents["Namespace"]["metadata"]["labels"].items()
    dns, gate = agents["NetworkPolicy"]["spec"]["egress"]
    assert [p["port"] for p in dns["ports"]] == [53, 53]
    (peer,) = gate["to"]
    assert peer["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert gate["ports"] == [{"protocol": "TCP", "port": port["containerPort"]}]
    assert "0.0.0.0:%d" % port["containerPort"] in {e.get("value") for e in container["env"]}  # noqa: UP031 - short


# The gateway under this RBAC -----------------------------------------------------------------


def test_what_the_gateway_needs_it_has(cluster, one):
    since = cluster.audit_position()
    kubeconfig = one.kubeconfig("agent", cluster.token("agents", "ci-agent"), "agent-one")

    def kubectl(*arguments, check=True):
        return cluster.run_kubectl(*arguments, kubeconfig=kubeconfig, check=check)

    who = json.loads(kubectl("auth", "whoami", "-o", "json").stdout)["status"]["userInfo"]
    assert who["username"] == f"tollgate:{AGENT}"
    assert "tollgate:system:serviceaccounts:agents" in who["groups"]
    kubectl("create", "configmap", "settings", "--from-literal=a=1")
    cluster.run_kubectl("apply", "-f", "-", input=POD)
    held = kubectl("annotate", "configmap", "settings", "b=2", check=False)
    assert "waits for approval" in held.stderr or "apr-" in held.stderr, held.stderr
    held = kubectl("exec", "web", "--", "true", check=False)
    assert "apr-" in held.stderr, held.stderr
    kubectl("delete", "configmap", "settings")
    shown = kubectl("describe", "approvals").stdout
    assert "b: " in shown or '"b"' in shown or "b=2" in shown, shown  # the diff of the dry run
    cluster.wait_for_audit(lambda e: e["verb"] == "delete" and "settings" in e["requestURI"], since=since)
    events = [e for e in cluster.audit_events(since) if e["user"]["username"] == OWN]
    refused = [(e["requestURI"], e["responseStatus"]["code"]) for e in events if e["responseStatus"]["code"] == 403]
    assert refused == []
    uris = " ".join(e["requestURI"] for e in events)
    assert "tokenreviews" in uris
    assert "subjectaccessreviews" in uris
    assert "dryRun=All" in uris
    # All of it under the caller's name is marked, the gateway's own dry runs too.
    marks = [e["impersonatedUser"].get("extra", {}) for e in events if "impersonatedUser" in e]
    assert marks
    assert all(mark == {"tollgate.dev/gateway": ["true"]} for mark in marks)


POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: agent-one}
spec:
  nodeName: node-1
  automountServiceAccountToken: false
  containers: [{name: web, image: registry.example/web:1}]
"""


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Impersonate-User": "system:kube-controller-manager"}, id="the controller manager"),
        pytest.param({"Impersonate-User": f"tollgate:{AGENT}", "Impersonate-Group": "system:masters"}, id="masters"),
        pytest.param({"Impersonate-User": AGENT}, id="the agent's own name"),
        pytest.param({"Impersonate-User": "tollgate:someone-else"}, id="nobody's name"),
        pytest.param({"Impersonate-User": f"tollgate:{AGENT}", "Impersonate-Extra-Scopes": "all"}, id="an extra"),
        pytest.param(
            {"Impersonate-User": f"tollgate:{AGENT}", "Impersonate-Extra-Tollgate.dev%2fgateway": "other"},
            id="another mark",
        ),
        pytest.param({}, id="itself"),
    ],
)
def test_the_stolen_credential_is_worth_little(cluster, headers):
    """Whoever has the gateway's token is one of its callers at most."""
    token = cluster.token("tollgate", "gateway", audience=None)
    for path in ("/api/v1/secrets", "/api/v1/pods"):
        told = {**headers, "User-Agent": audit.THIEF}
        answer = client.request(cluster.port, cluster.ca_file, "GET", path, token=token, headers=told)
        assert answer.status == 403


# No way around -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(cluster):
    """Every token that the agent's ServiceAccount can have."""
    pod = json.loads(cluster.run_kubectl("create", "-f", "-", "-o", "json", input=RESTRICTED_POD).stdout)
    path = "/api/v1/namespaces/agents/serviceaccounts/ci-agent/token"
    bound = {"kind": "Pod", "apiVersion": "v1", "name": "mounted", "uid": pod["metadata"]["uid"]}
    mounted = cluster.api("POST", path, {"spec": {"boundObjectRef": bound}})["status"]["token"]
    cluster.run_kubectl("create", "-f", "-", input=TOKEN_SECRET)
    cluster.run_kubectl("wait", "--for=jsonpath={.data.token}", "secret/agent-token", "-n", "agents", "--timeout=10s")
    encoded = ["get", "secret", "agent-token", "-n", "agents", "-o", "go-template={{.data.token|base64decode}}"]
    return {
        "tollgate": cluster.token("agents", "ci-agent"),
        "approver": cluster.token("agents", "ci-agent", audience="tollgate-approver"),
        "default": cluster.token("agents", "ci-agent", audience=None),
        "mounted": mounted,
        "secret": cluster.run_kubectl(*encoded).stdout,
    }


RESTRICTED_POD = (
    (DEPLOY / "kubernetes" / "agents" / "pod.yaml").read_text().replace("name: agent, n", "name: mounted, n")
)
TOKEN_SECRET = """
apiVersion: v1
kind: Secret
metadata: {name: agent-token, namespace: agents, annotations: {kubernetes.io/service-account.name: ci-agent}}
type: kubernetes.io/service-account-token
"""
ATTEMPTS = [
    pytest.param("GET", "/api/v1/namespaces/agents/pods", None, {}, id="its own pods"),
    pytest.param("GET", "/api/v1/namespaces/agent-one/pods", None, {}, id="pods where it works"),
    pytest.param("GET", "/api/v1/namespaces/agents/secrets", None, {}, id="its own secrets"),
    pytest.param("GET", "/api/v1/namespaces", None, {}, id="namespaces"),
    pytest.param("POST", "/api/v1/namespaces/agent-one/configmaps", {"metadata": {"name": "x"}}, {}, id="a write"),
    pytest.param("DELETE", "/api/v1/namespaces/agent-one", None, {}, id="a delete"),
    pytest.param("POST", "/api/v1/namespaces/agents/serviceaccounts/ci-agent/token", {"spec": {}}, {}, id="a token"),
    pytest.param("GET", "/api/v1/pods", None, {"Impersonate-User": f"tollgate:{AGENT}"}, id="its name at the gateway"),
    pytest.param(
        "GET", "/api/v1/pods", None, {"Impersonate-User": "x", "Impersonate-Group": "system:masters"}, id="masters"
    ),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["tollgate", "approver", "default", "mounted", "secret"])
@pytest.mark.parametrize(("method", "path", "body", "headers"), ATTEMPTS)
def test_no_token_of_the_agent_gets_anything_directly(cluster, tokens, kind, method, path, body, headers):
    answer = client.request(cluster.port, cluster.ca_file, method, path, token=tokens[kind], body=body, headers=headers)
    # Tokens for another audience are no tokens here; the others are, of somebody without rights.
    assert answer.status == (401 if kind in ("tollgate", "approver") else 403)


@pytest.mark.parametrize("kind", ["default", "mounted", "secret"])
def test_and_these_are_no_tokens_for_the_gateway(cluster, one, tokens, kind):
    assert client.request(one.port, one.ca_file, "GET", "/api/v1/pods", token=tokens[kind]).status == 401


# The admission policy ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strayed(cluster):
    """What the policy is for: somebody gave the agent rights under its own name."""
    bind(cluster, "stray", "agent-one", "admin", "--serviceaccount=agents:ci-agent")
    cluster.run_kubectl("apply", "-f", "-", input=POD)
    return cluster.kubeconfig(
        cluster.folder / "direct.kubeconfig",
        cluster.url,
        cluster.ca_file,
        token=cluster.token("agents", "ci-agent", audience=None),
        namespace="agent-one",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["create", "configmap", "x"], id="create"),
        pytest.param(["label", "pod", "web", "a=b"], id="patch"),
        pytest.param(["delete", "pod", "web"], id="delete"),
        pytest.param(["delete", "pods", "--all"], id="delete all"),
        pytest.param(["exec", "web", "--", "true"], id="exec"),
        pytest.param(["port-forward", "web", "0:8080"], id="port-forward"),
        pytest.param(["create", "rolebinding", "x", "--clusterrole=admin", "--user=x"], id="rbac"),
        pytest.param(["create", "token", "default"], id="a token"),
    ],
)  # fmt: skip
def test_writes_past_the_gateway_are_refused(cluster, strayed, arguments):
    done = cluster.run_kubectl(*arguments, kubeconfig=strayed, check=False)
    assert done.returncode != 0
    assert f"tollgate: {AGENT} writes through the gateway only" in done.stderr


def test_reads_past_it_are_not_seen_by_admission(cluster, strayed):
    """Why the policy is the second lock and RBAC the first."""
    assert "web" in cluster.run_kubectl("get", "pods", kubeconfig=strayed).stdout


def test_the_same_write_passes_through_the_gateway(cluster, strayed, one):
    kubeconfig = one.kubeconfig("same", cluster.token("agents", "ci-agent"), "agent-one")
    cluster.run_kubectl("create", "configmap", "through", kubeconfig=kubeconfig)


def test_others_are_left_alone(cluster):
    cluster.run_kubectl("create", "configmap", "admins", "-n", "agent-one")


def test_a_name_of_the_gateways_without_its_mark_is_refused(cluster):
    """An administrator who impersonates an agent, by hand or from another tool."""
    arguments = ["create", "configmap", "by-hand", "-n", "agent-one", f"--as=tollgate:{AGENT}"]
    done = cluster.run_kubectl(*arguments, check=False)
    assert "writes through the gateway only" in done.stderr
    group = ["create", "configmap", "by-hand", "-n", "agent-one", "--as=somebody", "--as-group=oidc:agents"]
    group.append("--as-group=system:masters")
    assert "writes through the gateway only" in cluster.run_kubectl(*group, check=False).stderr


@pytest.mark.parametrize(
    ("mark", "why"),
    [
        pytest.param({}, "writes through the gateway only", id="without it: the policy"),
        pytest.param({"Impersonate-Extra-Tollgate.dev%2fgateway": "true"}, "cannot impersonate", id="with it: RBAC"),
        pytest.param({"Impersonate-Extra-Tollgate.dev%2fgateway": "x"}, "cannot impersonate", id="another value"),
    ],
)
def test_nobody_else_may_set_the_mark(cluster, deputy, mark, why):
    """Not even whom RBAC lets impersonate any user."""
    answer = client.request(
        cluster.port,
        cluster.ca_file,
        "POST",
        "/api/v1/namespaces/agent-one/configmaps",
        token=deputy,
        body={"metadata": {"name": "forged"}},
        headers={"Impersonate-User": f"tollgate:{AGENT}"} | mark,
    )
    assert answer.status == 403
    assert why in answer.message


@pytest.fixture(scope="module")
def deputy(cluster):
    """The token of a ServiceAccount that may impersonate any user."""
    cluster.run_kubectl("create", "serviceaccount", "deputy", "-n", "agent-one")
    cluster.run_kubectl("create", "clusterrole", "deputy", "--verb=impersonate", "--resource=users")
    subject = "--serviceaccount=agent-one:deputy"
    cluster.run_kubectl("create", "clusterrolebinding", "deputy", "--clusterrole=deputy", subject)
    return cluster.token("agent-one", "deputy", audience=None)


def test_the_policy_is_what_refuses(cluster, strayed):
    """Without its binding the same write passes: the tests above test it and nothing else. Last of its section."""
    cluster.run_kubectl("delete", "validatingadmissionpolicybinding", POLICY_NAME)
    try:
        cluster.run_kubectl("wait", "--for=delete", f"validatingadmissionpolicybinding/{POLICY_NAME}", "--timeout=10s")

        def passes() -> bool:
            return cluster.run_kubectl("create", "configmap", "y", kubeconfig=strayed, check=False).returncode == 0

        assert eventually(passes)
    finally:
        cluster.run_kubectl("apply", "-k", str(DEPLOY / "kubernetes" / "admission"))


def eventually(asked, seconds=10):
    """The API server reads its own policies by a watch: a moment later."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if asked():
            return True
        time.sleep(0.2)
    return False
