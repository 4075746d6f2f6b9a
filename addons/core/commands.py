"""
Commands: which requests belong together, and what a person would call them.

`kubectl delete --all` is a LIST and then one DELETE per object, 5 ms apart (measured: kubectl
1.32 and 1.36). Only who remembers the LIST knows, at the first DELETE, what is about to
happen. Two memories, and the second needs no word of the client's:

- an *invocation*: one identity and its Kubectl-Session; without that header, its User-Agent
  for a while. A client can choose both, so an invocation only ever makes a request graver.
- a *run*: one identity and one collection, whatever the headers say. Another session for
  every DELETE (`for p in …; do kubectl delete $p; done`) is still the same run.

Everything is bounded and forgotten by time; the clock is the caller's.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from addons.core import maskpreviews
from addons.core.model import Operation, Reach, RequestInfo

WINDOW = 60.0  # seconds in which two deletes of one collection are one run; a person or a model thinks longer
SESSION = 3600.0  # seconds an idle Kubectl-Session is kept: every object of a fan-out may be held for an approval
MAX_IDENTITIES = 1024  # remembered; the longest unused goes first. They come from verified tokens
MAX_INVOCATIONS = 64  # of one identity, likewise: nobody can push out another's
MAX_RUNS = 4096  # of all identities. A run in its window is never forgotten: see saw_delete
MAX_OBJECTS = 256  # remembered of one invocation or run; more are many anyway
MAX_LISTS = 64  # collections listed by one invocation; `apply --prune` lists 16
NAMES = 5  # of the objects in reach that a message shows
SHOWN_KINDS = 4  # in a message; the others are one sum

Object = tuple[str, str, str, str]  # group, resource, namespace, name
Collection = tuple[str, str]  # group, resource


@dataclass(frozen=True, slots=True)
class Listed:
    """A LIST with no name in it: the first sign of a fan-out."""

    info: RequestInfo
    at: float

    @property
    def node(self) -> str:
        """Of `spec.nodeName=node-3`, as drain asks for pods; or ""."""
        found = _NODE.search(self.info.field_selector)
        return found[1] if found else ""


_NODE = re.compile(r"(?:^|,)spec\.nodeName==?([^,]+)")


@dataclass(slots=True, eq=False)
class Invocation:
    """What one invocation has done so far."""

    at: float
    lists: dict[tuple[str, str, str], Listed] = field(default_factory=dict)  # by group, resource, namespace
    applied: dict[Object, None] = field(default_factory=dict)  # named objects that it read or wrote: not pruned
    deleted: dict[Object, int] = field(default_factory=dict)  # distinct, with their number
    raised: Reach | None = None  # once it is a mass delete it stays one: one verdict, one message

    def listed(self, info: RequestInfo) -> Listed | None:
        """The LIST that an object of this collection may come from."""
        group, resource = collection_of(info)
        return self.lists.get((group, resource, info.namespace)) or self.lists.get((group, resource, ""))


@dataclass(slots=True, eq=False)
class Run:
    """What one identity has lately deleted of one collection, under whatever headers."""

    deleted: dict[Object, float] = field(default_factory=dict)  # when it was asked for, last
    raised: Reach | None = None

    def forget(self, before: float) -> None:
        for known in [o for o, at in self.deleted.items() if at < before]:
            del self.deleted[known]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one destroying request stands among those before it."""

    target: Object
    invocation: Invocation
    run: Run
    number: int  # in the invocation, from 1
    others: int  # other objects of this collection by this identity within the window
    claimed: bool  # the invocation is a Kubectl-Session, not only a User-Agent
    listed: Listed | None  # what the object may come from, listed by the same invocation
    new: bool = False  # this request put the object into the run: refused, it is taken out again


