import pytest

from addons.core import beforeimages, classify
from addons.core.auditevents import Level

NS = "/api/v1/namespaces/shop"


def targets(method, path, body=b"", level=Level.FULL, content_type="application/json"):
    operation = classify.classify_raw(method, path, ((b"content-type", content_type.encode()),) if body else (), body)
    return beforeimages.targets(operation, path, level)


@pytest.mark.parametrize(
    ("method", "path", "body", "wanted"),
    [
        pytest.param("DELETE", f"{NS}/configmaps/a?gracePeriodSeconds=0", b"", (f"{NS}/configmaps/a",), id="one"),
        pytest.param(
            "DELETE", f"{NS}/configmaps?labelSelector=a%3Db&limit=3&dryRun=",
            b"", (f"{NS}/configmaps?labelSelector=a%3Db&limit=100",), id="a collection",
        ),
        pytest.param(
            "POST", f"{NS}/pods/web/eviction",
            b'{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"web"}}', (f"{NS}/pods/web",),
            id="evicted",
        ),
        pytest.param("PUT", f"{NS}/configmaps/a", b'{"metadata":{"name":"a"}}', (f"{NS}/configmaps/a",), id="update"),
        pytest.param("DELETE", f"{NS}/configmaps/a?dryRun=All", b"", (), id="a dry run"),
        pytest.param("GET", f"{NS}/configmaps/a", b"", (), id="a read"),
        pytest.param("POST", f"{NS}/configmaps", b'{"metadata":{"name":"a"}}', (), id="a create"),
        pytest.param("DELETE", "/healthz", b"", (), id="no resource"),
    ],
)  # fmt: skip
def test_targets(method, path, body, wanted):
    assert targets(method, path, body) == wanted


def test_a_namespace_and_what_is_in_it():
    found = targets("DELETE", "/api/v1/namespaces/shop")
    assert found[0] == "/api/v1/namespaces/shop"
    assert f"{NS}/configmaps?limit={beforeimages.MAX_OF_KIND}" in found
    assert "/apis/apps/v1/namespaces/shop/deployments?limit=20" in found


@pytest.mark.parametrize(("level", "count"), [(Level.METADATA, 0), (Level.REQUEST, 1), (Level.FULL, 1)])
def test_what_is_changed_by_level(level, count):
    body = b'{"data":{"a":"b"}}'
    found = targets("PATCH", f"{NS}/configmaps/a", body, level, "application/merge-patch+json")
    assert len(found) == count
    assert len(targets("DELETE", f"{NS}/configmaps/a", level=level)) == 1
