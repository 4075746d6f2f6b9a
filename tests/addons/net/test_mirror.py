import dataclasses
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import approvals
from addons.core.approvals import KEPT, Access, Asked, Grant, Item, Phase, Record, Requester
from addons.core.model import Approval, Hold
from addons.net import codec, mirror
from addons.net.mirror import APPROVALS, GRANTS, KINDS, REQUESTS, REVOCATIONS, Change, Mirror
from addons.net.store import Stored

NOW = 1_800_000_000.0
ANN, BEN = Requester("ann"), Requester("ben")
ASKED = (Asked(Hold("p", "r", "", Approval())),)


def record(name="apr-1", who=ANN, digest="d0", items=("d1",), created=NOW, **more):
    items = tuple(Item(digest, "w") for digest in items)
    return Record(name, f"uid-{name}", who, digest, ASKED, created, NOW + 900, items=items, **more)


def grant(name="grt-1", who=ANN, **more):
    return Grant(name, f"uid-{name}", who, ("p/r",), NOW, NOW + 600, **more)


def row(revision, entry, kind=APPROVALS, **more):
    return Stored(kind, entry.name, revision, codec.encode(entry), **{"at": NOW, **more})


def filled(*rows):
    found = Mirror()
    for one in rows:
        found.take(one)
    return found


def names(changes):
    return [change.name for change in changes]


def test_what_is_taken_in_is_there():
    found = Mirror()
    one, two = record(), record(command="kubectl")
    assert found.take(row(1, one)) == Change(APPROVALS, "apr-1", 1, one)
    assert found.get(APPROVALS, "apr-1") == Change(APPROVALS, "apr-1", 1, one)
    assert found.take(row(2, two)) == Change(APPROVALS, "apr-1", 2, two, previous=one)
    assert found.get(APPROVALS, "apr-1") == Change(APPROVALS, "apr-1", 2, two)
    assert found.take(row(3, two, deleted=True)) == Change(APPROVALS, "apr-1", 3, two, deleted=True, previous=two)
    assert found.get(APPROVALS, "apr-1") is None
    assert len(found) == found.bytes == 0


def test_one_that_was_read_before_is_not_read_again():
    one = record()
    assert Mirror().take(dataclasses.replace(row(1, one), data=b"unread"), one).entry is one


def test_in_the_order_of_names():
    assert names(filled(*(row(n, record(name)) for n, name in enumerate("cab"))).all(APPROVALS)) == ["a", "b", "c"]


def test_by_digest():
    found = filled(
        row(1, record("a", digest="x", items=("d1", "d2"), created=NOW)),
        row(2, record("b", digest="d1", items=(), created=NOW + 5)),
        row(3, record("c", BEN, digest="x", items=("d1",))),
        row(4, record("d", digest="x", items=("d1",), created=NOW + 2)),
        row(5, record("e", digest="x", items=(), access=Access((), (), "", 1)), REQUESTS),
    )
    assert names(found.by_digest(ANN.key, "d1")) == ["b", "d", "a"]  # newest first
    assert names(found.by_digest(ANN.key, "d2")) == ["a"]
    assert names(found.by_digest(ANN.key, "x")) == ["d", "a"]
    assert names(found.by_digest(BEN.key, "d1")) == ["c"]
    assert found.by_digest(ANN.key, "d3") == []


def test_who_has_what():
    found = filled(
        row(1, record("a")),
        row(2, record("b", phase=Phase.DENIED)),
        row(3, record("c", access=Access((), (), "", 1)), REQUESTS),
        row(4, record("d", BEN)),
        row(5, grant("g2"), GRANTS),
        row(6, grant("g1"), GRANTS),
        row(7, grant("g3", BEN), GRANTS),
    )
    assert {r.name for r in found.pending(ANN.key)} == {"a", "c"}
    assert [g.name for g in found.grants(ANN.key)] == ["g1", "g2"]
    found.take(row(8, record("a", phase=Phase.APPROVED)))
    found.take(row(9, grant("g1"), GRANTS, deleted=True))
    assert {r.name for r in found.pending(ANN.key)} == {"c"}
    assert [g.name for g in found.grants(ANN.key)] == ["g2"]


entry = st.builds(
    record,
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from([ANN, BEN]),
    st.sampled_from(["x", "d1"]),
    st.lists(st.sampled_from(["d1", "d2"]), unique=True).map(tuple),
    phase=st.sampled_from([Phase.PENDING, Phase.USED]),
)


