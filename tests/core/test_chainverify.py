"""What somebody with the files in hand, but not the key, can do to a recording; and what is said of it."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addons.core import chain, chainverify
from addons.core.chainverify import CHECKPOINTS, EVENTS, FLOWS, INDEX, Kind
from tests.recordings import Recording, rechain

A = "2026-11-24/ann/14-03-22-a"
B = "2026-11-24/bob/15-00-00-b"
C = "2026-11-24/cid/16-00-00-c"


@pytest.fixture(scope="module")
def whole():
    """Three sessions: one closed, with a stream; one closed; one still open, with an unproven end."""
    made = Recording()
    made.add(A, "a", 6, signed=(3,), cast=b"a stream of 27 bytes or so\n")
    made.add(B, "b", 3, username="bob")
    made.add(C, "c", 5, signed=(2, 4), close=False, username="cid")
    return made


@pytest.fixture
def recording(whole):
    return copy.deepcopy(whole)


def check(recording, anchor=None, trusted=()):
    return chainverify.check_all(
        recording.lines, recording.sessions, recording.sessions.__getitem__, anchor=anchor, trusted=trusted
    )


def lines(recording, path=A):
    return recording.sessions[path].files[EVENTS].split(b"\n")[:-1]


def put(recording, found, path=A):
    recording.sessions[path].files[EVENTS] = b"".join(line + b"\n" for line in found)


def test_clean(recording):
    report = check(recording)
    assert report.wrong == []
    assert [(s.path, s.events, s.proven, s.closed) for s in report.sessions] == [
        (A, 6, 6, True),
        (B, 3, 3, True),
        (C, 5, 4, False),
    ]
    assert report.sessions[2].unproven == 1
    assert chainverify.verdict(report) == (
        "clean: consistent, not proven against the holder of the key (compare with --anchor)"
    )


def test_proven_by_an_anchor(recording):
    report = check(recording, anchor=recording.checkpoints[:4])
    assert report.wrong == []
    assert report.anchored == 4
    assert chainverify.verdict(report).startswith("clean: proven up to checkpoint 4 (2026-11-24T14:03:22")
    assert chainverify.verdict(report).endswith("the 4 checkpoints after it are consistent only")


def edit(at, old, new):
    def change(recording):
        found = lines(recording)
        assert old in found[at]
        found[at] = found[at].replace(old, new)
        put(recording, found)

    return change


def broken_reference(at):
    def change(recording):
        found = lines(recording)
        previous = chain.read_line(found[at])[1].previous.encode()
        found[at] = found[at].replace(previous, previous[::-1])
        put(recording, found)

    return change


def edit_and_rechain(recording):
    """From the third line on everything is made anew, as far as that goes without the key."""
    found = lines(recording)
    found[2] = found[2].replace(b'"a-3"', b'"x-3"')
    put(recording, rechain(found, "a", A))


def edit_and_rechain_the_end(recording):
    found = lines(recording)
    found[4] = found[4].replace(b'"a-5"', b'"x-5"')
    put(recording, rechain(found, "a", A))


def remove(*positions):
    def change(recording):
        put(recording, [line for at, line in enumerate(lines(recording)) if at not in positions])

    return change


def insert(recording):
    found = lines(recording)
    link = chain.read_line(found[2])[1]
    forged = chain.link({"auditID": "forged"}, uid="a", sequence=3, previous=link.previous)
    put(recording, [*found[:2], forged, *found[2:]])


def insert_clumsily(recording):
    found = lines(recording)
    forged = chain.link({"auditID": "forged"}, uid="a", sequence=3, previous="0" * 64)
    put(recording, [*found[:2], forged, *found[2:]])


def insert_of_another_session(recording):
    found = lines(recording)
    put(recording, [*found[:2], lines(recording, B)[2], *found[2:]])


def duplicate(recording):
    found = lines(recording)
    put(recording, [*found[:3], found[2], *found[3:]])


def swap(recording):
    found = lines(recording)
    found[2], found[3] = found[3], found[2]
    put(recording, found)


def append(recording):
    found = lines(recording)
    forged = chain.link({"auditID": "forged"}, uid="a", sequence=7, previous=chain.digest(found[-1]))
    put(recording, [*found, forged])


def half(recording):
    recording.sessions[A].files[EVENTS] = recording.sessions[A].files[EVENTS][:-20]


def no_json(recording):
    found = lines(recording)
    found[3] = b"\0" * len(found[3])
    put(recording, found)


def spliced_events(recording):
    recording.sessions[A].files[EVENTS] = recording.sessions[B].files[EVENTS]


def moved(recording):
    """Bob's session, so that it looks like Ann's."""
    recording.sessions["2026-11-24/ann/15-00-00-b"] = recording.sessions.pop(B)


def session_gone(recording):
    del recording.sessions[B]


def session_added(recording):
    other = Recording()
    other.add("2026-11-24/bob/17-00-00-d", "d", 2, username="bob")
    recording.sessions |= other.sessions


def without(name):
    def change(recording):
        del recording.sessions[A].files[name]

    return change


def on_file(name, change):
    def on(recording):
        recording.sessions[A].files[name] = change(recording.sessions[A].files[name])

    return on


def index(**changed):
    def change(recording):
        files = recording.sessions[A].files
        files[INDEX] = chain.canonical({**json.loads(files[INDEX]), **changed})

    return change


def checkpoint_edited(recording):
    recording.checkpoints[1] = recording.checkpoints[1].replace(b'"events":3', b'"events":2')


def checkpoint_gone(recording):
    del recording.checkpoints[2]


def checkpoints_swapped(recording):
    points = recording.checkpoints
    points[1], points[2] = points[2], points[1]


def checkpoint_replaced(recording):
    """By one that was really signed, of another recording with the same key."""
    other = Recording(recording.key)
    other.add(A, "a", 4, signed=(1, 2))
    recording.checkpoints[2] = other.checkpoints[2]


def checkpoint_by_another_key(recording):
    last = chain.read_checkpoint(recording.checkpoints[-1])
    recording.checkpoints[-1] = last.sign(chain.new_key())


def another_key_from_the_start(recording):
    """All of it signed anew, with a key of the forger's own."""
    other = Recording()
    other.add(A, "a", 6, signed=(3,), cast=b"a stream of 27 bytes or so\n")
    recording.checkpoints, recording.sessions = other.checkpoints, other.sessions


