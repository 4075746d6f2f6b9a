"""The check of the audit log: each thing that it looks for, found."""

import dataclasses
import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from addons.core import auditevents
from tests.e2e import audit, client, gateway, onrecord
from tests.e2e.rawclient import GATEWAY

AT = 1_800_000_000.0  # seconds since the epoch


def event(name=None, **more):
    return {
        "auditID": name or str(uuid.uuid4()), "stage": "ResponseComplete", "verb": "get", "requestURI": "/api",
        "requestReceivedTimestamp": auditevents.timestamp(AT), "user": {"username": GATEWAY}, "userAgent": "kubectl",
        "impersonatedUser": {"username": "tollgate:a"}, **more,
    }  # fmt: skip


@dataclasses.dataclass
class Ended:
    """What is looked at of a gateway when the run ends."""

    folder: Path
    recordings: Path
    record: Any
    began: float = AT - 10.0
    ended: float = AT + 10.0
    killed: bool = False
    recording: str = "whole"

    def read_record(self) -> None:
        pass


def ended(*lines, folder="/gateways/one", notes=(), used=None, **more):
    """A gateway with these lines on record, which ran around AT."""
    numbered = {("2027-01-15/a/b", number): one for number, one in enumerate(lines)}
    record = onrecord.Record(numbered, set(notes), used or {})
    return Ended(Path(folder), Path(folder) / "recordings", record, **more)


def line(name="", stage="ResponseComplete", verdict="allow", **more):
    return onrecord.Line(name, stage, verdict, **more)


GOOD = event()
CHANGE = event(verb="create")


@pytest.mark.parametrize(
    ("events", "said"),
    [
        pytest.param([GOOD, event()], "", id="two requests"),
        pytest.param([{**GOOD, "stage": "ResponseStarted"}, GOOD], "", id="a stream"),
        pytest.param([event("tollgate-1", userAgent="tollgate/1", impersonatedUser={})], "", id="the gateway's own"),
        pytest.param([event("forged", user={"username": "admin"})], "", id="not by the gateway"),
        pytest.param([GOOD, {**GOOD}], "twice", id="an id twice"),
        pytest.param([event("forged-by-a-client")], "no id that the gateway makes", id="an id of a client's"),
        pytest.param([event("tollgate-1")], "is not the gateway's own", id="one that pretends"),
        pytest.param([event(impersonatedUser={})], "as the gateway itself", id="nobody impersonated"),
        pytest.param([event(impersonatedUser={}, userAgent="thief")], "as the gateway itself", id="a thief who got it"),
    ],
)
def test_problems(events, said):
    found = audit.problems(events, [ended(*(line(name) for name in {e["auditID"] for e in events}))])
    assert bool(found) is bool(said)
    assert all(said in one for one in found)


# The record


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        pytest.param([line()], "", id="allowed"),
        pytest.param([line(stage="RequestReceived"), line()], "", id="written ahead and when it was over"),
        pytest.param([line(verdict="hold", approval="apr-1")], "", id="approved"),
        pytest.param([line(verdict="hold")], "on record as hold", id="held, and nobody approved it"),
        pytest.param([line(verdict="deny")], "on record as deny", id="denied, and there all the same"),
        pytest.param([line(verdict="")], "on record as unjudged", id="no policy was asked"),
        pytest.param([line(refused=True)], "on record as refused", id="allowed, and refused afterwards"),
        pytest.param(
            [line(stage="RequestReceived"), line(verdict="deny")], "on record as deny", id="the worst of its stages"
        ),
        pytest.param([], "in no record (running then: /gateways/one)", id="in no record"),
        pytest.param([line("another")], "in no record", id="another is on record"),
        pytest.param([line(), line()], "on record 2 times (ResponseComplete, ResponseComplete)", id="twice on record"),
    ],
)
@pytest.mark.parametrize("what", [GOOD, CHANGE], ids=["a read", "a change"])
def test_the_record(what, lines, said):
    mine = [dataclasses.replace(one, audit_id=one.audit_id or what["auditID"]) for one in lines]
    found = audit.problems([what], [ended(*mine)])
    assert len(found) == bool(said), found
    assert said in "".join(found)


