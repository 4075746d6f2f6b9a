import pytest

from addons.core import canonical, impacts, requestinfo
from addons.core.model import Impact

RBAC = "/apis/rbac.authorization.k8s.io/v1"
NS = "/api/v1/namespaces/x"
APPS = "/apis/apps/v1"


def of(method, url, own="tollgate"):
    target = canonical.read(method, url)
    info = requestinfo.parse(method, target.path, target.query)
    found = impacts.of_resource(info, own) if info.is_resource_request else impacts.of_page(method, target.path)
    return " ".join(impact.word for impact in sorted(found))


@pytest.mark.parametrize(
    ("method", "url", "expected"),
    [
        # Pages
        *(
            pytest.param("GET", url, "meta", id=url)
            for url in [
                "/",
                "/api",
                "/api/v1",
                "/apis",
                "/apis/apps",
                "/apis/apps/v1",
                "/version",
                "/healthz",
                "/livez/ping",
                "/readyz",
                "/openapi/v2",
                "/openapi/v3/apis/apps/v1",
                "/openapi/v3",
                "/openid/v1/jwks",
                "/.well-known/openid-configuration",
            ]
        ),
        pytest.param("HEAD", "/healthz", "meta", id="head"),
        *(
            pytest.param("GET", url, "read reveal", id=url)
            for url in ("/metrics", "/logs/x", "/debug/pprof/", "/version/x", "/configz", "/healthz/", "/API/v1")
        ),
        pytest.param("POST", "/api", "read write reveal execute", id="POST to a page"),
        pytest.param("PUT", "/debug/flags/v", "read write reveal execute", id="PUT to a page"),
        # Verbs
        pytest.param("GET", f"{NS}/pods", "read", id="list"),
        pytest.param("GET", f"{NS}/pods?watch=1", "read", id="watch"),
        pytest.param("GET", f"{NS}/pods/p/log", "read", id="log"),
        pytest.param("POST", f"{NS}/configmaps", "write", id="create"),
        pytest.param("PUT", f"{NS}/configmaps/c", "write", id="update"),
        pytest.param("PATCH", f"{NS}/configmaps/c", "write", id="patch"),
        pytest.param("DELETE", f"{NS}/configmaps/c", "delete", id="delete"),
        pytest.param("DELETE", f"{NS}/configmaps", "delete mass-delete", id="deletecollection"),
        pytest.param(
            "DELETE", f"{NS}/pods?fieldSelector=metadata.name%3Dp", "delete mass-delete", id="still a collection"
        ),
        pytest.param("POST", "/apis/example.com/v1/namespaces/x/gizmos", "write", id="custom resource"),
        # One delete, much gone
        pytest.param("DELETE", NS, "delete mass-delete", id="namespace"),
        pytest.param("DELETE", "/api/v1/nodes/n", "delete mass-delete escalate", id="node"),
        pytest.param("DELETE", "/api/v1/persistentvolumes/v", "delete mass-delete escalate", id="volume"),
        pytest.param(
            "DELETE",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/a",
            "delete mass-delete escalate",
            id="crd",
        ),
        # Secrets
        pytest.param("GET", f"{NS}/secrets/s", "read reveal", id="get secret"),
        pytest.param("GET", "/api/v1/secrets?watch=1", "read reveal", id="watch secrets"),
        pytest.param("POST", f"{NS}/secrets", "write reveal", id="create secret"),
        pytest.param("PATCH", f"{NS}/secrets/s", "write reveal", id="patch secret"),
        pytest.param("DELETE", f"{NS}/secrets/s", "reveal delete", id="delete secret: the answer may hold it"),
        pytest.param("DELETE", f"{NS}/secrets", "reveal delete mass-delete", id="delete secrets"),
        pytest.param("GET", "/apis/example.com/v1/secrets", "read", id="another group's secrets"),
        pytest.param(
            "PATCH", "/api/v1/namespaces/kube-system/secrets/bootstrap-token-a", "write reveal escalate", id="bootstrap"
        ),
        # Subresources
        pytest.param("PATCH", "/apis/apps/v1/namespaces/x/deployments/d/scale", "write", id="scale"),
        pytest.param("PATCH", "/apis/apps/v1/namespaces/x/deployments/d/status", "write", id="status"),
        pytest.param("PATCH", "/apis/example.com/v1/namespaces/x/gizmos/g/scale", "write", id="custom scale"),
        pytest.param("PATCH", f"{NS}/pods/p/resize", "write", id="resize"),
        pytest.param("POST", f"{NS}/pods/p/eviction", "write delete", id="eviction"),
        *(
            pytest.param(method, f"{NS}/pods/p/{sub}", f"{base} execute", id=f"{method} {sub}")
            for sub in ("exec", "attach", "portforward", "proxy")
            for method, base in (("GET", "read"), ("POST", "write"))
        ),
        pytest.param("GET", f"{NS}/services/s/proxy/x", "read execute", id="service proxy"),
        pytest.param("GET", "/api/v1/nodes/n/proxy/run/x", "read execute escalate", id="node proxy"),
        pytest.param("GET", "/api/v1/nodes/n/metrics", "read execute escalate", id="node, unknown"),
        pytest.param("GET", "/api/v1/proxy/namespaces/x/pods/p", "execute", id="old proxy verb"),
        pytest.param("PATCH", f"{NS}/pods/p/ephemeralcontainers", "write execute", id="ephemeral container"),
        pytest.param("GET", f"{NS}/pods/p/ephemeralcontainers", "read", id="ephemeral containers read"),
        pytest.param("PUT", f"{NS}/pods/p/frobnicate", "write execute", id="unknown subresource"),
        pytest.param("GET", f"{NS}/pods/p/log/x", "read execute", id="more than a subresource"),
        pytest.param("GET", f"{NS}/pods/p/scale/x", "read execute", id="more than a plain subresource"),
        pytest.param(
            "PUT",
            "/apis/subresources.kubevirt.io/v1/namespaces/x/virtualmachineinstances/v/approval",
            "write execute",
            id="a known word of an unknown server",
        ),
        pytest.param("POST", f"{NS}/pods/p/binding", "write escalate", id="pod binding"),
        pytest.param("POST", f"{NS}/bindings", "write escalate", id="binding"),
        pytest.param("POST", f"{NS}/serviceaccounts/s/token", "write reveal escalate", id="token request"),
        pytest.param("POST", f"{NS}/serviceaccounts", "write", id="service account"),
        pytest.param("PUT", f"{NS}/finalize", "write escalate", id="finalize"),
        pytest.param("PATCH", f"{NS}/status", "write", id="namespace status"),
        # Power
        pytest.param("POST", f"{RBAC}/namespaces/x/rolebindings", "write escalate", id="rolebinding"),
        pytest.param("DELETE", f"{RBAC}/clusterroles/c", "delete escalate", id="delete clusterrole"),
        pytest.param("GET", f"{RBAC}/clusterroles", "read", id="read rbac"),
        *(
            pytest.param("PATCH", f"/apis/{group}/v1/{resource}/a", "write escalate", id=resource)
            for group, resource in (
                ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
                ("admissionregistration.k8s.io", "mutatingadmissionpolicies"),
                ("apiregistration.k8s.io", "apiservices"),
                ("apiextensions.k8s.io", "customresourcedefinitions"),
                ("scheduling.k8s.io", "priorityclasses"),
                ("certificates.k8s.io", "clustertrustbundles"),
            )
        ),
        pytest.param(
            "PUT",
            "/apis/certificates.k8s.io/v1/certificatesigningrequests/c/approval",
            "write escalate",
            id="csr approval",
        ),
        pytest.param(
            "PUT", "/apis/certificates.k8s.io/v1/certificatesigningrequests/c/status", "write escalate", id="csr status"
        ),
        pytest.param("POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests", "write", id="csr"),
        pytest.param("PATCH", "/api/v1/nodes/n", "write escalate", id="cordon"),
        pytest.param("PATCH", "/api/v1/nodes/n/status", "write escalate", id="node status"),
        pytest.param("POST", "/api/v1/persistentvolumes", "write escalate", id="volume create"),
        pytest.param("PUT", NS, "write escalate", id="PUT of a namespace carries all labels"),
        pytest.param("PATCH", NS, "write", id="PATCH of a namespace: the body decides"),
        pytest.param("POST", "/api/v1/namespaces", "write", id="new namespace: the body decides"),
        pytest.param("POST", "/apis/storage.k8s.io/v1/storageclasses", "write", id="storage class"),
        # Reviews
        *(
            pytest.param("POST", f"/apis/{group}/v1/{resource}", expected, id=resource)
            for group, resource, expected in (
                ("authorization.k8s.io", "selfsubjectaccessreviews", "meta"),
                ("authorization.k8s.io", "selfsubjectrulesreviews", "meta"),
                ("authentication.k8s.io", "selfsubjectreviews", "meta"),
                ("authentication.k8s.io", "tokenreviews", "read reveal"),
                ("authorization.k8s.io", "subjectaccessreviews", "read reveal"),
                ("authorization.k8s.io", "namespaces/x/localsubjectaccessreviews", "read reveal"),
                ("example.com", "selfsubjectreviews", "write"),
            )
        ),
        # The gateway's own
        pytest.param("PATCH", "/api/v1/namespaces/tollgate/configmaps/c", "write escalate", id="own namespace"),
        pytest.param("DELETE", "/api/v1/namespaces/tollgate/pods/p", "delete escalate", id="own pod"),
        pytest.param("GET", "/api/v1/namespaces/tollgate/pods", "read", id="own pods read"),
        pytest.param("GET", "/api/v1/namespaces/tollgate/secrets/s", "read reveal escalate", id="own credential"),
        pytest.param("GET", "/api/v1/namespaces/tollgate/pods/p/exec", "read execute escalate", id="own exec"),
        pytest.param("PATCH", "/api/v1/namespaces/tollgate", "write escalate", id="own namespace object"),
        pytest.param("GET", "/api/v1/namespaces/tollgate", "read", id="own namespace object read"),
        pytest.param(
            "PATCH", "/apis/storage.k8s.io/v1/storageclasses/tollgate-x", "write escalate", id="own cluster object"
        ),
        pytest.param(
            "DELETE",
            "/apis/storage.k8s.io/v1/storageclasses",
            "delete mass-delete escalate",
            id="a cluster-wide collection may hold own ones",
        ),
        pytest.param("PATCH", "/api/v1/namespaces/x/configmaps/tollgate", "write", id="a namespaced namesake"),
        # Approvals, which the gateway serves itself
        *(
            pytest.param(method, f"/apis/tollgate.dev/v1alpha1/{rest}", expected, id=f"{method} {rest}")
            for method, rest, expected in (
                ("GET", "approvals", "read"),
                ("GET", "approvals/apr-x", "read"),
                ("GET", "grants?watch=1&fieldSelector=metadata.name%3Dgrt-x", "read"),
                ("POST", "accessrequests", "write"),
                ("PATCH", "approvals/apr-x", "write"),
                ("PUT", "accessrequests/tollgate-x", "write"),
                ("DELETE", "accessrequests/tollgate-x", "write"),
                ("DELETE", "grants", "delete mass-delete"),
                ("PATCH", "approvals/apr-x/approve", "write execute"),
            )
        ),
        pytest.param("DELETE", "/apis/example.com/v1/approvals/apr-x", "delete", id="approvals of somebody else"),
        pytest.param("PATCH", f"{NS}/services/s/status", "write escalate", id="a load balancer's address"),
    ],
)
def test_impacts(method, url, expected):
    assert of(method, url) == expected


