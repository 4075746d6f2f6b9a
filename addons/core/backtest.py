"""
Backtest: recorded requests through another policy, offline: which verdicts would change.

An operation is taken as the gateway understood it then, so that what was masked or cut in the
record changes nothing. Objects that a rule looks at are those that were recorded; what was not is
treated as what could not be fetched, and counted apart. Budgets depend on the hour and are left out.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from addons.core import admission, auditevents, sessions
from addons.core.auditevents import EventError
from addons.core.model import Action, Identity, Operation, Verdict
from addons.core.policy import PolicySet

EXAMPLES = 3  # of each change
MAX_IDENTITIES = 4096  # remembered, so that each is asked about once whether it is a person
MAX_OPEN = 100_000  # requests whose answer has not come yet in the record
_NOT_RECORDED = "it was not recorded"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One recorded request under the other policy."""

    before: Verdict
    after: Verdict
    passed: bool  # it was allowed then: by a rule, or by an approval
    certain: bool  # False: a rule looks at an object that was not recorded
    identity: Identity
    operation: Operation
    event: Mapping[str, Any] = field(repr=False)

    @property
    def changed(self) -> bool:
        if self.before.action is Action.HOLD and self.passed:
            # It was asked for and approved; to be allowed or asked for again is no refusal.
            return self.after.action is not Action.HOLD
        return self.before.action is not self.after.action

    @property
    def broken(self) -> bool:
        """Recorded as allowed, and would be refused."""
        return self.passed and self.after.action is Action.DENY

    @property
    def held(self) -> bool:
        """Recorded as allowed by a rule, and would be asked for."""
        return self.before.action is Action.ALLOW and self.after.action is Action.HOLD


class Bench:
    """Puts requests through one policy."""

    def __init__(self, policies: PolicySet) -> None:
        self._policies = policies
        self._identities: dict[Any, Identity] = {}

    def judge(self, event: Mapping[str, Any]) -> Outcome | None:
        """None for what no policy was asked about then. Raises EventError."""
        notes = auditevents.notes_of(event)
        if auditevents.VERDICT not in notes:
            return None
        before = auditevents.verdict_of(event)
        operation = auditevents.operation_of(event)
        identity = self._identity(event, notes)
        certain = True
        try:
            after = self._policies.evaluate(identity, operation)
        except admission.NeedsObjects as needs:
            objects = recorded_objects(event, operation, needs.names)
            certain = not objects.trouble(needs.names)
            after = self._policies.evaluate(identity, operation, objects)
        passed = before.action is Action.ALLOW or (
            before.action is Action.HOLD and auditevents.APPROVAL in notes and auditevents.REFUSED_BY not in notes
        )
        return Outcome(before, after, passed, certain, identity, operation, event)

    def _identity(self, event: Mapping[str, Any], notes: Mapping[str, str]) -> Identity:
        # The same object for the same identity: the policy remembers askers by it.
        key = (repr(event.get("user")), notes.get(auditevents.IDENTITY))
        found = self._identities.get(key)
        if found is None:
            if len(self._identities) >= MAX_IDENTITIES:
                self._identities.clear()
            found = self._identities[key] = auditevents.identity_of(event)
        return found


def recorded_objects(event: Mapping[str, Any], operation: Operation, names: frozenset[str]) -> admission.Objects:
    """The objects of ValidatingAdmissionPolicy, as far as the record has them."""
    plan = admission.plan(operation, names)
    values = dict(plan.values)
    troubles = {name: _NOT_RECORDED for name in names if name not in values} | dict(plan.troubles)
    after = event.get("responseObject")
    if plan.preview:
        if sessions.did_change(event) and isinstance(after, dict) and after.get("kind") not in (None, "Status"):
            values["object"] = after
        elif operation.info.verb in ("create", "update") and isinstance(event.get("requestObject"), dict):
            values["object"] = event["requestObject"]  # without defaults and without what admission changes
    images = auditevents.before_of(event)
    if plan.live and len(images) == 1:
        values["oldObject"] = images[0]
    return admission.Objects(values, {name: why for name, why in troubles.items() if name not in values})


def joined(events: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Each request once: what was written ahead of it and what came of it, as one event."""
    waiting: dict[str, Mapping[str, Any]] = {}
    for event in events:
        key = event.get("auditID")
        if not isinstance(key, str):
            continue
        ahead = waiting.pop(key, None)
        if event.get("stage") == auditevents.Stage.COMPLETE.value:
            yield event if ahead is None else _join(ahead, event)
        elif len(waiting) < MAX_OPEN:
            waiting[key] = event
    yield from waiting.values()


def _join(ahead: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
    return {**ahead, **event, "annotations": {**auditevents.notes_of(ahead), **auditevents.notes_of(event)}}


@dataclass(slots=True)
class Change:
    """All requests that change in one way, by one rule."""

    before: Action
    after: Action
    rule: str  # the new policy's; "" when no rule matches
    passed: bool
    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """What a backtest found."""

    requests: int = 0
    unjudged: int = 0  # refused before any policy was asked
    unreadable: int = 0
    uncertain: int = 0
    broken: int = 0
    held: int = 0
    opened: int = 0  # refused then, and would be allowed
    changes: dict[tuple[Action, Action, str, bool], Change] = field(default_factory=dict)

    def add(self, outcome: Outcome | None) -> None:
        self.requests += 1
        if outcome is None:
            self.unjudged += 1
            return
        self.uncertain += not outcome.certain
        if not outcome.changed:
            return
        self.broken += outcome.broken
        self.held += outcome.held
        self.opened += not outcome.passed and outcome.after.action is Action.ALLOW
        after = outcome.after
        rule = "/".join(part for part in (after.policy, after.rule) if part)
        key = (outcome.before.action, after.action, rule, outcome.passed)
        change = self.changes.get(key)
        if change is None:
            change = self.changes[key] = Change(outcome.before.action, after.action, rule, outcome.passed)
        change.count += 1
        if len(change.examples) < EXAMPLES:
            text = example(outcome)
            if text not in change.examples:
                change.examples.append(text)

    @property
    def changed(self) -> int:
        return sum(change.count for change in self.changes.values())


def example(outcome: Outcome) -> str:
    """`14:03:22 ann: delete pod shop/web-1 (was allow agents/deletes)`."""
    at = outcome.event.get("requestReceivedTimestamp")
    when = at[:19].replace("T", " ") if isinstance(at, str) else ""
    before = outcome.before
    rule = "/".join(part for part in (before.policy, before.rule) if part) or "no rule"
    summary = outcome.operation.summary or f"{outcome.operation.method} {outcome.operation.info.path}"
    more = "" if outcome.certain else "; hangs on an object that was not recorded"
    return f"{when} {outcome.identity.username}: {summary} (was {before.action.name.lower()} by {rule}{more})"


def run(tester: Bench, events: Iterable[Mapping[str, Any]], result: Result) -> None:
    """Put the events of one session through; the result grows."""
    for event in joined(events):
        if auditevents.COUNTS in auditevents.notes_of(event):
            continue
        try:
            result.add(tester.judge(event))
        except EventError:
            result.unreadable += 1
