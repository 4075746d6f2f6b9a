from pathlib import Path

import pytest

from addons.cli import demo
from addons.core import policyfile


def test_five_commands():
    text = demo.commands("kubectl", Path("/a b/agent"), Path("/engineer"), Path("/approver"))
    assert text.count("kubectl --kubeconfig") == 5
    assert "'/a b/agent'" in text
    assert "passes" in text
    assert "refused" in text


def test_its_policy_loads_beside_the_shipped_ones(tmp_path):
    (tmp_path / "demo.yaml").write_text(demo.POLICY)
    policyfile.load([demo.ROOT / "policies", tmp_path])


def test_a_taken_port_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="tollgate: --listen"):
        demo.main(["--listen", "nowhere", "--state", str(tmp_path)])
