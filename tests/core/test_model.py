import dataclasses

import pytest

from addons.core import model
from addons.core.model import Action, Impact, Operation, RequestInfo, Verdict


def test_a_verdict_nobody_gave_denies():
    assert Verdict().action is Action.DENY
    assert max(Action) is Action.DENY


def test_severity_is_the_worst_impact():
    info = RequestInfo(verb="get", path="/")
    assert Operation(info, "GET", frozenset({Impact.READ, Impact.EXECUTE})).severity is Impact.EXECUTE
    assert [i.word for i in sorted(Impact)] == [
        "meta", "read", "write", "reveal", "delete", "mass-delete", "execute", "escalate",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        pytest.param({"resource": "pods"}, "pods", id="core"),
        pytest.param({"resource": "pods", "subresource": "exec"}, "pods/exec", id="subresource"),
        pytest.param({"resource": "deployments", "api_group": "apps"}, "deployments.apps", id="group"),
        pytest.param(
            {"resource": "deployments", "api_group": "apps", "subresource": "scale"},
            "deployments.apps/scale",
            id="both",
        ),
        pytest.param({}, "", id="none"),
    ],
)
def test_full_resource(parts, shown):
    assert RequestInfo(verb="get", path="/", **parts).full_resource == shown


def test_values_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.ANONYMOUS.username = "root"


def test_a_body_is_not_shown():
    info = RequestInfo(verb="create", path="/")
    assert "hunter2" not in repr(Operation(info, "POST", frozenset({Impact.WRITE}), body={"data": "hunter2"}))
