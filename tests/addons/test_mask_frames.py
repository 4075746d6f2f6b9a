"""What addons/mask.py does with exec, attach and port-forward; the frames themselves: mitm/test_maskframes.py."""

import io
import json
import tarfile

import pytest
from mitmproxy import connection, http, tcp
from mitmproxy.test import taddons, tflow, tutils
from mitmproxy.websocket import WebSocketData, WebSocketMessage
from wsproto.frame_protocol import Opcode

from addons import mask
from addons.core import classify, facts, maskdetect, policyfile
from addons.core.model import Identity
from tests import websocket

POLICY = b"""
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: test}
people: identity.username == "jane"
rules:
- {name: everything, action: allow, match: {verbs: ["*"], resources: ["*", "*/*"]}}
mask:
- {name: tunnels, match: {resources: [pods/portforward], namespaces: [open]}, mask: never}
- {name: vault, match: {resources: [pods/exec], namespaces: [vault]}, mask: always}
- {name: break-glass, match: {resources: [pods/exec], namespaces: [glass]}, mask: approved}
"""
POLICIES = policyfile.parse({"test.yaml": POLICY})
AGENT, JANE = Identity("agent"), Identity("jane")
SECRET = b"Xq9zKw-canary-Pl4mNb7"
LINE = b"password=" + SECRET + b"\n"
STATUS = b'\x03{"metadata":{},"status":"Success"}'
STAMP = ("tollgate_mask", "request")


@pytest.fixture(scope="module", autouse=True)
def patterns():
    """Compiling them takes 3 s, and four times that on a busy machine: longer than a request may take here."""
    maskdetect.warm(None)


class Knows:
    """The addons before mask: the identity, the operation and the policies."""

    name = "knows"

    def __init__(self, identity=AGENT, approval=""):
        self.identity, self.approval = identity, approval

    def request(self, flow):
        known = facts.of(flow)
        fields = classify.fold(flow.request.headers.fields)
        known.identity, known.approval, known.policies = self.identity, self.approval, lambda: POLICIES
        known.operation = classify.classify(flow.request.method, flow.request.path, fields, b"")


@pytest.fixture
async def addon():
    one = mask.Mask()
    with taddons.context(one, loadcore=False) as tctx:
        tctx.configure(one, tollgate_state="")
        yield one


def a_flow(subresource="exec", namespace="shop", *, spdy=False, protocols=websocket.V5, **knows):
    upgrade = {"Upgrade": "SPDY/3.1"} if spdy else {"Upgrade": "websocket", "Sec-WebSocket-Protocol": protocols}
    flow = tflow.tflow(
        req=tutils.treq(
            method=b"POST" if spdy else b"GET",
            path=f"/api/v1/namespaces/{namespace}/pods/web-1/{subresource}?command=x".encode(),
            headers=http.Headers(**{"Connection": "Upgrade", **upgrade}),
            content=b"",
        )
    )
    Knows(**knows).request(flow)
    return flow


def asked(addon, flow):
    """The reason code of the refusal; None: it may go on."""
    addon.request(flow)
    if (STAMP in facts.of(flow).passed) is (flow.response is not None):
        raise AssertionError("refused and stamped, or neither")
    return flow.response and flow.response.headers["Tollgate-Reason"]


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        pytest.param({}, None, id="exec"),
        pytest.param({"subresource": "attach"}, None, id="attach"),
        pytest.param({"spdy": True}, "spdy-masked", id="SPDY"),
        pytest.param({"subresource": "attach", "spdy": True}, "spdy-masked", id="attach by SPDY"),
        pytest.param({"spdy": True, "identity": JANE}, None, id="SPDY of a person"),
        pytest.param({"spdy": True, "identity": JANE, "namespace": "vault"}, "spdy-masked", id="masked for people too"),
        pytest.param({"spdy": True, "namespace": "glass"}, "spdy-masked", id="shown when approved, and is not"),
        pytest.param({"spdy": True, "namespace": "glass", "approval": "apr-1"}, None, id="approved"),
        pytest.param({"spdy": True, "approval": "apr-1"}, "spdy-masked", id="an approval of something else"),
        pytest.param({"subresource": "portforward"}, "portforward-masked", id="port-forward"),
        pytest.param({"subresource": "portforward", "namespace": "open"}, None, id="port-forward that a rule shows"),
        pytest.param({"subresource": "portforward", "identity": JANE}, None, id="port-forward of a person"),
        pytest.param({"subresource": "proxy/ws"}, "proxy-masked", id="proxy"),
        pytest.param({"protocols": "channel.k8s.io, base64.channel.k8s.io"}, "subprotocol-masked", id="old protocols"),
        pytest.param({"protocols": "base64.channel.k8s.io", "identity": JANE}, None, id="old protocols of a person"),
    ],
)
async def test_requests(addon, make, cause):
    assert asked(addon, a_flow(**make)) == cause


