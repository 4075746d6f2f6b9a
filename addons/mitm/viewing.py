"""
mitmweb and mitmproxy, which show, save, export and search flows: all of it on masked copies.

Each patch is at the point that others come through, and each shows a copy unless it is known to act
on the flow without giving anything of it away (resuming, killing, editing). Installed by
addons/view.py only, so the gateway without a screen has none of it.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

from mitmproxy import command, contentviews, ctx, flowfilter, http
from mitmproxy import flow as mitmflow
from mitmproxy.addons.savehar import SaveHar
from mitmproxy.addons.view import View
from mitmproxy.contentviews import ContentviewResult
from mitmproxy.io import FilteredFlowWriter, FlowWriter
from mitmproxy.tools.web import app, static_viewer

from addons.mitm import shownflows
from addons.mitm.patching import patch
from addons.mitm.shownflows import shown

# Commands that act on a flow and give nothing of it away. Any other gets copies.
ACTING = frozenset(
    {
        "flow.resume",
        "flow.kill",
        "flow.mark",
        "flow.mark.toggle",
        "flow.comment",
        "flow.revert",
        "flow.set",
        "flow.encode",
        "flow.encode.toggle",
        "flow.decode",
        "inject.websocket",
        "inject.tcp",
        "replay.client",
        "view.flows.remove",
        "view.settings.getval",
        "view.settings.setval",
        "view.settings.setval.toggle",
        "tollgate.approve",
        "tollgate.deny",
        "tollgate.show",
        "tollgate.session",
    }
)
# The same of mitmweb's own interface; of FlowContent only its POST.
_ACTING_HANDLERS = (app.FlowHandler, app.ResumeFlow, app.KillFlow, app.RevertFlow, app.ReplayFlow)
# Filters that look at what kind of flow it is and no further.
_BY_KIND = frozenset({flowfilter.FAll, flowfilter.FHTTP, flowfilter.FTCP, flowfilter.FUDP, flowfilter.FDNS})

_NOTHING = ContentviewResult(
    text="Content is shown when the exchange is over.", syntax_highlight="none", view_name=None, description=""
)

# In mitmweb's list a comment has 150 pixels, which is no room for a verdict. It allows styles within the page.
_WIDE_COMMENTS = b"<style>.flow-table :is(th, td).col-comment { width: 38%; text-align: left }</style>"


def show_end(flow: mitmflow.Flow) -> None:
    """The exchange is over: in the list of flows its copy takes its place."""
    copy = shownflows.end(flow)
    view = ctx.master.addons.get("view")
    if view is not None and view.get_by_id(flow.id) is flow:
        _replace(view, flow, copy)
        view.update([copy])


def _replace(view: View, flow: mitmflow.Flow, copy: mitmflow.Flow) -> None:
    view._store[flow.id] = copy
    if flow in view._view:
        view._view.remove(flow)  # both have the same sorting key, which is kept by id
        view._view.add(copy)
    if view.focus._flow is flow:
        view.focus._flow = copy


def update(flow: mitmflow.Flow) -> None:
    """Something is to be seen of it that was not before."""
    view = ctx.master.addons.get("view")
    if view is not None:
        view.update([flow])


# ----- the list of flows -----


def _add(original: Any) -> Any:
    def add(self: View, flows: Sequence[mitmflow.Flow]) -> None:
        for flow in flows:
            if not flow.live and not shownflows.is_copy(flow):
                shownflows.mask_in_place(flow)  # loaded, made or duplicated by hand: nobody speaks through it
        original(self, flows)

    return add


def _update(original: Any) -> Any:
    def update(self: View, flows: Sequence[mitmflow.Flow]) -> None:
        # What still holds the flow of an exchange that is over must not put it back.
        original(self, [self._store.get(flow.id, flow) for flow in flows])

    return update


# ----- what gets copies -----


def _first(original: Any) -> Any:
    """A function whose first argument is a flow."""

    @functools.wraps(original)
    def on_copy(flow: mitmflow.Flow, *args: Any, **kwargs: Any) -> Any:
        return original(shown(flow), *args, **kwargs)

    return on_copy


def _method(original: Any) -> Any:
    """A method whose first argument is a flow."""

    @functools.wraps(original)
    def on_copy(self: Any, flow: mitmflow.Flow, *args: Any, **kwargs: Any) -> Any:
        return original(self, shown(flow), *args, **kwargs)

    return on_copy


def _prepare_args(original: Any) -> Any:
    def prepare_args(self: command.Command, args: Sequence[str]) -> Any:
        bound = original(self, args)
        if self.name not in ACTING:
            for name, value in bound.arguments.items():
                bound.arguments[name] = _copies(value)
        return bound

    return prepare_args


def _copies(value: Any) -> Any:
    if isinstance(value, mitmflow.Flow):
        return shown(value)
    if isinstance(value, list | tuple):
        return type(value)(_copies(one) for one in value)
    return value


def _export_static(original: Any) -> Any:
    def export(self: Any, path: Any, flows: Any) -> None:
        original(self, path, [shown(flow) for flow in flows])

    return export


def _prettify_message(original: Any) -> Any:
    def prettify_message(message: Any, flow: mitmflow.Flow, *args: Any, **kwargs: Any) -> ContentviewResult:
        copy = shown(flow)
        if copy is not flow:
            # The message belongs to the flow; what is shown is the same of its copy.
            if not isinstance(flow, http.HTTPFlow) or not isinstance(copy, http.HTTPFlow):
                return _NOTHING
            found = copy.request if message is flow.request else copy.response if message is flow.response else None
            if found is None:
                return _NOTHING
            message = found
        return original(message, copy, *args, **kwargs)

    return prettify_message


def _flow_of(original: Any) -> Any:
    def flow(self: app.RequestHandler) -> mitmflow.Flow:
        found = original(self)
        acts = isinstance(self, _ACTING_HANDLERS) or (
            isinstance(self, app.FlowContent) and self.request.method == "POST"
        )
        return found if acts else shown(found)

    return flow


def _flow_to_json(original: Any) -> Any:
    def flow_to_json(flow: mitmflow.Flow) -> dict[str, Any]:
        found: dict[str, Any] = original(shown(flow))
        found["modified"] = flow.modified()  # the copy does not know
        return found

    return flow_to_json


def _render_string(original: Any) -> Any:
    def render_string(self: app.IndexHandler, template_name: str, **values: Any) -> bytes:
        page: bytes = original(self, template_name, **values)
        return page.replace(b"</head>", _WIDE_COMMENTS + b"</head>")

    return render_string


def _logentry_to_json(original: Any) -> Any:
    def logentry_to_json(entry: Any) -> dict[str, Any]:
        found: dict[str, Any] = original(entry)
        found["message"] = shownflows.line(found["message"])
        return found

    return logentry_to_json


def apply() -> None:
    View.add, View.update = _add(View.add), _update(View.update)
    command.Command.prepare_args = _prepare_args(command.Command.prepare_args)
    for filters in (flowfilter.filter_unary, flowfilter.filter_rex, flowfilter.filter_int):
        for one in filters:
            if one not in _BY_KIND:
                # Else a search for a guess would say whether it is right.
                one.__call__ = _method(one.__call__)
    writers: tuple[Any, ...] = (FlowWriter, FilteredFlowWriter)
    for writer in writers:
        writer.add = _method(writer.add)
    SaveHar.flow_entry = _method(SaveHar.flow_entry)
    contentviews.prettify_message = _prettify_message(contentviews.prettify_message)
    app.flow_to_json = static_viewer.flow_to_json = _flow_to_json(app.flow_to_json)
    app.logentry_to_json = _logentry_to_json(app.logentry_to_json)
    handler: Any = app.RequestHandler
    handler.flow = property(_flow_of(handler.flow.fget))
    static_viewer.StaticViewer.export = _export_static(static_viewer.StaticViewer.export)
    index: Any = app.IndexHandler
    index.render_string = _render_string(index.render_string)
    _apply_to_console()


def _apply_to_console() -> None:
    """mitmproxy's own screen, where it is what runs: it takes a second to import."""
    common: Any = sys.modules.get("mitmproxy.tools.console.common")
    details: Any = sys.modules.get("mitmproxy.tools.console.flowview")
    if common is not None:
        common.format_flow = _first(common.format_flow)
    if details is not None:
        of = details.FlowDetails.flow.fget
        details.FlowDetails.flow = property(lambda self: shown(found) if (found := of(self)) is not None else None)


install = patch(apply)
