import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import uses
from addons.core.model import NO_USES, Uses


def pod(**spec):
    return uses.of_object("", "pods", {"spec": {"containers": [], **spec}})


def container(**fields):
    return pod(containers=[{"name": "c", **fields}])


@pytest.mark.parametrize(("group", "resource"), sorted(uses.POD_SPECS))
def test_every_workload(group, resource):
    spec = {"serviceAccountName": "deployer"}
    for step in reversed(uses.POD_SPECS[group, resource]):
        spec = {step: spec}
    assert uses.of_object(group, resource, spec).service_accounts == {"deployer"}


@pytest.mark.parametrize("key", [("", "secrets"), ("example.com", "deployments"), ("apps", "controllerrevisions")])
def test_no_pod_template(key):
    assert uses.of_object(*key, {"spec": {"template": {"spec": {"serviceAccountName": "a"}}}}) is None
    assert uses.of_patch(*key, "merge", {"spec": {}}) is None


def test_nothing_named_is_the_default_account_with_its_token():
    assert pod() == Uses(service_accounts=frozenset({"default"}), token=True)


@pytest.mark.parametrize(
    ("spec", "token"),
    [
        pytest.param({"automountServiceAccountToken": False}, False, id="switched off"),
        pytest.param({"automountServiceAccountToken": True}, True, id="switched on"),
        pytest.param({"automountServiceAccountToken": None}, True, id="null is absent"),
        pytest.param({"automountServiceAccountToken": 0}, True, id="zero is not false"),
        pytest.param(
            {
                "automountServiceAccountToken": False,
                "volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}],
            },
            True,
            id="projected all the same",
        ),
    ],
)
def test_token(spec, token):
    assert pod(**spec).token is token


def test_both_spellings_of_the_account_count():
    assert pod(serviceAccountName="a", serviceAccount="b").service_accounts == {"a", "b"}


REF = {"name": "s"}


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"imagePullSecrets": [REF]}, id="pull secret"),
        pytest.param({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}, id="secret"),
        pytest.param({"volumes": [{"projected": {"sources": [{"secret": REF}]}}]}, id="projected"),
        pytest.param({"volumes": [{"csi": {"nodePublishSecretRef": REF}}]}, id="csi"),
        pytest.param({"volumes": [{"azureFile": {"secretName": "s"}}]}, id="azureFile"),
        *(
            pytest.param({"volumes": [{kind: {"secretRef": REF}}]}, id=kind)
            for kind in ("cephfs", "cinder", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos")
        ),
        *(
            pytest.param({kind: [{"env": [{"name": "A", "valueFrom": {"secretKeyRef": REF}}]}]}, id=f"env of {kind}")
            for kind in ("containers", "initContainers", "ephemeralContainers")
        ),
        pytest.param({"containers": [{"envFrom": [{"secretRef": REF}]}]}, id="envFrom"),
    ],
)
def test_secrets(spec):
    found = pod(**spec)
    assert found.secrets == {"s"}
    assert not found.unknown


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"volumes": [{"configMap": REF}]}, id="volume"),
        pytest.param({"volumes": [{"projected": {"sources": [{"configMap": REF}]}}]}, id="projected"),
        pytest.param({"containers": [{"env": [{"valueFrom": {"configMapKeyRef": REF}}]}]}, id="env"),
        pytest.param({"containers": [{"envFrom": [{"configMapRef": REF}]}]}, id="envFrom"),
    ],
)
def test_config_maps(spec):
    assert pod(**spec).config_maps == {"s"}


