"""
What an approver is shown, and what voids his yes, on a real API server: asked directly, as the
agent through the gateway's own credential.
"""

import asyncio
import contextlib
import itertools
import json
import time
from dataclasses import replace

import pytest

from addons.core import canonical, digests, maskdetect
from addons.core.approvals import Item
from addons.core.classify import classify
from addons.core.model import Identity, Reach
from addons.core.preconditions import with_preconditions
from addons.net import apiserver
from addons.net.objects import Request
from addons.net.previews import Checked, Previewer
from tests.e2e import gateway

pytestmark = pytest.mark.e2e

AGENT = Identity(
    "tollgate:system:serviceaccount:agents:ci-agent",
    groups=("tollgate:system:serviceaccounts", "tollgate:system:serviceaccounts:agents"),
)
NAMES = (f"preview-{n}" for n in itertools.count())
CANARY = "Y2FuYXJ5LWluLWEtc2VjcmV0"  # base64 of a sentence
JSON_PATCH, MERGE = "application/json-patch+json", "application/merge-patch+json"
STRATEGIC, APPLY = "application/strategic-merge-patch+json", "application/apply-patch+yaml"
POD = {"nodeName": "node-1", "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "good:1"}]}


@pytest.fixture(scope="module", autouse=True)
def patterns():
    """A preview has three seconds; a gateway has these ready before it opens its port."""
    maskdetect.warm(str(gateway.patterns()))


@pytest.fixture
async def server(gateway_kubeconfig):
    one = apiserver.load(str(gateway_kubeconfig))
    yield one
    await one.stop()


@pytest.fixture
def namespace(controlplane):
    name = next(NAMES)
    controlplane.api("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    yield name
    controlplane.request("DELETE", f"/api/v1/namespaces/{name}")


def held(method, target, body=None, media="application/json"):
    raw = b"" if body is None else json.dumps(body).encode()
    media = media if raw else ""
    operation = classify(method, target, {"content-type": media} if raw else {}, raw)
    return Request(method, target, media, raw), operation


async def preview(server, *request):
    return await Previewer(server, AGENT).preview(*held(*request))


async def again(server, seen, *request, drift=0):
    item = Item("d", "what", seen.uid, seen.resource_version, seen.result)
    return await Previewer(server, AGENT).again(*held(*request), item, seen.content, drift)


async def send(server, request, operation, uid=""):
    """As the gateway would send it."""
    target, media, body = request.target, request.content_type, request.body
    if uid:
        bound = with_preconditions(operation, target, uid)
        target, media, body = bound.target, bound.content_type, bound.body
    headers = {"Content-Type": media} if media else {}
    return await server.request(
        request.method, target, purpose="test", body=body or None, headers=headers, identity=AGENT
    )


def deployment(name, *containers, **annotations):
    template = {"metadata": {"labels": {"app": name}}, "spec": {**POD, "containers": list(containers)}}
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": template}
    metadata = {"name": name, "annotations": annotations}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


REVISION = "deployment.kubernetes.io/revision"


def deployments(namespace):
    return f"/apis/apps/v1/namespaces/{namespace}/deployments"


async def test_a_patch_that_copies_what_somebody_changes_meanwhile(controlplane, server, namespace):
    """Approved with one image it would apply another: no byte of the request is different."""
    root = deployments(namespace)
    controlplane.api("POST", root, deployment("web", {"name": "c", "image": "old:1"}, image="good:1"))
    # Its controller puts an annotation on it, which is a change like any other.
    deadline = time.monotonic() + 10
    while REVISION not in controlplane.api("GET", f"{root}/web")["metadata"]["annotations"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    copy = {"op": "copy", "from": "/metadata/annotations/image", "path": "/spec/template/spec/containers/0/image"}
    request = ("PATCH", f"{root}/web", [copy], JSON_PATCH)
    seen = await preview(server, *request)
    assert "-      - image: old:1\n+      - image: good:1" in seen.preview.diff
    assert await again(server, seen, *request) == Checked()
    controlplane.run_kubectl("annotate", "deployment/web", "-n", namespace, "other=1")
    assert (await again(server, seen, *request)).why  # any change of what was shown
    seen = await preview(server, *request)
    controlplane.run_kubectl("annotate", "deployment/web", "-n", namespace, "--overwrite", "image=evil:1")
    assert (
        await again(server, seen, *request)
    ).why == "the object changed since, and the request would do something else"


async def test_the_same_bytes_as_another_patch(controlplane, server, namespace):
    root = deployments(namespace)
    containers = ({"name": "app", "image": "app:1"}, {"name": "sidecar", "image": "sidecar:1"})
    controlplane.api("POST", root, deployment("web", *containers))
    body = {"spec": {"template": {"spec": {"containers": [{"name": "app", "image": "app:2"}]}}}}
    seen = {media: await preview(server, "PATCH", f"{root}/web", body, media) for media in (STRATEGIC, MERGE)}
    assert "sidecar" not in "".join(one for one in seen[STRATEGIC].preview.diff.splitlines() if one.startswith("-"))
    assert "-      - image: sidecar:1" in seen[MERGE].preview.diff
    assert seen[STRATEGIC].result != seen[MERGE].result
    assert len({digests.of(held("PATCH", f"{root}/web", body, m)[1], "PATCH", f"{root}/web", m) for m in seen}) == 2


async def test_nothing_is_written_by_a_preview(controlplane, server, namespace):
    root = f"/api/v1/namespaces/{namespace}/configmaps"
    controlplane.api("POST", root, {"metadata": {"name": "x"}, "data": {"a": "b"}})
    before = controlplane.api("GET", f"{root}/x")
    since = controlplane.audit_position()
    for request in (
        ("PATCH", f"{root}/x?dryRun=", {"data": {"a": "c"}}, MERGE),
        ("PUT", f"{root}/x", {"metadata": {"name": "x"}}),
        ("DELETE", f"{root}/x"),
        ("DELETE", root),
        ("POST", root, {"metadata": {"name": "y"}}),
        ("DELETE", f"/api/v1/namespaces/{namespace}"),
    ):
        seen = await preview(server, *request)
        assert seen.refusal is None
        await again(server, seen, *request)
    assert controlplane.api("GET", f"{root}/x") == before
    controlplane.wait_for_audit(lambda e: "dryRun=All" in e["requestURI"], since=since)
    ours = [e for e in controlplane.audit_events(since) if e["auditID"].startswith("tollgate-")]
    assert all(e["verb"] in ("get", "list") or "dryRun=All" in e["requestURI"] for e in ours)


def creates(namespace):
    core, batch = f"/api/v1/namespaces/{namespace}", f"/apis/batch/v1/namespaces/{namespace}"
    restarts = {**POD, "restartPolicy": "Never"}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    yield f"{core}/pods", {"metadata": {"name": "x"}, "spec": POD}
    yield f"{core}/pods", {"metadata": {"generateName": "x-"}, "spec": POD}
    yield f"{core}/services", {"metadata": {"name": "x"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}}
    yield f"{core}/secrets", {"metadata": {"name": "x"}, "stringData": {"a": "b"}}
    yield f"{core}/persistentvolumeclaims", {"metadata": {"name": "x"}, "spec": claim}
    yield f"{batch}/jobs", {"metadata": {"name": "x"}, "spec": {"template": {"spec": restarts}}}
    yield deployments(namespace), deployment("x", {"name": "c", "image": "a:1"})
    yield "/api/v1/namespaces", {"metadata": {"name": f"{namespace}-x"}}


async def test_a_dry_run_has_the_same_result_again(server, namespace):
    """Whatever the API server draws by lot or by the clock for a new object."""
    for target, content in creates(namespace):
        seen = await preview(server, "POST", target, content)
        assert seen.refusal is None, seen.refusal.body
        await asyncio.sleep(1.05)  # another second in every timestamp
        assert await again(server, seen, "POST", target, content) == Checked(), (target, content)


async def test_an_object_that_is_there_meanwhile(controlplane, server, namespace):
    request = (
        "PATCH",
        f"{deployments(namespace)}/web?fieldManager=x",
        deployment("web", {"name": "c", "image": "a:1"}),
        APPLY,
    )
    seen = await preview(server, *request)
    assert "+kind: Deployment" in seen.preview.diff
    controlplane.api("POST", deployments(namespace), deployment("web", {"name": "c", "image": "b:1"}))
    assert (await again(server, seen, *request)).why


async def test_what_the_api_server_refuses_nobody_is_asked_for(server, namespace):
    bad = deployment("web")  # without containers
    seen = await preview(server, "POST", deployments(namespace), bad)
    assert seen.refusal.code == 422
    nobody = Previewer(server, replace(AGENT, username="tollgate:nobody", groups=()))
    seen = await nobody.preview(*held("POST", deployments(namespace), deployment("web", {"name": "c", "image": "a"})))
    assert seen.refusal.code == 403
    seen = await preview(server, "DELETE", f"/api/v1/namespaces/{namespace}/pods/none")
    assert seen.refusal.code == 404


async def test_secrets_never(controlplane, server, namespace):
    """Canaries in every place of a Secret, and what each kind of request would show of it."""
    root = f"/api/v1/namespaces/{namespace}/secrets"
    applied = {
        "kubectl.kubernetes.io/last-applied-configuration": f'{{"data":{{"password":"{CANARY}"}}}}',
        "note": CANARY,
    }
    secret = {"metadata": {"name": "db", "annotations": applied}, "data": {"password": CANARY}}
    controlplane.api("POST", root, secret)
    one = f"{root}/db"
    new = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "db"},
        "data": {"password": CANARY, "more": CANARY},
    }
    requests = [
        ("PATCH", one, {"stringData": {"password": CANARY}}, MERGE),
        ("PATCH", one, {"data": {"more": CANARY}, "metadata": {"annotations": {"x": CANARY}}}, STRATEGIC),
        ("PATCH", f"{one}?fieldManager=x&force=true", new, APPLY),
        ("PATCH", one, [{"op": "copy", "from": "/data/password", "path": "/metadata/annotations/leak"}], JSON_PATCH),
        ("PATCH", one, [{"op": "move", "from": "/data/password", "path": "/type"}], JSON_PATCH),
        ("PATCH", one, [{"op": "test", "path": "/data/password", "value": CANARY}], JSON_PATCH),
        ("PUT", one, new),
        ("POST", root, {**new, "metadata": {"name": "other"}}),
        ("PATCH", one, {"data": {"password": None}}, MERGE),
        ("PATCH", one, {"type": CANARY}, MERGE),
        ("DELETE", one),
        ("DELETE", root),
        ("DELETE", f"/api/v1/namespaces/{namespace}"),
        ("GET", one),
    ]
    for request in requests:
        seen = await preview(server, *request)
        assert CANARY not in repr(seen), request
        assert seen.refusal is None or CANARY.encode() not in seen.refusal.body, request
        assert CANARY not in repr(await again(server, seen, *request)), request
    shown = (await preview(server, "PATCH", one, {"data": {"password": "bmV3"}}, MERGE)).preview.diff
    assert "+  password: '**masked** (changes)'" in shown


async def test_a_namespace_that_gets_a_volume(controlplane, server, namespace):
    root = f"/api/v1/namespaces/{namespace}"
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "7Gi"}}}
    controlplane.api("POST", f"{root}/persistentvolumeclaims", {"metadata": {"name": "data"}, "spec": claim})
    controlplane.api("POST", f"{root}/configmaps", {"metadata": {"name": "a"}})
    deadline = time.monotonic() + 10
    while len(controlplane.api("GET", f"{root}/configmaps")["items"]) < 2:  # kube-root-ca.crt
        assert time.monotonic() < deadline
    seen = await preview(server, "DELETE", root)
    assert seen.content["configmaps"] == 2
    assert f"volumes: {namespace}/data (7Gi)" in seen.preview.notes
    assert seen.preview.exact
    assert await again(server, seen, "DELETE", root) == Checked()
    controlplane.api("POST", f"{root}/configmaps", {"metadata": {"name": "b"}})
    assert "1 configmaps" in (await again(server, seen, "DELETE", root)).why
    assert await again(server, seen, "DELETE", root, drift=1) == Checked()
    controlplane.api("POST", f"{root}/persistentvolumeclaims", {"metadata": {"name": "more"}, "spec": claim})
    assert "persistentvolumeclaims" in (await again(server, seen, "DELETE", root, drift=100)).why


