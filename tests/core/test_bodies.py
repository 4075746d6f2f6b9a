import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import bodies
from addons.core.status import Refused

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="ascii")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="ascii")), inner),
    max_leaves=10,
)


def refused(content_type, body, method="POST"):
    with pytest.raises(Refused) as e:
        bodies.read(content_type, body, method)
    assert e.value.refusal.message.startswith("body: ")
    return e.value.refusal.code


@pytest.mark.parametrize(
    ("content_type", "method", "media_type", "patch"),
    [
        pytest.param("application/json", "POST", "application/json", "", id="json"),
        pytest.param(None, "POST", "application/json", "", id="no content type is json"),
        pytest.param("", "DELETE", "application/json", "", id="empty content type is json"),
        pytest.param("Application/JSON; Charset=UTF-8", "PUT", "application/json", "", id="capitals and charset"),
        pytest.param('application/json;charset="utf-8"', "PUT", "application/json", "", id="quoted charset"),
        pytest.param("application/yaml", "POST", "application/yaml", "", id="json is yaml"),
        pytest.param("application/merge-patch+json", "PATCH", "application/merge-patch+json", "merge", id="merge"),
        pytest.param(
            "application/strategic-merge-patch+json; charset=utf-8",
            "PATCH",
            "application/strategic-merge-patch+json",
            "strategic",
            id="strategic",
        ),
        pytest.param("application/apply-patch+yaml", "PATCH", "application/apply-patch+yaml", "apply", id="apply"),
    ],
)
def test_media_type(content_type, method, media_type, patch):
    body = bodies.read(content_type, b'{"a":1}', method)
    assert (body.media_type, body.patch, body.content) == (media_type, patch, {"a": 1})


@pytest.mark.parametrize(
    ("content_type", "method"),
    [
        pytest.param("application/cbor", "POST", id="cbor"),
        pytest.param("application/apply-patch+cbor", "PATCH", id="cbor apply"),
        pytest.param("text/plain", "POST", id="text"),
        pytest.param("application/x-www-form-urlencoded", "POST", id="form"),
        pytest.param("multipart/form-data; boundary=x", "POST", id="multipart"),
        pytest.param("application/json; charset=utf-16", "POST", id="another charset"),
        pytest.param("application/json; as=Table", "POST", id="another parameter"),
        pytest.param("application/json, application/yaml", "POST", id="two, folded"),
        pytest.param("json", "POST", id="no subtype"),
        pytest.param("application/json-patch+json", "POST", id="a patch type on POST"),
        pytest.param("application/merge-patch+json", "PUT", id="a patch type on PUT"),
        pytest.param("application/json", "PATCH", id="json on PATCH"),
        pytest.param("Application/merge-patch+json", "PATCH", id="a patch type in capitals"),
        pytest.param(None, "PATCH", id="PATCH without content type"),
        pytest.param("application/vnd.kubernetes.protobuf", "PATCH", id="protobuf on PATCH"),
    ],
)
def test_unsupported(content_type, method):
    assert refused(content_type, b"{}", method) == 415


def test_no_body():
    assert bodies.read("application/cbor", b"", "POST") == bodies.NO_BODY


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"dryRun":["All"],"dryRun":[]}', id="key twice"),
        pytest.param(b'{"kind":"A","Kind":"B"}', id="keys that differ in case"),
        pytest.param(b'{"Kind":"B"}', id="kind in another case"),
        pytest.param(b'{"APIVersion":"v1"}', id="apiVersion in another case"),
        pytest.param(b'{"metadata":{"name":"a","Name":"b"}}', id="keys of metadata that differ in case"),
        pytest.param(b'{"a":"\xff"}', id="not utf-8"),
        pytest.param("\ufeff{}".encode(), id="byte order mark"),
        pytest.param("{}".encode("utf-16"), id="utf-16"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'"x"', id="a string"),
        pytest.param(b" ", id="blank"),
        pytest.param(b"{}{}", id="two objects"),
        pytest.param(b"kind: Pod", id="yaml"),
        pytest.param(b'{"a":NaN}', id="NaN"),
    ],
)
def test_json_refused(body):
    assert refused("application/json", body) == 400


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{}", id="no list"),
        pytest.param(b"[1]", id="no operation"),
        pytest.param(b'[{"path":"/a"}]', id="no op"),
        pytest.param(b'[{"op":"add"}]', id="no path"),
        pytest.param(b'[{"op":"add","path":"a"}]', id="path without slash"),
        pytest.param(b'[{"op":"add","path":"/a~2"}]', id="bad escape in a path"),
        pytest.param(b'[{"op":"move","path":"/a","from":1}]', id="bad from"),
        pytest.param(b'[{"op":"add","path":"/a","Path":"/b"}]', id="path in two cases"),
        pytest.param(b"[" + b",".join([b'{"op":"test","path":""}'] * 10_001) + b"]", id="too many"),
    ],
)
def test_json_patch_refused(body):
    assert refused("application/json-patch+json", body, "PATCH") == 400


