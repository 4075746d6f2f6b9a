"""
View: what mitmweb and mitmproxy show of the traffic, masked and in Kubernetes' own terms.

Loaded after the stack by `./run.sh web`; it judges nothing, and no request waits for it. How flows
are masked for people: addons/mitm/shownflows.py; where mitmproxy shows them: addons/mitm/viewing.py.
"""

import asyncio
import logging
from pathlib import Path

from mitmproxy import command, ctx, exceptions, http, tcp
from mitmproxy import flow as mitmflow

from addons.core import facts
from addons.mitm import contentview, flowcopies, options, recordcopies, shownflows, viewing
from addons.net import maskkeys, maskpatterns, recordsearch

logger = logging.getLogger(__name__)

LOOK = 1.0  # seconds until a request that waits for an approval is shown so


class View:
    name = "tollgate_view"

    def __init__(self) -> None:
        self.looking: asyncio.Task[None] | None = None

    def load(self, loader) -> None:
        options.declare_state(loader)
        viewing.install()
        recordcopies.want()
        contentview.install()

    def configure(self, updated: set[str]) -> None:
        if "tollgate_state" in updated:
            # Before the port opens, so nobody waits for these seconds but the start.
            maskpatterns.warm(ctx.options.tollgate_state)
            try:
                shownflows.use_key(maskkeys.tags(ctx.options.tollgate_state))
            except maskkeys.KeyFileError as e:
                raise exceptions.OptionsError(f"tollgate_view: {e}") from e

    def running(self) -> None:
        self.looking = asyncio.get_running_loop().create_task(self.keep_looking(), name="tollgate view")

    def done(self) -> None:
        if self.looking is not None:
            self.looking.cancel()

    # ----- what is shown -----

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        shownflows.forget(flow)

    def request(self, flow: http.HTTPFlow) -> None:
        self.describe(flow)

    def describe(self, flow: http.HTTPFlow) -> None:
        """Marker and comment on the flow itself: mitmproxy's list of marked flows looks there."""
        known = facts.of(flow)
        told = shownflows.told(known, known.operation)
        if known.operation is not None and not flow.marked:
            flow.marked, flow.comment = flowcopies.MARKS.get(told.get("verdict", ""), ""), flowcopies.comment_of(told)
            viewing.update(flow)

    def response(self, flow: http.HTTPFlow) -> None:
        # By what was answered: while the answer is withheld a placeholder stands in the flow.
        if not is_upgraded(flow):
            viewing.show_end(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        viewing.show_end(flow)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        viewing.show_end(flow)

    def tcp_end(self, flow: tcp.TCPFlow) -> None:
        viewing.show_end(flow)

    def tcp_error(self, flow: tcp.TCPFlow) -> None:
        viewing.show_end(flow)

    async def keep_looking(self) -> None:
        """A request that waits for an approval is in the middle of a hook, so no hook of ours tells of it."""
        while True:
            await asyncio.sleep(LOOK)
            view = ctx.master.addons.get("view")
            for flow in list(view._store.values()) if view is not None else ():
                if isinstance(flow, http.HTTPFlow) and flow.live and facts.of(flow).held_for and not flow.marked:
                    self.describe(flow)

    # ----- commands -----

    @command.command("tollgate.show")
    def show(self, flow: mitmflow.Flow) -> str:
        """Say what the gateway knows of a flow: who, what, verdict, rule, approval, impact, Audit-ID."""
        found = shownflows.facts_of(flow)
        if not found:
            raise exceptions.CommandError("nothing is known of this flow: it was not judged here")
        return shownflows.line("\n".join(f"{name}: {value}" for name, value in found.items()))

    @command.command("tollgate.session")
    def session(self, flow: mitmflow.Flow) -> str:
        """Say in which folder a flow is recorded."""
        found = shownflows.facts_of(flow)
        recordings = getattr(ctx.options, "tollgate_recordings", "")
        if not recordings or not found.get("audit-id"):
            raise exceptions.CommandError("this flow is not recorded")
        folder = Path(recordings).expanduser()
        started = getattr(getattr(flow, "request", None), "timestamp_start", flow.timestamp_created)
        path = recordsearch.session_of(folder, found["user"], started, found["audit-id"])
        if path is None:
            raise exceptions.CommandError("this flow is not on record yet; reads take a second")
        return str(path)


def is_upgraded(flow: http.HTTPFlow) -> bool:
    known = facts.of(flow)
    answer = known.answer if isinstance(known.answer, http.Response) else flow.response
    return known.released and answer is not None and answer.status_code == 101


addons = [View()]
