import asyncio
import base64
import contextlib
import json
import logging
import ssl
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from addons.core import notices
from addons.core.approvals import Phase
from addons.net import notify
from addons.net.notify import Notifier, NotifyError
from tests import records

SECRET_PATH = "/services/T000/B000/canary-secret"
AT_ONCE = (0.01, 0.01, 0.01, 0.01)


class Receiver:
    """A webhook's other end: answers what it is told to, in turn, then 204. `got` fills as they come."""

    def __init__(self):
        self.answers = []
        self.got = asyncio.Queue()
        self.connections = 0

    async def handle(self, request):
        body = await request.read()
        answer = self.answers.pop(0) if self.answers else 204
        self.got.put_nowait((request.path, dict(request.headers), body))
        if answer == "hang":
            await asyncio.Event().wait()
        if answer == "break":
            request.transport.abort()
        if answer == "redirect":
            raise web.HTTPFound("/elsewhere")
        return web.Response(status=answer)

    async def next(self):
        async with asyncio.timeout(10):
            return await self.got.get()


@contextlib.asynccontextmanager
async def receiving():
    receiver = Receiver()
    runner = web.ServerRunner(
        web.Server(receiver.handle, handler_cancellation=True, access_log=None), access_log=None, shutdown_timeout=0.1
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.port = runner.addresses[0][1]
    receiver.url = f"http://127.0.0.1:{receiver.port}{SECRET_PATH}"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@pytest.fixture
async def receiver():
    async with receiving() as one:
        yield one


@contextlib.asynccontextmanager
async def notifying(*args, **more):
    notifier = Notifier(*args, **{"clock": lambda: records.NOW, "delays": AT_ONCE, **more})
    await notifier.start()
    try:
        yield notifier
    finally:
        await notifier.stop()


async def logged(caplog, text):
    async with asyncio.timeout(10):
        while text not in caplog.text:
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def everything_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    yield
    formatter = logging.Formatter()  # with tracebacks
    assert "canary-secret" not in "".join(map(formatter.format, caplog.get_records("call")))


# ----- webhooks -----


async def test_a_webhook_gets_the_notice(receiver):
    async with notifying([receiver.url]) as notifier:
        notifier.send(records.record())
        path, headers, body = await receiver.next()
    assert path == SECRET_PATH
    assert body == notices.payload(notices.of_record(records.record()))
    assert headers["Content-Type"] == "application/json"
    assert headers["webhook-id"] == "apr-7f3k.1800000000.pending"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert "webhook-signature" not in headers


async def test_it_is_signed_as_the_standard_has_it(receiver, tmp_path):
    # The example of the Standard Webhooks specification.
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert notify.signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}') == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )
    (tmp_path / "key").write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    async with notifying([receiver.url], secret_file=str(tmp_path / "key")) as notifier:
        notifier.send(records.record())
        _, headers, body = await receiver.next()
    wanted = notify.signature(secret, headers["webhook-id"], headers["webhook-timestamp"], body)
    assert headers["webhook-signature"] == wanted


async def test_a_failure_is_tried_again_with_the_same_id(receiver, caplog):
    receiver.answers = [500, "break"]
    async with notifying([receiver.url]) as notifier:
        notifier.send(records.record())
        tries = [await receiver.next() for _ in range(3)]
        await logged(caplog, "told of apr-7f3k (pending)")
    assert len({headers["webhook-id"] for _, headers, _ in tries}) == 1
    assert receiver.got.empty()
    assert f"notify http://127.0.0.1:{receiver.port}: apr-7f3k (pending) could not be told, next try in" in caplog.text


async def test_five_tries_are_all(receiver, caplog):
    receiver.answers = [503] * 20
    async with notifying([receiver.url]) as notifier:
        notifier.send(records.record())
        await logged(caplog, "is not tried again: HTTP 503")
    assert receiver.got.qsize() == 5


