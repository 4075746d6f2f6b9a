import json

from mitmproxy.test import tflow

from addons.core import facts, status
from addons.mitm import answers

REFUSAL = status.Refusal(403, "policy", "rule a/b denies this: no")


def test_a_refusal_is_a_status_with_its_reason_code():
    response = answers.response(REFUSAL)
    assert response.status_code == 403
    assert response.headers["Tollgate-Reason"] == "policy"
    assert response.headers["Content-Type"] == "application/json"
    assert json.loads(response.content)["message"] == REFUSAL.message


def test_a_refusal_of_discovery_is_text():
    flow = tflow.tflow()
    flow.request.path = "/api?timeout=32s"
    answers.refuse(flow, "tollgate_block", status.Refusal(403, "policy-text", 'rule "a/b" denies\nthis'))
    assert flow.response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert flow.response.headers["Tollgate-Reason"] == "policy-text"
    assert flow.response.text == "rule 'a/b' denies this"


def test_a_401_names_the_scheme():
    assert answers.response(status.Refusal(401, "x", "y")).headers["WWW-Authenticate"] == "Bearer"


def test_no_refusal_makes_clients_repeat_it():
    for code in status.REASONS:
        assert "Retry-After" not in answers.response(status.Refusal(code, "x", "y")).headers


def test_who_answered_is_known(caplog):
    caplog.set_level("INFO")
    flow = tflow.tflow()
    flow.request.path = "/api/v1/secrets?token=in-the-query"
    answers.refuse(flow, "tollgate_block", REFUSAL)
    assert facts.of(flow).answered_by == "tollgate_block"
    assert "rule a/b denies" in caplog.text
    assert "in-the-query" not in caplog.text
