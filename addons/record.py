"""
Record: every request of an identity is on record, masked, chained and signed.

What changes, executes or reveals is on disk before it goes upstream, and does not go when it cannot be
written. Reads are written soon after. What was refused is recorded with its reason; who has no
identity is counted only, or anybody could fill the disk. How it is written, chained and signed:
addons/net/recorder.py; what may be written of an exchange: addons/core/recordable.py.
"""

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

from mitmproxy import connection, ctx, exceptions, http, tcp
from mitmproxy.utils import human

from addons.core import (
    asciicast,
    auditevents,
    beforeimages,
    commands,
    facts,
    maskanswers,
    maskchannels,
    masking,
    maskpolicy,
    masktags,
    recordable,
    shipforms,
    status,
)
from addons.core.auditevents import Level, Stage
from addons.core.maskanswers import Form
from addons.core.masktext import TextMasker
from addons.core.model import ANONYMOUS, Operation
from addons.core.policy import DENY_ALL, PolicySet
from addons.core.recordable import Content
from addons.core.recordedstream import RecordedStream
from addons.mitm import answers, cutting, flowcopies, logs, meters, options, recordcopies, seal
from addons.net import apiserver, housekeeping, maskkeys, maskpatterns, objects, recordfiles, shipping, spool
from addons.net import beforeimages as fetching
from addons.net.recorder import Grow, Record, Recorder
from addons.net.recordfiles import RecorderError

logger = logging.getLogger(__name__)

LARGE = 256 * 1024  # bytes of a body that is masked in a thread
SWEEP = 1.0  # seconds until half a line of a stream is written, and what ended unseen
DRAIN = 5.0  # seconds at the end for what is still to be shipped

UNREADABLE_PROTOCOL = status.Refusal(
    403,
    "subprotocol-not-recorded",
    f"record: exec and attach are recorded in {' and '.join(maskchannels.PROTOCOLS)} only, and what runs is on record; "
    "name one of them in Sec-WebSocket-Protocol",
)
NOT_RECORDED = status.Refusal(
    503,
    "not-recorded",
    "record: this request cannot be put on record now (a full disk, most likely), so it was not sent to the API "
    "server; try again, and if it stays so tell the operator, the log says why",
)
STREAM_NOT_RECORDED = status.Refusal(
    503,
    "stream-not-recorded",
    "record: what goes through this stream cannot be put on record any more, so it ends; tell the operator, the log "
    "says why",
)


class Exchange:
    """What is to be known of one exchange until it is over."""

    __slots__ = ("asked", "before", "content", "lost", "operation", "person", "stream", "stream_name", "username")

    def __init__(self, asked: auditevents.Asked, username: str, operation: Operation | None) -> None:
        self.asked = asked
        self.username = username
        self.operation = operation
        self.content: Content = recordable.NO_CONTENT
        self.before: auditevents.Beside = auditevents.NOTHING_BESIDE
        self.stream: RecordedStream | None = None
        self.stream_name = ""
        self.person = False  # may use the room that is kept back
        self.lost = False  # a piece of the stream is not on disk

    def lose(self) -> None:
        self.lost = True


