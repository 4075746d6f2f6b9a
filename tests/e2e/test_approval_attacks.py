"""
Attacks on approvals, as an agent with a good token and knowledge of the code, and as a careless approver.

A real gateway, the real API server; its audit log says what arrived, and what is stored says what was done.
"""

import base64
import concurrent.futures
import contextlib
import itertools
import json
import os
import re
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from tests.e2e import client, gateway
from tests.e2e.test_approvals import APPROVALS, Stage, until

pytestmark = [pytest.mark.e2e, pytest.mark.attack("approvals")]

NAMES = (f"attacked-{n}" for n in itertools.count())
GROUP = "/apis/tollgate.dev/v1alpha1"
PEOPLE = 'approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: WAIT, maxPending: 100}'
RULES = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: agents}
people: '"tollgate:system:serviceaccounts:people" in identity.groups'
# Else masking refuses, before anybody is asked, what copies one part of a ConfigMap into another.
mask: [{name: settings-are-no-secret, match: {resources: [configmaps]}, mask: never}]
rules:
- {name: everything, action: allow, match: {verbs: ["*"], resources: ["*", "*/*"]}}
- {name: everything-else, action: allow, match: {verbs: ["*"], nonResourceURLs: ["*"]}}
- name: unread
  action: deny
  match: {subjects: [agents], verbs: [get, list, watch], resources: [secrets, resourcequotas]}
  message: Agents do not read these.
- name: settings
  action: hold
  match: {subjects: [agents], impacts: [write], resources: [configmaps, secrets, resourcequotas]}
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 0s, maxPending: 100}
- name: waits
  action: hold
  match: {subjects: [agents], verbs: [create], resources: [limitranges]}
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 20s, maxPending: 100}
- name: two
  action: hold
  match: {subjects: [agents], verbs: [create], resources: [priorityclasses.scheduling.k8s.io]}
  approval: {groups: ["tollgate:system:serviceaccounts:people"], needed: 2, wait: 0s, maxPending: 100}
- name: opens
  action: hold
  match: {subjects: [agents], impacts: [write], resources: [services]}
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 0s, maxPending: 100}
  grant: {for: 30m, scope: namespace}
- name: sessions
  action: hold
  match: {subjects: [agents], resources: [pods/exec]}
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 0s, maxPending: 100}
  grant: {for: 30m, scope: namespace}
