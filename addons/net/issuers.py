"""
Issuers over the network: their keys, kept fresh, and the API server's word on its own tokens.

Keys come by OpenID Connect Discovery over verified TLS, those of the cluster's own issuer
through the gateway's API client. They are fetched in the background; a request waits for
a fetch only when its token names a key that nobody has seen, and then at most a few times a
minute. While an issuer is down its last keys go on serving; a cluster's own tokens need the
API server, and are refused while it cannot be asked.
"""

import asyncio
import json
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import aiohttp

from addons.core import authconfig, claims, tokens
from addons.core.authconfig import AuthConfig, Issuer
from addons.core.doctor import Finding, Level
from addons.core.model import Identity
from addons.core.owncredential import duration
from addons.core.tokens import Cache, KeySet, TokenError
from addons.net.apiserver import Answer, ApiServerError

logger = logging.getLogger(__name__)

FETCH_TIMEOUT = 10.0  # seconds for discovery and keys, each
MAX_DOCUMENT = 1024 * 1024  # bytes of a discovery document or a JWKS; large ones have 20 000
REFRESH = 600.0  # seconds between fetches, plus up to a tenth, so that many gateways do not ask in step
STALE = 3 * REFRESH  # seconds; older keys mean that fetching them fails
FIRST_RETRY, LAST_RETRY = 1.0, 30.0  # seconds between attempts while there are no keys yet, doubling
UNKNOWN_KEY_PAUSE = 10.0  # seconds between fetches for unknown keys: tokens with made-up ones must not flood an issuer
UNKNOWN_KEY_WAIT = 5.0  # seconds that a request waits for such a fetch
REVIEW_TIME = 10.0  # seconds that a TokenReview's answer is believed, as kube-apiserver's webhook does by default
REVIEW_TIMEOUT = 5.0  # seconds
CACHED_TOKENS = 10_000  # identities kept; about 5 KB each (20 groups), of which the claims are most


class IssuerError(Exception):
    """Keys or a review cannot be had: the token may be good, nobody can tell now. The text is for the log."""


