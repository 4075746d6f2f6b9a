"""The recorder itself: what it refuses to read is what two readers could take for two requests."""

import pytest

from tests.e2e.recorder import Unreadable, requests

PLAIN = b"GET /api HTTP/1.1\r\nHost: a\r\n\r\n"


def test_requests_one_after_the_other():
    post = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
    assert [(one.method, one.target, one.body) for one in requests(post + PLAIN)] == [
        ("POST", "/x", b"{}"),
        ("GET", "/api", b""),
    ]


def test_nothing_is_read_behind_an_upgrade():
    upgrade = b"GET /exec HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n\x82\x00"
    assert [one.target for one in requests(upgrade)] == ["/exec"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET /api HTTP/1.1\nHost: a\n\n", id="bare line ends"),
        pytest.param(PLAIN.replace(b"GET", b"get"), id="method"),
        pytest.param(PLAIN.replace(b"/api", b"http://b/api"), id="absolute form"),
        pytest.param(PLAIN.replace(b"Host", b"Host "), id="space before the colon"),
        pytest.param(PLAIN.replace(b"a\r\n\r\n", b"a\r\n b: c\r\n\r\n"), id="folded"),
        pytest.param(PLAIN.replace(b": a", b": a\r\nHost: b"), id="two hosts"),
        pytest.param(PLAIN.replace(b"a\r\n\r\n", b"a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), id="chunked"),
        pytest.param(
            PLAIN.replace(b"a\r\n\r\n", b"a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n"), id="two lengths"
        ),
        pytest.param(PLAIN.replace(b"a\r\n\r\n", b"a\r\nContent-Length: 9\r\n\r\n{}"), id="half a body"),
        pytest.param(b"GET /api HTTP/1.1\r\nHost: a", id="half a head"),
    ],
)
def test_what_is_not_plain(data):
    with pytest.raises(Unreadable):
        list(requests(data))
