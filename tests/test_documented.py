"""
Every command in the documentation is run by a test, or says here why it is not; and every `./run.sh` in it
has the options that it names. Which test runs which: tests/e2e/test_documented.py and the pages' own.
"""

import contextlib
import io
import re
import shlex
from functools import cache

import pytest

from addons.cli import __main__ as cli
from tests import __main__ as test_command
from tests import documented
from tests.e2e import test_docs, test_documented

FENCED = [command for page in documented.PAGES for command in documented.fenced(page)]
# Pages of which a test runs the blocks as a whole, whatever is in them.
BY_PAGE = {"docs/deployment.md": "tests/e2e/test_deployment_docs.py"}
BY_SECTION = {
    ("docs/mcp.md", "On your cluster"),
    *(("docs/approvals.md", one) for one in ("Once: a kubeconfig for decisions", "Being asked", "Looking", "Deciding")),
}
ELSEWHERE = {
    "./run.sh": "tests/e2e/gateway.py starts it for every end-to-end test",
    "./run.sh demo": "tests/e2e/test_demo.py",
    "./run.sh web": "tests/e2e/test_web.py",
    ".venv/bin/python -m tests.screenshots": "tests/e2e/test_screenshots.py",
    "./run.sh serve --reuse-port --recordings recordings/a --metrics 127.0.0.1:9464": "tests/e2e/test_drain.py",
    "./run.sh serve --reuse-port --recordings recordings/b --metrics 127.0.0.1:9465": "tests/e2e/test_drain.py",
    "curl -fsS 127.0.0.1:9465/readyz": "tests/e2e/test_drain.py",
    "./run.sh verify recordings/a && ./run.sh verify recordings/b": "tests/e2e/test_drain.py",
}
NOT_RUN = {
    "./run.sh test": "it is what runs this",
    "./run.sh bench": "it takes minutes, and is no test",
    "./run.sh bench --peer PATH": "likewise, and needs another program",
    "./run.sh bench --large": "likewise",
    "./run.sh bench --curves": "likewise",
    "./run.sh bench --million": "likewise",
}
RUN = test_documented.LINES | set(ELSEWHERE) | set(NOT_RUN)
HELPS = ("serve", "web", "demo", "kubeconfig", "approvals", "approvals list", "approvals show", "approvals approve",
         "approvals deny", "approvals watch", "revoke", "revoke list", "revoke lift", "backup", "restore",
         "policy", "policy check", "policy test", "policy explain", "policy schema", "policy reference",
         "sessions", "show", "verify", "report", "backtest", "replay", "doctor", "alive", "classify")  # fmt: skip


def by_its_page(command):
    if command.page in BY_PAGE:
        return True
    page = command.page.removeprefix("docs/")
    sections = [section for name, section in BY_SECTION if name == command.page]
    return any(
        line.partition("  #")[0].strip() == command.line
        for section in sections
        for line in test_docs.commands(page, section)
    )


@pytest.mark.parametrize("command", FENCED, ids=lambda command: f"{command.page}: {command.line[:60]}")
def test_every_command_is_run_or_says_why_not(command):
    assert command.line in RUN or command.marked or by_its_page(command)


def test_no_entry_is_stale():
    assert not RUN - {command.line for command in FENCED}


def test_a_block_that_says_so_is_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("Run:\n\n```\n./run.sh a\n```\n\nBy Docker (*not run here*):\n\n```\ndocker b\n```\n")
    assert documented.fenced(page) == [("page.md", "./run.sh a", False), ("page.md", "docker b", True)]


def test_they_were_found():
    assert len(FENCED) > 60
    assert any(command.line.startswith("kubectl create -f - <<END\napiVersion") for command in FENCED)


@cache
def helped(command):
    """What `--help` says of `revoke`, or of `revoke list`."""
    words = command.split()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        test_command.main(["--help"]) if words == ["test"] else cli.main([*words, "--help"])
    return said.getvalue()


def run_sh(text):
    """The calls of ./run.sh in a line, each as its words up to `--` or a shell's sign."""
    for part in re.split(r"[;|]|&&", text):
        if "./run.sh" in part:
            words = shlex.split(part[part.index("./run.sh") :], comments=True)[1:]
            end = next((n for n, word in enumerate(words) if word == "--" or word[0] in "<>"), len(words))
            yield words[:end]


def is_option(word, shown):
    """Whether the list of options has it; the examples do not count."""
    return re.search(rf"(?m)^  (?:-\w[^,\n]*, )?{re.escape(word)}(?![\w-])", shown)


def wrong(text):
    """What a line says that its command does not know."""
    for words in run_sh(text):
        command = words[0] if words and not words[0].startswith("-") else "serve"
        if command == "bench" or "…" in command:
            continue
        sub = " ".join(words[:2]) if " ".join(words[:2]) in HELPS else command
        shown = helped(sub)
        if not shown:
            yield f"there is no {command}"
        yield from (w for w in words if w.startswith("-") and not is_option(w, shown))


INLINE = {command.line for page in documented.PAGES for command in documented.inline(page)}
# Options of ours before `--` go to pytest after it, and to tests/attacks.py.
EVERYWHERE = sorted(INLINE | {command.line for command in FENCED if "./run.sh" in command.line})


@pytest.mark.parametrize("line", EVERYWHERE)
def test_the_options_are_there(line):
    assert not list(wrong(line))


def test_what_is_not_there_is_seen():
    assert list(wrong("./run.sh revoke --everybody")) == ["--everybody"]
    assert list(wrong("x | ./run.sh sessions --change ; ./run.sh revoke list --reason x")) == ["--change", "--reason"]
    assert list(wrong("./run.sh revok"))


# ----- the help of the commands -----


@pytest.mark.parametrize("command", HELPS)
def test_help_has_an_example_that_is_right(command):
    shown = helped(command)
    flat = re.sub(r"\s+", " ", shown)
    if " " in command:  # the examples are its command's
        assert command in flat
        return
    assert re.search(rf"(?m)^  .*\./run\.sh {command}\b", shown)
    for line in re.findall(r"(?m)^  (.*\./run\.sh .*)$", shown):
        assert not list(wrong(line.partition("  # ")[0])), line


@pytest.mark.parametrize("command", [command for command in HELPS if " " not in command])
def test_help_says_how_it_exits(command):
    assert re.search(r"Exit status: 0\b", helped(command))


@pytest.mark.parametrize("command", HELPS)
def test_help_explains_every_option(command):
    """argparse shows an option without help as its name alone."""
    lines = helped(command).splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.match(r"  -", line):
            assert re.match(r"  -.*?  +\S", line) or following.startswith(" " * 10), line
