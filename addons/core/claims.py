"""
From a verified token to an identity: the mapping of the issuer's configuration, as the API
server does it (k8s.io/apiserver/plugin/pkg/authenticator/token/oidc), and then the names
that nobody may have.

Numbers are floats throughout (see tokens), and their texts are cel-go's: `string(claims.id)`
gives `1.764028034e+09` here as there, `string(int(claims.id))` the digits.
"""

import unicodedata
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from addons.core import cel, tokens
from addons.core.authconfig import CLAIMS, CLUSTER_PREFIX, SYSTEM_PREFIX, USER, Issuer, Source
from addons.core.model import Identity
from addons.core.tokens import TokenError

MAX_NAME = 1024  # characters of a name; it travels in a request header
MAX_GROUPS = 500  # each is a header of its own upstream; Entra gives at most 200, then a link
CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"  # user.CredentialIDKey, value `JTI=…`

SERVICE_ACCOUNT = "system:serviceaccount:"
SERVICE_ACCOUNTS = "system:serviceaccounts"

# Whoever is one of these needs no RBAC (masters), or is a component that RBAC trusts by name.
_NEVER = ("system:masters", "system:nodes")
_NEVER_PREFIXES = ("system:node:", "system:kube-")


def identify(token: str, claims: Mapping[str, Any], issuer: Issuer, own: Collection[str]) -> Identity:
    """
    The identity that an issuer's verified claims map to. Not for the cluster's own issuer.

    `own`: the gateway's own usernames. Raises TokenError.
    """
    if issuer.cluster:
        raise TokenError("claims", "the cluster's own tokens are identified by their TokenReview")
    values = _Claims(claims, issuer)
    username = _username(values, issuer.username)
    credential = tokens.credential_id(token, claims)
    extra = {key: found for key, program in issuer.extra if (found := _strings(values.run(program, key), key))}
    if isinstance(claims.get("jti"), str) and claims["jti"]:
        extra[CREDENTIAL_ID] = (f"JTI={claims['jti']}",)
    identity = Identity(
        username=username,
        uid=_uid(values, issuer.uid),
        groups=_groups(values, issuer.groups),
        extra=MappingProxyType(extra),
        issuer=issuer.url,
        credential_id=credential,
        issued_at=_issued_at(claims),
        expiry=float(claims["exp"]),
        audiences=tokens.audiences(claims.get("aud"), issuer.audiences),
        auth_time=_auth_time(claims),
        claims=MappingProxyType(dict(claims)),
    )
    _claim_rules(values, issuer)
    _user_rules(identity, issuer)
    check_names(identity, issuer, own)
    return identity


