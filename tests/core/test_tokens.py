"""Tokens: which are believed, and that nothing but the exact form is."""

import base64
import hashlib
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from addons.core import tokens
from addons.core.authconfig import Issuer
from addons.core.tokens import TokenError

NOW = 1_800_000_000.0
ISSUER = Issuer(url="https://a.example", audiences=frozenset({"tollgate", "second"}))
RSA_KEY = rsa.generate_private_key(65537, 2048)
WEAK_KEY = rsa.generate_private_key(65537, 1024)  # noqa: S505 (to be refused)
OTHER_KEY = rsa.generate_private_key(65537, 2048)
EC_KEYS = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
}
ED_KEY = ed25519.Ed25519PrivateKey.generate()
GOOD = {"iss": ISSUER.url, "aud": "tollgate", "sub": "alice", "iat": NOW - 10, "exp": NOW + 3590}


def jwk(key, kid, **members):
    kinds = {rsa.RSAPrivateKey: "RSA", ec.EllipticCurvePrivateKey: "EC", ed25519.Ed25519PrivateKey: "OKP"}
    kind = next(name for cls, name in kinds.items() if isinstance(key, cls))
    algorithm = {
        "RSA": jwt.algorithms.RSAAlgorithm,
        "EC": jwt.algorithms.ECAlgorithm,
        "OKP": jwt.algorithms.OKPAlgorithm,
    }
    return {**algorithm[kind].to_jwk(key.public_key(), as_dict=True), "kid": kid, **members}


def jwks(*entries):
    return tokens.key_set(json.dumps({"keys": entries}).encode())


KEYS = jwks(
    jwk(RSA_KEY, "rsa"), jwk(ED_KEY, "ed"), *(jwk(key, name) for name, key in EC_KEYS.items()), jwk(OTHER_KEY, "other")
)


def encode(part):
    content = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def signed(claims, key=RSA_KEY, algorithm="RS256", **header):
    """A token whose header and claims are exactly these: dicts, or bytes as they are."""
    head = header.pop("raw", None) or {"alg": algorithm, "kid": "rsa", **header}
    text = f"{encode(head)}.{encode(claims)}"
    return f"{text}.{encode(jwt.get_algorithm_by_name(algorithm).sign(text.encode(), key))}"


def verify(token, keys=KEYS, now=NOW, **limits):
    return tokens.verify(token, keys, ISSUER, now, **limits)


def reason(token, **kwargs):
    with pytest.raises(TokenError) as e:
        verify(token, **kwargs)
    return e.value.reason


