import json
from dataclasses import replace

import pytest

from addons.core import auditevents, backtest, classify, policyfile
from addons.core.auditevents import Approved, Asked, Beside, Level, Outcome, Stage
from addons.core.backtest import Bench, Result
from addons.core.model import Action, Identity, Verdict

HEAD = "apiVersion: tollgate.dev/v1alpha1\nkind: Policy\nmetadata: {name: new}\nrules:\n"
ALL = "- {name: all, action: allow, match: {verbs: [get, list, create, patch, delete], resources: ['*', '*.*']}}\n"
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"team": "x"}}}
PATH = "/api/v1/namespaces/shop/pods/a"


def policies(rules):
    return policyfile.parse({"new.yaml": (HEAD + rules).encode()})


def event(
    name="1", method="DELETE", target=PATH, *, action=Action.ALLOW, body=None, answer=None, code=200, refused="", **more
):
    raw = json.dumps(body).encode() if body is not None else b""
    media = "application/merge-patch+json" if method == "PATCH" else "application/json"
    operation = classify.classify(method, target, {"Content-Type": media} if raw else {}, raw)
    stage = more.pop("stage", Stage.COMPLETE)
    return auditevents.build(
        stage,
        Asked(name, method, target, 0.0),
        more.pop("identity", Identity("ann", groups=("dev",))),
        operation,
        Verdict(action, "old-rule", "old", "r0") if action else None,
        level=Level.FULL,
        body=body,
        outcome=Outcome(1.0, code, refused_by=refused, body=answer) if stage is Stage.COMPLETE else None,
        **more,
    )


def judge(rules, recorded):
    return Bench(policies(rules)).judge(recorded)


DENY = "- {name: nay, action: deny, match: {resources: [pods], verbs: [delete]}}\n"
HOLD = "- {name: ask, action: hold, match: {resources: [pods], verbs: [delete]}, approval: {groups: [oncall]}}\n"
APPROVED = Approved("apr-1", ("bea",))


@pytest.mark.parametrize(
    ("rules", "recorded", "changed", "broken", "held"),
    [
        pytest.param(ALL, event(), False, False, False, id="allowed and allowed"),
        pytest.param(ALL + DENY, event(), True, True, False, id="allowed, now denied"),
        pytest.param(ALL + HOLD, event(), True, False, True, id="allowed, now held"),
        pytest.param(ALL + DENY, event(action=Action.DENY, refused="x"), False, False, False, id="denied and denied"),
        pytest.param(ALL, event(action=Action.DENY, refused="x"), True, False, False, id="denied, now allowed"),
        pytest.param(
            ALL + DENY, event(action=Action.HOLD, approved=APPROVED), True, True, False, id="approved, denied"
        ),
        pytest.param(
            ALL + HOLD, event(action=Action.HOLD, approved=APPROVED), False, False, False, id="approved, held"
        ),
        pytest.param(ALL, event(action=Action.HOLD, approved=APPROVED), True, False, False, id="approved, now allowed"),
        pytest.param(ALL + DENY, event(action=Action.HOLD, refused="x"), True, False, False, id="held, now denied"),
        pytest.param(DENY, event(method="GET"), True, True, False, id="no rule matches any more"),
    ],
)
def test_what_would_change(rules, recorded, changed, broken, held):
    outcome = judge(rules, recorded)
    assert (outcome.changed, outcome.broken, outcome.held, outcome.certain) == (changed, broken, held, True)


def test_what_no_policy_was_asked_about():
    assert judge(ALL, event(action=None)) is None


WHO = "- {name: nay, action: deny, match: {resources: [pods], verbs: [delete]}, when: '\"dev\" in identity.groups'}\n"


@pytest.mark.parametrize(("groups", "broken"), [(("dev",), True), (("ops",), False)])
def test_the_identity_is_the_recorded_one(groups, broken):
    assert judge(ALL + WHO, event(identity=Identity("ann", groups=groups))).broken is broken


def test_identities_are_told_apart():
    tester = Bench(policies(ALL + WHO))
    found = [tester.judge(event(identity=Identity("ann", groups=(g,)))).broken for g in ("dev", "ops", "dev")]
    assert found == [True, False, True]


