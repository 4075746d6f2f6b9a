"""
An exception in every hook of every addon, scripts deleted and broken while running, requests
from the first moment: each time no object in etcd that should not be there, and no answer that
was not judged.

Which hooks there are is read from the addons; each must be in one of the tables below.
"""

import contextlib
import importlib
import itertools
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from mitmproxy import hooks

from addons import guard
from addons.core import stack
from tests import http2
from tests.cluster import controlplane as plane
from tests.e2e import client, gateway, policies

pytestmark = [pytest.mark.e2e, pytest.mark.attack("faults")]

NAMES = (f"fault-{n}" for n in itertools.count())
AGENT = "tollgate:system:serviceaccount:agents:ci-agent"
MAPS = "/api/v1/namespaces/shop/configmaps"
SETTINGS = f"{MAPS}/settings"
STREAMED = "/version"  # holds nothing secret, so it is not kept and masked as a whole
CONTENT = b"Welcome to the shop"  # what is in it

# Every hook of every addon, by what must hold when it raises. `mitmproxy` logs the exception, skips the
# same hook of every later script, and goes on; LastWord stands outside the scripts.

# A request is not sent on.
REQUEST = [
    ("tollgate_guard", "requestheaders"),
    ("tollgate_guard", "request"),
    ("tollgate_authenticate", "requestheaders"),
    ("tollgate_authenticate", "request"),
    ("tollgate_classify", "request"),
    ("tollgate_block", "request"),
    ("tollgate_approve", "request"),
    ("tollgate_mask", "request"),
    ("tollgate_record", "request"),
    ("tollgate_upstream", "request"),
    ("tollgate_last_word", "request"),
]
# An answer does not begin; the client gets a 502.
HEAD = [
    ("tollgate_guard", "responseheaders"),
    ("tollgate_authenticate", "responseheaders"),
    ("tollgate_block", "responseheaders"),
    ("tollgate_approve", "responseheaders"),
    ("tollgate_mask", "responseheaders"),
    ("tollgate_record", "responseheaders"),
    ("tollgate_upstream", "responseheaders"),
    ("tollgate_last_word", "responseheaders"),
]
# A streamed answer, already judged by its head, does not end as if it were complete; any other is a 502.
END = [
    ("tollgate_guard", "response"),
    ("tollgate_authenticate", "response"),
    ("tollgate_classify", "response"),
    ("tollgate_block", "response"),
    ("tollgate_approve", "response"),
    ("tollgate_mask", "response"),
    ("tollgate_record", "response"),
    ("tollgate_upstream", "response"),
    ("tollgate_last_word", "response"),
]
# No frame reaches the other side.
FRAME = [
    ("tollgate_guard", "websocket_message"),
    ("tollgate_authenticate", "websocket_message"),
    ("tollgate_mask", "websocket_message"),
    ("tollgate_record", "websocket_message"),
    ("tollgate_last_word", "websocket_message"),
]
RAW = [
    ("tollgate_guard", "tcp_start"),
    ("tollgate_guard", "tcp_message"),
    ("tollgate_authenticate", "tcp_message"),
    ("tollgate_mask", "tcp_message"),
    ("tollgate_record", "tcp_message"),
    ("tollgate_last_word", "tcp_message"),
]
# Connections, before anything is sent on them: what is judged passes, nothing else does.
CONNECTION = [
    ("tollgate_guard", "client_connected"),
    ("tollgate_guard", "client_disconnected"),
    ("tollgate_last_word", "client_disconnected"),
    ("tollgate_last_word", "server_connect"),
    ("tollgate_upstream", "tls_start_server"),
]
# Never called: mitmproxy itself refuses CONNECT in reverse mode. tests/addons/test_guard.py has both.
NEVER = [
    ("tollgate_guard", "http_connect"),
    ("tollgate_last_word", "http_connect"),
]
# After the end of an exchange: what it held is given back later or not at all, and nothing else changes.
AFTER_ERROR = [
    ("tollgate_authenticate", "error"),
    ("tollgate_block", "error"),
    ("tollgate_approve", "error"),
    ("tollgate_mask", "error"),
    ("tollgate_record", "error"),
    ("tollgate_last_word", "error"),
]
AFTER_WEBSOCKET = [
    ("tollgate_authenticate", "websocket_end"),
    ("tollgate_block", "websocket_end"),
    ("tollgate_approve", "websocket_end"),
    ("tollgate_mask", "websocket_end"),
    ("tollgate_record", "websocket_end"),
    ("tollgate_last_word", "websocket_end"),
]
# Start and configuration. At the start the process leaves; when a script is loaded again while running,
# requests are refused, or judged as before where nothing was lost.
LIFECYCLE = [
    ("tollgate_guard", "load", "refused"),
    ("tollgate_guard", "configure", "refused"),
    ("tollgate_guard", "running", "judged"),  # all it does is to open the port
    ("tollgate_last_word", "configure", "refused"),
    ("tollgate_authenticate", "load", "refused"),
    ("tollgate_authenticate", "configure", "refused"),
    ("tollgate_authenticate", "running", "refused"),
    ("tollgate_classify", "load", "refused"),
    ("tollgate_classify", "configure", "refused"),
    ("tollgate_block", "load", "refused"),
    ("tollgate_block", "configure", "refused"),
    ("tollgate_block", "running", "judged"),  # by the policies loaded last
    ("tollgate_approve", "load", "refused"),
    ("tollgate_approve", "configure", "judged"),  # what is held is refused then
    ("tollgate_approve", "running", "judged"),  # likewise
    ("tollgate_mask", "load", "refused"),
    ("tollgate_mask", "configure", "refused"),
    ("tollgate_mask", "running", "judged"),  # without threads of its own, and patterns compiled when first used
    ("tollgate_record", "load", "refused"),
    ("tollgate_record", "configure", "refused"),
    ("tollgate_record", "running", "judged"),  # it writes; only what is kept long is not tidied up
    ("tollgate_engine", "load", "judged"),  # it judges nothing; what it has replaced stays replaced
    ("tollgate_engine", "configure", "judged"),
    ("tollgate_engine", "running", "judged"),
    ("tollgate_upstream", "load", "refused"),
    ("tollgate_upstream", "configure", "refused"),
    ("tollgate_upstream", "running", "judged"),  # the API server's credential is kept fresh by another's start of it
]
# It stands outside the scripts, so it is never loaded again.
START = [
    ("tollgate_last_word", "running"),
]
# When a script goes or is loaded again, and at the end of the process.
DONE = [
    ("tollgate_guard", "done"),
    ("tollgate_authenticate", "done"),
    ("tollgate_block", "done"),
    ("tollgate_approve", "done"),
    ("tollgate_mask", "done"),
    ("tollgate_record", "done"),
    ("tollgate_upstream", "done"),
    ("tollgate_engine", "done"),
]


