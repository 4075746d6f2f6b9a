import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import auditevents, chain, classify
from addons.core.auditevents import Approved, Asked, Beside, EventError, Level, Outcome, Stage
from addons.core.model import Action, Identity, Impact, Reach, Uses, Verdict

ASKED = Asked("a1", "DELETE", "/api/v1/namespaces/shop/pods/web-1", 1795529002.5, "kubectl/v1.36", "10.0.0.1")
WHO = Identity(
    "oidc:ann",
    uid="u1",
    groups=("dev", "oncall"),
    extra={"team": ("shop",)},
    issuer="https://issuer",
    credential_id="jti-1",
    issued_at=1.5,
    expiry=2.5,
)
ALLOWED = Verdict(Action.ALLOW, "deletes", "agents", "r1", "")
POD = {"kind": "Pod", "metadata": {"name": "web-1"}}


def operation(method="DELETE", target=ASKED.uri, body=b"", **headers):
    return classify.classify(method, target, headers, body)


def build(**changed):
    values = {
        "stage": Stage.COMPLETE,
        "asked": ASKED,
        "identity": WHO,
        "operation": operation(),
        "verdict": ALLOWED,
        "level": Level.FULL,
        "outcome": Outcome(1795529003.0, 200, body=POD),
        **changed,
    }
    return auditevents.build(**values)


def notes(event):
    return event["annotations"]


def test_the_form_is_kubernetes_own():
    event = build(body={"propagationPolicy": "Background"})
    assert {key: value for key, value in event.items() if key != "annotations"} == {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "RequestResponse",
        "auditID": "a1",
        "stage": "ResponseComplete",
        "requestURI": "/api/v1/namespaces/shop/pods/web-1",
        "verb": "delete",
        "user": {"username": "oidc:ann", "uid": "u1", "groups": ["dev", "oncall"], "extra": {"team": ["shop"]}},
        "sourceIPs": ["10.0.0.1"],
        "userAgent": "kubectl/v1.36",
        "objectRef": {"resource": "pods", "namespace": "shop", "name": "web-1", "apiVersion": "v1"},
        "responseStatus": {"metadata": {}, "code": 200},
        "requestObject": {"propagationPolicy": "Background"},
        "responseObject": POD,
        "requestReceivedTimestamp": "2026-11-24T14:03:22.500000Z",
        "stageTimestamp": "2026-11-24T14:03:23.000000Z",
    }
    assert all(isinstance(value, str) and value for value in notes(event).values())


def test_what_only_the_gateway_knows():
    reach = Reach({"pods": 14}, ("shop/web-1",))
    known = replace(operation(), reach=reach, command="kubectl delete pods --all -n shop", summary="delete 1 of 14")
    event = build(
        operation=known,
        approved=Approved("apr-7f3k", ("bea", "cid")),
        beside=Beside(masked=3, edited=True),
        outcome=Outcome(1.0, 200, ended="cut: the token expired", sent=12),
    )
    found = notes(event)
    assert {key.removeprefix("tollgate.dev/"): value for key, value in found.items()} | {"operation": ""} == {
        "credential-id": "jti-1",
        "identity": '{"expiry":2.5,"issuedAt":1.5,"issuer":"https://issuer"}',
        "operation": "",
        "impact": "delete",
        "verdict": "allow",
        "policy": "agents",
        "rule": "deletes",
        "revision": "r1",
        "approval": "apr-7f3k",
        "approver": "bea, cid",
        "command": "kubectl delete pods --all -n shop",
        "summary": "delete 1 of 14",
        "reach": "14 pods",
        "masked": "3",
        "edited": "true",
        "ended": "cut: the token expired",
        "sent": "12",
    }


def test_a_refusal():
    observed = (Verdict(Action.DENY, "x", "later"),)
    denied = Verdict(Action.DENY, "no-deletes", "agents", "r1", "use Git", observed)
    outcome = Outcome(1.0, 403, "Forbidden", "rule no-deletes", refused_by="tollgate_block", refusal="policy")
    event = build(verdict=denied, outcome=outcome)
    assert event["responseStatus"] == {
        "metadata": {},
        "code": 403,
        "status": "Failure",
        "reason": "Forbidden",
        "message": "rule no-deletes",
    }
    found = notes(event)
    assert found[auditevents.REFUSED_BY] == "tollgate_block"
    assert found[auditevents.REASON] == "policy"
    assert found[auditevents.MESSAGE] == "use Git"
    assert found[auditevents.OBSERVED] == "deny later/x"


