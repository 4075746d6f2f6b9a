"""
Discovery of tollgate.dev: its own pages, and its place in those of the API server.

The gateway owns the whole group. Should the API server have one of that name (a CRD would do), it
is taken out of what clients see: `approvals.tollgate.dev/v1` would else become the preferred version
and stand before ours.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from addons.core import virtualschema
from addons.core.virtualobjects import API_VERSION, RESOURCES, VERSION, Resource
from addons.core.virtualstatus import GROUP

MERGED = frozenset({"/apis", "/openapi/v3"})  # the API server's pages that ours are merged into
OPENAPI_KEY = f"apis/{API_VERSION}"

_AGGREGATED = "APIGroupDiscoveryList"
_AGGREGATED_VERSIONS = frozenset({"apidiscovery.k8s.io/v2", "apidiscovery.k8s.io/v2beta1"})


class NotMerged(ValueError):
    """The API server's page is not what it should be. Nothing of it can be passed on."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A page of the API server with ours in it."""

    body: bytes
    dropped: bool  # it had a group of our name, which is gone: say so in the log


# ----- our own pages -----


def group() -> dict[str, Any]:
    """/apis/tollgate.dev, and our entry in the legacy /apis."""
    version = {"groupVersion": API_VERSION, "version": VERSION}
    return {"kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": [version], "preferredVersion": version}


def resource_list() -> dict[str, Any]:
    """/apis/tollgate.dev/v1alpha1."""
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": API_VERSION,
        "resources": [_listed(resource) for resource in RESOURCES.values()],
    }


def _listed(resource: Resource) -> dict[str, Any]:
    return {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": False,
        "kind": resource.kind,
        "verbs": sorted(resource.verbs),
        **({"shortNames": list(resource.short_names)} if resource.short_names else {}),
        "categories": ["tollgate"],
    }


def _discovered() -> dict[str, Any]:
    """Our entry in the aggregated /apis, v2 and v2beta1 alike."""
    return {
        "metadata": {"name": GROUP},
        "versions": [
            {
                "version": VERSION,
                "resources": [_described(resource) for resource in RESOURCES.values()],
                "freshness": "Current",
            }
        ],
    }


def _described(resource: Resource) -> dict[str, Any]:
    return {
        "resource": resource.plural,
        "responseKind": {"group": GROUP, "version": VERSION, "kind": resource.kind},
        "scope": "Cluster",
        "singularResource": resource.singular,
        "verbs": sorted(resource.verbs),
        **({"shortNames": list(resource.short_names)} if resource.short_names else {}),
        "categories": ["tollgate"],
    }


@lru_cache(maxsize=1)
def openapi() -> bytes:
    """/openapi/v3/apis/tollgate.dev/v1alpha1, JSON."""
    return _json(virtualschema.document())


@lru_cache(maxsize=1)
def openapi_hash() -> str:
    return hashlib.sha256(openapi()).hexdigest()[:32].upper()


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Changes with everything that we merge into a page."""
    ours = [group(), _discovered(), openapi_hash()]
    return hashlib.sha256(_json(ours)).hexdigest()[:16]


# ----- merged pages -----


def merge_groups(body: bytes, content_type: str) -> Merged:
    """
    /apis with our group. content_type: the answer's, which says whether it is aggregated.

    Raises NotMerged: also for protobuf, so ask the API server for JSON only.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise NotMerged("it is not JSON")
    content = _read(body)
    kind = content.get("kind")
    if kind == "APIGroupList":
        return _with_entry(content, "groups", lambda entry: entry.get("name"), group_entry())
    if kind == _AGGREGATED and content.get("apiVersion") in _AGGREGATED_VERSIONS:
        return _with_entry(content, "items", lambda entry: (entry.get("metadata") or {}).get("name"), _discovered())
    raise NotMerged("it is no list of groups")


def group_entry() -> dict[str, Any]:
    """Without kind and apiVersion, as the API server lists them."""
    return {key: value for key, value in group().items() if key not in ("kind", "apiVersion")}


def _with_entry(content: dict[str, Any], key: str, name_of: Any, ours: dict[str, Any]) -> Merged:
    entries = content.get(key)
    entries = [] if entries is None else entries  # Go's nil
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise NotMerged(f"{key} is no list of groups")
    # In capitals it would be no group of the API server's; but who compares without regard to case must not find it.
    theirs = [entry for entry in entries if str(name_of(entry)).lower() != GROUP]
    return Merged(_json({**content, key: [*theirs, ours]}), len(theirs) != len(entries))


def merge_openapi(body: bytes) -> Merged:
    """
    /openapi/v3, the index, with our document. Raises NotMerged.

    By its content alone: the API server sends this JSON as text/plain.
    """
    content = _read(body)
    paths = content.get("paths")
    if not isinstance(paths, dict):
        raise NotMerged("it has no paths")
    prefix = f"apis/{GROUP}"
    theirs = {key: value for key, value in paths.items() if key != prefix and not key.startswith(prefix + "/")}
    # A group's own page (apis/x) lists with the rest; that of a CRD's group is no reason to worry.
    entry = {"serverRelativeURL": f"/openapi/v3/{OPENAPI_KEY}?hash={openapi_hash()}"}
    return Merged(_json({**content, "paths": {**theirs, OPENAPI_KEY: entry}}), len(theirs) != len(paths))


def _read(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        raise NotMerged("it cannot be read as JSON") from None
    if not isinstance(content, dict):
        raise NotMerged("it is no object")
    return content


# ----- ETags -----
#
# Ours is the API server's with our fingerprint behind it. So a client that has the page from us
# gets a 304 when neither changed, and one that has it from the API server itself never does.

_ETAG = re.compile(r'(?:W/)?"(?P<value>[^"]*)"')


def etag_out(upstream: str) -> str:
    """The ETag of a merged page whose original had this one; "" when it had none."""
    found = _ETAG.fullmatch(upstream.strip())
    return f'"{found["value"]}-{fingerprint()}"' if found else ""


def etag_in(client: str) -> str | None:
    """What to ask the API server with for a client's If-None-Match; None: leave the header out."""
    found = [match["value"] for match in _ETAG.finditer(client)]
    ending = f"-{fingerprint()}"
    ours = [value[: -len(ending)] for value in found if value.endswith(ending)]
    return ", ".join(f'"{value}"' for value in ours) or None


def _json(content: Mapping[str, Any] | list[Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
