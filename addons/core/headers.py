"""
Request headers that two parsers could read differently, or that speak for somebody else.

Pure checks over (name, value) pairs as they came over the wire; each refusal has a code of
its own. The guard calls them before anyone looks at the request.
"""

import re
from collections.abc import Iterable, Sequence

from addons.core.status import Refused

# Sent twice, each of these lets the gateway judge one value and the API server act on the other.
SINGLE = frozenset(
    b"authorization content-encoding content-length content-type cookie expect host kubectl-command "
    b"kubectl-session proxy-authorization sec-websocket-key sec-websocket-version transfer-encoding upgrade".split()
)

# `Connection: NAME` makes the next hop drop NAME (RFC 9110, 7.6.1): naming a header that was
# judged here would take it away behind the judge's back. Only these tokens are meant for us.
CONNECTION_TOKENS = frozenset({b"close", b"keep-alive", b"upgrade"})

# Identity by header: impersonation and front-proxy authentication (k8s.io/apiserver
# pkg/authentication/request/headerrequest). Whoever the caller is, the token says it.
IDENTITY_PREFIXES = (b"impersonate-", b"x-remote-")

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

UPGRADES = {b"websocket": "websocket", b"spdy/3.1": "spdy"}


def check(fields: Iterable[tuple[bytes, bytes]]) -> None:
    """
    Refuse header fields that could be read in two ways or claim an identity.

    fields: raw (name, value) pairs in the order received. Raises status.Refused.
    """
    seen: set[bytes] = set()
    for raw_name, value in fields:
        name = raw_name.lower()
        # Go treats _ and - as different, other hops do not; no header of ours has a _.
        plain = name.replace(b"_", b"-").strip()
        if plain.startswith(IDENTITY_PREFIXES):
            raise Refused(
                403,
                "identity-header",
                f"tollgate: the header {_shown(raw_name)} claims an identity and is not accepted; "
                "who you are comes from your token; remove as/as-groups from the kubeconfig",
            )
        # Folding, NUL, and the white space that some parsers strip and others keep (a vertical tab).
        if _CONTROL.search(value):
            raise Refused(
                400,
                "header-folded",
                f"tollgate: the header {_shown(raw_name)} is folded or holds control characters; send it on one line",
            )
        if name in SINGLE:
            if name in seen:
                raise Refused(
                    400, "header-duplicate", f"tollgate: the header {_shown(raw_name)} is there twice; send it once"
                )
            seen.add(name)
        if name == b"connection":
            for token in value.lower().split(b","):
                if token.strip() not in CONNECTION_TOKENS:
                    raise Refused(
                        400,
                        "connection-nominates",
                        f"tollgate: the header Connection names {_shown(token.strip())}, "
                        "which would be dropped on the way; name only close, keep-alive or upgrade",
                    )
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            # `gzip, chunked` is read as chunked alone here: the body would go on compressed, and say it is not.
            raise Refused(400, "transfer-encoding", "tollgate: the header Transfer-Encoding may only say chunked")
        elif name == b"expect" and value.lower() != b"100-continue":
            raise Refused(400, "expect", "tollgate: the header Expect may only say 100-continue")


def upgrade_protocol(values: Sequence[str], *, http2: bool) -> str:
    """
    The protocol of an Upgrade header: "", "websocket" or "spdy".

    values: every Upgrade header's value. Raises status.Refused for anything else, h2c included.
    """
    if not values:
        return ""
    protocol = UPGRADES.get(values[0].strip().lower().encode("utf-8", "surrogateescape"))
    if len(values) != 1 or protocol is None or http2:
        raise Refused(
            400, "upgrade-unknown", "tollgate: only HTTP/1.1 upgrades to websocket or SPDY/3.1 are known; send no other"
        )
    return protocol


def check_authority(authority: str, hosts: Sequence[str], *, http2: bool) -> None:
    """Refuse absolute-form targets and an HTTP/2 :authority that contradicts Host."""
    if not http2 and authority:
        raise Refused(
            400, "absolute-form", "tollgate: the request target names a host; send the path alone, as to a server"
        )
    names = {host.lower() for host in hosts} | ({authority.lower()} if authority else set())
    if len(names) != 1 or len(hosts) > 1:
        raise Refused(
            400, "authority-mismatch", "tollgate: the request names no host or several (Host, :authority); name one"
        )


def _shown(name: bytes) -> str:
    """Client text in a sentence: printable ASCII, short."""
    text = name[:60].decode("ascii", "replace")
    return "".join(c if c.isascii() and c.isprintable() and c not in "\"\\'" else "?" for c in text) or "(empty)"
