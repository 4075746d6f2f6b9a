"""
The policy: rules in, an operation and an identity in, a verdict out.

deny > hold > allow, and deny when nothing matched. The order of rules and files is never
looked at, so a file can be added without reading the others: it can only deny or hold
more, or allow what no rule forbids. policies/README.md describes the language;
addons/core/policyfile.py reads it, addons/core/matching.py has the two directions of `match`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from addons.core import admission, blast, budgets, cel, maskpolicy, maskwrites, matching, resources, status
from addons.core.admission import NeedsObjects, Objects
from addons.core.budgets import Budget, Charge, Charges
from addons.core.maskpolicy import MaskLevel, MaskRule
from addons.core.matching import Kind, Match
from addons.core.model import (
    ANONYMOUS,
    NOTHING,
    RECORD_LEVELS,
    Action,
    Approval,
    Hold,
    Identity,
    Impact,
    Operation,
    Verdict,
)

# Kinds of request (verb, resource, impacts) whose rules are remembered, per index. The client
# chooses resource and subresource, so it is bounded; a cluster with 200 CRDs has about 2000.
MAX_KINDS = 4096
MAX_IDENTITIES = 1024  # whose groups and people clauses are remembered; authenticate keeps as many

MAX_PROBLEMS = 20  # of a policy file are shown; the others mostly follow from the first

PEOPLE_VARIABLES = {"identity": "map(string,dyn)"}
VARIABLES = {"identity": "map(string,dyn)", "operation": "map(string,dyn)", "request": "map(string,dyn)"}
# What the client says of itself (Kubectl-* headers). Declared only where it can but raise a verdict.
CLAIM_VARIABLES = {**VARIABLES, "session": "map(string,dyn)"}
# Objects of the cluster. Only what needs them is compiled with them: they have to be fetched.
OBJECT_VARIABLES = dict.fromkeys(admission.VARIABLES, "dyn")

# The fields of these variables. Their types are dyn, so the runtime would notice a misspelled
# one only while a request waits; policyfile checks against this when the policy loads.
FIELDS: Mapping[str, frozenset[str]] = {
    "identity": frozenset({"username", "uid", "groups", "extra", "issuer", "agent"}),
    "operation": frozenset(
        {
            "verb",
            "group",
            "version",
            "resource",
            "subresource",
            "namespace",
            "name",
            "path",
            "method",
            "kind",
            "labels",
            "impacts",
            "impact",
            "dryRun",
            "uses",
            "mediaType",
            "upgrade",
        }
    ),
    "operation.uses": frozenset({"serviceAccounts", "secrets", "configMaps", "host", "token", "unknown", "workload"}),
    "request": frozenset({"kind", "resource", "subResource", "name", "namespace", "operation", "userInfo", "dryRun"}),
    "request.kind": frozenset({"group", "version", "kind"}),
    "request.resource": frozenset({"group", "version", "resource"}),
    "request.userInfo": frozenset({"username", "uid", "groups", "extra"}),
    "session": frozenset({"id", "command"}),
}


NO_APPROVAL = Approval()
# What the gateway itself holds, whatever the rules allow (policies/README.md, "Masking").
BUILT_IN = "tollgate"
MASKED_FIELD = "masked-field"
_ADMITTED = frozenset({"object", "oldObject"})


class PolicyError(Exception):
    """What is wrong with the files, one line each: `file.yaml:12: rules[2].match.verbs: sentence`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        shown = list(self.problems[:MAX_PROBLEMS])
        if len(self.problems) > MAX_PROBLEMS:
            shown.append(f"and {len(self.problems) - MAX_PROBLEMS} more")
        super().__init__("\n".join(shown))


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One rule of one policy, ready to be asked."""

    policy: str
    name: str
    action: Action
    match: Match
    when: cel.Program | None = None
    unless: cel.Program | None = None
    claims: bool = False  # `when` was compiled with `session`
    message: str = ""
    approval: Approval = NO_APPROVAL
    digest: str = ""  # of the rule's text: a reload logs which rules changed
    when_needs: frozenset[str] = admission.NONE  # the objects that `when` looks at
    unless_needs: frozenset[str] = admission.NONE
    asks_uses: bool = False  # `match.uses`, or a condition that names operation.uses
    place: str = ""  # `file.yaml:12`
    record: str = ""  # one of RECORD_LEVELS; "" leaves it to others

    @property
    def full_name(self) -> str:
        return f"{self.policy}/{self.name}"

    @property
    def needs(self) -> frozenset[str]:
        return self.when_needs | self.unless_needs


@dataclass(frozen=True, slots=True)
class Auditors:
    """Who sees all approvals, not only his own and those he may decide. It lets them do nothing else."""

    groups: tuple[str, ...] = ()
    users: tuple[str, ...] = ()


NO_AUDITORS = Auditors()


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """One document: its rules, and who are people."""

    name: str
    rules: tuple[Rule, ...]
    observe: bool = False  # decides nothing, its verdict is recorded only
    people: cel.Program | None = None
    budgets: tuple[Budget, ...] = ()
    auditors: Auditors = NO_AUDITORS
    masks: tuple[MaskRule, ...] = ()


class PolicySet:
    """All policies loaded together. Never changes, but for what it remembers of requests it has seen."""

    def __init__(self, policies: Sequence[Policy], revision: str, files: Mapping[str, str] = NOTHING) -> None:
        self.revision = revision
        self.files = files  # name to digest of its content
        self.policies = tuple(sorted(policies, key=lambda policy: policy.name))
        enforced = [p for p in self.policies if not p.observe]
        self._enforced = _Index([rule for p in enforced for rule in p.rules], revision)
        self._observed = tuple(_Index(p.rules, revision, alone=True) for p in self.policies if p.observe)
        self.budgets = tuple(budget for p in self.policies for budget in p.budgets)
        self._budgets = _BudgetIndex([budget for p in enforced for budget in p.budgets])
        self._observed_budgets = _BudgetIndex([b for p in self.policies if p.observe for b in p.budgets])
        self._masks = tuple(rule for p in enforced for rule in p.masks)
        self._approval = built_in_approval([rule for p in enforced for rule in p.rules])
        # A rule that only observes still says what is secret, and records are masked for everybody.
        self._record_masks = tuple(rule for p in self.policies for rule in p.masks)
        # A policy in observe mode must not change what the enforced ones see: whom it calls
        # people are people in its own eyes only.
        self._people = tuple(p.people for p in enforced if p.people)
        self._more_people = tuple(p.people for p in self.policies if p.observe and p.people)
        # Likewise: whom it wants to see everything, sees nothing more by that.
        self.auditors = Auditors(
            tuple(dict.fromkeys(group for p in enforced for group in p.auditors.groups)),
            tuple(dict.fromkeys(user for p in enforced for user in p.auditors.users)),
        )
        # Keyed by id and kept with the object, since an Identity has no hash (its extra is a map).
        self._askers: dict[int, tuple[Identity, _Asker, _Asker]] = {}

    def __repr__(self) -> str:
        return f"PolicySet({[p.name for p in self.policies]!r}, {self.revision!r})"

    def digests(self) -> dict[str, str]:
        """Digest of each rule by full name, and of what else a policy says by its name."""
        found = {rule.full_name: rule.digest for policy in self.policies for rule in policy.rules}
        found |= {budget.full_name: budget.digest for budget in self.budgets}
        found |= {rule.full_name: rule.digest for rule in self._record_masks}
        return found | {
            p.name: f"{p.observe} {p.people.source if p.people else ''} {p.auditors}" for p in self.policies
        }

    def evaluate(self, identity: Identity, operation: Operation, objects: Objects | None = None) -> Verdict:
        """
        What to do with the operation of this identity.

        Raises NeedsObjects when that hangs on objects: ask again with them, or with what is known
        of why they cannot be had. With `objects` it always says what to do.
        """
        asker, observed_asker = self._asker(identity)
        if objects is not None:
            operation = admission.revealed(operation, objects)
        blind = self.sets_masked(identity, operation)
        if blind:
            operation = _revealing(operation)
        verdict = self._enforced.judge(asker, operation, objects)
        if blind and isinstance(verdict, Verdict):
            verdict = _held_for_masks(verdict, blind, self._approval, self.revision)
        if not self._observed:
            if isinstance(verdict, Verdict):
                return verdict
            raise NeedsObjects(verdict, binding=verdict)
        told = [index.judge(observed_asker, operation, objects) for index in self._observed]
        binding = admission.NONE if isinstance(verdict, Verdict) else verdict
        names = binding.union(*(needs for needs in told if not isinstance(needs, Verdict)))
        if names and not (isinstance(verdict, Verdict) and verdict.action is Action.DENY):
            raise NeedsObjects(names, binding)
        if names:
            # Denied whatever the objects are: nothing is fetched for a policy that only observes.
            told = [index.judge(observed_asker, operation, admission.NOT_FETCHED) for index in self._observed]
        observed = tuple(v for v in told if isinstance(v, Verdict) and v.rule)
        return replace(verdict, observed=observed) if isinstance(verdict, Verdict) else Verdict()

    def sets_masked(self, identity: Identity, operation: Operation) -> tuple[str, ...]:
        """
        The fields that the operation sets in an object that is there, and that this identity may not see:
        what comes of it tells whether a guess is right, so it is held whatever the rules allow.
        """
        if operation.body is None or operation.info.verb not in ("update", "patch"):
            return ()
        return maskwrites.sets_masked_field(operation, self.mask_level(identity, operation))

    def revealing(self, identity: Identity, operation: Operation) -> Operation:
        """The operation with the impact `reveal`, if it sets what this identity may not see."""
        return _revealing(operation) if self.sets_masked(identity, operation) else operation

    def charges(self, identity: Identity, operation: Operation) -> Charges:
        """What an operation that goes upstream takes from the budgets; false when that is nothing."""
        if not self.budgets or budgets.stores_nothing(operation):
            return budgets.NO_CHARGES
        asker, observed_asker = self._asker(identity)
        enforced = self._budgets.charges(asker, identity, operation)
        observed = self._observed_budgets.charges(observed_asker, identity, operation)
        return Charges(enforced, observed) if enforced or observed else budgets.NO_CHARGES

    def mask_level(self, identity: Identity, operation: Operation, *, approved: bool = False) -> MaskLevel:
        """
        What this identity must not see of the operation's answer and frames.

        approved: a person said yes to this very request.
        """
        asker = self._asker(identity)[0]
        if not self._masks:
            return maskpolicy.EVERYTHING if asker.agent else maskpolicy.NOTHING
        return maskpolicy.level(
            self._masks,
            operation,
            username=asker.username,
            groups=asker.groups,
            agent=asker.agent,
            values=asker.values,
            approved=approved,
        )

    def record_level(self, operation: Operation) -> MaskLevel:
        """What is masked of it in records, logs, approvals and notifications, whoever asked."""
        return maskpolicy.for_records(self._record_masks, operation) if self._record_masks else maskpolicy.EVERYTHING

    # For explanations: the same questions, one by one.

    def is_about(self, match: Match, identity: Identity) -> bool:
        asker = self._asker(identity)[0]
        return match.is_about(asker.username, asker.groups, asker.agent)

    def conditions(
        self, rule: Rule, identity: Identity, operation: Operation, objects: Objects | None = None
    ) -> tuple[bool, str]:
        """Whether `when` and `unless` let a rule apply, and why not, or what that hangs on."""
        if rule.when is None and rule.unless is None:
            return True, ""
        values = _Values(self._asker(identity)[0], operation, objects)
        applies, trouble, missing = _applies_to_objects(rule, values, objects)
        if missing:
            # direction: as if it could not be fetched.
            return rule.action is not Action.ALLOW, f"hangs on {' and '.join(sorted(missing))}"
        if trouble:
            return applies, f"its condition {trouble}"
        if applies:
            return True, ""
        if rule.when is None:
            return False, "unless: is true"
        return False, "when: is not true" if rule.unless is None else "when: is not true, or unless: is"

    def is_agent(self, identity: Identity) -> bool:
        """Everybody is an agent whom no `people` clause of an enforced policy matches."""
        return self._asker(identity)[0].agent

    def is_auditor(self, identity: Identity) -> bool:
        """Whether an enforced policy says that this identity sees all approvals."""
        return identity.username in self.auditors.users or not set(self.auditors.groups).isdisjoint(identity.groups)

    def _asker(self, identity: Identity) -> tuple["_Asker", "_Asker"]:
        known = self._askers.get(id(identity))
        if known is not None and known[0] is identity:
            return known[1], known[2]
        person = _is_person(identity, self._people)
        asker = _Asker(identity, agent=not person)
        observed = asker
        if not person and _is_person(identity, self._more_people):
            observed = _Asker(identity, agent=False)
        if len(self._askers) >= MAX_IDENTITIES:
            self._askers.clear()
        self._askers[id(identity)] = (identity, asker, observed)
        return asker, observed


class _Asker:
    """An identity as rules look at it."""

    __slots__ = ("agent", "groups", "username", "values")

    def __init__(self, identity: Identity, *, agent: bool) -> None:
        self.username = identity.username
        self.agent = agent
        groups = list(identity.groups)
        if identity.username != ANONYMOUS.username and "system:authenticated" not in groups:
            groups.append("system:authenticated")  # the API server adds it, so a rule may name it
        self.groups = frozenset(groups)
        self.values = {**_identity_values(identity, groups), "agent": agent}


def _identity_values(identity: Identity, groups: list[str]) -> dict[str, Any]:
    return {
        "username": identity.username,
        "uid": identity.uid,
        "groups": groups,
        "extra": {key: list(values) for key, values in identity.extra.items()},
        "issuer": identity.issuer,
    }


def _is_person(identity: Identity, clauses: Iterable[cel.Program]) -> bool:
    """Whether a clause says so. One that errs (a missing extra, say) says nothing: an agent, the stricter side."""
    values = {"identity": _identity_values(identity, list(identity.groups))}
    for clause in clauses:
        try:
            if clause.evaluate(values) is True:
                return True
        except cel.CelError:
            continue
    return False


class _Index:
    """Rules by the resource they name, and what was found for the kinds of request seen so far."""

    def __init__(self, rules: Iterable[Rule], revision: str, *, alone: bool = False) -> None:
        # One policy that observes: what it says counts even where it allows nothing, as a file of
        # denials does.
        self._alone = alone
        # Sorted, so that the rule that is named does not depend on the order of files either. What
        # wants more on record comes first: evaluation ends at the first that decides, and a rule
        # that says nothing of it must not hide one that does.
        ordered = sorted(rules, key=lambda r: (-r.action, -_rank(r.record), r.policy, r.name))
        self._rules = tuple(ordered)
        self._verdicts = {id(rule): _verdict(rule, revision) for rule in ordered}
        self._nothing = Verdict(revision=revision)
        self._anything: list[int] = []  # positions of rules that name no resource, or a pattern
        self._by_resource: dict[str, list[int]] = {}
        for position, rule in enumerate(ordered):
            names = {p.exact_resource for p in rule.match.resources or ()}
            if not names or "" in names:
                self._anything.append(position)
            else:
                for name in names:
                    self._by_resource.setdefault(name, []).append(position)
        self._kinds: dict[Any, tuple[Rule, ...]] = {}

    def judge(self, asker: _Asker, operation: Operation, objects: Objects | None) -> Verdict | frozenset[str]:
        """
        deny > hold > allow; nothing matched: deny. Every hold that matches is in the verdict.

        Without `objects`: the variables that the verdict hangs on, when it does. What no rule can
        change any more (a deny that matches, no allow that could) is said without them, so that
        nothing is previewed for a request that is refused anyway.
        """
        values: _Values | None = None
        holds: list[tuple[Rule, str]] = []
        problem = ""
        wanted = {Action.DENY: admission.NONE, Action.HOLD: admission.NONE, Action.ALLOW: admission.NONE}
        uses = operation.uses
        unknown = uses is not None and uses.unknown
        # What a patch hides, the result of its dry run shows.
        hidden = unknown and objects is None and not admission.no_preview(operation)
        for rule in self._candidates(operation):
            action = rule.action
            if action is Action.ALLOW and holds:
                break  # they are sorted: what is held stays held whatever allows it
            match = rule.match
            if not match.is_about(asker.username, asker.groups, asker.agent):
                continue
            asks = hidden and rule.asks_uses
            if not (match.covers(operation, asks) if action is Action.ALLOW else match.reaches(operation, asks)):
                continue
            needs = rule.needs if rule.when_needs or rule.unless_needs else admission.NONE
            if needs and not needs.isdisjoint(_ADMITTED) and not admission.has_object(operation):
                continue  # it is about objects, and here is none
            if asks:
                wanted[action] |= needs | admission.OBJECT
                continue
            trouble = ""
            if rule.when is not None or rule.unless is not None:
                if values is None:
                    values = _Values(asker, operation, objects)
                if needs:
                    applies, trouble, missing = _applies_to_objects(rule, values, objects)
                    if missing:
                        wanted[action] |= missing
                        continue
                else:
                    applies, trouble = _applies(rule, values)
                if not applies:
                    problem = problem or (trouble and f"rule {rule.full_name} {trouble}")
                    continue
            if unknown and rule.asks_uses and objects is not None and "object" in objects.troubles:
                trouble = trouble or f"could not be evaluated: {objects.trouble(admission.OBJECT)}"
            if action is Action.HOLD:
                holds.append((rule, trouble))
                continue
            if action is Action.ALLOW and (wanted[Action.DENY] or wanted[Action.HOLD]):
                return wanted[Action.DENY] | wanted[Action.HOLD]
            verdict = self._verdicts[id(rule)]
            return replace(verdict, message=_with(verdict.message, trouble)) if trouble else verdict
        if holds:
            if wanted[Action.DENY] or wanted[Action.HOLD]:
                return wanted[Action.DENY] | wanted[Action.HOLD]
            first, trouble = holds[0]
            verdict = self._verdicts[id(first)]
            return replace(
                verdict,
                message=_with(verdict.message, trouble),
                holds=tuple(Hold(r.policy, r.name, _with(r.message, t), r.approval, r.digest) for r, t in holds),
                record=max((rule.record for rule, _ in holds), key=_rank),
            )
        if wanted[Action.HOLD] or wanted[Action.ALLOW] or (self._alone and wanted[Action.DENY]):
            return wanted[Action.DENY] | wanted[Action.HOLD] | wanted[Action.ALLOW]
        return replace(self._nothing, message=problem) if problem else self._nothing

    def _candidates(self, operation: Operation) -> tuple[Rule, ...]:
        """The rules that match as far as verb, resource and impacts go, deny first."""
        key = _kind_key(operation)
        found = self._kinds.get(key)
        if found is None:
            found = self._find(Kind(operation))
            if len(self._kinds) >= MAX_KINDS:
                self._kinds.clear()
            self._kinds[key] = found
        return found

    def _find(self, kind: Kind) -> tuple[Rule, ...]:
        positions = set(self._anything)
        for _group, resource, _subresource in kind.aliases:
            positions.update(self._by_resource.get(resource, ()))
        rules = (self._rules[position] for position in sorted(positions))
        return tuple(
            rule
            for rule in rules
            if (rule.match.covers_kind(kind) if rule.action is Action.ALLOW else rule.match.reaches_kind(kind))
            and not never_holds(rule.action, kind)
        )


def never_holds(action: Action, kind: Kind) -> bool:
    """What the gateway serves itself is how people decide: to hold that would be to ask whether they may be asked."""
    return action is Action.HOLD and kind.subject[0] == resources.OWN_GROUP


def _kind_key(operation: Operation) -> tuple[Any, ...]:
    """All that a `Kind` is made of."""
    info = operation.info
    verb = info.verb
    return (
        verb,
        info.resource,
        info.subresource,
        info.api_group,
        info.is_resource_request,
        operation.impacts,
        operation.media_type if verb == "patch" else "",
    )


class _BudgetIndex:
    """Budgets, and which of them may match for the kinds of request seen so far."""

    def __init__(self, all_of_them: Iterable[Budget]) -> None:
        self._budgets = tuple(sorted(all_of_them, key=lambda budget: budget.full_name))
        self._kinds: dict[Any, tuple[Budget, ...]] = {}

    def charges(self, asker: _Asker, identity: Identity, operation: Operation) -> tuple[Charge, ...]:
        """Matched as a deny rule is: a budget restricts, so a doubt is the requester's."""
        if not self._budgets:
            return ()
        key = _kind_key(operation)
        candidates = self._kinds.get(key)
        if candidates is None:
            kind = Kind(operation)
            candidates = tuple(b for b in self._budgets if b.match.reaches_kind(kind) and budgets.counts(b, operation))
            if len(self._kinds) >= MAX_KINDS:
                self._kinds.clear()
            self._kinds[key] = candidates
        values: _Values | None = None
        found = []
        for budget in candidates:
            match = budget.match
            if not match.is_about(asker.username, asker.groups, asker.agent) or not match.reaches(operation):
                continue
            if budget.when is not None or budget.unless is not None:
                if values is None:
                    values = _Values(asker, operation)
                if not _applies(budget, values)[0]:
                    continue
            found.append(budgets.charge(budget, identity, asker.values, operation))
        return tuple(found)


