"""What the real API server says of tokens for several audiences, and what the gateway makes of it."""

import asyncio
import time
from pathlib import Path

import pytest

from addons.core import tokens
from addons.core.authconfig import AuthConfig
from addons.core.tokens import TokenError
from addons.net import apiserver, issuers
from tests.cluster.controlplane import ControlPlane

pytestmark = pytest.mark.e2e


@pytest.fixture
async def authenticator(gateway_kubeconfig: Path):
    api = apiserver.load(str(gateway_kubeconfig))
    found = issuers.Authenticator(AuthConfig(), api, accept_cluster=True)
    api.start()
    found.start()
    async with asyncio.timeout(20):
        while not found.ready:
            await asyncio.sleep(0.01)
    yield found
    found.stop()
    await api.stop()


def token(controlplane: ControlPlane, *audiences: str) -> str:
    path = "/api/v1/namespaces/people/serviceaccounts/engineer/token"
    return str(controlplane.api("POST", path, {"spec": {"audiences": list(audiences)}})["status"]["token"])


@pytest.mark.parametrize(
    ("audiences", "expected"),
    [
        pytest.param(["tollgate"], ("tollgate",), id="ordinary"),
        pytest.param(["tollgate-approver"], ("tollgate-approver",), id="an approver's"),
        pytest.param(["other", "tollgate-approver", "tollgate"], ("tollgate", "tollgate-approver"), id="both"),
        pytest.param(["https://kubernetes.default.svc"], None, id="the API server's own"),
        pytest.param(["tollgate-approvers"], None, id="nearly"),
    ],
)
async def test_audiences(controlplane, authenticator, audiences, expected):
    text = token(controlplane, *audiences)
    digest = tokens.digest(text)
    if expected is None:
        with pytest.raises(TokenError, match="audience"):
            await authenticator.identify(text, digest, time.time())
        return
    found = await authenticator.identify(text, digest, time.time())
    assert (found.username, found.audiences) == ("tollgate:system:serviceaccount:people:engineer", expected)
    assert 0 <= time.time() - found.auth_time < 60
    assert found.claims["sub"] == "system:serviceaccount:people:engineer"
    assert authenticator.remembered(digest, time.time()) is found
