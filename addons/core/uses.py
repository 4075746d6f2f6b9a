"""
Uses: what a workload reaches past the gateway once it runs.

A pod is its ServiceAccount's power, the Secrets and ConfigMaps it mounts, and the host it
may touch, and none of that comes by the gateway again. So a request that sets a pod template
is judged by what that template names.

Only a whole object says all of it. A patch, server-side apply included, is laid over an
object that is not here: an image changed by it runs with the ServiceAccount and mounts that
stay. So a patch that touches a pod's spec is `unknown` besides what it mentions itself.
"""

from collections.abc import Iterator
from typing import Any

from addons.core.impacts import pointer_steps
from addons.core.model import NO_USES, Uses

Path = tuple[str, ...]

NODE_NAME = "nodeName"  # in Uses.host: it chooses its node itself, past the scheduler and the taints

_TEMPLATE: Path = ("spec", "template", "spec")
_JOB_TEMPLATE: Path = ("spec", "jobTemplate", "spec", "template", "spec")

# Where the pod spec is, by (group, resource). Custom resources have none that could be known
# here: an operator acts on them with its own power, and the policy lists them one by one.
POD_SPECS: dict[tuple[str, str], Path] = {
    ("", "pods"): ("spec",),
    ("", "podtemplates"): ("template", "spec"),
    ("", "replicationcontrollers"): _TEMPLATE,
    ("apps", "deployments"): _TEMPLATE,
    ("apps", "replicasets"): _TEMPLATE,
    ("apps", "statefulsets"): _TEMPLATE,
    ("apps", "daemonsets"): _TEMPLATE,
    ("batch", "jobs"): _TEMPLATE,
    ("batch", "cronjobs"): _JOB_TEMPLATE,
}

# Pod Security Standards, "baseline": what a container may add without reaching the node.
_BASELINE_CAPABILITIES = frozenset(
    {
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"),
        *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    }
)
_BASELINE_SYSCTLS = frozenset(
    {
        *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"),
        *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"),
        *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"),
        *("net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"),
    }
)
# Pods of these priority classes push out others' anywhere (pkg/apis/scheduling: reserved for the system).
_SYSTEM_PRIORITY = "system-"
# A toleration of these taints is a place on the control plane.
_NODE_ROLES = "node-role.kubernetes.io/"

_BASELINE_SELINUX = frozenset({"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"})

# Volume sources that name no Secret, ConfigMap or host path of their own. Others are read for
# every key that could (secretRef, secretName, nodePublishSecretRef), and an unlisted one is unknown.
_HARMLESS_VOLUMES = frozenset(
    {
        *("emptyDir", "persistentVolumeClaim", "downwardAPI", "ephemeral", "image", "nfs", "glusterfs", "fc"),
        *("gcePersistentDisk", "awsElasticBlockStore", "azureDisk", "vsphereVolume", "quobyte"),
        *("photonPersistentDisk", "portworxVolume", "flocker"),
    }
)
_SECRET_VOLUMES = frozenset(
    {"iscsi", "rbd", "cephfs", "cinder", "flexVolume", "azureFile", "scaleIO", "storageos", "csi"}
)
# Volume sources that act on the node itself: gitRepo runs git there, as root (CVE-2024-10220).
_HOST_VOLUMES = frozenset({"hostPath", "gitRepo"})
_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")


class _Found:
    """Collects; every method takes whatever a client may have sent in that place."""

    def __init__(self) -> None:
        self.service_accounts: set[str] = set()
        self.secrets: set[str] = set()
        self.config_maps: set[str] = set()
        self.host: set[str] = set()
        self.token = False
        self.unknown = False

    def uses(self) -> Uses:
        return Uses(
            frozenset(self.service_accounts),
            frozenset(self.secrets),
            frozenset(self.config_maps),
            frozenset(self.host),
            self.token,
            self.unknown,
        )

    def a_dict(self, value: Any) -> dict[str, Any]:
        """The value when it is an object; nothing when absent; otherwise nothing, and that is noted."""
        if isinstance(value, dict):
            return value
        if value is not None:
            self.unknown = True
        return {}

    def dicts(self, value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, list):
            for item in value:
                yield self.a_dict(item)
        elif value is not None:
            self.unknown = True

    def name(self, into: set[str], value: Any) -> None:
        """A name; absent and empty ones name nothing over there either."""
        if isinstance(value, str):
            if value:
                into.add(value)
        elif value is not None:
            self.unknown = True


def of_object(group: str, resource: str, content: Any, *, exists: bool = False) -> Uses | None:
    """
    What a whole object uses; None when its resource has no pod template.

    exists: it is there already. Then a pod's node is the scheduler's choice, and cannot be changed.
    """
    path = POD_SPECS.get((group, resource))
    if path is None:
        return None
    found = _Found()
    spec: Any = content
    for step in path:
        spec = found.a_dict(spec).get(step)
    if not isinstance(spec, dict):
        found.unknown = True  # the API server will refuse it, or default it; not ours to guess
        return found.uses()
    _pod_spec(found, spec)
    if exists and (group, resource) == ("", "pods"):
        found.host.discard(NODE_NAME)
    for where in _annotation_paths(path):
        _annotations(found, (group, resource), where, _below(content, where))
    # No name is the ServiceAccount `default` (plugin/pkg/admission/serviceaccount), with its token
    # unless the pod says no. The account itself may say no too, which only the server knows.
    if not found.service_accounts:
        found.service_accounts.add("default")
    if spec.get("automountServiceAccountToken") is not False:
        found.token = True
    return found.uses()


