"""
The virtual API's own HTTP server: on loopback, in this process, for flows that the gateway points to it.

It answers nobody without a ticket: 128 random bits that a hook of this process drew a moment ago,
for one request of one viewer, good for once. Who that is stays in this process; no identity travels.
"""

import asyncio
import contextlib
import logging
import secrets
import uuid
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from addons.core import (
    approvals,
    bodies,
    canonical,
    limits,
    status,
    virtualapi,
    virtualchanges,
    virtualdiscovery,
    virtualforms,
    virtualobjects,
    virtualstatus,
)
from addons.core.approvals import Grant, Record
from addons.core.revocations import Revocation
from addons.core.virtualapi import Call, Page, Viewer
from addons.core.virtualforms import Form
from addons.core.virtualobjects import Content, Entry
from addons.core.virtualstatus import Failure, Problem
from addons.net import book as books
from addons.net.book import Book, Change
from addons.net.store import StoreError
from addons.net.virtualsight import TURN, Sight
from addons.net.virtualwatching import Watch, expired

logger = logging.getLogger(__name__)

TICKET_HEADER = "Tollgate-Ticket"
TICKET_TIME = 30.0  # seconds from the hook to the request's arrival here, which is the next thing that happens
MAX_TICKETS = 10_000  # waiting at once; the oldest go first
MAX_BODY = 64 * 1024  # bytes; a decision has 200, an object with a long diff sent back whole has half of it
MAX_FIELD = 64 * 1024  # bytes of one header; more is answered with 400 by the HTTP library, in its own words
BODY_TIME = 10.0  # seconds; the gateway has the body already
MAX_WATCHES = 1000
MAX_WATCHES_EACH = 50  # of one identity: one with a broken client must not keep the approvers out
WRITE_TIME = 30.0  # seconds that a client may take for one event, or one part of a list
STOP_TIME = 1.0  # seconds for the answers that are under way

_HEADERS = {"Server": "tollgate", "Cache-Control": "no-cache, private"}
_NO_TICKET = Failure(403, "no-ticket", "tollgate: this port is for the gateway itself; send requests to the gateway")
_NO_STATE = Failure(
    503, "no-state", "tollgate: the approvals cannot be read or written now, so nothing was changed; try again"
)
_NO_FOLDER = "tollgate: revocations need a state folder (tollgate_state), which is not set; tell the operator"
_BROKEN = Failure(500, "gateway-error", "tollgate: the request failed here, nothing is known to have changed; look")


@dataclass(frozen=True, slots=True)
class _Ticket:
    viewer: Viewer
    method: str
    target: str
    until: float  # seconds of the loop's clock


