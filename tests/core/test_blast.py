import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import blast, classify
from addons.core.blast import Ask, Found, Item, What, Why
from addons.core.commands import Commands
from addons.core.model import Impact, Reach

NS = "/api/v1/namespaces/shop"
APPS = "/apis/apps/v1/namespaces/shop"
MERGE, STRATEGIC, JSON_PATCH, APPLY = (
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/json-patch+json",
    "application/apply-patch+yaml",
)


def op(method, url, command="", session="", body=None, media=""):
    headers = {"Kubectl-Command": command, "Kubectl-Session": session, "Content-Type": media}
    content = b"" if body is None else json.dumps(body).encode()
    return classify.classify(method, url, {k: v for k, v in headers.items() if v}, content)


def delete(name, session="", command="kubectl delete", resource="pods"):
    return op("DELETE", f"{NS}/{resource}/{name}", command if session else "", session)


def evict(name, session=""):
    return op("POST", f"{NS}/pods/{name}/eviction", "kubectl drain" if session else "", session, {})


def pods(*names, more=None, complete=True, **of_each):
    items = tuple(Item("", "pods", "shop", name, **of_each) for name in names)
    return Found(items, {"pods": more} if more else {}, complete)


class Client:
    """One identity's requests, one after another, each answered in the same way."""

    def __init__(self, answer=None, window=60.0, agent="x"):
        self.memory, self.answer, self.now, self.agent = Commands(window), answer, 0.0, agent

    def list(self, url, session="", command="kubectl delete"):
        self.memory.saw_list("u", self.agent, op("GET", url, command if session else "", session), self.now)
        return self

    def send(self, operation):
        self.now += 0.005
        seen = blast.look(self.memory, "u", self.agent, operation, self.now)
        self.whys = [question.why for question in seen.questions]
        self.asks = [question.ask for question in seen.questions]
        answers = [self.answer(ask) if callable(self.answer) else self.answer for ask in self.asks]
        return blast.settle(operation, seen, answers)


def mass(operation):
    return Impact.MASS_DELETE in operation.impacts


def destroys(operation):
    return not operation.impacts.isdisjoint({Impact.DELETE, Impact.MASS_DELETE})


# kubectl delete --all, -l: the LIST tells


def test_the_first_delete_after_a_list_of_many():
    client = Client(pods("a", "b", "c")).list(f"{NS}/pods?labelSelector=app%3Dx", "s")
    first = client.send(delete("a", "s"))
    assert client.asks == [Ask(What.LIST, resource="pods", namespace="shop", label_selector="app=x")]
    assert mass(first)
    assert first.reach == Reach({"pods": 3}, ("shop/a", "shop/b", "shop/c"))
    assert first.summary == "delete pod shop/a (1 of 3 in this command)"


def test_every_delete_of_one_command_is_judged_alike():
    client = Client(pods("a", "b", "c")).list(f"{NS}/pods", "s")
    sent = [client.send(delete(name, "s")) for name in "abc"]
    assert {(one.impacts, blast.sentence(one)) for one in sent} == {(sent[0].impacts, blast.sentence(sent[0]))}
    assert [one.summary[-25:] for one in sent] == [f" ({n} of 3 in this command)" for n in (1, 2, 3)]
    assert client.whys == []  # counted once


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(pods("a"), False, id="one"),
        pytest.param(pods(), False, id="none"),
        pytest.param(pods("a", "b"), True, id="two"),
        pytest.param(pods("a", more=700), True, id="more pages"),
        pytest.param(pods("a", complete=False), True, id="one, and not all seen"),
        pytest.param(None, True, id="could not be counted"),
        pytest.param(Found((*pods("a").items, *pods("b", leaving=True).items)), False, id="the other is leaving"),
    ],
)
def test_a_list_of(answer, expected):
    sent = Client(answer).list(f"{NS}/pods", "s").send(delete("a", "s"))
    assert mass(sent) is expected