def copies_of_another_chain(recording):
    other = Recording(recording.key)
    other.add(A, "a", 4, signed=(1, 2))
    recording.sessions[A].files[CHECKPOINTS] = other.sessions[A].files[CHECKPOINTS]


def stream_added(recording):
    recording.sessions[A].files["exec-2.cast"] = b"x"


def edited_bytes(old, new):
    return lambda content: content.replace(old, new)


AE, AF, AC = f"{A}/{EVENTS}", f"{A}/{FLOWS}", f"{A}/exec-1.cast"
TAMPERING = [
    pytest.param(edit(2, b'"a-3"', b'"x-3"'), Kind.EDITED, f"{AE}:3", id="an edited event"),
    pytest.param(edit(0, b'"a-1"', b'"x-1"'), Kind.EDITED, f"{AE}:1", id="the first event edited"),
    pytest.param(edit(5, b'"a-6"', b'"x-6"'), Kind.REWRITTEN, f"{AE}:4-6", id="the last event edited"),
    pytest.param(edit(3, b'/previous":"', b'/previous":"0'), Kind.EDITED, f"{AE}:4", id="a reference that is none"),
    pytest.param(broken_reference(3), Kind.EDITED, f"{AE}:4", id="a broken reference after what is signed"),
    pytest.param(broken_reference(4), Kind.EDITED, f"{AE}:4", id="a broken reference, of this line or the next"),
    pytest.param(edit(2, b',"kind"', b', "kind"'), Kind.EDITED, f"{AE}:3", id="only white space added"),
    pytest.param(edit(2, b'"user"', b'"user":{"username":"ann"},"user"'), Kind.EDITED, f"{AE}:3", id="a key twice"),
    pytest.param(edit_and_rechain, Kind.REWRITTEN, f"{AE}:1-3", id="edited and chained anew"),
    pytest.param(edit_and_rechain_the_end, Kind.REWRITTEN, f"{AE}:4-6", id="the end edited and chained anew"),
    pytest.param(remove(2), Kind.LOST, f"{AE}:3", id="an event gone"),
    pytest.param(remove(1, 2, 3), Kind.LOST, f"{AE}:2", id="several events gone"),
    pytest.param(remove(0), Kind.LOST, f"{AE}:1", id="the first event gone"),
    pytest.param(remove(5), Kind.TRUNCATED, f"{AE}:5", id="the last event gone"),
    pytest.param(remove(3, 4, 5), Kind.TRUNCATED, f"{AE}:3", id="the end gone"),
    pytest.param(half, Kind.TRUNCATED, f"{AE}:6", id="the last event cut"),
    pytest.param(insert, Kind.INSERTED, f"{AE}:3", id="a forged event with the right reference"),
    pytest.param(insert_clumsily, Kind.INSERTED, f"{AE}:3", id="a forged event"),
    pytest.param(insert_of_another_session, Kind.INSERTED, f"{AE}:3", id="an event of another session"),
    pytest.param(append, Kind.INSERTED, f"{AE}:7", id="a forged event after the close"),
    pytest.param(duplicate, Kind.DUPLICATED, f"{AE}:4", id="a line twice"),
    pytest.param(swap, Kind.REORDERED, f"{AE}:3", id="two lines swapped"),
    pytest.param(no_json, Kind.EDITED, f"{AE}:4", id="a line blanked"),
    pytest.param(spliced_events, Kind.SPLICED, f"{AE}:1", id="the events of another session"),
    pytest.param(moved, Kind.LOST, B, id="a session moved to another identity"),
    pytest.param(session_gone, Kind.LOST, B, id="a session gone"),
    pytest.param(session_added, Kind.INSERTED, f"2026-11-24/bob/17-00-00-d/{EVENTS}", id="a session added"),
    pytest.param(without(EVENTS), Kind.LOST, f"{A}/{EVENTS}", id="the events gone"),
    pytest.param(without(FLOWS), Kind.LOST, f"{A}/{FLOWS}", id="the flows gone"),
    pytest.param(without("exec-1.cast"), Kind.LOST, AC, id="the stream gone"),
    pytest.param(on_file(FLOWS, edited_bytes(b"3 of a", b"3 of x")), Kind.EDITED, f"{AF}@22", id="a flow edited"),
    pytest.param(on_file(FLOWS, lambda b: b[:-1]), Kind.TRUNCATED, f"{AF}@55", id="a flow cut"),
    pytest.param(on_file(FLOWS, lambda b: b + b"more"), Kind.INSERTED, f"{AF}@66", id="a flow added"),
    pytest.param(on_file("exec-1.cast", edited_bytes(b"27", b"72")), Kind.EDITED, AC, id="a stream edited"),
    pytest.param(on_file("exec-1.cast", lambda b: b[:-1]), Kind.TRUNCATED, f"{AC}@26", id="a stream cut"),
    pytest.param(on_file("exec-1.cast", lambda b: b + b"x"), Kind.INSERTED, f"{AC}@27", id="a stream longer"),
    pytest.param(
        stream_added,
        Kind.INSERTED,
        f"{A}/exec-2.cast",
        id="a stream added",
    ),
    pytest.param(index(username="bob"), Kind.EDITED, f"{A}/{INDEX}", id="another user in the index"),
    pytest.param(index(events=5), Kind.EDITED, f"{A}/{INDEX}", id="another number in the index"),
    pytest.param(index(uid="b"), Kind.SPLICED, f"{A}/{INDEX}", id="the index of another session"),
    pytest.param(index(format=2), Kind.NEWER, f"{A}/{INDEX}", id="an index from a newer version"),
    pytest.param(checkpoint_edited, Kind.EDITED, f"{CHECKPOINTS}:2", id="a checkpoint edited"),
    pytest.param(checkpoint_gone, Kind.LOST, f"{CHECKPOINTS}:3", id="a checkpoint gone"),
    pytest.param(checkpoints_swapped, Kind.LOST, f"{CHECKPOINTS}:2", id="checkpoints swapped"),
    pytest.param(checkpoint_replaced, Kind.REWRITTEN, f"{CHECKPOINTS}:3", id="a checkpoint replaced"),
    pytest.param(checkpoint_by_another_key, Kind.KEY, f"{CHECKPOINTS}:8", id="a checkpoint by another key"),
    pytest.param(copies_of_another_chain, Kind.REWRITTEN, f"{A}/{CHECKPOINTS}:2", id="copies of another chain"),
]