@pytest.mark.parametrize(
    ("algorithm", "key", "kid"),
    [
        *((alg, RSA_KEY, "rsa") for alg in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        *((alg, key, alg) for alg, key in EC_KEYS.items()),
        ("EdDSA", ED_KEY, "ed"),
    ],
)
def test_good_tokens(algorithm, key, kid):
    assert verify(signed(GOOD, key, algorithm, kid=kid)) == GOOD


def test_without_kid_every_fitting_key_is_tried():
    assert verify(signed(GOOD, OTHER_KEY, raw={"alg": "RS256"})) == GOOD


def hmac_with_public_key():
    secret = RSA_KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    text = f"{encode({'alg': 'HS256', 'kid': 'rsa'})}.{encode(GOOD)}"
    return f"{text}.{encode(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


def part(index, change):
    parts = signed(GOOD).split(".")
    parts[index] = change(parts[index])
    return ".".join(parts)


def other_spelling(text):
    """The same bytes, with other bits in the last character's unused ones."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(text) % 4
    return text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]


RAW = json.dumps(GOOD)


@pytest.mark.attack("credentials: tokens")
@pytest.mark.parametrize(
    ("token", "why"),
    [
        pytest.param("", "malformed", id="empty"),
        pytest.param("abc", "malformed", id="opaque"),
        pytest.param("a.b.c.d.e", "malformed", id="encrypted"),
        pytest.param("x" * (tokens.MAX_TOKEN + 1), "too-large", id="too large"),
        pytest.param(signed(GOOD) + "=", "malformed", id="padding"),
        pytest.param(part(2, lambda s: ""), "malformed", id="no signature"),
        pytest.param(part(2, other_spelling), "malformed", id="signature in another spelling"),
        pytest.param(part(1, lambda s: s + "."), "malformed", id="four parts"),
        pytest.param(part(0, lambda s: encode([])), "malformed", id="header a list"),
        pytest.param(signed(b"{"), "malformed", id="claims no JSON"),
        pytest.param(signed(b"[" * 5_000), "malformed", id="claims nested"),
        pytest.param(signed(b"\xff"), "malformed", id="claims not UTF-8"),
        pytest.param(signed(RAW.replace("{", '{"sub": "bob", ', 1).encode()), "malformed", id="sub twice"),
        pytest.param(signed(RAW.replace("{", '{"a": {"b": 1, "b": 2}, ', 1).encode()), "malformed", id="nested twice"),
        pytest.param(signed(RAW.replace("{", '{"a": NaN, ', 1).encode()), "malformed", id="NaN"),
        pytest.param(signed(RAW.replace("{", '{"sub\\u0000": 1, ', 1).encode()), "malformed", id="NUL in a key"),
        pytest.param(signed(GOOD, raw=b'{"alg": "RS256", "alg": "RS256"}'), "malformed", id="alg twice"),
        pytest.param(hmac_with_public_key(), "algorithm", id="HMAC with the public key"),
        pytest.param(f"{encode({'alg': 'none'})}.{encode(GOOD)}.AAAA", "algorithm", id="none"),
        pytest.param(signed(GOOD, raw={"alg": ["RS256"]}), "algorithm", id="alg a list"),
        pytest.param(signed(GOOD, raw={"kid": "rsa"}), "algorithm", id="no alg"),
        *(
            pytest.param(signed(GOOD, **{name: "x"}), "header", id=name)
            for name in ("jku", "jwk", "x5u", "x5c", "crit", "b64", "zip")
        ),
        pytest.param(signed(GOOD, kid=1), "header", id="kid a number"),
        pytest.param(signed(GOOD, kid="gone"), "key-unknown", id="unknown kid"),
        pytest.param(signed(GOOD, kid="ES256"), "key-unknown", id="a key of another type"),
        pytest.param(signed(GOOD, EC_KEYS["ES384"], "ES384", kid="ES256"), "key-unknown", id="a key of another curve"),
        pytest.param(signed(GOOD, OTHER_KEY), "signature", id="another's signature"),
        pytest.param(part(1, lambda s: encode({**GOOD, "sub": "root"})), "signature", id="claims changed"),
        pytest.param(part(0, lambda s: encode({"alg": "RS384", "kid": "rsa"})), "signature", id="alg changed"),
        pytest.param(signed({**GOOD, "iss": "https://b.example"}), "issuer", id="another issuer"),
        pytest.param(signed({**GOOD, "iss": ["https://a.example"]}), "claims", id="iss a list"),
        pytest.param(signed({k: v for k, v in GOOD.items() if k != "iss"}), "claims", id="no iss"),
    ],
)
def test_tokens_that_are_not_believed(token, why):
    assert reason(token) == why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param({"exp": NOW}, "expired", id="expires now"),
        pytest.param({"exp": NOW + 1}, None, id="a second left"),
        pytest.param({"exp": None}, "claims", id="exp null"),
        pytest.param({"exp": ...}, "lifetime", id="no exp"),
        pytest.param({"exp": str(int(NOW + 60))}, "claims", id="exp a string"),
        pytest.param({"exp": True}, "claims", id="exp a boolean"),
        pytest.param({"exp": -1}, "claims", id="exp negative"),
        pytest.param({"exp": 10**400}, "malformed", id="exp absurd"),
        pytest.param({"exp": 10**12}, "claims", id="exp in milliseconds"),
        pytest.param({"exp": NOW + 86390}, None, id="a day in all"),
        pytest.param({"exp": NOW + 86391}, "lifetime", id="over a day in all"),
        pytest.param({"iat": ..., "exp": NOW + 86400}, None, id="no iat, a day from now"),
        pytest.param({"iat": ..., "exp": NOW + 86401}, "lifetime", id="no iat, over a day"),
        pytest.param({"iat": NOW + 30}, None, id="iat ahead by the skew"),
        pytest.param({"iat": NOW + 31}, "not-yet", id="iat ahead by more"),
        pytest.param({"iat": NOW + 86400, "exp": NOW + 172800}, "not-yet", id="iat tomorrow"),
        pytest.param({"nbf": NOW + 30}, None, id="nbf ahead by the skew"),
        pytest.param({"nbf": NOW + 31}, "not-yet", id="nbf ahead by more"),
        pytest.param({"nbf": "now"}, "claims", id="nbf a word"),
        pytest.param({"aud": ["x", "second"]}, None, id="one audience of several"),
        pytest.param({"aud": "other"}, "audience", id="another audience"),
        pytest.param({"aud": []}, "audience", id="no audience in the list"),
        pytest.param({"aud": ...}, "audience", id="no audience"),
        pytest.param({"aud": ["tollgate", 1]}, "audience", id="audience not a string"),
        pytest.param({"aud": {"tollgate": 1}}, "audience", id="audience an object"),
        pytest.param({"aud": "tollgate,x"}, "audience", id="audience not exactly"),
    ],
)
def test_times_and_audience(changes, why):
    claims = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    if why is None:
        assert verify(signed(claims)) == claims
    else:
        assert reason(signed(claims)) == why


def test_numbers_are_doubles_as_in_the_api_server():
    assert type(verify(signed({**GOOD, "id": 5}))["id"]) is float


def test_the_longest_lifetime_can_be_set():
    assert reason(signed(GOOD), max_lifetime=3599) == "lifetime"


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param({"kty": "oct", "k": "AAAA"}, id="symmetric"),
        pytest.param(jwk(WEAK_KEY, "w"), id="1024 bits"),
        pytest.param(jwk(RSA_KEY, "e", use="enc"), id="for encryption"),
        pytest.param(jwk(RSA_KEY, "o", key_ops=["sign"]), id="not to verify"),
        pytest.param(jwk(RSA_KEY, "h", alg="HS256"), id="for HMAC"),
        pytest.param(jwk(RSA_KEY, "m", alg="ES256"), id="for another type"),
        pytest.param(jwk(RSA_KEY, 5), id="kid a number"),
        pytest.param({"kty": "RSA", "n": "AQAB"}, id="half a key"),
        pytest.param({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, id="not on the curve"),
        pytest.param("RSA", id="no object"),
    ],
)
def test_keys_that_are_left_out(entry):
    assert jwks(entry, jwk(EC_KEYS["ES256"], "good")).keys[0].kid == "good"


def test_a_published_private_key_is_read_as_public():
    private = {**jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True), "kid": "rsa"}
    del private["key_ops"]  # sign
    assert isinstance(jwks(private).keys[0].public, rsa.RSAPublicKey)


def test_a_key_states_its_one_algorithm():
    keys = jwks(jwk(RSA_KEY, "rsa", alg="RS512"))
    assert reason(signed(GOOD), keys=keys) == "key-unknown"
    assert verify(signed(GOOD, algorithm="RS512"), keys=keys) == GOOD


@pytest.mark.parametrize(
    "document", [b"[]", b"{}", b'{"keys": {}}', b"<html>", json.dumps({"keys": [1] * 65}).encode()]
)
def test_what_is_no_key_set(document):
    with pytest.raises(TokenError):
        tokens.key_set(document)


def test_at_most_a_few_keys_are_tried():
    keys = jwks(*(jwk(OTHER_KEY, "rsa") for _ in range(9)), jwk(RSA_KEY, "rsa"))
    assert reason(signed(GOOD), keys=keys) == "signature"


def test_neither_key_nor_token_is_in_a_repr():
    assert "RSAPublicKey" not in repr(KEYS)
    assert "alice" not in repr(tokens.read(signed(GOOD)))


def test_credential_id():
    token = signed(GOOD)
    assert tokens.credential_id(token, {"jti": "x"}) == "x"
    by_hash = tokens.credential_id(token, {})
    assert by_hash.startswith("sha256:")
    # Another signature of the same content (ECDSA, PSS: any number of them) is the same credential.
    assert tokens.credential_id(token.rpartition(".")[0] + ".AAAA", {"jti": ""}) == by_hash


@given(st.text(alphabet="abcXYZ019-_.=", max_size=60) | st.text(max_size=30))
def test_any_text_is_refused_with_a_reason(text):
    with pytest.raises(TokenError):
        verify(text)


@given(st.integers(0, 2000), st.characters(codec="ascii"))
def test_any_changed_character_is_refused(place, character):
    token = TOKEN[: place % len(TOKEN)] + character + TOKEN[place % len(TOKEN) + 1 :]
    if token != TOKEN:
        with pytest.raises(TokenError):
            verify(token)


TOKEN = signed(GOOD, EC_KEYS["ES256"], "ES256", kid="ES256")


def test_cache_forgets_what_is_over():
    cache = tokens.Cache(2)
    cache.put(b"a", "A", NOW + 10, NOW)
    assert cache.get(b"a", NOW + 9.9) == "A"
    assert cache.get(b"a", NOW + 10) is None
    assert len(cache) == 0


def test_cache_forgets_when_the_clock_was_put_back():
    cache = tokens.Cache(2)
    cache.put(b"a", "A", NOW + 10, NOW)
    assert cache.get(b"a", NOW - 0.1) is None
    assert cache.get(b"a", NOW + 1) is None  # for good


def test_cache_drops_the_least_recently_used():
    cache = tokens.Cache(2)
    for key in (b"a", b"b"):
        cache.put(key, key, NOW + 10, NOW)
    cache.get(b"a", NOW)
    cache.put(b"c", b"c", NOW + 10, NOW)
    assert [cache.get(key, NOW) for key in (b"a", b"b", b"c")] == [b"a", None, b"c"]
    cache.clear()
    assert cache.get(b"a", NOW) is None


@pytest.mark.parametrize("token", ["", "opaque", "a.b.c", "x" * 20_000])
def test_times_of_what_is_no_token(token):
    assert tokens.unverified_times(token) == (0.0, 0.0)
