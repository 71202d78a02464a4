"""What a join code and a request to the registrar are read from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedtide.errors import ConfigError
from fedtide.identity import certificate_request
from fedtide.join_code import JoinCode, parse_join_code, write_join_code
from fedtide.keys import new_key, public_bytes
from fedtide.messages import Enrol, encode
from fedtide.seal import seal
from fedtide.topics import Topics
from registrar.authority import Authority
from registrar.enrolment import Enrolment
from registrar.records import Claim
from registrar.registry import Registry
from tests.hostile.decoder import Decoder
from tests.identities import Authority as Signer

TOPICS = Topics("tides")


def join_code(_folder: Path) -> Decoder:
    """A line: the code that it is, or a message."""
    signer, key = Signer(), new_key()
    pem = signer.certify("join-1", key.public_key())
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    ca = signer.certificate.public_bytes(Encoding.DER)
    code = JoinCode("tides", "server", 8883, ca, der, key.private_bytes_raw())

    def read(raw: bytes) -> str:
        try:
            read = parse_join_code(raw.decode("utf-8", "replace"))
        except ConfigError as exc:
            return str(exc.args[0])[:40]
        assert read == code
        return "read"

    return Decoder((write_join_code(code).encode(),), read)


def enrol(folder: Path) -> Decoder:
    """A request: nobody is admitted but by the claim's own seal."""
    now = datetime.now(UTC)
    now_ms = round(now.timestamp() * 1000)
    authority, registry = Authority.make(folder / "authority", "tides", now), Registry(folder)
    office = Enrolment(TOPICS, registry, authority, lambda: b"k", lambda: None, count(1).__next__)
    key, claim_key, topic = new_key(), new_key(), TOPICS.enrol("join-1")
    expires = now + timedelta(hours=1)
    pem = authority.sign_claim("join-1", claim_key.public_key(), now, expires)
    claim = Claim("join-1", "pi", public_bytes(claim_key), now_ms + 3_600_000, None)
    registry.invite(claim, pem, now_ms)
    genuine = seal(topic, encode(Enrol(certificate_request("join-1", key)), "1"), claim_key, 1)

    def read(raw: bytes) -> str:
        said = office.answer(topic, raw, now_ms)
        device = registry.device("pi")
        assert device is not None
        if raw != genuine and device.standing == "member":
            assert device.key == public_bytes(key)
        return said if isinstance(said, str) else "answered"

    return Decoder((genuine,), read)
