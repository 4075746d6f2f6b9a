"""
Tags: what stands in place of a secret, `**masked:1a2b3c4d**`.

A tag says that the same value is still there, and when it changed: nothing else. It is keyed
per gateway, per object and per field, so that a guess written into another object gets another
tag and confirms nothing; and it has one length, so that it does not tell the value's.
"""

import base64
import hmac
import re
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from addons.core.model import RequestInfo

MIN_KEY = 16  # bytes

_TAG = re.compile(r"\*\*masked:[0-9a-f]{8}\*\*")
_HEAD = "**masked:"


@dataclass(frozen=True, slots=True)
class Place:
    """The object that a value is in. The URL says the resource; the object's metadata the rest."""

    resource: str  # `secrets`, `deployments.apps`, `serviceaccounts/token`: RequestInfo.full_resource
    namespace: str = ""
    name: str = ""
    # Else who deletes an object and makes it anew with a guess would see the old tag again.
    uid: str = ""

    def of(self, metadata: Any) -> "Place":
        """The same resource, and the object that has this metadata."""
        if not isinstance(metadata, dict):
            return self
        found = {
            field: value
            for field in ("namespace", "name", "uid")
            if isinstance(value := metadata.get(field), str) and value
        }
        return replace(self, **found) if found else self


def place_of(info: RequestInfo) -> Place:
    """The place that a URL names; a list has no name."""
    return Place(info.full_resource, info.namespace, info.name)


def tag(key: bytes, place: Place, path: str, value: str) -> str:
    """
    The tag for a value at a field path of an object. `key` is the gateway's, at least 16 bytes.

    Raises ValueError for a shorter key: its tags could be tried out.
    """
    if len(key) < MIN_KEY:
        raise ValueError(f"the key for tags has fewer than {MIN_KEY} bytes")
    # Each part with its length: no two lists of parts are the same message.
    parts = (place.resource, place.namespace, place.name, place.uid, path, value)
    raw = [part.encode("utf-8", "surrogatepass") for part in parts]
    message = b"".join(len(part).to_bytes(8, "big") + part for part in raw)
    return f"{_HEAD}{hmac.digest(key, message, 'sha256')[:4].hex()}**"


def base64_tag(key: bytes, place: Place, path: str, value: str) -> str:
    """The tag as base64, for fields that clients decode (a Secret's `data`)."""
    return base64.b64encode(tag(key, place, path, value).encode()).decode()


def is_tag(value: str) -> bool:
    """Whether the whole value is a tag, plain or as base64."""
    if len(value) == 19:
        return _TAG.fullmatch(value) is not None
    if len(value) == 28 and value.startswith(_HEAD_BASE64):
        try:
            return _TAG.fullmatch(base64.b64decode(value, validate=True).decode("latin-1")) is not None
        except ValueError:
            return False
    return False


def replaced(text: str, mark: str) -> str:
    """The text with each tag in it, plain or as base64, replaced."""
    return _ANY.sub(mark, text) if _HEAD in text or _HEAD_BASE64 in text else text


def _at_offsets(text: str) -> tuple[str, ...]:
    """How a text looks inside base64, whatever stands before it: the letters that only it decides."""
    found = []
    for offset in range(3):
        raw = b"\0" * offset + text.encode()
        encoded = base64.b64encode(raw).decode()
        found.append(encoded[(offset * 8 + 5) // 6 : len(raw) * 8 // 6])
    return tuple(found)


_HEAD_BASE64 = base64.b64encode(_HEAD.encode()).decode()
_ANY = re.compile(rf"{_TAG.pattern}|{re.escape(_HEAD_BASE64)}[A-Za-z0-9+/]{{14}}==")
_ONCE = _at_offsets(_HEAD)
_TWICE = tuple(needle for once in _ONCE for needle in _at_offsets(once))
# All spellings of `**masked:` that a saved file, a shell pipe or a template may have made of it.
# None has a letter that base64url writes otherwise.
_NEEDLES = (
    _HEAD,
    *_ONCE,
    *_TWICE,
    quote(_HEAD, safe=""),
    quote(_HEAD, safe="*"),
    quote(_HEAD, safe=":"),
    r"\u002a\u002amasked:",
    r"\*\*masked:",
)
_FOLDED_NEEDLES = (_HEAD.encode().hex(), quote(_HEAD, safe="").lower(), quote(_HEAD, safe=":").lower())
_SPACE = re.compile(r"\s+")


def holds_tag(text: str) -> bool:
    """
    Whether a tag, or the beginning of one, is anywhere in the text: plain, JSON-escaped,
    URL-encoded, hex, base64 at any offset, that twice, or wrapped into lines.
    """
    if len(text) < len(_HEAD):
        return False
    if _holds(text):
        return True
    return "\n" in text and _holds(_SPACE.sub("", text))


def _holds(text: str) -> bool:
    if any(needle in text for needle in _NEEDLES):
        return True
    folded = text.lower()
    return any(needle in folded for needle in _FOLDED_NEEDLES)
