"""
CEL, the expression language of Kubernetes' policies, through Google's own runtime.

An expression is compiled when a file loads, so that a wrong one is an error with a caret
under the place, and evaluated while a request waits (5 to 20 µs). Every error is a
`CelError`; which way it fails (an allow rule that errs does not match, a deny rule that
errs does) is the caller's to decide.

What goes in and what comes out
- In: `None`, `bool`, `int`, `float`, `str`, `bytes`, `list`, and `dict` with keys of these.
  A tuple, a set, a `MappingProxyType` below the top or a `datetime` is an error when the
  expression reaches it: pass `list(groups)`, and instants as RFC 3339 strings. An `int`
  from 2**63 to 2**64-1 is CEL's uint, a greater one an error. JSON's `1` is an int and
  `1.0` a double; they compare with each other, but adding one to the other is an error,
  as in CEL everywhere.
- A string or key with a NUL anywhere in the values is an error: the runtime would cut it
  there, and see `safe` where the API server sees `safe\\0rm -rf`.
- Out: the same, and `datetime.datetime` (UTC) and `datetime.timedelta`. An optional or a
  type as a result is an error: write `.orValue(...)`.
- Values are converted when the expression reaches them. A large object that several
  expressions look at is checked and converted once when they share one `activation`.
"""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from cel_expr_python import cel  # type: ignore[import-untyped] # its stubs come without a py.typed
from cel_expr_python.ext import (  # type: ignore[import-untyped] # as above
    ext_bindings,
    ext_encoders,
    ext_math,
    ext_optional,
    ext_strings,
)

# Characters. Kubernetes has no limit but the object's size; the longest expression in its
# documentation has under 1000. A bound keeps a mistaken file from taking seconds to parse.
MAX_SOURCE = 16_384

# What Kubernetes' CEL has and this runtime lacks (k8s.io/apiserver/pkg/cel/library and
# cel-go's sets, lists and two-variable comprehensions, pkg/cel/environment/base.go).
KUBERNETES_ONLY = frozenset(
    """
    allowed asApproximateFloat asInteger authorizer check cidr compareTo containsCIDR containsIP distinct equivalent
    errored existsOne family fieldSelector find findAll flatten format getEscapedPath getHost getHostname getPort
    getQuery getScheme group intersects ip isCIDR isCanonical isGlobalUnicast isGreaterThan isIP isInteger
    isLessThan isLinkLocalMulticast isLinkLocalUnicast isLoopback isQuantity isSemver isSorted isURL isUnspecified
    jsonpatch labelSelector masked max min named prefixLength quantity range reason resource semver serviceAccount
    sets sign slice sort sortBy subresource sum transformList transformMap transformMapEntry url validate
    """.split()  # noqa: SIM905 -- a paragraph is easier to compare with the Go files than 70 quoted lines
)

_SCALARS = {
    "bool": cel.Type.BOOL,
    "bytes": cel.Type.BYTES,
    "double": cel.Type.DOUBLE,
    "duration": cel.Type.DURATION,
    "dyn": cel.Type.DYN,
    "int": cel.Type.INT,
    "string": cel.Type.STRING,
    "timestamp": cel.Type.TIMESTAMP,
    "uint": cel.Type.UINT,
}
_PYTHON: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "bytes": (bytes,),
    "double": (float,),
    "duration": (timedelta,),
    "int": (int,),
    "string": (str,),
    "timestamp": (datetime,),
    "uint": (int,),
}

_STRING = cel.Type.STRING
_NUMBERS = frozenset({type(None), bool, int, float})
_PROBLEM = re.compile(r"(?:ERROR: )?<input>:(-?\d+):(-?\d+): ")
_STATUS = re.compile(r"^[A-Z_]+: | \[[A-Z_]+\]$")
_UNDECLARED = re.compile(r"undeclared reference to '([^']+)'(?: \(in container ''\))?")

# Messages of the runtime that hold nothing of the values looked at. Others may quote them
# (a pattern, an integer out of range), and a value may be a secret: those are withheld.
_SAFE = re.compile(
    r"Key not found in map|divide by zero|modulus by zero|integer overflow|(?:un)?signed integer overflow"
    r"|No matching overloads found|Index error: |Applying SELECT to non-message type|cannot convert \w+ to \w+$"
    r"|String to \w+ conversion failed$|Type conversion error from '\w+' to '\w+'$|malformed UTF-8 bytes$"
    r"|No value with name \"[\w.]+\" found in Activation$|<\w+>\.\w+\("
    r"|\w+ clause can only be used on \w+, was given \w+$"
)
_WRONG_VALUE = re.compile(r"(?P<what>Unexpected|Non-CEL) value type for '(?P<name>\w+)")


class CelError(Exception):
    """An expression that does not compile, or a run of one that gave no value of the right type."""


