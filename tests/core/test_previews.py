import base64
import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from addons.core import canonical, previews
from addons.core.classify import classify
from addons.core.model import Reach, Uses
from addons.core.previews import UNCOUNTED, Content, Difference, Kind, Plan

NS = "/api/v1/namespaces/shop"
POD = f"{NS}/pods/web-1"
WEB = "/apis/apps/v1/namespaces/shop/deployments/web"
SECRET = f"{NS}/secrets/db"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
MERGE, JSON_PATCH = "application/merge-patch+json", "application/json-patch+json"


def read(method, target, body=None, media="application/json"):
    raw = b"" if body is None else json.dumps(body).encode()
    return classify(method, target, {"content-type": media} if raw else {}, raw)


# ----- what is asked -----


@pytest.mark.parametrize(
    ("operation", "target", "plan"),
    [
        pytest.param(read("PATCH", f"{WEB}?x=y", {}, MERGE), f"{WEB}?x=y", Plan(Kind.WRITE, WEB, True), id="patch"),
        pytest.param(
            read("PATCH", f"{WEB}/scale", {}, MERGE), f"{WEB}/scale", Plan(Kind.WRITE, f"{WEB}/scale", True), id="scale"
        ),
        pytest.param(
            read("POST", f"{NS}/pods", {"metadata": {"name": "x"}}),
            f"{NS}/pods",
            Plan(Kind.WRITE, "", True),
            id="create",
        ),
        pytest.param(read("DELETE", POD), POD, Plan(Kind.DELETE, POD), id="delete"),
        pytest.param(
            read("POST", f"{POD}/eviction", {}),
            f"{POD}/eviction",
            Plan(Kind.DELETE, POD),
            id="an eviction is about the pod",
        ),
        pytest.param(read("DELETE", NS), NS, Plan(Kind.NAMESPACE, NS), id="namespace"),
        pytest.param(
            read("DELETE", f"{CRDS}/things.x.io"),
            f"{CRDS}/things.x.io",
            Plan(Kind.DEFINITION, f"{CRDS}/things.x.io"),
            id="kind of custom resources",
        ),
        pytest.param(read("DELETE", f"{NS}/pods"), f"{NS}/pods", Plan(Kind.COLLECTION), id="collection"),
        pytest.param(
            read("GET", f"{POD}/exec?command=ls"), f"{POD}/exec?command=ls", Plan(Kind.STREAM, POD), id="exec"
        ),
        pytest.param(read("POST", f"{POD}/attach"), f"{POD}/attach", Plan(Kind.STREAM, POD), id="attach"),
        pytest.param(
            read("GET", f"{POD}/proxy/a%2Fb/c"), f"{POD}/proxy/a%2Fb/c", Plan(Kind.STREAM, POD), id="through a proxy"
        ),
        pytest.param(
            read("GET", f"{NS}/services/https:web:443/proxy/"),
            f"{NS}/services/https:web:443/proxy/",
            Plan(Kind.STREAM, f"{NS}/services/web"),
            id="through a proxy, with scheme and port",
        ),
        pytest.param(
            read("GET", f"{POD}:80/proxy"), f"{POD}:80/proxy", Plan(Kind.STREAM, POD), id="through a proxy, with a port"
        ),
        pytest.param(read("GET", SECRET), SECRET, Plan(Kind.OTHER), id="a read is not made before it is allowed"),
        pytest.param(read("GET", "/metrics"), "/metrics", Plan(Kind.OTHER), id="no resource"),
    ],
)
def test_plan(operation, target, plan):
    assert previews.plan(operation, target) == plan


