import pytest

from addons.core import canonical, requestinfo
from addons.core.status import Refused


def info(method, url):
    target = canonical.read(method, url)
    return requestinfo.parse(method, target.path, target.query)


@pytest.mark.parametrize(
    ("method", "url", "expected"),  # verb group version namespace resource subresource name
    [
        pytest.param("GET", "/api/v1/namespaces", "list  v1  namespaces  ", id="namespaces"),
        pytest.param(
            "GET", "/api/v1/namespaces/other", "get  v1 other namespaces  other", id="a namespace is in itself"
        ),
        pytest.param("GET", "/api/v1/namespaces/other/pods", "list  v1 other pods  ", id="list"),
        pytest.param("GET", "/api/v1/namespaces/other/pods/foo", "get  v1 other pods  foo", id="get"),
        pytest.param("HEAD", "/api/v1/namespaces/other/pods/foo", "get  v1 other pods  foo", id="head"),
        pytest.param("HEAD", "/api/v1/namespaces/other/pods", "list  v1 other pods  ", id="head of a list"),
        pytest.param("GET", "/api/v1/pods", "list  v1  pods  ", id="all namespaces"),
        pytest.param("POST", "/api/v1/namespaces/other/pods", "create  v1 other pods  ", id="create"),
        pytest.param("PUT", "/api/v1/namespaces/other/pods/foo", "update  v1 other pods  foo", id="update"),
        pytest.param("PATCH", "/api/v1/namespaces/other/pods/foo", "patch  v1 other pods  foo", id="patch"),
        pytest.param("DELETE", "/api/v1/namespaces/other/pods/foo", "delete  v1 other pods  foo", id="delete"),
        pytest.param("DELETE", "/api/v1/namespaces/other/pods", "deletecollection  v1 other pods  ", id="collection"),
        pytest.param(
            "DELETE",
            "/api/v1/nodes?fieldSelector=metadata.name%3Da",
            "deletecollection  v1  nodes  ",
            id="a field selector does not make a collection one object",
        ),
        pytest.param("DELETE", "/api/v1/namespaces/x", "delete  v1 x namespaces  x", id="delete namespace"),
        pytest.param("DELETE", "/api/v1/namespaces", "deletecollection  v1  namespaces  ", id="all namespaces gone"),
        pytest.param("GET", "/api/v1/watch/pods", "watch  v1  pods  ", id="watch by prefix"),
        pytest.param(
            "GET", "/api/v1/watch/namespaces/other/pods", "watch  v1 other pods  ", id="watch by prefix, namespace"
        ),
        pytest.param("GET", "/api/v1/watch/namespaces/o/pods/p", "watch  v1 o pods  p", id="watch by prefix, name"),
        pytest.param(
            "GET", "/api/v1/proxy/namespaces/o/pods/p/x", "proxy  v1 o pods  p", id="old proxy verb: no subresource"
        ),
        pytest.param("GET", "/api/v1/proxy/nodes/n", "proxy  v1  nodes  n", id="old proxy verb, node"),
        pytest.param("PUT", "/api/v1/namespaces/x/finalize", "update  v1 x namespaces finalize x", id="finalize"),
        pytest.param("PUT", "/api/v1/namespaces/x/status", "update  v1 x namespaces status x", id="namespace status"),
        pytest.param("GET", "/api/v1/namespaces/x/scale", "list  v1 x scale  ", id="scale is no namespace subresource"),
        pytest.param("GET", "/api/v1/namespaces/x/pods/p/log", "get  v1 x pods log p", id="subresource"),
        pytest.param("POST", "/api/v1/namespaces/x/pods/p/exec", "create  v1 x pods exec p", id="exec by POST"),
        pytest.param("GET", "/api/v1/namespaces/x/pods/p/proxy/a/b", "get  v1 x pods proxy p", id="proxy tail"),
        pytest.param(
            "GET", "/apis/apps/v1/namespaces/x/deployments/d/scale", "get apps v1 x deployments scale d", id="group"
        ),
        pytest.param("GET", "/apis/apps/v1/deployments", "list apps v1  deployments  ", id="group, all namespaces"),
        pytest.param("GET", "/api/v1/pods?watch", "watch  v1  pods  ", id="watch alone"),
        pytest.param("GET", "/api/v1/pods?watch=", "watch  v1  pods  ", id="watch empty"),
        pytest.param("GET", "/api/v1/pods?watch=no", "watch  v1  pods  ", id="watch=no watches"),
        pytest.param("GET", "/api/v1/pods?watch=00", "watch  v1  pods  ", id="watch=00 watches"),
        pytest.param("GET", "/api/v1/pods?watch=0", "list  v1  pods  ", id="watch=0"),
        pytest.param("GET", "/api/v1/pods?watch=False", "list  v1  pods  ", id="watch=False"),
        pytest.param("GET", "/api/v1/pods?watch=fal%C5%BFe", "list  v1  pods  ", id="Go folds the long s too"),
        pytest.param(
            "GET", "/api/v1/pods?watch=fal%C5%BFe&limit=x", "watch  v1  pods  ", id="but not when options err"
        ),
        pytest.param("GET", "/api/v1/pods/p?watch=1", "get  v1  pods  p", id="a named get never watches"),
        pytest.param(
            "GET", "/api/v1/pods?fieldSelector=metadata.name%3Dp", "list  v1  pods  p", id="field selector names"
        ),
        pytest.param(
            "GET", "/api/v1/pods?fieldSelector=metadata.name%3D%3Dp&watch", "watch  v1  pods  p", id="with =="
        ),
        pytest.param("GET", "/api/v1/pods?fieldSelector=metadata.name!%3Dp", "list  v1  pods  ", id="with !="),
        pytest.param("GET", "/api/v1/pods?fieldSelector=metadata.name%3Da/b", "list  v1  pods  ", id="no path segment"),
        pytest.param("GET", "/api/v1/pods?fieldSelector=metadata.name%3D..", "list  v1  pods  ", id="dot dot"),
        pytest.param(
            "GET",
            "/api/v1/pods?fieldSelector=metadata.name%3Db,metadata.name%3Da",
            "list  v1  pods  a",
            id="the first in sorted order",
        ),
        pytest.param(
            "GET", "/api/v1/pods?fieldSelector=metadata.name%3Da%5C%2Cb", "list  v1  pods  a,b", id="escaped comma"
        ),
        pytest.param("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dp,x", "list  v1  pods  ", id="broken selector"),
        pytest.param(
            "GET", "/api/v1/pods?fieldSelector=metadata.name%3Dp&limit=x", "list  v1  pods  ", id="broken limit"
        ),
        pytest.param(
            "GET",
            "/api/v1/pods?fieldSelector=metadata.name%3Dp&labelSelector=a%3D%3D%3Db",
            "list  v1  pods  ",
            id="broken labels",
        ),
        pytest.param("GET", "/apis/apps/v1", "get        ", id="version page"),
        pytest.param("POST", "/healthz", "post        ", id="outside the api"),
    ],
)
def test_parse(method, url, expected):
    found = info(method, url)
    got = [
        found.verb,
        found.api_group,
        found.api_version,
        found.namespace,
        found.resource,
        found.subresource,
        found.name,
    ]
    assert got == (expected.split(" ") if found.is_resource_request else [expected.split(" ")[0], *[""] * 6])


