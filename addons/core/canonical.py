"""
Canonical: a request target that every parser reads the same way, or a refusal.

The gateway decides on what it reads; the API server acts on what *it* reads. Where two
parsers could differ (`//`, `/../`, `%2F`, `;`, a key given twice) there is no right
reading, so such a target is refused instead of repaired. What Kubernetes' own clients
send always passes: Go's, Python's and JavaScript's escaping all do.

The one exception is the tail behind a `proxy` subresource: it belongs to the program
behind it, and may hold what programs put in URLs, but nothing that climbs out of it.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from addons.core.status import Refused

# What kube-apiserver's RequestInfo gives a verb. OPTIONS has none there (its verb is "", which
# no rule could name), TRACE and CONNECT are not HTTP requests to a resource at all.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})

# Characters. The longest honest target is an exec whose script is in `command=`; the API
# server itself takes a head of 1 MiB in all.
MAX_TARGET = 65536
MAX_PAIRS = 1000  # query parameters; the API server has no use for more than a few dozen
CACHED_TARGET = 512  # characters; longer ones are rare, and would make the cache heavy

# Query parameters that the API server's own options know (metav1 List-, Delete-, Create-, Patch-
# and UpdateOptions, and those of exec, log and port-forward). Go takes the first of several values,
# others take the last: each may be there once. `command` and `ports` are lists.
MEANINGFUL = frozenset(
    {
        *("labelSelector", "fieldSelector", "watch", "allowWatchBookmarks", "resourceVersion", "shardSelector"),
        *("resourceVersionMatch", "timeoutSeconds", "timeout", "limit", "continue", "sendInitialEvents", "pretty"),
        *("dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy", "preconditions", "name", "kind"),
        *("ignoreStoreReadErrorWithClusterBreakingPotential", "apiVersion", "fieldManager", "fieldValidation"),
        *("force", "stdin", "stdout", "stderr", "tty", "container", "follow", "previous", "sinceSeconds"),
        *("sinceTime", "timestamps", "tailLines", "limitBytes", "insecureSkipTLSVerifyBackend", "stream", "path"),
    }
)
_LISTS = frozenset({"command", "ports"})
_BY_FOLDED = {key.casefold(): key for key in MEANINGFUL | _LISTS}

_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_.~!$&'()*+,:=@-]+"
_PLAIN_PATH = re.compile(rf"(?:/{_SEGMENT})+\Z")
_ESCAPED_PATH = re.compile(r"(?:[A-Za-z0-9_.~!$&'()*+,:=@/-]|%[0-9A-F]{2})+\Z")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_NEEDLESS = re.compile(rb"[A-Za-z0-9._~-]")
# Structure, once decoded: separators of segments (`/`, `\`), of parameters (`;`), of the query
# (`?`, `#`), and the escape itself, which a second decoding would follow.
_STRUCTURE = re.compile(rb"[/\\;%?#]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TAIL = re.compile(r"(?:[A-Za-z0-9_.~!$&'()*+,:=@/-]|%[0-9A-Fa-f]{2})*\Z")
# The head of a proxy subresource, as kube-apiserver routes it (pkg/registry/core/rest).
_PROXY = re.compile(r"(/api/v1/(?:namespaces/[^/]+/(?:pods|services)|nodes)/[^/]+/proxy)(/.*)?\Z", re.DOTALL)

_PLAIN_QUERY = re.compile(r"[A-Za-z0-9_.~!$'()*,:@/?=&-]*\Z")
_QUERY = re.compile(r"(?:[A-Za-z0-9_.~!$'()*,:@/?=&+\[\]-]|%[0-9A-Fa-f]{2})*\Z")
_QUERY_CONTROL = re.compile("[\x00-\x1f\x7f]")
_COMMAND_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # a script has tabs and lines

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A canonical target taken apart: what every parser reads."""

    path: str  # decoded
    query: Pairs  # decoded, in order


def check_target(method: str, target: str) -> None:
    """Refuse a method or target that the API server could read differently from us."""
    read(method, target)


def read(method: str, target: str) -> Target:
    """The decoded target. Raises Refused when it is not canonical."""
    # Methods are case-sensitive (RFC 9110, 9.1): `delete` is another, unknown one.
    if method not in METHODS:
        raise Refused(
            405,
            "method-unknown",
            "method: only GET, HEAD, POST, PUT, PATCH and DELETE are served here, in capital letters",
        )
    return _read_cached(target) if len(target) <= CACHED_TARGET else _read(target)


def _read(target: str) -> Target:
    if len(target) > MAX_TARGET:
        raise Refused(400, "target-too-long", f"url: over {MAX_TARGET} characters; shorten it")
    if not target.startswith("/"):
        # `http://other/…`, `*`, `host:port`: the authority would be decided twice.
        raise Refused(400, "target-form", "url: must begin with a slash; send the path only")
    path, asked, raw_query = target.partition("?")
    decoded, is_proxy = _path(path)
    return Target(decoded, _query(raw_query, is_proxy) if asked else ())


# One command of kubectl asks for the same few targets again and again.
_read_cached = lru_cache(maxsize=4096)(_read)