async def pod(controlplane, namespace, name="one"):
    root = f"/api/v1/namespaces/{namespace}"
    deadline = time.monotonic() + 10
    while controlplane.request("GET", f"{root}/serviceaccounts/default")[0] != 200:
        assert time.monotonic() < deadline
    return controlplane.api("POST", f"{root}/pods", {"metadata": {"name": name}, "spec": POD})["metadata"]["uid"]


def gone(controlplane, path):
    deadline = time.monotonic() + 20
    controlplane.request("DELETE", f"{path}?gracePeriodSeconds=0")
    while controlplane.request("GET", path)[0] != 404:
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def test_a_pod_that_was_made_again(controlplane, server, namespace):
    uid = await pod(controlplane, namespace)
    target = f"/api/v1/namespaces/{namespace}/pods/one"
    requests = [
        ("DELETE", target),
        ("GET", f"{target}/exec?command=id&stdout=true"),
        ("POST", f"{target}/attach?stdin=true"),
    ]
    seen = [await preview(server, *request) for request in requests]
    assert {one.uid for one in seen} == {uid}
    assert seen[1].preview.argv == ("id",)
    assert f"runs as ServiceAccount {namespace}/default, with its API token mounted" in seen[1].preview.notes
    assert any("interactive" in note for note in seen[2].preview.notes)
    for one, request in zip(seen, requests, strict=True):
        assert await again(server, one, *request) == Checked()
    gone(controlplane, target)
    for one, request in zip(seen, requests, strict=True):
        assert (await again(server, one, *request)).why == "the object is gone"
    await pod(controlplane, namespace)
    for one, request in zip(seen, requests, strict=True):
        assert "another has its name" in (await again(server, one, *request)).why


