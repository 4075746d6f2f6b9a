"""Recordings of the real thing: kubectl through the gateway onto a real API server, read back by our own commands."""

import base64
import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from addons.cli import replay, sessions, show, verify
from addons.core import auditevents
from addons.net import recordings
from tests import canaries
from tests.cluster.controlplane import ControlPlane
from tests.e2e import client, gateway, policies

pytestmark = pytest.mark.e2e

AGENT = "tollgate:system:serviceaccount:agents:ci-agent"
VALUE = b"correct-horse-battery-9"
HIDDEN = b"only-by-the-rule-of-its-kind-4711"
# Everything is allowed; what is not by default is on record, and a field of ours is masked.
POLICY = (
    policies.EVERYTHING
    + """\
- name: looked-at
  action: allow
  match: {verbs: [get], resources: [configmaps], resourceNames: [note-2]}
  record: full
mask:
- {name: ours, match: {resources: [configmaps]}, fields: [data.hidden], mask: always}
"""
)


class Stage:
    """A gateway with a permissive policy, and its recordings."""

    def __init__(self, one, cluster):
        self.gateway, self.cluster = one, cluster
        self.root = one.folder / "recordings"
        self.token = cluster.token("agents", "ci-agent")
        self.config = one.kubeconfig("agent", self.token, "shop")

    def kubectl(self, *args, code=0, **more):
        """code: what it must exit with; None: whatever."""
        done = self.cluster.run_kubectl(*args, kubeconfig=self.config, check=False, **more)
        assert code in (None, done.returncode), done.stderr
        return done

    def request(self, method, path, **more):
        return client.request(self.gateway.port, self.gateway.ca_file, method, path, token=self.token, **more)

    def events(self, namespace=""):
        """All that is written, of all sessions, in order of each."""
        folders = recordings.collect([self.root]) if any(self.root.rglob("events.jsonl")) else []
        found = [event for folder in folders for event in recordings.read_events(folder).events]
        return [e for e in found if not namespace or e.get("objectRef", {}).get("namespace") == namespace]

    def wait_for(self, wanted):
        """The first event for which it is true."""
        return until(lambda: next(filter(wanted, self.events()), None), self.gateway)

    def session_of(self, namespace):
        """The session in which something was done in this namespace."""
        for folder in recordings.collect([self.root]):
            if any(e.get("objectRef", {}).get("namespace") == namespace for e in recordings.read_events(folder).events):
                return folder.path
        raise AssertionError("no session has it")

    def create(self, path, seconds=15):
        """A small object of a new name; the code, and the name."""
        name = f"n-{uuid.uuid4().hex[:8]}"
        body = {"metadata": {"name": name}, "data": {"x": "y" * 200}}
        return self.request("POST", path, body=body, seconds=seconds).status, name


