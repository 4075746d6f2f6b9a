"""
Objects: what a rule looks at, fetched from the API server before anything is decided.

As the identity: what RBAC or an admission plugin refuses here it would refuse the request
itself, so that is the client's answer. Bounded in time and bytes. What came may be a Secret: it
goes to the policy and nowhere else, and so do the words of a refusal that may quote one.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from addons.core import admission, matching, status
from addons.core.admission import NeedsObjects, Objects, ServerRefusal
from addons.core.model import NOTHING, Identity, Impact, Operation
from addons.net.apiserver import Answer, ApiServer, ApiServerError

logger = logging.getLogger(__name__)

LIMIT = 2.0  # seconds for all of it; the request waits
MAX_OBJECT = 4 * 1024 * 1024  # bytes; etcd takes 1.5 MiB, JSON is longer than what it stores

# Not the client's: our credential, our share of the API server, our lateness.
_NOT_THEIRS = frozenset({401, 408, 429})
_NO_DRY_RUN = "does not support dry run"  # k8s.io/apiserver, pkg/admission/plugin/webhook: side effects


@dataclass(frozen=True, slots=True)
class Request:
    """The request that is being judged, as it came."""

    method: str
    target: str
    content_type: str = ""
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Had:
    """One answer: an object (None: it is not there), a refusal, or the reason why it is neither."""

    value: Any = field(default=None, repr=False)
    trouble: str = ""
    refusal: ServerRefusal | None = None
    created: bool | None = None


class Fetcher:
    """Fetches for one request of one identity. identity None: as the gateway itself."""

    def __init__(self, server: ApiServer, identity: Identity | None, forward_extra: AbstractSet[str]) -> None:
        self._server = server
        self._identity = identity
        self._forward_extra = forward_extra

    async def fetch(
        self, request: Request, operation: Operation, needs: NeedsObjects, seconds: float = LIMIT
    ) -> Objects | ServerRefusal:
        """What the policy needs, with the reason for each thing that is not there; or the client's answer."""
        plan = admission.plan(operation, needs.names)
        tasks: dict[str, asyncio.Task[Had]] = {}
        if plan.preview:
            tasks["object"] = asyncio.create_task(self._preview(request))
        if plan.live:
            tasks["oldObject"] = asyncio.create_task(self._live(request, operation))
        if plan.namespace:
            tasks["namespaceObject"] = asyncio.create_task(self._namespace(plan.namespace))
        if tasks:
            # Not gather, not a timeout around it: a CancelledError would leave the hook, and the
            # flow would hang for ever.
            try:
                await asyncio.wait(tasks.values(), timeout=seconds)
            finally:
                for task in tasks.values():
                    task.cancel()  # of one that is done it does nothing
        values, troubles, created = dict(plan.values), dict(plan.troubles), None
        for name, task in tasks.items():
            had = outcome(task, seconds)
            if had.refusal is not None and name in needs.binding:
                logger.info("the API server refuses, asked for %s: %s", name, had.refusal.code)
                return _without_secrets(had.refusal, operation)
            if had.refusal is not None:
                troubles[name] = f"the API server answers {had.refusal.code}"
            elif had.trouble:
                troubles[name] = had.trouble
            else:
                values[name] = had.value
                created = had.created if created is None else created
        for name, why in troubles.items():
            logger.info("%s could not be fetched: %s", name, why)
        return Objects(values, troubles, created)

    async def get(self, target: str, headers: Mapping[str, str] = NOTHING) -> Had:
        """What is at this target now."""
        return await self._ask("GET", target, "object", headers)

    async def _preview(self, request: Request) -> Had:
        # No Content-Type at all is JSON to the API server; a client library would name another.
        headers = {"Content-Type": request.content_type or "application/json"}
        target = admission.dry_run_target(request.target)
        return await self._ask(request.method, target, "preview", headers, request.body)

    async def _live(self, request: Request, operation: Operation) -> Had:
        had = await self._ask("GET", admission.live_target(request.target), "object")
        if had.refusal is not None and had.refusal.code == 404 and matching.creates(operation):
            return Had(created=True)
        return Had(had.value, had.trouble, had.refusal, created=None if had.value is None else False)

    async def _namespace(self, name: str) -> Had:
        had = await self._ask("GET", f"/api/v1/namespaces/{quote(name)}", "namespace")
        if had.refusal is not None and had.refusal.code == 404:
            return Had()
        return Had(had.value, had.trouble, had.refusal)

    async def _ask(
        self, method: str, target: str, purpose: str, headers: Mapping[str, str] = NOTHING, body: bytes | None = None
    ) -> Had:
        try:
            answer = await self._server.request(
                method,
                target,
                purpose=purpose,
                body=body or None,
                headers={"Accept": "application/json", **headers},
                identity=self._identity,
                forward_extra=self._forward_extra,
                timeout=LIMIT,
            )
        except ApiServerError as e:
            logger.warning("%s: %s", purpose, e)  # may name the server's address, which is not the client's to know
            return Had(trouble="the API server did not answer, or not in time")
        except status.Refused:
            return Had(trouble="your identity cannot be impersonated")
        return read(answer)


def read(answer: Answer) -> Had:
    """What an answer says: the object, or a refusal in the API server's own words, or neither."""
    if len(answer.body) > MAX_OBJECT:
        return Had(trouble=f"it has more than {MAX_OBJECT} bytes")
    try:
        content = json.loads(answer.body)
    except ValueError:
        content = None
    if isinstance(content, dict):
        is_status = content.get("kind") == "Status"
        if answer.status in (200, 201) and not is_status:
            return Had(content, created=answer.status == 201)
        if is_status and 400 <= answer.status < 500 and answer.status not in _NOT_THEIRS:
            if _NO_DRY_RUN in str(content.get("message")):
                return Had(trouble="an admission webhook does not support dry runs")
            return Had(refusal=ServerRefusal(answer.status, answer.body))
    return Had(trouble=f"the API server answers {answer.status}")


def outcome(task: "asyncio.Task[Had]", seconds: float) -> Had:
    if not task.done():
        task.cancel()
        return Had(trouble=f"the API server did not answer within {seconds:g} s")
    if task.cancelled():
        return Had(trouble="the gateway is going down")
    error = task.exception()
    if error is not None:
        # Whatever it was: not seen is not there. Without the traceback, which may show what was fetched.
        logger.error("fetching an object failed: %s", type(error).__name__)
        return Had(trouble="the gateway failed to fetch it")
    return task.result()


def _without_secrets(refusal: ServerRefusal, operation: Operation) -> ServerRefusal:
    """A refused change of a Secret may quote what is in it (422 after a move of a value: tried)."""
    if Impact.REVEAL not in operation.impacts:
        return refusal
    said = status.Refusal(
        refusal.code,
        "api-server",
        f"the API server refuses this with {refusal.code}; why is not shown, since it may quote the Secret; "
        "check the request against the API's documentation",
    )
    return ServerRefusal(refusal.code, status.body(said))
