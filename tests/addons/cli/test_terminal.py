import asyncio
import io
import os
import pty
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.cli import terminal
from addons.cli.terminal import Keyboard, Screen, Styled


class Tty(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def tty(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Tty()


@given(st.text())
def test_whatever_is_shown_is_one_line_of_letters(text):
    out = io.StringIO()
    Screen(out).line(text, Styled(text, "red"))
    Screen(out).table([[text, "a"], ["b", Styled(text, "dim")]])
    Screen(out).prompt(text)
    shown = out.getvalue()
    assert shown.count("\n") == 3
    bad = {c for c in shown.replace("\n", "") if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}
    assert not bad


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("a\nb\tc", "a b c", id="lines and tabs"),
        pytest.param("\x1b[31m", "<U+001B>[31m", id="an escape"),
        pytest.param("\x9b31m", "<U+009B>31m", id="an escape of one byte"),
        pytest.param("a\rb\x08", "a<U+000D>b<U+0008>", id="going back"),
        pytest.param("a\u202eb", "a<U+202E>b", id="right to left"),
        pytest.param("Grüße 名前", "Grüße 名前", id="letters"),
    ],
)
def test_visible(text, shown):
    assert terminal.visible(text) == shown


def test_colours_at_a_terminal(tty):
    Screen(tty).line(Styled("a\x1b", "red"), "b", Styled("", "red"))
    assert tty.getvalue() == "\033[31ma<U+001B>\033[0mb\n"


def test_no_colours(tty, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    Screen(tty).line(Styled("a", "red"))
    out = io.StringIO()
    Screen(out).line(Styled("a", "red"))
    Screen(out).bell()
    assert tty.getvalue() == out.getvalue() == "a\n"


def test_a_bell(tty):
    Screen(tty).bell()
    assert tty.getvalue() == "\a"


def test_columns(tty):
    out = io.StringIO()
    Screen(out).table([["A", "B"], ["名前", "x"], ["e\u0301", "\x1b"], [Styled("abcdef", "red"), "y"]])
    assert out.getvalue() == "A       B\n名前    x\ne\u0301       <U+001B>\nabcdef  y\n"
    Screen(tty).table([[Styled("abc", "red"), "y"], ["a", "y"]])
    assert tty.getvalue() == "\033[31mabc\033[0m  y\na    y\n"


@pytest.fixture
def keyboard(tty):
    master, slave = pty.openpty()
    with os.fdopen(slave, "r+b", buffering=0) as raw:
        yield Keyboard(io.TextIOWrapper(raw), Screen(tty)), master
    os.close(master)


async def begun(tty, text):
    async with asyncio.timeout(5):
        while text not in tty.getvalue():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("typed", "answer"),
    [(b" yes \n", "yes"), (b"\n", ""), (b"\x04", None), (b"\xff\n", "�"), ("né\n".encode(), "né")],
)
async def test_an_answer(keyboard, tty, typed, answer):
    one, master = keyboard
    asking = asyncio.create_task(one.ask("Sure? "))
    await begun(tty, "Sure? ")
    os.write(master, typed)
    assert await asyncio.wait_for(asking, 5) == answer


async def test_what_was_typed_before_is_no_answer(keyboard, tty):
    one, master = keyboard
    os.write(master, b"yes\n")
    asking = asyncio.create_task(one.ask("Sure? "))
    await begun(tty, "Sure? ")
    os.write(master, b"no\n")
    assert await asyncio.wait_for(asking, 5) == "no"


async def test_a_question_can_be_taken_back(keyboard, tty):
    one, master = keyboard
    asking = asyncio.create_task(one.ask("Sure? "))
    await begun(tty, "Sure? ")
    asking.cancel()
    await asyncio.wait((asking,))
    again = asyncio.create_task(one.ask("Really? "))
    await begun(tty, "Really? ")
    os.write(master, b"y\n")
    assert await asyncio.wait_for(again, 5) == "y"


def test_whether_anybody_is_there(keyboard, tty):
    one, _ = keyboard
    assert one.somebody
    assert not Keyboard(io.StringIO(), Screen(tty)).somebody
    assert not Keyboard(None, Screen(tty)).somebody
