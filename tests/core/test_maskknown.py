import base64
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core.maskknown import Known

KEY = bytes(range(32))
VALUE = b"Xq9zKw-Pl4mNb+/77x"


def memory(*values, limit=100):
    known = Known(KEY, limit)
    for value in values:
        known.learn(value)
    return known


def hidden(known, text):
    return [text[start:end] for start, end in known.spans(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param(b"connected with " + VALUE + b" ok", VALUE, id="between blanks"),
        pytest.param(b'{"pw":"' + VALUE + b'"}', VALUE, id="in quotes"),
        pytest.param(b"PW=" + VALUE, VALUE, id="after an equals sign"),
        pytest.param(b"login (" + VALUE + b").", VALUE, id="in brackets, with a full stop"),
        pytest.param(b"x " + base64.b64encode(VALUE), base64.b64encode(VALUE), id="as base64"),
        pytest.param(b"x " + VALUE.hex().encode(), VALUE.hex().encode(), id="as hex"),
        pytest.param(b"/?a=" + quote(VALUE, safe="").encode() + b"&b=1", quote(VALUE, safe="").encode(), id="in a URL"),
    ],
)
def test_a_known_value_is_found(text, found):
    assert hidden(memory(VALUE), text) in ([found], [found, found])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"x " + VALUE + b"7", id="part of a longer token"),
        pytest.param(b"x " + VALUE[:-1], id="not all of it"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_only_whole_tokens(text):
    assert not hidden(memory(VALUE), text)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"kube-system", id="a name: it would blind everybody to it"),
        pytest.param(b"Xq9zKwPl4", id="shorter than 12"),
        pytest.param(b"db.shop.svc.cluster.local", id="a host"),
        pytest.param(b"aaaaaaaaaaaaaaaaaaaa1", id="low entropy"),
        pytest.param(b"", id="empty"),
    ],
)
def test_not_every_value_is_remembered(value):
    known = Known(KEY)
    assert known.learn(value) == 0
    assert len(known) == 0


def test_a_file_of_settings_is_remembered_token_by_token():
    known = memory(b"host=db.shop\npass=Xq9zKwPl4mNb7\n")
    assert hidden(known, b"using Xq9zKwPl4mNb7 for db.shop") == [b"Xq9zKwPl4mNb7"]


def test_the_oldest_are_forgotten():
    first, second = b"Xq9zKwPl4mNb7", b"Zz8yLvQm3kJh6"
    known = memory(first, second, limit=4)
    assert len(known) == 4
    assert not known.holds(first)
    assert known.holds(second)


def test_learned_twice_is_new_once():
    known = memory(VALUE)
    assert known.learn(VALUE) == 0


def test_hashes_can_be_kept_and_hold_nothing():
    known = memory(VALUE)
    stored = known.hashes()
    assert VALUE not in b"".join(stored)
    again = Known(KEY)
    again.restore([*stored, b"of another length"])
    assert again.hashes() == stored
    assert again.holds(VALUE)
    other = Known(bytes(32))
    other.restore(stored)
    assert not other.holds(VALUE)  # keyed: a stolen file cannot be tried out


@given(st.binary(max_size=300))
def test_any_text(text):
    for start, end in memory(VALUE).spans(text):
        assert 0 <= start < end <= len(text)


def test_hostile_text_takes_no_time():
    known = memory(VALUE)
    for piece in (b"a=b:c,", b"x", b"((((", b"aaaaaaaaaaaaa="):
        before = time.perf_counter()
        known.spans(piece * (500_000 // len(piece)))
        assert time.perf_counter() - before < 5
