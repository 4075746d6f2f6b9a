"""What a patch, an update, a delete or a create wants, and all that it must not."""

import contextlib
import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import approvals, virtualchanges
from addons.core.bodies import Body
from addons.core.revocations import Target
from addons.core.virtualchanges import DeleteOptions, Wanted
from addons.core.virtualobjects import APPROVALS, GRANTS, REVOCATIONS, of_entry
from addons.core.virtualstatus import Problem
from tests import records
from tests.records import NOW, approved, hold, record

PENDING = of_entry(APPROVALS, record(), 12, NOW)
DECIDED = of_entry(APPROVALS, approved(record()), 13, NOW + 6)
HALF = of_entry(APPROVALS, approved(record("apr-2", hold(needed=2))), 13, NOW + 6)
GRANT = of_entry(GRANTS, records.grant(), 14, NOW)
REVOKED = of_entry(GRANTS, approvals.revoke(records.grant(), "bob", NOW), 15, NOW)


def patched(current, content, patch="merge", resource=APPROVALS):
    return virtualchanges.of_patch(resource, current, Body("x", content, patch))


def refused(code, said):
    return pytest.raises(Problem, match=said), code


YES = {"spec": {"decision": "Approved"}}


@pytest.mark.parametrize("kind", ["merge", "strategic"])
@pytest.mark.parametrize(
    ("current", "content", "wanted"),
    [
        pytest.param(PENDING, YES, Wanted("Approved"), id="a yes"),
        pytest.param(
            PENDING, {"spec": {"decision": "Denied", "reason": "no"}}, Wanted("Denied", "no"), id="a no with a reason"
        ),
        pytest.param(HALF, YES, Wanted("Approved"), id="the second yes is a change too"),
        pytest.param(PENDING, {}, Wanted(), id="nothing"),
        pytest.param(PENDING, {"spec": {"decision": None}}, Wanted(), id="nothing to remove"),
        pytest.param(DECIDED, YES, Wanted(), id="what it is already"),
        pytest.param(DECIDED, {"spec": {"decision": "Denied"}}, Wanted("Denied", "go on"), id="left to the step"),
        pytest.param(
            PENDING,
            {
                "apiVersion": "tollgate.dev/v1alpha1",
                "metadata": {"name": "apr-7f3k"},
                "spec": {"verb": "patch", **YES["spec"]},
            },
            Wanted("Approved"),
            id="what stays the same may be said",
        ),
        pytest.param(
            PENDING,
            {"metadata": {"resourceVersion": "12"}, **YES},
            Wanted("Approved", resource_version="12"),
            id="of this state",
        ),
    ],
)
def test_merge_patches(kind, current, content, wanted):
    before = copy.deepcopy(current)
    found = patched(current, content, kind)
    assert found == wanted
    assert found.nothing is (wanted.decision == "")
    assert current == before


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        pytest.param({"spec": {"command": "x"}}, 422, "spec.command: cannot be changed", id="the command"),
        pytest.param({"spec": {"rules": None}}, 422, "spec.rules: cannot be changed", id="the rules away"),
        pytest.param({"spec": None}, 422, "spec: cannot be changed", id="all of it away"),
        pytest.param({"spec": {"revoked": True}}, 422, "spec.revoked: cannot be changed", id="what grants have"),
        pytest.param({"spec": {"waiting": 0, **YES["spec"]}}, 422, "spec.waiting: cannot", id="an unknown field"),
        pytest.param({"status": {"phase": "Approved"}}, 422, "status.phase: cannot be changed", id="the status"),
        pytest.param({"status": {"waiting": 0}}, 422, "status.waiting: cannot be changed", id="0 is not false"),
        pytest.param({"metadata": {"labels": {"a": "b"}}}, 422, "metadata.labels.a: cannot", id="a label"),
        pytest.param({"metadata": {"name": "x"}}, 422, "metadata.name: cannot be changed", id="the name"),
        pytest.param({"metadata": {"finalizers": ["x"]}}, 422, "metadata.finalizers: cannot", id="a finalizer"),
        pytest.param({"kind": "Grant"}, 422, "kind: cannot be changed", id="the kind"),
        pytest.param({"spec": {"decision": "approved"}}, 422, "is Approved or Denied", id="in small letters"),
        pytest.param({"spec": {"decision": True}}, 422, "spec.decision: is not a text", id="not a text"),
        pytest.param({"spec": {"decision": ["Approved"]}}, 422, "spec.decision: is not a text", id="a list"),
        pytest.param({"spec": {"reason": "x"}}, 422, "goes with a decision", id="a reason alone"),
        pytest.param({"spec": {"decision": "Denied", "reason": "x" * 1001}}, 422, "has over 1000", id="a long reason"),
        pytest.param(
            {"metadata": {"resourceVersion": "11"}, **YES},
            409,
            "it was changed since you read it",
            id="of another state",
        ),
        pytest.param({"metadata": {"resourceVersion": 12}, **YES}, 422, "is not a text", id="a number as revision"),
        pytest.param({"metadata": "x"}, 422, "metadata: cannot be changed", id="no metadata"),
    ],
)
def test_what_no_patch_may(content, code, said):
    with pytest.raises(Problem, match=said) as problem:
        patched(PENDING, content)
    assert problem.value.failure.code == code


