import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import headers
from addons.core.status import Refused


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        pytest.param([(b"Impersonate-User", b"root")], "identity-header", id="impersonate user"),
        pytest.param([(b"impersonate-group", b"system:masters")], "identity-header", id="impersonate group"),
        pytest.param([(b"IMPERSONATE-EXTRA-scopes", b"x")], "identity-header", id="impersonate extra, upper case"),
        pytest.param([(b"Impersonate_Uid", b"1")], "identity-header", id="underscore for dash"),
        pytest.param([(b"X-Remote-User", b"root")], "identity-header", id="front proxy user"),
        pytest.param([(b"x-remote-extra-a", b"b")], "identity-header", id="front proxy extra"),
        pytest.param([(b"X_Remote_Group", b"b")], "identity-header", id="front proxy, underscores"),
        pytest.param(
            [(b"Authorization", b"Bearer a"), (b"authorization", b"Bearer b")], "header-duplicate", id="two tokens"
        ),
        pytest.param([(b"content-type", b"a"), (b"Content-Type", b"b")], "header-duplicate", id="two content types"),
        pytest.param([(b"Content-Length", b"1"), (b"Content-Length", b"1")], "header-duplicate", id="two lengths"),
        pytest.param([(b"Accept", b"a\r\n b")], "header-folded", id="folded"),
        pytest.param([(b"Accept", b"a\0b")], "header-folded", id="NUL"),
        pytest.param([(b"Connection", b"authorization")], "connection-nominates", id="Connection names a header"),
        pytest.param([(b"Connection", b"close, X-Other")], "connection-nominates", id="Connection names a second"),
        pytest.param([(b"Connection", b"")], "connection-nominates", id="empty Connection"),
        pytest.param([(b"Expect", b"200-ok")], "expect", id="unknown Expect"),
        pytest.param([(b"Transfer-Encoding", b"gzip, chunked")], "transfer-encoding", id="a compressed body"),
        pytest.param([(b"Transfer-Encoding", b"identity")], "transfer-encoding", id="identity"),
        pytest.param([(b"transfer-encoding", b"")], "transfer-encoding", id="empty Transfer-Encoding"),
    ],
)
def test_refused(fields, cause):
    with pytest.raises(Refused) as e:
        headers.check(fields)
    assert e.value.refusal.cause == cause


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([], id="none"),
        pytest.param([(b"Accept", b"a"), (b"Accept", b"b")], id="Accept twice"),
        pytest.param([(b"Connection", b"Upgrade, Keep-Alive")], id="Connection for an upgrade"),
        pytest.param([(b"X-Stream-Protocol-Version", b"v5"), (b"X-Stream-Protocol-Version", b"v4")], id="SPDY's list"),
        pytest.param([(b"X-Forwarded-For", b"1.2.3.4")], id="kubectl proxy's, dropped later"),
        pytest.param([(b"Expect", b"100-Continue")], id="Expect 100-continue"),
        pytest.param([(b"Transfer-Encoding", b" Chunked")], id="chunked"),
    ],
)
def test_accepted(fields):
    headers.check(fields)


@given(st.sampled_from([b"impersonate-", b"x-remote-"]), st.binary(max_size=20), st.randoms())
def test_no_spelling_of_an_identity_header_passes(prefix, rest, random):
    name = bytes(c - 32 if random.random() < 0.5 and 97 <= c <= 122 else c for c in prefix + rest)
    name = bytes(95 if c == 45 and random.random() < 0.5 else c for c in name)
    with pytest.raises(Refused):
        headers.check([(name, b"x")])


@pytest.mark.parametrize(
    ("values", "http2", "expected"),
    [
        pytest.param([], False, "", id="none"),
        pytest.param(["websocket"], False, "websocket", id="websocket"),
        pytest.param(["WebSocket"], False, "websocket", id="case"),
        pytest.param(["SPDY/3.1"], False, "spdy", id="spdy"),
        pytest.param(["h2c"], False, None, id="h2c"),
        pytest.param(["websocket, h2c"], False, None, id="a list"),
        pytest.param(["websocket", "SPDY/3.1"], False, None, id="two"),
        pytest.param(["websocket"], True, None, id="in HTTP/2"),
        pytest.param([""], False, None, id="empty"),
        pytest.param(["\udcff"], False, None, id="not ASCII"),
    ],
)
def test_upgrade(values, http2, expected):
    if expected is None:
        with pytest.raises(Refused, match=r"only HTTP/1\.1 upgrades"):
            headers.upgrade_protocol(values, http2=http2)
    else:
        assert headers.upgrade_protocol(values, http2=http2) == expected


@pytest.mark.parametrize(
    ("authority", "hosts", "http2", "cause"),
    [
        pytest.param("", ["gw:8443"], False, None, id="HTTP/1"),
        pytest.param("gw:8443", [], True, None, id="HTTP/2"),
        pytest.param("gw:8443", ["GW:8443"], True, None, id="both, the same"),
        pytest.param("gw:8443", ["other"], True, "authority-mismatch", id="both, different"),
        pytest.param("other", ["gw"], False, "absolute-form", id="absolute form"),
        pytest.param("", [], False, "authority-mismatch", id="no host"),
        pytest.param("", ["a", "b"], False, "authority-mismatch", id="two hosts"),
        pytest.param("", ["a", "a"], False, "authority-mismatch", id="the same twice"),
    ],
)
def test_authority(authority, hosts, http2, cause):
    if cause is None:
        headers.check_authority(authority, hosts, http2=http2)
    else:
        with pytest.raises(Refused) as e:
            headers.check_authority(authority, hosts, http2=http2)
        assert e.value.refusal.cause == cause
