"""CEL: what compiles, what a run gives, and that an error is never a value."""

import contextlib
import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import cel

TIME = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
CLAIMS = {"claims": "map(string,dyn)", "user": "dyn"}


def run(source, *, returns=None, **values):
    return cel.compile_expression(source, CLAIMS, returns=returns).evaluate({"claims": {}, "user": {}, **values})


@pytest.mark.parametrize(
    ("source", "claims", "value"),
    [
        pytest.param("claims.sub", {"sub": "x"}, "x", id="string"),
        pytest.param("claims.n + 1", {"n": 1}, 2, id="int"),
        pytest.param("claims.n", {"n": 1.5}, 1.5, id="double"),
        pytest.param("claims.n == 1.0", {"n": 1}, True, id="compared across number types"),
        pytest.param("claims.n", {"n": None}, None, id="null"),
        pytest.param("claims.n", {"n": b"\xff"}, b"\xff", id="bytes"),
        pytest.param("claims.n", {"n": [1, {"a": [True]}]}, [1, {"a": [True]}], id="nested"),
        pytest.param("claims.n", {"n": 2**64 - 1}, 2**64 - 1, id="uint"),
        pytest.param('claims.?sub.orValue("none")', {}, "none", id="optional"),
        pytest.param('claims.s.split(",").map(x, x.lowerAscii())', {"s": "A,B"}, ["a", "b"], id="strings"),
        pytest.param("cel.bind(x, claims.n, x * x)", {"n": 3}, 9, id="bind"),
        pytest.param('"%s-%d".format([claims.s, 2])', {"s": "a"}, "a-2", id="format"),
        pytest.param("math.greatest(1, claims.n)", {"n": 3}, 3, id="math"),
        pytest.param("string(base64.decode(claims.s))", {"s": "aGk="}, "hi", id="encoders"),
        pytest.param(
            'timestamp("2026-01-02T03:04:05Z")',
            {},
            datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
            id="time",
        ),
        pytest.param('duration("1h")', {}, datetime.timedelta(hours=1), id="duration"),
        pytest.param('"INVALID_ARGUMENT: " + claims.s', {"s": "x"}, "INVALID_ARGUMENT: x", id="a string like an error"),
    ],
)
def test_values(source, claims, value):
    got = run(source, claims=claims)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("source", "claims", "says"),
    [
        pytest.param("claims.sub", {}, "Key not found in map", id="absent key"),
        pytest.param("1 / claims.n", {"n": 0}, "divide by zero", id="division"),
        pytest.param("claims.n + 'a'", {"n": 1}, "No matching overloads found", id="mixed types"),
        pytest.param("claims.n", {"n": 2**64}, "not plain|wrong type|cannot be evaluated", id="integer out of range"),
        pytest.param("claims.n", {"n": ("a",)}, "claims holds a value that is not plain", id="tuple"),
        pytest.param("claims.n", {"n": datetime.datetime(2026, 1, 1)}, "not plain", id="datetime"),
        pytest.param("claims.n", {"n": "\ud800"}, "cannot be evaluated", id="lone surrogate"),
        pytest.param("claims.n.map(x, x)", {"n": [0] * 10_001}, "more than 10000 items", id="iteration limit"),
        pytest.param("optional.of(claims.n)", {"n": 1}, "cannot be evaluated", id="optional as a result"),
        pytest.param("[optional.of(claims.n)]", {"n": 1}, "cannot be evaluated", id="optional inside a result"),
        pytest.param("type(claims.n)", {"n": 1}, "gave a type", id="type as a result"),
        pytest.param("claims.n.matches(claims.n + '(')", {"n": "x"}, "invalid regular expression", id="regex"),
    ],
)
def test_a_failed_run_is_an_error_never_a_value(source, claims, says):
    with pytest.raises(cel.CelError, match=says):
        run(source, claims=claims)


@pytest.mark.parametrize(
    ("source", "claims"),
    [
        pytest.param("claims.n.matches(claims.n + '(')", {"n": "hunter2"}, id="regex"),
        pytest.param("int(claims.n)", {"n": "hunter2"}, id="conversion"),
        pytest.param("timestamp(claims.n)", {"n": "hunter2"}, id="time"),
        pytest.param("claims.n", {"n": ("hunter2",)}, id="not a value"),
        pytest.param("duration(claims.n)", {"n": "hunter2"}, id="duration"),
    ],
)
def test_messages_hold_no_values(source, claims):
    with pytest.raises(cel.CelError) as e:
        run(source, claims=claims)
    assert "hunter2" not in str(e.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        pytest.param("clams.sub", "column 6: undeclared reference to 'clams.sub'\n | clams.sub\n | .....^", id="name"),
        pytest.param("claims.a &&\n foo", "line 2, column 2: undeclared reference to 'foo'\n |  foo", id="second line"),
        pytest.param("claims.sub ==", "Syntax error", id="syntax"),
        pytest.param("claims[1]", "found no matching overload", id="types"),
        pytest.param("", "is empty", id="empty"),
        pytest.param(" \n", "is empty", id="blank"),
        pytest.param("1" + " " * cel.MAX_SOURCE, "more than 16384", id="too long"),
        pytest.param("(" * 100 + "1" + ")" * 100, "recursion limit", id="too deep"),
        pytest.param("claims.sub.frobnicate()", "Tollgate has no function frobnicate", id="unknown function"),
    ],
)
def test_compile_errors_point_at_the_place(source, says):
    with pytest.raises(cel.CelError) as e:
        cel.compile_expression(source, CLAIMS)
    assert says in str(e.value)
    assert "<input>" not in str(e.value)
    assert "INVALID_ARGUMENT" not in str(e.value)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ('quantity("1")', "quantity"),
        ('claims.q.isQuantity("1")', "isQuantity"),
        ('claims.s.find("x")', "find"),
        ('claims.s.findAll("x")', "findAll"),
        ('ip("1.1.1.1").family() == 4', "ip"),
        ('cidr("10.0.0.0/8")', "cidr"),
        ('url("https://a")', "url"),
        ('semver("1.0.0")', "semver"),
        ("sets.contains([1], [2])", "sets"),
        ("authorizer.group('')", "authorizer"),
        ("format.named('dns1123Label')", "format"),
        ("[1].isSorted()", "isSorted"),
        ("[1].sum()", "sum"),
        ("[1].transformList(i, v, v)", "transformList"),
        ("jsonpatch.escapeKey('a')", "jsonpatch"),
    ],
)
def test_functions_of_kubernetes_that_are_missing_are_named(source, name):
    with pytest.raises(cel.CelError, match=f"\n{name} is of Kubernetes' CEL; Tollgate does not have it"):
        cel.compile_expression(source, CLAIMS)


