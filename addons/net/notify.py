"""
Notifications: tells people that a question waits for them, by webhook, command or apprise.

In the background: `send` only puts the notice into a queue of each channel. A channel tries its
notices one at a time, and those that failed again later, without holding up the rest. Each channel
has its own queue and task, so that one that hangs hangs alone. What fails is in the log and nowhere
else: the question itself is in the book, where those who look find it.

The addresses carry secrets (Slack's are nothing else), so the log has scheme and host only, and
nothing of what a library says about them.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import importlib.util
import ipaddress
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import yarl

from addons.core import approvals, filemodes, notices
from addons.core.approvals import Phase, Record
from addons.core.notices import Notice

logger = logging.getLogger(__name__)

DELAYS = (2.0, 10.0, 40.0, 120.0)  # seconds before each further try: five in all, within five minutes
QUEUE = 100  # notices that one channel may be behind; the oldest go first
WEBHOOK_TIME = 10.0  # seconds for one answer
COMMAND_TIME = 30.0  # seconds of one run, of an apprise service too
CHECK_TIME = 30.0  # seconds, once at the start
GOODBYE = 1.0  # seconds at the end for what has not been tried yet
MAX_CHANNELS = 20
MIN_SECRET = 16  # bytes of a key for signatures
MAX_FILE = 64 * 1024  # bytes of a file of addresses
USER_AGENT = "tollgate/0.1"

APPRISING = Path(__file__).with_name("apprising.py")
# With what a program runs: no credential of the gateway's, and no proxy, is in its environment.
KEPT_ENVIRONMENT = ("HOME", "LANG", "PATH", "TZ")

type Current = Callable[[Record], Record | None]  # the record as it is now; None when it is gone


class NotifyError(Exception):
    """The settings cannot be used; one sentence, with no secret in it."""


class Undelivered(Exception):
    """A try failed. final: another one would too."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


class Channel(Protocol):
    """One place that notices go to."""

    @property
    def name(self) -> str:
        """For the log: no secret in it."""

    async def deliver(self, notice: Notice) -> None:
        """Raises Undelivered, within a time of its own."""

    async def close(self) -> None: ...


class Notifier:
    """All channels. Nothing happens before `start`, but for what is sent until then: that waits."""

    def __init__(
        self,
        webhooks: Sequence[str] = (),
        command: str = "",
        apprise_file: str = "",
        *,
        secret_file: str = "",
        current: Current = lambda record: record,
        clock: Callable[[], float] = time.time,
        delays: Sequence[float] = DELAYS,
    ) -> None:
        """
        webhooks: URLs, or `@FILE` with one in each line; https, or http on this machine. command: as a shell
        would split it. apprise_file: one URL in each line. secret_file: the key that signs what webhooks get.

        Checks all of it and raises NotifyError. That runs a program once, when there is an apprise_file.
        """
        secret = _secret(secret_file) if secret_file else b""
        channels: list[Channel] = [Webhook(url, secret) for word in webhooks for url in _urls_of(word)]
        if secret and not channels:
            raise NotifyError(
                "tollgate_notify_webhook_secret: there is no webhook to sign for; set one, or remove this"
            )
        if command:
            channels.append(Command(_program(command)))
        if apprise_file:
            channels.extend(_apprise_services(apprise_file))
        if len(channels) > MAX_CHANNELS:
            raise NotifyError(f"notifications: there are over {MAX_CHANNELS} places to send to; name fewer")
        self._lanes = [_Lane(channel, current, clock, delays) for channel in channels]
        self._stopped = False

    @property
    def channels(self) -> tuple[str, ...]:
        """For people, with no secret in them."""
        return tuple(lane.channel.name for lane in self._lanes)

    async def start(self) -> None:
        """Idempotent."""
        for lane in self._lanes:
            lane.start()

    def send(self, record: Record) -> None:
        """Tell of the record as it is. From the loop's thread; never waits, never raises."""
        if self._stopped or not self._lanes:
            return
        try:
            notice = notices.of_record(record)
            for lane in self._lanes:
                lane.put(record, notice)
        except Exception:
            # Direction: a question that nobody was told of is asked all the same.
            logger.exception("no notification of %s", getattr(record, "name", record))

    async def stop(self) -> None:
        """What has not been tried yet gets a moment. Idempotent."""
        self._stopped = True
        if self._lanes:
            await asyncio.gather(*(lane.stop() for lane in self._lanes))


