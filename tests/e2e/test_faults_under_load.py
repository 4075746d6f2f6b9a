"""
Faults while there is load: nothing forbidden arrives at the API server, no record is lost, and the gateway is
well again by itself. What the load is and what must be true of it: tests/e2e/load.py.
"""

import contextlib
import datetime
import json
import re
import resource
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from addons.net import certificates
from tests.e2e import client, clocks, faultproxy, gateway, keyissuer
from tests.e2e.clocks import DAY, HOUR
from tests.e2e.load import MAPS, POLICY, Load

pytestmark = [pytest.mark.e2e, pytest.mark.attack("faults")]

# The load comes from one address, and half of what is forbidden has no token.
AGENT = "tollgate:system:serviceaccount:agents:ci-agent"
SETTINGS = f"{MAPS}/settings"  # a list names nothing, so the rule for forbidden-* denies it
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


COUNTED = """
- name: asked
  action: hold
  match: {resources: [configmaps], resourceNames: ["asked-*"], verbs: [create]}
  approval: {users: ["tollgate:system:serviceaccount:people:engineer"], wait: 1s, maxPending: 100}
- name: granted
  action: hold
  match: {resources: [configmaps], resourceNames: ["granted-*"], verbs: [create]}
  approval: {users: ["tollgate:system:serviceaccount:people:engineer"], wait: 1s, maxPending: 100}
  grant: {for: 30m, scope: namespace}
budgets:
- {name: deletes, match: {impacts: [delete]}, limit: 2, window: 10m, per: identity, over: deny}
"""
PEOPLE = "people: 'identity.username == \"tollgate:system:serviceaccount:people:engineer\"'\nrules:"


class Asker:
    """An agent whose token is good for two days before and after, and somebody who says yes."""

    def __init__(self, one, cluster, token):
        self.gateway, self.token = one, token
        self.approver = cluster.token("people", "engineer", audience="tollgate-approver")
        self.unique = f"{time.time_ns()}"

    def request(self, method, path, **more):
        return client.request(self.gateway.port, self.gateway.ca_file, method, path, **{"token": self.token, **more})

    def create(self, name):
        body = {"metadata": {"name": f"{name}-{self.unique}"}}
        return self.request("POST", MAPS, body=body).status

    def delete(self, name):
        return self.request("DELETE", f"{MAPS}/{name}-{self.unique}").status

    def ask(self, name):
        """Ask, and get a yes that is not used yet."""
        assert self.create(name) == 403
        path = "/apis/tollgate.dev/v1alpha1/approvals"
        items = json.loads(self.request("GET", path, token=self.approver).body)["items"]
        (found,) = (i for i in items if i["status"]["phase"] == "Pending" and name in json.dumps(i["spec"]))
        merge = {"Content-Type": "application/merge-patch+json"}
        yes = json.dumps({"spec": {"decision": "Approved"}}).encode()
        where = f"{path}/{found['metadata']['name']}"
        assert self.request("PATCH", where, token=self.approver, body=yes, headers=merge).status == 200


@pytest.fixture
def long_token(controlplane, agent_token):
    """The agent's, as if it were two days old and good for two more; signed by the cluster's key."""
    key = serialization.load_pem_private_key(controlplane.service_account_key.read_bytes(), None)
    claims = jwt.decode(agent_token, options={"verify_signature": False})
    now = int(time.time())
    kid = jwt.get_unverified_header(agent_token)["kid"]
    times = {"iat": now - 2 * int(DAY), "nbf": now - 2 * int(DAY), "exp": now + 2 * int(DAY)}
    return jwt.encode({**claims, **times}, key, "RS256", {"kid": kid})


