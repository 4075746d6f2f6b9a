import base64
import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addons.core import maskfields, masking, maskpolicy, masktags, strict_json
from addons.core.masking import LAST_APPLIED
from addons.core.maskpolicy import MaskLevel
from addons.core.masktags import Place
from tests import canaries

KEY = bytes(range(32))
SECRETS = Place("secrets", "shop", "db")
PODS = Place("pods", "shop", "web-1")
DEPLOYMENTS = Place("deployments.apps", "shop", "web")
DATABASES = Place("databases.example.com", "shop", "main")
FIELD = MaskLevel(masked=(maskfields.parse("spec.users[*].password"),))


def mask(content, place, level=maskpolicy.EVERYTHING):
    return masking.mask(content, place, KEY, level).content


def encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def secret(value: bytes, **more):
    return {
        "kind": "Secret",
        "apiVersion": "v1",
        "metadata": {
            "name": "db",
            "namespace": "shop",
            "uid": "u-1",
            "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "db"},
        },
        "type": "Opaque",
        "data": {"password": encoded(value)},
        **more,
    }


def applied(content) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def annotated(value: bytes, kind="Secret"):
    """As kubectl apply leaves it: the value twice, once escaped."""
    found = secret(value)
    inner = {"kind": kind, "apiVersion": "v1", "metadata": {"name": "db"}, "data": {"password": encoded(value)}}
    found["metadata"]["annotations"] = {LAST_APPLIED: applied(inner), "note": encoded(value)}
    return found


def table(value: bytes, include):
    whole = annotated(value)
    shown = {
        "Object": whole,
        "Metadata": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": whole["metadata"]},
        "None": None,
    }[include]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": "9"},
        "columnDefinitions": [{"name": name, "type": "string"} for name in ("Name", "Type", "Data", "Age")],
        "rows": [{"cells": ["db", "Opaque", 1, "3d"], "object": shown}],
    }


def status(message, **details):
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "Invalid",
        "details": {"name": "db", "kind": "Secret", **details},
        "code": 422,
    }


# Every form in which the API gives (or takes) a Secret: name, content.
def forms(value: bytes):
    text = value.decode("latin-1")
    yield "object", secret(value)
    yield "annotations", annotated(value)
    yield (
        "list",
        {"kind": "SecretList", "apiVersion": "v1", "metadata": {"continue": "abc"}, "items": [annotated(value)]},
    )
    yield "list of another kind", {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": [secret(value)]}
    for include in ("Object", "Metadata"):
        yield f"table, {include}", table(value, include)
    yield (
        "metadata list",
        {
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": {},
            "items": [{"kind": "PartialObjectMetadata", "metadata": annotated(value)["metadata"]}],
        },
    )
    for kind in ("ADDED", "MODIFIED", "DELETED"):
        yield f"event {kind}", {"type": kind, "object": annotated(value)}
    yield "event with a table", {"type": "ADDED", "object": table(value, "Object")}
    yield "event ERROR", {"type": "ERROR", "object": status(f'Invalid value: "{text}"')}
    message = f'Secret "db" is invalid: type: Invalid value: "{text}": field is immutable'
    cause = {"reason": "FieldValueInvalid", "message": f'Invalid value: "{text}": field is immutable', "field": "type"}
    yield "status", status(message, causes=[cause])
    yield "status, a webhook's words", status(f'admission webhook "x.io" denied the request: {text}')
    yield "status, an unknown sentence", status(f"cannot do {text} with {text}")
    yield "stringData", {**secret(b""), "stringData": {"password": text}}
    yield "another kind in the body", {**secret(value), "kind": "ConfigMap"}
    yield "no kind at all", {"data": {"password": encoded(value)}}
    yield "a field beside an event's", {"type": "ADDED", "object": {}, "other": {"a": text}}
    yield "a field beside a list's", {"kind": "SecretList", "metadata": {}, "items": [], "other": [text]}
    yield "a field beside a table's", {**table(b"", "None"), "other": [text]}
    yield "a field beside a row's", {**table(b"", "None"), "rows": [{"cells": ["db"], "conditions": [{"a": text}]}]}
    yield "an unknown field", {**secret(b""), "other": {"deep": [text, {"x": text}]}}
    yield "a Status with data", {**status("Required value"), "data": {"password": encoded(value)}}
    yield "managed fields", secret(value, metadata={"name": "db", "managedFields": [{"fieldsV1": {f'v:"{text}"': {}}}]})
    yield "data that is a list", {**secret(b""), "data": [encoded(value)]}
    yield "data that is no base64", {**secret(b""), "data": {"password": text}}
    yield "metadata that is a text", {**secret(b""), "metadata": text}
    yield "labels that are none", secret(b"", metadata={"name": "db", "labels": {"a": [text]}})
    yield "a time that is none", secret(b"", metadata={"name": "db", "creationTimestamp": text})
    yield "owners", secret(b"", metadata={"name": "db", "ownerReferences": [{"name": text}], "finalizers": [text]})
    yield "items that are texts", {"kind": "SecretList", "items": [text]}
    yield "a text", text
    yield (
        "json patch",
        [
            {"op": "add", "path": "/data/password", "value": encoded(value)},
            {"op": "replace", "path": "/data", "value": {"password": encoded(value)}},
            {"op": "test", "path": "", "value": annotated(value)},
            {"op": "add", "path": "/metadata/annotations/x", "value": text},
            {"op": "add", "path": "/metadata/annotations", "value": annotated(value)["metadata"]["annotations"]},
            {"op": "add", "path": "/stringData", "value": {"password": text}},
            {"op": "add", "path": "/unknown/0", "value": text},
            text,
        ],
    )
    nested = applied({"metadata": {"annotations": {LAST_APPLIED: applied({"data": {"password": encoded(value)}})}}})
    yield "nested annotation", secret(b"", metadata={"name": "db", "annotations": {LAST_APPLIED: nested}})
    broken = '{"data": {"password": "' + text
    yield "broken annotation", secret(b"", metadata={"name": "db", "annotations": {LAST_APPLIED: broken}})


FORMS = [name for name, _ in forms(b"x")]


@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in canaries.VALUES.items()])
@pytest.mark.parametrize("form", FORMS)
def test_no_value_of_a_secret_gets_out(form, value):
    content = dict(forms(value))[form]
    before = copy.deepcopy(content)
    out = mask(content, SECRETS)
    assert content == before  # the input is others', too
    assert not canaries.seen_in(masking.dumps(out), [value])
    assert mask(out, SECRETS) is out  # masked twice is masked once