- name: kubelets
  action: hold
  match: {subjects: [agents], resources: [nodes/proxy]}
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 0s, maxPending: 100}
- name: accounts
  action: hold
  match: {subjects: [agents], verbs: [create], resources: [serviceaccounts]}
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 0s, maxPending: 2}
"""
MERGE, JSON_PATCH = "application/merge-patch+json", "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
OPTIONS = ["--", "--set", "tollgate_identity_rate=0", "--set", "tollgate_source_rate=0"]
OPTIONS += ["--set", "tollgate_identity_open=0", "--set", "tollgate_source_open=0"]
OPTIONS += ["--set", "tollgate_source_connections=0", "--set", "tollgate_failed_authentications=0"]


class Attacked(Stage):
    """A stage with the words that the attacks need."""

    def patch(self, path, patch, media=MERGE, **more):
        return self.request("PATCH", path, body=json.dumps(patch).encode(), headers={"Content-Type": media}, **more)

    def named(self, answer):
        """The name of the approval that a refusal speaks of."""
        assert answer.status == 403, answer
        assert answer.reason == "approval-pending", answer
        return re.search(r"approval (apr-\w+) is pending", answer.message)[1]

    def seen(self, name, token=None, kind="approvals"):
        answer = self.request("GET", f"{GROUP}/{kind}/{name}", token or self.approver_token)
        assert answer.status == 200, answer
        return json.loads(answer.body)

    def yes(self, name, kind="approvals", token=None):
        body = json.dumps({"spec": {"decision": "Approved"}}).encode()
        headers = {"Content-Type": MERGE}
        answer = self.request(
            "PATCH", f"{GROUP}/{kind}/{name}", token or self.approver_token, body=body, headers=headers
        )
        assert answer.status == 200, answer

    def ask_ahead(self, name, verbs, resources, namespace, **more):
        spec = {"verbs": verbs, "resources": resources, "namespace": namespace, "duration": "10m"}
        wish = {"apiVersion": "tollgate.dev/v1alpha1", "kind": "AccessRequest", "metadata": {"name": name}}
        wish["spec"] = {**spec, "justification": "because", **more}
        return self.request("POST", f"{GROUP}/accessrequests", body=wish)

    def grants(self):
        return json.loads(self.request("GET", f"{GROUP}/grants", self.approver_token).body)["items"]


@contextlib.contextmanager
def stage_with(folder, controlplane, kubeconfig, rules=RULES, more=()):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.yaml").write_text(rules)
    arguments = ["--kubeconfig", str(kubeconfig), "--policies", str(folder / "policy.yaml"), *more, *OPTIONS]
    with gateway.running(folder, *arguments) as one:
        if "--state" in more:
            shared = Path(more[more.index("--state") + 1]) / "tls" / "ca.crt"
            one.ca_file.parent.mkdir(parents=True, exist_ok=True)
            one.ca_file.write_bytes(shared.read_bytes())
        yield Attacked(one, controlplane)


@pytest.fixture(scope="module")
def stage(controlplane, gateway_kubeconfig, tmp_path_factory):
    with stage_with(tmp_path_factory.mktemp("attacked"), controlplane, gateway_kubeconfig) as one:
        yield one


@pytest.fixture
def name(controlplane):
    """A namespace of this name."""
    found = next(NAMES)
    controlplane.run_kubectl("create", "namespace", found)
    return found


def config_map(name="c", **data):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def admin_patch(plane, path, patch):
    """Past the gateway, as somebody who may."""
    headers = {"Content-Type": MERGE}
    body = json.dumps(patch).encode()
    answer = client.request(
        plane.port, plane.ca_file, "PATCH", path, token=plane.admin_token, body=body, headers=headers
    )
    assert answer.status == 200, answer


def maps(name):
    return f"/api/v1/namespaces/{name}/configmaps"


# ----- more often than approved -----


def test_a_hundred_at_once_on_one_approval(stage, name):
    plane, path = stage.controlplane, f"{maps(name)}/c"
    plane.run_kubectl("create", "configmap", "c", "-n", name)
    approval = stage.named(stage.patch(path, {"data": {"a": "1"}}))
    stage.yes(approval)
    since = plane.audit_position()
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: stage.patch(path, {"data": {"a": "1"}}, seconds=60), range(100)))
    assert [a.status for a in answers].count(200) == 1
    assert {a.status for a in answers} <= {200, 403}
    assert len(stage.arrived(since, "patch", "configmaps", "c")) == 1
    assert stage.seen(approval)["status"]["phase"] == "Used"


def test_two_gateways_share_one_approval(controlplane, gateway_kubeconfig, name, tmp_path):
    more = ["--state", str(tmp_path / "shared")]
    with (
        stage_with(tmp_path / "one", controlplane, gateway_kubeconfig, more=more) as one,
        stage_with(tmp_path / "two", controlplane, gateway_kubeconfig, more=more) as two,
    ):
        approval = one.named(one.request("POST", maps(name), body=config_map(a="1")))
        until(lambda: two.decide(approval, "Approved").status == 200)  # it hears of it within a second
        since = controlplane.audit_position()
        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            sent = [
                pool.submit(which.request, "POST", maps(name), body=config_map(a="1"), seconds=60)
                for _ in range(20)
                for which in (one, two)
            ]
            codes = sorted(s.result().status for s in sent)
        assert codes[0] == 201, codes
        assert set(codes[1:]) <= {403, 409}  # those that ask anew are told that it is there
        assert len(one.arrived(since, "create", "configmaps")) == 1


@pytest.mark.parametrize("protocol", ["websocket", "SPDY/3.1"])
def test_a_handshake_that_nobody_answers_is_no_way_to_use_it_again(stage, protocol):
    """A program behind a proxy may do what a GET says and then not upgrade: that was the one time."""
    node = stage.controlplane.run_kubectl("get", "nodes", "-o", "name").stdout.split()[0].partition("/")[2]
    path = f"/api/v1/nodes/{node}/proxy/healthz?once={protocol[:4]}"
    headers = {"Connection": "Upgrade", "Upgrade": protocol}
    if protocol == "websocket":
        headers |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version": "13"}
    first = stage.request("GET", path, headers=headers)
    approval = stage.named(first)
    stage.yes(approval)
    since = stage.controlplane.audit_position()
    answers = [stage.request("GET", path, headers=headers) for _ in range(3)]
    arrived = [e for e in stage.controlplane.audit_events(since) if "once=" in e["requestURI"]]
    assert len({e["auditID"] for e in arrived}) <= 1, [a.status for a in answers]
    assert answers[-1].reason != ""


def test_killed_at_any_moment_nothing_is_done_twice(controlplane, gateway_kubeconfig, name, tmp_path):
    """SIGKILL while an approved request is on its way: it arrived once at most, and what arrived is spent."""
    folder, more = tmp_path / "g", ["--state", str(tmp_path / "state")]
    since, lost = controlplane.audit_position(), 0
    for number in range(6):
        body = config_map(f"c{number}", a="1")
        with stage_with(folder, controlplane, gateway_kubeconfig, more=more) as one:
            approval = one.named(one.request("POST", maps(name), body=body))
            one.yes(approval)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                sent = pool.submit(one.request, "POST", maps(name), body=body)
                time.sleep(0.004 * number + 0.008)
                one.gateway.kill()
                sent.result()
        with stage_with(folder, controlplane, gateway_kubeconfig, more=more) as one:
            again = one.request("POST", maps(name), body=body)
            came = one.arrived(since, "create", "configmaps", f"c{number}")
            assert len(came) <= 1, (number, again, came)
            lost += not came
            if again.status == 201:
                assert one.seen(approval)["status"]["phase"] == "Used"
    print(f"{lost} of 6 cost an approval and did nothing")


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.02, 0.04, 0.08])
def test_a_client_that_leaves_as_the_yes_comes(stage, name, delay):
    """Either it was done and is spent, or it was not."""
    plane = stage.controlplane
    since = plane.audit_position()
    path = f"/api/v1/namespaces/{name}/limitranges"
    body = json.dumps({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": []}})
    context = ssl.create_default_context(cafile=stage.gateway.ca_file)
    with socket.create_connection(("127.0.0.1", stage.gateway.port)) as raw:
        tls = context.wrap_socket(raw, server_hostname="127.0.0.1")
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {stage.agent_token}\r\n"
        tls.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        approval = stage.pending(name)["metadata"]["name"]
        leaving = threading.Timer(delay, tls.close)
        leaving.start()
        stage.yes(approval)
        leaving.join()
    time.sleep(0.7)
    came, phase = stage.arrived(since, "create", "limitranges"), stage.seen(approval)["status"]["phase"]
    assert (len(came), phase) in {(1, "Used"), (0, "Approved"), (0, "Used")}


# ----- something else than was shown -----


def test_a_json_patch_is_bound_to_the_very_state_that_was_looked_at(stage, name):
    """Whoever may change the object freely must not get in between the last look and the write."""
    plane = stage.controlplane
    plane.run_kubectl("create", "configmap", "c", "-n", name, "--from-literal=image=good:1")
    path, patch = f"{maps(name)}/c", [{"op": "copy", "from": "/data/image", "path": "/data/deployed"}]
    stage.yes(stage.named(stage.patch(path, patch, JSON_PATCH)))
    version = plane.run_kubectl("get", "configmap", "c", "-n", name, "-o=jsonpath={.metadata.resourceVersion}").stdout
    since = plane.audit_position()
    answer = stage.patch(path, patch, JSON_PATCH)
    assert answer.status == 200, answer
    assert json.loads(answer.body)["data"] == {"image": "good:1", "deployed": "good:1"}
    (event,) = stage.arrived(since, "patch", "configmaps", "c")
    bound = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
    assert event["requestObject"] == [bound, *patch]


def test_a_json_patch_against_a_race(stage, name):
    """One hand sends what was approved, the other changes what it copies, as fast as it can."""
    plane = stage.controlplane
    plane.run_kubectl("create", "configmap", "c", "-n", name, "--from-literal=image=good:1")
    path, patch = f"{maps(name)}/c", [{"op": "copy", "from": "/data/image", "path": "/data/deployed"}]
    reasons = []
    for _ in range(12):
        admin_patch(plane, path, {"data": {"image": "good:1", "deployed": None}})
        approval = stage.named(stage.patch(path, patch, JSON_PATCH))
        stage.yes(approval)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            sent = pool.submit(stage.patch, path, patch, JSON_PATCH)
            time.sleep(0.012)
            admin_patch(plane, path, {"data": {"image": "evil:1"}})
            answer = sent.result()
        reasons.append(answer.reason or answer.status)
        data = json.loads(plane.request("GET", path)[1])["data"]
        assert data.get("deployed", "good:1") == "good:1", reasons
        if answer.reason == "approval-void" and "is pending instead" in answer.message:
            other = re.search(r"approval (apr-\w+) is pending instead", answer.message)[1]
            assert stage.request("DELETE", f"{APPROVALS}/{other}").status == 200
    print(reasons)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"media": STRATEGIC}, id="another kind of patch"),
        pytest.param({"query": "?force=true"}, id="a query"),
        pytest.param({"query": "?fieldManager=x"}, id="a field manager"),
        pytest.param({"query": "?fieldValidation=Ignore"}, id="without validation"),
        pytest.param({"method": "PUT", "media": "application/json"}, id="PUT"),
        pytest.param({"sub": "/status"}, id="a subresource"),
        pytest.param({"version": 1}, id="a number for a text"),
    ],
)
def test_what_else_could_pass_as_the_same(stage, name, change):
    plane, path = stage.controlplane, f"/api/v1/namespaces/{name}/resourcequotas/q"
    plane.run_kubectl("create", "quota", "q", "-n", name, "--hard=pods=7")
    patch = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "9"}}}
    approval = stage.named(stage.patch(path, patch))
    stage.yes(approval)
    since = plane.audit_position()
    if "version" in change:
        patch = {**patch, "spec": {"hard": {"pods": 9}}}
    answer = stage.request(
        change.get("method", "PATCH"),
        path + change.get("sub", "") + change.get("query", ""),
        body=json.dumps(patch).encode(),
        headers={"Content-Type": change.get("media", MERGE)},
    )
    assert answer.status in (400, 403, 404, 405, 415, 422), answer
    assert approval not in answer.body.decode()
    assert stage.seen(approval)["status"]["phase"] == "Approved"
    written = [e for e in plane.audit_events(since) if "resourcequotas" in e["requestURI"] and e["verb"] != "get"]
    assert not [e for e in written if "tollgate-" not in e["auditID"]]


def test_an_approval_is_not_anothers(stage, name):
    """Another token of another identity, with the very same bytes."""
    plane = stage.controlplane
    plane.run_kubectl("create", "serviceaccount", f"other-{name}", "-n", "agents")
    user = f"tollgate:system:serviceaccount:agents:other-{name}"
    plane.run_kubectl("create", "clusterrolebinding", f"o-{name}", "--clusterrole=cluster-admin", f"--user={user}")
    other = plane.token("agents", f"other-{name}")
    approval = stage.named(stage.request("POST", maps(name), body=config_map(a="1")))
    stage.yes(approval)
    answer = stage.request("POST", maps(name), other, body=config_map(a="1"))
    assert stage.named(answer) != approval
    for method, body in (("GET", None), ("DELETE", None), ("PATCH", b'{"spec":{"decision":"Denied"}}')):
        headers = {"Content-Type": MERGE} if body else {}
        assert stage.request(method, f"{APPROVALS}/{approval}", other, body=body, headers=headers).status == 404
    listed = json.loads(stage.request("GET", APPROVALS, other).body)["items"]
    assert {i["spec"]["requester"]["username"] for i in listed} == {user}
    # A new token of the same identity can use it.
    assert stage.request("POST", maps(name), plane.token("agents", "ci-agent"), body=config_map(a="1")).status == 201


# ----- what the approver sees -----


def test_how_something_is_deleted_is_shown(stage, name):
    stage.controlplane.run_kubectl("create", "configmap", "c", "-n", name)
    options = {"gracePeriodSeconds": 0, "propagationPolicy": "Orphan"}
    approval = stage.named(stage.request("DELETE", f"{maps(name)}/c", body=options))
    notes = " ".join(stage.seen(approval)["spec"]["preview"]["notes"])
    assert "gracePeriodSeconds 0" in notes
    assert "propagationPolicy Orphan" in notes
    other = stage.named(stage.request("DELETE", f"{maps(name)}/c?propagationPolicy=Foreground"))
    assert "propagationPolicy Foreground" in " ".join(stage.seen(other)["spec"]["preview"]["notes"])


def test_what_goes_behind_a_proxy_is_shown(stage):
    node = stage.controlplane.run_kubectl("get", "nodes", "-o", "name").stdout.split()[0].partition("/")[2]
    path = f"/api/v1/nodes/{node}/proxy/run/shop/web/app?cmd=rm%20-rf"
    approval = stage.named(stage.request("POST", path, body=b"x=y", headers={"Content-Type": "text/plain"}))
    notes = " ".join(stage.seen(approval)["spec"]["preview"]["notes"])
    assert "POST" in notes
    assert "run/shop/web/app" in notes
    assert "cmd=rm%20-rf" in notes
    assert "3 bytes" in notes


def test_long_names_that_begin_alike(stage, name):
    """An approver who reads the beginning of a name must not say yes to another."""
    plane, shared = stage.controlplane, "a" * 100
    plane.run_kubectl("create", "configmap", f"{shared}-kept", "-n", name)
    plane.run_kubectl("create", "configmap", f"{shared}-gone", "-n", name)
    texts = []
    for end in ("kept", "gone"):
        approval = stage.named(stage.request("DELETE", f"{maps(name)}/{shared}-{end}"))
        texts.append(stage.seen(approval)["spec"]["summary"])
    assert texts[0] != texts[1]


def test_one_command_cannot_hide_behind_another(stage, name):
    """After two harmless objects of a session, a third of another namespace: it must be among what is shown."""
    plane = stage.controlplane
    plane.run_kubectl("create", "configmap", "a", "-n", name)
    plane.run_kubectl("create", "configmap", "b", "-n", name)
    plane.run_kubectl("create", "namespace", f"{name}-prod")
    plane.run_kubectl("create", "configmap", "precious", "-n", f"{name}-prod")
    headers = {"Kubectl-Session": name, "Kubectl-Command": "kubectl delete"}
    assert stage.request("GET", maps(name), headers=headers).status == 200
    first = stage.named(stage.request("DELETE", f"{maps(name)}/a", headers=headers))
    third = stage.named(stage.request("DELETE", f"{maps(f'{name}-prod')}/precious", headers=headers))
    assert third != first
    preview = stage.seen(third)["spec"]["preview"]
    assert f"{name}-prod/precious" in preview["names"]
    assert preview["counts"]["configmaps"] >= 3


def test_the_clients_word_is_not_all_that_a_table_shows(stage, name):
    stage.controlplane.run_kubectl("create", "configmap", "c", "-n", name)
    headers = {
        "Kubectl-Session": f"s-{name}",
        "Kubectl-Command": "kubectl get pods -n dev and some more to fill the cell",
    }
    approval = stage.named(stage.request("DELETE", f"{maps(name)}/c", headers=headers))
    table = stage.kubectl(stage.approver, "get", "approval", approval).stdout
    assert f"delete configmap {name}/c" in table


HIDDEN = "\x1b[2K\x1b[1A\u202egnp.exe\u2066\u200b\x9b"


def test_nothing_in_an_approval_commands_a_terminal(stage, name):
    plane = stage.controlplane
    body = config_map(note=f"a{HIDDEN}b")
    approval = stage.named(stage.request("POST", maps(name), body=body))
    pod = plane.pods("shop", "app=web")[0]
    shell = "/api/v1/namespaces/shop/pods/" + pod + "/exec?command=echo&command=a%E2%80%AEb&command=%C2%9Bx"
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": "v5.channel.k8s.io"}
    second = stage.request("GET", shell, headers=upgrade)
    names = [approval] + ([stage.named(second)] if second.reason == "approval-pending" else [])
    for one in names:
        for output in ((), ("-o", "yaml"), ("-o", "json"), ("-o", "wide")):
            text = stage.kubectl(stage.approver, "get", "approval", one, *output).stdout
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", text)
        text = stage.kubectl(stage.approver, "describe", "approval", one).stdout
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", text)


def test_what_is_cut_says_so(stage, name):
    """The point hidden behind a thousand lines, or at the end of a long one."""
    body = config_map("c", **{f"a{n:04}": "x" for n in range(1000)}, zzz="the point")
    preview = stage.seen(stage.named(stage.request("POST", maps(name), body=body)))["spec"]["preview"]
    assert "the point" not in preview["diff"]
    assert any("more lines are not shown" in note for note in preview["notes"])
    body = config_map("c", script="true; " * 1000 + "the point")
    preview = stage.seen(stage.named(stage.request("POST", maps(name), body=body)))["spec"]["preview"]
    assert "the point" not in preview["diff"]
    assert re.search(r"… \(\d+ characters\)", preview["diff"])


# ----- what nobody told him -----


def spec_of(stage, approval, token):
    spec = stage.seen(approval, token)["spec"]
    for key in ("expires", "command"):
        spec.pop(key, None)
    return spec


def test_a_guess_at_a_secret_is_not_confirmed(controlplane, gateway_kubeconfig, tmp_path, name):
    """A patch with the right value changes nothing: the requester must not be able to tell."""
    controlplane.run_kubectl("create", "secret", "generic", "s", "-n", name, "--from-literal=password=hunter2")
    path = f"/api/v1/namespaces/{name}/secrets/s"
    specs = []
    # Masking holds it too, on the strictest terms of all rules: two open questions would be the most.
    rules = RULES.replace("maxPending: 2}", "maxPending: 100}")
    assert rules != RULES
    with stage_with(tmp_path, controlplane, gateway_kubeconfig, rules) as stage:
        for guess in ("hunter1", "hunter2"):
            patch = {"data": {"password": base64.b64encode(guess.encode()).decode()}}
            approval = stage.named(stage.patch(path, patch))
            specs.append(spec_of(stage, approval, stage.agent_token))
            whole = stage.request("GET", f"{APPROVALS}/{approval}", stage.agent_token).body
            assert base64.b64encode(b"hunter2") not in whole
    assert specs[0] == specs[1]


def test_asking_is_no_way_to_read(stage, name):
    """The policy lets the agent write it after a yes, and never read it: its own question does not show it either."""
    stage.controlplane.run_kubectl("create", "quota", "q", "-n", name, "--hard=pods=47114711")
    path = f"/api/v1/namespaces/{name}/resourcequotas/q"
    assert stage.request("GET", path).status == 403
    approval = stage.named(stage.patch(path, {"spec": {"hard": {"pods": "47124712"}}}))
    for accept in ("application/json", "application/yaml", "application/json;as=Table;v=v1;g=meta.k8s.io"):
        for where in (f"{APPROVALS}/{approval}", f"{APPROVALS}?includeObject=Object"):
            answer = stage.request("GET", where, headers={"Accept": accept})
            assert b"47114711" not in answer.body
            assert b"47124712" not in answer.body
    assert "-    pods: '47114711'" in stage.seen(approval)["spec"]["preview"]["diff"]  # who may read it sees it


# ----- grants -----


def service(name):
    ports = [{"port": 80}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": ports}}


def opened(stage, name):
    """A grant for the services of a namespace."""
    path = f"/api/v1/namespaces/{name}/services"
    approval = stage.named(stage.request("POST", path, body=service("a")))
    stage.yes(approval)
    assert stage.request("POST", path, body=service("a")).status == 201
    return stage.seen(approval)["status"]["grant"]


def test_a_grant_opens_no_more_than_it_says(stage, name):
    plane = stage.controlplane
    plane.run_kubectl("create", "namespace", f"{name}-x")
    plane.run_kubectl("create", "service", "clusterip", "b", "-n", f"{name}-x", "--tcp=80")
    plane.run_kubectl("create", "service", "clusterip", "b", "-n", name, "--tcp=80")
    grant = opened(stage, name)
    root, since = "/api/v1/namespaces", plane.audit_position()
    refused = [
        stage.request("POST", f"{root}/{name}-x/services", body=service("a")),
        stage.request("DELETE", f"{root}/{name}-x/services/b"),
        stage.request("POST", maps(name), body=config_map()),
        stage.request("GET", f"{root}/{name}/secrets"),
        stage.request("DELETE", "/api/v1/services"),
    ]
    assert {a.status for a in refused} <= {403, 405}, refused
    assert not stage.arrived(since, "delete", "services")
    assert not stage.arrived(since, "create", "services")
    assert stage.request("DELETE", f"{root}/{name}/services/b").status == 200  # in its namespace, its rule
    assert stage.request("DELETE", f"{GROUP}/grants/{grant}", stage.approver_token).status == 200
    assert stage.request("POST", f"{root}/{name}/services", body=service("c")).reason == "approval-pending"


def test_a_grant_is_for_the_rule_as_it_was(controlplane, gateway_kubeconfig, name, tmp_path):
    """The rule of that name is made to hold more: nobody said yes to that."""
    with stage_with(tmp_path, controlplane, gateway_kubeconfig) as one:
        opened(one, name)
        path = f"/api/v1/namespaces/{name}/serviceaccounts"
        since = controlplane.audit_position()
        wider = RULES.replace("resources: [services]}", "resources: [services, serviceaccounts]}")
        wider = re.sub(r"- name: accounts\n(  .*\n)+", "", wider)
        (tmp_path / "policy.yaml").write_text(wider)
        until(lambda: "policies: reloaded" in one.gateway.log)
        body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "deputy"}}
        assert one.request("POST", path, body=body).reason == "approval-pending"
        assert not one.arrived(since, "create", "serviceaccounts")


DENY = "- {name: freeze, action: deny, match: {subjects: [agents], verbs: [create], resources: [configmaps]}}"
MORE = """- name: more
  action: hold
  match: {subjects: [agents], verbs: [create], resources: [configmaps]}
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 0s}"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("- name: waits", f"{DENY}\n- name: waits", id="the policy denies it now"),
        pytest.param("maxPending: 100}", "maxPending: 100, needed: 2}", id="two must agree now"),
        pytest.param("- name: waits", f"{MORE}\n- name: waits", id="another rule asks as well"),
    ],
)
def test_a_yes_is_to_the_question_of_that_time(controlplane, gateway_kubeconfig, name, tmp_path, before, after):
    """Also when the old policies come back: what became void in between stays so."""
    with stage_with(tmp_path, controlplane, gateway_kubeconfig) as one:
        since = controlplane.audit_position()
        approval = one.named(one.request("POST", maps(name), body=config_map()))
        one.yes(approval)
        (tmp_path / "policy.yaml").write_text(RULES.replace(before, after, 1))
        until(lambda: one.gateway.log.count("policies: reloaded") == 1)
        answer = one.request("POST", maps(name), body=config_map())
        if "freeze" in after:
            assert (answer.status, answer.reason) == (403, "policy-deny"), answer
        else:
            assert one.named(answer) != approval
            (tmp_path / "policy.yaml").write_text(RULES)
            until(lambda: one.gateway.log.count("policies: reloaded") == 2)
            assert one.named(one.request("POST", maps(name), body=config_map())) != approval
            assert one.seen(approval)["status"]["phase"] == "Void"
        assert not one.arrived(since, "create", "configmaps")


