"""The recorder under attack and in trouble, for real: full disks, reset streams, secrets everywhere, tampering."""

import asyncio
import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import shutil
import socket
import ssl
import subprocess
import time
import uuid

import pytest

from addons.cli import replay, show, verify
from addons.core import auditevents, chain
from addons.core.chainverify import CHECKPOINTS, EVENTS, FLOWS, INDEX, REQUESTS
from addons.net import recordings
from tests import canaries, http2, websocket
from tests.cluster.controlplane import ControlPlane
from tests.e2e import gateway, policies, test_recording
from tests.e2e.test_recording import VALUE, Stage, everything, run
from tests.recordings import rechain

pytestmark = pytest.mark.e2e

AGENT = "tollgate:system:serviceaccount:agents:ci-agent"
POLICY = (
    policies.EVERYTHING.replace(
        "rules:", "people: '\"tollgate:system:serviceaccounts:people\" in identity.groups'\nrules:"
    )
    + """
- name: new-namespace
  action: hold
  match: {subjects: [agents], verbs: [create], resources: [namespaces]}
  message: It makes a namespace.
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 12s, maxPending: 100}
- name: no-nodes
  action: deny
  match: {verbs: [delete], resources: [nodes]}
  message: Nodes belong to the machines team.
"""
)
namespace = test_recording.namespace


@contextlib.contextmanager
def running(folder, gateway_kubeconfig, controlplane, *more, **others):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.yaml").write_text(POLICY)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml"), *more]
    with gateway.running(folder, *arguments, **others) as one:
        yield Stage(one, controlplane)


@pytest.fixture(scope="module")
def stage(controlplane, gateway_kubeconfig, tmp_path_factory):
    with running(tmp_path_factory.mktemp("attacks"), gateway_kubeconfig, controlplane) as one:
        yield one


def maps(namespace):
    return f"/api/v1/namespaces/{namespace}/configmaps"


def a_map(name, text="x"):
    return {"metadata": {"name": name}, "data": {"x": text}}


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to it"
        time.sleep(0.05)
    return found


def notes(event, name):
    return auditevents.notes_of(event).get(name, "")


# What is in it


def test_who_said_yes_is_on_record(stage, controlplane, tmp_path):
    name = f"rec-held-{uuid.uuid4().hex[:8]}"
    approver = controlplane.token("people", "engineer", audience="tollgate-approver")
    path = "/apis/tollgate.dev/v1alpha1/approvals"

    def pending():
        answer = test_recording.client.request(stage.gateway.port, stage.gateway.ca_file, "GET", path, token=approver)
        return next((i for i in json.loads(answer.body)["items"] if name in json.dumps(i["spec"])), None)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = pool.submit(stage.kubectl, "create", "namespace", name)
        approval = until(pending)["metadata"]["name"]
        decision = {"spec": {"decision": "Approved", "reason": "fine"}}
        answer = test_recording.client.request(
            stage.gateway.port, stage.gateway.ca_file, "PATCH", f"{path}/{approval}", token=approver,
            body=json.dumps(decision).encode(), headers={"Content-Type": "application/merge-patch+json"},
        )  # fmt: skip
        assert answer.status == 200
        assert made.result().returncode == 0
    event = stage.wait_for(lambda e: notes(e, auditevents.APPROVAL) == approval and e["verb"] == "create")
    assert event["objectRef"]["resource"] == "namespaces"
    assert notes(event, auditevents.APPROVER) == "tollgate:system:serviceaccount:people:engineer"
    controlplane.api("DELETE", f"/api/v1/namespaces/{name}")


def test_what_was_denied_is_on_record_with_rule_and_sentence(stage, controlplane):
    node = controlplane.api("GET", "/api/v1/nodes")["items"][0]["metadata"]["name"]
    refused = stage.kubectl("delete", "node", node, "--wait=false", code=1)
    assert "machines team" in refused.stderr
    event = stage.wait_for(lambda e: notes(e, auditevents.RULE) == "no-nodes")
    assert notes(event, auditevents.VERDICT) == "deny"
    assert notes(event, auditevents.MESSAGE) == "Nodes belong to the machines team."
    assert "machines team" in event["responseStatus"]["message"]
    assert event["responseStatus"]["code"] == 403


