import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import masktags
from addons.core.masktags import Place
from addons.core.model import RequestInfo

KEY = bytes(range(32))
PLACE = Place("secrets", "shop", "db", "u-1")


def tag(place=PLACE, path="data.password", value="hunter2", key=KEY):
    return masktags.tag(key, place, path, value)


def test_a_tag_is_stable_and_of_one_length():
    assert tag() == tag()
    assert {len(tag(value="x" * length)) for length in (0, 1, 1000)} == {19}


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(tag(value="hunter3"), id="a rotation shows"),
        pytest.param(tag(place=Place("secrets", "shop", "guess", "u-1")), id="another object confirms nothing"),
        pytest.param(tag(place=Place("secrets", "other", "db", "u-1")), id="another namespace"),
        pytest.param(tag(place=Place("configmaps", "shop", "db", "u-1")), id="another resource"),
        pytest.param(tag(place=Place("secrets", "shop", "db", "u-2")), id="deleted and made anew"),
        pytest.param(tag(path="data.guess"), id="another field"),
        pytest.param(tag(key=bytes(32)), id="another gateway"),
        pytest.param(tag(place=Place("secrets", "shopd", "b", "u-1")), id="parts do not run together"),
    ],
)
def test_equal_values_elsewhere_have_other_tags(other):
    assert other != tag()


def test_a_short_key_is_refused():
    with pytest.raises(ValueError, match="fewer than 16 bytes"):
        tag(key=b"short")


def test_place():
    info = RequestInfo("get", "/", True, api_group="apps", namespace="shop", resource="deployments", name="web")
    assert masktags.place_of(info) == Place("deployments.apps", "shop", "web")
    assert Place("secrets", "shop").of({"name": "db", "uid": "u-1"}) == PLACE
    assert Place("secrets", "shop").of({"name": 5, "uid": None}) == Place("secrets", "shop")
    assert Place("secrets", "shop").of(None) == Place("secrets", "shop")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(tag(), True, id="plain"),
        pytest.param(masktags.base64_tag(KEY, PLACE, "data.password", "hunter2"), True, id="base64"),
        pytest.param(f"{tag()} ", False, id="more than a tag"),
        pytest.param("**masked:1a2b3c4**", False, id="too short"),
        pytest.param("**masked:1A2B3C4D**", False, id="capitals"),
        pytest.param("KiptYXNrZWQ6aHVudGVyMmh1bnQqKg"[:28], False, id="base64 of something like it"),
        pytest.param("x" * 28, False, id="base64 of something else"),
        pytest.param("", False, id="empty"),
    ],
)
def test_is_tag(value, expected):
    assert masktags.is_tag(value) is expected


ENCODERS = {
    "plain": lambda text: text,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 at 1": lambda text: base64.b64encode(b"x" + text.encode()).decode(),
    "base64 at 2": lambda text: base64.b64encode(b"xy" + text.encode()).decode(),
    "base64url": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64 in lines": lambda text: base64.encodebytes(b"x" * 51 + text.encode()).decode(),
    "url": lambda text: quote(text, safe=""),
    "url, stars kept": lambda text: quote(text, safe="*"),
    "json": lambda text: json.dumps({"a": text}),
    "json in json": lambda text: json.dumps(json.dumps({"a": text})),
    "json, escaped": lambda text: text.replace("*", "\\u002a"),
    "hex": lambda text: text.encode().hex(),
    "shell": lambda text: text.replace("*", "\\*"),
}


@pytest.mark.parametrize("encode", [pytest.param(encode, id=name) for name, encode in ENCODERS.items()])
@pytest.mark.parametrize("before", ["", "a", "ab", "password: "])
def test_a_tag_is_found_in_any_spelling(encode, before):
    assert masktags.holds_tag(encode(before + tag() + "\n"))


@pytest.mark.parametrize("offset", range(3))
@pytest.mark.parametrize("second", range(3))
def test_a_tag_is_found_in_base64_twice(offset, second):
    once = base64.b64encode(b"x" * offset + tag().encode())
    assert masktags.holds_tag(base64.b64encode(b"y" * second + once).decode())


@given(st.text(max_size=200))
def test_nothing_else_is_a_tag(text):
    assert not masktags.holds_tag(text) or "masked" in text.lower()


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_bytes_around_a_tag_do_not_hide_it(before, after):
    assert masktags.holds_tag(base64.b64encode(before + tag().encode() + after).decode())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a **masked:1a2b3c4d** b", "a X b", id="plain, in a text"),
        pytest.param('{"p":"KiptYXNrZWQ6MWEyYjNjNGQqKg=="}', '{"p":"X"}', id="as base64, in a text"),
        pytest.param("**masked:zz**", "**masked:zz**", id="none"),
    ],
)
def test_replaced(text, expected):
    assert masktags.replaced(text, "X") == expected
