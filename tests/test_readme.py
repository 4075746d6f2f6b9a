"""What the README promises: every option of every addon and command is in it."""

import re
from pathlib import Path

import pytest

from addons.cli import serve

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
OPTIONS = sorted(
    {
        name
        for script in (ROOT / "addons").rglob("*.py")
        for name in re.findall(r'add_option\(\s*"(tollgate_\w+)"', script.read_text())
    }
)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_addon_option_is_documented(option):
    assert f"`{option}`" in README


@pytest.mark.parametrize("command", ["serve", "web"])
def test_every_launcher_option_is_documented(command):
    for action in serve.parser(command)._actions:
        assert f"`{action.option_strings[-1]}" in README or action.dest == "help"


def test_the_options_were_found():
    assert "tollgate_stack" in OPTIONS
    assert len(OPTIONS) > 10


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_threat_model_names_tests_that_are_there():
    text = (ROOT / "docs" / "threat-model.md").read_text()
    named = re.findall(r"`((?:tests|policies)/[\w./]+)`", text)
    assert len(named) > 10
    assert not [path for path in named if not (ROOT / path).exists()]
