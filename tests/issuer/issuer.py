"""
The tests' OpenID provider: npm's certified `oidc-provider` on Node, on loopback.

Its packages are installed from the lock file into a cache folder outside the repository.
"""

import contextlib
import json
import socket
import ssl
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import nodejs

HERE = Path(__file__).resolve().parent
FILES = ("package.json", "package-lock.json", "index.mjs")
START_LIMIT = 60  # seconds; two are usual, but the machine may be busy


class IssuerFailed(Exception):
    """The provider cannot be started; the message says why."""


class OpenIDProvider:
    """A running provider."""

    def __init__(self, url: str, ca_file: Path) -> None:
        self.url = url
        self.ca_file = ca_file
        self._context = ssl.create_default_context(cafile=str(ca_file))

    def _post(self, path: str, form: dict[str, str]) -> bytes:
        request = urllib.request.Request(self.url + path, urllib.parse.urlencode(form).encode())  # noqa: S310 (https)
        with urllib.request.urlopen(request, timeout=10, context=self._context) as answer:  # noqa: S310 (as above)
            return bytes(answer.read())

    def token(self, claims: dict[str, Any], *, alg: str = "RS256", audience: str = "tollgate", ttl: int = 600) -> str:
        """A signed access token with these claims besides iss, sub (tollgate-tests), aud, jti, iat and exp."""
        form = {
            "grant_type": "client_credentials",
            "client_id": "tollgate-tests",
            "client_secret": "tollgate-tests-secret",
            "claims": json.dumps(claims),
            "alg": alg,
            "audience": audience,
            "ttl": str(ttl),
        }
        return str(json.loads(self._post("/token", form))["access_token"])

    def configuration(self, username: dict[str, str], **more: Any) -> str:
        """An AuthenticationConfiguration with this one issuer; `more` beside its claimMappings."""
        issuer = {"url": self.url, "audiences": ["tollgate"], "certificateAuthority": self.ca_file.read_text()}
        entry = {"issuer": issuer, "claimMappings": {"username": username}, **more}
        version = "apiserver.config.k8s.io/v1"
        return json.dumps({"apiVersion": version, "kind": "AuthenticationConfiguration", "jwt": [entry]})

    def rotate(self, *, keep: bool) -> None:
        """Sign with new keys from now on; `keep` leaves the old ones published."""
        self._post("/rotate?keep=1" if keep else "/rotate", {})


def install() -> Path:
    """The folder with the provider and its packages, made once for each version of its files."""
    return nodejs.install(HERE, FILES, "issuer")


@contextlib.contextmanager
def running(certificate: Path, ca_file: Path, folder: Path) -> Iterator[OpenIDProvider]:
    """A provider until the block ends. `certificate`: key and chain in one PEM file, for 127.0.0.1."""
    program, _ = nodejs.node()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = folder / "issuer.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*program, "index.mjs", str(port), str(certificate), str(certificate)],
            cwd=install(),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        timer = threading.Timer(START_LIMIT, process.kill)  # then the line below ends
        timer.start()
        said = process.stdout.readline() if process.stdout else ""
        timer.cancel()
        if not said.startswith("ready "):
            raise IssuerFailed(f"the provider did not start: {log.read_text(errors='replace')[-500:]}")
        yield OpenIDProvider(said.split()[1], ca_file)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        if process.stdout:
            process.stdout.close()
