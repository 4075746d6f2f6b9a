"""
Which addons have a hook for an event, known before it comes.

mitmproxy walks all its addons for every event, with a generator, a coroutine and a context manager each, though a
handful of them has the hook: half of what a request costs. Here the walk is done once for each kind of event, and
again when addons have come, gone or been configured. All else is as mitmproxy does it, and
tests/addons/mitm/test_dispatch.py holds the two against each other:

- hooks run in the same order, each looked up at the moment it is called, so one that was replaced counts;
- an exception is logged, and skips what is left of that top-level addon; AddonHalt ends the event;
- an addon that comes, goes or is loaded again while an event waits in a hook is met by the rest of it, or not, as ever.

What the manager is not told, it cannot know: an addon that gets a hook or a child outside of `load`, `configure` and
`running`, and calls neither `add`, `register` nor `remove`, is met from the next of these on.
"""

import inspect
import logging
import types
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from mitmproxy import addonmanager, exceptions, flow, hooks
from mitmproxy.addonmanager import AddonManager

logger = logging.getLogger("mitmproxy.addonmanager")  # errors of addons are said where mitmproxy says them

Rest = Coroutine[Any, Any, None]  # what is left of an event whose hook has to be awaited

# What is replaced, and what the replacement relies on: their texts, as they were read.
EXPECTED: Mapping[Callable[..., Any], str] = {
    AddonManager.trigger_event: "b763c59bc4992e33",
    AddonManager.trigger: "b19e37ceb2096421",
    AddonManager.handle_lifecycle: "38c97e792d1db5b7",
    AddonManager.invoke_addon: "13180532440359de",
    AddonManager.invoke_addon_sync: "212818268a95797b",
    AddonManager._iter_hooks: "350b419ab7284091",
    AddonManager._configure_all: "4fcee2f24451540f",
    AddonManager.register: "01ddcca314eebbd3",
    AddonManager.add: "6c26295c4f0f4eb9",
    AddonManager.remove: "2e93aab2204a39f6",
    AddonManager.clear: "5fd484329fa05882",
    addonmanager.traverse: "bad3d9f88bdf9269",
    addonmanager.safecall: "f2052c18340e99b0",
    hooks.Hook.args: "5bab95f7aa358e18",
}

# Events in whose hooks addons change: they add others, replace children, set attributes. Too rare to be fast.
CHANGING = frozenset({"load", "configure", "running", "done"})

_NAMES = ("trigger_event", "trigger", "handle_lifecycle", "invoke_addon_sync", "register", "add", "remove", "clear")
_ORIGINAL: Mapping[str, Callable[..., Any]] = {name: getattr(AddonManager, name) for name in _NAMES}
_fields: dict[type, tuple[str, ...]] = {}


class Place(NamedTuple):
    """An addon with the hook, and where in the walk it stands."""

    addon: Any
    top: int  # index in the chain of the top-level addon it belongs to
    path: tuple[tuple[Any, int], ...]  # the lists that lead to it from there, and in each the index after it


Places = tuple[Place, ...] | None  # None: nobody but the original can tell


class _Odd(Exception):
    """Addons in something else than a list: only a walk at that time can be right about it."""


def forget(manager: AddonManager) -> None:
    """The addons of this manager may have changed."""
    manager.__dict__["tollgate_places"] = {}  # another object: what is under way notices


def places(manager: AddonManager, name: str) -> Places:
    """The addons with this hook, in order."""
    known: dict[str, Places] | None = manager.__dict__.get("tollgate_places")
    if known is None:
        forget(manager)
        return places(manager, name)
    if name not in known:
        try:
            found: Places = tuple(_walk(manager.chain, None, (), name))
        # Whatever it is: the original meets it too, and knows what to do.
        except Exception:  # noqa: BLE001
            found = None
        known[name] = found
    return known[name]