async def test_an_image_that_was_changed_in_a_pod(controlplane, server, namespace):
    await pod(controlplane, namespace)
    request = ("GET", f"/api/v1/namespaces/{namespace}/pods/one/exec?command=id")
    seen = await preview(server, *request)
    controlplane.run_kubectl("set", "image", "pod/one", "c=evil:1", "-n", namespace)
    assert (await again(server, seen, *request)).why == "the pod changed since"


async def test_what_a_second_try_writes_anew(controlplane, server, namespace):
    """kubectl debug draws another name, rollout restart has another time: the same request to an approver."""
    await pod(controlplane, namespace)
    controlplane.api("POST", deployments(namespace), deployment("web", {"name": "c", "image": "a:1"}))

    def debug(name):
        containers = [{"name": name, "image": "busybox"}]
        body = {"spec": {"$setElementOrder/ephemeralContainers": [{"name": name}], "ephemeralContainers": containers}}
        return ("PATCH", f"/api/v1/namespaces/{namespace}/pods/one/ephemeralcontainers", body, STRATEGIC)

    def restart(when):
        body = {"spec": {"template": {"metadata": {"annotations": {digests.RESTARTED_AT: when}}}}}
        return ("PATCH", f"{deployments(namespace)}/web", body, STRATEGIC)

    for first, second, other in (
        (debug("debugger-x7k2p"), debug("debugger-bbbbb"), debug("mine")),
        (restart("2026-01-01T00:00:00Z"), restart("2026-01-02T00:00:00Z"), restart("x")),
    ):
        seen = await preview(server, *first)
        assert seen.preview.diff
        assert await again(server, seen, *second) == Checked()
        assert (await again(server, seen, *other)).why


