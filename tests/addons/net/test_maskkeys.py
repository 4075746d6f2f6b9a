import multiprocessing
import os

import pytest

from addons.net import maskkeys


@pytest.fixture(autouse=True)
def forgotten():
    maskkeys._in.cache_clear()
    yield
    maskkeys._in.cache_clear()


def test_it_is_made_once(tmp_path):
    state = tmp_path / "state"
    key = maskkeys.shared(str(state))
    maskkeys._in.cache_clear()
    assert maskkeys.shared(str(state)) == key
    assert len(key) == maskkeys.SIZE
    assert (state / "mask.key").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in state.iterdir()] == ["mask.key"]


def _key(state):
    return maskkeys.shared(state)


def test_processes_that_start_at_once_get_the_same(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        assert len(set(pool.map(_key, [str(tmp_path)] * 8))) == 1


def test_without_a_folder_it_is_this_processs_own():
    assert maskkeys.shared("") == maskkeys.shared("")


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        pytest.param(b"short", 0o600, "does not have 32 bytes", id="short"),
        pytest.param(bytes(32), 0o640, "others may read it", id="of others"),
    ],
)
def test_refused(tmp_path, content, mode, message):
    file = tmp_path / "mask.key"
    file.write_bytes(content)
    file.chmod(mode)
    with pytest.raises(maskkeys.KeyFileError, match=message) as e:
        maskkeys.shared(str(tmp_path))
    assert str(file) in str(e.value)


def test_a_place_where_nothing_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(maskkeys.KeyFileError, match=os.strerror(20)):
        maskkeys.shared(str(tmp_path / "file" / "state"))


def test_each_purpose_has_its_own(tmp_path):
    key = maskkeys.shared(str(tmp_path))
    found = {key, maskkeys.derived(key, maskkeys.TAGS), maskkeys.derived(key, maskkeys.KNOWN)}
    assert len(found) == 3
    assert maskkeys.tags(str(tmp_path)) == maskkeys.derived(key, maskkeys.TAGS)
