"""A simulation's learning on a Ray cluster: what the suite over all workers does not ask."""

from __future__ import annotations

import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fedtide.cli import main
from fedtide.errors import ConfigError, StateError
from fedtide.safetensors import read_initial_model
from simulator.fleet.record import read_record
from simulator.learning.learner import Train
from simulator.learning.workers import InProcess, Task, open_workers
from tests.contract.ray_nodes import HAS_RAY, NodesOfRay
from tests.learning import PLAN, models_of, rounds, tiny_learner

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
