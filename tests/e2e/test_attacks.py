"""
Attacks on the wire and on the policy, against the real API server: what the client gets, and that
its audit log shows nothing that was refused.
"""

import json
import socket

import pytest

from tests.e2e import client, gateway
from tests.e2e.rawclient import (
    AGENT,
    BROKEN,
    GET,
    PODS,
    POST,
    UPGRADE,
    WAIT,
    fields,
    h2_status,
    head,
    reached,
    resident,
    statuses,
)

pytestmark = pytest.mark.e2e


# request line, further headers, body -> status
FRAMING = [
    pytest.param(b"GET " + PODS + b" HTTP/1.0", b"", b"", 400, id="HTTP/1.0"),
    pytest.param(b"GET " + PODS + b" HTTP/3.0", b"", b"", 400, id="HTTP/3.0"),
    pytest.param(b"GET https://127.0.0.1" + PODS + b" HTTP/1.1", b"", b"", 400, id="absolute form"),
    pytest.param(b"GET https://127.0.0.1" + PODS + b" HTTP/2.0", b"", b"", 400, id="absolute form, HTTP/2.0"),
    pytest.param(b"CONNECT 127.0.0.1:443 HTTP/1.1", b"", b"", 400, id="CONNECT"),
    pytest.param(b"OPTIONS * HTTP/1.1", b"", b"", 405, id="OPTIONS *"),
    pytest.param(b"TRACE " + PODS + b" HTTP/1.1", b"", b"", 405, id="TRACE"),
    pytest.param(b"get " + PODS + b" HTTP/1.1", b"", b"", 405, id="lower-case method"),
    pytest.param(b"PRI * HTTP/2.0", b"", b"\r\nSM\r\n\r\n", BROKEN, id="HTTP/2 preface"),
    pytest.param(b"GET api/v1/pods HTTP/1.1", b"", b"", 400, id="no slash"),
    pytest.param(b"GET /api/v1/pods#x HTTP/1.1", b"", b"", 400, id="fragment"),
    pytest.param(b"GET /api/v1/p\xc3\xb6ds HTTP/1.1", b"", b"", 400, id="letters outside ASCII"),
    pytest.param(b"GET " + PODS + b"\t HTTP/1.1", b"", b"", 400, id="tab in the request line"),
    pytest.param(GET, b"Host: other\r\n", b"", 400, id="two hosts"),
    pytest.param(GET, b"X: a\r\n Impersonate-User: root\r\n", b"", 400, id="folded header"),
    pytest.param(GET, b"\tImpersonate-User: root\r\n", b"", 400, id="folded by a tab"),
    pytest.param(GET, b"Accept: a\rImpersonate-User: root\r\n", b"", 400, id="bare CR"),
    pytest.param(GET, b"Accept: a\0b\r\n", b"", 400, id="NUL"),
    pytest.param(GET, b"Impersonate-User : root\r\n", b"", 400, id="space before the colon"),
    pytest.param(GET, b": x\r\n", b"", 400, id="no header name"),
    pytest.param(GET, b"Impersonate-User: root\r\n", b"", 403, id="impersonation"),
    pytest.param(GET, b"Authorization: Bearer x\r\n", b"", 400, id="two credentials"),
    pytest.param(GET, b"Connection: x-forwarded-for\r\n", b"", 400, id="Connection names a header"),
    pytest.param(GET, b"Expect: 200-ok\r\n", b"", 400, id="another Expect"),
    pytest.param(GET, b"Content-Length: 2\r\n", b"{}", 400, id="GET with a body"),
    pytest.param(GET, UPGRADE + b"websocket\r\n", b"", 400, id="upgrade elsewhere"),
    pytest.param(GET, UPGRADE + b"websocket\r\nUpgrade: h2c\r\n", b"", 400, id="two upgrades"),
    pytest.param(POST, b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n", 400, id="CL.TE"),
    pytest.param(POST, b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n", 400, id="TE and space"),
    pytest.param(POST, b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n", 400, id="unknown TE"),
    pytest.param(POST, b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n", 400, id="TE twice"),
    pytest.param(POST, b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n", 400, id="TE after a vertical tab"),
    pytest.param(POST, b"Content-Length: +2\r\n", b"{}", 400, id="CL +2"),
    pytest.param(POST, b"Content-Length: 2, 2\r\n", b"{}", 400, id="CL 2, 2"),
    pytest.param(POST, b"Content-Length: -1\r\n", b"{}", 400, id="negative CL"),
    pytest.param(POST, b"Content-Length: 99999999\r\n", b"", 413, id="body over the limit"),
    pytest.param(POST, b"Transfer-Encoding: chunked\r\n", b"0x2\r\n{}\r\n0\r\n\r\n", BROKEN, id="chunk size 0x2"),
    pytest.param(POST, b"Transfer-Encoding: chunked\r\n", b"2\r\n{}\r\n0\r\nImpersonate-User: a\r\n\r\n", 400,
                 id="trailers"),
]  # fmt: skip


@pytest.mark.attack("framing, HTTP/1.1")
@pytest.mark.parametrize(("line", "extra", "body", "status"), FRAMING)
def test_framing(controlplane, recorder, recorded_gateway, agent_token, result, line, extra, body, status):
    since, position = controlplane.audit_position(), recorder.position()
    data = head(line, agent_token.encode(), extra) + body
    assert statuses(recorded_gateway, data) == (status,)
    assert not reached(controlplane, since)
    assert not recorder.since(position)
    result(f"{status or 'closed'}, nothing left the gateway")


@pytest.mark.attack("framing, HTTP/1.1", "harmless")
@pytest.mark.parametrize(
    ("first", "second", "expected", "arrive"),
    [
        pytest.param(b"", b"Impersonate-User: root\r\n", (200, 403), 1, id="the second impersonates"),
        pytest.param(b"Impersonate-User: root\r\n", b"", (403, 200), 1, id="the first impersonates"),
        pytest.param(UPGRADE + b"websocket\r\n", b"", (400, 200), 1, id="after a refused upgrade"),
    ],
)
def test_pipelined_requests_are_judged_one_by_one(
    controlplane, open_gateway, agent_token, first, second, expected, arrive
):
    since, token = controlplane.audit_position(), agent_token.encode()
    assert statuses(open_gateway, head(GET, token, first) + head(GET, token, second), 2) == expected
    assert reached(controlplane, since) == [(AGENT, PODS.decode())] * arrive


@pytest.mark.attack("credentials")
def test_a_token_is_not_that_of_the_connection(controlplane, open_gateway, agent_token):
    since = controlplane.audit_position()
    anonymous = GET + b"\r\nHost: 127.0.0.1\r\n\r\n"
    assert statuses(open_gateway, head(GET, agent_token.encode()) + anonymous, 2) == (200, 401)
    assert reached(controlplane, since) == [(AGENT, PODS.decode())]


@pytest.mark.attack("framing, HTTP/1.1")
def test_a_request_behind_an_upgrade_is_no_request(controlplane, open_gateway, agent_token):
    since, pod = controlplane.audit_position(), controlplane.pods("shop", "app=web")[0]
    path = f"/api/v1/namespaces/shop/pods/{pod}/exec?command=cat&stdin=true"
    handshake = UPGRADE + b"websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    handshake += b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n"
    token = agent_token.encode()
    data = head(f"GET {path} HTTP/1.1".encode(), token, handshake) + head(b"GET /api/v1/secrets HTTP/1.1", token)
    assert statuses(open_gateway, data, 2) == (101,)
    assert {uri for _, uri in reached(controlplane, since)} == {path}


@pytest.mark.attack("framing, TLS")
def test_plain_http_and_garbage(controlplane, open_gateway, agent_token):
    since = controlplane.audit_position()
    with socket.create_connection(("127.0.0.1", open_gateway.port), WAIT) as s:
        s.sendall(head(GET, agent_token.encode()))
        assert b"Tollgate-Reason: plaintext" in s.recv(65536)
    assert statuses(open_gateway, b"\x16\x03\x01\r\n\r\n\x00\x01\r\n\r\n") == (400,)
    assert not reached(controlplane, since)


@pytest.mark.attack("framing, HTTP/2")
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(fields(path="api/v1/pods"), 400, id="path without a slash"),
        pytest.param(fields(path="*"), 400, id="path *"),
        pytest.param(fields(path=""), BROKEN, id="empty path"),
        pytest.param(fields(path="/api/v1/pods#x"), 400, id="fragment"),
        pytest.param(fields(path="https://other/api/v1/pods"), 400, id="absolute path"),
        pytest.param(fields(path="//other/api/v1/pods"), 400, id="path with an authority"),
        pytest.param(fields(path="/api/v1/pods HTTP/1.1"), 400, id="space in the path"),
        pytest.param(fields(path="/x HTTP/1.1\r\nImpersonate-User: root\r\nx: "), BROKEN, id="CRLF in the path"),
        pytest.param(fields(method="GET / HTTP/1.1"), 405, id="space in the method"),
        pytest.param(fields(method="GET\r\nx: y"), BROKEN, id="CRLF in the method"),
        pytest.param(fields(scheme="ftp"), 400, id="another scheme"),
        pytest.param(fields(authority=""), 400, id="empty authority"),
        pytest.param(fields(authority=None), BROKEN, id="no authority"),
        pytest.param(fields(authority="a@127.0.0.1"), BROKEN, id="user in the authority"),
        pytest.param(fields(("host", "other")), BROKEN, id="host and authority differ"),
        pytest.param([(":path", "/version"), *fields()], BROKEN, id="two paths"),
        pytest.param([(":method", "DELETE"), *fields()], BROKEN, id="two methods"),
        pytest.param(fields((":path", "/version")), BROKEN, id="pseudo-header at the end"),
        pytest.param([(":protocol", "websocket"), *fields(method="CONNECT")], BROKEN, id="extended CONNECT"),
        pytest.param(fields(("impersonate-user", "root")), 403, id="impersonation"),
        pytest.param(fields(("Impersonate-User", "root")), BROKEN, id="capitals"),
        pytest.param(fields(("accept", "a\r\nimpersonate-user: root")), BROKEN, id="CRLF in a value"),
        pytest.param(fields(("user-agent", "a\nimpersonate-user: root")), BROKEN, id="LF in a value"),
        pytest.param(fields(("accept\r\nimpersonate-user", "root")), BROKEN, id="CRLF in a name"),
        pytest.param(fields(("impersonate-user ", "root")), BROKEN, id="space in a name"),
        pytest.param(fields(("connection", "upgrade")), BROKEN, id="connection header"),
        pytest.param(fields(("transfer-encoding", "chunked")), BROKEN, id="transfer-encoding"),
        pytest.param(fields(("authorization", "Bearer x")), 400, id="two credentials"),
    ],
)
def test_http2(controlplane, recorder, recorded_gateway, agent_token, result, sent, status):
    since, position = controlplane.audit_position(), recorder.position()
    sent = [(name, f"Bearer {agent_token}" if value == "TOKEN" else value) for name, value in sent]
    assert h2_status(recorded_gateway, sent) == status
    assert not reached(controlplane, since)
    assert not recorder.since(position)
    result(f"{status or 'closed'}, nothing left the gateway")


# The policy as it is shipped.


@pytest.fixture(scope="module")
def own_namespace(controlplane):
    """A namespace of the agents'."""
    controlplane.run_kubectl("create", "namespace", "sandbox-attacks")
    yield "sandbox-attacks"
    controlplane.run_kubectl("delete", "namespace", "sandbox-attacks", "--wait=false")


def pod(spec=None, container=None, **metadata):
    containers = [{"name": "c", "image": "x", **(container or {})}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "attack", **metadata},
        "spec": {"containers": containers, **(spec or {})},
    }


def volume(**source):
    return {"volumes": [{"name": "v", **source}]}


APPARMOR = {"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}
ROLLBACK = {"deprecated.deployment.rollback.to": "1"}
CSI = {"driver": "file.csi.azure.com", "volumeAttributes": {"secretName": "db-password", "shareName": "s"}}
PROVIDER = {"driver": "secrets-store.csi.k8s.io", "volumeAttributes": {"secretProviderClass": "prod"}}
FLEX = {"driver": "a/b", "options": {"secretName": "db-password"}}


@pytest.mark.attack("known escapes: deputies")
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(pod({"serviceAccountName": "deployer"}), id="ServiceAccount"),
        pytest.param(pod({"serviceAccount": "deployer"}), id="its old name"),
        pytest.param(pod({"serviceAccountName": "default", "serviceAccount": "deployer"}), id="both names"),
        pytest.param(pod({"hostPID": True}), id="hostPID"),
        pytest.param(pod(container={"securityContext": {"procMount": "Unmasked"}}), id="procMount"),
        pytest.param(pod({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}), id="AppArmor"),
        pytest.param(pod(annotations=APPARMOR), id="AppArmor by annotation"),
        pytest.param(pod(volume(secret={"secretName": "db-password"})), id="Secret"),
        pytest.param(pod(volume(csi=CSI)), id="Secret by a CSI attribute"),
        pytest.param(pod(volume(csi=PROVIDER)), id="SecretProviderClass"),
        pytest.param(pod(volume(flexVolume=FLEX)), id="Secret by a flexVolume option"),
        pytest.param(pod(volume(gitRepo={"repository": "https://x/y"})), id="gitRepo"),
        pytest.param(b'{"kind":"Pod","spec":{},"spec":{"serviceAccountName":"deployer"}}', id="duplicate key"),
        pytest.param(b'{"kind":"Pod","spec":{},"Spec":{"serviceAccountName":"deployer"}}', id="key in another case"),
        pytest.param(b'\xef\xbb\xbf{"kind":"Pod"}', id="byte order mark"),
        pytest.param(b'{"kind":"Pod"}{"kind":"Pod"}', id="two documents"),
    ],
)  # fmt: skip
def test_pods_that_reach_too_far(controlplane, default_gateway, agent_token, own_namespace, body):
    since = controlplane.audit_position()
    path = f"/api/v1/namespaces/{own_namespace}/pods"
    headers = {"Content-Type": "application/json"}
    answer = client.request(
        default_gateway.port, default_gateway.ca_file, "POST", path, token=agent_token, body=body, headers=headers
    )
    if answer.status == 201:
        controlplane.request("DELETE", f"{path}/attack?gracePeriodSeconds=0")
    assert answer.status in (400, 403), answer.status
    assert not reached(controlplane, since)


@pytest.mark.attack("known escapes: other ways to read")
@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/secrets", "/api/v1/watch/secrets", "/api/v1/watch/namespaces/shop/secrets/db-password",
        "/api/v1/secrets?watch=", "/api/v1/secrets?fieldSelector=metadata.name%3Ddb-password",
        "/api/v1/nodes/node-1/proxy/logs/", "/api/v1/nodes/https:node-1:10250/proxy/pods",
        "/api/v1/namespaces/shop/services/https:web:80/proxy/x", "/api/v1/namespaces/shop/pods/web/proxy/..%2f",
        "/api/v1/nodes/node-1/configz", "/api/v1/namespaces/shop/pods/web/log/x", "/metrics", "/logs/",
        "/debug/pprof/", "/configz", "/version/", "/healthz/..", "/api//v1/secrets", "/API/v1/secrets",
    ],
)  # fmt: skip
@pytest.mark.parametrize("accept", ["*/*", "application/json;as=Table;v=v1;g=meta.k8s.io"], ids=["any", "Table"])
def test_other_ways_to_read(controlplane, default_gateway, agent_token, path, accept):
    since = controlplane.audit_position()
    answer = client.request(
        default_gateway.port, default_gateway.ca_file, "GET", path, token=agent_token, headers={"Accept": accept}
    )
    assert answer.status in (400, 403)
    assert not reached(controlplane, since)


