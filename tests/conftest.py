"""What all tests share: one control plane for the run, started when the first test asks for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.controlplane import ControlPlane

pytest_plugins = ["tests.attacks"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also the tests that take minutes")


@pytest.fixture(scope="session")
def controlplane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real control plane with its content; shared, so tests clean up or use names of their own."""
    with ControlPlane.start(tmp_path_factory.mktemp("cluster") / "plane") as cluster:
        cluster.seed()
        yield cluster


@pytest.fixture(scope="session")
def gateway_kubeconfig(controlplane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gateway's own, least-privilege credential."""
    return controlplane.gateway_kubeconfig(tmp_path_factory.mktemp("gateway") / "own.kubeconfig")
