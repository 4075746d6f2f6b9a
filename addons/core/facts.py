"""
What the addons know of one flow so far: one typed object per flow, kept in this process.

Never in `flow.metadata`: that is saved to files and comes back with replay, so a flow
file could claim an identity or a verdict. A copied, loaded or replayed flow has no facts,
and a flow that runs again is told to forget them by the guard.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from addons.core.model import Identity, Operation, Verdict
from addons.core.status import Refusal

if TYPE_CHECKING:
    from addons.core.policy import PolicySet


class NotAuthenticated(Exception):
    """An addon needs the identity and no addon before it established one."""


class NotClassified(Exception):
    """An addon needs the operation and no addon before it established one."""


class Stamps(set[tuple[str, str]]):
    """Stamps, and when each was set."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self.times: dict[tuple[str, str], float] = {}  # seconds of that clock

    def add(self, stamp: tuple[str, str]) -> None:
        set.add(self, stamp)  # a third faster than super(), some twenty times an exchange
        self.times[stamp] = self._clock()


_clock: Callable[[], float] | None = None


def time_stamps(clock: Callable[[], float] | None) -> None:
    """From now on, each stamp of an exchange that begins has its time; with None no longer. For those who measure."""
    global _clock
    _clock = clock


class Facts:
    """
    Filled from top to bottom by the addons in the order of the stack.

    `passed` holds (addon name, hook name) for each hook that an addon left in good order:
    mitmproxy logs an exception in a hook and goes on, so only these say that work was done.
    """

    __slots__ = (
        "about",
        "answer",
        "answer_refusal",
        "answer_released",
        "answered_by",
        "approval",
        "approvers",
        "audit_id",
        "chunks",
        "credential",
        "cut_off",
        "edited",
        "frame",
        "head_released",
        "held_for",
        "identify_again",
        "identity",
        "instead",
        "judge_again",
        "judged",
        "last_words",
        "operation",
        "passed",
        "policies",
        "refusal",
        "released",
        "sealed",
        "served_here",
        "started",
        "verdict",
        "whole",
    )

    def __init__(self) -> None:
        self.started = 0.0  # seconds, monotonic; when the head arrived
        self.about: Any = None  # what lines of the log say of this flow (addons/mitm/logs.py)
        self.audit_id = ""  # made by the gateway, sent upstream, the same in every record
        self.refusal: Any = None  # the guard's own 503 (http.Response) until release
        self.answered_by = ""  # the addon whose refusal stands; later ones leave it alone
        self.identity: Identity | None = None
        self.operation: Operation | None = None
        self.verdict = Verdict()
        # A held request waits; before it goes on, both questions are asked again. Set by authenticate
        # and block, each about this very request.
        self.identify_again: Callable[[], Awaitable[Identity]] | None = None
        self.judge_again: Callable[[], Verdict] | None = None
        self.policies: Callable[[], PolicySet] | None = None  # those of the moment it is called
        self.held_for = ""  # name of the approval that a client waits for
        self.approval = ""  # name of the approval or grant that let a held request pass
        self.approvers: tuple[str, ...] = ()  # who said yes
        self.served_here: tuple[str, int] | None = None  # address of a server in this process, instead of upstream's
        self.whole = False  # an addon needs the answer's whole body: it is not streamed
        # What each chunk of a streamed answer becomes on its way to the client; b"" is the end.
        self.chunks: Callable[[bytes], bytes | list[bytes]] | None = None
        self.passed: set[tuple[str, str]] = Stamps(_clock) if _clock is not None else set()
        self.released = False  # the guard's last word: this flow may go upstream
        self.cut_off: Refusal | None = None  # why it must end although it passed: a revocation, the gateway's own end
        # Authorization for the API server, put on the wire only, never into the flow.
        self.credential = ""
        self.answer: Any = None  # the upstream's response, or (raw message, its content), while the guard withholds it
        self.answer_refusal: Refusal | None = None  # in place of an answer that must not get out
        # The guard's last word again: the answer may begin to stream; it may go on as a whole, or end.
        self.head_released = False
        self.answer_released = False
        # What the last addon that read or changed the request left; a change after it (an operator's edit
        # in mitmweb, an option of mitmproxy's) was judged by nobody, so the guard refuses it.
        self.sealed: Any = None
        self.edited = False  # by hand at the console, before it was judged
        # One frame at a time: which addons have judged the one that is being handled.
        self.judged: set[str] = set()
        self.frame: Any = None  # the one that may go on: the guard's last word
        self.instead: list[bytes] | None = None  # frames that go on in place of it, each judged like any other
        self.last_words = b""  # the one frame of our own that ends a WebSocket

    def need_identity(self) -> Identity:
        if self.identity is None:
            raise NotAuthenticated("no identity is known: is authenticate in the stack?")
        return self.identity

    def need_operation(self) -> Operation:
        if self.operation is None:
            raise NotClassified("the operation is unknown: is classify in the stack?")
        return self.operation


_facts: WeakKeyDictionary[Any, Facts] = WeakKeyDictionary()


def of(flow: Any) -> Facts:
    """The facts of this very flow object, made when first asked for."""
    known = _facts.get(flow)
    if known is None:
        known = _facts[flow] = Facts()
    return known


def adopt(flow: Any, origin: Any) -> None:
    """A connection that an exchange was upgraded to (SPDY) is judged by the facts of that exchange."""
    _facts[flow] = of(origin)


def forget(flow: Any) -> None:
    """A flow that runs again (replay, a second request) starts from nothing."""
    _facts.pop(flow, None)
