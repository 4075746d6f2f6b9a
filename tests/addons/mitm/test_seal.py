import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from addons.mitm.seal import seal


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda r: setattr(r, "path", "/x"), id="path"),
        pytest.param(lambda r: setattr(r, "method", "DELETE"), id="method"),
        pytest.param(lambda r: setattr(r, "host", "evil"), id="host"),
        pytest.param(lambda r: setattr(r, "port", 1), id="port"),
        pytest.param(lambda r: setattr(r, "content", b"other"), id="body"),
        pytest.param(lambda r: r.headers.__setitem__("impersonate-user", "root"), id="header"),
        pytest.param(lambda r: setattr(r, "trailers", http.Headers(((b"a", b"b"),))), id="trailers"),
    ],
)
def test_every_change_breaks_it(change):
    request = tflow.tflow().request
    before = seal(request)
    assert seal(request) == before
    change(request)
    assert seal(request) != before
