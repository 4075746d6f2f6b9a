import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import status


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        pytest.param('rule "x"', "rule 'x'", id="quotes"),
        pytest.param("a\\b", "a/b", id="backslash"),
        pytest.param("a\nb\tc", "a b c", id="lines"),
        pytest.param("Pod not found", "Pod not there", id="a server swallows these words"),
        pytest.param("Not  Found", "not  there", id="in any spelling"),
        pytest.param("päß → ok", "päß → ok", id="unicode stays"),
    ],
)
def test_one_line(message, shown):
    assert status.one_line(message) == shown


@given(st.text(max_size=700))
def test_every_message_survives_the_clients(message):
    shown = status.one_line(message)
    assert len(shown) <= status.MAX_MESSAGE
    assert not any(c in shown for c in '"\\\n\r\x00\x1b')
    assert "not found" not in shown.lower()


def test_body_is_a_kubernetes_status():
    body = json.loads(status.body(status.Refusal(403, "x", "rule r denies this")))
    assert body == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "rule r denies this",
        "reason": "Forbidden",
        "code": 403,
    }


def test_nobody_refuses_with_what_clients_repeat_for_ever():
    assert 409 not in status.REASONS


@pytest.mark.parametrize(
    ("code", "path", "text"),
    [
        pytest.param(403, "/api", True, id="discovery"),
        pytest.param(403, "/apis?x=1", True, id="with a query"),
        pytest.param(403, "/apis/", True, id="with a slash"),
        pytest.param(403, "/version", True, id="version"),
        pytest.param(403, "/openapi/v3/apis/apps/v1?hash=1", True, id="schema"),
        pytest.param(403, "/api/v1", False, id="a version's list is decoded"),
        pytest.param(403, "/apis/apps/v1/namespaces/shop/deployments/web", False, id="an object"),
        pytest.param(401, "/api", False, id="clients have their own words for a 401"),
    ],
)
def test_what_clients_read_as_text(code, path, text):
    assert status.is_read_as_text(status.Refusal(code, "x", "y"), path) is text