@pytest.mark.parametrize("who", ["approver", "requester"])
def test_an_access_request_taken_back_opens_nothing(stage, name, who):
    wish = f"w-{name}"
    assert stage.ask_ahead(wish, ["create"], ["configmaps"], name).status == 201
    stage.yes(wish, "accessrequests")
    assert stage.request("POST", maps(name), body=config_map("one")).status == 201
    token = stage.approver_token if who == "approver" else stage.agent_token
    assert stage.request("DELETE", f"{GROUP}/accessrequests/{wish}", token).status == 200
    assert stage.seen(wish, kind="accessrequests")["status"]["phase"] == "Cancelled"
    assert stage.request("POST", maps(name), body=config_map("two")).reason == "approval-pending"
    assert not [g for g in stage.grants() if g["spec"]["source"] == wish and g["status"]["phase"] == "Active"]


def test_a_shell_that_a_grant_opened_ends_with_it(stage, tmp_path):
    pod = stage.controlplane.pods("shop", "app=web")[0]
    refused = stage.kubectl(stage.agent, "exec", pod, "--", "echo", "open-it", timeout=30)
    approval = re.search(r"approval (apr-\w+) is pending", refused.stderr)[1]
    stage.yes(approval)
    grant = stage.seen(approval)["status"]["grant"]
    shell = stage.begin(stage.agent, "exec", pod, "--", "sleep", "30", out=tmp_path / "out")
    try:
        time.sleep(1.5)
        assert shell.poll() is None, (tmp_path / "out").read_text()
        assert stage.request("DELETE", f"{GROUP}/grants/{grant}", stage.approver_token).status == 200
        assert shell.wait(5) != 0
        assert "grant" in (tmp_path / "out").read_text()
    finally:
        shell.kill()
        stage.request("DELETE", f"{GROUP}/grants/{grant}", stage.approver_token)


