"""
Explain: of every rule, whether it matches a request, and if not, the first reason why.

Each field of a match is asked by itself, with the very functions that decide: a match is the
conjunction of its fields, so what is said here is what happens there (a property test).

The same for mask rules, and what of the answer is masked in the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from addons.core import admission, maskanswers, maskchannels, maskwrites, policy
from addons.core.maskanswers import Form
from addons.core.maskfields import FieldPath
from addons.core.maskpolicy import Mask, MaskLevel, MaskRule
from addons.core.matching import Glob, Kind, Match, ResourcePattern
from addons.core.model import Action, Approval, Identity, Impact, Operation
from addons.core.policy import PolicySet, Rule

_ORDER = ("agents", "users", "user_groups", "verbs", "resources", "non_resource_urls", "impacts", "namespaces",
          "resource_names", "commands", "uses")  # fmt: skip
_WORDS = {
    "agents": "subjects",
    "user_groups": "userGroups",
    "resource_names": "resourceNames",
    "non_resource_urls": "nonResourceURLs",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One rule and this request."""

    rule: Rule
    observe: bool  # of a policy that only observes
    matches: bool
    why: str  # what did not match, or what the match hangs on


def explain(
    policies: PolicySet, identity: Identity, operation: Operation, objects: admission.Objects | None = None
) -> list[Line]:
    """Every rule of every policy: deny first, as they are asked."""
    found = []
    for one in policies.policies:
        for rule in one.rules:
            matches, why = _one(policies, rule, identity, operation, objects)
            found.append(Line(rule, one.observe, matches, why))
    return sorted(found, key=lambda line: (-line.rule.action, line.rule.full_name))


@dataclass(frozen=True, slots=True)
class MaskLine:
    """One mask rule and this request."""

    rule: MaskRule
    observe: bool
    matches: bool
    why: str  # what did not match, or why it shows nothing all the same


def explain_masks(policies: PolicySet, identity: Identity, operation: Operation) -> list[MaskLine]:
    """Every mask rule of every policy, in the order of the files."""
    kind = Kind(operation)
    return [
        MaskLine(rule, one.observe, *_mask_rule(policies, rule, identity, operation, kind))
        for one in policies.policies
        for rule in one.masks
    ]


def _mask_rule(
    policies: PolicySet, rule: MaskRule, identity: Identity, operation: Operation, kind: Kind
) -> tuple[bool, str]:
    uncovered = ""
    for name in _ORDER:
        value = getattr(rule.match, name)
        if value is None:
            continue
        match = Match(**{name: value})
        if not (policies.is_about(match, identity) and match.reaches_kind(kind) and match.reaches(operation)):
            return False, f"{_WORDS.get(name, name)}: {_said(name, value, operation, identity, kind, allow=False)}"
        if not uncovered and not (match.covers_kind(kind) and match.covers(operation)):
            uncovered = f"{_WORDS.get(name, name)}: {_said(name, value, operation, identity, kind, allow=True)}"
    if uncovered and (rule.free_writes or rule.mask is not Mask.ALWAYS):
        # As maskpolicy.level: in doubt a rule masks, and shows or frees nothing.
        return True, f"shows nothing, {uncovered}"
    return True, ""


_COMES = {
    Form.OBJECTS: "what is secret in the answer is masked",
    Form.EVENTS: "what is secret is masked, event by event",
    Form.TEXT: "what looks like a secret in the text is masked, as far as it is known",
    Form.FRAMES: "what looks like a secret in the output is masked, as far as it is known",
}
_STREAMS = frozenset({"exec", "attach", "portforward"})


def masking_words(policies: PolicySet, identity: Identity, operation: Operation) -> list[str]:
    """How the answer to this request is masked for this identity. One line each."""
    info = operation.info
    if info.subresource in _STREAMS and not info.api_group and not operation.upgrade:
        operation = replace(operation, upgrade="websocket")  # as kubectl asks for it
    form = maskanswers.form_of(operation)
    if form is Form.NOTHING:
        return ["nothing secret is in the answer, so none of it is masked"]
    level = policies.mask_level(identity, operation)
    lines = [_level_words(level, form)]
    refusal = (
        maskwrites.comes_back(operation)
        or maskwrites.reads_back(operation, level)
        or maskchannels.refusal(operation, level, maskchannels.PROTOCOLS)
    )
    if refusal is not None:
        return [f"refused: {refusal.message}"]
    if level.free_writes and operation.info.verb in ("update", "patch"):
        lines.append("masked fields may be set without asking")
    if (approved := policies.mask_level(identity, operation, approved=True)) != level:
        lines.append(f"with an approval: {_level_words(approved, form)}")
    return lines


def _level_words(level: MaskLevel, form: Form) -> str:
    words = [_COMES[form] if level.builtin else ""]
    if level.masked and form in (Form.OBJECTS, Form.EVENTS):
        words.append(f"{'also' if level.builtin else 'masked are'} {_paths(level.masked)}")
    if level.builtin and level.shown:
        words.append(f"but not {_paths(level.shown)}")
    return ", ".join(filter(None, words)) or "nothing is masked"


