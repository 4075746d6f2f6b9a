"""
Metrics: numbers, health and traces of the exchanges, for those who run the gateway.

Stands last and decides nothing: no addon waits for it, the guard demands no stamp of it, and when
it fails only numbers are missing. What is measured is in addons/core/metrics.py; the port where it
is read is its own and no client's.
"""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import ctx, exceptions, http

from addons.core import facts, metrics, traces
from addons.core.doctor import Finding, Level
from addons.mitm import answers, meters
from addons.mitm.exchanges import connected
from addons.net import apiserver, checkups, metering, tracing

logger = logging.getLogger(__name__)


class Metrics:
    name = "tollgate_metrics"

    def __init__(self) -> None:
        self.meters = metering.Meters()
        self.rules = metrics.Bounded(metrics.MAX_RULES)
        self.observatory: metering.Observatory | None = None
        self.tracer: tracing.Tracer | None = None
        self.address: tuple[str, int] | None = None
        self.starting: asyncio.Task[None] | None = None
        self.checkups: checkups.Checkups | None = None
        self.looking: asyncio.Task[None] | None = None
        # What its client says that a request belongs to; its headers are others by the time that it ends.
        self.parents: WeakKeyDictionary[http.HTTPFlow, tuple[traces.Parent | None, float]] = WeakKeyDictionary()
        self.counted: WeakKeyDictionary[http.HTTPFlow, bool] = WeakKeyDictionary()

    def load(self, loader) -> None:
        loader.add_option(
            "tollgate_metrics",
            str,
            "",
            "HOST:PORT where /metrics, /healthz and /readyz are read, over plain HTTP and by whoever reaches it; keep "
            "it on loopback or inside the cluster. Default: nowhere.",
        )
        loader.add_option(
            "tollgate_traces",
            str,
            "",
            "OTLP/HTTP endpoint (http://HOST:4318/v1/traces) that gets a span of each exchange, joined to the client's "
            "traceparent. Needs: pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http. Default: none.",
        )
        # Before any exchange, so that the first has its times too.
        facts.time_stamps(time.monotonic)
        meters.listen(self.note)

    def configure(self, updated: set[str]) -> None:
        if "tollgate_metrics" in updated:
            self.address = address(ctx.options.tollgate_metrics)
        if "tollgate_traces" in updated:
            old, self.tracer = self.tracer, None
            if old is not None:
                old.stop()
            if ctx.options.tollgate_traces:
                try:
                    self.tracer = tracing.Tracer(ctx.options.tollgate_traces)
                except tracing.TracingError as e:
                    raise exceptions.OptionsError(f"tollgate_traces: {e}") from e

    # Not coroutines: a script that is loaded again while running may not have any.

    def running(self) -> None:
        self.starting = asyncio.get_running_loop().create_task(self.start(), name="tollgate metrics")

    async def start(self) -> None:
        if self.address is None:
            return
        self.observatory = metering.Observatory(self.meters, self.readiness, self.refresh)
        try:
            port = await self.observatory.start(*self.address)
        except OSError as e:
            # The requests go on: who cannot see them is no reason to stop them.
            logger.error("metrics: cannot listen on %s:%d: %s", *self.address, e.strerror or e)
            return
        logger.info("metrics, /healthz and /readyz are on http://%s:%d", self.address[0], port)
        self.checkups = checkups.Checkups(subject())
        self.looking = asyncio.get_running_loop().create_task(self.checkups.keep_looking(), name="tollgate doctor")

    def done(self) -> asyncio.Task[None]:
        meters.leave(self.note)
        if self.looking is not None:
            self.looking.cancel()
        facts.time_stamps(None)
        return asyncio.get_running_loop().create_task(self.end(), name="tollgate metrics end")

    async def end(self) -> None:
        if self.observatory is not None:
            await self.observatory.stop()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.stop)  # what is not sent yet; within a few seconds

    def note(self, name: str, labels: tuple[str, ...], value: float) -> None:
        self.meters.note(name, labels, value)

    async def refresh(self) -> None:
        await self.meters.read([*meters.sources(), (self.name, self.readings)])

    def findings(self) -> list[Finding]:
        """What the doctor found when it last looked, and what each addon knows of itself."""
        found = list(self.checkups.findings) if self.checkups is not None else []
        for name, addon in ctx.master.addons.lookup.items():
            tell = getattr(addon, "findings", None)
            if not name.startswith("tollgate_") or name == self.name or not callable(tell):
                continue
            try:
                found += tell()
            except Exception as e:  # what is only said must not make it not ready
                logger.exception("doctor: %s cannot be asked", name)
                found.append(Finding("doctor", Level.WARNING, f"{name} cannot be asked ({type(e).__name__})"))
        return found

    def readings(self) -> list[meters.Reading]:
        looked = self.checkups.readings if self.checkups is not None else ()
        return [*looked, *metrics.doctor_readings(self.findings())]

    def readiness(self) -> dict[str, Any]:
        """Of every addon that can tell, and of the port itself."""
        checks: list[tuple[str, bool, str]] = []
        for name, addon in sorted(ctx.master.addons.lookup.items()):
            if name.startswith("tollgate_") and callable(ready := getattr(addon, "ready", None)):
                detail = getattr(addon, "detail", None)
                checks.append((name.removeprefix("tollgate_"), bool(ready()), detail() if detail else ""))
        server = ctx.master.addons.get("proxyserver")
        stopping = ctx.master.should_exit.is_set()
        listening = bool(server is not None and server.listen_addrs()) and not stopping
        checks.append(("listener", listening, "the gateway is going down" if stopping else ""))
        return metrics.readiness(checks, self.findings())

    # ----- exchanges -----

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if self.tracer is not None:
            parent = traces.parent(flow.request.headers.get_all("traceparent"))
            self.parents[flow] = (parent, time.time())

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """When it is known what becomes of it: a watch that goes on for hours counts now."""
        known = facts.of(flow)
        self.count(flow, known)
        if known.released and known.served_here is None:
            self.meters.note("upstream_responses", (metrics.code_class(flow.response.status_code),), 1)

    def count(self, flow: http.HTTPFlow, known: facts.Facts) -> None:
        if self.counted.get(flow):
            return
        self.counted[flow] = True
        unjudged = flow.response is not None and flow.response is known.refusal
        verdict = metrics.verdict_of(
            released=known.released, approval=known.approval, answered_by=known.answered_by, judged=not unjudged
        )
        rule = metrics.rule_of(known.verdict.policy, known.verdict.rule)
        self.meters.note("requests", (metrics.impact_of(known.operation), verdict, rule), 1)
        if not known.released and flow.response is not None:
            self.meters.note("refusals", (flow.response.headers.get("tollgate-reason", "") or "none",), 1)

    def response(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        if isinstance(known.passed, facts.Stamps):
            found = metrics.phases(known.passed.times, held=bool(known.held_for or known.approval))
            for phase, seconds in found.items():
                self.meters.note("phase_seconds", (phase,), seconds)
            if known.released:
                self.meters.note("added_seconds", (), metrics.added(found))
        if answers.code(flow) != 101:  # an upgraded one has only begun
            self.trace(flow, known, answers.code(flow))

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        self.trace(flow, facts.of(flow), 101)

    def error(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        self.count(flow, known)
        if known.released and known.served_here is None and flow.client_conn.connected:
            self.meters.note("upstream_errors", ("broken" if connected(flow) else "connect",), 1)
        self.trace(flow, known, 0)

    def trace(self, flow: http.HTTPFlow, known: facts.Facts, code: int) -> None:
        parent, began = self.parents.pop(flow, (None, 0.0))
        if self.tracer is None or not began:
            return
        said = traces.attributes(
            known.operation,
            known.identity,
            known.verdict,
            method=flow.request.method,
            code=code,
            request_id=known.audit_id,
        )
        self.tracer.span(traces.name_of(known.operation, flow.request.method), parent, began, time.time(), said)


def subject() -> checkups.Subject:
    """What of this process the doctor looks at; an option is missing where its addon is not in the stack."""
    options = {name: getattr(ctx.options, f"tollgate_{name}", "") for name in ("kubeconfig", "state", "recordings")}
    try:
        server = apiserver.shared(options["kubeconfig"])
    except apiserver.KubeconfigError:
        server = None  # said by those who need it
    named = [(f"--{name}", Path(options[name]).expanduser()) for name in ("state", "recordings") if options[name]]
    certificates = [text.partition("=")[2] or text for text in ctx.options.certs]
    return checkups.Subject(
        server,
        tuple(named),
        Path(certificates[0]).expanduser() if certificates else None,
        impersonates=getattr(ctx.options, "tollgate_upstream_identity", "") != "gateway",
    )


def address(text: str) -> tuple[str, int] | None:
    """`HOST:PORT`, IPv6 in brackets. Raises OptionsError."""
    if not text:
        return None
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise exceptions.OptionsError(f"tollgate_metrics: {text!r} is not HOST:PORT, e.g. 127.0.0.1:9464")
    return host, int(port)


addons = [Metrics()]
