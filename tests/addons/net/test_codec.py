import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core.approvals import Access, Asked, Decision, Grant, Item, Phase, Preview, Record, Requester
from addons.core.model import NOTHING, Approval, Hold
from addons.net import codec
from addons.net.codec import Damaged

ANN = Requester("ann", "u1", ("dev", "ops"), "https://issuer", "jti")
FULL = Record(
    "apr-1",
    "uid",
    ANN,
    "d0",
    (Asked(Hold("p", "r", "why", Approval(groups=("g",), claims="true")), "team"),),
    1_800_000_000.123,
    1_800_000_900.0,
    items=(Item("d1", "delete pod", "u", "7", "r", 5.5, "audit"), Item("d2", "é \0 \u2028")),
    content={"pods": 3},
    preview=Preview("--- a", {"pods": 3}, ("web",), False, ("note",), ("sh", "-c")),
    access=Access(("get",), ("pods",), "shop", 60, "because"),
    phase=Phase.USED,
    decisions=(Decision("bob", True, 1.0, "fine", ("g",), "x", "api", ("p/r",), "u2", "https://issuer", ("o",)),),
    waiting=True,
)
GRANT = Grant("grt-1", "uid", ANN, ("p/r",), 1.0, 2.0)


def test_there_and_back():
    again = codec.record(codec.encode(FULL))
    assert again == FULL
    assert type(again.phase) is Phase
    assert type(again.items) is tuple
    assert codec.grant(codec.encode(GRANT)) == GRANT


def test_the_empty_mapping_of_the_model():
    plain = dataclasses.replace(FULL, preview=Preview())
    assert plain.preview.counts is NOTHING
    assert codec.record(codec.encode(plain)) == plain


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
entries = st.builds(
    Record,
    texts,
    texts,
    st.builds(Requester, texts, texts, st.lists(texts, max_size=3).map(tuple)),
    texts,
    st.just(FULL.asked),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    content=st.none() | st.dictionaries(texts, st.integers(-(2**63), 2**63 - 1), max_size=3),
    phase=st.sampled_from(Phase),
    waiting=st.booleans(),
)


@given(entries)
def test_whatever_is_in_it(entry):
    assert codec.record(codec.encode(entry)) == entry


def changed(**more):
    return json.dumps({**json.loads(codec.encode(FULL)), **more}).encode()


def without(key):
    found = json.loads(codec.encode(FULL))
    del found[key]
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"", "not JSON", id="nothing"),
        pytest.param(b"{", "not JSON", id="cut"),
        pytest.param(b"\xff\x00", "not JSON", id="no text"),
        pytest.param(b"[" * 100_000, "not JSON|not as expected", id="deep"),
        pytest.param(b"null", "not as expected at the top", id="null"),
        pytest.param(b"[]", "not as expected", id="a list"),
        pytest.param(without("requester"), "not as expected", id="a field is gone"),
        pytest.param(changed(phase="secret"), r"not as expected at phase", id="an unknown phase"),
        pytest.param(changed(created="1"), r"not as expected at created", id="a number as text"),
        pytest.param(changed(created=None), r"not as expected at created", id="no number"),
        pytest.param(changed(waiting=0), r"not as expected at waiting", id="a number for a bool"),
        pytest.param(changed(items="x"), r"not as expected at items", id="no list"),
        pytest.param(changed(secondFactor=True), "newer version", id="an unknown field"),
        pytest.param(
            changed(requester={"username": "ann", "tenant": "x"}), "newer version", id="an unknown field further down"
        ),
        pytest.param(codec.encode(GRANT), "not as expected", id="another kind"),
    ],
)
def test_what_is_refused(data, why):
    with pytest.raises(Damaged, match=why) as e:
        codec.record(data)
    assert "secret" not in str(e.value)


def test_what_an_older_version_did_not_write_has_its_default():
    assert codec.record(without("repeatable")) == FULL
    assert codec.record(changed(items=[{"digest": "d", "what": "w"}])).items == (Item("d", "w"),)


def test_order_and_whitespace_do_not_matter():
    found = json.loads(codec.encode(FULL))
    assert codec.record(json.dumps(dict(reversed(found.items())), indent=2).encode()) == FULL


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        pytest.param(dataclasses.replace(FULL, command="\ud800"), "no Unicode", id="a lone surrogate"),
        pytest.param(dataclasses.replace(FULL, created=math.nan), r"at created", id="no number"),
        pytest.param(dataclasses.replace(GRANT, until=math.inf), r"at until", id="endless"),
        pytest.param(dataclasses.replace(FULL, command=object()), "cannot be written", id="anything else"),
    ],
)
def test_what_cannot_be_kept_is_said_before(entry, why):
    with pytest.raises(Damaged, match=why):
        codec.encode(entry)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_entry_or_damaged(data):
    with pytest.raises(Damaged):
        codec.record(data)
