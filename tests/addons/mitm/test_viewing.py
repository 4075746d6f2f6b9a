"""The ways out of mitmproxy, in a mitmproxy of this process. Through mitmweb's own interface: tests/e2e."""

import base64
import hashlib
import io
import json
from types import SimpleNamespace

import pytest
from mitmproxy import command, contentviews, flowfilter, log
from mitmproxy import flow as mitmflow
from mitmproxy.addons import clientplayback, comment, cut, export, proxyserver, save, savehar, view
from mitmproxy.io import FilteredFlowWriter, FlowWriter
from mitmproxy.test import taddons
from mitmproxy.tools.web import app, static_viewer

from addons.mitm import shownflows, viewing
from tests import canaries
from tests.addons.mitm.test_shownflows import PASSWORD, TOKEN, a_flow, dumped

POINTS = [
    (view.View, "add"), (view.View, "update"), (command.Command, "prepare_args"), (FlowWriter, "add"),
    (FilteredFlowWriter, "add"), (savehar.SaveHar, "flow_entry"), (contentviews, "prettify_message"),
    (app, "flow_to_json"), (static_viewer, "flow_to_json"), (app, "logentry_to_json"), (app.RequestHandler, "flow"),
    (static_viewer.StaticViewer, "export"), (app.IndexHandler, "render_string"),
    *((one, "__call__") for one in (*flowfilter.filter_unary, *flowfilter.filter_rex, *flowfilter.filter_int)),
]  # fmt: skip
VALUES = [PASSWORD, TOKEN.encode()]


@pytest.fixture(autouse=True)
def applied(monkeypatch):
    for where, name in POINTS:
        monkeypatch.setattr(where, name, getattr(where, name))
    viewing.apply()
    shownflows.use_key(bytes(range(32)))


@pytest.fixture
def screen():
    shown = view.View()
    others = (export.Export(), cut.Cut(), save.Save(), savehar.SaveHar(), comment.Comment())
    with taddons.context(shown, *others) as context:
        context.master.view = shown
        yield shown, context


def clean(output):
    data = output if isinstance(output, bytes) else str(output).encode()
    assert canaries.seen_in(data, VALUES) == []
    return data


@pytest.fixture(params=["live", "over", "loaded"])
def listed(screen, request):
    """A flow in the list."""
    shown, _ = screen
    flow = a_flow(live=request.param != "loaded")
    shown.add([flow])
    if request.param == "over":
        viewing.show_end(flow)
    return shown.get_by_id(flow.id)


@pytest.mark.parametrize("form", ["curl", "httpie", "raw", "raw_request", "raw_response"])
def test_export(screen, listed, tmp_path, form):
    commands = screen[1].master.commands
    assert b"/secrets/db" in clean(commands.call_strings("export", [form, "@all"])) or form == "raw_response"
    commands.call_strings("export.file", [form, "@all", str(tmp_path / "x")])
    clean((tmp_path / "x").read_bytes())


def test_cut(screen, listed):
    cuts = "request.content,response.content,request.text,request.data,response.data,comment"
    assert base64.b64encode(b"**masked:")[:8] in clean(screen[1].master.commands.call_strings("cut", ["@all", cuts]))


@pytest.mark.parametrize("command", ["save.file", "save.har"])
def test_save(screen, listed, tmp_path, command):
    screen[1].master.commands.call_strings(command, ["@all", str(tmp_path / "x")])
    assert b"/secrets/db" in clean((tmp_path / "x").read_bytes())


@pytest.mark.parametrize("writer", [FlowWriter, lambda file: FilteredFlowWriter(file, None)])
def test_writers(writer):
    out = io.BytesIO()
    writer(out).add(a_flow())
    assert b"/secrets/db" in clean(out.getvalue())


def test_har_at_the_end():
    clean(savehar.SaveHar().make_har([a_flow()]))


def test_duplicates(screen, listed):
    shown, context = screen
    context.master.commands.call_strings("view.flows.duplicate", ["@all"])
    assert len(shown) == 2
    for flow in shown:
        clean(json.dumps(app.flow_to_json(flow)))
    assert shown.focus.flow in list(shown)


@pytest.mark.parametrize("guess", [PASSWORD.decode(), "Y2FuYXJ5Y2FuYXJ5"])
@pytest.mark.parametrize("code", ["b", "bq", "bs", "u", "h", "hq", "hs", "comment", "meta", "t"])
def test_a_filter_is_no_oracle(code, guess):
    flow = a_flow(path=f"/api/v1/namespaces/shop/secrets/db?x={TOKEN}")
    flow.comment = f"token={TOKEN}"
    flow.request.headers["x-token"] = TOKEN
    for value in (guess, TOKEN):
        assert not flowfilter.match(f"~{code} {value}", flow)


def test_filters_that_people_type():
    flow = a_flow()
    flow.comment, flow.marked = "delete pod web-1", ":no_entry:"
    for text in ('~comment "delete"', "~marked", "~u /secrets", "~m PUT", "~b db"):
        assert flowfilter.match(text, flow), text


@pytest.mark.parametrize("name", ["auto", "raw", "json", "hex dump"])
def test_content_views(name):
    flow = a_flow()
    for message in (flow.request, flow.response):
        assert clean(contentviews.prettify_message(message, flow, name).text)


