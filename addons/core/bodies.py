"""
Bodies: what a request's body says, read as the API server reads it, or a refusal.

A rule on a name or a Secret's type is worth what this file is worth: two readings of one
body are two different requests. So what JSON and YAML readers disagree on (duplicate keys,
letters outside UTF-8, anchors, `yes`) is refused, with a sentence that says how to write it.

JSON (RFC 8259), YAML as `sigs.k8s.io/yaml` reads it (a YAML 1.1 of its own), the four patch
types, and Kubernetes' protobuf (addons.core.kubeproto). CBOR is behind a feature gate that is
off; what cannot be read here is not let through.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from addons.core import kubeproto, strict_json
from addons.core.status import Refused

JSON = "application/json"
YAML = "application/yaml"
PROTOBUF = "application/vnd.kubernetes.protobuf"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

# pkg/endpoints/handlers/patch.go takes only these for PATCH, and only the others for the rest.
PATCHES = {JSON_PATCH: "json", MERGE_PATCH: "merge", STRATEGIC_PATCH: "strategic", APPLY_PATCH: "apply"}
_OBJECTS = frozenset({JSON, YAML, PROTOBUF})

MAX_YAML = 512 * 1024  # bytes; YAML is read event by event, some 3 µs each, on the way of a request
MAX_YAML_EVENTS = 50_000
# In an apply every number is a double over there (patch.go, yaml.Unmarshal into a map): beyond, another one.
MAX_APPLIED = 2**53
MAX_POINTER = 4096  # characters; the deepest field of a pod is 80 away, and each step costs us an object
MAX_PATCH_OPERATIONS = 10_000  # the API server's own (handlers/patch.go)

# Type and subtype, then at most a charset, as clients write it. No other parameter means
# anything to the API server in a Content-Type.
_CONTENT_TYPE = re.compile(r"([a-z0-9.+-]+/[a-z0-9.+-]+)(?:[ \t]*;[ \t]*charset=\"?utf-8\"?)?[ \t]*", re.IGNORECASE)
_LONG_NUMBER = re.compile(rb"[0-9]{16}")
# Raw in a JSON string they are letters, in YAML line breaks or not allowed.
_NOT_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Body:
    """A decoded body. `content` may hold secrets: it is not in the repr."""

    media_type: str = ""  # without parameters, lower case; "" when there is no body
    content: Any = None  # dict, list (a JSON patch) or None (no body)
    patch: str = ""  # "json", "merge", "strategic", "apply" or "" (a whole object)

    def __repr__(self) -> str:
        return f"Body(media_type={self.media_type!r}, patch={self.patch!r})"


NO_BODY = Body()


def read(content_type: str | None, body: bytes, method: str) -> Body:
    """The decoded body. Raises Refused: 415 for a form nobody reads here, 400 for a broken one."""
    if not body:
        return NO_BODY
    media_type = parse_media_type(content_type, method)
    if media_type == PROTOBUF:
        return Body(media_type, kubeproto.decode(body))
    text = _text(body)
    if media_type in (YAML, APPLY_PATCH):
        content = _json_in_yaml(text, body) or _read_yaml(text)
    else:
        content = _read_json(text, body)
    if media_type == JSON_PATCH:
        _check_json_patch(content)
    else:
        if not isinstance(content, dict):
            raise _broken("it is not an object")
        _check_spelling(content)
    if media_type == APPLY_PATCH and _LONG_NUMBER.search(body) and _is_beyond_doubles(content):
        raise _broken("an apply holds a number that the API server would round")
    return Body(media_type, content, PATCHES.get(media_type, ""))


def parse_media_type(content_type: str | None, method: str) -> str:
    """The media type as the API server takes it for this method; no Content-Type at all is JSON."""
    if not content_type:
        if method == "PATCH":
            raise _unsupported("a PATCH has no Content-Type")
        return JSON
    found = _CONTENT_TYPE.fullmatch(content_type)
    if found is None:
        raise _unsupported("the Content-Type is not a media type with at most charset=utf-8")
    media_type = found[1].lower()
    if method == "PATCH":
        # Over there the text before `;` is compared as it is: capitals would be refused, so they are here.
        if media_type not in PATCHES or media_type != found[1]:
            raise _unsupported("a PATCH is none of Kubernetes' four patch types")
    elif media_type not in _OBJECTS:
        raise _unsupported("the body is neither JSON nor YAML nor Kubernetes' protobuf")
    return media_type


def _text(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        # Go replaces such bytes by U+FFFD: another name than the one we would compare.
        raise _broken("it is not UTF-8") from None
    if text[0] == "\ufeff":
        raise _broken("it begins with a byte order mark")
    return text


def _is_beyond_doubles(content: Any) -> bool:
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, int) and abs(value) > MAX_APPLIED:
            return True
    return False


# JSON


def _read_json(text: str, raw: bytes) -> Any:
    try:
        return strict_json.loads(text, raw)
    except strict_json.NotStrictJSON as e:
        raise _broken(str(e)) from None


def _json_in_yaml(text: str, raw: bytes) -> Any:
    """JSON sent as YAML (kubectl's server-side apply), where the two read the same; else None."""
    if text.lstrip(" \t\r\n")[:1] != "{" or _NOT_YAML.search(text):
        return None
    try:
        return strict_json.loads(text, raw)
    except strict_json.NotStrictJSON:
        return None


def _check_json_patch(content: Any) -> None:
    if not isinstance(content, list):
        raise _broken("a JSON patch is not a list")
    if len(content) > MAX_PATCH_OPERATIONS:
        raise _broken(f"a JSON patch has over {MAX_PATCH_OPERATIONS} operations")
    for operation in content:
        if (
            not isinstance(operation, dict)
            or not isinstance(operation.get("op"), str)
            or not _is_pointer(operation.get("path"))
            or ("from" in operation and not _is_pointer(operation["from"]))
        ):
            raise _broken("a JSON patch operation lacks op or path, or has a wrong one")
        _check_collisions(operation)


def _is_pointer(value: Any) -> bool:
    """A JSON pointer (RFC 6901), plainly: no `~` but in ~0 and ~1, where readers differ."""
    if not isinstance(value, str) or len(value) > MAX_POINTER:
        return False
    return (not value or value[0] == "/") and not re.search(r"~(?![01])", value)


def _check_spelling(content: dict[str, Any]) -> None:
    """
    Refuse keys that differ in case only, at the top and in metadata.

    Typed objects are read with exact keys over there, but kind and apiVersion are looked for
    without regard to case (serializer/json/meta.go), and so do many tools that read bodies.
    """
    _check_collisions(content)
    for key in content:
        if key not in ("kind", "apiVersion") and key.casefold() in ("kind", "apiversion"):
            raise _broken("kind or apiVersion is written in another case")
    metadata = content.get("metadata")
    if isinstance(metadata, dict):
        _check_collisions(metadata)


def _check_collisions(content: dict[str, Any]) -> None:
    if len({key.casefold() for key in content}) != len(content):
        raise _broken("two keys differ in upper and lower case only")


# YAML

# Plain scalars as go-yaml v2 (resolve.go) reads them, where every reader agrees.
_YAML_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# Booleans in one YAML, words in the next; merge keys; and what JSON has no value for.
_YAML_DOUBTFUL = re.compile(r"y|yes|n|no|on|off|<<|[+-]?\.(?:inf|nan)", re.IGNORECASE)
_YAML_INT = re.compile(r"-?(?:0|[1-9][0-9]*)")
_YAML_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
# Numbers to go-yaml in a form that JSON does not have: 0x1F, 0o17, 017, 1_000, +1, .5, 1.
_YAML_NUMBER = re.compile(
    r"[-+]?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?)"
)


def _read_yaml(text: str) -> Any:
    if len(text) > MAX_YAML:
        raise _broken(f"YAML over {MAX_YAML} bytes is not read; send JSON")
    if _NOT_YAML.search(text):
        raise _broken("it holds a letter that YAML readers take for a line break or refuse")
    if not yaml.__with_libyaml__:
        # The Python scanner is another program than the one go-yaml was translated from.
        raise _unsupported("YAML cannot be read here")
    try:
        return _Yaml(yaml.parse(text, Loader=yaml.CSafeLoader)).document()
    except yaml.YAMLError:
        raise _broken("it is not YAML") from None


class _Yaml:
    """One document from libyaml's events, without anchors, tags and second documents."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._count = 0
        self._flow = 0

    def _next(self) -> Any:
        self._count += 1
        if self._count > MAX_YAML_EVENTS:
            raise _broken("YAML with so many values is not read; send JSON")
        return next(self._events)

    def document(self) -> Any:
        self._next()  # the stream's start
        start = self._next()
        if not isinstance(start, yaml.DocumentStartEvent):
            raise _broken("it holds no YAML document")
        if start.version or start.tags:
            raise _broken("YAML directives are not read")
        value = self._value(self._next(), 0)
        self._next()  # the document's end
        if not isinstance(self._next(), yaml.StreamEndEvent):
            # The API server reads the first and forgets the others; people think that all count.
            raise _broken("it holds more than one YAML document")
        return value

    def _value(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            # A few lines of them are gigabytes elsewhere, and a value far from where it counts.
            raise _broken("YAML anchors and aliases are not read; write the value out")
        if event.tag:
            raise _broken("YAML tags are not read; quote strings instead")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if depth >= strict_json.MAX_DEPTH:
            raise _broken("it is nested too deeply")
        self._flow += bool(event.flow_style)
        value = self._mapping(depth) if isinstance(event, yaml.MappingStartEvent) else self._sequence(depth)
        self._flow -= bool(event.flow_style)
        return value

    def _sequence(self, depth: int) -> list[Any]:
        found = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            found.append(self._value(event, depth + 1))
        return found

    def _mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._value(event, depth + 1)
            if not isinstance(key, str):
                # `on:` becomes the key "true" over there, `1.0:` the key "1".
                raise _broken("a YAML key is not a string; quote it")
            if key in found:
                raise _broken("a key is there twice")
            found[key] = self._value(self._next(), depth + 1)
        return found

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if event.style:  # quoted or a block: a string to everybody
            return text
        if self._flow and (":" in text or "?" in text):
            # In brackets libyaml's versions differ on these.
            raise _broken("an unquoted YAML value in brackets holds : or ?; quote it")
        if text in _YAML_WORDS:
            return _YAML_WORDS[text]
        if _YAML_DOUBTFUL.fullmatch(text):
            raise _broken("an unquoted YAML value like yes, on or .inf has no one meaning; quote it")
        try:
            if _YAML_INT.fullmatch(text):
                return strict_json.integer(text)
            if _YAML_FLOAT.fullmatch(text):
                return strict_json.number(text)
        except ValueError as e:
            raise _broken(str(e)) from None
        if _YAML_NUMBER.fullmatch(text.replace("_", "")):
            raise _broken("an unquoted YAML value like 017, 0x1f or 1_000 has no one meaning; quote it")
        return text


def _broken(why: str) -> Refused:
    return Refused(400, "body-unreadable", f"body: {why}; send one plain JSON object")


def _unsupported(why: str) -> Refused:
    return Refused(415, "body-unsupported", f"body: {why}; send JSON with the Content-Type that Kubernetes documents")