def test_what_could_not_be_counted_is_said_to_be_so():
    sent = Client(None).list(f"{NS}/pods", "s").send(delete("a", "s"))
    assert sent.reach == Reach({"pods": 1}, ("shop/a",), exact=False)
    assert blast.sentence(sent) == "it would delete at least 1 pod (shop/a). "


def test_all_pages_count():
    sent = Client(pods("a", "b", more=700)).list(f"{NS}/pods", "s").send(delete("a", "s"))
    assert sent.reach.counts == {"pods": 702}


def test_names_without_a_list():
    client = Client()
    assert not mass(client.send(delete("a", "s")))
    second = client.send(delete("b", "s"))
    assert mass(second)
    assert second.reach == Reach({"pods": 2}, ("shop/a", "shop/b"), exact=False)


def test_different_kinds_in_one_session():
    client = Client()
    client.send(delete("a", "s"))
    assert mass(client.send(delete("b", "s", resource="configmaps")))


# Without a header


def test_a_list_and_one_delete_pass():
    client = Client(pods("a", "b", "c")).list(f"{NS}/pods")
    sent = client.send(delete("a"))
    assert not mass(sent)
    assert client.whys == []  # nothing was asked either
    assert sent.summary == "delete pod shop/a"


def test_the_second_object_of_a_loop():
    client = Client(pods("b", "c", "d")).list(f"{NS}/pods?labelSelector=l%3Dx")
    client.send(delete("a"))
    second = client.send(delete("b"))
    assert client.asks[0].label_selector == "l=x"
    assert mass(second)
    assert second.reach.counts == {"pods": 4}  # the three that are left, and the one that is gone
    assert second.summary == "delete pod shop/b (2 of 4 in a row)"
    third = client.send(delete("c"))
    assert (third.impacts, third.reach) == (second.impacts, second.reach)
    assert client.whys == []


def test_questions_taken_back_one_by_one_are_no_mass_delete():
    client = Client()
    sent = [client.send(op("DELETE", f"/apis/tollgate.dev/v1alpha1/approvals/apr-{n}")) for n in range(5)]
    assert {operation.impacts for operation in sent} == {frozenset({Impact.WRITE})}


def test_a_loop_without_a_list():
    client = Client()
    client.send(delete("a"))
    assert client.send(delete("b")).reach == Reach({"pods": 2}, ("shop/a", "shop/b"), exact=False)
    assert client.send(delete("c")).reach.counts == {"pods": 3}


def test_a_session_for_each_is_still_a_loop():
    client = Client()
    assert not mass(client.send(delete("a", "s1")))
    assert mass(client.send(delete("b", "s2")))


def test_a_list_of_one_for_each_is_still_a_loop():
    client = Client(pods("a"))
    assert not mass(client.list(f"{NS}/pods?labelSelector=a", "s1").send(delete("a", "s1")))
    client.answer = pods("b")
    assert mass(client.list(f"{NS}/pods?labelSelector=b", "s2").send(delete("b", "s2")))


def test_slowly_is_not_a_loop():
    client = Client()
    client.send(delete("a"))
    client.now += 61
    assert not mass(client.send(delete("b")))


# One request that takes much along


@pytest.mark.parametrize(
    ("operation", "ask"),
    [
        pytest.param(
            op("DELETE", f"{NS}/pods?labelSelector=a%3Db&fieldSelector=status.phase%3DRunning"),
            Ask(What.LIST, "", "v1", "pods", "shop", "", "a=b", "status.phase=Running"),
            id="deletecollection",
        ),
        pytest.param(op("DELETE", NS), Ask(What.NAMESPACE, namespace="shop"), id="namespace"),
        pytest.param(
            op("DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/a.b"),
            Ask(What.DEFINITION, "apiextensions.k8s.io", "v1", "customresourcedefinitions", "", "a.b"),
            id="CRD",
        ),
        pytest.param(
            op("DELETE", "/api/v1/nodes/n1"),
            Ask(What.LIST, resource="pods", field_selector="spec.nodeName=n1"),
            id="node",
        ),
    ],
)
@pytest.mark.parametrize("answer", [pods("a", "b"), None], ids=["counted", "not counted"])
def test_what_goes_along(operation, ask, answer):
    client = Client(answer)
    sent = client.send(operation)
    assert client.asks == [ask]
    assert mass(sent)
    assert sent.reach.exact is (answer is not None)
    assert sent.reach.counts.get("pods", 0) == (2 if answer else 0)