def test_exec_by_either_protocol(controlplane):
    """kubectl's fallback asks for the very same thing."""
    (name, *_) = controlplane.pods("shop", "app=web")
    since = controlplane.audit_position()
    for websockets in ("true", "false"):
        environment = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": websockets}
        controlplane.run_kubectl("exec", name, "-n", "shop", "--", "echo", "a b", env=environment)
    for verb in ("get", "create"):
        controlplane.wait_for_audit(lambda e, v=verb: "/exec?" in e["requestURI"] and e["verb"] == v, since=since)
    tried = {e["verb"]: e["requestURI"] for e in controlplane.audit_events(since) if "/exec?" in e["requestURI"]}
    found = {
        digests.of(held(method, tried[verb])[1], method, tried[verb])
        for verb, method in (("get", "GET"), ("create", "POST"))
    }
    assert len(found) == 1


def eviction(name, namespace):
    return {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}


async def test_a_delete_takes_the_object_that_was_approved(controlplane, server, namespace):
    uid = await pod(controlplane, namespace)
    target = f"/api/v1/namespaces/{namespace}/pods/one"
    requests = [
        ("DELETE", target),
        ("DELETE", target, {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}),
        ("DELETE", f"{target}?gracePeriodSeconds=0"),
        ("POST", f"{target}/eviction", eviction("one", namespace)),
    ]
    other = "00000000-0000-0000-0000-000000000000"
    for request in requests:
        assert (await send(server, *held(*request), uid=other)).status == 409, request
    assert controlplane.api("GET", target)["metadata"]["uid"] == uid
    assert "deletionTimestamp" not in controlplane.api("GET", target)["metadata"]
    assert (await send(server, *held(*requests[3]), uid=uid)).status == 201
    # Options that stood in the query count in the body: a dry run deletes nothing.
    uid = await pod(controlplane, namespace, "two")
    target = f"/api/v1/namespaces/{namespace}/pods/two"
    assert (await send(server, *held("DELETE", f"{target}?dryRun=All"), uid=uid)).status == 200
    assert "deletionTimestamp" not in controlplane.api("GET", target)["metadata"]
    assert (await send(server, *held("DELETE", f"{target}?gracePeriodSeconds=0"), uid=uid)).status == 200
    assert controlplane.request("GET", target)[0] == 404