def _verdict(rule: Rule, revision: str) -> Verdict:
    return Verdict(rule.action, rule.name, rule.policy, revision, rule.message, record=rule.record)


def _rank(level: str) -> int:
    return RECORD_LEVELS.index(level) if level else -1


def _with(message: str, trouble: str) -> str:
    return f"{message} (its condition {trouble})".lstrip() if trouble else message


def _applies(rule: Rule | Budget, values: "_Values") -> tuple[bool, str]:
    """
    (whether `when` and `unless` let the rule apply, why they could not be evaluated or "")

    A rule that cannot be evaluated applies if it denies or holds and does not if it
    allows: the doubt is the requester's.
    """
    try:
        if rule.when is not None and rule.when.evaluate(values.bound(claims=rule.claims)) is not True:
            return False, ""
        if rule.unless is not None and rule.unless.evaluate(values.bound(claims=False)) is not False:
            return False, ""
    except cel.CelError as e:
        first_line = str(e).split("\n", 1)[0]
        return rule.action is not Action.ALLOW, f"could not be evaluated: {first_line}"
    return True, ""


def _applies_to_objects(rule: Rule, values: "_Values", objects: Objects | None) -> tuple[bool, str, frozenset[str]]:
    """
    `_applies` for a rule that looks at objects, and which of them it still needs.

    The condition that can do without is asked first: nothing is fetched for a rule that does not
    apply anyway.
    """
    conditions = (
        (rule.when, rule.when_needs, rule.claims, True),
        (rule.unless, rule.unless_needs, False, False),
    )
    try:
        for program, needs, claims, wanted in sorted(conditions, key=lambda condition: bool(condition[1])):
            if program is None:
                continue
            if needs:
                if objects is None:
                    return False, "", rule.needs
                # direction: an object that is not there counts as every other doubt does, against the requester.
                if why := objects.trouble(needs):
                    raise cel.CelError(why)
            if program.evaluate(values.bound(claims=claims, objects=bool(needs))) is not wanted:
                return False, "", admission.NONE
    except cel.CelError as e:
        first_line = str(e).split("\n", 1)[0]
        return rule.action is not Action.ALLOW, f"could not be evaluated: {first_line}", admission.NONE
    return True, "", admission.NONE


