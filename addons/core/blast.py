"""
Blast: which operations destroy more than they show, what must be counted to say how much, and
what the count then makes of the operation.

`look` is asked first, of every request that changes something: it remembers the request
(addons.core.commands) and names what it needs to know from the API server, mostly nothing.
`settle` takes the answers. An answer that did not come (late, forbidden to the identity,
unreadable) makes the operation graver, never lighter: a mass delete whose size is unknown.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from addons.core import commands, impacts, resources
from addons.core.commands import Commands, Listed, Object, Place
from addons.core.model import NOTHING, Impact, Operation, Reach, RequestInfo

SHOWN_NAMES = 120  # characters of a message for the first names in reach
ZEROED = 3  # workloads scaled to zero within the window; one more is a mass delete

_MASS = frozenset({Impact.DELETE, Impact.MASS_DELETE})
_DELETE = frozenset({Impact.DELETE})
_READS = frozenset({"get", "list", "watch"})
_WRITES = frozenset({"create", "update", "patch"})


class What(enum.Enum):
    """What is asked of the API server."""

    LIST = "list"  # the objects of a collection, with selectors
    NAMESPACE = "namespace"  # how many objects of which kinds are in it
    DEFINITION = "definition"  # how many custom resources a CRD has
    DEPENDENTS = "dependents"  # the pods that a workload's selector matches
    ORPHANS = "orphans"  # pods and ReplicaSets of nobody's that a selector matches: to be adopted
    LIVE = "live"  # the object as it is now


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to the API server; equal ones have one answer."""

    what: What
    group: str = ""
    version: str = "v1"
    resource: str = ""
    namespace: str = ""
    name: str = ""
    label_selector: str = ""
    field_selector: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """What is looked at of an object that was counted."""

    group: str
    resource: str
    namespace: str
    name: str
    controller: str = ""  # kind of the owner that controls it
    applied: bool = False  # it carries what `kubectl apply` left: prune may take it
    leaving: bool = False  # it is being deleted already
    uid: str = ""

    @property
    def target(self) -> Object:
        return (self.group, self.resource, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to an Ask."""

    items: tuple[Item, ...] = ()
    counts: Mapping[str, int] = NOTHING  # beside the items: what was only counted, by full resource
    complete: bool = True
    live: Any = None  # the object; None: it is not there
    uncounted: frozenset[str] = frozenset()  # full resources that could not be counted; `*`: who knows which


class Why(enum.Enum):
    """Which rule a question belongs to: what its answer makes of the operation."""

    COLLECTION = "collection"  # deletecollection
    FAN_OUT = "fan-out"  # a DELETE after a LIST in one invocation: when there was more than one
    PRUNE = "prune"  # apply --prune: always, whatever the number
    DRAIN = "drain"  # always
    RUN = "run"  # the second object of a collection within the window
    INSIDE = "inside"  # everything in a namespace, of a CRD, on a node
    DEPENDENTS = "dependents"  # no graver for it, but it says how much
    ZERO = "zero"  # scaled to zero, one
    ZERO_ALL = "zero all"  # many of them
    ORPHANS = "orphans"  # adopted by a new controller
    LIVE = "live"  # a PUT or apply: compare


@dataclass(frozen=True, slots=True)
class Question:
    """Why something is asked."""

    why: Why
    ask: Ask


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of an operation before anything was asked."""

    place: Place | None = None  # it takes an object away
    questions: tuple[Question, ...] = ()
    impacts: frozenset[Impact] = frozenset()  # to be added whatever the answers are
    reach: Reach | None = None
    in_run: bool = False  # raised by the run, not by the invocation


NOTHING_TO_SAY = Look()


def changes(operation: Operation) -> bool:
    """Whether `look` has anything to do with it: it is no read, and the API server will store it."""
    info = operation.info
    return info.is_resource_request and info.verb not in _READS and not operation.dry_run


def look(memory: Commands, username: str, user_agent: str, operation: Operation, now: float) -> Look:
    """Remember a change and say what must be known of it."""
    info = operation.info
    if info.api_group == resources.OWN_GROUP:
        return NOTHING_TO_SAY  # the gateway serves it itself: nothing of the cluster, and nobody to ask
    if info.verb == "deletecollection":
        selectors = {"label_selector": info.label_selector, "field_selector": info.field_selector}
        return Look(questions=(Question(Why.COLLECTION, _ask(What.LIST, info, name="", **selectors)),))
    if takes_one(operation):
        place = memory.saw_delete(username, user_agent, operation, now)
        return _of_delete(operation, place, now - memory.window)
    if operation.claimed_command == "kubectl apply" and operation.claimed_session and operation.name:
        memory.saw_named(username, operation, now)
    if info.verb not in _WRITES or info.subresource not in ("", "scale"):
        return NOTHING_TO_SAY
    if asks_zero(operation):
        place = memory.saw_delete(username, user_agent, operation, now, "scaled to zero")
        return _of_zero(operation, place)
    return Look(questions=_of_write(operation))


def takes_one(operation: Operation) -> bool:
    """A DELETE of one object, or an eviction."""
    info = operation.info
    if info.subresource == "eviction":
        return info.verb == "create" and bool(info.name)
    return info.verb == "delete" and not info.subresource


def asks_zero(operation: Operation) -> bool:
    """A replica count of 0 for something that may have more."""
    info, body = operation.info, operation.body
    if info.verb not in ("update", "patch") or not body:
        return False
    if info.subresource != "scale" and (info.subresource or (info.api_group, info.resource) not in _SCALABLE):
        return False
    return impacts.puts(_patch_of(operation), body, impacts.REPLICAS, impacts.is_zero)


COMPARED = frozenset(impacts.DESTROYING)  # kinds of which more than the metadata is compared
_SCALABLE = frozenset(key for key, tests in impacts.DESTROYING.items() if any(p == impacts.REPLICAS for p, _ in tests))


def _patch_of(operation: Operation) -> str:
    return _PATCHES.get(operation.media_type, "") if operation.info.verb == "patch" else ""


_PATCHES = {
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
}


# One DELETE


def _of_delete(operation: Operation, place: Place, since: float) -> Look:
    inside = _inside(operation)
    if inside is not None:
        return replace(inside, place=place)
    invocation, listed = place.invocation, place.listed
    if place.claimed and invocation.raised is not None:
        # Decided once for the whole command: kubectl goes on after a refusal, and each of its
        # DELETEs must get the same answer.
        return Look(place, impacts=_MASS, reach=invocation.raised)
    many, seen = frozenset[Impact](), None
    if place.others:
        # The second object of this collection within the window, whatever the headers say.
        many, seen = _MASS, _reach_of(tuple(place.run.deleted), exact=False)
    if listed is not None and place.claimed:
        why = Why.DRAIN if listed.node else Why.FAN_OUT
        if operation.claimed_command.startswith("kubectl apply"):
            why = Why.PRUNE  # kubectl apply lists for nothing else
        return Look(place, (Question(why, _as_listed(listed)),), many, seen)
    if place.claimed and len(invocation.deleted) > 1:
        # `delete pod a b c`, `delete -f`: named, so nothing said before how many there would be.
        return Look(place, impacts=_MASS, reach=_reach_of(tuple(invocation.deleted), exact=False))
    raised = place.run.raised
    if place.others and raised is not None and seen is not None:
        reach = raised if raised.total >= seen.total else replace(seen, names=raised.names)
        return Look(place, impacts=_MASS, reach=reach, in_run=True)
    if listed is not None and listed.node and listed.at >= since:
        return Look(place, (Question(Why.DRAIN, _as_listed(listed)),), many, seen, in_run=True)
    if listed is not None and many:
        return Look(place, (Question(Why.RUN, _as_listed(listed)),), many, seen, in_run=True)
    if many:
        return Look(place, impacts=many, reach=seen, in_run=True)
    return _dependents(operation, place)


def _inside(operation: Operation) -> Look | None:
    """The deletes that take along what is in, of, or on their object."""
    info = operation.info
    name = operation.name
    match (info.api_group, info.resource, info.subresource):
        case ("", "namespaces", ""):
            ask = Ask(What.NAMESPACE, namespace=name)
        case ("apiextensions.k8s.io", "customresourcedefinitions", ""):
            ask = _ask(What.DEFINITION, info)
        case ("", "nodes", ""):
            ask = Ask(What.LIST, resource="pods", field_selector=f"spec.nodeName={name}")
        case ("", "persistentvolumes", ""):
            return Look(impacts=_MASS, reach=Reach({"persistentvolumes": 1}, (name,)))
        case _:
            return None
    return Look(questions=(Question(Why.INSIDE, ask),), impacts=_MASS)


_WITH_PODS = frozenset({*_SCALABLE, ("apps", "daemonsets"), ("batch", "jobs")})


def _dependents(operation: Operation, place: Place) -> Look:
    info, body = operation.info, operation.body
    if (info.api_group, info.resource) not in _WITH_PODS or _orphans_dependents(body):
        return Look(place)
    return Look(place, (Question(Why.DEPENDENTS, _ask(What.DEPENDENTS, info)),))


def _orphans_dependents(options: Any) -> bool:
    return isinstance(options, dict) and (
        options.get("propagationPolicy") == "Orphan" or options.get("orphanDependents") is True
    )


def _as_listed(listed: Listed) -> Ask:
    info = listed.info
    return _ask(What.LIST, info, name="", label_selector=info.label_selector, field_selector=info.field_selector)


def _ask(what: What, info: RequestInfo, **more: str) -> Ask:
    where = {"namespace": info.namespace, "name": info.name, **more}
    return Ask(what, info.api_group, info.api_version, info.resource, **where)


# Writes


def _of_zero(operation: Operation, place: Place) -> Look:
    info, invocation = operation.info, place.invocation
    live = _of_write(operation)  # an apply at zero may also be the first of a controller that adopts
    if place.claimed and invocation.raised is not None:
        return Look(place, live, _MASS, invocation.raised)
    if place.others + 1 > ZEROED:
        return Look(place, live, _MASS, _reach_of(tuple(place.run.deleted), exact=False), in_run=True)
    if place.listed is not None and place.claimed:
        return Look(place, (*live, Question(Why.ZERO_ALL, _as_listed(place.listed))), _DELETE)
    return Look(place, (*live, Question(Why.ZERO, _ask(What.DEPENDENTS, info))), _DELETE)


def _live(operation: Operation) -> tuple[Question, ...]:
    """A PUT or apply says what is to be, not what changes: only the live object tells."""
    info = operation.info
    whole = info.verb == "update" or _patch_of(operation) == "apply"
    if not whole or info.subresource or not isinstance(operation.body, dict) or not operation.name:
        return ()
    return (Question(Why.LIVE, _ask(What.LIVE, info)),)


_ADOPTERS = frozenset(
    {
        ("apps", "deployments"),
        ("apps", "replicasets"),
        ("apps", "statefulsets"),
        ("apps", "daemonsets"),
        ("batch", "jobs"),
    }
)


def _of_write(operation: Operation) -> tuple[Question, ...]:
    info, body = operation.info, operation.body
    questions = _live(operation)
    if (
        (info.api_group, info.resource) in {*_ADOPTERS, ("", "replicationcontrollers")}
        and not info.subresource
        and isinstance(body, dict)
        and (info.verb == "create" or _patch_of(operation) == "apply")
    ):
        selector = selector_of(info.resource, body)
        if selector:
            # Tried: a ReplicaSet with 0 replicas adopts every bare pod that matches, and deletes it.
            ask = Ask(What.ORPHANS, info.api_group, info.api_version, info.resource, info.namespace, "", selector)
            questions += (Question(Why.ORPHANS, ask),)
    return questions


def selector_of(resource: str, body: Mapping[str, Any], *, live: bool = False) -> str:
    """
    The label selector of a workload, as a LIST takes it; "" when it has none. A new Job has none of
    its own choice: the API server makes one of its uid, unless `manualSelector` says otherwise.
    """
    spec = _mapping(body.get("spec"))
    selector = spec.get("selector")
    if resource == "jobs" and not live and spec.get("manualSelector") is not True:
        return ""
    if resource == "replicationcontrollers":
        if not selector:
            selector = _mapping(_mapping(spec.get("template")).get("metadata")).get("labels")
        return _equal(selector)
    selector = _mapping(selector)
    terms = [_equal(selector.get("matchLabels"))]
    for expression in selector.get("matchExpressions") or ():
        terms.append(_expression(_mapping(expression)))
    return ",".join(term for term in terms if term)


def _equal(labels: Any) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(_mapping(labels).items()) if isinstance(value, str))


