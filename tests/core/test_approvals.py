"""Every step of a record and every refusal; then whatever order of steps hypothesis finds."""

import math
import re
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from addons.core import approvals, status
from addons.core.approvals import (
    AUDIENCE,
    Access,
    Asked,
    Decider,
    Decision,
    Item,
    NotAllowed,
    Phase,
    Record,
    Requester,
    cancel,
    decide,
    expire,
    give_back,
    grant_of,
    may_decide,
    missing,
    revoke,
    use,
    void,
)
from addons.core.model import Approval, Hold, Identity

NOW = 1_800_000_000.0
ANN = Requester("ann", "u-ann", ("dev",), "https://issuer")


def asked(rule="r", **approval):
    return Asked(Hold("p", rule, "why", Approval(**{"groups": ("oncall",), **approval})))


def owned(rule="r", owner="team", **approval):
    """A rule that names the claim which says for whom one acts; the requester's is `owner`."""
    return replace(asked(rule, owner="identity.extra.owner[0]", **approval), owner=owner)


def record(*rules, items=("d1",), **more):
    return Record(
        "apr-1",
        "uid-1",
        ANN,
        "d0",
        rules or (asked(),),
        NOW,
        NOW + 900,
        items=tuple(Item(digest, f"delete {digest}") for digest in items),
        **more,
    )


def person(username="bob", groups=("oncall",), *, age=60.0, audiences=(AUDIENCE,), **more):
    return Identity(username, more.pop("uid", f"u-{username}"), groups, issuer=more.pop("issuer", "https://issuer"),
                    audiences=audiences, auth_time=NOW - age, **more)  # fmt: skip


def decider(*arguments, agent=False, via="api", **more):
    return Decider(person(*arguments, **more), agent, via)


BOB, EVE = decider("bob"), decider("eve")


def yes(one=None, who=BOB, now=NOW + 10, reason=""):
    return decide(one or record(), who, True, reason, now)


def no(one=None, who=BOB, now=NOW + 10, reason=""):
    return decide(one or record(), who, False, reason, now)


APPROVED = yes()
ENDED = {
    Phase.DENIED: no(),
    Phase.EXPIRED: expire(record(), NOW + 900),
    Phase.CANCELLED: cancel(record(), "ann", NOW + 5),
    Phase.USED: use(APPROVED, "d1", "audit-1", NOW + 20),
    Phase.VOID: void(APPROVED, "it changed", NOW + 20),
}


def refused(step):
    with pytest.raises(NotAllowed) as e:
        step()
    text = str(e.value)
    assert status.one_line(text) == text  # a client can be shown it as it is
    assert "\n" not in text
    return text


# ----- who decides -----


