import json

import pytest

from addons.core import kubectl, resources
from addons.core.classify import classify

SHOP = "/api/v1/namespaces/shop"
APPS = "/apis/apps/v1/namespaces/default"
NET = "/apis/networking.k8s.io/v1/namespaces/shop"


@pytest.mark.parametrize(
    ("line", "method", "target"),
    [
        pytest.param("get pods -n shop", "GET", f"{SHOP}/pods", id="list"),
        pytest.param("get pod web-1 -n shop", "GET", f"{SHOP}/pods/web-1", id="get"),
        pytest.param("get po/web-1 --namespace=shop", "GET", f"{SHOP}/pods/web-1", id="short, with a slash"),
        pytest.param("kubectl get deploy -A", "GET", "/apis/apps/v1/deployments", id="everywhere"),
        pytest.param("get ingress web -n shop", "GET", f"{NET}/ingresses/web", id="es"),
        pytest.param("get networkpolicy -n shop", "GET", f"{NET}/networkpolicies", id="ies"),
        pytest.param("get endpoints -n shop", "GET", f"{SHOP}/endpoints", id="already plural"),
        pytest.param("get hpa x", "GET", "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/x", id="v2"),
        pytest.param(
            "get widgets.example.com w -n shop", "GET", "/apis/example.com/v1/namespaces/shop/widgets/w", id="CR"
        ),
        pytest.param(
            "patch approval apr-x", "PATCH", "/apis/tollgate.dev/v1alpha1/approvals/apr-x", id="the gateway's own"
        ),
        pytest.param("watch nodes", "GET", "/api/v1/nodes?watch=true", id="watch, cluster-wide"),
        pytest.param("delete ns shop", "DELETE", "/api/v1/namespaces/shop", id="a namespace"),
        pytest.param("deletecollection cm -n shop", "DELETE", f"{SHOP}/configmaps", id="a collection"),
        pytest.param("create cm prices -n shop", "POST", f"{SHOP}/configmaps", id="create"),
        pytest.param(
            "apply deploy web -n a",
            "PATCH",
            "/apis/apps/v1/namespaces/a/deployments/web?fieldManager=kubectl",
            id="apply",
        ),
        pytest.param(
            "scale deploy web -n a --replicas=0",
            "PATCH",
            "/apis/apps/v1/namespaces/a/deployments/web/scale",
            id="scale",
        ),
        pytest.param("logs web-1 -n shop", "GET", f"{SHOP}/pods/web-1/log", id="logs"),
        pytest.param("exec web-1 -n shop", "POST", f"{SHOP}/pods/web-1/exec", id="exec"),
        pytest.param("evict web-1 -n shop", "POST", f"{SHOP}/pods/web-1/eviction", id="evict"),
        pytest.param(
            "patch deploy web --subresource status", "PATCH", f"{APPS}/deployments/web/status", id="subresource"
        ),
        pytest.param(
            "create cm a --dry-run=server", "POST", "/api/v1/namespaces/default/configmaps?dryRun=All", id="dry run"
        ),
        pytest.param("get --raw /metrics", "GET", "/metrics", id="raw"),
        pytest.param("DELETE /api/v1/nodes/n1", "DELETE", "/api/v1/nodes/n1", id="method and path"),
    ],
)
def test_request(line, method, target):
    asked = kubectl.request(line.split())
    assert (asked.method, asked.target) == (method, target)
    headers = {"content-type": asked.content_type} if asked.content_type else {}
    classify(asked.method, asked.target, headers, asked.body)  # the gateway reads it


@pytest.mark.parametrize(
    ("line", "media", "body"),
    [
        pytest.param(
            "scale deploy web --replicas 0", "application/merge-patch+json", {"spec": {"replicas": 0}}, id="scale"
        ),
        pytest.param("patch deploy web -p {}", "application/strategic-merge-patch+json", {}, id="patch"),
        pytest.param("patch deploy web --type=json", "application/json-patch+json", [], id="JSON patch"),
        pytest.param("create cm a", "application/json", {"metadata": {"name": "a"}}, id="create"),
        pytest.param("create cm", "application/json", {"metadata": {"generateName": "x-"}}, id="without a name"),
        pytest.param(
            "delete pod a --dry-run=server", "application/json", {"dryRun": ["All"]}, id="dry run of a delete"
        ),
    ],
)
def test_body(line, media, body):
    asked = kubectl.request(line.split())
    assert (asked.content_type, json.loads(asked.body)) == (media, body)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("", "request: is missing", id="nothing"),
        pytest.param("destroy pod a", "'destroy' is no verb", id="no verb"),
        pytest.param("get secretz", "there is no resource 'secretz'", id="no resource"),
        pytest.param("delete pods --all", "one request for each object", id="a fan-out"),
        pytest.param("delete pods -l app=x", "one request for each object", id="a selector"),
        pytest.param("delete pod", "delete needs a name", id="no name"),
        pytest.param("list pods web-1", "leave the name out", id="a name too many"),
        pytest.param("get pod a b", "at most one name", id="two names"),
        pytest.param("get pod a -n", "-n needs a value", id="half an option"),
        pytest.param("get pod a -o yaml", "-o is not known here", id="an option of kubectl's"),
        pytest.param("get --raw metrics", "--raw takes one /path", id="no path"),
        pytest.param("scale deploy a --type=merge", "--type is merge", id="a type without a patch"),
    ],
)
def test_not_a_request(line, message):
    with pytest.raises(kubectl.WordsError, match=r"^request: ") as e:
        kubectl.request(line.split())
    assert message in str(e.value)


def test_cluster_wide_resources_are_built_in():
    assert {name for names in resources.BUILT_IN.values() for name in names} >= kubectl.CLUSTER_WIDE
