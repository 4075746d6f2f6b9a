import io
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.io import FlowReader, tnetstring
from mitmproxy.test import tflow, tutils
from mitmproxy.websocket import WebSocketMessage

from addons.core import facts
from addons.mitm import flowcopies
from addons.mitm.flowcopies import FlowFileError, NotMasked
from tests import canaries

SUMMARY = {"verdict": "deny", "policy": "agents", "rule": "no-deletes", "command": "kubectl delete pods --all"}


def same(copied):
    return copied


def written(original, mask=same, **more):
    copy = flowcopies.serialise(original, mask, **more)
    (found,) = FlowReader(io.BytesIO(copy.data)).stream()  # as mitmproxy itself reads it
    return found, copy


def exchange(**request):
    return tflow.tflow(req=tutils.treq(**request), resp=tutils.tresp(content=b"answer"))


def test_mitmproxy_reads_it():
    original = exchange(method=b"DELETE", path=b"/api/v1/namespaces/shop/pods/a", content=b"body")
    original.server_conn.certificate_list = original.client_conn.certificate_list = []
    found, copy = written(original, summary=SUMMARY)
    assert copy.cut == ()
    assert (found.id, found.request.method, found.request.path) == (original.id, "DELETE", original.request.path)
    assert (found.request.content, found.response.content) == (b"body", b"answer")
    assert found.request.timestamp_start == original.request.timestamp_start
    assert found.client_conn.peername == original.client_conn.peername
    assert found.comment == "kubectl delete pods --all [deny agents/no-deletes]"
    assert found.marked == ":no_entry:"
    assert flowcopies.summary_of(found) == SUMMARY


def test_the_original_is_left_alone():
    original = exchange(content=b"x" * 100, headers=((b"authorization", b"Bearer t"),))
    before = original.get_state()

    def mask(copied):
        copied.request.content = b"masked"
        copied.request.headers["x"] = "y"
        copied.response.headers["x"] = "y"
        copied.client_conn.peername = ("127.0.0.9", 1)
        return copied

    found, _ = written(original, mask, max_body=10)
    assert found.request.content == b"masked"
    assert original.get_state() == before
    assert facts.of(found).identity is None


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        pytest.param(None, "there is no mask", id="no mask"),
        pytest.param(lambda f: 1 / 0, "could not be masked .ZeroDivisionError", id="raises"),
        pytest.param(lambda f: None, "gave no copy", id="gives nothing"),
        pytest.param(lambda f: "flow", "gave no copy", id="gives something else"),
    ],
)
def test_nothing_without_a_mask(mask, said):
    with pytest.raises(NotMasked, match=said):
        flowcopies.serialise(exchange(), mask)


def test_a_failed_mask_quotes_nothing():
    def mask(copied):
        raise ValueError("hunter2")

    with pytest.raises(NotMasked) as caught:
        flowcopies.serialise(exchange(), mask)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_mask_that_gives_the_original_back_is_none():
    original = exchange()
    with pytest.raises(NotMasked):
        flowcopies.serialise(original, lambda copied: original)


BEARER = "base64url.bearer.authorization.k8s.io.SECRET"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([("Authorization", "Bearer SECRET")], id="bearer"),
        pytest.param([("AUTHORIZATION", "Bearer SECRET"), ("authorization", "SECRET")], id="twice"),
        pytest.param([("Proxy-Authorization", "Basic SECRET")], id="proxy"),
        pytest.param([("Cookie", "a=SECRET")], id="cookie"),
        pytest.param([("Sec-WebSocket-Protocol", f"{BEARER}, v5.channel.k8s.io")], id="protocol"),
        pytest.param([("Sec-WebSocket-Protocol", "v5.channel.k8s.io"), ("sec-websocket-protocol", BEARER)], id="two"),
        pytest.param([("Sec-WebSocket-Protocol", BEARER.replace("b", "B", 1))], id="other spelling"),
    ],
)
def test_no_credential(headers):
    original = exchange()
    original.request.headers = http.Headers([(k.encode(), v.encode()) for k, v in headers])
    original.response.headers = http.Headers([(b"set-cookie", b"a=SECRET")])
    found, copy = written(original)
    assert b"SECRET" not in copy.data
    assert found.request.headers.get("sec-websocket-protocol", "v5.channel.k8s.io") == "v5.channel.k8s.io"


def test_no_credential_comes_back_by_the_mask():
    def mask(copied):
        copied.request.headers["authorization"] = "SECRET"
        return copied

    assert b"SECRET" not in flowcopies.serialise(exchange(), mask).data


def test_what_others_put_into_metadata_is_not_copied():
    original = exchange()
    original.metadata["x"] = "SECRET"
    original.backup()
    assert b"SECRET" not in flowcopies.serialise(original, same).data


def test_the_request_alone():
    found, _ = written(exchange(content=b"body"), answer=False)
    assert found.response is None
    assert found.request.content == b"body"


def test_long_bodies_are_cut_and_said():
    original = exchange(content=b"x" * 100)
    original.response.content = b"y" * 200
    found, copy = written(original, max_body=50)
    assert copy.cut == ("flow.request 100 bytes", "flow.response 200 bytes")
    assert (found.request.raw_content, found.response.raw_content) == (b"x" * 50, b"y" * 50)
    assert flowcopies.summary_of(found)["truncated"] == "flow.request 100 bytes, flow.response 200 bytes"