def test_five_tries_take_less_than_five_minutes():
    assert len(notify.DELAYS) == 4
    assert sum(notify.DELAYS) + 5 * max(notify.WEBHOOK_TIME, notify.COMMAND_TIME) <= 330
    assert sum(notify.DELAYS) + 5 * notify.WEBHOOK_TIME < 300


@pytest.mark.parametrize(
    ("answer", "tries"),
    [
        pytest.param(400, 1, id="it is not wanted"),
        pytest.param(404, 1, id="nobody is there"),
        pytest.param(408, 5, id="it was too slow"),
        pytest.param(429, 5, id="too many"),
        pytest.param("redirect", 1, id="a redirect"),
        pytest.param("break", 5, id="a connection that breaks"),
    ],
)
async def test_what_is_tried_again(receiver, caplog, answer, tries):
    receiver.answers = [answer] * 10
    async with notifying([receiver.url]) as notifier:
        notifier.send(records.record())
        await logged(caplog, "is not tried again")
    assert receiver.got.qsize() == tries
    assert all(path == SECRET_PATH for path, _, _ in (receiver.got.get_nowait() for _ in range(tries)))


async def test_who_hangs_is_left_after_a_time(receiver, caplog, monkeypatch):
    monkeypatch.setattr(notify, "WEBHOOK_TIME", 0.2)
    receiver.answers = ["hang"]
    async with notifying([receiver.url]) as notifier:
        notifier.send(records.record())
        await receiver.next()
        await receiver.next()
    assert "no answer within 0.2 s" in caplog.text


async def test_one_that_hangs_holds_up_no_other(receiver):
    async with receiving() as other, notifying([other.url, receiver.url]) as notifier:
        other.answers = ["hang"] * 10
        for n in range(5):
            notifier.send(records.record(f"apr-{n}"))
        got = [json.loads((await receiver.next())[2])["approval"]["name"] for _ in range(5)]
        assert got == [f"apr-{n}" for n in range(5)]
        assert other.got.qsize() == 1


async def test_one_that_must_be_tried_again_holds_up_no_other_notice(receiver):
    receiver.answers = [500]
    async with notifying([receiver.url], delays=(60.0,)) as notifier:
        notifier.send(records.record("apr-1"))
        await receiver.next()
        notifier.send(records.record("apr-2"))
        assert json.loads((await receiver.next())[2])["approval"]["name"] == "apr-2"


@pytest.mark.parametrize(
    "now",
    [
        pytest.param(lambda record: replace(record, phase=Phase.APPROVED), id="decided"),
        pytest.param(lambda record: replace(record, expires=records.NOW - 1), id="expired"),
        pytest.param(lambda record: None, id="gone"),
    ],
)
async def test_a_question_that_is_over_is_not_told_again(receiver, caplog, now):
    state = {"current": lambda record: record}
    receiver.answers = [500]
    async with notifying([receiver.url], current=lambda record: state["current"](record)) as notifier:
        notifier.send(records.record("apr-1"))
        await receiver.next()
        state["current"] = lambda record: now(record) if record.name == "apr-1" else record
        notifier.send(records.record("apr-2"))
        assert json.loads((await receiver.next())[2])["approval"]["name"] == "apr-2"
        await logged(caplog, "apr-1 is over, nobody needs to be told")
    assert receiver.got.empty()


async def test_an_outcome_is_told_though_it_is_no_longer_open(receiver):
    async with notifying([receiver.url]) as notifier:
        notifier.send(records.approved(records.record()))
        assert json.loads((await receiver.next())[2])["event"] == "approved"


async def test_the_oldest_go_when_too_many_wait(receiver, caplog):
    notifier = Notifier([receiver.url], clock=lambda: records.NOW)
    for n in range(notify.QUEUE + 2):
        notifier.send(records.record(f"apr-{n}", now=records.NOW + n))
    assert "apr-0 is dropped" in caplog.text
    assert "apr-1 is dropped" in caplog.text
    await notifier.start()
    first = json.loads((await receiver.next())[2])["approval"]["name"]
    await notifier.stop()
    assert first == "apr-2"


