"""
Smuggling, framing and floods over raw sockets, against a running gateway whose policy allows everything.

Two oracles: the API server's audit log, and a recorder before it that has every byte which left the
gateway and reads them as strictly as can be. Each row says what must leave: nothing, or requests that
were judged one by one, in one plain framing. (More rows, of one bad request each: test_attacks.py.)
"""

import contextlib
import socket
import ssl
import threading
import time

import hpack
import pytest
from OpenSSL import SSL

from tests.e2e import client
from tests.e2e.rawclient import (
    BROKEN,
    GET,
    MAPS,
    PODS,
    POST,
    UPGRADE,
    connect,
    fields,
    frame,
    h2_status,
    head,
    reached,
    resident,
    statuses,
)

pytestmark = pytest.mark.e2e

SECRETS = "/api/v1/secrets"
TE = b"Transfer-Encoding: chunked\r\n"
ONE = b"2\r\n{}\r\n0\r\n\r\n"  # a body of {} in chunks
SMUGGLED = b"<the next request>"  # stands for a request for all Secrets, with the same token
EXEC = b"<exec>"  # stands for the path of an exec into a pod that is there
WEBSOCKET = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
WEBSOCKET += b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n"

# request line, further headers, body -> statuses
REFUSED = [
    pytest.param(POST, TE + b"Content-Length: 6\r\n", b"0\r\n\r\n" + SMUGGLED, (400,), id="TE.CL"),
    pytest.param(POST, b"Content-Length: 6\r\n" + TE, b"0\r\n\r\n" + SMUGGLED, (400,), id="CL.TE"),
    pytest.param(POST, TE + b"Transfer-Encoding: identity\r\n", ONE + SMUGGLED, (400,), id="TE.TE, identity"),
    pytest.param(POST, TE + b"Transfer-encoding: x\r\n", ONE + SMUGGLED, (400,), id="TE.TE, unknown"),
    pytest.param(POST, b"Transfer-Encoding: identity\r\n", ONE + SMUGGLED, (400,), id="TE identity"),
    pytest.param(POST, b"Transfer-Encoding: chunked, identity\r\n", ONE + SMUGGLED, (400,), id="chunked, identity"),
    pytest.param(POST, b"Transfer-Encoding: gzip, chunked\r\n", ONE, (400,), id="gzip, chunked"),
    pytest.param(POST, b"Transfer-Encoding: chunked\0\r\n", ONE, (400,), id="TE and NUL"),
    pytest.param(POST, b'Transfer-Encoding: "chunked"\r\n', ONE, (400,), id="TE quoted"),
    pytest.param(POST, b"Transfer-Encoding: chunked;q=1\r\n", ONE, (400,), id="TE with a parameter"),
    pytest.param(POST, b"Transfer-Encoding: chunked,\r\n", ONE, (400,), id="TE and a comma"),
    pytest.param(POST, b"Transfer-Encoding:\r\n", ONE, (400,), id="TE empty"),
    pytest.param(POST, b"X: x\r\n\tTransfer-Encoding: chunked\r\n", ONE, (400, 400), id="TE folded"),
    pytest.param(POST, b"Content-Length: 2\r\nContent-Length: 2\r\n", b"{}", (400,), id="CL twice"),
    pytest.param(POST, b"Content-Length: 2\r\nContent-Length: 40\r\n", b"{}" + SMUGGLED, (400,), id="two CLs"),
    pytest.param(POST, b"Content-Length: 0x2\r\n", b"{}", (400,), id="CL in hexadecimal"),
    pytest.param(POST, b"Content-Length: 02\r\n", b"{}", (400,), id="CL with a zero"),
    pytest.param(POST, b"Content-Length: 1_0\r\n", b"{}", (400,), id="CL 1_0"),
    pytest.param(POST, b"Content-Length: \xc2\xb2\r\n", b"{}", (400,), id="CL a superscript"),
    pytest.param(POST, b"Content-Length:\r\n 2\r\n", b"{}", (400,), id="CL folded"),
    pytest.param(POST, b"Content-Length: 99999999999999999999\r\n", b"{}", (413,), id="CL beyond 64 bits"),
    pytest.param(POST, TE, b"2;a\n{}\r\n0\r\n\r\n" + SMUGGLED, (BROKEN,), id="chunk extension, bare LF"),
    pytest.param(POST, TE, b"2\n{}\n0\n\n" + SMUGGLED, (BROKEN,), id="chunks with bare LF"),
    pytest.param(POST, TE, b"2\r{}\r0\r\r", (BROKEN,), id="chunks with bare CR"),
    pytest.param(POST, TE, b"2\r\n{} \r\n0\r\n\r\n", (BROKEN,), id="chunk longer than it says"),
    pytest.param(POST, TE, b"FFFFFFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n", (BROKEN,), id="chunk beyond 64 bits"),
    pytest.param(POST, TE, b"-2\r\n{}\r\n0\r\n\r\n", (BROKEN,), id="chunk size -2"),
    pytest.param(POST, TE, b"+2\r\n{}\r\n0\r\n\r\n", (BROKEN,), id="chunk size +2"),
    pytest.param(POST, TE, b"2\r\n{}\r\n0\r\nAudit-ID: x\r\n\r\n" + SMUGGLED, (400,), id="trailers"),
    pytest.param(GET, b"X: a\nImpersonate-User: root\r\n", b"", (400,), id="header after a bare LF"),
    pytest.param(b"GET /api/v1/pods\0 HTTP/1.1", b"", b"", (400,), id="NUL in the target"),
    pytest.param(GET, b"X\0: a\r\n", b"", (400,), id="NUL in a name"),
    pytest.param(b"GET 127.0.0.1:443 HTTP/1.1", b"", b"", (400,), id="authority form"),
    pytest.param(b"GET http://169.254.169.254/latest HTTP/1.1", b"", b"", (400,), id="metadata address"),
    pytest.param(b"GET /api/v1/pods", b"", b"", (400,), id="HTTP/0.9"),
    pytest.param(b"GET /api/v1/pods HTTP/1.10", b"", b"", (400,), id="HTTP/1.10"),
    pytest.param(b"GET /api/v1/pods http/1.1", b"", b"", (400,), id="http/1.1"),
    pytest.param(GET, b"X: " + b"a" * 70_000 + b"\r\n", b"", (431,), id="a header of 70 000 bytes"),
    pytest.param(GET, b"X: y\r\n" * 20_000, b"", (431,), id="20 000 headers"),
    pytest.param(b"GET " + EXEC + b" HTTP/1.1", UPGRADE + b"websocket\r\n" + WEBSOCKET + b"Content-Length: 5\r\n",
                 b"aaaaa", (400,), id="upgrade with a body"),
    pytest.param(b"GET " + EXEC + b" HTTP/1.1", UPGRADE + b"websocket\r\n" + WEBSOCKET + TE,
                 b"5\r\naaaaa\r\n0\r\n\r\n", (400,), id="upgrade with a body in chunks"),
    pytest.param(b"POST " + EXEC + b" HTTP/1.1", UPGRADE + b"SPDY/3.1\r\nContent-Length: 5\r\n", b"aaaaa", (400,),
                 id="SPDY with a body"),
    pytest.param(GET, b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
                 b"", (400,),
                 id="h2c"),
    pytest.param(GET, b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,),
                 id="h2c, the preface behind it"),
    pytest.param(GET, b"Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n", b"", (400,), id="upgrade to TLS"),
    pytest.param(b"HEAD " + PODS + b" HTTP/1.1", b"Content-Length: 2\r\n", b"{}", (400,), id="HEAD with a body"),
]  # fmt: skip

