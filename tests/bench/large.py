"""
Large things, direct and through the gateway: how long, what processor time, how much memory at most, and how
long somebody else waited meanwhile for a short list.

Each thing goes one way after the other, and that several times. The person sees everything, so nothing is masked
for it; for the agent all is.
"""

import contextlib
import http.client
import json
import os
import socket
import ssl
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events

from tests.bench import report, ways
from tests.bench.ways import Way
from tests.cluster.build import Progress
from tests.cluster.controlplane import ControlPlane

MB = 1_000_000
CONFIGMAPS, EACH = 50, MB  # etcd takes 1.5 MB of one object
LOG = 100 * MB
STALL = 5.0  # seconds that the slow reader reads nothing
LIMIT = 600.0  # seconds for one thing
CHUNK = 1 << 20
LINE = b"2026-01-01T00:00:00Z INFO request handled path=/checkout/items status=200 duration=12ms trace=4f9c2b71\n"
NAMESPACE = "large"
LIST = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
SHORT = "/api/v1/namespaces/shop/configmaps?limit=500"
POLICY = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: bench}
people: identity.username.endsWith(":engineer")
rules:
- {name: everything, action: allow, match: {verbs: ["*"]}}
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """One large thing, one way, once."""

    thing: str
    way: str
    megabytes: float
    seconds: float
    cpu: float  # seconds of processor time of the gateway
    memory: float  # MB more than before, at most
    others: float  # ms that somebody else waited, at most


@dataclass(slots=True)
class Watching:
    """What is looked at beside it, in threads, until it ends."""

    way: Way
    most: float = 0.0  # MB
    waits: list[float] = field(default_factory=list)  # ms
    ended: threading.Event = field(default_factory=threading.Event)

    def memory(self) -> None:
        while not self.ended.wait(0.02):
            self.most = max(self.most, self.way.memory())

    def others(self) -> None:
        with contextlib.closing(connect(self.way)) as connection:
            while not self.ended.wait(0.05):
                started = time.monotonic()
                read(self.way, SHORT, connection)
                self.waits.append((time.monotonic() - started) * 1000)


@contextlib.contextmanager
def watching(way: Way) -> Iterator[Watching]:
    found = Watching(way, way.memory())
    threads = [threading.Thread(target=t, daemon=True) for t in (found.memory, found.others)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        found.ended.set()
        for thread in threads:
            thread.join(LIMIT)


def tls(way: Way) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(way.ca_file))


def connect(way: Way) -> http.client.HTTPSConnection:
    address = urlsplit(way.url)
    return http.client.HTTPSConnection(str(address.hostname), address.port, timeout=LIMIT, context=tls(way))


def read(way: Way, path: str, connection: http.client.HTTPSConnection, pause_after_first: float = 0) -> int:
    """Get it and count its bytes. Raises ConnectionError when it is refused."""
    connection.request("GET", path, headers={"Authorization": f"Bearer {way.token_file.read_text()}"})
    answer, size = connection.getresponse(), 0
    while chunk := answer.read(CHUNK):
        size += len(chunk)
        time.sleep(pause_after_first)
        pause_after_first = 0
    if answer.status != http.HTTPStatus.OK:
        raise ConnectionError(f"{way.name}: {path}: {answer.status} {chunk[:300]!r}")
    return size


def get(path: str, pause: float = 0) -> Callable[[Way], int]:
    def got(way: Way) -> int:
        with contextlib.closing(connect(way)) as connection:
            return read(way, path, connection, pause)

    return got


def closed_window(path: str) -> Callable[[Way], int]:
    """Over HTTP/2: what the first window holds, and then nothing is asked for."""

    def got(way: Way) -> int:
        address = urlsplit(way.url)
        context = tls(way)
        context.set_alpn_protocols(["h2"])
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        connection.initiate_connection()
        token = way.token_file.read_text()
        head = [(":method", "GET"), (":scheme", "https"), (":authority", address.netloc), (":path", path)]
        connection.send_headers(1, [*head, ("authorization", f"Bearer {token}")], end_stream=True)
        size, until = 0, time.monotonic() + STALL
        with (
            socket.create_connection((address.hostname, address.port), LIMIT) as plain,
            context.wrap_socket(plain, server_hostname=address.hostname) as connected,
        ):
            while (left := until - time.monotonic()) > 0:
                connected.sendall(connection.data_to_send())
                connected.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    events = connection.receive_data(connected.recv(CHUNK))
                    size += sum(len(e.data) for e in events if isinstance(e, h2.events.DataReceived))
        return size

    return got


