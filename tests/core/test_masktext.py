import base64
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addons.core import masktags, masktext
from addons.core.maskknown import Known
from addons.core.masktags import Place
from addons.core.masktext import TextMasker
from tests import canaries

KEY = bytes(range(32))
PLACE = Place("pods/log", "shop", "web-1")
VALUE = b"Xq9zKw-Pl4mNb77"


def masker(known=None, nonce=b"n", *, same_length=False):
    return TextMasker(KEY, PLACE, nonce, known, same_length=same_length)


def known(*values):
    memory = Known(KEY)
    for value in values:
        memory.learn(value)
    return memory


def run(text, pieces=None, memory=None):
    one = masker(memory)
    return b"".join([*map(one.feed, pieces or [text]), one.finish()])


def split(text, size):
    return [text[at : at + size] for at in range(0, len(text), size)]


def test_a_line_passes_as_soon_as_it_is_complete():
    one = masker()
    assert one.feed(b"first\nsec") == b"first\n"
    assert one.pending == 3
    assert one.feed(b"ond\n") == b"second\n"
    assert one.finish() == b""


def test_what_is_left_comes_at_the_end():
    one = masker()
    assert one.feed(b"DB_PASSWORD=hun") == b""
    assert one.finish().startswith(b"DB_PASSWORD=**masked:")


def test_a_stream_without_secrets_is_unchanged():
    text = bytes(range(256)) * 40 + "ünïcödé\r\n".encode() + b"no end"
    assert run(text, split(text, 7)) == text


LINES = {
    "a name": b"x password=Xq9zKwPl4mNb7 y",
    "a token": b"got " + canaries.JWT.encode() + b" ok",
    "a service's": b"x ghp_a1B2c3D4e5F6a7B8c9D0e1F2a3B4c5D6e7F8 y",
    "a URL": b"dial postgres://u:Xq9zKwPl4mNb7@db/x",
}


@pytest.mark.parametrize("line", [pytest.param(line, id=name) for name, line in LINES.items()])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 11])
def test_a_secret_in_two_chunks(line, size):
    text = b"before\n" + line + b"\nafter\n"
    assert run(text, split(text, size)) == run(text)
    assert b"Xq9z" not in run(text)
    assert b"a1B2" not in run(text)
    assert run(text).count(b"**masked:") == 1


def test_a_known_value_in_two_chunks():
    text = b"login with " + VALUE + b" and " + base64.b64encode(VALUE) + b" done\n"
    out = run(text, split(text, 4), known(VALUE))
    assert out.count(b"**masked:") == 2
    assert VALUE not in out


def test_a_private_key_over_many_lines_and_chunks():
    key = canaries.PRIVATE_KEY.encode()
    for size in (1, 10, 33, 500):
        out = run(b"", split(b"a\n" + key + b"b\n", size))
        assert out.startswith(b"a\n")
        assert out.endswith(b"b\n")
        assert not canaries.seen_in(out, [key])


