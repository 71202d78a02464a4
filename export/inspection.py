"""What a model consists of, and why it may not be exported."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from export import Loss, ModelSpec
from export.recording import Recorder
from fedtide.errors import ExportError
from fedtide.manifest import Array, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

_DTYPES = {torch.float32: "float32", torch.int64: "int64"}
_DROPOUTS = nn.modules.dropout._DropoutNd


@dataclass(frozen=True)
class Model:
    """A model that passed inspection."""

    name: str
    module: nn.Module
    """A copy of the user's, on the CPU, in training mode."""
    loss: Loss
    tensors: tuple[Tensor, ...]
    inputs: Array
    labels: Array
    classes: int | None

    def values(self) -> list[torch.Tensor]:
        """The tensors' current values, in manifest order, detached."""
        state = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return [state[tensor.name].detach() for tensor in self.tensors]

    def example_batch(self, examples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Random x[examples, ...] and y[examples, ...] that fit the model."""
        generator = torch.Generator().manual_seed(seed)
        return (
            _random(self.inputs, examples, 2, generator),
            _random(self.labels, examples, self.classes or 2, generator),
        )


def _random(array: Array, examples: int, below: int, generator: torch.Generator) -> torch.Tensor:
    shape = (examples, *array.shape)
    if array.dtype == "int64":
        return torch.randint(0, below, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def inspect_model(spec: object, name: str) -> Model:
    """Check what a user's function returned.

    Raises:
        ExportError: it is no ModelSpec, or the model cannot be trained as a bundle.
    """
    if not isinstance(spec, ModelSpec):
        raise ExportError(
            f"the function returned {type(spec).__name__}, expected export.ModelSpec",
            hint="return ModelSpec(module, example_inputs, loss='cross_entropy')",
        )
    if not isinstance(spec.module, nn.Module):
        raise ExportError(f"ModelSpec.module is {type(spec.module).__name__}, not a torch module")
    if spec.loss not in ("cross_entropy", "mse"):
        raise ExportError(f"loss is {spec.loss!r}, expected 'cross_entropy' or 'mse'")
    inputs = _inputs(spec.example_inputs)
    module = copy.deepcopy(spec.module).cpu().train()
    _refuse_modules(module)
    tensors = _tensors(module)
    output = _try_forward(module, inputs)
    labels, classes = _labels(output, spec.loss)
    return Model(spec.name or name, module, spec.loss, tensors, inputs, labels, classes)


def module_label(module: nn.Module, path: str) -> str:
    """How messages name a part of the user's model: `features.3 (Hardswish)`."""
    part = module.get_submodule(path)
    return f"{path or 'the model'} ({type(part).__name__})"


def _inputs(example: object) -> Array:
    if not isinstance(example, torch.Tensor) or example.dim() < 1:
        raise ExportError("ModelSpec.example_inputs must be one tensor with a batch dimension")
    if example.dtype not in _DTYPES:
        raise ExportError(
            f"ModelSpec.example_inputs is {example.dtype}, expected torch.float32 or torch.int64"
        )
    return Array(tuple(example.shape[1:]), "int64" if example.dtype == torch.int64 else "float32")


def _refuse_modules(module: nn.Module) -> None:
    for path, part in module.named_modules():
        rate = getattr(part, "p", 0) if isinstance(part, _DROPOUTS) else 0
        if isinstance(part, nn.RNNBase):
            rate = part.dropout
        if rate:
            raise ExportError(
                f"{module_label(module, path)}: dropout is not supported yet",
                hint="remove it, or set its probability to 0",
            )
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise ExportError(
                f"{module_label(module, path)}: batch normalisation is not supported yet, its "
                "running statistics change in training",
                hint="use another normalisation, or none",
            )


def _tensors(module: nn.Module) -> tuple[Tensor, ...]:
    """Parameters, then float32 buffers, in the module's order."""
    tensors: list[Tensor] = []
    offset = 0
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        trainable = isinstance(value, nn.Parameter)
        if value.dtype != torch.float32:
            path = name.rpartition(".")[0]
            raise ExportError(
                f"{name!r} in {module_label(module, path)} is {value.dtype}; "
                "parameters and buffers must be torch.float32"
            )
        if not value.numel():
            raise ExportError(f"{name!r} has no elements")
        tensor = Tensor(name, tuple(value.shape), offset, trainable and value.requires_grad)
        tensors.append(tensor)
        offset += tensor.size
    if not any(tensor.trainable for tensor in tensors):
        raise ExportError("the model has no trainable parameter")
    return tuple(tensors)


def _try_forward(module: nn.Module, inputs: Array) -> torch.Tensor:
    before = {name: value.clone() for name, value in module.named_buffers()}
    x = _random(inputs, 2, 2, torch.Generator().manual_seed(0))
    recorder = Recorder(module)
    try:
        with torch.no_grad(), recorder:
            output: Any = module(x)
    except Exception as exc:
        raise ExportError(
            f"the model failed on inputs of shape {tuple(x.shape)}: {exc}",
            hint="ModelSpec.example_inputs is a batch: its first dimension is the batch",
        ) from exc
    finally:
        recorder.close()
    for operator, path in recorder.random.items():
        raise ExportError(
            f"{module_label(module, path)}: aten.{operator} is random in training, "
            "which is not supported yet",
            hint="remove it; dropout may stay with probability 0",
        )
    if not isinstance(output, torch.Tensor):
        raise ExportError(
            f"the model returns {type(output).__name__}, expected one tensor",
            hint="wrap it in a module that returns the logits only",
        )
    for name, value in module.named_buffers():
        if not torch.equal(before[name], value):
            path = name.rpartition(".")[0]
            raise ExportError(
                f"buffer {name!r} of {module_label(module, path)} changes in training, "
                "which is not supported yet"
            )
    return output


def _labels(output: torch.Tensor, loss: Loss) -> tuple[Array, int | None]:
    shape: Sequence[int] = output.shape
    if output.dtype != torch.float32 or not shape or shape[0] != 2:
        raise ExportError(
            f"the model returns {output.dtype} of shape {tuple(shape)} for a batch of 2, "
            "expected torch.float32 with the batch first"
        )
    if loss == "mse":
        return Array(tuple(shape[1:]), "float32"), None
    if len(shape) != 2 or shape[1] < 2:
        raise ExportError(
            f"the model returns shape {tuple(shape)} for a batch of 2; cross_entropy needs "
            "logits of shape [batch, classes] with at least 2 classes"
        )
    return Array((), "int64"), int(shape[1])
