"""
`./run.sh serve` and `./run.sh web`: check everything that can be wrong, then become mitmdump
or mitmweb with the stack of addons and every dangerous option of mitmproxy set to its safe value.
"""

import argparse
import asyncio
import datetime
import ipaddress
import os
import re
import resource
import shlex
import socket
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from addons.cli.arguments import split, state_default
from addons.core import authconfig, filemodes, owncredential, policy, policyfile, revocations, stack
from addons.mitm import options as mitm_options
from addons.net import apiserver, certificates, files, ownlook, revoking, store, undumpable

ROOT = Path(__file__).resolve().parents[2]
IDLE = 4 * 3600  # seconds until an idle connection is closed; the kubelet's own limit for streams
ASKING = 5.0  # seconds at a start for what the gateway's own credential may do
_DECIDING = ("--auth", "--kubeconfig", "--tls-cert", "--tls-key", "--departed-owners")
# In a kubeconfig; others are in files of their own.
_CREDENTIAL = re.compile(rb"(?:token|password|client-key-data)\"?\s*:")
_SECRET_STATE = (
    *("tls/*.key", "tls/*.pem", "upstream/*.pem", "mask.key", "recording.key", "state.db*"),
    "mitmproxy/mitmproxy-ca.p*",
)
_GATEWAY_EXITS = """
Exit status: 0 when it was stopped (Ctrl-C, SIGTERM), 1 when it could not start (the sentence says why),
2 when an option is not known.
"""
_EPILOGS = {
    "serve": f"""\
  ./run.sh serve
  ./run.sh serve --listen 0.0.0.0:8443 --policies policies:policies/packs/workloads.yaml
  ./run.sh serve --observe
  ./run.sh serve -- --set tollgate_source_rate=50
  ./run.sh serve --print
{_GATEWAY_EXITS}""",
    "web": f"""\
  ./run.sh web
  ./run.sh web --listen 0.0.0.0:8443 --web 127.0.0.1:8081
{_GATEWAY_EXITS}""",
    "doctor": """\
  ./run.sh doctor
  ./run.sh doctor --kubeconfig gateway.kubeconfig --auditor ~/.kube/config --strict
  ./run.sh doctor --rbac > enough.yaml

Exit status: 0 good, 1 something to do, 2 could not run.
""",
}
BODY_LIMIT = "3m"  # the API server's own limit for request bodies (MaxRequestBodyBytes)
# Of mitmweb's list: the comment, which has the verdict and the rule, in place of whether there was TLS (always).
WEB_COLUMNS = ("icon", "method", "path", "status", "size", "time", "comment")


