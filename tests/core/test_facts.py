import copy
import gc

import pytest
from mitmproxy.test import tflow

from addons.core import facts


def test_facts_belong_to_one_flow_object():
    flow = tflow.tflow()
    facts.of(flow).answered_by = "x"
    assert facts.of(flow).answered_by == "x"
    assert facts.of(flow.copy()).answered_by == ""  # nor could a flow loaded from a file have them


def test_facts_are_not_in_the_flow():
    flow = tflow.tflow()
    facts.of(flow).credential = "Bearer secret"
    assert "secret" not in repr(flow.get_state())


def test_forget():
    flow = tflow.tflow()
    facts.of(flow).passed.add(("a", "request"))
    facts.forget(flow)
    assert not facts.of(flow).passed
    facts.forget(tflow.tflow())  # nothing known: nothing to do


def test_facts_end_with_the_flow():
    before = len(facts._facts)
    flow = tflow.tflow()
    facts.of(flow)
    del flow
    gc.collect()
    assert len(facts._facts) <= before


def test_adopted_facts_are_the_same():
    http, tcp = tflow.tflow(), tflow.ttcpflow()
    facts.adopt(tcp, http)
    assert facts.of(tcp) is facts.of(http)


def test_a_fresh_verdict_denies():
    assert facts.Facts().verdict.action.name == "DENY"


def test_needs():
    known = facts.Facts()
    with pytest.raises(facts.NotAuthenticated):
        known.need_identity()
    with pytest.raises(facts.NotClassified):
        known.need_operation()
    assert copy.copy(known.passed) == set()
