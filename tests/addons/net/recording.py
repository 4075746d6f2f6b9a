"""Recorders and records that several test files share."""

from pathlib import Path
from typing import Any

from addons.core import auditevents, chainverify, classify
from addons.core.auditevents import Asked, Outcome, Stage
from addons.core.model import Action, Identity, Verdict
from addons.net import recorder, recordings
from addons.net.recorder import Record
from addons.net.recordfiles import Settings

DAY = 1795529002.0  # 2026-11-24T14:03:22Z
ANN = "ann"


class Clock:
    """A clock that a test moves."""

    def __init__(self, now: float = DAY) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def event(
    name: str, username: str = ANN, *, stage: Stage = Stage.COMPLETE, at: float = DAY, **more: Any
) -> dict[str, Any]:
    """A delete of a pod that went well."""
    operation = classify.classify("DELETE", f"/api/v1/namespaces/shop/pods/{name}", {}, b"")
    asked = Asked(f"id-{name}", "DELETE", f"/api/v1/namespaces/shop/pods/{name}", at)
    outcome = Outcome(at + 1, 200) if stage is Stage.COMPLETE else None
    verdict = Verdict(Action.ALLOW, "r", "p", "1")
    return auditevents.build(stage, asked, Identity(username), operation, verdict, outcome=outcome, **more)


def record(name: str, username: str = ANN, *, at: float = DAY, **more: Any) -> Record:
    return Record(username, event(name, username, at=at), flow=f"flow of {name};".encode(), **more)


def settings(folder: Path, **changed: Any) -> Settings:
    values: dict[str, Any] = {"reserve": 0, **changed}
    return Settings(folder / "recordings", folder / "state", **values)


def start(folder: Path, **changed: Any) -> recorder.Recorder:
    """A recorder that masks nothing."""
    own = {key: changed.pop(key) for key in ("mask_event", "ship", "clock", "monotonic") if key in changed}
    return recorder.Recorder(settings(folder, **changed), own.pop("mask_event", lambda event: event), **own)


def verify(folder: Path) -> chainverify.Report:
    root = folder / "recordings"
    return chainverify.check_all(
        recordings.checkpoint_lines(root),
        recordings.find_sessions(root),
        lambda path: recordings.DiskFolder(root / path),
    )


def names(folder: Path) -> dict[str, list[str]]:
    """The Audit-IDs of each session."""
    root = folder / "recordings"
    return {
        path: [one["auditID"] for one in recordings.read_events(recordings.DiskFolder(root / path)).events]
        for path in recordings.find_sessions(root)
    }
