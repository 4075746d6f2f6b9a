"""
What people see of a flow in mitmweb and mitmproxy: a masked copy, never the flow itself.

Of an exchange that is over it is the recorder's copy, with bodies that the record leaves out; of one
that goes on a copy made when somebody looks. A flow without facts (loaded from a file, made or
duplicated by hand) is masked by its URL. What cannot be masked is not shown.
"""

import io
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from mitmproxy import flow as mitmflow
from mitmproxy import http, tcp, udp

from addons.core import bodies, facts, maskanswers, masking, maskpolicy, pretty, recordable, status
from addons.core.maskpolicy import MaskLevel
from addons.core.masktags import Place
from addons.core.model import ANONYMOUS, Operation
from addons.core.recordable import Content
from addons.mitm import flowcopies, recordcopies, seal

# bytes of a body that is masked while somebody waits, the loop with him: some 30 ms
LARGE = 256 * 1024
MAX_LOADED = flowcopies.MAX_BODY  # of one that a person loads from a file
MAX_LINE = 16 * 1024  # letters of a line of the log

_TEXT = Place("text")
_SECRETS = Place("secrets")

_key = secrets.token_bytes(32)
_ready = False
_copies: WeakSet[mitmflow.Flow] = WeakSet()  # made here: shown as they are
_ended: WeakKeyDictionary[mitmflow.Flow, mitmflow.Flow] = WeakKeyDictionary()
_live: WeakKeyDictionary[mitmflow.Flow, tuple[Any, mitmflow.Flow]] = WeakKeyDictionary()
_told: WeakKeyDictionary[mitmflow.Flow, Mapping[str, str]] = WeakKeyDictionary()
_lock = threading.RLock()  # log lines come from any thread


def use_key(key: bytes) -> None:
    """
    The key of tags; that of the record, so that a value has the same tag before and after the end.
    The patterns of secrets are ready now: else the first line of the log waits for them, and the loop with it.
    """
    global _key, _ready
    _key, _ready = key, True


def is_copy(flow: mitmflow.Flow) -> bool:
    # A copy that is replayed is a flow like any other again: what comes back is put into it.
    return flow in _copies and not flow.live


def shown(flow: mitmflow.Flow) -> mitmflow.Flow:
    """What may be seen of a flow. Raises nothing."""
    if is_copy(flow):
        return flow
    ended = _ended.get(flow)
    if ended is not None:
        return ended
    state = _state(flow)
    known = _live.get(flow)
    if known is None or known[0] != state:
        known = _live[flow] = (state, _made(flow))
    return known[1]


def end(flow: mitmflow.Flow) -> mitmflow.Flow:
    """The exchange is over: from now on this copy is what there is of it."""
    copy = _ended[flow] = _made(flow, recordcopies.take(flow) if isinstance(flow, http.HTTPFlow) else b"")
    _told[copy] = facts_of(flow)
    _live.pop(flow, None)
    return copy


def forget(flow: mitmflow.Flow) -> None:
    """It runs again (replay): nothing made of it before counts."""
    _copies.discard(flow)
    for known in (_ended, _live, _told):
        known.pop(flow, None)


def mask_in_place(flow: mitmflow.Flow) -> None:
    """A flow that nobody speaks through becomes its own copy."""
    copy = _made(flow, limit=MAX_LOADED)
    flow.set_state(copy.get_state())
    _copies.add(flow)


def told(known: facts.Facts, operation: Operation | None) -> dict[str, str]:
    """For people. Until policies were asked the verdict is no, but nobody said so."""
    found = recordcopies.summary_of(known, operation)
    if ("tollgate_block", "request") not in known.passed and not known.answered_by:
        for name in ("verdict", "policy", "rule"):
            found.pop(name, None)
    return found