class UsageError(Exception):
    """Something the caller has to change first; one sentence."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is going to run."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]  # what is added to the process's own
    ca_file: Path | None

    def command(self) -> str:
        """The command line to paste into a shell, one option a line."""
        words = [f"{k}={shlex.quote(v)}" for k, v in self.environment.items()]
        lines: list[str] = []
        for word in self.argv:
            if word.startswith("-") or not lines:
                lines.append(shlex.quote(word))
            else:
                lines[-1] += " " + shlex.quote(word)
        return "env " + " ".join(words) + " " + " \\\n  ".join(lines)


def parser(command: str) -> argparse.ArgumentParser:
    described = {
        "serve": "Run the gateway before the cluster of your kubeconfig (or of this pod), as mitmdump.",
        "web": "The same as serve, with mitmproxy's web interface to watch the traffic.",
        "doctor": "Check what serve would run with, and what could be done with the gateway's own credential. "
        "It takes the options of serve and changes nothing.",
    }
    common = " Each option can also be given as an environment variable TOLLGATE_…, e.g. TOLLGATE_TLS_CERT."
    if command != "doctor":
        common += " What follows -- goes to mitmproxy."
    p = argparse.ArgumentParser(
        prog=f"./run.sh {command}",
        description=textwrap.fill(described[command] + common, 79),
        epilog=_EPILOGS[command],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def option(name: str, default: str | None, text: str, **more: object) -> None:
        variable = "TOLLGATE_" + name.removeprefix("--").replace("-", "_").upper()
        shown = f" (default: {default})" if default else ""
        p.add_argument(name, default=os.environ.get(variable, default), help=text + shown, **more)  # type: ignore[arg-type]  # argparse's overloads

    def switch(name: str, text: str) -> None:
        variable = "TOLLGATE_" + name.removeprefix("--").replace("-", "_").upper()
        on = os.environ.get(variable, "").lower() in ("1", "true", "yes")
        p.add_argument(name, action="store_true", default=on, help=text)

    option("--listen", "127.0.0.1:8443", "where clients connect", metavar="HOST:PORT")
    option(
        "--kubeconfig",
        None,
        "the cluster and the gateway's own credential; default: the pod's ServiceAccount, "
        "else $KUBECONFIG, else ~/.kube/config",
        metavar="FILE",
    )
    option(
        "--auth",
        None,
        "an AuthenticationConfiguration; default: the cluster's own ServiceAccount tokens "
        "with audience tollgate, named tollgate:system:serviceaccount:NS:NAME",
        metavar="FILE",
    )
    option("--policies", str(ROOT / "policies"), "file or folder; several joined with ':'", metavar="PATH")
    option("--state", str(state_default()), "certificates and state", metavar="DIR")
    option("--recordings", str(ROOT / "recordings"), "where recordings go", metavar="DIR")
    option("--ship", "", "where records are sent too, comma-separated: stdout, syslog+tls://…, https://…", metavar="TO")
    option("--tls-cert", None, "serving certificate, PEM; default: one made in the state folder", metavar="FILE")
    option("--tls-key", None, "its key, PEM without passphrase", metavar="FILE")
    option(
        "--upstream-identity",
        "impersonate",
        "as whom requests go to the API server",
        choices=("impersonate", "gateway"),
    )
    option(
        "--forward-extra", "", "keys of the identity's extra to impersonate as well, comma-separated", metavar="KEYS"
    )
    option(
        "--owner-claim",
        "",
        "claim (or key of the identity's extra) that names the owner for whom an agent acts",
        metavar="NAME",
    )
    option(
        "--departed-owners",
        None,
        "owners who have left, one a line: whoever acts for one is refused; read again when it changes",
        metavar="FILE",
    )
    option("--metrics", "", "where /metrics, /healthz and /readyz are read; default: nowhere", metavar="HOST:PORT")
    option("--traces", "", "OTLP/HTTP endpoint of an OpenTelemetry collector that gets spans", metavar="URL")
    option("--log", "text", "how the log is written", choices=("text", "json"))
    option("--only", "", f"a shorter stack: only these of {', '.join(stack.ORDER)}", metavar="A,B")
    option("--without", "", f"a shorter stack: all but these; also {', '.join(stack.AIDS)}", metavar="A")
    switch("--observe", "decide and log, but let everything pass that is authenticated: for adopting a policy")
    switch("--allow-spdy", "let exec, attach and port-forward through as SPDY, which cannot be judged frame by frame")
    switch(
        "--refuse-cluster-admin",
        "do not start with a credential of the gateway's own that is cluster-admin or can make itself so, "
        "or when nobody can tell; without it, only a warning",
    )
    switch(
        "--reuse-port",
        "share the port with another gateway of this user, which takes over when this one ends (Linux; give each its "
        "own --recordings and --metrics)",
    )
    switch("--print", "print the mitmproxy command line instead of running it")
    if command == "web":
        option("--web", "127.0.0.1:8081", "where the web interface listens", metavar="HOST:PORT")
    return p


def address(text: str, option: str) -> tuple[str, int]:
    """`HOST:PORT`, IPv6 in brackets. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{option}: {text!r} is not HOST:PORT, e.g. 127.0.0.1:8443")
    return host, int(port)


