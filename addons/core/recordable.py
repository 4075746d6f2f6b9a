"""
What of an exchange may be recorded: its parts without secrets, whoever asked, in forms that people read.

A request's body is recorded as JSON where it came as protobuf, so that it can be read and sent again.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from addons.core import auditevents, maskanswers, maskdetect, masking, maskpreviews, strict_json
from addons.core.masking import Masked
from addons.core.maskpolicy import MaskLevel
from addons.core.masktags import Place
from addons.core.model import Operation
from addons.core.status import Refused

MAX_ANSWER = 4 * 1024 * 1024  # bytes of an answer that are looked at for the record

_NOWHERE = Place("text")
_TEXTS = (
    auditevents.COMMAND,
    auditevents.SUMMARY,
    auditevents.MESSAGE,
    auditevents.OBSERVED,
    auditevents.ENDED,
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
    found = masking.mask(operation.body, place, key, level)
    is_protobuf = "protobuf" in content_type.lower()
    if found.content is operation.body and not is_protobuf:
        return Content(raw, found.content, content_type)
    # JSON is YAML too, so an apply patch stays what it says.
    made = "application/json" if is_protobuf else content_type
    return Content(masking.dumps(found.content), found.content, made, found.count)


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
    return Content(made, _value(made, content_type, found), content_type, found.count)


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
    path = _unless_same(path, unquote(path), lambda text: masking.mask_text(text, place, key, level), "/")
    if not asked:
        return path
    pairs = parse_qsl(query, keep_blank_values=True)
    command = [value for name, value in pairs if name == "command"]
    words = iter(maskpreviews.words(command) if command else ())
    shown = [
        (name, next(words) if name == "command" else masking.mask_text(value, place, key, level))
        for name, value in pairs
    ]
    if shown == pairs:
        return f"{path}?{query}"
    return f"{path}?" + "&".join(f"{quote(name, safe='')}={quote(value, safe='*:')}" for name, value in shown)


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


def is_plain(value: bytes) -> bool:
    """Whether the detectors find nothing in a header's value."""
    if value in _plain:
        return True
    if maskdetect.spans(value.decode("utf-8", "replace")):
        return False
    if len(value) <= _PLAIN_LENGTH:
        if len(_plain) >= _PLAIN_MOST:
            _plain.clear()
        _plain.add(value)
    return True


def text(value: str) -> str:
    """A line for people who open the flow file."""
    return value if is_plain(value.encode("utf-8", "replace")) else maskpreviews.words([value])[0]


def event(key: bytes) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """
    What the texts of an event become before it is written. Its objects were masked one by one: only
    the addon knows where they belong.
    """

    def masked(value: str) -> str:
        return masking.mask_text(value, _NOWHERE, key)

    def below(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: below(one) for key, one in value.items()}
        return masked(value) if isinstance(value, str) else value

    def note(name: str, value: str) -> str:
        if name == auditevents.OPERATION:
            found = json.loads(value)
            changed = below(found)
            return value if changed == found else json.dumps(changed)
        return masked(value) if name in _TEXTS else value

    def mask(found: dict[str, Any]) -> dict[str, Any]:
        notes = found.get("annotations")
        changed = dict(found)
        if isinstance(notes, Mapping):
            changed["annotations"] = {name: note(name, value) for name, value in notes.items()}
        status = found.get("responseStatus")
        if isinstance(status, Mapping) and isinstance(status.get("message"), str):
            changed["responseStatus"] = {**status, "message": masked(status["message"])}
        if isinstance(found.get("userAgent"), str):
            changed["userAgent"] = masked(found["userAgent"])
        return changed

    return mask