def test_json_of_a_flow():
    flow = a_flow()
    flow.comment = f"token={TOKEN}"
    found = app.flow_to_json(flow)
    clean(json.dumps(found))
    # A hash of it would say whether a guess is right.
    assert found["request"]["contentHash"] != hashlib.sha256(flow.request.raw_content).hexdigest()
    assert found["modified"] is False
    flow.backup()
    flow.request.path = "/other"
    assert app.flow_to_json(flow)["modified"] is True


def test_the_log():
    assert TOKEN not in app.logentry_to_json(log.LogEntry(f"token={TOKEN}", "info"))["message"]


def test_the_end_takes_the_flows_place(screen):
    shown, context = screen
    flow = a_flow()
    shown.add([flow])
    shown.focus.flow = flow
    told = []

    def tell(flow):
        told.append(flow)

    shown.sig_view_update.connect(tell)
    viewing.show_end(flow)
    copy = shown.get_by_id(flow.id)
    assert copy is not flow
    assert (list(shown), shown.focus.flow, told) == ([copy], copy, [copy])
    shown.update([flow])  # mitmproxy's own hooks still hold it
    assert (list(shown), told[-1]) == ([copy], copy)
    assert all(one is not flow for one in context.master.commands.call_strings("view.flows.resolve", ["@all"]))


@pytest.mark.parametrize("order", ["time", "method", "url", "size"])
def test_whatever_the_order(screen, order):
    shown, _ = screen
    shown.set_order(order)
    flows = [a_flow(path=f"/api/v1/namespaces/shop/secrets/{name}") for name in "cab"]
    shown.add(flows)
    for flow in flows:
        viewing.show_end(flow)
    assert len(shown) == 3
    assert {id(flow) for flow in flows}.isdisjoint(map(id, shown))
    for flow in list(shown):
        shown.remove([flow])
    assert len(shown) == 0


def test_a_flow_that_was_removed_does_not_come_back(screen):
    shown, _ = screen
    flow = a_flow()
    shown.add([flow])
    flow.live = False
    shown.remove([flow])
    viewing.show_end(flow)
    assert len(shown) == 0


def test_what_acts_gets_the_flow_and_anything_else_a_copy(screen):
    shown, context = screen
    flow = a_flow()
    shown.add([flow])
    context.master.commands.call_strings("flow.comment", [f"@{flow.id}", "seen"])
    assert flow.comment == "seen"
    got: list[mitmflow.Flow] = []

    def unknown(one: mitmflow.Flow) -> None:
        got.append(one)

    context.master.commands.add("anything.new", unknown)
    context.master.commands.call_strings("anything.new", [f"@{flow.id}"])
    assert got == [shownflows.shown(flow)]


def test_every_command_that_acts_is_one(screen):
    """A misspelled name would silently give a copy to what has to act; a copy of one is harmless."""
    commands = screen[1].master.commands
    commands.collect_commands(clientplayback.ClientPlayback())
    commands.collect_commands(proxyserver.Proxyserver())
    assert {name for name in viewing.ACTING if not name.startswith("tollgate.")} <= set(commands.commands)


def a_handler(kind, method, flow, master):
    made = kind.__new__(kind)
    made.path_kwargs = {"flow_id": flow.id}
    made.request = SimpleNamespace(method=method)
    made.application = SimpleNamespace(master=master)
    return made


@pytest.mark.parametrize(
    ("kind", "method", "raw"),
    [
        pytest.param(app.FlowContent, "GET", False, id="download"),
        pytest.param(app.FlowContent, "POST", True, id="upload"),
        pytest.param(app.FlowContentView, "GET", False, id="view"),
        pytest.param(app.DuplicateFlow, "POST", False, id="duplicate"),
        pytest.param(app.FlowHandler, "PUT", True, id="edit"),
        pytest.param(app.ResumeFlow, "POST", True, id="resume"),
    ],
)
def test_what_a_handler_gets(screen, kind, method, raw):
    shown, context = screen
    flow = a_flow()
    shown.add([flow])
    handler = a_handler(kind, method, flow, context.master)
    assert (handler.flow is flow) is raw
    assert handler.flow is flow or handler.flow is shownflows.shown(flow)


def test_a_static_page(tmp_path):
    flow = a_flow()
    static_viewer.StaticViewer().export(tmp_path, [flow])
    for file in tmp_path.rglob("*"):
        if file.is_file() and "static" not in file.parts:
            clean(file.read_bytes())


def test_dumped_is_what_mitmproxy_writes():
    """The test's own reading of a flow goes through the writer, so it must see what is there."""
    copy = shownflows.shown(a_flow())
    assert b"masked" in dumped(copy) or b"KiptYXNrZW" in dumped(copy)


def test_a_loaded_flow_is_kept_masked(screen):
    """Replay and edits act on the flow in the list itself."""
    shown, _ = screen
    flow = a_flow(live=False)
    shown.add([flow])
    assert shown.get_by_id(flow.id) is flow
    clean(flow.request.content)
    assert canaries.seen_in(str(flow.get_state()).encode(), VALUES) == []
