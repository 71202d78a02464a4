"""What a model consists of, and why it may not be exported."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from export import ModelSpec
from export.index_limits import IndexLimits
from export.losses import (
    Function,
    LossFunction,
    accuracy,
    as_measure,
    label_array,
    resolve_loss,
)
from export.randomness import DRAWS, SeededRandomness
from export.recording import Recorder
from fedtide.errors import ExportError
from fedtide.manifest import Array, Kind, Tensor, part_of

_DTYPES = {torch.float32: "float32", torch.int64: "int64"}
_NAME_CHARS_MAX, _METRICS_MAX = 128, 31
"""Of the manifest: names, and metrics beside the accuracy."""
_COUNTER = "num_batches_tracked"
"""Of a batch normalisation: counts its batches, and no value depends on it."""


@dataclass(frozen=True)
class Model:
    """A model that passed inspection."""

    name: str
    module: nn.Module
    """A copy of the user's, on the CPU, in training mode."""
    loss: LossFunction
    metrics: Mapping[str, Function]
    """Measures of (output, y) beside the loss."""
    tensors: tuple[Tensor, ...]
    inputs: Array
    input_below: int
    """Integer inputs of tests are below this."""
    labels: Array
    example_labels: torch.Tensor | None
    classes: int | None
    random: bool
    additive: bool

    def values(self) -> list[torch.Tensor]:
        """The tensors' current values, in manifest order, detached."""
        state = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return [state[tensor.name].detach() for tensor in self.tensors]

    @property
    def shared_count(self) -> int:
        """Values that travel and are averaged: a prefix of the flat vector."""
        return sum(tensor.size for tensor in self.tensors if tensor.shared)

    def example_batch(self, examples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Random x[examples, ...] and y[examples, ...] that fit the model."""
        generator = torch.Generator().manual_seed(seed)
        x = _random_inputs(self.inputs, examples, self.input_below, generator)
        return x, _random_labels(self, examples, generator)


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
    _check_fields(spec, spec.name or name)
    loss = resolve_loss(spec.loss)
    inputs = _array("example_inputs", spec.example_inputs)
    below = 2
    if inputs.dtype == "int64":
        below = max(2, int(spec.example_inputs.max()) + 1)
    if any(value.is_meta for value in spec.module.state_dict().values()):
        raise ExportError("the model has weights on the device 'meta', that is, without values")
    module = copy.deepcopy(spec.module).cpu()
    _refuse_modes(module)
    module.train()
    _refuse_modules(module)
    named = list(_named(module))
    x = _random_inputs(inputs, 3, below, torch.Generator().manual_seed(0))
    limits = IndexLimits(x)
    with limits:
        output, changed, draws = _try_forward(module, x)
    if inputs.dtype == "int64":
        inputs = Array(inputs.shape, inputs.dtype, limits.below)
    labels, classes = _labels(output, loss, spec.example_labels)
    metrics = {key: _metric(function, key) for key, function in spec.metrics.items()}
    if classes is not None:
        metrics = {"accuracy": lambda o, y: accuracy(o, y, loss), **metrics}
    tensors = _tensors(named, changed, spec)
    model = Model(
        spec.name or name, module, loss, metrics, tensors, inputs, below, labels,
        spec.example_labels, classes, random=draws > 0, additive=True,
    )  # fmt: skip
    _try_measures(model, output)
    return model


def _check_fields(spec: ModelSpec, name: str) -> None:
    if not 1 <= len(name) <= _NAME_CHARS_MAX:
        raise ExportError(f"the model's name has {len(name)} characters, expected 1 to 128")
    if not isinstance(spec.metrics, Mapping) or len(spec.metrics) > _METRICS_MAX:
        raise ExportError(
            f"ModelSpec.metrics is {type(spec.metrics).__name__}, expected at most {_METRICS_MAX} "
            "functions by name"
        )
    if isinstance(spec.local, str) or not all(isinstance(part, str) for part in spec.local):
        raise ExportError(
            f"ModelSpec.local is {spec.local!r}, expected a list of patterns such as ['bn*.*']"
        )


def module_label(module: nn.Module, path: str) -> str:
    """How messages name a part of the user's model: `features.3 (Hardswish)`."""
    part = module.get_submodule(path)
    return f"{path or 'the model'} ({type(part).__name__})"


def _random_inputs(
    array: Array, examples: int, below: int, generator: torch.Generator
) -> torch.Tensor:
    shape = (examples, *array.shape)
    if array.dtype == "int64":
        return torch.randint(0, below, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def _random_labels(model: Model, examples: int, generator: torch.Generator) -> torch.Tensor:
    shape = (examples, *model.labels.shape)
    if model.example_labels is not None:
        rows = torch.randint(0, len(model.example_labels), (examples,), generator=generator)
        return model.example_labels[rows]
    if model.labels.dtype == "int64":
        y = torch.randint(0, model.classes or 2, shape, generator=generator)
        if model.loss.ignored_label is not None and y.numel() > examples:
            y.view(-1)[::7] = model.loss.ignored_label
        return y
    return torch.rand(shape, generator=generator)


def _array(what: str, example: object) -> Array:
    if not isinstance(example, torch.Tensor) or example.dim() < 1 or not len(example):
        raise ExportError(f"ModelSpec.{what} must be one tensor with a batch dimension")
    if example.dtype not in _DTYPES:
        raise ExportError(
            f"ModelSpec.{what} is {example.dtype}, expected torch.float32 or torch.int64"
        )
    return Array(tuple(example.shape[1:]), "int64" if example.dtype == torch.int64 else "float32")


def _metric(function: Any, name: str) -> Function:
    if not (name.isidentifier() and name.islower()) or name in ("loss", "accuracy"):
        raise ExportError(
            f"a metric is called {name!r}, expected lower-case letters, digits and _, and neither "
            "'loss' nor 'accuracy'"
        )
    if not callable(function):
        raise ExportError(f"metric {name!r} is {type(function).__name__}, not a function")
    return lambda output, y: as_measure(function(output, y), y, name)


def _refuse_modes(module: nn.Module) -> None:
    """A training loop calls train() on the whole model, and so does this."""
    if not module.training:
        return
    evaluating = [path for path, part in module.named_modules() if not part.training]
    module.train()
    for path in evaluating:
        if module.get_submodule(path).training:
            raise ExportError(
                f"{module_label(module, path)} is in evaluation mode, the model in training mode, "
                "and train() of the whole model would change that",
                hint="override train() in that part so that it stays, or call model.train()",
            )


def _refuse_modules(module: nn.Module) -> None:
    for path, part in module.named_modules():
        if not isinstance(part, nn.modules.batchnorm._BatchNorm):
            continue
        if part.momentum is None and part.track_running_stats:
            raise ExportError(
                f"{module_label(module, path)}: momentum=None averages over all batches ever "
                "seen, which differs from device to device",
                hint="give it a momentum, such as 0.1",
            )


def _tensors(
    named: list[tuple[str, torch.Tensor, bool]], changed: frozenset[str], spec: ModelSpec
) -> tuple[Tensor, ...]:
    """Parameters and float32 buffers, in the order of the manifest's parts."""
    found: list[Tensor] = []
    for name, value, is_parameter in named:
        kind: Kind = "frozen"
        if is_parameter and value.requires_grad:
            kind = "parameter"
        elif name in changed:
            kind = "statistic"
        local = any(fnmatch.fnmatchcase(name, pattern) for pattern in spec.local)
        found.append(Tensor(name, tuple(value.shape), 0, kind, kind != "frozen" and not local))
    _check_local(spec, [tensor.name for tensor in found])
    if not any(tensor.kind == "parameter" for tensor in found):
        raise ExportError("the model has no trainable parameter")
    return arranged(found)


def arranged(found: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The same in the order of the manifest's parts, with the offsets that follow from it.

    Raises:
        ExportError: none of them would travel.
    """
    tensors: list[Tensor] = []
    offset = 0
    for tensor in sorted(found, key=lambda tensor: part_of(tensor.kind, tensor.shared)):
        tensors.append(msgspec.structs.replace(tensor, offset=offset))
        offset += tensor.size
    if not any(tensor.shared for tensor in tensors):
        raise ExportError(
            "nothing of the model would travel: ModelSpec.local matches all that is trained",
            hint="a federation averages at least one parameter",
        )
    return tuple(tensors)


def _named(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Name, value, and whether it is a parameter; buffers that are not float32 are constants."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        is_parameter = isinstance(value, nn.Parameter)
        if value.dtype != torch.float32:
            if not is_parameter and not value.is_floating_point():
                continue
            path = name.rpartition(".")[0]
            raise ExportError(
                f"{name!r} in {module_label(module, path)} is {value.dtype}; "
                "parameters and buffers must be torch.float32"
            )
        if not value.numel():
            raise ExportError(f"{name!r} has no elements")
        yield name, value, is_parameter


def _check_local(spec: ModelSpec, names: list[str]) -> None:
    for pattern in spec.local:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ExportError(
                f"ModelSpec.local has {pattern!r}, which matches no parameter or buffer",
                hint=f"there are {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}",
            )


def _try_forward(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, frozenset[str], int]:
    """Output for x, names of the buffers that changed, and how many masks were drawn.

    The module is left as it was.
    """
    before = {name: value.clone() for name, value in module.named_buffers()}
    recorder = Recorder(module)
    randomness = SeededRandomness(None)
    try:
        # The fused kernel of attention counts as random, for the dropout that it may contain.
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), randomness, recorder:
            output: Any = module(x)
    except Exception as exc:
        raise ExportError(
            f"the model failed on inputs of shape {tuple(x.shape)}: {exc}",
            hint="ModelSpec.example_inputs is a batch; the model must take batches of any size: "
            "use x.shape[0] or -1 where it needs that",
        ) from exc
    finally:
        recorder.close()
    for operator, path in recorder.random.items():
        if operator not in DRAWS:
            raise ExportError(
                f"{module_label(module, path)}: aten.{operator} is random, and only dropout has a "
                "seeded form",
                hint="remove it, or use dropout",
            )
    if not isinstance(output, torch.Tensor):
        raise ExportError(
            f"the model returns {type(output).__name__}, expected one tensor",
            hint="wrap it in a module that returns the logits only",
        )
    if output.dtype != torch.float32 or not output.dim() or output.shape[0] != len(x):
        raise ExportError(
            f"the model returns {output.dtype} of shape {tuple(output.shape)} for a batch of "
            f"{len(x)}, expected torch.float32 with the batch first"
        )
    return output, _changed(module, before), randomness.draws


def _changed(module: nn.Module, before: Mapping[str, torch.Tensor]) -> frozenset[str]:
    changed = set()
    for name, value in module.named_buffers():
        if torch.equal(before[name], value):
            continue
        changed.add(name)
        if value.dtype != torch.float32 and name.rpartition(".")[2] != _COUNTER:
            path = name.rpartition(".")[0]
            raise ExportError(
                f"buffer {name!r} of {module_label(module, path)} is {value.dtype} and changes in "
                "training; only torch.float32 can be averaged"
            )
        value.copy_(before[name])
    return frozenset(changed)


def _labels(
    output: torch.Tensor, loss: LossFunction, example: torch.Tensor | None
) -> tuple[Array, int | None]:
    if loss.labels == "given" and example is None:
        raise ExportError(
            f"ModelSpec.example_labels is missing: loss {loss.name!r} does not say what labels "
            "look like",
            hint="give a batch of labels, y[b, ...]",
        )
    if example is None:
        return label_array(loss, output)
    given = _array("example_labels", example)
    if given.dtype == "int64" and loss.labels in ("class", "token"):
        expected, classes = label_array(loss, output)
        if given != expected:
            raise ExportError(
                f"ModelSpec.example_labels has shape {tuple(example.shape)}; for this model's "
                f"output loss {loss.name!r} takes {('b', *expected.shape)}"
            )
        return given, classes
    return given, None


def _try_measures(model: Model, output: torch.Tensor) -> None:
    _, y = model.example_batch(len(output))
    measures: dict[str, Function] = {"loss": model.loss.measure, **model.metrics}
    for name, function in measures.items():
        try:
            total, weight = function(output, y)
        except ExportError:
            raise
        except Exception as exc:
            raise ExportError(
                f"{name} failed on an output of shape {tuple(output.shape)} and labels of shape "
                f"{tuple(y.shape)}: {exc}"
            ) from exc
        if name == "loss":
            _check_loss(model, function, output, y)
        if total.dim() or weight.dim():
            raise ExportError(
                f"{name} gave a sum of shape {tuple(total.shape)} and a weight of shape "
                f"{tuple(weight.shape)}, expected two scalars"
            )


def _check_loss(model: Model, measure: Function, output: torch.Tensor, y: torch.Tensor) -> None:
    """The loss as it is exported against the user's own; and it must have a gradient."""
    output = output.detach().requires_grad_()
    total, weight = measure(output, y)
    if not total.requires_grad:
        raise ExportError(
            f"loss {model.loss.name!r} has no gradient with respect to the model's output",
            hint="it must not detach the output, nor go through argmax or rounding alone",
        )
    own = model.loss.own
    value = own(output, y) if own is not None else None
    if not isinstance(value, torch.Tensor) or value.dim():
        return
    mean = total / weight
    if not torch.allclose(mean, value, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise ExportError(
            f"loss {model.loss.name!r} gives {value.item():.6g} for a batch, and its sum over its "
            f"weight gives {mean.item():.6g}",
            hint="please report the loss; a function that returns (sum, weight) is taken as it is",
        )
