"""
Upstream: the last addon before the API server. Builds the request that goes there: headers by
allow-list, the caller impersonated, the gateway's own credential (put on the wire only after
the guard's last word); and lets answers stream from their first byte.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from mitmproxy import ctx, exceptions, http, tls

from addons.core import facts, status, tokens, upstreamrequest
from addons.core.resources import OWN_GROUP
from addons.mitm import answers, meters, options, seal
from addons.net import apiserver, files

logger = logging.getLogger(__name__)

OWN_CREDENTIAL_REFUSED = status.Refusal(
    502,
    "own-credential-refused",
    "tollgate: the API server refused the gateway's own credential; nothing is wrong with yours; tell the operator",
)
NO_CREDENTIAL = status.Refusal(
    503,
    "no-own-credential",
    "tollgate: the gateway has no valid credential for the API server, so nothing was sent; tell the operator",
)
SPDY_REFUSED = status.Refusal(
    403,
    "spdy",
    "tollgate: SPDY cannot be judged frame by frame and is not let through; use kubectl 1.31 or newer, "
    "which speaks WebSocket (and do not set KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false)",
)
NOT_SERVED = status.Refusal(
    404, "own-group", f"tollgate: {OWN_GROUP} is served by approvals, which are not in this gateway's stack"
)
NOT_THIS_SERVER = status.Refusal(
    503, "wrong-upstream", "tollgate: the request points at another server than the gateway's; tell the operator"
)


class Upstream:
    name = "tollgate_upstream"

    def __init__(self) -> None:
        self.server: apiserver.ApiServer | None = None  # direction: no server, no request goes on
        self.impersonate = True
        self.forward_extra: frozenset[str] = frozenset()
        self.tasks: set[asyncio.Task[None]] = set()

    def load(self, loader) -> None:
        options.declare_kubeconfig(loader)
        options.declare_state(loader)
        loader.add_option(
            "tollgate_upstream_identity",
            str,
            "impersonate",
            "As whom requests go to the API server: impersonate the caller (its RBAC decides as well), or "
            "gateway: everything is done with the gateway's own rights, and RBAC no longer tells callers apart.",
            choices=("impersonate", "gateway"),
        )
        loader.add_option(
            "tollgate_forward_extra",
            Sequence[str],
            [],
            "Keys of the identity's extra that are impersonated too. The gateway's RBAC must name each. Default: none.",
        )

    def configure(self, updated: set[str]) -> None:
        if "tollgate_kubeconfig" in updated:
            try:
                self.server = apiserver.shared(ctx.options.tollgate_kubeconfig)
            except apiserver.KubeconfigError as e:
                self.server = None
                raise exceptions.OptionsError(f"tollgate_kubeconfig: {e}") from e
            if ctx.options.ssl_verify_upstream_trusted_ca != self.server.endpoint.ca_file:
                ctx.options.update(ssl_verify_upstream_trusted_ca=self.server.endpoint.ca_file)
        self.impersonate = ctx.options.tollgate_upstream_identity != "gateway"
        self.forward_extra = frozenset(ctx.options.tollgate_forward_extra)

    def running(self) -> None:
        meters.offer(self.name, self.readings)
        if self.server is not None:
            self.server.start()
            self.present_certificate(self.server)

    def done(self) -> None:
        meters.withdraw(self.name, self.readings)

    def ready(self) -> bool:
        """
        Whether requests could be sent. Not whether the API server answers: it is down for every gateway alike,
        and approvals and revocations are served all the same.
        """
        return self.server is not None and self.server.has_credential

    def readings(self) -> list[meters.Reading]:
        """How old the gateway's own credential is: the one that must not be forgotten."""
        if self.server is None or not self.server.has_credential:
            return []
        issued, expires = tokens.unverified_times(self.server.authorization.removeprefix("Bearer "))
        age = max(time.time() - issued, 0.0) if issued else self.server.credential_age
        return [("credential_age_seconds", (), age), ("credential_expires_timestamp_seconds", (), expires)]

    def present_certificate(self, server: apiserver.ApiServer) -> None:
        """Client certificates go through mitmproxy's own option, which wants both in one file."""
        pair = server.client_certificate
        if pair is None:
            return
        if not ctx.options.tollgate_state:
            raise exceptions.OptionsError("tollgate_state: a kubeconfig with a client certificate needs a state folder")
        combined = files.combine(Path(ctx.options.tollgate_state), *pair)
        if ctx.options.client_certs != str(combined):
            ctx.options.update(client_certs=str(combined))

    def tls_start_server(self, data: tls.TlsData) -> None:
        if self.server is None:
            return
        data.conn.sni = self.server.endpoint.server_name or self.server.endpoint.host
        # Upgrades need HTTP/1.1 on both sides; otherwise the same protocol as the client's.
        data.conn.alpn_offers = (b"h2", b"http/1.1") if data.context.client.alpn == b"h2" else (b"http/1.1",)

    def request(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        if known.answered_by:
            return
        refusal = seal.CHANGED if seal.is_broken(flow) else self.prepare(flow, known)
        if refusal is not None:
            answers.refuse(flow, self.name, refusal)
            return
        seal.put(flow)
        known.passed.add((self.name, "request"))

    def prepare(self, flow: http.HTTPFlow, known: facts.Facts) -> status.Refusal | None:
        """Turn the client's request into ours; or say why not."""
        request, server = flow.request, self.server
        if known.served_here is not None:
            # For a server in this process: no credential, and no header but those it was given.
            if (request.scheme, request.host, request.port) != ("http", *known.served_here):
                return NOT_THIS_SERVER
            known.audit_id = known.audit_id or str(uuid.uuid4())
            return None
        if server is None:
            return NO_CREDENTIAL
        if known.need_operation().info.api_group == OWN_GROUP:
            # A stack without approve. A real group of that name would be somebody else's, and the policies
            # judge ours more mildly than what is stored.
            return NOT_SERVED
        where = server.endpoint
        if (request.scheme, request.host, request.port) != ("https", where.host, where.port):
            return NOT_THIS_SERVER
        upgrade = known.need_operation().upgrade
        if upgrade == "spdy" and not ctx.options.tollgate_allow_spdy:
            # After block on purpose: an exec that the policy refuses says so, in this fallback of kubectl's too.
            return SPDY_REFUSED
        try:
            known.credential = server.authorization
        except apiserver.ApiServerError as e:
            logger.error("%s", e)
            return NO_CREDENTIAL
        try:
            who = upstreamrequest.impersonation(known.need_identity(), self.forward_extra) if self.impersonate else []
        except status.Refused as e:
            return e.refusal
        known.audit_id = known.audit_id or str(uuid.uuid4())  # approve may have spent an approval under it
        fields = upstreamrequest.allowed(request.headers.fields, upgrade)
        fields += upstreamrequest.ours(known.audit_id, flow.client_conn.peername[0])
        fields += who
        if request.raw_content:
            fields.append((b"content-length", b"%d" % len(request.raw_content)))
        if request.http_version != "HTTP/2.0":
            fields.insert(0, (b"Host", request.headers["host"].encode()))
        request.headers = http.Headers(fields)
        if where.path:
            request.path = where.path + request.path
        return None

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        if not known.released:
            return
        if flow.response.status_code == 401:
            # The caller's own token was fine: a 401 would send its client off to log in again.
            known.answer_refusal = OWN_CREDENTIAL_REFUSED
            logger.error("the API server refused the gateway's own credential")
            self.renew()
        # Watches, logs -f and large lists go on as they come: buffered, a watch would hang for ever.
        streams = flow.response.status_code != 101 and not known.whole
        flow.response.stream = streams and (known.chunks or True)
        leave_end_open(flow)
        known.passed.add((self.name, "responseheaders"))

    def response(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        if known.released:
            known.passed.add((self.name, "response"))

    def renew(self) -> None:
        if self.server is not None and not self.tasks:
            task = asyncio.get_running_loop().create_task(renewed(self.server))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)


def leave_end_open(flow: http.HTTPFlow) -> None:
    """
    Over HTTP/1.1 a body in chunks, whatever its length.

    With a Content-Length the client takes the last byte for the end, and an answer that is broken off
    after it, because its end was not judged, for a complete one.
    """
    headers = flow.response.headers
    if flow.client_conn.alpn == b"h2" or not flow.response.stream:
        return
    if flow.request.method == "HEAD" or flow.response.status_code in (204, 304):
        return  # whatever length they name, no body follows, and no chunk may (RFC 9112, 6.3)
    if headers.get("content-length", "0") != "0":
        del headers["content-length"]
        headers["transfer-encoding"] = "chunked"


async def renewed(server: apiserver.ApiServer) -> None:
    try:
        await server.refresh()
    except apiserver.ApiServerError as e:
        logger.error("%s", e)


addons = [Upstream()]
