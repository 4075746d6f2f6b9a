"""
Who is refused at this moment: revocations out of the store, and the list of owners who have left.

Each process reads the store itself, every fifth of a second, so that an order given anywhere on the
state folder (the virtual API of another process, the command line) is followed here within a second.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from addons.core import revocations, status
from addons.core.model import Identity
from addons.core.revocations import Revocation, RevocationError, Revoked
from addons.net import codec
from addons.net.mirror import REVOCATIONS
from addons.net.store import Put, Store, Stored, StoreError

logger = logging.getLogger(__name__)

LOOK = 0.2  # seconds between looks into the store
STALE = 5.0  # seconds without an answer of the store after which nobody passes: a revocation may have been missed
LOOK_AT_FILE = 0.5  # seconds between looks at the list of owners, and MAX_FILE bytes of it
MAX_FILE = 8 * 1024 * 1024

UNKNOWN = status.Refusal(
    503,
    "revocations-unknown",
    "tollgate: whether your access was revoked cannot be read from the state store now, so nothing is done; try again "
    "in a moment, and if it stays so tell the operator",
)
UNREADABLE = status.Refusal(
    503,
    "revocation-unreadable",
    "tollgate: a stored revocation cannot be read, so it may be of anybody and nothing is done; tell the operator, who "
    "can look with ./run.sh revoke list",
)


class Register:
    """
    What is revoked, as far as this process has heard. Without a store nothing can be.

    changed: told of what came into force, after it counts here.
    """

    def __init__(
        self,
        store: Store | None,
        clock: Callable[[], float] = time.time,
        changed: Callable[[Sequence[Revocation]], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._changed = changed
        self._entries: dict[str, Revocation] = {}
        self._unreadable: set[str] = set()
        self._revoked = Revoked()
        self._revision = 0
        self._loaded = False
        self._heard = float("-inf")  # time of the loop, at the last look that the store answered
        self._trouble = ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from now on. Idempotent; in a running loop."""
        if self._store is not None and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep_looking(), name="tollgate revocations")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    @property
    def ready(self) -> bool:
        """Whether what the store holds is known here, as of a moment ago."""
        if self._store is None:
            return True
        return self._loaded and asyncio.get_running_loop().time() - self._heard <= STALE

    @property
    def in_force(self) -> int:
        """How many there are."""
        now = self._clock()
        return sum(entry.in_force(now) for entry in self._entries.values())

    def refuses(
        self, identity: Identity, *, agent: Callable[[Identity], bool], owner_claim: str = ""
    ) -> status.Refusal | None:
        """Why this identity gets nothing now, or None."""
        # Direction of both: a kill switch that cannot be read has been thrown.
        if not self.ready:
            return UNKNOWN
        if self._unreadable:
            return UNREADABLE
        found = self._revoked.find(identity, self._clock(), agent=agent, owner_claim=owner_claim)
        return revocations.refusal(found) if found is not None else None

    async def _keep_looking(self) -> None:
        while True:
            try:
                await self.look()
            except StoreError as e:
                self._say(str(e))
            except Exception:
                logger.exception("revocations could not be read")
            await asyncio.sleep(LOOK)

    async def look(self) -> None:
        """Take in what has changed. Raises StoreError."""
        if self._store is None:
            return
        found = await self._store.since(self._revision if self._loaded else 0, REVOCATIONS)
        rows, lost = list(found.objects), found.horizon > self._revision or found.revision < self._revision
        if self._loaded and lost:
            self._loaded = False  # removals may have been missed: all anew
            found = await self._store.since(0, REVOCATIONS)
            rows = list(found.objects)
        while found.more:
            found = await self._store.since(found.revision, REVOCATIONS)
            rows += found.objects
        if rows or not self._loaded:
            self._take(rows, anew=not self._loaded)
        self._revision, self._loaded = found.revision, True
        self._heard = asyncio.get_running_loop().time()
        self._say("")

    def _take(self, rows: Sequence[Stored], *, anew: bool) -> None:
        before = self._entries
        entries = {} if anew else dict(before)
        unreadable = set() if anew else set(self._unreadable)
        for row in rows:
            entries.pop(row.name, None)
            unreadable.discard(row.name)
            if row.deleted:
                continue
            try:
                entries[row.name] = codec.revocation(row.data)
            except codec.Damaged as e:
                logger.error("revocation %r cannot be read, so nobody passes: %s", row.name, e)
                unreadable.add(row.name)
        now = self._clock()
        self._entries, self._unreadable = entries, unreadable
        self._revoked = Revoked(entry for entry in entries.values() if entry.in_force(now))
        fresh = [e for n, e in entries.items() if e.in_force(now) and not (n in before and before[n].in_force(now))]
        for entry in fresh:
            logger.warning("revocation %s is in force: %s, by %r", entry.name, _shown(entry), entry.requester.username)
        for name, entry in before.items():
            if name in entries and entries[name].lifted_by and not entry.lifted_by:
                logger.warning("revocation %s was lifted by %r", name, entries[name].lifted_by)
        if fresh or unreadable:
            self._changed(fresh)

    def _say(self, trouble: str) -> None:
        """To the log, once."""
        if trouble and trouble != self._trouble:
            logger.error("revocations: %s; within %.0f s nobody passes any more", trouble, STALE)
        elif self._trouble and not trouble:
            logger.warning("revocations can be read again")
        self._trouble = trouble


def _shown(entry: Revocation) -> str:
    reason = f" ({entry.reason!r})" if entry.reason else ""
    return f"{revocations.summary(entry.target)!r}{reason}"


async def throw(store: Store, revocation: Revocation, now: float) -> None:
    """Put it in force, for every process of the store. Raises StoreError."""
    try:
        data = codec.encode(revocation)
    except codec.Damaged as e:
        raise StoreError(f"{revocation.name} cannot be kept: {e}") from e
    await store.apply([Put(REVOCATIONS, revocation.name, data)], now)


class OwnerList:
    """
    The owners who have left, out of a file that is read again when it changes.

    Raises RevocationError when it cannot be read at the start; later the last good list stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen, self.owners = _read(path)
        self._trouble = ""

    async def look(self) -> bool:
        """Whether it is another list now."""
        try:
            if await asyncio.to_thread(_fingerprint, self.path) == self._seen:
                return False
            seen, owners = await asyncio.to_thread(_read, self.path)
        except RevocationError as e:
            if str(e) != self._trouble:
                self._trouble = str(e)
                logger.error("owners who have left: the list read before stays in force until this is mended: %s", e)
            return False
        self._trouble = ""
        changed, self._seen, self.owners = owners != self.owners, seen, owners
        if changed:
            logger.warning("owners who have left: %d are listed", len(owners))
        return changed


type Fingerprint = tuple[int, int, int, int]


def _fingerprint(path: Path) -> Fingerprint:
    # Follows links: a mounted ConfigMap is one, and changes by being another.
    try:
        found = path.stat()
    except OSError as e:
        raise RevocationError(f"{path}: {e.strerror or e}") from e
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path) -> tuple[Fingerprint, frozenset[str]]:
    seen = _fingerprint(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
        if len(content) > MAX_FILE:
            raise RevocationError(f"{path}: has over {MAX_FILE} bytes")
        return seen, revocations.departed(content.decode())
    except OSError as e:
        raise RevocationError(f"{path}: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise RevocationError(f"{path}: is not UTF-8") from e
    except RevocationError as e:
        raise RevocationError(f"{path}: {e}" if not str(e).startswith(str(path)) else str(e)) from e
