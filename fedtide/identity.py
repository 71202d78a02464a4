"""An identity: who a device or a server role is, in one folder.

    key.pem           its private key, readable by its owner only
    certificate.pem   signed by the federation's authority; the common name is its name
    ca.pem            the authority's certificate: the one root of trust
    key_set           the newest known keys of the coordinator (`fedtide.key_set`)

The one key signs both the TLS handshake with the broker and the seals of messages. Whether the
certificate is over is the broker's to judge: a clock that is wrong at the start may be right soon.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fedtide.config import BrokerConfig
from fedtide.errors import ConfigError, StateError
from fedtide.files import make_folder, read_regular, write_atomically
from fedtide.keys import UNREADABLE, load_key, public_bytes, save_key
from fedtide.topics import is_identifier

KEY_NAME, CERTIFICATE_NAME, CA_NAME, KEY_SET_NAME = (
    "key.pem",
    "certificate.pem",
    "ca.pem",
    "key_set",
)
_log = logging.getLogger(__name__)
_HINT = "a device gets its identity by `fedtide device join`, a server by `fedtide server init`"


@dataclass(frozen=True)
class Identity:
    """See the module. Everything in it fits together."""

    folder: Path
    name: str
    key: Ed25519PrivateKey
    certificate: x509.Certificate
    authority: bytes
    """The public key of the authority, uint8[32]."""

    @property
    def over_at(self) -> datetime:
        """When the certificate ends."""
        return self.certificate.not_valid_after_utc

    def warn_if_over(self) -> None:
        """Say so in the log, where the broker's refusal will follow, or will not."""
        if self.over_at <= datetime.now(UTC):
            _log.warning(
                "by this machine's clock the certificate of %r is over since %s UTC: if the broker "
                "refuses it, check the clock; if that is right, get a new identity: %s",
                self.name,
                f"{self.over_at:%Y-%m-%d %H:%M}",
                _HINT,
            )

    def broker(self, config: BrokerConfig) -> BrokerConfig:
        """How to reach the broker as this identity.

        Raises:
            ConfigError: `config` names another way to prove who one is.
        """
        other = ("username", "password_file", "ca_file", "certificate_file", "key_file")
        given = [f"broker.{name}" for name in other if getattr(config, name) is not None]
        if given:
            raise ConfigError(
                f"{' and '.join(given)} cannot be given beside `identity`, which has all of that",
                hint="remove it, or remove `identity`",
            )
        return msgspec.structs.replace(
            config,
            ca_file=self.folder / CA_NAME,
            certificate_file=self.folder / CERTIFICATE_NAME,
            key_file=self.folder / KEY_NAME,
        )

    def key_set(self) -> bytes:
        """The key set as it was stored, unchecked; empty: there is none.

        Raises:
            StateError: it cannot be read.
        """
        path = self.folder / KEY_SET_NAME
        try:
            return read_regular(path)
        except FileNotFoundError:
            return b""
        except OSError as exc:
            raise StateError(f"cannot read the key set {str(path)!r}: {exc.strerror}") from exc

    def save_key_set(self, raw: bytes) -> None:
        """Replace the key set.

        Raises:
            StateError: the disk is full or failing.
        """
        write_atomically(self.folder / KEY_SET_NAME, raw)


def load_identity(folder: Path) -> Identity:
    """The identity in `folder`, were it over.

    Raises:
        ConfigError: a file is missing or unusable, others can read the key, or the files do not
            belong together; the message names the file.
    """
    require_folder(folder)
    key = load_key(folder / KEY_NAME)
    certificate = read_certificate(folder / CERTIFICATE_NAME)
    ca = read_certificate(folder / CA_NAME)
    where = repr(str(folder / CERTIFICATE_NAME))
    authority = ca.public_key()
    if not isinstance(authority, Ed25519PublicKey):
        raise ConfigError(
            f"{str(folder / CA_NAME)!r} is of no authority of fedtide: its key is not Ed25519",
            hint=_HINT,
        )
    if certificate.public_key() != key.public_key():
        raise ConfigError(
            f"{where} is of another key than {KEY_NAME} beside it",
            hint=f"restore both from one backup, or get a new identity: {_HINT}",
        )
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, *UNREADABLE) as exc:
        raise ConfigError(
            f"{where} is not signed by the authority in {CA_NAME} beside it", hint=_HINT
        ) from exc
    return Identity(folder, _name(certificate, where), key, certificate, public_bytes(authority))


def require_folder(folder: Path) -> None:
    """Make sure that there is a folder.

    Raises:
        ConfigError: there is none.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {str(folder)!r} with an identity", hint=_HINT)


def write_identity(
    folder: Path, key: Ed25519PrivateKey, certificate: bytes, ca: bytes, key_set: bytes
) -> None:
    """Make the folder of an identity; certificates in PEM. The certificate comes last: without it
    there is none.

    Raises:
        StateError: the disk is full or failing.
    """
    make_folder(folder)
    save_key(folder / KEY_NAME, key)
    write_atomically(folder / CA_NAME, ca)
    write_atomically(folder / KEY_SET_NAME, key_set)
    write_atomically(folder / CERTIFICATE_NAME, certificate)


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate in a PEM file.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(read_regular(path))
        # Parsed here and not where somebody asks for them.
        _ = (certificate.public_key(), certificate.subject, certificate.not_valid_after_utc)
        return certificate
    except OSError as exc:
        raise ConfigError(
            f"cannot read the certificate {str(path)!r}: {exc.strerror}", hint=_HINT
        ) from exc
    except UNREADABLE as exc:
        raise ConfigError(
            f"{str(path)!r} is no certificate in PEM, or damaged", hint=_HINT
        ) from exc


def certificate_request(name: str, key: Ed25519PrivateKey) -> bytes:
    """A PKCS#10 request in DER for a certificate of `name`."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, None)
    return request.public_bytes(Encoding.DER)


def _name(certificate: x509.Certificate, where: str) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = names[0].value if len(names) == 1 else ""
    if not isinstance(name, str) or not is_identifier(name):
        raise ConfigError(f"{where} is of no name that fedtide gives: {name!r}", hint=_HINT)
    return name