async def test_a_fan_out_by_kubectl(controlplane, server, namespace):
    """Every DELETE that kubectl then sends has one of the digests that its first one promised."""
    root = f"/api/v1/namespaces/{namespace}/configmaps"
    for name in "abc":
        controlplane.api("POST", root, {"metadata": {"name": name, "labels": {"x": "y"}}})
    since = controlplane.audit_position()
    controlplane.run_kubectl("delete", "configmaps", "-l", "x=y", "-n", namespace)
    events = [e for e in controlplane.audit_events(since) if e["verb"] == "delete" and "configmaps/" in e["requestURI"]]
    targets = list(dict.fromkeys(event["requestURI"] for event in events))
    assert len(targets) == 3
    objects = tuple(
        ("", "configmaps", namespace, canonical.read("DELETE", t).path.rpartition("/")[2], "u") for t in targets
    )
    options = {"propagationPolicy": "Background"}
    first, operation = held("DELETE", targets[0], options)
    promised = digests.of_each(replace(operation, reach=Reach({"configmaps": 3}, objects=objects)), first.target)
    for target in targets:
        request, came = held("DELETE", target, options)
        assert digests.of(came, "DELETE", target, request.content_type, request.body) in promised.values()


async def test_what_a_serviceaccount_may_do(controlplane, server, namespace):
    """By a gateway that may ask, as ours may; one that may not says so."""
    await pod(controlplane, namespace)
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings"
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"}
    controlplane.api("POST", rbac, {"metadata": {"name": "x"}, "subjects": [subject], "roleRef": role})
    request = held("GET", f"/api/v1/namespaces/{namespace}/pods/one/exec?command=id")
    admin = apiserver.load(str(controlplane.admin_kubeconfig))
    deadline = time.monotonic() + 10
    wanted = f"ServiceAccount {namespace}/default may read Secrets in {namespace}, create pods in {namespace}"
    notes: tuple[str, ...] = ()
    try:
        while not any(wanted in note for note in notes):  # a new binding takes a moment to count
            assert time.monotonic() < deadline, notes
            await asyncio.sleep(0.1)
            notes = (await Previewer(admin, None).preview(*request)).preview.notes
    finally:
        await admin.stop()
    notes = (await Previewer(server, AGENT).preview(*request)).preview.notes
    assert any(wanted in note for note in notes)
    with less_rights(controlplane):
        notes = (await Previewer(server, AGENT).preview(*request)).preview.notes
    assert any("could not be computed: the gateway may not create subjectaccessreviews" in note for note in notes)


@contextlib.contextmanager
def less_rights(controlplane):
    """The gateway as an older ClusterRole had it."""
    path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/tollgate-gateway"
    before = controlplane.api("GET", path)
    rules = [rule for rule in before["rules"] if "subjectaccessreviews" not in rule.get("resources", [])]
    assert len(rules) == len(before["rules"]) - 1
    controlplane.api("PUT", path, {**before, "rules": rules})
    time.sleep(1)  # the authorizer follows
    try:
        yield
    finally:
        now = controlplane.api("GET", path)
        controlplane.api("PUT", path, {**now, "rules": before["rules"]})
