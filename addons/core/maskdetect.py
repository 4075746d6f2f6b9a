"""
Detectors: secrets by their shape, in text and in values that have a name.

Keys of cloud providers and services are found by Kingfisher (MongoDB's, Apache-2.0): some 500
patterns kept up to date by others, compiled into one automaton, offline. Its code that tries
credentials out is never called. Ours is only what structure tells and its list leaves out, for it
looks for leaks in source code and so passes over examples and placeholders: private keys (a
torn one too), JSON Web Tokens, passwords in URLs and headers, Kubernetes' bootstrap tokens, and
`name = value` where the name says so.
"""

import base64
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache

import kingfisher_sdk

from addons.core import masktags

MIN_RANDOM = 12  # bytes; shorter values are words, numbers and names too often
_SAMPLE = 256  # letters of a longer one that are looked at
MIN_BITS = 3.0  # Shannon entropy per letter; English words have about 2.5 at this length
TOGETHER = 256 * 1024  # characters; a search of so many takes 0.2 ms
SEPARATOR = "\n\x1e\n"  # between texts that are looked at together; nothing is found across it

type Span = tuple[int, int]


# Names

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_STRONG = frozenset(
    """
    password passwords passwd passwort pwd pass passphrase passcode secret token credential credentials creds
    apikey accesskey secretkey privatekey authkey jwt bearer authorization
    """.split()  # noqa: SIM905 -- a paragraph is easier to read than 20 quoted lines
)
_STRONG_ENDS = (
    *("password", "passwd", "passphrase", "secret", "token", "apikey", "credential", "credentials"),
    *("privatekey", "secretkey", "accesskey"),
)
# What makes a key a secret one, before the word: API_KEY, tls.key, client-key-data.
_KEYED = frozenset(
    """
    access account admin aes api app auth cipher client consumer crypt deploy encryption hmac license master pgp gpg
    private rsa secret server service session shared sign signing ssh storage tls webhook
    """.split()  # noqa: SIM905 -- as above
)
# A name with these as its last word is about a secret: where it is, how long it lives.
_ABOUT = frozenset(
    """
    age algorithm alg audience audiences backend class controller count days dir directory disabled duration enabled
    encoding endpoint engine expiration expires expiry field file format header host hours interval issuer kind
    length lifetime limit location manager max min minutes mode mount name names namespace path policy port prefix
    projection provider ref refs required review reviews rotation rules seconds size store suffix timeout ttl type
    uri url version volume
    """.split()  # noqa: SIM905 -- as above
)
# Weak: a secret when the value looks like one.
_WEAK = frozenset(
    """
    auth code cookie dsn hash key keys nonce pin salt sas secrets seed session signature tokens
    """.split()  # noqa: SIM905 -- as above
)
_NO_VALUE = frozenset(
    """
    true false yes no on off null none nil empty enabled disabled unset undefined required optional invalid missing
    expired changed changes unchanged default string redacted hidden masked
    """.split()  # noqa: SIM905 -- as above
)
# Only the variable's name: `--password=$(DB_PASSWORD)`, `${TOKEN}`, `{{ .Values.token }}`.
_REFERENCE = re.compile(r"\$\(\w+\)|\$\{\w+\}|\$\w+|\{\{[^{}]{0,80}\}\}|<[\w -]{1,40}>|%\w+%")


@lru_cache(maxsize=8192)
def _strength(name: str) -> int:
    """2: a value of this name is secret, 1: when it looks like one, 0: not by its name."""
    words = [word.lower() for word in _WORDS.findall(name[-200:])]
    while words and words[-1].isdigit():
        words.pop()
    if not words or words[-1] in _ABOUT:
        return 0
    for number, word in enumerate(words):
        if word in _STRONG or word.endswith(_STRONG_ENDS):
            return 2
        if word == "key" and number and words[number - 1] in _KEYED:
            return 2
    return 1 if not _WEAK.isdisjoint(words) else 0


def is_secret_name(name: str) -> bool:
    """Whether a variable or key of this name holds a secret: DB_PASSWORD, apiKey; not SECRET_NAME, token-ttl."""
    return _strength(name) == 2


def is_secret(name: str, value: str) -> bool:
    """Whether the whole value of a variable or key is to be masked. (What is in it: `spans`.)"""
    strength = _strength(name)
    if not strength or not is_value(value):
        return False
    return strength == 2 or is_random(value[:_SAMPLE])


