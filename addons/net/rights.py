"""
Rights: whether somebody could read himself what an approval shows, by the API server's own word.

An approval's diff is of an object that the requester can read; its approver may not. What nobody
can tell, he may not.
"""

import logging
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from addons.core import approvals, status
from addons.core.approvals import Record
from addons.core.model import Identity
from addons.core.tokens import Cache
from addons.net.apiserver import ApiServer, ApiServerError

logger = logging.getLogger(__name__)

KEPT = 10.0  # seconds that an answer is believed, as for the review of tokens
LIMIT = 2.0  # seconds; a list of approvals waits for it
MAX_ANSWERS = 4096
_PATH = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class Rights:
    """Asks as the viewer, and remembers for a moment."""

    def __init__(
        self,
        server: ApiServer | None,
        forward_extra: AbstractSet[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._forward_extra = forward_extra
        self._clock = clock
        self._known: Cache[bool] = Cache(MAX_ANSWERS)

    async def may_read(self, identity: Identity, record: Record) -> bool:
        """Whether he may get every object of the record's kind in its namespace."""
        asked = attributes(record)
        if asked is None or self._server is None:
            return False
        key = "\0".join((approvals.requester(identity).key, *asked.values())).encode()
        known = self._known.get(key, self._clock())
        if known is None:
            known = await self._ask(self._server, identity, asked)
            now = self._clock()
            self._known.put(key, known, now + KEPT, now)
        return known

    async def _ask(self, server: ApiServer, identity: Identity, asked: dict[str, str]) -> bool:
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        try:
            answer = await server.request(
                "POST",
                _PATH,
                purpose="rights",
                body=review,
                identity=identity,
                forward_extra=self._forward_extra,
                timeout=LIMIT,
            )
            content = answer.json() if answer.status == 201 else None
        except (ApiServerError, status.Refused) as e:
            logger.warning("rights of an approver: %s", e)
            return False
        found = content.get("status") if isinstance(content, dict) else None
        return isinstance(found, dict) and found.get("allowed") is True and not found.get("denied")


def attributes(record: Record) -> dict[str, str] | None:
    """`resourceAttributes` of the review; None for what is no resource."""
    path, _, _ = record.resource.partition("/")
    resource, _, group = path.partition(".")
    if not resource or record.resource.startswith("/"):
        return None
    return {"verb": "get", "group": group, "resource": resource, "namespace": record.namespace}
