import base64
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import auditevents, chain, classify, maskdetect, maskpolicy, masktags, recordable
from addons.core.masktags import Place
from tests import canaries

KEY = bytes(range(32))
ALL = maskpolicy.EVERYTHING
SECRET = "correct-horse-battery-9"
TOKEN = canaries.VALUES["github token"].decode()
SECRETS = Place("secrets", "shop", "db")
PATH = "/api/v1/namespaces/shop/secrets"


def operation(body, path=PATH, method="POST", content_type="application/json"):
    return classify.classify_raw(method, path, ((b"content-type", content_type.encode()),), body)


def request(body, path=PATH, method="POST", content_type="application/json"):
    return recordable.request(operation(body, path, method, content_type), body, content_type, KEY, ALL)


def test_a_body_without_secrets_is_the_same_bytes():
    body = b'{ "kind": "ConfigMap",\n "metadata": {"name": "a"}, "data": {"x": "y"} }'
    content = request(body, "/api/v1/namespaces/shop/configmaps")
    assert (content.raw, content.masked, content.value["data"]) == (body, 0, {"x": "y"})


def test_a_secret_is_masked_in_both_forms():
    content = request(json.dumps({"kind": "Secret", "stringData": {"p": SECRET}}).encode())
    assert SECRET.encode() not in content.raw
    assert masktags.holds_tag(content.value["stringData"]["p"])
    assert (json.loads(content.raw), content.masked) == (content.value, 1)


def test_protobuf_is_recorded_as_json():
    secret = bytes.fromhex("6b387300") + _field(1, _field(1, b"v1") + _field(2, b"Secret")) + _field(
        2, _field(1, _field(1, b"db")) + _field(2, _field(1, b"p") + _field(2, SECRET.encode()))
    )  # fmt: skip
    content = request(secret, content_type="application/vnd.kubernetes.protobuf")
    assert content.content_type == "application/json"
    assert json.loads(content.raw)["metadata"]["name"] == "db"
    assert SECRET.encode() not in content.raw
    assert base64.b64encode(SECRET.encode()) not in content.raw


def _field(number, data):
    return bytes([number << 3 | 2, len(data)]) + data


@pytest.mark.parametrize("body", [b"", None])
def test_no_body(body):
    assert recordable.request(operation(b"", method="DELETE"), body or b"", "", KEY, ALL) == recordable.NO_CONTENT


def test_what_nobody_reads_is_searched():
    body = f"login with {TOKEN} please \xff".encode("latin-1")
    path = "/api/v1/namespaces/shop/services/web/proxy/login"
    content = recordable.request(operation(body, path, "POST", "text/plain"), body, "text/plain", KEY, ALL)
    assert TOKEN.encode() not in content.raw
    assert content.raw.startswith(b"login with ")
    assert content.raw.endswith(b" please \xff")


@pytest.mark.parametrize(
    ("raw", "encoding", "content_type", "note"),
    [
        pytest.param(b"x" * (recordable.MAX_ANSWER + 1), "", "application/json", "bytes", id="too large"),
        pytest.param(b"{", "", "application/json", "cannot be masked", id="no JSON"),
        pytest.param(b"\0\1", "", "application/vnd.kubernetes.protobuf", "cannot be masked", id="protobuf"),
        pytest.param(b"zz", "br", "application/json", "cannot be masked", id="an encoding nobody asked for"),
    ],
)
def test_answers_that_are_left_out(raw, encoding, content_type, note):
    content = recordable.answer(raw, encoding, content_type, 200, SECRETS, KEY, ALL)
    assert (content.raw, content.value) == (b"", None)
    assert note in content.note


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer(packed):
    raw = json.dumps({"kind": "Secret", "metadata": {"name": "db"}, "data": {"p": "Y29ycmVjdA=="}}).encode()
    content = recordable.answer(
        gzip.compress(raw) if packed else raw, "gzip" if packed else "", "application/json", 200, SECRETS, KEY, ALL
    )
    assert content.value["metadata"]["name"] == "db"
    assert b"Y29ycmVjdA==" not in content.raw


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("/api/v1/pods?limit=500&labelSelector=app%3Dweb", None),
        ("/api/v1/pods", None),
        ("/api/v1/pods/web/exec?command=ls&command=-l&stdin=true", None),
        (f"/x?token={TOKEN}", "/x?token=**masked"),
        (f"/api/v1/pods/web/exec?command=login&command=--password&command={SECRET}", "command=**masked**"),
    ],
)
def test_targets(target, wanted):
    found = recordable.uri(target, SECRETS, KEY, ALL)
    assert SECRET not in found
    assert TOKEN not in found
    assert found == target if wanted is None else wanted in found


