"""The layout that shared names promise: a test file for every source file, and addons as thin as agreed."""

import ast
import sys
from pathlib import Path

import pytest
from mitmproxy import hooks

import addons.core  # noqa: F401 (imported so that a missing package fails here, with its name)

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(p.relative_to(ROOT) for p in (ROOT / "addons").rglob("*.py") if not p.name.startswith("__"))
SCRIPTS = sorted((ROOT / "addons").glob("[!_]*.py"))


def test_of(source: Path) -> Path:
    below = source.relative_to("addons") if source.parts[1] == "core" else source
    return ROOT / "tests" / below.parent / f"test_{below.name}"


test_of.__test__ = False  # type: ignore[attr-defined]  # for pytest, which would take it for a test


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_every_source_has_its_test_file(source):
    assert test_of(source).is_file(), f"expected {test_of(source).relative_to(ROOT)}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_scripts(script):
    tree = ast.parse(script.read_text())
    assert script.stem not in sys.stdlib_module_names
    names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)}
    names |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    assert not names & hooks.all_hooks.keys()  # mitmproxy would call it as the script's own hook
    assert "addons" in names
    assert f'name = "tollgate_{script.stem}"' in script.read_text()
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.Name) and node.id == "dataclass")  # crashes under -s


def test_top_level():
    allowed = {"addons", "policies", "recordings", "tests", "deploy", "docs", "pyproject.toml", "README.md", "run.sh",
               "requirements.lock", "LICENSE", "CHANGELOG.md"}  # fmt: skip
    assert {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} <= allowed
