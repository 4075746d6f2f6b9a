import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from addons.core import facts, status
from addons.mitm import seal


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
    flow = tflow.tflow()
    seal.put(flow)
    seal.check(flow)
    change(flow.request)
    assert seal.is_broken(flow)
    with pytest.raises(status.Refused) as e:
        seal.check(flow)
    assert e.value.refusal == seal.CHANGED


def test_what_was_never_sealed_is_not_broken():
    assert not seal.is_broken(tflow.tflow())


def test_a_new_one_after_a_change():
    flow = tflow.tflow()
    seal.put(flow)
    flow.request.path = "/x"
    seal.put(flow)
    assert not seal.is_broken(flow)
    assert facts.of(flow).sealed == seal.value(flow.request)
