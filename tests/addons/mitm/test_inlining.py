"""Against mitmproxy's own way: the same bytes to the same connections, in the same order."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from mitmproxy import connection, exceptions
from mitmproxy.proxy import commands, context, events, layer, mode_specs, server
from mitmproxy.proxy.layers.http import HttpRequestHook
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.test import taddons, tflow

from addons.mitm import dispatch, inlining

WAYS = pytest.mark.parametrize("ours", [False, True], ids=["mitmproxy", "ours"])


@pytest.fixture(autouse=True)
def leave_no_trace():
    yield
    inlining.uninstall()
    dispatch.uninstall()


class Writer:
    """A client's side of a connection, as far as the handler looks at it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.ended: list[str] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return bool(self.ended)

    def write_eof(self) -> None:
        self.ended.append(f"eof after {len(b''.join(self.writes))}")

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)


class Script(layer.Layer):
    """Answers each event with what the test says."""

    def __init__(self, ctx: context.Context, steps: Any) -> None:
        super().__init__(ctx)
        self.steps, self.seen = steps, []

    def _handle_event(self, event: events.Event) -> Any:
        self.seen.append(type(event).__name__)
        yield from self.steps(self, event)


class Hooks:
    name = "hooks"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.handler: Any = None
        self.do: Any = lambda flow: None

    def request(self, flow):
        self.calls.append("request")
        return self.do(flow)


async def stage(tctx, ours: bool, steps: Any) -> tuple[ProxyConnectionHandler, Writer, Hooks, Script]:
    if ours:
        dispatch.install()
        inlining.install()
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # as mitmproxy's master does
    hooks = Hooks()
    tctx.master.addons.add(hooks)
    writer = Writer()
    mode = mode_specs.ProxyMode.parse("reverse:https://127.0.0.1:1")
    handler = ProxyConnectionHandler(tctx.master, None, writer, tctx.options, mode)
    ctx = context.Context(handler.client, tctx.options)
    handler.layer = script = Script(ctx, steps)
    hooks.handler = handler
    return handler, writer, hooks, script


@dataclass
class Two(commands.StartHook):
    first: int
    second: int


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def data(handler: ProxyConnectionHandler, content: bytes = b"x") -> events.DataReceived:
    return events.DataReceived(handler.client, content)


def three_pieces(self: Script, event: events.Event) -> Any:
    for piece in (b"head ", b"body ", b"end"):
        yield commands.SendData(self.context.client, piece)


@WAYS
async def test_pieces_go_out_as_one(ours):
    with taddons.context(loadcore=False) as tctx:
        handler, writer, _, _ = await stage(tctx, ours, three_pieces)
        await handler.server_event(data(handler))
        assert b"".join(writer.writes) == b"head body end"
        assert len(writer.writes) == (1 if ours else 3)


def around_a_hook(self: Script, event: events.Event) -> Any:
    if isinstance(event, events.DataReceived):
        yield commands.SendData(self.context.client, b"before ")
        yield HttpRequestHook(self.flow)
        yield commands.SendData(self.context.client, b"after " + event.data + b" ")


@WAYS
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "waits"])
async def test_the_layer_goes_on_after_its_hook(ours, waits):
    with taddons.context(loadcore=False) as tctx:
        handler, writer, hooks, script = await stage(tctx, ours, around_a_hook)
        script.flow = tflow.tflow()
        gate = asyncio.Event()
        hooks.do = (lambda flow: gate.wait()) if waits else hooks.do
        await handler.server_event(data(handler, b"1"))
        if ours and not waits:
            assert writer.writes == [b"before after 1 "]
        await settle()
        if waits:
            assert b"".join(writer.writes) == b"before "
            await handler.server_event(data(handler, b"2"))  # queues behind the hook
            gate.set()
            await settle()
            assert b"".join(writer.writes) == b"before after 1 before after 2 "
        else:
            assert b"".join(writer.writes) == b"before after 1 "


