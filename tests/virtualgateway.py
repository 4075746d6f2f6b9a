"""
A gateway that serves approvals and nothing else, for its clients: the real book and the real virtual
API, in a thread, behind TLS. Whose request it is, is told by a table of tokens.
"""

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from addons.core import approvals, virtualapi
from addons.core.approvals import Decider, Record
from addons.core.virtualapi import Viewer
from addons.net.book import APPROVALS, REQUESTS, Book
from addons.net.certificates import Certificate
from addons.net.store import SqliteStore
from addons.net.virtualserver import TICKET_HEADER, VirtualServer
from tests import records


class VirtualGateway:
    """`run` runs a coroutine in its thread. `answer`: what every request gets instead, once set: (code, body)."""

    def __init__(self, tls: Certificate, viewers: Mapping[str, Callable[[], Viewer]]) -> None:
        self.tls, self.viewers = tls, viewers
        self.answer: tuple[int, bytes] | None = None
        self.requests: list[tuple[str, str]] = []  # method and target
        self.before: Callable[[str], None] = lambda method: None  # called in its thread, with each request
        self.port = 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.run(self._start())

    def run[T](self, doing: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(doing, self.loop).result(30)

    def stop(self) -> None:
        self.run(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    def kubeconfig(self, folder: Path, token: str, **user: Any) -> str:
        path = folder / f"{token[-10:] or 'no'}.kubeconfig"
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": str(self.tls.ca_file)}
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": cluster}],
            "users": [{"name": "u", "user": user or {"token": token}}],
        }
        path.write_text(json.dumps(config))
        return str(path)

    # ----- what is asked, and what becomes of it -----

    def add(self, record: Record) -> None:
        self.run(self.book.add(REQUESTS if record.access is not None else APPROVALS, record))

    def step(self, name: str, step: Callable[[Any], Any], kind: str = APPROVALS) -> None:
        self.run(self.book.step(kind, name, step))

    def decide(self, name: str, who: str, approved: bool = True, reason: str = "") -> None:
        decider = Decider(records.person(who, records.ONCALL, now=time.time()), False)
        self.step(name, lambda kept: approvals.decide(kept, decider, approved, reason, time.time()))

    def record(self, name: str, kind: str = APPROVALS) -> Record:
        change = self.book.get(kind, name)
        assert change is not None
        assert isinstance(change.entry, Record)
        return change.entry

    def break_connections(self) -> None:
        """All that are open, at once."""

        async def abort() -> None:
            for transport in list(self.transports):
                transport.abort()

        self.run(abort())

    # ----- the thread -----

    async def _start(self) -> None:
        self.store = SqliteStore(None)
        self.book = Book(self.store, time.time)
        await self.book.start()
        self.server = VirtualServer(self.book, time.time)
        await self.server.start()
        self.client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        self.transports: set[Any] = set()
        self.runner = web.ServerRunner(web.Server(self._serve, handler_cancellation=True), shutdown_timeout=0.1)
        await self.runner.setup()
        await self.listen()

    async def listen(self) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.tls.combined)
        self.site = web.TCPSite(self.runner, "127.0.0.1", self.port, ssl_context=context, reuse_address=True)
        await self.site.start()
        self.port = self.runner.addresses[0][1]

    async def _stop(self) -> None:
        await self.runner.cleanup()
        await self.client.close()
        await self.server.stop()
        await self.book.stop()
        self.store.close()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append((request.method, request.raw_path))
        self.transports.add(request.transport)
        await asyncio.to_thread(self.before, request.method)
        if self.answer is not None:
            return web.Response(status=self.answer[0], body=self.answer[1])
        viewer = self.viewers.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if viewer is None:
            body = {"kind": "Status", "message": "tollgate: the token has expired", "code": 401}
            return web.json_response(body, status=401)
        if not virtualapi.is_ours(request.path):
            return web.Response(status=404, text="404 page not found")
        headers = {key: request.headers[key] for key in ("Accept", "Content-Type") if key in request.headers}
        headers[TICKET_HEADER] = self.server.ticket(viewer(), request.method, request.raw_path)
        url = URL(f"http://127.0.0.1:{self.server.port}{request.raw_path}", encoded=True)
        async with self.client.request(request.method, url, headers=headers, data=await request.read()) as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
            response.enable_chunked_encoding()
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response
