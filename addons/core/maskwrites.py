"""
Writes: masked values that come back, and writes that are reads.

Tried on the real API server, all with `dryRun=All`: a JSON patch `copy` returns a Secret's value in
an annotation, `move` in an error message, `test` answers a guess; an apply conflicts on a wrong
guess only, and an unchanged resourceVersion tells a right one. So what a client may not see it may
not make the API server compare or carry either.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from addons.core import maskdetect, maskfields, masking, masktags, resources, uses
from addons.core.impacts import pointer_steps
from addons.core.maskpolicy import MaskLevel
from addons.core.model import Operation, RequestInfo
from addons.core.status import Refusal

MAX_FOUND = 10
_NO_KEY = bytes(masktags.MIN_KEY)  # to look whether something would be masked; its tags are thrown away

_WRITES = frozenset({"create", "update", "patch"})
_READS = frozenset({"get", "list", "watch", "deletecollection"})

# What is never masked of a Secret, as far as a write may touch it.
_FREE_SECRET_FIELDS = frozenset({"apiVersion", "kind", "type"})
_FREE_SECRET_META = frozenset({"name", "namespace", "uid", "resourceVersion", "labels", "creationTimestamp"})

_ANNOTATIONS = ("metadata", "annotations")
_LAST_APPLIED = (*_ANNOTATIONS, masking.LAST_APPLIED)
# In every container of a pod spec: what may hold a secret in clear.
_IN_CONTAINER = ("env", "args", "command", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle")
_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")


# Masked values that come back


def masked_values_in(body: Any) -> tuple[str, ...]:
    """
    Field paths of a decoded body that hold a tag in any form: as a value or key, encoded, inside
    JSON or YAML in a string. At most the first ten.
    """
    found: list[str] = []
    for place, text in _strings(body):
        if masktags.holds_tag(text):
            found.append(maskfields.written(place))
            if len(found) >= MAX_FOUND:
                break
    return tuple(found)


def comes_back(operation: Operation) -> Refusal | None:
    """A masked value in what the operation writes would overwrite the real one: refused, for everybody."""
    if operation.info.verb not in _WRITES or operation.body is None:
        return None
    fields = masked_values_in(operation.body)
    if not fields:
        return None
    return Refusal(
        403,
        "masked-value",
        f"mask: {_some(fields)} holds a masked value (**masked:…**), which would overwrite the real one. "
        "Leave that field out: kubectl patch or kubectl label with the fields you mean to change works; "
        "to set a new value, write it in full.",
    )


def _strings(value: Any) -> Iterator[tuple[maskfields.Steps, str]]:
    """Every string, keys included, with its place. Without recursion: a body may be as deep as it likes."""
    waiting: list[tuple[maskfields.Steps, Any]] = [((), value)]
    while waiting:
        place, content = waiting.pop()
        if isinstance(content, str):
            yield place, content
        elif isinstance(content, dict):
            for key, inner in reversed(content.items()):
                waiting.append(((*place, key), inner))
                waiting.append(((*place, "(key)"), key))
        elif isinstance(content, list):
            waiting += [((*place, number), inner) for number, inner in reversed(list(enumerate(content)))]


# Reads by writing


def reads_back(operation: Operation, level: MaskLevel) -> Refusal | None:
    """
    A JSON patch that copies, moves or tests what this client may not see, an ancestor of it, or
    changes the name beside it; a selector that compares it.
    """
    if not level.masks:
        return None
    info = operation.info
    if info.verb in _READS:
        return _selector(info, level)
    if info.verb != "patch" or not isinstance(operation.body, list):
        return None
    for step in operation.body:
        pointer = _read_by(step, info, level)
        if pointer is not None:
            return Refusal(
                403,
                "masked-read",
                f"mask: a JSON patch {step.get('op')} of {pointer or 'the whole object'} would show a masked field. "
                "Send a merge patch, or a JSON patch with add and replace of the fields you mean to change.",
            )
    return None


def _read_by(step: Any, info: RequestInfo, level: MaskLevel) -> str | None:
    """The pointer by which an operation of a JSON patch reads something masked."""
    if not isinstance(step, dict):
        return None
    kind = step.get("op")
    if kind in ("copy", "move"):
        read = step.get("from")
        if is_masked(pointer_steps(read), info, level) or _loses_names(pointer_steps(read), info, level):
            return str(read)
    if kind == "test" and (is_masked(pointer_steps(step.get("path")), info, level) or _asks(step, info, level)):
        return str(step.get("path"))
    # A value keeps its place and gets a name under which nobody would mask it.
    written = step.get("path")
    if kind != "test" and level.builtin and renames(pointer_steps(written), info):
        return str(written)
    return None


def _loses_names(steps: Sequence[str], info: RequestInfo, level: MaskLevel) -> bool:
    """
    Whether a copy from here may lose what tells that it is secret: in a custom resource an item of a list
    that gets another name next, an argument whose flag goes, a value without the name beside it.
    """
    if not steps or not level.builtin or not _is_custom(info) or _is_shown(steps, level):
        return False
    return maskfields.is_index(steps[-1]) or steps[-1] == "value" or steps[-1] in masking.ARGUMENTS


def _asks(step: Mapping[str, Any], info: RequestInfo, level: MaskLevel) -> bool:
    """Whether a test compares what would be masked: a guess that is right has the stored value's shape."""
    if not level.builtin:
        return False
    as_written = {"op": "add", "path": step.get("path"), "value": step.get("value")}
    return _holds_masked(as_written, info, level) or _is_nameless(as_written)


