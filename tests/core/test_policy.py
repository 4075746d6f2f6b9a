import json
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addons.core import policy, policyfile
from addons.core.admission import NOT_FETCHED, NeedsObjects
from addons.core.model import (
    ANONYMOUS,
    RECORD_LEVELS,
    Action,
    Approval,
    Hold,
    Identity,
    Impact,
    Operation,
    RequestInfo,
    Uses,
    Verdict,
)
from addons.core.policy import DENY_ALL, PolicySet

AGENT = Identity("agent", groups=("bots", "all"), extra={"team": ("shop",)}, issuer="https://issuer")
PERSON = Identity("ann", groups=("platform", "all"))
ASKED = policy._Asker(AGENT, agent=True).values


def document(rules, name="p", **more):
    head = {"apiVersion": policyfile.API_VERSION, "kind": "Policy", "metadata": {"name": name}}
    named = [{"name": f"r{number}", **rule} for number, rule in enumerate(rules)]
    return {**head, **({"rules": named} if named else {}), **more}


def load(*documents) -> PolicySet:
    return policyfile.parse({f"{number}.yaml": json.dumps(d).encode() for number, d in enumerate(documents)})


def one(*rules, **more) -> PolicySet:
    return load(document(rules, **more))


def allow(**match):
    return {"action": "allow", "match": match or {"verbs": ["*"]}}


def deny(**match):
    return {"action": "deny", "match": match or {"verbs": ["*"]}}


def hold(**match):
    return {"action": "hold", "match": match or {"verbs": ["*"]}, "approval": {"groups": ["oncall"]}}


def operation(verb="get", resource="pods", namespace="shop", name="web", **more):
    info = RequestInfo(
        verb=verb,
        path=f"/api/v1/namespaces/{namespace}/{resource}/{name}",
        is_resource_request=True,
        api_prefix="api",
        api_group=more.pop("group", ""),
        api_version="v1",
        namespace=namespace,
        resource=resource,
        subresource=more.pop("subresource", ""),
        name=name,
    )
    more.setdefault("impacts", frozenset({Impact.READ if verb in ("get", "list", "watch") else Impact.WRITE}))
    return Operation(info=info, method="GET", name=name, **more)


GET = operation()


def verdict(policies, identity, op):
    """The verdict; where it hangs on objects, the one while they cannot be had."""
    try:
        return policies.evaluate(identity, op)
    except NeedsObjects:
        return policies.evaluate(identity, op, NOT_FETCHED)


def judged(policies, op=GET, identity=AGENT):
    found = verdict(policies, identity, op)
    return found.action, found.rule


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        pytest.param([deny(verbs=["list"])], (Action.DENY, ""), id="nothing matches"),
        pytest.param([allow()], (Action.ALLOW, "r0"), id="allow"),
        pytest.param([allow(), hold()], (Action.HOLD, "r1"), id="hold beats allow"),
        pytest.param([hold(), deny(), allow()], (Action.DENY, "r1"), id="deny beats all"),
        pytest.param([hold()], (Action.HOLD, "r0"), id="hold without an allow"),
        pytest.param([deny(verbs=["delete"]), allow()], (Action.ALLOW, "r1"), id="a deny that does not match"),
        pytest.param([allow(users=["agent"])], (Action.ALLOW, "r0"), id="user"),
        pytest.param([allow(users=["Agent"])], (Action.DENY, ""), id="another user"),
        pytest.param([allow(userGroups=["b*"])], (Action.ALLOW, "r0"), id="group"),
        pytest.param([allow(userGroups=["platform"])], (Action.DENY, ""), id="another group"),
        pytest.param([allow(userGroups=["system:authenticated"])], (Action.ALLOW, "r0"), id="the server's own group"),
        pytest.param([allow(users=["agent"], userGroups=["x"])], (Action.DENY, ""), id="each field must match"),
    ],
)
def test_precedence(rules, expected):
    assert judged(one(*rules)) == expected


def test_zero_values_deny():
    assert Verdict().action is Action.DENY
    assert judged(DENY_ALL) == (Action.DENY, "")


def test_every_hold_is_kept():
    policies = load(document([hold(), hold(), allow()], "a"), document([hold(), hold(verbs=["list"])], "b"))
    verdict = policies.evaluate(AGENT, GET)
    assert [(h.policy, h.rule) for h in verdict.holds] == [("a", "r0"), ("a", "r1"), ("b", "r0")]
    assert verdict.holds[0].approval.groups == ("oncall",)
    assert (verdict.policy, verdict.rule) == ("a", "r0")