def test_a_key_that_never_ends_does_not_blind_for_ever():
    one = masker()
    one.feed(b"-----BEGIN RSA PRIVATE KEY-----\n")
    hidden = one.feed(b"MIIE\n" * 100)
    assert b"MIIE" not in hidden
    one.feed(b"MIIE\n" * (masktext.MAX_KEY // 5))
    assert one.feed(b"hello\n") == b"hello\n"


def test_memory_is_bounded_on_a_line_without_end():
    one, fed, got = masker(), 0, 0
    chunk = b"word " * 2000
    for _ in range(200):
        got += len(one.feed(chunk))
        fed += len(chunk)
        assert one.pending <= masktext.WINDOW + len(chunk)
        assert len(one._line) <= masktext.WINDOW + masktext.CONTEXT + len(chunk)
    assert got + len(one.finish()) == fed


@pytest.mark.parametrize("before", [0, 11_900, 12_270, 12_280, 12_288, 16_380])
def test_a_secret_in_a_line_longer_than_the_window(before):
    text = b"w " * (before // 2) + b"password=Xq9zKwPl4mNb7 " + b"w " * 20_000
    out = run(text, split(text, 1000))
    assert b"Xq9z" not in out
    assert b"mNb7" not in out
    assert out.count(b"w ") > 19_000


def test_a_secret_longer_than_the_window():
    text = b'x {"token": "' + b"Xq9zKwPl4mNb7" * 5000 + b'", "a": 1} y\nnext\n'
    out = run(text, split(text, 900))
    assert b"Xq9z" not in out
    assert out.endswith(b"next\n")


class TestIdle:
    def test_a_prompt_passes(self):
        one = masker()
        one.feed(b"root@web-1:/# ")
        assert one.idle() == b"root@web-1:/# "
        assert one.idle() == b""

    def test_letters_that_are_typed_pass(self):
        one, out = masker(), b""
        for letter in b"cat /etc/configuration":
            one.feed(bytes([letter]))
            out += one.idle()
        assert out == b"cat /etc/configuration"

    def test_the_beginning_of_a_secret_does_not(self):
        one = masker(known(VALUE))
        one.feed(b"got " + VALUE[:12])
        assert one.idle() == b"got "
        assert one.feed(VALUE[12:] + b" ok\n") == one.feed(b"") + b"%b ok\n" % one_tag(VALUE)

    def test_a_value_after_a_name_that_has_passed_is_masked(self):
        one = masker()
        one.feed(b"Password: ")
        assert one.idle() == b"Password: "
        out = one.feed(b"swordfish\n")
        assert b"swordfish" not in out
        assert out.endswith(b"\n")

    def test_a_value_letter_by_letter(self):
        one, out = masker(), b""
        for letter in b"password=swordfish\n":
            out += one.feed(bytes([letter]))
            out += one.idle()
        assert out.startswith(b"password=**masked:")
        assert out.endswith(b"**\n")
        assert b"dfish" not in out
        assert len(out) == len(b"password=\n") + 19  # what comes after its beginning is left out

    def test_a_value_of_several_words_in_pieces(self):
        one = masker()
        out = one.feed(b"DB_PASSWORD=correct ") + one.idle() + one.feed(b"horse staple\n")
        assert b"horse" not in out
        assert out.count(b"**masked:") == 1


def test_release_passes_on_all_of_it():
    one = masker()
    one.feed(b"root@web-1:/#")
    assert one.idle() == b""
    assert one.release() == b"root@web-1:/#"
    assert one.release() == b""
    one.feed(b" password=Xq9z")
    assert b"Xq9z" not in one.release()
    assert b"Kw" not in one.feed(b"Kw\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param(b"it is %b" % VALUE[:9], b"it is ", id="half of a word"),
        pytest.param(VALUE[:9], b"", id="nothing but half of one"),
        pytest.param(b"first\nsecond wo", b"first\nsecond ", id="of a later line"),
        pytest.param(b'{"a":"%b' % VALUE[:9], b'{"a":"', id="behind a quote"),
        pytest.param(b"a=%b" % VALUE[:9], b"", id="with its name"),
        pytest.param(b"whole words \n", b"whole words \n", id="a whole line"),
        pytest.param(b"a blank ", b"a blank ", id="a blank at the end"),
    ],
)
@pytest.mark.parametrize("pauses", [False, True])
def test_a_text_cut_short_keeps_its_last_word_back(text, shown, pauses):
    """Else one letter more each time tells a value that is known only as a whole."""
    for size in (1, 4, 1000):
        one = TextMasker(KEY, PLACE, b"n", known(VALUE), cut_short=True)
        out = b""
        for piece in split(text, size):
            out += one.feed(piece) + (one.idle() if pauses else b"")
        assert out + one.finish() == shown


def test_nul_ends_a_secret():
    """/proc/1/environ"""
    out = masker().feed(b"PATH=/bin\0DB_PASSWORD=swordfish\0HOME=/root\0TOKEN=Xq9z\0LANG=C\n")
    assert out.startswith(b"PATH=/bin\0DB_PASSWORD=**masked:")
    assert b"**\0HOME=/root\0TOKEN=**masked:" in out
    assert out.endswith(b"**\0LANG=C\n")


def test_nul_ends_a_known_value():
    out = masker(known(VALUE)).feed(b"a\0" + VALUE + b"\0b\n")
    assert out == b"a\0%b\0b\n" % one_tag(VALUE)


class TestSameLength:
    @pytest.mark.parametrize("line", [pytest.param(line, id=name) for name, line in LINES.items()])
    @pytest.mark.parametrize("size", [1, 3, 11, 500])
    def test_a_line(self, line, size):
        text = b"before\n" + line + b"\nafter\n"
        one = masker(same_length=True)
        out = b"".join([*map(one.feed, split(text, size)), one.finish()])
        assert len(out) == len(text)
        assert b"Xq9z" not in out
        assert b"a1B2" not in out
        assert out.startswith(b"before\n")
        assert out.endswith(b"\nafter\n")

    def test_a_short_secret(self):
        assert masker(same_length=True).feed(b"password=ab\npassword=abcdefghijk\n") == (
            b"password=**\npassword=**masked:%b\n" % masker(same_length=True).feed(b"password=abcdefghijk\n")[-3:-1]
        )

    @pytest.mark.parametrize("size", [1, 7, 512, 10240])
    def test_an_archive_stays_one(self, size):
        files = {
            "env": b"LOG=info\nDB_PASSWORD=swordfish horse",  # no newline at its end: padding follows
            "key": canaries.PRIVATE_KEY.encode()[:-30],  # torn
            "token": b"  " + canaries.JWT.encode(),
            "binary": bytes(range(256)) * 40,
            "known": VALUE,
        }
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        one = masker(known(VALUE), same_length=True)
        out = b"".join([*map(one.feed, split(packed.getvalue(), size)), one.finish()])
        assert len(out) == len(packed.getvalue())
        assert not [s for s in (b"swordfish", b"horse", b"MIIEow", b"c2lnbmF0", VALUE) if s in out]
        with tarfile.open(fileobj=io.BytesIO(out)) as archive:
            found = {info.name: archive.extractfile(info).read() for info in archive}
        assert {name: len(content) for name, content in found.items()} == {n: len(c) for n, c in files.items()}
        assert found["binary"] == files["binary"]
        assert found["env"].startswith(b"LOG=info\nDB_PASSWORD=**masked:")

    @settings(deadline=None)
    @given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(list(LINES.values()))), max_size=9), st.randoms())
    def test_whatever_comes(self, pieces, generator):
        one, out, text = masker(same_length=True), b"", b"".join(pieces)
        while len(out) + one.pending < len(text):
            at = len(out) + one.pending
            out += one.feed(text[at : at + generator.randint(1, 60)])
            if generator.random() < 0.3:
                out += one.idle()
        assert len(out + one.finish()) == len(text)


