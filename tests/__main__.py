"""
`./run.sh test`: lint, types, layers, unit tests, and the end-to-end tests on a real control
plane. The last line is pytest's own.

    ./run.sh test                 everything but the long ones
    ./run.sh test --long          the long ones too
    ./run.sh test --unit          no control plane: seconds
    ./run.sh test -- PYTEST-ARGS  only pytest, with these arguments
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CHECKS = (
    ("lint", ("ruff", "check", "--quiet", ".")),
    ("format", ("ruff", "format", "--quiet", "--check", ".")),
    ("types", ("mypy", "--no-error-summary")),
    ("layers", ("lint-imports", "--no-cache", "--no-logo")),
)


def check(name: str, command: Sequence[str]) -> bool:
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=600)
    print(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}", flush=True)
    if done.returncode:
        print(done.stdout + done.stderr, flush=True)
    return done.returncode == 0


def main(argv: Sequence[str]) -> int:
    own, extra = list(argv), []
    if "--" in own:
        at = own.index("--")
        own, extra = own[:at], own[at + 1 :]
    p = argparse.ArgumentParser(
        prog="./run.sh test", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    p.add_argument("--long", action="store_true", help="also the tests that take minutes")
    p.add_argument("--unit", action="store_true", help="without the control plane")
    args = p.parse_args(own)
    pytest = [sys.executable, "-m", "pytest"]
    if extra:
        return subprocess.run([*pytest, *extra], cwd=ROOT).returncode
    good = [check(name, command) for name, command in CHECKS]  # all of them, not up to the first failure
    if args.unit:
        pytest += ["-m", "not e2e and not long"]
    else:
        from tests.cluster import build

        build.build(lambda text: print(f"control plane: {text}", flush=True))  # minutes the first time
        if not args.long:
            pytest += ["-m", "not long"]
    tested = subprocess.run(pytest, cwd=ROOT).returncode
    # pytest's 5 is "no tests ran": nothing was proven, so it counts as a failure too.
    return tested or (0 if all(good) else 1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
