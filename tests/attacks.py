"""
The table of attacks: every test marked `@pytest.mark.attack(CLASS)` is one row for each of its cases.

    @pytest.mark.attack("framing")                       what it must come to: refused
    @pytest.mark.attack("deputies", "harmless")          it may be done, and gains nothing

A test that says more (`result("403 agents/no-tunnels; nothing arrived")`, the fixture) has that in its
row; one that fails got through. One line at the end of the run, the whole table with `--attacks FILE`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REFUSED, THROUGH = "refused", "GOT THROUGH"
_CLASS, _RESULT = "attack", "attack-result"  # keys of a report's user properties


@dataclass(frozen=True)
class Row:
    attack_class: str
    attack: str
    result: str
    test: str


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--attacks", metavar="FILE", type=Path, help="write the table of attacks and results, Markdown")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "attack(class, outcome): a row of the table of attacks for each case")
    config.pluginmanager.register(Table(config.getoption("--attacks")), "table of attacks")


@pytest.fixture
def result(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Say in the attack's row what came of it."""
    return lambda text: record_property(_RESULT, text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if (mark := item.get_closest_marker("attack")) and (report.when == "call" or report.failed):
        said = [str(value) for key, value in report.user_properties if key == _RESULT]
        outcome = mark.args[1] if len(mark.args) > 1 else REFUSED
        if report.failed:
            # A set-up that failed proves nothing either.
            outcome, said = THROUGH, []
        if not report.skipped:
            row = Row(mark.args[0], name_of(item), "; ".join([outcome, *said]), item.nodeid)
            # In the report, which also comes from another process.
            report.user_properties.append((_CLASS, row))
    return report


def name_of(item: pytest.Item) -> str:
    """The case's name, behind what the test's name says."""
    plain = getattr(item, "originalname", item.name).removeprefix("test_").replace("_", " ")
    case = item.name.partition("[")[2].removesuffix("]")
    return f"{plain}: {case}" if case else plain


class Table:
    """The rows of one run."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.rows: dict[str, Row] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for key, row in report.user_properties:
            if key == _CLASS and isinstance(row, Row):
                self.rows[row.test] = row

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        rows = list(self.rows.values())
        if not rows:
            return
        counted = Counter(row.result.partition(";")[0] for row in rows)
        text = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counted.items()))
        terminalreporter.write_line(f"attacks: {len(rows)} tried, {text}")
        for row in rows:
            if row.result == THROUGH:
                terminalreporter.write_line(f"  {row.attack_class}: {row.attack} -> {row.result}")
        if self.file is not None:
            self.file.write_text(table(rows))


def table(rows: list[Row]) -> str:
    lines = ["| class | attack | result |", "| --- | --- | --- |"]
    for row in sorted(rows, key=lambda row: (row.attack_class, row.attack)):
        cells = (row.attack_class, row.attack, row.result)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
