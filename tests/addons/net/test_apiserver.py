import asyncio
import datetime
import json
import os
import ssl
import stat

import pytest
from aiohttp import web

from addons.core import status
from addons.core.model import Identity
from addons.net import apiserver, certificates


def a_kubeconfig(tmp_path, server="https://127.0.0.1:6443", user=None, **cluster):
    path = tmp_path / "kubeconfig"
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "u", "user": {"token": "t"} if user is None else user}],
    }
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("server", "endpoint"),
    [
        pytest.param("https://k8s.example:6443", ("k8s.example", 6443, ""), id="port"),
        pytest.param("https://k8s.example", ("k8s.example", 443, ""), id="no port"),
        pytest.param("https://[::1]:6443/", ("::1", 6443, ""), id="IPv6"),
        pytest.param("https://rancher/k8s/clusters/c-1", ("rancher", 443, "/k8s/clusters/c-1"), id="path"),
    ],
)
def test_endpoint(tmp_path, server, endpoint):
    where = apiserver.load(str(a_kubeconfig(tmp_path, server))).endpoint
    assert (where.host, where.port, where.path) == endpoint


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param({"server": "http://k8s:80"}, "must be an https:// address", id="no TLS"),
        pytest.param({"insecure-skip-tls-verify": True}, "always verified", id="no verification"),
        pytest.param({"proxy-url": "http://p"}, "proxy-url is not supported", id="a proxy"),
        pytest.param({"certificate-authority": "/nonexistent"}, "/nonexistent", id="no CA file"),
        pytest.param({"certificate-authority-data": "eA=="}, "CA", id="a CA that is none"),
        pytest.param({"user": {"username": "u", "password": "p"}}, "basic authentication", id="basic"),
        pytest.param({"user": {"auth-provider": {"name": "gcp"}}}, "use an exec plugin", id="auth-provider"),
        pytest.param({"user": {"token": "t", "as": "root"}}, "impersonation", id="as"),
        pytest.param({"user": {}}, "no credential", id="nothing"),
    ],
)
def test_refused_by_name(tmp_path, config, message):
    path = a_kubeconfig(tmp_path, **config)
    with pytest.raises(apiserver.KubeconfigError, match=message) as e:
        apiserver.load(str(path))
    assert "\n" not in str(e.value)
    assert str(path) in str(e.value)


@pytest.mark.parametrize(
    "text",
    ["", "a: [", "[]", "just text", "{}", "current-context: c", "clusters: 3\ncurrent-context: c\ncontexts: []", "\0"],
)
def test_any_other_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(apiserver.KubeconfigError) as e:
        apiserver.load(str(path))
    assert "\n" not in str(e.value)


def test_no_file(tmp_path):
    with pytest.raises(apiserver.KubeconfigError, match=r"there is no file .*; name one with --kubeconfig"):
        apiserver.load(str(tmp_path / "absent"))


def test_the_environment_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(a_kubeconfig(tmp_path, "https://from-env:1")))
    assert apiserver.load().endpoint.host == "from-env"


async def test_a_token_file_is_read_again(tmp_path):
    token = tmp_path / "token"
    token.write_text("one\n")
    server = apiserver.load(str(a_kubeconfig(tmp_path, user={"tokenFile": str(token)})))
    await server.refresh()
    assert server.authorization == "Bearer one"
    token.write_text("two\n")
    await server.refresh()
    assert server.authorization == "Bearer two"


def plugin(tmp_path, status):
    script = tmp_path / "plugin"
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    script.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\ncat <<'EOF'\n{json.dumps(credential)}\nEOF\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script)}}


@pytest.mark.parametrize(
    ("expiry", "runs"),
    [pytest.param("2999-01-01T00:00:00Z", 1, id="valid"), pytest.param("2001-01-01T00:00:00Z", 2, id="expired")],
)
async def test_an_exec_plugin_runs_when_its_token_expires(tmp_path, expiry, runs):
    user = plugin(tmp_path, {"token": "of-the-plugin", "expirationTimestamp": expiry})
    server = apiserver.load(str(a_kubeconfig(tmp_path, user=user)))
    await server.refresh()
    await server.refresh()
    assert server.authorization == "Bearer of-the-plugin"
    assert (tmp_path / "runs").read_text().count("run") == runs


