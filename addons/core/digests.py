"""
Digests: what must be the same for an approval to hold.

`of` a request: verb, path, query, media type and decoded body. The same bytes as another patch
type do something else (tried: a merge patch drops the sidecar that a strategic one keeps), so all
of it counts. `result` of a dry run: what the approver saw, so that a JSON patch which copies what
somebody changed meanwhile has another one. What differs each time without meaning anything is
taken out by name, here and nowhere else; everything that is not named counts.

A digest of what holds a Secret confirms guesses at it: none of these is shown to anybody.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from addons.core import blast, canonical
from addons.core.model import Operation
from addons.core.resources import BUILT_IN

# In the text that is hashed: digests kept by another version of these rules equal none of ours.
_VERSION = "tollgate-digest-1"

CONNECTS = frozenset({"exec", "attach", "portforward"})  # GET for WebSocket, POST for SPDY: one and the same

RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"  # kubectl rollout restart: the time of each try
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)")
_POINTER = f"/spec/template/metadata/annotations/{RESTARTED_AT.replace('/', '~1')}"
_RESTARTED = frozenset({("apps", "deployments"), ("apps", "daemonsets"), ("apps", "statefulsets")})

_SUFFIX = "[bcdfghjklmnpqrstvwxz2456789]{5}"  # of a generated name (apimachinery, pkg/util/rand)
_DEBUGGER = re.compile(f"debugger-{_SUFFIX}")
_TOKEN_VOLUME = re.compile(f"kube-api-access-{_SUFFIX}")  # admission gives each new pod one of its own
_NODE_DEBUGGER = re.compile(f"node-debugger-.+-{_SUFFIX}")
_HELM = "helm.sh/release.v1"
_HELM_NAME = "sh.helm.release."


def _hash(kind: str, *parts: Any) -> str:
    # Sorted keys: JSON objects have no order. Numbers and words as they are: 1, 1.0, true and "1" differ.
    text = json.dumps([_VERSION, kind, *parts], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


# ----- requests -----


def of(operation: Operation, method: str, target: str, content_type: str = "", body: bytes = b"") -> str:
    """
    The digest of a request, 64 hexadecimal digits. `body` as it came: bytes that nobody here could
    read (of a proxy) count as they are. Raises Refused for a target that has no one reading.
    """
    plain = canonical.read(method, target)
    if is_single_delete(operation):
        info = operation.info
        return of_delete(
            info.api_group,
            info.resource,
            info.namespace,
            info.name,
            verb=info.verb,
            subresource=info.subresource,
            query=plain.query,
            options=operation.body,
        )
    if _is_stream(operation):
        # How the stream is carried is no part of what it does: kubectl tries WebSocket, then SPDY.
        return _hash("connect", plain.path, _sorted(plain.query), _opaque(operation, body))
    # Behind a proxy is a program that may tell `%2F` from `/` and look at the order of its parameters.
    behind = target if "proxy" in (operation.info.subresource, operation.info.verb) else ""
    return _hash(
        "request",
        method,
        plain.path,
        _sorted(plain.query),
        content_type.strip(),
        _normal(operation, operation.body),
        _opaque(operation, body),
        behind,
    )


def is_single_delete(operation: Operation) -> bool:
    """A DELETE or eviction of one named object: its digest can be told before the request is there."""
    return blast.takes_one(operation) and bool(operation.info.name) and len(operation.info.parts) <= 3


def of_delete(
    group: str,
    resource: str,
    namespace: str,
    name: str,
    *,
    verb: str = "delete",
    subresource: str = "",
    query: canonical.Pairs = (),
    options: Any = None,
) -> str:
    """
    The digest of one DELETE or eviction, as `of` has it when it comes. `options`: the decoded body
    of any request of the same command.

    Without the API version and the media type, which change nothing about a deletion, and without
    `preconditions.uid`: which object it may be is bound beside the digest (approvals.Item.uid).
    """
    if (group, resource) == ("", "namespaces"):
        namespace = ""  # RequestInfo has a Namespace's own name there, a list has nothing
    return _hash("delete", verb, [group, resource, subresource, namespace, name], _sorted(query), _options(options))


def of_each(operation: Operation, target: str) -> dict[tuple[str, str, str, str, str], str]:
    """The digests of all that a fan-out is going to send, by (group, resource, namespace, name, uid)."""
    if operation.reach is None or not is_single_delete(operation):
        return {}
    query = canonical.read(operation.method, target).query
    info = operation.info
    return {
        (group, resource, namespace, name, uid): of_delete(
            group,
            resource,
            namespace,
            name,
            verb=info.verb,
            subresource=info.subresource,
            query=query,
            options=operation.body,
        )
        for group, resource, namespace, name, uid in operation.reach.objects
        # An approval is for the kind that asks: another one in the same list has a rule of its own.
        if (group, resource) == (info.api_group, info.resource)
    }


def command(items: Iterable[str]) -> str:
    """The digest of a whole command, of those of its requests; of a single one it is that one."""
    found = sorted(set(items))
    return found[0] if len(found) == 1 else _hash("command", found)


def repeatable(operation: Operation) -> str:
    """Why the same request cannot be sent again, as the end of a sentence, or "" when it can."""
    info, body = operation.info, operation.body
    if not info.is_resource_request or info.verb not in ("create", "update", "patch"):
        return ""
    if (info.resource, info.subresource) == ("serviceaccounts", "token"):
        return "each request makes another token"
    if info.api_group == "" and info.resource in ("secrets", "configmaps"):
        named = operation.name.startswith(_HELM_NAME)
        if named or (isinstance(body, dict) and body.get("type") == _HELM):
            return "Helm writes the time of each try into its release"
    if (info.resource, info.subresource) == ("certificatesigningrequests", "approval"):
        return "kubectl certificate writes the time of each try into it"
    if info.verb == "create" and not info.subresource:
        if not operation.name:
            return "each request makes an object with another generated name"
        if info.resource == "pods" and _NODE_DEBUGGER.fullmatch(operation.name):
            return "kubectl debug gives its pod another name each time"
    return ""


def _sorted(query: canonical.Pairs) -> list[tuple[str, str]]:
    """By key. What is given several times keeps its order: `command=` is an argv."""
    return sorted(query, key=lambda pair: pair[0])


def _is_stream(operation: Operation) -> bool:
    info = operation.info
    return (
        info.api_group == ""
        and info.resource == "pods"
        and info.subresource in CONNECTS
        and operation.method in ("GET", "POST")
        and len(info.parts) == 3
    )


def _opaque(operation: Operation, body: bytes) -> str:
    return hashlib.sha256(body).hexdigest() if body and operation.body is None else ""


def _options(options: Any) -> Any:
    """DeleteOptions or an Eviction, without what says which object."""
    if not isinstance(options, dict):
        return options
    found = _without_uid(options)
    if "deleteOptions" in found:
        found["deleteOptions"] = _without_uid(found["deleteOptions"])
    metadata = found.get("metadata")
    if isinstance(metadata, dict):
        found["metadata"] = {k: v for k, v in metadata.items() if k not in ("name", "namespace", "creationTimestamp")}
    return found


def _without_uid(options: Any) -> Any:
    if not isinstance(options, dict):
        return options
    found = dict(options)
    preconditions = found.get("preconditions")
    if isinstance(preconditions, dict) and "uid" in preconditions:
        rest = {k: v for k, v in preconditions.items() if k != "uid"}
        if rest:
            found["preconditions"] = rest
        else:
            del found["preconditions"]
    return found


# ----- what is normalised away -----


def _normal(operation: Operation, body: Any) -> Any:
    """A request's body without what a second try of the same command writes anew."""
    info = operation.info
    if (info.api_group, info.resource) in _RESTARTED and not info.subresource:
        if isinstance(body, list):
            return [_restarted_operation(one) for one in body]
        return _restarted(body)
    if info.resource == "pods" and info.subresource == "ephemeralcontainers":
        return _Names(_DEBUGGER).in_ephemeral(body)
    return body


