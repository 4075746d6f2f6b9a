"""
What a request costs, against how much there is of something: rules, budgets, open watches, recorded sessions,
items of a list.

Each curve has a gateway for each of its points, all running at once, and the load goes to one after the other,
several times: what else the machine does meets all of them, and what the API server has to do is the same for all.
"""

import contextlib
import http.client
import json
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from addons.core import sessions
from tests.bench import large, report, ways
from tests.bench.report import Sample, Spread
from tests.bench.ways import Way
from tests.cluster.build import Progress
from tests.cluster.controlplane import ControlPlane

LIST = large.SHORT
ITEMS = "items"  # the namespace with many of them
RULES = (10, 100, 1000)
KINDS = ("others' resources", "its resource, other namespaces", "its resource, CEL")
BUDGETS = (0, 10, 100)
WATCHES = (0, 500, 2000)
SESSIONS = (1, 10, 1000)
SIZES = (10, 100, 1000, 10_000)
COUNTED = 10  # requests for a point of the curve of long lists
RECORDED = 20  # requests of each session
WRITERS = 4  # threads that make the items
HEAD = """apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: bench}
rules:
- {name: everything, action: allow, match: {verbs: ["*"]}}
"""
SETTLE = 6.0  # seconds after the start of a gateway, in which it reads and compiles


@dataclass(frozen=True, slots=True)
class Point:
    """One place on a line of a curve."""

    line: str
    x: int
    cpu: Spread  # ms of processor time a request
    p50: Spread  # ms
    failures: int


class Loads(Protocol):
    """tests.bench.__main__.Load, for one curve."""

    def run(self, way: Way, path: str, number: int) -> Sample: ...

    def hold(self, way: Way, path: str, count: int) -> contextlib.AbstractContextManager[int]: ...


def rules(count: int, kind: str) -> str:
    """A policy with so many rules, none of which is about the request that is made."""
    texts = (
        "resources: [widgets{i}.example.com]",
        "resources: [configmaps], namespaces: [elsewhere-{i}]",
        "resources: [configmaps]",
    )
    match = dict(zip(KINDS, texts, strict=True))[kind]
    when = """, when: 'identity.username == "nobody-{i}"'""" if kind.endswith("CEL") else ""
    one = f"- {{{{name: r{{i}}, action: deny, match: {{{{{match}}}}}{when}}}}}\n"
    return HEAD + "".join(one.format(i=i) for i in range(count))


def budgets(count: int) -> str:
    """A policy with so many budgets, each of which counts the request."""
    one = (
        "- {{name: b{i}, match: {{verbs: [list], resources: [configmaps]}}, limit: 10000, window: 1s, per: identity}}\n"
    )
    return HEAD + ("budgets:\n" + "".join(one.format(i=i) for i in range(count)) if count else "")