def deployment(account):
    containers = [{"name": "c", "image": "x"}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "rolled"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"serviceAccountName": account, "containers": containers},
            },
        },
    }


@pytest.mark.attack("known escapes: deputies")
@pytest.mark.parametrize(
    "patch",
    [
        pytest.param({"spec": {"template": {"spec": {"serviceAccountName": "deployer"}}}}, id="the template"),
        pytest.param({"metadata": {"annotations": ROLLBACK}}, id="rollback by annotation"),
        pytest.param({"spec": {"template": {"metadata": {"annotations": APPARMOR}}}}, id="AppArmor by annotation"),
    ],
)  # fmt: skip
def test_patches_that_change_what_pods_reach(controlplane, default_gateway, agent_token, own_namespace, patch):
    controlplane.run_kubectl("apply", "-n", own_namespace, "-f", "-", input=json.dumps(deployment("default")))
    since = controlplane.audit_position()
    path = f"/apis/apps/v1/namespaces/{own_namespace}/deployments/rolled"
    headers = {"Content-Type": "application/merge-patch+json"}
    answer = client.request(
        default_gateway.port, default_gateway.ca_file, "PATCH", path, token=agent_token, body=patch, headers=headers
    )
    assert answer.status == 403
    assert not reached(controlplane, since)


