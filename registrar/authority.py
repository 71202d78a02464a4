"""The private certificate authority: one Ed25519 key, the root of trust of a federation.

It signs X.509 certificates whose common name is the holder's name, and their revocation list.
Certificates of the server live as long as the authority, a device's for a year, a claim's until the
claim expires. A Raspberry Pi has no clock of its own and may wake up in the past: what a device
has to believe is valid from long ago.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from fedtide.errors import ConfigError, StateError
from fedtide.files import make_folder, write_atomically
from fedtide.identity import CERTIFICATE_NAME, KEY_NAME, read_certificate
from fedtide.keys import load_key, new_key, save_key

VALID_FROM = datetime(2020, 1, 1, tzinfo=UTC)
"""Of the authority and the server: no system that runs this starts its clock before it."""
AUTHORITY_YEARS = 25
DEVICE_LIFE = timedelta(days=365)
"""Of a device's certificate; the device renews it by itself at two thirds of this."""
CLOCK_SLACK = timedelta(days=1)
"""A claim's certificate is valid from this long before now."""


class Revoked(Struct, frozen=True):
    """One entry of the revocation list."""

    serial: int
    at_ms: int


class Authority:
    """The certificate authority of one federation."""

    def __init__(self, key: Ed25519PrivateKey, certificate: x509.Certificate) -> None:
        self.key = key
        """Signs certificates, key sets and the registrar's answers."""
        self.certificate = certificate

    @classmethod
    def make(cls, folder: Path, federation: str, now: datetime) -> Authority:
        """A new authority in `folder` (`key.pem`, `certificate.pem`), readable by its owner only.

        Raises:
            StateError: there is one already, or the disk refuses.
        """
        key = new_key()
        name = _name(f"fedtide {federation}"[:64])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(name, name, key.public_key(), VALID_FROM, _years_after(now, AUTHORITY_YEARS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, None)
        )
        make_folder(folder)
        if cls.exists(folder):
            raise StateError(f"there is a certificate authority in {str(folder)!r} already")
        # The key last: it is what says that there is an authority.
        write_atomically(folder / CERTIFICATE_NAME, _pem(certificate))
        save_key(folder / KEY_NAME, key)
        return cls(key, certificate)

    @classmethod
    def exists(cls, folder: Path) -> bool:
        """Whether `folder` holds an authority."""
        return (folder / KEY_NAME).exists()

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """The authority in `folder`.

        Raises:
            ConfigError: there is none, it may not be read, others can read its key, or it is
                damaged.
        """
        if not cls.exists(folder):
            raise ConfigError(
                f"there is no certificate authority in {str(folder)!r}",
                hint="correct `state_dir` in registrar.toml, the folder above; if it is the right "
                "one, restore it from a backup",
            )
        key = load_key(folder / KEY_NAME)
        certificate = read_certificate(folder / CERTIFICATE_NAME)
        if certificate.public_key() != key.public_key():
            raise ConfigError(
                f"key and certificate of the authority in {str(folder)!r} do not belong together",
                hint="restore the folder from a backup",
            )
        return cls(key, certificate)

    @property
    def certificate_pem(self) -> bytes:
        """What everybody trusts: `ca.pem`."""
        return _pem(self.certificate)

    def sign_server(self, name: str, key: Ed25519PublicKey, hosts: Iterable[str]) -> bytes:
        """A TLS server's certificate for host names and addresses, as PEM."""
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = self._leaf(name, key, VALID_FROM, self._end, ExtendedKeyUsageOID.SERVER_AUTH)
        return _pem(builder.add_extension(names, critical=False).sign(self.key, None))

    def sign_role(self, name: str, key: Ed25519PublicKey) -> bytes:
        """The certificate of one of the server's own parts, as PEM; lives as long as the CA."""
        return self._sign_client(name, key, VALID_FROM, self._end)

    def sign_device(self, name: str, key: Ed25519PublicKey, now: datetime) -> bytes:
        """A device's certificate, as PEM; lives for a year from `now`, which need not have come:
        by a clock that is ahead for a while a device must not be shut out for longer."""
        return self._sign_client(name, key, VALID_FROM, now + DEVICE_LIFE)

    def sign_claim(
        self, claim_id: str, key: Ed25519PublicKey, now: datetime, expires: datetime
    ) -> bytes:
        """A claim's certificate, as PEM; expires with the claim."""
        return self._sign_client(claim_id, key, now - CLOCK_SLACK, expires)

    def revocation_list(self, revoked: Iterable[Revoked], now: datetime) -> bytes:
        """The revocation list as PEM, valid from long ago until the authority ends: a list that has
        expired, or is of the future by a clock that was set back, would lock everybody out."""
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(VALID_FROM)
            .next_update(self._end)
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
            .add_extension(identifier, critical=False)
        )
        for entry in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(entry.serial)
                .revocation_date(datetime.fromtimestamp(entry.at_ms // 1000, UTC))
                .build()
            )
        return builder.sign(self.key, None).public_bytes(Encoding.PEM)

    @property
    def _end(self) -> datetime:
        return self.certificate.not_valid_after_utc

    def _sign_client(
        self, name: str, key: Ed25519PublicKey, start: datetime, end: datetime
    ) -> bytes:
        builder = self._leaf(name, key, start, min(end, self._end), ExtendedKeyUsageOID.CLIENT_AUTH)
        return _pem(builder.sign(self.key, None))

    def _leaf(
        self,
        name: str,
        key: Ed25519PublicKey,
        start: datetime,
        end: datetime,
        purpose: x509.ObjectIdentifier,
    ) -> x509.CertificateBuilder:
        ours = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            _builder(_name(name), self.certificate.subject, key, start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(ours, critical=False)
        )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _years_after(now: datetime, years: int) -> datetime:
    return now + timedelta(days=365.25 * years)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
