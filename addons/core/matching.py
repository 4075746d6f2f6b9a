"""
Which operations a rule means: the `match` of a rule, compiled when the policy loads.

Matching is asymmetric, because the same doubt must be resolved in opposite directions.
A request without a name (list, generateName, deletecollection) or without a namespace may
reach everything: a deny or hold rule on one name *means* it, an allow rule on one name does
not. `Match.covers` is the allow direction (all of what the request may do is inside the
rule), `Match.reaches` the deny and hold direction (some of it is).

What depends only on verb, resource and impacts is decided once per *kind* of request and
remembered (`Kind`, `covers_kind`, `reaches_kind`); the rest is looked at per request.
"""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

from addons.core import resources
from addons.core.model import Impact, Operation, Uses

READING = frozenset({"get", "list", "watch"})
RESOURCE_VERBS = READING | {"create", "update", "patch", "delete", "deletecollection", "proxy"}
METHOD_VERBS = frozenset({"get", "head", "options", "post", "put", "patch", "delete"})  # non-resource requests
VERBS = RESOURCE_VERBS | METHOD_VERBS

# Patches of something that exists (k8s.io/apimachinery/pkg/types/patch.go). Every other media
# type counts as server-side apply, which creates what is not there (handlers/patch.go).
_PATCHES_ONLY = frozenset(
    {
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    }
)
# One act in two spellings: GET with a WebSocket, POST with SPDY; kubectl tries both in turn.
_STREAMS = frozenset({"exec", "attach", "portforward"})
_EVERY = frozenset({"*"})

# What an impact includes: a mass delete is a delete, a delete is a write, a shell can do both.
_INCLUDES = {
    Impact.REVEAL: frozenset({Impact.READ}),
    Impact.DELETE: frozenset({Impact.WRITE}),
    Impact.MASS_DELETE: frozenset({Impact.DELETE, Impact.WRITE}),
    Impact.EXECUTE: frozenset({Impact.READ, Impact.WRITE}),
    Impact.ESCALATE: frozenset({Impact.WRITE}),
}


class Glob:
    """A list of names or patterns (`*`, `?`; case matters), as one set and one expression."""

    __slots__ = ("_exact", "_pattern", "any", "words")

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(words)
        self.any = "*" in self.words
        self._exact = frozenset(w for w in self.words if not is_pattern(w))
        patterns = [translate(w) for w in self.words if is_pattern(w)]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def __repr__(self) -> str:
        return f"Glob({list(self.words)!r})"

    def matches(self, text: str) -> bool:
        return self.any or text in self._exact or (self._pattern is not None and self._pattern.match(text) is not None)

    def matches_some(self, texts: Iterable[str]) -> bool:
        return any(map(self.matches, texts))

    def matches_all(self, texts: Iterable[str]) -> bool:
        return all(map(self.matches, texts))


def is_pattern(word: str) -> bool:
    return "*" in word or "?" in word


def translate(word: str) -> str:
    """
    The pattern as a regular expression that takes linear time whatever the text is.

    fnmatch gives that since Python 3.11 (atomic groups); its character classes are not in
    our language, so a bracket stands for itself.
    """
    return fnmatch.translate(word.replace("[", "[[]"))


