import asyncio
import errno
import io
import json
import logging

import pytest
from mitmproxy.addons.termlog import TermLogHandler
from mitmproxy.exceptions import OptionsError

from addons.mitm import logs
from tests import canaries


def logged(caplog, error):
    logs.tidy()
    logs.tidy()
    caplog.clear()
    try:
        raise error
    except type(error) as e:
        logging.getLogger("mitmproxy.addons.script").error("error in script x", exc_info=e)
    return caplog.text


def test_a_refused_configuration_is_one_sentence(caplog):
    text = logged(caplog, OptionsError("tollgate_policies: p.yaml:3: unknown field"))
    assert "p.yaml:3: unknown field" in text
    assert "Traceback" not in text
    assert text.count("\n") == 1


def test_a_bug_keeps_its_traceback(caplog):
    assert "Traceback" in logged(caplog, RuntimeError("a bug"))


@pytest.mark.parametrize(
    ("error", "short"),
    [
        pytest.param(OSError(errno.EMFILE, "Too many open files"), True, id="no more descriptors"),
        pytest.param(OSError(errno.EPERM, "Operation not permitted"), False, id="another trouble"),
        pytest.param(RuntimeError("a bug"), False, id="a bug"),
    ],
)
def test_a_connection_that_cannot_be_accepted_is_one_sentence(caplog, error, short):
    logs.tidy()
    logging.getLogger("mitmproxy.master").error("Unhandled error in task.", exc_info=error)
    assert ("out of resources, so connections have to wait: Too many" in caplog.text) is short
    assert (len(caplog.text.splitlines()) == 1) is short


@pytest.fixture
def terminal():
    out = io.StringIO()
    handler = TermLogHandler(out)
    handler._initiated_in_test = None  # it would be silent in the next phase of the same test
    logging.getLogger().addHandler(handler)
    yield out
    logs.write_as(logs.TEXT)
    logging.getLogger().removeHandler(handler)


def test_json_is_a_line_a_record(terminal):
    logs.write_as(logs.JSON)
    logger = logging.getLogger("addons.x")
    logger.warning("refused %r\nand more \x1b[2J é", "GET", extra={"client": ("10.0.0.1", 5)})
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        logger.exception("failed")
    first, second = terminal.getvalue().splitlines()
    found = json.loads(first)
    assert found["message"] == "refused 'GET'\nand more \x1b[2J é"
    assert (found["level"], found["logger"], found["client"]) == ("warning", "addons.x", "10.0.0.1:5")
    assert found["time"].endswith("+00:00")
    assert "request" not in found
    assert first.isascii()
    assert "\x1b" not in first
    assert "RuntimeError: a bug" in json.loads(second)["exception"]
    logs.write_as(logs.TEXT)
    logger.warning("plain")
    assert terminal.getvalue().splitlines()[-1].endswith("plain")


async def test_each_request_has_its_own_id(terminal):
    logs.write_as(logs.JSON)

    async def hook(request_id):
        logs.about(logs.About(request_id))
        await asyncio.sleep(0)
        logging.getLogger("addons.x").warning("about")

    await asyncio.gather(*(asyncio.create_task(hook(f"r{n}")) for n in range(3)))
    logging.getLogger("addons.x").warning("nobody's")
    found = [json.loads(line).get("request") for line in terminal.getvalue().splitlines()]
    assert sorted(found[:3]) == ["r0", "r1", "r2"]
    assert found[3] is None


@pytest.fixture
def ready(monkeypatch):
    monkeypatch.setattr(logs, "_patterns", True)


HEADERS = (
    (b"User-Agent", b"kubectl/v1.36.3 (linux/amd64)"),
    (b"Authorization", b"Bearer abc"),
    (b"Kubectl-Session", b"5f0c"),
)


