from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import budgets, cel, policy, policyfields, policyfile
from addons.core.budgets import Budget, Charge, Over
from addons.core.matching import Glob, Match
from addons.core.model import Action, Approval, Identity, Impact, Operation, Reach, RequestInfo
from addons.core.status import MAX_MESSAGE, one_line

NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
ANN = Identity("ann", extra={"owner": ("team-a",)}, issuer="https://issuer")
DELETE = frozenset({Impact.DELETE})
DELETES = Match(impacts=DELETE)


def operation(verb="delete", resource="pods", namespace="shop", name="web", impacts=DELETE, **more):
    resource, _, subresource = resource.partition("/")
    resource, _, group = resource.partition(".")
    info = RequestInfo(verb, "/x", True, "api", group, "v1", namespace, resource, subresource, name)
    return Operation(info, verb.upper(), frozenset(impacts), name, **more)


def budget(name="b", match=DELETES, limit=5, window=600, **more):
    return Budget("p", name, match, limit, window, **more)


def policies(*all_of_them, observe=False, people=None):
    return policy.PolicySet([policy.Policy("p", (), observe, people, all_of_them)], "r1")


def charged(one, op=None, identity=ANN):
    """What the budget is charged, or None."""
    found = policies(one).charges(identity, op or operation()).enforced
    return found[0] if found else None


# Which operations count


@pytest.mark.parametrize(
    ("match", "op", "counts"),
    [
        pytest.param(DELETES, operation(), True, id="a delete"),
        pytest.param(DELETES, operation(impacts={Impact.MASS_DELETE}), True, id="a mass delete is a delete"),
        pytest.param(DELETES, operation("create", "pods/eviction"), True, id="an eviction"),
        pytest.param(DELETES, operation("create", impacts={Impact.WRITE}), False, id="a create"),
        pytest.param(
            Match(namespaces=Glob(["shop"])), operation("deletecollection", namespace=""), True, id="no namespace: all"
        ),
        pytest.param(Match(resource_names=Glob(["db"])), operation("deletecollection", name=""), True, id="no name"),
        pytest.param(Match(resource_names=Glob(["db"])), operation(), False, id="another name"),
        pytest.param(Match(agents=False), operation(), False, id="for people"),
        pytest.param(Match(users=Glob(["a*"])), operation(), True, id="by user"),
        pytest.param(Match(), operation("get", impacts={Impact.READ}), False, id="reading, not named"),
        pytest.param(
            Match(verbs=frozenset({"*"})), operation("get", impacts={Impact.READ}), False, id="* does not name reading"
        ),
        pytest.param(
            Match(verbs=frozenset({"get"})), operation("list", impacts={Impact.READ}), True, id="named by verb"
        ),
        pytest.param(
            Match(impacts=frozenset({Impact.READ})), operation("get", impacts={Impact.READ}), True, id="named by impact"
        ),
        pytest.param(Match(), operation("get", "secrets", impacts={Impact.REVEAL}), True, id="secrets are no reading"),
        pytest.param(
            Match(impacts=frozenset({Impact.REVEAL})),
            operation("get", "secrets", impacts={Impact.REVEAL}),
            True,
            id="reveal",
        ),
        pytest.param(
            Match(impacts=frozenset({Impact.READ}), verbs=frozenset({"delete"})),
            operation(impacts={Impact.READ}, dry_run=True),
            False,
            id="a dry run, read is named",
        ),
        pytest.param(
            Match(impacts=frozenset({Impact.REVEAL})),
            operation("delete", "secrets", impacts={Impact.REVEAL}, dry_run=True),
            True,
            id="a dry run that returns Secrets",
        ),
    ],
)
def test_counts(match, op, counts):
    assert (charged(budget(match=match), op) is not None) is counts


@pytest.mark.parametrize(
    ("field", "source", "counts"),
    [
        pytest.param("when", "operation.name == 'web'", True, id="when true"),
        pytest.param("when", "operation.name == 'db'", False, id="when false"),
        pytest.param("when", "identity.extra['team'][0] == 'x'", True, id="when cannot be evaluated"),
        pytest.param("unless", "operation.name == 'web'", False, id="unless true"),
        pytest.param("unless", "identity.extra['team'][0] == 'x'", True, id="unless cannot be evaluated"),
    ],
)
def test_conditions_fail_against_the_requester(field, source, counts):
    program = cel.compile_expression(source, policy.VARIABLES, returns="bool")
    assert (charged(budget(**{field: program})) is not None) is counts


