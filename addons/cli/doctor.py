"""
`./run.sh doctor`: what a newcomer and an auditor ask first. Is everything there that the gateway needs,
and what could be done with the gateway's own credential?

Takes the options of `serve`, looks at what it would run with, and changes nothing.
"""

import argparse
import asyncio
import datetime
import json
import os
import ssl
import stat
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import aiohttp

from addons.cli import alive, serve
from addons.cli.arguments import split
from addons.cli.terminal import Screen, Styled
from addons.core import (
    authconfig,
    doctor,
    ownrights,
    policy,
    policycheck,
    policyfile,
    stack,
    waysaround,
)
from addons.core.doctor import Finding, Level
from addons.net import apiserver, checkups, issuers, ownlook

COULD_NOT_RUN = 2
_STYLES = {Level.OK: "green", Level.NOTE: "dim", Level.WARNING: "yellow", Level.PROBLEM: "red"}


@dataclass(frozen=True, slots=True)
class Setup:
    """What the gateway would run with."""

    args: argparse.Namespace
    server: apiserver.ApiServer
    auditor: apiserver.ApiServer  # who looks at RBAC and pods
    now: datetime.datetime


def parser() -> argparse.ArgumentParser:
    p = serve.parser("doctor")
    p.add_argument("--auditor", default="", metavar="FILE",
                   help="a kubeconfig that may read RBAC, ServiceAccounts, pods and Secrets' metadata, to look for "
                   "ways around the gateway; default: the gateway's own")  # fmt: skip
    p.add_argument("--json", action="store_true", help="the findings as JSON")
    p.add_argument("--strict", action="store_true", help="warnings, and what could not be told, are findings too")
    p.add_argument("--rbac", action="store_true", help="print the RBAC that would be enough, as YAML, and nothing else")
    return p


def main(argv: Sequence[str], out: TextIO | None = None) -> int:
    try:
        args = parser().parse_args(split(argv)[0])
    except SystemExit as e:
        return COULD_NOT_RUN if e.code else 0
    screen = Screen(out or sys.stdout)
    try:
        server = apiserver.load(args.kubeconfig or "")
        auditor = apiserver.load(args.auditor) if args.auditor else server
        chosen = stack.choose(args.only, args.without)
        setup = Setup(args, server, auditor, datetime.datetime.now(datetime.UTC))
        if args.rbac:
            screen.write(asyncio.run(enough(setup)))
            return 0
        found = asyncio.run(look(setup, chosen))
    except (apiserver.KubeconfigError, apiserver.ApiServerError, stack.StackError) as e:
        print(f"tollgate: {e}", file=sys.stderr)
        return COULD_NOT_RUN
    if args.json:
        screen.write(json.dumps(doctor.report(found, strict=args.strict), indent=2) + "\n")
    else:
        show(found, screen)
    return doctor.exit_code(found, strict=args.strict)


def show(found: Sequence[Finding], screen: Screen) -> None:
    for one in found:
        screen.line(Styled(f"{one.level.word:8}", _STYLES[one.level]), f"{one.check:12}", one.text)
        if one.cure:
            screen.line(" " * 20, Styled(one.cure, "bold"))
    counts = doctor.counted(found)
    screen.line(", ".join(f"{counts[level]} {level.word}" for level in sorted(Level, reverse=True)))


async def enough(setup: Setup) -> str:
    """The RBAC that would be enough. Raises ApiServerError when the API server cannot be asked who the gateway is."""
    try:
        await setup.server.refresh()
        who = await ownlook.whoami(setup.server)
        users, groups = waysaround.callers(await ownlook.cluster(setup.auditor))
        try:
            named = await ownlook.rules(setup.server, ["default"])
        except apiserver.ApiServerError:
            named = ownrights.Rules()
        # Those that it may be today stay, but for the cluster's own names: nobody comes by those.
        users += [name for name in named.names("users") if not name.startswith(authconfig.SYSTEM_PREFIX)]
        groups += [name for name in named.names("groups") if not name.startswith(authconfig.SYSTEM_PREFIX)]
        extras = [key.strip() for key in setup.args.forward_extra.split(",") if key.strip()]
        # Whoever is in system:masters is not narrowed by any RBAC: then it is for another.
        username = who.username if ownrights.MASTERS not in who.groups else ownrights.PROPOSED
        return ownrights.enough(users, groups, extras, username)
    finally:
        await setup.server.stop()
        await setup.auditor.stop()


async def look(setup: Setup, chosen: stack.Stack) -> list[Finding]:
    """All findings, in the order of the report."""
    try:
        found = [one async for one in _cluster(setup, chosen)]
    finally:
        await setup.server.stop()
        await setup.auditor.stop()
    if "authenticate" in chosen.addons:
        found += [one async for one in _issuers(setup)]
    if "block" in chosen.addons:
        found += _policies(setup)
    return [*found, *_folders(setup), *_files(setup), *_port(setup)]


# The cluster and our credential -----------------------------------------------------------------


