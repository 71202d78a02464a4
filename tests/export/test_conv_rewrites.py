"""Convolutions, pooling and batch normalisation channels last, against PyTorch.

Gradients of inputs count too: they reach a factor before the layer. Everything is in float64, so
that rounding stays below 1e-9 and any other difference shows.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export import ModelSpec  # noqa: E402
from export.quiet import quiet  # noqa: E402
from export.rewrites import convolution, layout, pooling  # noqa: E402
from export.rewrites.pooling import convolution_max_pool, largest_of_windows  # noqa: E402
from tests.export.rewriting import assert_same_in_eager, assert_same_step  # noqa: E402

ALL = (pooling.rewrite, convolution.rewrite, layout.rewrite)


class Weighed(nn.Module):
    """A scalar of layer(factor * x) in which every element has another weight."""

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.factor = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)
        self.layer = layer
        self.double()

    def forward(self, x: Any) -> Any:
        y = self.layer(x * self.factor)
        weights = torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype)
        return (y.flatten(1) * weights).sum()


def images(channels: int, height: int, width: int, *, ties: bool = False) -> Any:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(5, channels, height, width, generator=generator, dtype=torch.float64)
    return (x * 1.5).round() if ties else x


def check(layer: nn.Module, x: Any, rewrites: Any = ALL) -> str:
    return assert_same_in_eager(Weighed(layer, x.shape[1]), [x], rewrites)


def applied(layer: nn.Module, x: Any, rewrites: Any = ALL) -> list[int]:
    """How many places each rewrite changes."""
    batch = torch.export.Dim("batch")
    with quiet():
        program = torch.export.export(
            Weighed(layer, x.shape[1]), (x,), dynamic_shapes=({0: batch},), strict=False
        )
    return [rewrite(program.graph) for rewrite in rewrites]


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {
    "rows": (nn.Conv2d(4, 6, 3, padding=1), (4, 7, 9)),
    "rows without padding": (nn.Conv2d(4, 5, 3), (4, 6, 5)),
    "rows, wide padding": (nn.Conv2d(4, 5, 3, padding=(4, 3)), (4, 5, 6)),
    "rows, width strided": (nn.Conv2d(5, 4, 3, stride=(1, 2), padding=1), (5, 6, 8)),
    "rows, dilated": (nn.Conv2d(8, 4, (3, 2), dilation=(2, 3), padding=(1, 2)), (8, 8, 9)),
    "rows, tall": (nn.Conv2d(4, 3, (5, 1), padding=(2, 0)), (4, 7, 3)),
    "rows, no bias": (nn.Conv2d(4, 4, 2, bias=False), (4, 5, 5)),
    "columns, one channel": (nn.Conv2d(1, 8, 5, padding=2), (1, 9, 8)),
    "columns, three channels": (nn.Conv2d(3, 16, 3, padding=1), (3, 7, 6)),
    "columns, few and strided": (nn.Conv2d(2, 9, 3, stride=(2, 3), padding=2), (2, 9, 8)),
    "columns, strided": (nn.Conv2d(8, 4, 3, stride=2, padding=1), (8, 9, 8)),
    "columns, strided, dilated": (nn.Conv2d(9, 4, 3, 3, 2, 2), (9, 11, 10)),
    "plain": (nn.Conv2d(5, 3, 1), (5, 4, 6)),
    "plain, strided": (nn.Conv2d(5, 3, 1, stride=2), (5, 5, 6)),
    "plain, padded": (nn.Conv2d(5, 3, 1, padding=1), (5, 4, 4)),
    "kernel as large as the image": (nn.Conv2d(3, 4, (4, 5)), (3, 4, 5)),
    "same": (nn.Conv2d(4, 3, 3, padding="same", dilation=2), (4, 6, 6)),
    "same, even kernel": (nn.Conv2d(4, 3, (2, 4), padding="same"), (4, 6, 6)),
    "valid": (nn.Conv2d(4, 3, 3, padding="valid"), (4, 6, 6)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_gradients(name: str) -> None:
    layer, shape = CONVOLUTIONS[name]
    check(copy.deepcopy(layer), images(*shape), [convolution.rewrite])


def test_large_intermediates_keep_conv(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Conv2d(4, 6, 3, padding=1), images(4, 8, 8)
    assert applied(layer, x, [convolution.rewrite]) == [1]
    monkeypatch.setattr(convolution, "_FLOATS_MAX", 8 * 8 * 3 * 6 - 1)
    assert applied(layer, x, [convolution.rewrite]) == [0]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=2),
        nn.ConvTranspose2d(4, 4, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
    ],
    ids=["depthwise", "groups", "reflected groups", "transposed", "pool alone", "relu alone"],
)
def test_what_is_not_covered_is_left_alone(layer: nn.Module) -> None:
    assert applied(layer, images(4, 6, 6)) == [0, 0, 0]


POOLS: dict[str, tuple[nn.Module, tuple[int, int]]] = {
    "tiles": (nn.MaxPool2d(2), (8, 6)),
    "tiles, ragged": (nn.MaxPool2d(2), (7, 9)),
    "tiles, uneven": (nn.MaxPool2d((3, 2)), (8, 7)),
    "tiles, rounded up": (nn.MaxPool2d(2, ceil_mode=True), (7, 5)),
    "overlapping": (nn.MaxPool2d(3, 2), (9, 8)),
    "overlapping, padded": (nn.MaxPool2d(3, 2, 1), (8, 7)),
    "overlapping, padded, rounded up": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (8, 6)),
    "dense": (nn.MaxPool2d(2, 1), (4, 5)),
    "dilated": (nn.MaxPool2d(2, 2, 1, dilation=2), (8, 7)),
    "gaps": (nn.MaxPool2d(2, 3), (8, 9)),
    "mean": (nn.AvgPool2d(2), (7, 6)),
    "mean, overlapping, padded": (nn.AvgPool2d(3, 2, 1), (7, 6)),
    "mean of everything": (nn.AdaptiveAvgPool2d(1), (5, 4)),
}


@pytest.mark.parametrize("few", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("name", POOLS)
def test_pooling_of_ties_after_a_convolution(name: str, few: bool) -> None:
    layer, size = POOLS[name]
    channels = 1 if few else 4
    body = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), copy.deepcopy(layer))
    with torch.no_grad():
        # Small integers: many equal elements in a window, all sums exact.
        for parameter in body[0].parameters():
            parameter.copy_((parameter * 3).round())
    module = Weighed(body, channels)
    module.factor.data.fill_(1)
    x = images(channels, *size, ties=True)
    activations = [pooling.rewrite] if isinstance(layer, nn.MaxPool2d) else []
    code = assert_same_in_eager(module, [x], [*activations, *ALL[1:]])
    assert "max_pool2d" not in code.replace("max_pool2d_", "")
    assert "avg_pool2d" not in code


def test_tiles_are_part_of_the_convolution_and_other_windows_are_not() -> None:
    def functions(layer: nn.Module) -> str:
        return check(nn.Sequential(nn.Conv2d(4, 4, 3), layer), images(4, 8, 8), ALL[1:])

    assert convolution_max_pool.__name__ in functions(nn.MaxPool2d(2))
    assert largest_of_windows.__name__ in functions(nn.MaxPool2d(3, 2))


class TwoUsers(nn.Module):
    """The convolution's output is pooled and used as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.conv(x))
        return torch.cat([nn.functional.max_pool2d(y, 2).flatten(1), y.flatten(1)], 1)


