"""
Copies of flows for the record, in mitmproxy's own format, and reading them back.

A flow that clients and servers speak through is never written itself: what is written is a copy,
cut to a bound, without credentials, put through the mask, with a summary in its metadata for the
people who open the file in mitmweb. The summary is in the copy only: a flow that is loaded or
replayed has no facts, so whatever a file claims of itself is believed by nobody.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from mitmproxy import connection, flow, http, version
from mitmproxy.io import compat, tnetstring

from addons.core import recordable
from addons.mitm import messages, tnetstrings

MaskFlow = Callable[[http.HTTPFlow], http.HTTPFlow]

MAX_BODY = 4 * 1024 * 1024  # bytes of a body; a request has 3 MiB at most, an answer any length
MAX_FRAMES = 16 * 1024 * 1024  # bytes of all frames of one WebSocket
METADATA = "tollgate"  # the key of the summary

# By verdict: what mitmweb and mitmproxy show in front of a line.
MARKS = {"allow": ":white_check_mark:", "hold": ":raised_hand:", "deny": ":no_entry:"}

_CREDENTIALS = frozenset({b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"x-remote-extra-token"})
_BEARER_PROTOCOL = "base64url.bearer.authorization.k8s.io."  # k8s.io/apiserver, websocket protocol authenticator


class FlowFileError(Exception):
    """A flow file that cannot be read, or not further; one sentence."""


class NotMasked(Exception):
    """The mask failed or gave no flow: nothing may be written."""


@dataclass(frozen=True, slots=True)
class Copy:
    """What is written of one flow."""

    data: bytes
    cut: tuple[str, ...] = ()  # what is not whole in it: "flow.response 9437184 bytes"


def serialise(
    original: http.HTTPFlow,
    mask: MaskFlow | None,
    *,
    summary: Mapping[str, str] | None = None,
    answer: bool = True,
    max_body: int = MAX_BODY,
    max_frames: int = MAX_FRAMES,
) -> Copy:
    """
    A masked copy in mitmproxy's format. With `answer` false it is the request alone.

    Raises NotMasked; the caller must not let the request go on without a record.
    """
    if mask is None:
        raise NotMasked("there is no mask, so no copy is made")
    cut: list[str] = []
    copied = _copy(original, answer, max_body, max_frames, cut)
    try:
        masked = mask(copied)
    except Exception as e:  # noqa: BLE001 -- whatever it is, what was not masked is not written
        # The error's text may quote what was to be masked.
        raise NotMasked(f"the copy could not be masked ({type(e).__name__})") from None
    if not isinstance(masked, http.HTTPFlow) or masked is original:
        raise NotMasked("the mask gave no copy")
    # After the mask: what it added is bounded too, and no credential comes back by it.
    _strip(masked.request.headers)
    if masked.response is not None:
        _strip(masked.response.headers)
    _describe(masked, summary or {}, cut)
    return Copy(_dump(masked, original), tuple(cut))


def _copy(original: http.HTTPFlow, answer: bool, max_body: int, max_frames: int, cut: list[str]) -> http.HTTPFlow:
    # The connections are put in when it is written; until then nobody has a use for them.
    copied = http.HTTPFlow(_NO_CLIENT, _NO_SERVER)
    # The same id, so that the request written ahead and the whole exchange are one flow to everybody.
    copied.id = original.id
    copied.timestamp_created = original.timestamp_created
    copied.comment = original.comment
    copied.is_replay = original.is_replay
    copied.request = messages.twin(original.request)
    _bound(copied.request, "flow.request", max_body, cut)
    _strip(copied.request.headers)
    if not answer:
        return copied
    copied.error = flow.Error.from_state(original.error.get_state()) if original.error else None
    if original.response is not None:
        copied.response = messages.twin(original.response)
        _bound(copied.response, "flow.response", max_body, cut)
        _strip(copied.response.headers)
    if original.websocket is not None:
        state = original.websocket.get_state()
        state["messages"] = _frames(state["messages"], max_frames, cut)
        copied.websocket = type(original.websocket).from_state(state)
    return copied


_NO_CLIENT = connection.Client(peername=("", 0), sockname=("", 0))
_NO_SERVER = connection.Server(address=None)


def _dump(copied: http.HTTPFlow, original: http.HTTPFlow) -> bytes:
    """What mitmproxy's FlowWriter writes; each connection is made into bytes once, not for every flow."""
    state = {
        "id": copied.id,
        "error": copied.error.get_state() if copied.error else None,
        "is_replay": copied.is_replay,
        "marked": copied.marked,
        "metadata": copied.metadata,
        "comment": copied.comment,
        "timestamp_created": copied.timestamp_created,
        "websocket": copied.websocket.get_state() if copied.websocket else None,
    }
    parts = [_SAME, *(tnetstrings.dumps(part) for pair in state.items() for part in pair)]
    parts += (_REQUEST, _message(copied.request), _RESPONSE, _message(copied.response))
    parts += (_CLIENT, _connection(original.client_conn), _SERVER, _connection(original.server_conn))
    payload = b"".join(parts)
    return b"%d:%b}" % (len(payload), payload)


