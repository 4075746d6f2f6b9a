import io

from addons.cli.screen import Progress, Screen


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_table():
    out = io.StringIO()
    Screen(out).table(["a", "n"], [["x\x1b", "1"], ["yyyyy", "222"]], right=[1])
    assert out.getvalue() == "a          n\nx\\u001b    1\nyyyyy    222\n".replace("x\\u001b    1", "x\\u001b    1")


def test_no_colour_elsewhere():
    out = io.StringIO()
    Screen(out).line("x", "red")
    assert out.getvalue() == "x\n"


def test_colour_on_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    Screen(out).line("x\x1b", "red")
    assert out.getvalue() == "\033[31mx\\u001b\033[0m\n"
    monkeypatch.setenv("NO_COLOR", "")
    out = Terminal()
    Screen(out).line("x", "red")
    assert out.getvalue() == "x\n"


def test_a_bar_on_a_terminal_only():
    out, other = Terminal(), io.StringIO()
    for stream in (out, other):
        bar = Progress(stream, 200)
        for n in range(201):
            bar.at(n, "what\n")
        bar.done()
    assert other.getvalue() == ""
    assert "[###############...............]  50% what\\u000a" in out.getvalue()
    assert out.getvalue().count("%") == 101
    assert out.getvalue().endswith("\r\033[K")


def test_a_bar_of_nothing():
    Progress(Terminal(), 0).at(0)
