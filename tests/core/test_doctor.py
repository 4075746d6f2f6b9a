import datetime

import pytest

from addons.core import doctor
from addons.core.doctor import Finding, Level

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("levels", "normal", "strict"),
    [
        pytest.param([], 0, 0, id="nothing"),
        pytest.param([Level.OK], 0, 0, id="good"),
        pytest.param([Level.OK, Level.NOTE], 0, 1, id="what could not be told"),
        pytest.param([Level.WARNING], 0, 1, id="a warning"),
        pytest.param([Level.PROBLEM, Level.OK], 1, 1, id="a problem"),
    ],
)
def test_exit_code(levels, normal, strict):
    found = [Finding("x", level, "text") for level in levels]
    assert doctor.exit_code(found, strict=False) == normal
    assert doctor.exit_code(found, strict=True) == strict


def test_report():
    found = [Finding("a", Level.PROBLEM, "bad", "mend it"), Finding("b", Level.OK, "good")]
    assert doctor.report(found, strict=False) == {
        "exitCode": 1,
        "findings": [
            {"check": "a", "level": "problem", "text": "bad", "cure": "mend it"},
            {"check": "b", "level": "ok", "text": "good"},
        ],
    }
    assert doctor.counted(found) == {Level.OK: 1, Level.NOTE: 0, Level.WARNING: 0, Level.PROBLEM: 1}


@pytest.mark.parametrize(
    ("ahead", "level"),
    [
        pytest.param(0.9, Level.OK, id="whole seconds"),
        pytest.param(-6, Level.WARNING, id="behind"),
        pytest.param(29, Level.WARNING, id="within the grace"),
        pytest.param(31, Level.PROBLEM, id="ahead"),
        pytest.param(-3600, Level.PROBLEM, id="an hour behind"),
    ],
)
def test_clock(ahead, level):
    assert doctor.clock(ahead).level is level


@pytest.mark.parametrize(
    ("days", "level"),
    [
        pytest.param(-1, Level.PROBLEM, id="expired"),
        pytest.param(0, Level.PROBLEM, id="now"),
        pytest.param(29, Level.WARNING, id="soon"),
        pytest.param(31, Level.OK, id="later"),
    ],
)
def test_certificate(days, level):
    found = doctor.certificate("c", "it", NOW + datetime.timedelta(days=days), NOW, "renew")
    assert found.level is level
    assert found.cure == ("" if level is Level.OK else "renew")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
    ],
)
def test_listed(words, text):
    assert doctor.listed(words, 3) == text


def test_count():
    assert doctor.count([1], "user") == "1 user"
    assert doctor.count([], "user") == "0 users"
