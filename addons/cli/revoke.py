"""
`./run.sh revoke`: the kill switch, on the gateway's own machine.

It writes to the state folder itself, so it works while the gateway is down or wedged, and every
gateway process on that folder follows within a second. Whoever may write there is its operator.
"""

import argparse
import asyncio
import getpass
import json
import os
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from addons.cli.arguments import state_default
from addons.cli.terminal import Screen
from addons.core import revocations, virtualobjects
from addons.core.approvals import NotAllowed, Requester
from addons.core.revocations import Revocation, RevocationError, Target
from addons.core.virtualforms import human_duration
from addons.net import codec, revoking, store
from addons.net.mirror import REVOCATIONS
from addons.net.store import Put, Stored, StoreError

DONE, NOT_DONE, USAGE = 0, 1, 2
TRIES = 20  # of a change against gateways that change the same at that moment
HEADERS = ("NAME", "PHASE", "REFUSES", "BY", "EXPIRES", "AGE", "REASON")
EPILOG = """\
commands:
  (none)            revoke: all that is named must match
  list              what is in force; --all: also what is over
  lift NAME         give back what a revocation took

  ./run.sh revoke --all-agents --reason "what happened last night"
  ./run.sh revoke --user tollgate:system:serviceaccount:agents:ci-agent --for 2h
  ./run.sh revoke --token-id 1f0c2a… --reason "was in a pastebin"
  ./run.sh revoke --issued-before now --user oidc:alice
  ./run.sh revoke list
  ./run.sh revoke lift rev-7f3kqw2m9z

Exit status: 0 done, 1 not done (the sentence says why), 2 something to change in the call.
"""


class Failed(Exception):
    """One sentence."""


def main(arguments: Sequence[str], out: TextIO | None = None, err: TextIO | None = None) -> int:
    words = list(arguments)
    command = words.pop(0) if words and words[0] in ("list", "lift") else "revoke"
    args = _parser(command).parse_args(words)
    screen, said = Screen(out or sys.stdout), Screen(err or sys.stderr)
    try:
        return asyncio.run(_run(command, args, screen, said))
    except RevocationError as e:
        said.line(f"tollgate: {e}")
        return USAGE
    except (Failed, NotAllowed, StoreError) as e:
        said.line(f"tollgate: {e}")
        return NOT_DONE


def _parser(command: str) -> argparse.ArgumentParser:
    named = "" if command == "revoke" else f" {command}"
    p = argparse.ArgumentParser(
        prog=f"./run.sh revoke{named}", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--state",
        default=os.environ.get("TOLLGATE_STATE") or str(state_default()),
        metavar="DIR",
        help="the gateway's state folder (default: %(default)s)",
    )
    p.add_argument(
        "--operator", default=os.environ.get("TOLLGATE_OPERATOR", ""), metavar="NAME", help="your name, for the record"
    )
    if command == "lift":
        p.add_argument("name", metavar="NAME", help="of the revocation, as list shows it")
        return p
    if command == "list":
        p.add_argument("--all", action="store_true", help="also what is over")
        p.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default: text")
        return p
    p.add_argument("--user", default="", metavar="NAME", help="an identity, as the log and approvals name it")
    p.add_argument("--token-id", default="", metavar="ID", help="one token: its jti, or credentialID of an approval")
    p.add_argument("--issued-before", default="", metavar="TIME", help="tokens issued before: RFC 3339, or now")
    p.add_argument("--all-agents", action="store_true", help="everybody whom no people clause of the policies matches")
    p.add_argument("--owner", default="", metavar="NAME", help="whoever acts for this owner (tollgate_owner_claim)")
    p.add_argument("--for", dest="duration", default="", metavar="TIME", help="for how long: 30m, 2h, 7d")
    p.add_argument("--until", default="", metavar="TIME", help="until when, RFC 3339; default: until it is lifted")
    p.add_argument("--reason", default="", help="recorded; whoever is refused does not get it")
    return p


async def _run(command: str, args: argparse.Namespace, screen: Screen, said: Screen) -> int:
    now = time.time()
    new = read(args, now, operator(args.operator)) if command == "revoke" else None
    kept, folder = opened(args.state)
    try:
        if new is not None:
            await revoking.throw(kept, new, now)
            screen.line(f"{new.name} is in force: {revocations.summary(new.target)}")
            said.line(f"every gateway process on {folder} follows within a second")
            return DONE
        if command == "lift":
            await lift(kept, args.name, operator(args.operator))
            screen.line(f"{args.name} was lifted")
            return DONE
        return await _list(kept, screen, said, everything=args.all, as_json=args.output == "json")
    finally:
        kept.close()


