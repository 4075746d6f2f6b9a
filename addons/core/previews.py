"""
Previews: what an approver is shown of a held request, and what of it must still be so at the end.

For a write the difference between the live object and the API server's dry run of the request; for
a delete what goes with it; for exec, attach, debug and port-forward the command and what power the
pod has. `addons.net.previews` fetches; here is decided what is fetched, and how it is put.

Requesters, approvers and auditors all read a preview, so all of it goes through the mask
(addons/core/maskpreviews.py), and every text through `line`: nothing secret, no control character
that a terminal obeys.
"""

import difflib
import enum
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import yaml

from addons.core import admission, blast, canonical, commands, digests, uses
from addons.core.approvals import Preview
from addons.core.maskpreviews import Mask, everything
from addons.core.model import Operation, Reach, RequestInfo, Uses

MAX_LINES = 400  # of a diff; more is nothing a person reads before he says yes
MAX_BYTES = 32 * 1024  # of a diff; an approval is kept, listed and watched
MAX_LINE = 500  # characters
MAX_NOTE = 2000  # characters
MAX_COMPARED = 1000  # lines that differ on either side: difflib's time grows with their product
MAX_OBJECT = 1024 * 1024  # characters of JSON; writing two of them as YAML takes half a second
CONTEXT = 3  # lines around a change
MAX_NAMES = 20  # of objects, and of anything else that a note lists
MAX_ARGV = 64  # words of an exec
MAX_WORD = 4000  # characters of one of them: a script is what the yes is about
MAX_COMMAND = 16_000  # characters of all of them
UNCOUNTED = -1  # in `Record.content`: there may be such objects, nobody could count them

VOLUMES = "persistentvolumeclaims"  # a namespace that got one more is never the one that was approved
_NOISE = frozenset({"managedFields", "resourceVersion", "generation", "selfLink"})


class Kind(enum.Enum):
    """What is to be found out about a request."""

    WRITE = "write"  # dry run and live object
    DELETE = "delete"  # the live object
    NAMESPACE = "namespace"  # everything in it
    DEFINITION = "definition"  # all custom resources of a kind
    COLLECTION = "collection"  # a deletecollection: its objects, by uid
    STREAM = "stream"  # exec, attach, port-forward: the pod
    OTHER = "other"  # nothing but what the request says itself


@dataclass(frozen=True, slots=True)
class Plan:
    """Which requests bring what a preview needs."""

    kind: Kind
    live: str = ""  # target of a GET for the object that the request is about; "" when there is none yet
    dry_run: bool = False
    no_dry_run: str = ""  # why there is none, where one would be looked for


def plan(operation: Operation, target: str) -> Plan:
    """What to ask the API server about this request."""
    info = operation.info
    if not info.is_resource_request:
        return Plan(Kind.OTHER)
    live = live_target(info, target)
    if info.api_group == "" and info.subresource in {*digests.CONNECTS, "proxy"}:
        return Plan(Kind.STREAM, live)
    if info.verb == "deletecollection":
        return Plan(Kind.COLLECTION)
    if blast.takes_one(operation):
        kinds = {
            ("", "namespaces"): Kind.NAMESPACE,
            ("apiextensions.k8s.io", "customresourcedefinitions"): Kind.DEFINITION,
        }
        return Plan(kinds.get((info.api_group, info.resource), Kind.DELETE), live)
    if info.verb not in ("create", "update", "patch"):
        return Plan(Kind.OTHER)  # a read: what it would show is not shown here either
    why = admission.no_preview(operation)
    return Plan(Kind.WRITE, live, dry_run=not why, no_dry_run=why)