def test_the_operation_is_the_one_the_gateway_saw():
    """The body was masked or cut: what it was taken for is in the record."""
    recorded = event(method="POST", target="/api/v1/namespaces/shop/pods", body={**POD, "spec": {"hostNetwork": True}})
    del recorded["requestObject"]
    rule = "- {name: nay, action: deny, match: {resources: [pods], verbs: [create], uses: {host: ['*']}}}\n"
    assert judge(ALL + rule, recorded).broken


# ----- objects -----

OBJECT = "- {name: nay, action: deny, match: {resources: [pods], verbs: [%s]}, when: '%s'}\n"


@pytest.mark.parametrize(
    ("verb", "when", "recorded", "broken", "certain"),
    [
        pytest.param(
            "create",
            'object.metadata.labels.team == "x"',
            event(method="POST", target="/api/v1/namespaces/shop/pods", body=POD, answer=POD, code=201),
            True,
            True,
            id="the answer of a create",
        ),
        pytest.param(
            "create",
            'object.metadata.labels.team == "y"',
            event(method="POST", target="/api/v1/namespaces/shop/pods", body=POD),
            False,
            True,
            id="the body of a create",
        ),
        pytest.param(
            "patch",
            'object.metadata.labels.team == "y"',
            event(method="PATCH", body={"metadata": {}}, answer=POD),
            False,
            True,
            id="the answer of a patch",
        ),
        pytest.param(
            "patch",
            'object.metadata.labels.team == "y"',
            event(method="PATCH", body={"metadata": {}}),
            True,
            False,
            id="a patch without an answer",
        ),
        pytest.param(
            "patch",
            'object.metadata.labels.team == "y"',
            event(method="PATCH", body={"metadata": {}}, answer={"kind": "Status"}, code=200),
            True,
            False,
            id="a Status is no object",
        ),
        pytest.param(
            "delete",
            'oldObject.metadata.labels.team == "y"',
            event(beside=Beside(before=(POD,))),
            False,
            True,
            id="the object before",
        ),
        pytest.param("delete", 'oldObject.kind == "x"', event(), True, False, id="none"),
        pytest.param("delete", "object == null", event(), True, True, id="null is known"),
        pytest.param("delete", "namespaceObject == null", event(), True, False, id="the namespace is not recorded"),
    ],
)
def test_rules_that_look_at_objects(verb, when, recorded, broken, certain):
    outcome = judge(ALL + OBJECT % (verb, when), recorded)
    assert (outcome.broken, outcome.certain) == (broken, certain)


# ----- many -----


def test_each_request_once_with_what_was_written_ahead():
    ahead = event("1", stage=Stage.RECEIVED, beside=Beside(before=(POD,)))
    found = list(backtest.joined([ahead, event("2"), event("1"), event("3", stage=Stage.RECEIVED), {"auditID": 7}, {}]))
    assert [one["auditID"] for one in found] == ["2", "1", "3"]
    assert auditevents.before_of(found[1]) == [POD]


def test_result():
    result = Result()
    recorded = [
        event("1", "GET"),
        *(event(str(n)) for n in range(10, 20)),
        event("2", action=Action.DENY, refused="x", method="GET"),
        event("3", action=None),
        {"auditID": "4", "stage": "ResponseComplete", "annotations": {auditevents.VERDICT: "allow"}},
        auditevents.counted({"a": 5}, 0.0, 1.0, "5"),
    ]
    backtest.run(Bench(policies(ALL + DENY)), recorded, result)
    assert (result.requests, result.changed, result.broken, result.held, result.opened) == (13, 11, 10, 0, 1)
    assert (result.unjudged, result.unreadable, result.uncertain) == (1, 1, 0)
    change = result.changes[Action.ALLOW, Action.DENY, "new/nay", True]
    assert change.count == 10
    assert change.examples == ["1970-01-01 00:00:00 ann: delete pod shop/a (was allow by old/old-rule)"]


def test_at_most_a_few_examples():
    result = Result()
    backtest.run(Bench(policies(DENY)), [event(str(n), target=f"{PATH}{n}") for n in range(9)], result)
    (change,) = result.changes.values()
    assert len(change.examples) == backtest.EXAMPLES


def test_an_example_without_a_summary():
    outcome = judge(DENY, event())
    nameless = replace(outcome, operation=replace(outcome.operation, summary=""), certain=False, before=Verdict())
    assert backtest.example(nameless).endswith(
        f"ann: DELETE {PATH} (was deny by no rule; hangs on an object that was not recorded)"
    )