def identify_reviewed(
    token: str, claims: Mapping[str, Any], issuer: Issuer, review: Any, own: Collection[str]
) -> Identity:
    """
    The identity of one of the cluster's own tokens, from the answer to its TokenReview.

    The prefix goes before the username and the ServiceAccount groups. `system:authenticated`
    is left out: the API server adds it to whoever is impersonated, and naming it would only
    need one more right. Extras stay, but go upstream only where they are listed.
    """
    status = review.get("status") if isinstance(review, dict) else None
    if not isinstance(status, dict) or status.get("authenticated") is not True:
        raise TokenError("review", "the API server does not authenticate it")
    confirmed = status.get("audiences")
    # An authenticator that knows no audiences answers without any: the token would be one
    # for the API server itself (authentication.k8s.io/v1 TokenReviewStatus.audiences).
    if not isinstance(confirmed, list):
        raise TokenError("review", "the API server does not confirm the audience")
    # Of several, only what the token says and the API server confirms: with an ordinary token and an
    # answer that names whatever it was asked about, nobody becomes an approver.
    audiences = tokens.audiences(claims.get("aud"), issuer.audiences & {a for a in confirmed if isinstance(a, str)})
    if not audiences:
        raise TokenError("review", "the API server does not confirm the audience")
    user = status.get("user")
    if not isinstance(user, dict):
        raise TokenError("review", "the answer names no user")
    username = user.get("username")
    if not isinstance(username, str) or not username.startswith(SERVICE_ACCOUNT) or username.count(":") != 3:
        raise TokenError("identity-reserved", f"{username!r} is not a ServiceAccount"[:300])
    if username != claims.get("sub"):
        # Two readers of one token that disagree about whose it is.
        raise TokenError("review", f"names {username!r}, the token's sub does not"[:300])
    if username in own:
        raise TokenError("identity-reserved", "it is the gateway's own token")
    namespace = username.split(":")[2]
    groups = user.get("groups") or []
    if not isinstance(groups, list):
        raise TokenError("review", "groups is not a list")
    kept = (SERVICE_ACCOUNTS, f"{SERVICE_ACCOUNTS}:{namespace}")
    uid = user.get("uid", "")
    extra = user.get("extra") or {}
    identity = Identity(
        username=CLUSTER_PREFIX + username,
        uid=uid if isinstance(uid, str) else "",
        groups=tuple(CLUSTER_PREFIX + group for group in kept if group in groups),
        extra=MappingProxyType(
            {
                key: tuple(value for value in values if isinstance(value, str))
                for key, values in extra.items()
                if isinstance(values, list)
            }
            if isinstance(extra, dict)
            else {}
        ),
        issuer=issuer.url,
        credential_id=tokens.credential_id(token, claims),
        issued_at=_issued_at(claims),
        expiry=float(claims["exp"]),
        audiences=audiences,
        auth_time=_auth_time(claims),
        claims=MappingProxyType(dict(claims)),
    )
    _user_rules(identity, issuer)
    check_names(identity, issuer, own)
    return identity


def check_names(identity: Identity, issuer: Issuer, own: Collection[str]) -> None:
    """Refuse an identity that has, or whose groups have, a name that this issuer may not give."""
    if len(identity.groups) > MAX_GROUPS:
        raise TokenError("claims", f"{len(identity.groups)} groups, more than {MAX_GROUPS}")
    for what, name in (("username", identity.username), *(("group", group) for group in identity.groups)):
        check_text(what, name)
        if name in _NEVER or name.startswith(_NEVER_PREFIXES) or name in own:
            raise TokenError("identity-reserved", f"{what} {name!r}")
        # Compared as the reader of an RBAC rule would: U+FF1A is no colon to the API server,
        # but names that only look like the system's have no honest use.
        plain = unicodedata.normalize("NFKC", name)
        if not issuer.cluster and plain.startswith((SYSTEM_PREFIX, CLUSTER_PREFIX)):
            raise TokenError("identity-reserved", f"{what} {name!r} begins with a prefix that only the cluster gives")
    foreign = next((prefix for prefix in issuer.foreign_prefixes if identity.username.startswith(prefix)), None)
    if foreign is not None:
        # Else a user of this issuer could be called like a user of that one.
        raise TokenError("identity-reserved", f"username has the prefix {foreign!r} of another issuer")
    if identity.uid:
        check_text("uid", identity.uid)
    for key, values in identity.extra.items():
        for text in (key, *values):
            if text:
                check_text("extra", text)


def check_text(what: str, text: str) -> None:
    """
    Names travel upstream in header fields, where a line break would start another field,
    and spaces at either end are dropped: `alice ` would arrive as `alice`.
    """
    if not text:
        raise TokenError("claims", f"{what} is empty")
    if len(text) > MAX_NAME:
        raise TokenError("claims", f"{what} has {len(text)} characters, more than {MAX_NAME}")
    if text.isascii() and text.isprintable():
        good = text[0] != " " and text[-1] != " "
    else:
        # Cc control, Cf format (bidirectional marks), Cs lone surrogates, Zl and Zp line ends.
        good = text.strip() == text and not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)
    if not good:
        raise TokenError("claims", f"{what} {text!r} has characters that no name may have"[:300])


