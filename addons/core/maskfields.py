"""
Field paths of `mask:` rules: `spec.credentials[*].password`, `data['tls.key']`, `spec.users[*]`.

A path names a field with all that is below it. `*` and `[*]` are every key and every item; an
index is no step, since an item's place is not its identity.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MAX_STEPS = 32
MAX_TEXT = 500  # characters

_STEP = re.compile(
    r"""
    \.?(?P<key>[A-Za-z0-9_/-]+)
    | \.?\*
    | \[\*\]
    | \['(?P<single>[^'\\]+)'\] | \["(?P<double>[^"\\]+)"\]
    """,
    re.VERBOSE,
)


_PLAIN = re.compile(r"[A-Za-z0-9_/-]+")
# As the API server reads one: Go's Atoi, and negative ones count from the end (evanphx/json-patch).
_INDEX = re.compile(r"[+-]?[0-9]+|-")

type Steps = tuple[str | int, ...]


class FieldError(ValueError):
    """Not a field path; the message says what is wrong, in lower case."""


@dataclass(frozen=True, slots=True)
class FieldPath:
    """A parsed path. A step is a key, or None for every key or item."""

    text: str
    steps: tuple[str | None, ...]


def parse(text: str) -> FieldPath:
    """Raises FieldError."""
    if len(text) > MAX_TEXT:
        raise FieldError(f"has more than {MAX_TEXT} characters")
    rest = text.removeprefix("$").removeprefix(".")  # JSONPath's root, for those who are used to it
    steps: list[str | None] = []
    at = 0
    while at < len(rest):
        found = _STEP.match(rest, at)
        if found is None or (rest[at] == "." and not at):
            raise FieldError(f"{text!r} is no field path at {rest[at:][:20]!r}: write spec.users[*].password")
        if at and rest[at] not in ".[":
            raise FieldError(f"{text!r} is no field path at {rest[at:][:20]!r}: put a dot between two keys")
        key = found["key"] or found["single"] or found["double"]
        steps.append(key)
        at = found.end()
    if not steps:
        raise FieldError("is empty: write spec.users[*].password")
    if len(steps) > MAX_STEPS:
        raise FieldError(f"has more than {MAX_STEPS} steps")
    if steps[0] is None or steps[0] in ("apiVersion", "kind"):
        raise FieldError(f"{text!r} masks what clients need to read an object; begin with spec, status or data")
    if steps[0] == "metadata" and (len(steps) < 2 or steps[1] not in ("annotations", "labels")):
        raise FieldError(f"{text!r} masks what clients need to read an object; of metadata only annotations and labels")
    return FieldPath(text, tuple(steps))


def touches(path: FieldPath, steps: Sequence[str]) -> bool:
    """Whether a decoded JSON pointer is at the field, above it or below it, or may be."""
    return _touches(path.steps, tuple(steps))


def _touches(wanted: tuple[str | None, ...], steps: tuple[str, ...]) -> bool:
    if not wanted or not steps:
        return True
    step = steps[0]
    if (wanted[0] is None or wanted[0] == step) and _touches(wanted[1:], steps[1:]):
        return True
    # An index in a list that the path does not speak of; `find` walks through it as well.
    return is_index(step) and _touches(wanted, steps[1:])


def is_index(step: str) -> bool:
    """Whether a step of a JSON pointer can be a place in a list."""
    return _INDEX.fullmatch(step) is not None


def is_under(path: FieldPath, place: Sequence[str | int]) -> bool:
    """Whether a place in an object is surely at the field or below it."""
    return len(place) >= len(path.steps) and all(
        wanted is None or wanted == step for wanted, step in zip(path.steps, place, strict=False)
    )


def find(content: Any, path: FieldPath) -> Iterator[tuple[Steps, Any]]:
    """
    What is at the field: (place, value). Lists are walked through where the path does not say
    `[*]`, too: a rule that forgets it must not show what it means to mask.
    """
    yield from _find(content, path.steps, ())


def _find(value: Any, steps: tuple[str | None, ...], at: Steps) -> Iterator[tuple[Steps, Any]]:
    if not steps:
        yield at, value
        return
    step, rest = steps[0], steps[1:]
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _find(item, rest if step is None else steps, (*at, number))
    elif isinstance(value, dict):
        if step is None:
            for key, item in value.items():
                yield from _find(item, rest, (*at, key))
        elif step in value:
            yield from _find(value[step], rest, (*at, step))


def written(place: Sequence[str | int]) -> str:
    """A place as a path is written, for tags, records and messages: `spec.users[0].password`."""
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{step!r}]"
    return text
