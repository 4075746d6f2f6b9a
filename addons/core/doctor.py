"""
What `./run.sh doctor` finds: findings with their weight, and what they add up to.

Pure: what was asked of the cluster, the disk and the clock comes in as values.
"""

import datetime
import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SKEW_WARNING, SKEW_PROBLEM = 5.0, 30.0  # seconds; tokens are judged with 30 of grace (core/tokens.py)
CERTIFICATE_WARNING = 30.0  # days


class Level(enum.IntEnum):
    """How much a finding weighs."""

    OK = 0
    NOTE = 1  # could not be told, or worth knowing
    WARNING = 2  # works, and is not what it should be
    PROBLEM = 3  # does not work, or is dangerous

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked at, what is so, and what to do about it."""

    check: str  # a stable word: "upstream", "clock", …
    level: Level
    text: str
    cure: str = ""


def exit_code(findings: Iterable[Finding], *, strict: bool) -> int:
    """0: good; 1: something to do. strict: warnings count, and what could not be told."""
    limit = Level.NOTE if strict else Level.PROBLEM
    return int(any(finding.level >= limit for finding in findings))


def report(findings: Sequence[Finding], *, strict: bool) -> dict[str, Any]:
    """For `--json`."""
    return {
        "exitCode": exit_code(findings, strict=strict),
        "findings": [
            {"check": one.check, "level": one.level.word, "text": one.text} | ({"cure": one.cure} if one.cure else {})
            for one in findings
        ],
    }


def counted(findings: Iterable[Finding]) -> Mapping[Level, int]:
    """How many of each level, for the last line and for metrics."""
    found = dict.fromkeys(Level, 0)
    for finding in findings:
        found[finding.level] += 1
    return found


def clock(ahead: float) -> Finding:
    """ahead: seconds that this machine's clock is before the API server's; its answers tell whole seconds."""
    text = f"this machine's clock and the API server's are {abs(ahead):.0f} s apart"
    if abs(ahead) > SKEW_PROBLEM:
        return Finding(
            "clock", Level.PROBLEM, text, "set the clock (chrony, systemd-timesyncd): good tokens are refused"
        )
    if abs(ahead) > SKEW_WARNING:
        return Finding("clock", Level.WARNING, text, "set the clock (chrony, systemd-timesyncd)")
    return Finding("clock", Level.OK, "this machine's clock and the API server's agree")


def certificate(check: str, whose: str, not_after: datetime.datetime, now: datetime.datetime, cure: str) -> Finding:
    """How long a certificate lasts."""
    days = (not_after - now).total_seconds() / 86400
    text = f"{whose} lasts until {not_after:%Y-%m-%d} ({days:.0f} days)"
    if days <= 0:
        return Finding(check, Level.PROBLEM, f"{whose} expired on {not_after:%Y-%m-%d}", cure)
    return Finding(check, Level.WARNING, text, cure) if days < CERTIFICATE_WARNING else Finding(check, Level.OK, text)


def listed(words: Sequence[str], most: int = 6) -> str:
    """`a, b and 3 more`."""
    if len(words) <= most:
        return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
    return f"{', '.join(words[:most])} and {len(words) - most} more"


def count(items: Sequence[object], word: str) -> str:
    """`1 user`, `2 users`."""
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"
