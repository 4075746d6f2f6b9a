import io

import pytest

from addons.cli import backup
from addons.net import store
from addons.net.store import SqliteStore


def run(command, file, state):
    out, err = io.StringIO(), io.StringIO()
    code = backup.main(command, [str(file), "--state", str(state)], out, err)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def state(tmp_path):
    SqliteStore(tmp_path / "state" / store.FILE).close()
    return tmp_path / "state"


def test_there_and_back(state, tmp_path):
    code, out, err = run("backup", tmp_path / "b", state)
    assert (code, err) == (0, "")
    assert str(tmp_path / "b") in out
    code, out, err = run("restore", tmp_path / "b", state)
    assert (code, err) == (0, "")
    assert "0 approvals are void" in out
    assert "the state before is" in out


def test_a_damaged_state_is_told(state, tmp_path):
    run("backup", tmp_path / "b", state)
    (state / store.FILE).write_bytes(b"rubbish" * 1000)
    code, _, err = run("restore", tmp_path / "b", state)
    assert code == 0
    assert "revoke it again" in err


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_mistakes_are_one_sentence(tmp_path, command):
    code, out, err = run(command, tmp_path / "b", tmp_path / "none")
    assert (code, out) == (1, "")
    assert err.startswith("tollgate: ")
    assert err.count("\n") == 1
