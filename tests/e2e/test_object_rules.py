"""Rules that look at objects, with real kubectl: by whatever command a change comes, its result is judged."""

import json
from functools import partial
from types import SimpleNamespace

import pytest

from tests.e2e import client, gateway, policies

pytestmark = pytest.mark.e2e

RULES = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: objects}
rules:
- name: registry
  action: deny
  match: {resources: [deployments.apps], verbs: [create, update, patch]}
  when: >-
    has(object.spec.template)
    && object.spec.template.spec.containers.exists(c, !c.image.startsWith("registry.example/"))
  message: Images come from registry.example only. Push yours there.
- name: slowly-down
  action: deny
  match: {resources: [deployments.apps], verbs: [update, patch]}
  when: oldObject != null && object.spec.replicas * 2 < oldObject.spec.replicas
  message: Replicas go down by half at most. Do it in steps.
- name: team-stays
  action: deny
  match: {resources: [deployments.apps], verbs: [update, patch]}
  when: has(oldObject.metadata.labels) && "team" in oldObject.metadata.labels
  unless: has(object.metadata.labels) && "team" in object.metadata.labels || operation.subresource == "scale"
  message: The label team stays. Change its value instead.
- name: keep
  action: deny
  match: {resources: [configmaps], verbs: [delete]}
  when: has(oldObject.metadata.annotations) && "keep" in oldObject.metadata.annotations
  message: It is marked to be kept. Remove the annotation keep first.
- name: frozen-namespace
  action: deny
  match: {resources: [services], verbs: [create, update, patch, delete]}
  when: has(namespaceObject.metadata.labels.frozen)
  message: The namespace is frozen. Wait.
- name: foreign-account
  action: hold
  match: {uses: {serviceAccountsNotIn: [default]}}
  message: It runs as somebody else.
  approval: {groups: [oncall]}
