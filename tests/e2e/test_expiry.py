"""Streams end when their token does, within a second or so, and say why; the issuer may be gone by then."""

import datetime
import subprocess
import time
from contextlib import ExitStack

import pytest

from addons.net import certificates
from tests.e2e import gateway, policies
from tests.issuer import issuer

pytestmark = pytest.mark.e2e

USERNAME = {"claim": "name", "prefix": "corp:"}
TTL = 6  # seconds: kubectl needs two to get a stream open on a busy machine
GRACE = 3  # seconds after the token's end, of which the gateway takes half of one


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    folder = tmp_path_factory.mktemp("issuer")
    tls = certificates.ensure(folder, "127.0.0.1", datetime.datetime.now(datetime.UTC))
    with issuer.running(tls.combined, tls.ca_file, folder) as running:
        yield running


@pytest.fixture(scope="module")
def running(controlplane, provider, tmp_path_factory):
    """A gateway for the provider's users, of whom corp:alice is an administrator."""
    folder = tmp_path_factory.mktemp("expiry")
    (folder / "auth.yaml").write_text(provider.configuration(USERNAME))
    (folder / "policy.yaml").write_text(policies.EVERYTHING)
    controlplane.run_kubectl(
        "create", "clusterrolebinding", "alice", "--clusterrole=cluster-admin", "--user=corp:alice"
    )
    with gateway.running(
        folder,
        *("--kubeconfig", str(controlplane.admin_kubeconfig)),
        *("--auth", str(folder / "auth.yaml")),
        *("--policies", str(folder / "policy.yaml")),
    ) as one:
        yield one
    controlplane.run_kubectl("delete", "clusterrolebinding", "alice")


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        pytest.param(["get", "configmaps", "-w"], 0, "your token expired", id="watch"),
        pytest.param(["exec", "{pod}", "--", "sleep", "60"], 1, "your token expired", id="exec"),
    ],
)
def test_a_stream_ends_with_its_token(controlplane, provider, running, tmp_path, command, code, says):
    pod = controlplane.pods("shop", "app=web")[0]
    end = time.time() + TTL
    kubeconfig = running.kubeconfig("alice", provider.token({"name": "alice"}, ttl=TTL), namespace="shop")
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [controlplane.kubectl, *(part.format(pod=pod) for part in command)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=controlplane.kubectl_env(kubeconfig),
        )
        try:
            assert process.wait(TTL + 30) == code
        finally:
            process.kill()
            process.wait(10)
    ended = time.time()
    assert says in (tmp_path / "out").read_text()
    assert end - 1 <= ended <= end + GRACE
    # And the token opens nothing any more.
    after = controlplane.run_kubectl("get", "pods", kubeconfig=kubeconfig, check=False)
    assert "no token that is accepted here" in after.stderr


def test_the_last_keys_serve_while_the_issuer_is_gone(controlplane, tmp_path):
    tls = certificates.ensure(tmp_path, "127.0.0.1", datetime.datetime.now(datetime.UTC))
    with ExitStack() as life_of_gateway, ExitStack() as life_of_issuer:
        provider = life_of_issuer.enter_context(issuer.running(tls.combined, tls.ca_file, tmp_path))
        (tmp_path / "auth.yaml").write_text(provider.configuration(USERNAME))
        (tmp_path / "policy.yaml").write_text(policies.EVERYTHING)
        one = life_of_gateway.enter_context(
            gateway.running(
                tmp_path / "gateway",
                *("--kubeconfig", str(controlplane.admin_kubeconfig)),
                *("--auth", str(tmp_path / "auth.yaml")),
                *("--policies", str(tmp_path / "policy.yaml")),
            )
        )
        first, later = (one.kubeconfig(name, provider.token({"name": "alice"})) for name in ("first", "later"))
        controlplane.run_kubectl("auth", "whoami", kubeconfig=first)
        life_of_issuer.close()
        assert "corp:alice" in controlplane.run_kubectl("auth", "whoami", kubeconfig=later).stdout
