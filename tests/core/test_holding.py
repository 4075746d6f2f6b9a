"""Which record fits a held request, what a grant covers, and the sentences callers read."""

from dataclasses import replace

import pytest

from addons.core import approvals, holding, status
from addons.core.approvals import Asked, Decision, Grant, Item, Phase, Record, Requester
from addons.core.holding import What
from addons.core.model import Approval, Hold, Impact, Operation, RequestInfo
from tests import records

NOW = 1_000_000.0
AGENT = Requester("agent", groups=("agents",))
ONCALL = Approval(groups=("oncall",))
NEW_NAMESPACE = Asked(Hold("agents", "new-namespace", "It makes a namespace.", ONCALL))
OTHER_RULE = Asked(Hold("agents", "execute", "It runs commands.", ONCALL))


def record(
    phase: Phase = Phase.PENDING, digest: str = "d", asked: tuple[Asked, ...] = (NEW_NAMESPACE,), **more
) -> Record:
    made = Record(
        "apr-1",
        "uid",
        AGENT,
        digest,
        asked,
        NOW - 10,
        NOW + 800,
        items=(Item(digest, "create namespace x"),),
        phase=phase,
    )
    if phase is Phase.APPROVED:
        made = replace(made, valid_until=NOW + 100)
    if phase is Phase.DENIED:
        made = replace(made, decided=NOW - 10, decisions=(Decision("bob", False, NOW - 10, "not today"),))
    return replace(made, **more)


def operation(
    verb="create", resource="pods", namespace="shop", name="", subresource="", impacts=(Impact.WRITE,), **more
):
    path = f"/api/v1/namespaces/{namespace}/{resource}"
    info = RequestInfo(
        verb, path, True, "api", "", "v1", namespace, resource, subresource, name, more.pop("parts", ()), ""
    )
    return Operation(info, "POST", frozenset(impacts), name, **more)


@pytest.mark.parametrize(
    ("records", "what", "outdated"),
    [
        pytest.param([], What.ASK, 0, id="never asked"),
        pytest.param([record()], What.WAIT, 0, id="pending"),
        pytest.param([record(Phase.APPROVED)], What.RELEASE, 0, id="approved"),
        pytest.param([record(), record(Phase.APPROVED)], What.RELEASE, 0, id="a yes beats a question"),
        pytest.param([record(Phase.DENIED)], What.REFUSE, 0, id="denied a short while ago"),
        pytest.param([record(Phase.DENIED, decided=NOW - 901)], What.ASK, 0, id="the cooldown is over"),
        pytest.param([record(Phase.APPROVED, valid_until=NOW)], What.ASK, 0, id="approved and out of time"),
        pytest.param([record(expires=NOW)], What.ASK, 0, id="undecided and out of time"),
        pytest.param([record(Phase.USED)], What.ASK, 0, id="used"),
        pytest.param([record(Phase.VOID)], What.ASK, 0, id="void"),
        pytest.param([record(Phase.CANCELLED)], What.ASK, 0, id="cancelled"),
        pytest.param([record(Phase.APPROVED, digest="other")], What.ASK, 0, id="approved for something else"),
        pytest.param([record(Phase.APPROVED, asked=(OTHER_RULE,))], What.ASK, 1, id="approved for another rule"),
        pytest.param(
            [record(Phase.APPROVED, asked=(NEW_NAMESPACE, OTHER_RULE))], What.ASK, 1, id="a rule fewer asks now"
        ),
        pytest.param(
            [record(Phase.APPROVED, items=(Item("d", "x", used_at=NOW - 1), Item("e", "y")))],
            What.ASK,
            0,
            id="this one of a fan-out is spent",
        ),
        pytest.param(
            [record(Phase.APPROVED, digest="all", asked=(OTHER_RULE,), items=(Item("e", "x"), Item("d", "y")))],
            What.ASK,
            0,
            id="what other rules asked of the first of a fan-out stays",
        ),
        pytest.param(
            [record(Phase.APPROVED, access=approvals.Access(("create",), ("pods",), "", 60))],
            What.ASK,
            0,
            id="an AccessRequest lets nothing through by itself",
        ),
    ],
)
def test_choose(records, what, outdated):
    choice = holding.choose(records, "d", (NEW_NAMESPACE,), NOW)
    assert choice.what is what
    assert len(choice.outdated) == outdated


