import pytest

from addons.core import policyfile
from addons.core.maskpolicy import Mask
from addons.core.policyfile import PolicyError

HEAD = "apiVersion: tollgate.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\n"


def parse(text):
    return policyfile.parse({"f.yaml": (HEAD + text).encode()}).policies[0].masks


def test_every_field():
    (rule,) = parse(
        "mask:\n- name: r\n  match: {resources: [databases.example.com]}\n"
        "  fields: [\"spec.users[*].password\", \"data['a.b']\"]\n  except: '!identity.agent'\n  writes: allow\n"
    )
    assert (rule.full_name, rule.mask, rule.free_writes, rule.place) == ("p/r", Mask.EXCEPT, True, "f.yaml:5")
    assert [path.steps for path in rule.fields] == [("spec", "users", None, "password"), ("data", "a.b")]
    assert rule.exempt is not None
    assert len(rule.digest) == 12


@pytest.mark.parametrize("word", ["always", "never", "approved"])
def test_words(word):
    (rule,) = parse(f"mask: [{{name: r, match: {{resources: [secrets]}}, mask: {word}}}]\n")
    assert rule.mask is Mask(word)


def rule(fields):
    return f"mask:\n- {{name: r, {fields}}}\n"


MATCH = "match: {resources: [secrets]}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("mask: []\n", "f.yaml:4: mask: is empty", id="empty"),
        pytest.param("mask: {a: b}\n", "mask: is a map, not a list", id="a map"),
        pytest.param(rule(f"{MATCH}"), r"mask[0]: says nothing", id="says nothing"),
        pytest.param(rule(f"{MATCH}, mask: sometimes"), r"mask[0].mask: unknown value 'sometimes'", id="unknown word"),
        pytest.param(rule(f"{MATCH}, mask: never, show: true"), "mask[0].show: unknown field", id="unknown field"),
        pytest.param(rule("mask: never"), "mask[0].match: is missing", id="no match"),
        pytest.param(rule("match: {}, mask: never"), "mask[0].match: is empty", id="an empty match"),
        pytest.param(rule(f"{MATCH}, mask: always, except: 'true'"), "mask[0].except: stands with mask", id="both"),
        pytest.param(
            rule(f"{MATCH}, except: 'identity.grups == []'"), "identity has no field grups", id="a misspelled field"
        ),
        pytest.param(
            rule(f"{MATCH}, except: 'operation.verb == \"get\"'"), "undeclared reference", id="not over identity"
        ),
        pytest.param(rule(f"{MATCH}, except: 'session.id == \"\"'"), "session is what the client claims", id="a claim"),
        pytest.param(rule(f"{MATCH}, writes: deny"), "mask[0].writes: unknown value 'deny'", id="writes"),
        pytest.param(rule(f"{MATCH}, mask: never, fields: []"), "mask[0].fields: is empty", id="no fields"),
        pytest.param(
            rule(f"{MATCH}, mask: never, fields: [kind]"), "what clients need to read", id="a field too far up"
        ),
        pytest.param(
            rule(f"{MATCH}, mask: never, fields: ['a[0]']"), "mask[0].fields[0]: 'a[0]' is no field path", id="an index"
        ),
        pytest.param(
            rule("match: {verbs: [get]}, mask: never, fields: [spec.a]"), "are of resources", id="fields of nothing"
        ),
        pytest.param(rule(f"{MATCH}, writes: allow, fields: [spec.a]"), "have no effect", id="fields without a mask"),
        pytest.param(
            rule("match: {resources: [secretz]}, mask: always"),
            "unknown resource 'secretz'",
            id="a misspelled resource",
        ),
        pytest.param(
            rule("match: {resources: [deployments]}, mask: never"), "is in a group", id="shown without its group"
        ),
        pytest.param(rule("match: {commands: [kubectl get]}, mask: never"), "may not allow", id="shown by a claim"),
        pytest.param(
            f"mask:\n- {{name: r, {MATCH}, mask: never}}\n- {{name: r, {MATCH}, mask: always}}\n",
            "mask[1].name: another rule or budget is called 'r', in line 5",
            id="a name twice",
        ),
        pytest.param(
            f"rules: [{{name: r, action: deny, match: {{verbs: [get]}}}}]\nmask: [{{name: r, {MATCH}, mask: never}}]\n",
            "another rule or budget is called 'r'",
            id="a rule's name",
        ),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(PolicyError) as error:
        parse(text)
    assert message in str(error.value)


def test_what_only_masks_may_name_a_resource_of_any_group():
    assert parse("mask: [{name: r, match: {resources: [deployments], commands: [kubectl get]}, mask: always}]\n")


def test_a_mask_section_alone_is_a_policy():
    found = policyfile.parse({"f.yaml": (HEAD + rule(f"{MATCH}, mask: never")).encode()})
    assert "p/r" in found.digests()
