import gzip
import json
import shutil

import pytest

from addons.core import chain
from addons.net import recordings
from addons.net.recordings import DiskFolder, RecordingError
from tests.addons.net.recording import ANN, Clock, record, start


@pytest.fixture
async def root(tmp_path):
    clock = Clock()
    one = start(tmp_path, clock=clock)
    await one.write(record("a"))
    await one.write(record("b", "bob"))
    one.close()
    return tmp_path / "recordings"


def paths(root):
    return recordings.find_sessions(root)


def test_found_by_name(root):
    assert [path.split("/")[1] for path in paths(root)] == ["ann", "bob"]
    (root / "link").symlink_to(root / paths(root)[0].split("/")[0])
    (root / "notes.txt").write_text("x")
    assert len(paths(root)) == 2


def test_a_table_row(root):
    found = recordings.load(root, paths(root)[0])
    assert (found.index.username, found.index.events, found.index.closed, found.notes) == (ANN, 1, True, ())


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"kind":"Session","format":1}'])
def test_without_an_index_all_is_read_from_the_events(root, content):
    index = root / paths(root)[0] / "session.json"
    index.unlink()
    if content is not None:
        index.write_bytes(content)
    found = recordings.load(root, paths(root)[0])
    assert (found.index.username, found.index.events) == (ANN, 1)
    assert found.notes[0].endswith("all is read from the events")


def test_a_newer_version_is_said(root):
    index = root / paths(root)[0] / "session.json"
    index.write_text(json.dumps({**json.loads(index.read_bytes()), "format": chain.FORMAT + 1}))
    with pytest.raises(RecordingError, match=r"newer version .* use that version to read it"):
        recordings.load(root, paths(root)[0])


@pytest.mark.parametrize(
    ("damage", "events", "note"),
    [
        pytest.param(lambda raw: raw[:-5], 0, "ends in half a line", id="cut"),
        pytest.param(lambda raw: raw + b"nonsense\n", 1, "line 2 of events.jsonl is not an event", id="a foreign line"),
        pytest.param(lambda raw: b"[1]\n" + raw, 1, "line 1 of events.jsonl is not an event", id="another kind"),
        pytest.param(lambda raw: b"\xff\xfe" + raw, 0, "is not an event", id="no text"),
        pytest.param(lambda raw: b"[" * 100_000 + b"\n" + raw, 1, "is not an event", id="deep"),
    ],
)
def test_damaged_events_are_read_as_far_as_they_go(root, damage, events, note):
    folder = DiskFolder(root / paths(root)[0])
    path = folder.path / "events.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    read = recordings.read_events(folder)
    assert len(read.events) == events
    assert note in read.notes[0]


def test_events_that_are_gone(root):
    folder = DiskFolder(root / paths(root)[0])
    (folder.path / "events.jsonl").unlink()
    assert recordings.read_events(folder).notes == ["there is no events.jsonl"]


def test_a_damaged_archive_is_read_as_far_as_it_goes(root):
    folder = DiskFolder(root / paths(root)[0])
    path = folder.path / "events.jsonl"
    packed = gzip.compress(path.read_bytes() * 1000)
    path.unlink()
    path.with_name("events.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    read = recordings.read_events(folder)
    assert read.events
    assert "cannot be read after line" in read.notes[0]


def test_a_session_is_named_as_people_do(root):
    path = paths(root)[0]
    name = path.rsplit("/", 1)[1]
    for said in (path, name, f"{path}/", name[9:], str(root / path), "/ann/", "ann"):
        assert recordings.resolve(root, said) == path


@pytest.mark.parametrize(
    ("said", "message"),
    [
        pytest.param("nobody", "there is no session 'nobody' in .*; see ./run.sh sessions", id="unknown"),
        pytest.param("14-03-22", "can be 2 sessions", id="ambiguous"),
        pytest.param("", "there is no session ''", id="nothing"),
    ],
)
def test_names_that_are_no_session(root, said, message):
    with pytest.raises(RecordingError, match=message):
        recordings.resolve(root, said)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RecordingError, match="cannot be read: No such file"):
        recordings.resolve(tmp_path / "none", "x")


def test_what_a_folder_is(root):
    session = root / paths(root)[0]
    assert recordings.is_root(root)
    assert not recordings.is_session(root)
    assert recordings.is_session(session)
    assert not recordings.is_root(session)


def test_collect(root, tmp_path):
    assert len(recordings.collect([root])) == 2
    assert len(recordings.collect([root / paths(root)[0]])) == 1
    shutil.copytree(root / paths(root)[0], tmp_path / "copied" / "anywhere")
    assert len(recordings.collect([tmp_path / "copied"])) == 1
    with pytest.raises(RecordingError, match="is not a folder"):
        recordings.collect([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordingError, match="holds no recorded session"):
        recordings.collect([tmp_path / "empty"])
