import io

import pytest

from addons.cli import report
from tests.addons.cli import recorded

ROOT_POLICY = recorded.Path(__file__).parents[3] / "policies" / "default.yaml"


@pytest.fixture
def root(tmp_path):
    return recorded.write(tmp_path)


def run(*arguments):
    out = io.StringIO()
    return report.main([str(a) for a in arguments], out), out.getvalue()


def test_a_page(root):
    code, out = run(root)
    assert code == 0
    assert out.startswith("<!DOCTYPE html>")
    assert "system:serviceaccount:shop:agent-ci" in out
    assert "rule permissive/system denies this" in out


def test_with_budgets(root):
    code, out = run(root, "--policies", ROOT_POLICY)
    assert code == 0
    assert "Budgets" in out


def test_into_a_private_file(root, tmp_path):
    code, out = run(root, "--out", tmp_path / "report.html")
    assert (code, out) == (0, "")
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "report.html").stat().st_mode & 0o077 == 0


def test_since(root):
    assert "agent-ci" in run(root, "--since", "2026-11-24")[1]
    assert "agent-ci" not in run(root, "--since", "2026-11-25")[1]


def test_what_could_not_be_read_is_in_it(root):
    path = recorded.session(root) / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert "events.jsonl ends in half a line, which is left out" in run(root)[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("/none",), "/none is not a folder", id="no folder"),
        pytest.param(("{root}", "--since", "x"), "is not a day", id="no day"),
        pytest.param(("{root}", "--policies", "/none"), "/none", id="no policy"),
        pytest.param(("{root}", "--out", "/none/x"), "/none/x cannot be written", id="no place"),
    ],
)
def test_in_one_sentence(root, capsys, arguments, said):
    assert run(*(a.format(root=root) for a in arguments))[0] == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