def test_what_is_counted_by_the_clock_when_that_jumps(controlplane, gateway_kubeconfig, long_token, tmp_path):
    clock = clocks.Clock(tmp_path)
    policy = POLICY.replace("rules:", PEOPLE) + COUNTED
    others = {"root": clock.root, "environment": clock.environment, "settings": ["tollgate_token_lifetime=100"]}
    with gateway_of(tmp_path, gateway_kubeconfig, policy=policy, **others) as one:
        load = Load(one, controlplane, lambda: long_token)
        load.wait_until_well()
        asker = Asker(one, controlplane, long_token)
        since = controlplane.audit_position()
        with load.running():
            for n in range(5):
                assert asker.create(f"gone-{n}") == 201
            assert [asker.delete(f"gone-{n}") for n in range(3)] == [200, 200, 403]
            asker.ask("asked-back")
            asker.ask("asked-forward")
            asker.ask("granted-first")
            assert asker.create("granted-second") == 201

            clock.jump(-DAY)
            load.wait_for(ok, 4)  # who has such a token goes on
            assert asker.create("asked-back") == 403  # not for a day and a quarter of an hour
            assert asker.create("granted-back") == 403
            assert asker.delete("gone-2") == 403

            clock.jump(2 * DAY)
            load.wait_for(ok, 4)
            assert asker.create("asked-forward") == 403
            assert asker.create("granted-forward") == 403
            # By the clock the window is another; no more than one window's worth, and none of it comes back.
            assert [asker.delete(f"gone-{n}") for n in (2, 3, 4)] == [200, 200, 403]

            clock.jump(-DAY)
            load.wait_for(ok, 4)
            assert asker.delete("gone-4") == 403
            asker.ask("asked-now")
            assert asker.create("asked-now") == 201  # and what is asked now works as ever
            assert asker.create("asked-now") == 409  # the dry run of it says so; it is not sent again

            assert asker.request("GET", SETTINGS).status == 200
            command = [sys.executable, "-m", "addons.cli", "revoke", "--user", AGENT, "--state", f"{tmp_path}/state"]
            subprocess.run(command, check=True, capture_output=True, cwd=gateway.ROOT, timeout=60)
            for step in (0, -DAY, 2 * DAY, -DAY):
                clock.jump(step)
                until(lambda: asker.request("GET", SETTINGS).status in (401, 403), one)
                assert [asker.request("GET", SETTINGS).status in (401, 403) for _ in range(4)] == [True] * 4
        load.check_answers()
        load.check_cluster()
        names = [
            event["objectRef"].get("name", "").removesuffix(f"-{asker.unique}")
            for event in controlplane.audit_events(since)
            if asker.unique in json.dumps(event.get("objectRef", {}))
            and event["verb"] == "create"
            and event["stage"] == "ResponseComplete"
            and not event["auditID"].startswith("tollgate-")
        ]
        assert sorted(n for n in names if not n.startswith("gone")) == ["asked-now", "granted-second"]
    assert "Traceback" not in one.log
    load.check_record()


# The issuer


@pytest.fixture
def provider(tmp_path_factory):
    folder = tmp_path_factory.mktemp("issuer")
    one = keyissuer.KeyIssuer(certificates.ensure(folder, "127.0.0.1", datetime.datetime.now(datetime.UTC)))
    yield one
    one.close()


@pytest.fixture
def open_to_corp(controlplane):
    """corp:faults may do all."""
    name = f"faults-{time.time_ns()}"
    controlplane.run_kubectl("create", "clusterrolebinding", name, "--clusterrole=cluster-admin", "--user=corp:faults")
    yield
    controlplane.run_kubectl("delete", "clusterrolebinding", name)


class Corp:
    """A gateway for the provider's users, with a clock; the load's tokens are fresh ones by `key`."""

    def __init__(self, cluster, provider, folder):
        self.cluster, self.provider, self.folder = cluster, provider, folder
        self.clock = clocks.Clock(folder)
        self.key = keyissuer.Key()
        provider.published = [self.key]

    def token(self, key=None, **more):
        return self.provider.token(key or self.key, "faults", self.clock.now(), **more)

    def made_up(self):
        """By a key that nobody has published, with a new name each time."""
        return self.provider.token(keyissuer.Key(), "faults", self.clock.now())

    @contextlib.contextmanager
    def running(self):
        (self.folder / "auth.yaml").write_text(self.provider.configuration())
        more = ["--auth", str(self.folder / "auth.yaml")]
        others = {"root": self.clock.root, "environment": self.clock.environment}
        with gateway_of(self.folder, self.cluster.admin_kubeconfig, *more, **others) as one:
            self.gateway = one
            load = Load(one, self.cluster, self.token, bad_token=self.made_up)
            load.wait_until_well()
            yield load

    def status(self, token):
        return client.request(self.gateway.port, self.gateway.ca_file, "GET", SETTINGS, token=token).status


@pytest.fixture
def corp(controlplane, provider, open_to_corp, tmp_path):
    return Corp(controlplane, provider, tmp_path)


