"""Recordings made in memory, and what a person with the files in hand could do to them."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from addons.core import chain
from addons.core.chain import Part, SigningKey, Size
from addons.core.chainverify import CHECKPOINTS, EVENTS, FLOWS, INDEX

TIME = "2026-11-24T14:03:22.000000Z"


def event(name: str, username: str = "ann", **more: Any) -> dict[str, Any]:
    return {"kind": "Event", "auditID": name, "user": {"username": username}, "verb": "delete", **more}


@dataclass
class Memory:
    """A session's folder as a mapping."""

    files: dict[str, bytes] = field(default_factory=dict)

    def names(self) -> set[str]:
        return set(self.files)

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self.files[name])


@dataclass
class Recording:
    """A recordings folder: sessions by path, and the lines of its checkpoints."""

    key: SigningKey = field(default_factory=chain.new_key)
    sessions: dict[str, Memory] = field(default_factory=dict)
    checkpoints: list[bytes] = field(default_factory=list)
    number: int = 0

    @property
    def lines(self) -> list[bytes]:
        return [line + b"\n" for line in self.checkpoints]

    def sign(self, path: str, uid: str, events: int, head: str, state: str, files: Mapping[str, Size]) -> bytes:
        previous = chain.digest(self.checkpoints[-1]) if self.checkpoints else chain.NOTHING_BEFORE
        self.number += 1
        one = chain.Checkpoint(self.number, previous, TIME, uid, path, state, events, head, files)
        line = one.sign(self.key)
        self.checkpoints.append(line)
        memory = self.sessions[path].files
        memory[CHECKPOINTS] = memory.get(CHECKPOINTS, b"") + line + b"\n"
        return line

    def add(
        self,
        path: str,
        uid: str,
        count: int,
        *,
        signed: Sequence[int] = (),
        close: bool = True,
        username: str = "ann",
        cast: bytes = b"",
    ) -> None:
        """A session of so many events, signed after each of these numbers and at its end."""
        folder = self.sessions[path] = Memory()
        head = chain.genesis(uid, path)
        self.sign(path, uid, 0, head, "open", {})
        lines, flows = b"", b""
        for number in range(1, count + 1):
            flow = f"flow {number} of {uid}".encode()
            part = Part(FLOWS, len(flows), len(flow), hashlib.sha256(flow).hexdigest())
            files = {"exec-1.cast": Size(len(cast), chain.digest(cast))} if cast and number == count else {}
            line = chain.link(
                event(f"{uid}-{number}", username),
                uid=uid,
                sequence=number,
                previous=head,
                flow=part,
                files=files,
            )
            lines, flows, head = lines + line + b"\n", flows + flow, chain.digest(line)
            if number in signed and number != count:
                self.sign(path, uid, number, head, "going", {})
        folder.files |= {EVENTS: lines, FLOWS: flows}
        if cast:
            folder.files["exec-1.cast"] = cast
        index = {"format": 1, "uid": uid, "path": path, "username": username, "events": count, "closed": close}
        folder.files[INDEX] = chain.canonical(index)
        if close:
            self.sign(path, uid, count, head, "closed", {})


def rechain(lines: Sequence[bytes], uid: str, path: str) -> list[bytes]:
    """The same events, numbered and chained anew, as somebody without the key can do it."""
    head, made = chain.genesis(uid, path), []
    for number, line in enumerate(lines, 1):
        found, link = chain.read_line(line)
        made.append(chain.link(found, uid=uid, sequence=number, previous=head, flow=link.flow, files=link.files))
        head = chain.digest(made[-1])
    return made
