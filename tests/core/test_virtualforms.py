"""Which form an answer has, and each form."""

import json

import pytest
import yaml

from addons.core import virtualforms
from addons.core.approvals import Preview
from addons.core.virtualforms import JSON, METADATA, METADATA_LIST, TABLE, YAML, Form, negotiate
from addons.core.virtualobjects import APPROVALS, GRANTS, REQUESTS, of_entry
from addons.core.virtualstatus import Problem
from tests import records
from tests.records import NOW, approved, hold, record

KUBECTL = (
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
)
_METADATA = "as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"
METADATA_CLIENT = f"application/vnd.kubernetes.protobuf;{_METADATA},application/json;{_METADATA},application/json"


@pytest.mark.parametrize(
    ("accept", "how", "form"),
    [
        pytest.param("", {}, Form(), id="nothing said"),
        pytest.param("*/*", {}, Form(), id="anything"),
        pytest.param("application/json", {}, Form(), id="JSON"),
        pytest.param("application/yaml", {}, Form(YAML), id="YAML"),
        pytest.param(KUBECTL, {}, Form(kind=TABLE), id="kubectl get"),
        pytest.param(KUBECTL, {"watch": True}, Form(kind=TABLE), id="kubectl get -w"),
        pytest.param(
            "application/json;as=Table;v=v1beta1;g=meta.k8s.io", {}, Form(kind=TABLE, version="v1beta1"), id="older"
        ),
        pytest.param("application/json;as=Table;v=v2;g=meta.k8s.io,application/json", {}, Form(), id="a newer Table"),
        pytest.param("application/vnd.kubernetes.protobuf,application/json", {}, Form(), id="protobuf or JSON"),
        pytest.param("application/cbor,*/*;q=0.1", {}, Form(), id="CBOR or anything"),
        pytest.param("application/json;q=0.5,application/yaml", {}, Form(YAML), id="YAML rather"),
        pytest.param("application/yaml;q=0,application/json;q=0.1", {}, Form(), id="never YAML"),
        pytest.param("application/yaml,application/json", {"watch": True}, Form(), id="events are JSON"),
        pytest.param("application/json;stream=watch", {"watch": True}, Form(), id="events, said so"),
        pytest.param(METADATA_CLIENT.format("List", "List"), {}, Form(kind=METADATA_LIST), id="metadata of a list"),
        pytest.param(METADATA_CLIENT.format("", ""), {"watch": True}, Form(kind=METADATA), id="metadata of a watch"),
        pytest.param(METADATA_CLIENT.format("", ""), {"collection": False}, Form(kind=METADATA), id="metadata of one"),
        pytest.param(METADATA_CLIENT.format("", ""), {}, Form(), id="metadata of one, of a list"),
        pytest.param(KUBECTL, {"include_object": "Object"}, Form(kind=TABLE, include_object="Object"), id="--sort-by"),
    ],
)
def test_negotiate(accept, how, form):
    assert negotiate(accept, **{"collection": True, **how}) == form


@pytest.mark.parametrize(
    ("accept", "how", "code"),
    [
        pytest.param("application/vnd.kubernetes.protobuf", {}, 406, id="protobuf only"),
        pytest.param("application/cbor", {}, 406, id="CBOR only"),
        pytest.param("text/html", {}, 406, id="a browser"),
        pytest.param("application/yaml", {"watch": True}, 406, id="a watch in YAML"),
        pytest.param("application/json;as=Table;v=v9;g=meta.k8s.io", {}, 406, id="a Table of tomorrow"),
        pytest.param("application/json;q=x", {}, 406, id="no weight"),
        pytest.param(KUBECTL, {"include_object": "All"}, 400, id="unknown includeObject"),
    ],
)
def test_what_is_not_served(accept, how, code):
    with pytest.raises(Problem) as problem:
        negotiate(accept, **{"collection": True, **how})
    assert problem.value.failure.code == code


def one(entry, resource=APPROVALS, now=NOW + 65):
    return of_entry(resource, entry, 12, now)


def cells(entry, resource=APPROVALS, now=NOW + 65):
    table = virtualforms.of_object(resource, one(entry, resource, now), Form(kind=TABLE), now)
    return dict(zip([c["name"] for c in table["columnDefinitions"]], table["rows"][0]["cells"], strict=True))


def test_columns_of_an_approval():
    assert cells(record()) == {
        "Name": "apr-7f3k",
        "Phase": "Pending",
        "Requester": "tollgate:ci-agent",
        "Command": "kubectl scale deployment web --replicas=0 -n shop",
        "Rule": "agents/new-namespace",
        "Impact": "delete (14 objects)",
        "Age": "65s",
        "Expires": "13m",
        "Approvers": "platform-oncall",
        "Decided-By": "",
        "Reason": "",
    }


@pytest.mark.parametrize(
    ("entry", "column", "cell"),
    [
        pytest.param(approved(record()), "Decided-By", "alice", id="who"),
        pytest.param(approved(record()), "Reason", "go on", id="why"),
        pytest.param(approved(record()), "Expires", "14m", id="time to use a yes"),
        pytest.param(approved(record("a", hold(needed=2))), "Phase", "Pending (1 more)", id="somebody is missing"),
        pytest.param(record("a", hold(needed=2)), "Phase", "Pending", id="nobody yet"),
        pytest.param(record(command=""), "Command", "scale deployment shop/web to 0", id="no command known"),
        pytest.param(record(command="", summary=""), "Command", "patch deployments.apps/scale", id="nor a summary"),
        pytest.param(record(command="x" * 99), "Command", "x" * 59 + "…", id="a long one"),
        pytest.param(record(command="a\nb\tc"), "Command", "a b c", id="of several lines"),
        pytest.param(record(preview=Preview()), "Impact", "delete", id="nothing counted"),
        pytest.param(
            record(preview=Preview(counts={"pods": 1}, exact=False)), "Impact", "delete (at least 1 object)", id="one"
        ),
        pytest.param(record("a", hold("x"), hold("y")), "Rule", "agents/x,agents/y", id="two rules"),
        pytest.param(record("a", hold(users=("bob",))), "Approvers", "platform-oncall,bob", id="groups and users"),
    ],
)
def test_cells(entry, column, cell):
    assert cells(entry)[column] == cell