@pytest.mark.parametrize(
    ("verbs", "resources", "namespace"),
    [
        pytest.param(["*"], ["*"], "*", id="everything"),
        pytest.param(["create"], ["*"], "shop", id="all resources"),
        pytest.param(["create"], ["*.apps"], "shop", id="a group"),
        pytest.param(["create"], ["configmaps/*"], "shop", id="subresources"),
        pytest.param(["get"], ["secrets"], "shop", id="what is denied"),
        pytest.param(["create"], ["pods.metrics.k8s.io/exec"], "shop", id="another group's"),
        pytest.param(["create"], ["configmaps"], "sh*", id="a pattern of namespaces"),
        pytest.param(["create"], ["CONFIGMAPS"], "shop", id="capitals"),
        pytest.param(["impersonate"], ["users"], "*", id="a verb of RBAC"),
        pytest.param(["create"], ["approvals.tollgate.dev"], "*", id="approvals"),
        pytest.param(["create", "create"], ["configmaps", "secrets"], "", id="no namespace"),
    ],
)
def test_asking_ahead_for_too_much(stage, verbs, resources, namespace):
    answer = stage.ask_ahead(next(NAMES), verbs, resources, namespace)
    assert answer.status in (403, 422), answer
    assert answer.reason


# ----- who decides -----