@pytest.mark.parametrize(
    ("offered", "identity", "sent"),
    [
        pytest.param(
            "v5.channel.k8s.io, channel.k8s.io,v4.channel.k8s.io",
            AGENT,
            "v5.channel.k8s.io, v4.channel.k8s.io",
            id="masked",
        ),
        pytest.param("v5.channel.k8s.io, channel.k8s.io", JANE, "v5.channel.k8s.io, channel.k8s.io", id="not masked"),
    ],
)
async def test_the_server_may_choose_only_what_can_be_masked(addon, offered, identity, sent):
    flow = a_flow(protocols=offered, identity=identity)
    assert asked(addon, flow) is None
    assert flow.request.headers["sec-websocket-protocol"] == sent


@pytest.mark.parametrize(
    ("headers", "identity", "passes"),
    [
        pytest.param({"upgrade": "websocket", "sec_websocket_protocol": "v4.channel.k8s.io"}, AGENT, True, id="v4"),
        pytest.param({"upgrade": "websocket", "sec_websocket_protocol": "channel.k8s.io"}, AGENT, False, id="v1"),
        pytest.param({"upgrade": "websocket"}, AGENT, False, id="none"),
        pytest.param({"upgrade": "SPDY/3.1", "sec_websocket_protocol": "v5.channel.k8s.io"}, AGENT, False, id="SPDY"),
        pytest.param({"upgrade": "SPDY/3.1"}, JANE, True, id="SPDY for a person"),
    ],
)
async def test_what_the_server_chose(addon, headers, identity, passes):
    flow = a_flow(identity=identity)
    assert asked(addon, flow) is None
    facts.of(flow).released = True
    flow.response = tutils.tresp(status_code=101, headers=http.Headers(**headers), content=b"")
    addon.responseheaders(flow)
    assert (facts.of(flow).answer_refusal is None) is passes


@pytest.mark.parametrize(
    ("identity", "judged"), [pytest.param(AGENT, False, id="masked"), pytest.param(JANE, True, id="not masked")]
)
async def test_raw_bytes(addon, identity, judged):
    """The server answered SPDY though it was asked for a WebSocket."""
    origin = a_flow(identity=identity)
    flow = tflow.ttcpflow()
    facts.adopt(flow, origin)
    flow.messages = [tcp.TCPMessage(False, LINE)]
    addon.tcp_message(flow)
    assert (addon.name in facts.of(flow).judged) is judged


def frame(flow, content, *, from_client=False):
    facts.of(flow).judged, facts.of(flow).instead = set(), None
    flow.websocket = flow.websocket or WebSocketData()
    flow.websocket.messages = [WebSocketMessage(Opcode.BINARY, from_client, content)]
    return flow.websocket.messages[0]


async def test_frames_that_nobody_said_anything_about_are_not_judged(addon):
    flow = a_flow()  # its request never passed
    frame(flow, b"\x01x\n")
    addon.websocket_message(flow)
    assert addon.name not in facts.of(flow).judged


