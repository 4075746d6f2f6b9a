"""Whether an approver could read himself what he is shown, by scripted answers; real ones are in tests/e2e."""

from dataclasses import replace

import pytest

from addons.core.approvals import Record, Requester
from addons.core.model import Identity
from addons.net.apiserver import Answer, ApiServerError
from addons.net.rights import Rights, attributes

WHO = Identity("bob", groups=("oncall",))
RECORD = Record(
    "apr-1", "uid", Requester("agent"), "d", (), 0.0, 900.0, resource="deployments.apps/scale", namespace="shop"
)


@pytest.mark.parametrize(
    ("resource", "namespace", "asked"),
    [
        pytest.param("deployments.apps/scale", "shop", ("apps", "deployments", "shop"), id="subresource"),
        pytest.param("secrets", "shop", ("", "secrets", "shop"), id="core"),
        pytest.param("namespaces", "", ("", "namespaces", ""), id="cluster-wide"),
        pytest.param("widgets.a.example.com", "", ("a.example.com", "widgets", ""), id="a group with dots"),
        pytest.param("/metrics", "", None, id="no resource"),
        pytest.param("", "", None, id="nothing"),
    ],
)
def test_attributes(resource, namespace, asked):
    found = attributes(replace(RECORD, resource=resource, namespace=namespace))
    assert found == (asked and {"verb": "get", "group": asked[0], "resource": asked[1], "namespace": asked[2]})


class Server:
    """Answers as it is told, and counts."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def request(self, method, path, **more):
        self.asked.append(more)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


ALLOWED = Answer(201, b'{"status":{"allowed":true}}')


@pytest.mark.parametrize(
    ("answer", "may"),
    [
        pytest.param(ALLOWED, True, id="allowed"),
        pytest.param(Answer(201, b'{"status":{"allowed":false}}'), False, id="not allowed"),
        pytest.param(Answer(201, b'{"status":{"allowed":true,"denied":true}}'), False, id="denied as well"),
        pytest.param(Answer(201, b'{"status":{"allowed":"true"}}'), False, id="a word instead of a truth"),
        pytest.param(Answer(403, b'{"status":{"allowed":true}}'), False, id="refused"),
        pytest.param(Answer(201, b"[]"), False, id="no object"),
        pytest.param(Answer(201, b"<html>"), False, id="no JSON"),
        pytest.param(ApiServerError("late"), False, id="late"),
    ],
)
async def test_what_nobody_can_tell_he_may_not(answer, may):
    server = Server(answer)
    assert await Rights(server).may_read(WHO, RECORD) is may
    assert server.asked[0]["identity"] is WHO  # with his own rights, not the gateway's


async def test_without_a_server_nobody_may():
    assert await Rights(None).may_read(WHO, RECORD) is False


async def test_an_answer_is_believed_for_a_moment():
    now = [100.0]
    server = Server(ALLOWED, Answer(201, b'{"status":{"allowed":false}}'))
    rights = Rights(server, clock=lambda: now[0])
    assert await rights.may_read(WHO, RECORD)
    assert await rights.may_read(WHO, RECORD)
    assert len(server.asked) == 1
    now[0] += 10
    assert not await rights.may_read(WHO, RECORD)


async def test_another_person_is_asked_for_anew():
    server = Server(ALLOWED, Answer(201, b'{"status":{"allowed":false}}'))
    rights = Rights(server)
    assert await rights.may_read(WHO, RECORD)
    assert not await rights.may_read(replace(WHO, groups=()), RECORD)
