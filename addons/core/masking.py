"""
Masking: what is secret in a piece of Kubernetes JSON, and the same JSON without it.

Decided by the resource of the URL, never by the `kind` in the body: a body says what it likes,
and a Table or a PartialObjectMetadata of Secrets is full of them. Lists, Tables, watch events and
Status are recognized by their apiVersion and shape; in each of them a Secret stays a Secret.

Of a Secret all is masked but what is listed here; of everything else what its structure shows to
be secret (the last-applied annotation, tokens, environment and arguments under telling names, fields
that rules name) and what detectors find in texts (addons/core/maskdetect.py), which is best effort.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from addons.core import maskdetect, maskfields, maskmessages, maskpolicy, masktags, strict_json
from addons.core.impacts import pointer_steps
from addons.core.maskfields import FieldPath
from addons.core.maskpolicy import MaskLevel
from addons.core.masktags import Place
from addons.core.uses import POD_SPECS

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
MAX_FIELDS = 20  # paths kept for the record
MAX_NESTING = 3  # last-applied annotations within each other; kubectl writes one

_SECRETS = "secrets"
_REVIEWS = frozenset({"tokenreviews.authentication.k8s.io"})
_TOKENS = frozenset({"serviceaccounts/token"})
_CONFIG_MAPS = "configmaps"
# Resources whose validation errors print whole pod templates, environment included.
_WITH_PODS = frozenset(f"{resource}.{group}" if group else resource for group, resource in POD_SPECS)

# What is left of a Secret. Times and numbers are made by the API server and cannot carry text.
_SECRET_TEXTS = frozenset({"apiVersion", "kind", "type"})
_META_TEXTS = frozenset({"name", "namespace", "uid", "resourceVersion"})
_META_TIMES = frozenset({"creationTimestamp", "deletionTimestamp"})
_META_NUMBERS = frozenset({"generation", "deletionGracePeriodSeconds"})
_LIST_META = frozenset({"resourceVersion", "continue", "remainingItemCount", "selfLink"})
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)")
# An informer that waits for the end of the initial events waits for ever without it.
_PLAIN_ANNOTATIONS = {"k8s.io/initial-events-end": "true"}
_DELETE_OPTIONS: Mapping[str, Any] = {
    "propagationPolicy": ("Background", "Foreground", "Orphan"),
    "dryRun": (["All"],),
}
_EVENT_TYPES = ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR")  # tuples: what is looked for may be a list
_TABLES = ("meta.k8s.io/v1", "meta.k8s.io/v1beta1")
# Columns of Kubernetes' own table of Secrets: name, type, number of keys, age.
_SECRET_COLUMNS = ("Name", "Namespace", "Type", "Data", "Age", "Created At")
# How k8s.io/apimachinery's duration.HumanDuration writes an age.
_AGE = re.compile(r"(?:\d{1,9}[smhdy]){1,3}|<unknown>|<invalid>")

_LEAST = 6  # letters; nothing shorter holds a name and a value
# Made by the API server, in the metadata of every object, never of interest. Kept out of the texts for speed.
_DULL = frozenset({"uid", "resourceVersion", "creationTimestamp", "apiVersion", "kind", "managedFields"})
# The same names elsewhere are fields like others, to which a JSON patch can copy a password; only
# what looks as it should is dull there.
_DULL_TEXTS = {
    "uid": re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch,
    "resourceVersion": re.compile(r"[0-9]{1,20}").fullmatch,
    "creationTimestamp": _TIME.fullmatch,
}
ARGUMENTS = frozenset({"args", "command"})
_ARGUMENT = re.compile(r"(?P<name>-{0,2}[A-Za-z0-9][A-Za-z0-9_.-]{0,99})=(?P<value>.*)", re.DOTALL)
_FLAG = re.compile(r"--?[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

_DROP: Any = object()

# Short texts in which nothing was found: most of what a list holds was seen before. Nothing that
# hangs on where a text stands is remembered.
_PLAIN_LENGTH = 128  # letters
_PLAIN_TEXTS = 50_000  # some 10 MB at most
_plain: set[str] = set()


def _remember(text: str) -> None:
    if len(_plain) >= _PLAIN_TEXTS:
        _plain.clear()
    _plain.add(text)


type Node = tuple["Node", str | int] | None


@dataclass(frozen=True, slots=True)
class Masked:
    """What came of it. `content` is the very object that went in when nothing was secret."""

    content: Any
    count: int = 0  # of values masked
    fields: tuple[str, ...] = ()  # the first few paths, for the record: `data.password`

    def __repr__(self) -> str:  # what is left may still be nobody's business
        return f"Masked({self.count}, {self.fields!r})"


def mask(content: Any, place: Place, key: bytes, level: MaskLevel = maskpolicy.EVERYTHING) -> Masked:
    """
    The content of an answer, a watch event or a request's decoded body, masked. Never changes its input.

    `place` is what the URL says (masktags.place_of); names of items come from their metadata.
    A JSON patch (a list of operations) works too.
    """
    if not level.masks or content is None:
        return Masked(content)
    masker = _Masker(place, key, level)
    masker.answer(content, None, place)
    return masker.result(content)


def mask_json(raw: bytes, place: Place, key: bytes, level: MaskLevel = maskpolicy.EVERYTHING) -> tuple[bytes, Masked]:
    """
    The same for JSON text; the very same bytes when nothing is secret.

    Raises strict_json.NotStrictJSON, also for JSON that two readers would read differently: what
    is masked here must be what the client sees.
    """
    if not level.masks:
        return raw, Masked(None)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise strict_json.NotStrictJSON("it is not UTF-8") from None
    try:
        content = strict_json.loads(text, raw, depth=False)
        masked = mask(content, place, key, level)
        if masked.content is content:
            return raw, masked
        end = b"\n" if raw.endswith(b"\n") else b""
        return dumps(masked.content) + end, masked
    except RecursionError:
        raise strict_json.NotStrictJSON("it is nested too deeply") from None


def dumps(content: Any) -> bytes:
    """Compact JSON, UTF-8, as the API server writes it."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def mask_text(text: str, place: Place, key: bytes, level: MaskLevel = maskpolicy.EVERYTHING) -> str:
    """
    A short text beside an object (a Warning header, a URL, a line for people) without the secrets that
    detectors find in it: best effort. For streams there is addons.core.masktext.
    """
    if not level.builtin:
        return text
    return maskdetect.redact(text, lambda secret: masktags.tag(key, place, "text", secret))


