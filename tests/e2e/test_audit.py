"""The check of the audit log: each thing that it looks for, found."""

import uuid

import pytest

from tests.e2e import audit, client
from tests.e2e.rawclient import GATEWAY


def event(name=None, **more):
    return {
        "auditID": name or str(uuid.uuid4()), "stage": "ResponseComplete", "verb": "get", "requestURI": "/api",
        "user": {"username": GATEWAY}, "userAgent": "kubectl", "impersonatedUser": {"username": "tollgate:a"}, **more,
    }  # fmt: skip


GOOD = event()


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
def test_problems(monkeypatch, events, said):
    monkeypatch.setattr(audit, "recorded", None)
    found = audit.problems(events)
    assert bool(found) is bool(said)
    assert all(said in one for one in found)


@pytest.mark.parametrize(
    ("record", "is_good"),
    [
        pytest.param({GOOD["auditID"]: "allow"}, True, id="allowed"),
        pytest.param({GOOD["auditID"]: "approved"}, True, id="approved"),
        pytest.param({GOOD["auditID"]: "deny"}, False, id="denied, and there all the same"),
        pytest.param({}, False, id="in no record"),
    ],
)
def test_with_a_record(monkeypatch, record, is_good):
    monkeypatch.setattr(audit, "recorded", lambda _gateway: record)
    assert (not audit.problems([GOOD], [object()])) is is_good


@pytest.mark.e2e
def test_a_real_log_is_seen(controlplane, open_gateway, agent_token):
    since = controlplane.audit_position()
    client.request(open_gateway.port, open_gateway.ca_file, "GET", "/api/v1/pods?limit=1", token=agent_token)
    events = [e for e in controlplane.audit_events(since) if e["user"].get("username") == GATEWAY]
    assert [e["requestURI"] for e in events if not e["auditID"].startswith(audit.OWN)] == ["/api/v1/pods?limit=1"]
