"""
Strict JSON: the values that every reader finds in a text, or a reason why they would differ.

Python's own decoder with its holes closed: a key given twice, NaN, numbers that leave int64
or become infinite, half a surrogate pair, and nesting that would fell what walks the value.
"""

import json
import math
import re
from typing import Any

MAX_DEPTH = 100  # levels; no Kubernetes object has a third of them, and what walks bodies may recurse

_INT64 = range(-(2**63), 2**63)
_SURROGATE_HINT = re.compile(rb"\\u[dD][89a-fA-F]")


class NotStrictJSON(ValueError):
    """The text is not JSON, or not JSON to everybody. The message quotes nothing of it."""


def loads(text: str, raw: bytes, *, depth: bool = True) -> Any:
    """
    The value of a JSON text, given in both forms, for the caller has them. Raises NotStrictJSON.

    depth: whether more than MAX_DEPTH levels are refused; else the caller's walk must bear them.
    """
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as e:
        raise NotStrictJSON(f"no JSON at character {e.pos}") from None
    except RecursionError:
        raise NotStrictJSON("it is nested too deeply") from None
    # Every level costs a bracket, so most texts need no walk.
    if depth and raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise NotStrictJSON("it is nested too deeply")
    if _SURROGATE_HINT.search(raw):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            # Half a letter: Go makes it U+FFFD, we could not even write it down.
            raise NotStrictJSON("a string holds half of a surrogate pair") from None
    return value


def integer(text: str) -> int:
    # Over 18 digits may leave int64, where readers go on as float, as big integer, or not at all.
    if len(text) > 18 and (len(text) > 20 or int(text) not in _INT64):
        raise NotStrictJSON("a number is out of range")
    return int(text)


def number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise NotStrictJSON("a number is out of range")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Go takes the last, a person reads the first: `{"dryRun":["All"],"dryRun":[]}` deletes.
        raise NotStrictJSON("a key is there twice")
    return found


def _constant(name: str) -> Any:
    raise NotStrictJSON(f"{name} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=integer, parse_float=number, parse_constant=_constant)


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