def _expression(expression: Mapping[str, Any]) -> str:
    key, values = str(expression.get("key", "")), expression.get("values") or ()
    listed = ",".join(str(value) for value in values)
    match expression.get("operator"):
        case "In":
            return f"{key} in ({listed})"
        case "NotIn":
            return f"{key} notin ({listed})"
        case "Exists":
            return key
        case "DoesNotExist":
            return f"!{key}"
    return ""  # the API server refuses such a workload


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


# The answers


def settle(operation: Operation, seen: Look, answers: Sequence[Found | None], command: str = "") -> Operation:
    """
    The operation as the answers make it, one for each question in its order; None for one that
    could not be answered.
    """
    impact, reach, adopted = set(seen.impacts), seen.reach, None
    place, by_live = seen.place, True
    for question, found in zip(seen.questions, answers, strict=True):
        match question.why:
            case Why.LIVE:
                more = _compared(operation, found)
                by_live = more is not None
                if more is not None:
                    impact |= more
            case Why.COLLECTION | Why.INSIDE:
                impact |= _MASS
                reach = _inside_reach(operation, found)
            case Why.DEPENDENTS | Why.ZERO:
                reach = _with_dependents(operation, found, counts_itself=question.why is Why.DEPENDENTS)
            case Why.ORPHANS:
                adopted = _adopted(answers, seen, found)
            case _:
                if place is not None:
                    raised = _fan_out(question, place, found, in_run=seen.in_run)
                    if raised is not None:
                        reach = raised
                        impact |= _MASS
    if place is not None and not by_live and asks_zero(operation):
        # It was at zero before, or is not there: nothing is taken away.
        Commands.refused(place)
        place, impact, reach = None, set(), None
    if adopted is not None:
        reach = adopted
        impact |= _DELETE if adopted.exact and adopted.total == 1 else _MASS
    if place is not None and Impact.MASS_DELETE in impact and reach is not None:
        if seen.in_run:
            place.run.raised = reach
        elif place.claimed and not _is_inside(operation):
            place.invocation.raised = place.invocation.raised or reach
            reach = place.invocation.raised
    position = commands.position(place, reach, in_run=seen.in_run) if place is not None else ""
    return replace(
        operation,
        impacts=operation.impacts | impact,
        reach=reach,
        command=command,
        summary=commands.summary(operation, position),
    )


