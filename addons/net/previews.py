"""
Previews, fetched: what a held request would do, asked of the API server for whoever decides; and,
once he said yes, whether it is still so.

As the identity, so that nobody learns by asking what RBAC does not let him read. What a pod's
ServiceAccount may do is the one thing that the gateway asks for itself, where it may. Bounded in
time, pages and bytes; what could not be had is said in a note, and checked for all the more later.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from addons.core import canonical, commands, digests, maskpreviews, matching, preconditions, previews
from addons.core.admission import NeedsObjects, Objects, ServerRefusal
from addons.core.approvals import Item, Preview
from addons.core.blast import Ask, Found, What
from addons.core.maskpreviews import Mask
from addons.core.model import NO_USES, Identity, Operation, Reach, Uses
from addons.core.previews import UNCOUNTED, Content, Difference, Kind, Plan
from addons.net import counting, objects
from addons.net.apiserver import ApiServer, ApiServerError
from addons.net.objects import Had, Request

logger = logging.getLogger(__name__)

LIMIT = 3.0  # seconds for a preview; the request waits for it, and then for a person
AGAIN = 2.0  # seconds for the look before an approved request goes on
CLAIMS = 500  # volumes whose size is shown; one page
FIRST = 5  # objects of a namespace that are named, of each of the kinds below
ACCOUNTS = 2  # ServiceAccounts whose rights are asked for; a pod has one

_OBJECT = frozenset({"object"})
# What a result is a digest of, where it is not the dry run's.
_LIVE, _ABSENT, _POD, _UIDS = "live:", "live:absent", "pod:", "uids:"
_NAMED = (("/apis/apps/v1", "deployments"), ("/api/v1", "pods"))  # what people know a namespace by


@dataclass(frozen=True, slots=True)
class Seen:
    """What the approver is shown, and the state that his yes is bound to."""

    preview: Preview = field(default_factory=Preview)
    uid: str = ""  # of the live object; "" when there is none, or it could not be read
    resource_version: str = ""
    result: str = ""  # what must be the same again, see `again`; "" when nothing could be had
    content: Mapping[str, int] | None = None  # of a namespace, CRD or collection
    items: tuple[Item, ...] = ()  # of a fan-out: all that it is going to send, this request among them
    refusal: ServerRefusal | None = None  # the API server's own, which the client gets; nobody is asked


@dataclass(frozen=True, slots=True)
class Checked:
    """Whether what was approved is still so: `why` and `unknown` are "" then."""

    why: str = ""  # the approval is void
    unknown: str = ""  # it cannot be told now; the approval stays, the request does not go on
    # resourceVersion of the object that was looked at; of a dry run, the one that it was made from.
    version: str = field(default="", compare=False)


class Previewer:
    """For the requests of one identity; None: as the gateway itself. `mask` decides what is shown."""

    def __init__(
        self,
        server: ApiServer,
        identity: Identity | None,
        forward_extra: AbstractSet[str] = frozenset(),
        mask: Mask = maskpreviews.everything,
    ) -> None:
        self._server = server
        self._fetcher = objects.Fetcher(server, identity, forward_extra)
        self._counter = counting.Counter(server, identity, forward_extra)
        self._mask = mask

    # ----- before a person is asked -----

    async def preview(self, request: Request, operation: Operation, seconds: float = LIMIT) -> Seen:
        """What to show, and what to remember. Takes no longer than `seconds`."""
        clock = _Clock(seconds)
        plan = previews.plan(operation, request.target)
        match plan.kind:
            case Kind.WRITE:
                return await self._write(request, operation, plan, clock)
            case Kind.DELETE:
                return await self._delete(request, operation, plan, clock)
            case Kind.NAMESPACE | Kind.DEFINITION:
                return await self._inside(request, operation, plan, clock)
            case Kind.COLLECTION:
                return await self._collection(request, operation, clock)
            case Kind.STREAM:
                return await self._stream(request, operation, plan, clock)
        if not operation.info.is_resource_request:
            notes = previews.page_notes(operation, canonical.read(request.method, request.target).query)
            return Seen(self._shown(notes=[*notes, *previews.body_notes(operation, len(request.body))]))
        reads = operation.info.verb in matching.READING
        return Seen(self._shown(notes=["it is a read: nothing is changed by it"] if reads else []))

    async def _write(self, request: Request, operation: Operation, plan: Plan, clock: "_Clock") -> Seen:
        asked: dict[str, Coroutine[Any, Any, Any]] = {}
        if plan.dry_run:
            asked["dry run"] = self._dry_run(request, operation, clock)
        creates_only = operation.info.verb == "create" and not plan.live
        if not creates_only:
            asked["live"] = self._fetcher.get(plan.live)
        got = await _all(asked, clock)
        fetched, live = got.get("dry run"), _had(got.get("live"), clock)
        if isinstance(fetched, ServerRefusal):
            return Seen(refusal=fetched)
        after, created, why = _dry(fetched, plan, clock.late)
        notes: list[str] = []
        before = None
        if not creates_only:
            if _is_absent(live) and not created and not matching.creates(operation):
                return Seen(refusal=live.refusal)
            before = live.value
            if before is None and not created and not _is_absent(live):
                notes.append(f"the live object could not be computed: {_trouble(live)}")
        if why:
            notes.append(f"diff could not be computed: {why}")
        # In a thread: to hash a large object, or to write it as YAML, takes longer than a whole request may.
        result = ""
        if after is not None:
            result = await asyncio.to_thread(digests.result, operation, after, created=created)
        elif before is not None:
            # Not previewed, so bound to what it is applied to: a patch that copies has no other hold.
            result = _LIVE + await asyncio.to_thread(digests.result, operation, before)
        elif _is_absent(live):
            result = _ABSENT
        if after is not None and (created or before is not None):
            shown = (operation, None if created else before, after)
            change, late = await _written(previews.difference, *shown, clock=clock, created=created, mask=self._mask)
        else:
            change, late = await _written(previews.body, operation, clock=clock, mask=self._mask)
        if late:
            notes.append(f"diff could not be computed: {late}")
        uses = None
        if operation.uses not in (None, NO_USES):
            uses = previews.pod_uses(operation, after if after is not None else operation.body, created=created)
        notes += await self._power(uses, operation.info.namespace, clock)
        uid, version = _identity(None if created else before)
        return Seen(self._shown(change, reach=operation.reach, notes=notes), uid, version, result)

    async def _delete(self, request: Request, operation: Operation, plan: Plan, clock: "_Clock") -> Seen:
        info = operation.info
        reach = previews.own_in(operation, previews.reach_of(operation))
        asked: dict[str, Coroutine[Any, Any, Any]] = {"live": self._fetcher.get(plan.live)}
        if info.resource == previews.VOLUMES:
            spaces = {target[2] for target in reach.objects} | {info.namespace}
            asked["claims"] = self._claims(spaces.pop() if len(spaces) == 1 else "")
        got = await _all(asked, clock)
        live = _had(got["live"], clock)
        if _is_absent(live):
            return Seen(refusal=live.refusal)
        notes = [*previews.delete_notes(operation, canonical.read(request.method, request.target).query)]
        uid, version = _identity(live.value)
        if not uid:
            notes.append(
                f"the object could not be computed: {_trouble(live)}; a yes counts for whatever has this name then"
            )
        if "claims" in got:
            wanted = {f"{target[2]}/{target[3]}" for target in reach.objects} | {f"{info.namespace}/{info.name}"}
            notes += _claims_notes(got["claims"], frozenset(wanted))
        items = self._items(request, operation)
        if items and (not reach.exact or reach.total > len(items)):
            notes.append(
                f"one yes covers the {len(items)} objects that were listed; others are asked for by themselves"
            )
        return Seen(self._shown(reach=reach, notes=notes), uid, version, items=items)

    def _items(self, request: Request, operation: Operation) -> tuple[Item, ...]:
        found = []
        for target, digest in digests.of_each(operation, request.target).items():
            _, _, namespace, name, uid = target
            info = replace(operation.info, namespace=namespace, name=name)
            what = commands.summary(replace(operation, info=info, name=name))
            found.append(Item(digest, what, uid))
        return tuple(found)

    async def _inside(self, request: Request, operation: Operation, plan: Plan, clock: "_Clock") -> Seen:
        is_namespace = plan.kind is Kind.NAMESPACE
        name = operation.info.name
        asked: dict[str, Coroutine[Any, Any, Any]] = {
            "live": self._fetcher.get(plan.live),
            "content": self._content(operation, plan, clock),
        }
        if is_namespace:
            asked["claims"] = self._claims(name)
            asked |= {resource: self._names(root, resource, name) for root, resource in _NAMED}
        got = await _all(asked, clock)
        live = _had(got["live"], clock)
        if _is_absent(live):
            return Seen(refusal=live.refusal)
        uid, version = _identity(live.value)
        notes = [*previews.delete_notes(operation, canonical.read(request.method, request.target).query)]
        if not uid:
            notes.append(f"the object could not be computed: {_trouble(live)}")
        counted, content = _content(got["content"])
        notes += previews.content_notes(content)
        if is_namespace:
            notes += _claims_notes(got["claims"])
        own = commands.full_resource(operation.info.api_group, operation.info.resource)
        counts = {own: 1, **{kind: count for kind, count in content.counts.items() if count > 0}}
        names = [one for _, kind in _NAMED for one in _or_empty(got.get(kind))]
        if counted is not None:
            names += commands.names_of([item.target for item in counted.items])
        shown = self._shown(reach=Reach(counts, (), content.exact), names=names, notes=notes)
        return Seen(shown, uid, version, content=content.counts)

    async def _collection(self, request: Request, operation: Operation, clock: "_Clock") -> Seen:
        got = await _all({"found": self._list(operation, clock)}, clock)
        found, content = _content(got["found"])
        query = canonical.read(request.method, request.target).query
        notes = [*previews.delete_notes(operation, query), *previews.content_notes(content)]
        result = ""
        names: Sequence[str] = ()
        if found is not None:
            names = commands.names_of([item.target for item in found.items])
            if content.exact and not found.counts:
                result = _UIDS + digests.uids(item.uid for item in found.items)
        shown = self._shown(
            reach=Reach({k: v for k, v in content.counts.items() if v > 0}, (), content.exact), names=names, notes=notes
        )
        return Seen(shown, result=result, content=content.counts)

    async def _stream(self, request: Request, operation: Operation, plan: Plan, clock: "_Clock") -> Seen:
        query = canonical.read(request.method, request.target).query
        notes = [*previews.stream_notes(operation, query), *previews.body_notes(operation, len(request.body))]
        argv = previews.argv_of(query) if operation.info.subresource == "exec" else ()
        got = await _all({"live": self._fetcher.get(plan.live)}, clock)
        live = _had(got["live"], clock)
        if _is_absent(live):
            return Seen(refusal=live.refusal)
        result = ""
        if live.value is None:
            notes.append(f"what it reaches could not be computed: {_trouble(live)}")
        elif operation.info.resource == "pods":
            result = _POD + digests.pod(live.value)
            notes += await self._power(previews.pod_uses(operation, live.value), operation.info.namespace, clock)
        uid, version = _identity(live.value)
        return Seen(self._shown(notes=notes, argv=argv), uid, version, result)

    async def _power(self, uses: Uses | None, namespace: str, clock: "_Clock") -> list[str]:
        """What a pod reaches, and what its ServiceAccount may do."""
        if uses is None:
            return []
        notes = list(previews.uses_notes(uses, namespace))
        accounts = sorted(uses.service_accounts)[:ACCOUNTS] if uses.token else []
        asked = {
            f"{number} {account}": self._may(namespace, account, number)
            for account in accounts
            for number in range(len(previews.RIGHTS))
        }
        got = await _all(asked, clock)
        for account in accounts:
            said = [got[f"{number} {account}"] for number in range(len(previews.RIGHTS))]
            trouble = next((str(one) for one in said if isinstance(one, Exception)), "")
            answers = [one if isinstance(one, bool) else None for one in said]
            notes.append(previews.rights_note(namespace, account, answers, trouble or clock.late))
        return notes

    def _shown(self, change: Difference = Difference(), **parts: Any) -> Preview:  # noqa: B008 - frozen
        return previews.preview(change, mask=self._mask, **parts)

    # ----- before an approved request goes on -----

    async def again(
        self,
        request: Request,
        operation: Operation,
        item: Item,
        content: Mapping[str, int] | None = None,
        drift: int = 0,
        seconds: float = AGAIN,
    ) -> Checked:
        """Ask the API server once more for what the yes was bound to. Nothing in the answer quotes a value."""
        own = preconditions.own_uid(operation) if preconditions.deletes_one(operation) else ""
        if own and item.uid and own != item.uid:
            # Not in the digest, so that one yes covers the requests of a fan-out, each with its own.
            return Checked(why="the request names another object by its own precondition")
        clock = _Clock(seconds)
        plan = previews.plan(operation, request.target)
        asked: dict[str, Coroutine[Any, Any, Any]] = {}
        looks = item.uid or item.result.startswith((_LIVE, _POD))
        if looks and plan.live:
            asked["live"] = self._fetcher.get(plan.live)
        is_dry = bool(item.result) and not item.result.startswith((_LIVE, _POD, _UIDS))
        if is_dry:
            if not plan.dry_run:  # another reading of the request than the one that was approved
                return Checked(unknown="the dry run that was approved cannot be repeated")
            asked["dry run"] = self._dry_run(request, operation, clock)
        if plan.kind is Kind.COLLECTION and (content is not None or item.result):
            asked["content"] = self._list(operation, clock)
        elif content is not None:
            asked["content"] = self._content(operation, plan, clock)
        got = await _all(asked, clock)
        checks: list[Checked] = []
        if "live" in asked:
            checks.append(await asyncio.to_thread(_same_live, operation, item, _had(got["live"], clock)))
        if is_dry:
            checks.append(await asyncio.to_thread(_same_result, operation, item, got["dry run"], plan, clock.late))
        if "content" in asked:
            checks.append(_same_content(item, content, got["content"], drift))
        # What is surely another wins over what is not known.
        held = Checked(version=next((c.version for c in reversed(checks) if c.version), ""))
        return next((c for c in checks if c.why), next((c for c in checks if c.unknown), held))

    # ----- asking -----

    async def _dry_run(self, request: Request, operation: Operation, clock: "_Clock") -> Objects | ServerRefusal:
        return await self._fetcher.fetch(request, operation, NeedsObjects(_OBJECT, _OBJECT), clock.left * 0.9)

    async def _content(self, operation: Operation, plan: Plan, clock: "_Clock") -> tuple[str, Found | None]:
        """Everything in a namespace, or of a kind."""
        info = operation.info
        if plan.kind is Kind.NAMESPACE:
            return "", await self._counter.answer(Ask(What.NAMESPACE, namespace=info.name), clock.left * 0.9)
        ask = Ask(What.DEFINITION, info.api_group, info.api_version, info.resource, "", info.name)
        plural, _, group = info.name.partition(".")  # a CRD's name, by its validation
        return commands.full_resource(group, plural), await self._counter.answer(ask, clock.left * 0.9)

    async def _list(self, operation: Operation, clock: "_Clock") -> tuple[str, Found | None]:
        info = operation.info
        ask = Ask(
            What.LIST,
            info.api_group,
            info.api_version,
            info.resource,
            info.namespace,
            "",
            info.label_selector,
            info.field_selector,
        )
        full = commands.full_resource(info.api_group, info.resource)
        return full, await self._counter.answer(ask, clock.left * 0.9)

    async def _claims(self, namespace: str) -> Had:
        inside = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
        return await self._fetcher.get(f"/api/v1{inside}/persistentvolumeclaims?limit={CLAIMS}")

    async def _names(self, root: str, resource: str, namespace: str) -> tuple[str, ...]:
        """The first of a kind, for people; what cannot be listed is in the counts' note."""
        had = await self._fetcher.get(f"{root}/namespaces/{quote(namespace, safe='')}/{resource}?limit={FIRST}")
        items = had.value.get("items") if isinstance(had.value, dict) else None
        singular = resource.removesuffix("s")
        return tuple(
            f"{singular} {namespace}/{metadata.get('name')}"
            for item in (items if isinstance(items, list) else [])
            if isinstance(item, dict) and isinstance(metadata := item.get("metadata"), dict)
        )

    async def _may(self, namespace: str, account: str, number: int) -> bool | Exception:
        """One of RIGHTS, asked as the gateway: whoever asked for the exec need not know RBAC."""
        try:
            answer = await self._server.request(
                "POST",
                "/apis/authorization.k8s.io/v1/subjectaccessreviews",
                purpose="preview",
                body=previews.rights_question(namespace, account, number),
                timeout=LIMIT,
            )
            if answer.status == 403:
                return _Unasked("the gateway may not create subjectaccessreviews.authorization.k8s.io")
            if answer.status != 201:
                return _Unasked(f"the API server answers {answer.status}")
            status = answer.json().get("status")
            return isinstance(status, dict) and status.get("allowed") is True
        except (ApiServerError, AttributeError) as e:
            logger.warning("preview: %s", e)
            return _Unasked("the API server did not answer, or not in time")