@pytest.mark.parametrize(
    ("spec", "host"),
    [
        pytest.param({"hostNetwork": True}, "hostNetwork", id="network"),
        pytest.param({"hostPID": True}, "hostPID", id="pid"),
        pytest.param({"hostIPC": True}, "hostIPC", id="ipc"),
        pytest.param({"volumes": [{"hostPath": {"path": "/"}}]}, "hostPath", id="path"),
        pytest.param({"containers": [{"ports": [{"hostPort": 80}]}]}, "hostPort", id="port"),
        pytest.param({"initContainers": [{"securityContext": {"privileged": True}}]}, "privileged", id="privileged"),
        pytest.param(
            {"containers": [{"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]},
            "capabilities",
            id="capability",
        ),
        pytest.param(
            {"containers": [{"securityContext": {"capabilities": {"add": ["ALL"]}}}]}, "capabilities", id="all"
        ),
        pytest.param({"containers": [{"securityContext": {"procMount": "Unmasked"}}]}, "procMount", id="procMount"),
        pytest.param({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, "seccompProfile", id="seccomp"),
        pytest.param(
            {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}, "appArmorProfile", id="apparmor"
        ),
        pytest.param({"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}, "seLinuxOptions", id="selinux type"),
        pytest.param({"securityContext": {"seLinuxOptions": {"user": "root"}}}, "seLinuxOptions", id="selinux user"),
        pytest.param({"securityContext": {"windowsOptions": {"hostProcess": True}}}, "hostProcess", id="windows"),
        pytest.param({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}, "sysctls", id="sysctl"),
        pytest.param({"nodeName": "control-1"}, "nodeName", id="node"),
        pytest.param({"tolerations": [{"operator": "Exists"}]}, "tolerations", id="every taint"),
        pytest.param(
            {"tolerations": [{"key": "", "operator": "Exists", "effect": "NoExecute"}]}, "tolerations", id="all"
        ),
        pytest.param({"tolerations": [{"key": None, "operator": "Exists"}]}, "tolerations", id="no key is every key"),
        pytest.param(
            {"tolerations": [{"key": "node-role.kubernetes.io/control-plane"}]}, "tolerations", id="the control plane's"
        ),
        pytest.param({"priorityClassName": "system-node-critical"}, "priorityClassName", id="the system's priority"),
    ],
)
def test_host(spec, host):
    assert pod(**spec).host == {host}


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"hostNetwork": False}, id="false"),
        pytest.param({"nodeName": "", "priorityClassName": "", "tolerations": None}, id="empty"),
        pytest.param({"priorityClassName": "batch-low"}, id="priority"),
        pytest.param(
            {"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300}]},
            id="the tolerations that every pod gets",
        ),
        pytest.param({"nodeSelector": {"kubernetes.io/os": "linux"}}, id="selector"),
        pytest.param(
            {"containers": [{"securityContext": {"capabilities": {"add": ["CHOWN"], "drop": ["ALL"]}}}]}, id="cap"
        ),
        pytest.param({"securityContext": {"seLinuxOptions": {"type": "container_t"}}}, id="selinux"),
        pytest.param({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies"}]}}, id="sysctl"),
        pytest.param({"securityContext": {"runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}}}, id="plain"),
        pytest.param({"volumes": [{"emptyDir": {}}, {"persistentVolumeClaim": {"claimName": "c"}}]}, id="volumes"),
    ],
)
def test_baseline_is_no_host_access(spec):
    found = pod(**spec)
    assert found.host == frozenset()
    assert not found.unknown


def test_the_node_of_a_pod_that_is_there_is_the_schedulers_choice():
    there = {"spec": {"nodeName": "n1", "hostPID": True, "containers": []}}
    assert uses.of_object("", "pods", there, exists=True).host == {"hostPID"}
    template = {"spec": {"template": {"spec": {"nodeName": "n1", "containers": []}}}}
    assert uses.of_object("apps", "deployments", template, exists=True).host == {"nodeName"}


def test_a_patch_that_names_a_node_says_so():
    assert uses.of_patch("", "pods", "apply", {"spec": {"nodeName": "n1"}}).host == {"nodeName"}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="nothing"),
        pytest.param({}, id="no spec"),
        pytest.param({"spec": []}, id="spec is a list"),
        pytest.param({"spec": {"containers": "x"}}, id="containers are text"),
        pytest.param({"spec": {"containers": ["x"]}}, id="a container is text"),
        pytest.param({"spec": {"volumes": [{"fromTheFuture": {}}]}}, id="unknown volume"),
        pytest.param({"spec": {"volumes": [{"projected": {"sources": [{"fromTheFuture": {}}]}}]}}, id="unknown source"),
        pytest.param({"spec": {"containers": [{"env": [{"valueFrom": {"fromTheFuture": {}}}]}]}}, id="unknown env"),
        pytest.param({"spec": {"serviceAccountName": 1}}, id="name is a number"),
        pytest.param({"spec": {"tolerations": "all"}}, id="tolerations are text"),
    ],
)
def test_unreadable_is_unknown(content):
    assert uses.of_object("", "pods", content).unknown


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "spec",
                    "template",
                    "containers",
                    "volumes",
                    "env",
                    "valueFrom",
                    "secret",
                    "projected",
                    "securityContext",
                ]
            ),
            inner,
        )
    ),
)


