"""The desk with a real book on a real store; who sends, who looks and what the API server says is scripted."""

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from addons.core import admission, approvals, classify, digests, holding, status
from addons.core.approvals import Decider, Item, Phase, Preview, Requester
from addons.core.model import Action, Hold, Identity, Verdict
from addons.core.revocations import Revocation, Target
from addons.core.tokens import TokenError
from addons.net import book as books
from addons.net import desk as desks
from addons.net import objects, store
from addons.net.book import APPROVALS, GRANTS, REVOCATIONS, Book
from addons.net.desk import Case, Desk
from addons.net.issuers import IssuerError
from addons.net.previews import Checked, Seen
from addons.net.store import SqliteStore, StoreError
from tests import records
from tests.records import AGENT, NOW, ONCALL, OTHER_AGENT, hold, person

JSON = "application/json"
RULE = hold()
OTHER_RULE = hold("execute")
SESSION = "11111111-0000-4000-8000-000000000000"
SECOND = "22222222-0000-4000-8000-000000000000"
LATER = 10.0  # seconds; a test that waits longer than this hangs


def verdict(*holds, action=Action.HOLD, **more):
    return Verdict(action, RULE.rule, RULE.policy, "r1", "Namespaces cost money.", holds=holds, **more)


HELD = verdict(RULE)
ALLOWED = verdict(action=Action.ALLOW)
BOTH = verdict(RULE, OTHER_RULE)
DENIED = Verdict(Action.DENY, "freeze", "agents", "r2", "Nothing changes this week.")


class Clock:
    """Both clocks of the desk; the test moves them."""

    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now

    def monotonic(self):
        return self.now - NOW + 1000


class Store(SqliteStore):
    """Fails while it is told to; `fails` counts down to it."""

    def __init__(self, path=None):
        super().__init__(path)
        self.broken = False

    async def apply(self, changes, now):
        if self.broken:
            raise StoreError("state.db is busy")
        return await super().apply(changes, now)


class Previewer:
    """What the API server would show and say, and what was asked of it."""

    def __init__(self):
        self.seen, self.checked = Seen(Preview("diff"), "uid-1", "7", "result"), Checked()
        self.previewed, self.checks = [], []
        self.at_once = self.most = 0
        self.gate = None  # an Event: previews wait for it
        self.on_again = lambda: None

    async def preview(self, request, operation):
        self.previewed.append(request.target)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        self.at_once -= 1
        return self.seen

    async def again(self, request, operation, item, content=None, drift=0):
        self.checks.append((item, content, drift))
        await asyncio.sleep(0)
        self.on_again()
        return self.checked


class Sender:
    """Who sends one request: where he is, who he is and what the policies say, now."""

    def __init__(self):
        self.gone = False
        self.leaves_at = 0  # the look that finds him gone; 0: none
        self.looks = 0
        self.identity = AGENT
        self.policy = HELD
        self.waits_for = asyncio.Queue()

    def left(self):
        self.looks += 1
        self.gone = self.gone or self.looks == self.leaves_at
        return self.gone

    async def identify(self):
        await asyncio.sleep(0)
        if isinstance(self.identity, Exception):
            raise self.identity
        return self.identity

    def judge(self):
        if isinstance(self.policy, Exception):
            raise self.policy
        return self.policy


@dataclass
class Held:
    """A request at the desk."""

    case: Case
    sender: Sender
    task: asyncio.Task

    async def waits(self):
        """The name of the approval, once it waits for it."""
        waiting = asyncio.ensure_future(self.sender.waits_for.get())
        await asyncio.wait({waiting, self.task}, timeout=LATER, return_when=asyncio.FIRST_COMPLETED)
        assert waiting.done(), self.task
        return waiting.result()

    async def outcome(self):
        await asyncio.wait({self.task}, timeout=LATER)
        assert self.task.done(), "it hangs"
        return self.task.result()

    async def cause(self):
        """Why it was refused: (code, cause)."""
        found = await self.outcome()
        assert found.refusal is not None, found
        assert len(status.one_line(found.refusal.message)) < status.MAX_MESSAGE
        assert not found.by
        return found.refusal.code, found.refusal.cause


class Office:
    """A desk, and everybody who comes to it."""

    def __init__(self, clock, kept):
        self.clock, self.store = clock, kept
        self.book = Book(kept, clock)
        self.told = []
        self.desk = Desk(self.book, self.told.append, clock, clock.monotonic)
        self.previewer = Previewer()

    def send(self, case, sender):
        return Held(case, sender, asyncio.ensure_future(self.desk.hold(case)))

    def ask(self, name="x", *, sender=None, **more):
        sender = sender or Sender()
        return self.send(self.case(name, sender, **more), sender)

    def case(
        self,
        name="x",
        sender=None,
        *,
        method="POST",
        target="/api/v1/namespaces",
        body=None,
        session="",
        upgrade="",
        identity=AGENT,
        audit_id="",
        connection="c1",
        previewer=None,
        by=None,
    ):
        sender = sender or Sender()
        if body is None and method == "POST" and target.endswith("/namespaces"):
            body = json.dumps({"kind": "Namespace", "metadata": {"name": name}}).encode()
        headers = {"Content-Type": JSON} if body else {}
        headers |= {"Kubectl-Session": session} if session else {}
        headers |= {"Upgrade": upgrade} if upgrade else {}
        if sender.identity is AGENT:
            sender.identity = identity
        return Case(
            identity=identity,
            operation=classify.classify(method, target, headers, body or b""),
            request=objects.Request(method, target, JSON if body else "", body or b""),
            verdict=by or sender.policy,
            audit_id=audit_id or f"audit-{id(sender)}",
            connection=connection,
            left=sender.left,
            identify=sender.identify,
            judge=sender.judge,
            previewer=previewer or self.previewer,
            waits=sender.waits_for.put_nowait,
        )

    # ----- people -----

    async def decide(self, name, yes=True, who="alice", reason="because"):
        decider = Decider(person(who, ONCALL, now=self.clock.now), agent=False)
        await self.book.step(APPROVALS, name, lambda r: approvals.decide(r, decider, yes, reason, self.clock.now))

    async def cancel(self, name):
        await self.book.step(APPROVALS, name, lambda r: approvals.cancel(r, "ci", self.clock.now))

    def record(self, name):
        return self.book.get(APPROVALS, name).entry

    def records(self):
        return [change.entry for change in self.book.all(APPROVALS)]

    async def undecided(self, name="x", **more):
        """The approval of a request that was told to come again."""
        held = self.ask(name, **more)
        found = await held.waits()
        self.clock.now += RULE.approval.wait
        assert await held.cause() == (403, "approval-pending")
        return found

    async def approved(self, name="x", **more):
        """The approval that the next request of this kind may use."""
        found = await self.undecided(name, **more)
        await self.decide(found)
        return found


