"""
Replay: which recorded requests can be sent to another cluster, and how, and what differed then.

Nothing that was recorded is trusted: a request is read again by the gateway's own classifier, is
sent with a credential of today, and with none of the recorded headers but those that say what the
body is and which command it belonged to. What was masked is never sent: an object would be
overwritten with a mask. Without being told otherwise everything is a dry run, and what cannot
surely be made one is not sent.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from addons.core import admission, auditevents, classify, impacts, sessions, status
from addons.core.model import Impact, Operation

# Of the recorded headers. Not the User-Agent: that this is a replay should be seen in the audit log.
KEPT = frozenset({"content-type", "kubectl-command", "kubectl-session"})
_HARMLESS = frozenset({Impact.META, Impact.READ, Impact.REVEAL})
_STREAMS = frozenset({"exec", "attach", "portforward", "proxy"})
_HEAD = "**masked:"  # addons/core/masktags.py: how every mask begins


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request as it was recorded."""

    event: Mapping[str, Any] = field(repr=False)  # of both stages
    method: str
    target: str
    headers: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes = field(repr=False)
    whole: bool = True  # False: the body was cut or is not there
    trouble: str = ""  # why it cannot be taken from the record at all


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done with one of them."""

    number: int  # in the session, from 1
    summary: str
    code: int  # what came of it then; 0: no answer was recorded
    refused: bool  # by the gateway, then
    method: str = ""
    target: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    skipped: str = ""  # why it is not sent


class CannotSend(Exception):
    """Why a request is not sent; one sentence."""


def plan(
    recorded: Iterable[Recorded],
    *,
    for_real: bool = False,
    with_refused: bool = False,
    with_reads: bool = True,
    holds_mask: Callable[[str], bool] | None = None,
) -> list[Step]:
    """The steps, in the order of the session."""
    steps = []
    for number, one in enumerate(recorded, 1):
        notes = auditevents.notes_of(one.event)
        summary = notes.get(auditevents.SUMMARY) or f"{one.method} {one.target}"
        refused = bool(notes.get(auditevents.REFUSED_BY))
        step = Step(number, summary, sessions.code_of(one.event), refused)
        try:
            if one.trouble:
                raise CannotSend(one.trouble)
            if refused and not with_refused:
                raise CannotSend("it was refused then")  # nothing of it reached the cluster
            method, target, headers, body = _prepared(
                one, for_real=for_real, with_reads=with_reads, holds_mask=holds_mask or default_holds_mask
            )
        except CannotSend as why:
            steps.append(_skipped(step, str(why)))
            continue
        steps.append(Step(number, summary, step.code, refused, method, target, headers, body))
    return steps


def _skipped(step: Step, why: str) -> Step:
    return Step(step.number, step.summary, step.code, step.refused, skipped=why)


def _prepared(
    one: Recorded, *, for_real: bool, with_reads: bool, holds_mask: Callable[[str], bool]
) -> tuple[str, str, dict[str, str], bytes]:
    """Raises CannotSend."""
    headers = {name.lower(): value for name, value in one.headers if name.lower() in KEPT}
    if not one.whole:
        raise CannotSend("its body was not recorded whole")
    texts = (one.target, *headers.values(), one.body.decode("utf-8", "replace"), one.body.decode("latin-1"))
    if any(holds_mask(text) for text in texts):
        raise CannotSend("it holds a masked value")
    operation = _classified(one.method, one.target, headers, one.body)
    info = operation.info
    if operation.upgrade or info.subresource in _STREAMS or info.verb == "watch" or _follows(one.target):
        raise CannotSend("a stream cannot be replayed")
    if any(name.lower() == "upgrade" for name, _ in one.headers):
        raise CannotSend("a stream cannot be replayed")
    reads = operation.impacts <= _HARMLESS and not operation.dry_run
    if reads and not with_reads and info.verb in ("get", "list", "head"):
        raise CannotSend("it only reads")
    if for_real or operation.dry_run or _only_reads(operation):
        return one.method, one.target, headers, one.body
    method, target, body = _dry_run(one, operation)
    made = _classified(method, target, headers, body)
    if not made.dry_run:
        # direction: what the gateway itself would not take for a dry run may be none.
        raise CannotSend("it could not be made a dry run")
    return method, target, headers, body


def _classified(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Operation:
    try:
        return classify.classify(method, target, headers, body)
    except status.Refused as refused:
        raise CannotSend(f"the gateway would not read it ({refused.refusal.cause})") from None


def _only_reads(operation: Operation) -> bool:
    return operation.info.verb in ("get", "list", "head") or operation.impacts <= {Impact.META, Impact.READ}


def _follows(target: str) -> bool:
    query = target.partition("?")[2]
    return any(part in ("follow=true", "follow=1", "follow") for part in query.split("&"))


def _dry_run(one: Recorded, operation: Operation) -> tuple[str, str, bytes]:
    """The same request, told to store nothing. Raises CannotSend."""
    info = operation.info
    if not impacts.dry_run_possible(info) or info.subresource in (admission.BESIDE - {"eviction"}):
        raise CannotSend("there is no dry run of it")
    if info.verb in ("delete", "deletecollection") and one.body:
        # A DELETE with any body ignores the query: `dryRun=All` there would really delete.
        try:
            options = json.loads(one.body)
        except (ValueError, RecursionError):
            options = None
        if not isinstance(options, dict):
            raise CannotSend("its options cannot be read, so it cannot be made a dry run")
        return one.method, one.target, json.dumps({**options, "dryRun": ["All"]}).encode()
    return one.method, admission.dry_run_target(one.target), one.body


def default_holds_mask(text: str) -> bool:
    """Whether a mask is in the text: plain, escaped for a URL, or in base64 after anything."""
    return any(needle in text for needle in _NEEDLES)


def _in_base64(text: str) -> list[str]:
    """The letters that only the text decides, for each place it may have."""
    found = []
    for offset in range(3):
        raw = b"\0" * offset + text.encode()
        found.append(base64.b64encode(raw).decode()[(offset * 8 + 5) // 6 : len(raw) * 8 // 6])
    return found


_NEEDLES = (_HEAD, quote(_HEAD, safe=""), quote(_HEAD, safe="*"), quote(_HEAD, safe=":"), *_in_base64(_HEAD))


# ----- what came of it -----


@dataclass(frozen=True, slots=True)
class Compared:
    """One step, and what came of it now."""

    step: Step
    code: int = 0
    message: str = ""  # of a Status
    trouble: str = ""  # why there was no answer

    @property
    def same(self) -> bool:
        return not self.trouble and self.code == self.step.code

    @property
    def words(self) -> str:
        if self.step.skipped:
            return f"not sent: {self.step.skipped}"
        if self.trouble:
            return f"no answer: {self.trouble}"
        if self.same:
            return f"{self.code} as then"
        then = self.step.code or "no answer"
        return f"{then} then, {self.code} now" + (f": {self.message}" if self.message else "")


def compare(step: Step, code: int, content: bytes) -> Compared:
    return Compared(step, code, message_of(content) if code >= 400 else "")


def message_of(content: bytes) -> str:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    message = value.get("message") if isinstance(value, dict) else None
    return message[:500] if isinstance(message, str) else ""