class _Unasked(Exception):
    """A question that has no answer; the text is for the approver."""


@dataclass(slots=True)
class _Clock:
    """The time that is left for everything together."""

    seconds: float
    _until: float = field(init=False)

    def __post_init__(self) -> None:
        self._until = asyncio.get_running_loop().time() + self.seconds

    @property
    def left(self) -> float:
        return max(self._until - asyncio.get_running_loop().time(), 0.01)

    @property
    def late(self) -> str:
        return f"the API server did not answer within {self.seconds:g} s"


async def _all(asked: Mapping[str, Coroutine[Any, Any, Any]], clock: _Clock) -> dict[str, Any]:
    """The answers by name; an exception in the place of one that failed or is late."""
    if not asked:
        return {}
    tasks = {name: asyncio.create_task(coroutine) for name, coroutine in asked.items()}
    try:
        # Not a timeout around it: a CancelledError would leave the hook, and the flow would hang for ever.
        await asyncio.wait(tasks.values(), timeout=clock.left)
    finally:
        for task in tasks.values():
            task.cancel()  # of one that is done it does nothing
    return {name: _answer(task, clock) for name, task in tasks.items()}


def _answer(task: "asyncio.Task[Any]", clock: _Clock) -> Any:
    if not task.done() or task.cancelled():
        return _Unasked(clock.late)
    error = task.exception()
    if error is not None:
        # Without the traceback, which may show what was fetched.
        logger.error("a preview failed: %s", type(error).__name__)
        return _Unasked("the gateway failed to fetch it")
    return task.result()


