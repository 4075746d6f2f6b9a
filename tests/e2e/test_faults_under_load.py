"""
Faults while there is load: nothing forbidden arrives at the API server, no record is lost, and the gateway is
well again by itself. What the load is and what must be true of it: tests/e2e/load.py.
"""

import contextlib
import time

import pytest

from tests.e2e import clocks, gateway
from tests.e2e.clocks import DAY, HOUR
from tests.e2e.load import POLICY, Load

pytestmark = [pytest.mark.e2e, pytest.mark.attack("faults")]

# The load comes from one address, and half of what is forbidden has no token.
PLENTY = ["--", "--set", "tollgate_failed_authentications=0", "--set", "tollgate_identity_rate=0"]
PLENTY += ["--set", "tollgate_source_rate=0"]


@contextlib.contextmanager
def gateway_of(folder, kubeconfig, *more, policy=POLICY, settings=(), **others):
    (folder / "policy.yaml").write_text(policy)
    arguments = ["--kubeconfig", str(kubeconfig), "--policies", str(folder / "policy.yaml"), *more, *PLENTY]
    for setting in settings:
        arguments += ["--set", setting]
    with gateway.running(folder, *arguments, **others) as one:
        yield one


def until(condition, one, seconds=30):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, one.log[-3000:]
        time.sleep(0.05)
    return found


def ok(one):
    return one.status in (200, 201)


# The clock


@pytest.mark.parametrize("seconds", [DAY, -DAY], ids=["a day forward", "a day back"])
def test_the_clock_jumps(controlplane, gateway_kubeconfig, agent_token, tmp_path, seconds):
    clock = clocks.Clock(tmp_path)
    with gateway_of(tmp_path, gateway_kubeconfig, root=clock.root, environment=clock.environment) as one:
        load = Load(one, controlplane, lambda: agent_token)
        load.wait_until_well()
        with load.running():
            load.wait_for(ok, 10)
            clock.jump(seconds)
            load.wait_for(lambda o: o.status == 401 and o.kind != "forbidden", 6)
            # Once it is refused it stays so: no worker has a token that is good a day from now.
            load.wait_for(lambda o: o.kind == "read", 6)
            assert all(o.status == 401 for o in load.answers[-4:] if o.kind == "read")
            clock.jump(-seconds)
            load.wait_for(ok, 10)
        load.wait_until_well()
    assert "Traceback" not in one.log
    load.check()