def live_target(info: RequestInfo, target: str) -> str:
    """The object that a request is about, to be read: of a subresource that shows no object, the one above it."""
    if not info.name:
        return ""
    path = admission.live_target(target)
    if info.subresource in admission.READABLE and len(info.parts) <= 3:
        return path
    # The head of the path holds no escaped slash (canonical), so it can be cut where the decoded one ends.
    above = len(info.path.strip("/").split("/")) - len(info.parts) + 2
    name = info.name
    if info.subresource == "proxy":
        # `name:port` or `scheme:name:port` (apimachinery, util/net/port_split.go).
        parts = name.split(":")
        name = parts[1] if len(parts) == 3 else parts[0]
    return "/".join((*path.split("/")[:above], quote(name, safe="")))


# ----- what may be shown -----

UNCHANGED = "# the object stays as it is"


def line(text: str, limit: int = MAX_LINE) -> str:
    """One line for a person's terminal: nothing in it is obeyed, turned round, or endless."""
    clean = "".join(c if _is_plain(c) else _ESCAPES.get(c) or f"\\u{ord(c):04x}" for c in text[: limit + 1])
    return clean if len(clean) <= limit else f"{clean[:limit]}… ({len(text)} characters)"


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _is_plain(c: str) -> bool:
    # Cf turns the direction of what follows or hides it (U+202E): an approver would read another command.
    return " " <= c <= "~" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


# ----- the difference -----


@dataclass(frozen=True, slots=True)
class Difference:
    """A unified diff, and what is to be said about it."""

    text: str = ""
    notes: tuple[str, ...] = ()


