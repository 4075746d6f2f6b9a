import datetime

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from addons.core import owncredential
from addons.core.doctor import Level
from addons.core.owncredential import Credential, Source
from addons.net import certificates

NOW = 1_900_000_000.0
HOUR, DAY = 3600.0, 86400.0
KEY = ec.generate_private_key(ec.SECP256R1())


def token(**claims):
    return jwt.encode({"iss": "https://cluster.example"} | claims, KEY, algorithm="ES256", headers={"kid": "k"})


@pytest.mark.parametrize(
    ("credential", "static", "level", "words"),
    [
        pytest.param(Credential(Source.TOKEN), True, Level.WARNING, "in the kubeconfig, which does not say when",
                     id="an opaque token"),
        pytest.param(Credential(Source.TOKEN, NOW - 300 * DAY), True, Level.WARNING, "300 days old, never ends",
                     id="of a token Secret"),
        pytest.param(Credential(Source.CERTIFICATE, NOW - DAY, NOW + 364 * DAY), True, Level.WARNING,
                     "1 day old, ends in 364 days", id="a certificate for a year"),
        pytest.param(Credential(Source.CERTIFICATE, NOW - HOUR, NOW + HOUR), False, Level.OK, "ends in 1 hour",
                     id="a certificate for hours"),
        pytest.param(Credential(Source.TOKEN, NOW - 60, NOW + HOUR - 60), False, Level.WARNING, "nobody renews it",
                     id="a short token that is pasted in"),
        pytest.param(Credential(Source.TOKEN_FILE, NOW - 60, NOW + HOUR - 60), False, Level.OK, "ends in 59 minutes",
                     id="a token file"),
        pytest.param(Credential(Source.TOKEN_FILE), True, Level.WARNING, "does not say when", id="an opaque file"),
        pytest.param(Credential(Source.TOKEN_FILE, NOW, NOW + DAY + 1), True, Level.WARNING, "ends in 1 day",
                     id="over a day"),
        pytest.param(Credential(Source.PLUGIN), False, Level.OK, "does not say when", id="a plugin's token"),
        pytest.param(Credential(Source.PLUGIN, NOW, NOW + 90 * DAY), True, Level.WARNING, "ends in 90 days",
                     id="a plugin with a long one"),
        pytest.param(Credential(Source.POD, NOW, NOW + 365 * DAY, bound=True), False, Level.OK, "ends with its pod",
                     id="a pod's, with the year of grace"),
        pytest.param(Credential(Source.TOKEN_FILE, NOW - HOUR, NOW - 1), False, Level.PROBLEM, "has expired",
                     id="expired"),
    ],
)  # fmt: skip
def test_finding(credential, static, level, words):
    assert credential.static is static
    found = owncredential.finding(credential, NOW)
    assert found.level is level
    assert words in found.text
    assert bool(found.cure) is (level is not Level.OK)


def test_of_token():
    assert owncredential.of_token(Source.PLUGIN, "opaque") == Credential(Source.PLUGIN)
    assert owncredential.of_token(Source.TOKEN, token(iat=1, exp=2) + "\n") == Credential(Source.TOKEN, 1.0, 2.0)
    bound = token(iat=1, exp=2, **{"kubernetes.io": {"pod": {"name": "gateway-0"}}})
    assert owncredential.of_token(Source.POD, bound).bound
    assert not owncredential.of_token(Source.POD, token(iat=1, **{"kubernetes.io": {"serviceaccount": {}}})).bound


@pytest.mark.parametrize(
    "claims", [{"iat": "soon"}, {"exp": True}, {"kubernetes.io": "x"}, {"kubernetes.io": {"pod": 1}}]
)
def test_odd_claims_say_nothing(claims):
    assert owncredential.of_token(Source.TOKEN, token(**claims)) == Credential(Source.TOKEN)


def test_of_certificate(tmp_path):
    now = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    made = certificates.ensure(tmp_path, "127.0.0.1", now)
    found = owncredential.of_certificate(made.combined.read_bytes())
    assert found.source is Source.CERTIFICATE
    assert found.static
    assert found.age(NOW) == HOUR
    with pytest.raises(ValueError, match="PEM"):
        owncredential.of_certificate(b"no PEM")


def test_the_warning_names_age_and_reason():
    said = owncredential.admin_warning("it may do everything", Credential(Source.TOKEN, NOW - 40 * DAY), NOW)
    assert said == (
        "the gateway's own credential (a token in the kubeconfig, 40 days old) is cluster-admin and static: "
        "it may do everything"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (59, "59 s"), (60, "1 minute"), (7199, "1 hour"), (2 * DAY, "2 days")],
)
def test_duration(seconds, text):
    assert owncredential.duration(seconds) == text
