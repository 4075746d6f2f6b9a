"""
The book's memory: what the store held at one revision, found by name, requester and digest.

Takes in rows in the order of their revisions and nothing else. No waiting, no clock: those are
addons/net/book.py's.
"""

import heapq
import logging
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, replace
from math import inf

from addons.core.approvals import KEPT, Grant, Phase, Record
from addons.core.revocations import Revocation
from addons.net import codec
from addons.net.codec import Entry
from addons.net.store import Stored

logger = logging.getLogger(__name__)

APPROVALS, REQUESTS, GRANTS, REVOCATIONS = "approvals", "accessrequests", "grants", "revocations"
KINDS = (APPROVALS, REQUESTS, GRANTS, REVOCATIONS)

HISTORY = 1_000  # changes that are remembered, for those who follow
HISTORY_BYTES = 16 * 1024 * 1024  # likewise, of their JSON

_MAY_ASK = frozenset({Phase.PENDING, Phase.CANCELLED})  # see approvals.is_asking

type Key = tuple[str, str]  # kind and name


@dataclass(frozen=True, slots=True)
class Change:
    """One entry as a change left it."""

    kind: str  # one of KINDS
    name: str
    revision: int  # of the store: the resourceVersion
    entry: Entry  # of a deleted one: as it was last
    deleted: bool = False
    # From `follow` only: the entry before; None when there was none, or when nobody here saw it.
    previous: Entry | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that cannot be read. Nobody gets it, and nobody gets its name either."""

    revision: int
    at: float  # seconds since the epoch, when it was changed
    why: str


@dataclass(frozen=True, slots=True)
class _Kept:
    change: Change
    size: int  # bytes as JSON
    requester: str  # its key
    digests: tuple[str, ...]  # of an approval and its items


class Mirror:
    """Complete up to `revision`; changes after `floor` are remembered one by one."""

    def __init__(self, floor: int = 0) -> None:
        self.revision = self.floor = floor
        self.bytes = 0  # of all entries as JSON
        self._kept: dict[str, dict[str, _Kept]] = {kind: {} for kind in KINDS}
        self._broken: dict[Key, Broken] = {}
        self._removed: OrderedDict[Key, Change] = OrderedDict()
        self._by_digest: defaultdict[Key, set[str]] = defaultdict(set)  # of (requester's key, digest)
        self._by_requester: defaultdict[str, set[Key]] = defaultdict(set)  # records that may count as open, and grants
        self._due: list[tuple[float, str, str]] = []
        self._due_at: dict[Key, float] = {}
        self._history: deque[tuple[Change, int]] = deque()
        self._history_bytes = 0

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    def get(self, kind: str, name: str) -> Change | None:
        kept = self._kept[kind].get(name)
        return kept.change if kept else None

    def all(self, kind: str) -> list[Change]:
        return [self._kept[kind][name].change for name in sorted(self._kept[kind])]

    def broken(self, kind: str, name: str) -> Broken | None:
        return self._broken.get((kind, name))

    def past(self, kind: str, name: str, revision: int) -> Change | None:
        """The entry if it changed after this revision; removed counts, for as long as that is remembered."""
        found = self.get(kind, name) or self._removed.get((kind, name))
        return found if found is not None and found.revision > revision else None

    def by_digest(self, requester: str, digest: str) -> list[Change]:
        """Approvals, newest first."""
        found = [self._kept[APPROVALS][name].change for name in self._by_digest.get((requester, digest), ())]
        return sorted(found, key=lambda c: (c.entry.created if isinstance(c.entry, Record) else 0, c.revision))[::-1]

    def pending(self, requester: str) -> list[Record]:
        found = (self._kept[kind][name].change.entry for kind, name in self._by_requester.get(requester, ()))
        return [entry for entry in found if isinstance(entry, Record)]

    def grants(self, requester: str) -> list[Grant]:
        """By name; those that are over as well."""
        found = (self._kept[kind][name].change.entry for kind, name in sorted(self._by_requester.get(requester, ())))
        return [entry for entry in found if isinstance(entry, Grant)]

    def history(self, revision: int) -> list[tuple[Change, int]]:
        """The changes after this revision, which is not before `floor`, with their sizes."""
        return [found for found in self._history if found[0].revision > revision]

    # ----- taking in -----

    def take(self, row: Stored, entry: Entry | None = None) -> Change | None:
        """
        The next row, with its entry where that is at hand. What it changed here, if anything.

        Direction: a row that cannot be read counts as removed, so that nobody uses it, decides
        it or waits for it.
        """
        if row.kind not in self._kept:
            return None  # of a newer version
        key = (row.kind, row.name)
        old = self._kept[row.kind].get(row.name)
        self._broken.pop(key, None)
        deleted = row.deleted
        if entry is None:
            try:
                entry = _decoded(row)
            except codec.Damaged as e:
                if not deleted:
                    logger.error("%s %r cannot be read and counts as not there: %s", row.kind, row.name, e)
                    self._broken[key] = Broken(row.revision, row.at, str(e))
                    self.queue(key, row.at + KEPT)
                entry, deleted = (old.change.entry if old else None), True
        if old is not None:
            self._forget(old)
        if entry is None:
            return None
        change = Change(*key, row.revision, entry, deleted)
        if deleted:
            self.remember_removed(change)
        else:
            self._removed.pop(key, None)
            self._keep(change, len(row.data))
        change = replace(change, previous=old.change.entry if old else None)
        self._remember(change, len(row.data))
        return change

    def remember_removed(self, change: Change) -> None:
        self._removed[change.kind, change.name] = change
        self._removed.move_to_end((change.kind, change.name))
        while len(self._removed) > HISTORY:
            self._removed.popitem(last=False)

    def _keep(self, change: Change, size: int) -> None:
        entry, key = change.entry, (change.kind, change.name)
        requester = entry.requester.key
        if isinstance(entry, Grant) or (isinstance(entry, Record) and entry.phase in _MAY_ASK):
            self._by_requester[requester].add(key)
        kept = _Kept(change, size, requester, _digests(change))
        self._kept[change.kind][change.name] = kept
        self.bytes += size
        for digest in kept.digests:
            self._by_digest[requester, digest].add(change.name)
        self.queue(key, due(entry))

    def _forget(self, old: _Kept) -> None:
        kind, name = old.change.kind, old.change.name
        del self._kept[kind][name]
        self.bytes -= old.size
        for digest in old.digests:
            discard(self._by_digest, (old.requester, digest), name)
        discard(self._by_requester, old.requester, (kind, name))

    def _remember(self, change: Change, size: int) -> None:
        self._history.append((change, size))
        self._history_bytes += size
        while len(self._history) > HISTORY or self._history_bytes > HISTORY_BYTES:
            dropped, its_size = self._history.popleft()
            self._history_bytes -= its_size
            self.floor = dropped.revision

    # ----- what is over -----

    def queue(self, key: Key, at: float) -> None:
        """Have it looked at then, or before."""
        if at < self._due_at.get(key, inf):
            self._due_at[key] = at
            heapq.heappush(self._due, (at, *key))

    def take_due(self, now: float, most: int) -> list[Key]:
        """Those to be looked at now. Each must be queued again, or it is looked at no more."""
        found: list[Key] = []
        while self._due and self._due[0][0] <= now and len(found) < most:
            at, *rest = heapq.heappop(self._due)
            key = (rest[0], rest[1])
            if self._due_at.get(key) == at:
                del self._due_at[key]
                found.append(key)
        return found

    def excess(self, now: float, entries: int, size: int, most: int) -> set[Key]:
        """
        What must go to come down to so many entries and bytes: only what is over, oldest first.

        Of those first who have most, so that nobody floods out what others did; and a no last:
        forgotten, the same would be asked again at once.
        """
        everything = [kept for kind in KINDS for kept in self._kept[kind].values()]
        share = Counter(kept.requester for kept in everything)

        def order(kept: _Kept) -> tuple[bool, int, float]:
            entry = kept.change.entry
            denied = isinstance(entry, Record) and entry.phase is Phase.DENIED
            return denied, -share[kept.requester], due(entry)

        found: set[Key] = set()
        left, left_bytes = len(everything), self.bytes
        for kept in sorted((kept for kept in everything if over(kept.change.entry, now)), key=order):
            if len(found) >= most or (left <= entries and left_bytes <= size):
                break
            found.add((kept.change.kind, kept.change.name))
            left, left_bytes = left - 1, left_bytes - kept.size
        return found


def _digests(change: Change) -> tuple[str, ...]:
    entry = change.entry
    if not isinstance(entry, Record) or change.kind != APPROVALS:
        return ()
    return tuple(dict.fromkeys((entry.digest, *(item.digest for item in entry.items))))


def _decoded(row: Stored) -> Entry:
    entry: Entry
    match row.kind:
        case "grants":
            entry = codec.grant(row.data)
        case "revocations":
            entry = codec.revocation(row.data)
        case _:
            entry = codec.record(row.data)
    if entry.name != row.name or (isinstance(entry, Record) and (entry.access is not None) != (row.kind == REQUESTS)):
        raise codec.Damaged("it is stored under another name or kind")
    return entry


def over(entry: Entry, now: float) -> bool:
    if isinstance(entry, Record):
        return not entry.open
    if isinstance(entry, Revocation):
        return not entry.in_force(now)
    return bool(entry.revoked) or now >= entry.until


def due(entry: Entry) -> float:
    """When somebody must look at it next: it expires, or was over long enough to go. Infinity for never."""
    if isinstance(entry, Revocation):
        return min(entry.lifted or inf, entry.until or inf) + KEPT
    if isinstance(entry, Grant):
        return (min(entry.revoked, entry.until) if entry.revoked else entry.until) + KEPT
    if entry.phase is Phase.PENDING:
        return entry.expires
    if entry.phase is Phase.APPROVED:
        return entry.valid_until
    return max(entry.ended, entry.created) + KEPT


def discard[K, V](index: dict[K, set[V]], key: K, value: V) -> None:
    """Without leaving empty sets behind."""
    found = index.get(key)
    if found is not None:
        found.discard(value)
        if not found:
            del index[key]
