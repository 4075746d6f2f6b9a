"""The copy of a flow that is recorded, put together from parts that were masked."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from mitmproxy import http, websocket
from wsproto.frame_protocol import Opcode

from addons.core import commands, facts, masking, recordable, upstreamrequest
from addons.core.masktags import Place
from addons.core.model import ANONYMOUS, Operation
from addons.core.recordable import NO_CONTENT, Content
from addons.core.recordedstream import Frame


@dataclass(frozen=True, slots=True)
class Parts:
    """What stands in the copy in place of the flow's own."""

    path: str
    place: Place
    key: bytes
    request: Content = NO_CONTENT
    answer: Content = NO_CONTENT
    frames: tuple[Frame, ...] = ()

    def __call__(self, copied: http.HTTPFlow) -> http.HTTPFlow:
        """For flowcopies.serialise: the copy with these parts."""
        copied.request.path = self.path
        # Where it was sent to is the client's to write as well.
        copied.request.data.host = self._line(copied.request.data.host)
        copied.request.data.authority = self._masked(copied.request.data.authority)
        copied.comment = self._line(copied.comment)
        if copied.error is not None:  # which quotes what could not be read
            copied.error.msg = self._line(copied.error.msg)
        put(copied.request, self.request)
        # Those that go upstream; what else a client sends (a key for something else) is not for the record.
        headers = copied.request.headers
        headers.fields = tuple(field for field in headers.fields if _is_kept(field[0]))
        self._headers(copied.request)
        if copied.response is not None:
            put(copied.response, self.answer)
            self._headers(copied.response)
            copied.response.data.reason = self._masked(copied.response.data.reason)
        if copied.websocket is not None:
            if copied.websocket.close_reason:
                copied.websocket.close_reason = self._line(copied.websocket.close_reason)
            copied.websocket.messages = [
                websocket.WebSocketMessage(Opcode.BINARY, from_client, content, at)
                for from_client, content, at in self.frames
            ]
        return copied

    def _headers(self, message: http.Message) -> None:
        """Warnings quote values, and a program behind a proxy says what it likes."""
        fields = message.headers.fields
        if not all(recordable.is_plain(name) and recordable.is_plain(value) for name, value in fields):
            message.headers = http.Headers([(self._masked(name), self._masked(value)) for name, value in fields])
        message.data.trailers = None

    def _masked(self, value: bytes) -> bytes:
        if recordable.is_plain(value):
            return value
        return masking.mask_text(value.decode("latin-1"), self.place, self.key).encode("latin-1", "replace")

    def _line(self, value: str) -> str:
        return recordable.line(value, self.place, self.key)


_KEPT = upstreamrequest.ALLOWED | frozenset().union(*upstreamrequest.ALLOWED_UPGRADE.values())
_OURS = frozenset((b"host", b"content-length", b"audit-id", b"x-forwarded-for"))


def _is_kept(name: bytes) -> bool:
    name = name.lower()
    return name in _KEPT or name in _OURS or name.startswith(b"impersonate-")


def summary_of(known: facts.Facts, operation: Operation | None) -> dict[str, str]:
    """For the people who open the flow file, or look at the flow in mitmweb."""
    found = {"audit-id": known.audit_id, "user": (known.identity or ANONYMOUS).username}
    if known.approval:
        found["approval"] = known.approval
    if operation is None:
        return {name: value for name, value in found.items() if value}
    found |= {"summary": recordable.text(operation.summary or commands.summary(operation))}
    if known.policies is not None:  # or nobody was asked, and none said no
        verdict = known.verdict
        found |= {"verdict": verdict.action.name.lower(), "policy": verdict.policy, "rule": verdict.rule}
    return {name: value for name, value in found.items() if value}


def put(message: http.Message, content: Content) -> None:
    """With its headers: what is compressed or in chunks over the wire is neither in the record."""
    message.data.content = content.raw
    fields = message.headers.fields
    message.headers.fields = tuple(field for field in fields if field[0].lower() not in _OF_THE_WIRE)
    if content.raw:
        message.headers["content-length"] = str(len(content.raw))
        if content.content_type:
            message.headers["content-type"] = content.content_type


_OF_THE_WIRE = frozenset((b"content-encoding", b"transfer-encoding", b"content-length"))


# ----- for who shows flows -----

_handed: WeakKeyDictionary[http.HTTPFlow, bytes] | None = None  # None: nobody shows any, so nothing is kept


def want() -> None:
    """From now on the recorder's copies are kept until they are taken."""
    global _handed
    _handed = WeakKeyDictionary() if _handed is None else _handed


def hand_out(flow: http.HTTPFlow, data: bytes | None) -> None:
    """What was recorded of an exchange that is over, in mitmproxy's format."""
    if _handed is not None and data:
        _handed[flow] = data


def take(flow: http.HTTPFlow) -> bytes:
    """The recorder's copy, once; b"" where there is none."""
    return _handed.pop(flow, b"") if _handed is not None else b""