def test_a_namespace_counts_itself_and_its_kinds():
    sent = Client(Found(counts={"pods": 3, "deployments.apps": 1})).send(op("DELETE", NS))
    assert blast.sentence(sent) == "it would delete 1 namespace, 3 pods and 1 deployment. "


def test_a_volume_is_one_and_still_a_mass_delete():
    sent = Client().send(op("DELETE", "/api/v1/persistentvolumes/v"))
    assert mass(sent)
    assert sent.reach.counts == {"persistentvolumes": 1}


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        pytest.param({"propagationPolicy": "Background"}, True, id="background"),
        pytest.param({"propagationPolicy": "Foreground"}, True, id="foreground"),
        pytest.param(None, True, id="as the API server likes"),
        pytest.param({"propagationPolicy": "Orphan"}, False, id="orphan"),
        pytest.param({"orphanDependents": True}, False, id="orphan, old"),
    ],
)
def test_one_deployment_says_its_pods_and_is_no_mass_delete(body, asked):
    client = Client(pods("a", "b"))
    sent = client.send(op("DELETE", f"{APPS}/deployments/web", body=body))
    assert not mass(sent)
    assert (client.whys == [Why.DEPENDENTS]) is asked
    assert (sent.reach.counts == {"deployments.apps": 1, "pods": 2}) if asked else sent.reach is None


def test_a_dry_run_is_not_looked_at():
    assert not blast.changes(op("DELETE", NS, body={"dryRun": ["All"]}))
    assert blast.changes(op("DELETE", f"{NS}?dryRun=All", body={}))  # the body made it a delete


# drain, apply --prune


NODE_PODS = "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1&limit=500"


@pytest.mark.parametrize("session", ["s", ""], ids=["kubectl", "no header"])
def test_the_first_eviction_of_a_drain(session):
    answer = Found((*pods("a", "b").items, *pods("agent", controller="DaemonSet").items))
    client = Client(answer).list(NODE_PODS, session, "kubectl drain")
    sent = [client.send(evict(name, session)) for name in "ab"]
    assert all(map(mass, sent))
    assert sent[0].reach.counts == {"pods": 2}  # kubectl leaves a DaemonSet's alone
    assert len({blast.sentence(one) for one in sent}) == 1


def test_a_drain_of_one_pod():
    assert mass(Client(pods("a")).list(NODE_PODS, "s", "kubectl drain").send(evict("a", "s")))


def test_evictions_that_come_at_once_have_one_answer():
    client = Client().list(NODE_PODS, "s", "kubectl drain")
    memory, first, second = client.memory, evict("a", "s"), evict("b", "s")
    looks = [blast.look(memory, "u", "x", one, 1.0) for one in (first, second)]
    settled = [
        blast.settle(first, looks[0], [pods("a", "b", "c")]),
        blast.settle(second, looks[1], [pods("a", "b", "c", "late")]),
    ]
    assert settled[0].reach == settled[1].reach


def test_one_eviction():
    assert not mass(Client().send(evict("a")))


