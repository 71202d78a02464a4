"""When a running device asks for its certificate, what it makes of the answer, and what not."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edge_client.durable import Durable
from edge_client.membership.former_name import carry_over
from edge_client.membership.renewal import (
    DAY_MS,
    FORMER_NAME,
    PATIENCE_MS,
    RETRY_MS,
    SPREAD_MS,
    UNANSWERED_PATIENCE_MS,
    Renewal,
)
from edge_client.saved_session import SavedSession
from fedtide.identity import load_identity
from fedtide.keys import new_key
from fedtide.memory import MemoryBroker, MemoryTransport
from fedtide.messages import Enrol, Enrolled, Envelope, Refusal, Renamed, decode, encode
from fedtide.transport import Connected, Disconnected, LinkEvent, Received
from tests.identities import Authority

AUTHORITY = Authority()
TOPICS = AUTHORITY.topics


class Device:
    """A device whose link loses nothing; who asks is in `asked`."""

    def __init__(self, folder: Path) -> None:
        self.identity = AUTHORITY.identity(folder, "pi-1")
        self.broker = MemoryBroker()
        self.asked: list[str] = []
        self.reconnects = 0
        self.registrar = MemoryTransport(self.broker, self._hear)
        self.registrar.start()
        self.registrar.subscribe([TOPICS.enrol("+")])
        self.link = MemoryTransport(self.broker, lambda _event: None)
        self.link.start()
        self.renewal = Renewal(self.identity, TOPICS, self.link, self._reconnect, 0)
        self.renewal.link_event(Connected("memory", 100_000), 0)

    def _reconnect(self) -> None:
        self.reconnects += 1

    def _hear(self, event: LinkEvent) -> None:
        if isinstance(event, Received):
            envelope = decode(event.payload)
            assert isinstance(envelope, Envelope)
            assert isinstance(envelope.body, Enrol)
            assert x509.load_der_x509_csr(envelope.body.request).is_signature_valid
            self.asked.append(envelope.id)

    def pass_time(self, at_ms: int, *, idle: bool = True, welcomed: bool = True) -> int:
        """How often it has asked by then."""
        self.renewal.time_reached(at_ms, idle=idle, welcomed=welcomed)
        return len(self.asked)

    def answer(self, body: Enrolled | Refusal | Renamed, at_ms: int) -> None:
        self.renewal.link_event(Received(TOPICS.enrolled("pi-1"), encode(body, "1")), at_ms)

    def grant(self, name: str = "pi-1", **changes: object) -> Enrolled:
        pem = AUTHORITY.certify(name, self.identity.key.public_key())
        der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
        enrolled = Enrolled(self.asked[-1], name, der, AUTHORITY.key_set())
        return msgspec.structs.replace(enrolled, **changes)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(random, "randrange", lambda most: most // 2)
    return Device(tmp_path / "identity")


DUE_MS = SPREAD_MS // 2


def test_it_asks_after_its_start_and_then_once_a_day(device: Device) -> None:
    assert device.renewal.deadline_at_ms() == DUE_MS
    assert device.pass_time(DUE_MS - 1) == 0
    assert device.pass_time(DUE_MS) == 1
    device.answer(device.grant(), DUE_MS + 5)
    assert device.reconnects == 1
    assert device.renewal.deadline_at_ms() == DUE_MS + 5 + DAY_MS
    assert device.pass_time(DUE_MS + DAY_MS) == 1
    assert device.pass_time(DUE_MS + 5 + DAY_MS) == 2


def test_a_question_without_an_answer_is_put_ever_more_rarely_and_is_the_same(
    device: Device,
) -> None:
    at_ms, pauses = DUE_MS, []
    for times in range(1, 8):
        assert device.pass_time(at_ms) == times
        deadline = device.renewal.deadline_at_ms()
        assert deadline is not None
        assert device.pass_time(deadline - 1) == times
        pauses.append(deadline - at_ms)
        at_ms = deadline
    assert pauses == [RETRY_MS << times for times in range(7)]
    assert len(set(device.asked)) == 1


def test_who_is_at_work_is_not_disturbed_for_an_hour(device: Device) -> None:
    assert device.pass_time(DUE_MS, idle=False) == 0
    assert device.renewal.deadline_at_ms() == DUE_MS + PATIENCE_MS, "or the loop would spin"
    assert device.pass_time(DUE_MS + PATIENCE_MS - 1, idle=False) == 0
    assert device.pass_time(DUE_MS + 60_000) == 1
    device.answer(Refusal(device.asked[-1], "no", final=False), DUE_MS)
    assert device.pass_time(DUE_MS + DAY_MS + PATIENCE_MS, idle=False) == 2


def test_whom_no_coordinator_answers_asks_soon(device: Device) -> None:
    """It may have another name already."""
    assert device.pass_time(DUE_MS, idle=False, welcomed=False) == 0
    soon_ms = DUE_MS + UNANSWERED_PATIENCE_MS
    assert device.renewal.deadline_at_ms() == soon_ms
    assert device.pass_time(soon_ms, idle=False, welcomed=False) == 1


def test_nothing_is_asked_without_a_link(device: Device) -> None:
    device.renewal.link_event(Disconnected("gone"), 0)
    assert device.renewal.deadline_at_ms() is None
    assert device.pass_time(DUE_MS) == 0


def test_the_certificate_that_it_has_changes_nothing(device: Device) -> None:
    device.pass_time(DUE_MS)
    der = device.identity.certificate.public_bytes(Encoding.DER)
    device.answer(device.grant(certificate=der), DUE_MS)
    assert device.reconnects == 0
    assert device.renewal.new_name == ""


def test_another_name_is_kept_with_the_one_before(device: Device) -> None:
    device.answer(Renamed("kitchen"), 100)
    assert device.renewal.deadline_at_ms() == 100, "at once"
    assert device.pass_time(100) == 1
    device.answer(device.grant("kitchen"), 200)
    assert device.renewal.new_name == "kitchen"
    assert device.reconnects == 0, "the runner begins anew"
    assert load_identity(device.identity.folder).name == "kitchen"
    assert (device.identity.folder / FORMER_NAME).read_text() == "pi-1"


def test_what_is_no_answer_to_this_question_or_not_ours_is_not_taken(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.pass_time(DUE_MS)
    before = (device.identity.folder / "certificate.pem").read_bytes()
    device.answer(device.grant(regarding="another"), DUE_MS)
    thief = AUTHORITY.certify("pi-1", new_key().public_key())
    stranger = Authority().certify("pi-1", device.identity.key.public_key())
    role = AUTHORITY.certify("coordinator", device.identity.key.public_key())
    for pem, name in ((thief, "pi-1"), (stranger, "pi-1"), (role, "coordinator")):
        der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
        device.answer(device.grant(certificate=der, name=name), DUE_MS)
        device.renewal._due_at_ms = DUE_MS
        device.pass_time(DUE_MS)
    device.answer(device.grant(certificate=b"junk"), DUE_MS)
    device.renewal._due_at_ms = DUE_MS
    device.pass_time(DUE_MS)
    device.answer(device.grant(key_set=b"junk"), DUE_MS)
    assert (device.identity.folder / "certificate.pem").read_bytes() == before
    assert device.reconnects == 0
    assert (device.renewal.deadline_at_ms() or 0) < DUE_MS + DAY_MS, "the true answer may come"
    for said in ("of another key", "not signed by", "of ['coordinator']", "be read", "key set"):
        assert said in caplog.text


def test_a_refusal_is_logged_and_asked_again_tomorrow(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.pass_time(DUE_MS)
    for regarding in ("another", ""):
        device.answer(Refusal(regarding, "of long ago"), DUE_MS)
    assert device.renewal.deadline_at_ms() == DUE_MS + RETRY_MS, "still without an answer"
    assert "of long ago" not in caplog.text
    device.answer(Refusal(device.asked[-1], "it has been revoked"), DUE_MS)
    assert "the registrar refuses another certificate: it has been revoked" in caplog.text
    assert device.renewal.deadline_at_ms() == DUE_MS + DAY_MS


@pytest.mark.parametrize("owner", ["old", "new", "other", None])
def test_state_of_the_former_name_is_carried_over_once(tmp_path: Path, owner: str | None) -> None:
    state = tmp_path / "state"
    state.mkdir()
    identity = AUTHORITY.identity(tmp_path / "identity", "new")
    if owner is not None:
        durable = Durable(federation="tides", device=owner, installation="i", run_id="r")
        SavedSession(state, "tides", owner).save(durable)
    (identity.folder / FORMER_NAME).write_text("old")
    carry_over(identity, state)
    assert not (identity.folder / FORMER_NAME).exists()
    carry_over(identity, state)
    if owner == "other":
        return  # it is another device's, as before, and whoever opens it says so
    loaded = SavedSession(state, "tides", "new", lambda: "fresh").load()
    assert loaded.device == "new"
    assert loaded.installation == ("fresh" if owner is None else "i")
    assert loaded.run_id == ("r" if owner == "new" else "")


def test_a_name_that_did_not_change_after_all_leaves_the_state_alone(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    identity = AUTHORITY.identity(tmp_path / "identity", "old")
    durable = Durable(federation="tides", device="old", installation="i", run_id="r")
    SavedSession(state, "tides", "old").save(durable)
    (identity.folder / FORMER_NAME).write_text("old")
    carry_over(identity, state)
    assert SavedSession(state, "tides", "old").load() == durable
