"""
The same AuthenticationConfiguration given to the API server and to the gateway gives the same
identity: `kubectl auth whoami` with one token, directly and through the gateway.
"""

import datetime
import json
from contextlib import ExitStack

import pytest
import yaml

from addons.core import authconfig
from addons.net import certificates
from tests.e2e import gateway, policies
from tests.issuer import issuer

pytestmark = pytest.mark.e2e

EXTRAS = "authentication.kubernetes.io/credential-id,example.com/tier"
CLAIMS = {
    "email": "alice@example.com",
    "email_verified": True,
    "roles": ["dev", "ops"],
    "role": "dev",
    "teams": "red,blue",
    "employee": "e1",
    "number": 1764028034,
    "tier": "gold",
    "nested": {"tiers": ["a", "", "b"]},
}

# What a file may say, each with a token of CLAIMS that both must understand alike.
MAPPINGS = {
    "claims": {"username": {"claim": "email", "prefix": "corp:"}, "groups": {"claim": "roles", "prefix": "corp:"}},
    "one group as a string": {"username": {"claim": "sub", "prefix": ""}, "groups": {"claim": "role", "prefix": ""}},
    "no groups": {"username": {"claim": "sub", "prefix": "corp:"}, "groups": {"claim": "absent", "prefix": ""}},
    "expressions": {
        "username": {"expression": "'corp:' + claims.email.split('@')[0] + (claims.email_verified ? '' : '!')"},
        "groups": {"expression": "claims.teams.split(',').map(t, 'corp:' + t)"},
        "uid": {"expression": "claims.employee.upperAscii()"},
        "extra": [{"key": "example.com/tier", "valueExpression": "claims.nested.tiers"}],
    },
    "digits": {"username": {"expression": "'corp:' + string(int(claims.number))"}},
    "optional and numbers": {
        "username": {"expression": "'corp:' + claims.?nickname.orValue(string(claims.number))"},
        "groups": {"expression": "claims.number > 5 ? claims.roles : ['none']"},
        "uid": {"claim": "employee"},
        "extra": [{"key": "example.com/tier", "valueExpression": "claims.?none.orValue('')"}],
    },
}


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    folder = tmp_path_factory.mktemp("issuer")
    tls = certificates.ensure(folder, "127.0.0.1", datetime.datetime.now(datetime.UTC))
    with issuer.running(tls.combined, tls.ca_file, folder) as running:
        yield running


def configuration(provider, mappings):
    where = {
        "url": provider.url,
        "audiences": ["tollgate", "second"],
        "audienceMatchPolicy": "MatchAny",
        "certificateAuthority": provider.ca_file.read_text(),
    }
    entry = {
        "issuer": where,
        "claimMappings": mappings,
        "claimValidationRules": [
            {"expression": "claims.exp - claims.iat <= 3600", "message": "too long"},
            {"claim": "tier", "requiredValue": "gold"},
        ],
        "userValidationRules": [{"expression": "!user.groups.exists(g, g.startsWith('system:'))"}],
    }
    return yaml.safe_dump({"apiVersion": authconfig.API_VERSIONS[0], "kind": authconfig.KIND, "jwt": [entry]})


@pytest.fixture(scope="module", params=MAPPINGS, ids=lambda name: name.replace(" ", "-"))
def both(request, controlplane, provider, tmp_path_factory):
    """Kubeconfigs for a token: directly to an API server with this configuration, and through a gateway with it."""
    folder = tmp_path_factory.mktemp("whoami")
    (folder / "auth.yaml").write_text(configuration(provider, MAPPINGS[request.param]))
    (folder / "policy.yaml").write_text(policies.EVERYTHING)
    with ExitStack() as stack:
        stack.callback(controlplane.restart_apiserver)
        stack.callback(setattr, controlplane, "authentication_config", None)
        controlplane.authentication_config = folder / "auth.yaml"
        controlplane.restart_apiserver()
        running = stack.enter_context(
            gateway.running(
                folder,
                "--kubeconfig",
                str(controlplane.admin_kubeconfig),
                "--auth",
                str(folder / "auth.yaml"),
                "--policies",
                str(folder / "policy.yaml"),
                "--forward-extra",
                EXTRAS,
            )
        )

        def kubeconfigs(token):
            direct = folder / "direct.kubeconfig"
            controlplane.kubeconfig(direct, controlplane.url, controlplane.ca_file, token=token)
            return direct, running.kubeconfig("through", token)

        yield kubeconfigs


def whoami(controlplane, kubeconfig, check=True):
    result = controlplane.run_kubectl("auth", "whoami", "-o", "json", kubeconfig=kubeconfig, check=check)
    if result.returncode:
        return result.stderr
    found = json.loads(result.stdout)["status"]["userInfo"]
    return {**found, "groups": sorted(found.get("groups", []))}


def test_the_api_server_and_the_gateway_agree_who_it_is(both, controlplane, provider):
    direct, through = both(provider.token(CLAIMS))
    assert whoami(controlplane, through) == whoami(controlplane, direct)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        pytest.param({}, {"audience": "other"}, id="audience"),
        pytest.param({}, {"ttl": 4000}, id="claim rule"),
        pytest.param({"tier": "lead"}, {}, id="required value"),
        pytest.param({"tier": 5}, {}, id="required value of another type"),
    ],
)
def test_they_agree_whom_to_refuse(both, controlplane, provider, changes, options):
    direct, through = both(provider.token(CLAIMS | changes, **options))
    for kubeconfig in (direct, through):
        said = whoami(controlplane, kubeconfig, check=False)
        assert isinstance(said, str), said
        assert "nauthorized" in said or "no token that is accepted" in said
