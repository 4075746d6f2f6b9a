import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addons.core import admission, policyfile
from addons.core.admission import NOT_FETCHED, NeedsObjects, Objects
from addons.core.classify import classify
from addons.core.model import Action, Identity

AGENT = Identity("agent", groups=("bots",))
DEPLOYMENT = "/apis/apps/v1/namespaces/shop/deployments"
MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"
APPLY, JSON_PATCH = "application/apply-patch+yaml", "application/json-patch+json"
IMAGE = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "x"}]}}}}
CREATE = {"verbs": ["create", "update", "patch"], "resources": ["deployments.apps"]}


def request(method, target, body=None, media=None):
    content = b"" if body is None else json.dumps(body).encode()
    return classify(method, target, {"content-type": media or "application/json"} if content else {}, content)


def policies(*rules, **more):
    named = [
        {"name": f"r{n}", **({"approval": {"groups": ["oncall"]}} if rule["action"] == "hold" else {}), **rule}
        for n, rule in enumerate(rules)
    ]
    head = {"apiVersion": policyfile.API_VERSION, "kind": "Policy", "metadata": {"name": "p"}, **more}
    return policyfile.parse({"p.yaml": json.dumps({**head, "rules": named}).encode()})


def needed(*rules, op, **more):
    """What is asked for before there is a verdict; empty when there is one."""
    try:
        policies(*rules, **more).evaluate(AGENT, op)
    except NeedsObjects as e:
        return e.names
    return frozenset()


ALLOW = {"action": "allow", "match": {"verbs": ["*"]}}
POST = request("POST", DEPLOYMENT, {"metadata": {"name": "web"}, **IMAGE})
SCALE = request("PATCH", f"{DEPLOYMENT}/web/scale", {"spec": {"replicas": 0}}, MERGE)
SET_IMAGE = request("PATCH", f"{DEPLOYMENT}/web", IMAGE, STRATEGIC)
DELETE = request("DELETE", f"{DEPLOYMENT}/web")


def rule(action, match=None, **more):
    return {"action": action, "match": match or {"resources": ["deployments.apps"]}, **more}


# When something is asked for


@pytest.mark.parametrize(
    ("rules", "op", "names"),
    [
        pytest.param([ALLOW], POST, set(), id="no rule looks"),
        pytest.param([ALLOW, rule("deny", when="object != null")], POST, {"object"}, id="a deny rule looks"),
        pytest.param([ALLOW, rule("hold", when="oldObject != null")], SCALE, {"oldObject"}, id="a hold rule looks"),
        pytest.param([rule("allow", CREATE, when="object != null")], POST, {"object"}, id="an allow rule looks"),
        pytest.param(
            [ALLOW, rule("deny", when="object != oldObject && namespaceObject != null")],
            SCALE,
            {"object", "oldObject", "namespaceObject"},
            id="at all three",
        ),
        pytest.param([rule("deny", when="object != null")], POST, set(), id="denied anyway, for nothing allows it"),
        pytest.param(
            [ALLOW, rule("deny"), rule("deny", when="object != null")], POST, set(), id="denied anyway, by another rule"
        ),
        pytest.param([rule("hold", when="object != null")], POST, {"object"}, id="held, or denied for no match"),
        pytest.param(
            [ALLOW, rule("hold"), rule("hold", when="object != null")], POST, {"object"}, id="every hold is to be known"
        ),
        pytest.param(
            [rule("hold"), rule("allow", CREATE, when="object != null")],
            POST,
            set(),
            id="held, whoever allows it",
        ),
        pytest.param([ALLOW, rule("allow", CREATE, when="object != null")], POST, set(), id="allowed anyway"),
        pytest.param(
            [ALLOW, rule("deny", {"resources": ["pods"]}, when="object != null")], POST, set(), id="another resource"
        ),
        pytest.param(
            [ALLOW, rule("deny", when="operation.name == 'other'", unless="object == null")],
            POST,
            set(),
            id="a condition that does without says no",
        ),
        pytest.param(
            [ALLOW, rule("deny", when="object != null", unless="operation.name == 'web'")],
            POST,
            set(),
            id="an excuse that does without says yes",
        ),
        pytest.param(
            [ALLOW, rule("deny", when="object != null")],
            request("GET", f"{DEPLOYMENT}/web"),
            set(),
            id="a read has no object",
        ),
        pytest.param(
            [ALLOW, rule("deny", {"resources": ["pods"]}, when="object.spec.hostNetwork")],
            request("POST", "/api/v1/namespaces/shop/pods/p/exec?command=id"),
            set(),
            id="an exec has no object",
        ),
        pytest.param(
            [ALLOW, rule("deny", {"resources": ["pods"]}, when="object.spec.hostNetwork")],
            request("POST", "/api/v1/namespaces/shop/pods/p/eviction", {"kind": "Eviction"}),
            set(),
            id="an eviction is no pod",
        ),
        pytest.param(
            [ALLOW, rule("deny", when="namespaceObject != null")],
            request("GET", f"{DEPLOYMENT}/web"),
            {"namespaceObject"},
            id="a read has a namespace",
        ),
    ],
)
def test_asked_for(rules, op, names):
    assert needed(*rules, op=op) == names