def is_value(value: str) -> bool:
    """Whether it can be a secret at all: not empty, not a plain word of configuration, not a reference, no tag."""
    text = value.strip()
    if not text or text.casefold() in _NO_VALUE or masktags.is_tag(text):
        return False
    if text[0] in "$<{%" and len(text) <= _SAMPLE:
        return any(letter.isalnum() for letter in _REFERENCE.sub("", text))
    return True


@lru_cache(maxsize=8192)
def is_random(text: str) -> bool:
    """At least 12 letters of high entropy, not words, paths or names."""
    if len(text) < MIN_RANDOM:
        return False
    sample = text[:_SAMPLE]
    counts = Counter(sample)
    bits = -sum(n / len(sample) * math.log2(n / len(sample)) for n in counts.values())
    if bits < MIN_BITS:
        return False
    classes = (
        any("a" <= c <= "z" for c in counts),
        any("A" <= c <= "Z" for c in counts),
        any("0" <= c <= "9" for c in counts),
        any(not c.isalnum() for c in counts),
    )
    if all(classes):
        return True
    # Words, paths, host names and dates are made of short pieces; a key has a long one that mixes.
    return any(_mixes(piece) for piece in re.findall(r"[A-Za-z0-9]{8,}", sample))


def _mixes(piece: str) -> bool:
    letters = sum(c.isalpha() for c in piece)
    if 0 < letters < len(piece):
        return True
    inner_capitals = sum(c.isupper() for c in piece[1:])
    return 2 <= inner_capitals < len(piece) - 1 and any(c.islower() for c in piece)


# Text

_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_BASE64 = re.compile(r"LS0tLS1CRUdJTi[A-Za-z0-9+/_-]{16,}={0,2}")
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{10,}+(?:\.[A-Za-z0-9_-]*+){2,4}")
_JWT_PART = re.compile(r"[A-Za-z0-9_-]*")
_USERINFO = re.compile(r"""://[^\s:/?#@"'<>]{0,128}:([^\s"'<>]{1,256})@(?=[\w\[$*])""")
_PORT = re.compile(r"\d{1,5}(?:[/?#]|$)")
_BEARER = re.compile(r"""(?i:bearer|basic)[ ]{1,4}([A-Za-z0-9._~+/=-]{8,8192})""")
# Amazon's key ids: the library reports one only beside its secret.
_AWS_ID = re.compile(r"(?<![A-Za-z0-9])(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])")
# From its dot on, which is searched for ten times as fast as what any letter may begin.
_BOOTSTRAP = re.compile(r"\.(?<=(?<![a-z0-9.])[a-z0-9]{6}\.)(?=[a-z]*[0-9])[a-z0-9]{16}(?![a-z0-9.])")
_BOOTSTRAP_ID = 6  # letters before the dot

# What stands between a name and its value: `=`, `: `, JSON's quotes (escaped, too), `name: x, value: `.
_ASSIGNED = re.compile(
    r"""
    (?P<name>[A-Za-z0-9_.-]{1,160}+)
    (?: \\{0,7}["'`]?\]? [ \t]{0,60} (?P<by> => | := | ={1,3} | : ) [ \t]{0,60}
      | \\{0,7}["']? [ \t\r\n,]{1,60} \\{0,7}["']? value \\{0,7}["']? [ \t]{0,8} [:=] [ \t]{0,40}
    )
    (?: (?P<open>\\{0,7}["'`]) (?: (?P<quoted>[^\n\x1e]*?) (?<!\\)(?P=open) | (?P<torn>[^\n\x1e]*) )
      | (?P<block>[|>][+-]?[0-9]?[ \t]*\n)
      | (?P<bare>[^\s"\x1e]{1,1024}+)
    )
    """,
    re.VERBOSE,
)
_FLAG = re.compile(r"""(?P<name>--?[A-Za-z0-9_.-]{1,160}+)[ ]{1,4}(?P<q>["']?)(?P<bare>[^\s"'-][^\s"']{0,8191})""")
_ELEMENT = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,160}+)>(?P<bare>[^<>\n\x1e]{1,500})</")
_BLOCK = re.compile(r"(?:[ \t]*\n)*([ \t]+)[^\n\x1e]*(?:\n(?:\1[^\n\x1e]*|[ \t]*(?=\n)))*")
_REST = re.compile(r"[^\n\x1e\"]{0,1024}")
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_MAX_NAME = 80  # letters of a name before the word that tells, as many after it
_MAX_BARE = 1024  # letters tried at each name; the rest is looked for only if it is a secret's
_WORD = re.compile(r"[^\s\"\x1e]*")
_HINTS = ("pass", "pwd", "secret", "token", "credential", "creds", "key", "auth", "jwt", "dsn", "salt", "cookie")
# Before a name that is the first of its line: what follows to the line's end is its value, blanks and all.
_LEADING = frozenset(" \t-{\"'")
_SCHEMES = frozenset({"bearer", "basic", "token", "digest", "negotiate"})


