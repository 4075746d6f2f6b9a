import re
import string
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import maskdetect
from tests import canaries

SECRET = "Xq9zKwPl4mNb"


def redacted(text):
    return maskdetect.redact(text, lambda _: "***")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Names and values
        pytest.param(f"DB_PASSWORD={SECRET}\nA=b", "DB_PASSWORD=***\nA=b", id="env output"),
        pytest.param("DB_PASSWORD=correct horse staple\nA=b", "DB_PASSWORD=***\nA=b", id="env output with blanks"),
        pytest.param("export TOKEN=a1 b2\nx", "export TOKEN=***\nx", id="export"),
        pytest.param("x password=abc,def y", "x password=*** y", id="punctuation is part of it"),
        pytest.param("  DB_PASSWORD:     abc def\n  X:  y", "  DB_PASSWORD:     ***\n  X:  y", id="kubectl describe"),
        pytest.param('x {"password": "ab\\"cd", "a": 1}', 'x {"password": "***", "a": 1}', id="JSON, a quote in it"),
        pytest.param(
            '{\\"password\\":\\"abcd\\",\\"a\\":1}', '{\\"password\\":\\"***\\",\\"a\\":1}', id="JSON in JSON"
        ),
        pytest.param('log token="abc', 'log token="***', id="an open quote"),
        pytest.param("- name: DB_PASSWORD\n  value: abc\n", "- name: DB_PASSWORD\n  value: ***\n", id="YAML env"),
        pytest.param('{"name":"DB_PASSWORD","value":"abc"}', '{"name":"DB_PASSWORD","value":"***"}', id="JSON env"),
        pytest.param("password: |\n  one\n  two\nnext: 1", "password: |\n***\nnext: 1", id="a YAML block"),
        pytest.param("run --db-password abc --v 2", "run --db-password *** --v 2", id="a flag"),
        pytest.param("<db.password>abc</db.password>", "<db.password>***</db.password>", id="XML"),
        pytest.param("GET /x?access_token=abc HTTP/1.1", "GET /x?access_token=*** HTTP/1.1", id="a query"),
        pytest.param("client-key-data: abcd", "client-key-data: ***", id="kubeconfig"),
        pytest.param(f"x key={SECRET} y", "x key=*** y", id="a weak name and a random value"),
        pytest.param("x key=shop/web y", "x key=shop/web y", id="a weak name and a word"),
        # Headers, URLs, tokens
        pytest.param("x Authorization: Bearer abc\ny", "x Authorization: ***\ny", id="a header"),
        pytest.param(f"x sent bearer {SECRET}", "x sent bearer ***", id="a bearer token without its header"),
        pytest.param("postgres://u:abc@db:5432/x", "postgres://u:***@db:5432/x", id="a URL"),
        pytest.param("amqp://u:a/b@c@db/x", "amqp://u:***@db/x", id="a URL, unescaped"),
        pytest.param(f"got {canaries.JWT} ok", "got *** ok", id="a JWT"),
        pytest.param(
            "kubeadm join --token abcdef.0123456789abcdef", "kubeadm join --token ***", id="a bootstrap token"
        ),
        pytest.param("id abcdef.0123456789abcdef", "id ***", id="a bootstrap token alone"),
        pytest.param("id AKIAIOSFODNN7QXRMPLE x", "id *** x", id="an AWS id alone"),
        # Private keys
        pytest.param(f"a\n{canaries.PRIVATE_KEY}b", "a\n***\nb", id="a private key"),
        pytest.param("a -----BEGIN OPENSSH PRIVATE KEY-----\nabc", "a ***", id="a torn private key"),
        pytest.param("-----BEGIN CERTIFICATE-----\nabc\n", "-----BEGIN CERTIFICATE-----\nabc\n", id="a certificate"),
        pytest.param("x LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQpNSUlF y", "x *** y", id="a private key in base64"),
        pytest.param("PuTTY-User-Key-File-3: ssh-rsa\nabc", "***", id="a PuTTY key"),
        # The library's
        pytest.param("x ghp_a1B2c3D4e5F6a7B8c9D0e1F2a3B4c5D6e7F8 y", "x *** y", id="GitHub"),
        pytest.param(
            "ok ghp_a1B2c3D4e5F6a7B8c9D0e1F2a3B4c5D6e7F8 # gitleaks:allow kingfisher:ignore",
            "ok *** # gitleaks:allow kingfisher:ignore",
            id="a comment excuses nothing",
        ),
    ],
)
def test_secrets_in_text(text, expected):
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "secretName: db-credentials",
        "SECRET_NAME=db TOKEN_TTL=3600 PASSWORD_FILE=/run/secrets/pw",
        "token: invalid",
        "password=$(DB_PASSWORD) ${TOKEN} {{ .Values.password }}",
        "topologyKey: kubernetes.io/hostname",
        "image: registry.example/web@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "pod=web-7d9c8b6f5d-x2x4z uid=5c2e9b0e-6d0c-4a6d-9a43-1b1d7a0f8a52",
        "http://db.shop:8080/a@b",
        "serviceAccountToken:\n  path: token",
        "passed 12 of 12, bypassing",
        "password: **masked:1a2b3c4d**",
        "postgres://u:**masked:1a2b3c4d**@db/x",
        "max_tokens: 4096",
        "",
    ],
)
def test_no_secrets(text):
    assert redacted(text) is text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            (name, True)
            for name in ("DB_PASSWORD", "dbPassword", "mysqlpassword", "PGPASS_PASS", "apiKey", "API_KEY_2")
        ),
        *((name, True) for name in ("x-auth-token", "clientSecret", "TOKEN", "tls.key", "GITHUB_TOKEN_OLD", "pwd")),
        *((name, True) for name in ("SECRET_KEY_BASE", "VAULT_SECRET_ID", "client-key-data", "--db-password")),
        *((name, False) for name in ("SECRET_NAME", "TOKEN_TTL", "PASSWORD_FILE", "secretKeyRef", "KEY", "LOG_LEVEL")),
        *(
            (name, False)
            for name in ("tokenReview", "passwordPolicy", "PRIMARY_KEY", "compass", "monkey", "", "_", "42")
        ),
    ],
)
def test_names(name, expected):
    assert maskdetect.is_secret_name(name) is expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        pytest.param("PASSWORD", "x", True, id="whatever it is"),
        pytest.param("PASSWORD", "0", True, id="a digit"),
        pytest.param("PASSWORD", "", False, id="empty"),
        pytest.param("PASSWORD", "true", False, id="a switch"),
        pytest.param("PASSWORD", "$(OTHER)", False, id="a reference"),
        pytest.param("PASSWORD", "$(A)b", True, id="more than a reference"),
        pytest.param("PASSWORD", "**masked:1a2b3c4d**", False, id="masked"),
        pytest.param("KEY", "primary", False, id="a weak name and a word"),
        pytest.param("KEY", SECRET, True, id="a weak name and a random value"),
        pytest.param("LEVEL", SECRET, False, id="no such name"),
    ],
)
def test_values(name, value, expected):
    assert maskdetect.is_secret(name, value) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, True) for text in ("Xq9zKwPl4mNb", "c0ffee5e4d2b9a17", "Pa55-w0rd!Xyz", "AbCdEfGhIjKlMn")),
        *((text, False) for text in ("kube-system", "db.shop.svc.cluster.local", "correct-horse-battery", "Xq9zKw")),
        *((text, False) for text in ("000000000000000", "/etc/kubernetes/manifests", "2026-11-25T03:00:00Z")),
    ],
)
def test_random(text, expected):
    assert maskdetect.is_random(text) is expected