def one_tag(value):
    return masktags.tag(KEY, PLACE, f"text {b'n'.hex()}", value.decode()).encode()


def test_tags_say_nothing_beyond_their_stream():
    text = b"password=Xq9zKwPl4mNb7\n"
    assert masker(nonce=b"a").feed(text) != masker(nonce=b"b").feed(text)
    assert masker(nonce=b"a").feed(text) == masker(nonce=b"a").feed(text)


def test_count():
    one = masker()
    one.feed(b"password=a\ntoken=b\nx\n")
    assert one.count == 2


FILLER = st.text("abc /:.,-[]\n", max_size=40).map(str.encode)
SECRETS = {
    VALUE: b" " + VALUE + b" ",
    b"swordfish": b" password=swordfish ",
    canaries.JWT.encode(): b" " + canaries.JWT.encode() + b" ",
    b"a1B2c3D4e5F6a7B8c9D0e1F2a3B4c5D6e7F8": b" ghp_a1B2c3D4e5F6a7B8c9D0e1F2a3B4c5D6e7F8 ",
    b"MIIEowIBAAKCAQEAcanary0001XqZ7": b"\n" + canaries.PRIVATE_KEY.encode(),
}


@settings(deadline=None)
@given(st.lists(st.one_of(FILLER, st.sampled_from(list(SECRETS.values()))), max_size=12), st.randoms(), st.booleans())
def test_no_way_of_cutting_shows_a_secret(pieces, generator, pauses):
    text = b"".join(pieces)
    one, out, at = masker(known(VALUE)), b"", 0
    while at < len(text):
        size = generator.randint(1, 60)
        out += one.feed(text[at : at + size])
        if pauses and one.pending and text[at : at + size].endswith((b" ", b"\n")):
            out += one.idle()
        at += size
    out += one.finish()
    assert not [secret for secret in SECRETS if secret in out]
    assert len(out) <= len(text) + 20 * (one.count + 1)


@given(st.lists(FILLER, max_size=12), st.randoms())
def test_text_without_secrets_is_unchanged_however_it_is_cut(pieces, generator):
    one, out = masker(known(VALUE)), b""
    for piece in pieces:
        out += one.feed(piece)
        if generator.random() < 0.5:
            out += one.idle()
    assert out + one.finish() == b"".join(pieces)
