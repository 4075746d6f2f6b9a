import json
from dataclasses import replace

import pytest
from mitmproxy import http
from mitmproxy.exceptions import OptionsError
from mitmproxy.test import taddons, tflow, tutils

from addons import upstream
from addons.core import facts
from addons.core.model import Identity, Impact, Operation, RequestInfo
from addons.net import apiserver

PATH = "/api/v1/namespaces/shop/pods"


@pytest.fixture
def kubeconfig(tmp_path):
    def write(server="https://127.0.0.1:6443", **user):
        path = tmp_path / f"kubeconfig-{len(list(tmp_path.iterdir()))}"
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": user or {"token": "of-the-gateway"}}],
        }
        path.write_text(json.dumps(config))
        return str(path)

    return write


@pytest.fixture
async def addon(kubeconfig):
    one = upstream.Upstream()
    with taddons.context(loadcore=False) as tctx:
        tctx.options.add_option("ssl_verify_upstream_trusted_ca", str | None, None, "")
        tctx.options.add_option("tollgate_allow_spdy", bool, False, "")
        tctx.master.addons.add(one)
        tctx.configure(one, tollgate_kubeconfig=kubeconfig())
        await one.server.refresh()
        yield one, tctx


def a_flow(upgrade="", method=b"GET", **request):
    headers = http.Headers(
        ((b"Host", b"127.0.0.1:6443"), (b"Accept", b"application/json"), (b"X-Forwarded-For", b"6.6.6.6"),
         (b"Audit-ID", b"forged"), (b"Upgrade", b"websocket"))
    )  # fmt: skip
    where = {"scheme": b"https", "host": "127.0.0.1", "port": 6443, "path": PATH.encode()}
    flow = tflow.tflow(req=tutils.treq(method=method, headers=headers, content=b"", **where))
    known = facts.of(flow)
    known.identity = Identity("tollgate:jane", groups=("dev",))
    info = RequestInfo(verb="list", path=PATH, is_resource_request=True)
    known.operation = Operation(info, "GET", frozenset({Impact.READ}), upgrade=upgrade)
    return flow


def test_the_request_that_goes_up(addon):
    one, _ = addon
    flow = a_flow()
    one.request(flow)
    known = facts.of(flow)
    assert dict(flow.request.headers) == {
        "Host": "127.0.0.1:6443",
        "Accept": "application/json",
        "audit-id": known.audit_id,
        "x-forwarded-for": "127.0.0.1",
        "impersonate-user": "tollgate:jane",
        "impersonate-group": "dev",
        "impersonate-extra-tollgate.dev%2Fgateway": "true",
    }
    assert known.credential == "Bearer of-the-gateway"
    assert known.passed == {("tollgate_upstream", "request")}


def test_as_the_gateway_nobody_is_impersonated(addon):
    one, tctx = addon
    tctx.configure(one, tollgate_upstream_identity="gateway")
    flow = a_flow()
    one.request(flow)
    assert "impersonate-user" not in flow.request.headers


def test_a_handshake_goes_up_whole(addon):
    one, _ = addon
    flow = a_flow(upgrade="websocket")
    one.request(flow)
    assert flow.request.headers["upgrade"] == "websocket"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(lambda one, flow: setattr(one, "server", None), "no-own-credential", id="no server"),
        pytest.param(lambda one, flow: setattr(flow.request, "host", "evil"), "wrong-upstream", id="another host"),
        pytest.param(lambda one, flow: setattr(flow.request, "scheme", "http"), "wrong-upstream", id="plain"),
        pytest.param(
            lambda one, flow: setattr(facts.of(flow), "identity", Identity("a\nb")), "identity-not-a-header", id="name"
        ),
    ],
)
def test_refused(addon, spoil, reason):
    one, _ = addon
    flow = a_flow()
    spoil(one, flow)
    one.request(flow)
    assert flow.response.headers["Tollgate-Reason"] == reason
    assert not facts.of(flow).passed


