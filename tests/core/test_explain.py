import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addons.core import admission, explain, kubectl, matching, policyfile
from addons.core.classify import classify
from addons.core.model import Action, Approval, Identity
from tests.core.test_admission import ALLOW, TEMPLATES, USES, policies, rule

AGENT = Identity("ann", groups=("dev",))


def operation(line):
    asked = kubectl.request(line.split())
    headers = {"content-type": asked.content_type} if asked.content_type else {}
    return classify(asked.method, asked.target, headers, asked.body)


GET = operation("get pod web-1 -n shop")
PATCH = operation('patch deploy web -n shop -p {"spec":{"template":{"spec":{}}}}')


@pytest.mark.parametrize(
    ("made", "op", "matches", "why"),
    [
        pytest.param(rule("deny", {"verbs": ["get"]}), GET, True, "", id="matches"),
        pytest.param(rule("deny", {"verbs": ["list"]}), GET, False, "verbs: get is not in [list]", id="verb"),
        pytest.param(rule("deny", {"users": ["bob"]}), GET, False, "users: 'ann' is none of [bob]", id="user"),
        pytest.param(
            rule("deny", {"userGroups": ["x"]}), GET, False, "userGroups: no group of 'ann' is in [x]", id="group"
        ),
        pytest.param(rule("deny", {"subjects": ["people"]}), GET, False, "subjects: is for people", id="subject"),
        pytest.param(
            rule("deny", {"resources": ["*.apps"]}), GET, False, "resources: pods is none of [*.apps]", id="resource"
        ),
        pytest.param(
            rule("deny", {"namespaces": ["b*"]}), GET, False, "namespaces: shop is not in [b*]", id="namespace"
        ),
        pytest.param(
            rule("allow", {"verbs": ["list"], "namespaces": ["a"]}),
            operation("list pods -A"),
            False,
            "namespaces: no namespace, so all of them, is not in [a]",
            id="all namespaces",
        ),
        pytest.param(
            rule("deny", {"resourceNames": ["db"]}), GET, False, "resourceNames: web-1 is not in [db]", id="name"
        ),
        pytest.param(
            rule("deny", {"impacts": ["write"]}), GET, False, "impacts: read: none is in [write]", id="impact"
        ),
        pytest.param(
            rule("deny", {"nonResourceURLs": ["/x"]}),
            operation("get --raw /version"),
            False,
            "nonResourceURLs: /version is none of [/x]",
            id="page",
        ),
        pytest.param(
            rule("deny", {"commands": ["kubectl x"]}),
            GET,
            False,
            "commands: no command is not in [kubectl x]",
            id="command",
        ),
        pytest.param(rule("deny", USES), GET, False, "uses: the request has no pod template", id="uses"),
        pytest.param(rule("hold", USES), PATCH, True, "hangs on object", id="what a patch hides"),
        pytest.param(
            rule("deny", {"verbs": ["get"]}, when="operation.name == 'x'"), GET, False, "when: is not true", id="when"
        ),
        pytest.param(
            rule("deny", {"verbs": ["get"]}, unless="operation.name == 'web-1'"),
            GET,
            False,
            "unless: is true",
            id="unless",
        ),
        pytest.param(
            rule("deny", {"verbs": ["*"]}, when="object != null"),
            GET,
            False,
            "looks at an object, and this request changes none",
            id="no object",
        ),
        pytest.param(
            rule("deny", when="object == oldObject"), PATCH, True, "hangs on object and oldObject", id="objects"
        ),
        pytest.param(
            rule("allow", {"verbs": ["get"]}, when="1 / 0 == 1"),
            GET,
            False,
            "its condition could not be evaluated: divide by zero",
            id="an error",
        ),
    ],
)
def test_why(made, op, matches, why):
    [line] = explain.explain(policies(made), AGENT, op)
    assert (line.matches, line.why) == (matches, why)