def test_the_texts_of_an_event():
    event = {
        "userAgent": f"x {TOKEN}",
        "annotations": {
            auditevents.COMMAND: f"kubectl get --token={TOKEN}",
            auditevents.OPERATION: json.dumps({"labelSelector": f"a={TOKEN}", "count": 1}),
            auditevents.RULE: "r",
        },
        "responseStatus": {"code": 422, "message": f"Invalid value: {TOKEN}"},
    }
    found = recordable.event(KEY)(event)
    assert TOKEN not in json.dumps(found)
    assert found["annotations"][auditevents.RULE] == "r"
    assert json.loads(found["annotations"][auditevents.OPERATION])["count"] == 1
    assert TOKEN in json.dumps(event)  # the input is left alone


def test_plain_headers_are_remembered_and_others_not():
    for _ in range(2):
        assert recordable.is_plain(b"kubectl/v1.36.3")
        assert not recordable.is_plain(TOKEN.encode())


@pytest.mark.parametrize(
    ("body", "message"), [(b'{"message": "no"}', "no"), (b"x", ""), (b"[]", ""), (b'{"message": 1}', "")]
)
def test_the_sentence_of_a_status(body, message):
    assert recordable.message_of(body) == message


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"kind": "ConfigMap", "data": {TOKEN: "a"}}, id="a key"),
        pytest.param({"kind": "ConfigMap", "metadata": {"labels": {TOKEN: "a"}}}, id="a label's key"),
        pytest.param({"metadata": {"resourceVersion": TOKEN}}, id="a version"),
        pytest.param({"metadata": {"uid": TOKEN}}, id="a uid"),
        pytest.param({"kind": TOKEN}, id="a kind"),
        pytest.param({"metadata": {"managedFields": [{"manager": TOKEN}]}}, id="a manager"),
        pytest.param({"metadata": {"managedFields": [{"fieldsV1": {f"f:{TOKEN}": {}}}]}}, id="managed fields"),
        pytest.param({"kind": "Status", "details": {"name": TOKEN, "kind": "configmaps"}}, id="what a Status is of"),
        pytest.param({"kind": "Status", "details": {"causes": [{"field": f"data[{TOKEN}]"}]}}, id="a cause"),
    ],
)
def test_names_in_an_object_are_searched(content):
    found = recordable.value(content, Place("configmaps"), KEY, ALL)
    assert TOKEN not in json.dumps(found.content)
    assert found.count
    assert recordable.value({"a": {"b": [1]}}, Place("configmaps"), KEY, ALL).count == 0
    raw = json.dumps(content).encode()
    made = recordable.answer(raw, "", "application/json", 200, Place("configmaps"), KEY, ALL)
    assert TOKEN.encode() not in made.raw
    assert TOKEN not in json.dumps(made.value)


def test_all_of_an_event_that_a_client_has_a_hand_in():
    event = {
        "verb": TOKEN,
        "objectRef": {"name": TOKEN, "namespace": TOKEN},
        "annotations": {
            auditevents.OPERATION: json.dumps({"labels": {TOKEN: TOKEN}, "info": {"parts": ["a", TOKEN]}}),
            auditevents.MEDIA_TYPE: TOKEN,
            auditevents.REACH: TOKEN,
            auditevents.TRUNCATED: f"before: /api/{TOKEN}: no",
        },
    }
    found = recordable.event(KEY)(event)
    assert TOKEN not in json.dumps(found)
    assert json.loads(found["annotations"][auditevents.OPERATION])["info"]["parts"][0] == "a"


def test_names_of_parameters_are_searched():
    assert TOKEN not in recordable.uri(f"/api/v1/pods?{TOKEN}=1", SECRETS, KEY, ALL)


@pytest.mark.parametrize(("text", "kept"), [("y" * 100, True), ("y" * auditevents.MAX_OBJECT, False)])
def test_an_object_that_is_too_large_for_an_event_is_in_the_flow_only(text, kept):
    body = json.dumps({"kind": "ConfigMap", "data": {"x": text}}).encode()
    asked = request(body, "/api/v1/namespaces/shop/configmaps")
    answered = recordable.answer(body, "", "application/json", 200, Place("configmaps"), KEY, ALL)
    for content, name in ((asked, "requestObject"), (answered, "responseObject")):
        assert json.loads(content.raw) == json.loads(body)
        assert (content.value is not None) is kept
        assert content.note == ("" if kept else f"{name} {len(chain.canonical(json.loads(body)))} bytes")


@given(st.uuids().map(lambda one: str(one).encode()))
def test_an_audit_id_is_plain_to_the_detectors_too(value):
    """It is not searched: this is why."""
    assert recordable.is_plain(value)
    assert not maskdetect.spans(value.decode())


@pytest.mark.parametrize("value", [b"x=%s", b"%s ", b"token %s", b"%s%s"])
def test_only_a_whole_audit_id_is_not_searched(value, monkeypatch):
    searched = []
    monkeypatch.setattr(recordable, "_plain", set())
    monkeypatch.setattr(maskdetect, "spans", lambda text: searched.append(text) or [])
    uuid = b"01234567-89ab-4cde-8f01-23456789abcd"
    recordable.is_plain(value.replace(b"%s", uuid))
    assert searched
