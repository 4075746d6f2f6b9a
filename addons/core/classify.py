"""
Classify: what a request does, as an Operation, or a refusal when that cannot be said.

In two parts. The head (method, target, headers) is read once, cheaply, and may be refused
before a body has come; the body can then only add to what the head said: impacts grow, a
name is found, a dry run is confirmed. Nothing that a client claims about itself lowers
anything.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from addons.core import bodies, canonical, impacts, requestinfo, uses
from addons.core.model import NO_USES, NOTHING, Impact, Operation, RequestInfo, Uses
from addons.core.status import Refused

# kubectl's own: "kubectl create secret generic"; a uuid. Longer or other ones are dropped: they
# end up in logs, messages and rules.
_COMMAND = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,99}")
_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_BODYLESS = frozenset({"GET", "HEAD"})
_WRITES = frozenset({"create", "update", "patch"})
# A body belongs to the stream or to the program behind it: bytes that nobody here can read.
_CONNECTS = frozenset({"exec", "attach", "portforward", "proxy"})


@dataclass(frozen=True, slots=True)
class Head:
    """What method and target say, before any body."""

    info: RequestInfo
    query: canonical.Pairs
    impacts: frozenset[Impact]


def classify(
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    own_namespace: str = "tollgate",
) -> Operation:
    """
    The operation that a request is.

    Raises Refused when it has no one reading. The names of `headers` are in any case.
    """
    fields = (
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers.items()
    )
    return classify_raw(method, target, fields, body, own_namespace=own_namespace)


def classify_raw(
    method: str,
    target: str,
    fields: Iterable[tuple[bytes, bytes]],
    body: bytes,
    *,
    own_namespace: str = "tollgate",
) -> Operation:
    """`classify` with the header fields as they came."""
    head = read_head(method, target, own_namespace)
    return with_body(head, method, fold(fields), body, own_namespace=own_namespace)


def fold(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """
    Headers by lower-case name. One that comes twice is joined by a comma (RFC 9110, 5.3), so that
    what must be one word is none: a second Content-Type cannot hide behind the first.
    """
    found: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def read_head(method: str, target: str, own_namespace: str = "tollgate") -> Head:
    if len(target) > canonical.CACHED_TARGET:
        return _read_head(method, target, own_namespace)
    return _read_head_cached(method, target, own_namespace)


def _read_head(method: str, target: str, own_namespace: str) -> Head:
    plain = canonical.read(method, target)
    info = requestinfo.parse(method, plain.path, plain.query)
    if not info.is_resource_request:
        return Head(info, plain.query, impacts.of_page(method, plain.path))
    if info.verb == "watch" and method not in _BODYLESS:
        # `DELETE /api/v1/watch/pods` is a watch to RequestInfo, and 405 to the router behind it.
        raise Refused(405, "method-unknown", "method: a path that says watch takes GET only; use GET")
    return Head(info, plain.query, impacts.of_resource(info, own_namespace))


_read_head_cached = lru_cache(maxsize=4096)(_read_head)


def with_body(
    head: Head, method: str, headers: Mapping[str, str], body: bytes, *, own_namespace: str = "tollgate"
) -> Operation:
    """The operation, once the body is there. `headers` as `fold` makes them."""
    info, found = head.info, head.impacts
    upgrade = _upgrade(headers)
    if any(name.startswith("impersonate-") for name in headers):
        # The guard refuses these; a shorter stack must at least not take them for harmless.
        found |= {Impact.ESCALATE}
    read = _read_body(info, method, headers, body)
    content = read.content
    name, kind, labels = info.name, "", NOTHING
    used: Uses | None = None
    if isinstance(content, dict):
        kind = _text(content.get("kind"))
        metadata = content.get("metadata")
        if isinstance(metadata, dict):
            name = _check_names(info, metadata)
            labels = _labels(metadata)
        elif metadata is not None:
            raise Refused(400, "body-unreadable", "body: metadata is not an object; send one")
    if content is not None and info.verb in _WRITES:
        found |= impacts.of_body(info, name, read.patch, content, own_namespace)
        used = _uses(info, read.patch, content)
    is_dry = impacts.dry_run_possible(info) and _is_dry_run(info, head.query, read, bool(body))
    return Operation(
        info=info,
        method=method,
        impacts=impacts.lowered(found) if is_dry else found,
        name=name,
        dry_run=is_dry,
        uses=used,
        kind=kind,
        labels=labels,
        media_type=read.media_type,
        upgrade=upgrade,
        claimed_command=_claim(headers.get("kubectl-command"), _COMMAND),
        claimed_session=_claim(headers.get("kubectl-session"), _SESSION),
        body=content,
    )


def _read_body(info: RequestInfo, method: str, headers: Mapping[str, str], body: bytes) -> bodies.Body:
    if not body:
        return bodies.NO_BODY
    if info.subresource in _CONNECTS or info.verb == "proxy" or not info.is_resource_request:
        return bodies.Body(media_type=_text(headers.get("content-type")).partition(";")[0].strip().lower())
    if method in _BODYLESS:
        # Nobody reads it over there, so it can only be meant for somebody on the way.
        raise Refused(400, "body-not-expected", "body: a GET or HEAD has none; send it without")
    encoding = headers.get("content-encoding")
    if encoding and encoding.strip().lower() != "identity":
        # The API server does not undo it either, and answers 400.
        raise Refused(400, "body-encoded", "body: Content-Encoding is not read; send it plainly")
    return bodies.read(headers.get("content-type"), body, method)


def _check_names(info: RequestInfo, metadata: Mapping[str, Any]) -> str:
    """The object's name; refuse a body that contradicts the URL, which the API server refuses as well."""
    named, namespace = metadata.get("name"), metadata.get("namespace")
    if not isinstance(named, str | None) or not isinstance(namespace, str | None):
        raise Refused(400, "body-unreadable", "body: metadata.name or metadata.namespace is not a string; write one")
    if info.name and named and named != info.name:
        raise Refused(400, "name-mismatch", "body: metadata.name is another than the name in the url; make them equal")
    # In a cluster-wide object a namespace is ignored over there (rest/meta.go), Helm charts have it.
    if info.namespace and info.resource != "namespaces" and namespace and namespace != info.namespace:
        raise Refused(
            400,
            "namespace-mismatch",
            "body: metadata.namespace is another than the namespace in the url; make them equal",
        )
    return info.name or (named if info.verb == "create" and named else "")