def test_one_person_with_two_tokens_is_one(stage, name):
    body = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": 1}
    path, since = "/apis/scheduling.k8s.io/v1/priorityclasses", stage.controlplane.audit_position()
    approval = stage.named(stage.request("POST", path, body=body))
    tokens = [stage.controlplane.token("people", "engineer", audience="tollgate-approver") for _ in range(2)]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        codes = [
            a.status for a in pool.map(lambda n: stage.decide(approval, "Approved", token=tokens[n % 2]), range(20))
        ]
    assert sorted(codes)[0] == 200
    assert codes.count(200) == 1, codes
    assert stage.seen(approval)["status"]["phase"] == "Pending"
    assert stage.request("POST", path, body=body).reason == "approval-pending"
    assert not stage.arrived(since, "create", "priorityclasses", name)


def test_approve_deny_cancel_and_use_at_once(stage, name):
    """Whatever comes first: it was done only if it was approved, and once."""
    plane = stage.controlplane
    for number in range(6):
        since, body = plane.audit_position(), config_map(f"c{number}", a="1")
        approval = stage.named(stage.request("POST", maps(name), body=body))
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            doing = []
            for _ in range(3):
                doing += [
                    pool.submit(stage.decide, approval, "Approved"),
                    pool.submit(stage.decide, approval, "Denied"),
                    pool.submit(stage.request, "DELETE", f"{APPROVALS}/{approval}"),
                    pool.submit(stage.request, "POST", maps(name), body=body),
                ]
            for one in doing:
                assert one.result().status in (200, 201, 403, 409)
        status = stage.seen(approval)["status"]
        came = stage.arrived(since, "create", "configmaps", f"c{number}")
        assert len(came) == (status["phase"] == "Used"), status
        if came:
            assert any(d["decision"] == "Approved" for d in status["decisions"])