async def test_text_has_the_id_and_once_what_the_client_claims(terminal, ready):
    logs.write_as(logs.TEXT)

    async def hook():
        logs.about(logs.About("r1", HEADERS))
        for text in ("first", "second"):
            logging.getLogger("addons.x").warning(text)

    await asyncio.create_task(hook())
    first, second = terminal.getvalue().splitlines()
    assert first.endswith("first (request r1, claims 'kubectl/v1.36.3 (linux/amd64)', session '5f0c')")
    assert second.endswith("second (request r1)")


async def test_json_has_what_the_client_claims(terminal, ready):
    logs.write_as(logs.JSON)

    async def hook():
        logs.about(logs.About("r1", HEADERS))
        logging.getLogger("addons.x").warning("x")

    await asyncio.create_task(hook())
    found = json.loads(terminal.getvalue())
    assert (found["request"], found["claimedAgent"], found["claimedSession"]) == (
        "r1",
        "kubectl/v1.36.3 (linux/amd64)",
        "5f0c",
    )
    assert "abc" not in terminal.getvalue()


TOKEN = canaries.VALUES["github token"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param(b"", "", id="none"),
        pytest.param(b"curl/8", "curl/8", id="plain"),
        pytest.param(b"x" * 121, "x" * 119 + "…", id="long"),
        pytest.param(b"x" * 1025, "not shown: 1025 bytes", id="too long to look at"),
        pytest.param(b"a\r\nb\x1b[2J\xe9", "a\r\nb\x1b[2J\xe9", id="what a terminal obeys is quoted below"),
    ],
)
def test_a_claim(ready, value, shown):
    assert logs.claim(value) == shown


def test_what_is_shown_of_a_claim_is_no_order_to_a_terminal(ready):
    words = logs.About("r1", [(b"user-agent", b"a\r\nb\x1b[2J\xe9\x9b'")]).words()
    assert words.isascii()
    assert words.isprintable()


def test_a_token_in_the_wrong_header_is_not_in_the_log(ready):
    for value in (TOKEN, b"x " * 100 + TOKEN, TOKEN + b"x" * 2000):
        assert TOKEN.decode()[:12] not in logs.claim(value)
    assert "**masked:" in logs.claim(TOKEN)
    assert "**masked:" in logs.masked(f"get pods {TOKEN.decode()} in namespace shop")


def test_what_our_own_lines_say_is_shown(ready):
    line = (
        "deny 'get secrets db-password in namespace shop' for 'tollgate:system:serviceaccount:agents:ci-agent'"
        " by agents/no-secrets (revision 4891362d3cf1)"
    )
    assert logs.masked(line) == line
    for path in ("/api/v1/namespaces/shop/pods/web-fbcc66c4-n6mlc/log", "/apis/apps/v1/deployments"):
        assert logs.masked(path) == path


def test_what_cannot_be_masked_is_not_shown(ready, monkeypatch):
    def broken(*_):
        raise RuntimeError("odd")

    monkeypatch.setattr(logs.masking, "mask_text", broken)
    assert logs.claim(b"hunter2") == "not shown: it could not be masked"


def test_nothing_is_claimed_before_it_can_be_masked(monkeypatch):
    monkeypatch.setattr(logs, "_patterns", False)
    assert logs.claim(b"curl/8") == ""
    assert logs.masked("get pods") == "get pods"  # ours, at a start
    logs.patterns_are_ready()
    assert logs.claim(b"curl/8") == "curl/8"


@pytest.mark.parametrize("form", [logs.TEXT, logs.JSON])
async def test_no_line_about_a_request_has_a_token(terminal, ready, form):
    """Whoever logs it, whatever it is: a name, a message, an exception."""
    logs.write_as(form)
    token = TOKEN.decode()

    async def hook():
        logs.about(logs.About("r1"))
        logging.getLogger("addons.x").warning("refused %r", f"/api/v1/pods/{token}")
        try:
            raise RuntimeError(token)
        except RuntimeError:
            logging.getLogger("addons.x").exception("failed")

    await asyncio.create_task(hook())
    assert token not in terminal.getvalue()
    assert terminal.getvalue().count("**masked:") >= 2
    assert "RuntimeError" in terminal.getvalue()
