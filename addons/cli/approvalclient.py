"""
The gateway as its approvals' client sees it: lists, one object, a decision, a watch.

Speaks to whatever server the kubeconfig names, as kubectl does. Each error is a sentence for the
person at the terminal, and says whether the gateway refused it or the caller has to change something.
"""

import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from addons.cli import approvalviews, kubeconfig
from addons.core import approvals, virtualobjects, virtualstatus
from addons.core.virtualapi import VERSION_PATH
from addons.core.virtualobjects import APPROVALS, APPROVED, DENIED, REQUESTS, Content, Resource
from addons.net import apiserver

TOKEN_VARIABLE = "TOLLGATE_APPROVER_TOKEN"  # noqa: S105 -- its name
LOGIN_TIME = 180.0  # seconds for a login in a browser, which a credential plugin may ask for
ANSWER_TIME = 15.0  # seconds
SILENCE = 150.0  # seconds of a watch; the gateway says something each minute
MAX_TOKEN = 64 * 1024  # bytes
_PURPOSE = "approvals"

HOW_TO = (
    f"get one with: kubectl create token NAME -n NAMESPACE --audience={approvals.AUDIENCE} --duration=10m > FILE, "
    f"and give it with --token-file FILE; or log in as ./run.sh kubeconfig --approver says"
)


class Failed(Exception):
    """It was not done: refused by the gateway, or it cannot be reached. One sentence."""


class Unreachable(Failed):
    """No answer; later there may be one."""


class Unauthenticated(Failed):
    """The token is not accepted."""


class Conflict(Exception):
    """The object changed since it was read."""


class Usage(Exception):
    """Something the caller has to change first; one sentence."""


# ----- the token -----


def given_token(file: str) -> str:
    """
    The token of `--token-file`, else of the environment, else "".

    The file may also hold what a credential plugin prints (ExecCredential), so that
    `--token-file <(kubectl oidc-login get-token …)` logs in for this command and leaves nothing behind.
    """
    if file:
        try:
            with Path(file).expanduser().open("rb") as opened:
                content = opened.read(MAX_TOKEN + 1)
        except OSError as e:
            raise Usage(f"--token-file: {file}: {e.strerror}") from None
        return _token(content.decode("utf-8", "replace"), f"--token-file: {file}")
    text = os.environ.get(TOKEN_VARIABLE, "")
    return _token(text, TOKEN_VARIABLE) if text else ""


def _token(text: str, where: str) -> str:
    found = text.strip()
    if found.startswith("{"):
        try:
            found = approvalviews.text(json.loads(found), "status", "token").strip()
        except ValueError:
            found = ""
    # As a header carries it, and nothing else: the rest would be a request of somebody's own.
    if not found or len(found) > MAX_TOKEN or not found.isascii() or not found.isprintable() or " " in found:
        raise Usage(f"{where}: holds no token; {HOW_TO}")
    return found


# ----- names -----


def read_name(word: str) -> tuple[Resource, str]:
    """`apr-7f3k`, `acr-2x9m`, or with the kind before it: `accessrequest/web`, as kubectl prints it too."""
    kind, slash, name = word.rpartition("/")
    if not slash:
        # Only approvals are named so by the gateway; an AccessRequest's name is its requester's choice.
        resource = APPROVALS if name.startswith("apr-") else REQUESTS
    else:
        kind = kind.lower().removesuffix(f".{virtualstatus.GROUP}")
        found = [r for r in (APPROVALS, REQUESTS) if kind in (r.plural, r.singular, *r.short_names)]
        if not found:
            raise Usage(f"{word}: a decision is about an approval or an accessrequest; write approval/NAME")
        resource = found[0]
    if not name:
        raise Usage(f"{word!r}: there is no name in it; ./run.sh approvals list shows them")
    return resource, name


# ----- the gateway -----


