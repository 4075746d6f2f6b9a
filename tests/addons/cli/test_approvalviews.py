import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from addons.cli import approvalviews as views
from addons.cli.terminal import Styled, visible
from addons.core import approvals, virtualobjects
from addons.core.approvals import Decider, Item, Phase, Preview
from addons.core.virtualobjects import APPROVALS, REQUESTS
from tests import records

NOW = records.NOW + 60


def served(record):
    resource = REQUESTS if record.access is not None else APPROVALS
    return virtualobjects.of_entry(resource, record, 7, NOW)


def plain(lines):
    return ["".join(part if isinstance(part, str) else part.text for part in line) for line in lines]


def shown(record):
    return "\n".join(plain(views.details(served(record), NOW)))


def test_a_row():
    cells = [visible(c.text if isinstance(c, Styled) else c) for c in views.row(served(records.record()), NOW)]
    assert cells == [
        "apr-7f3k",
        "Pending",
        "tollgate:ci-agent",
        "scale deployment shop/web to 0",
        "agents/new-namespace",
        "delete (14)",
        "60s",
        "14m",
    ]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        pytest.param(
            {"preview": Preview(argv=("mysql", "-e", "drop table x; -- '"))}, "mysql -e 'drop table", id="argv"
        ),
        pytest.param({"preview": Preview(counts={"pods": 3}, exact=False)}, "at least 3 pods", id="at least"),
        pytest.param({"content": {"pods": 3, "secrets": 1}}, "Content     3 pods, 1 secrets", id="content"),
        pytest.param({"repeatable": "a Helm release"}, "Not again   a Helm release", id="cannot be repeated"),
        pytest.param({"waiting": True}, "its client is held until you decide", id="waiting"),
        pytest.param(
            {"items": tuple(Item(f"d{n}", f"delete pod shop/web-{n}") for n in range(130))},
            "Covers      and 30 more",
            id="many items",
        ),
        pytest.param(
            {"items": (Item("d", "delete pod a", used_at=records.NOW, used_by="audit-1"), Item("e", "delete pod b"))},
            "Used        delete pod a at 2027-01-15T08:00:00Z, audit id audit-1",
            id="used",
        ),
        pytest.param({"phase": Phase.VOID, "message": "it changed"}, "Message     it changed", id="message"),
    ],
)
def test_details(fields, text):
    assert text in shown(records.record(**fields))


def test_decisions_and_what_is_missing():
    one = records.record("apr-1", records.hold(needed=2, require_reason=True))
    assert "platform-oncall; 2 people must agree; with a reason" in shown(one)
    one = approvals.decide(one, Decider(records.person("bob", records.ONCALL), False), True, "tested", records.NOW)
    text = shown(one)
    assert "Decision    Approved by bob at 2027-01-15T08:00:00Z because: tested" in text
    assert "Missing     1 more person for agents/new-namespace" in text
    assert "Pending (1 more)" in text


def test_an_access_request():
    text = shown(records.access_request())
    for words in ("accessrequest/acr-1", "Access      delete pods", "Where       namespace shop", "For         30m"):
        assert words in text
    assert "│ clean up after the load test" in text
    everywhere = served(records.access_request())
    everywhere["spec"]["namespace"] = "*"
    assert "Where       all namespaces" in "\n".join(plain(views.details(everywhere, NOW)))


def test_no_text_looks_like_a_field_of_ours():
    """A line break in a field is a space, and in a text of many lines what follows is behind the bar."""
    fake = "x\n  Approvers   nobody needed"
    lines = plain(views.details(served(records.record(summary=fake, message=fake, preview=Preview(fake))), NOW))
    assert not [line for line in map(visible, lines) if line.startswith("  Approvers   nobody")]
    assert "  │   Approvers   nobody needed" in lines


def test_a_diff_in_colours():
    lines = views.details(served(records.record()), NOW)
    styles = {line[1].text: line[1].style for line in lines if len(line) == 2 and isinstance(line[1], Styled)}
    assert styles == {
        "--- live": "bold",
        "+++ after": "bold",
        "@@ -1,2 +1,2 @@": "cyan",
        "-  replicas: 2": "red",
        "+  replicas: 0": "green",
    }


@pytest.mark.parametrize(
    ("path", "value", "same"),
    [
        pytest.param(("metadata", "resourceVersion"), "9", True, id="its version"),
        pytest.param(("status", "waiting"), True, True, id="who waits"),
        pytest.param(("status", "message"), "x", True, id="the message"),
        pytest.param(("status", "phase"), "Approved", False, id="the phase"),
        pytest.param(("status", "decisions"), [{"username": "x"}], False, id="the decisions"),
        pytest.param(("spec", "summary"), "x", False, id="the summary"),
        pytest.param(("spec", "preview"), {}, False, id="the preview"),
        pytest.param(("metadata", "uid"), "x", False, id="another one of that name"),
    ],
)
def test_what_was_shown(path, value, same):
    one = served(records.record())
    other = copy.deepcopy(one)
    other[path[0]][path[1]] = value
    assert (views.what_was_shown(one) == views.what_was_shown(other)) is same


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SPEC_KEYS = [*sorted(served(records.record())["spec"]), "justification", "verbs", "content"]
ODD = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(["Approval", "AccessRequest"]) | JSON,
        "metadata": JSON | st.fixed_dictionaries({"name": JSON, "creationTimestamp": JSON}),
        "spec": JSON | st.dictionaries(st.sampled_from(SPEC_KEYS), JSON),
        "status": JSON | st.fixed_dictionaries({"phase": JSON, "missing": JSON, "decisions": JSON, "validUntil": JSON}),
    },
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first draw builds all strategies; machines are busy
@given(ODD)
def test_whatever_a_server_sends_is_shown(item):
    views.row(item, NOW)
    views.details(item, NOW)
    views.question(item, NOW)
    views.outcome(item)
    views.reference(item)
