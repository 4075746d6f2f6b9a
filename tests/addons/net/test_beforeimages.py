import asyncio
import json

import pytest

from addons.core.beforeimages import NOTHING, Plan
from addons.core.model import Identity
from addons.net import beforeimages
from addons.net.apiserver import Answer, ApiServerError
from addons.net.objects import MAX_OBJECT, Fetcher

AGENT = Identity("agent", groups=("bots",))
NS = "/api/v1/namespaces/shop"
POD = f"{NS}/pods/web-1"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/things.x.io"


def an_answer(status, **content):
    return Answer(status, json.dumps(content).encode())


def a_status(code):
    return an_answer(code, kind="Status", code=code, message="no")


def an_object(name, **more):
    return an_answer(200, kind="Thing", apiVersion="x.io/v1", metadata={"name": name}, **more)


def a_list(*names, **metadata):
    items = [{"metadata": {"name": name}} for name in names]
    return an_answer(200, kind="ThingList", apiVersion="x.io/v1", metadata=metadata, items=items)


def kinds(group, *resources, stale=False):
    found = [{"resource": name, "scope": "Namespaced", "verbs": ["list"]} for name in resources]
    versions = [{"version": "v1", "resources": found, **({"freshness": "Stale"} if stale else {})}]
    return an_answer(200, kind="APIGroupDiscoveryList", items=[{"metadata": {"name": group}, "versions": versions}])


