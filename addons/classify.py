"""
Classify: turn the request into an operation, in Kubernetes' own terms, or refuse it; and say
how far it reaches before it gets there.

What has two readings (a path, a query, a body) is refused here with a sentence; what has
one goes on as `facts.operation`. Rules: addons/core/classify.py and the modules it uses.
What a change destroys beyond its one object (addons/core/blast.py) is counted upstream, as the
identity, when something must be; every other request is not delayed.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Sequence
from urllib.parse import parse_qsl
from weakref import WeakKeyDictionary

from mitmproxy import ctx, exceptions, http
from mitmproxy.addonmanager import Loader

from addons.core import blast, classify, commands, facts, status
from addons.core.model import ANONYMOUS, Identity, Impact, Operation
from addons.mitm import answers, options, seal
from addons.net import apiserver, counting

logger = logging.getLogger(__name__)

LARGE = 128 * 1024  # bytes of a body that are read in a thread; 5 ms of a JSON body, more than any by hand

NOT_CONFIGURED = (
    "tollgate: a part of the gateway is not configured, so the request was not judged and nothing was sent to the API "
    "server; tell the operator, the log says what failed"
)

_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


class Classify:
    name = "tollgate_classify"

    def __init__(self) -> None:
        self.own_namespace = ""  # not configured yet: nothing is classified
        self.clock = time.monotonic
        self.memory = commands.Commands()
        self.server: apiserver.ApiServer | None = None  # direction: nothing can be counted, so all is many
        # Requests that take an object away, until it is known whether they went upstream.
        self.places: WeakKeyDictionary[http.HTTPFlow, commands.Place] = WeakKeyDictionary()
        self.asking: dict[tuple[str, blast.Ask], asyncio.Task[blast.Found | None]] = {}

    def load(self, loader: Loader) -> None:
        options.declare_kubeconfig(loader)
        loader.add_option(
            "tollgate_own_namespace",
            str,
            "tollgate",
            "Namespace the gateway itself runs in. Changes in it count as escalate, so that nobody edits the "
            "gateway through the gateway. Cannot be empty.",
        )
        loader.add_option(
            "tollgate_run_window",
            int,
            int(commands.WINDOW),
            "Seconds, default 60. Two objects of one kind that an identity deletes within them count as a mass "
            "delete, whatever the client says of itself. 0 turns that off: only kubectl's own words then tell a "
            "loop of deletes, and budgets are all that stops one.",
        )

    def configure(self, updated: set[str]) -> None:
        namespace, window = ctx.options.tollgate_own_namespace, ctx.options.tollgate_run_window
        if not _NAMESPACE.fullmatch(namespace):
            # Empty would silently protect nothing.
            raise exceptions.OptionsError("tollgate_own_namespace: must be the name of a namespace")
        if not 0 <= window <= commands.SESSION:
            raise exceptions.OptionsError("tollgate_run_window: must be from 0 to 3600 seconds")
        self.own_namespace, self.memory.window = namespace, float(window)
        if "tollgate_kubeconfig" in updated:
            try:
                self.server = apiserver.shared(ctx.options.tollgate_kubeconfig)
            except apiserver.KubeconfigError as e:
                # Where requests go upstream, that addon refuses to start; a stack without it can still tell.
                self.server = None
                logger.warning("tollgate_kubeconfig: %s; what a request reaches cannot be counted", e)

    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        known = facts.of(flow)
        if known.answered_by:
            return None  # refused by an earlier addon, whose answer stands
        seal.put(flow)  # what is read now is what goes upstream, or nothing does
        body = flow.request.raw_content  # as it came: the API server undoes no Content-Encoding either
        if body is not None and len(body) > LARGE:
            return self.request_with_large_body(flow, known, body)
        try:
            operation = self.classified(flow, body)
        except status.Refused as refused:
            answers.refuse(flow, self.name, refused.refusal)
            return None
        return self.consider(flow, known, operation)

    async def request_with_large_body(self, flow: http.HTTPFlow, known: facts.Facts, body: bytes) -> None:
        """The same, read beside the loop: 3 MiB made for it take a second, and everybody else would wait."""
        try:
            operation = await asyncio.to_thread(self.classified, flow, body)
        except status.Refused as refused:
            answers.refuse(flow, self.name, refused.refusal)
            return
        more = self.consider(flow, known, operation)
        if more is not None:
            await more

    def classified(self, flow: http.HTTPFlow, body: bytes | None) -> Operation:
        """Raises status.Refused."""
        if not self.own_namespace:
            # configure() failed: with the default, the gateway's real namespace would be like any other.
            raise status.Refused(503, "not-configured", NOT_CONFIGURED)
        request = flow.request
        if body is None:
            # Streamed past us: what nobody read here nobody may forward.
            raise status.Refused(500, "body-missing", "body: it was not kept for reading; tell the gateway's operator")
        return classify.classify_raw(
            # Not request.method, which is made upper case: `delete` is another method.
            request.data.method.decode("latin-1"),
            request.data.path.decode("latin-1"),
            request.headers.fields,
            body,
            own_namespace=self.own_namespace,
        )

    def consider(self, flow: http.HTTPFlow, known: facts.Facts, operation: Operation) -> Awaitable[None] | None:
        """What the operation is for the invocation it belongs to, and how far it reaches."""
        if blast.changes(operation):
            return self.look_ahead(flow, known, operation)
        self.establish(flow, known, self.read(flow, known, operation))
        return None

    def establish(self, flow: http.HTTPFlow, known: facts.Facts, operation: Operation) -> None:
        """The operation is known, and this hook done."""
        known.operation = operation
        if operation.summary:
            flow.comment = operation.summary  # a column of mitmweb's; nothing of ours reads it back
        known.passed.add((self.name, "request"))

    def read(self, flow: http.HTTPFlow, known: facts.Facts, operation: Operation) -> Operation:
        """Nothing that changes anything; but a LIST may be the first half of something that does."""
        verb = operation.info.verb
        if verb == "list":
            agent = flow.request.headers.get("user-agent", "")
            self.memory.saw_list(username(known), agent, operation, self.clock())
        elif verb == "get" and operation.claimed_command == "kubectl apply" and operation.claimed_session:
            self.memory.saw_named(username(known), operation, self.clock())
        if operation.impacts <= _PLAIN:
            return operation
        return commands.described(operation, flow.request.headers.get("user-agent", ""), argv_of(operation, flow))

    def look_ahead(self, flow: http.HTTPFlow, known: facts.Facts, operation: Operation) -> Awaitable[None] | None:
        agent = flow.request.headers.get("user-agent", "")
        seen = blast.look(self.memory, username(known), agent, operation, self.clock())
        place = seen.place
        if place is not None:
            self.places[flow] = place
        command = commands.command(operation, agent, place.invocation if place else None, argv_of(operation, flow))
        if seen.questions:
            return self.count(flow, known, operation, seen, command)
        self.establish(flow, known, blast.settle(operation, seen, (), command))
        return None

    async def count(
        self, flow: http.HTTPFlow, known: facts.Facts, operation: Operation, seen: blast.Look, command: str
    ) -> None:
        """Ask the API server how far it reaches. No longer than that takes, or the limit."""
        who = self.identity(known)
        tasks = [self.ask(known, who, question.ask) for question in seen.questions]
        # Not gather, not wait_for: a cancelled task's CancelledError would leave this hook, and the
        # flow would hang for ever. What is late is unknown.
        await asyncio.wait(tasks, timeout=counting.LIMIT + 0.5)
        found = [answer_of(task) for task in tasks]
        self.establish(flow, known, blast.settle(operation, seen, found, command))

    def ask(self, known: facts.Facts, who: Identity | None, ask: blast.Ask) -> asyncio.Task[blast.Found | None]:
        """One task for the same question of the same identity: the evictions of a drain come all at once."""
        key = (username(known), ask)
        task = self.asking.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self.answer(who, ask), name=f"tollgate {ask.what.value}")
            self.asking[key] = task
            task.add_done_callback(lambda _: self.asking.pop(key, None))
        return task

    async def answer(self, who: Identity | None, ask: blast.Ask) -> blast.Found | None:
        if self.server is None:
            return None
        extra = frozenset(getattr(ctx.options, "tollgate_forward_extra", ()))
        return await counting.Counter(self.server, who, extra).answer(ask)

    def identity(self, known: facts.Facts) -> Identity | None:
        """As whom we ask: as the caller, like the request itself; None is the gateway, where that is how it goes up."""
        if getattr(ctx.options, "tollgate_upstream_identity", "impersonate") == "gateway":
            return None
        return known.identity or ANONYMOUS

    def response(self, flow: http.HTTPFlow) -> None:
        if not self.places:
            return
        place = self.places.pop(flow, None)
        if place is not None and facts.of(flow).answered_by:
            commands.Commands.refused(place)


_PLAIN = frozenset({Impact.META, Impact.READ, Impact.REVEAL})


def username(known: facts.Facts) -> str:
    return (known.identity or ANONYMOUS).username


def argv_of(operation: Operation, flow: http.HTTPFlow) -> Sequence[str]:
    """What an exec runs."""
    if operation.info.subresource != "exec":
        return ()
    query = flow.request.data.path.decode("latin-1").partition("?")[2]
    return [value for key, value in parse_qsl(query) if key == "command"]


def answer_of(task: asyncio.Task[blast.Found | None]) -> blast.Found | None:
    if not task.done() or task.cancelled():
        return None
    error = task.exception()
    if error is not None:
        # Whatever it was: not counted is many.
        logger.error("counting failed", exc_info=error)
        return None
    return task.result()


addons = [Classify()]
