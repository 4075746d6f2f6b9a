import pytest
from mitmproxy.test import tflow

from addons.core import facts
from addons.mitm import exchanges


@pytest.mark.parametrize(
    ("guarded", "released", "answered_by", "went"),
    [
        pytest.param(True, True, "", True, id="released"),
        pytest.param(True, False, "", False, id="a stamp is missing"),
        pytest.param(True, False, "tollgate_block", False, id="refused"),
        pytest.param(False, False, "", True, id="no guard, and nobody refused it"),
        pytest.param(False, False, "tollgate_block", False, id="no guard, and refused"),
    ],
)
def test_went_upstream(guarded, released, answered_by, went):
    known = facts.Facts()
    known.refusal = object() if guarded else None
    known.released, known.answered_by = released, answered_by
    assert exchanges.went_upstream(known) is went


@pytest.mark.parametrize(
    ("tls", "tcp_at", "tls_at", "connected"),
    [
        pytest.param(True, None, None, False, id="the mere address"),
        pytest.param(True, 1.0, None, False, id="in the middle of TLS"),
        pytest.param(True, 1.0, 2.0, True, id="open"),
        pytest.param(False, None, None, False, id="plain, the mere address"),
        pytest.param(False, 1.0, None, True, id="plain, to the server in this process"),
    ],
)
def test_connected(tls, tcp_at, tls_at, connected):
    flow = tflow.tflow()
    server = flow.server_conn
    server.tls, server.timestamp_tcp_setup, server.timestamp_tls_setup = tls, tcp_at, tls_at
    assert exchanges.connected(flow) is connected
