import pytest

from addons.core import maskpolicy, policyfile
from addons.core.classify import classify
from addons.core.maskpolicy import EVERYTHING, NOTHING
from addons.core.model import Identity

HEAD = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: p}
people: '"people" in identity.groups'
mask:
"""
AGENT = Identity("robot", groups=("bots",))
PERSON = Identity("ann", groups=("people",))
SECRET = "/api/v1/namespaces/shop/secrets/db"
SECRETS = "/api/v1/namespaces/shop/secrets"
DATABASES = "/apis/example.com/v1/namespaces/shop/databases"


def policies(rules, head=HEAD):
    return policyfile.parse({"f.yaml": (head + rules).encode()})


def get(target, method="GET"):
    return classify(method, target, {}, b"")


def texts(paths):
    return [path.text for path in paths]


NEVER = "- {name: n, mask: never, match: {resources: [secrets], namespaces: [shop], resourceNames: [db]}}\n"
ALWAYS = "- {name: a, mask: always, match: {resources: [secrets]}}\n"
EXCEPT = "- {name: e, except: '\"dba\" in identity.groups', match: {resources: [secrets]}}\n"
BROKEN = "- {name: b, except: 'identity.extra.team[0] == \"x\"', match: {resources: [secrets]}}\n"
APPROVED = "- {name: g, mask: approved, match: {resources: [secrets], resourceNames: [db]}}\n"
DBA = Identity("dba", groups=("dba",))


def test_without_rules_agents_see_nothing_and_people_all():
    for found in (
        policies("- {name: x, mask: never, match: {resources: [pods]}}\n"),
        policyfile.parse(
            {"f.yaml": HEAD.replace("mask:", "rules: [{name: r, action: deny, match: {verbs: [get]}}]").encode()}
        ),
    ):
        assert found.mask_level(AGENT, get(SECRET)).builtin
        assert not found.mask_level(PERSON, get(SECRET)).masks
    assert found.mask_level(AGENT, get(SECRET)) is EVERYTHING
    assert found.mask_level(PERSON, get(SECRET)) is NOTHING


@pytest.mark.parametrize(
    ("rules", "who", "target", "masked"),
    [
        pytest.param(NEVER, AGENT, SECRET, False, id="never: that Secret is shown"),
        pytest.param(NEVER, AGENT, SECRET.replace("db", "x"), True, id="never: not another"),
        pytest.param(NEVER, AGENT, SECRETS, True, id="never: not a list that may hold others"),
        pytest.param(NEVER, AGENT, "/api/v1/secrets", True, id="never: not all namespaces"),
        pytest.param(ALWAYS, PERSON, SECRET, True, id="always: for people too"),
        pytest.param(ALWAYS, PERSON, "/api/v1/pods", False, id="always: only what it matches"),
        pytest.param(NEVER + ALWAYS, AGENT, SECRET, True, id="masking wins"),
        pytest.param(ALWAYS + NEVER, AGENT, SECRET, True, id="in either order"),
        pytest.param(EXCEPT, DBA, SECRET, False, id="except: those"),
        pytest.param(EXCEPT, AGENT, SECRET, True, id="except: nobody else"),
        pytest.param(EXCEPT, PERSON, SECRET, True, id="except: not people either"),
        pytest.param(BROKEN, PERSON, SECRET, True, id="an expression that errs shows nothing"),
        pytest.param(APPROVED, AGENT, SECRET, True, id="approved: not without a yes"),
    ],
)
def test_rules(rules, who, target, masked):
    assert policies(rules).mask_level(who, get(target)).builtin is masked


def test_break_glass():
    found = policies(APPROVED)
    assert not found.mask_level(AGENT, get(SECRET), approved=True).masks
    assert found.mask_level(AGENT, get(SECRETS), approved=True).masks
    assert policies(APPROVED + ALWAYS).mask_level(AGENT, get(SECRET), approved=True).masks
    # A yes to a request shows nothing unless a rule says so.
    assert policies(EXCEPT).mask_level(AGENT, get(SECRET), approved=True).masks


FIELDS = """
- name: f
  mask: always
  match: {resources: [databases.example.com], subjects: [agents]}
  fields: ["spec.users[*].password"]