def until(check, one, seconds=15):
    """What it returns, once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.05)
    raise AssertionError(f"it did not come to that: {one.log[-3000:]}")


def start(folder, gateway_kubeconfig, *more, **others):
    (folder / "policy.yaml").write_text(POLICY)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml"), *more]
    return gateway.running(folder, *arguments, **others)


@pytest.fixture(scope="module")
def stage(controlplane, gateway_kubeconfig, tmp_path_factory):
    with start(tmp_path_factory.mktemp("recording"), gateway_kubeconfig) as one:
        yield Stage(one, controlplane)


def fill(cluster, name):
    """A namespace with things in it, some of them secret."""
    cluster.api("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    inside = f"/api/v1/namespaces/{name}"
    for number in range(3):
        data = {"text": f"number {number}", "hidden": HIDDEN.decode()}
        body = {"metadata": {"name": f"note-{number}", "labels": {"app": "notes"}}, "data": data}
        cluster.api("POST", f"{inside}/configmaps", body)
    body = {"metadata": {"name": "db"}, "stringData": {"password": VALUE.decode()}}
    cluster.api("POST", f"{inside}/secrets", body)
    pod = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "web:1"}]}}
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": pod}
    cluster.api("POST", f"/apis/apps/v1/namespaces/{name}/deployments", {"metadata": {"name": "web"}, "spec": spec})


@pytest.fixture
def namespace(controlplane):
    name = f"rec-{uuid.uuid4().hex[:8]}"
    fill(controlplane, name)
    yield name
    controlplane.request("DELETE", f"/api/v1/namespaces/{name}")  # which a test may have done


def run(command, *arguments):
    out = io.StringIO()
    return command.main([str(one) for one in arguments], out), out.getvalue()


def everything(root):
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


def secrets_in(root):
    return canaries.seen_in(everything(root), [VALUE, HIDDEN])


def named(images):
    return {f"{one['kind']}/{one['metadata']['name']}" for one in images}


# ----- the incident -----


def wipe(stage, namespace):
    """An assistant tidies up."""
    stage.kubectl("get", "all", "-n", namespace)
    stage.kubectl("delete", "deployment", "web", "-n", namespace)
    stage.kubectl("delete", "configmaps", "-l", "app=notes", "-n", namespace)
    stage.kubectl("delete", "secret", "db", "-n", namespace)
    stage.kubectl("delete", "namespace", namespace, "--wait=false")


def test_the_incident(controlplane, gateway_kubeconfig, tmp_path, tmp_path_factory, namespace):
    """Somebody who was not there says who, by which token, what, in which order, and what is lost; and repeats it."""
    with start(tmp_path, gateway_kubeconfig) as one:
        wipe(assistant := Stage(one, controlplane), namespace)
    # The gateway is gone. What follows reads files.
    root = tmp_path / "recordings"
    code, table = run(sessions, "--recordings", root)
    assert code == 0
    assert AGENT in table
    (folder,) = (f.path for f in recordings.collect([root]))
    code, timeline = run(show, folder, "--recordings", root)
    assert code == 0, timeline
    commands = [
        f"list pods in {namespace}",
        "kubectl delete deployments.apps web",
        "kubectl delete configmaps -l app=notes",
        "kubectl delete secrets db",
        f"kubectl delete namespaces {namespace}",
    ]
    places = [timeline.find(command) for command in commands]
    assert -1 not in places, timeline
    assert places == sorted(places)
    events = recordings.read_events(recordings.DiskFolder(folder)).events
    deletes = [e for e in events if e["verb"] == "delete" and e["stage"] == "RequestReceived"]
    order = [e["objectRef"]["name"] for e in deletes]
    assert order == ["web", "note-0", "note-1", "note-2", "db", namespace]
    assert {e["user"]["username"] for e in deletes} == {AGENT}
    (token,) = {auditevents.notes_of(e)[auditevents.CREDENTIAL] for e in deletes}
    assert token == claims_of(assistant.token)["jti"]
    lost = {name: auditevents.before_of(event) for name, event in zip(order, deletes, strict=True)}
    assert lost["web"][0]["spec"]["template"]["spec"]["containers"][0]["image"] == "web:1"
    assert lost["note-1"][0]["data"]["text"] == "number 1"
    assert secrets_in(root) == []
    code, said = run(verify, root)
    assert code == 0, said
    replayed(folder, root, tmp_path_factory.mktemp("other"), namespace)


def claims_of(token):
    middle = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))


def replayed(folder, root, other, namespace):
    """The same sequence on a second control plane: first as a dry run, then for real."""
    with ControlPlane.start(other / "plane", kwok=False) as second:
        fill(second, namespace)
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        code, said = run(replay, folder, "--recordings", root, "--onto", second.admin_kubeconfig)
        # What was deleted then is still there for the reads after it; all else is as it was.
        assert code == 1, said
        assert f" {said.count('404 then, 200 now')} differed, 0 not sent" in said
        assert len(second.api("GET", path)["items"]) >= 3
        code, said = run(replay, folder, "--recordings", root, "--onto", second.admin_kubeconfig, "--for-real")
        assert code == 0, said
        assert "0 differed" in said
        left = {item["metadata"]["name"] for item in second.api("GET", path)["items"]}
        assert left.isdisjoint({"note-0", "note-1", "note-2"})
        assert second.api("GET", f"/api/v1/namespaces/{namespace}")["metadata"]["deletionTimestamp"]


# ----- what is written -----


def test_ids_are_those_of_the_api_server(stage, namespace):
    stage.kubectl("delete", "configmap", "note-0", "-n", namespace)
    event = stage.wait_for(lambda e: e["verb"] == "delete" and e["objectRef"].get("namespace") == namespace)
    theirs = stage.cluster.wait_for_audit(lambda e: e["auditID"] == event["auditID"])
    assert theirs["verb"] == "delete"


@pytest.mark.parametrize(
    ("method", "path", "images"),
    [
        pytest.param("DELETE", "configmaps?labelSelector=app%3Dnotes", {"note-0", "note-1", "note-2"}, id="collection"),
        pytest.param("DELETE", "secrets/db", {"db"}, id="secret"),
        pytest.param("PATCH", "configmaps/note-1", {"note-1"}, id="patch"),
    ],
)
def test_what_was_there_before(stage, namespace, method, path, images):
    target = f"/api/v1/namespaces/{namespace}/{path}"
    more = {"body": b'{"data":{"text":"new"}}', "headers": {"Content-Type": "application/merge-patch+json"}}
    assert stage.request(method, target, **(more if method == "PATCH" else {})).status == 200
    event = stage.wait_for(lambda e: e["requestURI"] == target and e["stage"] == "RequestReceived")
    found = auditevents.before_of(event)
    assert {one["metadata"]["name"] for one in found} == images
    assert all(one.get("data", {}).get("text") != "new" for one in found)
    assert auditevents.TRUNCATED not in auditevents.notes_of(event)
    assert secrets_in(stage.root) == []


def test_what_was_in_a_namespace(stage, namespace):
    """Masked as each kind is, and without what comes back by itself."""
    made = f"/api/v1/namespaces/{namespace}/pods"
    until(lambda: stage.cluster.api("GET", made)["items"], stage.gateway)
    assert stage.request("DELETE", f"/api/v1/namespaces/{namespace}").status == 200
    event = stage.wait_for(lambda e: e["verb"] == "delete" and e["objectRef"].get("name") == namespace)
    found = auditevents.before_of(event)
    assert {f"Namespace/{namespace}", "ConfigMap/note-1", "Secret/db", "Deployment/web"} <= named(found)
    assert not any(one["kind"] in ("Pod", "ReplicaSet") for one in found)
    note = next(one for one in found if one["metadata"]["name"] == "note-1")
    assert note["data"]["text"] == "number 1"
    assert note["data"]["hidden"].startswith("**masked:")
    assert secrets_in(stage.root) == []


def test_what_cannot_be_read_is_said(stage):
    """Who deletes what is not there has no image of it, and is not stopped."""
    target = "/api/v1/namespaces/shop/configmaps/never-there"
    assert stage.request("DELETE", target).status == 404
    event = stage.wait_for(lambda e: e["requestURI"] == target)
    assert auditevents.before_of(event) == []


def test_a_rule_says_how_much(stage, namespace):
    for name in ("note-1", "note-2"):
        assert stage.request("GET", f"/api/v1/namespaces/{namespace}/configmaps/{name}").status == 200
    levels = {}
    for name in ("note-1", "note-2"):
        levels[name] = stage.wait_for(
            lambda e, name=name: e["verb"] == "get" and e["requestURI"].endswith(f"{namespace}/configmaps/{name}")
        )
    assert levels["note-1"]["level"] == "Metadata"
    assert "responseObject" not in levels["note-1"]
    assert levels["note-2"]["level"] == "RequestResponse"
    assert levels["note-2"]["responseObject"]["data"]["text"] == "number 2"


def test_what_was_refused_is_on_record_and_nobody_is_counted(stage):
    answer = stage.request("POST", "/api/v1/namespaces/shop/configmaps", body=b'{"a": 1, "a": 2}')
    nobody = client.request(stage.gateway.port, stage.gateway.ca_file, "GET", "/api/v1/pods", token="wrong")
    assert (answer.status, nobody.status) == (400, 401)
    stage.wait_for(lambda e: auditevents.notes_of(e).get(auditevents.REFUSED_BY) == "tollgate_classify")
    refused = [e for e in stage.events() if auditevents.notes_of(e).get(auditevents.REFUSED_BY)]
    assert all(e["user"]["username"] != "system:anonymous" for e in refused)


def test_secrets_are_nowhere(stage, namespace):
    """Of every shape, made, changed, listed and deleted, in every spelling."""
    path = f"/api/v1/namespaces/{namespace}/secrets"
    for number, value in enumerate(canaries.TEXTS.values()):
        made = stage.request("POST", path, body={"metadata": {"name": f"c-{number}"}, "stringData": {"a": value}})
        assert made.status == 201
    stage.kubectl("create", "secret", "generic", "s2", f"--from-literal=p={VALUE.decode()}", "-n", namespace)
    stage.kubectl("get", "secrets", "-o", "yaml", "-n", namespace)
    stage.kubectl("delete", "secrets", "--all", "-n", namespace)
    stage.wait_for(
        lambda e: e["stage"] == "ResponseComplete" and e["verb"] == "delete" and e["objectRef"].get("name") == "s2"
    )
    assert (
        canaries.seen_in(everything(stage.root), [VALUE, HIDDEN, *(v.encode() for v in canaries.TEXTS.values())]) == []
    )
    # Nor the credentials: the client's and the gateway's own.
    for token in (stage.token, json.loads(Path(stage.config).read_text())["users"][0]["user"]["token"]):
        assert token.rpartition(".")[2].encode() not in everything(stage.root)


def test_an_exec_is_an_asciicast(stage, controlplane):
    pod = controlplane.pods("shop", "")[0]
    stage.kubectl("exec", pod, "-n", "shop", "--", "sh", "-c", "echo hello; echo oops >&2")
    event = stage.wait_for(
        lambda e: e.get("objectRef", {}).get("subresource") == "exec" and e["stage"] == "ResponseComplete"
    )
    (file,) = stage.root.rglob(f"exec-{event['auditID']}.cast")
    header, *lines = (json.loads(line) for line in file.read_text().splitlines())
    # https://docs.asciinema.org/manual/asciicast/v2/: what a player needs.
    assert header["version"] == 2
    assert isinstance(header["width"], int)
    assert isinstance(header["height"], int)
    assert all(isinstance(at, float | int) and kind in "oimr" and isinstance(data, str) for at, kind, data in lines)
    assert [line[0] for line in lines] == sorted(line[0] for line in lines)
    text = "".join(data for _, kind, data in lines if kind == "o")
    assert "hello" in text
    assert "oops" in text


# ----- what reads it -----


def test_mitmdump_reads_it(stage, namespace):
    stage.kubectl("delete", "configmap", "note-0", "-n", namespace)
    stage.wait_for(
        lambda e: (
            e["stage"] == "ResponseComplete" and e["verb"] == "delete" and e["objectRef"]["namespace"] == namespace
        )
    )
    program = Path(sys.executable).with_name("mitmdump")
    seen = ""
    for flows in stage.root.rglob("*.mitm"):
        done = subprocess.run(
            [program, "-nr", flows, "--set", "flow_detail=2", "--set", f"confdir={stage.gateway.folder / 'mitm'}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        seen += done.stdout
    assert f"/api/v1/namespaces/{namespace}/configmaps/note-0" in seen
    assert "DELETE" in seen


def test_verify(stage, namespace, tmp_path):
    stage.kubectl("delete", "configmap", "note-0", "-n", namespace)
    code, text = run(verify, stage.root)
    assert code == 0, text
    assert "not proven against the holder of the key" in text
    shutil.copytree(stage.root, copy := tmp_path / "copy")
    file = copy / stage.session_of(namespace).relative_to(stage.root) / "events.jsonl"
    file.write_bytes(file.read_bytes().replace(b"ci-agent", b"ci-angel", 1))
    code, text = run(verify, copy)
    assert code == 1, text
    assert "events.jsonl" in text


# ----- when it cannot be written -----


def test_two_gateways_on_one_folder_are_refused(stage, gateway_kubeconfig, tmp_path):
    (tmp_path / "policy.yaml").write_text(POLICY)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(tmp_path / "policy.yaml"),
                 "--recordings", str(stage.root)]  # fmt: skip
    process = gateway.launch(tmp_path, arguments, port=gateway.free_port())
    assert process.wait(30) != 0
    log = (tmp_path / "gateway.log").read_text()
    assert "recordings" in log
    assert "Traceback" not in log


def test_a_quota_stops_writes_and_not_reads(controlplane, gateway_kubeconfig, tmp_path, namespace):
    # Reads go on without a record once its quota is used up.
    with start(tmp_path, gateway_kubeconfig, "--", "--set", "tollgate_record_quota=20k", recording="broken") as one:
        stage = Stage(one, controlplane)
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        made = [stage.create(path) for _ in range(30)]
        assert made[0][0] == 201
        assert made[-1][0] == 503
        assert stage.request("GET", path).status == 200
        there = {i["metadata"]["name"] for i in controlplane.api("GET", path)["items"]}
        assert {name for code, name in made if code == 503}.isdisjoint(there)


@contextlib.contextmanager
def small_disk(folder):
    """A disk of 16 MiB; `remount` takes mount's own options."""

    def mount(*arguments):
        return subprocess.run(["mount", *arguments], capture_output=True, timeout=10, check=False).returncode == 0

    folder.mkdir(parents=True)
    if os.getuid() or not mount("-t", "tmpfs", "-o", "size=16m", "none", str(folder)):
        pytest.skip("nothing can be mounted here")
    try:
        yield lambda options: mount("-o", f"remount,{options}", str(folder))
    finally:
        subprocess.run(["umount", "-l", str(folder)], timeout=10, check=True)