@pytest.mark.parametrize(
    ("body", "media"),
    [
        pytest.param({"status": {"phase": "Approved"}}, MERGE, id="the status"),
        pytest.param({"spec": {"decision": "Approved", "requester": {"username": "x"}}}, MERGE, id="the requester"),
        pytest.param({"spec": {"decision": "Approved", "rules": []}}, MERGE, id="the rules"),
        pytest.param([{"op": "copy", "from": "/spec/summary", "path": "/spec/reason"}], JSON_PATCH, id="a copy"),
        pytest.param([{"op": "add", "path": "/status/phase", "value": "Approved"}], JSON_PATCH, id="JSON patch"),
        pytest.param({"spec": {"decision": "approved"}}, MERGE, id="lower case"),
        pytest.param({"spec": {"decision": ["Approved"]}}, MERGE, id="a list"),
    ],
)
@pytest.mark.parametrize("who", ["agent", "approver"])
def test_nothing_but_a_decision_can_be_written(stage, name, body, media, who):
    approval = stage.named(stage.request("POST", maps(name), body=config_map()))
    token = stage.agent_token if who == "agent" else stage.approver_token
    answer = stage.patch(f"{APPROVALS}/{approval}", body, media, token=token)
    assert answer.status in (400, 403, 415, 422), answer
    assert stage.seen(approval)["status"]["phase"] == "Pending"


