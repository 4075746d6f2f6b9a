import json
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import canonical, digests
from addons.core.classify import classify
from addons.core.preconditions import deletes_one, own_uid, with_preconditions
from addons.core.status import Refused

POD = "/api/v1/namespaces/shop/pods/web-1"
UID = "11111111-2222-3333-4444-555555555555"
BOUND = {"preconditions": {"uid": UID}}
EVICTION = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "web-1"}}
# DeleteOptions{propagationPolicy: Background} and {gracePeriodSeconds: 0}, as Kubernetes' protobuf has them.
PROTOBUF = (
    b"k8s\x00\n\x13\n\x02v1\x12\rDeleteOptions\x12\x0c\x22\nBackground\x1a\x00\x22\x00",
    b"k8s\x00\n\x13\n\x02v1\x12\rDeleteOptions\x12\x02\x08\x00\x1a\x00\x22\x00",
)


def read(method, target, body=None, media="application/json"):
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return classify(method, target, {"content-type": media} if raw else {}, raw)


def bind(target=POD, body=None, media="application/json", method="DELETE", uid=UID):
    return with_preconditions(read(method, target, body, media), target, uid)


@pytest.mark.parametrize(
    ("target", "body", "sent", "left"),
    [
        pytest.param(POD, None, BOUND, POD, id="nothing said"),
        pytest.param(POD, {}, BOUND, POD, id="an empty body"),
        pytest.param(
            POD,
            {"propagationPolicy": "Background", "kind": "DeleteOptions", "apiVersion": "v1"},
            {"propagationPolicy": "Background", "kind": "DeleteOptions", "apiVersion": "v1", **BOUND},
            POD,
            id="options in the body",
        ),
        pytest.param(
            f"{POD}?gracePeriodSeconds=0&propagationPolicy=Orphan&pretty=true",
            None,
            {"gracePeriodSeconds": 0, "propagationPolicy": "Orphan", **BOUND},
            f"{POD}?pretty=true",
            id="options in the query",
        ),
        pytest.param(
            f"{POD}?orphanDependents=false&dryRun=All",
            None,
            {"orphanDependents": False, "dryRun": ["All"], **BOUND},
            POD,
            id="the other options",
        ),
        # With a body the API server forgets the query: what it says there must not begin to count.
        pytest.param(f"{POD}?dryRun=All", {}, BOUND, f"{POD}?dryRun=All", id="a query that does not count"),
        pytest.param(
            POD,
            {"preconditions": {"resourceVersion": "7"}},
            {"preconditions": {"resourceVersion": "7", "uid": UID}},
            POD,
            id="a precondition more",
        ),
        pytest.param(POD, BOUND, BOUND, POD, id="the same precondition"),
        pytest.param(POD, {"preconditions": None}, BOUND, POD, id="null"),
    ],
)
def test_a_delete(target, body, sent, left):
    bound = bind(target, body)
    assert json.loads(bound.body) == sent
    assert (bound.target, bound.content_type) == (left, "application/json")


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        pytest.param(PROTOBUF[0], {"propagationPolicy": "Background"}, id="a word"),
        pytest.param(PROTOBUF[1], {"gracePeriodSeconds": 0}, id="zero seconds, which is not nothing"),
    ],
)
def test_protobuf_becomes_json(body, sent):
    bound = bind(body=body, media="application/vnd.kubernetes.protobuf")
    assert json.loads(bound.body) == {"kind": "DeleteOptions", "apiVersion": "v1", **sent, **BOUND}


@pytest.mark.parametrize(
    ("body", "options"),
    [
        pytest.param(EVICTION, BOUND, id="without options"),
        pytest.param({**EVICTION, "deleteOptions": None}, BOUND, id="null"),
        pytest.param(
            {**EVICTION, "deleteOptions": {"dryRun": ["All"]}}, {"dryRun": ["All"], **BOUND}, id="with options"
        ),
    ],
)
def test_an_eviction(body, options):
    target = f"{POD}/eviction?dryRun=All"
    bound = bind(target, body, method="POST")
    assert json.loads(bound.body) == {**EVICTION, "deleteOptions": options}
    assert bound.target == target  # its query counts beside the body


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        pytest.param("DELETE", POD, {"preconditions": {"uid": "another"}}, id="another object"),
        pytest.param("DELETE", POD, {"preconditions": "x"}, id="preconditions that are none"),
        pytest.param("DELETE", f"{POD}?gracePeriodSeconds=soon", None, id="no number"),
        pytest.param("DELETE", f"{POD}?orphanDependents=yes", None, id="no boolean"),
        pytest.param("DELETE", f"{POD}?preconditions=x", None, id="a precondition in the query"),
        pytest.param(
            "DELETE", f"{POD}?ignoreStoreReadErrorWithClusterBreakingPotential=true", None, id="a dangerous option"
        ),
        pytest.param("POST", f"{POD}/eviction", None, id="an eviction without one"),
        pytest.param("POST", f"{POD}/eviction", {**EVICTION, "deleteOptions": [1]}, id="options that are none"),
    ],
)
def test_what_cannot_be_bound_is_refused(method, target, body):
    with pytest.raises(Refused) as caught:
        bind(target, body, method=method)
    assert caught.value.refusal.code == 400
    assert caught.value.refusal.message.startswith("delete: ")


@pytest.mark.parametrize(
    ("target", "body", "works"),
    [
        pytest.param(POD, {"preconditions": {"uid": "another"}}, True, id="its own precondition"),
        pytest.param(f"{POD}?preconditions=x", None, False, id="what cannot be carried over"),
    ],
)
def test_it_can_be_tried_before_anybody_is_asked(target, body, works):
    if works:
        assert bind(target, body, uid="")
    else:
        with pytest.raises(Refused):
            bind(target, body, uid="")


def test_other_requests_are_none_of_its():
    operation = read("DELETE", "/api/v1/namespaces/shop/pods")
    assert not deletes_one(operation)
    with pytest.raises(ValueError, match="no DELETE"):
        with_preconditions(operation, "/api/v1/namespaces/shop/pods", UID)


@pytest.mark.parametrize(
    ("operation", "uid"),
    [
        pytest.param(read("DELETE", POD, BOUND), UID, id="delete"),
        pytest.param(read("POST", f"{POD}/eviction", {**EVICTION, "deleteOptions": BOUND}), UID, id="eviction"),
        pytest.param(read("DELETE", POD), "", id="no body"),
        pytest.param(read("DELETE", POD, {"preconditions": {"uid": 7}}), "", id="no text"),
    ],
)
def test_the_clients_own_precondition(operation, uid):
    assert own_uid(operation) == uid


options = st.fixed_dictionaries(
    {},
    optional={
        "gracePeriodSeconds": st.integers(-5, 10**6).map(str),
        "propagationPolicy": st.sampled_from(["Background", "Foreground", "Orphan", "a b&c"]),
        "orphanDependents": st.sampled_from(["true", "false"]),
        "fieldManager": st.text("ab &=%/+", max_size=5),
    },
)


@given(options)
def test_nothing_of_a_query_is_lost(query):
    target = f"{POD}?{urlencode(query)}" if query else POD
    bound = bind(target)
    sent = json.loads(bound.body)
    rest = dict(canonical.read("DELETE", bound.target).query)
    assert sent.pop("preconditions") == {"uid": UID}
    assert {
        key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in sent.items()
    } | rest == query
    # The approval of what the client sent is not asked for again by what goes up.
    operation = read("DELETE", bound.target, bound.body)
    assert digests.is_single_delete(operation)
