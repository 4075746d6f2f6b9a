"""
What of an exchange may be recorded: its parts without secrets, whoever asked, in forms that people read.

A request's body is recorded as JSON where it came as protobuf, so that it can be read and sent again.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from addons.core import auditevents, chain, maskanswers, maskdetect, masking, maskpreviews, strict_json
from addons.core.masking import Masked
from addons.core.maskpolicy import MaskLevel
from addons.core.masktags import Place
from addons.core.model import Operation
from addons.core.status import Refused

MAX_ANSWER = 4 * 1024 * 1024  # bytes of an answer that are looked at for the record

_NOWHERE = Place("text")
# What the mask leaves as it is, since the API server sets it or it names something. In a request it is anything.
_NAMES = ("name", "field", "manager", "uid", "resourceVersion", "creationTimestamp", "apiVersion", "kind")
# Most of them, each another one: not searched, and not remembered.
_DULL = re.compile(r"[0-9]{1,20}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT[0-9:.]{8,18}Z")
# What a client has a hand in: its words, names, types; the places that an error quotes.
_TEXTS = (
    auditevents.COMMAND,
    auditevents.SUMMARY,
    auditevents.MESSAGE,
    auditevents.OBSERVED,
    auditevents.ENDED,
    auditevents.MEDIA_TYPE,
    auditevents.REACH,
    auditevents.TRUNCATED,
)


@dataclass(frozen=True, slots=True)
class Content:
    """A body for the record; nothing in it is secret."""

    raw: bytes = field(default=b"", repr=False)  # for the flow
    value: Any = field(default=None, repr=False)  # for the event: JSON, or None
    content_type: str = ""  # of `raw`
    masked: int = 0
    note: str = ""  # what is not kept, and why


NO_CONTENT = Content()


def request(operation: Operation, raw: bytes, content_type: str, key: bytes, level: MaskLevel) -> Content:
    """The request's body. Raises what masking raises: then nothing may be recorded, nor sent."""
    if not raw:
        return NO_CONTENT
    place = maskanswers.place_of(operation)
    if operation.body is None:
        # In a form that nobody reads here: to a program behind a proxy, to a page of unknown content.
        text = raw.decode("latin-1")
        masked = masking.mask_text(text, place, key, level)
        return Content(masked.encode("latin-1"), None, content_type, int(masked is not text))
    found = value(operation.body, place, key, level)
    is_protobuf = "protobuf" in content_type.lower()
    if found.content is operation.body and not is_protobuf:
        return _bounded(Content(raw, found.content, content_type), "requestObject")
    # JSON is YAML too, so an apply patch stays what it says.
    made = "application/json" if is_protobuf else content_type
    return _bounded(Content(masking.dumps(found.content), found.content, made, found.count), "requestObject")


def _bounded(content: Content, name: str) -> Content:
    """Without the object that is too large for an event; here, since large ones are seen to in a thread."""
    if len(content.raw) <= auditevents.MAX_OBJECT or content.value is None:
        return content
    length = len(chain.canonical(content.value))
    return content if length <= auditevents.MAX_OBJECT else replace(content, value=None, note=f"{name} {length} bytes")


def answer(
    raw: bytes, encoding: str, content_type: str, code: int, place: Place, key: bytes, level: MaskLevel
) -> Content:
    """
    The answer's body, or why it is not kept. The request was carried out: what cannot be masked is
    left out, and the rest of the record stays.
    """
    if not raw:
        return NO_CONTENT
    if len(raw) > MAX_ANSWER:
        return Content(note=f"flow.response {len(raw)} bytes")
    try:
        plain = maskanswers.decoded(raw, encoding)
        made, found = maskanswers.whole(plain, code, content_type, place, key, level)
    except (Refused, ValueError):
        return Content(note=f"flow.response {len(raw)} bytes, which cannot be masked")
    content = _value(made, content_type, found)
    named, count = _named(content, place, key)
    shown = Content(masking.dumps(named) if count else made, named, content_type, found.count + count)
    return _bounded(shown, "responseObject")


def value(content: Any, place: Place, key: bytes, level: MaskLevel) -> Masked:
    """
    An object as it may be recorded. Answers keep the names of fields, and what a Status says it is of;
    here they are searched as well: whoever asks chooses them, in `data`, labels and annotations, too.
    """
    found = masking.mask(content, place, key, level)
    named, count = _named(found.content, place, key)
    return replace(found, content=named, count=found.count + count) if count else found


def _named(content: Any, place: Place, key: bytes) -> tuple[Any, int]:
    """(the content without secrets in names of fields, how many there were)"""
    names: set[str] = set()
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            names.update(one)
            names.update(
                text for name in _NAMES if isinstance(text := one.get(name), str) and not _DULL.fullmatch(text)
            )
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    odd = {name: masking.mask_text(name, place, key) for name in _not_plain(names)}
    return (_renamed(content, odd), len(odd)) if odd else (content, 0)


