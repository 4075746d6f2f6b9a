import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import digests
from addons.core.classify import classify
from addons.core.model import Reach

JSON, MERGE, STRATEGIC = (
    "application/json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)
JSON_PATCH = "application/json-patch+json"
WEB = "/apis/apps/v1/namespaces/shop/deployments/web"
POD = "/api/v1/namespaces/shop/pods/web-1"
EXEC = f"{POD}/exec?command=sh&command=-c&command=ls&stdout=true"


def read(method, target, body=None, media=None, headers=None):
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    media = media or (JSON if raw else "")
    return classify(method, target, {"content-type": media, **(headers or {})} if media else headers or {}, raw), raw


def of(method, target, body=None, media=None, headers=None):
    operation, raw = read(method, target, body, media, headers)
    return digests.of(operation, method, target, media or (JSON if raw else ""), raw)


def patched(body, media=MERGE, target=WEB):
    return of("PATCH", target, body, media)


REPLICAS = {"spec": {"replicas": 1}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(
            patched(b'{"spec": {"replicas": 1, "paused": true}}'),
            patched(b'{"spec":{"paused":true,\n"replicas":1}}'),
            id="key order and white space",
        ),
        pytest.param(
            of("GET", f"{POD}/log?follow=1&tailLines=2"), of("GET", f"{POD}/log?tailLines=2&follow=1"), id="query order"
        ),
        pytest.param(
            of("PATCH", f"{WEB}?fieldManager=a%2Db", REPLICAS, MERGE),
            of("PATCH", f"{WEB}?fieldManager=a-b", REPLICAS, MERGE),
            id="escapes of a query",
        ),
        pytest.param(
            of("GET", EXEC, headers={"upgrade": "websocket", "sec-websocket-protocol": "v5.channel.k8s.io"}),
            of("POST", EXEC, headers={"upgrade": "SPDY/3.1", "x-stream-protocol-version": "v4.channel.k8s.io"}),
            id="exec by WebSocket, then by SPDY",
        ),
        pytest.param(of("GET", f"{POD}/portforward"), of("POST", f"{POD}/portforward"), id="port-forward likewise"),
        pytest.param(
            of("GET", f"{POD}/attach?stdin=true"), of("POST", f"{POD}/attach?stdin=true"), id="attach likewise"
        ),
    ],
)
def test_the_same(one, other):
    assert one == other


