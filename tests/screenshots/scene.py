"""
What the pictures show: the demo's cluster and policies, a gateway in mitmweb, an agent and an approver.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from addons.cli import demo
from tests.cluster.controlplane import ControlPlane
from tests.e2e import gateway, policies
from tests.screenshots.terminal import Program

# People's answers stream through and mitmweb has no copy of them, unless a rule wants them on record.
ON_RECORD = """\
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: people}
rules:
- name: secrets-on-record
  action: allow
  match: {subjects: [people], verbs: [get], resources: [secrets]}
  record: full
"""
PROMPT = "\033[1;32m{who}$\033[0m \033[1m{line}\033[0m"


class Scene:
    """A gateway before a seeded cluster, and whom the pictures are about."""

    def __init__(self, folder: Path, controlplane: ControlPlane, running: gateway.Gateway) -> None:
        self.folder = folder
        self.gateway = running
        # Programs by their plain names, in a folder of their own: no path of this machine is on a picture.
        home = folder / "work"
        home.mkdir()
        program = home / "run.sh"
        program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-m", "addons.cli"])} "$@"\n')
        program.chmod(0o700)
        self.home = home
        self.environment = controlplane.kubectl_env()
        self.environment |= {
            "PATH": f"{controlplane.programs.folder}{os.pathsep}{self.environment['PATH']}",
            "PYTHONPATH": str(gateway.ROOT),
        }
        self.kubeconfigs = {
            who: running.kubeconfig(who, controlplane.token(namespace, account, audience=audience))
            for who, (namespace, account, audience) in demo.ACCOUNTS.items()
        }

    def start(self, who: str, line: str, columns: int) -> Program:
        """A line that `who` types, on a terminal."""
        environment = self.environment | {"KUBECONFIG": str(self.kubeconfigs[who])}
        return Program(["sh", "-c", line], self.home, environment, columns)

    def say(self, who: str, line: str, columns: int) -> str:
        """The line and what came of it, as on a screen."""
        with self.start(who, line, columns) as program:
            return f"{prompt(who, line)}\n{program.finish()}"

    def quiet(self, who: str, line: str) -> str:
        """What the line prints, for nobody's eyes."""
        environment = self.environment | {"KUBECONFIG": str(self.kubeconfigs[who])}
        done = subprocess.run(
            ["sh", "-c", line], cwd=self.home, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.stdout

    def pending(self) -> Sequence[str]:
        """The names of the approvals that wait."""
        items = json.loads(self.quiet("approver", "kubectl get approvals -o json"))["items"]
        return [item["metadata"]["name"] for item in items if item["status"]["phase"] == "Pending"]

    def interface(self) -> tuple[str, str]:
        """mitmweb's address and its token."""
        found = re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\w+)", self.gateway.log)
        if found is None:
            raise RuntimeError("mitmweb did not say where it listens")
        return found[1], found[2]


def prompt(who: str, line: str) -> str:
    return PROMPT.format(who=who, line=line)


@contextlib.contextmanager
def web(folder: Path, controlplane: ControlPlane, own: Path) -> Iterator[Scene]:
    """The scene, with mitmweb."""
    rules = policies.patient(folder / "policies")
    (rules / "people.yaml").write_text(ON_RECORD)
    port = gateway.free_port()
    arguments = ["--kubeconfig", str(own), "--policies", str(rules), "--web", f"127.0.0.1:{port}"]
    with gateway.running(folder, *arguments, command="web") as running:
        yield Scene(folder, controlplane, running)
