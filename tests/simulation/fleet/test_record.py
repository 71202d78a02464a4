"""A run's record: what is written is what is read, and damage is noticed."""

import gzip
from contextlib import suppress
from pathlib import Path

import pytest

from fedtide.errors import DamagedError, StateError
from simulator.fleet import events
from simulator.fleet.record import Header, Recorder, lines, read_header, read_record

HEADER = Header(
    scenario={"fleet": {"devices": 3}},
    seed=7,
    policy="sync",
    devices=3,
    rounds=1,
    learning="modelled",
    model_bytes=1000,
    bundle_bytes=500,
    fedtide="0",
)
HISTORY: list[events.Event] = [
    events.On(0, 0),
    events.On(0, 1),
    events.On(5, 2),
    events.RoundOpened(10, 1, "train", 0, 1, 1, 3),
    events.Invited(10, 1, (0, 1)),
    events.TaskGiven(10, 0, 1, 0),
    events.TaskGiven(10, 1, 1, 0),
    events.DownloadBegan(10, 0, 1500),
    events.DownloadEnded(20, 0, 1500),
    events.TrainingBegan(20, 0, 1),
    events.TrainingBegan(20, 1, 1),
    events.TrainingEnded(50, 1, 1, 1, 4, done=False, lost_ms=10),
    events.DroppedOut(50, 1, 1, "training", returns=False),
    events.Off(50, 1, "power cut"),
    events.TrainingEnded(70, 0, 1, 2, 8),
    events.UploadBegan(70, 0, 1, 1000),
    events.UploadEnded(90, 0, 1, 1000),
    events.Verdict(90, 0, 1, "accepted", "in time"),
    events.RoundClosed(90, 1, (events.Counted(0, 1, 12.0),)),
    events.ModelMade(95, 1, 1),
    events.Evaluated(95, 1, 0.5, 0.9),
    events.Finished(100, "1 rounds are done", succeeded=True),
]


def write(path: Path) -> str:
    with Recorder(path, HEADER) as recorder:
        for event in HISTORY:
            recorder.write(event)
    return recorder.digest


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    digest = write(tmp_path / name)
    record = read_record(tmp_path / name)
    assert record.complete
    assert record.digest == digest
    assert record.header == HEADER == read_header(tmp_path / name)
    assert list(record.events()) == HISTORY
    assert len(list(lines(tmp_path / name))) == len(HISTORY)


def test_the_totals_of_a_run(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    totals = read_record(tmp_path / "a.jsonl").totals
    assert (totals.spent.down_bytes, totals.spent.up_bytes) == (1500, 1000)
    assert (totals.tasks, totals.invited) == (2, [1, 1, 0])
    assert totals.dropped == {"training": 1}
    assert (totals.rounds_done, totals.model_version, totals.at_ms) == (1, 1, 100)


def test_an_interrupted_run_leaves_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with suppress(KeyboardInterrupt), Recorder(path, HEADER) as recorder:
        recorder.write(HISTORY[0])
        raise KeyboardInterrupt
    record = read_record(path)
    assert not record.complete
    assert list(record.events()) == HISTORY[:1]


def test_a_record_that_was_cut_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path)
    path.write_bytes(path.read_bytes()[:-130])
    record = read_record(path)
    assert not record.complete
    assert 0 < len(list(record.events())) < len(HISTORY)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'["on",5,2]', b'["on",6,2]', "not those that were recorded"),
        (b'["on",5,2]', b'["on",5,1]', "not those"),
        (b"[0,1]]", b"[0,3]]", "line 6 names a device"),
        (b"[[0,1,12.0,0]]", b"[[3,1,12.0,0]]", "line 20 names a device"),
        (b'["task",10,1,1,0]', b'["task",10,9,1,0]', "line 8 names a device"),
        (b'["on",5,2]', b'["on",5]', "line 4"),
        (b'["on",5,2]', b'["moon",5]', "line 4"),
        (b'["on",5,2]', b'["on",-5,2]', "line 4"),
        (b'["on",5,2]', b"\xff", "line 4"),
        (b'"seed":7', b'"seed":"x"', "no header"),
        (b'["end",', b'["on",0,0]\n["end",', "not those"),
    ],
)
def test_a_changed_record_is_noticed(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    path = tmp_path / "a.jsonl"
    write(path)
    raw = path.read_bytes()
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, new))
    with pytest.raises(DamagedError, match=said):
        read_record(path)


def test_what_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be read"):
        read_record(tmp_path / "none")
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(DamagedError, match="no header"):
        read_record(tmp_path / "text")
    packed = bytearray(gzip.compress(b"x" * 1000))
    packed[12] ^= 255
    (tmp_path / "damaged.gz").write_bytes(packed)
    with pytest.raises(DamagedError):
        read_record(tmp_path / "damaged.gz")