class Api(Protocol):
    """What is needed of addons.net.apiserver.ApiServer."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        purpose: str,
        body: object | None = None,
        timeout: float = 5.0,  # noqa: ASYNC109 (the interface of ApiServer)
    ) -> Answer: ...


Fetch = Callable[[], Awaitable[tuple[Issuer, KeySet]]]


class Keys:
    """The keys of one issuer: the last good ones, and a task that keeps them fresh."""

    def __init__(
        self, name: str, fetch: Fetch, on_removed: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.issuer: Issuer | None = None  # known after the first fetch
        self.keys = KeySet()
        self._fetch = fetch
        self._on_removed = on_removed
        self._clock = clock
        self._running: asyncio.Task[None] | None = None
        self._tried = float("-inf")  # when the last fetch began
        self._fetched = clock()  # when the last one succeeded; before the first, when this began

    @property
    def age(self) -> float:
        """Seconds since the keys were fetched; since the beginning where they never were."""
        return self._clock() - self._fetched

    async def keep_fresh(self) -> None:
        """Run for ever: fetch, wait, fetch again; sooner while there is nothing yet."""
        retry = FIRST_RETRY
        while True:
            try:
                await self.refresh()
            except IssuerError as e:
                kept = f"the {len(self.keys.keys)} last known keys go on serving" if self.keys.keys else "no keys yet"
                logger.error("issuer %s: %s; %s", self.name, e, kept)
            if self.keys.keys:
                retry = FIRST_RETRY
                await asyncio.sleep(REFRESH * (1 + random.random() / 10))  # noqa: S311 (spreads load, hides nothing)
            else:
                await asyncio.sleep(retry)
                retry = min(2 * retry, LAST_RETRY)

    async def refresh(self) -> None:
        """Fetch now; those who ask meanwhile wait for the same fetch. Raises IssuerError."""
        if self._running is None or self._running.done():
            self._tried = self._clock()
            self._running = asyncio.get_running_loop().create_task(self._refresh())
            self._running.add_done_callback(_seen)
        # Shielded: a client that leaves must not end the fetch for all others.
        await asyncio.shield(self._running)

    async def _refresh(self) -> None:
        issuer, fresh = await self._fetch()
        if not fresh.keys:
            raise IssuerError("its JWKS has no key that can be used")
        removed = [key for key in self.keys.keys if key not in fresh.keys]
        if not self.keys.keys or removed or len(fresh.keys) != len(self.keys.keys):
            logger.info("issuer %s: %d keys", self.name, len(fresh.keys))
        self.issuer, self.keys, self._fetched = issuer, fresh, self._clock()
        if removed:
            self._on_removed()  # a key that was withdrawn must not go on working from a cache

    async def find(self, kid: str) -> KeySet:
        """The keys, fetched again when none has this `kid` and the last fetch is a while ago."""
        if not self.keys.knows(kid) and self._clock() - self._tried >= UNKNOWN_KEY_PAUSE:
            try:
                async with asyncio.timeout(UNKNOWN_KEY_WAIT):
                    await self.refresh()
            except (IssuerError, TimeoutError) as e:
                logger.warning("issuer %s: fetching keys for an unknown kid: %s", self.name, e or "too late")
        elif not self.keys.knows(kid) and self._running is not None and not self._running.done():
            # The fetch that another token began is the one this token waits for too.
            try:
                async with asyncio.timeout(UNKNOWN_KEY_WAIT):
                    await asyncio.shield(self._running)
            except (IssuerError, TimeoutError):
                pass  # told by whoever began it; the keys there are decide
        return self.keys


async def fetch_openid(issuer: Issuer) -> tuple[Issuer, KeySet]:
    """Discovery and JWKS of an OpenID provider. Raises IssuerError."""
    context = ssl.create_default_context(cadata=issuer.certificate_authority or None)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context),
        timeout=aiohttp.ClientTimeout(total=FETCH_TIMEOUT),
        trust_env=False,
    ) as session:
        document = _object(await _get(session, issuer.discovery), issuer.discovery)
        if document.get("issuer") != issuer.url:
            # OpenID Connect Discovery, 4.3: exactly equal, else one tenant could speak for another.
            raise IssuerError(f"{issuer.discovery} names the issuer {document.get('issuer')!r}, not {issuer.url}"[:500])
        jwks_uri = document.get("jwks_uri")
        if not isinstance(jwks_uri, str) or not jwks_uri.startswith("https://"):
            raise IssuerError(f"{issuer.discovery}: jwks_uri is not an https address: {jwks_uri!r}"[:500])
        return issuer, _keys(await _get(session, jwks_uri), jwks_uri)


async def _get(session: aiohttp.ClientSession, url: str) -> bytes:
    try:
        # No redirects: the address is one that somebody configured or the issuer published.
        async with session.get(url, allow_redirects=False, headers={"Accept": "application/json"}) as answer:
            if answer.status != 200:
                raise IssuerError(f"{url} answers {answer.status}")
            content = b""
            while chunk := await answer.content.read(65536):
                content += chunk
                if len(content) > MAX_DOCUMENT:
                    raise IssuerError(f"{url} answers more than {MAX_DOCUMENT} bytes")
            return content
    except TimeoutError:
        raise IssuerError(f"{url} did not answer within {FETCH_TIMEOUT:.0f} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as e:
        raise IssuerError(f"{url} cannot be fetched: {e}"[:500]) from e


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise IssuerError(f"{where} is not JSON") from None
    if not isinstance(document, dict):
        raise IssuerError(f"{where} is not a JSON object")
    return document


def _keys(content: bytes, where: str) -> KeySet:
    try:
        return tokens.key_set(content)
    except TokenError as e:
        raise IssuerError(f"{where}: {e.detail}") from None


class Cluster:
    """What the gateway asks the API server itself about tokens."""

    def __init__(self, api: Api) -> None:
        self.api = api

    async def ask(self, method: str, path: str, purpose: str, body: object | None = None) -> bytes:
        try:
            answer = await self.api.request(method, path, purpose=purpose, body=body, timeout=REVIEW_TIMEOUT)
        except ApiServerError as e:
            raise IssuerError(str(e)) from e
        if answer.status not in (200, 201):
            raise IssuerError(
                f"the API server answers {answer.status} to {method} {path}{_HINTS.get(answer.status, '')}"
            )
        return answer.body

    async def fetch_issuer(self) -> tuple[Issuer, KeySet]:
        """The cluster's own ServiceAccount issuer and its keys."""
        path = "/.well-known/openid-configuration"
        document = _object(await self.ask("GET", path, "discovery"), path)
        url = document.get("issuer")
        if not isinstance(url, str) or not url:
            raise IssuerError(f"{path} names no issuer")
        # Not jwks_uri: it may be an address outside, made for others; the API server has the same keys.
        path = "/openid/v1/jwks"
        return authconfig.cluster_default(url), _keys(await self.ask("GET", path, "discovery"), path)

    async def own_username(self) -> str:
        """Who the gateway itself is: a name that no caller may have."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        review = _object(await self.ask("POST", path, "whoami", body), path)
        username = ((review.get("status") or {}).get("userInfo") or {}).get("username")
        if not isinstance(username, str) or not username:
            raise IssuerError(f"{path} names no username")
        return username

    async def review(self, token: str, issuer: Issuer) -> dict[str, Any]:
        """
        A TokenReview with our audiences: without them a token that is not for the API server is refused.

        Of several, the answer names those that the token has (`status.audiences`).
        """
        path = "/apis/authentication.k8s.io/v1/tokenreviews"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": sorted(issuer.audiences)},
        }
        return _object(await self.ask("POST", path, "tokenreview", body), path)


_HINTS = {
    401: ": is the gateway's own credential valid?",
    403: ": the gateway needs the ClusterRoles system:auth-delegator and system:service-account-issuer-discovery",
}


class Authenticator:
    """
    Tokens to identities. `remembered` is the hot path, `identify` does the work.

    config: the issuers of a file; accept_cluster: also the cluster's own tokens.
    """

    def __init__(
        self,
        config: AuthConfig,
        api: Api,
        *,
        accept_cluster: bool,
        max_lifetime: float = tokens.MAX_LIFETIME,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_lifetime = max_lifetime
        self.cluster = Cluster(api)
        self.own: frozenset[str] = frozenset()  # the gateway's own usernames; empty until known
        self.identities: Cache[Identity] = Cache(CACHED_TOKENS)
        self.refused: Cache[TokenError] = Cache(CACHED_TOKENS)
        self.issuers = {issuer.url: Keys(issuer.url, _openid(issuer), self._forget, clock) for issuer in config.issuers}
        self.cluster_keys = (
            Keys("of the cluster", self.cluster.fetch_issuer, self._forget, clock) if accept_cluster else None
        )
        self._verified: Cache[dict[str, Any]] = Cache(CACHED_TOKENS)  # the cluster's own, between reviews
        self._reviews: dict[bytes, asyncio.Task[Identity]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def _forget(self) -> None:
        self.identities.clear()
        self._verified.clear()

    def start(self) -> None:
        """Begin to fetch keys, in the running loop; idempotent."""
        if self._tasks:
            return
        loop = asyncio.get_running_loop()
        sources = [*self.issuers.values(), *([self.cluster_keys] if self.cluster_keys else [])]
        self._tasks = [loop.create_task(keys.keep_fresh(), name=f"tollgate keys {keys.name}") for keys in sources]
        self._tasks.append(loop.create_task(self._learn_own_username(), name="tollgate whoami"))

    @property
    def ready(self) -> bool:
        """Whether every token could be judged now: all keys are there, and the gateway's own name."""
        sources = [*self.issuers.values(), *([self.cluster_keys] if self.cluster_keys else [])]
        return bool(self.own) and all(keys.keys.keys for keys in sources)

    def key_ages(self) -> dict[str, float]:
        """Issuer (`cluster`: the cluster's own) -> seconds since its keys were fetched."""
        own = {"cluster": self.cluster_keys.age} if self.cluster_keys else {}
        return {url: keys.age for url, keys in self.issuers.items()} | own

    def findings(self) -> list[Finding]:
        """For the doctor of the running gateway."""
        found = []
        for name, age in self.key_ages().items():
            keys = self.cluster_keys if name == "cluster" else self.issuers[name]
            if keys is not None and not keys.keys.keys:
                text = f"issuer {name}: no keys yet, so its tokens are refused"
                found.append(Finding("issuers", Level.PROBLEM, text))
            elif age > STALE:
                text = f"issuer {name}: its keys are {duration(age)} old and cannot be fetched; the last ones serve on"
                found.append(Finding("issuers", Level.WARNING, text))
            else:
                found.append(Finding("issuers", Level.OK, f"issuer {name}: keys are fresh"))
        return found

    def stop(self) -> None:
        for task in (*self._tasks, *self._reviews.values()):
            task.cancel()
        self._tasks = []

    async def _learn_own_username(self) -> None:
        retry = FIRST_RETRY
        while True:
            try:
                username = await self.cluster.own_username()
            except IssuerError as e:
                if not self.own:
                    logger.error("who the gateway itself is cannot be learnt, and nobody gets in before: %s", e)
                await asyncio.sleep(retry if not self.own else REFRESH)
                retry = min(2 * retry, LAST_RETRY)
                continue
            if username not in self.own:
                logger.info("the gateway itself is %r; no caller may have that name", username)
                self.own |= {username, authconfig.CLUSTER_PREFIX + username}
                self.identities.clear()  # whoever got in under an older name is asked again
            await asyncio.sleep(REFRESH)

    def remembered(self, digest: bytes, now: float) -> Identity | None:
        """The identity of a token that was found good, while that is still believed."""
        return self.identities.get(digest, now)

    async def identify(self, token: str, digest: bytes, now: float) -> Identity:
        """
        The identity of a token.

        Raises TokenError when it is not accepted, IssuerError when nobody can tell now.
        """
        known = self.refused.get(digest, now)
        if known is not None:
            raise TokenError(known.reason, known.detail)
        if not self.own:
            # A caller with the gateway's own name would be the gateway: not before that name is known.
            raise IssuerError("the gateway does not know its own name yet")
        seen = tokens.read(token)
        keys = self._keys_of(seen.unverified_issuer)
        verified = self._verified.get(digest, now)
        if verified is None:
            published = await keys.find(seen.unverified_kid)
            if keys.issuer is None:
                raise IssuerError(f"issuer {keys.name}: no keys yet")
            verified = tokens.verify(token, published, keys.issuer, now, self.max_lifetime)
        issuer = keys.issuer
        if issuer is None:
            raise IssuerError(f"issuer {keys.name}: no keys yet")
        if issuer.cluster:
            self._verified.put(digest, verified, float(verified["exp"]), now)
            return await self._reviewed(token, digest, verified, issuer, now)
        identity = claims.identify(token, verified, issuer, self.own)
        self.identities.put(digest, identity, identity.expiry, now)
        return identity

    def _keys_of(self, unverified_issuer: str) -> Keys:
        cluster = self.cluster_keys
        # The cluster's own first: a file's entry for the same issuer would skip the TokenReview.
        if cluster is not None and cluster.issuer is not None and cluster.issuer.url == unverified_issuer:
            return cluster
        keys = self.issuers.get(unverified_issuer)
        if keys is not None:
            return keys
        if cluster is not None and cluster.issuer is None:
            raise IssuerError("issuer of the cluster: not known yet")
        raise TokenError("issuer-unknown", f"{unverified_issuer!r}"[:300])

    async def _reviewed(
        self, token: str, digest: bytes, verified: dict[str, Any], issuer: Issuer, now: float
    ) -> Identity:
        """One TokenReview for all who ask at the same time, its answer believed for REVIEW_TIME both ways."""
        task = self._reviews.get(digest)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._review(token, digest, verified, issuer, now))
            self._reviews[digest] = task
            task.add_done_callback(_seen)
            task.add_done_callback(lambda _: self._reviews.pop(digest, None))
        # Shielded: a client that leaves must not fail the others that wait.
        return await asyncio.shield(task)

    async def _review(
        self, token: str, digest: bytes, verified: dict[str, Any], issuer: Issuer, now: float
    ) -> Identity:
        review = await self.cluster.review(token, issuer)
        try:
            identity = claims.identify_reviewed(token, verified, issuer, review, self.own)
        except TokenError as e:
            self.refused.put(digest, e, now + REVIEW_TIME, now)
            raise
        self.identities.put(digest, identity, min(now + REVIEW_TIME, identity.expiry), now)
        return identity


def _seen(task: asyncio.Task[Any]) -> None:
    """Note the outcome, so that asyncio does not complain about one whose askers have all left."""
    if not task.cancelled():
        task.exception()


def _openid(issuer: Issuer) -> Fetch:
    return lambda: fetch_openid(issuer)
