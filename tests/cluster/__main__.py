"""
A control plane in the foreground: `python -m tests.cluster`, until Ctrl-C.
"""

import argparse
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType

from tests.cluster import build
from tests.cluster.controlplane import ControlPlane, ControlPlaneError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep its files here (new or empty; default: a temporary one)")
    parser.add_argument("--build-only", action="store_true", help="build the programs, print their folder, and end")
    parser.add_argument("--empty", action="store_true", help="without the content of content.yaml")
    options = parser.parse_args()
    try:
        if options.build_only:
            print(build.build().folder)
            return 0
        if options.folder:
            return serve(options.folder, options.empty)
        with tempfile.TemporaryDirectory(prefix="tollgate-cluster-") as folder:
            return serve(Path(folder), options.empty)
    except KeyboardInterrupt:
        return 130
    except (build.BuildError, ControlPlaneError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


def serve(folder: Path, empty: bool) -> int:
    build.build()  # before the clock starts, with a line that counts the seconds
    started, ended = time.monotonic(), threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    with ControlPlane.start(folder, progress=tell) as cluster:
        signal.signal(signal.SIGTERM, end)
        if not empty:
            tell("filling it")
            cluster.seed()
        tell(f"ready after {time.monotonic() - started:.1f} s; Ctrl-C ends it")
        print(f"export KUBECONFIG={cluster.admin_kubeconfig}", flush=True)
        ended.wait()
    return 0


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