@pytest.mark.parametrize(
    ("rules", "action"),
    [
        pytest.param([allow(), hold()], Action.ALLOW, id="a hold"),
        pytest.param(
            [allow(), hold(impacts=["write"], resources=["*.tollgate.dev"])], Action.ALLOW, id="that means it"
        ),
        pytest.param([allow(), deny()], Action.DENY, id="a deny denies"),
        pytest.param([hold()], Action.DENY, id="nothing allows it"),
    ],
)
def test_to_approve_is_never_held(rules, action):
    approve = operation("patch", "approvals", "", "apr-x", group="tollgate.dev")
    assert one(*rules).evaluate(PERSON, approve).action is action


def test_a_verdict_names_its_source():
    policies = one({**deny(), "message": "No."})
    assert policies.evaluate(AGENT, GET) == Verdict(Action.DENY, "r0", "p", policies.revision, "No.")


# How much of it is recorded


@pytest.mark.parametrize(
    ("rules", "op", "level"),
    [
        pytest.param([], GET, "", id="no rule"),
        pytest.param([allow()], GET, "", id="none names one"),
        pytest.param([{**allow(), "record": "metadata"}], GET, "metadata", id="allow"),
        pytest.param([{**deny(), "record": "full"}], GET, "full", id="deny"),
        pytest.param([{**hold(), "record": "request"}], GET, "request", id="hold"),
        pytest.param(
            [{**hold(), "record": "metadata"}, {**hold(), "record": "full"}, {**hold(), "record": "request"}],
            GET,
            "full",
            id="the highest of all that hold",
        ),
        pytest.param([{**hold(), "record": "metadata"}, hold()], GET, "metadata", id="one of those that hold"),
        pytest.param([allow(), {**allow(), "record": "request"}], GET, "request", id="not hidden by the first name"),
        pytest.param([{**allow(), "record": level} for level in RECORD_LEVELS], GET, "full", id="highest of allows"),
        pytest.param([{**deny(), "record": level} for level in RECORD_LEVELS], GET, "full", id="highest of denies"),
        pytest.param([allow(), {**allow(verbs=["list"]), "record": "full"}], GET, "", id="of what matches only"),
        pytest.param(
            [allow(), {**allow(), "record": "full", "when": 'operation.name == "x"'}],
            GET,
            "",
            id="of what applies only",
        ),
    ],
)
def test_record_level(rules, op, level):
    named = [*rules, allow(verbs=["watch"])]
    assert one(*named).evaluate(AGENT, op).record == level


def test_a_policy_that_observes_records_nothing_more():
    """Its own verdict says what it would."""
    policies = load(document([allow()], "a"), document([{**allow(), "record": "full"}], "b", mode="observe"))
    found = policies.evaluate(AGENT, GET)
    assert (found.record, found.observed[0].record) == ("", "full")


def test_record_level_while_all_only_observe():
    policies = one({**deny(), "record": "full"})
    assert policy.let_pass(policies.evaluate(AGENT, GET)).record == "full"


# Who


@pytest.mark.parametrize("level", ["", "metadata", "request", "full"])
def test_how_much_is_recorded_is_the_deciding_rules_to_say(level):
    more = {"record": level} if level else {}
    others = {"name": "other", "action": "allow", "match": {"verbs": ["list"]}, "record": "full"}
    deciding = {"name": "mine", "action": "allow", "match": {"verbs": ["get"]}, **more}
    assert verdict(one(deciding, others), AGENT, GET).record == level


@pytest.mark.parametrize(
    ("people", "identity", "agent"),
    [
        pytest.param(None, PERSON, True, id="nobody is people"),
        pytest.param('"platform" in identity.groups', PERSON, False, id="group"),
        pytest.param('"platform" in identity.groups', AGENT, True, id="another group"),
        pytest.param("identity.issuer == 'https://issuer'", AGENT, False, id="issuer"),
        pytest.param("identity.extra.team[0] == 'shop'", AGENT, False, id="extra"),
        pytest.param("identity.extra.team[0] == 'shop'", PERSON, True, id="a clause that errs says nothing"),
    ],
)
def test_people(people, identity, agent):
    rules = [allow(subjects=["agents"]), hold(subjects=["people"])]
    policies = one(*rules, **({"people": people} if people else {}))
    assert policies.is_agent(identity) is agent
    assert judged(policies, identity=identity)[0] is (Action.ALLOW if agent else Action.HOLD)


