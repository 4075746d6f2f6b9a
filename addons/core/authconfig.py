"""
Who issues the tokens that the gateway accepts, and how a token's claims become an identity:
Kubernetes' own `AuthenticationConfiguration` (`apiserver.config.k8s.io/v1`, `v1beta1`), so
that a file which works for the API server works here.

Checked as the API server checks it (k8s.io/apiserver/pkg/apis/apiserver/validation), and
stricter where a gateway must be: an unknown field is an error, `anonymous` cannot be
switched on, and two issuers may not map to one username.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import yaml
from cryptography import x509

from addons.core import approvals, cel

API_VERSIONS = ("apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1")
KIND = "AuthenticationConfiguration"
MAX_ISSUERS = 64  # as the API server

# Names from the cluster's own issuer get this prefix, and no other issuer may give a name
# that has it: RBAC bound to `tollgate:system:serviceaccount:NS:NAME` is reached through the
# gateway only, and the ServiceAccount itself needs no rights.
CLUSTER_PREFIX = "tollgate:"
CLUSTER_AUDIENCE = "tollgate"
# What tokens of the cluster may be for: ordinary use, or decisions on approvals as well. Whoever holds
# only the first kind can read everything he may read, and decide nothing.
CLUSTER_AUDIENCES = (CLUSTER_AUDIENCE, approvals.AUDIENCE)
SYSTEM_PREFIX = "system:"

CLAIMS = {"claims": "map(string,dyn)"}
USER = {"user": "dyn"}
USER_FIELDS = ("username", "uid", "groups", "extra")  # authentication.k8s.io UserInfo

_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_HTTP_PATH = re.compile(r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+")
# What apimachinery's cel.Escape makes of characters that a CEL field name cannot have.
_ESCAPED = re.compile(r"__(dot|dash|slash|underscores)__")


class AuthConfigError(Exception):
    """The configuration cannot be used. One line for each mistake, beginning with its field."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where one field of the identity comes from: a claim with a prefix, or an expression."""

    claim: str = ""
    prefix: str = ""
    program: cel.Program | None = None


@dataclass(frozen=True, slots=True)
class ClaimRule:
    """What a token's claims must say: a claim with one value, or an expression that gives true."""

    claim: str = ""
    required: str = ""
    program: cel.Program | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class UserRule:
    """What the mapped identity must look like: an expression over `user` that gives true."""

    program: cel.Program
    message: str = ""


@dataclass(frozen=True, slots=True)
class Issuer:
    """One issuer of tokens, checked and compiled."""

    url: str
    audiences: frozenset[str]
    discovery_url: str = ""
    certificate_authority: str = field(default="", repr=False)
    username: Source = Source(claim="sub")
    groups: Source | None = None
    uid: Source | None = None
    extra: tuple[tuple[str, cel.Program], ...] = ()
    claim_rules: tuple[ClaimRule, ...] = ()
    user_rules: tuple[UserRule, ...] = ()
    # The cluster's own: every token is also put to a TokenReview, whose answer is the identity.
    cluster: bool = False
    # Every username of this issuer begins with it ("" when that cannot be known).
    constant_prefix: str = ""
    # Longer prefixes that other issuers own. A username that has one is refused from this issuer.
    foreign_prefixes: tuple[str, ...] = ()

    @property
    def discovery(self) -> str:
        """Where the issuer's OpenID configuration is (OpenID Connect Discovery, 4.1)."""
        return self.discovery_url or f"{self.url.rstrip('/')}/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """All issuers, by the exact `iss` of their tokens. `AuthConfig()` accepts no token."""

    issuers: tuple[Issuer, ...] = ()
    by_url: Mapping[str, Issuer] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_url", MappingProxyType({issuer.url: issuer for issuer in self.issuers}))


def cluster_default(issuer: str, audiences: Sequence[str] = CLUSTER_AUDIENCES) -> Issuer:
    """The cluster's own ServiceAccount issuer, whose URL the API server tells."""
    return Issuer(
        url=issuer,
        audiences=frozenset(audiences),
        username=Source(claim="sub", prefix=CLUSTER_PREFIX),
        cluster=True,
        constant_prefix=CLUSTER_PREFIX,
    )