def test_a_decision_stays():
    with pytest.raises(Problem, match="cannot be taken back"):
        patched(DECIDED, {"spec": {"decision": None, "reason": None}})


def op(kind, path, *value):
    return {"op": kind, "path": path, **({"value": value[0]} if value else {})}


@pytest.mark.parametrize(
    ("operations", "wanted"),
    [
        pytest.param([op("replace", "/spec/decision", "Approved")], Wanted("Approved"), id="replace"),
        pytest.param(
            [op("add", "/spec/decision", "Denied"), op("add", "/spec/reason", "no")], Wanted("Denied", "no"), id="add"
        ),
        pytest.param(
            [op("test", "/status/phase", "Pending"), op("add", "/spec/decision", "Denied")],
            Wanted("Denied", resource_version="12"),
            id="a test, which holds for this state only",
        ),
        pytest.param(
            [op("test", "/spec/rules/0/needed", 1), op("test", "/metadata/labels/tollgate.dev~1phase", "Pending"),
             op("add", "/spec/decision", "Denied")], Wanted("Denied", resource_version="12"), id="tests, deep"),
        pytest.param([op("add", "/metadata/resourceVersion", "12"), op("add", "/spec/decision", "Denied")],
                     Wanted("Denied", resource_version="12"), id="a revision"),
        pytest.param([op("remove", "/spec/reason")], Wanted(), id="remove what is empty"),
        pytest.param([], Wanted(), id="nothing"),
    ],
)  # fmt: skip
def test_json_patches(operations, wanted):
    before = copy.deepcopy(PENDING)
    assert patched(PENDING, operations, "json") == wanted
    assert before == PENDING


@pytest.mark.parametrize(
    ("operations", "said"),
    [
        pytest.param([op("test", "/status/phase", "Approved")], "the test of /status/phase fails", id="a test"),
        pytest.param([op("test", "/spec/rules/7/needed", 1)], "the test of /spec/rules/7", id="a test beyond the end"),
        pytest.param([op("test", "/spec/rules/0/needed", True)], "the test of", id="1 is not true"),
        pytest.param([op("add", "/spec/command", "x")], "spec.command: cannot be changed", id="another field"),
        pytest.param([op("replace", "", {})], "all of it: cannot be changed", id="the whole"),
        pytest.param([op("add", "/spec/decision/x", "y")], "spec.decision.x: cannot", id="below it"),
        pytest.param([{"op": "copy", "from": "/spec", "path": "/spec/reason"}], "spec.reason: cannot", id="copy"),
        pytest.param([{"op": "move", "from": "/spec/command", "path": "/spec/reason"}], "cannot be", id="move"),
        pytest.param([op("add", "/spec/reason", "x")] * 101, "at most 100", id="too many"),
        pytest.param({"op": "add"}, "at most 100", id="no list"),
        pytest.param([op("add", "/spec/decision", 1)], "is not a text", id="a number"),
        pytest.param([op("add", "/spec/~0decision", "x")], "cannot be changed", id="another key"),
    ],
)
def test_what_no_json_patch_may(operations, said):
    with pytest.raises(Problem, match=said) as problem:
        patched(PENDING, operations, "json")
    assert problem.value.failure.code == 422


