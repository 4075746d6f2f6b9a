"""
Notices: what people are told, outside of the cluster, of a question that waits for them.

They go through chat rooms, mail and other people's servers, so nothing secret is in them: who asks,
what in one line, which rule, until when, and how to look. No diff, no body, no command line (an
exec's has passwords in it), and nothing that looks like a token or a token's id.

What the client chose is shown where a bold word, a link or a call to everybody could be drawn with
it. There is no one way to escape for all these places, so the letters that any of them gives a
meaning to are replaced by their wide forms, which look alike and mean nothing.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from addons.core import approvals, virtualobjects
from addons.core.approvals import AUDIENCE, Phase, Record

MAX_SUMMARY = 200  # characters
MAX_MESSAGE = 300  # characters of a rule's message
MAX_NAME = 120  # characters of a user's, a group's or a rule's name
MAX_LISTED = 10  # rules, groups or users named

# HTML's, Markdown's, Slack's and Discord's own signs, mentions, and what templates are written with.
_ACTIVE = str.maketrans({char: chr(ord(char) + 0xFEE0) for char in "<>&\"'@*_`~|[]{}\\#!$^="})  # U+FF01 to U+FF5E
# A JWT, a UUID (of an object, or a token's id), and any other long run without a word's end in it.
_LONG = re.compile(
    r"eyJ[\w-]{8,}(?:\.[\w-]*){0,4}|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|[A-Za-z0-9+_=]{28,}"
)
_SHOWN = 6  # characters of such a run
_OBJECT_NAME = re.compile(r"[a-z0-9.-]{1,253}")


@dataclass(frozen=True, slots=True)
class Notice:
    """
    One notice, with nothing in it that must not leave.

    `title` and `text` can be put into a chat, a mail or a page as they are. `data` is for programs:
    texts in one line each, that are still to be escaped for wherever they are put.
    """

    id: str  # the same for each try, and for each process that tells the same
    event: str  # the phase, in lower case: `pending` is a question, the others are how one ended
    name: str
    title: str
    text: str
    data: Mapping[str, Any]


def of_record(record: Record) -> Notice:
    """What is told of a record as it is."""
    kind = virtualobjects.REQUESTS.kind if record.access is not None else virtualobjects.APPROVALS.kind
    # Client-chosen for an AccessRequest, and needed whole to decide; its alphabet is harmless.
    name = record.name if _OBJECT_NAME.fullmatch(record.name) else for_chat(record.name, MAX_NAME)
    event = record.phase.value.lower()
    data = {
        "kind": kind,
        "name": name,
        "phase": record.phase.value,
        "requester": for_data(record.requester.username, MAX_NAME),
        "summary": for_chat(record.summary, MAX_SUMMARY),  # the client's own words: nowhere to be trusted
        "rules": [_rule(asked) for asked in record.asked[:MAX_LISTED]],
        "impacts": list(record.impacts),
        "objects": sum(record.preview.counts.values()),
        "objectsExact": record.preview.exact,
        "created": virtualobjects.time(record.created),
        "expires": virtualobjects.time(record.expires),
        "decidedBy": [for_data(said.username, MAX_NAME) for said in record.decisions[:MAX_LISTED]],
    }
    title, text = _question(record, name) if record.phase is Phase.PENDING else _outcome(record, name)
    return Notice(f"{name}.{int(record.created)}.{event}", event, name, title, text, data)


def payload(notice: Notice) -> bytes:
    """
    The notice as JSON: a webhook's body, a command's standard input.

    `text` is at the top, where the incoming webhooks of several chats look for it.
    """
    content = {
        "apiVersion": virtualobjects.API_VERSION,
        "kind": "Notice",
        "id": notice.id,
        "event": notice.event,
        "title": notice.title,
        "text": notice.text,
        "approval": dict(notice.data),
    }
    return json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()


# ----- the words -----


def _question(record: Record, name: str) -> tuple[str, str]:
    what = for_chat(record.summary, MAX_SUMMARY)
    lines = [f"{for_chat(record.requester.username, MAX_NAME)} asks to: {what}"]
    lines += [
        f"Rule {for_chat(asked.rule, MAX_NAME)}: {for_chat(asked.hold.message, MAX_MESSAGE)}"
        for asked in record.asked[:MAX_LISTED]
    ]
    if impact := _impact(record):
        lines.append(f"Impact: {impact}")
    lines.append(f"Who can decide: {_approvers(record)}")
    lines.append(f"Undecided, it ends at {virtualobjects.time(record.expires)}")
    reference = f"accessrequest/{name}" if record.access is not None else name
    lines.append(f"Look: ./run.sh approvals show {reference}")
    lines.append(f"Decide: ./run.sh approvals approve {reference}, or deny, with a token for {AUDIENCE}")
    return f"Tollgate: {name} waits for a decision", "\n".join(lines)


_OUTCOMES = {
    Phase.APPROVED: "was approved",
    Phase.DENIED: "was denied",
    Phase.EXPIRED: "is over: nobody decided or used it in time",
    Phase.CANCELLED: "was cancelled",
    Phase.USED: "was approved and used",
    Phase.VOID: "is void: what was shown is no longer so",
}


def _outcome(record: Record, name: str) -> tuple[str, str]:
    title = f"Tollgate: {name} {_OUTCOMES.get(record.phase, record.phase.value)}"
    lines = [f"{for_chat(record.requester.username, MAX_NAME)} asked to: {for_chat(record.summary, MAX_SUMMARY)}"]
    if record.decisions:
        # Without their reasons, which are for the requester.
        names = dict.fromkeys(for_chat(said.username, MAX_NAME) for said in record.decisions[:MAX_LISTED])
        lines.append(f"Decided by: {', '.join(names)}")
    return title, "\n".join(lines)


def _impact(record: Record) -> str:
    words = ", ".join(record.impacts)
    total = sum(record.preview.counts.values())
    if not total:
        return words
    least = "" if record.preview.exact else "at least "
    return f"{words}; {least}{total} object{'' if total == 1 else 's'}"


def _approvers(record: Record) -> str:
    names = dict.fromkeys(
        for_chat(name, MAX_NAME)
        for asked in record.asked
        for name in (*asked.hold.approval.groups, *asked.hold.approval.users)
    )
    shown = list(names)[:MAX_LISTED]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _rule(asked: approvals.Asked) -> dict[str, Any]:
    approval = asked.hold.approval
    return {
        "name": for_data(asked.rule, MAX_NAME),
        "message": for_data(asked.hold.message, MAX_MESSAGE),
        "approverGroups": [for_data(name, MAX_NAME) for name in approval.groups[:MAX_LISTED]],
        "approverUsers": [for_data(name, MAX_NAME) for name in approval.users[:MAX_LISTED]],
        "needed": approval.needed,
    }


# ----- texts of others -----


def for_data(text: str, limit: int) -> str:
    """One line of at most so many characters, all of which show, with no long run that could be a secret."""
    line = _LONG.sub(_cut, virtualobjects.plain(" ".join(text.split())))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _cut(found: re.Match[str]) -> str:
    run = found[0]
    if run.isalpha() and run.islower():
        return run  # validatingadmissionpolicybindings: a word
    return f"{run[:_SHOWN]}…"


def for_chat(text: str, limit: int) -> str:
    """The same, with no letter that a chat, a mail program or a template takes for anything but itself."""
    return for_data(text, limit).translate(_ACTIVE).replace("://", "：//")  # no link of the client's
