"""Numbers of many rounds as a table, as JSON, and as a picture."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BASE = "mitmdump"  # what the others are compared with


@dataclass(frozen=True, slots=True)
class Sample:
    """One way in one scenario, in one round."""

    way: str
    scenario: str
    round: int
    rate: float  # requests a second
    p50: float  # ms
    p99: float  # ms
    cpu: float  # ms of processor time a request, in the process between client and API server
    memory: float  # MB of that process
    failures: int


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of several rounds, and how far they were apart."""

    low: float
    middle: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    found = sorted(values)
    return Spread(found[0], statistics.median(found), found[-1]) if found else Spread(0, 0, 0)


def names(samples: Sequence[Sample], field: str) -> list[str]:
    return list(dict.fromkeys(getattr(s, field) for s in samples))


def of(samples: Sequence[Sample], way: str, scenario: str) -> list[Sample]:
    return [s for s in samples if s.way == way and s.scenario == scenario]


def ratio(samples: Sequence[Sample], way: str, scenario: str, base: str = BASE) -> Spread | None:
    """How many times the requests of the base, round by round: what disturbs a round disturbs both."""
    theirs = {s.round: s.rate for s in of(samples, base, scenario)}
    mine = of(samples, way, scenario)
    found = [s.rate / theirs[s.round] for s in mine if theirs.get(s.round)]
    return spread(found) if found else None


def rows(samples: Sequence[Sample]) -> list[list[str]]:
    """The table: a heading, and a line for each scenario and way."""
    heading = ["scenario", "way", "req/s (min–max)", f"x {BASE}", "p50 ms", "p99 ms", "CPU ms/req", "RSS MB", "failed"]
    lines = [heading]
    for scenario in names(samples, "scenario"):
        for way in names(samples, "way"):
            mine = of(samples, way, scenario)
            if not mine:
                continue
            rate = spread(s.rate for s in mine)
            times = ratio(samples, way, scenario)
            between = mine[0].memory > 0
            lines.append(
                [
                    scenario,
                    way,
                    f"{rate.middle:.0f} ({rate.low:.0f}–{rate.high:.0f})",
                    f"{times.middle:.2f}" if times else "",
                    f"{spread(s.p50 for s in mine).middle:.2f}",
                    f"{spread(s.p99 for s in mine).middle:.1f}",
                    f"{spread(s.cpu for s in mine).middle:.2f}" if between else "",
                    f"{max(s.memory for s in mine):.0f}" if between else "",
                    str(sum(s.failures for s in mine)),
                ]
            )
    return lines


def text(table: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    left = 2  # names to the left, numbers to the right
    return "\n".join(
        "  ".join(
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def document(samples: Sequence[Sample], machine: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, for programs."""
    summary = [
        {
            "scenario": scenario,
            "way": way,
            "rate": asdict(spread(s.rate for s in of(samples, way, scenario))),
            "ratio": asdict(found) if (found := ratio(samples, way, scenario)) else None,
            "p50_ms": asdict(spread(s.p50 for s in of(samples, way, scenario))),
            "p99_ms": asdict(spread(s.p99 for s in of(samples, way, scenario))),
            "cpu_ms": asdict(spread(s.cpu for s in of(samples, way, scenario))),
        }
        for scenario in names(samples, "scenario")
        for way in names(samples, "way")
        if of(samples, way, scenario)
    ]
    return {"machine": dict(machine), "summary": summary, **more, "samples": [asdict(s) for s in samples]}


COLORS = {"direct": "#9aa5b1", "mitmdump": "#d98c5f", "tollgate": "#2f6f9f", "peer": "#6b9e6b"}


def draw(samples: Sequence[Sample], path: Path, title: str) -> None:
    """A picture for the README: requests a second, latency and processor time, with the spread of the rounds."""
    import matplotlib as mpl  # only what draws needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    scenarios, ways = names(samples, "scenario"), names(samples, "way")
    panels = [("rate", "requests a second"), ("p50", "p50, ms"), ("cpu", "CPU a request, ms")]
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 3.6), layout="constrained")
    for axis, (field, label) in zip(axes, panels, strict=True):
        shown = [w for w in ways if field != "cpu" or any(s.cpu for s in samples if s.way == w)]
        width = 0.8 / len(shown)
        for i, way in enumerate(shown):
            found = [spread(getattr(s, field) for s in of(samples, way, scenario)) for scenario in scenarios]
            axis.bar(
                [x + (i - (len(shown) - 1) / 2) * width for x in range(len(scenarios))],
                [f.middle for f in found],
                width * 0.92,
                yerr=[[f.middle - f.low for f in found], [f.high - f.middle for f in found]],
                label=way,
                color=COLORS.get(way, "#777777"),
                error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
            )
        axis.set_xticks(range(len(scenarios)), [s.replace(", ", "\n") for s in scenarios], fontsize=8)
        axis.set_title(label, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", linewidth=0.4, alpha=0.6)
        axis.set_axisbelow(True)
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