@pytest.mark.parametrize("place", [Place("secrets"), Place("secrets", "shop"), Place("secrets/status", "shop", "db")])
def test_whatever_the_url_of_secrets(place):
    assert not canaries.seen_in(
        masking.dumps(mask(secret(b"Canary-hunter2-Xq9zKw"), place)), [b"Canary-hunter2-Xq9zKw"]
    )


def test_what_is_left_of_a_secret():
    out = mask(annotated(b"hunter2"), SECRETS)
    assert out["metadata"]["name"] == "db"
    assert out["metadata"]["labels"] == {"app": "db"}
    assert out["metadata"]["creationTimestamp"] == "2026-01-01T00:00:00Z"  # kubectl's AGE
    assert (out["kind"], out["type"], out["data"].keys()) == ("Secret", "Opaque", {"password"})
    tag = base64.b64decode(out["data"]["password"]).decode()
    assert masktags.is_tag(tag)
    # kubectl apply reads the annotation, and sees no change where none is.
    inner = json.loads(out["metadata"]["annotations"][LAST_APPLIED])
    assert inner["data"] == out["data"]
    assert masktags.is_tag(out["metadata"]["annotations"]["note"])


def test_annotations_within_annotations_end():
    text = applied({"data": {"password": "eA=="}})
    for _ in range(masking.MAX_NESTING + 1):
        text = applied({"metadata": {"annotations": {LAST_APPLIED: text}}})
    out = mask({"metadata": {"annotations": {LAST_APPLIED: text}}}, SECRETS)
    for _ in range(masking.MAX_NESTING):
        out = json.loads(out["metadata"]["annotations"][LAST_APPLIED])
    assert masktags.is_tag(out["metadata"]["annotations"][LAST_APPLIED])


