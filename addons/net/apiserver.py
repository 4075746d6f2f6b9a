"""
The API server behind the gateway: where it is, the gateway's own credential for it, and the
gateway's own requests to it (TokenReview, keys of the cluster's issuer).

Kubeconfigs are read by kubernetes-asyncio: token, token file, client certificate, exec
plugin with its expiry, and the pod's ServiceAccount. What it would accept and a gateway must
not (no TLS, no verification, basic auth, impersonation) is refused here by name.
"""

import asyncio
import contextlib
import json
import logging
import os
import ssl
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yarl
from kubernetes_asyncio.client import Configuration
from kubernetes_asyncio.config import incluster_config, kube_config
from kubernetes_asyncio.config.config_exception import ConfigException

from addons.core import owncredential, upstreamrequest
from addons.core.model import NOTHING, Identity

logger = logging.getLogger(__name__)

REFRESH = 60.0  # seconds; the kubelet rotates a pod's token long before it expires, client-go re-reads each minute
EXEC_TIMEOUT = 30.0  # seconds for a credential plugin, which may ask a cloud
CONNECTING = 10.0  # seconds until a watch must be connected
MAX_ANSWER = 16 * 1024 * 1024  # bytes of an answer to one of our own requests
USER_AGENT = "tollgate/0.1"


class ApiServerError(Exception):
    """The API server cannot be used: unreachable, late, or no credential. The text is for the log."""


class KubeconfigError(Exception):
    """The kubeconfig cannot be used; one sentence that says what to change."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the API server listens, and how its certificate is checked."""

    host: str
    port: int
    path: str = ""  # prefix that some hosters put before /api, without a trailing slash
    server_name: str = ""  # tls-server-name, else the host
    ca_file: str | None = None  # None: the public roots


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one of the gateway's own requests."""

    status: int
    body: bytes
    date: str = ""  # the header Date: the API server's clock, in whole seconds

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError as e:
            raise ApiServerError(f"the API server's answer is not JSON: {e}") from e


@dataclass(frozen=True, slots=True)
class Following:
    """The answer to `ApiServer.follow`, while it comes."""

    status: int
    lines: AsyncGenerator[bytes]


