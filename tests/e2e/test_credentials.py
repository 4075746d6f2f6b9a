"""
Credential confusion: whoever is not the one whose token it is, must be nobody. The policy of this gateway
allows everything and RBAC makes its agent an administrator, so that nothing else stops them.

The tokens here are made with the cluster's own signing key where that makes them harder to tell apart.
"""

import base64
import datetime
import hmac
import json
import ssl
import time
import urllib.parse
import uuid

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from tests.e2e import client, gateway, policies
from tests.e2e.rawclient import AGENT, BROKEN, GET, PODS, UPGRADE, fields, h2_status, head, reached, statuses

pytestmark = pytest.mark.e2e

OTHER_KEY = rsa.generate_private_key(65537, 2048)
PATH = PODS.decode()


def encoded(value):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def open_gateway(gateway_kubeconfig, tmp_path_factory):
    """One that goes on saying what is wrong after the sixtieth bad token of a minute."""
    folder = tmp_path_factory.mktemp("credentials")
    (folder / "policy.yaml").write_text(policies.EVERYTHING)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")]
    with gateway.running(folder, *arguments, "--", "--set", "tollgate_failed_authentications=0") as one:
        yield one


@pytest.fixture(scope="module")
def cluster_key(controlplane):
    """The key that signs the cluster's tokens."""
    return serialization.load_pem_private_key(controlplane.service_account_key.read_bytes(), None)


@pytest.fixture(scope="module")
def forge(cluster_key, agent_token):
    """The agent's token with other claims and header fields, signed by the cluster's key unless said otherwise."""
    claims = jwt.decode(agent_token, options={"verify_signature": False})
    kid = jwt.get_unverified_header(agent_token)["kid"]

    def make(changes=None, header=None, key=None, alg="RS256", signature=None):
        payload = {name: value for name, value in {**claims, **(changes or {})}.items() if value is not ...}
        made = {"alg": alg, "typ": "JWT", "kid": kid, **(header or {})}
        signed = f"{encoded(made)}.{encoded(payload)}".encode()
        if signature is None:
            signature = jwt.get_algorithm_by_name("RS256").sign(signed, key or cluster_key)
        elif callable(signature):
            signature = signature(signed)
        return f"{signed.decode()}.{encoded(signature)}"

    return make


@pytest.fixture
def asked(controlplane, open_gateway):
    """The status of a request with this token, having seen that nothing arrived unless it was 200."""

    def run(token, headers=None, path=PATH):
        since = controlplane.audit_position()
        answer = client.request(open_gateway.port, open_gateway.ca_file, "GET", path, token=token, headers=headers)
        arrived = reached(controlplane, since)
        assert bool(arrived) == (answer.status == 200), arrived
        return answer.status

    return run


