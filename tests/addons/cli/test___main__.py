import pytest

from addons.cli import __main__ as cli


@pytest.mark.parametrize("word", ["help", "--help", "-h"])
def test_help(capsys, word):
    cli.main([word])
    shown = capsys.readouterr().out
    recorded = ("sessions", "show", "verify", "report", "backtest", "replay", "revoke", "backup", "restore")
    for command in ("serve", "web", "demo", "kubeconfig", "approvals", "classify", "policy", "test", *recorded):
        assert f"  {command} " in shown


def test_an_unknown_command_is_one_sentence(capsys):
    with pytest.raises(SystemExit, match="there is no command 'deploy'"):
        cli.main(["deploy"])


@pytest.mark.parametrize(
    "command", ["sessions", "show", "verify", "report", "backtest", "replay", "policy", "classify"]
)
def test_every_command_has_its_own_help(capsys, command):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert f"run.sh {command}" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--listen", "x"], ["serve", "--listen", "x"], ["web", "--listen", "x"]])
def test_serve_is_the_default_command(argv):
    with pytest.raises(SystemExit, match="--listen"):
        cli.main(argv)
