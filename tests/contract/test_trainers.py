"""One suite over every trainer of this environment; PyTorch's results were stored."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_client.optimizers import OptimizerState
from edge_client.trainers import Trainer
from edge_client.trainers.opening import available_runtimes, open_trainer
from edge_client.training import (
    Progress,
    TrainingInterruptedError,
    epoch_order,
    evaluate,
    steps_per_epoch,
    train,
)
from fedtide.bundle import Bundle, open_bundle_dir
from fedtide.errors import BundleError, ConfigError, DataError
from fedtide.plan import Plan
from fedtide.runtime import load_session
from fedtide.vectors import Vector
from tests.bundles import build, export_python
from tests.plans import PLANS, PLANS_OF, TOLERANCES

pytestmark = pytest.mark.skipif(
    not available_runtimes(), reason="no onnxruntime in this environment"
)

LEARNING_RATE = 0.05


def bundle_and_expected(name: str) -> tuple[Bundle, dict[str, Any]]:
    try:
        folder = build(name)
    except RuntimeError as exc:
        if export_python() is None:
            pytest.skip(str(exc))
        raise
    with np.load(folder.parent / "expected.npz", allow_pickle=False) as stored:
        return open_bundle_dir(folder), dict(stored)


@pytest.fixture(params=available_runtimes())
def runtime(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def mlp(runtime: Any) -> Iterator[tuple[Trainer, dict[str, Any]]]:
    bundle, expected = bundle_and_expected("tiny_mlp")
    trainer = open_trainer(bundle, runtime)
    yield trainer, expected
    trainer.close()


MODELS = ["tiny_mlp", "tiny_cnn", "tiny_regression", "tiny_norm", "tiny_dropout", "tiny_tokens"]


@pytest.mark.parametrize("name", MODELS)
def test_steps_and_evaluation_are_those_of_pytorch(name: str, runtime: Any) -> None:
    bundle, expected = bundle_and_expected(name)
    trainer = open_trainer(bundle, runtime)
    trainer.set_parameters(expected["start"])
    for index, loss in enumerate(expected["losses"]):
        x, y = expected[f"x{index}"], expected[f"y{index}"]
        measured = trainer.step(x, y, LEARNING_RATE, seed=index)
        assert tuple(measured) == pytest.approx(tuple(loss), rel=1e-5)
        vector = expected[f"vector{index}"]
        np.testing.assert_allclose(trainer.parameters(), vector, rtol=0, atol=1e-6)
    result = trainer.evaluate(expected["x0"], expected["y0"])
    assert result.examples == len(expected["x0"])
    means = {key[8:]: float(value) for key, value in expected.items() if key.startswith("measure.")}
    assert {name: result.mean(name) for name in result.measures} == pytest.approx(means, rel=2e-5)
    assert "loss" in means
    trainer.close()


@pytest.mark.parametrize(
    ("name", "plan_name"), [(name, plan) for name, plans in PLANS_OF.items() for plan in plans]
)
def test_optimizers_are_those_of_pytorch(name: str, plan_name: str, runtime: Any) -> None:
    """One step and fifty, whether a batch is computed at once or in parts."""
    bundle, expected = bundle_and_expected(name)
    trainer = open_trainer(bundle, runtime)
    for steps, tolerance in TOLERANCES.items():
        trainer.set_parameters(expected["start"])
        plan = msgspec.structs.replace(PLANS[plan_name], steps_max=steps)
        result = train(trainer, expected["x"], expected["y"], plan)
        assert result.steps == steps
        theirs = expected[f"{plan_name}.{steps}"]
        moved = np.abs(theirs - expected["start"])[bundle.manifest.trained].max()
        assert moved > 20 * tolerance
        if bundle.manifest.additive or plan.batch_size == 10:
            np.testing.assert_allclose(trainer.parameters(), theirs, rtol=0, atol=tolerance)
        shared = bundle.manifest.shared_count
        change = trainer.parameters() - expected["start"]
        np.testing.assert_array_equal(result.delta, change[:shared])
        np.testing.assert_array_equal(result.local, trainer.parameters()[bundle.manifest.local])
    trainer.close()


def opened(name: str, runtime: Any) -> tuple[Trainer, dict[str, Any]]:
    bundle, expected = bundle_and_expected(name)
    trainer = open_trainer(bundle, runtime)
    trainer.set_parameters(expected["start"])
    return trainer, expected


def gradient_of(trainer: Trainer) -> Vector:
    """What has been accumulated; the parameters stay as they are."""
    seen: list[Vector] = []
    trainer.change(lambda _, gradient: seen.append(gradient.copy()))
    return seen[0]


def test_gradients_add_up(mlp: tuple[Trainer, dict[str, Any]]) -> None:
    trainer, expected = mlp
    x, y = expected["x"], expected["y"]
    trainer.set_parameters(expected["start"])
    whole = trainer.accumulate(x, y)
    gradient = gradient_of(trainer)
    for cuts in ([11, 22], [5, 10, 15], [1]):
        parts = zip(np.split(x, cuts), np.split(y, cuts), strict=True)
        losses = [trainer.accumulate(*part) for part in parts]
        np.testing.assert_allclose(gradient_of(trainer), gradient, rtol=1e-5, atol=1e-5)
        assert sum(loss.sum for loss in losses) == pytest.approx(whole.sum, rel=1e-5)
        assert sum(loss.weight for loss in losses) == whole.weight == len(x)
    np.testing.assert_array_equal(trainer.parameters(), expected["start"])


def test_an_accumulated_gradient_is_used_once(mlp: tuple[Trainer, dict[str, Any]]) -> None:
    trainer, expected = mlp
    batch = (expected["x0"], expected["y0"])
    trainer.set_parameters(expected["start"])
    with pytest.raises(RuntimeError, match="no gradient"):
        trainer.change(lambda *_: None)
    trainer.accumulate(*batch)
    with pytest.raises(RuntimeError, match="waits"):
        trainer.step(*batch, LEARNING_RATE)
    first = gradient_of(trainer)
    trainer.accumulate(*batch)
    trainer.accumulate(*batch)
    trainer.set_parameters(expected["start"])  # forgets it
    with pytest.raises(RuntimeError, match="no gradient"):
        trainer.change(lambda *_: None)
    trainer.accumulate(*batch)
    np.testing.assert_array_equal(gradient_of(trainer), first)


def test_a_refused_batch_leaves_no_gradient(mlp: tuple[Trainer, dict[str, Any]]) -> None:
    trainer, expected = mlp
    x, y = expected["x0"], expected["y0"]
    trainer.set_parameters(expected["start"])
    trainer.accumulate(x, y)
    gradient = gradient_of(trainer)
    trainer.accumulate(x, y)
    with pytest.raises(DataError):
        trainer.accumulate(x, y + 3)
    np.testing.assert_array_equal(gradient_of(trainer), gradient)


def test_a_change_is_seen_by_the_next_step(mlp: tuple[Trainer, dict[str, Any]]) -> None:
    trainer, expected = mlp
    batch = (expected["x0"], expected["y0"])
    trainer.set_parameters(expected["start"])
    before = trainer.evaluate(*batch)

    def double(weights: Vector, _gradient: Vector) -> None:
        weights *= 2

    trainer.accumulate(*batch)
    trainer.change(double)
    np.testing.assert_array_equal(trainer.parameters(), 2 * expected["start"])
    after = trainer.evaluate(*batch)
    assert after.loss != before.loss
    assert trainer.step(*batch, LEARNING_RATE).mean == pytest.approx(after.loss, rel=1e-5)


def test_statistics_are_updated_by_both_kinds_of_steps(runtime: Any) -> None:
    trainer, expected = opened("tiny_norm", runtime)
    manifest = trainer.manifest
    kinds = [(tensor.kind, tensor.shared) for tensor in manifest.tensors]
    assert [kind for kind, shared in kinds if not shared] == ["parameter"] * 2 + ["statistic"] * 2
    statistics = np.ones(manifest.elements_count, bool)
    statistics[manifest.trained] = False
    batch = (expected["x0"], expected["y0"])
    trainer.step(*batch, LEARNING_RATE)
    stepped = trainer.parameters()
    assert (stepped[statistics] != expected["start"][statistics]).all()
    trainer.set_parameters(expected["start"])
    trainer.accumulate(*batch)
    accumulated = trainer.parameters()
    np.testing.assert_allclose(accumulated[statistics], stepped[statistics], rtol=1e-6)
    np.testing.assert_array_equal(
        accumulated[manifest.trained], expected["start"][manifest.trained]
    )
    before = trainer.parameters()
    trainer.evaluate(*batch)
    np.testing.assert_array_equal(trainer.parameters(), before)
    trainer.close()


def test_a_rest_of_one_example_is_not_normalised(runtime: Any) -> None:
    trainer, expected = opened("tiny_norm", runtime)
    x, y = (np.concatenate([expected[f"{name}0"]] * 3)[:11] for name in "xy")
    trainer.set_parameters(expected["start"])
    result = train(trainer, x, y, Plan(epochs=1, batch_size=10))
    assert np.isfinite(trainer.parameters()).all()
    assert result.steps == 2
    trainer.close()


@pytest.mark.parametrize("name", ["tiny_tokens", "tiny_cnn", "tiny_mlp"])
def test_what_is_exported_may_use_every_thread(name: str) -> None:
    bundle, _ = bundle_and_expected(name)
    session = load_session(bundle.read(bundle.manifest.runtimes.portable.train), threads=3)
    assert session.get_session_options().intra_op_num_threads == 3


def test_dropout_is_a_function_of_its_seed(runtime: Any) -> None:
    trainer, expected = opened("tiny_dropout", runtime)
    batch = (expected["x0"], expected["y0"])

    def after(seed: int) -> Vector:
        trainer.set_parameters(expected["start"])
        trainer.step(*batch, LEARNING_RATE, seed)
        return trainer.parameters()

    np.testing.assert_array_equal(after(7), after(7))
    assert (after(7) != after(8)).any()
    assert (after(7) != after(2**63 - 1)).any()
    assert trainer.evaluate(*batch) == trainer.evaluate(*batch)
    trainer.close()


def test_what_is_frozen_or_ignored_stays(runtime: Any) -> None:
    trainer, expected = opened("tiny_tokens", runtime)
    frozen = slice(trainer.manifest.trained.stop, None)
    assert len(expected["start"][frozen]) == 8 * 8 + 8
    result = train(trainer, expected["x"], expected["y"], Plan(epochs=3, momentum=0.5))
    np.testing.assert_array_equal(trainer.parameters()[frozen], expected["start"][frozen])
    assert len(result.delta) == 12 * 8 + 12  # the tied weights once
    assert trainer.evaluate(expected["x"][1:2], expected["y"][1:2]).loss is None
    trainer.close()


def test_a_batch_without_labels_changes_nothing(runtime: Any) -> None:
    trainer, expected = opened("tiny_tokens", runtime)
    x, y = expected["x"][:4], expected["y"][:4].copy()
    y[:2] = -100
    for plan in (Plan(batch_size=1), Plan(batch_size="all", examples_at_once=1)):
        trainer.set_parameters(expected["start"])
        result = train(trainer, x, y, plan)
        assert np.isfinite(result.delta).all()
        assert result.delta.any()
    with pytest.raises(DataError, match="no example has a label"):
        train(trainer, x[:2], y[:2], Plan())
    trainer.close()


def test_parameters_survive_a_round_trip(mlp: tuple[Trainer, dict[str, Any]]) -> None:
    trainer, expected = mlp
    vector = np.arange(len(expected["start"]), dtype=np.float32)
    given = vector.copy()
    trainer.set_parameters(given)
    given[:] = 0
    np.testing.assert_array_equal(trainer.parameters(), vector)
    trainer.parameters()[:] = 0
    np.testing.assert_array_equal(trainer.parameters(), vector)


def test_model_can_be_replaced_between_steps(mlp: tuple[Trainer, dict[str, Any]]) -> None:
    trainer, expected = mlp
    for _ in range(3):
        trainer.set_parameters(expected["start"])
        trainer.step(expected["x0"], expected["y0"], LEARNING_RATE)
        np.testing.assert_allclose(trainer.parameters(), expected["vector0"], rtol=0, atol=1e-6)


def test_parameters_are_kept_while_the_trainer_goes_on(mlp: tuple[Trainer, Any]) -> None:
    trainer, expected = mlp
    trainer.set_parameters(expected["start"])
    before = trainer.parameters()
    kept = before.copy()
    trainer.step(expected["x0"], expected["y0"], LEARNING_RATE)
    trainer.step(expected["x0"], expected["y0"], LEARNING_RATE)
    np.testing.assert_array_equal(before, kept)


def test_learning_rate_may_change_between_steps(mlp: tuple[Trainer, Any]) -> None:
    trainer, expected = mlp
    changes = []
    for rate in (0.05, 0.1):
        trainer.set_parameters(expected["start"])
        trainer.step(expected["x0"], expected["y0"], rate)
        changes.append(trainer.parameters() - expected["start"])
    np.testing.assert_allclose(changes[1], 2 * changes[0], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("call", ["step", "accumulate", "change", "evaluate", "parameters"])
def test_use_before_set_parameters_is_an_error(call: str, mlp: tuple[Trainer, Any]) -> None:
    trainer, expected = mlp
    batch = (expected["x0"], expected["y0"])
    arguments: tuple[Any, ...] = {
        "step": (*batch, 0.1),
        "accumulate": batch,
        "change": (lambda *_: None,),
        "evaluate": batch,
        "parameters": (),
    }[call]
    with pytest.raises(RuntimeError, match="set_parameters"):
        getattr(trainer, call)(*arguments)


def test_wrong_vectors_are_refused(mlp: tuple[Trainer, Any]) -> None:
    trainer, expected = mlp
    for wrong in (expected["start"][:-1], expected["start"].astype(np.float64)):
        with pytest.raises(ValueError, match="float32"):
            trainer.set_parameters(wrong)


def test_wrong_batches_are_refused(mlp: tuple[Trainer, Any]) -> None:
    trainer, expected = mlp
    trainer.set_parameters(expected["start"])
    x, y = expected["x0"], expected["y0"]
    wrong = [
        (x[:, :-1], y),
        (x.astype(np.float64), y),
        (x, y.astype(np.int32)),
        (x, y[:-1]),
        (x[:0], y[:0]),
        (x, y + 3),
        (x, y - 3),
    ]
    for bad_x, bad_y in wrong:
        with pytest.raises(DataError):
            trainer.step(bad_x, bad_y, 0.1)
        with pytest.raises(DataError):
            trainer.evaluate(bad_x, bad_y)
    np.testing.assert_array_equal(trainer.parameters(), expected["start"])


def test_views_and_read_only_batches_work(mlp: tuple[Trainer, Any]) -> None:
    trainer, expected = mlp
    trainer.set_parameters(expected["start"])
    x = np.asfortranarray(expected["x0"])
    x.flags.writeable = False
    trainer.step(x, expected["y0"], LEARNING_RATE)
    np.testing.assert_allclose(trainer.parameters(), expected["vector0"], rtol=0, atol=1e-6)


def data(examples: int) -> tuple[Any, Any]:
    generator = np.random.Generator(np.random.PCG64(7))
    x = generator.standard_normal((examples, 8)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 1)


def test_training_learns(mlp: tuple[Trainer, Any]) -> None:
    trainer, expected = mlp
    trainer.set_parameters(expected["start"])
    x, y = data(203)
    before = evaluate(trainer, x, y, batch_size=50)
    result = train(trainer, x, y, Plan(epochs=5, batch_size=10, learning_rate=0.1, seed=1))
    after = evaluate(trainer, x, y, batch_size=50)
    assert result.examples == before.examples == 203
    assert result.steps == 5 * 21
    assert len(result.losses) == 5
    assert after.measures["loss"].sum < 0.7 * before.measures["loss"].sum
    assert result.delta.dtype == np.float32
    np.testing.assert_array_equal(result.delta, trainer.parameters() - expected["start"])


@pytest.mark.parametrize("plan_name", ["sgd", "momentum", "adamw", "all_of_adamw", "accumulated"])
def test_training_resumes_to_the_same_bits(plan_name: str, runtime: Any) -> None:
    """With dropout, and with what the optimizer remembers."""
    trainer, expected = opened("tiny_dropout", runtime)
    x, y = data(33)
    plan = msgspec.structs.replace(PLANS[plan_name], epochs=4)
    saved: list[tuple[Vector, OptimizerState]] = []

    def save(progress: Progress) -> None:
        assert progress.epochs == len(saved) + 1
        steps, vectors = progress.optimizer
        state = OptimizerState(steps, tuple(vector.copy() for vector in vectors))
        saved.append((trainer.parameters(), state))

    whole = train(trainer, x, y, plan, on_epoch=save)
    trainer.set_parameters(saved[1][0])
    rest = train(
        trainer,
        x,
        y,
        plan,
        start_epoch=2,
        optimizer_state=saved[1][1],
        reference=expected["start"],
    )
    np.testing.assert_array_equal(rest.delta, whole.delta)
    assert rest.losses == whole.losses[2:]
    assert (rest.steps, rest.optimizer.steps) == (whole.steps, whole.optimizer.steps)
    trainer.close()


def test_data_need_not_lie_in_one_piece(mlp: tuple[Trainer, Any]) -> None:
    trainer, expected = mlp
    x, y = data(46)
    plan, deltas = Plan(epochs=2, batch_size=10, learning_rate=LEARNING_RATE), []
    for pair in ((x[::2], y[::2]), (x[::2].copy(), y[::2].copy()), (x[::2].copy("F"), y[::2])):
        trainer.set_parameters(expected["start"])
        deltas.append(train(trainer, *pair, plan).delta)
    np.testing.assert_array_equal(deltas[0], deltas[1])
    np.testing.assert_array_equal(deltas[0], deltas[2])


def test_fedsgd_is_one_step_on_everything(mlp: tuple[Trainer, Any]) -> None:
    trainer, expected = mlp
    trainer.set_parameters(expected["start"])
    x, y = expected["x0"], expected["y0"]
    result = train(trainer, x, y, Plan(epochs=1, batch_size="all", learning_rate=LEARNING_RATE))
    assert result.steps == 1
    np.testing.assert_allclose(trainer.parameters(), expected["vector0"], rtol=0, atol=1e-6)


def test_steps_max_and_interruption(mlp: tuple[Trainer, Any]) -> None:
    trainer, expected = mlp
    trainer.set_parameters(expected["start"])
    x, y = data(30)
    result = train(trainer, x, y, Plan(epochs=9, batch_size=10, steps_max=4))
    assert (result.steps, len(result.losses)) == (4, 2)
    with pytest.raises(TrainingInterruptedError):
        train(trainer, x, y, Plan(epochs=9), on_step=lambda steps, _: steps < 2)
    with pytest.raises(DataError):
        train(trainer, x[:0], y[:0], Plan())


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_enough_ends_training_with_what_it_has(mlp: tuple[Trainer, Any], steps: int) -> None:
    """In the middle of an epoch or at its end: what `steps_max` of that number gives."""
    trainer, expected = mlp
    x, y = data(30)
    plan = Plan(epochs=9, batch_size=10, momentum=0.5)
    trainer.set_parameters(expected["start"])
    whole = train(trainer, x, y, msgspec.structs.replace(plan, steps_max=steps))
    trainer.set_parameters(expected["start"])
    answers = iter([*[False] * (steps - 1), True])
    epochs: list[int] = []
    part = train(
        trainer,
        x,
        y,
        plan,
        enough=lambda: next(answers),
        on_epoch=lambda progress: epochs.append(progress.epochs),
    )
    assert (part.steps, part.losses) == (steps, whole.losses)
    assert part.delta.tobytes() == whole.delta.tobytes()
    assert epochs == ([1] if steps == 4 else [])  # an epoch that was cut short is not one to save


def test_a_batch_without_labels_is_never_enough(runtime: Any) -> None:
    trainer, expected = opened("tiny_tokens", runtime)
    x, y = expected["x"][:4], expected["y"][:4].copy()
    y[epoch_order(0, 0, 4)[:2]] = -100
    result = train(trainer, x, y, Plan(batch_size=1), enough=lambda: True)
    assert result.steps >= 3
    assert result.delta.any()
    trainer.close()


def test_order_is_a_stable_function_of_seed_and_epoch() -> None:
    assert epoch_order(0, 0, 8).tolist() == epoch_order(0, 0, 8).tolist()
    assert sorted(epoch_order(3, 1, 100).tolist()) == list(range(100))
    assert epoch_order(3, 1, 100).tolist() != epoch_order(3, 2, 100).tolist()
    assert epoch_order(3, 1, 100).tolist() != epoch_order(4, 1, 100).tolist()
    assert steps_per_epoch(Plan(batch_size=10), 21) == 3


def test_unknown_runtimes_and_damaged_files_are_refused(runtime: Any) -> None:
    bundle, _ = bundle_and_expected("tiny_mlp")
    broken = Bundle(bundle.manifest, bundle.digest, lambda path: bundle.fetch(path)[:-1])
    with pytest.raises(BundleError, match="damaged"):
        open_trainer(broken, runtime)
    missing = {"portable", "ort_training"} - set(available_runtimes())
    for name in missing:
        with pytest.raises(ConfigError):
            open_trainer(bundle, name)  # type: ignore[arg-type]


def test_training_never_imports_torch_or_onnx() -> None:
    """The training build of onnxruntime would import both where they are installed."""
    bundle, _ = bundle_and_expected("tiny_mlp")
    del bundle
    code = """
import sys
from pathlib import Path
from edge_client.trainers.opening import available_runtimes, open_trainer
assert "onnxruntime" not in sys.modules
runtimes = available_runtimes()
assert "onnxruntime" not in sys.modules
from fedtide.bundle import open_bundle_dir
for runtime in runtimes:
    open_trainer(open_bundle_dir(Path(sys.argv[1])), runtime)
heavy = {"torch", "onnx", "sympy", "h5py"} & set(sys.modules)
assert not heavy, heavy
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(build("tiny_mlp"))],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
