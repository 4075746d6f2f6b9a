import asyncio
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from addons.core import auditevents, chain, chainverify, sessions
from addons.core.auditevents import Stage
from addons.net import housekeeping, recorder, recordings
from addons.net.recorder import Grow, Record
from addons.net.recordfiles import RecorderError, Settings
from tests.addons.net import recording
from tests.addons.net.recording import ANN, DAY, Clock, record, start, verify

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ticks():
    return Clock(0.0)


def one_session(folder):
    found = recordings.find_sessions(folder / "recordings")
    assert len(found) == 1, found
    return folder / "recordings" / found[0]


def events(session):
    return recordings.read_events(recordings.DiskFolder(session)).events


async def test_on_disk_when_write_returns(tmp_path, clock):
    one = start(tmp_path, clock=clock)
    await one.write(record("a", ahead=True))
    await one.write(record("b"))
    session = one_session(tmp_path)
    assert session.relative_to(tmp_path / "recordings").parts[:2] == ("2026-11-24", "ann")
    assert session.name.startswith("14-03-22-")
    assert [event["auditID"] for event in events(session)] == ["id-a", "id-b"]
    assert (session / "requests.mitm").read_bytes() == b"flow of a;"
    assert (session / "flows.mitm").read_bytes() == b"flow of b;"
    one.close()
    report = verify(tmp_path)
    assert report.wrong == []
    assert (report.sessions[0].events, report.sessions[0].proven, report.sessions[0].closed) == (2, 2, True)


async def test_private(tmp_path):
    one = start(tmp_path)
    await one.write(record("a"))
    one.close()
    for path in (tmp_path / "recordings").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "state" / "recording.key").stat().st_mode & 0o777 == 0o600


async def test_many_share_a_sync(tmp_path, monkeypatch):
    syncs = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (syncs.append(fd), sync(fd)))
    one = start(tmp_path)
    await one.write(record("first"))
    syncs.clear()
    await asyncio.gather(*(one.write(record(f"r{n}")) for n in range(200)))
    assert len(syncs) < 40
    one.close()
    assert len(recording.names(tmp_path).popitem()[1]) == 201


async def test_each_identity_has_its_own(tmp_path):
    one = start(tmp_path)
    await asyncio.gather(one.write(record("a", "ann")), one.write(record("b", "system:serviceaccount:shop:bot")))
    one.close()
    paths = recordings.find_sessions(tmp_path / "recordings")
    assert [path.split("/")[1] for path in paths] == ["ann", "bot@shop"]
    assert verify(tmp_path).wrong == []


async def test_nothing_without_a_mask(tmp_path):
    one = recorder.Recorder(recording.settings(tmp_path))
    with pytest.raises(RecorderError, match="nothing is masked here, so nothing is recorded"):
        await one.write(record("a"))
    with pytest.raises(RecorderError):
        one.enqueue(record("a"))
    one.close()
    assert recordings.find_sessions(tmp_path / "recordings") == []


async def test_what_is_written_went_through_the_mask(tmp_path):
    one = start(tmp_path, mask_event=lambda event: {**event, "requestURI": "masked"})
    await one.write(record("a"))
    one.close()
    assert events(one_session(tmp_path))[0]["requestURI"] == "masked"


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        pytest.param(lambda event: 1 / 0, "ZeroDivisionError", id="raises"),
        pytest.param(lambda event: None, "TypeError", id="gives nothing"),
    ],
)
async def test_a_failed_mask_is_an_error_of_this_record_only(tmp_path, mask, said, caplog):
    one = start(tmp_path, mask_event=lambda event: mask(event) if event["auditID"] == "id-bad" else event)
    results = await asyncio.gather(
        one.write(record("a")), one.write(record("bad")), one.write(record("c")), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), RecorderError, type(None)]
    assert said in str(results[1])
    one.close()
    assert [event["auditID"] for event in events(one_session(tmp_path))] == ["id-a", "id-c"]
    assert verify(tmp_path).wrong == []
    assert "id-bad" not in caplog.text


async def test_a_record_that_cannot_be_written_down_is_its_own_misfortune(tmp_path):
    one = start(tmp_path)
    bad = Record(ANN, {"auditID": "bad", "requestObject": float("nan")}, flow=b"half;")
    results = await asyncio.gather(
        one.write(record("a")), one.write(bad), one.write(record("c")), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), RecorderError, type(None)]
    one.close()
    session = one_session(tmp_path)
    assert (session / "flows.mitm").read_bytes() == b"flow of a;flow of c;"
    assert verify(tmp_path).wrong == []


