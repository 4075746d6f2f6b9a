import pytest

from addons.core import stack


def test_the_full_stack_demands_every_stamp():
    full = stack.FULL
    assert full.addons == stack.ORDER
    assert full.request >= {(stack.addon_name(a), "request") for a in ("guard", *stack.ORDER)}
    assert ("tollgate_authenticate", "requestheaders") in full.request
    heads = ("guard", "authenticate", "block", "approve", "mask", "record", "upstream")
    assert full.responseheaders == {(stack.addon_name(a), "responseheaders") for a in heads}
    assert full.responseheaders <= full.response
    assert full.frame == {"tollgate_authenticate", "tollgate_mask", "tollgate_record"}


@pytest.mark.parametrize(
    ("only", "without", "expected"),
    [
        pytest.param("", "", stack.ORDER, id="all"),
        pytest.param("upstream, classify", "", ("classify", "upstream"), id="only, put in order"),
        pytest.param("", "block,approve", ("authenticate", "classify", "mask", "record", "upstream"), id="without"),
        pytest.param("classify,block", "block", ("classify",), id="both"),
    ],
)
def test_choose(only, without, expected):
    chosen = stack.choose(only, without)
    assert chosen.addons == expected
    assert stack.parse(",".join(expected)) == chosen


@pytest.mark.parametrize(
    ("only", "without", "message"),
    [
        pytest.param("classfy", "", "no addon 'classfy'", id="misspelled only"),
        pytest.param("", "blok", "no addon 'blok'", id="misspelled without"),
        pytest.param("block,block", "", "named twice", id="twice"),
        pytest.param("guard", "", "no addon 'guard'", id="the guard is no choice"),
    ],
)
def test_wrong_choice(only, without, message):
    with pytest.raises(stack.StackError, match=message):
        stack.choose(only, without)


def test_a_shorter_stack_still_demands_the_guard():
    assert stack.build(["classify"]).request == {
        ("tollgate_guard", "requestheaders"),
        ("tollgate_guard", "request"),
        ("tollgate_classify", "request"),
    }
