import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import beforeimages
from addons.core.auditevents import MAX_BEFORE, MAX_IMAGES, Level
from addons.core.beforeimages import NOTHING, BeforeImages, Plan, Read
from addons.core.classify import classify

NS = "/api/v1/namespaces/shop"
POD = f"{NS}/pods/web-1"
WEB = "/apis/apps/v1/namespaces/shop/deployments/web"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/things.x.io"
JSON, MERGE = "application/json", "application/merge-patch+json"


def plan(method, target, body=b"", media="", level=Level.FULL):
    headers = {"content-type": media} if media else {}
    return beforeimages.plan(classify(method, target, headers, body), target, level)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(("DELETE", POD), Plan((POD,)), id="delete"),
        pytest.param(("DELETE", f"{POD}?gracePeriodSeconds=0"), Plan((POD,)), id="without its query"),
        pytest.param(("DELETE", POD, b"", "", Level.METADATA), Plan((POD,)), id="delete at every level"),
        pytest.param(("DELETE", f"{POD}?dryRun=All"), Plan(), id="nothing is deleted"),
        pytest.param(("POST", f"{POD}/eviction", b"{}", JSON), Plan((POD,)), id="eviction"),
        pytest.param(
            ("DELETE", f"{NS}/pods?labelSelector=a%3Db%26c&limit=3&fieldSelector=x%3Dy&dryRun="),
            Plan((f"{NS}/pods?labelSelector=a%3Db%26c&fieldSelector=x%3Dy&limit={MAX_IMAGES}",)),
            id="collection",
        ),
        pytest.param(("DELETE", "/api/v1/pods"), Plan((f"/api/v1/pods?limit={MAX_IMAGES}",)), id="of all namespaces"),
        pytest.param(("DELETE", NS), Plan((NS,), namespace="shop"), id="namespace"),
        pytest.param(("DELETE", CRD), Plan((CRD,), definition=True), id="definition"),
        pytest.param(("PATCH", WEB, b"{}", MERGE), Plan((WEB,)), id="patch"),
        pytest.param(("PUT", WEB, b"{}", JSON, Level.REQUEST), Plan((WEB,)), id="update"),
        pytest.param(("PATCH", WEB, b"{}", MERGE, Level.METADATA), Plan(), id="change at the lowest level"),
        pytest.param(("PATCH", f"{WEB}/scale", b"{}", MERGE), Plan((f"{WEB}/scale",)), id="scale"),
        pytest.param(("PATCH", NS, b"{}", MERGE), Plan((NS,)), id="a namespace that stays"),
        pytest.param(("PUT", f"{NS}/finalize", b"{}", JSON), Plan((NS,)), id="finalize"),
        pytest.param(("POST", f"{NS}/pods", b"{}", JSON), Plan(), id="create"),
        pytest.param(("GET", POD), Plan(), id="read"),
        pytest.param(("POST", f"{POD}/exec?command=ls"), Plan(), id="exec"),
        pytest.param(("DELETE", "/x"), Plan(), id="no resource"),
    ],
)
def test_plan(request_, expected):
    assert plan(*request_) == expected


def test_inside():
    kinds = [("x.io", "v2", "things"), ("", "v1", "pods"), ("apps", "v1", "deployments"), ("", "v1", "secrets")]
    assert beforeimages.inside("shop", kinds) == (
        (
            f"{NS}/secrets?limit=20",
            "/apis/apps/v1/namespaces/shop/deployments?limit=20",
            f"{NS}/pods?limit=100",
            "/apis/x.io/v2/namespaces/shop/things?limit=20",
        ),
        0,
    )


def test_inside_is_bounded():
    targets, left = beforeimages.inside("shop", [("x.io", "v1", f"k{n}") for n in range(70)] + [("", "v1", "secrets")])
    assert (len(targets), left) == (beforeimages.MAX_KINDS, 11)
    assert targets[0] == f"{NS}/secrets?limit=20"  # what is dearest is never left out


def test_usual():
    targets = beforeimages.usual("a b")
    assert targets[0] == "/api/v1/namespaces/a%20b/configmaps?limit=20"
    assert len(targets) == 14


def version(name, *, served=True, storage=False):
    return {"name": name, "served": served, "storage": storage}


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        pytest.param([version("v1")], "v1", id="one"),
        pytest.param([version("v1"), version("v2", storage=True)], "v2", id="the stored one"),
        pytest.param([version("v1"), version("v2", served=False, storage=True)], "v1", id="that is served"),
        pytest.param([version("v1", served=False)], None, id="none is served"),
        pytest.param(None, None, id="none"),
    ],
)
def test_defined(versions, expected):
    spec = {"group": "x.io", "names": {"plural": "things"}, "versions": versions}
    targets = (f"/apis/x.io/{expected}/things?limit={MAX_IMAGES}",) if expected else ()
    assert beforeimages.defined({"spec": spec}) == targets