@pytest.mark.parametrize("name", ["../x", ".x", "events.jsonl", "a/b", "", "a\0b", "x" * 200])
async def test_a_growing_file_has_a_plain_name(tmp_path, name):
    one = start(tmp_path)
    with pytest.raises(RecorderError):
        await one.write(Grow(ANN, {name: b"x"}))
    one.close()
    assert verify(tmp_path).wrong == []


async def test_reads_do_not_wait_and_are_written(tmp_path):
    one = start(tmp_path)
    for n in range(50):
        one.enqueue(record(f"r{n}"))
    one.close()
    assert [event["auditID"] for event in events(one_session(tmp_path))] == [f"id-r{n}" for n in range(50)]


async def test_what_is_queued_is_on_disk_soon_without_anybody_waiting(tmp_path):
    one = start(tmp_path)
    one.enqueue(record("a"))
    async with asyncio.timeout(5):
        while not recording.names(tmp_path):
            await asyncio.sleep(0.01)
    one.close()


async def test_an_idle_gap_ends_a_session(tmp_path, clock, ticks):
    one = start(tmp_path, clock=clock, monotonic=ticks, idle=1800)
    await one.write(record("a"))
    ticks.now += 1799
    await one.write(record("b"))
    ticks.now, clock.now = ticks.now + 1801, clock.now + 3600
    await one.write(record("c"))
    one.close()
    found = recording.names(tmp_path)
    assert list(found.values()) == [["id-a", "id-b"], ["id-c"]]
    assert "/15-03-22-" in list(found)[1]
    report = verify(tmp_path)
    assert report.wrong == []
    assert all(session.closed for session in report.sessions)


async def test_an_idle_session_is_closed_by_itself(tmp_path, ticks):
    one = start(tmp_path, monotonic=ticks, idle=10)
    await one.write(record("a"))
    ticks.now += 100
    await one.checkpoint()
    await one.checkpoint()  # the first one's turn of the thread is over by now
    index = sessions.read_index((one_session(tmp_path) / "session.json").read_bytes())
    assert index.closed
    assert one.open_paths() == set()
    one.close()


@pytest.mark.parametrize("by", ["size", "age"])
async def test_rotation(tmp_path, ticks, by):
    changed = {"rotate_size": 2000} if by == "size" else {"rotate_age": 60.0}
    one = start(tmp_path, monotonic=ticks, **changed)
    for n in range(6):
        await one.write(record(f"r{n}"))
        ticks.now += 25
    one.close()
    found = recording.names(tmp_path)
    assert len(found) > 1
    assert sorted(name for group in found.values() for name in group) == [f"id-r{n}" for n in range(6)]
    loaded = sorted(
        (recordings.load(tmp_path / "recordings", path).index for path in found), key=lambda index: index.part
    )
    assert [index.part for index in loaded] == list(range(1, len(found) + 1))
    assert [index.continues for index in loaded] == ["", *(index.path for index in loaded[:-1])]
    assert verify(tmp_path).wrong == []


async def test_a_stream_keeps_its_session_open(tmp_path, ticks):
    one = start(tmp_path, monotonic=ticks, idle=10, rotate_size=100)
    await one.write(Grow(ANN, {"exec-1.cast": b"head\n"}))
    ticks.now += 100
    await one.write(Grow(ANN, {"exec-1.cast": b"x" * 200}))
    await one.write(record("a", files={"exec-1.cast": b"end\n"}, ends=("exec-1.cast",)))
    ticks.now += 100
    await one.write(record("b"))
    one.close()
    assert list(recording.names(tmp_path).values()) in ([["id-a"], ["id-b"]], [["id-b"], ["id-a"]])
    report = verify(tmp_path)
    assert report.wrong == []


async def test_a_growing_file_is_signed_as_it_grows(tmp_path):
    one = start(tmp_path)
    await one.write(Grow(ANN, {"exec-1.cast": b"first\n"}))
    await one.checkpoint()
    await one.write(Grow(ANN, {"exec-1.cast": b"second\n"}))
    cast = one_session(tmp_path) / "exec-1.cast"
    notes = verify(tmp_path).sessions[0].notes
    assert any(note.endswith("exec-1.cast@6: 7 bytes are not covered by a checkpoint yet") for note in notes)
    await one.write(record("a", ends=("exec-1.cast",)))
    with pytest.raises(RecorderError, match="was ended before"):
        await one.write(Grow(ANN, {"exec-1.cast": b"third\n"}))
    one.close()
    assert cast.read_bytes() == b"first\nsecond\n"
    assert verify(tmp_path).wrong == []
    cast.write_bytes(b"First\nsecond\n")
    assert verify(tmp_path).wrong[0].kind is chainverify.Kind.EDITED