def restarted(value, key=digests.RESTARTED_AT):
    return {"spec": {"template": {"metadata": {"annotations": {key: value}}}}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(patched(REPLICAS), patched(REPLICAS, STRATEGIC), id="the same bytes as another patch"),
        pytest.param(
            patched(REPLICAS), patched(REPLICAS, f"{MERGE}; charset=utf-8"), id="a parameter of the media type"
        ),
        pytest.param(patched(REPLICAS), patched(REPLICAS, target=f"{WEB}?force=true"), id="query"),
        pytest.param(patched(REPLICAS), patched(REPLICAS, target=f"{WEB}/scale"), id="subresource"),
        pytest.param(patched(REPLICAS), patched(REPLICAS, target=f"{WEB}2"), id="name"),
        pytest.param(patched(REPLICAS), of("PUT", WEB, REPLICAS), id="method"),
        pytest.param(patched({"a": 1}), patched({"a": 1.0}), id="1 and 1.0"),
        pytest.param(patched({"a": 1}), patched({"a": True}), id="1 and true"),
        pytest.param(patched({"a": 1}), patched({"a": "1"}), id="1 and its text"),
        pytest.param(patched({"a": None}), patched({}), id="null and nothing"),
        pytest.param(patched({"a": ["x", "y"]}), patched({"a": ["y", "x"]}), id="order of a list"),
        pytest.param(patched({"a": "\u00e9"}), patched({"a": "e\u0301"}), id="two spellings of a letter"),
        pytest.param(
            of("GET", EXEC),
            of("GET", EXEC.replace("command=sh&command=-c", "command=-c&command=sh")),
            id="order of an argv",
        ),
        pytest.param(of("GET", EXEC), of("GET", EXEC.replace("ls", "id")), id="another command"),
        pytest.param(of("GET", EXEC), of("GET", EXEC.replace("/exec", "/attach")), id="another stream"),
        pytest.param(of("GET", EXEC), of("GET", EXEC.replace("web-1", "web-2")), id="another pod"),
        pytest.param(of("GET", EXEC), of("GET", EXEC + "&stdin=true"), id="with a keyboard"),
        pytest.param(
            of("POST", f"{POD}/proxy/a", b"x", "text/plain"),
            of("POST", f"{POD}/proxy/a", b"y", "text/plain"),
            id="bytes to a proxy",
        ),
        pytest.param(of("GET", f"{POD}/proxy/a%2Fb"), of("GET", f"{POD}/proxy/a/b"), id="a slash behind a proxy"),
        pytest.param(of("GET", f"{POD}/proxy/?b=1&a=2"), of("GET", f"{POD}/proxy/?a=2&b=1"), id="order behind a proxy"),
        pytest.param(of("DELETE", POD), of("DELETE", POD, {}), id="a body makes the query count no more"),
        pytest.param(of("DELETE", POD, {}), of("DELETE", POD, {"gracePeriodSeconds": 0}), id="options"),
        pytest.param(of("DELETE", POD), of("DELETE", f"{POD}?gracePeriodSeconds=0"), id="options in the query"),
        pytest.param(of("DELETE", POD), of("POST", f"{POD}/eviction"), id="delete and evict"),
        pytest.param(of("DELETE", POD), of("DELETE", POD.replace("shop", "bank")), id="namespace"),
        pytest.param(of("DELETE", POD), of("DELETE", WEB.replace("/web", "/web-1")), id="kind"),
        pytest.param(
            of("DELETE", POD, {"preconditions": {"resourceVersion": "1"}}),
            of("DELETE", POD, {"preconditions": {"resourceVersion": "2"}}),
            id="another precondition",
        ),
        pytest.param(
            patched(restarted("2026-01-01T00:00:00Z")), patched(restarted("now")), id="restartedAt that is no time"
        ),
        pytest.param(
            patched(restarted("2026-01-01T00:00:00Z", "x")),
            patched(restarted("2026-01-02T00:00:00Z", "x")),
            id="a time elsewhere",
        ),
        pytest.param(
            patched(restarted("2026-01-01T00:00:00Z"), target="/api/v1/namespaces/shop/configmaps/web"),
            patched(restarted("2026-01-02T00:00:00Z"), target="/api/v1/namespaces/shop/configmaps/web"),
            id="restartedAt of what is never restarted",
        ),
        pytest.param(patched({}), patched(restarted("2026-01-01T00:00:00Z")), id="a restart and nothing"),
    ],
)
def test_not_the_same(one, other):
    assert one != other


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda time: (restarted(time), STRATEGIC), id="kubectl rollout restart"),
        pytest.param(lambda time: (restarted(time), MERGE), id="merge patch"),
        pytest.param(
            lambda time: (
                [
                    {
                        "op": "add",
                        "path": "/spec/template/metadata/annotations/kubectl.kubernetes.io~1restartedAt",
                        "value": time,
                    }
                ],
                JSON_PATCH,
            ),
            id="JSON patch",
        ),
    ],
)
def test_a_restart_again(body):
    times = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:09+01:00")
    assert len({patched(*body(time)) for time in times}) == 1


def debug(*names, image="busybox"):
    containers = [{"name": name, "image": image} for name in names]
    order = [{"name": name} for name in names]
    return of(
        "PATCH",
        f"{POD}/ephemeralcontainers",
        {"spec": {"$setElementOrder/ephemeralContainers": order, "ephemeralContainers": containers}},
        STRATEGIC,
    )


def test_debug_again():
    assert debug("debugger-x7k2p") == debug("debugger-bbbbb")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(debug("debugger-x7k2p", image="evil"), id="image"),
        pytest.param(debug("debugger"), id="a name somebody chose"),
        pytest.param(debug("debugger-x7k2p", "debugger-bbbbb"), id="two of them"),
        pytest.param(debug("debugger-aeiou"), id="not generated"),
    ],
)
def test_another_debug(other):
    assert other != debug("debugger-x7k2p")


def test_two_generated_names_stay_two():
    assert debug("debugger-x7k2p", "debugger-x7k2p") != debug("debugger-x7k2p", "debugger-bbbbb")


# ----- fan-outs -----

OPTIONS = {"propagationPolicy": "Background"}


