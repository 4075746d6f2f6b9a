"""
Access reviews about tollgate.dev, which the API server knows nothing of: `kubectl auth can-i patch approvals`.

Whether the policies let somebody try is asked of the caller, who has them; that a rule's approvers
may decide a certain approval, and the requester may not, is not told here but by the attempt.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from addons.core.virtualobjects import API_VERSION, RESOURCES, VERSION
from addons.core.virtualstatus import GROUP

ACCESS_REVIEW, RULES_REVIEW = "SelfSubjectAccessReview", "SelfSubjectRulesReview"
_API_VERSION = "authorization.k8s.io/v1"
_METHODS = {"create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE", "deletecollection": "DELETE"}
_ANY_NAME = "x"  # stands for all of them where a review names none


@dataclass(frozen=True, slots=True)
class Attributes:
    """What the review asks about: always one verb on one resource that we serve."""

    verb: str
    resource: str
    name: str = ""

    @property
    def request(self) -> tuple[str, str]:
        """Method and target of such a request, for core/classify: what the policies judge."""
        target = f"/apis/{API_VERSION}/{self.resource}"
        if self.verb in ("create", "list"):
            return _METHODS.get(self.verb, "GET"), target
        if self.verb == "watch":
            return "GET", f"{target}?watch=true"
        return _METHODS.get(self.verb, "GET"), f"{target}/{quote(self.name or _ANY_NAME, safe='')}"


type Decide = Callable[[Attributes], tuple[bool, str]]  # (allowed, the sentence why or why not)


def access_review(review: Mapping[str, Any], decide: Decide) -> dict[str, Any] | None:
    """The answered SelfSubjectAccessReview; None when it is not about our group, so the API server's to answer."""
    asked = _attributes(review)
    if asked is None or str(asked.get("group", "")).lower() != GROUP:
        return None
    allowed, reason = _judge(asked, decide)
    return {
        "kind": ACCESS_REVIEW,
        "apiVersion": _API_VERSION,
        "metadata": {},
        "spec": review["spec"],
        # denied: no other authorizer is asked, and kubectl prints the reason.
        "status": {"allowed": allowed, **({} if allowed else {"denied": True}), "reason": reason},
    }


def _attributes(review: Mapping[str, Any]) -> Mapping[str, Any] | None:
    spec = review.get("spec")
    found = spec.get("resourceAttributes") if isinstance(spec, Mapping) else None
    return found if isinstance(found, Mapping) else None


def _judge(asked: Mapping[str, Any], decide: Decide) -> tuple[bool, str]:
    verb, resource, name = (str(asked.get(key) or "") for key in ("verb", "resource", "name"))
    served = RESOURCES.get(resource)
    if asked.get("version") not in (None, "", "*", VERSION):
        return False, f"{GROUP} has no version but {VERSION}"
    if served is None or asked.get("subresource"):
        return False, f"{GROUP} has no such resource; it has {', '.join(RESOURCES)}"
    if verb not in served.verbs:
        # `*` too: nobody can do all.
        return False, f"{resource}.{GROUP} serves no such verb; it serves {', '.join(sorted(served.verbs))}"
    return decide(Attributes(verb, resource, name))


def rules(decide: Decide) -> list[dict[str, Any]]:
    """What the viewer may do in our group, as `resourceRules` of a SelfSubjectRulesReview."""
    found = []
    for resource in RESOURCES.values():
        verbs = [verb for verb in sorted(resource.verbs) if decide(Attributes(verb, resource.plural))[0]]
        if verbs:
            found.append({"verbs": verbs, "apiGroups": [GROUP], "resources": [resource.plural]})
    return found


def add_rules(answer: Mapping[str, Any], decide: Decide) -> dict[str, Any]:
    """The API server's answer to a SelfSubjectRulesReview, with our group's rules in place of any it names."""
    status = answer.get("status")
    status = dict(status) if isinstance(status, Mapping) else {}
    theirs = []
    for rule in status.get("resourceRules") or ():
        groups = rule.get("apiGroups") or []
        left = [name for name in groups if name != GROUP]
        if left or not groups:
            theirs.append({**rule, "apiGroups": left})
    return {**answer, "status": {**status, "resourceRules": [*theirs, *rules(decide)]}}


def rules_review(review: Mapping[str, Any], decide: Decide) -> dict[str, Any]:
    """An answer without the API server: incomplete, and it says so."""
    return {
        "kind": RULES_REVIEW,
        "apiVersion": _API_VERSION,
        "metadata": {},
        "spec": review.get("spec") or {},
        "status": {
            "resourceRules": rules(decide),
            "nonResourceRules": [],
            "incomplete": True,
            "evaluationError": f"the API server was not asked; these are the rules of {GROUP} only",
        },
    }