- name: s
  mask: never
  match: {resources: [secrets]}
  fields: [data.user]
"""


def test_fields():
    found = policies(FIELDS)
    level = found.mask_level(AGENT, get(DATABASES))
    assert (level.builtin, texts(level.masked), texts(level.shown)) == (True, ["spec.users[*].password"], [])
    assert level.rules == ("p/f",)
    assert not found.mask_level(PERSON, get(DATABASES)).masks
    level = found.mask_level(AGENT, get(SECRETS))
    assert (level.builtin, texts(level.masked), texts(level.shown)) == (True, [], ["data.user"])


def test_a_field_that_is_masked_and_shown_is_masked():
    rules = FIELDS + "- {name: t, mask: always, match: {resources: [secrets]}, fields: [data.user]}\n"
    level = policies(rules).mask_level(AGENT, get(SECRETS))
    assert (texts(level.masked), level.shown) == (["data.user"], ())


def test_free_writes():
    rules = "- {name: w, writes: allow, match: {resources: [secrets], namespaces: [shop]}}\n"
    found = policies(rules)
    assert found.mask_level(AGENT, get(SECRET)).free_writes
    assert found.mask_level(AGENT, get(SECRET)).builtin
    assert not found.mask_level(AGENT, get("/api/v1/namespaces/other/secrets/db")).free_writes
    assert not policies(NEVER).mask_level(AGENT, get(SECRET)).free_writes


def test_writes_are_free_only_as_far_as_a_rule_surely_goes():
    found = policies("- {name: w, writes: allow, match: {resources: [secrets], verbs: [patch]}}\n")
    for kind, free in (("merge-patch+json", True), ("apply-patch+yaml", False)):  # an apply also creates
        request = classify("PATCH", SECRET, {"Content-Type": f"application/{kind}"}, b"{}")
        assert found.mask_level(AGENT, request).free_writes is free


def test_a_field_that_is_nobodys_secret_is_none_in_records():
    found = policies("- {name: n, mask: never, match: {resources: [databases.example.com]}, fields: [spec.size]}\n")
    assert found.record_level(get(DATABASES)).masked == ()


def test_records_are_masked_whoever_asked():
    found = policies(FIELDS + NEVER)
    for target in (SECRET, SECRETS, DATABASES, "/api/v1/pods"):
        level = found.record_level(get(target))
        assert level.builtin
        assert not level.shown
    assert texts(found.record_level(get(DATABASES)).masked) == ["spec.users[*].password"]
    assert policies(NEVER).record_level(get(SECRET)).builtin


def test_a_policy_that_observes_decides_nothing_but_records():
    head = HEAD.replace("people", "mode: observe\npeople")
    found = policies(NEVER + FIELDS, head)
    assert found.mask_level(AGENT, get(SECRET)).builtin
    assert not found.mask_level(AGENT, get(DATABASES)).masked
    assert texts(found.record_level(get(DATABASES)).masked) == ["spec.users[*].password"]


def test_a_watch_and_a_collection_delete_are_reads_of_all():
    found = policies(NEVER)
    for request in (get(f"{SECRETS}?watch=true"), get(SECRETS, "DELETE")):
        assert found.mask_level(AGENT, request).builtin


def test_a_subresource_is_masked_with_its_resource():
    assert policies(FIELDS).mask_level(AGENT, get(f"{DATABASES}/main/status")).masked


def test_defaults():
    assert EVERYTHING.masks
    assert not NOTHING.masks
    assert maskpolicy.MaskLevel(builtin=False, masked=EVERYTHING.masked).masks is False
