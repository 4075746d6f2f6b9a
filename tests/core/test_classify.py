import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import classify
from addons.core.model import NO_USES, Impact
from addons.core.status import Refused

NS = "/api/v1/namespaces/x"
DEPLOYMENTS = "/apis/apps/v1/namespaces/x/deployments"
MERGE = {"Content-Type": "application/merge-patch+json"}
APPLY = {"Content-Type": "application/apply-patch+yaml"}
JSON_PATCH = {"Content-Type": "application/json-patch+json"}
PROTOBUF = {"Content-Type": "application/vnd.kubernetes.protobuf"}
# DeleteOptions{dryRun: [All], …}, and a service account token Secret, as kubectl sends them.
DRY_DELETE = base64.b64decode("azhzAAoTCgJ2MRINRGVsZXRlT3B0aW9ucxITCAAiCkJhY2tncm91bmQqA0FsbBoAIgA=")
TOKEN_SECRET = base64.b64decode(
    "azhzAAoMCgJ2MRIGU2VjcmV0EmgKQQoBdBIAGgAiACoAMgA4AEIAYi4KImt1YmVybmV0ZXMuaW8vc2VydmljZS1hY2NvdW50Lm5h"
    "bWUSCGRlcGxveWVyGiNrdWJlcm5ldGVzLmlvL3NlcnZpY2UtYWNjb3VudC10b2tlbhoAIgA="
)


def of(method, url, body=None, headers=None):
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return classify.classify(method, url, headers or {}, raw)


def refused(method, url, body=None, headers=None):
    with pytest.raises(Refused) as e:
        of(method, url, body, headers)
    refusal = e.value.refusal
    assert refusal.message.isprintable()
    assert not {'"', "\\"} & set(refusal.message)  # clients escape these
    assert len(refusal.message) < 500
    return refusal.code, refusal.cause


@pytest.mark.parametrize(
    ("method", "url", "body", "name"),
    [
        pytest.param("GET", f"{NS}/pods/p", None, "p", id="of the url"),
        pytest.param("GET", f"{NS}/pods?fieldSelector=metadata.name%3Dp", None, "p", id="of the field selector"),
        pytest.param("GET", f"{NS}/pods", None, "", id="list"),
        pytest.param("DELETE", f"{NS}/pods", None, "", id="collection"),
        pytest.param("POST", f"{NS}/configmaps", {"metadata": {"name": "c"}}, "c", id="of the body"),
        pytest.param("POST", f"{NS}/configmaps", {"metadata": {"generateName": "c-"}}, "", id="generated"),
        pytest.param("POST", f"{NS}/configmaps", {"metadata": {"name": ""}}, "", id="empty"),
        pytest.param("POST", f"{NS}/configmaps", {}, "", id="none"),
        pytest.param("POST", f"{NS}/pods/p/eviction", {"metadata": {"name": "p"}}, "p", id="eviction"),
        pytest.param("POST", f"{NS}/pods/p/eviction", {}, "p", id="eviction without"),
        pytest.param("POST", f"{NS}/bindings", {"metadata": {"name": "p"}}, "p", id="binding"),
        pytest.param("DELETE", f"{NS}/pods", {"metadata": {"name": "p"}}, "", id="a DELETE's body names nothing"),
        pytest.param("POST", "/api/v1/namespaces", {"metadata": {"name": "n"}}, "n", id="namespace"),
    ],
)
def test_name(method, url, body, name):
    assert of(method, url, body).name == name


@pytest.mark.parametrize(
    ("method", "url", "metadata", "headers", "cause"),
    [
        pytest.param("PUT", f"{NS}/pods/p", {"name": "q"}, None, "name-mismatch", id="PUT, name"),
        pytest.param("PATCH", f"{NS}/pods/p", {"name": "q"}, MERGE, "name-mismatch", id="merge, name"),
        pytest.param("PATCH", f"{NS}/pods/p", {"name": "q"}, APPLY, "name-mismatch", id="apply, name"),
        pytest.param("POST", f"{NS}/pods/p/eviction", {"name": "q"}, None, "name-mismatch", id="eviction, name"),
        pytest.param("POST", f"{NS}/pods", {"namespace": "y"}, None, "namespace-mismatch", id="POST, namespace"),
        pytest.param("PATCH", f"{NS}/pods/p", {"namespace": "y"}, MERGE, "namespace-mismatch", id="merge, namespace"),
        pytest.param("PUT", f"{NS}/pods/p", {"name": 1}, None, "body-unreadable", id="name is a number"),
        pytest.param("PUT", f"{NS}/pods/p", "x", None, "body-unreadable", id="metadata is text"),
    ],
)
def test_contradictions(method, url, metadata, headers, cause):
    assert refused(method, url, {"metadata": metadata}, headers) == (400, cause)


