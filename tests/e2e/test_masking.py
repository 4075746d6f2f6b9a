"""
Canaries in every place where a cluster keeps secrets, fetched in every way that a client has: none of
their bytes, in any spelling, reach an agent, the gateway's log, an approval or a notification.

The same for a permitted engineer shows that the canaries would have been seen.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import subprocess
import time

import pytest
from kubernetes_asyncio import client as kubernetes
from kubernetes_asyncio import config as kubernetes_config

from tests import canaries, http2
from tests.e2e import client, gateway

pytestmark = pytest.mark.e2e

NS = "masking"
CORE = f"/api/v1/namespaces/{NS}"
APPS = f"/apis/apps/v1/namespaces/{NS}"
THINGS = f"/apis/masking.example/v1/namespaces/{NS}/things"
SECRETS = f"{CORE}/secrets"
SECRET = f"{SECRETS}/canary"
PEOPLE = "tollgate:system:serviceaccounts:people"
POLICY = f"""
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {{name: masking}}
people: '"{PEOPLE}" in identity.groups'
rules:
- {{name: everything, action: allow, match: {{verbs: ["*"], resources: ["*", "*/*"]}}}}
- {{name: everything-else, action: allow, match: {{verbs: ["*"], nonResourceURLs: ["*"]}}}}
- name: break-glass
  action: hold
  match: {{subjects: [agents], verbs: [get], resources: [secrets], resourceNames: [break-glass]}}
  unless: operation.name == ""
  message: It shows a Secret.
  approval: {{groups: ["{PEOPLE}"], wait: 10s, maxPending: 100}}
# Only so that the gateway's own hold, which takes the strictest terms of all, waits no longer.
- name: short
  action: hold
  match: {{subjects: [agents], verbs: [create], resources: [limitranges]}}
  message: It is not asked for here.
  approval: {{groups: ["{PEOPLE}"], wait: 1s, maxPending: 100}}
mask:
- name: things
  match: {{resources: [things.masking.example]}}
  fields: ["spec.credentials[*].word", spec.pin]
  mask: always
- name: shown-when-approved
  match: {{resources: [secrets], namespaces: [{NS}], resourceNames: [break-glass], subjects: [agents]}}
  mask: approved
- name: robots-write
  match: {{resources: [secrets], namespaces: [{NS}], resourceNames: [free], subjects: [agents]}}
  writes: allow
