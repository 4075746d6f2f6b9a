"""
The chain: what makes a recording provable.

Every event of a session is one line of canonical JSON that holds its number, the digest of the
line before it and the digest of its flow's bytes. The first line hangs on the session's own id
and place, so a session cannot pass for another one. A checkpoint signs (Ed25519) how many events
a session has and what the last one's digest is; checkpoints of all sessions are a chain too, so
that a whole session cannot vanish either.

Whoever has the key can sign another history. What proves something against him is a checkpoint
that has left the machine: addons/core/chainverify.py compares.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from addons.core import strict_json
from addons.core.model import NOTHING

FORMAT = 1  # of session folders and checkpoints; a reader refuses what is newer
PREFIX = "tollgate.dev/"
SEQUENCE = f"{PREFIX}sequence"  # of the event in its session, from 1
PREVIOUS = f"{PREFIX}previous"  # digest of the line before
SESSION = f"{PREFIX}session"  # id of the session
FLOW = f"{PREFIX}flow"  # where its flow is and what its digest is: `flows.mitm 10240 2048 <sha256>`
FILES = f"{PREFIX}files"  # other files that it ends: `exec-1.cast 8192 <sha256>`, joined by `, `
OURS = (SEQUENCE, PREVIOUS, SESSION, FLOW, FILES)  # what only the chain may write

CHECKPOINT = "Checkpoint"
API_VERSION = "tollgate.dev/v1alpha1"
NOTHING_BEFORE = hashlib.sha256(b"tollgate.dev/checkpoints").hexdigest()  # what the first checkpoint follows
STATES = ("open", "going", "closed", "recovered", "removed")
MAX_LINE = 32 * 1024 * 1024  # bytes; an event is bounded far below (addons/core/auditevents.py)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")


class ChainError(Exception):
    """A line, a key or a checkpoint that is not one; one sentence that quotes nothing of it."""


def canonical(value: Any) -> bytes:
    """One spelling of a JSON value. Raises ChainError for what has none (NaN, an object of Python's)."""
    try:
        # ASCII: half a surrogate pair, which a client can send, has no UTF-8.
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as e:
        raise ChainError(f"event: it cannot be written as JSON ({type(e).__name__})") from None


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def genesis(uid: str, path: str) -> str:
    """What the first event of a session follows: its id and its place among the recordings."""
    return digest(f"tollgate.dev/session\n{FORMAT}\n{uid}\n{path}".encode())


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a file beside the events, and their digest."""

    file: str
    offset: int  # bytes
    length: int  # bytes
    sha256: str

    @property
    def end(self) -> int:
        return self.offset + self.length

    def text(self) -> str:
        return f"{self.file} {self.offset} {self.length} {self.sha256}"


def is_file_name(name: str) -> bool:
    """What a file beside the events may be called."""
    return _FILE.fullmatch(name) is not None


def read_part(text: str) -> Part:
    """Raises ChainError."""
    words = text.split(" ")
    if len(words) != 4 or not _FILE.fullmatch(words[0]) or not _DIGEST.fullmatch(words[3]):
        raise ChainError("its reference to a flow is unreadable")
    return Part(words[0], _number(words[1]), _number(words[2]), words[3])


@dataclass(frozen=True, slots=True)
class Size:
    """A file that grows beside the events (asciicast, a stream): its length and digest so far."""

    length: int  # bytes
    sha256: str


Files = Mapping[str, Size]


def files_text(files: Files) -> str:
    return ", ".join(f"{name} {size.length} {size.sha256}" for name, size in sorted(files.items()))


def read_files(text: str) -> dict[str, Size]:
    """Raises ChainError."""
    found: dict[str, Size] = {}
    for one in text.split(", ") if text else ():
        words = one.split(" ")
        if len(words) != 3 or not _FILE.fullmatch(words[0]) or not _DIGEST.fullmatch(words[2]):
            raise ChainError("its reference to a file is unreadable")
        found[words[0]] = Size(_number(words[1]), words[2])
    return found


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ChainError("a number in it is unreadable")
    return int(text)


# ----- events -----


def link(
    event: Mapping[str, Any],
    *,
    uid: str,
    sequence: int,
    previous: str,
    flow: Part | None = None,
    files: Files = NOTHING,
) -> bytes:
    """The event as a line of its session, without the line's end. Raises ChainError."""
    annotations = {key: value for key, value in (event.get("annotations") or {}).items() if key not in OURS}
    annotations |= {SESSION: uid, SEQUENCE: str(sequence), PREVIOUS: previous}
    if flow is not None:
        annotations[FLOW] = flow.text()
    if files:
        annotations[FILES] = files_text(files)
    return canonical({**event, "annotations": annotations})


@dataclass(frozen=True, slots=True)
class Link:
    """What a line says of its place."""

    uid: str
    sequence: int
    previous: str
    flow: Part | None
    files: Files


def read_line(line: bytes) -> tuple[dict[str, Any], Link]:
    """The event of a line, and its place. Raises ChainError."""
    event = _object(line, "the line")
    annotations = event.get("annotations")
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        raise ChainError("the line is no event of a recording")
    uid, previous = annotations.get(SESSION, ""), annotations.get(PREVIOUS, "")
    if not _UID.fullmatch(uid) or not _DIGEST.fullmatch(previous):
        raise ChainError("the line does not say where it belongs")
    flow = read_part(annotations[FLOW]) if FLOW in annotations else None
    files = read_files(annotations.get(FILES, ""))
    return event, Link(uid, _number(annotations.get(SEQUENCE, "")), previous, flow, files)


def _object(line: bytes, what: str) -> dict[str, Any]:
    if len(line) > MAX_LINE:
        raise ChainError(f"{what} is too long")
    try:
        value = strict_json.loads(line.decode("ascii"), line)
    except (ValueError, RecursionError):
        raise ChainError(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise ChainError(f"{what} is not a JSON object")
    return value


# ----- keys -----


@dataclass(frozen=True, slots=True)
class SigningKey:
    """What signs checkpoints. The private part is in no repr."""

    id: str
    _private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"SigningKey({self.id!r})"

    @property
    def public(self) -> bytes:
        return _raw(self._private.public_key())

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)

    def pem(self) -> bytes:
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def public_pem(self) -> bytes:
        return self._private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def key_id(public: bytes) -> str:
    """How people and checkpoints name a key."""
    return hashlib.sha256(public).hexdigest()[:16]


def new_key() -> SigningKey:
    return _signing(Ed25519PrivateKey.generate())


def _signing(private: Ed25519PrivateKey) -> SigningKey:
    return SigningKey(key_id(_raw(private.public_key())), private)


def read_key(pem: bytes) -> SigningKey:
    """A private Ed25519 key in PEM without a password. Raises ChainError."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as e:
        raise ChainError("key: not a private key in PEM without a password") from e
    if not isinstance(key, Ed25519PrivateKey):
        raise ChainError("key: not an Ed25519 key; make one with: openssl genpkey -algorithm ed25519")
    return _signing(key)


def read_public_key(pem: bytes) -> bytes:
    """The 32 bytes of a public (or private) Ed25519 key in PEM. Raises ChainError."""
    if b"PRIVATE" in pem:
        return read_key(pem).public
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError) as e:
        raise ChainError("key: not a public key in PEM") from e
    if not isinstance(key, Ed25519PublicKey):
        raise ChainError("key: not an Ed25519 key")
    return _raw(key)


# ----- checkpoints -----


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is signed: so many events has this session, and the last one's digest is this."""

    number: int  # among all checkpoints of one recordings folder, from 1
    previous: str  # digest of the checkpoint line before
    time: str  # RFC 3339, by the gateway's clock
    uid: str
    path: str  # of the session's folder below the recordings
    state: str  # one of STATES
    events: int
    head: str  # digest of the last event's line, or the genesis
    files: Files = NOTHING  # that grow beside the events
    note: str = ""  # for people: why it was removed, what was cut at the recovery
    key: bytes = b""  # public, 32 bytes

    def sign(self, key: SigningKey) -> bytes:
        """The line, without its end."""
        value = {
            "apiVersion": API_VERSION,
            "kind": CHECKPOINT,
            "format": FORMAT,
            "number": self.number,
            "previous": self.previous,
            "time": self.time,
            "session": self.uid,
            "path": self.path,
            "state": self.state,
            "events": self.events,
            "head": self.head,
            "files": files_text(self.files),
            "note": self.note,
            "key": base64.b64encode(key.public).decode(),
        }
        signature = base64.b64encode(key.sign(_signed(value))).decode()
        return canonical({**value, "signature": signature})


def _signed(value: Mapping[str, Any]) -> bytes:
    # A prefix of its own: the key's signature under something else must not be one of these.
    return b"tollgate.dev/checkpoint\n" + canonical(value)


_FIELDS = {
    "apiVersion": str,
    "kind": str,
    "format": int,
    "number": int,
    "previous": str,
    "time": str,
    "session": str,
    "path": str,
    "state": str,
    "events": int,
    "head": str,
    "files": str,
    "note": str,
    "key": str,
    "signature": str,
}


def read_checkpoint(line: bytes) -> Checkpoint:
    """The checkpoint of a line, its signature checked with the key that it names. Raises ChainError."""
    value = _object(line, "the checkpoint")
    if value.get("kind") != CHECKPOINT:
        raise ChainError("the line is no checkpoint")
    if isinstance(value.get("format"), int) and value["format"] > FORMAT:
        raise ChainError(
            f"the checkpoint was written by a newer version (format {value['format']}, this one knows {FORMAT})"
        )
    if value.keys() != _FIELDS.keys() or any(type(value[name]) is not kind for name, kind in _FIELDS.items()):
        raise ChainError("the checkpoint lacks fields, or has others")
    if canonical(value) != line:
        raise ChainError("the checkpoint is not written as it was signed")
    well_formed = (
        _DIGEST.fullmatch(value["previous"])
        and _DIGEST.fullmatch(value["head"])
        and _UID.fullmatch(value["session"])
        and value["state"] in STATES
        and value["number"] > 0
        and value["events"] >= 0
    )
    if not well_formed:
        raise ChainError("the checkpoint holds values that none can have")
    signature = value.pop("signature")
    try:
        public = base64.b64decode(value["key"], validate=True)
        Ed25519PublicKey.from_public_bytes(public).verify(base64.b64decode(signature, validate=True), _signed(value))
    except (InvalidSignature, binascii.Error, ValueError):
        raise ChainError("the checkpoint's signature is wrong") from None
    return Checkpoint(
        number=value["number"],
        previous=value["previous"],
        time=value["time"],
        uid=value["session"],
        path=value["path"],
        state=value["state"],
        events=value["events"],
        head=value["head"],
        files=read_files(value["files"]),
        note=value["note"],
        key=public,
    )


def checkpoint_event(line: bytes, time: str) -> dict[str, Any]:
    """A checkpoint in the form of an event, for receivers that take nothing but events."""
    return {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "auditID": digest(line)[:32],
        "stage": "ResponseComplete",
        "requestURI": "/apis/tollgate.dev/checkpoints",
        "verb": "checkpoint",
        "user": {"username": "tollgate"},
        "requestReceivedTimestamp": time,
        "stageTimestamp": time,
        "annotations": {f"{PREFIX}checkpoint": line.decode("ascii")},
    }


def anchors(lines: Iterable[bytes]) -> list[bytes]:
    """
    The checkpoint lines in what a machine elsewhere has kept: as they are, behind a syslog header,
    as events, or in EventLists. Everything else in the file is other people's and passed over.
    """
    found: list[bytes] = []
    for line in lines:
        at = line.find(b"{")
        if at < 0 or b"heckpoint" not in line:
            continue
        try:
            value, _ = _decoder.raw_decode(line[at:].decode("utf-8"))
        except (ValueError, RecursionError):
            continue
        _collect(value, found)
    return found


_decoder = json.JSONDecoder()


def _collect(value: Any, found: list[bytes]) -> None:
    if not isinstance(value, dict):
        return
    if value.get("kind") == CHECKPOINT:
        found.append(canonical(value))
    elif isinstance(value.get("items"), list):
        for item in value["items"]:
            _collect(item, found)
    elif isinstance(value.get("annotations"), dict):
        text = value["annotations"].get(f"{PREFIX}checkpoint")
        if isinstance(text, str) and text.isascii():
            found.append(text.encode())