class VirtualServer:
    """Serves the paths of which `virtualapi.is_ours` is true, one request for each ticket."""

    def __init__(
        self,
        book: Book,
        clock: Callable[[], float],
        asked: Callable[[Record], None] = lambda _: None,
        *,
        revokes: bool = True,
    ) -> None:
        """
        clock: seconds since the epoch. asked: told of each new AccessRequest. revokes: whether those
        who authenticate read the same store, so that a revocation made here is followed.
        """
        self._revokes = revokes
        self._asked = asked
        self._book = book
        self._clock = clock
        self._runner: web.ServerRunner | None = None
        self._port = 0
        self._tickets: OrderedDict[str, _Ticket] = OrderedDict()
        self._watches: dict[asyncio.Event, str] = {}  # what ends each, and the key of whose it is
        self._writing: set[asyncio.Task[Any]] = set()
        self._creating = asyncio.Lock()
        self._strangers = limits.Digest()

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1. Idempotent. Raises OSError."""
        if self._runner is not None:
            return
        server = web.Server(
            self._handle,
            access_log=None,  # tickets are in the heads
            handler_cancellation=True,  # a watcher who left is noticed at once
            auto_decompress=False,  # bodies are judged as they are elsewhere: plain or not at all
            max_line_size=canonical.MAX_TARGET + 1024,
            max_field_size=MAX_FIELD,
        )
        runner = web.ServerRunner(server, access_log=None, shutdown_timeout=STOP_TIME)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner, self._port = runner, int(runner.addresses[0][1])

    async def stop(self) -> None:
        """End the watches, then everything. Idempotent."""
        runner, self._runner = self._runner, None
        self._tickets.clear()
        self.end_watches()
        if runner is not None:
            await runner.cleanup()

    @property
    def port(self) -> int:
        """0 while it is not started."""
        return self._port if self._runner is not None else 0

    def ticket(self, viewer: Viewer, method: str, target: str) -> str:
        """
        The value of TICKET_HEADER for this one request of this viewer, to be sent within TICKET_TIME.

        method, target: as they were judged by the policies; another request does not pass with it.
        """
        now = asyncio.get_running_loop().time()
        while self._tickets:
            key, oldest = next(iter(self._tickets.items()))
            if oldest.until > now and len(self._tickets) < MAX_TICKETS:
                break
            del self._tickets[key]
        key = secrets.token_hex(16)
        self._tickets[key] = _Ticket(viewer, method, target, now + TICKET_TIME)
        return key

    def end_watches(self) -> None:
        """After a reload of the policies: clients watch again, as what they are by the new ones."""
        for end in self._watches:
            end.set()

    def _viewer(self, request: web.BaseRequest) -> Viewer | None:
        """Whose request this is. The ticket is spent by asking."""
        keys = request.headers.getall(TICKET_HEADER, [])
        # A look-up of 128 random bits tells nobody who tries how near he was.
        found = self._tickets.pop(keys[0], None) if len(keys) == 1 else None
        if found is None or found.until <= asyncio.get_running_loop().time():
            return None
        # What the policies judged is what is served, whatever became of the flow in between.
        return found.viewer if (found.method, found.target) == (request.method, request.raw_path) else None

    # ----- one request -----

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        viewer = self._viewer(request)
        if viewer is None:
            count = self._strangers.note("no ticket", asyncio.get_running_loop().time())
            if count:
                logger.warning("virtual API: %d requests without a valid ticket, from this machine", count)
            return _failure(_NO_TICKET)
        resource, name = "", ""
        try:
            asked = virtualapi.read(request.method, request.raw_path, request.headers.get("Accept", ""))
            if isinstance(asked, Page):
                return _page(asked, request.headers.get("If-None-Match", ""))
            resource, name = asked.resource.plural, asked.name
            sight = Sight(self._book, self._clock, viewer)
            if asked.verb == "watch":
                return await self._watch(request, sight, asked)
            if asked.verb == "list":
                return await self._list(request, sight, asked)
            content = await _body(request)
            body = bodies.read(request.headers.get("Content-Type"), content, request.method)
            return await self._answer(sight, asked, body)
        except status.Refused as e:
            failure = Failure(e.refusal.code, e.refusal.cause, e.refusal.message)
        except Problem as e:
            failure = e.failure
        except approvals.NotAllowed as e:
            failure = Failure(403, "not-allowed", str(e))
        except books.Missing:
            failure = virtualapi.not_there(virtualobjects.RESOURCES[resource], name).failure
        except books.Changed:
            failure = virtualchanges.conflict(virtualobjects.RESOURCES[resource], name).failure
        except StoreError as e:
            logger.error("virtual API: %s", e)
            failure = _NO_STATE
        except ConnectionError:
            raise  # the client left
        except Exception:
            # Direction: nothing is shown or changed. The traceback holds no body: it is not in any repr.
            logger.exception("virtual API: a request failed")
            failure = _BROKEN
        return _failure(Failure(failure.code, failure.cause, failure.message, resource, name, failure.reason))

    async def _answer(self, sight: Sight, call: Call, body: bodies.Body) -> web.Response:
        if call.verb == "create":
            return await self._create(sight, call, body)
        if call.verb == "delete":
            return await self._delete(sight, call, body)
        change = sight.find(call.resource, call.name)
        hidden = await sight.hidden(change)
        current = sight.content(call.resource, change, hidden=hidden)
        if call.verb == "get":
            return self._object(sight, call, current)
        of_body = virtualchanges.of_patch if call.verb == "patch" else virtualchanges.of_update
        wanted = of_body(call.resource, current, body)
        dry = virtualchanges.dry_run(call.dry_run)
        if wanted.nothing:
            return self._object(sight, call, current)
        if isinstance(change.entry, Grant):
            virtualapi.may_end(sight.viewer, change.entry, sight.source(change.entry), now=self._clock())
        take = virtualapi.step(sight.viewer, wanted, self._clock())
        revision = int(wanted.resource_version) if wanted.resource_version else None
        changed = await self._step(sight, change, take, revision, dry=dry)
        return self._object(sight, call, sight.content(call.resource, changed, hidden=hidden))

    # ----- reading -----

    def _object(
        self, sight: Sight, call: Call, content: Content, code: int = 200, warnings: Sequence[str] = ()
    ) -> web.Response:
        form = virtualforms.of_object(call.resource, content, call.form, sight.clock())
        return _response(code, form, call.form, warnings)

    async def _list(self, request: web.BaseRequest, sight: Sight, call: Call) -> web.StreamResponse:
        await self._reach(call)
        revision, there = self._book.revision, self._book.all(call.resource.plural)
        if call.exact and call.revision != revision:
            raise expired()
        found = await sight.among(there, call.selector)
        if not found:
            return _response(
                200, virtualforms.of_list(call.resource, [], call.form, revision, sight.clock()), call.form
            )
        readable = await sight.readable(found) if call.form.shows_spec else frozenset()
        return await self._stream(request, call.form.media_type, _pieces(sight, call, revision, found, readable))

    async def _stream(
        self, request: web.BaseRequest, media_type: str, pieces: AsyncGenerator[bytes]
    ) -> web.StreamResponse:
        """An answer as it is made. One that fails on its way breaks off: a clean end would say that this was all."""
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": media_type})
        response.enable_chunked_encoding()
        try:
            await response.prepare(request)
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    async with asyncio.timeout(WRITE_TIME):
                        await response.write(piece)
            await response.write_eof()
        except Exception as e:
            if request.transport is not None:
                request.transport.abort()
            if not isinstance(e, ConnectionError | TimeoutError):
                logger.exception("virtual API: an answer failed on its way")
        return response

    async def _reach(self, call: Call) -> None:
        """Be at least where the client has been, who may have been told by another process."""
        if call.revision and call.revision > self._book.revision:
            await self._book.catch_up()
            if call.revision > self._book.revision:
                raise expired()

    # ----- changing -----

    async def _step(
        self, sight: Sight, change: Change, take: Callable[[Entry], Entry], revision: int | None, *, dry: bool
    ) -> Change:
        if dry:
            return Change(change.kind, change.name, change.revision, take(change.entry))

        def guarded(entry: Entry) -> Entry:
            if entry.uid != change.entry.uid:
                raise books.Changed(f"{change.name} is another one now")  # a yes is to what was shown
            return take(entry)

        changed = await self._finish(self._book.step(change.kind, change.name, guarded, revision))
        logger.info(
            "%s %s: now %s, by %r", change.kind, change.name, _phase(changed.entry), sight.viewer.identity.username
        )
        return changed

    async def _finish[T](self, doing: Coroutine[Any, Any, T]) -> T:
        """A client that leaves does not stop a change halfway: it is made, or it is not."""
        task = asyncio.get_running_loop().create_task(doing)
        self._writing.add(task)
        task.add_done_callback(self._written)
        return await asyncio.shield(task)

    def _written(self, task: asyncio.Task[Any]) -> None:
        self._writing.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits gets it; if nobody does, it is no news

    async def _delete(self, sight: Sight, call: Call, body: bodies.Body) -> web.Response:
        change = sight.find(call.resource, call.name)
        options = virtualchanges.delete_options(body, call.dry_run)
        virtualapi.may_end(sight.viewer, change.entry, sight.source(change.entry), now=self._clock())
        if options.uid not in ("", change.entry.uid) or options.resource_version not in ("", str(change.revision)):
            raise virtualchanges.conflict(call.resource, call.name)
        take = virtualapi.ending(sight.viewer, self._clock())
        revision = change.revision if options.uid or options.resource_version else None
        await self._step(sight, change, take, revision, dry=options.dry_run)
        return _response(200, virtualstatus.done(call.resource.plural, call.name), virtualforms.PLAIN)

    async def _create(self, sight: Sight, call: Call, body: bodies.Body) -> web.Response:
        if call.resource is virtualobjects.REVOCATIONS:
            return await self._revoke(sight, call, body)
        new = virtualchanges.new_request(body, call.field_validation)
        dry = virtualchanges.dry_run(call.dry_run)
        record = virtualapi.ask(sight.viewer, new, str(uuid.uuid4()), self._clock())
        change = await self._finish(self._add(record, dry=dry))
        if not dry:
            logger.info("%s %s: asked by %r", change.kind, change.name, sight.viewer.identity.username)
            if change.entry is record or change.entry == record:
                self._asked(record)
        content = sight.content(call.resource, change, hidden=False)
        return self._object(sight, call, content, 201, new.warnings)

    async def _revoke(self, sight: Sight, call: Call, body: bodies.Body) -> web.Response:
        if not self._revokes:
            raise Problem(503, "no-state-folder", _NO_FOLDER)
        now = self._clock()
        new = virtualchanges.new_revocation(body, call.field_validation, now)
        dry = virtualchanges.dry_run(call.dry_run)
        entry = virtualapi.revoke(sight.viewer, new, str(uuid.uuid4()), now)
        change = Change(books.REVOCATIONS, entry.name, self._book.revision, entry)
        if not dry:
            change = await self._finish(self._book.add(books.REVOCATIONS, entry))
        if change.entry.uid != entry.uid or (dry and self._book.get(books.REVOCATIONS, entry.name) is not None):
            raise _taken(call.resource.plural, entry.name)
        if not dry:
            logger.info("%s %s: made by %r", change.kind, change.name, sight.viewer.identity.username)
        content = sight.content(call.resource, change, hidden=False)
        return self._object(sight, call, content, 201, new.warnings)

    async def _add(self, record: Record, *, dry: bool) -> Change:
        async with self._creating:  # of two at once, the second must see the first
            own = [c.entry for c in self._book.all(books.REQUESTS) if isinstance(c.entry, Record)]
            mine = [other for other in own if other.requester.key == record.requester.key]
            virtualapi.check_new(record, mine, self._book.pending(record.requester.key), self._clock())
            change = self._book.get(books.REQUESTS, record.name)
            if change is None:
                if dry:
                    return Change(books.REQUESTS, record.name, self._book.revision, record)
                change = await self._book.add(books.REQUESTS, record)
            if change.entry.uid != record.uid:
                raise _taken(books.REQUESTS, record.name)
            return change

    # ----- watching -----

    async def _watch(self, request: web.BaseRequest, sight: Sight, call: Call) -> web.StreamResponse:
        key = sight.viewer.key
        if len(self._watches) >= MAX_WATCHES or Counter(self._watches.values())[key] >= MAX_WATCHES_EACH:
            raise Problem(503, "too-many-watches", "tollgate: too many watches are open; end some, or try again later")
        await self._reach(call)
        end = asyncio.Event()
        self._watches[end] = key
        try:
            return await self._stream(request, virtualforms.JSON, _lines(Watch(sight, call, end)))
        finally:
            del self._watches[end]


async def _pieces(
    sight: Sight, call: Call, revision: int, changes: Sequence[Change], readable: frozenset[str]
) -> AsyncGenerator[bytes]:
    """A list, some of its items at a time. All of them as they were at that revision."""
    now = sight.clock()
    frame = virtualforms.frame(call.resource, call.form, revision, now)
    piece = frame.head
    for start in range(0, len(changes), TURN):
        items = []
        for change in changes[start : start + TURN]:
            hidden = sight.hides(change.entry) and change.name not in readable
            content = sight.content(call.resource, change, hidden=hidden)
            items.append(virtualforms.item(call.resource, content, call.form, now))
        yield piece + frame.between.join(items)
        await asyncio.sleep(0)
        piece = frame.between
    yield frame.tail


async def _lines(watch: Watch) -> AsyncGenerator[bytes]:
    """Each event is one line of JSON."""
    async with contextlib.aclosing(watch.events()) as events:
        async for kind, content in events:
            yield virtualforms.write({"type": kind, "object": content}, virtualforms.PLAIN) + b"\n"


def _taken(resource: str, name: str) -> Problem:
    return Problem(
        409,
        "already-there",
        f"{resource}.{virtualstatus.GROUP} {name}: the name is taken; use generateName",
        reason="AlreadyExists",
    )


def _phase(entry: Entry) -> str:
    if isinstance(entry, Revocation):
        return "lifted" if entry.lifted_by else "in force"
    return f"revoked by {entry.revoked_by}" if isinstance(entry, Grant) else entry.phase.value


async def _body(request: web.BaseRequest) -> bytes:
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_TIME):
            async for chunk in request.content.iter_any():
                found += chunk
                if len(found) > MAX_BODY:
                    raise Problem(413, "body-too-large", f"body: has over {MAX_BODY} bytes; send the change only")
    except TimeoutError:
        raise Problem(400, "body-late", "body: did not come in time; send it again") from None
    return bytes(found)


def _page(page: Page, if_none_match: str) -> web.Response:
    if page.path != virtualapi.OPENAPI_PATH:
        found = virtualdiscovery.group() if page.path == virtualapi.GROUP_PATH else virtualdiscovery.resource_list()
        return _response(200, found, virtualforms.PLAIN)
    etag = f'"{virtualdiscovery.openapi_hash()}"'
    if etag in if_none_match:
        return web.Response(status=304, headers={**_HEADERS, "ETag": etag})
    headers = {**_HEADERS, "Content-Type": virtualforms.JSON, "ETag": etag}
    return web.Response(body=virtualdiscovery.openapi(), headers=headers)


def _response(code: int, content: Content, form: Form, warnings: Sequence[str] = ()) -> web.Response:
    response = web.Response(
        status=code,
        body=virtualforms.write(content, form),
        headers={**_HEADERS, "Content-Type": form.media_type},
    )
    for warning in warnings:
        response.headers.add("Warning", f'299 - "{status.one_line(warning)}"')
    return response


def _failure(failure: Failure) -> web.Response:
    response = _response(failure.code, virtualstatus.failed(failure), virtualforms.PLAIN)
    response.headers["Tollgate-Reason"] = failure.cause
    return response
