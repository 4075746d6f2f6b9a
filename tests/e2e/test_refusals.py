"""The shipped policy with real kubectl: what passes, what is refused, what a person reads, and what arrived."""

import json
import time

import pytest

from tests.e2e import client

pytestmark = pytest.mark.e2e

POD = json.dumps(
    {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "deputy", "namespace": "agent-one"},
        "spec": {"serviceAccountName": "deployer", "containers": [{"name": "c", "image": "kubectl"}]},
    }
)


def arrived(controlplane, since):
    """What came to the API server but the gateway's own requests, which its id marks."""
    return [e for e in controlplane.audit_events(since) if not e["auditID"].startswith("tollgate-")]


@pytest.fixture(scope="module", autouse=True)
def agents_namespace(controlplane):
    controlplane.run_kubectl("create", "namespace", "agent-one")
    controlplane.run_kubectl("create", "configmap", "mine", "-n", "agent-one")
    controlplane.run_kubectl("create", "serviceaccount", "deployer", "-n", "agent-one")
    yield
    controlplane.run_kubectl("delete", "namespace", "agent-one", "--wait=false")


@pytest.fixture
def kubectl(controlplane, default_gateway, agent_token, kubectl_program):
    config = default_gateway.kubeconfig("agent", agent_token)

    def run(*args, **more):
        return controlplane.run_kubectl(*args, kubeconfig=config, program=kubectl_program, check=False, **more)

    return run


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("get pods -A", id="read everywhere"),
        pytest.param("get configmap checkout-critical -n prod-web -o yaml", id="read a critical ConfigMap"),
        pytest.param("describe node node-1", id="describe a node"),
        pytest.param("auth can-i delete pods -n shop", id="ask about oneself"),
        pytest.param("annotate configmap mine -n agent-one a=b --overwrite", id="write in a namespace of theirs"),
        pytest.param("api-resources", id="discovery"),
        pytest.param("explain pods", id="schema"),
    ],
)
def test_passes(kubectl, command):
    done = kubectl(*command.split())
    assert done.returncode == 0, done.stderr


@pytest.mark.attack("the shipped policy")
@pytest.mark.parametrize(
    ("command", "rule", "stdin"),
    [
        pytest.param("get secret db-password -n shop -o yaml", "agents/no-secrets", None, id="a Secret"),
        pytest.param("get secrets -A", "agents/no-secrets", None, id="all Secrets"),
        pytest.param("create token ci-agent -n agents", "agents/no-", None, id="a token"),
        pytest.param("delete namespace shop", "agents/delete-namespace", None, id="a namespace"),
        pytest.param(
            "delete --raw /api/v1/namespaces/agent-one/configmaps", "denies this", None, id="a whole collection"
        ),
        pytest.param("delete node node-1", "agents/no-", None, id="a node"),
        pytest.param(
            "delete configmap checkout-critical -n prod-web", "agents/critical-configmaps", None, id="critical"
        ),
        pytest.param("delete deployment web -n shop", "no rule allows", None, id="not their namespace"),
        pytest.param("exec -n shop deploy/web -- id", "agents/execute", None, id="exec"),
        pytest.param("port-forward -n shop deploy/web 0:80", "agents/no-tunnels", None, id="port-forward"),
        pytest.param(
            "create clusterrolebinding x --clusterrole=cluster-admin --user=me", "agents/no-escalate", None, id="RBAC"
        ),
        pytest.param("create namespace agent-two", "agents/new-namespace", None, id="a new namespace"),
        pytest.param("create -f -", "agents/workload-service-account", POD, id="a deputy"),
        pytest.param("get --raw /api/v1/namespaces/shop/services/web/proxy/", "agents/no-tunnels", None, id="a proxy"),
        pytest.param("get --raw /metrics", "agents/no-secrets", None, id="metrics"),
        pytest.param("delete serviceaccount gateway -n tollgate", "denies this", None, id="the gateway itself"),
    ],
)
def test_refused(kubectl, controlplane, command, rule, stdin):
    since = controlplane.audit_position()
    done = kubectl(*command.split(), input=stdin)
    assert done.returncode != 0
    assert rule in done.stderr
    assert "<html>" not in done.stderr
    time.sleep(0.1)
    came = {(e["verb"], e["requestURI"]) for e in arrived(controlplane, since)}
    writes = {a for a in came if a[0] not in ("get", "list", "watch")}
    assert not writes
    assert not {a for a in came if "secrets" in a[1] or "exec" in a[1] or "proxy" in a[1] or "token" in a[1]}


def test_the_oracle_of_these_tests_sees_what_passes(kubectl, controlplane):
    since = controlplane.audit_position()
    assert (
        kubectl("label", "configmap", "mine", "-n", "agent-one", f"at=t{time.time_ns()}", "--overwrite").returncode == 0
    )
    controlplane.wait_for_audit(lambda e: e["verb"] == "patch", since=since)


def test_an_engineer_is_refused_too_until_a_policy_says_who_people_are(controlplane, default_gateway, engineer_token):
    done = controlplane.run_kubectl(
        "delete", "namespace", "shop", kubeconfig=default_gateway.kubeconfig("engineer", engineer_token), check=False
    )
    assert "agents/delete-namespace" in done.stderr


