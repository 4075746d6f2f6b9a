import argparse
import contextlib
import datetime
import json
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from addons.cli import serve
from addons.core import stack

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def kubeconfig(tmp_path):
    path = tmp_path / "kubeconfig"
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://k8s.example:6443"}}],
        "users": [{"name": "u", "user": {"token": "very-secret"}}],
    }
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def plan(tmp_path, kubeconfig):
    def make(*arguments, command="serve", extra=()):
        given = ["--kubeconfig", str(kubeconfig), "--state", str(tmp_path / "state"),
                 "--recordings", str(tmp_path / "recordings"), "--listen", "127.0.0.1:28443", *arguments]  # fmt: skip
        return serve.plan(command, serve.parser(command).parse_args(given), extra, NOW)

    return make


def settings(plan):
    return dict(a.split("=", 1) for a, before in zip(plan.argv[1:], plan.argv, strict=False) if before == "--set")


def scripts(made):
    return [a.rsplit("/", 1)[1] for a, before in zip(made.argv[1:], made.argv, strict=False) if before == "-s"]


def test_the_command_line(plan):
    made = plan(extra=("--set", "x=y"))
    assert made.argv[0].endswith("mitmdump")
    assert "reverse:https://k8s.example:6443" in made.argv
    assert "--no-server" in made.argv  # the guard opens the port
    assert scripts(made) == [f"{name}.py" for name in ("guard", *stack.ORDER, *stack.AIDS)]
    assert settings(made)["tollgate_stack"] == ",".join(stack.ORDER)
    assert made.argv[-1] == "--set=x=y"
    assert "very-secret" not in made.command()


def test_without_the_engine_the_guard_demands_the_same(plan):
    made = plan("--without", "engine")
    assert "engine.py" not in made.command()
    assert settings(made) == settings(plan())


@pytest.mark.parametrize("extra", [("--set", "body_size_limit=5m"), ("--set=body_size_limit=5m",)])
def test_the_callers_own_settings_replace_ours(plan, extra):
    made = plan(extra=(*extra, "-v"))
    assert settings(made)["body_size_limit"] == "5m"
    assert made.argv[-1] == "-v"
    assert sum("body_size_limit" in a for a in made.argv) == 1


def test_web(plan):
    made = plan("--web", "127.0.0.1:28081", command="web")
    assert made.argv[0].endswith("mitmweb")
    assert settings(made)["web_port"] == "28081"
    assert scripts(made)[-3:] == ["upstream.py", "view.py", "engine.py"]
    assert "view.py" not in scripts(plan())
    assert scripts(plan("--only", "authenticate,upstream", command="web"))[-2:] == ["view.py", "engine.py"]


def columns(made):
    return [a.rpartition("web_columns=")[2] for a in made.argv if "web_columns=" in a]


def test_the_list_of_mitmweb_has_the_comments(plan):
    assert columns(plan(command="web")) == [*serve.WEB_COLUMNS]
    assert "comment" in serve.WEB_COLUMNS
    assert columns(plan()) == []
    assert columns(plan(command="web", extra=("--set", "web_columns=path"))) == ["path"]


