"""
Mask rules: who sees what is masked.

Without a rule agents see nothing of what is secret and people all of it. A rule changes that
for what it matches. What masks is matched as a deny rule is, what shows as an allow rule
(addons/core/matching.py): what a request leaves open counts against it. Masking wins over
showing, so the order of rules and files never matters.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from addons.core import cel
from addons.core.maskfields import FieldPath
from addons.core.matching import Kind, Match
from addons.core.model import Operation


class Mask(enum.Enum):
    """What a rule says of what it matches."""

    ALWAYS = "always"  # masked, for people too
    NEVER = "never"  # shown, to agents too
    EXCEPT = "except"  # shown to those of whom the expression is true, masked for everybody else
    APPROVED = "approved"  # shown when a person approved this very request (break-glass), else masked


@dataclass(frozen=True, slots=True, eq=False)
class MaskRule:
    """One rule of a policy's `mask` section."""

    policy: str
    name: str
    match: Match
    mask: Mask | None  # None: it only frees writes
    fields: tuple[FieldPath, ...] = ()  # none: all that is secret in the matched objects
    exempt: cel.Program | None = None  # of EXCEPT
    free_writes: bool = False  # no hold on setting what the client does not see
    digest: str = ""  # of the rule's text
    place: str = ""  # `file.yaml:12`

    @property
    def full_name(self) -> str:
        return f"{self.policy}/{self.name}"


@dataclass(frozen=True, slots=True)
class MaskLevel:
    """What is masked of one exchange."""

    builtin: bool = True  # what addons.core.masking knows to be secret
    masked: tuple[FieldPath, ...] = ()  # fields that rules mask besides
    shown: tuple[FieldPath, ...] = ()  # fields that rules show all the same
    free_writes: bool = False
    rules: tuple[str, ...] = ()  # full names of the rules that had a say, for the record

    @property
    def masks(self) -> bool:
        """Whether anything may be masked at all."""
        return self.builtin or bool(self.masked)


EVERYTHING = MaskLevel()  # what agents get
NOTHING = MaskLevel(builtin=False)


def level(
    rules: Iterable[MaskRule],
    operation: Operation,
    *,
    username: str,
    groups: frozenset[str],
    agent: bool,
    values: Mapping[str, Any],
    approved: bool = False,
) -> MaskLevel:
    """
    What of the operation's answer and frames this identity must not see.

    `values` is the identity as expressions see it; `approved`: a person approved this very
    request. Addons ask PolicySet.mask_level, which knows all of it.
    """
    masks_all = shows_all = free = False
    masked: list[FieldPath] = []
    shown: list[FieldPath] = []
    named: list[str] = []
    kind: Kind | None = None
    for rule in rules:
        match = rule.match
        if not match.is_about(username, groups, agent):
            continue
        kind = kind or Kind(operation)
        reached = match.reaches_kind(kind) and match.reaches(operation)
        if not reached:
            continue
        covered = match.covers_kind(kind) and match.covers(operation)
        named.append(rule.full_name)
        free = free or (rule.free_writes and covered)
        if rule.mask is None:
            continue
        shows = rule.mask is Mask.NEVER or (rule.mask is Mask.APPROVED and approved) or _is_exempt(rule, values)
        if not shows:
            masked += rule.fields
            masks_all = masks_all or not rule.fields
        elif covered:
            # direction: what is matched in doubt only is not shown.
            shown += rule.fields
            shows_all = shows_all or not rule.fields
    builtin = masks_all or (agent and not shows_all)
    kept = tuple(path for path in shown if path not in masked)
    return MaskLevel(builtin, tuple(dict.fromkeys(masked)), tuple(dict.fromkeys(kept)), free, tuple(named))


def for_records(rules: Iterable[MaskRule], operation: Operation) -> MaskLevel:
    """What is masked in records, logs, approvals and notifications: all of it, for everybody."""
    kind = Kind(operation)
    found = [
        path
        for rule in rules
        if rule.match.reaches_kind(kind) and rule.match.reaches(operation) and rule.mask is not Mask.NEVER
        for path in rule.fields
    ]
    return MaskLevel(masked=tuple(dict.fromkeys(found)))


def _is_exempt(rule: MaskRule, values: Mapping[str, Any]) -> bool:
    """direction: an expression that errs shows nothing."""
    if rule.mask is not Mask.EXCEPT or rule.exempt is None:
        return False
    try:
        return rule.exempt.evaluate({"identity": values}) is True
    except cel.CelError:
        return False