FORGED = {
    "Audit-ID": "forged-by-the-client",
    "X-Forwarded-For": "6.6.6.6",
    "X-Real-IP": "6.6.6.6",
    "Forwarded": "for=6.6.6.6",
    "Cookie": "session=client-cookie",
    "X-Custom": "client-custom",
}


@pytest.mark.attack("credentials")
def test_nothing_of_the_clients_making_arrives(controlplane, default_gateway, agent_token):
    since = controlplane.audit_position()
    path = "/api/v1/namespaces/agent-one/configmaps/mine"
    answer = client.request(
        default_gateway.port, default_gateway.ca_file, "GET", path, token=agent_token, headers=FORGED
    )
    assert answer.status == 200
    (event,) = [e for e in controlplane.audit_events(since) if e["requestURI"] == path]
    assert event["sourceIPs"] == ["127.0.0.1"]
    assert event["auditID"] != "forged-by-the-client"
    assert event["user"]["username"] == "system:serviceaccount:tollgate:gateway"
    assert event["impersonatedUser"]["username"] == "tollgate:system:serviceaccount:agents:ci-agent"
    assert set(event["impersonatedUser"]["groups"]) == {
        "tollgate:system:serviceaccounts", "tollgate:system:serviceaccounts:agents", "system:authenticated",
    }  # fmt: skip
    assert agent_token not in json.dumps(event)


@pytest.mark.attack("credentials")
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Impersonate-User": "system:admin"}, id="Impersonate-User"),
        pytest.param({"impersonate-group": "system:masters"}, id="Impersonate-Group"),
        pytest.param({"Impersonate_User": "system:admin"}, id="with an underscore"),
        pytest.param({"X-Remote-User": "admin"}, id="front proxy"),
        pytest.param({"Connection": "Authorization"}, id="Connection names a header"),
        pytest.param({"Upgrade": "h2c", "Connection": "Upgrade"}, id="h2c"),
        pytest.param({"Transfer-Encoding": "chunked", "Content-Length": "3"}, id="two framings"),
    ],
)
def test_refused_headers_never_arrive(controlplane, default_gateway, agent_token, headers):
    since = controlplane.audit_position()
    answer = client.request(
        default_gateway.port, default_gateway.ca_file, "GET", "/api/v1/pods", token=agent_token, headers=headers
    )
    assert answer.status in (400, 403)
    assert json.loads(answer.body)["kind"] == "Status"
    assert not arrived(controlplane, since)


@pytest.mark.attack("two parsers")
@pytest.mark.parametrize(
    "path",
    ["/api/v1//pods", "/api/v1/./pods", "/api/v1/namespaces/../secrets", "/%61pi/v1/secrets", "/api/v1/secrets/",
     "/api/v1/namespaces/shop%2fsecrets", "/api/v1/pods;a=b", "/api/v1/pods?dryRun=All&dryRun="],
)  # fmt: skip
def test_refused_paths_never_arrive(controlplane, default_gateway, agent_token, path):
    since = controlplane.audit_position()
    answer = client.request(default_gateway.port, default_gateway.ca_file, "GET", path, token=agent_token)
    assert answer.status == 400, answer.body
    assert not arrived(controlplane, since)


@pytest.mark.attack("credentials")
@pytest.mark.parametrize("token", [None, "", "nonsense", "a.b.c"], ids=["none", "empty", "nonsense", "not a JWT"])
def test_no_token_no_request(controlplane, default_gateway, token):
    since = controlplane.audit_position()
    answer = client.request(default_gateway.port, default_gateway.ca_file, "GET", "/api/v1/pods", token=token)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "kubectl create token" in answer.message
    assert not arrived(controlplane, since)


@pytest.mark.attack("credentials")
def test_a_token_for_the_api_server_is_not_one_for_the_gateway(controlplane, default_gateway):
    token = controlplane.token("agents", "ci-agent", audience=None)
    answer = client.request(default_gateway.port, default_gateway.ca_file, "GET", "/api/v1/pods", token=token)
    assert answer.status == 401


@pytest.mark.attack("credentials")
def test_a_token_for_the_gateway_is_not_one_for_the_api_server(controlplane, agent_token):
    assert controlplane.request("GET", "/api/v1/pods", token=agent_token)[0] == 401


@pytest.mark.attack("credentials")
def test_a_deleted_service_account_stops_at_once(controlplane, default_gateway):
    controlplane.run_kubectl("create", "serviceaccount", "leaver", "-n", "agents")
    token = controlplane.token("agents", "leaver")

    def status():
        return client.request(default_gateway.port, default_gateway.ca_file, "GET", "/version", token=token).status

    assert status() != 401
    controlplane.run_kubectl("delete", "serviceaccount", "leaver", "-n", "agents")
    deadline = time.monotonic() + 15  # a review is believed for 10 seconds
    while status() != 401:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_messages_are_as_clients_need_them(default_gateway, agent_token):
    answer = client.request(
        default_gateway.port, default_gateway.ca_file, "DELETE", "/api/v1/namespaces/shop", token=agent_token
    )
    assert answer.status == 403
    assert "retry-after" not in answer.headers
    message = answer.message
    assert message.startswith("rule agents/delete-namespace ")
    assert len(message) < 500
    assert not set(message) & set('"\\\n')
    assert "not found" not in message.lower()
