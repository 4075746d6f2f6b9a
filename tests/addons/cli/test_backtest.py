import io
import json

import pytest

from addons.cli import backtest
from tests.addons.cli import recorded

HEAD = "apiVersion: tollgate.dev/v1alpha1\nkind: Policy\nmetadata: {name: new}\nrules:\n"
ALL = "- {name: all, action: allow, match: {verbs: [get, list, create, patch, delete], resources: ['*', '*.*']}}\n"
SYSTEM = (
    "- {name: system, action: deny, match: {resources: [namespaces], verbs: [delete], namespaces: [kube-system]}}\n"
)
NO_DELETES = "- {name: no-deletes, action: deny, match: {resources: [pods], verbs: [delete]}}\n"
ASK = "- {name: ask, action: hold, match: {resources: [pods], verbs: [delete]}, approval: {groups: [oncall]}}\n"


@pytest.fixture
def root(tmp_path):
    return recorded.write(tmp_path)


def run(tmp_path, rules, *arguments):
    (tmp_path / "new.yaml").write_text(HEAD + rules)
    out = io.StringIO()
    return backtest.main(["--policies", str(tmp_path / "new.yaml"), *map(str, arguments)], out), out.getvalue()


def test_nothing_would_change(tmp_path, root):
    code, out = run(tmp_path, ALL + SYSTEM, root)
    assert code == 0
    assert ": 0 would change, 0 that were allowed would be refused, 0 would be held, 0 that were refused" in out


def test_what_was_allowed_would_be_refused(tmp_path, root):
    code, out = run(tmp_path, ALL + SYSTEM + NO_DELETES, root)
    assert code == 1
    assert out.startswith(
        "allow -> deny  2 by new/no-deletes\n    2026-11-24 14:03:23 system:serviceaccount:shop:agent-ci"
    )
    assert "delete pod shop/web-1 (was allow by permissive/everything)" in out
    assert out.splitlines()[-1].startswith("5 requests, revision ")


def test_held_counts_when_asked(tmp_path, root):
    assert run(tmp_path, ALL + SYSTEM + ASK, root)[0] == 0
    assert run(tmp_path, ALL + SYSTEM + ASK, "--holds", root)[0] == 1


def test_json(tmp_path, root):
    code, out = run(tmp_path, ALL, "--json", recorded.session(root))
    value = json.loads(out)
    assert code == 0
    assert (value["requests"], value["opened"], value["broken"]) == (5, 1, 0)
    assert value["changes"][0]["before"] == "deny"
    assert value["changes"][0]["rule"] == "new/all"


def test_a_cut_file_is_tested_up_to_the_cut(tmp_path, root, capsys):
    path = recorded.session(root) / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    code, out = run(tmp_path, ALL + SYSTEM, root)
    assert code == 0
    assert "5 requests" in out
    assert "ends in half a line" in capsys.readouterr().err


def test_what_cannot_be_tested_did_not_pass(tmp_path, root, capsys):
    path = recorded.session(root) / "events.jsonl"
    path.write_bytes(path.read_bytes().replace(b"tollgate.dev/operation", b"tollgate.dev/something"))
    assert run(tmp_path, ALL + SYSTEM, root)[0] == 2
    assert "5 requests could not be read, so nothing is said about them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rules", "path", "said"),
    [
        pytest.param(ALL, "/none", "/none is not a folder", id="no folder"),
        pytest.param(ALL, "empty", "holds no recorded session", id="no recording"),
        pytest.param("- {name: x}\n", "recordings", "new.yaml:5: rules[0]", id="a bad policy"),
    ],
)
def test_bad_input(tmp_path, root, capsys, rules, path, said):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path, rules, tmp_path / path)[0] == 2
    assert said in capsys.readouterr().err


def test_a_bar_on_a_terminal(tmp_path, root, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    err = Terminal()
    monkeypatch.setattr("sys.stderr", err)
    assert run(tmp_path, ALL + SYSTEM, root)[0] == 0
    assert "%" in err.getvalue()
