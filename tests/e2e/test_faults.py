"""
An exception in every hook of every addon, scripts deleted and broken while running, requests
from the first moment: each time no object in etcd that should not be there, and no answer that
was not judged.
"""

import contextlib
import itertools
import shutil
import time
from pathlib import Path

import pytest
from mitmproxy import hooks

from addons import authenticate, block, classify, guard, upstream
from tests.e2e import client, gateway, policies

pytestmark = pytest.mark.e2e

NAMES = (f"fault-{n}" for n in itertools.count())
REQUEST_HOOKS = [
    ("tollgate_guard", "requestheaders"),
    ("tollgate_guard", "request"),
    ("tollgate_authenticate", "requestheaders"),
    ("tollgate_authenticate", "request"),
    ("tollgate_classify", "request"),
    ("tollgate_block", "request"),
    ("tollgate_upstream", "request"),
    ("tollgate_last_word", "request"),
]
ANSWER_HOOKS = [
    ("tollgate_upstream", "responseheaders"),
    ("tollgate_upstream", "response"),
]
FRAME_HOOKS = [
    ("tollgate_guard", "websocket_message"),
    ("tollgate_authenticate", "websocket_message"),
    ("tollgate_last_word", "websocket_message"),
]


class Stage:
    """A gateway that lets everything pass, from a copy of the scripts, with the one that breaks things."""

    def __init__(self, running, cluster, token, fault, root):
        self.gateway, self.cluster, self.token, self.fault, self.root = running, cluster, token, fault, root
        self.config = running.kubeconfig("agent", token)

    def request(self, method, path, body=None):
        return client.request(self.gateway.port, self.gateway.ca_file, method, path, token=self.token, body=body)

    def create(self, name):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
        return self.request("POST", "/api/v1/namespaces/shop/configmaps", body)

    def exists(self, name):
        found, _ = self.cluster.request("GET", f"/api/v1/namespaces/shop/configmaps/{name}")
        return found == 200

    def works(self):
        name = next(NAMES)
        return self.create(name).status == 201 and self.exists(name)

    def kubectl(self, *args):
        return self.cluster.run_kubectl(*args, kubeconfig=self.config, check=False, timeout=20)


@pytest.fixture(scope="module")
def make_stage(controlplane, gateway_kubeconfig, tmp_path_factory):
    token = controlplane.token("agents", "ci-agent")

    @contextlib.contextmanager
    def make():
        folder = tmp_path_factory.mktemp("faults")
        root, fault = folder / "root", folder / "fault"
        shutil.copytree(gateway.ROOT / "addons", root / "addons", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "policy.yaml").write_text(policies.EVERYTHING)
        fault.write_text("")
        arguments = [
            "--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml"),
            "--", "-s", str(Path(__file__).with_name("faults.py")),
        ]  # fmt: skip
        with gateway.running(folder, *arguments, root=root, environment={"TOLLGATE_TEST_FAULT": str(fault)}) as running:
            yield Stage(running, controlplane, token, fault, root)

    return make


@pytest.fixture(scope="module")
def stage(make_stage):
    with make_stage() as one:
        until(one.works, one.gateway)
        yield one


@pytest.fixture
def broken(stage):
    yield lambda addon, hook: stage.fault.write_text(f"{addon} {hook}")
    stage.fault.write_text("")
    assert stage.works()


@pytest.mark.parametrize(("addon", "hook"), REQUEST_HOOKS)
def test_an_exception_on_the_way_in(stage, broken, addon, hook):
    broken(addon, hook)
    name = next(NAMES)
    answer = stage.create(name)
    assert answer.status == 503, stage.gateway.log
    assert answer.reason == "not-judged"
    assert not stage.exists(name)


@pytest.mark.parametrize(("addon", "hook"), ANSWER_HOOKS)
def test_an_exception_on_the_way_back(stage, broken, addon, hook):
    broken(addon, hook)
    answer = stage.request("GET", "/api/v1/namespaces/shop/configmaps/settings")
    assert b"Welcome to the shop" not in answer.body or hook == "response"
    if hook == "responseheaders":
        assert answer.status == 502
        assert answer.reason == "answer-not-judged"