class Commands:
    """The memory. One per gateway process; not for several threads."""

    def __init__(self, window: float = WINDOW) -> None:
        self.window = window
        self._invocations: OrderedDict[str, OrderedDict[tuple[str, str], Invocation]] = OrderedDict()
        self._runs: dict[tuple[str, str, str, str], Run] = {}

    def saw_list(self, username: str, user_agent: str, operation: Operation, now: float) -> None:
        """Remember a LIST. One with a name (`fieldSelector=metadata.name=x`) is about one object."""
        info = operation.info
        if info.name:
            return
        lists = self._invocation(username, user_agent, operation.claimed_session, now).lists
        lists[info.api_group, info.resource, info.namespace] = Listed(info, now)
        if len(lists) > MAX_LISTS:
            del lists[next(iter(lists))]

    def saw_named(self, username: str, operation: Operation, now: float) -> None:
        """Remember what `kubectl apply` reads and writes: its own files' objects are not pruned."""
        applied = self._invocation(username, "", operation.claimed_session, now).applied
        if len(applied) < MAX_OBJECTS:
            applied[object_of(operation)] = None

    def saw_delete(self, username: str, user_agent: str, operation: Operation, now: float, what: str = "") -> Place:
        """Remember a request that takes one object away; `what` keeps other runs (scaled to zero) apart."""
        target = object_of(operation)
        session = operation.claimed_session
        invocation = self._invocation(username, user_agent, session, now)
        if session and target not in invocation.deleted and len(invocation.deleted) < MAX_OBJECTS:
            invocation.deleted[target] = len(invocation.deleted) + 1
        number = invocation.deleted.get(target, len(invocation.deleted) + 1)
        listed = invocation.listed(operation.info)
        if listed is not None and not session and now - listed.at > SESSION:
            listed = None
        key = (username, what, *(("", "") if what else collection_of(operation.info)))
        run = self._run(key, now)
        others = len(run.deleted) - (target in run.deleted)
        new = target not in run.deleted
        if not new or len(run.deleted) < MAX_OBJECTS:
            run.deleted[target] = now
        if len(self._runs) >= MAX_RUNS:
            # Full of runs that are still going on. Forgetting one would let somebody delete under
            # so many kinds that none is remembered; so everybody's next delete counts as many.
            others = max(others, MAX_OBJECTS)
        if not others:
            run.raised = None  # the window has passed: this is a run of its own
        return Place(target, invocation, run, number, others, bool(session), listed, new)

    @staticmethod
    def refused(place: Place) -> None:
        """
        The request went nowhere, so its object does not count in the run: after `delete --all` was
        refused, one pod by name is one pod. The invocation stays as it is, so that the rest of it
        gets the same answer.
        """
        if place.new:
            place.run.deleted.pop(place.target, None)

    def _invocation(self, username: str, user_agent: str, session: str, now: float) -> Invocation:
        mine = self._invocations.get(username)
        if mine is None:
            mine = self._invocations[username] = OrderedDict()
            if len(self._invocations) > MAX_IDENTITIES:
                self._invocations.popitem(last=False)
        # Two sorts of keys: a User-Agent may spell a session.
        key = ("session", session) if session else ("agent", user_agent[:200])
        found = mine.get(key)
        if found is None or now - found.at > SESSION:
            found = mine[key] = Invocation(now)
            if len(mine) > MAX_INVOCATIONS:
                mine.popitem(last=False)
        found.at = now
        mine.move_to_end(key)
        self._invocations.move_to_end(username)
        return found

    def _run(self, key: tuple[str, str, str, str], now: float) -> Run:
        run = self._runs.get(key)
        if run is None:
            if len(self._runs) >= MAX_RUNS:
                self._sweep(now)
            run = Run()
            if len(self._runs) < MAX_RUNS:
                self._runs[key] = run
        else:
            run.forget(now - self.window)
        return run

    def _sweep(self, now: float) -> None:
        for key, run in list(self._runs.items()):
            run.forget(now - self.window)
            if not run.deleted:
                del self._runs[key]


def collection_of(info: RequestInfo) -> Collection:
    return (info.api_group, info.resource)


def object_of(operation: Operation) -> Object:
    info = operation.info
    namespace = "" if info.resource == "namespaces" else info.namespace
    return (info.api_group, info.resource, namespace, operation.name)


