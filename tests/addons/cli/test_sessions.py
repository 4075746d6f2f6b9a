import io
import json

import pytest

from addons.cli import sessions
from tests.addons.cli import recorded
from tests.addons.net import recording


@pytest.fixture
def root(tmp_path):
    return recorded.write(tmp_path, [*recorded.INCIDENT, recording.record("x", "ann\x1b[2J")])


def run(*arguments):
    out = io.StringIO()
    return sessions.main([str(a) for a in arguments], out), out.getvalue()


def test_a_table(root):
    code, out = run("--recordings", root)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == [
        "session",
        "who",
        "when",
        "took",
        "commands",
        "requests",
        "changed",
        "refused",
        "approvals",
    ]
    (row,) = [line.split() for line in lines if "agent-ci" in line]
    assert row[0].startswith("14-03-22-")
    assert row[1:] == [
        "system:serviceaccount:shop:agent-ci",
        "2026-11-24",
        "14:03:22",
        "2m00s",
        "3",
        "5",
        "2",
        "1",
        "1",
    ]


def test_other_peoples_text_reaches_no_terminal(root):
    _, out = run("--recordings", root)
    assert "\x1b" not in out
    assert "ann\\u001b[2J" in out


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        pytest.param(("--user", "agent"), 1, id="user"),
        pytest.param(("--user", "nobody"), 0, id="nobody"),
        pytest.param(("--since", "2026-11-24"), 2, id="since"),
        pytest.param(("--since", "2026-11-25"), 0, id="later"),
        pytest.param(("--changed",), 2, id="changed"),
    ],
)
def test_filters(root, arguments, count):
    code, out = run("--recordings", root, "--json", *arguments)
    assert code == 0
    assert len(out.splitlines()) == count


def test_json(root):
    _, out = run("--recordings", root, "--json", "--user", "agent")
    value = json.loads(out)
    assert (value["changed"], value["refused"], value["closed"], value["notes"]) == (2, 1, True, [])


def test_without_an_index(root):
    (recorded.session(root) / "session.json").unlink()
    code, out = run("--recordings", root)
    assert code == 0
    assert "open" in next(line for line in out.splitlines() if "agent-ci" in line)


def test_a_newer_one_is_named_and_the_others_shown(root, capsys):
    path = recorded.session(root) / "session.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "format": 9}))
    code, out = run("--recordings", root)
    assert code == 1
    assert len(out.splitlines()) == 2
    assert "newer version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("--recordings", "/none"), "/none cannot be read: No such file", id="no folder"),
        pytest.param(("--since", "yesterday"), "'yesterday' is not a day; write it as 2026-11-24", id="no day"),
    ],
)
def test_in_one_sentence(capsys, arguments, said):
    assert run(*arguments)[0] == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_nothing_there(tmp_path):
    code, out = run("--recordings", tmp_path)
    assert (code, out) == (0, f"nothing is recorded in {tmp_path}, or nothing of that kind\n")