"""
NAMESPACE = "object-rules"


def deployment(name, image="registry.example/web:1", replicas=4, **template):
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"team": "shop"}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image}], **template},
            },
        },
    }


@pytest.fixture(scope="module", autouse=True)
def content(controlplane):
    controlplane.run_kubectl("create", "namespace", NAMESPACE)
    controlplane.run_kubectl("create", "configmap", "kept", "-n", NAMESPACE)
    controlplane.run_kubectl("annotate", "configmap", "kept", "keep=yes", "-n", NAMESPACE)
    controlplane.run_kubectl("create", "configmap", "mine", "-n", NAMESPACE)
    for name, more in (("web", {}), ("deputy", {"serviceAccountName": "deployer"})):
        controlplane.run_kubectl("create", "-f", "-", input=json.dumps(deployment(name, **more)))
    yield
    controlplane.run_kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="module")
def one(controlplane, gateway_kubeconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    (folder / "policy.yaml").write_text(f"{policies.EVERYTHING}\n---\n{RULES}")
    with gateway.running(
        folder, "--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")
    ) as running:
        yield running


@pytest.fixture
def kubectl(controlplane, one, engineer_token):
    config = one.kubeconfig("engineer", engineer_token)

    def run(command, stdin=None):
        return controlplane.run_kubectl(*command.split(), kubeconfig=config, check=False, input=stdin)

    return run


JSON_PATCH = '[{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"evil"}]'
EVIL = json.dumps(deployment("web", "evil.example/web:1"))


@pytest.mark.parametrize(
    ("command", "stdin", "rule"),
    [
        pytest.param("create -f -", json.dumps(deployment("new", "evil.example/x")), "registry", id="create"),
        pytest.param("apply -f -", EVIL, "registry", id="apply"),
        pytest.param("apply --server-side --force-conflicts -f -", EVIL, "registry", id="apply on the server"),
        pytest.param("replace -f -", EVIL, "registry", id="replace"),
        pytest.param("set image deploy/web c=evil.example/x", None, "registry", id="set image"),
        pytest.param(
            f"patch deploy web --type=json -p {JSON_PATCH}",
            None,
            "registry",
            id="JSON patch",
        ),
        pytest.param("scale deploy web --replicas=1", None, "slowly-down", id="scale"),
        pytest.param('patch deploy web -p {"spec":{"replicas":0}}', None, "slowly-down", id="replicas by patch"),
        pytest.param("label deploy web team-", None, "team-stays", id="a label removed"),
        pytest.param("delete configmap kept", None, "keep", id="delete"),
        pytest.param("set serviceaccount deploy web deployer", None, "foreign-account", id="another account"),
        pytest.param(
            "set image deploy/deputy c=registry.example/x", None, "foreign-account", id="it runs as another already"
        ),
    ],
)
def test_refused_by_its_result(kubectl, controlplane, command, stdin, rule):
    before = controlplane.run_kubectl("get", "deploy,cm", "-n", NAMESPACE, "-o", "name").stdout
    generation = controlplane.run_kubectl("get", "deploy", "-n", NAMESPACE, "-o", "jsonpath={..generation}").stdout
    done = kubectl(f"-n {NAMESPACE} {command}", stdin)
    assert done.returncode != 0
    assert f"objects/{rule}" in done.stderr
    assert "could not" not in done.stderr
    assert controlplane.run_kubectl("get", "deploy,cm", "-n", NAMESPACE, "-o", "name").stdout == before
    after = controlplane.run_kubectl("get", "deploy", "-n", NAMESPACE, "-o", "jsonpath={..generation}").stdout
    assert after == generation


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("set image deploy/web c=registry.example/web:2", id="set image"),
        pytest.param("rollout restart deploy web", id="rollout restart"),
        pytest.param("scale deploy web --replicas=3", id="scale by less than half"),
        pytest.param("label deploy web team=other --overwrite", id="a label changed"),
        pytest.param("set serviceaccount deploy web default", id="the account that is listed"),
        pytest.param("delete configmap mine", id="delete"),
    ],
)
def test_passes(kubectl, command):
    done = kubectl(f"-n {NAMESPACE} {command}")
    assert done.returncode == 0, done.stderr


def test_the_namespace_decides(kubectl, controlplane):
    assert kubectl(f"-n {NAMESPACE} create service clusterip a --tcp=80").returncode == 0
    controlplane.run_kubectl("label", "namespace", NAMESPACE, "frozen=yes")
    try:
        assert "objects/frozen-namespace" in kubectl(f"-n {NAMESPACE} create service clusterip b --tcp=80").stderr
    finally:
        controlplane.run_kubectl("label", "namespace", NAMESPACE, "frozen-")


def test_what_the_api_server_refuses_is_the_answer_word_for_word(kubectl, controlplane):
    through = kubectl(f'-n {NAMESPACE} patch deploy web -p {{"spec":{{"replicas":-1}}}}').stderr
    directly = controlplane.run_kubectl(
        "-n", NAMESPACE, "patch", "deploy", "web", "-p", '{"spec":{"replicas":-1}}', check=False
    ).stderr
    assert through == directly
    assert "must be greater than or equal to 0" in through


def test_what_rbac_refuses_is_the_answer_word_for_word(controlplane, one):
    answer = client.request(
        one.port,
        one.ca_file,
        "PATCH",
        f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/web",
        token=controlplane.token("agents", "default"),
        body=b'{"spec": {"replicas": 4}}',
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert (answer.status, answer.reason) == (403, "api-server")
    assert (
        'cannot patch resource "deployments"' in answer.message or 'cannot get resource "deployments"' in answer.message
    )


def test_the_default_policy_knows_what_set_image_leaves(controlplane, default_gateway, agent_token):
    namespace = "agent-objects"
    controlplane.run_kubectl("create", "namespace", namespace)
    try:
        for name, more in (("web", {}), ("deputy", {"serviceAccountName": "deployer"})):
            content = deployment(name, **more)
            content["metadata"]["namespace"] = namespace
            controlplane.run_kubectl("create", "-f", "-", input=json.dumps(content))
        config = default_gateway.kubeconfig("agent", agent_token, namespace)
        done = controlplane.run_kubectl("set", "image", "deploy/web", "c=x:2", kubeconfig=config, check=False)
        assert done.returncode == 0, done.stderr
        done = controlplane.run_kubectl("set", "image", "deploy/deputy", "c=x:2", kubeconfig=config, check=False)
        assert "agents/workload-service-account" in done.stderr
    finally:
        controlplane.run_kubectl("delete", "namespace", namespace, "--wait=false")


# The packs, on what the API server really answers

PACKED = "packed"
# What agents do not see they may set here: the packs are to decide, not the gateway's own hold.
FREE = f"""
mask:
- name: free
  match: {{resources: [secrets], namespaces: [{PACKED}]}}
  writes: allow