def mask_warning(text: str, place: Place, key: bytes, level: MaskLevel = maskpolicy.EVERYTHING) -> str:
    """
    A Warning header (RFC 7234, 5.5). About Secrets and fields of rules only what quotes nothing of an
    object stays; about everything else what detectors do not find.
    """
    if not (level.builtin and place.resource.partition("/")[0] == _SECRETS) and not level.masked:
        return mask_text(text, place, key, level)
    return maskmessages.plain_warnings(text, lambda quoted: masktags.tag(key, place, "warning", quoted))


def secret_values(content: Any, place: Place) -> list[bytes]:
    """The decoded values in the `data` and `stringData` of Secrets (object, list, Table, event): for Known.learn."""
    if place.resource.partition("/")[0] != _SECRETS:
        return []
    found: list[bytes] = []
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
            continue
        if not isinstance(value, dict):
            continue
        for field in ("data", "stringData"):
            values = value.get(field)
            for text in values.values() if isinstance(values, dict) else ():
                if isinstance(text, str) and not masktags.is_tag(text):
                    found.append(_decoded(text) if field == "data" else text.encode("utf-8", "surrogatepass"))
        waiting += [value[field] for field in ("items", "rows", "object") if field in value]
    return found


class _Masker:
    """Walks one content, notes what has to change, and builds the changed copy at the end."""

    def __init__(self, place: Place, key: bytes, level: MaskLevel, nesting: int = 0) -> None:
        self._key = key
        self._level = level
        self._nesting = nesting
        resource = place.resource
        self._of_secrets = resource.partition("/")[0] == _SECRETS
        self._is_secret = level.builtin and self._of_secrets
        self._is_config_map = resource == _CONFIG_MAPS
        self._is_scale = resource.endswith("/scale")
        self._has_token = resource in _TOKENS
        self._is_review = resource in _REVIEWS
        self._strict_status = (
            self._is_secret
            or bool(level.masked)
            or (level.builtin and (self._has_token or self._is_review or resource.partition("/")[0] in _WITH_PODS))
        )
        self._changes: dict[Any, Any] = {}  # a tree of keys, with values at its ends
        self._texts: list[tuple[str, Node, str, Place]] = []  # to be looked at by the detectors, all at once
        self._count = 0
        self._fields: list[str] = []

    def result(self, content: Any) -> Masked:
        self._detect()
        if not self._changes:
            return Masked(content)
        if None in self._changes:  # the content is one value
            return Masked(self._changes[None], self._count, tuple(self._fields))
        return Masked(_rebuilt(content, self._changes), self._count, tuple(self._fields))

    # What has to change

    def _set(self, node: Node, value: Any, *, counts: bool = True) -> None:
        place = _place(node) or (None,)
        at = self._changes
        for step in place[:-1]:
            at = at.setdefault(step, {})
            if not isinstance(at, dict):
                return
        if place[-1] in at:
            return  # masked already, and as a whole: nothing may put parts of it back
        at[place[-1]] = value
        if counts:
            self._count += 1
            if len(self._fields) < MAX_FIELDS:
                self._fields.append(maskfields.written(_inner(_place(node))))

    def _is_shown(self, path: maskfields.Steps) -> bool:
        """A rule shows it all the same, and none masks it."""
        return any(maskfields.is_under(shown, path) for shown in self._level.shown) and not any(
            maskfields.is_under(masked, path) for masked in self._level.masked
        )

    def _tag(self, place: Place, path: maskfields.Steps, value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        return masktags.tag(self._key, place, maskfields.written(path), text)

    def _blank(self, value: Any, node: Node, place: Place, path: maskfields.Steps, *, rule: bool = False) -> None:
        """All that is in it, whatever it is; unless a rule says it true, false and null are no secrets."""
        if isinstance(value, dict):
            for key, inner in value.items():
                self._blank(inner, (node, key), place, (*path, key), rule=rule)
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                self._blank(inner, (node, number), place, (*path, number), rule=rule)
        elif value is None or (isinstance(value, bool) and not rule):
            return
        elif not _is_tag(value) and (rule or not self._is_shown(path)):
            self._set(node, self._tag(place, path, value))

    # Shapes of answers

    def answer(self, content: Any, node: Node, place: Place) -> None:
        if isinstance(content, list):
            self._json_patch(content, node, place)
            return
        if not isinstance(content, dict):
            self._blank(content, node, place, ())
            return
        # Whatever it looks like: a custom resource may look like a list, or call itself a Status.
        self._rules(content, node, place)
        if content.get("type") in _EVENT_TYPES and "object" in content and "metadata" not in content:
            self.answer_or_nothing(content["object"], (node, "object"), place)
            self._rest(content, node, place, {"type", "object"})
        elif content.get("kind") == "Status" and content.get("apiVersion") == "v1":
            self._status(content, node, place)
        elif content.get("kind") == "Table" and content.get("apiVersion") in _TABLES:
            self._table(content, node, place)
        elif isinstance(content.get("items"), list) and (self._is_secret or _is_nameless(content)):
            self._list(content, node, place)
        else:
            self.object(content, node, place.of(content.get("metadata")))

    def answer_or_nothing(self, content: Any, node: Node, place: Place) -> None:
        if isinstance(content, dict):
            self.answer(content, node, place)
        elif content is not None:
            self._blank(content, node, place, ())

    def _rest(self, content: dict[str, Any], node: Node, place: Place, known: Iterable[str]) -> None:
        """Fields that an envelope does not have: nothing of a Secret may hide there."""
        for key in content.keys() - set(known):
            if self._is_secret:
                self._blank(content[key], (node, key), place, (key,))
            else:
                self._walk(content[key], (node, key), key, place)

    def _list(self, content: dict[str, Any], node: Node, place: Place) -> None:
        for number, item in enumerate(content["items"]):
            here: Node = ((node, "items"), number)
            if isinstance(item, dict):
                self.object(item, here, place.of(item.get("metadata")))
            else:
                self._blank(item, here, place, ("items", number))
        self._list_metadata(content.get("metadata"), (node, "metadata"), place)
        self._rest(content, node, place, {"kind", "apiVersion", "metadata", "items"})

    def _list_metadata(self, metadata: Any, node: Node, place: Place) -> None:
        if isinstance(metadata, dict) and metadata.keys() <= _LIST_META:
            return
        if metadata is not None and self._is_secret:
            self._secret_metadata(metadata, node, place)

    def _table(self, content: dict[str, Any], node: Node, place: Place) -> None:
        definitions = content.get("columnDefinitions")
        names = [
            column.get("name") if isinstance(column, dict) else None
            for column in (definitions if isinstance(definitions, list) else ())
        ]
        rows = content.get("rows")
        for number, row in enumerate(rows if isinstance(rows, list) else ()):
            here: Node = ((node, "rows"), number)
            if not isinstance(row, dict):
                self._blank(row, here, place, ("rows", number))
                continue
            shown = row.get("object")
            metadata = shown.get("metadata") if isinstance(shown, dict) else None
            of = place.of(metadata)
            self._cells(row.get("cells"), (here, "cells"), of, names)
            if isinstance(shown, dict):
                self.object(shown, (here, "object"), of)
            elif shown is not None:
                self._blank(shown, (here, "object"), of, ("object",))
            self._rest(row, here, of, {"cells", "object"})
        self._list_metadata(content.get("metadata"), (node, "metadata"), place)
        self._rest(content, node, place, {"kind", "apiVersion", "metadata", "columnDefinitions", "rows"})

    def _cells(self, cells: Any, node: Node, place: Place, names: list[Any]) -> None:
        for number, cell in enumerate(cells if isinstance(cells, list) else ()):
            column = names[number] if number < len(names) else None
            here: Node = (node, number)
            if self._is_secret:
                if column not in _SECRET_COLUMNS:
                    self._blank(cell, here, place, ("cells", str(column)))
            elif self._level.masked:
                # A printer column may show any field, and the answer does not say which: a column named
                # `Ready` may print the password, and so may a second column named `Age`.
                if not _is_own_cell(number, column, cell, place):
                    self._blank(cell, here, place, ("cells", str(column)), rule=True)
            elif column == "Age" and isinstance(cell, str) and maskdetect.is_random(cell):
                self._blank(cell, here, place, ("cells", str(column)))
            elif isinstance(cell, str):
                self._text(cell, here, place, str(column))
        if cells is not None and not isinstance(cells, list):
            self._blank(cells, node, place, ("cells",))

    def _status(self, content: dict[str, Any], node: Node, place: Place) -> None:
        self._message(content.get("message"), (node, "message"), place)
        details = content.get("details")
        known = {"kind", "apiVersion", "metadata", "status", "message", "reason", "details", "code"}
        if isinstance(details, dict):
            causes = details.get("causes")
            for number, cause in enumerate(causes if isinstance(causes, list) else ()):
                here: Node = (((node, "details"), "causes"), number)
                if isinstance(cause, dict):
                    self._message(cause.get("message"), (here, "message"), place)
                    self._rest(cause, here, place, {"reason", "message", "field"})
                else:
                    self._blank(cause, here, place, ("causes", number))
            self._rest(
                details, (node, "details"), place, {"name", "group", "kind", "uid", "causes", "retryAfterSeconds"}
            )
        elif details is not None:
            self._blank(details, (node, "details"), place, ("details",))
        self._rest(content, node, place, known)

    def _message(self, message: Any, node: Node, place: Place) -> None:
        if not isinstance(message, str):
            self._blank(message, node, place, ("message",))
            return
        plain = len(message)
        if self._strict_status:
            plain = maskmessages.plain_part(message, strict=self._is_secret or bool(self._level.masked))
        if plain == len(message) or masktags.is_tag(message[plain:]):
            self._text(message, node, place, "message")
            return
        # What stands before may quote as well.
        before = maskdetect.redact(message[:plain], lambda secret: self._tag(place, ("message",), secret))
        self._set(node, before + self._tag(place, ("message",), message[plain:]))

    # Objects

    def object(self, content: dict[str, Any], node: Node, place: Place) -> None:
        if self._is_secret:
            self._secret(content, node, place)
            return
        self._rules(content, node, place)
        if not self._level.builtin:
            self._annotations(content, node, place)
            return
        if self._has_token:
            self._credential(content, node, place, "status")
        elif self._is_review:
            self._credential(content, node, place, "spec")
        for key, value in content.items():
            if key == "metadata" and isinstance(value, dict):
                self._metadata(value, (node, key), place)
            elif self._is_config_map and key in ("data", "binaryData"):
                self._config(value, (node, key), place, key)
            else:
                self._walk(value, (node, key), key, place)

    def _rules(self, content: dict[str, Any], node: Node, place: Place) -> None:
        if not self._level.masked:
            return
        metadata = content.get("metadata")
        if isinstance(metadata, dict) and "managedFields" in metadata:
            # Sets keep their values in there (`v:"…"`), and its times tell a right guess.
            self._set(((node, "metadata"), "managedFields"), _DROP, counts=False)
        for path in self._level.masked:
            self._field(content, path, node, place)
        status = content.get("status")
        if self._is_scale and isinstance(status, dict) and "selector" in status:
            # The definition may take it from any text of the object (labelSelectorPath).
            self._blank(status["selector"], ((node, "status"), "selector"), place, ("status", "selector"), rule=True)

    def _field(self, content: dict[str, Any], path: FieldPath, node: Node, place: Place) -> None:
        """A field of a rule, with all below it."""
        for steps, value in maskfields.find(content, path):
            if self._is_bytes(steps) and isinstance(value, dict):
                for name, text in value.items():
                    self._secret_value(text, (_below(node, steps), name), place, name, encoded=True)
            elif self._is_bytes(steps[:-1]):
                self._secret_value(value, _below(node, steps), place, str(steps[-1]), encoded=True)
            else:
                self._blank(value, _below(node, steps), place, steps, rule=True)
        if self._of_secrets and path.steps[0] == "data":
            # How it is written, as the last-applied annotation shows.
            self._field(content, FieldPath(path.text, ("stringData", *path.steps[1:])), node, place)

    def _is_bytes(self, steps: maskfields.Steps) -> bool:
        """A map of base64: clients decode it, so what stands there must be some, too."""
        return (self._of_secrets and steps == ("data",)) or (self._is_config_map and steps == ("binaryData",))

    def _credential(self, content: dict[str, Any], node: Node, place: Place, field: str) -> None:
        holder = content.get(field)
        if isinstance(holder, dict) and "token" in holder:
            self._blank(holder["token"], ((node, field), "token"), place, (field, "token"))

    def _metadata(self, metadata: dict[str, Any], node: Node, place: Place) -> None:
        for key, value in metadata.items():
            if key == "annotations" and isinstance(value, dict):
                for name, text in value.items():
                    here: Node = ((node, key), name)
                    if name == LAST_APPLIED:
                        self._last_applied(text, here, place)
                    else:
                        self._walk(text, here, name, place)
            elif key not in _DULL:
                self._walk(value, (node, key), key, place)

    def _annotations(self, content: dict[str, Any], node: Node, place: Place) -> None:
        """Only fields of rules are masked; the last-applied annotation repeats them."""
        metadata = content.get("metadata")
        annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
        if isinstance(annotations, dict) and LAST_APPLIED in annotations:
            here: Node = (((node, "metadata"), "annotations"), LAST_APPLIED)
            self._last_applied(annotations[LAST_APPLIED], here, place)

    def _last_applied(self, text: Any, node: Node, place: Place) -> None:
        """The object as it was applied, as JSON in a string: masked inside, so that kubectl apply still reads it."""
        path = ("metadata", "annotations", LAST_APPLIED)
        if not isinstance(text, str) or masktags.is_tag(text):
            self._blank(text, node, place, path)
            return
        if self._nesting >= MAX_NESTING:
            self._set(node, self._tag(place, path, text))
            return
        try:
            content = strict_json.loads(text, text.encode())
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            # direction: what cannot be read may be anything.
            self._set(node, self._tag(place, path, text))
            return
        inner = _Masker(place, self._key, self._level, self._nesting + 1)
        inner.object(content, None, place)
        masked = inner.result(content)
        if masked.content is content:
            return
        end = "\n" if text.endswith("\n") else ""
        self._set(node, dumps(masked.content).decode() + end, counts=False)
        self._count += masked.count
        self._fields += masked.fields[: MAX_FIELDS - len(self._fields)]

    # Secrets

    def _secret(self, content: dict[str, Any], node: Node, place: Place) -> None:
        for key, value in content.items():
            here: Node = (node, key)
            if key in _SECRET_TEXTS and isinstance(value, str):
                continue
            if key == "metadata":
                self._secret_metadata(value, here, place)
            elif key in ("data", "stringData") and isinstance(value, dict):
                for name, text in value.items():
                    self._secret_value(text, (here, name), place, name, encoded=key == "data")
            elif not _is_delete_option(key, value):
                self._blank(value, here, place, (key,))

    def _secret_value(self, value: Any, node: Node, place: Place, name: str, *, encoded: bool) -> None:
        path = ("data", name)  # of both: stringData is how data is written
        if not isinstance(value, str):
            self._blank(value, node, place, path)
        elif not masktags.is_tag(value) and not self._is_shown(path):
            plain = _decoded(value) if encoded else value.encode("utf-8", "surrogatepass")
            make = masktags.base64_tag if encoded else masktags.tag
            self._set(node, make(self._key, place, maskfields.written(path), plain.decode("latin-1")))

    def _secret_metadata(self, metadata: Any, node: Node, place: Place) -> None:
        if not isinstance(metadata, dict):
            self._blank(metadata, node, place, ("metadata",))
            return
        for key, value in metadata.items():
            here: Node = (node, key)
            if key == "managedFields":
                self._set(here, _DROP, counts=False)
            elif (
                (key in _META_TEXTS and isinstance(value, str))
                or (key in _META_NUMBERS and isinstance(value, int))
                or (key in _META_TIMES and isinstance(value, str) and _TIME.fullmatch(value))
                or (key == "labels" and _is_labels(value))
            ):
                continue
            elif key == "annotations" and isinstance(value, dict):
                for name, text in value.items():
                    if name == LAST_APPLIED:
                        self._last_applied(text, (here, name), place)
                    elif _PLAIN_ANNOTATIONS.get(name) != text or not isinstance(text, str):
                        self._blank(text, (here, name), place, ("metadata", "annotations", name))
            else:
                self._blank(value, here, place, ("metadata", key))

    # Everything else

    def _config(self, data: Any, node: Node, place: Place, field: str) -> None:
        if not isinstance(data, dict):
            self._walk(data, node, field, place)
            return
        for name, value in data.items():
            here: Node = (node, name)
            if not isinstance(value, str):
                self._walk(value, here, name, place)
            elif field == "binaryData":
                plain = _decoded(value)
                text = plain.decode("latin-1")
                if masktags.is_tag(value) or self._is_shown((field, name)):
                    continue
                if maskdetect.is_secret(name, text) or maskdetect.spans(text):
                    self._set(here, masktags.base64_tag(self._key, place, maskfields.written((field, name)), text))
            else:
                self._named(name, value, here, place)

    def _named(self, name: str, value: str, node: Node, place: Place) -> None:
        """A value with a name: environment, headers, a ConfigMap's data."""
        if self._level.builtin and maskdetect.is_secret(name, value):
            path = _inner(_place(node))
            if not self._is_shown(path):
                self._set(node, self._tag(place, path, value))
        else:
            self._text(value, node, place, name)

    def _text(self, value: str, node: Node, place: Place, name: str) -> None:
        if len(value) < _LEAST or not self._level.builtin:
            return
        if value not in _plain or maskdetect.is_secret_name(name):
            self._texts.append((value, node, name, place))

    def _walk(self, value: Any, node: Node, key: str, place: Place) -> None:
        """Everything that is in an object, in its order. (JSON's own types, compared as such: this is the hot loop.)"""
        if not self._level.builtin:
            return
        kind = value.__class__
        if kind is str:
            self._text(value, node, place, key)
        elif kind is dict:
            name = value.get("name")
            for inner, item in value.items():
                kind = item.__class__
                if kind is str:
                    if inner == "value" and isinstance(name, str):
                        self._named(name, item, (node, inner), place)
                    elif inner not in _DULL_TEXTS or not _DULL_TEXTS[inner](item):
                        self._text(item, (node, inner), place, inner)
                elif (kind is dict or kind is list) and item:
                    self._walk(item, (node, inner), inner, place)
        elif kind is list:
            if key in ARGUMENTS:
                self._arguments(value, node, place)
                return
            for number, item in enumerate(value):
                self._walk(item, (node, number), key, place)

    def _arguments(self, arguments: list[Any], node: Node, place: Place) -> None:
        name = ""  # of the flag before, when that is all it was
        for number, argument in enumerate(arguments):
            here: Node = (node, number)
            if not isinstance(argument, str):
                self._walk(argument, here, "", place)
                name = ""
                continue
            path = _inner(_place(here))
            found = _ARGUMENT.fullmatch(argument)
            if name and maskdetect.is_secret(name, argument) and not _FLAG.fullmatch(argument):
                if not self._is_shown(path):
                    self._set(here, self._tag(place, path, argument))
            elif found and maskdetect.is_secret(found["name"], found["value"]):
                if not self._is_shown(path):
                    self._set(here, f"{found['name']}={self._tag(place, path, found['value'])}")
            else:
                self._text(argument, here, place, "")
            name = argument if _FLAG.fullmatch(argument) else ""

    def _detect(self) -> None:
        """All texts at once: one run of the automaton."""
        if not self._texts:
            return
        texts, self._texts = self._texts, []
        for (text, node, name, place), found in zip(texts, maskdetect.spans_of([t[0] for t in texts]), strict=True):
            if not found:
                if len(text) <= _PLAIN_LENGTH:
                    _remember(text)
                # A key of a custom resource, an annotation: by its name only when it looks like a secret, too.
                rest = masktags.replaced(text, "")  # what was masked before is no secret any more
                if maskdetect.is_secret_name(name) and maskdetect.is_random(rest) and maskdetect.is_value(text):
                    found = [(0, len(text))]
                else:
                    continue
            path = _inner(_place(node))
            if not self._is_shown(path):
                self._set(node, maskdetect.redact(text, partial(self._tag, place, path), found))

    # JSON patches

    def _json_patch(self, operations: list[Any], node: Node, place: Place) -> None:
        """The value of each operation, masked as what it would become in the object."""
        for number, operation in enumerate(operations):
            here: Node = (node, number)
            if not isinstance(operation, dict):
                self._blank(operation, here, place, ("patch", number))
                continue
            self._rest(operation, here, place, {"op", "path", "from", "value"})
            if "value" not in operation:
                continue
            value, steps = operation["value"], pointer_steps(operation.get("path"))
            at: Node = (here, "value")
            if hides_name(steps):
                # `env/0/value`, `args/1`: the name that would tell is not in the patch.
                self._blank(value, at, place, steps)
                continue
            inner = _Masker(place, self._key, self._level, self._nesting)
            whole = _wrapped(value, steps)
            if not isinstance(whole, dict):
                self._blank(value, at, place, steps)
                continue
            inner.object(whole, None, place)
            masked = inner.result(whole)
            if masked.content is not whole:
                self._set(at, _unwrapped(masked.content, steps), counts=False)
                self._count += masked.count
                self._fields += masked.fields[: MAX_FIELDS - len(self._fields)]


def hides_name(steps: tuple[str, ...]) -> bool:
    """Whether a JSON pointer is at an item of a list whose meaning hangs on what stands beside it."""
    for number, step in enumerate(steps[:-1]):
        if step in ARGUMENTS and maskfields.is_index(steps[number + 1]):
            return True
    return len(steps) >= 2 and steps[-1] == "value" and maskfields.is_index(steps[-2])


def _wrapped(value: Any, steps: tuple[str, ...]) -> Any:
    for step in reversed(steps):
        value = [value] if maskfields.is_index(step) else {step: value}
    return value


def _unwrapped(value: Any, steps: tuple[str, ...]) -> Any:
    for step in steps:
        value = value[0] if maskfields.is_index(step) else value[step]
    return value


def _place(node: Node) -> maskfields.Steps:
    steps: list[str | int] = []
    while node is not None:
        node, step = node
        steps.append(step)
    return tuple(reversed(steps))


def _below(node: Node, steps: maskfields.Steps) -> Node:
    for step in steps:
        node = (node, step)
    return node


def _inner(place: maskfields.Steps) -> maskfields.Steps:
    """The place inside its object: a field is the same one in a list, a Table, an event and alone."""
    at = 0
    if place[:1] == ("object",):
        at = 1
    while len(place) > at + 1 and place[at] in ("items", "rows") and isinstance(place[at + 1], int):
        at += 2
        if place[at : at + 1] == ("object",):
            at += 1
    return place[at:] if at else place


def _rebuilt(content: Any, changes: dict[Any, Any]) -> Any:
    """A copy along the changed paths; all else is shared."""
    copy = dict(content) if isinstance(content, dict) else list(content)
    for key, change in changes.items():
        if change is _DROP:
            del copy[key]
        elif isinstance(change, dict):
            copy[key] = _rebuilt(copy[key], change)
        else:
            copy[key] = change
    return copy


def _is_tag(value: Any) -> bool:
    return isinstance(value, str) and masktags.is_tag(value)


def _is_own_cell(number: int, column: Any, cell: Any, place: Place) -> bool:
    """Whether a cell is what the server itself writes: the object's name and namespace, and its age."""
    if column == "Name":
        return number == 0 or cell == place.name
    if column == "Namespace":
        return bool(cell == place.namespace)
    return (
        column in ("Age", "Created At")
        and isinstance(cell, str)
        and bool(_AGE.fullmatch(cell) or _TIME.fullmatch(cell))
    )


def _is_delete_option(key: str, value: Any) -> bool:
    """The body of a DELETE is one of these, and no Secret."""
    if key == "preconditions":
        return isinstance(value, dict) and value.keys() <= {"uid", "resourceVersion"}
    return value in _DELETE_OPTIONS.get(key, ()) or (key == "gracePeriodSeconds" and isinstance(value, int))


def _is_nameless(content: dict[str, Any]) -> bool:
    """A list has no name, whatever its kind (a CRD chooses it); an object that has items of its own has one."""
    metadata = content.get("metadata")
    return not (isinstance(metadata, dict) and "name" in metadata)


def _is_labels(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(label, str) for label in value.values())


def _decoded(text: str) -> bytes:
    """What base64 stands for; the text itself when it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return text.encode("utf-8", "surrogatepass")
