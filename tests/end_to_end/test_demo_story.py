"""What the demo tells of a run: of rounds that count, of those that do not, and of the end."""

from __future__ import annotations

import io
import json
import sqlite3
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from demo.outcome import (
    ROUNDS,
    ModelRecord,
    Outcome,
    RoundRecord,
    accuracy_by_round,
    count_answers,
    fates,
    read_rounds,
)
from demo.scene import DeviceScene, Fate, Scene
from demo.view import PlainView, render, round_line
from fedtide.measures import Measure, Metrics
from fedtide.messages import Presence, Status

NAMES = ("device-01", "device-02", "device-03")


def a_scene(rounds: int = 2) -> Scene:
    devices = {name: DeviceScene(name, (0, 1), "portable") for name in NAMES}
    return Scene(devices, rounds, "mosquitto", quorum=2)


def collecting(scene: Scene, round_id: int, version: int, *accepted: str) -> None:
    scene.status(
        Status(
            phase="collecting",
            round_id=round_id,
            model_version=version,
            accepted=accepted,
            accuracy=0.5,
        )
    )


def of_round(scene: Scene, round_id: int) -> list[Fate | None]:
    return [device.fates.get(round_id) for device in scene.devices.values()]


def screen(scene: Scene) -> str:
    text = io.StringIO()
    Console(file=text, width=140).print(render(scene, 140))
    return text.getvalue()


@pytest.mark.parametrize("heard", [True, False])
def test_a_round_with_too_few_updates_is_abandoned_and_counts_nothing(heard: bool) -> None:
    scene = a_scene()
    collecting(scene, 1, 0, "device-01")
    scene.killed("device-03", 1)
    if heard:
        scene.status(Status(phase="backing_off", round_id=1, model_version=0))
        assert of_round(scene, 1) == [Fate.ABANDONED, Fate.ABANDONED, Fate.KILLED]
    collecting(scene, 2, 0)
    assert of_round(scene, 1) == [Fate.ABANDONED, Fate.ABANDONED, Fate.KILLED]
    line = round_line(scene, 1)
    assert line.startswith("round  1 · abandoned, 1 update of at least 2 · killed: 03")
    assert scene.rounds_done == 0
    assert "□ round abandoned" in screen(scene)


def test_a_round_that_made_a_model_is_not_abandoned_though_the_next_one_waits() -> None:
    scene = a_scene()
    collecting(scene, 1, 0, "device-01", "device-02")
    scene.status(Status(phase="waiting", round_id=1, model_version=1))
    collecting(scene, 2, 1)
    assert of_round(scene, 1) == [Fate.COUNTED, Fate.COUNTED, Fate.ABSENT]
    assert scene.abandoned == {}


def test_after_the_last_round_comes_the_final_evaluation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scene = a_scene(rounds=1)
    scene.step = ""
    view = PlainView(scene)
    collecting(scene, 1, 0, *NAMES)
    view.refresh()
    assert capsys.readouterr().out == ""
    collecting(scene, 2, 1)
    scene.restarted("device-03")
    collecting(scene, 2, 1, "device-01", "device-02")
    scene.presence("device-01", Presence(online=True, phase="training", round_id=2))
    view.refresh()
    assert "final evaluation: device-03 starts again" in screen(scene)
    assert "round 2" not in screen(scene)
    assert "1 of 1 rounds" in screen(scene)
    scene.status(Status(phase="finished", round_id=2, model_version=1))
    scene.finish()
    view.refresh()
    assert of_round(scene, 2) == [None, None, None]
    assert {device.doing for device in scene.devices.values()} == {"done"}
    assert screen(scene).count(" done") == 1 + len(NAMES)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("round  1 · 3 updates")
    assert last == "final evaluation · 2 of 3 devices have run the final model"