@pytest.mark.parametrize(("tamper", "kind", "place"), TAMPERING)
def test_tampering(recording, tamper, kind, place):
    tamper(recording)
    found = check(recording).wrong
    assert found, "it was not noticed"
    assert (found[0].kind, found[0].place) == (kind, place), found


def test_twenty_kinds():
    assert len(TAMPERING) > 20


def test_a_session_is_bound_to_its_place(recording):
    """Also where nobody has its checkpoints: its first event hangs on the path."""
    moved(recording)
    place = "2026-11-24/ann/15-00-00-b"
    index = recording.sessions[place].files[INDEX]
    recording.sessions[place].files[INDEX] = chain.canonical({**json.loads(index), "path": place, "username": "bob"})
    found = [finding for finding in check(recording).wrong if finding.place.startswith(place)]
    assert (found[1].kind, found[1].place) == (Kind.SPLICED, f"{place}/{EVENTS}:1")


def test_only_a_known_key_or_an_anchor_tells_a_whole_forgery(recording):
    kept, key = list(recording.checkpoints), recording.key.public
    another_key_from_the_start(recording)
    assert check(recording).wrong == []
    assert check(recording, trusted=[key]).wrong[0].kind is Kind.KEY
    assert check(recording, anchor=kept).wrong[0].kind is Kind.REWRITTEN