class ResourcePattern:
    """`pods`, `deployments.apps`, `pods/exec`, `*.apps`, `*/scale`, `*`: resource, group, subresource."""

    __slots__ = ("_group", "_resource", "_subresource", "everything", "exact_resource", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        path, slash, subresource = text.partition("/")
        resource, dot, group = path.partition(".")
        self.everything = text == "*"
        self._resource = Glob([resource])
        # No group: every group for `*` (as in RBAC); else the core group to allow, and all to forbid.
        self._group = Glob([group]) if dot else Glob(["*"]) if resource == "*" else None
        self._subresource = Glob([subresource]) if slash else None
        # For the index: "" when it may be any.
        self.exact_resource = "" if is_pattern(resource) else resource

    def covers(self, group: str, resource: str, subresource: str) -> bool:
        """To allow: `pods` is not `pods/exec`, and a resource without a group is the core's."""
        if self.everything:
            return True
        if not self._resource.matches(resource) or not (self._group.matches(group) if self._group else group == ""):
            return False
        return subresource != "" and self._subresource.matches(subresource) if self._subresource else subresource == ""

    def reaches(self, group: str, resource: str, subresource: str) -> bool:
        """To deny or hold: a resource means its subresources too, and without a group it means every group."""
        if self.everything:
            return True
        if not self._resource.matches(resource) or (self._group is not None and not self._group.matches(group)):
            return False
        return self._subresource is None or (subresource != "" and self._subresource.matches(subresource))


@dataclass(frozen=True, slots=True)
class UsesMatch:
    """`match.uses`: lists of what a workload may or must not use; the `_not_in` lists are for deny and hold."""

    service_accounts: Glob | None = None
    secrets: Glob | None = None
    config_maps: Glob | None = None
    host: Glob | None = None
    service_accounts_not_in: Glob | None = None
    secrets_not_in: Glob | None = None
    config_maps_not_in: Glob | None = None
    host_not_in: Glob | None = None

    def covers(self, uses: Uses | None) -> bool:
        """To allow: everything it uses is in the lists. What cannot be read is in no list."""
        if uses is None or uses.unknown:
            return False
        return all(
            allowed is None or allowed.matches_all(used)
            for allowed, used in (
                (self.service_accounts, uses.service_accounts),
                (self.secrets, uses.secrets),
                (self.config_maps, uses.config_maps),
                (self.host, uses.host),
            )
        )

    def reaches(self, uses: Uses | None) -> bool:
        """To deny or hold: something that it uses is in each list (or outside each not-in list), or may be."""
        if uses is None:
            return False  # nothing in the request has a pod template
        if uses.unknown:
            return True
        return all(
            listed is None or listed.matches_some(used)
            for listed, used in (
                (self.service_accounts, uses.service_accounts),
                (self.secrets, uses.secrets),
                (self.config_maps, uses.config_maps),
                (self.host, uses.host),
            )
        ) and all(
            listed is None or not listed.matches_all(used)
            for listed, used in (
                (self.service_accounts_not_in, uses.service_accounts),
                (self.secrets_not_in, uses.secrets),
                (self.config_maps_not_in, uses.config_maps),
                (self.host_not_in, uses.host),
            )
        )


class Kind:
    """What verb, resource and impacts of a request say, in both directions. One is made per kind and kept."""

    __slots__ = (
        "aliases",
        "impacts_needed",
        "impacts_reached",
        "is_resource",
        "subject",
        "verbs_needed",
        "verbs_reached",
    )

    def __init__(self, operation: Operation) -> None:
        info = operation.info
        self.is_resource = info.is_resource_request
        self.subject = (info.api_group, info.resource, info.subresource)
        self.aliases = resources.same_objects(*self.subject)
        self.impacts_needed, self.impacts_reached = _impacts(operation.impacts)
        self.verbs_needed, self.verbs_reached = _verbs(operation)


def creates(operation: Operation) -> bool:
    """A PATCH or PUT that makes the object when it is not there. Subresources never do."""
    info = operation.info
    if not info.is_resource_request or info.subresource:
        return False
    if info.verb == "patch":
        # The same request updates or creates (mcp: the most used MCP server creates only this
        # way), so a rule on `create` that looked at POST alone would be bypassed.
        return operation.media_type not in _PATCHES_ONLY
    return info.verb == "update" and resources.put_may_create(info.api_group, info.resource)


def _verbs(operation: Operation) -> tuple[frozenset[str], frozenset[str]]:
    """(every verb that an allow rule must name, the verbs of which a deny or hold rule must name one)"""
    info = operation.info
    verb, subresource = info.verb, info.subresource
    if not info.is_resource_request:
        return frozenset({verb}), frozenset({verb, "get"} if verb == "head" else {verb})
    if subresource in _STREAMS:
        # `get pods/exec` must not come with the right to read: since 1.35 the API server, too,
        # wants `create` for the WebSocket. And what forbids either spelling forbids both.
        return frozenset({"create"}), frozenset({verb, "get", "create"})
    unknown = Impact.EXECUTE in operation.impacts and subresource != "ephemeralcontainers"
    if verb == "proxy" or subresource == "proxy" or unknown:
        # What a GET does behind a proxy or an unknown subresource is not for this method to say.
        return frozenset({verb, "create"} if verb in READING else {verb}), _EVERY
    needed, reached = {verb}, {verb}
    if creates(operation):
        needed.add("create")
        reached.add("create")
    if verb in ("update", "patch"):
        reached |= {"update", "patch"}  # the same effect by two methods
    elif verb in ("list", "watch"):
        reached |= {"get", "list"}  # both return whole objects, a watch first of all what is there
    elif verb == "deletecollection" or (verb == "create" and subresource == "eviction"):
        reached.add("delete")
    return frozenset(needed), frozenset(reached)


def _impacts(impacts: frozenset[Impact]) -> tuple[frozenset[Impact], frozenset[Impact]]:
    """(the impacts that an allow rule must all name, those of which a deny or hold rule must name one)"""
    included = frozenset().union(*(_INCLUDES.get(impact, frozenset()) for impact in impacts))
    return impacts - included, impacts | included


@dataclass(frozen=True, slots=True)
class Match:
    """The `match` of a rule. `None`: not given, anything. Every field that is given must match."""

    users: Glob | None = None
    user_groups: Glob | None = None
    agents: bool | None = None  # `subjects`: True for [agents], False for [people], None for both
    verbs: frozenset[str] | None = None
    resources: tuple[ResourcePattern, ...] | None = None
    resource_names: Glob | None = None
    namespaces: Glob | None = None
    non_resource_urls: Glob | None = None
    impacts: frozenset[Impact] | None = None
    commands: Glob | None = None  # a claim: never in an allow rule
    uses: UsesMatch | None = None

    def of_this_sort(self, kind: Kind) -> bool:
        """Fields that only one of the two sorts of request has are for that sort."""
        if kind.is_resource:
            return self.non_resource_urls is None
        return self.resources is None and self.resource_names is None and self.namespaces is None and self.uses is None

    def covers_kind(self, kind: Kind) -> bool:
        return (
            self.of_this_sort(kind)
            and (self.verbs is None or "*" in self.verbs or kind.verbs_needed <= self.verbs)
            and (self.impacts is None or kind.impacts_needed <= self.impacts)
            and (self.resources is None or any(p.covers(*kind.subject) for p in self.resources))
        )

    def reaches_kind(self, kind: Kind) -> bool:
        return (
            self.of_this_sort(kind)
            and (
                self.verbs is None
                or "*" in self.verbs
                or kind.verbs_reached is _EVERY
                or not kind.verbs_reached.isdisjoint(self.verbs)
            )
            and (self.impacts is None or not kind.impacts_reached.isdisjoint(self.impacts))
            and (self.resources is None or any(p.reaches(*subject) for p in self.resources for subject in kind.aliases))
        )

    def is_about(self, username: str, groups: frozenset[str], agent: bool) -> bool:
        """The three fields on who asks; a verified identity leaves nothing open."""
        return (
            (self.agents is None or self.agents is agent)
            and (self.users is None or self.users.matches(username))
            and (self.user_groups is None or self.user_groups.matches_some(groups))
        )

    def covers(self, operation: Operation, hidden: bool = False) -> bool:
        """
        To allow, after `covers_kind`: what the request leaves open is covered by `*` only.

        hidden: what it uses is going to be known, so `uses` is left out for now.
        """
        names, namespaces, urls = self.resource_names, self.namespaces, self.non_resource_urls
        if names is not None and not names.any:
            name = name_of(operation)
            if not name or not names.matches(name):
                return False
        if namespaces is not None and not namespaces.any:
            # RequestInfo says of the Namespace object x that it is in namespace x. Who may write
            # in x may not for that relabel or delete x itself.
            info = operation.info
            namespace = "" if _is_namespace(operation) else info.namespace
            if not namespace or not namespaces.matches(namespace):
                return False
        if urls is not None and not urls.matches(operation.info.path):
            return False
        return self.commands is None and (self.uses is None or hidden or self.uses.covers(operation.uses))

    def reaches(self, operation: Operation, hidden: bool = False) -> bool:
        """To deny or hold, after `reaches_kind`: what the request leaves open may be the one that is meant."""
        names, namespaces, urls = self.resource_names, self.namespaces, self.non_resource_urls
        if names is not None:
            name = name_of(operation)
            if name and not names.matches(name):
                return False
        if namespaces is not None and not namespaces.any:
            if operation.info.api_group == resources.OWN_GROUP:
                # Approvals are about a namespace, not in one: a rule on some must not stop people
                # from deciding, nor agents from asking.
                return False
            namespace = name_of(operation) if _is_namespace(operation) else operation.info.namespace
            if namespace and not namespaces.matches(namespace):
                return False
        if urls is not None and not urls.matches(operation.info.path):
            return False
        if self.commands is not None and not self.commands.matches(operation.claimed_command):
            return False
        return self.uses is None or hidden or self.uses.reaches(operation.uses)


def name_of(operation: Operation) -> str:
    """The one object it is about, or "". A field selector does not make a deletecollection about one object."""
    return "" if operation.info.verb == "deletecollection" else operation.name


def _is_namespace(operation: Operation) -> bool:
    return operation.info.resource == "namespaces"  # RequestInfo reads it so in every group
