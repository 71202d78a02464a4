"""What `fedtide status` makes of retained messages, old ones and new ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtide import cli
from fedtide.messages import AnyMessage, Beacon, Presence, Status, encode
from fedtide.picture import Picture
from fedtide.picture_text import as_lines, duration
from fedtide.topics import Topics

TOPICS = Topics("tides")
STATUS = Status(
    phase="collecting",
    round_id=7,
    rounds_count=50,
    rounds_done=6,
    model_version=6,
    cohort=("a", "b", "c"),
    accepted=("a",),
    declined=("b",),
    quarantined=("z",),
    deadline_ms=42_000,
    reason="1 of 2 updates are here; waiting for c",
    loss=0.25,
    accuracy=0.9375,
    wanted=2,
    quorum=1,
    online_count=4,
    cohort_count=3,
    accepted_count=1,
    declined_count=1,
    quarantined_count=1,
    heard_ms=(1_000, None, 61_000),
)


def picture(*said: tuple[str, AnyMessage], retained: bool) -> Picture:
    seen = Picture("tides")
    for topic, message in said:
        seen.hear(topic, encode(message, "1"), 0, retained=retained)
    return seen


def everything(*, retained: bool) -> Picture:
    return picture(
        (TOPICS.beacon, Beacon(True, "s")),
        (TOPICS.status, STATUS),
        (TOPICS.presence("a"), Presence(True, "idle", 7, "waiting for a task")),
        (TOPICS.presence("c"), Presence(True, "training", 7, "epoch 2 of 5")),
        (TOPICS.presence("d"), Presence(False, "offline", reason="stopped")),
        retained=retained,
    )


def test_a_round_in_words() -> None:
    assert as_lines(everything(retained=False).snapshot(2_000)) == [
        "tides · coordinator online",
        "collecting updates · round 7 (6 of 50 rounds done) · closes with 2 updates, counts with 1"
        " · deadline in 40 s",
        "because: 1 of 2 updates are here; waiting for c",
        "model 6 · loss 0.2500 · accuracy 93.8%",
        "devices: 4 online, 3 invited, 1 accepted, 1 declined, 1 quarantined",
        "  a  idle: waiting for a task        accepted     heard 2.0 s ago",
        "  b  unknown                         declined",
        "  c  training round 7: epoch 2 of 5  invited      heard 2.0 s ago",
        "  d  offline: stopped",
        "  z  unknown                         quarantined",
    ]


def test_what_is_retained_may_be_older() -> None:
    lines = as_lines(everything(retained=True).snapshot(2_000))
    assert "deadline in at most 40 s" in lines[1]
    assert lines[5].endswith("heard at least 3.0 s ago")
    assert lines[7].endswith("heard at least 1 min 3 s ago")


def test_a_coordinator_that_is_gone() -> None:
    seen = everything(retained=True)
    seen.hear(TOPICS.beacon, encode(Beacon(False, "s"), "will"), 0, retained=False)
    lines = as_lines(seen.snapshot(0))
    assert lines[0] == "tides · coordinator OFFLINE"
    assert "gone" in lines[1]


def test_a_user_who_may_not_read_the_status() -> None:
    lines = as_lines(picture((TOPICS.beacon, Beacon(True, "s")), retained=True).snapshot(0))
    assert "this user may not read it" in lines[1]


def test_messages_of_others_and_junk_are_no_part_of_it() -> None:
    seen = Picture("tides")
    others = Topics("other")
    seen.hear(others.beacon, encode(Beacon(True, "s"), "1"), 0, retained=True)
    seen.hear(others.presence("x"), encode(Presence(True, "idle"), "1"), 0, retained=True)
    seen.hear(TOPICS.status, b"\xff", 0, retained=True)
    seen.hear(TOPICS.presence("x"), encode(Beacon(True, "s"), "1"), 0, retained=True)
    assert seen.empty
    assert seen.snapshot(0).others == ("other",)


def test_a_presence_that_is_removed() -> None:
    seen = everything(retained=True)
    seen.hear(TOPICS.presence("d"), b"", 0, retained=False)
    assert seen.presence("d") is not None, "a probe of the doctor removes nothing"
    seen.hear(TOPICS.presence("d"), b"", 0, retained=True)
    assert seen.presence("d") is None


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (0, "0.0 s"),
        (9_940, "9.9 s"),
        (12_000, "12 s"),
        (59_700, "1 min"),
        (200_000, "3 min 20 s"),
        (3_600_000, "1 h"),
        (18_120_000, "5 h 2 min"),
        (86_400_000 * 3 + 3_600_000 * 4, "3 d 4 h"),
    ],
)
def test_durations(milliseconds: int, words: str) -> None:
    assert duration(milliseconds) == words


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "status needs a configuration file"),
        (["absent.toml"], 2, "cannot read"),
        (["--host", "localhost", "--federation", "a/b"], 2, "no name of a federation"),
        (["--host", "localhost", "--federation", "a", "--port", "0"], 2, "expected 1 to 65535"),
        (["garbage.toml"], 2, "not TOML"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "garbage.toml").write_bytes(b"\xff\x00[[")
    assert cli.main(["status", "--once", *arguments]) == code
    assert said in capsys.readouterr().err
