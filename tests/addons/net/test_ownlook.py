"""Against a server that answers as told; against the real one in tests/e2e/test_doctor.py."""

import asyncio
import datetime
import json
import ssl
import time

import pytest
from aiohttp import web

from addons.core import ownrights, waysaround
from addons.core.ownrights import ADMIN_QUESTIONS, Question
from addons.net import apiserver, certificates, ownlook

LISTS = "/apis/rbac.authorization.k8s.io/v1"
AGENT = "system:serviceaccount:agents:ci"


class Api:
    """Answers by path; what is not there is 403."""

    def __init__(self):
        self.answers = {}
        self.allowed = set()  # (verb, resource, name)
        self.seen = []

    async def handle(self, request):
        self.seen.append((request.path_qs, request.headers.get("Accept", "")))
        if request.path.endswith("/selfsubjectaccessreviews"):
            asked = (await request.json())["spec"].get("resourceAttributes", {})
            key = (asked.get("verb"), asked.get("resource"), asked.get("name", ""))
            return web.json_response({"status": {"allowed": key in self.allowed}}, status=201)
        if request.path_qs in self.answers:
            return web.json_response(self.answers[request.path_qs])
        return web.json_response({}, status=403)


@pytest.fixture
async def api(tmp_path):
    made = certificates.ensure(tmp_path / "tls", "127.0.0.1", datetime.datetime.now(datetime.UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.combined)
    fake, app = Api(), web.Application()
    app.router.add_route("*", "/{path:.*}", fake.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    where = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(made.ca_file)}
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": where}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    server = apiserver.load(str(tmp_path / "kubeconfig"))
    yield server, fake
    await server.stop()
    await runner.cleanup()


async def test_version_clock_and_certificate(api):
    server, fake = api
    fake.answers["/version"] = {"gitVersion": "v1.36.3"}
    version, theirs = await ownlook.version(server)
    assert version == "v1.36.3"
    assert abs(theirs - time.time()) < 5
    lasts = await ownlook.serving_certificate(server) - datetime.datetime.now(datetime.UTC)
    assert 390 < lasts.days < 398


async def test_a_certificate_that_is_not_trusted(api, tmp_path):
    server, _ = api
    other = certificates.ensure(tmp_path / "other", "127.0.0.1", datetime.datetime.now(datetime.UTC))
    where = server.endpoint
    server.endpoint = apiserver.Endpoint(where.host, where.port, ca_file=str(other.ca_file))
    with pytest.raises(apiserver.ApiServerError, match="not trusted"):
        await ownlook.serving_certificate(server)
    server.endpoint = apiserver.Endpoint(where.host, 1, ca_file=where.ca_file)
    with pytest.raises(apiserver.ApiServerError, match="cannot be reached"):
        await ownlook.serving_certificate(server)


WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


@pytest.mark.parametrize(
    ("allowed", "groups", "words"),
    [
        pytest.param([], [], "", id="no"),
        pytest.param([("*", "*", "")], [], "may do everything", id="a star"),
        pytest.param([("impersonate", "groups", "system:masters")], [], "impersonate", id="masters"),
        pytest.param([], ["system:masters"], "no RBAC limits", id="by group"),
    ],
)
async def test_cluster_admin(api, allowed, groups, words):
    server, fake = api
    fake.answers[WHOAMI] = {"status": {"userInfo": {"username": "me", "groups": groups}}}
    fake.allowed = set(allowed)
    why = await ownlook.cluster_admin(server)
    assert words in why
    assert bool(why) is bool(words)


async def test_cluster_admin_is_not_denied_by_silence(api, monkeypatch):
    server, fake = api
    with pytest.raises(apiserver.ApiServerError):  # not even who it is
        await ownlook.cluster_admin(server)
    fake.answers[WHOAMI] = {"status": {"userInfo": {"username": "me"}}}

    async def silent(*_):
        return {ADMIN_QUESTIONS[0]: False}

    monkeypatch.setattr(ownlook, "may", silent)
    with pytest.raises(apiserver.ApiServerError, match="does not answer"):
        await ownlook.cluster_admin(server)


async def test_what_is_not_answered_is_left_out(api, monkeypatch):
    server, fake = api
    fake.allowed = {("delete", "namespaces", "")}
    yes, no = Question("delete", "namespaces"), Question("list", "secrets")
    assert await ownlook.may(server, [yes, no]) == {yes: True, no: False}
    server.endpoint = apiserver.Endpoint("127.0.0.1", 1, ca_file=server.endpoint.ca_file)
    await server.stop()
    assert await ownlook.may(server, [yes]) == {}


async def test_rules(api):
    server, fake = api
    rule = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    fake.answers[path] = {"status": {"resourceRules": [rule], "incomplete": False}}
    assert await ownlook.rules(server, ["a", "b"]) == ownrights.Rules((rule,))
    del fake.answers[path]
    with pytest.raises(apiserver.ApiServerError):
        await ownlook.rules(server, ["a"])


def binding(name):
    return {
        "metadata": {"name": name},
        "roleRef": {"name": "edit"},
        "subjects": [{"kind": "User", "name": f"tollgate:{AGENT}"}],
    }


SECRETS = "/api/v1/namespaces/agents/secrets?fieldSelector=type%3Dkubernetes.io%2Fservice-account-token&limit=500"


async def test_the_cluster_page_by_page(api):
    server, fake = api
    fake.answers |= {
        f"{LISTS}/clusterrolebindings?limit=500": {"items": [], "metadata": {"continue": "more"}},
        f"{LISTS}/clusterrolebindings?limit=500&continue=more": {"items": [binding("second page")]},
        f"{LISTS}/rolebindings?limit=500": {"items": []},
        "/api/v1/serviceaccounts?limit=500": {"items": [{"metadata": {"namespace": "agents", "name": "ci"}}]},
        "/api/v1/namespaces/agents/pods?limit=500": {"items": [{"metadata": {"name": "p"}, "spec": {}}]},
        SECRETS: {"items": []},
    }
    seen = await ownlook.cluster(server)
    assert waysaround.agents(seen) == [("agents", "ci")]
    assert [pod["metadata"]["name"] for pod in seen.pods] == ["p"]
    assert seen.token_secrets == []
    # Of Secrets the names are asked for, and nothing that could be in them.
    asked = [accept for path, accept in fake.seen if "secrets" in path]
    assert asked
    assert all("PartialObjectMetadataList" in accept and "*/*" not in accept for accept in asked)


@pytest.mark.parametrize("missing", ["clusterrolebindings", "rolebindings"])
async def test_half_of_the_bindings_is_none(api, missing):
    server, fake = api
    fake.answers |= {
        f"{LISTS}/{kind}?limit=500": {"items": [binding("x")]}
        for kind in ("clusterrolebindings", "rolebindings")
        if kind != missing
    }
    assert (await ownlook.cluster(server)).bindings is None


async def test_pods_and_secrets_that_cannot_be_read_are_unknown(api):
    server, fake = api
    fake.answers |= {f"{LISTS}/{kind}?limit=500": {"items": [binding("x")]} for kind in ("clusterrolebindings",)}
    fake.answers[f"{LISTS}/rolebindings?limit=500"] = {"items": []}
    seen = await ownlook.cluster(server)
    assert (seen.accounts, seen.pods, seen.token_secrets) == (None, None, None)


async def test_few_questions_at_once(monkeypatch):
    """A running gateway fetches for its requests over the same connections."""
    under_way, most = 0, 0

    async def ask(_server, _question):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return True

    monkeypatch.setattr(ownlook, "_may", ask)
    assert len(await ownlook.may(None, ownrights.QUESTIONS)) == len(set(ownrights.QUESTIONS))
    assert most == ownlook.AT_ONCE
