"""Recordings that the readers' tests share: an assistant that deletes what is in a namespace."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mitmproxy.test import tflow, tutils

from addons.core import auditevents, classify
from addons.core.auditevents import Approved, Asked, Beside, Level, Outcome, Stage
from addons.core.model import Action, Identity, Verdict
from addons.mitm import flowcopies
from addons.net import recorder
from addons.net.recorder import Record
from addons.net.recordfiles import Settings
from tests.addons.net.recording import DAY, Clock

AGENT = Identity(
    "system:serviceaccount:shop:agent-ci",
    groups=("system:serviceaccounts",),
    issuer="https://cluster",
    credential_id="jti-42",
)
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web-1", "namespace": "shop", "uid": "u-1"},
    "spec": {"containers": [{"name": "web", "image": "shop/web:1"}]},
}


def exchange(
    name: str,
    method: str,
    target: str,
    *,
    who: Identity = AGENT,
    command: str = "",
    session: str = "",
    body: Any = None,
    content_type: str = "application/json",
    code: int = 200,
    answer: Any = None,
    refused: str = "",
    message: str = "",
    before: Sequence[dict[str, Any]] = (),
    approved: Approved | None = None,
    at: float = DAY,
    action: Action = Action.ALLOW,
    rule: str = "everything",
    typed: str = "",
) -> list[Record]:
    """The records of one exchange: ahead where it changes something, and when it was answered."""
    headers = {"Kubectl-Command": command, "Kubectl-Session": session} if session else {}
    raw = json.dumps(body).encode() if body is not None else b""
    if raw:
        headers["Content-Type"] = content_type
    operation = classify.classify(method, target, headers, raw)
    object.__setattr__(operation, "command", typed)
    asked = Asked(name, method, target, at, "kubectl/v1.36", "10.0.0.7")
    verdict = Verdict(action, rule, "permissive", "r1", message)
    outcome = Outcome(at + 0.01, code, "Forbidden" if code == 403 else "", message, refused_by=refused, body=answer)
    flow = tflow.tflow(
        req=tutils.treq(
            method=method.encode(),
            path=target.encode(),
            content=raw,
            headers=tuple((k.encode(), v.encode()) for k, v in headers.items()),
        ),
        resp=tutils.tresp(status_code=code, content=json.dumps(answer).encode()),
    )
    flow.id = f"flow-{name}"

    def build(stage: Stage, **more: Any) -> dict[str, Any]:
        return auditevents.build(
            stage, asked, who, operation, verdict, level=Level.FULL, body=body, approved=approved, **more
        )

    def copy(*, answer: bool) -> bytes:
        return flowcopies.serialise(
            flow, lambda f: f, summary={"verdict": action.name.lower(), "rule": rule, "audit-id": name}, answer=answer
        ).data

    records = []
    if auditevents.must_be_written(operation) and not refused:
        event = build(Stage.RECEIVED, beside=Beside(before=before))
        records.append(Record(who.username, event, copy(answer=False), ahead=True))
    records.append(Record(who.username, build(Stage.COMPLETE, outcome=outcome), copy(answer=True)))
    return records


PODS = "/api/v1/namespaces/shop/pods"
INCIDENT = [
    *exchange("r1", "GET", PODS, session="s-1", command="kubectl delete", answer={"kind": "PodList"}),
    *exchange(
        "r2",
        "DELETE",
        f"{PODS}/web-1",
        session="s-1",
        command="kubectl delete",
        typed="kubectl delete pods --all -n shop",
        body={"propagationPolicy": "Background"},
        answer=POD,
        before=[POD],
        at=DAY + 1,
    ),
    *exchange(
        "r3",
        "DELETE",
        f"{PODS}/web-2",
        session="s-1",
        command="kubectl delete",
        typed="kubectl delete pods --all -n shop",
        body={"propagationPolicy": "Background"},
        code=404,
        message="pods web-2 is not there",
        at=DAY + 2,
    ),
    *exchange(
        "r4",
        "DELETE",
        "/api/v1/namespaces/kube-system",
        session="s-2",
        command="kubectl delete",
        typed="kubectl delete namespaces kube-system",
        code=403,
        refused="tollgate_block",
        action=Action.DENY,
        rule="system",
        message="rule permissive/system denies this",
        at=DAY + 60,
    ),
    *exchange(
        "r5",
        "POST",
        "/api/v1/namespaces/shop/configmaps",
        session="s-3",
        command="kubectl create",
        body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "note"}, "data": {"k": "v"}},
        code=201,
        approved=Approved("apr-7f3k", ("bea",)),
        at=DAY + 120,
    ),
]


def write(folder: Path, records: Sequence[Record] = INCIDENT, *, close: bool = True, **changed: Any) -> Path:
    """A folder of recordings with one session of each identity in these records."""

    async def run() -> None:
        settings = Settings(folder / "recordings", folder / "state", reserve=0, **changed)
        one = recorder.Recorder(settings, lambda event: event, clock=Clock())
        for record in records:
            await one.write(record)
        one.close()

    asyncio.run(run())
    return folder / "recordings"


def session(root: Path, identity: str = "agent-ci@shop") -> Path:
    (path,) = (root / "2026-11-24" / identity).iterdir()
    return path
