"""Before-images: what was there before a request deleted or changed it, and where that is read."""

from urllib.parse import parse_qsl, quote, urlencode

from addons.core import blast
from addons.core.auditevents import MAX_IMAGES, Level
from addons.core.model import Operation
from addons.core.previews import live_target

MAX_OF_KIND = 20  # objects of one kind, of a namespace that goes

# What a namespace is remembered by. Pods and ReplicaSets come back from these.
_CONTENT = (
    "/api/v1/namespaces/{}/configmaps",
    "/api/v1/namespaces/{}/secrets",
    "/api/v1/namespaces/{}/services",
    "/api/v1/namespaces/{}/persistentvolumeclaims",
    "/api/v1/namespaces/{}/serviceaccounts",
    "/apis/apps/v1/namespaces/{}/deployments",
    "/apis/apps/v1/namespaces/{}/statefulsets",
    "/apis/apps/v1/namespaces/{}/daemonsets",
    "/apis/batch/v1/namespaces/{}/jobs",
    "/apis/batch/v1/namespaces/{}/cronjobs",
    "/apis/networking.k8s.io/v1/namespaces/{}/ingresses",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
)
_SELECTORS = ("labelSelector", "fieldSelector")


def targets(operation: Operation, target: str, level: Level) -> tuple[str, ...]:
    """
    What to read before this request is sent; () when nothing of it is kept.

    Of what is deleted always; of what is changed where the level keeps objects.
    """
    info = operation.info
    if operation.dry_run or not info.is_resource_request:
        return ()
    if info.verb == "deletecollection":
        path, _, query = target.partition("?")
        kept = [(name, value) for name, value in parse_qsl(query) if name in _SELECTORS]
        return (f"{path}?{urlencode([*kept, ('limit', str(MAX_IMAGES))])}",)
    if blast.takes_one(operation):
        own = live_target(info, target)
        if (info.api_group, info.resource, info.subresource) == ("", "namespaces", ""):
            name = quote(info.name, safe="")
            return (own, *(f"{path.format(name)}?limit={MAX_OF_KIND}" for path in _CONTENT))
        return (own,) if own else ()
    if info.verb in ("update", "patch") and level is not Level.METADATA:
        own = live_target(info, target)
        return (own,) if own else ()
    return ()
