import pytest

from addons.core import upstreamrequest
from addons.core.model import Identity
from addons.core.status import Refused


def test_headers_pass_by_list():
    fields = [
        (b"Accept", b"application/json"),
        (b"Authorization", b"Bearer mine"),
        (b"Audit-ID", b"forged"),
        (b"X-Forwarded-For", b"10.0.0.1"),
        (b"Impersonate-User", b"root"),
        (b"Cookie", b"a=b"),
        (b"Accept-Encoding", b"gzip"),
        (b"Kubectl-Session", b"s"),
        (b"X-Anything", b"new"),
        (b"Sec-WebSocket-Protocol", b"v5.channel.k8s.io"),
    ]
    assert upstreamrequest.allowed(fields, "") == [(b"Accept", b"application/json"), (b"Kubectl-Session", b"s")]


@pytest.mark.parametrize(
    ("upgrade", "kept"),
    [
        pytest.param("", [], id="no upgrade"),
        pytest.param(
            "websocket", [b"Connection", b"Upgrade", b"Sec-WebSocket-Key", b"Sec-WebSocket-Protocol"], id="ws"
        ),
        pytest.param("spdy", [b"Connection", b"Upgrade", b"X-Stream-Protocol-Version"], id="spdy"),
    ],
)
def test_handshakes(upgrade, kept):
    names = [
        b"Connection",
        b"Upgrade",
        b"Sec-WebSocket-Key",
        b"Sec-WebSocket-Protocol",
        b"Sec-WebSocket-Extensions",
        b"X-Stream-Protocol-Version",
    ]
    assert [n for n, _ in upstreamrequest.allowed([(n, b"x") for n in names], upgrade)] == kept


def test_impersonation():
    identity = Identity(
        "tollgate:jane",
        uid="u-1",
        groups=("dev", "system:authenticated"),
        extra={"example.org/team": ("blue",), "secret": ("x",)},
    )
    assert upstreamrequest.impersonation(identity, {"example.org/team"}) == [
        (b"impersonate-user", b"tollgate:jane"),
        (b"impersonate-uid", b"u-1"),
        (b"impersonate-group", b"dev"),
        (b"impersonate-extra-example.org%2Fteam", b"blue"),
        (b"impersonate-extra-tollgate.dev%2Fgateway", b"true"),
    ]


def test_the_mark_is_the_gateways_alone():
    key = upstreamrequest.MARK_KEY
    identity = Identity("jane", extra={key: ("forged",)})
    assert upstreamrequest.impersonation(identity, {key}) == [
        (b"impersonate-user", b"jane"),
        (b"impersonate-extra-tollgate.dev%2Fgateway", b"true"),
    ]


@pytest.mark.parametrize("name", ["a\r\nImpersonate-Group: system:masters", "admin ", " admin", "", "a\x00", "a\x7f"])
def test_a_name_that_a_header_would_change_is_refused(name):
    for identity in (Identity(name), Identity("jane", groups=(name,)), Identity("jane", extra={"k": (name,)})):
        with pytest.raises(Refused) as e:
            upstreamrequest.impersonation(identity, {"k"})
        assert e.value.refusal.code == 403