@pytest.mark.parametrize(
    ("who", "rules", "why"),
    [
        pytest.param(decider("ann"), [asked()], "nobody decides what he asked for himself", id="the requester"),
        pytest.param(
            decider("ann", uid="another", issuer="https://other"),
            [asked()],
            "nobody decides what he asked for himself",
            id="the requester's name from another issuer",
        ),
        pytest.param(decider("Ann", uid=""), [asked()], "nobody decides", id="the requester's name in other letters"),
        pytest.param(
            decider("ann-admin", uid="u-ann"),
            [asked()],
            "nobody decides what he asked for himself",
            id="the requester's uid under another name",
        ),
        pytest.param(decider("ann", via="operator"), [asked()], "nobody decides", id="the requester at the console"),
        pytest.param(decider(agent=True), [asked()], "an agent cannot decide", id="an agent with an approver's token"),
        pytest.param(decider(agent=True, via="operator"), [asked()], "an agent cannot decide", id="an agent anyhow"),
        pytest.param(
            decider(groups=("dev",)), [asked()], r"rule p/r: you are none of its approvers \(oncall\)", id="no approver"
        ),
        pytest.param(decider(groups=("oncall-eu", "onc")), [asked()], "none of its approvers", id="a similar group"),
        pytest.param(decider(), [asked(groups=())], r"none of its approvers \(\)", id="a rule that names nobody"),
        pytest.param(decider(), [], "no rule asks", id="no rule"),
        pytest.param(
            decider(audiences=("tollgate",)), [asked()], "needs a token with the audience", id="an ordinary token"
        ),
        pytest.param(decider(audiences=()), [asked()], "needs a token with the audience", id="a token for nobody"),
        pytest.param(decider(age=901), [asked()], "your login is older than 900 s", id="an old login"),
        pytest.param(decider(age=61), [asked(max_token_age=60)], "older than 60 s", id="older than the rule allows"),
        pytest.param(decider(age=-31), [asked()], "your login is older", id="a login from the future"),
        pytest.param(decider(age=NOW), [asked()], "your login is older", id="no time of login"),
        pytest.param(decider(age=math.nan), [asked()], "your login is older", id="a time that is no number"),
        pytest.param(
            decider(claims={"amr": ["pwd"]}),
            [asked(claims='"mfa" in claims.amr')],
            "does not fulfil the rule's condition on claims",
            id="a claim with another value",
        ),
        pytest.param(
            decider(claims={}), [asked(claims='"mfa" in claims.amr')], "condition on claims", id="a claim is missing"
        ),
        pytest.param(
            decider(claims={"amr": "mfa"}), [asked(claims='"mfa" in claims.amr')], "condition", id="of another type"
        ),
        pytest.param(
            decider(extra={"owner": ("team",)}),
            [owned()],
            "the same owner as the requester",
            id="the same owner",
        ),
        pytest.param(
            decider(),
            [owned()],
            "for whom cannot be told",
            id="his owner cannot be told",
        ),
        pytest.param(
            decider(extra={"owner": ("team",)}),
            [owned(owner="")],
            "for whom cannot be told",
            id="the requester's owner cannot be told",
        ),
    ],
)  # fmt: skip
def test_who_may_not_decide(who, rules, why):
    one = replace(record(), asked=tuple(rules))
    for step in (lambda: may_decide(one, who, NOW), lambda: yes(one, who, NOW), lambda: no(one, who, NOW)):
        assert re.search(why, refused(step))


@pytest.mark.parametrize(
    ("who", "rules"),
    [
        pytest.param(decider(), [asked()], id="by group"),
        pytest.param(decider(groups=()), [asked(groups=(), users=("bob",))], id="by name"),
        pytest.param(decider(uid=""), [asked()], id="without uid"),
        pytest.param(decider(uid="u-ann", issuer="https://other"), [asked()], id="the same uid of another issuer"),
        pytest.param(decider(age=900), [asked()], id="a login that is just young enough"),
        pytest.param(decider(age=-30), [asked()], id="an issuer whose clock is ahead"),
        pytest.param(decider(audiences=("tollgate", AUDIENCE)), [asked()], id="both audiences"),
        pytest.param(decider(claims={"amr": ["mfa"]}), [asked(claims='"mfa" in claims.amr')], id="the claim"),
        pytest.param(
            decider(extra={"owner": ("other",)}),
            [owned()],
            id="another owner",
        ),
        pytest.param(
            decider("operator:root", groups=(), audiences=(), age=NOW, via="operator"),
            [asked(claims="false", owner="x")],
            id="at the console",
        ),
    ],
)
def test_who_may(who, rules):
    one = replace(record(), asked=tuple(rules))
    assert may_decide(one, who, NOW) == tuple(rules)
    assert yes(one, who, NOW).phase is Phase.APPROVED


def test_a_requester_without_uid_is_not_everybody_without_uid():
    one = replace(record(), requester=replace(ANN, uid=""))
    assert yes(one, decider(uid="")).phase is Phase.APPROVED


def test_he_decides_only_for_the_rules_that_name_him():
    one = record(asked("a"), asked("b", groups=("dba",)), asked("c", max_token_age=10))
    assert [a.rule for a in may_decide(one, BOB, NOW)] == ["p/a"]
    one = yes(one)
    assert one.phase is Phase.PENDING
    assert missing(one) == {"p/b": 1, "p/c": 1}