@WAYS
async def test_what_a_hook_brings_about_comes_in_the_order_of_the_calls(ours):
    """A cut that a hook asked for is met before the answer to that hook, since it was there first."""

    def steps(self: Script, event: events.Event) -> Any:
        if isinstance(event, events.DataReceived) and event.data == b"first":
            yield HttpRequestHook(self.flow)

    seen: list[str] = []

    class Watched(Script):
        def handle_event(self, event: events.Event) -> Any:
            seen.append(type(event).__name__ + (event.data.decode() if hasattr(event, "data") else ""))
            yield from super().handle_event(event)

    with taddons.context(loadcore=False) as tctx:
        handler, _, hooks, _ = await stage(tctx, ours, steps)
        handler.layer = script = Watched(context.Context(handler.client, tctx.options), steps)
        script.flow = tflow.tflow()
        tasks = []

        def do(flow: Any) -> None:
            for what in (b" cut", b" another"):
                tasks.append(asyncio.get_running_loop().create_task(handler.server_event(data(handler, what))))

        hooks.do = do
        await handler.server_event(data(handler, b"first"))
        await asyncio.gather(*tasks)
        await settle()
        assert seen == ["DataReceivedfirst", "DataReceived cut", "DataReceived another", "HookCompleted"]


@WAYS
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "waits"])
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(RuntimeError("boom"), id="an exception is contained"),
        pytest.param(exceptions.AddonHalt(), id="halt"),
        pytest.param(exceptions.OptionsError("bad"), id="an options error ends the hook's task"),
        pytest.param(asyncio.CancelledError(), id="cancelled"),
    ],
)
async def test_errors_of_hooks(ours, waits, error):
    """Whatever leaves a hook, it ends the hook and nothing else: the connection lives, the layer waits or goes on."""
    trouble: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, what: trouble.append(what))
    with taddons.context(loadcore=False) as tctx:
        handler, writer, hooks, script = await stage(tctx, ours, around_a_hook)
        script.flow = tflow.tflow()

        async def later() -> None:
            await asyncio.sleep(0)
            raise error

        def do(flow: Any) -> Any:
            if waits:
                return later()
            raise error

        hooks.do = do
        await handler.server_event(data(handler, b"1"))
        await settle()
        contained = isinstance(error, RuntimeError | exceptions.AddonHalt)
        assert b"".join(writer.writes) == (b"before after 1 " if contained else b"before ")
        await handler.server_event(data(handler, b"2"))
        await settle()
        assert script._paused is None or not contained


@WAYS
async def test_a_hook_of_several_arguments_is_refused(ours):
    """`(data,) = hook.args()`: a ValueError, and the layer waits."""

    def steps(self: Script, event: events.Event) -> Any:
        if isinstance(event, events.DataReceived):
            yield Two(1, 2)
            yield commands.SendData(self.context.client, b"never")

    asyncio.get_running_loop().set_exception_handler(lambda loop, what: None)
    with taddons.context(loadcore=False) as tctx:
        handler, writer, _, _ = await stage(tctx, ours, steps)
        await handler.server_event(data(handler))
        await settle()
        assert writer.writes == []


@WAYS
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "waits"])
async def test_an_intercepted_flow_waits(ours, waits):
    with taddons.context(loadcore=False) as tctx:
        handler, writer, hooks, script = await stage(tctx, ours, around_a_hook)
        flow = script.flow = tflow.tflow()

        async def later() -> None:
            await asyncio.sleep(0)
            flow.intercept()

        hooks.do = lambda _: later() if waits else flow.intercept()
        await handler.server_event(data(handler, b"1"))
        await settle()
        assert b"".join(writer.writes) == b"before "
        flow.resume()
        await settle()
        assert b"".join(writer.writes) == b"before after 1 "


