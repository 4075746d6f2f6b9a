"""
What one watcher has been shown: which event a change is to him.

An object that comes into his selector is ADDED, one that leaves it DELETED, though nothing was
added or deleted: that is how watches with selectors work in Kubernetes.
"""

from collections.abc import Iterable

ADDED, MODIFIED, DELETED, BOOKMARK, ERROR = "ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"


class Shown:
    """The names that a watcher has. known: those that he had when the watch began."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = set(known)
        self._settled: set[str] = set()

    def event(self, name: str, *, matches: bool, deleted: bool = False, replayed: bool = False) -> str:
        """
        The type of the event, or "" when this is none to him.

        replayed: of a change between the list that he took and the beginning of the watch. What the
        object was before, nobody remembers: he may have it, so he is told when it does not match.
        """
        had = name in self._known
        unsure = replayed and name not in self._settled
        self._settled.add(name)
        if deleted or not matches:
            self._known.discard(name)
            return DELETED if had or unsure else ""
        self._known.add(name)
        return MODIFIED if had else ADDED
