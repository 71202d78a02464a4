"""Margin losses of classifiers, whose gradients PyTorch computes in one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

_MEAN, _SUM = 1, 2


def multi_margin_loss(
    x: torch.Tensor,
    target: torch.Tensor,
    p: int = 1,
    margin: float = 1,
    weight: torch.Tensor | None = None,
    reduction: int = _MEAN,
) -> torch.Tensor:
    """mean over j != y of max(0, margin - x[y] + x[j])^p, of x[b,classes] and target[b]."""
    excess, _ = _excess(x, target, margin)
    losses = (excess if p == 1 else excess * excess).sum(1) / x.shape[1]
    if weight is not None:
        losses = losses * weight[target]
    return _reduced(losses, reduction)


def multi_margin_loss_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    p: int,
    margin: float,
    weight: torch.Tensor | None = None,
    reduction: int = _MEAN,
) -> torch.Tensor:
    """Gradient of x[b,classes]."""
    excess, is_target = _excess(x, target, margin)
    slopes = (excess > 0).to(x.dtype) if p == 1 else 2 * excess
    if weight is not None:
        slopes = slopes * weight[target][:, None]
    slopes = slopes / x.shape[1]
    slopes = torch.where(is_target, -slopes.sum(1, keepdim=True), slopes)
    return slopes * _spread(grad, x.shape[0], reduction)


def multilabel_margin_loss_forward(
    x: torch.Tensor, target: torch.Tensor, reduction: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """mean over pairs of max(0, 1 - x[y] + x[j]), y a target and j none, of x[b,classes].

    A row's targets are the labels before its first negative one. The second result marks them.
    """
    is_target, excess, weights = _pairs(x, target)
    losses = (excess * weights).sum((1, 2)) / x.shape[1]
    return _reduced(losses, reduction), is_target.to(x.dtype)


def multilabel_margin_loss_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    reduction: int,
    is_target: torch.Tensor,
) -> torch.Tensor:
    """Gradient of x[b,classes]."""
    del is_target
    _, excess, weights = _pairs(x, target)
    slopes = torch.where(excess > 0, weights, 0.0) / x.shape[1]
    return (slopes.sum(1) - slopes.sum(2)) * _spread(grad, x.shape[0], reduction)


def _excess(
    x: torch.Tensor, target: torch.Tensor, margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each class [b,classes] comes too close to the target, and which is the target."""
    is_target = torch.arange(x.shape[1]) == target[:, None]
    excess = (margin - x.gather(1, target[:, None]) + x).clamp(min=0)
    return torch.where(is_target, 0.0, excess), is_target


def _pairs(
    x: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets [b,classes]; how far others come too close to them [b,target,other]; how often
    each pair counts: a target that is listed twice counts twice."""
    valid = (target < 0).to(torch.int64).cumsum(1) == 0
    marks = (torch.arange(x.shape[1]) == target[:, :, None]) & valid[:, :, None]
    is_target = marks.any(1)
    excess = (1 - x[:, :, None] + x[:, None, :]).clamp(min=0)
    others = torch.where(is_target, 0.0, 1.0)
    return is_target, excess, marks.to(x.dtype).sum(1)[:, :, None] * others[:, None, :]


def _reduced(losses: torch.Tensor, reduction: int) -> torch.Tensor:
    if reduction == _MEAN:
        return losses.mean()
    return losses.sum() if reduction == _SUM else losses


def _spread(grad: torch.Tensor, examples: int, reduction: int) -> torch.Tensor:
    """The loss's gradient for each example, [b,1] or []."""
    if reduction == _MEAN:
        return grad / examples
    return grad if reduction == _SUM else grad[:, None]


TABLE: dict[Any, Callable[..., Any]] = {
    aten.multi_margin_loss.default: multi_margin_loss,
    aten.multi_margin_loss_backward.default: multi_margin_loss_backward,
    aten.multilabel_margin_loss_forward.default: multilabel_margin_loss_forward,
    aten.multilabel_margin_loss_backward.default: multilabel_margin_loss_backward,
}
