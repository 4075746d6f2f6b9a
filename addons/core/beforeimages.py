"""
Before-images: what was there before a request deleted or changed it. Where that is read, and how
much of it is kept.

For a Namespace that goes, the objects of every kind in it, as evenly as there is room: one kind of
which there is much must not hide the others. `addons.net.beforeimages` reads them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from addons.core import blast, classify
from addons.core.auditevents import MAX_BEFORE, MAX_IMAGES, Level
from addons.core.model import Operation
from addons.core.previews import live_target

MAX_OF_KIND = 20  # objects of one kind that are read, of a namespace that goes
MAX_MADE = 100  # of a kind that is mostly made by others: those that are not are looked for
MAX_KINDS = 60  # kinds of a namespace that are looked at; the API server's own are 25
MAX_SAID = 10  # sentences about what is missing; one event is to be read

# What a namespace is remembered by, the dearest first.
_FIRST: tuple[tuple[str, str, str], ...] = (
    ("", "v1", "configmaps"),
    ("", "v1", "secrets"),
    ("apps", "v1", "deployments"),
    ("apps", "v1", "statefulsets"),
    ("", "v1", "persistentvolumeclaims"),
    ("", "v1", "services"),
    ("apps", "v1", "daemonsets"),
    ("batch", "v1", "cronjobs"),
    ("batch", "v1", "jobs"),
    ("networking.k8s.io", "v1", "ingresses"),
    ("", "v1", "serviceaccounts"),
    ("rbac.authorization.k8s.io", "v1", "roles"),
    ("rbac.authorization.k8s.io", "v1", "rolebindings"),
    ("", "v1", "pods"),
)
# Of these, what has a controller comes back from it: a Pod from its ReplicaSet, that from its Deployment.
_MADE = frozenset({"pods", "replicasets", "jobs"})
_SELECTORS = ("labelSelector", "fieldSelector")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to read. No targets: nothing of this request is kept."""

    targets: tuple[str, ...] = ()
    namespace: str = ""  # it goes, with everything in it
    definition: bool = False  # a CustomResourceDefinition, and all objects of its kind with it


@dataclass(frozen=True, slots=True)
class Read:
    """What one target had."""

    target: str
    objects: Sequence[dict[str, Any]] = field(repr=False)
    more: bool = False  # there were more than were read


@dataclass(frozen=True, slots=True)
class BeforeImages:
    """Not masked yet. `troubles` say what is missing, and why."""

    objects: tuple[tuple[str, dict[str, Any]], ...] = field(default=(), repr=False)  # (target, object)
    complete: bool = True  # False: there were more objects
    troubles: tuple[str, ...] = ()
    size: int = 0  # bytes of JSON


NOTHING = BeforeImages()


def plan(operation: Operation, target: str, level: Level) -> Plan:
    """Of what is deleted always; of what is changed where the level keeps objects."""
    info = operation.info
    if operation.dry_run or not info.is_resource_request:
        return Plan()
    if info.verb == "deletecollection":
        path, _, query = target.partition("?")
        kept = [(name, value) for name, value in parse_qsl(query) if name in _SELECTORS]
        return Plan((f"{path}?{urlencode([*kept, ('limit', str(MAX_IMAGES))])}",))
    deletes = blast.takes_one(operation)
    if not deletes and (info.verb not in ("update", "patch") or level is Level.METADATA):
        return Plan()
    own = live_target(info, target)
    if not own:
        return Plan()
    kind = (info.api_group, info.resource, info.subresource)
    if deletes and kind == ("", "namespaces", ""):
        return Plan((own,), namespace=info.name)
    return Plan((own,), definition=deletes and kind == ("apiextensions.k8s.io", "customresourcedefinitions", ""))


def inside(namespace: str, kinds: Iterable[tuple[str, str, str]]) -> tuple[tuple[str, ...], int]:
    """Where the content of a namespace is read, by (group, version, resource); and how many kinds that leaves out."""
    places = {(group, resource): place for place, (group, _, resource) in enumerate(_FIRST)}
    found = sorted(kinds, key=lambda kind: places.get((kind[0], kind[2]), len(places)))
    return tuple(_list(*kind, namespace) for kind in found[:MAX_KINDS]), max(len(found) - MAX_KINDS, 0)