@pytest.mark.parametrize(
    "now_asked",
    [
        pytest.param(
            replace(NEW_NAMESPACE, hold=replace(NEW_NAMESPACE.hold, approval=Approval(groups=("others",)))),
            id="approvers",
        ),
        pytest.param(
            replace(NEW_NAMESPACE, hold=replace(NEW_NAMESPACE.hold, approval=replace(ONCALL, needed=2))), id="needed"
        ),
        pytest.param(replace(NEW_NAMESPACE, owner="team-b"), id="owner"),
        pytest.param(replace(NEW_NAMESPACE, hold=replace(NEW_NAMESPACE.hold, policy="other")), id="policy"),
    ],
)
def test_a_rule_that_asks_otherwise_now_is_another_question(now_asked):
    assert not holding.same_rules(record(), (now_asked,))
    assert holding.same_rules(record(), (NEW_NAMESPACE,))


GRANT = Grant("grt-1", "uid", AGENT, ("agents/new-namespace",), NOW - 10, NOW + 10, "shop")


@pytest.mark.parametrize(
    ("grant", "asks", "covered"),
    [
        pytest.param(GRANT, operation(), True, id="in its namespace"),
        pytest.param(GRANT, operation(namespace="prod"), False, id="elsewhere"),
        pytest.param(GRANT, operation(namespace=""), False, id="everywhere at once"),
        pytest.param(GRANT, operation("delete", "namespaces", "shop", "shop"), False, id="the namespace itself"),
        pytest.param(replace(GRANT, until=NOW), operation(), False, id="over"),
        pytest.param(replace(GRANT, since=NOW + 1), operation(), False, id="not yet"),
        pytest.param(replace(GRANT, revoked=NOW - 1), operation(), False, id="revoked"),
        pytest.param(replace(GRANT, rules=("agents/execute",)), operation(), False, id="another rule"),
        pytest.param(replace(GRANT, namespace=""), operation(namespace="prod"), True, id="of the whole rule"),
        pytest.param(replace(GRANT, verbs=("create",), resources=("pods",)), operation(), True, id="asked ahead"),
        pytest.param(replace(GRANT, verbs=("get",)), operation(), False, id="asked ahead for another verb"),
        pytest.param(
            replace(GRANT, resources=("configmaps",)), operation(), False, id="asked ahead for another resource"
        ),
        pytest.param(
            replace(GRANT, verbs=("create",), resources=("pods",)),
            operation(subresource="exec", impacts=(Impact.EXECUTE,)),
            False,
            id="pods is not pods/exec",
        ),
    ],
)
def test_a_grant_covers_what_it_names_and_no_more(grant, asks, covered):
    assert holding.covers(grant, NEW_NAMESPACE.hold, asks, NOW) is covered


def test_a_grant_satisfies_its_own_rule_and_no_other():
    needed, used = holding.unsatisfied((NEW_NAMESPACE.hold, OTHER_RULE.hold), [GRANT], operation(), NOW)
    assert needed == (OTHER_RULE.hold,)
    assert used == (GRANT,)


@pytest.mark.parametrize(
    ("impacts", "wait"),
    [
        pytest.param((Impact.WRITE,), 25, id="a write waits"),
        pytest.param((Impact.READ,), 0, id="a read never"),
        pytest.param((Impact.REVEAL,), 25, id="a reveal is worth it"),
    ],
)
def test_wait(impacts, wait):
    assert holding.wait_of(operation(impacts=impacts), [NEW_NAMESPACE.hold]) == wait


