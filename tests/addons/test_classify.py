import pytest
from mitmproxy.exceptions import OptionsError
from mitmproxy.test import taddons, tflow, tutils

from addons import classify
from addons.core import facts
from addons.core.model import Impact

STAMP = ("tollgate_classify", "request")


def flow_of(method=b"GET", path=b"/api/v1/namespaces/x/pods", headers=(), content=b""):
    return tflow.tflow(req=tutils.treq(method=method, path=path, headers=headers, content=content))


def run(flow):
    classify.Classify().request(flow)
    return facts.of(flow)


def test_the_operation_is_known_afterwards():
    known = run(flow_of(b"POST", b"/api/v1/namespaces/x/pods", content=b'{"metadata":{"name":"p"}}'))
    assert known.need_operation().name == "p"
    assert known.passed == {STAMP}
    assert known.answered_by == ""


@pytest.mark.parametrize(
    ("flow", "code", "reason"),
    [
        pytest.param(flow_of(b"delete"), 405, "method-unknown", id="lower-case method"),
        pytest.param(flow_of(path=b"/api//pods"), 400, "path-not-canonical", id="path"),
        pytest.param(flow_of(path=b"/api/\xff"), 400, "path-not-canonical", id="bytes"),
        pytest.param(flow_of(b"POST", content=b"{"), 400, "body-unreadable", id="body"),
        pytest.param(
            flow_of(b"POST", headers=((b"content-encoding", b"gzip"),), content=b"{}"), 400, "body-encoded", id="gzip"
        ),
        pytest.param(
            flow_of(
                b"POST", headers=((b"Content-Type", b"application/json"), (b"content-type", b"a/b")), content=b"{}"
            ),
            415,
            "body-unsupported",
            id="two content types",
        ),
        pytest.param(flow_of(content=None), 500, "body-missing", id="body streamed past"),
    ],
)
def test_refused(flow, code, reason):
    known = run(flow)
    assert (flow.response.status_code, flow.response.headers["Tollgate-Reason"]) == (code, reason)
    assert known.answered_by == "tollgate_classify"
    assert known.operation is None
    assert not known.passed


def test_first_answer_stands():
    flow = flow_of(path=b"//")
    facts.of(flow).answered_by = "tollgate_guard"
    known = run(flow)
    assert flow.response is None
    assert known.operation is None
    assert not known.passed


def test_own_namespace():
    addon, flow = classify.Classify(), flow_of(b"DELETE", b"/api/v1/namespaces/gate/pods/p")
    with taddons.context(addon) as tctx:
        tctx.configure(addon, tollgate_own_namespace="gate")
        addon.request(flow)
    assert Impact.ESCALATE in facts.of(flow).need_operation().impacts


@pytest.mark.parametrize("namespace", ["", "A", "a.b", "a/b", "-", "a" * 64])
def test_own_namespace_must_be_one(namespace):
    addon = classify.Classify()
    with taddons.context(addon) as tctx, pytest.raises(OptionsError, match="tollgate_own_namespace: "):
        tctx.configure(addon, tollgate_own_namespace=namespace)
    assert addon.own_namespace == "tollgate"


def test_defaults_are_accepted():
    addon = classify.Classify()
    with taddons.context(addon) as tctx:
        tctx.configure(addon)
    assert addon.own_namespace == "tollgate"
