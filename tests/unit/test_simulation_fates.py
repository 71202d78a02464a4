"""What became of tasks that were open when a simulated run ended, computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.fleet import events as e
from simulator.fleet.record import Record
from simulator.report import summarise
from tests.fleet_runs import header, record_of

DISCOUNT = {"rounds": {"late": "discount"}}


def run_of_three(path: Path, scenario: dict[str, object], *, wanted: int, back: bool) -> Record:
    """Round 1 closes at 5 s; device 1 drops at 2 s; 2 trains on; 3 is in round 2, open at the end.

    Training: 0 for 3 s, 1 for 1 s, 2 for 8 s, 3 for 2 s.
    """
    return_of_1 = [e.On(7_000, 1)] if back else []
    return record_of(
        path,
        header("mine", devices=4, scenario={"name": "x", **scenario}),
        e.RoundOpened(0, 1, "train", 0, wanted, 1, 4),
        *(e.TaskGiven(0, device, 1, 0) for device in (0, 1, 2)),
        *(e.TrainingBegan(1_000, device, 1) for device in (0, 1, 2)),
        e.TrainingEnded(2_000, 1, 1, 0, 0, False),
        e.DroppedOut(2_000, 1, 1, "training", True),
        e.Off(2_000, 1, "power cut"),
        e.TrainingEnded(4_000, 0, 1, 1, 10),
        e.Verdict(5_000, 0, 1, "accepted", "in time"),
        e.RoundClosed(5_000, 1, (e.Counted(0, 1, 60.0),)),
        e.ModelMade(5_000, 1, 1),
        e.RoundOpened(5_000, 2, "train", 1, wanted, 1, 2),
        e.TaskGiven(5_000, 3, 2, 1),
        e.TrainingBegan(6_000, 3, 2),
        *return_of_1,
        e.TrainingEnded(8_000, 3, 2, 0, 0, False),
        e.DroppedOut(8_000, 3, 2, "training", True),
        e.TrainingEnded(9_000, 2, 1, 0, 0, False),
        e.Finished(9_000, "the time is over", False),
    )


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(
    ("scenario", "wanted", "of_device_2"),
    [
        ({}, 1, "not needed"),
        ({}, 2, "late"),
        ({"policy": [{"name": "mine"}, {"name": "other", **DISCOUNT}]}, 2, "late"),
        (DISCOUNT, 2, "unfinished"),
        ({"rounds": {"mode": "buffered"}}, 1, "unfinished"),
        ({"policy": [{"name": "mine", **DISCOUNT}]}, 2, "unfinished"),
        ({**DISCOUNT, "policy": [{"name": "mine", "rounds": {"late": "discard"}}]}, 2, "late"),
    ],
)
def test_what_was_open_at_the_end(
    tmp_path: Path, scenario: dict[str, object], wanted: int, of_device_2: str, back: bool
) -> None:
    """Who dropped before its round closed is dropped, whether or not it came back; who is at work
    on a closed round is late or not needed, unless its update would still have counted."""
    policy = summarise([run_of_three(tmp_path / "r", scenario, wanted=wanted, back=back)])
    figures = policy.policies[0]
    expected = {"counted": 3_000, "dropped": 1_000, of_device_2: 8_000}
    expected["unfinished"] = expected.get("unfinished", 0) + 2_000  # device 3
    wasted = {cause: ms for cause, ms in figures.work.wasted_ms.items() if ms}
    assert wasted == {cause: ms for cause, ms in expected.items() if cause != "counted"}
    assert figures.work.counted_ms == expected["counted"]
    assert figures.fates["dropped"] == 1
    assert sum(figures.fates.values()) == figures.tasks == 4