def _renamed(content: Any, names: Mapping[str, str]) -> Any:
    if isinstance(content, dict):
        return {
            names.get(name, name): names.get(one, one)
            if name in _NAMES and isinstance(one, str)
            else _renamed(one, names)
            for name, one in content.items()
        }
    return [_renamed(one, names) for one in content] if isinstance(content, list) else content


def _value(made: bytes, content_type: str, found: Masked) -> Any:
    if found.content is not None or not maskanswers.is_json(content_type):
        return found.content
    try:
        return strict_json.loads(made.decode(), made, depth=False)
    except ValueError:
        return None


def uri(target: str, place: Place, key: bytes, level: MaskLevel) -> str:
    """The request's target: what an exec runs is in it, and what people put into selectors."""
    path, asked, query = target.partition("?")

    def shown(text: str) -> str:
        return line(text, place, key) if level.builtin else text

    path = _unless_same(path, unquote(path), shown, "/")
    if not asked:
        return path
    pairs = parse_qsl(query, keep_blank_values=True)
    command = [given for name, given in pairs if name == "command"]
    words = iter(maskpreviews.words(command) if command else ())
    masked = [(shown(name), next(words) if name == "command" else shown(given)) for name, given in pairs]
    if masked == pairs:
        return f"{path}?{query}"
    return f"{path}?" + "&".join(f"{quote(name, safe='*:')}={quote(given, safe='*:')}" for name, given in masked)


def _unless_same(written: str, text: str, mask: Callable[[str], str], safe: str) -> str:
    masked = mask(text)
    return written if masked == text else quote(masked, safe=safe)


def message_of(body: bytes) -> str:
    """The sentence of a Status; "" for what is none."""
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    message = found.get("message") if isinstance(found, dict) else None
    return message if isinstance(message, str) else ""


_plain: set[bytes] = set()  # short ones in which nothing was found: most headers are those of the last request
_PLAIN_LENGTH = 128  # bytes
_PLAIN_MOST = 10_000
_CLEAN_LENGTH = 2048  # characters
_CLEAN_MOST = 1000
# Each request has one, its Audit-Id, and in one that stands alone no detector finds anything.
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_plain(value: bytes) -> bool:
    """Whether the detectors find nothing in a header's value."""
    if value in _plain or _UUID.fullmatch(value):
        return True
    if maskdetect.spans(value.decode("utf-8", "replace")):
        return False
    if len(value) <= _PLAIN_LENGTH:
        if len(_plain) >= _PLAIN_MOST:
            _plain.clear()
        _plain.add(value)
    return True


def _not_plain(names: set[str]) -> list[str]:
    """Those in which something is found; all that are new are searched at once."""
    fresh = [name for name in names if name.encode("utf-8", "replace") not in _plain]
    if not fresh:
        return []
    found = dict(zip(fresh, maskdetect.spans_of(fresh), strict=True))
    for name in fresh:
        if not found[name]:
            is_plain(name.encode("utf-8", "replace"))
    return [name for name in fresh if found[name]]


def text(value: str) -> str:
    """A line for people who open the flow file."""
    return value if is_plain(value.encode("utf-8", "replace")) else maskpreviews.words([value])[0]


def line(value: str, place: Place, key: bytes) -> str:
    """A short text of whoever it was. Most are those of the last request, and are not searched again."""
    return value if is_plain(value.encode("utf-8", "replace")) else masking.mask_text(value, place, key)


def event(key: bytes) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """
    What the texts of an event become before it is written. Its objects were masked one by one: only
    the addon knows where they belong.
    """

    clean: set[str] = set()  # operations in which nothing was found: most are those of the last request

    def masked(value: str) -> str:
        return line(value, _NOWHERE, key)

    def below(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {masked(name): below(one) for name, one in value.items()}
        if isinstance(value, list):
            return [below(one) for one in value]
        return masked(value) if isinstance(value, str) else value

    def note(name: str, value: str) -> str:
        if name == auditevents.OPERATION:
            if value in clean:
                return value
            found = json.loads(value)
            changed = below(found)
            if changed != found:
                return json.dumps(changed)
            if len(value) <= _CLEAN_LENGTH:
                if len(clean) >= _CLEAN_MOST:
                    clean.clear()
                clean.add(value)
            return value
        return masked(value) if name in _TEXTS else value

    def mask(found: dict[str, Any]) -> dict[str, Any]:
        notes = found.get("annotations")
        changed = dict(found)
        if isinstance(notes, Mapping):
            changed["annotations"] = {name: note(name, value) for name, value in notes.items()}
        status = found.get("responseStatus")
        if isinstance(status, Mapping) and isinstance(status.get("message"), str):
            changed["responseStatus"] = {**status, "message": masked(status["message"])}
        for name in ("userAgent", "verb"):
            if isinstance(found.get(name), str):
                changed[name] = masked(found[name])
        if "objectRef" in found:  # names are the client's, whether there is such an object or not
            changed["objectRef"] = below(found["objectRef"])
        return changed

    return mask
