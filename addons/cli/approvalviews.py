"""
Approvals and AccessRequests as people read them: rows of a table, and all of one.

From the objects that the gateway serves, of whatever version it is: what is missing or of another
type is left out. Fields of one line stay in one; what has lines of its own stands behind a bar, so
that no text of a client's can look like a field of ours.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from addons.cli.terminal import Line, Part, Styled
from addons.core import virtualforms, virtualobjects

PENDING = "Pending"
CELL = 60  # characters of what a client chose, in a table
HEADERS = ("NAME", "PHASE", "REQUESTER", "ASKS TO", "RULE", "IMPACT", "AGE", "LEFT")
_LABEL = 11  # columns
_PHASES = {"Pending": "yellow", "Approved": "green", "Used": "green", "Denied": "red", "Void": "red"}

type Content = Mapping[str, Any]


# ----- reading objects -----


def at(content: Any, *path: str) -> Any:
    """What is there, or None."""
    for key in path:
        if not isinstance(content, Mapping):
            return None
        content = content.get(key)
    return content


def text(content: Any, *path: str) -> str:
    found = at(content, *path)
    if isinstance(found, bool):
        return str(found).lower()
    return str(found) if isinstance(found, str | int | float) else ""


def texts(content: Any, *path: str) -> list[str]:
    found = at(content, *path)
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def parts(content: Any, *path: str) -> list[Content]:
    found = at(content, *path)
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []


def numbers(content: Any, *path: str) -> dict[str, int]:
    found = at(content, *path)
    return {str(k): v for k, v in found.items() if isinstance(v, int)} if isinstance(found, Mapping) else {}


def name(item: Content) -> str:
    return text(item, "metadata", "name")


def phase(item: Content) -> str:
    return text(item, "status", "phase")


def is_request(item: Content) -> bool:
    return text(item, "kind") == virtualobjects.REQUESTS.kind


def reference(item: Content) -> str:
    """What `show`, `approve` and `deny` call it."""
    return f"accessrequest/{name(item)}" if is_request(item) else name(item)


def needs_reason(item: Content) -> bool:
    return any(at(rule, "requireReason") is True for rule in parts(item, "spec", "rules"))


def what_was_shown(item: Content) -> Any:
    """What a decision is about. The rest of an object says who waits, and the like."""
    return (text(item, "metadata", "uid"), at(item, "spec"), phase(item), at(item, "status", "decisions"))


def seconds(stamp: str) -> float:
    try:
        return virtualobjects.seconds_of(stamp)
    except ValueError:
        return 0.0


# ----- a table -----


def row(item: Content, now: float) -> Sequence[Part]:
    spec = at(item, "spec")
    until = _until(item)
    return (
        reference(item),
        _phase(item),
        _cell(text(spec, "requester", "username")),
        _cell(text(spec, "summary") or text(spec, "command")),
        _cell(",".join(text(rule, "name") for rule in parts(spec, "rules"))),
        _impact(spec),
        virtualforms.human_duration(now - seconds(text(item, "metadata", "creationTimestamp"))),
        virtualforms.human_duration(until - now) if until else "-",
    )


def _phase(item: Content) -> Styled:
    word, missing = phase(item), numbers(item, "status", "missing")
    more = f" ({max(missing.values())} more)" if missing and parts(item, "status", "decisions") else ""
    return Styled(word + more, _PHASES.get(word, "dim"))


def _until(item: Content) -> float:
    if phase(item) == PENDING:
        return seconds(text(item, "spec", "expires"))
    return seconds(text(item, "status", "validUntil")) if phase(item) == "Approved" else 0.0


def _impact(spec: Any) -> str:
    impacts, counts = texts(spec, "impacts"), numbers(spec, "preview", "counts")
    worst = impacts[-1] if impacts else ""  # they are in the order of severity
    return f"{worst} ({_least(spec)}{sum(counts.values())})" if counts else worst


def _least(spec: Any) -> str:
    return "" if at(spec, "preview", "exact") is True else "at least "


def _cell(words: str) -> str:
    line = " ".join(words.split())
    return line if len(line) <= CELL else line[: CELL - 1] + "…"


# ----- all of one -----


def details(item: Content, now: float) -> list[Line]:
    """Everything that a decision is about, and what has become of it."""
    lines: list[Line] = [(Styled(reference(item), "bold"), "  ", _phase(item))]
    message = text(item, "status", "message")
    for label, value in (*_question(item, now), ("Message", message), *_answers(item)):
        if value:
            lines.append(_field(label, value))
    for heading, body in (
        ("Justification", text(item, "spec", "justification")),
        ("Difference", text(item, "spec", "preview", "diff")),
    ):
        if body:
            lines.append((Styled(f"  {heading}", "bold"),))
            lines.extend(_behind_a_bar(body, is_diff=heading == "Difference"))
    return lines


def _question(item: Content, now: float) -> Iterator[tuple[str, str]]:
    spec = at(item, "spec")
    who = at(spec, "requester")
    yield "Requester", text(who, "username")
    yield "Groups", ", ".join(texts(who, "groups"))
    yield "Token", _of(text(who, "credentialID"), "of", text(who, "issuer"))
    yield "Asks to", text(spec, "summary")
    command = text(spec, "command")
    yield "Typed as", f"{command} (the client's word)" if command else ""
    verb = text(spec, "verb")
    yield "Request", _of(f"{verb} {text(spec, 'resource')}" if verb else "", "in", text(spec, "namespace"))
    if is_request(item):
        yield "Access", f"{', '.join(texts(spec, 'verbs'))} {', '.join(texts(spec, 'resources'))}"
        where = text(spec, "namespace")
        yield "Where", "all namespaces" if where == virtualobjects.EVERYWHERE else f"namespace {where}"
        yield "For", text(spec, "duration")
    for rule in parts(spec, "rules"):
        yield "Rule", _of(text(rule, "name"), "says:", text(rule, "message"))
        people = ", ".join((*texts(rule, "approverGroups"), *texts(rule, "approverUsers")))
        needed = at(rule, "needed")
        more = f"; {needed} people must agree" if isinstance(needed, int) and needed > 1 else ""
        yield "Approvers", people + more + ("; with a reason" if at(rule, "requireReason") is True else "")
    yield "Impact", ", ".join(texts(spec, "impacts"))
    yield from _preview(spec)
    yield "Not again", text(spec, "notRepeatable")
    expires = text(spec, "expires")
    left = virtualforms.human_duration(seconds(expires) - now)
    yield "Expires", f"{expires} (in {left})" if expires and phase(item) == PENDING else ""
    waits = at(item, "status", "waiting") is True and phase(item) == PENDING
    yield "Waiting", "its client is held until you decide" if waits else ""


def _preview(spec: Any) -> Iterator[tuple[str, str]]:
    counts = numbers(spec, "preview", "counts")
    yield "Objects", _least(spec) + _counted(counts) if counts else ""
    yield "Names", ", ".join(texts(spec, "preview", "names"))
    content = numbers(spec, "content")
    yield "Content", _counted(content) if content else ""
    argv = texts(spec, "preview", "argv")
    yield "Runs", shlex.join(argv) if argv else ""
    items = parts(spec, "items")
    if len(items) > 1:
        total = at(spec, "itemCount")
        for item in items:
            yield "Covers", text(item, "what")
        if isinstance(total, int) and total > len(items):
            yield "Covers", f"and {total - len(items)} more"
    for note in texts(spec, "preview", "notes"):
        yield "Note", note


def _answers(item: Content) -> Iterator[tuple[str, str]]:
    status = at(item, "status")
    for said in parts(status, "decisions"):
        words = f"{text(said, 'decision')} by {text(said, 'username')} at {text(said, 'time')}"
        yield "Decision", _of(words, "because:", text(said, "reason"))
    for rule, more in numbers(status, "missing").items():
        yield "Missing", f"{more} more {'person' if more == 1 else 'people'} for {rule}"
    yield "Valid until", text(status, "validUntil")
    yield "Grant", text(status, "grant")
    for used in parts(status, "usedBy"):
        yield "Used", f"{text(used, 'what')} at {text(used, 'time')}, audit id {text(used, 'auditID')}"


def _of(first: str, word: str, second: str) -> str:
    return f"{first} {word} {second}" if first and second else first


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items())


def _field(label: str, value: str) -> Line:
    return (Styled(f"  {label.ljust(_LABEL)} ", "dim"), value)


def _behind_a_bar(body: str, *, is_diff: bool) -> Iterator[Line]:
    for line in body.split("\n"):
        # Tabs as spaces, so that the columns of a file are seen as they are.
        shown = line.expandtabs(4)
        style = _diff_style(line) if is_diff else ""
        yield (Styled("  │ ", "dim"), Styled(shown, style) if style else shown)


def _diff_style(line: str) -> str:
    if line.startswith(("+++", "---")):
        return "bold"
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")


# ----- one line -----


def question(item: Content, now: float) -> Line:
    """A question that has come."""
    name_, phase_, who, what, rule, impact, _, left = row(item, now)
    parts_: list[Part] = [Styled(str(name_), "bold"), "  ", phase_, "  ", who, " asks to: ", what]
    return (*parts_, f"  [{rule}]", f"  {impact}" if impact else "", f"  {left} left")


def outcome(item: Content) -> Line:
    """What has become of one."""
    message = text(item, "status", "message")
    return (Styled(f"{reference(item)}  {phase(item)}{f': {message}' if message else ''}", "dim"),)