@contextlib.asynccontextmanager
async def opened(clock, path=None):
    kept = Store(path)
    one = Office(clock, kept)
    await one.book.start()
    try:
        yield one
    finally:
        one.desk.stopping = True  # whoever still waits, in a test that failed
        await one.book.stop()
        kept.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(desks, "LOOK", 0.005)
    monkeypatch.setattr(books, "SWEEP", 3600.0)  # what has expired is found out by who waits, not by the sweep


@pytest.fixture
async def office():
    async with opened(Clock()) as one:
        yield one


# ----- waiting -----


async def test_approved_in_time(office):
    held = office.ask()
    name = await held.waits()
    assert not held.task.done()
    assert (office.desk.waiting, [r.name for r in office.told]) == (1, [name])
    await office.decide(name)
    outcome = await held.outcome()
    assert (outcome.refusal, outcome.relayed, outcome.by) == (None, None, name)
    record = office.record(name)
    assert (record.phase, record.items[0].used_by) == (Phase.USED, held.case.audit_id)
    assert (outcome.record, outcome.digest) == (record, desks.digest_of(held.case))
    assert office.desk.waiting == 0


async def test_what_is_asked_is_what_was_previewed(office):
    held = office.ask(session=SESSION)
    record = office.record(await held.waits())
    assert record.items == (Item(desks.digest_of(held.case), record.summary, "uid-1", "7", "result"),)
    assert (record.preview, record.requester, record.revision) == (Preview("diff"), approvals.requester(AGENT), "r1")
    assert [a.hold for a in record.asked] == [RULE]
    assert (record.created, record.expires, record.waiting) == (NOW, NOW + RULE.approval.valid, True)
    assert (record.resource, record.verb, record.namespace) == ("namespaces", "create", "")
    await office.cancel(record.name)
    await held.outcome()


@pytest.mark.parametrize(
    ("end", "cause", "says"),
    [
        pytest.param(lambda o, n: o.decide(n, yes=False, reason="no"), "approval-denied", "alice denied", id="denied"),
        pytest.param(lambda o, n: o.cancel(n), "approval-cancelled", "was cancelled", id="cancelled"),
        pytest.param(lambda o, n: o.book.remove(APPROVALS, n), "approval-void", "it was removed", id="removed"),
    ],
)
async def test_ended_while_it_waits(office, end, cause, says):
    held = office.ask()
    await end(office, await held.waits())
    assert await held.cause() == (403, cause)
    assert says in held.task.result().refusal.message


async def test_expired_while_it_waits(office):
    rule = hold(wait=2000, valid=100)
    held = office.ask(by=verdict(rule))
    name = await held.waits()
    office.clock.now += 100
    assert await held.cause() == (403, "approval-expired")
    with pytest.raises(approvals.NotAllowed):
        await office.decide(name)


async def test_undecided_in_time_is_told_how_to_go_on(office):
    held = office.ask()
    name = await held.waits()
    office.clock.now += RULE.approval.wait
    assert await held.cause() == (403, "approval-pending")
    said = held.task.result().refusal
    assert all(part in said.message for part in (name, ONCALL, "send the same request again", RULE.rule))
    assert said.retry_after == 0
    assert not office.record(name).waiting
    # No ghost writes: a later yes lets a new request through, and the old one is over.
    await office.decide(name)
    assert (await office.ask().outcome()).by == name


async def test_retry_is_a_429(office):
    rule = hold(retry=True)
    held = office.ask(by=verdict(rule))
    await held.waits()
    office.clock.now += rule.approval.wait
    assert await held.cause() == (429, "approval-pending")
    assert held.task.result().refusal.retry_after > 0


async def test_retry_must_be_said_by_all_rules(office):
    held = office.ask(by=verdict(hold(retry=True), OTHER_RULE))
    await held.waits()
    office.clock.now += RULE.approval.wait
    assert await held.cause() == (403, "approval-pending")


async def test_a_rule_without_a_wait_answers_at_once(office):
    held = office.ask(by=verdict(hold(wait=0)))
    assert await held.cause() == (403, "approval-pending")
    assert [r.waiting for r in office.told] == [False]


async def test_a_read_is_never_held_open(office):
    held = office.ask(method="GET", target="/api/v1/namespaces/shop/configmaps/web")
    assert await held.cause() == (403, "approval-pending")


async def test_the_wait_is_over_all_that_comes_before_it(office):
    """The preview took its time: a client that gives up after 30 s must have its answer by then."""
    office.previewer.gate = asyncio.Event()
    held = office.ask()
    while not office.previewer.previewed:
        await asyncio.sleep(0)
    office.clock.now += RULE.approval.wait
    office.previewer.gate.set()
    assert await held.cause() == (403, "approval-pending")


async def test_two_people_are_needed(office):
    held = office.ask(by=verdict(hold(needed=2)), sender=(sender := Sender()))
    sender.policy = held.case.verdict
    name = await held.waits()
    await office.decide(name)
    assert not held.task.done()
    await office.decide(name, who="bob")
    assert (await held.outcome()).by == name


# ----- asking -----


async def test_what_the_api_server_refuses_is_nobodys_question(office):
    refusal = admission.ServerRefusal(409, b"{}")
    office.previewer.seen = Seen(refusal=refusal)
    outcome = await office.ask().outcome()
    assert (outcome.relayed, outcome.refusal, outcome.by) == (refusal, None, "")
    assert not office.records()
    assert not office.told


async def test_a_hold_without_rules_is_satisfied_by_nothing(office):
    assert await office.ask(by=verdict()).cause() == (503, "approval-unavailable")
    name = await office.approved()
    sender = Sender()
    case = replace(office.case(sender=sender), judge=verdict)
    assert await office.send(case, sender).cause() == (503, "approval-unavailable")
    assert office.record(name).phase is Phase.APPROVED


