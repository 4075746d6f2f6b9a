"""
Block: ask the policy what to do with the operation, and answer 403 when it is not allow.

Judged from the verified identity and from what the request does; what the client claims of
itself can only make it stricter. Rule format: policies/README.md. What a rule holds is left to
addons/approve.py, or refused where that is not in the stack. What may go on is taken from the
budgets before it does, and given back when the API server did nothing.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from mitmproxy import connection, ctx, exceptions, http

from addons.core import (
    admission,
    budgets,
    facts,
    maskanswers,
    maskwrites,
    policy,
    policycheck,
    policyfile,
    stack,
    status,
)
from addons.core.doctor import Finding, Level
from addons.core.model import ANONYMOUS, Action, Identity, Operation, Verdict
from addons.mitm import answers, cutting, meters, options, people
from addons.mitm.exchanges import connected, went_upstream
from addons.net import apiserver, maskkeys, objects, store

logger = logging.getLogger(__name__)

POLL = 1.0  # seconds between looks at the files; a look is a stat of each, and needs no inotify in a container
AT_ONCE = 100  # open streams judged again in one go, some milliseconds; then others have their turn
POLICIES_HELP = (
    "Policy files and folders, separated by {sep}, read again when they change. All or nothing: a file with a "
    "mistake keeps the old policies. Empty (the default): everything is denied."
)
NOT_JUDGED_AGAIN = status.Refusal(
    503,
    "not-judged-again",
    "tollgate: the policies changed and this stream could not be judged by the new ones, so it ends; start it again",
)
OBSERVE_HELP = (
    "Only decide and log, and let everything pass that is authenticated. Default false. While it is on, nothing "
    "that the policies forbid is stopped."
)


class PolicyBlock:
    name = "tollgate_block"

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        # A failed configure() does not stop mitmproxy from opening its port: deny until it works.
        self.policy = policy.DENY_ALL
        self.observe = False
        self.generation = 0  # how many sets of policies were loaded
        self.stale = False  # the files are not what is in force
        self.warnings: tuple[str, ...] = ()
        self.checked: policy.PolicySet | None = None  # of which these are the warnings
        self.paths: tuple[Path, ...] = ()
        self.seen: policyfile.Fingerprint = ()  # what the files looked like at the last attempt to load them
        self.watcher: asyncio.Task[None] | None = None
        self.clock = clock
        self.asks = False  # whether approve is in the stack; direction: what is held is refused here
        self.server: apiserver.ApiServer | None = None  # direction: without one, no object can be fetched
        self.store: store.Store | None = None  # direction: no store, nothing passes that a budget counts
        self.state = ""
        self.mask_key = b""  # direction: without one nothing that would have to be masked is said
        # What each exchange took from the budgets, until it is known whether that was used.
        self.reserved: WeakKeyDictionary[http.HTTPFlow, list[str]] = WeakKeyDictionary()
        # What the API server is answering, and what it was judged by.
        self.open: WeakKeyDictionary[http.HTTPFlow, Opened] = WeakKeyDictionary()
        self.looked_at: WeakKeyDictionary[http.HTTPFlow, admission.Objects] = WeakKeyDictionary()

    def load(self, loader) -> None:
        cutting.install()
        loader.add_option("tollgate_policies", str, "", POLICIES_HELP.format(sep=os.pathsep))
        loader.add_option("tollgate_observe", bool, False, OBSERVE_HELP)
        options.declare_state(loader)
        options.declare_kubeconfig(loader)

    def configure(self, updated: set[str]) -> None:
        if "tollgate_stack" in updated:
            # An option of the guard's: without a guard nobody demands the stamp of approve.
            self.asks = "approve" in stack.parse(ctx.options.tollgate_stack).addons
        if "tollgate_state" in updated and (ctx.options.tollgate_state != self.state or self.store is None):
            self.open_store(ctx.options.tollgate_state)
        if "tollgate_state" in updated or not self.mask_key:
            try:
                self.mask_key = maskkeys.tags(ctx.options.tollgate_state)
            except maskkeys.KeyFileError as e:
                raise exceptions.OptionsError(f"tollgate_state: {e}") from e
        if "tollgate_kubeconfig" in updated:
            try:
                self.server = apiserver.shared(ctx.options.tollgate_kubeconfig)
            except apiserver.KubeconfigError as e:
                # Where requests go upstream, that addon refuses to start; a stack without it can still judge.
                self.server = None
                logger.warning("tollgate_kubeconfig: %s; rules cannot look at objects", e)
        if not updated & {"tollgate_policies", "tollgate_observe"}:
            return
        paths = tuple(Path(p).expanduser() for p in ctx.options.tollgate_policies.split(os.pathsep) if p)
        observe = ctx.options.tollgate_observe
        if observe and not paths:
            # There would be nothing to observe, and a mistyped path would open everything.
            raise exceptions.OptionsError("tollgate_observe: needs tollgate_policies; say which policies to observe")
        loaded, seen = self.policy, self.seen
        if "tollgate_policies" in updated:
            seen = policyfile.fingerprint(paths)
            try:  # assigned below, only when every file is good
                loaded = policyfile.load(paths) if paths else policy.DENY_ALL
            except policy.PolicyError as e:
                raise exceptions.OptionsError(f"tollgate_policies: {e}") from e
        if observe and not self.observe:
            logger.warning("tollgate_observe is on: what the policies forbid is logged and let through")
        self.policy, self.observe, self.paths, self.seen, self.stale = loaded, observe, paths, seen, False
        self.generation += 1
        logger.info("policies %r, revision %s", [p.name for p in loaded.policies], loaded.revision)
        log_files(loaded)
        self.need_store()

    def open_store(self, folder: str) -> None:
        """Take the state of this folder; without one, `need_store` takes memory when a budget needs it."""
        old, self.store, self.state = self.store, None, folder
        if old is not None:
            old.close()
        if folder:
            try:
                self.store = store.SqliteStore(Path(folder).expanduser() / store.FILE)
            except store.StoreError as e:
                raise exceptions.OptionsError(f"tollgate_state: {e}") from e
        self.need_store()

    def need_store(self) -> None:
        if self.policy.budgets and self.store is None and not self.state:
            self.store = store.SqliteStore(None)
            logger.warning("tollgate_state is not set: budgets are counted in memory, and a restart forgets them")

    def running(self) -> None:
        people.judged_by(self.is_agent)
        meters.offer(self.name, self.readings)
        self.watcher = asyncio.create_task(self.watch())

    async def readings(self) -> list[meters.Reading]:
        found: list[meters.Reading] = [
            ("policy_generation", (), self.generation),
            ("policy_warnings", (), len(self.warnings)),
            ("policy_stale", (), self.stale),
        ]
        if self.store is not None and self.policy.budgets:
            spent = await self.store.spent(self.clock())
            found += [
                ("budget_used_ratio", (budget.full_name,), spent.get(budget.full_name, 0) / max(budget.limit, 1))
                for budget in self.policy.budgets
            ]
        return found

    def findings(self) -> list[Finding]:
        """For the doctor of the running gateway."""
        found = [Finding("policies", Level.WARNING, warning, "./run.sh policy check") for warning in self.warnings]
        if self.stale:
            text = f"the files are not what is in force (revision {self.policy.revision}): the last reload was refused"
            found.append(Finding("policies", Level.PROBLEM, text, "mend them; the log says what is wrong"))
        if self.observe:
            found.append(Finding("policies", Level.WARNING, "observe mode: policies decide and log, but stop nothing"))
        return found or [Finding("policies", Level.OK, f"revision {self.policy.revision} is in force")]

    def is_agent(self, identity: Identity) -> bool:
        return self.policy.is_agent(identity)

    def done(self) -> None:
        people.no_longer(self.is_agent)
        meters.withdraw(self.name, self.readings)
        if self.watcher is not None:
            self.watcher.cancel()
        if self.store is not None:
            self.store.close()

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(POLL)
            try:
                await self.reload()
                await self.check()
                await self.end_refused()
            except Exception:
                # The policies in force stay; but a watcher that ended in silence would keep them for ever.
                logger.exception("policies: looking for changes failed; revision %s stays", self.policy.revision)

    async def reload(self) -> None:
        """Take over changed files, all or nothing."""
        paths = self.paths
        seen = await asyncio.to_thread(policyfile.fingerprint, paths)
        if seen == self.seen or paths != self.paths:
            return
        self.seen = seen  # a bad set is reported once, until it changes again
        self.stale = True
        try:
            loaded = await asyncio.to_thread(policyfile.load, paths)
        except policy.PolicyError as e:
            logger.error(
                "policies: not reloaded, revision %s stays in force until this is mended:\n%s", self.policy.revision, e
            )
            return
        if paths != self.paths:
            return  # configured anew meanwhile
        if gone := policyfile.missing(self.policy, loaded):
            logger.error(
                "policies: not reloaded, revision %s stays in force: removed was %s; put it back, or restart without",
                self.policy.revision,
                ", ".join(map(repr, gone)),
            )
            return
        before, self.policy, self.stale = self.policy, loaded, False
        self.generation += 1
        self.need_store()
        changes = policy.changes(before, loaded)
        logger.warning("policies: reloaded, revision %s: %s", loaded.revision, ", ".join(changes) or "no rule changed")
        log_files(loaded)

    async def check(self) -> None:
        """What `./run.sh policy check` says of what is in force, once for each set and beside the loop."""
        policies = self.policy
        if self.checked is not policies:
            self.warnings = tuple(await asyncio.to_thread(policycheck.warnings, policies))
            self.checked = policies

    def evaluate(
        self,
        identity: Identity,
        operation: Operation,
        fetched: admission.Objects | None = None,
        policies: policy.PolicySet | None = None,
    ) -> Verdict:
        """The verdict, by the policies of this moment. Raises NeedsObjects while nothing is fetched."""
        verdict = (policies or self.policy).evaluate(identity, operation, fetched)
        return policy.let_pass(verdict) if self.observe else verdict

    def request(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        """Not a coroutine but where something must be waited for: mitmproxy awaits what it gets."""
        known = facts.of(flow)
        if known.answered_by:
            return None  # refused by an earlier addon, whose answer stands
        identity = known.identity or ANONYMOUS  # authenticate is not in this stack
        operation = known.operation = self.policy.revealing(identity, known.need_operation())
        known.policies = self.current
        try:
            verdict = self.evaluate(identity, operation)
        except admission.NeedsObjects as needs:
            # With the policies that asked: those of a reload meanwhile may ask for something else.
            return self.look(flow, known, identity, operation, needs, self.policy)
        return self.act(flow, known, identity, operation, verdict)

    def current(self) -> policy.PolicySet:
        return self.policy

    def act(
        self,
        flow: http.HTTPFlow,
        known: facts.Facts,
        identity: Identity,
        operation: Operation,
        verdict: Verdict,
        fetched: admission.Objects | None = None,
    ) -> Coroutine[Any, Any, None] | None:
        """Do what the verdict says; the rest of it, when something must be waited for."""
        known.verdict = verdict
        for observed in verdict.observed:
            logger.info("observed: %s", policy.line(observed, identity, operation))
        logger.info("%s", policy.line(verdict, identity, operation))
        if verdict.action is Action.DENY or (verdict.action is Action.HOLD and not self.asks):
            answers.refuse(flow, self.name, policy.refusal(verdict, identity, operation))
            return None
        if verdict.action is Action.HOLD:
            # Refused by mask in any case; so nobody is asked about it, and no yes is spent.
            level = self.policy.mask_level(identity, operation)
            refusal = maskwrites.comes_back(operation) or maskwrites.reads_back(operation, level)
            if refusal is not None:
                answers.refuse(flow, self.name, refusal)
                return None
        known.judge_again = partial(self.evaluate, identity, operation, fetched)
        charges = self.charges(verdict, identity, operation)
        if charges:
            return self.spend(flow, known, identity, operation, charges)
        # Last on purpose. mitmproxy logs an exception in a hook and forwards the
        # request; addons/guard.py stops every flow that did not pass here.
        known.passed.add((self.name, "request"))
        return None

    # Objects

    async def look(
        self,
        flow: http.HTTPFlow,
        known: facts.Facts,
        identity: Identity,
        operation: Operation,
        needs: admission.NeedsObjects,
        policies: policy.PolicySet,
    ) -> None:
        """Fetch what the rules look at, as the caller, and judge with it."""
        if self.observe:
            # Nobody's answer hangs on policies that only observe.
            needs = admission.NeedsObjects(needs.names, admission.NONE)
        fetched = await self.fetch(flow, identity, operation, needs)
        if isinstance(fetched, admission.ServerRefusal):
            answers.relay(flow, self.name, self.masked(fetched, identity, operation, policies))
            return
        if not admission.has_object(operation):
            self.looked_at[flow] = fetched  # a stream perhaps, which a reload judges again
        verdict = self.evaluate(identity, operation, fetched, policies)
        rest = self.act(flow, known, identity, operation, verdict, fetched)
        if rest is not None:
            await rest

    def masked(
        self,
        refusal: admission.ServerRefusal,
        identity: Identity,
        operation: Operation,
        policies: policy.PolicySet,
    ) -> admission.ServerRefusal:
        """As this caller may see it: what the API server refuses it quotes."""
        return maskanswers.relayed(refusal, operation, self.mask_key, policies.mask_level(identity, operation))

    async def fetch(
        self, flow: http.HTTPFlow, identity: Identity, operation: Operation, needs: admission.NeedsObjects
    ) -> admission.Objects | admission.ServerRefusal:
        if self.server is None:
            return admission.Objects(troubles=dict.fromkeys(needs.names, "the gateway has no API server to ask"))
        # As whom the request itself goes up.
        as_gateway = getattr(ctx.options, "tollgate_upstream_identity", "impersonate") == "gateway"
        fetcher = objects.Fetcher(
            self.server,
            None if as_gateway else identity,
            frozenset(getattr(ctx.options, "tollgate_forward_extra", ())),
        )
        request = objects.Request(
            flow.request.data.method.decode("latin-1"),
            flow.request.data.path.decode("latin-1"),
            flow.request.headers.get("content-type", ""),
            flow.request.raw_content or b"",
        )
        return await fetcher.fetch(request, operation, needs)

    # Budgets

    def charges(self, verdict: Verdict, identity: Identity, operation: Operation) -> budgets.Charges:
        """What an allowed operation takes. While all is only observed: what the real verdict would let it take."""
        if not self.observe:
            return self.policy.charges(identity, operation)
        if verdict.observed[0].action is not Action.ALLOW:
            return budgets.NO_CHARGES
        charges = self.policy.charges(identity, operation)
        return budgets.Charges(observed=charges.enforced + charges.observed)

    async def spend(
        self,
        flow: http.HTTPFlow,
        known: facts.Facts,
        identity: Identity,
        operation: Operation,
        charges: budgets.Charges,
    ) -> None:
        """Take from all budgets or none, on disk before the request goes on; then the stamp."""
        now, revision = self.clock(), known.verdict.revision
        refusal: status.Refusal | None = None
        reserved: list[str] = []
        try:
            if charges.enforced:
                reservation = await self.reserve(charges.enforced, now)
                if reservation.over:
                    over = budgets.verdict(reservation.over, revision, now)
                    logger.info("%s", policy.line(over, identity, operation))
                    if over.action is Action.HOLD and self.asks:
                        hold(known, over)
                    else:
                        known.verdict = replace(over, record=known.verdict.record)
                        refusal = budgets.refusal(over)
                else:
                    reserved.append(reservation.id)
        except store.StoreError as e:
            logger.error("state: %s", e)
            refusal = budgets.unavailable(charges.enforced, str(e))
        if refusal is not None:
            answers.refuse(flow, self.name, refusal)
            return
        self.reserved[flow] = reserved
        for charge in charges.observed:
            # One by one, as each would have decided if it alone were enforced.
            try:
                reservation = await self.reserve((charge,), now)
            except store.StoreError as e:
                logger.error("state: %s", e)  # what only observes stops nothing
                continue
            if reservation.over:
                would = budgets.verdict(reservation.over, revision, now)
                logger.info("observed: %s: %s", policy.line(would, identity, operation), would.message)
            else:
                reserved.append(reservation.id)
        known.passed.add((self.name, "request"))

    async def reserve(self, charges: tuple[budgets.Charge, ...], now: float) -> budgets.Reservation:
        if self.store is None:
            raise store.StoreError("no store is open; the log says why")
        return await self.store.reserve(charges, now)

    # Without stamps: what fails here stays spent, the stricter side.

    def responseheaders(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        self.begun(flow)
        reserved = self.reserved.pop(flow, None)
        if not reserved:
            return None
        known = facts.of(flow)
        if went_upstream(known) and not budgets.gives_back(known.need_operation(), flow.response.status_code):
            return None
        return self.give_back(reserved)

    def error(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        self.ended(flow)
        reserved = self.reserved.pop(flow, None)
        if not reserved or (went_upstream(facts.of(flow)) and connected(flow)):
            return None  # a connection that broke says nothing about what was done
        return self.give_back(reserved)

    async def give_back(self, reserved: list[str]) -> None:
        try:
            for reservation in reserved:
                if self.store is not None:
                    await self.store.give_back(reservation)
        except store.StoreError as e:
            logger.error("state: %s; what was not used stays counted", e)

    # Open streams

    def begun(self, flow: http.HTTPFlow) -> None:
        """From here until its end the answer is a stream: a watch, a log, an exec, or a list for some milliseconds."""
        known = facts.of(flow)
        objects = self.looked_at.pop(flow, None)
        if went_upstream(known):
            judged_by = known.verdict.revision, self.observe
            self.open[flow] = Opened(known.identity or ANONYMOUS, known.need_operation(), objects, judged_by)
        known.passed.add((self.name, "responseheaders"))

    def response(self, flow: http.HTTPFlow) -> None:
        if answers.code(flow) != 101:  # an upgraded one has only begun
            self.ended(flow)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        self.ended(flow)

    def ended(self, flow: http.HTTPFlow) -> None:
        self.open.pop(flow, None)
        self.looked_at.pop(flow, None)

    async def end_refused(self) -> None:
        """
        Cut every open stream that the policies of now refuse, with the rule's own sentence.

        At each look at the files, not only after a reload: an answer that begins after it to a
        request that was judged before it is met a second later.
        """
        now = self.policy.revision, self.observe
        waiting = [flow for flow, opened in self.open.items() if opened.judged_by != now]
        for count, flow in enumerate(waiting, 1):
            if (opened := self.open.get(flow)) is None:
                continue
            try:
                self.judge_again(flow, opened)
            # Direction: what cannot be judged ends; and it must not keep all others open.
            except Exception:
                logger.exception("policies: an open stream could not be judged again, so it ends")
                self.ended(flow)
                cutting.cut(flow, NOT_JUDGED_AGAIN)
            if count % AT_ONCE == 0:
                await asyncio.sleep(0)

    def judge_again(self, flow: http.HTTPFlow, opened: "Opened") -> None:
        if flow.client_conn.state is connection.ConnectionState.CLOSED:
            self.ended(flow)  # SPDY: no hook of ours tells its end
            return
        policies, observe = self.policy, self.observe
        try:
            verdict = self.evaluate(opened.identity, opened.operation, policies=policies)
        except admission.NeedsObjects:
            # With what was seen when it began. Nothing is fetched anew: a stream must not outlive its rule
            # while the API server is asked. What was not seen then counts as what cannot be fetched:
            # for a deny or hold it is a match, for an allow none.
            objects = opened.objects or admission.NOT_FETCHED
            verdict = self.evaluate(opened.identity, opened.operation, objects, policies)
        known = facts.of(flow)
        if policy.stays_open(known.verdict, verdict):
            self.open[flow] = opened._replace(judged_by=(policies.revision, observe))
            return
        logger.warning("policies: a stream ends: %s", policy.line(verdict, opened.identity, opened.operation))
        self.ended(flow)
        cutting.cut(flow, policy.refusal(verdict, opened.identity, opened.operation))


class Opened(NamedTuple):
    """What an open stream was judged by. No dataclass: those crash in a mitmproxy script."""

    identity: Identity
    operation: Operation
    objects: admission.Objects | None  # that the rules looked at
    judged_by: tuple[str, bool]  # revision of the policies, and whether all were only observed


def hold(known: facts.Facts, over: Verdict) -> None:
    """
    Over a budget that asks: its hold beside those of the rules. Nothing is taken, the yes counts instead.

    When the verdict is asked for again, the budget still asks: what became free meanwhile is others'.
    """
    judge = known.judge_again
    known.verdict = with_holds(known.verdict, over)
    known.judge_again = (lambda: with_holds(judge(), over)) if judge is not None else None


def with_holds(verdict: Verdict, over: Verdict) -> Verdict:
    """An allowed or held operation, held by a budget as well; a denied one stays denied."""
    if verdict.action is Action.DENY:
        return verdict
    holds = (*verdict.holds, *over.holds)
    first = verdict if verdict.action is Action.HOLD else over
    return replace(first, action=Action.HOLD, holds=holds, observed=verdict.observed, record=verdict.record)


def log_files(policies: policy.PolicySet) -> None:
    """What was loaded, to be compared with what was reviewed."""
    for name, digest in policies.files.items():
        logger.info("policies: %r is sha256:%s…", name, digest)


addons = [PolicyBlock()]