@given(st.lists(st.tuples(entry, st.booleans()), max_size=20))
def test_the_indexes_are_what_a_look_through_all_would_find(rows):
    found = filled(*(row(n, one, deleted=deleted) for n, (one, deleted) in enumerate(rows)))
    there = {c.name: c.entry for c in found.all(APPROVALS)}
    assert there == {
        name: one for name, (one, deleted) in {one.name: (one, deleted) for one, deleted in rows}.items() if not deleted
    }
    for who in (ANN, BEN):
        for digest in ("x", "d1", "d2"):
            assert set(names(found.by_digest(who.key, digest))) == {
                r.name for r in there.values() if r.requester == who and (r.digest == digest or r.item(digest))
            }
        assert {r.name for r in found.pending(who.key)} == {
            r.name for r in there.values() if r.requester == who and r.phase is Phase.PENDING
        }
    assert found.bytes == sum(len(codec.encode(one)) for one in there.values())
    for index in (found._by_digest, found._by_requester):
        assert all(index.values())  # nothing empty is left behind


# ----- what cannot be read -----


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(Stored(APPROVALS, "apr-1", 2, b"{"), id="no JSON"),
        pytest.param(Stored(APPROVALS, "apr-1", 2, codec.encode(grant("apr-1"))), id="a grant"),
        pytest.param(Stored(APPROVALS, "apr-1", 2, codec.encode(record("apr-2"))), id="of another name"),
        pytest.param(
            Stored(APPROVALS, "apr-1", 2, codec.encode(record(access=Access((), (), "", 1)))), id="an AccessRequest"
        ),
    ],
)
def test_a_damaged_row_is_not_there_and_the_log_says_so(bad, caplog):
    one = record()
    found = filled(row(1, one), row(1, record("apr-9")))
    with caplog.at_level(logging.ERROR):
        assert found.take(bad) == Change(APPROVALS, "apr-1", 2, one, deleted=True, previous=one)
    assert "approvals 'apr-1' cannot be read and counts as not there" in caplog.text
    assert found.get(APPROVALS, "apr-1") is None
    assert names(found.by_digest(ANN.key, "d1")) == ["apr-9"]
    assert found.broken(APPROVALS, "apr-1").revision == 2
    found.take(row(3, one))
    assert found.broken(APPROVALS, "apr-1") is None
    assert found.get(APPROVALS, "apr-1").entry == one


def test_an_approval_under_the_kind_of_access_requests():
    assert filled(row(1, record(), REQUESTS)).broken(REQUESTS, "apr-1")


def test_a_damaged_row_that_was_never_read_is_told_to_nobody():
    found = Mirror()
    assert found.take(Stored(APPROVALS, "apr-1", 2, b"{")) is None
    assert found.history(0) == []


def test_a_damaged_row_that_is_removed():
    found = filled(Stored(APPROVALS, "apr-1", 1, b"{"))
    assert found.take(Stored(APPROVALS, "apr-1", 2, b"{", deleted=True)) is None
    assert found.broken(APPROVALS, "apr-1") is None


def test_a_kind_of_a_newer_version_is_left_alone():
    assert Mirror().take(Stored("revocations", "x", 1, b"{")) is None


# ----- what was -----


def test_what_changed_after_a_revision():
    found = filled(row(3, record()), row(5, record(), deleted=True), row(6, record("apr-2")))
    assert found.past(APPROVALS, "apr-1", 4).revision == 5
    assert found.past(APPROVALS, "apr-1", 4).deleted
    assert found.past(APPROVALS, "apr-1", 5) is None
    assert found.past(APPROVALS, "apr-2", 5).revision == 6
    assert found.past(APPROVALS, "apr-3", 0) is None
    found.take(row(7, record()))
    assert not found.past(APPROVALS, "apr-1", 6).deleted


def test_history_and_its_floor(monkeypatch):
    monkeypatch.setattr(mirror, "HISTORY", 3)
    found = Mirror(7)
    assert found.floor == found.revision == 7
    for n in range(10, 15):
        found.take(row(n, record(f"apr-{n}")))
    assert [c.revision for c, _ in found.history(0)] == [12, 13, 14]
    assert [c.revision for c, _ in found.history(13)] == [14]
    assert found.floor == 11


