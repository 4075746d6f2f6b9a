import base64
import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from addons.cli import kubeconfig

KEY = ec.generate_private_key(ec.SECP256R1())


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


def test_passthrough_has_no_credential(capsys, state):
    config = printed(capsys, "--state", str(state), "--passthrough")
    assert config["users"] == [{"name": "tollgate", "user": {}}]


def test_a_decision_is_never_passed_through(capsys, state):
    with pytest.raises(SystemExit):
        kubeconfig.main(["--state", str(state), "--passthrough", "--approver"])
    assert "--passthrough: not allowed with argument --approver" in capsys.readouterr().err


def test_public_ca(capsys):
    config = printed(capsys, "--ca", "none", "--token-file", "t", "--server", "https://gw.example")
    assert config["clusters"][0]["cluster"] == {"server": "https://gw.example"}


def test_no_ca_yet(tmp_path):
    with pytest.raises(SystemExit, match="start the gateway once, or name one with --ca"):
        kubeconfig.main(["--state", str(tmp_path), "--token-file", "t"])


def token(audience):
    return jwt.encode({"iss": "https://a.example", "aud": audience}, KEY, "ES256")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(token("tollgate-approver") + "\n", id="for approvers"),
        pytest.param(token(["tollgate", "tollgate-approver"]), id="also for approvers"),
        pytest.param("opaque", id="who knows"),
        pytest.param(None, id="not there yet"),
    ],
)
def test_an_approvers(capsys, state, content):
    path = state / "token"
    if content is not None:
        path.write_text(content)
    kubeconfig.main(["--state", str(state), "--approver", "--token-file", str(path)])
    said = capsys.readouterr()
    config = json.loads(said.out)
    assert config["users"][0] == {"name": "tollgate-approver", "user": {"tokenFile": str(path)}}
    # A name of its own, so that it can be merged with the ordinary one.
    assert {config["current-context"], config["clusters"][0]["name"], config["contexts"][0]["name"]} == {
        "tollgate-approver"
    }
    assert "keep this file where no assistant runs" in said.err


def test_an_ordinary_token_decides_nothing(state):
    path = state / "token"
    path.write_text(token("tollgate"))
    with pytest.raises(SystemExit, match="is for tollgate, not tollgate-approver; make one with --audience="):
        kubeconfig.main(["--state", str(state), "--approver", "--token-file", str(path)])
    kubeconfig.main(["--state", str(state), "--token-file", str(path)])


def test_how_an_approver_gets_a_token():
    with pytest.raises(SystemExit, match=r"(?s)--audience=tollgate-approver.*> TOKEN$") as e:
        kubeconfig.main(["--approver"])
    assert "--oidc-client-id=tollgate-approver" in str(e.value)


def test_no_source_of_a_token(capsys):
    with pytest.raises(SystemExit):
        kubeconfig.main([])
    assert "one of the arguments --token-file --exec --passthrough is required" in capsys.readouterr().err
