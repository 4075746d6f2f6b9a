import base64
import json

import pytest

from addons.core import maskfields, masking, maskpolicy, masktags, maskwrites
from addons.core.classify import classify
from addons.core.maskpolicy import EVERYTHING, NOTHING, MaskLevel
from addons.core.masktags import Place
from tests import canaries

KEY = bytes(range(32))
TAG = masktags.tag(KEY, Place("secrets", "shop", "db"), "data.password", "hunter2")
SECRET = "/api/v1/namespaces/shop/secrets/db"
SECRETS = "/api/v1/namespaces/shop/secrets"
DEPLOYMENT = "/apis/apps/v1/namespaces/shop/deployments/web"
CONFIG_MAP = "/api/v1/namespaces/shop/configmaps/web"
DATABASE = "/apis/example.com/v1/namespaces/shop/databases/main"
CLAIM = "/apis/resource.k8s.io/v1/namespaces/shop/resourceclaims/gpu"
PARAMETERS = "/spec/devices/config/0/opaque/parameters"
RULE = MaskLevel(masked=(maskfields.parse("spec.users[*].password"),))
TEMPLATE = "/spec/template/spec"
LAST = masking.LAST_APPLIED


def operation(method, target, body=None, media_type="application/json"):
    content = b"" if body is None else json.dumps(body).encode()
    return classify(method, target, {"Content-Type": media_type} if content else {}, content)


def patch(target, body, kind="merge"):
    suffix = {"apply": "apply-patch+yaml", "json": "json-patch+json", "merge": "merge-patch+json"}
    return operation("PATCH", target, body, f"application/{suffix.get(kind, 'strategic-merge-patch+json')}")


def step(op, path, **more):
    return {"op": op, "path": path, **more}


# Masked values that come back

YAML = f"apiVersion: v1\nkind: Secret\ndata:\n  password: {base64.b64encode(TAG.encode()).decode()}\n"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        pytest.param({"stringData": {"password": TAG}}, ("stringData.password",), id="plain"),
        pytest.param(
            {"data": {"password": base64.b64encode(TAG.encode()).decode()}}, ("data.password",), id="as given"
        ),
        pytest.param(
            {"data": {"a": base64.b64encode(b"pw=" + TAG.encode()).decode()}}, ("data.a",), id="inside base64"
        ),
        pytest.param({"data": {"backup.yaml": YAML}}, ("data['backup.yaml']",), id="YAML in a ConfigMap"),
        pytest.param(
            {"metadata": {"annotations": {LAST: json.dumps({"data": {"a": TAG}})}}},
            (f"metadata.annotations['{LAST}']",),
            id="last applied",
        ),
        pytest.param([step("replace", "/data/a", value=TAG)], ("[0].value",), id="a JSON patch"),
        pytest.param([step("replace", f"/data/{TAG}", value="x")], ("[0].path",), id="a pointer"),
        pytest.param({"data": {TAG: "x"}}, ("data['(key)']",), id="a key"),
        pytest.param({"spec": [{"env": [{"value": TAG}]}]}, ("spec[0].env[0].value",), id="deep"),
        pytest.param({"data": {"a": "b"}, "n": 1, "x": None}, (), id="none"),
        pytest.param(None, (), id="no body"),
    ],
)
def test_masked_values_are_found(body, fields):
    assert maskwrites.masked_values_in(body) == fields


def test_a_deep_body_is_walked():
    body = TAG
    for _ in range(5000):
        body = [body]
    assert len(maskwrites.masked_values_in(body)) == 1


def test_what_a_mask_leaves_is_always_found_again():
    for value in canaries.VALUES.values():
        data = {"a": base64.b64encode(value).decode()}
        masked = masking.mask({"data": data}, Place("secrets", "shop", "db"), KEY).content
        assert maskwrites.masked_values_in(masked) == ("data.a",)