async def test_denied_means_denied_for_a_while(office):
    held = office.ask()
    await office.decide(await held.waits(), yes=False, reason="not in the freeze")
    await held.outcome()
    office.clock.now += RULE.approval.cooldown - 1
    again = office.ask()
    assert await again.cause() == (403, "approval-denied")
    assert "not in the freeze" in again.task.result().refusal.message
    assert len(office.told) == 1
    other = office.ask("y")  # another request is another question
    await office.cancel(await other.waits())
    await other.outcome()
    office.clock.now += 1
    once_more = office.ask()
    await office.cancel(await once_more.waits())
    await once_more.outcome()


async def test_denied_while_the_same_stands_in_the_queue(office):
    office.previewer.gate = asyncio.Event()
    first = office.ask()
    while not office.previewer.previewed:
        await asyncio.sleep(0)
    blocker, second = office.ask("y"), office.ask()  # behind each other: one preview at a time
    await asyncio.sleep(0.01)
    office.previewer.gate.set()
    gate = office.previewer.gate = asyncio.Event()
    await office.decide(await first.waits(), yes=False)
    gate.set()
    assert await second.cause() == (403, "approval-denied")
    assert [r.summary for r in office.told if "x" in r.summary.split()[-1:]] == [office.told[0].summary]
    await office.cancel(await blocker.waits())
    await first.outcome()
    await blocker.outcome()


async def test_approved_while_the_same_command_stands_in_the_queue(office):
    fan = FanOut(office, 2)
    fan.previewer.gate = office.previewer.gate = asyncio.Event()
    first = fan.send("web-0")
    while not fan.previewer.previewed:
        await asyncio.sleep(0)
    blocker, second = office.ask("y"), fan.send("web-1")
    await asyncio.sleep(0.01)
    fan.previewer.gate.set()
    gate = office.previewer.gate = asyncio.Event()
    name = await first.waits()
    await office.decide(name)
    gate.set()
    assert (await second.outcome()).by == name  # though only the first of a command waits
    await office.cancel(await blocker.waits())
    await first.outcome()
    await blocker.outcome()


async def test_a_name_that_is_taken_by_another_question(office):
    key, digest = approvals.requester(AGENT).key, desks.digest_of(office.case())
    name = approvals.name("apr", key, digests.command([digest]), "0")
    for phase in (Phase.PENDING, Phase.APPROVED, Phase.VOID):
        taken = replace(approvals_of(OTHER_RULE), name=name, phase=phase, expires=NOW + 900, valid_until=NOW + 900)
        await office.book.add(APPROVALS, taken)
        held = office.ask()
        assert await held.waits() != name
        assert office.record(name).phase is phase
        await office.cancel(office.told[-1].name)
        await held.outcome()
        await office.book.remove(APPROVALS, name)
        await office.book.remove(APPROVALS, office.told[-1].name)


async def test_the_same_question_is_asked_once(office):
    many = [office.ask(session=f"{n:08}") for n in range(5)]
    names = {await one.waits() for one in many}
    assert len(names) == len(office.told) == len(office.previewer.previewed) == 1
    await office.cancel(names.pop())
    for one in many:
        assert await one.cause() == (403, "approval-cancelled")


async def test_another_requesters_approval_is_not_used(office):
    await office.approved()
    held = office.ask(identity=OTHER_AGENT)
    await office.cancel(await held.waits())
    assert await held.cause() == (403, "approval-cancelled")


async def test_what_was_approved_for_other_rules_is_void(office):
    name = await office.approved()
    held = office.ask(by=BOTH)
    assert await held.waits() != name
    assert office.record(name).phase is Phase.VOID
    office.desk.stopping = True
    await held.outcome()


async def test_only_so_many_questions_of_one_requester(office):
    most = RULE.approval.max_pending
    held = [office.ask(f"n{n}") for n in range(3 * most)]
    done, waiting = [], []
    for one in held:
        done.append(one) if await settled(one) else waiting.append(one)
    assert len(waiting) == most == sum(r.phase is Phase.PENDING for r in office.records())
    assert {await one.cause() for one in done} == {(403, "approval-too-many")}
    assert len(office.previewer.previewed) == most  # nobody asks the API server for what nobody is asked
    assert office.previewer.most == 1
    other = office.ask(identity=OTHER_AGENT)  # another requester has questions of his own
    await other.waits()
    await office.cancel(office.told[0].name)
    # Else whoever asks and takes back, again and again, has the approvers hear of each.
    assert await office.ask("at once").cause() == (403, "approval-too-many")
    office.clock.now += approvals.ASKED
    more = office.ask("more")
    await more.waits()
    office.desk.stopping = True
    for one in (*waiting, other, more):
        await one.outcome()


