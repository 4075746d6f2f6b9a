import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import auditevents, chain, shipforms
from addons.core.shipforms import Target, TargetError
from tests import recordings

CHECKPOINT = chain.Checkpoint(1, chain.NOTHING_BEFORE, recordings.TIME, "u", "p", "open", 0, "a" * 64).sign(
    chain.new_key()
)
EVENT = chain.link(recordings.event("a", requestObject={"k": "v"}), uid="u", sequence=1, previous="a" * 64)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        pytest.param("stdout", Target("stdout", "stdout"), id="stdout"),
        pytest.param("syslog+tls://logs", Target("syslog", "syslog-logs-6514", "logs", 6514), id="syslog"),
        pytest.param(
            "syslog+tls://logs:999?ca=/a%20b&cert=/c&key=/k",
            Target("syslog", "syslog-logs-999", "logs", 999, ca="/a b", cert="/c", key="/k"),
            id="syslog with files",
        ),
        pytest.param("syslog+tls://[::1]:99", Target("syslog", "syslog-__1-99", "::1", 99), id="IPv6"),
    ],
)
def test_targets(text, target):
    assert shipforms.read_target(text) == target


def test_a_webhook_keeps_its_own_parameters():
    target = shipforms.read_target("https://siem.example/audit?index=a%2Bb&ca=/ca&token-file=/t#x")
    assert (target.kind, target.url) == ("webhook", "https://siem.example/audit?index=a%2Bb")
    assert (target.ca, target.token_file) == ("/ca", "/t")
    assert target.name.startswith("webhook-siem.example-")
    assert target.name != shipforms.read_target("https://siem.example/other").name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "names no host", id="empty"),
        pytest.param("file:///x", "names no host", id="a file"),
        pytest.param("http://siem/x", "none of stdout, syslog+tls:// and https://", id="plain http"),
        pytest.param("syslog://logs", "is none of stdout", id="syslog without TLS"),
        pytest.param("https://user:secret@siem/x", "holds no password", id="a password"),
        pytest.param("https://siem:99999/x", "is not an address", id="no port"),
        pytest.param("syslog+tls://logs/path", "takes ca, cert and key only", id="a path"),
        pytest.param("syslog+tls://logs?token-file=/x", "takes ca, cert and key only", id="a token"),
    ],
)
def test_no_targets(text, said):
    with pytest.raises(TargetError) as caught:
        shipforms.read_target(text)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_plain_http_on_this_machine():
    assert shipforms.read_target("http://127.0.0.1:80/x").kind == "webhook"


@given(st.text(max_size=60))
def test_any_address_is_one_or_not(text):
    try:
        target = shipforms.read_target(text)
    except TargetError:
        return
    assert all(c.isalnum() or c in "._-" for c in target.name)


def test_syslog():
    message = shipforms.syslog(EVENT, host="bastion 1", time="2026-11-24T14:03:22.000000Z")
    length, _, rest = message.partition(b" ")
    assert int(length) == len(rest)
    head = b"<110>1 2026-11-24T14:03:22.000000Z bastion1 tollgate - audit - "
    assert rest == head + EVENT
    assert b" tollgate - checkpoint - {" in shipforms.syslog(CHECKPOINT, host="", time="t")


def test_event_list():
    value = json.loads(shipforms.event_list([EVENT, CHECKPOINT]))
    assert (value["kind"], value["apiVersion"]) == ("EventList", "audit.k8s.io/v1")
    assert value["items"][0] == json.loads(EVENT)
    assert value["items"][1]["kind"] == "Event"
    assert value["items"][1]["requestReceivedTimestamp"] == recordings.TIME
    assert chain.anchors([shipforms.event_list([EVENT, CHECKPOINT])]) == [CHECKPOINT]


def test_a_body_that_looks_like_a_checkpoint_is_none():
    event = recordings.event("a", requestObject={"kind": "Checkpoint"})
    assert shipforms.kind_of(chain.link(event, uid="u", sequence=1, previous="a" * 64)) == "audit"


@pytest.mark.parametrize(
    ("large", "left"),
    [
        pytest.param({"responseObject": "x" * 5000}, "responseObject", id="the answer first"),
        pytest.param({"requestObject": "x" * 5000, "responseObject": "y"}, "responseObject, requestObject", id="both"),
        pytest.param({"annotations": {auditevents.BEFORE: "x" * 5000}}, "tollgate.dev/before", id="what was before"),
        pytest.param({"userAgent": "x" * 5000}, "all else", id="anything"),
        pytest.param({"user": {"username": "ann", "groups": ["g" * 5000]}}, "all else", id="groups"),
    ],
)
def test_what_is_too_long_is_shortened_and_says_so(large, left):
    line = chain.link(recordings.event("a", **large), uid="u", sequence=7, previous="a" * 64)
    short = shipforms.shorten(line, 2000)
    event, link = chain.read_line(short)
    assert len(short) <= 2000
    assert event["annotations"][shipforms.SHORTENED] == left
    assert event["user"]["username"] == "ann"
    assert link.sequence == 7
    assert shipforms.shorten(line, 10_000) == line


def test_a_checkpoint_is_never_shortened():
    assert shipforms.shorten(CHECKPOINT, 10) == CHECKPOINT


@given(st.binary(max_size=300), st.integers(10, 100))
def test_nonsense_is_cut(data, limit):
    assert isinstance(shipforms.shorten(data, limit), bytes)


def test_dropped():
    event = json.loads(shipforms.dropped(7, 900, recordings.TIME))
    assert event["annotations"][auditevents.SUMMARY].startswith("7 lines (900 bytes) were not shipped")
