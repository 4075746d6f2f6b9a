import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import auditevents, classify, sessions
from addons.core.auditevents import Approved, Asked, Beside, Level, Outcome, Stage
from addons.core.model import Action, Identity, Verdict
from addons.core.sessions import SessionError, Tally

T = 1795529002.0
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "shop", "uid": "1"}, "spec": {"x": 1}}


def event(
    name,
    method="DELETE",
    target="/api/v1/namespaces/shop/pods/a",
    *,
    stage=Stage.COMPLETE,
    session="",
    command="kubectl delete",
    code=200,
    at=T,
    refused="",
    body=None,
    answer=None,
    **more,
):
    headers = {"Kubectl-Session": session, "Kubectl-Command": command} if session else {}
    raw = json.dumps(body).encode() if body is not None else b""
    if raw:
        headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
    operation = classify.classify(method, target, headers, raw)
    outcome = Outcome(at, code, refused_by=refused, body=answer, message=more.pop("message", ""))
    return auditevents.build(
        stage,
        Asked(name, method, target, at),
        Identity("ann"),
        operation,
        Verdict(Action.DENY if refused else Action.ALLOW, "r", "p"),
        level=Level.FULL,
        body=body,
        outcome=outcome if stage is Stage.COMPLETE else None,
        **more,
    )


@pytest.mark.parametrize(
    ("username", "folder"),
    [
        pytest.param("system:serviceaccount:shop:agent-ci", "agent-ci@shop", id="a ServiceAccount"),
        pytest.param("ann", "ann", id="plain"),
        pytest.param("ann.b-c_d", "ann.b-c_d", id="plain with marks"),
        pytest.param("ann@example.com", "ann@example.com~", id="an address"),
        pytest.param("agent-ci@shop", "agent-ci@shop~", id="what a ServiceAccount's looks like"),
        pytest.param("Ann", "Ann~", id="capital letters"),
        pytest.param("../../etc", "etc~", id="climbs"),
        pytest.param("..", "identity~", id="dots"),
        pytest.param("", "identity~", id="nothing"),
        pytest.param("a/b\0c\nd\x1b[31m", "a_b_c_d_31m~", id="slashes and control characters"),
        pytest.param("-rf", "rf~", id="like an option"),
        pytest.param(".hidden", "hidden~", id="hidden"),
        pytest.param("x" * 300, "x" * 55 + "~", id="long"),
        pytest.param("\ud800", "identity~", id="half a letter"),
    ],
)
def test_identity_folder(username, folder):
    made = sessions.identity_folder(username)
    assert made == folder or (folder.endswith("~") and made.startswith(folder) and len(made) == len(folder) + 8)


@given(st.text(), st.text())
def test_folders_are_safe_and_never_shared(one, other):
    made = sessions.identity_folder(one)
    assert sessions.is_session_path(sessions.session_path(one, T, "0a1b2c3d"))
    assert 0 < len(made) <= 64
    assert made not in (".", "..")
    assert not made.startswith(("-", "."))
    if one != other:
        assert made.casefold() != sessions.identity_folder(other).casefold()


def test_session_path():
    assert sessions.session_path("ann", T, "k3j9x2") == "2026-11-24/ann/14-03-22-k3j9x2"
    assert sessions.session_path("ann", T, "k3j9x2", 3) == "2026-11-24/ann/14-03-22-k3j9x2-3"


@pytest.mark.parametrize("path", ["", "x", "2026-11-24/../14-03-22-a/x", "2026-11-24/ann/../14-03-22-a", "/etc/passwd"])
def test_what_is_no_session_path(path):
    assert not sessions.is_session_path(path)


# ----- index -----


