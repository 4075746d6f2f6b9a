import stat

import pytest

from addons.core import filemodes

FILE, FOLDER = stat.S_IFREG, stat.S_IFDIR


@pytest.mark.parametrize(
    ("mode", "folder", "said"),
    [
        pytest.param(FILE | 0o600, FOLDER | 0o700, "", id="private"),
        pytest.param(FILE | 0o664, FOLDER | 0o775, "", id="the group is the administrator's choice"),
        pytest.param(FILE | 0o666, FOLDER | 0o700, "every user can write it (mode 0666)", id="a file for all"),
        pytest.param(
            FOLDER | 0o777, FOLDER | 0o755, "every user can put files into this folder", id="a folder for all"
        ),
        pytest.param(FOLDER | 0o1777, FOLDER | 0o755, "every user can put files into this folder", id="sticky, too"),
        pytest.param(
            FILE | 0o600, FOLDER | 0o777, "every user can replace it (its folder has mode 0777)", id="by renaming"
        ),
        pytest.param(FILE | 0o600, FOLDER | 0o1777, "", id="in a sticky folder"),
    ],
)
def test_trouble(mode, folder, said):
    assert filemodes.trouble(mode, folder).startswith(said) if said else filemodes.trouble(mode, folder) == ""


def test_links_are_followed(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    (folder / "file").write_text("")
    folder.chmod(0o777)
    (tmp_path / "link").symlink_to(folder / "file")
    assert "can replace it" in filemodes.trouble_at(tmp_path / "link")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        filemodes.trouble_at(tmp_path / "absent")


@pytest.mark.parametrize(
    ("mode", "folders", "is_exposed"),
    [
        pytest.param(FILE | 0o600, [FOLDER | 0o755, FOLDER | 0o755], False, id="private"),
        pytest.param(FILE | 0o640, [FOLDER | 0o755], False, id="the group is the administrator's choice"),
        pytest.param(FILE | 0o644, [FOLDER | 0o755, FOLDER | 0o755], True, id="for all"),
        pytest.param(FILE | 0o644, [FOLDER | 0o700, FOLDER | 0o755], False, id="in a private folder"),
        pytest.param(FILE | 0o644, [FOLDER | 0o755, FOLDER | 0o700], False, id="further up"),
        pytest.param(FILE | 0o644, [FOLDER | 0o711], True, id="in a folder that others may pass, not list"),
    ],
)
def test_exposed(mode, folders, is_exposed):
    said = filemodes.exposed(mode, folders)
    assert said.startswith("it holds a key or token, and every user can read it (mode 0644)") is is_exposed


def test_exposed_follows_links(tmp_path):
    (tmp_path / "key").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    passable = all(folder.stat().st_mode & stat.S_IXOTH for folder in (tmp_path / "key").resolve().parents)
    for mode, is_exposed in ((0o600, False), (0o604, passable)):
        (tmp_path / "key").chmod(mode)
        assert bool(filemodes.exposed_at(tmp_path / "link")) is is_exposed
