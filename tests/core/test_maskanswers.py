import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import classify, maskanswers, maskpolicy
from addons.core.admission import ServerRefusal
from addons.core.maskanswers import Form
from addons.core.masktags import Place
from addons.core.status import Refused
from tests import canaries

KEY = bytes(range(32))
SECRETS = Place("secrets", "shop", "db")
NS = "/api/v1/namespaces/shop"
PASSWORD = canaries.VALUES["password"]
WEBSOCKET = {"upgrade": "websocket", "connection": "Upgrade"}
SECRET = json.dumps({"kind": "Secret", "apiVersion": "v1", "data": {"p": "aHVudGVyMg=="}}).encode()


def operation(method, target, headers=None):
    return classify.classify(method, target, headers or {}, b"")


@pytest.mark.parametrize(
    ("asked", "form"),
    [
        pytest.param(operation("GET", f"{NS}/secrets/db"), Form.OBJECTS, id="get"),
        pytest.param(operation("GET", "/api/v1/secrets"), Form.OBJECTS, id="list"),
        pytest.param(operation("DELETE", f"{NS}/secrets"), Form.OBJECTS, id="a collection delete"),
        pytest.param(operation("GET", f"{NS}/pods/p/exec"), Form.OBJECTS, id="an exec that is no upgrade"),
        pytest.param(operation("GET", "/apis/x.io/v1/namespaces/a/things/t/log"), Form.OBJECTS, id="somebody's log"),
        pytest.param(operation("GET", "/apis/x.io/v1/namespaces/a/things/t/proxy"), Form.OBJECTS, id="and proxy"),
        pytest.param(operation("GET", f"{NS}/secrets?watch=1"), Form.EVENTS, id="watch"),
        pytest.param(operation("GET", f"/api/v1/watch{NS[7:]}/secrets"), Form.EVENTS, id="the old watch"),
        pytest.param(operation("GET", f"{NS}/pods/p/log?follow=true"), Form.TEXT, id="log"),
        pytest.param(operation("GET", f"{NS}/services/s/proxy/x"), Form.TEXT, id="proxy"),
        pytest.param(operation("POST", "/api/v1/nodes/n/proxy/run"), Form.TEXT, id="the kubelet"),
        pytest.param(operation("GET", "/metrics"), Form.TEXT, id="an unknown page"),
        pytest.param(operation("GET", "/logs/audit.log"), Form.TEXT, id="a file of the API server"),
        pytest.param(operation("GET", f"{NS}/pods/p/exec?command=ls", WEBSOCKET), Form.FRAMES, id="exec"),
        pytest.param(operation("GET", "/version"), Form.NOTHING, id="version"),
        pytest.param(operation("GET", "/apis/apps/v1"), Form.NOTHING, id="discovery"),
        pytest.param(operation("GET", "/openapi/v3/apis/apps/v1"), Form.NOTHING, id="schema"),
        pytest.param(operation("GET", "/apis/tollgate.dev/v1alpha1/approvals"), Form.NOTHING, id="our own"),
        pytest.param(
            operation("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"),
            Form.NOTHING,
            id="oneself",
        ),
        pytest.param(
            operation("POST", "/apis/authentication.k8s.io/v1/tokenreviews"), Form.OBJECTS, id="about a token"
        ),
    ],
)
def test_form(asked, form):
    assert maskanswers.form_of(asked) is form


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        ([], "application/json"),
        (["application/json"], "application/json"),
        (["*/*"], "application/json"),
        (["application/vnd.kubernetes.protobuf,application/json"], "application/json"),
        (["application/vnd.kubernetes.protobuf", "application/json"], "application/json"),
        (["application/yaml"], "application/json"),
        (["application/cbor;q=0.9"], "application/json;q=0.9"),
        (["application/vnd.kubernetes.protobuf;stream=watch"], "application/json"),
        (
            ["application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,*/*"],
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,"
            "application/json",
        ),
        (
            ["application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"],
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        ),
        (["text/html, image/png"], "application/json"),
        (["application/json;pretty=1; charset=utf-8"], "application/json"),
        (['application/json;as="Table"'], "application/json;as=Table"),
        (["application/json;as=Table\r\nX: y"], "application/json"),
    ],
)
def test_accept(sent, asked):
    assert maskanswers.accept(sent) == asked


@given(st.lists(st.text(max_size=60), max_size=3))
def test_nothing_but_json_is_asked_for(sent):
    for part in maskanswers.accept(sent).split(","):
        assert part.split(";")[0] == "application/json"


def test_decoded():
    assert maskanswers.decoded(b"x", "") == b"x"
    assert maskanswers.decoded(b"x", "identity") == b"x"
    assert maskanswers.decoded(gzip.compress(b"x"), "GZIP") == b"x"


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        pytest.param(b"x", "br", id="another"),
        pytest.param(b"x", "gzip, gzip", id="twice"),
        pytest.param(b"x", "gzip", id="none"),
        pytest.param(gzip.compress(b"x" * 100)[:-4], "gzip", id="half"),
        pytest.param(gzip.compress(b"x") + b"y", "gzip", id="with more behind it"),
        pytest.param(gzip.compress(b"x") + gzip.compress(b"y"), "gzip", id="two"),
    ],
)
def test_what_is_no_gzip(raw, encoding):
    with pytest.raises(Refused) as e:
        maskanswers.decoded(raw, encoding)
    assert e.value.refusal == maskanswers.UNREADABLE