def test_history_is_bounded_in_bytes(monkeypatch):
    size = len(codec.encode(record()))
    monkeypatch.setattr(mirror, "HISTORY_BYTES", 2 * size)
    found = filled(*(row(n, record()) for n in range(1, 6)))
    assert [c.revision for c, _ in found.history(0)] == [4, 5]


def test_removed_ones_are_remembered_for_a_while(monkeypatch):
    monkeypatch.setattr(mirror, "HISTORY", 2)
    found = filled(*(row(n, record(f"apr-{n}"), deleted=True) for n in range(1, 5)))
    assert [n for n in range(1, 5) if found.past(APPROVALS, f"apr-{n}", 0)] == [3, 4]


# ----- what is over -----

DENIED = record(phase=Phase.DENIED, ended=NOW + 50)


@pytest.mark.parametrize(
    ("one", "kind", "at"),
    [
        pytest.param(record(), APPROVALS, NOW + 900, id="pending"),
        pytest.param(record(phase=Phase.APPROVED, valid_until=NOW + 60), APPROVALS, NOW + 60, id="approved"),
        pytest.param(DENIED, APPROVALS, NOW + 50 + KEPT, id="denied"),
        pytest.param(record(phase=Phase.USED), APPROVALS, NOW + KEPT, id="ended, nobody knows when"),
        pytest.param(grant(), GRANTS, NOW + 600 + KEPT, id="a grant"),
        pytest.param(approvals.revoke(grant(), "bob", NOW + 5), GRANTS, NOW + 5 + KEPT, id="a revoked grant"),
    ],
)
def test_when_it_is_looked_at(one, kind, at):
    found = filled(row(1, one, kind))
    assert found.take_due(at - 0.001, 10) == []
    assert found.take_due(at, 10) == [(kind, one.name)]
    assert found.take_due(at, 10) == []  # until it is queued again
    found.queue((kind, one.name), at + 5)
    assert found.take_due(at + 5, 10) == [(kind, one.name)]


def test_an_earlier_time_counts_and_a_later_one_does_not():
    found = filled(row(1, record()), row(2, record(phase=Phase.APPROVED, valid_until=NOW + 60)))
    assert found.take_due(NOW + 60, 10) == [(APPROVALS, "apr-1")]
    found.queue((APPROVALS, "apr-1"), NOW + 2000)
    assert found.take_due(NOW + 901, 10) == []


def test_a_damaged_row_is_looked_at_later():
    found = filled(Stored(APPROVALS, "apr-1", 1, b"{", at=NOW))
    assert found.take_due(NOW + KEPT - 1, 10) == []
    assert found.take_due(NOW + KEPT, 10) == [(APPROVALS, "apr-1")]


def test_so_many_at_a_time():
    found = filled(*(row(n, record(f"apr-{n}")) for n in range(5)))
    assert [len(found.take_due(NOW + 900, 2)) for _ in range(4)] == [2, 2, 1, 0]


def ended(name, at, who=ANN, phase=Phase.USED):
    return record(name, who, phase=phase, ended=NOW + at)


def test_what_goes_first():
    found = filled(
        row(1, ended("a", 30)),
        row(2, ended("b", 10)),
        row(3, ended("c", 20, phase=Phase.DENIED)),
        row(4, record("open")),
        row(5, record("approved", phase=Phase.APPROVED, valid_until=NOW + 9)),
        row(6, ended("others", 1, BEN)),
        row(7, grant("active"), GRANTS),
        row(8, approvals.revoke(grant("revoked"), "bob", NOW + 15), GRANTS),
    )

    def gone(entries, most=10, size=10**9):
        return {name for _, name in found.excess(NOW + 100, entries, size, most)}

    assert gone(8) == set()
    assert gone(7) == {"b"}  # the oldest of the one who has most
    assert gone(6) == {"b", "revoked"}
    assert gone(5) == {"b", "revoked", "a"}
    assert gone(4) == {"b", "revoked", "a", "others"}
    assert gone(0) == {"b", "revoked", "a", "others", "c"}  # a no last, and never what is open
    assert gone(0, most=2) == {"b", "revoked"}
    assert gone(8, size=found.bytes - 1) == {"b"}


def test_kinds():
    assert set(KINDS) == {APPROVALS, REQUESTS, GRANTS, REVOCATIONS}