async def test_a_checkpoint_a_minute(tmp_path, ticks):
    one = start(tmp_path, monotonic=ticks, checkpoint_every=60)
    await one.write(record("a"))
    assert verify(tmp_path).sessions[0].unproven == 1
    ticks.now += 61
    await one.write(record("b"))
    await one.write(record("c"))  # after the checkpoint, which follows the batch
    session = verify(tmp_path).sessions[0]
    assert (session.proven, session.unproven) == (2, 1)
    one.close()
    states = [
        chain.read_checkpoint(line.strip()).state for line in recordings.checkpoint_lines(tmp_path / "recordings")
    ]
    assert states == ["open", "going", "closed"]


async def test_nothing_is_signed_twice(tmp_path):
    one = start(tmp_path)
    await one.write(record("a"))
    await one.checkpoint()
    await one.checkpoint()
    one.close()
    assert len(list(recordings.checkpoint_lines(tmp_path / "recordings"))) == 3


async def test_checkpoints_go_on_after_a_restart(tmp_path):
    for name in ("a", "b"):
        one = start(tmp_path)
        await one.write(record(name))
        one.close()
    report = verify(tmp_path)
    assert report.wrong == []
    assert (len(report.sessions), report.last) == (2, 4)


async def test_two_gateways_on_one_folder(tmp_path):
    one = start(tmp_path)
    with pytest.raises(RecorderError, match="is used by another gateway; give each its own with --recordings"):
        start(tmp_path)
    one.close()
    start(tmp_path).close()


async def test_a_key_from_a_file(tmp_path):
    key = chain.new_key()
    (tmp_path / "key.pem").write_bytes(key.pem())
    one = start(tmp_path, key_file=tmp_path / "key.pem")
    assert one.key.id == key.id
    one.close()
    (tmp_path / "key.pem").write_bytes(b"nonsense")
    with pytest.raises(RecorderError, match="the key for recordings cannot be used: key: not a private key"):
        start(tmp_path, key_file=tmp_path / "key.pem")


async def test_another_key_is_said(tmp_path, caplog):
    start(tmp_path).close()
    one = start(tmp_path)
    await one.write(record("a"))
    one.close()
    (tmp_path / "state" / "recording.key").unlink()
    two = start(tmp_path)
    await two.write(record("b"))
    two.close()
    assert "verify needs both (--key)" in caplog.text
    assert verify(tmp_path).wrong[0].kind is chainverify.Kind.KEY


async def test_checkpoints_that_are_broken_are_not_continued(tmp_path):
    one = start(tmp_path)
    await one.write(record("a"))
    one.close()
    path = tmp_path / "recordings" / "checkpoints.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"closed"', b'"opened"'))
    with pytest.raises(RecorderError, match="cannot be continued"):
        start(tmp_path)


async def test_half_a_checkpoint_is_cut(tmp_path, caplog):
    one = start(tmp_path)
    await one.write(record("a"))
    one.close()
    path = tmp_path / "recordings" / "checkpoints.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"half')
    start(tmp_path).close()
    assert path.read_bytes() == whole
    assert "ended in half a line" in caplog.text


async def test_checkpoint_files_rotate(tmp_path, monkeypatch):
    monkeypatch.setattr("addons.net.recordfiles.ROTATE_CHECKPOINTS", 1000)
    one = start(tmp_path)
    for n in range(5):
        await one.write(record(f"r{n}"))
        await one.checkpoint()
    one.close()
    assert len(list((tmp_path / "recordings").glob("checkpoints-*.jsonl"))) >= 2
    assert verify(tmp_path).wrong == []
    one = start(tmp_path)
    await one.write(record("later"))
    one.close()
    report = verify(tmp_path)
    assert (report.wrong, report.last) == ([], 9)


# ----- disks -----