"""
VALUES = canaries.VALUES
DATA = {name.replace(" ", "-"): base64.b64encode(value).decode() for name, value in VALUES.items()}
PASSWORD = VALUES["password"]
NAMES = (f"masked-{n}" for n in itertools.count())
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
PROTOBUF = "application/vnd.kubernetes.protobuf"
MERGE, STRATEGIC, JSON_PATCH, APPLY = (
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/json-patch+json",
    "application/apply-patch+yaml",
)
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "things.masking.example"},
    "spec": {
        "group": "masking.example",
        "scope": "Namespaced",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                "additionalPrinterColumns": [{"name": "Ready", "type": "string", "jsonPath": ".spec.pin"}],
                "selectableFields": [],
            }
        ],
    },
}
# Values of no shape that a detector knows: only the rule says that they are secret.
PIN, WORD = b"canary pin of a thing", b"canary word of a thing"


def a_secret(name="canary", **more):
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": NS, "annotations": {"example.com/note": PASSWORD.decode()}} | more,
        "data": DATA,
    }


def a_deployment(name="canary"):
    container = {
        "name": "c",
        "image": "registry.example/c:1",
        "env": [
            {"name": "DB_PASSWORD", "value": PASSWORD.decode()},
            {"name": "DATABASE_URL", "value": VALUES["url"].decode()},
            {"name": "LOG_LEVEL", "value": "info"},
        ],
        "args": ["--token", VALUES["github token"].decode(), "--quiet"],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NS},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}},
        },
    }


KUBECONFIG = f"apiVersion: v1\nkind: Config\nusers:\n- name: x\n  user:\n    token: {canaries.JWT}\n"
CONFIG = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "canary", "namespace": NS},
    "data": {"kubeconfig": KUBECONFIG, "tls.key": canaries.PRIVATE_KEY, "level": "info"},
}
THING = {
    "apiVersion": "masking.example/v1",
    "kind": "Thing",
    "metadata": {"name": "canary", "namespace": NS},
    "spec": {"pin": PIN.decode(), "credentials": [{"user": "plain-user", "word": WORD.decode()}]},
}
EVENT = {
    "apiVersion": "v1",
    "kind": "Event",
    "metadata": {"name": "canary", "namespace": NS},
    "involvedObject": {"kind": "Pod", "name": "canary", "namespace": NS},
    "reason": "Failed",
    "type": "Warning",
    "message": f"cannot connect to {VALUES['url'].decode()}",
}


class Stage:
    def __init__(self, one, cluster, notes):
        self.gateway, self.cluster, self.notes = one, cluster, notes
        self.tokens = {
            "agent": cluster.token("agents", "ci-agent"),
            "engineer": cluster.token("people", "engineer"),
            "approver": cluster.token("people", "engineer", audience="tollgate-approver"),
        }
        self.configs = {who: one.kubeconfig(who, token, NS) for who, token in self.tokens.items()}

    def request(self, method, path, who="agent", **more):
        return client.request(self.gateway.port, self.gateway.ca_file, method, path, token=self.tokens[who], **more)

    def patch(self, path, body, media=MERGE, who="agent", **more):
        return self.request("PATCH", path, who, body=json.dumps(body).encode(), headers={"Content-Type": media}, **more)

    async def over_http2(self, path, who="agent", **headers):
        fields = (("authorization", f"Bearer {self.tokens[who]}"), *((k, v) for k, v in headers.items()))
        async with http2.connect(self.gateway.port, self.gateway.ca_file) as connection:
            return await connection.request(path, headers=fields)

    def kubectl(self, *args, who="agent", program=None, **more):
        if program is None or program == self.cluster.kubectl:
            return self.cluster.run_kubectl(*args, kubeconfig=self.configs[who], check=False, **more)
        return subprocess.run(
            [program, *args],
            env=self.cluster.kubectl_env(self.configs[who]),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **more,
        )

    def watch(self, path, who="agent", seconds=2.0):
        """What a watch sends within some seconds, over HTTP/1.1 as raw bytes."""
        return self.request(
            "GET", f"{path}{'&' if '?' in path else '?'}watch=true&timeoutSeconds={int(seconds)}", who
        ).body

    def approvals(self):
        return json.loads(self.request("GET", "/apis/tollgate.dev/v1alpha1/approvals", "approver").body)["items"]

    def pending(self, having, seconds=10):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for item in self.approvals():
                if having in json.dumps(item["spec"]) and item["status"]["phase"] == "Pending":
                    return item
            time.sleep(0.05)
        raise AssertionError(f"nobody asked about {having}: {self.gateway.log[-3000:]}")

    def decide(self, name, decision="Approved"):
        path = f"/apis/tollgate.dev/v1alpha1/approvals/{name}"
        return self.patch(path, {"spec": {"decision": decision, "reason": "test"}}, who="approver")


@pytest.fixture(scope="module")
def stage(controlplane, gateway_kubeconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("masking")
    (folder / "policy.yaml").write_text(POLICY)
    notes = folder / "notes"
    notes.touch()
    notify = folder / "notify.sh"
    notify.write_text(f"#!/bin/sh\ncat >> {notes}\n")
    notify.chmod(0o700)
    api = controlplane.api
    controlplane.run_kubectl("create", "namespace", NS)
    api("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", CRD)
    for name in ("canary", "break-glass", "free", "edited"):
        # As kubectl apply leaves it: the values again, in the annotation.
        controlplane.run_kubectl("apply", "-f", "-", input=json.dumps(a_secret(name)))
    controlplane.run_kubectl("apply", "-f", "-", input=json.dumps(a_deployment()))
    controlplane.run_kubectl("apply", "-f", "-", input=json.dumps(CONFIG))
    controlplane.run_kubectl("create", "-f", "-", input=json.dumps(EVENT))
    deadline = time.monotonic() + 20
    while controlplane.request("GET", THINGS)[0] != 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    controlplane.run_kubectl("apply", "--validate=false", "-f", "-", input=json.dumps(THING))
    log = controlplane.pod_log.read_text()
    lines = [f"{name}: password={value}" for name, value in canaries.TEXTS.items() if "\n" not in value]
    controlplane.pod_log.write_text(log + "\n".join([*lines, canaries.PRIVATE_KEY]) + "\n")
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")]
    with gateway.running(
        folder,
        *arguments,
        "--",
        "--set",
        f"tollgate_notify_command={notify}",
        "--set",
        "tollgate_identity_rate=0",
        "--set",
        "tollgate_source_rate=0",
    ) as one:
        yield Stage(one, controlplane, notes)
    controlplane.pod_log.write_text(log)
    for name in ("canary", "finalized"):
        controlplane.request("PATCH", f"{SECRETS}/{name}", {"metadata": {"finalizers": None}})
    controlplane.run_kubectl("delete", "namespace", NS, "--wait=false")
    controlplane.run_kubectl("delete", "crd", "things.masking.example", "--wait=false")


def text_of(done):
    return (done.stdout + done.stderr).encode()


ALL = (*VALUES.values(), PIN, WORD)


def assert_clean(output, *, of=ALL):
    found = canaries.seen_in(output, of)
    assert not found, (found, output[:3000])


ACCEPTS = {
    "JSON": "application/json",
    "anything": "*/*",
    "nothing said": "",
    "a Table": TABLE,
    "PartialObjectMetadata": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    "PartialObjectMetadataList": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
    "protobuf": PROTOBUF,
    "protobuf or JSON": f"{PROTOBUF},application/json",
    "protobuf metadata": f"{PROTOBUF};as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    "YAML": "application/yaml",
    "CBOR": "application/cbor",
    "a browser's": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8",
}
READS = {
    "a Secret": SECRET,
    "Secrets": SECRETS,
    "Secrets everywhere": "/api/v1/secrets",
    "one by a selector": f"{SECRETS}?fieldSelector=metadata.name%3Dcanary",
    "a page": f"{SECRETS}?limit=2",
    "pretty": f"{SECRET}?pretty=true",
    "a Deployment": f"{APPS}/deployments/canary",
    "Deployments": f"{APPS}/deployments",
    "ReplicaSets": f"{APPS}/replicasets",
    "a ConfigMap": f"{CORE}/configmaps/canary",
    "ConfigMaps": f"{CORE}/configmaps",
    "Events": f"{CORE}/events",
    "new Events": f"/apis/events.k8s.io/v1/namespaces/{NS}/events",
    "a custom resource": f"{THINGS}/canary",
    "custom resources": THINGS,
}


@pytest.mark.parametrize("accept", ACCEPTS)
@pytest.mark.parametrize("what", READS)
def test_reads(stage, what, accept):
    headers = {"Accept": ACCEPTS[accept]} if ACCEPTS[accept] else {}
    answer = stage.request("GET", READS[what], headers=headers)
    # 406: not in this form; 500: the server has a list of metadata of one custom resource.
    assert answer.status in (200, 406, 500), answer
    assert_clean(answer.body + str(answer.headers).encode())
    if answer.status == 200:
        json.loads(answer.body)


@pytest.mark.parametrize("include", ["Object", "Metadata", "None"])
@pytest.mark.parametrize("path", [SECRETS, SECRET, f"{APPS}/deployments", THINGS])
def test_tables(stage, path, include):
    answer = stage.request("GET", f"{path}?includeObject={include}", headers={"Accept": TABLE})
    assert json.loads(answer.body)["kind"] == "Table"
    assert_clean(answer.body)


@pytest.mark.parametrize("what", READS)
async def test_reads_over_http2(stage, what):
    for accept in (TABLE, PROTOBUF, "application/json"):
        answer = await stage.over_http2(READS[what], accept=accept)
        assert answer.status == 200
        assert_clean(bytes(answer.body) + str(answer.headers).encode())


def test_the_canaries_are_there(stage):
    """What the tests above would have seen."""
    for path, values in (
        (SECRET, VALUES.values()),
        (f"{APPS}/deployments/canary", [PASSWORD, VALUES["url"], VALUES["github token"]]),
        (f"{CORE}/configmaps/canary", [VALUES["token"], VALUES["private key"]]),
        (f"{CORE}/events/canary", [b"canary:Xq9zKwPl4"]),
    ):
        seen = canaries.seen_in(stage.request("GET", path, "engineer").body, values)
        assert seen == list(values)
    # Masked for people too, by the rule.
    thing = stage.request("GET", f"{THINGS}/canary", "engineer")
    assert thing.status == 200
    assert_clean(thing.body, of=(PIN, WORD))
    assert b"plain-user" in thing.body


def test_a_masked_secret_is_still_one(stage):
    secret = json.loads(stage.request("GET", SECRET).body)
    assert secret["data"].keys() == DATA.keys()
    for value in secret["data"].values():
        assert base64.b64decode(value).startswith(b"**masked:")
    assert "managedFields" not in secret["metadata"]
    assert secret == json.loads(stage.request("GET", SECRET).body)  # stable
    deployment = json.loads(stage.request("GET", f"{APPS}/deployments/canary").body)
    env = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [e["value"].startswith("**masked") for e in env] == [True, False, False]
    assert env[2]["value"] == "info"


INITIAL = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
WATCHES = {
    "Secrets": SECRETS,
    "the initial events of Secrets": f"{SECRETS}?{INITIAL}",
    "the old way": f"/api/v1/watch/namespaces/{NS}/secrets",
    "one Secret": f"{SECRETS}?fieldSelector=metadata.name%3Dcanary",
    "Deployments": f"{APPS}/deployments",
    "ConfigMaps": f"{CORE}/configmaps",
    "custom resources": THINGS,
    "pretty": f"{SECRETS}?pretty=true",
}


@pytest.mark.parametrize("accept", ["application/json", TABLE, PROTOBUF, f"{PROTOBUF};stream=watch"])
@pytest.mark.parametrize("what", WATCHES)
def test_watches(stage, what, accept):
    path = WATCHES[what]
    answer = stage.request(
        "GET", f"{path}{'&' if '?' in path else '?'}watch=1&timeoutSeconds=1", headers={"Accept": accept}
    )
    assert answer.status == 200
    events = [json.loads(line) for line in answer.body.splitlines()]
    assert "ADDED" in {event["type"] for event in events}
    assert_clean(answer.body)
    if "initial" in what:
        assert any(event["type"] == "BOOKMARK" and "initial-events-end" in json.dumps(event) for event in events)


async def test_a_watch_over_http2_goes_on(stage):
    """Each event as it comes, and no end of the stream."""
    token = ("authorization", f"Bearer {stage.tokens['agent']}")
    async with http2.connect(stage.gateway.port, stage.gateway.ca_file) as connection:
        answer = connection.start(f"{SECRETS}?watch=1", headers=(token,))
        await answer.until(lambda a: b"masked" in a.body or b"Kiptb" in a.body or a.body.count(b"\n") >= 3)
        name = next(NAMES)
        before = len(answer.body)
        await asyncio.to_thread(stage.cluster.api, "POST", SECRETS, a_secret(name))
        await answer.until(lambda a: name.encode() in a.body[before:])
        assert not answer.ended.is_set()
        assert_clean(bytes(answer.body))


@pytest.mark.parametrize("follow", [False, True])
async def test_logs(stage, follow):
    pod = stage.cluster.pods("shop")[0]
    path = f"/api/v1/namespaces/shop/pods/{pod}/log" + ("?follow=true" if follow else "")
    known = [v for n, v in VALUES.items() if n not in ("bytes", "lines")]
    async with http2.connect(stage.gateway.port, stage.gateway.ca_file) as connection:
        answer = connection.start(path, headers=(("authorization", f"Bearer {stage.tokens['agent']}"),))
        await answer.until(lambda a: b"END RSA" in a.body or a.body.count(b"masked:") >= 10 or a.ended.is_set())
        if follow:
            await asyncio.to_thread(append, stage.cluster.pod_log, f"one more line, token={canaries.JWT}\n")
            await answer.until(lambda a: b"one more line" in a.body)
            assert not answer.ended.is_set()
        assert b"listening on :8080" in answer.body
        assert_clean(bytes(answer.body), of=known)
    assert canaries.seen_in(stage.request("GET", path.partition("?")[0], "engineer").body, known) == known


def append(file, text):
    with file.open("a") as out:
        out.write(text)


DRY = pytest.mark.parametrize("dry", ["?dryRun=All", ""], ids=["dry run", "real"])
FORMS = pytest.mark.parametrize("accept", ["application/json", f"{TABLE}", PROTOBUF])


@DRY
@FORMS
def test_the_answer_to_a_create(stage, dry, accept):
    for path, made in ((SECRETS, a_secret), (f"{APPS}/deployments", a_deployment)):
        answer = stage.request("POST", path + dry, body=made(next(NAMES)), headers={"Accept": accept})
        assert answer.status == 201, answer
        assert_clean(answer.body)


@DRY
@FORMS
def test_the_answer_to_a_patch_of_something_else(stage, dry, accept):
    answer = stage.request(
        "PATCH",
        f"{SECRET}{dry or '?'}&includeObject=Object",
        body=json.dumps({"metadata": {"labels": {"a": "b"}}}).encode(),
        headers={"Content-Type": MERGE, "Accept": accept},
    )
    assert answer.status == 200, answer
    assert_clean(answer.body)


@DRY
@FORMS
def test_the_answer_to_a_delete(stage, dry, accept):
    name = next(NAMES)
    stage.cluster.api("POST", SECRETS, a_secret(name, finalizers=["example.com/keep"]))
    answer = stage.request("DELETE", f"{SECRETS}/{name}{dry}", headers={"Accept": accept})
    assert answer.status == 200, answer
    assert_clean(answer.body)
    stage.cluster.run_kubectl("patch", "secret", name, "-n", NS, "-p", '{"metadata":{"finalizers":null}}')


@FORMS
def test_the_answer_to_a_collection_delete(stage, accept):
    answer = stage.request("DELETE", f"{SECRETS}?dryRun=All", headers={"Accept": accept})
    assert answer.status == 200, answer
    assert_clean(answer.body)
    assert b"canary" in answer.body  # the whole list


@DRY
def test_the_answer_to_an_apply_of_a_label(stage, dry):
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "canary", "labels": {"applied": "yes"}}}
    answer = stage.patch(f"{SECRET}{dry or '?'}&fieldManager=test", body, APPLY)
    assert answer.status == 200, answer
    assert_clean(answer.body)


@DRY
def test_a_token(stage, dry):
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["x"]}}
    answer = stage.request("POST", f"/api/v1/namespaces/agents/serviceaccounts/ci-agent/token{dry}", body=body)
    assert answer.status == 201
    assert json.loads(answer.body)["status"]["token"].startswith("**masked:")
    engineer = stage.request(
        "POST", f"/api/v1/namespaces/agents/serviceaccounts/ci-agent/token{dry}", "engineer", body=body
    )
    assert json.loads(engineer.body)["status"]["token"].startswith("eyJ")


# A secret that somebody writes where names belong: what quotes it is masked for him who may not see Secrets;
# in records it is what it was written as, a label, a variable's name, a key.
MISPLACED = b"Misplaced'Xq9/+&=?#%zKw<>"


def test_errors_that_quote(stage):
    bad = a_secret(next(NAMES)) | {"type": "kubernetes.io/dockerconfigjson"}
    bad["metadata"]["labels"] = {"bad": MISPLACED.decode()}
    answer = stage.request("POST", SECRETS, body=bad)
    assert answer.status == 422
    assert_clean(answer.body, of=[*ALL, MISPLACED])
    deployment = a_deployment(next(NAMES))
    deployment["spec"]["template"]["spec"]["containers"][0]["env"][0]["name"] = MISPLACED.decode()
    deployment["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = "x"
    answer = stage.request("POST", f"{APPS}/deployments", body=deployment)
    assert answer.status == 422
    assert_clean(answer.body)
    unknown = {"apiVersion": "v1", "kind": "Secret", "stringData": {"a": PASSWORD.decode()}}
    answer = stage.request(
        "POST",
        f"{SECRETS}?fieldValidation=Warn",
        body={**unknown, MISPLACED.decode(): 1, "metadata": {"name": next(NAMES)}},
    )
    assert answer.status == 201
    assert_clean(answer.body, of=[PASSWORD, MISPLACED])


# A write is a read: each refused or held, dry run or not.


def steps(*operations):
    return [dict(zip(("op", "path", "from"), one, strict=False)) for one in operations]


READS_BACK = {
    "copy": steps(("copy", "/metadata/annotations/leak", "/data/password")),
    "move": steps(("move", "/type", "/data/password")),
    "copy of an ancestor": steps(("copy", "/metadata/annotations/x", "/data")),
    "copy of all": steps(("copy", "/metadata/labels", "")),
    "test": [{"op": "test", "path": "/data/password", "value": DATA["password"]}],
    "test of a wrong guess": [{"op": "test", "path": "/data/password", "value": "eA=="}],
    "test of all of the data": [{"op": "test", "path": "/data", "value": DATA}],
    "test of an annotation": [{"op": "test", "path": "/metadata/annotations", "value": {}}],
}


@DRY
@pytest.mark.parametrize("what", READS_BACK)
def test_a_json_patch_that_reads(stage, what, dry):
    answer = stage.patch(SECRET + dry, READS_BACK[what], JSON_PATCH)
    assert (answer.status, answer.reason) == (403, "masked-read"), answer
    assert_clean(answer.body)


@DRY
def test_a_json_patch_that_reads_an_environment(stage, dry):
    operations = steps(("copy", "/metadata/annotations", "/spec/template/spec/containers/0/env/0"))
    answer = stage.patch(f"{APPS}/deployments/canary{dry}", operations, JSON_PATCH)
    assert (answer.status, answer.reason) == (403, "masked-read"), answer


GUESSES = {
    "merge": ({"data": {"password": DATA["password"]}}, MERGE),
    "strategic": ({"stringData": {"password": PASSWORD.decode()}}, STRATEGIC),
    "apply": (
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "canary"}, "data": {"password": DATA["password"]}},
        APPLY,
    ),
    "JSON patch": ([{"op": "replace", "path": "/data/password", "value": DATA["password"]}], JSON_PATCH),
}


@DRY
@pytest.mark.parametrize("guess", ["right", "wrong"])
@pytest.mark.parametrize("how", GUESSES)
def test_a_guess_is_held_and_tells_nothing(stage, how, guess, dry):
    body, media = GUESSES[how]
    text = json.dumps(body)
    if guess == "wrong":
        text = text.replace(DATA["password"], base64.b64encode(b"wrong").decode()).replace(PASSWORD.decode(), "wrong")
    path = f"{SECRET}{dry or '?'}" + ("&fieldManager=guesser" if media == APPLY else "")
    answer = stage.request(
        "PATCH", path, body=text.encode(), headers={"Content-Type": media, "Kubectl-Session": next(SESSIONS)}
    )
    assert answer.status == 403, answer
    assert "tollgate/masked-field" in answer.message
    assert_clean(answer.body)
    shown = json.dumps([a["status"] for a in stage.approvals() if a["metadata"]["name"] in answer.message])
    assert_clean(shown.encode())


SESSIONS = (f"5c2e9b0e-6d0c-4a6d-9a43-{n:012x}" for n in itertools.count())


def test_what_a_guess_shows_its_requester(stage):
    """The preview of an approval, which its requester sees too, is the same for a right and a wrong guess."""
    shown = []
    for value in (DATA["password"], base64.b64encode(b"wrong").decode()):
        answer = stage.patch(SECRET, {"data": {"password": value}})
        name = next(word for word in answer.message.replace(",", " ").split() if word.startswith("apr-")).strip(".;:")
        mine = stage.request("GET", f"/apis/tollgate.dev/v1alpha1/approvals/{name}")
        shown.append(json.loads(mine.body)["spec"]["preview"])
    assert shown[0] == shown[1]
    assert "password: '**masked** (changes)'" in json.dumps(shown[0])


def test_creating_stays_free(stage):
    assert stage.request("POST", SECRETS, body=a_secret(next(NAMES))).status == 201


def test_the_hold_is_lifted_by_a_rule_that_names_it(stage):
    answer = stage.patch(f"{SECRETS}/free", {"stringData": {"password": "Another-c4nary-Xq9"}})
    assert answer.status == 200
    assert b"Another" not in answer.body


@DRY
def test_people_write_as_they_like(stage, dry):
    answer = stage.patch(f"{SECRETS}/edited{dry}", {"stringData": {"password": PASSWORD.decode()}}, who="engineer")
    assert answer.status == 200


# Masked values that come back.


@pytest.mark.parametrize("who", ["agent", "engineer"])
def test_a_masked_value_comes_back(stage, who):
    masked = json.loads(stage.request("GET", SECRET).body)
    before = stage.cluster.api("GET", SECRET)["data"]
    put = stage.request("PUT", SECRET, who, body=masked)
    patch = stage.patch(SECRET, {"data": {"password": masked["data"]["password"]}}, who=who)
    created = stage.request("POST", SECRETS, who, body={**masked, "metadata": {"name": next(NAMES)}})
    applied = stage.patch(f"{SECRET}?fieldManager=x&force=true", masked, APPLY, who=who)
    for answer in (put, patch, created, applied):
        assert (answer.status, answer.reason) == (403, "masked-value"), answer
    assert stage.cluster.api("GET", SECRET)["data"] == before


# kubectl.


@pytest.fixture
def kubectl(stage, kubectl_program):
    def run(*args, who="agent", **more):
        return stage.kubectl(*args, who=who, program=kubectl_program, **more)

    return run


COMMANDS = [
    ("get", "secrets"),
    ("get", "secrets", "-o", "wide"),
    ("get", "secrets", "--sort-by=.metadata.name"),
    ("get", "secret", "canary", "-o", "yaml"),
    ("get", "secret", "canary", "-o", "json"),
    ("get", "secret", "canary", "-o", "jsonpath={.data.password}"),
    ("get", "secret", "canary", "-o", "go-template={{.data.password | base64decode}}"),
    ("get", "secret", "canary", "-o", "yaml", "--show-managed-fields"),
    ("get", "secrets", "-A", "-o", "json"),
    ("get", "all,cm,secret,things", "-o", "yaml"),
    ("get", "things", "-o", "wide"),
    ("get", "events"),
    ("get", "--raw", SECRETS),
    ("describe", "secret", "canary"),
    ("describe", "deployment", "canary"),
    ("describe", "configmap", "canary"),
    ("describe", "thing", "canary"),
    ("events",),
    ("apply", "view-last-applied", "secret", "canary"),
    ("label", "secret", "canary", "x=y", "--overwrite", "-o", "yaml"),
    ("set", "env", "deployment/canary", "--list"),
    (
        "create",
        "secret",
        "generic",
        "from-kubectl",
        f"--from-literal=p={PASSWORD.decode()}",
        "--dry-run=server",
        "-o",
        "yaml",
    ),
    ("cluster-info", "dump", "--namespaces", NS),
    ("delete", "secret", "--all", "--dry-run=server", "-o", "name"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_kubectl(kubectl, command):
    done = kubectl(*command)
    assert done.returncode == 0, done
    assert_clean(text_of(done))


def test_kubectl_watches(stage, kubectl_program):
    process = subprocess.Popen(
        [kubectl_program, "get", "secrets", "-w", "-o", "json"],
        env=stage.cluster.kubectl_env(stage.configs["agent"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    time.sleep(1.5)
    process.terminate()
    out, _ = process.communicate(timeout=10)
    assert b"canary" in out
    assert_clean(out)


def test_kubectl_watches_a_table(stage, kubectl_program):
    """The later rows come without their columns, and show names all the same."""
    process = subprocess.Popen(
        [kubectl_program, "get", "secrets", "-w"],
        env=stage.cluster.kubectl_env(stage.configs["agent"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    time.sleep(1)
    name = next(NAMES)
    stage.cluster.api("POST", SECRETS, a_secret(name))
    stage.cluster.run_kubectl("label", "secret", name, "-n", NS, "a=b")
    time.sleep(0.5)
    process.terminate()
    out, _ = process.communicate(timeout=10)
    assert out.decode().count(name) == 2
    assert_clean(out)


def test_kubectl_edit(kubectl, stage, tmp_path):
    """An edit of a label passes and leaves the data alone; an edit that writes the masked data is refused."""
    before = stage.cluster.api("GET", f"{SECRETS}/edited")["data"]
    script = tmp_path / "editor.sh"
    script.write_text('#!/bin/sh\nsed -i \'s/^  name: edited/  labels: {edited: "yes"}\\n  name: edited/\' "$1"\n')
    script.chmod(0o700)
    done = subprocess.run(
        [stage.cluster.kubectl, "edit", "secret", "edited"],
        env={**stage.cluster.kubectl_env(stage.configs["agent"]), "KUBE_EDITOR": str(script)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done
    after = stage.cluster.api("GET", f"{SECRETS}/edited")
    assert after["metadata"]["labels"]["edited"] == "yes"
    assert after["data"] == before


def test_kubectl_replaces_a_saved_one(kubectl, stage):
    saved = kubectl("get", "secret", "edited", "-o", "yaml").stdout
    for args in (
        ("replace", "-f", "-"),
        ("apply", "-f", "-"),
        ("apply", "--server-side", "--force-conflicts", "-f", "-"),
    ):
        done = kubectl(*args, input=saved)
        assert done.returncode, done
        assert "masked value" in done.stderr, done
    for args in (("get", "secret", "edited", "-o", "yaml"),):
        assert PASSWORD.decode() not in kubectl(*args).stdout


def test_kubectl_applies_a_new_one(kubectl, stage):
    name = next(NAMES)
    done = kubectl("apply", "-f", "-", input=json.dumps(a_secret(name)))
    assert done.returncode == 0, done
    assert stage.cluster.api("GET", f"{SECRETS}/{name}")["data"] == DATA


def test_kubectl_of_an_engineer(kubectl, stage):
    shown = kubectl("get", "secret", "canary", "-o", "json", who="engineer")
    assert json.loads(shown.stdout)["data"] == DATA
    assert kubectl("describe", "secret", "canary", who="engineer").returncode == 0
    assert kubectl("get", "secrets", who="engineer").returncode == 0
    applied = a_secret("edited")
    applied["data"] = applied["data"] | {"more": "eA=="}
    done = kubectl("apply", "-f", "-", who="engineer", input=json.dumps(applied))
    assert done.returncode == 0, done
    assert stage.cluster.api("GET", f"{SECRETS}/edited")["data"] == applied["data"]


# The Python client.


async def test_the_python_client(stage):
    configuration = kubernetes.Configuration()
    await kubernetes_config.load_kube_config(str(stage.configs["agent"]), client_configuration=configuration)
    async with kubernetes.ApiClient(configuration) as api:
        core = kubernetes.CoreV1Api(api)
        one = await core.read_namespaced_secret("canary", NS)
        several = await core.list_namespaced_secret(NS)
        every = await core.list_secret_for_all_namespaces()
        made = await core.create_namespaced_secret(NS, a_secret(next(NAMES)))
        patched = await core.patch_namespaced_secret("canary", NS, {"metadata": {"labels": {"p": "q"}}})
        config = await core.read_namespaced_config_map("canary", NS)
        for answer in (one, several, every, made, patched, config):
            assert_clean(json.dumps(api.sanitize_for_serialization(answer)).encode())
        assert one.data.keys() == DATA.keys()


# Break-glass, approvals, notifications, the log.


def test_break_glass(stage):
    waits = subprocess.Popen(
        [stage.cluster.kubectl, "get", "secret", "break-glass", "-o", "json"],
        env=stage.cluster.kubectl_env(stage.configs["agent"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    asked = stage.pending("get secrets break-glass")
    assert stage.decide(asked["metadata"]["name"]).status == 200
    out, _ = waits.communicate(timeout=20)
    assert json.loads(out)["data"] == DATA
    assert "reveal: " in stage.gateway.log


def test_a_change_that_was_approved(stage):
    """The approver sees that it changes, and neither value; then the same command passes."""
    name = next(NAMES)
    stage.cluster.api("POST", SECRETS, a_secret(name))
    command = ("patch", "secret", name, "-p", json.dumps({"stringData": {"password": "New-c4nary-Value9"}}))
    held = stage.kubectl(*command)
    assert held.returncode
    asked = stage.pending(name)
    described = stage.kubectl("describe", "approval", asked["metadata"]["name"], who="approver")
    assert "password: '**masked** (changes)'" in described.stdout
    assert "New-c4nary-Value9" not in described.stdout
    assert_clean(described.stdout.encode())
    assert stage.decide(asked["metadata"]["name"]).status == 200
    done = stage.kubectl(*command)
    assert done.returncode == 0, done
    stored = stage.cluster.api("GET", f"{SECRETS}/{name}")["data"]["password"]
    assert base64.b64decode(stored) == b"New-c4nary-Value9"


def test_nothing_of_it_is_kept(stage):
    """The last one of this file: what the gateway logged, stored, recorded and told while all of the above went on."""
    assert_clean(stage.gateway.log.encode())
    assert_clean(stage.notes.read_bytes())
    assert stage.notes.read_bytes()
    assert_clean(json.dumps(stage.approvals()).encode())
    kept = [file for name in ("state", "recordings") for file in stage.gateway.folder.joinpath(name).rglob("*")]
    assert any(file.name == "events.jsonl" for file in kept)
    for file in kept:
        if file.is_file() and "patterns" not in file.parts:
            with contextlib.suppress(OSError):
                assert_clean(file.read_bytes())
