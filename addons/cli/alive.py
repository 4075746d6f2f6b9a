"""
`./run.sh alive`: whether a gateway answers at its address. For health checks of containers.

Alive is who refuses a request without a token, in its own words: then the port is open, TLS works,
and the guard judges. Whose certificate it is does not matter to a question from the same machine that
carries no secret. Standard library only: it runs every few seconds.
"""

import argparse
import http.client
import os
import ssl
import sys
from collections.abc import Sequence

LIMIT = 4.0  # seconds
WHEN_ANY = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared, not bound)


def trouble(host: str, port: int, limit: float = LIMIT) -> str:
    """What is wrong with the gateway there, or ""."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(host, port, timeout=limit, context=context)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
    except (OSError, http.client.HTTPException) as e:
        return f"no answer from {host}:{port}: {str(e) or type(e).__name__}"
    finally:
        connection.close()
    if not answer.getheader("Tollgate-Reason"):
        return f"{host}:{port} answers {answer.status}, but is no gateway"
    return ""


def main(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(
        prog="./run.sh alive",
        description="Whether a gateway answers, for health checks: a request without a token, which it must refuse.",
        epilog="  ./run.sh alive --listen 127.0.0.1:8443\n\nExit status: 0 when it answers, 1 when not.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    given = os.environ.get("TOLLGATE_LISTEN", "127.0.0.1:8443")
    p.add_argument("--listen", default=given, metavar="HOST:PORT", help="as of serve (default: %(default)s)")
    host, colon, port = p.parse_args(argv).listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit():
        print("tollgate: --listen: HOST:PORT is needed, e.g. 127.0.0.1:8443", file=sys.stderr)
        return 1
    if why := trouble(WHEN_ANY.get(host, host), int(port)):
        print(f"tollgate: {why}", file=sys.stderr)
        return 1
    return 0
