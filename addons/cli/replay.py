"""`./run.sh replay SESSION --onto KUBECONFIG`: a recorded session sent to another cluster."""

import argparse
import asyncio
import hashlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from mitmproxy import http

from addons.cli import show
from addons.cli.arguments import recordings_default
from addons.cli.screen import Screen
from addons.core import auditevents, backtest, chain, masktags, replay
from addons.core.replay import Compared, Recorded, Step
from addons.mitm import flowcopies
from addons.net import apiserver, recordings
from addons.net.recordings import DiskFolder, RecordingError

EPILOG = """\
KUBECONFIG names the cluster (or a gateway before it) and whose rights are used: no credential is
recorded, so none can be sent. Without --for-real everything is a dry run, changes nothing, and
what cannot be made a dry run is not sent; a delete then leaves its object there for the next one.
Streams (exec, attach, port-forward, watches, logs -f) and masked values are never sent.

Exit status: 0 when all that was sent had the outcome it had then, 1 when something differed,
2 when it could not be run.

  ./run.sh replay 14-03-22-k3j9x2a1 --onto staging.kubeconfig
  ./run.sh replay 14-03-22-k3j9x2a1 --onto throwaway.kubeconfig --for-real
"""
PURPOSE = "replay"
TIMEOUT = 60.0  # seconds; a held request waits for its approval


def main(arguments: Sequence[str], out: TextIO | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="./run.sh replay",
        description="Send the exact sequence of a recorded session to a staging cluster, and say what differed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("session", metavar="SESSION")
    p.add_argument("--onto", required=True, metavar="KUBECONFIG", help="where to; never the recorded cluster by itself")
    p.add_argument("--recordings", type=Path, default=recordings_default(), metavar="DIR", help="default: %(default)s")
    p.add_argument("--for-real", action="store_true", help="no dry run: everything is really done there")
    p.add_argument("--refused", action="store_true", help="also what the gateway refused then")
    p.add_argument("--no-reads", action="store_true", help="only what changes something")
    p.add_argument("--plan", action="store_true", help="only say what would be sent")
    args = p.parse_args(arguments)
    screen = Screen(out or sys.stdout)
    try:
        folder, name = show.find(args.recordings, args.session)
        steps = replay.plan(
            recorded(folder),
            for_real=args.for_real,
            with_refused=args.refused,
            with_reads=not args.no_reads,
            holds_mask=masktags.holds_tag,
        )
        if not steps:
            raise RecordingError(f"{name} holds no request")
        if args.plan:
            return _plan(steps, screen)
        server = apiserver.load(args.onto)
        return asyncio.run(send(server, steps, screen, for_real=args.for_real))
    except (RecordingError, apiserver.KubeconfigError, apiserver.ApiServerError) as error:
        print(f"tollgate: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # no complaint at exit about the pipe that `head` closed
        return 2


def recorded(folder: DiskFolder) -> Iterator[Recorded]:
    """The requests of a session, in the order in which they came."""
    read = recordings.read_events(folder)
    for note in read.notes:
        print(f"tollgate: {note}", file=sys.stderr)
    order = {event.get("auditID"): number for number, event in reversed(list(enumerate(read.events)))}
    joined = sorted(backtest.joined(read.events), key=lambda event: order[event.get("auditID")])
    for event in joined:
        notes = auditevents.notes_of(event)
        if auditevents.COUNTS not in notes:
            yield _recorded(folder, event, notes)


def _recorded(folder: DiskFolder, event: Mapping[str, Any], notes: Mapping[str, str]) -> Recorded:
    uri = event.get("requestURI")
    target = uri if isinstance(uri, str) else ""
    cut = notes.get(auditevents.TRUNCATED, "")
    if chain.FLOW not in notes:
        reads = event.get("verb") in ("get", "list", "head") and "requestURI" not in cut
        if reads:
            return Recorded(event, "GET", target, (), b"")
        return Recorded(event, "", target, (), b"", trouble="its bytes were not recorded")
    try:
        flow = _flow(folder, chain.read_part(notes[chain.FLOW]))
    except (chain.ChainError, flowcopies.FlowFileError, RecordingError) as e:
        return Recorded(event, "", target, (), b"", trouble=str(e))
    request = flow.request
    body = request.raw_content
    headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in request.headers.fields]
    cut += flowcopies.summary_of(flow).get("truncated", "")
    whole = body is not None and "flow.request" not in cut
    if not target or "requestURI" in cut:
        # The flow's own path may begin with that of the API server's address, which is another one there.
        target = request.data.path.decode("latin-1")
    return Recorded(event, request.data.method.decode("latin-1"), target, headers, body or b"", whole)


def _flow(folder: DiskFolder, part: chain.Part) -> http.HTTPFlow:
    try:
        with folder.open(part.file) as file:
            file.seek(part.offset)
            data = file.read(part.length)
    except (OSError, EOFError) as e:
        raise RecordingError(f"{part.file} cannot be read ({type(e).__name__})") from None
    if hashlib.sha256(data).hexdigest() != part.sha256:
        # direction: what somebody has put into the record is not sent to a cluster.
        raise RecordingError("its flow is not what was recorded; see ./run.sh verify")
    flow = next(flowcopies.read(io.BytesIO(data), part.file), None)
    if flow is None:
        raise RecordingError("its flow is empty")
    return flow


def _plan(steps: Sequence[Step], screen: Screen) -> int:
    for step in steps:
        what = f"not sent: {step.skipped}" if step.skipped else f"{step.method} {step.target}"
        screen.line(f"{step.number:4}  {step.summary}  {what}", "dim" if step.skipped else "")
    return 0


async def send(server: apiserver.ApiServer, steps: Sequence[Step], screen: Screen, *, for_real: bool) -> int:
    where = server.endpoint
    screen.line(f"onto https://{where.host}:{where.port}, {'for real' if for_real else 'as a dry run'}", "bold")
    results: list[Compared] = []
    try:
        for step in steps:  # one after the other: their order is the point
            result = Compared(step) if step.skipped else await _sent(server, step)
            results.append(result)
            colour = "dim" if step.skipped else "" if result.same else "yellow"
            screen.line(f"{step.number:4}  {step.summary}  {result.words}", colour)
    finally:
        await server.stop()
    sent = [one for one in results if not one.step.skipped]
    differed = [one for one in sent if not one.same]
    screen.line(
        f"{len(sent)} sent, {len(sent) - len(differed)} with the outcome of then, {len(differed)} differed, "
        f"{len(results) - len(sent)} not sent",
        "yellow" if differed else "green",
    )
    return 1 if differed else 0


async def _sent(server: apiserver.ApiServer, step: Step) -> Compared:
    # JSON, whatever was asked for then: only its code and a Status are looked at.
    headers = {**step.headers, "accept": "application/json"}
    try:
        answer = await server.request(
            step.method, step.target, purpose=PURPOSE, body=step.body or None, headers=headers, timeout=TIMEOUT
        )
    except apiserver.ApiServerError as e:
        return Compared(step, trouble=str(e))
    return replay.compare(step, answer.status, answer.body)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