@pytest.mark.parametrize("odd", [None, {}, {"spec": []}, {"spec": {"versions": [1, None]}}])
def test_an_odd_definition(odd):
    assert beforeimages.defined(odd) == ()


def test_it_is_masked_as_its_own_read():
    found = beforeimages.reading("/apis/x.io/v1/namespaces/shop/things?limit=20").info
    assert (found.verb, found.full_resource, found.namespace) == ("list", "things.x.io", "shop")
    found = beforeimages.reading(f"{NS}/secrets/db").info
    assert (found.verb, found.resource, found.name) == ("get", "secrets", "db")


def thing(name, size=0, **metadata):
    return {"metadata": {"name": name, **metadata}, "data": "x" * size}


def test_items_of_a_list():
    """A list says the kind once; managedFields are half of it, and nobody restores them."""
    listed = {
        "kind": "PodList",
        "apiVersion": "v1",
        "metadata": {"continue": "x"},
        "items": [thing("a", managedFields=[{}]), 7, thing("b")],
    }
    found = beforeimages.read(f"{NS}/pods?limit=2", listed, Plan())
    assert found.more
    assert found.objects == [{"apiVersion": "v1", "kind": "Pod", **thing(name)} for name in ("a", "b")]


def test_an_object_with_items_is_no_list():
    value = {"kind": "ShoppingList", "apiVersion": "x.io/v1", "metadata": {"name": "a"}, "items": [{"milk": 1}]}
    assert beforeimages.read(f"{NS}/things/a", value, Plan()).objects == (value,)


@pytest.mark.parametrize(
    ("resource", "namespace", "names"),
    [
        pytest.param("pods", "shop", ["bare"], id="made by others, which are there too"),
        pytest.param("replicasets", "shop", ["bare"], id="replicasets"),
        pytest.param("secrets", "shop", ["made", "bare"], id="what comes back otherwise"),
        pytest.param("pods", "", ["made", "bare"], id="deleted by themselves"),
    ],
)
def test_what_comes_back_from_its_controller(resource, namespace, names):
    made = thing("made", ownerReferences=[{"kind": "ReplicaSet", "controller": True}])
    bare = thing("bare", ownerReferences=[{"kind": "Node"}, 1])
    found = beforeimages.read(f"{NS}/{resource}?limit=9", {"items": [made, bare]}, Plan(namespace=namespace))
    assert [one["metadata"]["name"] for one in found.objects] == names


def names_of(images):
    return [one["metadata"]["name"] for _, one in images.objects]


def test_nothing_to_share():
    assert beforeimages.share([], ()) == NOTHING
    assert beforeimages.share([], ["why"]) == BeforeImages(troubles=("why",))


def test_everything_has_room():
    found = beforeimages.share([Read("/a", [thing("a1")]), Read("/b?limit=2", [thing("b1"), thing("b2")])], ())
    assert [target for target, _ in found.objects] == ["/a", "/b?limit=2", "/b?limit=2"]
    assert (found.complete, found.troubles) == (True, ())
    assert found.size > 100


def test_one_kind_does_not_hide_the_others():
    many = [thing(f"a{n}") for n in range(MAX_IMAGES)]
    found = beforeimages.share([Read("/a?limit=500", many), Read("/b?limit=1", [thing("b")], more=True)], ["why"])
    assert len(found.objects) == MAX_IMAGES
    assert names_of(found)[-1] == "b"
    assert not found.complete
    assert found.troubles == ("why", "before: /a: 99 of 100", "before: /b: 1 of at least 1")


def test_what_is_too_large_does_not_hide_the_others():
    found = beforeimages.share([Read("/a?x", [thing("a", MAX_BEFORE), thing("small")]), Read("/b", [thing("b")])], ())
    assert names_of(found) == ["small", "b"]
    assert found.troubles == ("before: /a: 1 of 2",)
    assert not found.complete


def test_what_is_said_is_bounded():
    found = beforeimages.share([Read(f"/{n}?limit=1", [], more=True) for n in range(30)], ["why"])
    assert len(found.troubles) == beforeimages.MAX_SAID
    assert found.troubles[0] == "why"
    assert found.troubles[-1] == "before: and 22 more kinds are not complete"


@given(st.lists(st.tuples(st.lists(st.integers(0, 700_000), max_size=5), st.booleans()), max_size=5))
def test_it_fits_and_says_what_is_missing(kinds):
    reads = [Read(f"/{n}?limit=5", [thing("x", size) for size in sizes], more) for n, (sizes, more) in enumerate(kinds)]
    found = beforeimages.share(reads, ())
    assert found.size <= MAX_BEFORE
    lost = sum(len(read.objects) for read in reads) - len(found.objects)
    assert found.complete is (not lost and not any(read.more for read in reads))
    assert found.complete is (not found.troubles)
