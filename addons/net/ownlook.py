"""
The questions of `./run.sh doctor` to the API server: who the gateway is there, what it may do, and what
there is of RBAC and pods. Reads only, and of Secrets nothing but their names.
"""

import asyncio
import datetime
import email.utils
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from addons.core import ownrights, waysaround
from addons.core.ownrights import Answers, Question
from addons.net.apiserver import Answer, ApiServer, ApiServerError

LIMIT = 5.0  # seconds for one question
AT_ONCE = 4  # questions; a running gateway asks beside what it fetches for requests, over the same connections
PAGE = 500  # objects of a list at once
_AUTHORIZATION = "/apis/authorization.k8s.io/v1"
_PURPOSE = "doctor"
# Names, labels and annotations, never the object itself: a Secret's content does not come here.
_METADATA_ONLY = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}


@dataclass(frozen=True, slots=True)
class Self:
    """Who the gateway is to the API server."""

    username: str
    groups: tuple[str, ...] = ()


async def _ask(server: ApiServer, method: str, path: str, body: object | None = None, **more: Any) -> Answer:
    answer = await server.request(method, path, purpose=_PURPOSE, body=body, timeout=LIMIT, **more)
    if answer.status not in (200, 201):
        raise ApiServerError(f"the API server answers {answer.status} to {method} {path}")
    return answer


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


async def version(server: ApiServer) -> tuple[str, float]:
    """The API server's version, and seconds since the epoch by its clock (0.0: it does not say)."""
    answer = await _ask(server, "GET", "/version")
    date = email.utils.parsedate_to_datetime(answer.date).timestamp() if answer.date else 0.0
    return str(_mapping(answer.json()).get("gitVersion", "of an unknown version")), date


async def serving_certificate(server: ApiServer) -> datetime.datetime:
    """Until when the API server's certificate lasts. Raises ApiServerError: unreachable, or not to be trusted."""
    where = server.endpoint
    try:
        context = ssl.create_default_context(cafile=where.ca_file)
        async with asyncio.timeout(LIMIT):
            _, writer = await asyncio.open_connection(
                where.host, where.port, ssl=context, server_hostname=where.server_name or where.host
            )
    except TimeoutError as e:
        raise ApiServerError(f"{where.host}:{where.port} did not answer within {LIMIT:.0f} s") from e
    except ssl.SSLCertVerificationError as e:
        raise ApiServerError(f"the API server's certificate is not trusted: {e.verify_message}") from e
    except OSError as e:
        raise ApiServerError(f"the API server cannot be reached: {e.strerror or e}") from e
    try:
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der).not_valid_after_utc
    finally:
        writer.close()


async def whoami(server: ApiServer) -> Self:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = await _ask(server, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body)
    info = _mapping(_mapping(_mapping(answer.json()).get("status")).get("userInfo"))
    if not info.get("username"):
        raise ApiServerError("the API server does not say who the gateway is")
    return Self(str(info["username"]), tuple(map(str, info.get("groups") or ())))


async def may(server: ApiServer, questions: Iterable[Question]) -> Answers:
    """The answers to access reviews; what cannot be answered is left out."""
    wanted = list(questions)
    turn = asyncio.Semaphore(AT_ONCE)

    async def ask(question: Question) -> bool | None:
        async with turn:
            return await _may(server, question)

    found = await asyncio.gather(*map(ask, wanted))
    return {question: answer for question, answer in zip(wanted, found, strict=True) if answer is not None}


async def _may(server: ApiServer, question: Question) -> bool | None:
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": question.spec()}
    try:
        answer = await _ask(server, "POST", f"{_AUTHORIZATION}/selfsubjectaccessreviews", review)
        status = _mapping(_mapping(answer.json()).get("status"))
    except ApiServerError:
        return None
    return status.get("allowed") is True


async def rules(server: ApiServer, namespaces: Sequence[str]) -> ownrights.Rules:
    """What the gateway's rules are in these namespaces. Raises ApiServerError."""
    statuses = []
    for namespace in namespaces:
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        }
        answer = await _ask(server, "POST", f"{_AUTHORIZATION}/selfsubjectrulesreviews", review)
        statuses.append(_mapping(_mapping(answer.json()).get("status")))
    return ownrights.rules(statuses)


async def cluster_admin(server: ApiServer) -> str:
    """Why the credential is cluster-admin, or ""; see core/ownrights.py. Raises ApiServerError when nobody can tell."""
    who, answers = await asyncio.gather(whoami(server), may(server, ownrights.ADMIN_QUESTIONS))
    why = ownrights.cluster_admin(answers, who.groups)
    if not why and len(answers) < len(ownrights.ADMIN_QUESTIONS):
        raise ApiServerError("the API server does not answer what the gateway may do")
    return why


async def cluster(server: ApiServer) -> waysaround.Cluster:
    """Bindings, ServiceAccounts, and of the agents' namespaces the pods and names of token Secrets."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    accounts = await _list(server, "/api/v1/serviceaccounts", _METADATA_ONLY)
    names = None
    if accounts is not None:
        names = [(str(a["metadata"]["namespace"]), str(a["metadata"]["name"])) for a in accounts]
    wide, narrow = await _list(server, f"{rbac}/clusterrolebindings"), await _list(server, f"{rbac}/rolebindings")
    if wide is None or narrow is None:
        return waysaround.Cluster(None, names)
    known = waysaround.Cluster([*wide, *narrow], names)
    pods: list[Mapping[str, Any]] | None = []
    secrets: list[Mapping[str, Any]] | None = []
    for namespace in sorted({account[0] for account in waysaround.agents(known)}):
        below = f"/api/v1/namespaces/{namespace}"
        pods = _joined(pods, await _list(server, f"{below}/pods"))
        selected = f"{below}/secrets?fieldSelector=type%3Dkubernetes.io%2Fservice-account-token"
        secrets = _joined(secrets, await _list(server, selected, _METADATA_ONLY))
    return waysaround.Cluster(known.bindings, names, pods, secrets)


def _joined(
    some: list[Mapping[str, Any]] | None, more: list[Mapping[str, Any]] | None
) -> list[Mapping[str, Any]] | None:
    # One list that is missing makes the whole unknown: half a look must not read as a clean one.
    return None if some is None or more is None else some + more


async def _list(
    server: ApiServer, path: str, headers: Mapping[str, str] | None = None
) -> list[Mapping[str, Any]] | None:
    """All items, page by page; None when they may not or cannot be read."""
    found: list[Mapping[str, Any]] = []
    further = ""
    while True:
        query = f"{'&' if '?' in path else '?'}limit={PAGE}{f'&continue={further}' if further else ''}"
        try:
            answer = _mapping((await _ask(server, "GET", path + query, headers=headers or {})).json())
        except ApiServerError:
            return None
        found += answer.get("items") or []
        further = str(_mapping(answer.get("metadata")).get("continue") or "")
        if not further:
            return found
