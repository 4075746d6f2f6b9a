"""
Block: ask the policy what to do with the operation, and answer 403 when it is not allow.

Judged from the verified identity and from what the request does; what the client claims of
itself can only make it stricter. Rule format: policies/README.md. What a rule holds is
refused too, with a sentence that says so, until approvals can ask somebody.
"""

import asyncio
import logging
import os
from pathlib import Path

from mitmproxy import ctx, exceptions, http

from addons.core import facts, policy, policyfile
from addons.core.model import ANONYMOUS, Action, Identity, Operation, Verdict
from addons.mitm import answers

logger = logging.getLogger(__name__)

POLL = 1.0  # seconds between looks at the files; a look is a stat of each, and needs no inotify in a container
POLICIES_HELP = (
    "Policy files and folders, separated by {sep}, read again when they change. All or nothing: a file with a "
    "mistake keeps the old policies. Empty (the default): everything is denied."
)
OBSERVE_HELP = (
    "Only decide and log, and let everything pass that is authenticated. Default false. While it is on, nothing "
    "that the policies forbid is stopped."
)


class PolicyBlock:
    name = "tollgate_block"

    def __init__(self) -> None:
        # A failed configure() does not stop mitmproxy from opening its port: deny until it works.
        self.policy = policy.DENY_ALL
        self.observe = False
        self.paths: tuple[Path, ...] = ()
        self.seen: policyfile.Fingerprint = ()  # what the files looked like at the last attempt to load them
        self.watcher: asyncio.Task[None] | None = None

    def load(self, loader) -> None:
        loader.add_option("tollgate_policies", str, "", POLICIES_HELP.format(sep=os.pathsep))
        loader.add_option("tollgate_observe", bool, False, OBSERVE_HELP)

    def configure(self, updated: set[str]) -> None:
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
        self.policy, self.observe, self.paths, self.seen = loaded, observe, paths, seen
        logger.info("policies %r, revision %s", [p.name for p in loaded.policies], loaded.revision)

    def running(self) -> None:
        self.watcher = asyncio.create_task(self.watch())

    def done(self) -> None:
        if self.watcher is not None:
            self.watcher.cancel()

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(POLL)
            try:
                await self.reload()
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
        try:
            loaded = await asyncio.to_thread(policyfile.load, paths)
        except policy.PolicyError as e:
            logger.error(
                "policies: not reloaded, revision %s stays in force until this is mended:\n%s", self.policy.revision, e
            )
            return
        if paths != self.paths:
            return  # configured anew meanwhile
        before, self.policy = self.policy, loaded
        changes = policy.changes(before, loaded)
        logger.warning("policies: reloaded, revision %s: %s", loaded.revision, ", ".join(changes) or "no rule changed")

    def evaluate(self, identity: Identity, operation: Operation) -> Verdict:
        """The verdict, by the policies of this moment."""
        verdict = self.policy.evaluate(identity, operation)
        return policy.let_pass(verdict) if self.observe else verdict

    def request(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        if known.answered_by:
            return  # refused by an earlier addon, whose answer stands
        operation = known.need_operation()
        identity = known.identity or ANONYMOUS  # authenticate is not in this stack
        known.verdict = verdict = self.evaluate(identity, operation)
        for observed in verdict.observed:
            logger.info("observed: %s", policy.line(observed, identity, operation))
        logger.info("%s", policy.line(verdict, identity, operation))
        if verdict.action is not Action.ALLOW:
            answers.refuse(flow, self.name, policy.refusal(verdict, identity, operation))
            return
        # Last on purpose. mitmproxy logs an exception in a hook and forwards the
        # request; addons/guard.py stops every flow that did not pass here.
        known.passed.add((self.name, "request"))


addons = [PolicyBlock()]
