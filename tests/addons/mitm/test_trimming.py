"""Each against mitmproxy's own: the same results, the same errors."""

import contextlib
import datetime
import logging

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mitmproxy import http, log
from mitmproxy.proxy.layers import tls
from mitmproxy.test import taddons, tflow
from OpenSSL import SSL

from addons.mitm import dispatch, trimming
from addons.net import certificates, files


@pytest.fixture(autouse=True)
def leave_no_trace():
    yield
    trimming.uninstall()
    dispatch.uninstall()


def both(call):
    """What mitmproxy's own does, after making sure that ours does it too."""
    trimming.uninstall()
    theirs = outcome(call)
    trimming.install()
    assert outcome(call) == theirs
    return theirs


def outcome(call):
    try:
        return call()
    except Exception as e:  # noqa: BLE001 (whatever it is, both must raise it)
        return type(e), str(e)


names = st.sampled_from([b"Host", b"host", b"HOST", b"accept", b"x-\xff", "Straße".encode(), b""])
values = st.sampled_from([b"", b"a", b"a, b", b"\xff\xfe", "ä".encode()])
keys = st.one_of(
    names,
    st.sampled_from(["Host", "hOST", "accept", "Accept", "x-\udcff", "Straße", "STRASSE", "\u0130", "missing", ""]),
    st.sampled_from([None, 1, ("host",), "x-\ud800"]),
)


@given(st.lists(st.tuples(names, values), max_size=5), keys)
@example([(b"host", b"a"), (b"Host", b"b")], "HOST")
def test_looking_up_headers(fields, key):
    made = http.Headers(fields)
    both(lambda: made[key])
    both(lambda: made.get(key))
    both(lambda: made.get(key, "default"))
    both(lambda: key in made)
    both(lambda: made.copy().pop(key, "gone"))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([], id="none"),
        pytest.param([(b"a", b"b")], id="tuples"),
        pytest.param([[b"a", b"b"]], id="lists"),
        pytest.param(({"a": 1}, (b"a", b"b")), id="neither"),
        pytest.param([(b"a", b"b", b"c")], id="three"),
        pytest.param([(b"a",)], id="one"),
        pytest.param([("a", b"b")], id="text for a name"),
        pytest.param([(b"a", "b")], id="text for a value"),
        pytest.param([(bytearray(b"a"), b"b")], id="nearly bytes"),
        pytest.param([(type("B", (bytes,), {})(b"a"), b"b")], id="a subclass"),
        pytest.param(None, id="nothing"),
        pytest.param(7, id="a number"),
    ],
)
def test_making_headers(fields):
    both(lambda: http.Headers(fields).fields)


def test_making_headers_by_name():
    assert both(lambda: http.Headers([(b"a", b"b")], content_type="x").fields)[1] == (b"content-type", b"x")


def message(**more):
    fields = {
        "http_version": b"HTTP/1.1", "status_code": 200, "reason": b"OK", "headers": http.Headers(), "content": b"",
        "trailers": None, "timestamp_start": 1.0, "timestamp_end": None,
    }  # fmt: skip
    return lambda: vars(http.Response(**{**fields, **more}).data).keys()


class Mine(http.Headers):
    pass


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="usual"),
        pytest.param({"content": None, "timestamp_end": 2.0, "trailers": http.Headers()}, id="all optional ones"),
        pytest.param({"timestamp_start": 1, "timestamp_end": 2}, id="whole seconds"),
        pytest.param({"headers": Mine()}, id="a subclass"),
        pytest.param({"status_code": True}, id="a truth value is a number"),
        pytest.param({"content": "text"}, id="text for content"),
        pytest.param({"http_version": None}, id="no version"),
        pytest.param({"status_code": "200"}, id="text for a number"),
        pytest.param({"timestamp_start": None}, id="no time"),
        pytest.param({"trailers": {}}, id="a dict for trailers"),
    ],
)
def test_making_messages(more):
    both(message(**more))