@pytest.mark.parametrize(
    ("operation", "target"),
    [
        pytest.param(read("POST", f"{NS}/serviceaccounts/x/token", {}), f"{NS}/serviceaccounts/x/token", id="a token"),
        pytest.param(
            read("PATCH", SECRET, [{"op": "test", "path": "/data/x", "value": "y"}], JSON_PATCH), SECRET, id="an oracle"
        ),
        pytest.param(read("PATCH", "/apis/x.io/v1/things/y", {}, MERGE), "/apis/x.io/v1/things/y", id="somebody's API"),
    ],
)
def test_no_dry_run_is_said(operation, target):
    plan = previews.plan(operation, target)
    assert (plan.kind, plan.dry_run) == (Kind.WRITE, False)
    assert plan.no_dry_run
    assert plan.live == target.removesuffix("/token")


# ----- what is shown -----

CANARY = "hunter2-c4n4ry"
CODED = base64.b64encode(CANARY.encode()).decode()
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def a_secret(value=CODED, **more):
    metadata = {
        "name": "db",
        "labels": {"app": "db"},
        "annotations": {LAST_APPLIED: f'{{"data":"{value}"}}', "note": value},
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": metadata,
        "data": {"password": value},
        **more,
    }


values = st.recursive(
    st.just(CANARY) | st.just(CODED),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "data", "metadata", "value"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(values, values)
def test_wherever_a_value_is(one, other):
    operation = read("PUT", SECRET, {})
    change = previews.difference(operation, {"kind": "Secret", "data": one, "x": other}, {"data": other, "y": one})
    for text in (change.text, str(change.notes), previews.body(replace(operation, body={"z": one})).text):
        assert CANARY not in text
        assert CODED not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("pods are fine", "pods are fine", id="plain"),
        pytest.param("grüße 東京", "grüße 東京", id="letters"),
        pytest.param("\x1b[2J\x07", "\\u001b[2J\\u0007", id="terminal commands"),
        pytest.param("a\nb\rc\td", "a\\nb\\rc\\td", id="line breaks"),
        pytest.param("rm \u202e/- fr\u2066", "rm \\u202e/- fr\\u2066", id="direction of writing"),
        pytest.param("a\u200bb\u2028c", "a\\u200bb\\u2028c", id="invisible"),
        pytest.param("x" * 600, "x" * 500 + "… (600 characters)", id="endless"),
    ],
)
def test_line(text, shown):
    assert previews.line(text) == shown


@given(st.text(max_size=50))
def test_a_line_is_one_line(text):
    assert len(previews.line(text).splitlines()) <= 1
    assert "\x1b" not in previews.line(text)


# ----- the difference -----


def an_object(**spec):
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "managedFields": ["x"], "resourceVersion": "1", "generation": 1},
        "spec": {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, **spec},
        "status": {"replicas": 3},
    }


def diff(before, after, target=WEB, **more):
    return previews.difference(read("PATCH", target, {}, MERGE), before, after, **more)


def test_a_difference():
    after = an_object(c=7)
    after["metadata"]["resourceVersion"], after["status"] = "2", {"replicas": 4}
    assert diff(an_object(), after) == Difference(
        "--- now\n+++ then\n@@ -5,6 +5,6 @@\n spec:\n   a: 1\n   b: 2\n-  c: 3\n+  c: 7\n   d: 4\n   e: 5"
    )


def test_the_numbers_of_a_hunk_are_those_of_the_object():
    lines = [{f"k{n:04}": n} for n in range(300)]
    changed = [*lines[:200], {"k0200": "x"}, *lines[201:]]
    text = diff({"spec": lines}, {"spec": changed}).text
    assert "@@ -199,7 +199,7 @@" in text


def test_a_new_object_is_all_added():
    content = {
        "kind": "ConfigMap",
        "metadata": {"name": "x", "uid": "u", "creationTimestamp": "now"},
        "data": {"a": "b"},
    }
    change = previews.difference(read("POST", f"{NS}/configmaps", content), None, content, created=True)
    assert change.text.splitlines()[3:] == ["+data:", "+  a: b", "+kind: ConfigMap", "+metadata:", "+  name: x"]


