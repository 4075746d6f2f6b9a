"""
Approve: a request that a rule holds waits for a human's yes, and goes on only after it.

Also serves what people decide with: the virtual API group tollgate.dev, by a server inside this
process to which such a request is pointed once the policies have let it pass. The decisions are
in addons/core/approvals.py and addons/core/holding.py, the waiting in addons/net/desk.py.
"""

import asyncio
import getpass
import json
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import command, connection, ctx, exceptions, http
from mitmproxy import flow as mitmflow

from addons.core import (
    approvals,
    askahead,
    facts,
    holding,
    maskanswers,
    maskpreviews,
    preconditions,
    status,
    upstreamrequest,
    virtualapi,
    virtualdiscovery,
    virtualmerging,
)
from addons.core.model import ANONYMOUS, Action, Identity, Impact, Operation
from addons.core.policy import DENY_ALL, PolicySet
from addons.core.virtualapi import Viewer
from addons.mitm import answers, cutting, inside, options, seal, wire
from addons.mitm.exchanges import connected, went_upstream
from addons.net import apiserver, maskkeys, notify, objects, store
from addons.net.book import APPROVALS, REQUESTS, Book, Missing
from addons.net.desk import Case, Desk, Outcome
from addons.net.previews import Previewer
from addons.net.rights import Rights
from addons.net.virtualserver import TICKET_HEADER, VirtualServer

logger = logging.getLogger(__name__)

GOODBYE = 0.5  # seconds at the end for the answers of those who still wait
# The uid that was approved is another, or gone: clients repeat a 409 for ever.
REPLACED = status.Refusal(
    403,
    "approval-void",
    "tollgate: the object was replaced since its deletion was approved, so nothing was deleted and the approval is "
    "spent; send the request again to ask anew",
)
CHANGED = status.Refusal(
    403,
    "approval-void",
    "tollgate: the object was changed in the moment in which its approved patch was sent, so the patch was not applied "
    "and the approval is spent; send the request again to ask anew",
)
NO_DESK = status.Refusal(
    503, "approval-unavailable", "tollgate: approvals cannot be asked for now, the log says why; tell the operator"
)
NEVER_HELD = status.Refusal(
    403,
    "approval-of-approvals",
    "tollgate: a rule holds requests to tollgate.dev, which would need an approval themselves; have the policy allow "
    "or deny them",
)
GRANT_OVER = status.Refusal(
    403,
    "grant-over",
    "tollgate: the grant that let this stream begin is over or was revoked, so the stream ends; ask again",
)
HERE = "127.0.0.1"
SWEEP = 0.5  # seconds between looks at the streams that a grant opened; they end within a second of it
_ASKING = frozenset({Impact.META, Impact.READ})