def test_tags_of_one_value():
    data, string = secret(b"hunter2"), {"stringData": {"password": "hunter2"}, **secret(b"")}
    del string["data"]
    one = base64.b64decode(mask(data, SECRETS)["data"]["password"]).decode()
    assert mask(string, SECRETS)["stringData"]["password"] == one  # written one way, read the other
    in_list = {"kind": "SecretList", "metadata": {}, "items": [data]}
    assert mask(in_list, Place("secrets"))["items"][0]["data"] == mask(data, SECRETS)["data"]
    other = secret(b"hunter2", metadata={"name": "other", "namespace": "shop"})
    assert mask(other, Place("secrets", "shop", "other"))["data"] != mask(data, SECRETS)["data"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}, id="delete"),
        pytest.param({"gracePeriodSeconds": 0, "dryRun": ["All"], "preconditions": {"uid": "u"}}, id="with options"),
        pytest.param(table(b"", "None"), id="a clean table"),
        pytest.param(
            {
                "type": "BOOKMARK",
                "object": {
                    "kind": "Secret",
                    "apiVersion": "v1",
                    "metadata": {"resourceVersion": "7", "annotations": {"k8s.io/initial-events-end": "true"}},
                },
            },
            id="the end of the initial events",
        ),
        pytest.param(
            {
                "kind": "SecretList",
                "apiVersion": "v1",
                "metadata": {"continue": "eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ"},
                "items": [],
            },
            id="an empty list with a token to go on",
        ),
        pytest.param({**secret(b""), "data": None, "immutable": True}, id="nothing in it"),
        pytest.param(status('secrets "db" not found'), id="not there"),
        pytest.param(status('secrets "db" already exists'), id="there already"),
        pytest.param([{"op": "add", "path": "/metadata/labels/a", "value": "b"}], id="a label"),
        pytest.param(None, id="no body"),
    ],
)
def test_secrets_without_secrets_pass(content):
    assert mask(content, SECRETS) is content


def test_an_annotation_like_the_end_of_the_initial_events():
    content = secret(b"", metadata={"annotations": {"k8s.io/initial-events-end": "hunter2"}}, data={})
    assert "hunter2" not in json.dumps(mask(content, SECRETS))


def test_a_column_that_kubernetes_has_not():
    content = table(b"", "None")
    content["columnDefinitions"][1]["name"] = "Password"
    content["rows"][0]["cells"][1] = "hunter2"
    out = mask(content, SECRETS)
    assert masktags.is_tag(out["rows"][0]["cells"][1])
    assert out["rows"][0]["cells"][0] == "db"


# Workloads


def container(**fields):
    return {"name": "c", "image": "registry.example/web:1", **fields}


def pod_spec(**fields):
    return {"containers": [container(**fields)], "serviceAccountName": "default"}


def deployment(**fields):
    return {
        "kind": "Deployment",
        "apiVersion": "apps/v1",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u-2"},
        "spec": {"replicas": 2, "template": {"metadata": {"labels": {"app": "web"}}, "spec": pod_spec(**fields)}},
    }


