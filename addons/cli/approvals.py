"""
`./run.sh approvals list|show|approve|deny|watch`: approvals at a terminal.

With the approver's own kubeconfig, through the gateway, as kubectl would: nothing here decides.
A decision names the state that was shown; if it is another by then, it is shown again.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TextIO

from addons.cli import approvalclient, approvalviews
from addons.cli.approvalclient import Conflict, Failed, Gateway, Unauthenticated, Unreachable, Usage
from addons.cli.terminal import Keyboard, Screen
from addons.core.virtualobjects import APPROVALS, REQUESTS, Content, Resource

DONE, NOT_DONE, USAGE, INTERRUPTED = 0, 1, 2, 130
COMMANDS = "list|show|approve|deny|watch"
HELP = """\
  list              what waits for a decision or can still be used; --all: also what is over
  show NAME         everything about one
  approve NAME      say yes, after it was shown; --yes: without being asked
  deny NAME         say no
  watch             questions as they come; -i: and decide them one after the other

A decision needs a token for the audience tollgate-approver: ./run.sh kubeconfig --approver tells how.

  ./run.sh approvals
  ./run.sh approvals watch -i --kubeconfig approver.kubeconfig
  ./run.sh approvals approve apr-7f3kq2m9xd --reason "for the demo" --token-file TOKEN
  ./run.sh approvals deny accessrequest/web --reason "not in the freeze"

