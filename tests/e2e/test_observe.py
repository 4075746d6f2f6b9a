"""--observe: policies decide and log, and stop nothing; everything else stays as strict as it was."""

import pytest

from tests.e2e import client, gateway

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def observing(gateway_kubeconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("observe")
    with gateway.running(folder, "--kubeconfig", str(gateway_kubeconfig), "--observe") as one:
        yield one


def test_what_the_policy_forbids_passes_and_is_logged(observing, controlplane, agent_token):
    controlplane.run_kubectl("create", "configmap", "observed-critical", "-n", "shop")
    done = controlplane.run_kubectl(
        "delete", "configmap", "observed-critical", "-n", "shop", kubeconfig=observing.kubeconfig("agent", agent_token)
    )
    assert "deleted" in done.stdout
    assert "observed: deny 'delete configmaps observed-critical" in observing.log
    assert "agents/critical-configmaps" in observing.log


@pytest.mark.parametrize(
    ("path", "token", "headers", "code"),
    [
        pytest.param("/api/v1/pods", "nonsense", {}, 401, id="nobody"),
        pytest.param("/api/v1//pods", None, {}, 400, id="a path with two readings"),
        pytest.param("/api/v1/pods", None, {"Impersonate-User": "root"}, 403, id="an identity header"),
    ],
)
def test_the_guard_and_authentication_stay(observing, agent_token, path, token, headers, code):
    answer = client.request(observing.port, observing.ca_file, "GET", path, token=token or agent_token, headers=headers)
    assert answer.status == code


def test_it_says_so_at_the_start(observing):
    assert "OBSERVE mode" in observing.log