def addon_classes():
    """The classes of all addons, by what the scripts hand to mitmproxy."""
    scripts = [importlib.import_module(f"addons.{name}") for name in ("guard", *stack.ORDER, *stack.AIDS)]
    return [type(addon) for script in scripts for addon in script.addons] + [guard.LastWord]


def test_every_hook_of_every_addon_is_in_one_table():
    tables = [REQUEST, HEAD, END, FRAME, RAW, CONNECTION, NEVER, AFTER_ERROR, AFTER_WEBSOCKET, LIFECYCLE, START, DONE]
    there = {(c.name, hook) for c in addon_classes() for hook in hooks.all_hooks if hasattr(c, hook)}
    assert sorted((row[0], row[1]) for table in tables for row in table) == sorted(there)


class Stage:
    """A gateway that lets nearly everything pass, from a copy of the scripts, with the one that breaks things."""

    def __init__(self, running, cluster, token, fault, root):
        self.gateway, self.cluster, self.token, self.fault, self.root = running, cluster, token, fault, root
        self.config = running.kubeconfig("agent", token)

    def request(self, method, path, body=None, **more):
        return client.request(
            self.gateway.port, self.gateway.ca_file, method, path, **{"token": self.token, "body": body, **more}
        )

    def create(self, name, **more):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
        return self.request("POST", MAPS, body, **more)

    def exists(self, name):
        found, _ = self.cluster.request("GET", f"{MAPS}/{name}")
        return found == 200

    def works(self):
        name = next(NAMES)
        return self.create(name).status == 201 and self.exists(name)

    def kubectl(self, *args, **more):
        return self.cluster.run_kubectl(*args, kubeconfig=self.config, check=False, **{"timeout": 20, **more})

    def exec(self, *command, spdy=False, input=None):  # noqa: A002 (as in subprocess.run)
        pod = self.cluster.pods("shop", "app=web")[0]
        stdin = ["-i"] if input is not None else []
        env = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false"} if spdy else {}
        try:
            return self.kubectl("exec", *stdin, "-n", "shop", pod, "--", *command, env=env, input=input, timeout=4)
        except plane.ControlPlaneError as e:
            # Over SPDY, kubectl waits for streams to open though the connection is closed.
            said = getattr(e.__cause__, "stdout", None) or b""
            return subprocess.CompletedProcess(command, None, said.decode(), "")

    def handshake(self):
        """The answer to an exec over WebSocket, before any frame."""
        pod = self.cluster.pods("shop", "app=web")[0]
        return self.request("GET", f"/api/v1/namespaces/shop/pods/{pod}/exec?command=true&stdout=true", headers=UPGRADE)

    def break_hooks(self, *faults):
        """Each `ADDON HOOK [SIDE]` raises from now on."""
        text = "\n".join(faults)
        self.fault.write_text(text)
        until(lambda: read(self.fault.with_suffix(".armed")) == text, self.gateway)

    def fired(self):
        """The faults that were met since `break_hooks`."""
        return set(read(self.fault.with_suffix(".fired")).splitlines())


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "v5.channel.k8s.io",
}


