"""
The property behind all others, looked at after every run: nothing is in the API server's audit log that
the gateway did not let pass.

Each event of the gateway's own account has an id that the gateway made, once; it says as whom it was done;
and what is neither the gateway's own question nor on record as allowed or approved is a hole. What changes,
executes or reveals is on record whatever happened; reads of a gateway that was killed, or whose recording a
test broke, may be missing, and no others.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from addons.core import auditevents
from tests.e2e import onrecord
from tests.e2e.gateway import Gateway
from tests.e2e.rawclient import GATEWAY

# User-Agent of a test that tries the gateway's own token past the gateway: refused, or told who it is.
THIEF = "thief"
OWN = "tollgate-"  # how the ids of the gateway's own questions begin
OURS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")  # uuid4

LATE = 5.0  # seconds until the API server reads what a gateway sent before it was killed; milliseconds are usual
_READS = frozenset({"get", "list", "watch", "head"})
_CHANNELS = frozenset({"exec", "attach", "portforward", "proxy"})  # subresources that a get opens as well
# They store nothing and say nothing of others: kubectl auth can-i, whoami.
_OF_ONESELF = frozenset({"selfsubjectreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"})


def problems(events: Iterable[Mapping[str, Any]], gateways: Sequence[Gateway] = ()) -> list[str]:
    """What is wrong with these events and with what the gateways recorded, a sentence each."""
    joined = _Joined(gateways)
    found, seen = joined.problems(), {}
    for event in events:
        if event["user"].get("username") != GATEWAY:
            continue
        name, what = event["auditID"], f"{event['verb']} {event['requestURI']}"
        # A stream is there twice, when it begins and when it ends.
        if seen.setdefault((name, event["stage"]), event) is not event:
            found.append(f"{name} twice: {what}")
        if name.startswith(OWN):
            if not event.get("userAgent", "").startswith("tollgate"):
                found.append(f"{name} is not the gateway's own: {what}")
            continue
        if not OURS.fullmatch(name):
            found.append(f"{name} is no id that the gateway makes: {what}")
        stolen = event.get("userAgent") == THIEF and _is_worth_nothing(event)
        if not stolen and not event.get("impersonatedUser", {}).get("username"):
            found.append(f"{name} was done as the gateway itself: {what}")
        if not stolen and (said := joined.trouble(event)):
            found.append(f"{name} {said}: {what}")
    return found


def must_be_on_record(event: Mapping[str, Any]) -> bool:
    """
    Whether it is on disk before it goes upstream: it changes, executes or reveals. By Kubernetes' words alone,
    and not by the gateway's own judgement of what a request does, which might be what is wrong.
    """
    about = event.get("objectRef", {})
    if event["verb"] in _READS:
        secret = about.get("resource") == "secrets" and not about.get("apiGroup")
        return secret or about.get("subresource") in _CHANNELS
    return about.get("resource") not in _OF_ONESELF


def _is_worth_nothing(event: Mapping[str, Any]) -> bool:
    refused = event.get("responseStatus", {}).get("code") == 403
    return refused or event.get("objectRef", {}).get("resource") in _OF_ONESELF


class _Joined:
    """All records, by Audit-ID."""

    def __init__(self, gateways: Sequence[Gateway]) -> None:
        for one in gateways:
            one.read_record()  # those that a test has started and ended by itself
        self._gateways = gateways
        self._by_id: dict[str, list[tuple[Path, onrecord.Line]]] = {}
        self._used: dict[str, frozenset[str]] = {}
        folders: dict[Path, dict[tuple[str, int], onrecord.Line]] = {}
        for one in gateways:
            if one.record is not None:
                # A gateway that goes on in the folder of another has the lines of that one as well.
                folders.setdefault(one.recordings, {}).update(one.record.lines)
                self._used |= one.record.used
        for root, lines in folders.items():
            for line in lines.values():
                self._by_id.setdefault(line.audit_id, []).append((root, line))

    def problems(self) -> list[str]:
        """Of the records themselves."""
        found = []
        # Where a killed gateway has left half a line, the next one cuts it off, but takes its time.
        excused = {one.recordings for one in self._gateways if one.killed or one.recording == "broken"}
        for one in self._gateways:
            if one.record is None:
                found.append(f"the gateway of {one.folder} was not ended by its test, so its record was not read")
            elif one.recordings not in excused:
                found += [f"the record of {one.folder} is not whole: {note}" for note in sorted(one.record.notes)]
        for name, places in self._by_id.items():
            stages = [line.stage for _, line in places]
            if len({root for root, _ in places}) > 1 or len(stages) != len(set(stages)):
                where = " and ".join(sorted({str(root) for root, _ in places}))
                found.append(f"{name} is on record {len(stages)} times ({', '.join(sorted(stages))}) in {where}")
        return found

    def trouble(self, event: Mapping[str, Any]) -> str:
        """What is wrong with the record of something that arrived; "" when it is as it should be."""
        name = event["auditID"]
        places = self._by_id.get(name)
        if places is None:
            return self._missing(event)
        root, lines = places[0][0], [line for _, line in places]
        passed = onrecord.why(lines)
        if passed not in onrecord.PASSED:
            return f"is on record as {passed or 'nothing'} in {root}"
        approval = self._used.get(name, frozenset())
        if approval and not all(approval & set(line.approval.split(", ")) for line in lines):
            return f"used the approval {min(approval)}, which its record in {root} does not name"
        return ""

    def _missing(self, event: Mapping[str, Any]) -> str:
        at = auditevents.seconds(event.get("requestReceivedTimestamp"))
        there = [one for one in self._gateways if one.began <= at <= (one.ended or at) + LATE]
        if not must_be_on_record(event) and any(one.killed or one.recording == "broken" for one in there):
            return ""
        names = ", ".join(str(one.folder) for one in there) or "no gateway that is known here"
        return f"is in no record (running then: {names})"