def test_the_store_has_the_last_word_on_what_counts(tmp_path: Path) -> None:
    store = sqlite3.connect(tmp_path / "coordinator.db")
    measured = Metrics(8, {"loss": Measure(8.0, 8.0), "accuracy": Measure(4.0, 8.0)})
    metrics = msgspec.json.encode(measured).decode()
    store.executescript(
        f"""
        CREATE TABLE rounds (round_id, kind, opened_at_ms, closed_at_ms, outcome, cohort_json);
        CREATE TABLE updates (round_id, device_id, verdict, payload_bytes);
        CREATE TABLE models (version, round_id, metrics_json);
        INSERT INTO rounds VALUES (1, 'train', 0, 1500, 'abandoned', '{json.dumps(NAMES)}');
        INSERT INTO rounds VALUES (2, 'train', 2000, 3000, 'done', '{json.dumps(NAMES)}');
        INSERT INTO rounds VALUES (3, 'evaluate', 3000, 3100, 'done', '{json.dumps(NAMES)}');
        INSERT INTO updates VALUES (3, 'device-01', 'accepted', 0);
        INSERT INTO updates VALUES (3, 'device-02', 'discarded', 0);
        INSERT INTO updates VALUES (1, 'device-01', 'accepted', 100);
        INSERT INTO updates VALUES (1, 'device-02', 'discarded', 100);
        INSERT INTO updates VALUES (2, 'device-01', 'accepted', 100);
        INSERT INTO updates VALUES (2, 'device-02', 'discarded', 100);
        INSERT INTO models VALUES (1, 2, '{metrics}');
        """
    )
    store.close()
    abandoned, done = read_rounds(tmp_path)
    assert (abandoned.accepted, abandoned.in_vain) == ((), ("device-01",))
    assert (done.accepted, done.in_vain, done.accuracy) == (("device-01",), (), 0.5)
    assert [record.upload_bytes for record in (abandoned, done)] == [0, 100]
    assert count_answers(tmp_path) == 1
    assert told(abandoned, done) == {
        "device-01": [Fate.ABANDONED, Fate.COUNTED],
        "device-02": [Fate.ABANDONED, Fate.LATE],
        "device-03": [Fate.ABANDONED, Fate.ABSENT],
    }


def told(*records: RoundRecord) -> dict[str, list[Fate]]:
    return fates(list(records), a_scene())


def test_an_abandoned_round_leaves_the_accuracy_as_it_was() -> None:
    models = [ModelRecord(0, 0.1, 2.0), ModelRecord(2, 0.5, 1.0), ModelRecord(3, 0.75, 0.5)]
    assert accuracy_by_round(models, 4) == (0.1, 0.1, 0.5, 0.75, 0.75)


def test_a_failure_says_what_would_help() -> None:
    said = an_outcome(rounds=10, accuracy=0.936).failure()
    assert said is not None
    assert said.startswith("after 10 rounds the federation's 93.6% is 4.2 points below")
    assert said.endswith(f"more rounds close the gap: --rounds {ROUNDS}")
    said = an_outcome(rounds=ROUNDS, accuracy=0.936).failure()
    assert said is not None
    assert "--rounds" not in said
    said = an_outcome(rounds=1, accuracy=0.2).failure()
    assert said is not None
    assert "after 1 round the federation's 20.0% is no better" in said
    assert an_outcome(rounds=10, accuracy=0.97).failure() is None


def an_outcome(*, rounds: int, accuracy: float) -> Outcome:
    return Outcome(
        accuracy=accuracy,
        central_accuracy=0.978,
        best_single_accuracy=0.203,
        rounds=rounds,
        abandoned=0,
        dropouts=0,
        late=0,
        seconds=1.0,
        seed=1,
        broker="mosquitto",
        faults=True,
        test_examples=359,
        parameters=1,
        upload_bytes=0,
        inference_accuracy=accuracy,
        accuracy_by_round=(),
        single_accuracies={},
        runtimes={},
        digits={},
        versions={},
    )