def test_an_activation_with_two_users_stays_before_the_pool() -> None:
    x = images(4, 6, 6)
    assert applied(TwoUsers(), x)[0] == 0
    check(TwoUsers(), x, ALL[1:])


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()])
def test_activations_move_behind_the_pool(activation: nn.Module) -> None:
    x = images(3, 6, 6, ties=True) * 3
    body = nn.Sequential(nn.Conv2d(3, 4, 1), copy.deepcopy(activation), nn.MaxPool2d(2, 1))
    check(body, x, [pooling.rewrite])


@pytest.mark.parametrize("activation", [nn.GELU(), nn.LeakyReLU(), nn.Hardswish()])
def test_other_activations_stay(activation: nn.Module) -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 1), activation, nn.MaxPool2d(2))
    assert applied(body, images(3, 6, 6), [pooling.rewrite]) == [0]


class Residual(nn.Module):
    """Two branches added, and two concatenated; a depthwise convolution between."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6, affine=affine) for _ in range(2))
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, padding=1)
        self.last = nn.Conv2d(12, 3, 1)

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.norms[0](self.first(x)))
        y = nn.functional.silu(y + self.norms[1](self.second(y)))
        z = self.depthwise(y)
        return self.last(torch.cat([y, nn.functional.hardtanh(z + y)], 1))


def test_blocks_stay_channels_last() -> None:
    code = check(Residual(), images(4, 6, 5), ALL[1:])
    # Into and out of the first half, the depthwise convolution's two, and out at the end.
    assert code.count(".to_channels_last(") <= 3
    assert "aten.batch_norm" not in code


def test_batch_norm_without_factors() -> None:
    check(Residual(affine=False), images(4, 6, 5), ALL[1:])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_batch_norm_moves_its_statistics_as_pytorch_does(training: bool, momentum: float) -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=momentum))
    module = Weighed(body, 3).train(training)
    statistics: Any = body[1]
    statistics.running_mean.uniform_(-1, 1)
    statistics.running_var.uniform_(0.5, 2)
    x = images(3, 6, 7)
    with quiet():
        rewritten = torch.export.export(copy.deepcopy(module), (x,), strict=False).module()
    for rewrite in ALL[1:]:
        assert rewrite(rewritten.graph) > 0
    rewritten.recompile()
    for _ in range(2):
        torch.testing.assert_close(rewritten(x), module(x), rtol=1e-9, atol=1e-9)
    buffers = dict(rewritten.named_buffers())
    for name in ("running_mean", "running_var"):
        expected = getattr(statistics, name)
        torch.testing.assert_close(buffers[f"layer.1.{name}"], expected, rtol=1e-9, atol=1e-9)


def test_a_whole_step_in_onnxruntime() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.MaxPool2d(3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    spec = ModelSpec(module, torch.zeros(1, 1, 15, 16), "cross_entropy", "model")
    graph = assert_same_step(spec, ALL, 18)
    operators = {node.op_type for node in graph.graph.node}
    assert not operators & {"Conv", "ConvTranspose", "MaxPool"}
    tables = [np.prod(tensor.dims) for tensor in graph.graph.initializer]
    assert sum(tables) < 30_000, "each table once"
