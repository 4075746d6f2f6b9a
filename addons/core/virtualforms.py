"""
Forms of an answer: what the client accepts (JSON, YAML, a Table, metadata only), and each of them.

Tables are what `kubectl get` asks for; their cells come from the finished objects, so nothing shows
in a Table that the object would not show.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from addons.core.model import Impact
from addons.core.virtualobjects import (
    API_VERSION,
    APPROVALS,
    GRANTS,
    REQUESTS,
    REVOCATIONS,
    Content,
    Resource,
    seconds_of,
)
from addons.core.virtualstatus import Problem

JSON, YAML = "application/json", "application/yaml"
TABLE, METADATA, METADATA_LIST = "Table", "PartialObjectMetadata", "PartialObjectMetadataList"
_MAX_CLAUSES = 50  # of an Accept header; kubectl sends three
_CELL = 60  # characters of a sentence or a list in a column
_TAIL = 20  # of them, those of its end

_META_VERSIONS = frozenset({"v1", "v1beta1"})
_JSON_RANGES = frozenset({JSON, "application/*", "*/*"})


@dataclass(frozen=True, slots=True)
class Form:
    """How the answer is written."""

    media_type: str = JSON
    kind: str = ""  # "", or one of TABLE, METADATA, METADATA_LIST
    version: str = "v1"  # of meta.k8s.io
    include_object: str = "Metadata"  # of a Table's rows: None, Metadata or Object

    @property
    def api_version(self) -> str:
        return f"meta.k8s.io/{self.version}"

    @property
    def shows_spec(self) -> bool:
        """Whether the whole object goes out."""
        return not self.kind or (self.kind == TABLE and self.include_object == "Object")


PLAIN = Form()


def negotiate(accept: str, *, collection: bool, watch: bool = False, include_object: str = "") -> Form:
    """The first form that the client accepts and we have. Raises Problem 406 when there is none, 400 for nonsense."""
    if include_object not in ("", "None", "Metadata", "Object"):
        raise Problem(400, "include-object", "includeObject: is None, Metadata or Object")
    kinds = {TABLE, METADATA_LIST if collection and not watch else METADATA}
    for media_type, parameters in _clauses(accept):
        is_yaml = media_type == YAML and not watch  # events are lines of JSON
        if media_type not in _JSON_RANGES and not is_yaml:
            continue  # protobuf and CBOR name JSON beside them
        found = YAML if is_yaml else JSON
        kind = parameters.get("as", "")
        if not kind:
            return Form(found)
        version = parameters.get("v", "")
        if kind in kinds and parameters.get("g") == "meta.k8s.io" and version in _META_VERSIONS:
            return Form(found, kind, version, include_object or "Metadata")
    raise Problem(406, "not-acceptable", "header Accept: only JSON and YAML are served here; accept application/json")


def _clauses(accept: str) -> list[tuple[str, dict[str, str]]]:
    """Media types and their parameters, those wanted most first."""
    if not accept.strip():
        return [(JSON, {})]
    found = []
    for text in accept.split(",")[:_MAX_CLAUSES]:
        media_type, *rest = (part.strip() for part in text.split(";"))
        parameters = {}
        for part in rest:
            key, _, value = part.partition("=")
            parameters[key.strip().lower()] = value.strip().strip('"')
        weight = _weight(parameters.get("q", "1"))
        if weight:
            found.append((weight, media_type.lower(), parameters))
    found.sort(key=lambda clause: -clause[0])  # stable: equals stay in their order
    return [(media_type, parameters) for _, media_type, parameters in found]


def _weight(text: str) -> float:
    return float(text) if re.fullmatch(r"[01](\.[0-9]{0,3})?", text) else 0.0


def write(content: Any, form: Form) -> bytes:
    if form.media_type == YAML:
        text: str = yaml.dump(content, Dumper=yaml.CSafeDumper, allow_unicode=True, sort_keys=True)
        return text.encode()
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def of_object(resource: Resource, content: Content, form: Form, now: float, *, headers: bool = True) -> Content:
    """One object in this form. headers: with the definitions of a Table's columns."""
    if form.kind == TABLE:
        version = content["metadata"]["resourceVersion"]
        return _table(resource, [content], form, version, now, headers=headers)
    if form.kind == METADATA:
        return _metadata(content, form)
    return content


