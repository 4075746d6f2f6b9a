"""
Values in the form of mitmproxy's flow files, tnetstrings (https://tnetstrings.info).

mitmproxy's own writer (mitmproxy/io/tnetstring.py) goes backwards through a deque, a call for each part: a third of
what a record costs. What this one writes mitmproxy reads back as the same value.
"""

from typing import Any


def dumps(value: Any) -> bytes:
    """None, bool, int, float, str, bytes, and lists, tuples and dicts of them. Raises ValueError for all else."""
    kind = type(value)
    if kind is str:
        data = value.encode()
        return b"%d:%b;" % (len(data), data)
    if kind is bytes:
        return b"%d:%b," % (len(value), value)
    if kind is tuple or kind is list:
        data = b"".join([dumps(one) for one in value])
        return b"%d:%b]" % (len(data), data)
    if value is None:
        return b"0:~"
    if kind is dict:
        data = b"".join([dumps(one) for pair in value.items() for one in pair])
        return b"%d:%b}" % (len(data), data)
    if kind is bool:
        return b"4:true!" if value else b"5:false!"
    if kind is int:
        data = b"%d" % value
        return b"%d:%b#" % (len(data), data)
    if kind is float:
        data = repr(value).encode()
        return b"%d:%b^" % (len(data), data)
    raise ValueError(f"a {kind.__name__} has no place in a flow file")
