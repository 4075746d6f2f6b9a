import os

import pytest

from addons.core import chain
from addons.net import recordfiles
from addons.net.recordfiles import CheckpointLog, File, OpenSession, RecorderError, Saved


def test_a_file_is_new_and_no_link(tmp_path):
    (tmp_path / "there").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            File(tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()


def test_a_batch_can_be_taken_back(tmp_path):
    session = OpenSession(tmp_path, "ann", "abcd", 1, "", 0.0, 0.0)
    session.folder.mkdir(parents=True)
    session.file("flows.mitm").append(b"one")
    session.file("exec-1.cast").append(b"head\n")
    before = session.growing()
    saved = Saved(session)
    session.file("flows.mitm").append(b"two")
    session.file("exec-1.cast").append(b"more\n")
    session.file("new.cast").append(b"x")
    session.sequence, session.head = 5, "x"
    session.ended.add("exec-1.cast")
    saved.restore()
    assert (session.sequence, session.ended) == (0, set())
    assert (session.folder / "flows.mitm").read_bytes() == b"one"
    assert session.growing() == {**before, "new.cast": chain.Size(0, chain.digest(b""))}
    session.file("exec-1.cast").append(b"y")
    assert (session.folder / "exec-1.cast").read_bytes() == b"head\ny"


def sign(log, number):
    return log.sign("t", "2026-11-24/ann/14-03-22-a", "a", "going", number, "0" * 64, {})


def test_the_log_goes_on(tmp_path):
    key = chain.new_key()
    for _ in range(2):
        log = CheckpointLog(tmp_path, key)
        sign(log, 1)
        log.close()
    lines = (tmp_path / "checkpoints.jsonl").read_bytes().splitlines()
    first, second = (chain.read_checkpoint(line) for line in lines)
    assert (first.number, second.number) == (1, 2)
    assert second.previous == chain.digest(lines[0])


def test_a_checkpoint_that_was_not_written_takes_no_number(tmp_path, monkeypatch):
    log = CheckpointLog(tmp_path, chain.new_key())
    sign(log, 1)

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            sign(log, 2)
    sign(log, 3)
    lines = (tmp_path / "checkpoints.jsonl").read_bytes().splitlines()
    assert [chain.read_checkpoint(line).number for line in lines] == [1, 2]
    assert [chain.read_checkpoint(line).events for line in lines] == [1, 3]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (28, "the disk is full"),
        (122, "the disk is full"),
        (30, "the disk is mounted read-only"),
        (13, "Permission denied"),
    ],
)
def test_what_is_said_of_a_disk(tmp_path, number, message):
    said = str(recordfiles.unwritable(tmp_path, OSError(number, os.strerror(number))))
    assert said == f"{tmp_path} cannot be written: {message}"


def test_one_lock(tmp_path):
    fd = recordfiles.lock(tmp_path)
    with pytest.raises(RecorderError, match="is used by another gateway"):
        recordfiles.lock(tmp_path)
    os.close(fd)
    os.close(recordfiles.lock(tmp_path))


def test_the_key_is_made_once(tmp_path):
    settings = recordfiles.Settings(tmp_path / "r", tmp_path / "s")
    key = recordfiles.load_key(settings)
    assert recordfiles.load_key(settings).id == key.id
    assert chain.read_public_key((tmp_path / "s" / "recording.pub").read_bytes()) == key.public
    assert (tmp_path / "s" / "recording.key").stat().st_mode & 0o777 == 0o600