def test_people_of_any_policy():
    policies = load(document([], "a", people="identity.username == 'ann'"), document([allow(subjects=["people"])], "b"))
    assert judged(policies, identity=PERSON)[0] is Action.ALLOW
    assert judged(policies, identity=AGENT)[0] is Action.DENY


def test_both_subjects_are_everybody():
    policies = one(allow(subjects=["agents", "people"]), people="identity.username == 'ann'")
    assert judged(policies, identity=PERSON)[0] is Action.ALLOW
    assert judged(policies, identity=AGENT)[0] is Action.ALLOW


def test_anonymous_is_not_authenticated():
    policies = one(allow(userGroups=["system:authenticated"]))
    assert judged(policies, identity=ANONYMOUS)[0] is Action.DENY


def test_two_identities_are_never_taken_for_each_other():
    policies = one(allow(users=["u1"]))
    for _ in range(3):
        for number in range(policy.MAX_IDENTITIES + 5):  # more than are remembered, most of them dead
            expected = Action.ALLOW if number == 1 else Action.DENY
            assert policies.evaluate(Identity(f"u{number}"), GET).action is expected
    assert len(policies._askers) <= policy.MAX_IDENTITIES


# Observe


def test_an_observed_policy_decides_nothing():
    policies = load(document([allow()], "a"), document([deny()], "b", mode="observe"))
    verdict = policies.evaluate(AGENT, GET)
    assert verdict.action is Action.ALLOW
    assert [(v.policy, v.rule, v.action) for v in verdict.observed] == [("b", "r0", Action.DENY)]


def test_an_observed_allow_allows_nothing():
    verdict = one(allow(), mode="observe").evaluate(AGENT, GET)
    assert verdict.action is Action.DENY
    assert verdict.observed[0].action is Action.ALLOW


def test_an_observed_policy_that_matches_nothing_says_nothing():
    policies = load(document([allow()], "a"), document([deny(verbs=["list"])], "b", mode="observe"))
    assert policies.evaluate(AGENT, GET).observed == ()


def test_whom_an_observed_policy_calls_people_stays_an_agent_for_the_others():
    policies = load(
        document([deny(subjects=["agents"])], "a"),
        document([allow(subjects=["people"])], "b", mode="observe", people="true"),
    )
    verdict = policies.evaluate(PERSON, GET)
    assert (verdict.action, verdict.rule) == (Action.DENY, "r0")
    assert verdict.observed[0].action is Action.ALLOW


def test_let_pass():
    policies = load(document([deny()], "a"), document([hold()], "b", mode="observe"))
    verdict = policy.let_pass(policies.evaluate(AGENT, GET))
    assert verdict.action is Action.ALLOW
    assert [(v.policy, v.action) for v in verdict.observed] == [("a", Action.DENY), ("b", Action.HOLD)]
    assert all(v.observed == () for v in verdict.observed)


# Conditions


@pytest.mark.parametrize(
    ("field", "expression", "matches"),
    [
        pytest.param("when", "true", True, id="when true"),
        pytest.param("when", "false", False, id="when false"),
        pytest.param("unless", "true", False, id="unless true"),
        pytest.param("unless", "false", True, id="unless false"),
        pytest.param("when", "identity.username == 'agent' && 'bots' in identity.groups", True, id="identity"),
        pytest.param("when", "identity.agent && identity.extra.team == ['shop']", True, id="agent, extra"),
        pytest.param("when", "operation.verb == 'get' && operation.resource == 'pods'", True, id="operation"),
        pytest.param("when", "operation.impact == 'read' && operation.impacts == ['read']", True, id="impacts"),
        pytest.param("when", "!operation.uses.workload && operation.uses.secrets.size() == 0", True, id="uses nothing"),
        pytest.param("when", "request.userInfo.username == identity.username", True, id="request.userInfo"),
        pytest.param("when", "request.resource.resource == 'pods' && request.name == 'web'", True, id="request"),
        pytest.param(
            "when", "request.operation == '' && !request.dryRun && request.subResource == ''", True, id="read"
        ),
    ],
)
def test_conditions(field, expression, matches):
    for rule, other in ((deny(), Action.ALLOW), (hold(), Action.ALLOW)):
        action = Action[rule["action"].upper()]
        assert judged(one({**rule, field: expression}, allow()))[0] is (action if matches else other)
    assert judged(one({**allow(), field: expression}))[0] is (Action.ALLOW if matches else Action.DENY)


