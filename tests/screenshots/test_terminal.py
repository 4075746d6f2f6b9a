"""The pictures of terminals, without a cluster or a browser."""

import os
import sys
import xml.etree.ElementTree as ET

import pytest

from tests.screenshots import terminal

ASKS = "import os; print('size', os.get_terminal_size().columns); print('got', input('name? '))"


def program(tmp_path, script, columns=60):
    return terminal.Program([sys.executable, "-c", script], tmp_path, os.environ, columns)


def words(svg):
    return "".join(ET.fromstring(svg).itertext()).replace("\xa0", " ")  # noqa: S314 (made here)


def test_a_program_has_a_terminal_and_reads_what_is_typed(tmp_path):
    with program(tmp_path, ASKS) as one:
        one.wait_for("name? ")
        one.type("ann\n")
        assert one.finish() == "size 60\nname? ann\ngot ann\n"


def test_what_never_comes_is_one_sentence(tmp_path):
    with program(tmp_path, "print('this')") as one, pytest.raises(terminal.NotSeen, match="'that' did not appear"):
        one.wait_for("that")


def test_a_program_that_goes_on_is_one_sentence(tmp_path):
    with program(tmp_path, "print('begun', flush=True); input()") as one:
        one.wait_for("begun")
        with pytest.raises(terminal.NotSeen, match="did not end"):
            one.finish(seconds=0.1)


@pytest.mark.parametrize(
    ("printed", "left"),
    [
        pytest.param("a\r\nb\r\n", "a\nb\n", id="lines"),
        pytest.param("\r\x1b[K[##..] 50%\r\x1b[K[####]\r\x1b[Kdone\r\n", "done\n", id="a bar that was overwritten"),
        pytest.param("\a\x1b[31mred\x1b[0m\r\n", "\x1b[31mred\x1b[0m\n", id="a bell; colours stay"),
    ],
)
def test_what_is_left_on_the_screen(printed, left):
    assert terminal.plain_lines(printed) == left


def test_a_picture_has_the_words_and_the_colours():
    made = terminal.svg("\x1b[31mrefused\x1b[0m <b>&\nnext", "an agent", 40)
    assert "an agent" in words(made)
    assert "refused" in words(made)
    assert "<b>&" in words(made)
    assert "#e06c75" in made  # the theme's red


def test_a_picture_fetches_nothing():
    made = terminal.svg("x", "y", 40)
    assert made.count("http") == made.count('xmlns="http://www.w3.org/2000/svg"') == 1
    assert "@font-face" not in made


def test_the_same_transcript_is_the_same_picture():
    assert terminal.svg("x", "y", 40) == terminal.svg("x", "y", 40)