def _at(content: Any, path: tuple[str, ...], change: Callable[[Any], Any]) -> Any:
    """A copy with the value at this path changed, where there is one."""
    if not path:
        return change(content)
    if not isinstance(content, dict) or path[0] not in content:
        return content
    return {**content, path[0]: _at(content[path[0]], path[1:], change)}


def _a_time(value: Any) -> Any:
    # Only a time: any other text in this place is somebody's message to a webhook.
    return "<time>" if isinstance(value, str) and _TIME.fullmatch(value) else value


def _restarted(content: Any) -> Any:
    return _at(content, ("spec", "template", "metadata", "annotations", RESTARTED_AT), _a_time)


def _restarted_operation(one: Any) -> Any:
    if isinstance(one, dict) and one.get("path") == _POINTER and one.get("op") in ("add", "replace"):
        return _at(one, ("value",), _a_time)
    return one


class _Names:
    """Generated names of one form, numbered as they come: two of them stay two."""

    def __init__(self, form: re.Pattern[str]) -> None:
        self._form = form
        self._seen: dict[str, str] = {}

    def __call__(self, name: Any) -> Any:
        if not isinstance(name, str) or not self._form.fullmatch(name):
            return name
        return self._seen.setdefault(name, f"<generated {len(self._seen) + 1}>")

    def in_list(self, items: Any) -> Any:
        if not isinstance(items, list):
            return items
        return [_at(item, ("name",), self) for item in items]

    def in_ephemeral(self, pod: Any) -> Any:
        for key in ("ephemeralContainers", "$setElementOrder/ephemeralContainers"):
            pod = _at(pod, ("spec", key), self.in_list)
        return pod

    def in_volumes(self, pod: Any) -> Any:
        pod = _at(pod, ("spec", "volumes"), self.in_list)
        for kind in ("containers", "initContainers"):
            pod = _at(pod, ("spec", kind), self._in_mounts)
        return pod

    def _in_mounts(self, containers: Any) -> Any:
        if not isinstance(containers, list):
            return containers
        return [_at(container, ("volumeMounts",), self.in_list) for container in containers]


