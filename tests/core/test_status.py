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
