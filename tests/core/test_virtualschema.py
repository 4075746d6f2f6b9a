"""The OpenAPI document: whole, and true to the objects."""

from dataclasses import replace
from typing import Any

import pytest

from addons.core import virtualschema
from addons.core.virtualobjects import APPROVALS, GRANTS, REQUESTS, RESOURCES, of_entry
from tests import records
from tests.records import NOW, approved, hold, record

DOCUMENT = virtualschema.document()
SCHEMAS = DOCUMENT["components"]["schemas"]


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref") or schema.get("allOf", [{}])[0].get("$ref")
    return SCHEMAS[reference.removeprefix("#/components/schemas/")] if reference else schema


def check(value: Any, schema: dict[str, Any], path: str = "") -> None:
    """Every field of the object is in the schema, with its type."""
    schema = resolved(schema)
    kinds = {str: "string", bool: "boolean", int: "integer", dict: "object", list: "array"}
    assert schema["type"] == kinds[type(value)], path
    if "enum" in schema:
        assert value in schema["enum"], path
    if isinstance(value, list):
        for inner in value:
            check(inner, schema["items"], f"{path}[]")
    elif isinstance(value, dict):
        assert set(schema.get("required", ())) <= value.keys(), path
        for key, inner in value.items():
            of_key = schema.get("additionalProperties") or schema["properties"].get(key)
            assert of_key, f"{path}.{key} is not in the schema"
            check(inner, of_key, f"{path}.{key}")


USED = record("a", hold(users=("bob",), require_reason=True, grant_for=60), repeatable="a Helm release")
USED = replace(USED, asked=(replace(USED.asked[0], owner="team-a"),))


@pytest.mark.parametrize(
    ("resource", "entry"),
    [
        pytest.param(APPROVALS, record(content={"pods": 1}), id="an approval"),
        pytest.param(APPROVALS, approved(USED), id="a decided one"),
        pytest.param(REQUESTS, records.access_request(), id="an access request"),
        pytest.param(REQUESTS, approved(records.access_request()), id="a decided one of these"),
        pytest.param(GRANTS, records.grant(), id="a grant"),
        pytest.param(GRANTS, records.grant(revoked=NOW, revoked_by="x"), id="a revoked one"),
    ],
)
def test_objects_fit(resource, entry):
    check(of_entry(resource, entry, 1, NOW + 6), SCHEMAS[f"dev.tollgate.v1alpha1.{resource.kind}"])


def test_every_reference_is_there():
    def references(value):
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"].removeprefix("#/components/schemas/")
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    assert set(references(DOCUMENT)) <= SCHEMAS.keys()


@pytest.mark.parametrize("resource", RESOURCES.values(), ids=lambda r: r.plural)
def test_paths_name_kinds_and_parameters(resource):
    # kubectl asks the PATCH of a kind what the server knows, and explain takes the kind from here.
    paths = DOCUMENT["paths"]
    patch = paths[f"/apis/tollgate.dev/v1alpha1/{resource.plural}/{{name}}"]["patch"]
    assert patch["x-kubernetes-group-version-kind"]["kind"] == resource.kind
    assert {"dryRun", "fieldValidation"} <= {p["name"] for p in patch["parameters"]}
    assert ("post" in paths[f"/apis/tollgate.dev/v1alpha1/{resource.plural}"]) is ("create" in resource.verbs)
