"""
Report: what recorded sessions come to, per identity, as one HTML page that needs nothing else.

No script, no font, no image from elsewhere, and a policy in the page that forbids them: it is
opened on people's machines and holds other people's text. All of that is escaped.
"""

import html
import json
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from addons.core import auditevents, backtest, sessions
from addons.core.auditevents import EventError
from addons.core.budgets import Charge
from addons.core.model import Identity, Impact
from addons.core.policy import PolicySet

MAX_IDENTITIES = 200  # with a section of their own; more make no page that anybody reads
MAX_ROWS = 12  # of each table of an identity
MAX_TEXT = 300  # characters of a cell
BINS = 48  # of the plot over time
_GRAVE = (Impact.ESCALATE, Impact.EXECUTE, Impact.MASS_DELETE, Impact.DELETE, Impact.REVEAL, Impact.WRITE)


@dataclass(slots=True)
class Far:
    """A request that reached far."""

    total: int
    reach: str
    summary: str
    when: str
    passed: bool


@dataclass(slots=True)
class Share:
    """How much of one budget was used by those who share it."""

    name: str
    key: str
    limit: int
    window: int  # seconds
    taken: list[tuple[float, int]] = field(default_factory=list)  # when (seconds since the epoch), weight

    def peak(self) -> int:
        """At most in any window of its length. Sessions are read one after the other, so it is sorted here."""
        most = running = 0
        inside: deque[tuple[float, int]] = deque()
        for at, weight in sorted(self.taken):
            inside.append((at, weight))
            running += weight
            while inside[0][0] <= at - self.window:
                running -= inside.popleft()[1]
            most = max(most, running)
        return most


@dataclass(slots=True)
class Person:
    """One identity, a program or a human."""

    username: str
    sessions: int = 0
    commands: int = 0
    requests: int = 0
    changed: int = 0
    refused: int = 0
    approvals: set[str] = field(default_factory=set)
    lost: int = 0
    first: str = ""
    last: str = ""
    impacts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    namespaces: Counter[str] = field(default_factory=Counter)
    far: list[Far] = field(default_factory=list)
    shares: dict[tuple[str, str], Share] = field(default_factory=dict)  # those that it took from
    minutes: Counter[tuple[int, bool]] = field(default_factory=Counter)  # since the epoch, and whether refused