def facts_of(flow: mitmflow.Flow) -> Mapping[str, str]:
    """What the gateway knows of an exchange, for people; of a loaded flow nothing."""
    if (kept := _told.get(flow)) is not None:
        return kept
    known = facts.of(flow)
    operation = known.operation
    found = told(known, operation) if known.identity is not None or operation else {}
    if operation is not None:
        found["impact"] = ", ".join(sorted(impact.name.lower() for impact in operation.impacts))
    if known.approvers:
        found["approved by"] = ", ".join(known.approvers)
    if known.held_for:
        found["waits for"] = known.held_for
    if known.answered_by:
        found["refused by"] = known.answered_by
    if known.edited:
        found["edited"] = "by hand, before it was judged"
    return found


def line(text: str) -> str:
    """A line of the log."""
    if not _ready:
        return "not shown yet: the gateway is starting"
    if len(text) > MAX_LINE:
        text = f"{text[:MAX_LINE]}… ({len(text)} characters)"
    try:
        with _lock:
            return masking.mask_text(text, _TEXT, _key)
    except Exception:  # noqa: BLE001 -- what cannot be masked is not shown, whatever the reason
        return "a line that could not be masked; it is in the gateway's own output"


def _state(flow: mitmflow.Flow) -> Any:
    """Cheap to compare while nothing changed, see addons/mitm/seal.py."""
    error = flow.error.msg if flow.error else ""
    common = (flow.live, flow.intercepted, flow.marked, flow.comment, flow.is_replay, error)
    if not isinstance(flow, http.HTTPFlow):
        return common
    known = facts.of(flow)
    answer = _answer(flow, known)
    data = answer.data if answer is not None else None
    return (
        *common,
        seal.value(flow.request),
        (data.status_code, data.reason, data.headers.fields, data.content, data.trailers) if data else None,
        flow.websocket is not None,
        (
            id(known),
            known.operation,
            known.verdict,
            known.audit_id,
            known.approval,
            known.answered_by,
            len(known.passed),
        ),
    )


def _answer(flow: http.HTTPFlow, known: facts.Facts) -> http.Response | None:
    """While the guard withholds an answer a placeholder stands in its place."""
    return known.answer if isinstance(known.answer, http.Response) else flow.response


def _made(flow: mitmflow.Flow, recorded: bytes = b"", limit: int = LARGE) -> mitmflow.Flow:
    try:
        copy = _http(flow, recorded, limit) if isinstance(flow, http.HTTPFlow) else _other(flow)
    except Exception:  # noqa: BLE001 -- what cannot be masked is not shown, whatever the reason
        copy = _withheld(flow)
    copy.id, copy.intercepted, copy.is_replay = flow.id, flow.intercepted, flow.is_replay
    copy.timestamp_created = flow.timestamp_created
    _copies.add(copy)
    return copy


def _http(flow: http.HTTPFlow, recorded: bytes, limit: int) -> http.HTTPFlow:
    known = facts.of(flow)
    # What was judged is another request than the one that is here now, so what it was says nothing.
    operation = None if seal.is_broken(flow) else known.operation
    place, level = _place(flow, operation), _level(known, operation)
    answer = _answer(flow, known)
    request = _request(flow.request, operation, place, level, limit)
    response = _response(answer, place, level, limit) if answer is not None else recordable.NO_CONTENT
    if recorded:
        (copy,) = flowcopies.read(io.BytesIO(recorded))
        # The record is kept for long, so it may have less; what is only on the screen is masked the same.
        if not copy.request.raw_content:
            recordcopies.put(copy.request, request)
        if copy.response is not None and not copy.response.raw_content:
            recordcopies.put(copy.response, response)
        return copy
    summary = told(known, operation) if operation is not None else _claimed(flow)
    uri = recordable.uri(flow.request.path, place, _key, level)
    parts = recordcopies.Parts(uri, place, _key, request, response)
    there = flow.response
    try:
        flow.response = answer
        made = flowcopies.serialise(flow, parts, summary=summary, max_body=limit)
    finally:
        flow.response = there
    (copy,) = flowcopies.read(io.BytesIO(made.data))
    copy.marked = flow.marked or copy.marked
    return copy


def _claimed(flow: http.HTTPFlow) -> dict[str, str]:
    """What a file says of a flow: shown to people, believed by nobody."""
    return {recordable.text(k): recordable.text(v) for k, v in flowcopies.summary_of(flow).items()}