class Activation:
    """Values bound to variables, for several programs over the same ones: each is converted once."""

    __slots__ = ("bound", "env")

    def __init__(self, env: cel.Env, values: Mapping[str, Any]) -> None:
        self.env = env
        try:
            _check(values)
            self.bound = env.Activation(values)
        except CelError:
            raise
        except Exception as e:  # noqa: BLE001 -- the extension raises whatever C++ threw; all of it means no value
            raise CelError(_runtime_message(str(e))) from None


class Program:
    """A compiled expression. Evaluating it keeps no state; the same values give the same result."""

    __slots__ = ("_env", "_expression", "_returns", "source")

    def __init__(self, source: str, env: cel.Env, expression: cel.Expression, returns: str | None) -> None:
        self.source = source
        self._env = env
        self._expression = expression
        self._returns = returns

    def __repr__(self) -> str:
        return f"Program({self.source!r})"

    def evaluate(self, values: Mapping[str, Any] | Activation) -> Any:
        """The value as plain Python; CelError for everything else, a value of the wrong type included."""
        try:
            if isinstance(values, Activation):
                if values.env is not self._env:
                    raise CelError("the values are bound to other variables")
                value = self._expression.eval(values.bound)
            else:
                _check(values)
                value = self._expression.eval(None, values)
            plain: Any = value.plain_value()
        except CelError:
            raise
        except Exception as e:  # noqa: BLE001 -- the extension raises whatever C++ threw; all of it means no value
            raise CelError(_runtime_message(str(e))) from None
        if plain is True or plain is False:
            if self._returns is not None and self._returns != "bool":
                raise CelError(f"gave a bool, not a {self._returns}")
            return plain
        # The runtime returns its errors as values, whose plain form is a str: without this
        # an expression that failed would be a username.
        if plain.__class__ is str and value.type() != _STRING:
            raise CelError(_runtime_message(plain))
        if plain.__class__ is bytearray:
            plain = bytes(plain)
        elif isinstance(plain, cel.Type):
            raise CelError("gave a type, which is not a value")
        if self._returns is not None and not _is(plain, self._returns):
            raise CelError(f"gave a {_word(plain)}, not a {self._returns}")
        return plain


def compile_expression(source: str, variables: Mapping[str, str], *, returns: str | None = None) -> Program:
    """
    Compile for these variables: name to type, as in `{"claims": "map(string,dyn)"}`.

    `returns` (`bool`, `string`, `list(string)`, …) is checked here when the type is known
    from the text, else at each evaluation. The CelError may have several lines, with a
    caret under each place.
    """
    if len(source) > MAX_SOURCE:
        raise CelError(f"has {len(source)} characters, more than {MAX_SOURCE}")
    if not source.strip():
        raise CelError("is empty")
    env = _environment(tuple(sorted(variables.items())))
    if returns is not None:
        _type(returns)
    try:
        expression = env.compile(source)
    except Exception as e:  # noqa: BLE001 -- the extension raises whatever C++ threw; all of it means it did not compile
        raise CelError(_compile_message(source, str(e))) from None
    static = expression.return_type().name()
    if returns is not None and not _may_be(static, returns):
        raise CelError(f"gives a {static.lower().replace(', ', ',')}, not a {returns}\n | {_first_line(source)}\n | ^")
    return Program(source, env, expression, returns)


def activation(variables: Mapping[str, str], values: Mapping[str, Any]) -> Activation:
    """Bind values once for several programs compiled for the same variables. Do not change the values after."""
    return Activation(_environment(tuple(sorted(variables.items()))), values)


def _check(value: Any) -> None:
    """
    Refuse NUL, at which the runtime (0.1.3) ends a string, a key and bytes.

    Without this a client writes `"safe\\u0000evil"` for a rule that compares with `safe`.
    """
    kind = value.__class__
    if kind is str:
        if "\0" in value:
            raise CelError("a value holds a NUL, which expressions cannot see past")
    elif kind is dict or kind is MappingProxyType:
        for key, item in value.items():
            if key.__class__ is str and "\0" in key:
                raise CelError("a key holds a NUL, which expressions cannot see past")
            if item.__class__ not in _NUMBERS:
                _check(item)
    elif kind is list:
        for item in value:
            if item.__class__ not in _NUMBERS:
                _check(item)
    elif isinstance(value, bytes | bytearray):
        if 0 in value:
            raise CelError("bytes hold a NUL, which expressions cannot see past")
    elif isinstance(value, str | Mapping | list):
        # A subclass: looked at as what it is, so that the check cannot be walked around.
        _check(dict(value) if isinstance(value, Mapping) else str(value) if isinstance(value, str) else list(value))