def test_no_change_is_said():
    assert diff(an_object(), an_object()) == Difference(previews.UNCHANGED)


def test_the_status_is_shown_where_it_is_written():
    after = {**an_object(), "status": {"replicas": 4}}
    assert "+  replicas: 4" in diff(an_object(), after, f"{WEB}/status").text


def test_a_file_is_shown_by_its_lines():
    change = previews.difference(
        read("PUT", f"{NS}/configmaps/x", {}), {"data": {"f": "one\ntwo\n"}}, {"data": {"f": "one\nthree\n"}}
    )
    assert "-    two\n+    three" in change.text


def test_it_is_bounded():
    change = diff({"spec": {}}, {"spec": {f"k{n}": "x" * 20 for n in range(1000)}})
    assert len(change.text.splitlines()) == previews.MAX_LINES
    assert change.notes == (f"the diff is cut: {1000 + 5 - previews.MAX_LINES} more lines are not shown",)


def test_it_is_bounded_in_bytes():
    change = diff({"spec": {}}, {"spec": {f"k{n}": "ü" * 450 for n in range(100)}})
    assert len(change.text.encode()) <= previews.MAX_BYTES
    assert "the diff is cut" in change.notes[0]


def test_a_wholly_new_content_shows_both_sides():
    old, new = ({"data": {f"{side}{n}": "" for n in range(3000)}} for side in "ab")
    text = previews.difference(read("PUT", f"{NS}/configmaps/x", {}), old, new).text
    assert "-  a0: ''" in text
    assert "+  b0: ''" in text


def test_too_much_is_said():
    huge = {"data": {"x": "y" * previews.MAX_OBJECT}}
    assert diff(huge, {}) == Difference("", ("diff could not be computed: the object has over 1048576 characters",))
    assert "could not be shown" in previews.body(read("PATCH", WEB, huge, MERGE)).notes[0]


def test_the_request_itself():
    change = previews.body(read("PATCH", "/apis/x.io/v1/things/y", {"spec": {"a": 1}}, MERGE))
    assert change.text.splitlines()[1:] == ["+spec:", "+  a: 1"]
    assert previews.body(read("DELETE", POD)) == Difference()


def test_another_mask_can_take_its_place():
    def mask(resource, *versions):
        return tuple({"resource": resource} if isinstance(one, dict) else f"<{one}>" for one in versions)

    assert "+resource: deployments.apps" in diff(None, an_object(), mask=mask, created=True).text
    assert "+resource: deployments.apps" in previews.body(read("PATCH", WEB, {"a": 1}, MERGE), mask=mask).text
    shown = previews.preview(reach=Reach({"pods": 1}, ("n",)), names=["m"], notes=["o"], argv=["p"], mask=mask)
    assert (shown.names, shown.notes, shown.argv) == (("<n>", "<m>"), ("<o>",), ("<p>",))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), plain, max_size=4), st.dictionaries(st.text(max_size=5), plain, max_size=4))
def test_a_difference_of_anything(one, other):
    for before in (one, None):
        change = diff(before, other, created=before is None)
        assert bool(change.text) is not bool(change.notes) or change.notes[0].startswith("the diff is cut")
        assert len(change.text.splitlines()) <= previews.MAX_LINES
        assert all(c >= " " for c in change.text.replace("\n", ""))


@given(st.text())
def test_the_yaml_says_what_the_object_holds(text):
    content = {"data": {"x": text}}
    dumped = yaml.dump(content, Dumper=previews._Dumper, sort_keys=True, allow_unicode=True, width=10**6)
    assert yaml.load(dumped, Loader=yaml.CSafeLoader) == content


# ----- deletes -----


def test_what_a_delete_reaches():
    operation = read("DELETE", POD)
    assert previews.reach_of(operation) == Reach({"pods": 1}, ("shop/web-1",))
    counted = Reach({"pods": 14}, ("shop/web-1",), exact=False)
    assert previews.reach_of(replace(operation, reach=counted)) is counted


