import datetime
import http.server
import socket
import ssl
import threading

import pytest

from addons.cli import alive
from addons.net import certificates


class Handler(http.server.BaseHTTPRequestHandler):
    refuses = True

    def do_GET(self):
        self.send_response(401)
        if self.refuses:
            self.send_header("Tollgate-Reason", "no-credential")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format, *args):  # noqa: A002
        pass


@pytest.fixture
def serving(tmp_path):
    """Start an HTTPS server that answers like a gateway, or not; gives its port."""
    made = certificates.ensure(tmp_path, "127.0.0.1", datetime.datetime.now(datetime.UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.combined)
    started = []

    def start(refuses):
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Own", (Handler,), {"refuses": refuses}), bind_and_activate=True
        )
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        started.append(server)
        return server.server_address[1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_who_refuses_is_alive(serving):
    port = serving(True)
    assert alive.main(["--listen", f"127.0.0.1:{port}"]) == 0
    assert alive.main(["--listen", f"0.0.0.0:{port}"]) == 0


def test_the_address_is_serves_own(serving, monkeypatch):
    monkeypatch.setenv("TOLLGATE_LISTEN", f"0.0.0.0:{serving(True)}")
    assert alive.main([]) == 0


def test_another_server_is_not_taken_for_one(serving, capsys):
    assert alive.main(["--listen", f"127.0.0.1:{serving(False)}"]) == 1
    assert "is no gateway" in capsys.readouterr().err


def test_who_says_nothing_is_not_alive():
    """A process that hangs still has its port open."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        assert "no answer" in alive.trouble("127.0.0.1", s.getsockname()[1], limit=0.2)
        port = s.getsockname()[1]
    assert "no answer" in alive.trouble("127.0.0.1", port)


@pytest.mark.parametrize("text", ["here", "127.0.0.1:", ":x"])
def test_a_bad_address_is_one_sentence(text, capsys):
    assert alive.main(["--listen", text]) == 1
    assert capsys.readouterr().err.startswith("tollgate: --listen")
