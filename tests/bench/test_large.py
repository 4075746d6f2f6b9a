import json

from addons.core import policyfile
from addons.core.model import Identity
from tests.bench import large
from tests.bench.large import Seen

SEEN = [
    Seen("list", "direct", 50, 0.5, 0, 0, 20),
    Seen("list", "agent", 50, 3, 2, 300, 100),
    Seen("list", "direct", 50, 0.7, 0, 0, 10),
    Seen("list", "agent", 50, 5, 4, 200, 90),
]


def test_the_table_has_medians_and_maxima():
    assert large.rows(SEEN)[1:] == [
        ["list", "direct", "50.0", "0.6", "", "", "20"],
        ["list", "agent", "50.0", "4.0", "3.0", "300", "100"],
    ]


def test_the_document(tmp_path, capsys):
    large.finish(tmp_path, SEEN, {"cores": 2})
    made = json.loads((tmp_path / "large.json").read_text())
    assert [s["way"] for s in made["seen"]] == ["direct", "agent"] * 2
    assert "another waited ms" in capsys.readouterr().out


def test_the_policy_knows_people():
    policies = policyfile.parse({"policy.yaml": large.POLICY.encode()})
    assert not policies.is_agent(Identity("tollgate:system:serviceaccount:people:engineer"))
    assert policies.is_agent(Identity("tollgate:system:serviceaccount:agents:ci-agent"))