USES = {"uses": {"serviceAccountsNotIn": ["default"]}}


@pytest.mark.parametrize(
    ("rules", "op", "names"),
    [
        pytest.param([ALLOW, rule("hold", USES)], SET_IMAGE, {"object"}, id="what a patch hides"),
        pytest.param(
            [rule("allow", {"verbs": ["patch"], "uses": {"secrets": ["a"]}})], SET_IMAGE, {"object"}, id="allow"
        ),
        pytest.param([ALLOW, rule("deny", when="operation.uses.token")], SET_IMAGE, {"object"}, id="a condition"),
        pytest.param(
            [ALLOW, rule("deny", USES, when="size(operation.uses.host) > 0")],
            SET_IMAGE,
            {"object"},
            id="no condition is asked before it is known",
        ),
        pytest.param([ALLOW, rule("hold", USES)], POST, set(), id="a whole object says it all"),
        pytest.param([ALLOW, rule("hold", USES)], SCALE, set(), id="scale sets no template"),
        pytest.param(
            [ALLOW, rule("hold", {"users": ["other"], **USES})], SET_IMAGE, set(), id="a rule on somebody else"
        ),
        pytest.param(
            [ALLOW, rule("hold", {"namespaces": ["other"], **USES})], SET_IMAGE, set(), id="a rule on another place"
        ),
    ],
)
def test_asked_for_what_a_patch_hides(rules, op, names):
    assert needed(*rules, op=op) == names


def test_a_patch_is_judged_by_what_it_leaves_behind():
    held = policies(ALLOW, rule("hold", USES))
    for account, action in (("default", Action.ALLOW), ("deployer", Action.HOLD)):
        result = {"spec": {"template": {"spec": {"serviceAccountName": account, "containers": []}}}}
        assert held.evaluate(AGENT, SET_IMAGE, Objects({"object": result})).action is action


POD = "/api/v1/namespaces/shop/pods/web-1"


@pytest.mark.parametrize(
    ("body", "media", "host"),
    [
        pytest.param(IMAGE, STRATEGIC, frozenset(), id="the scheduler put it there"),
        pytest.param(
            {"spec": {"nodeName": "n1"}}, "application/apply-patch+yaml", {"nodeName"}, id="it says so itself"
        ),
    ],
)
def test_whose_choice_the_node_of_a_pod_is(body, media, host):
    patched = request("PATCH", POD, {"spec": {"activeDeadlineSeconds": 5}, **body}, media)
    shown = admission.revealed(patched, Objects({"object": {"spec": {"nodeName": "n1", "containers": []}}}))
    assert (shown.uses.host, shown.uses.unknown) == (host, False)


def test_what_cannot_be_seen_stays_hidden():
    verdict = policies(ALLOW, rule("hold", USES)).evaluate(AGENT, SET_IMAGE, Objects(troubles={"object": "too late"}))
    assert verdict.action is Action.HOLD
    assert "object could not be fetched: too late" in verdict.message


# What they decide

HALF = rule("deny", CREATE, when="object.spec.replicas * 2 < oldObject.spec.replicas", message="Slowly.")
KEEP = rule("deny", when="'team' in oldObject.metadata.labels", unless="'team' in object.metadata.labels")


