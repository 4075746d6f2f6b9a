"""Approvals and grants as tests need them, and people to look at them."""

from dataclasses import replace
from typing import Any

from addons.core import approvals
from addons.core.approvals import AUDIENCE, Access, Asked, Grant, Item, Phase, Preview, Record
from addons.core.model import Approval, Hold, Identity
from addons.core.virtualapi import Viewer

NOW = 1_800_000_000.0
UID = "6f1c3a52-0000-4000-8000-000000000001"

AGENT = Identity(
    "tollgate:ci-agent", uid="u1", groups=("agents", "bots"), issuer="https://issuer", credential_id="jti-1"
)
OTHER_AGENT = Identity("other-agent", uid="u2", groups=("agents",))
ONCALL = "platform-oncall"


def person(name: str, *groups: str, now: float = NOW) -> Identity:
    """Somebody who has just logged in to decide."""
    return Identity(name, uid=f"uid-{name}", groups=groups, audiences=(AUDIENCE,), auth_time=now - 10)


def agent(**fields: Any) -> Viewer:
    return Viewer(AGENT, **fields)


async def reads_all(_record: Record) -> bool:
    return True


def approver(name: str = "alice", now: float = NOW, **fields: Any) -> Viewer:
    return Viewer(person(name, ONCALL, now=now), agent=False, **{"may_read": reads_all, **fields})


def hold(rule: str = "new-namespace", **fields: Any) -> Hold:
    return Hold("agents", rule, "Namespaces cost money.", Approval(**{"groups": (ONCALL,), **fields}))


DIFF = "--- live\n+++ after\n@@ -1,2 +1,2 @@\n kind: Deployment\n-  replicas: 2 \n+  replicas: 0\n"


def record(name: str = "apr-7f3k", *holds: Hold, now: float = NOW, **fields: Any) -> Record:
    asked = tuple(Asked(one) for one in holds or (hold(),))
    made = Record(
        name=name,
        uid=UID if name == "apr-7f3k" else f"uid-of-{name}",
        requester=approvals.requester(AGENT),
        digest=f"digest-of-{name}",
        asked=asked,
        created=now,
        expires=now + 900,
        revision="r1",
        command="kubectl scale deployment web --replicas=0 -n shop",
        summary="scale deployment shop/web to 0",
        impacts=("write", "delete"),
        resource="deployments.apps/scale",
        verb="patch",
        namespace="shop",
        items=(Item(f"digest-of-{name}", "scale deployment shop/web", "uid-of-web", "17"),),
        preview=Preview(DIFF, {"pods": 14}, ("shop/web-1", "shop/web-2"), notes=("could not be computed: volumes",)),
    )
    return replace(made, **fields)


def access_request(name: str = "acr-1", now: float = NOW, **fields: Any) -> Record:
    access = Access(("delete",), ("pods",), "shop", 1800, "clean up after the load test")
    return record(
        name,
        now=now,
        access=access,
        command="",
        items=(),
        preview=Preview(),
        verb="",
        resource="",
        impacts=(),
        **fields,
    )


def approved(one: Record, now: float = NOW + 5, who: str = "alice") -> Record:
    return approvals.decide(one, approvals.Decider(person(who, ONCALL, now=now), False), True, "go on", now)


def grant(source: Record | None = None, now: float = NOW, **fields: Any) -> Grant:
    made = approvals.grant_of(approved(source or access_request(now=now), now), now, "uid-of-grant")
    assert made is not None
    return replace(made, **fields)


__all__ = ["Phase"]
