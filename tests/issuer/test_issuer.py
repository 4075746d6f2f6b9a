"""A real, certified OpenID provider: its tokens, its keys, and their rotation."""

import asyncio
import datetime
import json
import time

import pytest

from addons.core import authconfig, tokens
from addons.core.tokens import TokenError
from addons.net import certificates, issuers
from tests.issuer import issuer

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    folder = tmp_path_factory.mktemp("issuer")
    tls = certificates.ensure(folder, "127.0.0.1", datetime.datetime.now(datetime.UTC))
    with issuer.running(tls.combined, tls.ca_file, folder) as running:
        yield running


class NoCluster:
    async def request(self, method, path, **_):
        raise AssertionError(f"{path}: the API server has nothing to say about this")


@pytest.fixture
async def gateway(provider):
    document = json.loads(
        provider.configuration(
            {"expression": "'corp:' + claims.email.lowerAscii()"},
            claimValidationRules=[
                {"expression": "claims.tier in ['gold', 'silver']", "message": "no tier"},
                {"expression": "claims.email_verified"},
            ],
            userValidationRules=[{"expression": "!user.groups.exists(g, g == 'corp:banned')"}],
        )
    )
    document["jwt"][0]["claimMappings"] |= {
        "groups": {"claim": "roles", "prefix": "corp:"},
        "uid": {"claim": "employee"},
        "extra": [{"key": "example.com/tier", "valueExpression": "claims.tier"}],
    }
    gateway = issuers.Authenticator(authconfig.load(json.dumps(document)), NoCluster(), accept_cluster=False)
    gateway.own = frozenset({"kubernetes-admin"})
    await gateway.issuers[provider.url].refresh()
    return gateway


ALICE = {"email": "Alice@example.com", "email_verified": True, "roles": ["dev"], "employee": "e1", "tier": "gold"}


async def identify(gateway, text):
    return await gateway.identify(text, tokens.digest(text), time.time())


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
async def test_its_tokens_are_mapped(gateway, provider, alg):
    found = await identify(gateway, await asyncio.to_thread(provider.token, ALICE, alg=alg))
    assert (found.username, found.groups, found.uid) == ("corp:alice@example.com", ("corp:dev",), "e1")
    assert found.extra["example.com/tier"] == ("gold",)


@pytest.mark.parametrize(
    ("changes", "options", "why"),
    [
        pytest.param({}, {"audience": "another"}, "audience", id="audience"),
        pytest.param({}, {"ttl": 90_000}, "lifetime", id="lifetime"),
        pytest.param({"tier": "lead"}, {}, "claim-rule", id="claim rule"),
        pytest.param({"email_verified": False}, {}, "claim-rule", id="email not verified"),
        pytest.param({"roles": ["banned"]}, {}, "user-rule", id="user rule"),
    ],
)
async def test_refused(gateway, provider, changes, options, why):
    text = await asyncio.to_thread(provider.token, ALICE | changes, **options)
    with pytest.raises(TokenError) as e:
        await identify(gateway, text)
    assert e.value.reason == why


async def test_rotation(gateway, provider, monkeypatch):
    monkeypatch.setattr(issuers, "UNKNOWN_KEY_PAUSE", 0.0)
    old = await asyncio.to_thread(provider.token, ALICE)
    await asyncio.to_thread(provider.rotate, keep=True)
    new = await asyncio.to_thread(provider.token, ALICE)
    assert tokens.read(old).unverified_kid != tokens.read(new).unverified_kid
    assert await identify(gateway, new) != await identify(gateway, old)  # fetched on the unknown kid
    await asyncio.to_thread(provider.rotate, keep=False)
    await identify(gateway, await asyncio.to_thread(provider.token, ALICE))
    with pytest.raises(TokenError, match="key-unknown"):
        await identify(gateway, old)
