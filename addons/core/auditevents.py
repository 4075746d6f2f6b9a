"""
Audit events: what one request was, as an `audit.k8s.io/v1` Event with annotations of ours.

The form is Kubernetes' own, so what reads audit logs reads these. What only the gateway knows
(the verified credential, impact, verdict, rule, approval, reach) is in annotations under
`tollgate.dev/`. `identity_of`, `operation_of` and `verdict_of` read it back, for a backtest.

Nothing here masks: an event is masked as a whole before it is written. Every part is bounded,
and what was cut is named in an annotation, so that nobody can make a record too large to write.
"""

import datetime
import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from addons.core import chain, commands
from addons.core.model import (
    ANONYMOUS,
    NOTHING,
    RECORD_LEVELS,
    Action,
    Identity,
    Impact,
    Operation,
    Reach,
    RequestInfo,
    Uses,
    Verdict,
)

PREFIX = chain.PREFIX
IDENTITY = f"{PREFIX}identity"  # JSON: issuer and times of the credential
CREDENTIAL = f"{PREFIX}credential-id"
OPERATION = f"{PREFIX}operation"  # JSON: what `operation_of` needs
IMPACT = f"{PREFIX}impact"  # the gravest
VERDICT = f"{PREFIX}verdict"  # allow, hold or deny
POLICY = f"{PREFIX}policy"
RULE = f"{PREFIX}rule"
REVISION = f"{PREFIX}revision"
MESSAGE = f"{PREFIX}message"  # the policy's sentence, where it did not allow
OBSERVED = f"{PREFIX}observed"  # what policies in observe mode would have said
REFUSED_BY = f"{PREFIX}refused-by"  # the addon whose refusal the client got
APPROVAL = f"{PREFIX}approval"
APPROVER = f"{PREFIX}approver"
COMMAND = f"{PREFIX}command"
SUMMARY = f"{PREFIX}summary"
MASKED = f"{PREFIX}masked"  # how many values were masked in what was recorded
REACH = f"{PREFIX}reach"  # for people: `14 pods`
BEFORE = f"{PREFIX}before"  # JSON: objects as they were before they were changed or deleted
EDITED = f"{PREFIX}edited"  # an operator changed the request by hand; judged again
ENDED = f"{PREFIX}ended"  # how a stream or an exchange ended, where not plainly
SENT = f"{PREFIX}sent"  # bytes of the answer's body
MEDIA_TYPE = f"{PREFIX}media-type"  # of the request's body
TRUNCATED = f"{PREFIX}truncated"  # what is not whole in this event
LOST = f"{PREFIX}lost"  # records before this one that could not be written
COUNTS = f"{PREFIX}counts"  # JSON: requests that are counted, not written one by one
REASON = f"{PREFIX}reason"  # stable code of a refusal

MAX_OBJECT = 256 * 1024  # bytes of JSON of a request's or answer's object
MAX_BEFORE = 1024 * 1024  # bytes of JSON of all before-images of one request
MAX_IMAGES = 100  # objects
MAX_URI = 8192  # characters; an exec's script is in it
MAX_TEXT = 1024  # characters of commands, summaries, messages
MAX_AGENT = 512  # characters
MAX_GROUPS = 200
MAX_EXTRA = 8192  # characters of all of an identity's extra

_UTC = datetime.UTC
_LARGEST = 2**53  # what JSON carries whole; no time and no count comes near it


class Stage(enum.StrEnum):
    """audit.k8s.io's words for how far a request had come."""

    RECEIVED = "RequestReceived"  # written before it goes upstream
    STARTED = "ResponseStarted"  # a stream began
    COMPLETE = "ResponseComplete"


class Level(enum.StrEnum):
    """audit.k8s.io's words for how much of a request is recorded."""

    METADATA = "Metadata"
    REQUEST = "Request"
    FULL = "RequestResponse"