def copy(cluster: ControlPlane, folder: Path, pod: str, name: str, size: int) -> Callable[[Way], int]:
    """
    What `kubectl cp` does: tar through exec. The command stays a second longer, since the tests' kubelet gives a
    reader 0.2 s for what is left when the command has ended; with `kubectl cp` itself the end was missing at times.
    """

    def got(way: Way) -> int:
        config = cluster.kubeconfig(
            folder / f"{way.name}.kubeconfig", way.url, way.ca_file, token=way.token_file.read_text(), namespace="shop"
        )
        command = [cluster.kubectl, "exec", pod, "--", "sh", "-c", f"tar cf - {name}; sleep 1"]
        with (folder / "copied.tar").open("w+b") as target:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=target,
                env=cluster.kubectl_env(config),
                timeout=LIMIT,
                check=True,
            )
            copied = target.tell() or target.seek(0, os.SEEK_END)
        if copied < size:
            raise ConnectionError(f"{way.name}: {copied} of {size} bytes came")
        return copied

    return got


def seed(cluster: ControlPlane, size: int) -> str:
    """What is going to be read. Returns a pod."""
    cluster.api("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    text = (LINE * (EACH // len(LINE) + 1))[:EACH].decode()
    for number in range(CONFIGMAPS):
        cluster.api("POST", LIST, {"metadata": {"name": f"large-{number}"}, "data": {"log": text}})
    with cluster.pod_log.open("wb") as log:
        for _ in range(LOG // len(LINE) // 1000):
            log.write(LINE * 1000)
    with (cluster.pod_files / "large.bin").open("wb") as file:
        for start in range(0, size, CHUNK):
            file.write(os.urandom(min(CHUNK, size - start)))
    cluster.wait_for_pods()
    return cluster.pods("shop")[0]


def measure(folder: Path, cluster: ControlPlane, megabytes: int, rounds: int, tell: Progress) -> list[Seen]:
    size = megabytes * MB
    folder.mkdir()
    tell("making large things")
    pod = seed(cluster, size)
    policy = folder / "policy.yaml"
    policy.write_text(POLICY)
    log = f"/api/v1/namespaces/shop/pods/{pod}/log"
    things: dict[str, Callable[[Way], int]] = {
        f"list, {CONFIGMAPS} × 1 MB": get(LIST),
        f"log, {LOG // MB} MB": get(log),
        f"exec tar, {megabytes} MB": copy(cluster, folder, pod, "large.bin", size),
        f"log, not read for {STALL:.0f} s, HTTP/1.1": get(log, STALL),
        f"log, not read for {STALL:.0f} s, HTTP/2": closed_window(log),
    }
    admin = folder / "admin.token"
    admin.touch(0o600)
    admin.write_text(cluster.admin_token)
    seen = []
    with ways.gateway_with(folder / "gateway", cluster, [policy]) as gateway:
        person = ways.token_file(folder / "person.token", cluster, "people", "engineer")
        running = [
            Way("direct", cluster.url, cluster.ca_file, admin),
            replace(gateway, name="person", token_file=person),
            replace(gateway, name="agent"),
        ]
        for way in running:
            get(SHORT)(way)
        for number in range(rounds):
            for name, thing in things.items():
                for way in running:
                    seen.append(once(name, way, thing))
                    tell(f"round {number + 1}/{rounds}  " + "  ".join(rows(seen[-1:])[1]))
    return seen


def once(name: str, way: Way, thing: Callable[[Way], int]) -> Seen:
    used, before, started = way.cpu(), way.memory(), time.monotonic()
    with watching(way) as found:
        size = thing(way)
        took, used = time.monotonic() - started, way.cpu() - used
    return Seen(name, way.name, size / MB, took, used, found.most - before, max(found.waits, default=0))


def rows(seen: Sequence[Seen]) -> list[list[str]]:
    """The table: medians, but the most of what is a maximum."""
    table = [["thing", "way", "MB", "s", "gateway's CPU s", "RSS +MB", "another waited ms"]]
    for thing in dict.fromkeys(s.thing for s in seen):
        for way in dict.fromkeys(s.way for s in seen):
            mine = [s for s in seen if (s.thing, s.way) == (thing, way)]
            if not mine:
                continue
            middle = {name: statistics.median(getattr(s, name) for s in mine) for name in ("seconds", "cpu")}
            between = way != "direct"
            table.append(
                [
                    *(thing, way, f"{mine[0].megabytes:.1f}", f"{middle['seconds']:.1f}"),
                    f"{middle['cpu']:.1f}" if between else "",
                    f"{max(s.memory for s in mine):.0f}" if between else "",
                    f"{max(s.others for s in mine):.0f}",
                ]
            )
    return table


def finish(out: Path, seen: Sequence[Seen], where: dict[str, Any]) -> None:
    print(report.text(rows(seen)))
    made = {"machine": where, "seen": [asdict(s) for s in seen]}
    (out / "large.json").write_text(json.dumps(made, indent=1) + "\n")
