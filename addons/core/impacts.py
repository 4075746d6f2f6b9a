"""
Impacts: what an operation may do, as tables of facts about Kubernetes' API.

The set holds every impact that cannot be excluded from the request alone; its greatest
member is the operation's severity. Where a table knows nothing (a subresource of an
aggregated API, a URL outside the API) the careful word stands: execute, reveal.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from addons.core import resources
from addons.core.model import Impact, RequestInfo

Impacts = frozenset[Impact]

READ = frozenset({Impact.READ})
_META = frozenset({Impact.META})
_REVEAL = frozenset({Impact.READ, Impact.REVEAL})
_EXECUTE = frozenset({Impact.EXECUTE})
_ESCALATE = frozenset({Impact.ESCALATE})

_BY_VERB: dict[str, Impacts] = {
    "get": READ,
    "list": READ,
    "watch": READ,
    "create": frozenset({Impact.WRITE}),
    "update": frozenset({Impact.WRITE}),
    "patch": frozenset({Impact.WRITE}),
    "delete": frozenset({Impact.DELETE}),
    # Also a delete: a rule or a budget on deletes counts it.
    "deletecollection": frozenset({Impact.DELETE, Impact.MASS_DELETE}),
    # `/api/v1/proxy/…`: gone from the API server, never harmless.
    "proxy": _EXECUTE,
}
_READS = frozenset({"get", "list", "watch"})

# Pages outside the API that hold nothing of the cluster's content.
_META_PAGES = frozenset(
    {
        *("/", "/api", "/apis", "/version", "/healthz", "/livez", "/readyz", "/openapi/v2", "/openapi/v3"),
        *("/.well-known/openid-configuration", "/openid/v1/jwks"),
    }
)
_META_BELOW = re.compile(
    r"/api/[a-z0-9]+|/apis/[a-z0-9.-]+(?:/[a-z0-9]+)?"  # a group's or version's resources
    r"|/openapi/v3/(?:api|apis)(?:/[a-z0-9.-]+)*|/openapi/v3/(?:version|\.well-known/openid-configuration|openid/v1/jwks)"
    r"|/(?:healthz|livez|readyz)/[A-Za-z0-9/_.-]+"
)

# (group, resource) that answer a question and store nothing.
REVIEWS: dict[tuple[str, str], Impacts] = {
    # About oneself: kubectl auth whoami, can-i.
    ("authentication.k8s.io", "selfsubjectreviews"): _META,
    ("authorization.k8s.io", "selfsubjectaccessreviews"): _META,
    ("authorization.k8s.io", "selfsubjectrulesreviews"): _META,
    # About others: whether a token is good, what somebody may do.
    ("authentication.k8s.io", "tokenreviews"): _REVEAL,
    ("authorization.k8s.io", "subjectaccessreviews"): _REVEAL,
    ("authorization.k8s.io", "localsubjectaccessreviews"): _REVEAL,
}

# Subresources known to do no more than their verb says, by name; those not here may run anything.
_PLAIN_SUBRESOURCES = frozenset({"status", "scale", "log", "eviction", "binding", "approval", "token"})
_PLAIN_BY_RESOURCE: dict[tuple[str, str], frozenset[str]] = {
    ("", "pods"): _PLAIN_SUBRESOURCES | {"resize", "ephemeralcontainers"},
    ("", "namespaces"): frozenset({"status", "finalize"}),
}
_PLAIN_ANYWHERE = frozenset({"status", "scale"})  # also what a CRD can have

# Writes to these groups and resources give power over others, or take a guard away.
_ESCALATING_GROUPS = frozenset(
    {
        "rbac.authorization.k8s.io",
        "admissionregistration.k8s.io",
        "apiregistration.k8s.io",
        "apiextensions.k8s.io",
        "internal.apiserver.k8s.io",
    }
)
_ESCALATING_RESOURCES = frozenset(
    {
        ("", "nodes"),
        ("", "persistentvolumes"),  # a hostPath of one's choice
        ("", "bindings"),
        ("scheduling.k8s.io", "priorityclasses"),
        ("certificates.k8s.io", "clustertrustbundles"),
    }
)
_ESCALATING_SUBRESOURCES = frozenset(
    {
        ("", "pods", "binding"),
        ("", "serviceaccounts", "token"),
        ("", "namespaces", "finalize"),
        ("", "services", "status"),  # its load balancer's addresses, as externalIPs below
        ("certificates.k8s.io", "certificatesigningrequests", "approval"),
        ("certificates.k8s.io", "certificatesigningrequests", "status"),
        ("certificates.k8s.io", "podcertificaterequests", "status"),
    }
)
# One DELETE that takes much else along.
_MASS_DELETES = frozenset(
    {
        ("", "namespaces"),
        ("", "nodes"),
        ("", "persistentvolumes"),
        ("apiextensions.k8s.io", "customresourcedefinitions"),
    }
)

# Secret types that are credentials for the API server as soon as they are stored.
_TOKEN_TYPES = frozenset({"kubernetes.io/service-account-token", "bootstrap.kubernetes.io/token"})
_TOKEN_ANNOTATION = "kubernetes.io/service-account."  # noqa: S105 - .name and .uid, not a password
# Set by everybody's kubectl or by the API server itself on every Namespace.
_PLAIN_LABELS = frozenset({"kubernetes.io/metadata.name"})
_PLAIN_ANNOTATIONS = frozenset({"kubectl.kubernetes.io/last-applied-configuration"})


def of_page(method: str, path: str) -> Impacts:
    """A request outside the API's resources."""
    reads = method in ("GET", "HEAD")
    if reads and (path in _META_PAGES or _META_BELOW.fullmatch(path)):
        return _META
    # /metrics, /logs, /debug, and whatever an extension serves: unknown is not harmless.
    return _REVEAL if reads else _REVEAL | {Impact.WRITE, Impact.EXECUTE}


