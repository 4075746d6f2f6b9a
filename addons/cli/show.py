"""`./run.sh show SESSION`: the story of a session: commands, what was decided, what changed."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from addons.cli.arguments import recordings_default
from addons.cli.screen import Screen
from addons.core import auditevents, sessions
from addons.net import recordings
from addons.net.recordings import DiskFolder, RecordingError

EPILOG = """\
SESSION is what `./run.sh sessions` prints, its id, or a folder.

  ./run.sh show 14-03-22-k3j9x2a1
  ./run.sh show --changes k3j9x2a1         # only what changed something or was refused
  ./run.sh show --curl k3j9x2a1            # each request as a curl command line

Exit status: 0, or 1 when there is no such session or it could not be read.
"""
_COLOURS = {"allow": "green", "hold": "yellow", "deny": "red"}


def main(arguments: Sequence[str], out: TextIO | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="./run.sh show",
        description="What one session did, command by command.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("session", metavar="SESSION", help="which one, see below")
    p.add_argument("--recordings", type=Path, default=recordings_default(), metavar="DIR", help="default: %(default)s")
    p.add_argument("--changes", action="store_true", help="leave out requests that only read")
    p.add_argument("--no-diff", action="store_true", help="leave out what the objects were and became")
    form = p.add_mutually_exclusive_group()
    form.add_argument("--curl", action="store_true", help="each request as a curl command line")
    form.add_argument("--json", action="store_true", help="the events, joined by request, one JSON object a line")
    args = p.parse_args(arguments)
    try:
        return show(args, out or sys.stdout)
    except RecordingError as error:
        print(f"tollgate: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # no complaint at exit about the pipe that `head` closed
        return 1


def find(root: Path, name: str) -> tuple[DiskFolder, str]:
    """The folder of a session, wherever it is, and what to call it. Raises RecordingError."""
    path = Path(name)
    if path.is_dir() and recordings.is_session(path):
        return DiskFolder(path), path.resolve().name
    found = recordings.resolve(root, name)
    return DiskFolder(root / found), found


def show(args: argparse.Namespace, out: TextIO) -> int:
    folder, name = find(args.recordings, args.session)
    read = recordings.read_events(folder)
    if args.curl or args.json:
        for request in sessions.requests(read.events):
            if args.changes and not _matters(request):
                continue
            if args.json:
                out.write(json.dumps(request.event) + "\n")
            else:
                out.write(sessions.printable(sessions.curl(request.event)) + "\n")
        return _notes(read.notes)
    screen = Screen(out)
    _head(screen, name, folder, read)
    for command in sessions.timeline(read.events):
        requests = [one for one in command.requests if not args.changes or _matters(one)]
        if requests:
            screen.line()
            screen.line(f"{_clock(command.started)}  {command.text}", "bold")
            for request in requests:
                _request(screen, request, diff=not args.no_diff)
    for number, seconds in sessions.clock_jumps(read.events):
        read.notes.append(f"the gateway's clock went back by {round(seconds)} s before event {number}")
    return _notes(read.notes)


def _head(screen: Screen, name: str, folder: DiskFolder, read: recordings.Read) -> None:
    tally = sessions.Tally()
    for event in read.events:
        tally.add(event)
    screen.line(name, "bold")
    took = sessions.duration(tally.first, tally.last)
    screen.line(f"who:     {tally.username}")
    for label, values in _credentials(read).items():
        screen.line(f"{label + ':':8} {', '.join(values)}")
    screen.line(f"when:    {tally.first[:19].replace('T', ' ')} UTC, {took}")
    screen.line(
        f"what:    {len(tally.commands)} commands, {tally.requests} requests, {tally.changed} changed something, "
        f"{tally.refused} refused" + (f", {tally.lost} records lost" if tally.lost else "")
    )
    casts = sorted(one for one in folder.names() if one.endswith(".cast"))
    for cast in casts:
        screen.line(f"stream:  asciinema play {folder.path / cast}")


def _credentials(read: recordings.Read) -> dict[str, list[str]]:
    """With which tokens, from where, by which programs: each said once."""
    found: dict[str, dict[str, None]] = {"token": {}, "from": {}, "client": {}}
    for event in read.events:
        notes = auditevents.notes_of(event)
        try:
            identity = json.loads(notes.get(auditevents.IDENTITY, "{}"))
        except ValueError:
            continue
        token = notes.get(auditevents.CREDENTIAL, "")
        issuer = identity.get("issuer", "") if isinstance(identity, dict) else ""
        if token:
            found["token"][f"{token}{f' of {issuer}' if issuer else ''}"] = None
        sources = event.get("sourceIPs")
        for source in sources if isinstance(sources, list) else ():
            found["from"][str(source)] = None
        if isinstance(event.get("userAgent"), str) and event["userAgent"]:
            found["client"][event["userAgent"]] = None
    return {label: list(values)[:5] for label, values in found.items() if values}


def _matters(request: sessions.Request) -> bool:
    verb = request.event.get("verb")
    refused = bool(request.notes.get(auditevents.REFUSED_BY))
    return refused or verb not in ("get", "list", "watch", "head") or request.notes.get(auditevents.IMPACT) == "execute"


def _clock(timestamp: str) -> str:
    return timestamp[11:19]


def _request(screen: Screen, request: sessions.Request, *, diff: bool) -> None:
    notes = request.notes
    colour = "red" if notes.get(auditevents.REFUSED_BY) else ""
    verdict = request.verdict
    shown = screen.paint(verdict, _COLOURS.get(verdict.partition(" ")[0].rstrip(","), ""))
    started = request.event.get("requestReceivedTimestamp")
    line = f"  {_clock(started) if isinstance(started, str) else '':8}  {request.summary}  -> {request.outcome}"
    screen.raw(screen.paint(line, colour) + (f"  [{shown}]" if verdict else ""))
    told = (("reach", auditevents.REACH), ("not whole", auditevents.TRUNCATED), ("lost before", auditevents.LOST))
    for label, key in told:
        if notes.get(key):
            screen.line(f"            {label}: {notes[key]}", "dim")
    if notes.get(auditevents.EDITED):
        screen.line("            edited by an operator, and judged again", "yellow")
    if diff:
        for text in sessions.changes(request):
            colour = {"-": "red", "+": "green"}.get(text[:1], "dim")
            screen.line(f"            {text}", colour)


def _notes(notes: Sequence[str]) -> int:
    for note in notes:
        print(f"tollgate: {sessions.printable(note)}", file=sys.stderr)
    return 0  # what could be read was shown


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