class _Dumper(yaml.CSafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # every value is written out where it is


def _string(dumper: Any, text: str) -> Any:
    # A file in a ConfigMap is read by its lines.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _string)


def difference(
    operation: Operation, before: Any, after: Any, *, created: bool = False, mask: Mask = everything
) -> Difference:
    """
    What changes, as a diff of YAML. `before` None: a new object. May take a second for a large
    one, so not on the loop.
    """
    status = operation.info.subresource == "status"
    versions = [_quiet(version, status=status, created=created) for version in (before, after) if version is not None]
    if any(len(json.dumps(version)) > MAX_OBJECT for version in versions):
        return Difference("", (f"diff could not be computed: the object has over {MAX_OBJECT} characters",))
    masked = mask(operation.info.full_resource, *versions)
    texts = [yaml.dump(version, Dumper=_Dumper, sort_keys=True, allow_unicode=True, width=10**6) for version in masked]
    old, new = ([], *map(str.splitlines, texts)) if before is None else map(str.splitlines, texts)
    if old == new:
        # As the difference, which is not shown to everybody: of a Secret it confirms a guess at a value.
        return Difference(UNCHANGED)
    return _bounded(_unified(old, new))


def body(operation: Operation, *, mask: Mask = everything) -> Difference:
    """The request's own content, for want of a dry run."""
    content = operation.body
    if content is None:
        return Difference()
    if len(json.dumps(content)) > MAX_OBJECT:
        return Difference("", (f"the request could not be shown: it has over {MAX_OBJECT} characters",))
    (masked,) = mask(operation.info.full_resource, content)
    text = yaml.dump(masked, Dumper=_Dumper, sort_keys=True, allow_unicode=True, width=10**6)
    return _bounded(f"+{one}" for one in ("# the request itself, not what it makes of the object", *text.splitlines()))


def _quiet(content: Any, *, status: bool, created: bool) -> Any:
    """Without what the API server writes by itself, and nobody decides about."""
    if not isinstance(content, dict):
        return content
    noise = _NOISE | {"uid", "creationTimestamp"} if created else _NOISE
    found = {key: value for key, value in content.items() if key != "status" or status}
    metadata = found.get("metadata")
    if isinstance(metadata, dict):
        found["metadata"] = {key: value for key, value in metadata.items() if key not in noise}
    return found


def _unified(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    first = 0
    while first < min(len(old), len(new)) and old[first] == new[first]:
        first += 1
    last = 0
    while last < min(len(old), len(new)) - first and old[-1 - last] == new[-1 - last]:
        last += 1
    if min(len(old), len(new)) - first - last > MAX_COMPARED:
        # Told as one replacement, half of what fits for each side.
        half = MAX_LINES // 2 - 2
        yield from (f"-{one}" for one in old[first : first + half])
        yield "-…"
        yield from (f"+{one}" for one in new[first : first + half])
        yield "+…"
        return
    # Only what differs: lines that come again and again make difflib slow.
    start = max(first - CONTEXT, 0)
    ends = max(last - CONTEXT, 0)
    parts = (old[start : len(old) - ends], new[start : len(new) - ends])
    for one in difflib.unified_diff(*parts, "now", "then", n=CONTEXT, lineterm=""):
        hunk = _HUNK.match(one)
        yield one if hunk is None else f"@@ -{_moved(hunk[1], start)} +{_moved(hunk[2], start)} @@"


def _moved(lines: str, by: int) -> str:
    """`7,3`: where a hunk begins, and how long it is."""
    first, comma, count = lines.partition(",")
    return f"{int(first) + by}{comma}{count}"


_HUNK = re.compile(r"@@ -([0-9,]+) \+([0-9,]+) @@\Z")


def _bounded(lines: Iterable[str]) -> Difference:
    kept: list[str] = []
    size = cut = 0
    for one in lines:
        text = line(one)
        size += len(text.encode()) + 1
        if cut or len(kept) >= MAX_LINES or size > MAX_BYTES:
            cut += 1
        else:
            kept.append(text)
    notes = (f"the diff is cut: {cut} more lines are not shown",) if cut else ()
    return Difference("\n".join(kept), notes)


# ----- deletes -----


def reach_of(operation: Operation) -> Reach:
    """What a request takes away: what was counted, or the one object."""
    info = operation.info
    if operation.reach is not None:
        return operation.reach
    full = commands.full_resource(info.api_group, info.resource)
    return Reach({full: 1}, commands.names_of([commands.object_of(operation)]))


def own_in(operation: Operation, reach: Reach) -> Reach:
    """
    The reach with the request's own object in it. A command's was counted when it became a mass
    delete, and the session is the client's word: what it names later would hide behind what it began with.
    """
    own = commands.object_of(operation)
    own_kind = (operation.info.api_group, operation.info.resource)
    listed = {target[:4] for target in reach.objects}
    if not operation.name or not listed or own in listed:
        return reach
    full = commands.full_resource(*own_kind)
    counts = {**reach.counts, full: reach.counts.get(full, 0) + 1}
    return replace(reach, counts=counts, names=(*commands.names_of([own]), *reach.names))


_DELETE_OPTIONS = (
    *("gracePeriodSeconds", "propagationPolicy", "orphanDependents", "dryRun"),
    "ignoreStoreReadErrorWithClusterBreakingPotential",
)


def delete_notes(operation: Operation, query: canonical.Pairs) -> tuple[str, ...]:
    """How it is deleted: at once (0 s), with its dependents left alone, …; part of what is said yes to."""
    body = operation.body
    if operation.info.subresource == "eviction":
        body = _mapping(body).get("deleteOptions")
    # With a body the API server forgets the query (handlers/delete.go); an eviction's counts beside it.
    given = dict(query) if body is None or operation.info.subresource == "eviction" else {}
    given |= _mapping(body)
    # Background is what happens anyway, and what every kubectl says.
    said = [
        f"{key} {_word(given[key])}" for key in _DELETE_OPTIONS if given.get(key) not in (None, [], "", "Background")
    ]
    return (f"with the options {', '.join(said)}",) if said else ()


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a namespace, or of a kind: `counts` by full resource, UNCOUNTED for what could not be counted."""

    counts: Mapping[str, int]
    names: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        return UNCOUNTED not in self.counts.values()


def content_notes(content: Content) -> tuple[str, ...]:
    missing = sorted(kind for kind, count in content.counts.items() if count == UNCOUNTED)
    if not missing:
        return ()
    return (f"could not be counted, so may be there in any number: {_listed(missing)}",)


def grown(before: Mapping[str, int], now: Mapping[str, int], drift: int) -> tuple[str, str]:
    """
    (why what is in it now is no longer what was approved, why that cannot be told). What went away
    meanwhile harms nobody; every kind counts for itself, so that ten Secrets do not hide behind ten pods.
    """
    unknown = sorted(kind for kind, count in now.items() if count == UNCOUNTED and before.get(kind, 0) != UNCOUNTED)
    if unknown:
        return "", f"what is in it cannot be counted now ({_listed(unknown)})"
    more = {
        kind: count - max(before.get(kind, 0), 0) for kind, count in now.items() if count > max(before.get(kind, 0), 0)
    }
    volumes = more.get(VOLUMES, 0)
    if volumes:
        return f"it holds {volumes} more {VOLUMES} than were shown", ""
    if sum(more.values()) > drift:
        kinds = _listed([f"{count} {kind}" for kind, count in sorted(more.items())])
        return f"it holds more than was shown: {kinds}", ""
    return "", ""


def volumes(claims: Iterable[Any], names: frozenset[str] | None = None) -> tuple[str, ...]:
    """Claims with their size, those of these names (`shop/data`) or all."""
    found = []
    for claim in claims:
        metadata = _mapping(_mapping(claim).get("metadata"))
        name = f"{metadata.get('namespace')}/{metadata.get('name')}"
        if names is not None and name not in names:
            continue
        capacity = _mapping(_mapping(_mapping(claim).get("status")).get("capacity")).get("storage")
        requests = _mapping(_mapping(_mapping(_mapping(claim).get("spec")).get("resources")).get("requests"))
        found.append(f"{name} ({capacity or requests.get('storage') or 'of unknown size'})")
    return (f"volumes: {_listed(sorted(found))}",) if found else ()


# ----- pods -----


def argv_of(query: canonical.Pairs) -> tuple[str, ...]:
    """The command of an exec."""
    return tuple(value for key, value in query if key == "command")


def stream_notes(operation: Operation, query: canonical.Pairs) -> tuple[str, ...]:
    """What of a stream is not in its request."""
    given = dict(query)
    container = given.get("container")
    where = (f"in container {container}",) if container else ()
    match operation.info.subresource:
        case "portforward":
            return (*where, "which ports are forwarded, and what is sent, is not known beforehand")
        case "proxy":
            return (
                f"sends {operation.method} {_target(operation.info.path, query)}",
                "what the program behind the proxy does with it is not known beforehand",
            )
        case "attach":
            return (*where, "interactive: its commands are not known beforehand")
    if _is_true(given.get("stdin")):
        return (*where, "interactive: its commands are not known beforehand, only the program that reads them")
    return where


def _target(path: str, query: canonical.Pairs) -> str:
    pairs = "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in query)
    return f"{path}?{pairs}" if pairs else path


def page_notes(operation: Operation, query: canonical.Pairs) -> tuple[str, ...]:
    """Of a request outside the API: all of it, the summary has the beginning only."""
    return (f"sends {operation.method} {_target(operation.info.path, query)}", "what it does could not be computed")


def body_notes(operation: Operation, size: int) -> tuple[str, ...]:
    """Of a body that nobody here can read."""
    if not size or operation.body is not None:
        return ()
    return (f"with a body of {size} bytes, which is not shown",)


def _is_true(value: str | None) -> bool:
    return value is not None and value.casefold() not in ("false", "0")  # as Go's conversion.go


def uses_notes(found: Uses, namespace: str) -> tuple[str, ...]:
    """What a pod can reach, for people."""
    notes = []
    for account in sorted(found.service_accounts):
        token = "with its API token mounted" if found.token else "without an API token"
        notes.append(f"runs as ServiceAccount {namespace}/{account}, {token}")
    if found.secrets:
        notes.append(f"reaches Secrets: {_listed(sorted(found.secrets))}")
    if found.host:
        notes.append(f"reaches the node: {_listed(sorted(found.host))}")
    if found.unknown:
        notes.append("what else the pod can reach could not be read")
    return tuple(notes)


def pod_uses(operation: Operation, content: Any, *, created: bool = False) -> Uses | None:
    """Of the object with a pod template that a request leaves behind, or goes into."""
    info = operation.info
    if info.subresource in ("", "ephemeralcontainers") or (info.api_group, info.resource) == ("", "pods"):
        return uses.of_object(info.api_group, info.resource, content, exists=not created)
    return None


# A handful of questions that tell what somebody could do with the token, worst first:
# (what a yes is called, verb, group, resource, everywhere).
RIGHTS: tuple[tuple[str, str, str, str, bool], ...] = (
    ("do everything everywhere", "*", "*", "*", True),
    ("give itself any right", "escalate", "rbac.authorization.k8s.io", "clusterroles", True),
    ("act as any user", "impersonate", "", "users", True),
    ("read Secrets everywhere", "get", "", "secrets", True),
    ("delete namespaces", "delete", "", "namespaces", True),
    ("read Secrets in {}", "get", "", "secrets", False),
    ("create pods in {}", "create", "", "pods", False),
    ("run commands in pods in {}", "create", "", "pods/exec", False),
    ("delete deployments in {}", "delete", "apps", "deployments", False),
)


def rights_question(namespace: str, account: str, number: int) -> dict[str, Any]:
    """A SubjectAccessReview for one of RIGHTS."""
    _, verb, group, resource, everywhere = RIGHTS[number]
    plural, _, subresource = resource.partition("/")
    attributes = {"verb": verb, "group": group, "resource": plural, "subresource": subresource}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{namespace}:{account}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
            "resourceAttributes": {**attributes, **({} if everywhere else {"namespace": namespace})},
        },
    }


def rights_note(namespace: str, account: str, answers: Sequence[bool | None], trouble: str = "") -> str:
    """What the ServiceAccount may do, by the answers to RIGHTS; None for one that did not come."""
    who = f"ServiceAccount {namespace}/{account}"
    if answers[0]:
        return f"{who} may do everything everywhere"
    may = [text.format(namespace) for (text, *_), yes in zip(RIGHTS, answers, strict=True) if yes]
    unknown = sum(one is None for one in answers)
    if unknown == len(answers):
        return f"what {who} may do could not be computed: {trouble or 'nobody answered'}"
    end = f"; {unknown} of {len(answers)} questions about it could not be computed" if unknown else ""
    if not may:
        return f"{who} may do nothing of what was asked about (Secrets, pods, deletions, rights of others){end}"
    return f"{who} may {_listed(may)}{end}"


# ----- all of it -----


def preview(
    difference: Difference = Difference(),
    *,
    reach: Reach | None = None,
    names: Iterable[str] = (),
    notes: Iterable[str] = (),
    argv: Sequence[str] = (),
    mask: Mask = everything,
) -> Preview:
    """The preview of these parts: every text masked, and as a terminal may have it, in bounded number."""

    def text(one: str, limit: int = MAX_LINE) -> str:
        return line(str(mask("", one)[0]), limit)

    found = [text(note, MAX_NOTE) for note in dict.fromkeys((*notes, *difference.notes))]
    words: list[str] = []
    # All at once: a flag tells what the word after it is.
    for word in mask("", *argv[:MAX_ARGV]):
        rest = MAX_COMMAND - sum(map(len, words))
        if rest <= 0:
            break
        words.append(line(str(word), min(rest, MAX_WORD)))
    if len(words) < len(argv):
        found.append(f"the command has {len(argv)} words; only the first {len(words)} are shown")
    first = tuple(text(name) for name in dict.fromkeys((*(reach.names if reach else ()), *names)))[:MAX_NAMES]
    counts = {} if reach is None else {line(kind): count for kind, count in reach.counts.items() if count > 0}
    if not found and not difference.text and not counts and not words:
        found.append("impact could not be computed: nothing is known of this request but what it says itself")
    return Preview(difference.text, counts, first, reach.exact if reach else True, tuple(found), tuple(words))


def _listed(words: Sequence[str]) -> str:
    more = len(words) - MAX_NAMES
    return ", ".join(words[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