def workloads(text: str):
    env = [{"name": "LOG_LEVEL", "value": "info"}, {"name": "DB_PASSWORD", "value": text}]
    argument = text if not text.startswith("-") else f"x{text}"
    yield "env", DEPLOYMENTS, deployment(env=env)
    yield (
        "env in a list",
        Place("deployments.apps"),
        {"kind": "DeploymentList", "metadata": {}, "items": [deployment(env=env)]},
    )
    yield "env of a pod", PODS, {"kind": "Pod", "metadata": {"name": "web-1"}, "spec": pod_spec(env=env)}
    cron = {"spec": {"jobTemplate": {"spec": {"template": {"spec": pod_spec(env=env)}}}}}
    yield "env of a cron job", Place("cronjobs.batch", "shop", "x"), cron
    yield "init containers", PODS, {"spec": {"initContainers": [container(env=env)]}}
    yield "ephemeral containers", PODS, {"spec": {"ephemeralContainers": [container(env=env)]}}
    yield "revisions", Place("controllerrevisions.apps", "shop", "x"), {"data": deployment(env=env)}
    yield "a rollout", Place("rollouts.argoproj.io", "shop", "x"), deployment(env=env)
    yield "an argument", PODS, {"spec": pod_spec(args=[f"--password={text}", "--log=info"])}
    yield "two arguments", PODS, {"spec": pod_spec(args=["--password", argument, "--log", "info"])}
    yield "a command", PODS, {"spec": pod_spec(command=["run", f"DB_PASSWORD={text}"])}
    probe = {"httpGet": {"httpHeaders": [{"name": "Authorization", "value": text}]}}
    yield "a probe's header", PODS, {"spec": pod_spec(livenessProbe=probe)}
    yield (
        "a probe's command",
        PODS,
        {"spec": pod_spec(readinessProbe={"exec": {"command": ["x", "--token", argument]}})},
    )
    whole = deployment(env=env)
    whole["metadata"]["annotations"] = {LAST_APPLIED: applied(deployment(env=env))}
    yield "last applied", DEPLOYMENTS, whole
    only = {"kind": "PartialObjectMetadata", "metadata": whole["metadata"]}
    yield (
        "last applied in a table",
        DEPLOYMENTS,
        {
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "columnDefinitions": [],
            "rows": [{"cells": [], "object": only}],
        },
    )
    yield "an event", PODS, {"type": "MODIFIED", "object": {"kind": "Pod", "metadata": {}, "spec": pod_spec(env=env)}}
    yield (
        "json patch, an env",
        DEPLOYMENTS,
        [
            {"op": "add", "path": "/spec/template/spec/containers/0/env/-", "value": env[1]},
            {"op": "replace", "path": "/spec/template/spec/containers/0/env", "value": env},
            {"op": "replace", "path": "/spec/template/spec/containers/0/env/1/value", "value": text},
            {"op": "replace", "path": "/spec/template/spec/containers/0/args/1", "value": text},
            {"op": "replace", "path": "/spec/template", "value": {"spec": pod_spec(env=env)}},
            {"op": "add", "path": "", "value": deployment(env=env)},
        ],
    )
    printed = f'core.EnvVar{{Name:"DB_PASSWORD", Value:"{text}", ValueFrom:(*core.EnvVarSource)(nil)}}'
    yield (
        "an immutable template",
        Place("jobs.batch", "shop", "x"),
        status(f'Job.batch "x" is invalid: spec.template: Invalid value: core.PodTemplateSpec{{{printed}}}: immutable'),
    )
    yield (
        "a pod's diff",
        PODS,
        status(
            'Pod "web-1" is invalid: spec: Forbidden: pod updates may not change fields other than '
            f"`spec.containers[*].image`\n core.PodSpec{{ {printed} }}"
        ),
    )


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in canaries.TEXTS.items()])
@pytest.mark.parametrize("form", [name for name, _, _ in workloads("x")])
def test_no_value_of_a_workload_gets_out(form, text):
    place, content = next((place, content) for name, place, content in workloads(text) if name == form)
    out = mask(content, place)
    assert not canaries.seen_in(masking.dumps(out), [text.encode()])
    assert mask(out, place) is out


@pytest.mark.parametrize(
    "text",
    [pytest.param(canaries.TEXTS[name], id=name) for name in ("private key", "token", "url", "github token", "lines")],
)
@pytest.mark.parametrize(
    ("place", "content"),
    [
        pytest.param(PODS, lambda text: {"spec": pod_spec(env=[{"name": "SETTINGS", "value": text}])}, id="env"),
        pytest.param(PODS, lambda text: {"spec": pod_spec(args=["sh", "-c", f"run '{text}'"])}, id="a script"),
        pytest.param(PODS, lambda text: {"metadata": {"annotations": {"x": text}}}, id="an annotation"),
        pytest.param(Place("events", "shop", "x"), lambda text: {"message": f"failed: {text}"}, id="an event"),
        pytest.param(DATABASES, lambda text: {"spec": {"deep": [{"x": text}]}}, id="a custom resource"),
        pytest.param(Place("configmaps", "shop", "x"), lambda text: {"data": {"a.conf": f"a: 1\n{text}"}}, id="a file"),
        pytest.param(
            Place("configmaps", "shop", "x"),
            lambda text: {"binaryData": {"a": encoded(b"\xff\n" + text.encode())}},
            id="a file of bytes",
        ),
        pytest.param(PODS, lambda text: status(f"cannot: {text}"), id="a status"),
        pytest.param(
            PODS,
            lambda text: {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "rows": [{"cells": ["a", text]}]},
            id="a cell",
        ),
    ],
)
def test_shapes_are_found_anywhere(place, content, text):
    out = mask(content(text), place)
    hidden = {"url": "Xq9zKwPl4", "lines": "Xq9zKwPl4mN"}
    secret_part = next((part for name, part in hidden.items() if canaries.TEXTS[name] == text), text)
    assert not canaries.seen_in(masking.dumps(out), [secret_part.encode()])
    assert mask(out, place) is out