class _Claims:
    """The claims, bound for expressions once when the first one asks."""

    def __init__(self, claims: Mapping[str, Any], issuer: Issuer) -> None:
        self.plain = claims
        self.issuer = issuer
        self._bound: cel.Activation | None = None

    def run(self, program: cel.Program, what: str) -> Any:
        try:
            if self._bound is None:
                self._bound = cel.activation(CLAIMS, {"claims": dict(self.plain)})
            return program.evaluate(self._bound)
        except cel.CelError as e:
            raise TokenError("claims", f"{what}: {e}") from None


def _username(values: _Claims, source: Source) -> str:
    if source.program is not None:
        name = values.run(source.program, "username")
    else:
        name = values.plain.get(source.claim)
        # As the API server: a claim that is there must be true, one that is absent is no objection.
        if source.claim == "email" and values.plain.get("email_verified", True) is not True:
            raise TokenError("claims", "email is not verified")
    if not isinstance(name, str) or not name:
        raise TokenError("claims", f"username ({source.claim or 'expression'}) is missing, empty or not a string")
    return source.prefix + name


def _groups(values: _Claims, source: Source | None) -> tuple[str, ...]:
    if source is None:
        return ()
    if source.program is not None:
        return _strings(values.run(source.program, "groups"), "groups")
    if source.claim not in values.plain:
        return ()
    found = values.plain[source.claim]
    if isinstance(found, str):
        found = [found]
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(group, str) for group in found):
        raise TokenError("claims", f"groups ({source.claim}) is neither a string nor a list of strings")
    return tuple(dict.fromkeys(source.prefix + group for group in found))


def _strings(found: Any, what: str) -> tuple[str, ...]:
    """A string, a list of strings or null, as the API server takes them; empty ones are not there."""
    if found is None or isinstance(found, str):
        return (found,) if found else ()
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise TokenError("claims", f"{what}: the expression gives neither a string nor a list of strings")
    return tuple(dict.fromkeys(item for item in found if item))


def _uid(values: _Claims, source: Source | None) -> str:
    if source is None:
        return ""
    found = values.plain.get(source.claim) if source.program is None else values.run(source.program, "uid")
    if not isinstance(found, str):
        raise TokenError("claims", "uid is missing or not a string")
    return found


def _claim_rules(values: _Claims, issuer: Issuer) -> None:
    for i, rule in enumerate(issuer.claim_rules):
        if rule.program is None:
            if values.plain.get(rule.claim) != rule.required:
                raise TokenError("claim-rule", f"claimValidationRules[{i}]: {rule.claim} has not the required value")
        elif values.run(rule.program, f"claimValidationRules[{i}]") is not True:
            raise TokenError("claim-rule", f"claimValidationRules[{i}]: {rule.message or rule.program.source}")


def _user_rules(identity: Identity, issuer: Issuer) -> None:
    if not issuer.user_rules:
        return
    user = {
        "username": identity.username,
        "uid": identity.uid,
        "groups": list(identity.groups),
        "extra": {key: list(values) for key, values in identity.extra.items()},
    }
    try:
        bound = cel.activation(USER, {"user": user})
        for i, rule in enumerate(issuer.user_rules):
            if rule.program.evaluate(bound) is not True:
                raise TokenError("user-rule", f"userValidationRules[{i}]: {rule.message or rule.program.source}")
    except cel.CelError as e:
        raise TokenError("user-rule", f"cannot be evaluated: {e}") from None


def _issued_at(claims: Mapping[str, Any]) -> float:
    issued = claims.get("iat")
    return float(issued) if isinstance(issued, int | float) else 0.0


def _auth_time(claims: Mapping[str, Any]) -> float:
    """
    When the person last logged in (OpenID Connect Core, 2), else when the token was issued.

    A refresh token makes new ones with a fresh `iat` for weeks, so `iat` never stands in for an
    `auth_time` that is there and cannot be read: 0.0, a login so old that it decides nothing.
    """
    if "auth_time" not in claims:
        return _issued_at(claims)
    try:
        return tokens.instant(claims, "auth_time") or 0.0
    except TokenError:
        return 0.0