TEXTS = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.sampled_from(
            [
                *(
                    "password=",
                    "x",
                    "token: ",
                    '"',
                    "'",
                    "\\",
                    "\n",
                    "\x1e",
                    "://u:p@h",
                    "-----BEGIN RSA PRIVATE KEY-----",
                ),
                *("eyJ", canaries.JWT, "value:", "- name: DB_PASSWORD\n", "|\n", "  ", "İ", "**masked:1a2b3c4d**"),
            ]
        ),
    ),
    max_size=12,
).map("".join)


@given(TEXTS)
def test_spans_are_sorted_apart_and_inside(text):
    found = maskdetect.spans(text)
    ends = [0]
    for start, end in found:
        assert ends[-1] <= start < end <= len(text)
        ends.append(end)


@given(TEXTS)
def test_what_is_redacted_stays_so(text):
    once = maskdetect.redact(text, lambda _: "**masked:1a2b3c4d**")
    twice = maskdetect.redact(once, lambda _: "**masked:1a2b3c4d**")
    assert maskdetect.redact(twice, lambda _: "**masked:1a2b3c4d**") == twice


@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_many_at_once(texts):
    together = maskdetect.spans_of(texts)
    assert len(together) == len(texts)
    for text, found in zip(texts, together, strict=True):
        if "\x1e" not in "".join(texts):
            assert found == maskdetect.spans(text)