@pytest.mark.parametrize(
    "op",
    [
        pytest.param(
            operation("PUT", SECRET, {"kind": "Secret", "data": {"a": base64.b64encode(TAG.encode()).decode()}}),
            id="replace",
        ),
        pytest.param(operation("POST", SECRETS, {"kind": "Secret", "stringData": {"a": TAG}}), id="create"),
        pytest.param(patch(SECRET, {"stringData": {"a": TAG}}, "strategic"), id="apply"),
        pytest.param(patch(SECRET, {"stringData": {"a": TAG}}, "apply"), id="server-side apply"),
        pytest.param(patch(SECRET, [step("add", "/data/a", value=TAG)], "json"), id="rollout undo and the like"),
    ],
)
def test_a_write_with_a_masked_value_is_refused(op):
    refusal = maskwrites.comes_back(op)
    assert (refusal.code, refusal.cause) == (403, "masked-value")
    assert "Leave that field out" in refusal.message
    assert len(refusal.message) < 500


@pytest.mark.parametrize(
    "op",
    [
        pytest.param(patch(SECRET, {"metadata": {"labels": {"a": "b"}}}), id="another field"),
        pytest.param(operation("GET", SECRET), id="a read"),
        pytest.param(operation("DELETE", SECRET), id="a delete"),
    ],
)
def test_other_writes_pass(op):
    assert maskwrites.comes_back(op) is None


# Reads by writing


@pytest.mark.parametrize(
    "pointer",
    [
        *("", "/", "/data", "/data/password", "/data/a~1b", "/stringData/x", "/metadata", "/metadata/annotations"),
        *("/metadata/annotations/x", f"/metadata/annotations/{LAST.replace('/', '~1')}", "/metadata/managedFields"),
        *("/metadata/ownerReferences", "/unknown", "/metadata/"),
    ],
)
@pytest.mark.parametrize("op", ["copy", "move", "test"])
def test_json_patches_that_read_a_secret(op, pointer):
    one = step(op, pointer, value="x") if op == "test" else step(op, "/metadata/labels/leak", **{"from": pointer})
    request = patch(SECRET, [step("add", "/metadata/labels/a", value="b"), one], "json")
    refusal = maskwrites.reads_back(request, EVERYTHING)
    assert (refusal.code, refusal.cause) == (403, "masked-read")
    assert len(refusal.message) < 500
    assert maskwrites.reads_back(request, NOTHING) is None


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(step("test", "/metadata/resourceVersion", value="7"), id="the version"),
        pytest.param(step("test", "/metadata/labels/a", value="7"), id="a label"),
        pytest.param(step("copy", "/metadata/labels/b", **{"from": "/metadata/labels/a"}), id="one label to another"),
        pytest.param(step("test", "/type", value="Opaque"), id="the type"),
        pytest.param(step("replace", "/data/password", value="eA=="), id="a write is no read"),
        pytest.param(step("remove", "/data/password"), id="nor is a removal"),
    ],
)
def test_json_patches_of_a_secret_that_read_nothing(one):
    assert maskwrites.reads_back(patch(SECRET, [one], "json"), EVERYTHING) is None


