"""
The virtual API with no gateway before it: a thread with a book, the server, and one plain HTTP
port for each viewer, which adds the ticket and passes the rest on to the real API server.
"""

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from addons.core import bodies, virtualapi, virtualdiscovery, virtualreviews
from addons.core.virtualapi import Viewer
from addons.net.book import Book
from addons.net.store import SqliteStore
from addons.net.virtualserver import TICKET_HEADER, VirtualServer
from tests.cluster.controlplane import ControlPlane

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
PASSED_ON = ("Accept", "Content-Type", "If-None-Match")


class Front:
    """Its ports, by the viewer's name. `run` runs a coroutine in its thread."""

    def __init__(self, controlplane: ControlPlane, viewers: Mapping[str, Callable[[], Viewer]]) -> None:
        self.controlplane = controlplane
        self.viewers = viewers
        self.ports: dict[str, int] = {}
        self.asked: list[tuple[str, str]] = []  # method and target of all requests to our group
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

    async def _start(self) -> None:
        self.store = SqliteStore(None)
        self.book = Book(self.store, time.time)
        await self.book.start()
        self.server = VirtualServer(self.book, time.time)
        await self.server.start()
        self.client = aiohttp.ClientSession(auto_decompress=True)
        self.runners = []
        for name, viewer in self.viewers.items():
            runner = web.ServerRunner(web.Server(self._serve(viewer), handler_cancellation=True), shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.ports[name] = runner.addresses[0][1]
            self.runners.append(runner)

    async def _stop(self) -> None:
        for runner in self.runners:
            await runner.cleanup()
        await self.client.close()
        await self.server.stop()
        await self.book.stop()
        self.store.close()

    def _serve(self, viewer: Callable[[], Viewer]) -> Callable[[web.BaseRequest], Coroutine[Any, Any, Any]]:
        async def serve(request: web.BaseRequest) -> web.StreamResponse:
            path = request.path
            headers = {key: request.headers[key] for key in PASSED_ON if key in request.headers}
            body = await request.read()
            if virtualapi.is_ours(path):
                self.asked.append((request.method, request.raw_path))
                ticket = self.server.ticket(viewer(), request.method, request.raw_path)
                url = f"http://127.0.0.1:{self.server.port}{request.raw_path}"
                return await self._relay(request, url, headers | {TICKET_HEADER: ticket}, body, None)
            if path == REVIEWS:
                review = bodies.read(request.headers.get("Content-Type"), body, "POST").content
                answer = virtualreviews.access_review(review, may_try(viewer()))
                if answer is not None:
                    return web.json_response(answer, status=201)
            context = ssl.create_default_context(cafile=str(self.controlplane.ca_file))
            headers["Authorization"] = f"Bearer {self.controlplane.admin_token}"
            url = self.controlplane.url + request.raw_path
            if path in virtualdiscovery.MERGED:
                return await self._merged(request, url, headers, context)
            return await self._relay(request, url, headers, body, context)

        return serve

    async def _relay(self, request, url, headers, body, context) -> web.StreamResponse:
        async with self.client.request(
            request.method, URL(url, encoded=True), headers=headers, data=body or None, ssl=context or True
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() in ("content-type", "etag", "warning")}
            response = web.StreamResponse(status=answer.status, headers=kept)
            response.enable_chunked_encoding()
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    async def _merged(self, request, url, headers, context) -> web.StreamResponse:
        asked = headers.pop("If-None-Match", None)
        inner = virtualdiscovery.etag_in(asked) if asked else None
        if inner:
            headers["If-None-Match"] = inner
        headers["Accept"] = ",".join(part for part in headers["Accept"].split(",") if "protobuf" not in part)
        async with self.client.get(URL(url, encoded=True), headers=headers, ssl=context) as answer:
            kind = answer.headers.get("Content-Type", "")
            etag = virtualdiscovery.etag_out(answer.headers.get("ETag", ""))
            sent = {"ETag": etag} if etag else {}
            if answer.status == 304:
                return web.Response(status=304, headers=sent)
            body = await answer.read()
            groups = request.path == "/apis"
            merged = virtualdiscovery.merge_groups(body, kind) if groups else virtualdiscovery.merge_openapi(body)
            return web.Response(body=merged.body, headers=sent | {"Content-Type": kind})


def may_try(viewer: Viewer) -> virtualreviews.Decide:
    """A policy in one line: agents read, and ask; people decide too."""

    def decide(asked: virtualreviews.Attributes) -> tuple[bool, str]:
        if viewer.agent and asked.verb in ("patch", "update"):
            return False, "rule agents/no-decisions: a person decides"
        return True, ""

    return decide
