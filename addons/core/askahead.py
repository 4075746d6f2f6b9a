"""
Asking ahead: which hold rules an AccessRequest would open, before there is a request to hold.

The answer is about verbs, resources and a namespace, not about one request. A name and a body
are not known yet, so:

- a hold rule counts when it may hold any such request, also one on some names only: a yes must
  then be everybody's whom those rules name;
- a deny rule counts when it denies each of them. One that hangs on the name, the object or what a
  pod template uses is asked again for every request, and a grant never beats it;
- an allow rule counts as it always does, when nothing is left open.

Budgets are not asked about: what is over one is held when it is.

What is not known for certain (a resource that nobody has heard of, a verb that a subresource does
not have, a pattern that no hold rule has itself) is refused with a sentence.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from addons.core import admission, classify, kubectl, policy, policyfields, resources, status, uses
from addons.core.matching import RESOURCE_VERBS, Kind, ResourcePattern, is_pattern
from addons.core.model import Action, Hold, Identity, Operation, Uses
from addons.core.policy import PolicySet, Rule

MAX_VERBS = 10
MAX_RESOURCES = 20
MAX_COMBINATIONS = 300  # of verbs and resources; each takes 100 µs while others wait

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# A name that no rule is about. Conditions see it where a request cannot do without one.
NAME = "x-name-not-said"
_UNNAMED = frozenset({"list", "watch", "deletecollection", "create"})
_METHODS = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
    "deletecollection": "DELETE",
}
# exec and its kin need `create` to be allowed, by GET or POST (matching): that is the word for them.
_SUBRESOURCE_VERBS = {
    **dict.fromkeys(("exec", "attach", "portforward", "eviction", "binding", "token"), frozenset({"create"})),
    "log": frozenset({"get"}),
    "finalize": frozenset({"update"}),
    "proxy": frozenset({"get", "create", "update", "patch", "delete"}),
}
_CHANGED = frozenset({"get", "update", "patch"})  # of any other subresource: status, scale, resize


class _No(Exception):
    """There is nothing to open; one sentence."""


def ask_ahead(
    policies: PolicySet,
    identity: Identity,
    verbs: Sequence[str],
    resource_words: Sequence[str],
    namespace: str,
    *,
    own_namespace: str = "tollgate",
) -> tuple[tuple[Hold, ...], str]:
    """
    (the hold rules that a yes would have to satisfy, "") or ((), why there is nothing to ask for).

    namespace: "" is everywhere, and the only one for what is cluster-wide.
    """
    try:
        found: dict[str, Hold] = {}
        for operation in _operations(policies, identity, verbs, resource_words, namespace, own_namespace):
            for rule in _holding(policies, identity, operation):
                found[rule.full_name] = Hold(rule.policy, rule.name, rule.message, rule.approval)
    except _No as no:
        return (), str(no)
    if not found:
        return (), "you may do all of this already; send the requests"
    return tuple(found[name] for name in sorted(found)), ""


# ----- the requests that are meant -----


def _operations(
    policies: PolicySet,
    identity: Identity,
    verbs: Sequence[str],
    words: Sequence[str],
    namespace: str,
    own_namespace: str,
) -> Iterator[Operation]:
    if not verbs or not words:
        raise _No("name at least one verb and one resource")
    if len(verbs) > MAX_VERBS or len(words) > MAX_RESOURCES:
        raise _No(f"at most {MAX_VERBS} verbs and {MAX_RESOURCES} resources can be asked for; ask for less")
    if namespace and not _NAMESPACE.fullmatch(namespace):
        raise _No("namespace: is no name of one, and patterns are not read; leave it out to ask for all of them")
    holds = _hold_rules(policies, identity)
    wide = any("*" in (rule.match.verbs or ()) for rule in holds)
    for verb in verbs:
        if verb == "*" and not wide:
            raise _No("verbs: no hold rule is about every verb; name those you need")
        if verb != "*" and verb not in _METHODS:
            raise _No(f"verbs: {_clip(verb)} is no verb of a resource; use {', '.join(_METHODS)}")
    count = 0
    for word in words:
        for group, resource, subresource in _subjects(word, holds):
            known = _verbs_of(resource, subresource)
            for verb in sorted(known) if "*" in verbs else dict.fromkeys(verbs):
                if verb not in known:
                    raise _No(f"verbs: {_clip(word)} has no {verb}; it has {', '.join(sorted(known))}")
                operation = _operation(verb, group, resource, subresource, namespace, own_namespace)
                # The grant is matched as an allow rule is.
                if "*" not in verbs and (more := Kind(operation).verbs_needed.difference(verbs)):
                    raise _No(f"verbs: {verb} of {_clip(word)} may be a {' and '.join(more)}; ask for that too")
                count += 1
                if count > MAX_COMBINATIONS:
                    raise _No("these are too many resources at once; name those you need")
                yield operation


def _subjects(word: str, holds: Sequence[Rule]) -> Iterator[tuple[str, str, str]]:
    """(group, resource, subresource) of `pods/exec`, `deployments.apps`; of a pattern all that is built in."""
    # As an allow rule names them, since the grant will be matched as one.
    if why := policyfields.resource_trouble(word, allow=True):
        raise _No(f"resources: {why.replace(chr(39), '')}")
    path, _, subresource = word.partition("/")
    resource, dot, group = path.partition(".")
    if not is_pattern(word):
        known = group in resources.BUILT_IN and resource in resources.BUILT_IN[group]
        if known and subresource and subresource not in resources.subresources(group, resource):
            raise _No(f"resources: {_clip(path)} has no subresource {_clip(subresource)}")
        if not known and subresource not in ("", "status", "scale"):
            raise _No(f"resources: what {_clip(word)} does is not known here, so it is asked for when it is needed")
        yield group, resource, subresource
        return
    patterns = {pattern.text for rule in holds for pattern in rule.match.resources or ()}
    if word not in patterns:
        raise _No(f"resources: no hold rule is about {_clip(word)}; name the resources you need")
    if dot and group not in resources.BUILT_IN:
        raise _No(f"resources: what is in {_clip(group)} is not known here; name the resources you need")
    pattern = ResourcePattern(word)
    for known_group, names in resources.BUILT_IN.items():
        for name in sorted(names):
            for sub in ("", *resources.subresources(known_group, name)):
                if pattern.covers(known_group, name, sub):
                    yield known_group, name, sub


def _verbs_of(resource: str, subresource: str) -> frozenset[str]:
    if not subresource:
        return RESOURCE_VERBS - {"proxy"}
    if (resource, subresource) == ("pods", "ephemeralcontainers"):
        return _CHANGED
    return _SUBRESOURCE_VERBS.get(subresource, _CHANGED)


def _operation(verb: str, group: str, resource: str, subresource: str, namespace: str, own_namespace: str) -> Operation:
    """The request as it would be, as far as it can be known: its name stands for any, its body for nothing."""
    if namespace and group in resources.BUILT_IN and resource in kubectl.CLUSTER_WIDE:
        raise _No(f"resources: {resource} are in no namespace; leave the namespace out")
    version = "v1alpha1" if group == resources.OWN_GROUP else "v1"
    root = f"/apis/{group}/{version}" if group else "/api/v1"
    inside = f"/namespaces/{namespace}" if namespace else ""
    named = subresource != "" or verb not in _UNNAMED
    target = f"{root}{inside}/{resource}" + (f"/{NAME}" if named else "") + (f"/{subresource}" if subresource else "")
    method = _METHODS[verb]
    try:
        head = classify.read_head(method, f"{target}?watch=true" if verb == "watch" else target, own_namespace)
    except status.Refused:
        raise _No(f"resources: {_clip(resource)} is in no group that could be") from None
    info = head.info
    where = NAME if resource == "namespaces" and named else namespace  # as RequestInfo says of a Namespace
    meant = (verb, group, resource, subresource, where)
    if (info.verb, info.api_group, info.resource, info.subresource, info.namespace) != meant:
        raise _No(f"resources: {_clip(resource)} reads as something else in a path")
    has_template = (group, resource) in uses.POD_SPECS and subresource in ("", "ephemeralcontainers")
    return Operation(
        info=info,
        method=method,
        impacts=head.impacts,
        # Whoever creates one object gives it a name, as a rule.
        name=NAME if named or verb == "create" else "",
        # Who runs in it is not known: a rule about that may hold it.
        uses=Uses(unknown=True) if has_template and verb in ("create", "update", "patch") else None,
        media_type="application/merge-patch+json" if verb == "patch" else "",
    )


# ----- what the rules say -----


def _hold_rules(policies: PolicySet, identity: Identity) -> list[Rule]:
    rules = (rule for one in policies.policies if not one.observe for rule in one.rules)
    return [rule for rule in rules if rule.action is Action.HOLD and policies.is_about(rule.match, identity)]


def _holding(policies: PolicySet, identity: Identity, operation: Operation) -> list[Rule]:
    """The rules that may hold it; none when it is allowed. Raises _No when it is denied, or nothing is about it."""
    kind, holds, allowed = Kind(operation), [], False
    anything = replace(operation, name="")
    for one in policies.policies:
        for rule in () if one.observe else one.rules:
            match = rule.match
            if not policies.is_about(match, identity):
                continue
            if rule.action is Action.ALLOW:
                if match.covers_kind(kind) and match.covers(operation):
                    allowed = allowed or _applies(policies, rule, identity, operation) is True
            elif not match.reaches_kind(kind) or policy.never_holds(rule.action, kind):
                continue
            elif rule.action is Action.HOLD:
                # On any name: what it may hold must be satisfied.
                if match.reaches(anything) and _applies(policies, rule, identity, operation) is not False:
                    holds.append(rule)
            elif match.reaches(operation) and _applies(policies, rule, identity, operation) is True:
                why = f": {rule.message}" if rule.message else "; ask the owners of the policy"
                raise _No(f"rule {rule.full_name} denies {_described(operation)}{why}")
    if not holds and not allowed:
        raise _No(f"no rule is about {_described(operation)}, so there is nothing to open; ask for a rule")
    return holds


def _applies(policies: PolicySet, rule: Rule, identity: Identity, operation: Operation) -> bool | None:
    """Whether its conditions let it apply; None when that hangs on what only the request itself will show."""
    if rule.needs & {"object", "oldObject"} and not admission.has_object(operation):
        return False
    unknown = operation.uses is not None and operation.uses.unknown
    if rule.needs or (unknown and rule.asks_uses):
        return None
    return policies.conditions(rule, identity, operation)[0]


def _described(operation: Operation) -> str:
    return policy.describe(replace(operation, name=""))


def _clip(text: str, limit: int = 60) -> str:
    plain = "".join(c for c in text if c.isprintable() and c not in "'\"\\")
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"