def read(path):
    return path.read_text() if path.exists() else ""


def until(condition, running, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, running.log[-3000:]
        time.sleep(0.1)


def prepare(folder):
    """A copy of the scripts and a policy; returns the copy, the file for faults and what the environment needs."""
    root, fault = folder / "root", folder / "fault"
    shutil.copytree(gateway.ROOT / "addons", root / "addons", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "policy.yaml").write_text(NEARLY_EVERYTHING)
    fault.write_text("")
    return root, fault


NEARLY_EVERYTHING = (
    policies.EVERYTHING
    + """
- name: forbidden
  action: deny
  match: {resources: [configmaps], resourceNames: ["forbidden-*"], verbs: ["*"]}
"""
)


@pytest.fixture(scope="module")
def make_stage(controlplane, gateway_kubeconfig, tmp_path_factory):
    token = controlplane.token("agents", "ci-agent")

    @contextlib.contextmanager
    def make(*more, policy=NEARLY_EVERYTHING):
        folder = tmp_path_factory.mktemp("faults")
        root, fault = prepare(folder)
        (folder / "policy.yaml").write_text(policy)
        arguments = [
            "--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml"), *more,
            "--", "-s", str(Path(__file__).with_name("faults.py")),
        ]  # fmt: skip
        with gateway.running(folder, *arguments, root=root, environment={"TOLLGATE_TEST_FAULT": str(fault)}) as running:
            yield Stage(running, controlplane, token, fault, root)

    return make


@pytest.fixture(scope="module")
def stage(make_stage):
    with make_stage() as one:
        until(one.works, one.gateway)
        yield one


@pytest.fixture(scope="module")
def spdy_stage(make_stage):
    unmasked = NEARLY_EVERYTHING.replace(policies.EVERYTHING, policies.UNMASKED)
    with make_stage("--allow-spdy", policy=unmasked) as one:
        until(one.works, one.gateway)
        yield one


@pytest.fixture(scope="module")
def plain_stage(make_stage):
    """By mitmproxy's own manager. All of this file runs so with TOLLGATE_WITHOUT=engine in the environment."""
    with make_stage("--without", "engine") as one:
        until(one.works, one.gateway)
        yield one


@pytest.fixture
def broken_plain(plain_stage):
    yield plain_stage.break_hooks
    plain_stage.break_hooks()
    assert plain_stage.works()


@pytest.fixture
def broken(stage):
    yield stage.break_hooks
    stage.break_hooks()
    assert stage.works()


