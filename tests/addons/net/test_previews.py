import asyncio
import json
import logging
from dataclasses import replace

import pytest

from addons.core import digests
from addons.core.approvals import Item
from addons.core.classify import classify
from addons.core.model import Identity, Reach
from addons.core.previews import UNCOUNTED
from addons.core.status import Refused
from addons.net.apiserver import Answer, ApiServerError
from addons.net.objects import Request
from addons.net.previews import Checked, Previewer

AGENT = Identity("agent", groups=("bots",))
NS = "/api/v1/namespaces/shop"
POD = f"{NS}/pods/web-1"
WEB = "/apis/apps/v1/namespaces/shop/deployments/web"
SECRET = f"{NS}/secrets/db"
THING = "/apis/x.io/v1/namespaces/shop/things/t"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/things.x.io"
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


def a_status(code, message="no"):
    return Answer(code, json.dumps({"kind": "Status", "code": code, "message": message}).encode())


def an_object(spec=None, code=200, uid="u1", version="7", **more):
    metadata = {"name": "web", "uid": uid, "resourceVersion": version}
    return Answer(code, json.dumps({"kind": "Thing", "metadata": metadata, "spec": spec or {}, **more}).encode())


def a_list(*items, **metadata):
    return Answer(200, json.dumps({"metadata": metadata, "items": list(items)}).encode())


