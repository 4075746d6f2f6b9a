import asyncio
import json
import tracemalloc

import pytest

from addons.core import facts, maskdetect, masking
from addons.core.maskchannels import BROKEN, Channels, NotMaskable
from addons.core.masktags import Place
from addons.core.masktext import TextMasker
from addons.mitm import cutting, maskframes
from addons.mitm.maskframes import Frames
from tests import canaries, websocket

maskframes.install()

KEY = bytes(range(32))
PLACE = Place("pods/exec", "shop", "web-1")
SECRET = b"Xq9zKw-canary-Pl4mNb7"
LINE = b"before password=" + SECRET + b" after\n"
STATUS = b'\x03{"metadata":{},"status":"Success"}'


@pytest.fixture(scope="module", autouse=True)
def patterns():
    """Compiling them takes 3 s, and four times that on a busy machine: longer than a request may take here."""
    maskdetect.warm(None)


class Masks:
    """What addons/mask.py does with frames, alone."""

    name = "masks"

    def __init__(self, terminal=False):
        self.terminal = terminal
        self.frames = {}
        self.seen = []

    def websocket_message(self, flow):
        message = flow.websocket.messages[-1]
        self.seen = [*self.seen[-9:], message.content]
        if message.from_client or message.content == facts.of(flow).last_words != b"":
            return
        frames = self.frames.get(flow)
        if frames is None:
            channels = Channels(lambda: TextMasker(KEY, PLACE, b"n"), lambda raw: masking.mask_json(raw, PLACE, KEY)[0])
            frames = self.frames[flow] = Frames(flow, channels, terminal=self.terminal)
        try:
            frames.judge(message)
        except NotMaskable:
            message.content = b""
            cutting.cut(flow, BROKEN)
        del flow.websocket.messages[:-1]


def through(tls, confdir, serve, addon=None, **more):
    return websocket.connected(tls, confdir, serve, addon or Masks(), **more)


def ends(*frames):
    async def serve(peer):
        for frame in frames:
            await peer.send(frame)
        await peer.close()
        await peer.to_the_end()

    return serve


async def test_lines_pass_masked(tls, confdir):
    async with through(tls, confdir, ends(b"\x01", b"\x01" + LINE, b"\x02err\n", STATUS)) as client:
        await client.to_the_end()
    empty, line, err, status = client.received
    assert (empty, err, status) == (b"\x01", b"\x02err\n", STATUS)
    assert line.startswith(b"\x01before password=**masked:")
    assert line.endswith(b"** after\n")
    assert client.code == 1000


async def test_a_secret_at_every_offset_of_a_frame(tls, confdir):
    parts = [part for at in range(len(LINE) + 1) for part in (LINE[:at], LINE[at:])]
    async with through(tls, confdir, ends(*(b"\x01" + part for part in parts), STATUS)) as client:
        await client.to_the_end()
    assert not canaries.seen_in(client.output(), [SECRET])
    assert client.output().count(b"before password=**masked:") == len(parts) // 2
    assert client.received[-1] == STATUS


async def test_what_is_held_back_goes_before_the_status(tls, confdir):
    async with through(tls, confdir, ends(b"\x01out", b"\x02err", STATUS)) as client:
        await client.to_the_end()
    assert client.received == [b"\x01out", b"\x02err", STATUS]


async def test_what_is_held_back_goes_before_the_close(tls, confdir):
    async with through(tls, confdir, ends(b"\x01out", b"\x02token=" + SECRET)) as client:
        await client.to_the_end()
    assert client.received[0] == b"\x01out"
    assert client.received[1].startswith(b"\x02token=**masked:")
    assert client.code == 1000


async def test_all_at_once(tls, confdir):
    """The frames of one read: what is held back must not be overtaken."""

    async def serve(peer):
        frames = [b"\x01a", b"\x01b", b"\x02x\ny", b"\x01c\nd", STATUS]
        peer.writer.write(b"".join(b"\x82" + bytes([len(frame)]) + frame for frame in frames) + b"\x88\x02\x03\xe8")
        await peer.to_the_end()

    async with through(tls, confdir, serve) as client:
        await client.to_the_end()
    assert client.received == [b"\x02x\n", b"\x01abc\n", b"\x01d", b"\x02y", STATUS]
    assert client.code == 1000


async def test_a_connection_that_breaks(tls, confdir):
    async def serve(peer):
        await peer.send(b"\x01out")

    async with through(tls, confdir, serve) as client:
        await client.to_the_end()
    assert client.received[0] == b"\x01out"
    assert json.loads(client.received[1][1:])["message"] == maskframes.BROKE_OFF.message


@pytest.mark.parametrize("protocol", [websocket.V5, "other"])
async def test_a_connection_that_breaks_for_who_is_not_masked(tls, confdir, protocol):
    async def serve(peer):
        await peer.send(b"\x01out")

    async with websocket.connected(tls, confdir, serve, protocol=protocol) as client:
        await client.to_the_end()
    assert [frame[:1] for frame in client.received] == [b"\x01", b"\x03"][: 2 if protocol == websocket.V5 else 1]


@pytest.mark.parametrize("addons", [[], [Masks()]], ids=["not masked", "masked"])
async def test_a_connection_that_breaks_after_the_end(tls, confdir, addons):
    async def serve(peer):
        await peer.send(b"\x01out")
        await peer.send(STATUS)

    async with websocket.connected(tls, confdir, serve, *addons) as client:
        await client.to_the_end()
    assert client.received == [b"\x01out", STATUS]


async def test_every_frame_passes_the_hooks(tls, confdir):
    addon = Masks()
    async with through(tls, confdir, ends(b"\x01out", STATUS), addon) as client:
        await client.to_the_end()
    assert addon.seen == [b"\x01out", STATUS, b"\x01out", STATUS]