def _is_nameless(step: Mapping[str, Any]) -> bool:
    """Whether an operation brings a random value whose name stands beside it in the object only."""
    value = step.get("value")
    return pointer_steps(step.get("path"))[-1:] == ("value",) and isinstance(value, str) and maskdetect.is_random(value)


def _holds_masked(step: Mapping[str, Any], info: RequestInfo, level: MaskLevel) -> bool:
    """Whether anything of what an operation of a JSON patch brings would be masked at its place."""
    steps = pointer_steps(step.get("path"))
    if step.get("op") == "add" and steps[-1:] == ("-",) and steps[-2:-1] in (("args",), ("command",)):
        # One more argument is compared with none that is there, and its flag would stand before it.
        spec = uses.POD_SPECS.get((info.api_group, info.resource))
        if spec is not None and _is_in_container(spec, steps):
            content = {steps[-2]: [step.get("value")]}
            return bool(masking.mask(content, masktags.place_of(info), _NO_KEY, MaskLevel(shown=level.shown)).count)
    return bool(masking.mask([step], masktags.place_of(info), _NO_KEY, MaskLevel(shown=level.shown)).count)


def _selector(info: RequestInfo, level: MaskLevel) -> Refusal | None:
    """A field selector answers whether a field has a value."""
    for field in selected_fields(info.field_selector):
        steps = tuple(field.split("."))
        told = level.builtin and not _is_shown(steps, level) and maskdetect.is_secret_name(steps[-1])
        if steps[0] != "metadata" and (told or any(maskfields.touches(path, steps) for path in level.masked)):
            return Refusal(
                403,
                "masked-selector",
                f"mask: a field selector on {field} would tell a masked field. Select by name, namespace or label.",
            )
    return None


def selected_fields(selector: str) -> tuple[str, ...]:
    """The fields of a field selector; a comma that is part of a value gives one more, which harms nobody."""
    found = []
    for term in selector.split(","):
        for operator in ("!=", "==", "="):
            if operator in term:
                found.append(term.partition(operator)[0].strip())
                break
    return tuple(found)


