"""A recorded incident, put onto a real cluster: first as a dry run, then for real, with the same outcomes."""

import io
import uuid

import pytest

from addons.cli import replay
from tests.addons.cli import recorded

pytestmark = pytest.mark.e2e


@pytest.fixture
def namespace(controlplane):
    name = f"replay-{uuid.uuid4().hex[:8]}"
    controlplane.api("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    for number in range(3):
        body = {"metadata": {"name": f"note-{number}"}, "data": {"k": "v"}}
        controlplane.api("POST", f"/api/v1/namespaces/{name}/configmaps", body)
    yield name
    controlplane.api("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def onto(controlplane, tmp_path):
    controlplane.api(
        "POST",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        {
            "metadata": {"name": (name := f"replay-{uuid.uuid4().hex[:8]}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
        },
    )
    token = controlplane.token("default", "default", audience=None)
    yield controlplane.kubeconfig(tmp_path / "onto", controlplane.url, controlplane.ca_file, token=token)
    controlplane.api("DELETE", f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{name}")


def test_the_same_sequence_with_the_same_outcome(controlplane, namespace, onto, tmp_path):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    options = {"propagationPolicy": "Background"}
    records = [
        *recorded.exchange("1", "GET", path, session="s", command="kubectl delete"),
        *recorded.exchange("2", "DELETE", f"{path}/note-0", body=options, session="s", command="kubectl delete"),
        *recorded.exchange("3", "DELETE", f"{path}/note-0", body=options, code=404),
        *recorded.exchange("4", "PATCH", f"{path}/note-1", body={"data": {"k": "w"}},
                           content_type="application/merge-patch+json"),
        *recorded.exchange("5", "POST", path, body={"metadata": {"name": "new"}}, code=201),
        *recorded.exchange("6", "DELETE", f"{path}/note-2"),
    ]  # fmt: skip
    root = recorded.write(tmp_path, records)

    def names():
        return sorted(
            item["metadata"]["name"]
            for item in controlplane.api("GET", path)["items"]
            if item["metadata"]["name"] != "kube-root-ca.crt"
        )

    def run(*arguments):
        out = io.StringIO()
        name = recorded.session(root).name
        return replay.main([name, "--recordings", str(root), "--onto", str(onto), *arguments], out), out.getvalue()

    code, out = run()
    # Nothing was deleted, so the second delete of the same object finds it there.
    assert code == 1, out
    assert "404 then, 200 now" in out
    assert "1 differed, 0 not sent" in out
    assert names() == ["note-0", "note-1", "note-2"]

    code, out = run("--for-real")
    assert code == 0, out
    assert names() == ["new", "note-1"]
    assert controlplane.api("GET", f"{path}/note-1")["data"] == {"k": "w"}
