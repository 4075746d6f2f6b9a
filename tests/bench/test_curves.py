import json

import pytest

from addons.core import policyfile
from tests.bench import curves
from tests.bench.curves import Point
from tests.bench.report import Spread

ONE = Spread(1.0, 2.0, 3.0)
NONE = Spread(0, 0, 0)
POINTS = {
    "rules": [Point("a", 10, ONE, ONE, 0), Point("a", 100, ONE, ONE, 0), Point("b", 10, ONE, ONE, 1)],
    "items": [Point("direct", 10, NONE, ONE, 0), Point("gateway", 10, ONE, ONE, 0)],
}


@pytest.mark.parametrize(
    "text",
    [
        *(pytest.param(curves.rules(10, kind), id=kind) for kind in curves.KINDS),
        *(pytest.param(curves.budgets(count), id=f"{count} budgets") for count in curves.BUDGETS),
    ],
)
def test_the_policies_load(text):
    policyfile.parse({"policy.yaml": text.encode()})


def test_a_policy_has_as_many_as_asked_for():
    assert curves.rules(100, curves.KINDS[0]).count("action: deny") == 100
    assert curves.budgets(10).count("limit:") == 10


def test_the_table():
    table = curves.rows(POINTS)
    assert table[1] == ["rules", "a", "10", "2.00 (1.00–3.00)", "2.00 (1.00–3.00)", "0"]
    assert table[4][3] == ""  # nobody is between


def test_the_document_and_the_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="installed by ./run.sh bench only")
    curves.finish(tmp_path, POINTS, {"cores": 2}, {"recorded_bytes_a_request": 3000})
    made = json.loads((tmp_path / "curves.json").read_text())
    assert made["curves"]["items"][1]["cpu"]["middle"] == 2.0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "recorded_bytes_a_request: 3000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sizes", "middle", "percent"),
    [
        pytest.param([100.0] * 40, 100, 0, id="flat"),
        pytest.param([10.0] * 10 + [100.0] * 90, 100, 0, id="the first fill caches"),
        pytest.param([*range(100, 200)], 155, 69, id="it grows"),
        pytest.param([100.0], 100, 0, id="one look"),
    ],
)
def test_growth(sizes, middle, percent):
    found = curves.growth([(i, mb) for i, mb in enumerate(sizes)])
    assert found == (pytest.approx(middle, abs=1), pytest.approx(percent, abs=1))
