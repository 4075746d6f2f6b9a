"""
What is no mistake in a policy, and yet not what its author meant: rules that can never match,
that a deny always beats, or that say what another one says.

Said only when it is certain; a rule that is not named here may still never match.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from addons.core import impacts, kubectl, resources
from addons.core.maskpolicy import Mask, MaskRule
from addons.core.matching import METHOD_VERBS, RESOURCE_VERBS, Glob, Kind, Match, ResourcePattern
from addons.core.model import Action, Impact, Operation, RequestInfo
from addons.core.policy import PolicySet, Rule

# Each pair of rules is compared; more would take minutes.
MAX_RULES = 1000

_READING = frozenset({"get", "list", "watch"})
_COLLECTIONS = frozenset({"deletecollection"})


def warnings(policies: PolicySet) -> list[str]:
    """One line each: `file.yaml:12: rule agents/x: sentence`."""
    rules = [rule for policy in policies.policies for rule in policy.rules]
    said = {id(rule): why for rule in rules if (why := _never(rule, policies))}
    if len(rules) <= MAX_RULES:
        enforced = [rule for policy in policies.policies if not policy.observe for rule in policy.rules]
        for rule in rules:
            if id(rule) not in said and (why := _beaten(rule, enforced) or _said_already(rule, rules)):
                said[id(rule)] = why
    found = [f"{rule.place}: rule {rule.full_name}: {said[id(rule)]}" for rule in rules if id(rule) in said]
    masks = [rule for policy in policies.policies for rule in policy.masks]
    return found + [
        f"{rule.place}: mask rule {rule.full_name}: {why}" for rule in masks if (why := _idle(rule, masks, policies))
    ]


def nobody_approves(policies: PolicySet) -> str:
    """Why all that is held stays held, or "". Not a mistake of one file: people are said in another, as a rule."""
    holds = any(rule.action is Action.HOLD for policy in policies.policies for rule in policy.rules)
    holds = holds or any(budget.over is Action.HOLD for budget in policies.budgets)
    if holds and not any(policy.people for policy in policies.policies if not policy.observe):
        return (
            "no policy says who people are (`people:`), so everybody is an agent, and nobody can approve what is held"
        )
    return ""


# Rules that can never match


def _never(rule: Rule, policies: PolicySet) -> str:
    match = rule.match
    if match.agents is False and not any(policy.people for policy in policies.policies):
        return "is for people, and no policy says who people are (`people:`); it never matches"
    if rule.action is Action.ALLOW and (why := _never_allows(match)):
        return why
    if match.non_resource_urls is None and not _some_kind(rule):
        return "no request has these verbs, resources and impacts together; it never matches"
    return ""


def _idle(rule: MaskRule, masks: Sequence[MaskRule], policies: PolicySet) -> str:
    """Why a mask rule changes nothing of what is so without any: people see all of it, agents nothing."""
    agents = rule.match.agents
    if agents is False and not any(policy.people for policy in policies.policies):
        return "is for people, and no policy says who people are (`people:`); it never matches"
    if rule.free_writes:
        return ""
    if rule.mask is Mask.NEVER and agents is False and not any(r.mask is not Mask.NEVER and r.mask for r in masks):
        return "shows to people what no rule masks for them; it has no effect"
    if rule.mask is Mask.ALWAYS and agents is True and not rule.fields:
        shows = any(other.mask not in (None, Mask.ALWAYS) and other.match.agents is not False for other in masks)
        return "" if shows else "masks for agents what no rule shows them; it has no effect"
    return ""


def _never_allows(match: Match) -> str:
    somewhere = match.namespaces is not None and not match.namespaces.any
    if somewhere and match.resources and all(_is_cluster_wide(pattern) for pattern in match.resources):
        return "allows in some namespaces what is in none (cluster-wide resources); use resourceNames"
    if match.resource_names is not None and not match.resource_names.any and match.verbs == _COLLECTIONS:
        return "allows deletecollection by name, which has no name; leave resourceNames out"
    return ""


def _is_cluster_wide(pattern: ResourcePattern) -> bool:
    return pattern.exact_resource in kubectl.CLUSTER_WIDE


def _some_kind(rule: Rule) -> bool:
    """Whether any request that we know of has these verbs, resources and impacts."""
    match = rule.match
    if match.impacts is None and (match.resources is None or match.verbs is None or "*" in match.verbs):
        return True  # verbs by themselves were checked by the loader
    if match.verbs is not None and "proxy" in match.verbs:
        return True
    if match.resources and any(_foreign(pattern) for pattern in match.resources):
        return True
    allow = rule.action is Action.ALLOW
    kinds = (Kind(operation) for operation in _operations(match.resources))
    return any(match.covers_kind(kind) if allow else match.reaches_kind(kind) for kind in kinds)


def _foreign(pattern: ResourcePattern) -> bool:
    """Whether it names what is not built in: of that, nothing is known here."""
    path, slash, subresource = pattern.text.partition("/")
    _, dot, group = path.partition(".")
    known = {"scale", "status"} | {name for names in resources.SUBRESOURCES.values() for name in names}
    return (dot != "" and group not in resources.BUILT_IN) or (slash != "" and subresource not in known)


def _subjects(patterns: tuple[ResourcePattern, ...] | None) -> Iterator[tuple[str, str, str]]:
    named = {p.exact_resource for p in patterns or ()}
    for group, names in resources.BUILT_IN.items():
        for name in names:
            if not named or "" in named or name in named:
                for subresource in ("", *resources.subresources(group, name)):
                    yield group, name, subresource


def _operations(patterns: tuple[ResourcePattern, ...] | None) -> Iterator[Operation]:
    """A request of every kind."""
    for subject in _subjects(patterns):
        yield from _of_subject(*subject)
    if patterns is None:
        for method, path in product(sorted(METHOD_VERBS), ("/version", "/metrics")):
            yield Operation(RequestInfo(method, path), method.upper(), impacts.of_page(method.upper(), path))


def _of_subject(group: str, resource: str, subresource: str) -> Iterator[Operation]:
    # Not `proxy`, a prefix that no API server has any more: it counts as every verb.
    for verb in sorted(RESOURCE_VERBS - {"proxy"}):
        info = RequestInfo(
            verb,
            "/",
            is_resource_request=True,
            api_group=group,
            resource=resource,
            subresource=subresource,
            name="x",
            parts=tuple(filter(None, (resource, "x", subresource))),
        )
        found = impacts.of_resource(info, "tollgate")
        choices = [found, found | {Impact.ESCALATE}]  # a body, a name or a header may escalate
        if verb not in _READING:
            # What a body adds, what a command takes along, and a dry run that takes it all away.
            choices += [found | {Impact.DELETE}, found | {Impact.DELETE, Impact.MASS_DELETE}, impacts.lowered(found)]
            if resource == "pods":
                choices.append(found | {Impact.EXECUTE})
        medias = ("application/apply-patch+yaml", "application/merge-patch+json") if verb == "patch" else ("",)
        for choice, media in product(choices, medias):
            yield Operation(info, "GET", choice, "x", media_type=media)


# Rules that a deny always beats, or another one makes needless


def _beaten(rule: Rule, enforced: Sequence[Rule]) -> str:
    if rule.action is Action.DENY:
        return ""
    for deny in enforced:
        if deny.action is Action.DENY and _unconditional(deny) and _inside(rule, deny.match):
            return f"rule {deny.full_name} denies all that it matches; it never has an effect"
    return ""


def _said_already(rule: Rule, rules: Sequence[Rule]) -> str:
    for other in rules:
        if other is rule:
            return ""  # of two that are equal, the second is named
        if other.action is rule.action and other.policy == rule.policy and _signature(other) == _signature(rule):
            return f"says what rule {other.full_name} says"
    return ""


def _signature(rule: Rule) -> str:
    when, unless = (program.source if program else "" for program in (rule.when, rule.unless))
    match = replace(rule.match, resources=None)
    return f"{match!r} {[p.text for p in rule.match.resources or ()]} {when!r} {unless!r} {rule.approval!r}"


def _unconditional(rule: Rule) -> bool:
    return rule.when is None and rule.unless is None


def _inside(rule: Rule, deny: Match) -> bool:
    """Whether everything that the rule matches is also reached by the match of a deny rule."""
    match = rule.match
    if deny.uses is not None or deny.commands is not None:
        return False
    if deny.agents is not None and deny.agents is not match.agents:
        return False
    if deny.verbs is not None and "*" not in deny.verbs and not _verbs_inside(match, deny.verbs):
        return False
    if deny.impacts is not None and (match.impacts is None or not match.impacts <= deny.impacts):
        return False
    if deny.resources is not None and not _resources_inside(match.resources, deny.resources):
        return False
    return all(
        wide is None or (narrow is not None and _globs_inside(narrow, wide))
        for narrow, wide in (
            (match.users, deny.users),
            (match.user_groups, deny.user_groups),
            (match.resource_names, deny.resource_names),
            (match.namespaces, deny.namespaces),
            (match.non_resource_urls, deny.non_resource_urls),
        )
    )


def _verbs_inside(match: Match, wide: frozenset[str]) -> bool:
    if match.verbs is None or "*" in match.verbs:
        known = METHOD_VERBS if match.non_resource_urls is not None else RESOURCE_VERBS
        return known <= wide
    return match.verbs <= wide


def _globs_inside(narrow: Glob, wide: Glob) -> bool:
    """Each word of the one is matched whole by the other: `prod-a-*` by `prod-*`. `?` is taken as a letter only."""
    plain = Glob([word for word in wide.words if "?" not in word]) if wide.words else wide
    return all(word in wide.words or plain.matches(word) for word in narrow.words)


def _resources_inside(narrow: tuple[ResourcePattern, ...] | None, wide: tuple[ResourcePattern, ...]) -> bool:
    if narrow is None:
        return False  # non-resource requests, too
    return all(any(w.everything or _resource_inside(n.text, w.text) for w in wide) for n in narrow)


def _resource_inside(narrow: str, wide: str) -> bool:
    if narrow == wide:
        return True
    if "*" in narrow or "?" in narrow or "?" in wide:
        return False
    path, _, subresource = narrow.partition("/")
    resource, _, group = path.partition(".")
    return ResourcePattern(wide).reaches(group, resource, subresource) and not (
        # `pods` in a hold rule means its subresources too, `*/scale` does not mean `pods`.
        "/" in wide and not subresource
    )