def of_list(resource: Resource, contents: Sequence[Content], form: Form, revision: int, now: float) -> Content:
    if form.kind == TABLE:
        return _table(resource, contents, form, str(revision), now)
    metadata = {"resourceVersion": str(revision)}
    if form.kind == METADATA_LIST:
        items = [_metadata(content, form) for content in contents]
        return {"kind": METADATA_LIST, "apiVersion": form.api_version, "metadata": metadata, "items": items}
    return {"kind": f"{resource.kind}List", "apiVersion": API_VERSION, "metadata": metadata, "items": list(contents)}


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the items of a list that is written piece by piece, and has at least one."""

    head: bytes
    between: bytes
    tail: bytes


def frame(resource: Resource, form: Form, revision: int, now: float) -> Frame:
    empty = of_list(resource, [], form, revision, now)
    if form.media_type == YAML:
        key = "rows" if form.kind == TABLE else "items"
        del empty[key]
        return Frame(write(empty, form) + f"{key}:\n".encode(), b"", b"")
    return Frame(write(empty, form).removesuffix(b"]}"), b",", b"]}")


def item(resource: Resource, content: Content, form: Form, now: float) -> bytes:
    """One item of such a list."""
    if form.kind == TABLE:
        content = _row(resource, content, form, now)
    elif form.kind == METADATA_LIST:
        content = _metadata(content, form)
    return write([content], form) if form.media_type == YAML else write(content, form)


def bookmark(resource: Resource, form: Form, revision: int, *, initial_end: bool) -> Content:
    """The object of a BOOKMARK event: nothing but how far the watch has come."""
    metadata: dict[str, Any] = {"resourceVersion": str(revision)}
    if initial_end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    if form.kind == TABLE:
        return {"kind": TABLE, "apiVersion": form.api_version, "metadata": metadata, "rows": []}
    if form.kind == METADATA:
        return {"kind": METADATA, "apiVersion": form.api_version, "metadata": metadata}
    return {"kind": resource.kind, "apiVersion": API_VERSION, "metadata": metadata}


def _metadata(content: Content, form: Form) -> Content:
    return {"kind": METADATA, "apiVersion": form.api_version, "metadata": content["metadata"]}


# ----- tables -----


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    description: str
    wide: bool = False  # only with -o wide


_NAME = Column("Name", "Name of the object.")
_PHASE = Column("Phase", "Where it stands.")
_REQUESTER = Column("Requester", "Who asked.")
_AGE = Column("Age", "Time since it was asked.")
_EXPIRES = Column("Expires", "Time that is left: to decide, or to use a yes.", wide=True)
_APPROVERS = Column("Approvers", "Groups and users who may decide.", wide=True)
_DECIDED = Column("Decided-By", "Who has decided.", wide=True)
_REASON = Column("Reason", "What they gave as reason.", wide=True)

COLUMNS: Mapping[str, tuple[Column, ...]] = {
    APPROVALS.plural: (
        _NAME,
        _PHASE,
        _REQUESTER,
        Column("Asks-To", "What is asked for, as the gateway reads the request."),
        Column("Rule", "The rules that ask."),
        Column("Impact", "What it may do at worst, and to how many objects."),
        _AGE,
        _EXPIRES,
        _APPROVERS,
        _DECIDED,
        _REASON,
    ),
    REQUESTS.plural: (
        _NAME,
        _PHASE,
        _REQUESTER,
        Column("Verbs", "What is asked for."),
        Column("Resources", "On what."),
        Column("Namespace", "Where; * is everywhere."),
        Column("Duration", "For how long."),
        _AGE,
        Column("Justification", "Why, in the requester's words.", wide=True),
        _EXPIRES,
        _APPROVERS,
        _DECIDED,
        _REASON,
    ),
    GRANTS.plural: (
        _NAME,
        _PHASE,
        _REQUESTER,
        Column("Rules", "The rules that it satisfies."),
        Column("Namespace", "Where; * is everywhere."),
        Column("Expires", "Time that is left."),
        _AGE,
        Column("Verbs", "For which verbs.", wide=True),
        Column("Resources", "On what.", wide=True),
        Column("Source", "The Approval or AccessRequest that it comes from.", wide=True),
        Column("Approvers", "Who said yes.", wide=True),
        Column("Revoked-By", "Who took it back.", wide=True),
    ),
    REVOCATIONS.plural: (
        _NAME,
        _PHASE,
        Column("Refuses", "Whose requests are refused."),
        Column("By", "Who revoked."),
        Column("Expires", "Time that is left; - until it is lifted."),
        Column("Age", "Time since it was made."),
        Column("Reason", "Why.", wide=True),
        Column("Lifted-By", "Who lifted it.", wide=True),
    ),
}


def _table(
    resource: Resource, contents: Sequence[Content], form: Form, version: str, now: float, *, headers: bool = True
) -> Content:
    columns = COLUMNS[resource.plural]
    return {
        "kind": TABLE,
        "apiVersion": form.api_version,
        "metadata": {"resourceVersion": version},
        # As the API server: a watch has them in its first event only.
        "columnDefinitions": [_definition(column) for column in columns] if headers else None,
        "rows": [_row(resource, content, form, now) for content in contents],
    }


def _definition(column: Column) -> Content:
    return {
        "name": column.name,
        "type": "string",
        "format": "name" if column is _NAME else "",
        "description": column.description,
        "priority": int(column.wide),
    }


def _row(resource: Resource, content: Content, form: Form, now: float) -> Content:
    row: Content = {"cells": list(_CELLS[resource.plural](content, now))}
    if form.include_object == "Object":
        row["object"] = content
    elif form.include_object == "Metadata":
        row["object"] = _metadata(content, form)
    return row


def _approval_cells(content: Content, now: float) -> Sequence[str]:
    spec, status = content["spec"], content["status"]
    return (
        content["metadata"]["name"],
        _phase(status),
        spec["requester"]["username"],
        # Not the command: its beginning is the client's word, and a column has room for no more.
        _cell([spec.get("summary") or f"{spec.get('verb')} {spec.get('resource')}"]),
        _cell(rule["name"] for rule in spec.get("rules", ())),
        _impact(spec),
        _since(content, now),
        *_decision_cells(spec, status, now),
    )


def _request_cells(content: Content, now: float) -> Sequence[str]:
    spec, status = content["spec"], content["status"]
    return (
        content["metadata"]["name"],
        _phase(status),
        spec["requester"]["username"],
        _cell(spec.get("verbs", ())),
        _cell(spec.get("resources", ())),
        spec.get("namespace", ""),
        spec.get("duration", ""),
        _since(content, now),
        _cell([spec.get("justification", "")]),
        *_decision_cells(spec, status, now),
    )


def _grant_cells(content: Content, now: float) -> Sequence[str]:
    spec, status = content["spec"], content["status"]
    return (
        content["metadata"]["name"],
        status["phase"],
        spec["requester"]["username"],
        _cell(spec.get("rules", ())),
        spec["namespace"],
        _left(status["until"], now) if status["phase"] == "Active" else "-",
        _since(content, now),
        _cell(spec.get("verbs", ())),
        _cell(spec.get("resources", ())),
        spec.get("source", ""),
        _cell(status.get("approvers", ())),
        status.get("revokedBy", ""),
    )


def _revocation_cells(content: Content, now: float) -> Sequence[str]:
    spec, status = content["spec"], content["status"]
    until = spec.get("expires", "") if status["phase"] == "InForce" else ""
    return (
        content["metadata"]["name"],
        status["phase"],
        _cell([status["summary"]]),
        status.get("by", ""),
        _left(until, now) if until else "-",
        _since(content, now),
        _cell([spec.get("reason", "")]),
        status.get("liftedBy", ""),
    )


_CELLS = {
    APPROVALS.plural: _approval_cells,
    REQUESTS.plural: _request_cells,
    GRANTS.plural: _grant_cells,
    REVOCATIONS.plural: _revocation_cells,
}


def _phase(status: Content) -> str:
    """`Pending`, or `Pending (1 more)` where somebody has said yes and that is not enough."""
    missing = status.get("missing")
    if missing and status.get("decisions"):
        return f"{status['phase']} ({max(missing.values())} more)"
    return str(status["phase"])


def _impact(spec: Content) -> str:
    worst = max(spec.get("impacts", ()), key=_severity, default="")
    preview = spec.get("preview", {})
    counts = preview.get("counts")
    if not counts:
        return worst
    total = sum(counts.values())
    return f"{worst} ({'' if preview.get('exact') else 'at least '}{total} object{'' if total == 1 else 's'})"


def _severity(word: str) -> int:
    return next((impact for impact in Impact if impact.word == word), Impact.ESCALATE)


def _decision_cells(spec: Content, status: Content, now: float) -> Sequence[str]:
    until = {"Pending": spec.get("expires", ""), "Approved": status.get("validUntil", "")}.get(status["phase"], "")
    decisions = status.get("decisions", ())
    names = dict.fromkeys(
        who
        for rule in spec.get("rules", ())
        for who in (*rule.get("approverGroups", ()), *rule.get("approverUsers", ()))
    )
    return (
        _left(until, now) if until else "-",
        _cell(names),
        _cell(said["username"] for said in decisions),
        _cell(said["reason"] for said in decisions if said.get("reason")),
    )


def _cell(parts: Any) -> str:
    text = " ".join(",".join(parts).split())
    # Both ends: names that begin alike are told apart by the other one.
    return text if len(text) <= _CELL else f"{text[: _CELL - 1 - _TAIL]}…{text[-_TAIL:]}"


def _since(content: Content, now: float) -> str:
    return human_duration(now - seconds_of(content["metadata"]["creationTimestamp"]))


def _left(until: str, now: float) -> str:
    return human_duration(seconds_of(until) - now)


_STEPS = (  # up to so many seconds: in this unit, with the smaller one beside it
    (120, 1, "s", 0, ""),
    (600, 60, "m", 1, "s"),
    (3 * 3600, 60, "m", 0, ""),
    (8 * 3600, 3600, "h", 60, "m"),
    (48 * 3600, 3600, "h", 0, ""),
    (8 * 86400, 86400, "d", 3600, "h"),
)


def human_duration(seconds: float) -> str:
    """As the AGE column is written everywhere in Kubernetes: `45s`, `5m10s`, `170m`, `26h`, `3d4h`."""
    left = max(int(seconds), 0)
    for limit, size, unit, small, small_unit in _STEPS:
        if left < limit:
            rest = left % size // small if small else 0
            return f"{left // size}{unit}" + (f"{rest}{small_unit}" if rest else "")
    return f"{left // 86400}d"
