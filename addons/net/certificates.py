"""
The gateway's own CA and serving certificate, made once in the state folder.

The CA's key signs nothing but this certificate. Clients get the CA in their kubeconfig
(`./run.sh kubeconfig`); a certificate of the organisation's own is better: --tls-cert.
"""

import datetime
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from addons.net import files

CA_DAYS = 3650  # ten years; clients embed it
LEAF_DAYS = 397  # what browsers and Go's verifiers of public certificates accept at most
RENEW_DAYS = 30  # made anew at a start with less than this left

Key = ec.EllipticCurvePrivateKey


class CertificateError(Exception):
    """The certificate or key cannot be used; one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What mitmproxy serves, and what clients trust it by."""

    combined: Path  # key and chain in one file, as mitmproxy wants it
    ca_file: Path | None  # None: the operator's own certificate, whose CA is not ours to know


def _pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _make_ca(folder: Path, now: datetime.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Tollgate CA of " + socket.gethostname()[:40])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(False, False, False, False, False, True, True, False, False),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    files.write_private(folder / "ca.key", _pem(key))
    files.write_private(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))


def _names(hosts: frozenset[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in sorted(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _make_leaf(folder: Path, hosts: frozenset[str], now: datetime.datetime) -> None:
    ca_key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    ca = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{folder / 'ca.key'} is not a key of ours; move the folder away to have it made anew")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name("tollgate"))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=LEAF_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(_names(hosts)), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key()), critical=False)  # type: ignore[arg-type]  # the CA's key is ours, an EC one
        .sign(ca_key, hashes.SHA256())
    )
    chain = certificate.public_bytes(serialization.Encoding.PEM) + ca.public_bytes(serialization.Encoding.PEM)
    files.write_private(folder / "tls.pem", _pem(key) + chain)


def _current(folder: Path, hosts: frozenset[str], now: datetime.datetime) -> bool:
    """Whether the serving certificate names all hosts and lasts long enough."""
    path = folder / "tls.pem"
    if not path.is_file():
        return False
    leaf = x509.load_pem_x509_certificates(path.read_bytes())[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    has = {str(n.value) for n in names}
    return hosts <= has and leaf.not_valid_after_utc - now > datetime.timedelta(days=RENEW_DAYS)


def ensure(state: Path, listen_host: str, now: datetime.datetime) -> Certificate:
    """The certificate in the state folder, made or renewed when needed. Raises CertificateError, OSError."""
    folder = files.private_folder(state / "tls")
    hosts = {"127.0.0.1", "::1", "localhost", socket.gethostname()}
    if listen_host not in ("", "0.0.0.0", "::"):  # noqa: S104 (compared, not bound)
        hosts.add(listen_host)
    try:
        if not (folder / "ca.crt").is_file():
            _make_ca(folder, now)
        if not _current(folder, frozenset(hosts), now):
            _make_leaf(folder, frozenset(hosts), now)
    except ValueError as e:
        raise CertificateError(f"{folder}: a file there cannot be read ({e}); move the folder away to renew it") from e
    return Certificate(folder / "tls.pem", folder / "ca.crt")


def own(state: Path, cert_file: Path, key_file: Path, now: datetime.datetime) -> Certificate:
    """The operator's certificate and key, checked and put together. Raises CertificateError, OSError."""
    try:
        leaf = x509.load_pem_x509_certificates(cert_file.read_bytes())[0]
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    except (ValueError, TypeError, IndexError) as e:
        raise CertificateError(f"--tls-cert, --tls-key: PEM files without a passphrase are needed: {e}") from e
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*spki) != key.public_key().public_bytes(*spki):
        raise CertificateError(f"--tls-key: {key_file} is not the key of {cert_file}")
    if leaf.not_valid_after_utc <= now:
        raise CertificateError(f"--tls-cert: {cert_file} expired on {leaf.not_valid_after_utc:%Y-%m-%d}; renew it")
    return Certificate(files.combine(state, str(key_file), str(cert_file)), None)
