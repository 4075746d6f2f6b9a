import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from addons.core import chain
from addons.core.chain import ChainError, Checkpoint, Part, Size
from tests import recordings

HASH = "a" * 64
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_canonical_has_one_spelling(value):
    written = chain.canonical(value)
    assert b"\n" not in written
    assert chain.canonical(json.loads(written)) == written


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(float("nan"), id="not a number"),
        pytest.param({"a": b"bytes"}, id="bytes"),
        pytest.param({1: 1, "a": 2}, id="keys that have no order"),
    ],
)
def test_what_has_no_spelling_is_refused(value):
    with pytest.raises(ChainError):
        chain.canonical(value)


def test_a_line_says_where_it_belongs():
    files = {"exec-1.cast": Size(3, HASH), "a.stream": Size(0, HASH)}
    line = chain.link(
        {"auditID": "x", "annotations": {"tollgate.dev/verdict": "allow"}},
        uid="u1",
        sequence=7,
        previous=HASH,
        flow=Part("flows.mitm", 10, 20, HASH),
        files=files,
    )
    event, link = chain.read_line(line)
    assert event["annotations"]["tollgate.dev/verdict"] == "allow"
    assert (link.uid, link.sequence, link.previous) == ("u1", 7, HASH)
    assert link.flow == Part("flows.mitm", 10, 20, HASH)
    assert link.files == files


def test_an_event_cannot_choose_its_own_place():
    claimed = dict.fromkeys(chain.OURS, "9")
    line = chain.link({"annotations": claimed}, uid="u1", sequence=1, previous=HASH)
    assert chain.read_line(line)[1] == chain.Link("u1", 1, HASH, None, {})


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"nonsense", id="no JSON"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b"{}", id="no annotations"),
        pytest.param(b'{"annotations":{"a":1}}', id="an annotation that is no string"),
        pytest.param(b'{"annotations":{},"annotations":{}}', id="a key twice"),
        pytest.param("{'ä'}".encode(), id="not ASCII"),
        pytest.param(b"[" * 200_000, id="deep"),
    ],
)
def test_what_is_no_line(line):
    with pytest.raises(ChainError):
        chain.read_line(line)


@pytest.mark.parametrize(
    "text",
    ["", "flows.mitm 1 2", f"../flows 1 2 {HASH}", f"flows.mitm -1 2 {HASH}", f"flows.mitm 1 ² {HASH}", "f 1 2 zz"],
)
def test_what_is_no_part(text):
    with pytest.raises(ChainError):
        chain.read_part(text)


def checkpoint(**changed):
    values = {
        "number": 3,
        "previous": HASH,
        "time": recordings.TIME,
        "uid": "u1",
        "path": "2026-11-24/ann/14-03-22-u1",
        "state": "going",
        "events": 12,
        "head": HASH,
        "files": {"exec-1.cast": Size(3, HASH)},
        "note": "a note",
        **changed,
    }
    return Checkpoint(**values)


def test_a_checkpoint_comes_back_as_it_was():
    key = chain.new_key()
    read = chain.read_checkpoint(checkpoint().sign(key))
    assert read == checkpoint(key=key.public)
    assert chain.key_id(read.key) == key.id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda c: c.update(events=11), "signature is wrong", id="events"),
        pytest.param(lambda c: c.update(head="b" * 64), "signature is wrong", id="head"),
        pytest.param(lambda c: c.update(path="elsewhere"), "signature is wrong", id="path"),
        pytest.param(lambda c: c.update(number=4), "signature is wrong", id="number"),
        pytest.param(lambda c: c.update(signature="AAAA"), "signature is wrong", id="signature"),
        pytest.param(lambda c: c.update(signature="ä"), "signature is wrong", id="no base64"),
        pytest.param(lambda c: c.update(key=""), "signature is wrong", id="no key"),
        pytest.param(lambda c: c.update(more=1), "lacks fields, or has others", id="one field more"),
        pytest.param(lambda c: c.pop("note"), "lacks fields", id="one field less"),
        pytest.param(lambda c: c.update(number=True), "lacks fields, or has others", id="a number that is none"),
        pytest.param(lambda c: c.update(state="fine"), "values that none can have", id="unknown state"),
        pytest.param(lambda c: c.update(format=2), "newer version", id="newer"),
        pytest.param(lambda c: c.update(kind="Event"), "no checkpoint", id="another kind"),
    ],
)
def test_a_checkpoint_that_was_changed(change, message):
    value = json.loads(checkpoint().sign(chain.new_key()))
    change(value)
    with pytest.raises(ChainError, match=message):
        chain.read_checkpoint(chain.canonical(value))


def test_a_checkpoint_in_another_spelling_is_another_line():
    line = checkpoint().sign(chain.new_key())
    with pytest.raises(ChainError, match="not written as it was signed"):
        chain.read_checkpoint(line.replace(b",", b", "))


def test_keys_in_pem():
    key = chain.new_key()
    assert chain.read_key(key.pem()).id == key.id
    assert chain.read_public_key(key.public_pem()) == chain.read_public_key(key.pem()) == key.public
    assert "object at" not in repr(key)


@pytest.mark.parametrize("read", [chain.read_key, chain.read_public_key])
@pytest.mark.parametrize("pem", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key(read, pem):
    with pytest.raises(ChainError, match="key: "):
        read(pem)


def test_a_key_of_another_kind_says_how_to_make_one():
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ChainError, match="openssl genpkey"):
        chain.read_key(pem)


def test_anchors_are_found_in_what_others_keep():
    line = checkpoint().sign(chain.new_key())
    event = chain.checkpoint_event(line, recordings.TIME)
    kept = [
        b"Nov 24 14:03:22 host tollgate: " + line + b"\n",
        chain.canonical(event) + b"\n",
        chain.canonical({"kind": "EventList", "items": [event, {"kind": "Event"}]}) + b"\n",
        json.dumps(json.loads(line), indent=None).encode(),
        b"a checkpoint {\n",
        b"something else\n",
        b'{"kind":"Event"}\n',
    ]
    assert chain.anchors(kept) == [line] * 4