class Gateway:
    """All methods raise Failed or Usage."""

    def __init__(self, kubeconfig_path: str = "", token_file: str = "") -> None:
        token = given_token(token_file)
        self._token_file = token_file if token_file and Path(token_file).expanduser().is_file() else ""
        try:
            self._server = apiserver.load(kubeconfig_path)
        except apiserver.KubeconfigError as e:
            raise Usage(str(e)) from None
        if token:
            self._server.use_token(token)
        where = self._server.endpoint
        self.address = f"{where.host}:{where.port}"

    async def close(self) -> None:
        await self._server.stop()

    async def log_in(self) -> None:
        """Get the credential, or look whether a file has a newer one."""
        if self._token_file:
            self._server.use_token(given_token(self._token_file))
            return
        try:
            await self._server.refresh(LOGIN_TIME)
        except apiserver.ApiServerError as e:
            raise Usage(f"your credential cannot be had: {_cause(e)}") from None

    async def check_audience(self) -> None:
        """Raises Usage when the token can be read and decides nothing, before anybody has typed a reason."""
        await self.log_in()
        try:
            token = self._server.authorization.removeprefix("Bearer ")
        except apiserver.ApiServerError as e:
            raise Usage(str(e)) from None
        audiences = kubeconfig.audiences(token)
        if not token:
            raise Usage(f"a decision needs a token, and this kubeconfig has a certificate; {HOW_TO}")
        if audiences and approvals.AUDIENCE not in audiences:
            said = ", ".join(audiences)[:200]
            raise Usage(f"your token is for {said}, and a decision needs one for {approvals.AUDIENCE}; {HOW_TO}")

    async def all(self) -> list[Content]:
        """Approvals and AccessRequests, the oldest first."""
        found = []
        for resource in (APPROVALS, REQUESTS):
            answer = await self._ask("GET", f"{VERSION_PATH}/{resource.plural}")
            # The members of a list need not say what they are.
            found += [
                {**item, "apiVersion": virtualobjects.API_VERSION, "kind": resource.kind}
                for item in approvalviews.parts(answer, "items")
            ]
        return sorted(found, key=lambda item: approvalviews.text(item, "metadata", "creationTimestamp"))

    async def get(self, resource: Resource, name: str) -> Content:
        return await self._ask("GET", _path(resource, name))

    async def decide(self, item: Content, *, approved: bool, reason: str) -> Content:
        """The object with this decision. Raises Conflict when it is not the one that was read."""
        resource = REQUESTS if approvalviews.is_request(item) else APPROVALS
        patch = {
            "metadata": {"resourceVersion": approvalviews.text(item, "metadata", "resourceVersion")},
            "spec": {"decision": APPROVED if approved else DENIED, "reason": reason},
        }
        await self.log_in()
        return await self._ask("PATCH", _path(resource, approvalviews.name(item)), patch)

    async def watch(self, resource: Resource) -> AsyncGenerator[tuple[str, Content]]:
        """All that there is, as ADDED, and then what changes, until the gateway ends it."""
        path = f"{VERSION_PATH}/{resource.plural}?watch=true&allowWatchBookmarks=true"
        try:
            async with self._server.follow(path, purpose=_PURPOSE, silence=SILENCE) as answer:
                if answer.status != 200:
                    body = b"".join([line async for line in answer.lines])
                    raise _refusal(answer.status, body, self.address)
                yield "", {}  # connected
                async for line in answer.lines:
                    event = _object(line, self.address)
                    kind, content = approvalviews.text(event, "type"), approvalviews.at(event, "object")
                    if kind == "ERROR" or not isinstance(content, dict):
                        return  # what it missed it is told by the next watch
                    yield kind, content
        except apiserver.ApiServerError as e:
            raise _no_answer(e, self.address) from None

    async def _ask(self, method: str, path: str, patch: object | None = None) -> Content:
        headers = {} if patch is None else {"Content-Type": "application/merge-patch+json"}
        body = None if patch is None else json.dumps(patch).encode()
        if not self._server.has_credential:
            await self.log_in()
        try:
            answer = await self._server.request(
                method, path, purpose=_PURPOSE, body=body, headers=headers, timeout=ANSWER_TIME
            )
        except apiserver.ApiServerError as e:
            raise _no_answer(e, self.address) from None
        if answer.status == 409:
            raise Conflict
        if answer.status != 200:
            raise _refusal(answer.status, answer.body, self.address)
        return _object(answer.body, self.address)


def _path(resource: Resource, name: str) -> str:
    return f"{VERSION_PATH}/{resource.plural}/{quote(name, safe='')}"


def _object(body: bytes, address: str) -> Content:
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Failed(f"{address} answers with something else than a Tollgate gateway does; is it one?")
    return found


def _refusal(code: int, body: bytes, address: str) -> Failed:
    try:
        status: Any = json.loads(body)
    except (ValueError, RecursionError):
        status = {}
    message = approvalviews.text(status, "message")
    if code == 401:
        why = f": {message}" if message else ""
        return Unauthenticated(f"the gateway does not accept your token{why}; get a new one, or log in again")
    if _is_another_server(code, status, message):
        return Failed(
            f"{address} is an API server without {virtualstatus.GROUP}, not a Tollgate gateway; "
            "name the gateway's kubeconfig with --kubeconfig"
        )
    if approvals.AUDIENCE in message and code == 403:
        message = f"{message} ({HOW_TO})"
    found = message or f"the gateway answered HTTP {code}"
    return Unreachable(found) if code == 429 or code >= 500 else Failed(found)


def _is_another_server(code: int, status: Any, message: str) -> bool:
    """The API server's own words (apiserver, endpoints/handlers/responsewriters/errors.go)."""
    if code == 403:
        return f'in API group "{virtualstatus.GROUP}"' in message
    # The gateway's own 404 names what is not there.
    return code == 404 and not approvalviews.text(status, "details", "name")


def _no_answer(error: apiserver.ApiServerError, address: str) -> Failed:
    cause = error.__cause__
    if isinstance(cause, TimeoutError):
        return Unreachable(f"the gateway at {address} does not answer; is it running?")
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        return Failed(f"the certificate of {address} is not the gateway's that your kubeconfig trusts; see its CA")
    if isinstance(cause, aiohttp.ClientConnectorError):
        why = cause.os_error.strerror or "no connection"
        return Unreachable(f"the gateway at {address} cannot be reached: {why}; is it running?")
    if isinstance(cause, aiohttp.ClientError):
        return Unreachable(f"the connection to the gateway at {address} broke; try again")
    return Failed(_cause(error))


def _cause(error: apiserver.ApiServerError) -> str:
    """What lies under it: its own words are of the gateway's own credential."""
    return " ".join(str(error.__cause__ or error).split())[:500]
