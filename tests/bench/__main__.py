"""
How fast: a real control plane, and before it in turn nothing, a bare mitmdump, and the gateway with every
addon and every shipped policy. GETs of a short ConfigMap list over TLS; for each scenario all ways one after the
other, then again, so that what else the machine does meets all of them.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mitmproxy import version

from tests.bench import curves, large, report, ways
from tests.bench.report import Sample
from tests.bench.ways import Way
from tests.cluster import build
from tests.cluster.controlplane import ControlPlane, ControlPlaneError

LIST = "/api/v1/namespaces/shop/configmaps?limit=500"
WATCH = "/api/v1/namespaces/shop/configmaps?watch=true"
WARMUP = 1.0  # seconds of each round that do not count
WATCHES_A_CONNECTION = 50
KUBECTL_RUNS = 5
MILLION_STEP = 10.0  # seconds between looks at the memory; some 10 000 requests


class Scenario(NamedTuple):
    name: str
    connections: int
    streams: int  # 0: HTTP/1.1


SCENARIOS = (
    Scenario("HTTP/1.1, 1 connection", 1, 0),
    Scenario("HTTP/1.1, 8 connections", 8, 0),
    Scenario("HTTP/2, 1 stream", 1, 1),
    Scenario("HTTP/2, 2 × 10 streams", 2, 10),
)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Load:
    """The load generator, pointed at a way."""

    def __init__(self, program: Path) -> None:
        self.program = program

    def command(self, way: Way, path: str, connections: int, streams: int, *more: str) -> list[str]:
        return [
            *(str(self.program), "-url", way.url + path, "-ca", str(way.ca_file), "-token-file", str(way.token_file)),
            *("-connections", str(connections), "-streams", str(streams), *more),
        ]

    def run(self, way: Way, scenario: Scenario, seconds: float, number: int, path: str = LIST) -> Sample:
        # The warm-up first and by itself, so that processor time is only that of what counts.
        self.once(way, scenario, WARMUP, path)
        before = way.cpu()
        found = self.once(way, scenario, seconds, path)
        used, all_of_them = way.cpu() - before, max(found["requests"], 1)
        if found["failures"]:
            tell(f"  {way.name}: {found['failures']} failed, the first: {found.get('failure')}")
        return Sample(
            way.name,
            scenario.name,
            number,
            found["requests"] / found["seconds"],
            found["p50"],
            found["p99"],
            used / all_of_them * 1000,
            way.memory(),
            found["failures"],
        )

    def once(self, way: Way, scenario: Scenario, seconds: float, path: str = LIST) -> dict[str, Any]:
        command = self.command(way, path, scenario.connections, scenario.streams, "-seconds", str(seconds))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
        if done.returncode:
            raise ChildProcessError(done.stderr.strip())
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @contextlib.contextmanager
    def holding(self, way: Way, path: str, count: int) -> Iterator[dict[str, Any]]:
        """So many open streams; what is yielded says how many opened, and after the block how many had ended."""
        connections = max(count // WATCHES_A_CONNECTION, 1)
        command = self.command(way, path, connections, min(count, WATCHES_A_CONNECTION), "-hold")
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if holder.stdin is None or holder.stdout is None:
                raise AssertionError("pipes were asked for")
            opened = json.loads(holder.stdout.readline() or "{}")
            if opened.get("failures"):
                tell(f"  {opened['failures']} watches did not open, the first: {opened.get('failure')}")
            yield opened
            holder.stdin.close()
            opened["ended"] = json.loads(holder.stdout.readline() or "{}").get("ended", 0)
        finally:
            holder.kill()
            holder.wait()


class OfACurve:
    """The load of a curve: the same for each point of it."""

    def __init__(self, load: Load, seconds: float) -> None:
        self.load, self.seconds = load, seconds

    def run(self, way: Way, path: str, number: int) -> Sample:
        return self.load.run(way, SCENARIOS[1], self.seconds, number, path)

    @contextlib.contextmanager
    def hold(self, way: Way, path: str, count: int) -> Iterator[int]:
        with self.load.holding(way, path, count) as opened:
            yield opened.get("opened", 0)


def measured(
    load: Load, running: Sequence[Way], scenarios: Sequence[Scenario], rounds: int, seconds: float
) -> list[Sample]:
    samples = []
    for number in range(1, rounds + 1):
        for scenario in scenarios:
            for way in running:
                sample = load.run(way, scenario, seconds, number)
                samples.append(sample)
                tell(
                    f"round {number}/{rounds}  {scenario.name:24}  {way.name:9} {sample.rate:6.0f}/s  "
                    f"p50 {sample.p50:.2f} ms  p99 {sample.p99:.1f} ms  CPU {sample.cpu:.2f} ms"
                )
    return samples


def commands(cluster: ControlPlane, folder: Path, running: Sequence[Way], rounds: int) -> dict[str, list[float]]:
    """Seconds of whole `kubectl get pods` commands, in alternation."""
    took: dict[str, list[float]] = {way.name: [] for way in running}
    for _ in range(rounds * KUBECTL_RUNS):
        for way in running:
            config = cluster.kubeconfig(
                folder / f"{way.name}.kubeconfig",
                way.url,
                way.ca_file,
                token=way.token_file.read_text(),
                namespace="shop",
            )
            started = time.monotonic()
            cluster.run_kubectl("get", "pods", kubeconfig=config)
            took[way.name].append(time.monotonic() - started)
    return took


def watched(load: Load, way: Way, count: int, seconds: float) -> dict[str, float]:
    """What open watches cost: memory of each, and what others notice of them."""
    scenario = SCENARIOS[1]
    before = load.run(way, scenario, seconds, 0)
    empty = way.memory()
    with load.holding(way, WATCH, count) as opened:
        full = way.memory()
        during = load.run(way, scenario, seconds, 0)
        later = way.memory()
    number = opened.get("opened", 0)
    return {
        "opened": number,
        "ended_early": opened.get("ended", 0),
        "kb_each": (full - empty) * 1024 / max(number, 1),
        "mb_after_load": later,
        "cpu_before": before.cpu,
        "cpu_during": during.cpu,
        "p50_before": before.p50,
        "p50_during": during.p50,
        "rate_before": before.rate,
        "rate_during": during.rate,
    }


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="./run.sh bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    p.add_argument("--seconds", type=float, default=5, help="of each measurement (default: 5)")
    p.add_argument("--rounds", type=int, default=5, help="how often all of it (default: 5)")
    p.add_argument("--only", default="", metavar="A,B", help="only these ways: direct, mitmdump, tollgate, peer")
    p.add_argument("--scenarios", default="", metavar="1,2", help="only these: " + "; ".join(
        f"{i} {s.name}" for i, s in enumerate(SCENARIOS, 1)))  # fmt: skip
    p.add_argument("--peer", default="", metavar="PATH", help="a kube-oidc-proxy to measure as well")
    p.add_argument("--without", default="", metavar="A,B", help="the gateway without these addons, e.g. engine")
    p.add_argument("--watches", type=int, default=2000, help="open watches to measure; 0: none (default: 2000)")
    p.add_argument("--large", action="store_true", help="instead: large lists, logs and copies, and a slow reader")
    p.add_argument("--size", type=int, default=200, metavar="MB", help="of what --large copies (default: 200)")
    p.add_argument("--curves", nargs="?", const=",".join(curves.CURVES), default="", metavar="A,B",
                   help="instead: what a request costs against how much there is of something; all of " +
                   ", ".join(curves.CURVES))  # fmt: skip
    p.add_argument("--million", nargs="?", type=int, const=1_000_000, default=0, metavar="N",
                   help="instead: the gateway's memory over so many requests (1000000: some 20 minutes)")  # fmt: skip
    p.add_argument("--out", type=Path, default=None, metavar="FOLDER", help="where bench.json and bench.png go")
    return p


class UsageError(Exception):
    """Something the caller has to change first; one sentence."""


def chosen(args: argparse.Namespace) -> tuple[list[str], list[Scenario]]:
    """The ways and scenarios that were asked for. Raises UsageError."""
    known = ["direct", "mitmdump", "tollgate", *(["peer"] if args.peer else [])]
    wanted = [w.strip() for w in args.only.split(",") if w.strip()] or known
    for name in wanted:
        if name not in known:
            raise UsageError(f"--only: there is no way {name!r}; there are {', '.join(known)} (peer with --peer PATH)")
    numbers = [n.strip() for n in args.scenarios.split(",") if n.strip()]
    for n in numbers:
        if not n.isascii() or not n.isdigit() or not 1 <= int(n) <= len(SCENARIOS):
            raise UsageError(f"--scenarios: {n!r} is not a number from 1 to {len(SCENARIOS)}")
    for name in filter(None, args.curves.split(",")):
        if name not in curves.CURVES:
            raise UsageError(f"--curves: there is no curve {name!r}; there are {', '.join(curves.CURVES)}")
    if bool(args.large) + bool(args.curves) + bool(args.million) > 1:
        raise UsageError("--large, --curves and --million: one of them at a time")
    if args.size < 1 or args.million < 0:
        raise UsageError("--size must be more than 0, --million not less")
    if args.seconds <= 0 or args.rounds < 1 or args.watches < 0:
        raise UsageError("--seconds and --rounds must be more than 0, --watches not less")
    if not Path("/proc/self/stat").exists():
        raise UsageError("processor time and memory are read from /proc, which only Linux has")
    return list(dict.fromkeys(wanted)), [SCENARIOS[int(n) - 1] for n in numbers] or list(SCENARIOS)


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "processor": next(
            (
                line.partition(":")[2].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            platform.machine(),
        ),
        "python": platform.python_version(),
        "mitmproxy": version.VERSION,
        "load_before": os.getloadavg()[0],
    }


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    try:
        wanted, scenarios = chosen(args)
        return bench(args, wanted, scenarios)
    except (UsageError, OSError, build.BuildError, ControlPlaneError) as e:
        print(f"tollgate: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def bench(args: argparse.Namespace, wanted: Sequence[str], scenarios: Sequence[Scenario]) -> int:
    build.build(tell)
    load, where = Load(ways.load_program(tell)), machine()
    out: Path = args.out or build.cache_folder() / "bench"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tollgate-bench-") as scratch:
        folder = Path(scratch)
        # No audit log: it would be the slowest part of all ways.
        with ControlPlane.start(folder / "cluster", progress=tell, audit=False) as cluster:
            cluster.seed()
            if args.large or args.curves or args.million:
                instead(args, out, folder, cluster, load, where)
                return 0
            tell(f"starting {', '.join(wanted)}")
            with ways.started(folder / "ways", cluster, wanted, args.peer, args.without) as running:
                samples = measured(load, running, scenarios, args.rounds, args.seconds)
                tell("kubectl get pods")
                took = commands(cluster, folder, running, args.rounds)
                watches: dict[str, Any] = {}
                for way in running:
                    if args.watches and way.name in ("tollgate", "peer"):  # mitmdump alone waits for their end
                        tell(f"{args.watches} open watches through {way.name}")
                        watches[way.name] = watched(load, way, args.watches, args.seconds)
    finish(out, samples, where, took, watches)
    return 0


def instead(
    args: argparse.Namespace, out: Path, folder: Path, cluster: ControlPlane, load: Load, where: dict[str, Any]
) -> None:
    """What is measured instead of the table: see the help."""
    if args.large:
        large.finish(out, large.measure(folder / "large", cluster, args.size, args.rounds, tell), where)
    elif args.curves:
        bench = curves.Bench(folder / "curves", cluster, OfACurve(load, args.seconds), args.rounds, tell)
        found = curves.measure(bench, [name for name in args.curves.split(",") if name])
        curves.finish(out, found, where, bench.found)
    else:
        with ways.gateway_with(folder / "million", cluster, ways.POLICIES) as way:
            sizes = million(load, way, args.million)
        (out / "million.json").write_text(json.dumps({"machine": where, "mb_after": sizes}, indent=1) + "\n")
        middle, percent = curves.growth(sizes)
        print(f"{sizes[-1][0]} requests: {middle:.0f} MB, at the end {percent:+.1f} %")


def million(load: Load, way: Way, count: int) -> list[tuple[int, float]]:
    """MB that are resident after so many requests; new connections every some seconds."""
    done, sizes = 0, list[tuple[int, float]]()
    while done < count:
        found = load.once(way, SCENARIOS[3], MILLION_STEP)
        if not found["requests"]:
            raise ChildProcessError(f"no request was answered any more: {found.get('failure')}")
        done += found["requests"]
        sizes.append((done, way.memory()))
        tell(f"{done} requests, {found['failures']} failed, {sizes[-1][1]:.1f} MB")
    return sizes


def finish(
    out: Path, samples: Sequence[Sample], where: dict[str, Any], took: dict[str, list[float]], watches: dict[str, Any]
) -> None:
    print(report.text(report.rows(samples)))
    print(f"\nkubectl get pods, whole command, median of {len(next(iter(took.values())))}:")
    for name, seconds in took.items():
        print(f"  {name:9} {statistics.median(seconds) * 1000:.0f} ms")
    for name, found in watches.items():
        print(
            f"\n{found['opened']} open watches through {name}: {found['kb_each']:.0f} KB each; for others, "
            f"p50 {found['p50_before']:.2f} -> {found['p50_during']:.2f} ms, "
            f"{found['rate_before']:.0f} -> {found['rate_during']:.0f} req/s, "
            f"CPU {found['cpu_before']:.2f} -> {found['cpu_during']:.2f} ms/req"
        )
    more = {"kubectl_get_pods_seconds": took, "watches": watches}
    (out / "bench.json").write_text(json.dumps(report.document(samples, where, more), indent=1) + "\n")
    title = f"GET of a short ConfigMap list, TLS on both sides, {where['cores']} cores for everything"
    report.draw(samples, out / "bench.png", title)
    tell(f"\n{out / 'bench.json'}\n{out / 'bench.png'}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