def test_a_watch_is_on_record_when_it_begins_and_when_its_client_leaves(stage, namespace):
    context = ssl.create_default_context(cafile=stage.gateway.ca_file)
    connection = http.client.HTTPSConnection("127.0.0.1", stage.gateway.port, timeout=15, context=context)
    target = f"{maps(namespace)}?watch=true&labelSelector=watched%3D{namespace}"
    connection.request("GET", target, headers={"Authorization": f"Bearer {stage.token}"})
    assert connection.getresponse().status == 200
    mine = lambda e: namespace in e["requestURI"] and e["verb"] == "watch"  # noqa: E731
    event = stage.wait_for(mine)
    assert event["stage"] == "ResponseStarted"
    connection.sock.close() if connection.sock else connection.close()
    connection.close()
    ended = stage.wait_for(lambda e: mine(e) and e["stage"] == "ResponseComplete")
    assert ended["auditID"] == event["auditID"]


def test_an_audit_id_of_the_client_is_nobodys(stage, namespace):
    same = "11111111-2222-3333-4444-555555555555"
    for number in range(2):
        answer = stage.request("POST", maps(namespace), body=a_map(f"id-{number}"), headers={"Audit-ID": same})
        assert answer.status == 201
    ids = {e["auditID"] for e in stage.events() if e.get("objectRef", {}).get("name", "").startswith("id-")}
    assert len(ids) == 2
    assert same not in ids


def test_nobody_acts_under_another_name(stage, namespace):
    """`--as` and its headers are refused; who asked is not what is on record of them."""
    position = stage.cluster.audit_position()
    done = stage.kubectl("create", "configmap", "as", "-n", namespace, "--as=system:admin", code=1)
    assert done.returncode != 0
    answer = stage.request("POST", maps(namespace), body=a_map("as2"), headers={"X-Remote-User": "system:admin"})
    assert answer.status == 403
    assert not [e for e in stage.events() if e["user"]["username"] == "system:admin"]
    went = [e for e in stage.cluster.audit_events(position) if e.get("objectRef", {}).get("name") in ("as", "as2")]
    assert went == []


async def typed(stage, canary):
    """An exec into which the secret is typed, in a frame, in two, in a resize and in the reason of its close."""
    pod = stage.cluster.pods("shop", "")[0]
    path = f"/api/v1/namespaces/shop/pods/{pod}/exec?command=cat&stdin=true&stdout=true&tty=false"
    peer = await websocket.ask(
        stage.gateway.port, stage.gateway.ca_file, path, websocket.V5, f"Authorization: Bearer {stage.token}"
    )
    assert b" 101 " in peer.head, peer.head
    for frame in (b"\0token " + canary + b"\n", b"\0half " + canary[:9], canary[9:] + b"\n", b"\4" + canary):
        await peer.send(frame if frame[:1] in b"\0\4" else b"\0" + frame)
    peer.writer.write(peer.connection.send(websocket.CloseConnection(code=1000, reason=canary.decode())))
    await peer.writer.drain()
    with contextlib.suppress(TimeoutError):
        await peer.to_the_end(3)
    peer.writer.close()