def test_all_matching_budgets_are_charged_sorted_by_name():
    found = policies(budget("b"), budget("a"), budget("c", Match(users=Glob(["bob"])))).charges(ANN, operation())
    assert [c.budget.name for c in found.enforced] == ["a", "b"]
    assert found.observed == ()


def test_a_policy_that_observes_charges_apart():
    found = policies(budget(), observe=True).charges(ANN, operation())
    assert (found.enforced, len(found.observed)) == ((), 1)


def test_whom_an_observed_policy_calls_people_are_agents_for_the_enforced():
    people = cel.compile_expression("identity.username == 'ann'", policy.PEOPLE_VARIABLES, returns="bool")
    agents = budget(match=Match(agents=True))
    both = policy.PolicySet(
        [policy.Policy("o", (), True, people, (agents,)), policy.Policy("p", (), False, None, (agents,))], "r"
    )
    found = both.charges(ANN, operation())
    assert (len(found.enforced), len(found.observed)) == (1, 0)


def test_no_budgets_no_charges():
    assert not policies().charges(ANN, operation())
    assert policies(budget()).charges(ANN, operation("create", impacts={Impact.WRITE})) is budgets.NO_CHARGES


# To whom


OWNER = cel.compile_expression("identity.extra['owner'][0]", policy.PEOPLE_VARIABLES, returns="string")


@pytest.mark.parametrize(
    ("per", "op", "identity", "key"),
    [
        pytest.param("identity", operation(), ANN, "ann", id="identity"),
        pytest.param("identity", operation(), Identity("ann", uid="2"), "ann", id="made anew: the same share"),
        pytest.param("owner", operation(), ANN, "team-a", id="owner"),
        pytest.param("owner", operation(), Identity("bob"), "", id="an owner that cannot be told is one for all"),
        pytest.param("issuer", operation(), ANN, "https://issuer", id="issuer"),
        pytest.param("namespace", operation(), ANN, "shop", id="namespace"),
        pytest.param("namespace", operation("delete", "nodes", "", "n1"), ANN, "", id="outside namespaces"),
        pytest.param("namespace", operation("delete", "namespaces", "shop", "shop"), ANN, "shop", id="the Namespace"),
        pytest.param("namespace", operation("create", "namespaces", "", "new"), ANN, "new", id="a new Namespace"),
        pytest.param("session", operation(claimed_session="s"), ANN, "ann\ns", id="session, of this identity"),
        pytest.param("session", operation(), ANN, "ann\n", id="no session"),
        pytest.param("all", operation(), ANN, "", id="all"),
        pytest.param("identity", operation(), Identity("a\udc80"), "a\\udc80", id="what no database takes"),
    ],
)
def test_key(per, op, identity, key):
    assert charged(budget(per=per, owner=OWNER if per == "owner" else None), op, identity).key == key


# How much

MASS = frozenset({Impact.MASS_DELETE})
NAMESPACE = operation("delete", "namespaces", "shop", "shop", MASS)


@pytest.mark.parametrize(
    ("op", "reach", "weight"),
    [
        pytest.param(operation(), None, 1, id="one object"),
        pytest.param(operation("deletecollection", name=""), Reach({"pods": 14}), 14, id="a collection"),
        pytest.param(operation("deletecollection", name=""), Reach({"pods": 0}), 1, id="empty: it may have grown"),
        pytest.param(NAMESPACE, Reach({"pods": 14, "services": 2}), 16, id="a namespace"),
        pytest.param(NAMESPACE, Reach({"namespaces": 1, "pods": 14}), 15, id="a namespace, itself counted"),
        # `delete pods --all`: the reach is the whole command's and comes with every DELETE of it.
        pytest.param(operation(impacts=MASS), Reach({"pods": 14}), 1, id="one of a fan-out"),
        pytest.param(operation("create", "pods/eviction", impacts=MASS), Reach({"pods": 14}), 1, id="one of a drain"),
        pytest.param(
            operation(impacts=MASS), Reach({"pods": 2}, exact=False), 1, id="one of many, nobody knows how many"
        ),
        pytest.param(
            operation(resource="deployments.apps", impacts=MASS),
            Reach({"deployments.apps": 3, "pods": 9}),
            10,
            id="one of three, whose pods may all be its own",
        ),
        pytest.param(
            operation(resource="deployments.apps"), Reach({"deployments.apps": 1, "pods": 3}), 4, id="with pods"
        ),
        pytest.param(operation(resource="pods"), Reach({"pods.metrics.k8s.io": 5}), 5, id="another group's pods"),
    ],
)
def test_weight(op, reach, weight):
    one = operation(op.info.verb, op.info.full_resource, op.info.namespace, op.name, op.impacts, reach=reach)
    found = charged(budget(limit=50, objects=True), one)
    assert (found.weight, found.counted) == (weight, True)
    assert charged(budget(), one).weight == 1  # a limit counts operations


