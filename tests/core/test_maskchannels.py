import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addons.core import maskchannels, masking
from addons.core.maskchannels import Channels, NotMaskable
from addons.core.maskpolicy import EVERYTHING, NOTHING, MaskLevel
from addons.core.masktags import Place
from addons.core.masktext import TextMasker
from addons.core.model import Impact, Operation, RequestInfo
from tests import canaries

KEY = bytes(range(32))
PLACE = Place("pods/exec", "shop", "web-1")
LINE = b"password=Xq9zKw-canary-Pl4mNb7\n"
ENDED = {
    "metadata": {},
    "status": "Failure",
    "message": "command terminated with non-zero exit code: exit status 3",
    "reason": "NonZeroExitCode",
    "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
}


def channels():
    return Channels(lambda: TextMasker(KEY, PLACE, b"n"), lambda raw: masking.mask_json(raw, PLACE, KEY)[0])


def test_a_line_passes_at_once():
    assert channels().from_server(b"\x01hello\n") == [b"\x01hello\n"]


def test_what_may_go_on_is_held_back():
    one = channels()
    assert one.from_server(b"\x01hel") == []
    assert one.pending == 3
    assert one.from_server(b"\x01lo\n") == [b"\x01hello\n"]


@pytest.mark.parametrize("channel", [1, 2])
@pytest.mark.parametrize("at", range(1, len(LINE)))
def test_a_secret_in_two_frames(channel, at):
    one, out = channels(), b""
    for part in (LINE[:at], LINE[at:]):
        out += b"".join(frame[1:] for frame in one.from_server(bytes([channel]) + part))
    assert not canaries.seen_in(out, [b"Xq9zKw-canary-Pl4mNb7"])
    assert out.startswith(b"password=**masked:")


def test_the_channels_are_apart():
    one = channels()
    assert one.from_server(b"\x01pass") == []
    assert one.from_server(b"\x02hello\n") == [b"\x02hello\n"]
    assert one.from_server(b"\x02word=") == []
    assert one.from_server(b"\x01word=swordfish\n")[0].startswith(b"\x01password=**masked:")
    assert one.from_server(b"\x02no\n") == [b"\x02word=no\n"]  # no password: `word` names nothing


def test_all_that_is_held_back_goes_before_the_status():
    one = channels()
    one.from_server(b"\x01out")
    one.from_server(b"\x02err")
    assert one.from_server(b"\x03{}") == [b"\x01out", b"\x02err", b"\x03{}"]
    assert one.pending == 0
    assert one.from_server(b"\x01more\n") == [b"\x01more\n"]


def test_a_closed_channel():
    one = channels()
    one.from_server(b"\x01out")
    one.from_server(b"\x02err")
    assert one.from_server(b"\xff\x01") == [b"\x01out", b"\xff\x01"]
    assert one.from_server(b"\xff\x00") == [b"\xff\x00"]
    assert one.finish() == [b"\x02err"]


@pytest.mark.parametrize("channel", range(5))
def test_an_empty_frame_opens_a_channel(channel):
    assert channels().from_server(bytes([channel])) == [bytes([channel])]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="no channel"),
        pytest.param(b"\x00typed", id="input from the server"),
        pytest.param(b"\x04{}", id="a terminal's size from the server"),
        pytest.param(b"\x05x", id="unknown channel"),
        pytest.param(b"1aGVsbG8=", id="base64"),
        pytest.param(b"\xff\x01more", id="a close with more"),
        pytest.param(b"\x03not json", id="a Status that is none"),
        pytest.param(b'\x03{"a":1,"a":2}', id="a Status that two readers read differently"),
    ],
)
def test_what_nobody_can_read_does_not_pass(frame):
    with pytest.raises(NotMaskable):
        channels().from_server(frame)


def test_an_exit_code_stays():
    frame = b"\x03" + json.dumps(ENDED).encode()
    assert channels().from_server(frame) == [frame]


def test_a_status_is_masked():
    failed = {"kind": "Status", "apiVersion": "v1", "message": "cannot run: --password=swordfish9"}
    [frame] = channels().from_server(b"\x03" + json.dumps(failed).encode())
    assert b"swordfish9" not in frame
    assert b"**masked:" in frame