@pytest.mark.parametrize(
    ("target", "pointer", "refused"),
    [
        pytest.param(DEPLOYMENT, f"{TEMPLATE}/containers/0/env/0/value", True, id="a variable"),
        pytest.param(DEPLOYMENT, f"{TEMPLATE}/containers/0/env", True, id="all variables"),
        pytest.param(DEPLOYMENT, f"{TEMPLATE}/containers/0", True, id="a container"),
        pytest.param(DEPLOYMENT, f"{TEMPLATE}/containers", True, id="all containers"),
        pytest.param(DEPLOYMENT, f"{TEMPLATE}/initContainers/0/args/1", True, id="an argument"),
        pytest.param(DEPLOYMENT, TEMPLATE, True, id="the pod spec"),
        pytest.param(DEPLOYMENT, "/spec", True, id="above it"),
        pytest.param(DEPLOYMENT, "", True, id="the object"),
        pytest.param(DEPLOYMENT, f"/metadata/annotations/{LAST.replace('/', '~1')}", True, id="last applied"),
        pytest.param(DEPLOYMENT, "/spec/replicas", False, id="replicas"),
        pytest.param(DEPLOYMENT, f"{TEMPLATE}/containers/0/image", False, id="an image"),
        pytest.param(DEPLOYMENT, f"{TEMPLATE}/volumes/0", False, id="a volume"),
        pytest.param(DEPLOYMENT, "/metadata/resourceVersion", False, id="the version"),
        pytest.param(CONFIG_MAP, "/data/password", True, id="a ConfigMap"),
        pytest.param(CONFIG_MAP, "/metadata/labels/x", False, id="its label"),
        pytest.param("/apis/apps/v1/namespaces/a/controllerrevisions/x", "/data/spec", True, id="an old template"),
        pytest.param(DATABASE, "/spec/adminPassword", True, id="a telling name in a custom resource"),
        pytest.param(DATABASE, "/spec/size", False, id="another field of it"),
        pytest.param(DATABASE, "/spec/passwords/0", True, id="an item of a list with a telling name"),
        pytest.param(DATABASE, "/spec/env/0/value", True, id="a value beside its name"),
        pytest.param(DATABASE, "/spec/env/-1/value", True, id="the last one"),
        pytest.param(DATABASE, "/spec/args/1", True, id="an argument in a custom resource"),
        pytest.param(CLAIM, f"{PARAMETERS}/env/0/value", True, id="a value in a driver's parameters"),
        pytest.param(CLAIM, f"{PARAMETERS}/size", False, id="another of them"),
    ],
)
@pytest.mark.parametrize("op", ["copy", "move", "test"])
def test_json_patches_that_read_something_else(op, target, pointer, refused):
    one = step(op, pointer, value="x") if op == "test" else step(op, "/metadata/labels/leak", **{"from": pointer})
    assert (maskwrites.reads_back(patch(target, [one], "json"), EVERYTHING) is not None) is refused


@pytest.mark.parametrize(
    ("pointer", "refused"),
    [
        pytest.param("/spec/env/0", True, id="an item, whose name can be changed next"),
        pytest.param("/spec/header/value", True, id="a value without the name beside it"),
        pytest.param("/spec/args", True, id="arguments, whose flag can go next"),
        pytest.param("/spec/env", False, id="a list with its names"),
        pytest.param("/spec", False, id="all with all names"),
    ],
)
@pytest.mark.parametrize("op", ["copy", "move"])
def test_a_copy_in_a_custom_resource_keeps_its_names(op, pointer, refused):
    one = step(op, "/spec/other", **{"from": pointer})
    assert (maskwrites.reads_back(patch(DATABASE, [one], "json"), EVERYTHING) is not None) is refused
    elsewhere = MaskLevel(builtin=False, masked=(maskfields.parse("status.token"),))
    assert maskwrites.reads_back(patch(DATABASE, [one], "json"), elsewhere) is None


GUESS = "Xq9zKw-Pl4mNb77"


@pytest.mark.parametrize(
    ("target", "pointer", "value", "refused"),
    [
        pytest.param(DATABASE, "/spec", {"inner": {"password": GUESS}}, True, id="above a telling name"),
        pytest.param(DATABASE, "/spec", {"size": 3, "name": "x"}, False, id="nothing secret below"),
        pytest.param(DATABASE, "/spec/passwords/0", GUESS, True, id="an item"),
        pytest.param(DATABASE, "/spec/header/value", GUESS, True, id="a value whose name is not in the patch"),
        pytest.param(DATABASE, "/spec/header/value", "info", False, id="a value that is no secret's"),
        pytest.param(DATABASE, "/spec/url", f"postgres://u:{GUESS}@db/x", True, id="a secret by its shape"),
        pytest.param(DATABASE, "/spec/env/0", {"name": "DB_PASSWORD", "value": "x"}, True, id="a variable"),
        pytest.param("/api/v1/namespaces/a/services/b", "/spec/type", "ClusterIP", False, id="something else"),
    ],
)
def test_a_test_of_what_would_be_masked(target, pointer, value, refused):
    request = patch(target, [step("test", pointer, value=value)], "json")
    assert (maskwrites.reads_back(request, EVERYTHING) is not None) is refused


