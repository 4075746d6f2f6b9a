"""
Answers: which of them may hold what is secret, in what form they come, and how each is masked.

What cannot be read with certainty is refused, not passed: a client gets JSON because its Accept
header asks for nothing else once this is through with it (kubectl, client-go, Helm and MCP
servers were tried and do not notice).
"""

import enum
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from addons.core import masking, masktags, resources, status, strict_json
from addons.core.admission import ServerRefusal
from addons.core.maskpolicy import MaskLevel
from addons.core.masktags import Place
from addons.core.model import Impact, Operation
from addons.core.status import Refusal, Refused

# bytes of an answer that is looked at as a whole. Parsed it is ten times that in memory; kubectl
# asks for 500 objects at a time.
MAX_WHOLE = 64 * 1024 * 1024
# bytes of all answers at once that are looked at as a whole, from their first byte until the client has taken
# them; small ones are not counted, of them there are no more than open requests.
MAX_ALL = 4 * MAX_WHOLE
SMALL = 256 * 1024
MAX_PLAIN = 64 * 1024  # bytes of an error that is no JSON: the API server's own are a line

_META = frozenset({Impact.META})
# `*` is taken for anything by the server, JSON among it.
_JSON_LIKE = frozenset({"application/json", "application/*", "*/*"})
_OTHER_ENCODINGS = frozenset(
    {
        "application/yaml",
        "application/cbor",
        "application/cbor-seq",
        "application/vnd.kubernetes.protobuf",
        "application/vnd.kubernetes.protobuf;stream=watch",
    }
)
# What tells the form of the answer and not its encoding: Tables, aggregated discovery, quality.
_KEPT_PARAMETERS = frozenset({"as", "g", "v", "q", "includeobject"})
_PARAMETER = re.compile(r"\s*([A-Za-z]+)\s*=\s*\"?([A-Za-z0-9._-]{1,128})\"?\s*")
_JSON = re.compile(r"application/(?:[a-z0-9.+-]+\+)?json(?:\s*;.*)?", re.IGNORECASE | re.DOTALL)
_TEXT = re.compile(r"text/plain(?:\s*;.*)?", re.IGNORECASE | re.DOTALL)

TOO_LARGE = Refusal(
    502,
    "answer-too-large",
    f"mask: the answer has over {MAX_WHOLE // 1024 // 1024} MiB and cannot be masked as a whole; the request itself "
    "was carried out; ask for less at once: limit=500 and continue, a namespace, or a label selector",
)
CROWDED = Refusal(
    503,
    "answers-crowded",
    "mask: too many large answers are being masked at this moment, or wait for you to read them, so this one is "
    "withheld; the request itself was carried out; try again in a moment, or ask for less at once: limit=500 and "
    "continue, a namespace, or a label selector",
)
UNREADABLE = Refusal(
    502,
    "answer-not-masked",
    "mask: the API server's answer cannot be read with certainty, so what is secret in it is not known and it is "
    "withheld; the request itself was carried out; ask for JSON, and if you did tell the operator",
)
STREAM_BROKEN = Refusal(
    502,
    "stream-not-masked",
    "mask: what came next in this stream could not be masked with certainty, so the stream ends; start it again, "
    "and if it stays so tell the operator",
)


class Form(enum.Enum):
    """How an answer comes, and so how it is masked."""

    NOTHING = "nothing"  # provably holds nothing secret: passes as it is
    OBJECTS = "objects"  # JSON, as a whole
    EVENTS = "events"  # a watch: one JSON event a line
    TEXT = "text"  # logs, what is behind a proxy, pages of unknown content: best effort
    FRAMES = "frames"  # an upgraded connection


def form_of(operation: Operation) -> Form:
    """In what form the answer to this operation comes when it is a good one."""
    info = operation.info
    if not info.is_resource_request:
        return Form.NOTHING if operation.impacts == _META else Form.TEXT
    if operation.upgrade:
        return Form.FRAMES
    if info.api_group == resources.OWN_GROUP or operation.impacts == _META:
        return Form.NOTHING  # our own objects, masked when they were made; questions about oneself
    if info.verb == "proxy" or (not info.api_group and info.subresource in ("log", "proxy")):
        return Form.TEXT
    return Form.EVENTS if info.verb == "watch" else Form.OBJECTS


def is_proxied(operation: Operation) -> bool:
    """Whether somebody else than an API server answers, in whatever form he likes."""
    info = operation.info
    return info.verb == "proxy" or (not info.api_group and info.subresource == "proxy")


def is_cut_short(query: Iterable[str]) -> bool:
    """Whether a text ends where the client likes (`limitBytes` of a log, a kubelet's too). query: its keys."""
    return any(key.casefold() == "limitbytes" for key in query)


def asks_for_json(operation: Operation) -> bool:
    """Whether the Accept header is to be made one for JSON. A proxied program is asked as the client did."""
    return form_of(operation) in (Form.OBJECTS, Form.EVENTS)