def test_tally():
    tally = Tally()
    for one in (
        event("1", session="s1", stage=Stage.RECEIVED),
        event("1", session="s1"),
        event("2", "GET", "/api/v1/namespaces/shop/pods/a", session="s1", at=T + 60),
        event("3", session="s2", code=403, refused="tollgate_block"),
        event("4", code=404),
        event("5", target="/api/v1/namespaces/shop/pods/a?dryRun=All"),
        event("6", approved=Approved("apr-1", ("bea",))),
    ):
        tally.add(one)
    index = sessions.index_of(tally, uid="u", path="p", closed=True, size=7)
    assert (index.events, index.requests, index.changed, index.refused) == (7, 6, 2, 1)
    assert (index.approvals, index.commands, index.username) == (1, 5, "ann")
    assert (index.started, index.ended) == ("2026-11-24T14:03:22.000000Z", "2026-11-24T14:03:22.000000Z")


def test_lost_records_are_added_up():
    tally = Tally()
    for lost in ("2", "3", "x", "9" * 50):
        tally.add({"annotations": {auditevents.LOST: lost}})
    assert tally.lost == 5 + 999_999_999


def test_an_index_comes_back():
    index = sessions.index_of(Tally(), uid="u", path="p", closed=False, size=7, username="ann", part=2, continues="q")
    assert sessions.read_index(index.to_json()) == index


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param(b"", "not the index of a session", id="empty"),
        pytest.param(b"[]", "not the index of a session", id="a list"),
        pytest.param(b'{"kind":"Session","format":1}', "lacks fields", id="lacks fields"),
        pytest.param(b'{"kind":"Session","format":9}', "written by a newer version", id="newer"),
    ],
)
def test_what_is_no_index(raw, message):
    with pytest.raises(SessionError, match=message):
        sessions.read_index(raw)


# ----- the story -----


def test_requests_are_joined_by_their_id():
    before = (POD,)
    (request,) = sessions.requests(
        [event("1", stage=Stage.RECEIVED, beside=Beside(before=before)), event("1", answer={"kind": "Status"})]
    )
    assert request.answered
    assert request.outcome == "200"
    assert auditevents.before_of(request.event) == [POD]


def test_a_request_without_an_answer_says_so():
    (request,) = sessions.requests([event("1", stage=Stage.RECEIVED)])
    assert request.outcome == "no answer was recorded"


def test_timeline_is_in_commands():
    commands = sessions.timeline(
        [
            event("1", "GET", "/api/v1/namespaces/shop/pods", session="s1"),
            event("2", session="s1"),
            event("3", session="s2", code=403, refused="tollgate_block", message="rule p/r denies this"),
            event("4", target="/api/v1/namespaces/shop/pods/b"),
            event("5", session="s1", target="/api/v1/namespaces/shop/pods/b"),
        ]
    )
    assert [(c.key, len(c.requests), c.changed, c.refused) for c in commands] == [
        ("session s1", 3, 2, 0),
        ("session s2", 1, 0, 1),
        ("request 4", 1, 1, 0),
    ]
    assert commands[0].requests[1].summary == "delete pod shop/a"
    assert commands[1].requests[0].outcome == "refused: rule p/r denies this"
    assert commands[1].requests[0].verdict == "deny p/r"


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        pytest.param(["/api", "/apis", "/api/v1/namespaces/shop/pods"], "list pods in shop", id="after the discovery"),
        pytest.param(["/api", "/apis"], "get /api", id="nothing else"),
        pytest.param(["/api/v1/pods", "/api/v1/nodes"], "list pods", id="the first"),
    ],
)
def test_a_read_is_called_by_what_it_is_about(targets, text):
    (command,) = sessions.timeline([event(str(n), "GET", target, session="s1") for n, target in enumerate(targets)])
    assert command.text == text


def test_an_approval_is_in_the_verdict():
    (request,) = sessions.requests([event("1", approved=Approved("apr-1", ("bea", "cid")))])
    assert request.verdict == "allow p/r, apr-1 by bea, cid"


def test_clock_jumps():
    found = [event("1", at=T), event("2", at=T - 30), event("3", at=T - 7200), event("4", at=T - 7100)]
    assert sessions.clock_jumps(found) == [(3, 7200.0)]


# ----- diffs -----


def one(*events):
    return sessions.requests(events)[0]


