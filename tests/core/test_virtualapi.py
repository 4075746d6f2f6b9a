"""What a request to the virtual API is, who sees what, and which step it takes."""

from dataclasses import replace

import pytest

from addons.core import approvals, policyfile, virtualapi, virtualchanges
from addons.core.approvals import Access, NotAllowed, Phase
from addons.core.model import Identity
from addons.core.revocations import Target
from addons.core.status import Refused
from addons.core.virtualapi import Page, Viewer, read
from addons.core.virtualchanges import NewRequest, NewRevocation, Wanted
from addons.core.virtualobjects import APPROVALS
from addons.core.virtualstatus import Problem
from tests import records
from tests.records import AGENT, NOW, ONCALL, approver, hold, person, record

BASE = "/apis/tollgate.dev/v1alpha1"
LIST = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"


@pytest.mark.parametrize(
    ("method", "target", "verb", "resource", "name"),
    [
        pytest.param("GET", "/approvals", "list", "approvals", "", id="list"),
        pytest.param("GET", "/approvals?watch=true", "watch", "approvals", "", id="watch"),
        pytest.param("GET", "/approvals?watch=0", "list", "approvals", "", id="no watch"),
        pytest.param("GET", "/approvals?fieldSelector=metadata.name%3Dx", "list", "approvals", "", id="list of one"),
        pytest.param("GET", "/approvals/x", "get", "approvals", "x", id="get"),
        pytest.param("GET", "/approvals/x?watch=true", "get", "approvals", "x", id="get, whatever it says"),
        pytest.param("GET", "/approvals/approvals", "get", "approvals", "approvals", id="a name like the resource's"),
        pytest.param("PATCH", "/grants/x?dryRun=All", "patch", "grants", "x", id="patch"),
        pytest.param("PUT", "/grants/x", "update", "grants", "x", id="update"),
        pytest.param("DELETE", "/accessrequests/x", "delete", "accessrequests", "x", id="delete"),
        pytest.param("POST", "/accessrequests", "create", "accessrequests", "", id="create"),
    ],
)
def test_calls(method, target, verb, resource, name):
    call = read(method, BASE + target, "")
    assert (call.verb, call.resource.plural, call.name) == (verb, resource, name)


def test_options():
    call = read("PATCH", f"{BASE}/grants/x?dryRun=All&fieldValidation=Strict", "application/yaml")
    assert (call.dry_run, call.field_validation, call.form.media_type) == ("All", "Strict", "application/yaml")
    call = read("GET", f"{BASE}/grants?resourceVersion=7&resourceVersionMatch=Exact", "")
    assert (call.revision, call.exact) == (7, True)
    call = read("GET", f"{BASE}/grants?{LIST}&timeoutSeconds=300", "")
    assert (call.revision, call.initial, call.bookmarks, call.seconds) == (None, True, True, 300)
    call = read("GET", f"{BASE}/grants?watch=true&timeoutSeconds=999999", "")
    assert (call.initial, call.bookmarks, call.seconds) == (None, False, virtualapi.MOST_WATCH_TIME)
    assert read("GET", f"{BASE}/grants?watch=1", "").seconds == virtualapi.WATCH_TIME
    assert read("GET", f"{BASE}/grants?limit=1", "").verb == "list"


@pytest.mark.parametrize("path", ["/apis/tollgate.dev", BASE, f"/openapi/v3{BASE}", f"/openapi/v3{BASE}?hash=X"])
def test_pages(path):
    assert read("GET", path, "") == Page(path.partition("?")[0])
    with pytest.raises(Problem) as problem:
        read("POST", path, "")
    assert problem.value.failure.code == 405


