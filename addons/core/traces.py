"""
The trace that a request belongs to, as its client says (W3C Trace Context, level 1).

A claim like any other: it joins spans, and decides nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from addons.core.model import Identity, Operation, Verdict

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Parent:
    """The span that the client says is above ours."""

    trace_id: int
    span_id: int
    sampled: bool


def parent(values: Sequence[str]) -> Parent | None:
    """What `traceparent` says; None for none, for several and for what is not one."""
    if len(values) != 1:
        return None
    found = _PARENT.fullmatch(values[0].strip(" \t"))
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace, 16) or not int(span, 16):
        return None
    return Parent(int(trace, 16), int(span, 16), bool(int(flags, 16) & 1))


def attributes(
    operation: Operation | None, identity: Identity | None, verdict: Verdict, *, method: str, code: int, request_id: str
) -> Mapping[str, str | int]:
    """What a span says of an exchange: what was done, by whom, and what was decided. No header, body or query."""
    found: dict[str, str | int] = {
        "http.request.method": method[:20],
        "http.response.status_code": code,
        "tollgate.request_id": request_id,
        "tollgate.verdict": verdict.action.name.lower(),
        "tollgate.rule": f"{verdict.policy}/{verdict.rule}" if verdict.rule else "",
    }
    if identity is not None:
        found["enduser.id"] = identity.username
    if operation is not None:
        info = operation.info
        found |= {
            "k8s.verb": info.verb,
            "k8s.resource": info.full_resource,
            "k8s.namespace.name": info.namespace,
            "k8s.object.name": info.name,
        }
    return {key: value for key, value in found.items() if value != ""}


def name_of(operation: Operation | None, method: str) -> str:
    """Of the span: few different ones, so without any object's name."""
    if operation is None or not operation.info.is_resource_request:
        return method[:20]
    return f"{operation.info.verb} {operation.info.full_resource}"
