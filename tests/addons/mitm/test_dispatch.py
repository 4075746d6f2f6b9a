"""mitmproxy's own manager is the oracle: the same addons, the same events, the same calls and errors."""

import asyncio
import logging
import types
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy import addonmanager, exceptions, hooks, log
from mitmproxy.addons import script
from mitmproxy.proxy.layers.http import HttpRequestHook, HttpResponseHook
from mitmproxy.proxy.server_hooks import ClientConnectedHook
from mitmproxy.test import taddons, tflow

from addons.mitm import dispatch

EVENTS = {"request": HttpRequestHook, "response": HttpResponseHook, "client_connected": ClientConnectedHook}


@pytest.fixture(autouse=True)
def leave_no_trace():
    yield
    dispatch.uninstall()


@dataclass(frozen=True)
class Addon:
    """What an addon of a test is: its hooks by event, and its children."""

    name: str
    hooks: dict[str, tuple[Any, ...]]
    children: tuple["Addon", ...] | None = None
    kind: str = "list"  # of `addons`: list, tuple, "new list" (a property, as mitmproxy's scripts have), generator


class Stage:
    """One manager with the addons of a description; `said` is all that happened."""

    def __init__(self, tctx) -> None:
        self.manager, self.said, self.objects = tctx.master.addons, [], {}

    def make(self, what: Addon) -> Any:
        children = [self.make(c) for c in what.children or ()]
        body: dict[str, Any] = {"name": what.name}
        if what.children is not None:
            if what.kind == "new list":
                body["addons"] = property(lambda self: list(self.held))
            elif what.kind == "generator":
                body["addons"] = property(lambda self: (c for c in self.held))
            elif what.kind == "raises":
                body["addons"] = property(lambda self: 1 / 0)
        addon = type("Made", (), body)()
        addon.held = children
        if what.children is not None and what.kind in ("list", "tuple"):
            addon.addons = addon.held = children if what.kind == "list" else tuple(children)
        for event, action in what.hooks.items():
            setattr(addon, event, self.hook(what.name, event, *action))
        self.objects[what.name] = addon
        return addon

    def hook(self, name: str, event: str, kind: str, *more: Any) -> Any:
        def act() -> None:
            self.said.append((name, event, kind))
            match kind.removeprefix("async "):
                case "raises":
                    raise RuntimeError(f"{name} {event}")
                case "halts":
                    raise exceptions.AddonHalt
                case "options":
                    raise exceptions.OptionsError(name)
                case "removes":
                    self.manager.remove(self.objects[more[0]])
                case "drops":  # a parent that takes out a child, in place
                    parent = self.objects[more[0]]
                    child = parent.held[0]
                    self.manager.remove(child)
                    parent.held.remove(child)
                case "replaces":  # the same with a new list, as mitmproxy's ScriptLoader does it
                    parent = self.objects[more[0]]
                    self.manager.remove(parent.held[0])
                    parent.held = parent.held[1:]
                    if "addons" in vars(parent):
                        parent.addons = parent.held
                case "adds":
                    self.manager.add(self.make(more[0]))
                case "adopts":
                    new = self.manager.register(self.make(more[1]))
                    self.objects[more[0]].held.append(new)
                case "rehooks":  # what the fault tests do
                    addon = self.objects[more[0]]
                    setattr(addon, event, self.hook(more[0], event, "calls, replaced")) if hasattr(addon, event) else 0

        async def acts(*args: Any) -> None:
            self.said.append((name, event, "begins"))
            await asyncio.sleep(0)
            act()

        match kind:
            case "module":
                return types.ModuleType("request")
            case "number":
                return 7
            case "falsy":
                return 0
        return acts if kind.startswith("async ") else lambda *args: act()