def of_patch(group: str, resource: str, patch: str, content: Any, *, whole_pod: bool = False) -> Uses | None:
    """
    What a patch mentions. `unknown` when it touches the pod spec, for the rest of it is elsewhere.

    A patch of something else in a workload (replicas, labels) uses nothing: NO_USES.
    """
    path = POD_SPECS.get((group, resource))
    if path is None:
        return None
    found = _Found()
    if patch == "json":
        for operation in found.dicts(content):
            _json_operation(found, operation, path)
            for where in _annotation_paths(path):
                _json_annotations(found, (group, resource), operation, where)
    else:
        _overlay(found, content, path)
        for where in _annotation_paths(path):
            _annotations(found, (group, resource), where, _below(content, where))
    found.unknown = found.unknown or whole_pod
    uses = found.uses()
    return NO_USES if uses == NO_USES else uses


# Annotations that are fields in disguise: the API server makes a securityContext of the one
# (pkg/registry/core/pod/strategy.go), the deployment controller puts an old template, with the
# ServiceAccount it had, in the place of the present one for the other (controller/deployment/rollback.go).
_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
_ROLLBACK = "deprecated.deployment.rollback.to"
_OBJECT_ANNOTATIONS: Path = ("metadata", "annotations")


def _annotation_paths(pod_spec: Path) -> frozenset[Path]:
    """Where the object's own annotations are, and its pod template's: beside the pod spec."""
    return frozenset({_OBJECT_ANNOTATIONS, (*pod_spec[:-1], *_OBJECT_ANNOTATIONS)})


def _below(content: Any, path: Path) -> Any:
    for step in path:
        content = content.get(step) if isinstance(content, dict) else None
    return content


def _annotations(found: _Found, kind: tuple[str, str], where: Path, annotations: Any) -> None:
    if isinstance(annotations, dict):
        for key, value in annotations.items():
            _annotation(found, kind, where, key, value)


def _annotation(found: _Found, kind: tuple[str, str], where: Path, key: str, value: Any) -> None:
    if key.startswith(_APPARMOR) and value == "unconfined":
        found.host.add("appArmorProfile")
    if key == _ROLLBACK and value is not None and kind == ("apps", "deployments") and where == _OBJECT_ANNOTATIONS:
        found.unknown = True


def _json_annotations(found: _Found, kind: tuple[str, str], operation: dict[str, Any], where: Path) -> None:
    if operation.get("op") in ("test", "remove"):
        return
    steps = pointer_steps(operation.get("path"))
    shared = min(len(steps), len(where))
    if steps[:shared] != where[:shared]:
        return
    # What a copy or move brings is not in the request.
    hidden = operation.get("op") in ("copy", "move")
    if len(steps) > len(where):
        key = steps[len(where)]
        if hidden and (key.startswith(_APPARMOR) or key == _ROLLBACK):
            found.unknown = True
        elif not hidden:
            _annotation(found, kind, where, key, operation.get("value"))
    elif hidden:
        found.unknown = True
    else:
        _annotations(found, kind, where, _below(operation.get("value"), where[len(steps) :]))


def _overlay(found: _Found, content: Any, path: Path) -> None:
    """A merge, strategic or apply patch: follow the path as far as the patch goes."""
    at = content
    for step in path:
        if not isinstance(at, dict):
            found.unknown = True  # null, or not an object: what is below goes or stays, who knows
            return
        if any(key.startswith("$") for key in at):
            found.unknown = True  # `$patch: replace` and its like reach everything below
        if step not in at:
            return
        at = at[step]
    found.unknown = True
    if isinstance(at, dict):
        _pod_spec(found, at)


def _json_operation(found: _Found, operation: dict[str, Any], path: Path) -> None:
    kind = operation.get("op")
    if kind == "test":
        return
    targets = [operation.get("path")]
    if kind in ("move", "copy"):
        targets.append(operation.get("from"))
    for pointer in targets:
        steps = pointer_steps(pointer)
        shared = min(len(steps), len(path))
        if steps[:shared] != path[:shared]:
            continue  # beside the pod spec: neither in it nor above it
        found.unknown = True
        value = operation.get("value")
        for step in reversed(steps):
            value = [value] if step == "-" or step.isdigit() else {step: value}
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        if isinstance(value, dict):
            _pod_spec(found, value)


