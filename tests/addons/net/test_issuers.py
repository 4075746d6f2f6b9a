"""Issuers on a real socket, the API server as a small fake: whose keys are believed, how often anyone is asked."""

import asyncio
import json
import ssl

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from addons.core import authconfig, tokens
from addons.core.authconfig import AuthConfig, Issuer, Source
from addons.core.doctor import Level
from addons.core.tokens import KeySet, TokenError
from addons.net import issuers
from addons.net.apiserver import Answer, ApiServerError
from addons.net.issuers import IssuerError

NOW = 1_800_000_000.0
KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
OWN_ISSUER = "https://kubernetes.default.svc"
SUB = "system:serviceaccount:shop:agent"


def jwks(*numbers):
    entries = [
        jwt.algorithms.ECAlgorithm.to_jwk(KEYS[n].public_key(), as_dict=True) | {"kid": f"k{n}"} for n in numbers
    ]
    return {"keys": entries}


def key_set(*numbers):
    return tokens.key_set(json.dumps(jwks(*numbers)).encode())


def token(issuer, number=0, **claims):
    claims = {"iss": issuer, "aud": "tollgate", "sub": "alice", "iat": NOW, "exp": NOW + 600, **claims}
    return jwt.encode(claims, KEYS[number], "ES256", headers={"kid": f"k{number}"})


class Provider:
    """An OpenID provider on loopback. `pages` maps a path to what it answers: an object, bytes, or a status."""

    def __init__(self):
        self.pages = {}
        self.asked = []
        self.url = ""

    async def answer(self, request):
        self.asked.append(request.path)
        page = self.pages.get(request.path, 404)
        if isinstance(page, int):
            return web.Response(status=page, headers={"Location": f"{self.url}/moved"})
        return web.Response(body=page if isinstance(page, bytes) else json.dumps(page).encode())

    def publish(self, *numbers):
        self.pages["/.well-known/openid-configuration"] = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        self.pages["/keys"] = jwks(*numbers)


@pytest.fixture
async def provider(tls):
    provider = Provider()
    application = web.Application()
    application.router.add_get("/{path:.*}", provider.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.combined)
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    provider.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    provider.publish(0)
    yield provider
    await runner.cleanup()


@pytest.fixture
def issuer(provider, tls):
    return Issuer(
        url=provider.url,
        audiences=frozenset({"tollgate"}),
        certificate_authority=tls.ca_file.read_text(),
        username=Source("sub", "a:"),
    )


# Fetching


async def test_discovery_and_keys(provider, issuer):
    assert await issuers.fetch_openid(issuer) == (issuer, key_set(0))
    assert provider.asked == ["/.well-known/openid-configuration", "/keys"]


@pytest.mark.parametrize(
    ("path", "page", "says"),
    [
        pytest.param("/.well-known/openid-configuration", 500, "answers 500", id="error"),
        pytest.param("/.well-known/openid-configuration", 302, "answers 302", id="redirect"),
        pytest.param("/.well-known/openid-configuration", b"<html>", "is not JSON", id="HTML"),
        pytest.param("/.well-known/openid-configuration", [], "is not a JSON object", id="a list"),
        pytest.param("/.well-known/openid-configuration", {"issuer": "https://b"}, "names the issuer", id="another"),
        pytest.param("/.well-known/openid-configuration", b"x" * 1_100_000, "more than 1048576 bytes", id="too large"),
        pytest.param("/keys", 404, "answers 404", id="no keys"),
        pytest.param("/keys", {"keys": 1}, "no list of keys", id="not keys"),
    ],
)
async def test_what_a_provider_must_not_answer(provider, issuer, path, page, says):
    provider.pages[path] = page
    with pytest.raises(IssuerError, match=says):
        await issuers.fetch_openid(issuer)
    assert "/moved" not in provider.asked