class Collector:
    """Reads sessions one after the other; keeps sums."""

    def __init__(self, policies: PolicySet | None = None) -> None:
        self.people: dict[str, Person] = {}
        self.counted = 0  # requests without an identity
        self.notes: list[str] = []
        self.shares: dict[tuple[str, str], Share] = {}
        self._policies = policies
        self._identities: dict[str, Identity] = {}

    def session(self, events: Iterable[Mapping[str, Any]]) -> None:
        tally = sessions.Tally()
        person: Person | None = None

        def watched() -> Iterable[Mapping[str, Any]]:
            for event in events:
                tally.add(event)
                yield event

        for event in backtest.joined(watched()):
            notes = auditevents.notes_of(event)
            if auditevents.COUNTS in notes:
                self.counted += _sum(notes[auditevents.COUNTS])
                continue
            person = self._person(event)
            self._request(person, event, notes)
        if person is not None:
            person.sessions += 1
            person.commands += len(tally.commands)
            person.lost += tally.lost

    def _person(self, event: Mapping[str, Any]) -> Person:
        user = event.get("user")
        name = user.get("username") if isinstance(user, dict) else ""
        username = name if isinstance(name, str) else ""
        return self.people.setdefault(username, Person(username))

    def _request(self, person: Person, event: Mapping[str, Any], notes: Mapping[str, str]) -> None:
        person.requests += 1
        refused = bool(notes.get(auditevents.REFUSED_BY))
        person.refused += refused
        person.changed += sessions.did_change(event)
        if notes.get(auditevents.APPROVAL):
            person.approvals.add(notes[auditevents.APPROVAL])
        when = event.get("requestReceivedTimestamp")
        when = when if isinstance(when, str) else ""
        person.first = min(person.first or when, when)
        person.last = max(person.last, when)
        at = auditevents.seconds(when)
        if at:
            person.minutes[int(at // 60), refused] += 1
        if notes.get(auditevents.IMPACT):
            person.impacts[notes[auditevents.IMPACT]] += 1
        reference = event.get("objectRef")
        if isinstance(reference, dict) and isinstance(reference.get("namespace"), str) and sessions.did_change(event):
            person.namespaces[reference["namespace"]] += 1
        if refused:
            rule = "/".join(p for p in (notes.get(auditevents.POLICY), notes.get(auditevents.RULE)) if p)
            status = event.get("responseStatus")
            message = status.get("message") if isinstance(status, dict) else ""
            why = rule or notes.get(auditevents.REASON, "")
            person.refusals[why, message[:MAX_TEXT] if isinstance(message, str) else ""] += 1
        self._reach(person, event, notes, when, at, refused)

    def _reach(
        self, person: Person, event: Mapping[str, Any], notes: Mapping[str, str], when: str, at: float, refused: bool
    ) -> None:
        wanted = auditevents.REACH in notes or (self._policies is not None and not refused)
        if not wanted:
            return
        try:
            operation = auditevents.operation_of(event)
            identity = self._identity(event, person.username)
        except EventError:
            return
        if operation.reach is not None:
            person.far.append(
                Far(operation.reach.total, notes.get(auditevents.REACH, ""), operation.summary, when, not refused)
            )
            person.far = sorted(person.far, key=lambda one: -one.total)[:MAX_ROWS]
        if self._policies is not None and not refused:
            for charge in self._policies.charges(identity, operation).enforced:
                self._take(person, charge, at)

    def _take(self, person: Person, charge: Charge, at: float) -> None:
        budget = charge.budget
        key = (budget.full_name, charge.key)
        share = self.shares.get(key)
        if share is None:
            share = self.shares[key] = Share(budget.full_name, charge.key, budget.limit, budget.window)
        share.taken.append((at, charge.weight))
        person.shares[key] = share  # others may take from it too

    def _identity(self, event: Mapping[str, Any], username: str) -> Identity:
        found = self._identities.get(username)
        if found is None:
            found = self._identities[username] = auditevents.identity_of(event)
        return found


def _sum(text: str) -> int:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return 0
    return sum(n for n in value.values() if isinstance(n, int)) if isinstance(value, dict) else 0


# ----- the page -----

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#1c2128;background:#fff}
h1{font-size:1.6em}h2{margin-top:2em;border-top:1px solid #ccc;padding-top:.6em;overflow-wrap:anywhere}
table{border-collapse:collapse;margin:.5em 0 1.2em}th,td{text-align:left;padding:.2em .9em .2em 0;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}th{font-weight:600;border-bottom:1px solid #bbb}
td{overflow-wrap:anywhere}.refused{color:#b42318}.quiet{color:#667}svg{display:block;max-width:100%}
text{font:11px system-ui,sans-serif;fill:#556}.a{fill:#3b7dd8}.r{fill:#d1453b}.g{fill:#9aa5b1}
@media(prefers-color-scheme:dark){body{color:#dde3ea;background:#14181d}.refused{color:#ff8a80}text{fill:#9aa}}
"""
_HEAD = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    # Nothing is fetched and nothing runs, whatever somebody's text would like.
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    '<meta name="viewport" content="width=device-width"><title>Tollgate report</title>'
)


def page(collected: Collector, made: str) -> str:
    """The whole page. `made`: when, for people."""
    people = sorted(collected.people.values(), key=lambda p: (-p.refused - p.changed, p.username))
    parts = [_HEAD, f"<style>{_STYLE}</style></head><body>", "<h1>What was recorded</h1>"]
    first = min((p.first for p in people if p.first), default="")
    last = max((p.last for p in people), default="")
    parts.append(f"<p>{_day(first)} to {_day(last)} (UTC). Made {_text(made)}.</p>")
    totals = (
        ("identities", len(people)),
        ("sessions", sum(p.sessions for p in people)),
        ("commands", sum(p.commands for p in people)),
        ("requests", sum(p.requests for p in people)),
        ("changed something", sum(p.changed for p in people)),
        ("refused", sum(p.refused for p in people)),
        ("approvals", len({a for p in people for a in p.approvals})),
        ("refused without an identity", collected.counted),
        ("records lost", sum(p.lost for p in people)),
    )
    parts.append(_table(("", ""), [(name, number) for name, number in totals if number or name == "requests"]))
    minutes: Counter[tuple[int, bool]] = Counter()
    for person in people:
        minutes += person.minutes
    parts.append("<h3>Over time</h3>" + over_time(minutes))
    parts.append(_overview(people))
    parts += [_section(person) for person in people[:MAX_IDENTITIES]]
    if len(people) > MAX_IDENTITIES:
        parts.append(f"<p>{len(people) - MAX_IDENTITIES} more identities have no section of their own.</p>")
    if collected.notes:
        notes = "".join(f"<li>{_text(note)}</li>" for note in collected.notes[:MAX_IDENTITIES])
        parts.append(f"<h2>What could not be read</h2><ul>{notes}</ul>")
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _overview(people: Sequence[Person]) -> str:
    head = ("identity", "sessions", "commands", "requests", "changed", "refused", "approvals", "farthest reach", "last")
    rows = [
        (
            p.username,
            p.sessions,
            p.commands,
            p.requests,
            p.changed,
            p.refused,
            len(p.approvals),
            p.far[0].reach if p.far else "",
            _clock(p.last),
        )
        for p in people[:MAX_IDENTITIES]
    ]
    return "<h3>Identities</h3>" + _table(head, rows)


def _section(person: Person) -> str:
    parts = [f"<h2>{_text(person.username)}</h2>", "<h3>What its requests were</h3>", bars(_impacts(person))]
    if person.shares:
        peaks = [(share, share.peak()) for share in person.shares.values()]
        peaks.sort(key=lambda one: (-one[1] / max(1, one[0].limit), one[0].name, one[0].key))
        parts.append("<h3>Budgets, at most in one window</h3>" + gauges(peaks[:MAX_ROWS]))
    if person.refusals:
        refusals = [(rule, message, count) for (rule, message), count in person.refusals.most_common(MAX_ROWS)]
        more = len(person.refusals) - len(refusals)
        parts.append("<h3>Refusals</h3>" + _table(("rule", "message", "times"), refusals, more))
    if person.far:
        far = [(_clock(f.when), f.summary, f.reach, "" if f.passed else "refused") for f in person.far]
        parts.append("<h3>Farthest reach</h3>" + _table(("when", "request", "would destroy", ""), far))
    if person.namespaces:
        namespaces = person.namespaces.most_common(MAX_ROWS)
        parts.append("<h3>Namespaces it changed</h3>" + _table(("namespace", "changes"), namespaces))
    return "\n".join(parts)


def _impacts(person: Person) -> list[tuple[str, int]]:
    grave = [(impact.word, person.impacts[impact.word]) for impact in _GRAVE if person.impacts[impact.word]]
    known = {word for word, _ in grave}
    return grave + sorted((word, n) for word, n in person.impacts.items() if word not in known)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], more: int = 0) -> str:
    numeric = [bool(rows) and all(isinstance(row[n], int) for row in rows) for n in range(len(head))]
    kinds = [' class="n"' if is_number else "" for is_number in numeric]
    titles = "".join(f"<th{kind}>{_text(name)}</th>" for name, kind in zip(head, kinds, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{kind}>{_text(str(cell))}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    ]
    rest = f'<p class="quiet">and {more} more</p>' if more > 0 else ""
    return f"<table><tr>{titles}</tr>{''.join(lines)}</table>{rest}"


def over_time(minutes: Mapping[tuple[int, bool], int]) -> str:
    """Requests over time: allowed below, refused on top."""
    if not minutes:
        return '<p class="quiet">nothing</p>'
    first, last = min(minutes)[0], max(minutes)[0]
    span = max(1, last - first + 1)
    allowed, refused = [0] * BINS, [0] * BINS
    for (minute, was_refused), count in minutes.items():
        place = (minute - first) * BINS // span
        (refused if was_refused else allowed)[place] += count
    most = max(a + r for a, r in zip(allowed, refused, strict=True))
    height, step = 140, 960 / BINS
    shapes = []
    for n, (a, r) in enumerate(zip(allowed, refused, strict=True)):
        tall, short = a / most * height, r / most * height
        shapes.append(_rect("a", n * step, height - tall, step - 1, tall, f"{a} allowed"))
        shapes.append(_rect("r", n * step, height - tall - short, step - 1, short, f"{r} refused"))
    begin, end = (auditevents.timestamp(m * 60)[:16].replace("T", " ") for m in (first, last))
    labels = (
        f'<text x="0" y="158">{begin}</text><text x="960" y="158" text-anchor="end">{end}</text>'
        f'<text x="0" y="-6">{most} requests</text>'
    )
    return f'<svg viewBox="0 -20 960 185" role="img" aria-label="requests over time">{"".join(shapes)}{labels}</svg>'


def bars(values: Sequence[tuple[str, int]]) -> str:
    """Horizontal bars with their numbers."""
    if not values:
        return '<p class="quiet">nothing</p>'
    most = max(1, *(number for _, number in values))
    shapes = []
    for row, (name, number) in enumerate(values):
        top = row * 20
        grave = name in ("escalate", "execute", "mass-delete", "delete")
        shapes.append(
            f'<text x="110" y="{top + 14}" text-anchor="end">{_text(name)}</text>'
            + _rect("r" if grave else "a", 118, top + 3, number / most * 700, 14, "")
            + f'<text x="{124 + number / most * 700:.1f}" y="{top + 14}">{number}</text>'
        )
    height = len(values) * 20
    return f'<svg viewBox="0 0 960 {height}" role="img" aria-label="requests by impact">{"".join(shapes)}</svg>'


def gauges(shares: Sequence[tuple[Share, int]]) -> str:
    """How full each budget was."""
    shapes = []
    for row, (share, peak) in enumerate(shares):
        top = row * 24
        part = min(1.0, peak / max(1, share.limit))
        name = f"{share.name} {share.key}"[:60]
        shapes.append(
            f'<text x="0" y="{top + 14}">{_text(name)}</text>'
            + _rect("g", 420, top + 4, 400, 12, "")
            + _rect("r" if part >= 1 else "a", 420, top + 4, part * 400, 12, "")
            + f'<text x="828" y="{top + 14}">{peak} of {share.limit} in {share.window} s</text>'
        )
    return f'<svg viewBox="0 0 960 {len(shares) * 24}" role="img" aria-label="budgets">{"".join(shapes)}</svg>'


def _rect(kind: str, x: float, y: float, width: float, height: float, title: str) -> str:
    inside = f"<title>{_text(title)}</title>" if title else ""
    size = f'width="{max(0, width):.1f}" height="{max(0, height):.1f}"'
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" {size}>{inside}</rect>'


def _text(text: str) -> str:
    shown = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    return html.escape(sessions.printable(shown), quote=True)


def _clock(timestamp: str) -> str:
    return timestamp[:19].replace("T", " ")


def _day(timestamp: str) -> str:
    return _text(timestamp[:10]) or "?"