class _Values:
    """What expressions see of one request: made when the first of them is reached, and once."""

    __slots__ = ("_asker", "_bound", "_objects", "_operation", "_values")

    def __init__(self, asker: _Asker, operation: Operation, objects: Objects | None = None) -> None:
        self._asker = asker
        self._operation = operation
        self._objects = objects or admission.NOT_FETCHED
        self._values: dict[str, Any] | None = None
        self._bound: dict[tuple[bool, bool], cel.Activation] = {}

    def bound(self, *, claims: bool, objects: bool = False) -> cel.Activation:
        bound = self._bound.get((claims, objects))
        if bound is None:
            if self._values is None:
                self._values = {
                    "identity": self._asker.values,
                    "operation": operation_values(self._operation),
                    "request": request_values(self._operation, self._asker.values),
                }
            values = self._values
            if claims:
                session = {"id": self._operation.claimed_session, "command": self._operation.claimed_command}
                values = {**values, "session": session}
            variables = CLAIM_VARIABLES if claims else VARIABLES
            if objects:
                variables = {**variables, **OBJECT_VARIABLES}
                # An expression that may be evaluated looks at none of those that are missing.
                values = {**values, **dict.fromkeys(OBJECT_VARIABLES), **self._objects.values}
                created = self._objects.created
                if created is not None and "operation" not in values["request"]:
                    values["request"] = {**values["request"], "operation": "CREATE" if created else "UPDATE"}
            bound = self._bound[claims, objects] = cel.activation(variables, values)
        return bound


