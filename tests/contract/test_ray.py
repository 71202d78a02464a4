"""A simulation's learning on a Ray cluster: what the suite over all workers does not ask."""

from __future__ import annotations

import itertools
import re
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtide.cli import main
from fedtide.errors import ConfigError, StateError
from fedtide.safetensors import read_initial_model
from simulator.fleet.record import read_record
from simulator.learning.learner import Train
from simulator.learning.workers import InProcess, Task, open_workers
from tests.contract.ray_nodes import HAS_RAY, NodesOfRay
from tests.learning import PLAN, endless_learner, models_of, rounds, tiny_learner

needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is not installed here: make test-ray")
SCENARIO = """
name = "tiny"
hours_max = 1

[fleet]
devices = 8

[learning]
kind = "real"
data = "digits"
model = "digits"

[rounds]
count = 4
cohort_size = 3
devices_min = 3
"""


@needs_ray
def test_a_lost_node_changes_no_bit(nodes: NodesOfRay) -> None:
    models = models_of(workers := nodes.open(tiny_learner()))
    alone = models_of(InProcess(tiny_learner()))
    assert workers.count == 2
    rounds(models, 1, 2)
    nodes.lose_a_node()
    rounds(models, 3, 5)
    rounds(alone, 1, 5)
    assert [v.digest for v in models.history] == [v.digest for v in alone.history]
    workers.close()
    nodes.add_a_node()


@needs_ray
def test_a_node_lost_among_tasks_changes_no_bit(nodes: NodesOfRay) -> None:
    learner = tiny_learner()
    tasks = [Task(Train(n % 8, PLAN), read_initial_model(learner.bundle)) for n in range(40)]
    wanted = [done.vector.tobytes() for done in InProcess(learner).train(tasks)]
    workers = nodes.open(learner)
    got = []
    for done in workers.train(tasks):
        got.append(done.vector.tobytes())
        if len(got) == 5:
            nodes.lose_a_node()
    assert got == wanted
    workers.close()
    nodes.add_a_node()


@needs_ray
def test_when_all_nodes_are_lost_it_is_said(nodes: NodesOfRay) -> None:
    workers = nodes.open(tiny_learner())
    model = read_initial_model(tiny_learner().bundle)
    results = workers.train([Task(Train(0, PLAN), model)] * 40)
    next(results)
    nodes.lose_a_node()
    nodes.lose_a_node()
    with pytest.raises(StateError, match="all 2 workers of the Ray cluster are lost"):
        list(results)
    with pytest.raises(StateError, match="all 2 workers"):
        workers.begin_evaluation(model, 1)
    workers.close()
    nodes.add_a_node()
    nodes.add_a_node()


