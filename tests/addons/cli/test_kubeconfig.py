import base64
import json

import pytest

from addons.cli import kubeconfig


@pytest.fixture
def state(tmp_path):
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / "ca.crt").write_text("the CA")
    return tmp_path


def printed(capsys, *argv):
    kubeconfig.main(argv)
    return json.loads(capsys.readouterr().out)


def test_token_file(capsys, state):
    config = printed(capsys, "--state", str(state), "--token-file", "/run/token", "--namespace", "shop")
    assert config["users"][0]["user"] == {"tokenFile": "/run/token"}
    assert config["contexts"][0]["context"]["namespace"] == "shop"
    ca = config["clusters"][0]["cluster"]["certificate-authority-data"]
    assert base64.b64decode(ca) == b"the CA"


def test_exec_plugin(capsys, state):
    config = printed(capsys, "--state", str(state), "--exec", "kubectl", "--", "oidc-login", "get-token")
    plugin = config["users"][0]["user"]["exec"]
    assert (plugin["command"], plugin["args"]) == ("kubectl", ["oidc-login", "get-token"])


def test_public_ca(capsys):
    config = printed(capsys, "--ca", "none", "--token-file", "t", "--server", "https://gw.example")
    assert config["clusters"][0]["cluster"] == {"server": "https://gw.example"}


def test_no_ca_yet(tmp_path):
    with pytest.raises(SystemExit, match="start the gateway once, or name one with --ca"):
        kubeconfig.main(["--state", str(tmp_path), "--token-file", "t"])
