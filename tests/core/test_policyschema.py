import json
from pathlib import Path

import pytest

from addons.cli import policy as cli
from addons.core import policyfields, policyfile, policyschema

POLICIES = Path(__file__).parents[2] / "policies"


def test_the_committed_schema_is_current():
    # ./run.sh policy schema > policies/schema.json
    assert (POLICIES / "schema.json").read_text() == cli.schema_text()


@pytest.mark.parametrize("file", policyfile.find([POLICIES, POLICIES / "packs"]), ids=lambda p: p.name)
def test_shipped_policies_name_it(file):
    first = file.read_text().splitlines()[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (file.parent / named).resolve() == POLICIES / "schema.json"


def test_every_field_of_the_loader_is_there():
    document = policyschema.schema()
    rule = document["properties"]["rules"]["items"]
    assert tuple(document["properties"]) == policyfile.DOCUMENT_FIELDS
    assert tuple(rule["properties"]) == policyfile.RULE_FIELDS
    assert tuple(rule["properties"]["match"]["properties"]) == policyfields.MATCH_FIELDS
    assert tuple(rule["properties"]["approval"]["properties"]) == policyfields.APPROVAL_FIELDS
    assert set(rule["properties"]["match"]["properties"]["uses"]["properties"]) == set(policyfields.USES_FIELDS)
    assert tuple(document["properties"]["budgets"]["items"]["properties"]) == policyfile.BUDGET_FIELDS


def test_a_field_that_only_one_side_knows_is_an_error():
    with pytest.raises(KeyError, match="'b'"):
        policyschema._only({"a": {}}, ("a", "b"))


def test_nothing_unknown_is_allowed_anywhere():
    def objects(node):
        if isinstance(node, dict):
            if node.get("type") == "object":
                yield node
            for value in node.values():
                yield from objects(value)
        elif isinstance(node, list):
            for value in node:
                yield from objects(value)

    found = list(objects(json.loads(cli.schema_text())))
    assert len(found) > 5
    assert all(node["additionalProperties"] is False for node in found)