@lru_cache(maxsize=64)
def _environment(variables: tuple[tuple[str, str], ...]) -> cel.Env:
    """Making one takes about 100 ms, so it is kept for each set of variables."""
    return cel.NewEnv(
        variables={name: _type(signature) for name, signature in variables},
        extensions=[
            ext_strings.ExtStrings(),
            ext_optional.ExtOptional(),
            ext_bindings.ExtBindings(),
            ext_math.ExtMath(),
            ext_encoders.ExtEncoders(),
        ],
    )


def _type(signature: str) -> cel.Type:
    """`map(string,list(string))` as a type. The runtime's own reader takes any word for a type's name."""
    text = signature.replace(" ", "")
    if text in _SCALARS:
        return _SCALARS[text]
    if text.startswith("list(") and text.endswith(")"):
        return cel.Type.List(_type(text[5:-1]))
    if text.startswith("map(") and text.endswith(")"):
        key, comma, element = text[4:-1].partition(",")
        if comma and key in ("string", "int", "uint", "bool"):
            return cel.Type.Map(_SCALARS[key], _type(element))
    raise CelError(f"unknown type {signature!r}")


def _may_be(static: str, wanted: str) -> bool:
    """Whether an expression of this static type (the runtime's spelling) can give the wanted one."""
    have, want = static.lower().replace(" ", ""), wanted.replace(" ", "")
    if have == "dyn" or want == "dyn" or have == want:
        return True
    for opening, closing in (("list<", "list("), ("map<", "map(")):
        if have.startswith(opening) and want.startswith(closing):
            if opening == "list<":
                return _may_be(have[5:-1], want[5:-1])
            have_key, _, have_value = have[4:-1].partition(",")
            want_key, _, want_value = want[4:-1].partition(",")
            return _may_be(have_key, want_key) and _may_be(have_value, want_value)
    return False


def _is(value: Any, wanted: str) -> bool:
    """Whether a value has the wanted type, all the way down."""
    if wanted == "dyn":
        return True
    if isinstance(value, bool):
        return wanted == "bool"  # bool is an int in Python, not in CEL
    if wanted.startswith("list("):
        inner = wanted[5:-1].strip()
        return isinstance(value, list) and all(_is(item, inner) for item in value)
    if wanted.startswith("map("):
        key, _, element = wanted[4:-1].partition(",")
        return isinstance(value, dict) and all(
            _is(k, key.strip()) and _is(v, element.strip()) for k, v in value.items()
        )
    return isinstance(value, _PYTHON[wanted])


def _word(value: Any) -> str:
    """A value's type in CEL's words, for messages: never the value itself."""
    if value is None:
        return "null"
    words = {bool: "bool", int: "int", float: "double", str: "string", bytes: "bytes", list: "list", dict: "map"}
    if isinstance(value, list):
        inner = sorted({_word(item) for item in value[:100]})
        return f"list of {' and '.join(inner)}" if inner else "list"
    return words.get(type(value), type(value).__name__)


def _first_line(source: str) -> str:
    return source.strip().split("\n", 1)[0][:200]


def _runtime_message(text: str) -> str:
    """Why a run failed, without anything of the values it looked at."""
    if "Iteration budget exceeded" in text:
        return "looked at more than 10000 items, which is the limit of one evaluation"
    text = _STATUS.sub("", _STATUS.sub("", text))
    wrong = _WRONG_VALUE.match(text)
    if wrong:
        if wrong["what"] == "Non-CEL":
            return f"the variable {wrong['name']} holds a value that is not plain JSON"
        return f"the variable {wrong['name']} holds a value of the wrong type"
    if _SAFE.match(text):
        return text.split("\n", 1)[0][:200]
    if text.startswith("invalid regular expression"):
        return "invalid regular expression"
    return "cannot be evaluated"


def _compile_message(source: str, text: str) -> str:
    """The runtime's message with its carets, plus a word on functions that Kubernetes has and we have not."""
    text = _STATUS.sub("", _STATUS.sub("", text))
    lines, missing = source.split("\n"), []
    for line, column, name in re.findall(r"<input>:(-?\d+):(-?\d+): undeclared reference to '([^']+)'", text):
        row, place = int(line) - 1, int(column) - 1
        called = 0 <= row < len(lines) and lines[row][place : place + 1] == "("
        root = name.split(".", 1)[0]
        if called or root in KUBERNETES_ONLY:
            missing.append((root, called))
    text = _UNDECLARED.sub(r"undeclared reference to '\1'", _PROBLEM.sub(_place, text))
    for name, called in dict.fromkeys(missing):
        if name in KUBERNETES_ONLY:
            text += f"\n{name} is of Kubernetes' CEL; Tollgate does not have it"
        elif called:
            text += f"\nTollgate has no function {name}"
    return text


def _place(match: re.Match[str]) -> str:
    if int(match[1]) < 1:
        return ""
    return f"line {match[1]}, column {match[2]}: "