def test_the_issuer_is_down_for_an_hour(corp):
    with corp.running() as load:
        short = corp.token()
        assert corp.status(short) == 200
        with load.running():
            corp.provider.up = False
            for _ in range(12):
                corp.clock.pass_time(HOUR / 12)
                load.wait_for(ok, 4)  # the last keys go on serving
                load.wait_for(lambda o: o.kind == "forbidden", 2)
            assert corp.status(short) == 401  # but no token lives longer for it
            old, corp.key = corp.key, keyissuer.Key()
            corp.provider.published = [corp.key]
            load.wait_for(lambda o: o.status == 401 and o.kind != "forbidden", 4)  # nobody can know the new key
            assert corp.status(corp.token(old)) == 200
            corp.provider.up = True
            corp.clock.pass_time(15)  # the pause between fetches for unknown keys
            load.wait_for(ok, 10)
            assert until(lambda: corp.status(corp.token(old)) == 401, corp.gateway)
        load.wait_until_well()
    assert "Traceback" not in corp.gateway.log
    lines = corp.gateway.log.splitlines()
    assert len([line for line in lines if "issuer" in line]) < 60  # 13 refreshes, and what asks for unknown keys
    load.check()


def test_keys_are_rotated(corp):
    with corp.running() as load:
        old = corp.key
        with load.running():
            load.wait_for(ok, 6)
            began, before = time.monotonic(), len(corp.provider.fetches)
            new = keyissuer.Key()
            corp.provider.published = [old, new]
            corp.clock.pass_time(15)
            assert until(lambda: corp.status(corp.token(new)) == 200, corp.gateway)
            assert corp.status(corp.token(old)) == 200
            corp.key = new
            load.wait_for(ok, 6)
            # The old key goes. Whoever asks for an unknown key brings that forward; else the next fetch does.
            corp.provider.published = [new]
            remembered = corp.token(old, seconds=7200)
            assert corp.status(remembered) in (200, 401)
            corp.clock.pass_time(700)
            assert until(lambda: corp.status(remembered) == 401, corp.gateway)
            assert corp.status(corp.token(old)) == 401
            load.wait_for(ok, 6)
            # A third of the load names keys that are not there, each another one: one fetch in ten seconds.
            load.wait_for(lambda o: o.kind == "forbidden", 30)
            fetches, took = len(corp.provider.fetches) - before, time.monotonic() - began
            assert fetches <= took / 10 + 6  # some of these for what is new, and one of every ten minutes
        load.wait_until_well()
    assert "Traceback" not in corp.gateway.log
    load.check()


# What the machine has no more of


def descriptors(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def set_limit(pid, what, soft):
    """Of a running process; returns what it was."""
    before, hard = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, hard))
    return before


@pytest.mark.long
def test_out_of_file_descriptors(controlplane, gateway_kubeconfig, agent_token, tmp_path):
    with gateway_of(tmp_path, gateway_kubeconfig) as one, contextlib.ExitStack() as life:
        pid = one.process.pid
        load = Load(one, controlplane, lambda: agent_token, seconds=5)
        load.wait_until_well()
        with load.running():
            load.wait_for(ok, 6)
            most = descriptors(pid) + 20
            before = set_limit(pid, resource.RLIMIT_NOFILE, most)
            silent = [life.enter_context(contextlib.closing(socket.socket())) for _ in range(60)]
            for connection in silent:  # the kernel takes them all, the gateway cannot
                connection.settimeout(10)
                connection.connect(("127.0.0.1", one.port))
            until(lambda: descriptors(pid) >= most - 1, one)
            began, lines = time.monotonic(), len(one.log.splitlines())
            load.wait_for(lambda o: not ok(o), 6, seconds=90)
            until(lambda: one.log.count("out of resources, so connections have to wait") >= 3, one)
            said = one.log.splitlines()[lines:]
            # One line a second, and one for each request that nobody could answer.
            assert len(said) < 3 * (time.monotonic() - began) + 2 * len(load.answers), "\n".join(said[:40])
            for connection in silent:
                connection.close()
            load.wait_for(ok, 6)  # by itself, with what there is
            # Enough for a client and not for the API server, the record or the state.
            lines, asked = len(one.log.splitlines()), len(load.answers)
            for spare in (0, 2):
                set_limit(pid, resource.RLIMIT_NOFILE, descriptors(pid) + spare)
                load.wait_for(lambda o: True, 6, seconds=90)
            set_limit(pid, resource.RLIMIT_NOFILE, before)
            load.wait_for(ok, 6)
            assert len(one.log.splitlines()) - lines < 100 + 20 * (len(load.answers) - asked), one.log[-3000:]
        load.wait_until_well()
    load.check()