def operation_values(operation: Operation) -> dict[str, Any]:
    """`operation` in an expression. Without the claimed command: that is in `session`, where it can do no harm."""
    info, uses = operation.info, operation.uses
    return {
        "verb": info.verb,
        "group": info.api_group,
        "version": info.api_version,
        "resource": info.resource,
        "subresource": info.subresource,
        "namespace": info.namespace,
        "name": matching.name_of(operation),
        "path": info.path,
        "method": operation.method,
        "kind": operation.kind,
        "labels": dict(operation.labels),
        "impacts": [impact.word for impact in sorted(operation.impacts)],
        "impact": operation.severity.word,
        "dryRun": operation.dry_run,
        "uses": {
            "workload": uses is not None,
            "serviceAccounts": sorted(uses.service_accounts) if uses else [],
            "secrets": sorted(uses.secrets) if uses else [],
            "configMaps": sorted(uses.config_maps) if uses else [],
            "host": sorted(uses.host) if uses else [],
            "token": uses.token if uses else False,
            "unknown": uses.unknown if uses else False,
        },
        "mediaType": operation.media_type,
        "upgrade": operation.upgrade,
    }


def request_values(operation: Operation, identity: Mapping[str, Any]) -> dict[str, Any]:
    """`request` as ValidatingAdmissionPolicy has it (admission.k8s.io/v1 AdmissionRequest), as far as it is known."""
    info = operation.info
    values = {
        "kind": {"group": info.api_group, "version": info.api_version, "kind": operation.kind},
        "resource": {"group": info.api_group, "version": info.api_version, "resource": info.resource},
        "subResource": info.subresource,
        "name": matching.name_of(operation),
        "namespace": info.namespace,
        "userInfo": {key: identity[key] for key in ("username", "uid", "groups", "extra")},
        "dryRun": operation.dry_run,
    }
    if not matching.creates(operation):
        # Whether these create or update, only the API server knows, and afterwards. Without the
        # key the expression errs, so a deny rule on either of them matches, an allow rule does not.
        values["operation"] = _admission_operation(operation)
    return values


