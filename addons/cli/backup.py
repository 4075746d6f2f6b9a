"""`./run.sh backup FILE` and `./run.sh restore FILE`: the state in one file, and back."""

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from addons.cli.arguments import state_default
from addons.net import backups
from addons.net.store import StoreError

_DESCRIPTIONS = {
    "backup": "Copy approvals, grants, revocations and what is spent of budgets into a new file, while gateways work. "
    "Certificates and keys are files beside it, which it does not hold.",
    "restore": "Put a backup in the place of the state; the gateway must be stopped. Every approval that was pending "
    "or not used yet is void then and every grant has ended: each may have been used since. What was revoked or spent "
    "since stays so, and the state before is kept beside it.",
}
_FILES = {"backup": "a new file", "restore": "what backup has made"}
_EXITS = "\n\nExit status: 0 done, 1 not done (the sentence says why)."
_EPILOGS = {
    "backup": f"  ./run.sh backup /backups/tollgate-2026-07-28{_EXITS}",
    "restore": f"  ./run.sh restore /backups/tollgate-2026-07-28{_EXITS}",
}


def main(command: str, arguments: Sequence[str], out: TextIO | None = None, err: TextIO | None = None) -> int:
    p = argparse.ArgumentParser(
        prog=f"./run.sh {command}",
        description=textwrap.fill(_DESCRIPTIONS[command], 79),
        epilog=_EPILOGS[command],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("file", metavar="FILE", help=_FILES[command])
    p.add_argument(
        "--state",
        default=os.environ.get("TOLLGATE_STATE") or str(state_default()),
        metavar="DIR",
        help="the gateway's state folder (default: %(default)s)",
    )
    args = p.parse_args(list(arguments))
    out, err = out or sys.stdout, err or sys.stderr
    folder, file = Path(args.state).expanduser().absolute(), Path(args.file).expanduser().absolute()
    try:
        if command == "backup":
            backups.backup(folder, file)
            print(f"{folder} is in {file}", file=out)
        else:
            _say(backups.restore(folder, file, time.time()), folder, out, err)
    except StoreError as e:
        print(f"tollgate: {e}", file=err)
        return 1
    return 0


def _say(done: backups.Restored, folder: Path, out: TextIO, err: TextIO) -> None:
    print(f"{folder} is restored: {done.voided} approvals are void, {done.ended} grants have ended", file=out)
    if done.dropped:
        print(f"{done.dropped} entries could not be read and are gone", file=out)
    if done.revocations:
        print(f"{done.revocations} revocations made since the backup are still in force or known", file=out)
    if done.kept:
        print(f"the state before is {done.kept}", file=out)
    if done.unread:
        print(
            "tollgate: the state before could not be read, so what was revoked since the backup is not known; "
            "revoke it again before you start the gateway (./run.sh revoke --help)",
            file=err,
        )