MAP, POD_LIST = ("POST", MAPS.decode()), ("GET", PODS.decode())
# request line, further headers, body -> statuses, what leaves
HARMLESS = [
    pytest.param(POST, TE, b"2;a=b\r\n{}\r\n0;c\r\n\r\n", (404,), [MAP], id="chunk extensions"),
    pytest.param(POST, TE, b'2;a="\r\n{}\r\n0\r\n\r\n', (404,), [MAP], id="chunk extension with a quote"),
    pytest.param(POST, TE, b"0000000000000002\r\n{}\r\n0\r\n\r\n", (404,), [MAP], id="chunk size with zeros"),
    pytest.param(POST, b"Transfer-Encoding:\tCHUNKED\r\n", ONE, (404,), [MAP], id="TE in capitals after a tab"),
    pytest.param(POST, b"Content-Length: 2\r\nContent_Length: 40\r\n", b"{}", (404,), [MAP], id="Content_Length"),
    pytest.param(POST, b"Expect: 100-continue\r\nContent-Length: 2\r\n", b"{}", (404,), [MAP], id="Expect"),
    pytest.param(GET, b"X-HTTP-Method-Override: DELETE\r\n", b"", (200,), [POD_LIST], id="another method by header"),
    pytest.param(GET, b"X-Original-URL: /x\r\nX-Rewrite-URL: /x\r\nX-Forwarded-Host: x\r\n", b"", (200,), [POD_LIST],
                 id="another target by header"),
    pytest.param(b"GET  /api/v1/pods HTTP/1.1", b"", b"", (200,), [("GET", "/api/v1/pods")], id="two spaces"),
    pytest.param(b" " + GET, b"", b"", (200,), [POD_LIST], id="a space before the request line"),
    pytest.param(GET, UPGRADE + b"h2c\r\n", SMUGGLED, (400, 200), [("GET", SECRETS)], id="behind a refused upgrade"),
]  # fmt: skip


