"""Selectors of lists and watches: labels fully, fields those that an object has for it."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from addons.core import requestinfo
from addons.core.virtualstatus import Problem

type Test = Callable[[str | None], bool]  # of a label's value; None: the label is not there

_MAX_TERMS = 100  # of one selector; each object is tested against all of them
_INT64 = re.compile(r"[+-]?[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Selector:
    """What a list or watch is limited to."""

    labels: tuple[tuple[str, Test], ...] = ()
    fields: tuple[tuple[str, str, bool], ...] = ()  # path, value, whether it must be equal

    def matches(self, content: Mapping[str, Any]) -> bool:
        labels = content["metadata"].get("labels", {})
        return all(test(labels.get(key)) for key, test in self.labels) and all(
            (field_of(content, path) == value) is equal for path, value, equal in self.fields
        )


EVERYTHING = Selector()


def parse(label_selector: str, field_selector: str, known: tuple[str, ...]) -> Selector:
    """The selector of these two query parameters. Raises Problem: 400, as the API server has it."""
    return Selector(_labels(label_selector), _fields(field_selector, known))


def field_of(content: Mapping[str, Any], path: str) -> str:
    """The field as text; "" when it is not there, as for the API server's own."""
    value: Any = content
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else ""


def _fields(selector: str, known: tuple[str, ...]) -> tuple[tuple[str, str, bool], ...]:
    terms = requestinfo.field_terms(selector)
    if terms is None or len(terms) > _MAX_TERMS:
        raise Problem(400, "selector-unreadable", "fieldSelector: cannot be read; write path=value")
    for path, _, _ in terms:
        if path not in known:
            raise Problem(
                400, "selector-unknown", f"fieldSelector: {path} is none of its fields; known are {', '.join(known)}"
            )
    return tuple((path, value, sign != "!=") for path, sign, value in terms)


def _labels(selector: str) -> tuple[tuple[str, Test], ...]:
    tokens = requestinfo.label_tokens(selector) if requestinfo.is_label_selector(selector) else None
    if tokens is None or len(tokens) > 4 * _MAX_TERMS:
        raise Problem(400, "selector-unreadable", "labelSelector: cannot be read; write key=value or key in (a,b)")
    found, at = [], 0
    while tokens[at]:
        term, at = _requirement(tokens, at)
        found.append(term)
        at += tokens[at] == ","
    return tuple(found)


def _requirement(tokens: list[str], at: int) -> tuple[tuple[str, Test], int]:
    """One requirement of a selector that is known to be valid, and the position after it."""
    if tokens[at] == "!":
        return (tokens[at + 1], _absent), at + 2
    key, sign = tokens[at], tokens[at + 1]
    at += 2
    if sign in ("", ","):
        return (key, _present), at - 1
    if sign in ("in", "notin"):
        end = tokens.index(")", at)
        return (key, _among(_set(tokens[at + 1 : end]), inside=sign == "in")), end + 1
    value = tokens[at] if tokens[at] not in ("", ",") else ""
    at += bool(value)
    if sign in ("<", ">"):
        return (key, _compared(int(value), sign)), at
    return (key, _among(frozenset({value}), inside=sign != "!=")), at


def _set(tokens: list[str]) -> frozenset[str]:
    """What stands in the brackets; nothing before or after a comma is the empty value (labels/selector.go)."""
    found, last = set(), ","
    for part in tokens:
        if part != ",":
            found.add(part)
        elif last == ",":
            found.add("")
        last = part
    if last == ",":
        found.add("")
    return frozenset(found)


def _absent(value: str | None) -> bool:
    return value is None


def _present(value: str | None) -> bool:
    return value is not None


def _among(values: frozenset[str], *, inside: bool) -> Test:
    # `!=` and `notin` hold where the label is not there at all.
    return lambda value: (value in values) if inside else (value is None or value not in values)


def _compared(limit: int, sign: str) -> Test:
    compare = operator.gt if sign == ">" else operator.lt
    return lambda value: value is not None and _INT64.fullmatch(value) is not None and compare(int(value), limit)
