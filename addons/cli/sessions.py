"""`./run.sh sessions`: a table of what was recorded."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from addons.cli.arguments import recordings_default
from addons.cli.screen import Screen
from addons.core import sessions
from addons.net import recordings
from addons.net.recordings import RecordingError

EPILOG = """\
  ./run.sh sessions --user agent-ci --since 2026-11-24
  ./run.sh show 14-03-22-k3j9x2a1

Exit status: 0, or 1 when something could not be read (the sentence says what).
"""


def main(arguments: Sequence[str], out: TextIO | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="./run.sh sessions",
        description="Who did what, when: one line a session, the newest last.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--recordings", type=Path, default=recordings_default(), metavar="DIR", help="default: %(default)s")
    p.add_argument("--user", default="", metavar="TEXT", help="only usernames that contain it")
    p.add_argument("--since", default="", metavar="DAY", help="only from this day on, e.g. 2026-11-24")
    p.add_argument("--changed", action="store_true", help="only those that changed something")
    p.add_argument("--json", action="store_true", help="one JSON object a line")
    args = p.parse_args(arguments)
    try:
        return table(args, out or sys.stdout)
    except RecordingError as error:
        print(f"tollgate: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # no complaint at exit about the pipe that `head` closed
        return 1


def table(args: argparse.Namespace, out: TextIO) -> int:
    if args.since and sessions.day_of(args.since) is None:
        raise RecordingError(f"--since: {args.since!r} is not a day; write it as 2026-11-24")
    try:
        paths = [path for path in recordings.find_sessions(args.recordings) if path >= args.since]
    except OSError as e:
        raise RecordingError(f"{args.recordings} cannot be read: {e.strerror or e}") from None
    rows: list[list[str]] = []
    failed = 0
    for found in _load(args.recordings, sorted(paths, key=_when)):
        if isinstance(found, str):
            print(f"tollgate: {found}", file=sys.stderr)
            failed = 1
            continue
        index = found.index
        if args.user not in index.username or (args.changed and not index.changed):
            continue
        if args.json:
            value = {**dataclasses.asdict(index), "path": found.path, "notes": list(found.notes)}
            out.write(json.dumps(value) + "\n")
        else:
            rows.append(_row(found))
    if not args.json:
        head = ["session", "who", "when", "took", "commands", "requests", "changed", "refused", "approvals", ""]
        if rows:
            Screen(out).table(head, rows, right=range(4, 9))
        else:
            Screen(out).line(f"nothing is recorded in {args.recordings}, or nothing of that kind")
    return failed


def _when(path: str) -> tuple[str, str]:
    day, _, name = path.split("/")
    return day, name


def _load(root: Path, paths: Sequence[str]) -> list[recordings.Found | str]:
    found: list[recordings.Found | str] = []
    for path in paths:
        try:
            found.append(recordings.load(root, path))
        except RecordingError as e:
            found.append(str(e))
        except OSError as e:  # removed by retention at this moment, or not ours to read
            found.append(f"{path} cannot be read: {e.strerror or e}")
    return found


def _row(found: recordings.Found) -> list[str]:
    index = found.index
    remarks = [] if index.closed else ["open"]
    if index.part > 1:
        remarks.append(f"part {index.part}")
    if index.lost:
        remarks.append(f"{index.lost} records lost")
    if index.note and index.note != "nothing was lost":
        remarks.append("not closed properly")
    return [
        found.path.rsplit("/", 1)[-1],
        index.username,
        index.started[:19].replace("T", " "),
        sessions.duration(index.started, index.ended),
        str(index.commands),
        str(index.requests),
        str(index.changed),
        str(index.refused),
        str(index.approvals),
        ", ".join(remarks),
    ]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
