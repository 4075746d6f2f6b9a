import json

import pytest

from addons.core import pretty
from addons.core.masktags import Place

KEY = bytes(32)
PODS = Place("pods", "shop")


def text(value, place=PODS):
    return pretty.text([value], place, KEY)


def a_table(rows=2):
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "columnDefinitions": [
            {"name": "Name", "priority": 0},
            {"name": "Ready", "priority": 0},
            {"name": "IP", "priority": 1},
        ],
        "rows": [{"cells": [f"web-{number}", "1/1", "10.0.0.1"]} for number in range(rows)],
    }


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        pytest.param(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}},
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n",
            id="a manifest",
        ),
        pytest.param(a_table(), "NAME    READY\nweb-0   1/1\nweb-1   1/1\n", id="a table"),
        pytest.param(a_table(0), "NAME   READY\n", id="an empty table"),
        pytest.param(
            {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": 1, "rows": [None]},
            "\n\n",
            id="no real table",
        ),
        pytest.param(
            {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden",
             "message": "no", "details": {"causes": [{"field": "spec.x", "message": "bad"}, 1]}},
            "Failure 403 Forbidden: no\n- spec.x: bad\n",
            id="a status",
        ),
        pytest.param(
            {"type": "ADDED", "object": {"kind": "Pod"}}, "# ADDED\nkind: Pod\n", id="an event of a watch"
        ),
        pytest.param({"a": "x\ny\n"}, "a: |\n  x\n  y\n", id="lines"),
        pytest.param(
            {"kind": "Status", "apiVersion": "v1", "message": "\x1b[2Jgone"},
            ": \\u001b[2Jgone\n",
            id="nothing that a terminal obeys",
        ),
    ],
)  # fmt: skip
def test_texts(value, wanted):
    assert text(value) == wanted


def test_long_tables_are_cut():
    lines = text(a_table(pretty.MAX_ROWS + 5)).splitlines()
    assert len(lines) == pretty.MAX_ROWS + 2
    assert lines[-1] == "… 5 rows more"


def test_secrets_are_masked():
    found = text({"kind": "Secret", "stringData": {"a": "hunter2"}}, Place("secrets", "shop", "db"))
    assert "hunter2" not in found
    assert "**masked:" in found


@pytest.mark.parametrize(
    ("method", "target", "wanted"),
    [
        ("GET", "/api/v1/namespaces/shop/pods/web?x=y", Place("pods", "shop", "web")),
        ("GET", "/version", None),
        ("GET", "/api/v1/../secrets", None),
        ("BREW", "/api/v1/pods", None),
    ],
)
def test_places(method, target, wanted):
    assert pretty.place_of(method, target) == wanted


@pytest.mark.parametrize(
    ("body", "content_type", "method", "wanted"),
    [
        pytest.param(b'{"a": 1}', "application/json", "GET", [{"a": 1}], id="JSON"),
        pytest.param(b"a: 1", "application/yaml", "POST", [{"a": 1}], id="YAML"),
        pytest.param(b'{"a": 1}\n{"b": 2}\n', "application/json", "GET", [{"a": 1}, {"b": 2}], id="a watch"),
        pytest.param(b'{"a": 1}', "application/merge-patch+json", "PATCH", [{"a": 1}], id="a patch"),
    ],
)
def test_reading(body, content_type, method, wanted):
    assert pretty.read(body, content_type, method) == wanted


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"\xff", "no JSON"),
        (b"log line\n", "no JSON"),
        (json.dumps("x" * pretty.MAX_BYTES).encode(), "over 4 MiB"),
    ],
)
def test_what_cannot_be_read(body, why):
    with pytest.raises(pretty.NotReadable, match=why):
        pretty.read(body, "application/json", "GET")
