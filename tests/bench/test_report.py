import json

import pytest

from tests.bench import __main__ as bench
from tests.bench import report
from tests.bench.report import Sample, Spread


def sample(way, number, rate, *, scenario="one", cpu=1.0, memory=100.0, failures=0):
    return Sample(way, scenario, number, rate, 1.0, 2.0, cpu, memory, failures)


SAMPLES = [
    sample("direct", 1, 1000, cpu=0, memory=0),
    sample("mitmdump", 1, 100),
    sample("tollgate", 1, 200, memory=120),
    sample("direct", 2, 400, cpu=0, memory=0),
    sample("mitmdump", 2, 40),
    sample("tollgate", 2, 60, failures=3),
    sample("mitmdump", 3, 10),
    sample("tollgate", 3, 10),
]


def test_the_ratio_is_that_of_each_round():
    assert report.ratio(SAMPLES, "tollgate", "one") == Spread(1.0, 1.5, 2.0)
    assert report.ratio(SAMPLES, "direct", "one") == Spread(10.0, 10.0, 10.0)
    assert report.ratio(SAMPLES, "tollgate", "another") is None
    assert report.ratio([sample("tollgate", 1, 5)], "tollgate", "one") is None  # nothing to compare with


def test_the_table():
    heading, direct, _, tollgate = report.rows(SAMPLES)
    assert direct == ["one", "direct", "700 (400–1000)", "10.00", "1.00", "2.0", "", "", "0"]
    assert tollgate == ["one", "tollgate", "60 (10–200)", "1.50", "1.00", "2.0", "1.00", "120", "3"]
    lines = report.text([heading, direct, tollgate]).splitlines()
    assert lines[0].startswith("scenario  way ")
    assert {len(line) for line in lines} == {len(lines[0])}


def test_the_document_and_the_picture(tmp_path):
    made = json.loads(json.dumps(report.document(SAMPLES, {"cores": 2}, {"watches": {}})))
    assert made["machine"] == {"cores": 2}
    assert made["summary"][2]["ratio"] == {"low": 1.0, "middle": 1.5, "high": 2.0}
    assert len(made["samples"]) == len(SAMPLES)
    pytest.importorskip("matplotlib", reason="installed by ./run.sh bench only")
    report.draw(SAMPLES, tmp_path / "x.png", "title")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "ways", "scenarios"),
    [
        pytest.param([], ["direct", "mitmdump", "tollgate"], 4, id="all"),
        pytest.param(["--peer", "x"], ["direct", "mitmdump", "tollgate", "peer"], 4, id="with a peer"),
        pytest.param(["--only", "tollgate, mitmdump", "--scenarios", "2,4"], ["tollgate", "mitmdump"], 2, id="some"),
    ],
)
def test_what_is_measured(arguments, ways, scenarios):
    found, chosen = bench.chosen(bench.parser().parse_args(arguments))
    assert found == ways
    assert len(chosen) == scenarios


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--only", "tolgate"], "no way 'tolgate'", id="misspelled"),
        pytest.param(["--only", "peer"], "with --peer PATH", id="a peer without a program"),
        pytest.param(["--scenarios", "5"], "'5' is not a number from 1 to 4", id="no such scenario"),
        pytest.param(["--seconds", "0"], "more than 0", id="no time"),
        pytest.param(["--curves", "rules,rulez"], "no curve 'rulez'", id="no such curve"),
        pytest.param(["--large", "--million"], "one of them at a time", id="two things"),
        pytest.param(["--large", "--size", "0"], "--size must be more than 0", id="nothing to copy"),
    ],
)
def test_what_cannot_be_measured(arguments, message, capsys):
    assert bench.main(arguments) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