@pytest.mark.parametrize(
    ("rules", "op", "values", "action"),
    [
        pytest.param(
            [ALLOW, HALF], SCALE, [{"spec": {"replicas": 1}}, {"spec": {"replicas": 9}}], Action.DENY, id="less"
        ),
        pytest.param(
            [ALLOW, HALF], SCALE, [{"spec": {"replicas": 5}}, {"spec": {"replicas": 9}}], Action.ALLOW, id="ok"
        ),
        pytest.param(
            [ALLOW, KEEP],
            SET_IMAGE,
            [{"metadata": {"labels": {}}}, {"metadata": {"labels": {"team": "a"}}}],
            Action.DENY,
            id="a label goes",
        ),
        pytest.param(
            [ALLOW, KEEP],
            SET_IMAGE,
            [{"metadata": {"labels": {"team": "b"}}}, {"metadata": {"labels": {"team": "a"}}}],
            Action.ALLOW,
            id="a label stays",
        ),
        pytest.param(
            [ALLOW, KEEP], DELETE, [None, {"metadata": {"labels": {"team": "a"}}}], Action.DENY, id="an error"
        ),
        pytest.param(
            [ALLOW, rule("deny", when="object == null && oldObject.metadata.name == 'web'")],
            DELETE,
            [None, {"metadata": {"name": "web"}}],
            Action.DENY,
            id="null on a delete",
        ),
        pytest.param(
            [ALLOW, rule("deny", when="oldObject == null")], POST, [{}, None], Action.DENY, id="null on a create"
        ),
        pytest.param(
            [ALLOW, rule("deny", when="namespaceObject.metadata.labels.env == 'prod'")],
            POST,
            [{}, None, {"metadata": {"labels": {"env": "prod"}}}],
            Action.DENY,
            id="its namespace",
        ),
    ],
)
def test_decided(rules, op, values, action):
    objects = Objects(dict(zip(admission.VARIABLES, values, strict=False)))
    assert policies(*rules).evaluate(AGENT, op, objects).action is action


@pytest.mark.parametrize(
    ("action", "rules", "expected"),
    [
        pytest.param("deny", [ALLOW], Action.DENY, id="counts for a deny"),
        pytest.param("hold", [ALLOW], Action.HOLD, id="counts for a hold"),
        pytest.param("allow", [], Action.DENY, id="does not count for an allow"),
    ],
)
def test_what_cannot_be_fetched_is_the_requesters_doubt(action, rules, expected):
    looks = rule(action, CREATE, when="object.spec.replicas > 1")
    verdict = policies(*rules, looks).evaluate(AGENT, POST, Objects(troubles={"object": "the API server is slow"}))
    assert verdict.action is expected
    assert "could not be evaluated: object could not be fetched: the API server is slow" in verdict.message


def test_a_loop_over_a_huge_list_is_bounded():
    looks = policies(ALLOW, rule("deny", when="object.items.all(x, x > 0)"))
    verdict = looks.evaluate(AGENT, POST, Objects({"object": {"items": [1] * 10_001}}))
    assert verdict.action is Action.DENY
    assert "looked at more than 10000 items, which is the limit" in verdict.message


def test_a_name_that_nobody_fetched_is_not_null():
    verdict = policies(ALLOW, rule("deny", when="oldObject != null")).evaluate(AGENT, SET_IMAGE, NOT_FETCHED)
    assert verdict.action is Action.DENY


@pytest.mark.parametrize(("created", "action"), [(True, Action.DENY), (False, Action.ALLOW), (None, Action.DENY)])
def test_with_the_object_it_is_known_whether_an_apply_creates(created, action):
    looks = policies(ALLOW, rule("deny", when="object != null && request.operation == 'CREATE'"))
    op = request("PATCH", f"{DEPLOYMENT}/web", {"metadata": {"name": "web"}}, APPLY)
    assert looks.evaluate(AGENT, op, Objects({"object": {}}, created=created)).action is action


def test_an_object_with_a_nul_cannot_be_looked_at():
    looks = policies(ALLOW, rule("deny", when="object.a == 'evil'"))
    assert looks.evaluate(AGENT, POST, Objects({"object": {"a": "good\0evil"}})).action is Action.DENY