ERRS = "identity.extra.missing[0] == 'x'"


@pytest.mark.parametrize("field", ["when", "unless"])
@pytest.mark.parametrize(
    "expression",
    [
        pytest.param(ERRS, id="missing key"),
        pytest.param("identity.extra.team", id="not a bool"),
        pytest.param("identity.username.matches(identity.username + '[')", id="bad pattern"),
    ],
)
def test_what_cannot_be_evaluated_is_the_requesters_doubt(field, expression):
    condition = {field: expression}
    assert judged(one({**deny(), **condition}, allow()))[0] is Action.DENY
    assert judged(one({**hold(), **condition}, allow()))[0] is Action.HOLD
    assert judged(one({**allow(), **condition}))[0] is Action.DENY


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        pytest.param([{**deny(), "when": ERRS, "message": "No."}], "No. (its condition could not be ", id="deny"),
        pytest.param([{**hold(), "when": ERRS}], "(its condition could not be evaluated: ", id="hold"),
        pytest.param([{**allow(), "when": ERRS}], "rule p/r0 could not be evaluated: ", id="allow"),
    ],
)
def test_the_message_says_what_could_not_be_evaluated(rules, message):
    assert one(*rules).evaluate(AGENT, GET).message.startswith(message)


def test_both_conditions_must_let_it_apply():
    rule = {**allow(), "when": "operation.name == 'web'", "unless": "operation.namespace == 'shop'"}
    assert judged(one(rule))[0] is Action.DENY
    assert judged(one(rule), operation(namespace="x"))[0] is Action.ALLOW


def test_claims_can_deny():
    policies = one({**deny(), "when": "session.command == 'kubectl delete' && session.id == 's'"}, allow())
    claimed = operation(claimed_command="kubectl delete", claimed_session="s")
    assert judged(policies, claimed)[0] is Action.DENY
    assert judged(policies)[0] is Action.ALLOW


def test_a_rule_with_claims_and_an_excuse_without():
    rule = {**deny(), "when": "session.command != ''", "unless": "operation.name == 'web'"}
    assert judged(one(rule, allow()), operation(claimed_command="kubectl get"))[0] is Action.ALLOW
    assert judged(one(rule, allow()), operation(name="x", claimed_command="kubectl get"))[0] is Action.DENY


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        pytest.param(operation("create"), "CREATE", id="create"),
        pytest.param(operation("update"), "UPDATE", id="update"),
        pytest.param(operation("patch", media_type="application/merge-patch+json"), "UPDATE", id="patch"),
        pytest.param(operation("delete"), "DELETE", id="delete"),
        pytest.param(operation("deletecollection"), "DELETE", id="deletecollection"),
        pytest.param(operation("get", subresource="exec"), "CONNECT", id="exec"),
        pytest.param(operation("list"), "", id="list"),
    ],
)
def test_admission_operation(op, expected):
    assert policy.request_values(op, ASKED)["operation"] == expected


@pytest.mark.parametrize("expected", ["CREATE", "UPDATE", "DELETE"])
def test_whether_an_apply_creates_is_not_known(expected):
    # It may be either, so a rule against one of them must not be bypassed, nor one that allows it be used.
    op = operation("patch", media_type="application/apply-patch+yaml")
    condition = {"when": f"request.operation == '{expected}'"}
    assert judged(one({**deny(), **condition}, allow()), op)[0] is Action.DENY
    assert judged(one({**allow(), **condition}), op)[0] is Action.DENY


def test_declared_fields_are_the_values_fields():
    op = operation(uses=Uses(secrets=frozenset({"s"})))
    identity = ASKED
    values = {
        "identity": identity,
        "operation": policy.operation_values(op),
        "request": policy.request_values(op, identity),
    }
    for name, fields in policy.FIELDS.items():
        if name == "session":
            continue
        variable, *inner = name.split(".")
        found = values[variable]
        for step in inner:
            found = found[step]
        assert found.keys() == fields


def test_values_have_no_claim():
    op = operation(claimed_command="kubectl forged", claimed_session="forged")
    assert "forged" not in str(policy.operation_values(op)) + str(policy.request_values(op, ASKED))