def test_spdy_is_refused_unless_allowed(addon):
    one, tctx = addon
    flow = a_flow(upgrade="spdy")
    one.request(flow)
    assert flow.response.headers["Tollgate-Reason"] == "spdy"
    tctx.options.update(tollgate_allow_spdy=True)
    flow = a_flow(upgrade="spdy")
    one.request(flow)
    assert flow.response is None


@pytest.mark.parametrize("missing", ["identity", "operation"])
def test_what_was_not_established_raises_and_does_not_pass(addon, missing):
    one, _ = addon
    flow = a_flow()
    setattr(facts.of(flow), missing, None)
    with pytest.raises((facts.NotAuthenticated, facts.NotClassified)):
        one.request(flow)
    assert not facts.of(flow).passed


def test_the_first_answer_stands(addon):
    one, _ = addon
    flow = a_flow()
    facts.of(flow).answered_by = "tollgate_block"
    one.request(flow)
    assert not facts.of(flow).passed
    assert not facts.of(flow).credential


@pytest.mark.parametrize("code", [200, 101, 401])
def test_answers(addon, code):
    one, _ = addon
    flow = a_flow()
    facts.of(flow).released = True
    flow.response = http.Response.make(code)
    one.renew = lambda: None
    one.responseheaders(flow)
    assert flow.response.stream is (code != 101)
    assert (facts.of(flow).answer_refusal is upstream.OWN_CREDENTIAL_REFUSED) is (code == 401)


@pytest.mark.parametrize(
    ("method", "alpn", "code", "length", "chunked"),
    [
        pytest.param(b"GET", b"http/1.1", 200, "5", True, id="a body"),
        pytest.param(b"GET", None, 200, "5", True, id="no ALPN is HTTP/1.1"),
        pytest.param(b"GET", b"h2", 200, "5", False, id="HTTP/2 has an end of its own"),
        pytest.param(b"HEAD", b"http/1.1", 200, "5", False, id="HEAD"),
        pytest.param(b"GET", b"http/1.1", 304, "5", False, id="not modified"),
        pytest.param(b"GET", b"http/1.1", 200, "0", False, id="an empty body"),
        pytest.param(b"GET", b"http/1.1", 101, "5", False, id="an upgrade"),
    ],
)
def test_no_length_tells_the_end_of_a_streamed_body(addon, method, alpn, code, length, chunked):
    one, _ = addon
    flow = a_flow(method=method)
    flow.client_conn.alpn = alpn
    facts.of(flow).released = True
    flow.response = http.Response.make(code)
    flow.response.headers["content-length"] = length
    one.responseheaders(flow)
    headers = flow.response.headers
    assert ("content-length" in headers) is not chunked
    assert headers.get("transfer-encoding") == ("chunked" if chunked else None)


async def test_a_path_prefix_of_the_hoster(kubeconfig, addon):
    one, tctx = addon
    tctx.configure(one, tollgate_kubeconfig=kubeconfig("https://127.0.0.1:6443/k8s/clusters/c-1/"))
    await one.server.refresh()
    flow = a_flow()
    one.request(flow)
    assert flow.request.path == "/k8s/clusters/c-1" + PATH


def test_a_bad_kubeconfig_is_an_error_and_the_old_one_stays(addon):
    one, tctx = addon
    with pytest.raises(OptionsError, match=r"tollgate_kubeconfig: .*no file"):
        tctx.configure(one, tollgate_kubeconfig="/nonexistent/kubeconfig")
    flow = a_flow()
    one.request(flow)
    assert flow.response is None


def test_without_a_credential_nothing_goes_up(kubeconfig, addon):
    one, tctx = addon
    tctx.configure(one, tollgate_kubeconfig=kubeconfig())  # and not read yet
    flow = a_flow()
    one.request(flow)
    assert flow.response.headers["Tollgate-Reason"] == "no-own-credential"