def test_own_namespace_is_what_it_is_told():
    assert "escalate" in of("PATCH", "/api/v1/namespaces/gate/configmaps/c", own="gate")
    assert "escalate" in of("PATCH", "/api/v1/namespaces/gate", own="gate")
    assert "escalate" not in of("PATCH", "/api/v1/namespaces/tollgate/configmaps/c", own="gate")


def put_at(pointer, value=None):
    return [{"op": "add", "path": pointer, "value": value}]


def by_body(method, url, patch, content, name=""):
    target = canonical.read(method, url)
    info = requestinfo.parse(method, target.path, target.query)
    return {i.word for i in impacts.of_body(info, name or info.name, patch, content, "tollgate")}


ANNOTATION = {"metadata": {"annotations": {"kubernetes.io/service-account.name": "deployer"}}}


@pytest.mark.parametrize(
    ("patch", "content", "escalates"),
    [
        pytest.param("", {"type": "Opaque"}, False, id="opaque"),
        pytest.param("", {}, False, id="no type"),
        pytest.param("", {"type": "kubernetes.io/service-account-token"}, True, id="token"),
        pytest.param("", {"type": "bootstrap.kubernetes.io/token"}, True, id="bootstrap"),
        pytest.param("", {"type": 1}, True, id="type is no string"),
        pytest.param("", ANNOTATION, True, id="annotation"),
        pytest.param("merge", {"data": {"a": "b"}}, False, id="merge data"),
        pytest.param("merge", ANNOTATION, True, id="merge annotation: another account's token"),
        pytest.param("apply", {"type": "kubernetes.io/service-account-token"}, True, id="apply creates"),
        pytest.param("json", [{"op": "add", "path": "/data/a", "value": "b"}], False, id="json patch data"),
        pytest.param(
            "json", [{"op": "add", "path": "/metadata/annotations/x", "value": ""}], True, id="json annotation"
        ),
        pytest.param("json", [{"op": "add", "path": "/metadata", "value": {}}], True, id="json metadata"),
        pytest.param("json", [{"op": "add", "path": "", "value": {}}], True, id="json whole"),
        pytest.param("json", [{"op": "replace", "path": "/type", "value": "x"}], True, id="json type"),
        pytest.param("json", [{"op": "copy", "from": "/data/a", "path": "/data/b"}], True, id="json copy"),
        pytest.param("json", [{"op": "test", "path": "/type", "value": "x"}], False, id="json test"),
    ],
)
def test_token_secrets(patch, content, escalates):
    method, url = ("PATCH", f"{NS}/secrets/s") if patch else ("POST", f"{NS}/secrets")
    assert ("escalate" in by_body(method, url, patch, content)) is escalates