@pytest.fixture
def broken_spdy(spdy_stage):
    yield spdy_stage.break_hooks
    spdy_stage.break_hooks()
    assert spdy_stage.works()


def nobody_gets_in(stage):
    """What must be refused whatever is broken: no token, a wrong one, impersonation, what the policy denies."""
    attempts = [
        (next(NAMES), {"token": None}),
        (next(NAMES), {"token": "no-token-of-ours"}),
        (next(NAMES), {"headers": {"Impersonate-User": "root"}}),
        (f"forbidden-{next(NAMES)}", {}),
    ]
    for name, more in attempts:
        assert stage.create(name, **more).status in (0, 401, 403, 502, 503)
        assert not stage.exists(name)


@pytest.mark.parametrize(("addon", "hook"), REQUEST)
def test_an_exception_on_the_way_in(stage, broken, addon, hook):
    broken(f"{addon} {hook}")
    name = next(NAMES)
    answer = stage.create(name)
    assert answer.status == 503, stage.gateway.log
    assert answer.reason == "not-judged"
    assert not stage.exists(name)
    nobody_gets_in(stage)
    assert stage.fired() == {f"{addon} {hook}"}


@pytest.mark.parametrize(("addon", "hook"), REQUEST)
def test_an_exception_on_the_way_in_without_the_engine(plain_stage, broken_plain, addon, hook):
    test_an_exception_on_the_way_in(plain_stage, broken_plain, addon, hook)


@pytest.mark.parametrize(("addon", "hook"), [*HEAD, *END])
def test_an_exception_on_the_way_back_without_the_engine(plain_stage, broken_plain, addon, hook):
    broken_plain(f"{addon} {hook}")
    answer = plain_stage.request("GET", SETTINGS)
    assert answer.status == 502
    assert CONTENT not in answer.body
    assert plain_stage.fired() == {f"{addon} {hook}"}


def test_an_exception_in_both_words_of_the_guard_on_the_way_in(stage, broken):
    broken("tollgate_guard requestheaders", "tollgate_guard request", "tollgate_last_word request")
    name = next(NAMES)
    assert stage.create(name).status == 0  # the gate at the wire: making an answer may be what failed
    assert not stage.exists(name)


async def over_http2(stage, path):
    async with http2.connect(stage.gateway.port, stage.gateway.ca_file) as connection:
        return await connection.request(path, headers=(("authorization", f"Bearer {stage.token}"),))


@pytest.mark.parametrize("http", [1, 2])
@pytest.mark.parametrize(("addon", "hook"), HEAD)
async def test_an_exception_at_the_head_of_an_answer(stage, broken, addon, hook, http):
    broken(f"{addon} {hook}")
    answer = stage.request("GET", SETTINGS) if http == 1 else await over_http2(stage, SETTINGS)
    assert answer.status == 502
    assert answer.headers["tollgate-reason"] == "answer-not-judged"
    assert CONTENT not in answer.body
    assert stage.fired() == {f"{addon} {hook}"}


@pytest.mark.parametrize(("addon", "hook"), HEAD)
def test_an_exception_at_the_head_of_an_upgrade(stage, broken, addon, hook):
    broken(f"{addon} {hook}")
    assert stage.handshake().status == 502
    assert stage.fired() == {f"{addon} {hook}"}


@pytest.mark.parametrize(("addon", "hook"), END)
async def test_an_exception_at_the_end_of_an_answer(stage, broken, addon, hook):
    broken(f"{addon} {hook}")
    assert stage.request("GET", STREAMED).status == 0  # its body broke off
    answer = await over_http2(stage, STREAMED)
    assert answer.reset not in (None, 0)
    assert stage.fired() == {f"{addon} {hook}"}


@pytest.mark.parametrize("http", [1, 2])
@pytest.mark.parametrize(("addon", "hook"), END)
async def test_an_exception_at_the_end_of_an_answer_that_is_masked(stage, broken, addon, hook, http):
    broken(f"{addon} {hook}")
    answer = stage.request("GET", SETTINGS) if http == 1 else await over_http2(stage, SETTINGS)
    assert answer.status == 502
    assert CONTENT not in answer.body
    assert stage.fired() == {f"{addon} {hook}"}


