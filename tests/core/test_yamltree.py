import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import yamltree
from addons.core.yamltree import YamlError


def only(text: str) -> yamltree.Node:
    (node,) = yamltree.documents(text.encode())
    return node


def test_plain():
    assert only("a: [b, {c: d}]\ne:\n").plain() == {"a": ["b", {"c": "d"}], "e": None}


def test_lines():
    node = only("a: 1\nb:\n- x\n- y\n")
    assert [(key.text, key.line) for key, _ in node.pairs] == [("a", 1), ("b", 2)]
    assert [item.line for item in node.pairs[1][1].items] == [3, 4]


@pytest.mark.parametrize(
    ("text", "tag"),
    [("no", "bool"), ("'no'", "str"), ("1:30", "int"), ("0x1", "int"), ("1.0", "float"), ("~", "null"), ("x", "str")],
)
def test_what_a_plain_word_is(text, tag):
    assert only(f"a: {text}").pairs[0][1].tag == tag


def test_documents():
    assert [n.plain() for n in yamltree.documents(b"# nothing\n---\na: b\n---\n---\nc: d\n")] == [
        {"a": "b"},
        {"c": "d"},
    ]


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        pytest.param(b"a: 1\na: 2\n", 2, "has the key 'a' twice, first in line 1", id="duplicate key"),
        pytest.param(b"a: &x 1\nb: *x\n", 1, "has an anchor or alias", id="anchor"),
        pytest.param(b"a: *x\n", 1, "has an anchor or alias", id="alias"),
        pytest.param(b"a:\n- !!python/object:os.system x\n", 2, "has a tag", id="tag"),
        pytest.param(b"a:\n\tb: 1\n", 2, "begins with a tab", id="tab"),
        pytest.param(b"a: b\n1: c\n", 2, "has a number as a key", id="number as key"),
        pytest.param(b"<<: {a: b}\n", 1, "has a text as a key", id="merge key"),
        pytest.param(b"? [a]\n: b\n", 1, "has a list as a key", id="list as key"),
        pytest.param(b"a: [\nb: c\n", 3, "is not YAML", id="syntax"),
        pytest.param(b"a: \xff\n", 1, "is not UTF-8", id="latin-1"),
        pytest.param(b"a: b\nc: \x01\n", 2, "control character", id="control character"),
        pytest.param(b"[" * 100_000, 1, "nest", id="deep"),
        pytest.param(b"- " * 100_000, 1, "is nested deeper", id="deep block"),
        pytest.param(b"--- a\n" * 101, 101, "has more than 100 documents", id="many documents"),
        pytest.param(b"#" * (yamltree.MAX_BYTES + 1), 1, "has 4194305 bytes", id="long"),
    ],
)
def test_refused(data, line, message):
    with pytest.raises(YamlError, match=message) as e:
        yamltree.documents(data)
    assert e.value.line == line


@given(st.binary(max_size=60) | st.text(alphabet="ab:-[]{}&*!|>'\"#%@` \n\t?,0.~", max_size=60).map(str.encode))
def test_any_bytes_give_a_tree_or_its_own_error(data):
    with contextlib.suppress(YamlError):
        yamltree.documents(data)


def test_many_values(monkeypatch):
    monkeypatch.setattr(yamltree, "MAX_NODES", 100)
    with pytest.raises(YamlError, match="has more than 100 values") as e:
        yamltree.documents(b"- a\n" * 101)
    assert e.value.line == 100
