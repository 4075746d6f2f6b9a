"""One gateway process as people run it: `addons.cli serve`, which becomes mitmdump."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from addons.cli import kubeconfig as client_kubeconfig
from addons.core import maskdetect
from addons.net.files import private_folder
from tests.cluster.build import cache_folder

STARTED: list["Gateway"] = []  # in this run, for what is looked at when it ends
ROOT = Path(__file__).resolve().parents[2]
START_LIMIT = 40  # seconds; 3 are usual
STOP_LIMIT = 10  # seconds


class Gateway:
    """A running gateway. `log` is everything it printed."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, port: int) -> None:
        self.process = process
        self.folder = folder
        self.port = port
        self.url = f"https://127.0.0.1:{port}"

    @property
    def ca_file(self) -> Path:
        return self.folder / "state" / "tls" / "ca.crt"

    @property
    def log(self) -> str:
        return (self.folder / "gateway.log").read_text(errors="replace")

    def kubeconfig(self, name: str, token: str, namespace: str = "") -> Path:
        """A kubeconfig for a client with this token."""
        path = self.folder / f"{name}.kubeconfig"
        user: dict[str, Any] = {"token": token}
        path.write_text(json.dumps(client_kubeconfig.build(self.url, self.ca_file.read_bytes(), user, namespace)))
        return path

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_LIMIT)


@cache
def patterns() -> Path:
    """The compiled patterns of secrets, which each gateway would otherwise take 3 s for at its first start."""
    folder = private_folder(cache_folder() / "patterns")
    maskdetect.warm(str(folder))
    return folder


def free_port() -> int:
    """A port that was free a moment ago, from the kernel."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def launch(
    folder: Path,
    arguments: Sequence[str],
    *,
    port: int,
    environment: Mapping[str, str] | None = None,
    root: Path = ROOT,
    command: str = "serve",
) -> subprocess.Popen[bytes]:
    """Start `serve` or `web` and return at once."""
    folder.mkdir(parents=True, exist_ok=True)
    state = Path(arguments[arguments.index("--state") + 1]) if "--state" in arguments else folder / "state"
    shutil.copytree(patterns(), private_folder(state) / "patterns", dirs_exist_ok=True)
    with (folder / "gateway.log").open("wb") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "addons.cli",
                command,
                "--listen",
                f"127.0.0.1:{port}",
                "--state",
                str(folder / "state"),
                "--recordings",
                str(folder / "recordings"),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(root), **(environment or {})},
            start_new_session=True,
        )


def wait_open(process: subprocess.Popen[bytes], folder: Path, port: int) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the gateway left with {process.returncode}:\n{(folder / 'gateway.log').read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"the gateway did not open its port:\n{(folder / 'gateway.log').read_text()}")


@contextlib.contextmanager
def running(
    folder: Path,
    *arguments: str,
    root: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    command: str = "serve",
) -> Iterator[Gateway]:
    """A gateway with these arguments of `serve` or `web`, until the block ends."""
    port = free_port()
    process = launch(folder, arguments, port=port, root=root, environment=environment, command=command)
    gateway = Gateway(process, folder, port)
    STARTED.append(gateway)
    try:
        wait_open(process, folder, port)
        yield gateway
    finally:
        gateway.stop()
