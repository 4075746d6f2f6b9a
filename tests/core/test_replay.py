import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import auditevents, classify, replay
from addons.core.replay import Recorded, Step

PODS = "/api/v1/namespaces/shop/pods"
JSON = (("Content-Type", "application/json"),)
MERGE = (("Content-Type", "application/merge-patch+json"),)
TAG = "**masked:1a2b3c4d**"


def one(method="DELETE", target=f"{PODS}/a", body=b"", headers=JSON, *, refused="", code=200, **more):
    notes = {auditevents.REFUSED_BY: refused} if refused else {}
    event = {"annotations": notes, "responseStatus": {"code": code}, "verb": "x"}
    return Recorded(event, method, target, headers, body, **more)


def planned(recorded, **options):
    (step,) = replay.plan([recorded], **options)
    return step


@pytest.mark.parametrize(
    ("recorded", "target", "body"),
    [
        pytest.param(one(), f"{PODS}/a?dryRun=All", b"", id="a delete without a body"),
        pytest.param(
            one(body=b'{"propagationPolicy":"Background"}'),
            f"{PODS}/a",
            b'{"propagationPolicy": "Background", "dryRun": ["All"]}',
            id="a delete with options: its query would be ignored",
        ),
        pytest.param(
            one(target=f"{PODS}?labelSelector=a%3Db", body=b'{"dryRun":[]}'),
            f"{PODS}?labelSelector=a%3Db",
            b'{"dryRun": ["All"]}',
            id="a collection",
        ),
        pytest.param(one("POST", PODS, b'{"kind":"Pod"}'), f"{PODS}?dryRun=All", b'{"kind":"Pod"}', id="a create"),
        pytest.param(
            one("PATCH", f"{PODS}/a?fieldManager=x", b"{}", MERGE),
            f"{PODS}/a?dryRun=All&fieldManager=x",
            b"{}",
            id="patch",
        ),
        pytest.param(
            one("POST", f"{PODS}/a/eviction", b'{"kind":"Eviction"}'),
            f"{PODS}/a/eviction?dryRun=All",
            b'{"kind":"Eviction"}',
            id="an eviction",
        ),
        pytest.param(one("GET", PODS), PODS, b"", id="a read"),
        pytest.param(one("DELETE", f"{PODS}/a?dryRun=All"), f"{PODS}/a?dryRun=All", b"", id="a dry run"),
    ],
)
def test_everything_is_a_dry_run(recorded, target, body):
    step = planned(recorded)
    assert (step.skipped, step.target, step.body) == ("", target, body)
    if recorded.method != "GET":
        assert classify.classify(step.method, step.target, step.headers, step.body).dry_run


@pytest.mark.parametrize(
    ("recorded", "why"),
    [
        pytest.param(one(refused="tollgate_block", code=403), "it was refused then", id="refused"),
        pytest.param(one(whole=False), "its body was not recorded whole", id="cut"),
        pytest.param(one(trouble="its bytes were not recorded"), "its bytes were not recorded", id="not there"),
        pytest.param(one("GET", f"{PODS}?watch=1"), "a stream cannot be replayed", id="watch"),
        pytest.param(one("GET", f"{PODS}/a/log?follow=true"), "a stream cannot be replayed", id="logs -f"),
        pytest.param(one("POST", f"{PODS}/a/exec?command=sh"), "a stream cannot be replayed", id="exec"),
        pytest.param(one("GET", f"{PODS}/a/exec?command=sh"), "a stream cannot be replayed", id="exec by WebSocket"),
        pytest.param(one("GET", f"{PODS}/a/proxy/x"), "a stream cannot be replayed", id="proxy"),
        pytest.param(one("GET", PODS, headers=(("Upgrade", "x"),)), "a stream cannot be replayed", id="upgrade"),
        pytest.param(one(body=b"k8s\0x"), "the gateway would not read it", id="options that cannot be read"),
        pytest.param(
            one("POST", "/api/v1/namespaces/x/serviceaccounts/a/token", b"{}"),
            "there is no dry run of it",
            id="a token",
        ),
        pytest.param(one("POST", "/apis/example.com/v1/widgets", b"{}"), "there is no dry run of it", id="unknown API"),
        pytest.param(one("GET", "/api//v1"), "the gateway would not read it (path-not-canonical)", id="two readings"),
    ],
)
def test_what_is_not_sent(recorded, why):
    assert planned(recorded).skipped.startswith(why)


def in_base64(text):
    return base64.b64encode(text.encode()).decode()


def masked(spelling):
    return f'{{"kind":"Secret","data":{{"p":"{spelling}"}}}}'.encode()