def test_nobody_rings_all_day(stage, name):
    """To ask, take back, ask something else, and so on: the approvers would hear of each."""
    path, names = f"/api/v1/namespaces/{name}/serviceaccounts", []
    for number in range(6):
        body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": f"a{number}"}}
        answer = stage.request("POST", path, body=body)
        if answer.reason == "approval-too-many":
            break
        names.append(stage.named(answer))
        assert stage.request("DELETE", f"{APPROVALS}/{names[-1]}").status == 200
    assert len(names) <= 2 * 2
    assert answer.reason == "approval-too-many"


# ----- the port inside -----


def inner_ports(pid):
    """The ports that a process listens on at 127.0.0.1."""
    inodes = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found = re.match(r"socket:\[(\d+)\]", str(Path(entry.path).readlink()))
            if found:
                inodes.add(found[1])
    ports = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[3] == "0A" and columns[9] in inodes:
            ports.add(int(columns[1].rpartition(":")[2], 16))
    return ports


@pytest.mark.parametrize("ticket", [None, "", "0" * 32, "' or 1=1"])
def test_the_port_inside_is_for_nobody(stage, ticket):
    ports = inner_ports(stage.gateway.process.pid) - {stage.gateway.port}
    assert ports
    for port in ports:
        headers = {"Authorization": f"Bearer {stage.approver_token}"} | (
            {} if ticket is None else {"Tollgate-Ticket": ticket}
        )
        answer = client.plain("127.0.0.1", port, APPROVALS, headers)
        assert answer.status == 403
        assert b"items" not in answer.body


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Tollgate-Ticket": "0" * 32}, id="a ticket"),
        pytest.param({"Host": "127.0.0.1:1"}, id="another host"),
        pytest.param({"X-HTTP-Method-Override": "DELETE"}, id="another method"),
        pytest.param({"X-Forwarded-User": "alice", "Forwarded": "for=alice"}, id="somebody else"),
        pytest.param({"Accept": "a" * 9000}, id="a header too long"),
        pytest.param({"Kubectl-Command": "k" * 9000}, id="a claim too long"),
    ],
)
def test_headers_change_nothing_for_the_virtual_group(stage, headers):
    answer = stage.request("GET", APPROVALS, headers=headers)
    assert answer.status in (200, 400, 406, 431), answer
    items = json.loads(answer.body).get("items", [])
    assert {i["spec"]["requester"]["username"] for i in items} <= {"tollgate:system:serviceaccount:agents:ci-agent"}