@pytest.mark.parametrize(
    ("method", "target", "code"),
    [
        pytest.param("GET", "/apis/tollgate.dev/v1", 404, id="another version"),
        pytest.param("GET", "/apis/tollgate.dev/v1/approvals", 404, id="a resource of another version"),
        pytest.param("GET", "/apis/tollgate.dev/v1alpha1/pods", 404, id="another resource"),
        pytest.param("GET", f"{BASE}/namespaces/shop/approvals", 404, id="in a namespace"),
        pytest.param("GET", f"{BASE}/watch/approvals", 404, id="the old way to watch"),
        pytest.param("GET", f"{BASE}/approvals/x/status", 404, id="a subresource"),
        pytest.param("GET", f"{BASE}/approvals/x/y/z", 404, id="deeper"),
        pytest.param("GET", "/apis/other.dev/v1alpha1/approvals", 404, id="another group"),
        pytest.param("GET", "/openapi/v3/apis/tollgate.dev", 404, id="no document"),
        pytest.param("GET", "/api/v1/pods", 404, id="not ours at all"),
        pytest.param("POST", f"{BASE}/approvals", 405, id="nobody creates an approval"),
        pytest.param("POST", f"{BASE}/grants", 405, id="nor a grant"),
        pytest.param("POST", f"{BASE}/accessrequests/x", 405, id="create with a name"),
        pytest.param("DELETE", f"{BASE}/approvals", 405, id="all of them"),
        pytest.param("PUT", f"{BASE}/approvals", 405, id="an update without a name"),
        pytest.param("PATCH", f"{BASE}/approvals", 405, id="a patch without a name"),
        pytest.param("HEAD", f"{BASE}/approvals/x", 405, id="HEAD"),
        pytest.param("GET", f"{BASE}/approvals?resourceVersion=x", 400, id="no revision"),
        pytest.param("GET", f"{BASE}/approvals?resourceVersion={2**63}", 400, id="too large"),
        pytest.param("GET", f"{BASE}/approvals?resourceVersion=%D9%A1", 400, id="a digit of another script"),
        pytest.param("GET", f"{BASE}/approvals?fieldSelector=spec.reason%3Dx", 400, id="a field nobody selects by"),
        pytest.param("GET", f"{BASE}/approvals?labelSelector=a%20in%20b", 400, id="a broken selector"),
        pytest.param("GET", f"{BASE}/approvals?watch=1&timeoutSeconds=x", 400, id="no time"),
        pytest.param("GET", f"{BASE}/approvals?continue=x", 410, id="somebody else's token"),
        pytest.param("GET", f"{BASE}/approvals?sendInitialEvents=true", 422, id="initial events of a list"),
        pytest.param("GET", f"{BASE}/approvals?resourceVersionMatch=Exact", 422, id="exactly nothing"),
        pytest.param("GET", f"{BASE}/approvals?resourceVersionMatch=Exact&resourceVersion=0", 422, id="exactly 0"),
        pytest.param("GET", f"{BASE}/approvals?resourceVersionMatch=x&resourceVersion=1", 422, id="unknown match"),
        pytest.param("GET", f"{BASE}/approvals?watch=1&sendInitialEvents=true", 422, id="no match"),
        pytest.param("GET", f"{BASE}/approvals?watch=1&resourceVersionMatch=NotOlderThan", 422, id="a match alone"),
        pytest.param(
            "GET", f"{BASE}/approvals?watch=1&sendInitialEvents=true&resourceVersionMatch=Exact", 422, id="exact watch"
        ),
        pytest.param("GET", f"{BASE}/approvals?includeObject=x", 400, id="unknown includeObject"),
    ],
)
def test_what_is_not_served(method, target, code):
    with pytest.raises(Problem) as problem:
        read(method, target, "")
    assert problem.value.failure.code == code


def test_targets_with_two_readings_are_refused():
    for target in (
        f"{BASE}//approvals",
        f"{BASE}/approvals/",
        f"{BASE}/%61pprovals",
        f"{BASE}/approvals?watch=1&watch=0",
    ):
        with pytest.raises(Refused):
            read("GET", target, "")


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        pytest.param("/apis/tollgate.dev", True, id="the group"),
        pytest.param("/apis/tollgate.dev/v9/x", True, id="whatever is below"),
        pytest.param("/openapi/v3/apis/tollgate.dev/v1alpha1", True, id="its document"),
        pytest.param("/apis/tollgate.devel/v1", False, id="a longer name"),
        pytest.param("/apis", False, id="all groups"),
        pytest.param("/api/v1/namespaces/tollgate.dev", False, id="a namespace"),
    ],
)
def test_is_ours(path, ours):
    assert virtualapi.is_ours(path) is ours


# ----- who sees what -----

MINE = records.agent()
STRANGER = Viewer(Identity("eve", groups=("people",)), agent=False)
AUDITOR = Viewer(Identity("audrey"), agent=True, auditor=True)
OTHERS_GROUPS = Viewer(replace(AGENT, groups=("agents",)))
AGENT_ONCALL = Viewer(person("robot", ONCALL), agent=True)
BY_NAME = Viewer(person("carol"), agent=False)


