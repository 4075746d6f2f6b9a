"""Our group in the API server's pages."""

import json

import pytest

from addons.core import virtualdiscovery
from addons.core.virtualdiscovery import NotMerged, merge_groups, merge_openapi

LEGACY = "application/json"
V2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


def legacy(*names):
    groups = [{"name": n, "versions": [{"groupVersion": f"{n}/v1", "version": "v1"}]} for n in names]
    return json.dumps({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}).encode()


def aggregated(*names, version="v2"):
    items = [{"metadata": {"name": n, "creationTimestamp": None}, "versions": [{"version": "v1"}]} for n in names]
    return json.dumps(
        {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": f"apidiscovery.k8s.io/{version}",
            "metadata": {},
            "items": items,
        }
    ).encode()


def index(*keys):
    return json.dumps({"paths": {k: {"serverRelativeURL": f"/openapi/v3/{k}?hash=X"} for k in keys}}).encode()


def test_legacy_groups():
    merged = merge_groups(legacy("apps", "batch"), LEGACY)
    groups = json.loads(merged.body)["groups"]
    assert ([g["name"] for g in groups], merged.dropped) == (["apps", "batch", "tollgate.dev"], False)
    version = {"groupVersion": "tollgate.dev/v1alpha1", "version": "v1alpha1"}
    assert groups[-1] == {"name": "tollgate.dev", "versions": [version], "preferredVersion": version}


@pytest.mark.parametrize("version", ["v2", "v2beta1"])
def test_aggregated_groups(version):
    merged = merge_groups(aggregated("apps", version=version), V2)
    apps, ours = json.loads(merged.body)["items"]
    assert apps["metadata"] == {"name": "apps", "creationTimestamp": None}
    (served,) = ours["versions"]
    assert (served["version"], served["freshness"]) == ("v1alpha1", "Current")
    assert served["resources"][0] == {
        "resource": "approvals",
        "responseKind": {"group": "tollgate.dev", "version": "v1alpha1", "kind": "Approval"},
        "scope": "Cluster",
        "singularResource": "approval",
        "verbs": ["delete", "get", "list", "patch", "update", "watch"],
        "shortNames": ["apr"],
        "categories": ["tollgate"],
    }


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(legacy("apps", "tollgate.dev"), LEGACY, id="legacy"),
        pytest.param(aggregated("tollgate.dev", "apps"), V2, id="aggregated"),
        pytest.param(aggregated("TOLLGATE.dev", "apps"), V2, id="in capitals"),
    ],
)
def test_a_real_group_of_that_name_is_dropped(body, content_type):
    merged = merge_groups(body, content_type)
    assert merged.dropped
    found = json.loads(merged.body)
    entries = found.get("groups") or found["items"]
    assert [entry.get("name") or entry["metadata"]["name"] for entry in entries] == ["apps", "tollgate.dev"]
    assert entries[1]["versions"][0]["version"] == "v1alpha1"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(b"k8s\0", "application/vnd.kubernetes.protobuf", id="protobuf"),
        pytest.param(b"{", LEGACY, id="broken"),
        pytest.param(b"[]", LEGACY, id="no object"),
        pytest.param(b'{"kind":"Status"}', LEGACY, id="a Status"),
        pytest.param(b'{"kind":"APIGroupList","groups":{}}', LEGACY, id="no list"),
        pytest.param(b'{"kind":"APIGroupList","groups":["x"]}', LEGACY, id="no groups"),
        pytest.param(aggregated(version="v3"), V2, id="a version of tomorrow"),
    ],
)
def test_what_is_not_merged(body, content_type):
    with pytest.raises(NotMerged):
        merge_groups(body, content_type)


def test_empty_lists():
    for body in (b'{"kind":"APIGroupList","groups":null}', b'{"kind":"APIGroupList"}'):
        assert len(json.loads(merge_groups(body, LEGACY).body)["groups"]) == 1


def test_openapi_index():
    merged = merge_openapi(index("api/v1", "apis/apps/v1"))
    paths = json.loads(merged.body)["paths"]
    assert list(paths) == ["api/v1", "apis/apps/v1", "apis/tollgate.dev/v1alpha1"]
    url = paths["apis/tollgate.dev/v1alpha1"]["serverRelativeURL"]
    assert url == f"/openapi/v3/apis/tollgate.dev/v1alpha1?hash={virtualdiscovery.openapi_hash()}"
    assert not merged.dropped


def test_openapi_of_a_real_group_is_dropped():
    merged = merge_openapi(index("apis/tollgate.dev", "apis/tollgate.dev/v1", "apis/tollgate.devel/v1"))
    assert merged.dropped
    assert list(json.loads(merged.body)["paths"]) == ["apis/tollgate.devel/v1", "apis/tollgate.dev/v1alpha1"]
    for body in (b"", b"{}", b'{"paths":[]}', b"\x0a\x05"):
        with pytest.raises(NotMerged):
            merge_openapi(body)


def test_own_pages():
    assert virtualdiscovery.group()["kind"] == "APIGroup"
    found = virtualdiscovery.resource_list()
    assert (found["kind"], found["groupVersion"]) == ("APIResourceList", "tollgate.dev/v1alpha1")
    assert {r["name"]: (r["kind"], r["namespaced"], "create" in r["verbs"]) for r in found["resources"]} == {
        "approvals": ("Approval", False, False),
        "accessrequests": ("AccessRequest", False, True),
        "grants": ("Grant", False, False),
        "revocations": ("Revocation", False, True),
    }


# ----- ETags -----


def test_etags_go_both_ways():
    out = virtualdiscovery.etag_out('"ABC"')
    assert out == f'"ABC-{virtualdiscovery.fingerprint()}"'
    assert virtualdiscovery.etag_in(out) == '"ABC"'
    assert virtualdiscovery.etag_in(f'W/"x", {out}, "y"') == '"ABC"'


@pytest.mark.parametrize(
    "client",
    [
        pytest.param('"ABC"', id="of the API server itself, whose page is another"),
        pytest.param('"ABC-0000000000000000"', id="of another version of ours"),
        pytest.param("*", id="any"),
        pytest.param("", id="none"),
        pytest.param("ABC", id="no quotes"),
    ],
)
def test_other_etags_ask_for_the_page(client):
    assert virtualdiscovery.etag_in(client) is None


@pytest.mark.parametrize(
    ("upstream", "out"), [("", ""), ("ABC", ""), ('W/"ABC"', f'"ABC-{virtualdiscovery.fingerprint()}"')]
)
def test_etag_out(upstream, out):
    assert virtualdiscovery.etag_out(upstream) == out
