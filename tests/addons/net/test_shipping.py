import asyncio
import io
import json
import ssl

import pytest
from aiohttp import web

from addons.core import chain, shipforms
from addons.core.shipforms import TargetError
from addons.net import shipping
from addons.net.shipping import NotTaken, ShipError, Shipper, Stdout, Syslog, Webhook
from addons.net.spool import Spool
from tests import recordings
from tests.addons.net.recording import record, start


def line(name, **more):
    return chain.link(recordings.event(name, **more), uid="u", sequence=1, previous="a" * 64)


@pytest.fixture
def spool(tmp_path):
    one = Spool(tmp_path / "ship", clock=lambda: recordings.TIME)
    yield one
    one.close()


class Fake:
    """A receiver that fails as it is told to."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.batches = []
        self.closed = 0

    async def send(self, lines):
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        self.batches.append(list(lines))

    async def close(self):
        self.closed += 1

    @property
    def lines(self):
        return [one for batch in self.batches for one in batch]


async def ship(spool, sinks, lines):
    shipper = Shipper(spool, sinks, first_wait=0.01)
    shipper.start()
    spool.append(lines)
    assert await shipper.drained(10)
    await shipper.close()
    return shipper


LINES = [line(str(n)) for n in range(1200)]


async def test_everything_in_order(spool):
    sink = Fake()
    await ship(spool, {"a": sink}, LINES)
    assert sink.lines == LINES
    assert len(sink.batches) == 3
    assert sink.closed


async def test_tried_again_until_it_is_taken(spool, caplog):
    sink = Fake(ShipError("a is away"), None, ShipError("a is away"), OSError("disk"))
    shipper = await ship(spool, {"a": sink}, LINES)
    assert sink.lines == LINES
    assert shipper.behind == {}
    assert "a is away; records wait on disk until it takes them" in caplog.text
    assert "a takes records again" in caplog.text


async def test_one_that_is_away_does_not_hold_the_others(spool):
    class Away(Fake):
        async def send(self, lines):
            raise ShipError("away")

    good = Fake()
    shipper = Shipper(spool, {"good": good, "away": Away()}, first_wait=0.01)
    shipper.start()
    spool.append(LINES[:5])
    async with asyncio.timeout(10):
        while good.lines != LINES[:5] or not shipper.behind:
            await asyncio.sleep(0.01)
    assert not await shipper.drained(0.1)
    await shipper.close()


async def test_after_a_restart_it_goes_on(spool):
    first = Fake()
    await ship(spool, {"a": first}, LINES[:10])
    second = Fake()
    await ship(spool, {"a": second}, LINES[10:20])
    assert second.lines == LINES[10:20]


async def test_what_was_not_taken_before_a_restart_is_shipped_then(spool):
    shipper = Shipper(spool, {"a": Fake(*[ShipError("away")] * 1000)}, first_wait=0.01)
    shipper.start()
    spool.append(LINES[:3])
    async with asyncio.timeout(10):
        while not shipper.behind:
            await asyncio.sleep(0.01)
    await shipper.close()
    sink = Fake()
    await ship(spool, {"a": sink}, LINES[3:5])
    assert sink.lines == LINES[:5]


async def test_one_that_is_refused_for_good_does_not_stop_the_rest(spool, caplog):
    class Picky(Fake):
        async def send(self, lines):
            if any(b'"poison"' in one for one in lines):
                raise NotTaken("a answered 400")
            await super().send(lines)

    sink = Picky()
    lines = [*LINES[:10], line("poison"), *LINES[10:20]]
    await ship(spool, {"a": sink}, lines)
    assert sink.lines == LINES[:20]
    assert "a answered 400; one record is not shipped there" in caplog.text


async def test_one_that_is_too_large_is_shortened(spool):
    class Small(Fake):
        async def send(self, lines):
            if sum(map(len, lines)) > 3000:
                raise NotTaken("a answered 413")
            await super().send(lines)

    sink = Small()
    large = line("large", requestObject={"k": "x" * 50_000})
    await ship(spool, {"a": sink}, [*LINES[:3], large, *LINES[3:6]])
    assert len(sink.lines) == 7
    assert json.loads(sink.lines[3])["annotations"][shipforms.SHORTENED] == "requestObject"


async def test_one_that_hangs_is_left(spool, monkeypatch):
    monkeypatch.setattr(shipping, "SEND_LIMIT", 0.05)

    class Hangs(Fake):
        async def send(self, lines):
            if not self.closed:
                await asyncio.Event().wait()
            await super().send(lines)

    sink = Hangs()
    await ship(spool, {"a": sink}, LINES[:3])
    assert sink.lines == LINES[:3]


# ----- the receivers -----


async def test_stdout():
    out = io.BytesIO()
    await Stdout(out).send([b"1", b"2"])
    assert out.getvalue() == b"1\n2\n"
    out.close()
    with pytest.raises(ShipError):
        await Stdout(out).send([b"3"])


class Receiver:
    """A syslog server over TLS that may die after so many bytes."""

    def __init__(self, tls, dies_after=0):
        self.received = b""
        self.connections = 0
        self.dies_after = dies_after
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(tls.combined)

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        try:
            while data := await reader.read(65536):
                self.received += data
                if 0 < self.dies_after <= len(self.received):
                    self.dies_after = 0
                    writer.transport.abort()
                    return
        except OSError:
            return
        finally:
            writer.close()

    def messages(self):
        found, data = [], self.received
        while data:
            length, _, rest = data.partition(b" ")
            found.append(rest[: int(length)])
            data = rest[int(length) :]
        return found


def syslog_target(receiver, tls):
    return shipforms.read_target(f"syslog+tls://127.0.0.1:{receiver.port}?ca={tls.ca_file}")


async def test_syslog(spool, tls):
    async with Receiver(tls) as receiver:
        await ship(spool, {"s": Syslog(syslog_target(receiver, tls))}, LINES)
        async with asyncio.timeout(10):
            while len(receiver.messages()) < len(LINES):
                await asyncio.sleep(0.01)
    assert [message.partition(b" - audit - ")[2] for message in receiver.messages()] == LINES
    assert receiver.connections == 1


async def test_syslog_again_when_the_receiver_dies(spool, tls):
    async with Receiver(tls, dies_after=20_000) as receiver:
        sink = Syslog(syslog_target(receiver, tls))
        shipper = Shipper(spool, {"s": sink}, first_wait=0.01)
        shipper.start()
        spool.append(LINES)
        assert await shipper.drained(20)
        await shipper.close()
        async with asyncio.timeout(10):
            while not receiver.received.endswith(LINES[-1]):
                await asyncio.sleep(0.01)
    assert receiver.connections == 2
    assert all(one in receiver.received for one in LINES)  # at least once


async def test_syslog_waits_for_the_other_machine(tls, monkeypatch):
    monkeypatch.setattr(shipping, "CONNECT_LIMIT", 0.5)
    monkeypatch.setattr(shipping, "_unacknowledged", lambda connected: 1)
    async with Receiver(tls) as receiver:
        with pytest.raises(ShipError, match="acknowledges nothing"):
            await Syslog(syslog_target(receiver, tls)).send([b"1"])


async def test_syslog_that_is_not_there(tls, tmp_path):
    target = shipforms.read_target(f"syslog+tls://127.0.0.1:1?ca={tls.ca_file}")
    with pytest.raises(ShipError, match=r"syslog-127.0.0.1-1: "):
        await Syslog(target).send([b"1"])


async def test_syslog_of_another_ca(tls):
    async with Receiver(tls) as receiver:
        target = shipforms.read_target(f"syslog+tls://127.0.0.1:{receiver.port}")
        with pytest.raises(ShipError, match="certificate verify failed"):
            await Syslog(target).send([b"1"])
    assert receiver.received == b""


@pytest.fixture
async def hook():
    """A webhook's receiver: what came, and what it is to answer."""
    came, answers = [], []

    async def answer(request):
        came.append((dict(request.headers), await request.json()))
        return web.Response(status=answers.pop(0) if answers else 200)

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/audit", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/audit", came, answers
    await runner.cleanup()