def fan_out(method, target, body=None, objects=()):
    operation, raw = read(method, target, body)
    return replace(operation, reach=Reach({"pods": len(objects)}, objects=tuple(objects))), raw


EVICTION = {"apiVersion": "policy/v1", "kind": "Eviction", "deleteOptions": {"gracePeriodSeconds": 3}}


def eviction(name, **metadata):
    return {**EVICTION, "metadata": {"name": name, "namespace": "shop", **metadata}}


@pytest.mark.parametrize(
    ("method", "suffix", "body"),
    [
        pytest.param("DELETE", "", lambda name: OPTIONS, id="kubectl delete"),
        pytest.param("DELETE", "", lambda name: None, id="no body"),
        pytest.param(
            "DELETE", "?gracePeriodSeconds=1&propagationPolicy=Orphan", lambda name: None, id="options in the query"
        ),
        pytest.param(
            "DELETE",
            "",
            lambda name: {**OPTIONS, "preconditions": {"uid": f"uid of {name}"}},
            id="each with its own precondition",
        ),
        pytest.param("POST", "/eviction", eviction, id="drain"),
        pytest.param("POST", "/eviction", lambda name: eviction(name, creationTimestamp=None), id="an older drain"),
    ],
)
def test_an_item_is_the_request_that_comes(method, suffix, body):
    objects = [("", "pods", "shop", f"web-{n}", f"uid of web-{n}") for n in range(3)]
    targets = [f"/api/v1/namespaces/shop/pods/web-{n}{suffix}" for n in range(3)]
    operation, _ = fan_out(method, targets[0], body("web-0"), objects)
    items = digests.of_each(operation, targets[0])
    assert list(items) == objects
    assert list(items.values()) == [of(method, target, body(f"web-{n}")) for n, target in enumerate(targets)]
    assert len(set(items.values())) == 3


def test_items_of_another_kind_are_left_out():
    operation, _ = fan_out("DELETE", POD, None, [("", "pods", "shop", "web-1", "u"), ("", "secrets", "shop", "x", "v")])
    assert [target[1] for target in digests.of_each(operation, POD)] == ["pods"]


def test_namespaces_have_none():
    target = "/api/v1/namespaces/shop"
    operation, _ = fan_out("DELETE", target, None, [("", "namespaces", "", "shop", "u")])
    assert list(digests.of_each(operation, target).values()) == [of("DELETE", target)]


def test_no_fan_out_no_items():
    operation, _ = read("DELETE", POD)
    assert digests.of_each(operation, POD) == {}


@pytest.mark.parametrize(
    ("method", "target", "single"),
    [
        pytest.param("DELETE", POD, True, id="one object"),
        pytest.param("POST", f"{POD}/eviction", True, id="eviction"),
        pytest.param("DELETE", "/api/v1/namespaces/shop/pods", False, id="a collection"),
        pytest.param("POST", f"{POD}/eviction/x", False, id="something behind an eviction"),
        pytest.param("DELETE", f"{POD}/status", False, id="a subresource"),
        pytest.param("PATCH", POD, False, id="a patch"),
    ],
)
def test_is_single_delete(method, target, single):
    operation, _ = read(method, target, {} if method == "PATCH" else None, MERGE if method == "PATCH" else None)
    assert digests.is_single_delete(operation) is single


def test_a_command_is_its_items_in_any_order():
    assert digests.command(["a", "b"]) == digests.command(["b", "a"]) != digests.command(["a", "c"])
    assert digests.command(["a"]) == "a"


# ----- what cannot be sent again -----