async def run(ours: bool, addons: list[Addon], events: list[tuple[str, str]]) -> list[Any]:
    dispatch.uninstall()
    if ours:
        dispatch.install()
    with taddons.context(loadcore=False) as tctx:
        stage = Stage(tctx)
        catch = Catch(stage.said)
        logging.getLogger("mitmproxy.addonmanager").addHandler(catch)
        try:
            for addon in addons:
                stage.manager.add(stage.make(addon))
            for way, name in events:
                data = tflow.tflow() if name != "client_connected" else tflow.tclient_conn()
                event = EVENTS[name](data)
                stage.said.append((way, name))
                try:
                    if way == "trigger":
                        stage.manager.trigger(event)
                    else:
                        await getattr(stage.manager, way)(event)
                except Exception as e:  # noqa: BLE001 (whatever it is, both must raise it)
                    stage.said.append(repr(e))
        finally:
            logging.getLogger("mitmproxy.addonmanager").removeHandler(catch)
            tctx.master._legacy_log_events.uninstall()  # it would call a loop that is closed
        return [*stage.said, sorted(stage.manager.lookup)]


class Catch(logging.Handler):
    def __init__(self, said: list[Any]) -> None:
        super().__init__()
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.said.append((record.levelname, text.partition(" object at ")[0]))


def same(addons: list[Addon], events: list[tuple[str, str]]) -> list[Any]:
    theirs = asyncio.run(run(False, addons, events))
    assert asyncio.run(run(True, addons, events)) == theirs
    return theirs


LATER = Addon("later", {"request": ("calls",), "response": ("calls",)})
TREE = [
    Addon("a", {"request": ("calls",)}),
    Addon(
        "scripts",
        {},
        (
            Addon("one", {}, (Addon("one.x", {"request": ("calls",), "update": ("calls",)}),), "new list"),
            Addon("two", {}, (Addon("two.x", {"request": ("calls",)}), Addon("two.y", {"request": ("calls",)}))),
        ),
    ),
    Addon("z", {"request": ("calls",), "update": ("calls",)}),
]


def with_hook(name: str, action: tuple[Any, ...], event: str = "request") -> list[Addon]:
    """TREE with this hook in this addon."""

    def change(addon: Addon) -> Addon:
        children = None if addon.children is None else tuple(change(c) for c in addon.children)
        mine = {**addon.hooks, event: action} if addon.name == name else addon.hooks
        return Addon(addon.name, mine, children, addon.kind)

    return [change(a) for a in TREE]


PLACES = ["a", "scripts", "one", "one.x", "two", "two.x", "two.y", "z"]
ACTIONS = [
    ("calls",),
    ("raises",),
    ("halts",),
    ("options",),
    ("module",),
    ("number",),
    ("falsy",),
    ("removes", "a"),
    ("removes", "z"),
    ("drops", "two"),
    ("replaces", "one"),
    ("replaces", "two"),
    ("replaces", "scripts"),
    ("adds", LATER),
    ("adopts", "two", LATER),
    ("adopts", "scripts", LATER),
    ("adopts", "one", LATER),
    ("rehooks", "z"),
    ("rehooks", "one.x"),
]
ASYNC = [("async " + kind, *more) for kind, *more in ACTIONS if kind not in ("module", "number", "falsy")]
TWICE = [(way, "request") for way in ("handle_lifecycle", "trigger_event", "trigger", "handle_lifecycle")]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("action", ACTIONS + ASYNC, ids=lambda a: " ".join(str(getattr(p, "name", p)) for p in a))
def test_the_same_as_mitmproxys_own(place, action):
    said = same(with_hook(place, action), TWICE)
    assert (place, "request", action[0]) in said or action[0] in ("module", "number", "falsy")  # it was met


def test_what_the_table_shows_is_that_hooks_run_at_all():
    assert same(TREE, [("handle_lifecycle", "request")])[1:-1] == [
        ("a", "request", "calls"),
        ("one.x", "request", "calls"),
        ("two.x", "request", "calls"),
        ("two.y", "request", "calls"),
        ("z", "request", "calls"),
        ("one.x", "update", "calls"),
        ("z", "update", "calls"),
    ]


def test_a_hook_that_is_nothing_until_one_before_it_sets_it():
    said = same([Addon("a", {"request": ("rehooks", "b")}), Addon("b", {"request": ("falsy",)})], TWICE[:1])
    assert ("b", "request", "calls, replaced") in said


