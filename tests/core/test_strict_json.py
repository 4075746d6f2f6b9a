import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import strict_json

TEXT = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


def loads(text):
    return strict_json.loads(text, text.encode("utf-8", "surrogatepass"))


@given(JSON, st.booleans())
def test_every_value_comes_back(value, ascii_only):
    assert loads(json.dumps(value, ensure_ascii=ascii_only)) == value


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"a":1,"a":2}', id="key twice"),
        pytest.param('{"x":[{"dryRun":["All"],"dryRun":[]}]}', id="key twice, inside"),
        pytest.param('{"a":1,"\\u0061":2}', id="key twice, once escaped"),
        pytest.param("NaN", id="NaN"),
        pytest.param("[-Infinity]", id="Infinity"),
        pytest.param("1e999", id="infinite float"),
        pytest.param("9223372036854775808", id="over int64"),
        pytest.param("-9223372036854775809", id="under int64"),
        pytest.param("1" * 5000, id="more digits than Python converts"),
        pytest.param('"\\ud800"', id="half a pair"),
        pytest.param('{"\\udc00":1}', id="half a pair in a key"),
        pytest.param("{} {}", id="two values"),
        pytest.param("{'a':1}", id="single quotes"),
        pytest.param('{"a":1,}', id="comma at the end"),
        pytest.param('"\n"', id="raw line feed"),
        pytest.param("// x\n1", id="comment"),
        pytest.param("\ufeff{}", id="byte order mark"),
        pytest.param("", id="empty"),
        pytest.param("[" * 101 + "]" * 101, id="deep"),
        pytest.param('{"a":' * 101 + "1" + "}" * 101, id="deep objects"),
        pytest.param("[" * 100_000 + "]" * 100_000, id="far deeper than the stack"),
    ],
)
def test_refused(text):
    with pytest.raises(strict_json.NotStrictJSON):
        loads(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("[" * 100 + "]" * 100, None, id="as deep as allowed"),
        pytest.param("[" + ",".join(["[]"] * 200) + "]", None, id="wide is not deep"),
        pytest.param('"\\ud83d\\ude00"', "\U0001f600", id="a whole pair"),
        pytest.param("-9223372036854775808", -(2**63), id="least int64"),
    ],
)
def test_passes(text, value):
    assert loads(text) == (json.loads(text) if value is None else value)


def test_a_message_quotes_nothing():
    with pytest.raises(strict_json.NotStrictJSON) as e:
        loads('{"password":"hunter2" oops}')
    assert "hunter2" not in str(e.value)