def _admission_operation(operation: Operation) -> str:
    verb, subresource = operation.info.verb, operation.info.subresource
    if not operation.info.is_resource_request:
        return ""
    if subresource in ("exec", "attach", "portforward", "proxy"):
        return "CONNECT"
    return {"create": "CREATE", "update": "UPDATE", "patch": "UPDATE", "delete": "DELETE"}.get(
        verb, "DELETE" if verb == "deletecollection" else ""
    )


def _revealing(operation: Operation) -> Operation:
    return replace(operation, impacts=operation.impacts | {Impact.REVEAL})


def built_in_approval(rules: Iterable[Rule]) -> Approval:
    """
    Who is asked about a write to a masked field: all whom the policies' hold rules name, on the
    strictest terms of any of them.
    """
    named = [r.approval for r in rules if r.action is Action.HOLD and (r.approval.groups or r.approval.users)]
    if not named:
        return NO_APPROVAL
    claims = sorted({a.claims for a in named if a.claims})
    owners = sorted({a.owner for a in named if a.owner})
    return Approval(
        groups=tuple(sorted({group for a in named for group in a.groups})),
        users=tuple(sorted({user for a in named for user in a.users})),
        needed=max(a.needed for a in named),
        wait=min(a.wait for a in named),
        valid=min(a.valid for a in named),
        max_token_age=min(a.max_token_age for a in named),
        claims=claims[0] if len(claims) == 1 else " && ".join(f"({one})" for one in claims),
        owner=owners[0] if owners else "",
        require_reason=any(a.require_reason for a in named),
        max_pending=min(a.max_pending for a in named),
        cooldown=max(a.cooldown for a in named),
    )