@pytest.mark.parametrize(
    ("url", "metadata"),
    [
        pytest.param(f"{NS}/configmaps", {"namespace": "x"}, id="the same"),
        pytest.param(f"{NS}/configmaps", {"namespace": None}, id="null"),
        pytest.param("/apis/storage.k8s.io/v1/storageclasses", {"namespace": "y"}, id="ignored for cluster-wide kinds"),
    ],
)
def test_no_contradiction(url, metadata):
    of("POST", url, {"metadata": metadata})


def test_object_facts():
    body = {"kind": "ConfigMap", "metadata": {"name": "c", "labels": {"a": "b", "c": None}}, "data": {"k": "hunter2"}}
    found = of("POST", f"{NS}/configmaps", body, {"content-TYPE": "application/json; charset=utf-8"})
    assert (found.kind, found.media_type, dict(found.labels)) == ("ConfigMap", "application/json", {"a": "b"})
    assert found.body == body
    assert "hunter2" not in repr(found)


# Dry run

ALL = {"dryRun": ["All"]}


@pytest.mark.parametrize(
    ("method", "url", "body", "headers"),
    [
        pytest.param("POST", f"{NS}/configmaps?dryRun=All", {}, None, id="create"),
        pytest.param("PUT", f"{NS}/configmaps/c?dryRun=All", {}, None, id="update"),
        pytest.param("PATCH", f"{NS}/configmaps/c?dryRun=All", {}, MERGE, id="patch"),
        pytest.param("PATCH", f"{NS}/pods/p/status?dryRun=All", {}, MERGE, id="status"),
        pytest.param("PATCH", f"{DEPLOYMENTS}/d/scale?dryRun=All", {}, MERGE, id="scale"),
        pytest.param("POST", f"{NS}/pods/p/eviction?dryRun=All", {}, None, id="eviction, query"),
        pytest.param("POST", f"{NS}/pods/p/eviction", {"deleteOptions": ALL}, None, id="eviction, body"),
        pytest.param("PATCH", f"{NS}/pods/p/ephemeralcontainers?dryRun=All", {}, MERGE, id="ephemeral containers"),
        pytest.param("POST", f"{NS}/pods/p/binding?dryRun=All", {}, None, id="binding"),
        pytest.param("DELETE", f"{NS}/configmaps/c?dryRun=All", None, None, id="delete, query"),
        pytest.param("DELETE", f"{NS}/configmaps?dryRun=All", None, None, id="deletecollection, query"),
        pytest.param("DELETE", f"{NS}/configmaps/c", ALL, None, id="delete, body"),
        pytest.param("DELETE", f"{NS}/configmaps/c?dryRun=none", ALL, None, id="delete: the body beats the query"),
        pytest.param("DELETE", f"{NS}/configmaps/c", DRY_DELETE, PROTOBUF, id="delete, protobuf body"),
        pytest.param("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles?dryRun=All", {}, None, id="rbac"),
    ],
)
def test_dry_run(method, url, body, headers):
    assert of(method, url, body, headers).dry_run is True