def test_a_patch_sees_what_its_sender_sees():
    # `test` answers by 422 or 200: it must not tell what the object hides from him.
    hidden = of_entry(APPROVALS, record(), 12, NOW, redacted=True)
    guess = [op("test", "/spec/preview/diff", PENDING["spec"]["preview"]["diff"])]
    assert patched(PENDING, guess, "json").nothing
    with pytest.raises(Problem, match="the test of"):
        patched(hidden, guess, "json")


def test_server_side_apply_is_refused():
    with pytest.raises(Problem, match="server-side apply is not served here") as problem:
        patched(PENDING, YES, "apply")
    assert problem.value.failure.code == 415


def test_a_patch_without_a_body():
    with pytest.raises(Problem, match="needs one"):
        virtualchanges.of_patch(APPROVALS, PENDING, Body())


PARTS = ("metadata", "spec", "status", "x")
FIELDS = ("decision", "reason", "command", "rules", "phase", "resourceVersion", "name")
leaves = st.none() | st.booleans() | st.integers() | st.sampled_from(["", "Approved", "Denied", "12", "shop"])
json_values = leaves | st.lists(leaves, max_size=2) | st.dictionaries(st.sampled_from(FIELDS), leaves, max_size=3)


@given(st.dictionaries(st.sampled_from(PARTS), json_values, max_size=3))
def test_whatever_is_patched_only_a_decision_comes_out(content):
    wanted = Wanted()
    with contextlib.suppress(Problem):
        wanted = patched(PENDING, content)
    assert wanted.decision in ("", "Approved", "Denied")
    assert not wanted.revoked


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        pytest.param({}, Wanted(resource_version="12"), id="as it was"),
        pytest.param({"decision": "Denied", "reason": "no"}, Wanted("Denied", "no", resource_version="12"), id="a no"),
    ],
)
def test_updates(change, wanted):
    sent = json.loads(json.dumps(PENDING))
    sent["spec"] |= change
    assert virtualchanges.of_update(APPROVALS, PENDING, Body("x", sent)) == wanted


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        pytest.param({**PENDING, "spec": {**PENDING["spec"], "verb": ""}}, 422, "spec.verb: cannot", id="a field"),
        pytest.param({**PENDING, "spec": YES["spec"]}, 422, "cannot be changed", id="the rest left out"),
        pytest.param({**PENDING, "metadata": {"name": "apr-7f3k"}}, 422, "must be there for", id="no revision"),
        pytest.param(
            {**PENDING, "metadata": {**PENDING["metadata"], "resourceVersion": "3"}}, 409, "was changed", id="an old"
        ),
        pytest.param(None, 400, "needs the whole object", id="no body"),
    ],
)  # fmt: skip
def test_what_no_update_may(sent, code, said):
    with pytest.raises(Problem, match=said) as problem:
        virtualchanges.of_update(APPROVALS, PENDING, Body("x", sent))
    assert problem.value.failure.code == code