async def _written(function: Callable[..., Difference], *arguments: Any, clock: _Clock, **more: Any) -> tuple[Any, str]:
    """(the difference, why there is none)"""
    got = await _all({"": asyncio.to_thread(function, *arguments, **more)}, clock)
    return (got[""], "") if isinstance(got[""], Difference) else (Difference(), "it could not be written down in time")


def _had(got: Any, clock: _Clock) -> Had:
    return got if isinstance(got, Had) else Had(trouble=str(got) if got else clock.late)


def _is_absent(had: Had) -> bool:
    return had.refusal is not None and had.refusal.code == 404


def _trouble(had: Had) -> str:
    return had.trouble or (f"the API server answers {had.refusal.code}" if had.refusal else "")


def _dry(fetched: Any, plan: Plan, late: str) -> tuple[Any, bool, str]:
    """(the object that a dry run returned, whether it is new, why there is none)"""
    if not plan.dry_run:
        return None, False, plan.no_dry_run
    if isinstance(fetched, Objects):
        return fetched.values.get("object"), fetched.created is True, fetched.troubles.get("object", "")
    return None, False, str(fetched) if isinstance(fetched, Exception) else late


def _identity(content: Any) -> tuple[str, str]:
    """uid and resourceVersion."""
    metadata = content.get("metadata") if isinstance(content, dict) else None
    if not isinstance(metadata, dict):
        return "", ""
    return str(metadata.get("uid") or ""), str(metadata.get("resourceVersion") or "")


