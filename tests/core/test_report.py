import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import auditevents, classify, policyfile, report
from addons.core.auditevents import Approved, Asked, Outcome, Stage
from addons.core.model import Action, Identity, Reach, Verdict
from addons.core.report import Collector, Share

T = 1795529002.0
POLICY = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: p}
rules:
- {name: all, action: allow, match: {verbs: [delete], resources: [pods]}}
budgets:
- {name: deletes, match: {impacts: [delete]}, limit: 5, window: 10m, per: identity}
"""


def event(name, *, username="ann", at=T, reach=None, refused="", code=200, message="", method="DELETE", **more):
    target = f"/api/v1/namespaces/shop/pods/{name}"
    operation = replace(classify.classify(method, target, {}, b""), reach=reach)
    return auditevents.build(
        Stage.COMPLETE,
        Asked(f"id-{username}-{name}-{at}", method, target, at),
        Identity(username),
        operation,
        Verdict(Action.DENY if refused else Action.ALLOW, "r", "p"),
        outcome=Outcome(at, code, message=message, refused_by=refused),
        **more,
    )


def collect(*sessions, policies=None):
    collected = Collector(policies)
    for one in sessions:
        collected.session(one)
    return collected


class Tags(HTMLParser):
    """Every tag is closed, and what is in the page."""

    VOID = frozenset({"meta"})

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.seen, self.attributes, self.words = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(page):
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


def test_nothing_is_fetched_and_nothing_runs():
    page = report.page(collect([event("a", reach=Reach({"pods": 3}))]), "now")
    tags = read(page)
    assert not tags.seen & {"script", "link", "img", "iframe", "object", "embed", "form", "a", "base"}
    assert not [a for a in tags.attributes if a[1] in ("src", "href", "action") or a[1].startswith("on")]
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "@import" not in page


def test_what_it_says():
    events = [
        event("a", reach=Reach({"pods": 14}), at=T),
        event("b", at=T + 3600, refused="tollgate_block", code=403, message="rule p/r denies this"),
        event("c", method="GET", approved=Approved("apr-1")),
    ]
    text = " ".join(read(report.page(collect(events, [event("d", username="bob")]), "today")).words)
    assert "2026-11-24 to 2026-11-24 (UTC). Made today." in text
    assert re.search(r"14 pods", text)
    assert "rule p/r denies this" in text
    assert "mass-delete" not in text
    assert "1 refused" in text


def test_sums():
    collected = collect(
        [event("a"), event("b", refused="x", code=403), event("c", method="GET")],
        [event("d"), {"annotations": {auditevents.LOST: "4"}, "auditID": "x", "user": {"username": "ann"}}],
        [auditevents.counted({"a": 5, "b": 2}, T, T, "y")],
    )
    ann = collected.people["ann"]
    assert (ann.sessions, ann.requests, ann.changed, ann.refused, ann.lost) == (2, 5, 2, 1, 4)
    assert ann.impacts == {"delete": 3, "read": 1}
    assert ann.namespaces == {"shop": 2}
    assert collected.counted == 7
    assert "system:anonymous" not in collected.people


def test_budgets_that_were_used():
    policies = policyfile.parse({"p.yaml": POLICY.encode()})
    # In two sessions that overlap, read one after the other; one delete is out of the window, one was refused.
    first = [event("a", at=T), event("b", at=T + 300), event("late", at=T + 5000)]
    second = [event("c", at=T + 60), event("no", at=T + 61, refused="x", code=403), event("r", method="GET")]
    collected = collect(first, second, policies=policies)
    (share,) = collected.people["ann"].shares.values()
    assert (share.name, share.limit, share.window, share.peak()) == ("p/deletes", 5, 600, 3)
    page = report.page(collected, "now")
    assert "3 of 5 in 600 s" in page


def test_a_peak_is_of_one_window():
    share = Share("b", "k", 5, 10, [(0.0, 1), (10.0, 1), (5.0, 2), (100.0, 1)])
    assert share.peak() == 3
    assert Share("b", "k", 5, 10).peak() == 0


def test_an_empty_report():
    assert "nothing" in report.page(collect(), "now")


def test_many_identities_are_cut():
    collected = collect(*([event("a", username=f"user-{n}")] for n in range(report.MAX_IDENTITIES + 5)))
    page = report.page(collected, "now")
    assert "5 more identities have no section of their own." in page
    read(page)


def test_svg_is_well_formed():
    minutes = {(100, False): 5, (100, True): 2, (10_000, False): 1}
    shares = [(Share("<b>", "&", 5, 10), 9), (Share("x", "y", 0, 1), 0)]
    for svg in (report.over_time(minutes), report.bars([("delete", 3), ("<x>", 0)]), report.gauges(shares)):
        ElementTree.fromstring(svg)  # noqa: S314 -- our own text


NASTY = ["<script>alert(1)</script>", "\"'><img src=x onerror=1>", "</title><x>", "&lt;", "\x1b[2J\u202e", "]]>"]


@pytest.mark.parametrize("text", NASTY)
def test_other_peoples_text_is_text(text):
    collected = collect(
        [
            event("a", username=text, reach=Reach({text: 3}), approved=Approved(text)),
            event("b", username=text, refused=text, code=403, message=text),
        ]
    )
    collected.notes.append(text)
    page = report.page(collected, text)
    tags = read(page)
    assert not tags.seen & {"script", "img", "x"}
    assert "\x1b" not in page
    assert "\u202e" not in page


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)
KEYS = "auditID user verb stage responseStatus objectRef requestReceivedTimestamp"
NOTES = [auditevents.COUNTS, auditevents.REACH, auditevents.IMPACT, auditevents.REFUSED_BY, auditevents.OPERATION]
EVENT = st.fixed_dictionaries(
    {"annotations": st.dictionaries(st.sampled_from(NOTES), st.text() | JSON.map(json.dumps))},
    optional=dict.fromkeys(KEYS.split(), JSON),
)


@given(st.lists(EVENT, max_size=4))
def test_any_objects_make_a_page(found):
    read(report.page(collect(found), "now"))