def test_a_long_list_of_approvers_is_cut():
    one = record(asked(groups=tuple(f"group-{n:03}" for n in range(100))))
    assert len(refused(lambda: may_decide(one, BOB, NOW))) < 300


# ----- yes -----


def test_a_yes():
    assert APPROVED.phase is Phase.APPROVED
    assert (APPROVED.decided, APPROVED.valid_until) == (NOW + 10, NOW + 910)
    assert APPROVED.message == "approved by bob"
    assert APPROVED.decisions == (
        Decision("bob", True, NOW + 10, "", ("oncall",), "", "api", ("p/r",), "u-bob", "https://issuer", ("",)),
    )


def test_it_is_valid_as_long_as_the_strictest_rule_says():
    one = yes(record(asked("a", valid=60), asked("b", valid=900)))
    assert one.valid_until == NOW + 70


def test_an_access_request_is_valid_as_long_as_it_asked_for():
    one = yes(record(items=(), access=Access(("get",), ("pods",), "shop", 7200)))
    assert one.valid_until == NOW + 10 + 7200
    assert expire(one, NOW + 7210).message == "its time is over"


def test_two_are_needed():
    one = record(asked(needed=2))
    one = yes(one)
    assert one.phase is Phase.PENDING
    assert missing(one) == {"p/r": 1}
    two = yes(one, EVE, NOW + 20)
    assert two.phase is Phase.APPROVED
    assert two.message == "approved by bob, eve"
    assert (two.decided, two.valid_until) == (NOW + 20, NOW + 920)


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(BOB, id="the same"),
        pytest.param(decider("bob", groups=("oncall", "dba")), id="with one more group"),
        pytest.param(decider("bob", groups=("dba",)), id="through the other group"),
        pytest.param(decider("BOB", uid=""), id="in other letters"),
        pytest.param(decider("bob", uid="other", issuer="https://other"), id="the name from another issuer"),
        pytest.param(decider("robert", uid="u-bob"), id="the uid under another name"),
        pytest.param(decider("bob", via="operator"), id="at the console"),
    ],
)
def test_one_person_counts_once(again):
    one = yes(record(asked(needed=2, groups=("oncall", "dba"))))
    assert "you have already decided" in refused(lambda: yes(one, again, NOW + 20))
    one = yes(record(asked("a"), asked("b", groups=("dba",))))
    assert "you have already decided" in refused(lambda: yes(one, again, NOW + 20))


def test_two_accounts_of_one_owner_count_once():
    one = yes(record(owned(needed=2)), decider("bob", extra={"owner": ("bob-owns",)}))
    other = decider("bob-admin", extra={"owner": ("bob-owns",)})
    assert "the same owner has already decided" in refused(lambda: yes(one, other, NOW + 20))
    assert no(one, other, NOW + 20).phase is Phase.DENIED
    assert yes(one, decider("eve", extra={"owner": ("eve-owns",)}), NOW + 20).phase is Phase.APPROVED


def test_a_second_account_still_decides_the_rules_that_do_not_ask_for_owners():
    one = yes(record(owned("a", needed=2), asked("b", needed=2)), decider("bob", extra={"owner": ("bob-owns",)}))
    one = yes(one, decider("bob-admin", extra={"owner": ("bob-owns",)}), NOW + 20)
    assert missing(one) == {"p/a": 1}


def test_one_person_for_several_rules():
    assert yes(record(asked("a"), asked("b"))).phase is Phase.APPROVED


# ----- no, and reasons -----


def test_one_no_ends_it_whatever_was_said_before():
    one = no(yes(record(asked(needed=2))), EVE, NOW + 20, " not  today ")
    assert (one.phase, one.ended, one.decided) == (Phase.DENIED, NOW + 20, NOW + 20)
    assert one.message == "denied by eve: not  today"
    assert one.waiting is False
    assert no(record(waiting=True)).waiting is False


