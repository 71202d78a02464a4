"""What people are told of the round fits into any broker's packets, however large the fleet is."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from coordinator import voice
from coordinator.round_machine import Member, RoundState
from coordinator.store import Model
from coordinator.voice import PROBLEMS_MS, Voice, status_of
from fedtide.limits import NAMES_MAX, STATUS_BYTES_MAX
from fedtide.memory import MemoryBroker, MemoryTransport
from fedtide.messages import BlobRef, Envelope, decode, encode
from fedtide.topics import Topics

MODEL = Model(3, BlobRef("aa" * 32, 4), 7, 0, None, None)
LONGEST = 2**53 - 1


def fleet(count: int, length: int) -> RoundState:
    names = [f"{number:x}".rjust(length, "d") for number in range(count)]
    answered = [Member("x", "accepted"), Member("x", "rejected"), Member("x", "declined")]
    cohort = tuple(replace(answered[i % 3], device_id=name) for i, name in enumerate(names))
    return RoundState("collecting", 7, cohort=cohort, online=tuple(names), reason="𝄞" * 2000)


@pytest.mark.parametrize("length", [6, 20, 64])
@pytest.mark.parametrize("count", [0, 3, 99, 10_000])
def test_a_status_fits_and_counts_everybody(count: int, length: int) -> None:
    state = fleet(count, length)
    names = state.online
    status = status_of(state, MODEL, LONGEST, LONGEST, names, dict.fromkeys(names, 0).get)
    raw = encode(status, "i" * 64)
    assert len(raw) <= STATUS_BYTES_MAX
    assert decode(raw) == Envelope(1, "i" * 64, status)
    assert status.cohort_count == status.online_count == status.quarantined_count == count
    assert status.accepted_count + status.declined_count + status.rejected_count == count
    assert status.cohort == names[: len(status.cohort)]
    assert len(status.heard_ms) == len(status.cohort)
    if count <= NAMES_MAX and length == 6:
        assert status.cohort == names


def test_how_long_ago_a_device_was_heard() -> None:
    state = RoundState(cohort=(Member("a"), Member("b")))
    status = status_of(state, MODEL, 1, 1_000, (), {"a": 400}.get)
    assert status.heard_ms == (600, None)


def test_a_flood_of_names_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(voice, "DEVICES_MAX", 3)
    monkeypatch.setattr(Voice, "say", lambda self, device_id, message: said.append(device_id))
    to_all = Voice(MemoryTransport(MemoryBroker(), lambda _: None), Topics("test"), "s")
    for number in range(100):
        to_all.problem(f"d{number}", "", "junk")
    to_all.problem("d0", "", "junk")
    assert said == ["d0", "d1", "d2", "d0"]
    assert len(to_all._problems) == 3
    to_all.time_reached(PROBLEMS_MS)
    to_all.problem("d99", "", "junk")
    assert said[-1] == "d99"
