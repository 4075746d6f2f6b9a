"""
Tables of cases: requests as they are on the wire, and what a policy decides of each.

Read and run by `./run.sh policy test` and by our own tests, through the real classifier. A
policy that only denies or holds is run beside a rule that allows everything, so that a case can
say `verdict: none`: this file leaves the decision to others.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from addons.core import admission, classify, policyfile, status
from addons.core.matching import Match
from addons.core.model import Action, Identity
from addons.core.policy import Policy, PolicySet, Rule

SUFFIX = ".cases.yaml"
NOBODY_ELSE = "everybody-else"  # the policy that allows what a file of denials leaves to others
VERDICTS = ("allow", "hold", "deny", "none")
_FIELDS = frozenset(
    {"name", "as", "request", "headers", "contentType", "body", "protobuf", "verdict", "rule", *admission.VARIABLES}
)
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "as": str,
    "request": str,
    "headers": dict,
    "contentType": str,
    "body": (str, dict, list),
    "protobuf": dict,
    "verdict": str,
    "rule": str,
}


class CaseError(Exception):
    """What is wrong with a table, one line: `file.cases.yaml:12: sentence`."""


@dataclass(frozen=True, slots=True)
class Case:
    """One request by one identity, what it meets, and what should come of it."""

    name: str
    place: str  # `file.cases.yaml:12`
    identity: Identity
    method: str
    target: str
    verdict: str  # one of VERDICTS
    rule: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    objects: Mapping[str, Any] = field(default_factory=dict)  # by variable: what the API server would show


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case."""

    case: Case
    verdict: str
    rule: str
    message: str

    @property
    def good(self) -> bool:
        # A rule that could not look at what it wants to look at proves nothing.
        doubtful = "could not be evaluated" in self.message
        return (self.verdict, self.rule) == (self.case.verdict, self.case.rule) and not doubtful


def tables(paths: Sequence[Path]) -> list[Path]:
    """The tables that these files and folders have: of a policy the one beside it."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(path.glob(f"*{SUFFIX}"))
        elif path.name.endswith(SUFFIX):
            found.append(path)
        else:
            beside = path.with_name(path.stem + SUFFIX)
            if not beside.is_file():
                raise CaseError(f"{path}: has no table of cases beside it ({beside.name})")
            found.append(beside)
    return list(dict.fromkeys(found))


def policy_of(table: Path) -> Path:
    return table.with_name(table.name.removesuffix(SUFFIX) + ".yaml")


def load_policies(file: Path) -> PolicySet:
    """The policies that the cases of a file are for. Raises PolicyError."""
    loaded = policyfile.load([file])
    if any(rule.action is Action.ALLOW for policy in loaded.policies for rule in policy.rules):
        return loaded
    everything = Rule(NOBODY_ELSE, NOBODY_ELSE, Action.ALLOW, Match())
    return PolicySet([*loaded.policies, Policy(NOBODY_ELSE, (everything,))], loaded.revision)


def load(table: Path) -> list[Case]:
    """The cases of a table. Raises CaseError."""
    try:
        text = table.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        lines = _lines(text)
    except (OSError, UnicodeDecodeError) as e:
        raise CaseError(f"{table}: cannot be read: {e}") from e
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise CaseError(f"{table}:{line}: is not YAML: {e.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise CaseError(f"{table}: is not YAML") from None
    if not isinstance(content, dict) or content.keys() - {"identities", "cases"}:
        raise CaseError(f"{table}:1: is not a map of identities and cases")
    cases = content.get("cases")
    if not isinstance(cases, list) or not cases:
        raise CaseError(f"{table}:1: cases: is no list, or empty")
    identities = _identities(table, content.get("identities"))
    found = [_case(f"{table}:{line}", item, identities) for item, line in zip(cases, lines, strict=False)]
    names: set[str] = set()
    for case in found:
        if case.name in names:
            raise CaseError(f"{case.place}: name: another case is called {case.name!r}")
        names.add(case.name)
    return found


def run(case: Case, policies: PolicySet) -> Outcome:
    """What the policies decide of it."""
    try:
        operation = classify.classify(case.method, case.target, case.headers, case.body)
    except status.Refused as refused:
        return Outcome(case, "refused", "", refused.refusal.message)
    try:
        verdict = policies.evaluate(case.identity, operation)
    except admission.NeedsObjects as needs:
        plan = admission.plan(operation, needs.names)
        given = {name: case.objects[name] for name in needs.names if name in case.objects}
        missing = dict.fromkeys(needs.names - given.keys(), "the case does not give it")
        # What the gateway could not fetch either is no case's to give.
        values = {**given, **plan.values}
        troubles = {**missing, **plan.troubles}
        objects = admission.Objects(
            {name: value for name, value in values.items() if name not in plan.troubles},
            {name: why for name, why in troubles.items() if name not in plan.values},
            created=given["oldObject"] is None if "oldObject" in given else None,
        )
        verdict = policies.evaluate(case.identity, operation, objects)
    if verdict.policy == NOBODY_ELSE:
        return Outcome(case, "none", "", verdict.message)
    return Outcome(case, verdict.action.name.lower(), verdict.rule, verdict.message)


def _lines(text: str) -> list[int]:
    """The line of each case."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value == "cases" and isinstance(value, yaml.SequenceNode):
            return [item.start_mark.line + 1 for item in value.value]
    return []