class Bench:
    def __init__(self, folder: Path, cluster: ControlPlane, load: Loads, rounds: int, tell: Progress) -> None:
        self.folder, self.cluster, self.load, self.rounds, self.tell = folder, cluster, load, rounds, tell
        self.found: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def gateways(self, curve: str, policies: Sequence[str]) -> Iterator[list[Way]]:
        with contextlib.ExitStack() as all_of_them:
            running = []
            for number, text in enumerate(policies):
                folder = self.folder / curve / str(number)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "policy.yaml").write_text(text)
                one = ways.gateway_with(folder, self.cluster, [folder / "policy.yaml"])
                running.append(all_of_them.enter_context(one))
            threading.Event().wait(SETTLE)
            yield running

    def points(
        self, curve: str, at: Sequence[tuple[str, int, Way, str]], run: Callable[[Way, str, int], Sample] | None = None
    ) -> list[Point]:
        """at: line, x, way and path of each."""
        run = run or self.load.run
        seen: list[list[Sample]] = [[] for _ in at]
        for number in range(1, self.rounds + 1):
            for (line, x, way, path), samples in zip(at, seen, strict=True):
                samples.append(run(way, path, number))
                s = samples[-1]
                self.tell(f"{curve}  {number}/{self.rounds}  {line} {x}: CPU {s.cpu:.2f} ms, p50 {s.p50:.2f} ms")
        return [
            Point(
                line,
                x,
                report.spread(s.cpu for s in samples),
                report.spread(s.p50 for s in samples),
                sum(s.failures for s in samples),
            )
            for (line, x, *_), samples in zip(at, seen, strict=True)
        ]

    def rules(self) -> list[Point]:
        cases = [(kind, count) for kind in KINDS for count in RULES]
        with self.gateways("rules", [rules(count, kind) for kind, count in cases]) as running:
            return self.points("rules", [(*case, way, LIST) for case, way in zip(cases, running, strict=True)])

    def budgets(self) -> list[Point]:
        with self.gateways("budgets", [budgets(count) for count in BUDGETS]) as running:
            return self.points("budgets", [("", n, way, LIST) for n, way in zip(BUDGETS, running, strict=True)])

    def watches(self) -> list[Point]:
        path = LIST.partition("?")[0] + "?watch=true"
        with self.gateways("watches", [HEAD for _ in WATCHES]) as running, contextlib.ExitStack() as held:
            for count, way in zip(WATCHES, running, strict=True):
                before = way.memory()
                if count:
                    opened = held.enter_context(self.load.hold(way, path, count))
                    self.tell(
                        f"{opened} watches are open, {(way.memory() - before) * 1024 / max(opened, 1):.0f} KB each"
                    )
            idle = [way.cpu() for way in running]
            threading.Event().wait(SETTLE)
            used = [(way.cpu() - was) / SETTLE * 100 for way, was in zip(running, idle, strict=True)]
            self.found["watches_idle_percent_of_a_core"] = dict(zip(WATCHES, used, strict=True))
            return self.points("watches", [("", n, way, LIST) for n, way in zip(WATCHES, running, strict=True)])

    def recordings(self) -> list[Point]:
        """The folder of recordings with so many sessions of somebody else; and what a request takes on the disk."""
        with self.gateways("recorded", [HEAD]) as (one,):
            for _ in range(RECORDED):
                large.get(LIST)(one)
        made = self.folder / "recorded" / "0" / "recordings"
        [session] = [made / path for path in recorded(made)]
        index = sessions.read_index((session / "session.json").read_bytes())
        each = index.size / max(index.requests, 1)
        self.found["recorded_bytes_a_request"] = each
        self.tell(f"{each:.0f} bytes on the disk for a request")
        for number, count in enumerate(SESSIONS):
            for i in range(count):
                path = sessions.session_path("somebody", 1_790_000_000 + i, f"{i:06d}")
                shutil.copytree(session, self.folder / "recordings" / str(number) / "recordings" / path)
        with self.gateways("recordings", [HEAD for _ in SESSIONS]) as running:
            return self.points("recordings", [("", n, way, LIST) for n, way in zip(SESSIONS, running, strict=True)])

    def items(self) -> list[Point]:
        self.tell(f"making {max(SIZES)} ConfigMaps")
        make(self.cluster, max(SIZES))
        direct = Way("direct", self.cluster.url, self.cluster.ca_file, self.folder / "admin.token")
        direct.token_file.touch(0o600)
        direct.token_file.write_text(self.cluster.admin_token)
        with self.gateways("items", [HEAD]) as (one,):
            path = f"/api/v1/namespaces/{ITEMS}/configmaps?limit="
            both = [("direct", direct), ("gateway", one)]
            return self.points("items", [(name, n, way, f"{path}{n}") for n in SIZES for name, way in both], counted)


CURVES: Mapping[str, Callable[[Bench], list[Point]]] = {
    "rules": Bench.rules,
    "budgets": Bench.budgets,
    "watches": Bench.watches,
    "recordings": Bench.recordings,
    "items": Bench.items,
}
TITLES = {
    "rules": "rules",
    "budgets": "budgets that count it",
    "watches": "open watches",
    "recordings": "recorded sessions in the folder",
    "items": "items of the list",
}


def counted(way: Way, path: str, number: int) -> Sample:
    """Some requests one after the other, for what is so slow that few end within the time of a load."""
    took = []
    with contextlib.closing(large.connect(way)) as connection:
        large.read(way, path, connection)
        used = way.cpu()
        for _ in range(COUNTED):
            started = time.monotonic()
            large.read(way, path, connection)
            took.append((time.monotonic() - started) * 1000)
    used = way.cpu() - used
    rate = COUNTED / sum(took) * 1000
    return Sample(
        way.name, path, number, rate, statistics.median(took), max(took), used / COUNTED * 1000, way.memory(), 0
    )


