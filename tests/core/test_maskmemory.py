import base64
import json

import pytest

from addons.core import classify
from addons.core.maskmemory import Memory

SECRETS = "/api/v1/namespaces/shop/secrets"
VALUE = b"q8Zr4-TyPw1.nM3kLx"
CODED = base64.b64encode(VALUE).decode()
SECRET = {"kind": "Secret", "metadata": {"name": "db", "namespace": "shop"}, "data": {"x": CODED}}
MERGE, JSON_PATCH = "application/merge-patch+json", "application/json-patch+json"


@pytest.fixture
def memory():
    return Memory(bytes(32))


def operation(method, target, body=None, media="application/json"):
    raw = b"" if body is None else json.dumps(body).encode()
    return classify.classify(method, target, {"content-type": media} if raw else {}, raw)


@pytest.mark.parametrize(
    ("written", "learnt"),
    [
        pytest.param(operation("POST", SECRETS, SECRET), True, id="create"),
        pytest.param(operation("PUT", f"{SECRETS}/db", SECRET), True, id="update"),
        pytest.param(operation("PATCH", f"{SECRETS}/db", {"data": {"x": CODED}}, MERGE), True, id="patch"),
        pytest.param(
            operation("PATCH", f"{SECRETS}/db", {"stringData": {"x": VALUE.decode()}}, MERGE), True, id="stringData"
        ),
        pytest.param(operation("POST", f"{SECRETS}?dryRun=All", SECRET), False, id="a dry run stores nothing"),
        pytest.param(operation("POST", SECRETS[:-7] + "configmaps", {"data": {"x": CODED}}), False, id="no Secret"),
    ],
)
def test_what_people_write(memory, written, learnt):
    memory.learn(memory.wrote(written, agent=False))
    assert memory.known.holds(VALUE) is learnt


def test_what_agents_write_is_never_learnt(memory):
    memory.learn(memory.wrote(operation("POST", SECRETS, SECRET), agent=True))
    for content in (SECRET, {"items": [SECRET]}, {"type": "ADDED", "object": SECRET}, {"rows": [{"object": SECRET}]}):
        memory.learn(memory.answered(operation("GET", SECRETS), content, agent=False))
    assert not memory.known.holds(VALUE)


def test_nor_under_a_name_that_the_server_made(memory):
    made = {"metadata": {"generateName": "db-", "namespace": "shop"}, "data": {"x": CODED}}
    named = {**SECRET, "metadata": {"name": "db-7x", "namespace": "shop"}}
    created = operation("POST", SECRETS, made)
    memory.learn(memory.wrote(created, agent=True))
    memory.learn(memory.answered(created, named, agent=True))
    memory.learn(memory.answered(operation("GET", SECRETS), {"items": [named]}, agent=True))
    assert not memory.known.holds(VALUE)


@pytest.mark.parametrize(
    ("asked", "content"),
    [
        pytest.param("/db", SECRET, id="get"),
        pytest.param("", {"kind": "SecretList", "items": [SECRET]}, id="list"),
        pytest.param("?watch=1", {"type": "ADDED", "object": SECRET}, id="watch"),
        pytest.param("", {"kind": "Table", "rows": [{"cells": [], "object": SECRET}]}, id="Table"),
    ],
)
def test_what_is_read(memory, asked, content):
    memory.learn(memory.answered(operation("GET", f"{SECRETS}{asked}"), content, agent=True))
    assert memory.known.holds(VALUE)


@pytest.mark.parametrize(
    ("body", "media", "kept"),
    [
        pytest.param({"metadata": {"labels": {"a": "b"}}}, MERGE, True, id="a label"),
        pytest.param([{"op": "add", "path": "/metadata/labels/a", "value": "b"}], JSON_PATCH, True, id="by JSON patch"),
        pytest.param({"stringData": {"y": "z"}}, MERGE, False, id="a value"),
        pytest.param([{"op": "add", "path": "/data/y", "value": "eg=="}], JSON_PATCH, False, id="one by JSON patch"),
        pytest.param([{"op": "replace", "path": "", "value": {}}], JSON_PATCH, False, id="all of it"),
    ],
)
def test_an_agent_cannot_make_it_forget(memory, body, media, kept):
    memory.learn(memory.wrote(operation("PATCH", f"{SECRETS}/db", body, media), agent=True))
    memory.learn(memory.answered(operation("GET", f"{SECRETS}/db"), SECRET, agent=True))
    assert memory.known.holds(VALUE) is kept


def test_the_answer_to_a_write_is_what_was_written(memory):
    patch = operation("PATCH", f"{SECRETS}/db", {"metadata": {"labels": {"a": "b"}}}, MERGE)
    memory.learn(memory.answered(patch, SECRET, agent=True))
    assert not memory.known.holds(VALUE)


def test_another_namespace_is_another_secret(memory):
    mine = {**SECRET, "metadata": {"name": "db"}}
    memory.learn(memory.wrote(operation("POST", "/api/v1/namespaces/mine/secrets", mine), agent=True))
    memory.learn(memory.answered(operation("GET", f"{SECRETS}/db"), SECRET, agent=True))
    assert memory.known.holds(VALUE)


def test_a_few_agents_do_not_fill_it(memory, monkeypatch):
    monkeypatch.setattr("addons.core.maskmemory.MAX_WRITTEN", 3)
    for number in range(9):
        made = {"metadata": {"name": f"s-{number}"}}
        memory.learn(memory.wrote(operation("POST", SECRETS, made), agent=True))
    assert len(memory._by_agents) == 3


def test_what_was_learnt_is_not_learnt_again(memory, monkeypatch):
    memory.learn([VALUE])
    monkeypatch.setattr(memory.known, "learn", lambda value: pytest.fail("learnt again"))
    memory.learn([VALUE])


def test_the_memory_of_values_is_bounded(memory, monkeypatch):
    monkeypatch.setattr("addons.core.maskmemory.MAX_SEEN", 3)
    memory.learn(b"value %d" % number for number in range(9))
    assert len(memory._seen) == 3
