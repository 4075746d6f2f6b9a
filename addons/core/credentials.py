"""
The one credential of a request: where it may be, and the request without it.

Where the API server looks (k8s.io/apiserver/pkg/authentication/request/bearertoken and
/websocket), read more strictly: two credentials are two answers to who is asking, and the
gateway must not choose another one than the API server would.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable

from addons.core.tokens import MAX_TOKEN, TokenError

# RFC 6750, 2.1. The scheme is case-insensitive (RFC 9110, 11.1); one space, nothing after.
_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] ([A-Za-z0-9._~+/-]+=*)")
_PROTOCOL = b"base64url.bearer.authorization.k8s.io."
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]+")

Fields = tuple[tuple[bytes, bytes], ...]


def take(fields: Iterable[tuple[bytes, bytes]]) -> tuple[str, Fields]:
    """
    The bearer token of a request's header fields, and the fields without it.

    Raises TokenError when there is none, more than one, or one of another kind.
    """
    token, kept, protocols, websocket = b"", [], [], False
    for field in fields:
        name = field[0].lower()
        if name == b"authorization":
            if token:
                raise TokenError("credential-twice", "more than one Authorization")
            match = _BEARER.fullmatch(field[1])
            if match is None or len(match[1]) > MAX_TOKEN:
                raise TokenError("credential-kind", "Authorization is not one bearer token")
            token = match[1]
            continue
        if name == b"sec-websocket-protocol":
            protocols.append(field[1])
            continue
        if name == b"upgrade":
            websocket = field[1].strip().lower() == b"websocket"
        kept.append(field)
    if protocols:
        spoken, others = _from_protocols(protocols)
        if spoken:
            if token:
                raise TokenError("credential-twice", "Authorization and a WebSocket subprotocol")
            if not websocket:
                raise TokenError("credential-place", "a bearer subprotocol without a WebSocket upgrade")
            if not others:
                # As the API server: one must remain for the answer to name.
                raise TokenError("credential-place", "no other subprotocol than the bearer one")
            token = spoken
        if others:
            kept.append((b"Sec-WebSocket-Protocol", b", ".join(others)))
    if not token:
        raise TokenError("no-credential", "neither Authorization nor a bearer subprotocol")
    return token.decode("ascii"), tuple(kept)


def _from_protocols(values: Iterable[bytes]) -> tuple[bytes, list[bytes]]:
    """The token among the subprotocols, b"" for none, and the others; fields make one list (RFC 6455, 11.3.4)."""
    token, others = b"", []
    for value in values:
        for protocol in value.split(b","):
            protocol = protocol.strip(b" \t")
            if not protocol.lower().startswith(_PROTOCOL):
                if protocol:
                    others.append(protocol)
                continue
            # Compared without case, read with: another spelling must not pass as some other protocol.
            if token or not protocol.startswith(_PROTOCOL):
                raise TokenError("credential-twice", "more than one bearer subprotocol, or one in another spelling")
            token = _decode(protocol[len(_PROTOCOL) :])
    return token, others


def _decode(text: bytes) -> bytes:
    if len(text) > 2 * MAX_TOKEN or not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        raise TokenError("malformed", "the bearer subprotocol is not base64url without padding")
    token = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    if urlsafe_b64encode(token).rstrip(b"=") != text or not _BEARER.fullmatch(b"Bearer " + token):
        raise TokenError("malformed", "the bearer subprotocol holds no bearer token")
    return token