async def test_a_frame_that_cannot_be_masked_is_not_judged(addon, monkeypatch):
    cuts = []
    monkeypatch.setattr(mask.cutting, "cut", lambda flow, refusal: cuts.append(refusal.cause))
    flow = a_flow()
    addon.request(flow)
    for content in (b"\x03no Status", b"\x01fine\n"):  # and nothing after it
        frame(flow, content)
        addon.websocket_message(flow)
        assert addon.name not in facts.of(flow).judged
    assert cuts == ["frames-not-masked"] * 2


async def test_input_is_judged_as_it_is(addon):
    flow = a_flow()
    addon.request(flow)
    message = frame(flow, b"\x00" + LINE, from_client=True)
    addon.websocket_message(flow)
    assert addon.name in facts.of(flow).judged
    assert message.content == b"\x00" + LINE


def says(*frames):
    async def serve(peer):
        for one in (*frames, STATUS):
            await peer.send(one)
        await peer.close()
        await peer.to_the_end()

    return serve


def through(tls, confdir, serve, identity=AGENT, **more):
    return websocket.connected(tls, confdir, serve, Knows(identity), mask.Mask(), **more)


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io"])
async def test_an_agent(tls, confdir, protocol):
    async with through(tls, confdir, says(b"\x01" + LINE[:12], b"\x02" + LINE, b"\x01" + LINE[12:]),
                       protocol=protocol) as client:  # fmt: skip
        await client.to_the_end()
    for channel in (1, 2):
        assert client.output(channel).startswith(b"password=**masked:")
        assert SECRET[3:] not in client.output(channel)
    assert client.received[-1] == STATUS


async def test_a_person(tls, confdir):
    frames = [b"\x01" + LINE[:12], b"\x01" + LINE[12:]]
    async with through(tls, confdir, says(*frames), JANE) as client:
        await client.to_the_end()
    assert client.received == [*frames, STATUS]


async def test_a_terminal(tls, confdir):
    async def serve(peer):
        await peer.send(b"\x01root@web-1:/#")
        await peer.until(lambda: bool(peer.received))
        await peer.close()
        await peer.to_the_end()

    async with through(tls, confdir, serve, path=websocket.EXEC + "&tty=true") as client:
        await client.until(lambda: bool(client.received), seconds=2)
        assert client.output() == b"root@web-1:/#"
        await client.send(b"\x00x")
        await client.to_the_end()


async def test_an_archive_stays_one(tls, confdir):
    packed, content = io.BytesIO(), b"LOG=info\n" + LINE + bytes(range(256))
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo("env")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    raw = packed.getvalue()
    frames = [b"\x01" + raw[at : at + 700] for at in range(0, len(raw), 700)]
    path = websocket.EXEC.replace("command=x", "command=tar&command=cf&command=-&command=/env")
    async with through(tls, confdir, says(*frames), path=path) as client:
        await client.to_the_end()
    with tarfile.open(fileobj=io.BytesIO(client.output())) as archive:
        got = archive.extractfile("env").read()
    assert len(got) == len(content)
    assert got.startswith(b"LOG=info\npassword=**masked:")
    assert got.endswith(bytes(range(256)))
    assert SECRET not in got


async def test_a_refusal_over_the_wire(tls, confdir):
    async with through(tls, confdir, says(), protocol="base64.channel.k8s.io") as client:
        assert b" 403 " in client.head
        body = await client.reader.readuntil(b"}")
        while body.count(b"{") > body.count(b"}"):
            body += await client.reader.readuntil(b"}")
    assert "Sec-WebSocket-Protocol" in json.loads(body)["message"]


async def test_what_was_open_is_forgotten(addon):
    flow = a_flow()
    addon.request(flow)
    frame(flow, b"\x01half")
    addon.websocket_message(flow)
    assert flow in addon.frames
    flow.client_conn.state = connection.ConnectionState.CLOSED
    addon.websocket_end(flow)
    assert flow not in addon.frames