@pytest.mark.parametrize("kind", ["github token", "token"])
async def test_a_secret_is_in_no_file_wherever_it_is_put(stage, namespace, kind):
    canary = canaries.VALUES[kind]
    text = canary.decode()
    place, secrets = maps(namespace), f"/api/v1/namespaces/{namespace}/secrets"
    tries = [
        ("GET", f"{place}/{text}", None, {}),
        ("DELETE", f"{place}/{text}", None, {}),
        ("GET", f"{place}?labelSelector=a%3D{text}", None, {}),
        ("GET", f"{place}?{text}=1", None, {}),
        ("GET", f"/{text}", None, {}),
        ("GET", f"/apis/{text}/v1/x", None, {}),
        ("GET", f"{place}?fieldSelector=metadata.name%3D{text}", None, {}),
        ("DELETE", f"{place}?labelSelector=a%3D{text}", None, {}),
        ("GET", place, None, {"User-Agent": text}),
        ("GET", place, None, {"X-Anything": text, f"X-{text}": "1", "Kubectl-Command": f"kubectl {text}"}),
        ("GET", place, None, {"Host": f"{text.replace('.', '-')}.example"}),
        ("GET", place, None, {"Accept": f"application/json;as={text}"}),
        ("POST", place, {"metadata": {"name": text}}, {}),
        ("POST", place, {"metadata": {"name": "c1", "annotations": {text: "1", "b": text}}}, {}),
        ("POST", place, {"metadata": {"name": "c2"}, "data": {"x": text, text: "1"}}, {"User-Agent": text}),
        ("POST", f"{place}?fieldManager={text}", a_map("c3", base64.b64encode(canary).decode()), {}),
        ("POST", secrets, {"metadata": {"name": "c4"}, "stringData": {"x": text}}, {}),
        ("POST", place, text.encode(), {"Content-Type": "application/json"}),
        ("POST", place, a_map("c5"), {"Content-Type": f"application/{text}"}),
        ("PUT", f"{place}/note-0", {"metadata": {"name": "note-0", "resourceVersion": text}}, {}),
        ("DELETE", f"{place}/c1", None, {}),
        ("DELETE", f"{place}/c2", None, {}),
        ("DELETE", f"{place}/c3", None, {}),
        ("DELETE", f"{secrets}/c4", None, {}),
    ]  # fmt: skip
    for method, path, body, headers in tries:
        answer = stage.request(method, path, body=body, headers=headers)
        assert answer.status, (method, path)
    patch = json.dumps({"metadata": {"labels": {"a": text}}, "data": {"y": text}}).encode()
    for patch_type in ("merge-patch", "strategic-merge-patch"):
        headers = {"Content-Type": f"application/{patch_type}+json"}
        stage.request("PATCH", f"{place}/note-1", body=patch, headers=headers)
    applied = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "applied"}, "stringData": {"x": text}}
    stage.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(applied), code=None)
    stage.kubectl("delete", "secret", "applied", "-n", namespace, code=None)
    stage.kubectl("get", "pods", "-n", namespace, "--as", text, code=None)
    context = ssl.create_default_context(cafile=stage.gateway.ca_file)
    context.check_hostname = False
    with contextlib.suppress(ssl.SSLError, OSError):
        raw = socket.create_connection(("127.0.0.1", stage.gateway.port), 5)
        with context.wrap_socket(raw, server_hostname=f"{text.replace('.', '-')[:60]}.example") as tls:
            tls.sendall(f"GET {place} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {stage.token}\r\n\r\n".encode())
            tls.recv(1000)
    await typed(stage, canary)
    end = f"end-{uuid.uuid4().hex[:8]}"
    stage.request("GET", f"{place}/{end}")
    stage.wait_for(lambda e: e.get("objectRef", {}).get("name") == end)
    await asyncio.sleep(1.5)  # what streams hold back is written within a second
    found = everything(stage.root)
    seen = [found[at - 300 : at + 100] for spelling in canaries.spellings(canary) if (at := found.find(spelling)) >= 0]
    assert seen == []


# Many, large, and gone in the middle


def went_up(stage, position, namespace):
    """The ids of what the agent made, as the API server wrote them down."""
    return {
        e["auditID"]
        for e in stage.cluster.audit_events(position)
        if e["verb"] == "create" and e.get("objectRef", {}).get("namespace") == namespace
        and e.get("impersonatedUser", e["user"])["username"] == AGENT
    }  # fmt: skip


def test_many_writers_and_large_bodies(stage, namespace):
    position = stage.cluster.audit_position()

    def write(number):
        large = number % 10 == 0
        name = f"many-{number}"
        body = a_map(name, "y" * (2_900_000 if large else 100))
        return stage.request("POST", maps(namespace), body=body, seconds=60).status

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        codes = list(pool.map(write, range(120)))
    assert codes.count(201) == 108
    assert not {0, 503} & set(codes)
    stage.wait_for(lambda e: "many-119" in json.dumps(e.get("requestObject", "")))
    went = went_up(stage, position, namespace)
    assert len(went) >= 108
    assert went <= {e["auditID"] for e in stage.events()}
    code, text = run(verify, stage.root)
    assert code == 0, text