@pytest.mark.parametrize(
    "recorded",
    [
        pytest.param(one("POST", PODS, masked(TAG)), id="plain"),
        pytest.param(one("POST", PODS, masked(base64.b64encode(TAG.encode()).decode())), id="base64"),
        pytest.param(one("POST", PODS, masked(base64.b64encode(b"x" + TAG.encode()).decode())), id="base64, later"),
        pytest.param(
            one("POST", PODS, masked(base64.b64encode(b"xy" + TAG.encode()).decode())), id="base64, later still"
        ),
        pytest.param(one("GET", f"{PODS}?labelSelector=a%3D{quote(TAG, safe='')}"), id="in the URL"),
        pytest.param(one("GET", PODS, headers=(("Kubectl-Command", TAG),)), id="in a header"),
        pytest.param(one("POST", PODS, b"k8s\0" + TAG.encode()), id="in protobuf"),
    ],
)
@pytest.mark.parametrize("for_real", [False, True])
def test_a_masked_value_is_never_sent(recorded, for_real):
    assert planned(recorded, for_real=for_real, with_refused=True).skipped == "it holds a masked value"


def test_another_judge_of_masks():
    assert planned(one(), holds_mask=lambda text: "pods" in text).skipped == "it holds a masked value"


def test_no_credential_and_no_claim_of_identity_is_sent():
    headers = (
        ("Authorization", "Bearer SECRET"),
        ("Cookie", "SECRET"),
        ("Impersonate-User", "admin"),
        ("X-Remote-User", "admin"),
        ("Audit-ID", "x"),
        ("User-Agent", "kubectl"),
        ("Kubectl-Command", "kubectl delete"),
        ("Kubectl-Session", "s-1"),
        *JSON,
    )
    assert planned(one(headers=headers)).headers == {
        "content-type": "application/json",
        "kubectl-command": "kubectl delete",
        "kubectl-session": "s-1",
    }


def test_for_real_it_is_as_it_was():
    recorded = one(body=b'{"propagationPolicy":"Background"}')
    step = planned(recorded, for_real=True)
    assert (step.method, step.target, step.body) == (recorded.method, recorded.target, recorded.body)


def test_what_was_refused_can_be_asked_for():
    assert planned(one(refused="x", code=403), with_refused=True).skipped == ""


def test_without_reads():
    assert planned(one("GET", PODS), with_reads=False).skipped == "it only reads"
    assert planned(one(), with_reads=False).skipped == ""


def test_the_order_is_kept():
    steps = replay.plan([one(), one("GET", f"{PODS}?watch=1"), one("GET", PODS)])
    assert [(step.number, bool(step.skipped)) for step in steps] == [(1, False), (2, True), (3, False)]


@given(
    st.sampled_from(["DELETE", "POST", "PUT", "PATCH", "GET"]),
    st.sampled_from([PODS, f"{PODS}/a", f"{PODS}/a/status", "/api/v1/namespaces/x", "/apis/apps/v1/deployments", "/x"]),
    st.sampled_from(["", "?dryRun=", "?dryRun=All", "?dryRun=x", "?a=b", "?dry%52un=All"]),
    st.one_of(
        st.binary(max_size=20),
        st.dictionaries(st.sampled_from(["dryRun", "kind", "dryrun"]), st.sampled_from([["All"], [], "All", None])).map(
            lambda value: json.dumps(value).encode()
        ),
    ),
    st.sampled_from([JSON, MERGE, ()]),
)
def test_nothing_that_changes_anything_leaves_without_dry_run(method, target, query, body, headers):
    step = planned(one(method, target + query, body, headers))
    if not step.skipped and method != "GET":
        assert classify.classify(step.method, step.target, step.headers, step.body).dry_run


def test_what_the_gateway_itself_takes_for_no_dry_run_is_not_sent(monkeypatch):
    monkeypatch.setattr(replay, "_dry_run", lambda one, operation: (one.method, one.target, one.body))
    assert planned(one()).skipped == "it could not be made a dry run"


STEP = Step(1, "delete pod a", 200, False)


@pytest.mark.parametrize(
    ("code", "content", "same", "words"),
    [
        pytest.param(200, b"{}", True, "200 as then", id="same"),
        pytest.param(404, b'{"message":"gone"}', False, "200 then, 404 now: gone", id="a Status"),
        pytest.param(502, b"<html>", False, "200 then, 502 now", id="no Status"),
        pytest.param(500, b'{"message":7}', False, "200 then, 500 now", id="odd"),
        pytest.param(500, b"[" * 100_000, False, "200 then, 500 now", id="deep"),
    ],
)
def test_what_differed(code, content, same, words):
    compared = replay.compare(STEP, code, content)
    assert (compared.same, compared.words) == (same, words)


def test_other_words():
    assert replay.Compared(STEP, trouble="it cannot be reached").words == "no answer: it cannot be reached"
    assert replay.Compared(Step(1, "x", 0, False), 200).words == "no answer then, 200 now"
    assert replay.Compared(Step(1, "x", 0, False, skipped="why")).words == "not sent: why"