def test_a_full_disk(controlplane, gateway_kubeconfig, tmp_path, namespace):
    """Writes stop, reads do not; and it goes on by itself."""
    root, path = tmp_path / "recordings", f"/api/v1/namespaces/{namespace}/configmaps"
    with (
        small_disk(root),
        # Reads go on while the disk takes nothing.
        start(tmp_path, gateway_kubeconfig, "--", "--set", "tollgate_record_reserve=0", recording="broken") as one,
    ):
        stage = Stage(one, controlplane)
        assert stage.create(path)[0] == 201
        fill_up(root / "ballast")
        until(lambda: stage.create(path)[0] == 503, one)  # the last page of a file may have had room
        refused = [stage.create(path) for _ in range(5)]
        assert {code for code, _ in refused} == {503}
        assert stage.request("GET", path).status == 200
        (root / "ballast").unlink()
        until(lambda: stage.create(path)[0] == 201, one)
        there = {item["metadata"]["name"] for item in controlplane.api("GET", path)["items"]}
        assert there.isdisjoint(name for _, name in refused)
        one.stop()
        code, text = run(verify, root)
        assert code == 0, text
        assert "Traceback" not in one.log


def test_a_read_only_disk(gateway_kubeconfig, tmp_path):
    """Of which the system says so at the start; nothing can be made read-only under a file that is being written."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    with small_disk(tmp_path / "recordings") as remount:
        assert remount("ro")
        arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(tmp_path / "policy.yaml")]
        assert gateway.launch(tmp_path, arguments, port=gateway.free_port()).wait(30) != 0
        log = (tmp_path / "gateway.log").read_text()
        assert f"{tmp_path / 'recordings'} cannot be" in log
        assert "Read-only file system" in log
        assert "Traceback" not in log


def fill_up(file):
    with file.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(b"\0" * 4096)


def test_no_file_may_grow(controlplane, gateway_kubeconfig, tmp_path, namespace):
    """The same where nothing can be mounted; and reads stop too, if that is wanted."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    # The records of refusals are lost, and that of the read which finds out.
    with start(tmp_path, gateway_kubeconfig, "--", "--set", "tollgate_record_strict=true", recording="broken") as one:
        stage = Stage(one, controlplane)
        big = {"metadata": {"name": "big"}, "data": {"x": "words of no weight " * 10_000}}
        assert stage.request("POST", path, body=big).status == 201
        assert stage.request("GET", path).status == 200
        _, hard = resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE)
        # More than the log and the state have, less than the recording has by now.
        resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE, (100_000, hard))
        code, name = stage.create(path)
        assert code == 503
        assert stage.request("GET", path).status == 503
        resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        until(lambda: stage.create(path)[0] == 201, one)
        until(lambda: stage.request("GET", path).status == 200, one)
        assert name not in {item["metadata"]["name"] for item in controlplane.api("GET", path)["items"]}
    code, text = run(verify, tmp_path / "recordings")
    assert code == 0, text