def test_the_name_of_a_collection_is_not_a_name():
    assert policy.operation_values(operation("deletecollection"))["name"] == ""


def test_labels_and_uses_are_plain_values():
    op = operation(labels={"a": "b"}, uses=Uses(service_accounts=frozenset({"b", "a"}), token=True))
    policies = one({**allow(), "when": "operation.labels.a == 'b' && operation.uses.serviceAccounts == ['a', 'b']"})
    assert judged(policies, op)[0] is Action.ALLOW


# Sentences


@pytest.mark.parametrize(
    ("rules", "op", "cause", "text"),
    [
        pytest.param(
            [],
            GET,
            "policy-no-match",
            "no rule allows get pods web in namespace shop for agent; use what the policy allows, or ask the cluster's"
            " owners for a rule",
            id="nothing matched",
        ),
        pytest.param(
            [],
            Operation(RequestInfo("get", "/metrics"), "GET", frozenset({Impact.REVEAL})),
            "policy-no-match",
            "no rule allows get /metrics for agent; use what the policy allows, or ask the cluster's owners for a rule",
            id="a page",
        ),
        pytest.param(
            [{**deny(), "message": "Use Git."}], GET, "policy-deny", "rule p/r0 denies this: Use Git.", id="deny"
        ),
        pytest.param(
            [deny()],
            operation("list", "namespaces", namespace="", name=""),
            "policy-deny",
            "rule p/r0 denies this: list namespaces; ask the owners of policy p to change it",
            id="deny without a message",
        ),
        pytest.param(
            [{**hold(), "message": "It deletes."}],
            GET,
            "policy-hold",
            "rule p/r0 holds this: It deletes; it needs a human approval, which this gateway cannot ask for yet; ask"
            " oncall to run it or to change the rule",
            id="hold",
        ),
        pytest.param(
            [hold(), hold()],
            GET,
            "policy-hold",
            "rules p/r0 and p/r1 hold this: get pods web in namespace shop; it needs a human approval, which this"
            " gateway cannot ask for yet; ask oncall to run it or to change the rule",
            id="two holds",
        ),
    ],
)
def test_refusal(rules, op, cause, text):
    policies = one(*rules) if rules else DENY_ALL
    refusal = policy.refusal(policies.evaluate(AGENT, op), AGENT, op)
    assert (refusal.code, refusal.cause, refusal.message) == (403, cause, text)


def test_sentences_are_short_whatever_the_client_writes():
    op = operation(resource="r" * 5000, namespace="n" * 5000, name="w" * 5000)
    identity = Identity("u" * 5000)
    for rules in ([], [hold()], [deny()]):
        policies = one(*rules) if rules else DENY_ALL
        message = policy.refusal(policies.evaluate(identity, op), identity, op).message
        assert len(message) < 500
        assert message.split("; ")[-1].startswith(("use what", "ask "))  # the next step is not cut


def test_a_log_line_quotes_what_the_client_wrote():
    text = policy.line(Verdict(), Identity("a\nb"), operation(name="x\ny"))
    assert "\n" not in text
    assert text.startswith("deny 'get pods x\\ny in namespace shop' for 'a\\nb' by no rule")


def test_changes():
    before = load(document([allow(), deny()], "a"), document([hold()], "b"))
    after = load(document([allow(), hold()], "a"), document([deny()], "c"), document([], "d", people="true"))
    assert policy.changes(before, after) == ["~ a/r1", "- b", "- b/r0", "+ c", "+ c/r0", "+ d"]
    assert policy.changes(before, before) == []


def test_changes_tell_of_the_mode():
    assert policy.changes(one(allow()), one(allow(), mode="observe")) == ["~ p"]


# Properties: the answer to "can a policy file be added without reading the others?"

NAMES = st.sampled_from(["a", "b", "a*", "*"])
RESOURCES = ["pods", "pods/exec", "*", "namespaces", "*.apps", "deployments.apps", "pods/*", "events"]
VERBS = ["get", "list", "create", "update", "patch", "delete", "deletecollection", "*"]


def lists(values, size=2):
    return st.lists(values if isinstance(values, st.SearchStrategy) else st.sampled_from(values), min_size=1,
                    max_size=size, unique=True)  # fmt: skip