@pytest.mark.parametrize("kind", ["generator", "raises"])
def test_children_in_something_else_than_a_list(kind):
    odd = Addon("odd", {"request": ("calls",)}, (Addon("child", {"request": ("calls",)}),), kind)
    if kind == "raises":  # registering it fails, as ever
        with pytest.raises(ZeroDivisionError):
            same([odd], TWICE)
    else:
        assert ("child", "request", "calls") in same([TREE[0], odd, TREE[2]], TWICE)


names = st.sampled_from(["a", "b", "c", "d", "e", "f", "g"])
targets = st.one_of(
    st.tuples(st.sampled_from(["removes", "drops", "replaces", "rehooks"]), names),
    st.tuples(st.just("adds"), st.just(LATER)),
    st.tuples(st.just("adopts"), names, st.just(LATER)),
)
actions = st.one_of(
    st.sampled_from([("calls",)] * 4 + [(k,) for k in ("raises", "halts", "options", "module", "number", "falsy")]),
    st.sampled_from([("async calls",)] * 2 + [("async raises",), ("async halts",), ("async options",)]),
    targets,
    targets.map(lambda t: ("async " + t[0], *t[1:])),
)
hooks_of = st.dictionaries(st.sampled_from([*EVENTS, "update"]), actions, max_size=3)


@st.composite
def trees(draw: st.DrawFn) -> list[Addon]:
    left = draw(st.permutations(["a", "b", "c", "d", "e", "f", "g"]))

    def addon(depth: int) -> Addon:
        name, mine = left.pop(), draw(hooks_of)
        if depth > 2 or not draw(st.booleans()):
            return Addon(name, mine)
        children = []
        while left and len(children) < 3 and draw(st.booleans()):
            children.append(addon(depth + 1))
        return Addon(name, mine, tuple(children), draw(st.sampled_from(["list", "list", "tuple", "new list"])))

    top = []
    while left and (not top or draw(st.booleans())):
        top.append(addon(0))
    return top


ways = st.sampled_from(["handle_lifecycle", "handle_lifecycle", "trigger_event", "trigger"])


@settings(max_examples=400, deadline=None)
@given(trees(), st.lists(st.tuples(ways, st.sampled_from([*EVENTS])), min_size=1, max_size=5))
def test_random_trees(addons, events):
    same(addons, events)


async def test_an_event_is_not_held_up_by_addons_without_the_hook():
    dispatch.install()
    with taddons.context(loadcore=False) as tctx:
        manager = tctx.master.addons
        manager.add(Stage(tctx).make(TREE[1]))
        assert dispatch.begin(manager, HttpResponseHook(tflow.tflow())) is None
        assert dispatch.places(manager, "response") == ()
        assert [p.addon.name for p in dispatch.places(manager, "request")] == ["one.x", "two.x", "two.y"]


async def test_hooks_that_configure_adds_are_met():
    class Grows:
        def configure(self, updated):
            self.request = lambda flow: calls.append(flow)

    calls: list[Any] = []
    dispatch.install()
    with taddons.context(loadcore=False) as tctx:
        addon = Grows()
        tctx.master.addons.add(addon)
        await tctx.master.addons.trigger_event(HttpRequestHook(tflow.tflow()))
        assert not calls
        tctx.options.add_option("anything", bool, False, "")
        tctx.options.update(anything=True)
        await tctx.master.addons.trigger_event(HttpRequestHook(tflow.tflow()))
        assert len(calls) == 1


def at_once(manager):
    """As an eager task does it, to the first wait: there is none."""
    with pytest.raises(StopIteration):
        manager.trigger_event(HttpRequestHook(tflow.tflow())).send(None)


