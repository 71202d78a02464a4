"""Norms, replays and quarantine: what a minority may do to the mean, and what the honest may."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator.aggregation import clip_scales, norm_of
from coordinator.config import VettingConfig
from coordinator.records import Standing
from coordinator.vetting import Verdict, next_standing
from fedtide.messages import Offer, Receipt, Task, Welcome
from fedtide.vectors import encode_vector
from simulator.faults.fake_learning import ELEMENTS
from tests.federation import Federation, Peer


def content(value: float) -> bytes:
    return encode_vector(np.full(ELEMENTS, value, dtype=np.float32), "f32")


def federation_of(folder: Path, **rounds: object) -> tuple[Federation, list[Peer]]:
    federation = Federation(folder, devices_min=4, cohort_size=4, count=9, **rounds)  # type: ignore[arg-type]
    federation.settle()
    peers = [Peer(federation, name) for name in "abcd"]
    for peer in peers:
        peer.hello()
    return federation, peers


def send(peer: Peer, value: float, **changes: object) -> Receipt:
    raw = content(value)
    peer.say(Offer(peer.update(raw, **changes)), *peer.chunks(raw))
    return peer.last(Receipt)


def round_of(peers: list[Peer], *values: float) -> list[Receipt]:
    return [send(peer, value) for peer, value in zip(peers, values, strict=True)]


def test_a_norm_far_above_the_median_is_rejected_and_told(tmp_path: Path) -> None:
    federation, peers = federation_of(tmp_path)
    assert {r.verdict for r in round_of(peers, 1.0, 1.1, 1.2, 1.3)} == {"accepted"}
    receipts = round_of(peers, 1.01, 1.11, 11.4, 11.6)  # the median was 1.15
    assert [r.verdict for r in receipts] == ["accepted", "accepted", "accepted", "rejected"]
    assert "times the median" in receipts[-1].reason
    assert federation.store.counts()["rejected: norm"] == 1


def test_a_cohort_that_shifts_as_a_whole_is_not_locked_out(tmp_path: Path) -> None:
    federation, peers = federation_of(tmp_path)
    round_of(peers, 1.0, 1.1, 1.2, 1.3)
    assert {r.verdict for r in round_of(peers, 50.0, 51.0, 52.0, 53.0)} == {"rejected"}
    federation.run(lambda: federation.store.load_state().round_id == 3)
    assert {r.verdict for r in round_of(peers, 50.5, 51.5, 52.5, 53.5)} == {"accepted"}


def test_in_the_first_round_nobody_decides_alone(tmp_path: Path) -> None:
    federation, peers = federation_of(tmp_path)
    round_of(peers, 1.0, 1.0, 1.0, 1e9)
    federation.settle()
    moved = federation.model(1) - federation.model(0)
    np.testing.assert_allclose(moved, (1 + 1 + 1 + 10) / 4, rtol=1e-4)


def test_scales() -> None:
    assert clip_scales([1.0, 2.0, 100.0], 10) == [1.0, 1.0, 0.2]
    assert clip_scales([1.0, 100.0], 10) == [1.0, 1.0]  # two have no majority
    assert clip_scales([0.0, 0.0, 5.0], 10) == [1.0, 1.0, 1.0]  # nothing to compare with
    assert clip_scales([1.0, None, 100.0, 1.0], 10) == [1.0] * 4
    assert clip_scales([1.0, 2.0, 100.0], None) == clip_scales([1.0, 2.0, 100.0], 0) == [1.0] * 3
    long = np.full(100_000, 0.1, np.float32)
    assert norm_of(long) == pytest.approx(float(np.linalg.norm(long.astype(np.float64))), rel=1e-12)


def test_the_work_of_an_earlier_round_is_a_replay(tmp_path: Path) -> None:
    federation, peers = federation_of(tmp_path)
    round_of(peers, 1.0, 1.1, 1.2, 1.3)
    federation.settle()
    for thief in peers[:2]:  # its own, and another's
        receipt = send(thief, 1.0)
        assert receipt.verdict == "rejected"
        assert "accepted before" in receipt.reason
    assert federation.store.counts()["rejected: replay"] == 2


def test_nothing_learned_is_no_replay(tmp_path: Path) -> None:
    federation, peers = federation_of(tmp_path)
    for _ in range(2):
        assert {r.verdict for r in round_of(peers, 0.0, 0.0, 0.0, 0.0)} == {"accepted"}
        federation.settle()
    assert federation.store.load_state().model_version == 2


def test_more_examples_than_are_believed(tmp_path: Path) -> None:
    _, peers = federation_of(tmp_path)
    receipt = send(peers[0], 1.0, examples=1_000_001)
    assert receipt.verdict == "rejected"
    assert receipt.reason == "it says 1,000,001 examples; at most 1,000,000 are believed"


def quarantine(federation: Federation, peers: list[Peer]) -> Receipt:
    """The last one sends what is rejected until it is left alone."""
    for number in range(3):
        for peer in peers[:-1]:
            send(peer, 1.0 + 0.01 * number)
        send(peers[-1], 1.0, examples=0)
        federation.settle()
    return peers[-1].last(Receipt)


def test_a_device_that_keeps_failing_is_left_alone_and_told(tmp_path: Path) -> None:
    federation, peers = federation_of(tmp_path, collect_ms=1_000)
    receipt = quarantine(federation, peers)
    told = "it was trained on no examples; rejected too often: not invited for 1 h"
    assert receipt.reason == told
    assert "d" not in federation.store.load_state().online
    federation.kill_coordinator()
    federation.boot_coordinator()
    federation.settle()
    bad = peers[-1]
    bad.hello()
    notice = "in quarantine, not invited for 60 min: it was trained on no examples"
    assert bad.last(Welcome).notice == notice
    assert federation.store.load_state().online == ()
    federation.now_ms += 3_600_000
    bad.hello()
    assert bad.last(Welcome).notice == ""
    assert federation.store.load_state().online == ("d",)


def test_a_clock_that_was_set_back_does_not_stretch_a_quarantine(tmp_path: Path) -> None:
    federation, peers = federation_of(tmp_path, collect_ms=1_000)
    quarantine(federation, peers)
    federation.now_ms -= 900_000
    peers[-1].hello()
    assert "for 60 min" in peers[-1].last(Welcome).notice


def test_strikes() -> None:
    vetting = VettingConfig(strikes_max=2, quarantine_ms=1_000)
    bad, late = Verdict("rejected", "norm", "too long"), Verdict("discarded", "late", "late")
    good = Verdict("accepted", "in time")
    once = next_standing(Standing(), bad, 5, vetting)
    assert once == Standing(1, 0, "too long")
    assert next_standing(once, late, 5, vetting) == once
    assert next_standing(once, good, 5, vetting) == Standing()
    assert next_standing(once, bad, 5, vetting) == Standing(0, 1_005, "too long")
    left_alone = next_standing(once, bad, 5, vetting)
    assert next_standing(left_alone, good, 1_004, vetting) == left_alone
    assert next_standing(left_alone._replace(strikes=1), good, 6, vetting) == left_alone
    assert next_standing(left_alone, good, 1_005, vetting) == Standing()
    for_ever = msgspec.structs.replace(vetting, quarantine_ms=0)
    assert next_standing(once, bad, 5, for_ever) == Standing(2, 0, "too long")


# ---- two installations under one name ----


def test_the_second_installation_of_a_name_is_told_and_the_first_is_not_harmed(
    tmp_path: Path,
) -> None:
    federation = Federation(tmp_path, cohort_size=1)
    federation.settle()
    peer = Peer(federation, "pi")
    peer.hello(installation="first")
    assert peer.last(Welcome).notice == ""
    task = peer.last(Task)
    peer.heard.clear()
    peer.hello(installation="second")
    assert peer.last(Welcome).notice.startswith("another installation uses the name pi now; this")
    assert not any(isinstance(message, Task) for message in peer.heard)
    assert federation.store.counts()["refused: two installations of one device"] == 1
    peer.hello(installation="first")
    assert (peer.last(Welcome).notice, peer.last(Task)) == ("", task)
    federation.now_ms += 3 * peer.last(Welcome).hello_ms
    federation.service.time_reached(federation.now_ms)
    peer.hello(installation="second")
    assert peer.last(Welcome).notice == ""