OTHERS = (("", "pods", "shop", "a", "u1"), ("", "pods", "shop", "b", "u2"))


@pytest.mark.parametrize(
    ("target", "objects", "counts", "names"),
    [
        pytest.param(POD, (), {"pods": 2}, ("shop/a", "shop/b"), id="not listed by name"),
        pytest.param(f"{NS}/pods/a", OTHERS, {"pods": 2}, ("shop/a", "shop/b"), id="one of them"),
        pytest.param(POD, OTHERS, {"pods": 3}, ("shop/web-1", "shop/a", "shop/b"), id="one more"),
        pytest.param(
            f"{NS}/secrets/s",
            OTHERS,
            {"pods": 2, "secrets": 1},
            ("shop/s", "shop/a", "shop/b"),
            id="of another kind",
        ),
    ],
)
def test_an_object_cannot_hide_behind_those_of_its_command(target, objects, counts, names):
    reach = Reach({"pods": 2}, ("shop/a", "shop/b"), True, objects)
    found = previews.own_in(read("DELETE", target), reach)
    assert (dict(found.counts), found.names) == (counts, names)


@pytest.mark.parametrize(
    ("method", "target", "body", "notes"),
    [
        pytest.param("DELETE", POD, None, (), id="none"),
        pytest.param("DELETE", POD, {"propagationPolicy": "Background"}, (), id="what happens anyway"),
        pytest.param(
            "DELETE",
            POD,
            {"gracePeriodSeconds": 0, "propagationPolicy": "Orphan"},
            ("with the options gracePeriodSeconds 0, propagationPolicy Orphan",),
            id="in the body",
        ),
        pytest.param(
            "DELETE", f"{POD}?gracePeriodSeconds=0", None, ("with the options gracePeriodSeconds 0",), id="in the query"
        ),
        pytest.param("DELETE", f"{POD}?gracePeriodSeconds=0", {}, (), id="a query that does not count"),
        pytest.param(
            "POST",
            f"{POD}/eviction",
            {"deleteOptions": {"gracePeriodSeconds": 0}},
            ("with the options gracePeriodSeconds 0",),
            id="of an eviction",
        ),
        pytest.param(
            "DELETE",
            POD,
            {"ignoreStoreReadErrorWithClusterBreakingPotential": True},
            ("with the options ignoreStoreReadErrorWithClusterBreakingPotential true",),
            id="whatever is stored",
        ),
    ],
)
def test_how_it_is_deleted(method, target, body, notes):
    assert previews.delete_notes(read(method, target, body), canonical.read(method, target).query) == notes


def test_a_body_that_nobody_reads_is_told_by_its_size():
    assert previews.body_notes(read("POST", f"{POD}/proxy/x"), 3) == ("with a body of 3 bytes, which is not shown",)
    assert previews.body_notes(read("POST", f"{POD}/proxy/x"), 0) == ()
    assert previews.body_notes(read("POST", f"{NS}/pods", {"a": 1}), 7) == ()


@pytest.mark.parametrize(
    ("now", "drift", "why", "unknown"),
    [
        pytest.param({"pods": 3, "secrets": 2}, 0, "", "", id="the same"),
        pytest.param({"pods": 1}, 0, "", "", id="less"),
        pytest.param({"pods": 4, "secrets": 2}, 0, "1 pods", "", id="one more"),
        pytest.param({"pods": 4, "secrets": 2}, 1, "", "", id="one more is allowed"),
        pytest.param({"pods": 0, "secrets": 4}, 1, "2 secrets", "", id="what went away makes no room"),
        pytest.param({"pods": 4, "secrets": 3}, 1, "1 pods, 1 secrets", "", id="several kinds together"),
        pytest.param({"pods": 3, "secrets": 2, "jobs.batch": 1}, 0, "1 jobs.batch", "", id="another kind"),
        pytest.param({"pods": 3, previews.VOLUMES: 1}, 9, "1 more persistentvolumeclaims", "", id="volumes never"),
        pytest.param({"pods": UNCOUNTED, "secrets": 2}, 9, "", "(pods)", id="not countable now"),
        pytest.param({"pods": 3, "secrets": 2, "*": UNCOUNTED}, 9, "", "(*)", id="discovery is down"),
    ],
)
def test_grown(now, drift, why, unknown):
    found = previews.grown({"pods": 3, "secrets": 2}, now, drift)
    for text, wanted in zip(found, (why, unknown), strict=True):
        assert wanted in text if wanted else text == ""