def is_masked(steps: Sequence[str], info: RequestInfo, level: MaskLevel) -> bool:
    """Whether a decoded JSON pointer is at, above or below something that may be masked in this resource."""
    steps = _written_as(steps, info)
    if any(maskfields.touches(path, steps) for path in level.masked):
        return True
    if not level.builtin:
        # The annotation repeats the fields of rules.
        return bool(level.masked) and _meets(_LAST_APPLIED, steps)
    if level.shown and _is_shown(steps, level):
        return False
    if _is_secret(info):
        return not _is_free_in_secret(steps)
    # Any annotation may be masked by its shape; a copy of it into a label would not be.
    if _meets(_ANNOTATIONS, steps):
        return True
    if info.resource == "configmaps" and not info.api_group:
        return not steps or steps[0] in ("data", "binaryData")
    if (info.api_group, info.resource) == ("apps", "controllerrevisions"):
        return not steps or steps[0] == "data"  # pod templates of the past
    spec = uses.POD_SPECS.get((info.api_group, info.resource))
    if spec is not None and _is_in_container(spec, steps):
        return True
    # By its name, in whatever else: a custom resource, a driver's parameters; or by what stands beside it.
    names = [step for step in steps if not maskfields.is_index(step)]
    return bool(names and maskdetect.is_secret_name(names[-1])) or masking.hides_name(tuple(steps))


def _is_custom(info: RequestInfo) -> bool:
    return info.resource not in resources.BUILT_IN.get(info.api_group, ())


def _written_as(steps: Sequence[str], info: RequestInfo) -> Sequence[str]:
    """A Secret's stringData is how its data is written."""
    return ("data", *steps[1:]) if _is_secret(info) and steps[:1] == ("stringData",) else steps


def _is_shown(steps: Sequence[str], level: MaskLevel) -> bool:
    return any(maskfields.is_under(path, steps) for path in level.shown) and not any(
        maskfields.is_under(path, steps) for path in level.masked
    )


def _is_secret(info: RequestInfo) -> bool:
    return info.resource == "secrets" and not info.api_group


def _is_free_in_secret(steps: Sequence[str]) -> bool:
    if not steps:
        return False
    if steps[0] == "metadata":
        return len(steps) > 1 and steps[1] in _FREE_SECRET_META
    return steps[0] in _FREE_SECRET_FIELDS


def _meets(path: Sequence[str], steps: Sequence[str]) -> bool:
    """One is at or above the other."""
    return all(one == other for one, other in zip(path, steps, strict=False))


def _is_in_container(spec: Sequence[str], steps: Sequence[str]) -> bool:
    if not _meets(spec, steps):
        return False
    rest = steps[len(spec) :]
    if not rest:
        return True  # the pod spec, or above it
    if rest[0] not in _CONTAINERS:
        return False
    return len(rest) < 3 or rest[2] in _IN_CONTAINER


def renames(steps: Sequence[str], info: RequestInfo) -> bool:
    """
    Whether a write at this pointer changes what stands beside a masked value and not the value: the
    name of a variable, the flag before an argument. It would show the value under another name.
    """
    spec = uses.POD_SPECS.get((info.api_group, info.resource))
    if not _is_custom(info) and (spec is None or not _is_in_container(spec, steps)):
        return False
    if len(steps) >= 2 and steps[-1] == "name" and maskfields.is_index(steps[-2]):
        return spec is None or len(steps) > len(spec) + 3  # a container's own name is no variable's
    return len(steps) >= 2 and steps[-2] in ("args", "command") and maskfields.is_index(steps[-1]) and steps[-1] != "-"


# Writes that tell


def sets_masked_field(operation: Operation, level: MaskLevel, exists: bool | None = None) -> tuple[str, ...]:
    """
    The masked fields that the operation sets or removes in an object that exists; () for none.

    Such a write tells whether a guess is right, dry run or not: it counts as `reveal`, and is held.
    exists: whether the object is there, when that is known (an apply creates, too); None: in doubt, yes.
    () also when a rule lets this client write freely (`level.free_writes`).
    """
    info, body = operation.info, operation.body
    if not level.masks or level.free_writes or exists is False or info.verb not in ("update", "patch"):
        return ()
    if isinstance(body, list):
        found = [name for step in body for name in _set_by_step(step, info, level)]
    elif isinstance(body, dict):
        found = [*_set_by_rule(body, level, info), *(_set_in_secret(body, level) if _is_secret(info) else ())]
        if level.builtin and not _is_secret(info):
            found += _would_be_masked(body, operation, level)
        if level.builtin and _is_secret(info) and info.verb == "update":
            # A PUT says the whole Secret: what it leaves out goes.
            found = found or ["data"]
    else:
        return ()
    return tuple(dict.fromkeys(found))[:MAX_FOUND]


