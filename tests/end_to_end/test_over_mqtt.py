"""One experiment in the simulator and with real processes over Mosquitto: the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coordinator.cohort import select_cohort
from repro.experiment import Experiment
from repro.over_mqtt import Options, run_both
from repro.reporting import read_over_mqtt
from simulator.device_names import device_name
from tests import bundles

DEVICES = 8
ROUNDS = 3

pytestmark = pytest.mark.slow


def experiment() -> Experiment:
    return Experiment(
        model=str(bundles.build("tiny_cnn")),
        data="digits",
        partition="iid",
        devices=DEVICES,
        fraction=0.5,
        epochs=2,
        batch_size=10,
        target=0.999,
        rounds_max=ROUNDS,
        learning_rate=0.1,
    )


def test_real_processes_make_the_simulators_models_and_a_difference_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_both(experiment(), "digits", Options(tmp_path, 2)) == 0
    assert last_line(capsys) == "digits: same bits for 3 of 3 versions"
    # A run that goes on does so with the models that it has.
    assert run_both(experiment(), "digits", Options(tmp_path, ROUNDS)) == 0
    assert last_line(capsys) == "digits: same bits for 4 of 4 versions"
    result = read_over_mqtt(tmp_path)
    assert result is not None
    journal = (tmp_path / "digits" / "lr0.1" / "journal.jsonl").read_text().splitlines()
    assert result.digest == json.loads(journal[-1])["digest"]
    assert [number for number, _ in result.curve] == [0, 1, 2, 3]

    names = [device_name(number) for number in range(DEVICES)]
    early, late = (set(select_cohort(names, 4, 1.0, 0, number)) for number in (1, 2))
    other = tmp_path / "digits" / "mqtt-lr0.1" / "data" / f"{min(late - early)}.npz"
    turn_around(other)
    for state in ("coordinator", *names):
        keep_away(tmp_path / "digits" / "mqtt-lr0.1" / state)
    assert run_both(experiment(), "digits", Options(tmp_path, ROUNDS)) == 1
    assert last_line(capsys).startswith("digits: OTHER bits from version 2 on: ")


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def turn_around(path: Path) -> None:
    """The same examples in another order."""
    with np.load(path) as arrays:
        x, y = arrays["x"][::-1], arrays["y"][::-1]
    np.savez(path, x=x, y=y)


def keep_away(state: Path) -> None:
    """Begin anew, with what was prepared."""
    state.rename(state.with_name(f"{state.name}-before"))