def check_loopback(host: str) -> None:
    """Raises UsageError unless mitmproxy's interface, which shows all traffic, is for this machine only."""
    try:
        inside = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = False
    if not inside:
        raise UsageError(
            f"--web: {host} is not a loopback address, and the interface shows all traffic; use 127.0.0.1, and ssh -L "
            "or kubectl port-forward to reach it from elsewhere"
        )


def check_free(host: str, port: int, option: str, *, shared: bool = False) -> None:
    """Raises UsageError when nobody could listen there. shared: beside another gateway that shares it as well."""
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            s.bind(where)
    except OSError as e:
        raise UsageError(f"{option}: cannot listen on {host}:{port}: {e.strerror or e}; choose another") from e


def plan(command: str, args: argparse.Namespace, extra: Sequence[str], now: datetime.datetime) -> Plan:
    """Check everything, prepare the state folder, and say what to run. Raises UsageError."""
    host, port = address(args.listen, "--listen")
    if args.reuse_port and not sys.platform.startswith("linux"):
        # Elsewhere the kernel does not share out connections, or gives all of them to the newest.
        raise UsageError("--reuse-port: works on Linux only; stop the old gateway before the new one starts")
    try:
        chosen = stack.choose(args.only, args.without)
        server = apiserver.load(args.kubeconfig or "")
        policy_paths = [Path(p).expanduser().absolute() for p in args.policies.split(os.pathsep) if p]
        if "block" in chosen.addons:
            policyfile.load(policy_paths)
        if args.auth:
            authconfig.load(Path(args.auth).expanduser().read_text(encoding="utf-8"))
        state = files.private_folder(Path(args.state).expanduser().absolute())
        store.check(state)
        refuse_writable(args)
        if args.departed_owners:
            if not args.owner_claim:
                raise UsageError("--departed-owners: needs --owner-claim, which says for whom an agent acts")
            revoking.OwnerList(Path(args.departed_owners).expanduser())
        refuse_readable(args, state)
        certificate = serving_certificate(args, state, host, now)
        confdir = private_confdir(state)
        Path(args.recordings).expanduser().mkdir(parents=True, exist_ok=True)
    except (stack.StackError, apiserver.KubeconfigError, certificates.CertificateError) as e:
        raise UsageError(str(e)) from e
    except policy.PolicyError as e:
        raise UsageError(f"--policies: {e}") from e
    except store.StoreError as e:
        raise UsageError(f"--state: {e}") from e
    except authconfig.AuthConfigError as e:
        raise UsageError(f"--auth: {args.auth}: {e}") from e
    except revocations.RevocationError as e:
        raise UsageError(f"--departed-owners: {e}") from e
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(str(e)) from e
    if "upstream" in chosen.addons and "authenticate" not in chosen.addons and args.upstream_identity != "gateway":
        raise UsageError(
            "--without authenticate: nobody to impersonate; add --upstream-identity gateway if you mean it"
        )
    where = server.endpoint
    upstream = f"[{where.host}]" if ":" in where.host else where.host
    settings: dict[str, str] = {
        "confdir": str(confdir),
        "certs": f"*={certificate.combined}",
        "body_size_limit": BODY_LIMIT,
        "tcp_timeout": str(IDLE),
        "rawtcp": str(args.allow_spdy).lower(),
        "command_history": "false",
        "flow_detail": "0",
        "tollgate_stack": ",".join(chosen.addons),
        "tollgate_state": str(state),
        "tollgate_allow_spdy": str(args.allow_spdy).lower(),
        "tollgate_log": args.log,
        "tollgate_reuse_port": str(args.reuse_port).lower(),
    }
    if args.kubeconfig:
        settings["tollgate_kubeconfig"] = str(Path(args.kubeconfig).expanduser().absolute())
    if "authenticate" in chosen.addons and args.auth:
        settings["tollgate_auth"] = str(Path(args.auth).expanduser().absolute())
    if "authenticate" in chosen.addons and args.owner_claim:
        settings["tollgate_owner_claim"] = args.owner_claim
    if "authenticate" in chosen.addons and args.departed_owners:
        settings["tollgate_departed_owners"] = str(Path(args.departed_owners).expanduser().absolute())
    measures = ("metrics",) if args.metrics or args.traces else ()
    measured_at = address(args.metrics, "--metrics") if args.metrics else None
    if measured_at is not None:
        settings["tollgate_metrics"] = args.metrics
    if args.traces:
        settings["tollgate_traces"] = args.traces
    if "block" in chosen.addons:
        settings["tollgate_policies"] = os.pathsep.join(map(str, policy_paths))
        settings["tollgate_observe"] = str(args.observe).lower()
    if "record" in chosen.addons:
        settings["tollgate_recordings"] = str(Path(args.recordings).expanduser().absolute())
    if "upstream" in chosen.addons:
        settings["tollgate_upstream_identity"] = args.upstream_identity
    settings |= {k: str(v).lower() for k, v in mitm_options.REQUIRED.items() if isinstance(v, bool)}
    settings["connection_strategy"] = "lazy"
    program = {"serve": "mitmdump", "web": "mitmweb"}[command]
    if command == "web":
        web_host, web_port = address(args.web, "--web")
        check_loopback(web_host)
        check_free(web_host, web_port, "--web")
        del settings["flow_detail"]
        settings |= {"web_host": web_host, "web_port": str(web_port), "web_open_browser": "false"}
    argv = [
        str(Path(sys.executable).with_name(program)),
        "--no-server",
        "--mode",
        f"reverse:https://{upstream}:{where.port}",
    ]
    argv += ["--listen-host", host, "--listen-port", str(port)]
    rest = merge(settings, extra)
    if command == "web":
        check_loopback(settings["web_host"])
    for name, value in settings.items():
        argv += ["--set", f"{name}={value}"]
    for key in filter(None, args.forward_extra.split(",")):
        argv += ["--set", f"tollgate_forward_extra={key.strip()}"]
    for target in filter(None, args.ship.split(",") if "record" in chosen.addons else ()):
        argv += ["--set", f"tollgate_ship={target.strip()}"]
    if command == "web" and not any("web_columns=" in one for one in rest):
        for column in WEB_COLUMNS:
            argv += ["--set", f"web_columns={column}"]
    # Beside the choice: what is shown to people is masked even in a stack without mask (screens are nobody's
    # clients); and metrics last, on which nothing depends.
    view = ("view",) if command == "web" else ()
    for addon in ("guard", *chosen.addons, *view, *stack.aids(args.without), *measures):
        argv += ["-s", str(ROOT / "addons" / f"{addon}.py")]
    if not args.print:
        check_free(host, port, "--listen", shared=args.reuse_port)
        if measured_at is not None:
            check_free(*measured_at, "--metrics")
    return Plan((*argv, *rest), {"PYTHONPATH": str(ROOT)}, certificate.ca_file)