def _content(got: Any) -> tuple[Found | None, Content]:
    """What was counted; direction: what was not may be anything."""
    if not isinstance(got, tuple) or got[1] is None:
        return None, Content({"*": UNCOUNTED})
    full, found = got
    counts = dict(found.counts)
    for item in found.items:
        kind = commands.full_resource(item.group, item.resource)
        counts[kind] = counts.get(kind, 0) + 1
    counts |= dict.fromkeys(found.uncounted, UNCOUNTED)
    if not found.complete and not found.uncounted:
        counts[full] = UNCOUNTED
    return found, Content(counts)


def _claims_notes(got: Any, names: frozenset[str] | None = None) -> tuple[str, ...]:
    if isinstance(got, Had) and isinstance(got.value, dict) and isinstance(items := got.value.get("items"), list):
        notes = previews.volumes(items, names)
        metadata = got.value.get("metadata")
        if isinstance(metadata, dict) and metadata.get("continue"):
            notes += (f"the size of volumes after the first {CLAIMS} could not be computed",)
        return notes
    why = _trouble(got) if isinstance(got, Had) else str(got)
    return (f"the size of volumes could not be computed: {why}",)


def _or_empty(got: Any) -> tuple[str, ...]:
    return got if isinstance(got, tuple) else ()


# ----- comparing -----


