"""
What approvers are shown of an object's versions: all that is secret masked, and where it changes
told as a change.

Requesters read their own approvals too. So there are no tags here, which could be compared with those
in an answer; and a field that the request itself sets is a change whatever its value was, or to ask
for approval would tell whether a guess is right.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from addons.core import maskdetect, maskfields, masking, maskpolicy, masktags, maskwrites
from addons.core.maskpolicy import MaskLevel
from addons.core.masktags import Place
from addons.core.model import Operation

type Mask = Callable[..., tuple[Any, ...]]

MASKED = "**masked**"
CHANGES = f"{MASKED} (changes)"

_ABSENT = object()
_NO_KEY = bytes(masktags.MIN_KEY)  # its tags are compared with each other, and go nowhere


def everything(resource: str, *versions: Any) -> tuple[Any, ...]:
    """
    An object's versions (of the full resource in the URL), oldest first. Without a resource they are
    texts: a name, a note, or the words of one command line. What is given is left as it is.
    """
    return _shown(Place(resource), maskpolicy.EVERYTHING, (), resource, versions)


def of(operation: Operation, level: MaskLevel) -> Mask:
    """The same for one operation, with the fields that rules mask. level: the policies' `record_level`."""
    fields = maskwrites.sets_masked_field(operation, replace(level, free_writes=False))

    def mask(resource: str, *versions: Any) -> tuple[Any, ...]:
        return _shown(masktags.place_of(operation.info), level, fields, resource, versions)

    return mask


def _shown(
    place: Place, level: MaskLevel, fields: Sequence[str], resource: str, versions: Sequence[Any]
) -> tuple[Any, ...]:
    if not resource:
        return words(versions)
    place = replace(place, resource=resource)
    is_secret = resource.partition("/")[0] == "secrets"
    found: list[Any] = []
    before: Any = _ABSENT
    for version in versions:
        # One place for all: the tag of a value that stays must stay, also where an object is made anew.
        content = masking.mask(_without_uid(version), place, _NO_KEY, level).content
        told = _Told(fields, all_of_them=bool(fields) and (not is_secret or len(fields) >= maskwrites.MAX_FOUND))
        found.append(_with_uid(_marked(content, before, (), told), version))
        before = content
    return tuple(found)


def words(argv: Sequence[Any]) -> tuple[str, ...]:
    """The words of a command line, each flag seen beside its value; a single text is one word."""
    texts = [str(word) for word in argv]
    masked = masking.mask({"args": texts}, Place("text"), _NO_KEY).content["args"] if len(texts) > 1 else texts
    return tuple(masktags.replaced(maskdetect.redact(text, lambda _: MASKED), MASKED) for text in masked)


class _Told:
    """The places that are told as changes, whatever they hold."""

    def __init__(self, fields: Sequence[str], *, all_of_them: bool) -> None:
        self._fields = tuple(fields)
        self._all = all_of_them

    def covers(self, path: maskfields.Steps) -> bool:
        if self._all:
            return True
        written = maskfields.written(path)
        return any(written == field or written.startswith((f"{field}.", f"{field}[")) for field in self._fields)


def _marked(value: Any, before: Any, path: maskfields.Steps, told: _Told) -> Any:
    if isinstance(value, dict):
        return {key: _marked(one, _get(before, key), (*path, key), told) for key, one in value.items()}
    if isinstance(value, list):
        return [_marked(one, _at(before, number), (*path, number), told) for number, one in enumerate(value)]
    if not isinstance(value, str):
        return value
    if before is _ABSENT:
        return masktags.replaced(value, MASKED)
    return masktags.replaced(value, CHANGES if told.covers(path) or before != value else MASKED)


def _get(value: Any, key: str) -> Any:
    return value.get(key, _ABSENT) if isinstance(value, dict) else _ABSENT


def _at(value: Any, number: int) -> Any:
    return value[number] if isinstance(value, list) and number < len(value) else _ABSENT


def _without_uid(version: Any) -> Any:
    metadata = version.get("metadata") if isinstance(version, dict) else None
    if not isinstance(metadata, dict) or "uid" not in metadata:
        return version
    return {**version, "metadata": {key: value for key, value in metadata.items() if key != "uid"}}


def _with_uid(shown: Any, version: Any) -> Any:
    metadata = version.get("metadata") if isinstance(version, dict) else None
    if not isinstance(metadata, dict) or "uid" not in metadata:
        return shown
    return {**shown, "metadata": {"uid": metadata["uid"], **shown["metadata"]}}
