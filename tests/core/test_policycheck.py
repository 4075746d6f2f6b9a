import time

import pytest

from addons.core import policycheck, policyfile

HEAD = "apiVersion: tollgate.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\n"
APPROVAL = "approval: {groups: [oncall]}"


def warnings(*rules, head=HEAD):
    text = "rules:\n" + "".join(
        f"- {{name: r{number}, {rule}{f', {APPROVAL}' if 'action: hold' in rule else ''}}}\n"
        for number, rule in enumerate(rules)
    )
    return policycheck.warnings(policyfile.parse({"f.yaml": (head + text).encode()}))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        pytest.param("action: deny, match: {subjects: [people]}", "no policy says who people are", id="no people"),
        pytest.param(
            "action: allow, match: {resources: [nodes], namespaces: [shop], verbs: [get]}",
            "allows in some namespaces what is in none",
            id="a namespace of what has none",
        ),
        pytest.param(
            "action: allow, match: {resources: [pods], resourceNames: [a], verbs: [deletecollection]}",
            "which has no name",
            id="a collection by name",
        ),
        pytest.param(
            "action: deny, match: {verbs: [get, list], resources: [configmaps], impacts: [delete]}",
            "no request has",
            id="a read that deletes",
        ),
        pytest.param(
            "action: allow, match: {verbs: [get], resources: [secrets], impacts: [read]}",
            "no request has",
            id="a Secret's read is a reveal",
        ),
        pytest.param(
            "action: allow, match: {verbs: [get], resources: [pods/eviction]}", None, id="not known not to be"
        ),
        pytest.param(
            'action: deny, match: {verbs: [get], resources: ["*.example.com"], impacts: [delete]}',
            None,
            id="of custom resources nothing is known",
        ),
        pytest.param(
            "action: allow, match: {verbs: [create], resources: [pods], impacts: [read]}", None, id="a dry run"
        ),
        pytest.param("action: deny, match: {namespaces: [kube-system], impacts: [write]}", None, id="an ordinary rule"),
        pytest.param("action: allow, match: {verbs: [get], impacts: [meta]}", None, id="pages"),
        pytest.param("action: deny, match: {nonResourceURLs: [/metrics]}", None, id="a page"),
    ],
)
def test_never(rule, said):
    found = warnings(rule)
    if said is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith("f.yaml:5: rule p/r0: ")
        assert said in found[0]


@pytest.mark.parametrize(
    ("deny", "rule", "beaten"),
    [
        pytest.param("resources: [secrets]", "resources: [secrets], verbs: [get]", True, id="all of a resource"),
        pytest.param("verbs: ['*']", "nonResourceURLs: [/metrics]", True, id="everything"),
        pytest.param(
            "namespaces: ['prod-*']", "namespaces: [prod-a, 'prod-b-*'], resources: [pods]", True, id="patterns"
        ),
        pytest.param("namespaces: ['prod-?']", "namespaces: ['prod-*'], resources: [pods]", False, id="one letter"),
        pytest.param("namespaces: [prod]", "resources: [pods]", False, id="in other namespaces it has an effect"),
        pytest.param("resources: ['*.apps']", "resources: [deployments.apps]", True, id="a group"),
        pytest.param("resources: [deployments.apps/scale]", "resources: [deployments.apps]", False, id="a subresource"),
        pytest.param("impacts: [read, reveal]", "impacts: [read]", True, id="impacts"),
        pytest.param("impacts: [read]", "verbs: [get]", False, id="perhaps other impacts"),
        pytest.param("users: [a]", "users: [a, b]", False, id="others too"),
        pytest.param("subjects: [agents]", "verbs: [get]", False, id="people too"),
        pytest.param("uses: {host: ['*']}", "resources: [pods]", False, id="some pods only"),
        pytest.param("commands: ['kubectl get']", "verbs: [get]", False, id="a claim"),
        pytest.param("verbs: [get]", "verbs: ['*']", False, id="other verbs too"),
    ],
)
def test_beaten(deny, rule, beaten):
    for action in ("allow", "hold"):
        found = warnings(f"action: {action}, match: {{{rule}}}", f"action: deny, match: {{{deny}}}")
        assert bool(found) is beaten
        assert not beaten or found[0].endswith("rule p/r1 denies all that it matches; it never has an effect")


