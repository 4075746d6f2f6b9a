"""
Preconditions: a DELETE or eviction that takes the object that was approved, and no other of its name.

The API server compares `preconditions.uid` when it deletes and answers 409 for another object
(tried). The uid goes into the body, and a DELETE with any body makes the API server forget the
options in its query (handlers/delete.go): so those go into the body too, or the request is refused.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from addons.core import canonical, digests
from addons.core.bodies import JSON
from addons.core.canonical import Pairs
from addons.core.model import Operation
from addons.core.status import Refused

_INTEGER = re.compile(r"-?[0-9]{1,18}")
# Keys of DeleteOptions that have no safe form in a body, or that nobody sends.
_REFUSED = frozenset({"preconditions", "kind", "apiVersion", "ignoreStoreReadErrorWithClusterBreakingPotential"})


@dataclass(frozen=True, slots=True)
class Bound:
    """The request with its precondition. The body is JSON, whatever it was before."""

    target: str
    body: bytes = field(repr=False)
    content_type: str = JSON


def deletes_one(operation: Operation) -> bool:
    """A DELETE or eviction of one named object: the kind of request that can be bound to a uid."""
    return digests.is_single_delete(operation)


def with_preconditions(operation: Operation, target: str, uid: str) -> Bound:
    """
    The single DELETE or eviction as the API server carries it out on the object of this uid only;
    uid "": only try whether it can be written. Raises Refused when it cannot.
    """
    if not deletes_one(operation):
        raise ValueError("no DELETE or eviction of one object")
    query = canonical.read(operation.method, target).query
    options = operation.body
    if operation.info.subresource == "eviction":
        if not isinstance(options, dict):
            raise _cannot("it has no Eviction in its body")
        # Its query counts beside the body (tried), so it stays.
        inner = options.get("deleteOptions")
        options = {**options, "deleteOptions": _with_uid({} if inner is None else inner, uid)}
    else:
        if options is None:
            options, query = _moved(query)
        options = _with_uid(options, uid)
    path, encoded = target.partition("?")[0], _encoded(query)
    return Bound(f"{path}?{encoded}" if encoded else path, json.dumps(options, ensure_ascii=False).encode())


def own_uid(operation: Operation) -> str:
    """The uid that the client itself set as a precondition, or ""."""
    options = operation.body
    if operation.info.subresource == "eviction" and isinstance(options, dict):
        options = options.get("deleteOptions")
    preconditions = options.get("preconditions") if isinstance(options, dict) else None
    uid = preconditions.get("uid") if isinstance(preconditions, dict) else None
    return uid if isinstance(uid, str) else ""


def _with_uid(options: Any, uid: str) -> dict[str, Any]:
    if not isinstance(options, dict):
        raise _cannot("its options are no object")
    found = options.get("preconditions")
    preconditions = {} if found is None else found
    if not isinstance(preconditions, dict):
        raise _cannot("its preconditions are no object")
    if uid and preconditions.get("uid") not in (None, uid):
        # The client means another object than the one that was shown.
        raise _cannot("it names another object by its own precondition")
    return {**options, "preconditions": {**preconditions, "uid": uid}}


def _moved(query: Pairs) -> tuple[dict[str, Any], Pairs]:
    """The options that a DELETE without a body has in its query, as a body has them; and the rest of the query."""
    options: dict[str, Any] = {}
    rest = []
    for key, value in query:
        if key in _REFUSED:
            raise _cannot(f"it has {key} in its query")
        read = _READERS.get(key)
        if read is None:
            rest.append((key, value))
        else:
            options[key] = read(key, value)
    return options, tuple(rest)


def _integer(key: str, value: str) -> int:
    if not _INTEGER.fullmatch(value):
        raise _cannot(f"{key} is no number")
    return int(value)


def _boolean(key: str, value: str) -> bool:
    # Over there every word but false and 0 is true; nobody who means it writes another than these.
    if value not in ("true", "false"):
        raise _cannot(f"{key} is neither true nor false")
    return value == "true"


def _text(key: str, value: str) -> str:
    return value


def _list(key: str, value: str) -> list[str]:
    return [value]


_READERS: dict[str, Callable[[str, str], Any]] = {
    "gracePeriodSeconds": _integer,
    "orphanDependents": _boolean,
    "propagationPolicy": _text,
    "dryRun": _list,
}


def _encoded(query: Pairs) -> str:
    return "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in query)


def _cannot(why: str) -> Refused:
    return Refused(
        400,
        "delete-not-bound",
        f"delete: it cannot be bound to the object that was approved: {why}; send its options as JSON in the body",
    )