def test_authenticate_and_upstream_share_one_server(kubeconfig):
    path = kubeconfig()
    assert apiserver.shared(path) is apiserver.shared(path)


HERE = ("127.0.0.1", 40001)


def a_flow_for_this_process(address=HERE, scheme="http", upgrade=""):
    flow = a_flow(upgrade=upgrade)
    facts.of(flow).served_here = HERE
    flow.request.scheme, flow.request.host, flow.request.port = scheme, *address
    flow.request.headers = http.Headers(((b"host", b"127.0.0.1:40001"), (b"tollgate-ticket", b"t")))
    return flow


def test_what_is_served_in_this_process_gets_no_credential_and_nobodys_name(addon):
    one, _ = addon
    flow = a_flow_for_this_process()
    one.request(flow)
    known = facts.of(flow)
    assert dict(flow.request.headers) == {"host": "127.0.0.1:40001", "tollgate-ticket": "t"}
    assert (known.credential, flow.response, bool(known.audit_id)) == ("", None, True)
    assert known.passed == {("tollgate_upstream", "request")}
    assert known.sealed is not None


def test_it_is_served_while_there_is_no_api_server(addon):
    one, _ = addon
    one.server = None
    flow = a_flow_for_this_process()
    one.request(flow)
    assert facts.of(flow).passed == {("tollgate_upstream", "request")}


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"address": ("127.0.0.1", 40002)}, id="another port"),
        pytest.param({"address": ("127.0.0.1", 6443), "scheme": "https"}, id="the API server, without a credential"),
        pytest.param({"scheme": "https"}, id="another scheme"),
        pytest.param({"address": ("evil", 40001)}, id="another host"),
    ],
)
def test_only_the_server_in_this_process_is_meant(addon, more):
    one, _ = addon
    flow = a_flow_for_this_process(**more)
    one.request(flow)
    assert flow.response.headers["Tollgate-Reason"] == "wrong-upstream"
    assert not facts.of(flow).passed


def test_a_request_for_this_process_that_nobody_pointed_there(addon):
    one, _ = addon
    flow = a_flow_for_this_process()
    facts.of(flow).served_here = None
    one.request(flow)
    assert flow.response.headers["Tollgate-Reason"] == "wrong-upstream"


def test_an_approval_was_spent_under_the_id_that_goes_up(addon):
    one, _ = addon
    flow = a_flow()
    facts.of(flow).audit_id = "spent-under"
    one.request(flow)
    assert flow.request.headers["audit-id"] == "spent-under"


@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_that_an_addon_needs_whole_does_not_stream(addon, whole):
    one, _ = addon
    flow = a_flow()
    known = facts.of(flow)
    known.released, known.whole = True, whole
    flow.response = http.Response.make(200)
    one.responseheaders(flow)
    assert flow.response.stream is not whole


def test_our_group_is_nobody_elses(addon):
    """A stack without approve: the policies judged it as ours, so it is not the API server's to do."""
    one, _ = addon
    flow = a_flow()
    known = facts.of(flow)
    known.operation = replace(known.operation, info=replace(known.operation.info, api_group="tollgate.dev"))
    one.request(flow)
    assert (flow.response.status_code, flow.response.headers["Tollgate-Reason"]) == (404, "own-group")
    assert (known.passed, known.credential) == (set(), "")


@pytest.mark.parametrize("chunks", [None, lambda data: [data]], ids=["as they are", "by what mask makes of them"])
def test_answers_stream(addon, chunks):
    one, _ = addon
    flow = a_flow()
    flow.response = tutils.tresp()
    known = facts.of(flow)
    known.released, known.chunks = True, chunks
    one.responseheaders(flow)
    assert flow.response.stream is (chunks or True)
    known.whole = True
    one.responseheaders(flow)
    assert not flow.response.stream


async def test_ready_with_a_credential(addon, kubeconfig):
    one, _ = addon
    assert one.ready()
    one.server = apiserver.load(kubeconfig())
    assert not one.ready()
    one.server = None
    assert not one.ready()