class Approve:
    name = "tollgate_approve"

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.server: apiserver.ApiServer | None = None
        self.store: store.Store | None = None
        self.state: str | None = None
        self.mask_key = b""  # direction: without one nothing that would have to be masked is said
        # Direction: without them, what is held is refused, and the virtual API is not there.
        self.book: Book | None = None
        self.desk: Desk | None = None
        self.virtual: VirtualServer | None = None
        self.rights = Rights(None)
        self.notifier: notify.Notifier | None = None
        self.address: tuple[str, int] | None = None
        self.up = False
        self.policies: Callable[[], PolicySet] | None = None  # of the last request; for the watches of the virtual API
        self.revision = ""
        # What is to be done to the answers of exchanges that are under way.
        self.changes: WeakKeyDictionary[http.HTTPFlow, virtualmerging.Change] = WeakKeyDictionary()
        # What each exchange spent, until it is known whether the API server got it.
        self.spent: WeakKeyDictionary[http.HTTPFlow, Outcome] = WeakKeyDictionary()
        # Streams that a grant opened: they end with it.
        self.granted: WeakKeyDictionary[http.HTTPFlow, tuple[approvals.Grant, ...]] = WeakKeyDictionary()
        self.starting: asyncio.Task[None] | None = None
        self.sweeper: asyncio.Task[None] | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    def load(self, loader) -> None:
        wire.install()
        cutting.install()
        options.declare_kubeconfig(loader)
        options.declare_state(loader)
        loader.add_option(
            "tollgate_operator",
            str,
            "",
            "Name under which decisions made at this proxy's own console are recorded. Default: the user it runs as.",
        )
        loader.add_option(
            "tollgate_notify_webhook",
            Sequence[str],
            [],
            "URLs (or @FILE, one a line) that get a JSON POST for each new question; https, or http on this machine.",
        )
        loader.add_option(
            "tollgate_notify_webhook_secret",
            str,
            "",
            "File with the key that signs what webhooks get (HMAC-SHA256). Default: it is not signed.",
        )
        loader.add_option(
            "tollgate_notify_command", str, "", "Program that is run for each new question, with its JSON on stdin."
        )
        loader.add_option(
            "tollgate_notify_apprise",
            str,
            "",
            "File with one Apprise URL a line (Slack, Teams, PagerDuty, mail, …). Needs: pip install apprise.",
        )

    def configure(self, updated: set[str]) -> None:
        if "tollgate_kubeconfig" in updated:
            try:
                self.server = apiserver.shared(ctx.options.tollgate_kubeconfig)
            except apiserver.KubeconfigError as e:
                # Where requests go upstream, that addon refuses to start.
                self.server = None
                logger.warning("tollgate_kubeconfig: %s; approvers cannot be shown what a request does", e)
        if any(name.startswith("tollgate_notify") for name in updated):
            self.set_up_notifier()
        if "tollgate_state" in updated and ctx.options.tollgate_state != self.state:
            if self.up:
                raise exceptions.OptionsError("tollgate_state: cannot be changed while the gateway runs; restart it")
            self.open_store(ctx.options.tollgate_state)
            try:
                self.mask_key = maskkeys.tags(ctx.options.tollgate_state)
            except maskkeys.KeyFileError as e:
                raise exceptions.OptionsError(f"tollgate_state: {e}") from e

    def set_up_notifier(self) -> None:
        if self.up:
            raise exceptions.OptionsError("tollgate_notify: cannot be changed while the gateway runs; restart it")
        try:
            self.notifier = notify.Notifier(
                ctx.options.tollgate_notify_webhook,
                ctx.options.tollgate_notify_command,
                ctx.options.tollgate_notify_apprise,
                secret_file=ctx.options.tollgate_notify_webhook_secret,
                current=self.latest,
                clock=self.clock,
            )
        except notify.NotifyError as e:
            raise exceptions.OptionsError(str(e)) from e

    def open_store(self, folder: str) -> None:
        if self.store is not None:
            self.store.close()
        self.store, self.state = None, folder
        try:
            self.store = store.SqliteStore(Path(folder).expanduser() / store.FILE if folder else None)
        except store.StoreError as e:
            raise exceptions.OptionsError(f"tollgate_state: {e}") from e
        if not folder:
            logger.warning("tollgate_state is not set: approvals are kept in memory, and a restart forgets them")

    # Not coroutines: a script that is loaded again while running may not have any.

    def running(self) -> None:
        # Nobody waits for it here, the guard asks `ready`: what other addons log meanwhile (an API server
        # that does not answer yet) would otherwise count for mitmproxy as a start that failed.
        self.starting = asyncio.get_running_loop().create_task(self.start(), name="tollgate approvals")

    def done(self) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self.end(), name="tollgate approvals end")

    async def start(self) -> None:
        if self.store is None:
            return  # configure() failed, and said so
        self.book = Book(self.store, self.clock)
        try:
            await self.book.start()
            self.virtual = VirtualServer(self.book, self.clock, self.asked)
            await self.virtual.start()
        except (store.StoreError, OSError) as e:
            # Direction: what is held is refused, what is not passes.
            logger.error("approvals cannot be asked for: %s", e)
            return
        except Exception:
            logger.exception("approvals cannot be asked for")
            return
        if self.notifier is not None:
            await self.notifier.start()
        self.address = (HERE, self.virtual.port)
        inside.serve_at(self.address)
        self.desk = Desk(self.book, self.asked, self.clock)
        self.rights = Rights(self.server, frozenset(getattr(ctx.options, "tollgate_forward_extra", ())))
        bind_keys()
        self.sweeper = asyncio.get_running_loop().create_task(self.keep_sweeping(), name="tollgate ends of grants")
        self.up = True

    def ready(self) -> bool:
        """The guard waits a moment for it before it opens the port."""
        return self.up

    async def end(self) -> None:
        if self.sweeper is not None:
            self.sweeper.cancel()
        if self.desk is not None:
            # Those who still wait get their answer, while there are connections to send it on.
            await self.desk.end(GOODBYE)
        if self.address is not None:
            inside.stop_serving(self.address)
        if self.notifier is not None:
            await self.notifier.stop()
        if self.virtual is not None:
            await self.virtual.stop()
        if self.book is not None:
            await self.book.stop()
        if self.store is not None:
            self.store.close()

    def asked(self, record: approvals.Record) -> None:
        """A new question: to be told to those who can answer it."""
        logger.warning("approval %s is pending: %r for %r", record.name, record.summary, record.requester.username)
        if self.notifier is not None:
            self.notifier.send(record)

    def latest(self, record: approvals.Record) -> approvals.Record | None:
        """As it is now: nobody is told of what has been decided meanwhile, or is gone."""
        kind = APPROVALS if record.access is None else REQUESTS
        kept = self.book.get(kind, record.name) if self.book is not None else None
        return kept.entry if kept is not None and isinstance(kept.entry, approvals.Record) else None

    # ----- requests -----

    def request(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        """Not a coroutine but where something must be waited for: mitmproxy awaits what it gets."""
        known = facts.of(flow)
        if known.answered_by:
            return None
        if seal.is_broken(flow):
            answers.refuse(flow, self.name, seal.CHANGED)
            return None
        operation = known.need_operation()
        if known.policies is not None:
            self.follow_policies(known.policies)
        if virtualapi.is_ours(operation.info.path):
            refusal = self.point(flow, known, operation)
            if refusal is not None:
                answers.refuse(flow, self.name, refusal)
                return None
            seal.put(flow)
        elif known.verdict.action is Action.HOLD:
            return self.hold(flow, known, operation)
        elif self.speaks_of_us(flow, known, operation):
            return None
        # Last on purpose: addons/guard.py stops every flow that did not pass here.
        known.passed.add((self.name, "request"))
        return None

    async def hold(self, flow: http.HTTPFlow, known: facts.Facts, operation: Operation) -> None:
        """Wait for the yes; then the stamp. What cannot be deleted with a condition is not asked for."""
        if self.desk is None or self.server is None:
            answers.refuse(flow, self.name, NO_DESK)
            return
        known.audit_id = str(uuid.uuid4())  # an approval is spent under the id that the API server's audit log has
        request = objects.Request(
            flow.request.data.method.decode("latin-1"),
            flow.request.data.path.decode("latin-1"),
            flow.request.headers.get("content-type", ""),
            flow.request.raw_content or b"",
        )
        deletes = preconditions.deletes_one(operation)
        try:
            if deletes:
                preconditions.with_preconditions(operation, request.target, "")
        except status.Refused as e:
            answers.refuse(flow, self.name, e.refusal)
            return
        outcome = await self.desk.hold(self.case(flow, known, operation, request, self.server))
        if outcome.relayed is not None:
            level = current(known).mask_level(known.identity or ANONYMOUS, operation)
            answers.relay(flow, self.name, maskanswers.relayed(outcome.relayed, operation, self.mask_key, level))
            return
        if outcome.refusal is not None:
            answers.refuse(flow, self.name, outcome.refusal)
            return
        if seal.is_broken(flow):
            # Edited at the console while it waited: the yes was to something else.
            answers.refuse(flow, self.name, seal.CHANGED)
            await self.give_back(flow, known, outcome)
            return
        if outcome.verdict is not None:
            known.verdict = outcome.verdict
        known.approval = outcome.by
        known.approvers = approvers_of(outcome)
        if outcome.digest:
            self.spent[flow] = outcome
        if outcome.grants:
            self.granted[flow] = outcome.grants
        item = outcome.record.item(outcome.digest) if outcome.record is not None else None
        if deletes and item is not None and item.uid:
            # The object that the approver saw and no other: one of the same name may be there by now.
            bound = preconditions.with_preconditions(operation, request.target, item.uid)
            flow.request.path = bound.target
            flow.request.headers["content-type"] = bound.content_type
            flow.request.content = bound.body
        if item is not None and outcome.version and preconditions.depends_on_state(operation):
            # What the last look saw, and not what somebody makes of it before the patch gets there.
            flow.request.content = preconditions.at_version(operation, request.body, outcome.version)
        seal.put(flow)
        logger.info("passed by %s: %r for %r", outcome.by, operation.summary, username(known))
        known.passed.add((self.name, "request"))

    def case(
        self,
        flow: http.HTTPFlow,
        known: facts.Facts,
        operation: Operation,
        request: objects.Request,
        server: apiserver.ApiServer,
    ) -> Case:
        identity = known.identity or ANONYMOUS
        as_gateway = getattr(ctx.options, "tollgate_upstream_identity", "impersonate") == "gateway"

        async def same() -> Identity:
            return identity

        def waits(name: str) -> None:
            known.held_for = flow.comment = name  # a column of mitmweb's; nothing of ours reads the comment back

        return Case(
            identity=identity,
            operation=operation,
            request=request,
            verdict=known.verdict,
            audit_id=known.audit_id,
            connection=flow.client_conn.id,
            left=lambda: wire.left(flow),
            identify=known.identify_again or same,
            judge=known.judge_again or (lambda: known.verdict),
            previewer=Previewer(
                server,
                None if as_gateway else identity,
                frozenset(getattr(ctx.options, "tollgate_forward_extra", ())),
                maskpreviews.of(operation, current(known).record_level(operation)),
            ),
            waits=waits,
        )

    # ----- the virtual API -----

    def point(self, flow: http.HTTPFlow, known: facts.Facts, operation: Operation) -> status.Refusal | None:
        """To the server in this process, as this viewer, with nothing of what the client sent but what it needs."""
        address = inside.address()
        if self.virtual is None or address is None:
            return NO_DESK
        if known.verdict.action is Action.HOLD:
            return NEVER_HELD
        request = flow.request
        target = request.data.path.decode("latin-1")
        ticket = self.virtual.ticket(self.viewer(known), request.data.method.decode("latin-1"), target)
        kept = upstreamrequest.allowed(request.headers.fields, "")
        if request.raw_content:
            kept.append((b"content-length", b"%d" % len(request.raw_content)))
        kept += [(b"host", b"%s:%d" % (address[0].encode(), address[1])), (TICKET_HEADER.encode(), ticket.encode())]
        request.scheme, request.host, request.port = "http", *address
        request.headers = http.Headers(kept)
        known.served_here = address
        return None

    def viewer(self, known: facts.Facts) -> Viewer:
        identity = known.identity or ANONYMOUS
        policies = current(known)
        return Viewer(
            identity,
            agent=policies.is_agent(identity),
            auditor=policies.is_auditor(identity),
            ask_ahead=lambda access: askahead.ask_ahead(
                policies,
                identity,
                access.verbs,
                access.resources,
                access.namespace,
                own_namespace=getattr(ctx.options, "tollgate_own_namespace", "tollgate"),
            ),
            may_read=lambda record: self.may_read(policies, identity, record),
            revision=policies.revision,
        )

    async def may_read(self, policies: PolicySet, identity: Identity, record: approvals.Record) -> bool:
        """By the policies and by RBAC, as if he sent the request himself."""
        own_namespace = getattr(ctx.options, "tollgate_own_namespace", "tollgate")
        if not virtualapi.policies_let_read(policies, identity, record, own_namespace):
            return False
        return await self.rights.may_read(identity, record)

    def speaks_of_us(self, flow: http.HTTPFlow, known: facts.Facts, operation: Operation) -> bool:
        """
        Whether it is a question that only we can answer (`kubectl auth can-i patch approvals`), and is
        answered. Where the API server's answer must speak of our group too, it is changed on its way back.
        """
        if not operation.impacts <= _ASKING:
            return False
        policies = current(known)
        decides = virtualmerging.decide(policies, known.identity or ANONYMOUS)
        answer = virtualmerging.review(operation, decides)
        if answer is not None:
            content = {"Content-Type": "application/json"}
            flow.response = http.Response.make(201, json.dumps(answer).encode(), content)
            known.answered_by = self.name
            return True
        change = virtualmerging.change(operation, decides)
        if change is not None:
            headers = flow.request.headers
            # Our page has an ETag of its own; what the client has from the API server itself is another.
            theirs = virtualdiscovery.etag_in(headers.pop("if-none-match", ""))
            if theirs is not None:
                headers["if-none-match"] = theirs
            headers["accept"] = virtualmerging.accept(operation, headers.get("accept", ""))
            self.changes[flow] = change
            known.whole = True
            seal.put(flow)
        return False

    def follow_policies(self, policies: Callable[[], PolicySet]) -> None:
        """Who may see what may have changed: watches of the virtual API begin anew."""
        revision = policies().revision
        if revision != self.revision:
            if self.revision and self.virtual is not None:
                self.virtual.end_watches()
            self.revision = revision

    # ----- answers -----

    def responseheaders(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        known, response = facts.of(flow), flow.response
        outcome = self.spent.get(flow)
        rest = None
        if outcome is not None and outcome.record is not None:
            released = went_upstream(known)
            if released and response.status_code == 409 and preconditions.deletes_one(known.need_operation()):
                known.answer_refusal = REPLACED
            bound = outcome.version and preconditions.depends_on_state(known.need_operation())
            if released and bound and response.status_code == 422:
                # A moment ago its dry run was good: the test of the version is what fails.
                known.answer_refusal = CHANGED
            # A handshake that failed began nothing: kubectl tries the same again as SPDY. Not behind a
            # proxy: a program there may do what a GET says and answer 200, as often as it is asked.
            refused_upgrade = holding.is_connect(known.need_operation()) and bool(known.need_operation().upgrade)
            refused_upgrade = refused_upgrade and response.status_code != 101
            if not released or refused_upgrade:
                rest = self.give_back(flow, known, outcome)
        if flow in self.changes and response.status_code == 304 and "etag" in response.headers:
            response.headers["etag"] = virtualdiscovery.etag_out(response.headers["etag"])
        known.passed.add((self.name, "responseheaders"))
        return rest

    def response(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        change = self.changes.pop(flow, None)
        if change is not None and known.answer is not None and known.answer.status_code in (200, 201):
            changed(known.answer, change)
        if answers.code(flow) != 101:  # an upgraded one has only begun
            self.granted.pop(flow, None)
        known.passed.add((self.name, "response"))

    def error(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        outcome, known = self.spent.get(flow), facts.of(flow)
        if outcome is None or (went_upstream(known) and connected(flow)):
            return None  # a connection that broke says nothing about what was done: spent
        return self.give_back(flow, known, outcome)

    async def give_back(self, flow: http.HTTPFlow, known: facts.Facts, outcome: Outcome) -> None:
        self.spent.pop(flow, None)
        if self.desk is not None and outcome.record is not None:
            await self.desk.give_back(outcome.record.name, outcome.digest, known.audit_id)

    # ----- streams -----

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        self.granted.pop(flow, None)

    async def keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            try:
                self.sweep()
            # An error for one stream must not let all others live for ever.
            except Exception:
                logger.exception("ending what ended grants had opened")

    def sweep(self) -> None:
        """Cut every stream whose grant is over or was revoked."""
        for flow, grants in list(self.granted.items()):
            if flow.client_conn.state is connection.ConnectionState.CLOSED:
                self.granted.pop(flow, None)
            elif facts.of(flow).released and (self.desk is None or self.desk.ended(grants)):
                self.granted.pop(flow, None)
                cutting.cut(flow, GRANT_OVER)

    # ----- at the proxy's own console -----

    @command.command("tollgate.approve")
    def approve(self, flow: mitmflow.Flow, reason: str = "") -> None:
        """Say yes to the approval that a flow waits for."""
        self.decide_here(flow, approved=True, reason=reason)

    @command.command("tollgate.deny")
    def deny(self, flow: mitmflow.Flow, reason: str = "") -> None:
        """Say no to the approval that a flow waits for."""
        self.decide_here(flow, approved=False, reason=reason)

    def decide_here(self, flow: mitmflow.Flow, *, approved: bool, reason: str) -> None:
        name = facts.of(flow).held_for
        if not name or self.book is None:
            raise exceptions.CommandError("this flow waits for no approval")
        who = Identity(username="operator:" + operator())
        decider = approvals.Decider(who, agent=False, via="operator")
        task = asyncio.get_running_loop().create_task(self.decide(name, decider, approved, reason))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def decide(self, name: str, decider: approvals.Decider, approved: bool, reason: str) -> None:
        if self.book is None:
            return
        try:
            await self.book.step(
                APPROVALS, name, lambda kept: approvals.decide(kept, decider, approved, reason, self.clock())
            )
        except (approvals.NotAllowed, Missing, store.StoreError) as e:
            logger.error("approval %s: %s", name, e)
            return
        logger.warning("approval %s: %s by %s", name, "approved" if approved else "denied", decider.identity.username)


def approvers_of(outcome: Outcome) -> tuple[str, ...]:
    """Who said yes, to this or to the grants that let it pass; each once."""
    decisions = outcome.record.decisions if outcome.record is not None else ()
    names = [one.username for one in decisions if one.approved]
    names += [name for grant in outcome.grants for name in grant.approvers]
    return tuple(dict.fromkeys(names))


def current(known: facts.Facts) -> PolicySet:
    """direction: where no policies are, everybody is an agent, and nobody may do anything."""
    return known.policies() if known.policies is not None else DENY_ALL


def changed(answer: http.Response, change: virtualmerging.Change) -> None:
    """The API server's page with our group in it, and an ETag of its own."""
    tag = answer.headers.pop("etag", "")
    try:
        answer.content = change(answer.content or b"", answer.headers.get("content-type", ""))
    except (virtualdiscovery.NotMerged, ValueError) as e:
        # Nothing is shown that should not be; clients find our group by asking for it. Without the
        # ETag, or they would keep this page as if ours were in it.
        logger.warning("an answer was passed on without tollgate.dev in it: %s", e)
        return
    if tag:
        answer.headers["etag"] = virtualdiscovery.etag_out(tag)


def bind_keys() -> None:
    """Keys of the terminal interface; the other programs have none."""
    if "console.key.bind" in ctx.master.commands.commands:
        for key, act in (("ctrl y", "approve"), ("ctrl n", "deny")):
            ctx.master.commands.call("console.key.bind", ["flowlist", "flowview"], key, f"tollgate.{act} @focus", [act])


def operator() -> str:
    """Who sits at the console. In a container the user that it runs as may have no name."""
    try:
        return ctx.options.tollgate_operator or getpass.getuser()
    except (KeyError, OSError) as e:
        raise exceptions.CommandError("set tollgate_operator to your name first: a decision needs one") from e


def username(known: facts.Facts) -> str:
    return (known.identity or ANONYMOUS).username


addons = [Approve()]
