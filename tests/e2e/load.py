"""
Reads, allowed writes and forbidden writes that go on while something breaks, and what must be true afterwards.

Nobody counts on an answer while it breaks. What is looked at: nothing forbidden arrived at the API server, no
answer looked whole and was not, what was acknowledged is there, and all that arrived is in an unbroken record.
"""

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import h2.exceptions

from addons.cli import verify
from addons.core import auditevents
from addons.net import recordings
from tests import http2
from tests.cluster.controlplane import ControlPlane
from tests.e2e import audit, client, onrecord, policies
from tests.e2e.client import Answer
from tests.e2e.gateway import Gateway

MAPS = "/api/v1/namespaces/shop/configmaps"
POLICY = (
    policies.EVERYTHING
    + """
- name: forbidden
  action: deny
  match: {resources: [configmaps], resourceNames: ["forbidden-*"], verbs: ["*"]}
"""
)
WORKERS = 6
PAUSE = 0.02  # seconds between a worker's requests: two cores are shared with all else
BROKEN = 0
VERSION = "the API server's version"
NAMES = itertools.count()


@dataclass(frozen=True)
class Outcome:
    kind: str  # "read", "write" or "forbidden"
    name: str  # of the object
    status: int
    body: bytes
    reason: str


class Http2:
    """A client of one HTTP/2 connection, in its thread: the gateway then speaks HTTP/2 to the API server as well."""

    def __init__(self, one: Gateway) -> None:
        self._gateway = one
        self._runner = asyncio.Runner()
        self._life = contextlib.AsyncExitStack()
        self._client: http2.Client | None = None

    def request(self, method: str, path: str, fields: Mapping[str, str], body: bytes | None, seconds: float) -> Answer:
        return self._runner.run(self._request(method, path, fields, body, seconds))

    async def _request(
        self, method: str, path: str, fields: Mapping[str, str], body: bytes | None, seconds: float
    ) -> Answer:
        headers = tuple((name.lower(), value) for name, value in fields.items())
        try:
            if self._client is None:
                connecting = http2.connect(self._gateway.port, self._gateway.ca_file)
                self._client = await self._life.enter_async_context(connecting)
            found = await self._client.request(path, seconds, method=method, headers=headers, body=body)
        except (OSError, h2.exceptions.ProtocolError, TimeoutError):
            await self._leave()
            return Answer(BROKEN, {}, b"")
        if found.reset is not None or self._client.task.done():
            await self._leave()
        return Answer(BROKEN if found.reset is not None else found.status, found.headers, bytes(found.body))

    async def _leave(self) -> None:
        self._client = None
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            await self._life.aclose()

    def close(self) -> None:
        self._runner.run(self._leave())
        self._runner.close()