@pytest.mark.parametrize(
    ("method", "url", "body", "headers"),
    [
        pytest.param("POST", f"{NS}/configmaps", {}, None, id="not asked for"),
        pytest.param("POST", f"{NS}/configmaps?dryRun=all", {}, None, id="another value"),
        pytest.param("POST", f"{NS}/configmaps?dryRun=", {}, None, id="empty value"),
        pytest.param("POST", f"{NS}/configmaps", ALL, None, id="in the body of a create"),
        pytest.param("DELETE", f"{NS}/configmaps/c?dryRun=All", {}, None, id="delete: any body beats the query"),
        pytest.param(
            "DELETE",
            f"{NS}/configmaps/c?dryRun=All",
            {"propagationPolicy": "Background"},
            None,
            id="delete: kubectl's body",
        ),
        pytest.param("DELETE", f"{NS}/configmaps?dryRun=All", {}, None, id="deletecollection: body beats query"),
        pytest.param("DELETE", f"{NS}/configmaps/c", {"DryRun": ["All"]}, None, id="delete: case matters"),
        pytest.param("DELETE", f"{NS}/configmaps/c", {"dryRun": "All"}, None, id="delete: not a list"),
        pytest.param("DELETE", f"{NS}/configmaps/c", {"dryRun": ["All", "x"]}, None, id="delete: more than All"),
        pytest.param("DELETE", f"{NS}/configmaps/c", {"dryRun": []}, None, id="delete: empty"),
        pytest.param("POST", f"{NS}/pods/p/eviction", ALL, None, id="eviction: wrong place in the body"),
        pytest.param("POST", f"{NS}/serviceaccounts/s/token?dryRun=All", {}, None, id="token request returns a token"),
        pytest.param("POST", f"{NS}/pods/p/exec?dryRun=All&command=sh", None, None, id="exec"),
        pytest.param("POST", f"{NS}/pods/p/proxy/x?dryRun=All", None, None, id="proxy"),
        pytest.param("PUT", f"{NS}/finalize?dryRun=All", {}, None, id="finalize"),
        pytest.param("POST", "/apis/authentication.k8s.io/v1/tokenreviews?dryRun=All", {}, None, id="review"),
        pytest.param("POST", "/apis/example.com/v1/namespaces/x/gizmos?dryRun=All", {}, None, id="maybe aggregated"),
        pytest.param("POST", "/x?dryRun=All", None, None, id="page"),
        pytest.param("GET", f"{NS}/configmaps?dryRun=All", None, None, id="get"),
    ],
)
def test_no_dry_run(method, url, body, headers):
    assert of(method, url, body, headers).dry_run is False


def test_a_dry_run_of_a_write_is_a_read():
    assert of("DELETE", f"{NS}/configmaps/c?dryRun=All").impacts == {Impact.READ}
    # …with the values in the answer, or the power in what it tells.
    assert of("DELETE", f"{NS}/secrets?dryRun=All").impacts == {Impact.READ, Impact.REVEAL}
    assert Impact.ESCALATE in of("PATCH", "/api/v1/nodes/n?dryRun=All", {}, MERGE).impacts
    assert Impact.EXECUTE in of("PATCH", f"{NS}/pods/p/ephemeralcontainers?dryRun=All", {}, MERGE).impacts


def test_a_key_given_twice_is_no_dry_run():
    # The API server takes the last: this deletes.
    assert refused("DELETE", f"{NS}/configmaps/c", b'{"dryRun":["All"],"dryRun":[]}') == (400, "body-unreadable")


# Bodies


def test_protobuf_is_read():
    found = of("POST", f"{NS}/secrets", TOKEN_SECRET, PROTOBUF)
    assert (found.name, found.kind) == ("t", "Secret")
    assert Impact.ESCALATE in found.impacts


@pytest.mark.parametrize(
    ("method", "url", "body", "headers", "code", "cause"),
    [
        pytest.param("GET", f"{NS}/pods", {}, None, 400, "body-not-expected", id="GET with a body"),
        pytest.param("POST", f"{NS}/pods", {}, {"Content-Encoding": "gzip"}, 400, "body-encoded", id="compressed"),
        pytest.param(
            "POST", f"{NS}/pods", {}, {"Content-Type": "application/cbor"}, 415, "body-unsupported", id="cbor"
        ),
        pytest.param("POST", f"{NS}/pods", b"\xa1", None, 400, "body-unreadable", id="broken"),
        pytest.param("DELETE", f"{NS}/pods/p", b"null", None, 400, "body-unreadable", id="null"),
        pytest.param("DELETE", "/api/v1/watch/pods", None, None, 405, "method-unknown", id="DELETE of a watch path"),
        pytest.param("GET", "/api/v1/watch", None, None, 400, "path-incomplete", id="watch of nothing"),
        pytest.param("get", "/api", None, None, 405, "method-unknown", id="method"),
        pytest.param("GET", "//api", None, None, 400, "path-not-canonical", id="path"),
        pytest.param("GET", f"{NS}/pods/p/exec", None, {"Upgrade": "h2c"}, 400, "upgrade-unknown", id="upgrade"),
    ],
)
def test_refused(method, url, body, headers, code, cause):
    assert refused(method, url, body, headers) == (code, cause)