@pytest.fixture
def small_files():
    """No file of this process may grow over the limit: a write that fails half-way, for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_write_that_fails_leaves_nothing_and_recovers(tmp_path, small_files, caplog):
    one = start(tmp_path)
    await one.write(record("a"))
    session = one_session(tmp_path)
    before = (session / "events.jsonl").read_bytes(), (session / "flows.mitm").read_bytes()
    small_files(len(before[0]) + 100)  # half of the next line fits
    with pytest.raises(RecorderError, match="cannot be written: File too large"):
        await one.write(record("b"))
    one.enqueue(record("c"))
    with pytest.raises(RecorderError):
        await one.write(record("d"))
    assert one.trouble_of(ANN)
    assert ((session / "events.jsonl").read_bytes(), (session / "flows.mitm").read_bytes()) == before
    small_files(resource.RLIM_INFINITY)
    await one.write(record("e"))
    assert one.trouble == ""
    one.close()
    found = events(session)
    assert [event["auditID"] for event in found] == ["id-a", "id-e"]
    # Those who waited were refused and know it; the read that nobody waited for is counted.
    assert found[1]["annotations"][auditevents.LOST] == "1"
    assert verify(tmp_path).wrong == []
    assert "recording works again" in caplog.text


async def test_one_identitys_files_are_nobody_elses_trouble(tmp_path):
    one = start(tmp_path)
    await one.write(record("a", "bob"))
    day = next((tmp_path / "recordings").glob("2026-*"))
    (day / "eve").write_text("a file where her folder should be")
    with pytest.raises(RecorderError):
        await one.write(record("b", "eve"))
    assert (one.trouble, one.trouble_of("bob")) == ("", "")
    assert one.trouble_of("eve")
    (day / "eve").unlink()
    await one.write(record("c", "eve"))
    assert one.trouble_of("eve") == ""
    one.close()


async def test_whatever_is_wrong_with_one_record_does_not_fail_the_others_of_its_batch(tmp_path, monkeypatch):
    one = start(tmp_path)
    link = chain.link

    def fails(event, **more):
        if event["auditID"] == "id-bad":
            raise RuntimeError("nobody thought of it")
        return link(event, **more)

    monkeypatch.setattr(chain, "link", fails)
    results = await asyncio.gather(*(one.write(record(name)) for name in ("a", "bad", "c")), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), RecorderError, type(None)]
    assert one.trouble == ""
    one.close()
    assert verify(tmp_path).wrong == []


async def test_a_piece_that_is_lost_is_told(tmp_path):
    told = []
    one = start(tmp_path)
    await one.write(record("a"))
    one.enqueue(Grow(ANN, {"exec-1.cast": b"x"}, goes_on=True, failed=lambda: told.append(1)))
    await one.checkpoint()
    assert told == [1]
    one.enqueue(Grow(ANN, {"exec-1.cast": b"x"}, failed=lambda: told.append(2)))
    one.enqueue(Grow(ANN, {"exec-1.cast": b"y"}, goes_on=True, failed=lambda: told.append(3)))
    one.close()
    assert told == [1]


async def test_a_session_that_cannot_begin_leaves_nothing(tmp_path, small_files):
    one = start(tmp_path)
    small_files(10)
    for _ in range(3):
        with pytest.raises(RecorderError):
            await one.write(record("a"))
    small_files(resource.RLIM_INFINITY)
    assert recordings.find_sessions(tmp_path / "recordings") == []
    await one.write(record("b"))
    one.close()
    assert verify(tmp_path).wrong == []


async def test_a_session_that_was_signed_stays_though_it_could_not_begin(tmp_path, monkeypatch):
    """Its checkpoint has perhaps left the machine: without its folder it would be missed for ever."""
    one = start(tmp_path)

    def full(path, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("addons.net.recordfiles._append_once", full)
        with pytest.raises(RecorderError, match="the disk is full"):
            await one.write(record("a"))
    await one.write(record("b"))
    one.close()
    assert len(recordings.find_sessions(tmp_path / "recordings")) == 2
    assert verify(tmp_path).wrong == []


async def test_a_checkpoint_that_cannot_be_written_is_made_later(tmp_path, small_files):
    one = start(tmp_path)
    await one.write(record("a"))
    small_files(100)
    with pytest.raises(RecorderError):
        await one.checkpoint()
    small_files(resource.RLIM_INFINITY)
    await one.checkpoint()
    one.close()
    report = verify(tmp_path)
    assert (report.wrong, report.last) == ([], 3)


async def test_a_folder_that_is_removed_meanwhile_is_noticed(tmp_path):
    one = start(tmp_path)
    await one.write(record("a"))
    shutil.rmtree(one_session(tmp_path))
    with pytest.raises(RecorderError, match="it was removed while it was written"):
        await one.write(record("b"))
    await one.write(record("c"))  # in a new session
    one.close()
    assert list(recording.names(tmp_path).values()) == [["id-c"]]


async def test_a_disk_that_refuses_to_sync(tmp_path, monkeypatch):
    one = start(tmp_path)
    await one.write(record("a"))
    first = one_session(tmp_path)

    def broken(fd):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(RecorderError, match="Input/output error"):
            await one.write(record("b"))
    # Not into the same files: after a failed fsync nobody knows what is in them.
    await one.write(record("c"))
    one.close()
    found = recording.names(tmp_path)
    assert len(found) == 2
    assert found.pop(str(first.relative_to(tmp_path / "recordings")))[0] == "id-a"
    assert list(found.values()) == [["id-c"]]


async def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "recordings").write_text("a file")
    with pytest.raises(RecorderError, match="cannot be used for recordings: "):
        start(tmp_path)


async def test_quota(tmp_path, clock):
    one = start(tmp_path, quota=5000, clock=clock)
    await one.write(record("a"))
    with pytest.raises(RecorderError, match="identity 'ann' is over its quota of recordings"):
        await one.write(record("big", files={"x.stream": b"x" * 5000}))
    await one.write(record("b"))
    await one.write(record("big", "bob", files={"x.stream": b"x" * 3000}))  # another one's is his own
    await one.write(record("big", person=True, files={"y.stream": b"x" * 9000}))
    clock.now += 24 * 3600
    await one.write(record("c", files={"z.stream": b"x" * 3000}))  # a new day
    one.close()
    assert verify(tmp_path).wrong == []


async def test_what_was_used_before_counts(tmp_path, clock):
    one = start(tmp_path, quota=5000, clock=clock)
    one.submit(lambda: one.use_sizes({ANN: 4900}, "2026-11-24"))
    await one.checkpoint()
    with pytest.raises(RecorderError, match="quota"):
        await one.write(record("a"))
    one.close()


async def test_the_reserve_is_for_approved_people(tmp_path):
    one = start(tmp_path, reserve=2**62)
    with pytest.raises(RecorderError, match="MiB free, which are kept for approved people"):
        await one.write(record("a"))
    await one.write(record("b", person=True))
    one.close()
    assert [event["auditID"] for event in events(one_session(tmp_path))] == ["id-b"]


async def test_a_queue_that_is_full_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_WAITING_BYTES", 100_000)
    one = start(tmp_path)
    with pytest.raises(RecorderError, match="does not keep up"):
        one.enqueue(record("a", files={"x.stream": b"x" * 100_000}))
    await one.write(record("b"))
    one.close()
    assert events(one_session(tmp_path))[0]["annotations"][auditevents.LOST] == "1"


async def test_a_disk_that_hangs_refuses_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "ANSWER", 0.05)
    one = start(tmp_path)
    release = __import__("threading").Event()
    one.submit(release.wait)
    with pytest.raises(RecorderError, match="did not answer in time"):
        await one.write(record("a"))
    release.set()
    monkeypatch.setattr(recorder, "ANSWER", 5.0)
    await one.write(record("b"))
    one.close()


async def test_closed(tmp_path):
    one = start(tmp_path)
    one.close()
    one.close()
    with pytest.raises(RecorderError, match="closed"):
        await one.write(record("a"))
    with pytest.raises(RecorderError, match="closed"):
        await one.checkpoint()


async def test_the_unauthenticated_are_counted(tmp_path, ticks):
    one = start(tmp_path, monotonic=ticks)
    for n in range(1000):
        one.count("token-invalid" if n % 2 else "token-missing")
    one.close()
    session = one_session(tmp_path)
    assert session.parent.name.startswith("system_anonymous~")
    (event,) = events(session)
    assert json.loads(event["annotations"][auditevents.COUNTS]) == {"token-invalid": 500, "token-missing": 500}


async def test_a_failure_beside_it_is_nobodys_else(tmp_path, caplog):
    one = start(tmp_path)
    one.submit(lambda: 1 / 0)
    await one.write(record("a"))
    one.close()
    assert "work beside the recording failed" in caplog.text


async def test_shipped_after_it_is_on_disk(tmp_path):
    shipped = []
    one = start(tmp_path, ship=shipped.extend)
    await one.write(record("a"))
    one.close()
    kinds = [json.loads(line)["kind"] for line in shipped]
    assert kinds == ["Checkpoint", "Event", "Checkpoint"]
    assert shipped[1] + b"\n" == (one_session(tmp_path) / "events.jsonl").read_bytes()
    assert chain.anchors(shipped) == [line.strip() for line in recordings.checkpoint_lines(tmp_path / "recordings")]


async def test_shipping_that_fails_stops_nobody(tmp_path, caplog):
    def full(lines):
        raise OSError(28, "No space left on device")

    one = start(tmp_path, ship=full)
    await one.write(record("a"))
    one.close()
    assert "could not be put aside for shipping" in caplog.text


async def test_a_clock_that_jumps(tmp_path, clock, ticks):
    one = start(tmp_path, clock=clock, monotonic=ticks)
    await one.write(record("a"))
    clock.now -= 48 * 3600
    await one.write(record("b"))
    clock.now = -1e18
    await one.write(record("c", "bob"))
    one.close()
    assert list(recording.names(tmp_path).values()) == [["id-c"], ["id-a", "id-b"]]
    assert verify(tmp_path).wrong == []


async def test_at_most_so_many_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_OPEN", 3)
    one = start(tmp_path)
    for n in range(10):
        await one.write(record("a", f"user-{n}"))
    assert len(one.open_paths()) == 3
    one.close()
    report = verify(tmp_path)
    assert (report.wrong, len(report.sessions)) == ([], 10)


# ----- kill -9 -----

CHILD = """
import asyncio, sys
from pathlib import Path
from addons.net.recorder import Grow
from tests.addons.net.recording import record, start

