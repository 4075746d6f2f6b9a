"""
Intercepting by hand, in mitmweb and mitmproxy: before anybody has judged, or not at all.

mitmproxy stops a flow after all hooks. What a person changes then would go upstream unjudged, and an
answer would go to the client otherwise than it is recorded. So the guard stops it, and asks the
stack about what comes out; answers and frames are not stopped.
"""

import asyncio
from typing import Any

from mitmproxy import ctx, hooks, http
from mitmproxy.addons.intercept import Intercept

from addons.mitm import wire
from addons.mitm.patching import patch

_LOOK = 0.05  # seconds; a person does not notice


def is_wanted(flow: http.HTTPFlow) -> bool:
    """Whether the person at the console wants to see this request first (option `intercept`)."""
    addon = ctx.master.addons.get("intercept")
    return addon is not None and addon.should_intercept(flow)


async def wait(flow: http.HTTPFlow) -> None:
    """Until it is resumed or killed, or the client has gone."""
    flow.intercept()
    await ctx.master.addons.trigger_event(hooks.UpdateHook([flow]))  # shown as stopped
    # By looking, and not by flow.wait_for_resume, which a kill never wakes.
    while flow.intercepted and not flow.error and not wire.left(flow):  # noqa: ASYNC110 -- no event tells of all three
        await asyncio.sleep(_LOOK)
    flow.intercepted = False


@patch
def install() -> None:
    process_flow: Any = _leave_alone
    Intercept.process_flow = process_flow


def _leave_alone(self: Intercept, flow: Any) -> None:
    """Not mitmproxy's own, which comes too late."""