class Load:
    """
    `token` and `bad_token`, of nobody who is let in: asked before each request. `answers`: all so far, by
    whatever worker, in order.
    """

    def __init__(
        self,
        one: Gateway,
        cluster: ControlPlane,
        token: Callable[[], str],
        *,
        bad_token: Callable[[], str] = lambda: "no-token-of-ours",
        seconds: float = 20,
        http: int = 1,
    ) -> None:
        self.http = http
        self._own = threading.local()  # each worker's connection, over HTTP/2
        self.gateway, self.cluster, self.token, self.bad_token, self.seconds = one, cluster, token, bad_token, seconds
        self.prefix = f"load-{next(NAMES)}"
        self.since = cluster.audit_position()
        self.answers: list[Outcome] = []
        self._numbers = itertools.count()
        self._over = threading.Event()

    def _ask(
        self, method: str, path: str, kind: str, name: str, *, body: object = None, token: str = "", **fields: str
    ) -> Outcome:
        headers = {"Authorization": f"Bearer {token or self.token()}", "Content-Type": "application/json"}
        headers |= {field.replace("_", "-"): value for field, value in fields.items()}
        content = None if body is None else json.dumps(body).encode()
        if self.http == 1:
            answer = client.request(
                self.gateway.port,
                self.gateway.ca_file,
                method,
                path,
                body=content,
                headers=headers,
                seconds=self.seconds,
            )
        elif (own := getattr(self._own, "client", None)) is not None:
            answer = own.request(method, path, headers, content, self.seconds)
        else:
            with contextlib.closing(Http2(self.gateway)) as once:
                answer = once.request(method, path, headers, content, self.seconds)
        outcome = Outcome(kind, name, answer.status, answer.body, answer.reason)
        self.answers.append(outcome)
        return outcome

    def read(self) -> Outcome:
        """Of an object, which is kept and masked as a whole, and of what is streamed."""
        if next(self._numbers) % 2:
            return self._ask("GET", "/version", "read", VERSION)
        return self._ask("GET", f"{MAPS}/settings", "read", "settings")

    def write(self) -> Outcome:
        name = f"{self.prefix}-{next(self._numbers)}"
        return self._ask("POST", MAPS, "write", name, body={"metadata": {"name": name}})

    def forbidden(self) -> Outcome:
        number = next(self._numbers)
        name = f"forbidden-{self.prefix}-{number}"
        more: dict[str, str] = {}
        match number % 3:
            case 1:
                name, more = name.removeprefix("forbidden-") + "-nobody", {"token": self.bad_token()}
            case 2:
                name, more = name.removeprefix("forbidden-") + "-root", {"Impersonate_User": "root"}
        return self._ask("POST", MAPS, "forbidden", name, body={"metadata": {"name": name}}, **more)

    def _work(self, ask: Callable[[], Outcome]) -> None:
        with contextlib.ExitStack() as life:
            if self.http == 2:
                self._own.client = life.enter_context(contextlib.closing(Http2(self.gateway)))
            while not self._over.wait(PAUSE):
                ask()

    @contextlib.contextmanager
    def running(self) -> Iterator["Load"]:
        kinds = itertools.cycle((self.read, self.write, self.forbidden))
        workers = [threading.Thread(target=self._work, args=(next(kinds),), daemon=True) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        try:
            yield self
        finally:
            self._over.set()
            for worker in workers:
                worker.join(self.seconds + 10)
            assert not any(worker.is_alive() for worker in workers)

    def wait_for(self, wanted: Callable[[Outcome], bool], count: int = 1, seconds: float = 60) -> None:
        """Until so many more answers are as wanted."""
        start, deadline = len(self.answers), time.monotonic() + seconds
        while sum(map(wanted, self.answers[start:])) < count:
            assert time.monotonic() < deadline, (self.statuses(), self.gateway.log[-3000:])
            time.sleep(0.02)

    def wait_until_well(self, seconds: float = 60) -> None:
        """Until reads and writes pass, several in a row of each, without anybody's help."""
        deadline = time.monotonic() + seconds
        good = 0
        while good < 6:
            good = good + 1 if self.read().status == 200 and self.write().status == 201 else 0
            assert time.monotonic() < deadline, (self.statuses(), self.gateway.log[-3000:])
            time.sleep(PAUSE)

    def statuses(self) -> dict[str, dict[int, int]]:
        """How often each status came, by kind."""
        found: dict[str, dict[int, int]] = {}
        for one in list(self.answers):
            counts = found.setdefault(one.kind, {})
            counts[one.status] = counts.get(one.status, 0) + 1
        return found

    # Afterwards

    def check_answers(self) -> None:
        """What came back is whole, or says that it is not, or is no answer; and nothing forbidden succeeded."""
        for one in self.answers:
            if one.status == BROKEN:
                continue
            if (one.name, one.status) == (VERSION, 403):
                continue  # in plain text, which is what clients show of it
            answer = json.loads(one.body)  # also of what passes: no half object
            if one.kind == "forbidden":
                assert one.status in (400, 401, 403, 408, 502, 503), one
            else:
                assert one.status in (200 if one.kind == "read" else 201, 401, 403, 408, 409, 500, 502, 503, 504), one
            if one.status > 299:
                assert answer["kind"] == "Status", one
            elif one.name == VERSION:
                assert answer["gitVersion"], one
            else:
                assert answer["metadata"]["name"] == one.name, one

    def arrived(self) -> list[dict[str, object]]:
        """What the API server was sent of this load."""
        return [
            event
            for event in self.cluster.audit_events(self.since)
            if self.prefix in json.dumps([event["requestURI"], event.get("objectRef"), event.get("requestObject")])
            and not event["auditID"].startswith(audit.OWN)
            and event.get("impersonatedUser")
        ]

    def check_cluster(self) -> None:
        """Only what was allowed arrived, and what was acknowledged is there."""
        there = {item["metadata"]["name"] for item in self.cluster.api("GET", MAPS)["items"]}
        forbidden = {one.name for one in self.answers if one.kind == "forbidden"}
        assert forbidden
        assert not forbidden & there
        names = {event["objectRef"].get("name") for event in self.arrived()}  # type: ignore[attr-defined]  # JSON
        assert not forbidden & names
        acknowledged = {one.name for one in self.answers if (one.kind, one.status) == ("write", 201)}
        assert acknowledged
        assert acknowledged <= there

    def check_record(self) -> None:
        """When the gateway has left: the record is unbroken, and has all that arrived as allowed."""
        root = self.gateway.folder / "recordings"
        assert verify.check(root).wrong == []
        allowed = {
            event["auditID"]
            for folder in recordings.collect([root])
            for event in recordings.read_events(folder).events
            if auditevents.notes_of(event).get(auditevents.VERDICT) in onrecord.PASSED
        }
        arrived = {event["auditID"] for event in self.arrived()}
        assert arrived
        assert arrived <= allowed, arrived - allowed

    def check(self) -> None:
        self.check_answers()
        self.check_cluster()
        self.check_record()
