"""
Authenticate: turn the request's one bearer token into an identity, and take the token away.

The client is told the same sentence whatever is wrong with its token; the log has a reason
code. An identity ends when its token does, or when it is revoked: a request whose body took
longer is refused, and streams are cut within a second.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import connection, ctx, exceptions, http, tcp
from mitmproxy.addonmanager import Loader

from addons.core import approvals, authconfig, credentials, facts, limits, revocations, status, tokens
from addons.core.doctor import Finding
from addons.core.model import Identity
from addons.mitm import answers, cutting, meters, options, people
from addons.net import apiserver, issuers, revoking, store

logger = logging.getLogger(__name__)

SWEEP = 0.5  # seconds between looks at the open streams; they end within a second of their token
DRAIN = 5.0  # seconds at the end for answers that are under way; what has no end of its own ends at once
REVIEW = 10.0  # seconds between questions whether the tokens of open streams are still good, as for new requests

UNAUTHORIZED = status.Refusal(
    401,
    "unauthorized",
    "tollgate: the request has no token that is accepted here; get a new one (for a ServiceAccount: kubectl create "
    "token NAME --audience=tollgate; else log in at your identity provider) and put it into the kubeconfig",
)
UNKNOWN = status.Refusal(
    503,
    "authentication-unavailable",
    "tollgate: who you are cannot be checked now, because the token's issuer or the API server does not answer; "
    "try again in a minute, and if it stays so tell the operator",
)
EXPIRED = status.Refusal(
    401, "token-expired", "tollgate: your token expired while the request was under way; get a new one and try again"
)

REVOKED = status.Refusal(
    401, "token-revoked", "tollgate: your token is no longer accepted, so this stream ends; get a new one"
)
STOPPING = status.Refusal(
    503, "stopping", "tollgate: the gateway is going down, so this ends here; start it again when the gateway is back"
)
# To a request that was not looked at, where another process has the port too: clients of client-go come again by
# themselves, and by then find the other one.
HANDED_OVER = replace(STOPPING, cause="handed-over", retry_after=1)


class Authenticate:
    name = "tollgate_authenticate"

    def __init__(self) -> None:
        # Nobody gets in until configure() and running() have worked.
        self.authenticator: issuers.Authenticator | None = None
        self.settings: tuple[str, bool, int, str] | None = None  # what it was made from
        self.broken = False  # the first settings were wrong: deny until restarted
        self.started = False
        self.open: WeakKeyDictionary[http.HTTPFlow, float] = WeakKeyDictionary()  # flow -> when its identity ends
        # The tokens of what is under way, in memory only: a stream is asked about again while it is open.
        self.tokens: WeakKeyDictionary[http.HTTPFlow, str] = WeakKeyDictionary()
        self.tasks: list[asyncio.Task[None]] = []
        self.clock = time.time
        self.failures = limits.Digest()
        # Direction: until configured, nobody knows who is revoked, so nobody passes.
        self.register: revoking.Register | None = None
        self.departed: revoking.OwnerList | None = None
        self.owner_claim = ""
        self.store: store.Store | None = None
        self.state = ""
        self.stopping = False

    def load(self, loader: Loader) -> None:
        cutting.install()
        options.declare_kubeconfig(loader)
        loader.add_option(
            "tollgate_auth",
            str,
            "",
            "AuthenticationConfiguration file (apiserver.config.k8s.io/v1 or v1beta1) with the issuers whose tokens "
            "are accepted. Default: the cluster's own ServiceAccount issuer with the audience tollgate, or "
            "tollgate-approver to decide approvals; an issuer whose audiences do not list that has no approvers.",
        )
        loader.add_option(
            "tollgate_cluster_tokens",
            str,
            "auto",
            "Accept ServiceAccount tokens of the cluster itself, with the audience tollgate or tollgate-approver: on, "
            "off, or auto (default), which is on when tollgate_auth is empty.",
            choices=["auto", "on", "off"],
        )
        loader.add_option(
            "tollgate_token_lifetime",
            int,
            24,
            "Hours that a token may be valid in all, from its iat to its exp (default 24). A longer one is refused: "
            "raising it lets leaked tokens work longer.",
        )
        options.declare_state(loader)
        loader.add_option(
            "tollgate_owner_claim",
            str,
            "",
            "Claim (or key of the identity's extra) that names the owner for whom an agent acts, a text or a list. "
            "Default: none, and nobody can be revoked by owner.",
        )
        loader.add_option(
            "tollgate_departed_owners",
            str,
            "",
            "File with the owners who have left, one a line, read again when it changes (a mounted ConfigMap is one). "
            "Whoever acts for one of them is refused. Needs tollgate_owner_claim. Default: none.",
        )

    def configure(self, updated: set[str]) -> None:
        if "tollgate_state" in updated and (ctx.options.tollgate_state != self.state or self.register is None):
            self.open_register(ctx.options.tollgate_state)
        if updated & {"tollgate_owner_claim", "tollgate_departed_owners"}:
            self.set_up_owners(ctx.options.tollgate_owner_claim, ctx.options.tollgate_departed_owners)
        wanted = {"tollgate_auth", "tollgate_cluster_tokens", "tollgate_token_lifetime", "tollgate_kubeconfig"}
        if not updated & wanted:
            return
        if self.broken:
            # mitmproxy answers a wrong option by going back to the one before, at start the default.
            # Whoever asked for certain issuers must not get the default ones: nobody gets in.
            return
        try:
            self.set_up()
        except exceptions.OptionsError:
            self.broken = self.authenticator is None
            raise

    def open_register(self, folder: str) -> None:
        """Revocations of this state folder. Raises OptionsError, and then nobody passes."""
        self.close_register()
        self.state = folder
        try:
            self.store = store.SqliteStore(Path(folder).expanduser() / store.FILE) if folder else None
        except store.StoreError as e:
            raise exceptions.OptionsError(f"tollgate_state: {e}") from e
        self.register = revoking.Register(self.store, lambda: self.clock(), lambda _: self.end_refused())
        if self.started:
            self.register.start()

    def close_register(self) -> None:
        if self.register is not None:
            self.register.stop()
        if self.store is not None:
            self.store.close()
        self.register = self.store = None

    def set_up_owners(self, claim: str, path: str) -> None:
        """Raises OptionsError, and keeps what was in force."""
        if path and not claim:
            raise exceptions.OptionsError("tollgate_departed_owners: needs tollgate_owner_claim, which says who acts")
        try:
            departed = revoking.OwnerList(Path(path).expanduser()) if path else None
        except revocations.RevocationError as e:
            # Direction: asked for and not there, so nobody gets in (`broken`), rather than those who have left.
            self.broken = self.broken or self.authenticator is None
            raise exceptions.OptionsError(f"tollgate_departed_owners: {e}") from e
        self.owner_claim, self.departed = claim, departed

    def set_up(self) -> None:
        """Read everything, and assign only when all of it is good. Raises OptionsError."""
        path, own = ctx.options.tollgate_auth, ctx.options.tollgate_cluster_tokens
        hours, kubeconfig = ctx.options.tollgate_token_lifetime, ctx.options.tollgate_kubeconfig
        if hours < 1:
            raise exceptions.OptionsError(f"tollgate_token_lifetime: must be at least 1 hour, not {hours}")
        try:
            text = Path(path).read_text(encoding="utf-8") if path else ""
            config = authconfig.load(text) if path else authconfig.AuthConfig()
        except (OSError, UnicodeDecodeError, authconfig.AuthConfigError) as e:
            raise exceptions.OptionsError(f"tollgate_auth: {e}") from e
        accept_cluster = own == "on" or (own == "auto" and not path)
        if not accept_cluster and not config.issuers:
            raise exceptions.OptionsError("tollgate_cluster_tokens: off without tollgate_auth lets nobody in")
        settings = (text, accept_cluster, hours, kubeconfig)
        if settings == self.settings:
            return  # the same as before: what is cached stays
        try:
            api = apiserver.shared(kubeconfig)
        except apiserver.KubeconfigError as e:
            raise exceptions.OptionsError(f"tollgate_kubeconfig: {e}") from e
        fresh = issuers.Authenticator(config, api, accept_cluster=accept_cluster, max_lifetime=hours * 3600.0)
        if self.authenticator is not None:
            self.authenticator.stop()
        self.authenticator, self.settings = fresh, settings
        if names := authconfig.without_approvers(config):
            logger.info(
                "nobody from %s can decide approvals: audiences there does not list %s; "
                "add it (audienceMatchPolicy: MatchAny) for a client that approvers log in with",
                ", ".join(names),
                approvals.AUDIENCE,
            )
        if self.started:
            fresh.start()

    def running(self) -> None:
        meters.offer(self.name, self.readings)
        # configure() may come before the loop runs tasks.
        self.started = True
        if self.authenticator is not None:
            self.authenticator.start()
        if self.register is not None:
            self.register.start()
        if not self.tasks:
            loop = asyncio.get_running_loop()
            self.tasks = [
                loop.create_task(self.keep_sweeping(), name="tollgate expiry"),
                loop.create_task(self.keep_reviewing(), name="tollgate review of streams"),
                loop.create_task(self.keep_reading_owners(), name="tollgate owners who have left"),
            ]

    def readings(self) -> list[meters.Reading]:
        in_force = self.register.in_force if self.register is not None else 0
        ages = self.authenticator.key_ages() if self.authenticator is not None else {}
        return [
            ("exchanges_open", (), len(self.tokens)),
            ("revocations_in_force", (), in_force),
            *(("issuer_keys_age_seconds", (issuer,), age) for issuer, age in ages.items()),
        ]

    def findings(self) -> list[Finding]:
        """For the doctor of the running gateway."""
        return self.authenticator.findings() if self.authenticator is not None else []

    def ready(self) -> bool:
        """The guard waits a moment for it before it opens the port."""
        known = self.register is not None and self.register.ready
        return known and self.authenticator is not None and self.authenticator.ready

    def done(self) -> asyncio.Task[None] | None:
        if self.authenticator is not None:
            self.authenticator.stop()
        for task in self.tasks:
            task.cancel()
        meters.withdraw(self.name, self.readings)
        self.stopping = ctx.master.should_exit.is_set()
        if not self.stopping:  # the script is loaded again; what is open goes on
            self.close_register()
            return None
        return asyncio.get_running_loop().create_task(self.drain(), name="tollgate drain")

    async def drain(self) -> None:
        """Tell those whose streams end, and let answers that are under way come to their end."""
        for flow in list(self.open):
            if endless(flow):
                self.cut_off(flow, STOPPING)
        deadline = time.monotonic() + DRAIN
        while self.open and time.monotonic() < deadline:  # noqa: ASYNC110 -- once, at the very end
            await asyncio.sleep(0.02)
        for flow in list(self.open):
            self.cut_off(flow, STOPPING)
        await asyncio.sleep(0.1)  # for the last words to be sent
        self.close_register()

    # ----- requests -----

    def requestheaders(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        """Not a coroutine but where something must be waited for: mitmproxy awaits what it gets."""
        known = facts.of(flow)
        if known.answered_by:
            return None
        try:
            token, fields = credentials.take(flow.request.headers.fields)
        except tokens.TokenError as e:
            self.refuse(flow, e)
            return None
        # From here on the flow has no credential: it is displayed, saved and forwarded.
        flow.request.headers = http.Headers(fields)
        identity = self.remembered(token)
        if identity is None:
            return self.establish(flow, known, token)
        self.established(flow, known, token, identity)
        return None

    async def establish(self, flow: http.HTTPFlow, known: facts.Facts, token: str) -> None:
        try:
            identity = await self.identify(token)
        except tokens.TokenError as e:
            self.refuse(flow, e)
        except issuers.IssuerError as e:
            logger.error("cannot authenticate: %s", e)
            answers.refuse(flow, self.name, UNKNOWN)
        else:
            self.established(flow, known, token, identity)

    def established(self, flow: http.HTTPFlow, known: facts.Facts, token: str, identity: Identity) -> None:
        known.identity = identity
        known.identify_again = partial(self.identify_again, known, token)
        if (why := self.refuses(identity)) is not None:
            answers.refuse(flow, self.name, why)
            return
        self.tokens[flow] = token
        known.passed.add((self.name, "requestheaders"))

    def refuse(self, flow: http.HTTPFlow, e: tokens.TokenError) -> None:
        source = flow.client_conn.peername[0]
        meters.note("authentication_failures", 1, e.reason)
        # The reason is for the log alone; a client that guesses must not fill it.
        if count := self.failures.note(f"{source} {e.reason}", self.clock()):
            logger.warning("%d tokens from %s are not accepted; the last: %s", count, source, e)
        answers.refuse(flow, self.name, UNAUTHORIZED)

    def remembered(self, token: str) -> Identity | None:
        """The identity of a token that was checked a moment ago."""
        authenticator = self.authenticator
        if authenticator is None or not self.started:
            return None  # identify() says so
        return authenticator.remembered(tokens.digest(token), self.clock())

    def refuses(self, identity: Identity) -> status.Refusal | None:
        """Why this identity gets nothing although its token is good, or None."""
        if self.stopping:
            return HANDED_OVER if getattr(ctx.options, "tollgate_reuse_port", False) else STOPPING
        if self.register is None:
            return revoking.UNKNOWN
        if self.departed is not None and not self.departed.owners.isdisjoint(
            revocations.owners(identity, self.owner_claim)
        ):
            return revocations.DEPARTED
        return self.register.refuses(identity, agent=people.is_agent, owner_claim=self.owner_claim)

    async def identify_again(self, known: facts.Facts, token: str) -> Identity:
        """For a request that was held. Raises what `identify` does, and TokenError when it was revoked meanwhile."""
        identity = await self.identify(token)
        if (why := self.refuses(identity)) is not None:
            known.cut_off = known.cut_off or why
            raise tokens.TokenError("revoked", why.cause)
        return identity

    async def identify(self, token: str) -> Identity:
        authenticator = self.authenticator
        if authenticator is None or not self.started:
            raise issuers.IssuerError("not configured yet")
        digest, now = tokens.digest(token), self.clock()
        return authenticator.remembered(digest, now) or await authenticator.identify(token, digest, now)

    def request(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        if known.answered_by:
            return
        if self.clock() >= known.need_identity().expiry:
            # The body came slowly: a token must not outlive itself by a request held open.
            answers.refuse(flow, self.name, EXPIRED)
            return
        if (why := known.cut_off or self.refuses(known.need_identity())) is not None:
            answers.refuse(flow, self.name, why)  # likewise
            return
        known.passed.add((self.name, "request"))

    # ----- streams -----

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        if known.released and known.identity is not None:
            self.open[flow] = known.identity.expiry
        known.passed.add((self.name, "responseheaders"))

    def response(self, flow: http.HTTPFlow) -> None:
        if answers.code(flow) != 101:  # an upgraded one has only begun
            self.ended(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        self.ended(flow)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        self.ended(flow)

    def ended(self, flow: http.HTTPFlow) -> None:
        self.open.pop(flow, None)
        self.tokens.pop(flow, None)

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        self.judge(flow)

    def tcp_message(self, flow: tcp.TCPFlow) -> None:
        self.judge(flow)

    def judge(self, flow: http.HTTPFlow | tcp.TCPFlow) -> None:
        """A frame passes while the identity it belongs to does."""
        known = facts.of(flow)
        if self.clock() < known.need_identity().expiry and known.cut_off is None:
            known.judged.add(self.name)

    async def keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            try:
                self.sweep(self.clock())
            # An error for one stream must not let all others live for ever.
            except Exception:
                logger.exception("cutting expired streams")

    def sweep(self, now: float) -> None:
        """Cut every stream whose identity has ended, and whatever else is under way of one that is revoked."""
        self.end_refused()
        for flow, expiry in list(self.open.items()):
            if flow.client_conn.state is connection.ConnectionState.CLOSED:
                self.ended(flow)  # SPDY: no hook of ours tells its end
            elif now >= expiry:
                self.ended(flow)
                cutting.cut(flow, EXPIRED)

    def end_refused(self) -> None:
        """End what is under way of those who are refused by now; who is held is told by whoever holds him."""
        for flow in list(self.tokens):
            known = facts.of(flow)
            if known.identity is None or known.cut_off is not None:
                continue
            why = self.refuses(known.identity)
            # 503: nobody can tell at the moment. What began well goes on, and what is new is refused.
            if why is not None and why.code != 503:
                self.cut_off(flow, why)

    def cut_off(self, flow: http.HTTPFlow, why: status.Refusal) -> None:
        known = facts.of(flow)
        known.cut_off = why
        if known.released:
            logger.warning("cutting a stream of %r: %s", username(known), why.cause)
            self.ended(flow)
            cutting.cut(flow, why)

    async def keep_reading_owners(self) -> None:
        while True:
            await asyncio.sleep(revoking.LOOK_AT_FILE)
            try:
                if self.departed is not None and await self.departed.look():
                    self.end_refused()
            # As above.
            except Exception:
                logger.exception("reading the list of owners who have left")

    async def keep_reviewing(self) -> None:
        while True:
            await asyncio.sleep(REVIEW)
            try:
                await self.review()
            # As above: one trouble must not end the reviews.
            except Exception:
                logger.exception("asking about the tokens of open streams")

    async def review(self) -> None:
        """Cut the streams of tokens that are no longer accepted: a deleted ServiceAccount's, a revoked one's."""
        for token in {self.tokens[flow] for flow in list(self.open) if flow in self.tokens}:
            try:
                await self.identify(token)
            except issuers.IssuerError:
                continue  # nobody can tell now: the stream was good when it began, and ends with its token
            except tokens.TokenError as e:
                for flow in [f for f in self.open if self.tokens.get(f) == token]:
                    logger.warning("cutting a stream of %s: %s", flow.client_conn.peername[0], e)
                    self.ended(flow)
                    cutting.cut(flow, REVOKED)


def endless(flow: http.HTTPFlow) -> bool:
    """Whether the exchange goes on until somebody ends it: a watch, an exec, `logs -f`."""
    operation = facts.of(flow).operation
    if answers.code(flow) == 101 or operation is None:
        return True
    return operation.info.verb == "watch" or flow.request.query.get("follow", "") not in ("", "false", "0")


def username(known: facts.Facts) -> str:
    return known.identity.username if known.identity is not None else ""


addons = [Authenticate()]