@pytest.mark.parametrize(
    ("current", "spec", "wanted"),
    [
        pytest.param(GRANT, {"revoked": True}, Wanted(revoked=True), id="revoked"),
        pytest.param(GRANT, {"revoked": False}, Wanted(), id="as it is"),
        pytest.param(REVOKED, {"revoked": True}, Wanted(), id="again"),
        pytest.param(REVOKED, {"revoked": False}, "cannot be taken back", id="taken back"),
        pytest.param(REVOKED, {"revoked": None}, "cannot be taken back", id="taken back by leaving it out"),
        pytest.param(GRANT, {"revoked": "true"}, "is true or false", id="a text"),
        pytest.param(GRANT, {"decision": "Approved"}, "spec.decision: cannot be changed", id="a decision"),
        pytest.param(GRANT, {"namespace": "*"}, "spec.namespace: cannot be changed", id="more of it"),
    ],
)
def test_grants(current, spec, wanted):
    if isinstance(wanted, Wanted):
        assert patched(current, {"spec": spec}, resource=GRANTS) == wanted
        return
    with pytest.raises(Problem, match=wanted):
        patched(current, {"spec": spec}, resource=GRANTS)


# ----- delete -----


@pytest.mark.parametrize(
    ("content", "query", "options"),
    [
        pytest.param(None, None, DeleteOptions(), id="no body"),
        pytest.param(None, "All", DeleteOptions(True), id="dry, by the query"),
        pytest.param({}, "All", DeleteOptions(), id="with a body the query does not count"),
        pytest.param({"dryRun": ["All"]}, None, DeleteOptions(True), id="dry, by the body"),
        pytest.param({"propagationPolicy": "Background"}, None, DeleteOptions(), id="kubectl's"),
        pytest.param({"preconditions": {"uid": "u"}}, None, DeleteOptions(uid="u"), id="a uid"),
        pytest.param(
            {"preconditions": {"resourceVersion": "7"}}, None, DeleteOptions(resource_version="7"), id="a revision"
        ),
    ],
)
def test_delete_options(content, query, options):
    assert virtualchanges.delete_options(Body("x", content), query) == options


@pytest.mark.parametrize(
    ("content", "query"),
    [
        pytest.param(None, "all", id="in small letters"),
        pytest.param({"dryRun": ["Some"]}, None, id="another word"),
        pytest.param({"dryRun": "All"}, None, id="no list"),
        pytest.param({"preconditions": []}, None, id="no preconditions"),
        pytest.param({"preconditions": {"uid": 7}}, None, id="a number"),
    ],
)
def test_what_no_delete_may(content, query):
    with pytest.raises(Problem) as problem:
        virtualchanges.delete_options(Body("x", content), query)
    # Direction: what cannot be read as a dry run is not done for real.
    assert problem.value.failure.code == 422


# ----- access requests -----

SPEC = {"verbs": ["get", "delete"], "resources": ["pods"], "namespace": "shop", "duration": "1h30m",
        "justification": " because "}  # fmt: skip


def request(_spec=None, metadata=None, validation="", **fields):
    content = {
        "apiVersion": "tollgate.dev/v1alpha1",
        "kind": "AccessRequest",
        "metadata": metadata if metadata is not None else {"name": "a"},
        "spec": {k: v for k, v in {**SPEC, **(_spec or {})}.items() if v is not None},
        **fields,
    }
    return virtualchanges.new_request(Body("application/json", content), validation)


def test_an_access_request():
    found = request()
    assert found.access == approvals.Access(("delete", "get"), ("pods",), "shop", 5400, "because")
    assert (found.name, found.name_prefix, found.warnings) == ("a", "", ())


