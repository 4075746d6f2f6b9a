import datetime
import stat

import pytest
from cryptography import x509

from addons.net import certificates

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def leaf(certificate):
    return x509.load_pem_x509_certificates(certificate.combined.read_bytes())[0]


def test_made_once(tmp_path):
    first = certificates.ensure(tmp_path, "127.0.0.1", NOW)
    before = first.combined.read_bytes(), first.ca_file.read_bytes()
    again = certificates.ensure(tmp_path, "127.0.0.1", NOW)
    assert (again.combined.read_bytes(), again.ca_file.read_bytes()) == before


def test_signed_by_its_ca_and_private(tmp_path):
    made = certificates.ensure(tmp_path, "10.1.2.3", NOW)
    ca = x509.load_pem_x509_certificate(made.ca_file.read_bytes())
    leaf(made).verify_directly_issued_by(ca)
    names = leaf(made).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"10.1.2.3", "127.0.0.1"} <= {str(n) for n in names.get_values_for_type(x509.IPAddress)}
    for path in (tmp_path / "tls").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("host", "later"),
    [
        pytest.param("10.9.9.9", 0, id="another address"),
        pytest.param("127.0.0.1", certificates.LEAF_DAYS - 10, id="soon expired"),
    ],
)
def test_made_anew_under_the_same_ca(tmp_path, host, later):
    old = certificates.ensure(tmp_path, "127.0.0.1", NOW)
    before, ca = leaf(old), old.ca_file.read_bytes()
    new = certificates.ensure(tmp_path, host, NOW + datetime.timedelta(days=later))
    assert leaf(new) != before
    assert new.ca_file.read_bytes() == ca  # clients have it in their kubeconfigs


def test_own_certificate(tmp_path):
    made = certificates.ensure(tmp_path / "made", "127.0.0.1", NOW)
    own = certificates.own(tmp_path, made.combined, made.combined, NOW)
    assert leaf(own) == leaf(made)
    assert own.ca_file is None


def test_own_certificate_with_another_key(tmp_path):
    one = certificates.ensure(tmp_path / "one", "127.0.0.1", NOW)
    two = certificates.ensure(tmp_path / "two", "127.0.0.1", NOW)
    with pytest.raises(certificates.CertificateError, match="is not the key of"):
        certificates.own(tmp_path, one.combined, two.combined, NOW)


def test_own_certificate_expired(tmp_path):
    made = certificates.ensure(tmp_path / "made", "127.0.0.1", NOW)
    with pytest.raises(certificates.CertificateError, match="expired on"):
        certificates.own(tmp_path, made.combined, made.combined, NOW + datetime.timedelta(days=1000))


def test_a_broken_file_is_one_sentence(tmp_path):
    certificates.ensure(tmp_path, "127.0.0.1", NOW)
    (tmp_path / "tls" / "tls.pem").write_text("broken")
    with pytest.raises(certificates.CertificateError, match="move the folder away"):
        certificates.ensure(tmp_path, "127.0.0.1", NOW)
