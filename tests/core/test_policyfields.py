"""Who may approve what, and how: each field of `approval`, `grant` and `auditors`, and what each mistake is told."""

import pytest

from addons.core import approvals, policyfile
from addons.core.model import Approval, Identity
from addons.core.policyfile import PolicyError

HEAD = "apiVersion: tollgate.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\n"


def parse(text):
    return policyfile.parse({"f.yaml": text.encode()})


def hold(approval, more=""):
    """A policy with one hold rule; its line is 5, and its approval's 6."""
    rule = f"- {{name: r, action: hold, match: {{verbs: [delete]}}{more},\n   approval: {{groups: [g], {approval}}}}}\n"
    return f"{HEAD}rules:\n{rule}"


def approval_of(text):
    return parse(text).policies[0].rules[0].approval


def problem(text):
    with pytest.raises(PolicyError) as e:
        parse(text)
    return str(e.value)


def test_every_field_of_an_approval():
    text = hold(
        """users: [u], needed: 2, wait: 10s, valid: 1h, maxTokenAge: 5m, require: reason, maxPending: 2, cooldown: 1h,
        drift: 3, retry: true, claims: '"mfa" in claims.amr', owner: 'identity.extra["example.com/owner"][0]'""",
        more=", grant: {for: 30m, scope: rule}",
    )
    assert approval_of(text) == Approval(
        groups=("g",),
        users=("u",),
        needed=2,
        wait=10,
        valid=3600,
        max_token_age=300,
        claims='"mfa" in claims.amr',
        owner='identity.extra["example.com/owner"][0]',
        require_reason=True,
        max_pending=2,
        cooldown=3600,
        drift=3,
        retry=True,
        grant_for=1800,
        grant_scope="rule",
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param("maxTokenAge: 24h", {"max_token_age": 86_400}, id="as old as a day"),
        pytest.param("cooldown: 0s", {"cooldown": 0}, id="no cooldown"),
        pytest.param("drift: 0", {"drift": 0}, id="no drift"),
        pytest.param("require: [reason]", {"require_reason": True}, id="a list of one"),
        pytest.param("retry: false", {"retry": False}, id="no retry, said so"),
    ],
)
def test_edges(written, expected):
    assert approval_of(hold(written)) == Approval(groups=("g",), **expected)


def test_a_grant_is_for_the_namespace_unless_it_says_rule():
    found = approval_of(hold("needed: 1", more=", grant: {for: 8h}"))
    assert (found.grant_for, found.grant_scope) == (28_800, "namespace")


