"""
Guard: nothing reaches the API server, and nothing the client, that was not judged.

Two addons that fail independently. `Guard`, the first script, refuses every request before
anyone looks at it and withholds every answer; it also refuses by itself what two parsers
could read differently and what is more than a caller's share. `LastWord` stands after
everything, outside the scripts, and lifts a refusal only from a flow that every addon of the
stack has stamped. An exception, a missing, broken or deleted script: the refusal stands.

mitmproxy is started without a server (`--no-server`); the port opens when the stack is there.
"""

import asyncio
import logging
import signal
import sys
import time
import uuid
from collections.abc import Coroutine
from typing import Any

from mitmproxy import connection, ctx, exceptions, http, tcp
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from addons.core import canonical, facts, headers, limits, requestinfo, stack, status
from addons.core.model import Action
from addons.mitm import (
    answers,
    backpressure,
    bodies,
    cutting,
    errors,
    floods,
    goaway,
    inside,
    intercepting,
    listening,
    logs,
    options,
    seal,
    websockets,
    wire,
    withholding,
)
from addons.mitm.connections import close, lift_limit
from addons.mitm.withholding import ANSWER_NOT_JUDGED
from addons.net import undumpable

logger = logging.getLogger(__name__)

START_LIMIT = 20.0  # seconds for all scripts to load; a laptop needs 2
SILENCE_LIMIT = 30.0  # seconds from connecting to the first complete request head, TLS included
SETTLED = 0.05  # seconds after the last `running` hook; mitmproxy needs one turn of the loop to leave
READY_LIMIT = 3.0  # seconds to wait for addons that have a `ready` and are not

NOT_JUDGED = status.Refusal(
    503,
    "not-judged",
    "tollgate: a part of the gateway failed or is not ready, so the request was not judged and nothing was sent to "
    "the API server; try again, and if it stays so show the operator this message, the log says which part",
)
REDIRECT = status.Refusal(
    502, "redirect", "tollgate: the API server answered with a redirect, which is not followed; ask the operator"
)

# Upgrades that carry streams of a pod or node; a watch by WebSocket and the like are refused.
STREAMING = frozenset({("pods", "exec"), ("pods", "attach"), ("pods", "portforward")}) | frozenset(
    (resource, "proxy") for resource in ("pods", "services", "nodes")
)