def test_silence_and_the_end_of_patience():
    one = channels()
    one.from_server(b"\x01root@web-1:/#")
    one.from_server(b"\x02half ")
    assert one.idle() == [b"\x02half "]
    assert one.release() == [b"\x01root@web-1:/#"]
    assert one.release() == []


TEXTS = st.lists(st.one_of(st.text("abc =\n", max_size=20).map(str.encode), st.just(b" " + LINE)), max_size=8)


@settings(deadline=None)
@given(TEXTS, st.randoms())
def test_no_way_of_cutting_shows_a_secret(texts, generator):
    one, frames, text = channels(), [], b"".join(texts)
    while text:
        size = generator.randint(1, 40)
        frames += one.from_server(b"\x01" + text[:size])
        text = text[size:]
    frames += one.from_server(b"\x03{}")
    assert frames.pop() == b"\x03{}"
    assert b"Xq9zKw" not in b"".join(frame[1:] for frame in frames)
    assert all(frame[0] == 1 and len(frame) > 1 for frame in frames)


def operation(subresource, upgrade, resource="pods"):
    return Operation(
        RequestInfo("get", "", resource=resource, subresource=subresource), "GET", frozenset({Impact.EXECUTE}),
        upgrade=upgrade,
    )  # fmt: skip


V5 = ["v5.channel.k8s.io"]
FIELDS_ONLY = MaskLevel(builtin=False, masked=((),))


@pytest.mark.parametrize(
    ("subresource", "upgrade", "level", "protocols", "cause"),
    [
        pytest.param("exec", "websocket", EVERYTHING, V5, None, id="v5"),
        pytest.param("attach", "websocket", EVERYTHING, ["v4.channel.k8s.io"], None, id="v4"),
        pytest.param("exec", "websocket", EVERYTHING, ["channel.k8s.io", *V5], None, id="one of them"),
        pytest.param("exec", "websocket", EVERYTHING, ["channel.k8s.io"], "subprotocol-masked", id="v1"),
        pytest.param(
            "exec", "websocket", EVERYTHING, ["v4.base64.channel.k8s.io"], "subprotocol-masked", id="v4 in base64"
        ),
        pytest.param("exec", "websocket", EVERYTHING, [], "subprotocol-masked", id="none, which is v1"),
        pytest.param("exec", "spdy", EVERYTHING, [], "spdy-masked", id="SPDY"),
        pytest.param("portforward", "websocket", EVERYTHING, V5, "portforward-masked", id="port-forward"),
        pytest.param("portforward", "spdy", EVERYTHING, [], "portforward-masked", id="port-forward by SPDY"),
        pytest.param("proxy", "websocket", EVERYTHING, V5, "proxy-masked", id="proxy"),
        pytest.param("proxy", "spdy", EVERYTHING, [], "proxy-masked", id="proxy by SPDY"),
        pytest.param("exec", "", EVERYTHING, [], None, id="no upgrade"),
        pytest.param("exec", "spdy", NOTHING, [], None, id="SPDY, not masked"),
        pytest.param("portforward", "websocket", NOTHING, [], None, id="port-forward, not masked"),
        pytest.param("exec", "spdy", FIELDS_ONLY, [], None, id="rules about fields"),
    ],
)
def test_refusals(subresource, upgrade, level, protocols, cause):
    refusal = maskchannels.refusal(operation(subresource, upgrade), level, protocols)
    assert (refusal and refusal.cause) == cause
    if refusal:
        assert len(refusal.message) < 500


def test_what_is_offered_to_the_server():
    assert maskchannels.offered(["channel.k8s.io", "v5.channel.k8s.io", "v4.channel.k8s.io", "V5.channel.k8s.io"]) == [
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
    ]


@pytest.mark.parametrize(
    ("argv", "keeps"),
    [
        pytest.param(["tar", "cf", "-", "/etc"], True, id="kubectl cp"),
        pytest.param(["/usr/bin/tar", "czf", "-", "."], True, id="by its path"),
        pytest.param(["sh", "-c", "tar cf - /etc | tail -c+1"], True, id="kubectl cp --retries"),
        pytest.param(["cat", "/etc/target", "start"], False, id="other words"),
        pytest.param(["cat", "x.tar.gz"], False, id="a file's name"),
        pytest.param([], False, id="attach"),
    ],
)
def test_which_commands_keep_their_length(argv, keeps):
    assert maskchannels.keeps_length(argv) is keeps