def test_a_request_that_nobody_could_read():
    event = build(identity=None, operation=None, verdict=None, outcome=Outcome(1.0, 400))
    assert event["user"] == {"username": "system:anonymous", "groups": ["system:unauthenticated"]}
    assert event["verb"] == "delete"
    assert "objectRef" not in event
    assert auditevents.VERDICT not in notes(event)


@pytest.mark.parametrize(
    ("level", "request_kept", "response_kept"),
    [(Level.METADATA, False, False), (Level.REQUEST, True, False), (Level.FULL, True, True)],
)
def test_levels(level, request_kept, response_kept):
    event = build(level=level, body={"a": 1})
    assert ("requestObject" in event) == request_kept
    assert ("responseObject" in event) == response_kept


def test_words_of_levels():
    assert [auditevents.level(word) for word in ("metadata", "request", "full")] == list(Level)
    with pytest.raises(KeyError):
        auditevents.level("none")


@pytest.mark.parametrize(
    ("method", "target", "first", "level"),
    [
        pytest.param("GET", "/api/v1/pods", False, Level.METADATA, id="a read"),
        pytest.param("GET", "/healthz", False, Level.METADATA, id="health"),
        pytest.param("GET", "/api/v1/namespaces/x/secrets/s", True, Level.METADATA, id="a secret"),
        pytest.param("DELETE", "/api/v1/namespaces/x/pods/p", True, Level.FULL, id="a delete"),
        pytest.param("GET", "/api/v1/namespaces/x/pods/p/exec", True, Level.FULL, id="an exec"),
    ],
)
def test_what_must_be_written_first(method, target, first, level):
    asked = operation(method, target)
    assert auditevents.must_be_written(asked) is first
    assert auditevents.default_level(asked) is level


def test_a_dry_run_is_no_change_but_is_kept():
    asked = operation("DELETE", "/api/v1/namespaces/x/pods/p?dryRun=All")
    assert '"dryRun":true' in notes(build(operation=asked))[auditevents.OPERATION]


def test_images_of_what_was_there():
    event = build(beside=Beside(before=(POD, POD)))
    assert auditevents.before_of(event) == [POD, POD]
    assert auditevents.TRUNCATED not in notes(event)


def test_not_all_images_fit():
    large = {"kind": "ConfigMap", "data": {"k": "x" * 300_000}}
    event = build(beside=Beside(before=(large,) * 5))
    assert len(auditevents.before_of(event)) == 3
    assert notes(event)[auditevents.TRUNCATED] == "before 3 of 5 objects"
    event = build(beside=Beside(before=(POD,) * 200, before_complete=False))
    assert len(auditevents.before_of(event)) == auditevents.MAX_IMAGES
    assert notes(event)[auditevents.TRUNCATED] == "before 100 of at least 200 objects"


@pytest.mark.parametrize(
    ("change", "cut"),
    [
        pytest.param({"body": {"k": "x" * 300_000}}, "requestObject 300008 bytes", id="a body"),
        pytest.param(
            {"outcome": Outcome(1.0, 200, body={"k": "x" * 300_000})}, "responseObject 300008 bytes", id="an answer"
        ),
        pytest.param({"asked": replace(ASKED, uri="/" + "x" * 9000)}, "requestURI 9001 characters", id="a path"),
        pytest.param({"asked": replace(ASKED, user_agent="x" * 900)}, "userAgent 900 characters", id="an agent"),
        pytest.param({"identity": Identity("x" * 2000)}, "user.username 2000 characters", id="a name"),
        pytest.param({"identity": Identity("a", groups=("g",) * 500)}, "user.groups 500", id="groups"),
        pytest.param({"identity": Identity("a", extra={"k": ("x" * 9000,)})}, "user.extra 9010 bytes", id="extra"),
        pytest.param({"beside": Beside(truncated=("flow 9 bytes",))}, "flow 9 bytes", id="what the caller cut"),
    ],
)
def test_everything_is_bounded_and_said(change, cut):
    event = build(**change)
    assert notes(event)[auditevents.TRUNCATED] == cut
    assert len(chain.canonical(event)) < 20_000


