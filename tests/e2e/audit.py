"""
The property behind all others, looked at after every run: nothing is in the API server's audit log that
the gateway did not let pass.

Each event of the gateway's own account has an id that the gateway made, once; it says as whom it was done;
and what is neither the gateway's own question nor in its record as allowed or approved is a hole.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tests.e2e.gateway import Gateway
from tests.e2e.rawclient import GATEWAY

THIEF = "thief"  # User-Agent of a test that tries the gateway's own token past the gateway, and must be refused
OWN = "tollgate-"  # how the ids of the gateway's own questions begin
OURS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")  # uuid4

# Audit id -> why it passed ("allow", "approved", ...), for each request in the record of one gateway. None while
# nothing records; an id that comes twice in a record is that reader's to refuse.
Recorded = Callable[[Gateway], Mapping[str, str]]
recorded: Recorded | None = None
PASSED = frozenset({"allow", "approved"})


def problems(events: Iterable[Mapping[str, Any]], gateways: Iterable[Gateway] = ()) -> list[str]:
    """What is wrong with these events, a sentence each."""
    known: dict[str, str] | None = None
    if recorded is not None:
        known = {}
        for one in gateways:
            known |= recorded(one)
    found, seen = [], {}
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
        stolen = event.get("userAgent") == THIEF and event.get("responseStatus", {}).get("code") == 403
        if not stolen and not event.get("impersonatedUser", {}).get("username"):
            found.append(f"{name} was done as the gateway itself: {what}")
        if known is not None and known.get(name) not in PASSED:
            found.append(f"{name} is in no record as allowed or approved: {what}")
    return found
