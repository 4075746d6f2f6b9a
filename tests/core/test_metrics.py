"""What is measured, and that a client cannot make it grow."""

import pytest

from addons.core import metrics
from addons.core.doctor import Finding, Level
from addons.core.metrics import Bounded
from addons.core.model import Impact, Operation, RequestInfo

OPERATION = Operation(RequestInfo("delete", "/x"), "DELETE", frozenset({Impact.READ, Impact.MASS_DELETE}))


def test_names_are_prometheus_own():
    for key, metric in metrics.METRICS.items():
        assert metric.name == f"tollgate_{key}"
        assert metric.help.endswith(".")
        assert not metric.name.endswith("_total")  # the library adds it
        assert bool(metric.buckets) is (metric.kind == metrics.HISTOGRAM)
        assert list(metric.buckets) == sorted(metric.buckets)
        assert not set(metric.labels) & {"user", "username", "namespace", "name", "path", "source"}


def test_bounded():
    bounded = Bounded(2)
    assert [bounded(value) for value in "abcab"] == ["a", "b", metrics.OTHER, "a", "b"]


@pytest.mark.parametrize(
    ("operation", "word"),
    [
        pytest.param(None, "unknown", id="not classified"),
        pytest.param(OPERATION, "mass-delete", id="the worst"),
    ],
)
def test_impact(operation, word):
    assert metrics.impact_of(operation) == word
    assert word in metrics.IMPACTS


@pytest.mark.parametrize(
    ("known", "verdict"),
    [
        pytest.param({"released": True}, "allowed", id="allowed"),
        pytest.param({"released": True, "approval": "apr-1"}, "approved", id="approved"),
        pytest.param({"answered_by": "tollgate_block"}, "denied", id="block"),
        pytest.param({"answered_by": "tollgate_approve"}, "held", id="approve"),
        pytest.param({"answered_by": "tollgate_authenticate"}, "unauthenticated", id="authenticate"),
        pytest.param({"answered_by": "tollgate_guard"}, "refused", id="guard"),
        pytest.param({"judged": False}, "not-judged", id="nobody"),
        pytest.param({}, "refused", id="changed after the verdict"),
    ],
)
def test_verdict(known, verdict):
    found = metrics.verdict_of(**{"released": False, "approval": "", "answered_by": "", "judged": True, **known})
    assert found == verdict
    assert found in metrics.VERDICTS


@pytest.mark.parametrize(("code", "expected"), [(200, "2xx"), (404, "4xx"), (101, "1xx"), (999, "other"), (0, "other")])
def test_code_class(code, expected):
    assert metrics.code_class(code) == expected


def stamps(**at):
    return {(f"tollgate_{addon}", hook): time for hook, times in at.items() for addon, time in times.items()}


TIMES = stamps(
    requestheaders={"guard": 0.0, "authenticate": 0.1},
    request={"guard": 5.0, "authenticate": 5.1, "classify": 5.3, "block": 5.6, "approve": 8.6, "upstream": 8.8},
    responseheaders={"guard": 9.8, "upstream": 9.9},
    response={"approve": 20.0, "upstream": 20.2},
)


def test_phases():
    found = metrics.phases(TIMES, held=True)
    # 5 s of the client's own body are nobody's.
    assert {k: round(v, 3) for k, v in found.items()} == {
        "authenticate": 0.2,
        "classify": 0.2,
        "block": 0.3,
        "hold": 3.0,
        "upstream": 0.2,
        "api-server": 1.0,
        "answer": 0.3,
    }
    assert round(metrics.added(found), 3) == 1.2
    assert set(found) <= set(metrics.PHASES)
    assert "approve" in metrics.phases(TIMES, held=False)


def test_phases_of_what_was_refused_early():
    assert metrics.phases(stamps(requestheaders={"guard": 1.0}), held=False) == {}
    assert metrics.phases({}, held=False) == {}


def test_readiness():
    assert metrics.readiness([("a", True, ""), ("b", False, "no keys")]) == {
        "ready": False,
        "parts": {"a": {"ready": True}, "b": {"ready": False, "detail": "no keys"}},
        "checks": {},
    }
    assert metrics.readiness([("a", True, "")])["ready"] is True
    assert metrics.readiness([])["ready"] is False


FINDINGS = [
    Finding("clock", Level.OK, "they agree"),
    Finding("rights", Level.WARNING, "this credential can read every Secret of acme"),
    Finding("rights", Level.PROBLEM, "it is cluster-admin"),
    Finding("rights", Level.NOTE, "hm"),
    Finding("folders", Level.NOTE, "/var/lib/acme will be made"),
]


def test_what_the_doctor_finds_makes_nothing_not_ready():
    found = metrics.readiness([("a", True, "")], FINDINGS)
    assert found["ready"] is True
    assert found["checks"] == {"clock": "ok", "folders": "note", "rights": "problem"}  # the worst of each
    assert "acme" not in str(found)


def test_the_lines_of_kubernetes():
    found = metrics.readiness([("listener", True, ""), ("authenticate", False, "no keys of acme")], FINDINGS)
    assert metrics.verbose(found).splitlines() == [
        "[+]listener ok",
        "[-]authenticate failed: reason withheld",
        "[+]doctor/clock ok",
        "[+]doctor/folders ok",
        "[+]doctor/rights problem, see the log",
        "readyz check failed",
    ]
    assert metrics.verbose(metrics.readiness([("listener", True, "")])) == "[+]listener ok\nreadyz check passed\n"
    assert metrics.verbose({}) == "readyz check failed\n"


def test_findings_as_numbers():
    assert metrics.doctor_readings([*FINDINGS, Finding("rights", Level.PROBLEM, "and more")]) == [
        ("doctor_findings", ("clock", "ok"), 1),
        ("doctor_findings", ("folders", "note"), 1),
        ("doctor_findings", ("rights", "note"), 1),
        ("doctor_findings", ("rights", "problem"), 2),
        ("doctor_findings", ("rights", "warning"), 1),
    ]
