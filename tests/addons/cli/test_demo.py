import json
import tomllib
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


def test_what_an_mcp_client_takes(tmp_path):
    agent = tmp_path / 'a "quoted" folder' / "agent.kubeconfig"
    entry = json.loads(demo.mcp_client(tmp_path, agent).read_text())["mcpServers"]["kubernetes"]
    assert entry == {"command": "npx", "args": ["-y", demo.MCP_SERVER, "--config", str(tmp_path / "mcp.toml")]}
    server = tomllib.loads((tmp_path / "mcp.toml").read_text())
    assert (server["kubeconfig"], server["toolsets"]) == (str(agent), ["core"])


def test_its_policy_loads_beside_the_shipped_ones(tmp_path):
    (tmp_path / "demo.yaml").write_text(demo.POLICY)
    policyfile.load([demo.ROOT / "policies", tmp_path])


def test_a_taken_port_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)  # of this process it stays as it is
    with pytest.raises(SystemExit, match="tollgate: --listen"):
        demo.main(["--listen", "nowhere", "--state", str(tmp_path)])