async def _lines(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    """Each line, without its end; the last one even when it has none."""
    rest = b""
    async for chunk in response.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
        if len(rest) > MAX_ANSWER:
            raise ApiServerError(f"a line of the API server's answer is over {MAX_ANSWER} bytes")
    if rest:
        yield rest


def _in_pod() -> bool:
    token = Path(incluster_config.SERVICE_TOKEN_FILENAME)
    return bool(os.environ.get(incluster_config.SERVICE_HOST_ENV_NAME)) and token.is_file()


def _sources(kubeconfig: str) -> str | None:
    """Path(s) of the kubeconfig to use, or None for the pod's ServiceAccount."""
    chosen = kubeconfig or os.environ.get("KUBECONFIG", "")
    if not chosen and _in_pod():
        return None
    chosen = chosen or "~/.kube/config"
    paths = [Path(p).expanduser() for p in chosen.split(os.pathsep) if p]
    if not any(p.is_file() for p in paths):
        raise KubeconfigError(f"kubeconfig: there is no file {chosen}; name one with --kubeconfig or set KUBECONFIG")
    return os.pathsep.join(str(p) for p in paths)


# What a kubeconfig may say that a gateway must not do, and what to do instead.
_REFUSED_USER = {
    "auth-provider": "auth-provider was removed from Kubernetes; use an exec plugin",
    "username": "basic authentication was removed from Kubernetes; use a token, a certificate or an exec plugin",
    "password": "basic authentication was removed from Kubernetes; use a token, a certificate or an exec plugin",
    "as": "as (impersonation) is what the gateway itself does for its callers; use its own credential",
    "as-groups": "as-groups (impersonation) is what the gateway itself does for its callers",
    "as-uid": "as-uid (impersonation) is what the gateway itself does for its callers",
    "as-user-extra": "as-user-extra (impersonation) is what the gateway itself does for its callers",
}
_REFUSED_CLUSTER = {
    "insecure-skip-tls-verify": "insecure-skip-tls-verify: the API server is always verified; "
    "put its CA into certificate-authority-data",
    "proxy-url": "proxy-url is not supported; give the gateway a direct way to the API server",
}


def _section(config: Any, kind: str, name: Any) -> Mapping[str, Any]:
    for entry in config.get(f"{kind}s") or []:
        entry = getattr(entry, "value", entry)  # the library wraps what it merged from several files
        if isinstance(entry, dict) and entry.get("name") == name:
            value = entry.get(kind)
            return value if isinstance(value, dict) else {}
    return {}


def _check(config: Any, where: str) -> None:
    """Refuse by name what the library would accept."""
    context = _section(config, "context", config.get("current-context"))
    if not context:
        raise KubeconfigError(f"{where}: current-context names no context; run: kubectl config use-context NAME")
    cluster = _section(config, "cluster", context.get("cluster"))
    user = _section(config, "user", context.get("user"))
    if not cluster:
        raise KubeconfigError(f"{where}: the current context names no cluster that is in the file")
    for section, refused in ((cluster, _REFUSED_CLUSTER), (user, _REFUSED_USER)):
        for key, sentence in refused.items():
            if section.get(key):
                raise KubeconfigError(f"{where}: {sentence}")
    if not any(user.get(k) for k in ("token", "tokenFile", "exec", "client-certificate", "client-certificate-data")):
        raise KubeconfigError(f"{where}: the current user has no credential (token, tokenFile, exec or certificate)")


class ApiServer:
    """One API server and the gateway's credential for it. Make it with `load` or `shared`."""

    def __init__(self, endpoint: Endpoint, configuration: Configuration, loader: Any, *, exec_plugin: bool) -> None:
        self.endpoint = endpoint
        self._configuration = configuration
        self._loader = loader  # keeps an exec plugin's expiry between refreshes
        self._exec_plugin = exec_plugin
        self._session: aiohttp.ClientSession | None = None
        self._refreshing: asyncio.Lock | None = None
        self._loaded_at = 0.0
        self._run: asyncio.Task[None] | None = None
        self._ssl: ssl.SSLContext | None = None

    @property
    def authorization(self) -> str:
        """The value of `Authorization`; "" when the credential is a client certificate. Raises ApiServerError."""
        if not self._loaded_at:  # direction: without a credential a request would go up as anonymous
            raise ApiServerError("the gateway has no credential for the API server yet")
        return str(self._configuration.api_key.get("BearerToken", "")).strip()  # token files end in a newline

    @property
    def has_credential(self) -> bool:
        return bool(self._loaded_at)

    @property
    def credential_age(self) -> float:
        """Seconds since it was read."""
        return time.monotonic() - self._loaded_at if self._loaded_at else 0.0

    @property
    def client_certificate(self) -> tuple[str, str] | None:
        """Paths of certificate and key, or None."""
        cert, key = self._configuration.cert_file, self._configuration.key_file
        return (cert, key) if cert and key else None

    def describe(self) -> owncredential.Credential:
        """What the credential says of itself, once it is loaded. Raises ApiServerError, OSError, ValueError."""
        bearer = self.authorization.partition(" ")[2]
        if not bearer and (pair := self.client_certificate):
            return owncredential.of_certificate(Path(pair[0]).read_bytes())
        source = owncredential.Source.TOKEN
        if isinstance(self._loader, incluster_config.InClusterConfigLoader):
            source = owncredential.Source.POD
        elif self._exec_plugin:
            source = owncredential.Source.PLUGIN
        elif "tokenFile" in (getattr(self._loader, "_user", None) or {}):
            source = owncredential.Source.TOKEN_FILE
        return owncredential.of_token(source, bearer)

    def use_token(self, token: str) -> None:
        """This token from now on, and nothing of the kubeconfig's user."""
        self._loader = None
        self._configuration.api_key = {"BearerToken": f"Bearer {token}"}
        self._configuration.cert_file = self._configuration.key_file = None
        self._loaded_at = time.monotonic()

    async def refresh(self, seconds: float = EXEC_TIMEOUT) -> None:
        """Read the credential again: the token file, or the exec plugin when its token is about to expire."""
        if self._loader is None:
            return
        if self._refreshing is None:
            self._refreshing = asyncio.Lock()
        async with self._refreshing:
            try:
                async with asyncio.timeout(seconds):
                    await _load(self._loader, self._configuration)
            except TimeoutError as e:
                raise ApiServerError(f"the credential plugin did not answer within {seconds:.0f} s") from e
            except (ConfigException, OSError, RuntimeError, ValueError, KeyError) as e:
                raise ApiServerError(f"the gateway's credential cannot be read: {e}") from e
            self._loaded_at = time.monotonic()

    def start(self) -> None:
        """Keep the credential fresh from now on; idempotent, needs a running loop."""
        if self._run is None or self._run.done():
            self._run = asyncio.get_running_loop().create_task(self._keep_fresh(), name="tollgate credential")

    async def _keep_fresh(self) -> None:
        while True:
            try:
                await self.refresh()
            except ApiServerError as e:  # the last credential stays until the API server refuses it
                logger.error("%s", e)
            await asyncio.sleep(REFRESH)
            if self._exec_plugin and not hasattr(self._loader, "exec_plugin_expiry"):
                return  # a plugin that names no expiry is asked once, as client-go does

    async def stop(self) -> None:
        if self._run is not None:
            self._run.cancel()
            self._run = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            context = ssl.create_default_context(cafile=self.endpoint.ca_file)
            if self.client_certificate:
                context.load_cert_chain(*self.client_certificate)
            self._ssl = context
            self._session = aiohttp.ClientSession(
                # The environment's proxies and netrc are not ours to use: they would see the credential.
                trust_env=False,
                connector=aiohttp.TCPConnector(limit=32, ssl=context),
            )
        return self._session

    async def request(
        self,
        method: str,
        path: str,
        *,
        purpose: str,
        body: object | None = None,
        headers: Mapping[str, str] = NOTHING,
        identity: Identity | None = None,
        forward_extra: Set[str] = frozenset(),
        timeout: float = 5.0,  # noqa: ASYNC109 (seconds; one place turns every lateness into ApiServerError)
    ) -> Answer:
        """
        Send one of the gateway's own requests: as the gateway, or as the identity when one is given.

        `body`: bytes as they are, anything else as JSON. `headers` (Accept, Content-Type) come
        before our own, but never in place of the credential or the impersonation. Raises
        status.Refused for an identity that a header cannot carry.

        `purpose` is one word, e.g. "tokenreview": it marks the request in User-Agent and
        Audit-ID, so that the API server's audit log tells ours from the callers'.
        """
        await self._need_credential()
        try:
            async with (
                asyncio.timeout(timeout),
                self._send(method, path, purpose, body, headers, identity, forward_extra) as response,
            ):
                content = await response.content.read(MAX_ANSWER + 1)
                while len(content) <= MAX_ANSWER and (more := await response.content.read(MAX_ANSWER)):
                    content += more
                if len(content) > MAX_ANSWER:
                    raise ApiServerError(f"the API server's answer is over {MAX_ANSWER} bytes")
                return Answer(response.status, content, response.headers.get("Date", ""))
        except TimeoutError as e:
            raise ApiServerError(f"the API server did not answer within {timeout:g} s") from e
        except aiohttp.ClientError as e:
            raise ApiServerError(f"the API server cannot be reached: {e}") from e

    @contextlib.asynccontextmanager
    async def follow(self, path: str, *, purpose: str, silence: float) -> AsyncIterator["Following"]:
        """
        GET an answer that goes on for as long as both like: a watch. As the gateway.

        silence: seconds without a byte after which the connection counts as lost. Raises
        ApiServerError, from the lines of the answer too.
        """
        await self._need_credential()
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECTING, sock_read=silence)
        try:
            async with self._send("GET", path, purpose, timeout=limits) as response:
                yield Following(response.status, _lines(response))
        except TimeoutError as e:
            raise ApiServerError(f"the API server said nothing for {silence:g} s") from e
        except aiohttp.ClientError as e:
            raise ApiServerError(f"the API server cannot be reached: {e}") from e

    async def _need_credential(self) -> None:
        if not self.has_credential:
            await self.refresh()

    @contextlib.asynccontextmanager
    async def _send(
        self,
        method: str,
        path: str,
        purpose: str,
        body: object | None = None,
        headers: Mapping[str, str] = NOTHING,
        identity: Identity | None = None,
        forward_extra: Set[str] = frozenset(),
        timeout: aiohttp.ClientTimeout | None = None,  # noqa: ASYNC109 (aiohttp's own)
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        sent = {
            "Accept": "application/json, */*",  # the keys of the cluster's issuer have a media type of their own
            **headers,
            "User-Agent": f"{USER_AGENT} {purpose}",
            "Audit-ID": f"tollgate-{purpose}-{uuid.uuid4()}",
        }
        data = body if isinstance(body, bytes) else None
        if body is not None and data is None:
            sent["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        fields = [(name, value) for name, value in sent.items() if not _is_ours(name)]
        if self.authorization:
            fields.append(("Authorization", self.authorization))
        if identity is not None:
            # With the caller's rights, so that nobody learns here what RBAC would not show them.
            who = upstreamrequest.impersonation(identity, forward_extra)
            fields += [(name.decode(), value.decode()) for name, value in who]
        where = self.endpoint
        url = f"https://{_bracketed(where.host)}:{where.port}{where.path}{path}"
        async with self._client().request(
            method,
            yarl.URL(url, encoded=True),  # as it was asked for: `%2F` in a query stays what it is
            headers=fields,
            data=data,
            allow_redirects=False,  # a redirect would take the credential elsewhere
            server_hostname=where.server_name or None,
            timeout=timeout or aiohttp.ClientTimeout(total=None),
        ) as response:
            yield response


def _is_ours(name: str) -> bool:
    """Headers that decide as whom a request goes: only this module sets them."""
    lower = name.lower()
    return lower == "authorization" or lower.startswith("impersonate-")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _load(loader: Any, configuration: Configuration) -> None:
    if isinstance(loader, incluster_config.InClusterConfigLoader):
        loader.load_and_set(configuration)
    else:
        await loader.load_and_set(configuration)


def _endpoint(configuration: Configuration, where: str) -> Endpoint:
    url = urlsplit(str(configuration.host or ""))
    if url.scheme != "https" or not url.hostname:
        raise KubeconfigError(f"{where}: server must be an https:// address, not {configuration.host!r}")
    ca_file = configuration.ssl_ca_cert or None
    if ca_file and not Path(ca_file).is_file():
        raise KubeconfigError(f"{where}: there is no CA file {ca_file}")
    try:
        ssl.create_default_context(cafile=ca_file)
        port = url.port or 443
    except (ssl.SSLError, OSError, ValueError) as e:
        raise KubeconfigError(f"{where}: the CA or the port cannot be read: {e}") from e
    return Endpoint(url.hostname, port, url.path.rstrip("/"), configuration.tls_server_name or "", ca_file)


def load(kubeconfig: str = "") -> ApiServer:
    """
    Read where the API server is. No network, and the credential plugin is not run yet.

    `kubeconfig`: a path, or "" for the usual places. Raises KubeconfigError.
    """
    source = _sources(kubeconfig)
    configuration = Configuration()
    try:
        if source is None:
            loader: Any = incluster_config.InClusterConfigLoader(
                token_filename=incluster_config.SERVICE_TOKEN_FILENAME,
                cert_filename=incluster_config.SERVICE_CERT_FILENAME,
                try_refresh_token=False,  # we re-read ourselves, each minute
            )
            loader.load_and_set(configuration)
            return ApiServer(_endpoint(configuration, "ServiceAccount"), configuration, loader, exec_plugin=False)
        merged = kube_config.KubeConfigMerger(source)
        if merged.config is None:
            raise KubeconfigError(f"{source}: the file is empty; is it a kubeconfig?")
        _check(merged.config.value, source)
        loader = kube_config.KubeConfigLoader(config_dict=merged.config, config_base_path=None)
        loader._load_cluster_info()
        loader._set_config(configuration)
        plugin = "exec" in (loader._user or {})
        return ApiServer(_endpoint(configuration, source), configuration, loader, exec_plugin=plugin)
    except KubeconfigError:
        raise
    # The library raises whatever a malformed file makes it stumble over; all of it means the same to the reader.
    except Exception as e:
        reason = " ".join(str(e).split())[:300]
        raise KubeconfigError(f"{source or 'ServiceAccount'}: not a usable kubeconfig: {reason}") from e


@cache
def shared(kubeconfig: str) -> ApiServer:
    """The one ApiServer of this process for a kubeconfig: authenticate and upstream use the same credential."""
    return load(kubeconfig)