@pytest.mark.parametrize(
    ("one", "refused"),
    [
        pytest.param(step("replace", "/spec/env/0/name", value="LOG_LEVEL"), True, id="a variable"),
        pytest.param(step("remove", "/spec/env/0/name"), True, id="no name"),
        pytest.param(step("add", "/spec/args/1", value="x"), True, id="an argument between"),
        pytest.param(step("add", "/spec/args/-", value="x"), False, id="an argument more"),
        pytest.param(step("replace", "/spec/secretRef/name", value="x"), False, id="the name of something else"),
    ],
)
def test_another_name_in_a_custom_resource(one, refused):
    assert (maskwrites.reads_back(patch(DATABASE, [one], "json"), EVERYTHING) is not None) is refused


def test_names_of_ports_may_change():
    one = step("replace", "/spec/ports/0/name", value="http")
    assert maskwrites.reads_back(patch("/api/v1/namespaces/a/services/b", [one], "json"), EVERYTHING) is None


@pytest.mark.parametrize(
    ("selector", "refused"),
    [("spec.password=x", True), ("a.apiToken!=x", True), ("metadata.name=password", False), ("spec.size=3", False)],
)
def test_field_selectors_on_telling_names(selector, refused):
    request = operation("GET", f"/apis/example.com/v1/databases?fieldSelector={selector}")
    assert (maskwrites.reads_back(request, EVERYTHING) is not None) is refused
    shown = MaskLevel(shown=(maskfields.parse("spec.password"), maskfields.parse("a")))
    assert maskwrites.reads_back(request, shown) is None


@pytest.mark.parametrize(
    ("body", "kind", "fields"),
    [
        pytest.param({"spec": {"header": {"value": GUESS}}}, "merge", ("spec.header.value",), id="alone"),
        pytest.param({"spec": {"header": {"name": "LEVEL", "value": GUESS}}}, "merge", (), id="with a plain name"),
        pytest.param({"spec": {"header": {"value": "info"}}}, "merge", (), id="no secret's"),
        pytest.param([step("replace", "/spec/header/value", value=GUESS)], "json", ("spec.header.value",), id="JSON"),
        pytest.param([step("replace", "/spec/header/value", value="info")], "json", (), id="JSON, no secret's"),
    ],
)
def test_a_value_whose_name_is_not_in_the_patch(body, kind, fields):
    assert maskwrites.sets_masked_field(patch(DATABASE, body, kind), EVERYTHING) == fields


@pytest.mark.parametrize(
    ("target", "path", "value", "held"),
    [
        pytest.param(DEPLOYMENT, f"{TEMPLATE}/containers/0/args/-", "--more", False, id="plain"),
        pytest.param(DEPLOYMENT, f"{TEMPLATE}/containers/0/args/-", f"--token={GUESS}", True, id="with a secret"),
        pytest.param(DEPLOYMENT, f"{TEMPLATE}/containers/0/args/0", "--more", True, id="in place of one"),
        pytest.param(DATABASE, "/spec/args/-", "--more", True, id="a custom list, which may be a set"),
    ],
)
def test_one_more_argument(target, path, value, held):
    request = patch(target, [step("add", path, value=value)], "json")
    assert bool(maskwrites.sets_masked_field(request, EVERYTHING)) is held


