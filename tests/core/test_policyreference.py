"""The policy reference: current, and complete."""

import re
from pathlib import Path

import pytest

from addons.core import policyreference, policyschema

ROOT = Path(__file__).resolve().parents[2]
PAGE = policyreference.page(policyschema.schema())


def fields(schema):
    """Every field's name, at any depth."""
    for key in ("properties", "items"):
        inner = schema.get(key)
        if key == "properties" and inner:
            yield from inner
            for one in inner.values():
                yield from fields(one)
        elif inner:
            yield from fields(inner)


def test_the_committed_page_is_current():
    # ./run.sh policy reference > docs/policy-reference.md
    assert (ROOT / "docs" / "policy-reference.md").read_text() == PAGE


@pytest.mark.parametrize("field", sorted(set(fields(policyschema.schema()))))
def test_every_field_is_in_it(field):
    assert re.search(rf"^\| `{re.escape(field)}` \|", PAGE, re.MULTILINE)


def test_what_stands_in_several_places_is_described_once():
    assert PAGE.count("| `userGroups` |") == 1
    assert "## `rules[].match` and `budgets[].match` and `mask[].match`" in PAGE


@pytest.mark.parametrize(
    ("schema", "row"),
    [
        pytest.param({"type": "string", "description": "a | b"}, r"| `f` | text | a \| b |", id="a bar in a text"),
        pytest.param({"type": "string", "description": "*.apps"}, r"| `f` | text | \*.apps |", id="a star in a text"),
        pytest.param({"type": "boolean"}, "| `f` | `true`, `false` |  |", id="yes or no"),
        pytest.param({"type": "integer", "minimum": 1, "maximum": 3}, "| `f` | 1 to 3 |  |", id="a number"),
        pytest.param({"const": "x"}, "| `f` | `x` |  |", id="one value"),
        pytest.param(
            {"type": "array", "items": {"enum": ["a", "b"]}}, "| `f` | list: `a`, `b` |  |", id="a list of words"
        ),
        pytest.param(
            {"anyOf": [{"enum": ["a"]}, {"type": "array", "items": {"type": "string"}}]},
            "| `f` | `a`, or list: text |  |",
            id="alternatives",
        ),
    ],
)
def test_a_row(schema, row):
    assert row in policyreference.page({"type": "object", "properties": {"f": schema}})


def test_what_holds_of_several_fields_is_said():
    assert "Exactly one of these is needed: `limit`, `objects`." in PAGE
    assert "Not together: `mask`, `except`." in PAGE
    assert "With `action: hold`: `approval` is needed. Without it, none of `approval`, `grant`." in PAGE