def test_a_no_after_ones_own_yes():
    assert no(yes(record(asked(needed=2))), BOB, NOW + 20).phase is Phase.DENIED


@pytest.mark.parametrize("reason", ["", "  \n"])
@pytest.mark.parametrize("step", [yes, no])
def test_a_reason_is_wanted(step, reason):
    one = record(asked("a"), asked("b", require_reason=True))
    assert refused(lambda: step(one, reason=reason)) == "the rule wants a reason; set spec.reason"
    assert step(one, reason=" because ").decisions[-1].reason == "because"


def test_a_reason_is_wanted_by_the_rules_one_decides():
    one = record(asked("a"), asked("b", groups=("dba",), require_reason=True))
    assert yes(one).decisions


def test_a_reason_has_an_end():
    assert yes(reason="x" * approvals.MAX_REASON).phase is Phase.APPROVED
    assert "longer than 1000" in refused(lambda: yes(reason="x" * (approvals.MAX_REASON + 1)))


# ----- the time -----


def test_undecided_until_the_end():
    assert expire(record(), NOW + 899.999).phase is Phase.PENDING
    late = expire(record(), NOW + 900)
    assert (late.phase, late.message, late.ended) == (Phase.EXPIRED, "it was not decided in time", NOW + 900)
    assert yes(now=NOW + 899.999, who=decider(age=0)).phase is Phase.APPROVED
    assert refused(lambda: yes(now=NOW + 900)) == "apr-1 is Expired and cannot be decided any more"


def test_approved_until_the_end():
    assert use(APPROVED, "d1", "a", NOW + 909.999).phase is Phase.USED
    assert refused(lambda: use(APPROVED, "d1", "a", NOW + 910)) == "approval apr-1 is Expired"
    assert expire(APPROVED, NOW + 910).message == "it was approved and not used in time"
    assert expire(APPROVED, NOW + 900).phase is Phase.APPROVED  # the time of the question is another


@pytest.mark.parametrize("one", [record(), APPROVED], ids=["pending", "approved"])
def test_a_clock_that_was_put_back_ends_it(one):
    """Else a yes that is good for ten minutes would be good for as much longer as the clock was put back."""
    begun = max(one.created, one.decided)
    assert expire(one, begun - 29.9) is one  # another gateway's clock may be behind so much
    late = expire(one, begun - 30.1)
    assert (late.phase, late.message) == (Phase.EXPIRED, "the gateway's clock was put back to before it")
    assert "Expired" in refused(lambda: use(one, "d1", "a", begun - 30.1))


@pytest.mark.parametrize("phase", ENDED)
def test_what_is_over_does_not_expire(phase):
    assert expire(ENDED[phase], NOW + 1e9) is ENDED[phase]


# ----- from one phase to the next -----

STEPS = {
    "yes": lambda one: yes(one, EVE),
    "no": lambda one: no(one, EVE),
    "cancel": lambda one: cancel(one, "ann", NOW + 30),
    "void": lambda one: void(one, "it changed", NOW + 30),
    "use": lambda one: use(one, "d1", "audit-2", NOW + 30),
    "give back": lambda one: give_back(one, "d1", "audit-1", NOW + 30),
}
SAME = "as it was"
TABLE = {
    # phase: yes, no, cancel, void, use, give back
    Phase.PENDING: (Phase.APPROVED, Phase.DENIED, Phase.CANCELLED, Phase.VOID, None, SAME),
    Phase.APPROVED: (None, None, Phase.CANCELLED, Phase.VOID, Phase.USED, SAME),
    Phase.DENIED: (None, None, None, SAME, None, SAME),
    Phase.EXPIRED: (None, None, None, SAME, None, SAME),
    Phase.CANCELLED: (None, None, None, SAME, None, SAME),
    Phase.USED: (None, None, None, SAME, None, Phase.APPROVED),
    Phase.VOID: (None, None, None, SAME, None, SAME),
}


