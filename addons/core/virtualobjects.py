"""
The objects of tollgate.dev/v1alpha1, made from the records of core/approvals.

Everything in them was masked when it was recorded. Here it is made safe to look at: a letter that
is not printed as itself (an escape of the terminal, a right-to-left override) would let a requester
draw his approver another command than the one he asks for, so it is written out.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from addons.core import approvals, revocations
from addons.core.approvals import Access, Asked, Grant, Phase, Preview, Record, Requester
from addons.core.revocations import Revocation
from addons.core.virtualstatus import GROUP

VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

PHASE_LABEL = f"{GROUP}/phase"
USER_LABEL = f"{GROUP}/user"
EVERYWHERE = "*"  # spec.namespace of all namespaces: a forgotten field must not mean that
ITEMS = 100  # of one command that are shown one by one

APPROVED, DENIED = "Approved", "Denied"  # spec.decision

_READ = ("get", "list", "watch")


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of the group, by its names. All are cluster-scoped."""

    plural: str
    singular: str
    kind: str
    verbs: tuple[str, ...]
    short_names: tuple[str, ...] = ()
    writable: tuple[str, ...] = ("decision", "reason")  # fields of spec that a patch may change
    fields: tuple[str, ...] = ()  # what a field selector may name

    @property
    def full(self) -> str:
        return f"{self.plural}.{GROUP}"


_FIELDS = ("metadata.name", "status.phase", "spec.requester.username", "spec.namespace")

APPROVALS = Resource(
    "approvals",
    "approval",
    "Approval",
    ("delete", *_READ, "patch", "update"),
    ("apr",),
    fields=(*_FIELDS, "spec.verb", "spec.resource"),
)
REQUESTS = Resource(
    "accessrequests",
    "accessrequest",
    "AccessRequest",
    ("create", "delete", *_READ, "patch", "update"),
    ("acr",),
    fields=_FIELDS,
)
GRANTS = Resource(
    "grants",
    "grant",
    "Grant",
    ("delete", *_READ, "patch", "update"),
    writable=("revoked",),
    fields=(*_FIELDS, "spec.source"),
)
REVOCATIONS = Resource(
    "revocations",
    "revocation",
    "Revocation",
    # What was revoked is not changed into something else: a delete lifts it, and another is made. The last two
    # are for kubectl, which looks at the PATCH of a kind to learn how to create one.
    ("create", "delete", *_READ, "patch", "update"),
    ("rev",),
    writable=(),
    fields=("metadata.name", "status.phase", "spec.user", "spec.owner"),
)
RESOURCES: Mapping[str, Resource] = {r.plural: r for r in (APPROVALS, REQUESTS, GRANTS, REVOCATIONS)}

type Entry = Record | Grant | Revocation
type Content = dict[str, Any]


def of_entry(resource: Resource, entry: Entry, revision: int, now: float, *, redacted: bool = False) -> Content:
    """
    The object as it is at this moment. Nothing in it is shared with the record.

    redacted: for somebody who may not read the object that the record is about: names and counts.
    """
    if isinstance(entry, Revocation):
        phase, spec, status = _revocation(entry, now)
        created = entry.created
    elif isinstance(entry, Grant):
        phase, spec, status = _grant(entry, now)
        created = entry.since
    else:
        record = approvals.expire(entry, now)
        phase, created = record.phase.value, record.created
        spec, status = _spec(record, redacted=redacted), _status(record)
    return {
        "apiVersion": API_VERSION,
        "kind": resource.kind,
        "metadata": {
            "name": entry.name,
            "uid": entry.uid,
            "resourceVersion": str(revision),
            "creationTimestamp": time(created),
            "labels": _labels(entry, phase),
        },
        "spec": plain(spec),
        "status": plain(status),
    }


def selectable(entry: Entry, now: float) -> Content:
    """As much of the object as selectors look at; a list of thousands is not made whole to find one."""
    spec: Content = {"requester": {"username": entry.requester.username}}
    if isinstance(entry, Revocation):
        phase = revocations.phase(entry, now)
        spec |= {"user": entry.target.user, "owner": entry.target.owner}
    elif isinstance(entry, Grant):
        phase = grant_phase(entry, now)
        spec |= {"namespace": entry.namespace or EVERYWHERE, "source": entry.source}
    else:
        phase = approvals.expire(entry, now).phase.value
        namespace = (entry.access.namespace or EVERYWHERE) if entry.access is not None else entry.namespace
        spec |= {"namespace": namespace, "verb": entry.verb, "resource": entry.resource}
    return {
        "metadata": {"name": entry.name, "labels": _labels(entry, phase)},
        "spec": plain(spec),
        "status": {"phase": phase},
    }