def test_the_strictest_of_several_rules_says_how_long():
    short = replace(OTHER_RULE.hold, approval=replace(ONCALL, wait=5))
    assert holding.wait_of(operation(), [NEW_NAMESPACE.hold, short]) == 5


def test_too_many_questions():
    assert holding.too_many(4, (NEW_NAMESPACE,)) is None
    refusal = holding.too_many(5, (NEW_NAMESPACE,))
    assert refusal is not None
    assert refusal.message.startswith("rule agents/new-namespace: you have 5 approvals pending or taken back")


LONG = Asked(Hold("p" * 60, "r" * 60, "m" * 300, Approval(groups=("g" * 200,))))


@pytest.mark.parametrize(
    ("refusal", "code", "has"),
    [
        pytest.param(
            holding.pending(record(), NOW),
            403,
            "approval apr-1 is pending for 13 min; oncall can approve it (./run.sh approvals approve apr-1); then send "
            "the same request again, unchanged; it passes once",
            id="pending",
        ),
        pytest.param(holding.pending(record(), NOW, retry=True), 429, "apr-1 is pending", id="pending, to be polled"),
        pytest.param(
            holding.pending(record(repeatable="its name is new each time"), NOW),
            403,
            "but its name is new each time, so ask ahead with an AccessRequest",
            id="not repeatable",
        ),
        pytest.param(
            holding.ended(record(Phase.DENIED), NOW, 900), 403, "bob denied approval apr-1: not today", id="denied"
        ),
        pytest.param(holding.ended(record(Phase.EXPIRED), NOW), 403, "approval apr-1 expired", id="expired"),
        pytest.param(holding.ended(record(Phase.CANCELLED), NOW), 403, "apr-1 was cancelled", id="cancelled"),
        pytest.param(holding.ended(record(Phase.USED), NOW), 403, "has been used already", id="used"),
        pytest.param(
            holding.voided(record(Phase.APPROVED), "the object changed", record(name="apr-2"), NOW),
            403,
            "is void: the object changed; approval apr-2 is pending instead; oncall can approve it",
            id="void",
        ),
        pytest.param(holding.pending(record(asked=(LONG, LONG)), NOW), 403, "apr-1 is pending", id="long names"),
    ],
)
def test_sentences(refusal, code, has):
    assert refusal.code == code
    assert has in refusal.message
    assert (refusal.retry_after > 0) is (code == 429)
    assert len(status.one_line(refusal.message)) <= status.MAX_MESSAGE
    assert refusal.message.startswith("rule")


def test_the_next_step_is_not_cut_off_by_long_names():
    assert status.one_line(holding.pending(record(asked=(LONG,)), NOW).message).endswith("it passes once")


@pytest.mark.parametrize(
    ("granted", "now", "covered"),
    [
        pytest.param(("x",), "x", True, id="the same"),
        pytest.param(("x",), "y", False, id="edited since"),
        pytest.param((), "y", False, id="of an older version, which did not say"),
        pytest.param((), "", True, id="neither says"),
    ],
)
def test_a_grant_is_for_the_rule_as_it_was(granted, now, covered):
    """A rule of the same name may hold more by now, or ask others."""
    grant = Grant("grt-1", "u", AGENT, ("agents/new-namespace",), NOW - 1, NOW + 1, digests=granted)
    hold = replace(NEW_NAMESPACE.hold, digest=now)
    assert holding.covers(grant, hold, operation(), NOW) is covered


def test_how_a_question_ended():
    pending = records.record()
    done = records.approved(pending)
    assert holding.ending(pending, done) == ("approved", done.decided - pending.created)
    assert holding.ending(pending, pending) is None
    assert holding.ending(done, approvals.void(done, "x", done.decided + 9)) is None
    assert holding.ending(None, done) is None