_SAME = b"".join(
    tnetstrings.dumps(part)
    for pair in {
        "version": version.FLOW_FORMAT_VERSION,
        "type": http.HTTPFlow.type,
        "intercepted": False,
        "backup": None,
    }.items()
    for part in pair
)
_REQUEST, _RESPONSE, _CLIENT, _SERVER = map(tnetstrings.dumps, ("request", "response", "client_conn", "server_conn"))
_HEADERS = tnetstrings.dumps("headers")


def _message(message: http.Message | None) -> bytes:
    if message is None:
        return tnetstrings.dumps(None)
    fields = b"".join([_field(*field) for field in message.headers.fields])
    parts = [_HEADERS, b"%d:%b]" % (len(fields), fields)]
    for name, value in vars(message.data).items():
        if name == "trailers":
            value = value.get_state() if value is not None else None
        if name != "headers":
            parts += (tnetstrings.dumps(name), tnetstrings.dumps(value))
    data = b"".join(parts)
    return b"%d:%b}" % (len(data), data)


def _field(name: bytes, value: bytes) -> bytes:
    return _short_field(name, value) if len(name) + len(value) < _SHORT else tnetstrings.dumps((name, value))


_SHORT = 256  # bytes; longer ones are not kept
_short_field = lru_cache(4096)(lambda *field: tnetstrings.dumps(field))  # most are those of the last request


_PROTOCOLS = (b"h2", b"http/1.1")
_MOST_CONNECTIONS = 2048  # remembered; a gateway has a few hundred open
_connections: OrderedDict[str, tuple[weakref.ref[connection.Connection], tuple[object, ...], bytes]] = OrderedDict()


def _connection(original: connection.Connection) -> bytes:
    """Who it was and how it spoke. Certificates are kilobytes in every flow, and say nothing here."""
    stage = (original.state, original.timestamp_tls_setup, original.peername, original.sni)
    known = _connections.get(original.id)
    # The very same connection: a loaded flow's may claim the id of one that is open.
    if known is not None and known[0]() is original and known[1] == stage:
        return known[2]
    state = original.get_state()
    state["certificate_list"] = []
    if "mitmcert" in state:
        state["mitmcert"] = None
    # What a client writes before it has said who it is; it may hold anything.
    state["alpn_offers"] = [offer for offer in state["alpn_offers"] if offer in _PROTOCOLS]
    for name in ("sni", "error"):
        if state[name] and not recordable.is_plain(state[name].encode("utf-8", "replace")):
            state[name] = None
    data = tnetstrings.dumps(state)
    _connections[original.id] = (weakref.ref(original), stage, data)
    if len(_connections) > _MOST_CONNECTIONS:
        _connections.popitem(last=False)
    return data