def test_expressions_are_those_that_decide():
    found = approval_of(hold("claims: 'claims.level >= 2 && identity.issuer == \"i\"', owner: identity.uid"))
    values = {"identity": approvals.identity_values(Identity("ann", uid="u1", issuer="i")), "claims": {"level": 2.0}}
    assert approvals.condition(found.claims).evaluate(values) is True
    assert approvals.owner_of(found.owner, Identity("ann", uid="u1")) == "u1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            hold("maxTokenAge: 25h"), "f.yaml:6: rules[0].approval.maxTokenAge: 25h is not between 1m", id="old"
        ),
        pytest.param(hold("maxTokenAge: 59s"), "approval.maxTokenAge: 59s is not between 1m and 24h", id="too young"),
        pytest.param(hold("maxTokenAge: 15"), "approval.maxTokenAge: 15 is not a duration: say 10m", id="no unit"),
        pytest.param(hold("tokenAge: 5m"), "approval.tokenAge: unknown field; did you mean maxTokenAge?", id="typo"),
        pytest.param(hold("require: [reson]"), "approval.require[0]: unknown value 'reson'; one of reason", id="word"),
        pytest.param(
            hold("require: reasons"), "approval.require: unknown value 'reasons'; did you mean reason?", id="text"
        ),
        pytest.param(hold("require: []"), "approval.require: is empty", id="requires nothing"),
        pytest.param(hold("require: {reason: true}"), "approval.require: is a map, not a list", id="requires a map"),
        pytest.param(hold("require: true"), "approval.require: true reads as a boolean", id="requires a boolean"),
        pytest.param(
            hold("maxPending: 0"), "approval.maxPending: is not a whole number from 1 to 100", id="none pending"
        ),
        pytest.param(hold("maxPending: 1.5"), "approval.maxPending: is not a whole number", id="half a question"),
        pytest.param(hold("cooldown: 25h"), "approval.cooldown: 25h is not between 0s and 24h", id="long cooldown"),
        pytest.param(hold("drift: -1"), "approval.drift: is not a whole number from 0 to 10000", id="shrinks"),
        pytest.param(hold("retry: yes"), "approval.retry: is not true or false", id="YAML's own yes"),
        pytest.param(hold('retry: "true"'), "approval.retry: is not true or false", id="a text"),
        pytest.param(hold("claims: [a]"), "approval.claims: is a list, not a text", id="claims as a list"),
        pytest.param(hold("claims: claims.level"), None, id="whether it is a bool is seen when it runs"),
        pytest.param(hold('claims: "size(claims)"'), "approval.claims: gives a int, not a bool", id="a number"),
        pytest.param(
            hold("claims: claim.x == 1"),
            "undeclared reference to 'claim.x'\n     | claim.x == 1\n     | .....^",
            id="caret",
        ),
        pytest.param(hold("claims: operation.verb == 'x'"), "approval.claims: ", id="no operation there"),
        pytest.param(hold("claims: object == null"), "approval.claims: object is there for rules only", id="no object"),
        pytest.param(hold("claims: identity.agent"), "approval.claims: identity has no field agent", id="no agent"),
        pytest.param(
            hold("claims: identity.groupz == 1"), "identity has no field groupz; did you mean groups?", id="field"
        ),
        pytest.param(hold("owner: identity.groups"), None, id="whether it is a text is seen when it runs"),
        pytest.param(
            hold("owner: size(identity)"), "approval.owner: gives a int, not a string", id="owner is a number"
        ),
        pytest.param(hold("owner: claims.owner"), "approval.owner: ", id="the requester has no claims there"),
        pytest.param(hold("grant: {for: 1h}"), "approval.grant: unknown field", id="a grant is the rule's"),
        pytest.param(hold("needed: 1", ", grant: {}"), "f.yaml:5: rules[0].grant.for: is missing", id="grant for ever"),
        pytest.param(hold("needed: 1", ", grant: 1h"), "rules[0].grant: is a text, not a map", id="grant as a text"),
        pytest.param(
            hold("needed: 1", ", grant: {for: 9h}"), "grant.for: 9h is not between 1m and 8h", id="long grant"
        ),
        pytest.param(
            hold("needed: 1", ", grant: {for: 1h, scope: cluster}"), "grant.scope: unknown value 'cluster'", id="scope"
        ),
        pytest.param(
            f"{HEAD}rules:\n- {{name: r, action: deny, match: {{verbs: [get]}}, grant: {{for: 1h}}}}\n",
            "rules[0].grant: only a hold rule has it, not one that says deny",
            id="a deny is never opened",
        ),
        pytest.param(HEAD + "auditors: {}", "auditors: names nobody", id="no auditors"),
        pytest.param(HEAD + "auditors: {groups: []}", "auditors.groups: is empty", id="no groups"),
        pytest.param(HEAD + "auditors: [a]", "f.yaml:4: auditors: is a list, not a map", id="auditors as a list"),
        pytest.param(
            HEAD + "auditors: {group: [a]}", "auditors.group: unknown field; did you mean groups?", id="group"
        ),
        pytest.param(HEAD + 'auditors: {users: ["*"]}', "auditors.users[0]: is a pattern", id="everybody audits"),
    ],
)
def test_mistakes(text, expected):
    if expected is None:
        parse(text)
    else:
        assert expected in problem(text)


def test_a_budget_has_approvals_but_no_grant():
    budget = "budgets:\n- {{name: b, match: {{verbs: [delete]}}, limit: 5, window: 1m, per: all, over: hold, {}}}\n"
    (found,) = parse(HEAD + budget.format("approval: {users: [u], require: reason}")).budgets
    assert found.approval.require_reason
    assert "grant: unknown field" in problem(HEAD + budget.format("approval: {users: [u]}, grant: {for: 1h}"))


AUDITS = HEAD + "auditors: {groups: [security], users: [eve]}\n"


@pytest.mark.parametrize(
    ("identity", "sees_all"),
    [
        pytest.param(Identity("ann", groups=("security",)), True, id="by a group"),
        pytest.param(Identity("eve"), True, id="by name"),
        pytest.param(Identity("ann", groups=("eve",)), False, id="a group of a user's name"),
        pytest.param(Identity("security"), False, id="a user of a group's name"),
    ],
)
def test_auditors(identity, sees_all):
    assert parse(AUDITS).is_auditor(identity) is sees_all


def test_auditors_of_several_files_are_all_of_them():
    more = HEAD.replace("name: p", "name: q") + "auditors: {groups: [audit, security]}\n"
    found = policyfile.parse({"a.yaml": AUDITS.encode(), "b.yaml": more.encode()})
    assert found.auditors.groups == ("security", "audit")


def test_a_policy_that_observes_has_no_auditors():
    # It must not change what the enforced ones let anybody see.
    assert not parse(AUDITS + "mode: observe\n").is_auditor(Identity("eve"))


def test_a_change_of_auditors_is_a_change():
    assert parse(AUDITS).digests() != parse(AUDITS.replace("eve", "bob")).digests()
