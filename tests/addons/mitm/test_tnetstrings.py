"""Against mitmproxy's own reader and writer."""

import enum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.io import tnetstring
from mitmproxy.test import tflow

from addons.mitm import tnetstrings

simple = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(simple, lambda below: st.lists(below) | st.dictionaries(st.text(), below), max_leaves=30)


def typed(value):
    """With its types: 1, 1.0 and True are equal otherwise."""
    if isinstance(value, dict):
        return {key: typed(one) for key, one in value.items()}
    return [typed(one) for one in value] if isinstance(value, list | tuple) else (type(value), value)


@given(values)
def test_mitmproxy_reads_the_same_value(value):
    assert typed(tnetstring.loads(tnetstrings.dumps(value))) == typed(value)


@given(st.lists(simple))
def test_what_is_not_nested_is_byte_for_byte_mitmproxys(value):
    assert tnetstrings.dumps(value) == tnetstring.dumps(value)


def test_a_whole_flow():
    state = tflow.twebsocketflow().get_state()
    assert tnetstring.loads(tnetstrings.dumps(state)) == tnetstring.loads(tnetstring.dumps(state))


class Word(enum.StrEnum):
    ONE = "one"


@pytest.mark.parametrize("value", [object(), {1, 2}, [b"", [object()]], bytearray(b"x"), Word.ONE])
def test_what_has_no_form(value):
    with pytest.raises(ValueError, match="has no place"):
        tnetstrings.dumps(value)


@pytest.mark.parametrize("value", ["\udc80", ["\ud800"]])
def test_half_a_surrogate_pair_is_an_error_as_ever(value):
    with pytest.raises(ValueError, match="surrogates not allowed"):
        tnetstrings.dumps(value)
    with pytest.raises(ValueError, match="surrogates not allowed"):
        tnetstring.dumps(value)
