"""The table of attacks: a row for each case, and one that got through is never called refused."""

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import pytest

@pytest.mark.attack("framing")
@pytest.mark.parametrize("sent", [pytest.param(1, id="CL.TE"), pytest.param(2, id="a | b")])
def test_two_lengths(sent, result):
    result("400; nothing arrived")

@pytest.mark.attack("deputies", "harmless")
def test_done_and_gains_nothing():
    pass

@pytest.mark.attack("hole")
def test_through(result):
    result("403")
    assert False

@pytest.fixture
def broken():
    raise OSError

@pytest.mark.attack("hole")
def test_that_could_not_begin(broken):
    pass

@pytest.mark.attack("none")
def test_that_was_not_tried():
    pytest.skip()

def test_of_something_else():
    pass
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(TESTS)
    return pytester.runpytest("-p", "tests.attacks", *arguments)


def test_one_line_and_what_got_through(pytester):
    lines = run(pytester).outlines
    assert "attacks: 5 tried, 2 GOT THROUGH, 1 harmless, 2 refused" in lines
    assert "  hole: through -> GOT THROUGH" in lines
    assert "  hole: that could not begin -> GOT THROUGH" in lines


def test_the_table(pytester):
    run(pytester, "--attacks", "table.md")
    table = (pytester.path / "table.md").read_text()
    assert "| framing | two lengths: CL.TE | refused; 400; nothing arrived |" in table
    assert "| framing | two lengths: a \\| b | refused; 400; nothing arrived |" in table
    assert "| deputies | done and gains nothing | harmless |" in table
    assert "was not tried" not in table
    assert "something else" not in table


def test_no_line_without_attacks(pytester):
    assert not [line for line in run(pytester, "-k", "something_else").outlines if line.startswith("attacks")]