@pytest.mark.parametrize(
    ("viewer", "sees"),
    [
        pytest.param(MINE, True, id="his own"),
        pytest.param(OTHERS_GROUPS, False, id="the same with other groups is another"),
        pytest.param(approver(), True, id="an approver"),
        pytest.param(BY_NAME, True, id="an approver by name"),
        pytest.param(AGENT_ONCALL, False, id="an agent in the approvers' group"),
        pytest.param(STRANGER, False, id="anybody else"),
        pytest.param(AUDITOR, True, id="an auditor"),
    ],
)
def test_records(viewer, sees):
    asked = record("a", hold("x"), hold("y", groups=(), users=("carol",)))
    assert virtualapi.is_visible(viewer, asked) is sees
    assert virtualapi.is_visible(viewer, records.grant(asked_for(asked)), asked) is sees


def asked_for(one):
    return replace(records.access_request(), requester=one.requester)


def test_a_grant_whose_record_is_gone():
    grant = records.grant()
    assert virtualapi.is_visible(MINE, grant)
    assert virtualapi.is_visible(approver("alice"), grant)  # he said yes
    assert not virtualapi.is_visible(approver("bob"), grant)
    assert not virtualapi.is_visible(replace(approver("alice"), agent=True), grant)


@pytest.mark.parametrize(
    ("entry", "hides"),
    [
        pytest.param(record(), True, id="a difference"),
        pytest.param(records.access_request(), False, id="there is nothing to hide"),
        pytest.param(records.grant(), False, id="a grant"),
    ],
)
def test_hides(entry, hides):
    """Whoever looks: the requester may be somebody who may not read what he asks to change."""
    assert virtualapi.hides(entry) is hides