def test_json_patch():
    body = bodies.read("application/json-patch+json", b'[{"op":"remove","path":""}]', "PATCH")
    assert (body.patch, body.content) == ("json", [{"op": "remove", "path": ""}])


def test_yaml():
    text = """
# a comment
kind: Deployment
metadata: {name: web, labels: {a: "yes"}}
spec:
  replicas: 3
  paused: false
  ratio: 1.5
  none: ~
  when: 2024-01-01
  version: 1.2.3
  items:
  - 'it''s'
  - |
    two
    lines
"""
    assert bodies.read("application/yaml", text.encode(), "POST").content == {
        "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"a": "yes"}},
        "spec": {
            "replicas": 3,
            "paused": False,
            "ratio": 1.5,
            "none": None,
            "when": "2024-01-01",
            "version": "1.2.3",
            "items": ["it's", "two\nlines\n"],
        },
    }


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a: &x 1", id="anchor"),
        pytest.param("a: *x", id="alias"),
        pytest.param("<<: {a: 1}", id="merge key"),
        pytest.param("a: !!str 1", id="tag"),
        pytest.param("a: !x b", id="own tag"),
        pytest.param("%YAML 1.1\n---\na: 1", id="directive"),
        pytest.param("a: 1\n---\nb: 2", id="two documents"),
        pytest.param("a: 1\na: 2", id="key twice"),
        pytest.param("1: a", id="number as key"),
        pytest.param("on: a", id="boolean as key"),
        pytest.param("y: a", id="one-letter boolean as key"),
        pytest.param("? [a]\n: b", id="list as key"),
        *(
            pytest.param(f"a: {word}", id=f"doubtful {word}")
            for word in ["yes", "No", "ON", "off", "y", "N", ".inf", "-.Inf", ".nan"]
        ),
        *(
            pytest.param(f"a: {n}", id=f"number {n}")
            for n in ["017", "0x1f", "0o17", "0b11", "1_000", "+1", ".5", "1.", "00", "1e999"]
        ),
        pytest.param("a: 9223372036854775808", id="over int64"),
        pytest.param("{a:b}", id="colon without space in brackets"),
        pytest.param("a: [http://x]", id="colon in brackets"),
        pytest.param("a: \u2028b", id="line separator"),
        pytest.param('{"a": "\u0085"}', id="next line in json: folded by yaml"),
        pytest.param("- a", id="a list"),
        pytest.param("# only a comment", id="nothing"),
        pytest.param("a: [", id="broken"),
        pytest.param("[" * 200 + "]" * 200, id="deep"),
        pytest.param("a: x" * 200_000, id="long"),
        pytest.param("a:\n" + "- 1\n" * 60_000, id="many values"),
        pytest.param("a: b\nA: c", id="keys that differ in case"),
    ],
)
def test_yaml_refused(text):
    assert refused("application/yaml", text.encode()) == 400
    assert refused("application/apply-patch+yaml", text.encode(), "PATCH") == 400


@given(st.dictionaries(st.sampled_from(["a", "b", "kind"]), JSON))
def test_json_as_yaml_is_the_same(value):
    text = json.dumps(value)
    if "\x7f" in text:
        return
    assert bodies.read("application/yaml", text.encode(), "POST").content == value


@given(st.binary(max_size=60), st.sampled_from(["application/json", "application/yaml", None]))
def test_any_bytes_are_read_or_refused(body, content_type):
    try:
        content = bodies.read(content_type, body, "POST").content
    except Refused:
        return
    assert content is None or isinstance(content, dict)


def test_repr_shows_no_content():
    assert "hunter2" not in repr(bodies.read(None, b'{"data":"hunter2"}', "POST"))


@pytest.mark.parametrize(
    ("number", "read"),
    [
        pytest.param("9007199254740992", True, id="2 to the power of 53"),
        pytest.param("9007199254740993", False, id="one more"),
        pytest.param("-9007199254740993", False, id="below zero"),
        pytest.param('"9007199254740993"', True, id="a text"),
    ],
)
def test_an_apply_holds_no_number_that_would_be_rounded(number, read):
    # Over there an apply is read into doubles: what an approver saw would not be what is stored.
    text = f'{{"spec": {{"a": [{{"b": {number}}}]}}}}'.encode()
    apply = "application/apply-patch+yaml"
    if read:
        assert bodies.read(apply, text, "PATCH").content["spec"]["a"][0]["b"] is not None
    else:
        assert refused(apply, text, "PATCH") == 400
    assert bodies.read("application/merge-patch+json", text, "PATCH").content
