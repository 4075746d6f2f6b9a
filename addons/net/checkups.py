"""
What the doctor looks at, of the API server and of this machine: for `./run.sh doctor`, which is asked once,
and for the running gateway, which looks now and then, beside the requests and never in their way.

Reads only. Findings are words for the operator; readings are the same as numbers, and neither knows a secret.
"""

import asyncio
import datetime
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from addons.core import doctor, filemodes, owncredential, ownrights
from addons.core.doctor import Finding, Level
from addons.net import ownlook, store
from addons.net.apiserver import ApiServer, ApiServerError

logger = logging.getLogger(__name__)

PERIOD = 300.0  # seconds between two looks of a running gateway; what it looks at changes in hours
LIMIT = 60.0  # seconds for all questions of one look
DISK_LIMIT = 5.0  # seconds for the folders; a network disk may hang
LOW_SPACE = 1 << 30  # bytes free where state and recordings are

type Reading = tuple[str, tuple[str, ...], float]


@dataclass(slots=True)
class Seen:
    """What one look found."""

    findings: list[Finding] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    reached: bool = False  # the API server answered, as us


# The API server and our credential ---------------------------------------------------------------


async def upstream(server: ApiServer, now: datetime.datetime, *, impersonates: bool) -> Seen:
    """Whether the API server is there, by which clock, and what could be done with the credential for it."""
    seen, where = Seen(), server.endpoint
    try:
        ends = await ownlook.serving_certificate(server)
    except ApiServerError as e:
        cure = f"is {where.host}:{where.port} right, and its CA in the kubeconfig?"
        seen.findings.append(Finding("upstream", Level.PROBLEM, str(e), cure))
        return seen
    seen.readings.append(("certificate_expires_timestamp_seconds", ("api-server",), ends.timestamp()))
    seen.findings.append(doctor.certificate("upstream", "the API server's certificate", ends, now, "have it renewed"))
    try:
        if not server.has_credential:
            await server.refresh()
        version, theirs = await ownlook.version(server)
        who = await ownlook.whoami(server)
        credential = await asyncio.to_thread(server.describe)
    except (ApiServerError, OSError, ValueError) as e:
        cure = "401: the gateway's own credential is not, or no longer, valid" if "401" in str(e) else ""
        seen.findings.append(Finding("upstream", Level.PROBLEM, str(e), cure))
        return seen
    seen.reached = True
    text = f"API server {version} at {where.host}:{where.port}; the gateway is {who.username}"
    seen.findings.append(Finding("upstream", Level.OK, text))
    if theirs:
        ahead = time.time() - theirs
        seen.readings.append(("clock_skew_seconds", (), ahead))
        seen.findings.append(doctor.clock(ahead))
    seen.readings.append(("credential_static", (), float(credential.static)))
    seen.findings.append(owncredential.finding(credential, now.timestamp()))
    answers = await ownlook.may(server, ownrights.QUESTIONS)
    seen.readings.append(("credential_cluster_admin", (), float(bool(ownrights.cluster_admin(answers, who.groups)))))
    seen.findings += ownrights.blast_radius(answers, who.groups, impersonates=impersonates)
    try:
        rules = await ownlook.rules(server, ["default", "kube-system"])
    except ApiServerError as e:
        seen.findings.append(Finding("rights", Level.NOTE, f"its rules could not be listed: {e}"))
    else:
        seen.findings += ownrights.findings(rules, answers, who.groups)
    return seen


# This machine -----------------------------------------------------------------------------------


def folder(option: str, path: Path) -> Finding:
    """Whether the gateway can work in it and others cannot. Raises StoreError, OSError."""
    if not path.exists():
        parent = next(one for one in path.parents if one.exists())
        if not os.access(parent, os.W_OK):
            return Finding("folders", Level.PROBLEM, f"{option}: {path} cannot be made in {parent}")
        return Finding("folders", Level.NOTE, f"{option}: {path} will be made at the first start")
    if option == "--state":
        store.check(path)
    mode = path.stat().st_mode
    if not os.access(path, os.W_OK | os.X_OK):
        return Finding("folders", Level.PROBLEM, f"{option}: {path} cannot be written by this user")
    if why := filemodes.trouble_at(path):
        return Finding("folders", Level.PROBLEM, f"{option}: {path}: {why}")
    if option == "--state" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        # Keys and approvals are 0600 in it all the same.
        return Finding("folders", Level.WARNING, f"{option}: others can look into {path}", f"chmod 700 {path}")
    free = shutil.disk_usage(path).free
    if free < LOW_SPACE:
        return Finding("folders", Level.WARNING, f"{option}: {path} has {free >> 20} MiB left")
    return Finding("folders", Level.OK, f"{option}: {path}, {free >> 30} GiB free")