@pytest.mark.parametrize(
    ("excuse", "what", "is_good"),
    [
        pytest.param({"killed": True}, GOOD, True, id="a read, and it was killed"),
        pytest.param({"recording": "broken"}, GOOD, True, id="a read, and its test broke the recording"),
        pytest.param({"killed": True}, CHANGE, False, id="a change, and it was killed"),
        pytest.param({"recording": "broken"}, CHANGE, False, id="a change, and its test broke the recording"),
        pytest.param({"killed": True, "ended": AT - audit.LATE - 1.0}, GOOD, False, id="a read after it was killed"),
        pytest.param({"killed": True, "ended": AT - 0.1}, GOOD, True, id="a read on its way when it was killed"),
        pytest.param({"killed": True, "began": AT + 1.0}, GOOD, False, id="a read before it began"),
    ],
)
def test_who_may_lose_reads(excuse, what, is_good):
    assert (not audit.problems([what], [ended(folder="/gateways/other"), ended(**excuse)])) is is_good


@pytest.mark.parametrize("excuse", [{"killed": True}, {"recording": "broken"}], ids=str)
def test_nothing_excuses_what_is_on_record_as_denied_or_twice(excuse):
    name = GOOD["auditID"]
    assert "as deny" in audit.problems([GOOD], [ended(line(name, verdict="deny"), **excuse)])[0]
    assert "2 times" in audit.problems([GOOD], [ended(line(name), line(name), **excuse)])[0]


@pytest.mark.parametrize(
    ("excuse", "count"),
    [({}, 1), ({"killed": True}, 0), ({"recording": "broken"}, 0)],
    ids=["whole", "killed", "broken by its test"],
)
def test_a_record_that_is_not_whole(excuse, count):
    found = audit.problems([], [ended(notes={"a/b/c: 3 records before event 7 were lost"}, **excuse)])
    assert len(found) == count
    assert all("/gateways/one is not whole: a/b/c: 3 records" in one for one in found)


def test_half_a_line_of_a_killed_gateway_is_not_the_next_ones():
    notes = {"a/b/c: events.jsonl ends in half a line, which is left out"}
    assert not audit.problems([], [ended(killed=True, notes=notes), ended(notes=notes)])
    assert audit.problems([], [ended(killed=True, notes=notes), ended(notes=notes, folder="/gateways/two")])


def test_one_folder_of_recordings_is_read_once():
    """A gateway that goes on where another was killed reads what that one has written, too."""
    first, second = line(GOOD["auditID"]), line(CHANGE["auditID"])
    assert not audit.problems([GOOD, CHANGE], [ended(first, killed=True), ended(first, second)])


def test_an_id_in_two_records():
    gateways = [ended(line(GOOD["auditID"])), ended(line(GOOD["auditID"], stage="RequestReceived"), folder="/two")]
    (said,) = audit.problems([GOOD], gateways)
    assert "2 times (RequestReceived, ResponseComplete) in /gateways/one/recordings and /two/recordings" in said


def test_a_gateway_that_was_left_running():
    one = ended()
    one.record = None
    assert "was not ended" in audit.problems([], [one])[0]


@pytest.mark.parametrize(
    ("approval", "is_good"),
    [
        pytest.param("apr-1", True, id="its approval"),
        pytest.param("grt-1", True, id="the grant that it made"),
        pytest.param("grt-7, grt-1", True, id="one of several grants"),
        pytest.param("apr-2", False, id="another one"),
        pytest.param("", False, id="none"),
    ],
)
def test_an_approval_that_was_used(approval, is_good):
    name = CHANGE["auditID"]
    gateway = ended(line(name, verdict="allow", approval=approval), used={name: frozenset({"apr-1", "grt-1"})})
    assert (not audit.problems([CHANGE], [gateway])) is is_good


@pytest.mark.parametrize(
    ("verb", "about", "must"),
    [
        pytest.param("get", {"resource": "pods"}, False, id="get"),
        pytest.param("watch", {"resource": "pods", "subresource": "status"}, False, id="watch"),
        pytest.param("get", {}, False, id="a page"),
        pytest.param("get", {"resource": "pods", "subresource": "log"}, False, id="logs"),
        pytest.param("list", {"resource": "secrets"}, True, id="secrets"),
        pytest.param("list", {"resource": "secrets", "apiGroup": "example.com"}, False, id="secrets of another group"),
        pytest.param("get", {"resource": "pods", "subresource": "exec"}, True, id="exec over WebSocket"),
        pytest.param("create", {"resource": "pods", "subresource": "portforward"}, True, id="port-forward"),
        pytest.param("delete", {"resource": "pods"}, True, id="delete"),
        pytest.param("create", {"resource": "selfsubjectaccessreviews"}, False, id="can-i"),
        pytest.param("create", {"resource": "subjectaccessreviews"}, True, id="what others can"),
        pytest.param("post", {}, True, id="a page that is written to"),
        pytest.param("options", {}, True, id="a word that nobody knows"),
    ],
)
def test_what_must_be_on_record(verb, about, must):
    assert audit.must_be_on_record({"verb": verb, "objectRef": about}) is must


