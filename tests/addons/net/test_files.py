import stat

import pytest

from addons.net import files


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_private(tmp_path):
    folder = files.private_folder(tmp_path / "a" / "b")
    files.write_private(folder / "key", b"secret")
    assert (mode(folder), mode(folder / "key")) == (0o700, 0o600)


def test_replaced_whole(tmp_path):
    path = tmp_path / "f"
    files.write_private(path, b"old")
    files.write_private(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "f"
    files.write_private(path, b"old")
    with pytest.raises(TypeError):
        files.write_private(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_combined_files_are_named_by_content(tmp_path):
    (tmp_path / "a").write_text("A\n")
    (tmp_path / "b").write_text("B")
    first = files.combine(tmp_path, str(tmp_path / "a"), str(tmp_path / "b"))
    assert first.read_bytes() == b"A\nB\n"
    (tmp_path / "a").write_text("rotated\n")
    assert files.combine(tmp_path, str(tmp_path / "a"), str(tmp_path / "b")) != first


def test_made_once(tmp_path):
    path = tmp_path / "f"
    assert files.make_once(path, b"first") == b"first"
    assert files.make_once(path, b"second") == b"first"
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_made_once_by_two_at_once(tmp_path, monkeypatch):
    path = tmp_path / "f"
    monkeypatch.setattr(files.Path, "exists", lambda self: False)  # both saw that it was not there
    assert files.make_once(path, b"first") == b"first"
    assert files.make_once(path, b"second") == b"first"
    assert list(tmp_path.iterdir()) == [path]
