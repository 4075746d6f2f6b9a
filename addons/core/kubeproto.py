"""
Kubeproto: Kubernetes' protobuf bodies, read into the shape that their JSON has.

`kubectl create` and Helm send protobuf, so a gateway that cannot read it either refuses
half of kubectl or decides blind. A body is `k8s\\0` and a runtime.Unknown (apimachinery,
pkg/runtime/generated.proto) around the object itself. What its fields are is in
kubernetes_schema.json, made from the API's own Go packages by tests/cluster/protoschema.

A reader of our own, not google's: theirs must accept what we have to refuse. Protobuf lets
a field come twice (the last wins, messages merge) and skips unknown ones, so that bytes can
mean one thing here and another in an API server of the next version. No client of
Kubernetes writes such bytes; all of that is refused, with the advice to send JSON.
"""

import base64
import json
import struct
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from addons.core import strict_json
from addons.core.status import Refused

MAGIC = b"k8s\x00"
MAX_DEPTH = 100  # messages in messages; CRD schemas are the deepest
MAX_FIELDS = 200_000  # about 1 µs each; a 3 MiB body of the smallest fields would take seconds
_SCHEMA = Path(__file__).with_name("kubernetes_schema.json")

_VARINT, _FIXED64, _BYTES = 0, 1, 2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Unreadable(ValueError):
    """Not what Kubernetes' clients write. The message quotes nothing of the body."""


class _Field(NamedTuple):
    name: str
    kind: str  # string, bytes, bool, int, double, message
    repetition: str  # "", "l" list, "m" map
    omit_zero: bool
    inline: bool
    type: str


type _Fields = dict[int, _Field]


class _Schema(NamedTuple):
    kinds: dict[str, str]
    types: dict[str, _Fields]
    lists: frozenset[str]  # `type Verbs []string`: a message on the wire, a list in JSON


@cache
def schema() -> _Schema:
    """The table, read at the first use (some 10 ms)."""
    raw = json.loads(_SCHEMA.read_bytes())
    types = {
        name: {
            number: _Field(json_name, kind, repetition, "o" in flags and kind != "message", "i" in flags, of)
            for number, json_name, kind, repetition, flags, of in fields
        }
        for name, fields in raw["types"].items()
    }
    lists = frozenset(name for name, of in types.items() if any(f.inline and f.repetition for f in of.values()))
    return _Schema(raw["kinds"], types, lists)


def decode(body: bytes) -> dict[str, Any]:
    """The object in a protobuf body, as its JSON would be. Raises Refused."""
    try:
        return _decode(body)
    except _Unreadable as e:
        raise Refused(
            415,
            "protobuf-unreadable",
            f"body: this protobuf cannot be read here ({e}); send the same object as JSON",
        ) from None