def _held_for_masks(verdict: Verdict, fields: Sequence[str], approval: Approval, revision: str) -> Verdict:
    """The verdict with the gateway's own hold; one that denies stays."""
    if verdict.action is Action.DENY:
        return verdict
    shown = ", ".join(_clip(field, 60) for field in fields[:3])
    more = f" and {len(fields) - 3} more" if len(fields) > 3 else ""
    message = f"It sets {shown}{more} of an object that may exist, which you may not see."
    if approval is NO_APPROVAL:
        why = f"{message} No hold rule names anybody who could approve it; have the policy's owners add one."
        return Verdict(Action.DENY, MASKED_FIELD, BUILT_IN, revision, why, verdict.observed, record=verdict.record)
    hold = Hold(BUILT_IN, MASKED_FIELD, message, approval)
    if verdict.action is Action.HOLD:
        return replace(verdict, holds=(*verdict.holds, hold))
    return Verdict(Action.HOLD, MASKED_FIELD, BUILT_IN, revision, message, verdict.observed, (hold,), verdict.record)


DENY_ALL = PolicySet((), revision="none")


def let_pass(verdict: Verdict) -> Verdict:
    """The verdict while all policies only observe (`--observe`): allow, with the real one to be recorded."""
    real = replace(verdict, observed=())
    return Verdict(
        Action.ALLOW,
        revision=verdict.revision,
        message="observed only",
        observed=(real, *verdict.observed),
        record=verdict.record,
    )