async def test_webhook(spool, hook, tmp_path):
    url, came, answers = hook
    (tmp_path / "token").write_text("secret\n")
    answers += [503, 401]
    sink = Webhook(shipforms.read_target(f"{url}?token-file={tmp_path / 'token'}"))
    await ship(spool, {"w": sink}, LINES[:600])
    assert came[0][0]["Authorization"] == "Bearer secret"
    taken = [item for _, body in came[2:] for item in body["items"]]
    assert taken == [json.loads(one) for one in LINES[:600]]


@pytest.mark.parametrize(
    ("code", "error"),
    [(200, None), (204, None), (302, ShipError), (400, NotTaken), (413, NotTaken), (429, ShipError), (500, ShipError)],
)
async def test_what_a_webhook_answers(hook, code, error):
    url, _, answers = hook
    answers.append(code)
    sink = Webhook(shipforms.read_target(url))
    try:
        if error is None:
            await sink.send([LINES[0]])
        else:
            with pytest.raises(error, match=f"answered {code}"):
                await sink.send([LINES[0]])
    finally:
        await sink.close()


async def test_a_webhook_that_is_not_there(tmp_path):
    sink = Webhook(shipforms.read_target(f"http://127.0.0.1:1/x?token-file={tmp_path / 'none'}"))
    with pytest.raises(ShipError, match=r"could not be reached .FileNotFoundError"):
        await sink.send([LINES[0]])
    sink = Webhook(shipforms.read_target("http://127.0.0.1:1/x"))
    with pytest.raises(ShipError, match="could not be reached"):
        await sink.send([LINES[0]])
    await sink.close()


@pytest.mark.parametrize(
    "address", ["syslog+tls://logs?ca=/none", "https://siem/x?ca=/none", "https://siem/x?cert=/none"]
)
def test_certificates_that_are_not_there(address):
    with pytest.raises(TargetError, match="its certificates cannot be read"):
        shipping.make_sink(shipforms.read_target(address))


def test_make_sink(tls):
    assert isinstance(shipping.make_sink(shipforms.read_target("stdout")), Stdout)
    assert isinstance(shipping.make_sink(shipforms.read_target("https://siem/x")), Webhook)
    assert isinstance(shipping.make_sink(shipforms.read_target(f"syslog+tls://x?ca={tls.ca_file}")), Syslog)


async def test_what_a_recorder_writes_reaches_the_webhook(tmp_path, spool, hook):
    url, came, _ = hook
    shipper = Shipper(spool, {"w": Webhook(shipforms.read_target(url))})
    shipper.start()
    one = start(tmp_path, ship=spool.append)
    await one.write(record("a"))
    await asyncio.to_thread(one.close)
    assert await shipper.drained(10)
    await shipper.close()
    items = [item for _, body in came for item in body["items"]]
    assert [item["auditID"] for item in items if item["verb"] == "delete"] == ["id-a"]
    anchors = chain.anchors([json.dumps(body).encode() for _, body in came])
    written = (tmp_path / "recordings" / "checkpoints.jsonl").read_bytes().splitlines()
    assert anchors == written
