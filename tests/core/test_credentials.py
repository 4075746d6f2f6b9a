"""The one credential of a request, in the places where the API server looks, and nowhere else."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core.credentials import take
from addons.core.tokens import MAX_TOKEN, TokenError

HOST = (b"Host", b"x")
UPGRADE = (b"Upgrade", b"websocket")
PREFIX = b"base64url.bearer.authorization.k8s.io."


def bearer(value):
    return (b"Authorization", value)


def protocol(token=b"a.b.c", prefix=PREFIX):
    return prefix + base64.urlsafe_b64encode(token).rstrip(b"=")


def protocols(*values, name=b"Sec-WebSocket-Protocol"):
    return (name, b",".join(values))


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        pytest.param([HOST, bearer(b"Bearer a.b.c")], [HOST], id="header"),
        pytest.param([(b"authorization", b"bearer a.b.c"), HOST], [HOST], id="in lower case"),
        pytest.param(
            [UPGRADE, protocols(b"v5.channel.k8s.io", protocol())],
            [UPGRADE, (b"Sec-WebSocket-Protocol", b"v5.channel.k8s.io")],
            id="subprotocol",
        ),
        pytest.param(
            [
                protocols(b" v5.channel.k8s.io "),
                protocols(protocol(), b"v4.channel.k8s.io", name=b"sec-websocket-protocol"),
                UPGRADE,
            ],
            [UPGRADE, (b"Sec-WebSocket-Protocol", b"v5.channel.k8s.io, v4.channel.k8s.io")],
            id="subprotocols in two fields",
        ),
        pytest.param(
            [bearer(b"Bearer a.b.c"), UPGRADE, protocols(b"v5.channel.k8s.io")],
            [UPGRADE, (b"Sec-WebSocket-Protocol", b"v5.channel.k8s.io")],
            id="header on an upgrade",
        ),
    ],
)
def test_taken(fields, kept):
    assert take(fields) == ("a.b.c", tuple(kept))


@pytest.mark.attack("credentials: place")
@pytest.mark.parametrize(
    ("fields", "why"),
    [
        pytest.param([HOST], "no-credential", id="none"),
        pytest.param([(b"X-Authorization", b"Bearer a"), (b"Cookie", b"token=a")], "no-credential", id="elsewhere"),
        pytest.param([bearer(b"Basic YTpi")], "credential-kind", id="basic"),
        pytest.param([bearer(b"")], "credential-kind", id="empty"),
        pytest.param([bearer(b"Bearer")], "credential-kind", id="no token"),
        pytest.param([bearer(b"Bearer ")], "credential-kind", id="empty token"),
        pytest.param([bearer(b"Bearer  a")], "credential-kind", id="two spaces"),
        pytest.param([bearer(b"Bearer a b")], "credential-kind", id="something after"),
        pytest.param([bearer(b"Bearer a, Bearer b")], "credential-kind", id="two in one field"),
        pytest.param([bearer(b"Bearer a\n")], "credential-kind", id="line break"),
        pytest.param([bearer(b"Bearer \xc3\xa9")], "credential-kind", id="not ASCII"),
        pytest.param([bearer(b"Bearer " + b"a" * (MAX_TOKEN + 1))], "credential-kind", id="too long"),
        pytest.param([bearer(b"Bearer a"), bearer(b"Bearer a")], "credential-twice", id="two headers"),
        pytest.param([bearer(b"Bearer a"), (b"authorization", b"Basic x")], "credential-twice", id="two kinds"),
        pytest.param(
            [bearer(b"Bearer a"), UPGRADE, protocols(b"v5", protocol())], "credential-twice", id="both places"
        ),
        pytest.param([UPGRADE, protocols(b"v5", protocol(), protocol())], "credential-twice", id="two subprotocols"),
        pytest.param(
            [UPGRADE, protocols(b"v5", protocol()), protocols(protocol())], "credential-twice", id="two fields"
        ),
        pytest.param(
            [bearer(b"Bearer a"), UPGRADE, protocols(b"v5", protocol(prefix=PREFIX.upper()))],
            "credential-twice",
            id="subprotocol in another spelling",
        ),
        pytest.param([protocols(b"v5", protocol())], "credential-place", id="subprotocol without upgrade"),
        pytest.param([(b"Upgrade", b"spdy/3.1"), protocols(b"v5", protocol())], "credential-place", id="on SPDY"),
        pytest.param([UPGRADE, protocols(protocol())], "credential-place", id="no other subprotocol"),
        pytest.param([UPGRADE, protocols(b"", protocol(), b" ")], "credential-place", id="only empty others"),
        pytest.param([UPGRADE, protocols(b"v5", PREFIX)], "malformed", id="empty subprotocol"),
        pytest.param([UPGRADE, protocols(b"v5", PREFIX + b"YQ==")], "malformed", id="padding"),
        pytest.param([UPGRADE, protocols(b"v5", PREFIX + b"YR")], "malformed", id="bits that mean nothing"),
        pytest.param([UPGRADE, protocols(b"v5", PREFIX + b"YWJjZ")], "malformed", id="impossible length"),
        pytest.param([UPGRADE, protocols(b"v5", protocol(b"\xff\xfe"))], "malformed", id="not ASCII inside"),
        pytest.param([UPGRADE, protocols(b"v5", protocol(b"a\r\nb"))], "malformed", id="line break inside"),
    ],
)
def test_refused(fields, why):
    with pytest.raises(TokenError) as e:
        take(fields)
    assert e.value.reason == why


def test_the_reason_does_not_quote_the_credential():
    with pytest.raises(TokenError) as e:
        take([bearer(b"Basic aHVudGVyMg==")])
    assert "aHVudGVyMg" not in str(e.value)


names = st.sampled_from([b"Authorization", b"authorization", b"Sec-WebSocket-Protocol", b"Upgrade", b"Accept"])
values = st.sampled_from([b"Bearer a.b.c", b"Basic x", protocol(), b"v5, " + protocol(), b"websocket", b"v5"])


@given(st.lists(st.tuples(names, values), max_size=5))
def test_nothing_that_is_kept_holds_a_credential(fields):
    try:
        _, kept = take(fields)
    except TokenError:
        return
    for name, value in kept:
        assert name.lower() != b"authorization"
        assert not (name.lower() == b"sec-websocket-protocol" and PREFIX in value)
