"""
Who the gateway takes a caller for is who the API server itself does, given the same
AuthenticationConfiguration: `kubectl auth whoami`, direct and through the gateway.
"""

import datetime
import json

import pytest
import yaml

from addons.core import upstreamrequest
from addons.net import certificates
from tests.cluster.controlplane import ControlPlane
from tests.e2e import gateway, policies
from tests.issuer import issuer

pytestmark = pytest.mark.e2e

NOTES = ("authentication.kubernetes.io/", upstreamrequest.MARK_KEY)
ALICE = {
    "name": "alice", "email": "Alice@Example.com", "email_verified": True, "roles": ["dev", "ops"], "team": "blue",
    "employee": "e-17", "one_group": "single",
}  # fmt: skip

# Each in the place of jwt[0]'s fields beside `issuer`.
CONFIGURATIONS = {
    "a claim with a prefix": {"claimMappings": {"username": {"claim": "name", "prefix": "corp:"}}},
    "a claim without one": {"claimMappings": {"username": {"claim": "name", "prefix": ""}}},
    "groups from a list": {
        "claimMappings": {
            "username": {"claim": "name", "prefix": "corp:"},
            "groups": {"claim": "roles", "prefix": "corp:"},
        }
    },
    "groups from a string": {
        "claimMappings": {
            "username": {"claim": "name", "prefix": "c:"},
            "groups": {"claim": "one_group", "prefix": "c:"},
        }
    },
    "email, uid and extra by expression": {
        "claimMappings": {
            "username": {"expression": "'corp:' + claims.email.lowerAscii()"},
            "groups": {"expression": "dyn(claims.roles).map(r, 'corp:' + r)"},
            "uid": {"expression": "claims.employee"},
            "extra": [{"key": "example.com/team", "valueExpression": "claims.team"}],
        },
        "claimValidationRules": [{"expression": "claims.email_verified == true", "message": "verify your email"}],
    },
    "rules that hold": {
        "claimMappings": {"username": {"claim": "name", "prefix": "corp:"}},
        "claimValidationRules": [{"claim": "team", "requiredValue": "blue"}],
        "userValidationRules": [{"expression": "user.username.startsWith('corp:')", "message": "no"}],
    },
    "a rule that does not hold": {
        "claimMappings": {"username": {"claim": "name", "prefix": "corp:"}},
        "claimValidationRules": [{"claim": "team", "requiredValue": "green"}],
    },
    "a user that is refused": {
        "claimMappings": {"username": {"claim": "name", "prefix": "corp:"}},
        "userValidationRules": [{"expression": "user.username != 'corp:alice'", "message": "not alice"}],
    },
}


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    folder = tmp_path_factory.mktemp("issuer")
    tls = certificates.ensure(folder, "127.0.0.1", datetime.datetime.now(datetime.UTC))
    with issuer.running(tls.combined, tls.ca_file, folder) as running:
        yield running


@pytest.fixture(scope="module")
def own_cluster(tmp_path_factory):
    """A control plane of its own: it is restarted with each configuration."""
    with ControlPlane.start(tmp_path_factory.mktemp("whoami") / "plane", kwok=False) as cluster:
        yield cluster


def whoami(cluster, kubeconfig):
    """UserInfo without the API server's own note on the credential and the gateway's mark, or None: not accepted."""
    done = cluster.run_kubectl("auth", "whoami", "-o", "json", kubeconfig=kubeconfig, check=False)
    if done.returncode:
        assert "must be logged in" in done.stderr or "Unauthorized" in done.stderr, done.stderr
        return None
    user = json.loads(done.stdout)["status"]["userInfo"]
    extra = {k: v for k, v in user.get("extra", {}).items() if not k.startswith(NOTES)}
    return {**user, "extra": extra, "groups": sorted(user.get("groups", []))}


@pytest.mark.parametrize(("name", "alg"), [*((n, "RS256") for n in CONFIGURATIONS), ("groups from a list", "ES256")])
def test_the_same_user(own_cluster, provider, tmp_path, name, alg):
    chosen = CONFIGURATIONS[name]
    document = yaml.safe_load(provider.configuration(chosen["claimMappings"]["username"]))
    document["jwt"][0] |= chosen
    config = tmp_path / "authentication.yaml"
    config.write_text(json.dumps(document))
    own_cluster.authentication_config = config
    own_cluster.restart_apiserver()
    (tmp_path / "policy.yaml").write_text(policies.EVERYTHING)
    token = provider.token(ALICE, alg=alg)
    direct = whoami(
        own_cluster, own_cluster.kubeconfig(tmp_path / "direct", own_cluster.url, own_cluster.ca_file, token=token)
    )
    arguments = ["--kubeconfig", str(own_cluster.admin_kubeconfig), "--auth", str(config),
                 "--policies", str(tmp_path / "policy.yaml"), "--forward-extra", "example.com/team"]  # fmt: skip
    with gateway.running(tmp_path / "gateway", *arguments) as one:
        through = whoami(own_cluster, one.kubeconfig("alice", token))
    assert through == direct
    assert (direct is None) == (name in ("a rule that does not hold", "a user that is refused"))
