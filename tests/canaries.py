"""
Canaries: secrets of many shapes, and every spelling in which one could be found again.

Each is long and odd enough to be in no text by chance.
"""

import base64
import json
from collections.abc import Iterable
from urllib.parse import quote_from_bytes

JWT = (
    "eyJhbGciOiJSUzI1NiIsImtpZCI6ImNhbmFyeSJ9.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6c2hvcDpkYiJ9."
    "c2lnbmF0dXJlLW9mLWEtY2FuYXJ5LTEyMzQ1Njc4OTA"
)
PRIVATE_KEY = (
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAcanary0001XqZ7\nw9dKp2LmNvBcXzAsDfGhJkLpOiUyTrEwQ\n"
    "-----END RSA PRIVATE KEY-----\n"
)

VALUES: dict[str, bytes] = {
    "password": b"Canary-hunter2-Xq9zKw",
    "plain word": b"canarycanarycanary",
    "quotes and backslashes": rb"""ca"na\ry'Xq9/+&=?#%zKw<>""",
    "blanks": b"correct horse canary staple",
    "unicode": "pässwörd-canary-☃-Xq9".encode(),
    "private key": PRIVATE_KEY.encode(),
    "token": JWT.encode(),
    "url": b"postgres://canary:Xq9zKwPl4@db.shop:5432/app",
    "aws secret": b"wJalrXUtnFEMI7MDENGbPxRfiCYzCANARYKEY01x",
    "github token": b"ghp_a1B2c3D4e5F6a7B8c9D0e1F2a3B4c5D6e7F8",
    "hex": b"c0ffee5ecca9a17e0123456789abcdefc0ffee5e",
    "bytes": bytes(range(128, 160)) + b"canary\x00\xff",
    "lines": b"user=canary\npass=Xq9zKwPl4mN\n",
}
# What a text can hold.
TEXTS: dict[str, str] = {name: value.decode() for name, value in VALUES.items() if name != "bytes"}


def spellings(value: bytes) -> set[bytes]:
    """The value plain, base64 at all three offsets (url-safe, too), hex, URL-encoded, JSON-escaped, twice as well."""
    found = {value, value.hex().encode(), value.hex().upper().encode()}
    for safe in ("", "/"):
        found.add(quote_from_bytes(value, safe=safe).encode())
    for offset in range(3):
        raw = b"\0" * offset + value
        encoded = base64.b64encode(raw)[(offset * 8 + 5) // 6 : len(raw) * 8 // 6]
        found |= {encoded, encoded.replace(b"+", b"-").replace(b"/", b"_")}
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return found
    for ascii_only in (True, False):
        once = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        found |= {once.encode(), json.dumps(once, ensure_ascii=ascii_only)[1:-1].encode()}
    return found


def seen_in(output: bytes, values: Iterable[bytes]) -> list[bytes]:
    """Which of these values are in the output, in any spelling or line by line."""
    return [
        value
        for value in values
        if any(spelling in output for part in (value, *_lines(value)) for spelling in spellings(part))
    ]


def _lines(value: bytes) -> list[bytes]:
    """A line of a key is a piece of the key; its first and last are the same in all."""
    return [line for line in value.split(b"\n") if len(line) >= 12 and not line.startswith(b"-----")]
