"""One suite over everything that does a simulation's learning: the same bits from all of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edge_client.trainers.opening import available_runtimes
from fedtide.errors import DataError, FedtideError, StateError
from fedtide.safetensors import read_initial_model
from simulator.learning.learner import Learned, Learner, Train
from simulator.learning.workers import InProcess, Processes, Task, Workers, split_batches
from tests.bundles import ROOT, build
from tests.contract.ray_nodes import HAS_RAY, NodesOfRay
from tests.learning import PLAN, models_of, rounds, tiny_learner, told_learner, troubled_learner

pytestmark = pytest.mark.skipif(
    not available_runtimes(), reason="no onnxruntime in this environment"
)


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


def test_an_evaluation_begins_while_results_wait(workers: Workers) -> None:
    learner = tiny_learner()
    model = read_initial_model(learner.bundle)
    results = workers.train([Task(Train(0, PLAN), model)] * 20)
    next(results)
    begun = [workers.begin_evaluation(model, learner.test_batches) for _ in range(3)]
    assert len(list(results)) == 19
    first, *others = [evaluation.result() for evaluation in begun]
    assert others == [first, first]


def test_results_that_nobody_wants_take_no_room(workers: Workers) -> None:
    model = read_initial_model(tiny_learner().bundle)
    for taken in (0, 1, 2, 3, 1, 1, 1):
        results = workers.train([Task(Train(1, PLAN), model)] * 9)
        for _ in range(taken):
            next(results)
        results.close()  # type: ignore[attr-defined]
    got = [done.vector.copy() for done in workers.train([Task(Train(2, PLAN), model)] * 9)]
    _, wanted = expected(2)
    assert [delta.tobytes() for delta in got] == [wanted.tobytes()] * 9


def test_a_device_with_much_to_do_keeps_no_other_from_training() -> None:
    learner, _ = told_learner(20)
    model = read_initial_model(learner.bundle)
    workers = Processes(learner, 2)
    try:
        tasks = [Task(Train(device, PLAN), model) for device in range(20)]
        assert len(list(workers.train(tasks))) == 20
    finally:
        workers.close()


def test_an_evaluation_fills_the_gaps_that_training_leaves() -> None:
    learner, data = told_learner(5)
    model = read_initial_model(learner.bundle)
    batches = learner.test_batches
    os.read(data.reads, 100)
    workers = Processes(learner, 1)
    try:
        evaluation = workers.begin_evaluation(model, batches)
        tasks = [Task(Train(device, PLAN), model) for device in (4, 1, 2, 3)]
        assert len(list(workers.train(tasks))) == 4
        assert len(evaluation.result()) == batches == 3
    finally:
        workers.close()
    assert os.read(data.reads, 100) == b"ettttee"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "in_process"])
def test_an_error_is_told_and_ends_its_task_only(kind: str, nodes: NodesOfRay) -> None:
    if kind == "ray" and not HAS_RAY:
        pytest.skip("ray is not installed here: make test-ray")
    learner = troubled_learner()
    model = read_initial_model(learner.bundle)
    workers = KINDS[kind](learner, nodes)
    for device, text, exit_code in [
        (1, "^example 3 is not there$", DataError.exit_code),
        (2, "training device 2 failed: ZeroDivisionError: float division by zero .*line", 1),
        (3, "training device 3 failed: MemoryError .*learning.py, line", 1),
        (4, "training device 4 failed: KeyboardInterrupt", 1),
        (5, "training device 5 failed: SystemExit: 3", 1),
    ]:
        results = workers.train([Task(Train(n, PLAN), model) for n in (0, device, 0, 0)])
        assert next(results).vector.any()
        with pytest.raises(FedtideError, match=text) as caught:
            next(results)
        assert caught.value.exit_code == exit_code
        assert len(list(workers.train([Task(Train(0, PLAN), model)] * 9))) == 9
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
    with pytest.raises(StateError, match="SIGKILL"):
        workers.begin_evaluation(model, 1)
    workers.close()


def test_a_worker_that_hangs_is_told_then_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("simulator.learning.workers.SILENCE_TOLD_S", 0.25)
    monkeypatch.setattr("simulator.learning.workers.SILENCES_MAX", 3)
    learner = tiny_learner()
    model = read_initial_model(learner.bundle)
    workers = Processes(learner, 2)
    pid = workers._processes[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        said = rf"worker 0 of 2 \(process {pid}\) has been at training device 5 for [0-9]+ s"
        with pytest.raises(StateError, match=rf"^no worker has answered for 0.75 s: {said}"):
            list(workers.train([Task(Train(5, PLAN), model)] * 4))
        told = [record.getMessage() for record in caplog.records]
        assert len(told) >= 3
        assert all(re.search(said, line) for line in told[-3:])
        with pytest.raises(StateError, match="no worker has answered"):
            workers.begin_evaluation(model, 1)
    finally:
        os.kill(pid, signal.SIGCONT)
        workers.close()


def test_results_of_one_training_do_not_wait_for_another() -> None:
    workers = Processes(tiny_learner(), 1)
    tasks = [Task(Train(0, PLAN), read_initial_model(tiny_learner().bundle))] * 99
    first, second = workers.train(tasks), workers.train(tasks)
    next(first)
    with pytest.raises(RuntimeError, match="not finished"):
        list(second)
    assert len(list(first)) == 98
    workers.close()


ENDLESS = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it
import numpy as np
from fedtide.plan import Plan
from simulator.learning.learner import Train
from simulator.learning.workers import Processes, Task
from tests.learning import endless_learner
learner = endless_learner()
workers = Processes(learner, 2)
model = np.zeros(learner.shared_count, np.float32)
tasks = [Task(Train(0, Plan(epochs=1, batch_size=10, learning_rate=0.1)), model)] * 8
if sys.argv[1:] == ["close"]:
    for task in tasks[:4]:
        workers._submit(task, keeps_slot=True)
    sys.stdin.readline()
    workers.close()
    print("closed", sum(process.exitcode is not None for process in workers._processes))
else:
    list(workers.train(tasks))
"""


@pytest.mark.parametrize("how", ["close", "SIGKILL", "SIGTERM", "SIGINT"])
def test_no_process_stays_behind(how: str) -> None:
    build("tiny_mlp")
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, how],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as master:
        assert master.stdout is not None
        assert [master.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        if how != "close":
            master.send_signal(signal.Signals[how])
        # The output ends when the last process that could write to it has ended.
        try:
            rest, _ = master.communicate("\n", timeout=30)
        except subprocess.TimeoutExpired:
            master.kill()
            raise
    assert rest == ("closed 2\n" if how == "close" else "")


def test_batches_are_divided_whole() -> None:
    for batches in range(1, 30):
        for parts in range(1, 6):
            works = split_batches(batches, parts)
            covered = [n for w in works for n in range(w.first_batch, w.first_batch + w.batches)]
            assert covered == list(range(batches))
