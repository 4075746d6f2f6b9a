"""
Mask: what goes back to the client has no secret in it that the client may not see.

Who sees what is the policies' (`mask:` rules; without one agents see nothing of what is secret, and
people all of it). What is secret and what stands in its place is decided in addons/core/mask*.py;
here answers are asked for in a form that can be read (JSON), and masked: as a whole, event by event,
line by line or frame by frame. For whoever may see everything nothing is kept and nothing is read.

On the way in it refuses masked values that come back, and writes that are reads.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from mitmproxy import connection, ctx, exceptions, http, tcp, websocket

from addons.core import (
    facts,
    maskanswers,
    maskchannels,
    masking,
    maskmemory,
    maskpolicy,
    masktags,
    maskwrites,
    status,
)
from addons.core.maskanswers import Form
from addons.core.masking import Masked
from addons.core.masklines import EventMasker
from addons.core.masktext import TextMasker
from addons.core.model import ANONYMOUS, Operation
from addons.core.policy import DENY_ALL, PolicySet, describe
from addons.mitm import answers, bodies, cutting, injecting, logs, maskframes, meters, options, seal
from addons.mitm.maskframes import Frames
from addons.mitm.maskstreams import EventStream, Stream, TextStream
from addons.net import maskkeys, maskpatterns

logger = logging.getLogger(__name__)

LARGE = 256 * 1024  # bytes of an answer that is masked in a thread; some 8 ms of a list of Secrets
AT_ONCE = 2  # threads for large answers: a parsed one takes ten times its bytes, and there are two cores
HUGE = 8 * 1024 * 1024  # bytes; of these one after the other, since one of 60 MB takes 800 MB and many seconds
WARM_LIMIT = 10.0  # seconds that a request waits for the patterns; compiled for the first time they take 3
SWEEP = 1.0  # seconds between looks whether the policies of now mask more of what is open
# Everything a program behind a proxy may say in a header, but for what is about the message itself.
_FRAMING = frozenset(
    {
        *("content-type", "content-length", "content-encoding", "transfer-encoding", "connection", "date"),
        *("upgrade", "sec-websocket-accept", "sec-websocket-protocol", "audit-id"),
    }
)

NO_KEY = status.Refusal(
    503,
    "mask-unavailable",
    "tollgate: the gateway has no key for masking, so nothing was sent to the API server; tell the operator, the log "
    "says why",
)
NOT_PREPARED = status.Refusal(
    503,
    "mask-starting",
    "tollgate: the gateway is still getting ready to mask, so nothing was sent on; try again in a moment",
)
OTHER_LEVEL = status.Refusal(
    403,
    "mask-changed",
    "mask: the policies now mask something else of this stream than when it began, so it ends; start it again",
)


class Exchange(NamedTuple):
    """How one exchange is masked. No dataclass: those crash in a mitmproxy script."""

    level: maskpolicy.MaskLevel
    place: masktags.Place
    form: Form
    agent: bool
    revision: str  # of the policies that said so


class Mask:
    name = "tollgate_mask"

    def __init__(self) -> None:
        self.key = b""  # direction: without one nothing is sent
        self.memory: maskmemory.Memory | None = None  # values of Secrets, for text streams only
        # What is masked how, until it is over.
        self.exchanges: WeakKeyDictionary[http.HTTPFlow, Exchange] = WeakKeyDictionary()
        self.streams: WeakKeyDictionary[http.HTTPFlow, Stream] = WeakKeyDictionary()
        self.frames: WeakKeyDictionary[http.HTTPFlow, Frames] = WeakKeyDictionary()
        self.raw: WeakKeyDictionary[tcp.TCPFlow, bool] = WeakKeyDictionary()  # whether its bytes may be seen
        self.workers: ThreadPoolExecutor | None = None
        self.one_by_one: ThreadPoolExecutor | None = None  # for huge answers
        self.warming: asyncio.Task[None] | None = None
        self.sweeper: asyncio.Task[None] | None = None

    def load(self, loader) -> None:
        cutting.install()
        injecting.install()
        maskframes.install()
        bodies.install()
        options.declare_state(loader)

    def configure(self, updated: set[str]) -> None:
        if "tollgate_state" not in updated and self.key:
            return
        try:
            key = maskkeys.shared(ctx.options.tollgate_state)
        except maskkeys.KeyFileError as e:
            self.key = b""
            raise exceptions.OptionsError(f"tollgate_state: {e}") from e
        self.key = maskkeys.derived(key, maskkeys.TAGS)
        self.memory = maskmemory.Memory(maskkeys.derived(key, maskkeys.KNOWN))

    def running(self) -> None:
        self.workers = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tollgate mask")
        self.one_by_one = ThreadPoolExecutor(1, thread_name_prefix="tollgate mask huge")
        loop = asyncio.get_running_loop()
        self.warming = loop.create_task(self.warm(), name="tollgate mask patterns")
        self.sweeper = loop.create_task(self.keep_sweeping(), name="tollgate mask levels")

    async def warm(self) -> None:
        """The detectors' patterns, so that no request waits for them."""
        started = time.monotonic()
        await asyncio.to_thread(maskpatterns.warm, ctx.options.tollgate_state)
        logs.patterns_are_ready()
        logger.info("patterns of secrets are ready after %.1f s", time.monotonic() - started)

    def prepared(self) -> bool:
        """The guard waits for it before it opens the port."""
        return self.warming is not None and self.warming.done()

    def done(self) -> None:
        for task in (self.warming, self.sweeper):
            if task is not None:
                task.cancel()
        for workers in (self.workers, self.one_by_one):
            if workers is not None:
                # Not cancelled: a CancelledError would leave the hooks that wait, and their flows hang for ever.
                workers.shutdown(wait=False)

    # ----- requests -----

    def request(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        known = facts.of(flow)
        if known.answered_by:
            return None
        operation = known.need_operation()
        large = len(flow.request.raw_content or b"") > LARGE
        if large or (self.warming is not None and not self.warming.done()):
            return self.request_later(flow, known, operation, large=large)
        self.decide(flow, known, operation, maskwrites.comes_back(operation))
        return None

    async def request_later(
        self, flow: http.HTTPFlow, known: facts.Facts, operation: Operation, *, large: bool
    ) -> None:
        """The same, once the patterns are ready, and a large body looked at beside the loop."""
        if self.warming is not None:
            await asyncio.wait([self.warming], timeout=WARM_LIMIT)
            if not self.warming.done():  # else this thread would compile them, and everybody wait
                answers.refuse(flow, self.name, NOT_PREPARED)
                return
        looks = asyncio.to_thread(maskwrites.comes_back, operation) if large else None
        self.decide(flow, known, operation, await looks if looks else maskwrites.comes_back(operation))

    def decide(
        self, flow: http.HTTPFlow, known: facts.Facts, operation: Operation, refusal: status.Refusal | None
    ) -> None:
        exchange = self.exchange(known, operation)
        # Also where an approval was given: what comes back masked overwrites the value, whoever agreed.
        protocols = subprotocols(flow.request.headers)
        refusal = (
            refusal
            or (seal.CHANGED if seal.is_broken(flow) else None)
            or (NO_KEY if not self.key else None)
            or maskwrites.reads_back(operation, exchange.level)
            or maskchannels.refusal(operation, exchange.level, protocols)
        )
        if refusal is not None:
            answers.refuse(flow, self.name, refusal)
            return
        self.exchanges[flow] = exchange
        if exchange.level.masks and maskanswers.asks_for_json(operation):
            flow.request.headers["accept"] = maskanswers.accept(flow.request.headers.get_all("accept"))
        if operation.upgrade == "websocket" and maskchannels.masks(exchange.level):
            flow.request.headers["sec-websocket-protocol"] = ", ".join(maskchannels.offered(protocols))
        seal.put(flow)
        # Last on purpose: addons/guard.py stops every flow that did not pass here.
        known.passed.add((self.name, "request"))

    def exchange(self, known: facts.Facts, operation: Operation) -> Exchange:
        identity = known.identity or ANONYMOUS
        policies = current(known)
        level = policies.mask_level(identity, operation, approved=bool(known.approval))
        if known.approval and level != (usual := policies.mask_level(identity, operation)):
            # Break-glass. It is on record who saw what, and by whose yes.
            logger.warning(
                "reveal: %r for %r by %s (rules %s instead of %s)",
                describe(operation),
                identity.username,
                known.approval,
                ", ".join(level.rules),
                ", ".join(usual.rules) or "none",
            )
        form = maskanswers.form_of(operation)
        place = maskanswers.place_of(operation)
        return Exchange(level, place, form, policies.is_agent(identity), policies.revision)

    # ----- answers -----

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        known, exchange = facts.of(flow), self.exchanges.get(flow)
        if not known.released:
            return
        if exchange is None:
            return  # no stamp: nobody said how it is masked
        if self.memory is not None and flow.response.status_code < 300:
            self.learn(self.memory.wrote(known.need_operation(), agent=exchange.agent))
        if exchange.level.masks and known.served_here is None:
            self.prepare(flow, known, exchange)
        known.passed.add((self.name, "responseheaders"))

    def prepare(self, flow: http.HTTPFlow, known: facts.Facts, exchange: Exchange) -> None:
        """How the body is going to be masked, by what the head says of it."""
        response, form = flow.response, exchange.form
        self.mask_headers(flow, known.need_operation(), exchange)
        if response.status_code == 101 and maskchannels.masks(exchange.level):
            protocol = response.headers.get("sec-websocket-protocol", "")
            if response.headers.get("upgrade", "").lower() != "websocket" or not maskchannels.offered([protocol]):
                known.answer_refusal = maskchannels.BROKEN  # whatever it speaks instead, nobody can read it
        if form is Form.NOTHING or response.status_code == 101 or is_without_body(flow):
            return
        content_type = response.headers.get("content-type", "")
        failed = response.status_code != 200
        proxied = maskanswers.is_proxied(known.need_operation())
        if form is Form.TEXT and (proxied or not (failed and maskanswers.is_json(content_type))):
            if exchange.level.builtin:
                text = self.text_masker(exchange, cut_short=maskanswers.is_cut_short(flow.request.query))
                self.mask_stream(flow, known, TextStream(flow, text, maskanswers.STREAM_BROKEN))
        elif form is Form.EVENTS and not failed:
            masker = EventMasker(exchange.place, self.key, exchange.level, self.learner(known, exchange))
            submit = self.workers.submit if self.workers is not None else None
            self.mask_stream(flow, known, EventStream(flow, masker, maskanswers.STREAM_BROKEN, submit))
        else:
            known.whole = True
            if int(response.headers.get("content-length", "0") or "0") > maskanswers.MAX_WHOLE:
                known.answer_refusal = maskanswers.TOO_LARGE

    def mask_headers(self, flow: http.HTTPFlow, operation: Operation, exchange: Exchange) -> None:
        """Warnings quote values that somebody did not like; a program behind a proxy says what it likes."""
        proxied = maskanswers.is_proxied(operation)
        fields = []
        for name, value in flow.response.headers.fields:
            lower = name.lower()
            if lower == b"warning" or (proxied and lower.decode("latin-1") not in _FRAMING):
                mask_value = maskanswers.warning if lower == b"warning" else maskanswers.header
                text = value.decode("latin-1")
                value = mask_value(text, exchange.place, self.key, exchange.level).encode("latin-1")
            fields.append((name, value))
        flow.response.headers = http.Headers(fields)

    def mask_stream(self, flow: http.HTTPFlow, known: facts.Facts, stream: Stream) -> None:
        response = flow.response
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            # Nobody was asked for a compressed one.
            known.answer_refusal = maskanswers.UNREADABLE
            return
        if flow.client_conn.alpn == b"h2":  # over HTTP/1.1 addons/upstream.py makes chunks of it
            response.headers.pop("content-length", None)
        drop_validators(response.headers)
        self.streams[flow], known.chunks = stream, stream

    def text_masker(self, exchange: Exchange, *, same_length: bool = False, cut_short: bool = False) -> TextMasker:
        """A new one for each stream (stdout, stderr, a log), with a nonce of its own."""
        known = self.memory.known if self.memory is not None else None
        nonce = secrets.token_bytes(8)
        return TextMasker(self.key, exchange.place, nonce, known, same_length=same_length, cut_short=cut_short)

    def learner(self, known: facts.Facts, exchange: Exchange) -> Callable[[Any], None] | None:
        operation = known.need_operation()
        if self.memory is None or not maskmemory.is_of_secrets(operation):
            return None
        memory = self.memory
        return lambda content: self.learn(memory.answered(operation, content, agent=exchange.agent))

    def learn(self, values: list[bytes]) -> None:
        """Beside the loop, and after the answer: a list of a thousand keys takes a second."""
        if not values or self.memory is None:
            return
        if self.workers is None:
            self.memory.learn(values)
            return
        with contextlib.suppress(RuntimeError):  # the script was left; another remembers
            self.workers.submit(self.memory.learn, values)

    def response(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        known, exchange, stream = facts.of(flow), self.exchanges.get(flow), self.streams.pop(flow, None)
        if answers.code(flow) != 101:  # an upgraded one has only begun
            self.exchanges.pop(flow, None)
        known.chunks = None  # which holds the flow, and this what is known of it
        if stream is not None and stream.masked:
            meters.note("masked_values", stream.masked)
        if not known.released or exchange is None:
            return None
        if stream is not None and stream.failed:
            return None  # no stamp: it breaks off, and does not end as if it were complete
        answer = known.answer
        if known.whole and exchange.level.masks and exchange.form is not Form.NOTHING and answer is not None:
            raw = answer.raw_content or b""
            if len(raw) > LARGE:
                return self.mask_large(flow, known, exchange, answer)
            self.replace(answer, known, masked_answer(answer, exchange, self.key, self.learner(known, exchange)))
        if exchange.level.masks:
            flow.response.trailers = None  # nobody looked at them
        known.passed.add((self.name, "response"))
        return None

    async def mask_large(
        self, flow: http.HTTPFlow, known: facts.Facts, exchange: Exchange, answer: http.Response
    ) -> None:
        learner = self.learner(known, exchange)
        work = partial(masked_answer, answer, exchange, self.key, learner)
        # A compressed one may be any size; nobody is asked for one.
        is_huge = len(answer.raw_content or b"") > HUGE or "content-encoding" in answer.headers
        workers = self.one_by_one if is_huge else self.workers
        self.replace(answer, known, await asyncio.get_running_loop().run_in_executor(workers, work))
        flow.response.trailers = None
        known.passed.add((self.name, "response"))

    def replace(self, answer: http.Response, known: facts.Facts, made: "tuple[bytes, Masked] | status.Refusal") -> None:
        """The answer with what came of masking it."""
        if isinstance(made, status.Refusal):
            logger.error("withheld the answer to %r: %s", describe(known.need_operation()), made.cause)
            known.answer = answers.response(made)
            return
        content, masked = made
        answer.trailers = None
        if content is answer.raw_content:
            return
        answer.headers.pop("content-encoding", None)
        drop_validators(answer.headers)
        answer.raw_content = content
        if "transfer-encoding" not in answer.headers:
            answer.headers["content-length"] = str(len(content))
        if masked.count:
            meters.note("masked_values", masked.count)
            logger.info("masked %d values in the answer to %r", masked.count, describe(known.need_operation()))

    def error(self, flow: http.HTTPFlow) -> None:
        self.forget(flow)

    def forget(self, flow: http.HTTPFlow) -> None:
        self.exchanges.pop(flow, None)
        self.streams.pop(flow, None)
        facts.of(flow).chunks = None
        if (frames := self.frames.pop(flow, None)) is not None:
            frames.stop()

    # ----- open streams -----

    async def keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            try:
                self.sweep()
            # An error for one stream must not keep all others open.
            except Exception:
                logger.exception("looking again at how open streams are masked")

    def sweep(self) -> None:
        """End what the policies of now would mask in another way than it is."""
        for flow, exchange in list(self.exchanges.items()):
            known = facts.of(flow)
            if flow.client_conn.state is connection.ConnectionState.CLOSED:
                self.forget(flow)  # SPDY: no hook of ours tells its end
            elif known.released and current(known).revision != exchange.revision:
                now = self.exchange(known, known.need_operation())
                if (now.level.builtin, now.level.masked, now.level.shown) != (
                    exchange.level.builtin,
                    exchange.level.masked,
                    exchange.level.shown,
                ):
                    cutting.cut(flow, OTHER_LEVEL)
                self.exchanges[flow] = exchange._replace(revision=now.revision)

    # ----- frames -----

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        known, exchange = facts.of(flow), self.exchanges.get(flow)
        if exchange is None:
            return  # no stamp: the frame goes nowhere, and the exchange ends
        message = flow.websocket.messages[-1]
        if maskchannels.masks(exchange.level) and not message.from_client and not is_last(message, known):
            try:
                self.frames_of(flow, exchange).judge(message)
            except maskchannels.NotMaskable as e:
                logger.error("frames of %r could not be masked: %s", describe(known.need_operation()), e)
                cutting.cut(flow, maskchannels.BROKEN)
                return
        known.judged.add(self.name)

    def frames_of(self, flow: http.HTTPFlow, exchange: Exchange) -> Frames:
        found = self.frames.get(flow)
        if found is None:
            query = flow.request.query
            keeps_length = maskchannels.keeps_length(query.get_all("command"))
            terminal = query.get("tty", "").lower() in ("1", "t", "true")
            channels = maskchannels.Channels(
                partial(self.text_masker, exchange, same_length=keeps_length),
                lambda raw: masking.mask_json(raw, exchange.place, self.key, exchange.level)[0],
            )
            found = self.frames[flow] = Frames(flow, channels, terminal=terminal)
        return found

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        self.forget(flow)

    def tcp_message(self, flow: tcp.TCPFlow) -> None:
        """SPDY, which is refused for whoever is masked; and whatever else was answered in its place."""
        known = facts.of(flow)
        if flow not in self.raw:
            self.raw[flow] = not maskchannels.masks(self.exchange(known, known.need_operation()).level)
        if self.raw[flow]:
            known.judged.add(self.name)


def current(known: facts.Facts) -> PolicySet:
    """direction: where no policies are, everybody is an agent, and so is masked."""
    return known.policies() if known.policies is not None else DENY_ALL


def subprotocols(headers: http.Headers) -> list[str]:
    return [word.strip() for value in headers.get_all("sec-websocket-protocol") for word in value.split(",")]


def is_last(message: websocket.WebSocketMessage, known: facts.Facts) -> bool:
    """Our own, which the guard lets pass; an empty one is not."""
    return message.content == known.last_words != b""


def is_without_body(flow: http.HTTPFlow) -> bool:
    return flow.request.method == "HEAD" or flow.response.status_code in (204, 304)


def drop_validators(headers: http.Headers) -> None:
    """What is compared with the bytes that the API server sent, which these are not."""
    for name in ("etag", "content-md5", "digest", "content-digest", "repr-digest"):
        headers.pop(name, None)


def masked_answer(
    answer: http.Response, exchange: Exchange, key: bytes, learn: Callable[[Any], None] | None
) -> tuple[bytes, Masked] | status.Refusal:
    """The whole answer masked, or why not. Raises nothing but for a mistake of ours, which withholds it, too."""
    raw = answer.raw_content or b""
    try:
        plain = maskanswers.decoded(raw, answer.headers.get("content-encoding", ""))
        content_type = answer.headers.get("content-type", "")
        content, masked = maskanswers.whole(
            plain, answer.status_code, content_type, exchange.place, key, exchange.level, learn
        )
    except status.Refused as e:
        return e.refusal
    return (raw if content is plain else content), masked


addons = [Mask()]
