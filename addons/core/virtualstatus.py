"""
Answers of the virtual API that are no objects: a `metav1.Status`, of failure or success.

Unlike a refusal of the gateway (addons.core.status) these are a REST API's own: here a 409 means
that the object changed, and that the client looks and tries again is what it is for.
"""

from dataclasses import dataclass
from typing import Any

from addons.core import status

GROUP = "tollgate.dev"

# metav1.StatusReason by code (k8s.io/apimachinery/pkg/apis/meta/v1/types.go); 409 has two.
_REASONS = {**status.REASONS, 406: "NotAcceptable", 409: "Conflict", 410: "Expired", 422: "Invalid"}


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure: HTTP code, a stable reason code (the header Tollgate-Reason), a sentence."""

    code: int
    cause: str
    message: str
    resource: str = ""
    name: str = ""
    reason: str = ""  # metav1.StatusReason where the code has several


class Problem(Exception):
    """Raised by the virtual API's functions for what cannot be done."""

    def __init__(self, code: int, cause: str, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.failure = Failure(code, cause, message, reason=reason)


def failed(failure: Failure) -> dict[str, Any]:
    """The failure as `metav1.Status`."""
    found: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": status.one_line(failure.message),
        "reason": failure.reason or _REASONS.get(failure.code, ""),
        "code": failure.code,
    }
    if failure.resource:
        found["details"] = _details(failure.resource, failure.name)
        if found["reason"] == "Invalid":
            # Of these kubectl prints the causes in place of the message.
            path, _, why = found["message"].partition(": ")
            found["details"]["causes"] = [{"reason": "FieldValueInvalid", "field": path, "message": why or path}]
    return found


def done(resource: str, name: str) -> dict[str, Any]:
    """
    The answer to a delete that left the object there, in its last phase.

    Without a uid in the details: `kubectl delete` compares the uid that it was told with that of
    the object it still finds, and would else wait for ever for it to go (kubectl, cmd/wait/delete.go).
    """
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": _details(resource, name),
    }


def _details(resource: str, name: str) -> dict[str, Any]:
    return {**({"name": name} if name else {}), "group": GROUP, "kind": resource}
