"""
Budgets with real kubectl, real gateway processes and the real control plane: the objects that
are still there are the oracle.
"""

import concurrent.futures
import contextlib
import itertools
import sqlite3
import time

import pytest

from tests.e2e import client, gateway, policies

pytestmark = pytest.mark.e2e

SPACES = (f"budget-{n}" for n in itertools.count())
BUDGETS = """
---
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: limits}
budgets:
- {name: deletes, match: {impacts: [delete]}, objects: 5, window: 10m, per: namespace}
- {name: secrets, match: {impacts: [reveal]}, limit: 2, window: 10m, per: namespace}
"""


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Stage:
    """Gateways on one state folder."""

    def __init__(self, folder, kubeconfig, token):
        self.folder, self.kubeconfig, self.token = folder, kubeconfig, token
        self.state = folder / "state"
        self.count = itertools.count()
        (folder / "policy.yaml").write_text(policies.EVERYTHING + BUDGETS)

    @contextlib.contextmanager
    def gateway(self):
        arguments = ["--kubeconfig", str(self.kubeconfig), "--policies", str(self.folder / "policy.yaml")]
        arguments += ["--state", str(self.state)]
        with gateway.running(self.folder / f"gateway-{next(self.count)}", *arguments) as one:
            until(lambda: self.request(one, "GET", "/version").status == 200)  # it knows its issuer's keys
            yield one

    def request(self, one, method, path, **more):
        ca_file = self.state / "tls" / "ca.crt"
        return client.request(one.port, ca_file, method, path, token=self.token, **more)

    def config(self, one, namespace):
        """A kubeconfig; the CA is in the shared folder."""
        ca = one.ca_file
        ca.parent.mkdir(parents=True, exist_ok=True)
        ca.write_bytes((self.state / "tls" / "ca.crt").read_bytes())
        return one.kubeconfig(namespace, self.token, namespace)


@pytest.fixture(scope="module")
def stage(tmp_path_factory, gateway_kubeconfig, agent_token):
    return Stage(tmp_path_factory.mktemp("budgets"), gateway_kubeconfig, agent_token)


@pytest.fixture(scope="module")
def running(stage):
    with stage.gateway() as one:
        yield one


@pytest.fixture
def space(controlplane):
    """A namespace of its own, so a budget of its own, with ten ConfigMaps that may go."""
    name = next(SPACES)
    controlplane.api("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    for number in range(10):
        controlplane.api("POST", f"/api/v1/namespaces/{name}/configmaps", {"metadata": {"name": f"c{number}"}})
    return name


@pytest.fixture
def left(controlplane, space):
    """How many of the ten are still there."""

    def count():
        items = controlplane.api("GET", f"/api/v1/namespaces/{space}/configmaps")["items"]
        return sum(item["metadata"]["name"].startswith("c") for item in items)

    return count


def delete(stage, one, space, number, **more):
    return stage.request(one, "DELETE", f"/api/v1/namespaces/{space}/configmaps/c{number}", **more)


def test_a_loop_of_kubectl_deletes_stops_at_the_budget(stage, running, controlplane, kubectl_program, space, left):
    config = stage.config(running, space)
    outcomes = [
        controlplane.run_kubectl(
            "delete", "configmap", f"c{n}", kubeconfig=config, program=kubectl_program, check=False
        )
        for n in range(8)
    ]
    assert [o.returncode for o in outcomes] == [0] * 5 + [1] * 3
    assert (
        f"rule limits/deletes: 5 objects in 10m in namespace {space}, 0 left; the next is free at" in outcomes[5].stderr
    )
    assert "UTC; wait until then, or ask the policy's owners for more" in outcomes[5].stderr
    assert left() == 5


def test_another_namespace_has_a_budget_of_its_own(stage, running, space):
    assert delete(stage, running, space, 0).status == 200


def test_parallel_requests(stage, running, space, left):
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda n: delete(stage, running, space, n), range(10)))
    assert sorted(a.status for a in answers) == [200] * 5 + [403] * 5
    assert {a.reason for a in answers if a.status == 403} == {"budget"}
    assert left() == 5


def test_several_gateways_share_what_is_left(stage, running, space, left):
    with stage.gateway() as second, concurrent.futures.ThreadPoolExecutor(10) as pool:
        gateways = [running, second] * 5
        answers = list(pool.map(lambda n: delete(stage, gateways[n], space, n), range(10)))
    assert sorted(a.status for a in answers) == [200] * 5 + [403] * 5, [a.body for a in answers]
    assert left() == 5


def test_a_restart_keeps_the_counts(stage, running, space, left):
    with stage.gateway() as one:
        assert [delete(stage, one, space, n).status for n in range(4)] == [200] * 4
        one.kill()
    with stage.gateway() as again:
        assert [delete(stage, again, space, n).status for n in range(4, 6)] == [200, 403]
    assert left() == 5


def test_what_was_not_done_does_not_count(stage, running, space, left):
    missing = f"/api/v1/namespaces/{space}/configmaps/missing"
    assert [stage.request(running, "DELETE", missing).status for _ in range(6)] == [404] * 6
    assert [delete(stage, running, space, n, body={"dryRun": ["All"]}).status for n in range(6)] == [200] * 6
    assert [delete(stage, running, space, n).status for n in range(6)] == [200] * 5 + [403]
    assert left() == 5


def test_reading_is_not_counted_but_secrets_are(stage, running, space):
    path = f"/api/v1/namespaces/{space}"
    assert [stage.request(running, "GET", f"{path}/configmaps").status for _ in range(6)] == [200] * 6
    answers = [stage.request(running, "GET", f"{path}/secrets") for _ in range(3)]
    assert [a.reason == "budget" for a in answers] == [False, False, True]
    assert "rule limits/secrets: 2 operations in 10m" in answers[2].message


def test_a_busy_store_refuses_what_it_counts_and_reads_go_on(stage, running, space, left):
    other = sqlite3.connect(stage.state / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        before = time.monotonic()
        refused = delete(stage, running, space, 0)
        assert time.monotonic() - before < 1.5  # one second, and a slow machine
        assert (refused.status, refused.reason) == (503, "state-store")
        assert "retry-after" not in refused.headers
        assert "state.db is busy" in refused.message
        assert stage.request(running, "GET", f"/api/v1/namespaces/{space}/configmaps").status == 200
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert left() == 10
    assert [delete(stage, running, space, n).status for n in range(6)] == [200] * 5 + [403]


def test_an_api_server_that_cannot_be_reached_gives_back(stage, running, controlplane, space):
    controlplane.stop_apiserver()
    try:
        answers = [delete(stage, running, space, n) for n in range(8)]
        assert {a.status for a in answers} <= {502, 503}, [a.message for a in answers]
    finally:
        controlplane.start_apiserver()
    until(lambda: stage.request(running, "GET", f"/api/v1/namespaces/{space}/configmaps").status == 200)
    assert [delete(stage, running, space, n).status for n in range(6)] == [200] * 5 + [403]
