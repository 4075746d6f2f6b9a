"""
Policy files: YAML in, a PolicySet out, or every mistake with its file and line.

All or nothing: a set with one mistake gives no policy at all, since the file that is wrong
may be the one that denies. addons/core/policyfields.py reads the fields.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from addons.core import admission, budgets, filemodes, maskfile, policy, policyfields, yamltree
from addons.core.budgets import Budget
from addons.core.matching import Match
from addons.core.model import RECORD_LEVELS, Action
from addons.core.policy import BUILT_IN, PolicyError
from addons.core.policyfields import MAX_BUDGET_MESSAGE, Fields
from addons.core.yamltree import Node

API_VERSION = "tollgate.dev/v1alpha1"

type Fingerprint = tuple[tuple[str, int, int, int], ...]  # path, modified (ns), size, inode

_ACTIONS = {"allow": Action.ALLOW, "hold": Action.HOLD, "deny": Action.DENY}


def load(paths: Sequence[Path]) -> policy.PolicySet:
    """The policies of these files and folders. Raises PolicyError, for what cannot be read too."""
    return parse(read(paths))


def find(paths: Sequence[Path]) -> list[Path]:
    """
    The policy files: files as named, of folders the `*.yaml` and `*.yml` directly in them.

    Tables of cases (`*.cases.yaml`) and hidden files are left out.
    """
    found: list[Path] = []
    for path in paths:
        try:
            if path.is_dir():
                inside = sorted(
                    p
                    for p in path.iterdir()
                    if p.suffix in (".yaml", ".yml")
                    and not p.name.startswith(".")
                    and not p.stem.endswith(".cases")
                    and not p.is_dir()
                )
                if not inside:
                    raise PolicyError([f"{path}: the folder has no policy file (*.yaml)"])
                found += inside
            else:
                found.append(path)
        except OSError as e:
            raise PolicyError([f"{path}: cannot be read: {e.strerror or e}"]) from e
    return list(dict.fromkeys(found))


def read(paths: Sequence[Path]) -> dict[str, bytes]:
    """The contents of the policy files by name."""
    contents, problems = {}, []
    files = find(paths)
    for path in dict.fromkeys([*(path for path in paths if path.is_dir()), *files]):
        try:
            # direction: what every user can edit is nobody's policy.
            if why := filemodes.trouble_at(path):
                problems.append(f"{path}: {why}")
        except OSError as e:
            problems.append(f"{path}: cannot be read: {e.strerror or e}")
    if problems:
        raise PolicyError(problems)
    for path in files:
        try:
            with path.open("rb") as file:
                contents[str(path)] = file.read(yamltree.MAX_BYTES + 1)  # one more shows that it is too long
        except OSError as e:
            problems.append(f"{path}: cannot be read: {e.strerror or e}")
    if problems:
        raise PolicyError(problems)
    return contents


def fingerprint(paths: Sequence[Path]) -> Fingerprint:
    """Changes when a file does. Follows links, so it sees Kubernetes swap a mounted ConfigMap."""
    seen = []
    try:
        for path in find(paths):
            stat = path.stat()
            seen.append((str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino))
    except (OSError, PolicyError):
        seen.append(("unreadable", 0, 0, 0))  # loading says what is wrong
    return tuple(seen)


def parse(contents: Mapping[str, bytes]) -> policy.PolicySet:
    """The policies of these files, name to content. Raises PolicyError with every mistake."""
    problems: list[str] = []
    policies: list[policy.Policy] = []
    where: dict[str, str] = {}
    for source, data in contents.items():
        try:
            documents = yamltree.documents(data)
        except yamltree.YamlError as e:
            problems.append(f"{source}:{e.line}: {e}")
            continue
        if not documents:
            problems.append(f"{source}:1: has no policy")
        for document in documents:
            read_policy = _Reader(source, problems).document(document)
            if read_policy is None:
                continue
            place = f"{source}:{document.line}"
            if read_policy.name in where:
                problems.append(
                    f"{place}: metadata.name: another policy is called {read_policy.name!r}: {where[read_policy.name]}"
                )
            where.setdefault(read_policy.name, place)
            policies.append(read_policy)
    if problems:
        raise PolicyError(problems)
    return policy.PolicySet(policies, revision(contents.values()), digests(contents))


def missing(before: policy.PolicySet, after: policy.PolicySet) -> list[str]:
    """Files that were there. A policy that is gone may be the one that denies: nobody leaves it out by deleting it."""
    return sorted(before.files.keys() - after.files.keys())


def digests(contents: Mapping[str, bytes]) -> dict[str, str]:
    """What each file held, for the log: the first half of its SHA-256."""
    return {name: hashlib.sha256(data).hexdigest()[:32] for name, data in contents.items()}


def revision(contents: Iterable[bytes]) -> str:
    """Short name of these contents; the files' order and names do not matter."""
    digests = sorted(hashlib.sha256(data).hexdigest() for data in contents)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


