"""What the registrar answers: once for a claim, the same for the same key, a reason to the rest."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from unittest.mock import Mock

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from fedtide.identity import certificate_request
from fedtide.keys import new_key, public_bytes
from fedtide.limits import ENROL_BYTES_MAX
from fedtide.messages import (
    Enrol,
    Enrolled,
    Envelope,
    Hello,
    Refusal,
    Renamed,
    decode,
    encode,
)
from fedtide.seal import is_sealed_by, open_sealed, seal
from fedtide.topics import Topics
from fedtide.transport import Connected, Disconnected
from registrar.authority import DEVICE_LIFE, Authority
from registrar.enrolment import Enrolment, Said
from registrar.records import Claim, RefusedError, common_name
from registrar.registry import Registry
from registrar.service import Service

NOW = datetime.now(UTC)
NOW_MS = round(NOW.timestamp() * 1000)
HOUR_MS = 3_600_000
LIFE_MS = round(DEVICE_LIFE.total_seconds() * 1000)
TOPICS = Topics("tides")


class Office:
    """A registrar, and people who come to it."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.make(folder / "authority", "tides", NOW)
        self.registry = Registry(folder)
        self.changes = 0
        self.enrolment = Enrolment(
            TOPICS,
            self.registry,
            self.authority,
            lambda: b"the key set",
            self.changed,
            count(1).__next__,
        )

    def changed(self) -> None:
        self.changes += 1

    def invite(self, device: str, claim_id: str = "join-1") -> Ed25519PrivateKey:
        key = new_key()
        expires = NOW + timedelta(hours=1)
        self.registry.invite(
            Claim(claim_id, device, public_bytes(key), NOW_MS + HOUR_MS, None),
            self.authority.sign_claim(claim_id, key.public_key(), NOW, expires),
            NOW_MS,
        )
        return key

    def ask(
        self,
        name: str,
        key: Ed25519PrivateKey,
        sealed_by: Ed25519PrivateKey,
        at_ms: int = NOW_MS,
        *,
        sealed_for: str | None = None,
    ) -> Enrolled | Refusal | str:
        message = encode(Enrol(certificate_request("whoever", key)), "question")
        payload = seal(TOPICS.enrol(sealed_for or name), message, sealed_by, at_ms)
        said = self.enrolment.answer(TOPICS.enrol(name), payload, at_ms)
        return said if isinstance(said, str) else self.read(said, name)

    def read(self, said: Said, name: str) -> Enrolled | Refusal:
        assert said.topic == TOPICS.enrolled(name)
        body = self.open(said)
        assert isinstance(body, Enrolled | Refusal)
        assert body.regarding == "question"
        return body

    def open(self, said: Said) -> object:
        sealed = open_sealed(said.payload)
        assert sealed is not None
        assert is_sealed_by(public_bytes(self.authority.key), said.topic, sealed)
        envelope = decode(sealed.message)
        assert isinstance(envelope, Envelope)
        return envelope.body

    def join(self, device: str, claim_id: str = "join-1") -> Ed25519PrivateKey:
        key = new_key()
        assert isinstance(self.ask(claim_id, key, self.invite(device, claim_id)), Enrolled)
        return key


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    office.registry.close()


def test_a_claim_makes_a_member_and_the_same_key_gets_the_same_answer_again(office: Office) -> None:
    claim, key = office.invite("pi-1"), new_key()
    first = office.ask("join-1", key, claim)
    assert isinstance(first, Enrolled)
    certificate = x509.load_der_x509_certificate(first.certificate)
    assert (first.name, common_name(certificate)) == ("pi-1", "pi-1")
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(office.authority.certificate)
    assert first.key_set == b"the key set"
    assert office.changes == 1
    device = office.registry.device("pi-1")
    assert device is not None
    assert (device.standing, device.key) == ("member", public_bytes(key))
    assert office.ask("join-1", key, claim, NOW_MS + 2 * HOUR_MS) == first, "the answer was lost"
    assert office.changes == 1


