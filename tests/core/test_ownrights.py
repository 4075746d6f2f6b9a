from pathlib import Path

import pytest
import yaml

from addons.core import ownrights
from addons.core.doctor import Level
from addons.core.ownrights import (
    ANY_ACCOUNT,
    ANY_GROUP,
    ANY_USER,
    AS_CONTROLLERS,
    AS_MASTERS,
    CONSTRAINED,
    EVERYTHING,
    GRANTS,
    MARK,
    NEEDED,
    QUESTIONS,
    REVIEW_ACCESS,
    REVIEW_TOKENS,
    WANTED,
    Question,
)

BASE = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes" / "base"
DELETE, LIST_SECRETS = Question("delete", "namespaces"), Question("list", "secrets")
LEAST = dict.fromkeys(QUESTIONS, False) | dict.fromkeys(NEEDED, True) | dict.fromkeys(WANTED, True)


def answers(*yes, no=()):
    return LEAST | dict.fromkeys(yes, True) | dict.fromkeys(no, False)


@pytest.mark.parametrize(
    ("given", "groups", "words"),
    [
        pytest.param(answers(), (), "", id="the least"),
        pytest.param({}, (), "", id="nobody answered"),
        pytest.param({}, ("system:masters",), "no RBAC limits", id="in system:masters"),
        pytest.param(answers(EVERYTHING), (), "may do everything", id="a star"),
        pytest.param(answers(AS_MASTERS, ANY_GROUP), (), "impersonate any group", id="free groups"),
        pytest.param(answers(AS_MASTERS), (), "impersonate that group", id="system:masters by name"),
        pytest.param(answers(*GRANTS), (), "bind and escalate", id="bind and escalate"),
        pytest.param(answers(GRANTS[0]), (), "", id="bind alone"),
    ],
)
def test_cluster_admin(given, groups, words):
    why = ownrights.cluster_admin(given, groups)
    assert words in why
    assert bool(why) is bool(words)


@pytest.mark.parametrize(
    ("given", "groups", "words"),
    [
        pytest.param(
            answers(AS_MASTERS, ANY_GROUP), (),
            ["is cluster-admin: it may impersonate any group", "delete every namespace, read every Secret",
             "doctor --rbac"],
            id="free groups",
        ),
        pytest.param(answers(), ("system:masters",), ["is cluster-admin", "another identity"], id="system:masters"),
        pytest.param(
            answers(ANY_USER, AS_CONTROLLERS), (), ["impersonate any user", "controller manager's rights"],
            id="free users",
        ),
        pytest.param(
            answers(AS_CONTROLLERS), (), ["impersonate system:kube-controller-manager"], id="that user by name"
        ),
        pytest.param(answers(CONSTRAINED[1]), (), ["impersonate all groups (impersonate:user-info)"], id="constrained"),
        pytest.param(answers(ANY_ACCOUNT), (), ["impersonate any ServiceAccount"], id="free ServiceAccounts"),
        pytest.param(
            answers(DELETE, LIST_SECRETS), (),
            ["this credential can delete every namespace and read every Secret, and the gateway needs none"],
            id="plain powers",
        ),
        pytest.param(answers(no=[REVIEW_TOKENS]), (), ["may not create tokenreviews"], id="too little: reviews"),
        pytest.param(answers(no=[MARK]), (), ["may not impersonate userextras/tollgate.dev/gateway"], id="no mark"),
    ],
)  # fmt: skip
def test_problems(given, groups, words):
    found = list(ownrights.blast_radius(given, groups))
    assert [one.level for one in found] == [Level.PROBLEM]
    for word in words:
        assert word in f"{found[0].text} {found[0].cure}"


def test_the_least_is_good():
    assert list(ownrights.blast_radius(LEAST, ("system:authenticated",))) == []


def test_what_nobody_answered_is_said_and_not_taken_for_good():
    (found,) = ownrights.blast_radius({}, ())
    assert found.level is Level.NOTE