def full_resource(group: str, resource: str) -> str:
    return f"{resource}.{group}" if group else resource


# For people


LONGEST = 320  # characters of a namespace's name (63) and an object's (253)
_VERBS = {"deletecollection": "delete all", "list": "list", "create": "create", "update": "replace"}
_SUBRESOURCES = {
    ("create", "eviction"): "evict",
    ("create", "exec"): "exec in",
    ("get", "exec"): "exec in",
    ("create", "attach"): "attach to",
    ("get", "attach"): "attach to",
    ("create", "portforward"): "port-forward to",
    ("get", "portforward"): "port-forward to",
    ("update", "scale"): "scale",
    ("patch", "scale"): "scale",
}


def summary(operation: Operation, position: str = "") -> str:
    """One line for people: `delete pod shop/web-1 (3 of 14 in this command)`."""
    info = operation.info
    if not info.is_resource_request:
        return f"{info.verb} {_clip(info.path)}"
    known = _SUBRESOURCES.get((info.verb, info.subresource))
    verb = known or _VERBS.get(info.verb, info.verb)
    if info.verb == "patch" and not known and operation.media_type == "application/apply-patch+yaml":
        verb = "apply"
    what = full_resource(info.api_group, info.resource)
    if operation.name and info.verb != "deletecollection":
        # Whole, up to the longest there are: of two names that begin alike an approver must see which.
        what = f"{_singular(info.resource)} {_at(object_of(operation), LONGEST)}"
    elif info.namespace and info.resource != "namespaces":
        what = f"{what} in {info.namespace}"
    sub = f" {info.subresource}" if info.subresource and not known else ""
    words = f"{verb} {what}{sub}"
    replicas = replicas_of(operation)
    if replicas is not None:
        words += f" to {replicas}"
    if info.label_selector:
        words += f" with {_clip(info.label_selector)}"
    if operation.dry_run:
        words += " (dry run)"
    return f"{words} ({position})" if position else words


def _singular(resource: str) -> str:
    if resource.endswith("ies"):
        return resource[:-3] + "y"
    if resource.endswith(("sses", "xes")):
        return resource[:-2]
    return resource.removesuffix("s")


def _at(target: Object, limit: int = 80) -> str:
    _, _, namespace, name = target
    return _clip(f"{namespace}/{name}" if namespace else name, limit)


def names_of(targets: Sequence[Object]) -> tuple[str, ...]:
    """The first few, as messages show them."""
    return tuple(_at(target) for target in targets[:NAMES])


def replicas_of(operation: Operation) -> int | None:
    """The replicas that a request asks for, where it plainly does."""
    body = operation.body
    if not isinstance(body, dict) or operation.info.verb not in ("update", "patch"):
        return None
    spec = body.get("spec")
    replicas = spec.get("replicas") if isinstance(spec, dict) else None
    is_scale = operation.info.subresource == "scale" or (isinstance(spec, dict) and spec.keys() == {"replicas"})
    return replicas if is_scale and isinstance(replicas, int) and not isinstance(replicas, bool) else None


_PROGRAM = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,60})(?:/|\s|$)")
_CLIENT_GO = re.compile(r"^\S+ \([a-z0-9]+/[a-z0-9]+\) (?:kubernetes/\S+|.*)$")
_HELM = re.compile(r"helm\b", re.IGNORECASE)


def command(
    operation: Operation, user_agent: str, invocation: Invocation | None = None, argv: Sequence[str] = ()
) -> str:
    """
    The command an operation belongs to, as it may have been typed. A reconstruction for people
    from what the client says and what came before: never for a decision.
    """
    if operation.claimed_command:
        return _kubectl(operation, invocation, argv)
    if not user_agent:
        return "a program without a name"
    program = _PROGRAM.match(user_agent)
    name = program[1] if program else "program"
    if _HELM.match(name):
        return "helm"
    if "mcp" in name.lower():
        return f"MCP server {name}"
    if name == "kubectl":
        return "kubectl without its headers (kubectl proxy?)"
    return f"client-go program {name}" if _CLIENT_GO.match(user_agent) else f"program {name}"