def test_the_table_has_all():
    assert set(TABLE) == set(Phase)
    assert {p: one.phase for p, one in ENDED.items()} == {p: p for p in ENDED}


@pytest.mark.parametrize(
    ("phase", "step", "then"),
    [
        pytest.param(phase, step, then, id=f"{phase} {step}")
        for phase, row in TABLE.items()
        for step, then in zip(STEPS, row, strict=True)
    ],
)
def test_step(phase, step, then):
    one = {Phase.PENDING: record(), Phase.APPROVED: APPROVED, **ENDED}[phase]
    if then is None:
        assert phase in refused(lambda: STEPS[step](one))
    elif then is SAME:
        assert STEPS[step](one) is one
    else:
        found = STEPS[step](one)
        assert found.phase is then
        assert bool(found.ended) is not found.open
        assert found.message


def test_cancelled_too_late():
    assert refused(lambda: cancel(record(), "ann", NOW + 900)) == "apr-1 is Expired already"


def test_voided_says_why():
    assert ENDED[Phase.VOID].message == "it changed"


# ----- using -----


def test_each_item_once():
    one = yes(record(items=("d1", "d2")))
    one = use(one, "d1", "a1", NOW + 20)
    assert one.phase is Phase.APPROVED
    assert refused(lambda: use(one, "d1", "a2", NOW + 20)) == "approval apr-1 has been used for this already"
    one = use(one, "d2", "a2", NOW + 21)
    assert (one.phase, one.ended) == (Phase.USED, NOW + 21)
    assert [(i.used_at, i.used_by) for i in one.items] == [(NOW + 20, "a1"), (NOW + 21, "a2")]


@pytest.mark.parametrize("digest", ["d0", "", "D1", "d1 "])
def test_another_request(digest):
    """The command's own digest (d0) lets nothing through either."""
    assert "has been used for this already" in refused(lambda: use(APPROVED, digest, "a", NOW + 20))


def test_without_audit_id():
    assert "audit id" in refused(lambda: use(APPROVED, "d1", "", NOW + 20))


def test_a_clock_at_zero_spends_too():
    """`used_at` is 0 then, which alone would mean: not used."""
    one = replace(APPROVED, created=0.0, decided=0.0, valid_until=10.0)
    assert use(one, "d1", "a", 0.0).phase is Phase.USED


def test_a_digest_that_is_there_twice_lets_one_through():
    one = use(yes(record(items=("d1", "d1"))), "d1", "a1", NOW + 20)
    refused(lambda: use(one, "d1", "a2", NOW + 20))


def test_an_access_request_lets_no_request_through():
    one = yes(record(items=(), access=Access(("get",), ("pods",), "shop", 60)))
    refused(lambda: use(one, "d0", "a", NOW + 20))


def test_given_back_and_used_again():
    used = ENDED[Phase.USED]
    back = give_back(used, "d1", "audit-1", NOW + 25)
    assert (back.phase, back.ended, back.message) == (Phase.APPROVED, 0.0, "approved by bob")
    assert back.valid_until == APPROVED.valid_until
    assert use(back, "d1", "audit-2", NOW + 30).items[0].used_by == "audit-2"


@pytest.mark.parametrize(
    ("digest", "audit_id"),
    [
        pytest.param("d1", "audit-2", id="another request"),
        pytest.param("d1", "", id="no audit id"),
        pytest.param("d2", "audit-1", id="another item"),
    ],
)
def test_given_back_by_somebody_else(digest, audit_id):
    used = use(yes(record(items=("d1", "d2"))), "d1", "audit-1", NOW + 20)
    assert give_back(used, digest, audit_id, NOW + 25) is used


def test_given_back_twice_is_given_back_once():
    back = give_back(ENDED[Phase.USED], "d1", "audit-1", NOW + 25)
    again = use(back, "d1", "audit-2", NOW + 26)
    assert give_back(again, "d1", "audit-1", NOW + 27) is again