async def test_clients_that_leave_while_their_record_is_written(stage, namespace):
    position = stage.cluster.audit_position()
    header = (("authorization", f"Bearer {stage.token}"), ("content-type", "application/json"))
    for round_ in range(5):
        async with http2.connect(stage.gateway.port, stage.gateway.ca_file) as peer:
            for number in range(10):
                body = json.dumps(a_map(f"left-{round_}-{number}")).encode()
                peer.start(maps(namespace), "POST", header, body)
            await asyncio.sleep(0.004 * round_)
            for sid in list(peer.answers):
                with contextlib.suppress(Exception):  # it was answered and is over
                    peer.connection.reset_stream(sid)
            peer.flush()
            await peer.writer.drain()
    answer = await asyncio.to_thread(stage.request, "POST", maps(namespace), body=a_map("left-last"))
    assert answer.status == 201
    await asyncio.sleep(0.5)
    went = went_up(stage, position, namespace)
    assert any("left-last" in json.dumps(e.get("requestObject", "")) for e in stage.events())
    assert went
    assert went <= {e["auditID"] for e in stage.events()}
    code, text = run(verify, stage.root)
    assert code == 0, text


# A disk that is full, and a folder that takes nothing


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir(mode=0o700)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("a small file system cannot be mounted here (it takes root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.parametrize("strict", [False, True], ids=["reads pass", "strict"])
def test_a_full_disk(controlplane, gateway_kubeconfig, tmp_path, namespace, small_disk, strict):
    options = ["--", "--set", "tollgate_record_reserve=0", "--set", f"tollgate_record_strict={str(strict).lower()}"]
    arguments = ["--recordings", str(small_disk), *options]
    # Reads go on while the disk takes nothing; strict, the records of refusals are lost.
    with running(tmp_path, gateway_kubeconfig, controlplane, *arguments, recording="broken") as stage:
        path = maps(namespace)
        assert stage.request("POST", path, body=a_map("before")).status == 201
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        answer = until(
            lambda: (a := stage.request("POST", path, body=a_map(f"f-{uuid.uuid4()}", "y" * 5000))).status == 503 and a
        )
        assert answer.reason == "not-recorded"
        wanted = 503 if strict else 200
        until(lambda: stage.request("GET", path).status == wanted)
        assert stage.request("GET", path).status == wanted
        (small_disk / "filler").unlink()
        until(lambda: stage.request("POST", path, body=a_map(f"after-{uuid.uuid4()}")).status == 201)
        until(lambda: stage.request("GET", path).status == 200)
        assert "recording works again" in stage.gateway.log
        stage.gateway.stop()
        code, text = run(verify, small_disk)
        assert code == 0, text


def immutable(root, on):
    """As root a mode stops nobody; this does."""
    paths = [str(path) for path in [root, *root.rglob("*")]]
    return subprocess.run(["chattr", "+i" if on else "-i", *paths], capture_output=True).returncode == 0


def test_a_folder_that_takes_nothing_any_more(controlplane, gateway_kubeconfig, tmp_path, namespace):
    options = ["--", "--set", "tollgate_record_strict=true"]
    # The records of refusals are lost, and that of the read which finds out.
    with running(tmp_path, gateway_kubeconfig, controlplane, *options, recording="broken") as stage:
        path = maps(namespace)
        assert stage.request("POST", path, body=a_map("before")).status == 201
        try:
            if not shutil.which("chattr") or not immutable(stage.root, True):
                pytest.skip("files cannot be made immutable on this file system")
            until(lambda: stage.request("POST", path, body=a_map(f"ro-{uuid.uuid4()}")).status == 503)
            until(lambda: stage.request("GET", path).status == 503)
        finally:
            immutable(stage.root, False)
        until(lambda: stage.request("POST", path, body=a_map(f"rw-{uuid.uuid4()}")).status == 201)
        until(lambda: stage.request("GET", path).status == 200)
    code, text = run(verify, stage.root)
    assert code == 0, text


# Its end, and its script loaded again


def test_the_script_is_loaded_again_and_recording_goes_on(controlplane, gateway_kubeconfig, tmp_path, namespace):
    root = tmp_path / "tree"
    shutil.copytree(gateway.ROOT / "addons", root / "addons", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "policies").symlink_to(gateway.ROOT / "policies")
    with running(tmp_path / "gateway", gateway_kubeconfig, controlplane, root=root) as stage:
        path = maps(namespace)
        assert stage.request("POST", path, body=a_map("reload-0")).status == 201
        for number in range(1, 3):
            said = stage.gateway.log.count("Loading script")
            script = root / "addons" / "record.py"
            script.write_text(script.read_text() + "\n")
            until(lambda said=said: stage.gateway.log.count("Loading script") > said)
            name = f"reload-{number}"
            until(lambda name=name: stage.request("POST", path, body=a_map(name)).status in (201, 409))
        assert "Traceback" not in stage.gateway.log
        names = {e.get("objectRef", {}).get("name") for e in stage.events() if e["stage"] == "ResponseComplete"}
        stage.gateway.stop()
        names = {e["requestObject"]["metadata"]["name"] for e in stage.events() if "requestObject" in e}
    assert {"reload-0", "reload-1", "reload-2"} <= names
    code, text = run(verify, stage.root)
    assert code == 0, text


@pytest.fixture(scope="module")
def ended(controlplane, gateway_kubeconfig, tmp_path_factory):
    """A recording that a gateway has left behind: two identities, a stream, changes; and its anchor."""
    folder = tmp_path_factory.mktemp("ended")
    with running(folder, gateway_kubeconfig, controlplane) as stage:
        pod = controlplane.pods("shop", "")[0]
        for number in range(4):
            stage.request("POST", maps("shop"), body=a_map(f"ended-{number}"))
        assert stage.kubectl("exec", pod, "-n", "shop", "--", "echo", "hello").returncode == 0
        stage.token = controlplane.token("people", "engineer")
        for number in range(4):
            assert stage.request("DELETE", f"{maps('shop')}/ended-{number}").status == 200
        stage.gateway.process.terminate()
        assert stage.gateway.process.wait(20) == 0
    return folder


def sessions_of(root):
    return {path.split("/")[1]: root / path for path in recordings.find_sessions(root)}


def agent_of(root):
    return next(folder for name, folder in sessions_of(root).items() if "ci-agent" in name)


def other_of(root):
    return next(folder for name, folder in sessions_of(root).items() if "engineer" in name)


def test_sigterm_closes_and_signs_everything(ended):
    report = verify.check(ended / "recordings")
    assert report.wrong == []
    assert len(report.sessions) == 2
    assert all(one.closed and one.events and one.proven == one.events for one in report.sessions)


def lines_of(folder):
    return (folder / EVENTS).read_bytes().split(b"\n")[:-1]


def put(folder, found):
    (folder / EVENTS).write_bytes(b"".join(line + b"\n" for line in found))


def change_lines(change):
    def on(root):
        folder = agent_of(root)
        put(folder, change(lines_of(folder)))

    return on


def swap(found):
    return [found[0], found[2], found[1], *found[3:]]


def forge(found):
    link = chain.read_line(found[1])[1]
    made = chain.link({"auditID": "forged"}, uid=link.uid, sequence=link.sequence, previous=link.previous)
    return [found[0], made, *found[1:]]


def append(found):
    link = chain.read_line(found[-1])[1]
    return [*found, chain.link({"auditID": "forged"}, uid=link.uid, sequence=link.sequence + 1,
                               previous=chain.digest(found[-1]))]  # fmt: skip


def rewrite_from(at):
    def on(root):
        folder = agent_of(root)
        found = lines_of(folder)
        found[at] = found[at].replace(b"ended-", b"other-").replace(b"hello", b"hallo")
        found[at] = found[at].replace(b'"verb":"create"', b'"verb":"update"')
        uid = chain.read_line(found[0])[1].uid
        put(folder, rechain(found, uid, str(folder.relative_to(root))))

    return on


def on_bytes(name, change, whose=agent_of):
    def on(root):
        path = next(whose(root).glob(name))
        path.write_bytes(change(path.read_bytes()))

    return on


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def gone(name):
    return lambda root: next(agent_of(root).glob(name)).unlink()


def index(**changed):
    return on_bytes(INDEX, lambda data: json.dumps({**json.loads(data), **changed}).encode())


def folder_checkpoints(change):
    def on(root):
        path = root / CHECKPOINTS
        path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().split(b"\n")[:-1])))

    return on


