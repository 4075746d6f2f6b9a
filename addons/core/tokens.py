"""
JSON Web Tokens: is this one ours to believe, and what does it say?

Everything here is refused unless it is exactly what is expected: a compact JWS (RFC 7515)
with an asymmetric signature by a key that the issuer publishes, whose header asks for
nothing, whose claims are one reading only. The signature is PyJWT's work; the times and
audiences are checked here, since PyJWT reads the clock and `now` is a parameter.

A `TokenError` has a reason for the log. The client is told one sentence whatever the
reason, so that a refusal does not help to make a better forgery.
"""

import hashlib
import json
import math
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from addons.core.authconfig import Issuer

CLOCK_SKEW = 30.0  # seconds that an issuer's clock may be ahead of ours (nbf, iat)
MAX_LIFETIME = 24 * 3600.0  # seconds from iat to exp; an eternal token would outlive every rotation
MAX_TOKEN = 16_384  # characters; Entra's with 200 groups have about 8 000
MAX_KEYS = 64  # of one issuer; the largest public ones publish under ten
MAX_TRIED = 8  # keys tried for one token that names none, each try costs a signature check
MIN_RSA = 2048  # bits; RFC 7518, 3.3

# RFC 7518, 3.1 and RFC 8037. Asymmetric only: with HMAC in the list, a public key used as
# the secret signs anything; `none` needs no words.
_EC_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
ALGORITHMS = _RSA | frozenset(_EC_CURVES) | {"EdDSA"}

# Header members that bring or fetch a key, or that change what must be understood
# (RFC 7515, 4.1): an attacker's token would name the attacker's key. `kid` only looks up.
_FORBIDDEN_HEADERS = frozenset({"jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256", "crit", "b64", "zip", "enc"})
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


class TokenError(Exception):
    """A token that is not accepted: a reason code and a detail, both for the log only."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Key:
    """One public key of an issuer."""

    kid: str
    algorithms: frozenset[str]
    public: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeySet:
    """An issuer's keys as it published them at one time."""

    keys: tuple[Key, ...] = ()

    def knows(self, kid: str) -> bool:
        """Whether a token with this `kid` ("" for none) has any key to be tried."""
        return bool(self.keys) if not kid else any(key.kid == kid for key in self.keys)

    def candidates(self, kid: str, algorithm: str) -> tuple[Key, ...]:
        fit = (key for key in self.keys if algorithm in key.algorithms and (not kid or key.kid == kid))
        return tuple(fit)[:MAX_TRIED]


@dataclass(frozen=True, slots=True)
class Unverified:
    """What a token says before its signature is checked. Good for choosing the issuer and key, for nothing else."""

    unverified_issuer: str
    unverified_kid: str
    unverified_algorithm: str
    unverified_claims: Mapping[str, Any] = field(repr=False)
    signing_input: bytes = field(repr=False)


def digest(token: str) -> bytes:
    """The name of a token in caches: whoever reads memory or a dump gets no token from it."""
    return hashlib.sha256(token.encode()).digest()


def read(token: str) -> Unverified:
    """Take a token apart, strictly. Raises TokenError for whatever two readers could read differently."""
    if len(token) > MAX_TOKEN:
        raise TokenError("too-large", f"{len(token)} characters, more than {MAX_TOKEN}")
    parts = token.split(".")
    if len(parts) != 3:
        raise TokenError("malformed", f"{len(parts)} parts instead of 3")
    header = _object(_decode(parts[0], "header"), "header")
    claims = _object(_decode(parts[1], "claims"), "claims")
    _decode(parts[2], "signature")
    forbidden = _FORBIDDEN_HEADERS & header.keys()
    if forbidden:
        raise TokenError("header", f"has {', '.join(sorted(forbidden))}")
    algorithm, kid, issuer = header.get("alg"), header.get("kid", ""), claims.get("iss")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise TokenError("algorithm", f"{algorithm!r} is not accepted"[:200])
    if not isinstance(kid, str):
        raise TokenError("header", "kid is not a string")
    if not isinstance(issuer, str) or not issuer:
        raise TokenError("claims", "iss is missing or not a string")
    return Unverified(issuer, kid, algorithm, claims, token.rpartition(".")[0].encode())


