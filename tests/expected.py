"""What PyTorch computes for a model of `tests/models.py`: `python -m tests.expected NAME FILE`.

Autograd and torch.optim in eager mode, without any of the exporter's traces; only the masks of
dropout come from it. Runs where torch is; the file is what environments without torch compare
with. The bundle lies beside the file: its manifest says where each tensor is in the flat vector.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

import tests.models
from edge_client.training import dropout_seeds, epoch_order, steps_per_epoch
from export import ModelSpec
from export.randomness import SeededRandomness
from fedtide.bundle import open_bundle_dir
from fedtide.manifest import Manifest
from fedtide.plan import Plan
from tests.plans import EXAMPLES, PLANS, PLANS_OF, STEPS

LEARNING_RATE = 0.05
BATCHES, BATCHES_COUPLED = (5, 3, 5, 1), (5, 3, 5, 4)
"""Sizes; where examples see each other, few of them make an ill-conditioned step."""
IGNORED = -100
_LOSSES: dict[Any, Any] = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}

Arrays = dict[str, NDArray[Any]]


class Reference:
    """The user's module, trained by torch."""

    def __init__(self, spec: ModelSpec, manifest: Manifest) -> None:
        self.module = spec.module.train()
        self.spec, self.manifest = spec, manifest
        state = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        self.tensors = [state[tensor.name] for tensor in manifest.tensors]
        kinds = [(tensor.kind, tensor.shared) for tensor in manifest.tensors]
        pairs = list(zip(self.tensors, kinds, strict=True))
        self.trained = [value for value, (kind, _) in pairs if kind == "parameter"]
        self.shared = [value for value, kind in pairs if kind == ("parameter", True)]

    def set(self, vector: NDArray[Any]) -> None:
        """Load a flat vector."""
        for tensor, value in zip(self.manifest.tensors, self.tensors, strict=True):
            part = vector[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)
            with torch.no_grad():
                value.copy_(torch.from_numpy(part.copy()))

    def vector(self) -> NDArray[Any]:
        """The flat vector."""
        parts = [value.detach().reshape(-1).numpy() for value in self.tensors]
        return np.concatenate(parts).astype(np.float32)

    def loss(self, x: torch.Tensor, y: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """The mean loss, as torch defines it."""
        loss = self.spec.loss if isinstance(self.spec.loss, nn.Module) else _LOSSES[self.spec.loss]
        with SeededRandomness(torch.tensor(seed)):
            value: torch.Tensor = loss(self.module(x), y)
        return value

    def weight(self, y: torch.Tensor) -> float:
        """What torch's mean is over."""
        weights = getattr(self.spec.loss, "weight", None)
        if weights is None:
            return float(len(y))
        return float(weights[y[y != IGNORED]].sum())


def main(name: str, path: Path) -> None:
    manifest = open_bundle_dir(path.parent / "bundle").manifest
    reference = Reference(getattr(tests.models, name)(), manifest)
    generator = np.random.Generator(np.random.PCG64(42))
    start = reference.vector()
    noise = 0.02 * generator.standard_normal(len(start)).astype(np.float32)
    for tensor in manifest.tensors:
        if tensor.kind == "statistic":  # a variance stays positive
            part = slice(tensor.offset, tensor.offset + tensor.size)
            noise[part] = np.abs(noise[part])
    start += noise
    arrays: Arrays = {"start": start}
    arrays |= _plain_steps(reference, start, generator)
    arrays["x"], arrays["y"] = _data(manifest, EXAMPLES, generator)
    for plan in PLANS_OF.get(name, ()):
        arrays |= {
            f"{plan}.{key}": value
            for key, value in _run(reference, start, arrays["x"], arrays["y"], PLANS[plan]).items()
        }
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.rename(path)


def _data(
    manifest: Manifest, examples: int, generator: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    shape = (examples, *manifest.inputs.shape)
    x: NDArray[Any] = generator.standard_normal(shape).astype(np.float32)
    if manifest.inputs.dtype == "int64":
        x = generator.integers(0, manifest.classes, shape)
    shape = (examples, *manifest.labels.shape)
    if manifest.classes is None:
        return x, generator.standard_normal(shape).astype(np.float32)
    y = generator.integers(0, manifest.classes, shape)
    if manifest.labels.shape:
        y[generator.random(shape) < 0.3] = IGNORED
        y[1:2] = IGNORED  # an example without any label
    return x, y


def _plain_steps(
    reference: Reference, start: NDArray[Any], generator: np.random.Generator
) -> Arrays:
    """Consecutive steps of plain SGD on batches of several sizes, and an evaluation."""
    arrays: Arrays = {}
    losses = []
    reference.set(start)
    optimizer = torch.optim.SGD(reference.trained, lr=LEARNING_RATE)
    sizes = BATCHES if reference.manifest.additive else BATCHES_COUPLED
    for index, size in enumerate(sizes):
        x, y = _data(reference.manifest, size, generator)
        labels = torch.from_numpy(y)
        optimizer.zero_grad()
        mean = reference.loss(torch.from_numpy(x), labels, seed=index)
        mean.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        weight = reference.weight(labels)
        losses.append((mean.item() * weight, weight))
        arrays |= {f"x{index}": x, f"y{index}": y, f"vector{index}": reference.vector()}
    measures = _evaluation(reference, arrays["x0"], arrays["y0"])
    return {**arrays, **measures, "losses": np.array(losses)}


def _evaluation(reference: Reference, inputs: NDArray[Any], labels: NDArray[Any]) -> Arrays:
    """Means of all measures of one batch."""
    arrays: Arrays = {}
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    reference.module.eval()
    with torch.no_grad():
        arrays["measure.loss"] = np.array(reference.loss(x, y).item())
        output = reference.module(x)
        if reference.manifest.classes is not None:
            hits = output.argmax(1) == y
            arrays["measure.accuracy"] = np.array(hits[y != IGNORED].float().mean().item())
        for name, function in reference.spec.metrics.items():
            value = function(output, y)
            assert isinstance(value, torch.Tensor)
            arrays[f"measure.{name}"] = np.array(value.item())
    reference.module.train()
    return arrays


def _run(
    reference: Reference, start: NDArray[Any], x: NDArray[Any], y: NDArray[Any], plan: Plan
) -> Arrays:
    """The model after some steps of `plan`, by torch.optim."""
    reference.set(start)
    anchor = [value.detach().clone() for value in reference.shared]
    optimizer = _optimizer(plan, reference.trained)
    batch = len(x) if plan.batch_size == "all" else plan.batch_size
    parts = 1
    if reference.manifest.random:  # each part has masks of its own; else the batch is whole here
        parts = -(-batch // plan.examples_at_once)
    arrays: Arrays = {}
    steps = 0
    for epoch in range(plan.epochs):
        order = epoch_order(plan.seed, epoch, len(x))
        seeds = iter(dropout_seeds(plan.seed, epoch, steps_per_epoch(plan, len(x)) * parts))
        for at in range(0, len(x), batch):
            optimizer.zero_grad()
            chosen = order[at : at + batch]
            whole = reference.weight(torch.from_numpy(y[chosen]))
            for part in np.array_split(chosen, parts):
                seed, labels = next(seeds), torch.from_numpy(y[part])
                if len(part):
                    mean = reference.loss(torch.from_numpy(x[part]), labels, seed)
                    (mean * (reference.weight(labels) / whole)).backward()  # type: ignore[no-untyped-call]
            pull = sum(((w - a) ** 2).sum() for w, a in zip(reference.shared, anchor, strict=True))
            if plan.proximal_mu:
                (plan.proximal_mu / 2 * pull).backward()  # type: ignore[union-attr]
            if plan.clip_norm is not None:
                clip_grad_norm_(reference.trained, plan.clip_norm)
            optimizer.step()
            steps += 1
            if steps in STEPS:
                arrays[str(steps)] = reference.vector()
            if steps == max(STEPS):
                return arrays
    raise AssertionError(f"{plan} has fewer than {max(STEPS)} steps")


def _optimizer(plan: Plan, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters,
            lr=plan.learning_rate,
            betas=plan.betas,
            eps=plan.epsilon,
            weight_decay=plan.weight_decay,
        )
    return torch.optim.SGD(
        parameters,
        lr=plan.learning_rate,
        momentum=plan.momentum,
        nesterov=plan.nesterov,
        weight_decay=plan.weight_decay,
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