def raise_descriptors() -> None:
    """Every connection is two descriptors; many systems start programs with 1024 and allow far more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def refuse_writable(args: argparse.Namespace) -> None:
    """Files that decide who gets in are nobody else's to write (policies: when they are loaded; state: store.check)."""
    for option in _DECIDING:
        path = getattr(args, option.strip("-").replace("-", "_"))
        for part in filter(None, str(path or "").split(os.pathsep)):
            file = Path(part).expanduser()
            if file.exists() and (why := filemodes.trouble_at(file)):
                raise UsageError(f"{option}: {file}: {why}")


def refuse_readable(args: argparse.Namespace, state: Path) -> None:
    """Keys, tokens and state are nobody else's to read."""
    named = args.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    secret = [("--kubeconfig", Path(part).expanduser()) for part in named.split(os.pathsep) if part]
    secret = [(option, file) for option, file in secret if file.is_file() and _CREDENTIAL.search(file.read_bytes())]
    if args.tls_key:
        secret.append(("--tls-key", Path(args.tls_key).expanduser()))
    secret += [("--state", file) for pattern in _SECRET_STATE for file in state.glob(pattern)]
    for option, file in secret:
        if file.exists() and (why := filemodes.exposed_at(file)):
            raise UsageError(f"{option}: {file}: {why}")


