import json

import pytest

from addons.core import recordedstream
from addons.core.asciicast import Cast
from addons.core.maskchannels import Channels, NotMaskable
from addons.core.masktags import Place
from addons.core.masktext import TextMasker
from addons.core.recordedstream import RecordedStream
from tests import canaries

TOKEN = canaries.VALUES["github token"]


def masker():
    return TextMasker(bytes(range(32)), Place("pods/exec"), b"12345678")


@pytest.fixture
def stream():
    return RecordedStream(Cast("kubectl exec", 100.0), Channels(masker, lambda raw: raw), masker)


def lines(*pieces):
    return [json.loads(line)[1:] for line in b"".join(pieces).splitlines()]


def test_both_directions(stream):
    assert json.loads(stream.header())["version"] == 2
    assert lines(
        stream.frame(b"\0ls\n", from_client=True, at=101.0),
        stream.frame(b"\1a\n", from_client=False, at=102.0),
        stream.frame(b"\2oops\n", from_client=False, at=103.0),
    ) == [["i", "ls\n"], ["o", "a\r\n"], ["o", "oops\r\n"]]
    assert [frame[1] for frame in stream.frames] == [b"\0ls\n", b"\1a\n", b"\2oops\n"]


@pytest.mark.parametrize(("channel", "from_client"), [(b"\0", True), (b"\1", False), (b"\2", False)])
@pytest.mark.parametrize("cut", [1, 10, 39])
def test_secrets_across_frames(stream, channel, from_client, cut):
    written = [
        stream.frame(channel + TOKEN[:cut], from_client=from_client, at=1.0),
        stream.frame(channel + TOKEN[cut:] + b"\n", from_client=from_client, at=2.0),
        stream.end(3.0, ""),
    ]
    text = "".join(line[1] for line in lines(*written))
    assert TOKEN[8:].decode() not in text
    assert "**masked:" in text
    assert not any(TOKEN[4:] in frame[1] for frame in stream.frames)


def test_what_is_held_back_comes_in_time(stream):
    assert stream.frame(b"\1prompt> ", from_client=False, at=1.0) == b""
    assert lines(stream.idle(2.0)) == [["o", "prompt> "]]


def test_the_end_says_why(stream):
    stream.frame(b"\1half", from_client=False, at=1.0)
    assert lines(stream.end(2.0, "the grant is over")) == [["o", "half"], ["m", "the grant is over"]]


def test_no_frame_of_the_protocol(stream):
    with pytest.raises(NotMaskable):
        stream.frame(b"\x09?", from_client=False, at=1.0)


def test_the_flow_keeps_the_first_frames_only(stream, monkeypatch):
    monkeypatch.setattr(recordedstream, "MAX_FRAMES", 10)
    for _ in range(3):
        stream.frame(b"\1abcd\n", from_client=False, at=1.0)
    assert (len(stream.frames), stream.cut) == (1, True)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        pytest.param(b'\4{"Width":100,"Height":30}', b'\4{"Width":100,"Height":30}', id="a size"),
        pytest.param(
            b'\4{"Width":100,"Height":30,"x":"%s"}' % TOKEN, b'\4{"Width":100,"Height":30}', id="a size and more"
        ),
        pytest.param(b"\4" + TOKEN, b"\4", id="no size"),
        pytest.param(b"\xff\0" + TOKEN, b"\xff\0", id="a channel that closes"),
        pytest.param(b"\2" + TOKEN, b"\2", id="a channel of the server's"),
        pytest.param(b"", b"", id="nothing"),
    ],
)
def test_what_types_nothing_is_kept_as_far_as_it_means_something(stream, sent, kept):
    written = stream.frame(sent, from_client=True, at=1.0)
    assert TOKEN not in written
    assert stream.frames == [(True, kept, 1.0)]