class Server:
    """An API server of some paths (method and path, or path). None never answers, an exception is raised."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    async def request(self, method, target, *, purpose, body=None, headers=None, identity=None, **_):
        self.asked.append((method, target, identity.username if identity else None))
        path = target.partition("?")[0]
        answer = self.answers.get(f"{method} {path}", self.answers.get(path, a_status(404)))
        if callable(answer):
            answer = answer(body)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, BaseException):
            raise answer
        return answer


def held(method, target, body=None, media="application/json", reach=None):
    raw = b"" if body is None else json.dumps(body).encode()
    media = media if raw else ""
    operation = classify(method, target, {"content-type": media} if raw else {}, raw)
    return Request(method, target, media, raw), replace(operation, reach=reach)


PATCH = ("PATCH", WEB, {"spec": {"replicas": 5}}, MERGE)


async def preview(answers, *request, seconds=2.0, **more):
    server = answers if isinstance(answers, Server) else Server(answers)
    late = 0.05 if None in server.answers.values() else seconds
    return await Previewer(server, AGENT).preview(*held(*request, **more), late)


async def again(answers, seen, *request, drift=0, digest="d", **more):
    server = answers if isinstance(answers, Server) else Server(answers)
    item = Item(digest, "what", seen.uid, seen.resource_version, seen.result)
    late = 0.05 if None in server.answers.values() else 2.0
    return await Previewer(server, AGENT).again(*held(*request, **more), item, seen.content, drift, late)


# ----- writes -----

WRITE = {f"PATCH {WEB}": an_object({"replicas": 5}), f"GET {WEB}": an_object({"replicas": 3})}


async def test_a_patch():
    server = Server(WRITE)
    seen = await preview(server, *PATCH)
    assert "-  replicas: 3\n+  replicas: 5" in seen.preview.diff
    assert (seen.uid, seen.resource_version, len(seen.result)) == ("u1", "7", 64)
    assert (seen.preview.notes, seen.refusal, seen.content, seen.items) == ((), None, None, ())
    # As the caller, and as a dry run.
    assert sorted(server.asked) == [("GET", WEB, "agent"), ("PATCH", f"{WEB}?dryRun=All", "agent")]


async def test_a_create():
    target = f"{NS}/configmaps"
    server = Server({f"POST {target}": an_object({"a": 1}, 201)})
    seen = await preview(server, "POST", target, {"metadata": {"name": "web"}})
    assert "+  a: 1" in seen.preview.diff
    assert "uid" not in seen.preview.diff
    assert (seen.uid, seen.resource_version) == ("", "")
    assert [method for method, _, _ in server.asked] == ["POST"]


async def test_an_apply_that_creates():
    seen = await preview(
        {f"PATCH {WEB}": an_object({"a": 1}, 201), f"GET {WEB}": a_status(404)}, "PATCH", WEB, {}, APPLY
    )
    assert "+  a: 1" in seen.preview.diff
    assert seen.uid == ""


@pytest.mark.parametrize("code", [403, 404, 409, 422])
async def test_what_the_api_server_refuses_is_the_clients_answer(code):
    seen = await preview({**WRITE, f"PATCH {WEB}": a_status(code)}, *PATCH)
    assert seen.refusal.code == code


@pytest.mark.parametrize(
    ("answers", "note"),
    [
        pytest.param(
            {f"PATCH {WEB}": None}, "diff could not be computed: the API server did not answer within", id="late"
        ),
        pytest.param(
            {f"PATCH {WEB}": a_status(500)}, "diff could not be computed: the API server answers 500", id="its error"
        ),
        pytest.param(
            {f"PATCH {WEB}": ApiServerError("10.0.0.1")},
            "diff could not be computed: the API server did not answer",
            id="down",
        ),
        pytest.param(
            {f"PATCH {WEB}": RuntimeError("odd")},
            "diff could not be computed: the gateway failed to fetch it",
            id="ours",
        ),
        pytest.param(
            {f"GET {WEB}": a_status(403)},
            "live object could not be computed: the API server answers 403",
            id="no right",
        ),
        pytest.param(
            {f"GET {WEB}": None}, "live object could not be computed: the API server did not answer", id="late to show"
        ),
        pytest.param(
            dict.fromkeys((f"PATCH {WEB}", f"GET {WEB}"), Refused(403, "x", "y")),
            "your identity cannot be impersonated",
            id="no header",
        ),
    ],
)
async def test_what_could_not_be_had_is_said(answers, note, caplog):
    seen = await preview({**WRITE, **answers}, *PATCH)
    assert any(note in one for one in seen.preview.notes), seen.preview.notes
    assert "+  replicas: 5" in seen.preview.diff  # the request itself, at least
    assert "the request itself" in seen.preview.diff
    assert seen.refusal is None
    assert "10.0.0.1" not in str(seen.preview)


async def test_without_a_dry_run_the_live_object_is_what_counts():
    """A JSON patch that copies does what the object makes it do."""
    request = ("PATCH", THING, {"spec": {"a": 1}}, MERGE)
    seen = await preview({f"GET {THING}": an_object({"a": 0})}, *request)
    assert seen.result.startswith("live:")
    assert "could not be computed: a dry run of it is not known to be one" in seen.preview.notes[0]
    assert "+  a: 1" in seen.preview.diff
    assert await again({f"GET {THING}": an_object({"a": 0}, version="8")}, seen, *request) == Checked()
    assert await again({f"GET {THING}": an_object({"a": 2})}, seen, *request) == Checked(why="the object changed since")


async def test_a_token_is_never_tried():
    target = f"{NS}/serviceaccounts/x/token"
    server = Server({f"GET {NS}/serviceaccounts/x": an_object()})
    seen = await preview(server, "POST", target, {"spec": {"expirationSeconds": 600}})
    assert server.asked == [("GET", f"{NS}/serviceaccounts/x", "agent")]
    assert "could not be computed: a dry run of it is not known to be one" in seen.preview.notes[0]
    assert seen.uid == "u1"


async def test_an_apply_without_a_dry_run_that_creates():
    request = ("PATCH", THING, {"spec": {"a": 1}}, APPLY)
    seen = await preview({}, *request)
    assert seen.result == "live:absent"
    assert await again({}, seen, *request) == Checked()
    assert (await again({f"GET {THING}": an_object()}, seen, *request)).why == "the object is there meanwhile"


async def test_a_patch_of_what_is_not_there():
    assert (await preview({}, "PATCH", THING, {}, MERGE)).refusal.code == 404


async def test_secrets_are_not_shown_nor_logged(caplog):
    caplog.set_level(logging.DEBUG)
    live, after = (an_object(data={"password": value}) for value in ("aHVudGVyMg==", "aHVudGVyMw=="))
    request = ("PATCH", SECRET, {"stringData": {"password": "hunter3"}}, MERGE)
    for answers in (
        {f"PATCH {SECRET}": after, f"GET {SECRET}": live},
        {f"PATCH {SECRET}": a_status(500), f"GET {SECRET}": live},
        {f"PATCH {SECRET}": RuntimeError("aHVudGVyMw=="), f"GET {SECRET}": live},
    ):
        seen = await preview(answers, *request)
        assert "password: **masked**" in seen.preview.diff.replace("'", "")
        for text in (repr(seen), caplog.text):
            assert "aHVudGVy" not in text
            assert "hunter" not in text


async def test_what_a_pod_template_reaches():
    template = {"template": {"spec": {"serviceAccountName": "deployer", "hostNetwork": True}}}
    answers = {f"PATCH {WEB}": an_object(template), f"GET {WEB}": an_object()}

    def review(body):
        attributes = body["spec"]["resourceAttributes"]
        return Answer(201, json.dumps({"status": {"allowed": attributes["resource"] == "secrets"}}).encode())

    server = Server({**answers, REVIEWS: review})
    seen = await preview(server, "PATCH", WEB, {"spec": template}, MERGE)
    assert "runs as ServiceAccount shop/deployer, with its API token mounted" in seen.preview.notes
    assert "reaches the node: hostNetwork" in seen.preview.notes
    assert "ServiceAccount shop/deployer may read Secrets everywhere, read Secrets in shop" in seen.preview.notes
    assert {who for _, target, who in server.asked if target == REVIEWS} == {None}


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        pytest.param(a_status(403), "the gateway may not create subjectaccessreviews", id="no right"),
        pytest.param(a_status(500), "the API server answers 500", id="its error"),
        pytest.param(ApiServerError("10.0.0.1"), "the API server did not answer, or not in time", id="down"),
        pytest.param(None, "the API server did not answer within", id="late"),
        pytest.param(Answer(201, b"[]"), "the API server did not answer", id="nonsense"),
    ],
)
async def test_rights_that_nobody_tells(answer, note):
    seen = await preview({f"GET {POD}": an_object(), REVIEWS: answer}, "GET", f"{POD}/exec?command=ls")
    (said,) = [one for one in seen.preview.notes if "could not be computed" in one]
    assert note in said


# ----- release of a write -----


@pytest.mark.parametrize(
    ("now", "checked"),
    [
        pytest.param({}, Checked(), id="the same"),
        pytest.param({f"GET {WEB}": an_object({"replicas": 3}, version="9", status={"x": 1})}, Checked(), id="noise"),
        pytest.param(
            {f"PATCH {WEB}": an_object({"replicas": 5, "image": "evil"})},
            Checked("the object changed since, and the request would do something else"),
            id="another result",
        ),
        pytest.param(
            {f"GET {WEB}": an_object(uid="u2")},
            Checked("the object was deleted since, and another has its name"),
            id="another object",
        ),
        pytest.param({f"GET {WEB}": a_status(404)}, Checked("the object is gone"), id="gone"),
        pytest.param(
            {f"PATCH {WEB}": a_status(422)}, Checked("the API server answers 422 to it now"), id="refused now"
        ),
        pytest.param(
            {f"PATCH {WEB}": an_object({"replicas": 5}, 201)},
            Checked("the object changed since, and the request would do something else"),
            id="it would create now",
        ),
        pytest.param(
            {f"GET {WEB}": a_status(403)},
            Checked("", "the object cannot be looked at now: the API server answers 403"),
            id="not readable now",
        ),
        pytest.param(
            {f"PATCH {WEB}": a_status(500)},
            Checked("", "its dry run cannot be repeated now: the API server answers 500"),
            id="its error",
        ),
        pytest.param(
            {f"PATCH {WEB}": ApiServerError("10.0.0.1")},
            Checked("", "its dry run cannot be repeated now: the API server did not answer, or not in time"),
            id="down",
        ),
        pytest.param(
            {f"GET {WEB}": RuntimeError()},
            Checked("", "the object cannot be looked at now: the gateway failed to fetch it"),
            id="an error of ours",
        ),
        pytest.param(
            {f"PATCH {WEB}": a_status(500), f"GET {WEB}": a_status(404)},
            Checked("the object is gone"),
            id="surely another",
        ),
    ],
)
async def test_again(now, checked):
    seen = await preview(WRITE, *PATCH)
    assert await again({**WRITE, **now}, seen, *PATCH) == checked


async def test_again_in_time():
    seen = await preview(WRITE, *PATCH)
    checked = await again({**WRITE, f"PATCH {WEB}": None}, seen, *PATCH)
    assert "did not answer within" in checked.unknown
    assert not checked.why


async def test_again_in_parallel():
    """One round trip: the client has waited long enough."""
    both = asyncio.Barrier(2)

    class Together(Server):
        async def request(self, *arguments, **more):
            await both.wait()
            return await super().request(*arguments, **more)

    seen = await preview(WRITE, *PATCH)
    assert await again(Together(WRITE), seen, *PATCH) == Checked()


async def test_a_dry_run_that_was_approved_is_never_left_out():
    """The same approval for what classify reads otherwise by now."""
    seen = await preview(WRITE, *PATCH)
    checked = await again({f"GET {THING}": an_object()}, seen, "PATCH", THING, {}, MERGE)
    assert checked.unknown == "the dry run that was approved cannot be repeated"


# ----- deletes -----


async def test_a_delete():
    request = ("DELETE", POD)
    seen = await preview({f"GET {POD}": an_object()}, *request)
    assert (dict(seen.preview.counts), seen.preview.names) == ({"pods": 1}, ("shop/web-1",))
    assert (seen.uid, seen.result, seen.items) == ("u1", "", ())
    assert await again({f"GET {POD}": an_object({"x": 1}, version="9")}, seen, *request) == Checked()
    assert "another has its name" in (await again({f"GET {POD}": an_object(uid="u2")}, seen, *request)).why
    assert (await again({f"GET {POD}": a_status(404)}, seen, *request)).why == "the object is gone"
    assert (await again({f"GET {POD}": a_status(500)}, seen, *request)).unknown


async def test_a_delete_of_what_is_not_there():
    assert (await preview({}, "DELETE", POD)).refusal.code == 404


async def test_a_delete_of_what_may_not_be_read():
    seen = await preview({f"GET {POD}": a_status(403)}, "DELETE", POD)
    assert "a yes counts for whatever has this name then" in seen.preview.notes[0]
    assert await again({}, seen, "DELETE", POD) == Checked()


async def test_a_client_that_names_another_object():
    request = ("DELETE", POD, {"preconditions": {"uid": "u9"}})
    seen = await preview({f"GET {POD}": an_object()}, *request)
    assert "another object" in (await again({f"GET {POD}": an_object()}, seen, *request)).why


OBJECTS = tuple(("", "pods", "shop", f"web-{n}", f"u{n}") for n in range(1, 4))


async def test_a_fan_out():
    reach = Reach({"pods": 3}, ("shop/web-1", "shop/web-2", "shop/web-3"), objects=OBJECTS)
    options = {"propagationPolicy": "Background"}
    request = ("DELETE", POD, options)
    seen = await preview({f"GET {POD}": an_object()}, *request, reach=reach)
    assert dict(seen.preview.counts) == {"pods": 3}
    assert [item.uid for item in seen.items] == ["u1", "u2", "u3"]
    assert [item.what for item in seen.items] == [f"delete pod shop/web-{n}" for n in (1, 2, 3)]
    for n, item in enumerate(seen.items, 1):
        target = f"{NS}/pods/web-{n}"
        came, operation = held("DELETE", target, options)
        assert item.digest == digests.of(operation, "DELETE", target, came.content_type, came.body)
    assert seen.preview.notes == ()


async def test_a_fan_out_of_more_than_was_listed():
    reach = Reach({"pods": 900}, (), exact=False, objects=OBJECTS)
    seen = await preview({f"GET {POD}": an_object()}, "DELETE", POD, reach=reach)
    assert "one yes covers the 3 objects" in seen.preview.notes[0]


def claim(name, size="1Gi"):
    return {"metadata": {"namespace": "shop", "name": name}, "status": {"capacity": {"storage": size}}}


async def test_volumes_have_a_size():
    target = f"{NS}/persistentvolumeclaims/data"
    answers = {
        f"GET {target}": an_object(),
        f"{NS}/persistentvolumeclaims": a_list(claim("data", "9Gi"), claim("other")),
    }
    seen = await preview(answers, "DELETE", target)
    assert seen.preview.notes == ("volumes: shop/data (9Gi)",)
    seen = await preview({**answers, f"{NS}/persistentvolumeclaims": a_status(403)}, "DELETE", target)
    assert seen.preview.notes == ("the size of volumes could not be computed: the API server answers 403",)


def kinds(*names):
    resources = [{"resource": name, "scope": "Namespaced", "verbs": ["list"]} for name in names]
    return a_list({"metadata": {"name": ""}, "versions": [{"version": "v1", "resources": resources}]})


def item(name, uid=""):
    return {"metadata": {"namespace": "shop", "name": name, "uid": uid or name}}


INSIDE = {
    f"GET {NS}": an_object(),
    "/api": kinds("pods", "secrets", "persistentvolumeclaims"),
    "/apis": a_list(),
    f"{NS}/pods": a_list(item("web-1"), item("web-2")),
    f"{NS}/secrets": a_list(item("db")),
    f"{NS}/persistentvolumeclaims": a_list(claim("data", "9Gi")),
    "/apis/apps/v1/namespaces/shop/deployments": a_list(item("web")),
}


async def test_a_namespace():
    seen = await preview(INSIDE, "DELETE", NS)
    assert seen.content == {"pods": 2, "secrets": 1, "persistentvolumeclaims": 1}
    assert dict(seen.preview.counts) == {"namespaces": 1, **seen.content}
    assert seen.preview.names == ("deployment shop/web", "pod shop/web-1", "pod shop/web-2")
    assert seen.preview.notes == ("volumes: shop/data (9Gi)",)
    assert (seen.uid, seen.preview.exact) == ("u1", True)


@pytest.mark.parametrize(
    ("now", "drift", "text"),
    [
        pytest.param({}, 0, "", id="the same"),
        pytest.param({f"{NS}/pods": a_list()}, 0, "", id="less"),
        pytest.param({f"{NS}/secrets": a_list(item("db"), item("new"))}, 0, "1 secrets", id="one more"),
        pytest.param({f"{NS}/secrets": a_list(item("db"), item("new"))}, 1, "", id="one more within the drift"),
        pytest.param(
            {f"{NS}/persistentvolumeclaims": a_list(claim("data"), claim("more"))},
            9,
            "1 more persistentvolumeclaims",
            id="a volume more",
        ),
        pytest.param({f"GET {NS}": an_object(uid="u2")}, 9, "another has its name", id="another namespace"),
    ],
)
async def test_a_namespace_again(now, drift, text):
    seen = await preview(INSIDE, "DELETE", NS)
    checked = await again({**INSIDE, **now}, seen, "DELETE", NS, drift=drift)
    assert checked.unknown == ""
    assert text in checked.why if text else checked.why == ""


@pytest.mark.parametrize(
    "now",
    [
        pytest.param({f"{NS}/secrets": a_status(403)}, id="a kind may not be listed"),
        pytest.param({"/apis": a_status(503)}, id="discovery fails"),
        pytest.param({f"{NS}/secrets": None}, id="late"),
        pytest.param({f"GET {NS}": a_status(500)}, id="the namespace itself"),
    ],
)
async def test_a_namespace_that_cannot_be_counted_now(now):
    seen = await preview(INSIDE, "DELETE", NS)
    checked = await again({**INSIDE, **now}, seen, "DELETE", NS, drift=99)
    assert checked.unknown
    assert not checked.why


async def test_a_namespace_of_which_the_caller_sees_a_part():
    part = {**INSIDE, f"{NS}/secrets": a_status(403)}
    seen = await preview(part, "DELETE", NS)
    assert seen.content["secrets"] == UNCOUNTED
    assert not seen.preview.exact
    assert "could not be counted, so may be there in any number: secrets" in seen.preview.notes
    assert "secrets" not in seen.preview.counts
    assert await again(part, seen, "DELETE", NS) == Checked()
    assert "1 secrets" in (await again(INSIDE, seen, "DELETE", NS)).why


async def test_custom_resources():
    spec = {"group": "x.io", "names": {"plural": "things"}, "versions": [{"name": "v1", "served": True}]}
    answers = {f"GET {CRD}": an_object(spec), "/apis/x.io/v1/things": a_list(item("a"), item("b"))}
    seen = await preview(answers, "DELETE", CRD)
    assert seen.content == {"things.x.io": 2}
    assert seen.preview.names == ("shop/a", "shop/b")
    assert await again(answers, seen, "DELETE", CRD) == Checked()
    more = a_list(item("a"), item("b"), item("c"))
    assert "1 things.x.io" in (await again({**answers, "/apis/x.io/v1/things": more}, seen, "DELETE", CRD)).why


async def test_a_collection_is_bound_to_its_objects():
    request = ("DELETE", f"{NS}/pods?labelSelector=a%3Db")
    server = Server({f"{NS}/pods": a_list(item("a"), item("b"))})
    seen = await preview(server, *request)
    assert dict(seen.preview.counts) == {"pods": 2}
    assert seen.preview.names == ("shop/a", "shop/b")
    assert "labelSelector=a%3Db" in server.asked[0][1]
    assert await again({f"{NS}/pods": a_list(item("b"), item("a"))}, seen, *request) == Checked()
    others = a_list(item("a"), item("b", "another"))
    assert (await again({f"{NS}/pods": others}, seen, *request)).why == "other objects are in it than were shown"
    for unknown in (a_status(500), a_list(item("a"), **{"continue": "more"})):
        checked = await again({f"{NS}/pods": unknown}, seen, *request)
        assert checked == Checked(unknown="what is in it cannot be listed now")


# ----- streams and others -----


async def test_an_exec():
    request = ("GET", f"{POD}/exec?command=sh&command=-c&command=ls&stdout=true")
    pod = {
        "serviceAccountName": "x",
        "automountServiceAccountToken": False,
        "containers": [{"image": "a"}],
        "nodeName": "n",
    }
    server = Server({f"GET {POD}": an_object(pod)})
    seen = await preview(server, *request)
    assert seen.preview.argv == ("sh", "-c", "ls")
    assert seen.preview.notes == ("runs as ServiceAccount shop/x, without an API token",)
    assert server.asked == [("GET", POD, "agent")]
    assert await again({f"GET {POD}": an_object(pod, status={"x": 1})}, seen, *request) == Checked()
    assert await again({f"GET {POD}": an_object(pod)}, seen, "POST", request[1]) == Checked()
    assert "another has its name" in (await again({f"GET {POD}": an_object(pod, uid="u2")}, seen, *request)).why
    changed = {**pod, "containers": [{"image": "evil"}]}
    assert (await again({f"GET {POD}": an_object(changed)}, seen, *request)).why == "the pod changed since"


async def test_an_exec_into_what_is_not_there():
    assert (await preview({}, "GET", f"{POD}/exec?command=ls")).refusal.code == 404


async def test_an_exec_into_what_cannot_be_seen():
    seen = await preview({f"GET {POD}": None}, "GET", f"{POD}/exec?command=ls")
    assert "what it reaches could not be computed" in seen.preview.notes[0]
    assert seen.preview.argv == ("ls",)


async def test_a_service_behind_a_proxy():
    service = f"{NS}/services/web"
    seen = await preview({f"GET {service}": an_object()}, "POST", f"{service}/proxy/admin")
    assert seen.preview.notes == ("what the program behind the proxy does with it is not known beforehand",)
    assert (seen.uid, seen.result) == ("u1", "")


async def test_a_read_is_not_made():
    server = Server({})
    seen = await preview(server, "GET", SECRET)
    assert server.asked == []
    assert seen.preview.notes == ("it is a read: nothing is changed by it",)


async def test_a_page():
    assert "could not be computed" in (await preview({}, "POST", "/x")).preview.notes[0]


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(PATCH, id="write"),
        pytest.param(("DELETE", POD), id="delete"),
        pytest.param(("DELETE", NS), id="namespace"),
        pytest.param(("DELETE", f"{NS}/pods"), id="collection"),
        pytest.param(("GET", f"{POD}/exec?command=ls"), id="exec"),
    ],
)
async def test_nothing_answers(request_):
    """In time, with what is known, and never empty."""

    class Silent(Server):
        async def request(self, *_, **__):
            await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    start = loop.time()
    seen = await Previewer(Silent({}), AGENT).preview(*held(*request_), 0.1)
    assert loop.time() - start < 1
    assert any("could not be" in note for note in seen.preview.notes)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    await asyncio.wait(left, timeout=1) if left else None
    assert all(task.done() for task in left)
