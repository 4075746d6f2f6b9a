"""
Approvals, AccessRequests, grants and revocations as the store keeps them: JSON of the dataclasses,
checked on the way back.

Read strictly: a field of the wrong type, an unknown phase, a field nobody here knows, and the
entry is `Damaged`. A field that only a newer version writes is refused, not dropped: it may
hold a condition ("needs a second factor"), and the next change made here would lose it for
good. A field that an older version did not write yet has its default.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from addons.core.approvals import Grant, Record
from addons.core.revocations import Revocation

type Entry = Record | Grant | Revocation

_PLACE = re.compile(r" - at `\$\.?([^`]+)`\Z")


class Damaged(Exception):
    """What is stored cannot be read, or an entry cannot be stored; a part of a sentence, without values."""


def _plain(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return dict(value)  # model.NOTHING
    raise TypeError(type(value).__name__)


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_record = msgspec.json.Decoder(Record)
_grant = msgspec.json.Decoder(Grant)
_revocation = msgspec.json.Decoder(Revocation)
_decoders: Mapping[type[Entry], "msgspec.json.Decoder[Any]"] = {
    Record: _record,
    Grant: _grant,
    Revocation: _revocation,
}


def encode(entry: Entry) -> bytes:
    """JSON in UTF-8, the same bytes for the same values. Raises Damaged."""
    try:
        data = _encoder.encode(entry)
    except UnicodeEncodeError:
        raise Damaged("it holds text that is no Unicode") from None
    except (TypeError, ValueError, OverflowError) as e:
        raise Damaged(f"it cannot be written ({type(e).__name__})") from None
    # A float that is no number is written as null: found here, not after a restart.
    _read(_decoders[type(entry)], data)
    return data


def record(data: bytes) -> Record:
    """Raises Damaged."""
    found: Record = _checked(_record, data)
    return found


def grant(data: bytes) -> Grant:
    """Raises Damaged."""
    found: Grant = _checked(_grant, data)
    return found


def revocation(data: bytes) -> Revocation:
    """Raises Damaged."""
    found: Revocation = _checked(_revocation, data)
    if not found.target:
        raise Damaged("it does not say whom it refuses")
    return found


def _read(decoder: "msgspec.json.Decoder[Any]", data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as e:
        # Of the message only the place ("… - at `$.phase`"): the rest may quote a value.
        place = _PLACE.search(str(e))
        raise Damaged(f"it is not as expected at {place.group(1) if place else 'the top'}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Damaged("it is not JSON") from None


def _checked(decoder: "msgspec.json.Decoder[Any]", data: bytes) -> Any:
    found = _read(decoder, data)
    again = _encoder.encode(found)
    if again != data and not _within(msgspec.json.decode(data), msgspec.json.decode(again)):
        raise Damaged("it was written by a newer version of Tollgate")
    return found


def _within(stored: Any, known: Any) -> bool:
    """Whether everything stored was understood: `known` may have more, its defaults."""
    if isinstance(stored, dict) and isinstance(known, dict):
        return all(key in known and _within(value, known[key]) for key, value in stored.items())
    if isinstance(stored, list) and isinstance(known, list):
        return len(stored) == len(known) and all(map(_within, stored, known))
    return bool(stored == known)