def _walk(children: Any, top: int | None, path: tuple[tuple[Any, int], ...], name: str) -> Iterator[Place]:
    if type(children) not in (list, tuple):
        raise _Odd
    for i, addon in enumerate(children):
        at = i if top is None else top
        here = () if top is None else (*path, (children, i + 1))
        try:
            found = hasattr(addon, name)  # even one that is None now: a hook before it may set it
        # It is raised again when the hook is called, and logged there.
        except Exception:  # noqa: BLE001
            found = True
        if found:
            yield Place(addon, at, here)
        if hasattr(addon, "addons"):
            yield from _walk(addon.addons, at, here, name)


def _hook(addon: Any, name: str) -> Callable[..., Any] | None:
    """The addon's hook of this moment. Raises AddonManagerError when it is something else."""
    hook = getattr(addon, name, None)
    if not hook or isinstance(hook, types.ModuleType):  # `from mitmproxy import log` is no hook
        return None
    if not callable(hook):
        raise exceptions.AddonManagerError(f"Addon handler {name} ({addon}) not callable")
    return hook


def _arguments(event: hooks.Hook) -> list[Any]:
    kind = type(event)
    if kind.args is not hooks.Hook.args:
        return event.args()
    names = _fields.get(kind)
    if names is None:
        names = _fields[kind] = tuple(f.name for f in fields(event))  # type: ignore[arg-type]  # hooks are dataclasses
    return [getattr(event, name) for name in names]


def _log(error: Exception) -> None:
    trace = error.__traceback__
    # Without our own frame, as mitmproxy does.
    logger.error(f"Addon error: {error}", exc_info=(type(error), error, (trace and trace.tb_next) or trace))


def begin(manager: AddonManager, event: hooks.Hook) -> Rest | None:
    """
    Trigger an event across all addons, up to the first hook that has to be awaited.

    Returns what is left, to be awaited at once, or None when all is done. Raises what trigger_event raises.
    """
    found = places(manager, event.name)
    if found is None or event.name in CHANGING:
        return trigger_event(manager, event)
    if not found:
        return None
    return _Event(manager, event, found).go_on(0, -1)


class _Event:
    """One event on its way through the addons."""

    __slots__ = ("arguments", "chain", "event", "found", "known", "manager")

    def __init__(self, manager: AddonManager, event: hooks.Hook, found: tuple[Place, ...]) -> None:
        self.manager, self.event, self.found = manager, event, found
        self.arguments = _arguments(event)
        self.chain = manager.chain  # `remove` makes a new one: who is removed now is still met by this event
        self.known = manager.__dict__["tollgate_places"]

    def go_on(self, start: int, failed: int) -> Rest | None:
        """From this place on, but for the rest of the top-level addon that failed."""
        name, manager = self.event.name, self.manager.__dict__
        for i in range(start, len(self.found)):
            place = self.found[i]
            if place.top == failed:
                continue
            try:
                hook = _hook(place.addon, name)
                if hook is None:
                    continue
                result = hook(*self.arguments)
                if result is not None and inspect.isawaitable(result):
                    return self.waits(result, i)
            except exceptions.AddonHalt:
                return None
            except exceptions.OptionsError:
                raise
            except Exception as e:  # noqa: BLE001 (as mitmproxy does; the guard refuses what was not stamped)
                _log(e)
                failed = place.top
            if manager["tollgate_places"] is not self.known:
                return self.walk_on(place, failed == place.top)
        return None

    async def waits(self, result: Awaitable[Any], i: int) -> None:
        place, failed = self.found[i], -1
        try:
            await result
        except exceptions.AddonHalt:
            return
        except exceptions.OptionsError:
            raise
        except Exception as e:  # noqa: BLE001 (as above)
            _log(e)
            failed = place.top
        changed = self.manager.__dict__["tollgate_places"] is not self.known
        rest = self.walk_on(place, failed == place.top) if changed else self.go_on(i + 1, failed)
        if rest is not None:
            await rest

    async def walk_on(self, place: Place, failed: bool) -> None:
        """The addons have changed meanwhile: the rest as mitmproxy walks them, from where it would be now."""
        try:
            if not failed:
                with addonmanager.safecall():
                    await self.rest_of_top(place)
            for top in _from(self.chain, place.top + 1):
                with addonmanager.safecall():
                    await self.manager.invoke_addon(top, self.event)
        except exceptions.AddonHalt:
            return

    async def rest_of_top(self, place: Place) -> None:
        for addon in _after(place):
            hook = _hook(addon, self.event.name)
            if hook is not None:
                result = hook(*self.arguments)
                if result is not None and inspect.isawaitable(result):
                    await result