def test_plain_settings_stay():
    content = deployment(
        env=[
            {"name": "LOG_LEVEL", "value": "info"},
            {"name": "DB_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}},
            {"name": "DB_URL", "value": "postgres://$(DB_USER):$(DB_PASSWORD)@db/x"},
            {"name": "TOKEN_TTL", "value": "3600"},
        ],
        args=["--listen=:8080", "--token-ttl", "30s", "--password=$(DB_PASSWORD)", "--secret-name", "db"],
    )
    assert mask(content, DEPLOYMENTS) is content


def test_only_the_secret_part_of_a_text():
    content = {"spec": pod_spec(env=[{"name": "DB", "value": "postgres://u:Xq9zKwPl4@db/x"}])}
    value = mask(content, PODS)["spec"]["containers"][0]["env"][0]["value"]
    assert value.startswith("postgres://u:**masked:")
    assert value.endswith("**@db/x")


# ConfigMaps, tokens, reviews

KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters:
- cluster: {certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUM=, server: https://api:6443}
users:
- name: admin
  user:
    client-key-data: LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQpjYW5hcnk=
    password: Xq9zKwPl4
    token: canary-token-Xq9zKw
"""


def test_a_kubeconfig_in_a_config_map():
    content = {"data": {"kubeconfig": KUBECONFIG, "LOG_LEVEL": "info", "DB_PASSWORD": "hunter2"}}
    data = mask(content, Place("configmaps", "kube-system", "x"))["data"]
    assert not [word for word in ("Xq9zKw", "S0EgUFJJVkFURSBLRVkt", "hunter2") if word in json.dumps(data)]
    assert "server: https://api:6443" in data["kubeconfig"]
    assert "certificate-authority-data: LS0t" in data["kubeconfig"]
    assert data["LOG_LEVEL"] == "info"


def test_cluster_info():
    signature = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..canary-signature-Xq9zKw"
    content = {"data": {"jws-kubeconfig-abcdef": signature, "kubeconfig": "clusters: []"}}
    out = mask(content, Place("configmaps", "kube-public", "cluster-info"))
    assert "canary" not in json.dumps(out)


def test_tokens():
    content = {"kind": "TokenRequest", "status": {"token": "canary", "expirationTimestamp": "2026-01-01T00:00:00Z"}}
    out = mask(content, Place("serviceaccounts/token", "shop", "default"))
    assert masktags.is_tag(out["status"]["token"])
    assert out["status"]["expirationTimestamp"] == "2026-01-01T00:00:00Z"
    review = {"kind": "TokenReview", "spec": {"token": "canary"}, "status": {"authenticated": True}}
    assert "canary" not in json.dumps(mask(review, Place("tokenreviews.authentication.k8s.io")))


# Rules


USERS = {"spec": {"users": [{"name": "ann", "password": "canary1"}, {"name": "bob", "password": 12345}], "size": 3}}


def custom(**more):
    metadata = {"name": "main", "managedFields": [{"fieldsV1": {}}], **more}
    return {"kind": "Database", "apiVersion": "example.com/v1", "metadata": metadata, **USERS}


@pytest.mark.parametrize("builtin", [True, False])
def test_fields_of_a_rule(builtin):
    level = MaskLevel(builtin=builtin, masked=FIELD.masked)
    content = custom(annotations={LAST_APPLIED: applied(USERS)})
    out = mask(content, DATABASES, level)
    text = json.dumps(out)
    assert "canary1" not in text
    assert "12345" not in text
    assert "managedFields" not in text
    assert out["spec"]["size"] == 3
    assert out["spec"]["users"][0]["name"] == "ann"
    assert mask(out, DATABASES, level) is out


def test_a_rule_that_names_an_object_keeps_its_shape():
    level = MaskLevel(masked=(maskfields.parse("spec.users"),))
    out = mask(custom(), DATABASES, level)
    assert [sorted(user) for user in out["spec"]["users"]] == [["name", "password"], ["name", "password"]]
    assert "ann" not in json.dumps(out)


def test_cells_may_print_a_field_of_a_rule():
    content = {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "columnDefinitions": [{"name": "Name"}, {"name": "Ready"}, {"name": "Age"}],
        "rows": [{"cells": ["main", "canary1", "3d"], "object": {"metadata": {"name": "main"}}}],
    }
    cells = mask(content, DATABASES, FIELD)["rows"][0]["cells"]
    assert (cells[0], cells[2]) == ("main", "3d")
    assert masktags.is_tag(cells[1])


@pytest.mark.parametrize(
    ("number", "column", "cell", "shown"),
    [
        pytest.param(0, "Name", "main", True, id="its name"),
        pytest.param(1, "Name", "hunter2", False, id="another name"),
        pytest.param(1, "Name", "main", True, id="its name again"),
        pytest.param(1, "Namespace", "shop", True, id="its namespace"),
        pytest.param(1, "Namespace", "hunter2", False, id="another namespace"),
        *(pytest.param(2, "Age", age, True, id=age) for age in ("5d", "3h12m", "10s", "2y10d", "<unknown>")),
        pytest.param(2, "Age", "hunter2", False, id="no age"),
        pytest.param(2, "Age", 1234, False, id="a number"),
        pytest.param(2, "Created At", "2026-01-01T00:00:00Z", True, id="a time"),
        pytest.param(2, "Created At", "hunter2", False, id="no time"),
        pytest.param(2, "Ready", "hunter2", False, id="any other"),
    ],
)
def test_a_column_may_call_itself_what_it_likes(number, column, cell, shown):
    columns = [{"name": "other"}] * number + [{"name": column}]
    row = {"cells": ["x"] * number + [cell], "object": {"metadata": {"name": "main", "namespace": "shop"}}}
    table = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": columns, "rows": [row]}
    found = mask(table, DATABASES, FIELD)["rows"][0]["cells"][number]
    assert (found == cell) is shown, found


def test_an_age_that_is_a_password():
    cells = ["main", "Xq9zKw-Pl4mNb77"]
    columns = [{"name": "Name"}, {"name": "Age"}]
    table = {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "columnDefinitions": columns,
        "rows": [{"cells": cells, "object": None}],
    }
    shown = mask(table, DATABASES)["rows"][0]["cells"]
    assert (shown[0], masktags.is_tag(shown[1])) == ("main", True)


@pytest.mark.parametrize(
    "field", ["kind", "apiVersion", "uid", "resourceVersion", "creationTimestamp", "managedFields"]
)
@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: {"x": [text]}], ids=["text", "map"])
def test_fields_that_are_dull_in_metadata_only(field, wrap):
    """A JSON patch can copy a password into any of them."""
    url = "postgres://app:Xq9zKwPl4@db:5432/x"
    content = {"metadata": {"name": "main"}, "spec": {"a": {field: wrap(url)}, field: wrap(url)}}
    assert b"Xq9zKwPl4" not in masking.dumps(mask(content, DATABASES))


def test_dull_fields_stay():
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "uid": "5c2e9b0e-6d0c-4a6d-9a43-0123456789ab"}
    content = {
        "metadata": {"name": "a", "ownerReferences": [owner]},
        "spec": {"claimRef": owner | {"resourceVersion": "7"}},
    }
    assert mask(content, PODS) is content


def test_a_scale_may_print_a_field_of_a_rule():
    content = {"metadata": {"name": "main"}, "spec": {"replicas": 1}, "status": {"replicas": 1, "selector": "hunter2"}}
    shown = mask(content, Place("databases.example.com/scale", "shop", "main"), FIELD)
    assert masktags.is_tag(shown["status"]["selector"])
    assert shown["spec"] == {"replicas": 1}
    assert mask(content, Place("databases.example.com/scale", "shop", "main")) is content


WARNED = '299 - "Validation failed for ValidatingAdmissionPolicy: it has hunter2"'


@pytest.mark.parametrize(
    ("place", "level", "shown"),
    [
        pytest.param(SECRETS, maskpolicy.EVERYTHING, False, id="a Secret's"),
        pytest.param(SECRETS, maskpolicy.NOTHING, True, id="for whom nothing is masked"),
        pytest.param(DATABASES, FIELD, False, id="with fields of a rule"),
        pytest.param(DATABASES, MaskLevel(builtin=False, masked=FIELD.masked), False, id="with these only"),
        pytest.param(PODS, maskpolicy.EVERYTHING, True, id="a pod's, of no shape"),
    ],
)
def test_warnings(place, level, shown):
    assert (masking.mask_warning(WARNED, place, KEY, level) == WARNED) is shown
    assert "password=x" not in masking.mask_warning('299 - "password=x1y2z3"', PODS, KEY)


def test_a_custom_resource_that_looks_like_a_list_or_a_table():
    for kind, version in (("AllowList", "x.io/v1"), ("Table", "meta.k8s.io/v1"), ("Status", "v1"), ("", "")):
        for metadata in ({}, {"name": "main"}):
            content = {**custom(), "kind": kind, "apiVersion": version, "items": [], "rows": [], "metadata": metadata}
            assert "canary1" not in json.dumps(mask(content, DATABASES, FIELD))
            event = {"type": "ADDED", "object": {}, **USERS}
            assert "canary1" not in json.dumps(mask(event, DATABASES, FIELD))


def test_a_list_of_a_kind_that_the_definition_chose():
    content = {
        "kind": "Databasen",
        "apiVersion": "example.com/v1",
        "metadata": {"resourceVersion": "7"},
        "items": [custom()],
    }
    for level in (FIELD, MaskLevel(builtin=False, masked=FIELD.masked)):
        assert "canary1" not in json.dumps(mask(content, DATABASES, level))


def test_rules_show():
    level = MaskLevel(shown=(maskfields.parse("data.user"),))
    content = {**secret(b"hunter2"), "data": {"user": encoded(b"ann"), "password": encoded(b"hunter2")}}
    data = mask(content, SECRETS, level)["data"]
    assert data["user"] == encoded(b"ann")
    assert data["password"] != encoded(b"hunter2")


def test_masking_wins_over_showing():
    level = MaskLevel(masked=(maskfields.parse("spec.users[*].password"),), shown=(maskfields.parse("spec"),))
    assert "canary1" not in json.dumps(mask(custom(), DATABASES, level))


def test_a_masked_field_is_not_put_back_by_what_a_detector_finds_in_it():
    level = MaskLevel(masked=(maskfields.parse("spec.dsn"),))
    content = {"metadata": {"name": "x"}, "spec": {"dsn": "postgres://u:Xq9zKwPl4@canary-host/x"}}
    out = mask(content, DATABASES, level)
    assert masktags.is_tag(out["spec"]["dsn"])


SECRET_RULE = (maskfields.parse("data.password"),)


@pytest.mark.parametrize("builtin", [True, False])
@pytest.mark.parametrize("shown", [(), (maskfields.parse("data"),)])
@pytest.mark.parametrize("masked", [SECRET_RULE, (maskfields.parse("data.*"),), (maskfields.parse("data"),)])
def test_a_rule_on_a_field_of_a_secret(builtin, shown, masked):
    """For people, too; clients decode what stands there, and stringData is the same field."""
    level = MaskLevel(builtin=builtin, masked=masked, shown=shown)
    content = annotated(b"Canary-hunter2-Xq9zKw")
    inner = {"stringData": {"password": "Canary-hunter2-Xq9zKw"}}
    content["metadata"]["annotations"] = {LAST_APPLIED: applied(inner)}
    out = mask(content, SECRETS, level)
    assert masktags.is_tag(base64.b64decode(out["data"]["password"]).decode())
    assert not canaries.seen_in(masking.dumps(out), [b"Canary-hunter2-Xq9zKw"])
    assert mask(out, SECRETS, level) is out


def test_a_rule_on_bytes_of_a_config_map():
    level = MaskLevel(builtin=False, masked=(maskfields.parse("binaryData.a"),))
    out = mask({"binaryData": {"a": encoded(b"canary")}}, Place("configmaps", "shop", "x"), level)
    assert masktags.is_tag(base64.b64decode(out["binaryData"]["a"]).decode())


def test_text_beside_an_object():
    text = masking.mask_text('299 - "unknown field, password=hunter2"', PODS, KEY)
    assert "hunter2" not in text
    assert masking.mask_text("plain words", PODS, KEY) == "plain words"
    assert masking.mask_text("password=x", PODS, KEY, maskpolicy.NOTHING) == "password=x"


def test_nothing_is_masked_for_people():
    content = annotated(b"hunter2")
    assert mask(content, SECRETS, maskpolicy.NOTHING) is content


# JSON


def test_bytes_without_secrets_pass_as_they_are():
    raw = b'{"kind": "Pod",  "apiVersion":"v1","metadata":{"name":"a\\u003cb"},"spec":{"x":1.50}}\n'
    out, masked = masking.mask_json(raw, PODS, KEY)
    assert out is raw
    assert masked.count == 0


def test_masked_json_keeps_its_end():
    raw = masking.dumps(secret(b"hunter2")) + b"\n"
    out, masked = masking.mask_json(raw, SECRETS, KEY)
    assert out.endswith(b"}\n")
    assert json.loads(out) == masked.content
    assert masked.fields == ("data.password",)
    assert "hunter2" not in repr(masked)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b'{"data": {"a": "aHVudGVyMg=="}, "data": {}}', id="a key twice"),
        pytest.param(b'{"data": ', id="cut off"),
        pytest.param(b"\xff\xfe", id="not UTF-8"),
        pytest.param(b"k8s\x00\n", id="protobuf"),
        pytest.param(b'{"a":' * 100_000, id="deep"),
        pytest.param(b'{"a":' * 3000 + b"1" + b"}" * 3000, id="deep and closed"),
        pytest.param(b'{"a": NaN}', id="not a number"),
        pytest.param(b'{"a": "\\ud800"}', id="half a letter"),
    ],
)
def test_what_two_readers_would_read_differently_is_refused(raw):
    for place in (SECRETS, PODS):
        with pytest.raises(strict_json.NotStrictJSON):
            masking.mask_json(raw, place, KEY)


@pytest.mark.parametrize("depth", [100, 400, 700, 900, 950, 990, 1100])
@pytest.mark.parametrize("place", [SECRETS, PODS])
def test_depth_is_masked_or_refused(place, depth):
    def called_from(frames):  # a proxy's stack is deep already
        return called_from(frames - 1) if frames else masking.mask_json(raw, place, KEY)

    raw = b'{"x":' * depth + b'"password=hunter2"' + b"}" * depth
    try:
        out, _ = called_from(150)
    except strict_json.NotStrictJSON:
        return
    assert b"hunter2" not in out


def test_values_to_learn():
    content = {"kind": "SecretList", "items": [secret(b"one"), {**secret(b"two"), "stringData": {"x": "three"}}]}
    assert sorted(masking.secret_values(content, Place("secrets"))) == [b"one", b"three", b"two"]
    event = {"type": "ADDED", "object": table(b"four", "Object")}
    assert masking.secret_values(event, Place("secrets")) == [b"four"]
    assert masking.secret_values(content, PODS) == []
    assert masking.secret_values(mask(content, SECRETS), SECRETS) == []


# Properties

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
KEYS = st.sampled_from(
    [
        "kind",
        "apiVersion",
        "metadata",
        "items",
        "rows",
        "object",
        "type",
        "data",
        "spec",
        "env",
        "name",
        "value",
        "args",
        "annotations",
        "message",
        "cells",
        "token",
        "status",
        LAST_APPLIED,
        "managedFields",
        "labels",
        "users",
        "password",
    ]
) | st.text(max_size=5)
WORDS = st.sampled_from(
    [
        "Secret",
        "SecretList",
        "Table",
        "Status",
        "v1",
        "meta.k8s.io/v1",
        "ADDED",
        "DB_PASSWORD",
        "password=abc",
        "--token",
    ]
)
JSONS = st.recursive(
    LEAVES | WORDS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)
PLACES = st.sampled_from(
    [
        SECRETS,
        PODS,
        DEPLOYMENTS,
        DATABASES,
        Place("configmaps", "shop", "x"),
        Place("serviceaccounts/token", "shop", "x"),
    ]
)
LEVELS = st.sampled_from([maskpolicy.EVERYTHING, FIELD, MaskLevel(builtin=False, masked=FIELD.masked)])


@settings(max_examples=300, deadline=None)
@given(JSONS, PLACES, LEVELS)
def test_any_json_stays_json_and_masked(content, place, level):
    before = copy.deepcopy(content)
    masked = masking.mask(content, place, KEY, level)
    assert content == before
    assert json.loads(masking.dumps(masked.content)) == masked.content
    again = masking.mask(masked.content, place, KEY, level)
    assert again.content == masked.content
    if masked.count == 0 and "managedFields" not in json.dumps(content):
        assert masked.content is content


def leaves(value, at=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*at, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, (*at, number))
    else:
        yield at, value


@settings(max_examples=300, deadline=None)
@given(JSONS, PLACES)
def test_only_texts_and_numbers_change_and_only_into_tags(content, place):
    out = dict(leaves(mask(content, place)))
    for at, value in leaves(content):
        if at in out and out[at] != value:
            assert isinstance(out[at], str)
            assert masktags.holds_tag(out[at])
    assert out.keys() <= dict(leaves(content)).keys()


# With letters in front that are in no word of the API's.
VALUES = st.text(st.characters(exclude_categories=["Cs"]), min_size=8, max_size=40).map("Xq~9".__add__)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_any_value_in_any_form_of_a_secret(value):
    raw = value.encode()
    for _, content in forms(raw):
        out = masking.dumps(mask(content, SECRETS))
        assert not [s for s in canaries.spellings(raw) if len(s) > 11 and s in out]
