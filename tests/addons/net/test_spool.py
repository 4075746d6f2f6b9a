import json
import subprocess
import sys

import pytest

from addons.net import spool as module
from addons.net.spool import InUse, Place, Spool


def make(folder, **options):
    return Spool(folder / "ship", clock=lambda: "2026-11-24T14:03:22Z", **options)


def all_of(spool, place, **options):
    found = []
    while (batch := spool.read(place, **options)).lines:
        found += batch.lines
        place = batch.end
    return found


def test_lines_come_out_as_they_went_in(tmp_path):
    spool = make(tmp_path)
    start = spool.cursor("a")
    spool.append([b"1", b"2"])
    spool.append([b"3"])
    assert all_of(spool, start) == [b"1", b"2", b"3"]
    assert all_of(spool, start, lines=1) == [b"1", b"2", b"3"]
    assert all_of(spool, start, size=1) == [b"1", b"2", b"3"]


def test_a_new_receiver_begins_now(tmp_path):
    spool = make(tmp_path)
    spool.append([b"before"])
    place = spool.cursor("a")
    spool.append([b"after"])
    assert all_of(spool, place) == [b"after"]


def test_where_a_receiver_was_is_kept(tmp_path):
    spool = make(tmp_path)
    place = spool.cursor("a")
    spool.append([b"1", b"2"])
    spool.move("a", spool.read(place, lines=1).end)
    spool.close()
    spool = make(tmp_path)
    spool.append([b"3"])
    assert all_of(spool, spool.cursor("a")) == [b"2", b"3"]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[]", b'{"segment":"x"}'])
def test_an_unreadable_cursor_ships_everything_again(tmp_path, content, caplog):
    spool = make(tmp_path)
    spool.cursor("a")
    spool.append([b"1"])
    (tmp_path / "ship" / "a.cursor").write_bytes(content)
    assert all_of(spool, spool.cursor("a")) == [b"1"]
    assert "shipped again" in caplog.text


def test_segments(tmp_path):
    spool = make(tmp_path, segment=10)
    start = spool.cursor("a")
    for n in range(10):
        spool.append([b"line-%d" % n])
    assert len(list((tmp_path / "ship").glob("*.jsonl"))) == 10
    assert all_of(spool, start) == [b"line-%d" % n for n in range(10)]
    spool.move("a", Place(5, 0))
    spool.cursor("b")
    spool.trim()
    assert len(list((tmp_path / "ship").glob("*.jsonl"))) == 6
    spool.forget(["b"])
    spool.trim()
    assert len(list((tmp_path / "ship").glob("*.jsonl"))) == 1


def test_a_removed_segment_is_passed_over(tmp_path):
    spool = make(tmp_path, segment=10)
    start = spool.cursor("a")
    for n in range(5):
        spool.append([b"line-%d" % n])
    spool.close()
    (tmp_path / "ship" / "000000000002.jsonl").unlink()
    assert all_of(make(tmp_path, segment=10), start) == [b"line-0", b"line-2", b"line-3", b"line-4"]


def test_full(tmp_path, caplog):
    spool = make(tmp_path, segment=100, full=400)
    start = spool.cursor("a")
    for n in range(100):
        spool.append([b"line-%03d" % n])
    found = all_of(spool, start)
    told = [json.loads(line) for line in found if line.startswith(b"{")]
    lines = [line for line in found if not line.startswith(b"{")]
    assert lines == [b"line-%03d" % n for n in range(100 - len(lines), 100)]
    assert "lines were dropped from it" in caplog.text
    assert told[-1]["verb"] == "dropped"


def test_what_all_have_taken_goes_without_a_word(tmp_path, caplog):
    spool = make(tmp_path, segment=100, full=400)
    spool.cursor("a")
    for n in range(100):
        spool.append([b"line-%03d" % n])
        spool.move("a", Place(spool._last, spool._sizes[spool._last]))
    assert "dropped" not in caplog.text


def test_half_a_line_of_a_killed_process_is_cut(tmp_path):
    spool = make(tmp_path)
    start = spool.cursor("a")
    spool.append([b"1"])
    spool.close()
    with (tmp_path / "ship" / "000000000001.jsonl").open("ab") as file:
        file.write(b"hal")
    spool = make(tmp_path)
    spool.append([b"2"])
    assert all_of(spool, start) == [b"1", b"2"]


def test_private(tmp_path):
    spool = make(tmp_path)
    spool.append([b"1"])
    spool.cursor("a")
    for path in (tmp_path / "ship", *(tmp_path / "ship").iterdir()):
        assert path.stat().st_mode & 0o077 == 0


def test_woken(tmp_path):
    spool, woken = make(tmp_path), []
    spool.on_append(lambda: woken.append(1))
    spool.append([b"1"])
    assert woken == [1]


def test_what_was_appended_survives_kill_9(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from tests.addons.net.test_spool import make
spool = make(Path(sys.argv[1])); spool.cursor("a")
for n in range(500): spool.append([b"%d" % n])
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False)
    spool = make(tmp_path)
    assert all_of(spool, Place(1, 0)) == [b"%d" % n for n in range(500)]


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "ship").write_text("x")
    with pytest.raises(OSError, match="exists"):
        make(tmp_path)


def test_two_processes_have_two_spools(tmp_path, monkeypatch):
    """While one gateway takes over from another; the same segments written by both would lose lines."""
    monkeypatch.setattr(module, "MAX_SPOOLS", 2)
    first = make(tmp_path)
    with pytest.raises(InUse):
        make(tmp_path)
    second = module.first_free(tmp_path, clock=lambda: "")
    second.append([b"2"])
    assert list((tmp_path / "ship-2").glob("*.jsonl"))
    with pytest.raises(InUse, match="2 gateways ship from"):
        module.first_free(tmp_path, clock=lambda: "")
    first.close()
    first.close()
    third = module.first_free(tmp_path, clock=lambda: "")
    third.append([b"3"])
    assert (tmp_path / "ship" / "000000000001.jsonl").read_bytes() == b"3\n"
    third.close()
    second.close()