def moved(root):
    folder = other_of(root)
    folder.rename(agent_of(root).parent / folder.name)


def exchanged(name):
    def on(root):
        one, other = agent_of(root) / name, other_of(root) / name
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)

    return on


def added(root):
    shutil.copytree(other_of(root), other_of(root).parent / "23-59-59-abcdef01")


def linked(root):
    path = agent_of(root) / FLOWS
    shutil.copy(path, root.parent / "elsewhere")
    path.write_bytes(flip(path.read_bytes()))


TAMPERED = [
    pytest.param(change_lines(lambda f: [f[0].replace(b'"verb":"create"', b'"verb":"get"'), *f[1:]]), id="verb edited"),
    pytest.param(change_lines(lambda f: [line.replace(b"ci-agent", b"somebody") for line in f]), id="name edited"),
    pytest.param(change_lines(lambda f: [f[0].replace(b'"allow"', b'"deny"'), *f[1:]]), id="verdict edited"),
    pytest.param(change_lines(lambda f: [*f[:-1], f[-1].replace(b'":', b'": ', 1)]), id="a blank"),
    pytest.param(change_lines(lambda f: f[1:]), id="first line gone"),
    pytest.param(change_lines(lambda f: [*f[:2], *f[3:]]), id="a line gone"),
    pytest.param(change_lines(lambda f: f[:-1]), id="last line gone"),
    pytest.param(change_lines(lambda f: []), id="all lines gone"),
    pytest.param(change_lines(swap), id="two lines exchanged"),
    pytest.param(change_lines(lambda f: [*f[:2], f[1], *f[2:]]), id="a line twice"),
    pytest.param(change_lines(forge), id="a line forged in between"),
    pytest.param(change_lines(append), id="a line forged at the end"),
    pytest.param(rewrite_from(0), id="chained anew from the first"),
    pytest.param(on_bytes(EVENTS, lambda d: d[:-30]), id="cut in a line"),
    pytest.param(on_bytes(EVENTS, flip), id="a bit of an event"),
    pytest.param(on_bytes(FLOWS, flip), id="a bit of an answer's flow"),
    pytest.param(on_bytes(FLOWS, lambda d: d[:-1]), id="flows cut"),
    pytest.param(on_bytes(FLOWS, lambda d: d + b"0:~"), id="flows with more"),
    pytest.param(on_bytes(REQUESTS, flip), id="a bit of a request's flow"),
    pytest.param(on_bytes(REQUESTS, lambda d: b""), id="requests emptied"),
    pytest.param(on_bytes("*.cast", flip), id="a bit of an exec"),
    pytest.param(on_bytes("*.cast", lambda d: d[:-5]), id="an exec cut"),
    pytest.param(gone("*.cast"), id="an exec gone"),
    pytest.param(gone(EVENTS), id="events gone"),
    pytest.param(gone(FLOWS), id="flows gone"),
    pytest.param(index(username="somebody"), id="the index names another"),
    pytest.param(index(events=1), id="the index counts less"),
    pytest.param(lambda root: shutil.rmtree(agent_of(root)), id="a session gone"),
    pytest.param(moved, id="a session under another name"),
    pytest.param(added, id="a session copied"),
    pytest.param(exchanged(EVENTS), id="events of another session"),
    pytest.param(exchanged(FLOWS), id="flows of another session"),
    pytest.param(folder_checkpoints(lambda f: [*f[:1], *f[2:]]), id="a checkpoint gone"),
    pytest.param(folder_checkpoints(lambda f: [*f[:-2], f[-1], f[-2]]), id="checkpoints exchanged"),
    pytest.param(folder_checkpoints(lambda f: [*f[:-1], flip(f[-1])]), id="a bit of a checkpoint"),
    pytest.param(folder_checkpoints(lambda f: f[:-2]), id="last checkpoints gone"),
    pytest.param(lambda root: (root / CHECKPOINTS).unlink(), id="all checkpoints gone"),
]