async def one_client(writer, number, out):
    count = 0
    while True:
        name = f"{number}-{count}"
        await writer.write(record(name, f"user-{number % 3}", ahead=True))
        out.write(f"id-{name}\\n"); out.flush()      # from here on it may have gone upstream
        writer.enqueue(Grow(f"user-{number % 3}", {f"exec-{number}.cast": b"x" * 300}))
        count += 1

async def main():
    writer = start(Path(sys.argv[1]), rotate_size=20000, checkpoint_every=0.05)
    await asyncio.gather(*(one_client(writer, n, sys.stdout) for n in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_was_acknowledged_is_lost_by_kill_9(tmp_path, seed):
    chance = random.Random(seed)  # noqa: S311 -- where to kill, not a secret
    acknowledged: list[str] = []
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        for _ in range(chance.randrange(1, 200)):
            acknowledged.append(child.stdout.readline().decode().strip())
        child.send_signal(signal.SIGKILL)
        acknowledged += child.stdout.read().decode().split("\n")[:-1]
        child.wait(10)
        # As it lies there, nobody has mended anything: unproven ends, nothing wrong.
        assert verify(tmp_path).wrong == []
    there = [name for group in recording.names(tmp_path).values() for name in group]
    assert set(acknowledged) <= set(there)
    assert len(there) < len(acknowledged) + 3 * 8 + 1
    one = start(tmp_path)
    housekeeping.Housekeeper(one, housekeeping.Keeping(days=0)).round()
    one.close()
    report = verify(tmp_path)
    assert report.wrong == []
    assert all(session.closed and not session.unproven for session in report.sessions)


def test_settings_have_safe_defaults(tmp_path):
    made = Settings(tmp_path, tmp_path)
    assert min(made.quota, made.reserve, made.rotate_size) > 0
    assert made.checkpoint_every == 60


def test_stage_of_what_is_written_ahead():
    assert recording.event("a", stage=Stage.RECEIVED)["stage"] == "RequestReceived"
    assert auditevents.seconds(recording.event("a")["requestReceivedTimestamp"]) == DAY


async def until(true, seconds=20.0):
    """The writer's thread tells nobody of what nobody waits for."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_how_far_behind_the_disk_is(tmp_path, ticks):
    one = start(tmp_path, monotonic=ticks)
    release = threading.Event()
    assert (one.lag, one.waiting) == (0.0, 0)
    one.submit(release.wait)
    one.enqueue(record("a"))
    ticks.now += 3
    one.enqueue(record("b"))
    ticks.now += 4
    assert (one.lag, one.waiting) == (7, 2)  # the oldest one's, not the newest's
    release.set()
    await until(lambda: one.waiting == 0)
    ticks.now += 1  # what is due now
    await until(lambda: one.lag == 0)
    one.close()


async def test_what_is_only_in_the_page_cache_is_not_on_disk(tmp_path, ticks):
    one = start(tmp_path, monotonic=ticks)
    one.enqueue(record("a"))
    await until(lambda: one.waiting == 0)
    ticks.now += 0.5
    assert one.lag == 0.5
    ticks.now += recorder.SYNC_EVERY
    await until(lambda: one.lag == 0)
    one.close()