async def settled(held):
    """Whether it was answered, not made to wait."""
    waiting = asyncio.ensure_future(held.sender.waits_for.get())
    await asyncio.wait({waiting, held.task}, timeout=LATER, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return held.task.done()


async def test_previews_of_different_requesters_do_not_wait_for_each_other(office):
    office.previewer.gate = asyncio.Event()
    held = [office.ask(), office.ask(identity=OTHER_AGENT)]
    async with asyncio.timeout(LATER):
        while office.previewer.most < 2:
            await asyncio.sleep(0)
    office.previewer.gate.set()
    for one in held:
        await office.cancel(await one.waits())
        await one.outcome()


async def test_grants(office):
    rule = hold(grant_for=1800, grant_scope="rule")
    sender = Sender()
    sender.policy = verdict(rule)
    held = office.ask(sender=sender)
    name = await held.waits()
    await office.decide(name)
    outcome = await held.outcome()
    (grant,) = office.book.grants(approvals.requester(AGENT).key)
    assert (outcome.by, outcome.refusal, outcome.verdict) == (grant.name, None, sender.policy)
    assert outcome.grants == (grant,)  # a stream that it opens ends with it
    assert office.record(name).phase is Phase.USED
    later = office.ask("y", by=verdict(rule))
    assert ((await later.outcome()).by, later.sender.looks) == (grant.name, 0)
    both = office.ask("y", by=verdict(rule, OTHER_RULE))  # it satisfies its own rule and no other
    assert [a.hold for a in office.record(await both.waits()).asked] == [OTHER_RULE]
    assert not office.desk.ended([grant])
    office.clock.now += 1800
    assert office.desk.ended([grant])
    office.desk.stopping = True
    await both.outcome()


async def test_a_grant_for_one_rule_and_a_yes_for_the_other(office):
    rule = hold(grant_for=1800, grant_scope="rule")
    first = office.ask("y", by=verdict(rule))
    first.sender.policy = verdict(rule)
    await office.decide(await first.waits())
    (grant,) = (await first.outcome()).grants
    both = office.ask(by=verdict(rule, OTHER_RULE))
    both.sender.policy = verdict(rule, OTHER_RULE)
    name = await both.waits()
    await office.decide(name)
    outcome = await both.outcome()
    assert (outcome.by, outcome.grants) == (name, (grant,))
    assert not office.desk.ended(())
    await office.book.step(GRANTS, grant.name, lambda kept: approvals.revoke(kept, "alice", office.clock.now))
    assert office.desk.ended((grant,))


async def test_a_grant_that_was_revoked_while_its_request_waited(office):
    """The other rule's yes comes too late for it."""
    rule = hold(grant_for=1800, grant_scope="rule")
    first = office.ask("y", by=verdict(rule))
    first.sender.policy = verdict(rule)
    await office.decide(await first.waits())
    (grant,) = (await first.outcome()).grants
    both = office.ask(by=verdict(rule, OTHER_RULE))
    both.sender.policy = verdict(rule, OTHER_RULE)
    name = await both.waits()
    await office.book.step(GRANTS, grant.name, lambda kept: approvals.revoke(kept, "alice", office.clock.now))
    await office.decide(name)
    assert await both.cause() == (403, "approval-void")
    assert [len(r.asked) for r in office.records() if r.phase is Phase.PENDING] == [2]


async def test_a_grant_that_came_meanwhile(office):
    name = await office.approved()
    rule = hold(grant_for=60, grant_scope="rule")
    other = office.ask("y", by=verdict(rule))
    other.sender.policy = verdict(rule)
    # A request that is on its way through `_release` when a grant for its rule begins.
    await office.decide(await other.waits())
    await other.outcome()
    grant = office.book.grants(approvals.requester(AGENT).key)[0]
    case = office.case()
    outcome = await office.desk._release(case, office.record(name), desks.digest_of(case))
    assert outcome.by == grant.name
    assert (office.record(name).phase, office.record(name).message) == (Phase.VOID, f"{grant.name} opens the rule")


# ----- the client -----


async def test_gone_before_anybody_was_asked(office):
    held = office.ask(sender=(sender := Sender()))
    sender.gone = True
    assert await held.cause() == (403, "client-left")
    assert not office.previewer.previewed
    assert not office.told


async def test_gone_while_it_waits(office):
    held = office.ask()
    name = await held.waits()
    held.sender.gone = True
    assert await held.cause() == (403, "client-left")
    record = office.record(name)
    assert (record.phase, record.waiting) == (Phase.PENDING, False)
    assert "the client left" in record.message
    await office.decide(name)
    assert office.record(name).phase is Phase.APPROVED
    assert (await office.ask().outcome()).by == name  # the retry can still use it


async def test_gone_when_the_yes_comes(office):
    held = office.ask()
    name = await held.waits()
    office.previewer.on_again = lambda: setattr(held.sender, "gone", True)
    await office.decide(name)
    assert await held.cause() == (403, "client-left")
    record = office.record(name)
    assert (record.phase, record.message) == (Phase.APPROVED, "approved by alice")
    assert not record.items[0].used


async def test_gone_between_the_look_and_the_spending(office):
    name = await office.approved()
    sender = Sender()
    sender.leaves_at = 2
    held = office.ask(sender=sender)
    assert await held.cause() == (403, "client-left")
    record = office.record(name)
    assert (record.phase, record.items[0].used) == (Phase.APPROVED, False)  # spent, and given back
    assert (await office.ask().outcome()).by == name


async def test_what_is_given_back_can_be_used_once_more_and_no_more(office):
    name = await office.approved()
    first = await office.ask(audit_id="a1").outcome()
    await office.desk.give_back(name, first.digest, "another")  # not whose it was
    assert office.record(name).phase is Phase.USED
    await office.desk.give_back(name, first.digest, "a1")
    assert (await office.ask(audit_id="a2").outcome()).by == name
    await office.desk.give_back(name, first.digest, "a1")  # once more, late
    assert office.record(name).phase is Phase.USED


async def test_a_late_give_back_does_not_lengthen_a_yes(office):
    name = await office.approved()
    first = await office.ask(audit_id="a1").outcome()
    office.clock.now += RULE.approval.valid
    await office.desk.give_back(name, first.digest, "a1")
    assert office.record(name).phase is Phase.EXPIRED


# ----- everything asked again -----


@pytest.mark.parametrize(
    ("identity", "cause"),
    [
        pytest.param(replace(AGENT, groups=("agents",)), (403, "approval-identity"), id="a group less"),
        pytest.param(replace(AGENT, groups=(*AGENT.groups, "more")), (403, "approval-identity"), id="a group more"),
        pytest.param(replace(AGENT, uid="u9"), (403, "approval-identity"), id="uid"),
        pytest.param(replace(AGENT, username="other"), (403, "approval-identity"), id="username"),
        pytest.param(replace(AGENT, issuer="https://other"), (403, "approval-identity"), id="issuer"),
        pytest.param(TokenError("review", "revoked"), (401, "token-revoked"), id="revoked"),
        pytest.param(IssuerError("down"), (503, "approval-unavailable"), id="nobody can tell"),
    ],
)
async def test_who_it_is_now(office, identity, cause):
    held = office.ask()
    name = await held.waits()
    held.sender.identity = identity
    await office.decide(name)
    assert await held.cause() == cause
    assert office.record(name).phase is Phase.APPROVED  # for him as he was
    assert not office.previewer.checks


async def test_another_token_of_the_same_identity_is_the_same(office):
    held = office.ask()
    name = await held.waits()
    held.sender.identity = replace(AGENT, credential_id="jti-2", expiry=NOW + 300)
    await office.decide(name)
    assert (await held.outcome()).by == name


@pytest.mark.parametrize(
    ("policy", "cause", "phase"),
    [
        pytest.param(DENIED, (403, "policy-deny"), Phase.VOID, id="denies"),
        pytest.param(Verdict(), (403, "policy-no-match"), Phase.VOID, id="allows it no longer"),
        pytest.param(verdict(OTHER_RULE), (403, "approval-void"), Phase.VOID, id="another rule"),
        pytest.param(BOTH, (403, "approval-void"), Phase.VOID, id="one rule more"),
        pytest.param(verdict(hold(needed=2)), (403, "approval-void"), Phase.VOID, id="the rule as it is now"),
        pytest.param(
            admission.NeedsObjects(frozenset({"object"}), frozenset()),
            (403, "approval-policy"),
            Phase.APPROVED,
            id="looks at objects now",
        ),
    ],
)
async def test_what_the_policies_say_now(office, policy, cause, phase):
    held = office.ask()
    name = await held.waits()
    held.sender.policy = policy
    await office.decide(name)
    assert await held.cause() == cause
    assert office.record(name).phase is phase
    pending = [r for r in office.records() if r.phase is Phase.PENDING]
    assert len(pending) == (cause[1] == "approval-void")
    if pending:  # asked anew, by the rules of now, and nobody is held for it
        assert [a.hold for a in pending[0].asked] == list(policy.holds)
        assert not pending[0].waiting
        assert pending[0].name in held.task.result().refusal.message


async def test_the_policies_allow_it_now(office):
    held = office.ask()
    name = await held.waits()
    held.sender.policy = ALLOWED
    await office.decide(name)
    outcome = await held.outcome()
    assert (outcome.refusal, outcome.by, outcome.verdict) == (None, holding.NOT_ASKED, ALLOWED)
    # Not kept for another day on which the policy asks again.
    assert office.record(name).phase is Phase.VOID


async def test_a_verdict_that_denies_is_told(office):
    held = office.ask()
    name = await held.waits()
    held.sender.policy = DENIED
    await office.decide(name)
    assert (await held.outcome()).verdict is DENIED


async def test_the_state_is_another(office):
    held = office.ask()
    name = await held.waits()
    office.previewer.checked = Checked(why="the object changed since")
    office.previewer.seen = replace(office.previewer.seen, result="other")
    await office.decide(name)
    assert await held.cause() == (403, "approval-void")
    (anew,) = [r for r in office.records() if r.phase is Phase.PENDING]
    assert (office.record(name).phase, anew.items[0].result) == (Phase.VOID, "other")
    message = held.task.result().refusal.message
    assert "the object changed since" in message
    assert anew.name in message


async def test_the_state_is_another_and_the_api_server_refuses_it_now(office):
    held = office.ask()
    name = await held.waits()
    office.previewer.checked = Checked(why="the object is gone")
    office.previewer.seen = Seen(refusal=admission.ServerRefusal(404, b"{}"))
    await office.decide(name)
    outcome = await held.outcome()
    assert (outcome.relayed.code, outcome.by) == (404, "")
    assert office.record(name).phase is Phase.VOID


async def test_the_state_cannot_be_told(office):
    name = await office.approved()
    office.previewer.checked = Checked(unknown="the object cannot be looked at now")
    assert await office.ask().cause() == (503, "approval-unavailable")
    assert office.record(name).phase is Phase.APPROVED
    office.previewer.checked = Checked()
    assert (await office.ask().outcome()).by == name


async def test_what_is_checked_is_what_was_bound(office):
    rule, strict = hold(drift=5), hold("strict", drift=2)
    sender = Sender()
    sender.policy = verdict(rule, strict)
    office.previewer.seen = replace(office.previewer.seen, content={"pods": 3})
    held = office.ask(sender=sender)
    name = await held.waits()
    item = office.record(name).items[0]
    await office.decide(name)
    await held.outcome()
    assert office.previewer.checks == [(item, {"pods": 3}, 2)]


# ----- the store -----


async def broken_when(office, moment):
    """A request that meets a broken store at this moment, and its approval."""
    name = None if moment in ("asking", "outdated") else await office.approved()
    if moment == "outdated":
        name = await office.approved()
        office.store.broken = True
        return office.ask(by=verdict(OTHER_RULE)), name
    if moment == "spending":
        office.previewer.on_again = lambda: setattr(office.store, "broken", True)
    elif moment == "voiding":
        office.previewer.checked = Checked(why="it changed")
        office.previewer.on_again = lambda: setattr(office.store, "broken", True)
    else:
        office.store.broken = True
    return office.ask(), name


@pytest.mark.parametrize("moment", ["asking", "outdated", "spending", "voiding"])
async def test_without_the_store_nothing_is_let_go(office, moment):
    held, name = await broken_when(office, moment)
    assert await held.cause() == (503, "approval-unavailable")
    assert held.task.result().refusal.retry_after == 0
    office.store.broken, office.previewer.checked = False, Checked()
    office.previewer.on_again = lambda: None
    if name is not None:
        assert office.record(name).phase is Phase.APPROVED
        assert (await office.ask().outcome()).by == name


async def test_what_cannot_be_given_back_stays_spent(office, caplog):
    name = await office.approved()

    def left():
        office.store.broken = office.record(name).phase is Phase.USED
        return office.store.broken

    case = replace(office.case(), left=left)
    assert await office.send(case, Sender()).cause() == (403, "client-left")
    assert office.record(name).phase is Phase.USED
    assert f"approval {name} stays spent" in caplog.text


async def test_a_note_that_cannot_be_written_changes_no_answer(office):
    held = office.ask()
    name = await held.waits()
    office.store.broken = True
    office.clock.now += RULE.approval.wait
    assert await held.cause() == (403, "approval-pending")
    assert office.record(name).phase is Phase.PENDING


async def test_a_bug_is_no_release(office):
    """It comes out, and the stamp is missing then."""
    held = office.ask()
    name = await held.waits()
    office.previewer.on_again = lambda: 1 // 0
    await office.decide(name)
    await asyncio.wait({held.task}, timeout=LATER)
    assert isinstance(held.task.exception(), ZeroDivisionError)
    assert office.record(name).phase is Phase.APPROVED
    assert office.desk.waiting == 0


async def test_something_else_under_its_name(office):
    with pytest.raises(TypeError):
        desks._record(books.Change("approvals", "x", 1, object()))


# ----- used once -----


async def test_of_two_with_the_same_bytes_exactly_one_goes(office):
    name = await office.approved()
    outcomes = [await one.outcome() for one in [office.ask() for _ in range(5)]]
    released = [o for o in outcomes if o.refusal is None]
    assert [o.by for o in released] == [name]
    assert {o.refusal.cause for o in outcomes if o.refusal} == {"approval-used"}


async def test_of_two_that_wait_for_one_approval_exactly_one_goes(office):
    held = [office.ask(session=session) for session in (SESSION, SECOND)]
    names = {await one.waits() for one in held}
    await office.decide(*names)
    causes = [(await one.outcome()).refusal for one in held]
    assert sorted(c.cause if c else "" for c in causes) == ["", "approval-used"]


async def test_used_again_is_a_new_question(office):
    name = await office.approved()
    await office.ask().outcome()
    again = office.ask()
    assert await again.waits() != name
    office.desk.stopping = True
    await again.outcome()


async def test_removed_between_the_check_and_the_spending(office):
    name = await office.approved()
    gone = []
    office.previewer.on_again = lambda: gone.append(asyncio.ensure_future(office.book.remove(APPROVALS, name)))
    held = office.ask()
    again = office.previewer.again

    async def slow(*args, **more):
        found = await again(*args, **more)
        await asyncio.wait(gone)
        return found

    office.previewer.again = slow
    assert (await held.cause())[0] == 403


async def test_two_processes_ask_once_and_use_once(tmp_path):
    clock, path = Clock(), tmp_path / "state" / store.FILE
    async with opened(clock, path) as one, opened(clock, path) as two:
        held = [office.ask(session=session) for office, session in ((one, SESSION), (two, SECOND))]
        names = {await h.waits() for h in held}
        assert len(names) == 1
        assert len(one.told) + len(two.told) == 1
        await one.decide(*names)
        causes = [(await h.outcome()).refusal for h in held]
        assert sorted(c.cause if c else "" for c in causes) == ["", "approval-used"]


# ----- one command of many requests -----

PODS = "/api/v1/namespaces/shop/pods"


class FanOut:
    """The requests of one `kubectl delete pods --all`, or of a drain, and what the first one's preview lists."""

    def __init__(self, office, count=14, *, eviction=False):
        self.office, self.eviction = office, eviction
        self.names = [f"web-{n}" for n in range(count)]
        self.previewer = Previewer()
        items = []
        for name in self.names:
            case = self.case(name)
            items.append(Item(desks.digest_of(case), f"delete pod shop/{name}", f"uid-{name}"))
        self.previewer.seen = Seen(uid="uid-of-the-first", items=tuple(items))

    def parts(self, name):
        if not self.eviction:
            return {"method": "DELETE", "target": f"{PODS}/{name}"}
        body = {"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": name, "namespace": "shop"}}
        return {"method": "POST", "target": f"{PODS}/{name}/eviction", "body": json.dumps(body).encode()}

    def case(self, name, sender=None, **more):
        return self.office.case(name, sender, previewer=self.previewer, **self.parts(name), **more)

    def send(self, name, session=SESSION, **more):
        sender = Sender()
        return self.office.send(self.case(name, sender, session=session, audit_id=f"a-{name}", **more), sender)


