"""
Kubernetes content as people read it: a manifest as YAML, a Table as a table, a Status as a sentence.

What is secret is masked first, whatever the policies say of its reader: this is for screens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from addons.core import bodies, canonical, masking, masktags, requestinfo, status, strict_json
from addons.core.masktags import Place
from addons.core.previews import line

MAX_BYTES = 4 * 1024 * 1024  # of a body; more takes seconds, and nobody reads it
MAX_ROWS = 2000
MAX_CELL = 100  # characters

PROTOBUF = "application/vnd.kubernetes.protobuf"


class NotReadable(ValueError):
    """It is no Kubernetes content; one sentence without anything of it."""


def place_of(method: str, target: str) -> Place | None:
    """
    Where a request's content belongs, by its path and query: never by its body, which says what it
    likes. None for what is no resource of the API.
    """
    try:
        found = canonical.read(method, target)
        info = requestinfo.parse(method, found.path, found.query)
    except (status.Refused, ValueError):
        return None
    return masktags.place_of(info) if info.is_resource_request else None


def read(body: bytes, content_type: str, method: str) -> list[Any]:
    """The body's content: one value, or the events of a watch. Raises NotReadable."""
    if len(body) > MAX_BYTES:
        raise NotReadable(f"it has over {MAX_BYTES // 1024 // 1024} MiB")
    try:
        content = bodies.read(content_type or None, body, method).content
    except (status.Refused, ValueError):
        return _events(body)
    if content is None:
        raise NotReadable("it is empty, or in a form that nobody can read here")
    return [content]


def _events(body: bytes) -> list[Any]:
    try:
        found = [strict_json.loads(one.decode(), one) for one in body.splitlines() if one.strip()]
    except ValueError:
        raise NotReadable("it is no JSON, YAML or protobuf of Kubernetes") from None
    if not found:
        raise NotReadable("it is empty")
    return found


def text(content: Sequence[Any], place: Place, key: bytes) -> str:
    """All of it, masked. `key` is for the tags of what was not masked yet."""
    return "---\n".join(_one(masking.mask(value, place, key).content) for value in content)


def _one(value: Any) -> str:
    if isinstance(value, Mapping):
        kind, version = value.get("kind"), str(value.get("apiVersion", ""))
        if kind == "Table" and version.startswith("meta.k8s.io/"):
            return _table(value)
        if kind == "Status" and version == "v1":
            return _status(value)
        if value.keys() == {"type", "object"} and isinstance(value["type"], str):
            return f"# {line(value['type'])}\n{_one(value['object'])}"
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.CSafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _string(dumper: Any, value: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _string)


def _status(value: Mapping[str, Any]) -> str:
    """`Failure 403 Forbidden: pods "x" is forbidden`, and what its details name."""
    words = [str(value.get(name)) for name in ("status", "code", "reason") if value.get(name)]
    lines = [f"{line(' '.join(words))}: {line(str(value.get('message') or 'no message'), 2000)}"]
    details = value.get("details")
    causes = details.get("causes") if isinstance(details, Mapping) else None
    lines += [
        line(f"- {cause.get('field') or cause.get('reason') or 'cause'}: {cause.get('message', '')}", 2000)
        for cause in (causes if isinstance(causes, list) else [])
        if isinstance(cause, Mapping)
    ]
    return "\n".join(lines) + "\n"


def _table(value: Mapping[str, Any]) -> str:
    """The columns that `kubectl get` prints; those of `-o wide` are left out."""
    columns = [one for one in _list(value.get("columnDefinitions")) if isinstance(one, Mapping)]
    shown = [number for number, one in enumerate(columns) if not one.get("priority")]
    found = _list(value.get("rows"))
    rows = [[str(columns[number].get("name", "")).upper() for number in shown]]
    for row in found[:MAX_ROWS]:
        cells = _list(row.get("cells")) if isinstance(row, Mapping) else []
        rows.append([_cell(cells[number]) if number < len(cells) else "" for number in shown])
    widths = [max(len(row[at]) for row in rows) for at in range(len(shown))]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(found) > MAX_ROWS:
        lines.append(f"… {len(found) - MAX_ROWS} rows more")
    return "\n".join(lines) + "\n"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _cell(value: Any) -> str:
    return line("<none>" if value is None or value == "" else str(value), MAX_CELL)
