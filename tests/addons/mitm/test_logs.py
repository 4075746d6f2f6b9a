import asyncio
import errno
import io
import json
import logging

import pytest
from mitmproxy.addons.termlog import TermLogHandler
from mitmproxy.exceptions import OptionsError

from addons.mitm import logs


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
        logs.about(request_id)
        await asyncio.sleep(0)
        logging.getLogger("addons.x").warning("about")

    await asyncio.gather(*(asyncio.create_task(hook(f"r{n}")) for n in range(3)))
    logging.getLogger("addons.x").warning("nobody's")
    found = [json.loads(line).get("request") for line in terminal.getvalue().splitlines()]
    assert sorted(found[:3]) == ["r0", "r1", "r2"]
    assert found[3] is None
