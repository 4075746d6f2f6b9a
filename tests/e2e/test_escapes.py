"""
Known escapes, each named by its CVE or its mechanism, against the policy as it is shipped. The agent is
an administrator to RBAC, so that nothing else stops it; the API server's audit log says what arrived.
"""

import json
import time

import pytest

from tests.e2e import client
from tests.e2e.rawclient import GET, UPGRADE, head, reached, statuses

pytestmark = pytest.mark.e2e

OWN = "agent-escapes"  # a namespace of the agents'
APPS, RBAC = "/apis/apps/v1", "/apis/rbac.authorization.k8s.io/v1"
JSON_PATCH, MERGE = "application/json-patch+json", "application/merge-patch+json"
STRATEGIC, APPLY = "application/strategic-merge-patch+json", "application/apply-patch+yaml"
WEBSOCKET = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
             "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
             "Sec-WebSocket-Protocol": "v5.channel.k8s.io"}  # fmt: skip


def meta(name="x", **more):
    return {"metadata": {"name": name, **more}}


def spec(**more):
    return {"containers": [{"name": "c", "image": "x"}], **more}


def mounting(secret):
    return spec(volumes=[{"name": "v", "secret": {"secretName": secret}}])


def workload(kind, pod):
    template = {"metadata": {"labels": {"a": "b"}}, "spec": pod}
    once = {"metadata": {"labels": {"a": "b"}}, "spec": {**pod, "restartPolicy": "Never"}}
    match kind:
        case "Pod":
            return {"kind": kind, "apiVersion": "v1", **meta(), "spec": pod}
        case "Job":
            return {"kind": kind, "apiVersion": "batch/v1", **meta(), "spec": {"template": once}}
        case "CronJob":
            job = {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": once}}}
            return {"kind": kind, "apiVersion": "batch/v1", **meta(), "spec": job}
    selector = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    return {"kind": kind, "apiVersion": "apps/v1", **meta(), "spec": selector}


def binding(role="cluster-admin", kind="RoleBinding"):
    who = {"kind": "User", "name": "tollgate:system:serviceaccount:agents:ci-agent"}
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    return {"kind": kind, "apiVersion": "rbac.authorization.k8s.io/v1", **meta(), "roleRef": ref, "subjects": [who]}


ALL_RULES = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
ENDPOINTS = {"kind": "Endpoints", "apiVersion": "v1", **meta(),
             "subsets": [{"addresses": [{"ip": "169.254.169.254"}], "ports": [{"port": 80}]}]}  # fmt: skip
SLICE = {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", **meta(), "addressType": "IPv4",
         "endpoints": [{"addresses": ["127.0.0.1"]}], "ports": [{"port": 443}]}  # fmt: skip
HOOK = {"clientConfig": {"url": "https://evil.example/"}, "conversionReviewVersions": ["v1"]}
CONVERSION = {"spec": {"conversion": {"strategy": "Webhook", "webhook": HOOK}}}
CSR = {"spec": {"request": "LS0t", "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}}
APPROVED = {"status": {"conditions": [{"type": "Approved", "status": "True"}]}}
MUTATING = {"kind": "MutatingWebhookConfiguration", "apiVersion": "admissionregistration.k8s.io/v1", **meta()}
API_SERVICE = {"kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1", **meta("v1.evil.example"),
               "spec": {"group": "evil.example", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1,
                        "insecureSkipTLSVerify": True, "service": {"name": "s", "namespace": OWN}}}  # fmt: skip
OWNER = {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "gone", "uid": "0"}]}}
TOKEN_SECRET = {"type": "kubernetes.io/service-account-token",
                **meta(annotations={"kubernetes.io/service-account.name": "default"})}  # fmt: skip
