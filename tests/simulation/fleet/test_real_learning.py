"""Real learning in a simulated fleet: the same record in one go and after an interruption."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_client.trainers.opening import available_runtimes
from fedtide.errors import ConfigError
from simulator.fleet import events
from simulator.fleet.policy_run import replay, run_policy
from simulator.fleet.record import Header, Recorder, read_record
from simulator.fleet.scenario import PolicyConfig, Scenario, policies
from tests.learning import tiny_learner
from tests.simulation.fleet.fleets import of_kind, scenario_of

pytestmark = pytest.mark.skipif(
    not available_runtimes(), reason="no onnxruntime in this environment"
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model and data that need nothing from elsewhere."""
    learner = tiny_learner()
    monkeypatch.setattr("simulator.fleet.profiles.check_data", lambda _: None)
    monkeypatch.setattr("simulator.fleet.real_learning.open_data_set", lambda *_: learner._data)
    monkeypatch.setattr("simulator.fleet.real_learning.named_bundle", lambda _: learner.bundle)


def learning(**rounds: Any) -> Scenario:
    raw = {"kind": "real", "data": "tiny", "model": "mnist_2nn"}
    table = {"count": 4, "cohort_size": 2, "devices_min": 3, **rounds}
    churn = {"kind": "churn", "on_s": 5.0, "off_s": 1.0}
    scenario = scenario_of({"fleet": {"devices": 4}, "availability": churn, "rounds": table})
    return msgspec.structs.replace(scenario, learning=msgspec.convert(raw, type(scenario.learning)))


def record(scenario: Scenario, path: Path, workers: int = 1, stop_at: int = 0) -> None:
    @contextmanager
    def sink(header: Header) -> Any:
        with Recorder(path, header) as recorder:
            yield recorder if not stop_at else Stopping(recorder, stop_at)

    policy = policies(scenario)[0]
    folder = path.with_suffix(".models")
    run_policy(scenario, policy, sink, workers=workers, models_folder=folder)


class Stopping:
    """Somebody presses Ctrl-C once this version is made."""

    def __init__(self, recorder: Recorder, version: int) -> None:
        self._recorder, self._version = recorder, version

    def write(self, event: events.Event) -> None:
        self._recorder.write(event)
        if isinstance(event, events.ModelMade) and event.version == self._version:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "rounds",
    [{}, {"mode": "buffered", "buffer_size": 2, "concurrency": 3}, {"weights": "fednova"}],
    ids=["synchronous", "buffered", "fednova"],
)
def test_the_same_record_in_one_go_or_two(tmp_path: Path, rounds: dict[str, Any]) -> None:
    scenario = learning(**rounds)
    whole, twice = tmp_path / "whole.jsonl", tmp_path / "twice.jsonl"
    record(scenario, whole)
    with pytest.raises(KeyboardInterrupt):
        record(scenario, twice, stop_at=2)
    assert not read_record(twice).complete
    record(scenario, twice)
    assert read_record(twice).digest == read_record(whole).digest
    found = list(read_record(whole).events())
    quality = of_kind(events.Evaluated, found)
    assert [told.version for told in quality] == [0, 1, 2, 3, 4]
    assert len({told.loss for told in quality}) == 5
    events_count, digest, complete = replay(whole)
    assert (events_count, digest, complete) == (len(found), read_record(whole).digest, True)


def test_a_policy_ends_when_its_model_is_good_enough(tmp_path: Path) -> None:
    scenario = learning(count=30)
    enough = msgspec.structs.replace(scenario.learning, stop_at_accuracy=0.5)
    scenario = msgspec.structs.replace(scenario, learning=enough)
    path = tmp_path / "record.jsonl.gz"
    record(scenario, path)
    told = list(read_record(path).events())
    accuracies = [event.accuracy or 0 for event in told if isinstance(event, events.Evaluated)]
    made = [event.version for event in told if isinstance(event, events.ModelMade)]
    first = next(version for version, value in enumerate(accuracies) if value >= 0.5)
    assert made[-1] == first + 1 < 30
    assert isinstance(told[-1], events.Finished)
    assert told[-1].succeeded
    assert f"model {first} has an accuracy of" in told[-1].reason
    replay(path)


def test_an_encoding_costs_what_it_costs(tmp_path: Path) -> None:
    """Time on the links, and accuracy: the models are those of rounded updates."""
    told = {}
    for encoding in ("f32", "f16"):
        path = tmp_path / f"{encoding}.jsonl.gz"
        record(msgspec.structs.replace(learning(), encoding=encoding), path)
        found = list(read_record(path).events())
        told[encoding] = [event.loss for event in of_kind(events.Evaluated, found)]
    assert told["f16"][0] == told["f32"][0], "the initial model's"
    for narrow, wide in zip(told["f16"][1:], told["f32"][1:], strict=True):
        assert narrow != wide
        assert narrow == pytest.approx(wide, rel=0.01)


@pytest.mark.parametrize(
    ("rounds", "plan", "said"),
    [
        ({"weights": "fednova"}, {}, 'rounds.weights is "fednova", but the bundle shares'),
        ({}, {"optimizer": "adamw"}, "plan.optimizer is 'adamw', which the bundle does not offer"),
        ({}, {"optimizer_state": "kept", "momentum": 0.9}, ".* keep nothing between rounds"),
    ],
)
def test_what_no_coordinator_would_run_is_refused_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rounds: dict[str, Any],
    plan: dict[str, Any],
    said: str,
) -> None:
    """Also while a policy before it would run."""
    opened = tiny_learner().bundle
    first, *others = opened.manifest.tensors
    shared = msgspec.structs.replace(first, kind="statistic", shared=True)
    manifest = msgspec.structs.replace(
        opened.manifest, optimizers=("sgd",), tensors=(shared, *others)
    )
    bundle = replace(opened, manifest=manifest)
    monkeypatch.setattr("simulator.fleet.real_learning.named_bundle", lambda _: bundle)
    monkeypatch.setattr("simulator.fleet.real_learning.open_workers", None)
    fine, other = PolicyConfig(name="fine"), PolicyConfig(name="other", rounds=rounds, plan=plan)
    scenario = msgspec.structs.replace(learning(), policy=(fine, other))
    with pytest.raises(ConfigError, match=f"^policy 'other': {said}"):
        record(scenario, tmp_path / "record.jsonl.gz")
    assert not list(tmp_path.iterdir())