def opened(state: str) -> tuple[store.SqliteStore, Path]:
    """Raises Failed, StoreError."""
    folder = Path(state).expanduser().absolute()
    if not (folder / store.FILE).is_file():
        # Made here, an order would be followed by nobody, and would look as if it were.
        raise Failed(f"{folder} is not the state folder of a gateway (no {store.FILE}); give it with --state")
    return store.SqliteStore(folder / store.FILE), folder


def operator(given: str) -> str:
    """Under which name it is recorded."""
    try:
        return "operator:" + (given or getpass.getuser())
    except (KeyError, OSError) as e:
        raise Failed("say who you are with --operator NAME: it is recorded") from e


def read(args: argparse.Namespace, now: float, by: str) -> Revocation:
    """What the arguments ask for. Raises RevocationError."""
    if args.duration and args.until:
        raise RevocationError("--for: goes not with --until; give one of them")
    issued_before = _option("--issued-before", lambda: revocations.instant(args.issued_before, now), args.issued_before)
    until = _option("--until", lambda: revocations.instant(args.until, now), args.until)
    if args.duration:
        until = _option("--for", lambda: now + revocations.seconds(args.duration), args.duration)
    target = Target(args.user, args.token_id, issued_before, args.all_agents, args.owner)
    revocations.check(target, args.reason, until, now)
    uid = str(uuid.uuid4())
    return Revocation(
        name=revocations.name(uid),
        uid=uid,
        target=target,
        requester=Requester(by),
        created=now,
        until=until,
        reason=args.reason,
        via="operator",
    )


def _option(name: str, value: Any, given: str) -> float:
    if not given:
        return 0.0
    try:
        return float(value())
    except RevocationError as e:
        raise RevocationError(f"{name}: {e}") from None


async def _rows(kept: store.Store) -> dict[str, Stored]:
    found = await kept.since(0, REVOCATIONS)
    rows = list(found.objects)
    while found.more:
        found = await kept.since(found.revision, REVOCATIONS)
        rows += found.objects
    return {row.name: row for row in rows if not row.deleted}


async def lift(kept: store.Store, name: str, by: str) -> None:
    """Raises Failed, NotAllowed, StoreError. One that cannot be read, and so stops everybody, is removed."""
    for _ in range(TRIES):
        row, now = (await _rows(kept)).get(name), time.time()
        if row is None:
            raise Failed(f"there is no revocation {name}; see ./run.sh revoke list --all")
        change: Put | store.Delete
        try:
            change = Put(
                REVOCATIONS,
                name,
                codec.encode(revocations.lift(codec.revocation(row.data), by, now)),
                row.revision,
            )
        except codec.Damaged:
            change = store.Delete(REVOCATIONS, name, row.revision)
        try:
            await kept.apply([change], now)
        except (store.Conflict, store.Absent):
            continue
        return
    raise Failed(f"{name} is changed by others all the time; try again")


async def _list(kept: store.Store, screen: Screen, said: Screen, *, everything: bool, as_json: bool) -> int:
    now, entries, broken = time.time(), [], []
    for name, row in sorted((await _rows(kept)).items()):
        try:
            entry = codec.revocation(row.data)
        except codec.Damaged as e:
            broken.append((name, str(e)))
            continue
        if everything or entry.in_force(now):
            entries.append((entry, row.revision))
    entries.sort(key=lambda pair: pair[0].created)
    if as_json:
        items = [virtualobjects.of_entry(virtualobjects.REVOCATIONS, e, revision, now) for e, revision in entries]
        screen.write(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2) + "\n")
    elif entries:
        screen.table([HEADERS, *(_row(entry, now) for entry, _ in entries)])
    elif not broken:
        said.line("nothing is revoked")
    for name, why in broken:
        said.line(f"tollgate: {name} cannot be read ({why}), so nobody passes the gateway: ./run.sh revoke lift {name}")
    return NOT_DONE if broken else DONE


def _row(entry: Revocation, now: float) -> tuple[str, ...]:
    until = human_duration(entry.until - now) if entry.until and entry.in_force(now) else "-"
    return (
        entry.name,
        revocations.phase(entry, now),
        revocations.summary(entry.target),
        entry.requester.username,
        until,
        human_duration(now - entry.created),
        entry.reason,
    )