def accept(values: Sequence[str]) -> str:
    """
    The Accept header that asks for the same in JSON: a Table stays a Table, aggregated discovery
    what it is; protobuf, CBOR and YAML become JSON. What is none of these is left out.
    """
    found: dict[str, None] = {}
    for part in ",".join(values).split(","):
        media_type, *parameters = part.split(";")
        media_type = media_type.strip().lower()
        if media_type not in _JSON_LIKE and media_type not in _OTHER_ENCODINGS:
            continue
        kept = []
        for parameter in parameters:
            match = _PARAMETER.fullmatch(parameter)
            if match and match[1].lower() in _KEPT_PARAMETERS:
                kept.append(f";{match[1]}={match[2]}")
        found["".join(["application/json", *kept])] = None
    return ",".join(found) or "application/json"


def is_json(content_type: str) -> bool:
    return _JSON.fullmatch(content_type.strip()) is not None


def decoded(raw: bytes, content_encoding: str) -> bytes:
    """A body as it was before it was compressed. Raises Refused for what is no gzip, or grows too large."""
    encoding = content_encoding.strip().lower()
    if encoding in ("", "identity") or not raw:
        return raw
    if encoding != "gzip":
        raise _refused(UNREADABLE)
    try:
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        content = unpacker.decompress(raw, MAX_WHOLE + 1)
    except zlib.error:
        raise _refused(UNREADABLE) from None
    if len(content) > MAX_WHOLE:
        raise _refused(TOO_LARGE)
    # Half of one, or one with more behind it: another reader may see something else.
    if not unpacker.eof or unpacker.unused_data:
        raise _refused(UNREADABLE)
    return content


def whole(
    raw: bytes,
    code: int,
    content_type: str,
    place: Place,
    key: bytes,
    level: MaskLevel,
    learn: Callable[[Any], None] | None = None,
) -> tuple[bytes, masking.Masked]:
    """
    A whole answer, masked; the very same bytes when nothing in it is secret. Raises Refused when
    that cannot be done with certainty.

    Errors that are no JSON (`404 page not found`) are the server's own line of text.
    learn: told the content before it is masked.
    """
    if len(raw) > MAX_WHOLE:
        raise _refused(TOO_LARGE)
    if not raw.strip():
        return raw, masking.Masked(None)
    if is_json(content_type):
        try:
            if learn is None:
                return _masked(raw, place, key, level)
            return _masked_and_learnt(raw, place, key, level, learn)
        except strict_json.NotStrictJSON:
            raise _refused(UNREADABLE) from None
    if code >= 400 and len(raw) <= MAX_PLAIN and (not content_type or _TEXT.fullmatch(content_type.strip())):
        text = raw.decode("latin-1")  # byte for byte
        masked = masking.mask_text(text, place, key, level)
        return masked.encode("latin-1"), masking.Masked(None, int(masked is not text))
    raise _refused(UNREADABLE)


_clean: dict[tuple[bytes, Place, MaskLevel], None] = {}  # answers in which nothing was secret: agents ask in loops
_CLEAN_LENGTH = 16 * 1024  # bytes
_CLEAN_MOST = 256


def _masked(raw: bytes, place: Place, key: bytes, level: MaskLevel) -> tuple[bytes, masking.Masked]:
    if len(raw) > _CLEAN_LENGTH:
        return masking.mask_json(raw, place, key, level)
    # All that masking depends on, but for the key of the tags, of which there are none here.
    asked = (raw, place, level)
    if asked in _clean:
        return raw, masking.Masked(None)
    content, found = masking.mask_json(raw, place, key, level)
    if content is raw:  # never one with a secret: it would be kept in memory
        if len(_clean) >= _CLEAN_MOST:
            _clean.clear()
        _clean[asked] = None
    return content, found


def _masked_and_learnt(
    raw: bytes, place: Place, key: bytes, level: MaskLevel, learn: Callable[[Any], None]
) -> tuple[bytes, masking.Masked]:
    try:
        content = strict_json.loads(raw.decode(), raw, depth=False)
        learn(content)
        masked = masking.mask(content, place, key, level)
        if masked.content is content:
            return raw, masked
        return masking.dumps(masked.content) + (b"\n" if raw.endswith(b"\n") else b""), masked
    except (UnicodeDecodeError, RecursionError) as e:
        raise strict_json.NotStrictJSON(f"it cannot be read: {type(e).__name__}") from None


def relayed(refusal: ServerRefusal, operation: Operation, key: bytes, level: MaskLevel) -> ServerRefusal:
    """What the API server said to a preview, for the client: its Status masked, or a sentence in its place."""
    if not level.masks:
        return refusal
    try:
        body, _ = whole(refusal.body, refusal.code, "application/json", place_of(operation), key, level)
    except (Refused, ValueError):  # no JSON, or no key to mask it with
        # Its code stays: clients and people act by it.
        sentence = f"the API server refuses this with {refusal.code}; what it says cannot be masked and is not shown"
        body = status.body(Refusal(refusal.code, "api-server", sentence))
    return ServerRefusal(refusal.code, body)


def header(value: str, place: Place, key: bytes, level: MaskLevel) -> str:
    """The value of a header that carries text; the very same when nothing is secret."""
    return masking.mask_text(value, place, key, level)


def warning(value: str, place: Place, key: bytes, level: MaskLevel) -> str:
    """The value of a Warning header, as `header`. An admission policy's may quote all of the object."""
    return masking.mask_warning(value, place, key, level)


def place_of(operation: Operation) -> Place:
    return masktags.place_of(operation.info)


def _refused(refusal: Refusal) -> Refused:
    return Refused(refusal.code, refusal.cause, refusal.message)
