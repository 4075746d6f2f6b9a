"""
What is measured: names, label values and their bounds, and what one exchange adds to each.

A label has few values, known before or counted here: a client that makes up names must not fill the
memory of whoever collects them. So no user, no object and no path is a label.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from addons.core.doctor import Finding, Level
from addons.core.model import Impact, Operation

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
OTHER = "other"  # stands for every value of a label past its bound
MAX_RULES = 200  # values of `rule`, over all that were ever loaded
MAX_CAUSES = 100  # values of `cause` and `reason`, which are ours and some fifty
MAX_BUDGETS = 100

_FAST = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)  # seconds
_HUMAN = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)  # seconds


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as Prometheus has it; a counter is exported with `_total` behind its name."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """The names of its series."""
        if self.kind == COUNTER:
            return (f"{self.name}_total",)
        if self.kind == HISTOGRAM:
            return tuple(f"{self.name}_{ending}" for ending in ("bucket", "sum", "count"))
        return (self.name,)


METRICS: Mapping[str, Metric] = {
    metric.name.removeprefix("tollgate_"): metric
    for metric in (
        Metric(
            "tollgate_requests",
            COUNTER,
            "Requests by their worst impact, what became of them and the rule that decided.",
            ("impact", "verdict", "rule"),
        ),
        Metric("tollgate_refusals", COUNTER, "Refused requests by cause (the header Tollgate-Reason).", ("cause",)),
        Metric("tollgate_phase_seconds", HISTOGRAM, "Time of each phase of an exchange.", ("phase",), _FAST),
        Metric(
            "tollgate_added_seconds",
            HISTOGRAM,
            "Time that the gateway itself adds to an exchange, without the API server's and people's.",
            (),
            _FAST,
        ),
        Metric("tollgate_exchanges_open", GAUGE, "Requests and streams that are under way."),
        Metric("tollgate_holds_waiting", GAUGE, "Requests that are held open until somebody decides."),
        Metric("tollgate_approvals_pending", GAUGE, "Approvals and AccessRequests that nobody has decided."),
        Metric(
            "tollgate_decision_seconds",
            HISTOGRAM,
            "From the question to its end, by how it ended.",
            ("outcome",),
            _HUMAN,
        ),
        Metric(
            "tollgate_budget_used_ratio",
            GAUGE,
            "What is spent of a budget in its window, of whoever has spent most; 1 is all of it.",
            ("budget",),
        ),
        Metric("tollgate_masked_values", COUNTER, "Secret values that were masked in answers."),
        Metric("tollgate_authentication_failures", COUNTER, "Tokens that were not accepted, by reason.", ("reason",)),
        Metric("tollgate_revocations_in_force", GAUGE, "Revocations that refuse somebody."),
        Metric("tollgate_record_lag_seconds", GAUGE, "Age of the oldest event that is not on disk yet."),
        Metric("tollgate_records_waiting", GAUGE, "Events and pieces of streams that wait for the disk."),
        Metric("tollgate_record_trouble", GAUGE, "1 while nothing can be recorded, so nothing but reads passes."),
        Metric("tollgate_loop_lag_seconds", HISTOGRAM, "How late the event loop comes to its work.", (), _FAST),
        Metric(
            "tollgate_upstream_errors",
            COUNTER,
            "Exchanges that the API server did not finish: connect (never reached) or broken.",
            ("kind",),
        ),
        Metric("tollgate_upstream_responses", COUNTER, "Answers of the API server by class.", ("code",)),
        Metric(
            "tollgate_credential_age_seconds",
            GAUGE,
            "Age of the gateway's own credential: since it was issued, or was read where it does not say.",
        ),
        Metric("tollgate_credential_expires_timestamp_seconds", GAUGE, "When it expires; 0: it does not say."),
        Metric("tollgate_credential_static", GAUGE, "1 when it is good for long and nobody renews it."),
        Metric("tollgate_credential_cluster_admin", GAUGE, "1 when it is cluster-admin, or can make itself so."),
        Metric(
            "tollgate_issuer_keys_age_seconds",
            GAUGE,
            "Since an issuer's keys were fetched; since the start where they never were.",
            ("issuer",),
        ),
        Metric(
            "tollgate_certificate_expires_timestamp_seconds",
            GAUGE,
            "When a certificate expires: serving (the gateway's own) or api-server.",
            ("certificate",),
        ),
        Metric("tollgate_clock_skew_seconds", GAUGE, "How far this machine's clock is before the API server's."),
        Metric("tollgate_policy_generation", GAUGE, "How many sets of policies were loaded since the start."),
        Metric("tollgate_policy_warnings", GAUGE, "What ./run.sh policy check says of the policies in force."),
        Metric("tollgate_policy_stale", GAUGE, "1 when the files are not what is in force: a reload was refused."),
        Metric(
            "tollgate_doctor_findings",
            GAUGE,
            "What the doctor found when it last looked, by what it looked at.",
            ("check", "level"),
        ),
        Metric("tollgate_doctor_looked_timestamp_seconds", GAUGE, "When it last looked; 0: not yet."),
        Metric("tollgate_ready", GAUGE, "1 when every part of the gateway is ready."),
    )
}

IMPACTS = (*(impact.word for impact in Impact), "unknown")
VERDICTS = ("allowed", "approved", "denied", "held", "unauthenticated", "refused", "not-judged")
_BY_ADDON = {"tollgate_authenticate": "unauthenticated", "tollgate_block": "denied", "tollgate_approve": "held"}


class Bounded:
    """The first so many values of a label as they are, all others as OTHER."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._known:
            return value
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(value)
        return value


