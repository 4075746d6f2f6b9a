"""
Policy files: YAML in, a PolicySet out, or every mistake with its file and line.

All or nothing: a set with one mistake gives no policy at all, since the file that is wrong
may be the one that denies. What would be accepted without effect (an unknown key, a verb
that no request has, a resource that is in another group) is a mistake too.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from addons.core import admission, budgets, cel, filemodes, maskfile, policy, resources, yamltree
from addons.core.budgets import Budget
from addons.core.matching import METHOD_VERBS, RESOURCE_VERBS, VERBS, Glob, Match, ResourcePattern, UsesMatch
from addons.core.model import Action, Approval, Impact
from addons.core.policy import PolicyError
from addons.core.yamltree import Node

API_VERSION = "tollgate.dev/v1alpha1"
MAX_MESSAGE = 300  # characters; with the rule's name before it a client shows 500
MAX_BUDGET_MESSAGE = 100  # characters; what is left and when it refills must be seen too
MAX_WORD = 500  # characters of one name or pattern; a path may be that long, a name 253
MAX_WAIT = 600  # seconds; hosts of MCP servers give up after 60 at most
MAX_VALID = 86_400  # seconds; a day-old yes is about another cluster

type Fingerprint = tuple[tuple[str, int, int, int], ...]  # path, modified (ns), size, inode

_ACTIONS = {"allow": Action.ALLOW, "hold": Action.HOLD, "deny": Action.DENY}
_IMPACTS = {impact.word: impact for impact in Impact}
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9*?-]+")
_RESOURCE = re.compile(r"[a-z0-9*?-]+(\.[a-z0-9.*?-]+)?(/[a-z0-9*?-]+)?")
_DURATION = re.compile(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?")
_LONG_DURATION = re.compile(r"(\d+)\s*(s|m|h)\w*")

# Literals and comments of an expression, to look at its names only. Raw literals (r"...") need
# no case of their own: the runtime takes none with a backslash before a quote.
_LITERALS = re.compile(
    r"""
    //[^\n]*
    | \"{3}(?:\\.|[^\\])*?\"{3} | '{3}(?:\\.|[^\\])*?'{3}
    | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'
    """,
    re.DOTALL | re.VERBOSE,
)
_FIELD = re.compile(r"(?<![\w.])(identity|operation|request|session)((?:\s*\.\s*\??\s*[A-Za-z_]\w*)+)(\s*\()?")
_OBJECTS = re.compile(r"(?<![\w.])(object|oldObject|namespaceObject)\b")
_USES = re.compile(r"\buses\b")
_CLAIM = re.compile(r"(?<![\w.])session\b")


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
            read_policy = Reader(source, problems).document(document)
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


class Reader:
    """
    Reads the documents of one file. Each method notes what is wrong and goes on.

    A value that was wrong comes back as None or empty: nothing is built from it, because
    any noted problem refuses the whole set.
    """

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems

    def problem(self, node: Node, path: str, sentence: str) -> None:
        self.problems.append(
            f"{self.source}:{node.line}: {path}: {sentence}" if path else f"{self.source}:{node.line}: {sentence}"
        )

    # Shapes

    def fields(self, node: Node, path: str, known: Sequence[str], required: Sequence[str] = ()) -> dict[str, Node]:
        """The values of a map by key."""
        if node.kind != "map":
            self.problem(node, path, f"is {node.word}, not a map")
            return {}
        found = {}
        for key, value in node.pairs:
            if key.text in known:
                found[key.text] = value
            else:
                self.problem(key, _join(path, key.text), f"unknown field{_suggest(key.text, known)}")
        for key_name in required:
            if key_name not in found:
                self.problem(node, _join(path, key_name), "is missing")
        return found

    def text(self, node: Node, path: str) -> str | None:
        if node.kind != "text" or node.tag == "null":
            self.problem(node, path, f"is {node.word}, not a text" if node.tag != "null" else "is empty")
        elif node.tag != "str":
            # `no`, `on`, `1e3`, `0x10`: two readers of YAML differ on what was meant.
            self.problem(node, path, f"{node.text} reads as {node.word}; put it in quotes")
        elif not node.text.strip():
            self.problem(node, path, "is empty")
        elif len(node.text) > cel.MAX_SOURCE:
            self.problem(node, path, f"has more than {cel.MAX_SOURCE} characters")
        else:
            return node.text
        return None

    def one_of(self, node: Node, path: str, choices: Sequence[str]) -> str | None:
        text = self.text(node, path)
        if text is not None and text not in choices:
            self.problem(node, path, f"unknown value {text!r}{_suggest(text, choices)}; one of {', '.join(choices)}")
            return None
        return text

    def name(self, node: Node | None, path: str) -> str:
        text = self.text(node, path) if node is not None else None
        if node is None or text is None:
            return ""
        if not _NAME.fullmatch(text):
            self.problem(node, path, f"{text!r} is not a name; use lower-case letters, digits, - and ., at most 63")
            return ""
        return text

    def whole(self, node: Node, path: str, least: int, most: int) -> int:
        if node.kind == "text" and node.tag == "int" and re.fullmatch(r"[1-9][0-9]{0,9}|0", node.text):
            value = int(node.text)
            if least <= value <= most:
                return value
        self.problem(node, path, f"is not a whole number from {least} to {most}")
        return least

    def seconds(self, node: Node, path: str, least: int, most: int) -> int:
        """A duration: `25s`, `15m`, `1h30m`."""
        text = node.text if node.kind == "text" else ""
        match = _DURATION.fullmatch(text)
        if not text or not match:
            longer = _LONG_DURATION.fullmatch(text.lower())
            meant = f"{longer[1]}{longer[2]}" if longer else "10m"
            self.problem(node, path, f"{text or node.word} is not a duration: say {meant} (units h, m, s)")
            return least
        hours, minutes, seconds = (int(part or 0) for part in match.groups())
        value = hours * 3600 + minutes * 60 + seconds
        if not least <= value <= most:
            self.problem(node, path, f"{text} is not between {_duration(least)} and {_duration(most)}")
            return least
        return value

    def words(self, node: Node, path: str, check: Callable[[str], str] = lambda _: "") -> list[str]:
        """A list of texts, each as `check` wants it: it returns what is wrong, or ""."""
        if node.kind != "list":
            hint = f": write [{node.text}]" if node.kind == "text" and node.tag != "null" else ""
            self.problem(node, path, f"is {node.word}, not a list{hint}")
            return []
        if not node.items:
            self.problem(node, path, "is empty, so it could never match; leave the field out to match all")
        found: list[str] = []
        for number, item in enumerate(node.items):
            here = f"{path}[{number}]"
            text = self.text(item, here)
            if text is None:
                continue
            wrong = check(text)
            if not text.isprintable() or text != text.strip():
                wrong = "has blanks around it or characters that do not print"
            elif len(text) > MAX_WORD:
                wrong = f"has more than {MAX_WORD} characters"
            elif text in found:
                wrong = f"{text!r} is there twice"
            if wrong:
                self.problem(item, here, wrong)
            found.append(text)
        return found

    def glob(self, node: Node | None, path: str, check: Callable[[str], str] = lambda _: "") -> Glob | None:
        return Glob(self.words(node, path, check)) if node is not None else None

    # Documents

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
        observe = "mode" in top and self.one_of(top["mode"], "mode", ("enforce", "observe")) == "observe"
        people = None
        if "people" in top:
            people = self.expression(top["people"], "people", policy.PEOPLE_VARIABLES)
        elif not top.keys() & {"rules", "budgets", "mask"} and "metadata" in top:
            self.problem(node, "rules", "is missing: a policy has rules, budgets or mask, or says who people are")
        names: dict[str, int] = {}
        rules = self.rules(top["rules"], name, names) if "rules" in top else []
        limits = self.budgets(top["budgets"], name, names) if "budgets" in top else []
        masks = maskfile.rules(self, top["mask"], name, names) if "mask" in top else []
        if len(self.problems) > before:
            return None
        return policy.Policy(name, tuple(rules), observe, people, tuple(limits), tuple(masks))

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
        when_needs, unless_needs = _needs(when), _needs(unless)
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
            asks_uses=match.uses is not None or _names(when, _USES) or _names(unless, _USES),
            place=f"{self.source}:{node.line}",
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

    def message(self, node: Node, path: str, most: int = MAX_MESSAGE) -> str:
        text = (self.text(node, path) or "").strip()
        if not text.isprintable():
            self.problem(node, path, "has line breaks or characters that do not print; it is one line")
        elif len(text) > most:
            self.problem(node, path, f"has {len(text)} characters, more than {most}")
        return text

    def approval(self, node: Node, path: str) -> Approval:
        got = self.fields(node, path, APPROVAL_FIELDS)
        groups = self.words(got["groups"], f"{path}.groups", _not_a_pattern) if "groups" in got else []
        users = self.words(got["users"], f"{path}.users", _not_a_pattern) if "users" in got else []
        if node.kind == "map" and "groups" not in got and "users" not in got:
            self.problem(node, path, "names nobody: say who may approve, as in {groups: [platform-oncall]}")
        needed = self.whole(got["needed"], f"{path}.needed", 1, 10) if "needed" in got else DEFAULT.needed
        if "needed" in got and users and not groups and needed > len(users):
            self.problem(got["needed"], f"{path}.needed", f"is {needed}, and only {len(users)} may approve")
        return Approval(
            groups=tuple(groups),
            users=tuple(users),
            needed=needed,
            wait=self.seconds(got["wait"], f"{path}.wait", 0, MAX_WAIT) if "wait" in got else DEFAULT.wait,
            valid=self.seconds(got["valid"], f"{path}.valid", 1, MAX_VALID) if "valid" in got else DEFAULT.valid,
        )

    # Matches

    def match(self, node: Node, path: str, action: Action) -> Match:
        got = self.fields(node, path, MATCH_FIELDS)
        if node.kind == "map" and not node.pairs:
            self.problem(node, path, 'is empty; to match all write {verbs: ["*"]}')
        allow = action is Action.ALLOW
        self.sorts(got, path)
        if allow and "commands" in got:
            # The client writes the header, so it would choose what it is allowed.
            self.problem(got["commands"], f"{path}.commands", "the client claims it, so it may not allow anything")
        return Match(
            users=self.glob(got.get("users"), f"{path}.users"),
            user_groups=self.glob(got.get("userGroups"), f"{path}.userGroups"),
            agents=self.subjects(got["subjects"], f"{path}.subjects") if "subjects" in got else None,
            verbs=self.verbs(got, path) if "verbs" in got else None,
            resources=self.resources(got["resources"], f"{path}.resources", allow) if "resources" in got else None,
            resource_names=self.glob(got.get("resourceNames"), f"{path}.resourceNames", _resource_name),
            namespaces=self.glob(got.get("namespaces"), f"{path}.namespaces", _namespace),
            non_resource_urls=self.glob(got.get("nonResourceURLs"), f"{path}.nonResourceURLs", _url),
            impacts=self.impacts(got["impacts"], f"{path}.impacts") if "impacts" in got else None,
            commands=self.glob(got.get("commands"), f"{path}.commands"),
            uses=self.uses(got["uses"], f"{path}.uses", allow) if "uses" in got else None,
        )

    def sorts(self, got: Mapping[str, Node], path: str) -> None:
        """A request has a resource or a non-resource URL, never both."""
        for field in ("resources", "resourceNames", "namespaces", "uses"):
            if field in got and "nonResourceURLs" in got:
                self.problem(got[field], f"{path}.{field}", "with nonResourceURLs it could never match; make two rules")

    def subjects(self, node: Node, path: str) -> bool | None:
        words = self.words(node, path, lambda w: "" if w in ("agents", "people") else f"{w!r} is not agents or people")
        return None if len(words) != 1 else words[0] == "agents"

    def verbs(self, got: Mapping[str, Node], path: str) -> frozenset[str]:
        known, sort = VERBS, ""
        if got.keys() & {"resources", "resourceNames", "namespaces", "uses"}:
            known, sort = RESOURCE_VERBS, " on a resource"
        elif "nonResourceURLs" in got:
            known, sort = METHOD_VERBS, " on a non-resource URL"

        def check(word: str) -> str:
            if word == "*" or word in known:
                return ""
            return f"no request{sort} has the verb {word!r}{_suggest(word, sorted(known))}"

        return frozenset(self.words(got["verbs"], f"{path}.verbs", check))

    def impacts(self, node: Node, path: str) -> frozenset[Impact]:
        def check(word: str) -> str:
            return "" if word in _IMPACTS else f"unknown impact {word!r}{_suggest(word, list(_IMPACTS))}"

        return frozenset(_IMPACTS[word] for word in self.words(node, path, check) if word in _IMPACTS)

    def resources(self, node: Node, path: str, allow: bool) -> tuple[ResourcePattern, ...]:
        words = self.words(node, path, lambda word: _resource(word, allow=allow))
        return tuple(ResourcePattern(word) for word in words)

    def uses(self, node: Node, path: str, allow: bool) -> UsesMatch:
        got = self.fields(node, path, tuple(USES_FIELDS))
        if node.kind == "map" and not node.pairs:
            self.problem(node, path, "is empty")
        for key, value in got.items():
            if allow and key.endswith("NotIn"):
                self.problem(value, f"{path}.{key}", f"an allow rule lists what may be used: {key[:-5]}")
        return UsesMatch(**{USES_FIELDS[key]: self.glob(value, f"{path}.{key}") for key, value in got.items()})

    # Expressions

    def when(self, node: Node, path: str, action: Action, *, objects: bool = False) -> tuple[cel.Program | None, bool]:
        """A condition, and whether it looks at what the client claims."""
        text = node.text if node.kind == "text" else ""
        claims = action is not Action.ALLOW and _CLAIM.search(_without_literals(text)) is not None
        variables = policy.CLAIM_VARIABLES if claims else policy.VARIABLES
        return self.expression(node, path, variables, objects=objects), claims

    def expression(
        self,
        node: Node,
        path: str,
        variables: Mapping[str, str],
        returns: str = "bool",
        *,
        objects: bool = False,
    ) -> cel.Program | None:
        """objects: whether it may look at objects of the cluster."""
        source = self.text(node, path)
        if source is None:
            return None
        names = _without_literals(source)
        if looked_at := _OBJECTS.findall(names):
            if not objects:
                self.problem(node, path, f"{looked_at[0]} is there for rules only; use what is known of the request")
                return None
            variables = {**variables, **policy.OBJECT_VARIABLES}
        if "session" not in variables and _CLAIM.search(names):
            self.problem(node, path, "session is what the client claims, so only `when` of a deny or hold rule sees it")
            return None
        if not self.expression_fields(node, path, names, variables):
            return None
        try:
            return cel.compile_expression(source, variables, returns=returns)
        except cel.CelError as e:
            first, *rest = str(e).split("\n")
            self.problem(node, path, "\n".join([first, *(f"    {line}" for line in rest)]))
            return None

    def expression_fields(self, node: Node, path: str, names: str, variables: Mapping[str, str]) -> bool:
        """Misspelled fields of our variables, which the runtime would notice only when a request waits."""
        for variable, chain, called in _FIELD.findall(names):
            if variable not in variables:
                continue  # the compiler says so, with a caret
            steps = [step.strip(" ?\t\n\r") for step in chain.split(".")[1:]]
            if called:
                steps.pop()  # a method
            where = variable
            for step in steps:
                known = policy.FIELDS.get(where)
                if known is None:
                    break
                if variables is policy.PEOPLE_VARIABLES:
                    known = known - {"agent"}  # is what the clause decides
                if step not in known:
                    self.problem(node, path, f"{where} has no field {step}{_suggest(step, sorted(known))}")
                    return False
                where = f"{where}.{step}"
        return True


DEFAULT = Approval()

DOCUMENT_FIELDS = ("apiVersion", "kind", "metadata", "mode", "people", "rules", "budgets", "mask")
RULE_FIELDS = ("name", "action", "match", "when", "unless", "message", "approval")
APPROVAL_FIELDS = ("groups", "users", "needed", "wait", "valid")
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
MATCH_FIELDS = (
    "users",
    "userGroups",
    "subjects",
    "verbs",
    "resources",
    "resourceNames",
    "namespaces",
    "nonResourceURLs",
    "impacts",
    "commands",
    "uses",
)
USES_FIELDS = {
    "serviceAccounts": "service_accounts",
    "secrets": "secrets",
    "configMaps": "config_maps",
    "host": "host",
    "serviceAccountsNotIn": "service_accounts_not_in",
    "secretsNotIn": "secrets_not_in",
    "configMapsNotIn": "config_maps_not_in",
    "hostNotIn": "host_not_in",
}


def _names(program: cel.Program | None, pattern: re.Pattern[str]) -> bool:
    return program is not None and pattern.search(_without_literals(program.source)) is not None


def _needs(program: cel.Program | None) -> frozenset[str]:
    """The objects of the cluster that an expression looks at."""
    if program is None:
        return admission.NONE
    return frozenset(_OBJECTS.findall(_without_literals(program.source)))


def _not_a_pattern(word: str) -> str:
    return "is a pattern; approvers are named one by one" if "*" in word or "?" in word else ""


def _resource_name(word: str) -> str:
    # k8s.io/apimachinery/pkg/api/validation/path: what no name in a path can have.
    return f"{word!r} is no name: it has / or %" if "/" in word or "%" in word or word in (".", "..") else ""


def _namespace(word: str) -> str:
    if _NAMESPACE.fullmatch(word):
        return ""
    return f"{word!r} is no namespace: they have lower-case letters, digits and -"


def _url(word: str) -> str:
    return "" if word.startswith("/") or word == "*" else f"{word!r} is no path: it begins with /"


def _resource(word: str, *, allow: bool) -> str:
    """Why this pattern could never match, or would match less than its author thinks."""
    if not _RESOURCE.fullmatch(word):
        return f"{word!r} is no resource: write pods, deployments.apps, pods/exec or *.apps, lower-case and plural"
    path, _, _ = word.partition("/")
    name, dot, group = path.partition(".")
    if "*" in path or "?" in path:
        return ""
    if dot:
        if group in resources.BUILT_IN and name not in resources.BUILT_IN[group]:
            known = sorted(resources.BUILT_IN[group])
            return f"group {group} has no resource {name!r}{_suggest(name, known)}"
        return ""
    if name in resources.BUILT_IN[""]:
        return ""
    groups = resources.groups_of(name)
    if not groups:
        known = sorted({n for names in resources.BUILT_IN.values() for n in names})
        hint = _suggest(name, known) or "; a custom resource is written with its group"
        return f"unknown resource {name!r}{hint}"
    if allow:
        return f"{name} is in a group: write {' or '.join(f'{name}.{g}' for g in groups)}"
    return ""


def _without_literals(source: str) -> str:
    return _LITERALS.sub('""', source)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _suggest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    if not near:
        by_lower = {k.lower(): k for k in known}
        near = [by_lower[word.lower()]] if word.lower() in by_lower else []
    return f"; did you mean {near[0]}?" if near else ""


def _duration(seconds: int) -> str:
    for size, unit in ((3600, "h"), (60, "m")):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