def test_a_gzip_that_grows(monkeypatch):
    monkeypatch.setattr(maskanswers, "MAX_WHOLE", 1000)
    with pytest.raises(Refused) as e:
        maskanswers.decoded(gzip.compress(b" " * 1001), "gzip")
    assert e.value.refusal == maskanswers.TOO_LARGE


def masked(raw, code=200, content_type="application/json", learn=None):
    return maskanswers.whole(raw, code, content_type, SECRETS, KEY, maskpolicy.EVERYTHING, learn)


@pytest.mark.parametrize("content_type", ["application/json", "application/json;as=Table", "application/merge+json"])
def test_json(content_type):
    content, result = masked(SECRET, content_type=content_type)
    assert b"aHVudGVyMg" not in content
    assert result.count == 1


def test_what_is_learnt_is_the_answer_as_it_was():
    learnt = []
    content, _ = masked(SECRET + b"\n", learn=learnt.append)
    assert learnt == [json.loads(SECRET)]
    assert b"aHVudGVyMg" not in content
    assert content.endswith(b"\n")
    plain = b'{"kind":"Secret","apiVersion":"v1"}'
    assert masked(plain, learn=learnt.append)[0] is plain


@pytest.mark.parametrize(
    ("raw", "code", "content_type"),
    [
        pytest.param(SECRET, 200, "text/plain", id="JSON that says it is none"),
        pytest.param(SECRET, 200, "", id="of no type"),
        pytest.param(b"x" * 70_000, 404, "text/plain", id="a long error"),
        pytest.param(b"<html>", 502, "text/html", id="a page"),
        pytest.param(b"{", 200, "application/json", id="no JSON"),
        pytest.param(b"\xff", 200, "application/json", id="no UTF-8"),
        pytest.param(b'{"a":' * 5000 + b"1" + b"}" * 5000, 200, "application/json", id="very deep"),
    ],
)
def test_unreadable(raw, code, content_type):
    for learn in (None, lambda content: None):
        with pytest.raises(Refused) as e:
            masked(raw, code, content_type, learn)
        assert e.value.refusal == maskanswers.UNREADABLE


def test_a_line_of_an_error():
    assert masked(b"404 page not found\n", 404, "text/plain; charset=utf-8")[0] == b"404 page not found\n"
    said = masked(b"bad password=%b\n" % PASSWORD, 500, "text/plain")[0]
    assert said.startswith(b"bad password=**masked:")


@pytest.mark.parametrize("raw", [b"", b"\n"])
def test_nothing_at_all(raw):
    assert masked(raw, 200, "")[0] == raw


def test_what_the_api_server_said_to_a_preview():
    said = {
        "kind": "Status",
        "apiVersion": "v1",
        "message": f'Secret "db" is invalid: x: Invalid value: "{PASSWORD.decode()}"',
    }
    refusal = ServerRefusal(422, json.dumps(said).encode())
    asked = operation("GET", f"{NS}/secrets/db")
    assert maskanswers.relayed(refusal, asked, KEY, maskpolicy.NOTHING) is refusal
    shown = maskanswers.relayed(refusal, asked, KEY, maskpolicy.EVERYTHING)
    assert shown.code == 422
    assert PASSWORD not in shown.body
    assert b"is invalid" in shown.body


@pytest.mark.parametrize(
    ("body", "key"),
    [
        pytest.param(b"password: " + PASSWORD, KEY, id="no JSON"),
        pytest.param(b'{"message":"' + PASSWORD + b'"}', b"", id="no key"),
    ],
)
def test_what_cannot_be_masked_is_not_relayed(body, key):
    shown = maskanswers.relayed(
        ServerRefusal(422, body), operation("GET", f"{NS}/secrets/db"), key, maskpolicy.EVERYTHING
    )
    assert PASSWORD not in shown.body
    assert json.loads(shown.body)["code"] == 422


@pytest.mark.parametrize(
    ("query", "cut"),
    [(["follow", "limitBytes"], True), (["LIMITBYTES"], True), (["tailLines"], False), ([], False)],
)
def test_a_text_that_the_client_cuts(query, cut):
    assert maskanswers.is_cut_short(query) is cut


PLAIN = json.dumps({"kind": "ConfigMap", "apiVersion": "v1", "data": {"color": "blue"}}).encode()


def whole(raw, resource, level=maskpolicy.EVERYTHING):
    return maskanswers.whole(raw, 200, "application/json", Place(resource, "shop", "a"), KEY, level)[0]


def test_an_answer_that_was_clean_is_not_searched_again(monkeypatch):
    monkeypatch.setattr(maskanswers, "_clean", {})
    assert whole(PLAIN, "configmaps") is PLAIN
    monkeypatch.setattr(maskanswers.masking, "mask_json", None)
    assert whole(bytes(PLAIN), "configmaps") == PLAIN


def test_what_was_clean_in_one_place_is_searched_in_another(monkeypatch):
    monkeypatch.setattr(maskanswers, "_clean", {})
    assert whole(PLAIN, "secrets", maskpolicy.NOTHING) == PLAIN
    assert b"blue" not in whole(PLAIN, "secrets")
    assert whole(PLAIN, "configmaps") == PLAIN
    assert b"blue" not in whole(PLAIN, "secrets")


def test_no_answer_with_a_secret_is_kept(monkeypatch):
    monkeypatch.setattr(maskanswers, "_clean", kept := {})
    whole(SECRET, "secrets")
    assert not kept
    for n in range(2000):
        whole(PLAIN.replace(b"blue", b"%d" % n), "configmaps")
    assert 0 < len(kept) <= 256
    whole(PLAIN.replace(b"blue", b"b" * 20_000), "configmaps")
    assert all(len(raw) < 20_000 for raw, _, _ in kept)
