"""The objects that records become: what is in them, and what is not."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import approvals, virtualobjects, virtualselectors
from addons.core.approvals import Decider, Item, Preview
from addons.core.virtualobjects import APPROVALS, GRANTS, REQUESTS, of_entry
from tests import records
from tests.records import NOW, approved, hold, person, record


def shown(entry, now=NOW, resource=APPROVALS, **how):
    return of_entry(resource, entry, 12, now, **how)


def test_a_pending_approval():
    assert shown(record()) == {
        "apiVersion": "tollgate.dev/v1alpha1",
        "kind": "Approval",
        "metadata": {
            "name": "apr-7f3k",
            "uid": records.UID,
            "resourceVersion": "12",
            "creationTimestamp": "2027-01-15T08:00:00Z",
            "labels": {"tollgate.dev/phase": "Pending", "tollgate.dev/user": "tollgate-ci-agent-9b6b24b4"},
        },
        "spec": {
            "requester": {
                "username": "tollgate:ci-agent",
                "uid": "u1",
                "groups": ["agents", "bots"],
                "issuer": "https://issuer",
                "credentialID": "jti-1",
            },
            "command": "kubectl scale deployment web --replicas=0 -n shop",
            "summary": "scale deployment shop/web to 0",
            "verb": "patch",
            "resource": "deployments.apps/scale",
            "namespace": "shop",
            "impacts": ["write", "delete"],
            "rules": [
                {
                    "name": "agents/new-namespace",
                    "message": "Namespaces cost money.",
                    "approverGroups": ["platform-oncall"],
                    "needed": 1,
                }
            ],
            "items": [{"what": "scale deployment shop/web", "uid": "uid-of-web", "resourceVersion": "17"}],
            "itemCount": 1,
            "preview": {
                "diff": "--- live\n+++ after\n@@ -1,2 +1,2 @@\n kind: Deployment\n-  replicas: 2\n+  replicas: 0",
                "counts": {"pods": 14},
                "names": ["shop/web-1", "shop/web-2"],
                "notes": ["could not be computed: volumes"],
                "exact": True,
            },
            "policyRevision": "r1",
            "expires": "2027-01-15T08:15:00Z",
            "decision": "",
            "reason": "",
        },
        "status": {
            "phase": "Pending",
            "waiting": False,
            "missing": {"agents/new-namespace": 1},
            "conditions": [
                {
                    "type": kind,
                    "status": "False",
                    "lastTransitionTime": "2027-01-15T08:00:00Z",
                    "reason": "Pending",
                    "message": "waiting for a decision",
                }
                for kind in ("Approved", "Decided")
            ],
        },
    }


def conditions(content):
    return {c["type"]: (c["status"], c["lastTransitionTime"][-3:]) for c in content["status"]["conditions"]}


YES = approved(record())
USED = approvals.use(YES, "digest-of-apr-7f3k", "audit-1", NOW + 8)
NO = approvals.decide(record(), Decider(person("bob", records.ONCALL), False), False, "not today", NOW + 5)


@pytest.mark.parametrize(
    ("entry", "now", "phase", "decision", "reason", "approved", "decided"),
    [
        pytest.param(record(), NOW + 900, "Expired", "", "", "False", "False", id="nobody decided in time"),
        pytest.param(YES, NOW + 6, "Approved", "Approved", "go on", "True", "True", id="a yes"),
        pytest.param(YES, NOW + 905, "Expired", "Approved", "go on", "False", "True", id="a yes nobody used"),
        pytest.param(USED, NOW + 9, "Used", "Approved", "go on", "True", "True", id="a yes that was used"),
        pytest.param(NO, NOW + 6, "Denied", "Denied", "not today", "False", "True", id="a no"),
        pytest.param(
            approvals.void(YES, "it changed", NOW + 7), NOW + 8, "Void", "Approved", "go on", "False", "True", id="void"
        ),
        pytest.param(
            approvals.cancel(record(), "x", NOW + 7), NOW + 8, "Cancelled", "", "", "False", "False", id="cancelled"
        ),
    ],
)
def test_what_became_of_it(entry, now, phase, decision, reason, approved, decided):
    content = shown(entry, now)
    assert content["status"]["phase"] == content["metadata"]["labels"]["tollgate.dev/phase"] == phase
    assert (content["spec"]["decision"], content["spec"]["reason"]) == (decision, reason)
    found = conditions(content)
    assert (found["Approved"][0], found["Decided"][0]) == (approved, decided)


def test_of_two_people_the_first_leaves_the_decision_open():
    # Else the second's patch would change nothing, and count for nothing.
    first = approved(record("apr-2", hold(needed=2)))
    content = shown(first)
    assert (content["spec"]["decision"], content["status"]["phase"]) == ("", "Pending")
    assert content["status"]["missing"] == {"agents/new-namespace": 1}
    assert [said["username"] for said in content["status"]["decisions"]] == ["alice"]


def test_who_said_what_and_what_used_it():
    status = shown(USED, NOW + 9)["status"]
    assert status["decisions"] == [
        {"username": "alice", "decision": "Approved", "reason": "go on", "time": "2027-01-15T08:00:05Z", "via": "api",
         "rules": ["agents/new-namespace"]},
    ]  # fmt: skip
    assert status["usedBy"] == [
        {"what": "scale deployment shop/web", "auditID": "audit-1", "time": "2027-01-15T08:00:08Z"}
    ]
    assert (status["decidedAt"], status["validUntil"], status["endedAt"]) == (
        "2027-01-15T08:00:05Z", "2027-01-15T08:15:05Z", "2027-01-15T08:00:08Z",
    )  # fmt: skip
    assert "missing" not in status


def test_a_long_fan_out_is_cut():
    items = tuple(Item(f"d{n}", f"delete pod shop/web-{n}") for n in range(250))
    spec = shown(record(items=items))["spec"]
    assert (len(spec["items"]), spec["itemCount"]) == (100, 250)


def test_redacted_are_names_and_counts_only():
    spec = shown(record(), redacted=True)["spec"]
    assert "diff" not in spec["preview"]
    assert (spec["preview"]["counts"], spec["preview"]["names"]) == ({"pods": 14}, ["shop/web-1", "shop/web-2"])
    assert spec["preview"]["notes"][-1] == "the difference is not shown: you may not read this object yourself"
    assert "replicas: 0" not in json.dumps(spec)
    # Without a diff there is nothing to hide, and nothing is said.
    assert "notes" not in shown(record(preview=Preview(argv=("sh",))), redacted=True)["spec"]["preview"]


def test_an_access_request():
    content = shown(records.access_request(), resource=REQUESTS)
    asked = ("kind", "spec.verbs", "spec.resources", "spec.namespace", "spec.duration", "spec.justification")
    found = [content["kind"], *(content["spec"][path.removeprefix("spec.")] for path in asked[1:])]
    assert found == ["AccessRequest", ["delete"], ["pods"], "shop", "30m", "clean up after the load test"]
    assert "preview" not in content["spec"]
    assert "grant" not in content["status"]


def test_a_yes_names_the_grant_it_makes():
    request = records.access_request()
    assert shown(approved(request), resource=REQUESTS)["status"]["grant"] == records.grant(request).name
    lasting = record("apr-3", hold(grant_for=600))
    assert shown(approved(lasting))["status"]["grant"] == records.grant(lasting).name
    assert "grant" not in shown(YES)["status"]


def test_everywhere_is_said():
    request = records.access_request()
    assert request.access is not None
    everywhere = replace(request, access=replace(request.access, namespace=""))
    assert shown(everywhere, resource=REQUESTS)["spec"]["namespace"] == "*"
    assert shown(records.grant(everywhere), resource=GRANTS)["spec"]["namespace"] == "*"


@pytest.mark.parametrize(
    ("grant", "now", "phase", "active"),
    [
        pytest.param(records.grant(), NOW + 1, "Active", "True", id="it holds"),
        pytest.param(records.grant(), NOW + 1800, "Expired", "False", id="its time is over"),
        pytest.param(approvals.revoke(records.grant(), "bob", NOW + 5), NOW + 6, "Revoked", "False", id="revoked"),
        pytest.param(
            approvals.revoke(records.grant(), "bob", NOW + 5),
            NOW + 9999,
            "Revoked",
            "False",
            id="revoked, and long over",
        ),
    ],
)
def test_grants(grant, now, phase, active):
    content = shown(grant, now, GRANTS)
    assert content["status"]["phase"] == content["metadata"]["labels"]["tollgate.dev/phase"] == phase
    assert content["spec"]["revoked"] is (phase == "Revoked")
    assert conditions(content)["Active"][0] == active
    assert content["status"]["approvers"] == ["alice"]
    assert content["status"]["until"] == "2027-01-15T08:30:00Z"
    assert content["spec"]["source"] == "acr-1"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        pytest.param("alice", "alice", id="as it is"),
        pytest.param("a@b.example", "a-b.example-7cc9f9c0", id="a mail address"),
        pytest.param("a-b.example", "a-b.example", id="which is not this one"),
        pytest.param(":::", "00e9ac12", id="nothing left"),
    ],
)
def test_labels(text, label):
    found = virtualobjects.label_value(text)
    assert found == label or found.rpartition("-")[0] == label.rpartition("-")[0]
    assert len(found) <= 63


@given(st.text(min_size=1, max_size=100), st.text(min_size=1, max_size=100))
def test_labels_are_valid_and_tell_users_apart(one, other):
    first, second = virtualobjects.label_value(one), virtualobjects.label_value(other)
    for label in (first, second):
        assert len(label) <= 63
        assert virtualobjects._LABEL_VALUE.fullmatch(label)
    assert (first == second) is (one == other)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        pytest.param("kubectl get pods", "kubectl get pods", id="plain"),
        pytest.param("grüße, 世界 🙂", "grüße, 世界 🙂", id="letters of any script"),
        pytest.param("a\nb\tc", "a\nb\tc", id="lines and tabs"),
        pytest.param("\x1b[2Jdelete", "<U+001B>[2Jdelete", id="an escape of the terminal"),
        pytest.param("delete \u202eteg", "delete <U+202E>teg", id="right to left"),
        pytest.param("pod\u200bs", "pod<U+200B>s", id="a space without width"),
        pytest.param("a\rb", "a<U+000D>b", id="back to the start of the line"),
        pytest.param("a\u2028b", "a<U+2028>b", id="another end of line"),
        pytest.param("\udc80", "<U+DC80>", id="half a letter"),
    ],
)
def test_what_does_not_show_is_written_out(text, plain):
    assert virtualobjects.plain({text: [text, (text,)]}) == {plain: [plain, [plain]]}


def test_nothing_of_a_record_goes_out_unseen():
    content = shown(record(command="\x1b[8mrm", requester=replace(record().requester, username="a\u202eb")))
    assert "\x1b" not in json.dumps(content, ensure_ascii=False)
    assert content["spec"]["requester"]["username"] == "a<U+202E>b"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [pytest.param(1800, "30m", id="minutes"), pytest.param(5400, "1h30m", id="hours"),
     pytest.param(61, "1m1s", id="seconds"), pytest.param(0, "0s", id="none")],
)  # fmt: skip
def test_durations(seconds, text):
    assert virtualobjects.duration(seconds) == text


def test_times_go_both_ways():
    assert virtualobjects.seconds_of(virtualobjects.time(NOW)) == NOW
    assert (virtualobjects.time(0), virtualobjects.seconds_of("")) == ("", 0)


@pytest.mark.parametrize(
    ("resource", "entry", "now"),
    [
        pytest.param(APPROVALS, record(), NOW, id="an approval"),
        pytest.param(APPROVALS, record(requester=replace(record().requester, username="a\u202eb")), NOW, id="odd user"),
        pytest.param(APPROVALS, record(), NOW + 9999, id="one that is over"),
        pytest.param(REQUESTS, records.access_request(), NOW, id="an access request"),
        pytest.param(GRANTS, records.grant(), NOW, id="a grant"),
        pytest.param(GRANTS, records.grant(), NOW + 9999, id="a grant that is over"),
    ],
)
def test_what_selectors_look_at_is_what_the_object_has(resource, entry, now):
    content, seen = shown(entry, now, resource), virtualobjects.selectable(entry, now)
    assert seen["metadata"]["labels"] == content["metadata"]["labels"]
    for path in resource.fields:
        assert virtualselectors.field_of(content, path)  # it is there, and a text
        assert virtualselectors.field_of(seen, path) == virtualselectors.field_of(content, path)
