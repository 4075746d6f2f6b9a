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

from addons.core import cel, matching, status
from addons.core.matching import Kind, Match
from addons.core.model import ANONYMOUS, Action, Approval, Hold, Identity, Operation, Verdict

# Kinds of request (verb, resource, impacts) whose rules are remembered, per index. The client
# chooses resource and subresource, so it is bounded; a cluster with 200 CRDs has about 2000.
MAX_KINDS = 4096
MAX_IDENTITIES = 1024  # whose groups and people clauses are remembered; authenticate keeps as many

MAX_PROBLEMS = 20  # of a policy file are shown; the others mostly follow from the first

PEOPLE_VARIABLES = {"identity": "map(string,dyn)"}
VARIABLES = {"identity": "map(string,dyn)", "operation": "map(string,dyn)", "request": "map(string,dyn)"}
# What the client says of itself (Kubectl-* headers). Declared only where it can but raise a verdict.
CLAIM_VARIABLES = {**VARIABLES, "session": "map(string,dyn)"}

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

    @property
    def full_name(self) -> str:
        return f"{self.policy}/{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """One document: its rules, and who are people."""

    name: str
    rules: tuple[Rule, ...]
    observe: bool = False  # decides nothing, its verdict is recorded only
    people: cel.Program | None = None


class PolicySet:
    """All policies loaded together. Never changes, but for what it remembers of requests it has seen."""

    def __init__(self, policies: Sequence[Policy], revision: str) -> None:
        self.revision = revision
        self.policies = tuple(sorted(policies, key=lambda policy: policy.name))
        enforced = [p for p in self.policies if not p.observe]
        self._enforced = _Index([rule for p in enforced for rule in p.rules], revision)
        self._observed = tuple(_Index(p.rules, revision) for p in self.policies if p.observe)
        # A policy in observe mode must not change what the enforced ones see: whom it calls
        # people are people in its own eyes only.
        self._people = tuple(p.people for p in enforced if p.people)
        self._more_people = tuple(p.people for p in self.policies if p.observe and p.people)
        # Keyed by id and kept with the object, since an Identity has no hash (its extra is a map).
        self._askers: dict[int, tuple[Identity, _Asker, _Asker]] = {}

    def __repr__(self) -> str:
        return f"PolicySet({[p.name for p in self.policies]!r}, {self.revision!r})"

    def digests(self) -> dict[str, str]:
        """Digest of each rule by full name, and of what else a policy says by its name."""
        found = {rule.full_name: rule.digest for policy in self.policies for rule in policy.rules}
        return found | {p.name: f"{p.observe} {p.people.source if p.people else ''}" for p in self.policies}

    def evaluate(self, identity: Identity, operation: Operation) -> Verdict:
        """What to do with the operation of this identity."""
        asker, observed_asker = self._asker(identity)
        verdict = self._enforced.judge(asker, operation)
        if self._observed:
            told = (index.judge(observed_asker, operation) for index in self._observed)
            verdict = replace(verdict, observed=tuple(v for v in told if v.rule))
        return verdict

    def is_agent(self, identity: Identity) -> bool:
        """Everybody is an agent whom no `people` clause of an enforced policy matches."""
        return self._asker(identity)[0].agent

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

    def __init__(self, rules: Iterable[Rule], revision: str) -> None:
        # Sorted, so that the rule that is named does not depend on the order of files either.
        ordered = sorted(rules, key=lambda rule: (-rule.action, rule.policy, rule.name))
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

    def judge(self, asker: _Asker, operation: Operation) -> Verdict:
        """deny > hold > allow; nothing matched: deny. Every hold that matches is in the verdict."""
        values: _Values | None = None
        holds: list[tuple[Rule, str]] = []
        problem = ""
        for rule in self._candidates(operation):
            action = rule.action
            if action is Action.ALLOW and holds:
                break  # they are sorted: what is held stays held whatever allows it
            match = rule.match
            if not match.is_about(asker.username, asker.groups, asker.agent):
                continue
            if not (match.covers(operation) if action is Action.ALLOW else match.reaches(operation)):
                continue
            trouble = ""
            if rule.when is not None or rule.unless is not None:
                if values is None:
                    values = _Values(asker, operation)
                applies, trouble = _applies(rule, values)
                if not applies:
                    problem = problem or (trouble and f"rule {rule.full_name} {trouble}")
                    continue
            if action is Action.HOLD:
                holds.append((rule, trouble))
                continue
            verdict = self._verdicts[id(rule)]
            return replace(verdict, message=_with(verdict.message, trouble)) if trouble else verdict
        if holds:
            first, trouble = holds[0]
            verdict = self._verdicts[id(first)]
            return replace(
                verdict,
                message=_with(verdict.message, trouble),
                holds=tuple(Hold(r.policy, r.name, _with(r.message, t), r.approval) for r, t in holds),
            )
        return replace(self._nothing, message=problem) if problem else self._nothing

    def _candidates(self, operation: Operation) -> tuple[Rule, ...]:
        """The rules that match as far as verb, resource and impacts go, deny first."""
        info = operation.info
        verb = info.verb
        key = (
            verb,
            info.resource,
            info.subresource,
            info.api_group,
            info.is_resource_request,
            operation.impacts,
            operation.media_type if verb == "patch" else "",
        )
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
        )


def _verdict(rule: Rule, revision: str) -> Verdict:
    return Verdict(rule.action, rule.name, rule.policy, revision, rule.message)


def _with(message: str, trouble: str) -> str:
    return f"{message} (its condition {trouble})".lstrip() if trouble else message


def _applies(rule: Rule, values: "_Values") -> tuple[bool, str]:
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


class _Values:
    """What expressions see of one request: made when the first of them is reached, and once."""

    __slots__ = ("_asker", "_bound", "_operation", "_values")

    def __init__(self, asker: _Asker, operation: Operation) -> None:
        self._asker = asker
        self._operation = operation
        self._values: dict[str, Any] | None = None
        self._bound: dict[bool, cel.Activation] = {}

    def bound(self, *, claims: bool) -> cel.Activation:
        bound = self._bound.get(claims)
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
            bound = self._bound[claims] = cel.activation(CLAIM_VARIABLES if claims else VARIABLES, values)
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


DENY_ALL = PolicySet((), revision="none")


def let_pass(verdict: Verdict) -> Verdict:
    """The verdict while all policies only observe (`--observe`): allow, with the real one to be recorded."""
    real = replace(verdict, observed=())
    return Verdict(Action.ALLOW, revision=verdict.revision, message="observed only", observed=(real, *verdict.observed))


def refusal(verdict: Verdict, identity: Identity, operation: Operation) -> status.Refusal:
    """The sentence for whoever was denied or held: rule first, next step last."""
    if verdict.action is Action.HOLD:
        return status.Refusal(403, "policy-hold", _held(verdict, operation))
    if verdict.rule:
        # The rule's own message has the next step, since only its author knows one.
        why = verdict.message or f"{describe(operation)}; ask the owners of policy {verdict.policy} to change it"
        return status.Refusal(403, "policy-deny", f"rule {verdict.policy}/{verdict.rule} denies this: {why}")
    why = f" ({verdict.message})" if verdict.message != Verdict().message else ""
    return status.Refusal(
        403,
        "policy-no-match",
        f"no rule allows {describe(operation)} for {_clip(identity.username)}{why};"
        " use what the policy allows, or ask the cluster's owners for a rule",
    )


def _held(verdict: Verdict, operation: Operation) -> str:
    holds = verdict.holds
    names = " and ".join(f"{h.policy}/{h.rule}" for h in holds) or f"{verdict.policy}/{verdict.rule}"
    rules, verb = ("rules", "hold") if len(holds) > 1 else ("rule", "holds")
    why = _sentence_end(verdict.message or describe(operation))
    who = ", ".join(dict.fromkeys(w for h in holds for w in (*h.approval.groups, *h.approval.users)))
    return (
        f"{rules} {names} {verb} this: {why}; it needs a human approval, which this gateway cannot ask for yet;"
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
