"""
The fields of a policy file: texts, durations, lists of names, matches, approvals, conditions.

What would be accepted without effect (an unknown key, a verb that no request has, a resource
that is in another group) is a mistake, as is what two readers could take for different things.
addons/core/policyfile.py reads files and rules with it.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from addons.core import admission, approvals, cel, policy, resources
from addons.core.matching import METHOD_VERBS, RESOURCE_VERBS, VERBS, Glob, Match, ResourcePattern, UsesMatch
from addons.core.model import Action, Approval, Impact
from addons.core.yamltree import Node

MAX_MESSAGE = 300  # characters; with the rule's name before it a client shows 500
MAX_BUDGET_MESSAGE = 100  # characters; what is left and when it refills must be seen too
MAX_WORD = 500  # characters of one name or pattern; a path may be that long, a name 253
MAX_WAIT = 600  # seconds; hosts of MCP servers give up after 60 at most
MAX_VALID = 86_400  # seconds; a day-old yes is about another cluster
MAX_TOKEN_AGE = 86_400  # seconds; a login of yesterday may be somebody else's hand today
MIN_TOKEN_AGE = 60  # seconds; less than it takes to log in, look and decide
MAX_PENDING = 100  # questions of one requester that people would still read
MAX_COOLDOWN = 86_400  # seconds
MAX_DRIFT = 10_000  # objects
MAX_GRANT = 28_800  # seconds; a working day, then somebody looks again

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


class Fields:
    """
    Reads the fields of one file. Each method notes what is wrong and goes on.

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

    def flag(self, node: Node, path: str) -> bool:
        if node.kind == "text" and node.tag == "bool" and node.text in ("true", "false"):
            return node.text == "true"
        self.problem(node, path, "is not true or false")
        return False

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

    def message(self, node: Node, path: str, most: int = MAX_MESSAGE) -> str:
        text = (self.text(node, path) or "").strip()
        if not text.isprintable():
            self.problem(node, path, "has line breaks or characters that do not print; it is one line")
        elif len(text) > most:
            self.problem(node, path, f"has {len(text)} characters, more than {most}")
        return text

    # Approvals

    def named(self, got: Mapping[str, Node], path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The groups and users of a map that names people."""
        groups, users = (
            tuple(self.words(got[field], f"{path}.{field}", _not_a_pattern)) if field in got else ()
            for field in PEOPLE_FIELDS
        )
        return groups, users

    def auditors(self, node: Node, path: str) -> policy.Auditors:
        got = self.fields(node, path, PEOPLE_FIELDS)
        if node.kind == "map" and not node.pairs:
            self.problem(node, path, "names nobody: say who sees all approvals, as in {groups: [security]}")
        return policy.Auditors(*self.named(got, path))

    def approval(self, node: Node, path: str) -> Approval:
        got = self.fields(node, path, APPROVAL_FIELDS)
        groups, users = self.named(got, path)
        if node.kind == "map" and "groups" not in got and "users" not in got:
            self.problem(node, path, "names nobody: say who may approve, as in {groups: [platform-oncall]}")
        needed = self.whole(got["needed"], f"{path}.needed", 1, 10) if "needed" in got else DEFAULT.needed
        if "needed" in got and users and not groups and needed > len(users):
            self.problem(got["needed"], f"{path}.needed", f"is {needed}, and only {len(users)} may approve")
        # Kept as texts and compiled again, once, when the first decision asks: a stored approval has
        # them as they were when it was asked for, whatever the policies say by then.
        claims = owner = None
        if "claims" in got:
            claims = self.expression(got["claims"], f"{path}.claims", approvals.CONDITION_VARIABLES)
        if "owner" in got:
            owner = self.expression(got["owner"], f"{path}.owner", approvals.OWNER_VARIABLES, "string")
        return Approval(
            groups=groups,
            users=users,
            needed=needed,
            wait=self.seconds(got["wait"], f"{path}.wait", 0, MAX_WAIT) if "wait" in got else DEFAULT.wait,
            valid=self.seconds(got["valid"], f"{path}.valid", 1, MAX_VALID) if "valid" in got else DEFAULT.valid,
            max_token_age=self.seconds(got["maxTokenAge"], f"{path}.maxTokenAge", MIN_TOKEN_AGE, MAX_TOKEN_AGE)
            if "maxTokenAge" in got
            else DEFAULT.max_token_age,
            claims=claims.source if claims else "",
            owner=owner.source if owner else "",
            require_reason="reason" in self.require(got["require"], f"{path}.require") if "require" in got else False,
            max_pending=self.whole(got["maxPending"], f"{path}.maxPending", 1, MAX_PENDING)
            if "maxPending" in got
            else DEFAULT.max_pending,
            cooldown=self.seconds(got["cooldown"], f"{path}.cooldown", 0, MAX_COOLDOWN)
            if "cooldown" in got
            else DEFAULT.cooldown,
            drift=self.whole(got["drift"], f"{path}.drift", 0, MAX_DRIFT) if "drift" in got else DEFAULT.drift,
            retry=self.flag(got["retry"], f"{path}.retry") if "retry" in got else DEFAULT.retry,
        )

    def require(self, node: Node, path: str) -> list[str]:
        """One word, or a list of them."""
        if node.kind == "text":
            word = self.one_of(node, path, REQUIREMENTS)
            return [word] if word else []
        known = ", ".join(REQUIREMENTS)
        return self.words(node, path, lambda w: "" if w in REQUIREMENTS else f"unknown value {w!r}; one of {known}")

    def grant(self, node: Node, path: str) -> tuple[int, str]:
        """For how many seconds a yes opens the rule, and how much of it."""
        got = self.fields(node, path, GRANT_FIELDS, ("for",))
        seconds = self.seconds(got["for"], f"{path}.for", 60, MAX_GRANT) if "for" in got else 0
        scope = self.one_of(got["scope"], f"{path}.scope", GRANT_SCOPES) if "scope" in got else None
        return seconds, scope or DEFAULT.grant_scope

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
        words = self.words(node, path, lambda word: resource_trouble(word, allow=allow))
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
        agent: bool = False,
    ) -> cel.Program | None:
        """objects: whether it may look at objects of the cluster; agent: at `identity.agent`, where that is known."""
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
        agent = agent or "operation" in variables
        if not self.expression_fields(node, path, names, variables, agent=agent):
            return None
        try:
            return cel.compile_expression(source, variables, returns=returns)
        except cel.CelError as e:
            first, *rest = str(e).split("\n")
            self.problem(node, path, "\n".join([first, *(f"    {line}" for line in rest)]))
            return None

    def expression_fields(
        self, node: Node, path: str, names: str, variables: Mapping[str, str], *, agent: bool
    ) -> bool:
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
                if not agent:
                    # Who is a person is what such a clause decides, or is asked beside it.
                    known = known - {"agent"}
                if step not in known:
                    self.problem(node, path, f"{where} has no field {step}{_suggest(step, sorted(known))}")
                    return False
                where = f"{where}.{step}"
        return True


DEFAULT = Approval()

APPROVAL_FIELDS = (
    "groups",
    "users",
    "needed",
    "wait",
    "valid",
    "maxTokenAge",
    "claims",
    "owner",
    "require",
    "maxPending",
    "cooldown",
    "drift",
    "retry",
)
GRANT_FIELDS = ("for", "scope")
GRANT_SCOPES = ("namespace", "rule")
PEOPLE_FIELDS = ("groups", "users")
REQUIREMENTS = ("reason",)
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


def asks_uses(program: cel.Program | None) -> bool:
    """Whether an expression looks at what a pod template uses."""
    return program is not None and _USES.search(_without_literals(program.source)) is not None


def needs(program: cel.Program | None) -> frozenset[str]:
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


def resource_trouble(word: str, *, allow: bool) -> str:
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
