"""Every `policies/*.cases.yaml`: requests as they are on the wire, classified, against the policy beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from addons.core import policyfile
from addons.core.classify import classify
from addons.core.model import Identity

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
