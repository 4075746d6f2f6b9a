"""`./run.sh verify [PATH]`: whether a recording is what was recorded, and what cannot be said of it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from addons.cli.arguments import recordings_default
from addons.cli.screen import Progress, Screen
from addons.core import chain, chainverify
from addons.core.chainverify import Report
from addons.net import recordings
from addons.net.recordings import DiskFolder, RecordingError

EPILOG = """\
Exit status: 0 when nothing is wrong, 1 when something is, 2 when it could not be looked at.

Checkpoints are signed by the gateway's key. Whoever has that key can write another history, so
without an anchor a clean recording is consistent and no more. An anchor is a file of checkpoints
that had left the machine: what syslog, a webhook's receiver or the gateway's stdout has kept.

  ./run.sh verify
  ./run.sh verify recordings/2026-11-24/agent-ci@shop/14-03-22-k3j9x2a1
  ./run.sh verify --key recording.pub --anchor /var/log/remote/tollgate.log
"""


def main(arguments: Sequence[str], out: TextIO | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="./run.sh verify",
        description="Find the first edit, loss, insertion, reorder or truncation in a recording.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "path",
        nargs="?",
        type=Path,
        default=recordings_default(),
        metavar="PATH",
        help="a folder of recordings or one session; default: %(default)s",
    )
    p.add_argument(
        "--key",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="the gateway's public key (recording.pub in its state folder); several when it was changed",
    )
    p.add_argument("--anchor", type=Path, metavar="FILE", help="checkpoints that had left the machine")
    p.add_argument("--json", action="store_true", help="one JSON object")
    p.add_argument("-q", "--quiet", action="store_true", help="only the last line")
    args = p.parse_args(arguments)
    try:
        report = check(args.path, args.key, args.anchor)
    except RecordingError as error:
        print(f"tollgate: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"tollgate: {error.filename or args.path} cannot be read: {error.strerror or error}", file=sys.stderr)
        return 2
    try:
        (_json if args.json else _text)(report, out or sys.stdout, quiet=args.quiet)
    except BrokenPipeError:
        sys.stderr.close()  # no complaint at exit about the pipe that `head` closed
    return 1 if report.wrong else 0


def check(path: Path, keys: Sequence[Path] = (), anchor: Path | None = None) -> Report:
    """Raises RecordingError, OSError."""
    trusted = [_key(file) for file in keys]
    anchored = None
    if anchor is not None:
        with anchor.open("rb") as file:
            anchored = chain.anchors(file)
    if not path.is_dir():
        raise RecordingError(f"{path} is not a folder; name a folder of recordings or a session")
    root = path.resolve()
    if recordings.is_root(root):
        return _all(root, trusted, anchored)
    if not recordings.is_session(root):
        raise RecordingError(f"{path} is neither a folder of recordings nor a session")
    above = root.parents[2] if len(root.parents) > 2 else root
    name = str(root.relative_to(above))
    if recordings.is_root(above) and chainverify.sessions_known(recordings.checkpoint_lines(above), name):
        report = _all(above, trusted, anchored, only=name)
        report.notes.append(f"checked with the checkpoints of {above}")
        return report
    if anchored is not None:
        raise RecordingError("--anchor needs the whole folder of recordings, whose checkpoints are one chain")
    return chainverify.check_alone(DiskFolder(root), root.name, trusted=trusted)


def _all(root: Path, trusted: Sequence[bytes], anchored: Sequence[bytes] | None, only: str = "") -> Report:
    # In this order, since a gateway may be writing: what begins after the checkpoints were read is not
    # in them, and what had begun before must be there afterwards.
    there = set(recordings.find_sessions(root))
    lines = list(recordings.checkpoint_lines(root))
    new = set(recordings.find_sessions(root)) - there
    there |= {path for path in new if chainverify.sessions_known(lines, path)}
    progress = Progress(sys.stderr, len(there))
    done = 0

    def step(path: str) -> None:
        nonlocal done
        done += 1
        progress.at(done, path)

    try:
        return chainverify.check_all(
            lines,
            there,
            lambda path: DiskFolder(root / path),
            trusted=trusted,
            anchor=anchored,
            progress=step,
            only=only,
        )
    finally:
        progress.done()


def _key(file: Path) -> bytes:
    try:
        return chain.read_public_key(file.read_bytes())
    except chain.ChainError as e:
        raise RecordingError(f"--key {file}: {e}") from None


def _text(report: Report, out: TextIO, *, quiet: bool) -> None:
    screen = Screen(out)
    if not quiet:
        for session in report.sessions:
            if session.findings:
                state, colour = "NOT CLEAN", "red"
            elif session.unproven:
                state, colour = f"clean, the last {session.unproven} unproven", "yellow"
            else:
                state, colour = "clean", "green"
            since = f" since {session.proven_at[:19]}Z" if session.unproven and session.proven_at else ""
            still = "" if session.closed else ", still open"
            screen.line(f"{session.path}: {session.events} events, {state}{since}{still}", colour)
        for finding in report.wrong:
            screen.line(f"  {finding}", "red")
        for note in (*report.notes, *(note for session in report.sessions for note in session.notes)):
            screen.line(f"  note: {note}", "dim")
        if report.keys:
            screen.line(f"signed with {', '.join(report.keys)}, up to checkpoint {report.last}")
    unproven = sum(session.unproven for session in report.sessions)
    if unproven:
        screen.line(f"{unproven} events since the last checkpoints are unproven")
    screen.line(chainverify.verdict(report), "red" if report.wrong else "green")


def _json(report: Report, out: TextIO, *, quiet: bool) -> None:
    value = {
        "clean": not report.wrong,
        "verdict": chainverify.verdict(report),
        "anchored": report.anchored,
        "checkpoints": report.last,
        "keys": report.keys,
        "findings": [{"kind": f.kind, "place": f.place, "sentence": f.sentence} for f in report.wrong],
        "notes": report.notes,
        "sessions": [
            {
                "path": s.path,
                "events": s.events,
                "proven": s.proven,
                "unproven": s.unproven,
                "closed": s.closed,
                "notes": s.notes,
            }
            for s in report.sessions
        ],
    }
    out.write(json.dumps(value, indent=None if quiet else 1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