# ----- results -----

# Of every object, set by the API server at each write. Not deletionTimestamp: a finalizer taken
# from an object that is on its way out ends it, so that is another state than the one shown.
NOISE = frozenset({"managedFields", "resourceVersion", "generation", "creationTimestamp", "selfLink"})
# The status of an autoscaling/v1 object, which that version of the API shows as annotations.
_SCALER_STATUS = frozenset(
    {"autoscaling.alpha.kubernetes.io/conditions", "autoscaling.alpha.kubernetes.io/current-metrics"}
)
_STATUS_TIMES = frozenset(
    {"lastTransitionTime", "lastUpdateTime", "lastHeartbeatTime", "lastProbeTime", "lastScheduleTime"}
)


def result(operation: Operation, content: Any, *, created: bool = False) -> str:
    """
    The digest of an object that the dry run returned, or of the live one. `created`: the request
    makes it, so that its uid and all that was drawn by lot for it are those of this one dry run.
    """
    return _hash("result", plain(operation, content, created=created))


def plain(operation: Operation, content: Any, *, created: bool = False) -> Any:
    """An object without what differs each time the API server writes it down."""
    if not isinstance(content, dict):
        return content
    info = operation.info
    found = {key: value for key, value in content.items() if key != "status"}
    if "status" in content and _keeps_status(operation):
        found["status"] = _without_times(content["status"])
    metadata = content.get("metadata")
    if isinstance(metadata, dict):
        found["metadata"] = {key: value for key, value in metadata.items() if key not in NOISE}
        if created:
            found = _created(found)
    if (info.api_group, info.resource) in _RESTARTED:
        found = _restarted(found)
    if (info.api_group, info.resource) == ("autoscaling", "horizontalpodautoscalers"):
        found = _at(found, ("metadata", "annotations"), _without_scaler_status)
    if (info.api_group, info.resource) == ("", "pods"):
        found = _Names(_DEBUGGER).in_ephemeral(found)
        if created:
            found = _Names(_TOKEN_VOLUME).in_volumes(found)
    return found


def _keeps_status(operation: Operation) -> bool:
    """
    Whether the request could change it. The status of a built-in kind changes all the time and is
    reset on every write to the main resource; a custom resource's may be a field like others.
    """
    info = operation.info
    return info.subresource == "status" or info.resource not in BUILT_IN.get(info.api_group, ())


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: "<time>" if key in _STATUS_TIMES and isinstance(one, str) else _without_times(one)
            for key, one in value.items()
            if key != "observedGeneration"
        }
    if isinstance(value, list):
        return [_without_times(one) for one in value]
    return value


def _without_scaler_status(annotations: Any) -> Any:
    if not isinstance(annotations, dict):
        return annotations
    return {key: value for key, value in annotations.items() if key not in _SCALER_STATUS}


def _created(content: dict[str, Any]) -> dict[str, Any]:
    metadata: Mapping[str, Any] = content["metadata"]
    lots: dict[str, str] = {}
    uid, name, prefix = metadata.get("uid"), metadata.get("name"), metadata.get("generateName")
    if isinstance(uid, str) and uid:
        lots[uid] = "<uid>"  # a Job repeats it in its selector and labels
    if isinstance(prefix, str) and prefix and isinstance(name, str) and re.fullmatch(re.escape(prefix) + _SUFFIX, name):
        lots[name] = f"{prefix}<generated>"
    return {key: _replaced(value, lots) for key, value in content.items()}


def _replaced(value: Any, lots: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return lots.get(value, value)
    if isinstance(value, dict):
        return {key: _replaced(one, lots) for key, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, lots) for one in value]
    return value


def pod(content: Any) -> str:
    """The digest of what an approved exec would find in a pod: its spec, whose image can be changed in place."""
    spec = content.get("spec") if isinstance(content, dict) else None
    return _hash("pod", spec)


def uids(found: Iterable[str]) -> str:
    """The digest of a set of objects."""
    return _hash("uids", sorted(found))
