import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from addons.core.traces import Parent
from addons.net import tracing

URL = "http://127.0.0.1:4318/v1/traces"


@pytest.fixture
def exported():
    exporter = InMemorySpanExporter()
    tracer = tracing.Tracer(URL, exporter)

    def span(parent, code=200):
        tracer.span("get pods", parent, 100.0, 100.5, {"http.response.status_code": code})
        tracer._provider.force_flush(2000)
        return exporter.get_finished_spans()

    yield span
    tracer.stop()
    tracer.stop()


def test_a_span_joins_the_clients(exported):
    (span,) = exported(Parent(7, 8, True), 503)
    assert (span.context.trace_id, span.parent.span_id) == (7, 8)
    assert (span.start_time, span.end_time) == (100_000_000_000, 100_500_000_000)
    assert span.status.status_code.name == "ERROR"
    assert span.resource.attributes["service.name"] == "tollgate"


def test_without_one_it_begins_a_trace(exported):
    (span,) = exported(None)
    assert span.parent is None
    assert span.status.status_code.name == "UNSET"


def test_what_the_client_does_not_sample_is_not_sent(exported):
    assert exported(Parent(7, 8, False)) == ()


@pytest.mark.parametrize("url", ["", "collector:4318", "ftp://x/", "http://", "http://u:p@x/"])
def test_no_endpoint(url):
    with pytest.raises(tracing.TracingError):
        tracing.Tracer(url)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(tracing.TracingError, match="pip install"):
        tracing.Tracer(URL)