async def test_a_fan_out_has_one_approval_and_only_its_first_request_waits(office):
    fan = FanOut(office)
    first = fan.send("web-0")
    name = await first.waits()
    rest = [fan.send(n) for n in fan.names[1:]]
    for one in rest:
        assert await one.cause() == (403, "approval-pending")
        assert name in one.task.result().refusal.message
    assert not first.task.done()
    assert len(office.told) == 1
    assert office.record(name).items[0].uid == "uid-of-the-first"  # of the object that was looked at just now
    await office.decide(name)
    assert (await first.outcome()).by == name
    # The others had their answer; the same command once more lets each through that is open, once.
    again = [await fan.send(n, SECOND).outcome() for n in fan.names[1:]]
    assert [o.by for o in again] == [name] * 13
    assert office.record(name).phase is Phase.USED
    assert len({i.used_by for i in office.record(name).items}) == 14


async def test_each_item_of_a_fan_out_is_used_once(office):
    fan = FanOut(office, 3)
    await fan_approved(office, fan)
    outcomes = [await one.outcome() for one in [fan.send(n) for n in fan.names for _ in range(3)]]
    assert Counter(o.digest for o in outcomes if not o.refusal).most_common() == [
        (item.digest, 1) for item in office.told[0].items
    ]
    assert {o.refusal.cause for o in outcomes if o.refusal} == {"approval-used"}