FIELDS = {
    "users": lists(["agent", "ann", "*"]),
    "subjects": lists(["agents", "people"]),
    "verbs": lists(VERBS, 4),
    "resources": lists(RESOURCES),
    "resourceNames": lists(NAMES),
    "namespaces": lists(NAMES),
    "impacts": lists(["read", "write", "delete", "mass-delete", "execute", "escalate"], 3),
    "uses": st.fixed_dictionaries({"secrets": lists(NAMES)}),
}
MATCHES = st.fixed_dictionaries({}, optional=FIELDS).filter(bool)
RULES = st.one_of(
    MATCHES.map(lambda match: allow(**match)),
    MATCHES.map(lambda match: deny(**match)),
    MATCHES.map(lambda match: hold(**match)),
)
POLICIES = st.lists(RULES, min_size=1, max_size=5)
OPERATIONS = st.builds(
    operation,
    verb=st.sampled_from([verb for verb in VERBS if verb != "*"]),
    resource=st.sampled_from(["pods", "namespaces", "events", "nodes"]),
    namespace=st.sampled_from(["", "a", "b", "c"]),
    name=st.sampled_from(["", "a", "ab", "c"]),
    subresource=st.sampled_from(["", "exec", "eviction", "status"]),
    media_type=st.sampled_from(["", "application/merge-patch+json"]),
    impacts=st.frozensets(st.sampled_from(Impact), min_size=1, max_size=2),
    uses=st.sampled_from([None, Uses(), Uses(secrets=frozenset({"a", "c"})), Uses(unknown=True)]),
)
IDENTITIES = st.sampled_from([AGENT, PERSON])
PEOPLE = {"people": "identity.username == 'ann'"}


@settings(deadline=None)
@given(POLICIES, RULES.filter(lambda rule: rule["action"] != "allow"), OPERATIONS, IDENTITIES)
def test_one_more_deny_or_hold_never_permits_more(rules, more, op, identity):
    before = verdict(load(document(rules, "a", **PEOPLE)), identity, op)
    after = verdict(load(document(rules, "a", **PEOPLE), document([more], "b")), identity, op)
    if before.rule:  # a hold where nothing matched asks a human; it permits nothing by itself
        assert after.action >= before.action
    assert after.action is not Action.ALLOW or before.action is Action.ALLOW
    assert {(h.policy, h.rule) for h in before.holds} <= {(h.policy, h.rule) for h in after.holds} or (
        after.action is Action.DENY
    )


@settings(deadline=None)
@given(POLICIES, RULES.filter(lambda rule: rule["action"] == "allow"), OPERATIONS, IDENTITIES)
def test_one_more_allow_never_lifts_a_deny_or_a_hold(rules, more, op, identity):
    before = verdict(load(document(rules, "a", **PEOPLE)), identity, op)
    after = verdict(load(document(rules, "a", **PEOPLE), document([more], "b")), identity, op)
    if before.rule:
        assert (after.action, after.rule, after.holds) == (before.action, before.rule, before.holds)


@settings(deadline=None, max_examples=50)
@given(st.lists(RULES, min_size=2, max_size=4), OPERATIONS, IDENTITIES)
def test_order_never_matters(rules, op, identity):
    named = [{"name": f"n{number}", **rule} for number, rule in enumerate(rules)]
    verdicts = set()
    for order in list(permutations(named))[:6]:
        for split in (1, len(order)):
            # One file per rule, or all in one, in this order; the policy's name goes with the rule.
            documents = [document([rule], rule["name"], **PEOPLE) for rule in order]
            files = [documents[:split], documents[split:]]
            sources = {
                f"{number}": "\n---\n".join(json.dumps(d) for d in docs).encode()
                for number, docs in enumerate(files)
                if docs
            }
            found = verdict(policyfile.parse(sources), identity, op)
            verdicts.add(replace(found, revision=""))
    assert len(verdicts) == 1


@settings(deadline=None, max_examples=200)
@given(
    POLICIES, OPERATIONS, IDENTITIES, st.sampled_from([{"name": ""}, {"namespace": ""}, {"name": "", "namespace": ""}])
)
def test_reaching_for_more_never_permits_more(rules, op, identity, dropped):
    policies = load(document(rules, "a", **PEOPLE))
    wider = replace(op, **{k: v for k, v in dropped.items() if k == "name"}, info=replace(op.info, **dropped))
    before, after = verdict(policies, identity, op), verdict(policies, identity, wider)
    assert after.action is not Action.ALLOW or before.action is Action.ALLOW
    if before.rule:
        assert after.action >= before.action