class Terminal:
    """A program that says something and waits until the client answers."""

    def __init__(self, *says):
        self.says = says
        self.times = []

    async def __call__(self, peer):
        for said in self.says:
            await peer.send(b"\x01" + said)
            self.times.append(asyncio.get_running_loop().time())
            before = len(peer.received)
            await peer.until(lambda before=before: len(peer.received) > before)
        await peer.close()
        await peer.to_the_end()


@pytest.mark.parametrize(
    ("terminal", "prompts"),
    [
        pytest.param(False, [b"name? ", b"2 + 2 = "], id="input from a pipe"),
        pytest.param(True, [b"\x1b[1mroot@web-1\x1b[0m:/# ", b"/#", b"user@host-123$"], id="a terminal"),
    ],
)
async def test_prompts_come_soon(tls, confdir, terminal, prompts):
    program = Terminal(*prompts)
    async with through(tls, confdir, program, Masks(terminal)) as client:
        for number, prompt in enumerate(prompts):
            await client.until(lambda prompt=prompt: client.output().endswith(prompt), seconds=2)
            assert client.times[-1] - program.times[number] < 0.2
            await client.send(b"\x00answer\n")
        await client.to_the_end()
    assert client.output() == b"".join(prompts)


async def test_without_a_terminal_the_beginning_of_a_secret_waits(tls, confdir):
    program = Terminal(b"got Xq9zKwPl4")
    async with through(tls, confdir, program) as client:
        await client.until(lambda: client.output() == b"got ", seconds=2)
        await client.send(b"\x00x")
        await client.to_the_end()


async def test_a_progress_bar_moves(tls, confdir):
    async def serve(peer):
        for number in range(30):
            await peer.send(b"\x01\r%2d%%" % number)
            await asyncio.sleep(0.02)  # never a silence
        await peer.close()
        await peer.to_the_end()

    async with through(tls, confdir, serve) as client:
        await client.to_the_end()
    assert client.output() == b"".join(b"\r%2d%%" % number for number in range(30))
    assert len(client.received) > 3


async def test_silence_in_the_middle_of_a_fragmented_frame(tls, confdir):
    half = asyncio.Event()

    async def serve(peer):
        await peer.send(b"\x01one ")
        peer.writer.write(b"\x02\x03\x01tw")  # a fragment
        await peer.writer.drain()
        await asyncio.wait_for(half.wait(), 5)
        peer.writer.write(b"\x80\x02o\n")
        await peer.close()
        await peer.to_the_end()

    async with through(tls, confdir, serve) as client:
        reading = asyncio.create_task(client.to_the_end())
        await asyncio.sleep(3 * maskframes.QUIET)
        half.set()
        await reading
    assert client.output() == b"one two\n"


async def test_input_is_not_looked_at(tls, confdir):
    got = []

    async def serve(peer):
        await peer.until(lambda: len(peer.received) == 3)
        got.extend(peer.received)
        await peer.close()
        await peer.to_the_end()

    sent = [b"\x00" + LINE, b'\x04{"Width":80,"Height":24}', b"\xff\x00"]
    async with through(tls, confdir, serve) as client:
        for frame in sent:
            await client.send(frame)
        await client.to_the_end()
    assert got == sent


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x03not json", id="no Status"),
        pytest.param(b"\x07" + LINE, id="unknown channel"),
    ],
)
async def test_what_cannot_be_masked_ends_it(tls, confdir, frame):
    async def serve(peer):
        await peer.send(b"\x01hello\nheld")
        await peer.send(frame)
        await peer.send(b"\x01later\n")
        await peer.to_the_end()

    async with through(tls, confdir, serve) as client:
        await client.to_the_end()
    words = [frame for frame in client.received if frame[:1] == b"\x03"]
    assert json.loads(words[0][1:])["message"] == BROKEN.message
    assert client.output() == b"hello\n"
    assert client.code == 1000


async def test_an_end_that_fails_is_none(tls, confdir, monkeypatch):
    def fails(self):
        raise RuntimeError

    monkeypatch.setattr(Channels, "finish", fails)
    async with through(tls, confdir, ends(b"\x01out")) as client:
        await client.to_the_end()
    assert json.loads(client.received[-1][1:])["message"] == BROKEN.message


async def test_a_cut_says_why(tls, confdir):
    addon = Masks()

    async def serve(peer):
        await peer.send(b"\x01hello\nheld")
        await peer.to_the_end()

    async with through(tls, confdir, serve, addon) as client:
        await client.until(lambda: bool(client.received))
        cutting.cut(next(iter(addon.frames)), BROKEN)
        await client.to_the_end()
    assert json.loads(client.received[-1][1:])["message"] == BROKEN.message
    assert client.code == 1000


async def test_much_output_in_little_memory(tls, confdir):
    chunk = b"\x01" + (b"2024-01-01 request served status=200\n" * 1000)[:32767]
    many = 20 * 1024 * 1024 // len(chunk)

    async def serve(peer):
        for _ in range(many):
            await peer.send(chunk)
        await peer.send(STATUS)
        await peer.close()
        await peer.to_the_end()

    async with through(tls, confdir, serve) as client:
        client.keep = False
        tracemalloc.start()
        try:
            await client.to_the_end(120)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert client.bytes_received >= many * (len(chunk) - 1)
    assert peak < 6 * 1024 * 1024


async def test_a_slow_client_slows_the_server_down(tls, confdir):
    sent = 0

    async def serve(peer):
        nonlocal sent
        for _ in range(2000):
            await peer.send(b"\x01" + b"x y\n" * 8000)
            sent += 1

    async with through(tls, confdir, serve):
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 1000