@pytest.mark.parametrize(
    ("op", "reach"),
    [
        pytest.param(operation("deletecollection", name=""), Reach({"pods": 500}, exact=False), id="a collection"),
        pytest.param(NAMESPACE, Reach({"pods": 1}, exact=False), id="a namespace"),
        pytest.param(operation("patch", impacts={Impact.DELETE}), Reach(exact=False), id="a patch that destroys"),
    ],
)
def test_what_nobody_could_count_fits_no_budget(op, reach):
    one = operation(op.info.verb, op.info.full_resource, op.info.namespace, op.name, op.impacts, reach=reach)
    found = charged(budget(limit=10_000, objects=True), one)
    assert found.weight > found.budget.limit
    assert not found.counted


@given(
    st.dictionaries(st.sampled_from(["pods", "services", "deployments.apps"]), st.integers(0, 50)),
    st.sampled_from(["web", ""]),
)
def test_a_whole_command_is_charged_at_least_what_it_reaches(counts, name):
    """As many requests as there are siblings, each charged, cover everything that is in reach."""
    op = operation(resource="pods", name=name, impacts=MASS, reach=Reach(counts))
    requests = counts.get("pods", 1) if name else 1
    assert budgets.weight(op) * max(1, requests) >= sum(counts.values())


# What comes back


@pytest.mark.parametrize(
    ("op", "code", "back"),
    [
        pytest.param(operation(), 200, False, id="done"),
        pytest.param(operation(), 404, True, id="not there"),
        pytest.param(operation(), 403, True, id="forbidden"),
        pytest.param(operation("create", "pods/eviction"), 429, True, id="kept by a disruption budget"),
        pytest.param(operation(), 500, False, id="server error: who knows"),
        pytest.param(operation(), 504, False, id="timeout: who knows"),
        pytest.param(operation("deletecollection", name=""), 403, False, id="a collection may be half gone"),
        pytest.param(
            operation("get", "secrets", impacts={Impact.REVEAL}), 404, False, id="a refusal tells of a Secret"
        ),
        pytest.param(operation("create", "pods/proxy", impacts={Impact.EXECUTE}), 404, False, id="whose status is it"),
        pytest.param(operation("create", "pods/exec", impacts={Impact.EXECUTE}), 101, False, id="a shell"),
    ],
)
def test_gives_back(op, code, back):
    assert budgets.gives_back(op, code) is back


# Words


def over(one, weight=1, spent=None, free_at=NOW + 202.5, key="shop", counted=True):
    return Over(Charge(one, key, weight, counted), one.limit if spent is None else spent, free_at)


OBJECTS = {"limit": 20, "objects": True, "per": "namespace"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(
            [over(budget(**OBJECTS))],
            "rule p/b: 20 objects in 10m in namespace shop, 0 left; the next is free at 08:03:23 UTC;"
            " wait until then, or ask the policy's owners for more",
            id="none left",
        ),
        pytest.param(
            [over(budget(**OBJECTS), weight=7, spent=17)],
            "rule p/b: 20 objects in 10m in namespace shop, 3 left, this needs 7; so many are free at 08:03:23 UTC;"
            " wait until then, or ask the policy's owners for more",
            id="not enough left",
        ),
        pytest.param(
            [over(budget(**OBJECTS), weight=34, spent=0, free_at=0)],
            "rule p/b: 20 objects in 10m in namespace shop, 20 left, this needs 34; it is too much for the budget at"
            " any time; do it in smaller steps, by name, or ask the policy's owners",
            id="never",
        ),
        pytest.param(
            [over(budget(**OBJECTS), weight=21, spent=0, free_at=0, counted=False)],
            "rule p/b: 20 objects in 10m in namespace shop, 20 left; how many objects this reaches could not be"
            " counted; do it in smaller steps, by name, or ask the policy's owners",
            id="not counted",
        ),
        pytest.param(
            [over(budget(over=Action.HOLD, approval=Approval(groups=("oncall",))), key="ann")],
            "rule p/b: 5 operations in 10m per identity, 0 left; the next is free at 08:03:23 UTC; over it a human must"
            " approve, which cannot be asked for yet: wait until then, or ask oncall to do it",
            id="hold",
        ),
        pytest.param(
            [over(budget(over=Action.HOLD, per="all", window=5400))],
            "rule p/b: 5 operations in 1h30m for all together, 0 left; the next is free at 08:03:23 UTC; over it a"
            " human must approve, which cannot be asked for yet: wait until then, or ask the policy's owners to do it",
            id="hold, approvers not named",
        ),
        pytest.param(
            [over(budget(per="owner", message="Slow down."), key="team-a", free_at=NOW + 86_400)],
            "rule p/b: 5 operations in 10m for owner team-a, 0 left; the next is free at 2027-01-16 08:00:00 UTC;"
            " Slow down; wait until then, or ask the policy's owners for more",
            id="its own message, and another day",
        ),
        pytest.param(
            [
                over(budget("a", per="all"), free_at=NOW + 1),
                over(budget("z", per="namespace"), key="", free_at=NOW + 2),
            ],
            "rule p/z: 5 operations in 10m outside namespaces, 0 left (and 1 more); the next is free at 08:00:02 UTC;"
            " wait until then, or ask the policy's owners for more",
            id="two: the one that lasts longer",
        ),
    ],
)
def test_message(given, expected):
    verdict = budgets.verdict(given, "r1", NOW)
    assert verdict.message == expected
    refusal = budgets.refusal(verdict)
    assert (refusal.code, refusal.cause) == (403, "budget")
    assert one_line(refusal.message) == refusal.message