async def test_no_proxy_of_the_environments(receiver, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with notifying([receiver.url]) as notifier:
        notifier.send(records.record())
        await receiver.next()


async def test_a_certificate_that_is_not_trusted(tls, caplog):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.combined)
    runner = web.ServerRunner(web.Server(Receiver().handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}{SECRET_PATH}"
    async with notifying([url]) as notifier:
        notifier.send(records.record())
        await logged(caplog, "its certificate is not trusted")
    await runner.cleanup()


async def test_an_answer_that_is_none(caplog):
    """What the library says of it has the whole address in it."""

    async def answer(_reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{SECRET_PATH}"
    async with server, notifying([url]) as notifier:
        notifier.send(records.record())
        await logged(caplog, "is not tried again: ClientResponseError")


async def test_what_a_library_says_is_not_logged(caplog):
    class Broken:
        name = "broken"

        async def deliver(self, notice):
            raise ValueError(SECRET_PATH)

        async def close(self):
            pass

    lane = notify._Lane(Broken(), lambda record: record, lambda: records.NOW, ())
    lane.start()
    lane.put(records.record(), notices.of_record(records.record()))
    await logged(caplog, "is not tried again: ValueError")
    await lane.stop()


async def test_nobody_listens(caplog):
    async with notifying(["http://127.0.0.1:1/canary-secret"]) as notifier:
        notifier.send(records.record())
        await logged(caplog, "is not tried again")


async def test_send_never_raises(receiver, caplog):
    async with notifying([receiver.url]) as notifier:
        notifier.send(replace(records.record(), asked=None))
        notifier.send(records.record())
        await receiver.next()
    assert "no notification of apr-7f3k" in caplog.text


async def test_stop_sends_what_has_not_been_tried_and_ends_the_rest(receiver):
    receiver.answers = [500]
    async with receiving() as other:
        other.answers = ["hang"] * 3
        notifier = Notifier([receiver.url, other.url], clock=lambda: records.NOW, delays=(60.0,))
        await notifier.start()
        notifier.send(records.record("apr-1"))
        await receiver.next()
        notifier.send(records.record("apr-2"))
        began = time.monotonic()
        await notifier.stop()
        assert time.monotonic() - began < 4 * notify.GOODBYE
        await receiver.next()
        notifier.send(records.record("apr-3"))  # nothing any more
        await notifier.stop()
        assert receiver.got.empty()


async def test_without_channels_there_is_nothing():
    async with notifying() as notifier:
        notifier.send(records.record())
        assert notifier.channels == ()


# ----- settings -----


def at(tmp_path, text, mode=0o600):
    path = tmp_path / "file"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        pytest.param("http://hooks.example/canary-secret", "http://hooks.example is not encrypted", id="http"),
        pytest.param(
            "http://10.0.0.1:80/canary-secret", "http://10.0.0.1:80 is not encrypted", id="http to an address"
        ),
        pytest.param("http://localhost.example/x", "is not encrypted", id="begins like this machine"),
        pytest.param("ftp://hooks.example/x", "is no URL", id="another scheme"),
        pytest.param("https:///canary-secret", "is no URL", id="no host"),
        pytest.param("https://[::1/canary-secret", "is no URL", id="half an address"),
        pytest.param("https://a:b:c/canary-secret", "is no URL", id="no port"),
        pytest.param("https://h/canary-secret\nx", "is no URL", id="two lines"),
        pytest.param("", "is no URL", id="nothing"),
    ],
)
def test_webhooks_that_are_refused(url, says):
    with pytest.raises(NotifyError, match=says) as e:
        Notifier([url])
    assert "canary" not in str(e.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.slack.com/services/canary-secret", "https://hooks.slack.com"),
        ("https://user:canary-secret@h.example:8443/x?y=canary-secret", "https://h.example:8443"),
        ("http://localhost:9/x", "http://localhost:9"),
        ("http://127.1.2.3/x", "http://127.1.2.3"),
        ("http://[::1]:9/x", "http://[::1]:9"),
    ],
)
def test_what_the_log_calls_a_webhook(url, shown):
    assert Notifier([url]).channels == (shown,)


