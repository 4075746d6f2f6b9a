import json
import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import approvals, notices
from addons.core.approvals import Asked, Decider, Phase, Preview
from tests import records


def test_a_question():
    notice = notices.of_record(records.record())
    assert notice.event == "pending"
    assert notice.title == "Tollgate: apr-7f3k waits for a decision"
    assert notice.text.splitlines() == [
        "tollgate:ci-agent asks to: scale deployment shop/web to 0",
        "Rule agents/new-namespace: Namespaces cost money.",
        "Impact: write, delete; 14 objects",
        "Who can decide: platform-oncall",
        "Undecided, it ends at 2027-01-15T08:15:00Z",
        "Look: ./run.sh approvals show apr-7f3k",
        "Decide: ./run.sh approvals approve apr-7f3k, or deny, with a token for tollgate-approver",
    ]


def test_an_access_request_is_named_with_its_kind():
    notice = notices.of_record(records.access_request())
    assert "./run.sh approvals approve accessrequest/acr-1," in notice.text
    assert notice.data["kind"] == "AccessRequest"


def test_an_outcome():
    one = approvals.decide(
        records.record(), Decider(records.person("bob", records.ONCALL), False), False, "hunter2", records.NOW
    )
    notice = notices.of_record(one)
    assert notice.event == "denied"
    assert notice.title == "Tollgate: apr-7f3k was denied"
    assert notice.text.splitlines()[1:] == ["Decided by: bob"]
    assert b"hunter2" not in notices.payload(notice)


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_has_words_of_its_own(phase):
    notice = notices.of_record(records.record(phase=phase))
    assert notice.event == phase.lower()
    assert not notice.title.endswith(phase.value)


def test_the_id_is_of_the_question_and_of_what_became_of_it():
    one = records.record()
    asked, again = notices.of_record(one), notices.of_record(replace(one, waiting=True))
    assert asked.id == again.id
    assert notices.of_record(records.approved(one)).id != asked.id
    assert notices.of_record(replace(one, created=one.created + 1)).id != asked.id


def test_the_payload():
    content = json.loads(notices.payload(notices.of_record(records.record())))
    assert content["apiVersion"] == "tollgate.dev/v1alpha1"
    assert content["kind"] == "Notice"
    assert content["text"].startswith("tollgate:ci-agent asks to")
    assert content["approval"] == {
        "kind": "Approval",
        "name": "apr-7f3k",
        "phase": "Pending",
        "requester": "tollgate:ci-agent",
        "summary": "scale deployment shop/web to 0",
        "rules": [
            {
                "name": "agents/new-namespace",
                "message": "Namespaces cost money.",
                "approverGroups": ["platform-oncall"],
                "approverUsers": [],
                "needed": 1,
            }
        ],
        "impacts": ["write", "delete"],
        "objects": 14,
        "objectsExact": True,
        "created": "2027-01-15T08:00:00Z",
        "expires": "2027-01-15T08:15:00Z",
        "decidedBy": [],
    }


CANARY = "canary-of-what-must-not-leave"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"preview": Preview(diff=f"+  password: {CANARY}")}, id="the diff"),
        pytest.param({"preview": Preview(argv=("mysql", f"-p{CANARY}"))}, id="the command line of an exec"),
        pytest.param({"preview": Preview(names=(CANARY,), notes=(CANARY,))}, id="names and notes"),
        pytest.param({"command": f"kubectl exec web -- mysql -p{CANARY}"}, id="the command"),
        pytest.param({"requester": replace(records.record().requester, credential_id=CANARY)}, id="the token's id"),
        pytest.param({"requester": replace(records.record().requester, uid=CANARY)}, id="the user's uid"),
        pytest.param({"requester": replace(records.record().requester, groups=(CANARY,))}, id="groups"),
        pytest.param({"digest": CANARY, "uid": CANARY, "message": CANARY}, id="digests and messages"),
        pytest.param({"items": (approvals.Item(CANARY, CANARY, CANARY, CANARY, CANARY),)}, id="items"),
        pytest.param({"repeatable": CANARY, "revision": CANARY, "content": {CANARY: 1}}, id="the rest"),
    ],
)
def test_what_does_not_leave(change):
    assert CANARY.encode() not in notices.payload(notices.of_record(records.record(**change)))


