"""
Attacks on masking: an agent that the policy allows everything tries to get a Secret's bytes, or the answer
to a guess, out of a real API server.

What an engineer gets by the same request shows that there was something to get.
"""

import base64
import itertools
import json
import re
import subprocess
import time

import pytest

from tests import canaries
from tests.e2e import client, gateway

pytestmark = pytest.mark.e2e

NS = "attacks"
CORE = f"/api/v1/namespaces/{NS}"
SECRETS = f"{CORE}/secrets"
PODS, CONFIGS = f"{CORE}/pods", f"{CORE}/configmaps"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NS}/deployments"
BOXES = f"/apis/attacks.example/v1/namespaces/{NS}/boxes"
THINGS = f"/apis/attacks.example/v1/namespaces/{NS}/things"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
PEOPLE = "tollgate:system:serviceaccounts:people"
POLICY = f"""
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {{name: attacks}}
people: '"{PEOPLE}" in identity.groups'
rules:
- {{name: everything, action: allow, match: {{verbs: ["*"], resources: ["*", "*/*"]}}}}
- {{name: everything-else, action: allow, match: {{verbs: ["*"], nonResourceURLs: ["*"]}}}}
mask:
- name: things
  match: {{resources: [things.attacks.example]}}
  fields: ["spec.credentials[*].word", spec.pin]
  mask: always
"""
JSON_PATCH, MERGE, STRATEGIC, APPLY = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
VALUES = canaries.VALUES
DATA = {name.replace(" ", "-"): base64.b64encode(value).decode() for name, value in VALUES.items()}
PASSWORD, URL = canaries.TEXTS["password"], canaries.TEXTS["url"]
PIN, WORD = "canary pin of a thing", "canary word of a thing"
NAMES = (f"n{number}" for number in itertools.count())


def a_crd(plural, kind, *columns, **more):
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.attacks.example"},
        "spec": {
            "group": "attacks.example",
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": plural[:-1], "kind": kind, "listKind": f"{kind}List"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {
                                "spec": {
                                    "type": "object",
                                    "x-kubernetes-preserve-unknown-fields": True,
                                    "properties": {"pin": {"type": "string"}, "password": {"type": "string"}},
                                },
                                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                            },
                        }
                    },
                    "additionalPrinterColumns": [
                        {"name": name, "type": "string", "jsonPath": path} for name, path in columns
                    ],
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".spec.pin",
                        },
                    },
                    **more,
                }
            ],
        },
    }


def a_secret(name):
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NS}, "data": DATA}


def a_box(name):
    """Only names and shapes tell what is secret in it."""
    return {
        "apiVersion": "attacks.example/v1",
        "kind": "Box",
        "metadata": {"name": name, "namespace": NS},
        "spec": {
            "password": PASSWORD,
            "passwords": [PASSWORD],
            "header": {"name": "API_TOKEN", "value": PASSWORD},
            "env": [{"name": "DB_PASSWORD", "value": PASSWORD}],
            "args": ["--token", PASSWORD],
            "url": URL,
            "inner": {"password": PASSWORD, "list": [{"token": PASSWORD}]},
        },
    }


def a_thing(name):
    return {
        "apiVersion": "attacks.example/v1",
        "kind": "Thing",
        "metadata": {"name": name, "namespace": NS},
        "spec": {"pin": PIN, "credentials": [{"user": "u", "word": WORD}], "other": "x", "replicas": 1},
        "status": {"replicas": 1},
    }


def an_event(name):
    about = {"kind": "Pod", "name": "canary", "namespace": NS}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": NS},
        "involvedObject": about,
        "reason": "Failed",
        "type": "Warning",
        "message": URL,
    }


def a_pod_spec():
    return {
        "containers": [
            {
                "name": "c",
                "image": "registry.example/c:1",
                "env": [{"name": "DB_PASSWORD", "value": PASSWORD}, {"name": "DATABASE_URL", "value": URL}],
                "args": ["--token", PASSWORD, "--level=info"],
                "livenessProbe": {
                    "httpGet": {
                        "port": 80,
                        "httpHeaders": [{"name": "Authorization", "value": f"Bearer {canaries.JWT}"}],
                    }
                },
            }
        ],
        "nodeSelector": {"nowhere": "x"},
    }


def a_pod(name):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NS}, "spec": a_pod_spec()}


def a_template(name):
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": a_pod_spec()}
    meta = {"name": name, "namespace": NS}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}