def stays_open(was: Verdict, now: Verdict) -> bool:
    """
    Whether a stream that was let through by one verdict goes on under a later one.

    One that was held and let through has its approval, which counts for the same rules' hold and
    for no other's.
    """
    if now.action is Action.HOLD and was.action is Action.HOLD:
        approved = {(hold.policy, hold.rule) for hold in was.holds}
        return bool(now.holds) and all((hold.policy, hold.rule) in approved for hold in now.holds)
    return now.action is Action.ALLOW


def refusal(verdict: Verdict, identity: Identity, operation: Operation) -> status.Refusal:
    """The sentence for whoever was denied or held: rule first, next step last."""
    if verdict.action is Action.HOLD:
        return status.Refusal(403, "policy-hold", _held(verdict, operation))
    if verdict.rule:
        # The rule's own message has the next step, since only its author knows one.
        why = verdict.message or f"{describe(operation)}; ask the owners of policy {verdict.policy} to change it"
        return status.Refusal(
            403, "policy-deny", f"rule {verdict.policy}/{verdict.rule} denies this: {blast.sentence(operation)}{why}"
        )
    why = f" ({verdict.message})" if verdict.message != Verdict().message else ""
    return status.Refusal(
        403,
        "policy-no-match",
        f"no rule allows {describe(operation)} for {_clip(identity.username)}{why}; {blast.sentence(operation, '; ')}"
        "use what the policy allows, or ask the cluster's owners for a rule",
    )