def folders(named: Iterable[tuple[str, Path]]) -> Iterator[Finding]:
    """Of each (option, path)."""
    for option, path in named:
        try:
            yield folder(option, path)
        except (store.StoreError, OSError) as e:
            yield Finding("folders", Level.PROBLEM, f"{option}: {e}")


def serving_certificate(path: Path, cure: str, now: datetime.datetime) -> Seen:
    """How long the gateway's own certificate lasts. cure: how it is renewed."""
    try:
        leaf = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError, IndexError) as e:
        return Seen([Finding("certificate", Level.PROBLEM, f"{path}: no certificate in PEM: {e}")])
    ends = leaf.not_valid_after_utc
    found = doctor.certificate("certificate", "the serving certificate", ends, now, cure)
    return Seen([found], [("certificate_expires_timestamp_seconds", ("serving",), ends.timestamp())])


# Again and again ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subject:
    """What a running gateway looks at."""

    server: ApiServer | None
    folders: tuple[tuple[str, Path], ...]  # (option, path)
    certificate: Path | None
    impersonates: bool = True


class Checkups:
    """The looks of a running gateway: what the last one found, until the next."""

    def __init__(self, subject: Subject, clock: Callable[[], float] = time.time) -> None:
        self._subject = subject
        self._clock = clock
        self._disk: asyncio.Future[Seen] | None = None
        self._told: set[tuple[str, Level]] = set()
        self.findings: tuple[Finding, ...] = ()
        self.readings: tuple[Reading, ...] = ()

    async def keep_looking(self) -> None:
        """For ever, one look a PERIOD."""
        while True:
            await self.look()
            await asyncio.sleep(PERIOD)

    async def look(self) -> None:
        """Look once. Raises nothing: what cannot be looked at is a finding."""
        now = self._clock()
        try:
            seen = await self._look(datetime.datetime.fromtimestamp(now, datetime.UTC))
        except Exception as e:  # the next look is to come, whatever became of this one
            logger.exception("doctor: a look failed")
            # Of the last look's numbers none is shown as if it were of now.
            seen = Seen([Finding("doctor", Level.WARNING, f"a look failed ({type(e).__name__})")])
        self._tell(seen.findings)
        self.findings = tuple(seen.findings)
        self.readings = (*seen.readings, ("doctor_looked_timestamp_seconds", (), now))

    async def _look(self, now: datetime.datetime) -> Seen:
        seen = await self._machine(now)
        server = self._subject.server
        if server is None:
            return seen
        try:
            async with asyncio.timeout(LIMIT):
                far = await upstream(server, now, impersonates=self._subject.impersonates)
        except TimeoutError:
            far = Seen([Finding("upstream", Level.WARNING, f"the API server took over {LIMIT:.0f} s to answer")])
        return Seen([*far.findings, *seen.findings], [*far.readings, *seen.readings])

    async def _machine(self, now: datetime.datetime) -> Seen:
        """In a thread, and one at a time: a disk that hangs must not take thread after thread from the requests."""
        if self._disk is None:
            self._disk = asyncio.get_running_loop().run_in_executor(None, self._look_at_disk, now)
        await asyncio.wait((self._disk,), timeout=DISK_LIMIT)
        if not self._disk.done():
            return Seen([Finding("folders", Level.PROBLEM, f"the disk did not answer within {DISK_LIMIT:.0f} s")])
        done, self._disk = self._disk, None
        return done.result()

    def _look_at_disk(self, now: datetime.datetime) -> Seen:
        seen = Seen(list(folders(self._subject.folders)))
        if self._subject.certificate is not None:
            own = serving_certificate(self._subject.certificate, "restart the gateway, or renew --tls-cert", now)
            seen = Seen([*seen.findings, *own.findings], own.readings)
        return seen

    def _tell(self, findings: Iterable[Finding]) -> None:
        """The log has each when it comes, and when it is over; not every time."""
        bad = [one for one in findings if one.level >= Level.WARNING]
        for one in bad:
            if (one.check, one.level) not in self._told:
                logger.warning("doctor: %s: %s%s", one.check, one.text, f"; {one.cure}" if one.cure else "")
        kinds = {(one.check, one.level) for one in bad}
        for check in sorted({check for check, _ in self._told} - {check for check, _ in kinds}):
            logger.info("doctor: %s: nothing to complain about any more", check)
        self._told = kinds
