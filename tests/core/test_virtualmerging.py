"""Which answers must speak of tollgate.dev too, and what is said of it to whom."""

import contextlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from addons.core import classify, policyfile, virtualdiscovery, virtualmerging
from addons.core.model import Action, Identity, Verdict

JSON = "application/json"
AGENT = Identity("agent")
POLICIES = policyfile.parse(
    {
        "p.yaml": b"""
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: p}
rules:
- {name: look, action: allow, match: {users: [agent], verbs: [get, list], resources: [approvals.tollgate.dev]}}
- {name: keep, action: deny, match: {verbs: [delete], resources: ["*.tollgate.dev"]}, message: Nobody cancels.}
"""
    }
)
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
RULES = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"


def decides(identity=AGENT):
    return virtualmerging.decide(POLICIES, identity)


def operation(method, target, body=None):
    content = json.dumps(body).encode() if body is not None else b""
    return classify.classify(method, target, {"Content-Type": JSON} if content else {}, content)


def review(**attributes):
    return {"kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}


def ours(verb, resource="approvals", **more):
    return review(group="tollgate.dev", verb=verb, resource=resource, **more)


# ----- the question that only we can answer -----


@pytest.mark.parametrize(
    ("identity", "body", "allowed", "says"),
    [
        pytest.param(AGENT, ours("get", name="apr-1"), True, "rule p/look allows it", id="allowed"),
        pytest.param(AGENT, ours("delete"), False, "rule p/keep denies this: Nobody cancels.", id="denied by a rule"),
        pytest.param(AGENT, ours("patch"), False, "no rule allows", id="allowed by none"),
        pytest.param(AGENT, ours("get", "grants"), False, "no rule allows", id="another resource"),
        pytest.param(Identity("eve"), ours("get"), False, "no rule allows", id="somebody else"),
        pytest.param(AGENT, ours("*"), False, "no such verb", id="everything at once"),
        pytest.param(AGENT, ours("get", "secrets"), False, "no such resource", id="not ours"),
        pytest.param(AGENT, ours("get", name="a b?watch=1#"), False, "plain spelling", id="a name with a query"),
        pytest.param(AGENT, ours("get", name="x/../../secrets"), False, "plain spelling", id="a name with a path"),
        pytest.param(AGENT, ours("get", name=".."), False, "plain spelling", id="a name that is a step up"),
        pytest.param(
            AGENT, ours("get", name="a\x00"), False, "control character", id="a name with a control character"
        ),
    ],
)
def test_a_review_about_our_group(identity, body, allowed, says):
    answer = virtualmerging.review(operation("POST", REVIEWS, body), decides(identity))
    assert answer is not None
    assert answer["status"]["allowed"] is allowed
    assert says in answer["status"]["reason"]


class Holds:
    """Policies that would hold what is ours; ours never do."""

    def evaluate(self, identity, operation):
        return Verdict(Action.HOLD, "ask", "p")


def test_held_is_not_allowed():
    answer = virtualmerging.review(operation("POST", REVIEWS, ours("get")), virtualmerging.decide(Holds(), AGENT))
    assert answer["status"]["allowed"] is False


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        pytest.param("POST", REVIEWS, review(group="apps", verb="get", resource="deployments"), id="another group"),
        pytest.param("POST", REVIEWS, {"spec": {"nonResourceAttributes": {"path": "/"}}}, id="a path"),
        pytest.param("POST", REVIEWS, {"spec": "x"}, id="no attributes"),
        pytest.param("POST", REVIEWS, None, id="no body"),
        pytest.param("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", ours("get"), id="of others"),
        pytest.param("POST", "/api/v1/namespaces", ours("get"), id="no review at all"),
        pytest.param("GET", REVIEWS, None, id="a look"),
    ],
)
def test_what_is_not_ours_to_answer(method, target, body):
    assert virtualmerging.review(operation(method, target, body), decides()) is None


# ----- answers that are changed -----


@pytest.mark.parametrize(
    ("method", "target", "changed"),
    [
        pytest.param("GET", "/apis", True, id="groups"),
        pytest.param("GET", "/openapi/v3", True, id="OpenAPI"),
        pytest.param("GET", "/api", False, id="the core group"),
        pytest.param("GET", "/apis/apps", False, id="another group"),
        pytest.param("GET", "/openapi/v3/apis/apps/v1", False, id="a document"),
        pytest.param("GET", "/openapi/v2", False, id="the old OpenAPI"),
        pytest.param("HEAD", "/apis", False, id="no body to change"),
        pytest.param("GET", "/api/v1/pods", False, id="a list"),
    ],
)
def test_which_answers(method, target, changed):
    assert (virtualmerging.change(operation(method, target), decides()) is not None) is changed


