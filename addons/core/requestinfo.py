"""
RequestInfo: what the API server takes a request for, from its method and URL alone.

The rules of `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go` (v0.36.3), with
kube-apiserver's prefixes, in Python. Authorization, audit and admission all go by this
value over there, so ours must be the same in every field: tests/fuzz compares the two.
Give it canonical targets only (addons.core.canonical): on others no parser is right.
"""

import re
from collections.abc import Iterable

from addons.core.canonical import Pairs
from addons.core.model import RequestInfo
from addons.core.status import Refused

_PREFIXES = frozenset({"api", "apis"})
_SPECIAL_VERBS = frozenset({"proxy", "watch"})  # `/api/v1/watch/pods`, deprecated, still served
_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})
_VERBS_WITH_SELECTORS = frozenset({"list", "watch", "deletecollection"})
_VERBS = {"POST": "create", "GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def parse(method: str, path: str, query: Pairs = ()) -> RequestInfo:
    """RequestInfo of a decoded path and query."""
    stripped = path.strip("/")
    parts = stripped.split("/") if stripped else []
    if len(parts) < 3 or parts[0] not in _PREFIXES:
        return RequestInfo(verb=method.lower(), path=path)
    prefix, group, rest = parts[0], "", parts[1:]
    if prefix == "apis":
        if len(rest) < 3:
            # A group's own page: not a resource, but the prefix is already noted over there.
            return RequestInfo(verb=method.lower(), path=path, api_prefix=prefix)
        group, rest = rest[0], rest[1:]
    version, rest = rest[0], rest[1:]

    by_prefix = rest[0] in _SPECIAL_VERBS
    if by_prefix:
        if len(rest) < 2:
            raise Refused(400, "path-incomplete", "url: no resource follows the verb in the path; name one")
        verb, rest = rest[0], rest[1:]
    else:
        verb = _VERBS.get(method, "")

    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2 and rest[2] not in _NAMESPACE_SUBRESOURCES:
            rest = rest[2:]

    resource = rest[0]
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 and verb != "proxy" else ""

    if not name:
        if verb == "get":
            verb, name = _list_or_watch(query)
        # Not "elif": over there too a list that turned into a name stays a list.
        if verb == "delete" and not name:
            verb = "deletecollection"
    field_selector = label_selector = ""
    if query and not by_prefix and verb in _VERBS_WITH_SELECTORS:
        field_selector = _first(query, "fieldSelector") or ""
        label_selector = _first(query, "labelSelector") or ""
    return RequestInfo(
        verb,
        path,
        True,
        prefix,
        group,
        version,
        namespace,
        resource,
        subresource,
        name,
        tuple(rest),
        field_selector,
        label_selector,
    )


def _first(query: Pairs, key: str) -> str | None:
    for k, value in query:
        if k == key:
            return value
    return None


def _list_or_watch(query: Pairs) -> tuple[str, str]:
    """Verb and name of a GET without a name in the path: a field selector may give one."""
    if not query:
        return "list", ""
    watch = _first(query, "watch")
    if not _decodes(query):
        # One option that cannot be read and all are dropped, but for `watch`.
        return ("watch" if watch is not None and watch.lower() not in ("false", "0") else "list"), ""
    # `watch`, `watch=` and `watch=no` all watch (conversion.go, Convert_Slice_string_To_bool).
    verb = "watch" if watch is not None and watch != "0" and watch.casefold() != "false" else "list"
    return verb, exact_name(_first(query, "fieldSelector") or "")


def _decodes(query: Pairs) -> bool:
    """Whether the API server can read these as ListOptions."""
    for key in ("timeoutSeconds", "limit"):
        number = _first(query, key)
        if number is not None and not _is_int64(number):
            return False
    labels = _first(query, "labelSelector")
    if labels and not is_label_selector(labels):
        return False
    fields = _first(query, "fieldSelector")
    return not fields or field_terms(fields) is not None


def _is_int64(text: str) -> bool:
    return len(text) < 100 and re.fullmatch(r"[+-]?[0-9]+", text) is not None and -(2**63) <= int(text) < 2**63


def exact_name(field_selector: str) -> str:
    """The object that `metadata.name=…` limits a list to, or "" (fields/selector.go)."""
    if "metadata.name" not in field_selector:
        return ""
    for field, operator, value in field_terms(field_selector) or ():
        if field == "metadata.name" and operator != "!=":
            # The first in sorted order decides, also when it cannot be a name.
            return "" if value in (".", "..") or "/" in value or "%" in value else value
    return ""


def field_terms(selector: str) -> list[tuple[str, str, str]] | None:
    """The terms of a field selector as (field, operator, value), sorted; None when it is invalid."""
    terms = []
    for term in sorted(_split_terms(selector)):
        if not term:
            continue
        found = re.search(r"!=|==|=", term)
        value = _unescape(term[found.end() :]) if found else None
        if found is None or value is None:
            return None
        terms.append((term[: found.start()], found[0], value))
    return terms


def _split_terms(selector: str) -> Iterable[str]:
    """Split at commas that no backslash protects."""
    start, escaped = 0, False
    for i, char in enumerate(selector):
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == ",":
            yield selector[start:i]
            start = i + 1
    yield selector[start:]


def _unescape(value: str) -> str | None:
    if not re.fullmatch(r"(?:[^\\,=]|\\[\\,=])*", value, re.DOTALL):
        return None
    return re.sub(r"\\(.)", r"\1", value)


# Label selectors (labels/selector.go). Only whether one is valid matters here: an invalid one
# takes the name of a field selector beside it with it.
_LABEL_TOKEN = re.compile(r"[ \t\r\n]*(?:(!=|==|[=!(),<>])|([^=!(),<> \t\r\n]+))")
_LABEL_NAME = r"(?:[A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_DNS_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_LABEL_KEY = re.compile(rf"(?:(?P<prefix>{_DNS_LABEL}(?:\.{_DNS_LABEL})*)/)?(?P<name>{_LABEL_NAME})")
_LABEL_VALUE = re.compile(rf"(?:{_LABEL_NAME})?")
_SYMBOLS = frozenset({"!=", "==", "=", "!", "(", ")", ",", "<", ">"})


def is_label_selector(selector: str) -> bool:
    tokens = label_tokens(selector)
    return tokens is not None and _requirements(tokens)


def label_tokens(selector: str) -> list[str] | None:
    """The tokens of a label selector, "" last; None when it has others. `is_label_selector` says whether they fit."""
    tokens, at, end = [], 0, len(selector.rstrip(" \t\r\n"))
    while at < end:
        found = _LABEL_TOKEN.match(selector, at)
        if found is None:
            return None
        tokens.append(found[1] or found[2])
        at = found.end()
    return [*tokens, ""]  # "": the end


def _requirements(tokens: list[str]) -> bool:
    at = 0
    while tokens[at]:
        after = _requirement(tokens, at)
        if after is None or tokens[after] not in ("", ","):
            return False
        if not tokens[after]:
            return True
        at = after + 1
        if not tokens[at] or (tokens[at] in _SYMBOLS and tokens[at] != "!"):
            return False  # a comma must be followed by another requirement
    return True


def _requirement(tokens: list[str], at: int) -> int | None:
    """The position after one requirement, or None."""
    negated = tokens[at] == "!"
    at += negated
    if not _is_label_key(tokens[at]):
        return None
    at += 1
    operator = tokens[at]
    # `!key` is complete: what may follow is a comma or the end.
    return at if negated or operator in ("", ",") else _binary(tokens, at)


def _binary(tokens: list[str], at: int) -> int | None:
    operator = tokens[at]
    at += 1
    if operator in ("in", "notin"):
        return _values(tokens, at)
    if operator not in ("=", "==", "!=", "<", ">"):
        return None
    value = tokens[at]
    if value in ("", ","):
        value = ""
    elif value in _SYMBOLS:
        return None
    else:
        at += 1
    if operator in ("<", ">") and not _is_int64(value):
        return None
    return at if _is_label_value(value) else None


def _values(tokens: list[str], at: int) -> int | None:
    if tokens[at] != "(":
        return None
    at += 1
    while tokens[at] != ")":
        if not tokens[at] or (tokens[at] in _SYMBOLS and tokens[at] != ","):
            return None
        if tokens[at] != "," and (not _is_label_value(tokens[at]) or tokens[at + 1] not in (",", ")")):
            return None
        at += 1
    return at + 1


def _is_label_key(text: str) -> bool:
    found = _LABEL_KEY.fullmatch(text)
    return found is not None and len(found["name"]) <= 63 and len(found["prefix"] or "") <= 253


def _is_label_value(text: str) -> bool:
    return len(text) <= 63 and _LABEL_VALUE.fullmatch(text) is not None