@cache
def _scanner() -> kingfisher_sdk.Scanner:
    return kingfisher_sdk.Scanner(kingfisher_sdk.Rules(cache=False), base64=True, dedup=False)


_warmed: list[kingfisher_sdk.Scanner] = []


def warm(cache_dir: str | None) -> None:
    """
    Get the patterns ready: compile them (3 s), or read them compiled from a folder (0.3 s) that
    only the gateway's user can write. Without this the first text that is looked at waits.
    """
    if cache_dir is None:
        _warmed[:] = [_scanner()]
    else:
        rules = kingfisher_sdk.Rules(cache=True, cache_dir=cache_dir)
        _warmed[:] = [kingfisher_sdk.Scanner(rules, base64=True, dedup=False)]


def spans(text: str) -> list[Span]:
    """Where secrets stand in a text, as [start, end), sorted and apart. Bounded work, whatever the text is."""
    if len(text) < 6:
        return []
    found: list[Span] = []
    folded = text.lower()
    if len(folded) != len(text):  # a few letters grow (İ); positions must stay
        folded = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    _private_keys(text, found)
    _tokens(text, folded, found)
    _assigned(text, folded, found)
    if len(text) >= MIN_RANDOM:
        _known_services(text, found)
    return merged(found)


def spans_of(texts: Sequence[str]) -> list[list[Span]]:
    """`spans` for many texts at once, much cheaper; nothing is found across two of them."""
    found: list[list[Span]] = []
    for some in _together(texts):
        found += _spans_of(some)
    return found