def _labels(entry: Entry, phase: str) -> Content:
    if isinstance(entry, Revocation):
        # Not of whoever made it: it is looked for by whom it hits.
        return {PHASE_LABEL: phase, **({USER_LABEL: label_value(entry.target.user)} if entry.target.user else {})}
    return {PHASE_LABEL: phase, USER_LABEL: label_value(entry.requester.username)}


# ----- approvals and access requests -----


def _spec(record: Record, *, redacted: bool) -> Content:
    decision, reason = _decision(record)
    spec = {
        "requester": _requester(record.requester),
        "command": record.command,
        "summary": record.summary,
        "verb": record.verb,
        "resource": record.resource,
        "namespace": record.namespace,
        "impacts": list(record.impacts),
        "rules": [_rule(asked) for asked in record.asked],
        "items": [_item(item) for item in record.items[:ITEMS]],
        "itemCount": len(record.items),
        "content": dict(record.content or {}),
        "preview": _preview(record.preview, redacted=redacted),
        "notRepeatable": record.repeatable,
        "policyRevision": record.revision,
        "expires": time(record.expires),
    }
    if record.access is not None:
        spec |= _access(record.access)
    # The two that an approver sets are there while empty too: `kubectl edit` shows what there is to fill in.
    return {**_filled(spec), "decision": decision, "reason": reason}


def _decision(record: Record) -> tuple[str, str]:
    """(spec.decision, spec.reason): empty while people are still missing, so that each says it anew."""
    if not record.decided:
        return "", ""
    last = record.decisions[-1] if record.decisions else None
    if record.phase is Phase.DENIED or (last is not None and not last.approved):
        return DENIED, last.reason if last else ""
    return APPROVED, last.reason if last else ""


def _access(access: Access) -> Content:
    return {
        "verbs": list(access.verbs),
        "resources": list(access.resources),
        "namespace": access.namespace or EVERYWHERE,
        "duration": duration(access.seconds),
        "justification": access.justification,
    }


def _requester(requester: Requester) -> Content:
    return _filled(
        {
            "username": requester.username,
            "uid": requester.uid,
            "groups": list(requester.groups),
            "issuer": requester.issuer,
            "credentialID": requester.credential_id,
        }
    )


def _rule(asked: Asked) -> Content:
    approval = asked.hold.approval
    return _filled(
        {
            "name": asked.rule,
            "message": asked.hold.message,
            "approverGroups": list(approval.groups),
            "approverUsers": list(approval.users),
            "needed": approval.needed,
            "requireReason": approval.require_reason,
            "requesterOwner": asked.owner,
        }
    )


def _item(item: approvals.Item) -> Content:
    return _filled({"what": item.what, "uid": item.uid, "resourceVersion": item.resource_version})


def _preview(preview: Preview, *, redacted: bool) -> Content:
    notes = list(preview.notes)
    diff = preview.diff
    if redacted and diff:
        # What somebody may not read himself he is not shown here: else approving, or asking, would be a way to read it.
        diff = ""
        notes.append("the difference is not shown: you may not read this object yourself")
    found = _filled(
        {
            "diff": "\n".join(line.rstrip() for line in diff.splitlines()),  # a YAML block has no spaces at ends
            "counts": dict(preview.counts),
            "names": list(preview.names),
            "notes": notes,
            "argv": list(preview.argv),
        }
    )
    return {**found, "exact": preview.exact} if preview.counts else found


def _status(record: Record) -> Content:
    status = {
        "phase": record.phase.value,
        "message": record.message,
        "waiting": record.waiting,
        "decisions": [_said(decision) for decision in record.decisions],
        "missing": approvals.missing(record) if record.phase is Phase.PENDING else {},
        "decidedAt": time(record.decided),
        "validUntil": time(record.valid_until),
        "endedAt": time(record.ended),
        "usedBy": [
            {"what": item.what, "auditID": item.used_by, "time": time(item.used_at)}
            for item in record.items[:ITEMS]
            if item.used
        ],
        "conditions": _conditions(record),
    }
    if record.decided and record.phase is not Phase.DENIED and approvals.grant_of(_as_approved(record), 0, "x"):
        status["grant"] = approvals.grant_name(record)
    return {**_filled(status), "waiting": record.waiting}


def _as_approved(record: Record) -> Record:
    return record if record.phase is Phase.APPROVED else replace(record, phase=Phase.APPROVED)


