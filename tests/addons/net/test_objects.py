import asyncio
import json
import logging

import pytest

from addons.core import status
from addons.core.admission import NeedsObjects, Objects, ServerRefusal
from addons.core.classify import classify
from addons.core.model import Identity
from addons.net import objects
from addons.net.apiserver import Answer, ApiServerError

AGENT = Identity("agent", groups=("bots",))
WEB = "/apis/apps/v1/namespaces/shop/deployments/web"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
ALL = frozenset({"object", "oldObject", "namespaceObject"})


def a_status(code, message, reason="Invalid"):
    return Answer(code, json.dumps({"kind": "Status", "code": code, "reason": reason, "message": message}).encode())


def an_object(code=200, **fields):
    return Answer(code, json.dumps({"kind": "Thing", **fields}).encode())


class Server:
    """An API server that answers what it is told, and remembers what it was asked."""

    def __init__(self, **answers):
        self.answers = answers  # by purpose
        self.asked = {}

    async def request(self, method, path, *, purpose, body, headers, identity, forward_extra, timeout):  # noqa: ASYNC109
        self.asked[purpose] = (method, path, headers, body, identity, forward_extra)
        answer = self.answers[purpose]
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, BaseException):
            raise answer
        return answer


async def fetch(server, method="PATCH", target=f"{WEB}?fieldManager=x", media=MERGE, names=ALL, binding=ALL, body=None):
    content = b"" if method == "DELETE" else body or b'{"metadata": {"name": "web"}}'
    operation = classify(method, target, {"content-type": media} if content else {}, content)
    fetcher = objects.Fetcher(server, AGENT, frozenset({"team"}))
    request = objects.Request(method, target, media if content else "", content)
    return await fetcher.fetch(request, operation, NeedsObjects(names, binding), 0.05 if None in
                               server.answers.values() else 2)  # fmt: skip


GOOD = {"preview": an_object(a=1), "object": an_object(a=2), "namespace": an_object(a=3)}


async def test_all_three_as_the_identity():
    server = Server(**GOOD)
    found = await fetch(server)
    assert found == Objects(
        {"object": {"kind": "Thing", "a": 1}, "oldObject": {"kind": "Thing", "a": 2},
         "namespaceObject": {"kind": "Thing", "a": 3}}, {}, created=False,
    )  # fmt: skip
    headers = {"Accept": "application/json"}
    who = (AGENT, {"team"})
    assert server.asked == {
        # The very bytes, the very media type: the same bytes as another patch do something else.
        "preview": ("PATCH", f"{WEB}?dryRun=All&fieldManager=x", {**headers, "Content-Type": MERGE},
                    b'{"metadata": {"name": "web"}}', *who),
        "object": ("GET", WEB, headers, None, *who),
        "namespace": ("GET", "/api/v1/namespaces/shop", headers, None, *who),
    }  # fmt: skip


async def test_a_delete_is_never_previewed():
    server = Server(**GOOD)
    found = await fetch(server, "DELETE", f"{WEB}?dryRun=All")
    assert found.values["object"] is None
    assert set(server.asked) == {"object", "namespace"}
    assert server.asked["object"][1] == WEB


@pytest.mark.parametrize(
    ("server", "created", "old"),
    [
        pytest.param(
            {**GOOD, "preview": an_object(201), "object": a_status(404, "gone")}, True, None, id="it is not there yet"
        ),
        pytest.param(GOOD, False, {"kind": "Thing", "a": 2}, id="it is there"),
    ],
)
async def test_an_apply_shows_whether_it_creates(server, created, old):
    found = await fetch(Server(**server), media=APPLY)
    assert (found.created, found.values["oldObject"]) == (created, old)


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        pytest.param({"preview": a_status(403, "no rights")}, 403, id="RBAC"),
        pytest.param({"preview": a_status(422, "spec.replicas: Invalid")}, 422, id="admission"),
        pytest.param({"object": a_status(404, "deployments web not found")}, 404, id="nothing to patch"),
        pytest.param({"namespace": a_status(403, "no rights")}, 403, id="the namespace"),
    ],
)
async def test_what_the_api_server_refuses_is_the_answer(answers, code):
    found = await fetch(Server(**{**GOOD, **answers}))
    assert isinstance(found, ServerRefusal)
    assert (found.code, found.body) == (code, next(iter(answers.values())).body)