def test_only_an_anchor_tells_what_the_holder_of_the_key_wrote_anew(recording):
    kept = list(recording.checkpoints)
    other = Recording(recording.key)
    other.add(A, "a", 5, signed=(3,))  # one event less
    assert check(other).wrong == []
    report = check(other, anchor=kept)
    assert report.wrong[0].kind is Kind.REWRITTEN
    assert chainverify.verdict(report).startswith("NOT CLEAN")


def test_only_an_anchor_tells_that_the_end_was_cut_with_its_checkpoints(recording):
    kept = list(recording.checkpoints)
    del recording.checkpoints[-3:], recording.sessions[C]
    assert check(recording).wrong == []
    found = check(recording, anchor=kept).wrong
    assert found[0].kind is Kind.TRUNCATED
    assert "checkpoint 6 " in found[0].sentence
    assert "ends at checkpoint 5" in found[0].sentence


def test_an_anchor_of_something_else_proves_nothing(recording):
    assert (
        check(recording, anchor=[]).wrong[0].sentence
        == "no checkpoint in it is of this recording, so it proves nothing"
    )


def test_a_changed_key_is_fine_when_both_are_named(recording):
    first, recording.key = recording.key, chain.new_key()
    recording.add("2026-11-24/dan/18-00-00-d", "d", 2)
    assert check(recording).wrong[0].kind is Kind.KEY
    report = check(recording, trusted=[first.public, recording.key.public])
    assert report.wrong == []
    assert report.keys == [first.id, recording.key.id]