def _identities(table: Path, given: Any) -> dict[str, Identity]:
    if not isinstance(given, dict) or not given:
        raise CaseError(f"{table}:1: identities: is no map, or empty; say who asks")
    found = {}
    for name, who in given.items():
        known = {"username", "groups", "uid", "issuer", "extra"}
        if not isinstance(who, dict) or who.keys() - known or not isinstance(who.get("username"), str):
            raise CaseError(f"{table}:1: identities.{name}: needs a username; may have groups, uid, issuer, extra")
        extra = {str(key): tuple(map(str, values)) for key, values in dict(who.get("extra", {})).items()}
        found[str(name)] = Identity(
            who["username"],
            uid=str(who.get("uid", "")),
            groups=tuple(map(str, who.get("groups", ()))),
            extra=extra,
            issuer=str(who.get("issuer", "")),
        )
    return found


def _case(place: str, item: Any, identities: Mapping[str, Identity]) -> Case:
    if not isinstance(item, dict):
        raise CaseError(f"{place}: is no map")
    for key in item:
        if key not in _FIELDS:
            raise CaseError(f"{place}: {key}: unknown field; one of {', '.join(sorted(_FIELDS))}")
        if key in _TYPES and not isinstance(item[key], _TYPES[key]):
            raise CaseError(f"{place}: {key}: has the wrong type")
    for key in ("name", "request", "verdict"):
        if key not in item:
            raise CaseError(f"{place}: {key}: is missing")
    who = item.get("as", next(iter(identities)))
    if who not in identities:
        raise CaseError(f"{place}: as: nobody of identities is called {who!r}")
    if item["verdict"] not in VERDICTS:
        raise CaseError(f"{place}: verdict: {item['verdict']!r} is none of {', '.join(VERDICTS)}")
    method, blank, target = item["request"].partition(" ")
    if not blank or not target.startswith("/"):
        raise CaseError(f"{place}: request: is not METHOD /PATH")
    headers = {str(key): str(value) for key, value in item.get("headers", {}).items()}
    body = _body(place, item)
    if body:
        headers["content-type"] = item.get("contentType", "application/json")
    return Case(
        name=item["name"],
        place=place,
        identity=identities[who],
        method=method,
        target=target,
        verdict=item["verdict"],
        rule=item.get("rule", ""),
        headers=headers,
        body=body,
        objects={name: item[name] for name in admission.VARIABLES if name in item},
    )


def _body(place: str, item: Mapping[str, Any]) -> bytes:
    if "protobuf" in item:
        return _protobuf(item["protobuf"])
    if "body" not in item:
        return b""
    body = item["body"]
    try:
        return body.encode() if isinstance(body, str) else json.dumps(body).encode()
    except TypeError:
        raise CaseError(f"{place}: body: has a value that JSON has not, such as a date; put it in quotes") from None


def _protobuf(about: Mapping[str, Any]) -> bytes:
    """The envelope that kubectl sends: runtime.Unknown with a type and an object that has only a name."""

    def part(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def text(key: str) -> bytes:
        return str(about.get(key, "")).encode()

    type_meta = part(1, text("apiVersion")) + part(2, text("kind"))
    return b"k8s\0" + part(1, type_meta) + part(2, part(1, part(1, text("name"))))
