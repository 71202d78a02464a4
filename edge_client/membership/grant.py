"""What a device makes of the registrar's answer: nothing in it counts before it is proven.

The seal says that the authority has spoken; that the certificate is its own, of our key, for a
device, and that the key set is this federation's, is looked at here.
"""

from __future__ import annotations

from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fedtide.key_set import open_key_set
from fedtide.keys import public_bytes
from fedtide.messages import Enrolled
from fedtide.topics import Topics, is_device_name


class Grant(NamedTuple):
    """A certificate that is ours."""

    name: str
    certificate: bytes
    """X.509 in PEM."""
    key_set: bytes


def grant_of(
    answer: Enrolled, topics: Topics, key: Ed25519PrivateKey, ca: x509.Certificate
) -> Grant | str:
    """The certificate in an answer; else why it is none for the holder of `key`."""
    authority = ca.public_key()
    assert isinstance(authority, Ed25519PublicKey)
    try:
        certificate = x509.load_der_x509_certificate(answer.certificate)
        certificate.verify_directly_issued_by(ca)
        names = [
            name.value for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        ]
        ours = certificate.public_key() == key.public_key()
    except InvalidSignature:
        return "its certificate is not signed by the federation's authority"
    except (ValueError, TypeError) as exc:
        return f"its certificate cannot be read: {exc}"
    if not ours:
        return "its certificate is of another key"
    if names != [answer.name] or not is_device_name(answer.name):
        return f"its certificate is of {names!r}, and the answer says {answer.name!r}"
    key_set = open_key_set(topics, answer.key_set, public_bytes(authority))
    if isinstance(key_set, str):
        return f"its key set is not this federation's: {key_set}"
    return Grant(answer.name, certificate.public_bytes(Encoding.PEM), answer.key_set)