Exit status: 0 done, 1 not done (the sentence says why), 2 something to change in the call.
"""
FIRST_DELAY, LAST_DELAY = 1.0, 30.0  # seconds before a watch that broke is tried again
AGAIN = 3  # times that a decision is sent anew when nothing that was shown has changed
OPEN = ("Pending", "Approved")


def main(
    arguments: Sequence[str], out: TextIO | None = None, err: TextIO | None = None, source: TextIO | None = None
) -> int:
    args = _parser().parse_args(_with_command(arguments))
    out, err, source = out or sys.stdout, err or sys.stderr, source or sys.stdin
    for stream in (out, err):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # a terminal that has not all letters is no reason to stop
    logging.getLogger().addHandler(logging.NullHandler())  # what libraries log is in our sentences
    screen, said = Screen(out), Screen(err)
    try:
        return asyncio.run(_run(args, screen, said, Keyboard(source, said)))
    except Usage as e:
        said.line(f"tollgate: {e}")
        return USAGE
    except Failed as e:
        said.line(f"tollgate: {e}")
        return NOT_DONE
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # no complaint at exit about the pipe that `head` closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return NOT_DONE
    except KeyboardInterrupt:
        if said.is_terminal:
            said.line()
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="./run.sh approvals", epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--kubeconfig", default="", metavar="FILE", help="of the gateway; default: $KUBECONFIG, else ~/.kube/config"
    )
    common.add_argument(
        "--token-file",
        default="",
        metavar="FILE",
        help="your token for decisions, or a credential plugin's output, in place of the kubeconfig's; "
        f"default: ${approvalclient.TOKEN_VARIABLE}",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar=COMMANDS)
    for name in ("list", "show", "approve", "deny", "watch"):
        c = commands.add_parser(name, parents=[common])
        if name not in ("list", "watch"):
            c.add_argument("name", metavar="NAME", help="of the approval, or accessrequest/NAME")
        if name in ("list", "show"):
            c.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default: text")
        if name == "list":
            c.add_argument("--all", action="store_true", help="also what is over")
        if name in ("approve", "deny"):
            c.add_argument("--reason", default="", help="shown to the requester, and recorded")
            c.add_argument("--yes", action="store_true", help="do not show it and ask first")
        if name == "watch":
            c.add_argument("-i", "--interactive", action="store_true", help="ask about each, on a terminal")
    return p


def _with_command(arguments: Sequence[str]) -> list[str]:
    words = list(arguments)
    return ["list", *words] if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")) else words


async def _run(args: argparse.Namespace, screen: Screen, said: Screen, keyboard: Keyboard) -> int:
    gateway = Gateway(args.kubeconfig, args.token_file)
    try:
        match args.command:
            case "list":
                return await _list(gateway, screen, said, everything=args.all, as_json=args.output == "json")
            case "show":
                return await _show(gateway, screen, args.name, as_json=args.output == "json")
            case "watch":
                return await Watch(gateway, screen, said, keyboard, interactive=args.interactive).run()
        decider = Decider(gateway, screen, said, keyboard)
        return await decider.decide(args.name, approved=args.command == "approve", reason=args.reason, sure=args.yes)
    finally:
        await gateway.close()


# ----- looking -----


async def _list(gateway: Gateway, screen: Screen, said: Screen, *, everything: bool, as_json: bool) -> int:
    items = [item for item in await gateway.all() if everything or approvalviews.phase(item) in OPEN]
    if as_json:
        _print_json(screen, {"apiVersion": "v1", "kind": "List", "items": items})
    elif items:
        now = time.time()
        screen.table([approvalviews.HEADERS, *(approvalviews.row(item, now) for item in items)])
    else:
        said.line("nothing waits for a decision" if not everything else "there are no approvals that you may see")
    return DONE


async def _show(gateway: Gateway, screen: Screen, word: str, *, as_json: bool) -> int:
    item = await gateway.get(*approvalclient.read_name(word))
    if as_json:
        _print_json(screen, item)
    else:
        screen.lines(approvalviews.details(item, time.time()))
    return DONE


def _print_json(screen: Screen, content: object) -> None:
    # Every letter beyond ASCII as \uXXXX: so nothing in it is an order to a terminal.
    screen.write(json.dumps(content, indent=2, ensure_ascii=True) + "\n")


# ----- deciding -----


class Decider:
    """One decision: shown, confirmed, sent for the state that was shown."""

    def __init__(self, gateway: Gateway, screen: Screen, said: Screen, keyboard: Keyboard) -> None:
        self._gateway = gateway
        self._screen = screen
        self._said = said
        self._keyboard = keyboard

    async def decide(self, word: str, *, approved: bool, reason: str, sure: bool) -> int:
        resource, name = approvalclient.read_name(word)
        if not sure and not self._keyboard.somebody:
            raise Usage(f"there is no terminal to ask at; look with: ./run.sh approvals show {word}, then add --yes")
        await self._gateway.check_audience()
        item = await self._gateway.get(resource, name)
        while True:
            _refuse_ended(item)
            if sure:
                if not reason.strip() and approvalviews.needs_reason(item):
                    raise Usage("its rule wants a reason; give one with --reason")
            else:
                self._screen.lines(approvalviews.details(item, time.time()))
                given = await self._confirm(item, approved, reason)
                if given is None:
                    self._said.line("nothing was decided")
                    return NOT_DONE
                reason = given
            try:
                self.say(await self.send(item, approved=approved, reason=reason), approved=approved)
            except Conflict:
                item = await self._gateway.get(resource, name)
                self._said.line("it changed since it was shown, and nothing was decided; this is what it is now:")
                if sure:
                    self._screen.lines(approvalviews.details(item, time.time()))
                    return NOT_DONE
                continue
            return DONE

    async def send(self, item: Content, *, approved: bool, reason: str) -> Content:
        """Raises Conflict when something that was shown is another by now; who waits for it is no such thing."""
        shown = approvalviews.what_was_shown(item)
        resource, name = (REQUESTS if approvalviews.is_request(item) else APPROVALS), approvalviews.name(item)
        for _ in range(AGAIN):
            try:
                return await self._gateway.decide(item, approved=approved, reason=reason)
            except Conflict:
                item = await self._gateway.get(resource, name)
                if approvalviews.what_was_shown(item) != shown:
                    raise
        raise Conflict

    async def _confirm(self, item: Content, approved: bool, reason: str) -> str | None:
        """The reason, or None for a no."""
        verb = "Approve" if approved else "Deny"
        while not reason.strip() and (not approved or approvalviews.needs_reason(item)):
            answer = await self._keyboard.ask(
                f"Reason{'' if approvalviews.needs_reason(item) else ' (may be empty)'}: "
            )
            if answer is None:
                return None
            reason = answer
            if not approvalviews.needs_reason(item):
                break
        answer = await self._keyboard.ask(f"{verb} {approvalviews.reference(item)}? [y/N] ")
        return reason if answer is not None and answer.lower() in ("y", "yes") else None

    def say(self, item: Content, *, approved: bool) -> None:
        name, missing = approvalviews.reference(item), approvalviews.numbers(item, "status", "missing")
        if not approved:
            self._said.line(f"{name} denied")
        elif missing:
            more = max(missing.values())
            self._said.line(f"your yes to {name} counts; {more} more {'person' if more == 1 else 'people'} must agree")
        elif approvalviews.is_request(item):
            self._said.line(f"{name} approved, until {approvalviews.text(item, 'status', 'validUntil')}")
        elif approvalviews.at(item, "status", "waiting") is True:
            self._said.line(f"{name} approved; its client goes on now")
        else:
            until = approvalviews.text(item, "status", "validUntil")
            self._said.line(f"{name} approved; its requester has to send the same again, until {until}")


def _refuse_ended(item: Content) -> None:
    phase, message = approvalviews.phase(item), approvalviews.text(item, "status", "message")
    if phase != approvalviews.PENDING:
        why = f": {message}" if message else ""
        raise Failed(f"{approvalviews.reference(item)} is {phase} and cannot be decided any more{why}")


# ----- watching -----


class Watch:
    """Questions as they come, from both kinds; again and again when the connection breaks."""

    def __init__(
        self, gateway: Gateway, screen: Screen, said: Screen, keyboard: Keyboard, *, interactive: bool
    ) -> None:
        self._gateway = gateway
        self._screen = screen
        self._said = said
        self._keyboard = keyboard
        self._interactive = interactive
        self._decider = Decider(gateway, screen, said, keyboard)
        self._phases: dict[str, str] = {}  # what each was when it was last told of, by uid
        self._open: dict[str, Content] = {}  # undecided, in the order in which they came
        self._skipped: set[str] = set()
        self._news = asyncio.Event()
        self._lost = False

    async def run(self) -> int:
        if self._interactive:
            if not self._keyboard.somebody:
                raise Usage("-i asks at a terminal, and there is none; leave it out")
            await self._gateway.check_audience()
        # Whatever is wrong from the start is said, and ends it; what breaks later is tried again.
        for item in await self._gateway.all():
            self._take("ADDED", item)
        doing: list[Coroutine[Any, Any, None]] = [self._follow(APPROVALS), self._follow(REQUESTS)]
        if self._interactive:
            doing.append(self._ask())
        tasks = [asyncio.create_task(one) for one in doing]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return DONE

    async def _follow(self, resource: Resource) -> None:
        delay = FIRST_DELAY
        while True:
            try:
                async with contextlib.aclosing(self._gateway.watch(resource)) as events:
                    async for kind, item in events:
                        delay = FIRST_DELAY
                        self._tell_lost("")
                        self._take(kind, {**item, "kind": resource.kind})
            except Unreachable as e:
                self._tell_lost(str(e))
            except Unauthenticated:
                # It has expired, and what made it may have a newer one; if not, `all` ends this.
                await self._gateway.log_in()
                await self._gateway.all()
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_DELAY)

    def _tell_lost(self, why: str) -> None:
        if why and not self._lost:
            self._said.line(f"tollgate: {why} (trying again)")
        elif not why and self._lost:
            self._said.line("tollgate: connected again")
        self._lost = bool(why)

    def _take(self, kind: str, item: Content) -> None:
        uid, phase = approvalviews.text(item, "metadata", "uid"), approvalviews.phase(item)
        if kind not in ("ADDED", "MODIFIED", "DELETED") or not uid:
            return
        before = self._phases.get(uid)
        if kind == "DELETED" or phase != approvalviews.PENDING:
            self._open.pop(uid, None)
        else:
            self._open[uid] = item
        self._news.set()
        if kind == "DELETED":
            self._phases.pop(uid, None)
            self._skipped.discard(uid)
            return
        self._phases[uid] = phase
        if phase == approvalviews.PENDING and before is None:
            self._screen.bell()
            if not self._interactive:
                self._screen.line(*approvalviews.question(item, time.time()))
        elif before == approvalviews.PENDING and phase != before and not self._interactive:
            self._screen.line(*approvalviews.outcome(item))

    # ----- one after the other -----

    async def _ask(self) -> None:
        """Until nobody answers any more (Ctrl-D)."""
        idle = True
        while True:
            self._news.clear()
            uid = next((uid for uid in self._open if uid not in self._skipped), None)
            if uid is None:
                if idle:
                    self._said.line("waiting for questions; Ctrl-C ends this")
                idle = False
                await self._news.wait()
                continue
            idle = True
            if not await self._ask_about(uid, self._open[uid]):
                return

    async def _ask_about(self, uid: str, item: Content) -> bool:
        self._screen.lines(approvalviews.details(item, time.time()))
        answer = await self._unless_over(uid, self._keyboard.ask("Approve? [y]es, [n]o, [s]kip: "))
        word = (answer or "").lower()
        if answer is None:
            return uid not in self._open  # over meanwhile: on with the next; else there is no answer any more
        if word in ("s", "skip"):
            self._skipped.add(uid)
        if word not in ("y", "yes", "n", "no"):
            return True  # shown again
        approved = word in ("y", "yes")
        reason = ""
        if not approved or approvalviews.needs_reason(item):
            wanted = " (its rule wants one)" if approvalviews.needs_reason(item) else " (may be empty)"
            given = await self._unless_over(uid, self._keyboard.ask(f"Reason{wanted}: "))
            if given is None:
                return uid not in self._open
            reason = given
        await self._send(uid, item, approved=approved, reason=reason)
        return True

    async def _send(self, uid: str, item: Content, *, approved: bool, reason: str) -> None:
        try:
            decided = await self._decider.send(item, approved=approved, reason=reason)
        except Conflict:
            self._said.line("it changed since it was shown, and nothing was decided")
            resource = REQUESTS if approvalviews.is_request(item) else APPROVALS
            with contextlib.suppress(Failed):
                self._take("MODIFIED", await self._gateway.get(resource, approvalviews.name(item)))
        except Failed as e:
            self._said.line(f"tollgate: {e}")
            self._skipped.add(uid)
        else:
            self._decider.say(decided, approved=approved)
            self._take("MODIFIED", decided)
            self._skipped.add(uid)  # a yes of several: others must agree, he is not asked again

    async def _unless_over(self, uid: str, asking: Coroutine[Any, Any, str | None]) -> str | None:
        """The answer; None when there is none, or somebody else was faster."""
        task = asyncio.create_task(asking)
        try:
            while not task.done():
                self._news.clear()
                if uid not in self._open:
                    self._said.line()
                    self._said.line("it was decided, or ended, while you looked")
                    return None
                news = asyncio.create_task(self._news.wait())
                await asyncio.wait((task, news), return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
            return task.result()
        finally:
            task.cancel()