def test_prune_takes_what_apply_left_and_the_files_do_not_name():
    client = Client(
        Found(tuple(Item("", "configmaps", "shop", n, applied=n != "by-hand") for n in ("keep", "by-hand", "old")))
    )
    client.memory.saw_named("u", op("GET", f"{NS}/configmaps/keep", "kubectl apply", "s"), 0.0)
    client.list(f"{NS}/configmaps?labelSelector=a%3Db", "s", "kubectl apply")
    sent = client.send(delete("old", "s", "kubectl apply", "configmaps"))
    assert client.whys == [Why.PRUNE]
    assert mass(sent)
    assert sent.reach == Reach({"configmaps": 1}, ("shop/old",), exact=False)


def test_what_apply_writes_is_not_pruned():
    client = Client(Found((Item("", "configmaps", "shop", "new", applied=True),)))
    client.send(op("POST", f"{NS}/configmaps", "kubectl apply", "s", {"metadata": {"name": "new"}}))
    client.list(f"{NS}/configmaps", "s", "kubectl apply")
    assert "shop/new" not in client.send(delete("old", "s", "kubectl apply", "configmaps")).reach.names


def test_apply_force_deletes_one():
    assert not mass(Client().send(delete("a", "s", "kubectl apply")))


# To zero


def scale(name, replicas=0, session="", url=f"{APPS}/deployments"):
    return op(
        "PATCH", f"{url}/{name}/scale", session and "kubectl scale", session, {"spec": {"replicas": replicas}}, MERGE
    )


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        pytest.param(scale("web"), True, id="scale"),
        pytest.param(scale("web", 1), False, id="to one"),
        pytest.param(op("PUT", f"{APPS}/deployments/web/scale", body={"spec": {"replicas": 0}}), True, id="PUT scale"),
        pytest.param(scale("x", url="/apis/x.io/v1/namespaces/shop/things"), True, id="a custom resource's scale"),
        pytest.param(
            op("PATCH", f"{APPS}/statefulsets/db", body={"spec": {"replicas": 0}}, media=STRATEGIC), True, id="patch"
        ),
        pytest.param(
            op(
                "PATCH",
                f"{APPS}/deployments/web",
                body=[{"op": "replace", "path": "/spec/replicas", "value": 0}],
                media=JSON_PATCH,
            ),
            True,
            id="json patch",
        ),
        pytest.param(
            op(
                "PATCH",
                f"{APPS}/deployments/web",
                body=[{"op": "copy", "from": "/x", "path": "/spec/replicas"}],
                media=JSON_PATCH,
            ),
            True,
            id="json patch, copied",
        ),
        pytest.param(
            op(
                "PATCH",
                f"{APPS}/deployments/web",
                body={"spec": {"template": {"metadata": {"annotations": {"a": "b"}}}}},
                media=STRATEGIC,
            ),
            False,
            id="rollout restart",
        ),
        pytest.param(
            op("PUT", "/apis/x.io/v1/namespaces/shop/things/a", body={"spec": {"replicas": 0}}), False, id="another's"
        ),
    ],
)
def test_to_zero(operation, expected):
    sent = Client(pods("a", "b")).send(operation)
    assert blast.asks_zero(operation) is expected
    assert (Impact.DELETE in sent.impacts) is expected
    assert not mass(sent)
    if expected:
        assert sent.reach.counts == {"pods": 2}


def test_rollout_undo_takes_pods_away_but_is_no_mass_delete():
    body = [{"op": "replace", "path": "/spec/template", "value": {}}]
    sent = Client(pods("a", "b")).send(op("PATCH", f"{APPS}/deployments/web", body=body, media=JSON_PATCH))
    assert Impact.DELETE in sent.impacts
    assert not mass(sent)


def test_the_fourth_workload_to_zero():
    client = Client(pods("p"))
    assert [mass(client.send(scale(name))) for name in ("a", "b", "c", "c", "d", "e")] == [False] * 4 + [True] * 2


def test_scale_all_at_the_first():
    client = Client(Found(tuple(Item("apps", "deployments", "shop", n) for n in "abcd")))
    sent = client.list(f"{APPS}/deployments", "s", "kubectl scale").send(scale("a", session="s"))
    assert mass(sent)
    assert blast.sentence(sent) == "it would take away 4 deployments (shop/a, shop/b, shop/c, shop/d). "