def _held(verdict: Verdict, operation: Operation) -> str:
    holds = verdict.holds
    names = " and ".join(f"{h.policy}/{h.rule}" for h in holds) or f"{verdict.policy}/{verdict.rule}"
    rules, verb = ("rules", "hold") if len(holds) > 1 else ("rule", "holds")
    why = _sentence_end(verdict.message or describe(operation))
    who = ", ".join(dict.fromkeys(w for h in holds for w in (*h.approval.groups, *h.approval.users)))
    return (
        f"{rules} {names} {verb} this: {blast.sentence(operation)}{why};"
        " it needs a human approval, which this gateway cannot ask for yet;"
        f" ask {_clip(who) or 'the owners of the policy'} to run it or to change the rule"
    )


def line(verdict: Verdict, identity: Identity, operation: Operation) -> str:
    """For the log. What the client wrote is quoted as Python does, so that it cannot forge another line."""
    rule = f"{verdict.policy}/{verdict.rule}" if verdict.rule else "no rule"
    return (
        f"{verdict.action.name.lower()} {describe(operation)!r} for {identity.username!r}"
        f" by {rule} (revision {verdict.revision})"
    )


def changes(before: PolicySet, after: PolicySet) -> list[str]:
    """Which rules a reload added, took away or changed, for the log."""
    old, new = before.digests(), after.digests()
    return [
        f"{'+' if name not in old else '-' if name not in new else '~'} {name}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def describe(operation: Operation) -> str:
    """`delete pods web-1 in namespace shop`, `get /metrics`."""
    info = operation.info
    if not info.is_resource_request:
        return f"{info.verb} {_clip(info.path)}"
    name = f" {_clip(operation.name)}" if operation.name else ""
    namespace = f" in namespace {_clip(info.namespace)}" if info.namespace and info.resource != "namespaces" else ""
    return f"{info.verb} {_clip(info.full_resource)}{name}{namespace}"


def _sentence_end(text: str) -> str:
    return text.rstrip(".; ")


def _clip(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