def test_webhooks_from_a_file(tmp_path):
    file = at(tmp_path, "# for the team\nhttps://a.example/1\n\n  https://b.example/2  \n")
    assert Notifier(["@" + file, "https://c.example"]).channels == (
        "https://a.example",
        "https://b.example",
        "https://c.example",
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        pytest.param(
            {"webhooks": ["@/nonexistent"]}, "tollgate_notify_webhook: /nonexistent: No such file", id="no file"
        ),
        pytest.param({"secret_file": "/nonexistent"}, "tollgate_notify_webhook_secret: /nonexistent", id="no secret"),
        pytest.param({"command": "/nonexistent/notify"}, "there is no program '/nonexistent/notify'", id="no program"),
        pytest.param({"command": "a 'b"}, "cannot be split", id="half a quote"),
        pytest.param({"command": "  "}, "there is no program", id="no words"),
        pytest.param(
            {"apprise_file": "/nonexistent"}, "tollgate_notify_apprise: /nonexistent: No such file", id="apprise"
        ),
        pytest.param({"webhooks": ["https://x"] * 21}, "over 20 places", id="too many"),
    ],
)
def test_settings_that_are_refused(settings, says):
    with pytest.raises(NotifyError, match=says) as e:
        Notifier(**settings)
    assert "\n" not in str(e.value)


def test_a_secret_without_a_webhook(tmp_path):
    with pytest.raises(NotifyError, match="no webhook to sign for"):
        Notifier(secret_file=at(tmp_path, "x" * 40))


@pytest.mark.parametrize("text", ["short", "whsec_????", "whsec_" + base64.b64encode(b"short").decode(), ""])
def test_a_secret_that_is_none(tmp_path, text):
    with pytest.raises(NotifyError, match=r"bytes; make one|not base64") as e:
        Notifier(["https://x"], secret_file=at(tmp_path, text))
    assert not text or text not in str(e.value)


def test_files_that_others_can_write(tmp_path):
    file = at(tmp_path, "https://x\n", 0o666)
    with pytest.raises(NotifyError, match="every user can write it"):
        Notifier(["@" + file])
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o777)
    with pytest.raises(NotifyError, match="every user can write it"):
        Notifier(command=str(program))


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(NotifyError, match="not text"):
        Notifier(["@" + str(path)])


# ----- commands -----


