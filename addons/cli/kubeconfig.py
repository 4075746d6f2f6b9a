"""`./run.sh kubeconfig`: a kubeconfig for a client of the gateway, on standard output."""

import argparse
import base64
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from addons.cli.arguments import split, state_default
from addons.core import approvals, tokens

ORDINARY, APPROVER = "tollgate", approvals.AUDIENCE  # names in the file, so that two can be merged; also the audiences

EPILOG = """\
  ./run.sh kubeconfig --token-file /var/run/secrets/tollgate/token > agent.kubeconfig
  ./run.sh kubeconfig --exec kubectl -- oidc-login get-token --oidc-issuer-url=URL --oidc-client-id=tollgate
  ./run.sh kubeconfig --passthrough > passthrough.kubeconfig
  ./run.sh kubeconfig --approver

Exit status: 0, or 1 when there is none (the sentence says why); --approver alone only explains, and is 1.
"""
HOW_TO_APPROVE = f"""\
a decision on an approval needs a token with the audience {APPROVER}, fresh from a login. Say where it comes from:
  ./run.sh kubeconfig --approver --exec kubectl -- oidc-login get-token --oidc-issuer-url=URL \\
      --oidc-client-id={APPROVER} --token-cache-storage=none --oidc-auth-request-extra-params=prompt=login
  ./run.sh kubeconfig --approver --token-file TOKEN
The first is for people: a client of your identity provider of that name, which the issuer's audiences list
(audienceMatchPolicy: MatchAny). It asks for the login each time and keeps no token that an assistant on the
same machine could take. The second is for a ServiceAccount:
  kubectl create token NAME -n NAMESPACE --audience={APPROVER} --duration=10m > TOKEN"""
KEEP_APART = (
    "tollgate: keep this file where no assistant runs, and use it for decisions only: "
    "kubectl --kubeconfig FILE get approvals"
)


def build(
    server: str, ca: bytes | None, user: dict[str, Any], namespace: str = "", name: str = ORDINARY
) -> dict[str, Any]:
    """The kubeconfig as an object. ca: PEM, or None for the public roots."""
    cluster: dict[str, Any] = {"server": server}
    if ca is not None:
        cluster["certificate-authority-data"] = base64.b64encode(ca).decode()
    context: dict[str, Any] = {"cluster": name, "user": name}
    if namespace:
        context["namespace"] = namespace
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": context}],
        "current-context": name,
    }


def exec_plugin(command: str, args: Sequence[str]) -> dict[str, Any]:
    """A user whose token comes from a credential plugin (client.authentication.k8s.io/v1)."""
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": command,
            "args": list(args),
            "interactiveMode": "IfAvailable",
        }
    }


def audiences(token: str) -> list[str]:
    """What a token says it is for; [] when it is none that could be read. Not verified: for a hint, no more."""
    try:
        claimed = tokens.read(token.strip()).unverified_claims.get("aud")
    except tokens.TokenError:
        return []
    return [str(item) for item in (claimed if isinstance(claimed, list) else [claimed])]


def check_audience(path: Path, wanted: str) -> None:
    """Stop when the token that is in the file now is for something else. A file that comes later is fine."""
    try:
        found = audiences(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return
    if found and wanted not in found:
        raise SystemExit(
            f"tollgate: the token in {path} is for {', '.join(found)}, not {wanted}; make one with --audience={wanted}"
        )


def main(argv: Sequence[str]) -> None:
    p = argparse.ArgumentParser(
        prog="./run.sh kubeconfig",
        description="Print a kubeconfig for a client of the gateway, with the gateway's CA in it. The token comes\n"
        "from a file that is re-read (a projected ServiceAccount token) or from an exec plugin (kubectl oidc-login).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--server", default="https://127.0.0.1:8443", help="the gateway (default: %(default)s)")
    p.add_argument("--state", default=str(state_default()), help="the gateway's state folder, for its CA")
    p.add_argument("--ca", default="", metavar="FILE", help="CA to trust instead, or 'none' for the public roots")
    p.add_argument("--namespace", default="", help="default namespace of the client")
    p.add_argument(
        "--approver",
        action="store_true",
        help=f"for decisions on approvals: the token has the audience {APPROVER}; alone: how to get such a token",
    )
    how = p.add_mutually_exclusive_group()
    how.add_argument("--token-file", metavar="FILE", help="file with the token, re-read by the client")
    how.add_argument("--exec", metavar="COMMAND", help="credential plugin; its arguments follow --", dest="plugin")
    how.add_argument(
        "--passthrough",
        action="store_true",
        help="no credential at all: for an MCP server that passes on the token of each of its callers",
    )
    own, plugin_args = split(argv)
    args = p.parse_args(own)
    if args.passthrough and args.approver:
        p.error("argument --passthrough: not allowed with argument --approver")
    if not args.token_file and not args.plugin and not args.passthrough:
        if args.approver:
            raise SystemExit(f"tollgate: {HOW_TO_APPROVE}")
        p.error("one of the arguments --token-file --exec --passthrough is required")
    ca_file = Path(args.ca or Path(args.state).expanduser() / "tls" / "ca.crt")
    try:
        ca = None if args.ca == "none" else ca_file.read_bytes()
    except OSError as e:
        raise SystemExit(
            f"tollgate: no CA at {ca_file} ({e.strerror}); start the gateway once, or name one with --ca"
        ) from e
    name = APPROVER if args.approver else ORDINARY
    user: dict[str, Any] = {}
    if args.token_file:
        if args.approver:
            check_audience(Path(args.token_file), APPROVER)
        user = {"tokenFile": str(Path(args.token_file).absolute())}
    elif args.plugin:
        user = exec_plugin(args.plugin, plugin_args)
    print(json.dumps(build(args.server, ca, user, args.namespace, name), indent=2))
    if args.approver:
        print(KEEP_APART, file=sys.stderr)