@pytest.mark.parametrize(
    "path",
    [
        "/apis/tollgate.dev/v1alpha1/%61pprovals",
        "/apis/tollgate.dev/v1alpha1/../v1alpha1/approvals",
        "/apis/tollgate.dev//v1alpha1/approvals",
        "/apis/Tollgate.dev/v1alpha1/approvals",
        "/apis/tollgate.dev/v1alpha1/namespaces/shop/approvals",
        "/apis/tollgate.dev/v1alpha1/watch/approvals",
        "/apis/tollgate.dev/v1/approvals",
        "/api/v1/namespaces/shop/pods/web/proxy/apis/tollgate.dev/v1alpha1/approvals",
    ],
)
def test_other_ways_to_the_virtual_group(stage, path):
    answer = stage.request("GET", path)
    assert answer.status in (400, 403, 404, 500, 503), answer
    assert b"ApprovalList" not in answer.body


@pytest.mark.parametrize("word", ["a/b", "..", "%2e%2e", "a?b", "a\nb", "é", "x" * 70_000])
def test_a_question_about_a_strange_name(stage, word):
    """`can-i` with a name that no path could hold."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {
            "resourceAttributes": {"group": "tollgate.dev", "resource": "approvals", "verb": "patch", "name": word}
        },
    }
    start = len(stage.gateway.log)
    answer = stage.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
    assert answer.status in (201, 400), answer
    assert "Traceback" not in stage.gateway.log[start:]


@pytest.mark.parametrize("tag", ['"x"', "*", '"x", "y"', 'W/"x"', '"' + "a" * 5000 + '"'])
def test_a_false_etag_gets_the_whole_page(stage, tag):
    for path in ("/apis", "/openapi/v3"):
        answer = stage.request("GET", path, headers={"If-None-Match": tag})
        assert answer.status == 200
        assert b"tollgate.dev" in answer.body
        if "etag" in answer.headers:
            same = stage.request("GET", path, headers={"If-None-Match": answer.headers["etag"]})
            assert same.status == 304


# ----- the state folder -----


@pytest.mark.parametrize("what", ["others may write it", "a link", "another user's"])
def test_state_that_others_can_write_is_not_used(controlplane, gateway_kubeconfig, tmp_path, what):
    state = tmp_path / "state"
    with stage_with(tmp_path / "one", controlplane, gateway_kubeconfig, more=["--state", str(state)]):
        pass
    file = state / "state.db"
    if what == "others may write it":
        file.chmod(0o666)
    elif what == "a link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        if os.geteuid() != 0:
            pytest.skip("needs root")
        os.chown(file, 12345, 12345)
    with (
        pytest.raises(AssertionError),
        stage_with(tmp_path / "two", controlplane, gateway_kubeconfig, more=["--state", str(state)]),
    ):
        pass