def sent_by(recorder, position):
    """What left the gateway, with what every request that leaves it has."""
    left = recorder.since(position)
    for one in left:
        names = [name for name, _ in one.headers]
        assert set(names) <= {
            *("host", "accept", "content-type", "user-agent", "audit-id", "x-forwarded-for", "content-length"),
            *("impersonate-user", "impersonate-uid", "impersonate-group", "authorization", "if-none-match"),
            "impersonate-extra-tollgate.dev%2fgateway",
            *("connection", "upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol"),
        }
        assert [names.count(name) for name in ("audit-id", "authorization", "impersonate-user")] == [1, 1, 1]
    return [(one.method, one.target) for one in left]


@pytest.fixture
def send(controlplane, recorder, recorded_gateway, agent_token):
    """Send a head and what follows it: the statuses, and what left the gateway and arrived."""

    def run(line, extra, body, count, host=b"Host: 127.0.0.1\r\n"):
        token = agent_token.encode()
        pod = controlplane.pods("shop", "app=web")[0] if EXEC in line else ""
        line = line.replace(EXEC, f"/api/v1/namespaces/shop/pods/{pod}/exec?command=id&stdout=true".encode())
        body = body.replace(SMUGGLED, head(b"GET " + SECRETS.encode() + b" HTTP/1.1", token))
        since, position = controlplane.audit_position(), recorder.position()
        found = statuses(recorded_gateway, head(line, token, extra, host) + body, count)
        left = sent_by(recorder, position)
        assert [uri for _, uri in reached(controlplane, since)] == [target for _, target in left]
        return found, left

    return run


@pytest.mark.attack("framing, HTTP/1.1")
@pytest.mark.parametrize(("line", "extra", "body", "expected"), REFUSED)
def test_nothing_leaves(send, result, line, extra, body, expected):
    assert send(line, extra, body, len(expected)) == (expected, [])
    result(f"{expected[0] or 'closed'}, nothing left the gateway")


@pytest.mark.attack("framing, HTTP/1.1", "harmless")
@pytest.mark.parametrize(("line", "extra", "body", "expected", "left"), HARMLESS)
def test_what_leaves_is_plain(send, result, line, extra, body, expected, left):
    assert send(line, extra, body, len(expected)) == (expected, left)
    result("each judged by itself, and left in one plain framing")