def verify(token: str, keys: KeySet, issuer: Issuer, now: float, max_lifetime: float = MAX_LIFETIME) -> dict[str, Any]:
    """
    The claims of a token that this issuer signed for us and that is valid now.

    TokenError with reason `key-unknown` when no key fits: the caller may fetch the keys
    again and retry once.
    """
    seen = read(token)
    if seen.unverified_issuer != issuer.url:
        raise TokenError("issuer", f"{seen.unverified_issuer!r} is not {issuer.url}"[:300])
    candidates = keys.candidates(seen.unverified_kid, seen.unverified_algorithm)
    if not candidates:
        raise TokenError("key-unknown", f"no {seen.unverified_algorithm} key with kid {seen.unverified_kid!r}"[:300])
    if not any(_signed(token, key, seen.unverified_algorithm) for key in candidates):
        raise TokenError("signature", f"is by none of the {len(candidates)} keys that fit")
    claims = dict(seen.unverified_claims)  # verified from here on
    check_times(claims, now, max_lifetime)
    _check_audience(claims.get("aud"), issuer.audiences)
    return claims


def unverified_times(token: str) -> tuple[float, float]:
    """When a token says that it was issued and expires; 0.0 where it says nothing, or is none of ours to read."""
    try:
        claims = read(token).unverified_claims
        return instant(claims, "iat") or 0.0, instant(claims, "exp") or 0.0
    except TokenError:
        return 0.0, 0.0


def check_times(claims: Mapping[str, Any], now: float, max_lifetime: float = MAX_LIFETIME) -> None:
    """
    `exp` without leeway, since an identity ends at its expiry and streams with it; `nbf`
    and `iat` with CLOCK_SKEW, for an issuer whose clock is ahead.
    """
    expiry = instant(claims, "exp")
    if expiry is None:
        raise TokenError("lifetime", "exp is missing: no eternal token enters")
    if now >= expiry:
        raise TokenError("expired", f"{now - expiry:.0f} s ago")
    not_before = instant(claims, "nbf")
    if not_before is not None and not_before > now + CLOCK_SKEW:
        raise TokenError("not-yet", f"nbf is in {not_before - now:.0f} s")
    issued = instant(claims, "iat")
    # An iat in the future would make the lifetime look short.
    if issued is not None and issued > now + CLOCK_SKEW:
        raise TokenError("not-yet", f"iat is in {issued - now:.0f} s")
    lifetime = expiry - (now if issued is None else issued)
    if lifetime > max_lifetime:
        raise TokenError("lifetime", f"{lifetime:.0f} s, more than {max_lifetime:.0f}")


def credential_id(token: str, claims: Mapping[str, Any]) -> str:
    """`jti`, else a hash of what is signed: not of the signature, which can be written in more ways than one."""
    jti = claims.get("jti")
    if isinstance(jti, str) and jti:
        return jti[:256]
    return "sha256:" + hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()[:32]


def key_set(document: bytes) -> KeySet:
    """
    The usable keys of a JWKS (RFC 7517). Keys for other uses, of unknown types or too weak
    are left out, as the RFC asks; a document that is no JWKS raises TokenError.
    """
    content = _object(document, "jwks")
    entries = content.get("keys")
    if not isinstance(entries, list):
        raise TokenError("jwks", "has no list of keys")
    if len(entries) > MAX_KEYS:
        raise TokenError("jwks", f"has {len(entries)} keys, more than {MAX_KEYS}")
    return KeySet(tuple(key for entry in entries if (key := _key(entry)) is not None))