async def test_a_failing_plugin_is_one_error(tmp_path):
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}}
    server = apiserver.load(str(a_kubeconfig(tmp_path, user=user)))
    with pytest.raises(apiserver.ApiServerError, match="credential cannot be read"):
        await server.refresh()


async def test_before_the_first_credential_there_is_none(tmp_path):
    server = apiserver.load(str(a_kubeconfig(tmp_path, user={"tokenFile": str(tmp_path / "absent")})))
    server.start()
    try:
        with pytest.raises(apiserver.ApiServerError, match="no credential"):
            _ = server.authorization
    finally:
        await server.stop()


@pytest.fixture
async def api(tls, tmp_path):
    """A TLS server that answers with what it saw."""

    async def echo(request: web.Request) -> web.Response:
        if request.path == "/redirect":
            raise web.HTTPFound("https://evil.example/")
        if request.path == "/slow":
            await asyncio.sleep(30)
        if request.path == "/prefix/lines":
            answer = web.StreamResponse(status=int(request.query["code"]))
            await answer.prepare(request)
            for part in (b"one\ntw", b"o\n\n", b"x" * 300_000 + b"\nlast"):
                await answer.write(part)
                await asyncio.sleep(0.01)
            await asyncio.sleep(float(request.query["then"]))
            return answer
        body = await request.text()
        seen = {"headers": dict(request.headers), "body": body, "path": request.path, "target": request.raw_path}
        seen["all"] = [[name.lower(), value] for name, value in request.headers.items()]
        return web.json_response(seen, status=201)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", echo)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.combined)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    server = apiserver.load(
        str(a_kubeconfig(tmp_path, f"https://127.0.0.1:{port}/prefix", **{"certificate-authority": str(tls.ca_file)}))
    )
    yield server, port
    await server.stop()
    await runner.cleanup()


async def test_our_requests_are_marked_and_authenticated(api):
    server, _ = api
    answer = await server.request("POST", "/x", purpose="tokenreview", body={"a": 1})
    seen = answer.json()
    assert answer.status == 201
    assert seen["path"] == "/prefix/x"
    assert seen["headers"]["Authorization"] == "Bearer t"
    assert seen["headers"]["Audit-ID"].startswith("tollgate-tokenreview-")
    assert "tokenreview" in seen["headers"]["User-Agent"]
    assert json.loads(seen["body"]) == {"a": 1}


async def test_as_the_identity(api):
    """With the caller's rights, and the gateway's credential."""
    server, _ = api
    who = Identity("prefix:jo", uid="7", groups=("a", "b", "system:authenticated"), extra={"k": ("v",), "not": ("w",)})
    answer = await server.request("GET", "/x", purpose="test", identity=who, forward_extra={"k"})
    seen = [(name, value) for name, value in answer.json()["all"] if name.startswith("impersonate")]
    assert seen == [
        ("impersonate-user", "prefix:jo"),
        ("impersonate-uid", "7"),
        ("impersonate-group", "a"),
        ("impersonate-group", "b"),
        ("impersonate-extra-k", "v"),
        ("impersonate-extra-tollgate.dev%2fgateway", "true"),
    ]
    assert answer.json()["headers"]["Authorization"] == "Bearer t"


async def test_nobody_impersonates_by_a_header(api):
    server, _ = api
    headers = {"Impersonate-User": "root", "authorization": "Bearer other", "accept": "a/b"}
    seen = (await server.request("GET", "/x", purpose="test", headers=headers)).json()
    assert not [name for name, _ in seen["all"] if name.startswith("impersonate")]
    assert [value for name, value in seen["all"] if name == "authorization"] == ["Bearer t"]
    assert ["accept", "a/b"] in seen["all"]


