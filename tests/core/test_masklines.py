import base64
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import masklines, maskpolicy
from addons.core.masklines import EventMasker, NotAnEvent
from addons.core.masktags import Place
from tests import canaries

PASSWORD = canaries.VALUES["password"]
NOTE = PASSWORD.decode()
ALL = list(canaries.VALUES.values())


def event(name="db", kind="ADDED"):
    data = {key.replace(" ", "-"): base64.b64encode(value).decode() for key, value in canaries.VALUES.items()}
    secret = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": name}, "data": data}
    return json.dumps({"type": kind, "object": secret}).encode() + b"\n"


def masker(**more):
    return EventMasker(Place("secrets", "shop"), bytes(range(32)), maskpolicy.EVERYTHING, **more)


EVENTS = b"".join(event(f"s-{number}") for number in range(3))
WHOLE = masker().feed(EVENTS)


@given(st.lists(st.integers(0, len(EVENTS)), max_size=8))
def test_wherever_it_is_cut_the_same_comes_out(places):
    one = masker()
    places = [0, *sorted(places), len(EVENTS)]
    out = b"".join(one.feed(EVENTS[a:b]) for a, b in itertools.pairwise(places)) + one.finish()
    assert out == WHOLE


def test_events_are_masked():
    assert not canaries.seen_in(WHOLE, ALL)
    assert [json.loads(line)["object"]["metadata"]["name"] for line in WHOLE.splitlines()] == ["s-0", "s-1", "s-2"]


def test_an_event_is_passed_on_when_it_is_complete():
    one = masker()
    assert one.feed(EVENTS[:-1]).count(b"\n") == 2
    assert one.feed(b"\n").count(b"\n") == 1
    assert one.count == 3 * len(ALL)


def test_what_holds_nothing_secret_is_the_very_same():
    bookmark = (
        b'{ "type":"BOOKMARK", "object":{"kind":"Secret","apiVersion":"v1","metadata":{"resourceVersion":"7"}} }\n'
    )
    assert masker().feed(bookmark) == bookmark


def test_blank_lines_are_left_out():
    assert masker().feed(b"\n \n") == b""


def test_it_learns_from_each():
    learnt = []
    masker(learn=learnt.append).feed(EVENTS)
    assert [content["type"] for content in learnt] == ["ADDED"] * 3


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"{}", id="no event"),
        pytest.param(b'{"type":"ADDED"}', id="no object"),
        pytest.param(b'{"object":{}}', id="no type"),
        pytest.param(b'{"type":1,"object":{}}', id="a type that is none"),
        pytest.param(b'["type","object"]', id="a list"),
        pytest.param(b'{"type":"ADDED","object":{}}{"type":"ADDED","object":{}}', id="two in a line"),
        pytest.param(b'{"type":"ADDED","object":{"a":1,"a":2}}', id="a key twice"),
        pytest.param(b'{"type":"ADDED","object":"\xff"}', id="no UTF-8"),
        pytest.param(b'{"type":"ADDED","object":' + b"[" * 5000 + b"]" * 5000 + b"}", id="very deep"),
        pytest.param(b"k8s\0protobuf", id="no JSON"),
    ],
)
def test_no_event(line):
    with pytest.raises(NotAnEvent) as e:
        masker().feed(line + b"\n")
    assert "protobuf" not in str(e.value)


def test_an_event_without_end(monkeypatch):
    monkeypatch.setattr(masklines, "MAX_LINE", 1000)
    one = masker()
    one.feed(b" " * 1000)
    with pytest.raises(NotAnEvent, match="over 1000 bytes"):
        one.feed(b" ")
    with pytest.raises(NotAnEvent, match="over 1000 bytes"):
        masker().feed(b" " * 1001 + b"\n")


def test_an_end_in_the_middle():
    one = masker()
    one.feed(event()[:-5])
    with pytest.raises(NotAnEvent, match="in the middle"):
        one.finish()


def row(columns, name="db", note=NOTE):
    secret = {"kind": "PartialObjectMetadata", "metadata": {"name": name, "annotations": {"x": note}}}
    table = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": columns}
    return {"type": "ADDED", "object": {**table, "rows": [{"cells": [name, "Opaque", 13, "1m"], "object": secret}]}}


@pytest.mark.parametrize("later", [None, []], ids=["null", "none"])
def test_later_rows_have_the_columns_of_the_first(later):
    """The API server says them once; without them every cell might be a value."""
    columns = [{"name": name, "type": "string"} for name in ("Name", "Type", "Data", "Age")]
    one = masker()
    one.feed(json.dumps(row(columns)).encode() + b"\n")
    shown = json.loads(one.feed(json.dumps(row(later, "other")).encode() + b"\n"))["object"]
    assert shown["rows"][0]["cells"] == ["other", "Opaque", 13, "1m"]
    assert shown["columnDefinitions"] == later
    assert PASSWORD.decode() not in json.dumps(shown)
    alone = json.loads(masker().feed(json.dumps(row(later)).encode() + b"\n"))["object"]
    assert alone["rows"][0]["cells"][0].startswith("**masked:")
