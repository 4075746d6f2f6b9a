import pytest

from addons.cli import __main__ as cli


@pytest.mark.parametrize("word", ["help", "--help", "-h"])
def test_help(capsys, word):
    cli.main([word])
    shown = capsys.readouterr().out
    for command in (
        "serve",
        "web",
        "demo",
        "kubeconfig",
        "approvals",
        "revoke",
        "backup",
        "restore",
        "classify",
        "policy",
        "test",
    ):
        assert f"  {command} " in shown


def test_an_unknown_command_is_one_sentence(capsys):
    with pytest.raises(SystemExit, match="there is no command 'deploy'"):
        cli.main(["deploy"])


@pytest.mark.parametrize("argv", [["--listen", "x"], ["serve", "--listen", "x"], ["web", "--listen", "x"]])
def test_serve_is_the_default_command(argv):
    with pytest.raises(SystemExit, match="--listen"):
        cli.main(argv)
