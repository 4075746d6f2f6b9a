"""Asking ahead: which hold rules a yes would open, and every reason why there is nothing to ask for."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addons.core import askahead, holding, policyfile, resources
from addons.core.approvals import Grant, requester
from addons.core.classify import classify
from addons.core.model import Action, Identity
from addons.core.status import MAX_MESSAGE
from tests.core.test_admission import policies, rule

POLICIES = Path(__file__).parents[2] / "policies"
BOT = Identity("bot", groups=("bots",))
DEFAULT = policyfile.load([POLICIES])
ALL = policyfile.load([POLICIES, POLICIES / "packs"])


def names(holds):
    return [f"{hold.policy}/{hold.rule}" for hold in holds]


def ask(loaded, verbs, words, namespace="agent-a", identity=BOT):
    return askahead.ask_ahead(loaded, identity, verbs.split(), words.split(), namespace)


@pytest.mark.parametrize(
    ("verbs", "words", "namespace", "opened"),
    [
        pytest.param("create", "pods/exec", "agent-a", ["execute"], id="exec"),
        pytest.param("create", "pods/exec", "shop", ["execute"], id="exec elsewhere"),
        pytest.param("create", "pods", "agent-a", ["workload-secret", "workload-service-account"], id="who will run"),
        pytest.param("create patch", "services configmaps", "agent-a", ["public-service"], id="some of it is held"),
        pytest.param("delete", "namespaces", "", ["delete-namespace"], id="namespaces, any of them"),
        pytest.param("create", "namespaces", "", ["new-namespace"], id="a new one"),
        pytest.param("patch", "pods/ephemeralcontainers", "shop",
                     ["execute", "workload-secret", "workload-service-account"], id="debug"),
    ],
)  # fmt: skip
def test_what_the_default_would_open(verbs, words, namespace, opened):
    assert (lambda found: (names(found[0]), found[1]))(ask(DEFAULT, verbs, words, namespace)) == (
        [f"agents/{name}" for name in opened],
        "",
    )


def test_the_hold_is_the_rules_own():
    [hold] = ask(DEFAULT, "create", "pods/exec")[0]
    assert (hold.approval.groups, hold.message) == (("platform-oncall",), "It runs commands inside a pod.")


@pytest.mark.parametrize(
    ("verbs", "words", "namespace", "why"),
    [
        pytest.param("delete", "pods", "agent-a", "you may do all of this already", id="allowed"),
        pytest.param("get", "secrets", "agent-a", "rule agents/no-secrets denies get secrets in", id="denied"),
        pytest.param("create get", "pods/exec secrets", "agent-a", "pods/exec has no get", id="get is not for exec"),
        pytest.param("create", "pods/exec secrets", "agent-a", "rule agents/no-secrets denies", id="one is denied"),
        pytest.param("delete", "pods", "shop", "no rule is about delete pods in namespace shop", id="nobody allows it"),
        pytest.param("create", "pods/exec", "kube-system", "no-system-namespaces denies", id="a system namespace"),
        pytest.param("create", "pods/exec", "tollgate", "no-escalate denies", id="the gateway's own"),
        pytest.param("create", "pods/exec", "", "no-system-namespaces denies", id="everywhere is there too"),
        pytest.param("deletecollection", "pods", "agent-a", "no-mass-delete denies", id="all at once"),
        pytest.param("patch", "approvals.tollgate.dev", "", "agents-decide-nothing denies", id="to approve"),
        pytest.param("delete", "namespaces", "shop", "namespaces are in no namespace; leave", id="cluster-wide"),
        pytest.param("create", "podz", "agent-a", "unknown resource podz; did you mean pods?", id="typo"),
        pytest.param("create", "deployments", "agent-a", "write deployments.apps", id="no group"),
        pytest.param("create", "pods/exe", "agent-a", "resources: pods has no subresource exe", id="subresource"),
        pytest.param("create", "widgets.example.com/exec", "agent-a", "is not known here", id="unknown subresource"),
        pytest.param("create", "widgets.example.com", "agent-a", "no rule is about create widgets", id="custom"),
        pytest.param("create", "pods..", "agent-a", "resources: ", id="no group at all"),
        pytest.param("create", "proxy.example.com", "", "resources: proxy ", id="a path's own word"),
        pytest.param("exec", "pods", "agent-a", "verbs: exec is no verb of a resource", id="no verb"),
        pytest.param("proxy", "pods", "agent-a", "verbs: proxy is no verb", id="an old verb"),
        pytest.param("delete", "pods/log", "agent-a", "verbs: pods/log has no delete; it has get", id="other verbs"),
        pytest.param("*", "pods/exec", "agent-a", "no hold rule is about every verb", id="every verb"),
        pytest.param("update", "services", "agent-a", "update of services may be a create", id="a PUT creates"),
        pytest.param("create", "*", "agent-a", "no hold rule is about *", id="everything"),
        pytest.param("create", "*/exec", "agent-a", "no hold rule is about */exec", id="a pattern"),
        pytest.param("create", "pods/exec", "agent-*", "namespace: is no name of one", id="many namespaces"),
        pytest.param("create", "pods/exec", "../x", "namespace: is no name of one", id="a path"),
        pytest.param("", "pods", "agent-a", "name at least one verb", id="no verbs"),
        pytest.param("create", "", "agent-a", "name at least one verb and one resource", id="no resources"),
        pytest.param("create", " ".join(f"x{i}.example.com" for i in range(21)), "a", "at most 10 verbs", id="many"),
    ],
)  # fmt: skip
def test_nothing_to_open(verbs, words, namespace, why):
    holds, sentence = ask(DEFAULT, verbs, words, namespace)
    assert holds == ()
    assert why in sentence
    assert "\n" not in sentence


HERE = "operation.namespace == 'agent-a'"
PODS = {"resources": ["pods"]}
HOLD_DB = {**rule("hold", {"resources": ["pods"], "resourceNames": ["db-*"], "verbs": ["delete"]}), "name": "db"}
HOLD = rule("hold", {"resources": ["pods"], "verbs": ["delete"]})
ALLOW = rule("allow", {"resources": ["pods"], "verbs": ["delete"]})
DENY_DB = {**rule("deny", {"resources": ["pods"], "resourceNames": ["db-*"]}), "name": "no-db"}


@pytest.mark.parametrize(
    ("rules", "verbs", "words", "opened"),
    [
        pytest.param([ALLOW, HOLD_DB], "delete", "pods", ["p/db"], id="a hold on some names may be meant"),
        pytest.param([HOLD, DENY_DB], "delete", "pods", ["p/r0"], id="a deny on some names may not"),
        pytest.param([HOLD, rule("deny", PODS, when="object == null")], "delete", "pods", ["p/r0"], id="on objects"),
        pytest.param([rule("hold", PODS, when="oldObject != null"), ALLOW], "delete", "pods", ["p/r0"], id="a hold is"),
        pytest.param([HOLD, rule("deny", PODS, when=HERE)], "delete", "pods", None, id="no"),
        pytest.param([rule("hold", PODS, when=f"!({HERE})"), ALLOW], "delete", "pods", None, id="elsewhere"),
        pytest.param([rule("hold", PODS, when="1 / 0 == 1")], "delete", "pods", ["p/r0"], id="a doubt holds"),
        pytest.param([rule("allow", PODS, when="1 / 0 == 1")], "delete", "pods", None, id="and allows nothing"),
        pytest.param([{**HOLD, "match": {**HOLD["match"], "users": ["ann"]}}], "delete", "pods", None, id="not his"),
        pytest.param([rule("hold", {"verbs": ["*"], "resources": ["*.apps"]})], "*", "*.apps", ["p/r0"],
                     id="patterns that the rule has itself"),
        pytest.param([rule("hold", {"resources": ["*.apps"], "verbs": ["patch"]})], "patch delete", "*.apps", None,
                     id="not all of the pattern is held"),
        pytest.param([rule("hold", {"resources": ["*.example.com"]})], "get", "*.example.com", None,
                     id="nobody knows what is in that group"),
        pytest.param([rule("hold", {"verbs": ["*"], "resources": ["*"]})], "*", "*", None, id="too many"),
        pytest.param([rule("hold", {"resources": ["widgets.example.com"]})], "get", "widgets.example.com", ["p/r0"],
                     id="a custom resource"),
        pytest.param([rule("hold", {"resources": ["pods"], "verbs": ["get"]})], "create", "pods/exec", ["p/r0"],
                     id="exec is a get too"),
    ],
)  # fmt: skip
def test_rules(rules, verbs, words, opened):
    holds, sentence = ask(policies(*rules), verbs, words)
    assert (names(holds) or None, bool(sentence)) == (opened, opened is None)


def test_a_policy_that_observes_opens_and_denies_nothing():
    observed = policies(HOLD, mode="observe")
    assert "no rule is about" in ask(observed, "delete", "pods")[1]


def test_sentences_fit():
    for loaded in (DEFAULT, ALL):
        for word in ("secrets", "pods/exec", "nodes", "*", "x" * 400, "pods\n'\"\\"):
            sentence = askahead.ask_ahead(loaded, BOT, ["get", "create"], [word], "kube-system")[1]
            assert len(sentence) < MAX_MESSAGE
            assert sentence.isprintable()


RESOURCES = st.sampled_from(
    ["pods", "pods/exec", "configmaps", "services", "deployments.apps", "deployments.apps/scale", "secrets",
     "namespaces", "nodes", "pods/eviction", "accessrequests.tollgate.dev"]
)  # fmt: skip
VERBS = st.sampled_from(sorted(askahead._METHODS))


@settings(deadline=None, max_examples=300)
@given(VERBS, RESOURCES, st.sampled_from(["agent-a", "shop", "kube-system"]))
def test_a_grant_of_it_lets_the_request_pass(verb, word, namespace):
    """What is opened covers the plain request, so that nobody waits for a yes that changes nothing."""
    path, _, sub = word.partition("/")
    resource, _, group = path.partition(".")
    where = "" if resource in ("namespaces", "nodes") or group == resources.OWN_GROUP else namespace
    holds, _ = ask(DEFAULT, verb, word, where)
    if not holds:
        return
    root = f"/apis/{group}/v1" if group else "/api/v1"
    target = root + (f"/namespaces/{where}" if where else "") + f"/{resource}"
    if sub or verb not in askahead._UNNAMED:
        target += "/web-1" + (f"/{sub}" if sub else "")
    headers, body = {}, b""
    if verb in ("create", "update", "patch"):
        headers = {"content-type": "application/merge-patch+json" if verb == "patch" else "application/json"}
        body = b'{"metadata": {"name": "web-1"}, "spec": {}}' if sub != "exec" else b""
    operation = classify(askahead._METHODS[verb], target + ("?watch=1" if verb == "watch" else ""), headers, body)
    grant = Grant("grt-a", "u", requester(BOT), tuple(names(holds)), 0.0, 10.0, where, (verb,), (word,))
    verdict = DEFAULT.evaluate(BOT, operation, askahead.admission.NOT_FETCHED)
    assert verdict.action is not Action.DENY or not verdict.rule
    assert holding.unsatisfied(verdict.holds, [grant], operation, 5.0)[0] == ()


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text(max_size=20), max_size=3), st.lists(st.text(max_size=30), max_size=3), st.text(max_size=20))
def test_whatever_is_asked_there_is_an_answer(verbs, words, namespace):
    holds, sentence = askahead.ask_ahead(DEFAULT, BOT, verbs, words, namespace)
    assert bool(holds) is not bool(sentence)
