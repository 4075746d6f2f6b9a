"""
A request in the words of kubectl, for people who ask what a policy says: `delete pod web-1 -n shop`.

No command line of kubectl's is run or imitated here; one line stands for one request. What kubectl
does in several (`delete pods --all`) is asked about one by one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from addons.core import resources

CLUSTER_WIDE = frozenset(
    {
        *("componentstatuses", "namespaces", "nodes", "persistentvolumes", "customresourcedefinitions", "apiservices"),
        *("mutatingadmissionpolicies", "mutatingadmissionpolicybindings", "mutatingwebhookconfigurations"),
        *("validatingadmissionpolicies", "validatingadmissionpolicybindings", "validatingwebhookconfigurations"),
        *("selfsubjectreviews", "tokenreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"),
        *("subjectaccessreviews", "certificatesigningrequests", "clustertrustbundles", "flowschemas"),
        *("prioritylevelconfigurations", "storageversions", "ingressclasses", "ipaddresses", "servicecidrs"),
        *("runtimeclasses", "clusterrolebindings", "clusterroles", "deviceclasses", "devicetaintrules"),
        *("resourceslices", "priorityclasses", "csidrivers", "csinodes", "storageclasses", "volumeattachments"),
        *("volumeattributesclasses", "storageversionmigrations", *resources.BUILT_IN[resources.OWN_GROUP]),
    }
)
_SHORT = {
    "cm": "configmaps", "ds": "daemonsets", "deploy": "deployments", "ep": "endpoints", "ev": "events",
    "hpa": "horizontalpodautoscalers", "ing": "ingresses", "cj": "cronjobs", "limits": "limitranges",
    "netpol": "networkpolicies", "no": "nodes", "ns": "namespaces", "pc": "priorityclasses",
    "pdb": "poddisruptionbudgets", "po": "pods", "pv": "persistentvolumes", "pvc": "persistentvolumeclaims",
    "quota": "resourcequotas", "rc": "replicationcontrollers", "rs": "replicasets", "sa": "serviceaccounts",
    "sc": "storageclasses", "sts": "statefulsets", "svc": "services", "crd": "customresourcedefinitions",
    "csr": "certificatesigningrequests", "apr": "approvals",
}  # fmt: skip
_VERSIONS = {"autoscaling": "v2", resources.OWN_GROUP: "v1alpha1"}
_MERGE = "application/merge-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"
_APPLY = "application/apply-patch+yaml"

# kubectl's word: method, subresource, media type of its body. The path is made of what follows.
_VERBS = {
    "get": ("GET", "", ""),
    "list": ("GET", "", ""),
    "watch": ("GET", "", ""),
    "describe": ("GET", "", ""),
    "create": ("POST", "", "application/json"),
    "update": ("PUT", "", "application/json"),
    "replace": ("PUT", "", "application/json"),
    "patch": ("PATCH", "", _STRATEGIC),
    "edit": ("PATCH", "", _STRATEGIC),
    "apply": ("PATCH", "", _APPLY),
    "label": ("PATCH", "", _MERGE),
    "annotate": ("PATCH", "", _MERGE),
    "delete": ("DELETE", "", ""),
    "deletecollection": ("DELETE", "", ""),
    "scale": ("PATCH", "scale", _MERGE),
    "logs": ("GET", "log", ""),
    "exec": ("POST", "exec", ""),
    "attach": ("POST", "attach", ""),
    "port-forward": ("POST", "portforward", ""),
    "evict": ("POST", "eviction", "application/json"),
}
_OF_PODS = frozenset({"logs", "exec", "attach", "port-forward", "evict"})
_PATCHES = {"merge": _MERGE, "strategic": _STRATEGIC, "json": "application/json-patch+json"}
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})


class WordsError(Exception):
    """Not a request; one sentence."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it would be on the wire."""

    method: str
    target: str
    content_type: str = ""
    body: bytes = b""