@pytest.mark.parametrize(
    ("one", "refused"),
    [
        pytest.param(step("replace", f"{TEMPLATE}/containers/0/env/0/name", value="LOG_LEVEL"), True, id="rename it"),
        pytest.param(
            step("replace", f"{TEMPLATE}/containers/0/args/0", value="--log"), True, id="another flag before it"
        ),
        pytest.param(step("add", f"{TEMPLATE}/containers/0/args/1", value="--log"), True, id="a flag between"),
        pytest.param(step("remove", f"{TEMPLATE}/containers/0/command/0"), True, id="no flag before it"),
        pytest.param(
            step("replace", f"{TEMPLATE}/containers/0/livenessProbe/httpGet/httpHeaders/0/name", value="x"),
            True,
            id="header",
        ),
        pytest.param(step("add", f"{TEMPLATE}/containers/0/args/-", value="--log"), False, id="at the end"),
        pytest.param(step("replace", f"{TEMPLATE}/containers/0/args", value=["--log"]), False, id="all arguments"),
        pytest.param(step("replace", f"{TEMPLATE}/containers/0/name", value="web"), False, id="a container's name"),
        pytest.param(step("replace", f"{TEMPLATE}/volumes/0/name", value="web"), False, id="a volume's name"),
    ],
)
def test_a_value_under_another_name_would_be_shown(one, refused):
    assert (maskwrites.reads_back(patch(DEPLOYMENT, [one], "json"), EVERYTHING) is not None) is refused


@pytest.mark.parametrize("pointer", ["/spec/users/0/password", "/spec/users/-", "/spec/users", "/spec", ""])
def test_json_patches_that_read_a_field_of_a_rule(pointer):
    request = patch(DATABASE, [step("copy", "/metadata/labels/a", **{"from": pointer})], "json")
    for level in (RULE, MaskLevel(builtin=False, masked=RULE.masked)):
        assert maskwrites.reads_back(request, level) is not None


@pytest.mark.parametrize("index", ["0", "-1", "+0", "00", "-0"])
def test_indexes_as_go_reads_them(index):
    renamed = step("replace", f"{TEMPLATE}/containers/{index}/env/{index}/name", value="LOG_LEVEL")
    assert maskwrites.reads_back(patch(DEPLOYMENT, [renamed], "json"), EVERYTHING) is not None
    guess = step("replace", f"{TEMPLATE}/containers/{index}/env/{index}/value", value="x")
    assert maskwrites.sets_masked_field(patch(DEPLOYMENT, [guess], "json"), EVERYTHING)
    level = MaskLevel(builtin=False, masked=(maskfields.parse("spec.users.password"),))  # forgot its [*]
    test = step("test", f"/spec/users/{index}/password", value="x")
    assert maskwrites.reads_back(patch(DATABASE, [test], "json"), level) is not None


def test_a_rule_on_a_field_of_a_secret_means_how_it_is_written_too():
    level = MaskLevel(builtin=False, masked=(maskfields.parse("data.a"),), shown=(maskfields.parse("data"),))
    for body in ({"stringData": {"a": "x"}}, {"data": {"a": "eA=="}}, {"data": None}):
        assert maskwrites.sets_masked_field(patch(SECRET, body), level)
    assert not maskwrites.sets_masked_field(patch(SECRET, {"stringData": {"b": "x"}}), level)
    test = step("test", "/stringData/a", value="x")
    assert maskwrites.reads_back(patch(SECRET, [test], "json"), level) is not None
    one = step("add", "/stringData/a", value="x")
    assert maskwrites.sets_masked_field(patch(SECRET, [one], "json"), level)


def test_what_a_rule_shows_may_be_tested():
    level = MaskLevel(shown=(maskfields.parse("data.user"),))
    assert maskwrites.reads_back(patch(SECRET, [step("test", "/data/user", value="x")], "json"), level) is None
    assert maskwrites.reads_back(patch(SECRET, [step("test", "/data", value="x")], "json"), level) is not None


@pytest.mark.parametrize(
    ("selector", "refused"),
    [
        ("spec.users.password=hunter2", True),
        ("metadata.name=x,spec.users.password!=hunter2", True),
        ("spec.users==a", True),
        ("metadata.name=main", False),
        ("spec.size=3", False),
        ("", False),
    ],
)
def test_field_selectors(selector, refused):
    request = operation("GET", f"/apis/example.com/v1/databases?fieldSelector={selector}")
    assert (maskwrites.reads_back(request, RULE) is not None) is refused
    assert maskwrites.reads_back(request, NOTHING) is None


