"""
The `mask` section of a policy file: YAML in, MaskRules out, or every mistake with its line.
"""

import hashlib
import json
from typing import TYPE_CHECKING

from addons.core import maskfields
from addons.core.maskfields import FieldPath
from addons.core.maskpolicy import Mask, MaskRule
from addons.core.matching import Match
from addons.core.model import Action
from addons.core.yamltree import Node

if TYPE_CHECKING:
    from addons.core.policyfields import Fields

MASK_FIELDS = ("name", "match", "fields", "mask", "except", "writes")
MASK_WORDS = (Mask.ALWAYS.value, Mask.NEVER.value, Mask.APPROVED.value)
# The identity with `agent`, which is decided before any mask rule is asked.
VARIABLES = {"identity": "map(string,dyn)"}


def rules(reader: "Fields", node: Node, policy_name: str, lines: dict[str, int]) -> list[MaskRule]:
    """`lines` is where each name is, of rules, budgets and mask rules together."""
    if node.kind != "list" or not node.items:
        reader.problem(node, "mask", "is empty" if node.kind == "list" else f"is {node.word}, not a list")
        return []
    found = []
    for number, item in enumerate(node.items):
        path = f"mask[{number}]"
        rule = _rule(reader, item, path, policy_name)
        if rule.name in lines:
            reader.problem(
                item, f"{path}.name", f"another rule or budget is called {rule.name!r}, in line {lines[rule.name]}"
            )
        if rule.name:
            lines.setdefault(rule.name, item.line)
        found.append(rule)
    return found


def _rule(reader: "Fields", node: Node, path: str, policy_name: str) -> MaskRule:
    got = reader.fields(node, path, MASK_FIELDS, ("name", "match"))
    name = reader.name(got.get("name"), f"{path}.name")
    word = reader.one_of(got["mask"], f"{path}.mask", MASK_WORDS) if "mask" in got else None
    mask = Mask(word) if word else None
    exempt = None
    if "except" in got:
        exempt = reader.expression(got["except"], f"{path}.except", VARIABLES, agent=True)
        mask = Mask.EXCEPT
        if "mask" in got:
            reader.problem(got["except"], f"{path}.except", "stands with mask; it means always, except for these")
    frees = "writes" in got and reader.one_of(got["writes"], f"{path}.writes", ("allow",)) is not None
    if node.kind == "map" and not got.keys() & {"mask", "except", "writes"}:
        reader.problem(node, path, f"says nothing: mask ({', '.join(MASK_WORDS)}), except, or writes: allow")
    # What shows or frees is read as an allow rule: resources with their group, nothing that is only claimed.
    action = Action.DENY if mask is Mask.ALWAYS and not frees else Action.ALLOW
    match = reader.match(got["match"], f"{path}.match", action) if "match" in got else Match()
    fields: tuple[FieldPath, ...] = ()
    if "fields" in got:
        fields = _fields(reader, got["fields"], f"{path}.fields")
        if "match" in got and match.resources is None:
            reader.problem(got["fields"], f"{path}.fields", "are of resources: name them in match")
        if mask is None:
            reader.problem(got["fields"], f"{path}.fields", "have no effect without mask or except")
    text = json.dumps(node.plain(), sort_keys=True)
    return MaskRule(
        policy_name,
        name,
        match,
        mask,
        fields,
        exempt,
        frees,
        digest=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12],
        place=f"{reader.source}:{node.line}",
    )


def _fields(reader: "Fields", node: Node, path: str) -> tuple[FieldPath, ...]:
    def check(word: str) -> str:
        try:
            maskfields.parse(word)
        except maskfields.FieldError as e:
            return str(e)
        return ""

    before = len(reader.problems)
    words = reader.words(node, path, check)
    return tuple(map(maskfields.parse, words)) if len(reader.problems) == before else ()