def test_an_apply_that_leaves_zero_at_zero():
    def there(ask):
        return Found(live={"spec": {"replicas": 0}}) if ask.what is What.LIVE else pods()

    client = Client(there)
    for name in "abcdef":
        manifest = {"spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}}}
        assert not destroys(client.send(op("PATCH", f"{APPS}/deployments/{name}", body=manifest, media=APPLY)))


# A PUT or an apply against what is there


def live(**metadata):
    return Found(live={"metadata": metadata, "spec": {"replicas": 3}})


OWNER = [{"kind": "ReplicaSet", "uid": "1"}]


@pytest.mark.parametrize(
    ("media", "url", "body", "there", "expected"),
    [
        pytest.param("", "configmaps", {}, live(), False, id="nothing of the sort"),
        pytest.param("", "configmaps", {}, live(finalizers=["x"]), True, id="PUT drops finalizers"),
        pytest.param("", "configmaps", {"finalizers": ["x"]}, live(finalizers=["x"]), False, id="PUT keeps them"),
        pytest.param("", "configmaps", {"finalizers": ["y"]}, live(finalizers=["x"]), True, id="PUT swaps them"),
        pytest.param("", "configmaps", {"ownerReferences": OWNER}, live(), True, id="PUT sets an owner"),
        pytest.param(
            "", "configmaps", {"ownerReferences": OWNER}, live(ownerReferences=OWNER), False, id="PUT keeps it"
        ),
        pytest.param("", "configmaps", {}, live(ownerReferences=OWNER), True, id="PUT takes it away"),
        pytest.param(
            "", "pods", {"labels": {"a": "c"}}, live(labels={"a": "b"}), True, id="PUT changes a pod's labels"
        ),
        pytest.param("", "pods", {"labels": {"a": "b"}}, live(labels={"a": "b"}), False, id="PUT keeps them"),
        pytest.param("", "configmaps", {"labels": {"a": "c"}}, live(labels={"a": "b"}), False, id="other labels"),
        pytest.param("", "configmaps", {}, None, True, id="the live object is unknown"),
        pytest.param(
            APPLY, "configmaps", {}, live(finalizers=["x"], managedFields=[]), False, id="apply leaves finalizers"
        ),
        pytest.param(
            APPLY,
            "configmaps",
            {},
            live(
                finalizers=["x"],
                managedFields=[{"operation": "Apply", "fieldsV1": {"f:metadata": {"f:finalizers": {}}}}],
            ),
            True,
            id="apply takes back finalizers that an apply put there",
        ),
        pytest.param(APPLY, "configmaps", {}, live(finalizers=["x"]), True, id="apply, managers unknown"),
        pytest.param(
            APPLY, "configmaps", {"ownerReferences": OWNER}, live(managedFields=[]), True, id="apply sets an owner"
        ),
        pytest.param(
            APPLY, "pods", {"labels": {"a": "c"}}, live(labels={"a": "b"}), True, id="apply changes a pod's labels"
        ),
        pytest.param(APPLY, "pods", {"labels": {"a": "c"}}, Found(), False, id="apply makes a pod"),
        pytest.param(APPLY, "pods", {"ownerReferences": OWNER}, Found(), True, id="apply makes one that is owned"),
    ],
)
def test_whole_objects_are_compared(media, url, body, there, expected):
    client = Client(there)
    sent = client.send(op("PATCH" if media else "PUT", f"{NS}/{url}/x", body={"metadata": body}, media=media))
    assert client.whys == [Why.LIVE]
    assert (Impact.DELETE in sent.impacts) is expected
    assert not mass(sent)


@pytest.mark.parametrize(
    ("url", "spec", "there", "expected"),
    [
        pytest.param(
            f"{APPS}/deployments/x", {"revisionHistoryLimit": 1}, {"revisionHistoryLimit": 10}, True, id="history"
        ),
        pytest.param(f"{APPS}/deployments/x", {}, {"revisionHistoryLimit": 10}, False, id="history by default"),
        pytest.param(f"{APPS}/deployments/x", {"replicas": 0}, {"replicas": 3}, True, id="PUT to zero"),
        pytest.param(f"{APPS}/deployments/x", {"replicas": 3}, {"replicas": 3}, False, id="PUT at three"),
        pytest.param(
            "/apis/batch/v1/namespaces/shop/jobs/x", {"suspend": True}, {"suspend": False}, True, id="a Job suspended"
        ),
        pytest.param(
            "/apis/batch/v1/namespaces/shop/jobs/x", {"ttlSecondsAfterFinished": 0}, {}, True, id="a Job's ttl"
        ),
    ],
)
def test_specs_are_compared(url, spec, there, expected):
    def answer(ask):
        return Found(live={"spec": there}) if ask.what is What.LIVE else pods("a")

    assert (Impact.DELETE in Client(answer).send(op("PUT", url, body={"spec": spec})).impacts) is expected


# Controllers that adopt


def workload(selector, **spec):
    return {"metadata": {"name": "x"}, "spec": {"replicas": 0, "selector": selector, **spec}}


LABELS = {"matchLabels": {"app": "shop"}}


@pytest.mark.parametrize(
    ("resource", "body", "selector"),
    [
        pytest.param("replicasets", workload(LABELS), "app=shop", id="labels"),
        pytest.param(
            "deployments",
            workload(
                {
                    **LABELS,
                    "matchExpressions": [
                        {"key": "t", "operator": "In", "values": ["a", "b"]},
                        {"key": "u", "operator": "NotIn", "values": ["c"]},
                        {"key": "v", "operator": "Exists"},
                        {"key": "w", "operator": "DoesNotExist"},
                    ],
                }
            ),
            "app=shop,t in (a,b),u notin (c),v,!w",
            id="expressions",
        ),
    ],
)
def test_a_new_workload_asks_for_orphans(resource, body, selector):
    client = Client(pods())
    client.send(op("POST", f"{APPS}/{resource}", body=body))
    assert client.asks == [Ask(What.ORPHANS, "apps", "v1", resource, "shop", "", selector)]


@pytest.mark.parametrize(
    ("group", "resource", "body", "selector"),
    [
        pytest.param(
            "", "replicationcontrollers", {"spec": {"selector": {"a": "b"}}}, "a=b", id="ReplicationController"
        ),
        pytest.param(
            "",
            "replicationcontrollers",
            {"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}},
            "a=b",
            id="by template",
        ),
        pytest.param(
            "batch", "jobs", {"spec": {"manualSelector": True, "selector": LABELS}}, "app=shop", id="a Job's own"
        ),
        pytest.param("batch", "jobs", {"spec": {"selector": LABELS}}, "", id="a Job"),
    ],
)
def test_selectors(group, resource, body, selector):
    assert blast.selector_of(resource, body) == selector


@pytest.mark.parametrize(
    ("answer", "impacts"),
    [
        pytest.param(pods(), set(), id="nobody's pods: none"),
        pytest.param(pods("a", controller="ReplicaSet"), set(), id="somebody's"),
        pytest.param(pods("a"), {Impact.DELETE}, id="one"),
        pytest.param(pods("a", "b"), {Impact.DELETE, Impact.MASS_DELETE}, id="two"),
        pytest.param(pods("a", complete=False), {Impact.DELETE, Impact.MASS_DELETE}, id="one or more"),
        pytest.param(None, {Impact.DELETE, Impact.MASS_DELETE}, id="unknown"),
    ],
)
def test_adopted_pods(answer, impacts):
    sent = Client(answer).send(op("POST", f"{APPS}/replicasets", body=workload(LABELS)))
    assert sent.impacts - {Impact.WRITE} == impacts


def test_an_apply_of_what_is_there_adopts_nothing_new():
    def answer(ask):
        return Found(live={"spec": {"replicas": 0}}) if ask.what is What.LIVE else pods("a", "b")

    sent = Client(answer).send(op("PATCH", f"{APPS}/replicasets/x", body=workload(LABELS), media=APPLY))
    assert not destroys(sent)


@pytest.mark.parametrize("replicas", [0, 1])
def test_an_apply_that_makes_a_controller_adopts(replicas):
    """Tried: at 0 replicas it deletes them. That it takes nothing of its own to zero does not excuse it."""

    def answer(ask):
        return Found() if ask.what is What.LIVE else pods("a", "b")

    body = {"metadata": {"name": "x"}, "spec": {"replicas": replicas, "selector": LABELS}}
    sent = Client(answer).send(op("PATCH", f"{APPS}/replicasets/x", body=body, media=APPLY))
    assert mass(sent)
    assert sent.reach.counts == {"pods": 2}


# Always


@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(op("POST", f"{NS}/configmaps", body={"metadata": {"name": "c"}}), id="create"),
        pytest.param(op("PATCH", f"{APPS}/deployments/web", body={"spec": {"paused": True}}, media=MERGE), id="patch"),
        pytest.param(op("PATCH", f"{APPS}/deployments/web/status", body={}, media=MERGE), id="status"),
        pytest.param(op("POST", f"{NS}/pods/a/exec?command=ls"), id="exec"),
        pytest.param(op("POST", f"{NS}/serviceaccounts/a/token", body={}), id="token"),
        pytest.param(op("DELETE", "/apis/tollgate.dev/v1alpha1/approvals/apr-x"), id="a question taken back"),
        pytest.param(
            op("PUT", "/apis/tollgate.dev/v1alpha1/approvals/apr-x", body={"metadata": {"name": "apr-x"}}),
            id="a decision",
        ),
    ],
)
def test_nothing_is_asked_for(operation):
    client = Client()
    sent = client.send(operation)
    assert client.asks == []
    assert (sent.impacts, sent.reach) == (operation.impacts, None)


