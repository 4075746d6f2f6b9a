import pytest

from addons.core import virtualstatus
from addons.core.virtualstatus import Failure, Problem


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        pytest.param(Failure(403, "x", "m"), "Forbidden", id="of the gateway's own"),
        pytest.param(Failure(406, "x", "m"), "NotAcceptable", id="406"),
        pytest.param(Failure(409, "x", "m"), "Conflict", id="409"),
        pytest.param(Failure(409, "x", "m", reason="AlreadyExists"), "AlreadyExists", id="the other 409"),
        pytest.param(Failure(410, "x", "m"), "Expired", id="410"),
        pytest.param(Failure(422, "x", "m"), "Invalid", id="422"),
    ],
)
def test_reasons(failure, reason):
    found = virtualstatus.failed(failure)
    assert (found["code"], found["reason"], found["status"]) == (failure.code, reason, "Failure")


def test_details():
    found = virtualstatus.failed(Failure(404, "x", 'no "such"\nthing', "approvals", "apr-1"))
    assert found["details"] == {"name": "apr-1", "group": "tollgate.dev", "kind": "approvals"}
    assert found["message"] == "no 'such' thing"


def test_kubectl_prints_the_causes_of_what_is_invalid():
    found = virtualstatus.failed(Failure(422, "x", "spec.decision: is Approved or Denied", "approvals"))
    assert found["details"]["causes"] == [
        {"reason": "FieldValueInvalid", "field": "spec.decision", "message": "is Approved or Denied"}
    ]


def test_a_done_delete_names_no_uid():
    # kubectl delete would else wait for the object to go.
    assert virtualstatus.done("grants", "grt-1") == {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {"name": "grt-1", "group": "tollgate.dev", "kind": "grants"},
    }  # fmt: skip


def test_problem():
    problem = Problem(404, "no-such-path", "sentence")
    assert str(problem) == "sentence"
    assert problem.failure == Failure(404, "no-such-path", "sentence")