def test_what_follows_the_last_checkpoint_is_unproven_and_not_wrong(recording):
    files = recording.sessions[C].files
    files[EVENTS] = files[EVENTS][:-10]
    files[FLOWS] += b"half a fl"
    report = check(recording)
    assert report.wrong == []
    session = report.sessions[2]
    assert (session.events, session.proven) == (4, 4)
    assert any("half a line: the gateway was killed" in note for note in session.notes)
    assert any("whose event is not written yet" in note for note in session.notes)


def test_half_a_checkpoint_at_the_end_is_a_crash(recording):
    cut = [*recording.lines[:-1], recording.lines[-1][:50]]
    report = chainverify.check_all(cut, recording.sessions, recording.sessions.__getitem__)
    assert report.wrong == []
    assert report.last == 7
    assert "half a line" in report.notes[0]


def test_a_session_without_its_index_is_read_from_its_events(recording):
    del recording.sessions[A].files[INDEX]
    report = check(recording)
    assert report.wrong == []
    assert report.sessions[0].notes == [f"{A}/{INDEX}: there is no index; all is read from the events"]


def test_what_retention_removed_is_said(recording):
    memory = recording.sessions[B]
    recording.sign(B, "b", 3, "0" * 64, "removed", {})
    del recording.sessions[B]
    report = check(recording)
    assert report.wrong == []
    assert report.notes == [f"{B}: removed at 2026-11-24T14:03:22.000000Z: "]
    recording.sessions[B] = memory
    assert any("it was removed by retention, yet it is there" in note for note in check(recording).sessions[1].notes)


def test_a_session_by_itself(recording):
    folder = recording.sessions[A]
    report = chainverify.check_alone(folder, "14-03-22-a")
    assert report.wrong == []
    assert report.sessions[0].proven == 6
    assert chainverify.check_alone(folder, "16-00-00-x").wrong[0].kind is Kind.SPLICED
    del folder.files[CHECKPOINTS]
    report = chainverify.check_alone(folder, "14-03-22-a")
    assert report.wrong == []
    assert chainverify.verdict(report) == "nothing is signed here, so nothing is proven"


def test_a_session_by_itself_is_checked_as_well(recording):
    edit(2, b'"a-3"', b'"x-3"')(recording)
    assert chainverify.check_alone(recording.sessions[A], "14-03-22-a").wrong[0].kind is Kind.EDITED


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_single_byte_can_be_changed(whole, data):
    """Anywhere in what is signed: it is noticed."""
    recording = copy.deepcopy(whole)
    path = data.draw(st.sampled_from([A, B]))
    files = recording.sessions[path].files
    name = data.draw(st.sampled_from([n for n in sorted(files) if n not in (INDEX, CHECKPOINTS)]))
    at = data.draw(st.integers(0, len(files[name]) - 1))
    byte = data.draw(st.integers(1, 255))
    content = bytearray(files[name])
    content[at] ^= byte
    files[name] = bytes(content)
    assert check(recording).wrong


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=10))
def test_no_other_sequence_of_the_lines_passes(whole, order):
    recording = copy.deepcopy(whole)
    found = lines(recording)
    put(recording, [found[at] for at in order])
    assert bool(check(recording).wrong) == (order != [0, 1, 2, 3, 4, 5])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_nonsense_is_read_without_an_exception(whole, events, points):
    recording = copy.deepcopy(whole)
    recording.sessions[A].files |= {EVENTS: events, CHECKPOINTS: points, INDEX: events}
    assert check(recording).wrong
    chainverify.check_alone(recording.sessions[A], A)
    chainverify.check_all([points], recording.sessions, recording.sessions.__getitem__, anchor=[events])