# ----- the queue of one channel -----


@dataclass(slots=True)
class _Sending:
    record: Record
    notice: Notice
    due: float = 0.0  # of the loop's clock
    tries: int = 0


class _Lane:
    def __init__(self, channel: Channel, current: Current, clock: Callable[[], float], delays: Sequence[float]) -> None:
        self.channel = channel
        self._current = current
        self._clock = clock
        self._delays = delays
        self._waiting: deque[_Sending] = deque()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ending = False

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"notify {self.channel.name}")

    def put(self, record: Record, notice: Notice) -> None:
        self._add(_Sending(record, notice))

    async def stop(self) -> None:
        self._ending = True
        self._news.set()
        task, self._task = self._task, None
        if task is not None:
            await asyncio.wait((task,), timeout=GOODBYE)
            task.cancel()
            await asyncio.wait((task,), timeout=GOODBYE)
        await self.channel.close()

    def _add(self, sending: _Sending) -> None:
        if len(self._waiting) >= QUEUE:
            oldest = min(self._waiting, key=lambda one: one.record.created)
            self._waiting.remove(oldest)
            logger.warning("notify %s: %d are waiting, %s is dropped", self.channel.name, QUEUE, oldest.notice.name)
        self._waiting.append(sending)
        self._news.set()

    async def _run(self) -> None:
        while True:
            sending = await self._next()
            if sending is None:
                return
            if self._is_over(sending):
                logger.info("notify %s: %s is over, nobody needs to be told", self.channel.name, sending.notice.name)
            else:
                await self._try(sending)

    async def _next(self) -> _Sending | None:
        """The next that is due, taken out; None at the end."""
        loop = asyncio.get_running_loop()
        while True:
            self._news.clear()
            waiting = [one for one in self._waiting if not one.tries] if self._ending else self._waiting
            if self._ending and not waiting:
                return None
            first = min(waiting, key=lambda one: one.due, default=None)
            left = None if first is None else first.due - loop.time()
            if first is not None and left is not None and left <= 0:
                self._waiting.remove(first)
                return first
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._news.wait()

    def _is_over(self, sending: _Sending) -> bool:
        """Whether it was a question that has its answer by now."""
        if sending.record.phase is not Phase.PENDING:
            return False
        try:
            current = self._current(sending.record)
            return current is None or approvals.expire(current, self._clock()).phase is not Phase.PENDING
        except Exception:
            logger.exception("notify: whether %s is still open", sending.notice.name)
            return False

    async def _try(self, sending: _Sending) -> None:
        name, what = self.channel.name, f"{sending.notice.name} ({sending.notice.event})"
        sending.tries += 1
        try:
            await self.channel.deliver(sending.notice)
        except Undelivered as e:
            why, final = str(e), e.final
        except Exception as e:  # noqa: BLE001 -- its own text may have the address in it, and so may a traceback
            why, final = type(e).__name__, False
        else:
            logger.info("notify %s: told of %s", name, what)
            return
        if final or sending.tries > len(self._delays):
            logger.warning("notify %s: %s could not be told, and is not tried again: %s", name, what, why)
            return
        delay = self._delays[sending.tries - 1]
        logger.info("notify %s: %s could not be told, next try in %g s: %s", name, what, delay, why)
        sending.due = asyncio.get_running_loop().time() + delay
        self._add(sending)


# ----- webhooks -----


