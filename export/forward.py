"""The forward pass of a model as a graph: what rewrites work on and what is then differentiated.

`torch.export` traces it in PyTorch's training IR: layers are still whole (`aten.conv2d`,
`aten.lstm`, `aten.batch_norm`), and every node knows the module that it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind

from export.graphs import first_line
from export.inspection import Model
from export.quiet import quiet
from export.rewrites import Rewrite, in_place, interpolation
from fedtide.errors import ExportError

Tensors = tuple[torch.Tensor, ...]
EXAMPLES = 5
"""Batch while tracing; not 1, which torch treats as a constant."""


@dataclass(frozen=True)
class Forward:
    """A traced function of inputs and the model's tensors."""

    graph_module: fx.GraphModule
    sources: tuple[str | int | torch.Tensor, ...]
    """Of each placeholder: a tensor's name, an input's index, or a constant."""

    def __call__(self, inputs: Sequence[torch.Tensor], values: dict[str, torch.Tensor]) -> Tensors:
        """Run it; statistics among `values` are changed in place."""
        arguments = []
        for source in self.sources:
            if isinstance(source, torch.Tensor):
                # A counter among the constants is changed in place, and nobody looks at it.
                arguments.append(source.clone())
            else:
                arguments.append(inputs[source] if isinstance(source, int) else values[source])
        outputs = fx.Interpreter(self.graph_module).run(*arguments, enable_io_processing=False)
        return tuple(outputs)


class _Function(nn.Module):
    """`function(model.module, *inputs)` as a module, which `torch.export` wants."""

    def __init__(self, module: nn.Module, function: Callable[..., Tensors]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Tensors:
        return self.function(self.module, *inputs)


def trace_forward(
    model: Model,
    function: Callable[..., Tensors],
    *,
    labels: bool,
    training: bool,
    rewrites: Sequence[Rewrite] = (),
) -> Forward:
    """Trace `function(module, x[, y])` and rewrite it; a batch of any size is one graph's matter.

    Raises:
        ExportError: the model's control flow depends on values, or fixes the batch.
    """
    inputs = model.example_batch(EXAMPLES)[: 2 if labels else 1]
    module = model.module.train(training)
    batch = torch.export.Dim("batch")
    try:
        # Fused attention kernels have backward operators of their own: keep to plain ones.
        with quiet(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            program = torch.export.export(
                _Function(module, function),
                inputs,
                dynamic_shapes={"inputs": tuple({0: batch} for _ in inputs)},
                strict=False,
            )
    except ExportError:
        raise
    except Exception as exc:
        raise ExportError(
            f"torch could not trace the model: {first_line(exc)}",
            hint="control flow that depends on values, and batches of fixed size, cannot be "
            "traced: use x.shape[0] or -1 where the model needs the size of the batch",
        ) from exc
    graph_module = program.graph_module
    for rewrite in (in_place.rewrite, interpolation.rewrite, *rewrites):
        rewrite(graph_module.graph)
    graph_module.recompile()
    return Forward(graph_module, _sources(model, program))


def _sources(
    model: Model, program: torch.export.ExportedProgram
) -> tuple[str | int | torch.Tensor, ...]:
    first_names = _first_names(model.module)
    known = {tensor.name for tensor in model.tensors}
    sources: list[str | int | torch.Tensor] = []
    inputs_count = 0
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            sources.append(inputs_count)
            inputs_count += 1
            continue
        assert spec.target is not None
        name = first_names.get(spec.target.removeprefix("module."))
        if name in known:
            sources.append(name)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            sources.append(program.constants[spec.target])
        else:
            sources.append(_constant(program, spec.target))
    return tuple(sources)


def _constant(program: torch.export.ExportedProgram, target: str) -> torch.Tensor:
    """A buffer that is no tensor of the manifest (integers; buffers of the loss)."""
    value = program.state_dict.get(target)
    if value is None:
        value = program.constants[target]
    constant: torch.Tensor = value
    return constant.detach()


def _first_names(module: nn.Module) -> dict[str, str]:
    """Every name of each tensor -> its first one: tied weights have several."""
    firsts: dict[int, str] = {}
    names: dict[str, str] = {}
    for pairs in (
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    ):
        for name, value in pairs:
            names[name] = firsts.setdefault(id(value), name)
    return names