def _said(decision: approvals.Decision) -> Content:
    return _filled(
        {
            "username": decision.username,
            "decision": APPROVED if decision.approved else DENIED,
            "reason": decision.reason,
            "time": time(decision.at),
            "via": decision.via,
            "rules": list(decision.rules),
        }
    )


def _conditions(record: Record) -> list[Content]:
    """For `kubectl wait --for=condition=Approved`: true while it holds, and once it was used."""
    approved = record.phase in (Phase.APPROVED, Phase.USED)
    changed = record.ended if record.ended and not approved else record.decided or record.ended or record.created
    decided = record.decided or record.ended or record.created
    return [
        _condition("Approved", approved, changed, record),
        _condition("Decided", bool(record.decided), decided, record),
    ]


def _condition(kind: str, holds: bool, at: float, record: Record) -> Content:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "lastTransitionTime": time(at),
        "reason": record.phase.value,
        "message": record.message or "waiting for a decision",
    }


# ----- grants -----


def grant_phase(grant: Grant, now: float) -> str:
    if grant.revoked:
        return "Revoked"
    return "Active" if grant.active(now) else "Expired"


def _grant(grant: Grant, now: float) -> tuple[str, Content, Content]:
    phase = grant_phase(grant, now)
    spec = {
        "requester": _requester(grant.requester),
        "rules": list(grant.rules),
        "verbs": list(grant.verbs),
        "resources": list(grant.resources),
        "namespace": grant.namespace or EVERYWHERE,
        "source": grant.source,
    }
    status = {
        "phase": phase,
        "since": time(grant.since),
        "until": time(grant.until),
        "approvers": list(grant.approvers),
        "revokedAt": time(grant.revoked),
        "revokedBy": grant.revoked_by,
        "conditions": [
            {
                "type": "Active",
                "status": "True" if phase == "Active" else "False",
                "lastTransitionTime": time(grant.revoked or (grant.until if phase == "Expired" else grant.since)),
                "reason": phase,
                "message": f"revoked by {grant.revoked_by}" if grant.revoked else f"until {time(grant.until)}",
            }
        ],
    }
    return phase, {**_filled(spec), "revoked": bool(grant.revoked)}, _filled(status)


# ----- revocations -----


def _revocation(entry: Revocation, now: float) -> tuple[str, Content, Content]:
    phase, target = revocations.phase(entry, now), entry.target
    spec = {
        "user": target.user,
        "tokenID": target.token_id,
        "issuedBefore": time(target.issued_before),
        "allAgents": target.agents,
        "owner": target.owner,
        "expires": time(entry.until),
        "reason": entry.reason,
    }
    status = {
        "phase": phase,
        "summary": revocations.summary(target),
        "by": entry.requester.username,
        "via": entry.via,
        "liftedAt": time(entry.lifted),
        "liftedBy": entry.lifted_by,
        "conditions": [
            {
                "type": "InForce",
                "status": "True" if phase == "InForce" else "False",
                "lastTransitionTime": time(entry.lifted or (entry.until if phase == "Expired" else entry.created)),
                "reason": phase,
                "message": f"lifted by {entry.lifted_by}" if entry.lifted_by else revocations.summary(target),
            }
        ],
    }
    return phase, _filled(spec), _filled(status)


# ----- values -----


def time(seconds: float) -> str:
    """RFC 3339 in UTC, as metav1.Time; "" for none."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else ""


def seconds_of(text: str) -> float:
    """The other way round; 0 for none."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp() if text else 0.0


def duration(seconds: int) -> str:
    """`1h30m`, as the field is written."""
    hours, rest = divmod(seconds, 3600)
    minutes, left = divmod(rest, 60)
    return "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (left, "s")) if n) or "0s"


_LABEL_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def label_value(text: str) -> str:
    """The text where it can be a label's value, else what is left of it and a hash, so that two never become one."""
    if _LABEL_VALUE.fullmatch(text):
        return text
    left = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:54].strip("-_.")
    mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{left}-{mark}" if left else mark


_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # Unicode's general categories
_ORDINARY = re.compile(r"[\x20-\x7e\n\t]*")


def plain(value: Any) -> Any:
    """A copy in which every letter is one that shows."""
    if isinstance(value, str):
        return _plain_text(value)
    if isinstance(value, Mapping):
        return {_plain_text(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def _plain_text(text: str) -> str:
    if _ORDINARY.fullmatch(text):
        return text
    return "".join(
        f"<U+{ord(char):04X}>" if char not in "\n\t" and unicodedata.category(char) in _INVISIBLE else char
        for char in text
    )


def _filled(content: Mapping[str, Any]) -> Content:
    """Without what is empty, as `omitempty`."""
    return {key: value for key, value in content.items() if value}