class Guard:
    name = "tollgate_guard"

    def __init__(self) -> None:
        self.stack = stack.FULL  # the strictest demand until configured
        self.broken = "not configured yet"
        self.opening: asyncio.Task[None] | None = None
        self.all_running = False  # said by LastWord: every addon's `running` has been called, and awaited
        self.sources = limits.Buckets(0, 0)
        self.identities = limits.Buckets(0, 0)
        self.open_by_source = limits.Shares(0)
        self.open_by_identity = limits.Shares(0)
        self.digest = limits.Digest()
        self.upgraded: dict[str, http.HTTPFlow] = {}  # client connection id -> the exchange it was upgraded from
        self.connections = limits.Shares(0)
        self.connected: dict[str, str] = {}  # client connection id -> the source whose share it holds
        self.silent: dict[str, asyncio.TimerHandle] = {}  # connections that have not sent a request yet
        # flow -> the keys it holds a share of; by client, so that a lost connection gives all back
        self.lent: dict[str, dict[http.HTTPFlow, list[tuple[limits.Shares, str]]]] = {}

    def load(self, loader) -> None:
        for patches in (
            wire,
            errors,
            floods,
            goaway,
            cutting,
            bodies,
            backpressure,
            websockets,
            listening,
            withholding,
            intercepting,
        ):
            patches.install()
        loader.add_option(
            "tollgate_stack",
            str,
            "",
            "The addons that each request must have passed, comma-separated. Default: all of them. "
            "Leaving one out gives up what it protects.",
        )
        loader.add_option(
            "tollgate_allow_spdy",
            bool,
            False,
            "Let exec, attach and port-forward through as SPDY, whose frames cannot be judged or masked. "
            "Default: WebSocket only, which kubectl 1.31 and newer speaks.",
        )
        loader.add_option(
            "tollgate_identity_rate", int, 200, "Requests a second of one identity, bursts of twice that. 0: no limit."
        )
        loader.add_option(
            "tollgate_source_rate",
            int,
            1000,
            "Requests a second from one source address, bursts of twice that. 0: no limit.",
        )
        loader.add_option(
            "tollgate_identity_open",
            int,
            500,
            "Requests and streams that one identity may have open at once. 0: no limit.",
        )
        loader.add_option(
            "tollgate_source_open",
            int,
            2000,
            "Requests and streams that one source address may have open at once. 0: no limit.",
        )
        loader.add_option(
            "tollgate_source_connections",
            int,
            1000,
            "Connections that one source address may have open at once. 0: no limit.",
        )
        loader.add_option(
            "tollgate_body_timeout",
            int,
            bodies.TIME_LIMIT,
            "Seconds from the end of a request's head to the end of its body. 0: no limit, so that slow senders keep "
            "memory and open requests.",
        )
        loader.add_option(
            "tollgate_failed_authentications",
            int,
            60,
            "Failed authentications a minute that one source address is told about; further ones are "
            "refused without a reason. 0: no limit.",
        )
        loader.add_option(
            "tollgate_reuse_port",
            bool,
            False,
            "Share the port with another process of the same user (SO_REUSEPORT), so that a new gateway can take over "
            "from an old one. Default: whoever listens there has it alone.",
        )
        loader.add_option(
            "tollgate_log",
            str,
            logs.TEXT,
            "How the log is written: text (default), or json: one line a record, with the id of its request, which "
            "is the Audit-ID too.",
            choices=(logs.TEXT, logs.JSON),
        )
        logs.tidy()
        manager = ctx.master.addons
        if (old := manager.get(LastWord.name)) is not None:
            manager.remove(old)  # this script was edited and loaded again
        # Top-level and last: it survives every reload of scripts, and nobody speaks after it.
        last = LastWord(self)
        manager.add(last)
        # mitmproxy does that for scripts only; without it the defaults would count for nothing.
        last.configure(set(ctx.options.keys()))

    def configure(self, updated: set[str]) -> None:
        if updated & {"tollgate_identity_rate", "tollgate_source_rate"} or not self.sources.rate:
            self.identities = limits.Buckets(ctx.options.tollgate_identity_rate, 2 * ctx.options.tollgate_identity_rate)
            self.sources = limits.Buckets(ctx.options.tollgate_source_rate, 2 * ctx.options.tollgate_source_rate)
        self.open_by_identity.most = ctx.options.tollgate_identity_open
        self.open_by_source.most = ctx.options.tollgate_source_open
        self.connections.most = ctx.options.tollgate_source_connections
        if "tollgate_log" in updated:
            logs.write_as(ctx.options.tollgate_log)
        try:
            self.stack = stack.parse(ctx.options.tollgate_stack)
        except stack.StackError as e:
            self.stack, self.broken = stack.FULL, str(e)
            raise exceptions.OptionsError(f"tollgate_stack: {e}") from e
        # Everything else of mitmproxy that could go around the addons. Checked at every change:
        # mitmweb and config.yaml can set options too.
        found = options.violations(ctx.options, ctx.options.tollgate_allow_spdy)
        if found:
            self.broken = "; ".join(found)
            raise exceptions.OptionsError(f"tollgate refuses to work with these options: {self.broken}")
        self.broken = ""

    def running(self) -> None:
        undumpable.forbid_reading()
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            # Else it ends the process at once: who is held hears nothing, and the last reads are not on record.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up)
        if not ctx.options.server and self.opening is None:
            self.opening = asyncio.get_running_loop().create_task(self.open_port(), name="tollgate opens the port")

    def done(self) -> None:
        # A start that failed elsewhere: other addons may take a moment to end, and no port opens meanwhile.
        if self.opening is not None:
            self.opening.cancel()
        if ctx.master.should_exit.is_set() and ctx.options.tollgate_reuse_port:
            # Whoever comes now is the other process's. Alone it goes on to listen, and says that it goes down.
            listening.stop(ctx.master.addons.get("proxyserver"))

    async def open_port(self) -> None:
        """Open the port once every addon of the stack is loaded; leave with an error if that does not happen."""
        server = ctx.master.addons.get("proxyserver")
        deadline = time.monotonic() + START_LIMIT
        wanted = {stack.addon_name(a) for a in self.stack.addons}
        while missing := {name for name in wanted if ctx.master.addons.get(name) is None}:
            if time.monotonic() > deadline:
                give_up(f"{', '.join(sorted(missing))} did not load within {START_LIMIT:.0f} s")
            await asyncio.sleep(0.02)
        while not server.is_running or not self.all_running:  # noqa: ASYNC110 (mitmproxy has no event for it)
            await asyncio.sleep(0.02)
        # mitmproxy leaves now when a hook failed until here; it must not have opened the port first.
        await asyncio.sleep(SETTLED)
        if self.broken:
            give_up(self.broken)
        # What an addon has to compute first needs nobody else, so it is waited for: it would cost the
        # first requests the same time.
        prepared = [check for name in wanted if (check := getattr(ctx.master.addons.get(name), "prepared", None))]
        while not all(check() for check in prepared) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        # What an addon fetches first (the issuers' keys) is usually there in a moment. If not, the
        # port opens all the same and requests are told so.
        deadline = time.monotonic() + READY_LIMIT
        checks = [check for name in wanted if (check := getattr(ctx.master.addons.get(name), "ready", None))]
        while not all(check() for check in checks) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        ctx.options.update(server=True)
        await server.setup_servers()
        if not server.listen_addrs():
            give_up(f"cannot listen on {ctx.options.listen_host}:{ctx.options.listen_port}, see above")
        logger.info("tollgate is ready; every request passes guard, %s", ", ".join(self.stack.addons))

    # ----- connections -----

    def client_connected(self, client: connection.Client) -> None:
        source, now = client.peername[0], time.monotonic()
        if not self.connections.borrow(source):
            # Before TLS there is no way to say why; descriptors are what this saves.
            client.error = "tollgate: too many connections from this address"
            if count := self.digest.note(f"{source} connections", now):
                logger.warning("source address %s is over tollgate_source_connections: %d refused", source, count)
            return
        self.connected[client.id] = source
        loop = asyncio.get_running_loop()
        self.silent[client.id] = loop.call_later(SILENCE_LIMIT, close, client)
        lift_limit(client)

    def client_disconnected(self, client: connection.Client) -> None:
        if (timer := self.silent.pop(client.id, None)) is not None:
            timer.cancel()
        if (source := self.connected.pop(client.id, None)) is not None:
            self.connections.give_back(source)
        for flow in list(self.lent.get(client.id, ())):
            self.give_back(flow)

    def http_connect(self, flow: http.HTTPFlow) -> None:
        answers.refuse(flow, self.name, status.Refusal(405, "connect", "tollgate: CONNECT is not served here"))

    # ----- requests -----

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if (timer := self.silent.pop(flow.client_conn.id, None)) is not None:
            timer.cancel()
        facts.forget(flow)
        known = facts.of(flow)
        # Nobody has looked yet: the answer is no, and stays so unless LastWord lifts it.
        known.refusal = flow.response = answers.response(NOT_JUDGED)
        known.started = time.monotonic()
        # The id that its record and the API server's audit log have as well.
        known.audit_id = str(uuid.uuid4())
        known.about = logs.About(known.audit_id, flow.request.headers.fields)
        logs.about(known.about)
        try:
            if self.broken:
                raise status.Refused(503, "gateway-misconfigured", NOT_JUDGED.message)
            self.within_share_of_source(flow, known.started)
            check_head(flow, ctx.options.tollgate_allow_spdy)
        except status.Refused as e:
            answers.refuse(flow, self.name, e.refusal)
            return
        known.passed.add((self.name, "requestheaders"))

    def request(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        """Not a coroutine but where a person wants to see it first: mitmproxy awaits what it gets."""
        known = facts.of(flow)
        logs.about(known.about)
        if known.answered_by:
            return None
        if intercepting.is_wanted(flow):
            return self.request_by_hand(flow, known)
        self.admit(flow, known)
        return None

    async def request_by_hand(self, flow: http.HTTPFlow, known: facts.Facts) -> None:
        """Stopped before anybody has judged it; what a person makes of it is judged like any other."""
        before = seal.value(flow.request)
        await intercepting.wait(flow)
        if flow.error:
            return  # killed
        if before != seal.value(flow.request):
            known.edited = True
            logger.warning("edited by hand at this console: %r %r", flow.request.method, flow.request.path)
            try:
                check_head(flow, ctx.options.tollgate_allow_spdy)
            except status.Refused as e:
                answers.refuse(flow, self.name, e.refusal)
                return
        self.admit(flow, known)

    def admit(self, flow: http.HTTPFlow, known: facts.Facts) -> None:
        try:
            check_body(flow)
            if known.identity is not None:
                self.within_share_of_identity(flow, known.identity.username)
        except status.Refused as e:
            answers.refuse(flow, self.name, e.refusal)
            return
        known.passed.add((self.name, "request"))

    def within_share_of_source(self, flow: http.HTTPFlow, now: float) -> None:
        source = flow.client_conn.peername[0]
        if not self.sources.take(source, now):
            self.over(f"source address {source}", "tollgate_source_rate", "requests a second", now)
        self.lend(flow, self.open_by_source, source, f"source address {source}", "tollgate_source_open", now)

    def within_share_of_identity(self, flow: http.HTTPFlow, username: str) -> None:
        now = time.monotonic()
        if not self.identities.take(username, now):
            self.over(f"identity {username}", "tollgate_identity_rate", "requests a second", now)
        self.lend(flow, self.open_by_identity, username, f"identity {username}", "tollgate_identity_open", now)

    def lend(self, flow: http.HTTPFlow, shares: limits.Shares, key: str, who: str, option: str, now: float) -> None:
        if not shares.borrow(key):
            self.over(who, option, "open requests and streams", now)
        self.lent.setdefault(flow.client_conn.id, {}).setdefault(flow, []).append((shares, key))

    def over(self, who: str, option: str, what: str, now: float) -> None:
        if count := self.digest.note(f"{who} {option}", now):
            logger.warning("%s is over %s: %d refused", who, option, count)
        # 403, not 429: client-go repeats a 429 by itself, which is the flood this limit is for.
        raise status.Refused(
            403,
            "over-limit",
            f"tollgate: {who} is over the limit {option} ({getattr(ctx.options, option)} {what}); "
            "wait a moment and send less at once",
        )

    def give_back(self, flow: http.HTTPFlow) -> None:
        of_client = self.lent.get(flow.client_conn.id)
        if of_client is None:
            return
        for shares, key in of_client.pop(flow, ()):
            shares.give_back(key)
        if not of_client:
            del self.lent[flow.client_conn.id]

    # ----- answers -----

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        logs.about(known.about)
        # 304 answers If-None-Match and carries no location. Any other 3xx would send the
        # client, with its token, to a place that nobody judged (CVE-2020-8559).
        if known.released and 300 <= flow.response.status_code < 400 and flow.response.status_code != 304:
            known.answer_refusal = REDIRECT
        known.passed.add((self.name, "responseheaders"))

    def response(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        logs.about(known.about)
        if known.released and not flow.websocket and not flow.response.stream:
            known.answer, flow.response = flow.response, answers.response(ANSWER_NOT_JUDGED)

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        logs.about(known.about)
        known.judged = set()
        flow.websocket.messages[-1].dropped = True  # until LastWord has seen that everyone judged it

    def tcp_start(self, flow: tcp.TCPFlow) -> None:
        origin = self.upgraded.get(flow.client_conn.id)
        if origin is None:
            flow.kill()  # raw bytes that began with no judged request
        else:
            facts.adopt(flow, origin)

    def tcp_message(self, flow: tcp.TCPFlow) -> None:
        known = facts.of(flow)
        known.judged = set()
        message = flow.messages[-1]
        # With its message, so that this content cannot go on in place of another's.
        known.answer, message.content = (message, message.content), b""


class LastWord:
    """The only place where a refusal is lifted, and the last hook of every event."""

    name = "tollgate_last_word"

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.failed = limits.Buckets(0, 0)

    def configure(self, updated: set[str]) -> None:
        if "tollgate_failed_authentications" in updated:
            per_minute = ctx.options.tollgate_failed_authentications
            self.failed = limits.Buckets(per_minute / 60, per_minute)

    def running(self) -> None:
        self.guard.all_running = True

    def http_connect(self, flow: http.HTTPFlow) -> None:
        if flow.response is None or flow.response.status_code < 300:
            flow.response = answers.response(NOT_JUDGED)

    def server_connect(self, data: ServerConnectionHookData) -> None:
        # Whatever a flow was made to say, there is one place to go.
        mode = data.client.proxy_mode
        if data.server.address not in (getattr(mode, "address", None), inside.address()):
            data.server.error = "tollgate: only the API server is connected to"

    def request(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        untouched = known.refusal is not None and flow.response is known.refusal and not known.answered_by
        if untouched and known.passed >= self.guard.stack.request and not flow.error and not flow.is_replay:
            if seal.is_broken(flow):
                flow.response = answers.response(seal.CHANGED)
                logger.error("refused %r: it was changed after the verdict", flow.request.method)
            elif known.cut_off is not None:
                # Revoked while an addon waited for something after authenticate had passed it.
                flow.response = answers.response(known.cut_off)
                logger.info("refused %r: %s", flow.request.method, known.cut_off.cause)
            elif known.verdict.action is Action.HOLD and not known.approval:
                # The stamp of approve says the same; what a human must agree to has two locks.
                logger.error("refused %r: it is held and nobody approved it", flow.request.method)
            else:
                known.released, flow.response = True, None
        elif flow.response is None:
            flow.response = answers.response(NOT_JUDGED)
        if flow.response is not None:
            self.refused(flow, known)

    def refused(self, flow: http.HTTPFlow, known: facts.Facts) -> None:
        if flow.response is known.refusal:
            missing = sorted(f"{a}.{h}" for a, h in self.guard.stack.request - known.passed)
            logger.error("refused %r: not passed: %s", flow.request.method, ", ".join(missing))
        elif known.answered_by == "tollgate_authenticate" and flow.response.status_code == 401:
            now, source = time.monotonic(), flow.client_conn.peername[0]
            if self.failed.rate and not self.failed.take(source, now):
                # After authentication, not before: a neighbour with an expired token behind the same
                # address must not lock out those whose tokens are good.
                limit = ctx.options.tollgate_failed_authentications
                who = f"source address {source}"
                if count := self.guard.digest.note(f"{who} failed", now):
                    logger.warning("%s is over tollgate_failed_authentications: %d refused", who, count)
                flow.response = answers.response(
                    status.Refusal(
                        403,
                        "over-limit",
                        f"tollgate: {who} is over the limit tollgate_failed_authentications ({limit} a minute); "
                        "get a valid token, then wait a minute",
                    )
                )

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        if not known.released:
            return
        refusal = known.answer_refusal
        if refusal is None and not known.passed >= self.guard.stack.responseheaders:
            refusal = ANSWER_NOT_JUDGED
        if refusal is not None:
            known.answer_refusal = refusal
            flow.response.stream = False  # the body, if any, comes to nobody
            if flow.response.status_code != 101:  # which has no body: `response` follows at once, and answers
                cutting.cut(flow, refusal)
            return
        known.head_released = True

    def response(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        if known.released:
            self.release_answer(flow, known)
        if flow.response.status_code != 101:
            self.guard.give_back(flow)

    def release_answer(self, flow: http.HTTPFlow, known: facts.Facts) -> None:
        wanted = self.guard.stack.response
        judged = known.head_released and known.passed >= wanted
        streamed = bool(flow.websocket or flow.response.stream)
        if known.answer_refusal is not None and not (known.head_released and flow.response.stream):
            flow.websocket, flow.response = None, answers.response(known.answer_refusal)
        elif known.answer_refusal is not None or not judged or not (streamed or known.answer):
            # What streams has begun, and is broken off by addons/mitm/withholding.py.
            missing = sorted(f"{a}.{h}" for a, h in wanted - known.passed)
            logger.error("withheld the answer to %r: not passed: %s", flow.request.method, ", ".join(missing))
            if not streamed:
                flow.response = answers.response(ANSWER_NOT_JUDGED)
            return
        elif not streamed:
            flow.response, known.answer = known.answer, None
            if flow.response.status_code == 101:
                self.guard.upgraded[flow.client_conn.id] = flow
        # Else judged by its head, and then frame by frame or chunk by chunk.
        known.answer_released = True

    def error(self, flow: http.HTTPFlow) -> None:
        self.guard.give_back(flow)

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        message = flow.websocket.messages[-1]
        if message.content == known.last_words != b"":
            message.dropped, known.frame, known.instead = False, message, None
        elif known.judged >= self.guard.stack.frame:
            message.dropped, known.frame = known.instead is not None, message
        else:
            # The guard's own hook may be what failed, so it is said again here.
            message.dropped, known.instead = True, None
            if not known.last_words:
                cutting.cut(flow, ANSWER_NOT_JUDGED)
        known.judged = set()  # stamps are for one frame: an exception before the next must not find these
        del flow.websocket.messages[:-1]  # mitmproxy keeps all of them in memory

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        self.guard.give_back(flow)

    def tcp_message(self, flow: tcp.TCPFlow) -> None:
        known = facts.of(flow)
        message, origin = flow.messages[-1], self.guard.upgraded.get(flow.client_conn.id)
        withheld, content = known.answer or (None, b"")
        if origin is not None and withheld is message and known.judged >= self.guard.stack.frame:
            message.content, known.frame = content, message
        else:
            message.content = b""
            if origin is not None:
                cutting.cut(origin, ANSWER_NOT_JUDGED)
        known.answer, known.judged = None, set()
        del flow.messages[:-1]

    def client_disconnected(self, client: connection.Client) -> None:
        self.guard.upgraded.pop(client.id, None)


def hung_up() -> None:
    logger.info("SIGHUP: policies, keys and lists are read again whenever they change; SIGTERM ends the gateway")


def give_up(reason: str) -> None:
    """Leave: a gateway that cannot guard must not look as if it were up."""
    logger.error("tollgate cannot start: %s", reason)
    sys.exit(1)


def check_head(flow: http.HTTPFlow, allow_spdy: bool) -> None:
    """Refuse what two parsers could read differently. Raises status.Refused."""
    request = flow.request
    # By what TLS agreed on, not by the request line: `GET https://other/ HTTP/2.0` is a line of HTTP/1.
    http2 = flow.client_conn.alpn == b"h2"
    if not flow.client_conn.tls_established:
        # mitmproxy also takes plain HTTP on the TLS port: a token sent so was on the wire in clear.
        raise status.Refused(
            400, "plaintext", "tollgate: only https is served here; use https:// and treat the token you sent as leaked"
        )
    if request.http_version != ("HTTP/2.0" if http2 else "HTTP/1.1"):
        raise status.Refused(400, "http-version", "tollgate: only HTTP/1.1 and HTTP/2 are served")
    fields = request.headers.fields
    headers.check(fields)
    sent = wire.authority(request)
    if sent is not None:
        headers.check_authority(sent.authority, sent.hosts, http2=http2)
    # As sent: mitmproxy's `request.method` is upper case, and `delete` is another method.
    method = request.data.method.decode("latin-1")
    target = canonical.read(method, request.path)
    protocol = headers.upgrade_protocol(request.headers.get_all("upgrade"), http2=http2)
    if protocol:
        info = requestinfo.parse(method, target.path, target.query)
        if (info.resource, info.subresource) not in STREAMING or info.api_group:
            raise status.Refused(
                400, "upgrade-here", "tollgate: this path is not one that can be upgraded; send it without Upgrade"
            )


def check_body(flow: http.HTTPFlow) -> None:
    """Refuse bodies that some hop would not see. Raises status.Refused."""
    request = flow.request
    if request.trailers:
        raise status.Refused(400, "trailers", "tollgate: trailers are not accepted; send headers before the body")
    if request.raw_content and (request.method in ("GET", "HEAD") or "upgrade" in request.headers):
        raise status.Refused(
            400, "body-unexpected", f"tollgate: a {request.method} or an upgrade has no body; send it without one"
        )


addons = [Guard()]