@pytest.mark.parametrize(("addon", "hook"), FRAME_HOOKS)
def test_an_exception_at_a_frame(stage, broken, addon, hook):
    broken(addon, hook)
    pod = stage.cluster.pods("shop", "app=web")[0]
    done = stage.kubectl("exec", "-n", "shop", pod, "--", "echo", "frame-content")
    assert "frame-content" not in done.stdout


def other_hooks():
    """Every hook of every addon that the tests above do not break, but those of start and end."""
    covered = {*REQUEST_HOOKS, *ANSWER_HOOKS, *FRAME_HOOKS}
    lifecycle = {"load", "configure", "running", "done"}
    classes = (guard.Guard, guard.LastWord, authenticate.Authenticate, classify.Classify, block.PolicyBlock,
               upstream.Upstream)  # fmt: skip
    found = {(c.name, hook) for c in classes for hook in hooks.all_hooks if hasattr(c, hook) and hook not in lifecycle}
    return sorted(found - covered)


@pytest.mark.parametrize(("addon", "hook"), other_hooks())
def test_an_exception_in_any_other_hook_lets_nobody_in(stage, broken, addon, hook):
    broken(addon, hook)
    refused = [({}, None), ({"Impersonate-User": "root"}, stage.token), ({}, "no-token-of-ours")]
    for headers, token in refused:
        name = next(NAMES)
        answer = client.request(
            stage.gateway.port, stage.gateway.ca_file, "POST", "/api/v1/namespaces/shop/configmaps",
            token=token, headers=headers, body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}},
        )  # fmt: skip
        assert answer.status in (0, 401, 403, 502, 503)
        assert not stage.exists(name)


SCRIPTS = ["guard", "authenticate", "classify", "block", "upstream"]


def until(condition, running, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, running.log[-3000:]
        time.sleep(0.1)


def is_refused(stage):
    """Refused, and not created. mitmproxy notices a changed script within a second."""
    name = next(NAMES)
    return stage.create(name).status == 503 and not stage.exists(name)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_with_a_syntax_error(stage, script):
    path = stage.root / "addons" / f"{script}.py"
    good = path.read_text()
    try:
        path.write_text("def broken(:\n")
        until(lambda: is_refused(stage), stage.gateway)
    finally:
        path.write_text(good)
    until(stage.works, stage.gateway)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_deleted_script(make_stage, script):
    with make_stage() as stage:
        assert stage.works()
        (stage.root / "addons" / f"{script}.py").unlink()
        until(lambda: is_refused(stage), stage.gateway)


def test_from_the_first_moment(controlplane, gateway_kubeconfig, tmp_path):
    (tmp_path / "policy.yaml").write_text(policies.EVERYTHING.replace("allow", "deny"))
    port = gateway.free_port()
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(tmp_path / "policy.yaml")]
    process = gateway.launch(tmp_path, arguments, port=port)
    token = controlplane.token("agents", "ci-agent")
    name, answers = next(NAMES), []
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    deadline = time.monotonic() + 30
    try:
        while time.monotonic() < deadline and (not answers or answers[-1] == 503):
            ca_file = tmp_path / "state" / "tls" / "ca.crt"
            if ca_file.exists():
                path = "/api/v1/namespaces/shop/configmaps"
                answer = client.request(port, ca_file, "POST", path, token=token, body=body, seconds=5)
                if answer.status:
                    answers.append(answer.status)
        assert answers
        assert set(answers) <= {403, 503}
        assert answers[-1] == 403
    finally:
        process.terminate()
        process.wait(10)
    found, _ = controlplane.request("GET", f"/api/v1/namespaces/shop/configmaps/{name}")
    assert found == 404


def test_what_the_control_plane_saw(stage):
    """The oracle itself: a request that was let through is in the audit log, with our id."""
    name = next(NAMES)
    since = stage.cluster.audit_position()
    assert stage.create(name).status == 201
    events = [e for e in stage.cluster.audit_events(since) if e.get("objectRef", {}).get("name") == name]
    assert events