@pytest.mark.parametrize(("addon", "hook"), END)
def test_an_exception_at_the_end_of_an_answer_without_a_body(stage, broken, addon, hook):
    broken(f"{addon} {hook}")
    answer = stage.request("HEAD", SETTINGS)
    assert answer.status == 502
    assert stage.fired() == {f"{addon} {hook}"}


@pytest.mark.parametrize(("addon", "hook"), END)
def test_an_exception_when_an_upgrade_is_answered(stage, broken, addon, hook):
    broken(f"{addon} {hook}")
    answer = stage.handshake()
    assert answer.status == 502
    assert answer.reason == "answer-not-judged"
    assert stage.fired() == {f"{addon} {hook}"}


BOTH_WORDS = [
    (["tollgate_guard responseheaders", "tollgate_last_word responseheaders"], 502),
    (["tollgate_guard response", "tollgate_last_word response"], 0),
]


@pytest.mark.parametrize(("faults", "status"), BOTH_WORDS)
def test_an_exception_in_both_words_of_the_guard_on_the_way_back(stage, broken, faults, status):
    broken(*faults)
    assert stage.request("GET", STREAMED).status == status
    answer = stage.request("GET", SETTINGS)
    assert answer.status == 502
    assert CONTENT not in answer.body
    assert stage.handshake().status == 502
    assert stage.fired() == set(faults)


FRAME_FAULTS = [[f"{addon} {hook}"] for addon, hook in FRAME] + [
    ["tollgate_guard websocket_message", "tollgate_last_word websocket_message"]
]
RAW_FAULTS = [[f"{addon} {hook}"] for addon, hook in RAW] + [
    ["tollgate_guard tcp_message", "tollgate_last_word tcp_message"],
    ["tollgate_guard tcp_start", "tollgate_guard tcp_message", "tollgate_last_word tcp_message"],
]


@pytest.mark.parametrize("faults", FRAME_FAULTS, ids=" and ".join)
def test_an_exception_at_a_frame_from_the_pod(stage, broken, faults):
    broken(*(f"{fault} server" for fault in faults))
    done = stage.exec("echo", "frame-content")
    assert "frame-content" not in done.stdout
    assert stage.fired() == set(faults)


@pytest.mark.parametrize("faults", FRAME_FAULTS, ids=" and ".join)
def test_an_exception_at_a_frame_to_the_pod(stage, broken, faults):
    broken(*(f"{fault} client" for fault in faults))
    file = stage.cluster.pod_files / next(NAMES)
    stage.exec("tee", str(file), input="frame-content")
    assert "frame-content" not in read(file)
    assert stage.fired() == set(faults)


def test_frames_pass_while_nothing_is_broken(stage, spdy_stage):
    """What the tests of frames would see, so that none of them passes for another reason."""
    for one, spdy in ((stage, False), (spdy_stage, True)):
        file = one.cluster.pod_files / next(NAMES)
        assert "frame-content" in one.exec("tee", str(file), spdy=spdy, input="frame-content").stdout
        assert read(file) == "frame-content"


@pytest.mark.parametrize("faults", RAW_FAULTS, ids=" and ".join)
def test_an_exception_at_raw_bytes_to_the_pod(spdy_stage, broken_spdy, faults):
    # The command runs only once the client has opened its streams by SPDY frames.
    broken_spdy(*(f"{fault}{'' if 'tcp_start' in fault else ' client'}" for fault in faults))
    file = spdy_stage.cluster.pod_files / next(NAMES)
    spdy_stage.exec("tee", str(file), spdy=True, input="frame-content")
    assert not file.exists()
    assert spdy_stage.fired() == set(faults)


@pytest.mark.parametrize("faults", [f for f in RAW_FAULTS if "tcp_start" not in f[0]], ids=" and ".join)
def test_an_exception_at_raw_bytes_from_the_pod(spdy_stage, broken_spdy, faults):
    broken_spdy(*(f"{fault} server" for fault in faults))
    assert "frame-content" not in spdy_stage.exec("echo", "frame-content", spdy=True).stdout
    assert spdy_stage.fired() == set(faults)