def recorded(folder: Path) -> list[str]:
    paths = (f.parent.relative_to(folder).as_posix() for f in folder.glob("*/*/*/session.json"))
    return [path for path in paths if sessions.is_session_path(path)]


def make(cluster: ControlPlane, count: int) -> None:
    cluster.api("POST", "/api/v1/namespaces", {"metadata": {"name": ITEMS}})
    failed: list[str] = []

    def some(first: int) -> None:
        way = Way("direct", cluster.url, cluster.ca_file, Path())
        with contextlib.closing(large.connect(way)) as connection:
            for number in range(first, count, WRITERS):
                body = json.dumps({"metadata": {"name": f"item-{number}"}, "data": {"color": "blue", "level": "info"}})
                head = {"Authorization": f"Bearer {cluster.admin_token}", "Content-Type": "application/json"}
                connection.request("POST", f"/api/v1/namespaces/{ITEMS}/configmaps", body, head)
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != http.HTTPStatus.CREATED:
                    failed.append(text.decode(errors="replace"))
                    return

    threads = [threading.Thread(target=some, args=(first,)) for first in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise ChildProcessError(f"the ConfigMaps of a long list could not be made: {failed[0][:300]}")


def measure(bench: Bench, wanted: Sequence[str]) -> dict[str, list[Point]]:
    return {name: CURVES[name](bench) for name in wanted}


def rows(curves: Mapping[str, Sequence[Point]]) -> list[list[str]]:
    table = [["curve", "line", "how many", "CPU ms/req (min–max)", "p50 ms (min–max)", "failed"]]
    for name, points in curves.items():
        for p in points:
            both = [f"{s.middle:.2f} ({s.low:.2f}–{s.high:.2f})" for s in (p.cpu, p.p50)]
            table.append([name, p.line, str(p.x), both[0] if p.cpu.high else "", both[1], str(p.failures)])
    return table


def finish(out: Path, curves: Mapping[str, Sequence[Point]], where: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    print(report.text(rows(curves)))
    for name, value in more.items():
        print(f"{name}: {value}")
    made = {"machine": dict(where), **more, "curves": {name: [asdict(p) for p in ps] for name, ps in curves.items()}}
    (out / "curves.json").write_text(json.dumps(made, indent=1) + "\n")
    draw(curves, out / "curves.png")


def draw(curves: Mapping[str, Sequence[Point]], path: Path) -> None:
    import matplotlib as mpl  # only what draws needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(curves), figsize=(3.2 * len(curves), 5), layout="constrained", squeeze=False)
    for column, (name, points) in enumerate(curves.items()):
        for axis, field, label in ((axes[0][column], "cpu", "CPU a request, ms"), (axes[1][column], "p50", "p50, ms")):
            for line in dict.fromkeys(p.line for p in points):
                mine = [p for p in points if p.line == line and getattr(p, field).high]
                found = [getattr(p, field) for p in mine]
                axis.errorbar(
                    [p.x for p in mine],
                    [s.middle for s in found],
                    yerr=[[s.middle - s.low for s in found], [s.high - s.middle for s in found]],
                    marker="o",
                    markersize=3,
                    linewidth=1,
                    elinewidth=0.6,
                    label=line,
                )
            axis.set_xscale("symlog", linthresh=10)
            if name == "items":
                axis.set_yscale("log")
            else:
                axis.set_ylim(bottom=0)
            axis.set_ylabel(label if column == 0 else "", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(linewidth=0.4, alpha=0.6)
        axes[1][column].set_xlabel(TITLES[name], fontsize=8)
        if any(p.line for p in points):
            axes[0][column].legend(fontsize=6, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def growth(sizes: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """
    Of (requests so far, MB): MB in the middle of what follows the first tenth, and how many percent the last
    tenth is above the tenth after the first. The first fills caches.
    """
    tenth = max(len(sizes) // 10, 1)
    after, last = sizes[tenth : 2 * tenth] or sizes, sizes[-tenth:]
    begin, end = (statistics.median(mb for _, mb in some) for some in (after, last))
    return statistics.median(mb for _, mb in sizes[tenth:] or sizes), (end / begin - 1) * 100