def test_given_back_too_late_is_over():
    back = give_back(ENDED[Phase.USED], "d1", "audit-1", NOW + 910)
    assert back.phase is Phase.EXPIRED
    refused(lambda: use(back, "d1", "audit-2", NOW + 911))


@pytest.mark.parametrize("end", [void, cancel])
def test_given_back_after_the_end_stays_spent(end):
    used = use(yes(record(items=("d1", "d2"))), "d1", "audit-1", NOW + 20)
    ended = end(used, "x", NOW + 21)
    assert give_back(ended, "d1", "audit-1", NOW + 22) is ended


# ----- grants -----

LASTING = {"grant_for": 1800}


@pytest.mark.parametrize(
    ("one", "rules", "namespace", "until"),
    [
        pytest.param(record(asked(**LASTING), namespace="shop"), ("p/r",), "shop", 1800, id="a namespace"),
        pytest.param(record(asked(**LASTING, grant_scope="rule"), namespace="shop"), ("p/r",), "", 1800, id="the rule"),
        pytest.param(record(asked(**LASTING, grant_scope="rule")), ("p/r",), "", 1800, id="the rule, no namespace"),
        pytest.param(
            record(asked("a", **LASTING), asked("b"), namespace="shop"),
            ("p/a",),
            "shop",
            1800,
            id="of two rules one lasts",
        ),
        pytest.param(
            record(asked("a", **LASTING, grant_scope="rule"), asked("b", grant_for=60), namespace="shop"),
            ("p/a", "p/b"),
            "shop",
            60,
            id="of two the narrower and shorter",
        ),
    ],
)
def test_the_grant_of_a_yes(one, rules, namespace, until):
    grant = grant_of(yes(one), NOW + 10, "uid-2")
    assert (grant.rules, grant.namespace, grant.until) == (rules, namespace, NOW + 10 + until)
    assert (grant.since, grant.source, grant.approvers, grant.uid) == (NOW + 10, "apr-1", ("bob",), "uid-2")
    assert grant.requester == ANN
    assert grant.name.startswith("grt-")


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(yes(), id="a rule without"),
        pytest.param(record(asked(**LASTING), namespace="shop"), id="undecided"),
        pytest.param(no(record(asked(**LASTING), namespace="shop")), id="denied"),
        pytest.param(yes(record(asked(**LASTING, needed=2), namespace="shop")), id="one of two"),
        pytest.param(yes(record(asked(**LASTING))), id="for a namespace, of a request without one"),
        pytest.param(yes(record(items=(), access=Access((), ("pods",), "shop", 60))), id="no verbs are not all verbs"),
        pytest.param(yes(record(items=(), access=Access(("get",), (), "shop", 60))), id="nor resources"),
    ],
)
def test_no_grant(one):
    assert grant_of(one, NOW + 10, "uid-2") is None


def test_the_grant_of_an_access_request():
    access = Access(("get", "list"), ("pods",), "shop", 600, "to look")
    grant = grant_of(yes(record(asked("a"), asked("b"), items=(), access=access)), NOW + 10, "uid-2")
    assert (grant.verbs, grant.resources, grant.namespace) == (("get", "list"), ("pods",), "shop")
    assert (grant.rules, grant.since, grant.until) == (("p/a", "p/b"), NOW + 10, NOW + 610)


GRANT = grant_of(yes(record(asked(**LASTING), namespace="shop")), NOW, "uid-2")


@pytest.mark.parametrize(
    ("grant", "now", "active"),
    [
        pytest.param(GRANT, NOW - 0.001, False, id="before"),
        pytest.param(GRANT, NOW, True, id="from"),
        pytest.param(GRANT, NOW + 1799.999, True, id="to"),
        pytest.param(GRANT, NOW + 1800, False, id="after"),
        pytest.param(revoke(GRANT, "bob", NOW + 5), NOW + 5, False, id="revoked"),
        pytest.param(revoke(GRANT, "bob", NOW + 5), NOW + 4, False, id="revoked, by a clock that went back"),
        pytest.param(replace(revoke(GRANT, "bob", NOW - 5), revoked=0.0), NOW, False, id="revoked by a clock at zero"),
    ],
)
def test_active(grant, now, active):
    assert grant.active(now) is active