class _Reader(Fields):
    """The documents of one file: policies, their rules and budgets."""

    def document(self, node: Node) -> policy.Policy | None:
        before = len(self.problems)
        top = self.fields(
            node,
            "",
            DOCUMENT_FIELDS,
            ("apiVersion", "kind", "metadata"),
        )
        if "apiVersion" in top:
            self.one_of(top["apiVersion"], "apiVersion", (API_VERSION,))
        if "kind" in top:
            self.one_of(top["kind"], "kind", ("Policy",))
        name = ""
        if "metadata" in top:
            metadata = self.fields(top["metadata"], "metadata", ("name",), ("name",))
            name = self.name(metadata.get("name"), "metadata.name")
            if name == BUILT_IN:
                # A grant for a rule of that name would lift what the gateway itself holds.
                self.problem(metadata["name"], "metadata.name", f"{BUILT_IN!r} names what the gateway itself decides")
        observe = "mode" in top and self.one_of(top["mode"], "mode", ("enforce", "observe")) == "observe"
        people = None
        if "people" in top:
            people = self.expression(top["people"], "people", policy.PEOPLE_VARIABLES)
        auditors = self.auditors(top["auditors"], "auditors") if "auditors" in top else policy.NO_AUDITORS
        if not top.keys() & {"rules", "budgets", "mask", "people", "auditors"} and "metadata" in top:
            said = "a policy has rules, budgets or mask, or says who people or auditors are"
            self.problem(node, "rules", f"is missing: {said}")
        names: dict[str, int] = {}
        rules = self.rules(top["rules"], name, names) if "rules" in top else []
        limits = self.budgets(top["budgets"], name, names) if "budgets" in top else []
        masks = maskfile.rules(self, top["mask"], name, names) if "mask" in top else []
        if len(self.problems) > before:
            return None
        return policy.Policy(name, tuple(rules), observe, people, tuple(limits), auditors, tuple(masks))

    def rules(self, node: Node, policy_name: str, lines: dict[str, int]) -> list[policy.Rule]:
        """`lines` is where each name is, of rules and budgets together: a message names one or the other."""
        if node.kind != "list" or not node.items:
            self.problem(node, "rules", "is empty" if node.kind == "list" else f"is {node.word}, not a list")
            return []
        found = []
        for number, item in enumerate(node.items):
            path = f"rules[{number}]"
            before = len(self.problems)
            rule = self.rule(item, path, policy_name)
            if rule.name in lines:
                self.problem(item, f"{path}.name", f"another rule is called {rule.name!r}, in line {lines[rule.name]}")
            if rule.name:
                lines.setdefault(rule.name, item.line)
            if len(self.problems) == before:
                found.append(rule)
        return found

    def rule(self, node: Node, path: str, policy_name: str) -> policy.Rule:
        got = self.fields(
            node,
            path,
            RULE_FIELDS,
            ("name", "action", "match"),
        )
        name = self.name(got.get("name"), f"{path}.name")
        word = self.one_of(got["action"], f"{path}.action", tuple(_ACTIONS)) if "action" in got else None
        action = _ACTIONS.get(word or "", Action.DENY)
        match = self.match(got["match"], f"{path}.match", action) if "match" in got else Match()
        when, claims, unless = None, False, None
        if "when" in got:
            when, claims = self.when(got["when"], f"{path}.when", action, objects=True)
        if "unless" in got:
            unless = self.expression(got["unless"], f"{path}.unless", policy.VARIABLES, objects=True)
        when_needs, unless_needs = policyfields.needs(when), policyfields.needs(unless)
        self.about_objects(got, path, when_needs | unless_needs, match)
        message = self.message(got["message"], f"{path}.message") if "message" in got else ""
        approval = policy.NO_APPROVAL
        if "approval" in got:
            approval = self.approval(got["approval"], f"{path}.approval")
            if word is not None and action is not Action.HOLD:
                self.problem(got["approval"], f"{path}.approval", f"only a hold rule has it, not one that says {word}")
        elif action is Action.HOLD:
            # Nobody could ever say yes.
            self.problem(node, f"{path}.approval", "is missing: say who may approve, as in {groups: [platform-oncall]}")
        if "grant" in got:
            seconds, scope = self.grant(got["grant"], f"{path}.grant")
            approval = replace(approval, grant_for=seconds, grant_scope=scope)
            if word is not None and action is not Action.HOLD:
                self.problem(got["grant"], f"{path}.grant", f"only a hold rule has it, not one that says {word}")
        text = json.dumps(node.plain(), sort_keys=True)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        return policy.Rule(
            policy_name,
            name,
            action,
            match,
            when,
            unless,
            claims,
            message,
            approval,
            digest,
            when_needs=when_needs,
            unless_needs=unless_needs,
            asks_uses=match.uses is not None or policyfields.asks_uses(when) or policyfields.asks_uses(unless),
            place=f"{self.source}:{node.line}",
            record=(self.one_of(got["record"], f"{path}.record", RECORD_LEVELS) or "") if "record" in got else "",
        )

    def about_objects(self, got: Mapping[str, Node], path: str, needs: frozenset[str], match: Match) -> None:
        """A rule that looks at objects is asked about creates, updates and deletes only."""
        if needs.isdisjoint(("object", "oldObject")):
            return
        changes = {"create", "update", "patch", "delete", "deletecollection", "*"}
        where = got["when"] if "when" in got else got["unless"]
        if match.non_resource_urls is not None or (match.verbs is not None and match.verbs.isdisjoint(changes)):
            self.problem(where, path, "looks at object or oldObject, which a read has not, so it could never match")
        elif match.resources and all(p.text.partition("/")[2] in admission.BESIDE for p in match.resources):
            self.problem(where, path, "looks at object or oldObject, which such a subresource has not; use operation")

    # Budgets

    def budgets(self, node: Node, policy_name: str, lines: dict[str, int]) -> list[Budget]:
        if node.kind != "list" or not node.items:
            self.problem(node, "budgets", "is empty" if node.kind == "list" else f"is {node.word}, not a list")
            return []
        found = []
        for number, item in enumerate(node.items):
            path = f"budgets[{number}]"
            budget = self.budget(item, path, policy_name)
            if budget.name in lines:
                self.problem(
                    item,
                    f"{path}.name",
                    f"another rule or budget is called {budget.name!r}, in line {lines[budget.name]}",
                )
            if budget.name:
                lines.setdefault(budget.name, item.line)
            found.append(budget)
        if all(budget.per == "session" for budget in found):
            # It chooses its session, so a new one would be a new budget.
            self.problem(node, "budgets", "per: session limits nobody alone, since the client chooses it; add another")
        return found

    def budget(self, node: Node, path: str, policy_name: str) -> Budget:
        got = self.fields(node, path, BUDGET_FIELDS, ("name", "match", "window", "per"))
        name = self.name(got.get("name"), f"{path}.name")
        if node.kind == "map" and ("limit" in got) == ("objects" in got):
            self.problem(node, path, "has either a limit (of operations) or objects (in reach), and only one of them")
        limit = 0
        for field in got.keys() & {"limit", "objects"}:
            limit = self.whole(got[field], f"{path}.{field}", 1, budgets.MAX_LIMIT)
        per = self.one_of(got["per"], f"{path}.per", budgets.PER) if "per" in got else None
        owner = None
        if "owner" in got:
            owner = self.expression(got["owner"], f"{path}.owner", policy.PEOPLE_VARIABLES, "string")
            if per is not None and per != "owner":
                self.problem(got["owner"], f"{path}.owner", f"has no effect with per: {per}")
        elif per == "owner":
            self.problem(node, f"{path}.owner", "is missing: say who owns an identity, as in identity.groups[0]")
        word = self.one_of(got["over"], f"{path}.over", ("deny", "hold")) if "over" in got else "deny"
        over = Action.HOLD if word == "hold" else Action.DENY
        when, claims = None, False
        if "when" in got:
            when, claims = self.when(got["when"], f"{path}.when", over)
        approval = policy.NO_APPROVAL
        if "approval" in got:
            approval = self.approval(got["approval"], f"{path}.approval")
            if word == "deny":
                self.problem(got["approval"], f"{path}.approval", "only a budget that says over: hold has it")
        text = json.dumps(node.plain(), sort_keys=True)
        return Budget(
            policy_name,
            name,
            match=self.match(got["match"], f"{path}.match", over) if "match" in got else Match(),
            limit=limit,
            window=self.seconds(got["window"], f"{path}.window", 1, budgets.MAX_WINDOW) if "window" in got else 1,
            objects="objects" in got,
            per=per or "identity",
            over=over,
            owner=owner,
            when=when,
            unless=self.expression(got["unless"], f"{path}.unless", policy.VARIABLES) if "unless" in got else None,
            claims=claims,
            message=self.message(got["message"], f"{path}.message", MAX_BUDGET_MESSAGE) if "message" in got else "",
            approval=approval,
            digest=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12],
        )


DOCUMENT_FIELDS = ("apiVersion", "kind", "metadata", "mode", "people", "auditors", "rules", "budgets", "mask")
RULE_FIELDS = ("name", "action", "match", "when", "unless", "message", "record", "approval", "grant")
BUDGET_FIELDS = (
    "name",
    "match",
    "limit",
    "objects",
    "window",
    "per",
    "owner",
    "over",
    "when",
    "unless",
    "message",
    "approval",
)
