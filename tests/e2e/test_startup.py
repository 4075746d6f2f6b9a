"""What a person does wrong at the start: one clear sentence and a non-zero exit, never a traceback."""

import json
import os
import socket
import subprocess
import sys

import pytest
import yaml

from tests.e2e import client, gateway

pytestmark = pytest.mark.e2e


@pytest.fixture
def serve(tmp_path, gateway_kubeconfig):
    def run(*arguments, kubeconfig=gateway_kubeconfig, environment=None):
        return subprocess.run(
            [sys.executable, "-m", "addons.cli", "serve", "--listen", f"127.0.0.1:{gateway.free_port()}",
             "--state", str(tmp_path / "state"), "--recordings", str(tmp_path / "recordings"),
             "--kubeconfig", str(kubeconfig), *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(gateway.ROOT), **(environment or {})},
        )  # fmt: skip

    return run


def write(path, text):
    path.write_text(text)
    return str(path)


GOOD_RULE = "{name: r, action: allow, match: {verbs: [get], resources: [pods]}}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(lambda p: ["--kubeconfig", "/absent"], "there is no file /absent", id="no kubeconfig"),
        pytest.param(lambda p: ["--kubeconfig", write(p / "k", "a: [")], "not a usable kubeconfig", id="a broken one"),
        pytest.param(lambda p: ["--policies", "/absent"], "--policies", id="no policy"),
        pytest.param(
            lambda p: ["--policies", write(p / "p.yaml", "apiVersion: tollgate.dev/v1alpha1\nkind: Policy\n"
                                           f"metadata: {{name: a}}\nruls: [{GOOD_RULE}]\n")],
            "p.yaml:4", id="a typo in a policy",
        ),
        pytest.param(lambda p: ["--auth", write(p / "a.yaml", "kind: Nonsense\n")], "--auth", id="a broken auth file"),
        pytest.param(lambda p: ["--listen", "here"], "not HOST:PORT", id="a bad address"),
        pytest.param(lambda p: ["--only", "nothing"], "there is no addon", id="a bad stack"),
        pytest.param(lambda p: ["--tls-cert", "/absent", "--tls-key", "/absent"], "/absent", id="no certificate"),
    ],
)  # fmt: skip
def test_one_sentence(serve, tmp_path, arguments, sentence):
    done = serve(*arguments(tmp_path))
    assert done.returncode not in (0, None)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.startswith("tollgate: ")


def test_a_taken_port(serve):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        done = serve("--listen", f"127.0.0.1:{s.getsockname()[1]}")
    assert done.returncode == 1
    assert "choose another" in done.stderr


@pytest.mark.parametrize(
    "option",
    ["ssl_insecure=true", "ignore_hosts=.*", "connection_strategy=eager", "keep_host_header=true", "rawtcp=true",
     "validate_inbound_headers=false", "stream_large_bodies=1"],
)  # fmt: skip
def test_a_dangerous_option_of_mitmproxy_ends_it(serve, option):
    done = serve("--", "--set", option)
    assert done.returncode != 0
    assert "tollgate" in done.stderr + done.stdout
    assert option.split("=")[0] in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout


def test_the_printed_command_works_when_pasted(serve, gateway_kubeconfig, tmp_path, agent_token):
    port = gateway.free_port()
    printed = serve("--listen", f"127.0.0.1:{port}", "--print")
    assert printed.returncode == 0
    with (tmp_path / "gateway.log").open("wb") as log:
        process = subprocess.Popen(["bash", "-c", "exec " + printed.stdout], stdout=log, stderr=log, cwd=tmp_path)
    gateway.Gateway(process, tmp_path, port)  # so that the audit log is joined with its record, too
    try:
        gateway.wait_open(process, tmp_path, port)
        ca_file = tmp_path / "state" / "tls" / "ca.crt"
        assert client.request(port, ca_file, "GET", "/version", token=agent_token).status == 200
    finally:
        process.terminate()
        process.wait(10)


def test_a_configuration_file_of_mitmproxys_is_refused(serve, tmp_path):
    assert serve("--print").returncode == 0
    folder = tmp_path / "state" / "mitmproxy"
    folder.chmod(0o700)
    (folder / "config.yaml").write_text("ssl_insecure: true\n")
    done = serve()
    assert done.returncode != 0
    assert "must not exist" in done.stderr + done.stdout


def test_an_unreachable_api_server_is_a_status(tmp_path, gateway_kubeconfig, agent_token):
    config = _load(gateway_kubeconfig)
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    with gateway.running(tmp_path / "gw", "--kubeconfig", str(path)) as one:
        answer = client.request(one.port, one.ca_file, "GET", "/api", token=agent_token)
    assert answer.status == 503
    assert "try again in a minute" in answer.message


def _load(path):
    return yaml.safe_load(path.read_text())


def test_no_secret_in_argv_or_log(default_gateway, agent_token, gateway_kubeconfig):
    client.request(default_gateway.port, default_gateway.ca_file, "GET", "/api/v1/pods", token=agent_token)
    own = _load(gateway_kubeconfig)["users"][0]["user"]["token"]
    with open(f"/proc/{default_gateway.process.pid}/cmdline", "rb") as f:  # noqa: PTH123
        shown = f.read().decode() + default_gateway.log
    assert own not in shown
    assert agent_token not in shown


def test_the_engine_is_in_use_beside_all_other_patches(open_gateway):
    """It stands aside with a warning where a function that it relies on is another, be it one of our own making."""
    assert "engine.py" in open_gateway.log
    assert "mitmproxy is left as it is" not in open_gateway.log
