import asyncio
import gzip
import json
import os

from addons.core import sessions
from addons.net import recordings
from addons.net.housekeeping import Housekeeper, Keeping
from addons.net.recorder import Grow
from tests.addons.net import recording
from tests.addons.net.recording import ANN, DAY, Clock, record, start, verify


async def write(folder, *names, username=ANN, when=DAY):
    one = start(folder, clock=Clock(when))
    for name in names:
        await one.write(record(name, username, at=when))
    one.close()


async def keep(folder, when=DAY, **keeping):
    """One round of housekeeping, and all it asked for done."""
    clock = Clock(when)
    one = start(folder, clock=clock)
    Housekeeper(one, Keeping(**keeping), clock=clock).round()
    one.close()
    return one


def session(folder):
    (path,) = recordings.find_sessions(folder / "recordings")
    return folder / "recordings" / path


async def crash(folder, *more):
    """What is left when the process dies: nothing is closed."""
    one = start(folder, clock=Clock())
    await one.write(record("a", ahead=True))
    await one.write(Grow(ANN, {"exec-1.cast": b"head\n"}))
    await one.checkpoint()
    for name in ("b", *more):
        await one.write(record(name))
    os.close(one._lock)  # as the kernel does
    one._jobs.put(None)
    one._close_session = lambda *_: None
    one._thread.join()


async def test_what_a_dead_gateway_left_is_closed(tmp_path, caplog):
    await crash(tmp_path)
    folder = session(tmp_path)
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'{"annotations":{"toll')
    with (folder / "flows.mitm").open("ab") as file:
        file.write(b"half a flow")
    await keep(tmp_path)
    index = sessions.read_index((folder / "session.json").read_bytes())
    assert index.closed
    assert (index.events, index.username, index.requests) == (2, "ann", 2)
    assert index.note == (
        "11 bytes of half a record were cut off flows.mitm; 21 bytes of half a record were cut off events.jsonl"
    )
    assert (folder / "flows.mitm").read_bytes() == b"flow of b;"
    report = verify(tmp_path)
    assert report.wrong == []
    assert (report.sessions[0].proven, report.sessions[0].closed) == (2, True)
    assert any("the gateway ended without closing it: 11 bytes" in note for note in report.sessions[0].notes)
    assert "was left open by a gateway that ended" in caplog.text


async def test_closed_once(tmp_path):
    await crash(tmp_path)
    await keep(tmp_path)
    count = len(list(recordings.checkpoint_lines(tmp_path / "recordings")))
    await keep(tmp_path)
    assert len(list(recordings.checkpoint_lines(tmp_path / "recordings"))) == count


async def test_a_session_without_events_is_closed(tmp_path):
    one = start(tmp_path)
    await one.write(Grow(ANN, {"exec-1.cast": b"head\n"}))
    os.close(one._lock)
    one._jobs.put(None)
    one._close_session = lambda *_: None
    one._thread.join()
    await keep(tmp_path)
    report = verify(tmp_path)
    assert report.wrong == []
    assert report.sessions[0].closed


async def test_evidence_of_tampering_is_not_mended(tmp_path):
    await crash(tmp_path, "c")
    folder = session(tmp_path)
    path = folder / "events.jsonl"
    path.write_bytes(path.read_bytes().replace(b"id-b", b"id-x"))
    before = {file.name: file.read_bytes() for file in folder.iterdir() if "mitm" in file.name or file == path}
    await keep(tmp_path)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert verify(tmp_path).wrong != []


async def test_a_session_of_the_running_recorder_is_left_alone(tmp_path):
    one = start(tmp_path, clock=Clock())
    await one.write(record("a"))
    Housekeeper(one, Keeping(days=1, size=1, compress=True), clock=Clock(DAY + 1e7)).round()
    await one.write(record("b"))
    one.close()
    assert list(recording.names(tmp_path).values()) == [["id-a", "id-b"]]
    assert verify(tmp_path).wrong == []


async def test_old_ones_are_removed_and_that_is_signed(tmp_path):
    await write(tmp_path, "old", when=DAY - 100 * 86400)
    await write(tmp_path, "new")
    await keep(tmp_path, days=90)
    assert list(recording.names(tmp_path).values()) == [["id-new"]]
    report = verify(tmp_path)
    assert report.wrong == []
    assert len(report.notes) == 1
    assert "older than 90 days" in report.notes[0]
    assert not (tmp_path / "recordings" / "2026-08-16").exists()


