"""
Functions of mitmproxy that each request calls dozens of times, with the same results in less time.

Each falls back to mitmproxy's own for whatever is not the usual case, its errors included.
"""

import logging
import time
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from mitmproxy import connection, http, log
from mitmproxy.coretypes import multidict
from mitmproxy.proxy import commands, layer
from mitmproxy.proxy.layers import tls
from mitmproxy.utils import strutils, typecheck
from OpenSSL import SSL

EXPECTED: Mapping[Callable[..., Any], str] = {
    http.MessageData.__post_init__: "f65088e210cd9cc1",
    typecheck.check_option_type: "b60e47c7091fa795",
    http.Headers.__init__: "4d53696a5f9f6670",
    http.Headers.get_all: "367b3317bc2ba45c",
    http.Headers._kconv: "dd59639eb7c46701",
    http.Headers._reduce_values: "d808a4075a1f266d",
    http._always_bytes: "1f256dc3d66394a0",
    http._native: "0ba4541fc6fa15ce",
    strutils.always_bytes: "97a1c07fd4d60b7d",
    multidict.MultiDict.__init__: "faf0668e22579e8b",
    multidict._MultiDict.__getitem__: "482e7414c932e3e8",
    multidict._MultiDict.get_all: "5bff03c1afa25bb7",
    connection.Connection.__eq__: "04776846f3cf761c",
    log.LegacyLogEvents.emit: "42292360227528ec",
    log.MitmFormatter.format: "2a82d2c595dd92bd",
    SSL.Connection.bio_read: "bc83763ed40fc664",
    SSL.Connection._handle_bio_errors: "eaea77f2e1fab12e",
    tls.TLSLayer.tls_interact: "62d6d57d43dd1a2e",
}

_MISSING: Any = object()
_post_init = http.MessageData.__post_init__
_headers_init: Any = http.Headers.__init__
_headers_getitem: Any = http.Headers.__getitem__
_connection_eq = connection.Connection.__eq__
_emit = log.LegacyLogEvents.emit
_format_time = log.MitmFormatter.formatTime
_tls_interact: Any = tls.TLSLayer.tls_interact
_second: list[Any] = [0, ""]  # the last one that was made into text
CHUNK = 65535  # bytes, mitmproxy's own
_lib: Any = SSL._lib  # type: ignore[attr-defined]  # pyOpenSSL's stubs leave out what is private
_ffi: Any = SSL._ffi  # type: ignore[attr-defined]  # as above
_buffer = _ffi.new("char[]", CHUNK)  # for all connections: what is read is copied before anybody else reads
_types: dict[type, tuple[tuple[str, frozenset[type]], ...]] = {}


def _usual(annotation: Any) -> frozenset[type]:
    """The types whose own instances mitmproxy's check lets pass for this annotation."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return frozenset[type]().union(*map(_usual, typing.get_args(annotation)))
    if annotation is float:
        return frozenset({float, int})
    return frozenset({annotation}) if isinstance(annotation, type) else frozenset()


def check_fields(self: http.MessageData) -> None:
    """Every message has its fields' types checked when it is made, by the annotations, word for word."""
    kind = type(self)
    usual = _types.get(kind)
    if usual is None:
        usual = _types[kind] = tuple((f.name, _usual(f.type)) for f in fields(self))
    values = self.__dict__
    for name, accepted in usual:
        if type(values[name]) not in accepted:
            _post_init(self)  # a subclass, or the error with its words
            return


def headers_init(self: http.Headers, fields: Iterable[tuple[bytes, bytes]] = (), **headers: Any) -> None:
    if headers:
        _headers_init(self, fields, **headers)
        return
    self.fields = tuple(map(tuple, fields))  # type: ignore[arg-type]  # two bytes each, as is checked now
    for key, value in self.fields:
        if type(key) is not bytes or type(value) is not bytes:
            _headers_init(self, self.fields)


def _find(self: http.Headers, key: str | bytes) -> str | None:
    name = (key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key).lower()
    found = None
    for k, value in self.fields:
        if k.lower() == name:
            text = value.decode("utf-8", "surrogateescape")
            found = text if found is None else f"{found}, {text}"
    return found


def headers_getitem(self: http.Headers, key: str | bytes) -> str:
    if not isinstance(key, str | bytes):
        return _headers_getitem(self, key)
    found = _find(self, key)
    if found is None:
        raise KeyError(key)
    return found


def headers_get(self: http.Headers, key: str | bytes, default: Any = None) -> Any:
    if not isinstance(key, str | bytes):
        return _headers_getitem(self, key)
    found = _find(self, key)
    return default if found is None else found


def headers_contains(self: http.Headers, key: object) -> bool:
    if not isinstance(key, str | bytes):
        _headers_getitem(self, key)
    return _find(self, key) is not None  # type: ignore[arg-type]


def connection_eq(self: connection.Connection, other: object) -> bool:
    return self is other or _connection_eq(self, other)


def emit(self: log.LegacyLogEvents, record: logging.LogRecord) -> None:
    """A line of the log as an event: formatted, and the loop woken through a socket, for hooks that nobody has."""
    known = self.master.addons.__dict__.get("tollgate_places")
    if known is None or known.get("add_log") != ():
        _emit(self, record)


def format_time(self: log.MitmFormatter, record: logging.LogRecord, datefmt: str | None = None) -> str:
    """The second is made into text once, not for each line."""
    second = int(record.created)
    if datefmt is not None:
        return _format_time(self, record, datefmt)
    if _second[0] != second:
        _second[:] = second, time.strftime(self.default_time_format, self.converter(record.created))
    return self.default_msec_format % (_second[1], record.msecs)


def tls_interact(self: tls.TLSLayer) -> layer.CommandGenerator[None]:
    """Reads what there is to send without a new buffer each time, and without an exception at its end."""
    bio: Any = getattr(self.tls, "_from_ssl", None)  # pyOpenSSL's own way to it makes both
    if bio is None:
        yield from _tls_interact(self)
        return
    while (size := _lib.BIO_read(bio, _buffer, CHUNK)) > 0:
        yield commands.SendData(self.conn, _ffi.buffer(_buffer, size)[:])
    if not _lib.BIO_should_retry(bio):
        yield from _tls_interact(self)  # which says what is wrong


# What no line of the gateway's log shows, each with a look at the stack, the thread or the task behind it
# (docs.python.org/3/howto/logging.html, "Optimization").
_UNSHOWN = ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks")


_PATCHES: tuple[tuple[Any, str, Any], ...] = (
    (http.MessageData, "__post_init__", check_fields),
    (http.Headers, "__init__", headers_init),
    (http.Headers, "__getitem__", headers_getitem),
    (http.Headers, "get", headers_get),
    (http.Headers, "__contains__", headers_contains),
    (connection.Connection, "__eq__", connection_eq),
    (log.LegacyLogEvents, "emit", emit),
    (log.MitmFormatter, "formatTime", format_time),
    (tls.TLSLayer, "tls_interact", tls_interact),
    *((logging, name, None) for name in _UNSHOWN),
)
_before: list[tuple[Any, str, Any]] = []


def install() -> None:
    """Once it is known that they are what these were written for (EXPECTED)."""
    if _before:
        return
    for owner, name, ours in _PATCHES:
        _before.append((owner, name, owner.__dict__.get(name, _MISSING)))
        setattr(owner, name, ours)


def uninstall() -> None:
    """Back to mitmproxy's own; for tests."""
    while _before:
        owner, name, was = _before.pop()
        if was is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, was)
