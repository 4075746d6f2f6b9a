"""`./run.sh report`: one HTML page about what was recorded."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from addons.cli.arguments import recordings_default
from addons.cli.screen import Progress
from addons.core import auditevents, policy, policyfile, report, sessions
from addons.core.report import Collector
from addons.net import files, recordings
from addons.net.recordings import DiskFolder, RecordingError

EPILOG = """\
Per identity: reach, refusals, and how much of the budgets of --policies was used. The page holds
everything it needs; nothing is fetched when it is opened.

  ./run.sh report > report.html
  ./run.sh report --since 2026-11-24 --policies policies/ --out report.html

Exit status: 0, or 1 when there is no page (the sentence says why).
"""


def main(arguments: Sequence[str], out: TextIO | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="./run.sh report",
        description="One self-contained HTML page with plots.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help=f"folders of recordings, days or sessions; default: {recordings_default()}",
    )
    p.add_argument("--since", default="", metavar="DAY", help="only sessions from this day on, e.g. 2026-11-24")
    p.add_argument("--policies", default="", metavar="PATH", help="whose budgets are counted; several joined with ':'")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the page there, private; default: print it")
    args = p.parse_args(arguments)
    try:
        text = make(args)
        if args.out:
            files.write_private(args.out, text.encode())
        else:
            (out or sys.stdout).write(text)
    except (RecordingError, policy.PolicyError) as error:
        print(f"tollgate: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # no complaint at exit about the pipe that `head` closed
        return 1
    except OSError as error:
        print(f"tollgate: {args.out} cannot be written: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def make(args: argparse.Namespace) -> str:
    """The page. Raises RecordingError, PolicyError."""
    if args.since and sessions.day_of(args.since) is None:
        raise RecordingError(f"--since: {args.since!r} is not a day; write it as 2026-11-24")
    parts = [Path(part).expanduser() for part in args.policies.split(os.pathsep) if part]
    policies = policyfile.load(parts) if parts else None
    folders = [f for f in recordings.collect(args.paths or [recordings_default()]) if _day(f) >= args.since]
    collected = Collector(policies)
    progress = Progress(sys.stderr, len(folders))
    for number, folder in enumerate(sorted(folders, key=lambda f: (_day(f), f.path.name))):
        progress.at(number, folder.path.name)
        collected.session(_events(folder, collected))
    progress.done()
    return report.page(collected, auditevents.timestamp(time.time())[:16].replace("T", " ") + " UTC")


def _day(folder: DiskFolder) -> str:
    path = folder.path.resolve()
    return path.parents[1].name if len(path.parents) > 1 else ""


def _events(folder: DiskFolder, collected: Collector) -> Iterator[Mapping[str, Any]]:
    for item in recordings.stream_events(folder):
        if isinstance(item, str):
            collected.notes.append(f"{folder.path}: {item}")
        else:
            yield item


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