async def test_a_refusal_that_only_an_observing_policy_caused_is_nobodys_answer():
    found = await fetch(Server(**{**GOOD, "preview": a_status(422, "no")}), binding=frozenset({"oldObject"}))
    assert found.troubles == {"object": "the API server answers 422"}


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        pytest.param(ApiServerError("10.0.0.1 refused"), "the API server did not answer, or not in time", id="down"),
        pytest.param(None, "the API server did not answer within 0.05 s", id="late"),
        pytest.param(status.Refused(403, "x", "y"), "your identity cannot be impersonated", id="no header"),
        pytest.param(RuntimeError("odd"), "the gateway failed to fetch it", id="an error of ours"),
        pytest.param(asyncio.CancelledError(), "the gateway is going down", id="a cancelled task"),
        pytest.param(a_status(401, "who"), "the API server answers 401", id="our own credential"),
        pytest.param(a_status(429, "slowly"), "the API server answers 429", id="too many"),
        pytest.param(a_status(500, "oh"), "the API server answers 500", id="its own error"),
        pytest.param(Answer(200, b"[]"), "the API server answers 200", id="no object"),
        pytest.param(Answer(200, b"{"), "the API server answers 200", id="no JSON"),
        pytest.param(a_status(200, "deleted"), "the API server answers 200", id="a Status in place of an object"),
        pytest.param(Answer(302, b"{}"), "the API server answers 302", id="elsewhere"),
        pytest.param(Answer(200, b" " * (objects.MAX_OBJECT + 1)), "it has more than 4194304 bytes", id="too big"),
        pytest.param(
            a_status(400, 'admission webhook "w" does not support dry run', "BadRequest"),
            "an admission webhook does not support dry runs",
            id="a webhook with side effects",
        ),
    ],
)
async def test_what_cannot_be_had_is_said(answer, trouble):
    found = await fetch(Server(**{**GOOD, "preview": answer}))
    assert found.troubles == {"object": trouble}
    assert found.values.keys() == {"oldObject", "namespaceObject"}


async def test_a_namespace_that_is_not_there_is_null():
    found = await fetch(Server(**{**GOOD, "namespace": a_status(404, "gone")}))
    assert found.values["namespaceObject"] is None


async def test_no_content_type_is_json():
    # As for `create --raw`. The client library would say application/octet-stream: 415.
    server = Server(**GOOD)
    operation = classify("PUT", WEB, {}, b"{}")
    needs = NeedsObjects(frozenset({"object"}), ALL)
    await objects.Fetcher(server, None, frozenset()).fetch(objects.Request("PUT", WEB, "", b"{}"), operation, needs)
    assert server.asked["preview"][2]["Content-Type"] == "application/json"
    assert server.asked["preview"][4] is None


async def test_a_refused_change_of_a_secret_quotes_nothing(caplog):
    caplog.set_level(logging.DEBUG)
    server = Server(**{**GOOD, "preview": a_status(422, 'type: Invalid value: "hunter2"')})
    found = await fetch(server, target="/api/v1/namespaces/shop/secrets/web")
    assert (found.code, json.loads(found.body)["code"]) == (422, 422)
    assert b"hunter2" not in found.body
    assert "hunter2" not in caplog.text


async def test_nothing_fetched_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    await fetch(Server(**{**GOOD, "preview": an_object(data="hunter2"), "object": RuntimeError("hunter2")}))
    assert "hunter2" not in caplog.text
    assert "hunter2" not in repr(objects.read(an_object(data="hunter2")))