@WAYS
async def test_a_layer_that_crashes_does_not_take_the_connection_along(ours, caplog):
    def steps(self: Script, event: events.Event) -> Any:
        yield commands.SendData(self.context.client, b"sent")
        if event.data == b"1":
            raise RuntimeError("crash")

    with taddons.context(loadcore=False) as tctx:
        handler, writer, _, _ = await stage(tctx, ours, steps)
        await handler.server_event(data(handler, b"1"))
        await handler.server_event(data(handler, b"2"))
        assert b"".join(writer.writes) == b"sentsent"
        assert "mitmproxy has crashed!" in caplog.text


@WAYS
@pytest.mark.parametrize("half", [False, True])
async def test_what_was_said_before_the_end_is_sent_before_it(ours, half):
    def steps(self: Script, event: events.Event) -> Any:
        yield commands.SendData(self.context.client, b"last words")
        yield commands.CloseTcpConnection(self.context.client, half)
        yield commands.SendData(self.context.client, b"not these")

    with taddons.context(loadcore=False) as tctx:
        handler, writer, _, _ = await stage(tctx, ours, steps)
        reader = asyncio.get_running_loop().create_task(asyncio.Event().wait())
        handler.transports[handler.client].handler = reader
        await handler.server_event(data(handler))
        if half:
            assert writer.ended == ["eof after 10"]
            assert b"".join(writer.writes) == b"last words"
        else:
            assert writer.writes[0].startswith(b"last words")
            assert reader.cancelling()
        reader.cancel()


@WAYS
async def test_connections_that_are_gone_get_nothing(ours, caplog):
    gone = connection.Server(address=("127.0.0.1", 1))

    def steps(self: Script, event: events.Event) -> Any:
        yield commands.SendData(gone, b"lost")
        yield commands.CloseConnection(gone)
        yield commands.SendData(self.context.client, b"here")

    with taddons.context(loadcore=False) as tctx:
        handler, writer, _, _ = await stage(tctx, ours, steps)
        await handler.server_event(data(handler))
        assert writer.writes == [b"here"]
        assert "crashed" not in caplog.text


@WAYS
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(lambda client: commands.Command(), id="an unknown command"),
        pytest.param(lambda client: commands.ConnectionCommand(client), id="an unknown one about a connection"),
    ],
)
async def test_commands_that_nobody_knows(ours, command, caplog):
    def steps(self: Script, event: events.Event) -> Any:
        yield command(self.context.client)

    with taddons.context(loadcore=False) as tctx:
        handler, _, _, _ = await stage(tctx, ours, steps)
        await handler.server_event(data(handler))
        assert "mitmproxy has crashed!" in caplog.text


@WAYS
async def test_wakeups_and_logs(ours, caplog):
    def steps(self: Script, event: events.Event) -> Any:
        if isinstance(event, events.DataReceived):
            yield commands.RequestWakeup(0)
            yield commands.Log("a line")
        else:
            yield commands.SendData(self.context.client, type(event).__name__.encode())

    caplog.set_level("INFO", "mitmproxy.proxy.server")
    with taddons.context(loadcore=False) as tctx:
        handler, writer, _, _ = await stage(tctx, ours, steps)
        await handler.server_event(data(handler))
        await settle()
        assert writer.writes == [b"Wakeup"]
        assert "a line" in caplog.text


async def test_other_handlers_are_left_alone():
    """A replay has hooks of its own kind."""
    dispatch.install()
    inlining.install()
    called: list[str] = []

    class Other(server.SimpleConnectionHandler):
        pass

    with taddons.context(loadcore=False) as tctx:
        writer = Writer()
        mode = mode_specs.ProxyMode.parse("reverse:https://127.0.0.1:1")
        handler = Other(None, writer, tctx.options, mode, {"request": lambda flow: called.append("request")})
        handler.layer = script = Script(context.Context(handler.client, tctx.options), around_a_hook)
        script.flow = tflow.tflow()
        await handler.server_event(data(handler, b"1"))
        await settle()
        assert called == ["request"]
        assert b"".join(writer.writes) == b"before after 1 "
