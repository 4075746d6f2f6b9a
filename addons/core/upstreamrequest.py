"""
The headers of the request that goes to the API server: a list of what may pass, what the
gateway adds, and who is impersonated. Pure functions over raw (name, value) pairs.
"""

import re
from collections.abc import Iterable, Set
from functools import lru_cache
from urllib.parse import quote

from addons.core.model import Identity
from addons.core.status import Refused

Fields = list[tuple[bytes, bytes]]
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# What the API server needs of a client. By list, not by exclusion: it honours headers that
# nobody here has heard of yet as much as Audit-ID, X-Forwarded-For and Impersonate-*.
# Not here on purpose: Accept-Encoding (a masker must read answers), Cookie, Warning, Range.
ALLOWED = frozenset(b"accept content-type if-none-match kubectl-command kubectl-session traceparent user-agent".split())
# The handshakes of exec, attach, port-forward and cp. Sec-WebSocket-Extensions is left out:
# compressed frames could not be judged.
ALLOWED_UPGRADE = {
    "": frozenset[bytes](),
    "websocket": frozenset(
        b"connection upgrade sec-websocket-key sec-websocket-version sec-websocket-protocol".split()
    ),
    "spdy": frozenset(b"connection upgrade x-stream-protocol-version".split()),
}

# Groups that the API server gives to whoever is impersonated; sent, the gateway's RBAC would have to list them.
ADDED_BY_SERVER = frozenset({"system:authenticated", "system:unauthenticated"})

# Every request that is made as somebody says so, and only the gateway's RBAC allows to say it: an admission policy
# (deploy/kubernetes/admission) and the audit log tell by it what came through the gateway. One value, so that the
# RBAC names it too.
MARK_KEY, MARK_VALUE = "tollgate.dev/gateway", "true"


def allowed(fields: Iterable[tuple[bytes, bytes]], upgrade: str) -> Fields:
    """The client's headers that go on. upgrade: "", "websocket" or "spdy"."""
    names = ALLOWED | ALLOWED_UPGRADE[upgrade]
    return [(name, value) for name, value in fields if name.lower() in names]


def ours(audit_id: str, peer: str) -> Fields:
    """Join our record to the server's audit log, and tell it the true source address."""
    return [(b"audit-id", audit_id.encode()), (b"x-forwarded-for", peer.encode())]


def impersonation(identity: Identity, forward_extra: Set[str]) -> Fields:
    """
    Impersonation headers for the identity (kubernetes.io/docs: User impersonation).

    forward_extra: keys of `identity.extra` to pass on; every other stays here, since the
    gateway's RBAC must name each key. Values are UTF-8; extra keys percent-encoded as
    k8s.io/client-go/transport does (lower-case header-safe characters stay).
    Raises status.Refused for a value that a header would not carry unchanged.
    """
    fields: Fields = [(b"impersonate-user", _value(identity.username))]
    if identity.uid:
        fields.append((b"impersonate-uid", _value(identity.uid)))
    fields += [(b"impersonate-group", _value(group)) for group in identity.groups if group not in ADDED_BY_SERVER]
    # Never the token's own mark: a second value of an issuer's choosing would be read as the gateway's word.
    for key in sorted((forward_extra & identity.extra.keys()) - {MARK_KEY}):
        fields += [(_extra(key), _value(value)) for value in identity.extra[key]]
    fields.append((_extra(MARK_KEY), MARK_VALUE.encode()))
    return fields


@lru_cache(256)
def _extra(key: str) -> bytes:
    return b"impersonate-extra-" + quote(key, safe="!#$&'*+-.^_`|~").encode()


def _value(text: str) -> bytes:
    # A line break would add a header of the token's choosing; Go trims spaces, so that the
    # username "admin " would be impersonated as "admin".
    if not text or text != text.strip() or _CONTROL.search(text):
        raise Refused(
            403,
            "identity-not-a-header",
            "tollgate: your username, uid or a group is empty or holds spaces at an end or control characters and "
            "cannot be impersonated; have your identity provider change it",
        )
    return text.encode()
