"""A client that sends any bytes, over HTTP/1.1 and HTTP/2, and what came of them at the API server."""

import re
import select
import socket
import ssl
import time
from pathlib import Path

import hpack

PODS = b"/api/v1/namespaces/shop/pods?limit=1"
MAPS = b"/api/v1/namespaces/attacks-none/configmaps"  # in no namespace that is there: nothing is ever stored
AGENT = "tollgate:system:serviceaccount:agents:ci-agent"
GATEWAY = "system:serviceaccount:tollgate:gateway"
BROKEN = 0  # the connection ends without an answer
WAIT = 3  # seconds for an answer; milliseconds are usual


def connect(running, alpn):
    context = ssl.create_default_context(cafile=running.ca_file)
    context.set_alpn_protocols([alpn])
    return context.wrap_socket(socket.create_connection(("127.0.0.1", running.port), WAIT), server_hostname="127.0.0.1")


def statuses(running, data, count=1):
    """The status codes of the first `count` answers to these bytes, over HTTP/1.1."""
    received = b""
    with connect(running, "http/1.1") as s:
        s.setblocking(False)
        deadline = time.monotonic() + WAIT
        # Both at once: who refuses early closes before all is sent, and what he said is lost to who only sends.
        while len(found := re.findall(rb"HTTP/1\.1 (?!100)(\d{3}) ", received)) < count:
            try:
                sent = s.send(data) if data else 0
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                sent = 0
            except OSError:
                sent = len(data)
            data = data[sent:]
            try:
                more = s.recv(65536)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                more = None
            except OSError:
                more = b""
            if more == b"" or time.monotonic() > deadline:
                break
            received += more or b""
            if sent or more:
                deadline = time.monotonic() + WAIT
            else:
                select.select([s], [s] if data else [], [], WAIT)
    return tuple(int(status) for status in found[:count]) or (BROKEN,)


def reached(controlplane, since):
    """What arrived at the API server of a client's making: as whom, and what."""
    time.sleep(0.02)  # the log is written before the answer, in blocking mode; this is for cut connections
    return [
        (e.get("impersonatedUser", {}).get("username", ""), e["requestURI"])
        for e in controlplane.audit_events(since)
        if e["user"].get("username") in (GATEWAY, None)
        and not e["auditID"].startswith("tollgate-")
        # The end of a stream of the test before comes when it comes.
        and (e["stage"], e.get("responseStatus", {}).get("code")) != ("ResponseComplete", 101)
    ]


def head(line, token, extra=b"", host=b"Host: 127.0.0.1\r\n"):
    return line + b"\r\n" + host + b"Authorization: Bearer " + token + b"\r\n" + extra + b"\r\n"


GET = b"GET " + PODS + b" HTTP/1.1"
POST = b"POST " + MAPS + b" HTTP/1.1"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: "


# HTTP/2, by hand: no library sends these.


def frame(kind, flags, sid, payload):
    return len(payload).to_bytes(3) + bytes((kind, flags)) + sid.to_bytes(4) + payload


def h2_status(running, sent):
    """The status of one HTTP/2 request; BROKEN when the connection or stream is ended."""
    decoder, received = hpack.Decoder(), b""
    with connect(running, "h2") as s:
        s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        s.sendall(frame(1, 5, 1, hpack.Encoder().encode(sent)))
        while True:
            while len(received) >= 9 and len(received) >= 9 + (size := int.from_bytes(received[:3])):
                kind, payload, received = received[3], received[9 : 9 + size], received[9 + size :]
                if kind == 1:
                    return int(dict(decoder.decode(payload))[":status"])
                if kind in (3, 7):
                    return BROKEN
            try:
                more = s.recv(65536)
            except OSError:
                return BROKEN
            if not more:
                return BROKEN
            received += more


def fields(*extra, method="GET", path="/api/v1/pods", authority="127.0.0.1", scheme="https"):
    head = {":method": method, ":scheme": scheme, ":path": path, ":authority": authority}
    return [*((k, v) for k, v in head.items() if v is not None), ("authorization", "TOKEN"), *extra]


def resident(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # KiB
