import base64
import json

import pytest
from mitmproxy import contentviews, http
from mitmproxy.contentviews import Metadata
from mitmproxy.test import taddons, tflow

from addons.mitm import contentview

SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "db", "namespace": "shop"},
    "data": {"password": base64.b64encode(b"hunter2-hunter2").decode()},
}
VIEW = contentview.KubernetesContentview()


def a_flow(path="/api/v1/namespaces/shop/secrets/db", method="GET", body=SECRET) -> http.HTTPFlow:
    flow = tflow.tflow(resp=True)
    flow.request.method, flow.request.path = method, path
    flow.response.headers["content-type"] = "application/json"
    flow.response.text = json.dumps(body)
    return flow


def seen(flow: http.HTTPFlow, message: http.Message | None = None) -> contentviews.ContentviewResult:
    return contentviews.prettify_message(message or flow.response, flow)


@pytest.fixture(autouse=True)
def installed():
    with taddons.context():  # the views read mitmproxy's options
        contentview.install()
        yield


def test_it_is_chosen_and_masks():
    found = seen(a_flow())
    assert found.view_name == "Kubernetes"
    assert "name: db" in found.text
    assert "hunter2" not in found.text
    assert SECRET["data"]["password"] not in found.text


def test_a_request_with_a_patch():
    flow = a_flow("/api/v1/namespaces/shop/configmaps/a", "PATCH")
    flow.request.headers["content-type"] = "application/json-patch+json"
    flow.request.text = '[{"op": "add", "path": "/data/x", "value": "y"}]'
    found = seen(flow, flow.request)
    assert (found.view_name, found.text) == ("Kubernetes", "- op: add\n  path: /data/x\n  value: y\n")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/version", b"{}", id="no resource"),
        pytest.param("/other", b"{}", id="not of the API"),
        pytest.param("/api/v1/namespaces/%2e%2e/pods", b"{}", id="no path that can be read"),
        pytest.param("/api/v1/pods", b"", id="no body"),
    ],
)
def test_others_are_left_to_others(path, body):
    flow = a_flow(path)
    metadata = Metadata(flow=flow, http_message=flow.response, content_type="application/json")
    assert VIEW.render_priority(body, metadata) < 0


def test_what_it_cannot_read_is_said():
    flow = a_flow()
    flow.response.content = b"\xff\xfe"
    with pytest.raises(ValueError, match="no JSON, YAML or protobuf"):
        VIEW.prettify(b"\xff\xfe", Metadata(flow=flow, http_message=flow.response, content_type="text/plain"))
