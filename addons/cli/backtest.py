"""`./run.sh backtest --policies NEW PATH...`: recorded sessions through another policy, offline."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from addons.cli.arguments import recordings_default
from addons.cli.screen import Progress, Screen
from addons.core import backtest, policy, policyfile
from addons.core.backtest import Bench, Result
from addons.core.model import Action
from addons.net import recordings
from addons.net.recordings import DiskFolder, RecordingError

EPILOG = """\
Exit status: 0 when nothing that was allowed would be refused, 1 when something would, 2 when it
could not be run. Budgets are not counted, since they depend on the hour. A rule that looks at an
object which was not recorded is taken as the gateway takes it when the object cannot be fetched:
it matches when it denies or holds, and does not when it allows.

  ./run.sh backtest --policies new/ recordings/
  ./run.sh backtest --policies new.yaml --holds recordings/2026-11-24
"""
_COLOURS = {Action.ALLOW: "green", Action.HOLD: "yellow", Action.DENY: "red"}


def main(arguments: Sequence[str], out: TextIO | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="./run.sh backtest",
        description="Which verdicts would change under another policy, by rule, with examples.",
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
    p.add_argument("--policies", required=True, metavar="NEW", help="file or folder; several joined with ':'")
    p.add_argument("--holds", action="store_true", help="exit 1 as well when what was allowed would be held")
    p.add_argument("--json", action="store_true", help="one JSON object")
    args = p.parse_args(arguments)
    try:
        policies = policyfile.load([Path(part).expanduser() for part in args.policies.split(os.pathsep) if part])
        folders = recordings.collect(args.paths or [recordings_default()])
        result, notes = run(policies, folders)
        (_json if args.json else _text)(result, policies, out or sys.stdout)
    except (policy.PolicyError, RecordingError) as error:
        print(f"tollgate: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # no complaint at exit about the pipe that `head` closed
        return 2
    for note in notes:
        print(f"tollgate: {note}", file=sys.stderr)
    if result.unreadable or not result.requests:
        # direction: what could not be tested did not pass.
        what = f"{result.unreadable} requests could not be read" if result.unreadable else "there are no requests"
        print(f"tollgate: {what}, so nothing is said about them", file=sys.stderr)
    if result.broken or (args.holds and result.held):
        return 1
    return 2 if result.unreadable or not result.requests else 0


def run(policies: policy.PolicySet, folders: Sequence[DiskFolder]) -> tuple[Result, list[str]]:
    result = Result()
    notes: list[str] = []
    tester = Bench(policies)
    sizes = [folder.size() for folder in folders]
    progress = Progress(sys.stderr, sum(sizes))
    done = 0
    for folder, size in zip(folders, sizes, strict=True):
        backtest.run(tester, _events(folder, notes, progress, done, size), result)
        done += size
    progress.done()
    return result, notes


def _events(
    folder: DiskFolder, notes: list[str], progress: Progress, before: int, size: int
) -> Iterator[Mapping[str, Any]]:
    for number, item in enumerate(recordings.stream_events(folder)):
        if isinstance(item, str):
            notes.append(f"{folder.path}: {item}")
            continue
        if number % 500 == 0:
            progress.at(before + min(size, number * 2000), folder.path.name)
        yield item


def _text(result: Result, policies: policy.PolicySet, out: TextIO) -> None:
    screen = Screen(out)
    ordered = sorted(result.changes.values(), key=lambda c: (-(c.passed and c.after is Action.DENY), -c.count, c.rule))
    for change in ordered:
        before = "approved" if change.before is Action.HOLD and change.passed else change.before.name.lower()
        by = f"by {change.rule}" if change.rule else "since no rule matches"
        screen.line(f"{before} -> {change.after.name.lower()}  {change.count} {by}", _COLOURS[change.after])
        for text in change.examples:
            screen.line(f"    {text}")
    if result.uncertain:
        screen.line(f"{result.uncertain} hang on objects that were not recorded", "yellow")
    if result.unjudged:
        screen.line(f"{result.unjudged} were refused before any policy was asked")
    screen.line(
        f"{result.requests} requests, revision {policies.revision}: {result.changed} would change, "
        f"{result.broken} that were allowed would be refused, {result.held} would be held, "
        f"{result.opened} that were refused would be allowed",
        "red" if result.broken else "green",
    )


def _json(result: Result, policies: policy.PolicySet, out: TextIO) -> None:
    value = {
        "revision": policies.revision,
        "requests": result.requests,
        "changed": result.changed,
        "broken": result.broken,
        "held": result.held,
        "opened": result.opened,
        "uncertain": result.uncertain,
        "unjudged": result.unjudged,
        "unreadable": result.unreadable,
        "changes": [
            {
                "before": change.before.name.lower(),
                "after": change.after.name.lower(),
                "rule": change.rule,
                "allowedThen": change.passed,
                "count": change.count,
                "examples": change.examples,
            }
            for change in result.changes.values()
        ],
    }
    out.write(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