def _after(place: Place) -> Iterator[Any]:
    """What follows an addon within its top-level one: its own children, then its siblings, then their parents'."""
    if hasattr(place.addon, "addons"):
        yield from addonmanager.traverse(place.addon.addons)
    for children, index in reversed(place.path):
        yield from addonmanager.traverse(_from(children, index))


def _from(children: Any, index: int) -> Iterator[Any]:
    """The iterator that a walk has now which is at this index of the list, which may still change."""
    iterator = iter(children)
    iterator.__setstate__(index)
    return iterator


def begin_lifecycle(manager: AddonManager, event: hooks.Hook) -> Rest | None:
    """The same for `handle_lifecycle`: the event, and then that the flow was updated."""
    message = _arguments(event)[0]
    rest = begin(manager, event)
    if not isinstance(message, flow.Flow):
        return rest
    if rest is not None:
        return _then_update(manager, rest, message)
    return begin(manager, hooks.UpdateHook([message]))


async def _then_update(manager: AddonManager, rest: Rest, message: flow.Flow) -> None:
    await rest
    update = begin(manager, hooks.UpdateHook([message]))
    if update is not None:
        await update


# ----- what stands in the place of AddonManager's methods -----


async def trigger_event(self: AddonManager, event: hooks.Hook) -> None:
    name = getattr(event, "name", None)  # whatever is no event, the original says so
    if name is None or name in CHANGING or places(self, name) is None:
        try:
            await _ORIGINAL["trigger_event"](self, event)
        finally:
            if name in CHANGING:
                forget(self)
        return
    rest = begin(self, event)
    if rest is not None:
        await rest


async def handle_lifecycle(self: AddonManager, event: hooks.Hook) -> None:
    rest = begin_lifecycle(self, event)
    if rest is not None:
        await rest


def trigger(self: AddonManager, event: hooks.Hook) -> None:
    # Rare, but for what nobody listens to: each line of the log is an event.
    name = getattr(event, "name", None)
    if name in CHANGING:
        _changes("trigger")(self, event)
    elif name is None or places(self, name) != ():
        _ORIGINAL["trigger"](self, event)


def _changes(name: str) -> Callable[..., Any]:
    original = _ORIGINAL[name]

    def changing(self: AddonManager, *args: Any) -> Any:
        forget(self)  # an event in the middle of it must not be answered from before
        try:
            return original(self, *args)
        finally:
            forget(self)

    return changing


def invoke_addon_sync(self: AddonManager, addon: Any, event: hooks.Hook) -> None:
    if getattr(event, "name", None) in CHANGING:
        _changes("invoke_addon_sync")(self, addon, event)
    else:
        _ORIGINAL["invoke_addon_sync"](self, addon, event)


_OURS: Mapping[str, Callable[..., Any]] = {
    "trigger_event": trigger_event,
    "trigger": trigger,
    "handle_lifecycle": handle_lifecycle,
    "invoke_addon_sync": invoke_addon_sync,
    **{name: _changes(name) for name in ("register", "add", "remove", "clear")},
}


def install() -> None:
    """Once it is known that they are what these were written for (EXPECTED)."""
    for name, ours in _OURS.items():
        setattr(AddonManager, name, ours)


def uninstall() -> None:
    """Back to mitmproxy's own; for tests."""
    for name, original in _ORIGINAL.items():
        setattr(AddonManager, name, original)


def installed() -> bool:
    return AddonManager.trigger_event is trigger_event
