import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import asciicast, chain
from addons.core.asciicast import Cast

T = 1795529002.0


def play(*frames, **options):
    """Events of a stream made of (channel byte and text, from the client, seconds)."""
    cast = Cast("kubectl exec web-1 -- sh", T, **options)
    data = cast.header()
    for content, from_client, at in frames:
        data += cast.frame(content, from_client=from_client, at=T + at)
    return check(data + cast.end(T + 100))[1]


def check(data):
    """What the format's description demands."""
    lines = data.decode("ascii").splitlines()
    head, *events = [json.loads(line) for line in lines]
    assert head["version"] == 2
    assert type(head["width"]) is int
    assert type(head["height"]) is int
    latest = 0
    for event in events:
        at, kind, text = event
        assert at >= latest
        assert kind in "oirm"
        assert isinstance(text, str)
        text.encode()  # no half letters
        latest = at
    return head, events


def test_header():
    head, events = check(Cast("kubectl exec\n web-1", T).header())
    assert head == {
        "version": 2,
        "width": 80,
        "height": 24,
        "timestamp": 1795529002,
        "title": "kubectl exec web-1",
        "env": {"TERM": "xterm-256color"},
    }
    assert events == []


def test_a_shell():
    assert play(
        (b'\4{"Width":120,"Height":40}', True, 0.1),
        (b"\1$ ", False, 0.5),
        (b"\0ls\r", True, 1.25),
        (b"\1ls\r\nweb\r\n", False, 1.5),
        (b"\2oops\r\n", False, 2),
        (b'\3{"status":"Success"}', False, 3),
        tty=True,
    ) == [
        [0.1, "r", "120x40"],
        [0.5, "o", "$ "],
        [1.25, "i", "ls\r"],
        [1.5, "o", "ls\r\nweb\r\n"],
        [2, "o", "oops\r\n"],
        [3, "m", "Success"],
    ]


def test_what_was_typed_can_be_left_out():
    assert play((b"\0secret\r", True, 1), (b"\1x", False, 2), stdin=False) == [[2, "o", "x"]]


@pytest.mark.parametrize(
    ("frames", "shown"),
    [
        pytest.param([b"a\nb\n"], "a\r\nb\r\n", id="newlines"),
        pytest.param([b"a\r\nb"], "a\r\nb", id="returns that are there"),
        pytest.param([b"a\r", b"\nb"], "a\r\nb", id="a pair across frames"),
        pytest.param([b"a\r", b"b\n"], "a\rb\r\n", id="a return alone"),
    ],
)
def test_without_a_terminal_lines_are_no_stairs(frames, shown):
    events = play(*((b"\1" + frame, False, 1) for frame in frames))
    assert "".join(text for _, _, text in events) == shown


def test_letters_across_frames():
    data = "päß€🙂".encode()
    events = play(*((b"\1" + data[n : n + 1], False, n) for n in range(len(data))))
    assert "".join(text for _, _, text in events) == "päß€🙂"


def test_letters_of_two_channels_are_not_mixed():
    a, b = "ä".encode()
    events = play((bytes([1, a]), False, 0), (b"\2x", False, 1), (bytes([1, b]), False, 2))
    assert [text for _, _, text in events] == ["x", "ä"]


def test_half_a_letter_at_the_end():
    assert play((b"\1\xe2\x82", False, 1)) == [[100, "o", "\ufffd"]]


def test_base64():
    events = play(
        (b"1aGVsbG8=", False, 1), (b"1!!", False, 2), (b"xaGVsbG8=", False, 3), protocol="base64.channel.k8s.io"
    )
    assert [text for _, _, text in events] == ["hello"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\1",
        b"\4nonsense",
        b"\4[]",
        b'\4{"Width":"x","Height":1}',
        b'\4{"Width":true,"Height":1}',
        b'\4{"Width":0,"Height":5}',
        b'\4{"Width":1000000,"Height":5}',
        b"\x09x",
        b"\xff\0",
        b"\4" + b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("from_client", [True, False])
def test_what_is_none_of_the_protocols(content, from_client):
    assert play((content, from_client, 1)) == []


def test_a_client_cannot_put_words_into_the_servers_mouth():
    assert play((b"\1forged", True, 1), (b'\3{"status":"Success"}', True, 2), (b"\0typed", False, 3)) == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        pytest.param({"status": "Success"}, "Success", id="success"),
        pytest.param({"status": "Failure", "message": "exit code 1"}, "Failure: exit code 1", id="failure"),
        pytest.param({"message": 7}, "Failure: ", id="odd"),
    ],
)
def test_how_it_ended(status, said):
    assert play((b"\3" + json.dumps(status).encode(), False, 1)) == [[1, "m", said.rstrip()]]


def test_why_it_was_cut():
    cast = Cast("x", T)
    assert json.loads(cast.end(T + 5, "the token\nexpired")) == [5, "m", "the token expired"]


def test_a_clock_that_jumps():
    events = play((b"\1a", False, 10), (b"\1b", False, -3600), (b"\1c", False, 1e12), (b"\1d", False, 11))
    assert [at for at, _, _ in events] == [10, 10, 10, 11]


@given(st.lists(st.tuples(st.binary(max_size=30), st.booleans(), st.floats(-1e10, 1e10)), max_size=20), st.booleans())
def test_any_frames_make_a_cast(frames, tty):
    play(*frames, tty=tty)


@given(st.text(max_size=2000))
def test_any_title(title):
    check(Cast(title, T).header())


@given(st.text())
def test_file_names_are_plain(audit_id):
    assert chain.is_file_name(asciicast.file_name(audit_id))


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b'{"Width":80,"Height":24}', (80, 24)),
        (b'{"Width":0,"Height":24}', None),
        (b'{"Width":true,"Height":24}', None),
        (b"[]", None),
        (b"x", None),
        (b"[" * 10_000, None),
    ],
)
def test_sizes(data, size):
    assert asciicast.size_of(data) == size