def test_a_justification_stays_here():
    one = records.access_request()
    assert one.access is not None
    assert one.access.justification.encode() not in notices.payload(notices.of_record(one))


JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIiwianRpIjoiYiJ9.c2lnbmF0dXJlLW9mLWl0"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("delete pod shop/web-7d9c5b8f6d-x2v4k", None, id="a pod's name"),
        pytest.param("system:serviceaccount:agents:ci-agent", None, id="a username"),
        pytest.param("delete customresourcedefinitions.apiextensions.k8s.io", None, id="a long resource"),
        pytest.param(
            "delete validatingadmissionpolicybindings.admissionregistration.k8s.io", None, id="the longest word"
        ),
        pytest.param(f"get {JWT} now", "get eyJhbG… now", id="a token"),
        pytest.param("user 1c7fa2c4-57a1-4a9e-8e8a-0b6c7f1f9d11", "user 1c7fa2…", id="a UUID"),
        pytest.param("0123456789abcdef0123456789abcdef", "012345…", id="hexadecimal"),
        pytest.param("AKIAIOSFODNN7EXAMPLEwJalrXUtnFEMI/K7MDENG", "AKIAIO…/K7MDENG", id="a key"),
        pytest.param("one\ntwo\r\n\tthree", "one two three", id="lines"),
        pytest.param("a\x1b[31mb", "a<U+001B>[31mb", id="a terminal's escape"),
        pytest.param("x" * 10 + " y" * 200, "x" * 10 + " y" * 44 + " …", id="too long"),
    ],
)
def test_for_data(text, shown):
    assert notices.for_data(text, 100) == (text if shown is None else shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("<!channel> look", "＜！channel＞ look", id="Slack's call to all"),
        pytest.param("@here @everyone", "＠here ＠everyone", id="a call to all"),
        pytest.param("<b>x</b>", "＜b＞x＜/b＞", id="HTML"),
        pytest.param("[approve](https://evil)", "［approve］(https：//evil)", id="a link"),
        pytest.param("http://evil/approve", "http：//evil/approve", id="a bare link"),
        pytest.param("**safe** _read_ `x`", "＊＊safe＊＊ ＿read＿ ｀x｀", id="Markdown"),
        pytest.param("{{ .Token }}", "｛｛ .Token ｝｝", id="a template"),
        pytest.param("x\nDecide: run this", "x Decide: run this", id="a line of its own"),
    ],
)
def test_for_chat(text, shown):
    assert notices.for_chat(text, 100) == shown


HOSTILE = st.text(max_size=400) | st.text(alphabet="<>&@*_`~|[]{}\\#!$^=\"'\n\r\x1b\u202e:/e", max_size=400)
ACTIVE = re.compile(r"[<>&\"'@*_`~|\[\]{}\\#!$^=]|://")


@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_text_of_a_client_means_anything(summary, username, message):
    one = records.record(summary=summary, requester=replace(records.record().requester, username=username))
    hold = replace(one.asked[0].hold, message=message)
    notice = notices.of_record(replace(one, asked=(Asked(hold),)))
    usual = notices.of_record(records.record())
    assert len(notice.text.splitlines()) == len(usual.text.splitlines())
    assert len(notice.text) < 1500
    assert not ACTIVE.search(notice.text + notice.title + notice.data["summary"])
    for text in (notice.text.replace("\n", ""), notice.title, *notice.data.values()):
        assert not any(unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") for char in str(text))
    json.loads(notices.payload(notice))


def test_a_name_is_whole_or_harmless():
    assert notices.of_record(records.access_request("a" * 60)).name == "a" * 60
    assert notices.of_record(records.access_request("<!channel>")).name == "＜！channel＞"


def test_many_rules_and_approvers_are_cut():
    holds = [records.hold(f"rule-{n}", groups=tuple(f"g{n}-{m}" for m in range(9))) for n in range(30)]
    notice = notices.of_record(records.record("apr-1", *holds))
    assert notice.text.count("Rule ") == notices.MAX_LISTED
    assert "and 260 more" in notice.text
    assert len(notice.data["rules"]) == notices.MAX_LISTED