def _bound(message: http.Message, name: str, limit: int, cut: list[str]) -> None:
    body = message.raw_content
    if body is None:
        cut.append(f"{name} was streamed and not kept")
        message.data.content = None
        return
    if len(body) > limit:
        # Compressed bytes that are cut cannot be undone by anybody, so nothing of them is kept.
        packed = message.headers.get("content-encoding", "identity") != "identity"
        message.data.content = b"" if packed else body[:limit]
        cut.append(f"{name} {len(body)} bytes")
    if message.trailers is not None:
        message.data.trailers = http.Headers(message.trailers.fields)


def _frames(messages: list[tuple[object, ...]], limit: int, cut: list[str]) -> list[tuple[object, ...]]:
    kept: list[tuple[object, ...]] = []
    size = 0
    for message in messages:
        content = message[2]
        size += len(content) if isinstance(content, bytes) else 0
        if size > limit:
            cut.append(f"flow.websocket {len(kept)} of {len(messages)} frames")
            break
        kept.append(message)
    return kept


def _strip(headers: http.Headers) -> None:
    names = {name.lower() for name, _ in headers.fields}
    if names & _CREDENTIALS:
        headers.fields = tuple(field for field in headers.fields if field[0].lower() not in _CREDENTIALS)
    if b"sec-websocket-protocol" not in names:
        return
    protocols = headers.get_all("sec-websocket-protocol")
    if any(_BEARER_PROTOCOL in value.lower() for value in protocols):
        words = [word.strip() for value in protocols for word in value.split(",")]
        kept = [word for word in words if _BEARER_PROTOCOL not in word.lower()]
        headers.set_all("sec-websocket-protocol", [", ".join(kept)] if kept else [])


def _describe(copied: http.HTTPFlow, summary: Mapping[str, str], cut: list[str]) -> None:
    copied.metadata = {METADATA: {**summary, **({"truncated": ", ".join(cut)} if cut else {})}}
    copied.marked = MARKS.get(summary.get("verdict", ""), "")
    copied.comment = comment_of(summary) or copied.comment
    copied.intercepted = False


def comment_of(summary: Mapping[str, str]) -> str:
    """`delete pod web-1 [deny agents/no-deletes]`, in a column of mitmweb's."""
    words = [summary.get("command") or summary.get("summary", "")]
    if summary.get("rule"):
        words.append(f"[{summary.get('verdict', '')} {summary.get('policy', '')}/{summary['rule']}]")
    return " ".join(word for word in words if word)


# ----- reading -----


def read(file: BinaryIO, name: str = "flows.mitm") -> Iterator[http.HTTPFlow]:
    """
    The flows of a file, as far as it is one. Raises FlowFileError at the point where it is not.

    Not mitmproxy's own FlowReader, which takes HAR files too and says less of what is wrong.
    """
    count = 0
    while True:
        try:
            state = tnetstring.load(file)
            if not isinstance(state, dict):
                raise FlowFileError(_broken(name, count))
            found = flow.Flow.from_state(compat.migrate_flow(state))
        except FlowFileError:
            raise
        except Exception as e:  # noqa: BLE001 -- a file is anybody's: whatever its reader trips over, it ends here
            if str(e) == "not a tnetstring: empty file":
                return
            if "flow format version" in str(e):
                raise FlowFileError(f"{name} was written by another version of mitmproxy; read it with that") from None
            raise FlowFileError(_broken(name, count)) from None
        count += 1
        if isinstance(found, http.HTTPFlow):
            yield found


def _broken(name: str, count: int) -> str:
    if not count:
        return f"{name} is not a flow file of mitmproxy's"
    return f"{name} is cut or damaged after flow {count}; what is before it was read"


def summary_of(found: http.HTTPFlow) -> Mapping[str, str]:
    """What the recorder said of a flow. From a file: for people, never for a decision."""
    told = found.metadata.get(METADATA)
    return {str(k): v for k, v in told.items() if isinstance(v, str)} if isinstance(told, dict) else {}
