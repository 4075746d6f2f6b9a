"""
What masking adds on the wire: `python -m tests.bench.bench_answers`.

mitmproxy in this process between an HTTP/2 client and a scripted API server, once without the addon, once
for somebody who may see everything, once for an agent: an event of a watch from sending to arrival, lists
of 5 MB, and a log of 100 MB with the memory that it takes. Prints a table, asserts nothing.
"""

import asyncio
import datetime
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mitmproxy import http

from addons import mask
from addons.core import classify, facts, maskdetect, maskmemory, policyfile
from addons.core.model import Identity
from addons.mitm import injecting
from addons.net import certificates
from tests import http2, proxy
from tests.bench.bench_masking import pod, secret

EVENTS = 500
LOG = 100_000_000  # bytes
LINE = b"2026-01-01T00:00:00Z INFO request handled path=/checkout/items status=200 duration=12ms trace=4f9c2b71\n"
FRAME = 64 * 1024
JSON = (("content-type", "application/json"),)
NS = "/api/v1/namespaces/shop"
POLICY = b"""
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: p}
people: identity.username == "jane"
rules: [{name: all, action: allow, match: {verbs: ["*"]}}]
"""
injecting.install()


class Around:
    """Stands in for the other addons."""

    name = "around"

    def __init__(self, username: str) -> None:
        self.identity = Identity(username)
        policies = policyfile.parse({"p.yaml": POLICY})
        self.policies = lambda: policies

    def request(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        known.operation = classify.classify_raw("GET", flow.request.path, flow.request.headers.fields, b"")
        known.identity, known.policies, known.released = self.identity, self.policies, True

    def response(self, flow: http.HTTPFlow) -> None:
        if flow.response and not flow.response.stream:
            facts.of(flow).answer = flow.response


class After:
    name = "after"

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        if flow.response:
            flow.response.stream = not known.whole and (known.chunks or True)


async def send(peer: http2.Peer, sid: int, block: bytes, times: int = 1) -> None:
    """With backpressure: as fast as the other side takes it."""
    for _ in range(times):
        for start in range(0, len(block), FRAME):
            while (
                peer.connection.local_flow_control_window(sid) < FRAME or peer.writer.transport.get_write_buffer_size()
            ):
                peer.flush()
                await asyncio.sleep(0)
            peer.connection.send_data(sid, block[start : start + FRAME])
            peer.flush()
    peer.connection.end_stream(sid)
    peer.flush()


class Server:
    def __init__(self) -> None:
        secrets = [secret(n) for n in range(1500)]
        pods = [pod(n, leaks=True) for n in range(1100)]
        self.lists = {
            f"{NS}/secrets": json.dumps({"kind": "SecretList", "apiVersion": "v1", "items": secrets}).encode(),
            f"{NS}/pods": json.dumps({"kind": "PodList", "apiVersion": "v1", "items": pods}).encode(),
        }
        self.event = json.dumps({"type": "MODIFIED", "object": {"kind": "Secret", **secret(1)}}).encode() + b"\n"
        self.watch: tuple[http2.Peer, int] | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    def __call__(self, peer: http2.Peer, sid: int, head: dict[str, str]) -> None:
        path = head[":path"]
        if "watch" in path:
            peer.respond(sid, 200, end=False, headers=JSON)
            self.watch = peer, sid
            return
        if path in self.lists:
            peer.respond(sid, 200, end=False, headers=JSON)
            sending = send(peer, sid, self.lists[path])
        else:
            peer.respond(sid, 200, end=False, headers=(("content-type", "text/plain"),))
            sending = send(peer, sid, LINE * 10_000, LOG // len(LINE) // 10_000)
        task = asyncio.get_running_loop().create_task(sending)
        self.tasks.add(task)

    async def events(self, client: http2.Client) -> list[float]:
        answer = client.start(f"{NS}/secrets?watch=1")
        while self.watch is None:
            await asyncio.sleep(0.01)
        peer, sid = self.watch
        took = []
        for number in range(EVENTS):
            started = time.perf_counter()
            peer.connection.send_data(sid, self.event)
            peer.flush()
            await answer.until(lambda a, number=number: a.body.count(b"\n") > number)
            took.append(time.perf_counter() - started)
            await asyncio.sleep(0.001)
        return took


async def whole(client: http2.Client, path: str, times: int) -> float:
    took = []
    for _ in range(times):
        started = time.perf_counter()
        answer = await client.request(path, seconds=300)
        took.append(time.perf_counter() - started)
        assert answer.status == 200, answer.status
    return statistics.median(took)


def memory() -> float:
    """MB that are resident now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


async def measure(folder: Path, addons: list[Any]) -> list[str]:
    tls = certificates.ensure(folder, "127.0.0.1", datetime.datetime.now(datetime.UTC))
    server = Server()
    row = []
    async with (
        http2.server(tls.combined, server) as (upstream, _),
        proxy.running(upstream, tls.combined, tls.ca_file, folder / "conf", *addons) as port,
    ):
        async with http2.connect(port, tls.ca_file) as client:
            took = await server.events(client)
        row.append(f"{statistics.median(took) * 1e3:9.2f}")
        async with http2.connect(port, tls.ca_file) as client:
            for path in server.lists:
                row.append(f"{await whole(client, path, 5) * 1e3:9.0f}")
        before = memory()
        async with http2.connect(port, tls.ca_file) as client:
            answer = client.start(f"{NS}/pods/p/log")
            started, most, size = time.perf_counter(), before, 0
            while not answer.ended.is_set():
                answer.changed.clear()
                await answer.changed.wait()
                size += len(answer.body)
                answer.body.clear()
                most = max(most, memory())
        row += [f"{size / 1e6 / (time.perf_counter() - started):9.1f}", f"{most - before:9.0f}"]
    return row


async def main() -> None:
    maskdetect.warm(None)
    print(f"{'':26}event ms  Secrets    Pods ms   log MB/s  its memory, MB")
    rows: list[tuple[str, Callable[[], list[Any]]]] = [
        ("without the addon", lambda: [Around("jane"), After()]),
        ("who may see everything", lambda: [Around("jane"), ready(), After()]),
        ("an agent", lambda: [Around("agent"), ready(), After()]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, addons in rows:
            print(f"{name:24}", *await measured(Path(folder), addons()), flush=True)


def measured(folder: Path, addons: list[Any]) -> Awaitable[list[str]]:
    return measure(folder, addons)


def ready() -> mask.Mask:
    one = mask.Mask()
    one.key, one.memory = bytes(range(32)), maskmemory.Memory(bytes(32))
    return one


if __name__ == "__main__":
    asyncio.run(main())