def _kubectl(operation: Operation, invocation: Invocation | None, argv: Sequence[str]) -> str:
    info, claimed = operation.info, operation.claimed_command
    listed = invocation.listed(info) if invocation else None
    words = [claimed]
    if claimed == "kubectl drain":
        node = listed.node if listed else operation.name if info.resource == "nodes" else ""
        return f"{claimed} {_clip(node)}" if node else claimed
    if claimed.startswith("kubectl apply"):
        if info.verb == "delete" and listed:
            words.append("--prune")
            words += _selectors(listed.info)
        elif operation.media_type == "application/apply-patch+yaml":
            words.append("--server-side")
        words.append("-f …")
    elif listed and info.verb in ("delete", "patch", "update"):
        words += [full_resource(*collection_of(info)), *(_selectors(listed.info) or ["--all"])]
        if info.namespace and not listed.info.namespace:
            return " ".join([*words, "-A"])
    else:
        names = [operation.name] if operation.name else []
        if invocation and info.verb == "delete":
            same = [o[3] for o in invocation.deleted if o[:3] == object_of(operation)[:3]]
            names = [*same[:NAMES], *(["…"] if len(same) > NAMES else [])]
        words += [full_resource(*collection_of(info)), *(_clip(name) for name in names)]
    replicas = replicas_of(operation)
    if replicas is not None:
        words.append(f"--replicas={replicas}")
    if info.namespace and info.resource != "namespaces":
        words += ["-n", info.namespace]
    if argv:
        words += ["--", _clip(" ".join(maskpreviews.words(argv)), 120)]  # it is logged, stored and shown
    return " ".join(words)


def _selectors(info: RequestInfo) -> list[str]:
    words = ["-l", _clip(info.label_selector)] if info.label_selector else []
    return words + ([f"--field-selector={_clip(info.field_selector)}"] if info.field_selector else [])


def _clip(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain(reach: Reach) -> str:
    """`14 pods`, `1 namespace, 3 pods and more`."""
    ordered = sorted((item for item in reach.counts.items() if item[1]), key=_by_weight)
    parts = [f"{count} {_counted(resource, count)}" for resource, count in ordered]
    if not parts:
        return "nothing" if reach.exact else "an unknown number of objects (they could not be counted in time)"
    if len(parts) > SHOWN_KINDS:
        rest = sum(count for _, count in ordered[SHOWN_KINDS:])
        parts = [*parts[:SHOWN_KINDS], f"{rest} other {'object' if rest == 1 else 'objects'}"]
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return text if reach.exact else f"at least {text}"


# What people ask about first.
_WEIGHT = ("namespaces", "nodes", "persistentvolumes", "pods", "persistentvolumeclaims", "deployments.apps")


def _by_weight(item: tuple[str, int]) -> tuple[int, str]:
    resource, _ = item
    return (_WEIGHT.index(resource) if resource in _WEIGHT else len(_WEIGHT), resource)


def _counted(resource: str, count: int) -> str:
    name = resource.partition(".")[0]
    return _singular(name) if count == 1 else name


def position(place: Place, reach: Reach | None, *, in_run: bool = False) -> str:
    """`3 of 14 in this command`, or "" when it is the only one."""
    claimed = place.claimed and not in_run
    number = place.number if claimed else place.others + 1
    where = "in this command" if claimed else "in a row"
    total = reach.total if reach else 0
    if number == 1 and total < 2:
        return ""
    more = "" if reach and reach.exact else "at least "
    return f"{number} of {more}{max(total, number)} {where}"


def described(operation: Operation, user_agent: str, argv: Sequence[str] = ()) -> Operation:
    """The operation with its command and summary, where nothing destroys anything."""
    return replace(operation, command=command(operation, user_agent, None, argv), summary=summary(operation))