@given(
    st.text(max_size=3000),
    st.text(max_size=3000),
    st.lists(st.text(max_size=50), max_size=300),
    st.dictionaries(st.text(), st.text(), max_size=5),
)
def test_any_text_makes_an_event_that_can_be_written(name, uri, groups, labels):
    who = Identity(name, groups=tuple(groups), extra={"k": tuple(groups)})
    known = replace(operation(), labels=labels, command=name, summary=uri)
    event = build(identity=who, operation=known, asked=replace(ASKED, uri=uri))
    assert len(chain.canonical(event)) < 400_000


# ----- read back -----


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(operation(), id="a delete"),
        pytest.param(operation("GET", "/healthz"), id="a page"),
        pytest.param(operation("GET", "/api/v1/pods?labelSelector=a%3Db&watch=1"), id="a watch"),
        pytest.param(
            operation(
                "POST",
                "/apis/apps/v1/namespaces/shop/deployments?dryRun=All",
                json.dumps(
                    {
                        "kind": "Deployment",
                        "metadata": {"name": "web", "labels": {"app": "web"}},
                        "spec": {"template": {"spec": {"serviceAccountName": "sa", "hostNetwork": True}}},
                    }
                ).encode(),
                **{"Kubectl-Command": "kubectl create", "Kubectl-Session": "s-1"},
            ),
            id="a workload",
        ),
    ],
)
def test_an_operation_comes_back(known):
    known = replace(known, reach=Reach({"pods": 3}, ("a",), False), command="c", summary="s")
    event = json.loads(json.dumps(build(operation=known, body=known.body)))
    read = auditevents.operation_of(event)
    assert replace(read, uses=None, labels={}) == replace(known, uses=None, labels={})
    assert dict(read.labels) == dict(known.labels)
    assert read.uses == known.uses
    assert read.body == known.body


def test_uses_come_back():
    used = Uses(frozenset({"sa"}), frozenset({"s"}), frozenset({"c"}), frozenset({"hostPath"}), True, True)
    assert auditevents.operation_of(build(operation=replace(operation(), uses=used))).uses == used


def test_identity_and_verdict_come_back():
    event = json.loads(json.dumps(build()))
    assert auditevents.identity_of(event) == WHO
    assert auditevents.verdict_of(event) == ALLOWED


@pytest.mark.parametrize("read", [auditevents.identity_of, auditevents.operation_of, auditevents.verdict_of])
@pytest.mark.parametrize(
    "event",
    [
        pytest.param({}, id="empty"),
        pytest.param({"user": 1, "annotations": []}, id="other kinds"),
        pytest.param({"annotations": {auditevents.OPERATION: "[", auditevents.VERDICT: "maybe"}}, id="nonsense"),
        pytest.param({"annotations": {auditevents.OPERATION: "{}"}}, id="an empty operation"),
        pytest.param({"annotations": {auditevents.OPERATION: '{"info":{},"impacts":["x"]}'}}, id="unknown impacts"),
    ],
)
def test_what_is_not_there_is_said(read, event):
    with pytest.raises(EventError, match=": "):
        read(event)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(JSON, JSON, JSON)
def test_reading_back_raises_nothing_else(user, info, other):
    text = json.dumps({"info": info, "impacts": ["read"], "uses": other, "reach": {"counts": other}, "labels": user})
    event = {
        "user": {"username": "a", "extra": user, "groups": other},
        "annotations": {auditevents.OPERATION: text, auditevents.IDENTITY: json.dumps(user), auditevents.BEFORE: text},
    }
    for read in (auditevents.identity_of, auditevents.operation_of, auditevents.verdict_of, auditevents.before_of):
        try:
            read(event)
        except EventError:
            continue


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2026-11-24T14:03:22.500000Z", 1795529002.5), ("", 0.0), ("yesterday", 0.0), (None, 0.0), (7, 0.0)],
)
def test_seconds(text, expected):
    assert auditevents.seconds(text) == expected


@pytest.mark.parametrize("moment", [float("inf"), float("nan"), -1e18, 1e18])
def test_a_clock_that_is_off_loses_no_record(moment):
    assert auditevents.timestamp(moment) == "1970-01-01T00:00:00.000000Z"


def test_counted():
    event = auditevents.counted({"b": 2, "a": 1}, 0.0, 60.0, "x")
    assert json.loads(notes(event)[auditevents.COUNTS]) == {"a": 1, "b": 2}
    assert notes(event)[auditevents.SUMMARY] == "3 requests without an identity were refused"


def test_impacts_are_all_known_by_word():
    assert len({impact.word for impact in Impact}) == len(Impact)
