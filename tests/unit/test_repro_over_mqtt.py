"""`--over-mqtt` without processes: the comparison, what is prepared, what is refused, the guard."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from fedtide import cli
from fedtide.bundle import open_bundle_dir
from fedtide.dataset import Examples, load_dataset
from fedtide.errors import ConfigError, StateError
from repro.experiment import Experiment
from repro.real_federation import prepare
from repro.report import blocks
from repro.same_bits import OverMqtt, compare
from repro.setting import devices_of
from simulator.learning.datasets.digits import Digits
from tests import bundles

SIMULATED = {0: "a" * 64, 1: "b" * 64, 2: "c" * 64}


def experiment() -> Experiment:
    return Experiment(
        model="digits",
        data="digits",
        partition="iid",
        devices=4,
        fraction=0.5,
        epochs=1,
        batch_size=10,
        target=0.9,
        rounds_max=3,
        learning_rate=0.1,
    )


def test_the_first_version_that_differs() -> None:
    assert compare(SIMULATED, {}).same == 0
    part = compare(SIMULATED, {0: "a" * 64, 1: "b" * 64})
    assert (part.same, part.complete) == (2, False)
    whole = compare(SIMULATED, {**SIMULATED, 3: "d" * 64})
    assert whole.complete
    assert whole.verdict() == "same bits for 3 of 3 versions"
    other = compare(SIMULATED, {0: "a" * 64, 1: "d" * 64, 2: "c" * 64})
    assert other.complete
    assert other.verdict() == (
        "OTHER bits from version 1 on: dddddddddddd over MQTT, bbbbbbbbbbbb in the simulator"
    )


def test_what_is_prepared_is_what_the_simulator_trains_on(tmp_path: Path) -> None:
    bundle, data = open_bundle_dir(bundles.build("tiny_cnn")), Digits()
    parts = devices_of(experiment(), data)
    for _ in range(2):
        prepare(experiment(), bundle, data, parts, tmp_path)
    assert open_bundle_dir(tmp_path / "bundle").digest == bundle.digest
    for number, part in enumerate(parts):
        path = tmp_path / "data" / f"device-{number:05}.npz"
        there = load_dataset(path, bundle.manifest)
        assert there.held_out is None
        for mine, theirs in zip(there.training, data.examples(part), strict=True):
            assert mine.dtype == theirs.dtype
            assert np.array_equal(mine, theirs)
    with pytest.raises(StateError, match="another experiment"):
        prepare(replace(experiment(), seed=1), bundle, data, parts, tmp_path)


class Augmented(Digits):
    def examples(self, indices: NDArray[np.int64], seed: int = 0) -> Examples:
        x, y = super().examples(indices)
        return Examples(np.roll(x, seed), y)


def test_data_that_change_with_the_round_are_refused(tmp_path: Path) -> None:
    bundle, data = open_bundle_dir(bundles.build("tiny_cnn")), Augmented()
    with pytest.raises(ConfigError, match="looks different in each round"):
        prepare(experiment(), bundle, data, devices_of(experiment(), data), tmp_path)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--over-mqtt", "--partition", "iid"], "needs a learning rate"),
        (["--over-mqtt", "--learning-rate", "0.1"], "the flags name 2"),
        (["--bundle", "somewhere"], "give its results a folder of their own with --out"),
        (["--bundle", "somewhere", "--list"], "goes with a row alone"),
    ],
)
def test_flags_that_name_no_single_run(
    flags: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["repro", "fedavg", "--table", "2", "--row", "cnn-e5-b10", *flags]) == 2
    assert why in capsys.readouterr().err


def test_the_guard_ends_those_whose_starter_is_gone() -> None:
    """Its pipe closes, as it does when the process at the other end is killed."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        subprocess.run(
            [sys.executable, "-m", "repro.guard"], input=b"%d\n" % child.pid, check=True, timeout=30
        )
        assert child.wait(30) != 0
    finally:
        child.kill()
        child.wait()


def test_the_documents_words_for_it() -> None:
    run = OverMqtt(
        "cnn",
        experiment(),
        compare(SIMULATED, SIMULATED),
        1.5,
        "c" * 64,
        ((0, 0.1), (1, 0.8), (2, 0.95)),
        61.5,
        2_500_000_000,
        {"mosquitto": "2.0.11"},
    )
    assert msgspec.json.decode(msgspec.json.encode(run), type=OverMqtt) == run
    text = blocks({}, None, [], run)["over mqtt"]
    assert text.startswith("`cnn: same bits for 3 of 3 versions`")
    assert "| to the target | 90% in 1.5 rounds; round 2: 95.00% |" in text
    assert "at most 2,500 MB" in text
    assert blocks({}, None, [])["over mqtt"] == "Not run."