def _decode(body: bytes) -> dict[str, Any]:
    if body[:4] != MAGIC:
        raise _Unreadable("it does not begin as Kubernetes' protobuf does")
    envelope = _raw_fields(body, 4, len(body), {1: _BYTES, 2: _BYTES, 3: _BYTES, 4: _BYTES})
    if 1 not in envelope or 2 not in envelope:
        raise _Unreadable("the envelope lacks type or object")
    if envelope.get(3) or envelope.get(4):
        # Nobody over there looks at them for a body; here they would promise another reading.
        raise _Unreadable("the envelope names an encoding")
    meta = _raw_fields(envelope[1], 0, len(envelope[1]), {1: _BYTES, 2: _BYTES})
    api_version, kind = _utf8(meta.get(1, b"")), _utf8(meta.get(2, b""))
    of = schema().kinds.get(f"{api_version}/{kind}")
    if of is None:
        raise _Unreadable("its kind is none of Kubernetes' own")
    raw = envelope[2]
    content = _Reader(raw).message(of, 0, len(raw), 0)
    return {"kind": kind, "apiVersion": api_version, **content}


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._count = 0
        self._types = schema().types
        self._lists = schema().lists

    def message(self, of: str, at: int, end: int, depth: int) -> Any:
        special = _SPECIAL.get(of)
        if special is not None:
            return special(self, at, end, depth)
        if depth > MAX_DEPTH:
            raise _Unreadable("it is nested too deeply")
        fields = self._types[of]
        data = self._data
        found: dict[str, Any] = {}
        seen: set[int] = set()
        while at < end:
            self._count += 1
            if self._count > MAX_FIELDS:
                raise _Unreadable("it has too many fields")
            key = data[at]
            at += 1
            if key & 0x80:
                key, at = _varint(data, at - 1, end)
            field = fields.get(key >> 3)
            if field is None:
                # Newer than this table: skipping it would judge another object than the one stored.
                raise _Unreadable("it holds a field unknown to this gateway")
            wire = key & 7
            if wire == _BYTES:
                if at >= end:
                    raise _Unreadable("it is cut off")
                size = data[at]
                at += 1
                if size & 0x80:
                    size, at = _varint(data, at - 1, end)
                start, at = at, at + size
                if at > end:
                    raise _Unreadable("it is cut off")
                value = self._sized(field, start, at, depth)
            else:
                value, at = _scalar(field, wire, data, at, end)
            if field.repetition == "l":
                found.setdefault(field.name, []).append(value)
            elif field.repetition == "m":
                entries = found.setdefault(field.name, {})
                if value[0] in entries:
                    raise _Unreadable("a map holds a key twice")
                entries[value[0]] = value[1]
            else:
                number = key >> 3
                if number in seen:
                    # The last wins, or the two merge: another reading than the first one's.
                    raise _Unreadable("a field is there twice")
                seen.add(number)
                if field.inline:
                    for name, inner in value.items():
                        if name in found:
                            raise _Unreadable("a field is there twice")
                        found[name] = inner
                elif value or (value is not None and not field.omit_zero):
                    found[field.name] = value
        return found.get("items", []) if of in self._lists else found

    def _sized(self, field: _Field, start: int, end: int, depth: int) -> Any:
        if field.repetition == "m":
            return self._entry(field, start, end, depth)
        return self._value(field, start, end, depth)

    def _value(self, field: _Field, start: int, end: int, depth: int) -> Any:
        kind = field.kind
        if kind == "string":
            return _utf8(self._data[start:end])
        if kind == "message":
            return self.message(field.type, start, end, depth + 1)
        if kind == "bytes":
            return base64.b64encode(self._data[start:end]).decode()
        # Also a packed list, which Kubernetes' own encoder never writes.
        raise _Unreadable("a field has another type than Kubernetes gives it")

    def _entry(self, field: _Field, at: int, end: int, depth: int) -> tuple[str, Any]:
        """One key and value of a map; all of Kubernetes' maps go from strings to strings, bytes or messages."""
        raw = _raw_fields(self._data, at, end, {1: _BYTES, 2: _BYTES}, spans=True)
        key = _utf8(self._data[slice(*raw[1])]) if 1 in raw else ""
        start, stop = raw.get(2, (at, at))
        return key, self._value(field, start, stop, depth)

    def fields(self, at: int, end: int, wanted: dict[int, int]) -> dict[int, Any]:
        return _raw_fields(self._data, at, end, wanted)

    def spans(self, at: int, end: int, wanted: dict[int, int]) -> dict[int, Any]:
        return _raw_fields(self._data, at, end, wanted, spans=True)


def _raw_fields(data: bytes, at: int, end: int, wanted: dict[int, int], *, spans: bool = False) -> dict[int, Any]:
    """Fields of a small message by number, each at most once and of the wire type wanted."""
    found: dict[int, Any] = {}
    while at < end:
        key, at = _varint(data, at, end)
        number = key >> 3
        if wanted.get(number) != key & 7:
            raise _Unreadable("it holds a field unknown to this gateway")
        if number in found:
            raise _Unreadable("a field is there twice")
        value, at = _varint(data, at, end)
        if key & 7 == _BYTES:
            start, at = at, at + value
            if at > end:
                raise _Unreadable("it is cut off")
            found[number] = (start, at) if spans else data[start:at]
        else:
            found[number] = value
    return found


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            if value >> 64:
                break
            return value, at
        shift += 7
        if shift > 63:
            break
    raise _Unreadable("a number is cut off or too long")


