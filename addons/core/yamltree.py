"""
YAML as a tree that remembers its lines, and nothing of YAML that a reviewer could misread.

Refused: anchors and aliases (a bomb, or a rule that says something else than where it is
read), tags, duplicate keys, keys that are not text, tabs in the indentation, more than the
bounds below. What plain words mean (`no`, `1:30`) is kept beside the text, so that the
reader of a field can ask for quotes instead of guessing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import yaml

MAX_BYTES = 4 * 1024 * 1024  # per file; the default policy has 10 KiB, 10 000 rules some 2 MiB
MAX_DEPTH = 16  # the policy language needs 6
MAX_NODES = 400_000  # 10 000 rules have 160 000, and load in a few seconds
MAX_DOCUMENTS = 100

_RESOLVER = yaml.resolver.Resolver()
_WORDS = {"bool": "a boolean", "int": "a number", "float": "a number", "null": "nothing", "timestamp": "a date"}
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster


class YamlError(Exception):
    """Not a tree we read; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Node:
    """A text, a list or a map, and the line where it begins."""

    kind: Literal["text", "list", "map"]
    line: int
    text: str = ""
    tag: str = "str"  # of a text: str, int, bool, null, float, timestamp, ...: what YAML 1.1 takes it for
    items: tuple["Node", ...] = ()
    pairs: tuple[tuple["Node", "Node"], ...] = ()  # no two keys of the same text

    @property
    def word(self) -> str:
        """What it is, for messages."""
        if self.kind == "text":
            return _WORDS.get(self.tag, "a text")
        return f"a {self.kind}"

    def plain(self) -> Any:
        """Lists, dicts and texts."""
        if self.kind == "list":
            return [item.plain() for item in self.items]
        if self.kind == "map":
            return {key.text: value.plain() for key, value in self.pairs}
        return self.text if self.tag != "null" else None


def documents(data: bytes) -> list[Node]:
    """The documents of a file that are not empty."""
    if len(data) > MAX_BYTES:
        raise YamlError(1, f"has {len(data)} bytes, more than {MAX_BYTES}; split it into several files")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise YamlError(data.count(b"\n", 0, e.start) + 1, "is not UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        if "\t" in line[: len(line) - len(line.lstrip())]:
            raise YamlError(number, "begins with a tab; indent with spaces")
    try:
        return list(_documents(yaml.parse(text, Loader=_LOADER)))
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        raise YamlError(mark.line + 1 if mark else 1, f"is not YAML: {e.problem or e.context}") from None
    except yaml.reader.ReaderError as e:
        raise YamlError(text.count("\n", 0, e.position) + 1, "has a control character") from None
    except yaml.YAMLError as e:
        raise YamlError(1, f"is not YAML: {str(e).split(chr(10), 1)[0]}") from None


def _documents(events: Iterator[yaml.Event]) -> Iterator[Node]:
    count = 0
    budget = [MAX_NODES]
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            count += 1
            if count > MAX_DOCUMENTS:
                raise YamlError(_line(event), f"has more than {MAX_DOCUMENTS} documents")
            node = _node(next(events), events, budget, depth=1)
            if not (node.kind == "text" and node.tag == "null"):
                yield node


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _implied(text: str) -> str:
    """What YAML 1.1 takes an unquoted text for."""
    tag: str = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call] # not in its stubs
    return tag.rpartition(":")[2]


def _node(event: yaml.Event, events: Iterator[yaml.Event], budget: list[int], depth: int) -> Node:
    line = _line(event)
    budget[0] -= 1
    if budget[0] < 0:
        raise YamlError(line, f"has more than {MAX_NODES} values")
    if depth > MAX_DEPTH:
        raise YamlError(line, f"is nested deeper than {MAX_DEPTH}")
    if getattr(event, "anchor", None) is not None:
        raise YamlError(line, "has an anchor or alias (& or *); write it out, or quote a pattern that begins with *")
    if getattr(event, "tag", None) is not None:
        raise YamlError(line, "has a tag (!); leave it out, or quote a text that begins with !")
    if isinstance(event, yaml.ScalarEvent):
        plain = event.implicit[0]
        return Node("text", line, text=event.value, tag=_implied(event.value) if plain else "str")
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_node(item, events, budget, depth + 1))
        return Node("list", line, items=tuple(items))
    pairs: dict[str, tuple[Node, Node]] = {}
    while not isinstance(item := next(events), yaml.MappingEndEvent):
        key = _node(item, events, budget, depth + 1)
        if key.kind != "text" or key.tag != "str":
            raise YamlError(key.line, f"has {key.word} as a key; keys are words")
        if key.text in pairs:
            first = pairs[key.text][0].line
            raise YamlError(key.line, f"has the key {key.text!r} twice, first in line {first}")
        pairs[key.text] = (key, _node(next(events), events, budget, depth + 1))
    return Node("map", line, pairs=tuple(pairs.values()))