@pytest.mark.parametrize(
    ("approval", "said"),
    [
        pytest.param(
            Approval(groups=("a", "b"), users=("c",), needed=2, wait=0, valid=5400),
            ["approved by 2 of group a or group b or user c, who logged in at most 15m before; waits 0s, valid 1h30m"],
            id="the usual terms",
        ),
        pytest.param(
            Approval(
                users=("c",),
                max_token_age=61,
                claims='"mfa" in\n claims.amr',
                owner="identity.uid",
                require_reason=True,
                max_pending=1,
                cooldown=0,
                drift=3,
                retry=True,
                grant_for=1800,
                grant_scope="rule",
            ),
            [
                "approved by 1 of user c, who logged in at most 1m1s before; waits 25s, valid 15m",
                'the approver\'s claims: "mfa" in claims.amr',
                "by somebody who acts for another owner: identity.uid",
                "a decision says why",
                "at most 1 open questions of one requester",
                "after a no, not asked again for 0s",
                "a namespace may grow by 3 objects before it is deleted",
                "undecided is 429, and clients try again",
                "a yes opens the rule for 30m, everywhere",
            ],
            id="all others",
        ),
    ],
)
def test_approval_words(approval, said):
    assert explain.approval_words(approval) == said


def test_approvals_themselves_are_never_held():
    patch = operation("patch approval apr-x -p {}")
    [line] = explain.explain(policies(rule("hold", {"impacts": ["write"]})), AGENT, patch)
    assert (line.matches, line.why) == (False, "approvals themselves are never held")


def test_every_field_is_explained():
    assert set(explain._ORDER) == set(matching.Match.__dataclass_fields__)


def test_deny_comes_first():
    lines = explain.explain(policies(ALLOW, rule("hold"), rule("deny")), AGENT, GET)
    assert [line.rule.action for line in lines] == [Action.DENY, Action.HOLD, Action.ALLOW]


WORDS = st.sampled_from(["*", "shop", "s*", "web-1", "other"])
LISTS = st.lists(WORDS, min_size=1, max_size=2, unique=True)
MATCHES = st.fixed_dictionaries(
    {},
    optional={
        "verbs": st.lists(st.sampled_from(["get", "list", "patch", "delete", "*"]), min_size=1, unique=True),
        "resources": st.lists(st.sampled_from(["pods", "*", "deployments.apps"]), min_size=1, unique=True),
        "namespaces": LISTS,
        "resourceNames": LISTS,
        "impacts": st.lists(st.sampled_from(["read", "write", "delete"]), min_size=1, unique=True),
        "uses": st.fixed_dictionaries({"serviceAccounts": LISTS}),
    },
).filter(bool)
OPERATIONS = st.sampled_from(
    [GET, PATCH, operation("list pods -A"), operation("delete deploy web -n shop"), operation("get --raw /version")]
)
CONDITIONS = st.sampled_from([None, "object != null", "operation.name == 'web'", "1 / 0 == 1"])


@settings(deadline=None, max_examples=200)
@given(MATCHES, st.sampled_from(["allow", "hold", "deny"]), CONDITIONS, OPERATIONS, st.sampled_from(TEMPLATES))
def test_what_is_explained_is_what_is_decided(match, action, when, op, template):
    made = {"action": action, "match": match, **({"when": when} if when else {})}
    try:
        loaded = policies(made)
    except policyfile.PolicyError:
        return  # a rule on objects that could never match
    world = admission.Objects({"object": template, "oldObject": template, "namespaceObject": None})
    [line] = explain.explain(loaded, AGENT, op, world)
    assert line.matches == (loaded.evaluate(AGENT, op, world).rule != "")


# Masks


def masks(*rules, people=""):
    text = "\n".join(f"- {{name: m{number}, {rule}}}" for number, rule in enumerate(rules))
    head = "apiVersion: tollgate.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\n"
    some = "rules:\n- {name: a, action: allow, match: {verbs: [get]}}\n"
    who = f"people: {people}\n" if people else ""
    return policyfile.parse({"p.yaml": f"{head}{who}{some}{'mask:' if rules else ''}\n{text}\n".encode()})


SECRET = operation("get secret db -n shop")
SECRETS = operation("get secrets -n shop")
NEVER = "match: {resources: [secrets], namespaces: [shop], resourceNames: [db]}, mask: never"
FIELD = 'match: {resources: [databases.example.com]}, fields: ["spec.users[*].password"], mask: always'