def test_groups_and_documents():
    groups = virtualmerging.change(operation("GET", "/apis"), decides())
    legacy = {"kind": "APIGroupList", "apiVersion": "v1", "groups": [{"name": "apps"}]}
    found = json.loads(groups(json.dumps(legacy).encode(), JSON))
    assert [g["name"] for g in found["groups"]] == ["apps", "tollgate.dev"]
    openapi = virtualmerging.change(operation("GET", "/openapi/v3"), decides())
    found = json.loads(openapi(b'{"paths":{"api/v1":{}}}', "text/plain"))
    assert list(found["paths"]) == ["api/v1", "apis/tollgate.dev/v1alpha1"]


def test_a_group_of_that_name_over_there_is_hidden_and_told(caplog):
    groups = virtualmerging.change(operation("GET", "/apis"), decides())
    theirs = {"name": "tollgate.dev", "versions": [{"version": "v1"}]}
    body = json.dumps({"kind": "APIGroupList", "apiVersion": "v1", "groups": [theirs]}).encode()
    assert theirs not in json.loads(groups(body, JSON))["groups"]
    assert "has a group tollgate.dev of its own: it is hidden" in caplog.text


def test_the_rules_of_a_viewer():
    change = virtualmerging.change(operation("POST", RULES, {"spec": {"namespace": "shop"}}), decides())
    theirs = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}
    forged = {"verbs": ["*"], "apiGroups": ["tollgate.dev"], "resources": ["*"]}
    body = json.dumps({"status": {"resourceRules": [theirs, forged]}}).encode()
    rules = json.loads(change(body, JSON))["status"]["resourceRules"]
    assert rules == [theirs, {"verbs": ["get", "list"], "apiGroups": ["tollgate.dev"], "resources": ["approvals"]}]


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"{", b"\xff"])
@pytest.mark.parametrize("target", ["/apis", "/openapi/v3", RULES])
def test_garbage_is_an_error_that_is_expected(target, body):
    one = operation("POST", target, {"spec": {}}) if target is RULES else operation("GET", target)
    with pytest.raises((virtualdiscovery.NotMerged, ValueError)):
        virtualmerging.change(one, decides())(body, JSON)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["status", "resourceRules", "apiGroups", "groups", "kind", "paths", "metadata", "name"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from(["/apis", "/openapi/v3", RULES]), json_values)
@example(RULES, {"status": {"resourceRules": 7}})
@example(RULES, {"status": {"resourceRules": [None]}})
@example(RULES, {"status": {"resourceRules": [{"apiGroups": 7}]}})
@example(
    "/apis", {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "items": [{"metadata": "x"}]}
)
def test_any_json_is_merged_or_an_error_that_is_expected(target, content):
    one = operation("POST", target, {"spec": {}}) if target is RULES else operation("GET", target)
    change = virtualmerging.change(one, decides())
    with contextlib.suppress(virtualdiscovery.NotMerged, ValueError):
        json.loads(change(json.dumps(content).encode(), JSON))


# ----- what is asked for -----

V2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
BETA = V2.replace("v=v2", "v=v2beta1")


@pytest.mark.parametrize(
    ("path", "sent", "wanted"),
    [
        pytest.param("/apis", f"{V2},{BETA},application/json", f"{V2},{BETA},{JSON}", id="kubectl"),
        pytest.param("/apis", f"application/vnd.kubernetes.protobuf;as=x,{V2}", f"{V2},{JSON}", id="protobuf first"),
        pytest.param("/apis", f"{V2.replace('/json', '/vnd.kubernetes.protobuf')}", JSON, id="aggregated protobuf"),
        pytest.param("/apis", "application/json;as=Table;g=meta.k8s.io", JSON, id="a table"),
        pytest.param("/apis", "*/*", JSON, id="anything"),
        pytest.param("/apis", "", JSON, id="nothing said"),
        pytest.param("/openapi/v3", f"{V2},application/json", JSON, id="OpenAPI has one form"),
    ],
)
def test_forms_that_cannot_be_merged_are_not_asked_for(path, sent, wanted):
    assert virtualmerging.accept(operation("GET", path), sent) == wanted