# Logs.


@pytest.mark.attack("the log")
@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"GET /\x1b[31mx HTTP/1.1", id="path"),
        pytest.param(b"G\x1b[31mET /x HTTP/1.1", id="method"),
    ],
)
def test_no_terminal_escapes_in_the_log(open_gateway, agent_token, line):
    start = len(open_gateway.log)
    assert statuses(open_gateway, head(line, agent_token.encode()))[0] in (400, 405)
    assert "\x1b" not in open_gateway.log[start:]


@pytest.mark.attack("the log")
def test_one_short_log_line_for_a_refused_request(open_gateway):
    start = len(open_gateway.log)
    assert statuses(open_gateway, b"GET /api/v1/" + b"a" * 60000 + b" HTTP/1.1\r\nHost: a\r\n\r\n") == (401,)
    assert len(open_gateway.log) - start < 2000


@pytest.mark.attack("the process")
def test_no_token_in_the_log(default_gateway, open_gateway, agent_token):
    for one in (default_gateway, open_gateway):
        assert agent_token[-40:] not in one.log


# Memory, and the guard's second line.


@pytest.mark.attack("floods", "harmless")
def test_a_closed_http2_connection_costs_nothing(open_gateway):
    pid, nobody = open_gateway.process.pid, [f for f in fields() if f[0] != "authorization"]
    for _ in range(100):
        h2_status(open_gateway, nobody)
    before = resident(pid)
    for _ in range(200):
        h2_status(open_gateway, nobody)
    assert resident(pid) - before < 6000


BREAK = """
from pathlib import Path
from addons.core import status

good = status.body

def body(refusal):
    if Path(%r).exists():
        raise MemoryError
    return good(refusal)

status.body = body
"""


@pytest.mark.attack("faults")
def test_no_answer_can_be_made(controlplane, gateway_kubeconfig, tmp_path):
    script, switch = tmp_path / "breaks.py", tmp_path / "broken"
    script.write_text(BREAK % str(switch))
    path = "/api/v1/namespaces/shop/configmaps/attack-none"
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--", "-s", str(script)]
    with gateway.running(tmp_path / "gateway", *arguments) as one:
        switch.touch()
        # A credential that the API server itself takes: the gateway must never pass one on.
        client.request(one.port, one.ca_file, "DELETE", path, token=controlplane.admin_token, seconds=3)
    assert not [e for e in controlplane.audit_events() if e["requestURI"] == path]
