"""The pages in docs/: complete, and with nothing in them that is no longer so."""

import ast
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.screenshots import __main__ as screenshots

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text()
MAKERS = {"Refusal": 1, "Refused": 1, "Problem": 1}  # what makes a refusal, and where its reason stands
# Made of a phase, as in `approval-void`: those whose words the code has, and that no other maker names.
BY_PHASE = {"approval-expired", "approval-cancelled"}


def calls() -> Iterator[ast.Call]:
    for script in sorted((ROOT / "addons").rglob("*.py")):
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in MAKERS and len(node.args) > 1:
                    yield node


REASONS = {call.args[1].value for call in calls() if isinstance(call.args[1], ast.Constant)} | BY_PHASE
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for section in TROUBLESHOOTING.split("\n## ")[2:]  # without the words of clients
    for line in section.splitlines()
    if line.startswith("| `")
]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def sentences() -> str:
    """All texts of the code, as written: what an f-string fills in keeps its braces."""
    found = []
    for script in sorted((ROOT / "addons").rglob("*.py")):
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else ast.unparse(v) for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found).replace("f'{MAX_HEAD}'", "{MAX_HEAD}")


def test_the_reasons_were_found():
    assert {"policy-deny", "approval-pending", "unauthorized", "no-such-path"} <= REASONS
    assert len(REASONS) > 80


def test_every_reason_has_an_entry_and_no_entry_is_stale():
    documented = {reason for row in ROWS for reason in quoted(row[1])}
    assert documented == REASONS


@pytest.mark.parametrize("text", [text for row in ROWS for text in quoted(row[0])])
def test_every_message_is_one_that_the_code_has(text):
    assert text in SENTENCES


SENTENCES = sentences()
AT_THE_START = re.findall(
    r"(?m)^\| `([^`]+)`", TROUBLESHOOTING.split("\n### When the gateway does not start\n")[1].split("\n## ")[0]
)


@pytest.mark.parametrize("text", AT_THE_START)
def test_every_message_of_a_start_is_one_that_the_code_has(text):
    assert len(AT_THE_START) > 10
    assert text in SENTENCES or text in (ROOT / "run.sh").read_text()


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


# ----- pictures -----

IMAGES = sorted((ROOT / "docs" / "images").iterdir())
PICTURE_LIMIT = 200_000  # bytes
SHOWN = {
    (page.parent / target).resolve()
    for page in [ROOT / "README.md", *DOCS]
    for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text())
}


def test_every_picture_that_is_shown_is_there_and_every_one_that_is_there_is_shown():
    assert {*IMAGES} <= SHOWN
    assert not [path for path in SHOWN if not path.is_file()]


def test_the_script_takes_all_of_them():
    assert {path.name for path in IMAGES} == {*screenshots.TERMINALS, *screenshots.PAGES}


@pytest.mark.parametrize("picture", IMAGES, ids=lambda path: path.name)
def test_a_picture_is_small_and_what_its_name_says(picture):
    data = picture.read_bytes()
    assert len(data) < PICTURE_LIMIT
    if picture.suffix == ".png":
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
    else:
        assert picture.suffix == ".svg"
        assert ET.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 (our own file)


@pytest.mark.parametrize("picture", [path for path in IMAGES if path.suffix == ".svg"], ids=lambda path: path.name)
def test_a_picture_shows_nothing_of_the_machine_and_fetches_nothing(picture):
    text = picture.read_text()
    assert not re.findall(r"/(?:root|home|tmp|Users|work)/|eyJ|canary-|<script|<image|@import|url\((?!#)", text)
    assert text.count("http://www.w3.org/2000/svg") == 1
    assert [*re.findall(r"https?://(?!127\.0\.0\.1|www\.w3\.org/2000/svg)", text)] == []
