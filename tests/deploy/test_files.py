"""What can be said of deploy/ without a cluster and without a Docker engine."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from addons.cli import __main__ as commands
from addons.cli import serve
from tests.cluster import build

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OPTIONS = {
    "TOLLGATE_" + action.option_strings[-1].strip("-").replace("-", "_").upper()
    for action in serve.parser("serve")._actions
}


def instructions(word):
    """The arguments of each such instruction of the Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in text.splitlines() if line.split(maxsplit=1)[:1] == [word]]


# The image -----------------------------------------------------------------------------------


def test_the_dockerfile_passes_hadolint():
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, "--no-color", DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_image_runs_as_nobody_and_says_whether_it_lives():
    assert instructions("USER") == ["65532:65532"]
    assert json.loads(instructions("HEALTHCHECK")[0].partition("CMD ")[2]) == ["tollgate", "alive"]
    first, last = instructions("FROM")
    assert first == "${PYTHON} AS build"
    assert last == "${PYTHON}"
    (packages,) = [line for line in instructions("RUN") if "pip install" in line]
    for flag in ("--require-hashes", "--no-deps", "--only-binary :all:"):
        assert flag in packages


def test_the_build_sees_what_it_copies_and_nothing_else():
    copied = {line.split()[0] for line in instructions("COPY") if not line.startswith("--from")}
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / path).exists() for path in copied)


def environment_of_the_image():
    return dict(pair.split("=", 1) for pair in instructions("ENV")[0].split())


def test_each_variable_is_an_option_of_serve():
    """A misspelled one would silently be nothing."""
    unit = (DEPLOY / "systemd" / "tollgate.service").read_text()
    named = set(re.findall(r"\b(TOLLGATE_\w+)=", unit)) | set(environment_of_the_image())
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    named |= compose["services"]["gateway"]["environment"].keys()
    deployment = yaml.safe_load((DEPLOY / "kubernetes" / "base" / "deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    named |= {entry["name"] for entry in container["env"]}
    assert {name for name in named if name.startswith("TOLLGATE_")} <= OPTIONS


def test_each_command_line_is_one_of_ours():
    deployment = yaml.safe_load((DEPLOY / "kubernetes" / "base" / "deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    command, *options = container["args"]
    assert command == "serve"
    assert serve.parser("serve").parse_args(options).refuse_cluster_admin
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        program, command = container[probe]["exec"]["command"]
        assert program == "tollgate"
        assert f"\n  {command} " in commands.HELP


# Compose -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read_compose(tmp_path_factory):
    """Docker Compose's own loader, built from its Go module."""
    folder = tmp_path_factory.mktemp("compose")
    cache = build.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    go, _ = build.find_go(cache)
    command = [go, "build", "-buildvcs=false", "-o", str(folder / "read"), "."]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"}
    subprocess.run(command, cwd=Path(__file__).with_name("compose"), env=environment, timeout=600, check=True)

    def read(*profiles, file=DEPLOY / "compose.yaml", **variables):
        clean = {"PATH": os.environ["PATH"], "HOME": str(folder), **variables}
        return subprocess.run([folder / "read", file, *profiles], env=clean, capture_output=True, text=True, timeout=60)

    return read


@pytest.mark.e2e  # Go, and its module proxy the first time
def test_compose(read_compose):
    project = json.loads(read_compose(TOLLGATE_KUBECONFIG="/etc/tollgate/kubeconfig").stdout)
    assert project["services"].keys() == {"gateway"}  # Prometheus is a choice
    one = project["services"]["gateway"]
    assert one["user"] == "65532:65532"
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert {port["host_ip"] for port in one["ports"]} == {"127.0.0.1"}
    assert one["build"] == {"context": str(ROOT), "dockerfile": "deploy/Dockerfile"}
    written = {v["target"] for v in one["volumes"] if not v.get("read_only")} | {t.split(":")[0] for t in one["tmpfs"]}
    assert written == {"/var/lib/tollgate", "/tmp"}
    for name in ("TOLLGATE_STATE", "TOLLGATE_RECORDINGS"):
        assert environment_of_the_image()[name].startswith("/var/lib/tollgate/")
    assert project["secrets"]["kubeconfig"]["file"] == "/etc/tollgate/kubeconfig"


@pytest.mark.e2e
def test_compose_with_prometheus(read_compose):
    project = json.loads(read_compose("prometheus", TOLLGATE_KUBECONFIG="/k", TOLLGATE_BIND="10.0.0.1").stdout)
    assert project["services"]["prometheus"]["network_mode"] == "service:gateway"
    assert project["services"]["gateway"]["ports"][0]["host_ip"] == "10.0.0.1"
    (scraped,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    # It scrapes where the gateway beside it listens, and where the documentation says.
    (target,) = scraped["static_configs"][0]["targets"]
    assert project["services"]["gateway"]["environment"]["TOLLGATE_METRICS"] == target
    for text in ("deploy/observability/prometheus.yaml", "README.md", "docs/operations.md"):
        assert target in (DEPLOY.parent / text).read_text()


@pytest.mark.e2e
def test_compose_says_what_is_missing(read_compose, tmp_path):
    done = read_compose()
    assert done.returncode == 1
    assert "the gateway's own kubeconfig" in done.stderr
    # And it would have said if something in the file were no field of Compose's.
    broken = tmp_path / "compose.yaml"
    broken.write_text((DEPLOY / "compose.yaml").read_text().replace("cap_drop:", "cap_drops:"))
    done = read_compose(file=broken, TOLLGATE_KUBECONFIG="/k")
    assert done.returncode == 1
    assert "cap_drops" in done.stderr


# systemd -------------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path):
    """The unit, with this Python in the place of the one that it names."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("this machine has no systemd-analyze")
    text = (DEPLOY / "systemd" / "tollgate.service").read_text()
    path = tmp_path / "tollgate.service"
    path.write_text(text.replace("/opt/tollgate/.venv/bin/python", sys.executable))
    return path


def analyze(*arguments):
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


def test_the_unit_is_valid(unit):
    done = analyze("verify", str(unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("NoNewPrivileges", "NoNewPrivilege"))
    assert "NoNewPrivilege" in analyze("verify", str(unit)).stderr


def test_the_unit_exposes_little(unit):
    done = analyze("security", "--offline=true", "--threshold=20", str(unit))  # 2.0 of 10
    assert done.returncode == 0, done.stdout