def test_selectors_only_where_the_server_reads_them():
    query = "?fieldSelector=a%3Db&labelSelector=c"
    assert info("GET", f"/api/v1/pods{query}").field_selector == "a=b"
    assert info("DELETE", f"/api/v1/pods{query}").label_selector == "c"
    assert info("GET", f"/api/v1/pods/p{query}").field_selector == ""
    assert info("GET", f"/api/v1/watch/pods{query}").label_selector == ""
    assert info("POST", f"/api/v1/pods{query}").label_selector == ""


@pytest.mark.parametrize("url", ["/api/v1/watch", "/apis/apps/v1/proxy"])
def test_special_verb_without_resource(url):
    with pytest.raises(Refused) as e:
        info("GET", url)
    assert e.value.refusal.cause == "path-incomplete"


@pytest.mark.parametrize(
    ("selector", "valid"),
    [
        pytest.param("a", True, id="exists"),
        pytest.param("!a", True, id="not exists"),
        pytest.param("!a=b", False, id="not exists with a value"),
        pytest.param("a=b,c!=d,e==f", True, id="equalities"),
        pytest.param("a=", True, id="empty value"),
        pytest.param("a in (b, c),d notin ()", True, id="sets"),
        pytest.param("a in (,b,,)", True, id="sets with empty values"),
        pytest.param("in in (in)", True, id="keywords as words"),
        pytest.param("a in (b c)", False, id="no comma"),
        pytest.param("a in b", False, id="no brackets"),
        pytest.param("a>1,b<2", True, id="numbers"),
        pytest.param("a>x", False, id="no number"),
        pytest.param("a,", False, id="comma last"),
        pytest.param(",a", False, id="comma first"),
        pytest.param("a b", False, id="two words"),
        pytest.param("x.y/z=1", True, id="prefix"),
        pytest.param("X.y/z=1", False, id="prefix in capitals"),
        pytest.param("x/y/z", False, id="two prefixes"),
        pytest.param("-a", False, id="begins with a dash"),
        pytest.param("a" * 64, False, id="long key"),
        pytest.param("a=" + "b" * 64, False, id="long value"),
        pytest.param(" a = b ", True, id="spaces"),
        pytest.param("", True, id="empty"),
    ],
)
def test_label_selector(selector, valid):
    assert requestinfo.is_label_selector(selector) is valid