async def test_keys_come_over_https_only(provider, issuer):
    provider.pages["/.well-known/openid-configuration"]["jwks_uri"] = "http://127.0.0.1/keys"
    with pytest.raises(IssuerError, match="not an https address"):
        await issuers.fetch_openid(issuer)


async def test_an_issuer_that_the_ca_does_not_vouch_for(provider):
    with pytest.raises(IssuerError, match="cannot be fetched"):
        await issuers.fetch_openid(Issuer(url=provider.url, audiences=frozenset({"tollgate"})))
    assert provider.asked == []


async def test_an_issuer_that_is_down(issuer):
    with pytest.raises(IssuerError, match="cannot be fetched"):
        await issuers.fetch_openid(Issuer(url="https://127.0.0.1:1", audiences=frozenset()))


# Keeping keys


class Source1:
    """What Keys fetches from: the next answer, and how often it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self):
        self.asked += 1
        await asyncio.sleep(0)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return Issuer(url="https://a", audiences=frozenset()), answer


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def keys_of(*answers):
    source, clock, removed = Source1(*answers), Clock(), []
    return issuers.Keys("a", source, lambda: removed.append(1), clock), source, clock, removed


async def test_the_last_good_keys_go_on_serving():
    keys, _, _, _ = keys_of(key_set(0), IssuerError("down"))
    await keys.refresh()
    with pytest.raises(IssuerError, match="down"):
        await keys.refresh()
    assert keys.keys == key_set(0)


async def test_an_empty_answer_is_no_answer():
    keys, _, _, _ = keys_of(key_set(0), KeySet())
    await keys.refresh()
    with pytest.raises(IssuerError, match="no key that can be used"):
        await keys.refresh()
    assert keys.keys == key_set(0)


async def test_those_who_ask_together_wait_for_one_fetch():
    keys, source, _, _ = keys_of(key_set(0))
    await asyncio.gather(*(keys.refresh() for _ in range(5)))
    assert source.asked == 1


async def test_a_client_that_leaves_does_not_end_the_fetch_for_others():
    keys, _, _, _ = keys_of(key_set(0))
    first = asyncio.create_task(keys.refresh())
    second = asyncio.create_task(keys.refresh())
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert keys.keys == key_set(0)


@pytest.mark.attack("credentials: keys")
async def test_an_unknown_key_is_looked_for_now_and_then():
    keys, source, clock, _ = keys_of(key_set(0), key_set(0), key_set(0, 1))
    await keys.refresh()
    assert not (await keys.find("k1")).knows("k1")  # asked a moment ago: not again
    assert source.asked == 1
    clock.now += issuers.UNKNOWN_KEY_PAUSE
    assert not (await keys.find("k1")).knows("k1")
    assert not (await keys.find("k1")).knows("k1")
    assert source.asked == 2
    clock.now += issuers.UNKNOWN_KEY_PAUSE
    assert (await keys.find("k1")).knows("k1")
    assert source.asked == 3


async def test_a_known_key_is_not_looked_for():
    keys, source, clock, _ = keys_of(key_set(0))
    await keys.refresh()
    clock.now += 3600
    await keys.find("k0")
    await keys.find("")
    assert source.asked == 1


@pytest.mark.attack("credentials: keys")
async def test_an_unknown_key_while_the_issuer_is_down():
    keys, _, clock, _ = keys_of(key_set(0), IssuerError("down"))
    await keys.refresh()
    clock.now += issuers.UNKNOWN_KEY_PAUSE
    assert await keys.find("k1") == key_set(0)


async def test_a_withdrawn_key_is_told():
    keys, _, _, removed = keys_of(key_set(0), key_set(0, 1), key_set(1))
    for expected in (0, 0, 1):
        await keys.refresh()
        assert len(removed) == expected


async def test_keys_are_fetched_in_the_background(monkeypatch):
    monkeypatch.setattr(issuers, "FIRST_RETRY", 0.001)
    keys, source, _, _ = keys_of(IssuerError("down"), IssuerError("down"), key_set(0))
    task = asyncio.create_task(keys.keep_fresh())
    async with asyncio.timeout(5):
        while not keys.keys.keys:
            await asyncio.sleep(0.001)
    task.cancel()
    assert source.asked == 3


# Authenticating


class FakeApi:
    """The API server: answers by path, each an object, a status or an error."""

    def __init__(self):
        self.asked = []
        self.pages = {
            "/apis/authentication.k8s.io/v1/selfsubjectreviews": {
                "status": {"userInfo": {"username": "kubernetes-admin"}}
            },
            "/.well-known/openid-configuration": {"issuer": OWN_ISSUER, "jwks_uri": "https://elsewhere/keys"},
            "/openid/v1/jwks": jwks(1),
            "/apis/authentication.k8s.io/v1/tokenreviews": {
                "status": {
                    "authenticated": True,
                    "audiences": ["tollgate"],
                    "user": {"username": SUB, "uid": "u", "groups": ["system:serviceaccounts"]},
                }
            },
        }
        self.gate = asyncio.Event()
        self.gate.set()

    async def request(self, method, path, *, purpose, body=None, timeout=5.0):  # noqa: ASYNC109 (as ApiServer)
        self.asked.append((method, path, body))
        await self.gate.wait()
        page = self.pages[path]
        if isinstance(page, Exception):
            raise page
        return Answer(page, b"{}") if isinstance(page, int) else Answer(200, json.dumps(page).encode())

    def reviews(self):
        return [body for _, path, body in self.asked if path.endswith("/tokenreviews")]


REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


@pytest.fixture
async def gateway(issuer):
    """An authenticator for one OpenID issuer and the cluster, whose keys are there."""
    authenticator = issuers.Authenticator(AuthConfig((issuer,)), FakeApi(), accept_cluster=True)
    authenticator.start()
    async with asyncio.timeout(5):
        while not (
            authenticator.own and all(k.issuer for k in (*authenticator.issuers.values(), authenticator.cluster_keys))
        ):
            await asyncio.sleep(0.001)
    yield authenticator
    authenticator.stop()


def identify(gateway, text, now=NOW):
    return gateway.identify(text, tokens.digest(text), now)


def remembered(gateway, text, now=NOW):
    return gateway.remembered(tokens.digest(text), now)


async def test_an_openid_token(gateway, provider):
    text = token(provider.url)
    found = await identify(gateway, text)
    assert (found.username, found.issuer, found.expiry) == ("a:alice", provider.url, NOW + 600)
    assert remembered(gateway, text, NOW + 599) is found
    assert remembered(gateway, text, NOW + 600) is None
    assert gateway.cluster.api.reviews() == []


async def test_a_token_of_the_cluster_is_reviewed_with_its_audience(gateway):
    text = token(OWN_ISSUER, 1, sub=SUB)
    found = await identify(gateway, text)
    assert found.username == f"tollgate:{SUB}"
    assert [body["spec"] for body in gateway.cluster.api.reviews()] == [
        {"token": text, "audiences": ["tollgate", "tollgate-approver"]}
    ]


async def test_an_approvers_token_is_its_own_identity(gateway):
    ordinary, approver = token(OWN_ISSUER, 1, sub=SUB), token(OWN_ISSUER, 1, sub=SUB, aud="tollgate-approver")
    status = gateway.cluster.api.pages[REVIEWS]["status"]
    assert (await identify(gateway, ordinary)).audiences == ("tollgate",)
    status["audiences"] = ["tollgate-approver"]  # as the API server says of the other
    assert (await identify(gateway, approver)).audiences == ("tollgate-approver",)
    # Each token has its own, also when both are remembered.
    assert remembered(gateway, ordinary).audiences == ("tollgate",)
    assert remembered(gateway, approver).audiences == ("tollgate-approver",)


async def test_the_approvers_audience_of_an_issuer_that_does_not_list_it(gateway, provider):
    with pytest.raises(TokenError, match="audience"):
        await identify(gateway, token(provider.url, aud="tollgate-approver"))


async def test_the_login_is_older_than_the_token(gateway, provider):
    found = await identify(gateway, token(provider.url, auth_time=NOW - 3600, amr=["mfa"]))
    assert (found.auth_time, found.issued_at, found.claims["amr"]) == (NOW - 3600, NOW, ["mfa"])


async def test_a_review_is_believed_for_ten_seconds(gateway):
    text = token(OWN_ISSUER, 1, sub=SUB)
    found = await identify(gateway, text)
    assert remembered(gateway, text, NOW + 9.9) is found
    assert remembered(gateway, text, NOW + 10) is None
    gateway.cluster.api.pages[REVIEWS] = {"status": {"authenticated": False}}  # the ServiceAccount is gone
    with pytest.raises(TokenError, match="review"):
        await identify(gateway, text, NOW + 10)


async def test_a_refusal_is_believed_for_ten_seconds(gateway):
    text, api = token(OWN_ISSUER, 1, sub=SUB), gateway.cluster.api
    good, api.pages[REVIEWS] = api.pages[REVIEWS], {"status": {"authenticated": False}}
    for _ in range(3):
        with pytest.raises(TokenError, match="review"):
            await identify(gateway, text)
    assert len(api.reviews()) == 1
    api.pages[REVIEWS] = good
    assert await identify(gateway, text, NOW + 10)


async def test_those_who_come_together_share_one_review(gateway):
    text, api = token(OWN_ISSUER, 1, sub=SUB), gateway.cluster.api
    api.gate.clear()
    waiting = [asyncio.create_task(identify(gateway, text)) for _ in range(5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting[0].cancel()  # one leaves
    api.gate.set()
    found = await asyncio.gather(*waiting[1:])
    assert {identity.username for identity in found} == {f"tollgate:{SUB}"}
    assert len(api.reviews()) == 1


@pytest.mark.parametrize("page", [500, 403, 404, ApiServerError("unreachable"), [], {"status": 5}])
async def test_a_review_that_cannot_be_had_is_no_identity(gateway, page):
    text = token(OWN_ISSUER, 1, sub=SUB)
    gateway.cluster.api.pages[REVIEWS] = page
    with pytest.raises((IssuerError, TokenError)):
        await identify(gateway, text)
    assert remembered(gateway, text) is None


async def test_a_bad_signature_is_never_reviewed(gateway):
    text = jwt.encode(
        jwt.decode(token(OWN_ISSUER, 1), options={"verify_signature": False}), KEYS[2], "ES256", {"kid": "k1"}
    )
    with pytest.raises(TokenError, match="signature"):
        await identify(gateway, text)
    assert gateway.cluster.api.reviews() == []


@pytest.mark.attack("credentials: keys")
async def test_one_issuers_key_does_not_sign_for_another(gateway, provider):
    with pytest.raises(TokenError, match="key-unknown"):
        await identify(gateway, token(OWN_ISSUER, 0, sub=SUB))
    with pytest.raises(TokenError, match="key-unknown"):
        await identify(gateway, token(provider.url, 1))


async def test_an_issuer_that_nobody_configured(gateway):
    with pytest.raises(TokenError, match="issuer-unknown"):
        await identify(gateway, token("https://evil.example"))


async def test_the_clusters_issuer_listed_in_the_file_is_still_reviewed(provider):
    listed = Issuer(url=OWN_ISSUER, audiences=frozenset({"tollgate"}), username=Source("sub", "x:"))
    gateway = issuers.Authenticator(AuthConfig((listed,)), FakeApi(), accept_cluster=True)
    gateway.own = frozenset({"x"})
    await gateway.cluster_keys.refresh()
    assert (await identify(gateway, token(OWN_ISSUER, 1, sub=SUB))).username == f"tollgate:{SUB}"


@pytest.mark.attack("credentials: keys")
async def test_rotated_keys_are_found_and_withdrawn_ones_forgotten(gateway, provider):
    old, new = token(provider.url, 0), token(provider.url, 2)
    await identify(gateway, old)
    provider.publish(2)
    await gateway.issuers[provider.url].refresh()
    assert remembered(gateway, old) is None
    assert (await identify(gateway, new)).username == "a:alice"
    with pytest.raises(TokenError, match="key-unknown"):
        await identify(gateway, old)


async def test_nobody_gets_in_before_the_gateway_knows_its_own_name(issuer, provider):
    gateway = issuers.Authenticator(AuthConfig((issuer,)), FakeApi(), accept_cluster=False)
    await gateway.issuers[provider.url].refresh()
    with pytest.raises(IssuerError, match="own name"):
        await identify(gateway, token(provider.url))


@pytest.mark.attack("credentials: keys")
async def test_nobody_gets_in_with_the_gateways_own_name(gateway, provider):
    gateway.issuers[provider.url].issuer = Issuer(
        url=provider.url, audiences=frozenset({"tollgate"}), username=Source("sub", "")
    )
    with pytest.raises(TokenError, match="identity-reserved"):
        await identify(gateway, token(provider.url, sub="kubernetes-admin"))


async def test_before_the_keys_are_there(issuer, provider):
    gateway = issuers.Authenticator(AuthConfig((issuer,)), FakeApi(), accept_cluster=True)
    gateway.own = frozenset({"x"})
    provider.pages["/keys"] = 500
    with pytest.raises(IssuerError, match="no keys yet"):
        await identify(gateway, token(provider.url))
    # Not known yet, so nobody can say that it is not the cluster's.
    with pytest.raises(IssuerError, match="not known yet"):
        await identify(gateway, token(OWN_ISSUER, 1))


async def test_the_name_is_asked_for_until_it_is_known(monkeypatch):
    monkeypatch.setattr(issuers, "FIRST_RETRY", 0.001)
    api = FakeApi()
    good, api.pages[WHOAMI] = api.pages[WHOAMI], 403
    gateway = issuers.Authenticator(AuthConfig(), api, accept_cluster=False)
    gateway.start()
    gateway.start()  # once is enough
    async with asyncio.timeout(5):
        while len(api.asked) < 3:
            await asyncio.sleep(0.001)
        api.pages[WHOAMI] = good
        while not gateway.own:
            await asyncio.sleep(0.001)
    gateway.stop()
    assert gateway.own == {"kubernetes-admin", f"{authconfig.CLUSTER_PREFIX}kubernetes-admin"}


async def test_a_missing_right_of_the_gateway_is_named():
    api = FakeApi()
    api.pages["/.well-known/openid-configuration"] = 403
    with pytest.raises(IssuerError, match="system:service-account-issuer-discovery"):
        await issuers.Cluster(api).fetch_issuer()


async def test_how_old_the_keys_are():
    keys, _, clock, _ = keys_of(key_set(0), IssuerError("down"))
    clock.now += 7
    assert keys.age == 7  # there never were any
    await keys.refresh()
    assert keys.age == 0
    clock.now += 30
    with pytest.raises(IssuerError):
        await keys.refresh()
    assert keys.age == 30


async def test_what_the_doctor_hears_of_issuers():
    clock = Clock()
    one = issuers.Authenticator(AuthConfig(), FakeApi(), accept_cluster=True, clock=clock)
    assert [finding.level for finding in one.findings()] == [Level.PROBLEM]
    one.cluster_keys.keys = key_set(0)
    assert [finding.level for finding in one.findings()] == [Level.OK]
    clock.now += issuers.STALE + 1
    assert one.key_ages() == {"cluster": issuers.STALE + 1}
    assert [finding.level for finding in one.findings()] == [Level.WARNING]
