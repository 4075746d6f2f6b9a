"""Gateways that several test files share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.controlplane import STARTED, ControlPlane
from tests.e2e import audit, gateway, policies
from tests.e2e.recorder import Recorder


@pytest.fixture(scope="session", autouse=True)
def nothing_arrived_that_did_not_pass() -> Iterator[None]:
    """After the run: the API servers' audit logs against what the gateways made and recorded."""
    yield
    events = [event for one in STARTED if one.audit_log for event in one.audit_events()]
    found = audit.problems(events, gateway.STARTED)
    assert not found, "\n".join(found[:20])


@pytest.fixture(scope="session")
def agent_token(controlplane: ControlPlane) -> str:
    return controlplane.token("agents", "ci-agent")


@pytest.fixture(scope="session")
def engineer_token(controlplane: ControlPlane) -> str:
    return controlplane.token("people", "engineer")


@pytest.fixture(scope="session")
def open_gateway(gateway_kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateway.Gateway]:
    """A gateway whose policy allows everything: RBAC alone decides."""
    folder = tmp_path_factory.mktemp("open")
    (folder / "policy.yaml").write_text(policies.EVERYTHING)
    with gateway.running(
        folder, "--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")
    ) as one:
        yield one


@pytest.fixture(scope="session")
def recorder(controlplane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    """What really leaves `recorded_gateway`."""
    one = Recorder(controlplane, tmp_path_factory.mktemp("recorder"))
    yield one
    one.close()


@pytest.fixture(scope="session")
def recorded_gateway(recorder: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateway.Gateway]:
    """A gateway whose policy allows everything, with a recorder between it and the API server."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "policy.yaml").write_text(policies.EVERYTHING)
    config = recorder.kubeconfig(folder / "own.kubeconfig")
    arguments = ["--kubeconfig", str(config), "--policies", str(folder / "policy.yaml")]
    # It goes on saying what is wrong after the sixtieth bad token of a minute.
    with gateway.running(folder, *arguments, "--", "--set", "tollgate_failed_authentications=0") as one:
        yield one


@pytest.fixture(scope="session")
def default_gateway(gateway_kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateway.Gateway]:
    """A gateway as it comes: the shipped policy, but for the time that a held request waits, which nobody decides."""
    folder = tmp_path_factory.mktemp("default")
    shipped = (gateway.ROOT / "policies" / "default.yaml").read_text()
    quick = shipped.replace("groups: [platform-oncall]", "groups: [platform-oncall], wait: 1s, maxPending: 100")
    assert quick.count("wait: 1s") == shipped.count("approval:")
    (folder / "policy.yaml").write_text(quick)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml")]
    with gateway.running(folder, *arguments) as one:
        yield one


@pytest.fixture(params=["ours", "this machine's"])
def kubectl_program(request: pytest.FixtureRequest, controlplane: ControlPlane) -> str:
    """kubectl 1.36, and the older one of this machine where it has one."""
    program = controlplane.kubectl if request.param == "ours" else controlplane.kubectl_old
    if not program:
        pytest.skip("this machine has no other kubectl")
    return program