DEBUG = {"spec": {"ephemeralContainers": [{"name": "d", "image": "x", "command": ["sh"]}]}}
MOUNTING_DEBUG = {"spec": {"ephemeralContainers": [
    {"name": "d", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/s"}]}]}}  # fmt: skip
NS = f"/api/v1/namespaces/{OWN}"
SHOP = "/api/v1/namespaces/shop"
EXEC = "command=id&stdout=true"


def row(label, method, path, says, body=None, media=None, headers=None):
    return pytest.param(method, path, says, body, media, headers, id=label)


TUNNELS, EXECUTE, ESCALATE, SECRETS = "agents/no-tunnels", "agents/execute", "agents/no-escalate", "agents/no-secrets"
NOT_PLAIN, NOT_THEIRS = "plain", "no rule allows"
ESCAPES = [
    row("CVE-2022-3162, another group by dots", "GET", "/apis/apps/v1/../../api/v1/secrets", NOT_PLAIN),
    row("CVE-2022-3162, escaped dots", "GET", "/apis/apps/v1/%2e%2e/%2e%2e/api/v1/secrets", NOT_PLAIN),
    row("CVE-2019-11247, a cluster-wide object by a namespace", "PATCH",
        f"{RBAC}/namespaces/{OWN}/clusterroles/cluster-admin", ESCALATE, {"rules": ALL_RULES}, MERGE),
    row("CVE-2019-11253, a YAML bomb", "POST", f"{NS}/configmaps", "anchors",
        b"a: &a [x,x,x]\nb: &b [*a,*a,*a]\nkind: ConfigMap\n", "application/yaml"),
    row("CVE-2019-1002100, a JSON patch of 10 001 copies", "PATCH", f"{NS}/configmaps/c", "10000 operations",
        [{"op": "copy", "from": "/data", "path": "/data/x"}] * 10_001, JSON_PATCH),
    row("CVE-2020-8554, external IPs", "POST", f"{NS}/services", ESCALATE,
        {**meta(), "spec": {"externalIPs": ["10.1.1.1"], "ports": [{"port": 443}]}}),
    row("CVE-2020-8554, a load balancer's status", "PATCH", f"{NS}/services/s/status", ESCALATE,
        {"status": {"loadBalancer": {"ingress": [{"ip": "10.1.1.1"}]}}}, MERGE),
    row("CVE-2020-8555, a storage class", "POST", "/apis/storage.k8s.io/v1/storageclasses", "agents/", meta()),
    row("CVE-2021-25735, a node's labels", "PATCH", "/api/v1/nodes/node-1", ESCALATE,
        {"metadata": {"labels": {"a": "b"}}}, MERGE),
    row("CVE-2021-25740, Endpoints to the metadata address", "POST", f"{NS}/endpoints", NOT_THEIRS, ENDPOINTS),
    row("CVE-2021-25737, an EndpointSlice to loopback", "POST",
        f"/apis/discovery.k8s.io/v1/namespaces/{OWN}/endpointslices", NOT_THEIRS, SLICE),
    row("CVE-2023-2728, an ephemeral container", "PATCH", f"{NS}/pods/web/ephemeralcontainers", EXECUTE, DEBUG,
        STRATEGIC),
    row("CVE-2023-2728, one that mounts the pod's Secrets", "PATCH", f"{NS}/pods/web/ephemeralcontainers", EXECUTE,
        MOUNTING_DEBUG, STRATEGIC),
    row("CVE-2023-2728, by PUT", "PUT", f"{NS}/pods/web/ephemeralcontainers", EXECUTE, {**meta("web"), **DEBUG}),
    row("CVE-2023-2728, in a patch of the pod", "PATCH", f"{NS}/pods/web", "", DEBUG, STRATEGIC),
    row("CVE-2024-10220, gitRepo", "POST", f"{NS}/pods", "agents/no-host-access",
        workload("Pod", spec(volumes=[{"name": "v", "gitRepo": {"repository": "https://x/y"}}]))),
    row("CVE-2021-25741, a host path", "POST", f"{NS}/pods", "agents/no-host-access",
        workload("Pod", spec(volumes=[{"name": "v", "hostPath": {"path": "/"}}]))),
    # Tunnels
    row("nodes/proxy, exec by GET upgrade", "GET", f"/api/v1/nodes/node-1/proxy/exec/shop/web/web?{EXEC}", "agents/",
        headers=WEBSOCKET),
    row("nodes/proxy, run by POST", "POST", "/api/v1/nodes/node-1/proxy/run/shop/web/web?cmd=id", "agents/"),
    row("nodes/proxy, another port", "GET", "/api/v1/nodes/https:node-1:10250/proxy/pods", "agents/"),
    row("nodes/proxy, read only", "GET", "/api/v1/nodes/node-1/proxy/configz", "agents/"),
    row("/api/v1/proxy", "GET", "/api/v1/proxy/nodes/node-1/pods", "agents/"),
    row("/api/v1/proxy of a service", "GET", f"/api/v1/proxy/namespaces/{OWN}/services/web", "agents/"),
    row("services/proxy to the gateway", "GET", "/api/v1/namespaces/tollgate/services/https:tollgate:8443/proxy/api",
        "agents/"),
    row("services/proxy to the API server", "GET",
        "/api/v1/namespaces/default/services/https:kubernetes:443/proxy/api/v1/secrets",
        TUNNELS),
    row("pods/proxy to the metadata address", "GET", f"{NS}/pods/169.254.169.254:80/proxy/latest/meta-data", TUNNELS),
    row("services/proxy to the metadata address", "GET", f"{NS}/services/http:metadata:80/proxy/latest/meta-data",
        TUNNELS),
    row("pods/proxy by POST", "POST", f"{NS}/pods/web:8080/proxy/", TUNNELS),
    row("pods/proxy, dots behind it", "GET", f"{NS}/pods/web/proxy/..%2f..%2fsecrets", NOT_PLAIN),
    row("portforward", "GET", f"{SHOP}/pods/web/portforward?ports=80", TUNNELS, headers=WEBSOCKET),
    row("exec by GET", "GET", f"{SHOP}/pods/web/exec?{EXEC}", EXECUTE, headers=WEBSOCKET),
    row("exec by GET, no upgrade", "GET", f"{SHOP}/pods/web/exec?{EXEC}", EXECUTE),
    row("exec by POST", "POST", f"{SHOP}/pods/web/exec?{EXEC}", EXECUTE),
    row("exec in a namespace of theirs", "GET", f"{NS}/pods/web/exec?{EXEC}", EXECUTE, headers=WEBSOCKET),
    row("attach", "GET", f"{SHOP}/pods/web/attach?stdin=true", EXECUTE, headers=WEBSOCKET),
    row("a subresource nobody knows", "POST", f"{NS}/pods/web/checkpoint", "agents/", {}),
    # Deleting without DELETE
    row("eviction as delete", "POST", f"{SHOP}/pods/web/eviction", NOT_THEIRS, {"metadata": {}}),
    row("eviction in kube-system", "POST", "/api/v1/namespaces/kube-system/pods/p/eviction", "no-system-namespaces",
        meta("p")),
    row("scale to nothing", "PATCH", f"{APPS}/namespaces/shop/deployments/web/scale", NOT_THEIRS,
        {"spec": {"replicas": 0}},
        MERGE),
    row("a pod's status", "PATCH", f"{SHOP}/pods/web/status", NOT_THEIRS, {"status": {"phase": "Failed"}}, MERGE),
    row("a node's status", "PATCH", "/api/v1/nodes/node-1/status", ESCALATE, {"status": {"capacity": {"pods": "0"}}},
        MERGE),
    row("a namespace's finalize", "PUT", f"{SHOP}/finalize", "agents/", {**meta("shop"), "spec": {"finalizers": []}}),
    row("ownerReferences as delayed delete", "PATCH", f"{SHOP}/configmaps/settings", NOT_THEIRS, OWNER, MERGE),
    row("finalizers taken away", "PATCH", f"{SHOP}/configmaps/settings", NOT_THEIRS,
        {"metadata": {"finalizers": None}}, MERGE),
    row("a NoExecute taint", "PATCH", "/api/v1/nodes/node-1", ESCALATE,
        {"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}}, MERGE),
    row("all of a namespace's", "DELETE", f"{NS}/configmaps", "agents/"),
    row("all, as a dry run that is none", "DELETE", f"{NS}/configmaps?dryRun=All", "agents/", {}),
    row("a namespace", "DELETE", SHOP, "agents/delete-namespace"),
    row("a definition, with all its objects", "DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/x.y",
        "agents/"),
    # Names that are not said
    row("generateName", "POST", f"{NS}/configmaps", "agents/critical-configmaps", {"metadata": {"generateName": "co"}}),
    row("server-side apply that creates a namespace", "PATCH", "/api/v1/namespaces/agent-new?fieldManager=x",
        "agents/new-namespace",
        {"apiVersion": "v1", "kind": "Namespace", **meta("agent-new")}, APPLY),
    row("server-side apply that creates a Secret", "PATCH", f"{NS}/secrets/s?fieldManager=x&force=true", SECRETS,
        {"apiVersion": "v1", "kind": "Secret", **meta("s"), "stringData": {"a": "b"}}, APPLY),
    row("server-side apply of RBAC", "PATCH", f"{RBAC}/clusterrolebindings/x?fieldManager=x", ESCALATE,
        binding(kind="ClusterRoleBinding"), APPLY),
    # Deputies
    *(
        row(f"a {kind} that mounts a Secret", "POST", f"{where}/namespaces/{OWN}/{resource}", "agents/workload-secret",
            workload(kind, mounting("db-password")))
        for kind, where, resource in (
            ("Pod", "/api/v1", "pods"), ("Deployment", APPS, "deployments"), ("StatefulSet", APPS, "statefulsets"),
            ("Job", "/apis/batch/v1", "jobs"), ("CronJob", "/apis/batch/v1", "cronjobs"),
        )
    ),
    *(
        row(f"a {kind} that runs as another", "POST", f"{where}/namespaces/{OWN}/{resource}",
            "agents/workload-service-account", workload(kind, spec(serviceAccountName="deployer")))
        for kind, where, resource in (
            ("Pod", "/api/v1", "pods"), ("Deployment", APPS, "deployments"), ("CronJob", "/apis/batch/v1", "cronjobs"),
        )
    ),
    row("a DaemonSet", "POST", f"{APPS}/namespaces/{OWN}/daemonsets", NOT_THEIRS, workload("DaemonSet", spec())),
    row("a pod that chooses its node", "POST", f"{NS}/pods", "agents/no-host-access",
        workload("Pod", spec(nodeName="node-1"))),
    row("a pod before all others", "POST", f"{NS}/pods", "agents/no-host-access",
        workload("Pod", spec(priorityClassName="system-node-critical"))),
    row("a ServiceAccount's pull secrets", "PATCH", f"{NS}/serviceaccounts/default", NOT_THEIRS,
        {"imagePullSecrets": [{"name": "db-password"}]}, MERGE),
    row("binding a pod to a node", "POST", f"{NS}/pods/web/binding", ESCALATE,
        {**meta("web"), "target": {"kind": "Node", "name": "node-1"}}),
    # Who may do what
    row("TokenRequest", "POST", f"{NS}/serviceaccounts/default/token", "agents/",
        {"spec": {"audiences": ["tollgate"]}}),
    row("TokenRequest, dry run", "POST", f"{NS}/serviceaccounts/default/token?dryRun=All", "agents/", {"spec": {}}),
    row("a token Secret", "POST", f"{NS}/secrets", "agents/", TOKEN_SECRET),
    row("a bootstrap token", "POST", "/api/v1/namespaces/kube-system/secrets", "agents/",
        meta("bootstrap-token-abcdef")),
    row("a certificate for oneself", "POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests", "agents/",
        {**meta(), **CSR}),
    row("CSR approval", "PUT", "/apis/certificates.k8s.io/v1/certificatesigningrequests/x/approval", ESCALATE,
        {**meta(), **CSR, **APPROVED}),
    row("bind in a namespace of theirs", "POST", f"{RBAC}/namespaces/{OWN}/rolebindings", ESCALATE, binding()),
    row("bind in the cluster", "POST", f"{RBAC}/clusterrolebindings", ESCALATE, binding(kind="ClusterRoleBinding")),
    row("escalate a role", "POST", f"{RBAC}/namespaces/{OWN}/roles", ESCALATE, {**meta(), "rules": ALL_RULES}),
    row("escalate by an aggregated role", "POST", f"{RBAC}/clusterroles", ESCALATE,
        {**meta(labels={"rbac.authorization.k8s.io/aggregate-to-admin": "true"}), "rules": ALL_RULES}),
    row("impersonate by SubjectAccessReview", "POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", SECRETS,
        {"spec": {"user": "system:admin", "resourceAttributes": {"verb": "get", "resource": "secrets"}}}),
    row("TokenReview", "POST", "/apis/authentication.k8s.io/v1/tokenreviews", SECRETS, {"spec": {"token": "x"}}),
    row("a CRD's conversion webhook", "PATCH", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/x.y", ESCALATE,
        CONVERSION, MERGE),
    row("an aggregated API", "POST", "/apis/apiregistration.k8s.io/v1/apiservices", ESCALATE, API_SERVICE),
    row("deleting a ValidatingAdmissionPolicy", "DELETE",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/guard", ESCALATE),
    row("deleting its binding", "DELETE",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/guard", ESCALATE),
    row("a mutating webhook", "POST", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", ESCALATE,
        MUTATING),
    row("a priority class", "POST", "/apis/scheduling.k8s.io/v1/priorityclasses", ESCALATE, {**meta(), "value": 1}),
    row("labels that move a namespace out of a selector", "PATCH", "/api/v1/namespaces/prod-web", ESCALATE,
        {"metadata": {"labels": {"environment": "test"}}}, MERGE),
    row("Pod Security taken off a namespace", "PATCH", f"/api/v1/namespaces/{OWN}", ESCALATE,
        [{"op": "add", "path": "/metadata/labels/pod-security.kubernetes.io~1enforce", "value": "privileged"}],
        JSON_PATCH),
    row("a leader's Lease", "PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-controller-manager",
        "no-system-namespaces", {**meta("kube-controller-manager"), "spec": {"holderIdentity": "me"}}),
    row("a node's Lease", "PATCH", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1",
        "no-system-namespaces", {"spec": {"holderIdentity": "me"}}, MERGE),
    row("the Endpoints of the API server", "PUT", "/api/v1/namespaces/default/endpoints/kubernetes", NOT_THEIRS,
        {**ENDPOINTS, **meta("kubernetes")}),
    row("a quota taken away", "DELETE", f"{NS}/resourcequotas/q", NOT_THEIRS),
    row("a volume of the host's", "POST", "/api/v1/persistentvolumes", ESCALATE,
        {**meta(), "spec": {"hostPath": {"path": "/"}, "capacity": {"storage": "1Gi"}}}),
    row("a Service to the outside", "POST", f"{NS}/services", "agents/public-service",
        {**meta(), "spec": {"type": "NodePort", "ports": [{"port": 443}]}}),
    row("a critical ConfigMap", "PATCH", "/api/v1/namespaces/kube-system/configmaps/aws-auth", "agents/",
        {"data": {"mapUsers": "x"}}, MERGE),
    # Reading Secrets
    row("a watch of Secrets", "GET", "/api/v1/secrets?watch=1&timeoutSeconds=1", SECRETS),
    row("a watch of one Secret", "GET", f"{SHOP}/secrets?watch=true&fieldSelector=metadata.name%3Ddb-password",
        SECRETS),
    row("a watch by path", "GET", "/api/v1/watch/namespaces/shop/secrets/db-password", SECRETS),
    row("a watch-list", "GET", f"{SHOP}/secrets?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
        SECRETS),
    row("HEAD of a Secret", "HEAD", f"{SHOP}/secrets/db-password", ""),
    row("a Table of Secrets", "GET", f"{SHOP}/secrets?includeObject=Object", SECRETS,
        headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}),
    row("a delete that answers with the Secret", "DELETE", f"{SHOP}/secrets/db-password?dryRun=All", SECRETS),
    row("a JSON patch that copies the value", "PATCH", f"{SHOP}/secrets/db-password?dryRun=All", "",
        [{"op": "copy", "from": "/data/password", "path": "/metadata/annotations/x"}], JSON_PATCH),
    row("etcd's and others' metrics", "GET", "/metrics", SECRETS),
    row("profiles of the API server", "GET", "/debug/pprof/heap", SECRETS),
    row("logs of the node", "GET", "/logs/", SECRETS),
    # The gateway itself
    row("the gateway's namespace", "DELETE", "/api/v1/namespaces/tollgate", "agents/"),
    row("the gateway's ServiceAccount", "DELETE", "/api/v1/namespaces/tollgate/serviceaccounts/gateway", "agents/"),
    row("the gateway's role", "PATCH", f"{RBAC}/clusterroles/tollgate-gateway", "agents/", {"rules": ALL_RULES}, MERGE),
    row("exec into the gateway", "GET", f"/api/v1/namespaces/tollgate/pods/tollgate-0/exec?{EXEC}", "agents/",
        headers=WEBSOCKET),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def own_namespace(controlplane):
    controlplane.run_kubectl("create", "namespace", OWN)
    for name in ("web", "c"):
        controlplane.run_kubectl("create", "configmap", name, "-n", OWN)
    controlplane.run_kubectl("create", "serviceaccount", "deployer", "-n", OWN)
    secret = {"name": "v", "secret": {"secretName": "db-password", "optional": True}}
    pod = {"spec": {"nodeName": "node-1", "terminationGracePeriodSeconds": 0, "volumes": [secret]}}
    controlplane.run_kubectl("run", "web", "--image=x", "-n", OWN, "--overrides", json.dumps(pod))
    deadline = time.monotonic() + 30
    while "web" not in controlplane.pods(OWN):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield
    controlplane.run_kubectl("delete", "namespace", OWN, "--wait=false")


@pytest.mark.attack("known escapes")
@pytest.mark.parametrize(("method", "path", "says", "body", "media", "headers"), ESCAPES)
def test_escape(controlplane, default_gateway, agent_token, result, method, path, says, body, media, headers):
    since, pod = controlplane.audit_position(), controlplane.pods("shop", "app=web")[0]
    path = path.replace(f"{SHOP}/pods/web", f"{SHOP}/pods/{pod}")
    raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    more = {**(headers or {}), **({"Content-Type": media or "application/json"} if raw is not None else {})}
    answer = client.request(
        default_gateway.port, default_gateway.ca_file, method, path, token=agent_token, body=raw, headers=more
    )
    # 422: the API server's own word on the dry run that an approver would have seen.
    assert answer.status in (400, 403, 422), (answer.status, answer.body[:300])
    said = answer.message if method != "HEAD" else ""
    assert says in said, said
    assert not reached(controlplane, since)  # the gateway's own questions are no client's
    result(f"{answer.status} {answer.reason}: {said[:80]}")


@pytest.mark.attack("known escapes")
def test_cve_2018_1002105_behind_an_upgrade_that_failed(controlplane, recorder, recorded_gateway, agent_token):
    """The API server refuses the upgrade; what comes behind it on the connection is judged as any request."""
    position, pod = recorder.position(), controlplane.pods("shop", "app=web")[0]
    path = f"/api/v1/namespaces/shop/pods/{pod}/exec?{EXEC}"
    handshake = UPGRADE + b"websocket\r\nSec-WebSocket-Version: 777\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    handshake += b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n"
    data = head(f"GET {path} HTTP/1.1".encode(), agent_token.encode(), handshake)
    behind = head(GET, agent_token.encode(), b"Impersonate-User: system:admin\r\n")
    assert statuses(recorded_gateway, data + behind, 2) == (400, 403)
    assert [one.target for one in recorder.since(position)] == [path]
    nobody = GET + b"\r\nHost: a\r\n\r\n"
    assert statuses(recorded_gateway, data + nobody, 2) == (400, 401)


@pytest.mark.attack("known escapes")
@pytest.mark.parametrize(
    ("command", "says"),
    [
        pytest.param("debug node/node-1 --image=x --profile=sysadmin", "agents/no-", id="debug of a node"),
        pytest.param("debug web -n agent-escapes --image=x --container=d", "agents/", id="debug of a pod"),
        pytest.param("debug web -n agent-escapes --image=x --copy-to=y", "agents/", id="debug of a copy"),
        pytest.param("drain node-1 --force --ignore-daemonsets", "agents/no-escalate", id="drain"),
        pytest.param("certificate approve x", "", id="certificate approve"),
        pytest.param("create token default -n agent-escapes", "agents/no-", id="create token"),
        pytest.param("get secret db-password -n shop -o yaml", "agents/no-secrets", id="get secret"),
        pytest.param("get --raw /api/v1/namespaces/shop/secrets?watch", "agents/no-secrets", id="get --raw"),
        pytest.param("cp shop/web:/etc/passwd /tmp/x", "", id="cp"),
    ],
)
def test_by_kubectl(controlplane, default_gateway, agent_token, command, says):
    since = controlplane.audit_position()
    done = controlplane.run_kubectl(
        *command.split(),
        kubeconfig=default_gateway.kubeconfig("agent", agent_token),
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert says in done.stderr
    events = controlplane.audit_events(since)
    came = {(e["verb"], e["requestURI"]) for e in events if not e["auditID"].startswith("tollgate-")}
    assert not {
        one for one in came if one[0] not in ("get", "list", "watch") or "secrets" in one[1] or "exec" in one[1]
    }


@pytest.mark.attack("known escapes", "harmless")
@pytest.mark.parametrize(
    ("body", "media"),
    [
        pytest.param(OWNER, MERGE, id="ownerReferences in a namespace of theirs"),
        pytest.param({"metadata": {"finalizers": ["a.example/b"]}}, MERGE, id="a finalizer in a namespace of theirs"),
    ],
)
def test_what_they_may_do_to_their_own(controlplane, default_gateway, agent_token, result, body, media):
    """It deletes, or keeps from being deleted, what the agent may delete itself; and is counted as a delete."""
    answer = client.request(
        default_gateway.port, default_gateway.ca_file, "PATCH", f"{NS}/configmaps/web?dryRun=All", token=agent_token,
        body=json.dumps(body).encode(), headers={"Content-Type": media},
    )  # fmt: skip
    assert answer.status in (200, 403)
    result(f"{answer.status}, in a namespace where it may delete")