_LEVEL_WORDS = dict(zip(RECORD_LEVELS, Level, strict=True))
_READS = frozenset({Impact.META, Impact.READ, Impact.REVEAL})


def level(word: str) -> Level:
    """The level that a rule names: metadata, request or full. Raises KeyError."""
    return _LEVEL_WORDS[word]


def default_level(operation: Operation) -> Level:
    """Reads are many and say little; of everything else both sides are kept."""
    return Level.METADATA if operation.impacts <= _READS else Level.FULL


def must_be_written(operation: Operation) -> bool:
    """Whether the record must be on disk before the request goes upstream: it changes, executes or reveals."""
    return not operation.impacts <= {Impact.META, Impact.READ}


@dataclass(frozen=True, slots=True)
class Asked:
    """What came over the wire, as far as the event needs it."""

    audit_id: str  # the Audit-ID that goes upstream
    method: str
    uri: str
    received: float  # seconds since the epoch
    user_agent: str = ""
    source: str = ""  # IP address of the client


@dataclass(frozen=True, slots=True)
class Approved:
    """The approval or grant that let a held request pass."""

    name: str
    approvers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended."""

    at: float  # seconds since the epoch
    code: int = 0  # 0: there was no answer
    reason: str = ""
    message: str = ""
    refused_by: str = ""  # the addon, when the gateway answered
    refusal: str = ""  # the stable code of the gateway's refusal
    ended: str = ""  # "the client left", "cut: the token expired"
    sent: int = -1  # bytes of the body; -1: not known
    body: Any = None  # the answer's object


@dataclass(frozen=True, slots=True)
class Beside:
    """What else is known of a request."""

    before: Sequence[Mapping[str, Any]] = ()  # before-images
    before_complete: bool = True  # False: there were more objects than were read
    masked: int = 0
    edited: bool = False
    truncated: tuple[str, ...] = ()  # what the caller had to cut: "flow.request 9437184 bytes"


NOTHING_BESIDE = Beside()


def timestamp(seconds: float) -> str:
    """MicroTime of metav1: `2026-11-24T14:03:22.123456Z`."""
    try:
        moment = datetime.datetime.fromtimestamp(seconds, _UTC)
    except (ValueError, OverflowError, OSError):
        moment = datetime.datetime.fromtimestamp(0, _UTC)  # a clock that is off must not lose a record
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def seconds(text: object) -> float:
    """Seconds since the epoch of a timestamp; 0.0 for what is none."""
    if not isinstance(text, str):
        return 0.0
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return moment.replace(tzinfo=moment.tzinfo or _UTC).timestamp()


def build(
    stage: Stage,
    asked: Asked,
    identity: Identity | None,
    operation: Operation | None,
    verdict: Verdict | None,
    *,
    level: Level = Level.METADATA,
    body: Any = None,
    approved: Approved | None = None,
    outcome: Outcome | None = None,
    beside: Beside = NOTHING_BESIDE,
) -> dict[str, Any]:
    """
    The event. Without an operation (refused before anybody could read it) it says what is known.

    `body` is the request's object; whether it is kept is `level`'s to say.
    """
    cut = _Cut(beside.truncated)
    event: dict[str, Any] = {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": level.value,
        "auditID": asked.audit_id,
        "stage": stage.value,
        "requestURI": cut.text("requestURI", asked.uri, MAX_URI),
        "verb": operation.info.verb if operation else asked.method.lower(),
        "user": _user(identity or ANONYMOUS, cut),
        "userAgent": cut.text("userAgent", asked.user_agent, MAX_AGENT),
        "requestReceivedTimestamp": timestamp(asked.received),
        "stageTimestamp": timestamp(outcome.at if outcome else asked.received),
    }
    if asked.source:
        event["sourceIPs"] = [asked.source]
    notes = _notes(identity, operation, verdict, approved, cut)
    if operation is not None and operation.info.is_resource_request:
        event["objectRef"] = _reference(operation)
    if level is not Level.METADATA and body is not None and (kept := cut.object("requestObject", body)) is not None:
        event["requestObject"] = kept
    if outcome is not None:
        event["responseStatus"] = _status(outcome, cut)
        if level is Level.FULL and outcome.body is not None:
            kept = cut.object("responseObject", outcome.body)
            if kept is not None:
                event["responseObject"] = kept
        notes |= {REFUSED_BY: outcome.refused_by, REASON: outcome.refusal, ENDED: cut.text("ended", outcome.ended)}
        if outcome.sent >= 0:
            notes[SENT] = str(outcome.sent)
    if beside.before:
        notes[BEFORE] = _images(beside, cut)
    if beside.masked:
        notes[MASKED] = str(beside.masked)
    if beside.edited:
        notes[EDITED] = "true"
    notes[TRUNCATED] = ", ".join(cut.said)
    event["annotations"] = {key: value for key, value in notes.items() if value}
    return event


def counted(counts: Mapping[str, int], since: float, until: float, audit_id: str) -> dict[str, Any]:
    """Requests without an identity: so many by reason, not one by one, or anybody could fill the disk."""
    return {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": Level.METADATA.value,
        "auditID": audit_id,
        "stage": Stage.COMPLETE.value,
        "requestURI": "/",
        "verb": "counted",
        "user": _user(ANONYMOUS, _Cut(())),
        "requestReceivedTimestamp": timestamp(since),
        "stageTimestamp": timestamp(until),
        "annotations": {
            COUNTS: json.dumps(dict(sorted(counts.items()))),
            SUMMARY: f"{sum(counts.values())} requests without an identity were refused",
        },
    }


class _Cut:
    """Keeps parts within their bounds, and what was cut."""

    def __init__(self, said: Sequence[str]) -> None:
        self.said = list(said)

    def text(self, name: str, value: str, limit: int = MAX_TEXT) -> str:
        if len(value) <= limit:
            return value
        self.said.append(f"{name} {len(value)} characters")
        return value[: limit - 1] + "…"

    def object(self, name: str, value: Any, limit: int = MAX_OBJECT) -> Any:
        size = len(chain.canonical(value))
        if size <= limit:
            return value
        self.said.append(f"{name} {size} bytes")
        return None


def _user(identity: Identity, cut: _Cut) -> dict[str, Any]:
    user: dict[str, Any] = {"username": cut.text("user.username", identity.username)}
    if identity.uid:
        user["uid"] = cut.text("user.uid", identity.uid)
    if identity.groups:
        user["groups"] = [cut.text("user.groups", group) for group in identity.groups[:MAX_GROUPS]]
        if len(identity.groups) > MAX_GROUPS:
            cut.said.append(f"user.groups {len(identity.groups)}")
    extra = {key: list(values) for key, values in identity.extra.items()}
    if extra:
        kept = cut.object("user.extra", extra, MAX_EXTRA)
        if kept is not None:
            user["extra"] = kept
    return user


def _notes(
    identity: Identity | None,
    operation: Operation | None,
    verdict: Verdict | None,
    approved: Approved | None,
    cut: _Cut,
) -> dict[str, str]:
    notes: dict[str, str] = {}
    if identity is not None:
        notes[CREDENTIAL] = cut.text("credential-id", identity.credential_id)
        notes[IDENTITY] = _json({"issuer": identity.issuer, "issuedAt": identity.issued_at, "expiry": identity.expiry})
    if operation is not None:
        notes[OPERATION] = _operation(operation, cut)
        notes[IMPACT] = operation.severity.word
        notes[COMMAND] = cut.text("command", operation.command)
        notes[SUMMARY] = cut.text("summary", operation.summary or commands.summary(operation))
        notes[MEDIA_TYPE] = operation.media_type
        if operation.reach is not None:
            notes[REACH] = cut.text("reach", commands.plain(operation.reach))
    if verdict is not None:
        notes |= {
            VERDICT: verdict.action.name.lower(),
            POLICY: verdict.policy,
            RULE: verdict.rule,
            REVISION: verdict.revision,
        }
        if verdict.action is not Action.ALLOW:
            notes[MESSAGE] = cut.text("message", verdict.message)
        observed = [f"{v.action.name.lower()} {v.policy}/{v.rule}" for v in verdict.observed]
        notes[OBSERVED] = cut.text("observed", ", ".join(observed))
    if approved is not None:
        notes[APPROVAL] = cut.text("approval", approved.name)
        notes[APPROVER] = cut.text("approver", ", ".join(approved.approvers))
    return notes


def _reference(operation: Operation) -> dict[str, str]:
    info = operation.info
    found = {
        "resource": info.resource,
        "namespace": info.namespace,
        "name": operation.name,
        "apiGroup": info.api_group,
        "apiVersion": info.api_version,
        "subresource": info.subresource,
    }
    return {key: value for key, value in found.items() if value}


def _status(outcome: Outcome, cut: _Cut) -> dict[str, Any]:
    status: dict[str, Any] = {"metadata": {}, "code": outcome.code}
    if outcome.code >= 400:
        status["status"] = "Failure"
    if outcome.message:
        status["message"] = cut.text("responseStatus.message", outcome.message)
    if outcome.reason:
        status["reason"] = outcome.reason
    return status


def _images(beside: Beside, cut: _Cut) -> str:
    """Whole objects, as many as fit."""
    kept: list[str] = []
    size = 0
    for image in beside.before[:MAX_IMAGES]:
        text = chain.canonical(image).decode()
        size += len(text) + 1
        if size > MAX_BEFORE:
            break
        kept.append(text)
    if len(kept) < len(beside.before) or not beside.before_complete:
        more = "" if beside.before_complete else " of at least"
        cut.said.append(f"before {len(kept)}{more or ' of'} {len(beside.before)} objects")
    return f"[{','.join(kept)}]" if kept else ""


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


_INFO = (
    ("verb", "verb"),
    ("path", "path"),
    ("isResourceRequest", "is_resource_request"),
    ("apiPrefix", "api_prefix"),
    ("apiGroup", "api_group"),
    ("apiVersion", "api_version"),
    ("namespace", "namespace"),
    ("resource", "resource"),
    ("subresource", "subresource"),
    ("name", "name"),
    ("fieldSelector", "field_selector"),
    ("labelSelector", "label_selector"),
)
_OPERATION = (
    ("method", "method"),
    ("name", "name"),
    ("dryRun", "dry_run"),
    ("kind", "kind"),
    ("mediaType", "media_type"),
    ("upgrade", "upgrade"),
    ("claimedCommand", "claimed_command"),
    ("claimedSession", "claimed_session"),
)


def _operation(operation: Operation, cut: _Cut) -> str:
    value: dict[str, Any] = {
        "info": {key: found for key, name in _INFO if (found := getattr(operation.info, name))}
        | ({"parts": list(operation.info.parts)} if operation.info.parts else {}),
        "impacts": [impact.word for impact in sorted(operation.impacts)],
        **{key: found for key, name in _OPERATION if (found := getattr(operation, name))},
    }
    if operation.labels:
        value["labels"] = dict(operation.labels)
    if operation.uses is not None:
        uses = operation.uses
        value["uses"] = {
            "serviceAccounts": sorted(uses.service_accounts),
            "secrets": sorted(uses.secrets),
            "configMaps": sorted(uses.config_maps),
            "host": sorted(uses.host),
            "token": uses.token,
            "unknown": uses.unknown,
        }
    if operation.reach is not None:
        reach = operation.reach
        value["reach"] = {"counts": dict(reach.counts), "names": list(reach.names), "exact": reach.exact}
    kept = cut.object("operation", value, MAX_OBJECT)
    return _json(value) if kept is not None else ""


# ----- reading back -----


class EventError(Exception):
    """An event that does not hold what is needed; the message says which field."""


def notes_of(event: Mapping[str, Any]) -> Mapping[str, str]:
    """Its annotations; those that are no strings are not there."""
    found = event.get("annotations")
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else NOTHING


def identity_of(event: Mapping[str, Any]) -> Identity:
    """Raises EventError."""
    user = event.get("user")
    if not isinstance(user, dict) or not isinstance(user.get("username"), str):
        raise EventError("user: missing")
    notes = notes_of(event)
    more = _read(notes.get(IDENTITY, "{}"), "identity")
    extra = user.get("extra") or {}
    return Identity(
        username=user["username"],
        uid=_string(user.get("uid")),
        groups=_strings(user.get("groups")),
        extra={key: _strings(values) for key, values in extra.items()} if isinstance(extra, dict) else NOTHING,
        issuer=_string(more.get("issuer")),
        credential_id=notes.get(CREDENTIAL, ""),
        issued_at=_number(more.get("issuedAt")),
        expiry=_number(more.get("expiry")),
    )


_BY_WORD = {impact.word: impact for impact in Impact}


def operation_of(event: Mapping[str, Any]) -> Operation:
    """What the gateway took the request for. Raises EventError."""
    notes = notes_of(event)
    if OPERATION not in notes:
        raise EventError("operation: it was not recorded")
    value = _read(notes[OPERATION], "operation")
    info = value.get("info")
    if not isinstance(info, dict):
        raise EventError("operation.info: missing")
    impacts = frozenset(_BY_WORD[word] for word in _strings(value.get("impacts")) if word in _BY_WORD)
    if not impacts:
        raise EventError("operation.impacts: missing")
    return Operation(
        info=RequestInfo(
            parts=_strings(info.get("parts")),
            **{name: _like(name, info.get(key)) for key, name in _INFO},
        ),
        impacts=impacts,
        labels=_labels(value.get("labels")),
        uses=_uses(value.get("uses")),
        reach=_reach(value.get("reach")),
        command=notes.get(COMMAND, ""),
        summary=notes.get(SUMMARY, ""),
        body=event.get("requestObject"),
        **{name: _like(name, value.get(key)) for key, name in _OPERATION},
    )


def _like(name: str, value: object) -> Any:
    return value is True if name in ("is_resource_request", "dry_run") else _string(value)


def _labels(value: object) -> Mapping[str, str]:
    return MappingProxyType({k: _string(v) for k, v in value.items()}) if isinstance(value, dict) else NOTHING


def _uses(value: object) -> Uses | None:
    if not isinstance(value, dict):
        return None
    return Uses(
        service_accounts=frozenset(_strings(value.get("serviceAccounts"))),
        secrets=frozenset(_strings(value.get("secrets"))),
        config_maps=frozenset(_strings(value.get("configMaps"))),
        host=frozenset(_strings(value.get("host"))),
        token=value.get("token") is True,
        unknown=value.get("unknown") is True,
    )


def _reach(value: object) -> Reach | None:
    if not isinstance(value, dict) or not isinstance(value.get("counts"), dict):
        return None
    counts = {key: int(_number(count)) for key, count in value["counts"].items()}
    return Reach(counts=counts, names=_strings(value.get("names")), exact=value.get("exact") is True)


def verdict_of(event: Mapping[str, Any]) -> Verdict:
    """Raises EventError."""
    notes = notes_of(event)
    try:
        action = Action[notes.get(VERDICT, "").upper()]
    except KeyError:
        raise EventError("verdict: it was not recorded") from None
    return Verdict(action, notes.get(RULE, ""), notes.get(POLICY, ""), notes.get(REVISION, ""), notes.get(MESSAGE, ""))


def before_of(event: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The before-images."""
    try:
        found = json.loads(notes_of(event).get(BEFORE, "[]"))
    except (ValueError, RecursionError):
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _read(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise EventError(f"{what}: not a JSON object")
    return value


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _strings(value: object) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
        return 0.0
    return float(value)
