import pytest

from addons.core import maskfields
from addons.core.maskfields import FieldError


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        pytest.param("spec.password", ("spec", "password"), id="keys"),
        pytest.param("spec.credentials[*].password", ("spec", "credentials", None, "password"), id="items"),
        pytest.param("$.spec.password", ("spec", "password"), id="JSONPath's root"),
        pytest.param(".spec.password", ("spec", "password"), id="a dot first, as kubectl has it"),
        pytest.param("data.*", ("data", None), id="every key"),
        pytest.param("data['tls.key']", ("data", "tls.key"), id="a key with a dot"),
        pytest.param('data["tls.key"]', ("data", "tls.key"), id="double quotes"),
        pytest.param("metadata.annotations['x.io/y']", ("metadata", "annotations", "x.io/y"), id="an annotation"),
    ],
)
def test_parse(text, steps):
    assert maskfields.parse(text).steps == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param("$", "is empty", id="only the root"),
        pytest.param("spec..password", "is no field path at '..password'", id="two dots"),
        pytest.param("spec.users[0].password", "is no field path", id="an index"),
        pytest.param("spec.users[?(@.a)]", "is no field path", id="a filter"),
        pytest.param("specpass word", "is no field path at ' word'", id="a blank"),
        pytest.param("spec.", "is no field path at '.'", id="a dot last"),
        pytest.param("data['a]", "is no field path", id="an open quote"),
        pytest.param("data['a']b", "put a dot between", id="no dot"),
        pytest.param("kind", "what clients need", id="kind"),
        pytest.param("metadata.name", "what clients need", id="the name"),
        pytest.param("metadata", "what clients need", id="all metadata"),
        pytest.param("*", "what clients need", id="everything"),
        pytest.param("a." * 40 + "b", "more than 32 steps", id="long"),
        pytest.param("a" * 501, "more than 500", id="very long"),
    ],
)
def test_bad_paths(text, message):
    with pytest.raises(FieldError, match=message.replace("[", r"\[").replace(".", r"\.")):
        maskfields.parse(text)


@pytest.mark.parametrize(
    ("path", "pointer", "expected"),
    [
        pytest.param("spec.a.b", ("spec", "a", "b"), True, id="at it"),
        pytest.param("spec.a.b", ("spec", "a"), True, id="above"),
        pytest.param("spec.a.b", (), True, id="the whole object"),
        pytest.param("spec.a.b", ("spec", "a", "b", "c"), True, id="below"),
        pytest.param("spec.a.b", ("spec", "a", "c"), False, id="beside"),
        pytest.param("spec.a[*].b", ("spec", "a", "0", "b"), True, id="an item"),
        pytest.param("spec.a[*].b", ("spec", "a", "-"), True, id="a new item"),
        pytest.param("spec.a.b", ("spec", "a", "0", "b"), True, id="an item where the path forgot [*]"),
        pytest.param("spec.a.b", ("spec", "0"), True, id="an index above"),
        pytest.param("spec.a.b", ("status", "a", "b"), False, id="elsewhere"),
    ],
)
def test_touches(path, pointer, expected):
    assert maskfields.touches(maskfields.parse(path), pointer) is expected


OBJECT = {"spec": {"users": [{"name": "a", "pin": 1}, {"name": "b"}, 7], "one": {"pin": 2}, "x.y": {"pin": 3}}}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        pytest.param("spec.users[*].pin", {"spec.users[0].pin": 1}, id="items"),
        pytest.param("spec.users.pin", {"spec.users[0].pin": 1}, id="a list that the path does not speak of"),
        pytest.param("spec.*.pin", {"spec.users[0].pin": 1, "spec.one.pin": 2, "spec['x.y'].pin": 3}, id="every key"),
        pytest.param("spec['x.y'].pin", {"spec['x.y'].pin": 3}, id="a key with a dot"),
        pytest.param("spec.one", {"spec.one": {"pin": 2}}, id="an object"),
        pytest.param("status.pin", {}, id="nothing"),
    ],
)
def test_find(path, found):
    places = dict(maskfields.find(OBJECT, maskfields.parse(path)))
    assert {maskfields.written(place): value for place, value in places.items()} == found


def test_is_under():
    path = maskfields.parse("spec.users[*].pin")
    assert maskfields.is_under(path, ("spec", "users", 0, "pin", "x"))
    # direction: this one shows, so above the field is not it.
    assert not maskfields.is_under(path, ("spec", "users"))
    assert not maskfields.is_under(path, ("spec", "users", 0, "name"))
