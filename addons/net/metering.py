"""
Metrics as numbers in Prometheus' own library, and the port where they, /healthz and /readyz are read.

The port is not the gateway's: no request of a client comes here, and nothing here knows a secret.
"""

import asyncio
import json
import logging
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from addons.core import metrics
from addons.core.metrics import Bounded

logger = logging.getLogger(__name__)

READ_TIME = 1.0  # seconds for all that is read from others at a scrape; what comes later is not shown
TICK = 0.25  # seconds between two looks at how late the loop is
STOP_TIME = 0.5  # seconds

_BOUNDS = {
    "rule": metrics.MAX_RULES,
    "cause": metrics.MAX_CAUSES,
    "reason": metrics.MAX_CAUSES,
    "budget": metrics.MAX_BUDGETS,
}
_FAMILIES: Mapping[str, Any] = {
    metrics.COUNTER: CounterMetricFamily,
    metrics.GAUGE: GaugeMetricFamily,
    metrics.HISTOGRAM: HistogramMetricFamily,
}
_REST = 50  # values of any other label, which are ours: impacts, verdicts, phases

type Reading = tuple[str, tuple[str, ...], float]
type Source = Callable[[], Iterable[Reading] | Awaitable[Iterable[Reading]]]


class _Buckets:
    """One histogram: how many values were up to each bound, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0


class Meters(Collector):
    """
    One number for each metric and each of its label values, of this process.

    Kept here and handed to the library when it is read: its own objects take a lock and some 5 µs each
    time, and an exchange has a dozen numbers. For one thread, the loop's.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._series: dict[str, dict[tuple[str, ...], float | _Buckets]] = {key: {} for key in metrics.METRICS}
        self._bounds: dict[tuple[str, str], Bounded] = {}
        for key, metric in metrics.METRICS.items():
            if not metric.labels:
                self._series[key][()] = _Buckets(metric.buckets) if metric.kind == metrics.HISTOGRAM else 0.0
        self.registry.register(self)

    def note(self, name: str, labels: tuple[str, ...], value: float) -> None:
        """
        Count so many, observe, or set, whichever the metric is.

        Raises KeyError and ValueError for what is no metric, or has other labels: mistakes of ours.
        """
        metric, series = metrics.METRICS[name], self._series[name]
        if labels not in series:
            found = zip(metric.labels, labels, strict=True)
            labels = tuple(self._bound(name, label)(text) for label, text in found)
        if metric.kind == metrics.HISTOGRAM:
            buckets = series.get(labels)
            if not isinstance(buckets, _Buckets):
                buckets = series[labels] = _Buckets(metric.buckets)
            buckets.counts[bisect_left(metric.buckets, value)] += 1
            buckets.total += value
        elif metric.kind == metrics.COUNTER:
            before = series.get(labels, 0.0)
            series[labels] = (before if isinstance(before, float) else 0.0) + value
        else:
            series[labels] = float(value)

    def _bound(self, name: str, label: str) -> Bounded:
        found = self._bounds.get((name, label))
        if found is None:
            found = self._bounds[name, label] = Bounded(_BOUNDS.get(label, _REST))
        return found

    def collect(self) -> Iterator[Metric]:
        """For the library."""
        for key, metric in metrics.METRICS.items():
            family: Any = _FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)
            for labels, value in self._series[key].items():
                if isinstance(value, _Buckets):
                    counts = accumulate(value.counts)
                    bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
                    family.add_metric(labels, list(zip(bounds, counts, strict=True)), value.total)
                else:
                    family.add_metric(labels, value)
            yield family

    async def read(self, sources: Iterable[tuple[str, Source]]) -> None:
        """Ask each source for its numbers; one that fails or is late is left out, and the others are not."""
        tasks = {name: asyncio.ensure_future(_ask(source)) for name, source in sources}
        if not tasks:
            return
        done, late = await asyncio.wait(tasks.values(), timeout=READ_TIME)
        for task in late:
            task.cancel()
        seen: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        for name, task in tasks.items():
            if task not in done:
                logger.warning("metrics: %s did not answer within %g s", name, READ_TIME)
            elif (error := task.exception()) is not None:
                logger.error("metrics: %s cannot be read (%s)", name, type(error).__name__)
            else:
                for key, labels, value in task.result():
                    seen.setdefault(key, []).append((labels, value))
        for key, readings in seen.items():
            if metrics.METRICS[key].labels:
                # What is no longer there (a budget of old policies) must not stay as it was.
                self._series[key].clear()
            for labels, value in readings:
                self.note(key, labels, value)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Body and Content-Type."""
        if "application/openmetrics-text" in accept:
            text: bytes = openmetrics.generate_latest(self.registry)  # type: ignore[no-untyped-call]
            return text, openmetrics.CONTENT_TYPE_LATEST
        return exposition.generate_latest(self.registry), exposition.CONTENT_TYPE_LATEST


async def _ask(source: Source) -> list[Reading]:
    found = source()
    return list(await found if isinstance(found, Awaitable) else found)


class Observatory:
    """The port. ready: what /readyz answers. refresh: called before each scrape."""

    def __init__(
        self,
        meters: Meters,
        ready: Callable[[], Mapping[str, Any]],
        refresh: Callable[[], Awaitable[None]],
    ) -> None:
        self._meters = meters
        self._ready = ready
        self._refresh = refresh
        self._runner: web.AppRunner | None = None
        self._lag: asyncio.Task[None] | None = None
        self._started = time.monotonic()
        self._last_lag = 0.0

    async def start(self, host: str, port: int) -> int:
        """Listen; the port. Raises OSError."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_TIME)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self._lag = asyncio.get_running_loop().create_task(self._measure_lag(), name="tollgate loop lag")
        return int(runner.addresses[0][1])

    async def stop(self) -> None:
        """Idempotent."""
        if self._lag is not None:
            self._lag.cancel()
            self._lag = None
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        await self._refresh()
        self._meters.note("ready", (), float(bool(self._ready().get("ready"))))
        body, content_type = self._meters.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.Request) -> web.Response:
        # That it is answered says the most: the loop turns.
        found = {"status": "ok", "uptime": int(time.monotonic() - self._started), "loopLag": round(self._last_lag, 4)}
        return _json(found, 200)

    async def _readyz(self, request: web.Request) -> web.Response:
        found = self._ready()
        if "verbose" in request.query:
            code = 200 if found.get("ready") else 503
            return web.Response(text=metrics.verbose(found), status=code, headers={"Cache-Control": "no-store"})
        return _json(found, 200 if found.get("ready") else 503)

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK
            await asyncio.sleep(TICK)
            self._last_lag = max(loop.time() - due, 0.0)
            self._meters.note("loop_lag_seconds", (), self._last_lag)


def _json(content: Mapping[str, Any], code: int) -> web.Response:
    return web.Response(
        body=json.dumps(content).encode() + b"\n",
        status=code,
        headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
    )