class Webhook:
    """POSTs the notice as JSON, signed when there is a secret, as standardwebhooks.com has it."""

    def __init__(self, url: str, secret: bytes = b"", clock: Callable[[], float] = time.time) -> None:
        self.name = _check_url(url)
        self._url = url
        self._secret = secret
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    async def deliver(self, notice: Notice) -> None:
        body = notices.payload(notice)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                trust_env=False,  # a proxy of the environment's would read along, and netrc is not ours to use
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=WEBHOOK_TIME),
            )
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT, **self._headers(notice, body)}
        try:
            # Not where a redirect says: that is another place than the operator named.
            async with self._session.post(
                yarl.URL(self._url), data=body, headers=headers, allow_redirects=False
            ) as answer:
                code = answer.status
        except TimeoutError:
            raise Undelivered(f"no answer within {WEBHOOK_TIME:g} s") from None
        except aiohttp.ClientConnectorCertificateError:
            raise Undelivered("its certificate is not trusted") from None
        except aiohttp.ClientConnectorError as e:
            raise Undelivered(e.os_error.strerror or "it cannot be reached") from None
        except aiohttp.ClientError as e:
            raise Undelivered(type(e).__name__) from None
        if 300 <= code < 400:
            raise Undelivered(f"it redirects (HTTP {code}), which is not followed; set the final address", final=True)
        if not 200 <= code < 300:
            # What it does not want now it does not want later, but for these.
            raise Undelivered(f"HTTP {code}", final=400 <= code < 500 and code not in (408, 425, 429))

    def _headers(self, notice: Notice, body: bytes) -> dict[str, str]:
        at = str(int(self._clock()))
        # Without a secret too: a receiver knows by the id what it has seen already.
        headers = {"webhook-id": notice.id, "webhook-timestamp": at}
        if self._secret:
            headers["webhook-signature"] = signature(self._secret, notice.id, at, body)
        return headers

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def signature(secret: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """`webhook-signature` of a body: HMAC-SHA256 over id, time and body."""
    signed = b".".join((message_id.encode("ascii", "replace"), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def _urls_of(word: str) -> list[str]:
    if not word.startswith("@"):
        return [word.strip()]
    # A command line is seen by everybody on the machine; a file need not be.
    return [line for _, line in _lines("tollgate_notify_webhook", word[1:])]


def _check_url(url: str) -> str:
    """Scheme and host, which is all that may be logged. Raises NotifyError, without the URL in it."""
    option = "tollgate_notify_webhook"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        yarl.URL(url)
    except ValueError:
        raise NotifyError(f"{option}: one of them is no URL") from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise NotifyError(f"{option}: one of them is no URL; write https://HOST/PATH, or @FILE for a file with them")
    shown = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"
    if parts.scheme == "http" and not _is_loopback(host):
        raise NotifyError(f"{option}: {shown} is not encrypted; write https:// (http is for this machine only)")
    return shown


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _secret(file: str) -> bytes:
    """`whsec_` and base64 as standardwebhooks.com has it, or any other line of text."""
    option = "tollgate_notify_webhook_secret"
    text = _read(option, file).strip()
    key = text.encode()
    if text.startswith("whsec_"):
        try:
            key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            raise NotifyError(f"{option}: {file}: what follows whsec_ is not base64") from None
    if len(key) < MIN_SECRET:
        raise NotifyError(f"{option}: {file}: has under {MIN_SECRET} bytes; make one with: openssl rand -base64 32")
    return key


# ----- programs -----


class Command:
    """Runs a program, without a shell, with the notice as JSON on its standard input."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.name = f"command {Path(argv[0]).name}"
        self._argv = argv

    async def deliver(self, notice: Notice) -> None:
        await _run(self._argv, notices.payload(notice))

    async def close(self) -> None:
        pass


class AppriseService:
    """One of apprise's services, in a process of its own (addons/net/apprising.py)."""

    def __init__(self, url: str, line: int) -> None:
        self.name = f"apprise {url.partition(':')[0][:20]} (line {line})"  # no host: in most of them it is a token
        self._url = url

    async def deliver(self, notice: Notice) -> None:
        urgent = notice.event == Phase.PENDING.lower()
        # On standard input: everybody on the machine sees a command line.
        asked = {"url": self._url, "title": notice.title, "text": notice.text, "urgent": urgent}
        await _run(_APPRISE, json.dumps(asked).encode())

    async def close(self) -> None:
        pass


_APPRISE = (sys.executable, "-I", str(APPRISING))


def _environment() -> Mapping[str, str]:
    return {"PATH": os.defpath, **{key: os.environ[key] for key in KEPT_ENVIRONMENT if key in os.environ}}


async def _run(argv: Sequence[str], given: bytes) -> None:
    """Run to the end; what takes too long, or is left behind when we stop, is killed with all its children."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,  # it may name addresses with secrets in them
            env=_environment(),
            cwd="/",
            start_new_session=True,  # a group of its own, to be killed as one
        )
    except OSError as e:
        raise Undelivered(f"it cannot be run: {e.strerror}") from None
    try:
        async with asyncio.timeout(COMMAND_TIME):
            await process.communicate(given)
    except TimeoutError:
        raise Undelivered(f"it did not end within {COMMAND_TIME:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
        raise Undelivered(f"it ended with {how}")


def _program(command: str) -> list[str]:
    option = "tollgate_notify_command"
    try:
        argv = shlex.split(command)
    except ValueError as e:
        raise NotifyError(f"{option}: cannot be split into words: {e}") from None
    found = shutil.which(str(Path(argv[0]).expanduser())) if argv else None
    if found is None:
        raise NotifyError(f"{option}: there is no program {argv[0] if argv else ''!r}; write its path")
    path = Path(found).absolute()
    if trouble := filemodes.trouble_at(path):
        raise NotifyError(f"{option}: {path}: {trouble}")  # it runs as the gateway does
    return [str(path), *argv[1:]]


def _apprise_services(file: str) -> list[AppriseService]:
    option = "tollgate_notify_apprise"
    if importlib.util.find_spec("apprise") is None:
        raise NotifyError(
            f"{option}: the package apprise is not there; install it: {sys.executable} -m pip install 'apprise>=1.9'"
        )
    lines = _lines(option, file)
    try:
        checked = subprocess.run(  # noqa: S603 -- our own program
            _APPRISE,
            input=json.dumps({"check": [url for _, url in lines]}).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd="/",
            timeout=CHECK_TIME,
            check=True,
        )
        unknown: Any = json.loads(checked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise NotifyError(f"{option}: the package apprise cannot be used; install it anew") from None
    if unknown:
        number, _ = lines[unknown[0]]
        raise NotifyError(f"{option}: {file}: line {number} is no URL that apprise knows")
    return [AppriseService(url, number) for number, url in lines]


# ----- files -----


def _lines(option: str, file: str) -> list[tuple[int, str]]:
    """(number, text) of the lines that say something; `#` begins a comment line."""
    numbered = enumerate((line.strip() for line in _read(option, file).splitlines()), 1)
    found = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    if not found:
        raise NotifyError(f"{option}: {file}: there is nothing in it; write one URL in each line")
    return found


def _read(option: str, file: str) -> str:
    path = Path(file).expanduser()
    try:
        if trouble := filemodes.trouble_at(path):
            raise NotifyError(f"{option}: {path}: {trouble}")  # whoever writes it is told all questions
        with path.open(encoding="utf-8") as opened:
            text = opened.read(MAX_FILE + 1)
    except OSError as e:
        raise NotifyError(f"{option}: {path}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise NotifyError(f"{option}: {path}: is not text in UTF-8") from None
    if len(text) > MAX_FILE:
        raise NotifyError(f"{option}: {path}: has over {MAX_FILE} bytes")
    return text