def public(key, form):
    layout = {
        "PEM": (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        "PKCS1": (serialization.Encoding.PEM, serialization.PublicFormat.PKCS1),
        "DER": (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
    }
    return key.public_key().public_bytes(*layout[form])


def own_jwk():
    return json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(OTHER_KEY.public_key()))


NOW = int(time.time())
FORGED = [
    *(
        pytest.param({"alg": alg, "signature": b""}, id=f"alg {alg}, no signature")
        for alg in ("none", "None", "NONE", "nOnE", "")
    ),
    pytest.param({"alg": "none", "signature": b"x"}, id="alg none, a signature"),
    pytest.param({"alg": "none"}, id="alg none, signed all the same"),
    *(
        pytest.param({"alg": alg, "hmac": (alg, form)}, id=f"{alg} with the public key as {form}")
        for alg in ("HS256", "HS512")
        for form in ("PEM", "PKCS1", "DER")
    ),
    pytest.param({"alg": "HS256", "signature": lambda signed: hmac.digest(b"", signed, "sha256")}, id="HS256, no key"),
    pytest.param({"alg": "ES256"}, id="another algorithm named"),
    pytest.param({"key": OTHER_KEY}, id="another key"),
    pytest.param({"key": OTHER_KEY, "header": {"jwk": own_jwk()}}, id="the key in the token, jwk"),
    pytest.param({"key": OTHER_KEY, "header": {"jku": "https://127.0.0.1:1/keys"}}, id="jku"),
    pytest.param({"key": OTHER_KEY, "header": {"x5u": "https://127.0.0.1:1/cert"}}, id="x5u"),
    pytest.param({"key": OTHER_KEY, "header": {"x5c": ["MIIB"]}}, id="x5c"),
    *(
        pytest.param({"key": OTHER_KEY, "header": {"kid": kid}}, id=f"kid {kid!r}"[:40])
        for kid in (
            "../../../../dev/null", "/proc/self/environ", "https://127.0.0.1:1/k", "' OR 1=1 --", "", "a\0b", "| id",
            "k" * 5000, None, 1, ["k"], {"k": 1},
        )
    ),
    pytest.param({"header": {"crit": ["x"], "x": 1}}, id="crit"),
    pytest.param({"header": {"b64": False, "crit": ["b64"]}}, id="unencoded payload"),
    pytest.param({"header": {"typ": "at+jwt", "cty": "JWT"}, "key": OTHER_KEY}, id="another typ"),
    pytest.param({"changes": {"aud": ["https://kubernetes.default.svc"]}}, id="audience of the API server"),
    pytest.param({"changes": {"aud": "other"}}, id="another audience"),
    pytest.param({"changes": {"aud": []}}, id="no audience"),
    pytest.param({"changes": {"aud": ...}}, id="aud missing"),
    pytest.param({"changes": {"aud": ["tollgate "]}}, id="audience and a space"),
    pytest.param({"changes": {"aud": {"tollgate": 1}}}, id="audience an object"),
    pytest.param({"changes": {"iss": "https://issuer.example"}}, id="another issuer, the same key"),
    pytest.param({"changes": {"iss": ...}}, id="no issuer"),
    pytest.param({"slash": True}, id="the issuer and a slash"),
    pytest.param({"changes": {"exp": NOW - 60}}, id="expired"),
    pytest.param({"changes": {"exp": ...}}, id="without an end"),
    pytest.param({"changes": {"exp": NOW + 10 * 365 * 86400}}, id="for ten years"),
    pytest.param({"changes": {"nbf": NOW + 86_400}}, id="not yet"),
    pytest.param({"changes": {"sub": "system:serviceaccount:agents:nobody"}}, id="an account that is not there"),
    pytest.param({"changes": {"sub": "system:admin"}}, id="a user's name"),
    pytest.param({"changes": {"sub": "system:node:node-1"}}, id="a node's name"),
    pytest.param({"changes": {"sub": "system:serviceaccount:tollgate:gateway"}}, id="the gateway's name"),
    pytest.param(
        {"changes": {"kubernetes.io": {"namespace": "agents", "serviceaccount": {"name": "ci-agent", "uid": "u"}}}},
        id="another uid",
    ),
    pytest.param({"changes": {"kubernetes.io": ...}}, id="no account in it"),
]  # fmt: skip


@pytest.mark.attack("credentials: tokens")
@pytest.mark.parametrize("what", FORGED)
def test_forged(asked, forge, cluster_key, controlplane, what):
    made = dict(what)
    if form := made.pop("hmac", None):
        digest = {"HS256": "sha256", "HS512": "sha512"}[form[0]]
        made["signature"] = lambda signed: hmac.digest(public(cluster_key, form[1]), signed, digest)
    if made.pop("slash", False):
        made["changes"] = {"iss": controlplane.issuer + "/"}
    assert asked(forge(**made)) == 401


def test_the_forge_makes_tokens_that_are_believed(asked, forge):
    assert asked(forge()) == 200


@pytest.mark.attack("credentials: tokens")
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda t: t + "=", id="padding"),
        pytest.param(lambda t: t.replace(".", "..", 1), id="an empty part"),
        pytest.param(lambda t: t + "." + t.split(".")[2], id="four parts"),
        pytest.param(lambda t: t[:-1], id="a letter less"),
        pytest.param(lambda t: " " + t, id="a space before"),
        pytest.param(lambda t: t + "," + t, id="twice"),
        pytest.param(lambda t: t.upper(), id="in capitals"),
        pytest.param(lambda t: t.replace("-", "+").replace("_", "/"), id="the other base64"),
        pytest.param(lambda t: ".".join([*t.split(".")[:2], encoded(b"")]), id="the signature taken off"),
        pytest.param(lambda t: base64.b64encode(t.encode()).decode(), id="encoded once more"),
    ],
)
def test_spoiled(asked, agent_token, spoil):
    # A signature may happen to have none of the letters that differ.
    changed = spoil(agent_token)
    assert changed == agent_token or asked(changed) in (400, 401)


