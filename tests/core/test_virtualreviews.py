"""kubectl auth can-i, about our group."""

import pytest

from addons.core import classify, virtualreviews
from addons.core.virtualreviews import Attributes


def review(group="tollgate.dev", verb="patch", resource="approvals", **more):
    attributes = {"group": group, "verb": verb, "resource": resource, **more}
    return {"kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}


class Policy:
    """Allows what it is told, and remembers what it was asked."""

    def __init__(self, *allowed):
        self.allowed = allowed
        self.asked = []

    def __call__(self, asked):
        self.asked.append(asked)
        return asked.verb in self.allowed, "" if asked.verb in self.allowed else f"rule x denies {asked.verb}"


@pytest.mark.parametrize(
    ("allowed", "status"),
    [
        pytest.param(("patch",), {"allowed": True, "reason": ""}, id="yes"),
        pytest.param((), {"allowed": False, "denied": True, "reason": "rule x denies patch"}, id="no"),
    ],
)
def test_answers(allowed, status):
    policy = Policy(*allowed)
    found = virtualreviews.access_review(review(name="apr-1", namespace="default"), policy)
    assert found["status"] == status
    assert (found["kind"], found["apiVersion"]) == ("SelfSubjectAccessReview", "authorization.k8s.io/v1")
    assert found["spec"] == review(name="apr-1", namespace="default")["spec"]
    assert policy.asked == [Attributes("patch", "approvals", "apr-1")]


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(review(group="apps"), id="another group"),
        pytest.param(review(group=""), id="the core group"),
        pytest.param(review(group="*"), id="all groups"),
        pytest.param({"spec": {"nonResourceAttributes": {"path": "/apis/tollgate.dev", "verb": "get"}}}, id="a path"),
        pytest.param({"spec": {}}, id="nothing"),
        pytest.param({}, id="no spec"),
        pytest.param({"spec": {"resourceAttributes": "x"}}, id="a text"),
    ],
)
def test_what_the_api_server_answers(asked):
    policy = Policy("patch")
    assert virtualreviews.access_review(asked, policy) is None
    assert not policy.asked


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        pytest.param(review(verb="*"), "serves no such verb", id="any verb"),
        pytest.param(review(verb="create"), "serves no such verb", id="create an approval"),
        pytest.param(review(verb="deletecollection"), "serves no such verb", id="all at once"),
        pytest.param(review(resource="*"), "no such resource", id="any resource"),
        pytest.param(review(resource="pods"), "no such resource", id="another's resource"),
        pytest.param(review(subresource="status"), "no such resource", id="a subresource"),
        pytest.param(review(version="v1"), "no version but v1alpha1", id="another version"),
        pytest.param(review(verb=None), "serves no such verb", id="no verb"),
        pytest.param(review(group="Tollgate.Dev", resource="x"), "no such resource", id="in capitals"),
    ],
)
def test_what_nobody_can(asked, said):
    policy = Policy("patch", "create", "*", "", "deletecollection")
    status = virtualreviews.access_review(asked, policy)["status"]
    assert status["allowed"] is False
    assert said in status["reason"]
    assert not policy.asked


@pytest.mark.parametrize(
    ("attributes", "verb", "name"),
    [
        pytest.param(Attributes("get", "approvals", "apr-1"), "get", "apr-1", id="get"),
        pytest.param(Attributes("get", "approvals"), "get", "x", id="get any"),
        pytest.param(Attributes("list", "approvals"), "list", "", id="list"),
        pytest.param(Attributes("watch", "grants"), "watch", "", id="watch"),
        pytest.param(Attributes("create", "accessrequests", "a"), "create", "", id="create"),
        pytest.param(Attributes("patch", "approvals", "apr-1"), "patch", "apr-1", id="patch"),
        pytest.param(Attributes("update", "approvals", "apr-1"), "update", "apr-1", id="update"),
        pytest.param(Attributes("delete", "grants", "grt-1"), "delete", "grt-1", id="delete"),
    ],
)
def test_the_request_that_is_meant(attributes, verb, name):
    # What the policies judge for the review must be what they would judge for the request.
    method, target = attributes.request
    info = classify.read_head(method, target).info
    assert (info.verb, info.full_resource, info.name) == (verb, f"{attributes.resource}.tollgate.dev", name)


def test_a_name_stays_one_segment():
    # A name with a slash in it is refused as it would be, and no other request.
    assert Attributes("get", "approvals", "a/../b").request[1].endswith("/approvals/a%2F..%2Fb")


READS = [
    {"verbs": ["get", "list", "watch"], "apiGroups": ["tollgate.dev"], "resources": [resource]}
    for resource in ("approvals", "accessrequests", "grants", "revocations")
]


def test_rules_are_added():
    theirs = {"verbs": ["get"], "apiGroups": ["", "tollgate.dev"], "resources": ["pods"]}
    real = {"verbs": ["*"], "apiGroups": ["tollgate.dev"], "resources": ["*"]}
    answer = {"kind": "SelfSubjectRulesReview", "status": {"incomplete": False, "resourceRules": [theirs, real]}}
    found = virtualreviews.add_rules(answer, Policy("get", "list", "watch"))
    assert found["status"] == {
        "incomplete": False,
        "resourceRules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}, *READS],
    }
    assert answer["status"]["resourceRules"] == [theirs, real]
    assert virtualreviews.add_rules({}, Policy())["status"] == {"resourceRules": []}


def test_rules_alone_say_that_they_are():
    found = virtualreviews.rules_review({"spec": {"namespace": "shop"}}, Policy("get", "list", "watch"))
    assert found["spec"] == {"namespace": "shop"}
    assert (found["status"]["incomplete"], found["status"]["resourceRules"]) == (True, READS)