@given(ANY, st.sampled_from(sorted(uses.POD_SPECS)), st.sampled_from(["merge", "strategic", "apply"]))
def test_any_shape_is_read(content, key, patch):
    assert isinstance(uses.of_object(*key, content), Uses)
    assert isinstance(uses.of_patch(*key, patch, content), Uses)


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param({"metadata": {"labels": {"a": "b"}}}, id="labels"),
        pytest.param({"spec": {"replicas": 0}}, id="replicas"),
        pytest.param({"spec": {"paused": True}}, id="paused"),
        pytest.param(
            {"spec": {"template": {"metadata": {"annotations": {"restartedAt": "now"}}}}}, id="rollout restart"
        ),
        pytest.param({}, id="empty"),
    ],
)
@pytest.mark.parametrize("kind", ["merge", "strategic", "apply"])
def test_patch_beside_the_pod_spec_uses_nothing(patch, kind):
    assert uses.of_patch("apps", "deployments", kind, patch) is NO_USES


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "x"}]}}}}, id="image"),
        pytest.param({"spec": {"template": {"spec": None}}}, id="pod spec gone"),
        pytest.param({"spec": {"template": None}}, id="template gone"),
        pytest.param({"spec": None}, id="spec gone"),
        pytest.param({"spec": {"$patch": "replace", "replicas": 1}}, id="spec replaced"),
        pytest.param({"$patch": "replace"}, id="all replaced"),
        pytest.param({"$retainKeys": []}, id="keys retained"),
        pytest.param([], id="a list"),
    ],
)
def test_patch_that_touches_it_is_unknown(patch):
    assert uses.of_patch("apps", "deployments", "strategic", patch).unknown


def test_apply_is_laid_over_what_is_there():
    # Server-side apply of an image alone keeps the ServiceAccount and the mounts of the live object.
    spec = {"serviceAccountName": "a", "volumes": [{"secret": {"secretName": "s"}}]}
    found = uses.of_patch("apps", "deployments", "apply", {"spec": {"template": {"spec": spec}}})
    assert (found.service_accounts, found.secrets, found.unknown) == ({"a"}, {"s"}, True)


@pytest.mark.parametrize(
    ("operation", "unknown"),
    [
        pytest.param({"op": "replace", "path": "/spec/replicas", "value": 3}, False, id="replicas"),
        pytest.param({"op": "add", "path": "/metadata/labels/a", "value": "b"}, False, id="label"),
        pytest.param({"op": "test", "path": "/spec/template/spec", "value": {}}, False, id="test"),
        pytest.param({"op": "add", "path": "/spec/templates", "value": 1}, False, id="another name"),
        pytest.param(
            {"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "x"}, True, id="image"
        ),
        pytest.param({"op": "replace", "path": "/spec/template", "value": {}}, True, id="rollout undo"),
        pytest.param({"op": "replace", "path": "", "value": {}}, True, id="the whole"),
        pytest.param({"op": "remove", "path": "/spec"}, True, id="remove"),
        pytest.param(
            {"op": "copy", "from": "/metadata/annotations/x", "path": "/spec/template/spec/x"}, True, id="copy in"
        ),
        pytest.param({"op": "move", "from": "/spec/template/spec/volumes", "path": "/metadata/x"}, True, id="move out"),
    ],
)
def test_json_patch(operation, unknown):
    assert uses.of_patch("apps", "deployments", "json", [operation]).unknown is unknown


def test_json_patch_says_what_it_sets():
    operations = [
        {"op": "add", "path": "/spec/template/spec/serviceAccountName", "value": "a"},
        {"op": "add", "path": "/spec/template/spec/volumes/-", "value": {"secret": {"secretName": "s"}}},
        {"op": "add", "path": "/spec/template/spec", "value": {"hostPID": True}},
    ]
    found = uses.of_patch("apps", "deployments", "json", operations)
    assert (found.service_accounts, found.secrets, found.host) == ({"a"}, {"s"}, {"hostPID"})


def test_a_container_put_into_a_running_pod_is_unknown():
    patch = {"spec": {"ephemeralContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s"}}}]}]}}
    found = uses.of_patch("", "pods", "strategic", patch, whole_pod=True)
    assert (found.secrets, found.unknown) == ({"s"}, True)