def usual(namespace: str) -> tuple[str, ...]:
    """The same for want of a discovery."""
    return inside(namespace, _FIRST)[0]


def defined(definition: Any) -> tuple[str, ...]:
    """Where the objects of a CustomResourceDefinition are read; () when none of its versions is served."""
    spec = _mapping(_mapping(definition).get("spec"))
    versions = [v for v in map(_mapping, spec.get("versions") or ()) if v.get("served") is True]
    # The stored one, where it is served: nothing is lost by a conversion.
    versions.sort(key=lambda version: version.get("storage") is not True)
    plural = _mapping(spec.get("names")).get("plural")
    if not versions or not plural:
        return ()
    path = f"/apis/{_part(spec.get('group'))}/{_part(versions[0].get('name'))}/{_part(plural)}"
    return (f"{path}?limit={MAX_IMAGES}",)


def reading(target: str) -> Operation:
    """
    The read that a target is: what is masked of an image is what is masked of that, not of the
    deletion of the namespace around it. Raises Refused.
    """
    return classify.classify("GET", target, {}, b"")


def read(target: str, value: Mapping[str, Any], plan: Plan) -> Read:
    """The objects of an answer: itself, or the items of a list."""
    if "?" not in target:  # one object, which may well have `items` of its own
        return Read(target, (_plain(value),))
    items = value.get("items")
    # Items of a list leave out what the list says of them.
    of_all = {"apiVersion": value.get("apiVersion"), "kind": str(value.get("kind")).removesuffix("List")}
    resource = target.partition("?")[0].rpartition("/")[2]
    skip = bool(plan.namespace) and resource in _MADE
    objects = [
        {**of_all, **_plain(one)} for one in items or () if isinstance(one, dict) and not (skip and _has_maker(one))
    ]
    return Read(target, objects, bool(_mapping(value.get("metadata")).get("continue")))


def share(found: Sequence[Read], troubles: Sequence[str]) -> BeforeImages:
    """As many as there is room for: of every target the first, then of every target the second, and so on."""
    kept: list[list[dict[str, Any]]] = [[] for _ in found]
    count = size = 0
    for turn in range(max((len(one.objects) for one in found), default=0)):
        for one, images in zip(found, kept, strict=True):
            if turn >= len(one.objects) or count >= MAX_IMAGES:
                continue
            length = len(json.dumps(one.objects[turn], separators=(",", ":")))
            if size + length > MAX_BEFORE:
                continue  # a smaller one may still have room
            images.append(one.objects[turn])
            count, size = count + 1, size + length
    missing = [
        f"before: {_path(one.target)}: {len(images)} of {'at least ' if one.more else ''}{len(one.objects)}"
        for one, images in zip(found, kept, strict=True)
        if one.more or len(images) < len(one.objects)
    ]
    said = [*troubles, *missing]
    if len(said) > MAX_SAID:
        said[MAX_SAID - 1 :] = [f"before: and {len(said) - MAX_SAID + 1} more kinds are not complete"]
    objects = tuple((one.target, image) for one, images in zip(found, kept, strict=True) for image in images)
    return BeforeImages(objects, not missing, tuple(said), size)


def trouble(target: str, why: str) -> str:
    return f"before: {_path(target)}: {why}"


def _path(target: str) -> str:
    return target.partition("?")[0]


def _list(group: str, version: str, resource: str, namespace: str) -> str:
    root = f"/apis/{_part(group)}" if group else "/api"
    most = MAX_MADE if resource in _MADE else MAX_OF_KIND
    return f"{root}/{_part(version)}/namespaces/{_part(namespace)}/{_part(resource)}?limit={most}"


def _part(text: object) -> str:
    return quote(str(text), safe="")


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Without managedFields: half of what is stored, and nothing that anybody restores."""
    metadata = value.get("metadata")
    if not isinstance(metadata, dict) or "managedFields" not in metadata:
        return dict(value)
    return {**value, "metadata": {key: one for key, one in metadata.items() if key != "managedFields"}}


def _has_maker(value: Mapping[str, Any]) -> bool:
    owners = _mapping(value.get("metadata")).get("ownerReferences")
    return isinstance(owners, list) and any(_mapping(owner).get("controller") is True for owner in owners)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