class Triggers:
    """Asks everybody while it comes, goes and is configured."""

    def __init__(self, manager, when):
        self.manager, self.when, self.calls = manager, when, []

    def ask(self, when):
        if when == self.when:
            at_once(self.manager)

    def load(self, loader):
        self.ask("load")

    def done(self):
        self.ask("done")

    def configure(self, updated):
        self.ask("configure")
        self.request = lambda flow: self.calls.append(flow)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        pytest.param("load", [0, 0, 1, 1], id="not there yet"),
        pytest.param("configure", [0, 0, 1, 1], id="without the hook yet"),
        pytest.param("done", [0, 0, 1, 1], id="gone already"),
    ],
)
@pytest.mark.parametrize("ours", [False, True], ids=["mitmproxy", "ours"])
async def test_events_in_the_middle_of_a_change(ours, when, expected):
    if ours:
        dispatch.install()
    with taddons.context(loadcore=False) as tctx:
        manager, seen = tctx.master.addons, []

        def ask():
            at_once(manager)
            seen.append(len(addon.calls))

        addon = Triggers(manager, when)
        ask()
        manager.add(addon)
        ask()
        manager.invoke_addon_sync(addon, hooks.ConfigureHook(set()))
        ask()
        manager.remove(addon)
        ask()
    assert seen == expected


async def test_a_script_that_is_loaded_again_is_met_in_its_new_form(tmp_path):
    """And never not at all: the guard's own script is loaded in this way."""
    path = tmp_path / "one.py"
    dispatch.install()
    with taddons.context(loadcore=False) as tctx:
        loader = script.ScriptLoader()
        tctx.master.addons.add(loader)
        path.write_text("")
        made = script.Script(str(path), True)
        made.done()  # no watcher: it is loaded by hand, when the test says so
        loader.addons.append(tctx.master.addons.register(made))
        for value in (1, 2, 3):
            path.write_text(f"def request(flow):\n    flow.metadata['by'] = {value}\n")
            made.loadscript()
            f = tflow.tflow()
            await tctx.master.addons.handle_lifecycle(HttpRequestHook(f))
            assert f.metadata == {"by": value}
        path.write_text("def request(flow) syntax error\n")
        made.loadscript()
        f = tflow.tflow()
        await tctx.master.addons.handle_lifecycle(HttpRequestHook(f))
        assert f.metadata == {}


async def test_a_traceback_begins_in_the_addon(caplog):
    dispatch.install()
    with taddons.context(loadcore=False) as tctx:
        tctx.master.addons.add(Stage(tctx).make(Addon("a", {"request": ("raises",)})))
        await tctx.master.addons.trigger_event(HttpRequestHook(tflow.tflow()))
    record = next(r for r in caplog.records if "a request" in r.getMessage())
    assert record.exc_info[2].tb_frame.f_code.co_filename == __file__


async def test_an_event_without_arguments_is_no_lifecycle_event():
    dispatch.install()
    with taddons.context(loadcore=False) as tctx, pytest.raises(IndexError):
        await tctx.master.addons.handle_lifecycle(hooks.DoneHook())


@pytest.mark.parametrize("ours", [False, True], ids=["mitmproxy", "ours"])
async def test_what_is_no_event_is_said_to_be_none(ours, caplog):
    if ours:
        dispatch.install()
    with taddons.context(loadcore=False) as tctx:
        tctx.master.addons.add(Stage(tctx).make(TREE[0]))
        tctx.master.addons.trigger("request")
        await tctx.master.addons.trigger_event("request")
        tctx.master._legacy_log_events.uninstall()
    assert caplog.text.count("AssertionError") == 2


async def test_lines_of_the_log_reach_whoever_wants_them():
    class Listens:
        def add_log(self, entry):
            heard.append(entry.msg)

    heard: list[str] = []
    dispatch.install()
    with taddons.context(loadcore=False) as tctx:
        tctx.master.addons.trigger(log.AddLogHook(log.LogEntry("to nobody", "info")))
        tctx.master.addons.add(Listens())
        tctx.master.addons.trigger(log.AddLogHook(log.LogEntry("to somebody", "info")))
    assert heard == ["to somebody"]


def test_an_update_of_mitmproxy_is_noticed():
    from addons.mitm import originals

    assert originals.differ(dispatch.EXPECTED) == ""
    assert set(dispatch._ORIGINAL) | {"invoke_addon", "_iter_hooks", "_configure_all"} <= {
        f.__name__ for f in dispatch.EXPECTED
    }
    assert addonmanager.AddonManager.trigger_event in dispatch.EXPECTED
