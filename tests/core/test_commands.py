import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import classify, commands
from addons.core.commands import Commands
from addons.core.model import Reach

NS = "/api/v1/namespaces/shop"
APPS = "/apis/apps/v1/namespaces/shop"
KUBECTL = "kubectl/v1.36.3 (linux/amd64) kubernetes/abc"


def op(method, url, command="", session="", body=b"", media=""):
    headers = {"Kubectl-Command": command, "Kubectl-Session": session, "Content-Type": media}
    return classify.classify(method, url, {k: v for k, v in headers.items() if v}, body)


def delete(name, session="", resource="pods", command="kubectl delete"):
    return op("DELETE", f"{NS}/{resource}/{name}", command if session else "", session)


# Runs: one identity, one collection, whatever the headers say


def others(memory, operation, now=0.0, user="agent", agent="x"):
    return memory.saw_delete(user, agent, operation, now).others


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(delete("a"), delete("b"), 1, id="another object"),
        pytest.param(delete("a"), delete("a"), 0, id="the same again"),
        pytest.param(delete("a"), delete("a", resource="configmaps"), 0, id="another collection"),
        pytest.param(delete("a", "s1"), delete("b", "s2"), 1, id="another session is the same run"),
        pytest.param(delete("a", "s1"), delete("b"), 1, id="with a header, then without"),
        pytest.param(op("DELETE", "/api/v1/namespaces/x/pods/a"), delete("a"), 1, id="another namespace"),
        pytest.param(delete("a"), op("POST", f"{NS}/pods/b/eviction", body=b"{}"), 1, id="an eviction counts"),
    ],
)
def test_others_in_a_run(first, second, expected):
    memory = Commands()
    assert others(memory, first) == 0
    assert others(memory, second) == expected


def test_another_user_agent_is_the_same_run():
    memory = Commands()
    others(memory, delete("a"), agent="one")
    assert others(memory, delete("b"), agent="two") == 1


def test_another_identity_is_another_run():
    memory = Commands()
    others(memory, delete("a"), user="one")
    assert others(memory, delete("b"), user="two") == 0


@pytest.mark.parametrize(("after", "expected"), [(60.0, 1), (60.1, 0)])
def test_the_window(after, expected):
    memory = Commands(window=60.0)
    others(memory, delete("a"), 0.0)
    assert others(memory, delete("b"), after) == expected


def test_a_run_that_is_over_keeps_no_count():
    memory = Commands(window=60.0)
    place = memory.saw_delete("u", "x", delete("a"), 0.0)
    place.run.raised = Reach({"pods": 14})
    assert memory.saw_delete("u", "x", delete("b"), 100.0).run.raised is None


def test_what_was_refused_does_not_count():
    memory = Commands()
    Commands.refused(memory.saw_delete("u", "x", delete("a"), 0.0))
    assert others(memory, delete("b"), user="u") == 0


def test_a_refused_repetition_does_not_take_out_what_went_through():
    memory = Commands()
    memory.saw_delete("u", "x", delete("a"), 0.0)
    Commands.refused(memory.saw_delete("u", "x", delete("a"), 1.0))
    assert others(memory, delete("b"), user="u", now=2.0) == 1


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["", "s1", "s2"]), st.sampled_from(["x", "y"]))))
def test_headers_never_make_a_run_shorter(requests):
    bare, dressed = Commands(), Commands()
    for name, session, agent in requests:
        assert others(dressed, delete(name, session), agent=agent) == others(bare, delete(name))


def test_many_kinds_do_not_push_a_run_out(monkeypatch):
    monkeypatch.setattr(commands, "MAX_RUNS", 8)
    memory = Commands()
    others(memory, delete("a"))
    for n in range(20):
        others(memory, delete("a", resource=f"kind{n}"))
    assert others(memory, delete("b")) >= 1
    # And what cannot be remembered any more counts as many, at once.
    assert others(memory, delete("a", resource="one-more")) >= 1


def test_runs_that_are_over_make_room(monkeypatch):
    monkeypatch.setattr(commands, "MAX_RUNS", 8)
    memory = Commands()
    for n in range(20):
        others(memory, delete("a", resource=f"kind{n}"), float(n) * 100)
    assert others(memory, delete("a"), 5000.0) == 0