def _together(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """
    Neighbours, up to TOGETHER characters, or one that is longer.

    Not all at once: each search is one call that lets no other thread run, over 50 MB for 40 ms, and the loop,
    which comes to its turn between two of them, then needs seconds for what it does in one millisecond.
    """
    first = size = 0
    for index, text in enumerate(texts):
        if size and size + len(text) > TOGETHER:
            yield texts[first:index]
            first, size = index, 0
        size += len(text)
    if first < len(texts):
        yield texts[first:]


def _spans_of(texts: Sequence[str]) -> list[list[Span]]:
    found: list[list[Span]] = [[] for _ in texts]
    joined = SEPARATOR.join(texts)
    hits = spans(joined)
    if not hits:
        return found
    at = index = 0
    end = len(texts[0])
    for start, stop in hits:
        while start >= end + len(SEPARATOR):
            at = end + len(SEPARATOR)
            index += 1
            end = at + len(texts[index])
        # A text may hold the separator itself: what was found across is cut at the text's end.
        if start < end:
            found[index].append((start - at, min(stop, end) - at))
    return found


def opens_key(text: str) -> bool:
    """Whether a private key begins in the text and does not end in it."""
    begin = text.rfind("-----BEGIN ")
    return begin >= 0 and _PEM.match(text, begin) is not None and _PEM_END.search(text, begin) is None


def end_of_key(text: str) -> int:
    """Where a private key that began before this text ends in it; -1: not in it."""
    found = _PEM_END.search(text)
    return found.end() if found else -1


def redact(text: str, replacement: Callable[[str], str], found: Iterable[Span] | None = None) -> str:
    """The text with each secret replaced; the very same object when there is none."""
    pieces: list[str] = []
    last = 0
    for start, end in spans(text) if found is None else found:
        pieces += (text[last:start], replacement(text[start:end]))
        last = end
    return "".join([*pieces, text[last:]]) if pieces else text


def merged(found: list[Span]) -> list[Span]:
    if len(found) < 2:
        return found
    found.sort()
    merged = [found[0]]
    for start, end in found[1:]:
        last_start, last_end = merged[-1]
        if start <= last_end:
            merged[-1] = (last_start, max(last_end, end))
        else:
            merged.append((start, end))
    return merged


def _positions(text: str, word: str) -> Iterator[int]:
    at = text.find(word)
    while at >= 0:
        yield at
        at = text.find(word, at + len(word))


def _private_keys(text: str, found: list[Span]) -> None:
    if "-----BEGIN " in text:
        at = 0
        while begin := _PEM.search(text, at):
            end = _PEM_END.search(text, begin.end())
            limit = text.find("\x1e", begin.end())
            # direction: a torn key is masked to the end of the text.
            at = end.end() if end and not 0 <= limit < end.start() else limit if limit >= 0 else len(text)
            found.append((begin.start(), at))
    if "PuTTY-User-Key-File" in text:
        for begin_at in _positions(text, "PuTTY-User-Key-File"):
            limit = text.find("\x1e", begin_at)
            found.append((begin_at, limit if limit >= 0 else len(text)))
    for begin_at in _positions(text, "LS0tLS1CRUdJTi"):
        run = _PEM_BASE64.match(text, begin_at)
        if run is None:
            continue
        head = run[0][:80].rstrip("=")
        if b"PRIVATE KEY" in base64.urlsafe_b64decode(head[: len(head) // 4 * 4]):
            found.append(run.span())


def _tokens(text: str, folded: str, found: list[Span]) -> None:
    done = 0
    for at in _positions(text, "eyJ"):
        if at < done:
            continue
        if match := _JWT.match(text, at):
            found.append(match.span())
            done = match.end()
        elif part := _JWT_PART.match(text, at):
            # The same run of letters, begun later, is followed by no dot either.
            done = part.end() if text[part.end() : part.end() + 1] != "." else at + 3
    if "@" in text:
        for at in _positions(text, "://"):
            match = _USERINFO.match(text, at)
            if match and not _PORT.match(match[1]) and is_value(match[1]):
                found.append(match.span(1))
    for scheme in ("bearer ", "basic "):
        for at in _positions(folded, scheme):
            match = _BEARER.match(text, at)
            if match and (is_random(match[1]) or "authorization" in folded[max(0, at - 40) : at]):
                found.append(match.span(1))
    if any(prefix in text for prefix in ("A3T", "ABIA", "ACCA", "AKIA", "ASIA")):
        found += (match.span() for match in _AWS_ID.finditer(text))
    if "." in text:
        found += ((match.start() - _BOOTSTRAP_ID, match.end()) for match in _BOOTSTRAP.finditer(text))


def _assigned(text: str, folded: str, found: list[Span]) -> None:
    done = -1
    for at in sorted({at for hint in _HINTS for at in _positions(folded, hint)}):
        if at < done:
            continue  # in a name that was looked at already
        start = at
        while start > 0 and at - start < _MAX_NAME and text[start - 1] in _NAME_LETTERS:
            start -= 1
        match = _ASSIGNED.match(text, start) or _FLAG.match(text, start) or _ELEMENT.match(text, start)
        if match is None:
            continue
        name = match["name"]
        strength = _strength(name)
        done = start + len(name)
        if not strength or (match.re is _FLAG and not name.startswith("-")):
            continue
        if strength == 1 and not is_random(text[slice(*match.span(match.lastgroup or 0))][:_SAMPLE]):
            continue
        span = _value_span(text, match, start, name)
        if span and is_value(text[slice(*span)]):
            found.append(span)
            done = max(done, span[1])


def _value_span(text: str, match: re.Match[str], start: int, name: str) -> Span | None:
    groups = match.groupdict()
    for group in ("quoted", "torn"):
        if groups.get(group) is not None:
            return match.span(group)
    if groups.get("block") is not None:
        block = _BLOCK.match(text, match.end())
        return block.span() if block else None
    begin, end = match.span("bare")
    if match.re is not _ASSIGNED:
        return begin, end
    if end - begin == _MAX_BARE and (more := _WORD.match(text, end)):
        end = more.end()
    leads = start
    while leads > 0 and text[leads - 1] in _LEADING:
        leads -= 1
    first = leads == 0 or text[leads - 1] in "\n\x1e" or text.endswith("export", 0, leads)
    if first or text[begin:end].casefold() in _SCHEMES or "authorization" in name.casefold():
        rest = _REST.match(text, begin)
        end = max(end, rest.end() if rest else end)
        return begin, begin + len(text[begin:end].rstrip())
    return begin, end


# Helpers of a composite rule, beside the secret: who, not what.
_WHO = ("-id", "-name", "-username", "-user", "-host", "-url", "-domain", "-account", "-email", "-region")


def _known_services(text: str, found: list[Span]) -> None:
    # One byte for one letter, so that positions are the same. Keys of services are ASCII.
    data = text.encode("ascii", "replace")
    scanner = _warmed[0] if _warmed else _scanner()
    for finding in scanner.scan(data):
        if not finding.visible and finding.rule_id.endswith(_WHO):
            continue
        location = finding.location
        start, end = location["start_offset"], location["end_offset"]
        if SEPARATOR in text[start:end]:
            continue  # two texts, put together by us only
        if not masktags.is_tag(text[start:end]):
            found.append((start, end))