@pytest.mark.parametrize(
    ("metadata", "name", "prefix", "warnings"),
    [
        pytest.param({}, "", "", (), id="no name"),
        pytest.param({"generateName": "need-"}, "", "need-", (), id="the beginning of one"),
        pytest.param({"name": "a", "generateName": "need-"}, "a", "", (), id="both"),
        pytest.param({"name": "a", "creationTimestamp": None}, "a", "", (), id="what older clients send"),
        pytest.param(
            {"name": "a", "labels": {"x": "y"}}, "a", "", ("metadata.labels is not kept here",), id="labels"
        ),
        pytest.param(
            {"name": "a", "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}, "a", "", (),
            id="kubectl apply",
        ),
    ],
)  # fmt: skip
def test_metadata(metadata, name, prefix, warnings):
    found = request(metadata=metadata)
    assert (found.name, found.name_prefix, found.warnings) == (name, prefix, warnings)


def test_everywhere_must_be_said():
    assert request({"namespace": "*"}).access.namespace == ""


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        pytest.param({"namespace": None}, "spec.namespace: must be there", id="no namespace"),
        pytest.param({"namespace": ""}, "spec.namespace: must be there", id="an empty namespace"),
        pytest.param({"namespace": "sh*"}, "spec.namespace: is neither", id="a pattern"),
        pytest.param({"verbs": []}, "spec.verbs: is not a list of 1", id="no verbs"),
        pytest.param({"verbs": None}, "spec.verbs: is not a list of 1", id="verbs left out"),
        pytest.param({"verbs": "get"}, "spec.verbs: is not a list", id="a word"),
        pytest.param({"verbs": ["get"] * 21}, "spec.verbs: is not a list", id="too many"),
        pytest.param({"verbs": ["GET"]}, "spec.verbs: one of them is not", id="in capitals"),
        pytest.param({"verbs": [1]}, "spec.verbs: one of them is not", id="a number"),
        pytest.param({"resources": ["pods exec"]}, "spec.resources: one of them is not", id="a space"),
        pytest.param({"resources": ["a/b/c"]}, "spec.resources: one of them is not", id="two slashes"),
        pytest.param({"duration": None}, "spec.duration: is not between", id="no duration"),
        pytest.param({"duration": "8h1s"}, "spec.duration: is not between", id="too long"),
        pytest.param({"duration": "59s"}, "spec.duration: is not between", id="too short"),
        pytest.param({"duration": "30"}, "spec.duration: is not between", id="no unit"),
        pytest.param({"duration": "1d"}, "spec.duration: is not between", id="days"),
        pytest.param({"duration": 1800}, "spec.duration: is not a text", id="a number for duration"),
        pytest.param({"justification": " "}, "spec.justification: must be there", id="no reason"),
        pytest.param({"justification": "x" * 1001}, "spec.justification: has over", id="a novel"),
        pytest.param({"justification": "a\x1b[2J"}, "that do not show", id="an escape of the terminal"),
        pytest.param({"decision": "Approved"}, "spec.decision: is an approver's to set", id="decided by himself"),
        pytest.param({"reason": "x"}, "spec.decision: is an approver's to set", id="a reason of his own"),
        pytest.param({"requester": {}}, "unknown field spec.requester", id="for somebody else"),
        pytest.param({"namespac": "x"}, "unknown field spec.namespac", id="a misspelled field"),
    ],
)
def test_what_cannot_be_asked_for(spec, said):
    with pytest.raises(Problem, match=said) as problem:
        request(spec)
    assert problem.value.failure.code in (400, 422)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"kind": "Approval"}, "is no AccessRequest", id="another kind"),
        pytest.param({"apiVersion": "tollgate.dev/v1"}, "is no AccessRequest", id="another version"),
        pytest.param({"sepc": {}}, "unknown field sepc", id="a misspelled part"),
        pytest.param({"spec": []}, "spec: is not an object", id="a list for spec"),
        pytest.param({"metadata": {"name": "A"}}, "metadata.name: is not", id="a name in capitals"),
        pytest.param({"metadata": {"name": "a/b"}}, "metadata.name: is not", id="a name with a slash"),
        pytest.param({"metadata": {"generateName": "-"}}, "metadata.generateName: is not", id="no beginning"),
        pytest.param(
            {"metadata": {"namespace": "shop"}}, "metadata.namespace: an AccessRequest is in none", id="in one"
        ),
        pytest.param({"metadata": {"nmae": "x"}}, "unknown field metadata.nmae", id="a misspelled name"),
    ],
)
def test_what_is_no_access_request(fields, said):
    with pytest.raises(Problem, match=said):
        request(**fields)


