"""Losses: what they are called, which labels they take, and their sum and weight over a batch.

Every measure of a batch is a sum and a weight, so that batches add up: mean = sum / weight. The
weight counts examples, or labels that are not ignored, or adds up the classes' weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from fedtide.errors import ExportError
from fedtide.manifest import Array

Measure = tuple[torch.Tensor, torch.Tensor]
Function = Callable[[torch.Tensor, torch.Tensor], Measure]

_Labels = Literal["class", "token", "like_output", "given"]
IGNORED = -100
"""PyTorch's default `ignore_index`."""


@dataclass(frozen=True)
class LossFunction:
    """A loss, ready to be traced."""

    name: str
    labels: _Labels
    """class: integers [b, ...] for output [b, classes, ...]. token: integers [b, ...] for output
    [b, ..., classes]. like_output: float32 of the output's shape. given: as in example_labels."""
    measure: Function
    ignored_label: int | None = None
    own: Any = None
    """The user's module or function, to compare with."""


def resolve_loss(loss: object) -> LossFunction:
    """The loss that a ModelSpec names.

    Raises:
        ExportError: there is none of that name, or it is no loss.
    """
    if isinstance(loss, str):
        if loss not in NAMED:
            raise ExportError(
                f"loss is {loss!r}, which is none of {', '.join(map(repr, NAMED))}",
                hint="or give a loss module of torch.nn, or a function of (output, y)",
            )
        return NAMED[loss]
    if isinstance(loss, nn.Module):
        if any(value.requires_grad for value in loss.parameters()):
            raise ExportError(
                f"loss {type(loss).__name__} has parameters to train, which would stay as they are",
                hint="make them parameters of the model, and part of its output",
            )
        # Not isinstance: a subclass may compute something else.
        if type(loss) is nn.CrossEntropyLoss and loss.reduction == "mean":
            return _cross_entropy_module(loss)
        if type(loss) is nn.NLLLoss and loss.reduction == "mean":
            return _nll_module(loss)
        return _module(loss)
    if callable(loss):
        name = getattr(loss, "__name__", type(loss).__name__)
        return LossFunction(name, "given", lambda o, y: as_measure(loss(o, y), y, name), own=loss)
    raise ExportError(
        f"loss is {type(loss).__name__}, expected a name, a loss module or a function"
    )


def as_measure(value: Any, y: torch.Tensor, name: str) -> Measure:
    """Sum and weight of what a user's function returned; see `ModelSpec`.

    Raises:
        ExportError: it returned something else.
    """
    examples = _count(y, y.shape[0])
    if isinstance(value, tuple) and len(value) == 2:
        return value[0].float(), value[1].float()
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        return value.float() * examples, examples
    if isinstance(value, torch.Tensor) and value.dim() == 1 and value.shape[0] == y.shape[0]:
        return value.float().sum(), examples
    shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
    raise ExportError(
        f"{name}(output, y) returned {shape}, expected a mean [], one value for each example [b], "
        "or (sum, weight)"
    )


def accuracy(output: torch.Tensor, y: torch.Tensor, loss: LossFunction) -> Measure:
    """Correct predictions, and labels that are not ignored."""
    hits = output.argmax(1 if loss.labels == "class" else -1) == y
    if loss.ignored_label is None:
        return hits.float().sum(), _count(y, hits.numel())
    return hits.float().sum(), (y != loss.ignored_label).float().sum()


def _count(y: torch.Tensor, count: Any) -> torch.Tensor:
    """`count`, which may depend on the size of the batch, as float32 []."""
    return torch.full((), count, dtype=torch.float32, device=y.device)


def _per_element(function: Callable[..., torch.Tensor], **options: Any) -> Function:
    """The mean over an example's elements, as torch's reduction "mean" over a batch has it."""

    def measure(output: torch.Tensor, y: torch.Tensor) -> Measure:
        losses = function(output, y, reduction="none", **options)
        return losses.reshape(y.shape[0], -1).mean(1).sum(), _count(y, y.shape[0])

    return measure


def _class_losses(output: torch.Tensor, y: torch.Tensor, **options: Any) -> Measure:
    total = F.cross_entropy(output, y, reduction="sum", ignore_index=IGNORED, **options)
    return total, (y != IGNORED).float().sum()


def _cross_entropy(output: torch.Tensor, y: torch.Tensor) -> Measure:
    return F.cross_entropy(output, y, reduction="sum"), _count(y, y.numel())


def _token_cross_entropy(output: torch.Tensor, y: torch.Tensor) -> Measure:
    return _class_losses(output.reshape(-1, output.shape[-1]), y.reshape(-1))


def _nll(output: torch.Tensor, y: torch.Tensor) -> Measure:
    return F.nll_loss(output, y, reduction="sum"), _count(y, y.numel())