def test_a_second_content_type_does_not_hide():
    fields = [(b"Content-Type", b"application/json"), (b"content-type", b"application/yaml")]
    with pytest.raises(Refused):
        classify.classify_raw("POST", f"{NS}/pods", fields, b"{}")


@pytest.mark.parametrize("url", [f"{NS}/pods/p/proxy/x", f"{NS}/pods/p/exec", "/some/page"])
def test_bodies_of_streams_and_pages_are_nobodys(url):
    found = of("POST", url, b"\x00\xff", {"Content-Type": "Text/Plain; a=b"})
    assert (found.body, found.media_type) == (None, "text/plain")
    assert Impact.EXECUTE in found.impacts


# Uses

TEMPLATE = {"spec": {"template": {"spec": {"serviceAccountName": "deployer", "containers": []}}}}


def test_uses_of_a_whole_object():
    assert of("POST", DEPLOYMENTS, TEMPLATE).uses.service_accounts == {"deployer"}
    assert of("PUT", f"{DEPLOYMENTS}/d", TEMPLATE).uses.unknown is False


def test_only_a_new_pod_chooses_its_node():
    pod = {"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": []}}
    assert of("POST", f"{NS}/pods", pod).uses.host == {"nodeName"}
    assert of("PUT", f"{NS}/pods/p", pod).uses.host == frozenset()


def test_uses_of_patches():
    assert of("PATCH", f"{DEPLOYMENTS}/d", TEMPLATE, APPLY).uses.unknown is True
    assert of("PATCH", f"{DEPLOYMENTS}/d", {"spec": {"replicas": 1}}, MERGE).uses is NO_USES
    operations = [{"op": "replace", "path": "/spec/template", "value": {}}]
    assert of("PATCH", f"{DEPLOYMENTS}/d", operations, JSON_PATCH).uses.unknown is True


def test_uses_of_subresources():
    assert of("PATCH", f"{DEPLOYMENTS}/d/scale", {"spec": {"replicas": 1}}, MERGE).uses is NO_USES
    assert of("PUT", f"{NS}/pods/p/status", TEMPLATE).uses is NO_USES
    assert of("PATCH", f"{NS}/pods/p/ephemeralcontainers", {"spec": {}}, MERGE).uses.unknown is True
    assert of("PUT", f"{NS}/pods/p/ephemeralcontainers", {"spec": {}}).uses.unknown is True


def test_uses_of_others():
    assert of("POST", f"{NS}/configmaps", TEMPLATE).uses is None
    assert of("GET", DEPLOYMENTS).uses is None
    assert of("DELETE", f"{DEPLOYMENTS}/d", {}).uses is None


# Headers


@pytest.mark.parametrize(
    ("value", "upgrade"),
    [("websocket", "websocket"), ("WebSocket", "websocket"), ("SPDY/3.1", "spdy"), ("", "")],
)
def test_upgrade(value, upgrade):
    assert of("GET", f"{NS}/pods/p/exec", None, {"Upgrade": value}).upgrade == upgrade


def test_claims():
    found = of("GET", "/api", None, {"Kubectl-Command": "kubectl create secret generic", "Kubectl-Session": "a1-b2"})
    assert (found.claimed_command, found.claimed_session) == ("kubectl create secret generic", "a1-b2")


@pytest.mark.parametrize("claim", ["", "a" * 101, "kubectl\ndelete", "kubectl; rm", "\x1b[31m", " kubectl", "küche"])
def test_claims_of_another_shape_are_dropped(claim):
    found = of("GET", "/api", None, {"Kubectl-Command": claim, "Kubectl-Session": claim})
    assert (found.claimed_command, found.claimed_session) == ("", "")


@given(st.text(max_size=30))
def test_claims_change_nothing_else(claim):
    plain = of("DELETE", NS)
    claimed = of("DELETE", NS, None, {"Kubectl-Command": claim, "Kubectl-Session": claim, "X-Dry-Run": "All"})
    assert (claimed.impacts, claimed.dry_run, claimed.info) == (plain.impacts, plain.dry_run, plain.info)