def _pod_spec(found: _Found, spec: dict[str, Any]) -> None:
    found.name(found.service_accounts, spec.get("serviceAccountName"))
    # The old name of the same field; a different value in it is dropped over there, here it counts.
    found.name(found.service_accounts, spec.get("serviceAccount"))
    for reference in found.dicts(spec.get("imagePullSecrets")):
        found.name(found.secrets, reference.get("name"))
    if spec.get("automountServiceAccountToken") is True:
        found.token = True
    for switch in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(switch):
            found.host.add(switch)
    _placement(found, spec)
    for volume in found.dicts(spec.get("volumes")):
        _volume(found, volume)
    _security(found, spec.get("securityContext"))
    for kind in _CONTAINERS:
        for container in found.dicts(spec.get(kind)):
            _container(found, container)


def _placement(found: _Found, spec: dict[str, Any]) -> None:
    """What puts it on a node that is not for it, or in the place of others."""
    if spec.get(NODE_NAME):
        found.host.add(NODE_NAME)
    for toleration in found.dicts(spec.get("tolerations")):
        key = toleration.get("key") or ""
        # Without a key it tolerates every taint: the control plane's too, and a drain by one.
        if not isinstance(key, str) or not key or key.startswith(_NODE_ROLES):
            found.host.add("tolerations")
    priority = spec.get("priorityClassName") or ""
    if not isinstance(priority, str) or priority.startswith(_SYSTEM_PRIORITY):
        found.host.add("priorityClassName")


def _volume(found: _Found, volume: dict[str, Any]) -> None:
    for kind, source in volume.items():
        if kind == "name" or kind.startswith("$"):
            continue
        if source is None:
            continue
        if kind == "secret":
            found.name(found.secrets, found.a_dict(source).get("secretName"))
        elif kind == "configMap":
            found.name(found.config_maps, found.a_dict(source).get("name"))
        elif kind in _HOST_VOLUMES:
            found.host.add(kind)
        elif kind == "projected":
            for part in found.dicts(found.a_dict(source).get("sources")):
                _projection(found, part)
        elif kind in _SECRET_VOLUMES:
            _secret_references(found, found.a_dict(source))
        elif kind not in _HARMLESS_VOLUMES:
            found.unknown = True


def _projection(found: _Found, part: dict[str, Any]) -> None:
    for kind, source in part.items():
        if source is None:
            continue
        if kind == "secret":
            found.name(found.secrets, found.a_dict(source).get("name"))
        elif kind == "configMap":
            found.name(found.config_maps, found.a_dict(source).get("name"))
        elif kind == "serviceAccountToken":
            found.token = True
        elif kind not in ("downwardAPI", "clusterTrustBundle", "podCertificate"):
            found.unknown = True


def _secret_references(found: _Found, source: dict[str, Any]) -> None:
    """Secrets by the names that drivers give the field, in attributes and options too."""
    for key, value in source.items():
        folded = key.casefold()
        if folded.endswith("secretref"):
            found.name(found.secrets, found.a_dict(value).get("name"))
        elif folded.endswith("secretname"):
            found.name(found.secrets, value)
        elif folded.endswith("secretproviderclass"):
            found.unknown = True  # another object says which secrets
        elif isinstance(value, dict):
            _secret_references(found, value)


def _container(found: _Found, container: dict[str, Any]) -> None:
    for variable in found.dicts(container.get("env")):
        for kind, source in found.a_dict(variable.get("valueFrom")).items():
            if kind == "secretKeyRef":
                found.name(found.secrets, found.a_dict(source).get("name"))
            elif kind == "configMapKeyRef":
                found.name(found.config_maps, found.a_dict(source).get("name"))
            elif kind not in ("fieldRef", "resourceFieldRef", "fileKeyRef") and not kind.startswith("$"):
                found.unknown = True
    for source in found.dicts(container.get("envFrom")):
        found.name(found.secrets, found.a_dict(source.get("secretRef")).get("name"))
        found.name(found.config_maps, found.a_dict(source.get("configMapRef")).get("name"))
    for port in found.dicts(container.get("ports")):
        if port.get("hostPort"):
            found.host.add("hostPort")
    _security(found, container.get("securityContext"))


def _security(found: _Found, value: Any) -> None:
    """A pod's or container's securityContext, against the "baseline" Pod Security Standard."""
    context = found.a_dict(value)
    if not context:
        return
    if context.get("privileged"):
        found.host.add("privileged")
    added = found.a_dict(context.get("capabilities")).get("add")
    if added and not (isinstance(added, list) and all(cap in _BASELINE_CAPABILITIES for cap in map(str, added))):
        found.host.add("capabilities")
    if context.get("procMount") not in (None, "", "Default"):
        found.host.add("procMount")
    for profile in ("seccompProfile", "appArmorProfile"):
        if found.a_dict(context.get(profile)).get("type") == "Unconfined":
            found.host.add(profile)
    selinux = found.a_dict(context.get("seLinuxOptions"))
    if selinux.get("user") or selinux.get("role") or (selinux.get("type") or "") not in _BASELINE_SELINUX:
        found.host.add("seLinuxOptions")
    if found.a_dict(context.get("windowsOptions")).get("hostProcess"):
        found.host.add("hostProcess")
    for sysctl in found.dicts(context.get("sysctls")):
        if sysctl.get("name") not in _BASELINE_SYSCTLS:
            found.host.add("sysctls")