async def test_an_identity_that_no_header_carries(api):
    server, _ = api
    with pytest.raises(status.Refused):
        await server.request("GET", "/x", purpose="test", identity=Identity("a\r\nImpersonate-Group: system:masters"))


async def test_bytes_go_as_they_are(api):
    server, _ = api
    headers = {"Content-Type": "application/apply-patch+yaml"}
    seen = (await server.request("PATCH", "/x", purpose="test", body=b"a: 1", headers=headers)).json()
    assert (seen["body"], seen["headers"]["Content-Type"]) == ("a: 1", "application/apply-patch+yaml")


async def test_the_target_stays_as_it_is_spelled(api):
    server, _ = api
    target = "/x?labelSelector=a%20in%20%28b%2Cc%29&continue=%2B%2F%3D"
    assert (await server.request("GET", target, purpose="test")).json()["target"] == f"/prefix{target}"


async def test_late_is_an_error(api):
    server, _ = api
    server.endpoint = apiserver.Endpoint("127.0.0.1", api[1], "", "", server.endpoint.ca_file)
    with pytest.raises(apiserver.ApiServerError, match=r"within 0\.2 s"):
        await server.request("GET", "/slow", purpose="test", timeout=0.2)


async def test_a_redirect_is_not_followed(api):
    server, _ = api
    server.endpoint = apiserver.Endpoint("127.0.0.1", api[1], "", "", server.endpoint.ca_file)
    assert (await server.request("GET", "/redirect", purpose="test")).status == 302


@pytest.mark.parametrize("code", [200, 404])
async def test_follow(api, code):
    server, _ = api
    async with server.follow(f"/lines?code={code}&then=0", purpose="test", silence=5) as answer:
        assert answer.status == code
        assert [line async for line in answer.lines] == [b"one", b"two", b"", b"x" * 300_000, b"last"]


async def test_followed_no_longer_when_nothing_comes(api):
    server, _ = api
    with pytest.raises(apiserver.ApiServerError, match=r"said nothing for 0\.2 s"):
        async with server.follow("/lines?code=200&then=30", purpose="test", silence=0.2) as answer:
            _ = [line async for line in answer.lines]


async def test_a_line_without_an_end(api, monkeypatch):
    monkeypatch.setattr(apiserver, "MAX_ANSWER", 100_000)
    server, _ = api
    with pytest.raises(apiserver.ApiServerError, match="a line of the API server's answer is over 100000 bytes"):
        async with server.follow("/lines?code=200&then=0", purpose="test", silence=5) as answer:
            _ = [line async for line in answer.lines]


async def test_a_token_in_place_of_the_kubeconfigs_user(api, tls):
    server, _ = api
    server._configuration.cert_file = server._configuration.key_file = str(tls.combined)
    server.use_token("other")
    await server.refresh()
    assert server.client_certificate is None
    assert (await server.request("GET", "/x", purpose="test")).json()["headers"]["Authorization"] == "Bearer other"


async def test_another_ca_is_not_trusted(api, tmp_path):
    other = certificates.ensure(tmp_path / "other", "127.0.0.1", datetime.datetime.now(datetime.UTC))
    server = apiserver.load(
        str(a_kubeconfig(tmp_path, f"https://127.0.0.1:{api[1]}", **{"certificate-authority": str(other.ca_file)}))
    )
    try:
        with pytest.raises(apiserver.ApiServerError, match="cannot be reached"):
            await server.request("GET", "/x", purpose="test")
    finally:
        await server.stop()


async def test_unreachable(tmp_path):
    server = apiserver.load(str(a_kubeconfig(tmp_path, "https://127.0.0.1:1")))
    try:
        with pytest.raises(apiserver.ApiServerError, match="cannot be reached"):
            await server.request("GET", "/x", purpose="test")
    finally:
        await server.stop()


def test_the_environment_is_not_changed_by_a_plugin(tmp_path):
    before = dict(os.environ)
    apiserver.load(str(a_kubeconfig(tmp_path, user=plugin(tmp_path, {"token": "x"}))))
    assert dict(os.environ) == before