def _path(path: str) -> tuple[str, bool]:
    """The decoded path, and whether it is a proxy subresource's."""
    proxy = _PROXY.match(path) if "/proxy" in path else None
    if _PLAIN_PATH.match(path):
        return path, proxy is not None
    if path == "/":
        return path, False
    if proxy is not None:
        return _strict(proxy[1]) + _tail(proxy[2] or ""), True
    return _strict(path), False


def _strict(path: str) -> str:
    if not _ESCAPED_PATH.match(path):
        raise _not_canonical(_why_not(path))
    for escape in _ESCAPE.findall(path):
        byte = bytes.fromhex(escape)
        if _NEEDLESS.match(byte):
            # `%61pi` is `api` to the API server, and a string no rule was written for to others.
            raise _not_canonical("it escapes letters that need no escape")
        if _STRUCTURE.match(byte):
            raise _not_canonical("it escapes a character that separates (slash, backslash, semicolon, %, ? or #)")
    decoded = _utf8(path)
    segments = decoded.split("/")
    if not segments[-1]:
        # `DELETE …/configmaps/` is the whole collection to the API server. Elsewhere a slash at the
        # end is a page of its own (`/debug/pprof/`), and nothing is known of it anyway.
        if decoded.startswith(("/api/", "/apis/")):
            raise _not_canonical("it ends with a slash")
        segments.pop()
    if "" in segments[1:] or "." in segments or ".." in segments:
        raise _not_canonical("it holds an empty, . or .. segment")
    return decoded


def _tail(tail: str) -> str:
    """What follows a proxy subresource: anything that stays behind it, however often decoded."""
    if not _TAIL.match(tail):
        raise _not_canonical(_why_not(tail))
    decoded = _utf8(tail)
    twice = decoded
    for _ in range(3):  # the program behind the proxy may decode once more
        # Some servers cut parameters off a segment before they resolve it: `..;x`.
        if any(segment.partition(";")[0] in (".", "..") for segment in re.split(r"[/\\]", twice)):
            raise _not_canonical("its tail holds a . or .. segment")
        if "%" not in twice:
            break
        twice = unquote_to_bytes(twice).decode("utf-8", "replace")
    return decoded


def _utf8(escaped: str) -> str:
    try:
        decoded = unquote_to_bytes(escaped).decode()
    except UnicodeDecodeError:
        raise _not_canonical("its escapes are not UTF-8") from None
    if _CONTROL.search(decoded):
        raise _not_canonical("it holds a control character")
    return decoded


def _why_not(path: str) -> str:
    if "\\" in path or ";" in path or "#" in path:
        return "it holds a backslash, a semicolon or a #, which separate for some readers"
    if not path.isascii() or _CONTROL.search(path):
        return "it holds a raw control character or a letter outside ASCII"
    if "%" in path:
        return "an escape is not two capital hexadecimal digits"
    return "it holds a character that must be escaped"


def _query(raw: str, is_proxy: bool) -> Pairs:
    if not raw:
        return ()
    if _PLAIN_QUERY.match(raw):
        pairs = [_cut(part) for part in raw.split("&") if part]
    elif _QUERY.match(raw):
        pairs = [_decode(part) for part in raw.split("&") if part]
    else:
        # Go drops a pair with `;` or a bad escape, others keep it: `?a;dryRun=All`.
        raise _bad_query("it holds a character that must be escaped, a ; or a broken escape")
    if len(pairs) > MAX_PAIRS:
        raise _bad_query(f"it has over {MAX_PAIRS} parameters")
    if is_proxy:
        return tuple(pairs)  # the program's own, behind the proxy
    seen: set[str] = set()
    for key, value in pairs:
        known = key if key in MEANINGFUL else _BY_FOLDED.get(key.casefold())
        if known is None:
            if _QUERY_CONTROL.search(key + value):
                raise _bad_query("it holds a control character")
            continue
        if known != key:
            raise _bad_query(f"one of its keys is {known} in another spelling")
        if known in _LISTS:
            if _COMMAND_CONTROL.search(value):
                raise _bad_query("it holds a control character")
            continue
        if key in seen:
            raise _bad_query(f"{key} is given twice")
        seen.add(key)
        if _QUERY_CONTROL.search(value):
            raise _bad_query("it holds a control character")
    return tuple(pairs)


def _cut(part: str) -> tuple[str, str]:
    key, _, value = part.partition("=")
    return key, value


def _decode(part: str) -> tuple[str, str]:
    key, _, value = part.partition("=")
    if "%" not in part and "+" not in part:
        return key, value
    try:
        plain_key = unquote_to_bytes(key.replace("+", " ")).decode()
        plain_value = unquote_to_bytes(value.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise _bad_query("its escapes are not UTF-8") from None
    # An escaped key (`dry%52un`) is one more spelling of it: what looks for the text misses it.
    if plain_key != key and plain_key.casefold() in _BY_FOLDED:
        raise _bad_query("a key that Kubernetes knows is written with escapes")
    return plain_key, plain_value


def _not_canonical(why: str) -> Refused:
    return Refused(
        400, "path-not-canonical", f"url: the path is not in its one plain spelling: {why}; write it plainly"
    )


def _bad_query(why: str) -> Refused:
    return Refused(400, "query-not-canonical", f"url: the query can be read in two ways: {why}; write it plainly")
