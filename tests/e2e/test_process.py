"""The process itself: what other users and programs of this machine learn from it, and what it leaves behind."""

import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from addons.core import facts
from addons.core.model import Identity, Operation, RequestInfo
from tests.e2e import client, gateway, policies

pytestmark = [pytest.mark.e2e, pytest.mark.attack("the process")]

PUBLIC = re.compile(
    r"ca\.crt$|mitmproxy-ca-cert|dhparam|/patterns/"
)  # certificates, and patterns that are in the packages


@pytest.fixture(scope="module")
def worked(controlplane, default_gateway, agent_token, gateway_kubeconfig):
    """A gateway that has done some of everything, and the secrets that it met."""
    path = "/api/v1/namespaces/shop/secrets/db-password"
    for target in ("/api/v1/pods", path, "/api/v1/namespaces/shop/configmaps/settings"):
        client.request(default_gateway.port, default_gateway.ca_file, "GET", target, token=agent_token)
    body = {"metadata": {"name": "process"}, "stringData": {"p": "canary-of-a-body-Xq9"}}
    client.request(
        default_gateway.port, default_gateway.ca_file, "POST", path.rpartition("/")[0], token=agent_token, body=body
    )
    client.request(default_gateway.port, default_gateway.ca_file, "GET", "/api", token="a-token-of-nobody-Xq9")
    own = yaml.safe_load(gateway_kubeconfig.read_text())["users"][0]["user"]["token"]
    secrets = [own, agent_token, "canary-of-a-body-Xq9", "a-token-of-nobody-Xq9", "canary-shop-db-4f9c2b71"]
    secrets += [token.rpartition(".")[2] for token in (own, agent_token)]  # a signature alone, too
    secrets.append((default_gateway.folder / "state" / "mask.key").read_bytes().hex())
    return default_gateway, secrets


@pytest.mark.parametrize("name", ["cmdline", "environ", "comm", "status", "stat", "limits", "maps"])
def test_proc_holds_no_secret(worked, name):
    one, secrets = worked
    shown = Path(f"/proc/{one.process.pid}/{name}").read_bytes().decode(errors="replace")
    assert not [secret for secret in secrets if secret in shown]


def test_the_log_holds_no_secret(worked):
    one, secrets = worked
    assert "deny" in one.log
    assert not [secret for secret in secrets if secret in one.log]


def test_no_file_holds_a_token(worked):
    """The state folder has keys of its own making, and never what clients or the cluster were given."""
    one, secrets = worked
    tokens = [secret.encode() for secret in secrets[:-1]]
    for file in (one.folder / "state").rglob("*"):
        if file.is_file() and not PUBLIC.search(str(file)):
            content = file.read_bytes()
            assert not [token for token in tokens if token in content], file


def test_files_are_for_their_owner_only(worked):
    one, _ = worked
    state = one.folder / "state"
    modes = {str(p.relative_to(state)): p.stat().st_mode & 0o777 for p in (state, *state.rglob("*"))}
    assert len(modes) > 5
    assert not {name: oct(mode) for name, mode in modes.items() if mode & 0o077 and not PUBLIC.search(f"/{name}")}


def test_no_core_file(worked):
    limits = Path(f"/proc/{worked[0].process.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)


def test_nobody_but_root_may_read_its_memory(web):
    assert Path(f"/proc/{web.process.pid}/mem").stat().st_uid == 0
    assert "dumpable: 0" in web.log  # under root the owner says nothing; the kernel's own word


def test_no_repr_holds_a_secret():
    known = facts.Facts()
    known.credential = "Bearer the-gateways-own-Xq9"
    identity = Identity("alice", claims={"secret": "claim-Xq9"})
    operation = Operation(RequestInfo("create", "/api"), "POST", frozenset(), body={"data": "body-Xq9"})
    known.identity, known.operation = identity, operation
    shown = f"{known!r} {identity!r} {operation!r} {vars(known) if hasattr(known, '__dict__') else ''}"
    assert "claim-Xq9" not in shown
    assert "body-Xq9" not in shown
    assert "the-gateways-own-Xq9" not in repr(known)


# mitmweb

DUMPABLE = """
import ctypes, logging

def running():
    logging.getLogger("test").warning("dumpable: %d", ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
"""


@pytest.fixture(scope="module")
def web(gateway_kubeconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("process-web")
    (folder / "policy.yaml").write_text(policies.EVERYTHING)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")]
    (folder / "dumpable.py").write_text(DUMPABLE)
    arguments += ["--web", f"127.0.0.1:{gateway.free_port()}", "--", "-s", str(folder / "dumpable.py")]
    with gateway.running(folder, *arguments, command="web") as one:
        yield one


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        pytest.param("", {}, id="no token"),
        pytest.param("?token=wrong", {}, id="a wrong token"),
        pytest.param("?token=", {}, id="an empty token"),
        pytest.param("", {"Cookie": "mitmproxy-auth-8081=y"}, id="a forged cookie"),
        pytest.param("?token=", {"Authorization": "Bearer wrong"}, id="a wrong bearer token"),
        pytest.param("", {"Host": "evil.example"}, id="DNS rebinding"),
    ],
)
@pytest.mark.parametrize("path", ["/flows", "/options", "/events", "/state", "/flows/dump"])
def test_mitmweb_wants_its_token(web, path, query, headers):
    address = re.search(r"http://127\.0\.0\.1:\d+", web.log)[0]
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(urllib.request.Request(f"{address}{path}{query}", headers=headers), timeout=10)  # noqa: S310
    assert e.value.code == 403


def test_mitmweb_says_where_it_listens_and_that_it_wants_a_token(web):
    assert re.search(r"http://127\.0\.0\.1:\d+/\?token=\w{16,}", web.log)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--web", "0.0.0.0:8081"], id="all addresses"),
        pytest.param(["--web", "[::]:8081"], id="all addresses, IPv6"),
        pytest.param(["--web", "192.0.2.1:8081"], id="another address"),
        pytest.param(["--web", "example.com:8081"], id="a name"),
        pytest.param(["--", "--set", "web_host=0.0.0.0"], id="by mitmproxy's own option"),
    ],
)
def test_mitmweb_listens_on_loopback_only(gateway_kubeconfig, tmp_path, arguments):
    done = subprocess.run(
        [sys.executable, "-m", "addons.cli", "web", "--listen", f"127.0.0.1:{gateway.free_port()}", "--print",
         "--kubeconfig", str(gateway_kubeconfig), "--state", str(tmp_path / "state"), *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, cwd=gateway.ROOT,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.startswith("tollgate: --web: ")
    assert "loopback" in done.stderr


# What it is made of


def test_every_dependency_is_locked_with_its_hash():
    for lock in ("requirements.lock", "tests/requirements.lock"):
        text = (gateway.ROOT / lock).read_text()
        packages = re.findall(r"^[A-Za-z0-9._-]+(?:\[[^]]*\])?==[^\s\\]+.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
        assert len(packages) > 30
        assert all("--hash=sha256:" in package for package in packages)
    assert "--require-hashes" in (gateway.ROOT / "run.sh").read_text()
