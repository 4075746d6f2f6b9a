import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import requestinfo, virtualselectors
from addons.core.virtualstatus import Problem

OBJECT = {
    "metadata": {"name": "apr-1", "labels": {"phase": "Pending", "user": "alice", "n": "7", "empty": ""}},
    "spec": {"requester": {"username": "alice"}, "namespace": "shop"},
    "status": {"phase": "Pending"},
}
KNOWN = ("metadata.name", "status.phase", "spec.requester.username", "spec.namespace", "spec.verb")


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        pytest.param("", True, id="none"),
        pytest.param("phase=Pending", True, id="equal"),
        pytest.param("phase==Pending", True, id="equal, twice"),
        pytest.param("phase=pending", False, id="another case"),
        pytest.param("phase!=Pending", False, id="not equal"),
        pytest.param("phase!=Used", True, id="not equal to another"),
        pytest.param("gone!=x", True, id="not equal where there is none"),
        pytest.param("gone=", False, id="empty is not missing"),
        pytest.param("empty=", True, id="empty"),
        pytest.param("phase in (Used,Pending)", True, id="in"),
        pytest.param("phase in (Used, Denied)", False, id="not in"),
        pytest.param("empty in (,x)", True, id="in, with the empty value"),
        pytest.param("gone in ()", False, id="in nothing"),
        pytest.param("phase notin (Used)", True, id="notin another"),
        pytest.param("phase notin (Pending)", False, id="notin"),
        pytest.param("gone notin (Pending)", True, id="notin where there is none"),
        pytest.param("phase", True, id="exists"),
        pytest.param("gone", False, id="does not exist"),
        pytest.param("!gone", True, id="not there"),
        pytest.param("!phase", False, id="there"),
        pytest.param("n>6", True, id="greater"),
        pytest.param("n>7", False, id="not greater"),
        pytest.param("n<8", True, id="less"),
        pytest.param("phase>1", False, id="no number"),
        pytest.param("phase=Pending,user=alice", True, id="both"),
        pytest.param("phase=Pending,user=bob", False, id="one of two"),
        pytest.param("phase,!gone,user in (alice),n!=8", True, id="four kinds"),
        pytest.param("phase=,user", False, id="an empty value before a comma"),
    ],
)
def test_labels(selector, matches):
    assert virtualselectors.parse(selector, "", KNOWN).matches(OBJECT) is matches


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        pytest.param("metadata.name=apr-1", True, id="name"),
        pytest.param("metadata.name!=apr-1", False, id="not this name"),
        pytest.param("metadata.name=apr-2", False, id="another name"),
        pytest.param("status.phase==Pending,spec.requester.username=alice", True, id="two"),
        pytest.param("status.phase=Used,spec.requester.username=alice", False, id="one of two"),
        pytest.param("spec.verb=", True, id="a field that is not there is empty"),
        pytest.param("spec.verb!=get", True, id="and not another"),
    ],
)
def test_fields(selector, matches):
    assert virtualselectors.parse("", selector, KNOWN).matches(OBJECT) is matches


def test_an_object_without_labels():
    assert not virtualselectors.parse("phase", "", KNOWN).matches({"metadata": {}})


@pytest.mark.parametrize(
    ("labels", "fields", "said"),
    [
        pytest.param("phase in Pending", "", "labelSelector: cannot be read", id="no brackets"),
        pytest.param("a,,b", "", "labelSelector: cannot be read", id="an empty term"),
        pytest.param(",".join(["a"] * 500), "", "labelSelector: cannot be read", id="too long"),
        pytest.param("", "status.phase", "fieldSelector: cannot be read", id="a field without value"),
        pytest.param("", "spec.preview.diff=x", "spec.preview.diff is none of its fields", id="a field to guess at"),
        pytest.param("", ",".join(["metadata.name=a"] * 101), "fieldSelector: cannot be read", id="too many"),
    ],
)
def test_what_cannot_be_selected(labels, fields, said):
    with pytest.raises(Problem, match=said) as problem:
        virtualselectors.parse(labels, fields, KNOWN)
    assert problem.value.failure.code == 400


@given(st.text(alphabet="ab=!,()<> in1", max_size=20))
def test_every_valid_selector_is_read(text):
    if requestinfo.is_label_selector(text):
        assert virtualselectors.parse(text, "", KNOWN).matches(OBJECT) in (True, False)
    else:
        with pytest.raises(Problem):
            virtualselectors.parse(text, "", KNOWN)