def _weight_of(
    y: torch.Tensor, weights: torch.Tensor | None, ignored: int, like: torch.Tensor
) -> torch.Tensor:
    """What torch divides by: the labels' class weights, or their number."""
    labelled = (y != ignored).to(like.dtype)
    if weights is None:
        return labelled.sum()
    return (weights[torch.where(y == ignored, 0, y)] * labelled).sum()


def _cross_entropy_module(loss: nn.CrossEntropyLoss) -> LossFunction:
    options: dict[str, Any] = {"weight": loss.weight, "label_smoothing": loss.label_smoothing}

    def measure(output: torch.Tensor, y: torch.Tensor) -> Measure:
        if y.is_floating_point():  # probabilities of the classes
            total = F.cross_entropy(output, y, reduction="sum", **options)
            return total, _count(y, y.numel() // y.shape[1])
        total = F.cross_entropy(
            output, y, reduction="sum", ignore_index=loss.ignore_index, **options
        )
        return total, _weight_of(y, loss.weight, loss.ignore_index, output)

    return LossFunction("cross_entropy", "class", measure, loss.ignore_index, loss)


def _nll_module(loss: nn.NLLLoss) -> LossFunction:
    def measure(output: torch.Tensor, y: torch.Tensor) -> Measure:
        total = F.nll_loss(
            output, y, weight=loss.weight, ignore_index=loss.ignore_index, reduction="sum"
        )
        return total, _weight_of(y, loss.weight, loss.ignore_index, output)

    return LossFunction("nll", "class", measure, loss.ignore_index, loss)


_LABELS_OF: dict[type[nn.Module], _Labels] = {
    nn.MSELoss: "like_output",
    nn.L1Loss: "like_output",
    nn.SmoothL1Loss: "like_output",
    nn.HuberLoss: "like_output",
    nn.BCELoss: "like_output",
    nn.BCEWithLogitsLoss: "like_output",
    nn.KLDivLoss: "like_output",
    nn.PoissonNLLLoss: "like_output",
    nn.SoftMarginLoss: "like_output",
    nn.MultiLabelSoftMarginLoss: "like_output",
    nn.CrossEntropyLoss: "class",
    nn.NLLLoss: "class",
    nn.MultiMarginLoss: "class",
}


def _module(loss: nn.Module) -> LossFunction:
    name = type(loss).__name__

    def measure(output: torch.Tensor, y: torch.Tensor) -> Measure:
        value = loss(output, y)
        if getattr(loss, "reduction", "") == "none" and isinstance(value, torch.Tensor):
            value = value.flatten(1).mean(1) if value.dim() > 1 else value
        return as_measure(value, y, name)

    return LossFunction(name, _LABELS_OF.get(type(loss), "given"), measure, own=loss)


def separates(loss: LossFunction, output: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether the loss of a batch is known to be a sum over its parts.

    A mean of a user's own may divide by anything: by the labels that count, for example.
    """
    if loss.own is None or type(loss.own) in _LABELS_OF:
        return True
    value = loss.own(output, y)
    return not (isinstance(value, torch.Tensor) and value.dim() == 0)


NAMED: dict[str, LossFunction] = {
    loss.name: loss
    for loss in (
        LossFunction("cross_entropy", "class", _cross_entropy),
        LossFunction("token_cross_entropy", "token", _token_cross_entropy, IGNORED),
        LossFunction("nll", "class", _nll),
        LossFunction("mse", "like_output", _per_element(F.mse_loss)),
        LossFunction("l1", "like_output", _per_element(F.l1_loss)),
        LossFunction("smooth_l1", "like_output", _per_element(F.smooth_l1_loss)),
        LossFunction("huber", "like_output", _per_element(F.huber_loss)),
        LossFunction(
            "bce_with_logits",
            "like_output",
            _per_element(F.binary_cross_entropy_with_logits),
        ),
    )
}
"""Losses by name. cross_entropy: logits [b, classes, ...]; token_cross_entropy: logits
[b, ..., classes], label -100 is ignored; nll: log-probabilities [b, classes, ...]; the others:
labels of the output's shape."""


def label_array(loss: LossFunction, output: torch.Tensor) -> tuple[Array, int | None]:
    """Shape and dtype of the labels for `output` [b, ...], and the number of classes.

    Raises:
        ExportError: the output does not fit the loss.
    """
    shape = tuple(output.shape)
    if loss.labels == "like_output":
        return Array(shape[1:], "float32"), None
    axis = 1 if loss.labels == "class" else len(shape) - 1
    if len(shape) < 2 or shape[axis] < 2:
        raise ExportError(
            f"the model returns shape {shape} for a batch of {shape[0]}; {loss.name} needs "
            f"logits with at least 2 classes in dimension {'1' if axis == 1 else '-1'}"
        )
    return Array(shape[1:axis] + shape[axis + 1 :], "int64"), shape[axis]
