"""Reading before-images, as whoever asked: nobody's record shows what he could not have read himself."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from addons.core.auditevents import MAX_BEFORE, MAX_IMAGES
from addons.net.objects import Fetcher, Had, outcome

LIMIT = 2.0  # seconds for all of them together


@dataclass(frozen=True, slots=True)
class BeforeImages:
    """Not masked yet. `troubles` say what is missing, and why."""

    objects: tuple[tuple[str, dict[str, Any]], ...] = field(default=(), repr=False)  # (target, object)
    complete: bool = True
    troubles: tuple[str, ...] = ()


NOTHING = BeforeImages()


async def fetch(fetcher: Fetcher, targets: Sequence[str], seconds: float = LIMIT) -> BeforeImages:
    """All that could be read in time. Never raises; what is not there is no trouble."""
    tasks = {target: asyncio.create_task(fetcher.get(target)) for target in targets}
    if not tasks:
        return NOTHING
    # Not a timeout around it: a CancelledError would leave the hook, and the flow would hang for ever.
    try:
        await asyncio.wait(tasks.values(), timeout=seconds)
    finally:
        for task in tasks.values():
            task.cancel()  # of one that is done it does nothing
    found: list[tuple[str, dict[str, Any]]] = []
    troubles: list[str] = []
    complete, size = True, 0
    for target, task in tasks.items():
        had = outcome(task, seconds)
        if (why := _why(had)) is not None:
            if why:
                troubles.append(f"before: {target.partition('?')[0]}: {why}")
            continue
        listed, more = _objects(had.value)
        complete = complete and not more
        for one in listed:
            size += len(json.dumps(one))
            if len(found) >= MAX_IMAGES or size > MAX_BEFORE:
                complete = False
                break
            found.append((target, one))
    return BeforeImages(tuple(found), complete, tuple(troubles))


def _why(had: Had) -> str | None:
    """Why there is nothing; "" when nothing is there; None when there is something."""
    if had.refusal is not None:
        return "" if had.refusal.code == 404 else f"the API server answers {had.refusal.code}"
    if had.trouble:
        return had.trouble
    return None if isinstance(had.value, dict) else ""


def _objects(value: dict[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """(objects, whether there are more)"""
    items = value.get("items")
    if not isinstance(items, list):
        return [value], False
    kind, version = str(value.get("kind", "")).removesuffix("List"), value.get("apiVersion")
    metadata = value.get("metadata")
    more = bool(isinstance(metadata, dict) and metadata.get("continue"))
    # Items of a list leave out what the list says of them.
    return [{"apiVersion": version, "kind": kind, **one} for one in items if isinstance(one, dict)], more
