"""Every table of cases in `policies/`: requests as they are on the wire, against the policy beside it."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from addons.core import policy, policycases, policyfields, policyfile
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
    # Two are what remains when somebody edits the lists above them (test_readme_examples), three are for
    # people, whom the default does not know (test_people_and_approvals).
    assert missing - named <= {"own-namespace", "own-objects", "see-approvals", "decide", "revoke"}


GROUP = "/apis/tollgate.dev/v1alpha1"
PEOPLE = (
    "apiVersion: tollgate.dev/v1alpha1\nkind: Policy\nmetadata: {name: people}\n"
    "people: '\"people\" in identity.groups'\n"
)
# What others may write beside it, meaning objects of the cluster.
BROAD = """\
rules:
- {name: not-there, action: deny, match: {namespaces: ["prod-*"], verbs: [create, update, patch, delete]}, message: m}
- {name: all-writes, action: hold, match: {impacts: [write, delete]}, approval: {groups: [g]}}
"""


@pytest.mark.parametrize("more", [pytest.param("", id="alone"), pytest.param(BROAD, id="beside broad rules")])
@pytest.mark.parametrize(
    ("groups", "method", "target", "action", "rule"),
    [
        pytest.param("people", "GET", "approvals?watch=1", Action.ALLOW, "see-approvals", id="look"),
        pytest.param("people", "PATCH", "approvals/apr-x", Action.ALLOW, "decide", id="approve"),
        pytest.param("people", "PUT", "accessrequests/tollgate-x", Action.ALLOW, "decide", id="grant, by a PUT"),
        pytest.param("people", "PATCH", "grants/grt-x", Action.ALLOW, "decide", id="revoke"),
        pytest.param("people", "DELETE", "grants/grt-x", Action.ALLOW, "take-back", id="end a grant"),
        pytest.param("people", "POST", "accessrequests", Action.ALLOW, "ask-ahead", id="ask"),
        pytest.param("people", "POST", "approvals", Action.DENY, "", id="make one up"),
        pytest.param("people", "DELETE", "approvals", Action.DENY, "", id="all at once"),
        pytest.param("people", "PATCH", "approvals/apr-x/approve", Action.DENY, "", id="an unknown subresource"),
        pytest.param("bots", "PATCH", "approvals/apr-x", Action.DENY, "agents-decide-nothing", id="an agent approves"),
        pytest.param("people", "POST", "revocations", Action.ALLOW, "revoke", id="throw the switch"),
        pytest.param("people", "DELETE", "revocations/rev-x", Action.ALLOW, "revoke", id="lift a revocation"),
        pytest.param(
            "bots", "POST", "revocations", Action.DENY, "agents-revoke-nothing", id="an agent throws the switch"
        ),
        pytest.param(
            "bots",
            "DELETE",
            "revocations/rev-x",
            Action.DENY,
            "agents-revoke-nothing",
            id="an agent lifts a revocation",
        ),
        pytest.param("bots", "POST", "accessrequests", Action.ALLOW, "ask-ahead", id="an agent asks"),
    ],
)
def test_people_and_approvals(more, groups, method, target, action, rule):
    sources = {"people.yaml": (PEOPLE + more).encode(), "default.yaml": (POLICIES / "default.yaml").read_bytes()}
    headers, body = {}, b""
    if method in ("PATCH", "PUT"):
        headers = {"content-type": "application/merge-patch+json" if method == "PATCH" else "application/json"}
        body = b'{"spec": {"decision": "Approved"}}'
    operation = classify(method, f"{GROUP}/{target}", headers, body)
    verdict = policyfile.parse(sources).evaluate(Identity("ann", groups=(groups,)), operation)
    assert (verdict.action, verdict.rule) == (action, rule)


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
    fields = (policyfields.MATCH_FIELDS, policyfields.USES_FIELDS, policyfields.APPROVAL_FIELDS, policyfile.RULE_FIELDS)
    for word in (*(f for names in fields for f in names), "auditors", *(impact.word for impact in Impact)):
        assert word in README
