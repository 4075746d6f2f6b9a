"""An OpenID provider as small as can be, whose keys and whose health are the test's to change while it is asked."""

import http.server
import json
import ssl
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from addons.net.certificates import Certificate

KEYS_PATH = "/keys"


class Key:
    """One that signs, under a name of its own."""

    def __init__(self) -> None:
        self.kid = uuid.uuid4().hex
        self.private = ec.generate_private_key(ec.SECP256R1())

    @property
    def jwk(self) -> dict[str, Any]:
        public = jwt.algorithms.ECAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {**public, "kid": self.kid, "alg": "ES256", "use": "sig"}


class KeyIssuer:
    """`published`: what it says its keys are. `up`: whether it answers at all. `fetches`: of its keys, when."""

    def __init__(self, certificate: Certificate) -> None:
        assert certificate.ca_file is not None
        self.ca_file: Path = certificate.ca_file
        self.published: list[Key] = []
        self.up = True
        self.fetches: list[float] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (as in its base)
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"https://127.0.0.1:{self.server.server_port}"
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate.combined)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, asked: http.server.BaseHTTPRequestHandler) -> None:
        if asked.path == KEYS_PATH:
            self.fetches.append(time.monotonic())
        if not self.up:
            asked.close_connection = True  # without a word
            return
        document: dict[str, Any] = {"issuer": self.url, "jwks_uri": self.url + KEYS_PATH}
        if asked.path == KEYS_PATH:
            document = {"keys": [key.jwk for key in self.published]}
        body = json.dumps(document).encode()
        asked.send_response(200)
        asked.send_header("Content-Length", str(len(body)))
        asked.end_headers()
        asked.wfile.write(body)

    def token(self, key: Key, name: str, now: float, seconds: int = 600) -> str:
        """A token of this name, issued now."""
        claims = {"iss": self.url, "aud": "tollgate", "sub": name, "name": name, "jti": uuid.uuid4().hex}
        return jwt.encode(
            {**claims, "iat": int(now), "exp": int(now) + seconds}, key.private, "ES256", {"kid": key.kid}
        )

    def configuration(self) -> str:
        """An AuthenticationConfiguration with this one issuer."""
        issuer = {"url": self.url, "audiences": ["tollgate"], "certificateAuthority": self.ca_file.read_text()}
        entry = {"issuer": issuer, "claimMappings": {"username": {"claim": "name", "prefix": "corp:"}}}
        kind = {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration"}
        return json.dumps({**kind, "jwt": [entry]})