async def _cluster(setup: Setup, chosen: stack.Stack) -> AsyncIterator[Finding]:
    impersonates = "upstream" not in chosen.addons or setup.args.upstream_identity != "gateway"
    found = await checkups.upstream(setup.server, setup.now, impersonates=impersonates)
    for one in found.findings:
        yield one
    if not found.reached:
        return
    try:
        await setup.auditor.refresh()
        seen = await ownlook.cluster(setup.auditor)
    except apiserver.ApiServerError as e:
        yield Finding("around", Level.NOTE, f"--auditor: {e}")
        return
    for one in waysaround.findings(seen):
        yield one


async def _issuers(setup: Setup) -> AsyncIterator[Finding]:
    if setup.args.auth:
        try:
            configured = _configured(setup.args.auth)
        except (authconfig.AuthConfigError, OSError, UnicodeDecodeError) as e:
            yield Finding("issuers", Level.PROBLEM, f"--auth: {' '.join(str(e).split())}")
            return
        for issuer in configured.issuers:
            try:
                _, keys = await issuers.fetch_openid(issuer)
            except (issuers.IssuerError, ssl.SSLError) as e:
                yield Finding("issuers", Level.PROBLEM, f"{issuer.url}: {e}", "its tokens are refused until this works")
            else:
                yield _keys(issuer.url, len(keys.keys))
        return
    try:
        issuer, keys = await issuers.Cluster(setup.server).fetch_issuer()
    except (issuers.IssuerError, aiohttp.ClientError) as e:
        yield Finding("issuers", Level.PROBLEM, f"the cluster's own: {e}", "tokens of ServiceAccounts are refused")
    else:
        yield _keys(f"the cluster's own, {issuer.url}", len(keys.keys))
    finally:
        await setup.server.stop()


def _configured(path: str) -> authconfig.AuthConfig:
    return authconfig.load(Path(path).expanduser().read_text(encoding="utf-8"))


def _keys(name: str, count: int) -> Finding:
    if not count:
        return Finding("issuers", Level.PROBLEM, f"{name}: its JWKS has no key that can be used")
    return Finding("issuers", Level.OK, f"{name}: {count} key{'' if count == 1 else 's'}")


# This machine -----------------------------------------------------------------------------------


def _policies(setup: Setup) -> Iterator[Finding]:
    paths = [Path(p).expanduser().absolute() for p in setup.args.policies.split(os.pathsep) if p]
    try:
        loaded = policyfile.load(paths)
    except policy.PolicyError as e:
        for problem in e.problems:
            yield Finding("policies", Level.PROBLEM, " ".join(str(problem).split()), "./run.sh policy check")
        return
    rules = sum(len(one.rules) for one in loaded.policies)
    yield Finding("policies", Level.OK, f"{rules} rules in {doctor.listed([one.name for one in loaded.policies])}")
    for warning in policycheck.warnings(loaded):
        yield Finding("policies", Level.WARNING, warning)
    if note := policycheck.nobody_approves(loaded):
        yield Finding("policies", Level.WARNING, note, "say who people are: policies/README.md")
    observing = [one.name for one in loaded.policies if one.observe]
    if setup.args.observe or observing:
        what = "all policies" if setup.args.observe else doctor.listed(observing)
        yield Finding("policies", Level.WARNING, f"observe mode: {what} decide and log, but stop nothing")


def _folders(setup: Setup) -> Iterator[Finding]:
    named = (("--state", setup.args.state), ("--recordings", setup.args.recordings))
    return checkups.folders((option, Path(text).expanduser().absolute()) for option, text in named)


def _files(setup: Setup) -> Iterator[Finding]:
    args = setup.args
    try:
        serve.refuse_writable(args)
    except (serve.UsageError, OSError) as e:
        yield Finding("files", Level.PROBLEM, str(e))
    for option, text in (("--kubeconfig", args.kubeconfig), ("--tls-key", args.tls_key)):
        path = Path(text or "").expanduser()
        if text and path.is_file() and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH) and not _read_only(path):
            yield Finding("files", Level.WARNING, f"{option}: others can read {path}", f"chmod 600 {path}")
    made = Path(args.state).expanduser() / "tls" / "tls.pem"
    chosen = Path(args.tls_cert).expanduser() if args.tls_cert else made
    if chosen == made and not made.is_file():
        yield Finding("certificate", Level.NOTE, "the serving certificate will be made at the first start")
        return
    cure = "renew it (--tls-cert)" if args.tls_cert else "restart the gateway: it makes a new one"
    yield from checkups.serving_certificate(chosen, cure, setup.now).findings


def _read_only(path: Path) -> bool:
    """A Secret that Kubernetes mounts is readable by the pod's group, and nobody else is there."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _port(setup: Setup) -> Iterator[Finding]:
    try:
        host, port = serve.address(setup.args.listen, "--listen")
        serve.check_free(host, port, "--listen")
    except serve.UsageError as e:
        if "cannot listen" not in str(e) or alive.trouble(alive.WHEN_ANY.get(host, host), port):
            yield Finding("port", Level.PROBLEM, str(e))
        else:
            yield Finding("port", Level.OK, f"a gateway answers at {setup.args.listen}")
    else:
        yield Finding("port", Level.OK, f"{setup.args.listen} is free")
    if setup.args.upstream_identity == "gateway":
        text = "--upstream-identity gateway: RBAC does not tell callers apart"
        yield Finding("identity", Level.WARNING, text, "impersonate, unless the API server cannot")