def test_columns_of_the_others():
    found = cells(records.access_request(), REQUESTS)
    assert [found[c] for c in ("Verbs", "Resources", "Namespace", "Duration", "Justification")] == [
        "delete", "pods", "shop", "30m", "clean up after the load test",
    ]  # fmt: skip
    found = cells(records.grant(), GRANTS)
    assert [found[c] for c in ("Phase", "Rules", "Expires", "Source", "Approvers", "Revoked-By")] == [
        "Active", "agents/new-namespace", "28m", "acr-1", "alice", "",
    ]  # fmt: skip
    assert cells(records.grant(), GRANTS, NOW + 9999)["Expires"] == "-"


def test_wide_columns_come_last():
    # kubectl drops those of priority 1 without -o wide, wherever they stand; the eye wants them last.
    for columns in virtualforms.COLUMNS.values():
        assert [c.wide for c in columns] == sorted(c.wide for c in columns)


@pytest.mark.parametrize(
    ("include", "shown"),
    [
        pytest.param("None", None, id="nothing"),
        pytest.param("Metadata", METADATA, id="metadata"),
        pytest.param("Object", "Approval", id="all of it"),
    ],
)
def test_rows_have_the_object_that_was_asked_for(include, shown):
    form = Form(kind=TABLE, include_object=include)
    (row,) = virtualforms.of_list(APPROVALS, [one(record())], form, 12, NOW)["rows"]
    assert row.get("object", {}).get("kind") == shown
    assert form.shows_spec is (shown == "Approval")
    assert ("replicas" in json.dumps(row.get("object"))) is form.shows_spec


def test_a_watch_has_its_headers_once():
    table = virtualforms.of_object(APPROVALS, one(record()), Form(kind=TABLE), NOW, headers=False)
    assert table["columnDefinitions"] is None
    assert table["metadata"]["resourceVersion"] == "12"


def test_lists():
    found = virtualforms.of_list(APPROVALS, [one(record())], Form(), 44, NOW)
    assert (found["kind"], found["apiVersion"]) == ("ApprovalList", "tollgate.dev/v1alpha1")
    assert (found["metadata"], len(found["items"])) == ({"resourceVersion": "44"}, 1)
    found = virtualforms.of_list(APPROVALS, [one(record())], Form(kind=METADATA_LIST), 44, NOW)
    assert (found["kind"], found["apiVersion"]) == (METADATA_LIST, "meta.k8s.io/v1")
    assert found["items"][0].keys() == {"kind", "apiVersion", "metadata"}


@pytest.mark.parametrize("media_type", [JSON, YAML])
@pytest.mark.parametrize("kind", ["", TABLE, METADATA_LIST])
@pytest.mark.parametrize("count", [1, 2])
def test_lists_piece_by_piece(media_type, kind, count):
    form, contents = Form(media_type, kind), [one(record(f"apr-{n}")) for n in range(count)]
    frame = virtualforms.frame(APPROVALS, form, 44, NOW)
    pieces = frame.between.join(virtualforms.item(APPROVALS, content, form, NOW) for content in contents)
    written = frame.head + pieces + frame.tail
    read = json.loads(written) if media_type == JSON else yaml.safe_load(written)
    assert read == virtualforms.of_list(APPROVALS, contents, form, 44, NOW)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        pytest.param(Form(), "Approval", id="an object"),
        pytest.param(Form(kind=METADATA), METADATA, id="metadata"),
        pytest.param(Form(kind=TABLE), TABLE, id="a Table"),
    ],
)
def test_bookmarks(form, kind):
    found = virtualforms.bookmark(APPROVALS, form, 12, initial_end=True)
    assert (found["kind"], found["metadata"]) == (
        kind, {"resourceVersion": "12", "annotations": {"k8s.io/initial-events-end": "true"}},
    )  # fmt: skip
    assert "annotations" not in virtualforms.bookmark(APPROVALS, form, 12, initial_end=False)["metadata"]


@pytest.mark.parametrize("media_type", [JSON, YAML])
def test_both_media_types_say_the_same(media_type):
    content = one(record(command="grüße: [1]"))
    written = virtualforms.write(content, Form(media_type))
    assert (json.loads(written) if media_type == JSON else yaml.safe_load(written)) == content


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        pytest.param(-5, "0s", id="not yet"),
        pytest.param(119.9, "119s", id="seconds"),
        pytest.param(125, "2m5s", id="minutes and seconds"),
        pytest.param(180, "3m", id="minutes"),
        pytest.param(3599, "59m", id="many minutes"),
        pytest.param(4 * 3600 + 60, "4h1m", id="hours and minutes"),
        pytest.param(9 * 3600 + 60, "9h", id="hours"),
        pytest.param(3 * 86400 + 7200, "3d2h", id="days and hours"),
        pytest.param(40 * 86400, "40d", id="days"),
    ],
)
def test_ages(seconds, text):
    assert virtualforms.human_duration(seconds) == text
