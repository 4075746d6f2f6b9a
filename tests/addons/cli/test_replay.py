import asyncio
import base64
import io
import json
import ssl
import threading

import pytest
from aiohttp import web

from addons.cli import replay
from tests.addons.cli import recorded


class Server:
    """An API server that answers what it is told to, and remembers what came."""

    def __init__(self, tls):
        self.came = []
        self.codes = {}
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    async def _start(self):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._tls.combined)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    async def _answer(self, request):
        self.came.append((request.method, request.raw_path, dict(request.headers), await request.read()))
        code = self.codes.get((request.method, request.path), 200)
        return web.json_response({"kind": "Status", "message": "as told"}, status=code)

    def __enter__(self):
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@pytest.fixture
def server(tls):
    with Server(tls) as one:
        one.codes = {
            ("DELETE", f"{recorded.PODS}/web-2"): 404,
            ("POST", "/api/v1/namespaces/shop/configmaps"): 201,
        }
        yield one


@pytest.fixture
def onto(server, tls, tmp_path):
    ca = base64.b64encode(tls.ca_file.read_bytes()).decode()
    path = tmp_path / "onto"
    path.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [
                    {
                        "name": "k",
                        "cluster": {"server": f"https://127.0.0.1:{server.port}", "certificate-authority-data": ca},
                    }
                ],
                "users": [{"name": "u", "user": {"token": "fresh"}}],
            }
        )
    )
    return path


@pytest.fixture
def root(tmp_path):
    return recorded.write(tmp_path)


def run(root, onto, *arguments):
    out = io.StringIO()
    session = recorded.session(root).name
    code = replay.main([session, "--recordings", str(root), "--onto", str(onto), *arguments], out)
    return code, out.getvalue()


def test_a_dry_run_of_the_same_sequence(root, onto, server):
    code, out = run(root, onto)
    assert code == 0
    assert [(method, path) for method, path, _, _ in server.came] == [
        ("GET", recorded.PODS),
        ("DELETE", f"{recorded.PODS}/web-1"),
        ("DELETE", f"{recorded.PODS}/web-2"),
        ("POST", "/api/v1/namespaces/shop/configmaps?dryRun=All"),
    ]
    assert json.loads(server.came[1][3]) == {"propagationPolicy": "Background", "dryRun": ["All"]}
    lines = out.splitlines()
    assert lines[0] == f"onto https://127.0.0.1:{server.port}, as a dry run"
    assert lines[2] == "   2  delete pod shop/web-1  200 as then"
    assert lines[4] == "   4  delete namespace kube-system  not sent: it was refused then"
    assert lines[-1] == "4 sent, 4 with the outcome of then, 0 differed, 1 not sent"


def test_the_credential_is_the_kubeconfigs(root, onto, server):
    run(root, onto)
    _, _, headers, _ = server.came[1]
    assert headers["Authorization"] == "Bearer fresh"
    assert headers["User-Agent"].endswith(" replay")
    assert headers["kubectl-session"] == "s-1"


def test_for_real(root, onto, server):
    code, out = run(root, onto, "--for-real")
    assert code == 0
    assert ", for real\n" in out
    assert json.loads(server.came[1][3]) == {"propagationPolicy": "Background"}
    assert server.came[3][1] == "/api/v1/namespaces/shop/configmaps"


def test_what_differed_is_said(root, onto, server):
    server.codes["DELETE", f"{recorded.PODS}/web-1"] = 403
    code, out = run(root, onto)
    assert code == 1
    assert "   2  delete pod shop/web-1  200 then, 403 now: as told" in out
    assert "1 differed" in out


def test_what_was_refused(root, onto, server):
    server.codes["DELETE", "/api/v1/namespaces/kube-system"] = 403
    code, out = run(root, onto, "--refused", "--no-reads")
    assert code == 0
    assert "   4  delete namespace kube-system  403 as then" in out
    assert [method for method, *_ in server.came] == ["DELETE", "DELETE", "DELETE", "POST"]


def test_a_plan_sends_nothing(root, onto, server):
    code, out = run(root, onto, "--plan")
    assert code == 0
    assert "   5  create configmaps in shop  POST /api/v1/namespaces/shop/configmaps?dryRun=All" in out.replace(
        "create configmap shop/note", "create configmaps in shop"
    )
    assert server.came == []


def test_a_flow_that_was_edited_is_not_sent(root, onto, server):
    for name in ("flows.mitm", "requests.mitm"):
        path = recorded.session(root) / name
        path.write_bytes(path.read_bytes().replace(b"Background", b"Foreground"))
    _, out = run(root, onto, "--for-real")
    assert "   2  delete pod shop/web-1  not sent: its flow is not what was recorded; see ./run.sh verify" in out
    assert "DELETE" not in [method for method, *_ in server.came]


def test_flows_that_are_gone(root, onto, server):
    (recorded.session(root) / "flows.mitm").unlink()
    code, out = run(root, onto)
    assert code == 0
    assert out.count("not sent: flows.mitm cannot be read (FileNotFoundError)") == 5


def test_a_cut_record_is_replayed_up_to_the_cut(root, onto, server, capsys):
    path = recorded.session(root) / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-40])  # the last answer
    code, out = run(root, onto)
    assert code == 1
    assert "no answer then, 201 now" in out
    assert "ends in half a line" in capsys.readouterr().err


def test_a_masked_value_is_not_sent(tmp_path, onto, server):
    body = {"kind": "Secret", "metadata": {"name": "s"}, "data": {"p": "KiptYXNrZWQ6MWEyYjNjNGQqKg=="}}
    body["data"]["p"] = base64.b64encode(b"**masked:1a2b3c4d**").decode()
    root = recorded.write(tmp_path, recorded.exchange("a", "POST", "/api/v1/namespaces/x/secrets", body=body))
    code, out = run(root, onto, "--for-real")
    assert code == 0
    assert "not sent: it holds a masked value" in out
    assert server.came == []


def test_a_server_that_is_not_there(root, onto, server, tls):
    text = json.loads(onto.read_text())
    text["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    onto.write_text(json.dumps(text))
    code, out = run(root, onto)
    assert code == 1
    assert "no answer: the API server cannot be reached" in out


def test_without_flows_reads_are_taken_from_the_events(tmp_path, onto, server):
    records = [
        recorded.Record(r.username, r.event)  # as a level that keeps no flows
        for r in [
            *recorded.exchange("a", "GET", recorded.PODS),
            *recorded.exchange("b", "DELETE", f"{recorded.PODS}/x"),
        ]
    ]
    code, out = run(recorded.write(tmp_path, records), onto)
    assert code == 0
    assert "list pods in shop  200 as then" in out
    assert "delete pod shop/x  not sent: its bytes were not recorded" in out


@pytest.mark.parametrize(
    ("session", "onto_file", "said"),
    [
        pytest.param("nobody", None, "there is no session 'nobody'", id="no session"),
        pytest.param(None, "none", "there is no file", id="no kubeconfig"),
        pytest.param(None, "junk", "not a usable kubeconfig", id="no kubeconfig in it"),
    ],
)
def test_in_one_sentence(root, onto, tmp_path, capsys, session, onto_file, said):
    (tmp_path / "junk").write_text("[]")
    name = session or recorded.session(root).name
    where = tmp_path / onto_file if onto_file else onto
    assert replay.main([name, "--recordings", str(root), "--onto", str(where)], io.StringIO()) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
