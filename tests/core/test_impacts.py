import pytest

from addons.core import canonical, impacts, requestinfo
from addons.core.model import Impact

RBAC = "/apis/rbac.authorization.k8s.io/v1"
NS = "/api/v1/namespaces/x"


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
    ],
)
def test_impacts(method, url, expected):
    assert of(method, url) == expected


def test_own_namespace_is_what_it_is_told():
    assert "escalate" in of("PATCH", "/api/v1/namespaces/gate/configmaps/c", own="gate")
    assert "escalate" in of("PATCH", "/api/v1/namespaces/gate", own="gate")
    assert "escalate" not in of("PATCH", "/api/v1/namespaces/tollgate/configmaps/c", own="gate")


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
    assert by_body(method, url, patch, content) == ({"escalate"} if escalates else set())


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
    assert by_body(method, url, patch, content, name="n") == ({"escalate"} if escalates else set())


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