def _is_inside(operation: Operation) -> bool:
    return takes_one(operation) and _inside(operation) is not None


def _reach_of(objects: Sequence[Object], *, exact: bool) -> Reach:
    counts: dict[str, int] = {}
    for group, resource, _, _ in objects:
        full = commands.full_resource(group, resource)
        counts[full] = counts.get(full, 0) + 1
    return Reach(counts, commands.names_of(objects), exact)


_FEW = {Why.FAN_OUT: 1, Why.ZERO_ALL: ZEROED}  # that many are no mass delete


_FANS = frozenset({Why.FAN_OUT, Why.DRAIN, Why.PRUNE})  # one command goes through exactly these objects


def _fan_out(question: Question, place: Place, found: Found | None, *, in_run: bool) -> Reach | None:
    """What a LIST says that the rest of the command will take; None when that is but one object."""
    ask, why, invocation = question.ask, question.why, place.invocation
    if not in_run and invocation.raised is not None:
        return invocation.raised  # another of the same command was answered first: drain's come all at once
    done = tuple(place.run.deleted) if in_run else tuple(invocation.deleted)
    if found is None:
        return _reach_of(done, exact=False)
    items = [item for item in found.items if not item.leaving]
    if why is Why.DRAIN:
        items = [item for item in items if item.controller not in ("DaemonSet", "Node")]
    objects = [item.target for item in items]
    exact = found.complete
    if why is Why.PRUNE:
        objects = [o for o, item in zip(objects, items, strict=True) if item.applied and o not in invocation.applied]
        exact = False  # the other kinds come after this one
    everything = tuple(dict.fromkeys((*objects, *done)))
    full = commands.full_resource(ask.group, ask.resource)
    more = found.counts.get(full, 0)
    if why in _FEW and len(everything) + more <= _FEW[why] and found.complete:
        return None
    reach = _reach_of(everything, exact=exact)
    if why in _FANS:
        uids = {item.target: item.uid for item in items}
        reach = replace(reach, objects=tuple((*target, uids[target]) for target in objects if uids.get(target)))
    if more:
        reach = replace(reach, counts={**reach.counts, full: reach.counts.get(full, 0) + more})
    return reach


