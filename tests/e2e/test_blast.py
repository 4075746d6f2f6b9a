"""
What a command would destroy, told before the first object is gone: real kubectl, both versions,
through a gateway where nothing but the rule on mass deletes forbids anything.
"""

import itertools
import json
import time

import pytest

from tests.e2e import client, gateway, policies

pytestmark = pytest.mark.e2e

NAMES = (f"blast-{n}" for n in itertools.count())
NO_MASS_DELETE = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: blast}
rules:
- name: no-mass-delete
  action: deny
  match: {impacts: [mass-delete]}
  message: Delete the objects one by one, by name.
"""
WINDOW = 2  # seconds of a run, so that tests need not wait for minutes


@pytest.fixture(scope="module")
def guarded(gateway_kubeconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blast")
    (folder / "policy.yaml").write_text(policies.EVERYTHING + "---" + NO_MASS_DELETE)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")]
    with gateway.running(folder, *arguments, "--", "--set", f"tollgate_run_window={WINDOW}") as one:
        yield one


@pytest.fixture
def kubectl(controlplane, guarded, agent_token, kubectl_program):
    config = guarded.kubeconfig("agent", agent_token)

    def run(*args, **more):
        return controlplane.run_kubectl(*args, kubeconfig=config, program=kubectl_program, check=False, **more)

    return run


@pytest.fixture
def namespace(controlplane):
    """A namespace of the test's own; a window is over before it begins, so no test is another's second delete."""
    name = next(NAMES)
    controlplane.api("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    time.sleep(WINDOW + 0.2)
    yield name
    controlplane.request("DELETE", f"/api/v1/namespaces/{name}")


def deployment(name, replicas=2, **labels):
    labels = {"app": name, **labels}
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "nodeName": "node-1",
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "registry.example/x:1"}],
        },
    }
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels}, "spec": spec}


def make(controlplane, namespace, *objects, pods=0):
    for one in objects:
        plural = "deployments" if one["kind"] == "Deployment" else "configmaps"
        root = "/apis/apps/v1" if one["kind"] == "Deployment" else "/api/v1"
        controlplane.api("POST", f"{root}/namespaces/{namespace}/{plural}", one)
    deadline = time.monotonic() + 20
    while len(controlplane.pods(namespace)) < pods:
        assert time.monotonic() < deadline, "the pods did not come"
        time.sleep(0.05)


def configmap(name, **labels):
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def uids(controlplane, path):
    """What is there, and not on its way out."""
    items = controlplane.api("GET", path)["items"]
    return {i["metadata"]["uid"] for i in items if "deletionTimestamp" not in i["metadata"]}


def refused(done, text):
    assert done.returncode != 0
    assert "rule blast/no-mass-delete denies this" in done.stderr, done.stderr
    assert text in done.stderr, done.stderr


def test_delete_pods_all(kubectl, controlplane, namespace):
    make(controlplane, namespace, deployment("web", 4), pods=4)
    before = uids(controlplane, f"/api/v1/namespaces/{namespace}/pods")
    done = kubectl("delete", "pods", "--all", "-n", namespace)
    refused(done, "it would delete 4 pods")
    assert len({line.partition(": ")[2] for line in done.stderr.splitlines()}) == 1, "one message for all"
    assert uids(controlplane, f"/api/v1/namespaces/{namespace}/pods") == before


def test_delete_by_label(kubectl, controlplane, namespace):
    make(controlplane, namespace, *(deployment(name, 1, tier="x") for name in "abc"), deployment("other", 1))
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    before = uids(controlplane, path)
    refused(kubectl("delete", "deploy", "-l", "tier=x", "-n", namespace), "it would delete 3 deployments")
    assert uids(controlplane, path) == before


def test_delete_several_by_name(kubectl, controlplane, namespace):
    """Nothing said at the first that there would be more: it goes, the second does not."""
    make(controlplane, namespace, *map(configmap, "abc"))
    refused(kubectl("delete", "configmap", "a", "b", "c", "-n", namespace), "it would delete at least 2 configmaps")
    assert {"b", "c"} <= {
        i["metadata"]["name"] for i in controlplane.api("GET", f"/api/v1/namespaces/{namespace}/configmaps")["items"]
    }


def test_delete_namespace(kubectl, controlplane, namespace):
    make(controlplane, namespace, deployment("web", 3), configmap("c"), pods=3)
    done = kubectl("delete", "ns", namespace)
    refused(done, "1 namespace, 3 pods, 1 deployment")
    assert controlplane.api("GET", f"/api/v1/namespaces/{namespace}")["status"]["phase"] == "Active"


def test_delete_definition(kubectl, controlplane, namespace):
    plural = f"t{namespace.replace('-', '')}"
    kind = plural.capitalize()
    group = "blast.example"
    names = {"plural": plural, "singular": plural, "kind": kind}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    versions = [{"name": "v1", "served": True, "storage": True, "schema": schema}]
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    spec = {"group": group, "names": names, "scope": "Namespaced", "versions": versions}
    controlplane.api("POST", crds, {"metadata": {"name": f"{plural}.{group}"}, "spec": spec})
    objects = f"/apis/{group}/v1/namespaces/{namespace}/{plural}"
    deadline = time.monotonic() + 20
    for name in "abc":
        thing = {"apiVersion": f"{group}/v1", "kind": kind, "metadata": {"name": name}}
        while controlplane.request("POST", objects, thing)[0] not in (201, 409):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    refused(kubectl("delete", "crd", f"{plural}.{group}"), f"3 {plural}")
    assert len(controlplane.api("GET", objects)["items"]) == 3
    controlplane.request("DELETE", f"{crds}/{plural}.{group}")


def test_drain(kubectl, controlplane, namespace):
    make(controlplane, namespace, deployment("web", 3), pods=3)
    before = uids(controlplane, "/api/v1/pods")
    try:
        done = kubectl("drain", "node-1", "--force", "--ignore-daemonsets", "--timeout=5s")
    finally:
        controlplane.run_kubectl("uncordon", "node-1")
    refused(done, "it would delete")
    assert f"{len(before)} pods" in done.stderr
    assert uids(controlplane, "/api/v1/pods") == before


def test_apply_prune(kubectl, controlplane, namespace):
    both = {"apiVersion": "v1", "kind": "List", "items": [configmap(n, set="s") for n in ("keep", "gone-1", "gone-2")]}
    assert kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(both)).returncode == 0
    one = json.dumps(configmap("keep", set="s"))
    done = kubectl("apply", "-n", namespace, "--prune", "-l", "set=s", "-f", "-", input=one)
    refused(done, "at least 2 configmaps")
    assert (
        len(controlplane.api("GET", f"/api/v1/namespaces/{namespace}/configmaps?labelSelector=set%3Ds")["items"]) == 3
    )


def test_a_loop_without_any_header(controlplane, guarded, agent_token, namespace):
    """Lists and deletes, as any program does: the first may be all it wants, the second tells."""
    make(controlplane, namespace, *(configmap(f"c{n}", loop="x") for n in range(5)))
    path = f"/api/v1/namespaces/{namespace}/configmaps"

    def call(method, target):
        return client.request(guarded.port, guarded.ca_file, method, target, token=agent_token)

    listed = json.loads(call("GET", f"{path}?labelSelector=loop%3Dx").body)
    answers = [call("DELETE", f"{path}/{item['metadata']['name']}") for item in listed["items"]]
    assert [answer.status for answer in answers] == [200, 403, 403, 403, 403]
    assert all("it would delete 5 configmaps" in answer.message for answer in answers[1:])
    assert len(uids(controlplane, f"{path}?labelSelector=loop%3Dx")) == 4


def test_a_loop_of_kubectl(kubectl, controlplane, namespace):
    """Another session for each: `for p in …; do kubectl delete $p; done`."""
    make(controlplane, namespace, *map(configmap, "abc"))
    assert kubectl("delete", "configmap", "a", "-n", namespace, "--wait=false").returncode == 0
    refused(kubectl("delete", "configmap", "b", "-n", namespace), "at least 2 configmaps")


def test_scale_everything_to_zero(kubectl, controlplane, namespace):
    make(controlplane, namespace, *(deployment(f"d{n}", 1) for n in range(4)), pods=4)
    refused(kubectl("scale", "deploy", "--all", "--replicas=0", "-n", namespace), "it would take away 4 deployments")
    assert len(controlplane.pods(namespace)) == 4


def test_a_controller_that_adopts(kubectl, controlplane, namespace):
    """A ReplicaSet with 0 replicas deletes every bare pod that its selector matches."""
    for name in "ab":
        pod = {
            "metadata": {"name": name, "labels": {"app": "bare"}},
            "spec": deployment("x")["spec"]["template"]["spec"],
        }
        controlplane.api("POST", f"/api/v1/namespaces/{namespace}/pods", pod)
    thief = deployment("thief", 0)
    thief["kind"] = "ReplicaSet"
    thief["spec"]["selector"]["matchLabels"] = thief["spec"]["template"]["metadata"]["labels"] = {"app": "bare"}
    refused(kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(thief)), "it would take away 2 pods")
    assert len(uids(controlplane, f"/api/v1/namespaces/{namespace}/pods")) == 2


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("rollout restart deployment web", id="rollout restart"),
        pytest.param("scale deployment web --replicas=3", id="scale up"),
        pytest.param("delete pods -l none=such", id="a list of none"),
        pytest.param("delete configmap one", id="one by name"),
        pytest.param("delete configmaps -l just=one", id="a list of one"),
        pytest.param("delete deployment web", id="a deployment with its pods"),
        pytest.param("label pods --all seen=yes", id="labels"),
        pytest.param("delete pods --all --dry-run=server", id="dry run"),
    ],
)
def test_ordinary_work_passes(kubectl, controlplane, namespace, command):
    make(controlplane, namespace, deployment("web"), configmap("one", just="one"), pods=2)
    done = kubectl(*command.split(), "-n", namespace)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flags", [[], ["--server-side"]], ids=["client-side", "server-side"])
def test_apply_of_one_object_passes(kubectl, namespace, flags):
    for replicas in (1, 2):
        done = kubectl("apply", *flags, "-n", namespace, "-f", "-", input=json.dumps(deployment("web", replicas)))
        assert done.returncode == 0, done.stderr


def test_the_shipped_policy(controlplane, default_gateway, agent_token, kubectl_program):
    """Agents may delete in agent-*: one, but not all."""
    namespace = "agent-blast"
    controlplane.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    for name in "abc":
        controlplane.request("POST", path, configmap(name, set="x"))
    config = default_gateway.kubeconfig("agent", agent_token, namespace)

    def kubectl(*args):
        return controlplane.run_kubectl(*args, kubeconfig=config, program=kubectl_program, check=False)

    done = kubectl("delete", "configmaps", "-l", "set=x")
    assert "rule agents/no-mass-delete denies this: it would delete 3 configmaps" in done.stderr
    assert len(uids(controlplane, f"{path}?labelSelector=set%3Dx")) == 3
