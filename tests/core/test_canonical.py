from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import canonical
from addons.core.status import Refused

PODS = "/api/v1/namespaces/x/pods"


def cause(method, target):
    with pytest.raises(Refused) as e:
        canonical.check_target(method, target)
    message = e.value.refusal.message
    assert message.isprintable()
    assert not {'"', "\\"} & set(message)  # clients escape these
    return e.value.refusal.code, e.value.refusal.cause


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("/", id="root"),
        pytest.param("/api", id="discovery"),
        pytest.param(f"{PODS}/p1", id="object"),
        pytest.param("/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node", id="colon, as Go writes it"),
        pytest.param("/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode", id="colon, as Python writes it"),
        pytest.param("/apis/rbac.authorization.k8s.io/v1/clusterroles/a%20b", id="space"),
        pytest.param("/apis/rbac.authorization.k8s.io/v1/clusterroles/%C3%A4", id="letter outside ascii"),
        pytest.param("/api/v1/namespaces/x/services/https:web:443/proxy", id="service with port"),
        pytest.param(f"{PODS}/..p", id="name that begins with dots"),
        pytest.param("/debug/pprof/", id="slash at the end of a page outside the api"),
        pytest.param("/healthz?verbose", id="key without value"),
        pytest.param(f"{PODS}?fieldSelector=metadata.name%3Dp1&resourceVersion=0&watch=true", id="kubectl get -w"),
        pytest.param(f"{PODS}?labelSelector=a+in+%28b%2Cc%29", id="plus for space"),
        pytest.param(
            f"{PODS}/p/exec?command=sh&command=-c&command=a%0Ab%09c&stdin=true", id="command is a list, of lines"
        ),
        pytest.param(f"{PODS}/p/portforward?ports=1&ports=2", id="ports is a list"),
        pytest.param(f"{PODS}?a=1&a=2", id="a key that means nothing, twice"),
        pytest.param(
            f"{PODS}/p/proxy/a//b/%7euser/x.html?q=1&q=2&watch=1&watch=2", id="tail and query of a proxied program"
        ),
        pytest.param("/api/v1/nodes/n1:10250/proxy/metrics/", id="node proxy, slash at the end"),
        pytest.param(f"{PODS}/p/proxy/", id="empty tail"),
    ],
)
def test_passes(target):
    canonical.check_target("GET", target)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, id=m or "empty")
        for m in ("get", "Delete", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "", "GET ")
    ],
)
def test_method_refused(method):
    assert cause(method, "/api") == (405, "method-unknown")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def test_method_passes(method):
    canonical.check_target(method, "/api")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param("//api/v1/pods", "path-not-canonical", id="two slashes first"),
        pytest.param("/api/v1/namespaces//pods", "path-not-canonical", id="empty namespace lists all of them"),
        pytest.param("/api/./v1/pods", "path-not-canonical", id="dot"),
        pytest.param("/api/v1/namespaces/x/../y/pods", "path-not-canonical", id="dot dot"),
        pytest.param("/api/v1/namespaces/x/pods/..", "path-not-canonical", id="dot dot last"),
        pytest.param("/api/v1/namespaces/x%2Fpods", "path-not-canonical", id="%2F separates over there"),
        pytest.param("/api/v1/namespaces/x%2fpods", "path-not-canonical", id="%2f"),
        pytest.param("/api/v1/%2e%2e/v1", "path-not-canonical", id="%2e"),
        pytest.param("/api/v1/%2E%2E/v1", "path-not-canonical", id="%2E"),
        pytest.param("/api%5Cv1", "path-not-canonical", id="%5C"),
        pytest.param("/%61pi/v1/pods", "path-not-canonical", id="needlessly escaped letter"),
        pytest.param("/api/v1/namespaces/x/%73ecrets", "path-not-canonical", id="escaped resource"),
        pytest.param("/api/v1/pods/a%2Db", "path-not-canonical", id="needlessly escaped dash"),
        pytest.param("/api/v1/pods/a;b=c", "path-not-canonical", id="semicolon"),
        pytest.param("/api/v1/pods/a%3Bb", "path-not-canonical", id="%3B"),
        pytest.param("/api\\v1", "path-not-canonical", id="backslash"),
        pytest.param("/api/v1/pods/a%00", "path-not-canonical", id="NUL"),
        pytest.param("/api/v1/pods/a%0A", "path-not-canonical", id="line feed"),
        pytest.param("/api/v1/pods/a%7F", "path-not-canonical", id="delete"),
        pytest.param("/api/v1/pods/a%C2%85", "path-not-canonical", id="C1 control"),
        pytest.param("/api/v1/pods/a%E2%80%A8", "path-not-canonical", id="line separator"),
        pytest.param("/api/v1/pods/a\x00", "path-not-canonical", id="raw NUL"),
        pytest.param("/api/v1/pods/a\n", "path-not-canonical", id="raw line feed at the end"),
        pytest.param("/api/v1/pods/a b", "path-not-canonical", id="raw space"),
        pytest.param("/api/v1/pods/ä", "path-not-canonical", id="raw letter outside ascii"),
        pytest.param("/api/v1/pods#x", "path-not-canonical", id="fragment"),
        pytest.param("/api/v1/pods/a%23", "path-not-canonical", id="%23"),
        pytest.param("/api/v1/pods/a%3Fwatch=1", "path-not-canonical", id="%3F"),
        pytest.param("/api/v1/pods/a%252F", "path-not-canonical", id="escaped twice"),
        pytest.param("/api/v1/pods/a%3a", "path-not-canonical", id="lower-case escape"),
        pytest.param("/api/v1/pods/a%", "path-not-canonical", id="lone percent"),
        pytest.param("/api/v1/pods/a%G0", "path-not-canonical", id="no hexadecimal"),
        pytest.param("/api/v1/pods/a%FF", "path-not-canonical", id="not utf-8"),
        pytest.param("/api/v1/namespaces/x/configmaps/", "path-not-canonical", id="slash at the end: the collection"),
        pytest.param("/apis/", "path-not-canonical", id="slash after a prefix"),
        pytest.param("http://other/api", "target-form", id="absolute form"),
        pytest.param("*", "target-form", id="asterisk form"),
        pytest.param("other:443", "target-form", id="authority form"),
        pytest.param("", "target-form", id="empty"),
        pytest.param("/" + "a" * canonical.MAX_TARGET, "target-too-long", id="too long"),
        pytest.param(f"{PODS}/p/proxy/../../../../../secrets", "path-not-canonical", id="out of a proxy tail"),
        pytest.param(f"{PODS}/p/proxy/%2e%2e/x", "path-not-canonical", id="out of it, escaped"),
        pytest.param(f"{PODS}/p/proxy/a%2F..%2Fb", "path-not-canonical", id="out of it, slash escaped"),
        pytest.param(f"{PODS}/p/proxy/%252e%252e/x", "path-not-canonical", id="out of it, escaped twice"),
        pytest.param(f"{PODS}/p/proxy/a%5C..%5Cb", "path-not-canonical", id="out of it by backslash"),
        pytest.param(f"{PODS}/p/proxy/.%3B/x", "path-not-canonical", id="dot with parameters"),
        pytest.param(f"{PODS}/p/proxy/x%00", "path-not-canonical", id="NUL in a tail"),
        pytest.param("/api/v1/namespaces/../pods/p/proxy/x", "path-not-canonical", id="before a proxy"),
        pytest.param(f"{PODS}/p/exec/../x", "path-not-canonical", id="only proxy has a tail"),
    ],
)
def test_path_refused(target, expected):
    assert cause("GET", target) == (400, expected)


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("watch=0&watch=1", id="watch twice"),
        pytest.param("dryRun=All&dryRun=All", id="dryRun twice"),
        pytest.param("fieldSelector=a%3Db&x=1&fieldSelector=", id="fieldSelector twice"),
        pytest.param("Watch=1", id="another case"),
        pytest.param("DRYRUN=All", id="capitals"),
        pytest.param("Command=sh", id="command in another case"),
        pytest.param("watc%68=1", id="escaped key"),
        pytest.param("dry%52un=All", id="escaped key, capital"),
        pytest.param("a=1;dryRun=All", id="semicolon: Go drops the pair"),
        pytest.param("a=%zz", id="broken escape"),
        pytest.param("a=%", id="lone percent"),
        pytest.param("a=%ff", id="not utf-8"),
        pytest.param("fieldSelector=a%00", id="NUL"),
        pytest.param("command=a%00", id="NUL in a command"),
        pytest.param("x=%0a", id="line feed"),
        pytest.param("labelSelector=a%0Ab", id="line feed in a selector"),
        pytest.param("a=b#c", id="fragment"),
        pytest.param("a=b c", id="raw space"),
        pytest.param("a=ä", id="raw letter"),
        pytest.param("a=\\", id="backslash"),
        pytest.param("&".join(f"a{i}" for i in range(1001)), id="too many"),
        pytest.param("ſtdin=1", id="a letter that folds to s, raw"),
        pytest.param("%C5%BFtdin=1", id="a letter that folds to s"),
    ],
)
def test_query_refused(query):
    assert cause("GET", f"{PODS}?{query}") == (400, "query-not-canonical")


