"""`./run.sh kubeconfig`: a kubeconfig for a client of the gateway, on standard output."""

import argparse
import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from addons.cli.arguments import split, state_default


def build(server: str, ca: bytes | None, user: dict[str, Any], namespace: str = "") -> dict[str, Any]:
    """The kubeconfig as an object. ca: PEM, or None for the public roots."""
    cluster: dict[str, Any] = {"server": server}
    if ca is not None:
        cluster["certificate-authority-data"] = base64.b64encode(ca).decode()
    context: dict[str, Any] = {"cluster": "tollgate", "user": "tollgate"}
    if namespace:
        context["namespace"] = namespace
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tollgate", "cluster": cluster}],
        "users": [{"name": "tollgate", "user": user}],
        "contexts": [{"name": "tollgate", "context": context}],
        "current-context": "tollgate",
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


def main(argv: Sequence[str]) -> None:
    p = argparse.ArgumentParser(
        prog="./run.sh kubeconfig",
        description="Print a kubeconfig for a client of the gateway, with the gateway's CA in it. The token comes "
        "from a file that is re-read (a projected ServiceAccount token) or from an exec plugin (kubectl oidc-login).",
        epilog="example: ./run.sh kubeconfig --token-file /var/run/secrets/tollgate/token > agent.kubeconfig",
    )
    p.add_argument("--server", default="https://127.0.0.1:8443", help="the gateway (default: %(default)s)")
    p.add_argument("--state", default=str(state_default()), help="the gateway's state folder, for its CA")
    p.add_argument("--ca", default="", metavar="FILE", help="CA to trust instead, or 'none' for the public roots")
    p.add_argument("--namespace", default="", help="default namespace of the client")
    how = p.add_mutually_exclusive_group(required=True)
    how.add_argument("--token-file", metavar="FILE", help="file with the token, re-read by the client")
    how.add_argument("--exec", metavar="COMMAND", help="credential plugin; its arguments follow --", dest="plugin")
    own, plugin_args = split(argv)
    args = p.parse_args(own)
    ca_file = Path(args.ca or Path(args.state).expanduser() / "tls" / "ca.crt")
    try:
        ca = None if args.ca == "none" else ca_file.read_bytes()
    except OSError as e:
        raise SystemExit(
            f"tollgate: no CA at {ca_file} ({e.strerror}); start the gateway once, or name one with --ca"
        ) from e
    if args.token_file:
        user: dict[str, Any] = {"tokenFile": str(Path(args.token_file).absolute())}
    else:
        user = exec_plugin(args.plugin, plugin_args)
    print(json.dumps(build(args.server, ca, user, args.namespace), indent=2))
