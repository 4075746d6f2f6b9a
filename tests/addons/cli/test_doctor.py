"""The parts that look at this machine; the whole command is run in tests/e2e/test_doctor.py."""

import datetime
import io
import json
import os
import shutil
import socket

import pytest

from addons.cli import doctor
from addons.core.doctor import Finding, Level
from addons.net import apiserver, certificates

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def kubeconfig(tmp_path):
    path = tmp_path / "kubeconfig"
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "very-secret"}}],
    }
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return path


@pytest.fixture
def given(tmp_path, kubeconfig):
    (tmp_path / "recordings").mkdir()
    return ["--kubeconfig", str(kubeconfig), "--state", str(tmp_path / "state"), "--recordings",
            str(tmp_path / "recordings"), "--listen", "127.0.0.1:28444"]  # fmt: skip


@pytest.fixture
def setup(given):
    def make(*arguments):
        args = doctor.parser().parse_args([*given, *arguments])
        server = apiserver.load(args.kubeconfig)
        return doctor.Setup(args, server, server, NOW)

    return make


def levels(found):
    return [(one.check, one.level) for one in found]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(["--kubeconfig", "/absent"], 2, id="no kubeconfig"),
        pytest.param(["--nonsense"], 2, id="an unknown option"),
        pytest.param(["--only", "nothing"], 2, id="a bad stack"),
        pytest.param(["--help"], 0, id="help"),
        pytest.param([], 1, id="nobody there"),
        pytest.param(["--rbac"], 2, id="nobody to ask who the gateway is"),
    ],
)
def test_exit_codes(given, capsys, arguments, code):
    assert doctor.main([*given, *arguments]) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert "very-secret" not in said.out + said.err


def test_json(given):
    out = io.StringIO()
    assert doctor.main([*given, "--json"], out) == 1
    report = json.loads(out.getvalue())
    assert report["exitCode"] == 1
    assert report["findings"][0]["check"] == "upstream"
    assert report["findings"][0]["level"] == "problem"
    assert "\033" not in out.getvalue()


def test_the_table_shows_what_others_wrote_and_obeys_nothing():
    out = io.StringIO()
    found = [Finding("around", Level.PROBLEM, "pod \033[2J", "mend"), Finding("x", Level.OK, "good")]
    doctor.show(found, doctor.Screen(out))
    assert "\033" not in out.getvalue()  # no terminal, so no colours either
    assert out.getvalue().splitlines() == [
        "problem around      pod <U+001B>[2J",
        "                    mend",
        "ok      x           good",
        "1 problem, 0 warning, 0 note, 1 ok",
    ]


# Folders -------------------------------------------------------------------------------------


def test_folders_that_are_not_there_yet(setup):
    assert levels(doctor._folders(setup())) == [("folders", Level.NOTE), ("folders", Level.OK)]


@pytest.mark.parametrize(
    ("mode", "level"),
    [
        pytest.param(0o700, Level.OK, id="private"),
        pytest.param(0o755, Level.WARNING, id="others can look"),
        pytest.param(0o777, Level.PROBLEM, id="others can write"),
    ],
)
def test_modes_of_the_state_folder(setup, tmp_path, mode, level):
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    assert next(levels_of(doctor._folders(setup()))) is level


def levels_of(found):
    return (one.level for one in found)


def test_a_full_disk(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    *_, recordings = doctor._folders(setup())
    assert recordings.level is Level.WARNING


def test_nothing_is_made(given, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    doctor.main([*given, "--json"], io.StringIO())
    assert sorted(tmp_path.rglob("*")) == before


# Files ---------------------------------------------------------------------------------------


def test_a_kubeconfig_that_others_can_read(setup, kubeconfig):
    kubeconfig.chmod(0o644)
    assert ("files", Level.WARNING) in levels(doctor._files(setup()))
    kubeconfig.chmod(0o646)
    assert ("files", Level.PROBLEM) in levels(doctor._files(setup()))


def test_the_serving_certificate(setup, tmp_path):
    assert levels(doctor._files(setup())) == [("certificate", Level.NOTE)]
    (tmp_path / "state").mkdir(mode=0o700)
    certificates.ensure(tmp_path / "state", "127.0.0.1", NOW)
    assert levels(doctor._files(setup())) == [("certificate", Level.OK)]
    old = certificates.ensure(tmp_path / "old", "127.0.0.1", NOW - datetime.timedelta(days=400))
    assert levels(doctor._files(setup("--tls-cert", str(old.ca_file)))) == [("certificate", Level.OK)]
    assert levels(doctor._files(setup("--tls-cert", str(old.combined)))) == [("certificate", Level.PROBLEM)]
    assert levels(doctor._files(setup("--tls-cert", "/absent"))) == [("certificate", Level.PROBLEM)]


# Policies ------------------------------------------------------------------------------------

HEAD = "apiVersion: tollgate.dev/v1alpha1\nkind: Policy\nmetadata: {name: a}\n"
RULE = "rules: [{name: r, action: %s, match: {verbs: [get], resources: [pods]}}]\n"
HOLD = (RULE % "hold").replace("}}]", "}, approval: {groups: [oncall]}}]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(HEAD + RULE % "allow", [Level.OK], id="good"),
        pytest.param(HEAD + "mode: observe\n" + RULE % "allow", [Level.OK, Level.WARNING], id="observing"),
        pytest.param(HEAD + HOLD, [Level.OK, Level.WARNING], id="nobody approves"),
        pytest.param(HEAD + "ruls: []\n" + RULE % "allow", [Level.PROBLEM], id="a typo"),
    ],
)
def test_policies(setup, tmp_path, text, expected):
    (tmp_path / "p.yaml").write_text(text)
    found = list(doctor._policies(setup("--policies", str(tmp_path / "p.yaml"))))
    assert [one.level for one in found] == expected
    assert all("\n" not in one.text for one in found)


# The port ------------------------------------------------------------------------------------


def test_a_port_that_another_program_holds(setup):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{s.getsockname()[1]}"
        s.listen()
        s.close()
    assert levels(doctor._port(setup("--listen", where))) == [("port", Level.OK)]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{s.getsockname()[1]}"  # bound, and nobody listens: no gateway
        assert levels(doctor._port(setup("--listen", where))) == [("port", Level.PROBLEM)]
    assert levels(doctor._port(setup("--listen", "here"))) == [("port", Level.PROBLEM)]


def test_a_gateway_that_acts_as_itself_is_said(setup):
    assert ("identity", Level.WARNING) in levels(doctor._port(setup("--upstream-identity", "gateway")))


def test_options_come_from_the_environment_too(monkeypatch, kubeconfig):
    monkeypatch.setitem(os.environ, "TOLLGATE_KUBECONFIG", str(kubeconfig))
    assert doctor.parser().parse_args([]).kubeconfig == str(kubeconfig)