class Server:
    """An API server of some paths. None never answers, an exception is raised."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []
        self.at_once = self.most = 0

    async def request(self, method, target, *, purpose, body=None, headers=None, identity=None, **_):
        self.asked.append((method, target, identity.username if identity else None))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(0)
            answer = self.answers.get(target.partition("?")[0], a_status(404))
            if answer is None:
                await asyncio.Event().wait()
        finally:
            self.at_once -= 1
        if isinstance(answer, BaseException):
            raise answer
        return answer


async def fetch(answers, plan, seconds=2.0):
    server = answers if isinstance(answers, Server) else Server(answers)
    late = 0.05 if None in server.answers.values() else seconds
    return await beforeimages.fetch(Fetcher(server, AGENT, frozenset()), plan, late)


def names(images):
    return [one["metadata"]["name"] for _, one in images.objects]


async def test_nothing_is_asked():
    server = Server({})
    assert await fetch(server, Plan()) is NOTHING
    assert server.asked == []


async def test_the_live_object():
    server = Server({POD: an_object("web-1", spec={"a": 1})})
    found = await fetch(server, Plan((POD,)))
    ((target, content),) = found.objects
    assert (target, content["spec"], found.complete, found.troubles) == (POD, {"a": 1}, True, ())
    assert server.asked == [("GET", POD, "agent")]  # as the identity


async def test_a_collection():
    target = f"{NS}/things?labelSelector=a&limit=100"
    found = await fetch({f"{NS}/things": a_list("a", "b", **{"continue": "x"})}, Plan((target,)))
    assert names(found) == ["a", "b"]
    assert found.objects[0][1]["kind"] == "Thing"
    assert (found.complete, found.troubles) == (False, (f"before: {NS}/things: 2 of at least 2",))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        pytest.param(a_status(404), "", id="not there"),
        pytest.param(a_status(403), "the API server answers 403", id="not readable"),
        pytest.param(a_status(500), "the API server answers 500", id="its error"),
        pytest.param(
            ApiServerError("10.0.0.1"), "the API server did not answer, or not in time", id="down, and no address"
        ),
        pytest.param(None, "the API server did not answer within 0.05 s", id="late"),
        pytest.param(Answer(200, b"x" * (MAX_OBJECT + 1)), f"it has more than {MAX_OBJECT} bytes", id="too large"),
        pytest.param(Answer(200, b"[]"), "the API server answers 200", id="no object"),
    ],
)
async def test_what_does_not_come_is_said(answer, why):
    found = await fetch({POD: answer}, Plan((POD,)))
    assert found.objects == ()
    assert found.troubles == ((f"before: {POD}: {why}",) if why else ())


async def test_an_error_of_ours(caplog):
    found = await fetch({POD: RuntimeError("hunter2")}, Plan((POD,)))
    assert found.troubles == ("before: the gateway failed to read it",)
    assert "RuntimeError" in caplog.text
    assert "hunter2" not in caplog.text


NAMESPACE = {
    NS: an_object("shop"),
    "/api": kinds("", "configmaps", "secrets", "events"),
    "/apis": kinds("x.io", "things"),
    f"{NS}/configmaps": a_list("c1", "c2"),
    f"{NS}/secrets": a_list("s1"),
    "/apis/x.io/v1/namespaces/shop/things": a_list("t1"),
    "/apis/apps/v1/namespaces/shop/deployments": a_list("web"),
}
GOES = Plan((NS,), namespace="shop")


async def test_a_namespace():
    """All kinds that there are in it, those of others included."""
    server = Server(NAMESPACE)
    found = await fetch(server, GOES)
    assert names(found) == ["shop", "c1", "c2", "s1", "t1"]
    assert (found.complete, found.troubles) == (True, ())
    assert {user for _, _, user in server.asked} == {"agent"}
    assert not any("events" in target for _, target, _ in server.asked)


@pytest.mark.parametrize(
    ("changed", "expected", "text"),
    [
        pytest.param(
            {f"{NS}/secrets": a_status(403)},
            ["shop", "c1", "c2", "t1"],
            f"before: {NS}/secrets: the API server answers 403",
            id="one kind is not readable",
        ),
        pytest.param(
            {"/apis": a_status(503)}, ["shop", "c1", "c2", "s1", "web"], "so only the usual ones", id="no discovery"
        ),
        pytest.param(
            {"/apis": kinds("x.io", "things", stale=True)},
            ["shop", "c1", "c2", "s1", "t1"],
            "an extension of the API server is down",
            id="a part of the discovery",
        ),
        pytest.param(
            {f"{NS}/secrets": None}, ["shop", "c1", "c2", "t1"], f"before: {NS}/secrets: the API server did", id="late"
        ),
        pytest.param({"/api": None}, ["shop"], "which kinds there are was not known within", id="discovery is late"),
        pytest.param({"/apis": Answer(200, b'{"items": 7}')}, ["shop"], "failed to read it", id="odd discovery"),
        pytest.param(
            {"/apis": kinds("x.io", *(f"k{n}" for n in range(70)))},
            ["shop", "c1", "c2", "s1"],
            "12 more kinds were not read",
            id="too many kinds",
        ),
    ],
)
async def test_a_namespace_in_part(changed, expected, text):
    found = await fetch({**NAMESPACE, **changed}, GOES)
    assert names(found) == expected
    assert text in " ".join(found.troubles)


async def test_not_all_at_once():
    server = Server({**NAMESPACE, "/apis": kinds("x.io", *(f"k{n}" for n in range(40)))})
    await fetch(server, GOES)
    assert len(server.asked) > 40
    assert server.most <= beforeimages.AT_ONCE + 2  # and the two of the discovery


async def test_custom_resources_go_with_their_definition():
    spec = {"group": "x.io", "names": {"plural": "things"}, "versions": [{"name": "v1", "served": True}]}
    answers = {CRD: an_object("things.x.io", spec=spec), "/apis/x.io/v1/things": a_list("a", "b")}
    assert names(await fetch(answers, Plan((CRD,), definition=True))) == ["things.x.io", "a", "b"]
    assert names(await fetch(answers, Plan((CRD,)))) == ["things.x.io"]
    del answers[CRD]
    assert await fetch(answers, Plan((CRD,), definition=True)) == NOTHING


@pytest.mark.parametrize("plan", [Plan((POD,)), GOES, Plan((CRD,), definition=True)])
async def test_nothing_is_left_behind(plan):
    await fetch(dict.fromkeys([POD, NS, CRD, "/api", "/apis"]), plan)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    await asyncio.wait(left, timeout=1) if left else None
    assert all(task.done() for task in left)