def _inside_reach(operation: Operation, found: Found | None) -> Reach:
    own = {} if operation.info.verb == "deletecollection" else {_full(operation): 1}
    if found is None:
        return Reach(own, (), exact=False)
    counts: dict[str, int] = dict(own)
    objects = [item.target for item in found.items if not item.leaving]
    for full, count in (*_reach_of(objects, exact=True).counts.items(), *found.counts.items()):
        counts[full] = counts.get(full, 0) + count
    return Reach(counts, commands.names_of(objects), found.complete)


def _with_dependents(operation: Operation, found: Found | None, *, counts_itself: bool) -> Reach:
    own = {_full(operation): 1} if counts_itself else {}
    if found is None:
        return Reach(own, (), exact=False)
    pods = [item.target for item in found.items if not item.leaving]
    counts = {**own, **({"pods": len(pods)} if pods else {})}
    return Reach(counts, commands.names_of(pods), found.complete)


def _adopted(answers: Sequence[Found | None], seen: Look, found: Found | None) -> Reach | None:
    for question, answer in zip(seen.questions, answers, strict=True):
        # It is there already: its selector cannot change, and what it matches it has adopted.
        if question.why is Why.LIVE and answer is not None and answer.live is not None:
            return None
    if found is None:
        return Reach(NOTHING, (), exact=False)
    orphans = [item for item in found.items if not item.controller and not item.leaving]
    if not orphans and found.complete:
        return None
    return _reach_of([item.target for item in orphans], exact=found.complete)


