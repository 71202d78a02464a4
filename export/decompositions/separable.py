"""Average pooling and interpolation: linear maps of one spatial axis after the other.

Each is a small constant matrix per axis, and its gradient is the transposed matrix. The matrix is
what PyTorch's own operator makes of the unit vectors, so that every mode, rounding of sizes and
border rule is PyTorch's. Matrices that only repeat elements, or average neighbours without
overlap, become reshapes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes

aten = torch.ops.aten

_NEUTRAL = 2


@dataclass(frozen=True)
class AxisMap:
    """A constant linear map of one axis, as plain numbers: a tensor would be part of the trace."""

    transposed: list[list[float]]
    """[columns, rows] of its matrix [rows, columns]."""
    repeats: int = 0
    """Each element is repeated so often, if that is all; 1 is the identity."""
    sums: int = 0
    """So many neighbours are added up, if that is all."""

    def __call__(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """x[..., columns, ...] -> [..., rows, ...] along `axis`."""
        if self.repeats > 1:
            sizes = [-1] * (x.dim() + 1)
            sizes[axis + 1] = self.repeats
            x = x.unsqueeze(axis + 1).expand(sizes).flatten(axis, axis + 1)
        elif self.sums:
            x = torch.unflatten(x, axis, (-1, self.sums)).sum(axis + 1)
        elif not self.repeats:
            product = torch.matmul(x.transpose(axis, -1), torch.tensor(self.transposed))
            return product.transpose(axis, -1)
        scale = self.transposed[0][0]
        return x if scale == 1 else x * scale


@functools.lru_cache(maxsize=256)
def _axis_map(
    operator: str, rank: int, axis: int, size: int, arguments: Any, backward: bool
) -> AxisMap:
    """The operator, of `rank` spatial axes, on the unit vectors of one of them.

    The other axes have two elements and keep them; PyTorch's antialiasing is wrong for one.
    `arguments` are the operator's after x, each a value, or `_PerAxis` of one for every axis.
    `backward` transposes.
    """
    shape = [1, size] + [_NEUTRAL] * rank
    shape[2 + axis] = size
    places = [1, size] + [1] * rank
    places[2 + axis] = size
    values: list[Any] = []
    for argument in arguments:
        if isinstance(argument, _PerAxis):
            neutral = [argument.neutral] * rank
            neutral[axis] = argument.values[axis]
            values += [neutral] if argument.listed else neutral
        else:
            values.append(argument)
    with _disable_current_modes(), torch.no_grad():
        units = torch.eye(size).reshape(places).expand(shape).contiguous()
        images = getattr(aten, operator).default(units, *values)
        matrix = images.movedim(2 + axis, 2).flatten(2)[0, :, :: _NEUTRAL ** (rank - 1)]
        matrix = matrix if backward else matrix.T
        rows, columns = matrix.shape
        transposed = matrix.T.tolist()
        if rows % columns == 0 and _is_repetition(matrix, rows // columns):
            return AxisMap(transposed, repeats=rows // columns)
        if columns % rows == 0 and _is_repetition(matrix.T, columns // rows):
            return AxisMap(transposed, sums=columns // rows)
        return AxisMap(transposed)


def _is_repetition(matrix: torch.Tensor, times: int) -> bool:
    pattern = torch.eye(matrix.shape[1]).repeat_interleave(times, 0)
    return bool(torch.equal(matrix, pattern * matrix[0, 0]))


class _PerAxis:
    """An argument with one value for each spatial axis, as a list or as several arguments."""

    def __init__(self, values: Sequence[Any], neutral: Any, *, listed: bool = True) -> None:
        self.values, self.neutral, self.listed = tuple(values), neutral, listed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _PerAxis) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.values, self.neutral, self.listed


def _map(
    x: torch.Tensor,
    operator: str,
    sizes: Sequence[int],
    arguments: tuple[Any, ...],
    *,
    backward: bool,
) -> torch.Tensor:
    """The operator on a tensor of spatial `sizes`, or its gradient, on x[..., spatial]."""
    rank = len(sizes)
    for axis in range(rank):
        mapped = _axis_map(operator, rank, axis, int(sizes[axis]), arguments, backward)
        x = mapped(x, x.dim() - rank + axis)
    return x


def _interpolations(name: str, rank: int, aligned: bool) -> dict[Any, Callable[..., Any]]:
    def arguments(output_size: Sequence[int], rest: tuple[Any, ...]) -> tuple[Any, ...]:
        corners, scales = (rest[:1], rest[1:]) if aligned else ((), rest)
        scales = tuple(scales) + (None,) * (rank - len(scales))
        sizes = tuple(int(size) for size in output_size)
        return (_PerAxis(sizes, _NEUTRAL), *corners, _PerAxis(scales, None, listed=False))

    def forward(x: torch.Tensor, output_size: Sequence[int], *rest: Any) -> torch.Tensor:
        sizes = x.shape[2:]
        return _map(x, name, sizes, arguments(output_size, rest), backward=False)

    def backward(
        grad: torch.Tensor, output_size: Sequence[int], input_size: Sequence[int], *rest: Any
    ) -> torch.Tensor:
        return _map(grad, name, input_size[2:], arguments(output_size, rest), backward=True)

    return {
        getattr(aten, name).default: forward,
        getattr(aten, f"{name}_backward").default: backward,
    }


class _PoolArguments(NamedTuple):
    kernel_size: _PerAxis
    stride: _PerAxis
    padding: _PerAxis
    ceil_mode: bool
    include_pad: bool


def _pool_arguments(
    rank: int, kernel_size: Sequence[int], rest: tuple[Any, ...]
) -> tuple[int | None, _PoolArguments]:
    """The divisor, and PyTorch's arguments per axis with their defaults filled in."""
    stride, padding, ceil_mode, include_pad, divisor = (*rest, *_POOL_DEFAULTS[len(rest) :])

    def each(values: Sequence[int]) -> tuple[int, ...]:
        return tuple(values) * rank if len(values) == 1 else tuple(values)

    kernel = each(kernel_size)
    return divisor, _PoolArguments(
        _PerAxis(kernel, 1),
        _PerAxis(each(stride) if stride else kernel, 1),
        _PerAxis(each(padding), 0),
        bool(ceil_mode),
        bool(include_pad),
    )