def _key(entry: Any) -> Key | None:
    if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):
        return None  # oct: a symmetric key in public view signs for everybody
    if entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops")
    if operations is not None and (not isinstance(operations, list) or "verify" not in operations):
        return None
    kid, stated = entry.get("kid", ""), entry.get("alg")
    if not isinstance(kid, str) or not (stated is None or isinstance(stated, str)):
        return None
    # Public members only: an issuer that publishes its private key by mistake gives no private key here.
    public_members = {name: entry[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in entry}
    try:
        public = _ALGORITHM_OF[entry["kty"]].from_jwk(public_members)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    algorithms = _fitting(public)
    if stated is not None:
        algorithms &= {stated}
    return Key(kid, algorithms, public) if algorithms else None


_ALGORITHM_OF: Mapping[str, Any] = {
    "RSA": jwt.algorithms.RSAAlgorithm,
    "EC": jwt.algorithms.ECAlgorithm,
    "OKP": jwt.algorithms.OKPAlgorithm,
}


def _fitting(public: Any) -> frozenset[str]:
    """The algorithms that a key may be used with, from the key itself: a token's header cannot mix them."""
    if isinstance(public, RSAPublicKey):
        return _RSA if public.key_size >= MIN_RSA and public.public_numbers().e > 2 else frozenset()
    if isinstance(public, EllipticCurvePublicKey):
        return frozenset(alg for alg, curve in _EC_CURVES.items() if curve == public.curve.name)
    if isinstance(public, Ed25519PublicKey | Ed448PublicKey):
        return frozenset({"EdDSA"})
    return frozenset()


def _signed(token: str, key: Key, algorithm: str) -> bool:
    try:
        _JWS.decode(token, key.public, algorithms=[algorithm])
    except jwt.InvalidTokenError:
        return False
    return True


_JWS = jwt.PyJWS(algorithms=sorted(ALGORITHMS))


def _decode(part: str, what: str) -> bytes:
    if not _BASE64URL.fullmatch(part) or len(part) % 4 == 1:
        raise TokenError("malformed", f"{what} is not base64url")
    content = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    # The last character may have bits that mean nothing; with others than zero there the same
    # token would have two spellings, and two names in caches.
    if urlsafe_b64encode(content).rstrip(b"=").decode() != part:
        raise TokenError("malformed", f"{what} is not in the one spelling of base64url")
    return content


def _object(content: bytes, what: str) -> dict[str, Any]:
    """
    A JSON object with one meaning: no duplicate keys, no NaN, no NUL, UTF-8.

    Every number is a float, as in the API server, whose expressions see doubles:
    `string(claims.id)` must give both the same name.
    """
    try:
        value = json.loads(
            content.decode(), object_pairs_hook=_pairs, parse_constant=_refuse, parse_int=_number, parse_float=_number
        )
    except (ValueError, RecursionError) as e:
        # JSONDecodeError quotes nothing of the document but the place.
        detail = str(e) if isinstance(e, _Ambiguous) else "is not JSON"
        raise TokenError("malformed", f"{what} {detail}") from None
    if not isinstance(value, dict):
        raise TokenError("malformed", f"{what} is not an object")
    return value


class _Ambiguous(ValueError):
    pass


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _Ambiguous("has a key twice")
    if any("\0" in key for key in result):
        raise _Ambiguous("has a key with a NUL")
    return result


def _refuse(constant: str) -> Any:
    raise _Ambiguous(f"has {constant}, which is not JSON")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Ambiguous("has a number that is out of range")
    return value


def instant(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519, 2); TokenError for anything else than a number in this age."""
    value = claims.get(name)
    if value is None:
        if name in claims:
            raise TokenError("claims", f"{name} is null")
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenError("claims", f"{name} is not a number")
    if not 0 <= value < 1e11:  # the year 5138
        raise TokenError("claims", f"{name} is out of range")
    return float(value)


def _check_audience(claimed: Any, wanted: Iterable[str]) -> None:
    """One of ours must be in it (MatchAny)."""
    if not audiences(claimed, wanted):
        raise TokenError("audience", f"{claimed!r} has none of {sorted(wanted)!r}"[:300])


def audiences(claimed: Any, wanted: Iterable[str]) -> tuple[str, ...]:
    """
    Those of a token's `aud` that are ours, sorted: what it was issued for, as far as that counts here.

    RFC 7519, 4.1.3: a string or a list of strings. Raises TokenError for anything else.
    """
    claimed_list = [claimed] if isinstance(claimed, str) else claimed
    if not isinstance(claimed_list, list) or not all(isinstance(item, str) for item in claimed_list):
        raise TokenError("audience", "aud is missing or not strings")
    return tuple(sorted(set(claimed_list) & set(wanted)))


class Cache[T]:
    """
    What is known about tokens, by digest, each entry until its time is over. The least
    recently used go when it is full: an attacker's tokens cost memory up to `size` and
    then only one another's places and, at worst, a new check for an honest one.

    An entry from the future is over, too: the clock was put back, and what was believed for
    ten seconds would be believed for as much longer.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: OrderedDict[bytes, tuple[float, float, T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now: float) -> T | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        since, until, value = entry
        if not since <= now < until:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: bytes, value: T, until: float, now: float) -> None:
        self._entries[key] = (now, until, value)
        self._entries.move_to_end(key)
        while len(self._entries) > self.size:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        self._entries.clear()