@pytest.mark.parametrize(
    ("source", "returns", "says"),
    [
        pytest.param("1", "bool", "gives a int, not a bool", id="int for bool"),
        pytest.param("['a']", "string", "gives a list<string>, not a string", id="list for string"),
        pytest.param("[1]", "list(string)", "gives a list<int>, not", id="wrong items"),
        pytest.param("{1: 'a'}", "map(string,string)", "gives a map<int,string>, not", id="wrong keys"),
    ],
)
def test_static_type_is_checked_at_compile(source, returns, says):
    with pytest.raises(cel.CelError, match=says):
        cel.compile_expression(source, CLAIMS, returns=returns)


@pytest.mark.parametrize(
    ("returns", "value", "right"),
    [
        pytest.param("bool", True, True, id="bool"),
        pytest.param("bool", 1, False, id="int is no bool"),
        pytest.param("bool", "true", False, id="string is no bool"),
        pytest.param("int", True, False, id="bool is no int"),
        pytest.param("string", "", True, id="string"),
        pytest.param("string", None, False, id="null is no string"),
        pytest.param("list(string)", [], True, id="empty list"),
        pytest.param("list(string)", ["a", 1], False, id="mixed list"),
        pytest.param("list(string)", "a", False, id="string is no list"),
        pytest.param("map(string,list(string))", {"a": ["b"]}, True, id="map"),
        pytest.param("map(string,list(string))", {"a": "b"}, False, id="wrong map"),
        pytest.param("dyn", {"a": None}, True, id="anything"),
    ],
)
def test_dynamic_type_is_checked_at_evaluation(returns, value, right):
    program = cel.compile_expression("claims.x", CLAIMS, returns=returns)
    if right:
        assert program.evaluate({"claims": {"x": value}}) == value
    else:
        with pytest.raises(cel.CelError, match=r"^gave a "):
            program.evaluate({"claims": {"x": value}})


def test_unknown_type_names_are_errors():
    with pytest.raises(cel.CelError, match="unknown type 'strnig'"):
        cel.compile_expression("1", {"a": "strnig"})


def test_one_activation_serves_several_programs():
    bound = cel.activation(CLAIMS, {"claims": {"a": 1}, "user": {}})
    assert [cel.compile_expression(s, CLAIMS).evaluate(bound) for s in ("claims.a", "claims.a + 1")] == [1, 2]


def test_an_activation_of_other_variables_is_an_error():
    bound = cel.activation({"x": "int"}, {"x": 1})
    with pytest.raises(cel.CelError, match="other variables"):
        cel.compile_expression("claims.a", CLAIMS).evaluate(bound)


def test_a_variable_without_a_value_is_an_error():
    with pytest.raises(cel.CelError, match='No value with name "claims"'):
        cel.compile_expression("claims.a", CLAIMS).evaluate({})


words = st.text().filter(lambda word: "\0" not in word)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_plain_values_come_back_as_they_went_in(value):
    assert run("claims.x", claims={"x": value}) == value


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("safe\0evil", id="string"),
        pytest.param(Text("safe\0evil"), id="string of a subclass"),
        pytest.param(b"safe\0evil", id="bytes"),
        pytest.param({"safe\0": 1}, id="key"),
        pytest.param({"a": ["b", {"c": "safe\0"}]}, id="deep"),
    ],
)
@pytest.mark.parametrize("bound", [False, True])
def test_a_nul_is_an_error_since_the_runtime_cuts_there(value, bound):
    program = cel.compile_expression("claims.x == 'safe'", CLAIMS)
    values = {"claims": {"x": value}, "user": {}}
    with pytest.raises(cel.CelError, match="NUL"):
        program.evaluate(cel.activation(CLAIMS, values) if bound else values)


def test_values_too_deep_are_an_error():
    value = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(cel.CelError):
        run("claims.x", claims={"x": value})


@given(st.text(max_size=60))
def test_any_text_compiles_or_is_a_cel_error(text):
    with contextlib.suppress(cel.CelError):
        cel.compile_expression(text, CLAIMS)