def _same_live(operation: Operation, item: Item, live: Had) -> Checked:
    if item.result == _ABSENT:
        if _is_absent(live):
            return Checked()
        return Checked(why="the object is there meanwhile") if live.value is not None else _unknown(live)
    if _is_absent(live):
        return Checked(why="the object is gone")
    if live.value is None:
        return _unknown(live)
    if item.uid and _identity(live.value)[0] != item.uid:
        return Checked(why="the object was deleted since, and another has its name")
    if item.result.startswith(_LIVE) and item.result != _LIVE + digests.result(operation, live.value):
        return Checked(why="the object changed since")
    if item.result.startswith(_POD) and item.result != _POD + digests.pod(live.value):
        return Checked(why="the pod changed since")
    return Checked(version=_identity(live.value)[1])


def _unknown(live: Had) -> Checked:
    return Checked(unknown=f"the object cannot be looked at now: {_trouble(live)}")


def _same_result(operation: Operation, item: Item, got: Any, plan: Plan, late: str) -> Checked:
    if isinstance(got, ServerRefusal):
        return Checked(why=f"the API server answers {got.code} to it now")
    after, created, trouble = _dry(got, plan, late)
    if after is None:
        return Checked(unknown=f"its dry run cannot be repeated now: {trouble or late}")
    if digests.result(operation, after, created=created) != item.result:
        return Checked(why="the object changed since, and the request would do something else")
    return Checked(version=_identity(after)[1])


def _same_content(item: Item, before: Mapping[str, int] | None, got: Any, drift: int) -> Checked:
    found, now = _content(got)
    if item.result.startswith(_UIDS):
        if found is None or not now.exact or found.counts:
            return Checked(unknown="what is in it cannot be listed now")
        if item.result != _UIDS + digests.uids(one.uid for one in found.items):
            return Checked(why="other objects are in it than were shown")
        return Checked()
    why, unknown = previews.grown(before or {}, now.counts, drift)
    return Checked(why, unknown)