APPARMOR = "container.apparmor.security.beta.kubernetes.io/c"
ROLLBACK = "deprecated.deployment.rollback.to"
SLASHED = APPARMOR.replace("/", "~1")


@pytest.mark.parametrize(
    ("resource", "patch", "content", "host", "unknown"),
    [
        pytest.param(
            "deployments", "merge", {"metadata": {"annotations": {ROLLBACK: "1"}}}, set(), True, id="rollback"
        ),
        pytest.param(
            "deployments", "merge", {"metadata": {"annotations": {ROLLBACK: None}}}, set(), False, id="taken off"
        ),
        pytest.param(
            "statefulsets",
            "merge",
            {"metadata": {"annotations": {ROLLBACK: "1"}}},
            set(),
            False,
            id="no controller reads it there",
        ),
        pytest.param("deployments", "merge", {"metadata": {"annotations": {"a": "b"}}}, set(), False, id="another"),
        pytest.param(
            "deployments",
            "merge",
            {"spec": {"template": {"metadata": {"annotations": {APPARMOR: "unconfined"}}}}},
            {"appArmorProfile"},
            False,
            id="AppArmor of the template",
        ),
        pytest.param(
            "deployments",
            "json",
            [{"op": "add", "path": f"/metadata/annotations/{ROLLBACK}", "value": "1"}],
            set(),
            True,
            id="JSON patch at the annotation",
        ),
        pytest.param(
            "deployments",
            "json",
            [{"op": "add", "path": "/metadata/annotations", "value": {ROLLBACK: "1"}}],
            set(),
            True,
            id="JSON patch above it",
        ),
        pytest.param(
            "deployments",
            "json",
            [{"op": "copy", "from": "/metadata/labels", "path": "/metadata/annotations"}],
            set(),
            True,
            id="a copy hides what comes",
        ),
        pytest.param(
            "deployments",
            "json",
            [{"op": "move", "from": "/metadata/labels/x", "path": f"/metadata/annotations/{ROLLBACK}"}],
            set(),
            True,
            id="a move too",
        ),
        pytest.param(
            "deployments",
            "json",
            [{"op": "add", "path": f"/spec/template/metadata/annotations/{SLASHED}", "value": "unconfined"}],
            {"appArmorProfile"},
            False,
            id="JSON AppArmor",
        ),
        pytest.param(
            "deployments", "json", [{"op": "remove", "path": "/metadata/annotations"}], set(), False, id="removed"
        ),
    ],
)
def test_annotations_that_are_fields_in_disguise(resource, patch, content, host, unknown):
    found = uses.of_patch("apps", resource, patch, content)
    assert (found.host, found.unknown) == (frozenset(host), unknown)


@pytest.mark.parametrize(
    ("volume", "secrets", "host", "unknown"),
    [
        pytest.param({"csi": {"volumeAttributes": {"secretName": "s"}}}, {"s"}, set(), False, id="CSI attribute"),
        pytest.param(
            {"csi": {"volumeAttributes": {"secretProviderClass": "p"}}}, set(), set(), True, id="provider class"
        ),
        pytest.param({"flexVolume": {"options": {"secretName": "s"}}}, {"s"}, set(), False, id="flexVolume option"),
        pytest.param({"gitRepo": {"repository": "x"}}, set(), {"gitRepo"}, False, id="gitRepo"),
    ],
)
def test_volumes_that_name_secrets_their_own_way(volume, secrets, host, unknown):
    found = uses.of_object("", "pods", {"spec": {"volumes": [{"name": "v", **volume}]}})
    assert (found.secrets, found.host, found.unknown) == (frozenset(secrets), frozenset(host), unknown)


def test_apparmor_of_a_whole_pod():
    pod = {"metadata": {"annotations": {APPARMOR: "unconfined"}}, "spec": {"containers": []}}
    assert uses.of_object("", "pods", pod).host == {"appArmorProfile"}