def test_what_nobody_could_count_before():
    before = {"pods": 3, "secrets": UNCOUNTED}
    assert previews.grown(before, {"pods": 3, "secrets": UNCOUNTED}, 0) == ("", "")
    assert "2 secrets" in previews.grown(before, {"pods": 3, "secrets": 2}, 0)[0]


def test_what_could_not_be_counted_is_said():
    assert previews.content_notes(Content({"pods": 1})) == ()
    (note,) = previews.content_notes(Content({"pods": 1, "secrets": UNCOUNTED}))
    assert note == "could not be counted, so may be there in any number: secrets"


def claim(name, capacity="", requested="1Gi"):
    status = {"capacity": {"storage": capacity}} if capacity else {}
    resources = {"requests": {"storage": requested}} if requested else {}
    return {"metadata": {"name": name, "namespace": "shop"}, "spec": {"resources": resources}, "status": status}


def test_volumes_with_their_size():
    claims = [claim("b", "20Gi"), claim("a"), claim("c", requested=""), "nonsense"]
    (note,) = previews.volumes(claims[:3])
    assert note == "volumes: shop/a (1Gi), shop/b (20Gi), shop/c (of unknown size)"
    assert previews.volumes(claims, frozenset({"shop/a"})) == ("volumes: shop/a (1Gi)",)
    assert previews.volumes([]) == ()


# ----- pods -----

INTERACTIVE = "interactive: its commands are not known beforehand"


@pytest.mark.parametrize(
    ("target", "argv", "notes"),
    [
        pytest.param(f"{POD}/exec?command=sh&command=-c&command=ls", ("sh", "-c", "ls"), (), id="a command"),
        pytest.param(f"{POD}/exec?command=sh&stdin=true&tty=true", ("sh",), (INTERACTIVE,), id="a shell"),
        pytest.param(f"{POD}/exec?command=sh&stdin", ("sh",), (INTERACTIVE,), id="stdin without a value is true"),
        pytest.param(f"{POD}/exec?command=sh&stdin=false", ("sh",), (), id="stdin=false"),
        pytest.param(f"{POD}/exec?command=sh&container=x", ("sh",), ("in container x",), id="a container"),
        pytest.param(f"{POD}/attach", (), (INTERACTIVE,), id="attach"),
        pytest.param(f"{POD}/portforward", (), ("which ports are forwarded",), id="port-forward"),
        pytest.param(f"{POD}/proxy/x?command=a", ("a",), ("sends GET /api", "what the program"), id="proxy"),
    ],
)
def test_a_stream(target, argv, notes):
    query = canonical.read("GET", target).query
    assert previews.argv_of(query) == argv
    said = previews.stream_notes(read("GET", target), query)
    assert len(said) == len(notes)
    assert all(text in note for text, note in zip(notes, said, strict=True))


def test_what_a_pod_reaches():
    found = Uses(frozenset({"deployer"}), frozenset({"b", "a"}), frozenset(), frozenset({"hostPID"}), True, True)
    assert previews.uses_notes(found, "shop") == (
        "runs as ServiceAccount shop/deployer, with its API token mounted",
        "reaches Secrets: a, b",
        "reaches the node: hostPID",
        "what else the pod can reach could not be read",
    )
    assert previews.uses_notes(Uses(frozenset({"x"})), "shop") == (
        "runs as ServiceAccount shop/x, without an API token",
    )