@pytest.mark.parametrize(
    ("validation", "warnings"),
    [pytest.param("Warn", ("unknown field spec.x",), id="warn"), pytest.param("Ignore", (), id="ignore")],
)
def test_unknown_fields_by_the_clients_wish(validation, warnings):
    assert request({"x": 1}, validation=validation).warnings == warnings


def test_unknown_wish():
    with pytest.raises(Problem, match="fieldValidation: is Strict"):
        request(validation="strict")
    with pytest.raises(Problem, match="there is none"):
        virtualchanges.new_request(Body(), "")


def test_wanted_is_nothing_by_default():
    assert Wanted().nothing
    assert not replace(Wanted(), revoked=True).nothing


# ----- revocations -----


def revocation(spec, **more):
    return Body(
        content={"apiVersion": "tollgate.dev/v1alpha1", "kind": "Revocation", "metadata": {}, "spec": spec, **more}
    )


@pytest.mark.parametrize(
    ("spec", "target", "until"),
    [
        pytest.param({"user": "a"}, Target(user="a"), 0, id="user"),
        pytest.param({"allAgents": True, "duration": "2h"}, Target(agents=True), NOW + 7200, id="for a time"),
        pytest.param({"tokenID": "t", "expires": "2100-01-01T00:00:00Z"}, None, 0, id="too far"),
        pytest.param({"user": "a", "issuedBefore": "now"}, Target(user="a", issued_before=NOW), 0, id="before now"),
        pytest.param({"owner": "o", "reason": "r"}, Target(owner="o"), 0, id="owner"),
    ],
)
def test_a_new_revocation(spec, target, until):
    if target is None:
        with pytest.raises(Problem, match=r"^spec\.expires: "):
            virtualchanges.new_revocation(revocation(spec), "", NOW)
        return
    new = virtualchanges.new_revocation(revocation(spec), "", NOW)
    assert (new.target, new.until, new.reason) == (target, until, spec.get("reason", ""))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        pytest.param({}, "names nobody", id="nobody"),
        pytest.param({"allAgents": False}, "names nobody", id="not all agents"),
        pytest.param({"allAgents": "true"}, "spec.allAgents: is true or false", id="a text"),
        pytest.param({"users": ["a"]}, "unknown field spec.users", id="misspelled"),
        pytest.param({"user": 7}, "spec.user: is not a text", id="a number"),
        pytest.param({"user": "a", "duration": "1h", "expires": "now"}, "goes not with", id="both"),
        pytest.param({"user": "a", "duration": "soon"}, "spec.duration: ", id="no duration"),
        pytest.param({"user": "a", "expires": "soon"}, "spec.expires: ", id="no time"),
        pytest.param({"user": "a", "issuedBefore": "soon"}, "spec.issuedBefore: ", id="no moment"),
        pytest.param({"user": "a", "decision": "Approved"}, "unknown field spec.decision", id="a decision"),
    ],
)
def test_what_is_no_revocation(spec, says):
    with pytest.raises(Problem, match=says):
        virtualchanges.new_revocation(revocation(spec), "", NOW)


def test_an_access_request_is_no_revocation():
    body = revocation({"user": "a"})
    body.content["kind"] = "AccessRequest"
    with pytest.raises(Problem, match="is no Revocation"):
        virtualchanges.new_revocation(body, "", NOW)


def test_a_revocation_is_never_changed():
    current = {"metadata": {"name": "rev-1", "resourceVersion": "3"}, "spec": {"user": "a"}, "status": {}}
    same = virtualchanges.of_patch(REVOCATIONS, current, Body(content={"spec": {"user": "a"}}, patch="merge"))
    assert same.nothing
    with pytest.raises(Problem, match="never changed"):
        virtualchanges.of_patch(REVOCATIONS, current, Body(content={"spec": {"user": "b"}}, patch="merge"))
