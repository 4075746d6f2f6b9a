"""
Spans to an OpenTelemetry collector, over OTLP/HTTP, by an optional library.

The library sends in a thread of its own, in batches, and drops what it cannot send: no request waits.
"""

import contextlib
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from addons.core.traces import Parent

QUEUE = 4096  # spans that wait to be sent; the next are dropped
FLUSH = 2000  # milliseconds at the end
SEND = 5  # seconds for one batch


class TracingError(Exception):
    """Traces cannot be sent there; one sentence."""


class Tracer:
    """Raises TracingError without the library, or for an endpoint that is none."""

    def __init__(self, endpoint: str, exporter: Any = None) -> None:
        """exporter: in place of OTLP, for tests."""
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise TracingError("it is not an http(s) URL such as http://127.0.0.1:4318/v1/traces, without a password")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as e:
            raise TracingError("it needs: pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http") from e
        # Once a minute at most is enough about a collector that is down; its own lines are one a batch.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        self._provider = TracerProvider(resource=Resource.create({"service.name": "tollgate"}), shutdown_on_exit=False)
        sent = exporter or OTLPSpanExporter(endpoint=endpoint, timeout=SEND)
        self._provider.add_span_processor(BatchSpanProcessor(sent, max_queue_size=QUEUE))
        self._tracer = self._provider.get_tracer("tollgate")

    def span(
        self, name: str, parent: Parent | None, began: float, ended: float, attributes: Mapping[str, str | int]
    ) -> None:
        """One exchange. Times in seconds since the epoch."""
        from opentelemetry import trace

        context = None
        if parent is not None:
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.sampled else trace.TraceFlags.DEFAULT)
            above = trace.SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)
            context = trace.set_span_in_context(trace.NonRecordingSpan(above))
        span = self._tracer.start_span(
            name,
            context=context,
            kind=trace.SpanKind.SERVER,
            attributes=dict(attributes),
            start_time=int(began * 1e9),
        )
        if int(attributes.get("http.response.status_code", 0) or 0) >= 500:
            span.set_status(trace.StatusCode.ERROR)
        span.end(end_time=int(ended * 1e9))

    def stop(self) -> None:
        """Send what is left, within FLUSH. Idempotent. Blocks."""
        with contextlib.suppress(Exception):  # whatever a collector does, the gateway ends
            self._provider.force_flush(FLUSH)
            self._provider.shutdown()
