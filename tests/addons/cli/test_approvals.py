"""The commands against the real virtual API, at real terminals where there must be one."""

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from addons.cli import approvals as cli
from addons.core.approvals import Phase, Preview
from addons.net.book import REQUESTS
from tests import records
from tests.virtualgateway import VirtualGateway

ROOT = Path(__file__).resolve().parents[3]
KEY = ec.generate_private_key(ec.SECP256R1())


def token(name, audience="tollgate-approver"):
    return jwt.encode({"iss": "https://issuer.example", "aud": audience, "sub": name}, KEY, "ES256")


ALICE, BOB, MALLORY, NOBODY = (
    token("alice"),
    token("bob", ["tollgate-approver", "x"]),
    token("mallory"),
    token("nobody"),
)
EVERYDAY = token("alice", "tollgate")
VIEWERS = {
    ALICE: lambda: records.approver(now=time.time()),
    BOB: lambda: records.approver("bob", now=time.time()),
    EVERYDAY: lambda: records.approver(now=time.time()),
    MALLORY: lambda: records.agent(),
    "opaque": lambda: records.approver(now=time.time() - 3600),
}


@pytest.fixture
def gateway(tls):
    one = VirtualGateway(tls, VIEWERS)
    yield one
    one.stop()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("KUBECONFIG", "TOLLGATE_APPROVER_TOKEN", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


class Ran:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(gateway, tmp_path):
    """The command with nobody at a terminal."""

    def run(*words, token=ALICE, kubeconfig=None):
        out, err = io.StringIO(), io.StringIO()
        config = ["--kubeconfig", kubeconfig or gateway.kubeconfig(tmp_path, token)] if words else []
        code = cli.main([*words, *config], out, err, io.StringIO())
        assert "Traceback" not in err.getvalue()
        return Ran(code, out.getvalue(), err.getvalue())

    return run


class Terminal:
    """The command as a process at a terminal of its own."""

    def __init__(self, words, **environment):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "addons.cli", "approvals", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def until(self, text, seconds=20):
        """What was shown up to this text, which is taken off."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"never said {text!r}: {self.shown!r}"
            try:
                more = os.read(self.master, 65536)
            except OSError:  # Linux: the other end is closed
                more = b""
            assert more, f"ended before {text!r}: {self.shown!r}"
            self.shown += more.decode()
        before, _, self.shown = self.shown.partition(text)
        return before

    def type(self, text):
        os.write(self.master, text.encode())

    def end(self):
        code = self.process.wait(20)
        with contextlib.suppress(OSError):
            while more := os.read(self.master, 65536):
                self.shown += more.decode()
        return code

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        os.close(self.master)


@pytest.fixture
def terminal(gateway, tmp_path):
    opened = []

    def open_one(*words, token=ALICE, **environment):
        opened.append(Terminal([*words, "--kubeconfig", gateway.kubeconfig(tmp_path, token)], **environment))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def a_record(name="apr-1", *holds, **fields):
    return records.record(name, *holds, now=fields.pop("now", time.time()), **fields)


# ----- looking -----


def test_list(run, gateway):
    gateway.add(a_record("apr-1"))
    gateway.add(records.access_request("web", now=time.time()))
    gateway.add(a_record("apr-2", phase=Phase.USED))
    ran = run("list")
    assert ran.code == 0
    header, *rows = ran.out.splitlines()
    assert header.split() == ["NAME", "PHASE", "REQUESTER", "ASKS", "TO", "RULE", "IMPACT", "AGE", "LEFT"]
    assert [row.split()[:3] for row in rows] == [
        ["apr-1", "Pending", "tollgate:ci-agent"],
        ["accessrequest/web", "Pending", "tollgate:ci-agent"],
    ]
    assert "scale deployment shop/web to 0" in rows[0]
    assert "delete (14)" in rows[0]
    assert "\033" not in ran.out
    assert "apr-2" in run("list", "--all").out
    assert run("--all").out == run("list", "--all").out


def test_nothing_to_list(run):
    ran = run("list")
    assert (ran.code, ran.out, ran.err) == (0, "", "nothing waits for a decision\n")


def test_list_as_json(run, gateway):
    gateway.add(a_record(summary="a\x1b]0;x\x07ñ"))
    ran = run("-o", "json")
    assert ran.out.isascii()
    assert json.loads(ran.out)["kind"] == "List"
    assert [item["metadata"]["name"] for item in json.loads(ran.out)["items"]] == ["apr-1"]


def test_show(run, gateway):
    gateway.add(a_record())
    ran = run("show", "apr-1")
    assert ran.code == 0
    for text in (
        "Requester   tollgate:ci-agent",
        "Groups      agents, bots",
        "Asks to     scale deployment shop/web to 0",
        "Typed as    kubectl scale deployment web --replicas=0 -n shop (the client's word)",
        "Rule        agents/new-namespace says: Namespaces cost money.",
        "Approvers   platform-oncall",
        "Objects     14 pods",
        "Note        could not be computed: volumes",
        "  │ +  replicas: 0",
    ):
        assert text in ran.out
    assert json.loads(run("show", "approval/apr-1", "-o", "json").out)["spec"]["summary"].startswith("scale")


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("apr-1", "approvals/apr-1"),
        ("approval/x", "approvals/x"),
        ("approval.tollgate.dev/apr-1", "approvals/apr-1"),
        ("apr/apr-1", "approvals/apr-1"),
        ("web", "accessrequests/web"),
        ("accessrequests.tollgate.dev/apr-1", "accessrequests/apr-1"),
        ("../../pods", None),
        ("grants/x", None),
        ("approval/", None),
        ("a%2F..?x=1#", "accessrequests/a%252F..%3Fx%3D1%23"),
    ],
)
def test_names(run, gateway, word, path):
    ran = run("show", word)
    if path is None:
        assert ran.code == 2
        assert gateway.requests == []
    else:
        assert ran.code == 1
        assert gateway.requests == [("GET", f"/apis/tollgate.dev/v1alpha1/{path}")]
    assert ran.err.startswith("tollgate: ")
    assert ran.err.count("\n") == 1


HOSTILE = "x\x1b[2J\x1b]0;evil\x07\x9b31m\r\u202ey\u200b\x08\x7f\x00"


def test_no_order_to_the_terminal_gets_through(run, gateway):
    one = a_record(summary=HOSTILE, command=HOSTILE, message=HOSTILE, impacts=(HOSTILE,), repeatable=HOSTILE)
    one = replace(
        one,
        requester=replace(one.requester, username=HOSTILE, groups=(HOSTILE,)),
        preview=Preview(f"+{HOSTILE}\n-{HOSTILE}", {HOSTILE: 1}, (HOSTILE,), notes=(HOSTILE,), argv=(HOSTILE,)),
    )
    gateway.add(one)
    # As a gateway would send it that does not write such letters out.
    answer = json.loads(run("show", "apr-1", "-o", "json").out)
    raw = json.dumps(answer).replace("x<U+001B>", json.dumps(HOSTILE)[1:-1] + "\\u001b")
    assert HOSTILE[:3] in json.loads(raw)["spec"]["summary"]
    gateway.answer = (200, raw.encode())
    for words in (("show", "apr-1"), ("show", "apr-1", "-o", "json"), ("approve", "apr-1", "--yes")):
        ran = run(*words)
        assert not re.search(r"[^\n\x20-\x7e│…]", ran.out + ran.err), words
    gateway.answer = (200, json.dumps({"items": [json.loads(raw)]}).encode())
    for words in (("list",), ("list", "--all"), ("list", "-o", "json")):
        ran = run(*words)
        assert "apr-1" in ran.out
        assert not re.search(r"[^\n\x20-\x7e│…]", ran.out + ran.err), words


def test_an_error_is_no_order_either(run, gateway):
    gateway.answer = (403, json.dumps({"message": HOSTILE}).encode())
    ran = run("list")
    assert ran.code == 1
    assert re.fullmatch(r"[\x20-\x7e]+\n", ran.err)


def test_at_a_terminal_the_only_escapes_are_our_colours(gateway, terminal):
    gateway.add(a_record(preview=Preview("-a\n+b\n+\x1b[5mc")))
    one = terminal("show", "apr-1")
    assert one.end() == 0
    assert "\033[31m-a\033[0m" in one.shown
    assert "\033[32m+b\033[0m" in one.shown
    assert set(re.findall(r"\033[^m]*m?", one.shown)) <= {f"\033[{n}m" for n in (0, 1, 2, 31, 32, 33, 36)}
    plain = terminal("show", "apr-1", NO_COLOR="1")
    plain.end()
    assert "\033" not in plain.shown
    assert "+b" in plain.shown


def test_a_pipe_that_ends(gateway, tmp_path):
    gateway.add(a_record())
    config = gateway.kubeconfig(tmp_path, ALICE)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m addons.cli approvals --kubeconfig {config} | true"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (1, b"")


# ----- what is in the way -----


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        pytest.param((404, b"404 page not found\n"), 1, "is an API server without tollgate.dev", id="an API server"),
        pytest.param(
            (403, b'{"message":"x cannot list resource \\"approvals\\" in API group \\"tollgate.dev\\" at"}'),
            1,
            "is an API server without tollgate.dev",
            id="an API server, and its RBAC",
        ),
        pytest.param((403, b'{"message":"rule a/b denies it"}'), 1, "tollgate: rule a/b denies it\n", id="no rights"),
        pytest.param((200, b"<html>"), 1, "something else than a Tollgate gateway", id="a web page"),
        pytest.param((200, b"[]"), 1, "something else than a Tollgate gateway", id="a list"),
        pytest.param((200, b"[" * 100000), 1, "something else than a Tollgate gateway", id="a bomb"),
        pytest.param((302, b""), 1, "answered HTTP 302", id="a redirect"),
        pytest.param((503, b'{"message":"tollgate: no state"}'), 1, "tollgate: tollgate: no state", id="broken"),
        pytest.param((200, b'{"items": [1, {"spec": 3}, {"metadata": []}]}'), 0, "", id="odd objects"),
    ],
)
def test_other_answers(run, gateway, answer, code, says):
    gateway.answer = answer
    ran = run("list", "--all")
    assert ran.code == code
    assert says in ran.err
    assert ran.err.count("\n") <= 1


def test_a_gateway_that_is_down(run, tmp_path, gateway):
    config = gateway.kubeconfig(tmp_path, ALICE)
    gateway.run(gateway.site.stop())
    ran = run("list", kubeconfig=config)
    assert ran.code == 1
    assert re.fullmatch(r"tollgate: the gateway at 127.0.0.1:\d+ cannot be reached: .*; is it running\?\n", ran.err)


def test_another_certificate(run, tmp_path, gateway):
    config = json.loads((tmp_path / gateway.kubeconfig(tmp_path, ALICE)).read_text())
    del config["clusters"][0]["cluster"]["certificate-authority"]
    (tmp_path / "public").write_text(json.dumps(config))
    ran = run("list", kubeconfig=str(tmp_path / "public"))
    assert ran.code == 1
    assert "is not the gateway's that your kubeconfig trusts" in ran.err


@pytest.mark.parametrize("words", [("list",), ("watch",), ("approve", "apr-1", "--yes")], ids=" ".join)
def test_a_token_that_is_not_accepted(run, gateway, words):
    ran = run(*words, token=NOBODY)
    assert ran.code == 1
    assert "does not accept your token: tollgate: the token has expired; get a new one" in ran.err


def test_no_kubeconfig(run):
    ran = run("list", kubeconfig="/nonexistent")
    assert ran.code == 2
    assert ran.err == (
        "tollgate: kubeconfig: there is no file /nonexistent; name one with --kubeconfig or set KUBECONFIG\n"
    )


def test_a_credential_plugin_that_fails(run, gateway, tmp_path):
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}
    ran = run("list", kubeconfig=gateway.kubeconfig(tmp_path, "", exec=plugin))
    assert ran.code == 2
    assert ran.err == "tollgate: your credential cannot be had: exec: process returned 1\n"


@pytest.mark.parametrize("words", [("show",), ("deploy",), ("approve", "x", "--no"), ("list", "-o", "yaml")], ids=str)
def test_usage(run, words, capsys):
    with pytest.raises(SystemExit) as e:
        cli.main(words)
    assert e.value.code == 2


# ----- tokens -----


def test_a_token_from_a_file_or_the_environment(run, gateway, tmp_path, monkeypatch):
    gateway.add(a_record())
    config = gateway.kubeconfig(tmp_path, EVERYDAY)
    refused = run("approve", "apr-1", "--yes", kubeconfig=config)
    assert refused.code == 2
    assert "your token is for tollgate, and a decision needs one for tollgate-approver; get one with: " in refused.err
    assert "kubectl create token NAME -n NAMESPACE --audience=tollgate-approver" in refused.err
    assert gateway.requests == []
    (tmp_path / "token").write_text(ALICE + "\n")
    assert run("approve", "apr-1", "--yes", "--token-file", str(tmp_path / "token"), kubeconfig=config).code == 0
    gateway.add(a_record("apr-2"))
    monkeypatch.setenv("TOLLGATE_APPROVER_TOKEN", BOB)
    assert run("approve", "apr-2", "--yes", kubeconfig=config).code == 0
    assert gateway.record("apr-2").decisions[0].username == "bob"


def test_a_credential_plugins_output_is_a_token_file(run, gateway, tmp_path):
    gateway.add(a_record())
    credential = {"kind": "ExecCredential", "status": {"token": BOB}}
    (tmp_path / "token").write_text(json.dumps(credential))
    config = gateway.kubeconfig(tmp_path, EVERYDAY)
    assert run("approve", "apr-1", "--yes", "--token-file", str(tmp_path / "token"), kubeconfig=config).code == 0
    assert gateway.record("apr-1").decisions[0].username == "bob"


def test_a_login_for_one_command(gateway, tmp_path):
    """A pipe is read once, and nothing of the token is left on the disk."""
    gateway.add(a_record())
    config = gateway.kubeconfig(tmp_path, EVERYDAY)
    command = f"{sys.executable} -m addons.cli approvals approve apr-1 --yes --kubeconfig {config}"
    done = subprocess.run(
        ["bash", "-c", f'{command} --token-file <(echo \'{{"status":{{"token":"{BOB}"}}}}\')'],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert gateway.record("apr-1").decisions[0].username == "bob"


@pytest.mark.parametrize(
    "content", ["", "two words", "a\r\nImpersonate-User: root", "{", "{}", '{"status":{"token":3.5e9}', "é", "\x00"]
)
def test_a_file_that_holds_no_token(run, gateway, tmp_path, content):
    (tmp_path / "token").write_text(content)
    ran = run("list", "--token-file", str(tmp_path / "token"))
    assert ran.code == 2
    assert "holds no token; get one with: " in ran.err
    assert content.strip() == "" or content.strip() not in ran.err
    assert gateway.requests == []


def test_a_client_certificate_decides_nothing(run, gateway, tmp_path, tls):
    certificate = {"client-certificate": str(tls.combined), "client-key": str(tls.combined)}
    ran = run("approve", "apr-1", "--yes", kubeconfig=gateway.kubeconfig(tmp_path, "", **certificate))
    assert ran.code == 2
    assert "a decision needs a token, and this kubeconfig has a certificate" in ran.err


# ----- deciding, with nobody to ask -----


@pytest.mark.parametrize(
    ("command", "phase", "says"),
    [
        ("approve", Phase.APPROVED, "apr-1 approved; its requester has to send the same again, until "),
        ("deny", Phase.DENIED, "apr-1 denied\n"),
    ],
)
def test_decide(run, gateway, command, phase, says):
    gateway.add(a_record())
    ran = run(command, "apr-1", "--yes", "--reason", "as I said")
    assert ran.code == 0
    assert ran.err.startswith(says)
    record = gateway.record("apr-1")
    assert record.phase is phase
    assert (record.decisions[0].username, record.decisions[0].reason) == ("alice", "as I said")


def test_decide_an_access_request(run, gateway):
    gateway.add(records.access_request("web", now=time.time()))
    assert "accessrequest/web approved, until " in run("approve", "web", "--yes").err
    assert gateway.record("web", REQUESTS).phase is Phase.APPROVED


def test_a_held_client_goes_on(run, gateway):
    gateway.add(a_record(waiting=True))
    assert run("approve", "apr-1", "--yes").err == "apr-1 approved; its client goes on now\n"


def test_one_of_two(run, gateway):
    gateway.add(a_record("apr-1", records.hold(needed=2)))
    assert run("approve", "apr-1", "--yes").err == "your yes to apr-1 counts; 1 more person must agree\n"
    again = run("approve", "apr-1", "--yes")
    assert again.code == 1
    assert "you have already decided this" in again.err
    assert run("approve", "apr-1", "--yes", token=BOB).code == 0
    assert gateway.record("apr-1").phase is Phase.APPROVED


@pytest.mark.parametrize(
    ("token", "says"),
    [
        pytest.param(MALLORY, "an agent cannot decide approvals", id="an agent"),
        pytest.param("opaque", "log in again and decide then", id="an old login"),
    ],
)
def test_the_gateways_refusal_is_its_sentence(run, gateway, token, says):
    gateway.add(a_record())
    ran = run("approve", "apr-1", "--yes", token=token)
    assert ran.code == 1
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert gateway.record("apr-1").phase is Phase.PENDING


def test_nothing_is_decided_without_a_look_or_a_yes(run, gateway):
    gateway.add(a_record())
    ran = run("approve", "apr-1")
    assert ran.code == 2
    assert ran.err == (
        "tollgate: there is no terminal to ask at; look with: ./run.sh approvals show apr-1, then add --yes\n"
    )
    assert gateway.requests == []


def test_a_rule_that_wants_a_reason(run, gateway):
    gateway.add(a_record("apr-1", records.hold(require_reason=True)))
    assert run("approve", "apr-1", "--yes", "--reason", " ").code == 2
    assert run("approve", "apr-1", "--yes", "--reason", "because").code == 0


def test_what_is_over(run, gateway):
    gateway.add(a_record())
    gateway.decide("apr-1", "bob", False, "no")
    ran = run("approve", "apr-1", "--yes")
    assert ran.code == 1
    assert ran.err == "tollgate: apr-1 is Denied and cannot be decided any more: denied by bob: no\n"
    assert [method for method, _ in gateway.requests] == ["GET"]


def at_the_first_patch(gateway, change):
    done = []

    def before(method):
        if method == "PATCH" and not done:
            done.append(True)
            change()

    gateway.before = before


def test_a_change_that_was_not_shown_stops_it(run, gateway):
    gateway.add(a_record("apr-1", records.hold(needed=2)))
    at_the_first_patch(gateway, lambda: gateway.decide("apr-1", "bob"))
    ran = run("approve", "apr-1", "--yes")
    assert ran.code == 1
    assert ran.err == "it changed since it was shown, and nothing was decided; this is what it is now:\n"
    assert "Approved by bob" in ran.out
    assert [d.username for d in gateway.record("apr-1").decisions] == ["bob"]


def test_that_the_client_left_is_no_change_of_what_was_shown(run, gateway):
    gateway.add(a_record(waiting=True))
    at_the_first_patch(
        gateway, lambda: gateway.step("apr-1", lambda kept: replace(kept, waiting=False, message="left"))
    )
    assert run("approve", "apr-1", "--yes").code == 0
    assert [method for method, _ in gateway.requests] == ["GET", "PATCH", "GET", "PATCH"]


# ----- deciding at a terminal -----


def test_approve_at_a_terminal(gateway, terminal):
    gateway.add(a_record())
    one = terminal("approve", "apr-1")
    shown = one.until("Approve apr-1? [y/N] ")
    assert "replicas: 0" in shown
    assert gateway.record("apr-1").phase is Phase.PENDING
    one.type("y\n")
    assert one.end() == 0
    assert "apr-1 approved" in one.shown
    assert gateway.record("apr-1").phase is Phase.APPROVED


@pytest.mark.parametrize("answer", ["n\n", "\n", "yess\n", "\x04"], ids=["no", "nothing", "a typo", "Ctrl-D"])
def test_all_but_yes_is_no(gateway, terminal, answer):
    gateway.add(a_record())
    one = terminal("approve", "apr-1")
    one.until("[y/N] ")
    one.type(answer)
    assert one.end() == 1
    assert "nothing was decided" in one.shown
    assert gateway.record("apr-1").phase is Phase.PENDING


def test_deny_asks_for_a_reason(gateway, terminal):
    gateway.add(a_record())
    one = terminal("deny", "apr-1")
    one.until("Reason (may be empty): ")
    one.type("not today\n")
    one.until("Deny apr-1? [y/N] ")
    one.type("y\n")
    assert one.end() == 0
    assert gateway.record("apr-1").decisions[0].reason == "not today"


def test_a_reason_that_must_be_given_is_asked_for_until_it_is(gateway, terminal):
    gateway.add(a_record("apr-1", records.hold(require_reason=True)))
    one = terminal("approve", "apr-1")
    one.until("Reason: ")
    one.type("\n")
    one.until("Reason: ")
    one.type("tested\n")
    one.until("[y/N] ")
    one.type("yes\n")
    assert one.end() == 0
    assert gateway.record("apr-1").decisions[0].reason == "tested"


def test_what_was_typed_before_the_question_is_no_answer(gateway, terminal):
    gateway.add(a_record())
    asked = []
    gateway.before = lambda method: asked.append(method) or one.type("y\n") if not asked else None
    one = terminal("approve", "apr-1")
    one.until("[y/N] ")
    time.sleep(0.3)  # long enough for an answer that is there to be taken
    assert one.process.poll() is None
    assert gateway.record("apr-1").phase is Phase.PENDING


def test_what_changed_is_shown_and_asked_again(gateway, terminal):
    gateway.add(a_record("apr-1", records.hold(needed=2)))
    at_the_first_patch(gateway, lambda: gateway.decide("apr-1", "bob"))
    one = terminal("approve", "apr-1")
    one.until("[y/N] ")
    one.type("y\n")
    again = one.until("[y/N] ")
    assert "it changed since it was shown" in again
    assert "Approved by bob" in again
    one.type("y\n")
    assert one.end() == 0
    assert gateway.record("apr-1").phase is Phase.APPROVED


@pytest.mark.parametrize(
    ("words", "shown"),
    [(("approve", "apr-1"), "[y/N] "), (("watch",), "left"), (("watch", "-i"), "kip: ")],
    ids=["approve", "watch", "watch -i"],
)
def test_ctrl_c(gateway, terminal, words, shown):
    gateway.add(a_record())
    one = terminal(*words)
    one.until(shown)
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 130
    assert "Traceback" not in one.shown
    assert gateway.record("apr-1").phase is Phase.PENDING


# ----- watching -----


def test_watch(gateway, terminal):
    gateway.add(a_record("apr-1"))
    one = terminal("watch", NO_COLOR="1")
    line = one.until("left")
    assert "\aapr-1  Pending  tollgate:ci-agent asks to: scale deployment shop/web to 0" in line
    assert "[agents/new-namespace]" in line
    gateway.add(a_record("apr-2"))
    assert "\aapr-2  Pending" in one.until("left")
    gateway.add(records.access_request("web", now=time.time()))
    assert "\aaccessrequest/web  Pending" in one.until("left")
    gateway.decide("apr-2", "bob", False, "no")
    one.until("apr-2  Denied: denied by bob: no\r\n")
    gateway.step("apr-1", lambda kept: replace(kept, waiting=True))  # nothing new
    gateway.decide("apr-1", "bob")
    assert one.until("apr-1  Approved: approved by bob").strip() == ""


def watching(gateway, count):
    deadline = time.monotonic() + 20
    while sum("watch=true" in target for _, target in gateway.requests) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_watch_goes_on_after_a_broken_connection(gateway, terminal):
    gateway.add(a_record("apr-1"))
    one = terminal("watch", NO_COLOR="1")
    one.until("left")
    watching(gateway, 2)
    gateway.run(gateway.site.stop())
    gateway.break_connections()
    one.until("(trying again)\r\n")
    gateway.add(a_record("apr-2"))
    gateway.run(gateway.listen())
    again = one.until("left")
    assert "tollgate: connected again\r\n" in again
    assert "apr-2  Pending" in again
    assert "apr-1" not in again  # it was told of before


def test_a_watch_with_a_token_that_expires(gateway, terminal, tmp_path, monkeypatch):
    (tmp_path / "token").write_text(ALICE)
    one = terminal("watch", "--token-file", str(tmp_path / "token"), NO_COLOR="1")
    watching(gateway, 2)
    monkeypatch.delitem(VIEWERS, ALICE)
    (tmp_path / "token").write_text(BOB)
    gateway.break_connections()
    watching(gateway, 4)
    gateway.add(a_record("apr-1"))
    one.until("apr-1  Pending")
    monkeypatch.delitem(VIEWERS, BOB)
    gateway.break_connections()
    one.until("does not accept your token")
    assert one.end() == 1


def test_a_watch_without_a_terminal_has_no_bell(gateway, tmp_path):
    gateway.add(a_record("apr-1"))
    process = subprocess.Popen(
        [sys.executable, "-m", "addons.cli", "approvals", "watch", "--kubeconfig", gateway.kubeconfig(tmp_path, ALICE)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    line = process.stdout.readline()  # at once, though it is a pipe
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    process.stdout.close()
    assert line.startswith(b"apr-1  Pending")


def test_watch_and_decide(gateway, terminal):
    gateway.add(a_record("apr-1"))
    one = terminal("watch", "-i")
    assert "replicas: 0" in one.until("Approve? [y]es, [n]o, [s]kip: ")
    one.type("y\n")
    one.until("apr-1 approved")
    one.until("waiting for questions")
    gateway.add(a_record("apr-2"))
    one.until("kip: ")
    one.type("what?\n")
    one.until("kip: ")
    one.type("n\n")
    one.until("Reason (may be empty): ")
    one.type("not today\n")
    one.until("apr-2 denied")
    gateway.add(a_record("apr-3"))
    one.until("kip: ")
    one.type("s\n")
    one.until("waiting for questions")
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 130
    assert [gateway.record(f"apr-{n}").phase for n in (1, 2, 3)] == [Phase.APPROVED, Phase.DENIED, Phase.PENDING]
    assert gateway.record("apr-2").decisions[0].reason == "not today"


def test_somebody_else_is_faster(gateway, terminal):
    gateway.add(a_record("apr-1"))
    one = terminal("watch", "-i")
    one.until("kip: ")
    gateway.add(a_record("apr-2"))
    gateway.decide("apr-1", "bob")
    one.until("it was decided, or ended, while you looked")
    assert "apr-2" in one.until("kip: ")
    one.type("\x04")
    assert one.end() == 0


def test_a_refused_decision_does_not_end_the_watch(gateway, terminal):
    gateway.add(a_record("apr-1"))
    one = terminal("watch", "-i", token="opaque")
    one.until("kip: ")
    one.type("y\n")
    one.until("log in again and decide then")
    one.until("waiting for questions")
    assert gateway.record("apr-1").phase is Phase.PENDING


def test_a_yes_of_two_is_asked_for_once(gateway, terminal):
    gateway.add(a_record("apr-1", records.hold(needed=2)))
    one = terminal("watch", "-i")
    one.until("kip: ")
    one.type("y\n")
    one.until("1 more person must agree")
    one.until("waiting for questions")


def test_nobody_to_ask_in_a_watch(run, gateway):
    ran = run("watch", "-i")
    assert ran.code == 2
    assert ran.err == "tollgate: -i asks at a terminal, and there is none; leave it out\n"