def test_slow_senders(controlplane, gateway_kubeconfig, agent_token, tmp_path):
    """A body of which a byte comes now and then, from who has a token and who has none."""
    settings = ["tollgate_body_timeout=2", "tollgate_source_open=40"]
    with gateway_of(tmp_path, gateway_kubeconfig, settings=settings) as one, contextlib.ExitStack() as life:
        load = Load(one, controlplane, lambda: agent_token)
        load.wait_until_well()
        since = controlplane.audit_position()
        context = ssl.create_default_context(cafile=one.ca_file)
        senders = []
        for number in range(30):  # of the 40 that one address may have open
            plain = life.enter_context(socket.create_connection(("127.0.0.1", one.port), 30))
            senders.append(life.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1")))
            token = agent_token if number % 2 else "no-token-of-ours"
            head = f"POST {MAPS}?slow=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            senders[-1].sendall(f"{head}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{".encode())
        with load.running():
            for sender in senders:
                assert sender.recv(65536).startswith(b"HTTP/1.1 408 ")
            load.wait_for(ok, 6)
        load.wait_until_well()
        assert not [e for e in controlplane.audit_events(since) if "slow=1" in e["requestURI"]]
    load.check()


def size_of(pid):
    """Bytes of its address space."""
    return int(re.search(r"VmSize:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


@pytest.mark.long
def test_out_of_memory_for_one_request(controlplane, gateway_kubeconfig, agent_token, tmp_path):
    huge = json.dumps({"metadata": {"name": f"huge-{time.time_ns()}"}, "data": {"x": "y" * 150_000_000}}).encode()
    # What is limited is address space, of which each thread reserves 64 MB for an arena of its own: not what is meant.
    arenas = {"MALLOC_ARENA_MAX": "1"}
    with gateway_of(tmp_path, gateway_kubeconfig, settings=["body_size_limit=200m"], environment=arenas) as one:
        pid = one.process.pid
        load = Load(one, controlplane, lambda: agent_token)
        load.wait_until_well()
        since = controlplane.audit_position()
        with load.running():
            load.wait_for(ok, 6)
            before = set_limit(pid, resource.RLIMIT_AS, size_of(pid) + 100_000_000)
            for _ in range(2):
                answer = client.request(one.port, one.ca_file, "POST", MAPS, token=agent_token, body=huge, seconds=60)
                assert answer.status in (0, 413, 500, 502, 503), answer.body[:300]
                load.wait_for(ok, 6, seconds=30)  # others go on
            set_limit(pid, resource.RLIMIT_AS, before)
            load.wait_for(ok, 6)
        load.wait_until_well()
        assert not [e for e in controlplane.audit_events(since) if "huge-" in json.dumps(e.get("objectRef", {}))]
        assert "no memory for what" in one.log
    load.check()


# The network behind the gateway


@pytest.fixture(scope="module")
def network(controlplane, tmp_path_factory):
    one = faultproxy.FaultProxy(controlplane, tmp_path_factory.mktemp("faultproxy"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def behind(controlplane, network, tmp_path_factory):
    """A gateway behind the bad network: makes loads on it, whose records are looked at when it has left."""
    folder, loads = tmp_path_factory.mktemp("behind"), []
    token = controlplane.token("agents", "ci-agent")
    with gateway_of(folder, network.kubeconfig(folder / "own.kubeconfig")) as one:

        def make():
            loads.append(Load(one, controlplane, lambda: token, http=2))
            return loads[-1]

        yield make
    assert "Traceback" not in one.log
    for load in loads:
        load.check_record()


@pytest.mark.parametrize("name", faultproxy.FAULTS)
def test_a_bad_network(network, behind, name):
    load = behind()
    load.wait_until_well()
    with load.running():
        load.wait_for(ok, 4)
        before, network.fault = network.met, faultproxy.FAULTS[name]
        try:
            load.wait_for(lambda o: o.kind != "forbidden", 12)
            until(lambda: network.met - before >= 6, load.gateway)
        finally:
            network.fault = None
        load.wait_for(ok, 6)
    load.wait_until_well()
    load.check_answers()
    load.check_cluster()


def test_a_slow_network(network, behind):
    load = behind()
    load.wait_until_well()
    with load.running():
        network.delay = 1
        try:
            load.wait_for(ok, 4)  # late, but whole
            load.wait_for(lambda o: o.kind == "forbidden", 4)  # and who is refused does not wait for others
        finally:
            network.delay = 0
        load.wait_for(ok, 6)
    assert set(load.statuses()["read"]) == {200}
    load.check_answers()
    load.check_cluster()