def test_connections_are_equal_by_their_id():
    client, other = tflow.tclient_conn(), tflow.tclient_conn()
    other.id = client.id
    different = tflow.tclient_conn()
    different.id = "another"
    assert both(lambda: (client == client, client == other, client == different, client == 1)) == (
        True, True, False, False,
    )  # fmt: skip


@pytest.mark.parametrize("wanted", [False, True], ids=["nobody listens", "somebody listens"])
async def test_a_line_of_the_log_becomes_an_event_only_for_somebody(wanted):
    class Listens:
        if wanted:

            def add_log(self, entry):
                pass

    dispatch.install()
    trimming.install()
    with taddons.context(loadcore=False) as tctx:
        woken = []
        tctx.master.addons.add(Listens())
        tctx.master.addons.trigger(log.AddLogHook(log.LogEntry("first", "info")))
        tctx.master.event_loop = type("Loop", (), {"call_soon_threadsafe": lambda self, *a: woken.append(a)})()
        tctx.master._legacy_log_events.emit(logging.LogRecord("x", logging.INFO, "", 0, "second", (), None))
        assert bool(woken) == wanted
        tctx.master._legacy_log_events.uninstall()


@given(st.lists(st.floats(0, 4e9), max_size=5), st.sampled_from([None, "%Y"]))
def test_the_time_of_a_line(times, datefmt):
    formatter = log.MitmFormatter(colorize=False)
    records = [logging.makeLogRecord({"created": t, "msecs": t % 1 * 1000}) for t in times]
    both(lambda: [formatter.formatTime(r, datefmt) for r in records])


def pair(context, other):
    """A client's and a server's end of TLS, in memory, each with a layer around it."""
    ends = []
    for ctx, state in ((context, "set_connect_state"), (other, "set_accept_state")):
        layer = object.__new__(tls.ClientTLSLayer)
        layer.tls, layer.conn = SSL.Connection(ctx), tflow.tclient_conn()
        getattr(layer.tls, state)()
        ends.append(layer)
    return ends


@pytest.mark.parametrize("ours", [False, True], ids=["mitmproxy", "ours"])
@pytest.mark.parametrize("size", [0, 1, 16_384, 200_000])
def test_what_tls_has_to_send_is_sent_whole(tmp_path, ours, size):
    made = certificates.ensure(files.private_folder(tmp_path / "state"), "", datetime.datetime.now(datetime.UTC))
    server = SSL.Context(SSL.TLS_SERVER_METHOD)
    server.use_privatekey_file(str(made.combined))
    server.use_certificate_chain_file(str(made.combined))
    if ours:
        trimming.install()
    here, there = pair(SSL.Context(SSL.TLS_CLIENT_METHOD), server)
    for _ in range(4):
        for one, two in ((here, there), (there, here)):
            with contextlib.suppress(SSL.WantReadError):
                one.tls.do_handshake()
            for command in one.tls_interact():
                two.tls.bio_write(command.data)
    if size:
        here.tls.sendall(b"x" * size)
    sent = b"".join(command.data for command in here.tls_interact())
    assert (len(sent) > size) == bool(size)
    received = b""
    if size:
        there.tls.bio_write(sent)
    while len(received) < size:
        received += there.tls.recv(65535)
    assert len(received) == size
    assert list(here.tls_interact()) == []


def test_without_a_connection_it_fails_as_ever():
    layer = object.__new__(tls.ClientTLSLayer)
    layer.tls = None
    assert both(lambda: list(layer.tls_interact()))[0] is AttributeError


def test_it_can_be_taken_back():
    before = {name: http.Headers.__dict__.get(name) for name in ("get", "__init__", "__contains__")}
    trimming.install()
    trimming.install()
    assert http.Headers.__dict__["get"] is trimming.headers_get
    trimming.uninstall()
    assert {name: http.Headers.__dict__.get(name) for name in before} == before