# A real gateway

POLICY = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: agents}
people: '"tollgate:system:serviceaccounts:people" in identity.groups'
rules:
- {name: everything, action: allow, match: {verbs: ["*"], resources: ["*", "*/*"]}}
- name: no-secrets
  action: deny
  match: {subjects: [agents], resources: [secrets]}
- name: settings
  action: hold
  match: {subjects: [agents], verbs: [create], resources: [configmaps]}
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 0s}
"""


@pytest.mark.e2e
def test_a_real_record_is_read(controlplane, gateway_kubeconfig, agent_token, tmp_path):
    """What is allowed, denied, held and approved, of a gateway that ended, and again of one that was killed."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(tmp_path / "policy.yaml")]
    folder, since = tmp_path / "gateway", controlplane.audit_position()
    maps = "/api/v1/namespaces/shop/configmaps"

    def ask(one, method, path, token=agent_token, body=None, headers=None):
        return client.request(one.port, one.ca_file, method, path, token=token, body=body, headers=headers)

    with gateway.running(folder, *arguments) as first:
        body = {"metadata": {"name": "joined"}}
        name = re.search(r"apr-\w+", ask(first, "POST", maps, body=body).message)[0]
        decision = json.dumps({"spec": {"decision": "Approved"}}).encode()
        path, kind = f"/apis/tollgate.dev/v1alpha1/approvals/{name}", "application/merge-patch+json"
        approver = controlplane.token("people", "engineer", audience="tollgate-approver")
        answer = ask(first, "PATCH", path, approver, decision, {"Content-Type": kind})
        assert answer.status == 200, answer
        assert ask(first, "POST", maps, body=body).status == 201
        assert ask(first, "GET", maps).status == 200
        assert ask(first, "GET", "/api/v1/namespaces/shop/secrets").status == 403
    with gateway.running(folder, *arguments) as second:
        assert ask(second, "DELETE", f"{maps}/joined").status == 200
        second.kill()
    assert (first.killed, second.killed) == (False, True)
    by_id = {}
    for one in second.record.lines.values():
        by_id.setdefault(one.audit_id, []).append(one)
    assert first.record.lines.items() < second.record.lines.items()
    events = [e for e in controlplane.audit_events(since) if e["auditID"] in by_id]
    assert [e["verb"] for e in events] == ["create", "list", "delete"]
    assert [onrecord.why(by_id[e["auditID"]]) for e in events] == ["approved", "allow", "allow"]
    left = [onrecord.why(lines) for name, lines in by_id.items() if name not in {e["auditID"] for e in events}]
    assert sorted(left).count("refused") == 2  # held for the first time, and denied
    assert first.record.used == {events[0]["auditID"]: frozenset({name})}
    assert audit.problems(events, [first, second]) == []
    for event in events:
        rest = [without(one, event["auditID"]) for one in (first, second)]
        (said,) = audit.problems(events, rest)
        assert f"{event['auditID']} is in no record" in said


def without(one, audit_id):
    lines = [line for line in one.record.lines.values() if line.audit_id != audit_id]
    return ended(*lines, folder=one.folder, began=one.began, ended=one.ended, killed=one.killed)


@pytest.mark.e2e
def test_a_real_log_is_seen(controlplane, open_gateway, agent_token):
    since = controlplane.audit_position()
    client.request(open_gateway.port, open_gateway.ca_file, "GET", "/api/v1/pods?limit=1", token=agent_token)
    events = [e for e in controlplane.audit_events(since) if e["user"].get("username") == GATEWAY]
    assert [e["requestURI"] for e in events if not e["auditID"].startswith(audit.OWN)] == ["/api/v1/pods?limit=1"]
