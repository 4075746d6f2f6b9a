"""
What addons have to tell whoever measures, without knowing who that is, or whether anybody does.

`note` says that something happened; `offer` says where a number can be read. Nobody listens unless
addons/metrics.py is loaded, and then both cost next to nothing.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable

logger = logging.getLogger(__name__)

type Reading = tuple[str, tuple[str, ...], float]  # name in core/metrics.METRICS, values of its labels, value
type Source = Callable[[], Iterable[Reading] | Awaitable[Iterable[Reading]]]
type Listener = Callable[[str, tuple[str, ...], float], None]

_sources: dict[str, Source] = {}
_listeners: list[Listener] = []


def offer(name: str, source: Source) -> None:
    """Under the addon's name: a script that is loaded again takes the place of the one before."""
    _sources[name] = source


def withdraw(name: str, source: Source) -> None:
    """Unless another has taken its place."""
    if _sources.get(name) == source:
        del _sources[name]


def sources() -> Iterable[tuple[str, Source]]:
    return tuple(_sources.items())


def note(name: str, value: float = 1, *labels: str) -> None:
    """Never raises: a hook that decides must not fail because somebody counts."""
    for listener in _listeners:
        try:
            listener(name, labels, value)
        except Exception:
            logger.exception("metrics: %s could not be counted", name)


def listened() -> bool:
    return bool(_listeners)


def listen(listener: Listener) -> None:
    _listeners.append(listener)


def leave(listener: Listener) -> None:
    """What is said twice does no harm."""
    if listener in _listeners:
        _listeners.remove(listener)
