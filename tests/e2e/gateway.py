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
from typing import Any, Literal

from addons.cli import kubeconfig as client_kubeconfig
from addons.core import maskdetect
from addons.net.files import private_folder
from tests.cluster.build import cache_folder
from tests.e2e import onrecord

# "broken": the test breaks the recording on purpose, or what writes it, so reads may pass without a record.
# What changes, executes or reveals may not, whatever breaks.
Recording = Literal["whole", "broken"]

STARTED: list["Gateway"] = []  # in this run, for what is looked at when it ends
ROOT = Path(__file__).resolve().parents[2]
START_LIMIT = 40  # seconds; 3 are usual
STOP_LIMIT = 10  # seconds


class Gateway:
    """A running gateway. `log` is everything it printed."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        folder: Path,
        port: int,
        *,
        recordings: Path | None = None,
        state: Path | None = None,
        recording: Recording = "whole",
    ) -> None:
        """Of a process that a test starts in its own way, too: what it records is compared with the audit logs."""
        self.process = process
        self.folder = folder
        self.port = port
        self.url = f"https://127.0.0.1:{port}"
        self.recordings = recordings or folder / "recordings"
        self.state = state or folder / "state"
        self.recording = recording
        self.killed = False  # by SIGKILL: reads that waited to be written are lost then, as is documented
        self.began, self.ended = time.time(), 0.0  # seconds since the epoch
        self.record: onrecord.Record | None = None  # once it has ended
        STARTED.append(self)

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
            self.kill()
        self.read_record()

    def kill(self) -> None:
        """Not even a chance to write something down."""
        self.killed = self.killed or self.process.poll() is None
        self.process.kill()
        self.process.wait(STOP_LIMIT)
        self.ended = self.ended or time.time()

    def read_record(self) -> None:
        """Once, when it has ended: its folder may be gone, or damaged by its test, when the run ends."""
        if self.record is None and self.process.poll() is not None:
            self.ended = self.ended or time.time()
            self.record = onrecord.read(self.recordings, self.state)


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
    return _launched(folder, arguments, port, environment, root, command, "whole").process


def _launched(
    folder: Path,
    arguments: Sequence[str],
    port: int,
    environment: Mapping[str, str] | None,
    root: Path,
    command: str,
    recording: Recording,
) -> Gateway:
    folder.mkdir(parents=True, exist_ok=True)
    state, recordings = (
        Path(arguments[arguments.index(f"--{name}") + 1]) if f"--{name}" in arguments else folder / name
        for name in ("state", "recordings")
    )
    shutil.copytree(patterns(), private_folder(state) / "patterns", dirs_exist_ok=True)
    with (folder / "gateway.log").open("wb") as log:
        process = subprocess.Popen(
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
    return Gateway(process, folder, port, recordings=recordings, state=state, recording=recording)


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
    recording: Recording = "whole",
) -> Iterator[Gateway]:
    """A gateway with these arguments of `serve` or `web`, until the block ends."""
    port = free_port()
    gateway = _launched(folder, arguments, port, environment, root, command, recording)
    try:
        wait_open(gateway.process, folder, port)
        yield gateway
    finally:
        gateway.stop()
