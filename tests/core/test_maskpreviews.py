import base64
import json

import pytest

from addons.core import classify, maskpolicy, maskpreviews
from addons.core.maskfields import parse
from addons.core.masking import LAST_APPLIED
from addons.core.maskpreviews import CHANGES, MASKED

CANARY = "Hunter2-c4n4ry-Xq9"
CODED = base64.b64encode(CANARY.encode()).decode()
OTHER = base64.b64encode(b"another-c4n4ry-Yr8").decode()
SECRET = "/api/v1/namespaces/shop/secrets/db"
WEB = "/apis/apps/v1/namespaces/shop/deployments/web"
MERGE = "application/merge-patch+json"


def read(method, target, body, media=MERGE):
    return classify.classify(method, target, {"content-type": media}, json.dumps(body).encode())


def a_secret(value=CODED, **more):
    metadata = {
        "name": "db",
        "uid": "u-1",
        "labels": {"app": "db"},
        "annotations": {LAST_APPLIED: json.dumps({"data": {"password": value}}), "note": value},
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": metadata,
        "data": {"password": value},
    } | more


def a_deployment(value, image="x"):
    container = {"name": "c", "image": image, "env": [{"name": "DB_PASSWORD", "value": value}], "args": ["--a=b"]}
    return {"metadata": {"name": "web"}, "spec": {"template": {"spec": {"containers": [container]}}}}


def test_a_changed_value_is_told_and_not_shown():
    before, after = maskpreviews.everything("secrets", a_secret(), a_secret(OTHER))
    assert before["data"] == {"password": MASKED}
    assert after["data"] == {"password": CHANGES}
    assert after["metadata"]["annotations"]["note"] == CHANGES
    assert json.loads(after["metadata"]["annotations"][LAST_APPLIED]) == {"data": {"password": CHANGES}}
    assert after["metadata"]["labels"] == {"app": "db"}
    assert after["metadata"]["uid"] == "u-1"
    assert after["type"] == "Opaque"


def test_the_same_value_does_not_change():
    before, after = maskpreviews.everything("secrets", a_secret(), a_secret())
    assert before == after


def test_an_object_made_anew_is_compared_all_the_same():
    anew = a_secret()
    anew["metadata"] = anew["metadata"] | {"uid": "u-2"}
    _, after = maskpreviews.everything("secrets", a_secret(), anew)
    assert after["data"] == {"password": MASKED}


def test_nothing_is_changed_in_place():
    secret = a_secret()
    maskpreviews.everything("secrets", secret, secret)
    assert secret == a_secret()


def test_what_is_plain_is_left_as_it_is():
    config = {"kind": "ConfigMap", "data": {"level": "info"}}
    assert maskpreviews.everything("configmaps", config) == (config,)


def test_a_change_elsewhere_is_shown():
    before, after = maskpreviews.everything("deployments.apps", a_deployment(CANARY), a_deployment(CANARY, "y"))
    assert before["spec"]["template"]["spec"]["containers"][0]["image"] == "x"
    assert after["spec"]["template"]["spec"]["containers"][0]["image"] == "y"
    assert CANARY not in json.dumps((before, after))


# Requesters see their own approvals: none of these may tell whether a guess is right.
@pytest.mark.parametrize(
    ("operation", "resource", "live"),
    [
        pytest.param(read("PATCH", SECRET, {"data": {"password": CODED}}), "secrets", a_secret(), id="a Secret"),
        pytest.param(
            read("PATCH", SECRET, {"stringData": {"password": CANARY}}), "secrets", a_secret(), id="its stringData"
        ),
        pytest.param(
            read("PUT", SECRET, {"data": {"password": CODED}}, "application/json"), "secrets", a_secret(), id="a PUT"
        ),
        pytest.param(
            read("PATCH", WEB, a_deployment(CANARY)), "deployments.apps", a_deployment(CANARY), id="an environment"
        ),
    ],
)
def test_a_right_guess_is_told_as_a_change(operation, resource, live):
    mask = maskpreviews.of(operation, maskpolicy.EVERYTHING)
    _, right = mask(resource, live, live)
    wrong_live = json.loads(json.dumps(live).replace(CODED, OTHER).replace(CANARY, "Other-c4n4ry-Yr8"))
    _, wrong = mask(resource, wrong_live, live)
    assert CHANGES in json.dumps(right)
    assert without_applied(right) == without_applied(wrong)


def without_applied(content):
    """Of the annotations a guess says nothing: the request does not set them."""
    return {**content, "metadata": {}}


def test_keys_that_the_request_leaves_alone_do_not_change():
    live = a_secret(data={"password": CODED, "user": OTHER})
    mask = maskpreviews.of(read("PATCH", SECRET, {"data": {"password": CODED}}), maskpolicy.EVERYTHING)
    assert mask("secrets", live, live)[1]["data"] == {"password": CHANGES, "user": MASKED}


def test_a_rule_that_frees_writes_does_not_make_it_an_oracle():
    level = maskpolicy.MaskLevel(free_writes=True)
    mask = maskpreviews.of(read("PATCH", SECRET, {"data": {"password": CODED}}), level)
    assert mask("secrets", a_secret(), a_secret())[1]["data"] == {"password": CHANGES}


def test_fields_of_rules():
    level = maskpolicy.MaskLevel(masked=(parse("spec.word"),))
    operation = read("PATCH", "/apis/x.io/v1/things/y", {"spec": {"a": 1}})
    shown = maskpreviews.of(operation, level)("things.x.io", {"spec": {"word": "plain"}})
    assert shown == ({"spec": {"word": MASKED}},)


def test_no_tag_is_shown():
    """One could be compared with the tag in an answer."""
    assert "masked:" not in json.dumps(maskpreviews.everything("secrets", a_secret(), a_secret(OTHER)))


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        pytest.param(["mysql", "--password", CANARY], ("mysql", "--password", MASKED), id="after its flag"),
        pytest.param(["mysql", f"--password={CANARY}"], ("mysql", f"--password={MASKED}"), id="with its flag"),
        pytest.param(["sh", "-c", f"export TOKEN={CANARY}"], ("sh", "-c", f"export TOKEN={MASKED}"), id="in a script"),
        pytest.param(["ls", "-l", "/"], ("ls", "-l", "/"), id="nothing"),
        pytest.param([f"password={CANARY}"], (f"password={MASKED}",), id="one word"),
        pytest.param([], (), id="no word"),
    ],
)
def test_words(argv, shown):
    assert maskpreviews.words(argv) == shown
    assert maskpreviews.everything("", *argv) == shown