def _set_by_rule(body: Mapping[str, Any], level: MaskLevel, info: RequestInfo) -> Iterator[str]:
    written = body.get("stringData") if _is_secret(info) else None
    for path in level.masked:
        if _reaches(body, path.steps) or (written is not None and _reaches({"data": written}, path.steps)):
            yield path.text


def _reaches(value: Any, steps: Sequence[str | None]) -> bool:
    """Whether an object or merge patch says something at the field, or of all that is above it."""
    if not steps:
        return True
    if isinstance(value, list):
        return any(_reaches(item, steps[1:] if steps[0] is None else steps) for item in value)
    if not isinstance(value, dict):
        return True  # null, or another thing in its place
    if any(key.startswith("$") for key in value):
        return True  # `$patch: replace` and its like reach everything below
    step = steps[0]
    if step is None:
        return any(_reaches(inner, steps[1:]) for inner in value.values())
    return step in value and _reaches(value[step], steps[1:])


def _set_in_secret(body: Mapping[str, Any], level: MaskLevel) -> Iterator[str]:
    if not level.builtin:
        return
    for key, value in body.items():
        if key == "metadata":
            inner = value if isinstance(value, dict) else {"(all)": value}
            for name in inner:
                if name not in _FREE_SECRET_META:
                    yield f"metadata.{name}"
        elif key in ("data", "stringData") and isinstance(value, dict):
            for name in value:
                if not _is_shown(("data", name), level):
                    yield maskfields.written(("data", name))
        elif key not in _FREE_SECRET_FIELDS:
            yield key


def _would_be_masked(body: Any, operation: Operation, level: MaskLevel) -> tuple[str, ...]:
    """
    Of other objects: what masking would mask of the body. A guess that is right has the name and
    shape of the stored value, so it is masked exactly if that one is.
    """
    found = masking.mask(body, masktags.place_of(operation.info), _NO_KEY, MaskLevel(shown=level.shown)).fields
    return found or tuple(_nameless_values(body, level))


def _nameless_values(body: Any, level: MaskLevel) -> Iterator[str]:
    """Values whose names the patch leaves as they are: `{"value": …}` beside a name that may tell."""
    for place, text in _strings(body):
        if (
            place[-1:] == ("value",)
            and "name" not in _around(body, place)
            and maskdetect.is_random(text)
            and not _is_shown([str(step) for step in place], level)
        ):
            yield maskfields.written(place)


def _around(body: Any, place: maskfields.Steps) -> Any:
    for step in place[:-1]:
        body = body[step]
    return body


def _set_by_step(step: Any, info: RequestInfo, level: MaskLevel) -> Iterator[str]:
    if not isinstance(step, dict) or step.get("op") == "test":
        return
    pointers = [step.get("path"), *([step.get("from")] if step.get("op") == "move" else [])]
    for pointer in pointers:
        steps = _written_as(pointer_steps(pointer), info)
        if any(maskfields.touches(path, steps) for path in level.masked):
            yield maskfields.written(steps)
        elif not level.builtin or (level.shown and _is_shown(steps, level)):
            continue
        elif _is_secret(info):
            if not _is_free_in_secret(steps):
                yield maskfields.written(steps)
        elif step.get("op") in ("copy", "move") and is_masked(steps, info, level):
            yield maskfields.written(steps)  # what it brings is not in the request
        elif _holds_masked(step, info, level) or _is_nameless(step):
            yield maskfields.written(steps)


def _some(fields: Sequence[str]) -> str:
    shown = ", ".join(field[:60] or "the body" for field in fields[:3])
    return shown if len(fields) <= 3 else f"{shown} and {len(fields) - 3} more"