def _paths(paths: Sequence[FieldPath]) -> str:
    shown = ", ".join(path.text for path in paths[:10])
    return shown if len(paths) <= 10 else f"{shown} and {len(paths) - 10} more"


_DEFAULT = Approval()


def approval_words(approval: Approval) -> list[str]:
    """Who must say yes, and on what terms, as far as these are not the usual ones. One line each."""
    names = [*(f"group {name}" for name in approval.groups), *(f"user {name}" for name in approval.users)]
    lines = [
        f"approved by {approval.needed} of {' or '.join(names)}, who logged in at most {_span(approval.max_token_age)}"
        f" before; waits {_span(approval.wait)}, valid {_span(approval.valid)}"
    ]
    terms = (
        (approval.claims, f"the approver's claims: {approval.claims}"),
        (approval.owner, f"by somebody who acts for another owner: {approval.owner}"),
        (approval.require_reason, "a decision says why"),
        (
            approval.max_pending != _DEFAULT.max_pending,
            f"at most {approval.max_pending} open questions of one requester",
        ),
        (approval.cooldown != _DEFAULT.cooldown, f"after a no, not asked again for {_span(approval.cooldown)}"),
        (approval.drift, f"a namespace may grow by {approval.drift} objects before it is deleted"),
        (approval.retry, "undecided is 429, and clients try again"),
        (
            approval.grant_for,
            f"a yes opens the rule for {_span(approval.grant_for)}, "
            + ("everywhere" if approval.grant_scope == "rule" else "in the namespace"),
        ),
    )
    return lines + [" ".join(said.split()) for holds, said in terms if holds]


def _span(seconds: int) -> str:
    """`25s`, `15m`, `1h30m`, as a policy writes it."""
    hours, rest = divmod(seconds, 3600)
    parts = ((hours, "h"), (rest // 60, "m"), (rest % 60, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"


def _one(
    policies: PolicySet,
    rule: Rule,
    identity: Identity,
    operation: Operation,
    objects: admission.Objects | None,
) -> tuple[bool, str]:
    if objects is not None:
        operation = admission.revealed(operation, objects)
    kind = Kind(operation)
    # What a patch hides, the gateway looks up before it decides.
    hidden = objects is None and operation.uses is not None and operation.uses.unknown
    asks = hidden and rule.asks_uses and not admission.no_preview(operation)
    for name in _ORDER:
        value = None if asks and name == "uses" else getattr(rule.match, name)
        if value is not None and not _field(policies, rule, Match(**{name: value}), identity, operation, kind):
            said = _said(name, value, operation, identity, kind, allow=rule.action is Action.ALLOW)
            return False, f"{_WORDS.get(name, name)}: {said}"
    if policy.never_holds(rule.action, kind):
        return False, "approvals themselves are never held"
    if rule.needs & {"object", "oldObject"} and not admission.has_object(operation):
        return False, "looks at an object, and this request changes none"
    if asks:
        return rule.action is not Action.ALLOW, f"hangs on {' and '.join(sorted(rule.needs | admission.OBJECT))}"
    return policies.conditions(rule, identity, operation, objects)


def _field(policies: PolicySet, rule: Rule, match: Match, identity: Identity, operation: Operation, kind: Kind) -> bool:
    if not policies.is_about(match, identity):
        return False
    if rule.action is Action.ALLOW:
        return match.covers_kind(kind) and match.covers(operation)
    return match.reaches_kind(kind) and match.reaches(operation)


def _said(name: str, value: object, operation: Operation, identity: Identity, kind: Kind, *, allow: bool) -> str:
    """What the request has, and what the rule lists."""
    info = operation.info
    listed = _listed(value)
    match name:
        case "agents":
            return f"is for {'agents' if value else 'people'}"
        case "users":
            return f"{identity.username!r} is none of {listed}"
        case "user_groups":
            return f"no group of {identity.username!r} is in {listed}"
        case "verbs":
            needed = sorted(kind.verbs_needed) if allow else [info.verb]
            return f"{' and '.join(needed)} is not in {listed}"
        case "resources":
            return f"{info.full_resource or info.path} is none of {listed}"
        case "non_resource_urls":
            return f"{info.path} is none of {listed}"
        case "impacts":
            has = sorted(kind.impacts_needed if allow else kind.impacts_reached, reverse=True)
            return f"{', '.join(impact.word for impact in has)}: {'not all' if allow else 'none'} is in {listed}"
        case "namespaces":
            return f"{info.namespace or 'no namespace, so all of them,'} is not in {listed}"
        case "resource_names":
            return f"{operation.name or 'no name, so any of them,'} is not in {listed}"
        case "commands":
            return f"{operation.claimed_command or 'no command'} is not in {listed}"
        case _:
            if operation.uses is None:
                return "the request has no pod template"
            return "what the pod template uses is not all in the lists" if allow else "nothing it uses is meant"


def _listed(value: object) -> str:
    if isinstance(value, Glob):
        words: Sequence[str] = value.words
    elif isinstance(value, frozenset):
        words = sorted(v.word if isinstance(v, Impact) else str(v) for v in value)
    elif isinstance(value, tuple):
        words = [v.text for v in value if isinstance(v, ResourcePattern)]
    else:
        return str(value)
    return f"[{', '.join(words)}]"