@pytest.mark.parametrize(("addon", "hook"), END)
def test_an_exception_when_an_upgrade_to_spdy_is_answered(spdy_stage, broken_spdy, addon, hook):
    broken_spdy(f"{addon} {hook}")
    file = spdy_stage.cluster.pod_files / next(NAMES)
    spdy_stage.exec("tee", str(file), spdy=True, input="frame-content")
    assert not file.exists()
    assert f"{addon} {hook}" in spdy_stage.fired()


@pytest.mark.parametrize(("addon", "hook"), CONNECTION)
def test_an_exception_at_a_connection(stage, broken, addon, hook):
    broken(f"{addon} {hook}")
    since, name = stage.cluster.audit_position(), next(NAMES)
    assert stage.create(name).status == 201
    assert stage.exists(name)
    users = [e["impersonatedUser"]["username"] for e in named(stage.cluster.audit_events(since), name)]
    assert users == [AGENT]
    nobody_gets_in(stage)
    assert stage.fired() == {f"{addon} {hook}"}


def named(events, name):
    """Those about this object that came through a gateway."""
    return [e for e in events if e.get("objectRef", {}).get("name") == name and "impersonatedUser" in e]


@pytest.mark.parametrize(("addon", "hook"), NEVER)
def test_connect_is_refused_without_the_hook(stage, broken, addon, hook):
    broken(f"{addon} {hook}")
    assert stage.request("CONNECT", "127.0.0.1:443").status == 400
    assert not stage.fired()


@pytest.mark.parametrize(("addon", "hook"), AFTER_ERROR)
def test_an_exception_after_a_broken_exchange(stage, broken, addon, hook):
    broken(f"{addon} {hook}")
    context = ssl.create_default_context(cafile=stage.gateway.ca_file)
    with socket.create_connection(("127.0.0.1", stage.gateway.port), 10) as plain:
        watch = context.wrap_socket(plain, server_hostname="127.0.0.1")
        line = "GET /api/v1/namespaces/shop/pods?watch=1 HTTP/1.1"
        watch.sendall(f"{line}\r\nHost: x\r\nAuthorization: Bearer {stage.token}\r\n\r\n".encode())
        assert b" 200 " in watch.recv(65536)
        watch.close()
    until(lambda: stage.fired() == {f"{addon} {hook}"}, stage.gateway)
    nobody_gets_in(stage)
    assert stage.works()


@pytest.mark.parametrize(("addon", "hook"), AFTER_WEBSOCKET)
def test_an_exception_after_an_exec(stage, broken, addon, hook):
    broken(f"{addon} {hook}")
    for _ in range(2):
        assert stage.exec("echo", "frame-content").stdout == "frame-content\n"
    until(lambda: stage.fired() == {f"{addon} {hook}"}, stage.gateway)
    nobody_gets_in(stage)


FAULT = """

def fault(*args):
    with open({fired!r}, "a") as file:
        file.write("x")
    raise RuntimeError("fault injected by a test")


{cls}.{hook} = fault
"""


def script_of(root, addon):
    return root / "addons" / f"{class_of(addon).__module__.rpartition('.')[2]}.py"


def class_of(addon):
    return next(c for c in addon_classes() if c.name == addon)


def break_script(root, addon, hook, fired):
    """Let the hook raise from the first moment; while running, mitmproxy loads the script again."""
    script, cls = script_of(root, addon), class_of(addon)
    script.write_text(script.read_text() + FAULT.format(fired=str(fired), cls=cls.__name__, hook=hook))


@pytest.mark.parametrize(("addon", "hook"), [*(row[:2] for row in LIFECYCLE), *START])
def test_an_exception_at_the_start(controlplane, gateway_kubeconfig, tmp_path, addon, hook):
    root, _ = prepare(tmp_path)
    fired = tmp_path / "fired"
    break_script(root, addon, hook, fired)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(tmp_path / "policy.yaml")]
    port = gateway.free_port()
    process = gateway.launch(tmp_path, arguments, port=port, root=root)
    try:
        deadline = time.monotonic() + gateway.START_LIMIT
        while process.poll() is None:
            assert time.monotonic() < deadline
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port))  # nobody listens
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode == 1
    assert read(fired)


