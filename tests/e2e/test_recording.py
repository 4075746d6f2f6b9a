"""Recordings of the real thing: kubectl through the gateway onto a real API server, read back by our own commands."""

import io
import json
import subprocess
import sys
import threading
import time
import uuid

import pytest

from addons.cli import sessions, show, verify
from addons.core import auditevents
from addons.mitm import flowcopies
from addons.net import recordings
from tests import canaries
from tests.e2e import client, gateway, policies

VALUE = b"correct-horse-battery-9"


class Stage:
    """A gateway with a permissive policy, and its recordings."""

    def __init__(self, one, cluster):
        self.gateway, self.cluster = one, cluster
        self.root = one.folder / "recordings"
        self.token = cluster.token("agents", "ci-agent")
        self.config = one.kubeconfig("agent", self.token, "shop")

    def kubectl(self, *args, **more):
        return self.cluster.run_kubectl(*args, kubeconfig=self.config, check=False, **more)

    def request(self, method, path, **more):
        return client.request(self.gateway.port, self.gateway.ca_file, method, path, token=self.token, **more)

    def events(self):
        """All that is written, of all sessions, in order of each."""
        found = []
        for folder in recordings.collect([self.root]):
            found += recordings.read_events(folder).events
        return found

    def wait_for(self, wanted, seconds=10):
        """The first event for which it is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := next(filter(wanted, self.events()), None):
                return found
            time.sleep(0.05)
        raise AssertionError(f"it is not on record: {self.gateway.log[-2000:]}")


def start(folder, gateway_kubeconfig, *more):
    (folder / "policy.yaml").write_text(policies.EVERYTHING)
    return gateway.running(
        folder, "--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml"), *more
    )


@pytest.fixture(scope="module")
def stage(controlplane, gateway_kubeconfig, tmp_path_factory):
    with start(tmp_path_factory.mktemp("recording"), gateway_kubeconfig) as one:
        yield Stage(one, controlplane)


@pytest.fixture
def namespace(controlplane):
    """A namespace with things in it, one of them secret; the agent may do all there."""
    name = f"rec-{uuid.uuid4().hex[:8]}"
    controlplane.api("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    role = {
        "metadata": {"name": "agent"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [
            {"kind": "User", "name": "tollgate:system:serviceaccount:agents:ci-agent",
             "apiGroup": "rbac.authorization.k8s.io"}
        ],
    }  # fmt: skip
    controlplane.api("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{name}/rolebindings", role)
    for number in range(3):
        body = {"metadata": {"name": f"note-{number}"}, "data": {"text": f"number {number}"}}
        controlplane.api("POST", f"/api/v1/namespaces/{name}/configmaps", body)
    body = {"metadata": {"name": "db"}, "stringData": {"password": VALUE.decode()}}
    controlplane.api("POST", f"/api/v1/namespaces/{name}/secrets", body)
    yield name
    controlplane.request("DELETE", f"/api/v1/namespaces/{name}")  # which a test may have done itself


def run(command, *arguments):
    out = io.StringIO()
    return command.main([str(one) for one in arguments], out), out.getvalue()


def everything(root):
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


def test_the_incident_can_be_reconstructed(stage, namespace):
    """An assistant deletes a namespace's content; somebody who was not there reads what is left."""
    done = stage.kubectl("delete", "configmaps", "--all", "-n", namespace)
    assert done.returncode == 0, done.stderr
    done = stage.kubectl("delete", "secret", "db", "-n", namespace)
    assert done.returncode == 0, done.stderr
    mine = [e for e in stage.events() if e.get("objectRef", {}).get("namespace") == namespace]
    deletes = [e for e in mine if e["verb"] == "delete" and e["stage"] == "RequestReceived"]
    names = [e["objectRef"]["name"] for e in deletes]
    assert {"note-0", "note-1", "note-2", "db"} <= set(names)
    for event in deletes:
        notes = auditevents.notes_of(event)
        assert event["user"]["username"] == "tollgate:system:serviceaccount:agents:ci-agent"
        assert notes[auditevents.CREDENTIAL]
        assert "kubectl delete" in notes[auditevents.COMMAND]
        (before,) = auditevents.before_of(event)
        assert before["metadata"]["name"] == event["objectRef"]["name"]
    note = next(e for e in deletes if e["objectRef"]["name"] == "note-1")
    assert auditevents.before_of(note)[0]["data"] == {"text": "number 1"}
    # The ids are those of the API server's own log.
    stage.cluster.wait_for_audit(lambda e: e["auditID"] == deletes[-1]["auditID"])
    code, text = run(sessions, "--recordings", stage.root)
    assert (code, "ci-agent" in text) == (0, True)
    folder = next(
        f
        for f in recordings.collect([stage.root])
        if any(e.get("objectRef", {}).get("namespace") == namespace for e in recordings.read_events(f).events)
    )
    code, text = run(show, folder.path, "--recordings", stage.root)
    assert code == 0
    assert "kubectl delete configmaps --all" in text
    assert "note-1" in text
    assert VALUE not in everything(stage.root)