@settings(deadline=None)
@given(MATCHES, st.data(), OPERATIONS, IDENTITIES)
def test_a_narrower_list_never_matches_more(match, data, op, identity):
    field = data.draw(st.sampled_from(sorted(match.keys() - {"uses"}) or ["verbs"]))
    longer = match.get(field, ["get", "list"])
    shorter = data.draw(st.lists(st.sampled_from(longer), min_size=1, unique=True))
    wide, narrow = {**match, field: longer}, {**match, field: shorter}
    if judged(one(allow(**narrow), **PEOPLE), op, identity)[0] is Action.ALLOW:
        assert judged(one(allow(**wide), **PEOPLE), op, identity)[0] is Action.ALLOW
    if judged(one(deny(**narrow), **PEOPLE), op, identity)[1]:
        assert judged(one(deny(**wide), **PEOPLE), op, identity)[1]


@settings(deadline=None)
@given(MATCHES, OPERATIONS, IDENTITIES)
def test_what_an_allow_rule_covers_a_deny_rule_reaches(match, op, identity):
    if judged(one(allow(**match), **PEOPLE), op, identity)[0] is not Action.ALLOW:
        return
    if "uses" in match and op.uses is not None and not op.uses.secrets and not op.uses.unknown:
        return  # using nothing is inside every list, and reaches none
    assert judged(one(deny(**match), **PEOPLE), op, identity)[1]


@settings(deadline=None)
@given(POLICIES, st.lists(OPERATIONS, max_size=6), IDENTITIES)
def test_what_is_remembered_changes_nothing(rules, ops, identity):
    policies = load(document(rules, "a", **PEOPLE))
    first = [verdict(policies, identity, op) for op in ops]
    assert [verdict(policies, identity, op) for op in ops] == first
    assert [verdict(load(document(rules, "a", **PEOPLE)), identity, op) for op in ops] == first


def test_an_apply_is_not_taken_for_the_patch_before_it():
    policies = one(deny(verbs=["create"]), allow())
    merge = operation("patch", media_type="application/merge-patch+json")
    assert judged(policies, merge)[0] is Action.ALLOW
    assert judged(policies, replace(merge, media_type="application/apply-patch+yaml"))[0] is Action.DENY


def test_a_rule_on_the_other_way_to_the_same_objects_is_found():
    policies = one(deny(resources=["pods/binding"]), allow())
    assert judged(policies, operation("create", "bindings"))[0] is Action.DENY


def test_memory_is_bounded():
    policies = one(allow())
    for number in range(policy.MAX_KINDS + 10):
        policies.evaluate(AGENT, operation(resource=f"r{number}"))
    assert len(policies._enforced._kinds) <= policy.MAX_KINDS


# Open streams


def held(*rules, message=""):
    holds = tuple(Hold("p", rule, message, Approval()) for rule in rules)
    return Verdict(Action.HOLD, rules[0] if rules else "", "p", holds=holds)


@pytest.mark.parametrize(
    ("was", "now", "stays"),
    [
        pytest.param(Verdict(Action.ALLOW), Verdict(Action.ALLOW, revision="2"), True, id="allowed"),
        pytest.param(Verdict(Action.ALLOW), Verdict(), False, id="denied now"),
        pytest.param(Verdict(Action.ALLOW), held("a"), False, id="held now, and nobody said yes"),
        pytest.param(held("a"), Verdict(Action.ALLOW), True, id="approved, and allowed now"),
        pytest.param(held("a"), Verdict(), False, id="approved, and denied now"),
        pytest.param(held("a"), held("a", message="other words"), True, id="approved for this rule"),
        pytest.param(held("a", "b"), held("b"), True, id="approved for more"),
        pytest.param(held("a"), held("a", "b"), False, id="one more has to be asked"),
        pytest.param(held("a"), held("b"), False, id="another has to be asked"),
        pytest.param(held("a"), held(), False, id="a hold of nobody knows what"),
    ],
)
def test_stays_open(was, now, stays):
    assert policy.stays_open(was, now) is stays


# ----- what the gateway itself holds -----