def program(tmp_path, text):
    path = tmp_path / "program"
    path.write_text(f"#!{sys.executable} -I\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def written(path):
    async with asyncio.timeout(10):
        while not path.exists():
            await asyncio.sleep(0.01)
    return json.loads(path.read_text())


REPORT = """
import json, os, sys
found = {"argv": sys.argv[1:], "in": sys.stdin.read(), "environment": dict(os.environ), "cwd": os.getcwd()}
open("OUT.part", "w").write(json.dumps(found))
os.rename("OUT.part", "OUT")
"""


async def test_a_command_gets_json_and_little_else(tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setenv("TOLLGATE_APPROVER_TOKEN", "canary")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    path = program(tmp_path, REPORT.replace("OUT", str(out)))
    async with notifying((), f"{path} --to 'the team' '$HOME;'") as notifier:
        assert notifier.channels == ("command program",)
        notifier.send(records.record())
        found = await written(out)
    assert found["argv"] == ["--to", "the team", "$HOME;"]  # no shell has seen it
    assert found["in"].encode() == notices.payload(notices.of_record(records.record()))
    assert found["environment"].keys() - {"LC_CTYPE"} <= {"HOME", "LANG", "PATH", "TZ"}
    assert found["cwd"] == "/"


async def test_a_command_that_fails_is_run_again(tmp_path, caplog):
    out = tmp_path / "runs"
    path = program(tmp_path, f"open({str(out)!r}, 'a').write('x'); raise SystemExit(3)")
    async with notifying((), path) as notifier:
        notifier.send(records.record())
        await logged(caplog, "is not tried again: it ended with exit status 3")
    assert out.read_text() == "x" * 5


async def test_a_command_that_reads_nothing_is_fine(tmp_path, caplog):
    async with notifying((), "/bin/true") as notifier:
        notifier.send(records.record())
        await logged(caplog, "told of apr-7f3k")


async def test_a_program_that_is_gone(tmp_path, caplog):
    notifier = Notifier(command=program(tmp_path, ""), clock=lambda: records.NOW, delays=())
    (tmp_path / "program").unlink()
    async with contextlib.AsyncExitStack() as stack:
        await notifier.start()
        stack.push_async_callback(notifier.stop)
        notifier.send(records.record())
        await logged(caplog, "it cannot be run: No such file")


SLEEPER = """
import os, subprocess, time
child = subprocess.Popen(["/bin/sleep", "300"])
open("OUT.part", "w").write(f"[{os.getpid()}, {child.pid}]")
os.rename("OUT.part", "OUT")
time.sleep(300)
"""


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("stopped", [False, True], ids=["too long", "the gateway stops"])
async def test_what_runs_on_is_killed_with_its_children(tmp_path, caplog, monkeypatch, stopped):
    out = tmp_path / "out"
    path = program(tmp_path, SLEEPER.replace("OUT", str(out)))
    if not stopped:
        monkeypatch.setattr(notify, "COMMAND_TIME", 1.0)
    async with notifying((), path, delays=()) as notifier:
        notifier.send(records.record())
        pids = await written(out)
        assert all(runs(pid) for pid in pids)
        if not stopped:
            await logged(caplog, "it did not end within 1 s")
    async with asyncio.timeout(5):
        while any(runs(pid) for pid in pids):
            await asyncio.sleep(0.01)


# ----- apprise -----


async def test_apprise(receiver, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    file = at(tmp_path, f"# ours\njson://127.0.0.1:{receiver.port}{SECRET_PATH}\n")
    async with notifying(apprise_file=file) as notifier:
        assert notifier.channels == ("apprise json (line 2)",)
        notifier.send(records.record())
        path, _, body = await receiver.next()
        await logged(caplog, "told of apr-7f3k")
    assert path == SECRET_PATH
    content = json.loads(body)
    notice = notices.of_record(records.record())
    assert (content["title"], content["message"], content["type"]) == (notice.title, notice.text, "warning")


async def test_one_of_several_services_is_tried_again_alone(receiver, tmp_path, caplog):
    async with receiving() as other:
        other.answers = [500]
        file = at(tmp_path, f"json://127.0.0.1:{receiver.port}/a\njson://127.0.0.1:{other.port}/b\n")
        async with notifying(apprise_file=file) as notifier:
            notifier.send(records.record())
            for one in (receiver, other, other):
                await one.next()
            await logged(caplog, "apprise json (line 2): told of")
        assert receiver.got.empty()


def test_a_line_that_apprise_does_not_know(tmp_path):
    file = at(tmp_path, "json://127.0.0.1:9\n\nnothing://canary-secret\n")
    with pytest.raises(NotifyError, match="line 3 is no URL that apprise knows") as e:
        Notifier(apprise_file=file)
    assert "canary" not in str(e.value)


def test_apprise_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(NotifyError, match=r"the package apprise is not there; install it: .* 'apprise>=1.9'"):
        Notifier(apprise_file=at(tmp_path, "json://127.0.0.1:9"))