def test_a_compressed_body_is_kept_whole_or_not_at_all():
    original = exchange()
    original.response.headers["content-encoding"] = "gzip"
    original.response.raw_content = b"z" * 100
    found, _ = written(original, max_body=50)
    assert found.response.raw_content == b""


def test_a_streamed_body_is_said():
    original = exchange()
    original.response.raw_content = None
    found, copy = written(original)
    assert copy.cut == ("flow.response was streamed and not kept",)
    assert found.response.raw_content is None


def test_websocket_frames():
    original = tflow.twebsocketflow()
    original.websocket.messages = [WebSocketMessage(2, n % 2 == 0, b"\1" + b"x" * 9, 1000.0 + n) for n in range(10)]
    found, copy = written(original, max_frames=45)
    assert copy.cut == ("flow.websocket 4 of 10 frames",)
    assert [message.timestamp for message in found.websocket.messages] == [1000.0, 1001.0, 1002.0, 1003.0]
    assert len(original.websocket.messages) == 10


def test_a_forged_id_brings_no_other_connection():
    """The connection of a loaded flow may claim the id of one that is open."""
    original = exchange()
    flowcopies.serialise(original, same)
    forged = exchange()
    forged.client_conn.id = original.client_conn.id
    forged.client_conn.sockname = ("10.9.9.9", 9)
    assert written(forged)[0].client_conn.sockname == ("10.9.9.9", 9)
    assert written(original)[0].client_conn.sockname == original.client_conn.sockname


def test_a_connection_that_has_changed_is_written_anew():
    original = exchange()
    flowcopies.serialise(original, same)
    original.client_conn.sni = "api.example"
    assert written(original)[0].client_conn.sni == "api.example"


def test_nothing_of_mitmproxys_own_format_is_left_out():
    original = exchange()
    original.server_conn.certificate_list = original.client_conn.certificate_list = []
    assert {**written(original)[0].get_state(), "metadata": {}} == original.get_state()
    original = tflow.twebsocketflow(err=True)
    assert written(original)[0].get_state().keys() == original.get_state().keys()


def test_an_error_is_kept():
    original = tflow.tflow(err=True)
    found, _ = written(original)
    assert found.error.msg == original.error.msg


# ----- reading -----


def many(count=3):
    flows = [exchange(path=b"/%d" % n) for n in range(count)]
    return b"".join(flowcopies.serialise(one, same).data for one in flows)


def test_read():
    assert [one.request.path for one in flowcopies.read(io.BytesIO(many()))] == ["/0", "/1", "/2"]
    assert list(flowcopies.read(io.BytesIO(b""))) == []


@pytest.mark.parametrize("cut", [1, 100, 700])
def test_a_cut_file_is_read_up_to_the_cut(cut):
    reading = flowcopies.read(io.BytesIO(many()[:-cut]))
    assert [next(reading).request.path for _ in range(2)] == ["/0", "/1"]
    with pytest.raises(FlowFileError, match=r"flows.mitm is cut or damaged after flow 2; what is before it was read"):
        next(reading)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"nonsense", "is not a flow file of mitmproxy's", id="text"),
        pytest.param(b'{"log": {"entries": []}}', "is not a flow file of mitmproxy's", id="HAR"),
        pytest.param(b"999999999999:", "is not a flow file", id="a length that is not there"),
        pytest.param(tnetstring.dumps([1]), "is not a flow file", id="no flow"),
        pytest.param(tnetstring.dumps({"version": 21}), "is not a flow file", id="a flow without parts"),
        pytest.param(tnetstring.dumps({"version": 999}), "written by another version of mitmproxy", id="newer"),
    ],
)
def test_foreign_files(data, said):
    with pytest.raises(FlowFileError, match=said):
        list(flowcopies.read(io.BytesIO(data)))


@given(st.binary(max_size=300), st.integers(0, 2000))
def test_nonsense_raises_nothing_else(data, at):
    whole = many(1)
    for raw in (data, whole[:at] + data + whole[at + len(data) :]):
        try:
            list(flowcopies.read(io.BytesIO(raw)))
        except FlowFileError:
            continue


def test_summaries_in_files_are_anybodys():
    flow = tflow.tflow()
    flow.metadata = {"tollgate": {"verdict": "allow", "n": 1}}
    assert flowcopies.summary_of(flow) == {"verdict": "allow"}
    flow.metadata = {"tollgate": "x"}
    assert flowcopies.summary_of(flow) == {}


def test_mitmdump_reads_the_file(tmp_path):
    path = tmp_path / "flows.mitm"
    path.write_bytes(
        flowcopies.serialise(exchange(path=b"/api/v1/pods"), same, summary=SUMMARY).data
        + flowcopies.serialise(tflow.twebsocketflow(), same).data
    )
    done = subprocess.run(
        [
            Path(sys.executable).with_name("mitmdump"),
            "-nr",
            path,
            "--set",
            f"confdir={tmp_path}",
            "~comment no-deletes",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "/api/v1/pods" in done.stdout
    assert done.stdout.count("GET") == 1


def test_what_a_client_says_before_it_is_known_is_not_kept_as_it_is():
    token = canaries.VALUES["github token"].decode()
    original = tflow.tflow()
    original.client_conn.sni, original.client_conn.error = f"{token}.example", f"bad header {token}"
    original.client_conn.alpn_offers = [b"h2", token.encode()]
    found, _ = written(original)
    assert (found.client_conn.sni, found.client_conn.error, list(found.client_conn.alpn_offers)) == (
        None,
        None,
        [b"h2"],
    )