def test_claims_and_objects_in_one_condition():
    looks = policies(ALLOW, rule("deny", when="session.command == '' && object.a == 1", unless="oldObject != null"))
    assert looks.evaluate(AGENT, POST, Objects({"object": {"a": 1}, "oldObject": None})).action is Action.DENY


# Policies that observe


def test_a_policy_that_observes_asks_but_binds_nobody():
    observed = {"mode": "observe", "metadata": {"name": "o"}}
    one = policies(rule("deny", when="object != null"), **observed)
    other = policies(ALLOW)
    both = type(one)([*one.policies, *other.policies], "r")
    with pytest.raises(NeedsObjects) as e:
        both.evaluate(AGENT, POST)
    assert (e.value.names, e.value.binding) == ({"object"}, frozenset())
    verdict = both.evaluate(AGENT, POST, Objects({"object": {}}))
    assert (verdict.action, [v.action for v in verdict.observed]) == (Action.ALLOW, [Action.DENY])


def test_nothing_is_fetched_to_observe_what_is_denied():
    one = policies(rule("deny", when="object != null"), mode="observe", metadata={"name": "o"})
    verdict = type(one)([*one.policies, *policies(rule("deny")).policies], "r").evaluate(AGENT, POST)
    assert (verdict.action, [v.action for v in verdict.observed]) == (Action.DENY, [Action.DENY])


# How they are had


def pod(path="", method="POST", body=None, media=None):
    return request(method, f"/api/v1/namespaces/shop/pods{path}", body or {"metadata": {}}, media)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        pytest.param(POST, (True, None), id="create"),
        pytest.param(SET_IMAGE, (True, True), id="patch"),
        pytest.param(SCALE, (True, True), id="scale"),
        pytest.param(request("PUT", f"{DEPLOYMENT}/web", {"metadata": {}, **IMAGE}), (True, True), id="replace"),
        pytest.param(DELETE, (None, True), id="delete"),
        pytest.param(request("DELETE", DEPLOYMENT), (None, "it is about a whole collection"), id="a collection"),
        pytest.param(
            request("POST", "/api/v1/namespaces/shop/serviceaccounts/x/token?dryRun=All", {"spec": {"a": 1}}),
            (None, None),
            id="a dry run of a token returns one that works",
        ),
        pytest.param(pod("/p/eviction", body={"kind": "Eviction"}), (None, None), id="an eviction"),
        pytest.param(pod("/p/exec?command=id"), (None, None), id="exec"),
        pytest.param(
            request("POST", "/apis/example.com/v1/namespaces/shop/widgets", {"metadata": {"name": "w"}}),
            ("a dry run of it is not known to be one", None),
            id="another API server may carry a dry run out",
        ),
        pytest.param(
            request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", {"spec": {}}),
            ("a dry run of it is not known to be one", None),
            id="a review",
        ),
        pytest.param(
            pod("/p/resize", "PATCH", {"spec": {}}, MERGE),
            ("a dry run of it is not known to be one", "this subresource cannot be read"),
            id="a subresource nobody tried",
        ),
        pytest.param(request("GET", f"{DEPLOYMENT}/web"), (None, None), id="a read"),
    ],
)
def test_plan(op, expected):
    made = admission.plan(op, frozenset({"object", "oldObject"}))
    for name, does, wanted in (("object", made.preview, expected[0]), ("oldObject", made.live, expected[1])):
        assert does is (wanted is True)
        if isinstance(wanted, str):
            assert made.troubles == {**made.troubles, name: wanted}
        elif wanted is not True:
            assert made.values[name] == wanted


SECRET = "/api/v1/namespaces/shop/secrets/db"


@pytest.mark.parametrize(
    ("media", "body", "previewed"),
    [
        pytest.param(MERGE, {"metadata": {"labels": {"a": "b"}}}, True, id="a merge patch asks nothing"),
        pytest.param(JSON_PATCH, [{"op": "test", "path": "/data/a", "value": "b"}], False, id="a test is a guess"),
        pytest.param(APPLY, {"metadata": {"name": "db"}, "data": {"a": "b"}}, False, id="an apply is a guess"),
    ],
)
def test_no_preview_answers_a_guess_about_a_secret(media, body, previewed):
    assert admission.plan(request("PATCH", SECRET, body, media), admission.OBJECT).preview is previewed