def test_every_option_has_an_environment_variable(monkeypatch):
    monkeypatch.setenv("TOLLGATE_UPSTREAM_IDENTITY", "gateway")
    monkeypatch.setenv("TOLLGATE_OBSERVE", "1")
    args = serve.parser("serve").parse_args([])
    assert args.upstream_identity == "gateway"
    assert args.observe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--listen", "8443"], "--listen: '8443' is not HOST:PORT", id="no host"),
        pytest.param(["--listen", "127.0.0.1:99999"], "is not HOST:PORT", id="port too large"),
        pytest.param(["--kubeconfig", "/absent"], "there is no file /absent", id="no kubeconfig"),
        pytest.param(["--policies", "/absent"], "--policies: ", id="no policy"),
        pytest.param(["--auth", "/absent"], "/absent", id="no auth file"),
        pytest.param(["--only", "classfy"], "there is no addon 'classfy'", id="misspelled addon"),
        pytest.param(["--without", "authenticate"], "nobody to impersonate", id="nobody to impersonate"),
        pytest.param(["--tls-cert", "x"], "belong together", id="half a certificate"),
        pytest.param(["--state", "/proc/nothing"], "/proc/nothing", id="no state folder"),
    ],
)
def test_one_sentence_each(plan, arguments, message):
    with pytest.raises(serve.UsageError, match=message) as e:
        plan(*arguments)
    assert "Traceback" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("rules: [", "--policies", id="not YAML"),
        pytest.param("apiVersion: tollgate.dev/v1alpha1\nkind: Policy\nmetadata: {name: a}\nrules: []\nruls: 1\n",
                     "ruls", id="a typo"),
    ],
)  # fmt: skip
def test_a_broken_policy(plan, tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(serve.UsageError, match=message):
        plan("--policies", str(tmp_path / "p.yaml"))


def test_a_taken_port(plan):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        taken = s.getsockname()[1]
        with pytest.raises(serve.UsageError, match=f"cannot listen on 127.0.0.1:{taken}"):
            plan("--listen", f"127.0.0.1:{taken}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:1", ("127.0.0.1", 1)), ("[::1]:8443", ("::1", 8443)), ("0.0.0.0:443", ("0.0.0.0", 443))],  # noqa: S104
)
def test_address(text, expected):
    assert serve.address(text, "--listen") == expected


def test_main_ends_with_a_sentence(capsys):
    with pytest.raises(SystemExit, match="tollgate: --listen"):
        serve.main("serve", ["--listen", "x"])


def test_help_names_all_options(capsys):
    with pytest.raises(SystemExit):
        serve.parser("serve").parse_args(["--help"])
    shown = capsys.readouterr().out
    for action in serve.parser("serve")._actions:
        assert not isinstance(action, argparse._StoreAction) or action.option_strings[0] in shown


def test_mitmproxys_folder_is_not_writable(plan, tmp_path):
    plan()
    folder = tmp_path / "state" / "mitmproxy"
    assert folder.stat().st_mode & 0o777 == 0o500