def _labels(metadata: Mapping[str, Any]) -> Mapping[str, str]:
    """Labels that are strings; a patch may hold nulls, which set nothing."""
    labels = metadata.get("labels")
    if not labels or not isinstance(labels, dict):
        return NOTHING
    return MappingProxyType({key: value for key, value in labels.items() if isinstance(value, str)})


def _uses(info: RequestInfo, patch: str, content: Any) -> Uses | None:
    group, resource = info.api_group, info.resource
    if (group, resource) not in uses.POD_SPECS:
        return None
    if info.subresource == "ephemeralcontainers":
        # A container in a pod that runs already, as its ServiceAccount, beside its mounts.
        return uses.of_patch(group, resource, patch or "merge", content, whole_pod=True)
    if info.subresource:
        return NO_USES  # status, scale, eviction, resize: the template stays as it is
    if patch:
        return uses.of_patch(group, resource, patch, content)
    return uses.of_object(group, resource, content, exists=info.verb == "update")


def _is_dry_run(info: RequestInfo, query: canonical.Pairs, read: bodies.Body, has_body: bool) -> bool:
    asked = [value for key, value in query if key == "dryRun"] == ["All"]
    if info.verb in ("delete", "deletecollection"):
        # A body, be it `{}`, makes the API server forget the query: `?dryRun=All` would delete
        # (handlers/delete.go).
        return _is_all(read.content) if has_body else asked
    if info.subresource == "eviction":
        options = read.content.get("deleteOptions") if isinstance(read.content, dict) else None
        return asked or _is_all(options)
    return asked


def _is_all(options: Any) -> bool:
    return isinstance(options, dict) and options.get("dryRun") == ["All"]


def _upgrade(headers: Mapping[str, str]) -> str:
    """What the client wants to change to. The guard refuses all but these two, and these elsewhere."""
    asked = headers.get("upgrade")
    if not asked:
        return ""
    asked = asked.strip().lower()
    if asked == "websocket":
        return "websocket"
    if asked.startswith("spdy/"):
        return "spdy"
    raise Refused(400, "upgrade-unknown", "header Upgrade: only websocket and SPDY/3.1 are known; use one of them")


def _claim(value: str | None, shape: re.Pattern[str]) -> str:
    return value if value and shape.fullmatch(value) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
