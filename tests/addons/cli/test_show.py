import io
import json
import shutil

import pytest

from addons.cli import show
from tests.addons.cli import recorded


@pytest.fixture
def root(tmp_path):
    return recorded.write(tmp_path)


def run(root, *arguments):
    out = io.StringIO()
    return show.main(["--recordings", str(root), *(str(a) for a in arguments)], out), out.getvalue()


def test_the_story_of_the_incident(root):
    """Who, with which token, which commands in which order, what each destroyed: by a person who was not there."""
    code, out = run(root, recorded.session(root).name)
    assert code == 0
    text = out.splitlines()
    assert "who:     system:serviceaccount:shop:agent-ci" in text
    assert "token:   jti-42 of https://cluster" in text
    assert "from:    10.0.0.7" in text
    assert "what:    3 commands, 5 requests, 2 changed something, 1 refused" in text
    assert [line for line in text if line.startswith("14:")] == [
        "14:03:22  kubectl delete pods --all -n shop",
        "14:04:22  kubectl delete namespaces kube-system",
        "14:05:22  create configmap shop/note",
    ]
    assert "  14:03:22  list pods in shop  -> 200  [allow permissive/everything]" in text
    assert "  14:03:23  delete pod shop/web-1  -> 200  [allow permissive/everything]" in text
    assert "            -  - image: shop/web:1" in text
    assert any("web-2  -> 404: pods web-2 is not there" in line for line in text)
    assert any(
        "delete namespace kube-system  -> refused: rule permissive/system denies this  [deny permissive/system]" in line
        for line in text
    )
    assert any("[allow permissive/everything, apr-7f3k by bea]" in line for line in text)
    assert "            +  k: v" in text
    assert "\033" not in out


def test_changes_only(root):
    _, out = run(root, "--changes", "--no-diff", recorded.session(root).name)
    assert "list pods" not in out
    assert "delete pod" in out
    assert "image" not in out


def test_curl(root):
    code, out = run(root, "--curl", recorded.session(root).name)
    assert code == 0
    assert out.splitlines()[1] == (
        "curl -H \"Authorization: Bearer $TOKEN\" -X DELETE -H 'Content-Type: application/json' "
        '--data \'{"propagationPolicy": "Background"}\' "$SERVER"/api/v1/namespaces/shop/pods/web-1'
    )


def test_json(root):
    _, out = run(root, "--json", "--changes", recorded.session(root).name)
    found = [json.loads(line) for line in out.splitlines()]
    assert [event["auditID"] for event in found] == ["r2", "r3", "r4", "r5"]


def test_a_folder_somewhere_else(root, tmp_path):
    shutil.copytree(recorded.session(root), tmp_path / "copy")
    code, out = run("/none", tmp_path / "copy")
    assert code == 0
    assert out.startswith("copy\n")


def test_a_cut_file_is_shown_up_to_the_cut(root, capsys):
    path = recorded.session(root) / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    code, out = run(root, recorded.session(root).name)
    assert code == 0
    assert "delete pod shop/web-1" in out
    assert "events.jsonl ends in half a line, which is left out" in capsys.readouterr().err


def test_a_clock_that_jumps_is_said(tmp_path, capsys):
    records = [*recorded.exchange("a", "GET", "/api/v1/pods"), *recorded.exchange("b", "GET", "/api/v1/pods", at=1e9)]
    root = recorded.write(tmp_path, records)
    assert run(root, recorded.session(root).name)[0] == 0
    assert "clock went back by" in capsys.readouterr().err


def test_other_peoples_text_reaches_no_terminal(tmp_path):
    root = recorded.write(
        tmp_path,
        recorded.exchange("a", "GET", "/api/v1/pods", typed="kubectl \x1b]0;x\x07", message="\x1b[2J", code=500),
    )
    for more in ((), ("--curl",)):
        assert "\x1b" not in run(root, recorded.session(root).name, *more)[1]


def test_colours_on_a_terminal(root, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    show.main(["--recordings", str(root), recorded.session(root).name], out)
    assert "[\033[32mallow permissive/everything\033[0m]" in out.getvalue()
    assert "\033[31m            -  - image: shop/web:1\033[0m" in out.getvalue()


def test_unknown_session(root, capsys):
    assert run(root, "nobody")[0] == 1
    assert "there is no session 'nobody'" in capsys.readouterr().err