"""
POLICIES = gateway.ROOT / "policies" / "packs"


@pytest.fixture(scope="module")
def packed(controlplane, gateway_kubeconfig, agent_token, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs")
    (folder / "policy.yaml").write_text(policies.EVERYTHING + FREE)
    admin = controlplane.run_kubectl
    admin("create", "namespace", PACKED)
    admin("label", "namespace", PACKED, "tollgate.dev/protected=true")
    content = deployment("web", automountServiceAccountToken=False)
    content["metadata"]["namespace"] = PACKED
    admin("create", "-f", "-", input=json.dumps(content))
    admin("create", "secret", "generic", "db", "--from-literal=a=b", "--from-literal=c=d", "-n", PACKED)
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": "data", "namespace": PACKED, "labels": {"tollgate.dev/keep": "true"}}
    kept = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim}
    admin("create", "-f", "-", input=json.dumps(kept))
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", f"{folder / 'policy.yaml'}:{POLICIES}"]
    with gateway.running(folder, *arguments) as running:
        config = running.kubeconfig("agent", agent_token, PACKED)
        kubectl = partial(admin, kubeconfig=config, check=False)
        yield SimpleNamespace(kubectl=lambda command: kubectl(*command.split()), gateway=running)
    admin("delete", "namespace", PACKED, "--wait=false")


@pytest.mark.parametrize(
    ("command", "rule"),
    [
        pytest.param("scale deploy web --replicas=0", "workloads/to-zero", id="scale to nothing"),
        pytest.param('patch deploy web -p {"spec":{"replicas":0}}', "workloads/to-zero", id="replicas to nothing"),
        pytest.param("set image deploy/web c=evil.example/x", "workloads/registry", id="an image from elsewhere"),
        pytest.param(
            'patch deploy web -p {"spec":{"template":{"spec":{"hostNetwork":true}}}}', "workloads/host", id="the host"
        ),
        pytest.param("set serviceaccount deploy web deployer", "workloads/service-account", id="another account"),
        pytest.param("set env deploy/web --from=secret/db", "secrets/read", id="a Secret, which it reads first"),
        pytest.param("delete namespace packed", "namespaces/delete-protected", id="a protected namespace"),
        pytest.param("label namespace packed tollgate.dev/protected-", "namespaces/guarding-labels", id="its label"),
        pytest.param("delete pvc data", "storage/delete-kept-claim", id="a claim to keep"),
        pytest.param(
            'patch pvc data --type=merge -p {"metadata":{"finalizers":null}}',
            "storage/unprotect-claim",
            id="a finalizer",
        ),
    ],
)
def test_a_pack_refuses(packed, command, rule):
    done = packed.kubectl(command)
    assert done.returncode != 0
    assert rule in done.stderr
    assert "could not" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("scale deploy web --replicas=2", id="scale down"),
        pytest.param("set image deploy/web c=registry.example/web:2", id="set image"),
        pytest.param("rollout restart deploy web", id="rollout restart"),
        pytest.param("label namespace packed team=shop", id="another label"),
        pytest.param("create configmap mine", id="create"),
        pytest.param("delete deploy web", id="delete"),
    ],
)
def test_a_pack_lets_pass(packed, command):
    done = packed.kubectl(command)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("patch", "status"),
    [
        pytest.param(b'{"data": {"a": null}}', 403, id="a key goes"),
        pytest.param(b'{"data": {"a": "Yg=="}}', 200, id="a key changes"),
        pytest.param(b'{"type": "hunter2/x"}', 422, id="the API server refuses it"),
    ],
)
def test_a_secret_is_looked_at_and_not_shown(packed, agent_token, patch, status):
    one = packed.gateway
    path = f"/api/v1/namespaces/{PACKED}/secrets/db"
    media = {"Content-Type": "application/merge-patch+json"}
    answer = client.request(one.port, one.ca_file, "PATCH", path, token=agent_token, body=patch, headers=media)
    assert answer.status == status
    if status == 403:
        assert "secrets/keys-stay" in answer.message
    if status == 422:
        assert b"hunter2" not in answer.body
    assert "hunter2" not in one.log
