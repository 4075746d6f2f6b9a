"""
The stack: which addons there are, in which order, and what each must have done before the
guard lets a request go upstream or an answer go to the client.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# In the order of the way of a request. The guard is always first and not part of the choice.
ORDER = ("authenticate", "classify", "block", "approve", "mask", "record", "upstream")

# The hooks that each addon stamps. An addon that does work in a hook stamps that hook:
# mitmproxy logs an exception and goes on, and skips the same hook of every later script.
STAMPS: Mapping[str, frozenset[str]] = {
    "guard": frozenset({"requestheaders", "request", "responseheaders"}),
    "authenticate": frozenset({"requestheaders", "request", "responseheaders"}),
    "classify": frozenset({"request"}),
    "block": frozenset({"request", "responseheaders"}),
    "approve": frozenset({"request", "responseheaders", "response"}),
    "mask": frozenset({"request", "responseheaders", "response"}),
    "record": frozenset({"request", "responseheaders", "response"}),
    "upstream": frozenset({"request", "responseheaders", "response"}),
}

# Who must judge each frame of an upgraded connection.
FRAME_JUDGES = frozenset({"authenticate", "mask", "record"})


class StackError(Exception):
    """The stack that was asked for cannot be built, or would be unsafe."""


def addon_name(addon: str) -> str:
    return f"tollgate_{addon}"


@dataclass(frozen=True, slots=True)
class Stack:
    """The chosen addons, in order, and what the guard demands of them."""

    addons: tuple[str, ...]
    request: frozenset[tuple[str, str]]  # (addon name, hook) stamps before a request goes upstream
    responseheaders: frozenset[tuple[str, str]]  # before the head of an answer, and so a stream, goes on
    response: frozenset[tuple[str, str]]  # before a whole answer goes on
    frame: frozenset[str]  # addon names that judge each frame


def build(names: Sequence[str]) -> Stack:
    """The stack of these addons. Raises StackError for a name that is not there or twice."""
    for name in names:
        if name not in ORDER:
            raise StackError(f"stack: there is no addon {name!r}; there are {', '.join(ORDER)}")
        if names.count(name) > 1:
            raise StackError(f"stack: {name} is named twice")
    chosen = tuple(a for a in ORDER if a in names)

    def stamps(*hooks: str) -> frozenset[tuple[str, str]]:
        return frozenset((addon_name(a), h) for a in ("guard", *chosen) for h in STAMPS[a] & frozenset(hooks))

    return Stack(
        chosen,
        stamps("requestheaders", "request"),
        stamps("responseheaders"),
        stamps("responseheaders", "response"),
        frozenset(addon_name(a) for a in chosen if a in FRAME_JUDGES),
    )


FULL = build(ORDER)


def parse(text: str) -> Stack:
    """`authenticate,block` -> Stack; "" is the full one. Raises StackError."""
    return build([name.strip() for name in text.split(",")]) if text.strip() else FULL


def choose(only: str, without: str) -> Stack:
    """The stack of --only and --without, comma-separated. Raises StackError."""
    names = [n.strip() for n in only.split(",") if n.strip()] or list(ORDER)
    dropped = [n.strip() for n in without.split(",") if n.strip()]
    build(dropped)  # a misspelled name must not silently drop nothing
    return build([n for n in names if n not in dropped])