async def test_nothing_is_removed_without_a_limit(tmp_path):
    await write(tmp_path, "old", when=DAY - 5000 * 86400)
    await keep(tmp_path, days=0, size=0)
    assert len(recording.names(tmp_path)) == 1


async def test_the_oldest_go_when_it_is_too_much(tmp_path):
    for n in range(5):
        await write(tmp_path, f"r{n}", when=DAY + n * 60)
    size = sum(f.stat().st_size for f in (tmp_path / "recordings").rglob("*") if f.parent.name.startswith("14-"))
    await keep(tmp_path, days=0, size=size * 3 // 5 + 10)
    assert sorted(name for group in recording.names(tmp_path).values() for name in group) == ["id-r2", "id-r3", "id-r4"]
    assert verify(tmp_path).wrong == []


async def test_checkpoints_that_are_too_old_go(tmp_path, monkeypatch):
    monkeypatch.setattr("addons.net.recordfiles.ROTATE_CHECKPOINTS", 500)
    await write(tmp_path, "old", when=DAY - 100 * 86400)
    for file in (tmp_path / "recordings").glob("checkpoints-*"):
        os.utime(file, (DAY - 100 * 86400,) * 2)
    await write(tmp_path, "new")
    await keep(tmp_path, days=90)
    report = verify(tmp_path)
    assert report.wrong == []
    assert any("what was before it is not here and not proven" in note for note in report.notes)


async def test_compressed(tmp_path):
    await write(tmp_path, "a", "b")
    folder = session(tmp_path)
    plain = {name: (folder / name).read_bytes() for name in ("events.jsonl", "flows.mitm")}
    await keep(tmp_path, compress=True)
    assert {path.name for path in folder.iterdir()} == {
        "session.json",
        "checkpoints.jsonl",
        "events.jsonl.gz",
        "flows.mitm.gz",
    }
    assert {name: gzip.decompress((folder / f"{name}.gz").read_bytes()) for name in plain} == plain
    assert (folder / "events.jsonl.gz").stat().st_mode & 0o777 == 0o600
    report = verify(tmp_path)
    assert (report.wrong, report.sessions[0].events) == ([], 2)
    assert list(recording.names(tmp_path).values()) == [["id-a", "id-b"]]
    await keep(tmp_path, compress=True)  # again: nothing to do
    damaged = folder / "flows.mitm.gz"
    damaged.write_bytes(damaged.read_bytes()[:-12])
    assert verify(tmp_path).wrong


async def test_what_was_used_today_counts_for_the_quota(tmp_path):
    await write(tmp_path, "a", "b", "c")
    one = start(tmp_path, quota=4000, clock=Clock())
    Housekeeper(one, Keeping(), clock=Clock()).round()
    await one.checkpoint()
    assert one._used[ANN] > 3000
    one.close()


async def test_a_folder_that_is_nothing_is_left_alone(tmp_path, caplog):
    (tmp_path / "recordings" / "2026-11-24" / "ann" / "14-03-22-abcd").mkdir(parents=True)
    (tmp_path / "recordings" / "notes").mkdir()
    await keep(tmp_path, days=1, size=1, when=DAY + 1e8)
    assert (tmp_path / "recordings" / "2026-11-24" / "ann" / "14-03-22-abcd").is_dir()
    assert "it holds neither events nor an index" in caplog.text


async def test_what_is_from_a_newer_version_is_left_alone(tmp_path, caplog):
    await write(tmp_path, "a")
    path = session(tmp_path) / "session.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "format": 9}))
    await keep(tmp_path, days=1, when=DAY + 1e8)
    assert len(recording.names(tmp_path)) == 1
    assert "newer version" in caplog.text


async def test_it_runs_by_itself(tmp_path):
    await write(tmp_path, "old", when=DAY - 100 * 86400)
    one = start(tmp_path)
    keeper = Housekeeper(one, Keeping(days=1))
    keeper.start()
    async with asyncio.timeout(10):
        while recording.names(tmp_path):
            await asyncio.sleep(0.01)
    keeper.stop()
    one.close()
    assert recording.names(tmp_path) == {}


async def test_what_is_closed_is_read_once(tmp_path, monkeypatch):
    await write(tmp_path, "a")
    await crash(tmp_path)
    one = start(tmp_path, clock=Clock())
    keeper = Housekeeper(one, Keeping(compress=True), clock=Clock())
    looked = []
    look = keeper._look
    monkeypatch.setattr(keeper, "_look", lambda path: (looked.append(path), look(path))[1])
    for _ in range(4):
        keeper.round()
        await one.checkpoint()
    one.close()
    assert len(looked) == 2
    assert verify(tmp_path).wrong == []
