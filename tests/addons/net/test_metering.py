"""Metrics over real HTTP, as Prometheus reads them."""

import asyncio
import json

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from addons.core import metrics
from addons.net import metering
from addons.net.metering import Meters, Observatory


def values(text):
    """(sample name, labels) -> value, of ours."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("tollgate_")
    }


def shown(meters):
    return values(meters.exposition("")[0].decode())


def test_every_metric_can_be_noted_and_is_exported():
    meters = Meters()
    for key, metric in metrics.METRICS.items():
        meters.note(key, tuple(f"v{label}" for label in metric.labels), 1)
    found = {name for name, *_ in shown(meters)}
    assert {name for metric in metrics.METRICS.values() for name in metric.exported} <= found
    assert b"process_resident_memory_bytes" in meters.exposition("")[0]
    body, kind = meters.exposition("application/openmetrics-text;version=1.0.0")
    assert body.endswith(b"# EOF\n")
    assert "openmetrics" in kind


def test_labels_are_bounded():
    meters = Meters()
    for number in range(metrics.MAX_RULES + 50):
        meters.note("requests", ("read", "allowed", f"p/{number}"), 1)
    rules = [key for key in shown(meters) if key[0] == "tollgate_requests_total"]
    assert len(rules) == metrics.MAX_RULES + 1
    assert shown(meters)["tollgate_requests_total", ("impact", "read"), ("rule", "other"), ("verdict", "allowed")] == 50


def test_a_name_of_nothing_is_a_mistake_of_ours():
    with pytest.raises(KeyError):
        Meters().note("nothing", (), 1)
    with pytest.raises(ValueError, match="zip"):
        Meters().note("requests", ("read",), 1)


async def test_sources_are_read_and_one_that_fails_hides_no_other(caplog, monkeypatch):
    monkeypatch.setattr(metering, "READ_TIME", 0.05)
    meters, budgets = Meters(), [("budget_used_ratio", ("p/a",), 0.5), ("budget_used_ratio", ("p/b",), 1.0)]

    async def late():
        await asyncio.sleep(5)

    async def fine():
        return budgets

    def broken():
        raise RuntimeError("hunter2")

    sources = [("late", late), ("broken", broken), ("fine", fine), ("plain", lambda: [("holds_waiting", (), 3)])]
    await meters.read(sources)
    found = shown(meters)
    assert found["tollgate_holds_waiting",] == 3
    assert found["tollgate_budget_used_ratio", ("budget", "p/b")] == 1.0
    assert "hunter2" not in caplog.text
    assert "late did not answer" in caplog.text
    del budgets[1]
    await meters.read(sources)
    assert ("tollgate_budget_used_ratio", ("budget", "p/b")) not in shown(meters)


@pytest.fixture
async def port():
    ready = {"ready": False, "parts": {}}
    meters = Meters()

    async def refresh():
        meters.note("holds_waiting", (), 7)

    observatory = Observatory(meters, lambda: ready, refresh)
    number = await observatory.start("127.0.0.1", 0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{number}") as client:
        client.__dict__["ready"] = ready
        yield client, ready
    await observatory.stop()
    await observatory.stop()


async def test_the_port(port):
    client, ready = port
    async with client.get("/healthz") as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "ok")
    async with client.get("/readyz") as answer:
        assert (answer.status, await answer.json()) == (503, ready)
    ready["parts"] = {"listener": {"ready": False, "detail": "on a socket of acme"}}
    async with client.get("/readyz?verbose") as answer:
        text = "[-]listener failed: reason withheld\nreadyz check failed\n"
        assert (answer.status, answer.content_type, await answer.text()) == (503, "text/plain", text)
    ready["ready"] = True
    for path in ("/readyz", "/readyz?verbose"):
        async with client.get(path) as answer:
            assert answer.status == 200
    async with client.get("/metrics") as answer:
        found = values(await answer.text())
    assert found["tollgate_holds_waiting",] == 7
    assert found["tollgate_ready",] == 1
    for method, path, code in (("POST", "/metrics", 405), ("GET", "/", 404), ("GET", "/metrics/x", 404)):
        async with client.request(method, path) as answer:
            assert answer.status == code


async def test_a_loop_that_is_late_is_seen():
    meters = Meters()

    async def refresh():
        pass

    observatory = Observatory(meters, dict, refresh)
    await observatory.start("127.0.0.1", 0)
    try:
        await asyncio.sleep(0)
        import time

        time.sleep(metering.TICK + 0.1)  # noqa: ASYNC251 -- the trouble itself
        for _ in range(100):
            if shown(meters)["tollgate_loop_lag_seconds_count",]:
                break
            await asyncio.sleep(0.01)
        assert shown(meters)["tollgate_loop_lag_seconds_sum",] >= 0.05
    finally:
        await observatory.stop()


async def test_a_port_that_is_taken():
    async def refresh():
        pass

    first, second = (Observatory(Meters(), dict, refresh) for _ in range(2))
    number = await first.start("127.0.0.1", 0)
    with pytest.raises(OSError, match="address"):
        await second.start("127.0.0.1", number)
    await second.stop()
    await first.stop()


def test_the_answers_are_json():
    assert json.loads(metering._json({"a": 1}, 200).body) == {"a": 1}


def test_buckets():
    meters = Meters()
    for value in (0.0, 0.00005, 0.0002, 99.0):
        meters.note("added_seconds", (), value)
    found = shown(meters)
    assert found["tollgate_added_seconds_bucket", ("le", "5e-05")] == 2
    assert found["tollgate_added_seconds_bucket", ("le", "0.00025")] == 3
    assert found["tollgate_added_seconds_bucket", ("le", "2.5")] == 3
    assert found["tollgate_added_seconds_bucket", ("le", "+Inf")] == 4
    assert found["tollgate_added_seconds_count",] == 4
    assert found["tollgate_added_seconds_sum",] == pytest.approx(99.00025)