def test_revoked_once():
    gone = revoke(GRANT, "bob", NOW + 5)
    assert (gone.revoked, gone.revoked_by) == (NOW + 5, "bob")
    assert "is over already" in refused(lambda: revoke(gone, "eve", NOW + 6))
    assert "is over already" in refused(lambda: revoke(GRANT, "eve", NOW + 1800))


# ----- names and keys -----


def test_names():
    one = approvals.name("apr", "a", "b")
    assert one == approvals.name("apr", "a", "b")
    assert one != approvals.name("apr", "b", "a")
    prefix, _, rest = one.partition("-")
    assert (prefix, len(rest)) == ("apr", approvals.NAME)
    assert not set(rest) & set("ilou")  # nobody reads them wrongly


@pytest.mark.parametrize("name", ["username", "uid", "issuer"])
def test_another_requester(name):
    assert replace(ANN, **{name: "other"}).key != ANN.key
    assert replace(ANN, groups=("dev", "ops")).key != ANN.key
    assert replace(ANN, credential_id="other").key == ANN.key


def test_requester_of_an_identity():
    identity = Identity("ann", "u", ("b", "a", "b"), issuer="i", credential_id="c", expiry=5, issued_at=3)
    assert approvals.requester(identity) == Requester("ann", "u", ("a", "b"), "i", "c")


def test_limits():
    rules = (asked("a", wait=5, max_pending=9, cooldown=60), asked("b", wait=25, max_pending=2, cooldown=10))
    assert approvals.limits(rules) == (5, 2, 60)
    assert approvals.limits(()) == (0, 0, 0)


# ----- whatever order -----

PEOPLE = ("ann", "bob", "eve", "joe")
DIGESTS = ("d1", "d2")
AUDITS = ("x1", "x2", "x3", "x4")


class AnyOrder(RuleBasedStateMachine):
    """
    What the steps do is kept beside, in the plainest way: who said yes, who holds which item.

    An item is let through at most once without a give back in between, only after enough
    different people said yes, none of them the requester, and never after the end.
    """

    @initialize(needed=st.integers(1, 3))
    def begin(self, needed):
        self.now = NOW
        self.needed = needed
        self.record = record(asked(needed=needed, valid=300), items=DIGESTS)
        self.holders = {}  # digest: audit id
        self.said_yes = set()
        self.dead = False

    def attempt(self, step):
        before = self.record
        try:
            self.record = step()
        except NotAllowed:
            assert self.record is before
            return False
        return True

    @rule(who=st.sampled_from(PEOPLE), approved=st.booleans(), agent=st.booleans(), old=st.booleans())
    def decides(self, who, approved, agent, old):
        identity = replace(person(who), auth_time=self.now - (1000 if old else 1))
        if self.attempt(lambda: decide(self.record, Decider(identity, agent), approved, "", self.now)):
            assert who != "ann"
            assert not agent
            assert not old
            if approved:
                assert who not in self.said_yes
                self.said_yes.add(who)
            else:
                self.dead = True

    @rule(digest=st.sampled_from((*DIGESTS, "d0")), audit_id=st.sampled_from(AUDITS))
    def used(self, digest, audit_id):
        if self.attempt(lambda: use(self.record, digest, audit_id, self.now)):
            assert digest in DIGESTS
            assert digest not in self.holders
            assert not self.dead
            assert len(self.said_yes) >= self.needed
            assert self.now < self.record.valid_until
            self.holders[digest] = audit_id

    @rule(digest=st.sampled_from(DIGESTS), audit_id=st.sampled_from(AUDITS))
    def given_back(self, digest, audit_id):
        before = self.record
        self.record = give_back(self.record, digest, audit_id, self.now)
        if self.record is not before:
            assert self.holders.pop(digest) == audit_id

    @rule()
    def cancelled(self):
        self.dead |= self.attempt(lambda: cancel(self.record, "ann", self.now))

    @rule()
    def voided(self):
        before = self.record
        self.record = void(self.record, "changed", self.now)
        self.dead |= self.record is not before

    @rule(seconds=st.sampled_from((1.0, 100.0, 299.0, 300.0, 600.0)))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def swept(self):
        self.record = expire(self.record, self.now)
        self.dead |= self.record.phase is Phase.EXPIRED

    @precondition(lambda self: self.dead)
    @rule(digest=st.sampled_from(DIGESTS))
    def the_end_is_the_end(self, digest):
        assert not self.record.open
        with pytest.raises(NotAllowed):
            use(self.record, digest, "late", self.now)

    @invariant()
    def the_record_says_so(self):
        spent = {item.digest: item.used_by for item in self.record.items if item.used}
        assert spent == self.holders
        assert {d.username for d in self.record.decisions if d.approved} == self.said_yes
        assert (self.record.phase is Phase.USED) == (set(self.holders) == set(DIGESTS) and not self.dead)
        assert bool(self.record.ended) is not self.record.open


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