# Where a token may be


PROTOCOL = "base64url.bearer.authorization.k8s.io."


@pytest.mark.attack("credentials: place")
@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(b"Authorization: Bearer %s\r\nAuthorization: Bearer %s\r\n", id="two headers"),
        pytest.param(b"Authorization: Bearer %s, Bearer %s\r\n", id="two in one header"),
        pytest.param(b"Authorization: Bearer nobody\r\nauthorization: Bearer %s\r\n", id="the second is good"),
        pytest.param(b"Authorization: Bearer %s\r\nProxy-Authorization: Bearer nobody\r\nCookie: token=%s\r\n",
                     id="more in other places"),
        pytest.param(b"Authorization: Basic %s\r\n", id="basic"),
        pytest.param(b"Authorization: %s\r\n", id="no scheme"),
        pytest.param(b"Authorization: Token %s\r\n", id="another scheme"),
        pytest.param(b"Authorization : Bearer %s\r\n", id="space before the colon"),
        pytest.param(b"X-Authorization: Bearer %s\r\n", id="X-Authorization"),
        pytest.param(b"Proxy-Authorization: Bearer %s\r\n", id="Proxy-Authorization"),
        pytest.param(b"Cookie: token=%s\r\n", id="cookie"),
        pytest.param(b"X-Forwarded-Access-Token: %s\r\n", id="an OAuth proxy's"),
        pytest.param(b"Sec-WebSocket-Protocol: v5.channel.k8s.io, PROTOCOL%s\r\n", id="subprotocol without an upgrade"),
    ],
)  # fmt: skip
def test_places(controlplane, recorder, recorded_gateway, agent_token, result, extra):
    position, since = recorder.position(), controlplane.audit_position()
    extra = extra.replace(b"PROTOCOL%s", PROTOCOL.encode() + encoded(agent_token.encode()).encode())
    data = GET + b"\r\nHost: a\r\n" + extra.replace(b"%s", agent_token.encode()) + b"\r\n"
    (status,) = statuses(recorded_gateway, data)
    if b"Cookie" in extra and b"Bearer %s" in extra:
        # One good token in its place; what is elsewhere counts for nothing and goes nowhere.
        assert status == 200
        (left,) = recorder.since(position)
        assert not {"cookie", "proxy-authorization"} & {name for name, _ in left.headers}
        result("200 as the one token says; the rest was dropped")
        return
    assert status in (400, 401)
    assert not recorder.since(position)
    assert not reached(controlplane, since)


@pytest.mark.attack("credentials: place")
@pytest.mark.parametrize("key", ["access_token", "token", "authorization", "bearer", "id_token"])
def test_in_the_query(controlplane, open_gateway, agent_token, key):
    since = controlplane.audit_position()
    answer = client.request(open_gateway.port, open_gateway.ca_file, "GET", f"{PATH}&{key}={agent_token}")
    assert answer.status == 401
    assert not reached(controlplane, since)
    assert agent_token not in open_gateway.log