def test_a_deny_with_a_condition_beats_nothing():
    assert warnings("action: allow, match: {verbs: [get]}", "action: deny, match: {verbs: [get]}, when: 'true'") == []


def test_a_deny_that_observes_beats_nothing():
    rules = ("action: allow, match: {verbs: [get]}", "action: deny, match: {verbs: [get]}")
    assert warnings(*rules, head=HEAD + "mode: observe\n") == []


def test_said_twice():
    rule = "action: deny, match: {verbs: [get], resources: [pods]}, when: operation.dryRun"
    assert warnings(rule, rule) == ["f.yaml:6: rule p/r1: says what rule p/r0 says"]
    assert warnings(rule, rule.replace("pods", "nodes")) == []


PEOPLE = "people: identity.username == 'ann'\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            "rules: [{name: r, action: hold, match: {verbs: [get]}, approval: {users: [a]}}]", True, id="hold"
        ),
        pytest.param("rules: [{name: r, action: deny, match: {verbs: [get]}}]", False, id="nothing is held"),
        pytest.param(
            "budgets: [{name: b, match: {verbs: [get]}, limit: 1, window: 1m, per: all, over: hold,"
            " approval: {users: [a]}}]",
            True,
            id="a budget holds",
        ),
        pytest.param(
            PEOPLE + "rules: [{name: r, action: hold, match: {verbs: [get]}, approval: {users: [a]}}]",
            False,
            id="there are people",
        ),
        pytest.param(
            PEOPLE + "mode: observe\nrules: [{name: r, action: hold, match: {verbs: [get]}, approval: {users: [a]}}]",
            True,
            id="in the eyes of a policy that observes",
        ),
    ],
)
def test_nobody_approves(text, said):
    assert bool(policycheck.nobody_approves(policyfile.parse({"f.yaml": (HEAD + text).encode()}))) is said


def test_many_rules_are_not_compared():
    rules = [f"action: deny, match: {{users: [u{number}]}}" for number in range(policycheck.MAX_RULES)]
    before = time.process_time()
    assert warnings(*rules, rules[0]) == []
    assert time.process_time() - before < 20


PEOPLE = "people: 'true'\n"
SHOWS = "{name: s, match: {resources: [pods], subjects: [agents]}, mask: never}"


@pytest.mark.parametrize(
    ("people", "rules", "said"),
    [
        pytest.param(
            "",
            ["{name: m, match: {resources: [pods], subjects: [people]}, mask: always}"],
            "is for people, and no policy says who",
            id="nobody is people",
        ),
        pytest.param(
            PEOPLE,
            ["{name: m, match: {resources: [pods], subjects: [people]}, mask: never}"],
            "shows to people what no rule masks",
            id="people see it anyway",
        ),
        pytest.param(
            PEOPLE,
            [
                "{name: m, match: {resources: [pods], subjects: [people]}, mask: never}",
                "{name: n, match: {resources: [pods]}, mask: always}",
            ],
            None,
            id="not where a rule masks it",
        ),
        pytest.param(
            "",
            ["{name: m, match: {resources: [pods], subjects: [agents]}, mask: always}"],
            "masks for agents what no rule shows",
            id="agents do not see it anyway",
        ),
        pytest.param(
            "",
            ["{name: m, match: {resources: [pods], subjects: [agents]}, mask: always}", SHOWS],
            None,
            id="not where a rule shows it",
        ),
        pytest.param(
            "",
            ["{name: m, match: {resources: [pods], subjects: [agents]}, fields: [spec.x], mask: always}"],
            None,
            id="fields",
        ),
        pytest.param(
            "", ["{name: m, match: {resources: [pods], subjects: [agents]}, writes: allow}"], None, id="free writes"
        ),
    ],
)
def test_mask_rules_without_effect(people, rules, said):
    head = f"apiVersion: tollgate.dev/v1alpha1\nkind: Policy\nmetadata: {{name: p}}\n{people}"
    rule = "rules:\n- {name: a, action: allow, match: {verbs: [get]}}\n"
    text = head + rule + "mask:\n" + "".join(f"- {one}\n" for one in rules)
    found = policycheck.warnings(policyfile.parse({"f.yaml": text.encode()}))
    if said is None:
        assert found == []
    else:
        assert len(found) == 1
        assert ": mask rule p/m: " in found[0]
        assert said in found[0]