# Writes that tell


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        pytest.param(operation("PUT", SECRET, {"data": {"a": "eA=="}}), ("data.a",), id="a replace"),
        pytest.param(operation("PUT", SECRET, {"kind": "Secret"}), ("data",), id="a replace that empties it"),
        pytest.param(operation("PUT", f"{SECRET}?dryRun=All", {"data": {"a": "eA=="}}), ("data.a",), id="its dry run"),
        pytest.param(patch(SECRET, {"data": {"a": "eA=="}}), ("data.a",), id="a merge patch"),
        pytest.param(
            patch(f"{SECRET}?dryRun=All", {"stringData": {"a": "x"}}), ("data.a",), id="its dry run, stringData"
        ),
        pytest.param(patch(SECRET, {"data": None}), ("data",), id="all of it away"),
        pytest.param(patch(SECRET, {"data": {"a": None}}), ("data.a",), id="one away"),
        pytest.param(patch(SECRET, {"stringData": {"a": "x"}}, "apply"), ("data.a",), id="an apply"),
        pytest.param(patch(SECRET, {"$patch": "replace"}, "strategic"), ("$patch",), id="a directive"),
        pytest.param(
            patch(SECRET, {"metadata": {"annotations": {"a": "b"}}}), ("metadata.annotations",), id="annotate"
        ),
        pytest.param(patch(SECRET, {"metadata": {"labels": {"a": "b"}}}), (), id="a label"),
        pytest.param(patch(SECRET, {"metadata": {"labels": {"a": "b"}}}, "apply"), (), id="a label by apply"),
        pytest.param(patch(SECRET, [step("replace", "/data/a", value="eA==")], "json"), ("data.a",), id="a JSON patch"),
        pytest.param(
            patch(SECRET, [step("copy", "/data/a", **{"from": "/metadata/labels/a"})], "json"),
            ("data.a",),
            id="a copy into it",
        ),
        pytest.param(
            patch(SECRET, [step("add", "/metadata/labels/a", value="b")], "json"), (), id="a label by JSON patch"
        ),
        pytest.param(operation("POST", SECRETS, {"data": {"a": "eA=="}}), (), id="a new one is free"),
        pytest.param(operation("DELETE", SECRET), (), id="a delete"),
        pytest.param(operation("GET", SECRET), (), id="a read"),
    ],
)
def test_writes_to_a_secret(request_, fields):
    assert maskwrites.sets_masked_field(request_, EVERYTHING) == fields
    assert maskwrites.sets_masked_field(request_, NOTHING) == ()
    assert maskwrites.sets_masked_field(request_, MaskLevel(free_writes=True)) == ()


@pytest.mark.parametrize("pointer", [f"{TEMPLATE}/containers/0/env/0", f"{TEMPLATE}/containers/0", TEMPLATE])
def test_what_a_copy_brings_is_not_in_the_request(pointer):
    one = step("copy", pointer, **{"from": "/metadata/labels/a"})
    assert maskwrites.reads_back(patch(DEPLOYMENT, [one], "json"), EVERYTHING) is None
    assert maskwrites.sets_masked_field(patch(DEPLOYMENT, [one], "json"), EVERYTHING)


def test_an_apply_that_is_known_to_create_is_free():
    request = patch(SECRET, {"stringData": {"a": "x"}}, "apply")
    assert maskwrites.sets_masked_field(request, EVERYTHING, exists=False) == ()
    assert maskwrites.sets_masked_field(request, EVERYTHING, exists=True) == ("data.a",)


def containers(**fields):
    return {"spec": {"template": {"spec": {"containers": [{"name": "c", **fields}]}}}}


