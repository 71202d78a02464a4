"""Padding by constants, by mirroring and by repeating the border, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

aten = torch.ops.aten


def constant_pad(x: torch.Tensor, pad: list[int], value: float = 0.0) -> torch.Tensor:
    """Pad or crop the last dimensions; `pad` is before, after of the last, then of the others.

    PyTorch's own converts sizes to integers, which would fix the batch.
    """
    for axis, before, after in _axes(x, pad):
        start, end = max(0, -before), x.shape[axis] - max(0, -after)
        kept = x.narrow(axis, start, end - start)
        border = torch.full_like(x.narrow(axis, 0, 1), value)
        sizes = [-1] * x.dim()
        parts = [kept]
        if before > 0:
            sizes[axis] = before
            parts.insert(0, border.expand(sizes))
        if after > 0:
            sizes[axis] = after
            parts.append(border.expand(sizes))
        x = torch.cat(parts, axis)
    return x


def reflection_pad(x: torch.Tensor, padding: list[int]) -> torch.Tensor:
    """Mirrored at the border, which is not repeated."""
    for axis, before, after in _axes(x, padding):
        size = x.shape[axis]
        parts = [x]
        if before > 0:
            parts.insert(0, x.narrow(axis, 1, before).flip(axis))
        if after > 0:
            parts.append(x.narrow(axis, size - 1 - after, after).flip(axis))
        x = _joined(parts, axis, before, after)
    return x


def reflection_pad_backward(
    grad: torch.Tensor, x: torch.Tensor, padding: list[int]
) -> torch.Tensor:
    """Each mirrored element's gradient is added to that of its original."""
    return _folded(grad, x, padding, lambda part, axis: part.flip(axis), inset=1)


def replication_pad(x: torch.Tensor, padding: list[int]) -> torch.Tensor:
    """The border repeated."""
    for axis, before, after in _axes(x, padding):
        sizes = [-1] * x.dim()
        parts = [x]
        if before > 0:
            sizes[axis] = before
            parts.insert(0, x.narrow(axis, 0, 1).expand(sizes))
        if after > 0:
            sizes[axis] = after
            parts.append(x.narrow(axis, x.shape[axis] - 1, 1).expand(sizes))
        x = _joined(parts, axis, before, after)
    return x


def replication_pad_backward(
    grad: torch.Tensor, x: torch.Tensor, padding: list[int]
) -> torch.Tensor:
    """The gradients of the repetitions are summed where the border is."""
    return _folded(grad, x, padding, lambda part, axis: part.sum(axis, keepdim=True), inset=0)


def _folded(
    grad: torch.Tensor,
    x: torch.Tensor,
    padding: list[int],
    fold: Callable[[torch.Tensor, int], torch.Tensor],
    inset: int,
) -> torch.Tensor:
    """The middle of `grad`, and what was padded folded onto it, `inset` from either border."""
    for axis, before, after in reversed(list(_axes(x, padding))):
        size = x.shape[axis]
        total = _middle(grad, axis, before, after, size)
        if before > 0:
            part = fold(grad.narrow(axis, 0, before), axis)
            total = total + _placed(part, axis, inset, size)
        if after > 0:
            part = fold(grad.narrow(axis, grad.shape[axis] - after, after), axis)
            total = total + _placed(part, axis, size - inset - part.shape[axis], size)
        grad = total
    return grad


def _axes(x: torch.Tensor, pad: list[int]) -> Iterator[tuple[int, int, int]]:
    """(axis, before, after) of the axes that change, the last axis first."""
    for index in range(len(pad) // 2):
        before, after = pad[2 * index : 2 * index + 2]
        if (before, after) != (0, 0):
            yield x.dim() - 1 - index, before, after


def _joined(parts: list[torch.Tensor], axis: int, before: int, after: int) -> torch.Tensor:
    """Concatenated; negative padding crops."""
    whole = torch.cat(parts, axis) if len(parts) > 1 else parts[0]
    cut = max(0, -before)
    return whole.narrow(axis, cut, whole.shape[axis] - cut - max(0, -after))


def _middle(grad: torch.Tensor, axis: int, before: int, after: int, size: int) -> torch.Tensor:
    """What was x itself in the padded tensor, with zeros where it was cropped."""
    start = max(0, before)
    kept = grad.narrow(axis, start, grad.shape[axis] - start - max(0, after))
    return _placed(kept, axis, max(0, -before), size)


def _placed(part: torch.Tensor, axis: int, start: int, size: int) -> torch.Tensor:
    """`part` at `start` of zeros of the length `size`."""
    pad = [0] * (2 * (part.dim() - axis))
    pad[-2:] = [start, size - start - part.shape[axis]]
    return constant_pad(part, pad)


TABLE: dict[Any, Callable[..., Any]] = {aten.constant_pad_nd.default: constant_pad}
for _rank in (1, 2, 3):
    TABLE |= {
        getattr(aten, f"reflection_pad{_rank}d").default: reflection_pad,
        getattr(aten, f"reflection_pad{_rank}d_backward").default: reflection_pad_backward,
        getattr(aten, f"replication_pad{_rank}d").default: replication_pad,
        getattr(aten, f"replication_pad{_rank}d_backward").default: replication_pad_backward,
    }
