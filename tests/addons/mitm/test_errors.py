import json

import pytest

from addons.core import status
from addons.mitm import errors
from tests import http2, proxy


def body_of(answer: bytes) -> dict:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def test_an_unreachable_upstream_is_a_status_over_http1(tls, confdir):
    async with proxy.running(1, tls.combined, tls.ca_file, confdir) as port:
        answer = await proxy.raw(port, tls.ca_file, b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert body_of(answer)["kind"] == "Status"
    assert "127.0.0.1" not in body_of(answer)["message"]  # where the API server is, is not for clients


async def test_an_unreachable_upstream_is_a_status_over_http2(tls, confdir):
    async with (
        proxy.running(1, tls.combined, tls.ca_file, confdir) as port,
        http2.connect(port, tls.ca_file) as client,
    ):
        answer = await client.request("/api")
    assert answer.status == 502
    assert json.loads(answer.body)["reason"] == "BadGateway"
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        pytest.param(
            b"GET /api HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, id="lengths"
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="length and chunked",
        ),
        pytest.param(b"nonsense\r\n\r\n", 400, id="not HTTP"),
        pytest.param(b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000, 431, id="a head without end"),
        pytest.param(b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431, id="a long head"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nTrailer: x\r\n\r\n",
            400,
            id="trailers",
        ),
    ],
)
async def test_bad_framing_gets_a_status(tls, confdir, request_bytes, code):
    async with proxy.running(1, tls.combined, tls.ca_file, confdir) as port:
        answer = await proxy.raw(port, tls.ca_file, request_bytes, seconds=3)
    assert answer.startswith(b"HTTP/1.1 %d " % code)
    assert body_of(answer)["kind"] == "Status"


async def test_an_error_after_100_continue_is_a_status(tls, confdir):
    sent = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx"
    async with proxy.running(1, tls.combined, tls.ca_file, confdir) as port:
        answer = await proxy.raw(port, tls.ca_file, sent, seconds=5)
    assert answer.startswith(b"HTTP/1.1 100 ")
    assert b"HTTP/1.1 502 " in answer


def test_our_own_sentence_is_kept():
    refusal = status.Refusal(403, "x", "rule r: no")
    assert errors.refusal_for(502, errors.Sentence(refusal)) is refusal