ENV = "spec.template.spec.containers[0].env[0].value"


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        pytest.param(
            patch(DEPLOYMENT, containers(env=[{"name": "DB_PASSWORD", "value": "x"}]), "strategic"),
            (ENV,),
            id="a guess",
        ),
        pytest.param(
            patch(DEPLOYMENT, containers(env=[{"name": "DB_PASSWORD", "value": "x"}]), "apply"), (ENV,), id="an apply"
        ),
        pytest.param(
            operation("PUT", DEPLOYMENT, containers(env=[{"name": "A", "value": "postgres://u:Xq9z@h/x"}])),
            (ENV,),
            id="by its shape",
        ),
        pytest.param(
            patch(DEPLOYMENT, containers(env=[{"name": "LOG_LEVEL", "value": "x"}]), "strategic"), (), id="a plain one"
        ),
        pytest.param(patch(DEPLOYMENT, containers(image="x:2"), "strategic"), (), id="an image"),
        pytest.param(patch(DEPLOYMENT, {"spec": {"replicas": 3}}), (), id="replicas"),
        pytest.param(
            patch(DEPLOYMENT, [step("replace", f"{TEMPLATE}/containers/0/env/0/value", value="x")], "json"),
            ("spec.template.spec.containers.0.env.0.value",),
            id="by its index",
        ),
        pytest.param(
            patch(DEPLOYMENT, [step("replace", f"{TEMPLATE}/containers/0/image", value="x")], "json"),
            (),
            id="an image by JSON patch",
        ),
        pytest.param(
            operation("POST", DEPLOYMENT.rpartition("/")[0], containers(env=[{"name": "DB_PASSWORD", "value": "x"}])),
            (),
            id="a new one",
        ),
        pytest.param(patch(CONFIG_MAP, {"data": {"password": "x"}}), ("data.password",), id="a ConfigMap"),
        pytest.param(patch(CONFIG_MAP, {"data": {"size": "3"}}), (), id="a plain setting"),
        pytest.param(
            patch(CONFIG_MAP, [step("add", "/data/password", value="x")], "json"),
            ("data.password",),
            id="by JSON patch",
        ),
    ],
)
def test_writes_to_others(request_, fields):
    assert maskwrites.sets_masked_field(request_, EVERYTHING) == fields
    assert maskwrites.sets_masked_field(request_, NOTHING) == ()


@pytest.mark.parametrize("builtin", [True, False])
@pytest.mark.parametrize(
    ("body", "sets"),
    [
        pytest.param({"spec": {"users": [{"password": "x"}]}}, True, id="the field"),
        pytest.param({"spec": {"users": None}}, True, id="above it, away"),
        pytest.param({"spec": {"users": [{"$patch": "delete"}]}}, True, id="a directive"),
        pytest.param({"spec": {"users": [{"name": "ann"}]}}, False, id="beside it"),
        pytest.param({"spec": {"size": 1}}, False, id="elsewhere"),
    ],
)
def test_writes_to_a_field_of_a_rule(body, sets, builtin):
    level = MaskLevel(builtin=builtin, masked=RULE.masked)
    assert bool(maskwrites.sets_masked_field(patch(DATABASE, body), level)) is sets


def test_json_patches_of_a_field_of_a_rule():
    level = MaskLevel(builtin=False, masked=RULE.masked)
    for pointer in ("/spec/users/0/password", "/spec/users/0", "/spec"):
        assert maskwrites.sets_masked_field(patch(DATABASE, [step("add", pointer, value=1)], "json"), level)
    assert not maskwrites.sets_masked_field(patch(DATABASE, [step("add", "/spec/size", value=1)], "json"), level)


def test_a_rule_that_shows_frees_the_write_of_it():
    level = maskpolicy.MaskLevel(shown=(maskfields.parse("data.user"),))
    assert maskwrites.sets_masked_field(patch(SECRET, {"data": {"user": "eA=="}}), level) == ()
    assert maskwrites.sets_masked_field(patch(SECRET, {"data": {"user": "eA==", "b": "eA=="}}), level) == ("data.b",)
