"""Whom a revocation refuses, what he is told, and who may make and lift one."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import approvals, revocations, status
from addons.core.approvals import Decider, NotAllowed, Requester
from addons.core.model import Identity
from addons.core.revocations import Revocation, RevocationError, Revoked, Target

NOW = 1_800_000_000.0
AGENT = Identity(
    "tollgate:system:serviceaccount:agents:ci-agent",
    uid="u1",
    credential_id="jti-1",
    issued_at=NOW - 100,
    expiry=NOW + 1000,
    claims={"owner": "Alice@example.com"},
)
PERSON = Identity("oidc:bob", credential_id="jti-2", issued_at=NOW - 10, auth_time=NOW - 10,
                  audiences=(approvals.AUDIENCE,))  # fmt: skip


def revocation(target, **more):
    return Revocation("rev-1", "uid-1", target, Requester("oidc:carol"), NOW - 5, **more)


def found(target, identity=AGENT, *, agent=True, claim="owner", now=NOW, **more):
    return Revoked([revocation(target, **more)]).find(identity, now, agent=lambda _: agent, owner_claim=claim)


@pytest.mark.parametrize(
    ("target", "refused"),
    [
        pytest.param(Target(user=AGENT.username), True, id="user"),
        pytest.param(Target(user="system:serviceaccount:agents:ci-agent"), True, id="by its name in the cluster"),
        pytest.param(Target(user=AGENT.username.upper()), True, id="in another case"),
        pytest.param(Target(user="serviceaccount:agents:ci-agent"), False, id="half a name"),
        pytest.param(Target(user="tollgate:system:serviceaccount:agents:ci-agent2"), False, id="another user"),
        pytest.param(Target(token_id="jti-1"), True, id="token"),
        pytest.param(Target(token_id="JTI-1"), False, id="another token"),
        pytest.param(Target(issued_before=NOW - 99), True, id="older token"),
        pytest.param(Target(issued_before=NOW - 100), False, id="issued at that moment"),
        pytest.param(Target(agents=True), True, id="all agents"),
        pytest.param(Target(owner="alice@EXAMPLE.com"), True, id="owner"),
        pytest.param(Target(owner="bob@example.com"), False, id="another owner"),
        pytest.param(Target(user=AGENT.username, token_id="jti-1"), True, id="user and his token"),
        pytest.param(Target(user="oidc:bob", token_id="jti-1"), False, id="all must match: user"),
        pytest.param(Target(user=AGENT.username, issued_before=NOW - 200), False, id="all must match: time"),
        pytest.param(Target(user=AGENT.username, owner="bob"), False, id="all must match: owner"),
    ],
)
def test_whom_it_refuses(target, refused):
    assert (found(target) is not None) is refused


def test_people_are_no_agents():
    assert found(Target(agents=True), PERSON, agent=False) is None


def test_a_token_without_a_time_of_issue_is_as_old_as_any():
    assert found(Target(issued_before=1.0), replace(AGENT, issued_at=0.0)) is not None


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        pytest.param({"until": NOW + 1}, True, id="before its end"),
        pytest.param({"until": NOW}, False, id="at its end"),
        pytest.param({"lifted": NOW - 1, "lifted_by": "x"}, False, id="lifted"),
        pytest.param({"lifted_by": "x"}, False, id="lifted at a time that was lost"),
    ],
)
def test_when(more, refused):
    assert (found(Target(user=AGENT.username), **more) is not None) is refused


def test_it_counts_before_the_clock_reaches_its_beginning():
    assert found(Target(user=AGENT.username), now=NOW - 3600) is not None


@pytest.mark.parametrize(
    ("claims", "extra", "expected"),
    [
        pytest.param({"owner": "Alice"}, {}, {"alice"}, id="text"),
        pytest.param({"owner": ["A", "b", 3, ""]}, {}, {"a", "b"}, id="list"),
        pytest.param({}, {"owner": ("C",)}, {"c"}, id="extra"),
        pytest.param({"owner": 7}, {}, set(), id="number"),
        pytest.param({"owner": {"a": 1}}, {}, set(), id="object"),
        pytest.param({}, {}, set(), id="none"),
        pytest.param({"owner": ["x"] * 19 + ["last", "beyond"]}, {}, {"x", "last"}, id="bounded"),
    ],
)
def test_owners(claims, extra, expected):
    assert revocations.owners(replace(AGENT, claims=claims, extra=extra), "owner") == expected


def test_without_a_claim_nobody_has_an_owner():
    assert revocations.owners(AGENT, "") == frozenset()


def test_of_several_the_one_that_no_token_gets_past():
    by_token = replace(revocation(Target(token_id="jti-1")), name="rev-token", created=NOW - 50)
    by_user = replace(revocation(Target(user=AGENT.username)), name="rev-user")
    got = Revoked([by_token, by_user]).find(AGENT, NOW, agent=lambda _: True)
    assert got is by_user
    assert Revoked([by_token]).find(AGENT, NOW, agent=lambda _: True) is by_token


def test_who_is_an_agent_is_asked_only_where_it_counts():
    def asked(_):
        raise AssertionError

    assert Revoked([revocation(Target(user="x"))]).find(AGENT, NOW, agent=asked) is None


@pytest.mark.parametrize(
    ("target", "code"),
    [
        pytest.param(Target(user="a"), 403, id="user"),
        pytest.param(Target(agents=True), 403, id="agents"),
        pytest.param(Target(owner="a"), 403, id="owner"),
        pytest.param(Target(token_id="a"), 401, id="token"),
        pytest.param(Target(issued_before=1), 401, id="issued before"),
        pytest.param(Target(user="a", issued_before=1), 401, id="user, issued before"),
    ],
)
def test_what_he_is_told(target, code):
    # 401 only where a new token helps: a credential plugin is run again then.
    refusal = revocations.refusal(revocation(target, reason="the password is hunter2", until=NOW))
    assert refusal.code == code
    assert "rev-1" in refusal.message
    assert "hunter2" not in refusal.message
    assert len(refusal.message) < status.MAX_MESSAGE
    assert refusal.message == status.one_line(refusal.message)
    assert ("2027-01-15T08:00:00Z" in refusal.message) is (code == 403)


@pytest.mark.parametrize(
    ("target", "until", "reason", "says"),
    [
        pytest.param(Target(), 0, "", "names nobody", id="nobody"),
        pytest.param(Target(user=" a"), 0, "", "user: ", id="space"),
        pytest.param(Target(token_id="a\x1b"), 0, "", "tokenID: ", id="unseen"),
        pytest.param(Target(owner="a" * 513), 0, "", "owner: ", id="long"),
        pytest.param(Target(issued_before=NOW + 60), 0, "", "issuedBefore: ", id="tomorrow's tokens"),
        pytest.param(Target(issued_before=-1), 0, "", "issuedBefore: ", id="before all time"),
        pytest.param(Target(agents=True), NOW, "", "expires: ", id="over already"),
        pytest.param(Target(agents=True), NOW + 4e8, "", "expires: ", id="for ever, nearly"),
        pytest.param(Target(agents=True), 0, "x" * 1001, "reason: ", id="long reason"),
        pytest.param(Target(agents=True), 0, "\x1b[2J", "reason: ", id="orders to a terminal"),
    ],
)
def test_what_is_none(target, until, reason, says):
    with pytest.raises(RevocationError, match=says):
        revocations.check(target, reason, until, NOW)


def test_a_good_one():
    revocations.check(Target(user="a", issued_before=NOW), "because\nof this", NOW + 1, NOW)


# ----- who may -----

PERSONS = Decider(PERSON, agent=False)


def test_an_agent_revokes_nothing():
    revocations.may_revoke(PERSONS)
    with pytest.raises(NotAllowed, match="an agent cannot"):
        revocations.may_revoke(Decider(PERSON, agent=True))


@pytest.mark.parametrize(
    ("target", "who", "owned_by", "says"),
    [
        pytest.param(Target(user="x"), PERSONS, (), "", id="another user"),
        pytest.param(Target(agents=True), PERSONS, (), "", id="all agents"),
        pytest.param(Target(owner="x"), PERSONS, ("y",), "", id="another owner"),
        pytest.param(Target(user="x", token_id="t"), PERSONS, (), "", id="a token of another"),
        pytest.param(Target(user="x"), Decider(PERSON, agent=True), (), "an agent cannot", id="agent"),
        pytest.param(Target(user="OIDC:bob"), PERSONS, (), "of your own", id="himself"),
        pytest.param(Target(owner="y"), PERSONS, ("y",), "of your own", id="his owner"),
        pytest.param(Target(token_id="t"), PERSONS, (), "of your own", id="a token of whom nobody knows"),
        pytest.param(Target(issued_before=1), PERSONS, (), "of your own", id="tokens of everybody"),
        pytest.param(Target(agents=True), Decider(replace(PERSON, audiences=("tollgate",)), False), (),
                     "audience", id="everyday token"),
        pytest.param(Target(agents=True), Decider(replace(PERSON, auth_time=NOW - 901), False), (), "older",
                     id="old login"),
        pytest.param(Target(agents=True), Decider(replace(PERSON, auth_time=float("nan")), False), (), "older",
                     id="login at no time"),
        pytest.param(Target(user="oidc:bob"), Decider(PERSON, agent=True, via="operator"), (), "", id="operator"),
    ],
)  # fmt: skip
def test_who_may_lift(target, who, owned_by, says):
    entry = revocation(target)
    if not says:
        revocations.may_lift(entry, who, frozenset(owned_by), NOW)
        return
    with pytest.raises(NotAllowed, match=says):
        revocations.may_lift(entry, who, frozenset(owned_by), NOW)


def test_lifting():
    lifted = revocations.lift(revocation(Target(agents=True)), "oidc:bob", NOW)
    assert (lifted.lifted, lifted.lifted_by) == (NOW, "oidc:bob")
    assert revocations.phase(lifted, NOW) == "Lifted"
    with pytest.raises(NotAllowed, match="nothing to lift"):
        revocations.lift(lifted, "oidc:bob", NOW)
    assert revocations.phase(revocation(Target(agents=True), until=NOW), NOW) == "Expired"


# ----- words -----


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("30m", 1800), ("2h30m", 9000), ("7d", 604800), ("1d1h1m1s", 90061)],
)
def test_seconds(text, expected):
    assert revocations.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "0s", "2", "h", "-1h", "1m1h", "1.5h", "2 h", "٣h", "99999999999s"])
def test_no_seconds(text):
    with pytest.raises(RevocationError):
        revocations.seconds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("2027-01-15T08:00:00Z", NOW),
        ("2027-01-15t08:00:00z", NOW),
        ("2027-01-15T09:00:00+01:00", NOW),
        ("2027-01-15T08:00:00.5Z", NOW + 0.5),
    ],
)
def test_instant(text, expected):
    assert revocations.instant(text, NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2027-01-15", "2027-01-15T08:00:00", "2027-13-15T08:00:00Z", "1800000000"]
)
def test_no_instant(text):
    with pytest.raises(RevocationError):
        revocations.instant(text, NOW)


@given(st.text())
def test_hostile_words(text):
    for read in (revocations.seconds, lambda t: revocations.instant(t, NOW), revocations.departed):
        try:
            read(text)
        except RevocationError as e:
            assert len(str(e)) <= 200  # noqa: PT017


def test_departed():
    text = "# who has left\nAlice@example.com\n\n  bob  # in May\nc#1\n"
    assert revocations.departed(text) == {"alice@example.com", "bob", "c#1"}


@pytest.mark.parametrize("text", ["a\x00b", "x" * 513, "\n" * 100_002], ids=["nul", "long", "many"])
def test_no_list_of_owners(text):
    with pytest.raises(RevocationError):
        revocations.departed(text)


@pytest.mark.parametrize(
    ("target", "withdrawn"),
    [
        pytest.param(Target(user="Carol"), True, id="user"),
        pytest.param(Target(user="carol", token_id="t"), True, id="his token"),
        pytest.param(Target(user="carol", token_id="u"), False, id="another token"),
        pytest.param(Target(token_id="t"), True, id="token"),
        pytest.param(Target(owner="OPS"), True, id="owner"),
        pytest.param(Target(owner="dev"), False, id="another owner"),
        pytest.param(Target(issued_before=NOW + 1), True, id="said before"),
        pytest.param(Target(issued_before=NOW), False, id="said after"),
        pytest.param(Target(agents=True), False, id="agents"),
    ],
)
def test_whose_yes_counts_no_more(target, withdrawn):
    said = approvals.Decision("carol", True, NOW, credential_id="t", owners=("", "ops"))
    assert revocations.withdraws(target, said) is withdrawn