# ----- taken back -----


def a_grant(**approval):
    yes = decided(record(asked(grant_for=600, grant_scope="rule", **approval), items=("d1", "d2")))
    return yes, grant_of(yes, NOW + 1, "u")


def decided(one):
    who = Identity("bob", groups=("oncall",), audiences=(AUDIENCE,), auth_time=NOW)
    return decide(one, Decider(who, False), True, "", NOW)


def test_a_yes_that_is_cancelled_takes_its_grant_along():
    yes, grant = a_grant()
    gone = approvals.taken_back(yes, cancel(yes, "ann", NOW + 2), grant, NOW + 2)
    assert (gone.revoked, gone.revoked_by) == (NOW + 2, "ann")


@pytest.mark.parametrize("step", [void, lambda one, _why, now: use(one, "d1", "a", now)], ids=["void", "used"])
def test_whatever_else_becomes_of_it_the_grant_stays(step):
    yes, grant = a_grant()
    assert approvals.taken_back(yes, step(yes, "why", NOW + 2), grant, NOW + 2) is None


def test_a_grant_that_is_over_is_not_revoked_again():
    yes, grant = a_grant()
    gone = cancel(yes, "ann", NOW + 2)
    assert approvals.taken_back(yes, gone, None, NOW + 2) is None
    assert approvals.taken_back(yes, gone, revoke(grant, "eve", NOW + 1), NOW + 2) is None
    assert approvals.taken_back(yes, gone, grant, grant.until) is None


@pytest.mark.parametrize(
    ("one", "at", "counts"),
    [
        pytest.param(record(), NOW, True, id="pending"),
        pytest.param(record(), NOW + 900, False, id="expired"),
        pytest.param(cancel(record(), "ann", NOW + 1), NOW + 2, True, id="taken back at once"),
        pytest.param(cancel(record(), "ann", NOW + 1), NOW + approvals.ASKED, False, id="a minute ago"),
        pytest.param(void(record(), "x", NOW + 1), NOW + 2, False, id="void"),
    ],
)
def test_what_counts_as_asking(one, at, counts):
    assert approvals.is_asking(one, at) is counts


def test_a_grant_has_the_digests_of_its_rules():
    one = record(asked("a", grant_for=600), asked("b"), namespace="shop")
    one = replace(one, asked=tuple(replace(a, hold=replace(a.hold, digest=a.hold.rule * 2)) for a in one.asked))
    assert grant_of(decided(one), NOW, "u").digests == ("aa",)
    wish = replace(one, access=Access(("get",), ("pods",), "shop", 600))
    assert grant_of(decided(wish), NOW, "u").digests == ("aa", "bb")