def test_memory_is_bounded():
    memory = Commands()
    for n in range(5000):
        memory.saw_delete("u", "x", delete(f"p{n}", f"s{n}"), 0.0)
        memory.saw_list("u", f"agent {n}", op("GET", f"/apis/g/v1/kind{n}"), 0.0)
    assert sum(map(len, memory._invocations.values())) <= commands.MAX_INVOCATIONS
    assert max(len(run.deleted) for run in memory._runs.values()) <= commands.MAX_OBJECTS


def test_one_identity_cannot_push_out_another():
    memory = Commands()
    memory.saw_list("victim", "x", op("GET", f"{NS}/pods", "kubectl delete", "s"), 0.0)
    for n in range(5000):
        memory.saw_list("flood", "x", op("GET", f"{NS}/pods", "kubectl delete", f"s{n}"), 0.0)
    assert memory.saw_delete("victim", "x", delete("a", "s"), 1.0).listed is not None


# Invocations: what was listed before


@pytest.mark.parametrize(
    ("listed", "deleted", "found"),
    [
        pytest.param(op("GET", f"{NS}/pods", "", "s"), delete("a", "s"), True, id="its collection"),
        pytest.param(op("GET", "/api/v1/pods", "", "s"), delete("a", "s"), True, id="of all namespaces"),
        pytest.param(op("GET", "/api/v1/namespaces/x/pods", "", "s"), delete("a", "s"), False, id="of another"),
        pytest.param(op("GET", f"{NS}/configmaps", "", "s"), delete("a", "s"), False, id="of another kind"),
        pytest.param(op("GET", f"{NS}/pods", "", "t"), delete("a", "s"), False, id="by another session"),
        pytest.param(
            op("GET", f"{NS}/pods?fieldSelector=metadata.name%3Da", "", "s"), delete("a", "s"), False, id="of one name"
        ),
        pytest.param(op("GET", f"{NS}/pods"), delete("a"), True, id="without a session, by User-Agent"),
    ],
)
def test_what_an_object_may_come_from(listed, deleted, found):
    memory = Commands()
    memory.saw_list("u", "x", listed, 0.0)
    assert (memory.saw_delete("u", "x", deleted, 1.0).listed is not None) is found


def test_a_user_agent_that_spells_a_session():
    memory = Commands()
    memory.saw_list("u", "s", op("GET", f"{NS}/pods"), 0.0)
    assert memory.saw_delete("u", "x", delete("a", "s"), 1.0).listed is None


def test_numbers_in_an_invocation():
    memory = Commands()
    numbers = [memory.saw_delete("u", "x", delete(name, "s"), 0.0).number for name in ("a", "b", "a", "c")]
    assert numbers == [1, 2, 1, 3]


# Words for people


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        pytest.param(delete("web-1"), "delete pod shop/web-1", id="delete"),
        pytest.param(
            op("DELETE", f"{NS}/pods?labelSelector=a%3Db"), "delete all pods in shop with a=b", id="collection"
        ),
        pytest.param(op("DELETE", "/api/v1/namespaces/shop"), "delete namespace shop", id="namespace"),
        pytest.param(op("POST", f"{NS}/pods/web-1/eviction", body=b"{}"), "evict pod shop/web-1", id="evict"),
        pytest.param(op("POST", f"{NS}/pods/web-1/exec?command=sh"), "exec in pod shop/web-1", id="exec"),
        pytest.param(
            op(
                "PATCH",
                f"{APPS}/deployments/web/scale",
                body=b'{"spec":{"replicas":0}}',
                media="application/merge-patch+json",
            ),
            "scale deployment shop/web to 0",
            id="scale",
        ),
        pytest.param(
            op("PATCH", f"{APPS}/deployments/web", body=b"{}", media="application/apply-patch+yaml"),
            "apply deployment shop/web",
            id="apply",
        ),
        pytest.param(
            op("POST", f"{NS}/configmaps", body=b'{"metadata":{"name":"c"}}'), "create configmap shop/c", id="create"
        ),
        pytest.param(op("POST", f"{NS}/pods?dryRun=All", body=b"{}"), "create pods in shop (dry run)", id="dry run"),
        pytest.param(op("PUT", "/apis/x.io/v1/proxies/p/status", body=b"{}"), "replace proxy p status", id="status"),
        pytest.param(op("GET", "/metrics"), "get /metrics", id="page"),
    ],
)
def test_summary(operation, text):
    assert commands.summary(operation) == text