@needs_ray
def test_workers_that_hang_are_told_then_given_up(
    nodes: NodesOfRay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    learner = endless_learner()
    workers = nodes.open(learner)
    monkeypatch.setattr("simulator.learning.ray_workers.SILENCE_TOLD_S", 0.25)
    monkeypatch.setattr("simulator.learning.ray_workers.SILENCES_MAX", 3)
    both = "; ".join(rf"worker {n} of 2 was given training device 0 [0-9]+ s ago" for n in (0, 1))
    model = read_initial_model(learner.bundle)
    try:
        with pytest.raises(StateError, match=f"^no worker has answered for 0.75 s: {both}\n"):
            list(workers.train([Task(Train(0, PLAN), model)] * 3))
    finally:
        workers.close()
    told = [record.getMessage() for record in caplog.records if record.name.endswith("ray_workers")]
    assert [re.sub(":.*", "", line) for line in told] == [
        f"no worker has answered for {seconds} s" for seconds in ("0.25", "0.5", "0.75")
    ]


@needs_ray
def test_a_worker_that_is_slow_among_others_is_not_silent(
    nodes: NodesOfRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as another one answers between two looks, nobody is told anything."""
    from ray.exceptions import GetTimeoutError

    from simulator.learning.ray_workers import RayWorkers, _Job

    workers = nodes.open(tiny_learner())
    assert isinstance(workers, RayWorkers)
    answers = iter([5, 4, 3, 3, 2, 2, 2])
    monkeypatch.setattr(workers, "_unanswered", lambda: [None] * next(answers))
    times: list[int] = []
    monkeypatch.setattr(workers, "_silent", lambda count, _: times.append(count))
    waits = iter([GetTimeoutError()] * 7)

    def get(_result: Any, timeout: float) -> str:
        for error in waits:
            raise error
        return "the result"

    monkeypatch.setattr("ray.get", get)
    assert workers._awaited(_Job(Train(0, PLAN), None)) == "the result"
    assert times == [1, 1, 2]
    workers.close()


@needs_ray
def test_a_model_is_stored_once_as_long_as_it_is_here(
    nodes: NodesOfRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The updates of a buffer start from this version and that."""
    import ray

    from simulator.learning.ray_workers import RayWorkers

    learner = tiny_learner()
    workers = nodes.open(learner)
    assert isinstance(workers, RayWorkers)
    counted, put = itertools.count(), ray.put

    def counting(value: Any) -> Any:
        next(counted)
        return put(value)

    monkeypatch.setattr("ray.put", counting)
    versions = [read_initial_model(learner.bundle) + np.float32(n) for n in range(3)]
    wanted = [
        done.vector.tobytes()
        for done in InProcess(learner).train([Task(Train(0, PLAN), one) for one in versions])
    ]
    for _ in range(4):
        done = workers.train([Task(Train(0, PLAN), one) for one in versions])
        assert [one.vector.tobytes() for one in done] == wanted
        workers.begin_evaluation(versions[-1], 1).result()
    assert next(counted) == len(workers._stored) == 3
    del versions[1:]
    assert len(workers._stored) == 1
    workers.close()


@needs_ray
def test_a_simulation_has_the_same_digest(
    nodes: NodesOfRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = tiny_learner()
    monkeypatch.setattr("simulator.fleet.real_learning.open_data_set", lambda *_: learner._data)
    monkeypatch.setattr("simulator.fleet.real_learning.named_bundle", lambda _: learner.bundle)
    scenario = tmp_path / "tiny.toml"
    scenario.write_text(SCENARIO)
    for out, where in [("one", ["--workers", "1"]), ("ray", ["--ray", nodes.address()])]:
        words = ["simulate", str(scenario), "--plain", "--out", str(tmp_path / out), *where]
        assert main(words) == 0
    one, ray = [read_record(*(tmp_path / out).glob("*.jsonl.gz")) for out in ("one", "ray")]
    assert one.complete
    assert one.digest == ray.digest


@needs_ray
def test_no_cluster_is_a_message() -> None:
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at '127.0.0.1:1': .*refused"):
        open_workers(tiny_learner(), "127.0.0.1:1")
    with pytest.raises(ConfigError, match="'ray://here': not HOST:PORT"):
        open_workers(tiny_learner(), "ray://here")


@needs_ray
@pytest.mark.slow
def test_another_program_at_the_address_is_a_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match="no Ray cluster answers"):
            open_workers(tiny_learner(), address)


@needs_ray
def test_other_versions_are_refused(nodes: NodesOfRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "0.1")
    with pytest.raises(ConfigError, match=r"has fedtide .*this machine has .*onnxruntime 0\.1,"):
        nodes.open(tiny_learner())


class Unreadable:
    """As on a node where something is missing."""

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, ("missing_here",)


@needs_ray
def test_a_node_that_lacks_something_is_a_message(
    nodes: NodesOfRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = tiny_learner()
    monkeypatch.setattr(learner, "portable", Unreadable)
    with pytest.raises(ConfigError, match=r"cannot start .*No module named 'missing_here'"):
        nodes.open(learner)


def test_without_ray_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "simulator.learning.ray_workers", raising=False)
    with pytest.raises(ConfigError, match="Ray is not installed here"):
        open_workers(tiny_learner(), "127.0.0.1:6379")