@pytest.mark.parametrize(
    ("operation", "content", "known"),
    [
        pytest.param(read("GET", f"{POD}/exec"), {"spec": {"serviceAccountName": "x"}}, {"x"}, id="exec"),
        pytest.param(
            read("PATCH", f"{POD}/ephemeralcontainers", {}, MERGE),
            {"spec": {"serviceAccountName": "x"}},
            {"x"},
            id="debug",
        ),
        pytest.param(
            read("PATCH", WEB, {}, MERGE),
            {"spec": {"template": {"spec": {"serviceAccountName": "x"}}}},
            {"x"},
            id="workload",
        ),
        pytest.param(read("PATCH", f"{WEB}/scale", {}, MERGE), {"spec": {}}, None, id="scale"),
        pytest.param(read("PATCH", f"{NS}/configmaps/x", {}, MERGE), {"spec": {}}, None, id="no pod"),
    ],
)
def test_pod_uses(operation, content, known):
    found = previews.pod_uses(operation, content)
    assert (found and set(found.service_accounts)) == known


def test_a_question_about_rights():
    spec = previews.rights_question("shop", "deployer", 7)["spec"]
    assert spec["user"] == "system:serviceaccount:shop:deployer"
    assert set(spec["groups"]) == {"system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"}
    assert spec["resourceAttributes"] == {
        "verb": "create", "group": "", "resource": "pods", "subresource": "exec", "namespace": "shop",
    }  # fmt: skip
    assert "namespace" not in previews.rights_question("shop", "deployer", 0)["spec"]["resourceAttributes"]


N = len(previews.RIGHTS)


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        pytest.param([True] * N, "may do everything everywhere", id="everything"),
        pytest.param([False] * N, "may do nothing of what was asked about", id="nothing"),
        pytest.param([None] * N, "could not be computed: no answer came", id="nobody knows"),
        pytest.param([False] * (N - 1) + [True], "may delete deployments in shop", id="one"),
        pytest.param([False] * (N - 1) + [None], "1 of 9 questions about it could not be computed", id="not all of it"),
    ],
)
def test_rights(answers, text):
    assert text in previews.rights_note("shop", "deployer", answers, "no answer came")


# ----- all of it -----


def test_never_silently_empty():
    assert "could not be computed" in previews.preview().notes[0]
    assert previews.preview(Difference("x")).notes == ()


def test_the_parts_of_a_preview():
    shown = previews.preview(
        Difference("+a", ("cut",)),
        reach=Reach({"pods": 2, "secrets": 0}, ("shop/a",), exact=False),
        names=["shop/b", "shop/a"],
        notes=["one", "one", "two\x1b"],
        argv=["sh", "\x1b]0;x"],
    )
    assert shown.diff == "+a"
    assert dict(shown.counts) == {"pods": 2}
    assert (shown.names, shown.exact) == (("shop/a", "shop/b"), False)
    assert shown.notes == ("one", "two\\u001b", "cut")
    assert shown.argv == ("sh", "\\u001b]0;x")


def test_a_preview_is_bounded():
    shown = previews.preview(names=map(str, range(1000)), notes=["x" * 9000], argv=["y"] * 1000)
    assert len(shown.names) == previews.MAX_NAMES
    assert len(shown.argv) == previews.MAX_ARGV
    assert max(map(len, (*shown.notes, *shown.argv))) < previews.MAX_NOTE + 100
    assert "the command has 1000 words" in shown.notes[-1]


def test_a_script_is_shown_as_far_as_it_can_be():
    assert previews.preview(argv=["sh", "-c", "x" * 3000]).argv[2] == "x" * 3000
    shown = previews.preview(argv=["x" * previews.MAX_WORD] * 6)
    assert len(shown.argv) == 4
    assert "only the first 4 are shown" in shown.notes[-1]