def test_what_was_refused_is_on_record_and_nobody_is_counted(stage):
    answer = stage.request("POST", "/api/v1/namespaces/shop/configmaps", body=b'{"a": 1, "a": 2}')
    nobody = client.request(stage.gateway.port, stage.gateway.ca_file, "GET", "/api/v1/pods", token="wrong")
    assert (answer.status, nobody.status) == (400, 401)
    stage.wait_for(lambda e: auditevents.notes_of(e).get(auditevents.REFUSED_BY) == "tollgate_classify")
    refused = [e for e in stage.events() if auditevents.notes_of(e).get(auditevents.REFUSED_BY)]
    assert all(e["user"]["username"] != "system:anonymous" for e in refused)


def test_secrets_are_nowhere(stage, namespace):
    body = json.dumps({"metadata": {"name": "new"}, "stringData": {"a": VALUE.decode()}}).encode()
    made = stage.request("POST", f"/api/v1/namespaces/{namespace}/secrets", body=body)
    assert made.status == 201
    assert stage.kubectl("create", "secret", "generic", "s2", f"--from-literal=p={VALUE.decode()}", "-n", namespace)
    assert stage.kubectl("get", "secrets", "-o", "yaml", "-n", namespace).returncode == 0
    stage.wait_for(lambda e: e["stage"] == "ResponseComplete" and e.get("objectRef", {}).get("name") == "s2")
    found = everything(stage.root)
    for spelling in canaries.spellings(VALUE):
        assert spelling not in found


def test_an_exec_is_an_asciicast(stage, controlplane):
    pod = controlplane.pods("shop", "")[0]
    done = stage.kubectl("exec", pod, "-n", "shop", "--", "sh", "-c", "echo hello; echo oops >&2")
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 10
    while not (casts := list(stage.root.rglob("*.cast*"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    lines = [json.loads(line) for line in casts[-1].read_text().splitlines()]
    assert lines[0]["version"] == 2
    text = "".join(line[2] for line in lines[1:] if line[1] == "o")
    assert "hello" in text


def test_it_verifies_and_mitmdump_reads_it(stage, namespace):
    assert stage.kubectl("delete", "configmap", "note-0", "-n", namespace).returncode == 0
    code, text = run(verify, stage.root)
    assert code == 0, text
    assert "not proven against the holder of the key" in text
    for flows in stage.root.rglob("flows.mitm"):
        done = subprocess.run(
            [sys.executable, "-m", "mitmproxy.tools.main", "-nr", str(flows)],
            capture_output=True,
            timeout=60,
            check=False,
        )
        with flows.open("rb") as file:
            assert list(flowcopies.read(file))
        assert b"Traceback" not in done.stderr


def test_two_gateways_on_one_folder_are_refused(stage, gateway_kubeconfig, tmp_path):
    (tmp_path / "policy.yaml").write_text(policies.EVERYTHING)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(tmp_path / "policy.yaml"),
                 "--recordings", str(stage.root)]  # fmt: skip
    process = gateway.launch(tmp_path, arguments, port=gateway.free_port())
    assert process.wait(30) != 0
    assert "recordings" in (tmp_path / "gateway.log").read_text()


def test_a_folder_that_takes_nothing_stops_writes_and_not_reads(controlplane, gateway_kubeconfig, tmp_path, namespace):
    with start(tmp_path, gateway_kubeconfig, "--", "--set", "tollgate_record_quota=20k") as one:
        stage = Stage(one, controlplane)
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        codes = []
        for number in range(30):
            body = json.dumps({"metadata": {"name": f"full-{number}"}, "data": {"x": "y" * 1000}}).encode()
            codes.append(stage.request("POST", path, body=body).status)
        assert codes[0] == 201
        assert codes[-1] == 503
        assert stage.request("GET", path).status == 200
        there = {i["metadata"]["name"] for i in controlplane.api("GET", path)["items"]}
        assert {f"full-{n}" for n, code in enumerate(codes) if code == 503}.isdisjoint(there)


def test_kill_loses_nothing_that_went_up(controlplane, gateway_kubeconfig, tmp_path, namespace):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    sent = 0
    for round_ in range(4):
        position = controlplane.audit_position()
        with start(tmp_path, gateway_kubeconfig) as one:
            stage = Stage(one, controlplane)
            stop = threading.Event()

            def load(worker, stage=stage, stop=stop, round_=round_):
                number = 0
                while not stop.is_set():
                    number += 1
                    name = f"kill-{round_}-{worker}-{number}"
                    body = json.dumps({"metadata": {"name": name}}).encode()
                    try:
                        stage.request("POST", path, body=body)
                    except OSError:
                        return

            workers = [threading.Thread(target=load, args=(n,)) for n in range(3)]
            for worker in workers:
                worker.start()
            time.sleep(0.7)
            one.process.kill()
            one.process.wait(10)
            stop.set()
            for worker in workers:
                worker.join(10)
        time.sleep(0.5)
        recorded = {e["auditID"] for e in stage.events()}
        went = {
            e["auditID"]
            for e in controlplane.audit_events(position)
            if e.get("verb") == "create" and e.get("objectRef", {}).get("namespace") == namespace
            and e["objectRef"].get("resource") == "configmaps" and e["user"]["username"] != "kube-controller"
            and e.get("objectRef", {}).get("name", "").startswith("kill-")
        }  # fmt: skip
        sent += len(went)
        assert went <= recorded
    assert sent > 20
    code, text = run(verify, tmp_path / "recordings")
    assert code == 0, text
