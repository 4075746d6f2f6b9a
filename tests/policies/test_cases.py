"""Every `policies/*.cases.yaml`: requests as they are on the wire, classified, against the policy beside it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from addons.core import policy, policyfile
from addons.core.classify import classify
from addons.core.model import Identity, Impact

POLICIES = Path(__file__).parents[2] / "policies"
CASE_FIELDS = {"name", "as", "request", "headers", "contentType", "body", "protobuf", "verdict", "rule"}


def tables() -> list[Path]:
    return sorted(POLICIES.glob("*.cases.yaml"))


def policy_of(table: Path) -> Path:
    return table.with_name(table.name.removesuffix(".cases.yaml") + ".yaml")


def rows() -> list[Any]:
    return [
        pytest.param(table, case, id=f"{table.name.removesuffix('.cases.yaml')}: {case['name']}")
        for table in tables()
        for case in yaml.safe_load(table.read_text())["cases"]
    ]


@pytest.fixture(scope="module")
def loaded() -> dict[Path, Any]:
    return {
        table: (policyfile.load([policy_of(table)]), yaml.safe_load(table.read_text())["identities"])
        for table in tables()
    }


def protobuf(about: dict[str, str]) -> bytes:
    """The envelope that kubectl sends: runtime.Unknown with a type and an object that has only a name."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    type_meta = field(1, about["apiVersion"].encode()) + field(2, about["kind"].encode())
    return b"k8s\0" + field(1, type_meta) + field(2, field(1, field(1, about["name"].encode())))


@pytest.mark.parametrize(("table", "case"), rows())
def test_case(loaded, table, case):
    policies, identities = loaded[table]
    assert case.keys() <= CASE_FIELDS
    method, target = case["request"].split(" ")
    headers, body = dict(case.get("headers", {})), b""
    if "protobuf" in case:
        body = protobuf(case["protobuf"])
    elif "body" in case:
        body = case["body"].encode() if isinstance(case["body"], str) else json.dumps(case["body"]).encode()
    if body:
        headers["content-type"] = case.get("contentType", "application/json")
    who = identities[case.get("as", "agent")]
    identity = Identity(who["username"], groups=tuple(who.get("groups", ())))
    verdict = policies.evaluate(identity, classify(method, target, headers, body))
    assert (verdict.action.name.lower(), verdict.rule) == (case["verdict"], case.get("rule", ""))
    assert "could not be evaluated" not in verdict.message


@pytest.mark.parametrize("table", [pytest.param(t, id=t.name) for t in tables()])
def test_every_rule_has_a_case(loaded, table):
    named = {case.get("rule") for case in yaml.safe_load(table.read_text())["cases"]}
    policies, _ = loaded[table]
    missing = {rule.name for policy in policies.policies for rule in policy.rules} - named
    # Both are what remains when somebody edits the lists above them; test_readme_example needs them.
    assert missing <= {"own-namespace", "own-objects"}


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