@pytest.fixture
def public():
    """A folder that every user may pass; pytest's own are private."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("option", ["--tls-key", "--kubeconfig", "KUBECONFIG", "--state"])
def test_a_key_that_all_can_read_is_refused(plan, kubeconfig, public, monkeypatch, option):
    made = public / "state" / "tls" / "ca.key" if option == "--state" else public / "given"
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(kubeconfig.read_text())
    given = {
        "--tls-key": ["--tls-key", str(made), "--tls-cert", str(made)],
        "--kubeconfig": ["--kubeconfig", str(made)],
        "KUBECONFIG": ["--kubeconfig", ""],
        "--state": ["--state", str(public / "state")],
    }[option]
    monkeypatch.setenv("KUBECONFIG", str(made) if option == "KUBECONFIG" else str(kubeconfig))
    made.chmod(0o644)
    with pytest.raises(serve.UsageError, match="every user can read it") as e:
        plan(*given)
    assert str(made) in str(e.value)
    assert "very-secret" not in str(e.value)
    made.chmod(0o640)
    with contextlib.suppress(serve.UsageError):
        plan(*given)
    assert not serve.filemodes.exposed_at(made)


def test_a_kubeconfig_without_a_secret_may_be_read(plan, kubeconfig, public):
    config = json.loads(kubeconfig.read_text())
    config["users"][0]["user"] = {"tokenFile": str(kubeconfig)}
    (public / "config").write_text(json.dumps(config))
    (public / "config").chmod(0o644)
    plan("--kubeconfig", str(public / "config"))


@pytest.mark.parametrize("option", ["--auth", "--tls-key", "--kubeconfig", "--policies", "--state"])
def test_what_others_can_write_is_refused(plan, kubeconfig, tmp_path, option):
    file = tmp_path / "given"
    if option == "--state":
        file.mkdir()
    else:
        file.write_text(kubeconfig.read_text() if option == "--kubeconfig" else "apiVersion: x")
    file.chmod(0o777)
    more = ["--tls-cert", str(file)] if option == "--tls-key" else []
    if option == "--auth":
        issuer = {"url": "https://issuer.example", "audiences": ["tollgate"]}
        mappings = {"username": {"claim": "sub", "prefix": "oidc:"}}
        head = {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration"}
        file.write_text(json.dumps({**head, "jwt": [{"issuer": issuer, "claimMappings": mappings}]}))
    with pytest.raises(
        serve.UsageError, match=rf"^{option if not more else '--tls-cert'}: .*(every user can|can be written by others)"
    ):
        plan(option, str(file), *more)


@pytest.mark.parametrize(
    ("arguments", "wanted", "measures"),
    [
        pytest.param([], {"tollgate_log": "text"}, False, id="none"),
        pytest.param(["--log", "json"], {"tollgate_log": "json"}, False, id="log"),
        pytest.param(["--metrics", "127.0.0.1:29464"], {"tollgate_metrics": "127.0.0.1:29464"}, True, id="metrics"),
        pytest.param(["--traces", "http://c:4318/v1/traces"], {"tollgate_traces": "http://c:4318/v1/traces"}, True,
                     id="traces"),
        pytest.param(["--owner-claim", "owner"], {"tollgate_owner_claim": "owner"}, False, id="owners"),
    ],
)  # fmt: skip
def test_what_is_measured_and_revoked(plan, arguments, wanted, measures):
    made = plan(*arguments)
    assert wanted.items() <= settings(made).items()
    scripts = [a.rsplit("/", 1)[1] for a, before in zip(made.argv[1:], made.argv, strict=False) if before == "-s"]
    assert (scripts[-1] == "metrics.py") is measures  # last: nobody stands behind it
    assert "metrics" not in settings(made)["tollgate_stack"]


def test_owners_who_have_left(plan, tmp_path):
    file = tmp_path / "departed"
    file.write_text("alice\n")
    made = plan("--owner-claim", "owner", "--departed-owners", str(file))
    assert settings(made)["tollgate_departed_owners"] == str(file)
    for content, arguments, says in (
        ("alice", ["--departed-owners", str(file)], "needs --owner-claim"),
        ("a\0b", ["--owner-claim", "o", "--departed-owners", str(file)], "--departed-owners: .*line 1"),
        ("alice", ["--owner-claim", "o", "--departed-owners", str(file) + "x"], "--departed-owners: "),
    ):
        file.write_text(content)
        with pytest.raises(serve.UsageError, match=says):
            plan(*arguments)
    file.chmod(0o666)
    with pytest.raises(serve.UsageError, match="--departed-owners"):
        plan("--owner-claim", "o", "--departed-owners", str(file))


def test_the_port_of_metrics_is_an_address(plan):
    with pytest.raises(serve.UsageError, match="--metrics"):
        plan("--metrics", "9464")


def test_a_port_that_is_shared():
    """Only where both say so."""
    with socket.socket() as alone, socket.socket() as sharing:
        alone.bind(("127.0.0.1", 0))
        alone.listen()
        with pytest.raises(serve.UsageError, match="--listen: cannot listen"):
            serve.check_free(*alone.getsockname(), "--listen", shared=True)
        sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sharing.bind(("127.0.0.1", 0))
        sharing.listen()
        serve.check_free(*sharing.getsockname(), "--listen", shared=True)
        with pytest.raises(serve.UsageError, match="--listen: cannot listen"):
            serve.check_free(*sharing.getsockname(), "--listen")


def test_sharing_is_for_linux(plan, monkeypatch):
    assert "tollgate_reuse_port=true" in plan("--reuse-port").argv
    assert "tollgate_reuse_port=false" in plan().argv
    monkeypatch.setattr(serve.sys, "platform", "darwin")
    with pytest.raises(serve.UsageError, match="works on Linux only"):
        plan("--reuse-port")