@pytest.mark.attack("framing, HTTP/1.1", "harmless")
@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "a@127.0.0.1", "127.0.0.1/api", "127.0.0.1, evil.example", "[::1]:1", "169.254.169.254"],
)
def test_the_host_header_chooses_nothing(send, recorder, result, host):
    position = recorder.position()
    assert send(GET, b"", b"", 1, host=f"Host: {host}\r\n".encode()) == ((200,), [POD_LIST])
    assert {dict(one.headers)["host"] for one in recorder.since(position)} == {f"127.0.0.1:{recorder.port}"}
    result("went to the gateway's own API server, under its name")


@pytest.mark.attack("framing, HTTP/1.1")
def test_no_host(send):
    assert send(GET, b"", b"", 1, host=b"") == ((400,), [])


@pytest.mark.attack("framing, HTTP/1.1")
def test_bare_line_feeds(controlplane, recorder, recorded_gateway, agent_token):
    position = recorder.position()
    plain = head(GET, agent_token.encode())
    assert statuses(recorded_gateway, plain.replace(b"\r\n", b"\n")) == (400,)
    assert statuses(recorded_gateway, plain.replace(b"\r\n", b"\n", 1)) == (400,)
    assert not recorder.since(position)


@pytest.mark.attack("framing, HTTP/1.1", "harmless")
def test_one_byte_at_a_time(recorder, recorded_gateway, agent_token):
    position = recorder.position()
    with connect(recorded_gateway, "http/1.1") as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head(POST, agent_token.encode(), TE) + ONE:
            s.sendall(bytes([byte]))
        assert s.recv(16).startswith(b"HTTP/1.1 404")
    assert sent_by(recorder, position) == [MAP]


# HTTP/2