async def fan_approved(office, fan):
    held = fan.send(fan.names[0])
    name = await held.waits()
    office.clock.now += RULE.approval.wait
    await held.outcome()
    await office.decide(name)
    return name


async def test_an_object_that_is_not_in_the_fan_out_is_another_question(office):
    fan = FanOut(office, 3)
    name = await fan_approved(office, fan)
    stranger = fan.send("db-0", SECOND)
    assert await stranger.waits() != name
    office.desk.stopping = True
    await stranger.outcome()


async def test_a_fan_out_has_so_many_items_and_the_rest_asks_once_more(office, monkeypatch):
    monkeypatch.setattr(desks, "MAX_ITEMS", 3)
    fan = FanOut(office, 5)
    name = await fan_approved(office, fan)
    assert len(office.record(name).items) == 3
    outcomes = [await fan.send(n, SECOND).outcome() for n in fan.names[:3]]
    assert [o.by for o in outcomes] == [name] * 3
    rest = fan.send("web-3", SECOND)
    assert await rest.waits() != name
    office.desk.stopping = True
    await rest.outcome()


async def test_a_drain_evicts_several_at_once(office):
    fan = FanOut(office, 8, eviction=True)
    held = [fan.send(n) for n in fan.names]
    waiting = [one for one in held if not await settled(one)]
    assert (len(waiting), len(office.told)) == (1, 1)
    name = office.told[0].name
    await office.decide(name)
    assert (await waiting[0].outcome()).by == name
    rest = [n for n, one in zip(fan.names, held, strict=True) if one is not waiting[0]]
    again = [await one.outcome() for one in [fan.send(n) for n in rest]]
    assert [o.by for o in again] == [name] * 7