def a_config(name):
    data = {"db.password": PASSWORD, "app.yaml": f"level: info\ndatabase: {URL}\npassword: {PASSWORD}\n"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": NS}, "data": data}


MAKE = {
    SECRETS: a_secret,
    PODS: a_pod,
    DEPLOYMENTS: a_template,
    CONFIGS: a_config,
    BOXES: a_box,
    THINGS: a_thing,
    f"{CORE}/events": an_event,
}


class Stage:
    def __init__(self, one, cluster):
        self.gateway, self.cluster = one, cluster
        self.tokens = {"agent": cluster.token("agents", "ci-agent"), "engineer": cluster.token("people", "engineer")}

    def request(self, method, path, who="agent", **more):
        return client.request(self.gateway.port, self.gateway.ca_file, method, path, token=self.tokens[who], **more)

    def patch(self, path, body, media, who="agent"):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("PATCH", path, who, body=raw, headers={"Content-Type": media})

    def made(self, collection):
        """The path of a new object with canaries."""
        name = next(NAMES)
        self.cluster.api("POST", collection, MAKE[collection](name))
        return f"{collection}/{name}"


@pytest.fixture(scope="module")
def stage(controlplane, gateway_kubeconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacks")
    (folder / "policy.yaml").write_text(POLICY)
    api = controlplane.api
    controlplane.run_kubectl("create", "namespace", NS)
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    fields = [{"jsonPath": ".spec.pin"}, {"jsonPath": ".spec.password"}]
    api("POST", definitions, a_crd("boxes", "Box", ("Age", ".spec.password"), selectableFields=fields))
    columns = (("Age", ".spec.pin"), ("Namespace", ".spec.pin"), ("Created At", ".spec.credentials[0].word"))
    api("POST", definitions, a_crd("things", "Thing", *columns, selectableFields=fields))
    deadline = time.monotonic() + 20
    for path in (BOXES, THINGS, f"/api/v1/namespaces/{NS}/serviceaccounts/default"):
        while controlplane.request("GET", path)[0] != 200 and time.monotonic() < deadline:
            time.sleep(0.1)
    for collection, make in MAKE.items():
        api("POST", collection, make("canary"))
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")]
    rates = ["--", "--set", "tollgate_identity_rate=0", "--set", "tollgate_source_rate=0"]
    with gateway.running(folder, *arguments, *rates) as one:
        yield Stage(one, controlplane)
    controlplane.run_kubectl("delete", "namespace", NS, "--wait=false")
    controlplane.run_kubectl("delete", "crd", "things.attacks.example", "boxes.attacks.example", "--wait=false")


ALL = (*VALUES.values(), PIN.encode(), WORD.encode())


def assert_clean(*outputs, of=ALL):
    for output in outputs:
        found = canaries.seen_in(output, of)
        assert not found, (found, output[:3000])


def everything(answer):
    return json.dumps(answer.headers).encode() + answer.body


# JSON patches that carry what is masked elsewhere. Whatever comes of them, it is not to be seen.


def step(op, path, source=None, **more):
    return {"op": op, "path": path} | ({"from": source} if source is not None else {}) | more


def copied(source, to="/metadata/annotations", op="copy"):
    return [step(op, to, source)]


TEMPLATE = "/spec/template/spec"
CONTAINER = f"{TEMPLATE}/containers/0"
NOTED = step("add", "/metadata/annotations", value={})
CARRIERS = {
    # (collection, operations)
    "a pointer whose first step is no step": (SECRETS, [NOTED, *copied("x/data/password", "/metadata/annotations/a")]),
    "a pointer without a slash": (SECRETS, copied("data", "/metadata/labels")),
    "an empty pointer": (SECRETS, copied("", "/metadata/labels")),
    "a slash": (SECRETS, copied("/", "/metadata/labels")),
    "a doubled slash": (SECRETS, copied("//data/password", "/metadata/labels/a")),
    "an escaped step": (SECRETS, copied("/d~0ata/password", "/metadata/labels/a")),
    "the data into the labels": (SECRETS, copied("/data", "/metadata/labels")),
    "into the type": (SECRETS, copied("/data/password", "/type", "move")),
    "into the name": (SECRETS, copied("/data/password", "/metadata/name")),
    "into the kind": (SECRETS, copied("/data/password", "/kind")),
    "into the apiVersion": (SECRETS, copied("/data/password", "/apiVersion")),
    "into a label's key": (SECRETS, copied("/data", "/metadata/labels", "move")),
    "by two steps": (SECRETS, [*copied("/data", "/metadata/x"), *copied("/metadata/x/password", "/metadata/labels/a")]),
    "from under metadata": (SECRETS, copied("/metadata", "/metadata/labels")),
    "the managed fields": (SECRETS, copied("/metadata/managedFields", "/metadata/labels")),
    "a box's password": (BOXES, copied("/spec/password", "/spec/x")),
    "the value of a variable": (BOXES, copied("/spec/env/0/value", "/spec/x")),
    "the value of the last variable": (BOXES, copied("/spec/env/-1/value", "/spec/x")),
    "a value with a name": (BOXES, copied("/spec/header/value", "/spec/x")),
    "an item of a list of passwords": (BOXES, copied("/spec/passwords/0", "/spec/x")),
    "an argument": (BOXES, copied("/spec/args/1", "/spec/x")),
    "the arguments under another name": (BOXES, [*copied("/spec/args", "/spec/x"), step("remove", "/spec/x/0")]),
    "a URL into a dull field": (BOXES, copied("/spec/url", "/spec/kind")),
    "a URL into a dull field below": (BOXES, [step("add", "/spec/x", value={}), *copied("/spec/url", "/spec/x/uid")]),
    "a URL into a list's dull field": (BOXES, copied("/spec/url", "/spec/resourceVersion", "move")),
    "another name beside a value": (BOXES, [step("replace", "/spec/env/0/name", value="x")]),
    "a name that goes": (BOXES, [step("remove", "/spec/env/0/name")]),
    "a name beside a copy": (
        BOXES,
        [*copied("/spec/env/0", "/spec/x"), step("replace", "/spec/x/name", value="LOG_LEVEL")],
    ),
    "a flag that goes": (BOXES, [step("remove", "/spec/args/0")]),
    "another flag before": (BOXES, [step("replace", "/spec/args/0", value="--level")]),
    "something between": (BOXES, [step("add", "/spec/args/1", value="x")]),
    "a thing's pin": (THINGS, copied("/spec/pin", "/spec/other")),
    "all of a thing's spec": (THINGS, copied("/spec", "/status")),
    "a word of a thing": (THINGS, copied("/spec/credentials/0/word", "/spec/other")),
    "the last word of a thing": (THINGS, copied("/spec/credentials/-1/word", "/spec/other")),
    "an item of a thing": (THINGS, copied("/spec/credentials/0", "/spec/other")),
    "a thing's pin into a label": (THINGS, copied("/spec/pin", "/metadata/labels", "move")),
    "a variable's value into a label": (DEPLOYMENTS, copied(f"{CONTAINER}/env/0/value", "/metadata/labels/a")),
    "a variable into the annotations": (DEPLOYMENTS, copied(f"{CONTAINER}/env/0", "/metadata/annotations")),
    "a container into an init container": (
        DEPLOYMENTS,
        [step("add", f"{TEMPLATE}/initContainers", value=[]), *copied(CONTAINER, f"{TEMPLATE}/initContainers/0")],
    ),
    "a header under another name": (
        DEPLOYMENTS,
        [step("replace", f"{CONTAINER}/livenessProbe/httpGet/httpHeaders/0/name", value="X-A")],
    ),
    "a variable under another name": (DEPLOYMENTS, [step("replace", f"{CONTAINER}/env/0/name", value="A")]),
    "an argument into the image": (DEPLOYMENTS, copied(f"{CONTAINER}/args/1", f"{CONTAINER}/image")),
    "a key of a ConfigMap": (CONFIGS, copied("/data/db.password", "/data/x", "move")),
    "a file of a ConfigMap": (CONFIGS, copied("/data/app.yaml", "/binaryData/x")),
    "an event's message": (f"{CORE}/events", copied("/message", "/involvedObject/kind")),
    "an event's message into a uid": (f"{CORE}/events", copied("/message", "/involvedObject/uid")),
    "an event's message into a version": (f"{CORE}/events", copied("/message", "/involvedObject/resourceVersion")),
}
DRY = pytest.mark.parametrize("dry", ["", "?dryRun=All"], ids=["real", "dry run"])


@DRY
@pytest.mark.parametrize("what", CARRIERS)
def test_json_patches_that_carry(stage, what, dry):
    collection, operations = CARRIERS[what]
    path = stage.made(collection)
    answer = stage.patch(path + dry, operations, JSON_PATCH)
    after = stage.request("GET", path)
    listed = stage.request("GET", collection, headers={"Accept": TABLE})
    assert after.status == 200
    assert_clean(everything(answer), everything(after), everything(listed))


@pytest.mark.parametrize("media", [f"{JSON_PATCH}; charset=utf-8", JSON_PATCH.upper(), f" {JSON_PATCH} ;x=y", ""])
def test_json_patches_under_another_name(stage, media):
    path = stage.made(SECRETS)
    operations = [step("add", "/metadata/labels", value={}), *copied("/data/hex", "/metadata/labels/a")]
    answer = stage.patch(path, operations, media)
    assert answer.status >= 400, answer
    assert_clean(everything(answer), everything(stage.request("GET", path)))


# Guesses: a right one and a wrong one are answered alike.


def with_json(path, value):
    return lambda guess: ([step("test", path, value=value(guess))], JSON_PATCH)


def variable(guess):
    return {"name": "DB_PASSWORD", "value": guess}


def in_container(**fields):
    return {"spec": {"template": {"spec": {"containers": [{"name": "c", **fields}]}}}}


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def a_box_spec(guess):
    box = a_box("x")["spec"]
    return json.loads(json.dumps(box).replace(PASSWORD, guess))


GUESSES = {
    # (collection, guess -> (body, media type), the right one)
    "a test": (SECRETS, with_json("/data/password", encoded), PASSWORD),
    "a test beside the root": (SECRETS, with_json("x/data/password", encoded), PASSWORD),
    "a test of an ancestor": (SECRETS, with_json("/data", lambda g: DATA | {"password": encoded(g)}), PASSWORD),
    "a merge patch": (SECRETS, lambda g: ({"data": {"password": encoded(g)}}, MERGE), PASSWORD),
    "a merge patch in clear": (SECRETS, lambda g: ({"stringData": {"password": g}}, MERGE), PASSWORD),
    "a strategic one": (SECRETS, lambda g: ({"stringData": {"password": g}}, STRATEGIC), PASSWORD),
    "a strategic one that replaces": (
        SECRETS,
        lambda g: ({"data": DATA | {"password": encoded(g), "$patch": "replace"}}, STRATEGIC),
        PASSWORD,
    ),
    "an apply": (
        SECRETS,
        lambda g: ({"apiVersion": "v1", "kind": "Secret", "data": {"password": encoded(g)}}, APPLY),
        PASSWORD,
    ),
    "a test of a box's password": (BOXES, with_json("/spec/password", str), PASSWORD),
    "a test of a box's list": (BOXES, with_json("/spec/passwords/0", str), PASSWORD),
    "a test of a value": (BOXES, with_json("/spec/env/0/value", str), PASSWORD),
    "a test of a value with a name": (BOXES, with_json("/spec/header/value", str), PASSWORD),
    "a test of a variable": (
        BOXES,
        with_json("/spec/env/0", lambda g: {"name": "DB_PASSWORD", "value": g}),
        PASSWORD,
    ),
    "a test of an argument": (BOXES, with_json("/spec/args/1", str), PASSWORD),
    "a test of what is above": (BOXES, with_json("/spec/inner", lambda g: a_box_spec(g)["inner"]), PASSWORD),
    "a test of all of the spec": (BOXES, with_json("/spec", a_box_spec), PASSWORD),
    "a test of a URL": (BOXES, with_json("/spec/url", lambda g: URL.replace("Xq9zKwPl4", g)), "Xq9zKwPl4"),
    "a merge of a box's password": (BOXES, lambda g: ({"spec": {"password": g}}, MERGE), PASSWORD),
    "a merge of a box's list": (BOXES, lambda g: ({"spec": {"passwords": [g]}}, MERGE), PASSWORD),
    "a merge of a box's variables": (
        BOXES,
        lambda g: ({"spec": {"env": [{"name": "DB_PASSWORD", "value": g}]}}, MERGE),
        PASSWORD,
    ),
    "a replace of a box's item": (
        BOXES,
        lambda g: ([step("replace", "/spec/passwords/0", value=g)], JSON_PATCH),
        PASSWORD,
    ),
    "a replace of a value with a name": (
        BOXES,
        lambda g: ([step("replace", "/spec/header/value", value=g)], JSON_PATCH),
        PASSWORD,
    ),
    "a merge of a value with a name": (BOXES, lambda g: ({"spec": {"header": {"value": g}}}, MERGE), PASSWORD),
    "a test of a variable of a Deployment": (DEPLOYMENTS, with_json(f"{CONTAINER}/env/0/value", str), PASSWORD),
    "a test of all of its containers": (
        DEPLOYMENTS,
        with_json(
            f"{TEMPLATE}/containers",
            lambda g: json.loads(json.dumps([a_pod_spec()["containers"][0]]).replace(PASSWORD, g)),
        ),
        PASSWORD,
    ),
    "a strategic patch of its variable": (
        DEPLOYMENTS,
        lambda g: (in_container(env=[variable(g)]), STRATEGIC),
        PASSWORD,
    ),
    "one with a directive": (
        DEPLOYMENTS,
        lambda g: (in_container(env=[variable(g) | {"$patch": "merge"}]), STRATEGIC),
        PASSWORD,
    ),
    "one that replaces": (
        DEPLOYMENTS,
        lambda g: (in_container(env=[{"$patch": "replace"}, variable(g)]), STRATEGIC),
        PASSWORD,
    ),
    "one of its arguments": (
        DEPLOYMENTS,
        lambda g: (in_container(args=["--token", g, "--level=info"]), STRATEGIC),
        PASSWORD,
    ),
    "one of its URL": (
        DEPLOYMENTS,
        lambda g: (in_container(env=[{"name": "DATABASE_URL", "value": URL.replace("Xq9zKwPl4", g)}]), STRATEGIC),
        "Xq9zKwPl4",
    ),
    "an apply of its variable": (
        DEPLOYMENTS,
        lambda g: ({"apiVersion": "apps/v1", "kind": "Deployment", **in_container(env=[variable(g)])}, APPLY),
        PASSWORD,
    ),
    "a merge of a ConfigMap's key": (CONFIGS, lambda g: ({"data": {"db.password": g}}, MERGE), PASSWORD),
    "a merge of its file": (
        CONFIGS,
        lambda g: ({"data": {"app.yaml": a_config("x")["data"]["app.yaml"].replace(PASSWORD, g)}}, MERGE),
        PASSWORD,
    ),
    "a test of a thing's pin": (THINGS, with_json("/spec/pin", str), PIN),
    "a test of a thing's word": (THINGS, with_json("/spec/credentials/-1/word", str), WORD),
    "a merge of a thing's pin": (THINGS, lambda g: ({"spec": {"pin": g}}, MERGE), PIN),
    "an apply of a thing's pin": (
        THINGS,
        lambda g: ({"apiVersion": "attacks.example/v1", "kind": "Thing", "spec": {"pin": g}}, APPLY),
        PIN,
    ),
}


@DRY
@pytest.mark.parametrize("what", GUESSES)
def test_guesses(stage, what, dry):
    collection, make, right = GUESSES[what]
    path = stage.made(collection)
    answers = []
    for guess in (right, right[:-2] + "zz"):
        body, media = make(guess)
        more = ("&" if dry else "?") + "fieldManager=guesser" if media == APPLY else ""
        answer = stage.patch(path + dry + more, body, media)
        answers.append((answer.status, answer.reason))
        assert_clean(everything(answer))
    assert answers[0] == answers[1]
    assert answers[0][0] in (400, 403), answers


def test_a_put_with_a_guess(stage):
    for collection, make in ((SECRETS, a_secret), (DEPLOYMENTS, a_template), (CONFIGS, a_config)):
        path = stage.made(collection)
        body = make(path.rpartition("/")[2])
        right = stage.request("PUT", f"{path}?dryRun=All", body=body)
        wrong = stage.request(
            "PUT", f"{path}?dryRun=All", body=json.loads(json.dumps(body).replace(PASSWORD, PASSWORD[:-1] + "z"))
        )
        assert (right.status, wrong.status) == (403, 403), (right, wrong)


@pytest.mark.parametrize("guess", ["right", "wrong"])
def test_a_create_of_what_is_there(stage, guess):
    body = a_secret("canary") | ({} if guess == "right" else {"data": {"password": "eA=="}})
    answer = stage.request("POST", SECRETS, body=body)
    assert (answer.status, answer.message) == (409, 'secrets "canary" already exists')


def test_a_create_with_a_generated_name(stage):
    body = {**a_secret("x"), "metadata": {"generateName": "made-"}}
    answer = stage.request("POST", f"{SECRETS}?includeObject=Object", body=body, headers={"Accept": TABLE})
    assert answer.status == 201
    assert_clean(everything(answer))


@pytest.mark.parametrize("subresource", ["/status", "/scale"])
def test_guesses_by_a_subresource(stage, subresource):
    path = stage.made(THINGS)
    for guess in (PIN, "another"):
        answer = stage.patch(path + subresource, {"spec": {"pin": guess}}, MERGE)
        assert answer.status == 403, answer


@pytest.mark.parametrize(
    ("collection", "field", "right"), [(BOXES, "spec.password", PASSWORD), (THINGS, "spec.pin", PIN)]
)
@pytest.mark.parametrize("form", ["{}={}", "{}=={}", "{}!={}", "metadata.name=x,{}={}"])
@pytest.mark.parametrize("verb", ["GET", "DELETE"])
def test_field_selectors(stage, collection, field, right, form, verb):
    selector = form.format(field, right.replace(" ", "%20")).replace("=", "%3D").replace("!", "%21")
    answer = stage.request(verb, f"{collection}?dryRun=All&fieldSelector={selector}")
    assert (answer.status, answer.reason) == (403, "masked-selector"), answer


# Reads in odd forms.

READS = {
    "a HEAD": ("HEAD", f"{SECRETS}/canary", {}),
    "a legacy watch": ("GET", f"/api/v1/watch/namespaces/{NS}/secrets?timeoutSeconds=1", {}),
    "a legacy watch of one": ("GET", f"/api/v1/watch/namespaces/{NS}/secrets/canary?timeoutSeconds=1", {}),
    "a watch of one by its path": ("GET", f"{SECRETS}/canary?watch=true&timeoutSeconds=1", {}),
    "a watch said oddly": ("GET", f"{SECRETS}?watch&timeoutSeconds=1", {}),
    "a watch said twice": ("GET", f"{SECRETS}?watch=false&watch=true&timeoutSeconds=1", {}),
    "a watch that is yes": ("GET", f"{SECRETS}?watch=yes&timeoutSeconds=1", {}),
    "a trailing slash": ("GET", f"{SECRETS}/canary/", {}),
    "a doubled slash": ("GET", f"{CORE}//secrets/canary", {}),
    "an escaped letter": ("GET", f"{CORE}/%73ecrets/canary", {}),
    "a dot": ("GET", f"{CORE}/configmaps/../secrets/canary", {}),
    "a range": ("GET", f"{SECRETS}/canary", {"Range": "bytes=0-400"}),
    "an encoding": ("GET", SECRETS, {"Accept-Encoding": "br, zstd, deflate, gzip;q=1.0"}),
    "an encoding in capitals": ("GET", SECRETS, {"ACCEPT-ENCODING": "GZIP, *;q=0"}),
    "a WebSocket": (
        "GET",
        f"{SECRETS}?watch=true&timeoutSeconds=1",
        {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "eA=="},
    ),
    "rows with objects": ("GET", f"{SECRETS}?includeObject=Object", {"Accept": TABLE}),
    "rows without metadata": ("GET", f"{SECRETS}?includeObject=None", {"Accept": TABLE}),
    "a thing's status": ("GET", f"{THINGS}/canary/status", {}),
    "a thing's scale": ("GET", f"{THINGS}/canary/scale", {}),
    "a thing's columns": ("GET", THINGS, {"Accept": TABLE}),
    "a thing's columns, bare": ("GET", f"{THINGS}?includeObject=None", {"Accept": TABLE}),
    "a thing's columns, watched": ("GET", f"{THINGS}?watch=true&timeoutSeconds=1", {"Accept": TABLE}),
    "one thing's columns": ("GET", f"{THINGS}/canary?includeObject=Object", {"Accept": TABLE}),
    "a pod": ("GET", f"{PODS}/canary", {}),
    "a pod's status": ("GET", f"{PODS}/canary/status", {}),
    "a pod's ephemeral containers": ("GET", f"{PODS}/canary/ephemeralcontainers", {}),
    "a pod's size": ("GET", f"{PODS}/canary/resize", {}),
    "pods with all": ("GET", f"{PODS}?includeObject=Object", {"Accept": TABLE}),
    "a deployment": ("GET", f"{DEPLOYMENTS}/canary", {}),
    "a deployment's status": ("GET", f"{DEPLOYMENTS}/canary/status", {}),
    "replica sets": ("GET", f"/apis/apps/v1/namespaces/{NS}/replicasets", {}),
    "pods of a node": ("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3D", {}),
    "a ConfigMap": ("GET", f"{CONFIGS}/canary", {}),
    "a dry delete of pods": ("DELETE", f"{PODS}?dryRun=All", {}),
    "a dry delete of a deployment": ("DELETE", f"{DEPLOYMENTS}/canary?dryRun=All", {}),
    "a box's columns": ("GET", BOXES, {"Accept": TABLE}),
    "a box's status": ("GET", f"{BOXES}/canary/status", {}),
    "a dry delete": ("DELETE", f"{SECRETS}?dryRun=All", {}),
    "a dry delete of things": ("DELETE", f"{THINGS}?dryRun=All", {}),
    "a dry delete of boxes": ("DELETE", f"{BOXES}?dryRun=All", {}),
    "a dry delete as a Table": ("DELETE", f"{SECRETS}?dryRun=All&includeObject=Object", {"Accept": TABLE}),
}
ACCEPTS = [
    "application/json;as=Table;v=v1beta1;g=meta.k8s.io",
    "application/json;as=Table;v=v1",
    'application/json; as="Table"; v=v1; g=meta.k8s.io',
    "APPLICATION/JSON;AS=Table;V=v1;G=meta.k8s.io",
    "application/json;q=0.1,application/vnd.kubernetes.protobuf;q=1",
    "application/json;q=0,application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/vnd.kubernetes.protobuf;stream=watch",
    "application/json;stream=watch",
    "application/cbor",
    "application/cbor-seq",
    "application/yaml;q=1.0",
    "application/yaml;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
    "text/plain",
    "*",
    "*/*;q=0.8",
    "application/*",
    "application/json\t;as=Table;v=v1;g=meta.k8s.io",
    "application/json;profile=x;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
    ",,,",
    ";",
    "application/x-protobuf",
    "application/apply-patch+yaml",
]


@pytest.mark.parametrize("what", READS)
def test_odd_reads(stage, what):
    method, path, headers = READS[what]
    assert_clean(everything(stage.request(method, path, headers=headers)))


@pytest.mark.parametrize("what", READS)
def test_odd_reads_under_the_shipped_policy(stage, default_gateway, what):
    """Which refuses Secrets by itself; what else has secrets in it is read, and masked."""
    method, path, headers = READS[what]
    token = stage.tokens["agent"]
    answer = client.request(default_gateway.port, default_gateway.ca_file, method, path, token=token, headers=headers)
    if "/secrets" in path or method == "DELETE":
        assert answer.status in (400, 403), answer
    # The rule on the fields of things is of the other gateway's policy.
    assert_clean(everything(answer), of=VALUES.values())


@pytest.mark.parametrize("path", [f"{SECRETS}/canary", SECRETS, f"{SECRETS}?watch=true&timeoutSeconds=1", THINGS])
@pytest.mark.parametrize("accept", ACCEPTS)
def test_odd_accepts(stage, path, accept):
    assert_clean(everything(stage.request("GET", path, headers={"Accept": accept})))


def test_a_head_tells_no_length(stage):
    """The length of an object is the length of what is in it."""
    answer = stage.request("HEAD", f"{SECRETS}/canary")
    shown = len(stage.request("GET", f"{SECRETS}/canary", "engineer").body)
    assert answer.headers.get("content-length") != str(shown)


# What the API server says beside the object.


def an_admission_policy(name, action):
    """It minds a label of its own name, and its message quotes the Secret. Two objects: the policy, its binding."""
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["secrets"]}
    spec = {
        "failurePolicy": "Ignore",
        "matchConstraints": {"resourceRules": [rule]},
        "matchConditions": [{"name": "labelled", "expression": "has(object.metadata.labels)"}],
        "validations": [
            {
                "expression": f"!('{name}' in object.metadata.labels)",
                "messageExpression": "'it has ' + string(object.data['plain-word'])",
            }
        ],
    }
    head = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": f"attacks-{name}"}}
    binding = {"policyName": f"attacks-{name}", "validationActions": [action]}
    return (
        {**head, "kind": "ValidatingAdmissionPolicy", "spec": spec},
        {**head, "kind": "ValidatingAdmissionPolicyBinding", "spec": binding},
    )


@pytest.fixture(scope="module")
def telling_policy(stage):
    """ValidatingAdmissionPolicies with messages that tell; who may make one may choose Warn."""
    for name, action in (("warns", "Warn"), ("denies", "Deny")):
        policy, binding = an_admission_policy(name, action)
        stage.cluster.api("POST", f"{ADMISSION}/validatingadmissionpolicies", policy)
        stage.cluster.api("POST", f"{ADMISSION}/validatingadmissionpolicybindings", binding)
    path = f"{SECRETS}/canary"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        answer = stage.patch(f"{path}?dryRun=All", {"metadata": {"labels": {"warns": "x"}}}, MERGE, "engineer")
        if "warning" in answer.headers:
            break
        time.sleep(0.2)  # until the API server has compiled it
    yield
    for name in ("warns", "denies"):
        for kind in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
            stage.cluster.request("DELETE", f"{ADMISSION}/{kind}/attacks-{name}")


@DRY
@pytest.mark.parametrize("word", ["warns", "denies"])
def test_a_message_that_quotes(stage, telling_policy, word, dry):
    body = {"metadata": {"labels": {word: "x"}}}
    path = stage.made(SECRETS)
    seen = everything(stage.patch(path + "?dryRun=All", body, MERGE, "engineer"))
    value = DATA["plain-word"].encode()
    assert value in seen, seen
    answer = stage.patch(path + dry, body, MERGE)
    assert_clean(everything(answer))


def test_warnings_that_quote_nothing_stay(stage):
    body = a_secret(next(NAMES)) | {"nonsense": "x"}
    answer = stage.request("POST", f"{SECRETS}?fieldValidation=Warn", body=body)
    assert "nonsense" in answer.headers.get("warning", ""), answer


# Logs cut where the client likes: half a secret is one too.


def test_a_log_cut_in_the_middle(stage):
    """What is known by its value alone is told letter by letter otherwise."""
    cluster = stage.cluster
    value = f"{next(NAMES)}-Zk3Qv9Lw0Xy7Rt5Bn1"
    cluster.api("POST", SECRETS, a_secret(name := next(NAMES)) | {"data": {"a": encoded(value)}})
    stage.request("GET", f"{SECRETS}/{name}")  # the gateway learns it
    time.sleep(0.3)
    log = cluster.pod_log.read_text()
    try:
        cluster.pod_log.write_text(f"it is {value} so\n")
        path = f"/api/v1/namespaces/shop/pods/{cluster.pods('shop')[0]}/log"
        seen = [stage.request("GET", f"{path}?limitBytes={n}").body for n in range(6, 6 + len(value) + 4)]
        assert value.encode() in stage.request("GET", path, "engineer").body
    finally:
        cluster.pod_log.write_text(log)
    told = [body for body in seen if value[4:10].encode() in body]
    assert not told, told


def test_there_was_something_to_get(stage):
    for path in (f"{SECRETS}/canary", f"{BOXES}/canary"):
        answer = stage.request("GET", path, "engineer")
        assert canaries.seen_in(answer.body, ALL)
    assert PIN.encode() in json.dumps(stage.cluster.api("GET", f"{THINGS}/canary")).encode()


# And what is no attack: an agent's everyday commands work, and show what an engineer sees where nothing is secret.

SAME = [
    "get pods -n shop -o yaml",
    "get pods -n shop -o wide --no-headers=false",
    "get deployments,replicasets,services,configmaps,serviceaccounts -n shop -o json",
    "get nodes -o yaml",
    "get nodes -o wide",
    "get all -A -o name",
    "get crd -o yaml",
    "get clusterroles,clusterrolebindings -o yaml",
    "get apiservices -o json",
    "get flowschemas,prioritylevelconfigurations -o yaml",
    "get namespaces -o yaml --show-managed-fields",
    "get leases -A -o name",
    "get pods -n shop --sort-by=.metadata.name",
    "get pods -n shop -o custom-columns=N:.metadata.name,I:.spec.containers[*].image",
    "get events -n kube-system",
    "describe deployment web -n shop",
    "describe node",
    "describe serviceaccount default -n shop",
    "describe configmap kube-root-ca.crt -n shop",
    "rollout status deployment/web -n shop",
    "rollout history deployment/web -n shop",
    "auth can-i list secrets",
    "auth can-i --list -n shop",
    "api-resources",
    "api-versions",
    "explain deployment.spec.template.spec.containers.env",
    "version",
    "cluster-info",
    "get --raw /openapi/v3",
    "get --raw /readyz?verbose",
    "wait --for=condition=Available deployment/web -n shop --timeout=5s",
]


@pytest.fixture(scope="module")
def kubectl(stage):
    configs = {who: stage.gateway.kubeconfig(who, token, NS) for who, token in stage.tokens.items()}

    def run(*args, who="agent", **more):
        return stage.cluster.run_kubectl(*args, kubeconfig=configs[who], check=False, **more)

    return run


def steady(text):
    """Without what changes from one moment to the next: ages, times, versions."""
    for pattern in (r"\b\d+[smhd]\d*[smh]?\b", r"\d{4}-\d\d-\d\dT[0-9:.Z]+", r"[rR]esourceVersion\W+\d+", r"\s+"):
        text = re.sub(pattern, " ", text)
    return re.sub(r"\w{3}, \d\d \w{3} \d{4} [0-9:]+ \+0000", "", text)


@pytest.mark.parametrize("command", SAME)
def test_what_has_nothing_secret_is_shown_as_it_is(kubectl, command):
    agent, engineer = kubectl(*command.split()), kubectl(*command.split(), who="engineer")
    assert agent.returncode == 0, agent
    assert steady(agent.stdout) == steady(engineer.stdout)


@pytest.fixture
def deployment(stage):
    """With a password that the agent does not see, and things that it may change."""
    name = next(NAMES)
    container = {
        "name": "c",
        "image": "registry.example/c:1",
        "env": [{"name": "DB_PASSWORD", "value": PASSWORD}, {"name": "LOG_LEVEL", "value": "info"}],
        "args": ["--level=info", "--quiet"],
    }
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": template}
    one = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": NS}, "spec": spec}
    stage.cluster.run_kubectl("apply", "-f", "-", input=json.dumps(one))
    return name


CHANGES = {
    "scale": "scale deployment/{} --replicas=1",
    "set an image": "set image deployment/{} c=registry.example/c:2",
    "set a variable": "set env deployment/{} LOG_LEVEL=debug",
    "restart": "rollout restart deployment/{}",
    "pause": "rollout pause deployment/{}",
    "label": "label deployment/{} a=b",
    "annotate": "annotate deployment/{} example.com/a=b",
    "set resources": "set resources deployment/{} --limits=cpu=1",
    "expose": "expose deployment/{} --port=80",
    "autoscale": "autoscale deployment/{} --min=1 --max=2 --cpu=80%",
    "a merge patch": 'patch deployment {} --type=merge -p {{"spec":{{"minReadySeconds":3}}}}',
    "a JSON patch with a test": 'patch deployment {} --type=json -p [{{"op":"test","path":"/spec/replicas","value":0}},'
    '{{"op":"replace","path":"/spec/replicas","value":1}}]',
    "a JSON patch of an image": 'patch deployment {} --type=json -p [{{"op":"replace","path":'
    '"/spec/template/spec/containers/0/image","value":"registry.example/c:3"}}]',
    "an argument added": 'patch deployment {} --type=json -p [{{"op":"add","path":'
    '"/spec/template/spec/containers/0/args/-","value":"--more"}}]',
    "a dry run": "set image deployment/{} c=registry.example/c:2 --dry-run=server",
    "delete": "delete deployment {} --wait=false",
}


@pytest.mark.parametrize("what", CHANGES)
def test_changes_beside_a_secret(kubectl, stage, deployment, what):
    done = kubectl(*CHANGES[what].format(deployment).split())
    assert done.returncode == 0, done
    assert_clean((done.stdout + done.stderr).encode())
    if what != "delete":
        stored = stage.cluster.api("GET", f"/apis/apps/v1/namespaces/{NS}/deployments/{deployment}")
        assert {"name": "DB_PASSWORD", "value": PASSWORD} in stored["spec"]["template"]["spec"]["containers"][0]["env"]


def test_an_edit_beside_a_secret(kubectl, stage, deployment, tmp_path):
    editor = tmp_path / "editor.sh"
    editor.write_text("#!/bin/sh\nsed -i 's/c:1$/c:7/' \"$1\"\n")
    editor.chmod(0o700)
    config = stage.gateway.kubeconfig("editing", stage.tokens["agent"], NS)
    done = subprocess.run(
        [stage.cluster.kubectl, "edit", "deployment", deployment],
        env={**stage.cluster.kubectl_env(config), "KUBE_EDITOR": str(editor)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done
    stored = stage.cluster.api("GET", f"/apis/apps/v1/namespaces/{NS}/deployments/{deployment}")
    (container,) = stored["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["env"][0]["value"]) == ("registry.example/c:7", PASSWORD)


PLAIN = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "plain"},
    "spec": {
        "replicas": 0,
        "selector": {"matchLabels": {"app": "plain"}},
        "template": {
            "metadata": {"labels": {"app": "plain"}},
            "spec": {"containers": [{"name": "c", "image": "c:1", "env": [{"name": "A", "value": "b"}]}]},
        },
    },
}


@pytest.mark.parametrize("how", [("apply",), ("apply", "--server-side"), ("diff",), ("replace",)], ids=" ".join)
def test_manifests_without_secrets(kubectl, how):
    text = json.dumps(PLAIN)
    assert kubectl("apply", "-f", "-", input=text).returncode == 0
    changed = text.replace("c:1", f"c:{next(NAMES)}")
    again = kubectl(*how, "-f", "-", input=changed)
    assert again.returncode == (1 if how == ("diff",) else 0), again
    assert how != ("diff",) or "+      - env:" in again.stdout or "+        image: c:" in again.stdout


def test_releases_are_found_by_label(kubectl, stage):
    """As Helm keeps them: which there are is told by names and labels, what is in them is not."""
    release = a_secret("sh.helm.release.v1.web.v1") | {"type": "helm.sh/release.v1"}
    release["metadata"]["labels"] = {"owner": "helm", "name": "web", "status": "deployed"}
    stage.cluster.api("POST", SECRETS, release)
    done = kubectl("get", "secrets", "-l", "owner=helm,status=deployed", "-o", "json")
    (found,) = json.loads(done.stdout)["items"]
    assert (found["metadata"]["labels"]["name"], found["type"]) == ("web", "helm.sh/release.v1")
    assert_clean(done.stdout.encode())