def test_a_delete_shows_what_is_gone():
    lines = sessions.changes(one(event("1", beside=Beside(before=(POD,)))))
    assert lines[0] == "--- Pod/shop/a"
    assert "-kind: Pod" in lines
    assert "-  x: 1" in lines
    assert not any("uid" in line for line in lines)


def test_a_change_shows_the_difference():
    after = {**POD, "spec": {"x": 2}, "metadata": {**POD["metadata"], "resourceVersion": "9"}}
    lines = sessions.changes(
        one(event("1", "PATCH", body={"spec": {"x": 2}}, answer=after, beside=Beside(before=(POD,))))
    )
    assert [line for line in lines if line[0] in "+-"] == ["--- Pod/shop/a", "-  x: 1", "+  x: 2"]


def test_a_create_shows_what_is_new():
    lines = sessions.changes(one(event("1", "POST", "/api/v1/namespaces/shop/pods", body=POD, code=201)))
    assert lines[0] == "--- nothing"
    assert "+kind: Pod" in lines


def test_without_an_image_what_was_sent_is_shown():
    assert sessions.changes(one(event("1", "PATCH", body={"spec": {"x": 2}}))) == ["(sent)", "spec:", "  x: 2"]


@pytest.mark.parametrize(
    "happened",
    [
        pytest.param(event("1", code=404, beside=Beside(before=(POD,))), id="failed"),
        pytest.param(event("1", refused="x", code=403, beside=Beside(before=(POD,))), id="refused"),
        pytest.param(event("1", "GET"), id="a read"),
        pytest.param(event("1", target="/api/v1/namespaces/shop/pods/a?dryRun=All"), id="a dry run"),
    ],
)
def test_what_changed_nothing_has_no_diff(happened):
    assert sessions.changes(one(happened)) == []


def test_a_long_diff_is_cut():
    large = {"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {f"k{n}": "v" for n in range(1000)}}
    lines = sessions.diff(large, None)
    assert len(lines) <= sessions.MAX_DIFF + 2
    assert lines[-1].startswith("… ")


def test_curl():
    patch = event("1", "PATCH", body={"a": "it's"})
    assert sessions.curl(patch) == (
        "curl -H \"Authorization: Bearer $TOKEN\" -X PATCH -H 'Content-Type: application/merge-patch+json' "
        '--data \'{"a": "it\'"\'"\'s"}\' "$SERVER"/api/v1/namespaces/shop/pods/a'
    )
    assert sessions.curl({"verb": "deletecollection", "requestURI": "/x; rm -rf /"}).endswith(
        "-X DELETE \"$SERVER\"'/x; rm -rf /'"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("kubectl delete päß", "kubectl delete päß", id="plain"),
        pytest.param("a\x1b[2Jb", "a\\u001b[2Jb", id="an escape sequence"),
        pytest.param("a\u202eb", "a\\u202eb", id="right to left"),
        pytest.param("a\nb", "a\\u000ab", id="a line"),
        pytest.param("\ud800", "\\ud800", id="half a letter"),
    ],
)
def test_printable(text, shown):
    assert sessions.printable(text) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(5, "5s"), (252, "4m12s"), (7500, "2h05m"), (-10, "0s")])
def test_duration(seconds, shown):
    assert sessions.duration(auditevents.timestamp(T), auditevents.timestamp(T + seconds)) == shown
    assert sessions.duration("", "x") == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        "auditID",
        "user",
        "verb",
        "stage",
        "annotations",
        "responseStatus",
        "requestObject",
        "requestURI",
        "responseObject",
    ]
)


@given(st.lists(st.dictionaries(FIELDS, JSON | st.just("delete"), max_size=6), max_size=4))
def test_any_objects_make_a_story(found):
    tally = Tally()
    for item in found:
        tally.add(item)
    for command in sessions.timeline(found):
        for request in command.requests:
            assert isinstance(request.outcome + request.verdict + request.summary + sessions.curl(request.event), str)
            sessions.changes(request)
    sessions.clock_jumps(found)
