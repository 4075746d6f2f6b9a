import io
import json
import shutil

import pytest

from addons.cli import verify
from tests.addons.cli import recorded
from tests.addons.net import recording


@pytest.fixture
def root(tmp_path):
    return recorded.write(tmp_path, [*recorded.INCIDENT, recording.record("x")])


def run(*arguments):
    out = io.StringIO()
    return verify.main([str(a) for a in arguments], out), out.getvalue()


def edit(root, name="events.jsonl", old=b"web-1", new=b"web-9"):
    path = recorded.session(root) / name
    path.write_bytes(path.read_bytes().replace(old, new))


def test_clean(root):
    code, out = run(root)
    assert code == 0
    assert out.splitlines()[-1] == (
        "clean: consistent, not proven against the holder of the key (compare with --anchor)"
    )
    assert ": 8 events, clean" in out


def test_an_edit_is_named(root):
    edit(root)
    code, out = run(root)
    assert code == 1
    name = recorded.session(root).relative_to(root)
    assert f"{name}/events.jsonl:2: edited: this line or the next one is not what it was" in out
    assert out.splitlines()[-1].startswith("NOT CLEAN: ")


def test_a_flow_is_named(root):
    edit(root, "flows.mitm")
    assert "edited: the flow of event 3 is not what it was" in run("-q", root)[1]


def test_quiet(root):
    assert run("-q", root)[1].count("\n") == 1


def test_json(root):
    edit(root)
    code, out = run("--json", root)
    value = json.loads(out)
    assert code == 1
    assert value["clean"] is False
    assert value["findings"][0]["kind"] == "edited"
    assert len(value["sessions"]) == 2


def test_one_session_of_a_folder(root):
    code, out = run(recorded.session(root))
    assert code == 0
    assert f"checked with the checkpoints of {root}" in out
    assert out.count("events, clean") == 1
    edit(root)
    assert run(recorded.session(root))[0] == 1


def test_one_session_by_itself(root, tmp_path):
    path = tmp_path / "sent" / recorded.session(root).name
    shutil.copytree(recorded.session(root), path)
    code, out = run(path)
    assert code == 0
    assert "clean: consistent" in out


def test_unproven_is_said(root, tmp_path):
    """As a running gateway's folder looks."""
    path = recorded.session(root)
    point = (root / "checkpoints.jsonl").read_bytes().splitlines(keepends=True)
    (root / "checkpoints.jsonl").write_bytes(b"".join(line for line in point if b'"closed"' not in line))
    (path / "checkpoints.jsonl").unlink()
    code, out = run(root)
    assert code == 0
    assert "8 events, clean, the last 8 unproven since 2026-11-24T14:03:22Z, still open" in out
    assert "9 events since the last checkpoints are unproven" in out


def test_an_anchor(root, tmp_path):
    anchor = tmp_path / "syslog"
    lines = (root / "checkpoints.jsonl").read_bytes().splitlines(keepends=True)
    anchor.write_bytes(b"".join(b"Nov 24 host tollgate: " + line for line in lines))
    code, out = run("--anchor", anchor, root)
    assert code == 0
    assert "clean: proven up to checkpoint 4 (2026-11-24T14:03:22" in out
    shutil.rmtree(root / "2026-11-24")
    (root / "checkpoints.jsonl").write_bytes(b"")
    recorded.write(tmp_path, recorded.INCIDENT[:3])  # another history, signed by the same key
    assert run(root)[0] == 0
    code, out = run("--anchor", anchor, root)
    assert code == 1
    assert "rewritten: checkpoint 1" in out


def test_a_key(root, tmp_path):
    assert run("--key", tmp_path / "state" / "recording.pub", root)[0] == 0
    other = tmp_path / "other"
    recorded.write(other, recorded.INCIDENT[:1])
    code, out = run("--key", other / "state" / "recording.pub", root)
    assert code == 1
    assert "is signed by another key" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("/none",), "/none is not a folder", id="no folder"),
        pytest.param(("{tmp}",), "is neither a folder of recordings nor a session", id="no recording"),
        pytest.param(("--key", "{tmp}/junk", "{root}"), "junk: key: not a public key in PEM", id="no key"),
        pytest.param(("--key", "{tmp}/none", "{root}"), "none cannot be read: No such file", id="no key file"),
        pytest.param(("--anchor", "{tmp}/none", "{root}"), "none cannot be read: No such file", id="no anchor"),
        pytest.param(("--anchor", "{tmp}/junk", "{copy}"), "needs the whole folder", id="an anchor of one session"),
    ],
)
def test_in_one_sentence(root, tmp_path, capsys, arguments, said):
    (tmp_path / "junk").write_text("x")
    copy = tmp_path / "a" / "b" / "c" / recorded.session(root).name
    shutil.copytree(recorded.session(root), copy)
    assert run(*(a.format(tmp=tmp_path, root=root, copy=copy) for a in arguments))[0] == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_an_anchor_that_says_nothing(root, tmp_path):
    (tmp_path / "junk").write_text("x")
    code, out = run("--anchor", tmp_path / "junk", root)
    assert code == 1
    assert "so it proves nothing" in out