@pytest.mark.attack("credentials: place")
@pytest.mark.parametrize(
    ("header", "protocols", "status"),
    [
        pytest.param(True, "v5.channel.k8s.io, {token}", 401, id="in header and subprotocol"),
        pytest.param(False, "v5.channel.k8s.io, {token}, {token}", 401, id="two subprotocols"),
        pytest.param(False, "{token}", 401, id="no other subprotocol"),
        pytest.param(False, "v5.channel.k8s.io, {upper}", 401, id="subprotocol in capitals"),
        pytest.param(False, "v5.channel.k8s.io, {other}", 401, id="another's token in the subprotocol"),
    ],
)
def test_subprotocols(controlplane, open_gateway, agent_token, forge, header, protocols, status):
    since, pod = controlplane.audit_position(), controlplane.pods("shop", "app=web")[0]
    token = PROTOCOL + encoded(agent_token.encode())
    other = PROTOCOL + encoded(forge(key=OTHER_KEY).encode())
    asked = protocols.format(token=token, upper=PROTOCOL.upper() + token[len(PROTOCOL) :], other=other)
    lines = [
        f"GET /api/v1/namespaces/shop/pods/{pod}/exec?command=id&stdout=true HTTP/1.1",
        "Host: a",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"Sec-WebSocket-Protocol: {asked}",
        *([f"Authorization: Bearer {agent_token}"] if header else []),
    ]
    data = "\r\n".join(lines).encode() + b"\r\n" + UPGRADE + b"websocket\r\n\r\n"
    assert statuses(open_gateway, data) == (status,)
    assert not reached(controlplane, since)


# Who somebody else says that they are


def spellings(name):
    yield from (name, name.lower(), name.upper(), name.replace("-", "_"), name.swapcase())


IDENTITY = sorted(
    {
        spelled
        for name in (
            *("Impersonate-User", "Impersonate-Group", "Impersonate-Uid", "Impersonate-Extra-Scopes", "Impersonate-"),
            *("Impersonate-Extra-%61", "Impersonate-Anything", "X-Remote-User", "X-Remote-Group", "X-Remote-Uid"),
            *("X-Remote-Extra-Scopes", "X-Remote-"),
        )
        for spelled in spellings(name)
    }
)


@pytest.mark.attack("credentials: identity headers")
@pytest.mark.parametrize("name", IDENTITY)
def test_identity_headers(recorder, recorded_gateway, agent_token, result, name):
    position, token = recorder.position(), agent_token.encode()
    data = [head(GET, token, name.encode() + b": system:masters\r\n"), head(GET, token, name.encode() + b":\r\n")]
    found = [statuses(recorded_gateway, one)[0] for one in data]
    assert set(found) <= {400, 403}
    lower = h2_status(recorded_gateway, [(k, f"Bearer {agent_token}" if v == "TOKEN" else v)
                                         for k, v in fields((name.lower(), "system:masters"))])  # fmt: skip
    assert lower in (400, 403, BROKEN)
    assert not recorder.since(position)
    result(f"{found[0]} over HTTP/1.1, {lower or 'closed'} over HTTP/2")


DROPPED = [
    *("X-Forwarded-User", "X-Forwarded-Groups", "X-Forwarded-For", "X-Real-IP", "Forwarded", "Via", "X-User"),
    *("X-Forwarded-Client-Cert", "X-Client-Cert", "SSL-Client-Cert", "X-SSL-Client-DN", "X-Auth-Request-User"),
    *("Audit-ID", "Remote-User", "X-Amzn-Oidc-Data", "X-Goog-Authenticated-User-Email", "Tollgate-Ticket"),
    *("Tollgate-Identity", "X-Kubernetes-User"),
]  # fmt: skip