def test_bootstrap_token_by_name():
    assert by_body("POST", f"{NS}/secrets", "", {"data": {}}, name="bootstrap-token-abc") == {"escalate"}


LABELS = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}


@pytest.mark.parametrize(
    ("patch", "content", "escalates"),
    [
        pytest.param("", {"metadata": {"name": "n"}}, False, id="new"),
        pytest.param("", {"metadata": {"name": "n", "labels": None}}, False, id="new, null labels"),
        pytest.param("", {"metadata": {"labels": {"kubernetes.io/metadata.name": "n"}}}, False, id="new, own label"),
        pytest.param(
            "",
            {"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}},
            False,
            id="apply",
        ),
        pytest.param("", LABELS, True, id="new, labelled"),
        pytest.param("", {"metadata": {"annotations": {"a": "b"}}}, True, id="new, annotated"),
        pytest.param("merge", {"spec": {"finalizers": []}}, False, id="merge, beside"),
        pytest.param("merge", LABELS, True, id="merge labels"),
        pytest.param("merge", {"metadata": {"labels": {"a": None}}}, True, id="merge, label away"),
        pytest.param("merge", {"metadata": {"labels": None}}, True, id="merge, labels away"),
        pytest.param("merge", {"metadata": None}, True, id="merge, metadata away"),
        pytest.param("strategic", {"metadata": {"$patch": "replace", "name": "n"}}, True, id="metadata replaced"),
        pytest.param("strategic", {"$patch": "replace"}, True, id="all replaced"),
        pytest.param("apply", {"metadata": {"name": "n"}}, True, id="apply without a label removes it"),
        pytest.param("json", [{"op": "remove", "path": "/metadata/labels/a"}], True, id="json label"),
        pytest.param("json", [{"op": "move", "from": "/metadata/labels", "path": "/metadata/x"}], True, id="json move"),
        pytest.param("json", [{"op": "replace", "path": "/metadata", "value": {}}], True, id="json metadata"),
        pytest.param("json", [{"op": "add", "path": "/spec/finalizers", "value": []}], False, id="json, beside"),
    ],
)
def test_namespace_labels(patch, content, escalates):
    method, url = ("PATCH", NS) if patch else ("POST", "/api/v1/namespaces")
    assert ("escalate" in by_body(method, url, patch, content, name="n")) is escalates


@pytest.mark.parametrize(
    ("patch", "content"),
    [
        pytest.param("", {"spec": {"ephemeralContainers": [{}]}}, id="whole"),
        pytest.param("merge", {"spec": {"ephemeralContainers": [{}]}}, id="merge"),
        pytest.param("merge", {"spec": None}, id="merge null"),
        pytest.param("json", [{"op": "add", "path": "/spec/ephemeralContainers/-", "value": {}}], id="json"),
        pytest.param("json", [{"op": "replace", "path": "/spec", "value": {}}], id="json above"),
    ],
)
def test_ephemeral_containers_by_the_front_door(patch, content):
    assert by_body("PATCH" if patch else "PUT", f"{NS}/pods/p", patch, content) == {"execute"}


@pytest.mark.parametrize(
    ("name", "content", "escalates"),
    [
        pytest.param("tollgate-x", {}, True, id="name"),
        pytest.param("", {"metadata": {"generateName": "tollgate-"}}, True, id="generated name"),
        pytest.param("other", {}, False, id="another"),
    ],
)
def test_own_cluster_objects_are_known_by_the_body(name, content, escalates):
    found = by_body("POST", "/apis/storage.k8s.io/v1/storageclasses", "", content, name=name)
    assert found == ({"escalate"} if escalates else set())


def test_an_access_request_may_have_any_name():
    url = "/apis/tollgate.dev/v1alpha1/accessrequests"
    assert by_body("POST", url, "", {"metadata": {"generateName": "tollgate-"}}) == set()


IPS = {"spec": {"externalIPs": ["203.0.113.7"]}}


@pytest.mark.parametrize(
    ("patch", "content", "escalates"),
    [
        pytest.param("", IPS, True, id="new"),
        pytest.param("merge", IPS, True, id="merge patch"),
        pytest.param("strategic", IPS, True, id="strategic"),
        pytest.param("strategic", {"spec": {"$patch": "replace", **IPS["spec"]}}, True, id="the whole spec replaced"),
        pytest.param("apply", IPS, True, id="apply"),
        pytest.param("json", put_at("/spec/externalIPs", ["203.0.113.7"]), True, id="JSON patch"),
        pytest.param("json", put_at("/spec/externalIPs/-", "203.0.113.7"), True, id="one more"),
        pytest.param("json", put_at("/spec", IPS["spec"]), True, id="in a whole spec"),
        pytest.param("json", [{"op": "copy", "from": "/a", "path": "/spec/externalIPs"}], True, id="from elsewhere"),
        pytest.param("json", [{"op": "test", "path": "/spec/externalIPs", "value": ["a"]}], False, id="a test"),
        pytest.param("", {"spec": {"externalIPs": []}}, False, id="none of them"),
        pytest.param("merge", {"spec": {"externalIPs": None}}, False, id="taken away"),
        pytest.param("strategic", {"spec": {"$patch": "replace", "type": "ClusterIP"}}, False, id="replaced by none"),
        pytest.param("", {"spec": {"type": "LoadBalancer"}}, False, id="a load balancer"),
    ],
)
def test_a_service_that_takes_an_address(patch, content, escalates):
    method, url = ("PATCH", f"{NS}/services/s") if patch else ("POST", f"{NS}/services")
    assert ("escalate" in by_body(method, url, patch, content)) is escalates


def test_own_namespace_created_anew():
    assert by_body("POST", "/api/v1/namespaces", "", {"metadata": {}}, name="tollgate") == {"escalate"}


def test_a_dry_run_lowers_only_what_would_be_stored():
    assert impacts.lowered(frozenset(Impact)) == {
        Impact.META,
        Impact.READ,
        Impact.REVEAL,
        Impact.EXECUTE,
        Impact.ESCALATE,
    }


OWNER = {"metadata": {"ownerReferences": [{"uid": "1"}]}}
JOBS = "/apis/batch/v1/namespaces/x/jobs"
DEPLOYMENT = f"{APPS}/namespaces/x/deployments/d"
NETWORK = "/apis/networking.k8s.io/v1/namespaces/x/networkpolicies"


def template(**spec):
    return {"spec": {"template": {"spec": spec}}}


@pytest.mark.parametrize(
    ("url", "patch", "content", "expected"),
    [
        pytest.param(f"{NS}/configmaps/c", "merge", {"data": {"a": "b"}}, False, id="data"),
        # Finalizers
        pytest.param(f"{NS}/configmaps/c", "merge", {"metadata": {"finalizers": None}}, True, id="finalizers null"),
        pytest.param(
            f"{NS}/configmaps/c", "merge", {"metadata": {"finalizers": ["a"]}}, True, id="another list of them"
        ),
        pytest.param(f"{NS}/configmaps/c", "merge", {"metadata": None}, True, id="metadata null"),
        pytest.param(
            f"{NS}/configmaps/c", "strategic", {"metadata": {"finalizers": ["a"]}}, False, id="strategic adds"
        ),
        pytest.param(
            f"{NS}/configmaps/c",
            "strategic",
            {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}},
            True,
            id="strategic takes one out",
        ),
        pytest.param(f"{NS}/configmaps/c", "strategic", {"metadata": {"$patch": "replace"}}, True, id="replaced"),
        pytest.param(
            f"{NS}/configmaps/c", "json", [{"op": "remove", "path": "/metadata/finalizers/0"}], True, id="json remove"
        ),
        pytest.param(f"{NS}/configmaps/c", "json", put_at("/metadata", {}), True, id="json above"),
        pytest.param(
            f"{NS}/configmaps/c", "json", [{"op": "test", "path": "/metadata/finalizers/0"}], False, id="json test"
        ),
        # Owners
        pytest.param(f"{NS}/configmaps/c", "merge", OWNER, True, id="an owner"),
        pytest.param(f"{NS}/configmaps", "", OWNER, True, id="a new object with an owner"),
        pytest.param(f"{NS}/configmaps", "", {"metadata": {"ownerReferences": []}}, False, id="a new one with none"),
        # Pods
        pytest.param(f"{NS}/pods/p", "merge", {"metadata": {"labels": {"a": "b"}}}, True, id="a pod's label"),
        pytest.param(f"{NS}/pods/p", "merge", {"metadata": {"labels": None}}, True, id="a pod's labels away"),
        pytest.param(f"{NS}/pods/p", "merge", {"metadata": {"annotations": {"a": "b"}}}, False, id="an annotation"),
        pytest.param(f"{NS}/configmaps/c", "merge", {"metadata": {"labels": {"a": "b"}}}, False, id="others' labels"),
        pytest.param(f"{NS}/pods", "", {"metadata": {"labels": {"a": "b"}}}, False, id="a new pod's labels"),
        pytest.param(f"{NS}/pods", "", {"spec": {"priorityClassName": "high"}}, True, id="a pod's priority"),
        pytest.param(f"{APPS}/namespaces/x/deployments", "", template(priorityClassName="high"), True, id="priority"),
        # Replicas
        pytest.param(DEPLOYMENT, "merge", {"spec": {"replicas": 0}}, True, id="to zero"),
        pytest.param(DEPLOYMENT, "merge", {"spec": {"replicas": 2}}, False, id="to two"),
        pytest.param(DEPLOYMENT, "merge", {"spec": {"replicas": None}}, False, id="to the default"),
        pytest.param(DEPLOYMENT, "json", put_at("/spec/replicas", 0), True, id="json to zero"),
        pytest.param(DEPLOYMENT, "json", put_at("/spec/replicas", 2), False, id="json to two"),
        pytest.param(DEPLOYMENT, "json", put_at("/spec", {"replicas": 0}), True, id="json, the whole spec"),
        pytest.param(DEPLOYMENT, "json", [{"op": "remove", "path": "/spec/replicas"}], False, id="json to the default"),
        pytest.param(f"{APPS}/namespaces/x/deployments", "", {"spec": {"replicas": 0}}, False, id="a new one at zero"),
        pytest.param(f"{DEPLOYMENT}/scale", "merge", {"spec": {"replicas": 0}}, True, id="scale"),
        pytest.param(
            "/apis/x.io/v1/namespaces/x/things/t/scale", "merge", {"spec": {"replicas": 0}}, True, id="any scale"
        ),
        pytest.param(f"{DEPLOYMENT}/status", "merge", {"spec": {"replicas": 0}}, False, id="status"),
        pytest.param(DEPLOYMENT, "json", put_at("/spec/template", {}), True, id="rollout undo"),
        pytest.param(
            DEPLOYMENT,
            "strategic",
            {"spec": {"template": {"metadata": {"annotations": {"a": "b"}}}}},
            False,
            id="rollout restart",
        ),
        # Clean-up by controllers
        pytest.param(DEPLOYMENT, "merge", {"spec": {"revisionHistoryLimit": 0}}, True, id="history"),
        pytest.param(f"{JOBS}/j", "merge", {"spec": {"ttlSecondsAfterFinished": 0}}, True, id="ttl"),
        pytest.param(f"{JOBS}/j", "merge", {"spec": {"ttlSecondsAfterFinished": None}}, False, id="no ttl"),
        pytest.param(f"{JOBS}/j", "merge", {"spec": {"suspend": True}}, True, id="suspend"),
        pytest.param(f"{JOBS}/j", "merge", {"spec": {"suspend": False}}, False, id="resume"),
        pytest.param(f"{JOBS}/j", "merge", {"spec": {"parallelism": 0}}, True, id="parallelism"),
        pytest.param(
            "/apis/batch/v1/namespaces/x/cronjobs/c",
            "merge",
            {"spec": {"failedJobsHistoryLimit": 0}},
            True,
            id="CronJob",
        ),
        pytest.param(
            f"{APPS}/namespaces/x/statefulsets/s",
            "merge",
            {"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}},
            True,
            id="claims go with it",
        ),
        pytest.param(
            f"{APPS}/namespaces/x/daemonsets/d", "strategic", template(nodeSelector={"a": "b"}), True, id="DaemonSet"
        ),
        pytest.param(
            "/apis/autoscaling/v2/namespaces/x/horizontalpodautoscalers/h",
            "merge",
            {"spec": {"minReplicas": 0}},
            True,
            id="HPA",
        ),
        # Cut off
        pytest.param(f"{NS}/resourcequotas", "", {"spec": {"hard": {"pods": "0"}}}, True, id="no more pods"),
        pytest.param(f"{NS}/resourcequotas", "", {"spec": {"hard": {"pods": "9"}}}, False, id="nine pods"),
        pytest.param(NETWORK, "", {"spec": {"podSelector": {}}}, True, id="nothing gets in"),
        pytest.param(NETWORK, "", {"spec": {"podSelector": {}, "ingress": [{}]}}, False, id="everything gets in"),
        pytest.param(NETWORK, "", {"spec": {"podSelector": {"matchLabels": {"a": "b"}}}}, False, id="some pods"),
        pytest.param(
            NETWORK, "", {"spec": {"podSelector": {}, "policyTypes": ["Egress"]}}, True, id="nothing gets out"
        ),
        pytest.param("/api/v1/nodes/n", "merge", {"spec": {"taints": [{"effect": "NoExecute"}]}}, True, id="NoExecute"),
        pytest.param(
            "/api/v1/nodes/n", "merge", {"spec": {"taints": [{"effect": "NoSchedule"}]}}, False, id="NoSchedule"
        ),
        # `$patch: replace` puts the rest of the map in the place of what is there.
        pytest.param(
            DEPLOYMENT, "strategic", {"spec": {"$patch": "replace", "replicas": 0}}, True, id="a spec replaced at zero"
        ),
        pytest.param(
            DEPLOYMENT,
            "strategic",
            {"spec": {"template": {"spec": {"$patch": "replace", "priorityClassName": "high"}}}},
            True,
            id="a pod spec replaced",
        ),
        pytest.param(
            DEPLOYMENT, "strategic", {"spec": {"$patch": "replace", "replicas": 2}}, True, id="no history limit then"
        ),
        pytest.param(
            f"{NS}/configmaps/c",
            "strategic",
            {"metadata": {"$patch": "replace", "finalizers": ["a"]}},
            True,
            id="finalizers replaced, not merged",
        ),
        # What repeats all that is there is compared with the live object instead.
        pytest.param(DEPLOYMENT, "apply", {"spec": {"replicas": 0}}, False, id="apply"),
    ],
)
def test_destruction_without_a_delete(url, patch, content, expected):
    assert ("delete" in by_body("PATCH" if patch else "POST", url, patch, content)) is expected