def h2_bytes(*parts):
    """All that a client sends on one connection."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
    return preface + b"".join(frame(*part) for part in parts)


def block(agent_token, sent):
    return hpack.Encoder().encode([(k, f"Bearer {agent_token}" if v == "TOKEN" else v) for k, v in sent])


WRITE = fields(method="POST", path=MAPS.decode())


def h2_outcome(running, data):
    """Statuses by stream, until the other side is silent or closes."""
    decoder, received, found = hpack.Decoder(), b"", {}
    with connect(running, "h2") as s, contextlib.suppress(OSError):
        s.settimeout(1)
        s.sendall(data)
        while more := s.recv(65536):
            received += more
            while len(received) >= 9 and len(received) >= 9 + (size := int.from_bytes(received[:3])):
                kind, sid = received[3], int.from_bytes(received[5:9])
                payload, received = received[9 : 9 + size], received[9 + size :]
                if kind == 1:
                    found[sid] = int(dict(decoder.decode(payload))[":status"])
    return found


@pytest.mark.attack("framing, HTTP/2")
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(lambda b: [(1, 4, 1, b(WRITE)), (0, 1, 1, b"{}"), (1, 5, 1, b(WRITE))], id="headers after all"),
        pytest.param(lambda b: [(1, 4, 1, b(WRITE)), (1, 5, 1, b([("impersonate-user", "root")]))], id="trailers"),
        pytest.param(lambda b: [(1, 4, 1, b(WRITE)), (1, 5, 1, b([(":path", SECRETS)]))], id=":path in trailers"),
        pytest.param(
            lambda b: [(1, 4, 1, b([*WRITE, ("content-length", "2")])), (0, 1, 1, b"{}{}")], id="longer than it says"
        ),
        pytest.param(
            lambda b: [(1, 4, 1, b([*WRITE, ("content-length", "9")])), (0, 1, 1, b"{}")], id="shorter than it says"
        ),
        pytest.param(lambda b: [(1, 4, 2, b(WRITE)), (0, 1, 2, b"{}")], id="a stream of the server's"),
        pytest.param(lambda b: [(0, 1, 1, b"{}")], id="data of no stream"),
        pytest.param(lambda b: [(1, 0, 1, b(WRITE)), (0, 1, 1, b"{}")], id="data inside a header block"),
        pytest.param(lambda b: [(1, 0, 1, b(WRITE)), (9, 4, 3, b"")], id="continuation of another stream"),
        pytest.param(lambda b: [(9, 5, 1, b(WRITE))], id="continuation of nothing"),
        pytest.param(lambda b: [(5, 4, 1, b"\0\0\0\2" + b(WRITE))], id="PUSH_PROMISE from a client"),
        pytest.param(lambda b: [(1, 5, 1, b"\x00\x00")], id="an empty header name"),
        pytest.param(lambda b: [(1, 5, 1, b"\xff\xff\xff\xff\xff\xff")], id="an index of nothing"),
        pytest.param(lambda b: [(1, 5, 0, b(WRITE))], id="headers on the connection"),
        pytest.param(lambda b: [(1, 13, 1, b"\xff" + b(WRITE))], id="padding longer than the frame"),
        pytest.param(
            lambda b: [(1, 5, 1, b(fields()[:4]) + b"\x40\x01a\x7f\x81\x1e" + b"b" * 4000 + b"\xbe" * 12000)],
            id="an HPACK bomb",
        ),
        pytest.param(lambda b: [(1, 5, 1, b"\x20" * 10_000 + b(WRITE))], id="HPACK table sizes without end"),
        pytest.param(lambda b: [(1, 5, 1, b([(":method", "GET"), *fields()[:2]]))], id="pseudo-headers twice"),
        pytest.param(lambda b: [(1, 5, 1, b([*fields(), (":scheme", "http")]))], id="a pseudo-header at the end"),
        pytest.param(
            lambda b: [(1, 5, 1, b([*fields(), (":authority\r\nimpersonate-user", "root")]))], id="CRLF in its name"
        ),
        pytest.param(lambda b: [(1, 5, 1, b([*fields(), ("cookie", "a"), ("te", "chunked")]))], id="te: chunked"),
        pytest.param(lambda b: [(1, 5, 1, b([*fields(), ("upgrade", "websocket")]))], id="upgrade"),
        pytest.param(lambda b: [(1, 5, 1, b([*fields(), ("http2-settings", "AAMA"), ("connection", "x")]))], id="h2c"),
    ],
)  # fmt: skip
def test_http2_frames(controlplane, recorder, recorded_gateway, agent_token, result, parts):
    since, position = controlplane.audit_position(), recorder.position()
    made = parts(lambda sent: block(agent_token, sent))
    found = h2_outcome(recorded_gateway, h2_bytes(*made))
    assert all(status in (400, 403, 405) for status in found.values())
    # What is complete before the bad frame was one good request, and may have gone on: once, and as it was.
    left = sent_by(recorder, position)
    assert left in ([], [MAP])
    assert [uri for _, uri in reached(controlplane, since)] == [target for _, target in left]
    result(f"{found.get(1) or 'closed'}, {'nothing' if not left else 'only the request before it'} left the gateway")


@pytest.mark.attack("framing, HTTP/2", "harmless")
def test_http2_frames_that_nobody_knows(recorder, recorded_gateway, agent_token):
    position = recorder.position()
    get = block(agent_token, fields(path=PODS.decode()))
    data = h2_bytes((0xEE, 0xFF, 0, b"x"), (0xEE, 0, 1, b"x"), (1, 0x25, 1, b"\0\0\0\0\x10" + get))
    assert h2_outcome(recorded_gateway, data) == {1: 200}
    assert sent_by(recorder, position) == [POD_LIST]


@pytest.mark.attack("framing, HTTP/2", "harmless")
def test_http2_length_of_a_body_that_is_not_there(recorder, recorded_gateway, agent_token):
    position = recorder.position()
    get = block(agent_token, [*fields(path=PODS.decode()), ("content-length", "5")])
    assert h2_outcome(recorded_gateway, h2_bytes((1, 5, 1, get))) == {1: 200}
    assert sent_by(recorder, position) == [POD_LIST]
    assert all("content-length" not in dict(one.headers) for one in recorder.since(position))


@pytest.mark.attack("framing, HTTP/2")
def test_http2_without_tls(recorder, recorded_gateway, agent_token):
    position = recorder.position()
    with socket.create_connection(("127.0.0.1", recorded_gateway.port), 3) as s:
        s.sendall(h2_bytes((1, 5, 1, block(agent_token, fields(path=PODS.decode())))))
        s.settimeout(2)
        with contextlib.suppress(OSError):
            assert b":status" not in s.recv(65536)
    assert not recorder.since(position)


# TLS


@pytest.mark.attack("framing, TLS", "harmless")
@pytest.mark.parametrize(
    "name",
    [b"evil.example", b"169.254.169.254", b"127.0.0.1.", b"a" * 250, b"kubernetes.default.svc", b"*", b"a\nb", b"\xff"],
)  # fmt: skip
def test_sni_chooses_nothing(recorder, recorded_gateway, agent_token, name):
    before, position = len(recorder.names), recorder.position()
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    with socket.create_connection(("127.0.0.1", recorded_gateway.port), 5) as raw:
        raw.settimeout(None)
        secure = SSL.Connection(context, raw)
        secure.set_tlsext_host_name(name)
        secure.set_connect_state()
        try:
            secure.do_handshake()
            secure.sendall(head(GET, agent_token.encode()))
            assert secure.recv(12) == b"HTTP/1.1 200"
        except SSL.Error:
            assert not recorder.since(position)
        else:
            assert sent_by(recorder, position) == [POD_LIST]
    assert set(recorder.names[before:]) <= {None}  # an address has no name


@pytest.mark.attack("framing, TLS")
def test_renegotiation(recorded_gateway, agent_token):
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    with socket.create_connection(("127.0.0.1", recorded_gateway.port), 5) as raw:
        raw.settimeout(None)
        secure = SSL.Connection(context, raw)
        secure.set_connect_state()
        secure.do_handshake()
        secure.renegotiate()
        with pytest.raises(SSL.Error):
            secure.do_handshake()


@pytest.mark.attack("framing, TLS")
@pytest.mark.parametrize("version", [SSL.TLS1_VERSION, SSL.TLS1_1_VERSION], ids=["1.0", "1.1"])
def test_old_tls(recorded_gateway, version):
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", recorded_gateway.port), 5) as raw:
        raw.settimeout(None)
        secure = SSL.Connection(context, raw)
        secure.set_connect_state()
        with pytest.raises(SSL.Error):
            secure.do_handshake()


# Floods: from another address than the neighbour, who must be served all the while.

MOST_MEMORY = 40 * 1024  # KiB more
MOST_WAIT = 5  # seconds for the neighbour, on a machine that does other things too


def flood(running, first, piece, most, alpn):
    """Send until the other side closes, or `most` bytes are out."""
    raw = socket.create_connection(("127.0.0.1", running.port), 5, source_address=("127.0.0.2", 0))
    context = ssl.create_default_context(cafile=running.ca_file)
    sent = 0
    if alpn:
        context.set_alpn_protocols([alpn])
        raw = context.wrap_socket(raw, server_hostname="127.0.0.1")
    with raw, contextlib.suppress(OSError):
        raw.settimeout(10)
        raw.sendall(first)
        while sent < most:
            raw.sendall(piece)
            sent += len(piece)
    return sent


def record(payload):
    return b"\x16\x03\x01" + len(payload).to_bytes(2) + payload


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
NOBODY = hpack.Encoder().encode(
    [field for field in fields(path="/version") if field[0] != "authorization"], huffman=False
)
CHUNKED = b"POST " + MAPS + b" HTTP/1.1\r\nHost: a\r\n" + TE + b"\r\n"


def resets(first):
    return b"".join(frame(1, 5, sid, NOBODY) + frame(3, 0, sid, b"\0\0\0\x08") for sid in range(first, first + 2000, 2))


@pytest.mark.attack("floods")
@pytest.mark.parametrize(
    ("alpn", "first", "piece", "most"),
    [
        pytest.param("http/1.1", b"GET /api HTTP/1.1\r\nX: ", b"a" * 65536, 30_000_000, id="a head without an end"),
        pytest.param("http/1.1", CHUNKED + b"2;a=", b"a" * 65536, 60_000_000, id="a chunk extension without an end"),
        pytest.param("http/1.1", CHUNKED + b"0\r\n", b"X: y\r\n" * 10_000, 60_000_000, id="trailers without an end"),
        pytest.param("h2", PREFACE, frame(6, 0, 0, b"12345678") * 1000, 30_000_000, id="CVE-2019-9512, PING"),
        pytest.param("h2", PREFACE, frame(2, 0, 1, b"\0\0\0\0\x10") * 1000, 30_000_000, id="CVE-2019-9513, PRIORITY"),
        pytest.param("h2", PREFACE, frame(4, 0, 0, b"") * 1000, 30_000_000, id="CVE-2019-9515, SETTINGS"),
        pytest.param("h2", PREFACE, frame(8, 0, 0, b"\0\0\0\1") * 1000, 30_000_000, id="WINDOW_UPDATE"),
        pytest.param("h2", PREFACE + frame(1, 4, 1, NOBODY), frame(0, 0, 1, b"") * 1000, 30_000_000,
                     id="CVE-2019-9518, empty DATA"),
        pytest.param("h2", PREFACE + frame(1, 1, 1, NOBODY), frame(9, 0, 1, b"") * 1000, 30_000_000,
                     id="CVE-2024-27316, CONTINUATION"),
        pytest.param("h2", PREFACE + frame(1, 1, 1, NOBODY), frame(9, 0, 1, b"\x40\x01a\x7f\x81\x7f" + b"a" * 16_000),
                     30_000_000, id="large CONTINUATION"),
        pytest.param("h2", PREFACE + (2**24 - 1).to_bytes(3) + b"\1\5\0\0\0\1", b"a" * 65536, 30_000_000,
                     id="a frame of 16 MiB"),
        pytest.param("", record(b"\x01\xff\xff\xff"), record(b"a" * 16_000), 130_000_000, id="a ClientHello, no end"),
        pytest.param("", record(b"\x01\xff\xff\xff"), record(b"a") * 1000, 30_000_000, id="a ClientHello in bits"),
        pytest.param("", b"GET / HTTP/1.1\r\nX: ", b"a" * 65536, 30_000_000, id="a head without TLS"),
    ],
)  # fmt: skip
def test_without_an_end(recorder, recorded_gateway, agent_token, result, alpn, first, piece, most):
    pid, position = recorded_gateway.process.pid, recorder.position()
    before = resident(pid)
    assert flood(recorded_gateway, first, piece, most, alpn) < most
    assert resident(pid) - before < MOST_MEMORY
    started = time.monotonic()
    answer = client.request(recorded_gateway.port, recorded_gateway.ca_file, "GET", "/version", token=agent_token)
    assert answer.status == 200
    assert time.monotonic() - started < MOST_WAIT
    assert {one.target for one in recorder.since(position)} == {"/version"}
    result("the connection was closed; others were served")


@pytest.mark.attack("floods")
def test_cve_2023_44487_rapid_reset(recorder, recorded_gateway, agent_token, result):
    pid, position = recorded_gateway.process.pid, recorder.position()
    before = resident(pid)
    data = PREFACE + b"".join(resets(first) for first in range(1, 10_000, 2000))
    flood(recorded_gateway, data, b"", 0, "h2")
    started = time.monotonic()
    answer = client.request(recorded_gateway.port, recorded_gateway.ca_file, "GET", "/version", token=agent_token)
    assert answer.status == 200
    assert time.monotonic() - started < MOST_WAIT
    assert resident(pid) - before < MOST_MEMORY
    assert {one.target for one in recorder.since(position)} == {"/version"}
    result("the connection was closed after some hundreds; others were served")


@pytest.mark.attack("floods")
def test_pipelined_behind_a_watch(recorded_gateway, agent_token):
    watch = head(b"GET /api/v1/namespaces/shop/pods?watch=1&timeoutSeconds=30 HTTP/1.1", agent_token.encode())
    before = resident(recorded_gateway.process.pid)
    assert flood(recorded_gateway, watch, b"a" * 65536, 60_000_000, "http/1.1") < 60_000_000
    assert resident(recorded_gateway.process.pid) - before < MOST_MEMORY


@pytest.mark.attack("floods")
def test_streams_that_never_end(recorder, recorded_gateway, agent_token):
    """HTTP/2 allows a hundred at once; more end the connection."""
    position = recorder.position()
    opened = b"".join(frame(1, 4, 2 * i + 1, NOBODY) for i in range(400))
    flood(recorded_gateway, PREFACE + opened, b"", 0, "h2")
    answer = client.request(recorded_gateway.port, recorded_gateway.ca_file, "GET", "/version", token=agent_token)
    assert answer.status == 200
    assert {one.target for one in recorder.since(position)} == {"/version"}


# Whoever only waits: half a minute, so not in each run.


def closed_after(running, data, tls=True):
    """Seconds until the other side closes."""
    started = time.monotonic()
    raw = socket.create_connection(("127.0.0.1", running.port), 5, source_address=("127.0.0.3", 0))
    if tls:
        context = ssl.create_default_context(cafile=running.ca_file)
        raw = context.wrap_socket(raw, server_hostname="127.0.0.1")
    with raw, contextlib.suppress(OSError):
        raw.sendall(data)
        raw.settimeout(45)
        while raw.recv(65536):
            pass
    return time.monotonic() - started


@pytest.mark.long
@pytest.mark.attack("floods")
def test_who_only_waits_is_sent_away(recorder, recorded_gateway, agent_token, result):
    position, found, threads = recorder.position(), {}, []
    waiting = {
        "nothing": (b"", False),
        "half a ClientHello": (record(b"\x01\0\1\0")[:8], False),
        "no request": (b"", True),
        "half a head": (b"GET /api HTTP/1.1\r\nX: ", True),
    }
    for name, (data, tls) in waiting.items():
        threads.append(
            threading.Thread(
                target=lambda n, d, t: found.__setitem__(n, closed_after(recorded_gateway, d, t)),
                args=(name, data, tls),
            )
        )
        threads[-1].start()
    answer = client.request(recorded_gateway.port, recorded_gateway.ca_file, "GET", "/version", token=agent_token)
    assert answer.status == 200
    for thread in threads:
        thread.join(60)
    assert found.keys() == waiting.keys()
    assert all(25 < seconds < 40 for seconds in found.values()), found
    assert {one.target for one in recorder.since(position)} == {"/version"}
    result("closed after 30 s")


def test_the_oracles_see_what_passes(send):
    assert send(GET, b"", b"", 1) == ((200,), [POD_LIST])
    assert send(POST, b"Content-Length: 2\r\n", b"{}", 1) == ((404,), [MAP])
    assert send(GET, b"", SMUGGLED, 2) == ((200, 200), [POD_LIST, ("GET", SECRETS)])


def test_the_oracles_see_what_passes_over_http2(recorder, recorded_gateway, agent_token):
    position = recorder.position()
    assert (
        h2_status(recorded_gateway, [(k, f"Bearer {agent_token}" if v == "TOKEN" else v) for k, v in fields()]) == 200
    )
    assert sent_by(recorder, position) == [("GET", "/api/v1/pods")]