def _full(operation: Operation) -> str:
    return commands.full_resource(operation.info.api_group, operation.info.resource)


# A PUT or apply against what is there


def _compared(operation: Operation, found: Found | None) -> frozenset[Impact] | None:
    """What a whole object takes away from the live one. None: nothing; unknown: something."""
    if found is None:
        return _DELETE
    if found.live is None:
        # Created by it. The API server refuses a PUT that finds nothing, or creates as well.
        return _DELETE if impacts.puts("", operation.body, impacts.OWNERS, impacts.is_something) else None
    key = (operation.info.api_group, operation.info.resource)
    live, body, applies = found.live, operation.body, _patch_of(operation) == "apply"
    if _drops_finalizers(live, body, applies=applies):
        return _DELETE
    tests: list[tuple[impacts.Path, Callable[[Any], bool]]] = [(impacts.OWNERS, impacts.is_anything)]
    tests += impacts.DESTROYING.get(key, ())
    for path, test in tests:
        wanted, has = impacts.value_at(body, path), impacts.value_at(live, path)
        wanted, has = (None if v is impacts.ABSENT else v for v in (wanted, has))
        if wanted is None and (applies or path not in (impacts.LABELS, impacts.OWNERS)):
            # An apply leaves alone what it does not name; a PUT gives such a field its default.
            continue
        if _unequal(wanted, has) and test(wanted):
            return _DELETE
    return None


def _unequal(wanted: Any, has: Any) -> bool:
    return (wanted or None) != (has or None) if not isinstance(wanted, int) else wanted != has


def _drops_finalizers(live: Any, body: Any, *, applies: bool) -> bool:
    has = impacts.value_at(live, impacts.FINALIZERS)
    if not isinstance(has, list) or not has:
        return False
    wanted = impacts.value_at(body, impacts.FINALIZERS)
    kept = wanted if isinstance(wanted, list) else []
    if all(finalizer in kept for finalizer in has):
        return False
    if not applies:
        return True
    # Left out of an apply, a finalizer goes when an apply put it there.
    fields = _mapping(_mapping(live).get("metadata")).get("managedFields")
    return not isinstance(fields, list) or any(
        _mapping(entry).get("operation") == "Apply"
        and "f:finalizers" in _mapping(_mapping(_mapping(entry).get("fieldsV1")).get("f:metadata"))
        for entry in fields
    )


# For messages


def sentence(operation: Operation, end: str = ". ") -> str:
    """`it would delete 14 pods (shop/web-1, shop/web-2, …). `, or "" when it reaches nothing beyond itself."""
    reach = operation.reach
    if reach is None:
        return ""
    verb = "delete" if takes_one(operation) or operation.info.verb == "deletecollection" else "take away"
    names = ", ".join(reach.names)
    if names:
        # Short: what follows in the message is the next step, and clients cut the tail.
        names = names if len(names) <= SHOWN_NAMES else f"{names[: SHOWN_NAMES - 1]}…"
        names = f" ({names}, …)" if reach.total > len(reach.names) and not names.endswith("…") else f" ({names})"
    return f"it would {verb} {commands.plain(reach)}{names}{end}"