def test_less_for_approvers_is_a_warning():
    (found,) = ownrights.blast_radius(answers(no=[REVIEW_ACCESS]), ())
    assert found.level is Level.WARNING


def test_a_gateway_that_acts_as_itself_needs_its_callers_rights():
    given = answers(DELETE, no=[MARK])
    (found,) = ownrights.blast_radius(given, (), impersonates=False)
    assert found.level is Level.WARNING
    assert "for every caller" in found.text
    (found,) = ownrights.blast_radius(answers(EVERYTHING), (), impersonates=False)
    assert found.level is Level.PROBLEM


def test_specs():
    assert Question("get", path="/x").spec() == {"nonResourceAttributes": {"verb": "get", "path": "/x"}}
    assert MARK.spec() == {
        "resourceAttributes": {
            "verb": "impersonate",
            "group": "authentication.k8s.io",
            "resource": "userextras",
            "subresource": "tollgate.dev/gateway",
            "name": "true",
        }
    }


# Rules ---------------------------------------------------------------------------------------

SELF = {"verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews"]}
USERS = {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["tollgate:a", "b"]}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        pytest.param(SELF, [], id="about oneself"),
        pytest.param(USERS, [], id="impersonation"),
        pytest.param({"verbs": ["impersonate"], "apiGroups": [""], "resources": ["*"]}, ["impersonate *"],
                     id="impersonation of everything"),
        pytest.param({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}, ["get,list pods"],
                     id="reads"),
        pytest.param({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, ["* * in *"], id="a star"),
        pytest.param({"verbs": ["*"], "apiGroups": [""], "resources": ["tokenreviews"]}, ["* tokenreviews"],
                     id="all verbs"),
        pytest.param({"verbs": ["create"], "apiGroups": ["apps"], "resources": ["deployments"]},
                     ["create deployments in apps"], id="a write"),
        pytest.param({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]},
                     ["get secrets named a"], id="by name"),
        pytest.param({}, [""], id="an empty rule"),
    ],
)  # fmt: skip
def test_surplus(rule, words):
    assert [text.strip() for text in ownrights.surplus(ownrights.rules([{"resourceRules": [rule]}]))] == words


def test_rules_of_several_namespaces_are_each_listed_once():
    listed = ownrights.rules([{"resourceRules": [SELF, USERS]}, {"resourceRules": [SELF], "incomplete": True}])
    assert len(listed.resource_rules) == 2
    assert listed.incomplete
    assert listed.names("users") == ["b", "tollgate:a"]
    assert listed.names("groups") == []
    found = list(ownrights.findings(listed, LEAST, ()))
    assert [one.level for one in found] == [Level.OK, Level.NOTE]
    assert "2 users and 0 groups, each by name" in found[0].text


def test_of_a_cluster_admin_no_more_is_said():
    assert list(ownrights.findings(ownrights.rules([{"resourceRules": [USERS]}]), answers(EVERYTHING), ())) == []


# What is enough ------------------------------------------------------------------------------


def test_enough_is_what_is_shipped():
    """The folder deploy/ and the command say the same."""
    shipped = [
        *yaml.safe_load_all((BASE / "rbac.yaml").read_text()),
        *yaml.safe_load_all((BASE / "callers.yaml").read_text()),
    ]
    users, groups = (rule["resourceNames"] for rule in shipped[2]["rules"])
    said = ownrights.enough(users, groups, [], ownrights.PROPOSED)
    assert list(yaml.safe_load_all(said)) == shipped
    assert "&id" not in said


def test_enough_with_extras_and_nobody_yet():
    documents = list(yaml.safe_load_all(ownrights.enough([], [], ["example.org/team"], "ann")))
    assert documents[0]["rules"][-1]["resources"] == ["userextras/example.org/team"]
    # A rule without names would be all names: never left out.
    assert all(rule["resourceNames"] for rule in documents[2]["rules"])
    assert documents[1]["subjects"] == [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}]
