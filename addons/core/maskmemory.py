"""
What of Secrets is remembered, to be found again in logs and other text streams.

Learnt from what people write and from what the API server answers; never from what an agent
wrote: nobody must be able to make the gateway know a value of his choosing. Hashes only, in memory
only: a restart forgets them, and the first read of a Secret brings its values back.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from addons.core import masking, masktags
from addons.core.impacts import pointer_steps
from addons.core.maskknown import Known
from addons.core.masktags import Place
from addons.core.model import Operation

MAX_WRITTEN = 20_000  # Secrets written by agents that are remembered as such
MAX_SEEN = 50_000  # values that are not learnt again while they are read again and again

type Written = tuple[str, str]  # namespace, name


class Memory:
    """Known values, and which Secrets are an agent's own."""

    def __init__(self, key: bytes) -> None:
        self.known = Known(key)
        self._by_agents: OrderedDict[Written, None] = OrderedDict()
        self._seen: OrderedDict[bytes, None] = OrderedDict()  # digests of values that were learnt, whole

    def learn(self, values: Iterable[bytes]) -> None:
        """Remember them, each once. Half a millisecond for a key, so not on the loop for many."""
        for value in values:
            digest = self.known.digest(value)
            if digest in self._seen:
                continue
            self.known.learn(value)
            self._seen[digest] = None
            if len(self._seen) > MAX_SEEN:
                self._seen.popitem(last=False)

    def wrote(self, operation: Operation, *, agent: bool) -> list[bytes]:
        """A write of a Secret that the API server accepted; what is to be learnt from it."""
        info = operation.info
        if not is_of_secrets(operation) or info.verb not in ("create", "update", "patch") or operation.dry_run:
            return []
        written = (info.namespace, operation.name or info.name)
        if agent:
            if not _sets_values(operation):
                return []  # a label, say: who could make all be forgotten by it, would
            # Also one that people wrote before: what is in it now is of both, and cannot be told apart.
            self._by_agents[written] = None
            self._by_agents.move_to_end(written)
            if len(self._by_agents) > MAX_WRITTEN:
                self._by_agents.popitem(last=False)
        elif isinstance(operation.body, dict):
            # Of a patch, too: what it sets. (A JSON patch sets values that have no form of their own.)
            return masking.secret_values(operation.body, masktags.place_of(info))
        return []

    def _read(self, content: Any, place: Place) -> list[bytes]:
        """The values in an answer about Secrets (object, list, Table, event), before it is masked."""
        found: list[bytes] = []
        waiting = [content]
        while waiting:
            value = waiting.pop()
            if isinstance(value, list):
                waiting += value
                continue
            if not isinstance(value, dict):
                continue
            inner = [value[field] for field in ("items", "rows", "object") if field in value]
            if inner:
                waiting += inner
                continue
            metadata = value.get("metadata")
            of = place.of(metadata)
            generated = not isinstance(metadata, dict) or "name" not in metadata
            if generated or (of.namespace, of.name) in self._by_agents:
                continue
            found += masking.secret_values(value, place)
        return found

    def answered(self, operation: Operation, content: Any, *, agent: bool) -> list[bytes]:
        """
        What is to be learnt from the answer to any operation on Secrets: to a read it is what is there,
        to a write what was written.
        """
        if not is_of_secrets(operation):
            return []
        if operation.info.verb in ("get", "list", "watch"):
            return self._read(content, masktags.place_of(operation.info))
        if agent and operation.info.verb == "create" and isinstance(content, dict):
            # A generated name is known only now.
            of = masktags.place_of(operation.info).of(content.get("metadata"))
            self._by_agents[of.namespace, of.name] = None
        return []


def _sets_values(operation: Operation) -> bool:
    body = operation.body
    if operation.info.verb != "patch" or body is None:
        return True
    if isinstance(body, dict):
        return not body.keys().isdisjoint(("data", "stringData"))
    # A JSON patch, by the first step of its pointers; "" is all of it.
    return any(
        not (steps := pointer_steps(step.get("path"))) or steps[0] in ("data", "stringData")
        for step in body
        if isinstance(step, dict)
    )


def is_of_secrets(operation: Operation) -> bool:
    info = operation.info
    return info.resource == "secrets" and not info.api_group and not info.subresource