def of_resource(info: RequestInfo, own_namespace: str) -> Impacts:
    """What method and URL say. The body can only add to it (of_body)."""
    key = (info.api_group, info.resource)
    review = REVIEWS.get(key)
    if review is not None and info.verb == "create" and not info.subresource:
        return review
    found = _BY_VERB.get(info.verb, _EXECUTE)
    if info.api_group == resources.OWN_GROUP and info.verb == "delete":
        # It cancels a question or ends a grant: nothing of the cluster goes, and a loop over them is
        # no mass delete.
        found = _BY_VERB["update"]
    writes = info.verb not in _READS
    if info.resource == "secrets" and not info.api_group:
        # A write too: its answer holds the whole Secret, dry run or not.
        found |= {Impact.REVEAL}
        if writes and info.name.startswith("bootstrap-token-"):
            found |= _ESCALATE
    if info.subresource:
        found |= _of_subresource(info, writes)
    elif info.verb == "delete" and key in _MASS_DELETES:
        found |= {Impact.MASS_DELETE}
    if writes and (info.api_group in _ESCALATING_GROUPS or key in _ESCALATING_RESOURCES):
        found |= _ESCALATE
    if info.verb in ("update", "deletecollection") and key == ("", "namespaces") and not info.subresource:
        # A PUT carries all labels; which ones it changes is not known here.
        found |= _ESCALATE
    if found != READ and is_own(info, info.name, own_namespace):
        found |= _ESCALATE
    return found


def _of_subresource(info: RequestInfo, writes: bool) -> Impacts:
    sub, key = info.subresource, (info.api_group, info.resource)
    extra: set[Impact] = set()
    plain = _PLAIN_BY_RESOURCE.get(key, _plain_for(info.api_group))
    if sub not in plain or len(info.parts) > 3:
        # exec, attach, portforward, proxy, and all that nobody here has heard of.
        extra.add(Impact.EXECUTE)
    if sub == "ephemeralcontainers" and writes:
        extra.add(Impact.EXECUTE)
    if sub == "eviction" and writes:
        extra.add(Impact.DELETE)
    if sub == "token":
        extra |= {Impact.REVEAL, Impact.ESCALATE}
    if (*key, sub) in _ESCALATING_SUBRESOURCES and writes:
        extra.add(Impact.ESCALATE)
    if key == ("", "nodes") and sub != "status":
        extra.add(Impact.ESCALATE)  # the kubelet's whole API
    return frozenset(extra)


def _plain_for(group: str) -> frozenset[str]:
    # An API server of somebody else may call a door `approval`.
    return _PLAIN_SUBRESOURCES if group in BUILTIN_GROUPS else _PLAIN_ANYWHERE


def is_own(info: RequestInfo, name: str, own_namespace: str) -> bool:
    """Whether a request may reach the gateway's own objects."""
    if info.api_group == resources.OWN_GROUP:
        # Records that the gateway keeps for its callers, whatever they name them. Who decides one is
        # said by core.approvals for each.
        return False
    if info.namespace and info.resource != "namespaces":
        return info.namespace == own_namespace
    if info.verb == "deletecollection":
        return True  # of a cluster-wide kind: no name is excluded
    return name.startswith("tollgate") or (info.resource == "namespaces" and name == own_namespace)