# ----- kill -9 -----


# A disk that takes its time: what goes up before it is written is lost at every kill, and not at one in a thousand.
SLOW = """

import time
quick = File.append
def slow(self, data):
    time.sleep(0.01)
    quick(self, data)
File.append = slow
"""


@pytest.fixture
def slow_disk(tmp_path):
    """The gateway's own code in a folder of its own, on such a disk."""
    root = tmp_path / "code"
    shutil.copytree(gateway.ROOT / "addons", root / "addons", ignore=shutil.ignore_patterns("__pycache__"))
    with (root / "addons" / "net" / "recordfiles.py").open("a") as file:
        file.write(SLOW)
    return root


def test_kill_loses_nothing_that_went_up(controlplane, gateway_kubeconfig, tmp_path, namespace, slow_disk):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    sent = 0
    for round_ in range(3):
        position = controlplane.audit_position()
        with start(tmp_path, gateway_kubeconfig, root=slow_disk) as one:
            stage = Stage(one, controlplane)
            stop = threading.Event()
            done = threading.Semaphore(0)

            def load(stage=stage, stop=stop, done=done):
                while not stop.is_set():
                    code, name = stage.create(path, seconds=2)
                    if code:
                        stage.request("DELETE", f"{path}/{name}", seconds=2)
                        done.release()

            workers = [threading.Thread(target=load) for _ in range(8)]
            for worker in workers:
                worker.start()
            for _ in range(20 + 5 * round_):  # so that each kill comes at another point
                assert done.acquire(timeout=15), one.log[-2000:]
            one.kill()
            stop.set()
            for worker in workers:
                worker.join(10)
        recorded = {event["auditID"] for event in stage.events()}
        went = ids_of(controlplane, position, namespace)
        sent += len(went)
        assert went <= recorded
    assert sent > 100
    code, text = run(verify, tmp_path / "recordings")
    assert code == 0, text


def ids_of(controlplane, position, namespace):
    """What reached the API server from the agent. It writes its log a moment later, so until it rests."""
    seen, now = -1, set()
    while len(now) != seen:
        seen = len(now)
        time.sleep(0.5)
        now = {
            event["auditID"]
            for event in controlplane.audit_events(position)
            if event["verb"] in ("create", "delete")
            and event.get("objectRef", {}).get("namespace") == namespace
            and event.get("impersonatedUser", {}).get("username") == AGENT
        }
    return now