READERS = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: readers}
rules:
- {name: reads, action: allow, match: {verbs: [get], resources: [deployments.apps, secrets, quotas.x.io]}}
- {name: one, action: allow, match: {verbs: [get], resources: [configmaps], resourceNames: [settings]}}
- {name: shop, action: allow, match: {verbs: [get], resources: [services], namespaces: [shop]}}
- {name: none, action: deny, match: {impacts: [reveal]}}
- {name: watched, action: deny, match: {resources: [quotas.x.io]}, when: namespaceObject.metadata.name == "a"}
"""


@pytest.mark.parametrize(
    ("resource", "may"),
    [
        pytest.param("deployments.apps", True, id="allowed"),
        pytest.param("deployments.apps/scale", True, id="by its object"),
        pytest.param("deployments", False, id="another group"),
        pytest.param("secrets", False, id="denied"),
        pytest.param("configmaps", False, id="one by name only"),
        pytest.param("services", True, id="in the namespace"),
        pytest.param("quotas.x.io", False, id="hangs on an object"),
        pytest.param("/logs", False, id="no resource"),
        pytest.param("", False, id="nothing"),
    ],
)
def test_policies_let_read(resource, may):
    policies = policyfile.parse({"p.yaml": READERS.encode()})
    assert virtualapi.policies_let_read(policies, AGENT, replace(record(), resource=resource)) is may
    assert not virtualapi.policies_let_read(policies, AGENT, replace(record(), resource="services", namespace="x"))


async def test_the_default_viewer_may_nothing():
    viewer = Viewer(Identity("x"))
    assert (viewer.agent, viewer.auditor, await viewer.may_read(record())) == (True, False, False)
    assert viewer.ask_ahead(Access(("get",), ("pods",), "", 60))[0] == ()


# ----- steps -----


def test_a_decision():
    taken = virtualapi.step(approver(), Wanted("Approved", "fine"), NOW + 5)(record())
    assert (taken.phase, taken.decisions[0].reason, taken.decisions[0].via) == (Phase.APPROVED, "fine", "api")
    assert virtualapi.step(approver(), Wanted("Denied"), NOW + 5)(record()).phase is Phase.DENIED


@pytest.mark.parametrize(
    ("viewer", "said"),
    [
        pytest.param(MINE, "an agent cannot decide", id="an agent"),
        pytest.param(replace(approver(), agent=True), "an agent cannot decide", id="an agent with an approver's token"),
        pytest.param(Viewer(AGENT, agent=False), "nobody decides what he asked for", id="the requester"),
        pytest.param(STRANGER, "none of its approvers", id="no approver"),
        pytest.param(AUDITOR, "an agent cannot", id="an auditor"),
        pytest.param(approver(now=NOW - 9999), "login is older", id="an old login"),
    ],
)
def test_decisions_go_through_their_conditions(viewer, said):
    with pytest.raises(NotAllowed, match=said):
        virtualapi.step(viewer, Wanted("Approved"), NOW)(record())


def test_a_revocation():
    grant = records.grant()
    assert virtualapi.step(approver(), Wanted(revoked=True), NOW + 9)(grant).revoked_by == "alice"
    assert virtualapi.ending(approver(), NOW + 9)(grant).revoked == NOW + 9
    with pytest.raises(NotAllowed, match="over already"):
        virtualapi.ending(approver(), NOW + 9999)(grant)


def test_a_cancellation():
    ended = virtualapi.ending(MINE, NOW + 9)(record())
    assert (ended.phase, ended.message) == (Phase.CANCELLED, "cancelled by tollgate:ci-agent")
    # A requester who could remove a no could ask the same again at once.
    denied = virtualapi.step(approver(), Wanted("Denied"), NOW + 5)(record())
    with pytest.raises(NotAllowed, match="Denied already"):
        virtualapi.ending(MINE, NOW + 9)(denied)
    with pytest.raises(NotAllowed, match="Expired already"):
        virtualapi.ending(MINE, NOW + 9999)(record())


@pytest.mark.parametrize(
    ("viewer", "may"),
    [
        pytest.param(MINE, True, id="the requester, though an agent"),
        pytest.param(approver(), True, id="an approver"),
        pytest.param(Viewer(Identity("dan", groups=(ONCALL,)), agent=False), True, id="without the fresh login"),
        pytest.param(AUDITOR, False, id="an auditor only looks"),
        pytest.param(AGENT_ONCALL, False, id="an agent in the group"),
        pytest.param(STRANGER, False, id="anybody else"),
    ],
)
def test_who_may_end(viewer, may):
    request = records.access_request()
    for entry, source in ((record(), None), (records.grant(request), request)):
        if may:
            virtualapi.may_end(viewer, entry, source)
        else:
            with pytest.raises(NotAllowed, match="only its requester or an approver"):
                virtualapi.may_end(viewer, entry, source)


# ----- asking ahead -----

ACCESS = Access(("delete", "get"), ("pods",), "shop", 1800, "because")


def opening(*holds, said=""):
    return records.agent(ask_ahead=lambda access: (holds, said), revision="r9")


def test_ask():
    asked = virtualapi.ask(opening(hold(valid=600), hold("y", valid=60)), NewRequest(ACCESS, "mine"), "uid-1", NOW)
    assert (asked.name, asked.uid, asked.created, asked.expires) == ("mine", "uid-1", NOW, NOW + 60)
    assert (asked.access, asked.namespace, asked.revision) == (ACCESS, "shop", "r9")
    assert [a.rule for a in asked.asked] == ["agents/new-namespace", "agents/y"]
    assert asked.summary == "access for 30m: delete,get pods in shop"
    assert asked.requester == approvals.requester(AGENT)
    assert asked.phase is Phase.PENDING


def test_ask_keeps_the_owner():
    owned = hold(owner="identity.issuer")
    assert virtualapi.ask(opening(owned), NewRequest(ACCESS), "u", NOW).asked[0].owner == "https://issuer"


@pytest.mark.parametrize(
    ("new", "name"),
    [
        pytest.param(NewRequest(ACCESS, "mine"), "mine", id="his name"),
        pytest.param(NewRequest(ACCESS, "", "need-"), "need-12345678", id="the beginning of one"),
        pytest.param(NewRequest(ACCESS), approvals.name("acr", "1234-5678-9"), id="none"),
    ],
)
def test_names(new, name):
    assert virtualapi.ask(opening(hold()), new, "1234-5678-9", NOW).name == name


@pytest.mark.parametrize("said", ["rule agents/x denies it", ""])
def test_nothing_to_open(said):
    with pytest.raises(Problem, match=said or "just do it") as problem:
        virtualapi.ask(opening(said=said), NewRequest(ACCESS), "u", NOW)
    assert problem.value.failure.code == 403


def test_the_words_do_not_make_another_question():
    def digest(**fields):
        return virtualapi.access_digest(replace(ACCESS, **fields))

    assert digest() == digest(justification="x") == digest(seconds=60) == digest(verbs=("get", "delete"))
    assert len({digest(), digest(namespace=""), digest(verbs=("get",)), digest(resources=("pods/exec",))}) == 4


NEW = virtualapi.ask(opening(hold()), NewRequest(ACCESS), "u", NOW)
DENIED = replace(NEW, name="old", phase=Phase.DENIED, decided=NOW - 100, message="denied by alice")


@pytest.mark.parametrize(
    ("others", "pending", "said"),
    [
        pytest.param([], 0, "", id="the first"),
        pytest.param([replace(NEW, name="old")], 1, "asked already, as old", id="the same is pending"),
        pytest.param([replace(NEW, name="old", expires=NOW - 1)], 0, "", id="and is over"),
        pytest.param([replace(NEW, digest="x")], 1, "", id="another is pending"),
        pytest.param(
            [DENIED], 0, "was denied by alice a short while ago .old.; it can be asked again in 13m", id="denied"
        ),
        pytest.param([replace(DENIED, decided=NOW - 900)], 0, "", id="denied long ago"),
        pytest.param([], 5, "you have 5 approvals pending", id="too many"),
    ],
)
def test_check_new(others, pending, said):
    if not said:
        virtualapi.check_new(NEW, others, pending, NOW)
        return
    with pytest.raises(Problem, match=said) as problem:
        virtualapi.check_new(NEW, others, pending, NOW)
    assert problem.value.failure.code == 403


def test_what_is_not_there_and_what_is_not_his_are_told_the_same():
    failure = virtualapi.not_there(APPROVALS, "apr-1").failure
    assert (failure.code, failure.message) == (
        404, "approvals.tollgate.dev apr-1: there is none, or it is not yours to see",
    )  # fmt: skip


# ----- revocations -----

REVOCATION = NewRevocation(Target(user="eve"), NOW + 60, "because", name_prefix="now-")
FRESH = Viewer(
    Identity("oidc:ann", audiences=(approvals.AUDIENCE,), auth_time=NOW - 5), agent=False, owners=frozenset({"ops"})
)


def test_revoke():
    made = virtualapi.revoke(FRESH, REVOCATION, "12345678-uid", NOW)
    assert (made.name, made.uid, made.target, made.until) == (
        "now-12345678",
        "12345678-uid",
        Target(user="eve"),
        NOW + 60,
    )
    assert (made.requester.username, made.via, made.reason) == ("oidc:ann", "api", "because")
    assert virtualapi.revoke(FRESH, NewRevocation(Target(agents=True)), "u", NOW).name.startswith("rev-")


def test_an_agent_neither_revokes_nor_lifts_nor_looks():
    made = virtualapi.revoke(FRESH, REVOCATION, "u", NOW)
    agent = replace(FRESH, agent=True, identity=replace(FRESH.identity, username="oidc:other"))
    with pytest.raises(NotAllowed, match="an agent cannot"):
        virtualapi.revoke(agent, REVOCATION, "u", NOW)
    with pytest.raises(NotAllowed, match="an agent cannot"):
        virtualapi.may_end(agent, made, now=NOW)
    assert not virtualapi.is_visible(agent, made)
    assert virtualapi.is_visible(replace(agent, auditor=True), made)
    assert virtualapi.is_visible(replace(agent, agent=False), made)


def test_lifting_needs_the_fresh_login_and_is_not_for_oneself():
    made = virtualapi.revoke(FRESH, REVOCATION, "u", NOW)
    virtualapi.may_end(FRESH, made, now=NOW)
    assert virtualapi.ending(FRESH, NOW)(made).lifted_by == "oidc:ann"
    with pytest.raises(NotAllowed, match="older"):
        virtualapi.may_end(FRESH, made, now=NOW + 901)
    for target in (Target(user="OIDC:ANN"), Target(owner="ops")):
        with pytest.raises(NotAllowed, match="of your own"):
            virtualapi.may_end(FRESH, replace(made, target=target), now=NOW)


def test_a_revocation_is_not_changed():
    with pytest.raises(NotAllowed, match="is not changed"):
        virtualapi.step(FRESH, virtualchanges.Wanted("Approved"), NOW)(virtualapi.revoke(FRESH, REVOCATION, "u", NOW))