@pytest.mark.parametrize(
    ("target", "namespace"),
    [
        pytest.param(DEPLOYMENT, "shop", id="namespaced"),
        pytest.param("/api/v1/nodes/n1", "", id="cluster-wide"),
        pytest.param("/api/v1/namespaces/shop", "", id="a Namespace is in none"),
        pytest.param("/apis/apps/v1/deployments", "", id="all of them"),
    ],
)
def test_namespace(target, namespace):
    assert admission.plan(request("GET", target), frozenset({"namespaceObject"})).namespace == namespace


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param("/a", "/a?dryRun=All", id="none"),
        pytest.param("/a?fieldManager=x&force=true", "/a?dryRun=All&fieldManager=x&force=true", id="the others stay"),
        pytest.param("/a?dryRun=All", "/a?dryRun=All", id="once"),
        pytest.param("/a?dryRun=&x=1", "/a?dryRun=All&x=1", id="Go would take the empty one"),
        pytest.param("/a?dry%52un=None", "/a?dryRun=All", id="escaped"),
        pytest.param("/a?dryrun=1", "/a?dryRun=All&dryrun=1", id="another key"),
    ],
)
def test_the_dry_run_is_one(target, expected):
    assert admission.dry_run_target(target) == expected


def test_nothing_fetched_is_shown():
    secret = {"data": "aHVudGVyMg"}
    assert "aHVudGVyMg" not in repr(Objects({"object": secret}))
    assert "aHVudGVyMg" not in repr(admission.Plan(values={"object": secret}))
    assert "aHVudGVyMg" not in repr(admission.ServerRefusal(422, b"aHVudGVyMg"))


# Properties: fetching only when it matters changes no verdict

MATCHES = st.sampled_from(
    [{"verbs": ["*"]}, {"verbs": ["patch", "update", "create"]}, {"resources": ["deployments.apps"]}, USES,
     {"namespaces": ["other"]}, {"verbs": ["patch"], "uses": {"serviceAccounts": ["default"]}}]
)  # fmt: skip
CONDITIONS = st.sampled_from(
    ["object.a == 1", "object == null", "oldObject == null", "oldObject.a == object.a", "namespaceObject.a == 1",
     "operation.uses.unknown", "size(operation.uses.host) == 0", "operation.verb == 'patch'", "true", "1 / 0 == 1"]
)  # fmt: skip


@st.composite
def rules(draw):
    made = {"action": draw(st.sampled_from(["allow", "hold", "deny"])), "match": draw(MATCHES)}
    if made["action"] == "allow" and "serviceAccountsNotIn" in made["match"].get("uses", {}):
        made["match"] = {"verbs": ["*"]}
    for field in ("when", "unless"):
        if draw(st.booleans()):
            made[field] = draw(CONDITIONS)
    return made


TEMPLATES = [
    {"spec": {"template": {"spec": {"serviceAccountName": name, "containers": []}}}} for name in ("default", "x")
]
THINGS = st.sampled_from([None, {"a": 1}, {"a": 2}, *({"a": 1, **template} for template in TEMPLATES)])


@settings(deadline=None, max_examples=200)
@given(
    st.lists(rules(), min_size=1, max_size=5),
    st.sampled_from([POST, SET_IMAGE, SCALE, DELETE, request("GET", f"{DEPLOYMENT}/web")]),
    st.tuples(THINGS, THINGS, THINGS),
)
def test_asking_late_and_asking_first_are_one_verdict(made, op, things):
    world = dict(zip(admission.VARIABLES, things, strict=True))
    try:
        loaded = policies(*made)
    except policyfile.PolicyError:
        return  # a rule on objects that could never match
    early = loaded.evaluate(AGENT, op, Objects(world))
    try:
        late = loaded.evaluate(AGENT, op)
    except NeedsObjects as e:
        late = loaded.evaluate(AGENT, op, Objects({name: world[name] for name in e.names}))
    # Of several rules that allow, or that deny, another one may be named.
    assert late.action is early.action
    assert [hold.rule for hold in late.holds] == [hold.rule for hold in early.holds]