@pytest.mark.parametrize("tamper", TAMPERED)
def test_tampering_is_found(ended, tmp_path, tamper):
    root = tmp_path / "recordings"
    shutil.copytree(ended / "recordings", root)
    anchor = tmp_path / "anchor"
    shutil.copy(root / CHECKPOINTS, anchor)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert verify.check(root, anchor=anchor).wrong == []
    tamper(root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} != before
    code, text = run(verify, root, "--anchor", anchor, "--key", ended / "state" / "recording.pub")
    assert code, text  # 1, or 2 where nothing is left that could be looked at


# Once more, elsewhere


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    with ControlPlane.start(tmp_path_factory.mktemp("second") / "plane", kwok=False) as plane:
        yield plane


def filled(plane, name):
    with contextlib.suppress(Exception):
        plane.api("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    for number in range(3):
        with contextlib.suppress(Exception):
            plane.api(
                "POST", maps(name), {"metadata": {"name": f"note-{number}"}, "data": {"text": f"number {number}"}}
            )
    body = {"metadata": {"name": "db"}, "stringData": {"password": VALUE.decode()}}
    with contextlib.suppress(Exception):
        plane.api("POST", f"/api/v1/namespaces/{name}/secrets", body)


def names_in(plane, name):
    found = plane.api("GET", maps(name))["items"] + plane.api("GET", f"/api/v1/namespaces/{name}/secrets")["items"]
    return {one["metadata"]["name"] for one in found} - {"kube-root-ca.crt"}


def test_the_incident_once_more_on_another_cluster(controlplane, gateway_kubeconfig, tmp_path, namespace, second):
    """What an assistant did to a namespace is done again elsewhere, from its record alone."""
    role = {
        "metadata": {"name": f"ns-{namespace}"},
        "rules": [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "delete"]}],
    }
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    controlplane.api("POST", f"{rbac}/clusterroles", role)
    controlplane.api("POST", f"{rbac}/clusterrolebindings", {
        "metadata": {"name": f"ns-{namespace}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"ns-{namespace}"},
        "subjects": [{"kind": "User", "name": AGENT, "apiGroup": "rbac.authorization.k8s.io"}],
    })  # fmt: skip
    filled(second, namespace)
    with running(tmp_path, gateway_kubeconfig, controlplane) as stage:
        created = stage.request("POST", maps(namespace), body=a_map("made-by-the-agent"))
        secret = {"metadata": {"name": "made-secret"}, "stringData": {"p": VALUE.decode()}}
        assert stage.request("POST", f"/api/v1/namespaces/{namespace}/secrets", body=secret).status == 201
        assert created.status == 201
        for arguments in (
            ("delete", "configmap", "note-0", "note-1", "--wait=false"),
            ("delete", "secret", "db", "--wait=false"),
            ("delete", "configmap", "never-was"),
        ):
            stage.kubectl(*arguments, "-n", namespace, code=None)
        done = stage.kubectl("delete", "namespace", namespace, "--wait=false")
        assert done.returncode == 0, done.stderr
    (path,) = recordings.find_sessions(stage.root)
    deleted = [
        e
        for e in stage.events()
        if e.get("objectRef", {}).get("resource") == "namespaces" and e["verb"] == "delete"
        and e["stage"] == "RequestReceived"
    ]  # fmt: skip
    images = auditevents.before_of(deleted[0])
    kinds = {(one["kind"], one["metadata"]["name"]) for one in images}
    assert {("Namespace", namespace), ("ConfigMap", "note-2"), ("ConfigMap", "made-by-the-agent")} <= kinds
    assert ("Secret", "made-secret") in kinds
    assert canaries.seen_in(everything(stage.root), [VALUE]) == []
    out = io.StringIO()
    assert show.main([str(stage.root / path), "--recordings", str(stage.root)], out) == 0
    assert "kubectl delete namespace" in out.getvalue()
    before = names_in(second, namespace)
    code, text = run(replay, path, "--recordings", stage.root, "--onto", second.admin_kubeconfig)
    assert names_in(second, namespace) == before, text  # a dry run changes nothing
    code, text = run(replay, path, "--recordings", stage.root, "--onto", second.admin_kubeconfig, "--for-real")
    assert code == 0, text
    assert "it holds a masked value" in text
    assert " 0 differed" in text
    gone = until(lambda: second.request("GET", f"/api/v1/namespaces/{namespace}")[0] == 404, 40)
    assert gone
    sent = [e for e in second.audit_events() if e.get("objectRef", {}).get("name") == "made-secret"]
    assert not [e for e in sent if e["verb"] == "create"]