def request(words: Sequence[str]) -> Request:
    """`delete pod web-1 -n shop`, `get --raw /metrics`, or `DELETE /api/v1/namespaces/shop`. Raises WordsError."""
    rest = list(words)
    body = _taken(rest, "-p", "--patch") or ""
    if len(rest) == 2 and rest[0] in _METHODS and rest[1].startswith("/"):
        return Request(rest[0], rest[1], "application/json" if body else "", body.encode())
    if not rest:
        raise WordsError("request: is missing; write it after --, as in: -- delete pod web-1 -n shop")
    verb = rest.pop(0)
    if verb == "kubectl" and rest:
        verb = rest.pop(0)
    if verb not in _VERBS:
        raise WordsError(f"request: {verb!r} is no verb; one of {', '.join(_VERBS)}, or a METHOD and a /path")
    method, subresource, media = _VERBS[verb]
    raw = _taken(rest, "--raw")
    if raw is not None:
        if not raw.startswith("/") or rest:
            raise WordsError("request: --raw takes one /path and nothing else")
        return Request(method, raw, "application/json" if body else "", body.encode())
    namespace = _taken(rest, "-n", "--namespace") or "default"
    everywhere = _flag(rest, "-A", "--all-namespaces")
    subresource = _taken(rest, "--subresource") or subresource
    kind = _taken(rest, "--type")
    if kind is not None:
        if verb != "patch" or kind not in _PATCHES:
            raise WordsError("request: --type is merge, strategic or json, of a patch")
        media = _PATCHES[kind]
    dry = _taken(rest, "--dry-run") == "server"
    replicas = _taken(rest, "--replicas")
    if _flag(rest, "--all") or _taken(rest, "-l", "--selector") is not None:
        raise WordsError(
            "request: kubectl lists and then sends one request for each object; ask about one of them by name, "
            "or about deletecollection"
        )
    left = [word for word in rest if word.startswith("-")]
    if left:
        raise WordsError(
            f"request: {left[0]} is not known here; -n, -A, --subresource, --type, -p, --raw, --dry-run are"
        )
    group, resource, name = _object(rest, pods=verb in _OF_PODS)
    if verb in ("list", "watch", "deletecollection") and name:
        raise WordsError(f"request: {verb} is about a collection; leave the name out")
    if not name and verb not in ("get", "list", "watch", "create", "deletecollection"):
        raise WordsError(f"request: {verb} needs a name")
    content = _content(verb, media, name, body, replicas)
    path = _path(group, resource, "" if everywhere else namespace, "" if method == "POST" and not subresource else name)
    query = [*(["watch=true"] if verb == "watch" else []), *(["dryRun=All"] if dry and method != "DELETE" else [])]
    if verb == "apply":
        query.append("fieldManager=kubectl")
    if dry and method == "DELETE":
        media, content = "application/json", b'{"dryRun": ["All"]}'
    target = f"{path}/{subresource}" if subresource else path
    return Request(method, target + ("?" + "&".join(query) if query else ""), media if content else "", content)


def resource_of(word: str) -> tuple[str, str]:
    """(group, plural) of `pod`, `deploy`, `deployments.apps`, `widgets.example.com`. Raises WordsError."""
    name, dot, group = word.lower().partition(".")
    if dot and group not in resources.BUILT_IN:
        return group, name  # a custom resource, written in the plural
    plural = _SHORT.get(name) or _PLURALS.get(name) or name
    groups = (group,) if dot else resources.groups_of(plural)
    for one in groups:
        if plural in resources.BUILT_IN.get(one, ()):
            return one, plural
    raise WordsError(f"request: there is no resource {word!r}; a custom one is written as widgets.example.com")


def _singular(plural: str) -> str:
    if plural.endswith("ies"):
        return plural[:-3] + "y"
    if plural.endswith(("sses", "ches")):
        return plural[:-2]
    return plural.removesuffix("s")


_PLURALS = {_singular(name): name for names in resources.BUILT_IN.values() for name in names if name != "endpoints"} | {
    name: name for names in resources.BUILT_IN.values() for name in names
}


def _object(words: list[str], *, pods: bool) -> tuple[str, str, str]:
    """(group, resource, name) of `pod web-1`, `pod/web-1`, and for logs and exec `web-1` too."""
    if len(words) == 1 and "/" in words[0]:
        words = words[0].split("/", 1)
    if pods and len(words) == 1:
        words = ["pods", words[0]]
    if not 1 <= len(words) <= 2:
        raise WordsError("request: say one resource and at most one name, as in: delete pod web-1")
    group, resource = resource_of(words[0])
    return group, resource, words[1] if len(words) == 2 else ""


def _content(verb: str, media: str, name: str, body: str, replicas: str | None) -> bytes:
    if not media:
        return b""
    if body:
        return body.encode()
    if verb == "scale" and replicas is not None:
        return json.dumps({"spec": {"replicas": int(replicas) if replicas.isdecimal() else replicas}}).encode()
    if media == _PATCHES["json"]:
        return b"[]"
    content: dict[str, Any] = {}
    if verb in ("create", "apply", "update", "replace", "evict"):
        content["metadata"] = {"name": name} if name else {"generateName": "x-"}
    return json.dumps(content).encode()


def _path(group: str, resource: str, namespace: str, name: str) -> str:
    version = _VERSIONS.get(group, "v1")
    root = f"/apis/{group}/{version}" if group else "/api/v1"
    inside = f"/namespaces/{namespace}" if namespace and resource not in CLUSTER_WIDE else ""
    return f"{root}{inside}/{resource}" + (f"/{name}" if name else "")


def _taken(words: list[str], *options: str) -> str | None:
    """The value of an option, which is taken out: `-n shop`, `--namespace=shop`."""
    for position, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in options:
            if equals:
                del words[position]
                return value
            if position + 1 < len(words):
                value = words[position + 1]
                del words[position : position + 2]
                return value
            raise WordsError(f"request: {word} needs a value")
    return None


def _flag(words: list[str], *options: str) -> bool:
    found = [word for word in words if word in options]
    for word in found:
        words.remove(word)
    return bool(found)