@pytest.mark.parametrize(
    ("listed", "operation", "text"),
    [
        pytest.param(None, delete("a", "s"), "kubectl delete pods a -n shop", id="by name"),
        pytest.param(f"{NS}/pods", delete("a", "s"), "kubectl delete pods --all -n shop", id="all"),
        pytest.param(
            f"{NS}/pods?labelSelector=app%3Dx", delete("a", "s"), "kubectl delete pods -l app=x -n shop", id="-l"
        ),
        pytest.param("/api/v1/pods", delete("a", "s"), "kubectl delete pods --all -A", id="-A"),
        pytest.param(
            "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-3",
            op("POST", f"{NS}/pods/a/eviction", "kubectl drain", "s", b"{}"),
            "kubectl drain node-3",
            id="drain",
        ),
        pytest.param(
            f"{NS}/pods?labelSelector=a%3Db",
            delete("a", "s", command="kubectl apply"),
            "kubectl apply --prune -l a=b -f … -n shop",
            id="prune",
        ),
        pytest.param(
            None,
            op(
                "PATCH",
                f"{APPS}/deployments/web",
                "kubectl rollout restart",
                "s",
                b"{}",
                "application/merge-patch+json",
            ),
            "kubectl rollout restart deployments.apps web -n shop",
            id="rollout restart",
        ),
        pytest.param(
            f"{APPS}/deployments",
            op(
                "PATCH",
                f"{APPS}/deployments/web/scale",
                "kubectl scale",
                "s",
                b'{"spec":{"replicas":0}}',
                "application/merge-patch+json",
            ),
            "kubectl scale deployments.apps --all --replicas=0 -n shop",
            id="scale",
        ),
    ],
)
def test_command_of_kubectl(listed, operation, text):
    memory = Commands()
    if listed:
        memory.saw_list("u", KUBECTL, op("GET", listed, operation.claimed_command, "s"), 0.0)
    place = memory.saw_delete("u", KUBECTL, operation, 1.0)
    assert commands.command(operation, KUBECTL, place.invocation) == text


def test_command_of_an_exec():
    operation = op("GET", f"{NS}/pods/web-1/exec?command=ls&command=-l", "kubectl exec", "s")
    assert commands.command(operation, KUBECTL, None, ["ls", "-l"]) == "kubectl exec pods web-1 -n shop -- ls -l"


@pytest.mark.parametrize(
    ("agent", "text"),
    [
        pytest.param("Helm/3.18.4", "helm", id="helm"),
        pytest.param(
            "kubernetes-mcp-server/v0.0.67 (linux/amd64) host/1", "MCP server kubernetes-mcp-server", id="mcp"
        ),
        pytest.param("operator/v0.0.0 (linux/amd64) kubernetes/$Format", "client-go program operator", id="client-go"),
        pytest.param("python-requests/2.32", "program python-requests", id="program"),
        pytest.param(KUBECTL, "kubectl without its headers (kubectl proxy?)", id="kubectl proxy"),
        pytest.param("", "a program without a name", id="none"),
        pytest.param("\x1b[31m", "program program", id="no word in it"),
    ],
)
def test_command_without_kubectls_headers(agent, text):
    assert commands.command(delete("a"), agent) == text


@pytest.mark.parametrize(
    ("reach", "text"),
    [
        pytest.param(Reach({"pods": 14}), "14 pods", id="one kind"),
        pytest.param(Reach({"pods": 1}), "1 pod", id="one"),
        pytest.param(Reach({"pods": 2}, exact=False), "at least 2 pods", id="at least"),
        pytest.param(
            Reach({"configmaps": 2, "pods": 3, "namespaces": 1}),
            "1 namespace, 3 pods and 2 configmaps",
            id="heaviest first",
        ),
        pytest.param(
            Reach({"pods": 1, "a": 1, "b": 1, "c": 1, "d": 2, "e": 3}),
            "1 pod, 1 a, 1 b, 1 c and 5 other objects",
            id="many",
        ),
        pytest.param(Reach({"ingresses.networking.k8s.io": 1}), "1 ingress", id="-es"),
        pytest.param(
            Reach({}, exact=False), "an unknown number of objects (they could not be counted in time)", id="unknown"
        ),
        pytest.param(Reach({"pods": 0}), "nothing", id="nothing"),
    ],
)
def test_reach_in_words(reach, text):
    assert commands.plain(reach) == text
