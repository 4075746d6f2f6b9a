"""
Counting: what a destroying request reaches, asked of the API server before it goes there.

As the identity, never with the gateway's own eyes: what RBAC does not let somebody list is
unknown here too. Bounded in time, in requests and in objects; whatever goes wrong, the
answer is None, and addons.core.blast takes that for the worst.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any
from urllib.parse import quote, urlencode

from addons.core import blast, commands, status
from addons.core.blast import Ask, Found, Item, What
from addons.core.model import Identity
from addons.net.apiserver import ApiServer, ApiServerError

logger = logging.getLogger(__name__)

LIMIT = 2.0  # seconds for all that one request makes us ask; the request waits
PAGE = 500  # objects; client-go's own
PAGES = 4  # of one collection; more is "at least"
KINDS = 120  # in a namespace; a cluster with more has its rest uncounted, and said so
AT_ONCE = 8  # requests for the kinds of a namespace

# Metadata only: no Secret's data comes here, and a list of 500 is some 300 KiB.
_METADATA = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}
_METADATA_LIST = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
DISCOVERY = {"Accept": "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"}
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

# Counted first, since the time may end: what hurts most when it is gone.
_FIRST = ("pods", "persistentvolumeclaims", "deployments", "statefulsets", "secrets", "configmaps", "services")
# Made by others from what is counted anyway.
_SHADOW_GROUPS = frozenset({"metrics.k8s.io"})
_SHADOWS = frozenset({"events", "endpoints", "endpointslices", "leases", "controllerrevisions", "bindings"})


class Unknown(Exception):
    """It cannot be counted; the text is for the log."""


class Counter:
    """Answers the questions of one identity."""

    def __init__(self, server: ApiServer, identity: Identity | None, forward_extra: AbstractSet[str]) -> None:
        self._server = server
        self._identity = identity
        self._forward_extra = forward_extra

    async def answer(self, ask: Ask, seconds: float = LIMIT) -> Found | None:
        """What is asked, or None when it cannot be known in time."""
        try:
            if ask.what is What.NAMESPACE:
                return await self._namespace(ask, seconds)  # keeps what it has when the time is over
            async with asyncio.timeout(seconds):
                return await self._answer(ask)
        except (ApiServerError, Unknown, TimeoutError, status.Refused) as e:
            logger.warning("counting %s of %r failed: %s", ask.what.value, _collection(ask), e)
            return None

    async def _answer(self, ask: Ask) -> Found:
        match ask.what:
            case What.LIST:
                return await self._list(ask)
            case What.DEFINITION:
                return await self._definition(ask)
            case What.DEPENDENTS:
                return await self._dependents(ask)
            case What.ORPHANS:
                return await self._orphans(ask)
            case What.LIVE:
                whole = (ask.group, ask.resource) in blast.COMPARED
                return Found(live=await self._get(_object(ask), {} if whole else _METADATA, missing=True))
        raise Unknown(f"nothing counts {ask.what.value}")

    async def _get(self, path: str, headers: Mapping[str, str], *, missing: bool = False) -> Any:
        """The JSON at a path; None for a 404 when that is an answer."""
        answer = await self._server.request(
            "GET",
            path,
            purpose="counting",
            headers=headers,
            identity=self._identity,
            forward_extra=self._forward_extra,
            timeout=LIMIT,
        )
        if answer.status == 404 and missing:
            return None
        if answer.status != 200:
            raise Unknown(f"the API server answers {answer.status}")
        body = answer.json()
        if not isinstance(body, dict):
            raise Unknown("the API server's answer is not an object")
        return body

    async def _list(self, ask: Ask, pages: int = PAGES) -> Found:
        items: list[Item] = []
        query = {"limit": str(PAGE)}
        if ask.label_selector:
            query["labelSelector"] = ask.label_selector
        if ask.field_selector:
            query["fieldSelector"] = ask.field_selector
        for _ in range(pages):
            body = await self._get(f"{_collection(ask)}?{urlencode(query, quote_via=quote)}", _METADATA_LIST)
            items += _items(body, ask)
            metadata = _mapping(body.get("metadata"))
            more = metadata.get("continue")
            if not more:
                return Found(tuple(items))
            query["continue"] = str(more)
        rest = metadata.get("remainingItemCount")  # only without selectors
        if isinstance(rest, int):
            return Found(tuple(items), {commands.full_resource(ask.group, ask.resource): rest})
        return Found(tuple(items), complete=False)

    async def _namespace(self, ask: Ask, seconds: float) -> Found:
        counts: dict[str, int] = {}
        uncounted = {"*"}  # until discovery has said which there are

        async def everything() -> None:
            pages = await asyncio.gather(self._get("/api", DISCOVERY), self._get("/apis", DISCOVERY))
            listed = list(kinds(pages))
            listed.sort(key=lambda kind: _FIRST.index(kind[2]) if kind[2] in _FIRST else len(_FIRST))
            uncounted.update(commands.full_resource(group, resource) for group, _, resource in listed)
            if not is_stale(pages):
                uncounted.discard("*")
            gate = asyncio.Semaphore(AT_ONCE)

            async def one(group: str, version: str, resource: str) -> None:
                inside = Ask(What.LIST, group, version, resource, ask.namespace)
                try:
                    async with gate:
                        body = await self._get(f"{_collection(inside)}?limit=1", _METADATA_LIST)
                except (ApiServerError, Unknown):
                    return  # this kind only; the others still say how bad it is
                count = len(body.get("items") or ())
                rest = _mapping(body.get("metadata")).get("remainingItemCount")
                count += rest if isinstance(rest, int) else 0
                full = commands.full_resource(group, resource)
                uncounted.discard(full)
                if count:
                    counts[full] = count

            await asyncio.gather(*(one(*kind) for kind in listed[:KINDS]))

        try:
            async with asyncio.timeout(seconds):
                await everything()
        except TimeoutError:
            if not counts:
                raise
        return Found(counts=counts, complete=not uncounted, uncounted=frozenset(uncounted))

    async def _definition(self, ask: Ask) -> Found:
        crd = await self._get(_object(ask), {})
        spec = _mapping(crd.get("spec"))
        served = [v for v in spec.get("versions") or () if _mapping(v).get("served") is True]
        names = _mapping(spec.get("names"))
        if not served:
            return Found(complete=False)
        inside = Ask(What.LIST, str(spec.get("group")), str(served[0].get("name")), str(names.get("plural")))
        return await self._list(inside)

    async def _dependents(self, ask: Ask) -> Found:
        live = await self._get(_object(ask), {}, missing=True)
        if live is None:
            return Found()
        selector = blast.selector_of(ask.resource, live, live=True)
        if not selector:
            scale = await self._get(f"{_object(ask)}/scale", {})
            selector = str(_mapping(scale.get("status")).get("selector") or "")
        if not selector:
            raise Unknown("it has no selector")
        return await self._list(Ask(What.LIST, "", "v1", "pods", ask.namespace, "", selector))

    async def _orphans(self, ask: Ask) -> Found:
        asks = [Ask(What.LIST, "", "v1", "pods", ask.namespace, "", ask.label_selector)]
        if ask.resource == "deployments":
            # Its pods are adopted through ReplicaSets, and those it adopts as well.
            asks.append(Ask(What.LIST, "apps", "v1", "replicasets", ask.namespace, "", ask.label_selector))
        found = await asyncio.gather(*(self._list(one) for one in asks))
        return Found(tuple(item for one in found for item in one.items), complete=all(one.complete for one in found))


def _collection(ask: Ask) -> str:
    root = f"/apis/{quote(ask.group, safe='')}" if ask.group else "/api"
    inside = f"/namespaces/{quote(ask.namespace, safe='')}" if ask.namespace else ""
    return f"{root}/{quote(ask.version, safe='')}{inside}/{quote(ask.resource, safe='')}"


def _object(ask: Ask) -> str:
    return f"{_collection(ask)}/{quote(ask.name, safe='')}"


def _items(body: Mapping[str, Any], ask: Ask) -> Iterator[Item]:
    for item in body.get("items") or ():
        metadata = _mapping(_mapping(item).get("metadata"))
        owners = [_mapping(owner) for owner in metadata.get("ownerReferences") or ()]
        yield Item(
            ask.group,
            ask.resource,
            str(metadata.get("namespace") or ""),
            str(metadata.get("name") or ""),
            next((str(owner.get("kind")) for owner in owners if owner.get("controller") is True), ""),
            _LAST_APPLIED in _mapping(metadata.get("annotations")),
            bool(metadata.get("deletionTimestamp")),
            str(metadata.get("uid") or ""),
        )


def kinds(pages: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """(group, version, resource) of what can be listed in a namespace; the preferred version only."""
    for page in pages:
        for group in page.get("items") or ():
            name = str(_mapping(group.get("metadata")).get("name") or "")
            if name in _SHADOW_GROUPS:
                continue
            seen: set[str] = set()
            for version in group.get("versions") or ():
                for resource in version.get("resources") or ():
                    plural = str(resource.get("resource"))
                    listable = "list" in (resource.get("verbs") or ())
                    if resource.get("scope") != "Namespaced" or not listable or plural in seen or plural in _SHADOWS:
                        continue
                    seen.add(plural)
                    yield name, str(version.get("version")), plural


def is_stale(pages: Iterable[Mapping[str, Any]]) -> bool:
    """An extension's API server that is down: what it serves is not in the discovery."""
    return any(
        version.get("freshness") == "Stale"
        for page in pages
        for group in page.get("items") or ()
        for version in group.get("versions") or ()
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