@pytest.mark.parametrize(
    ("given", "action", "rule", "holds"),
    [
        pytest.param([over(budget())], Action.DENY, "b", 0, id="deny"),
        pytest.param([over(budget(over=Action.HOLD))], Action.HOLD, "b", 1, id="hold"),
        pytest.param(
            [over(budget("a", over=Action.HOLD)), over(budget("b"))], Action.DENY, "b", 0, id="deny is stricter"
        ),
        pytest.param(
            [over(budget("a", over=Action.HOLD)), over(budget("b", over=Action.HOLD))],
            Action.HOLD,
            "a",
            2,
            id="both hold",
        ),
        pytest.param([over(budget("a")), over(budget("b"), free_at=0)], Action.DENY, "b", 0, id="never lasts longest"),
    ],
)
def test_verdict(given, action, rule, holds):
    verdict = budgets.verdict(given, "r1", NOW)
    assert (verdict.action, verdict.rule, verdict.policy, verdict.revision) == (action, rule, "p", "r1")
    assert len(verdict.holds) == holds


@pytest.mark.parametrize("action", [Action.DENY, Action.HOLD])
def test_the_longest_message_is_shown_whole(action):
    long = Budget(
        "p" * 63,
        "n" * 63,
        DELETES,
        limit=10_000,
        window=86_399,
        objects=True,
        per="namespace",
        over=action,
        message="m" * policyfields.MAX_BUDGET_MESSAGE,
        approval=Approval(groups=("g" * 300,)),
    )
    one = over(long, weight=9_999, key="k" * 63, free_at=NOW + 86_400)
    assert len(budgets.verdict([one, one], "r", NOW).message) <= MAX_MESSAGE


def test_unavailable():
    charge = charged(budget())
    refusal = budgets.unavailable([charge, charge], "state.db is busy: another process holds it")
    assert (refusal.code, refusal.cause) == (503, "state-store")
    assert refusal.message.startswith(
        "tollgate: the gateway cannot count for budget p/b and others right now (state.db is"
    )
    assert one_line(refusal.message) == refusal.message


@pytest.mark.parametrize(("seconds", "text"), [(600, "10m"), (5400, "1h30m"), (3661, "1h1m1s"), (1, "1s"), (0, "0s")])
def test_span(seconds, text):
    assert budgets.span(seconds) == text


# Reloads


def test_a_changed_budget_is_named():
    before, after = policies(budget(digest="1")), policies(budget(digest="2"), budget("c", digest="1"))
    assert policy.changes(before, after) == ["~ p/b", "+ p/c"]


README = (Path(__file__).parents[2] / "policies" / "README.md").read_text().split("## Budgets")[1].split("\n## ")[0]


@pytest.mark.parametrize("word", [*policyfile.BUDGET_FIELDS, *budgets.PER])
def test_documented(word):
    assert f"{word}:" in README or f"`{word}`" in README


def test_the_shipped_budgets():
    """Objects deleted per namespace over all agents, and what one agent may do."""
    shipped = policyfile.load([Path(__file__).parents[2] / "policies" / "default.yaml"])
    found = shipped.charges(ANN, operation(namespace="agent-a")).enforced
    assert {(c.budget.name, c.key, c.budget.objects) for c in found} == {
        ("deletes-in-namespace", "agent-a", True),
        ("deletes-by-one-agent", "ann", True),
        ("writes-by-one-agent", "ann", False),
    }
    assert not shipped.charges(ANN, operation("get", impacts={Impact.READ}))
