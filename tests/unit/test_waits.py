"""What a device waits for is told: after a while, ever more rarely, and not while things go on."""

from __future__ import annotations

import itertools

import pytest

from edge_client.durable import Durable
from edge_client.session_events import Heard
from edge_client.session_machine import step as stepped
from edge_client.session_state import State
from edge_client.waits import (
    FIRST_MS,
    HUNG_TIMES,
    LINK_FIRST_MS,
    NOTICE_MS,
    REPEAT_MS_MAX,
    Wait,
    Waits,
    duration,
    waits_of,
)
from fedtide.messages import Beacon
from tests.property.test_session_machine import task_of, update_of

OWING = Durable(federation="f", outbox=(update_of(task_of(1)),))


def told_at(waits: Waits, until_ms: int) -> list[int]:
    times = []
    while (at_ms := waits.deadline_at_ms()) is not None and at_ms <= until_ms:
        if waits.overdue(at_ms):
            times.append(at_ms)
    return times


def test_a_wait_is_told_ever_more_rarely() -> None:
    waits = Waits()
    waits.observe({"link": Wait("no link")}, 0)
    day = told_at(waits, 24 * 3_600_000)
    assert day[:4] == [FIRST_MS, 2 * FIRST_MS, 4 * FIRST_MS, 8 * FIRST_MS]
    assert len(day) <= 12
    assert max(b - a for a, b in itertools.pairwise(day)) <= REPEAT_MS_MAX


def test_a_missing_link_is_told_sooner_and_when_it_is_tried_again() -> None:
    waits = Waits()
    state = State(link_reason="refused", retry_ms=41_500)
    waits.observe(waits_of(state, None, 0), 0)
    assert waits.overdue(LINK_FIRST_MS - 1) == []
    assert waits.overdue(LINK_FIRST_MS) == [
        "no link to the broker, trying again 41 s after each failure: refused (for 30 s)"
    ]
    hour = told_at(waits, 3_600_000)
    assert hour[:3] == [2 * LINK_FIRST_MS, 4 * LINK_FIRST_MS, 8 * LINK_FIRST_MS]
    assert len(hour) <= 7


def test_a_coordinator_that_said_goodbye_has_finished_or_was_stopped() -> None:
    state = State(durable=Durable(federation="home"), connected=True)
    gone = stepped(state, Heard(Beacon(False, "s")), 0).state
    said = waits_of(gone, None, 0)["coordinator"]
    assert said.notice.startswith("the coordinator of federation 'home' has finished, or was")
    back = stepped(gone, Heard(Beacon(True, "t")), 0).state
    assert "has answered yet" in waits_of(back, None, 0)["coordinator"].notice


def test_a_coordinator_that_has_not_answered_is_noted_once_before_it_is_overdue() -> None:
    waits = Waits()
    found = waits_of(State(durable=Durable(federation="hoem"), connected=True), None, 0)
    waits.observe(found, 0)
    assert waits.deadline_at_ms() == NOTICE_MS
    assert waits.noticed(NOTICE_MS - 1) == waits.overdue(NOTICE_MS) == []
    (notice,) = waits.noticed(NOTICE_MS)
    assert notice.startswith("no coordinator of federation 'hoem' has answered yet; ")
    waits.observe(found, NOTICE_MS)
    assert waits.noticed(FIRST_MS) == []
    assert waits.told() == [], "nothing is wrong yet"
    assert waits.deadline_at_ms() == FIRST_MS
    assert len(waits.overdue(FIRST_MS)) == 1


def test_what_goes_on_is_no_wait() -> None:
    waits = Waits()
    for step in range(100):
        waits.observe({"training": Wait("no step", step)}, step * FIRST_MS // 2)
        assert waits.overdue(step * FIRST_MS // 2) == []
    waits.observe({}, 10**9)
    assert waits.deadline_at_ms() is None


def test_it_says_how_long_and_is_remembered_while_it_lasts() -> None:
    waits = Waits()
    waits.observe({"link": Wait("no link")}, 0)
    assert waits.told() == []
    assert waits.overdue(FIRST_MS) == ["no link (for 2 minutes)"]
    waits.observe({"link": Wait("no link")}, FIRST_MS)
    assert waits.told() == ["no link (for 2 minutes)"]
    waits.observe({}, FIRST_MS + 1)
    assert waits.told() == []


def test_a_clock_that_jumps_tells_once() -> None:
    """A process that was stopped for a day has not seen its training hang for a day."""
    waits = Waits()
    waits.observe({"training": Wait("no step", 1)}, 0)
    assert len(waits.overdue(86_400_000)) == 1
    assert waits.overdue(86_400_000) == []
    assert not waits.hang()
    assert len(told_at(waits, 20 * 86_400_000)) >= HUNG_TIMES
    assert waits.hang()


@pytest.mark.parametrize(
    ("state", "steps", "expected"),
    [
        (State(link_reason="refused"), 0, {"link": "no link to the broker, trying again: refused"}),
        (
            State(durable=Durable(federation="digtis"), connected=True),
            0,
            {
                "coordinator": "no coordinator of federation 'digtis' answers; "
                "it may be off, or the name may be wrong"
            },
        ),
        (State(connected=True, welcomed=True), 0, {}),
        (
            State(durable=OWING, connected=True, welcomed=True),
            0,
            {"outbox": "no receipt from the coordinator for 1 in the outbox"},
        ),
        (
            State(connected=True, welcomed=True, phase="training"),
            5,
            {"training": "training has made no step"},
        ),
        (
            State(connected=True, welcomed=True, phase="training", reason="the disk is full"),
            5,
            {"held": "the disk is full"},
        ),
        (
            State(connected=True, welcomed=True, phase="fetching"),
            5,
            {"fetching": "fetching ab: 3 of 4"},
        ),
    ],
)
def test_every_wait_has_a_reason(state: State, steps: int, expected: dict[str, str]) -> None:
    fetching = Wait("fetching ab: 3 of 4") if state.phase == "fetching" else None
    found = waits_of(state, fetching, steps)
    assert {name: wait.text for name, wait in found.items()} == expected


def test_a_full_disk_is_no_training_that_hangs() -> None:
    state = State(connected=True, welcomed=True, phase="training")
    found = waits_of(state, None, 5, unsaved=True)
    assert list(found) == ["disk"]
    waits = Waits()
    waits.observe(found, 0)
    assert waits.told() == ["the disk is full: what was done waits for room"], "at once"


@pytest.mark.parametrize(
    ("duration_ms", "words"),
    [(5_900, "5 s"), (60_000, "1 minute"), (7_300_000, "2 hours"), (90_000_000, "1 day")],
)
def test_durations_in_words(duration_ms: int, words: str) -> None:
    assert duration(duration_ms) == words
