import pytest
from mitmproxy import http
from mitmproxy.test import tutils

from addons.mitm import messages


@pytest.mark.parametrize("message", [tutils.treq(), tutils.tresp(), http.Response.make(403, b"no", {"A": "b"})])
def test_a_twin_is_equal_and_on_its_own(message):
    before = message.get_state()
    made = messages.twin(message)
    assert type(made) is type(message)
    assert made.get_state() == before
    made.headers["A"], made.http_version = "other", "HTTP/3"
    made.raw_content = b"else"
    assert message.get_state() == before
    assert made.copy().get_state() == made.get_state()