def _level(known: facts.Facts, operation: Operation | None) -> MaskLevel:
    if operation is None or known.policies is None:
        return maskpolicy.EVERYTHING
    return known.policies().record_level(operation)


def _place(flow: http.HTTPFlow, operation: Operation | None) -> Place:
    if operation is not None:
        return maskanswers.place_of(operation)
    method, target = flow.request.method, flow.request.path
    for start in ("/api/", "/apis/"):  # a server may have a path of its own before it
        at = target.find(start)
        if at >= 0 and (found := pretty.place_of(method, target[at:])) is not None:
            return found
    return _TEXT


def _request(message: http.Request, operation: Operation | None, place: Place, level: MaskLevel, limit: int) -> Content:
    raw, content_type = message.raw_content or b"", message.headers.get("content-type", "")
    if not raw:
        return recordable.NO_CONTENT
    if len(raw) > limit:
        return Content(note="too large to be shown")
    if operation is not None:
        return recordable.request(operation, raw, content_type, _key, level)
    return _by_itself(raw, message, place, level)


def _response(message: http.Response, place: Place, level: MaskLevel, limit: int) -> Content:
    raw, headers = message.raw_content or b"", message.headers
    if not raw:
        return recordable.NO_CONTENT
    if len(raw) > limit:
        return Content(note="too large to be shown")
    if place is _TEXT or not maskanswers.is_json(headers.get("content-type", "")):
        return _by_itself(raw, message, place, level)
    encoding, content_type = headers.get("content-encoding", ""), headers.get("content-type", "")
    return recordable.answer(raw, encoding, content_type, message.status_code, place, _key, level)


def _by_itself(raw: bytes, message: http.Message, place: Place, level: MaskLevel) -> Content:
    """A body of which nothing is known but its URL. Raises what cannot be unpacked."""
    content_type = message.headers.get("content-type", "")
    plain = maskanswers.decoded(raw, message.headers.get("content-encoding", ""))
    method = message.method if isinstance(message, http.Request) else "GET"
    try:
        content = bodies.read(content_type or None, plain, method).content
    except (status.Refused, ValueError):
        content = None
    if not isinstance(content, Mapping | list):
        if place.resource == _SECRETS.resource:
            # No form that anybody reads, at a place where all is secret.
            return Content(note="it cannot be read, so it cannot be masked")
        text = plain.decode("latin-1")
        return Content(masking.mask_text(text, place, _key, level).encode("latin-1", "replace"), None, content_type)
    if place is _TEXT and isinstance(content, Mapping) and "secret" in str(content.get("kind", "")).lower():
        place = _SECRETS  # direction: where the URL says nothing, what calls itself one is one
    found = masking.mask(content, place, _key, level)
    if found.content is content and "protobuf" not in content_type.lower():
        return Content(plain, content, content_type)
    return Content(masking.dumps(found.content), found.content, "application/json", found.count)


def _other(flow: mitmflow.Flow) -> mitmflow.Flow:
    """SPDY and whatever else: that it was there, and nothing that went through it."""
    kind = type(flow) if isinstance(flow, tcp.TCPFlow | udp.UDPFlow) else tcp.TCPFlow
    copy = kind(flow.client_conn, flow.server_conn)
    copy.comment, copy.marked = recordable.text(flow.comment), flow.marked
    if flow.error is not None:
        copy.error = mitmflow.Error(recordable.text(flow.error.msg), flow.error.timestamp)
    return copy


def _withheld(flow: mitmflow.Flow) -> mitmflow.Flow:
    if not isinstance(flow, http.HTTPFlow):
        return tcp.TCPFlow(flow.client_conn, flow.server_conn)
    copy = http.HTTPFlow(flow.client_conn, flow.server_conn)
    copy.request = http.Request.make("GET", "https://withheld.invalid/")
    copy.request.timestamp_start = flow.request.timestamp_start
    copy.request.timestamp_end = flow.request.timestamp_end or time.time()
    copy.comment = "it could not be masked, so it is not shown"
    return copy


def who(flow: mitmflow.Flow) -> str:
    """The username of an exchange."""
    return facts_of(flow).get("user", ANONYMOUS.username)