def of_body(info: RequestInfo, name: str, patch: str, content: Any, own_namespace: str) -> Impacts:
    """What the body adds. `content` is a whole object, or a patch of the given kind."""
    key = (info.api_group, info.resource)
    found: set[Impact] = set()
    if info.verb == "create" and not info.name and not info.namespace:
        generated = _mapping(_mapping(content).get("metadata")).get("generateName")
        if is_own(info, name or (generated if isinstance(generated, str) else ""), own_namespace):
            found.add(Impact.ESCALATE)
    if content and destroys(info, patch, content):
        found.add(Impact.DELETE)
    if info.subresource or not content:
        return frozenset(found)
    is_token = key == ("", "secrets") and _is_token(name, patch, content)
    if is_token or (key == ("", "namespaces") and _relabels(patch, content)):
        found.add(Impact.ESCALATE)
    elif key == ("", "pods") and touches(patch, content, ("spec", "ephemeralContainers")):
        found.add(Impact.EXECUTE)
    elif key == ("", "services") and puts(patch, content, EXTERNAL_IPS, is_something):
        # Traffic of the whole cluster to that address goes to this Service (CVE-2020-8554).
        found.add(Impact.ESCALATE)
    return frozenset(found)


def _is_token(name: str, patch: str, content: Any) -> bool:
    """Whether a Secret becomes, or may become, a credential for the API server."""
    if patch == "json":
        # `copy` and `move` may bring a type or an annotation from anywhere.
        return any(
            operation.get("op") in ("move", "copy")
            or touches_pointer(operation, ("type",))
            or touches_pointer(operation, ("metadata", "annotations"))
            for operation in content
        )
    if name.startswith("bootstrap-token-"):
        return True
    secret = _mapping(content)
    kind = secret.get("type")
    if kind is not None and (not isinstance(kind, str) or kind in _TOKEN_TYPES):
        return True
    annotations = _mapping(secret.get("metadata")).get("annotations")
    return any(key.startswith(_TOKEN_ANNOTATION) for key in _mapping(annotations))


def _relabels(patch: str, content: Any) -> bool:
    """Whether labels or annotations of a Namespace may change: Pod Security and policies hang on them."""
    if patch == "apply":
        # Leaving a label out removes it, for the owner that the client claims to be.
        return True
    if patch == "json":
        return any(
            touches_pointer(operation, ("metadata", field))
            for operation in content
            for field in ("labels", "annotations")
        )
    if any(key.startswith("$") for key in content):
        return True
    if "metadata" not in content:
        return False
    metadata = content["metadata"]
    if not isinstance(metadata, dict) or any(key.startswith("$") for key in metadata):
        return True
    fields = (("labels", _PLAIN_LABELS), ("annotations", _PLAIN_ANNOTATIONS))
    return not all(field not in metadata or _only(metadata[field], allowed, patch) for field, allowed in fields)


def _only(value: Any, allowed: frozenset[str], patch: str) -> bool:
    if value is None:
        return not patch  # null in an object is nothing; in a patch it takes all of them away
    return isinstance(value, dict) and value.keys() <= allowed


def touches(patch: str, content: Any, path: tuple[str, ...]) -> bool:
    """Whether an object or patch reaches what is at the path, or might (null, directives)."""
    if patch == "json":
        return any(touches_pointer(operation, path) for operation in content)
    at = content
    for step in path:
        if not isinstance(at, dict):
            return True
        if step not in at:
            return False
        at = at[step]
    return at is not None


def pointer_steps(pointer: Any) -> tuple[str, ...]:
    """A JSON pointer (RFC 6901) taken apart. "" is the whole document: no steps."""
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in str(pointer).split("/")[1:])


