import asyncio
import json

import pytest

from addons.core.blast import Ask, Found, Item, What
from addons.core.model import Identity
from addons.core.status import Refused
from addons.net import counting
from addons.net.apiserver import Answer, ApiServerError

WHO = Identity("agent")
PODS = Ask(What.LIST, resource="pods", namespace="shop")


def meta(name, namespace="shop", **more):
    return {"metadata": {"name": name, "namespace": namespace, **more}}


def page(*items, **metadata):
    return {"metadata": metadata, "items": list(items)}


class Server:
    """An API server of a few paths; `{}` is an empty list, a number a refusal, an exception itself."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []
        self.identities = set()

    async def request(self, method, path, *, purpose, headers, identity, **_):
        assert (method, purpose) == ("GET", "counting")
        self.asked.append((path, headers.get("Accept", "")))
        self.identities.add(identity.username if identity else None)
        answer = self.answers.get(path.partition("?")[0], 404)
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
        if isinstance(answer, int):
            return Answer(answer, b'{"kind":"Status"}')
        return Answer(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode())


async def count(server, ask, seconds=5.0):
    return await counting.Counter(server, WHO, frozenset()).answer(ask, seconds)


async def test_a_list():
    applied = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    owners = [{"kind": "Thing"}, {"kind": "ReplicaSet", "controller": True}]
    items = (meta("a", annotations=applied), meta("b", ownerReferences=owners, deletionTimestamp="now"))
    server = Server({"/api/v1/namespaces/shop/pods": page(*items)})
    ask = Ask(What.LIST, resource="pods", namespace="shop", label_selector="a in (b,c)", field_selector="x=y")
    assert await count(server, ask) == Found(
        (Item("", "pods", "shop", "a", applied=True), Item("", "pods", "shop", "b", "ReplicaSet", leaving=True))
    )
    target = "/api/v1/namespaces/shop/pods?limit=500&labelSelector=a%20in%20%28b%2Cc%29&fieldSelector=x%3Dy"
    assert server.asked == [(target, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")]
    assert server.identities == {"agent"}  # with the caller's rights, not the gateway's


async def test_pages():
    pages = [page(meta("a"), **{"continue": "t+/="}), page(meta("b"))]
    server = Server({"/api/v1/namespaces/shop/pods": pages})
    assert len((await count(server, PODS)).items) == 2
    assert server.asked[1][0].endswith("&continue=t%2B/%3D") or server.asked[1][0].endswith("&continue=t%2B%2F%3D")


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        pytest.param({"remainingItemCount": 700}, ({"pods": 700}, True), id="the server says how many more"),
        pytest.param({}, ({}, False), id="with a selector it does not"),
    ],
)
async def test_too_many_pages(metadata, found):
    pages = [page(meta(str(n)), **{"continue": "x"}, **metadata) for n in range(9)]
    answer = await count(Server({"/api/v1/namespaces/shop/pods": pages}), PODS)
    assert (len(answer.items), dict(answer.counts), answer.complete) == (counting.PAGES, *found)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(403, id="forbidden"),
        pytest.param(404, id="not there"),
        pytest.param(500, id="broken"),
        pytest.param(302, id="sent elsewhere"),
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="half"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b'{"items": [1, null, "x"], "metadata": 3}', id="nonsense inside"),
        pytest.param(ApiServerError("unreachable"), id="unreachable"),
        pytest.param(Refused(403, "identity-not-a-header", "x"), id="an identity that no header carries"),
    ],
)
@pytest.mark.parametrize("what", [What.LIST, What.DEFINITION, What.DEPENDENTS, What.ORPHANS])
async def test_what_cannot_be_counted_is_unknown(answer, what):
    """Never zero: an empty answer would let a mass delete pass."""
    ask = Ask(what, "apps", "v1", "deployments", "shop", "web")
    paths = ["/api/v1/namespaces/shop/pods", "/apis/apps/v1/namespaces/shop/deployments"]
    paths += ["/apis/apps/v1/namespaces/shop/replicasets", "/apis/apps/v1/namespaces/shop/deployments/web"]
    found = await count(Server(dict.fromkeys(paths, answer)), ask)
    gone = what is What.DEPENDENTS and answer == 404
    assert (found == Found()) if gone else (found is None or found.items or not found.complete)


async def test_late_is_unknown():
    server = Server({"/api/v1/namespaces/shop/pods": asyncio.Event()})
    assert await count(server, PODS, 0.02) is None


def resource(name, scope="Namespaced", verbs=("list",)):
    return {"resource": name, "scope": scope, "verbs": list(verbs)}


def group(name, *versions, **more):
    return {
        "metadata": {"name": name},
        "versions": [{"version": v, "resources": list(resources), **more} for v, resources in versions],
    }


INSIDE = {
    "/api": page(
        group("", ("v1", (resource("pods"), resource("events"), resource("bindings", verbs=["create"]),
                          resource("nodes", "Cluster"), resource("secrets"))))
    ),
    "/apis": page(
        group("apps", ("v1", (resource("deployments"),)), ("v1beta1", (resource("deployments"),))),
        group("metrics.k8s.io", ("v1beta1", (resource("pods"),))),
    ),
    "/api/v1/namespaces/shop/pods": page(meta("a"), remainingItemCount=2),
    "/api/v1/namespaces/shop/secrets": page(),
    "/apis/apps/v1/namespaces/shop/deployments": page(meta("a")),
}  # fmt: skip
NAMESPACE = Ask(What.NAMESPACE, namespace="shop")


async def test_a_namespace_by_kind():
    server = Server(dict(INSIDE))
    assert await count(server, NAMESPACE) == Found(counts={"pods": 3, "deployments.apps": 1})
    lists = [path for path, _ in server.asked if "namespaces" in path]
    # Pods first; one version of each; no events, no metrics, nothing that cannot be listed.
    assert lists == [
        f"{path}?limit=1"
        for path in (
            "/api/v1/namespaces/shop/pods",
            "/apis/apps/v1/namespaces/shop/deployments",
            "/api/v1/namespaces/shop/secrets",
        )
    ]


async def test_a_kind_that_may_not_be_listed_leaves_the_others():
    server = Server({**INSIDE, "/api/v1/namespaces/shop/secrets": 403})
    left = frozenset({"secrets"})
    counts = {"pods": 3, "deployments.apps": 1}
    assert await count(server, NAMESPACE) == Found(counts=counts, complete=False, uncounted=left)


async def test_a_namespace_that_takes_too_long_keeps_what_it_has():
    server = Server({**INSIDE, "/api/v1/namespaces/shop/secrets": asyncio.Event()})
    left = frozenset({"secrets"})
    counts = {"pods": 3, "deployments.apps": 1}
    assert await count(server, NAMESPACE, 0.1) == Found(counts=counts, complete=False, uncounted=left)


async def test_an_extension_that_is_down_is_not_nothing():
    pages = page(group("x.io", ("v1", ()), freshness="Stale"))
    assert (await count(Server({**INSIDE, "/apis": pages}), NAMESPACE)).complete is False


async def test_a_namespace_without_discovery():
    assert await count(Server({"/api": 403, "/apis": 403}), NAMESPACE) is None


async def test_custom_resources():
    ask = Ask(What.DEFINITION, "apiextensions.k8s.io", "v1", "customresourcedefinitions", "", "things.x.io")
    versions = [{"name": "v1", "served": False}, {"name": "v2", "served": True}]
    spec = {"group": "x.io", "names": {"plural": "things"}, "versions": versions}
    answers = {
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/things.x.io": {"spec": spec},
        "/apis/x.io/v2/things": page(meta("a")),
    }
    assert await count(Server(answers), ask) == Found((Item("x.io", "things", "shop", "a"),))


DEPLOYMENT = "/apis/apps/v1/namespaces/shop/deployments/web"


async def test_the_pods_of_a_workload():
    spec = {"selector": {"matchLabels": {"a": "b"}}}
    server = Server({DEPLOYMENT: {"spec": spec}, "/api/v1/namespaces/shop/pods": page(meta("p"))})
    assert (await count(server, Ask(What.DEPENDENTS, "apps", "v1", "deployments", "shop", "web"))).items == (
        Item("", "pods", "shop", "p"),
    )
    assert server.asked[-1][0].endswith("pods?limit=500&labelSelector=a%3Db")


async def test_the_pods_of_a_custom_resource():
    thing = "/apis/x.io/v1/namespaces/shop/things/t"
    answers = {thing: {"spec": {}}, f"{thing}/scale": {"status": {"selector": "a=b"}}}
    server = Server({**answers, "/api/v1/namespaces/shop/pods": page(meta("p"))})
    assert len((await count(server, Ask(What.DEPENDENTS, "x.io", "v1", "things", "shop", "t"))).items) == 1


async def test_orphans_of_a_deployment_are_replicasets_as_well():
    lists = {
        "/api/v1/namespaces/shop/pods": page(meta("p")),
        "/apis/apps/v1/namespaces/shop/replicasets": page(meta("r")),
    }
    ask = Ask(What.ORPHANS, "apps", "v1", "deployments", "shop", "", "a=b")
    found = await count(Server(lists), ask)
    assert {item.resource for item in found.items} == {"pods", "replicasets"}


@pytest.mark.parametrize(
    ("where", "metadata_only"),
    [
        pytest.param(("", "v1", "secrets"), True, id="of a Secret nothing else"),
        pytest.param(("apps", "v1", "deployments"), False, id="of a Deployment its spec"),
    ],
)
async def test_the_live_object(where, metadata_only):
    ask = Ask(What.LIVE, *where, "shop", "x")
    path = f"{'/apis/apps' if where[0] else '/api'}/v1/namespaces/shop/{where[2]}/x"
    server = Server({path: meta("x")})
    assert await count(server, ask) == Found(live=meta("x"))
    assert ("PartialObjectMetadata" in server.asked[0][1]) is metadata_only
    assert await count(Server({}), ask) == Found(live=None)  # a 404 is an answer: it will be created
    assert await count(Server({path: 403}), ask) is None


async def test_names_are_quoted():
    server = Server({})
    await count(server, Ask(What.LIVE, "", "v1", "secrets", "shop", "../x?y"))
    assert server.asked[0][0] == "/api/v1/namespaces/shop/secrets/..%2Fx%3Fy"