def _scalar(field: _Field, wire: int, data: bytes, at: int, end: int) -> tuple[Any, int]:
    if field.repetition == "m":
        raise _Unreadable("a field has another type than Kubernetes gives it")
    if wire == _VARINT and field.kind in ("int", "bool"):
        value, at = _varint(data, at, end)
        return (value != 0 if field.kind == "bool" else _signed(value)), at
    if wire == _FIXED64 and field.kind == "double" and at + 8 <= end:
        return struct.unpack_from("<d", data, at)[0], at + 8
    raise _Unreadable("a field has another type than Kubernetes gives it")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _Unreadable("a string is not UTF-8") from None


# Types that write themselves to JSON in a form of their own.


def _time(reader: _Reader, at: int, end: int, fraction: bool) -> str | None:
    if at == end:
        return None  # no time at all
    raw = reader.fields(at, end, {1: _VARINT, 2: _VARINT})
    seconds, nanos = _signed(raw.get(1, 0)), _signed(raw.get(2, 0))
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        raise _Unreadable("a time is out of range") from None
    if not 0 <= nanos < 10**9:
        raise _Unreadable("a time is out of range")
    micros = f".{nanos // 1000:06d}" if fraction else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{micros}Z" if moment.year >= 1000 else _unreadable_time()


def _unreadable_time() -> str:
    raise _Unreadable("a time is out of range")


def _quantity(reader: _Reader, at: int, end: int, depth: int) -> str:
    return _utf8(reader.fields(at, end, {1: _BYTES}).get(1, b"")) or "0"


def _int_or_string(reader: _Reader, at: int, end: int, depth: int) -> int | str:
    raw = reader.fields(at, end, {1: _VARINT, 2: _VARINT, 3: _BYTES})
    if raw.get(1, 0) == 1:
        return _utf8(raw.get(3, b""))
    if raw.get(1, 0) == 0:
        return _signed(raw.get(2, 0))
    raise _Unreadable("a number or string is neither")


def _json_text(reader: _Reader, at: int, end: int, depth: int) -> Any:
    """A piece of JSON carried as bytes."""
    raw = reader.fields(at, end, {1: _BYTES}).get(1, b"")
    if not raw:
        return None
    try:
        return strict_json.loads(raw.decode(), raw)
    except ValueError:  # also what is not UTF-8
        raise _Unreadable("JSON inside it is broken") from None


_SCHEMA_PROPS = "apiextensions/v1.JSONSchemaProps"


def _schema_or_array(reader: _Reader, at: int, end: int, depth: int) -> Any:
    if at == end:
        return None
    raw = reader.spans(at, end, {1: _BYTES})  # its list form is not used by structural schemas
    start, stop = raw[1]
    return reader.message(_SCHEMA_PROPS, start, stop, depth + 1)


def _schema_or_bool(reader: _Reader, at: int, end: int, depth: int) -> Any:
    found: dict[int, Any] = {}
    start = at
    while start < end:  # field 1 is a number, field 2 a message: one at a time
        key, after = _varint(reader._data, start, end)
        value, after = _varint(reader._data, after, end)
        if key >> 3 in found or key not in (1 << 3 | _VARINT, 2 << 3 | _BYTES):
            raise _Unreadable("a field is there twice or unknown to this gateway")
        if key & 7 == _BYTES:
            if after + value > end:
                raise _Unreadable("it is cut off")
            found[2] = (after, after + value)
            after += value
        else:
            found[1] = value != 0
        start = after
    if 2 not in found:
        return found.get(1, False)
    inner, stop = found[2]
    return reader.message(_SCHEMA_PROPS, inner, stop, depth + 1)


def _schema_or_strings(reader: _Reader, at: int, end: int, depth: int) -> Any:
    raise _Unreadable("a JSON schema has dependencies")  # structural schemas forbid them


_SPECIAL: dict[str, Any] = {
    "meta/v1.Time": lambda reader, at, end, depth: _time(reader, at, end, fraction=False),
    "meta/v1.MicroTime": lambda reader, at, end, depth: _time(reader, at, end, fraction=True),
    "meta/v1.FieldsV1": _json_text,
    "api/resource.Quantity": _quantity,
    "util/intstr.IntOrString": _int_or_string,
    "pkg/runtime.RawExtension": _json_text,
    "apiextensions/v1.JSON": _json_text,
    "apiextensions/v1.JSONSchemaPropsOrArray": _schema_or_array,
    "apiextensions/v1.JSONSchemaPropsOrBool": _schema_or_bool,
    "apiextensions/v1.JSONSchemaPropsOrStringArray": _schema_or_strings,
}