@contextlib.contextmanager
def loaded_again(make_stage, shared, addon, hook, fired):
    """A gateway that has loaded the script again, with a hook that raises."""
    if hook == "running":
        # mitmproxy's watcher of the script dies of it: this gateway notices no further change.
        with make_stage() as own:
            until(own.works, own.gateway)
            break_script(own.root, addon, hook, fired)
            until(lambda: read(fired), own.gateway)
            yield own
        return
    script = script_of(shared.root, addon)
    good = script.read_text()
    try:
        break_script(shared.root, addon, hook, fired)
        until(lambda: read(fired), shared.gateway)
        yield shared
    finally:
        script.write_text(good)
        until(shared.works, shared.gateway)


@pytest.mark.parametrize(("addon", "hook", "outcome"), LIFECYCLE)
def test_an_exception_when_a_script_is_loaded_again(make_stage, stage, tmp_path, addon, hook, outcome):
    with loaded_again(make_stage, stage, addon, hook, tmp_path / "fired") as one:
        until(one.works if outcome == "judged" else lambda: is_refused(one), one.gateway)
        nobody_gets_in(one)


@pytest.mark.parametrize("leave", ["touch", "unlink"], ids=["loaded again", "deleted"])
@pytest.mark.parametrize(("addon", "hook"), DONE)
def test_an_exception_when_a_script_is_left(make_stage, addon, hook, leave):
    with make_stage() as one:
        until(one.works, one.gateway)
        one.break_hooks(f"{addon} {hook}")
        getattr(script_of(one.root, addon), leave)()
        until(lambda: one.fired() == {f"{addon} {hook}"}, one.gateway)
        nobody_gets_in(one)
        assert one.works()  # the old one stays, since mitmproxy could not let it go
    assert one.gateway.process.returncode == 0  # it leaves when told to, and had not to be killed


SCRIPTS = ["guard", "authenticate", "classify", "block", "approve", "mask", "record", "upstream"]


def is_refused(stage):
    """Refused, and not created. mitmproxy notices a changed script within a second."""
    name = next(NAMES)
    return stage.create(name).status in (403, 503) and not stage.exists(name)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_with_a_syntax_error(stage, script):
    path = stage.root / "addons" / f"{script}.py"
    good = path.read_text()
    try:
        path.write_text("def broken(:\n")
        until(lambda: is_refused(stage), stage.gateway)
    finally:
        path.write_text(good)
    until(stage.works, stage.gateway)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_deleted_script(make_stage, script):
    with make_stage() as stage:
        assert stage.works()
        (stage.root / "addons" / f"{script}.py").unlink()
        until(lambda: is_refused(stage), stage.gateway)


def test_from_the_first_moment(controlplane, gateway_kubeconfig, tmp_path):
    (tmp_path / "policy.yaml").write_text(policies.EVERYTHING.replace("allow", "deny"))
    port = gateway.free_port()
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(tmp_path / "policy.yaml")]
    process = gateway.launch(tmp_path, arguments, port=port)
    token = controlplane.token("agents", "ci-agent")
    name, answers = next(NAMES), []
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    deadline = time.monotonic() + 30
    try:
        while time.monotonic() < deadline and (not answers or answers[-1] == 503):
            ca_file = tmp_path / "state" / "tls" / "ca.crt"
            if ca_file.exists():
                path = "/api/v1/namespaces/shop/configmaps"
                answer = client.request(port, ca_file, "POST", path, token=token, body=body, seconds=5)
                if answer.status:
                    answers.append(answer.status)
        assert answers
        assert set(answers) <= {403, 503}
        assert answers[-1] == 403
    finally:
        process.terminate()
        process.wait(10)
    found, _ = controlplane.request("GET", f"/api/v1/namespaces/shop/configmaps/{name}")
    assert found == 404


def test_what_the_control_plane_saw(stage):
    """The oracle itself: a request that was let through is in the audit log, with our id."""
    name = next(NAMES)
    since = stage.cluster.audit_position()
    assert stage.create(name).status == 201
    events = [e for e in stage.cluster.audit_events(since) if e.get("objectRef", {}).get("name") == name]
    assert events
