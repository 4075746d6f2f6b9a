"""Every table of cases in `policies/`: requests as they are on the wire, against the policy beside it."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from addons.core import policy, policycases, policyfile
from addons.core.classify import classify
from addons.core.model import Action, Identity, Impact

POLICIES = Path(__file__).parents[2] / "policies"
TABLES = policycases.tables([POLICIES, POLICIES / "packs"])
policies_of = cache(policycases.load_policies)


def rows() -> list[Any]:
    return [
        pytest.param(table, case, id=f"{table.name.removesuffix('.cases.yaml')}: {case.name}")
        for table in TABLES
        for case in policycases.load(table)
    ]


@pytest.mark.parametrize(("table", "case"), rows())
def test_case(table, case):
    outcome = policycases.run(case, policies_of(policycases.policy_of(table)))
    assert (outcome.verdict, outcome.rule) == (case.verdict, case.rule), outcome.message
    assert outcome.good, outcome.message


@pytest.mark.parametrize("table", [pytest.param(t, id=t.name) for t in TABLES])
def test_every_rule_has_a_case(table):
    named = {case.rule for case in policycases.load(table)} | {policycases.NOBODY_ELSE}
    missing = {rule.name for policy in policies_of(policycases.policy_of(table)).policies for rule in policy.rules}
    # Both are what remains when somebody edits the lists above them; test_readme_example needs them.
    assert missing - named <= {"own-namespace", "own-objects"}


def test_every_policy_has_a_table():
    files = {file for folder in (POLICIES, POLICIES / "packs") for file in policyfile.find([folder])}
    assert files == {policycases.policy_of(table) for table in TABLES}


def test_packs_load_with_the_default_and_allow_nothing():
    loaded = policyfile.load([POLICIES, POLICIES / "packs"])
    allowing = {p.name for p in loaded.policies for rule in p.rules if rule.action is Action.ALLOW}
    assert allowing == {"agents"}


def test_packs_are_not_part_of_the_default():
    assert [p.name for p in policyfile.load([POLICIES]).policies] == ["agents"]


# The examples of README.md: what it says is what the code does.

README = (POLICIES / "README.md").read_text()
EXAMPLES = [block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "kind: Policy" in block]


@pytest.fixture(scope="module")
def documented():
    contents = {f"README.md {number}": text.encode() for number, text in enumerate(EXAMPLES)}
    return policyfile.parse({**contents, "default.yaml": (POLICIES / "default.yaml").read_bytes()})


@pytest.mark.parametrize(
    ("user", "groups", "method", "target", "verdict"),
    [
        pytest.param("ann", ["oidc:platform-team"], "DELETE", "/api/v1/nodes/n1", "allow", id="people do everything"),
        pytest.param(
            "ann", ["oidc:platform-team"], "GET", "/api/v1/namespaces/shop/secrets/s", "allow", id="secrets too"
        ),
        pytest.param(
            "ann", ["oidc:platform-team"], "GET", "/api/v1/namespaces/prod-1/secrets/s", "deny", id="not these"
        ),
        pytest.param("ann", ["oidc:platform-team"], "GET", "/api/v1/secrets", "deny", id="nor all, with these"),
        pytest.param("ann", ["oidc:platform-team"], "GET", "/metrics", "allow", id="pages"),
        pytest.param(
            "ann", ["oidc:platform-team"], "DELETE", "/api/v1/namespaces/tollgate", "deny", id="not the gateway"
        ),
        pytest.param(
            "ann", ["oidc:platform-team"], "DELETE", "/api/v1/namespaces/tollgate/pods/gw", "deny", id="nor its pods"
        ),
        pytest.param(
            "ann",
            ["oidc:platform-team"],
            "DELETE",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/tollgate",
            "deny",
            id="nor its roles",
        ),
        pytest.param(
            "ann",
            ["oidc:platform-team"],
            "DELETE",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/other",
            "allow",
            id="but other roles",
        ),
        pytest.param("bot", ["bots"], "DELETE", "/api/v1/nodes/n1", "deny", id="agents do not"),
        pytest.param("bot", ["bots"], "DELETE", "/api/v1/namespaces/agent-a/pods/p", "allow", id="agents as before"),
        pytest.param("robot-1", [], "DELETE", "/api/v1/namespaces/agent-a/pods/p", "deny", id="robots do not delete"),
    ],
)
def test_readme_examples(documented, user, groups, method, target, verdict):
    identity = Identity(user, groups=tuple(groups))
    assert documented.evaluate(identity, classify(method, target, {}, b"")).action.name.lower() == verdict


def test_readme_names_every_field():
    for fields in policy.FIELDS.values():
        for field in fields:
            assert re.search(rf"\b{field}\b", README)
    for word in (*policyfile.MATCH_FIELDS, *policyfile.USES_FIELDS, *(impact.word for impact in Impact)):
        assert word in README
