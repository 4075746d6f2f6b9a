"""
Hooks that need not wait are run where they are met, and what an event sends goes out in one piece.

mitmproxy makes a task of each hook, which then queues for the connection's lock: another turn of the loop, with its
system calls, for each of the eight hooks of a request. And it writes to the socket for each piece of a message:
head, body, end. Here a hook that ends without waiting is answered within the same event, in the order in which
mitmproxy would have answered it, and the pieces are joined.

A hook that waits becomes a task as ever.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from mitmproxy import flow
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events, server
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.server import ConnectionHandler, TimeoutWatchdog
from mitmproxy.utils import asyncio_utils

from addons.mitm import dispatch

EXPECTED: Mapping[Callable[..., Any], str] = {
    ConnectionHandler.server_event: "a2b42657ebe8bf6d",
    ConnectionHandler.hook_task: "9ac7970160526268",
    ConnectionHandler.handle_connection: "95c3f93e9824e527",
    ConnectionHandler.close_connection: "c0d10cc05dd65b80",
    ConnectionHandler.log: "706760d6eecf10cd",
    ProxyConnectionHandler.handle_hook: "9f8b52fd798203c9",
    TimeoutWatchdog.disarm: "99af75f94eed883a",
    TimeoutWatchdog.register_activity: "41e033f7debf79d3",
    asyncio_utils.create_task: "1e4ddcc5df8a95ab",
    flow.Flow.wait_for_resume: "a333ab3b51300b44",
}

_server_event: Callable[[ConnectionHandler, events.Event], Coroutine[Any, Any, None]] = ConnectionHandler.server_event


async def server_event(self: ConnectionHandler, event: events.Event) -> None:
    if type(self) is not ProxyConnectionHandler:
        await _server_event(self, event)  # a replay; its hooks go another way
        return
    turn: _Turn | None = self.__dict__.get("tollgate_turn")
    if turn is None:
        # No `await` in there: so it is over before anybody else comes, but for tasks that it starts itself.
        _Turn(self).handle(event)
    else:
        await turn.queue(event)


class _Turn:
    """What one event from outside brings about, to the end."""

    __slots__ = ("handler", "over", "pending", "unsent")

    def __init__(self, handler: ProxyConnectionHandler) -> None:
        self.handler = handler
        self.pending: list[events.Event] = []
        self.unsent: dict[Connection, list[bytes]] = {}
        self.over: asyncio.Future[None] | None = None  # for whoever waits for it

    def queue(self, event: events.Event) -> asyncio.Future[None]:
        self.pending.append(event)
        if self.over is None:
            self.over = asyncio.get_running_loop().create_future()
        return self.over

    def handle(self, event: events.Event) -> None:
        handler = self.handler
        pending = self.pending
        pending.append(event)
        handler.__dict__["tollgate_turn"] = self
        try:
            for each in pending:  # which grows meanwhile
                handler.timeout_watchdog.register_activity()
                try:
                    for command in handler.layer.handle_event(each):
                        self.carry_out(command)
                except Exception:  # noqa: BLE001 (as in mitmproxy)
                    handler.log("mitmproxy has crashed!", logging.ERROR, exc_info=True)
        finally:
            del handler.__dict__["tollgate_turn"]
            self.send()
            if self.over is not None and not self.over.done():
                self.over.set_result(None)

    def carry_out(self, command: commands.Command) -> None:
        handler = self.handler
        if isinstance(command, commands.SendData):
            io = handler.transports.get(command.connection)
            if io is not None:  # else it has been closed
                if io.writer is None:
                    raise RuntimeError(f"nothing can be sent yet: {command}")
                self.unsent.setdefault(command.connection, []).append(command.data)
        elif isinstance(command, commands.StartHook):
            self.start(command)
        elif isinstance(command, commands.Log):
            handler.log(command.message, command.level)
        elif isinstance(command, commands.OpenConnection):
            if command.connection in handler.transports:
                raise RuntimeError(f"opened already: {command}")
            task = asyncio_utils.create_task(
                handler.open_connection(command),
                name=f"server connection handler {command.connection.address}",
                keep_ref=False,
                client=handler.client.peername,
            )
            handler.transports[command.connection] = server.ConnectionIO(handler=task)
        elif isinstance(command, commands.RequestWakeup):
            task = asyncio_utils.create_task(
                handler.wakeup(command),
                name=f"wakeup timer ({command.delay:.1f}s)",
                keep_ref=False,
                client=handler.client.peername,
            )
            handler.wakeup_timer.add(task)
        elif isinstance(command, commands.CloseConnection):
            if command.connection in handler.transports:
                self.send()  # before the end of what it is sent on
                half = isinstance(command, commands.CloseTcpConnection) and command.half_close
                handler.close_connection(command.connection, half)
        elif not isinstance(command, commands.ConnectionCommand) or command.connection in handler.transports:
            raise RuntimeError(f"Unexpected command: {command}")

    def send(self) -> None:
        unsent, self.unsent = self.unsent, {}
        for connection, pieces in unsent.items():
            io = self.handler.transports.get(connection)
            if io is not None and io.writer is not None and not io.writer.is_closing():
                io.writer.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def start(self, hook: commands.StartHook) -> None:
        handler = self.handler
        rest = self.run(hook)
        if rest is None:
            if hook.blocking:
                self.pending.append(events.HookCompleted(hook))
            return
        asyncio_utils.create_task(
            _finish(handler, hook, rest),
            name=f"handle_hook({hook.name})",
            keep_ref=True,
            client=handler.client.peername,
        )

    def run(self, hook: commands.StartHook) -> Coroutine[Any, Any, None] | None:
        """Up to where it has to wait; what is left then."""
        handler = self.handler
        try:
            (data,) = hook.args()
            rest = dispatch.begin_lifecycle(handler.master.addons, hook)
        except BaseException as e:  # noqa: BLE001 (it ends the hook's task, not the connection's)
            return _raise(e)
        if _is_flow(data) and data.intercepted:
            return _resumed(rest, data)
        return rest


_flows: dict[type, bool] = {}  # isinstance asks an abstract class, which is slow


def _is_flow(data: object) -> bool:
    known = _flows.get(type(data))
    if known is None:
        known = _flows[type(data)] = isinstance(data, flow.Flow)
    return known


async def _raise(error: BaseException) -> None:
    raise error


async def _resumed(rest: Coroutine[Any, Any, None] | None, data: flow.Flow) -> None:
    if rest is not None:
        await rest
    await data.wait_for_resume()


async def _finish(handler: ProxyConnectionHandler, hook: commands.StartHook, rest: Coroutine[Any, Any, None]) -> None:
    with handler.timeout_watchdog.disarm():
        await rest
        (data,) = hook.args()
        if _is_flow(data):
            await data.wait_for_resume()
    if hook.blocking:
        await server_event(handler, events.HookCompleted(hook))


def install() -> None:
    """Once it is known that it is what this was written for (EXPECTED), and the table of dispatch.py is in use."""
    ConnectionHandler.server_event = server_event


def uninstall() -> None:
    """Back to mitmproxy's own; for tests."""
    ConnectionHandler.server_event = _server_event  # type: ignore[assignment]  # bound and unbound