PASSWORD = {"spec": {"template": {"spec": {"containers": [{"env": [{"name": "DB_PASSWORD", "value": "hunter2x"}]}]}}}}
BLIND = operation(
    "patch", "secrets", "shop", "db", body={"data": {"password": "eA=="}}, media_type="application/merge-patch+json"
)
ENVIRONMENT = operation("update", "deployments", group="apps", body=PASSWORD)
# Terms that somebody could satisfy; about something else.
ASKS = {**hold(verbs=["create"], resources=["limitranges"]), "approval": {"groups": ["oncall"]}}


@pytest.mark.parametrize(
    ("rules", "op", "expected"),
    [
        pytest.param([allow(), ASKS], BLIND, (Action.HOLD, "masked-field"), id="a Secret's value"),
        pytest.param([allow(), ASKS], replace(BLIND, dry_run=True), (Action.HOLD, "masked-field"), id="as a dry run"),
        pytest.param([allow(), ASKS], ENVIRONMENT, (Action.HOLD, "masked-field"), id="an environment"),
        pytest.param([allow()], BLIND, (Action.DENY, "masked-field"), id="nobody could be asked"),
        pytest.param([deny(), ASKS], BLIND, (Action.DENY, "r0"), id="denied"),
        pytest.param([ASKS], BLIND, (Action.DENY, ""), id="no rule allows it"),
        pytest.param(
            [allow(), ASKS], replace(BLIND, body={"metadata": {"labels": {}}}), (Action.ALLOW, "r0"), id="a label"
        ),
        pytest.param(
            [allow(), ASKS],
            replace(BLIND, info=replace(BLIND.info, verb="create")),
            (Action.ALLOW, "r0"),
            id="a new one",
        ),
        pytest.param([allow(), ASKS], replace(BLIND, body=None), (Action.ALLOW, "r0"), id="nothing"),
    ],
)
def test_writes_to_what_is_masked_are_held(rules, op, expected):
    assert judged(one(*rules), op) == expected


def test_people_write_what_they_see():
    policies = one(allow(), ASKS, people='identity.username == "ann"')
    assert judged(policies, BLIND, PERSON) == (Action.ALLOW, "r0")


def test_a_mask_rule_lifts_it():
    free = [{"name": "free", "match": {"resources": ["secrets"], "users": ["agent"]}, "writes": "allow"}]
    assert judged(one(allow(), ASKS, mask=free), BLIND) == (Action.ALLOW, "r0")


def test_it_stands_beside_the_rules_own_holds():
    policies = one(allow(), hold(resources=["secrets"]))
    found = verdict(policies, AGENT, BLIND)
    assert [(h.policy, h.rule) for h in found.holds] == [("p", "r1"), ("tollgate", "masked-field")]


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param([{**allow(), "record": "full"}, ASKS], id="held"),
        pytest.param([{**allow(), "record": "full"}], id="nobody to ask"),
        pytest.param([{**hold(resources=["secrets"]), "record": "full"}], id="held beside"),
    ],
)
def test_it_keeps_the_record_level(rules):
    assert verdict(one(*rules), AGENT, BLIND).record == "full"


def test_it_counts_as_reveal():
    policies = one(allow(), deny(impacts=["reveal"]))
    assert judged(policies, replace(ENVIRONMENT)) == (Action.DENY, "r1")
    assert Impact.REVEAL in policies.revealing(AGENT, ENVIRONMENT).impacts
    assert policies.revealing(AGENT, GET) is GET


def test_what_only_observes_lifts_and_names_nothing():
    policies = load(document([allow()]), document([ASKS], "q", mode="observe"))
    assert judged(policies, BLIND) == (Action.DENY, "masked-field")


def terms(**approval):
    return {**hold(verbs=["create"], resources=["limitranges"]), "approval": approval}


def test_it_asks_everybody_on_the_strictest_terms():
    policies = one(
        allow(),
        terms(
            groups=["a"],
            needed=2,
            wait="10s",
            valid="5m",
            maxTokenAge="10m",
            claims='"mfa" in claims.amr',
            cooldown="1h",
        ),
        terms(
            users=["b"], wait="20s", require="reason", claims='claims.x == "y"', owner="identity.username", maxPending=2
        ),
    )
    found = verdict(policies, AGENT, BLIND).holds[0].approval
    assert found == Approval(
        groups=("a",),
        users=("b",),
        needed=2,
        wait=10,
        valid=300,
        max_token_age=600,
        claims='("mfa" in claims.amr) && (claims.x == "y")',
        owner="identity.username",
        require_reason=True,
        max_pending=2,
        cooldown=3600,
    )
