"""An authority for tests, and identities of a federation that it has signed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fedtide.identity import Identity, load_identity, write_identity
from fedtide.key_set import seal_key_set
from fedtide.keys import new_key, public_bytes
from fedtide.messages import KeySet
from fedtide.topics import Topics

NOW = datetime.now(UTC)


class Authority:
    """Signs certificates and key sets of the federation `tides`."""

    def __init__(self, federation: str = "tides") -> None:
        self.topics = Topics(federation)
        self.key = new_key()
        self.public = public_bytes(self.key)
        name = _name(f"{federation} authority")
        self.certificate = (
            _builder(name, self.key.public_key(), NOW + timedelta(days=3650))
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, None)
        )
        self.pem = self.certificate.public_bytes(Encoding.PEM)
        self.coordinator = new_key()

    def certify(
        self,
        name: str,
        key: Ed25519PublicKey,
        *,
        until: datetime = NOW + timedelta(days=365),
        hosts: tuple[str, ...] = (),
    ) -> bytes:
        """A certificate in PEM."""
        builder = _builder(_name(name), key, until).issuer_name(self.certificate.subject)
        if hosts:
            names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, None).public_bytes(Encoding.PEM)

    def key_set(self, version: int = 1, *keys: Ed25519PrivateKey) -> bytes:
        """The coordinator's key, or `keys`, sealed."""
        public = tuple(public_bytes(key) for key in keys or (self.coordinator,))
        return seal_key_set(self.topics, KeySet(version, public), self.key)

    def identity(self, folder: Path, name: str) -> Identity:
        """A folder with everything in it."""
        key = self.coordinator if name == "coordinator" else new_key()
        certificate = self.certify(name, key.public_key())
        write_identity(folder, key, certificate, self.pem, self.key_set())
        return load_identity(folder)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, key: Ed25519PublicKey, until: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(1970, 1, 1, tzinfo=UTC))
        .not_valid_after(until)
    )