@pytest.mark.parametrize(
    ("made", "op", "matches", "why"),
    [
        pytest.param(NEVER, SECRET, True, "", id="matches"),
        pytest.param(
            NEVER,
            SECRETS,
            True,
            "shows nothing, resourceNames: no name, so any of them, is not in [db]",
            id="what is matched in doubt is not shown",
        ),
        pytest.param(
            NEVER.replace("never", "always"), SECRETS, True, "", id="what is matched in doubt is masked, though"
        ),
        pytest.param(NEVER, GET, False, "resources: pods is none of [secrets]", id="another resource"),
        pytest.param(
            "match: {resources: [secrets], subjects: [people]}, mask: always",
            SECRET,
            False,
            "subjects: is for people",
            id="people's",
        ),
    ],
)
def test_mask_rules(made, op, matches, why):
    [line] = explain.explain_masks(masks(made), AGENT, op)
    assert (line.matches, line.why) == (matches, why)


WHOLE = "what is secret in the answer is masked"


@pytest.mark.parametrize(
    ("rules", "line", "said"),
    [
        pytest.param([], "get secret db -n shop", [WHOLE], id="an agent, without a rule"),
        pytest.param([], "get --raw /version", ["nothing secret is in the answer, so none of it is masked"], id="page"),
        pytest.param(
            [],
            "get --raw /api/v1/namespaces/shop/secrets?watch=true",
            ["what is secret is masked, event by event"],
            id="a watch",
        ),
        pytest.param(
            [],
            "get --raw /api/v1/namespaces/shop/pods/web-1/log",
            ["what looks like a secret in the text is masked, as far as it is known"],
            id="a log",
        ),
        pytest.param(
            [],
            "get --raw /api/v1/namespaces/shop/pods/web-1/exec?command=sh",
            ["what looks like a secret in the output is masked, as far as it is known"],
            id="exec",
        ),
        pytest.param([NEVER], "get secret db -n shop", ["nothing is masked"], id="shown"),
        pytest.param([NEVER], "get secrets -n shop", [WHOLE], id="shown elsewhere"),
        pytest.param(
            [NEVER.replace("never", "approved")],
            "get secret db -n shop",
            [WHOLE, "with an approval: nothing is masked"],
            id="break-glass",
        ),
        pytest.param(
            [FIELD],
            "GET /apis/example.com/v1/namespaces/shop/databases/main",
            [f"{WHOLE}, also spec.users[*].password"],
            id="a field",
        ),
        pytest.param(
            ["match: {resources: [secrets]}, fields: [data.user], mask: never"],
            "get secret db -n shop",
            [f"{WHOLE}, but not data.user"],
            id="a field that is shown",
        ),
        pytest.param(
            ["match: {resources: [secrets]}, writes: allow"],
            'patch secret db -n shop -p {"stringData":{"a":"b"}}',
            [WHOLE, "masked fields may be set without asking"],
            id="free writes",
        ),
    ],
)
def test_what_of_the_answer_is_masked(rules, line, said):
    assert explain.masking_words(masks(*rules), AGENT, operation(line)) == said


def test_what_is_masked_for_people():
    some = masks(FIELD, people="'true'")
    database = operation("GET /apis/example.com/v1/namespaces/shop/databases/main")
    assert explain.masking_words(some, AGENT, database) == ["masked are spec.users[*].password"]
    assert explain.masking_words(some, AGENT, SECRET) == ["nothing is masked"]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('patch secret db -n shop --type=json -p [{"op":"test","path":"/data/a","value":"x"}]', "a JSON patch test of"),
        ('patch secret db -n shop -p {"data":{"a":"**masked:1a2b3c4d**"}}', "data.a holds a masked value"),
        ("get --raw /api/v1/namespaces/shop/pods/web-1/portforward", "a port-forward cannot be masked"),
    ],
)
def test_what_masking_refuses(line, cause):
    [said] = explain.masking_words(masks(), AGENT, operation(line))
    assert said.startswith("refused: mask: ")
    assert cause in said