@pytest.mark.attack("credentials: identity headers", "harmless")
@pytest.mark.parametrize("name", DROPPED)
def test_headers_that_go_nowhere(controlplane, recorder, recorded_gateway, agent_token, result, name):
    position, since = recorder.position(), controlplane.audit_position()
    (status,) = statuses(recorded_gateway, head(GET, agent_token.encode(), name.encode() + b": 6.6.6.6\r\n"))
    left = recorder.since(position)
    assert (status, len(left)) in ((200, 1), (400, 0), (403, 0))
    assert all("6.6.6.6" not in value for one in left for _, value in one.headers)
    assert {who for who, _ in reached(controlplane, since)} <= {AGENT}
    result(f"{status}; {'dropped' if left else 'refused'}")


@pytest.mark.attack("credentials: identity headers")
@pytest.mark.parametrize(
    "named",
    ["authorization", "Impersonate-User", "audit-id", "x-forwarded-for", "close, authorization", "host"],
)
def test_connection_takes_no_header_away(recorder, recorded_gateway, agent_token, named):
    position = recorder.position()
    assert statuses(recorded_gateway, head(GET, agent_token.encode(), f"Connection: {named}\r\n".encode())) == (400,)
    assert not recorder.since(position)


# Tokens that were good


@pytest.mark.attack("credentials: tokens")
def test_a_token_of_a_pod_that_is_gone(controlplane, open_gateway):
    pod = {
        "metadata": {"name": "short-lived"},
        "spec": {"nodeName": "node-1", "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "x"}],
                 "serviceAccountName": "ci-agent"},
    }  # fmt: skip
    made = controlplane.api("POST", "/api/v1/namespaces/agents/pods", pod)
    bound = {"kind": "Pod", "apiVersion": "v1", "name": "short-lived", "uid": made["metadata"]["uid"]}
    asked = {"spec": {"audiences": ["tollgate"], "expirationSeconds": 3600, "boundObjectRef": bound}}
    path = "/api/v1/namespaces/agents/serviceaccounts/ci-agent/token"
    token = controlplane.api("POST", path, asked)["status"]["token"]

    def status():
        return client.request(open_gateway.port, open_gateway.ca_file, "GET", "/version", token=token).status

    assert status() == 200
    controlplane.request("DELETE", "/api/v1/namespaces/agents/pods/short-lived?gracePeriodSeconds=0")
    deadline = time.monotonic() + 30  # a review is believed for ten seconds, and the pod takes a moment to go
    while status() != 401:
        assert time.monotonic() < deadline
        time.sleep(0.5)


# Client certificates


@pytest.mark.attack("credentials: certificates")
@pytest.mark.parametrize("organization", ["system:masters", "system:nodes"])
def test_a_client_certificate_is_nobody(controlplane, open_gateway, tmp_path, organization):
    """Good enough for the API server itself, which shows it there."""
    ca = x509.load_pem_x509_certificate(controlplane.ca_file.read_bytes())
    ca_key = serialization.load_pem_private_key(controlplane.ca_key_file.read_bytes(), None)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    attributes = {NameOID.ORGANIZATION_NAME: organization, NameOID.COMMON_NAME: "system:admin"}
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes.items()])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = tmp_path / "client.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    since = controlplane.audit_position()

    def status(port, ca_file):
        context = ssl.create_default_context(cafile=ca_file)
        context.load_cert_chain(pem)
        return with_context(port, context)

    assert status(controlplane.port, controlplane.ca_file) in (200, 403)  # not 401: it knows who this is
    since = controlplane.audit_position()
    assert status(open_gateway.port, open_gateway.ca_file) == 401
    assert not reached(controlplane, since)


def with_context(port, context):
    import http.client

    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    try:
        connection.request("GET", PATH)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.attack("credentials: tokens")
def test_guessing_is_not_told_apart(open_gateway, forge):
    """Whatever is wrong with a token, the answer is the same sentence."""
    made = [forge(key=OTHER_KEY), forge({"exp": NOW - 60}), forge({"aud": "x"}), str(uuid.uuid4()), ""]
    bodies = {
        client.request(open_gateway.port, open_gateway.ca_file, "GET", PATH, token=urllib.parse.quote(one)).body
        for one in made
    }
    assert len(bodies) == 1