def merge(settings: dict[str, str], extra: Sequence[str]) -> list[str]:
    """
    Put the caller's own `--set NAME=VALUE` in place of ours; returns what else he wants of mitmproxy.

    mitmproxy refuses a name that is set twice. A dangerous value is the guard's to refuse.
    """
    rest: list[str] = []
    words = iter(extra)
    for word in words:
        if word == "--set":
            word = f"--set={next(words, '')}"
        name, equals, value = word.removeprefix("--set=").partition("=")
        if word.startswith("--set=") and equals and name in settings:
            settings[name] = value
        else:
            rest.append(word)
    return rest


def serving_certificate(
    args: argparse.Namespace, state: Path, host: str, now: datetime.datetime
) -> certificates.Certificate:
    if bool(args.tls_cert) != bool(args.tls_key):
        raise UsageError("--tls-cert and --tls-key belong together: give both or none")
    if args.tls_cert:
        return certificates.own(state, Path(args.tls_cert).expanduser(), Path(args.tls_key).expanduser(), now)
    return certificates.ensure(state, host, now)


def private_confdir(state: Path) -> Path:
    """mitmproxy's own folder: with its CA, which signs nothing here, and without a config.yaml, for ever."""
    from mitmproxy.certs import CertStore  # slow to import, and only needed here

    confdir = state / "mitmproxy"
    if not (confdir / "mitmproxy-ca.pem").is_file():
        files.private_folder(confdir)
        confdir.chmod(0o700)
        CertStore.from_store(confdir, "mitmproxy", 2048)
    confdir.chmod(0o500)  # whoever could write a config.yaml there would set any option
    return confdir


def check_own_rights(kubeconfig: str, *, refuse: bool) -> str:
    """
    A warning about the power of the gateway's own credential, or "". refuse: raises UsageError instead, also
    when nobody can tell; otherwise an API server that is down is no obstacle to a start.
    """
    server = apiserver.load(kubeconfig)

    async def ask() -> str:
        try:
            async with asyncio.timeout(ASKING):
                await server.refresh()
                why = await ownlook.cluster_admin(server)
            return owncredential.admin_warning(why, server.describe(), time.time()) if why else ""
        finally:
            await server.stop()

    try:
        why = asyncio.run(ask())
    except (apiserver.ApiServerError, TimeoutError, OSError, ValueError) as e:
        if refuse:
            raise UsageError(
                f"--refuse-cluster-admin: what the gateway's own credential may do cannot be asked: {e or 'too late'}"
            ) from e
        return ""
    if why and refuse:
        raise UsageError(f"--refuse-cluster-admin: {why}; ./run.sh doctor --rbac prints the RBAC that is enough")
    return f"WARNING: {why}; ./run.sh doctor says how to narrow it, --refuse-cluster-admin refuses it" if why else ""


def main(command: str, argv: Sequence[str]) -> NoReturn:
    own, extra = split(argv)
    args = parser(command).parse_args(own)
    try:
        what = plan(command, args, extra, datetime.datetime.now(datetime.UTC))
    except UsageError as e:
        raise SystemExit(f"tollgate: {e}") from e
    if args.print:
        print(what.command())
        raise SystemExit(0)
    try:
        if warning := check_own_rights(args.kubeconfig or "", refuse=args.refuse_cluster_admin):
            print(f"tollgate: {warning}", file=sys.stderr)
    except UsageError as e:
        raise SystemExit(f"tollgate: {e}") from e
    if args.observe:
        print("tollgate: OBSERVE mode: policies decide and log, but stop nothing", file=sys.stderr)
    if "authenticate" not in stack.choose(args.only, args.without).addons:
        print("tollgate: WITHOUT authenticate: whoever reaches the port has the gateway's rights", file=sys.stderr)
    raise_descriptors()
    undumpable.forbid_core_files()
    os.execve(what.argv[0], what.argv, {**os.environ, **what.environment})  # noqa: S606 (its own program, no shell)