def test_a_stolen_code_is_refused_to_who_comes_second_and_logged_loudly(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    claim = office.invite("pi-1")
    assert isinstance(office.ask("join-1", new_key(), claim), Enrolled)
    second = office.ask("join-1", new_key(), claim)
    assert isinstance(second, Refusal)
    assert second.final
    assert "used already, by another machine. If that was not yours" in second.reason
    assert "fedtide device revoke pi-1" in second.reason
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "was tried by another machine" in errors[0].getMessage()


def test_an_expired_claim_is_refused(office: Office) -> None:
    refusal = office.ask("join-1", new_key(), office.invite("pi-1"), NOW_MS + 2 * HOUR_MS)
    assert refusal == Refusal("question", "this join code has expired")


def test_a_claim_on_a_revoked_name_is_refused_and_a_new_one_works(office: Office) -> None:
    old = office.invite("pi-1")
    office.registry.revoke("pi-1", NOW_MS)
    refusal = office.ask("join-1", new_key(), old)
    assert isinstance(refusal, Refusal)
    assert "'pi-1' has been revoked" in refusal.reason
    new = office.invite("pi-1", "join-2")
    assert isinstance(office.ask("join-2", new_key(), new), Enrolled)
    replaced = office.ask("join-1", new_key(), old)
    assert isinstance(replaced, Refusal)
    assert "replaced by a newer one" in replaced.reason


def test_another_devices_key_cannot_join_again(office: Office) -> None:
    key = office.join("pi-1")
    refusal = office.ask("join-2", key, office.invite("pi-2", "join-2"))
    assert isinstance(refusal, Refusal)
    assert "this key is that of the device 'pi-1'" in refusal.reason


def test_a_certificate_renews_at_two_thirds_of_its_life(office: Office) -> None:
    key = office.join("pi-1")
    young = office.ask("pi-1", key, key, NOW_MS + LIFE_MS // 3)
    again = office.ask("pi-1", key, key, NOW_MS + 2 * LIFE_MS // 3 - HOUR_MS)
    renewed = office.ask("pi-1", key, key, NOW_MS + 2 * LIFE_MS // 3 + HOUR_MS)
    assert isinstance(young, Enrolled)
    assert isinstance(renewed, Enrolled)
    assert young == again
    end = [
        x509.load_der_x509_certificate(answer.certificate).not_valid_after_utc
        for answer in (young, renewed)
    ]
    assert end[1] - end[0] > DEVICE_LIFE / 2
    assert office.ask("pi-1", key, key, NOW_MS + 2 * LIFE_MS // 3 + 2 * HOUR_MS) == renewed


@pytest.mark.parametrize("wrong", [timedelta(days=300), timedelta(days=-2000)])
def test_a_clock_that_is_wrong_for_a_while_shuts_no_device_out(
    office: Office, wrong: timedelta
) -> None:
    key = office.join("pi-1")
    for name, new_name in (("pi-1", None), ("pi-1", "kitchen"), ("kitchen", None)):
        if new_name is not None:
            office.registry.rename(name, new_name, NOW_MS)
        for at in (NOW + wrong, NOW + timedelta(days=1)):  # a day's question, and the next day's
            answer = office.ask(name, key, key, round(at.timestamp() * 1000))
            assert isinstance(answer, Enrolled)
            certificate = x509.load_der_x509_certificate(answer.certificate)
            assert certificate.not_valid_before_utc < NOW
            assert certificate.not_valid_after_utc > NOW + DEVICE_LIFE / 2


def test_a_renamed_device_gets_its_new_name_also_if_the_answer_is_lost(office: Office) -> None:
    key = office.join("pi-1")
    office.registry.rename("pi-1", "kitchen", NOW_MS)
    said = office.enrolment.renaming("pi-1", "kitchen")
    assert said.topic == TOPICS.enrolled("pi-1")
    assert office.open(said) == Renamed("kitchen")
    first = office.ask("pi-1", key, key)
    assert isinstance(first, Enrolled)
    assert first.name == "kitchen"
    assert common_name(x509.load_der_x509_certificate(first.certificate)) == "kitchen"
    assert office.ask("pi-1", key, key) == first
    with pytest.raises(RefusedError, match="has not come under its new name yet"):
        office.invite("pi-1", "join-2")
    other = office.join("pi-2", "join-3")
    assert isinstance(office.ask("kitchen", other, other), Enrolled)  # says nothing of "kitchen"
    with pytest.raises(RefusedError, match="has not come under its new name yet"):
        office.invite("pi-1", "join-2")
    assert office.ask("kitchen", key, key) == first
    former = [c for c in office.registry.certificates("kitchen") if c.name != "kitchen"]
    assert {c.name for c in former if c.revoked_at_ms} == {"pi-1"}
    office.invite("pi-1", "join-2")


def test_a_revoked_device_gets_nothing_more(office: Office) -> None:
    key = office.join("pi-1")
    office.registry.revoke("pi-1", NOW_MS)
    refusal = office.ask("pi-1", key, key)
    assert isinstance(refusal, Refusal)
    assert "it has been revoked" in refusal.reason


def test_nobody_gets_a_refusal_for_another(office: Office) -> None:
    """The device would believe it: the authority has sealed it, and the broker knows the id."""
    nobody = "no device of this name has, or had and was revoked, the key in it"
    stranger, first = new_key(), office.join("pi-1")
    assert office.ask("pi-1", stranger, stranger) == nobody
    assert office.ask("pi-9", stranger, stranger) == nobody
    office.registry.revoke("pi-1", NOW_MS)
    assert office.ask("pi-1", stranger, stranger) == nobody
    assert isinstance(office.ask("pi-1", first, first), Refusal)
    assert office.ask("pi-2", first, first) == nobody
    claim = office.invite("pi-1", "join-2")
    assert isinstance(office.ask("pi-1", first, first), Refusal)
    assert isinstance(office.ask("join-2", new_key(), claim), Enrolled)
    assert office.ask("pi-1", first, first) == nobody, "another has the name by now"


def test_a_claim_that_never_was_is_not_answered(office: Office) -> None:
    old = office.invite("pi-1", "join-1")
    office.invite("pi-1", "join-2")
    nobody = "there is no such claim, and it is not sealed by one that was replaced"
    assert office.ask("join-9", new_key(), new_key()) == nobody
    assert office.ask("join-1", new_key(), new_key()) == nobody
    assert isinstance(office.ask("join-1", new_key(), old), Refusal)


def test_what_proves_to_be_from_nobody_is_not_answered(office: Office) -> None:
    claim, thief = office.invite("pi-1"), new_key()
    assert office.ask("join-1", thief, thief) == "it is not sealed by the claim's key"
    elsewhere = office.ask("join-1", thief, claim, sealed_for="join-2")
    assert elsewhere == "it is not sealed by the claim's key"
    key = office.join("pi-2", "join-2")
    assert office.ask("pi-2", key, thief) == "it is not sealed by the key that it is about"
    assert office.registry.device("pi-1").standing == "invited"  # type: ignore[union-attr]


def test_a_request_needs_the_signature_of_its_key(office: Office) -> None:
    claim = office.invite("pi-1")
    request = bytearray(certificate_request("pi-1", new_key()))
    request[-1] ^= 1
    curve = ec.generate_private_key(ec.SECP256R1())
    other = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    foreign = other.sign(curve, SHA256()).public_bytes(Encoding.DER)
    for der in (bytes(request), foreign, b"\x30\x80", b"0"):
        payload = seal(TOPICS.enrol("join-1"), encode(Enrol(der), "1"), claim, NOW_MS)
        said = office.enrolment.answer(TOPICS.enrol("join-1"), payload, NOW_MS)
        assert said == "its request is not signed by the key in it, or that is not of Ed25519"


@pytest.mark.parametrize(
    ("topic", "payload", "why"),
    [
        (TOPICS.up("pi-1"), b"", "on a topic of nobody's"),
        (TOPICS.enrol("a/b"), b"", "on a topic of nobody's"),
        (TOPICS.enrol("pi-1"), b"x" * (ENROL_BYTES_MAX + 1), "at most 4096 are read"),
        (TOPICS.enrol("pi-1"), b"", "not sealed"),
        (TOPICS.enrol("pi-1"), seal("t", b"junk", new_key(), 1), "no request for a certificate"),
        (
            TOPICS.enrol("pi-1"),
            seal("t", encode(Hello("1", (), 0, ()), "1"), new_key(), 1),
            "no request for a certificate",
        ),
    ],
    ids=["up", "no name", "too long", "empty", "junk", "hello"],
)
def test_junk_is_data(office: Office, topic: str, payload: bytes, why: str) -> None:
    said = office.enrolment.answer(topic, payload, NOW_MS)
    assert isinstance(said, str)
    assert why in said


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


@given(st.binary(min_size=1, max_size=300))
def test_no_request_raises(shared: Office, der: bytes) -> None:
    payload = seal(TOPICS.enrol("join-1"), encode(Enrol(der), "1"), new_key(), 1)
    assert isinstance(shared.enrolment.answer(TOPICS.enrol("join-1"), payload, NOW_MS), str)


def test_a_broker_that_is_away_is_told_once_for_each_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    office, link = Office(tmp_path), Mock()
    service = Service(TOPICS, office.registry, office.enrolment, link)
    away, lost = Disconnected("no broker at x:1: refused", 2_000), Disconnected("lost", 1_000)
    for event in (away, away, Connected("MQTT 5", 1_000_000), lost, away):
        service.link_event(event, 0)
    first = "no broker at x:1: refused; trying again in 2 s"
    assert caplog.messages == [first, "lost; trying again in 1 s", first]
    assert service.deadline_at_ms() is None