def test_a_namespace_called_proxy_is_no_proxy():
    # The exception for proxied programs must not open for anything that has the word in its path.
    assert cause("GET", "/api/v1/namespaces/proxy/pods?watch=0&watch=1") == (400, "query-not-canonical")
    assert cause("GET", "/api/v1/namespaces/proxy/pods/") == (400, "path-not-canonical")


def test_read_decodes():
    target = canonical.read("GET", "/api/v1/pods/a%20b?labelSelector=a%3Db+c&watch&=x")
    assert target.path == "/api/v1/pods/a b"
    assert target.query == (("labelSelector", "a=b c"), ("watch", ""), ("", "x"))


@given(st.text(max_size=20))
def test_what_passes_has_one_decoding(tail):
    raw = "/" + tail
    try:
        path = canonical.read("GET", raw).path
    except Refused:
        return
    assert path == unquote(raw.partition("?")[0])
    assert unquote(path) == path  # decoding twice changes nothing
    assert not {"", ".", ".."} & set(path.rstrip("/").split("/")[1:])
    assert ";" not in path
    assert "\\" not in path


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=20))
def test_every_escaped_query_value_comes_back(value):
    try:
        query = canonical.read("GET", f"/api/v1/pods?labelSelector={quote(value, safe='')}").query
    except Refused:
        assert any(ord(c) < 32 or ord(c) == 127 for c in value)
    else:
        assert query == (("labelSelector", value),)
