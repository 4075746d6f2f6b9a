"""
Known values: what Secrets hold, remembered as keyed hashes, to be found again in text streams.

Whoever feeds this must never give it what an agent wrote, and never look API objects, records
or approvals up in it: else a guess that is written and read back would confirm a secret, and a
Secret with the value `kube-system` would blind those who approve.
"""

import base64
import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from urllib.parse import quote_from_bytes

from addons.core.maskdetect import MIN_RANDOM, is_random

MAX_VALUE = 64 * 1024  # bytes of one value that are looked at
MAX_ENCODED = 4 * 1024  # bytes of a value whose encoded forms are remembered as well
_HASH = 16  # bytes

# A token, in two sizes: `password=x` whole, and then its parts.
_COARSE = re.compile(rb"""[^\s"'`]{12,8192}""")
_FINE = re.compile(rb"[^=:,;&|?()<>\[\]{}@\\]{12,}")
_AROUND = b".,:;!?()[]{}<>\\"


class Known:
    """A bounded memory of secret tokens; the oldest are forgotten first. Holds hashes only."""

    def __init__(self, key: bytes, limit: int = 100_000) -> None:
        self._key = hashlib.sha256(b"tollgate known values" + key).digest()
        self._limit = limit
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hashes)

    def learn(self, value: bytes) -> int:
        """Remember the tokens of a value that are long and random enough; how many were new."""
        new = 0
        for token in self._tokens_to_learn(value[:MAX_VALUE]):
            digest = self._hash(token)
            new += digest not in self._hashes
            self._hashes[digest] = None
            self._hashes.move_to_end(digest)
        while len(self._hashes) > self._limit:
            self._hashes.popitem(last=False)
        return new

    def digest(self, value: bytes) -> bytes:
        """Of a whole value, keyed: says nothing to whoever has no key."""
        return self._hash(value)

    def holds(self, token: bytes) -> bool:
        """One look-up for one whole token."""
        return self._hash(token) in self._hashes

    def spans(self, text: bytes) -> list[tuple[int, int]]:
        """Where known tokens stand in a text."""
        if not self._hashes:
            return []
        found = []
        for start, token in tokens(text):
            if self.holds(token):
                found.append((start, start + len(token)))
        return found

    def hashes(self) -> tuple[bytes, ...]:
        """What is remembered, oldest first, to be stored and given back to `restore`."""
        return tuple(self._hashes)

    def restore(self, hashes: Iterable[bytes]) -> None:
        for digest in hashes:
            if len(digest) == _HASH:
                self._hashes[digest] = None

    def _hash(self, token: bytes) -> bytes:
        return hashlib.blake2b(token, key=self._key, digest_size=_HASH).digest()

    def _tokens_to_learn(self, value: bytes) -> Iterator[bytes]:
        for _, token in tokens(value):
            if is_random(token.decode("latin-1")):
                yield token
        whole = value.strip()
        if MIN_RANDOM <= len(whole) <= MAX_ENCODED and is_random(whole.decode("latin-1")):
            # As `kubectl get -o yaml` or a program's log would print it.
            encoded = base64.b64encode(value)
            yield from (encoded, encoded.rstrip(b"="), whole.hex().encode())
            yield from (quote_from_bytes(whole, safe=safe).encode() for safe in ("", "/"))
            yield base64.urlsafe_b64encode(value).rstrip(b"=")


def tokens(text: bytes) -> Iterator[tuple[int, bytes]]:
    """The tokens of a text with their offsets: what stands between blanks and quotes, and the parts of that."""
    for match in _COARSE.finditer(text):
        whole = match[0]
        start = match.start()
        plain = whole.lstrip(_AROUND)
        start += len(whole) - len(plain)
        plain = plain.rstrip(_AROUND)
        if len(plain) >= MIN_RANDOM:
            yield start, plain
        for part in _FINE.finditer(whole):
            found = part[0]
            if len(found) < len(plain):
                stripped = found.rstrip(b".!")
                if len(stripped) >= MIN_RANDOM:
                    yield match.start() + part.start(), stripped
        for separator in (b"=", b":"):
            # `name=value`, where the value has such letters itself.
            _, found_one, value = whole.partition(separator)
            value = value.rstrip(_AROUND)
            if found_one and len(value) >= MIN_RANDOM:
                yield match.start() + whole.index(separator) + 1, value
