import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import traces
from addons.core.model import Action, Identity, Impact, Operation, RequestInfo, Verdict
from addons.core.traces import Parent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([f"00-{TRACE}-{SPAN}-01"], Parent(int(TRACE, 16), int(SPAN, 16), True), id="sampled"),
        pytest.param([f"00-{TRACE}-{SPAN}-00"], Parent(int(TRACE, 16), int(SPAN, 16), False), id="not sampled"),
        pytest.param([f"01-{TRACE}-{SPAN}-01-more"], Parent(int(TRACE, 16), int(SPAN, 16), True), id="a later version"),
        pytest.param([], None, id="none"),
        pytest.param([f"00-{TRACE}-{SPAN}-01"] * 2, None, id="two"),
        pytest.param([f"00-{TRACE}-{SPAN}-01-more"], None, id="too long"),
        pytest.param([f"ff-{TRACE}-{SPAN}-01"], None, id="the forbidden version"),
        pytest.param([f"00-{'0' * 32}-{SPAN}-01"], None, id="no trace"),
        pytest.param([f"00-{TRACE}-{'0' * 16}-01"], None, id="no span"),
        pytest.param([f"00-{TRACE.upper()}-{SPAN}-01"], None, id="in capitals"),
    ],
)
def test_parent(values, expected):
    assert traces.parent(values) == expected


@given(st.text())
def test_hostile(text):
    assert traces.parent([text]) is None or len(text) >= 55


def test_attributes_say_who_did_what_and_no_more():
    info = RequestInfo("get", "/x", True, "api", "", "v1", "shop", "secrets", "", "db", ("secrets", "db"))
    operation = Operation(info, "GET", frozenset({Impact.REVEAL}), "db", body={"data": {"password": "hunter2"}})
    verdict = Verdict(Action.ALLOW, "reads", "agents")
    found = traces.attributes(operation, Identity("eve"), verdict, method="GET", code=200, request_id="r")
    assert found["tollgate.rule"] == "agents/reads"
    assert found["k8s.object.name"] == "db"
    assert found["enduser.id"] == "eve"
    assert "hunter2" not in str(found)
    assert traces.name_of(operation, "GET") == "get secrets"


def test_of_what_nobody_could_read():
    found = traces.attributes(None, None, Verdict(), method="G" * 100, code=400, request_id="")
    assert found["http.request.method"] == "G" * 20
    assert found["tollgate.verdict"] == "deny"
    assert traces.name_of(None, "GET") == "GET"