REQUESTS = [
    delete("a"),
    delete("b"),
    delete("a", "s"),
    delete("b", "s"),
    evict("a"),
    scale("a"),
    op("DELETE", NS),
    op("DELETE", f"{NS}/pods"),
    op("PUT", f"{NS}/pods/a", body={"metadata": {}}),
    op("DELETE", f"{APPS}/deployments/d"),
    op("POST", f"{APPS}/replicasets", body=workload(LABELS)),
    op("PATCH", f"{APPS}/deployments/web", body=workload(LABELS) | {"metadata": {}}, media=APPLY),
]
ANSWERS = [None, pods(), pods("a"), pods("a", "b"), pods("a", complete=False), live(), live(finalizers=["x"])]


@given(st.lists(st.sampled_from(REQUESTS), max_size=6), st.data())
def test_no_answer_makes_an_operation_lighter(requests, data):
    client = Client(lambda ask: data.draw(st.sampled_from(ANSWERS)))
    for operation in requests:
        sent = client.send(operation)
        assert operation.impacts <= sent.impacts
        assert not mass(sent) or sent.reach is not None
        assert sent.summary


@given(st.lists(st.sampled_from(REQUESTS), max_size=5))
def test_silence_is_never_lighter_than_an_answer_of_none(requests):
    silent, told = Client(None), Client(pods())
    for operation in requests:
        assert told.send(operation).severity <= silent.send(operation).severity


def test_sentences_are_short():
    reach = Reach({"pods": 5000}, tuple(f"shop/{'x' * 80}-{n}" for n in range(5)))
    client = Client()
    client.send(delete("a", "s"))
    operation = client.send(delete("b", "s"))
    operation = blast.replace(operation, reach=reach)
    assert len(blast.sentence(operation)) < 200
