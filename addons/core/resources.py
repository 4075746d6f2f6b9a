"""
Kubernetes' own resources, and the gateway's: which group they are in, and which of them a PUT may create.

Facts of Kubernetes 1.36 (its `api/discovery`, and `AllowCreateOnUpdate` in the strategies
under `pkg/registry`). Policies use them to refuse a misspelled resource when they load:
a deny rule on `secretz` would never match, silently.
"""

from collections.abc import Mapping
from types import MappingProxyType

# The group that the gateway serves itself (approvals, grants); no request for it reaches the API server.
OWN_GROUP = "tollgate.dev"

BUILT_IN: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        group: frozenset(names.split())
        for group, names in {
            "": (
                "bindings componentstatuses configmaps endpoints events limitranges namespaces nodes"
                " persistentvolumeclaims persistentvolumes pods podtemplates replicationcontrollers"
                " resourcequotas secrets serviceaccounts services"
            ),
            "admissionregistration.k8s.io": (
                "mutatingadmissionpolicies mutatingadmissionpolicybindings mutatingwebhookconfigurations"
                " validatingadmissionpolicies validatingadmissionpolicybindings validatingwebhookconfigurations"
            ),
            "apiextensions.k8s.io": "customresourcedefinitions",
            "apiregistration.k8s.io": "apiservices",
            "apps": "controllerrevisions daemonsets deployments replicasets statefulsets",
            "authentication.k8s.io": "selfsubjectreviews tokenreviews",
            "authorization.k8s.io": (
                "localsubjectaccessreviews selfsubjectaccessreviews selfsubjectrulesreviews subjectaccessreviews"
            ),
            "autoscaling": "horizontalpodautoscalers",
            "batch": "cronjobs jobs",
            "certificates.k8s.io": "certificatesigningrequests clustertrustbundles podcertificaterequests",
            "coordination.k8s.io": "leasecandidates leases",
            "discovery.k8s.io": "endpointslices",
            "events.k8s.io": "events",
            "flowcontrol.apiserver.k8s.io": "flowschemas prioritylevelconfigurations",
            "internal.apiserver.k8s.io": "storageversions",
            "networking.k8s.io": "ingressclasses ingresses ipaddresses networkpolicies servicecidrs",
            "node.k8s.io": "runtimeclasses",
            "policy": "poddisruptionbudgets",
            "rbac.authorization.k8s.io": "clusterrolebindings clusterroles rolebindings roles",
            "resource.k8s.io": (
                "deviceclasses devicetaintrules resourceclaims resourceclaimtemplates resourcepoolstatusrequests"
                " resourceslices"
            ),
            "scheduling.k8s.io": "podgroups priorityclasses workloads",
            "storage.k8s.io": (
                "csidrivers csinodes csistoragecapacities storageclasses volumeattachments volumeattributesclasses"
            ),
            "storagemigration.k8s.io": "storageversionmigrations",
            OWN_GROUP: "accessrequests approvals grants revocations",
        }.items()
    }
)

# Subresources, for those who must know them all: a word that is not here may be a misspelled one.
SUBRESOURCES: Mapping[tuple[str, str], tuple[str, ...]] = MappingProxyType(
    {
        ("", "pods"): (
            *("attach", "binding", "ephemeralcontainers", "eviction", "exec", "log", "portforward", "proxy", "resize"),
            "status",
        ),
        ("", "services"): ("proxy", "status"),
        ("", "nodes"): ("proxy", "status"),
        ("", "namespaces"): ("finalize", "status"),
        ("", "serviceaccounts"): ("token",),
        ("certificates.k8s.io", "certificatesigningrequests"): ("approval", "status"),
        **{(OWN_GROUP, name): () for name in ("accessrequests", "approvals", "grants", "revocations")},
    }
)
_SCALED = frozenset({"deployments", "replicasets", "statefulsets", "replicationcontrollers"})


def subresources(group: str, resource: str) -> tuple[str, ...]:
    """Those of a built-in resource."""
    known = SUBRESOURCES.get((group, resource), ("status",))
    return (*known, "scale") if resource in _SCALED else known


# A PUT on a name that does not exist creates it. Custom resources cannot be told from
# aggregated APIs here, and those do as they like: every group that is not built in counts.
_CREATE_ON_UPDATE = frozenset(
    {
        ("", "endpoints"),
        ("", "events"),
        ("", "limitranges"),
        ("", "services"),
        ("coordination.k8s.io", "leasecandidates"),
        ("coordination.k8s.io", "leases"),
        ("events.k8s.io", "events"),
        ("node.k8s.io", "runtimeclasses"),
        ("rbac.authorization.k8s.io", "clusterrolebindings"),
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("rbac.authorization.k8s.io", "rolebindings"),
        ("rbac.authorization.k8s.io", "roles"),
    }
)


def put_may_create(group: str, resource: str) -> bool:
    return group not in BUILT_IN or resource not in BUILT_IN[group] or (group, resource) in _CREATE_ON_UPDATE


def same_objects(group: str, resource: str, subresource: str) -> tuple[tuple[str, str, str], ...]:
    """Other ways to the very same objects: a rule that forbids one of them means them all."""
    if resource == "events" and group in ("", "events.k8s.io"):
        return (("", "events", subresource), ("events.k8s.io", "events", subresource))
    if group == "" and (resource, subresource) in (("bindings", ""), ("pods", "binding")):
        return (("", "bindings", ""), ("", "pods", "binding"))
    return ((group, resource, subresource),)


def groups_of(resource: str) -> tuple[str, ...]:
    """The built-in groups that have a resource of this name."""
    return tuple(sorted(group for group, names in BUILT_IN.items() if resource in names))