def test_impersonation_escalates():
    assert Impact.ESCALATE in of("GET", "/api", None, {"Impersonate-User": "root"}).impacts


PATHS = st.sampled_from(["/", "/metrics", f"{NS}/pods", f"{NS}/secrets/s", DEPLOYMENTS, "/apis/e.com/v1/gizmos/g/x"])


@given(st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]), PATHS, st.binary(max_size=30), st.booleans())
def test_every_operation_has_an_impact(method, url, body, merge):
    try:
        found = classify.classify(method, url, MERGE if merge else {}, body)
    except Refused:
        return
    assert found.impacts


def test_both_readings_of_a_target_are_the_same():
    # Short targets are remembered, long ones are not.
    long = f"{NS}/pods?foo=" + "a" * 600
    assert of("GET", long).info.verb == of("GET", f"{NS}/pods").info.verb == "list"
    assert of("GET", f"{NS}/pods") == of("GET", f"{NS}/pods")
    assert Impact.ESCALATE in classify.classify("DELETE", f"{NS}/pods/p", {}, b"", own_namespace="x").impacts
    assert Impact.ESCALATE not in classify.classify("DELETE", f"{NS}/pods/p", {}, b"").impacts


# The same requests to the real API server.

MAPS = "/api/v1/namespaces/default/configmaps"
OBJECT = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "classified"}, "data": {"a": "b"}}


@pytest.fixture
def config_map(controlplane):
    controlplane.api("POST", MAPS, OBJECT)
    yield lambda: controlplane.request("GET", f"{MAPS}/classified")
    controlplane.request("DELETE", f"{MAPS}/classified")


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("method", "path", "body", "is_dry"),
    [
        pytest.param("PUT", "/classified?dryRun=All", {**OBJECT, "data": {"a": "c"}}, True, id="update"),
        pytest.param("DELETE", "/classified?dryRun=All", None, True, id="delete by query"),
        pytest.param("DELETE", "/classified", {"dryRun": ["All"]}, True, id="delete by body"),
        pytest.param("DELETE", "?dryRun=All&fieldSelector=metadata.name%3Dclassified", None, True, id="collection"),
        pytest.param("PUT", "/classified", {**OBJECT, "data": {"a": "c"}}, False, id="really update"),
        pytest.param("DELETE", "/classified?dryRun=All", {}, False, id="delete: a body beats the query"),
        pytest.param(
            "DELETE",
            "/classified?dryRun=All",
            {"propagationPolicy": "Background"},
            False,
            id="delete: kubectl's body does",
        ),
        pytest.param("DELETE", "/classified", {"DryRun": ["All"]}, False, id="delete: case matters"),
        pytest.param(
            "DELETE",
            "?dryRun=All&fieldSelector=metadata.name%3Dclassified",
            {"kind": "DeleteOptions", "apiVersion": "v1"},
            False,
            id="collection: a body beats the query",
        ),
    ],
)
def test_the_server_agrees_on_dry_runs(controlplane, config_map, method, path, body, is_dry):
    before = config_map()
    assert of(method, MAPS + path, body).dry_run is is_dry
    code, answer = controlplane.request(method, MAPS + path, body)
    assert code == 200, answer
    assert (config_map() == before) is is_dry


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        pytest.param("PUT", "/classified", {**OBJECT, "metadata": {"name": "other"}}, id="name"),
        pytest.param("POST", "", {**OBJECT, "metadata": {"name": "c", "namespace": "other"}}, id="namespace"),
        pytest.param("POST", "", [OBJECT], id="a list"),
    ],
)
def test_the_server_refuses_contradictions_too(controlplane, config_map, method, path, body):
    assert refused(method, MAPS + path, body)[0] == 400
    assert controlplane.request(method, MAPS + path, body)[0] == 400


@pytest.mark.e2e
def test_a_dry_run_of_a_token_request_returns_a_token(controlplane):
    path = "/api/v1/namespaces/default/serviceaccounts/default/token?dryRun=All"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["tollgate"]}}
    assert controlplane.api("POST", path, body)["status"]["token"]
    found = of("POST", path, body)
    assert found.dry_run is False
    assert found.impacts >= {Impact.REVEAL, Impact.ESCALATE}