@pytest.mark.parametrize(
    ("method", "target", "body", "text"),
    [
        pytest.param(
            "POST", "/api/v1/namespaces/shop/serviceaccounts/x/token", {"spec": {}}, "token", id="create token"
        ),
        pytest.param(
            "POST", "/api/v1/namespaces/shop/pods", {"metadata": {"generateName": "x-"}}, "generated", id="generateName"
        ),
        pytest.param(
            "POST",
            "/api/v1/namespaces/shop/secrets",
            {"metadata": {"name": "sh.helm.release.v1.web.v1"}},
            "Helm",
            id="Helm by name",
        ),
        pytest.param(
            "PUT",
            "/api/v1/namespaces/shop/secrets/x",
            {"metadata": {"name": "x"}, "type": "helm.sh/release.v1"},
            "Helm",
            id="Helm by type",
        ),
        pytest.param(
            "POST",
            "/api/v1/namespaces/shop/configmaps",
            {"metadata": {"name": "sh.helm.release.v1.web.v1"}},
            "Helm",
            id="Helm in ConfigMaps",
        ),
        pytest.param(
            "POST",
            "/api/v1/namespaces/shop/pods",
            {"metadata": {"name": "node-debugger-n1-x7k2p"}},
            "debug",
            id="kubectl debug node",
        ),
        pytest.param(
            "PUT",
            "/apis/certificates.k8s.io/v1/certificatesigningrequests/x/approval",
            {"metadata": {"name": "x"}},
            "time",
            id="certificate approve",
        ),
        pytest.param(
            "POST",
            "/api/v1/namespaces/shop/pods",
            {"metadata": {"name": "x", "generateName": "y-"}},
            "",
            id="a name of its own",
        ),
        pytest.param("POST", f"{POD}/eviction", EVICTION, "", id="eviction"),
        pytest.param(
            "DELETE", "/api/v1/namespaces/shop/secrets/sh.helm.release.v1.web.v1", None, "", id="a release deleted"
        ),
        pytest.param("GET", EXEC, None, "", id="exec"),
        pytest.param("POST", "/api/v1/namespaces", {"metadata": {"name": "x"}}, "", id="a namespace"),
    ],
)
def test_repeatable(method, target, body, text):
    why = digests.repeatable(read(method, target, body)[0])
    assert text in why if text else why == ""


# ----- results -----


def result(content, method="PATCH", target=WEB, media=MERGE, **more):
    return digests.result(read(method, target, {}, media if method == "PATCH" else JSON)[0], content, **more)


def an_object(spec=None, status=None, **metadata):
    return {
        "metadata": {"name": "x", "uid": "u", **metadata},
        "spec": spec or {},
        **({"status": status} if status else {}),
    }


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(an_object(managedFields=[{"time": "now"}]), id="managedFields"),
        pytest.param(an_object(resourceVersion="7"), id="resourceVersion"),
        pytest.param(an_object(generation=3), id="generation"),
        pytest.param(an_object(creationTimestamp="2026-01-01T00:00:00Z"), id="creationTimestamp"),
        pytest.param(an_object(status={"replicas": 3}), id="status of a built-in kind"),
    ],
)
def test_noise_of_a_result(noise):
    assert result(noise) == result(an_object())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(an_object({"replicas": 2}), id="spec"),
        pytest.param(an_object(labels={"a": "b"}), id="label"),
        pytest.param(an_object(annotations={"a": "b"}), id="annotation"),
        pytest.param(an_object(deletionTimestamp="2026-01-01T00:00:00Z"), id="it is on its way out"),
        pytest.param({**an_object(), "metadata": {"name": "x", "uid": "v"}}, id="another object"),
        pytest.param({**an_object(), "data": {}}, id="an unknown field"),
    ],
)
def test_a_change_of_a_result(change):
    assert result(change) != result(an_object())


CUSTOM = "/apis/example.com/v1/namespaces/shop/things/x"


def test_the_status_of_a_custom_resource_counts_but_not_its_times():
    def seen(state, time, generation=1):
        conditions = [{"type": "Ready", "status": state, "lastTransitionTime": time}]
        return result(an_object(status={"conditions": conditions, "observedGeneration": generation}), target=CUSTOM)

    assert (
        seen("True", "2026-01-01T00:00:00Z")
        == seen("True", "2026-01-02T00:00:00Z", 2)
        != seen("False", "2026-01-01T00:00:00Z")
    )


def test_the_status_counts_where_it_is_written():
    states = [an_object(status={"replicas": n}) for n in (1, 2)]
    assert len({result(one, target=f"{WEB}/status") for one in states}) == 2


def test_a_scaler_of_the_old_version_shows_its_status_as_annotations():
    target = "/apis/autoscaling/v1/namespaces/shop/horizontalpodautoscalers/x"
    key = "autoscaling.alpha.kubernetes.io/current-metrics"
    seen = [result(an_object(annotations={key: value}), target=target) for value in ("1", "2")]
    assert seen[0] == seen[1]
    assert result(an_object(annotations={key: "1", "x": "y"}), target=target) != seen[0]