def without_approvers(config: AuthConfig) -> tuple[str, ...]:
    """The issuers none of whose tokens can decide an approval, because the audience for that is not listed."""
    return tuple(issuer.url for issuer in config.issuers if approvals.AUDIENCE not in issuer.audiences)


def load(text: str) -> AuthConfig:
    """Read and check a configuration. Raises AuthConfigError, whose lines name every mistake."""
    reader = _Reader()
    document = reader.document(text)
    if reader.errors:
        raise AuthConfigError("\n".join(reader.errors))
    issuers = reader.configuration(document)
    if not reader.errors:
        issuers = reader.apart(issuers)
    if reader.errors:
        raise AuthConfigError("\n".join(reader.errors))
    return AuthConfig(tuple(issuers))


class _Reader:
    """Walks the document, keeps going after a mistake, and collects them all."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def wrong(self, path: str, sentence: str) -> None:
        self.errors.append(f"{path}: {sentence}" if path else sentence)

    # YAML

    def document(self, text: str) -> Any:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                self.wrong("", "the file is empty")
                return None
            self.duplicates(node, "", set())
            return None if self.errors else loader.construct_document(node)
        except (yaml.YAMLError, RecursionError, ValueError) as e:
            self.wrong("", f"not YAML: {' '.join(str(e).split())[:300]}")
            return None
        finally:
            loader.dispose()

    def duplicates(self, node: yaml.Node, path: str, seen: set[int]) -> None:
        """YAML libraries take the last of two equal keys, the API server refuses them: two readers, two meanings."""
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                name = str(getattr(key, "value", "?"))
                if name in keys:
                    self.wrong(_join(path, name), f"given twice, again on line {key.start_mark.line + 1}")
                keys.add(name)
                self.duplicates(value, _join(path, name), seen)
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self.duplicates(value, f"{path}[{i}]", seen)

    # Values

    def mapping(self, value: Any, path: str, fields: Sequence[str]) -> dict[str, Any]:
        """A mapping with no other fields than these. Null is an empty one, as the API server reads it."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.wrong(path, "must be a mapping")
            return {}
        for key in value:
            if key not in fields:
                close = difflib.get_close_matches(str(key), fields, 1)
                hint = f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(fields)}"
                self.wrong(_join(path, str(key)), f"unknown field{hint}")
        return value

    def sequence(self, value: Any, path: str) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            self.wrong(path, "must be a list")
            return []
        return value

    def text(self, values: Mapping[str, Any], name: str, path: str) -> str:
        value = values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.wrong(_join(path, name), f"must be a string, not {_kind(value)}; put it in quotes")
            return ""
        return value

    def program(self, source: str, path: str, variables: Mapping[str, str], returns: str | None) -> cel.Program | None:
        if _ESCAPED.search(source):
            self.wrong(path, "escaped names such as a__dot__b are not read here; write claims['a.b']")
            return None
        try:
            program = cel.compile_expression(source, variables, returns=returns)
        except cel.CelError as e:
            self.wrong(path, str(e))
            return None
        if variables is USER:
            for name in _members(source, "user"):
                # The API server types `user`, so there this does not compile.
                if name not in USER_FIELDS:
                    self.wrong(path, f"undefined field '{name}': user has {', '.join(USER_FIELDS)}")
                    return None
        return program

    # The configuration

    def configuration(self, document: Any) -> list[Issuer]:
        if not isinstance(document, dict):
            self.wrong("", "the file must hold a mapping with apiVersion, kind and jwt")
            return []
        top = self.mapping(document, "", ("apiVersion", "kind", "jwt", "anonymous"))
        version, kind = top.get("apiVersion"), top.get("kind")
        if version not in API_VERSIONS:
            self.wrong("apiVersion", f"must be {' or '.join(API_VERSIONS)}, not {version!r}")
        if kind != KIND:
            self.wrong("kind", f"must be {KIND}, not {kind!r}")
        anonymous = self.mapping(top.get("anonymous"), "anonymous", ("enabled", "conditions"))
        if anonymous.get("enabled"):
            # A request without a token has nobody to hold to account, and would be limited by nothing.
            self.wrong("anonymous.enabled", "must be false: the gateway lets nobody in without a token")
        if anonymous.get("conditions") and not anonymous.get("enabled"):
            self.wrong("anonymous.conditions", "may not be set unless enabled is true")
        entries = self.sequence(top.get("jwt"), "jwt")
        if len(entries) > MAX_ISSUERS:
            self.wrong("jwt", f"has {len(entries)} issuers, more than {MAX_ISSUERS}")
            return []
        if not entries and not self.errors:
            self.wrong("jwt", "at least one issuer is needed, else nobody could get in")
        issuers = [issuer for i, entry in enumerate(entries) if (issuer := self.issuer(entry, f"jwt[{i}]")) is not None]
        for name in ("url", "discovery_url"):
            seen: set[str] = set()
            for i, issuer in enumerate(issuers):
                value = getattr(issuer, name)
                if value and value in seen:
                    self.wrong(f"jwt[{i}].issuer.{_CAMEL[name]}", f"is given twice: {value}")
                seen.add(value)
        return issuers

    def issuer(self, entry: Any, path: str) -> Issuer | None:
        before = len(self.errors)
        fields = ("issuer", "claimValidationRules", "claimMappings", "userValidationRules")
        values = self.mapping(entry, path, fields)
        where = self.where(values.get("issuer"), f"{path}.issuer")
        mappings = self.mappings(values.get("claimMappings"), f"{path}.claimMappings")
        claim_rules = self.claim_rules(values.get("claimValidationRules"), f"{path}.claimValidationRules")
        user_rules = self.user_rules(values.get("userValidationRules"), f"{path}.userValidationRules")
        if len(self.errors) > before:
            return None
        username: Source = mappings["username"]
        self.email(username, mappings["extra"], claim_rules, f"{path}.claimMappings.username.expression")
        prefix = username.prefix if username.program is None else constant_prefix(username.program.source)
        self.prefixes(username, mappings["groups"], prefix, f"{path}.claimMappings")
        return Issuer(
            **where,
            **mappings,
            claim_rules=claim_rules,
            user_rules=user_rules,
            constant_prefix=prefix,
        )

    def where(self, value: Any, path: str) -> dict[str, Any]:
        fields = (
            "url",
            "discoveryURL",
            "certificateAuthority",
            "audiences",
            "audienceMatchPolicy",
            "egressSelectorType",
        )
        values = self.mapping(value, path, fields)
        url = self.text(values, "url", path)
        if not url:
            self.wrong(f"{path}.url", "is required")
        else:
            self.url(url, f"{path}.url")
        if re.match(r"https://kubernetes\.default(\.svc|/|:|$)", url):
            self.wrong(
                f"{path}.url",
                "is the cluster's own issuer, whose tokens need more checks; leave it out and "
                "set tollgate_cluster_tokens to on",
            )
        discovery = self.text(values, "discoveryURL", path)
        if discovery:
            self.url(discovery, f"{path}.discoveryURL")
            if discovery.rstrip("/") == url.rstrip("/"):
                self.wrong(f"{path}.discoveryURL", "must differ from url; leave it out to use url")
        authority = self.text(values, "certificateAuthority", path)
        if authority:
            try:
                x509.load_pem_x509_certificates(authority.encode())
            except ValueError:
                self.wrong(f"{path}.certificateAuthority", "must be certificates in PEM form")
        audiences = self.audiences(values.get("audiences"), f"{path}.audiences")
        policy = self.text(values, "audienceMatchPolicy", path)
        if len(audiences) > 1 and policy != "MatchAny":
            self.wrong(f"{path}.audienceMatchPolicy", "must be MatchAny when there are several audiences")
        elif policy not in ("", "MatchAny"):
            self.wrong(f"{path}.audienceMatchPolicy", f"must be MatchAny or left out, not {policy!r}")
        if self.text(values, "egressSelectorType", path):
            # Konnectivity is the API server's own way out; ignoring the field would send
            # requests another way than the file says.
            self.wrong(f"{path}.egressSelectorType", "is not supported: the gateway fetches keys directly; remove it")
        return {
            "url": url,
            "discovery_url": discovery,
            "certificate_authority": authority,
            "audiences": frozenset(audiences),
        }

    def url(self, url: str, path: str) -> None:
        if not url.isascii() or not url.isprintable() or " " in url:
            self.wrong(path, "must be printable ASCII without spaces")
            return
        try:
            parts = urlsplit(url)
            has_host = bool(parts.hostname) and parts.port != 0
        except ValueError as e:
            self.wrong(path, f"is not a URL: {e}")
            return
        if parts.scheme != "https":
            self.wrong(path, "must begin with https://")
        elif not has_host:
            self.wrong(path, "must name a host")
        if "@" in parts.netloc:
            self.wrong(path, "must not contain a username or password")
        if parts.query:
            self.wrong(path, "must not contain a query")
        if parts.fragment:
            self.wrong(path, "must not contain a fragment")

    def audiences(self, value: Any, path: str) -> list[str]:
        found: list[str] = []
        for i, item in enumerate(self.sequence(value, path)):
            if not isinstance(item, str) or not item:
                self.wrong(f"{path}[{i}]", "must be a string that is not empty")
            elif item in found:
                self.wrong(f"{path}[{i}]", f"is given twice: {item!r}")
            else:
                found.append(item)
        if not found:
            # Without one, a token that was issued for another service would open the cluster.
            self.wrong(path, "at least one audience is required")
        return found

    def mappings(self, value: Any, path: str) -> dict[str, Any]:
        values = self.mapping(value, path, ("username", "groups", "uid", "extra"))
        return {
            "username": self.prefixed(values.get("username"), f"{path}.username", required=True, returns="string")
            or Source(),
            "groups": self.prefixed(values.get("groups"), f"{path}.groups", required=False, returns=None),
            "uid": self.uid(values.get("uid"), f"{path}.uid"),
            "extra": self.extras(values.get("extra"), f"{path}.extra"),
        }

    def prefixed(self, value: Any, path: str, *, required: bool, returns: str | None) -> Source | None:
        values = self.mapping(value, path, ("claim", "prefix", "expression"))
        claim, expression = self.text(values, "claim", path), self.text(values, "expression", path)
        prefix = self.text(values, "prefix", path)
        if claim and expression:
            self.wrong(path, "claim and expression can't both be set")
        elif expression:
            if values.get("prefix") is not None:
                self.wrong(f"{path}.prefix", "may not be set with expression; put it into the expression")
            return Source(program=self.program(expression, f"{path}.expression", CLAIMS, returns))
        elif claim:
            if values.get("prefix") is None:
                self.wrong(f"{path}.prefix", 'is required with claim; "" means none')
            return Source(claim=claim, prefix=prefix)
        elif required:
            self.wrong(path, "claim or expression is required")
        elif prefix:
            self.wrong(f"{path}.prefix", "may not be set without claim")
        return None

    def uid(self, value: Any, path: str) -> Source | None:
        values = self.mapping(value, path, ("claim", "expression"))
        claim, expression = self.text(values, "claim", path), self.text(values, "expression", path)
        if claim and expression:
            self.wrong(path, "claim and expression can't both be set")
        elif expression:
            return Source(program=self.program(expression, f"{path}.expression", CLAIMS, "string"))
        elif claim:
            return Source(claim=claim)
        return None

    def extras(self, value: Any, path: str) -> tuple[tuple[str, cel.Program], ...]:
        found: dict[str, cel.Program] = {}
        for i, item in enumerate(self.sequence(value, path)):
            at = f"{path}[{i}]"
            values = self.mapping(item, at, ("key", "valueExpression"))
            key, expression = self.text(values, "key", at), self.text(values, "valueExpression", at)
            self.extra_key(key, f"{at}.key")
            if key in found:
                self.wrong(f"{at}.key", f"is given twice: {key!r}")
            if not expression:
                self.wrong(f"{at}.valueExpression", "is required")
                continue
            program = self.program(expression, f"{at}.valueExpression", CLAIMS, None)
            if program is not None:
                found[key] = program
        return tuple(found.items())

    def extra_key(self, key: str, path: str) -> None:
        domain, slash, rest = key.partition("/")
        if not key:
            self.wrong(path, "is required")
        elif not slash or not domain or not rest:
            self.wrong(path, f"must be a domain-prefixed path such as example.com/team, not {key!r}")
        elif key != key.lower():
            self.wrong(path, f"must be lower case: {key!r}")
        elif len(domain) > 253 or not _DNS_1123.fullmatch(domain) or not _HTTP_PATH.fullmatch(rest):
            self.wrong(path, f"must be a DNS name, a slash and a path: {key!r}")
        elif any(domain == own or domain.endswith(f".{own}") for own in ("k8s.io", "kubernetes.io")):
            self.wrong(path, "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes")

    def claim_rules(self, value: Any, path: str) -> tuple[ClaimRule, ...]:
        rules: list[ClaimRule] = []
        seen: set[tuple[str, str]] = set()
        for i, item in enumerate(self.sequence(value, path)):
            at = f"{path}[{i}]"
            values = self.mapping(item, at, ("claim", "requiredValue", "expression", "message"))
            claim, expression = self.text(values, "claim", at), self.text(values, "expression", at)
            required, message = self.text(values, "requiredValue", at), self.text(values, "message", at)
            if claim and expression:
                self.wrong(at, "claim and expression can't both be set")
                continue
            if not claim and not expression:
                self.wrong(at, "claim or expression is required")
                continue
            if claim and message:
                self.wrong(f"{at}.message", "may not be set with claim")
            if expression and required:
                self.wrong(f"{at}.requiredValue", "may not be set with expression")
            if (claim, expression) in seen:
                self.wrong(f"{at}.{'claim' if claim else 'expression'}", f"is given twice: {claim or expression!r}")
            seen.add((claim, expression))
            program = self.program(expression, f"{at}.expression", CLAIMS, "bool") if expression else None
            rules.append(ClaimRule(claim, required, program, message))
        return tuple(rules)

    def user_rules(self, value: Any, path: str) -> tuple[UserRule, ...]:
        rules: dict[str, UserRule] = {}
        for i, item in enumerate(self.sequence(value, path)):
            at = f"{path}[{i}]"
            values = self.mapping(item, at, ("expression", "message"))
            expression = self.text(values, "expression", at)
            if not expression:
                self.wrong(f"{at}.expression", "is required")
                continue
            if expression in rules:
                self.wrong(f"{at}.expression", f"is given twice: {expression!r}")
            program = self.program(expression, f"{at}.expression", USER, "bool")
            if program is not None:
                rules[expression] = UserRule(program, self.text(values, "message", at))
        return tuple(rules.values())

    # What several fields say together

    def email(
        self, username: Source, extra: tuple[tuple[str, cel.Program], ...], rules: tuple[ClaimRule, ...], path: str
    ) -> None:
        """An address that nobody verified is a name that anybody can take, as the API server has it."""
        if username.program is None or "email" not in _members(username.program.source, "claims"):
            return
        programs = [username.program, *(p for _, p in extra), *(r.program for r in rules if r.program is not None)]
        if not any("email_verified" in _members(program.source, "claims") for program in programs):
            self.wrong(
                path,
                "uses claims.email, so claims.email_verified must be used in it, in an extra valueExpression "
                "or in a claimValidationRules expression",
            )

    def prefixes(self, username: Source, groups: Source | None, prefix: str, path: str) -> None:
        """A mapping that could only ever give names that are refused is a mistake, found now rather than by a 401."""
        named = ((f"{path}.username", username, prefix), (f"{path}.groups", groups, groups.prefix if groups else ""))
        for at, source, start in named:
            reserved = next((r for r in (SYSTEM_PREFIX, CLUSTER_PREFIX) if start.startswith(r)), None)
            if source is not None and reserved is not None:
                what = "expression" if source.program else "prefix"
                self.wrong(f"{at}.{what}", f"must not begin with {reserved}, which no other issuer may give")

    def apart(self, issuers: list[Issuer]) -> list[Issuer]:
        """
        Refuse two issuers that could name the same user, and note which prefixes are whose.

        Equal prefixes: a user of one could be a user of the other, and no rule could tell
        them apart. One longer than the other (`""` and `ci:`): the issuer with the shorter
        may not give names that have the longer, which the mapping checks for each token.
        """
        result = []
        for i, issuer in enumerate(issuers):
            foreign = []
            for j, other in enumerate(issuers):
                if i == j:
                    continue
                if other.constant_prefix == issuer.constant_prefix:
                    if j < i:
                        self.wrong(f"jwt[{i}].claimMappings.username", _same(issuer, j))
                elif other.constant_prefix.startswith(issuer.constant_prefix):
                    foreign.append(other.constant_prefix)
            result.append(replace(issuer, foreign_prefixes=tuple(sorted(foreign))))
        return result