@pytest.mark.parametrize(
    ("sizes", "together"),
    [
        pytest.param([], [], id="none"),
        pytest.param([0, 0], [2], id="empty ones"),
        pytest.param([4, 6, 1], [2, 1], id="as many as go together"),
        pytest.param([1, 50, 1, 1], [1, 1, 2], id="a longer one alone"),
    ],
)
def test_many_go_together_up_to_a_length(sizes, together, monkeypatch):
    """One search of 50 MB lets no other thread run meanwhile."""
    monkeypatch.setattr(maskdetect, "TOGETHER", 10)
    texts, looked_at, look = ["x" * size for size in sizes], [], maskdetect.spans
    monkeypatch.setattr(maskdetect, "spans", lambda text: looked_at.append(text) or look(text))
    assert maskdetect.spans_of(texts) == [[] for _ in sizes]
    assert [text.count(maskdetect.SEPARATOR) + 1 for text in looked_at] == together


def test_what_is_found_stays_with_its_text(monkeypatch):
    texts = ["x", f"password={SECRET}", "", f"token={SECRET}", "y" * 30]
    expected = [maskdetect.spans(text) for text in texts]
    for length in range(1, 80):
        monkeypatch.setattr(maskdetect, "TOGETHER", length)
        assert maskdetect.spans_of(texts) == expected


@given(st.from_regex(r"([a-z0-9]{0,8}[. A-]){0,3}[a-z0-9]{4,7}\.[a-z0-9]{14,18}[. A]?([a-z0-9]{1,17}[. ]){0,3}"))
def test_bootstrap_tokens_are_found_from_their_dot_on(text):
    """The faster pattern finds what the plain one does."""
    plain = re.compile(r"(?<![a-z0-9.])[a-z0-9]{6}\.(?=[a-z]*[0-9])[a-z0-9]{16}(?![a-z0-9.])")
    found = [(m.start() - 6, m.end()) for m in maskdetect._BOOTSTRAP.finditer(text)]
    assert found == [m.span() for m in plain.finditer(text)]


@pytest.mark.parametrize(
    "piece",
    ["password=", 'token="', "a_token:\\", "eyJ", "://u:", "-----BEGIN ", "key ", "passwordpassword", "abcdef.", "."],
)
def test_hostile_text_takes_no_time(piece):
    text = piece * (300_000 // len(piece))
    before = time.perf_counter()
    maskdetect.spans(text)
    assert time.perf_counter() - before < 5


def test_nothing_printable_is_too_odd():
    assert maskdetect.spans(string.printable) is not None


def test_the_library_does_not_speak_to_anyone():
    """It can try credentials out; we only ever use these two of its names."""
    source = Path(maskdetect.__file__).read_text()
    assert set(re.findall(r"kingfisher_sdk\.(\w+)", source)) == {"Scanner", "Rules"}


def test_patterns_from_a_folder(tmp_path):
    maskdetect.warm(str(tmp_path))
    try:
        assert list(tmp_path.iterdir())
        assert redacted("x ghp_a1B2c3D4e5F6a7B8c9D0e1F2a3B4c5D6e7F8 y") == "x *** y"
    finally:
        maskdetect.warm(None)
