"""
The policy language as a page for people (docs/policy-reference.md), made of its JSON Schema:
one table for each kind of object, so that no field can be missing or left over.
"""

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

INTRODUCTION = """\
# Policy reference

Every field of a policy file. What the fields mean together, with examples, is in
[policies/README.md](../policies/README.md). `./run.sh policy reference` prints this page;
editors read the same from `policies/schema.json`. Durations are written as `25s`, `15m` or `1h30m`;
what holds when a field is left out stands in brackets.
"""


def page(schema: Schema) -> str:
    """The page, as Markdown. schema: what policyschema.schema() makes."""
    seen: list[tuple[str, Schema]] = []
    parts = [INTRODUCTION]
    for path, one in _objects("", schema):
        # The same object at several places, such as `match`, is described once.
        if not any(one["properties"] == other["properties"] for _, other in seen):
            seen.append((path, one))
            parts.append(_section(path, one, [p for p, o in _objects("", schema) if _same(o, one)]))
    return "\n".join(parts)


def _same(one: Schema, other: Schema) -> bool:
    return bool(one["properties"] == other["properties"])


def _objects(path: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Every object in it with its path, itself first: ("rules[].match", …)."""
    if schema.get("type") == "array":
        yield from _objects(f"{path}[]", schema["items"])
    elif schema.get("type") == "object":
        yield path, schema
        for name, field in schema["properties"].items():
            yield from _objects(f"{path}.{name}" if path else name, field)


def _section(path: str, schema: Schema, places: list[str]) -> str:
    title = " and ".join(f"`{place}`" for place in places) if path else "A document"
    lines = [f"## {title}", ""]
    if path and schema.get("description"):
        lines += [_sentence(schema["description"]), ""]
    lines += ["| field | value | |", "| --- | --- | --- |"]
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        needed = "needed" if name in required else ""
        meaning = field.get("description", "") if field.get("type") != "object" or not path else ""
        text = "; ".join(filter(None, (needed, meaning)))
        lines.append(f"| `{name}` | {_cell(_value(field))} | {_cell(text)} |")
    lines += ["", *_rules(schema)]
    return "\n".join(lines)


def _rules(schema: Schema) -> Iterator[str]:
    """What holds of several fields together."""
    for words, key in (("At least one of these is needed", "anyOf"), ("Exactly one of these is needed", "oneOf")):
        if options := [name for option in schema.get(key, ()) for name in option.get("required", ())]:
            yield f"{words}: {', '.join(f'`{name}`' for name in options)}.\n"
    if together := schema.get("not", {}).get("required"):
        yield f"Not together: {', '.join(f'`{name}`' for name in together)}.\n"
    if then := schema.get("then", {}).get("required"):
        only = ", ".join(f"`{name}`" for name in schema["else"]["properties"])
        wanted = schema["if"]["properties"]
        condition = " and ".join(f"`{name}: {value['const']}`" for name, value in wanted.items())
        yield f"With {condition}: {', '.join(f'`{name}`' for name in then)} is needed. Without it, none of {only}.\n"


def _value(field: Schema) -> str:
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "type" not in field:
        return ", or ".join(_value(option) for option in field["anyOf"])
    match field["type"]:
        case "array" if field["items"].get("type") == "object":
            return "list of objects, below"
        case "array":
            return f"list: {_value(field['items'])}"
        case "object":
            return "object, below"
        case "integer":
            return f"{field['minimum']} to {field['maximum']}"
        case "boolean":
            return "`true`, `false`"
        case "string" if "maxLength" in field:
            return f"text, at most {field['maxLength']} characters"
        case "string" if "h)?" in field.get("pattern", ""):
            return "duration"
        case "string" if "pattern" in field:
            return "name: lower case, digits, `-` and `.`"
        case _:
            return "text"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _cell(text: str) -> str:
    """Text in a table's cell: no bar of its own, and no star that Markdown would take for emphasis."""
    text = text.replace("|", "\\|")
    return text if "`" in text else text.replace("*", "\\*")
