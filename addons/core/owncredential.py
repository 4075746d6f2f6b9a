"""
The gateway's own credential: where it comes from, how old it is, and whether it ends by itself.

What is forgotten is what never ends: a kubeconfig with a token or a certificate for years, of somebody
who has left, is the incident that this gateway is for. Its own credential must not be the next one.
"""

import enum
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from addons.core import tokens
from addons.core.doctor import Finding, Level

LONG = 24 * 3600.0  # seconds; a credential that lives longer and is not renewed counts as static


class Source(enum.StrEnum):
    """Where a credential comes from."""

    POD = "the pod's ServiceAccount"
    TOKEN = "a token in the kubeconfig"  # noqa: S105 (a description)
    TOKEN_FILE = "a token file"  # noqa: S105
    PLUGIN = "an exec plugin"
    CERTIFICATE = "a client certificate in the kubeconfig"


@dataclass(frozen=True, slots=True)
class Credential:
    """What can be told of a credential without asking anybody. Times: seconds since the epoch."""

    source: Source
    issued_at: float | None = None  # None: it does not say
    expires_at: float | None = None  # None: never, or it does not say
    bound: bool = False  # to a pod: it ends with it, and the kubelet renews it

    @property
    def static(self) -> bool:
        """Whether it stays good for long after everybody has forgotten it."""
        if self.bound:
            # Written with a year of grace by most API servers (--service-account-extend-token-expiration).
            return False
        if self.expires_at is None or self.issued_at is None:
            # A plugin's opaque token: it is asked again and again, and is as long-lived as its login.
            return self.source is not Source.PLUGIN
        return self.expires_at - self.issued_at > LONG

    def age(self, now: float) -> float | None:
        """Seconds since it was issued."""
        return None if self.issued_at is None else max(0.0, now - self.issued_at)


def of_token(source: Source, token: str) -> Credential:
    """What a bearer token says of itself; nothing for an opaque one. Not verified: it is our own."""
    try:
        claims = tokens.read(token.strip()).unverified_claims
    except tokens.TokenError:
        return Credential(source)
    kubernetes = claims.get("kubernetes.io")
    bound = isinstance(kubernetes, dict) and isinstance(kubernetes.get("pod"), dict)
    return Credential(source, _number(claims.get("iat")), _number(claims.get("exp")), bound)


def of_certificate(pem: bytes) -> Credential:
    """What a client certificate says of itself. Raises ValueError."""
    leaf = x509.load_pem_x509_certificates(pem)[0]
    times = (leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp())
    return Credential(Source.CERTIFICATE, *times)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def finding(credential: Credential, now: float) -> Finding:
    """Whether it is short-lived, and how old it is."""
    age, source = credential.age(now), credential.source.value
    said = f"{source}{'' if age is None else f', {duration(age)} old'}"
    if credential.expires_at is not None and credential.expires_at <= now:
        return Finding("credential", Level.PROBLEM, f"the gateway's own credential ({said}) has expired", _CURE)
    if credential.expires_at is not None:
        ends = f"ends in {duration(credential.expires_at - now)}"
    else:
        ends = "which does not say when it ends" if credential.issued_at is None else "never ends"
    if credential.static:
        return Finding("credential", Level.WARNING, f"the gateway's own credential is static: {said}, {ends}", _CURE)
    if credential.source is Source.TOKEN:
        text = f"the gateway's own credential ({said}) {ends} and nobody renews it"
        return Finding("credential", Level.WARNING, text, _CURE)
    if credential.bound:
        ends = "ends with its pod"
    return Finding("credential", Level.OK, f"the gateway's own credential is short-lived: {said}, {ends}")


def admin_warning(why: str, credential: Credential, now: float) -> str:
    """What is said at a start with a credential that is cluster-admin. why: core/ownrights.py, cluster_admin."""
    age = credential.age(now)
    old = "" if age is None else f", {duration(age)} old"
    kept = " and static" if credential.static else ""
    return f"the gateway's own credential ({credential.source.value}{old}) is cluster-admin{kept}: {why}"


_CURE = (
    "run the gateway in a pod with a ServiceAccount, or give it a token file that something renews "
    "(kubectl create token gateway -n tollgate --duration 1h) or an exec plugin"
)


def duration(seconds: float) -> str:
    """`3 days`, `2 hours`, `5 minutes`: rounded down."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{max(0, int(seconds))} s"