class RecordAddon:
    name = "tollgate_record"

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.housekeeper: housekeeping.Housekeeper | None = None
        self.shipper: shipping.Shipper | None = None
        self.spool: spool.Spool | None = None
        self.settings: tuple[Any, ...] = ()
        self.key = b""  # of tags, the same as in answers: a value can be followed from the one to the other
        self.strict = False
        self.level: Level | None = None
        self.server: apiserver.ApiServer | None = None  # None: no before-images
        self.up = False
        # Not weak: of one that no hook told of its end, the sweeper does. It drops what is over.
        self.exchanges: dict[http.HTTPFlow, Exchange] = {}
        self.told: WeakSet[http.HTTPFlow] = WeakSet()  # whose end is on record
        self.warming: asyncio.Task[None] | None = None
        self.sweeper: asyncio.Task[None] | None = None

    # ----- options -----

    def load(self, loader) -> None:
        cutting.install()
        options.declare_state(loader)
        options.declare_kubeconfig(loader)
        loader.add_option("tollgate_recordings", str, "", "Folder for recordings. Needed where record is in the stack.")
        loader.add_option(
            "tollgate_record_strict", bool, False, "Refuse reads too while nothing can be recorded. Default: they pass."
        )
        loader.add_option(
            "tollgate_record_level",
            str,
            "",
            "How much of a request is recorded where no rule says it: metadata, request or full. "
            "Default: metadata of reads, all of everything else.",
            choices=("", "metadata", "request", "full"),
        )
        loader.add_option("tollgate_record_idle", int, 30, "Minutes without activity after which a session is over.")
        loader.add_option("tollgate_record_rotate", str, "256m", "Size at which a session goes on in a new folder.")
        loader.add_option("tollgate_record_days", int, 90, "Days that recordings are kept. 0: for ever.")
        loader.add_option("tollgate_record_size", str, "0", "Size of all recordings; the oldest go first. 0: no limit.")
        loader.add_option("tollgate_record_quota", str, "1g", "Size of what one identity may record in a day.")
        loader.add_option(
            "tollgate_record_reserve", str, "512m", "Free space on the disk that is kept back for what people do."
        )
        loader.add_option("tollgate_record_compress", bool, False, "Compress sessions that are over (gzip).")
        loader.add_option(
            "tollgate_record_key",
            str,
            "",
            "Ed25519 key (PEM) that signs checkpoints. Default: made in the state folder.",
        )
        loader.add_option(
            "tollgate_ship",
            Sequence[str],
            [],
            "Where records and checkpoints are sent as well: stdout, syslog+tls://HOST, https://HOST/PATH.",
        )

    def configure(self, updated: set[str]) -> None:
        o = ctx.options
        self.strict = o.tollgate_record_strict
        self.level = auditevents.level(o.tollgate_record_level) if o.tollgate_record_level else None
        if "tollgate_kubeconfig" in updated:
            try:
                self.server = apiserver.shared(o.tollgate_kubeconfig)
            except apiserver.KubeconfigError as e:
                # Where requests go upstream, that addon refuses to start.
                self.server = None
                logger.warning("tollgate_kubeconfig: %s; what is deleted cannot be recorded", e)
        settings = tuple(getattr(o, name) for name in _FIXED)
        if settings == self.settings:
            return
        if self.up:
            raise exceptions.OptionsError("tollgate_record: the recorder cannot be changed while it runs; restart it")
        self.settings = settings
        self.close()
        if self.spool is not None:
            self.spool.close()
            self.spool = self.shipper = None
        if not o.tollgate_recordings:
            logger.error(
                "tollgate_recordings is not set, so nothing is recorded, and what must be on record is refused"
            )
            return
        try:
            self.open()
        except (RecorderError, maskkeys.KeyFileError, shipforms.TargetError, ValueError) as e:
            # direction: without a recorder what must be on record does not go up.
            raise exceptions.OptionsError(f"tollgate_recordings: {e}") from e
        except OSError as e:
            folder = Path(o.tollgate_recordings)
            raise exceptions.OptionsError(f"tollgate_recordings: {recordfiles.unwritable(folder, e)}") from e

    def open(self) -> None:
        o = ctx.options
        folder, state = Path(o.tollgate_recordings).expanduser(), Path(o.tollgate_state or o.tollgate_recordings)
        targets = [shipforms.read_target(text) for text in o.tollgate_ship]
        sinks = {target.name: shipping.make_sink(target) for target in targets}
        kept = recordfiles.Settings(
            folder=folder,
            state=state.expanduser(),
            key_file=Path(o.tollgate_record_key).expanduser() if o.tollgate_record_key else None,
            idle=o.tollgate_record_idle * 60.0,
            rotate_size=size(o.tollgate_record_rotate),
            quota=size(o.tollgate_record_quota),
            reserve=size(o.tollgate_record_reserve),
        )
        keeping = housekeeping.Keeping(o.tollgate_record_days, size(o.tollgate_record_size), o.tollgate_record_compress)
        self.key = maskkeys.tags(o.tollgate_state)
        if sinks:
            self.spool = spool.first_free(state.expanduser(), clock=lambda: auditevents.timestamp(time.time()))
            self.shipper = shipping.Shipper(self.spool, sinks)
        ship = self.spool.append if self.spool is not None else None
        self.recorder = Recorder(kept, recordable.event(self.key), ship=ship)
        self.housekeeper = housekeeping.Housekeeper(self.recorder, keeping)

    def running(self) -> None:
        meters.offer(self.name, self.readings)
        loop = asyncio.get_running_loop()
        self.warming = loop.create_task(self.warm(), name="tollgate record patterns")
        self.sweeper = loop.create_task(self.keep_sweeping(), name="tollgate record streams")
        if self.recorder is not None:
            self.up = True
        if self.housekeeper is not None:
            self.housekeeper.start()
        if self.shipper is not None:
            self.shipper.start()

    async def warm(self) -> None:
        await asyncio.to_thread(maskpatterns.warm, ctx.options.tollgate_state)
        logs.patterns_are_ready()

    def prepared(self) -> bool:
        """The guard waits for it before it opens the port."""
        return self.warming is not None and self.warming.done()

    def ready(self) -> bool:
        """Without a recorder nothing passes. One that cannot write now is no reason: reads do, and it may mend."""
        return self.recorder is not None

    def readings(self) -> list[meters.Reading]:
        if self.recorder is None:
            return []
        return [
            ("record_lag_seconds", (), self.recorder.lag),
            ("records_waiting", (), self.recorder.waiting),
            ("record_trouble", (), bool(self.recorder.trouble)),
        ]

    def done(self) -> asyncio.Task[None] | None:
        meters.withdraw(self.name, self.readings)
        for task in (self.warming, self.sweeper):
            if task is not None:
                task.cancel()
        try:
            self.end_all()
        finally:
            # Here, and not in the task: a script that is loaded again opens the same folder next.
            self.close()
        if self.shipper is None and self.spool is None:
            return None
        return asyncio.get_running_loop().create_task(self.end(), name="tollgate record end")

    def end_all(self) -> None:
        """
        What went up and has no whole answer yet is on record, too: a read is written only now, and nobody
        here hears of its end. An answer that comes after this finds no exchange, and so does not pass.
        """
        for flow in list(self.exchanges):
            if facts.of(flow).released:
                self.broken_off(flow, self.exchanges.pop(flow), "the gateway went down, or its recorder did")

    async def end(self) -> None:
        """What is written is given the chance to leave the machine."""
        if self.shipper is not None:
            if not await self.shipper.drained(DRAIN):
                logger.warning("not all records were shipped yet; the rest goes after the next start")
            await self.shipper.close()
        if self.spool is not None:
            self.spool.close()

    def close(self) -> None:
        if self.housekeeper is not None and self.up:
            self.housekeeper.stop()
        if self.recorder is not None:
            self.recorder.close()
        self.recorder, self.up = None, False

    # ----- requests -----

    def request(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        known = facts.of(flow)
        if known.answered_by:
            return None
        if seal.is_broken(flow):
            answers.refuse(flow, self.name, seal.CHANGED)
            return None
        operation = known.need_operation()
        if operation.upgrade == "websocket" and is_session(operation):
            # Of the protocols that it offers the server may choose any, and there are some that nobody reads here.
            words = flow.request.headers.get_all("sec-websocket-protocol")
            offered = maskchannels.offered(word.strip() for value in words for word in value.split(","))
            if not offered:
                answers.refuse(flow, self.name, UNREADABLE_PROTOCOL)
                return None
            flow.request.headers["sec-websocket-protocol"] = ", ".join(offered)
            seal.put(flow)
        known.audit_id = known.audit_id or str(uuid.uuid4())
        exchange = self.exchanges[flow] = self.exchange(flow, known, operation)
        if auditevents.must_be_written(operation):
            return self.write_ahead(flow, known, exchange, operation)
        if self.recorder is None or (self.strict and self.recorder.trouble_of(exchange.username)):
            answers.refuse(flow, self.name, NOT_RECORDED)
            return None
        # Last on purpose: addons/guard.py stops every flow that did not pass here.
        known.passed.add((self.name, "request"))
        return None

    def exchange(self, flow: http.HTTPFlow, known: facts.Facts, operation: Operation | None) -> Exchange:
        request = flow.request
        peer = flow.client_conn.peername
        asked = auditevents.Asked(
            audit_id=known.audit_id,
            method=request.method,
            uri=request.path,  # as it came: upstream may put the server's own path before it
            received=request.timestamp_start,
            user_agent=request.headers.get("user-agent", ""),
            source=peer[0] if peer else "",
        )
        return Exchange(asked, (known.identity or ANONYMOUS).username, operation)

    async def write_ahead(
        self, flow: http.HTTPFlow, known: facts.Facts, exchange: Exchange, operation: Operation
    ) -> None:
        """On disk, or it does not go."""
        try:
            if self.recorder is None:
                raise RecorderError("there is no recorder")
            raw, content_type = flow.request.raw_content or b"", flow.request.headers.get("content-type", "")
            level = current(known).record_level(operation)
            work = partial(recordable.request, operation, raw, content_type, self.key, level)
            exchange.content = await asyncio.to_thread(work) if len(raw) > LARGE else work()
            exchange.before = await self.before(flow, known, exchange, operation)
            record = self.record(flow, known, exchange, Stage.RECEIVED)
            await self.recorder.write(record)
        # A mask that failed, a file that cannot be written, whatever it is: no record, no request.
        except Exception as e:  # noqa: BLE001
            logger.error("not recorded, so not sent: %r: %s", operation.summary or operation.info.verb, why(e))
            self.exchanges.pop(flow, None)
            answers.refuse(flow, self.name, NOT_RECORDED)
            return
        known.passed.add((self.name, "request"))

    async def before(
        self, flow: http.HTTPFlow, known: facts.Facts, exchange: Exchange, operation: Operation
    ) -> auditevents.Beside:
        """
        What it is going to delete or change. What cannot be read is said, and stops nothing: who may
        delete need not be able to read.
        """
        plan = beforeimages.plan(operation, exchange.asked.uri, self.level_of(known, operation))
        if not plan.targets or self.server is None or known.served_here is not None:
            return auditevents.NOTHING_BESIDE
        as_gateway = getattr(ctx.options, "tollgate_upstream_identity", "impersonate") == "gateway"
        extra = frozenset(getattr(ctx.options, "tollgate_forward_extra", ()))
        who = None if as_gateway else known.identity or ANONYMOUS
        found = await fetching.fetch(objects.Fetcher(self.server, who, extra), plan)
        work = partial(self.images, current(known), found)
        images = await asyncio.to_thread(work) if found.size > LARGE else work()
        return auditevents.Beside(before=images, before_complete=found.complete, truncated=found.troubles)

    def images(self, policies: PolicySet, found: beforeimages.BeforeImages) -> list[Any]:
        """Masked as a read of each would be: rules for a kind hold where its namespace is deleted, too."""
        images = []
        for target, content in found.objects:
            reading = beforeimages.reading(target)
            place, level = maskanswers.place_of(reading), policies.record_level(reading)
            images.append(recordable.value(content, place, self.key, level).content)
        return images

    # ----- what is written -----

    def level_of(self, known: facts.Facts, operation: Operation | None) -> Level:
        if operation is None:
            return Level.METADATA
        if known.verdict.record:
            return auditevents.level(known.verdict.record)
        return self.level or auditevents.default_level(operation)

    def record(
        self,
        flow: http.HTTPFlow,
        known: facts.Facts,
        exchange: Exchange,
        stage: Stage,
        outcome: auditevents.Outcome | None = None,
        answer: Content = recordable.NO_CONTENT,
        *,
        ended: str = "",
    ) -> Record:
        """The event and the copy of the flow. Raises what masking raises."""
        operation = exchange.operation
        policies, identity = current(known), known.identity or ANONYMOUS
        level = self.level_of(known, operation)
        place = maskanswers.place_of(operation) if operation is not None else _NOWHERE
        masked = policies.record_level(operation) if operation is not None else maskpolicy.EVERYTHING
        uri = recordable.uri(exchange.asked.uri, place, self.key, masked)
        request = exchange.content if level is not Level.METADATA else recordable.NO_CONTENT
        kept = answer if level is Level.FULL else recordable.NO_CONTENT
        stream = exchange.stream
        parts = recordcopies.Parts(uri, place, self.key, request, kept, tuple(stream.frames) if stream else ())
        copy = flowcopies.serialise(
            flow, parts, summary=recordcopies.summary_of(known, operation), answer=outcome is not None
        )
        notes = tuple(note for note in (request.note, kept.note, *(_CUT if stream and stream.cut else ())) if note)
        if outcome is not None and outcome.code == 101 and stream is None:
            notes = (*notes, "what went through the connection is not recorded")
        event = auditevents.build(
            stage,
            replace(exchange.asked, uri=uri),
            known.identity,
            operation,
            # Where no policy was asked (a stack without block, a refusal before it) none said no.
            known.verdict if operation is not None and known.policies is not None else None,
            level=level,
            body=exchange.content.value,
            approved=auditevents.Approved(known.approval, known.approvers) if known.approval else None,
            outcome=outcome,
            beside=self.beside(exchange, known, outcome is None, request.masked + kept.masked, (*notes, *copy.cut)),
        )
        return Record(
            exchange.username,
            event,
            flow=copy.data,
            ahead=outcome is None,
            ends=(ended,) if ended else (),
            person=not policies.is_agent(identity),
        )

    def beside(
        self, exchange: Exchange, known: facts.Facts, ahead: bool, masked: int, notes: tuple[str, ...]
    ) -> auditevents.Beside:
        before = exchange.before if ahead else auditevents.NOTHING_BESIDE  # once, with the request
        if not (masked or notes or known.edited):
            return before
        return replace(before, masked=masked, edited=known.edited, truncated=(*before.truncated, *notes))

    # ----- answers -----

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        known, exchange = facts.of(flow), self.exchanges.get(flow)
        if not known.released:
            return
        if exchange is None or exchange.operation is None:
            return  # no stamp: nobody wrote down that it went up
        if self.wants_body(flow, known, exchange.operation):
            known.whole = True
        elif goes_on(exchange.operation) and flow.response.status_code < 300:
            # A stream may live for days; that it began is on record now.
            self.later(flow, known, exchange, Stage.STARTED, self.outcome(flow, known, flow.response.status_code))
        if flow.response.status_code == 101:
            self.begin_stream(flow, known, exchange)
        known.passed.add((self.name, "responseheaders"))

    def wants_body(self, flow: http.HTTPFlow, known: facts.Facts, operation: Operation) -> bool:
        """Whether the answer is kept whole for the record: at the full level, what comes as one object."""
        if self.level_of(known, operation) is not Level.FULL or known.served_here is not None:
            return False
        if flow.response.status_code == 101 or maskanswers.form_of(operation) is not Form.OBJECTS:
            return False
        length = flow.response.headers.get("content-length", "")
        if length.isdigit():
            return int(length) <= recordable.MAX_ANSWER
        return operation.info.verb in _ONE_OBJECT

    def outcome(
        self, flow: http.HTTPFlow, known: facts.Facts, code: int, ended: str = "", body: Any = None
    ) -> auditevents.Outcome:
        refused = not known.released
        response = flow.response
        return auditevents.Outcome(
            at=time.time(),
            code=code,
            refused_by=known.answered_by or "tollgate_guard" if refused else "",
            refusal=response.headers.get("tollgate-reason", "") if refused and response is not None else "",
            message=recordable.message_of(response.raw_content or b"") if refused and response is not None else "",
            ended=ended,
            body=body,
        )

    def response(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        known = facts.of(flow)
        if not known.released:
            self.refused(flow, known)
            return None
        code = answers.code(flow)
        goes_on = code == 101 and known.need_operation().upgrade == "websocket"  # what SPDY carries nobody reads here
        exchange = self.exchanges.get(flow) if goes_on else self.exchanges.pop(flow, None)
        if exchange is None:
            return None  # no stamp, see responseheaders
        if goes_on:
            known.passed.add((self.name, "response"))
            return None
        answer = known.answer if isinstance(known.answer, http.Response) and known.whole else None
        ended = known.answer_refusal.message if known.answer_refusal is not None else ""
        if answer is not None and len(answer.raw_content or b"") > LARGE:
            return self.complete_large(flow, known, exchange, answer)
        self.complete(flow, known, exchange, code, self.content_of(known, exchange, answer), ended=ended)
        known.passed.add((self.name, "response"))
        return None

    async def complete_large(
        self, flow: http.HTTPFlow, known: facts.Facts, exchange: Exchange, answer: http.Response
    ) -> None:
        content = await asyncio.to_thread(self.content_of, known, exchange, answer)
        self.complete(flow, known, exchange, answer.status_code, content)
        known.passed.add((self.name, "response"))

    def content_of(self, known: facts.Facts, exchange: Exchange, answer: http.Response | None) -> Content:
        operation = exchange.operation
        if answer is None or operation is None or self.level_of(known, operation) is not Level.FULL:
            return recordable.NO_CONTENT
        headers = answer.headers
        return recordable.answer(
            answer.raw_content or b"",
            headers.get("content-encoding", ""),
            headers.get("content-type", ""),
            answer.status_code,
            maskanswers.place_of(operation),
            self.key,
            current(known).record_level(operation),
        )

    def refused(self, flow: http.HTTPFlow, known: facts.Facts) -> None:
        """Answered by the gateway: on record with its reason; counted only, where nobody has an identity."""
        exchange = self.exchanges.pop(flow, None)
        if self.recorder is None:
            return
        if known.identity is None and exchange is None:
            self.recorder.count(flow.response.headers.get("tollgate-reason", "unknown"))
            return
        if exchange is None:
            known.audit_id = known.audit_id or str(uuid.uuid4())
            exchange = self.exchange(flow, known, known.operation)
        self.later(flow, known, exchange, Stage.COMPLETE, self.outcome(flow, known, flow.response.status_code))

    def complete(
        self,
        flow: http.HTTPFlow,
        known: facts.Facts,
        exchange: Exchange,
        code: int,
        content: Content = recordable.NO_CONTENT,
        *,
        ended: str = "",
    ) -> None:
        outcome = self.outcome(flow, known, code, ended, content.value)
        self.later(flow, known, exchange, Stage.COMPLETE, outcome, content)

    def later(
        self,
        flow: http.HTTPFlow,
        known: facts.Facts,
        exchange: Exchange,
        stage: Stage,
        outcome: auditevents.Outcome,
        content: Content = recordable.NO_CONTENT,
    ) -> None:
        """Written soon; what cannot be is counted by the recorder, and said in the next event."""
        if self.recorder is None:
            return
        ended = exchange.stream_name if stage is Stage.COMPLETE else ""
        try:
            with seen(flow, known):
                record = self.record(flow, known, exchange, stage, outcome, content, ended=ended)
            self.recorder.enqueue(record)
            if stage is Stage.COMPLETE:
                self.told.add(flow)
            if stage is Stage.COMPLETE:
                recordcopies.hand_out(flow, record.flow)
        except RecorderError as e:
            logger.error("not recorded: %s", e)
        # The request was answered already: it is not undone by a record that failed.
        except Exception as e:  # noqa: BLE001
            self.recorder.lose(exchange.username)
            logger.error("not recorded: %s", why(e))

    def error(self, flow: http.HTTPFlow) -> None:
        """The client left, or the API server did."""
        known = facts.of(flow)
        exchange = self.exchanges.pop(flow, None)
        if exchange is None:
            if known.identity is not None and not known.released and flow not in self.told:
                # It left while an approval was waited for, or a disk.
                exchange = self.exchange(flow, known, known.operation)
                gone = flow.error.msg if flow.error else "the client left"
                self.later(flow, known, exchange, Stage.COMPLETE, self.outcome(flow, known, 0, gone))
            return
        self.broken_off(flow, exchange, flow.error.msg if flow.error else "it ended without a word")

    def broken_off(self, flow: http.HTTPFlow, exchange: Exchange, ended: str) -> None:
        known = facts.of(flow)
        code = flow.response.status_code if flow.response is not None and known.head_released else 0
        self.end_stream(exchange, ended)
        self.complete(flow, known, exchange, code, ended=ended)

    # ----- exec and attach -----

    def begin_stream(self, flow: http.HTTPFlow, known: facts.Facts, exchange: Exchange) -> None:
        operation = exchange.operation
        protocol = flow.response.headers.get("sec-websocket-protocol", "")
        if operation is None or not is_session(operation) or operation.upgrade != "websocket":
            return
        if protocol not in maskchannels.PROTOCOLS:
            known.answer_refusal = UNREADABLE_PROTOCOL  # it chose what nobody had offered
            return
        query = flow.request.query
        tty = query.get("tty", "").lower() in ("1", "t", "true")
        place, level = maskanswers.place_of(operation), current(known).record_level(operation)
        new_masker = partial(TextMasker, self.key, place, secrets.token_bytes(8))
        title = masking.mask_text(operation.summary or commands.summary(operation), place, self.key)
        exchange.stream = RecordedStream(
            asciicast.Cast(title, time.time(), tty=tty, protocol=protocol),
            maskchannels.Channels(new_masker, lambda raw: masking.mask_json(raw, place, self.key, level)[0]),
            new_masker,
            # A password at a prompt has no shape, and what else is typed at a terminal comes back as its echo.
            typed=not tty,
        )
        exchange.stream_name = asciicast.file_name(known.audit_id)
        exchange.person = not current(known).is_agent(known.identity or ANONYMOUS)
        self.grow(exchange, exchange.stream.header(), goes_on=False)

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        known, exchange = facts.of(flow), self.exchanges.get(flow)
        if exchange is None:
            return  # no stamp: the frame goes nowhere, and the exchange ends
        message = flow.websocket.messages[-1]
        if self.recorder is None or exchange.lost or self.recorder.trouble_of(exchange.username):
            # What is executed is on record, or it is not executed.
            cutting.cut(flow, STREAM_NOT_RECORDED)
            return
        # What mask made several frames of comes again, one by one.
        if exchange.stream is not None and known.instead is None:
            try:
                piece = exchange.stream.frame(message.content, from_client=message.from_client, at=message.timestamp)
                self.grow(exchange, piece)
            except (maskchannels.NotMaskable, RecorderError) as e:
                logger.error("a frame could not be recorded: %s", e)
                cutting.cut(flow, STREAM_NOT_RECORDED)
                return
        known.judged.add(self.name)

    def grow(self, exchange: Exchange, piece: bytes, *, goes_on: bool = True) -> None:
        if piece and self.recorder is not None:
            files = {exchange.stream_name: piece}
            self.recorder.enqueue(Grow(exchange.username, files, exchange.person, goes_on, exchange.lose))

    def end_stream(self, exchange: Exchange, ended: str) -> None:
        if exchange.stream is not None:
            try:
                self.grow(exchange, exchange.stream.end(time.time(), ended))
            except RecorderError as e:
                logger.error("not recorded: %s", e)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        exchange = self.exchanges.pop(flow, None)
        if exchange is None:
            return
        known = facts.of(flow)
        cut = known.answer_refusal.message if known.answer_refusal is not None else ""
        self.end_stream(exchange, cut)
        self.complete(flow, known, exchange, 101, ended=cut)

    def tcp_message(self, flow: tcp.TCPFlow) -> None:
        """SPDY: that it was used is on record, what went through it is not."""
        if self.recorder is not None and not self.recorder.trouble:
            facts.of(flow).judged.add(self.name)

    async def keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            self.sweep()

    def sweep(self) -> None:
        for flow, exchange in list(self.exchanges.items()):
            # An error for one stream must not stop all others.
            try:
                if is_over(flow):
                    # After an exception in another addon's hook mitmproxy skipped ours: without this, a read that
                    # went up would be in no record.
                    self.exchanges.pop(flow, None)
                    if facts.of(flow).released:
                        self.broken_off(flow, exchange, "it ended unseen, after an error in the gateway")
                elif exchange.stream is None:
                    continue
                elif exchange.lost:
                    cutting.cut(flow, STREAM_NOT_RECORDED)
                else:
                    self.grow(exchange, exchange.stream.idle(time.time()))
            except RecorderError:
                exchange.lose()  # the next turn ends it
            except Exception:
                logger.exception("writing on what a stream holds back")


_NOWHERE = masktags.Place("text")
_ONE_OBJECT = frozenset({"create", "update", "patch", "delete", "get"})
_CUT = ("flow.websocket has its first frames only",)
_FIXED = (
    "tollgate_recordings",
    "tollgate_state",
    "tollgate_record_idle",
    "tollgate_record_rotate",
    "tollgate_record_days",
    "tollgate_record_size",
    "tollgate_record_quota",
    "tollgate_record_reserve",
    "tollgate_record_compress",
    "tollgate_record_key",
    "tollgate_ship",
)


def is_over(flow: http.HTTPFlow) -> bool:
    """mitmproxy has done with it; hooks that are called of its end were called before."""
    return not flow.live or flow.client_conn.state is connection.ConnectionState.CLOSED


def is_session(operation: Operation) -> bool:
    """Of those with a program at the other end."""
    return not operation.info.api_group and operation.info.subresource in ("exec", "attach")


class seen:  # noqa: N801 -- a context manager
    """While the guard withholds an answer a placeholder stands in its place: the copy has the answer."""

    def __init__(self, flow: http.HTTPFlow, known: facts.Facts) -> None:
        self.flow = flow
        self.answer = known.answer if isinstance(known.answer, http.Response) else None

    def __enter__(self) -> None:
        self.there = self.flow.response
        if self.answer is not None:
            self.flow.response = self.answer

    def __exit__(self, *_: object) -> None:
        self.flow.response = self.there


def size(text: str) -> int:
    """`256m` in bytes. Raises ValueError."""
    found = human.parse_size(text)
    if found is None or found < 0:
        raise ValueError(f"{text!r} is no size, e.g. 256m")
    return found


def goes_on(operation: Operation) -> bool:
    """Whether the answer may be a stream of any length."""
    return bool(operation.upgrade) or maskanswers.form_of(operation) in (Form.EVENTS, Form.TEXT)


def current(known: facts.Facts) -> PolicySet:
    return known.policies() if known.policies is not None else DENY_ALL


def why(error: Exception) -> str:
    """For the log: our own sentence, or the kind of error. Its text may quote what was to be masked."""
    return str(error) if isinstance(error, RecorderError | flowcopies.NotMasked) else type(error).__name__


addons = [RecordAddon()]