def made(n, prefix="x-", suffix=("bcdfg", "hjklm")):
    """One of two dry runs of the same create, as the API server answers them (tried)."""
    return {
        "metadata": {
            "generateName": prefix,
            "name": f"{prefix}{suffix[n]}",
            "uid": f"uid-{n}",
            "labels": {"controller-uid": f"uid-{n}"},
        },
        "spec": {
            "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": f"uid-{n}"}},
            "volumes": [{"name": f"kube-api-access-{suffix[n]}"}, {"name": "data"}],
            "containers": [{"name": "c", "volumeMounts": [{"name": f"kube-api-access-{suffix[n]}"}]}],
        },
    }


def created(content, target="/api/v1/namespaces/shop/pods"):
    return result(content, "POST", target, created=True)


def test_what_is_drawn_by_lot_for_a_new_object():
    assert created(made(0)) == created(made(1))
    # Of an object that is there they are what they are.
    assert result(made(0), target=POD) != result(made(1), target=POD)
    assert created(made(0)) != created(made(0, suffix=("other",)))


def test_a_new_object_and_a_changed_one_differ():
    assert result(an_object(), created=True) != result(an_object())


def test_a_restart_in_a_result():
    seen = [result(restarted(time)) for time in ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")]
    assert seen[0] == seen[1] != result(restarted("x"))


def test_the_pod_of_an_exec():
    pod = {"metadata": {"labels": {}}, "spec": {"containers": [{"image": "a"}]}, "status": {"phase": "Running"}}
    assert digests.pod(pod) == digests.pod({**pod, "status": {}, "metadata": {}})
    assert digests.pod(pod) != digests.pod({**pod, "spec": {"containers": [{"image": "b"}]}})


def test_a_set_of_objects():
    assert digests.uids(["a", "b"]) == digests.uids(["b", "a"]) != digests.uids(["a"])


# ----- hostile input -----

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(st.sampled_from(["spec", "data", "x", "y"]), values, max_size=4)


def shape(value):
    """Equal exactly where JSON is: without Python's 1 == True == 1.0."""
    if isinstance(value, dict):
        return ("object", tuple(sorted((key, shape(one)) for key, one in value.items())))
    if isinstance(value, list):
        return ("list", tuple(shape(one) for one in value))
    return (type(value).__name__, repr(value))


def digest_of(content, media=MERGE):
    operation = replace(read("PATCH", "/api/v1/namespaces/shop/configmaps/x", {}, MERGE)[0], body=content)
    return digests.of(operation, "PATCH", "/api/v1/namespaces/shop/configmaps/x", media)


@given(bodies, bodies)
def test_as_different_as_the_bodies(one, other):
    assert (digest_of(one) == digest_of(other)) is (shape(one) == shape(other))


@given(bodies, st.randoms())
def test_the_order_of_keys_is_nothing(content, random):
    keys = list(content)
    random.shuffle(keys)
    assert digest_of({key: content[key] for key in keys}) == digest_of(content)


@given(bodies)
def test_a_patch_type_is_part_of_it(content):
    assert digest_of(content, MERGE) != digest_of(content, STRATEGIC)


pairs = st.lists(
    st.tuples(st.sampled_from(["command", "container", "a", "b"]), st.sampled_from(["x", "y", "z"])), max_size=5
).filter(lambda found: sum(key == "container" for key, _ in found) < 2)


@given(pairs, pairs)
def test_a_query_keeps_the_order_within_a_key(one, other):
    def seen(query):
        return of("GET", f"{POD}/exec?" + "&".join(f"{key}={value}" for key, value in query))

    def by_key(query):
        return {key: [v for k, v in query if k == key] for key, _ in query}

    assert (seen(one) == seen(other)) is (by_key(one) == by_key(other))


@given(values)
def test_a_result_of_anything(content):
    for is_new in (True, False):
        operation, _ = read("PATCH", f"{POD}/ephemeralcontainers", {}, STRATEGIC)
        assert len(digests.result(operation, content, created=is_new)) == 64
        assert (
            len(
                digests.result(read("PATCH", WEB, {}, MERGE)[0], {"metadata": content, "spec": content}, created=is_new)
            )
            == 64
        )
