"""One suite over everything that does a simulation's learning: the same bits from all of them."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edge_client.trainers.opening import available_runtimes
from fedtide.errors import ConfigError, DataError, StateError
from fedtide.plan import Plan
from fedtide.safetensors import read_initial_model
from simulator.learning.learner import Learned, Learner, Train
from simulator.learning.models import Models, Part
from simulator.learning.workers import InProcess, Processes, Task, Workers, split_batches
from tests.learning import Points, tiny_learner

pytestmark = pytest.mark.skipif(
    not available_runtimes(), reason="no onnxruntime in this environment"
)

HAS_RAY = importlib.util.find_spec("ray") is not None
PLAN = Plan(epochs=2, batch_size=10, learning_rate=0.1)


class NodesOfRay:
    """A cluster of two nodes on this machine, started when first needed."""

    def __init__(self) -> None:
        self._cluster: Any = None

    def open(self, learner: Learner) -> Workers:
        from simulator.learning.ray_workers import RayWorkers

        return RayWorkers(learner, self.address())

    def address(self) -> str:
        if self._cluster is None:
            from ray.cluster_utils import Cluster

            self._cluster = Cluster()
            for _ in range(2):
                self.add_a_node()
        return str(self._cluster.address)

    def lose_a_node(self) -> None:
        node = next(iter(self._cluster.worker_nodes))
        self._cluster.remove_node(node, allow_graceful=False)

    def add_a_node(self) -> None:
        self._cluster.add_node(num_cpus=1, include_dashboard=False, node_ip_address="127.0.0.1")
        self._cluster.wait_for_nodes()

    def stop(self) -> None:
        if self._cluster is not None:
            self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[NodesOfRay]:
    nodes = NodesOfRay()
    yield nodes
    nodes.stop()


KINDS: dict[str, Callable[[Learner, NodesOfRay], Workers]] = {
    "in_process": lambda learner, _: InProcess(learner),
    "one_process": lambda learner, _: Processes(learner, 1),
    "three_processes": lambda learner, _: Processes(learner, 3),
    "ray": lambda learner, nodes: nodes.open(learner),
}


@pytest.fixture(params=KINDS)
def workers(request: pytest.FixtureRequest, nodes: NodesOfRay) -> Iterator[Workers]:
    if request.param == "ray" and not HAS_RAY:
        pytest.skip("ray is not installed here: make test-ray")
    workers = KINDS[request.param](tiny_learner(), nodes)
    yield workers
    workers.close()


def expected(device: int) -> tuple[Learned, np.ndarray[Any, Any]]:
    learner = tiny_learner()
    vector = read_initial_model(learner.bundle).copy()
    return learner.train(Train(device, PLAN), vector), vector


def test_deltas_come_in_the_order_of_the_tasks(workers: Workers) -> None:
    model = read_initial_model(tiny_learner().bundle)
    devices = [3, 0, 7, 3, 5, 1, 2, 6, 4, 0, 3]
    tasks = [Task(Train(device, PLAN), model) for device in devices]
    got = [(done.reply, done.vector.copy()) for done in workers.train(tasks)]
    for device, (reply, delta) in zip(devices, got, strict=True):
        learned, wanted = expected(device)
        assert isinstance(reply, Learned)
        assert (reply.examples, reply.steps, reply.losses) == (50, 10, learned.losses)
        assert delta.tobytes() == wanted.tobytes()


def test_an_evaluation_goes_on_beside_training(workers: Workers) -> None:
    learner = tiny_learner()
    model = read_initial_model(learner.bundle)
    evaluation = workers.begin_evaluation(model, learner.test_batches)
    assert len(list(workers.train([Task(Train(0, PLAN), model)] * 9))) == 9
    parts = [part for measured in evaluation.result() for part in measured.parts]
    assert [part.examples for part in parts] == [256, 256, 88]


def models_of(workers: Workers, **settings: Any) -> Models:
    learner = tiny_learner()
    return Models(learner.bundle, workers, learner.test_batches, **settings)


def rounds(models: Models, first: int, last: int) -> None:
    for version in range(first, last + 1):
        parts = [Part(device, PLAN, version - 1) for device in (version % 8, (version + 3) % 8)]
        models.advance(version, parts)
    models.settle()


def test_a_federation_has_the_same_bits(workers: Workers) -> None:
    models, alone = models_of(workers), models_of(InProcess(tiny_learner()))
    rounds(models, 1, 6)
    rounds(alone, 1, 6)
    assert [v.digest for v in models.history] == [v.digest for v in alone.history]
    assert [v.metrics for v in models.history] == [v.metrics for v in alone.history]
    first, last = models.history[0].metrics, models.history[-1].metrics
    assert first is not None
    assert last is not None
    assert (last.accuracy or 0) > (first.accuracy or 0)


def test_an_error_of_a_learner_is_told(nodes: NodesOfRay) -> None:
    class Wrong(Points):
        def examples(self, indices: Any, seed: int = 0) -> Any:
            raise DataError("example 3 is not there")

    good = tiny_learner()
    learner = Learner(good.bundle, Wrong(good.bundle), [np.arange(10)])
    workers = Processes(learner, 2)
    with pytest.raises(Exception, match="example 3 is not there") as caught:
        list(workers.train([Task(Train(0, PLAN), read_initial_model(good.bundle))]))
    assert getattr(caught.value, "exit_code", None) == DataError.exit_code
    workers.close()


def test_a_killed_worker_is_a_message() -> None:
    learner = tiny_learner()
    model = read_initial_model(learner.bundle)
    workers = Processes(learner, 2)
    results = workers.train([Task(Train(0, PLAN), model)] * 50)
    next(results)
    pid = workers._processes[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(StateError, match="SIGKILL"):
        list(results)
    workers.close()


@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed here: make test-ray")
def test_a_lost_node_changes_no_bit(nodes: NodesOfRay) -> None:
    workers = nodes.open(tiny_learner())
    models, alone = models_of(workers), models_of(InProcess(tiny_learner()))
    rounds(models, 1, 2)
    nodes.lose_a_node()
    rounds(models, 3, 5)
    rounds(alone, 1, 5)
    assert [v.digest for v in models.history] == [v.digest for v in alone.history]
    workers.close()
    nodes.add_a_node()


@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed here: make test-ray")
def test_no_cluster_is_a_message() -> None:
    from simulator.learning.ray_workers import RayWorkers

    with pytest.raises(ConfigError, match="no Ray cluster"):
        RayWorkers(tiny_learner(), "127.0.0.1:1")


def test_batches_are_divided_whole() -> None:
    for batches in range(1, 30):
        for parts in range(1, 6):
            works = split_batches(batches, parts)
            covered = [n for w in works for n in range(w.first_batch, w.first_batch + w.batches)]
            assert covered == list(range(batches))