_POOL_DEFAULTS: tuple[Any, ...] = ([], [0], False, True, None)


def _average_pools(rank: int) -> dict[Any, Callable[..., Any]]:
    name = f"avg_pool{rank}d"

    def forward(x: torch.Tensor, kernel_size: Sequence[int], *rest: Any) -> Any:
        divisor, arguments = _pool_arguments(rank, kernel_size, rest)
        if divisor is None and not arguments.ceil_mode:
            return NotImplemented  # ONNX has the same operator
        return run(x, x.shape[-rank:], divisor, arguments, backward=False)

    def backward(
        grad: torch.Tensor, x: torch.Tensor, kernel_size: Sequence[int], *rest: Any
    ) -> torch.Tensor:
        divisor, arguments = _pool_arguments(rank, kernel_size, rest)
        return run(grad, x.shape[-rank:], divisor, arguments, backward=True)

    def run(
        x: torch.Tensor,
        sizes: Sequence[int],
        divisor: int | None,
        arguments: _PoolArguments,
        *,
        backward: bool,
    ) -> torch.Tensor:
        if divisor is None:
            return _map(x, name, sizes, arguments, backward=backward)
        # An axis at a time, the divisor would count for each: it is applied once, at the end.
        return _map(x, name, sizes, (*arguments, 1), backward=backward) / divisor

    return {
        getattr(aten, name).default: forward,
        getattr(aten, f"{name}_backward").default: backward,
    }


def _adaptive_average_pools(rank: int) -> dict[Any, Callable[..., Any]]:
    name = f"_adaptive_avg_pool{rank}d"

    def forward(x: torch.Tensor, output_size: Sequence[int]) -> torch.Tensor:
        sizes = [int(size) for size in x.shape[-rank:]]
        if all(size % out == 0 for size, out in zip(sizes, output_size, strict=True)):
            kernel = [size // out for size, out in zip(sizes, output_size, strict=True)]
            pooled: torch.Tensor = getattr(aten, f"avg_pool{rank}d")(x, kernel)
            return pooled
        arguments = (_PerAxis([int(size) for size in output_size], _NEUTRAL),)
        return _map(x, name, sizes, arguments, backward=False)

    def backward(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        arguments = (_PerAxis([int(size) for size in grad.shape[-rank:]], _NEUTRAL),)
        return _map(grad, name, x.shape[-rank:], arguments, backward=True)

    return {
        getattr(aten, name).default: forward,
        getattr(aten, f"{name}_backward").default: backward,
    }


TABLE: dict[Any, Callable[..., Any]] = {}
for _rank in (1, 2, 3):
    TABLE |= _interpolations(f"upsample_nearest{_rank}d", _rank, aligned=False)
    TABLE |= _interpolations(f"_upsample_nearest_exact{_rank}d", _rank, aligned=False)
for _rank in (2, 3):
    TABLE |= _average_pools(_rank) | _adaptive_average_pools(_rank)
TABLE |= _interpolations("upsample_linear1d", 1, aligned=True)
TABLE |= _interpolations("upsample_trilinear3d", 3, aligned=True)
for _name in ("upsample_bilinear2d", "upsample_bicubic2d"):
    TABLE |= _interpolations(_name, 2, aligned=True)
    TABLE |= _interpolations(f"_{_name}_aa", 2, aligned=True)