async def test_a_first_request_that_is_not_among_what_was_listed(office):
    """The list is older than the request: one yes is for what was shown, so for this one alone."""
    fan = FanOut(office, 3)
    held = fan.send("new")
    record = office.record(await held.waits())
    assert [i.digest for i in record.items] == [desks.digest_of(held.case)]
    office.desk.stopping = True
    await held.outcome()


async def test_the_same_session_waits_once_and_another_one_again(office):
    assert len({await office.undecided(session=SESSION)}) == 1
    assert await office.ask(session=SESSION).cause() == (403, "approval-pending")
    second = office.ask(session=SECOND)
    await second.waits()
    office.clock.now += RULE.approval.wait
    await second.outcome()


async def test_without_a_session_the_first_of_a_command_waits_and_no_other(office):
    fan = FanOut(office, 3)
    first = fan.send("web-1", session="")
    name = await first.waits()
    assert await fan.send("web-2", session="").cause() == (403, "approval-pending")
    retry = fan.send("web-1", session="")
    assert await retry.waits() == name
    office.clock.now += RULE.approval.wait
    for one in (first, retry):
        await one.outcome()


EXEC = f"{PODS}/web-1/exec?command=ls&container=web&stdout=true"


async def test_spdy_after_websocket_is_the_same_act_and_does_not_wait_again(office):
    held = office.ask(method="GET", target=EXEC, upgrade="websocket")
    name = await held.waits()
    office.clock.now += RULE.approval.wait
    await held.outcome()
    spdy = office.ask(method="POST", target=EXEC, upgrade="SPDY/3.1")
    assert await spdy.cause() == (403, "approval-pending")
    assert len(office.told) == 1
    office.clock.now += desks.FALLBACK
    late = office.ask(method="POST", target=EXEC, upgrade="SPDY/3.1")  # a command of its own
    await late.waits()
    await office.decide(name)
    assert (await late.outcome()).by == name  # and the yes is for either


async def test_a_stream_that_was_spent_is_spent_for_both(office):
    held = office.ask(method="GET", target=EXEC, upgrade="websocket")
    await office.decide(await held.waits())
    assert not (await held.outcome()).refusal
    again = office.ask(method="POST", target=EXEC, upgrade="SPDY/3.1")
    assert await again.waits() != held.task.result().by
    office.desk.stopping = True
    await again.outcome()


def test_the_commands_that_have_waited_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(desks, "REMEMBERED", 3)
    desk = Desk(None, None)
    for n in range(9):
        desk._remember(("apr", str(n)), float(n))
    assert [key for _, key in desk._waited] == ["6", "7", "8"]


# ----- the end -----


async def test_stopping_answers_everybody_and_the_questions_stay(office, monkeypatch):
    monkeypatch.setattr(desks, "LOOK", 0.3)
    held = [office.ask(f"n{n}") for n in range(3)]
    names = [await one.waits() for one in held]
    ending = asyncio.ensure_future(office.desk.end(LATER))
    # The desk's clock stands still in tests, so it waits for as long as it takes.
    await asyncio.wait({ending}, timeout=LATER)
    assert all(one.task.done() for one in held)
    for one in held:
        assert await one.cause() == (503, "stopping")
    assert {office.record(n).phase for n in names} == {Phase.PENDING}
    assert await office.ask("late").cause() == (503, "stopping")
    assert len(office.told) == 3


async def test_the_end_does_not_wait_for_ever():
    desk = Desk(None, None)
    desk.waiting = 1
    await asyncio.wait_for(desk.end(0.01), LATER)


async def test_what_survives_a_restart_can_be_used(tmp_path):
    clock, path = Clock(), tmp_path / "state" / store.FILE
    async with opened(clock, path) as one:
        held = one.ask()
        name = await held.waits()
        one.desk.stopping = True
        await held.outcome()
    async with opened(clock, path) as two:
        await two.decide(name)
        assert (await two.ask().outcome()).by == name


# ----- whatever comes in whatever order -----

asks = st.tuples(st.just("ask"), st.sampled_from("abcd"), st.sampled_from(["", SESSION, SECOND]))
yes = st.tuples(st.just("decide"), st.integers(0, 9), st.just(True))
happening = st.one_of(
    asks,
    asks,
    asks,
    yes,
    yes,
    st.tuples(st.just("decide"), st.integers(0, 9), st.just(False)),
    st.tuples(st.sampled_from(["cancel", "leave", "use it up"]), st.integers(0, 9), st.none()),
    st.tuples(st.just("policy"), st.sampled_from([HELD, HELD, HELD, HELD, BOTH, DENIED, ALLOWED]), st.none()),
    st.tuples(st.just("state"), st.sampled_from(["", "", "it changed"]), st.none()),
    st.tuples(st.just("wait"), st.sampled_from([1, 30, 1000]), st.none()),
    st.tuples(st.just("store breaks"), st.none(), st.none()),
)
# What happens, and how far all who wait come before the next thing does; None: as far as they can.
steps = st.lists(st.tuples(happening, st.sampled_from([None, None, 0, 1, 2, 3, 5, 8])), min_size=20, max_size=50)


