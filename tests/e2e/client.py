"""A plain HTTPS client for one request, as small as can be: the answer, whatever it is."""

import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    status: int  # 0: the connection broke without an answer
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> str:
        return str(json.loads(self.body)["message"])

    @property
    def reason(self) -> str:
        """The gateway's own reason code."""
        return self.headers.get("tollgate-reason", "")


def request(
    port: int,
    ca_file: Path,
    method: str,
    path: str,
    *,
    token: str | None = None,
    body: Any = None,
    headers: dict[str, str] | None = None,
    seconds: float = 15,
) -> Answer:
    """One HTTP/1.1 request to 127.0.0.1:port. body: bytes as they are, anything else as JSON."""
    sent = dict(headers or {})
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        sent.setdefault("Content-Type", "application/json")
    connection = http.client.HTTPSConnection(
        "127.0.0.1", port, timeout=seconds, context=ssl.create_default_context(cafile=ca_file)
    )
    try:
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    except (OSError, http.client.HTTPException):
        return Answer(0, {}, b"")
    finally:
        connection.close()


def plain(host: str, port: int, path: str, headers: dict[str, str]) -> Answer:
    """One GET without TLS."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()