def touches_pointer(operation: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    """Whether an operation of a JSON patch writes at, above or below a path."""
    if operation.get("op") == "test":
        return False
    pointers = [pointer_steps(operation.get("path"))]
    if operation.get("op") == "move":  # also takes away
        pointers.append(pointer_steps(operation.get("from")))
    return any(p[: len(path)] == path[: len(p)] for p in pointers)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


# Destruction without a DELETE: fields at which a controller or the garbage collector takes objects
# away, each with a test of the value that is put there. A ReplicaSet at 0 stops its pods; an object
# whose finalizers go is gone without the clean-up it waited for; one whose owner is not there is
# collected within 3 s (tried); a pod that loses a label is replaced, one that gains it may be
# deleted as one too many.
Path = tuple[str, ...]
ABSENT: Any = object()


def is_zero(value: Any) -> bool:
    # Also 0.0 and "0": the API server refuses them, and a reader that did not would be wrong once.
    return value in (0, "0") and value is not False


def is_anything(_: Any) -> bool:
    return True


def _is_true(value: Any) -> bool:
    return value is True


def is_something(value: Any) -> bool:
    return value not in (None, [], {}, "")


def _evicts(taints: Any) -> bool:
    return not isinstance(taints, list) or any(_mapping(taint).get("effect") == "NoExecute" for taint in taints)


def _forbids_pods(hard: Any) -> bool:
    return any(is_zero(limit) for limit in _mapping(hard).values())


def _cuts_off(spec: Any) -> bool:
    """A NetworkPolicy for every pod of the namespace that lets nothing in, or nothing out."""
    spec = _mapping(spec)
    selector = _mapping(spec.get("podSelector"))
    if selector.get("matchLabels") or selector.get("matchExpressions"):
        return False
    types = spec.get("policyTypes") or ["Ingress"]
    return any(not spec.get(str(kind).lower()) for kind in types)


type Test = Callable[[Any], bool]
EXTERNAL_IPS: Path = ("spec", "externalIPs")
FINALIZERS: Path = ("metadata", "finalizers")
OWNERS: Path = ("metadata", "ownerReferences")
LABELS: Path = ("metadata", "labels")
REPLICAS: Path = ("spec", "replicas")
_ANY_OBJECT: tuple[tuple[Path, Test], ...] = ((FINALIZERS, is_anything), (OWNERS, is_anything))
_PRIORITY: tuple[tuple[Path, Test], ...] = (
    # A pod of a higher priority takes others' place.
    (("spec", "template", "spec", "priorityClassName"), is_something),
    (("spec", "template", "spec", "priority"), is_something),
)
_SCALED: tuple[tuple[Path, Test], ...] = ((REPLICAS, is_zero), *_PRIORITY)
DESTROYING: dict[tuple[str, str], tuple[tuple[Path, Test], ...]] = {
    ("", "pods"): (
        (LABELS, is_anything),
        (("spec", "priorityClassName"), is_something),
        (("spec", "priority"), is_something),
    ),
    ("", "replicationcontrollers"): (*_SCALED, (("spec", "selector"), is_anything)),
    ("apps", "deployments"): (*_SCALED, (("spec", "revisionHistoryLimit"), is_anything)),
    ("apps", "replicasets"): _SCALED,
    ("apps", "statefulsets"): (
        *_SCALED,
        (("spec", "revisionHistoryLimit"), is_anything),
        (("spec", "persistentVolumeClaimRetentionPolicy"), is_anything),
    ),
    ("apps", "daemonsets"): (
        *_PRIORITY,
        (("spec", "template", "spec", "nodeSelector"), is_anything),
        (("spec", "template", "spec", "affinity"), is_anything),
    ),
    ("batch", "jobs"): (
        *_PRIORITY,
        (("spec", "parallelism"), is_zero),
        (("spec", "suspend"), _is_true),
        (("spec", "ttlSecondsAfterFinished"), is_something),
    ),
    ("batch", "cronjobs"): (
        (("spec", "successfulJobsHistoryLimit"), is_anything),
        (("spec", "failedJobsHistoryLimit"), is_anything),
        (("spec", "jobTemplate", "spec", "ttlSecondsAfterFinished"), is_something),
    ),
    ("autoscaling", "horizontalpodautoscalers"): ((("spec", "minReplicas"), is_zero),),
    ("", "resourcequotas"): ((("spec", "hard"), _forbids_pods),),
    ("networking.k8s.io", "networkpolicies"): ((("spec",), _cuts_off),),
    ("", "nodes"): ((("spec", "taints"), _evicts),),
}
# Of these, what a new object says takes from others at once; the rest needs something that is there.
_ALSO_NEW = frozenset({OWNERS, *(path for path, _ in _PRIORITY), ("spec", "priorityClassName"), ("spec", "priority")})
_ALSO_NEW_KINDS = frozenset({("", "resourcequotas"), ("networking.k8s.io", "networkpolicies")})


def destroys(info: RequestInfo, patch: str, content: Any) -> bool:
    """
    Whether a body takes objects away, as far as it says so itself.

    A JSON, merge or strategic patch names what it changes. A PUT and a server-side apply repeat
    what is there: addons.core.blast compares those with the live object.
    """
    key = (info.api_group, info.resource)
    if info.subresource:
        return info.subresource == "scale" and puts(patch, content, REPLICAS, is_zero)
    if info.verb == "create":
        if key in _ALSO_NEW_KINDS:
            return any(puts("", content, path, test) for path, test in DESTROYING[key])
        wanted = [(path, is_something) for path in _ALSO_NEW if path == OWNERS or (key in DESTROYING)]
        return any(puts("", content, path, test) for path, test in wanted)
    if info.verb != "patch" or patch == "apply":
        return False
    if patch == "json" and key in _ROLLED_OUT and any(_replaces_template(operation) for operation in content):
        return True
    return any(puts(patch, content, path, test) for path, test in (*_ANY_OBJECT, *DESTROYING.get(key, ())))


# `kubectl rollout undo` is a JSON patch that puts a whole older pod template in the place of the
# present one: every pod goes, and what runs then, nobody has written in this request.
_ROLLED_OUT = frozenset({("apps", "deployments"), ("apps", "daemonsets"), ("apps", "statefulsets")})


def _replaces_template(operation: Any) -> bool:
    return isinstance(operation, dict) and operation.get("path") == "/spec/template"


def puts(patch: str, content: Any, path: Path, test: Test) -> bool:
    """Whether an object or a patch puts a value at the path that the test is true of, or might."""
    if patch == "json":
        return any(_operation_puts(operation, path, test) for operation in content)
    found = value_at(content, path, directives=patch == "strategic")
    if found is ABSENT:
        return False
    if found is None and patch == "strategic":
        # `$patch: replace` takes away what is there, and puts the rest of the map in its place.
        there = value_at(content, path)
        if there is not ABSENT and there is not None and test(there):
            return True
    if patch == "strategic" and path == FINALIZERS and isinstance(found, list):
        return False  # its list is merged in: it only adds
    # `null` in a patch takes the field away; in an object it is nothing.
    return test(found) if found is not None or patch else False


def _operation_puts(operation: Any, path: Path, test: Test) -> bool:
    if not isinstance(operation, dict) or not touches_pointer(operation, path):
        return False
    if operation.get("op") in ("move", "copy"):
        return True  # the value is not here
    steps = pointer_steps(operation.get("path"))
    if operation.get("op") == "remove":
        return test(None)
    if len(steps) > len(path):
        return test is not is_zero  # somewhere in it
    found = value_at(operation.get("value"), path[len(steps) :])
    return test(None if found is ABSENT else found)


def value_at(content: Any, path: Path, *, directives: bool = False) -> Any:
    """What is at the path: ABSENT when nothing says so; None also when something above takes it away."""
    at = content
    for step in path:
        if at is None:
            return None
        if not isinstance(at, dict):
            return ABSENT
        if directives and ("$patch" in at or f"$deleteFromPrimitiveList/{step}" in at):
            return None
        if step not in at:
            return ABSENT
        at = at[step]
    return at


# Groups that kube-apiserver itself serves. Any other may be an aggregated API server, which does
# with `dryRun` what it likes.
BUILTIN_GROUPS = frozenset(
    {
        *("", "admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io", "apps"),
        *("authentication.k8s.io", "authorization.k8s.io", "autoscaling", "batch", "certificates.k8s.io"),
        *("coordination.k8s.io", "discovery.k8s.io", "events.k8s.io", "flowcontrol.apiserver.k8s.io"),
        *("internal.apiserver.k8s.io", "networking.k8s.io", "node.k8s.io", "policy", "rbac.authorization.k8s.io"),
        *("resource.k8s.io", "scheduling.k8s.io", "storage.k8s.io", "storagemigration.k8s.io"),
    }
)
# Where `dryRun` is honoured: main resources and these. TokenRequest takes it and still returns a
# working token; connect subresources refuse it.
_DRY_RUN_SUBRESOURCES = frozenset({"", "status", "scale", "eviction", "ephemeralcontainers", "binding"})
_PERSISTING = frozenset({Impact.WRITE, Impact.DELETE, Impact.MASS_DELETE})


def dry_run_possible(info: RequestInfo) -> bool:
    """Whether the API server surely honours a dry run here."""
    return (
        info.is_resource_request
        and info.verb in ("create", "update", "patch", "delete", "deletecollection")
        and info.api_group in BUILTIN_GROUPS
        and info.subresource in _DRY_RUN_SUBRESOURCES
        and len(info.parts) <= 3
        and (info.api_group, info.resource) not in REVIEWS
    )


def lowered(impacts: Impacts) -> Impacts:
    """The impacts of a dry run: nothing is stored or deleted, but the answer shows the object."""
    return impacts - _PERSISTING | READ