_CAMEL = {"url": "url", "discovery_url": "discoveryURL"}


def _same(issuer: Issuer, other: int) -> str:
    if issuer.username.program is not None:
        return (
            f"could give the same usernames as jwt[{other}]: begin the expression with a text of its own, "
            "as in 'corp:' + claims.sub"
        )
    return f"could give the same usernames as jwt[{other}]: give each issuer a prefix of its own, such as 'corp:'"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _kind(value: Any) -> str:
    words = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
    return words.get(type(value), "a date" if hasattr(value, "year") else type(value).__name__)


# Reading expressions, without a parser: the runtime gives no tree. Both uses are safe when
# this reads too little: an email that it overlooks is one that the API server's own check
# would overlook too (it looks for `claims.email` as well), a prefix that it does not see is "".

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|//[^\n]*)
    | (?P<string>[rR]?(?:'''(?:[^\\]|\\.)*?'''|\"""(?:[^\\]|\\.)*?\"""|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"))
    | (?P<number>\d[\w.]*)
    | (?P<name>[A-Za-z_]\w*)
    | (?P<other>\.\?|\[\?|&&|\|\||[=!<>]=|.)
    """,
    re.VERBOSE | re.DOTALL,
)


def _tokens(source: str) -> Iterator[tuple[str, str]]:
    for match in _TOKEN.finditer(source):
        if match.lastgroup and match.lastgroup != "space":
            yield match.lastgroup, match[0]


def _members(source: str, root: str) -> set[str]:
    """Names read from a variable: `claims.email`, `claims.?email`, `claims['email']`, `claims[?'email']`."""
    tokens = list(_tokens(source))
    found = set()
    for i, (kind, text) in enumerate(tokens[:-2]):
        if kind != "name" or text != root or (i and tokens[i - 1][1] in (".", ".?")):
            continue
        (_, opening), (member_kind, member) = tokens[i + 1], tokens[i + 2]
        if opening in (".", ".?") and member_kind == "name":
            found.add(member)
        elif opening in ("[", "[?") and member_kind == "string":
            found.add(member.strip("rR").strip("'\""))
    return found


def constant_prefix(source: str) -> str:
    """What every string that the expression gives begins with, when it is a sum that starts with a text; else ""."""
    tokens = list(_tokens(source))
    if len(tokens) < 3 or tokens[0][0] != "string" or tokens[1][1] != "+":
        return ""
    depth = 0
    for kind, text in tokens[1:]:
        if text in ("(", "[", "[?", "{"):
            depth += 1
        elif text in (")", "]", "}"):
            depth -= 1
        elif depth == 0 and ((kind == "other" and text not in ("+", ".", ".?")) or text == "in"):
            return ""  # another operator: the sum is an operand, and the whole may begin with anything
    literal = tokens[0][1]
    if literal[0] in "rR" or literal.startswith(("'''", '"""')):
        return ""
    return literal[1:-1].split("\\", 1)[0]