def impact_of(operation: Operation | None) -> str:
    """The worst of an operation."""
    if operation is None or not operation.impacts:
        return "unknown"
    return max(operation.impacts).word


def verdict_of(*, released: bool, approval: str, answered_by: str, judged: bool) -> str:
    """What became of a request, one of VERDICTS. judged: that an addon answered, or it was released."""
    if released:
        return "approved" if approval else "allowed"
    if not judged and not answered_by:
        return "not-judged"
    return _BY_ADDON.get(answered_by, "refused")


def rule_of(policy: str, rule: str) -> str:
    return f"{policy}/{rule}" if policy and rule else rule


def code_class(code: int) -> str:
    """2xx, and `other` for what is none."""
    return f"{code // 100}xx" if 100 <= code < 600 else OTHER


# ----- phases -----

_REQUEST = ("guard", "authenticate", "classify", "block", "approve", "mask", "record", "upstream")
PHASES = (*_REQUEST[1:], "hold", "api-server", "answer")
_OTHERS = frozenset({"hold", "api-server"})  # not the gateway's own time
_ON_THE_WAY_IN = tuple(
    tuple((addon, (f"tollgate_{addon}", hook)) for addon in _REQUEST) for hook in ("requestheaders", "request")
)


class Times(Protocol):
    """(addon, hook) -> when it left that hook, in seconds."""

    def get(self, stamp: tuple[str, str], /) -> float | None: ...


def phases(times: Times, *, held: bool) -> dict[str, float]:
    """
    Seconds of each phase that was passed, as far as the addons stamped it.

    Each addon has the time since the stamp before its own. held: a person was waited for.
    """
    found: dict[str, float] = {}
    for stamps in _ON_THE_WAY_IN:
        before = None
        for addon, stamp in stamps:
            at = times.get(stamp)
            if at is None:
                continue
            if before is not None and addon != "guard":
                phase = "hold" if held and addon == "approve" else addon
                found[phase] = found.get(phase, 0.0) + max(at - before, 0.0)
            before = at
    sent, head = times.get(("tollgate_upstream", "request")), times.get(("tollgate_guard", "responseheaders"))
    if sent is not None and head is not None:
        found["api-server"] = max(head - sent, 0.0)
    last = times.get(("tollgate_upstream", "responseheaders"))
    if head is not None and last is not None:
        found["answer"] = max(last - head, 0.0)
    first, end = times.get(("tollgate_approve", "response")), times.get(("tollgate_upstream", "response"))
    if first is not None and end is not None:
        found["answer"] = found.get("answer", 0.0) + max(end - first, 0.0)
    return found


def added(found: Mapping[str, float]) -> float:
    """Of these, the gateway's own."""
    return sum(seconds for phase, seconds in found.items() if phase not in _OTHERS)


# ----- readiness -----


def readiness(checks: Iterable[tuple[str, bool, str]], findings: Iterable[Finding] = ()) -> dict[str, Any]:
    """
    The answer of /readyz: (name, ready, detail) of each part, and what the doctor thinks of the rest.

    Findings make nothing not ready: a gateway that is taken out for a warning, or with all others because the
    API server is down, refuses with a broken connection what it could refuse with a sentence.
    """
    parts = {name: {"ready": ready, **({"detail": detail} if detail else {})} for name, ready, detail in checks}
    worst: dict[str, Level] = {}
    for one in findings:
        worst[one.check] = max(one.level, worst.get(one.check, one.level))
    # Direction: a gateway of which no part is known is not ready.
    ready = bool(parts) and all(part["ready"] for part in parts.values())
    # One word each: the text is for the log, since anybody may ask here.
    return {"ready": ready, "parts": parts, "checks": {check: level.word for check, level in sorted(worst.items())}}


def verbose(found: Mapping[str, Any]) -> str:
    """The same in the lines of Kubernetes' own `/readyz?verbose`."""
    lines = [
        f"[+]{name} ok" if part["ready"] else f"[-]{name} failed: reason withheld"
        for name, part in found.get("parts", {}).items()
    ]
    for check, level in found.get("checks", {}).items():
        fine = level in (Level.OK.word, Level.NOTE.word)
        # `+` all the same: it does not count.
        lines.append(f"[+]doctor/{check} ok" if fine else f"[+]doctor/{check} {level}, see the log")
    lines.append("readyz check passed" if found.get("ready") else "readyz check failed")
    return "\n".join(lines) + "\n"


def doctor_readings(findings: Iterable[Finding]) -> list[tuple[str, tuple[str, ...], float]]:
    """How many findings there are of each check and level."""
    counts = Counter((one.check, one.level.word) for one in findings)
    return [("doctor_findings", key, float(count)) for key, count in sorted(counts.items())]