class World:
    """One office in which anything may happen, and what was seen of it."""

    def __init__(self, office):
        self.office = office
        self.policy = HELD
        self.held = []
        self.most_pending = 0

    async def take(self, step, which, more):
        office = self.office
        office.store.broken = False  # for one step at a time, or nothing would ever happen
        match step:
            case "ask":
                sender = Sender()
                sender.policy = self.policy
                case = office.case(which, sender, session=more, by=HELD, audit_id=f"audit-{len(self.held)}")
                self.held.append(office.send(replace(case, judge=lambda: self.policy), sender))
            case "decide" | "cancel" | "use it up":
                every = office.records()
                records = [r for r in every if r.open] or every
                if records:
                    name = records[which % len(records)].name
                    with contextlib.suppress(approvals.NotAllowed, books.Missing, StoreError):
                        await self.change(step, name, more)
            case "leave":
                if self.held:
                    self.held[which % len(self.held)].sender.gone = True
            case "policy":
                self.policy = which
            case "state":
                office.previewer.checked = Checked(why=which)
            case "wait":
                office.clock.now += which
            case "store breaks":
                office.store.broken = True
        self.most_pending = max(self.most_pending, office.book.pending(approvals.requester(AGENT).key))

    async def go_on(self, turns):
        if turns is None:
            async with asyncio.timeout(LATER):
                while not all(self.rests(held) for held in self.held):
                    await asyncio.sleep(0.0005)
        for _ in range(turns or 0):
            await asyncio.sleep(0)

    def rests(self, held):
        """Whether nothing happens with it until something else does."""
        if held.task.done():
            return True
        waits = not held.sender.waits_for.empty() and not held.sender.gone
        return waits and any(self.is_open(r, held) for r in self.office.records())

    def is_open(self, record, held):
        return record.item(desks.digest_of(held.case)) is not None and record.phase is Phase.PENDING

    async def change(self, step, name, yes):
        office = self.office
        if step == "decide":
            await office.decide(name, yes)
        elif step == "cancel":
            await office.cancel(name)
        else:  # another process of the gateway lets the request go
            digest = office.record(name).items[0].digest
            await office.book.step(APPROVALS, name, lambda r: approvals.use(r, digest, "elsewhere", office.clock.now))

    def check(self):
        released = [(h, h.task.result()) for h in self.held if not h.task.result().refusal]
        by_yes = [(h, o) for h, o in released if o.by != holding.NOT_ASKED]
        for held, outcome in by_yes:
            record = self.office.record(outcome.by)
            item = record.item(desks.digest_of(held.case))
            # A yes by a person, and the one request that the record says has used it.
            assert [d.approved for d in record.decisions] == [True]
            assert (item.used_by, outcome.digest) == (held.case.audit_id, item.digest)
        assert max(Counter((o.by, o.digest) for _, o in by_yes).values(), default=1) == 1
        used = Counter(i.used_by for r in self.office.records() for i in r.items if i.used)
        spent = {h.case.audit_id for h, _ in by_yes}
        # What was spent for somebody who left was given back, or stays spent when the store failed: never more let go.
        assert spent <= set(used)
        assert self.most_pending <= RULE.approval.max_pending
        assert self.office.desk.waiting == 0


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_never_more_is_let_go_than_was_agreed_to(happenings):
    async def run():
        async with opened(Clock()) as office:
            world = World(office)
            for what, turns in happenings:
                await world.take(*what)
                await world.go_on(turns)
            office.store.broken = False
            office.desk.stopping = True
            for held in world.held:
                await held.outcome()
            world.check()

    before, desks.LOOK = desks.LOOK, 0.001
    try:
        asyncio.run(run())
    finally:
        desks.LOOK = before


def test_a_digest_is_of_the_whole_request():
    case = Office(Clock(), None).case()
    assert (
        desks.digest_of(case)
        == digests.of(case.operation, "POST", "/api/v1/namespaces", JSON, case.request.body)
        != desks.digest_of(Office(Clock(), None).case("y"))
    )


def test_the_strictest_drift_counts():
    record = replace(approvals_of(hold(drift=3), hold("b", drift=1)))
    assert desks.drift_of(record) == 1


def approvals_of(*holds: Hold):
    return approvals.Record(
        "apr-1", "u", approvals.requester(Identity("a")), "d", holding.asked(holds, AGENT), NOW, NOW + 1
    )


async def test_a_question_does_not_queue_for_ever_behind_others_of_its_requester(office, monkeypatch):
    monkeypatch.setattr(desks, "QUEUE", -1.0)
    held = office.ask()
    assert await held.cause() == (503, "approval-unavailable")
    assert not office.told


# ----- revocations -----

STOPPED = status.Refusal(403, "revoked", "tollgate: your access is stopped here")


async def revoke(office, **target):
    entry = Revocation("rev-1", "u", Target(**target), Requester("operator:x"), office.clock())
    await office.book.add(REVOCATIONS, entry)


async def test_a_held_request_of_who_is_revoked_is_answered(office):
    why = []
    sender = Sender()
    case = replace(office.case(sender=sender), ended=lambda: why[0] if why else None)
    held = office.send(case, sender)
    name = await held.waits()
    why.append(STOPPED)
    await office.book.step(APPROVALS, name, lambda kept: replace(kept, message="wake up"))
    assert await held.cause() == (403, "revoked")
    record = office.record(name)
    assert (record.phase, record.waiting) == (Phase.PENDING, False)


async def test_revoked_in_the_moment_in_which_it_was_spent(office):
    name = await office.approved()
    looks = []

    def ended():
        looks.append(1)
        return STOPPED

    sender = Sender()
    held = office.send(replace(office.case(sender=sender), ended=ended), sender)
    assert await held.cause() == (403, "revoked")
    assert looks
    record = office.record(name)
    assert (record.phase, record.items[0].used) == (Phase.APPROVED, False)  # given back


async def test_the_sentence_is_the_revocations(office):
    sender = Sender()
    await office.approved()
    sender.identity = TokenError("revoked", "x")
    held = office.send(replace(office.case(sender=sender), ended=lambda: STOPPED), sender)
    assert await held.cause() == (403, "revoked")


@pytest.mark.parametrize(
    ("target", "counts"),
    [
        pytest.param({"user": "alice"}, False, id="the approver"),
        pytest.param({"user": "alice", "token_id": "another"}, True, id="another token of hers"),
        pytest.param({"issued_before": NOW + 1000}, False, id="all tokens of that time"),
        pytest.param({"user": "bob"}, True, id="somebody else"),
        pytest.param({"agents": True}, True, id="agents, who decide nothing"),
    ],
)
async def test_the_yes_of_who_is_revoked_counts_no_more(office, target, counts):
    name = await office.approved()
    await revoke(office, **target)
    held = office.ask()
    outcome = await held.outcome()
    if counts:
        assert (outcome.refusal, outcome.by) == (None, name)
        return
    assert outcome.refusal.cause == "approval-void"
    assert "rev-1" in outcome.refusal.message
    assert office.record(name).phase is Phase.VOID


async def test_grants_of_who_is_revoked_open_nothing(office):
    source = records.access_request()
    grant = records.grant(source)
    await office.book.add(GRANTS, grant)
    assert list(office.book.grants(grant.requester.key)) == [grant]
    assert not office.desk.ended([grant])
    await revoke(office, user=grant.approvers[0])
    assert list(office.book.grants(grant.requester.key)) == []
    assert office.desk.ended([grant])
