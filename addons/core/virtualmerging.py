"""
Answers of the API server that must also speak of tollgate.dev: the list of groups, the index of
OpenAPI documents, and `kubectl auth can-i --list`. And the one question about our group that the
API server cannot answer at all.
"""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from addons.core import classify, policy, virtualdiscovery, virtualreviews
from addons.core.model import Action, Identity, Operation
from addons.core.policy import PolicySet
from addons.core.virtualreviews import Attributes, Decide
from addons.core.virtualstatus import GROUP

logger = logging.getLogger(__name__)

_GROUPS, _OPENAPI = "/apis", "/openapi/v3"
_REVIEWS = "authorization.k8s.io"
_AGGREGATED = "apidiscovery.k8s.io"

# (body, Content-Type) -> body
type Change = Callable[[bytes, str], bytes]


def decide(policies: PolicySet, identity: Identity) -> Decide:
    """Whether the policies let this identity try it, judged as such a request would be."""

    def judge(asked: Attributes) -> tuple[bool, str]:
        method, target = asked.request
        head = classify.read_head(method, target)
        name = head.info.name
        verdict = policies.evaluate(identity, Operation(head.info, method, head.impacts, name))
        if verdict.action is Action.ALLOW:
            return True, f"rule {verdict.policy}/{verdict.rule} allows it"
        return False, policy.refusal(verdict, identity, Operation(head.info, method, head.impacts, name)).message

    return judge


def review(operation: Operation, decides: Decide) -> dict[str, Any] | None:
    """The answer to a SelfSubjectAccessReview about our group; None for every other request."""
    info = operation.info
    asked = (info.api_group, info.resource, info.verb) == (_REVIEWS, "selfsubjectaccessreviews", "create")
    if not asked or not isinstance(operation.body, dict):
        return None
    return virtualreviews.access_review(operation.body, decides)


def change(operation: Operation, decides: Decide) -> Change | None:
    """What must be done to the answer of this request, or None. The whole answer is needed then."""
    info = operation.info
    if operation.method == "GET" and info.path == _GROUPS:
        return _groups
    if operation.method == "GET" and info.path == _OPENAPI:
        return _openapi
    if (info.api_group, info.resource, info.verb) == (_REVIEWS, "selfsubjectrulesreviews", "create"):
        return lambda body, _: _rules(body, decides)
    return None


def accept(operation: Operation, sent: str) -> str:
    """The client's Accept, less the forms that cannot be merged: protobuf and whatever comes next."""
    if operation.info.path != _GROUPS:
        return "application/json"
    kept = [
        part for part in sent.split(",") if part.strip().lower().startswith("application/json") and _AGGREGATED in part
    ]
    return ",".join([*kept, "application/json"])


def _groups(body: bytes, content_type: str) -> bytes:
    return _merged(virtualdiscovery.merge_groups(body, content_type))


def _openapi(body: bytes, _content_type: str) -> bytes:
    return _merged(virtualdiscovery.merge_openapi(body))


def _merged(found: virtualdiscovery.Merged) -> bytes:
    if found.dropped:
        logger.warning("the API server has a group %s of its own: it is hidden, the gateway's is served", GROUP)
    return found.body


def _rules(body: bytes, decides: Decide) -> bytes:
    answer: Any = json.loads(body)
    if not isinstance(answer, Mapping):
        raise virtualdiscovery.NotMerged("it is no object")
    return json.dumps(virtualreviews.add_rules(answer, decides)).encode()
